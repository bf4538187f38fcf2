"""Queries of models of other libraries."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn

from sklearn_ec.extraction import as_query
from sklearn_ec.probabilities import targets_from_proba

BRIEFLY_TRAINED = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X = np.random.default_rng(0).normal(size=(50, 3))


def test_a_callable_sees_all_inputs_at_once():
    query = as_query(lambda X: X[:, 0] * len(X), batch_size=10)
    assert_array_equal(query(X), X[:, 0] * 50)


@pytest.mark.parametrize(("output", "function"), [("logistic", special.expit), ("tanh", np.tanh)])
def test_known_functions_of_the_outputs_are_undone(output, function):
    query = as_query(lambda X: function(X), output=output)
    assert_allclose(query(X), X, rtol=1e-12)


@BRIEFLY_TRAINED
def test_a_regressor_of_scikit_learn():
    model = MLPRegressor(hidden_layer_sizes=(4,), max_iter=5).fit(X, X[:, 0] ** 2)
    model_seen = []
    predict, model.predict = model.predict, lambda X: model_seen.append(len(X)) or predict(X)
    assert_array_equal(as_query(model, batch_size=20)(X), predict(X))
    assert model_seen == [20, 20, 10]


@BRIEFLY_TRAINED
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_classifier_of_scikit_learn(n_classes):
    model = MLPClassifier(hidden_layer_sizes=(4,), max_iter=5).fit(X, np.arange(50) % n_classes)
    assert_allclose(as_query(model)(X), targets_from_proba(model.predict_proba(X)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_of_torch(dtype):
    module = nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.Dropout(0.5), nn.Tanh())
    answers = as_query(module, batch_size=7)(X)
    assert module.training
    assert answers.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    module.eval()
    expected = module(torch.from_numpy(X).to(dtype)).detach().numpy()
    # Sums in another order round differently next to zero.
    assert_allclose(answers, expected, rtol=1e-6, atol=4 * torch.finfo(dtype).eps)


def make_session(n_rows, given="FLOAT"):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    kind = getattr(onnx.TensorProto, given)
    node = onnx.helper.make_node("Mul", ["x", "x"], ["y"])
    tensors = [onnx.helper.make_tensor_value_info(name, kind, [n_rows, 3]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "square", tensors[:1], tensors[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    return runtime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("n_rows", ["n", 8])
@pytest.mark.parametrize(("given", "dtype"), [("FLOAT", np.float32), ("DOUBLE", np.float64)])
def test_a_session_of_onnxruntime(n_rows, given, dtype):
    answers = as_query(make_session(n_rows, given))(X)
    assert answers.dtype == dtype
    assert_array_equal(answers, X.astype(dtype) ** 2)


def test_a_session_that_reads_no_numbers():
    with pytest.raises(TypeError, match=r"reads tensor\(int64\)"):
        as_query(make_session("n", "INT64"))


def test_what_cannot_be_asked():
    with pytest.raises(TypeError, match="A dict cannot be asked: give a function"):
        as_query({})
    with pytest.raises(ValueError, match="Unknown output 'softmax': choose 'auto' or one of"):
        as_query(np.sin, output="softmax")
