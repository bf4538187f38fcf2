"""Incoming vectors in one basis, agreement, and the collapse of clusters."""

import numpy as np
import pytest

from builders import (
    disguise,
    flip_into_skip,
    random_masks,
    random_network,
    samples_of,
    with_duplicates,
)
from sklearn_ec._cluster.common_basis import (
    collapse,
    count_agreeing,
    incoming_vectors,
    on_collapsed,
)
from sklearn_ec._cluster.cuts import Cluster
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network
from sklearn_ec._core.signs import (
    with_skip,
)

NAMES = sorted(ACTIVATIONS)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_incoming_vectors_are_those_of_the_voters(name):
    rng = np.random.default_rng(0)
    activation = ACTIVATIONS[name]
    networks = [random_network(rng, 3, 4, 1) for _ in range(2)]
    networks[1].layers[0][1] = 0.0
    narrower = Network((networks[1].layers[0][:2], networks[1].layers[1][:, 1:]))
    voters = {1: networks[0], 2: narrower}  # a pruned student is narrower
    samples = samples_of(networks[0], activation, rng)
    vectors, owners, neurons = incoming_vectors(voters, [], samples, activation, False)
    assert owners.tolist() == [1, 1, 1, 2, 2]
    assert neurons.tolist() == [0, 1, 2, 0, 1]
    expected = np.vstack([networks[0].layers[0], narrower.layers[0]])
    if activation.homogeneous:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True).clip(1e-300)
    np.testing.assert_allclose(vectors, expected, rtol=1e-15)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("widths", [(4, 3), (4, 3, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_incoming_vectors_above_the_first_layer_have_one_basis(name, widths):
    """Equivalent networks, with other orders, signs and scales in all layers."""
    rng = np.random.default_rng(16)
    activation = ACTIVATIONS[name]
    network = random_network(rng, widths, 3, 1)
    samples = samples_of(network, activation, rng, 500)
    other, orders = disguise(rng, network, activation)
    voters = {3: network, 5: other}
    if activation.has_linear_flip:
        voters[6] = flip_into_skip(other, activation, random_masks(rng, other))
    for depth in range(1, len(widths)):
        lower, width = network.layers[:depth], widths[depth]
        if activation.has_linear_flip:
            lower = with_skip(network).layers[:depth]
        vectors, owners, neurons = incoming_vectors(
            voters, lower, samples, activation, activation.has_linear_flip
        )
        assert owners.tolist() == np.repeat(list(voters), width).tolist()
        assert neurons.tolist() == list(range(width)) * len(voters)
        expected = network.layers[depth]
        if activation.has_linear_flip:  # no skip terms: these networks need none
            skips = np.zeros((width, sum(network.levels[:depth])))
            expected = np.hstack([expected[:, :-1], skips, expected[:, -1:]])
        if activation.homogeneous:
            expected = unit(expected)
        first, *others = np.split(vectors, len(voters))
        np.testing.assert_allclose(first, expected, rtol=0, atol=1e-8)
        for found in others:
            same = expected[orders[depth]]
            signs = np.sign((found * same).sum(axis=1, keepdims=True))
            if not activation.has_sign_flip:
                assert (signs > 0).all()
            np.testing.assert_allclose(signs * found, same, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["tanh", "relu", "g"])
def test_neurons_that_the_layers_below_do_not_explain_are_dropped(name):
    """A neuron of the second layer that reads a neuron which none of the clusters holds."""
    rng = np.random.default_rng(17)
    activation = ACTIVATIONS[name]
    network = random_network(rng, (4, 3), 3, 1)
    samples = samples_of(network, activation, rng, 500)
    first, second, readout = network.layers
    spare = np.vstack([first, [1.0, -1.0, 1.0, 0.0]])
    junk = np.append(rng.normal(size=4), [2.0, 0.0])
    reading = np.insert(second, 4, 0.0, axis=1)
    reading = np.vstack([reading[:1], junk, reading[1:]])
    voter = Network((spare, reading, np.insert(readout, 1, 0.5, axis=1)))
    lower = with_skip(network).layers[:1] if activation.has_linear_flip else [first]
    vectors, owners, neurons = incoming_vectors(
        {0: network, 1: voter}, lower, samples, activation, activation.has_linear_flip
    )
    assert owners.tolist() == [0, 0, 0, 1, 1, 1]
    assert neurons.tolist() == [0, 1, 2, 0, 2, 3]
    np.testing.assert_allclose(vectors[3:], vectors[:3], rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_lower", [1, 2])
@pytest.mark.parametrize("name", ["tanh", "relu", "softplus", "g"])
def test_a_wide_network_on_collapsed_layers_computes_the_same(name, n_lower):
    """Also where the collapsed neurons have other signs, which skip terms make up for."""
    rng = np.random.default_rng(5)
    activation = ACTIVATIONS[name]
    network = random_network(rng, (3, 4, 2), 3, 2)
    samples = samples_of(network, activation, rng, 500)
    has_skip = activation.has_linear_flip
    lower = list((with_skip(network) if has_skip else network).layers[:n_lower])
    if activation.has_sign_flip or has_skip:
        lower[-1] = -lower[-1]
    replaced = on_collapsed(with_duplicates(network), lower, samples, activation, has_skip)
    assert replaced.widths == network.widths[:n_lower] + tuple(
        2 * width for width in network.widths[n_lower:]
    )
    assert replaced.has_skip == has_skip
    outputs = network_outputs(replaced, samples.X, activation)
    np.testing.assert_allclose(outputs, samples.y, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "n_agreeing"), [("g", 1), ("tanh", 2), ("relu", 2)])
def test_agreement_counts_the_voters_that_hold_every_neuron(name, n_agreeing):
    rng = np.random.default_rng(0)
    activation = ACTIVATIONS[name]
    network = random_network(rng, 3, 2, 1)
    hidden = network.layers[0]
    same = np.vstack([rng.normal(size=(2, 3)), hidden[::-1]])
    flipped = hidden * [[1.0], [-1.0], [1.0]]
    incomplete = np.vstack([hidden[:2], rng.normal(size=(4, 3))])
    turned = hidden + 0.1 * rng.normal(size=(3, 3))
    voters = [
        Network((layer, np.ones((1, len(layer) + 1))))
        for layer in (same, flipped, incomplete, turned)
    ]
    samples = samples_of(network, activation, rng)
    assert count_agreeing(network, voters, samples, activation) == n_agreeing


@pytest.mark.parametrize("widths", [(4, 3), (4, 3, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_agreement_takes_all_hidden_layers(name, widths):
    rng = np.random.default_rng(18)
    activation = ACTIVATIONS[name]
    network = random_network(rng, widths, 3, 1)
    samples = samples_of(network, activation, rng, 500)
    same, _ = disguise(rng, network, activation)
    if activation.has_linear_flip:
        same = flip_into_skip(same, activation, random_masks(rng, same))
    assert count_agreeing(network, [network, same], samples, activation) == 2
    for depth in range(len(widths)):
        lacking, turned = list(network.layers), list(network.layers)
        lacking[depth] = lacking[depth][1:]
        lacking[depth + 1] = lacking[depth + 1][:, 1:]
        turned[depth] = turned[depth] + 0.1 * rng.normal(size=turned[depth].shape)
        voters = [Network(tuple(layers)) for layers in (lacking, turned)]
        assert count_agreeing(network, voters, samples, activation) == 0


def test_collapse_takes_the_member_of_the_best_student():
    vectors = np.arange(16.0).reshape(8, 2)
    students = np.array([0, 0, 1, 1, 3, 3, 4, 4])
    losses = np.array([1e-3, 1e-9, np.nan, 1e-30, 1e-5])

    def cluster(leaves, status):
        return Cluster(np.array(leaves), 0.0, 9.0, 2, 0.0, status)

    clusters = [
        cluster([1, 2, 6], "kept"),
        cluster([3, 4], "small"),
        cluster([0, 5, 7], "kept"),
        cluster([0, 7], "unaligned"),
    ]
    np.testing.assert_array_equal(collapse(clusters, vectors, students, losses), vectors[[2, 5]])
    assert collapse(clusters[1:2], vectors, students, losses).shape == (0, 2)
