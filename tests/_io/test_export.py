"""Exported networks predict what the estimator predicts."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import NotFittedError
from torch import nn

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._io.export import MLP_ACTIVATIONS, to_mlp_regressor, to_sequential
from sklearn_ec.datasets import make_teacher


def wide_inputs(n_inputs=3):
    return 10.0 * np.random.default_rng(0).normal(size=(200, n_inputs))


@pytest.mark.parametrize("sizes", [4, (4, 3)])
@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("name", [*sorted(ACTIVATIONS), "leaky_relu(0.2)"])
def test_torch_computes_the_same(name, n_outputs, sizes):
    teacher = make_teacher(3, sizes, n_outputs, name, family="rough", random_state=0)
    network = to_sequential(teacher.weights_, teacher.biases_, name)
    X = wide_inputs()
    with torch.no_grad():
        outputs = network(torch.from_numpy(X)).numpy()
    expected = teacher.predict(X).reshape(len(X), -1)
    assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())
    assert sum(isinstance(layer, nn.Linear) for layer in network) == len(teacher.weights_)
    restored = to_sequential(teacher.weights_, teacher.biases_, name)
    restored.load_state_dict(network.state_dict())


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("name", MLP_ACTIVATIONS)
def test_mlp_regressor_computes_the_same(name, n_outputs):
    teacher = make_teacher(3, (4, 3), n_outputs, name, family="rough", random_state=0)
    mlp = to_mlp_regressor(teacher.weights_, teacher.biases_, name)
    X = wide_inputs()
    assert_allclose(mlp.predict(X), teacher.predict(X), rtol=1e-12, atol=1e-12)
    assert mlp.hidden_layer_sizes == (4, 3)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_mlp_regressor_trains_on(n_outputs, solver):
    teacher = make_teacher(3, 4, n_outputs, "tanh", random_state=0)
    mlp = to_mlp_regressor(teacher.weights_, teacher.biases_, "tanh")
    mlp.set_params(solver=solver, learning_rate_init=1e-3, alpha=0.0, random_state=0)
    X = np.random.default_rng(0).normal(size=(200, 3))
    y = teacher.predict(X)
    mlp.partial_fit(X, y)
    assert_allclose(mlp.predict(X), y, atol=1e-10)  # it is at the minimum
    mlp.partial_fit(X, y + 1.0)
    assert np.min(mlp.predict(X) - y) > 0
    assert len(mlp.loss_curve_) == 2
    assert mlp.t_ == 400


def test_mlp_regressor_names_what_it_lacks():
    teacher = make_teacher(3, 4, activation="gelu", random_state=0)
    with pytest.raises(ValueError, match="no activation 'gelu'.*use to_torch"):
        to_mlp_regressor(teacher.weights_, teacher.biases_, "gelu")


def test_exports_need_a_fit():
    model = ExpandClusterRegressor()
    for export in (model.to_torch, model.to_mlp_regressor, model.to_onnx):
        with pytest.raises(NotFittedError):
            export()


def test_exports_of_a_fitted_estimator(tanh_problem, tanh_model):
    _, X, _ = tanh_problem
    model = tanh_model
    expected = model.predict(X)
    assert_allclose(model.to_mlp_regressor().predict(X), expected, rtol=0, atol=1e-12)
    network = model.to_torch()
    assert_allclose(network(torch.from_numpy(X)).detach()[:, 0], expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        network[0].weight.zero_()  # a copy: the estimator keeps its weights
    assert_allclose(model.predict(X), expected, rtol=0)


def test_export_to_mlp_regressor_keeps_feature_names(tanh_problem):
    pandas = pytest.importorskip("pandas")
    _, X, y = tanh_problem
    frame = pandas.DataFrame(X, columns=list("abc")[: X.shape[1]])
    model = ExpandClusterRegressor(
        hidden_layer_sizes=4, activation="tanh", n_students=4, random_state=0
    ).fit(frame, y)
    mlp = model.to_mlp_regressor()
    assert list(mlp.feature_names_in_) == list(frame.columns)
    assert_allclose(mlp.predict(frame), model.predict(frame), rtol=0, atol=1e-12)
