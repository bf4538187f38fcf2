"""Threads: as many as the work pays for, never more than allowed, given back afterwards."""

import threading
import time

import joblib
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from builders import SHORT_POLISH, SHORT_WARM_UP, with_settings
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core import threads
from sklearn_ec._core.threads import FLOPS_PER_THREAD, n_allowed, notice_crowd, threads_for
from sklearn_ec._expand import skorch_nets
from sklearn_ec._search import scheduling
from sklearn_ec._solvers import levenberg

pytestmark = pytest.mark.filterwarnings("ignore:The network is not certified")
LARGE = 1e15


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    """Four threads are allowed, whatever the machine has, and nothing was noticed so far."""
    monkeypatch.setattr(threads, "_allowance", threads._Allowance())
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def problem():
    X = np.random.default_rng(0).uniform(-2, 2, size=(100, 2))
    return X, np.tanh(X @ [1.0, -0.5] + 0.3)


def make_model(**settings):
    model = ExpandClusterRegressor(
        hidden_layer_sizes=1, activation="tanh", n_students=4, max_iter=10, random_state=0
    )
    return with_settings(model, **SHORT_WARM_UP, **SHORT_POLISH, **settings)


def counts_in(monkeypatch, owner, name):
    """The numbers of threads at the calls of a method."""
    original, counts = getattr(owner, name), []

    def spied(*args, **kwargs):
        counts.append(torch.get_num_threads())
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, spied)
    return counts


def in_new_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


# What work is given


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 1), (1.9, 1), (2.0, 2), (3.5, 3), (4.0, 4), (99.0, 4)]
)
def test_threads_grow_with_the_work(share, expected):
    with threads_for(share * FLOPS_PER_THREAD):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("n", [1, 2])
def test_no_more_than_allowed(n):
    with threadpool_limits(n, user_api="openmp"):
        with threads_for(LARGE):
            assert torch.get_num_threads() == n
        assert torch.get_num_threads() == n
    torch.set_num_threads(n)
    with threads_for(), threads_for(LARGE):
        assert torch.get_num_threads() == n_allowed() == n


def test_large_work_within_small_work_and_the_other_way_round():
    counts = []
    with threads_for():
        with threads_for(LARGE):
            counts.append(torch.get_num_threads())
            with threads_for():
                counts.append(torch.get_num_threads())
            counts.append(torch.get_num_threads())
        counts.append(torch.get_num_threads())
    assert counts == [4, 1, 4, 1]
    assert torch.get_num_threads() == 4


def test_a_fit_of_small_students_takes_one_thread(problem, monkeypatch):
    adam = counts_in(monkeypatch, skorch_nets.AdamNet, "_minibatch_step")
    steps = counts_in(monkeypatch, levenberg.Levenberg, "_advance")
    make_model().fit(*problem)
    assert set(adam) == set(steps) == {1}


def test_a_fit_of_large_students_takes_all(problem, monkeypatch):
    monkeypatch.setattr(threads, "FLOPS_PER_THREAD", 1.0)
    monkeypatch.setattr(threads, "MIN_SECONDS", np.inf)
    adam = counts_in(monkeypatch, skorch_nets.AdamNet, "_minibatch_step")
    steps = counts_in(monkeypatch, levenberg.Levenberg, "_advance")
    epochs = counts_in(monkeypatch, skorch_nets.LossRecorder, "_losses")
    make_model().fit(*problem)
    assert set(adam) == set(steps) == {4}
    assert set(epochs) == {1}


def test_workers_share_what_is_allowed(problem, monkeypatch):
    """Two workers of one process, on a machine of more processors than threads are allowed."""
    monkeypatch.setattr(scheduling, "cpu_count", lambda: 64)
    allowed, train_group = [], scheduling.train_group

    def spy(*args):
        allowed.append(n_allowed())
        return train_group(*args)

    monkeypatch.setattr(scheduling, "train_group", spy)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        make_model(search={"group_size": 2}).fit(*problem)
    assert allowed == [2, 2]


# What is given back


def test_a_fit_gives_threads_back(problem):
    model = make_model().fit(*problem)
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 4
    model.recluster(beta=0.3)
    assert torch.get_num_threads() == 4


def test_work_gives_the_threads_of_numpy_back():
    def blas():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = blas()
        with threads_for():
            with threads_for(LARGE):
                assert set(blas()) == {1}
            assert set(blas()) == {1}
        assert blas() == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_fit_gives_threads_back(problem, monkeypatch, error):
    def fail(*args):
        assert torch.get_num_threads() == 1
        raise error

    monkeypatch.setattr(skorch_nets.AdamNet, "initialize", fail)
    with pytest.raises(error):
        make_model().fit(*problem)
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 4


def test_work_of_two_python_threads_that_overlaps():
    """The first to begin ends first; the other one began with the single thread of the first."""
    begun, may_end = threading.Event(), threading.Event()

    def work():
        with threads_for():
            begun.set()
            assert may_end.wait(10)

    with threads_for():
        second = threading.Thread(target=work)
        second.start()
        assert begun.wait(10)
    assert torch.get_num_threads() == 4
    may_end.set()
    second.join()
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 4


# A crowd


def test_large_work_that_waits_for_processors_goes_on_with_one_thread(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: 0.5 * now[0])
    with threads_for(LARGE):
        assert torch.get_num_threads() == 4
        now[0] += 1.0
        notice_crowd()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    with threads_for(LARGE):
        assert torch.get_num_threads() == 1
        now[0] += 1.01 * threads.BACK_OFF
    with threads_for(LARGE):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("seconds", "share"), [(0.02, 0.0), (1.0, 0.9)])
def test_short_or_undisturbed_work_is_no_sign_of_a_crowd(monkeypatch, seconds, share):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: share * now[0])
    for _ in range(2):
        with threads_for(LARGE):
            assert torch.get_num_threads() == 4
            now[0] += seconds
