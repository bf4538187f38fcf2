"""Directions along which neurons are missing, and large students that grow along them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Settings, Training
from sklearn_ec._expand.directions import informative_directions, linear_residuals
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
    samples = Samples(X, y, np.ones(len(X)), 0.0)
    return Polisher(samples, samples.take(np.arange(500)), "tanh", "cpu", False, settings=settings)


@pytest.mark.parametrize("function", [np.tanh, np.abs, lambda z: np.tanh(2.0 * z) + z**2])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_directions_span_the_neurons_behind_a_residual(inputs, neurons, function, n_outputs):
    readout = np.random.default_rng(2).uniform(0.5, 1.0, size=(WIDTH, n_outputs))
    residuals = linear_residuals(inputs, function(2.0 * inputs @ neurons.T) @ readout)
    axes = informative_directions(torch.from_numpy(inputs), residuals, 2 * WIDTH)
    assert_allclose(axes.T @ axes, np.eye(2 * WIDTH), atol=1e-6)
    assert np.linalg.norm(neurons @ axes, axis=1).min() > 0.9


def test_a_linear_function_leaves_no_residual(inputs):
    y = inputs @ np.random.default_rng(3).normal(size=(N_INPUTS, 2))
    assert np.abs(linear_residuals(inputs, y)).max() < 1e-10


@pytest.fixture
def polisher(inputs, neurons):
    y = np.tanh(2.0 * inputs @ neurons.T).sum(axis=1, keepdims=True)
    stages = replace(LARGE.stages, steps=600, minibatch_share=1e-2)
    return polisher_of(inputs, y / y.std(), replace(LARGE, stages=stages))


def holds(network, neurons):
    """How many of the neurons are in a network, about."""
    vectors = network.layers[0][:, :-1]
    cosines = neurons @ vectors.T / np.linalg.norm(vectors, axis=1)
    return int((np.abs(cosines).max(axis=1) > 0.9).sum())


def test_a_large_student_grows_in_stages(polisher, neurons):
    trainer = WarmUpTrainer(polisher)
    module, completed = trainer.train(np.array([0]), (6,))
    network = Network(tuple(layer[0].numpy() for layer in module.weights))
    assert completed
    assert holds(network, neurons) == WIDTH


@pytest.mark.parametrize(("seeds", "start"), [([0, 1], USUAL), ([0], Start(n_steps=100))])
def test_several_students_and_those_of_a_race_do_not_grow(polisher, seeds, start):
    module, _ = WarmUpTrainer(polisher).train(np.array(seeds), (6,), start)
    assert [layer.shape[1] for layer in module.weights] == [6, 1]


def test_new_neurons_are_those_that_are_missing(polisher, neurons):
    found, missing = neurons[:3], neurons[3:]
    hidden = np.column_stack([2.0 * found, np.zeros(3)])
    trainer = WarmUpTrainer(polisher)
    network = polisher.polish(Network((hidden, np.ones((1, 4)))), 20)[0]
    assert holds(network, missing) == 0
    before, after = polisher.losses([layer[None] for layer in network.layers]), []
    for seed in range(4):
        module, completed = trainer.grow(np.array([seed]), (6,), network)
        grown = Network(tuple(layer[0].numpy() for layer in module.weights))
        assert completed
        assert grown.widths == (6,)
        assert holds(grown, missing) == 1
        after.append(polisher.losses([layer[None] for layer in grown.layers]))
    assert np.mean(after) < 0.65 * before
    assert np.max(after) < 0.8 * before
