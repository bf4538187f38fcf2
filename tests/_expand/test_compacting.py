"""The few neurons that matter: subsets by elimination and exchange."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Compacting
from sklearn_ec._expand.compacting import best_subset, compact_network, narrower

N_ROWS = 200
SETTINGS = Compacting()


def squared_error(features, targets):
    solution = np.linalg.lstsq(features, targets, rcond=None)[0]  # NumPy 1 warns without rcond
    return np.linalg.norm(targets - features @ solution) ** 2


@pytest.mark.parametrize("seed", range(10))
def test_the_features_behind_the_targets_are_found_among_copies_of_them(seed):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(N_ROWS, 4))
    copies = [true + 0.01 * (k + 1) * rng.normal(size=true.shape) for k in range(3)]
    candidates = np.hstack([copies[2], true, copies[1], copies[0]])
    targets = true @ rng.normal(size=(4, 3))
    assert_array_equal(best_subset(candidates, targets, 16, 4, SETTINGS.ridge), np.arange(4, 8))


@pytest.mark.parametrize("seed", range(10))
def test_the_most_helpful_feature_outside_is_no_better_than_any_inside(seed):
    rng = np.random.default_rng(seed)
    features, targets = rng.normal(size=(2, N_ROWS, 9))
    features[:, 1:] += features[:, :-1]
    kept = set(best_subset(features, targets, 9, 3, SETTINGS.ridge))
    added = min(set(range(9)) - kept, key=lambda j: squared_error(features[:, [*kept, j]], targets))
    least = squared_error(features[:, list(kept)], targets) * (1 - 1e-9)
    for dropped in kept:
        others = [*(kept - {dropped}), added]
        assert squared_error(features[:, others], targets) >= least


def test_exchange_undoes_what_elimination_did_too_early():
    """The first feature is nearly the sum of the others, and goes last of all."""
    rng = np.random.default_rng(0)
    a, b, noise = rng.normal(size=(3, N_ROWS))
    features = np.column_stack([a + b + 0.5 * noise, a, b, noise])
    targets = (a + b)[:, None]
    assert_array_equal(best_subset(features, targets, 4, 2, SETTINGS.ridge), [1, 2])


def test_features_behind_the_candidates_always_stay():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N_ROWS, 5))
    features[:, 4] *= 1e3
    targets = features @ np.array([[0.0, 1.0, 0.1, 0.0, 5.0]]).T
    assert_array_equal(best_subset(features, targets, 4, 2, SETTINGS.ridge), [1, 2])


def test_dead_and_equal_features_do_no_harm():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, N_ROWS))
    features = np.column_stack([np.zeros(N_ROWS), a, a, b, b, np.zeros(N_ROWS)])
    kept = best_subset(features, (a - 2 * b)[:, None], 6, 2, SETTINGS.ridge)
    assert_allclose(squared_error(features[:, kept], (a - 2 * b)[:, None]), 0.0, atol=1e-12)


@pytest.fixture(scope="module")
def problem():
    """Samples of a ReLU teacher of four neurons, and a student with five spare ones."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(400, 3))
    activation = get_activation("relu")
    hidden, spare = rng.normal(size=(4, 4)), rng.normal(size=(5, 4))
    y = network_outputs(Network((hidden, rng.normal(size=(2, 5)))), X, activation)
    samples = Samples.of(X, y, np.ones(400))
    student = solve_readout([np.vstack([spare, hidden])], samples, activation, False)
    return samples, activation, hidden, student


def test_rows_without_weight_do_not_choose(problem):
    samples, activation, hidden, student = problem
    weight = np.arange(400) % 2 * 2.0
    spoiled = Samples.of(samples.X, np.where(weight[:, None] > 0, samples.y, 1e3), weight)
    found = narrower(student, 4, spoiled, activation, SETTINGS.ridge)
    assert_array_equal(found.layers[0], hidden)
    assert_allclose(network_outputs(found, samples.X, activation), samples.y, atol=1e-12)


def test_the_compact_network_has_the_neurons_that_matter(problem):
    samples, activation, hidden, student = problem
    compact = compact_network(student, samples, activation, SETTINGS)
    assert_array_equal(compact.layers[0], hidden)
