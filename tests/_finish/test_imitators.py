"""Neurons that imitate one neuron together, and the networks with that one in their place."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from builders import ALL_LARGE
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._finish import pruning
from sklearn_ec._finish.imitators import (
    merged_network,
    parallel_sets,
    unexplained_share,
    without_copies,
)
from sklearn_ec._finish.pruning import prune
from sklearn_ec._solvers.jacobian import stacked

N_ROWS, N_INPUTS = 500, 4
MAX_ANGLE = 0.03


def polisher_of(network, name, settings=DEFAULTS):
    rng, activation = np.random.default_rng(1), get_activation(name)
    X = rng.normal(size=(N_ROWS, N_INPUTS))
    samples = Samples.of(X, network_outputs(network, X, activation), rng.uniform(0.5, 1.5, N_ROWS))
    held_out, has_skip = samples.take(np.arange(50)), activation.has_linear_flip
    return Polisher(samples, held_out, name, "cpu", has_skip, settings=settings)


def random_network(width=3, n_outputs=3):
    rng = np.random.default_rng(0)
    readout = rng.normal(size=(n_outputs, width + 1))
    return Network((rng.normal(size=(width, N_INPUTS + 1)), readout))


def with_imitators(network, polisher, n_imitators=5):
    """The last neuron replaced by several that do about the same together."""
    rng = np.random.default_rng(2)
    hidden, readout = network.layers
    activation, X = polisher.activation, polisher.samples.X
    imitators = hidden[-1] + rng.normal(size=(n_imitators, hidden.shape[1]))
    last = Network((hidden[-1:], np.array([[1.0, 0.0]])))
    samples = Samples.of(X, network_outputs(last, X, activation), polisher.samples.sample_weight)
    shares = solve_readout([imitators], samples, activation, False).layers[1]
    outgoing, bias = readout[:, :-1], readout[:, -1:]
    imitating = outgoing[:, -1:] * shares[:, :-1]
    bias = bias + outgoing[:, -1:] * shares[:, -1:]
    return Network(
        (np.vstack([hidden[:-1], imitators]), np.hstack([outgoing[:, :-1], imitating, bias]))
    )


def loss_of(network, polisher):
    return float(polisher.task.losses(stacked(network, "cpu"))[0])


def test_parallel_and_opposite_vectors_are_grouped():
    a, b, nearly_b = np.eye(3)[0], np.eye(3)[1], np.array([0.5 * MAX_ANGLE, 1.0, 0.0])
    beyond_b = np.array([3 * MAX_ANGLE, 1.0, 0.0])
    zero = np.zeros(3)
    outgoing = np.column_stack([a, b, -2 * a, zero, 0.1 * nearly_b, beyond_b, zero])
    groups = parallel_sets(outgoing, MAX_ANGLE)
    assert [list(group) for group in groups] == [[0, 2], [1, 4], [3], [5], [6]]


@pytest.mark.parametrize("name", ["tanh", "relu", "softplus", "g"])
def test_one_neuron_takes_the_place_of_its_imitators(name):
    network = random_network()
    polisher = polisher_of(network, name)
    imitation = with_imitators(network, polisher)
    if polisher.has_skip:
        imitation = with_skip(imitation)
    assert loss_of(imitation, polisher) > 1e-6
    merged = merged_network(imitation, polisher)
    assert merged.widths == network.widths
    assert merged.has_skip == polisher.has_skip
    assert_array_equal(merged.layers[0][:2], network.layers[0][:2])
    _, loss = polisher.polish(merged, 200)
    assert loss < 1e-20


def with_idle_pair(network):
    """Two more neurons with parallel outgoing weights, switched off in all rows."""
    hidden, readout = network.layers
    idle = np.zeros((2, hidden.shape[1]))
    idle[:, -1] = -100.0
    outgoing = np.outer(np.arange(len(readout)), [1.0, -0.5])
    return Network((np.vstack([idle, hidden]), np.hstack([outgoing, readout])))


def test_idle_neurons_imitate_none_and_become_one_beside_those_that_do():
    network = random_network()
    polisher = polisher_of(network, "relu")
    assert merged_network(with_idle_pair(network), polisher) is None
    merged = merged_network(with_idle_pair(with_imitators(network, polisher)), polisher)
    assert merged.widths == (4,)
    assert merged.is_finite


def test_copies_and_traces_are_left_to_pruning():
    network = random_network()
    hidden, readout = network.layers
    split = readout[:, :3] * np.array([0.3, 0.5, 0.8])
    copied = Network(
        (
            np.vstack([hidden, hidden, hidden + 1.0]),
            np.hstack([split, readout[:, :3] - split, 1e-3 * readout[:, :3], readout[:, 3:]]),
        )
    )
    groups = parallel_sets(copied.layers[1][:, :9], MAX_ANGLE)
    assert [len(group) for group in groups] == [3, 3, 3]
    assert merged_network(copied, polisher_of(network, "tanh")) is None


def test_what_the_strongest_neuron_leaves_unexplained():
    first, second = np.array([[1.0, -1, 0, 0], [0, 0, 1.0, -1]])
    assert_allclose(unexplained_share(np.column_stack([first, 2 * first])), 0.0, atol=1e-15)
    assert_allclose(unexplained_share(np.column_stack([first, 2 * second])), 0.2)


def test_neurons_of_different_directions_stay():
    network = random_network()
    assert merged_network(network, polisher_of(network, "tanh")) is None


def test_a_single_output_tells_no_neurons_apart():
    network = random_network(n_outputs=1)
    assert merged_network(network, polisher_of(network, "tanh")) is None


@pytest.mark.parametrize("name", ["tanh", "relu", "g"])
def test_large_networks_are_merged_before_they_are_pruned(name, monkeypatch):
    network = random_network()
    polisher = polisher_of(network, name, ALL_LARGE)
    imitation = with_imitators(network, polisher)
    merged, tried = [], []
    for target, calls in ((pruning.merged_network, merged), (pruning.without_neurons, tried)):
        monkeypatch.setattr(pruning, target.__name__, recorded(target, calls))
    pruned, loss = prune(imitation, loss_of(imitation, polisher), polisher)
    assert pruned.widths == network.widths
    assert loss < 1e-20
    assert len(merged) == 1
    assert all(before.widths == network.widths for before, *_ in tried)


def recorded(function, calls):
    def record(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return record


def test_different_neurons_with_parallel_outgoing_weights_survive():
    network = random_network()
    network.layers[1][:, 2] = -2.0 * network.layers[1][:, 1]
    polisher = polisher_of(network, "tanh", ALL_LARGE)
    noise = 1e-6 * np.random.default_rng(3).normal(size=network.layers[0].shape)
    start = Network((network.layers[0] + noise, network.layers[1]))
    assert merged_network(start, polisher).widths == (2,)
    pruned, loss = prune(start, loss_of(start, polisher), polisher)
    assert pruned.widths == (3,)
    assert loss < 1e-20
    assert_allclose(pruned.layers[0], network.layers[0], atol=1e-9)


# Copies


def with_copies(network, angle, seed=3):
    """The last neuron twice, at an angle, each with half of its outgoing weights."""
    rng = np.random.default_rng(seed)
    hidden, readout = network.layers
    side = rng.normal(size=hidden.shape[1])
    side -= hidden[-1] * (side @ hidden[-1]) / (hidden[-1] @ hidden[-1])
    turned = hidden[-1] + np.tan(angle) * np.linalg.norm(hidden[-1]) * side / np.linalg.norm(side)
    outgoing, bias = readout[:, :-1].copy(), readout[:, -1:]
    outgoing[:, -1] *= 0.5
    return Network((np.vstack([hidden, turned]), np.hstack([outgoing, outgoing[:, -1:], bias])))


def test_of_near_copies_one_stays():
    teacher = random_network(width=3, n_outputs=1)
    polisher = polisher_of(teacher, "tanh")
    network = with_copies(teacher, 0.1)
    fewer = without_copies(network, polisher)
    assert fewer.widths == (3,)
    assert_array_equal(fewer.layers[0][:2], teacher.layers[0][:2])
    assert loss_of(fewer, polisher) < 100 * loss_of(network, polisher)


def test_opposite_neurons_are_copies_where_the_activation_is_odd():
    teacher = random_network(width=3, n_outputs=1)
    for name, n_left in (("tanh", 3), ("g", 4)):
        network = with_copies(teacher, 0.1)
        network.layers[0][-1] *= -1
        network.layers[1][:, -2] *= -1
        assert without_copies(network, polisher_of(teacher, name)).widths == (n_left,)


def test_neurons_that_do_more_than_copies_stay():
    network = with_copies(random_network(width=3, n_outputs=1), 0.2)
    polisher = polisher_of(network, "tanh")  # it is exact with both
    assert without_copies(network, polisher) is network
    different = random_network(width=3, n_outputs=1)
    assert without_copies(different, polisher) is different
