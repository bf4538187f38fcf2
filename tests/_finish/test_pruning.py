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
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._finish.caps import ExactCap, NoiseCap
from sklearn_ec._finish.pruning import _next_part, cheapest_removal, prune, pruning_path
from sklearn_ec._finish.removals import (
    Removal,
    _preactivations,
    _reader_weights,
    cheap_loss_of,
    removal_candidates,
    without_neurons,
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


def test_what_is_clearly_to_spare_near_zero_depends_on_what_takes_long():
    """Of networks whose certificates take long it is more, but none of it far from zero."""
    for settings, expected in (
        (ALL_LARGE, [1e-7, 1e-8, 1e-8]),
        (settings_with(verdict={"max_dense_parameters": 0}), [1e-5, 1e-8, 1e-8]),
        (DEFAULTS, [1e-5, 1e-6, 1e-24]),
    ):
        network, polisher, _ = planted("tanh", settings=settings)
        costs = [cheap_loss_of(network, loss, polisher) for loss in (1e-7, 1e-13, 1e-30)]
        assert_allclose(costs, expected)
    deep, polisher, _ = planted_deep("tanh")
    for limit, expected in ((0, 1e-7), (1000, 1e-5)):
        settings = settings_with(verdict={"max_dense_parameters": limit})
        judge = Polisher(
            polisher.samples, polisher.samples, "tanh", "cpu", False, settings=settings
        )
        assert_allclose(cheap_loss_of(deep, 1e-7, judge), expected)


def test_large_networks_are_asked_for_spare_neurons_on_their_way_to_zero():
    """Small ones go there in one polish, and large ones below the loss of exact networks."""
    for settings, expected in ((ALL_LARGE, [1e-12, 0.0]), (DEFAULTS, [0.0, 0.0])):
        network, polisher, _ = planted("tanh", settings=settings)
        assert not polisher.has_weak_inputs
        enough = [_next_part(network, loss, polisher) for loss in (1e-7, 1e-16)]
        assert_allclose(enough, expected)


def kept_off():
    """A deep ReLU network, whose last neuron of the first layer keeps one of the second off.

    It is on only where that one is off anyway. Also a polisher on its rows.
    """
    rng = np.random.default_rng(0)
    first = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.1], [-1.0, 0.0, 0.0]])
    second = np.array([[1.0, -1.0, -0.7, -0.2], [0.5, 1.0, 0.0, -0.3]])
    network = Network((first, second, np.array([[1.0, -0.8, 0.1]])))
    X = rng.uniform(-2, 2, size=(500, 2))
    y = network_outputs(network, X, get_activation("relu"))
    samples = Samples.of(X, y, np.ones(500))
    return network, Polisher(samples, samples, "relu", "cpu", has_skip=False)


def test_a_neuron_that_only_keeps_others_off_goes_without_a_trace():
    network, polisher = kept_off()
    smaller = without_neurons(network, polisher, Removal(0, np.array([2]), 0.0))
    assert smaller.widths == (2, 2)
    assert polisher.losses([layer[None] for layer in smaller.layers])[0] < 1e-28


def test_rows_count_for_a_reader_as_much_as_it_changes_the_outputs_there():
    network, polisher = kept_off()
    _, weights, _ = _reader_weights(network, polisher, 0)
    assert _reader_weights(network, polisher, 1) == []
    z = _preactivations(network, 1, polisher.samples, polisher.activation)
    least = DEFAULTS.prune.least_row_weight * ((z > 0) * [1.0, 0.64]).mean(axis=0)
    assert_allclose(weights, (z > 0) * [1.0, 0.64] + least)
    dead = Network((*network.layers[:-1], np.array([[0.0, -0.8, 0.1]])))
    smaller = without_neurons(dead, polisher, Removal(0, np.array([0]), 0.0))
    assert smaller.is_finite
