"""Kinks that lie on the wrong side of a few rows."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._finish.wrong_kinks import _across_kink, _least_change, with_moved_kinks

N_ROWS, N_RARE, RARE = 1000, 3, 4


def polisher_and_network(name="relu"):
    """Three neurons; the last input is lit in three rows, in which the first neuron is on."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, RARE + 1))
    X[:, RARE] = 0.0
    X[:N_RARE, RARE] = 1.0 + 0.1 * np.arange(N_RARE)
    hidden = rng.normal(size=(3, RARE + 2))
    hidden[0, RARE] = 8.0
    network, activation = Network((hidden, rng.normal(size=(4, 4)))), get_activation(name)
    samples = Samples.of(X, network_outputs(network, X, activation), np.ones(N_ROWS))
    assert (samples.inputs[:N_RARE] @ hidden[0] > 2.0).all()
    return Polisher(samples, samples, name, "cpu", has_skip=False), network


def with_weight(network, weight):
    hidden, readout = (layer.copy() for layer in network.layers)
    hidden[0, RARE] = weight
    return Network((hidden, readout))


def loss_of(network, polisher):
    return float(polisher.losses([layer[None] for layer in network.layers])[0])


def test_a_neuron_that_is_off_where_it_should_be_on_comes_back():
    polisher, network = polisher_and_network()
    stuck, loss = polisher.polish(with_weight(network, -20.0), 100)
    assert loss > 1e-3
    found, found_loss = with_moved_kinks(stuck, loss, polisher)
    assert found_loss < 1e-24
    assert found_loss == pytest.approx(loss_of(found, polisher), abs=1e-26)
    inputs = polisher.samples.inputs[:N_RARE]
    assert_allclose(inputs @ found.layers[0][0] > 0, True)


def test_networks_stay_as_they_are_where_no_few_rows_hold_the_loss():
    polisher, network = polisher_and_network()
    hidden, readout = network.layers
    smaller, loss = polisher.polish(Network((hidden[:2], readout[:, [0, 1, 3]])), 100)
    assert loss > 1e-6
    found, found_loss = with_moved_kinks(smaller, loss, polisher)
    assert found is smaller
    assert found_loss == loss


@pytest.mark.parametrize(
    ("name", "z", "value", "expected"),
    [
        ("relu", -0.5, 0.3, 0.3),
        ("relu", -0.5, -0.3, np.nan),  # it would have to be off, as it is
        ("relu", 0.5, -0.3, 0.0),
        ("relu", 0.5, 0.3, np.nan),
        ("leaky_relu", -0.5, 0.3, 0.3),
        ("leaky_relu", 0.5, -0.3, -30.0),
        ("leaky_relu", 0.5, 0.3, np.nan),
    ],
)
def test_the_other_side_of_a_kink(name, z, value, expected):
    found = _across_kink(np.array([[z]]), np.array([[value]]), get_activation(name))
    assert_allclose(found, [[expected]])


def test_a_neuron_moves_in_some_rows_and_least_in_others():
    polisher, network = polisher_and_network()
    rows, moves, inputs = np.array([0, 5]), np.array([0.7, -0.4]), polisher.samples.inputs
    neuron = network.layers[0][1]
    change = _least_change(neuron, rows, moves, polisher)
    assert_allclose(inputs[rows] @ change, moves, rtol=1e-5)
    others = np.setdiff1d(np.flatnonzero(inputs @ neuron > 0), rows)
    least = ((inputs[others] @ change) ** 2).sum()
    rng = np.random.default_rng(1)
    free = np.linalg.svd(inputs[rows])[2][2:]
    for _ in range(20):
        other = change + 0.01 * rng.normal(size=len(free)) @ free
        assert_allclose(inputs[rows] @ other, moves, rtol=1e-5)
        assert ((inputs[others] @ other) ** 2).sum() > least
