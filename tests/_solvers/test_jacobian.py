"""Singular values, Newton steps and curvatures of single networks."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from builders import planted
from sklearn_ec._certify.uncertainty import layer_errors
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.canonical import canonical_network
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.students import layer_shapes
from sklearn_ec._solvers.jacobian import Linearization, least_neuron_singular_value

# Widths and seeds of ReLU networks in which every neuron has a kink that the outputs show.
KINKED = [((3,), 0), ((3, 2), 11), ((3, 4), 55), ((4, 3, 3), 107)]


@pytest.fixture
def rows():
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.5, 2.0, size=300)
    return Samples.of(rng.normal(size=(300, 3)), rng.normal(size=(300, 1)), weight / weight.mean())


@pytest.fixture
def polisher(rows):
    return Polisher(rows, rows, "tanh", "cpu", has_skip=False)


def random_network(widths=(3,), n_outputs=1, seed=0):
    rng = np.random.default_rng(seed)
    shapes = layer_shapes(3, widths, n_outputs, has_skip=False)
    return Network(tuple(rng.normal(size=shape) for shape in shapes))


def flat(layers):
    return np.concatenate([np.ravel(layer) for layer in layers])


def unflatten(parameters, network):
    parts = np.split(parameters, np.cumsum([layer.size for layer in network.layers])[:-1])
    return tuple(p.reshape(layer.shape) for p, layer in zip(parts, network.layers, strict=True))


def residuals_of(task, layers):
    return task.residuals(tuple(torch.from_numpy(layer)[None] for layer in layers)).numpy().ravel()


def numerical_jacobian(task, network, step=1e-6):
    start = flat(network.layers)
    columns = []
    for offset in step * np.eye(len(start)):
        ends = [
            residuals_of(task, unflatten(start + sign * offset, network)) for sign in (1.0, -1.0)
        ]
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, axis=1)


def polisher_of(rows, activation, n_outputs):
    rows = Samples.of(rows.X, np.tile(rows.y, n_outputs), rows.sample_weight)
    return Polisher(rows, rows, activation, "cpu", has_skip=False)


def use_chunks(monkeypatch, task, n_chunks):
    """Let the Jacobian be factorized in so many chunks of rows."""
    step = len(task.inputs) // n_chunks
    monkeypatch.setattr(
        type(task),
        "chunks",
        lambda self, *sizes: [slice(i, i + step) for i in range(0, len(self.inputs), step)],
    )


def incoming_lengths(network):
    """The unit of every parameter."""
    *hidden, readout = network.layers
    lengths = [np.repeat(np.linalg.norm(a, axis=1), a.shape[1]) for a in hidden]
    return np.concatenate([*lengths, np.ones(readout.size)])


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 2)])
@pytest.mark.parametrize("n_chunks", [1, 5])
def test_singular_values(rows, monkeypatch, n_chunks, widths, n_outputs):
    polisher = polisher_of(rows, "tanh", n_outputs)
    use_chunks(monkeypatch, polisher.task, n_chunks)
    network = random_network(widths, n_outputs)
    jacobian = numerical_jacobian(polisher.task, network)
    scaled = jacobian * incoming_lengths(network) / np.sqrt(len(jacobian))
    values = np.linalg.svd(scaled, compute_uv=False)
    computed = Linearization(polisher.task, network)
    assert_allclose(computed.singular_values.numpy(), values, rtol=1e-5)
    changes = np.linalg.norm(jacobian @ computed.directions.numpy().T, axis=0)
    assert_allclose(changes / np.sqrt(len(jacobian)), values, rtol=1e-5)


@pytest.mark.parametrize(("widths", "seed"), KINKED)
def test_scale_of_homogeneous_neurons_is_pinned(rows, widths, seed):
    polisher = Polisher(rows, rows, "relu", "cpu", has_skip=False)
    network = random_network(widths, seed=seed)
    unpinned = numerical_jacobian(polisher.task, network) * incoming_lengths(network)
    values = np.linalg.svd(unpinned / np.sqrt(len(unpinned)), compute_uv=False)
    assert np.sum(values < 1e-8) == sum(widths)
    assert Linearization(polisher.task, network).singular_values[-1] > 1e-3
    for layer in range(len(widths)):
        doubled = with_double(network, layer)
        assert Linearization(polisher.task, doubled).singular_values[-1] < 1e-12


SMOOTH = sorted(name for name, a in ACTIVATIONS.items() if not a.homogeneous)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 2)])
@pytest.mark.parametrize("name", [*SMOOTH, "relu", "leaky_relu"])
def test_least_singular_value_of_single_neurons(rows, name, widths, n_outputs):
    """It is that of the columns of one neuron's incoming vector, and bounds that of all."""
    polisher = polisher_of(rows, name, n_outputs)
    network = random_network(widths, n_outputs)
    jacobian = numerical_jacobian(polisher.task, network)
    jacobian = jacobian * incoming_lengths(network) / np.sqrt(len(jacobian))
    least, start = [], 0
    for layer in network.layers:
        for _ in layer:
            columns = jacobian[:, start : start + layer.shape[1]]
            least.append(np.linalg.svd(columns, compute_uv=False)[-1])
            start += layer.shape[1]
    found = least_neuron_singular_value(polisher.task, network)
    assert_allclose(found, min(least), rtol=1e-4, atol=1e-9)
    if not polisher.activation.homogeneous:
        smallest = Linearization(polisher.task, network).singular_values[-1].item()
        assert smallest <= found * (1.0 + 1e-9)


def test_a_readout_alone_is_judged_by_its_own_singular_value(rows):
    """A neuron that is switched off leaves the readout's columns alone."""
    polisher = polisher_of(rows, "relu", 1)
    hidden = np.array([[0.0, 0.0, 0.0, 2.0]])
    on, off = Network((hidden, np.ones((1, 2)))), Network((-hidden, np.ones((1, 2))))
    assert least_neuron_singular_value(polisher.task, off) == 0.0
    assert least_neuron_singular_value(polisher.task, on) < 1e-12  # h is constant, like the bias


def test_inputs_that_vary_where_a_neuron_is_off_leave_it_open(rows):
    """The second neuron never sees the last input vary."""
    X = rows.X.copy()
    X[X[:, 0] < 0.0, 2] = 0.0
    hidden = np.array([[0.3, 1.0, 0.2, 0.1], [-1.0, 0.1, 0.0, -0.3]])
    network = Network((hidden, np.array([[1.0, -0.5, 0.2]])))
    polisher = polisher_of(Samples.of(X, rows.y, rows.sample_weight), "relu", 1)
    z = X @ hidden[1, :-1] + hidden[1, -1]
    assert (X[z > 0, 2] == 0).all()
    assert np.mean(z > 0) > 0.2
    assert least_neuron_singular_value(polisher.task, network) < 1e-15
    assert Linearization(polisher.task, network).singular_values[-1] < 1e-15
    elsewhere = polisher_of(rows, "relu", 1)
    assert least_neuron_singular_value(elsewhere.task, network) > 1e-3


def with_double(network, layer):
    """The first neuron of a layer twice, with outgoing weights of 0.5."""
    layers = list(network.layers)
    layers[layer] = np.vstack([layers[layer], layers[layer][:1]])
    layers[layer + 1] = np.insert(layers[layer + 1], network.widths[layer], 0.5, axis=1)
    return Network(tuple(layers))


@pytest.mark.parametrize("name", ["tanh", "relu"])
@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 2)])
def test_newton_step_solves_the_linearized_problem(rows, name, widths):
    polisher = Polisher(rows, rows, name, "cpu", has_skip=False)
    network = random_network(widths)
    jacobian = numerical_jacobian(polisher.task, network)
    residuals = residuals_of(polisher.task, network.layers)
    steps = Linearization(polisher.task, network).newton_step()
    assert [tuple(step.shape) for step in steps] == [(1, *a.shape) for a in network.layers]
    step, scale = flat(steps), incoming_lengths(network)
    # Minimum norm in units of the parameters' scales.
    expected = -scale * np.linalg.lstsq(jacobian * scale, residuals, rcond=1e-7)[0]
    assert_allclose(step, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 2)])
def test_curvatures_match_finite_differences(polisher, widths):
    network = random_network(widths)
    linearization = Linearization(polisher.task, network)
    size, squares = 1e-4, []
    for direction in linearization.directions[-4:].numpy():
        values = [
            residuals_of(
                polisher.task, unflatten(flat(network.layers) + sign * size * direction, network)
            )
            for sign in (1.0, 0.0, -1.0)
        ]
        bend = (values[0] - 2.0 * values[1] + values[2]) / size**2
        squares.append(np.mean(bend**2))
    assert_allclose(linearization.curvatures(4).numpy(), np.sqrt(squares), rtol=1e-4)
    everything = linearization.curvatures(1000)
    assert len(everything) == network.n_parameters


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize(("name", "widths", "seed"), [("tanh", (3, 2), 0), ("relu", (3, 2), 11)])
@pytest.mark.parametrize("n_chunks", [1, 5])
def test_least_redundancy_is_that_of_the_blocks_of_the_hat_matrix(
    rows, monkeypatch, n_chunks, name, widths, seed, n_outputs
):
    polisher = polisher_of(rows, name, n_outputs)
    use_chunks(monkeypatch, polisher.task, n_chunks)
    network = random_network(widths, n_outputs, seed)
    left, values, _ = np.linalg.svd(numerical_jacobian(polisher.task, network), full_matrices=False)
    left = left[:, values > 1e-6 * values[0]]
    outputs_of_rows = left.reshape(-1, n_outputs, left.shape[1])  # those of one row together
    expected = 1.0 - max(np.linalg.norm(block, ord=2) ** 2 for block in outputs_of_rows)
    computed = Linearization(polisher.task, network).least_redundancy()
    assert 0.05 < computed < 0.95
    assert_allclose(computed, expected, rtol=1e-5)


def dense_standard_errors(jacobian, noise_level, constraints=None):
    """Of the least-squares solution, where ``constraints @ parameters`` stays as it is.

    The Jacobian has one row per output for the first row of X, then those for the second, ...
    """
    basis = np.eye(jacobian.shape[1])
    if constraints is not None:
        _, _, rotation = np.linalg.svd(constraints)
        basis = rotation[len(constraints) :].T
    noise = np.tile(noise_level, len(jacobian) // len(noise_level))
    solution = basis @ np.linalg.inv(basis.T @ jacobian.T @ jacobian @ basis) @ basis.T
    return np.linalg.norm(solution @ jacobian.T * noise, axis=1)


def length_constraints(network):
    """One row per hidden neuron: by how much its incoming vector grows with the parameters."""
    starts = np.cumsum([0, *(layer.size for layer in network.layers)])
    rows = []
    for start, layer in zip(starts, network.layers[:-1], strict=False):
        for index, neuron in enumerate(layer):
            row = np.zeros(network.n_parameters)
            row[start + index * len(neuron) :][: len(neuron)] = neuron
            rows.append(row)
    return np.stack(rows)


@pytest.mark.parametrize("noise_level", [[0.5], [0.5, 0.01]])
@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 2)])
@pytest.mark.parametrize("n_chunks", [1, 5])
def test_standard_errors_match_dense_least_squares(
    rows, monkeypatch, n_chunks, widths, noise_level
):
    polisher = polisher_of(rows, "tanh", len(noise_level))
    use_chunks(monkeypatch, polisher.task, n_chunks)
    network = random_network(widths, len(noise_level))
    computed = layer_errors(polisher.task, network, np.array(noise_level))
    assert [part.shape for part in computed] == [layer.shape for layer in network.layers]
    jacobian = numerical_jacobian(polisher.task, network)
    expected = dense_standard_errors(jacobian, np.array(noise_level))
    assert_allclose(flat(computed), expected, rtol=1e-4)
    if len(noise_level) == 1:
        variances = noise_level[0] ** 2 * np.linalg.inv(jacobian.T @ jacobian).diagonal()
        assert_allclose(flat(computed), np.sqrt(variances), rtol=1e-4)


@pytest.mark.parametrize("noise_level", [[0.5], [0.5, 0.01]])
@pytest.mark.parametrize(("widths", "seed"), KINKED)
def test_standard_errors_of_homogeneous_neurons_are_those_at_fixed_lengths(
    rows, widths, seed, noise_level
):
    polisher = polisher_of(rows, "relu", len(noise_level))
    network = random_network(widths, len(noise_level), seed)
    jacobian = numerical_jacobian(polisher.task, network)
    expected = dense_standard_errors(jacobian, np.array(noise_level), length_constraints(network))
    computed = layer_errors(polisher.task, network, np.array(noise_level))
    assert_allclose(flat(computed), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_standard_errors_are_finite_where_the_data_leave_weights_open(rows, name):
    """A neuron that is there twice, and a column of zeros: what is determined has its error."""
    polisher, noise = polisher_of(rows, name, 1), np.array([0.1])
    network = random_network(seed=0)
    doubled = layer_errors(polisher.task, with_double(network, 0), noise)
    assert np.isfinite(flat(doubled)).all()
    X = np.insert(rows.X, 1, 0.0, axis=1)
    idle = Network((np.insert(network.layers[0], 1, 0.0, axis=1), network.layers[1]))
    wider = polisher_of(Samples.of(X, rows.y, rows.sample_weight), name, 1)
    expected = layer_errors(polisher.task, network, noise)
    expected[0] = np.insert(expected[0], 1, 0.0, axis=1)
    for part, same in zip(layer_errors(wider.task, idle, noise), expected, strict=True):
        assert_allclose(part, same, rtol=1e-8, atol=1e-12)


def test_standard_errors_are_zero_without_noise(polisher):
    assert not flat(layer_errors(polisher.task, random_network(), np.zeros(1))).any()


# Errors relative to the lengths of the incoming vectors


def other_coordinates(n_inputs, n_outputs):
    """A matrix for ``[w; b]`` of the first layer, and units and offsets of the outputs."""
    rng = np.random.default_rng(7)
    return (
        torch.from_numpy(rng.normal(size=(n_inputs + 2, n_inputs + 1))),
        torch.from_numpy(rng.uniform(0.1, 10.0, size=n_outputs)),
        torch.from_numpy(rng.normal(size=n_outputs)),
    )


def in_coordinates(layers, incoming_map, output_scale, output_shift):
    first, *middle, last = (np.array(layer) for layer in layers)
    first, last = first @ incoming_map.numpy().T, last * output_scale.numpy()[:, None]
    last[:, -1] += output_shift.numpy()
    return [first, *middle, last]


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("widths", [(3,), (3, 2)])
def test_relative_errors_are_those_of_moved_networks(rows, widths, n_outputs):
    """Brute force: solve for each error with the numerical Jacobian, and move the weights by it."""
    polisher, network = polisher_of(rows, "tanh", n_outputs), random_network(widths, n_outputs)
    errors = torch.from_numpy(np.random.default_rng(3).uniform(0.1, 1.0, network.n_parameters))
    coordinates = other_coordinates(3, n_outputs)
    linearization = Linearization(polisher.task, network)
    jacobian = numerical_jacobian(polisher.task, network)
    lengths = incoming_lengths(network)
    left, values, right = np.linalg.svd(jacobian * lengths, full_matrices=False)
    assert_allclose(values / np.sqrt(len(left)), linearization.singular_values, rtol=1e-5)
    before = in_coordinates(network.layers, *coordinates)
    squares = [np.zeros_like(layer) for layer in before]
    for index, error in enumerate(errors.numpy() * np.sqrt(len(left))):
        step = lengths * np.linalg.lstsq(jacobian * lengths, error * left[:, index], rcond=None)[0]
        moved = unflatten(flat(network.layers) + step, network)
        for square, layer, old in zip(
            squares, in_coordinates(moved, *coordinates), before, strict=True
        ):
            square += (layer - old) ** 2
    assert right.shape == (len(values), len(values))
    found = linearization.relative_errors(errors, *coordinates)
    for part, square, layer in zip(found, squares, before, strict=True):
        relative = np.sqrt(square) / np.linalg.norm(layer, axis=1, keepdims=True)
        assert_allclose(part.numpy(), relative, rtol=1e-3)


@pytest.mark.parametrize(("widths", "seed"), KINKED[:2])
def test_relative_errors_of_homogeneous_neurons_keep_their_lengths(rows, widths, seed):
    """Brute force: move the weights, rescale the neurons to the unit lengths that they had."""
    polisher = polisher_of(rows, "relu", 1)
    network = canonical_network(random_network(widths, 1, seed), ACTIVATIONS["relu"])
    linearization = Linearization(polisher.task, network)
    errors, step = torch.full((network.n_parameters,), 0.3, dtype=torch.float64), 1e-7
    squares = [np.zeros_like(layer) for layer in network.layers]
    for direction, value in zip(
        linearization.directions, linearization.singular_values, strict=True
    ):
        change = (0.3 / value * direction).numpy()
        moved = [layer.copy() for layer in unflatten(flat(network.layers) + step * change, network)]
        for depth, layer in enumerate(network.layers[:-1]):
            growth = np.linalg.norm(moved[depth], axis=1) / np.linalg.norm(layer, axis=1)
            moved[depth] /= growth[:, None]
            moved[depth + 1][:, :-1] *= growth
        for square, layer, old in zip(squares, moved, network.layers, strict=True):
            square += ((layer - old) / step) ** 2
    for part, square, layer in zip(
        linearization.relative_errors(errors), squares, network.layers, strict=True
    ):
        relative = np.sqrt(square) / np.linalg.norm(layer, axis=1, keepdims=True)
        assert_allclose(part.numpy(), relative, rtol=1e-4, atol=1e-8)


def test_without_fixed_lengths_an_open_column_opens_no_other(rows):
    """A column that hardly varies, and a ReLU neuron whose length its weight decides."""
    incoming_map = torch.diag(torch.tensor([1.0, 1.0, 1e9, 1.0], dtype=torch.float64))
    network = random_network((3,), 1, KINKED[0][1])
    network.layers[0][:, 2] = 1e-9
    linearization = Linearization(polisher_of(rows, "relu", 1).task, network)
    errors = torch.full((network.n_parameters,), 1e-9, dtype=torch.float64)
    free = linearization.relative_errors(errors, incoming_map, fixed_lengths=False)[0]
    assert (free[:, 2] > 0.1).all()
    assert (free[:, [0, 1, 3]] < 1e-6).all()
    fixed = linearization.relative_errors(errors, incoming_map)[0]
    assert (fixed[:, :2] > 1e-3).any()


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("n_chunks", [1, 5])
def test_other_residuals_along_the_singular_directions(rows, monkeypatch, activation, n_chunks):
    polisher, network = polisher_of(rows, activation, 2), random_network((3,), 2)
    use_chunks(monkeypatch, polisher.task, n_chunks)
    given = torch.from_numpy(np.random.default_rng(5).normal(size=(3, 300, 2)))
    several = Linearization(polisher.task, network, given)
    assert several.coefficients.shape == (network.n_parameters, 3)
    for index, residuals in enumerate(given):
        alone = Linearization(polisher.task, network, residuals[None])
        assert_allclose(alone.singular_values, several.singular_values, rtol=1e-10)
        found = several.coefficients[:, index].abs()
        assert_allclose(found, alone.coefficients[:, 0].abs(), rtol=1e-6, atol=1e-12)
        jacobian = polisher.task.jacobian(several.layers, slice(None))
        weighted = residuals.mT.reshape(-1)
        own = several.singular_values * several.coefficients[:, index]
        if activation == "tanh":  # no free scales
            along = several.directions @ (jacobian.mT @ weighted) / polisher.task.n_equations
            assert_allclose(along, own, rtol=1e-6, atol=1e-12)


def at_unit_lengths(layers):
    """Hidden neurons of unit length, from the first layer up; the next layer takes it over."""
    layers = [np.array(layer) for layer in layers]
    for depth, layer in enumerate(layers[:-1]):
        lengths = np.linalg.norm(layer, axis=1)
        layers[depth] = layer / lengths[:, None]
        layers[depth + 1][:, :-1] *= lengths
    return layers


@pytest.mark.parametrize(("widths", "seed"), KINKED[:2])
def test_relative_errors_in_other_coordinates_are_at_unit_lengths_there(rows, widths, seed):
    """Brute force: move the weights, go to the other coordinates and to unit lengths there."""
    polisher = polisher_of(rows, "relu", 1)
    network = canonical_network(random_network(widths, 1, seed), ACTIVATIONS["relu"])
    incoming_map, output_scale, output_shift = other_coordinates(3, 1)
    linearization = Linearization(polisher.task, network)
    errors, step = torch.full((network.n_parameters,), 0.3, dtype=torch.float64), 1e-7

    def elsewhere(layers):
        moved = in_coordinates(layers, incoming_map, output_scale, output_shift)
        return at_unit_lengths(moved)

    before = elsewhere(network.layers)
    squares = [np.zeros_like(layer) for layer in before]
    for direction, value in zip(
        linearization.directions, linearization.singular_values, strict=True
    ):
        change = (0.3 / value * direction).numpy()
        moved = elsewhere(unflatten(flat(network.layers) + step * change, network))
        for square, layer, old in zip(squares, moved, before, strict=True):
            square += ((layer - old) / step) ** 2
    found = linearization.relative_errors(errors, incoming_map, output_scale, output_shift)
    for part, square, layer in zip(found, squares, before, strict=True):
        relative = np.sqrt(square) / np.linalg.norm(layer, axis=1, keepdims=True)
        assert_allclose(part.numpy(), relative, rtol=1e-4, atol=1e-8)


def test_leverages_of_further_rows():
    """Those of the rows that were used are the diagonal of the hat matrix."""
    network, polisher, _ = planted("tanh")
    task = polisher.task
    linearization = Linearization(task, network)
    used = linearization.leverages(task) / task.n_equations
    assert_allclose(used.sum(), network.n_parameters, rtol=1e-9)
    assert (used <= 1.0 + 1e-9).all()
