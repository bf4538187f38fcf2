"""The weakest directions by inverse iteration, next to those of the whole decomposition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from builders import random_network
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.canonical import canonical_network
from sklearn_ec._core.records import Samples
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._solvers.jacobian import Linearization
from sklearn_ec._solvers.task import task_of
from sklearn_ec._solvers.weak_directions import WeakLinearization

SETTINGS = DEFAULTS.verdict.weak_directions


def linearizations(activation, widths, n_outputs=1, n_rows=1500, settings=SETTINGS, lonely=False):
    """The whole decomposition and the weakest directions of a random network."""
    rng = np.random.default_rng(0)
    network = random_network(rng, widths, n_inputs=6, n_outputs=n_outputs)
    network = canonical_network(network, get_activation(activation))
    X, weight = rng.normal(size=(n_rows, 6)), rng.uniform(0.5, 2.0, size=n_rows)
    if lonely:  # one row alone tells the weight of the last input
        X[:-1, -1], X[-1, -1] = 0.0, 1.0
    targets = np.zeros((n_rows, n_outputs))
    task = task_of(
        Samples.of(X, targets, weight / weight.mean()), get_activation(activation), "cpu"
    )
    whole = Linearization(task, network, torch.from_numpy(targets[None]))
    return whole, WeakLinearization(task, network, settings)


@pytest.mark.parametrize("widths", [(5,), (4, 3)])
@pytest.mark.parametrize("activation", ["relu", "tanh", "g"])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_the_smallest_singular_value_is_that_of_the_whole_decomposition(
    activation, widths, n_outputs
):
    exact = replace(
        SETTINGS,
        max_rounds=50,
        accuracy=1e-6,
        relative_residual=1e-4,
        rows_per_feature=10**9,
    )
    whole, weak = linearizations(activation, widths, n_outputs, settings=exact)
    assert_allclose(weak.singular_values[-1], whole.singular_values[-1], rtol=1e-3)
    assert_allclose(weak.curvatures(1), whole.curvatures(1), rtol=0.05)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_few_rounds_come_near_the_smallest_singular_value_from_above(activation):
    whole, weak = linearizations(activation, (12,))
    ratio = float(weak.singular_values[-1] / whole.singular_values[-1])
    assert 1.0 - 1e-9 < ratio < 1.3


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_the_redundancy_is_not_overrated(n_outputs):
    whole, weak = linearizations("relu", (5,), n_outputs)
    estimate, redundancy = weak.least_redundancy(), whole.least_redundancy()
    assert DEFAULTS.verdict.min_redundancy < estimate < redundancy


def test_a_row_that_alone_decides_a_weight_is_seen():
    whole, weak = linearizations("relu", (5,), lonely=True)
    assert whole.least_redundancy() < 1e-10
    assert weak.least_redundancy() < DEFAULTS.verdict.min_redundancy


def test_a_direction_below_single_precision_is_resolved_in_double():
    """Two neurons, a hundredth apart."""
    rng = np.random.default_rng(1)
    network = random_network(rng, (6,), n_inputs=6, n_outputs=1)
    network.layers[0][1] = network.layers[0][0] + 1e-2 * rng.normal(size=7)
    network = canonical_network(network, get_activation("tanh"))
    X, targets = rng.normal(size=(1500, 6)), np.zeros((1500, 1))
    task = task_of(Samples.of(X, targets, np.ones(1500)), get_activation("tanh"), "cpu")
    whole = Linearization(task, network, torch.from_numpy(targets[None]))
    weak = WeakLinearization(task, network, SETTINGS)
    assert not weak._is_resolved_in_single()
    ratio = float(weak.singular_values[-1] / whole.singular_values[-1])
    assert 1.0 - 1e-6 < ratio < 1.3


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_others_are_as_good_in_single_precision(activation):
    _, weak = linearizations(activation, (12,))
    assert weak._is_resolved_in_single()
    _, double = linearizations(
        activation, (12,), settings=replace(SETTINGS, least_single_share=1.0)
    )
    assert_allclose(weak.singular_values[-1], double.singular_values[-1], rtol=0.02)
