"""Networks inside pipelines and target transformers; all scalers are in ``test_scaling``."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from builders import QuickRegressor
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._folding import fold, inside, is_wrapper, unwrap
from sklearn_ec.datasets import Teacher


def around(model):
    """Wrappers around a model, one way and the other."""
    return [
        make_pipeline(StandardScaler(), model),
        TransformedTargetRegressor(model, transformer=StandardScaler()),
        make_pipeline(
            MinMaxScaler(), TransformedTargetRegressor(model, transformer=StandardScaler())
        ),
        TransformedTargetRegressor(
            make_pipeline(StandardScaler(), MinMaxScaler(), model), transformer=MinMaxScaler()
        ),
    ]


def layers_of(model):
    if is_wrapper(model):
        return fold(model, layers_of(inside(model)))
    return model.coefs_, model.intercepts_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "model", around(MLPRegressor(hidden_layer_sizes=(4, 3), max_iter=2)), ids=range(4)
)
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_folded_layers_compute_what_the_wrapper_does(model, n_outputs):
    rng = np.random.default_rng(0)
    X = rng.uniform([-2, 0, 50], [2, 4, 90], size=(60, 3))
    y = 100.0 + X @ rng.normal(size=(3, n_outputs))
    model.fit(X, y[:, 0] if n_outputs == 1 else y)
    network = Teacher(*layers_of(model), "relu")
    assert_allclose(network.predict(X), model.predict(X), rtol=1e-10)


def test_folding_leaves_the_layers_as_they_are():
    X = np.arange(10.0).reshape(5, 2)
    pipeline = make_pipeline(StandardScaler(), LinearRegression()).fit(X, X[:, 0])
    weights, biases = [np.ones((2, 1))], [np.zeros(1)]
    fold(pipeline, (weights, biases))
    assert_allclose(weights[0], 1.0, rtol=0)
    assert_allclose(biases[0], 0.0, rtol=0)


@pytest.mark.parametrize("index", range(4))
def test_unwrap_finds_the_estimator(index, tanh_problem):
    _, X, y = tanh_problem
    estimator = QuickRegressor(hidden_layer_sizes=4, activation="tanh", n_students=2)
    model = around(estimator.set_params(random_state=0))[index]
    with pytest.raises(NotFittedError):
        unwrap(model)
    core = unwrap(model.fit(X, y))
    assert isinstance(core, ExpandClusterRegressor)
    assert core.recovered_
    assert unwrap(core) is core


def test_unwrap_refuses_other_models():
    X = np.arange(10.0).reshape(5, 2)
    for model in (LinearRegression(), make_pipeline(StandardScaler(), LinearRegression())):
        with pytest.raises(TypeError, match="LinearRegression is no ExpandClusterRegressor"):
            unwrap(model.fit(X, X[:, 0]))
