"""Networks forward, and layers by least squares."""

import numpy as np
import pytest

from builders import evaluate, random_network, samples_of
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.forward import (
    BLOCK_ROWS,
    network_outputs,
    read_features,
    reduced_problem,
    solve_layer,
    solve_readout,
)
from sklearn_ec._core.records import Samples


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(4,), (4, 3), (4, 3, 2)])
def test_features_and_outputs_follow_the_layers(widths, has_skip):
    rng = np.random.default_rng(15)
    activation = ACTIVATIONS["gelu"]
    network = random_network(rng, widths, 2, 2, has_skip)
    assert network.has_skip == has_skip
    X = rng.normal(size=(20, 2))
    outputs = network_outputs(network, X, activation)
    np.testing.assert_allclose(outputs, evaluate(network, activation, X), rtol=0, atol=1e-12)
    features = read_features(network.layers[:-1], X, activation, has_skip)
    np.testing.assert_array_equal(features[:, -1], 1.0)
    if has_skip:
        np.testing.assert_array_equal(features[:, -3:-1], X)
    np.testing.assert_array_equal(features @ network.layers[-1].T, outputs)
    np.testing.assert_array_equal(read_features([], X, activation, has_skip)[:, :-1], X)


def test_solve_layer_minimizes_the_weighted_error():
    rng = np.random.default_rng(19)
    features, targets = rng.normal(size=(40, 4)), rng.normal(size=(40, 3))
    weight = rng.uniform(0.2, 3.0, size=40)
    layer = solve_layer(features, targets, weight)
    assert layer.shape == (3, 4)
    gradient = features.T @ (weight[:, None] * (features @ layer.T - targets))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


@pytest.mark.parametrize("has_skip", [False, True])
def test_many_rows_are_reduced_to_few_of_the_same_solution(has_skip):
    rng, activation = np.random.default_rng(23), ACTIVATIONS["tanh"]
    network, n_rows = random_network(rng, (5,), 2, 2, has_skip), 2 * BLOCK_ROWS + 1
    X, y = rng.normal(size=(n_rows, 2)), rng.normal(size=(n_rows, 2))
    samples = Samples.of(X, y, rng.uniform(0.2, 3.0, size=n_rows))
    features = read_features(network.layers[:-1], X, activation, has_skip)
    reduced = reduced_problem(network.layers[:-1], samples, activation, has_skip)
    weighted = np.hstack([features, y]) * np.sqrt(samples.sample_weight)[:, None]
    assert len(reduced) == features.shape[1] + 2
    np.testing.assert_allclose(reduced.T @ reduced, weighted.T @ weighted, atol=1e-9)
    readout = solve_readout(network.layers[:-1], samples, activation, has_skip).layers[-1]
    same = solve_layer(features, y, samples.sample_weight)
    np.testing.assert_allclose(readout, same, rtol=0, atol=1e-11)
    outputs = network_outputs(network, X, activation)
    np.testing.assert_allclose(outputs, features @ network.layers[-1].T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(5,), (5, 4), (5, 4, 3)])
def test_solve_readout_recovers_known_outgoing_weights(widths, has_skip):
    rng = np.random.default_rng(1)
    activation = ACTIVATIONS["softplus"]
    network = random_network(rng, widths, n_inputs=3, n_outputs=2, has_skip=has_skip)
    samples = samples_of(network, activation, rng, 60 if len(widths) == 1 else 400)
    solved = solve_readout(network.layers[:-1], samples, activation, has_skip)
    for layer, same in zip(solved.layers[:-1], network.layers[:-1], strict=True):
        np.testing.assert_array_equal(layer, same)
    atol = 1e-11 if len(widths) == 1 else 1e-9
    np.testing.assert_allclose(solved.layers[-1], network.layers[-1], rtol=0, atol=atol)


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(3,), (3, 2)])
def test_solve_readout_minimizes_the_weighted_error(widths, has_skip):
    rng = np.random.default_rng(2)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, widths, n_inputs=2, n_outputs=2, has_skip=has_skip)
    clean = samples_of(network, activation, rng)
    noise = 0.3 * rng.normal(size=clean.y.shape)
    samples = Samples.of(clean.X, clean.y + noise, clean.sample_weight)
    solved = solve_readout(network.layers[:-1], samples, activation, has_skip)
    # At the minimum, the weighted residuals are orthogonal to every input of the readout.
    design = read_features(network.layers[:-1], samples.X, activation, has_skip)
    residuals = evaluate(solved, activation, samples.X) - samples.y
    gradient = design.T @ (samples.sample_weight[:, None] * residuals)
    n_features = widths[-1] + 1 + has_skip * sum([2, *widths[:-1]])
    assert solved.layers[-1].shape == (2, n_features)
    assert gradient.shape == (n_features, 2)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-11)
    assert np.abs(residuals).max() > 0.1


def test_solve_readout_shares_weights_between_duplicates():
    rng = np.random.default_rng(3)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, 2, n_inputs=2, n_outputs=1)
    samples = samples_of(network, activation, rng)
    hidden, readout = network.layers
    solved = solve_readout([hidden[[0, 1, 0]]], samples, activation, has_skip=False)
    a, b, bias = readout[0]
    np.testing.assert_allclose(solved.layers[-1][0], [a / 2, b, a / 2, bias], atol=1e-11)


def test_solve_readout_tells_nearly_parallel_neurons_apart():
    """A singular value far below the largest, but above rounding, is signal."""
    rng = np.random.default_rng(14)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, 3, n_inputs=2, n_outputs=1)
    hidden, readout = network.layers
    hidden[1] = hidden[0] + 1e-8 * rng.normal(size=3)
    samples = samples_of(network, activation, rng)
    solved = solve_readout([hidden], samples, activation, has_skip=False)
    np.testing.assert_allclose(solved.layers[-1], readout, rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_skip", [False, True])
def test_solve_readout_without_hidden_neurons_fits_constant_or_line(has_skip):
    rng = np.random.default_rng(4)
    X = rng.normal(size=(30, 2))
    samples = Samples.of(X, X @ np.array([[2.0], [-1.0]]) + 0.5, np.ones(30))
    solved = solve_readout([np.empty((0, 3))], samples, ACTIVATIONS["relu"], has_skip)
    expected = [2.0, -1.0, 0.5] if has_skip else [samples.y.mean()]
    np.testing.assert_allclose(solved.layers[-1][0], expected, atol=1e-13)
