"""One table of activation functions: function, derivatives and symmetry class.

Every activation exists twice, for numpy (``predict``) and for torch (training), so that a fitted
network needs no torch to run.

Symmetry classes (Martinelli et al., 2024, Section 4) say what flipping the sign of a neuron's
incoming weight vector ``u`` does:

- ``"none"``: no symmetry but permutation;
- ``"odd"``: ``s(-z) = c - s(z)``; (u, a) and (-u, -a) are the same neuron up to a constant ``c·a``;
- ``"even_linear"``: ``s(-z) = s(z) - c·z``; a flip leaves a linear function of the input behind.

A positively homogeneous activation has ``s(c·z) = c·s(z)`` for ``c > 0`` as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from scipy import special

from .hints import activation_hint

Symmetry = Literal["none", "odd", "even_linear"]

# That of "leaky_relu"; "leaky_relu(0.2)" has another one.
LEAKY_RELU_SLOPE = 0.01
# torch's default threshold of 20 makes an error of 2e-9, far above float64 rounding.
SOFTPLUS_THRESHOLD = 40.0


@dataclass(frozen=True)
class Activation:
    """An activation function with its derivatives and its symmetries.

    Derivatives are called with ``z`` and ``s(z)``, of which some are functions.

    ``flip`` is the constant ``c`` of the symmetry class: the constant left behind by a flip of an
    odd activation, the slope of the linear function left behind by a flip of an even+linear one.
    """

    function: Callable[[np.ndarray], np.ndarray]
    tensor_function: Callable[[torch.Tensor], torch.Tensor]
    tensor_derivative: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    tensor_second_derivative: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    symmetry: Symmetry
    flip: float = 0.0
    homogeneous: bool = False

    @property
    def has_sign_flip(self) -> bool:
        return self.symmetry != "none"

    @property
    def has_linear_flip(self) -> bool:
        return self.symmetry == "even_linear"


def _tensor_softplus(z: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.softplus(z, threshold=SOFTPLUS_THRESHOLD)


def _tensor_sigmoid_derivative(s: torch.Tensor) -> torch.Tensor:
    return s * (1.0 - s)


def _tensor_sigmoid_second_derivative(s: torch.Tensor) -> torch.Tensor:
    return s * (1.0 - s) * (1.0 - 2.0 * s)


def _tensor_normal_density(z: torch.Tensor) -> torch.Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _tensor_silu_derivative(z: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    s = torch.sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


def _tensor_silu_second_derivative(z: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    s = torch.sigmoid(z)
    return s * (1.0 - s) * (2.0 + z * (1.0 - 2.0 * s))


def _relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0.0)


def _softplus(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, z)


@cache
def _leaky_relu(slope: float) -> Activation:
    return Activation(
        lambda z: np.where(z > 0, z, slope * z),
        lambda z: torch.nn.functional.leaky_relu(z, slope),
        lambda z, _: torch.full_like(z, slope).masked_fill_(z > 0, 1.0),
        lambda z, _: torch.zeros_like(z),
        "even_linear",
        flip=1.0 + slope,
        homogeneous=True,
    )


ACTIVATIONS: dict[str, Activation] = {
    "logistic": Activation(
        special.expit,
        torch.sigmoid,
        lambda _, s: _tensor_sigmoid_derivative(s),
        lambda _, s: _tensor_sigmoid_second_derivative(s),
        "odd",
        flip=1.0,
    ),
    "tanh": Activation(
        np.tanh,
        torch.tanh,
        lambda _, s: 1.0 - s * s,
        lambda _, s: -2.0 * s * (1.0 - s * s),
        "odd",
    ),
    "relu": Activation(
        _relu,
        torch.relu,
        lambda z, _: (z > 0).to(z.dtype),
        lambda z, _: torch.zeros_like(z),
        "even_linear",
        flip=1.0,
        homogeneous=True,
    ),
    "leaky_relu": _leaky_relu(LEAKY_RELU_SLOPE),
    "softplus": Activation(
        _softplus,
        _tensor_softplus,
        lambda z, _: torch.sigmoid(z),
        lambda z, _: _tensor_sigmoid_derivative(torch.sigmoid(z)),
        "even_linear",
        flip=1.0,
    ),
    "gelu": Activation(
        lambda z: z * special.ndtr(z),
        torch.nn.functional.gelu,
        lambda z, _: torch.special.ndtr(z) + z * _tensor_normal_density(z),
        lambda z, _: (2.0 - z * z) * _tensor_normal_density(z),
        "even_linear",
        flip=1.0,
    ),
    "silu": Activation(
        lambda z: z * special.expit(z),
        torch.nn.functional.silu,
        _tensor_silu_derivative,
        _tensor_silu_second_derivative,
        "even_linear",
        flip=1.0,
    ),
    "elu": Activation(
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0.0))),
        torch.nn.functional.elu,
        lambda z, s: torch.where(z > 0, 1.0, s + 1.0),
        lambda z, s: torch.where(z > 0, 0.0, s + 1.0),
        "none",
    ),
    "erf": Activation(
        special.erf,
        torch.erf,
        lambda z, _: (2.0 / math.sqrt(math.pi)) * torch.exp(-z * z),
        lambda z, _: (-4.0 / math.sqrt(math.pi)) * z * torch.exp(-z * z),
        "odd",
    ),
    "g": Activation(
        lambda z: special.expit(4.0 * z) + _softplus(z),
        lambda z: torch.sigmoid(4.0 * z) + _tensor_softplus(z),
        lambda z, _: 4.0 * _tensor_sigmoid_derivative(torch.sigmoid(4.0 * z)) + torch.sigmoid(z),
        lambda z, _: (
            16.0 * _tensor_sigmoid_second_derivative(torch.sigmoid(4.0 * z))
            + _tensor_sigmoid_derivative(torch.sigmoid(z))
        ),
        "none",
    ),
}


# logistic(z) = (1 + tanh(z / 2)) / 2: networks of either compute the same functions.
DISTINCT_ACTIVATIONS = tuple(name for name in ACTIVATIONS if name != "logistic")


def get_activation(activation: Any) -> Activation:
    """Look up an activation by name, with an error that says what may have been meant."""
    if not is_activation(activation):
        hint = activation_hint(activation, ACTIVATIONS)
        raise ValueError(f"Unknown activation {activation!r}: {hint}")
    slope = leaky_relu_slope(activation)
    return ACTIVATIONS[activation] if slope is None else _leaky_relu(slope)


def is_activation(name: Any) -> bool:
    """Whether something is the name of an activation."""
    return isinstance(name, str) and (name in ACTIVATIONS or leaky_relu_slope(name) is not None)


def leaky_relu_slope(name: str) -> float | None:
    """The slope of ``"leaky_relu"`` or ``"leaky_relu(<slope>)"`` on the left; None for others."""
    if name == "leaky_relu":
        return LEAKY_RELU_SLOPE
    match = re.fullmatch(r"leaky_relu\((\d*\.?\d+(?:e-?\d+)?)\)", name)
    slope = float(match[1]) if match else 0.0
    return slope if 0.0 < slope < 1.0 else None
