"""Students in groups: trained once, continued after a kill, spread over workers, interrupted."""

import pickle
import pickletools
import signal
import subprocess
import sys
import textwrap

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning, EfficiencyWarning
from sklearn.model_selection import GridSearchCV

from builders import SHORT_WARM_UP, SILENT, with_settings
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.threads import n_allowed
from sklearn_ec._expand import skorch_nets
from sklearn_ec._io import cache
from sklearn_ec._search import scheduling
from sklearn_ec._solvers.task import LeastSquaresTask
from sklearn_ec.datasets import make_teacher

pytestmark = pytest.mark.filterwarnings("ignore:The network is not certified")


@pytest.fixture(scope="module")
def problem():
    teacher = make_teacher(2, 2, activation="tanh", random_state=0)
    X = np.random.default_rng(0).uniform(-2, 2, size=(150, 2))
    return X, teacher.predict(X)


GROUPS_OF_TWO = SHORT_WARM_UP | {"search": {"group_size": 2}}


def make_model(settings=GROUPS_OF_TWO, **params):
    """Three groups of students, three epochs each: none of them reaches a loss of zero."""
    defaults = {
        "rho": 3,
        "hidden_layer_sizes": 2,
        "activation": "tanh",
        "n_students": 6,
        "max_iter": 30,
        "tol": 0.0,
        "prune": False,
        "random_state": 0,
    }
    return with_settings(ExpandClusterRegressor(**{**defaults, **params}), **settings)


@pytest.fixture
def trainings(monkeypatch):
    """The seeds of every group that is really trained, in order."""
    trained = []

    def spy(finisher, recipe, seeds, *args):
        trained.append(tuple(seeds))
        return train_group(finisher, recipe, seeds, *args)

    train_group = scheduling.train_group
    monkeypatch.setattr(scheduling, "train_group", spy)
    return trained


def assert_same_fit(model, other):
    assert_array_equal(model.student_losses_, other.student_losses_)
    assert_array_equal(model.student_loss_curves_, other.student_loss_curves_)
    assert model.n_iter_ == other.n_iter_
    for array, same in zip(parameters(model), parameters(other), strict=True):
        assert_array_equal(array, same)


def assert_same_network(model, other):
    """Up to rounding, which decides the last digits of losses and parameters near zero."""
    assert_allclose(model.student_losses_, other.student_losses_, rtol=1e-6, atol=1e-18)
    assert model.recovered_
    assert other.recovered_
    rounding = 1e-12 * max(np.abs(array).max() for array in parameters(other))
    for array, same in zip(parameters(model), parameters(other), strict=True):
        assert_allclose(array, same, rtol=0.0, atol=rounding)


def parameters(model):
    return [*model.weights_, *model.biases_]


def in_order(model):
    """A fit with its neurons in the order of their biases; pruning keeps one of equal copies."""
    order = np.argsort(model.biases_[0])
    model.weights_ = [model.weights_[0][:, order], model.weights_[1][order]]
    model.biases_ = [model.biases_[0][order], model.biases_[1]]
    return model


# Each group is trained once


def test_every_group_is_trained_for_itself(problem, trainings):
    model = make_model().fit(*problem)
    assert [len(seeds) for seeds in trainings] == [2, 2, 2]
    assert len(model.student_losses_) == 6
    assert model.n_reused_students_ == 0


def test_training_ends_with_the_first_successful_group(problem, trainings):
    model = make_model(prune=True, tol=1e-20, max_iter=300).fit(*problem)
    assert model.recovered_
    assert len(model.student_losses_) == 2 * len(trainings) < 6


def test_without_pruning_all_groups_are_trained(problem, trainings):
    make_model(tol=1e-3).fit(*problem)
    assert len(trainings) == 3


def test_more_students_cost_only_the_new_ones(problem, trainings, tmp_path):
    make_model(memory=tmp_path).fit(*problem)
    before = list(trainings)
    model = make_model(memory=tmp_path, n_students=10).fit(*problem)
    assert len(trainings) == 5
    assert trainings[:3] == before
    assert model.n_reused_students_ == 6
    assert_same_fit(model, make_model(n_students=10).fit(*problem))
    fewer = make_model(memory=tmp_path, n_students=4).fit(*problem)
    assert fewer.n_reused_students_ == 4
    assert len(trainings) == 5 + 5


@pytest.mark.parametrize(
    "change",
    [{"max_iter": 20}, {"tol": 1e-3}, {"activation": "erf"}, {"rho": 2}, {"random_state": 1}],
)
def test_what_matters_to_training_is_in_the_key(problem, trainings, tmp_path, change):
    make_model(memory=tmp_path, n_students=2).fit(*problem)
    make_model(memory=tmp_path, n_students=2, **change).fit(*problem)
    assert len(trainings) == 2


@pytest.mark.parametrize(
    "change",
    [{"finish": {"max_finished": 2}}, {"warm_up": {"steps": 99}}, {"polish": {"window": 19}}],
)
def test_settings_are_in_the_key(problem, trainings, tmp_path, change):
    model = make_model(memory=tmp_path, n_students=2).fit(*problem)
    with_settings(model, **change).fit(*problem)
    assert len(trainings) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 0.9, "beta": 0.1, "cut": "global"},
        {"verbose": 1, "n_jobs": 1, "device": "cpu", "working_memory": 2000},
        {"tol": np.float32(0.0), "max_iter": np.int64(30), "hidden_layer_sizes": (2,), "rho": 3.0},
        {"random_state": np.random.RandomState(0)},  # noqa: NPY002
    ],
)
def test_what_does_not_matter_is_not(problem, trainings, tmp_path, change):
    make_model(memory=str(tmp_path), n_students=2).fit(*problem)
    model = make_model(memory=joblib.Memory(str(tmp_path), verbose=0), n_students=2, **change)
    X, y = problem
    model.fit(np.asfortranarray(X), np.repeat(y, 2)[::2][:, None])
    assert model.n_reused_students_ == 2
    assert len(trainings) == 1


def n_trained(model, X, y):
    return {
        "score": model.score(X, y),
        "n_trained": len(model.student_losses_) - model.n_reused_students_,
    }


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_over_thresholds_trains_once_per_fold(problem, tmp_path, n_jobs):
    """Two processes want the same students at the same time; one of them trains."""
    params = {"n_students": 3, "prune": True, "tol": 1e-20, "max_iter": 300, "n_jobs": 1}
    search = GridSearchCV(
        make_model({}, memory=tmp_path, **params),
        {"gamma": [0.3, 0.5, 0.9], "beta": [0.1, 0.5]},
        cv=3,
        scoring=n_trained,
        refit="score",
        n_jobs=n_jobs,
    ).fit(*problem)
    trained = [search.cv_results_[f"split{fold}_test_n_trained"] for fold in range(3)]
    assert_array_equal(np.sort(trained, axis=1), [[0, 0, 0, 0, 0, 3]] * 3)
    assert search.best_estimator_.n_reused_students_ == 0
    assert search.best_estimator_.recovered_


def test_networks_are_finished_once(problem, tmp_path, monkeypatch):
    calls = []
    finish = scheduling.Finisher._finish

    def spy(*args):
        calls.append(args)
        return finish(*args)

    monkeypatch.setattr(scheduling.Finisher, "_finish", spy)
    fit = make_model({}, memory=tmp_path, prune=True).fit
    first, again = fit(*problem), fit(*problem)
    assert len(calls) > 0
    n_calls = len(calls)
    assert_same_fit(first, again)
    fit(*problem)
    assert len(calls) == n_calls


def test_memory_needs_a_seed(problem, tmp_path):
    model = make_model(memory=tmp_path, random_state=None, n_students=2)
    with pytest.warns(UserWarning, match="random_state is None"):
        model.fit(*problem)


@pytest.mark.slow
def test_warm_start_keeps_the_students(problem, trainings):
    model = make_model(warm_start=True, random_state=None, n_students=5).fit(*problem)
    losses = model.student_losses_
    model.set_params(n_students=8).fit(*problem)
    assert [len(seeds) for seeds in trainings] == [2, 2, 1, 2, 1]
    assert_array_equal(model.student_losses_[:5], losses)
    assert model.n_reused_students_ == 5
    assert len(np.unique(model.student_losses_)) == 8
    X, y = problem
    model.fit(X, y + X[:, 0])
    assert model.n_reused_students_ == 0


def test_a_cold_start_keeps_nothing(problem, trainings):
    model = make_model(n_students=2)
    model.fit(*problem).fit(*problem)
    assert len(trainings) == 2
    assert not model._known_groups


# Workers


def test_results_do_not_depend_on_processes(problem):
    serial = make_model(n_students=3).fit(*problem)
    parallel = make_model(n_students=3, n_jobs=2).fit(*problem)
    assert_same_network(parallel, serial)


@pytest.mark.parametrize("n_jobs", [2, 4])
def test_results_do_not_depend_on_threads(problem, n_jobs):
    serial = make_model(n_students=5).fit(*problem)
    with joblib.parallel_config(backend="threading", n_jobs=n_jobs):
        parallel = make_model(n_students=5).fit(*problem)
    assert_same_network(parallel, serial)


def test_threads_share_the_processors(problem, monkeypatch):
    """Threads of this process do not use all of torch's threads each."""
    n_threads = []

    def spy(*args):
        n_threads.append(n_allowed())
        return train_group(*args)

    before, train_group = torch.get_num_threads(), scheduling.train_group
    monkeypatch.setattr(scheduling, "train_group", spy)
    monkeypatch.setattr(scheduling, "cpu_count", lambda: 2)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        make_model(n_students=4).fit(*problem)
    assert n_threads == [1, 1]
    assert torch.get_num_threads() == before


def test_groups_behind_the_successful_one_are_discarded(problem, trainings):
    params = {"prune": True, "tol": 1e-20, "max_iter": 300, "n_students": 8}
    serial = make_model(**params).fit(*problem)
    n_serial = len(trainings)
    with joblib.parallel_config(backend="threading", n_jobs=4):
        parallel = make_model(**params).fit(*problem)
    assert n_serial < 4 == len(trainings) - n_serial
    assert_same_fit(parallel, serial)


# Killed and continued


SHORT_EPOCHS = {"warm_up": {"steps": 100, "steps_per_epoch": 10}}


@pytest.fixture
def checkpoint_every_epoch(monkeypatch):
    monkeypatch.setattr(cache, "CHECKPOINT_SECONDS", 0.0)


def spy_on(monkeypatch, owner, name):
    """Calls of a method, each the list of its arguments."""
    calls, original = [], getattr(owner, name)

    def spy(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, spy)
    return calls


def fail_at_save(monkeypatch, number):
    save, saves = cache.FileCheckpoint.save, []

    def save_or_fail(checkpoint, state):
        save(checkpoint, state)
        saves.append(checkpoint)
        if len(saves) == number:
            raise RuntimeError("the end")

    monkeypatch.setattr(cache.FileCheckpoint, "save", save_or_fail)


@pytest.mark.parametrize("solver", ["levenberg", "matrix_free", "adam"])
@pytest.mark.parametrize(
    "n_saved", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_failed_fit_goes_on_where_it_was(
    problem, checkpoint_every_epoch, tmp_path, monkeypatch, solver, n_saved
):
    """Two groups of three epochs each; what was saved is not trained again."""
    params = {"solver": solver, "n_students": 4, "max_iter": 3 if solver == "adam" else 12}
    few_steps = {"training": {"steps_per_epoch": 4}, "conjugate_gradients": {"block_steps": 4}}
    params |= {"settings": GROUPS_OF_TWO | SHORT_EPOCHS | few_steps}
    with monkeypatch.context() as patch:
        fail_at_save(patch, n_saved)
        with pytest.raises(RuntimeError, match="the end"):
            make_model(memory=tmp_path, **params).fit(*problem)
    assert len(list(tmp_path.rglob("*.checkpoint"))) == 1
    with monkeypatch.context() as patch:
        net = skorch_nets.AdamNet if solver == "adam" else skorch_nets.LevenbergNet
        epochs = spy_on(patch, net, "train_step")
        model = make_model(memory=tmp_path, **params).fit(*problem)
    assert len(epochs) == 6 - n_saved
    assert model.n_reused_students_ == 2 * (n_saved // 4)
    assert_same_fit(model, make_model(**params).fit(*problem))
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_a_killed_fit_goes_on_where_it_was(problem, tmp_path):
    """A process that dies in the middle of its third checkpoint leaves nothing broken behind."""
    script = """
        import os, pickle, signal, sys
        import numpy as np
        from sklearn_ec import ExpandClusterRegressor
        from sklearn_ec._io import cache
        cache.CHECKPOINT_SECONDS = 0.0
        replace, saves = os.replace, []
        def killed(*args):
            saves.append(args)
            if len(saves) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)
        cache.os.replace = killed
        model, X, y = pickle.load(sys.stdin.buffer)
        model.fit(X, y)
    """
    model = make_model({}, memory=tmp_path, n_students=2, max_iter=60)
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=pickle.dumps((model, *problem)),
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (checkpoint,) = tmp_path.rglob("*.checkpoint")
    assert pickle.loads(checkpoint.read_bytes()).running.n_epochs == 2
    assert list(tmp_path.rglob("*.temporary"))
    model.fit(*problem)
    assert_same_fit(model, make_model({}, n_students=2, max_iter=60).fit(*problem))
    left = [path.suffix for path in tmp_path.rglob("*") if path.is_file()]
    assert set(left) == {".lock", ".pkl", ".json", ".py", ""}


def test_large_students_go_on_with_the_batch_they_were_in(
    problem, checkpoint_every_epoch, tmp_path, monkeypatch
):
    settings = SHORT_EPOCHS | {"training": {"batch_flops_on_cpu": 0.0, "min_batch": 2}}
    params = {"settings": settings, "n_students": 4, "max_iter": 20}  # two epochs
    with monkeypatch.context() as patch:
        fail_at_save(patch, 3)
        with pytest.raises(RuntimeError, match="the end"):
            make_model(memory=tmp_path, **params).fit(*problem)
    with monkeypatch.context() as patch:
        epochs = spy_on(patch, skorch_nets.LevenbergNet, "train_step")
        model = make_model(memory=tmp_path, **params).fit(*problem)
    assert len(epochs) == 1
    assert_same_fit(model, make_model(**params).fit(*problem))


# Interrupted


def interrupt_at(monkeypatch, owner, name, number):
    """Ctrl-C in the midst of a call of a method."""
    original, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(args)
        if len(calls) == number:
            handler = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:  # processes that run tests ignore Ctrl-C
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.signal(signal.SIGINT, handler)
        return result

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name", "number", "n_students"),
    [
        (skorch_nets.AdamNet, "_minibatch_step", 50, 2),
        (LeastSquaresTask, "normal_equations", 15, 2),
        (LeastSquaresTask, "normal_equations", 45, 4),
        (skorch_nets.TrainingMonitor, "_remember", 3, 2),
        (scheduling, "effective_n_jobs", 1, None),
    ],
)
def test_ctrl_c_ends_the_fit_with_the_best_network_so_far(
    problem, tmp_path, monkeypatch, owner, name, number, n_students
):
    model = make_model(memory=tmp_path, n_students=4)
    with monkeypatch.context() as patch:
        interrupt_at(patch, owner, name, number)
        if n_students is None:
            with pytest.raises(KeyboardInterrupt):
                model.fit(*problem)
            return
        with pytest.warns(ConvergenceWarning, match=f"interrupted with {n_students} students"):
            model.fit(*problem)
    assert len(model.student_losses_) == n_students
    X, y = problem
    assert np.isfinite(model.predict(X)).all()
    if name != "_minibatch_step":
        assert model.score(X, y) > 0.9
    whole = make_model(memory=tmp_path, n_students=4).fit(*problem)
    assert whole.n_reused_students_ == n_students - 2
    assert_same_fit(whole, make_model(n_students=4).fit(*problem))


def test_ctrl_c_stops_between_two_steps(problem, monkeypatch):
    """The students hold the state after 14 steps, not a mixture."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, LeastSquaresTask, "normal_equations", 15)
        with pytest.warns(ConvergenceWarning, match="interrupted"):
            model = make_model(n_students=2).fit(*problem)
    settings = GROUPS_OF_TWO | {"training": {"steps_per_epoch": 14}}
    exact = make_model(settings, n_students=2, max_iter=14).fit(*problem)
    assert_array_equal(model.student_losses_, exact.student_losses_)


def test_ctrl_c_while_networks_are_finished(problem, monkeypatch):
    model = make_model(n_students=4, prune=True, max_iter=20)
    with monkeypatch.context() as patch:
        interrupt_at(patch, scheduling.Finisher, "_finish", 1)
        with pytest.warns(ConvergenceWarning, match="interrupted with 4 students"):
            model.fit(*problem)
    assert model.score(*problem) > 0.9
    model.recluster()
    assert_same_fit(model, make_model(n_students=4, prune=True, max_iter=20).fit(*problem))


# Memory budget


def test_a_small_working_memory_splits_the_steps(problem):
    whole = make_model(n_students=2, prune=True).fit(*problem)
    params = {"n_students": 2, "solver": "levenberg"}
    with pytest.warns(EfficiencyWarning, match="2 students take .* trained 1 at a time"):
        split = make_model(prune=True, working_memory=0.01, **params).fit(*problem)
    assert_same_network(in_order(split), in_order(whole))
    with config_context(working_memory=0.01), pytest.warns(EfficiencyWarning, match="0 MiB"):
        make_model(**params).fit(*problem)


def test_a_device_without_memory_takes_fewer_students_at_a_time(problem, monkeypatch):
    whole = make_model(SHORT_WARM_UP, n_students=5, prune=True).fit(*problem)
    equations = LeastSquaresTask.normal_equations

    def limited(task, layers):
        if len(layers[0]) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return equations(task, layers)

    monkeypatch.setattr(LeastSquaresTask, "normal_equations", limited)
    with pytest.warns(EfficiencyWarning, match="5 students at a time .* goes on with 2"):
        split = make_model(SHORT_WARM_UP, n_students=5, prune=True).fit(*problem)
    assert_same_network(split, whole)


def test_no_memory_for_one_student_is_an_error(problem, monkeypatch):
    def fail(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LeastSquaresTask, "normal_equations", fail)
    with (
        pytest.warns(EfficiencyWarning, match="goes on with 1"),
        pytest.raises(torch.cuda.OutOfMemoryError, match="no memory for .* one student"),
    ):
        make_model(n_students=2).fit(*problem)


# Pickles


def test_fitted_state_needs_no_device(problem, tmp_path):
    """A pickle names no class of torch, so that what was fitted on a GPU loads without one."""
    for params in ({"memory": tmp_path}, {"warm_start": True}, {"prune": True, "max_iter": 300}):
        model = make_model(**params).fit(*problem)
        operations = pickletools.genops(pickle.dumps(model, protocol=2))
        names = {argument for code, argument, _ in operations if code.name == "GLOBAL"}
        packages = {name.split(".")[0].split(" ")[0] for name in names}
        assert packages <= {"sklearn_ec", "numpy", "copy_reg", "__builtin__", "_codecs", "pathlib"}


# Progress


class Recorder:
    """A callback that notes what ends, and asks to stop after some of these."""

    def __init__(self, stop_after=None):
        self.ended = []
        self.stop_after = stop_after

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.ended.append(context.task_name)
        return self.ended[-1:] == ["epoch"] and self.ended.count("epoch") == self.stop_after


@pytest.fixture
def callbacks():
    return pytest.importorskip("sklearn.callback", reason="needs scikit-learn 1.9")


def test_callbacks_see_epochs_in_groups_in_stages(callbacks, problem):
    recorder = Recorder()
    with_settings(make_model(n_students=4), **SILENT).set_callbacks(recorder).fit(*problem)
    group = ["epoch", "epoch", "epoch", "group of students"]
    assert recorder.ended == [*group, *group, "students, hidden layers (2,), tanh", "fit"]


def test_a_callback_may_end_the_training(callbacks, problem):
    model = with_settings(make_model(n_students=4), **SILENT)
    model.set_callbacks(Recorder(stop_after=2))
    with pytest.warns(ConvergenceWarning, match="interrupted with 2 students"):
        model.fit(*problem)
    assert model.n_iter_ == 20


def test_bars_nest_in_a_search(callbacks, problem, capsys):
    pytest.importorskip("rich", reason="needs rich")
    search = GridSearchCV(make_model(n_students=2), {"gamma": [0.3, 0.5]}, cv=2)
    search.set_callbacks(callbacks.ProgressBar()).fit(*problem)
    printed = capsys.readouterr().out
    assert "GridSearchCV" in printed
    assert "ExpandClusterRegressor" in printed


def test_lines_tell_the_students_and_the_time_left(problem, capsys):
    with_settings(make_model(n_students=4, verbose=1), **SILENT).fit(*problem)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "0 of 2 students converged after 30 steps" in lines[0]
    assert "2 students and at most" in lines[0]
    assert "0 of 4 students" in lines[1]
    assert "left" not in lines[1]
    assert "network (" in lines[2]
