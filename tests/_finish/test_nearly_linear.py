"""Neurons that are nearly linear on the data, among others that imitate them together."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.distances import unit_rows
from sklearn_ec._core.forward import network_outputs, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._finish.nearly_linear import with_linear_neurons

N_ROWS, N_INPUTS = 1000, 6
LINEAR = np.array([0.5, -1.0, 0.3, 0.8, -0.2, 0.4, 4.2])  # on in nearly all rows


def polisher_and_network(name, n_outputs=4):
    """Three neurons that bend, and one that is on in nearly all rows."""
    rng = np.random.default_rng(3)
    hidden = np.vstack([rng.normal(size=(3, N_INPUTS + 1)), LINEAR])
    network = Network((hidden, rng.normal(size=(n_outputs, 5))))
    X, activation = rng.normal(size=(N_ROWS, N_INPUTS)), get_activation(name)
    samples = Samples.of(X, network_outputs(network, X, activation), np.ones(N_ROWS))
    assert 0.0 < (samples.inputs @ LINEAR < 0).mean() < 0.02
    return Polisher(samples, samples, name, "cpu", has_skip=False), network


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_one_neuron_takes_the_place_of_all_that_imitate_it(name):
    """Two that face the other way than two of the network, and others on in all rows."""
    polisher, network = polisher_and_network(name)
    rng = np.random.default_rng(4)
    linear = np.column_stack([rng.normal(size=(6, N_INPUTS)), np.full(6, 30.0)])
    imitators = np.vstack([network.layers[0][:3], -network.layers[0][:2], linear])
    samples, activation = polisher.samples, polisher.activation
    start = solve_readout([imitators], samples, activation, False)
    loss = float(polisher.losses([layer[None] for layer in start.layers])[0])
    assert 1e-6 < loss < 3e-3
    without, found, *_ = with_linear_neurons(start, loss, polisher)
    assert without.widths == (3,)
    assert found.widths == (4,)
    cosines = unit_rows(found.layers[0]) @ unit_rows(network.layers[0]).T
    assert_allclose(np.abs(cosines[:3]).max(axis=1), 1.0, atol=1e-12)
    directions = unit_rows(found.layers[0][3:, :-1]) @ unit_rows(LINEAR[None, :-1]).T
    assert_allclose(np.abs(directions), 1.0, atol=1e-2)
    polished, loss = polisher.polish(found, 100)
    assert polished.widths == (4,)
    assert loss < 1e-24


def test_there_are_no_more_linear_neurons_than_outputs():
    polisher, network = polisher_and_network("relu", n_outputs=2)
    candidates = list(with_linear_neurons(network, 1e-6, polisher))
    assert [c.widths[0] - candidates[0].widths[0] for c in candidates] == [0, 1]
