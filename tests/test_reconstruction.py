import itertools

import numpy as np
import pytest

from sklearn_ec._cluster.common_basis import collapse, count_agreeing, incoming_vectors
from sklearn_ec._cluster.cuts import Cluster
from sklearn_ec._cluster.layerwise import Thresholds, Voters, cluster_layers
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.canonical import canonical_form
from sklearn_ec._core.forward import network_outputs, read_features, solve_layer, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.signs import (
    MAX_ENUMERATED_NEURONS,
    closest_subset,
    linear_pairs,
    resolve_signs,
    with_skip,
)
from sklearn_ec._expand.students import layer_shapes

NAMES = sorted(ACTIVATIONS)
EVEN_LINEAR = ["gelu", "leaky_relu", "relu", "silu", "softplus"]


DEPTHS = [(4, 3), (3, 5), (4, 3, 2), (2, 3, 4)]


def random_network(rng, widths, n_inputs, n_outputs, has_skip=False):
    shapes = layer_shapes(n_inputs, np.atleast_1d(widths).tolist(), n_outputs, has_skip)
    return Network(tuple(rng.normal(size=shape) for shape in shapes))


def evaluate(network, activation, X):
    """Outputs in plain numpy, with skip terms where a layer has columns for them."""
    ones, levels = np.ones((len(X), 1)), X  # nearer levels in front
    for layer in network.layers:
        z = np.hstack([levels[:, : layer.shape[1] - 1], ones]) @ layer.T
        levels = np.hstack([activation.function(z), levels])
    return z


def flip_into_skip(network, activation, flipped):
    """The same function with flipped neurons, the linear remainder in skip terms.

    ``flipped`` holds a mask per hidden layer. By ``s(z) = s(-z) + c z`` the activations of the
    ordinary network are linear in the constant and the activations of the flipped network.
    """
    layers, expressed = [], np.eye(network.layers[0].shape[1])
    for layer, mask in zip(network.layers, [*flipped, None], strict=True):
        z = layer @ expressed
        if mask is None:
            return Network((*layers, z))
        layers.append(np.where(mask[:, None], -z, z))
        expressed = np.block([[np.eye(len(z)), activation.flip * mask[:, None] * z]])
        constant = np.append(np.zeros(expressed.shape[1] - 1), 1.0)
        expressed = np.vstack([expressed, constant])
    raise AssertionError


def random_masks(rng, network):
    return [rng.random(width) < 0.5 for width in network.widths]


def disguise(rng, network, activation):
    """An equivalent network: neurons of all hidden layers permuted, turned and scaled."""
    layers, orders = [layer.copy() for layer in network.layers], []
    for depth, width in enumerate(network.widths):
        order = rng.permutation(width)
        signs, scales = np.ones(width), np.ones(width)
        if activation.symmetry == "odd":
            signs = rng.choice([-1.0, 1.0], size=width)
        if activation.homogeneous:
            scales = rng.uniform(0.1, 10.0, size=width)
        layers[depth] = (layers[depth] * (signs * scales)[:, None])[order]
        outgoing = layers[depth + 1][:, :-1]
        layers[depth + 1][:, -1] += activation.flip * outgoing[:, signs < 0].sum(axis=1)
        layers[depth + 1][:, :-1] = (outgoing * signs / scales)[:, order]
        orders.append(order)
    return Network(tuple(layers)), orders


def assert_same_function(first, second, activation, rng, atol=1e-11):
    X = 2.0 * rng.normal(size=(50, first.levels[0]))
    expected = evaluate(second, activation, X)
    atol = atol * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(evaluate(first, activation, X), expected, rtol=0, atol=atol)


def assert_same_layers(network, expected, atol=1e-13):
    for layer, same in zip(network.layers, expected.layers, strict=True):
        atol_here = atol * max(1.0, np.abs(same).max())
        np.testing.assert_allclose(layer, same, rtol=0, atol=atol_here)


def samples_of(network, activation, rng, n_samples=60):
    X = rng.normal(size=(n_samples, network.levels[0]))
    weight = rng.uniform(0.2, 3.0, size=n_samples)
    return Samples(X, evaluate(network, activation, X), weight / weight.mean())


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(4,), (4, 3), (4, 3, 2)])
def test_features_and_outputs_follow_the_layers(widths, has_skip):
    rng = np.random.default_rng(15)
    activation = ACTIVATIONS["gelu"]
    network = random_network(rng, widths, 2, 2, has_skip)
    assert network.has_skip == has_skip
    X = rng.normal(size=(20, 2))
    outputs = network_outputs(network, X, activation)
    np.testing.assert_allclose(outputs, evaluate(network, activation, X), rtol=0, atol=1e-12)
    features = read_features(network.layers[:-1], X, activation, has_skip)
    np.testing.assert_array_equal(features[:, -1], 1.0)
    if has_skip:
        np.testing.assert_array_equal(features[:, -3:-1], X)
    np.testing.assert_array_equal(features @ network.layers[-1].T, outputs)
    np.testing.assert_array_equal(read_features([], X, activation, has_skip)[:, :-1], X)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_incoming_vectors_are_those_of_the_voters(name):
    rng = np.random.default_rng(0)
    activation = ACTIVATIONS[name]
    networks = [random_network(rng, 3, 4, 1) for _ in range(2)]
    networks[1].layers[0][1] = 0.0
    narrower = Network((networks[1].layers[0][:2], networks[1].layers[1][:, 1:]))
    voters = {1: networks[0], 2: narrower}  # a pruned student is narrower
    samples = samples_of(networks[0], activation, rng)
    vectors, owners, neurons = incoming_vectors(voters, [], samples, activation)
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
        vectors, owners, neurons = incoming_vectors(voters, lower, samples, activation)
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
    vectors, owners, neurons = incoming_vectors({0: network, 1: voter}, lower, samples, activation)
    assert owners.tolist() == [0, 0, 0, 1, 1, 1]
    assert neurons.tolist() == [0, 1, 2, 0, 2, 3]
    np.testing.assert_allclose(vectors[3:], vectors[:3], rtol=0, atol=1e-9)


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


def voters_of(networks, samples, activation):
    """The students with these networks, the first of which is the best."""
    losses = np.linspace(1e-24, 1e-22, len(networks))
    return Voters(dict(enumerate(networks)), losses, samples, activation, "cpu")


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


def test_solve_layer_minimizes_the_weighted_error():
    rng = np.random.default_rng(19)
    features, targets = rng.normal(size=(40, 4)), rng.normal(size=(40, 3))
    weight = rng.uniform(0.2, 3.0, size=40)
    layer = solve_layer(features, targets, weight)
    assert layer.shape == (3, 4)
    gradient = features.T @ (weight[:, None] * (features @ layer.T - targets))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(5,), (5, 4), (5, 4, 3)])
def test_solve_readout_recovers_known_outgoing_weights(widths, has_skip):
    rng = np.random.default_rng(1)
    activation = ACTIVATIONS["softplus"]
    network = random_network(rng, widths, n_inputs=3, n_outputs=2, has_skip=has_skip)
    samples = samples_of(network, activation, rng, 60 if len(widths) == 1 else 400)
    solved = solve_readout(network.layers[:-1], samples, activation, has_skip)
    for layer, same in zip(solved.layers[:-1], network.layers[:-1], strict=True):
        np.testing.assert_array_equal(layer, same)
    atol = 1e-11 if len(widths) == 1 else 1e-9
    np.testing.assert_allclose(solved.layers[-1], network.layers[-1], rtol=0, atol=atol)


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(3,), (3, 2)])
def test_solve_readout_minimizes_the_weighted_error(widths, has_skip):
    rng = np.random.default_rng(2)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, widths, n_inputs=2, n_outputs=2, has_skip=has_skip)
    clean = samples_of(network, activation, rng)
    noise = 0.3 * rng.normal(size=clean.y.shape)
    samples = Samples(clean.X, clean.y + noise, clean.sample_weight)
    solved = solve_readout(network.layers[:-1], samples, activation, has_skip)
    # At the minimum, the weighted residuals are orthogonal to every input of the readout.
    design = read_features(network.layers[:-1], samples.X, activation, has_skip)
    residuals = evaluate(solved, activation, samples.X) - samples.y
    gradient = design.T @ (samples.sample_weight[:, None] * residuals)
    n_features = widths[-1] + 1 + has_skip * sum([2, *widths[:-1]])
    assert solved.layers[-1].shape == (2, n_features)
    assert gradient.shape == (n_features, 2)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-11)
    assert np.abs(residuals).max() > 0.1


def test_solve_readout_shares_weights_between_duplicates():
    rng = np.random.default_rng(3)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, 2, n_inputs=2, n_outputs=1)
    samples = samples_of(network, activation, rng)
    hidden, readout = network.layers
    solved = solve_readout([hidden[[0, 1, 0]]], samples, activation, has_skip=False)
    a, b, bias = readout[0]
    np.testing.assert_allclose(solved.layers[-1][0], [a / 2, b, a / 2, bias], atol=1e-11)


def test_solve_readout_tells_nearly_parallel_neurons_apart():
    """A singular value far below the largest, but above rounding, is signal."""
    rng = np.random.default_rng(14)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, 3, n_inputs=2, n_outputs=1)
    hidden, readout = network.layers
    hidden[1] = hidden[0] + 1e-8 * rng.normal(size=3)
    samples = samples_of(network, activation, rng)
    solved = solve_readout([hidden], samples, activation, has_skip=False)
    np.testing.assert_allclose(solved.layers[-1], readout, rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_skip", [False, True])
def test_solve_readout_without_hidden_neurons_fits_constant_or_line(has_skip):
    rng = np.random.default_rng(4)
    X = rng.normal(size=(30, 2))
    samples = Samples(X, X @ np.array([[2.0], [-1.0]]) + 0.5, np.ones(30))
    solved = solve_readout([np.empty((0, 3))], samples, ACTIVATIONS["relu"], has_skip)
    expected = [2.0, -1.0, 0.5] if has_skip else [samples.y.mean()]
    np.testing.assert_allclose(solved.layers[-1][0], expected, atol=1e-13)


@pytest.mark.parametrize(
    ("width", "n_inputs", "n_outputs"),
    [(1, 3, 1), (3, 4, 1), (6, 3, 3), (9, 2, 1), (12, 1, 2), (16, 2, 2)],
)
@pytest.mark.parametrize("name", EVEN_LINEAR)
def test_resolve_signs_restores_the_network(name, width, n_inputs, n_outputs):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(5)
    for _ in range(4):
        network = random_network(rng, width, n_inputs, n_outputs)
        flipped = flip_into_skip(network, activation, random_masks(rng, network))
        assert_same_function(flipped, network, activation, rng)
        resolved = resolve_signs(flipped, activation)
        assert not resolved.has_skip
        assert_same_function(resolved, network, activation, rng)
        np.testing.assert_array_equal(resolved.layers[0], network.layers[0])
        assert_same_layers(resolved, network)


@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(3, 1), (2, 2)])
@pytest.mark.parametrize("widths", DEPTHS)
@pytest.mark.parametrize("name", EVEN_LINEAR)
def test_resolve_signs_restores_deep_networks(name, widths, n_inputs, n_outputs):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(5)
    for _ in range(4):
        network = random_network(rng, widths, n_inputs, n_outputs)
        before = [layer.copy() for layer in network.layers]
        flipped = flip_into_skip(network, activation, random_masks(rng, network))
        assert flipped.has_skip
        assert_same_function(flipped, network, activation, rng)
        untouched = [layer.copy() for layer in flipped.layers]
        resolved = resolve_signs(flipped, activation)
        assert not resolved.has_skip
        np.testing.assert_array_equal(resolved.layers[0], network.layers[0])
        assert_same_layers(resolved, network, atol=1e-11)
        for layer, same in zip(network.layers + flipped.layers, before + untouched, strict=True):
            np.testing.assert_array_equal(layer, same)


def test_resolve_signs_drops_only_what_no_flip_absorbs():
    rng = np.random.default_rng(6)
    activation = ACTIVATIONS["gelu"]
    network = random_network(rng, 4, 5, 1)
    flipped = flip_into_skip(network, activation, [np.array([True, False, True, False])])
    noise = 1e-3 * rng.normal(size=(1, 5))
    hidden, readout = flipped.layers[0], flipped.layers[1].copy()
    readout[:, 4:9] += noise
    noisy = Network((hidden, readout))
    resolved = resolve_signs(noisy, activation)
    np.testing.assert_array_equal(resolved.layers[0], network.layers[0])
    X = rng.normal(size=(20, 5))
    dropped = evaluate(noisy, activation, X) - X @ noise.T
    np.testing.assert_allclose(evaluate(resolved, activation, X), dropped, atol=1e-12)


def test_resolve_signs_of_deep_networks_drops_only_what_no_flip_absorbs():
    """Small changes of the skip terms alter no flip, and the bias alone is kept."""
    rng = np.random.default_rng(20)
    activation = ACTIVATIONS["softplus"]
    network = random_network(rng, (4, 3), 5, 2)
    flipped = flip_into_skip(network, activation, random_masks(rng, network))
    layers = [layer.copy() for layer in flipped.layers]
    layers[1][:, flipped.columns(1, 0)] += 1e-6 * rng.normal(size=(3, 5))
    layers[2][:, flipped.columns(2, 0)] += 1e-6 * rng.normal(size=(2, 5))
    layers[2][:, flipped.columns(2, 1)] += 1e-6 * rng.normal(size=(2, 4))
    resolved = resolve_signs(Network(tuple(layers)), activation)
    assert not resolved.has_skip
    np.testing.assert_array_equal(resolved.layers[0], network.layers[0])
    assert_same_layers(resolved, network, atol=1e-4)


@pytest.mark.parametrize("widths", [(3,), *DEPTHS])
def test_resolve_signs_returns_networks_without_skip_term_unchanged(widths):
    network = random_network(np.random.default_rng(7), widths, 2, 1)
    assert resolve_signs(network, ACTIVATIONS["relu"]) is network


@pytest.mark.parametrize("widths", [(3,), *DEPTHS])
def test_skip_terms_of_zero_change_nothing(widths):
    rng = np.random.default_rng(7)
    activation = ACTIVATIONS["silu"]
    network = random_network(rng, widths, 2, 2)
    extended = with_skip(network)
    assert extended.has_skip
    assert extended.widths == network.widths
    assert with_skip(extended) is extended
    X = rng.normal(size=(20, 2))
    expected = evaluate(network, activation, X)
    np.testing.assert_allclose(evaluate(extended, activation, X), expected, rtol=0, atol=1e-12)
    unflipped = flip_into_skip(network, activation, [np.zeros(w, dtype=bool) for w in widths])
    assert_same_layers(extended, unflipped, atol=0.0)
    for restored in (resolve_signs(extended, activation), linear_pairs(extended, activation)):
        assert_same_layers(restored, network, atol=0.0)


@pytest.mark.parametrize("resolve", [resolve_signs, linear_pairs])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_skip_terms_of_networks_without_inputs(resolve, n_outputs):
    """All columns of the data are constant: the first layer holds biases alone."""
    rng = np.random.default_rng(21)
    activation = ACTIVATIONS["softplus"]
    network = random_network(rng, (3, 2), 0, n_outputs)
    assert_same_layers(resolve(with_skip(network), activation), network, atol=0.0)


def brute_subset(terms, target):
    masks = np.array(list(itertools.product([False, True], repeat=terms.shape[1])))
    return masks[np.argmin(np.linalg.norm(masks @ terms.T - target, axis=1))]


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 2), (1, 7), (2, 8), (3, 11), (5, 12)])
def test_closest_subset_of_dependent_columns_matches_brute_force(n_rows, n_columns):
    rng = np.random.default_rng(8)
    for _ in range(10):
        terms = rng.normal(size=(n_rows, n_columns))
        target = rng.normal(size=n_rows)
        np.testing.assert_array_equal(closest_subset(terms, target), brute_subset(terms, target))


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 1), (6, 4), (12, 9)])
def test_closest_subset_of_independent_columns_matches_brute_force(n_rows, n_columns):
    rng = np.random.default_rng(9)
    for _ in range(10):
        terms = rng.normal(size=(n_rows, n_columns))
        smallest = np.linalg.svd(terms, compute_uv=False)[-1]
        noise = rng.normal(size=n_rows)
        noise *= 0.4 * smallest / np.linalg.norm(noise)  # least squares moves by at most 0.4
        target = terms @ (rng.random(n_columns) < 0.5) + noise
        np.testing.assert_array_equal(closest_subset(terms, target), brute_subset(terms, target))


def test_closest_subset_beyond_enumeration_finds_an_extreme_solution():
    """All columns, or none, are the only solution in the unit cube where no columns cancel."""
    rng = np.random.default_rng(10)
    terms = np.abs(rng.normal(size=(3, MAX_ENUMERATED_NEURONS + 6)))
    assert closest_subset(terms, terms.sum(axis=1)).all()
    assert not closest_subset(terms, np.zeros(3)).any()


@pytest.mark.parametrize(
    ("n_inputs", "n_outputs", "rank"), [(3, 1, 1), (1, 3, 1), (4, 3, 2), (4, 3, 3), (3, 2, 0)]
)
@pytest.mark.parametrize("name", EVEN_LINEAR)
def test_linear_pairs_compute_the_same_function(name, n_inputs, n_outputs, rank):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(11)
    hidden, readout = random_network(rng, 4, n_inputs, n_outputs).layers
    skip = rng.normal(size=(n_outputs, rank)) @ rng.normal(size=(rank, n_inputs))
    network = Network((hidden, np.hstack([readout[:, :-1], skip, readout[:, -1:]])))
    paired = linear_pairs(network, activation)
    assert paired.widths == (4 + 2 * rank,)
    assert not paired.has_skip
    assert_same_function(paired, network, activation, rng)


@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(3, 1), (2, 2), (9, 1)])
@pytest.mark.parametrize("widths", DEPTHS)
@pytest.mark.parametrize("name", EVEN_LINEAR)
def test_linear_pairs_of_deep_networks_compute_the_same_function(name, widths, n_inputs, n_outputs):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(11)
    network = random_network(rng, widths, n_inputs, n_outputs, has_skip=True)
    before = [layer.copy() for layer in network.layers]
    paired = linear_pairs(network, activation)
    assert not paired.has_skip
    assert_same_function(paired, network, activation, rng)
    for layer, same in zip(network.layers, before, strict=True):
        np.testing.assert_array_equal(layer, same)
    # Two neurons per rank of what bypasses a layer. A pair below is a single linear function.
    n_functions, expected = n_inputs, []
    for depth, width in enumerate(widths):
        n_readers = sum(widths[depth + 1 :]) + n_outputs
        rank = min(n_functions, n_readers)
        expected.append(width + 2 * rank)
        n_functions = width + rank
    assert paired.widths == tuple(expected)


def canonical(network, activation):
    weights = [layer[:, :-1].T for layer in network.layers]
    return canonical_form(weights, [layer[:, -1] for layer in network.layers], activation)


def as_network(weights, biases):
    pairs = zip(weights, biases, strict=True)
    return Network(tuple(np.hstack([w.T, b[:, None]]) for w, b in pairs))


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("widths", [(6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_canonical_form_keeps_the_function_and_fixes_order_sign_and_scale(name, widths, n_outputs):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(12)
    network = random_network(rng, widths, 3, n_outputs)
    before = [layer.copy() for layer in network.layers]
    weights, biases = canonical(network, activation)
    form = as_network(weights, biases)
    assert_same_function(form, network, activation, rng)
    for layer, same in zip(network.layers, before, strict=True):
        np.testing.assert_array_equal(layer, same)

    for depth, width in enumerate(widths):
        outgoing = weights[depth + 1]
        sizes = np.linalg.norm(outgoing, axis=1)
        assert np.all(np.diff(sizes) <= 1e-14 * sizes[:-1])
        if activation.homogeneous:
            lengths = np.linalg.norm(form.layers[depth], axis=1)
            np.testing.assert_allclose(lengths, 1.0, rtol=1e-14)
        if activation.symmetry == "odd":
            largest = np.argmax(np.abs(outgoing), axis=1)
            assert np.all(outgoing[np.arange(width), largest] > 0)


@pytest.mark.parametrize("widths", [(5,), (5, 4), (5, 4, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_canonical_form_is_the_same_for_equivalent_networks(name, widths):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(13)
    network = random_network(rng, widths, 3, 2)
    equivalent, _ = disguise(rng, network, activation)
    assert_same_function(equivalent, network, activation, rng)
    expected, form = canonical(network, activation), canonical(equivalent, activation)
    for actual, desired in zip(form[0] + form[1], expected[0] + expected[1], strict=True):
        atol = 1e-13 * max(1.0, np.abs(desired).max())
        np.testing.assert_allclose(actual, desired, rtol=0, atol=atol)


def test_canonical_form_without_neurons_or_with_dead_ones():
    weights, biases = canonical_form(
        [np.empty((3, 0)), np.empty((0, 2))],
        [np.empty(0), np.array([1.0, 2.0])],
        ACTIVATIONS["tanh"],
    )
    assert weights[0].shape == (3, 0)
    np.testing.assert_array_equal(biases[1], [1.0, 2.0])
    dead = Network((np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[5.0, 1.0, 0.0]])))
    weights, biases = canonical(dead, ACTIVATIONS["relu"])
    np.testing.assert_allclose(weights[0], [[0.0, 0.6]])
    np.testing.assert_allclose(weights[1], [[5.0], [5.0]])
