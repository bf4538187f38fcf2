"""Which neurons a network can do without, and at what cost."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from builders import (
    planted,
    planted_deep,
    with_duplicates,
    with_spare_neurons,
)
from sklearn_ec._core.forward import network_outputs, read_features
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._finish.removals import (
    Removal,
    narrowed,
    removal_candidates,
    without_neurons,
    without_spare,
)


def error_without(network, neurons, polisher):
    """Squared error without some neurons of the only hidden layer, the readout solved again."""
    samples = polisher.samples
    hidden = np.delete(network.layers[0], neurons, axis=0)
    design = read_features([hidden], samples.X, polisher.activation, network.has_skip)
    solution = np.linalg.lstsq(design, samples.y, rcond=1e-14)[0]
    return np.sum((design @ solution - samples.y) ** 2)


def test_candidates_are_the_neurons_of_least_cost():
    """Brute force: remove each neuron, solve the readout again, compare the errors."""
    network, polisher, _ = planted("tanh", width=4)
    spare = with_spare_neurons(network)
    costs = [error_without(spare, [neuron], polisher) for neuron in range(spare.widths[0])]
    first = removal_candidates(spare, 1e-12, polisher, 0, n_removed=1)
    assert len(first) == 3
    assert all(removal.layer == 0 for removal in first)
    needed = {1, 2, 3}  # all but one neuron of each duplicated pair, and the junk neuron, may go
    found = [int(removal.neurons[0]) for removal in first]
    assert not needed & set(found)
    assert max(costs[i] for i in found) < 1e-20 < min(costs[i] for i in needed)
    assert max(removal.cost for removal in first) < 1e-20


@pytest.mark.parametrize("width", [4, 5])
def test_narrowed_networks_lose_what_is_to_spare_first(width):
    network, polisher, _ = planted("tanh", width=4)
    spare = with_spare_neurons(network)
    smaller = narrowed(spare, (width,), polisher)
    assert smaller.widths == (width,)
    assert polisher.losses([layer[None] for layer in smaller.layers])[0] < 1e-20


def test_narrowed_networks_are_polished_whatever_that_costs():
    network, polisher, _ = planted_deep("tanh", sizes=(3, 4, 3, 1))
    narrow = narrowed(network, (4, 2), polisher)
    assert narrow.widths == (4, 2)
    loss = polisher.losses([layer[None] for layer in narrow.layers])[0]
    polished = polisher.polish(narrow, polisher.settings.prune.removal_steps)[1]
    assert 1e-8 < loss < 2.0 * polished


def test_costs_are_the_rise_of_the_squared_error():
    network, polisher, _ = planted("tanh", width=4)
    removals = removal_candidates(network, 1e-12, polisher, 0, n_removed=1)
    assert [removal.cost for removal in removals] == sorted(removal.cost for removal in removals)
    for removal in removals:
        assert_allclose(removal.cost, error_without(network, removal.neurons, polisher), rtol=1e-6)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_candidates_of_deep_networks_cost_nothing_where_neurons_are_spare(layer, has_skip, group):
    network, polisher, _ = planted_deep("softplus")
    spare = with_duplicates(network)
    spare = with_skip(spare) if has_skip else spare
    for removal in removal_candidates(spare, 1e-12, polisher, layer, group):
        assert removal.layer == layer
        assert len(np.unique(removal.neurons % network.widths[layer])) == group  # one of each pair
        assert removal.cost < 1e-18
        smaller = without_neurons(spare, polisher, removal)
        expected = list(spare.widths)
        expected[layer] -= group
        assert smaller.widths == tuple(expected)
        assert smaller.has_skip == has_skip
        outputs = network_outputs(smaller, polisher.samples.X, polisher.activation)
        assert_allclose(outputs, polisher.samples.y, rtol=0, atol=1e-9)
    exact = with_skip(network) if has_skip else network
    for removal in removal_candidates(exact, 1e-12, polisher, layer, n_removed=1):
        assert removal.cost > 1e-6


def test_neurons_that_several_layers_read_are_replaced_in_all_of_them():
    """A neuron that the second layer ignores, and the readout reads past it, is no spare one."""
    network, polisher, _ = planted_deep("softplus")
    start = with_skip(network)
    start.layers[1][:, 0] = 0.0
    bypass = start.columns(2, 1).start
    start.layers[2][:, bypass] = 1.0
    y = network_outputs(start, polisher.samples.X, polisher.activation)
    rows = Samples.of(polisher.samples.X, y, polisher.samples.sample_weight)
    polisher = Polisher(rows, rows, "softplus", "cpu", has_skip=True)
    removals = removal_candidates(start, 1e-12, polisher, 0, n_removed=1)
    costs = {int(removal.neurons[0]): removal.cost for removal in removals}
    assert 0 not in costs or costs[0] > 1e-6
    without = without_neurons(start, polisher, Removal(0, np.array([0]), 0.0))
    outputs = network_outputs(without, rows.X, polisher.activation)
    assert np.abs(outputs - y).max() > 1e-3
    assert without.widths == (3, 3)


def test_a_group_of_candidates_is_jointly_superfluous():
    network, polisher, _ = planted("tanh", width=4)
    spare = with_spare_neurons(network)
    (group,) = removal_candidates(spare, 1e-12, polisher, 0, n_removed=4)
    design = read_features(
        [np.delete(spare.layers[0], group.neurons, axis=0)],
        polisher.samples.X,
        polisher.activation,
        False,
    )
    solution = np.linalg.lstsq(design, polisher.samples.y, rcond=1e-14)[0]
    assert_allclose(design @ solution, polisher.samples.y, atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_neurons_without_a_kink_in_the_data_are_removed_first(sign):
    """Always active, a ReLU neuron is a linear function that the skip term holds as well."""
    network, polisher, _ = planted("relu")
    kinkless = sign * np.array([0.1, -0.2, 0.1, 5.0])
    hidden, readout = network.layers
    spare = Network((np.vstack([hidden, kinkless]), np.insert(readout, 3, 2.0, axis=1)))
    candidates = removal_candidates(with_skip(spare), 1e-12, polisher, 0, 1)
    assert candidates[0].neurons.tolist() == [3]
    assert without_spare(with_skip(spare), 1e-12, polisher).widths == network.widths
    crowd = with_spare_neurons(with_skip(spare), 0.0)  # with a duplicate and a pair that cancels
    (group,) = removal_candidates(crowd, 1e-12, polisher, 0, 4)
    assert 3 in group.neurons


def test_a_large_network_loses_what_costs_no_more_than_it_misses():
    """Near copies, neurons that undo each other and junk, in one go and without a polish."""
    network, polisher, _ = planted("tanh")
    spoiled = with_spare_neurons(network, noise=1e-3)
    loss = float(polisher.losses([layer[None] for layer in spoiled.layers])[0])
    left = without_spare(spoiled, loss, polisher)
    assert left.widths == network.widths
    assert polisher.losses([layer[None] for layer in left.layers])[0] < 2.5 * loss
    assert without_spare(network, 1e-20, polisher) is network
