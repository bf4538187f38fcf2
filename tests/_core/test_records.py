"""The layout of a network's layers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._expand.students import layer_shapes
from sklearn_ec._solvers.task import task_of

SIZES = [(3, 5, 1), (3, 5, 4, 2), (2, 5, 4, 3, 1)]


def network_of(sizes, has_skip):
    shapes = layer_shapes(sizes[0], sizes[1:-1], sizes[-1], has_skip)
    return Network(tuple(np.ones(shape) for shape in shapes))


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_of_a_network(sizes, has_skip):
    network = network_of(sizes, has_skip)
    assert network.widths == sizes[1:-1]
    assert network.levels == sizes[:-1]
    assert network.has_skip == has_skip
    n_parameters = 0
    for depth in range(1, len(sizes)):
        n_read = sum(sizes[:depth]) if has_skip else sizes[depth - 1]
        n_parameters += sizes[depth] * (n_read + 1)
    assert network.n_parameters == n_parameters


@pytest.mark.parametrize("sizes", SIZES)
def test_columns_of_nearer_levels_come_first_and_the_bias_last(sizes):
    network = network_of(sizes, has_skip=True)
    for layer, weights in enumerate(network.layers):
        names = np.concatenate([np.full(sizes[level], level) for level in range(layer, -1, -1)])
        assert weights.shape == (sizes[layer + 1], len(names) + 1)
        for level in range(layer + 1):
            columns = np.r_[network.columns(layer, level)]
            np.testing.assert_array_equal(columns, np.flatnonzero(names == level))


@pytest.mark.parametrize("sizes", SIZES)
def test_columns_of_the_layer_below_are_the_same_without_skip_terms(sizes):
    network = network_of(sizes, has_skip=False)
    for layer, weights in enumerate(network.layers):
        assert network.columns(layer, layer) == slice(0, weights.shape[1] - 1)


def test_skip_terms_are_seen_without_inputs():
    """Of inputs that are all constant, the skip terms have no column."""
    assert not network_of((0, 3, 1), has_skip=True).has_skip
    assert network_of((0, 3, 2, 1), has_skip=True).has_skip


def test_inputs_are_held_once():
    """Beside X, of which there is no further copy, there is the column that biases read."""
    X = np.arange(6.0).reshape(3, 2)
    samples = Samples.of(X, X[:, :1], np.ones(3))
    assert_array_equal(samples.X, X)
    task = task_of(samples, get_activation("tanh"), "cpu")
    assert_array_equal(task.inputs, np.column_stack([X, np.ones(3)]))
    assert np.shares_memory(samples.X, task.inputs.numpy())


def test_read_only_inputs_are_copied():
    """Tensors cannot be read-only, as arrays of worker processes are."""
    samples = Samples.of(np.ones((3, 2)), np.ones((3, 1)), np.ones(3))
    samples.inputs.flags.writeable = False
    task = task_of(samples, get_activation("tanh"), "cpu")
    assert_array_equal(task.inputs, samples.inputs)
    assert not np.shares_memory(samples.inputs, task.inputs.numpy())


def test_rows_are_drawn_by_their_chances():
    samples = Samples.of(np.arange(100.0)[:, None], np.zeros((100, 2)), np.ones(100))
    chances = np.where(np.arange(100) % 10 == 0, 1.0, 1e-9)
    few = samples.thinned(20, seed=0, chances=chances)
    assert_array_equal(few.X[:, 0], np.arange(0, 100, 10))
    assert samples.thinned(200, seed=0, chances=chances) is samples


def test_joined_rows_come_one_behind_the_other():
    parts = [Samples.of(np.full((n, 2), n), np.full((n, 1), -n), np.full(n, 1.0)) for n in (2, 3)]
    joined = parts[0].joined(parts[1])
    assert_array_equal(joined.X, [[2, 2]] * 2 + [[3, 3]] * 3)
    assert_array_equal(joined.y.ravel(), [-2, -2, -3, -3, -3])
    assert_array_equal(joined.sample_weight, np.ones(5))


@pytest.mark.parametrize("has_skip", [False, True])
def test_neurons_that_nothing_reads_go(has_skip):
    rng = np.random.default_rng(0)
    shapes = layer_shapes(3, (4, 5), 2, has_skip)
    layers = [rng.normal(size=shape) for shape in shapes]
    network = Network(tuple(layers))
    for level, neuron in [(1, 2), (2, 0), (2, 4)]:
        for reader in range(level, len(layers) if has_skip else level + 1):
            layers[reader][:, network.columns(reader, level)][:, neuron] = 0.0
    X = rng.normal(size=(20, 3))
    activation = get_activation("tanh")
    smaller = network.without_unread()
    assert smaller.widths == (3, 3)
    assert smaller.has_skip == has_skip
    outputs = network_outputs(network, X, activation)
    assert_allclose(network_outputs(smaller, X, activation), outputs, rtol=1e-12)
    assert smaller.without_unread().widths == (3, 3)


def test_neurons_that_only_unread_ones_read_go_too():
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=shape) for shape in layer_shapes(3, (4, 2), 1, False)]
    layers[2][:, 1] = 0.0
    layers[1][0, :2] = 0.0  # the second neuron above is the only one that reads these
    assert Network(tuple(layers)).without_unread().widths == (2, 1)


def test_a_constant_network_keeps_its_neurons():
    network = Network((np.ones((2, 3)), np.zeros((1, 3))))
    assert network.without_unread().widths == (2,)


def test_networks_without_finite_weights_are_seen():
    layers = np.ones((2, 3)), np.ones((1, 3))
    assert Network(layers).is_finite
    layers[0][1, 1] = np.nan
    assert not Network(layers).is_finite
