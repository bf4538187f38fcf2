"""Training through skorch: stopping, failed students, groups, determinism, polishing."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import split_rows, standardize
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Damping, Settings, Training, WarmUp
from sklearn_ec._expand import warm_up
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.skorch_nets import AdamNet, LevenbergNet, TrainingMonitor, fit_net
from sklearn_ec._expand.students import (
    StackedStudents,
    has_skip_terms,
    initial_weights,
    layer_shapes,
)
from sklearn_ec._expand.training import StudentTrainer
from sklearn_ec._expand.warm_up import Start, WarmUpTrainer
from sklearn_ec._finish.pruning import unstick
from sklearn_ec._solvers.jacobian import Linearization
from sklearn_ec._solvers.levenberg import Levenberg

SEEDS = np.arange(6)


@pytest.fixture(scope="module")
def rows(tanh_problem):
    _, X, y = tanh_problem
    samples, _ = standardize(X, y[:, None], np.ones(len(y)))
    return split_rows(samples, np.random.default_rng(0))


@pytest.fixture(scope="module")
def polisher(rows):
    return Polisher(*rows, "tanh", "cpu", has_skip=False)


@pytest.fixture(scope="module")
def trainer(polisher):
    return StudentTrainer(polisher)


def loss_of(network, samples, activation):
    return np.mean((network_outputs(network, samples.X, activation) - samples.y) ** 2)


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(4,), (4, 3), (5, 4, 3)])
def test_initial_weights_leave_skip_terms_and_output_biases_at_zero(widths, has_skip):
    layers = initial_weights(np.arange(2000), 2, widths, 2, has_skip)
    shapes = layer_shapes(2, widths, 2, has_skip)
    assert [layer.shape[1:] for layer in layers] == shapes
    for layer, fan_in in zip(layers, (2, *widths), strict=True):
        assert_allclose(layer[:, :, :fan_in].std(), fan_in**-0.5, rtol=0.05)
        assert not layer[:, :, fan_in:-1].any()
    for layer in layers[:-1]:
        assert_allclose(layer[:, :, -1].std(), 0.5, rtol=0.05)
    assert not layers[-1][:, :, -1].any()


@pytest.mark.parametrize("has_skip", [False, True])
def test_each_student_has_a_seed_of_its_own(has_skip):
    together = initial_weights(np.array([3, 7]), 2, (4, 3), 1, has_skip)
    alone = initial_weights(np.array([7]), 2, (4, 3), 1, has_skip)
    for layer, single in zip(together, alone, strict=True):
        assert_array_equal(layer[1], single[0])
    assert not np.array_equal(together[0][0], together[0][1])


@pytest.mark.parametrize(
    ("widths", "shapes"),
    [
        ((8,), [(8, 4), (1, 9)]),
        pytest.param((8, 6), [(8, 4), (6, 9), (1, 7)], marks=pytest.mark.slow),
    ],
)
def test_students_reach_the_loss_they_report(trainer, rows, widths, shapes):
    students = trainer.train(SEEDS, widths, max_iter=40, tol=1e-20)
    assert [layer.shape for layer in students.layers] == [(6, *shape) for shape in shapes]
    losses = [loss_of(students.network(i), rows[0], trainer.polisher.activation) for i in range(6)]
    assert_allclose(students.losses, losses, rtol=1e-4)
    assert students.losses.min() < 1e-6
    best = loss_of(students.best, rows[1], trainer.polisher.activation)
    assert_allclose(students.best_held_out_loss, best, rtol=1e-3)
    assert students.n_iter <= 40


@pytest.mark.parametrize("solver", ["levenberg", "adam"])
def test_loss_curves_end_at_the_losses(trainer, solver):
    if solver == "adam":
        students = trainer.train_with_adam(SEEDS, (8,), max_iter=2)
    else:
        students = trainer.train(SEEDS, (8,), max_iter=20, tol=0.0)
    assert students.loss_curves.shape == (6, 3)
    assert_array_equal(students.loss_curves[:, -1], students.losses)
    assert (students.loss_curves[:, -1] < students.loss_curves[:, 0]).all()


@pytest.mark.slow
def test_joined_students_keep_their_loss_curves(trainer):
    short = trainer.train(SEEDS, (4,), max_iter=10, tol=0.0)
    long = trainer.train(SEEDS[:2], (4,), max_iter=30, tol=0.0)
    curves = short.joined(long).loss_curves
    assert_array_equal(curves[:6, :2], short.loss_curves)
    assert np.isnan(curves[:6, 2:]).all()
    assert_array_equal(curves[6:], long.loss_curves)


@pytest.mark.slow
def test_deep_students_of_even_linear_activations_reach_the_loss_they_report(rows):
    trainer = StudentTrainer(Polisher(*rows, "softplus", "cpu", has_skip=True))
    students = trainer.train(SEEDS, (8, 6), max_iter=40, tol=1e-20)
    losses = [loss_of(students.network(i), rows[0], trainer.polisher.activation) for i in range(6)]
    assert_allclose(students.losses, losses, rtol=1e-4)
    assert students.losses.min() < 1e-4


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(4,), (4, 3), (5, 4, 3)])
def test_students_compute_what_their_networks_do(rows, widths, has_skip):
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(6, *shape)) for shape in layer_shapes(3, widths, 2, has_skip)]
    polisher = Polisher(*rows, "softplus", "cpu", has_skip)
    students = StackedStudents(tuple(map(torch.from_numpy, layers)), polisher.activation)
    networks = [Network(tuple(layer[i] for layer in layers)) for i in range(6)]
    assert all(network.has_skip == has_skip for network in networks)
    expected = [network_outputs(network, rows[0].X, polisher.activation) for network in networks]
    outputs = students(polisher.task.inputs).detach()
    assert_allclose(outputs, np.stack(expected, axis=1), rtol=1e-12, atol=1e-12)


def test_training_is_deterministic_and_seeded_per_student(trainer):
    first = trainer.train(SEEDS, (8,), max_iter=10, tol=0.0)
    second = trainer.train(SEEDS, (8,), max_iter=10, tol=0.0)
    for layer, same in zip(first.layers, second.layers, strict=True):
        assert_array_equal(layer, same)
    other = trainer.train(SEEDS + 1, (8,), max_iter=10, tol=0.0)
    assert not np.allclose(first.layers[0], other.layers[0])


def test_training_stops_when_most_students_converged(trainer):
    students = trainer.train(SEEDS, (16,), max_iter=1000, tol=1e-4)
    assert np.mean(students.losses <= 1e-4) >= Training().converged_share
    assert students.n_iter <= 20


@pytest.mark.parametrize("solver", ["levenberg", "matrix_free"])
def test_training_stops_when_the_best_student_is_recovered(rows, solver):
    trainer = StudentTrainer(Polisher(*rows, "tanh", "cpu", has_skip=False, solver=solver))
    asked = []

    def is_recovered(students, indices):
        asked.append((students, indices))
        return len(asked) == 2

    students = trainer.train(SEEDS, (4,), max_iter=1000, tol=0.0, is_recovered=is_recovered)
    assert len(asked) == 2
    settings = Training()
    is_large = solver == "matrix_free"
    factor = settings.large_question_factor if is_large else settings.question_factor
    n_epochs = settings.first_question_epoch * factor
    assert students.n_iter == n_epochs * settings.steps_per_epoch
    in_question, indices = asked[1]
    assert_array_equal(in_question.losses, students.losses[indices])
    for layer, trained in zip(in_question.layers, students.layers, strict=True):
        assert_array_equal(layer, trained[indices])


def test_without_steps_of_levenberg_all_students_are_asked_after_their_warm_up(trainer):
    asked = []

    def is_recovered(students, indices):
        asked.append((students.losses.tolist(), indices.tolist()))
        return True

    students = trainer.train(SEEDS[:3], (4,), max_iter=0, tol=1e-20, is_recovered=is_recovered)
    assert asked == [(students.losses.tolist(), [0, 1, 2])]
    assert students.succeeded
    assert students.n_iter == 0


def test_training_stops_when_held_out_rows_no_longer_gain(rows):
    train, held_out = rows
    noise = np.random.default_rng(1).normal(size=train.y.shape)
    noisy = type(train).of(train.X, train.y + noise, train.sample_weight)
    trainer = StudentTrainer(Polisher(noisy, held_out, "tanh", "cpu", has_skip=False))
    students = trainer.train(SEEDS, (8,), max_iter=3000, tol=0.0)
    assert students.n_iter < 3000


def with_one_failing_student(monkeypatch):
    def broken(*args):
        layers = initial_weights(*args)
        layers[0][1] = np.nan
        return layers

    monkeypatch.setattr(warm_up, "initial_weights", broken)


@pytest.mark.slow
def test_a_failing_student_harms_no_other(trainer, monkeypatch):
    healthy = trainer.train(SEEDS, (8,), max_iter=20, tol=0.0)
    with_one_failing_student(monkeypatch)
    students = trainer.train(SEEDS, (8,), max_iter=20, tol=0.0)
    assert np.isnan(students.losses[1])
    assert 1 not in students.by_loss()
    others = np.delete(np.arange(6), 1)
    assert_allclose(
        students.losses[others], healthy.losses[others], rtol=1e-3, atol=Damping().rounding_loss
    )


def test_a_failing_student_is_dropped_with_a_warning(tanh_problem, monkeypatch):
    _, X, y = tanh_problem
    with_one_failing_student(monkeypatch)
    model = ExpandClusterRegressor(
        hidden_layer_sizes=4, activation="tanh", n_students=6, random_state=0
    )
    with pytest.warns(UserWarning, match="1 of 6 students diverged and were dropped"):
        model.fit(X, y)
    assert model.recovered_
    assert 1 not in model.dendrogram_[0].students


def test_all_students_failing_is_an_error(tanh_problem, monkeypatch):
    _, X, y = tanh_problem

    def broken(*args):
        return [np.full_like(layer, np.nan) for layer in initial_weights(*args)]

    monkeypatch.setattr(warm_up, "initial_weights", broken)
    model = ExpandClusterRegressor(hidden_layer_sizes=4, activation="tanh", n_students=2)
    with pytest.raises(ValueError, match="all 2 students diverged"):
        model.fit(X, y)


@pytest.mark.slow
def test_large_students_are_trained_in_groups_best_first(rows):
    settings = Settings(training=Training(batch_flops_on_cpu=0.0, min_batch=2))
    trainer = StudentTrainer(Polisher(*rows, "tanh", "cpu", has_skip=False, settings=settings))
    students = trainer.train(SEEDS, (16,), max_iter=100, tol=1e-4)
    assert students.trained.sum() == 2
    assert students.losses[students.trained].max() < students.losses[~students.trained].min()
    assert set(students.voters(1e-4, min_voters=3)) == set(np.flatnonzero(students.trained))
    everyone = trainer.train(SEEDS, (16,), max_iter=10, tol=0.0)
    assert everyone.trained.all()


def test_nets_keep_skorch_history(trainer):
    module, completed = trainer.warm_up.train(SEEDS, (4,))
    assert completed
    net = LevenbergNet(
        module,
        task=trainer.polisher.task,
        tol=0.0,
        settings=Settings(),
        device="cpu",
        max_epochs=3,
        callbacks=[TrainingMonitor(trainer.polisher.held_out_task, 0.0, Training())],
    )
    fit_net(net, trainer.polisher.task)
    losses = net.history[:, "train_loss"]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert issubclass(AdamNet, type(net).__mro__[1])
    outputs = net.module_(trainer.polisher.task.inputs)
    assert outputs.shape == (len(trainer.polisher.task.inputs), 6, 1)


@pytest.mark.parametrize("widths", [(2,), (3, 2)])
def test_polish_reaches_rounding_from_nearby(rows, widths):
    exact = random_network(widths, 0)
    polisher = Polisher(*planted(rows, exact), "tanh", "cpu", has_skip=False)
    start = moved(exact, 1e-2)
    network, loss = polisher.polish(start, 200)
    assert loss < 1e-29
    assert_same_layers(network, exact)


def random_network(widths, seed):
    rng = np.random.default_rng(seed)
    *hidden, readout = layer_shapes(3, widths, 1, has_skip=False)
    outgoing = (-1.0) ** np.arange(readout[1] - 1)
    return Network((*(rng.normal(size=shape) for shape in hidden), np.append(outgoing, 0.1)[None]))


def moved(network, size):
    noise = np.random.default_rng(1)
    return Network(tuple(a + size * noise.normal(size=a.shape) for a in network.layers))


def assert_same_layers(network, expected):
    for layer, same in zip(network.layers, expected.layers, strict=True):
        assert_allclose(layer, same, rtol=0, atol=1e-12)


def test_polish_gives_up_on_a_target_out_of_reach(polisher):
    hidden = np.random.default_rng(0).normal(size=(1, 4))
    start = Network((hidden, np.array([[1.0, 0.0]])))
    with_target = count_steps(polisher, start, target=1e-20)
    without_target = count_steps(polisher, start, target=np.inf)
    assert with_target < without_target


def count_steps(polisher, network, target):
    steps = 0
    original = Levenberg.step

    def counting(solver):
        nonlocal steps
        steps += 1
        original(solver)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Levenberg, "step", counting)
        polisher.polish(network, 200, target)
    return steps


def planted(rows, network):
    """The same inputs with the outputs of a known network of tanh neurons."""
    targets = []
    for part in rows:
        ones, features = np.ones((len(part.X), 1)), np.hstack([part.X, np.ones((len(part.X), 1))])
        for layer in network.layers[:-1]:
            features = np.hstack([np.tanh(features @ layer.T), ones])
        targets.append(features @ network.layers[-1].T)
    return [
        type(part).of(part.X, y, part.sample_weight) for part, y in zip(rows, targets, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(8,), (8, 6)])
def test_adam_alone_trains_students(trainer, widths):
    students = trainer.train_with_adam(SEEDS, widths, max_iter=5)
    longer = trainer.train_with_adam(SEEDS, widths, max_iter=20)
    assert students.n_iter == 5
    assert students.trained.all()
    assert longer.losses.max() < np.minimum(students.losses, 1e-2).min()
    assert all(layer.dtype == np.float64 for layer in students.layers)


@pytest.mark.parametrize("widths", [(4,), (4, 3)])
def test_refinement_reaches_rounding_and_ends_there(rows, widths):
    start = random_network(widths, 0)
    exact = Polisher(*planted(rows, start), "tanh", "cpu", has_skip=False)
    nearby = moved(start, 1e-6)
    loss = float(loss_of(nearby, exact.samples, exact.activation))
    refined = exact.refine(nearby)
    assert float(loss_of(refined, exact.samples, exact.activation)) < 1e-29 < loss
    assert_same_layers(refined, start)
    assert exact.refine(refined) is refined


def test_refinement_outlives_a_step_that_leads_up(rows):
    start = random_network((4, 3), 1)
    exact = Polisher(*planted(rows, start), "tanh", "cpu", has_skip=False)
    astray = moved(start, 0.1)
    loss = float(loss_of(astray, exact.samples, exact.activation))
    linearization = Linearization(exact.task, astray)
    steps = zip(linearization.layers, linearization.newton_step(), strict=True)
    first_loss = float(exact.task.losses(tuple(a + b for a, b in steps))[0])
    refined_loss = float(loss_of(exact.refine(astray), exact.samples, exact.activation))
    assert refined_loss < 1e-3 * loss < first_loss


def test_nothing_is_written_to_the_working_directory(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train(SEEDS, (4,), max_iter=10, tol=0.0)
    assert not list(tmp_path.iterdir())


def test_polish_ends_where_it_stalls(polisher):
    """Three neurons in a local minimum of a problem with four."""
    start = random_network((3,), 0)
    start.layers[-1][0, -1] = 0.0
    assert polisher.settings.polish.window < count_steps(polisher, start, target=np.inf) < 200
    polished, loss = polisher.polish(start, 200)
    assert loss > 1e-6
    _, further_loss = polisher.polish(polished, 100)
    assert further_loss > polisher.settings.polish.progress * loss


# Settled networks


@pytest.fixture(scope="module")
def rare_column():
    """ReLU teacher of two neurons; the last column is lit in a single row."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(300, 2)), np.zeros(300)])
    X[7] = 0.5, 0.5, 6.0  # both neurons are on there, with and without the last column
    incoming = np.array([[1.0, 0.5, 0.3, 0.1], [-0.4, 1.0, 0.4, 0.3]])
    readout = np.array([[1.0, 0.5, 0.0], [-0.6, 1.0, 0.2]])
    teacher = Network((incoming, readout))
    y = network_outputs(teacher, X, get_activation("relu"))
    samples = Samples.of(X, y, np.ones(300))
    return Polisher(samples, samples, "relu", "cpu", has_skip=False), teacher


def test_settling_takes_weight_away_where_few_rows_tell(rare_column):
    polisher, teacher = rare_column
    settled = polisher.settled(teacher)
    assert_allclose(settled.layers[0][:, 2], 0.0, atol=1e-12)
    assert_allclose(settled.layers[0][:, [0, 1, 3]], teacher.layers[0][:, [0, 1, 3]], rtol=2e-3)
    strongly = polisher.settled(teacher, shrinkage=1.0)
    assert np.linalg.norm(strongly.layers[0]) < 0.9 * np.linalg.norm(teacher.layers[0])


def test_settling_frees_neurons_that_are_switched_off_in_a_single_row(rare_column):
    """No gradient tells that they should be on."""
    polisher, teacher = rare_column
    layers = [layer.copy() for layer in teacher.layers]
    layers[0][:, 2] = -2.0
    stuck, loss = polisher.polish(Network(tuple(layers)), 100)
    assert loss > 1e-6
    freed = unstick(stuck, loss, polisher)
    loss = float(polisher.losses([layer[None] for layer in freed.layers])[0])
    assert loss < 1e-25
    assert_allclose(np.abs(freed.layers[0][:, 2] / freed.layers[0][:, 0]), [0.3, 1.0], rtol=1e-6)


def test_large_students_are_settled_after_a_longer_warm_up(rare_column):
    samples = rare_column[0].samples
    settings = Settings(
        warm_up=WarmUp(large_steps=200),
        training=Training(dense_flops=0.0),
    )
    polisher = Polisher(samples, samples, "relu", "cpu", has_skip=False, settings=settings)
    state = StudentTrainer(polisher).warmed_up(SEEDS[:2], (4,))
    assert_allclose(state.layers[0][:, :, 2], 0.0, atol=1e-12)
    assert (state.losses < 1.0).all()


@pytest.mark.parametrize(("n_rows", "tells"), [(60, True), (300, False)])
def test_rows_that_tell_most_are_among_the_few(rare_column, n_rows, tells):
    """There is one in 300 that tells about the last column; nothing is drawn if all are asked."""
    polisher, _ = rare_column
    few = polisher.on_few_rows(2 * n_rows)
    assert len(few.samples.X) == n_rows
    assert (few.samples.X[:, 2] != 0.0).sum() == 1
    assert (few is polisher) != tells


@pytest.mark.parametrize(("n_inputs", "pace"), [(3, 1.0), (140, 1.0), (700, 0.2)])
def test_with_many_inputs_steps_of_the_warm_up_are_smaller_and_more(monkeypatch, n_inputs, pace):
    samples = Samples.of(np.zeros((5, n_inputs)), np.zeros((5, 1)), np.ones(5))
    polisher = Polisher(samples, samples, "tanh", "cpu", has_skip=False)
    asked = []

    def adam(trainer, module, task, seed, n_epochs, rate, schedule):
        asked.append((n_epochs, rate))
        return True

    monkeypatch.setattr(WarmUpTrainer, "adam", adam)
    WarmUpTrainer(polisher).train(SEEDS[:1], (2,), Start(n_steps=1000, rate=0.5))
    ((n_epochs, rate),) = asked
    assert n_epochs == 10 / pace
    assert_allclose(rate, 0.5 * pace)


@pytest.mark.parametrize(
    ("activation", "n_inputs", "expected"),
    [("relu", 100, True), ("relu", 101, False), ("tanh", 2, False)],
)
def test_students_of_many_inputs_have_no_skip_terms(activation, n_inputs, expected):
    samples = Samples.of(np.zeros((5, n_inputs)), np.zeros((5, 1)), np.ones(5))
    max_inputs = Training().max_skip_inputs
    assert has_skip_terms(get_activation(activation), samples, max_inputs) == expected
