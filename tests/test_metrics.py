"""Matching of neurons, with known permutations, signs and scales."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ec.datasets import Teacher, make_teacher
from sklearn_ec.metrics import match_neurons, max_cosine_distance, relative_rmse


@pytest.fixture
def teacher():
    return make_teacher(5, 6, 2, "tanh", family="rough", random_state=0)


def disguise(teacher, order, signs, scales):
    factors = (signs * scales)[order]
    weights = [teacher.weights_[0][:, order] * factors, teacher.weights_[1][order]]
    return weights, [teacher.biases_[0][order] * factors, teacher.biases_[1]]


def test_finds_permutation_sign_and_scale(teacher):
    rng = np.random.default_rng(0)
    order, signs = rng.permutation(6), rng.choice([-1.0, 1.0], 6)
    scales = rng.uniform(0.5, 2, 6)
    match = match_neurons(teacher, disguise(teacher, order, signs, scales), "tanh")
    assert_array_equal(match.reference, np.arange(6))
    assert_array_equal(order[match.recovered], np.arange(6))
    assert_array_equal(match.signs, signs)
    assert_allclose(match.scales, scales)
    assert match.cosine_distances.max() < 1e-31
    assert match.missing.size == match.excess.size == 0


def test_signs_count_where_the_activation_has_no_symmetry(teacher):
    flipped = disguise(teacher, np.arange(6), -np.ones(6), np.ones(6))
    assert max_cosine_distance(teacher, flipped, "tanh") == 0.0
    assert max_cosine_distance(teacher, flipped, "g") > 0.01


def test_tiny_distances_are_accurate():
    angle = 1e-9
    first = ([np.array([[1.0], [0.0]]), np.ones((1, 1))], [np.zeros(1), np.zeros(1)])
    turned = np.array([[np.cos(angle)], [np.sin(angle)]])
    second = ([turned, np.ones((1, 1))], [np.zeros(1), np.zeros(1)])
    assert_allclose(max_cosine_distance(first, second, "g"), angle**2 / 2, rtol=1e-6)


def test_missing_and_excess_neurons(teacher):
    weights, biases = teacher.weights_, teacher.biases_
    fewer = [weights[0][:, 1:], weights[1][1:]], [biases[0][1:], biases[1]]
    match = match_neurons(teacher, fewer, "tanh")
    assert_array_equal(match.missing, [0])
    match = match_neurons(fewer, teacher, "tanh")
    assert_array_equal(match.excess, [0])
    assert max_cosine_distance(teacher, fewer, "tanh") == 1.0


def test_accepts_networks_of_all_kinds(teacher):
    X = np.random.default_rng(0).normal(size=(50, 5))
    mlp = MLPRegressor(hidden_layer_sizes=(6,), max_iter=1, solver="lbfgs")
    with pytest.warns(UserWarning, match="lbfgs failed to converge"):
        mlp.fit(X, teacher.predict(X))
    linear = torch.nn.Linear(5, 6), torch.nn.Linear(6, 2)
    with torch.no_grad():
        for layer, w, b in zip(linear, mlp.coefs_, mlp.intercepts_, strict=True):
            layer.weight.copy_(torch.from_numpy(w.T))
            layer.bias.copy_(torch.from_numpy(b))
    module = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1])
    assert max_cosine_distance(mlp, (mlp.coefs_, mlp.intercepts_), "relu") == 0.0
    assert max_cosine_distance(mlp, module, "relu") < 1e-12


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_accepts_networks_behind_scalers(teacher):
    """Compared as networks of the raw columns, whichever of the two is behind scalers."""
    X = np.random.default_rng(0).normal(5.0, [1, 2, 3, 4, 5], size=(50, 5))
    model = TransformedTargetRegressor(
        make_pipeline(
            StandardScaler(), MLPRegressor(hidden_layer_sizes=6, activation="tanh", max_iter=2)
        ),
        transformer=StandardScaler(),
    ).fit(X, teacher.predict(X))
    scaler, mlp = model.regressor_
    weights = [mlp.coefs_[0] / scaler.scale_[:, None], mlp.coefs_[1]]
    raw = weights, [mlp.intercepts_[0] - scaler.mean_ @ weights[0], mlp.intercepts_[1]]
    assert max_cosine_distance(model, raw, "tanh") < 1e-30
    assert max_cosine_distance(raw, model, "tanh") < 1e-30
    assert max_cosine_distance(raw, mlp, "tanh") > 0.01
    reduced = make_pipeline(PCA(), MLPRegressor(hidden_layer_sizes=6, max_iter=2)).fit(
        X, teacher.predict(X)
    )
    with pytest.raises(TypeError, match="step 'pca' of the pipeline is a PCA"):
        max_cosine_distance(raw, reduced, "tanh")


def test_errors(teacher):
    with pytest.raises(TypeError, match="dict is not a network"):
        match_neurons(teacher, {}, "tanh")
    with pytest.raises(ValueError, match="5 and 4 inputs"):
        match_neurons(teacher, make_teacher(4, 6), "tanh")
    with pytest.raises(ValueError, match="Unknown activation"):
        match_neurons(teacher, teacher, "sine")
    with pytest.raises(ValueError, match="hidden layer"):
        match_neurons(teacher, ([np.eye(5)], [np.zeros(5)]), "tanh")
    for layer in (1, 2, -1):
        with pytest.raises(ValueError, match=f"layer={layer} is no hidden layer"):
            match_neurons(teacher, teacher, "tanh", layer=layer)
    deep = make_teacher(5, (6, 4), 2, "tanh", random_state=0)
    for pair in ((deep, teacher), (teacher, deep)):
        with pytest.raises(ValueError, match="layer=1 is no hidden layer"):
            match_neurons(*pair, "tanh", layer=1)


DEEP = ["tanh", "logistic", "relu", "leaky_relu(0.2)", "g"]


def make_deep(activation, widths=(6, 5)):
    return make_teacher(4, widths, 2, activation, family="rough", random_state=0)


def disguise_deep(network, activation):
    """An equivalent network, and the order, sign and scale of every layer's neurons."""
    rng = np.random.default_rng(1)
    weights = [weight.copy() for weight in network.weights_]
    biases = [bias.copy() for bias in network.biases_]
    changes = []
    for layer, width in enumerate(network.layer_sizes_):
        order = rng.permutation(width)
        signs, scales = np.ones(width), np.ones(width)
        if activation in ("tanh", "logistic"):
            signs = rng.choice([-1.0, 1.0], width)
        if "relu" in activation:
            scales = rng.uniform(0.5, 2.0, width)
        weights[layer] = (weights[layer] * signs * scales)[:, order]
        biases[layer] = (biases[layer] * signs * scales)[order]
        outgoing = weights[layer + 1]
        if activation == "logistic":  # s(-z) = 1 - s(z)
            biases[layer + 1] += outgoing[signs < 0].sum(axis=0)
        weights[layer + 1] = (outgoing * (signs / scales)[:, None])[order]
        changes.append((order, signs, scales))
    return Teacher(weights, biases, activation), changes


@pytest.mark.parametrize("widths", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("activation", DEEP)
def test_equivalent_deep_networks_match_in_all_layers(activation, widths):
    teacher = make_deep(activation, widths)
    same, changes = disguise_deep(teacher, activation)
    X = np.random.default_rng(2).normal(size=(50, 4))
    assert_allclose(same.predict(X), teacher.predict(X), rtol=0, atol=1e-12)
    assert max_cosine_distance(teacher, same, activation) < 1e-30
    assert max_cosine_distance(same, teacher, activation) < 1e-30
    for layer, (order, signs, scales) in enumerate(changes):
        match = match_neurons(teacher, same, activation, layer)
        assert_array_equal(match.reference, np.arange(widths[layer]))
        assert_array_equal(order[match.recovered], match.reference)
        assert_array_equal(match.signs, signs)
        assert_allclose(match.scales, scales)
        assert match.cosine_distances.max() < 1e-30
        assert match.missing.size == match.excess.size == 0


@pytest.mark.parametrize("activation", DEEP)
def test_differences_in_the_second_layer_are_found(activation):
    teacher = make_deep(activation)
    other, changes = disguise_deep(teacher, activation)
    order = changes[1][0]
    size = 1e-6
    turned = int(np.flatnonzero(order == 3)[0])
    other.weights_[1][2, turned] += size
    before = np.append(teacher.weights_[1][:, 3], teacher.biases_[1][3])
    lower = int(changes[0][0][2])  # the neuron below whose weight changed
    scale = changes[0][2][lower] / changes[1][2][3]
    unit = before / np.linalg.norm(before)
    angle = size * scale / np.linalg.norm(before) * np.sqrt(1.0 - unit[lower] ** 2)
    if activation == "logistic" and changes[0][1][lower] < 0:  # the bias changes as well
        change = np.zeros(7)
        change[[lower, -1]] = [-size, size]
        angle = np.linalg.norm(change - (change @ unit) * unit) / np.linalg.norm(before)
    match = match_neurons(teacher, other, activation, layer=1)
    assert_allclose(match.cosine_distances[3], angle**2 / 2, rtol=1e-4)
    assert np.delete(match.cosine_distances, 3).max() < 1e-30
    assert_allclose(max_cosine_distance(teacher, other, activation), angle**2 / 2, rtol=1e-4)
    assert match_neurons(teacher, other, activation).cosine_distances.max() < 1e-30


def without_neuron(network, layer, neuron=0):
    weights, biases = list(network.weights_), list(network.biases_)
    weights[layer] = np.delete(weights[layer], neuron, axis=1)
    biases[layer] = np.delete(biases[layer], neuron)
    weights[layer + 1] = np.delete(weights[layer + 1], neuron, axis=0)
    return Teacher(weights, biases, network.activation)


@pytest.mark.parametrize("activation", DEEP)
def test_missing_and_excess_neurons_of_the_second_layer(activation):
    teacher = make_deep(activation)
    same, changes = disguise_deep(teacher, activation)
    neuron = int(np.flatnonzero(changes[1][0] == 2)[0])
    fewer = without_neuron(same, 1, neuron)
    match = match_neurons(teacher, fewer, activation, layer=1)
    assert_array_equal(match.missing, [2])
    assert match.excess.size == 0
    assert match.cosine_distances.max() < 1e-30
    match = match_neurons(fewer, teacher, activation, layer=1)
    assert_array_equal(match.excess, [2])
    assert match.missing.size == 0
    assert max_cosine_distance(teacher, fewer, activation) == 1.0
    assert max_cosine_distance(fewer, teacher, activation) == 1.0


@pytest.mark.parametrize("activation", DEEP)
def test_a_missing_neuron_below_is_a_missing_weight_above(activation):
    """Its column is that of a neuron which the other network does not have."""
    teacher = make_deep(activation)
    same, changes = disguise_deep(teacher, activation)
    neuron = int(np.flatnonzero(changes[0][0] == 2)[0])
    fewer = without_neuron(same, 0, neuron)
    full = np.vstack([teacher.weights_[1], teacher.biases_[1]])
    lacking = full.copy()
    lacking[2] = 0.0
    if changes[0][1][2] < 0 and activation == "logistic":
        lacking[-1] += teacher.weights_[1][2]
    cosines = np.sum(full * lacking, axis=0)
    cosines /= np.linalg.norm(full, axis=0) * np.linalg.norm(lacking, axis=0)
    match = match_neurons(teacher, fewer, activation, layer=1)
    assert_array_equal(changes[1][0][match.recovered], match.reference)
    assert_allclose(match.cosine_distances, 1.0 - cosines, rtol=1e-10)
    # Nothing is undone between networks that differ in this neuron alone.
    match = match_neurons(without_neuron(teacher, 0, 2), teacher, activation, layer=1)
    lacking[-1] = full[-1]
    cosines = np.sum(full * lacking, axis=0)
    cosines /= np.linalg.norm(full, axis=0) * np.linalg.norm(lacking, axis=0)
    assert_allclose(match.cosine_distances, 1.0 - cosines, rtol=1e-10)
    assert max_cosine_distance(teacher, fewer, activation) == 1.0


def test_networks_of_other_depth_are_unrelated(teacher):
    assert max_cosine_distance(teacher, make_teacher(5, (6, 4), 2, "tanh"), "tanh") == 1.0


def test_relative_rmse():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(1000, 2)) * [1.0, 100.0]
    noisy = y + 0.1 * y.std(axis=0)
    assert_allclose(relative_rmse(y, noisy), 0.1)
    assert relative_rmse(np.ones(3), np.ones(3)) == 0.0
    with pytest.raises(ValueError, match="equal shapes"):
        relative_rmse(np.ones(3), np.ones((3, 1)))
