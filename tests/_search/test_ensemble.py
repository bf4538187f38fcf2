"""Groups of students: what ends their training, and what their network is made of."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from builders import plain, planted, settings_with
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._cluster.layerwise import Thresholds
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Samples
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.warm_up import Start
from sklearn_ec._finish.finisher import Candidate, Finisher
from sklearn_ec._fit import Fit, Trained
from sklearn_ec._search.ensemble import Clustered, Ensemble, carried_over
from sklearn_ec._search.rounds import Recipe, Round, train_group
from sklearn_ec._solvers.levenberg import Levenberg

SEEDS = np.arange(6)


def recipe(widths=(9,), **options):
    return Recipe(widths, "auto", 30, 1e-20, Round(30, **options))


@pytest.fixture(scope="module")
def finisher():
    _, polisher, held_out = planted("tanh")
    return Finisher(polisher, held_out, plain(held_out), prune=True)


@pytest.fixture(scope="module")
def group(finisher):
    return train_group(finisher, recipe(), SEEDS)


def test_clusters_make_the_network_before_any_student_is_pruned(finisher, group):
    assert group.students.succeeded
    assert not group.certified
    assert not group.finished
    assert group.recovered is group.clustered.candidate
    assert group.recovered.network.widths == (3,)
    assert group.recovered.certificate.passed
    assert group.origin_of(group.recovered) == "clusters"


def test_the_best_student_is_pruned_where_clusters_fail(finisher, monkeypatch):
    monkeypatch.setattr("sklearn_ec._search.ensemble.Ensemble.network_of", lambda *a: None)
    group = train_group(finisher, recipe(), SEEDS)
    assert group.clustered is None
    assert list(group.certified) == [group.students.by_loss()[0]]
    assert group.origin_of(group.recovered) == "student"


def test_few_students_have_no_clusters(finisher):
    group = train_group(finisher, replace(recipe(), tol=0.0), SEEDS[:2])
    assert group.clustered is None
    assert len(group.certified) == 1


def test_the_network_of_the_same_clusters_is_not_finished_twice(finisher, group, monkeypatch):
    layers = group.cluster(finisher)
    assert group.network_of(layers, finisher) is group.clustered.candidate
    small = group.cluster(finisher, Thresholds(beta=0.0))
    assert not small.collapsed
    assert group.network_of(small, finisher) is None


def test_a_polish_that_is_stopped_leaves_what_it_came_to(monkeypatch):
    """Ctrl-C or ``max_time`` in the middle of pruning takes nothing away."""
    _, polisher, held_out = planted("tanh")
    finisher = Finisher(polisher, held_out, plain(held_out), prune=True)
    run, polished = Levenberg.run, []

    def run_and_stop(solver, n_steps):
        run(solver, n_steps)
        if len(solver.losses) == 1:  # not the students
            polished.append(float(solver.losses[0]))
            raise KeyboardInterrupt
        return n_steps

    monkeypatch.setattr(Levenberg, "run", run_and_stop)
    group = train_group(finisher, replace(recipe(), tol=0.0), SEEDS[:2])
    assert group.students.interrupted
    assert len(polished) == 1
    assert_allclose(group.attempt.certificate.error**2, polished[0], rtol=0.1)


@pytest.mark.parametrize("losses", [(1e-3, 1e-6), (1e-6, 1e-3)])
@pytest.mark.parametrize("activation", ["tanh", "g"])
def test_an_interrupt_finds_the_best_students_and_the_best_network(group, losses, activation):
    """The network may be of other students, but not of another activation."""
    fit, made = Fit(ExpandClusterRegressor()), group.clustered.candidate
    for loss, attempt in zip(losses, (made, None), strict=True):
        students = replace(group.students, best_held_out_loss=loss)
        name = "tanh" if attempt else activation
        fit._keep_better(Trained(Ensemble(students, 0.0, attempt=attempt), (3,), name))
    kept = fit.trained.ensemble
    assert kept.students.best_held_out_loss == min(losses)
    has_made = activation == "tanh" or losses[0] < losses[1]
    assert kept.best_candidate is (made if has_made else None)


def test_losses_are_those_on_all_rows(finisher):
    share = train_group(finisher, recipe(equations=2.0, asks_finisher=False), SEEDS)
    samples, activation = finisher.polisher.samples, finisher.polisher.activation
    for student in range(len(SEEDS)):
        error = network_outputs(share.students.network(student), samples.X, activation)
        loss = np.mean((error - samples.y) ** 2)
        assert_allclose(share.students.losses[student], loss, rtol=1e-3)
    assert share.students.losses.max() > 2 * share.students.loss_curves[:, -1].max()


def test_enough_equations_are_all_rows(finisher):
    shares = [
        train_group(finisher, recipe(equations=e, asks_finisher=False), SEEDS[:2]).students
        for e in (None, 1e6)
    ]
    assert_array_equal(shares[0].losses, shares[1].losses)


def test_what_pruning_left_in_a_corner_is_kept(finisher, group, monkeypatch):
    refused = replace(
        group.recovered.certificate, error=1e-4, function_certified=False, is_conclusive=False
    )
    monkeypatch.setattr(finisher, "finish", lambda network: Candidate(network, refused))
    corner = train_group(finisher, replace(recipe(), tol=0.0), SEEDS[:2])
    assert corner.recovered is None
    assert corner.attempt.certificate is refused
    assert corner.joined(group).best_candidate is group.recovered


def test_joined_students_keep_the_certified_network_of_clusters(group):
    certificate = replace(
        group.recovered.certificate, function_certified=False, is_conclusive=False
    )
    refused = replace(
        group, clustered=Clustered([], Candidate(group.recovered.network, certificate))
    )
    for both in (group.joined(refused), refused.joined(group)):
        assert both.recovered is group.recovered
    assert refused.joined(refused).recovered is None


def test_students_grow_by_a_few_neurons_and_are_padded_to_the_widths_of_the_others(finisher, group):
    network = group.recovered.network
    grown = replace(
        recipe((12,)), round=Round(10, start=Start(network=network), asks_finisher=False)
    )
    assert grown.trained_widths(finisher.settings.search) == (5,)  # a quarter, at least two
    assert replace(grown, widths=(4,)).trained_widths(finisher.settings.search) == (4,)
    trained = train_group(finisher, grown, SEEDS)
    assert trained.students.layers[0].shape[1] == 12
    losses = finisher.polisher.losses(trained.students.layers)
    assert_allclose(losses, trained.students.losses, rtol=1e-6, atol=1e-28)


def test_aimed_students_may_be_wider_and_give_their_best_neurons(finisher, group, monkeypatch):
    monkeypatch.setattr(Polisher, "has_weak_inputs", False)
    network = group.recovered.network
    grown = replace(recipe((4,)), max_iter=0, round=Round(0, start=Start(network=network)))
    assert grown.trained_widths(finisher.settings.search, is_aimed=True) == (5,)
    trained = train_group(finisher, replace(grown, widths=network.widths), SEEDS)
    assert trained.students.network(0).widths == network.widths
    assert trained.students.losses.max() < 1e-20


def test_students_on_collapsed_layers_have_no_other_neurons_there(finisher):
    lower = np.ones((3, 3))
    expanded = replace(recipe((9, 8, 7)), round=Round(10, start=Start(collapsed=[lower])))
    assert expanded.trained_widths(finisher.settings.search) == (3, 8, 7)


@pytest.mark.parametrize("widths", [(6,), (6, 6)])
def test_students_are_asked_after_their_warm_up_alone(widths):
    """The best one of a single hidden layer is pruned then; deep ones not before thirty steps."""
    _, polisher, held_out = planted("tanh")
    finisher = Finisher(polisher, held_out, plain(held_out), prune=True)
    warm = train_group(finisher, replace(recipe(widths), max_iter=0, round=Round(0)), SEEDS)
    assert warm.is_warm_up
    assert warm.students.n_iter == 0
    assert (warm.best_candidate is not None) == (len(widths) == 1)


def test_students_are_carried_over_to_other_rows(finisher, group):
    same = plain(finisher.held_out)
    carried = carried_over(group, same, same, (11,), finisher)
    assert len(carried.students) == len(group.students) + 1
    assert carried.students.losses[0] < 1e-28  # the network
    ranked = group.students.losses[group.students.by_loss()]
    assert_allclose(carried.students.losses[1:], ranked, rtol=1e-6, atol=1e-28)
    assert carried.seek(finisher)
    assert carried_over(group, same, same, (2,), finisher) is None


def test_a_network_that_was_exact_on_other_rows_is_polished_on_these(finisher, group):
    same = plain(finisher.held_out)
    elsewhere = replace(same, y_mean=same.y_mean + 10.0)
    carried = carried_over(group, elsewhere, same, (11,), finisher)
    assert carried.is_conclusive
    assert carried.students.losses[0] < 1e-28
    assert carried.students.losses[1:].min() > 1.0
    without = Ensemble(group.students, group.tol)
    assert carried_over(without, elsewhere, same, (11,), finisher) is None


# Data that no small network made


def product_problem(widths=(12,)):
    """Rows of ``x0 x1 x2``, and an ensemble of students that were trained for a few steps."""
    X = np.random.default_rng(0).uniform(-1.7, 1.7, size=(450, 3))
    y = X.prod(axis=1, keepdims=True)
    train, held_out = (Samples.of(X[rows], y[rows], np.ones(n)) for rows, n in SPLIT)
    polisher = Polisher(train, held_out, "tanh", "cpu", has_skip=False)
    finisher = Finisher(polisher, held_out, plain(held_out), prune=True)
    return finisher, train_group(finisher, recipe(widths, equations=3.0), SEEDS)


SPLIT = ((slice(400), 400), (slice(400, None), 50))


def test_students_that_fit_no_network_are_not_pruned(monkeypatch):
    pruned = []
    monkeypatch.setattr(Finisher, "finish", lambda self, network: pruned.append(network))
    finisher, group = product_problem()
    assert not group.show_network(finisher)
    assert not pruned


def test_a_table_without_a_network_is_approximated():
    """By not many more neurons than a student has, and better than students do."""
    finisher, group = product_problem()
    before = group.students.lowest_loss
    group.complete(finisher)
    candidate = group.best_candidate
    assert not group.finished
    assert not group.denoised
    assert not candidate.certificate.passed
    assert candidate.network.widths[0] <= 18
    assert candidate.certificate.error**2 < 1e-3 * before
    assert candidate.certificate.held_out_error**2 < before


def test_neurons_of_several_students_do_better_where_no_network_made_the_table():
    """Also the approximation has not many more neurons than a student."""
    finisher, group = product_problem()
    network, gain = finisher.pooled(group.students)
    assert network.widths == (5 * 12,)
    assert gain < 0.8
    for n_neurons, most in ((4, 6), (100, 32)):  # 32 take 160 of 400 equations
        assert finisher.approximate(network, n_neurons).network.widths[0] <= most


def test_neurons_of_several_students_do_no_better_at_a_noise_floor():
    _, polisher, held_out = planted("tanh")
    noise = 1e-3 * np.random.default_rng(0).normal(size=polisher.samples.y.shape)
    samples = replace(polisher.samples, y=polisher.samples.y + noise)
    polisher = Polisher(samples, held_out, "tanh", "cpu", has_skip=False)
    finisher = Finisher(polisher, held_out, plain(held_out), prune=True)
    students = train_group(finisher, recipe(equations=3.0), SEEDS).students
    _, gain = finisher.pooled(students)
    assert gain > 0.95


def test_clusters_that_do_no_better_than_the_best_network_are_not_finished(monkeypatch):
    """Where there is no network, those of the default thresholds cost half a second for nothing."""
    finisher, group = product_problem()
    group.complete(finisher)
    layers = group.cluster(finisher)
    monkeypatch.setattr(finisher, "if_better", lambda network, loss: None)
    assert group.network_of(layers, finisher) is None


@pytest.mark.parametrize(
    ("held_out_loss", "changes", "shows"),
    [
        (0.9e-6, {}, True),
        (1.1e-6, {}, False),
        (1.1e-6, {"tol": 1e-5}, True),  # a loss that the user accepts
        (1.1e-6, {"n_epochs": 0}, True),  # after the warm-up alone it is too early to tell
        (1.1e-6, {"few_parameters": 10}, True),
        (1.1e-6, {"rounding_loss": 2e-7}, True),
        (1.1e-6, {"solver": "adam"}, True),
    ],
)
def test_what_shows_a_network(finisher, group, held_out_loss, changes, shows):
    polisher = finisher.polisher
    n_epochs = changes.get("n_epochs", 3)
    students = replace(
        group.students,
        best_held_out_loss=held_out_loss,
        loss_curves=np.ones((len(SEEDS), n_epochs + 1)),
    )
    settings = settings_with(warm_up={"few_parameters": changes.get("few_parameters", 400)})
    samples = replace(polisher.samples, rounding_loss=changes.get("rounding_loss", 0.0))
    solver = changes.get("solver", "auto")
    polisher = Polisher(
        samples, finisher.held_out, "tanh", "cpu", False, solver=solver, settings=settings
    )
    finisher = Finisher(polisher, finisher.held_out, finisher.coordinates, prune=True)
    assert Ensemble(students, changes.get("tol", 1e-20)).show_network(finisher) == shows


def test_deep_students_may_hide_their_network(finisher, group):
    students = group.students
    hidden = np.zeros((len(SEEDS), 4, 10))
    layers = (students.layers[0], hidden, students.layers[1][:, :, :5])
    deep = replace(students, layers=layers, best_held_out_loss=0.1)
    assert Ensemble(deep, 1e-20).show_network(finisher)
