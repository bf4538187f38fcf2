"""A network as an ONNX model in float64.

The graph is written node by node: one ``Gemm`` per layer, activations from elementary operators
that onnxruntime has in float64. It lacks Softplus, Elu, Erf, Gelu and (from opset 16 on) LeakyRelu
there, which torch's exporters emit; these also write paths of the exporting machine to the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy import special

from sklearn_ec._core.activations import leaky_relu_slope
from sklearn_ec._version import __version__

from .optional_imports import import_optional

# Old enough for any runtime in use; the operators have not changed since.
OPSET = 17
IR_VERSION = 8

# erf(x) = 1 - exp(-x²) P(t) for x >= 0, with the polynomial P in t = (x - c) / (x + c).
ERF_CENTER = 2.0
ERF_DEGREE = 18

Operand = str | float | np.ndarray


class Graph:
    """A list of nodes and constants under construction; tensors go by their names."""

    def __init__(self, onnx: Any):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def apply(self, operator: str, *inputs: Operand) -> str:
        """Append a node; numbers among its inputs become constants."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, names, [output], name=output))
        return output

    def constant(self, value: float | np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        array = np.array(value, dtype=np.float64, order="C")
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name


def _leaky_relu(graph: Graph, z: str, slope: float) -> str:
    return graph.apply("Max", z, graph.apply("Mul", z, slope))


def _softplus(graph: Graph, z: str) -> str:
    decay = graph.apply("Exp", graph.apply("Neg", graph.apply("Abs", z)))
    return graph.apply(
        "Add", graph.apply("Relu", z), graph.apply("Log", graph.apply("Add", decay, 1.0))
    )


def _silu(graph: Graph, z: str) -> str:
    """Not ``z * Sigmoid(z)``: older onnxruntimes fuse it to an operator that float64 lacks."""
    return graph.apply("Div", z, graph.apply("Add", graph.apply("Exp", graph.apply("Neg", z)), 1.0))


def _elu(graph: Graph, z: str) -> str:
    """``max(z, 0) + 2t / (1 - t)`` with ``t = tanh(min(z, 0) / 2)``, which is expm1 there."""
    t = graph.apply("Tanh", graph.apply("Mul", graph.apply("Min", z, 0.0), 0.5))
    expm1 = graph.apply("Div", graph.apply("Mul", t, 2.0), graph.apply("Sub", 1.0, t))
    return graph.apply("Add", graph.apply("Relu", z), expm1)


def _erf(graph: Graph, z: str) -> str:
    x = graph.apply("Abs", z)
    t = graph.apply("Div", graph.apply("Sub", x, ERF_CENTER), graph.apply("Add", x, ERF_CENTER))
    *lower, leading = erf_coefficients()
    polynomial: Operand = leading
    for coefficient in reversed(lower):
        polynomial = graph.apply("Add", graph.apply("Mul", t, polynomial), coefficient)
    density = graph.apply("Exp", graph.apply("Neg", graph.apply("Mul", x, x)))
    tail = graph.apply("Mul", density, polynomial)
    return graph.apply("Mul", graph.apply("Sign", z), graph.apply("Sub", 1.0, tail))


@cache
def erf_coefficients() -> tuple[float, ...]:
    """Coefficients of P, lowest first: least squares, weighted for the absolute error of erf."""
    t = np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    x = ERF_CENTER * (1.0 + t) / (1.0 - t)
    weight = np.exp(-(np.minimum(x, 26.0) ** 2))
    powers = np.vander(t, ERF_DEGREE + 1, increasing=True)
    solution = np.linalg.lstsq(powers * weight[:, None], weight * special.erfcx(x), rcond=None)
    return tuple(solution[0].tolist())


def _gelu(graph: Graph, z: str) -> str:
    erf = _erf(graph, graph.apply("Mul", z, math.sqrt(0.5)))
    return graph.apply("Mul", graph.apply("Mul", z, 0.5), graph.apply("Add", erf, 1.0))


def _g(graph: Graph, z: str) -> str:
    sigmoid = graph.apply("Sigmoid", graph.apply("Mul", z, 4.0))
    return graph.apply("Add", sigmoid, _softplus(graph, z))


ACTIVATION_NODES: dict[str, Callable[[Graph, str], str]] = {
    "logistic": lambda graph, z: graph.apply("Sigmoid", z),
    "tanh": lambda graph, z: graph.apply("Tanh", z),
    "relu": lambda graph, z: graph.apply("Relu", z),
    "softplus": _softplus,
    "gelu": _gelu,
    "silu": _silu,
    "elu": _elu,
    "erf": _erf,
    "g": _g,
}


def _activate(graph: Graph, z: str, activation: str) -> str:
    slope = leaky_relu_slope(activation)
    if slope is not None:
        return _leaky_relu(graph, z, slope)
    return ACTIVATION_NODES[activation](graph, z)


def to_onnx(weights: list[np.ndarray], biases: list[np.ndarray], activation: str) -> Any:
    """An ``onnx.ModelProto`` with input X ``(n_samples, n_features)`` and output y."""
    onnx = import_optional("onnx", "export")
    graph = Graph(onnx)
    values = "X"
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        z = graph.apply("Gemm", values, weight, bias)
        values = _activate(graph, z, activation)
    graph.apply("Gemm", values, weights[-1], biases[-1])
    graph.nodes[-1].output[0] = "y"
    double = onnx.TensorProto.DOUBLE
    make_value = onnx.helper.make_tensor_value_info
    inputs = [make_value("X", double, ["n_samples", len(weights[0])])]
    outputs = [make_value("y", double, ["n_samples", len(biases[-1])])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "network", inputs, outputs, graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="sklearn_ec",
        producer_version=__version__,
    )
    onnx.checker.check_model(model)
    return model
