"""The size of noise, its floor, and what it leaves open in the weights."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sklearn_ec._certify.uncertainty import noise_level, standard_errors
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import prepare
from sklearn_ec._core.forward import network_outputs, solve_readout
from sklearn_ec._core.records import Network, Samples, Students
from sklearn_ec._core.settings import Noise
from sklearn_ec._finish.noisy import (
    left_out_loss,
    one_standard_error_bound,
    reached_noise_floor,
    squared_errors,
)
from sklearn_ec.datasets import make_teacher

TANH = get_activation("tanh")


def random_network(n_outputs=1):
    """Two inputs, three neurons: 9 parameters and 4 per output."""
    rng = np.random.default_rng(0)
    return Network((rng.normal(size=(3, 3)), rng.normal(size=(n_outputs, 4))))


def noisy_samples(network, n_samples, noise, sample_weight=None):
    """Rows of a network whose noise is the smaller the larger their weights are."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n_samples, 2))
    weight = np.ones(n_samples) if sample_weight is None else sample_weight
    y = network_outputs(network, X, TANH)
    y = y + np.asarray(noise) * rng.normal(size=y.shape) / np.sqrt(weight)[:, None]
    return Samples.of(X, y, weight / weight.mean())


def make_students(losses, held_out_loss):
    """Students of 13 parameters with made-up losses."""
    network, losses = random_network(), np.asarray(losses)
    return Students(
        layers=tuple(np.stack([layer] * len(losses)) for layer in network.layers),
        losses=losses,
        trained=np.ones(len(losses), dtype=bool),
        n_iter=30,
        best=network,
        best_held_out_loss=held_out_loss,
        loss_curves=losses[:, None],
    )


@pytest.mark.parametrize(
    ("losses", "held_out_loss", "reached"),
    [
        ([1.0, 1.0, 1.0], 1.0, True),
        ([1.0, 1.24, 1.1], 1.0, True),
        ([1.0, 1.26, 1.1], 1.0, False),  # they stopped elsewhere
        ([1.0, 1.0, 1.0, 5.0, np.nan], 1.0, True),  # only the best count
        ([1.0, 1.0, 5.0], 1.0, False),
        ([1.0, 1.0, np.nan], 1.0, False),  # two are no proof
        ([1.0, 1.0], 1.0, False),
        ([1.0, 1.0, 1.0], 1.7, True),
        ([1.0, 1.0, 1.0], 1.8, False),  # these students fit the noise
        ([1e-9, 1.0, 1.0], 1e-9, False),
    ],
)
def test_noise_floor_is_where_students_agree(losses, held_out_loss, reached):
    samples = noisy_samples(random_network(), 200, noise=0.1)  # 1.5 / (1 - 13 / 200)**2 = 1.72
    assert reached_noise_floor(make_students(losses, held_out_loss), samples, Noise()) == reached


@pytest.mark.parametrize(("before", "reached"), [(1.9, True), (2.1, False)])
def test_students_that_still_get_better_are_above_the_noise_floor(before, reached):
    samples = noisy_samples(random_network(), 200, noise=0.1)
    students = make_students([1.0, 1.0, 1.1], 1.0)
    curves = np.array([[9.0, before, 1.0], [9.0, 1.2, 1.0], [1.2, 1.1, np.nan]])
    students = replace(students, loss_curves=curves)
    assert reached_noise_floor(students, samples, Noise()) == reached


def test_the_better_half_must_be_at_the_noise_floor():
    samples = noisy_samples(random_network(), 200, noise=0.1)
    assert reached_noise_floor(make_students([1.0] * 5 + [5.0] * 5, 1.0), samples, Noise())
    assert not reached_noise_floor(make_students([1.0] * 4 + [5.0] * 6, 1.0), samples, Noise())


def test_noise_floor_accounts_for_the_parameters():
    """With 26 rows for 13 parameters, errors are half the noise in training, else twice."""
    students = make_students([1.0, 1.0, 1.0], 4.0)
    assert reached_noise_floor(students, noisy_samples(random_network(), 26, 0.1), Noise())
    assert not reached_noise_floor(students, noisy_samples(random_network(), 2600, 0.1), Noise())
    few = noisy_samples(random_network(), 5, 0.1)  # fewer rows than parameters
    assert reached_noise_floor(make_students([1.0, 1.0, 1.0], 149.0), few, Noise())
    assert not reached_noise_floor(make_students([1.0, 1.0, 1.0], 151.0), few, Noise())


def test_squared_errors_are_weighted_means_over_outputs():
    network = random_network(2)
    samples = noisy_samples(network, 20, 0.1, np.arange(1.0, 21.0))
    outputs = np.tanh(samples.X @ network.layers[0][:, :2].T + network.layers[0][:, 2])
    outputs = outputs @ network.layers[1][:, :3].T + network.layers[1][:, 3]
    expected = [
        weight * ((row - y) ** 2).sum() / 2
        for weight, row, y in zip(samples.sample_weight, outputs, samples.y, strict=True)
    ]
    assert_allclose(squared_errors(network, samples, TANH), expected, rtol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_each_row_is_left_out_of_the_readout_that_predicts_it(weighted):
    network = random_network(n_outputs=2)
    weight = np.random.default_rng(3).uniform(0.5, 2.0, size=30) if weighted else None
    samples = noisy_samples(network, 30, 0.1, weight)
    losses = []
    for row in range(30):
        others = np.delete(np.arange(30), row)
        without = solve_readout(network.layers[:1], samples.take(others), TANH, False)
        error = squared_errors(without, samples.take([row]), TANH)  # of a row of weight one
        losses.append(samples.sample_weight[row] * error)
    assert_allclose(left_out_loss(network, samples, TANH), np.mean(losses))


def test_one_standard_error_bound_is_that_of_the_best():
    best = np.array([1.0, 3.0, 1.0, 3.0])  # mean 2, standard deviation 1
    worse = np.array([2.0, 2.0, 2.0, 3.0])
    for errors in ([best], [best, worse], [worse, best]):
        assert_allclose(one_standard_error_bound(errors), 2.5)


@pytest.mark.parametrize("weighted", [False, True])
def test_noise_level_is_that_of_each_output(weighted):
    network = random_network(2)
    weight = np.random.default_rng(2).uniform(0.2, 5.0, size=4000) if weighted else None
    samples = noisy_samples(network, 4000, [0.5, 1e-3], weight)
    # Noise of variance 1 / weight in units of a row of mean weight.
    scale = 1.0 if weight is None else weight.mean() ** -0.5
    assert_allclose(noise_level(network, samples, TANH) / scale, [0.5, 1e-3], rtol=0.05)


def test_noise_level_is_corrected_for_the_parameters():
    network = random_network(2)  # 17 parameters, 8.5 per output
    samples = noisy_samples(network, 20, [0.5, 1e-3])
    residuals = network_outputs(network, samples.X, TANH) - samples.y
    expected = np.sqrt((residuals**2).sum(axis=0) / (20 - 8.5))
    assert_allclose(noise_level(network, samples, TANH), expected)
    few = samples.take(np.arange(8))  # as if one row were left
    assert_allclose(noise_level(network, few, TANH), np.linalg.norm(residuals[:8], axis=0))


def numerical_jacobian(weights, biases, X, step=1e-6):
    """Derivatives of the outputs, (n_rows, n_outputs, n_parameters), by ``[W; b]`` per layer."""
    layers = [np.vstack(pair) for pair in zip(weights, biases, strict=True)]
    columns = []
    for layer in layers:
        for index in np.ndindex(layer.shape):
            start, ends = layer[index], []
            for moved in (start + step, start - step):
                layer[index] = moved
                h = X
                for number, above in enumerate(layers):
                    h = (np.tanh(h) if number else h) @ above[:-1] + above[-1]
                ends.append(h)
            layer[index] = start
            columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, axis=2)


@pytest.mark.parametrize("scale", [1.0, np.array([1e-3, 1.0, 1e3])])
@pytest.mark.parametrize("sizes", [(4,), (4, 3)])
def test_standard_errors_are_in_the_units_of_the_weights(sizes, scale):
    """Brute force: ``(JᵀWJ)⁻¹σ²`` for the user's columns, weights and targets."""
    teacher = make_teacher(3, sizes, 1, "tanh", family="deep", random_state=0)
    rng, noise = np.random.default_rng(0), 0.01
    X = 1.0 + rng.normal(size=(300, 3))
    weights = [teacher.weights_[0] / np.reshape(scale, (-1, 1)), *teacher.weights_[1:]]
    y = 50.0 * (teacher.predict(X)[:, None] + noise * rng.normal(size=(300, 1)))
    weights[-1] = 50.0 * weights[-1]
    problem = prepare(X * scale, y, rng.uniform(0.5, 2.0, size=300), rng)
    found = standard_errors(
        weights, teacher.biases_, np.array([50.0 * noise]), problem, "tanh", "cpu"
    )
    assert [part.shape for part in found] == [(w.shape[0] + 1, w.shape[1]) for w in weights]
    rows = problem.train.X * problem.coordinates.x_scale + problem.coordinates.x_mean
    rows = rows / scale
    unscaled = [weights[0] * np.reshape(scale, (-1, 1)), *weights[1:]]
    jacobian = numerical_jacobian(unscaled, teacher.biases_, rows)[:, 0]
    covariance = np.linalg.inv((jacobian.T * problem.train.sample_weight) @ jacobian)
    expected = 50.0 * noise * np.sqrt(covariance.diagonal())
    found[0][:-1] *= np.reshape(scale, (-1, 1))
    assert_allclose(np.concatenate([part.ravel() for part in found]), expected, rtol=1e-5)


@pytest.mark.parametrize("offset", [1e6, 1e8])
def test_standard_errors_of_weights_do_not_depend_on_the_offset_of_a_column(offset):
    """The offset is folded into the bias, whose error grows with it."""
    teacher = make_teacher(3, 4, activation="tanh", random_state=0)
    X = np.random.default_rng(0).normal(size=(300, 3))

    def errors(shift):
        problem = prepare(X + shift, teacher.predict(X)[:, None], np.ones(300), rng_of(0))
        biases = [teacher.biases_[0] - shift @ teacher.weights_[0], teacher.biases_[1]]
        return standard_errors(teacher.weights_, biases, np.array([0.1]), problem, "tanh", "cpu")[0]

    shift = np.array([0.0, offset, 0.0])
    assert_allclose(errors(shift)[:-1], errors(0.0 * shift)[:-1], rtol=1e-4)
    assert (errors(shift)[-1] > 1e-2 * offset * errors(shift)[1]).all()


def test_standard_errors_of_a_constant_column_are_zero_and_change_no_other():
    teacher = make_teacher(3, 4, activation="tanh", random_state=0)
    X = np.random.default_rng(0).normal(size=(300, 3))
    y = teacher.predict(X)[:, None]
    wider = [np.vstack([teacher.weights_[0], np.zeros(4)]), teacher.weights_[1]]
    found = [
        standard_errors(weights, teacher.biases_, np.array([0.1]), problem, "tanh", "cpu")[0]
        for weights, problem in (
            (teacher.weights_, prepare(X, y, np.ones(300), rng_of(0))),
            (wider, prepare(np.column_stack([X, 5 * np.ones(300)]), y, np.ones(300), rng_of(0))),
        )
    ]
    assert not found[1][3].any()
    assert_allclose(np.delete(found[1], 3, axis=0), found[0], rtol=1e-6)


def rng_of(seed):
    return np.random.default_rng(seed)
