"""Pruning: what goes, at what cost, and how far down."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from builders import (
    ALL_LARGE,
    planted,
    planted_deep,
    settings_with,
    with_duplicates,
    with_noise,
    with_spare_neurons,
)
from sklearn_ec._core.forward import network_outputs, read_features
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._finish.pruning import (
    ExactCap,
    NoiseCap,
    Removal,
    cheapest_removal,
    prune,
    pruning_path,
    removal_candidates,
    without_neurons,
    without_spare,
)
from sklearn_ec._solvers.jacobian import stacked


def test_prune_keeps_necessary_neurons():
    network, polisher, _ = planted("tanh", width=4)
    pruned, loss = prune(network, 1e-31, polisher)
    assert pruned.widths == (4,)
    assert loss < 1e-24


@pytest.mark.parametrize("activation", ["tanh", "g"])
def test_a_single_neuron_that_is_left_is_polished_to_the_end(activation):
    """Removals leave a network where it is good enough, and no other removal follows here."""
    network, polisher, _ = planted(activation, width=1)
    near = with_duplicates(network, noise=1e-6)
    loss = float(polisher.losses([layer[None] for layer in near.layers])[0])
    pruned, pruned_loss = prune(near, loss, polisher, lambda network, loss: True)
    assert pruned.widths == (1,)
    assert pruned_loss < 1e-24


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_prune_keeps_necessary_neurons_of_all_layers(activation):
    network, polisher, _ = planted_deep(activation)
    start = with_skip(network) if polisher.has_skip else network
    pruned, loss = prune(start, 1e-31, polisher)
    assert pruned.widths == (4, 3)
    assert loss < 1e-24


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_prune_finds_the_one_layer_that_is_too_wide(activation, layer):
    network, polisher, _ = planted_deep(activation)
    layers = list(network.layers)
    layers[layer] = np.vstack([layers[layer], layers[layer][:1]])
    halves = layers[layer + 1][:, :1] * 0.5
    outgoing = layers[layer + 1][:, 1 : network.widths[layer]]
    layers[layer + 1] = np.hstack([halves, outgoing, halves, layers[layer + 1][:, -1:]])
    start = Network(tuple(layers))
    pruned, loss = prune(with_skip(start) if polisher.has_skip else start, 1e-31, polisher)
    assert pruned.widths == (4, 3)
    assert loss < 1e-24


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


def error_without(network, neurons, polisher):
    """Squared error without some neurons of the only hidden layer, the readout solved again."""
    samples = polisher.samples
    hidden = np.delete(network.layers[0], neurons, axis=0)
    design = read_features([hidden], samples.X, polisher.activation, network.has_skip)
    solution = np.linalg.lstsq(design, samples.y, rcond=1e-14)[0]
    return np.sum((design @ solution - samples.y) ** 2)


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
    rows = Samples(polisher.samples.X, y, polisher.samples.sample_weight)
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


def test_exact_cap_follows_the_lowest_loss():
    network, _, _ = planted("tanh")
    cap = ExactCap(1e-8, 0.0, DEFAULTS)
    assert_allclose(cap.allowed(network), 1e-7)
    cap.update(network, 5e-8)  # above the lowest so far
    assert_allclose(cap.allowed(network), 1e-7)
    cap.update(network, 1e-12)
    assert_allclose(cap.allowed(network), 1e-11)
    cap.update(network, 1e-32)
    assert_allclose(cap.allowed(network), 1e-24)  # lower losses are rounding


@pytest.mark.parametrize("rounding_loss", [0.0, 1e-8])
def test_exact_cap_allows_rounding(rounding_loss):
    """Of the targets, once it is reached, and of the arithmetic, even from a loss of zero."""
    network, _, _ = planted("tanh")
    cap = ExactCap(1e-6, rounding_loss, DEFAULTS)
    assert_allclose(cap.allowed(network), 1e-5)
    cap.update(network, 0.5e-8)
    assert_allclose(cap.allowed(network), rounding_loss or 5e-8)
    cap.update(network, 0.0)
    assert cap.allowed(network) == (rounding_loss or 1e-24)
    assert ExactCap(0.0, rounding_loss, DEFAULTS).allowed(network) == (rounding_loss or 1e-24)


def test_noise_cap_is_the_loss_of_equal_criterion():
    """``N ln(loss) + P ln(N)`` of the lowest so far: 16 parameters, and 11 with a neuron less."""
    network, _, _ = planted("tanh")
    smaller = Network((network.layers[0][1:], network.layers[1][:, 1:]))
    cap = NoiseCap(network, 1e-4, 200, DEFAULTS.noise)
    assert_allclose(cap.allowed(network), 1e-4)
    allowed = 1e-4 * 200 ** (5 / 200)
    assert_allclose(cap.allowed(smaller), allowed)
    cap.update(smaller, 1.01 * allowed)  # above the lowest so far
    assert_allclose(cap.allowed(smaller), allowed)
    cap.update(smaller, 0.5 * allowed)
    assert_allclose(cap.allowed(smaller), 0.5 * allowed)
    assert_allclose(cap.allowed(network), 0.5e-4)


@pytest.mark.parametrize("noise", [0.0, 1e-2])
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_a_pruning_path_leads_down_below_the_cap(activation, noise):
    network, polisher, held_out = planted(activation)
    polisher, _ = with_noise(polisher, held_out, noise, activation)
    start = with_spare_neurons(network, noise=1e-3)
    start = with_skip(start) if polisher.has_skip else start
    start, loss = polisher.polish(start, 100)
    cap = NoiseCap(start, loss, 400, DEFAULTS.noise) if noise else ExactCap(loss, 0.0, DEFAULTS)
    path = list(pruning_path(start, loss, polisher, cap))
    assert path[0] == (start, loss)
    assert path[-1][0].widths == network.widths
    neurons = [sum(member.widths) for member, _ in path]
    assert all(after < before for before, after in itertools.pairwise(neurons))
    for member, member_loss in path:
        assert_allclose(float(polisher.task.losses(stacked(member, "cpu"))[0]), member_loss)
    again = NoiseCap(start, loss, 400, DEFAULTS.noise) if noise else ExactCap(loss, 0.0, DEFAULTS)
    for member, member_loss in path[1:]:
        assert member_loss <= again.allowed(member)
        again.update(member, member_loss)
    assert cap.allowed(network) == again.allowed(network)


@pytest.mark.parametrize(("loss", "ends"), [(1e-12, True), (1e-30, False)])
def test_a_path_that_takes_more_steps_than_others_ends(loss, ends):
    """Unless the network is exact: it loses all neurons that it has to spare."""
    network, polisher, _ = planted("tanh", width=2)
    start = with_duplicates(with_duplicates(network, noise=1e-3), noise=1e-3)
    settings = settings_with(prune={"path_steps": 0, "path_steps_per_neuron": 0})
    polisher = Polisher(polisher.samples, polisher.samples, "tanh", "cpu", False, settings=settings)
    path = list(pruning_path(start, loss, polisher, ExactCap(loss, 0.0, settings)))
    assert (len(path) == 1) == ends


def test_groups_go_before_single_neurons():
    network, polisher, _ = planted("tanh", width=2)
    start = with_duplicates(with_duplicates(with_duplicates(network)))
    path = list(pruning_path(start, 1e-30, polisher, ExactCap(1e-30, 0.0, DEFAULTS)))
    assert [member.widths[0] for member, _ in path][:3] == [16, 12, 9]
    assert path[-1][0].widths == (2,)


def test_alternatives_are_polished_as_if_each_were_alone():
    network, polisher, _ = planted("tanh", width=5)
    removals = removal_candidates(network, 0.0, polisher, 0, 1)
    smaller = [without_neurons(network, polisher, removal) for removal in removals]
    together = polisher.polish_alternatives(smaller, 100, 0.99)
    alone = [polisher.polish(start, 100, progress=0.99) for start in smaller]
    for (_, loss), (_, expected) in zip(together, alone, strict=True):
        assert_allclose(loss, expected, rtol=1e-6)


def test_the_cheapest_removal_is_the_best_polished_network():
    """Brute force: remove each neuron, polish, compare."""
    network, polisher, held_out = planted("tanh", width=4)
    polisher, _ = with_noise(polisher, held_out, 1e-2, "tanh")
    losses = []
    for neuron in range(4):
        removal = Removal(0, np.array([neuron]), 0.0)
        losses.append(polisher.polish(without_neurons(network, polisher, removal), 1000)[1])
    smaller, loss = cheapest_removal(network, 0.0, polisher)
    assert smaller.widths == (3,)
    assert_allclose(loss, min(losses), rtol=1e-2)


def test_networks_of_single_neurons_lose_none():
    network, polisher, _ = planted_deep("tanh", (3, 1, 1, 1), n_rows=200)
    assert cheapest_removal(network, 0.0, polisher) is None
    assert list(pruning_path(network, 0.0, polisher, ExactCap(0.0, 0.0, DEFAULTS))) == [
        (network, 0.0)
    ]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_neurons_without_a_kink_in_the_data_are_removed_first(sign):
    """Always active, a ReLU neuron is a linear function that the skip term holds as well."""
    network, polisher, _ = planted("relu")
    kinkless = sign * np.array([0.1, -0.2, 0.1, 5.0])
    hidden, readout = network.layers
    spare = Network((np.vstack([hidden, kinkless]), np.insert(readout, 3, 2.0, axis=1)))
    candidates = removal_candidates(with_skip(spare), 1e-12, polisher, 0, 1)
    assert candidates[0].neurons.tolist() == [3]
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


def test_a_large_exact_network_loses_its_spare_neurons_before_it_is_judged():
    """They cost little only once it is exact; a certificate takes longer than a removal."""
    network, polisher, _ = planted("tanh", width=3)
    polisher = Polisher(
        polisher.samples, polisher.samples, "tanh", "cpu", False, settings=ALL_LARGE
    )
    start, loss = polisher.polish(with_duplicates(network, noise=0.1), 3)
    judged = []

    def is_final(network, loss):
        judged.append(network.widths)
        return True

    cap = ExactCap(loss, 0.0, ALL_LARGE)
    *_, (smallest, _) = pruning_path(start, loss, polisher, cap, is_final)
    assert smallest.widths == network.widths
    assert judged == [network.widths]
