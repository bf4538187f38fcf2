"""ONNX models compute what the estimator computes, in float64."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special

from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._io.onnx import to_onnx
from sklearn_ec.datasets import make_teacher

onnx = pytest.importorskip("onnx", reason="ONNX export needs onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="running ONNX models needs onnxruntime")


def run(model, X):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [outputs] = session.run(None, {"X": X})
    return outputs


@pytest.mark.parametrize("sizes", [4, (4, 3)])
@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("name", [*ACTIVATIONS, "leaky_relu(0.2)"])
def test_computes_the_same(name, n_outputs, sizes):
    teacher = make_teacher(3, sizes, n_outputs, name, family="rough", random_state=0)
    model = to_onnx(teacher.weights_, teacher.biases_, name)
    for scale, n_samples in ((0.1, 1), (1.0, 7), (100.0, 500)):
        X = scale * np.random.default_rng(0).normal(size=(n_samples, 3))
        outputs = run(model, X)
        expected = teacher.predict(X).reshape(n_samples, n_outputs)
        assert outputs.dtype == np.float64
        assert_allclose(outputs, expected, rtol=0, atol=1e-14 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_over_their_whole_range(name):
    z = np.concatenate([np.linspace(-40, 40, 10001), [-700.0, -1e-9, 0.0, 1e-9, 700.0]])
    model = to_onnx([np.ones((1, 1))] * 2, [np.zeros(1)] * 2, name)
    expected = ACTIVATIONS[name].function(z)
    assert_allclose(run(model, z[:, None])[:, 0], expected, rtol=4e-15, atol=1e-14)


def test_erf_is_odd_and_saturates():
    model = to_onnx([np.ones((1, 1))] * 2, [np.zeros(1)] * 2, "erf")
    x = np.array([[0.0], [0.5], [3.0], [10.0], [1e6]])
    assert_allclose(run(model, x), special.erf(x), rtol=0, atol=4e-15)
    assert_allclose(run(model, -x), -run(model, x), rtol=0)


def test_file_of_a_fitted_estimator(tanh_problem, tanh_model, tmp_path):
    _, X, _ = tanh_problem
    path = tmp_path / "network.onnx"
    model = tanh_model.to_onnx(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [outputs] = session.run(["y"], {"X": X})
    assert_allclose(outputs[:, 0], tanh_model.predict(X), rtol=0, atol=1e-12)
    assert path.read_bytes() == model.SerializeToString()
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Tanh", "Gemm"]
    assert (model.producer_name, model.opset_import[0].version) == ("sklearn_ec", 17)


def test_missing_package_names_the_extra(tanh_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"package onnx: pip install sklearn_ec\[export\]"):
        tanh_model.to_onnx()
