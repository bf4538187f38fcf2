"""Matching of neurons, with known permutations, signs and scales."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.neural_network import MLPRegressor

from sklearn_ec.datasets import make_teacher
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


def test_errors(teacher):
    with pytest.raises(TypeError, match="dict is not a network"):
        match_neurons(teacher, {}, "tanh")
    with pytest.raises(ValueError, match="5 and 4 inputs"):
        match_neurons(teacher, make_teacher(4, 6), "tanh")
    with pytest.raises(ValueError, match="Unknown activation"):
        match_neurons(teacher, teacher, "sine")
    with pytest.raises(ValueError, match="hidden layer"):
        match_neurons(teacher, ([np.eye(5)], [np.zeros(5)]), "tanh")
    with pytest.raises(NotImplementedError, match="layer=1"):
        match_neurons(teacher, teacher, "tanh", layer=1)


def test_relative_rmse():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(1000, 2)) * [1.0, 100.0]
    noisy = y + 0.1 * y.std(axis=0)
    assert_allclose(relative_rmse(y, noisy), 0.1)
    assert relative_rmse(np.ones(3), np.ones(3)) == 0.0
    with pytest.raises(ValueError, match="equal shapes"):
        relative_rmse(np.ones(3), np.ones((3, 1)))
