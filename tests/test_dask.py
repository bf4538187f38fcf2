"""Groups of students on the workers of a dask cluster, one of which dies."""

import os
import signal
import threading
import time

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose

from builders import with_settings
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher

distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of distributed


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def problem():
    teacher = make_teacher(2, 2, activation="tanh", random_state=0)
    X = np.random.default_rng(0).uniform(-2, 2, size=(150, 2))
    return X, teacher.predict(X)


def make_model(**params):
    model = ExpandClusterRegressor(
        rho=3,
        hidden_layer_sizes=2,
        activation="tanh",
        n_students=4,
        max_iter=200,
        tol=0.0,
        prune=False,
        random_state=0,
        **params,
    )
    return with_settings(model, search={"group_size": 2})


@pytest.fixture(scope="module")
def serial(problem):
    return make_model().fit(*problem)


def assert_same_network(model, other):
    assert model.recovered_
    for array, same in zip(
        [*model.weights_, *model.biases_], [*other.weights_, *other.biases_], strict=True
    ):
        assert_allclose(array, same, rtol=0, atol=1e-12)


def test_a_cluster_gives_the_same_network(client, problem, serial):
    with joblib.parallel_config(backend="dask"):
        model = make_model().fit(*problem)
    assert_same_network(model, serial)


def test_torch_does_not_use_more_threads_than_a_worker_has(client):
    def n_threads():
        import torch

        return torch.get_num_threads()

    assert set(client.run(n_threads).values()) == {1}


@pytest.mark.slow
def test_a_worker_may_die(client, problem, serial, tmp_path):
    killed = []

    def kill_one_worker():
        while not list(tmp_path.rglob("*.checkpoint")):
            time.sleep(0.01)
        killed.append(next(iter(client.run(os.getpid).values())))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    with joblib.parallel_config(backend="dask"):
        model = make_model(memory=tmp_path).fit(*problem)
    killer.join()
    assert_same_network(model, serial)
    again = make_model(memory=tmp_path).fit(*problem)
    assert again.n_reused_students_ == 4
