"""The verdict on planted networks: in the user's units, at the precision of the targets.

What the certificate says of spare neurons, layers and rows is in ``test_spare_neurons.py``.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.testing import assert_allclose

from sklearn_ec._certify import examination
from sklearn_ec._certify.examination import certify
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import prepare
from sklearn_ec._core.precision import evaluate, find_input_precision, find_precision
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Verdict
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec.datasets import make_teacher

VERDICT = Verdict()
# As of networks whose Jacobian is too large to be factorized.
WEAKEST = Verdict(max_factorized_parameters=0)
BOTH = pytest.mark.parametrize("verdict", [VERDICT, WEAKEST], ids=["factorized", "weakest"])
TORCH = {"relu": torch.relu, "tanh": torch.tanh, "softplus": torch.nn.functional.softplus}


class Planted:
    """Rows of a teacher in the user's columns, and the teacher in standardized coordinates."""

    def __init__(self, teacher, X, y=None, weight=None, verdict=VERDICT):
        y = teacher.predict(X) if y is None else y
        y = np.asarray(y).reshape(len(X), -1)
        self.teacher, self.activation = teacher, get_activation(teacher.activation)
        self.problem = prepare(
            np.asarray(X, dtype=np.float64),
            np.asarray(y, dtype=np.float64),
            np.ones(len(X)) if weight is None else weight,
            np.random.default_rng(0),
            find_precision(y),
            find_input_precision(X),
        )
        self.verdict = verdict
        self.coordinates, self.held_out = self.problem.coordinates, self.problem.held_out
        self.polisher = self.polisher_on(self.problem.train)
        self.network = self.coordinates.to_standardized(teacher.weights_, teacher.biases_)

    def polisher_on(self, samples):
        return Polisher(samples, self.held_out, self.teacher.activation, "cpu", has_skip=False)

    def certify(self, network=None):
        network = self.network if network is None else network
        return certify(
            network,
            self.polisher.task,
            self.polisher.samples,
            self.held_out,
            self.coordinates,
            self.verdict,
        )

    def certify_polished(self, network=None):
        """The verdict on the least-squares solution next to the planted network."""
        network = self.network if network is None else network
        return self.certify(self.polisher.polish(network, 200)[0])

    def vectors(self, network=None):
        """``[w; b]`` of all neurons in the user's units, homogeneous ones of unit length."""
        network = self.network if network is None else network
        weights, biases = self.coordinates.to_original(network)
        rows = [np.column_stack([w.T, b]) for w, b in zip(weights, biases, strict=True)]
        if self.activation.homogeneous:
            for layer, reader in zip(rows[:-1], rows[1:], strict=True):
                lengths = np.linalg.norm(layer, axis=1)
                layer /= lengths[:, None]
                reader[:, :-1] *= lengths
        return rows

    def pseudo_inverse(self):
        """Changes of the user's weights per change of the standardized outputs.

        Brute force: automatic differentiation by the user's own weights. Homogeneous neurons keep
        the length of their vectors.
        """
        rows = self.vectors()
        X = self.coordinates.to_original_inputs(self.problem.train.X)
        sizes = [row.size for row in rows]

        def outputs(parameters):
            values = torch.from_numpy(X)
            for depth, (part, row) in enumerate(zip(parameters.split(sizes), rows, strict=True)):
                values = self.activation.tensor_function(values) if depth else values
                values = values @ part.reshape(row.shape)[:, :-1].T + part.reshape(row.shape)[:, -1]
            return (values / torch.from_numpy(self.coordinates.y_scale)).flatten()

        flat = torch.from_numpy(np.concatenate([row.ravel() for row in rows]))
        jacobian = torch.autograd.functional.jacobian(outputs, flat).numpy()
        free = np.eye(len(flat))
        if self.activation.homogeneous:
            neurons = [vector for layer in rows[:-1] for vector in layer]
            lengths = scipy.linalg.block_diag(*neurons)
            readout = np.zeros((len(lengths), rows[-1].size))
            free = scipy.linalg.null_space(np.hstack([lengths, readout]))
        tangent = jacobian @ free
        scale = np.linalg.norm(tangent, axis=0)
        return free @ (np.linalg.pinv(tangent / scale) / scale[:, None])

    def relative(self, changes):
        """Lengths of the changes of all ``[w; b]``, relative to these."""
        rows, start, found = self.vectors(), 0, []
        for row in rows:
            part = changes[start : start + row.size].reshape(row.shape)
            found.extend(np.linalg.norm(part, axis=1) / np.linalg.norm(row, axis=1))
            start += row.size
        return np.array(found)

    def changes(self, network):
        pairs = zip(self.vectors(network), self.vectors(), strict=True)
        return np.concatenate([(found - true).ravel() for found, true in pairs])


def uniform(n_rows=600, n_inputs=3, seed=0):
    return np.random.default_rng(seed).uniform(-2, 2, size=(n_rows, n_inputs))


def bent_teacher(activation, sizes=(3,), n_outputs=1, n_inputs=3, seed=0):
    """A teacher of which every ReLU neuron has a kink that the outputs show."""
    for draw in range(100):
        teacher = make_teacher(
            n_inputs, sizes, n_outputs, activation, family="rough", random_state=100 * seed + draw
        )
        planted = Planted(teacher, uniform(n_inputs=n_inputs))
        if planted.certify().passed:
            return teacher
    raise AssertionError("no teacher found")


def in_units(teacher, factors, offsets=0.0):
    """The same function of columns in other units."""
    teacher.weights_[0] = teacher.weights_[0] / np.asarray(factors)[:, None]
    teacher.biases_[0] = (
        teacher.biases_[0] - np.broadcast_to(offsets, len(factors)) @ (teacher.weights_[0])
    )
    return teacher


UNITS = {
    "plain": ([1.0, 1.0, 1.0], 0.0),
    "badly scaled": ([1e-3, 1.0, 1e3], 0.0),
    "large": ([1e3, 1e3, 1e3], 0.0),
    "small": ([1e-3, 1e-3, 1e-3], 0.0),
    "far from zero": ([1.0, 1.0, 1.0], [100.0, -50.0, 0.0]),
    "nearly constant": ([1.0, 1.0, 1e-3], [0.0, 0.0, 1.5]),
}
NETWORKS = [("tanh", (3,)), ("tanh", (3, 2)), ("relu", (3,)), ("relu", (3, 2)), ("softplus", (4,))]


# The stated error of the weights


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(("activation", "sizes"), NETWORKS)
def test_weight_error_is_that_of_least_squares_in_the_units_of_the_user(activation, sizes, units):
    factors, offsets = UNITS[units]
    teacher = in_units(bent_teacher(activation, sizes), factors, offsets)
    planted = Planted(teacher, uniform() * factors + offsets)
    certificate = planted.certify()
    assert certificate.passed
    error = max(certificate.error, planted.coordinates.y_rounding)
    spread = np.linalg.norm(planted.pseudo_inverse(), axis=1)
    expected = error * np.sqrt(certificate.n_equations) * planted.relative(spread).max()
    assert_allclose(certificate.weight_error, expected, rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_readouts_are_measured_in_the_units_of_y(offset):
    """ReLU neurons of large inputs: the mean of y is far away from the bias."""
    X = np.random.default_rng(0).uniform(0, 2000, size=(600, 3))
    teacher = in_units(bent_teacher("relu"), [500.0] * 3, 1000.0)
    teacher.biases_[-1] = teacher.biases_[-1] + offset
    planted = Planted(teacher, X)
    certificate = planted.certify()
    error = max(certificate.error, planted.coordinates.y_rounding)
    spread = np.linalg.norm(planted.pseudo_inverse(), axis=1)
    expected = error * np.sqrt(certificate.n_equations) * planted.relative(spread).max()
    assert_allclose(certificate.weight_error, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "units", ["plain", "badly scaled", pytest.param("nearly constant", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("activation", "sizes"),
    [("tanh", (3,)), ("relu", (3,)), pytest.param("tanh", (3, 2), marks=pytest.mark.slow)],
)
def test_weight_error_bounds_what_noise_does(activation, sizes, units):
    """Brute force: least squares for many draws of an error that is spread over all rows.

    One that lies along the worst direction does as much as is stated, up to the number of
    directions.
    """
    factors, offsets = UNITS[units]
    teacher = in_units(bent_teacher(activation, sizes), factors, offsets)
    verdict = Verdict(rounding_factor=1e12)
    planted = Planted(teacher, uniform() * factors + offsets, verdict=verdict)
    samples, level = planted.problem.train, 1e-8
    inverse = planted.pseudo_inverse()
    worst = inverse[np.argmax(np.linalg.norm(inverse, axis=1))]
    draws = list(np.random.default_rng(0).normal(size=(20, len(samples.X))))
    found = []
    for draw in [*draws, worst]:
        noise = level * draw / np.sqrt(np.mean(draw**2))
        noisy = Samples.of(samples.X, samples.y + noise[:, None], samples.sample_weight)
        network, _ = planted.polisher_on(noisy).polish(planted.network, 50)
        found.append(planted.relative(planted.changes(network)))
    planted.polisher = planted.polisher_on(noisy)
    stated = planted.certify(planted.network)
    assert_allclose(stated.error, level, rtol=1e-4)
    *errors, largest = found
    assert np.max(errors) < stated.weight_error
    typical = np.sqrt(np.mean(np.square(errors), axis=0)).max()
    assert_allclose(typical * np.sqrt(len(samples.X)), stated.weight_error, rtol=0.4)
    assert stated.weight_error / np.sqrt(stated.n_parameters) < 1.01 * largest.max()
    assert largest.max() < 1.01 * stated.weight_error


@BOTH
@pytest.mark.parametrize(("activation", "sizes"), NETWORKS)
def test_networks_that_are_off_by_rounding_are_within_the_stated_error(activation, sizes, verdict):
    """Moved along each direction until the error is ten times the rounding of the targets."""
    planted = Planted(bent_teacher(activation, sizes), uniform(), verdict=verdict)
    inverse = planted.pseudo_inverse()
    left, values, right = np.linalg.svd(inverse, full_matrices=False)
    rounding = 10.0 * planted.coordinates.y_rounding
    n_free = np.count_nonzero(values > 1e-12 * values[0])
    for direction, value in zip(left.T[:n_free], values[:n_free], strict=True):
        step = direction * value * rounding * np.sqrt(inverse.shape[1])
        rows, parts = planted.vectors(), []
        for row in rows:
            parts.append(row + step[: row.size].reshape(row.shape))
            step = step[row.size :]
        moved = planted.coordinates.to_standardized(
            [part[:, :-1].T for part in parts], [part[:, -1] for part in parts]
        )
        certificate = planted.certify(moved)
        assert certificate.passed
        assert_allclose(certificate.error, rounding, rtol=0.3)
        assert planted.relative(planted.changes(moved)).max() < 1.3 * certificate.weight_error
    assert len(right) == len(values)


# Columns whose weights no row tells


def with_columns(kind, X, size=1e-9):
    """Inputs with a column more, and the columns that are open for it."""
    rng = np.random.default_rng(1)
    n, d = X.shape
    if kind == "constant":
        return np.c_[X, np.full(n, 1.5)], [d]
    if kind == "constants":
        return np.c_[X[:, :1], np.zeros(n), X[:, 1:], np.full(n, -1.5)], [1, d + 1]
    if kind == "duplicate":
        return np.c_[X, X[:, 0]], [0, d]
    if kind == "scaled copy":
        return np.c_[X, 3.0 - 4.0 * X[:, 1]], [1, d]
    if kind == "one-hot":
        return np.c_[X, np.eye(3)[rng.integers(3, size=n)]], [d, d + 1, d + 2]
    if kind == "sum":
        return np.c_[X, X @ [0.5, 1.0, 2.0]], list(range(d + 1))
    return np.c_[X, 1.5 + size * rng.uniform(-1, 1, n)], [d]


KINDS = ["constant", "constants", "duplicate", "scaled copy", "one-hot", "sum"]


@BOTH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("activation", "sizes"), [("tanh", (3,)), ("relu", (3,)), ("tanh", (3, 2))]
)
def test_open_columns_are_named_and_the_function_is_certified(activation, sizes, kind, verdict):
    X, expected = with_columns(kind, uniform())
    teacher = make_teacher(X.shape[1], sizes, 1, activation, family="rough", random_state=0)
    if activation == "relu":  # kinks within the data
        teacher.biases_[0] = -np.median(X @ teacher.weights_[0], axis=0)
    planted = Planted(teacher, X, verdict=verdict)
    certificate = planted.certify()
    assert certificate.obstacle == "columns"
    assert certificate.function_certified
    assert certificate.is_conclusive
    assert not certificate.passed
    assert certificate.open_columns == tuple(f"x{column}" for column in expected)
    assert np.isinf(certificate.weight_error)
    assert certificate.isolation >= VERDICT.min_isolation
    assert certificate.reason


def test_constant_targets_columns_and_all():
    """Without any column that varies, nothing is certified."""
    teacher = make_teacher(2, 1, 1, "tanh", random_state=0)
    certificate = Planted(teacher, np.full((50, 2), 0.5)).certify()
    assert not certificate.function_certified
    assert not certificate.passed


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("size", [1e-13, 1e-11, 1e-9, 1e-6, 1e-3])
def test_columns_that_hardly_vary_have_weights_of_little_precision(activation, size):
    """The weight on a column of size s is known up to the rounding of y divided by s."""
    X, expected = with_columns("nearly constant", uniform(), size)
    teacher = make_teacher(4, 3, 1, activation, family="rough", random_state=0)
    teacher.biases_[0] = -np.median(X @ teacher.weights_[0], axis=0)
    planted = Planted(teacher, X)
    certificate = planted.certify()
    assert certificate.function_certified
    if size > 1e-10:
        assert certificate.passed
        assert certificate.open_columns == ()
        assert 1e-16 / size < certificate.weight_error < min(1e-13 / size, VERDICT.max_weight_error)
    elif size < 1e-12:
        assert certificate.obstacle == "columns"
        assert certificate.open_columns == tuple(f"x{column}" for column in expected)
        assert VERDICT.max_weight_error < certificate.weight_error < np.inf
    assert certificate.passed == (certificate.weight_error <= VERDICT.max_weight_error)


def test_a_column_that_hardly_varies_hides_no_spare_neurons():
    """In the user's units it would make the spare neurons, and what reads them, huge."""
    rng = np.random.default_rng(1)
    X = np.column_stack([uniform(), 1.5 + 4e-12 * rng.uniform(-1, 1, 600)])
    planted = Planted(bent_teacher("relu", (3, 2), n_inputs=4), X)
    hidden, middle, readout = planted.network.layers
    spare = np.append(rng.normal(size=4), 0.3)
    hidden = np.vstack([hidden, spare, spare, -spare, -spare])
    outgoing = np.array([1.0, -1.0, 0.5, -0.5]) * rng.normal(size=(2, 1))
    middle = np.hstack([middle[:, :3], outgoing, middle[:, 3:]])
    certificate = planted.certify(Network((hidden, middle, readout)))
    assert certificate.error < certificate.rounding
    assert not certificate.function_certified
    assert certificate.obstacle in ("weights", "isolation")


def test_units_of_columns_decide_nothing():
    verdicts = []
    for factor in (1e-6, 1.0, 1e6):
        factors = np.array([factor, 1.0, 1.0])
        teacher = in_units(bent_teacher("tanh"), factors)
        verdicts.append(Planted(teacher, uniform() * factors).certify().passed)
    assert verdicts == [True] * 3


# Rounded targets


def in_single_precision(teacher):
    for parts in (teacher.weights_, teacher.biases_):
        parts[:] = [part.astype(np.float32).astype(np.float64) for part in parts]
    return teacher


def torch_outputs(teacher, X):
    values = torch.from_numpy(X.astype(np.float32))
    for layer, (weight, bias) in enumerate(zip(teacher.weights_, teacher.biases_, strict=True)):
        values = TORCH[teacher.activation](values) if layer else values
        weight, bias = (torch.tensor(part.T, dtype=torch.float32) for part in (weight, bias))
        values = torch.nn.functional.linear(values, weight, bias)
    return values.numpy()


ROUNDED = [*NETWORKS, ("tanh", (4,)), ("relu", (5,))]


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize(("activation", "sizes"), ROUNDED)
def test_networks_in_single_precision_pass(activation, sizes, n_outputs):
    teacher = in_single_precision(bent_teacher(activation, sizes, n_outputs))
    X = uniform(1500).astype(np.float32)
    planted = Planted(teacher, X, torch_outputs(teacher, X))
    certificate = planted.certify_polished()
    assert (certificate.obstacle, certificate.precision) == ("", "float32")
    assert certificate.passed
    assert 1e-9 < certificate.error < certificate.rounding < 1e-5
    network, _ = planted.polisher.polish(planted.network, 200)
    assert planted.relative(planted.changes(network)).max() < certificate.weight_error


@pytest.mark.parametrize("decimals", [3, 5])
@pytest.mark.parametrize(("activation", "sizes"), ROUNDED)
def test_networks_rounded_to_decimals_pass(activation, sizes, decimals):
    teacher = bent_teacher(activation, sizes)
    X = uniform(2500)
    planted = Planted(teacher, X, np.round(teacher.predict(X), decimals))
    certificate = planted.certify_polished()
    assert certificate.precision == f"{decimals} decimals"
    # Three decimals may leave weights of deep networks open to more than a percent.
    assert certificate.obstacle in (("",) if decimals == 5 else ("", "weights", "isolation"))
    step = 10.0**-decimals / planted.coordinates.y_scale[0]
    # Where all ReLU neurons are off, all targets are rounded alike.
    rtol = 0.25 if activation == "relu" else 0.05
    assert_allclose(certificate.rounding, 1.5 * step / 12**0.5, rtol=rtol)
    network, _ = planted.polisher.polish(planted.network, 200)
    assert planted.relative(planted.changes(network)).max() < certificate.weight_error


@pytest.mark.parametrize("precision", ["float32", "3 decimals"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_noise_of_three_times_the_rounding_is_no_rounding(activation, precision):
    teacher = in_single_precision(bent_teacher(activation))
    X = uniform(1500).astype(np.float32)
    noise = np.random.default_rng(3).normal(size=(1500, 1))
    if precision == "float32":
        y, exact = torch_outputs(teacher, X), teacher.predict(X.astype(np.float64))[:, None]
        y = (y + 3.0 * noise * np.std(y - exact)).astype(np.float32)
    else:
        y = teacher.predict(X.astype(np.float64))[:, None]
        y = np.round(y + 3e-3 / 12**0.5 * noise, 3)
    certificate = Planted(teacher, X, y).certify_polished()
    assert certificate.precision == precision
    assert certificate.obstacle == "error"
    assert "above rounding" in certificate.reason
    assert np.isnan(certificate.weight_error)
    assert not certificate.function_certified


def wave(X):
    """A smooth function of unit variance that no small network holds."""
    values = np.sin(2.5 * X[:, 0]) * np.cos(2.0 * X[:, 1])
    return values / values.std()


def with_a_wave_in_single_precision(teacher, X):
    """Targets that are rounded only once, and a misfit as large as the rounding of all sums."""
    exact = teacher.predict(X.astype(np.float64))
    size = np.std(torch_outputs(teacher, X)[:, 0] - exact)
    return Planted(teacher, X, (exact + 1.2 * size * wave(X)).astype(np.float32))


@pytest.mark.parametrize("n_rows", [800, 2500])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_smooth_misfit_of_the_size_of_single_precision_is_structure(activation, n_rows):
    teacher = in_single_precision(bent_teacher(activation))
    X = uniform(n_rows).astype(np.float32)
    certificate = with_a_wave_in_single_precision(teacher, X).certify()
    assert certificate.precision == "float32"
    assert certificate.error < certificate.rounding
    assert certificate.obstacle == "structure"
    assert "depends on the inputs" in certificate.reason
    assert not certificate.function_certified


@pytest.mark.parametrize("n_rows", [400, 800, 2500])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_smooth_misfit_of_the_size_of_decimals_is_an_error(activation, n_rows):
    """The rounding of decimals is known, so that little may come on top of it."""
    teacher, X = bent_teacher(activation), uniform(n_rows)
    y = teacher.predict(X) + 1.2e-3 / 12**0.5 * wave(X)
    certificate = Planted(teacher, X, np.round(y, 3)).certify()
    assert certificate.error < 1.1 * certificate.rounding
    assert certificate.obstacle == "error"
    assert not certificate.function_certified


def test_one_output_does_not_hide_what_another_one_lacks():
    """Spreads of 1 and 1000, both to two decimals, and a neuron of 10 in the second one."""
    teacher = make_teacher(3, 4, 2, "tanh", family="rough", random_state=0)
    readout, bias = teacher.weights_[1] * [1.0, 1000.0], teacher.biases_[1] * [1.0, 1000.0]
    readout[3] = [0.0, 10.0]
    teacher.weights_[1], teacher.biases_[1] = readout, bias
    X = uniform(1000)
    planted = Planted(teacher, X, np.round(teacher.predict(X), 2))
    assert planted.certify_polished().passed
    hidden, readout = planted.network.layers
    without = Network((hidden[:3], np.delete(readout, 3, axis=1)))
    assert planted.certify_polished(without).obstacle == "error"


def test_an_output_of_single_precision_does_not_hide_another_one():
    """The first output is far from zero, so that it is known much less precisely."""
    teacher = in_single_precision(bent_teacher("tanh", n_outputs=2))
    teacher.biases_[1] = teacher.biases_[1] + [1e4, 0.0]
    X = uniform(1500).astype(np.float32)
    y = torch_outputs(teacher, X)
    y[:, 1] += 1e-4 * np.cos(X[:, 0] * X[:, 1])
    planted = Planted(teacher, X, y)
    certificate = planted.certify()
    assert certificate.error < certificate.rounding
    assert certificate.obstacle == "error"
    assert "output 1" in certificate.reason


@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize("width", [4, 32])
def test_outputs_far_from_zero_pass_in_either_order_of_sums(width, bias_first):
    """Processors differ in whether a sum begins with the bias; then all of it rounds like this."""
    teacher = in_single_precision(make_teacher(4, width, 1, "tanh", random_state=0))
    teacher.biases_[1] = teacher.biases_[1] + 1e3
    X = uniform(3000, n_inputs=4).astype(np.float32)
    weights, biases = teacher.weights_, teacher.biases_
    activation = get_activation("tanh")
    y = evaluate(weights, biases, X, activation, np.float32, bias_first=bias_first)
    planted = Planted(teacher, X, y)
    certificate = planted.certify()
    assert certificate.precision == "float32"
    assert certificate.is_exact
    assert certificate.rounding < 4.0 * VERDICT.imitation_factor * certificate.error


def test_weights_of_rows_count():
    """Rows that are wrong have next to no weight."""
    teacher, X = bent_teacher("tanh"), uniform(1500)
    y = np.round(teacher.predict(X), 4)
    y[:20] += 0.01
    weight = np.r_[np.full(20, 1e-9), np.random.default_rng(0).uniform(0.5, 2.0, size=1480)]
    assert Planted(teacher, X, y, weight).certify_polished().passed
    assert Planted(teacher, X, y).certify_polished().obstacle == "error"


@pytest.mark.parametrize(
    ("activation", "sizes"), [("tanh", (3,)), ("relu", (3,)), ("tanh", (3, 2))]
)
def test_inputs_in_single_precision_may_hide_digits(activation, sizes):
    """Targets in double precision, of inputs that lost the digits behind single precision."""
    teacher, X = bent_teacher(activation, sizes), uniform(1500)
    y = teacher.predict(X)
    planted = Planted(teacher, X.astype(np.float32), y)
    certificate = planted.certify_polished()
    assert certificate.precision == "float64"
    assert 1e-9 < certificate.error < certificate.rounding < 1e-6
    assert certificate.passed
    with_all_digits = Planted(teacher, X.astype(np.float32), teacher.predict(X.astype(np.float32)))
    assert with_all_digits.certify().error < 1e-14
    noisy = y + 1e-6 * np.random.default_rng(0).normal(size=len(y))
    assert Planted(teacher, X.astype(np.float32), noisy).certify_polished().obstacle == "error"


def test_exact_networks_of_rounded_targets_need_no_imitation():
    """Integers in float64 that the network gives exactly: the limits are those of exact targets."""
    teacher = make_teacher(1, 1, 1, "relu", random_state=0)
    teacher.weights_[:] = [np.array([[1.0]]), np.array([[1.0]])]
    teacher.biases_[:] = [np.array([0.0]), np.array([0.0])]
    X = np.arange(-100.0, 100.0)[:, None]
    certificate = Planted(teacher, X).certify()
    assert certificate.passed
    assert certificate.precision == "0 decimals"
    assert certificate.rounding < 1e-12
    assert certificate.weight_error < 1e-12


# Kinks that nothing checks


def with_rows_between_kinks(n_rows, activation="relu", n_outputs=1, verdict=VERDICT):
    """Two nearly equal neurons and a third; so many of the rows lie between the kinks of the two.

    With four such rows of three columns, others than these kinks could fit them as well.
    """
    teacher = make_teacher(3, 3, 1, activation, family="rough", random_state=0)
    teacher.weights_[0][:, :2] = [[1.0, 1.0], [0.5, 0.5], [-0.5, -0.5]]
    teacher.biases_[0][:2] = [0.0, -0.05]
    teacher.weights_[1] = np.outer([1.0, 1.0, -0.7], [1.0, -2.0, 0.5][:n_outputs])
    teacher.biases_[1] = np.zeros(n_outputs)
    X = uniform(3000)
    z = X @ teacher.weights_[0][:, 0]
    X = X[(z < 0.0) | (z > 0.05)]
    between = np.random.default_rng(1).uniform(-1, 1, size=(n_rows, 3))
    between[:, 0] = np.linspace(0.01, 0.04, n_rows) - between[:, 1:] @ [0.5, -0.5]
    return Planted(teacher, np.vstack([X, between]), verdict=verdict)


@BOTH
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_kinks_that_no_other_row_checks_are_refused(activation, n_outputs, verdict):
    """Outputs that are multiples of each other do not check each other."""
    verdict = replace(verdict, equations=1e9)
    certificate = with_rows_between_kinks(4, activation, n_outputs, verdict).certify()
    assert certificate.obstacle == "redundancy"
    assert certificate.isolation > VERDICT.min_isolation  # kinks have no curvature
    assert abs(certificate.redundancy) < (1e-9 if verdict.max_factorized_parameters else 1e-4)
    assert not certificate.function_certified


@BOTH
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_kinks_that_other_rows_check_pass(activation, verdict):
    verdict = replace(verdict, equations=1e9)
    certificate = with_rows_between_kinks(40, activation, verdict=verdict).certify()
    assert certificate.passed
    assert certificate.redundancy > (0.1 if verdict.max_factorized_parameters else 0.02)


def test_large_networks_are_judged_on_a_share_of_the_rows(monkeypatch):
    """On all of them where the share leaves weights open."""
    teacher = make_teacher(3, (4,), activation="tanh", random_state=0)
    X = np.random.default_rng(0).normal(size=(1000, 3))
    planted, sizes = Planted(teacher, X, verdict=Verdict(max_dense_parameters=0)), []

    class Recorded(examination.Linearization):
        def __init__(self, task, *arguments):
            sizes.append(len(task.inputs))
            super().__init__(task, *arguments)

    monkeypatch.setattr(examination, "Linearization", Recorded)
    on_share = planted.certify()
    few = math.ceil(planted.verdict.equations * planted.network.n_parameters)
    assert sizes == [few]
    assert on_share.passed
    limit = 0.99 * on_share.weight_error
    planted.verdict = replace(planted.verdict, max_weight_error=limit)
    on_all = planted.certify()
    assert sizes == [few, few, len(planted.problem.train.X)]
    assert on_all.passed
    assert on_all.weight_error < limit


# Every obstacle


def without(network, neuron):
    hidden, readout = network.layers
    return Network((np.delete(hidden, neuron, axis=0), np.delete(readout, neuron, axis=1)))


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_one_neuron_in_the_place_of_two_nearly_equal_ones_is_structure(activation):
    """Its error is far below what counts as rounding, but no change of its weights explains it."""
    teacher, rng = make_teacher(3, 4, 1, activation, random_state=0), np.random.default_rng(0)
    hidden, biases = teacher.weights_[0], teacher.biases_[0]
    hidden[:, 1] = hidden[:, 0] + 2e-6 * rng.normal(size=3)
    biases[1] = biases[0] + 2e-6 * rng.normal()
    teacher.weights_[1][:2] = 1.0
    planted = Planted(teacher, uniform(600, 3))
    merged, _ = planted.polisher.polish(without(planted.network, 1), 300)
    certificate = planted.certify(planted.polisher.refine(merged))
    assert certificate.is_exact
    assert certificate.obstacle == "structure"
    assert not certificate.function_certified


def test_an_error_that_a_change_of_the_weights_explains_is_no_structure():
    planted = Planted(bent_teacher("tanh"), uniform())
    layers = [layer * (1.0 + 1e-13) for layer in planted.network.layers]
    certificate = planted.certify(Network(tuple(layers)))
    assert certificate.error > 1e-14
    assert certificate.passed


def refused(obstacle):
    teacher, X = bent_teacher("tanh"), uniform()
    if obstacle == "error":
        planted = Planted(teacher, X)
        return planted.certify(without(planted.network, 0))
    if obstacle == "structure":
        teacher, X = in_single_precision(teacher), uniform(1500).astype(np.float32)
        return with_a_wave_in_single_precision(teacher, X).certify()
    if obstacle == "equations":
        return Planted(teacher, X[:30]).certify()
    if obstacle == "bend":
        teacher = bent_teacher("relu")
        teacher.biases_[0] = teacher.biases_[0] + [0.0, 0.0, 100.0]
        return Planted(teacher, X).certify()
    if obstacle == "columns":
        X, _ = with_columns("constant", X)
        return Planted(make_teacher(4, 3, 1, "tanh", random_state=0), X).certify()
    if obstacle == "redundancy":
        return with_rows_between_kinks(4).certify()
    if obstacle == "isolation":  # neurons that are nearly polynomial on the rows
        teacher = make_teacher(2, 8, activation="silu", random_state=1)
        X = np.random.default_rng(1).uniform(-1.7, 1.7, size=(900, 2))
        return Planted(teacher, X, np.round(teacher.predict(X), 8)).certify()
    planted = Planted(teacher, X)
    hidden, readout = planted.network.layers
    twins = np.hstack([0.5 * readout[:, :1], 0.5 * readout[:, :1], readout[:, 1:]])
    return planted.certify(Network((np.vstack([hidden[:1], hidden]), twins)))


@pytest.mark.parametrize(
    "obstacle",
    [
        "error",
        "structure",
        "equations",
        "bend",
        "weights",
        "isolation",
        "redundancy",
        "columns",
    ],
)
def test_every_obstacle_is_named_with_its_measurement(obstacle):
    certificate = refused(obstacle)
    assert certificate.obstacle == obstacle
    assert certificate.reason
    assert not certificate.passed
    assert certificate.function_certified == (obstacle == "columns")
    measured = {"weights", "isolation", "redundancy", "columns"}
    assert np.isnan(certificate.weight_error) == (obstacle not in measured)
