"""Directions in which neurons lie, and large students that are trained along them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Settings, Training
from sklearn_ec._expand.directions import active_directions, bending_directions
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.warm_up import USUAL, Start, WarmUpTrainer

N_INPUTS, WIDTH = 30, 4
# All students are taken for large.
LARGE = Settings(training=Training(dense_flops=0.0))


@pytest.fixture
def inputs():
    return np.random.default_rng(0).normal(size=(40_000, N_INPUTS))


@pytest.fixture
def neurons():
    """Orthonormal incoming vectors of a teacher."""
    return np.linalg.qr(np.random.default_rng(1).normal(size=(N_INPUTS, WIDTH)))[0].T


def polisher_of(X, y, settings=LARGE):
    samples = Samples.of(X, y, np.ones(len(X)), 0.0)
    return Polisher(samples, samples.take(np.arange(500)), "tanh", "cpu", False, settings=settings)


@pytest.mark.parametrize("function", [np.tanh, np.abs, lambda z: np.tanh(2.0 * z) + z**2])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_directions_span_the_neurons_behind_targets(inputs, neurons, function, n_outputs):
    readout = np.random.default_rng(2).uniform(0.5, 1.0, size=(WIDTH, n_outputs))
    y = function(2.0 * inputs @ neurons.T) @ readout
    axes = bending_directions(torch.from_numpy(inputs), y, 2 * WIDTH + n_outputs)
    assert_allclose(axes.T @ axes, np.eye(2 * WIDTH + n_outputs), atol=1e-6)
    assert np.linalg.norm(neurons @ axes, axis=1).min() > 0.9


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_linear_function_has_hardly_any_direction_but_its_own(inputs, n_outputs):
    coefficients = np.random.default_rng(3).normal(size=(N_INPUTS, n_outputs))
    noise = np.random.default_rng(4).normal(size=(len(inputs), n_outputs))
    y = inputs @ coefficients + noise
    axes = bending_directions(torch.from_numpy(inputs), y, N_INPUTS, beyond_chance=True)
    assert n_outputs <= axes.shape[1] <= 2 * n_outputs
    across = coefficients - axes @ (axes.T @ coefficients)
    assert np.linalg.norm(across) < 0.05 * np.linalg.norm(coefficients)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_active_directions_are_those_of_the_gradients(inputs, neurons, n_outputs):
    rng = np.random.default_rng(5)
    hidden = np.column_stack([neurons, rng.normal(size=WIDTH)])
    network = Network((hidden, rng.normal(size=(n_outputs, WIDTH + 1))))
    task = polisher_of(inputs[:1000], np.zeros((1000, n_outputs))).task
    slopes = 1.0 - np.tanh(inputs[:1000] @ neurons.T + hidden[:, -1]) ** 2
    outgoing = network.layers[1][:, :WIDTH]
    gradients = np.vstack([(slopes * row) @ neurons for row in outgoing])
    for n_directions in (1, WIDTH):
        axes = active_directions(network, task, n_directions)
        expected = np.linalg.svd(gradients)[2][:n_directions]
        assert_allclose(np.abs(np.linalg.det(expected @ axes)), 1.0, atol=1e-9)


@pytest.fixture
def polisher(inputs, neurons):
    y = np.tanh(2.0 * inputs @ neurons.T).sum(axis=1, keepdims=True)
    stages = replace(LARGE.stages, steps=600, steps_along=2000, minibatch_share=1e-2)
    return polisher_of(inputs, y / y.std(), replace(LARGE, stages=stages))


def holds(network, neurons):
    """How many of the neurons are in a network, about."""
    vectors = network.layers[0][:, :-1]
    cosines = neurons @ vectors.T / np.linalg.norm(vectors, axis=1)
    return int((np.abs(cosines).max(axis=1) > 0.9).sum())


def test_a_large_student_is_trained_in_stages(polisher, neurons):
    trainer = WarmUpTrainer(polisher)
    module, completed = trainer.train(np.array([0]), (6,))
    network = Network(tuple(layer[0].numpy() for layer in module.weights))
    assert completed
    assert holds(network, neurons) == WIDTH


@pytest.mark.parametrize(("seeds", "start"), [([0, 1], USUAL), ([0], Start(n_steps=100))])
def test_several_students_and_those_of_a_race_are_not(polisher, seeds, start):
    module, _ = WarmUpTrainer(polisher).train(np.array(seeds), (6,), start)
    assert [layer.shape[1] for layer in module.weights] == [6, 1]


def test_few_directions_are_fewer_than_the_inputs(inputs):
    y = np.ones((1000, 1))
    polisher = polisher_of(inputs[:1000], y)
    widest = int(N_INPUTS / LARGE.stages.directions)
    assert polisher.trains_along_few(widest)
    assert not polisher.trains_along_few(widest + 1)
    dependent = inputs[:1000].copy()
    dependent[:, 1] = dependent[:, 0]
    assert not polisher_of(dependent, y).trains_along_few(1)


def test_new_neurons_are_those_that_are_missing(polisher, neurons):
    found, missing = neurons[:3], neurons[3:]
    hidden = np.column_stack([2.0 * found, np.zeros(3)])
    trainer = WarmUpTrainer(polisher)
    network = polisher.polish(Network((hidden, np.ones((1, 4)))), 20)[0]
    assert holds(network, missing) == 0
    before = polisher.losses([layer[None] for layer in network.layers])
    for seed in range(4):
        module, completed = trainer.grow(np.array([seed]), (6,), network)
        grown = Network(tuple(layer[0].numpy() for layer in module.weights))
        assert completed
        assert grown.widths == (6,)
        assert holds(grown, missing) == 1
        assert polisher.losses([layer[None] for layer in grown.layers]) < 0.5 * before
