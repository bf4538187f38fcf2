import itertools

import numpy as np
import pytest

from builders import (
    assert_same_function,
    assert_same_layers,
    evaluate,
    flip_into_skip,
    random_masks,
    random_network,
)
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.records import Network
from sklearn_ec._core.signs import (
    MAX_ENUMERATED_NEURONS,
    closest_subset,
    linear_pairs,
    resolve_signs,
    with_skip,
)

NAMES = sorted(ACTIVATIONS)
EVEN_LINEAR = ["gelu", "leaky_relu", "relu", "silu", "softplus"]


DEPTHS = [(4, 3), (3, 5), (4, 3, 2), (2, 3, 4)]


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
