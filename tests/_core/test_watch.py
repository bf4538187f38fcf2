"""Fits that end in time, and that tell what they do while they last."""

import pickle
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from builders import LOUD, SHORT_WARM_UP, with_settings
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._certify.examination import certify
from sklearn_ec._core import watch as watch_module
from sklearn_ec._core.settings import Settings
from sklearn_ec._core.watch import OutOfTime, Watch
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.warm_up import WarmUpTrainer
from sklearn_ec._finish.finisher import Finisher
from sklearn_ec._report import reporting
from sklearn_ec._report.reporting import Heartbeat
from sklearn_ec._search.ensemble import Ensemble
from sklearn_ec._solvers.task import LeastSquaresTask


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now

    monotonic = perf_counter = time


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watch_module, "time", clock)
    monkeypatch.setattr(reporting, "time", clock)
    return clock


# The watch


def test_a_watch_without_deadline_never_ends(clock):
    watch = Watch()
    clock.now += 1e9
    watch.tick()
    watch.say("pruning")
    assert not watch.is_over


def test_the_deadline_ends_the_computation_as_ctrl_c_does(clock):
    watch = Watch(deadline=clock.now + 5.0)
    clock.now += 4.9
    watch.tick()
    assert not watch.is_over
    clock.now += 0.1
    assert watch.is_over
    with pytest.raises(OutOfTime):
        watch.say("pruning")
    watch.tick()  # what ends it in good order may take its time
    assert watch.is_over
    assert issubclass(OutOfTime, KeyboardInterrupt)


def test_a_disarmed_watch_neither_ends_nor_reports(clock):
    beats = []
    watch = Watch(deadline=clock.now, beat=beats.append)
    watch.disarm()
    clock.now += 100.0
    watch.tick()
    assert not watch.is_over
    assert not beats


def test_beats_come_once_a_second(clock):
    beats = []
    watch = Watch(beat=beats.append)
    watch.say("polishing")
    clock.now += 0.9 * 1.0
    watch.tick()
    assert not beats
    clock.now += 0.2 * 1.0
    watch.tick()
    watch.tick()
    assert beats == ["polishing"]
    clock.now += 1.1 * 1.0
    watch.say("pruning")
    assert beats == ["polishing", "pruning"]


def test_a_beat_may_end_the_computation(clock):
    answers = [False, None, True]
    watch = Watch(beat=lambda activity: answers.pop(0))
    for _ in range(2):
        clock.now += 2.1
        watch.tick()
    clock.now += 2.1
    with pytest.raises(KeyboardInterrupt) as stopped:
        watch.tick()
    assert not isinstance(stopped.value, OutOfTime)


def test_pickled_watches_keep_their_deadline_alone(clock):
    watch = Watch(clock.now + 5.0, beat=lambda activity: True)
    watch.say("pruning")
    copy = pickle.loads(pickle.dumps(watch))
    assert copy.deadline == watch.deadline
    assert copy.beat is None
    clock.now += 5.0
    with pytest.raises(OutOfTime):
        copy.tick()


# What is told


class FakeEstimator:
    verbose = 1
    _settings = Settings()


def test_lines_come_at_most_every_few_seconds(clock, capsys):
    heartbeat = Heartbeat(FakeEstimator())
    for seconds in (2.0, 1.9, 0.2, 2.0, 4.0):
        clock.now += seconds
        assert not heartbeat("pruning, widths (4,)")
    heartbeat.end()
    assert capsys.readouterr().out.splitlines() == [
        "[FakeEstimator] 4 s: pruning, widths (4,)",
        "[FakeEstimator] 10 s: pruning, widths (4,)",
    ]


def test_without_verbose_nothing_is_printed(clock, capsys):
    estimator = FakeEstimator()
    estimator.verbose = 0
    heartbeat = Heartbeat(estimator)
    clock.now += 100.0
    heartbeat("pruning")
    assert not capsys.readouterr().out


@pytest.fixture
def problem(tanh_problem):
    _, X, y = tanh_problem
    return X[:200], y[:200]


def make_model(**params):
    defaults = {"hidden_layer_sizes": 4, "activation": "tanh", "n_students": 2, "random_state": 0}
    return ExpandClusterRegressor(**(defaults | params))


def test_verbose_tells_of_polishing_and_pruning(problem, capsys):
    with_settings(make_model(verbose=1), **LOUD).fit(*problem)
    printed = capsys.readouterr().out
    assert "s: polishing, widths (" in printed
    assert "s: pruning, widths (4,), loss" in printed
    assert printed.splitlines()[-1].startswith("[ExpandClusterRegressor] network (4,): certified")


class Recorder:
    """A callback that notes which tasks begin and end, and may stop at one of them."""

    def __init__(self, stop_at=None):
        self.begun, self.ended = [], []
        self.stop_at = stop_at

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        self.begun.append(context.task_name)

    def on_fit_task_end(self, estimator, context):
        self.ended.append(context.task_name)
        parent = getattr(context, "parent", None)
        return (
            self.stop_at is not None
            and parent is not None
            and (parent.task_name.startswith(self.stop_at))
        )


@pytest.fixture
def callbacks():
    return pytest.importorskip("sklearn.callback", reason="needs scikit-learn 1.9")


def test_callbacks_see_a_task_for_each_activity(callbacks, problem):
    recorder = Recorder()
    with_settings(make_model(), **LOUD).set_callbacks(recorder).fit(*problem)
    names = [name.split(",")[0] for name in recorder.ended]
    assert {"pruning", "at work", "fit", "students"} <= set(names)
    assert "polishing" in names
    assert sorted(recorder.begun) == sorted(recorder.ended)  # every task that begins ends
    pruned = names.index("pruning")
    assert names[pruned - 1] == "at work"


def test_quick_fits_have_no_beats(callbacks, problem):
    recorder = Recorder()
    with_settings(make_model(), reporting={"beat": 1e9}).set_callbacks(recorder).fit(*problem)
    assert "at work" not in recorder.ended


def test_callbacks_may_end_the_pruning(callbacks, problem):
    model = with_settings(make_model(), **LOUD).set_callbacks(Recorder(stop_at="pruning"))
    with pytest.warns(ConvergenceWarning, match="fit was interrupted with 2 students"):
        model.fit(*problem)
    assert model.score(*problem) > 0.9
    assert model.set_callbacks(Recorder()).recluster().recovered_


# Time


def out_of_time_at(monkeypatch, clock_owner, name, number=1):
    """The time is over with a call of a method."""
    original, calls = getattr(clock_owner, name), []

    def late(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            monkeypatch.setattr(Watch, "is_over", property(lambda w: w.deadline is not None))
        return original(*args, **kwargs)

    monkeypatch.setattr(clock_owner, name, late)
    return calls


@pytest.mark.parametrize("max_time", [0, -1.0, "1"])
def test_max_time_is_positive(problem, max_time):
    with pytest.raises(ValueError, match="max_time"):
        make_model(max_time=max_time).fit(*problem)


def test_a_slow_fit_ends_in_time_with_a_regressor():
    X = np.random.default_rng(0).uniform(-2, 2, size=(1000, 2))
    y = np.sin(3 * X[:, 0]) * X[:, 1]
    model = ExpandClusterRegressor(activation="tanh", max_time=2, random_state=0)
    start = time.perf_counter()
    with pytest.warns(ConvergenceWarning, match="reached max_time=2 s") as caught:
        model.fit(X, y)
    assert time.perf_counter() - start < 6.0
    assert len(caught) == 1
    assert "recluster() finishes it" in str(caught[0].message)
    assert not model.recovered_
    assert model.score(X, y) > 0.3
    assert np.isfinite(model.certificate_.error)


@pytest.mark.parametrize("solver", ["levenberg", "matrix_free", "adam"])
@pytest.mark.parametrize("sizes", [4, (3, 2), "auto"])
@pytest.mark.parametrize("max_time", [1e-9, 0.05])
def test_hardly_any_time_gives_a_regressor_as_well(problem, max_time, sizes, solver):
    """The students as they were drawn, if need be: the time is over in the warm-up."""
    model = make_model(hidden_layer_sizes=sizes, n_students=10, max_time=max_time, solver=solver)
    with pytest.warns(ConvergenceWarning, match="reached max_time"):
        model.fit(*problem)
    assert np.isfinite(model.predict(problem[0])).all()
    assert not model.recovered_


def test_time_that_is_over_with_the_last_epoch_of_the_warm_up_ends_the_fit(problem, monkeypatch):
    """skorch ends a training that is interrupted quietly, as if it had been completed."""
    model = with_settings(make_model(max_time=1e6), **SHORT_WARM_UP)  # one epoch
    out_of_time_at(monkeypatch, WarmUpTrainer, "_tick")
    with pytest.warns(ConvergenceWarning, match="reached max_time"):
        model.fit(*problem)
    assert not model.recovered_


@pytest.mark.slow
def test_enough_time_changes_nothing(problem):
    timed = make_model(max_time=1e6).fit(*problem)
    assert timed.recovered_
    assert_array_equal(timed.predict(problem[0]), make_model().fit(*problem).predict(problem[0]))


def test_a_certified_network_is_kept_when_time_is_over(problem, monkeypatch):
    """It is over right behind the training that gave the network."""

    def late(ensemble, finisher):
        monkeypatch.setattr(finisher.polisher.watch, "deadline", 0.0)
        finisher.polisher.watch.tick()

    monkeypatch.setattr(Ensemble, "complete", late)
    model = make_model(tol=0.0, max_time=1e6)
    with_settings(model, training={"first_pruning_epoch": 1})
    with pytest.warns(ConvergenceWarning, match="certified, other students were not") as caught:
        model.fit(*problem)
    assert len(caught) == 1
    assert "reached max_time=1e+06 s" in str(caught[0].message)
    assert model.recovered_
    assert model.layer_sizes_ == (4,)


@pytest.mark.slow
def test_recluster_obeys_the_time_and_finishes_later(problem, monkeypatch):
    model = make_model(prune=True, max_iter=20, max_time=1e6)
    with monkeypatch.context() as patch:
        out_of_time_at(patch, Finisher, "_finish")
        with pytest.warns(ConvergenceWarning, match="reached max_time"):
            model.fit(*problem)
        assert not model.recovered_
        with pytest.warns(ConvergenceWarning, match="reached max_time"):
            model.recluster()
        assert not model.recovered_
    model.set_params(max_time=None).recluster()
    assert model.recovered_
    fresh = make_model(prune=True, max_iter=20).fit(*problem)
    assert_allclose(model.predict(problem[0]), fresh.predict(problem[0]), atol=1e-12)


def test_workers_end_in_time():
    X = np.random.default_rng(0).uniform(-2, 2, size=(1000, 2))
    y = np.sin(3 * X[:, 0]) * X[:, 1]
    model = make_model(hidden_layer_sizes=8, n_students=4, n_jobs=2, max_time=2, max_iter=10**6)
    with_settings(model, search={"group_size": 2})
    start = time.perf_counter()
    with pytest.warns(ConvergenceWarning, match="reached max_time=2 s"):
        model.fit(X, y)
    assert time.perf_counter() - start < 30.0  # workers have to start
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.slow
def test_interrupted_students_are_not_remembered(problem, monkeypatch, tmp_path):
    model = make_model(memory=tmp_path, max_time=1e6)
    with monkeypatch.context() as patch:
        out_of_time_at(patch, LeastSquaresTask, "normal_equations", number=15)
        with pytest.warns(ConvergenceWarning, match="reached max_time"):
            model.fit(*problem)
    whole = make_model(memory=tmp_path).fit(*problem)
    assert whole.n_reused_students_ == 0
    assert whole.recovered_
    assert_array_equal(whole.predict(problem[0]), make_model().fit(*problem).predict(problem[0]))


@pytest.mark.slow
def test_time_does_not_matter_to_what_is_remembered(problem, tmp_path):
    make_model(memory=tmp_path).fit(*problem)
    timed = make_model(memory=tmp_path, max_time=1e6).fit(*problem)
    assert timed.n_reused_students_ == 2


@pytest.mark.parametrize("call", ["polish", "prune", "certify"])
def test_every_long_computation_looks_at_the_watch(problem, call):
    """A polisher of which the time is over ends at the next step, removal or chunk."""
    fitted = make_model().fit(*problem)
    network = fitted._trained.ensemble.students.network(0)
    held_out, coordinates = fitted._problem.held_out, fitted._problem.coordinates
    watch = Watch(deadline=0.0)
    polisher = Polisher(fitted._problem.train, held_out, "tanh", "cpu", has_skip=False, watch=watch)
    finisher = Finisher(polisher, held_out, coordinates, prune=True)
    certified = fitted._trained.ensemble.recovered
    computations = {
        "polish": lambda: polisher.polish(network, 10),
        "prune": lambda: finisher.finish(network),
        "certify": lambda: certify(
            certified.network, polisher.task, polisher.samples, held_out, coordinates
        ),
    }
    with pytest.raises(OutOfTime):
        computations[call]()
    assert pickle.loads(pickle.dumps(polisher)).watch.deadline == 0.0
