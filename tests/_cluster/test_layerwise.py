"""The clustering of all layers, on students that are known networks in disguise."""

from dataclasses import replace

import numpy as np
import pytest

from builders import disguise, random_network, samples_of
from sklearn_ec._cluster.layerwise import Thresholds, Voters, cluster_layers
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.distances import unit_rows
from sklearn_ec._core.forward import network_outputs, solve_readout
from sklearn_ec._core.records import Network, Samples


def voters_of(networks, samples, activation):
    """The students with these networks, the first of which is the best."""
    losses = np.linspace(1e-24, 1e-22, len(networks))
    return Voters(
        dict(enumerate(networks)), losses, samples, activation, activation.has_linear_flip, "cpu"
    )


@pytest.mark.parametrize("name", ["tanh", "relu", "g"])
def test_clustering_all_layers_finds_the_network_that_the_students_share(name):
    rng, activation = np.random.default_rng(7), ACTIVATIONS[name]
    network = random_network(rng, (4, 3), 3, 1)
    samples = samples_of(network, activation, rng, 200)
    disguised = [disguise(rng, network, activation)[0] for _ in range(6)]
    voters = voters_of(disguised, samples, activation)
    layers = cluster_layers(voters, 2, Thresholds(0.5, 0.5, "local"))
    assert [len(collapsed) for collapsed in layers.collapsed] == [4, 3]
    assert [record.linkage.shape for record in layers.dendrograms] == [(23, 4), (17, 4)]
    assert [(entry["layer"], entry["status"]) for entry in layers.report] == (
        [(0, "kept")] * 4 + [(1, "kept")] * 3
    )
    solved = solve_readout(layers.collapsed, samples, activation, activation.has_linear_flip)
    outputs = network_outputs(solved, samples.X, activation)
    np.testing.assert_allclose(outputs, samples.y, rtol=0, atol=1e-9)


def test_clustering_ends_with_the_layer_that_students_do_not_share():
    rng, activation = np.random.default_rng(8), ACTIVATIONS["tanh"]
    shared, others = random_network(rng, (4, 3), 3, 1), []
    for _ in range(6):
        other = random_network(rng, (4, 3), 3, 1)
        others.append(Network((shared.layers[0], *other.layers[1:])))
    voters = voters_of(others, samples_of(shared, activation, rng), activation)
    layers = cluster_layers(voters, 2, Thresholds(0.5, 0.1, "local"))
    assert len(layers.collapsed) == 1
    assert len(layers.dendrograms) == 2
    assert {entry["status"] for entry in layers.report if entry["layer"] == 1} != {"kept"}


@pytest.mark.parametrize("name", ["tanh", "relu"])
@pytest.mark.parametrize("has_weak_inputs", [True, False])
def test_neurons_are_compared_by_what_they_do_where_few_rows_tell(name, has_weak_inputs):
    """Weights of a column that is lit in a single row differ from student to student."""
    rng, activation = np.random.default_rng(10), ACTIVATIONS[name]
    network, students = random_network(rng, (4,), 3, 1), []
    X = rng.normal(size=(3000, 3))
    X[:, 2] = 0.0
    X[0, 2] = 1.0
    samples = Samples.of(X, network_outputs(network, X, activation), np.ones(3000))
    for _ in range(5):
        hidden, readout = (layer.copy() for layer in network.layers)
        hidden[:, 2] = 1.5 * rng.normal(size=4)
        students.append(disguise(rng, Network((hidden, readout)), activation)[0])
    voters = replace(voters_of(students, samples, activation), has_weak_inputs=has_weak_inputs)
    layers = cluster_layers(voters, 1, Thresholds(1.0, 0.2, "local"))
    found = layers.collapsed[0] if layers.collapsed else []
    assert (len(found) == 4) == has_weak_inputs
    if has_weak_inputs:  # each is a student's neuron, as it is
        cosines = unit_rows(found[:, [0, 1, 3]]) @ unit_rows(network.layers[0][:, [0, 1, 3]]).T
        np.testing.assert_allclose(np.abs(cosines).max(axis=0), 1.0, atol=1e-9)


def test_a_certified_network_is_the_basis_of_the_clustering():
    """And all layers are clustered, though its students share no neuron of the first."""
    rng, activation = np.random.default_rng(9), ACTIVATIONS["g"]
    network = random_network(rng, (4, 3), 3, 1)
    samples = samples_of(network, activation, rng)
    others = [random_network(rng, (4, 3), 3, 1) for _ in range(2)]
    voters = voters_of([network, *others], samples, activation)
    layers = cluster_layers(voters, 2, Thresholds(1.0, 0.1, "local"), certified=network)
    assert [len(collapsed) for collapsed in layers.collapsed] == [0, 0]
    second = layers.dendrograms[1]
    own = second.vectors[second.students == 0]
    np.testing.assert_allclose(own, network.layers[1], rtol=0, atol=1e-9)
