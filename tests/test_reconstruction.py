import itertools

import numpy as np
import pytest

from sklearn_ec._activations import ACTIVATIONS
from sklearn_ec._clustering import Cluster
from sklearn_ec._reconstruction import (
    MAX_ENUMERATED_NEURONS,
    canonical_form,
    closest_subset,
    collapse,
    count_agreeing,
    design_matrix,
    incoming_vectors,
    linear_pairs,
    resolve_signs,
    solve_readout,
)
from sklearn_ec._types import Network, Samples

NAMES = sorted(ACTIVATIONS)
EVEN_LINEAR = ["gelu", "leaky_relu", "relu", "silu", "softplus"]


def random_network(rng, width, n_inputs, n_outputs, has_skip=False):
    n_features = width + 1 + n_inputs * has_skip
    return Network(rng.normal(size=(width, n_inputs + 1)), rng.normal(size=(n_outputs, n_features)))


def evaluate(network, activation, X):
    z = X @ network.hidden[:, :-1].T + network.hidden[:, -1]
    outputs = activation.function(z) @ network.outgoing.T + network.bias
    return outputs + X @ network.skip.T if network.skip.size else outputs


def flip_into_skip(network, activation, flipped):
    """The same function with flipped neurons, the linear remainder in a skip term."""
    outgoing, incoming = network.outgoing[:, flipped], network.hidden[flipped]
    hidden = network.hidden.copy()
    hidden[flipped] *= -1.0
    # s(z) = s(-z) + c z, so the flipped network lacks c a (w x + b).
    bias = network.bias + activation.flip * outgoing @ incoming[:, -1]
    skip = activation.flip * outgoing @ incoming[:, :-1]
    return Network(hidden, np.hstack([network.outgoing, bias[:, None], skip]))


def assert_same_function(first, second, activation, rng, atol=1e-11):
    X = 2.0 * rng.normal(size=(50, first.hidden.shape[1] - 1))
    np.testing.assert_allclose(
        evaluate(first, activation, X), evaluate(second, activation, X), rtol=0, atol=atol
    )


def samples_of(network, activation, rng, n_samples=60):
    X = rng.normal(size=(n_samples, network.hidden.shape[1] - 1))
    weight = rng.uniform(0.2, 3.0, size=n_samples)
    return Samples(X, evaluate(network, activation, X), weight / weight.mean())


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_incoming_vectors_are_those_of_the_voters(name):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4, 3, 5))
    hidden[2, 1] = 0.0
    voters = {1: hidden[1], 2: hidden[2, :2]}  # an annealed student is narrower
    vectors, owners, neurons = incoming_vectors(voters, ACTIVATIONS[name])
    assert owners.tolist() == [1, 1, 1, 2, 2]
    assert neurons.tolist() == [0, 1, 2, 0, 1]
    expected = hidden[owners, neurons]
    if ACTIVATIONS[name].homogeneous:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True).clip(1e-300)
    np.testing.assert_allclose(vectors, expected, rtol=1e-15)


@pytest.mark.parametrize(("name", "n_agreeing"), [("g", 1), ("tanh", 2), ("relu", 2)])
def test_agreement_counts_the_voters_that_hold_every_neuron(name, n_agreeing):
    rng = np.random.default_rng(0)
    network = random_network(rng, 3, 2, 1)
    same = np.vstack([rng.normal(size=(2, 3)), network.hidden[::-1]])
    flipped = network.hidden * [[1.0], [-1.0], [1.0]]
    incomplete = np.vstack([network.hidden[:2], rng.normal(size=(4, 3))])
    turned = network.hidden + 0.1 * rng.normal(size=(3, 3))
    voters = [same, flipped, incomplete, turned]
    assert count_agreeing(network, voters, ACTIVATIONS[name]) == n_agreeing


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


@pytest.mark.parametrize("has_skip", [False, True])
def test_solve_readout_recovers_known_outgoing_weights(has_skip):
    rng = np.random.default_rng(1)
    activation = ACTIVATIONS["softplus"]
    network = random_network(rng, width=5, n_inputs=3, n_outputs=2, has_skip=has_skip)
    samples = samples_of(network, activation, rng)
    solved = solve_readout(network.hidden, samples, activation, has_skip)
    np.testing.assert_array_equal(solved.hidden, network.hidden)
    np.testing.assert_allclose(solved.readout, network.readout, rtol=0, atol=1e-11)


@pytest.mark.parametrize("has_skip", [False, True])
def test_solve_readout_minimizes_the_weighted_error(has_skip):
    rng = np.random.default_rng(2)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, width=3, n_inputs=2, n_outputs=2)
    clean = samples_of(network, activation, rng)
    noise = 0.3 * rng.normal(size=clean.y.shape)
    samples = Samples(clean.X, clean.y + noise, clean.sample_weight)
    solved = solve_readout(network.hidden, samples, activation, has_skip)
    # At the minimum, the weighted residuals are orthogonal to every input of the readout.
    ones = np.ones(len(samples.X))
    design = design_matrix(network.hidden, Samples(samples.X, samples.y, ones), activation, True)
    residuals = evaluate(solved, activation, samples.X) - samples.y
    gradient = design.T @ (samples.sample_weight[:, None] * residuals)
    n_used = solved.readout.shape[1]
    assert n_used == (6 if has_skip else 4)
    np.testing.assert_allclose(gradient[:n_used], 0.0, atol=1e-11)
    assert np.abs(residuals).max() > 0.1


def test_solve_readout_shares_weights_between_duplicates():
    rng = np.random.default_rng(3)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, width=2, n_inputs=2, n_outputs=1)
    samples = samples_of(network, activation, rng)
    solved = solve_readout(network.hidden[[0, 1, 0]], samples, activation, has_skip=False)
    a, b = network.outgoing[0]
    np.testing.assert_allclose(solved.outgoing[0], [a / 2, b, a / 2], atol=1e-11)


def test_solve_readout_tells_nearly_parallel_neurons_apart():
    """A singular value far below the largest, but above rounding, is signal."""
    rng = np.random.default_rng(14)
    activation = ACTIVATIONS["tanh"]
    network = random_network(rng, width=3, n_inputs=2, n_outputs=1)
    network.hidden[1] = network.hidden[0] + 1e-8 * rng.normal(size=3)
    samples = samples_of(network, activation, rng)
    solved = solve_readout(network.hidden, samples, activation, has_skip=False)
    np.testing.assert_allclose(solved.readout, network.readout, rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_skip", [False, True])
def test_solve_readout_without_hidden_neurons_fits_constant_or_line(has_skip):
    rng = np.random.default_rng(4)
    X = rng.normal(size=(30, 2))
    samples = Samples(X, X @ np.array([[2.0], [-1.0]]) + 0.5, np.ones(30))
    solved = solve_readout(np.empty((0, 3)), samples, ACTIVATIONS["relu"], has_skip)
    expected = [0.5, 2.0, -1.0] if has_skip else [samples.y.mean()]
    np.testing.assert_allclose(solved.readout[0], expected, atol=1e-13)


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
        flipped = flip_into_skip(network, activation, rng.random(width) < 0.5)
        assert_same_function(flipped, network, activation, rng)
        resolved = resolve_signs(flipped, activation)
        assert resolved.skip.size == 0
        assert_same_function(resolved, network, activation, rng)
        np.testing.assert_array_equal(resolved.hidden, network.hidden)
        np.testing.assert_allclose(resolved.readout, network.readout, rtol=0, atol=1e-13)


def test_resolve_signs_drops_only_what_no_flip_absorbs():
    rng = np.random.default_rng(6)
    activation = ACTIVATIONS["gelu"]
    network = random_network(rng, 4, 5, 1)
    flipped = flip_into_skip(network, activation, np.array([True, False, True, False]))
    noise = 1e-3 * rng.normal(size=(1, 5))
    readout = flipped.readout.copy()
    readout[:, -5:] += noise
    resolved = resolve_signs(Network(flipped.hidden, readout), activation)
    np.testing.assert_array_equal(resolved.hidden, network.hidden)
    X = rng.normal(size=(20, 5))
    dropped = evaluate(Network(flipped.hidden, readout), activation, X) - X @ noise.T
    np.testing.assert_allclose(evaluate(resolved, activation, X), dropped, atol=1e-12)


def test_resolve_signs_returns_networks_without_skip_term_unchanged():
    network = random_network(np.random.default_rng(7), 3, 2, 1)
    assert resolve_signs(network, ACTIVATIONS["relu"]) is network


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
    network = random_network(rng, 4, n_inputs, n_outputs)
    skip = rng.normal(size=(n_outputs, rank)) @ rng.normal(size=(rank, n_inputs))
    network = Network(network.hidden, np.hstack([network.readout, skip]))
    paired = linear_pairs(network, activation)
    assert paired.width == 4 + 2 * rank
    assert paired.skip.size == 0
    assert_same_function(paired, network, activation, rng)


def canonical(network, activation):
    weights = [network.hidden[:, :-1].T, network.outgoing.T]
    return canonical_form(weights, [network.hidden[:, -1], network.bias], activation)


def as_network(weights, biases):
    hidden = np.hstack([weights[0].T, biases[0][:, None]])
    return Network(hidden, np.hstack([weights[1].T, biases[1][:, None]]))


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_canonical_form_keeps_the_function_and_fixes_order_sign_and_scale(name, n_outputs):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(12)
    network = random_network(rng, 6, 3, n_outputs)
    before = network.hidden.copy(), network.readout.copy()
    weights, biases = canonical(network, activation)
    form = as_network(weights, biases)
    assert_same_function(form, network, activation, rng)
    np.testing.assert_array_equal(network.hidden, before[0])
    np.testing.assert_array_equal(network.readout, before[1])

    sizes = np.linalg.norm(weights[1], axis=1)
    assert np.all(np.diff(sizes) <= 0)
    if activation.homogeneous:
        np.testing.assert_allclose(np.linalg.norm(form.hidden, axis=1), 1.0, rtol=1e-14)
    if activation.symmetry == "odd":
        largest = np.argmax(np.abs(weights[1]), axis=1)
        assert np.all(weights[1][np.arange(6), largest] > 0)


@pytest.mark.parametrize("name", NAMES)
def test_canonical_form_is_the_same_for_equivalent_networks(name):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(13)
    network = random_network(rng, 5, 3, 2)
    hidden, readout = network.hidden.copy(), network.readout.copy()
    order = rng.permutation(5)
    hidden, readout[:, :5] = hidden[order], network.outgoing[:, order]
    if activation.homogeneous:
        scale = rng.uniform(0.1, 10.0, size=5)
        hidden, readout[:, :5] = hidden * scale[:, None], readout[:, :5] / scale
    if activation.symmetry == "odd":
        readout[:, 5] += activation.flip * readout[:, :2].sum(axis=1)
        hidden[:2] *= -1.0
        readout[:, :2] *= -1.0
    equivalent = Network(hidden, readout)
    assert_same_function(equivalent, network, activation, rng)
    expected, form = canonical(network, activation), canonical(equivalent, activation)
    for actual, desired in zip(form[0] + form[1], expected[0] + expected[1], strict=True):
        np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-13)


def test_canonical_form_without_neurons_or_with_dead_ones():
    weights, biases = canonical_form(
        [np.empty((3, 0)), np.empty((0, 2))],
        [np.empty(0), np.array([1.0, 2.0])],
        ACTIVATIONS["tanh"],
    )
    assert weights[0].shape == (3, 0)
    np.testing.assert_array_equal(biases[1], [1.0, 2.0])
    dead = Network(np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[5.0, 1.0, 0.0]]))
    weights, biases = canonical(dead, ACTIVATIONS["relu"])
    np.testing.assert_allclose(weights[0], [[0.0, 0.6]])
    np.testing.assert_allclose(weights[1], [[5.0], [5.0]])
