"""Shared problems and models."""

import os

import matplotlib
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import load_reference_suite, make_teacher

matplotlib.use("agg")

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each: workers share the processors
    torch.set_num_threads(1)
    threadpool_limits(1)


@pytest.fixture(scope="session")
def tanh_problem():
    """Four tanh neurons on three inputs, 600 rows."""
    teacher = make_teacher(3, 4, activation="tanh", random_state=0)
    X = np.random.default_rng(0).uniform(-2, 2, size=(600, 3))
    return teacher, X, teacher.predict(X)


@pytest.fixture(scope="session")
def tanh_model(tanh_problem):
    """The network of ``tanh_problem``, recovered. Tests leave it as it is."""
    _, X, y = tanh_problem
    return ExpandClusterRegressor(
        hidden_layer_sizes=4, activation="tanh", n_students=4, random_state=0
    ).fit(X, y)


@pytest.fixture(scope="session")
def g_problem():
    return load_reference_suite("g", n_seeds=1, n_inputs=(4,), widths=(4,))[0]
