"""Pools of neurons: subsets by elimination and exchange, and the networks made of them."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Pool, Settings, Training, WarmUp
from sklearn_ec._expand import skorch_nets
from sklearn_ec._expand.neuron_pool import (
    best_subset,
    compact_network,
    pool_neurons,
    pooled_network,
)
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.training import StudentTrainer
from sklearn_ec._expand.warm_up import WarmUpTrainer

N_ROWS = 200
POOL = Pool()


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
    assert_array_equal(best_subset(candidates, targets, 16, 4, POOL.ridge), np.arange(4, 8))


@pytest.mark.parametrize("seed", range(10))
def test_the_most_helpful_feature_outside_is_no_better_than_any_inside(seed):
    rng = np.random.default_rng(seed)
    features, targets = rng.normal(size=(2, N_ROWS, 9))
    features[:, 1:] += features[:, :-1]
    kept = set(best_subset(features, targets, 9, 3, POOL.ridge))
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
    assert_array_equal(best_subset(features, targets, 4, 2, POOL.ridge), [1, 2])


def test_features_behind_the_candidates_always_stay():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N_ROWS, 5))
    features[:, 4] *= 1e3
    targets = features @ np.array([[0.0, 1.0, 0.1, 0.0, 5.0]]).T
    assert_array_equal(best_subset(features, targets, 4, 2, POOL.ridge), [1, 2])


def test_dead_and_equal_features_do_no_harm():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, N_ROWS))
    features = np.column_stack([np.zeros(N_ROWS), a, a, b, b, np.zeros(N_ROWS)])
    kept = best_subset(features, (a - 2 * b)[:, None], 6, 2, POOL.ridge)
    assert_allclose(squared_error(features[:, kept], (a - 2 * b)[:, None]), 0.0, atol=1e-12)


@pytest.fixture(scope="module")
def problem():
    """Samples of a ReLU teacher of four neurons, and two students that hold half of it each."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(400, 3))
    activation = get_activation("relu")
    hidden, spare = rng.normal(size=(4, 4)), rng.normal(size=(2, 2, 4))
    y = network_outputs(Network((hidden, rng.normal(size=(2, 5)))), X, activation)
    samples = Samples.of(X, y, np.ones(400))
    halves = zip((hidden[:2], hidden[2:]), spare, strict=True)
    students = [solve_readout([np.vstack(h)], samples, activation, False) for h in halves]
    return samples, activation, hidden, students


def test_pooled_neurons_of_two_students_make_the_network_that_neither_holds(problem):
    samples, activation, hidden, students = problem
    pooled = pooled_network(students, 4, samples, activation, POOL)
    assert_array_equal(np.sort(pooled.layers[0], axis=0), np.sort(hidden, axis=0))
    assert_allclose(network_outputs(pooled, samples.X, activation), samples.y, atol=1e-12)


def test_rows_without_weight_do_not_choose(problem):
    samples, activation, hidden, students = problem
    weight = np.arange(400) % 2 * 2.0
    spoiled = Samples.of(samples.X, np.where(weight[:, None] > 0, samples.y, 1e3), weight)
    pooled = pooled_network(students, 4, spoiled, activation, POOL)
    assert_array_equal(np.sort(pooled.layers[0], axis=0), np.sort(hidden, axis=0))


def test_rounds_mix_the_best_neurons_with_fresh_ones(problem):
    samples, activation, hidden, students = problem
    trained = []

    def train(networks):
        trained.append(networks)
        return networks

    rng = np.random.default_rng(0)
    pooled = pool_neurons(students, train, samples, activation, rng, POOL)
    assert_array_equal(np.sort(pooled.layers[0], axis=0), np.sort(hidden, axis=0))
    assert [len(networks) for networks in trained] == [2] * POOL.max_rounds
    for network in (network for networks in trained for network in networks):
        held = (network.layers[0][:, None] == hidden).all(axis=2).any(axis=1)
        assert network.widths == (4,)
        assert 1 <= held.sum() <= 2


def test_rounds_end_once_half_of_the_neurons_do_nearly_as_well(problem):
    samples, activation, hidden, students = problem
    rng = np.random.default_rng(0)
    spare = [np.vstack([n.layers[0], rng.normal(size=(4, 4))]) for n in students]
    wide = [solve_readout([neurons], samples, activation, False) for neurons in spare]
    pooled = pool_neurons(
        wide, lambda networks: pytest.fail("trained"), samples, activation, rng, POOL
    )
    assert pooled.widths == (8,)
    assert all((neuron == pooled.layers[0]).all(axis=1).any() for neuron in hidden)


def test_the_compact_network_has_the_neurons_that_matter(problem):
    samples, activation, hidden, _ = problem
    spare = np.random.default_rng(0).normal(size=(5, 4))
    network = solve_readout([np.vstack([spare, hidden])], samples, activation, False)
    compact = compact_network(network, samples, activation, POOL)
    assert_array_equal(compact.layers[0], hidden)


# In the training


# All students are taken for large.
LARGE = Settings(
    warm_up=WarmUp(large_steps=200),
    pool=Pool(warm_up_steps=100, compact_factor=0.0),
    training=Training(dense_flops=0.0),
)


@pytest.fixture
def large_trainer(problem):
    """A trainer that takes all students for large, and pools in all rounds."""
    samples, *_ = problem
    return trainer_on(samples, "relu")


def trainer_on(samples, activation):
    polisher = Polisher(samples, samples, activation, "cpu", has_skip=False, settings=LARGE)
    return StudentTrainer(polisher)


def test_the_worst_large_student_starts_from_the_pool_and_is_trained_first(large_trainer):
    seeds, widths = np.arange(3), (6,)
    warm = large_trainer.warm_up.train(seeds, widths)[0].weights[0].numpy()
    state = large_trainer.warmed_up(seeds, widths)
    first = state.batches[0][0]
    changed = (state.layers[0] != warm).any(axis=(1, 2))
    assert_array_equal(np.flatnonzero(changed), [first])
    assert state.losses[first] == state.losses.min()


def test_the_compact_network_of_the_pool_may_spare_the_training(large_trainer):
    asked = []

    def is_recovered(*question):
        asked.append(question)
        return True

    students = large_trainer.train(
        np.arange(3), (6,), max_iter=50, tol=1e-20, is_recovered=is_recovered
    )
    ((compact, (student,)),) = asked
    network, (loss,) = compact.network(0), compact.losses
    assert students.succeeded
    assert students.n_iter == 0
    assert student == np.argmin(students.losses)
    assert network.widths <= (6,)
    activation = large_trainer.polisher.activation
    residuals = network_outputs(network, large_trainer.polisher.samples.X, activation)
    residuals -= large_trainer.polisher.samples.y
    assert_allclose(loss, np.mean(residuals**2), rtol=1e-9)


@pytest.mark.parametrize("is_weak", [True, False])
def test_a_pool_follows_the_warm_up_where_inputs_hardly_vary(problem, is_weak):
    samples, *_ = problem
    scale = np.array([1.0, 1.0, 1e-3 if is_weak else 1.0])
    trainer = trainer_on(Samples.of(samples.X * scale, samples.y, samples.sample_weight), "relu")
    asked = []
    trainer.train(
        np.arange(3),
        (6,),
        max_iter=0,
        tol=1e-20,
        is_recovered=lambda students, indices: asked.append(len(students)),
    )
    assert asked == [1 if is_weak else 3]


@pytest.mark.parametrize(("seeds", "widths"), [([0], (8,)), ([0, 1], (1,)), ([0, 1], (4, 3))])
def test_single_students_single_neurons_and_deep_students_are_not_pooled(
    large_trainer, seeds, widths
):
    warm, _ = large_trainer.warm_up.train(np.array(seeds), widths)
    state = large_trainer.warmed_up(np.array(seeds), widths)
    for before, after in zip(warm.weights, state.layers, strict=True):
        assert_array_equal(before.numpy(), after)


@pytest.mark.parametrize(("activation", "pooled"), [("leaky_relu", True), ("softplus", False)])
def test_only_neurons_with_a_kink_are_pooled(large_trainer, activation, pooled):
    trainer = trainer_on(large_trainer.polisher.samples, activation)
    assert trainer.warmed_up(np.arange(2), (6,)).starts_from_pool == pooled


def test_a_student_that_diverged_is_no_part_of_the_pool(large_trainer, monkeypatch):
    initial_students = WarmUpTrainer.initial_students

    def diverging(self, seeds, widths, shared):
        module = initial_students(self, seeds, widths, shared)
        module.layers[0].data[1] = np.nan
        return module

    monkeypatch.setattr(WarmUpTrainer, "initial_students", diverging)
    state = large_trainer.warmed_up(np.arange(3), (8,))
    assert state.batches[0][0] == 1  # the worst student
    assert np.isfinite(state.layers[0]).all()
    assert np.isfinite(state.losses).all()


def test_an_interrupt_while_neurons_are_pooled_ends_the_training(large_trainer, monkeypatch):
    train_briefly = WarmUpTrainer._train_briefly

    def interrupted(self, module, n_steps, seed, rate=1.0):
        module, completed = train_briefly(self, module, n_steps, seed, rate)
        return module, completed and n_steps != 100

    monkeypatch.setattr(WarmUpTrainer, "_train_briefly", interrupted)
    students = large_trainer.train(np.arange(3), (6,), max_iter=50, tol=1e-20)
    assert students.interrupted
    assert students.n_iter == 0


@pytest.mark.slow
def test_the_compact_network_gives_the_network_behind_the_data(large_trainer, monkeypatch):
    samples = large_trainer.polisher.samples
    monkeypatch.setattr(skorch_nets.LevenbergNet, "train_step", lambda *_: pytest.fail("trained"))
    model = ExpandClusterRegressor(
        hidden_layer_sizes=4, rho=2, activation="relu", n_students=3, random_state=0
    )
    model._settings = replace(LARGE, warm_up=WarmUp(large_steps=1000), pool=Pool(warm_up_steps=100))
    model.fit(samples.X, samples.y)
    assert model.recovered_
    assert model.layer_sizes_ == (4,)
    assert model.n_iter_ == 0
