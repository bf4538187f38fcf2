"""How precisely the targets are known, and how large an error that explains.

Most networks answer in float32, and most tables hold a few decimals. Such targets leave an error
that no training removes, but one of a known size: it is imitated, by evaluating a network as the
targets were made, and that network is compared with itself. On 144 float32 networks (torch; relu,
tanh, softplus, g; one and two hidden layers; 1 and 3 outputs) the true error was 0.78 to 1.15 times
the imitated one, on another processor from 0.66, while it was 1.5 to 17 times the rounding of the
targets alone: every sum and every activation on the way rounds, too.

Processors differ in whether a sum begins or ends with the bias. Where the outputs are far from
zero, each addition rounds at their size: with the bias last in the imitation and first in the
network, the true error was up to 5.7 times the imitated one (480 torch networks of 4 to 32 neurons,
readout biases of 0 to 10,000). Both orders are tried, and the larger error counts: then it was at
most 1.4 times as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from .activations import Activation

FLOATS: dict[str, Any] = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
MAX_DECIMALS = 12
SAMPLE_SIZE = 10_000  # values of X that are looked at first
# Values agree with decimals, in units of their own rounding.
DECIMAL_TOLERANCE = 4.0
# Decimals are told from chance where their step is at least so many roundings of the largest value:
# a value would agree by chance with a probability of 0.4, so that 50 values never do.
MIN_DECIMAL_STEP = 20.0
# Large values of single precision are decimals by themselves: their spacing is a power of two.
# They count as decimals where chance makes them so with a probability of at most two to minus this.
MIN_BITS = 20.0


@dataclass(frozen=True)
class Precision:
    """How targets were rounded.

    Attributes
    ----------
    name : str
        "float64", "float32", "float16", "3 decimals" or "multiples of 0.05".
    step : float
        Distance of neighboring values in the units of y, 0 for floating-point numbers.
    slack : float
        Largest error that counts as rounding during training, in units of the rounding of the
        targets alone.
    """

    name: str
    step: float = 0.0
    slack: float = 5.0

    @property
    def is_full(self) -> bool:
        """Whether targets are as precise as the arithmetic of this package."""
        return self.name == "float64"

    @classmethod
    def of_step(cls, step: float, name: str = "") -> Precision:
        """Values that are multiples of a step: their rounding is known exactly."""
        return cls(name or f"multiples of {step:g}", step, slack=1.5)

    def spacing(self, y: np.ndarray) -> np.ndarray:
        """Distance to the neighboring values."""
        if self.step:
            return np.full(y.shape, self.step)
        return np.spacing(np.abs(y).astype(FLOATS[self.name])).astype(np.float64)

    def imitate(
        self,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        X: np.ndarray,
        activation: Activation,
        shift: float = 0.0,
    ) -> np.ndarray:
        """Outputs of a network as the targets were given, shape (n_samples, n_outputs).

        ``shift`` moves the grid of decimals by that many steps: where many outputs are the same, as
        those of ReLU neurons that are switched off, a network takes the rounding of them all for
        its own, and would be found without any.
        """
        if self.step:
            outputs = evaluate(weights, biases, X, activation, np.float64)
            return self.step * (np.round(outputs / self.step + shift) - shift)
        dtype = FLOATS[self.name]
        exact = evaluate(weights, biases, X, activation, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            bias_last, bias_first = (
                evaluate(weights, biases, X, activation, dtype, bias_first=first)
                for first in (False, True)
            )
            is_held = np.isfinite(X.astype(dtype)).all() and np.isfinite(bias_last).all()
            errors = [np.square(each - exact).sum(axis=0) for each in (bias_last, bias_first)]
            outputs = np.where(errors[0] >= errors[1], bias_last, bias_first)
        if not is_held:  # the network was not run in this type, its outputs were rounded
            outputs = exact.astype(dtype)
        return outputs.astype(np.float64)


FULL = Precision("float64")


def evaluate(
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    X: np.ndarray,
    activation: Activation,
    dtype: Any,
    *,
    bias_first: bool = False,
) -> np.ndarray:
    """Outputs of a network in a floating-point type, whose sums begin or end with the bias."""
    values = X.astype(dtype)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if layer:
            values = activation.function(values).astype(dtype)
        weight, bias = weight.astype(dtype), bias.astype(dtype)
        if bias_first:
            ones = np.ones((len(values), 1), dtype)
            values = np.hstack([ones, values]) @ np.vstack([bias, weight])
        else:
            values = values @ weight + bias
    return values


def find_precision(values: Any, given: str | float = "auto") -> Precision:
    """How values are rounded, from their type and from the values themselves.

    ``given`` is what the user says: the name of a floating-point type, or the step of which all
    values are multiples.
    """
    if isinstance(given, Real):
        return Precision.of_step(float(given))
    if given != "auto":
        return Precision(str(given))
    values = np.asarray(values)
    own = values.dtype.name if values.dtype.name in FLOATS else "float64"
    values = values.astype(np.float64)
    decimals = _decimals(values, np.finfo(FLOATS[own]).eps)
    if decimals is not None:
        return Precision.of_step(10.0**-decimals, f"{decimals} decimals")
    return _type_of(values)


def find_input_precision(X: np.ndarray) -> Precision:
    """How inputs are rounded: decimals are what networks are asked, single precision may not be."""
    sample = X.ravel()[:: max(1, X.size // SAMPLE_SIZE)]
    of_sample = find_precision(sample)
    if of_sample.is_full:
        return FULL
    precision = find_precision(X) if of_sample.step else _type_of(np.asarray(X, np.float64))
    return FULL if precision.step else precision


def _type_of(values: np.ndarray) -> Precision:
    """The smallest floating-point type that holds all values."""
    return Precision(next(name for name, dtype in FLOATS.items() if _holds(dtype, values)))


def _decimals(values: np.ndarray, eps: float) -> int | None:
    """Smallest number of decimals of all values, None where there is none."""
    largest = np.abs(values).max()
    for decimals in range(MAX_DECIMALS + 1):
        if 10.0**-decimals < MIN_DECIMAL_STEP * eps * largest:
            break
        distances = np.abs(values - np.round(values, decimals))
        if (distances <= DECIMAL_TOLERANCE * eps * np.abs(values)).all():
            return None if _is_wide_spacing(values, decimals) else decimals
    return None


def _is_wide_spacing(values: np.ndarray, decimals: int) -> bool:
    """Whether values are decimals only because single precision leaves no digits behind them."""
    if not (values.any() and _holds(np.float32, values)):
        return False
    spacing = np.spacing(np.abs(values[values != 0.0]).astype(np.float32))
    # Multiples of 2**-k that are decimals, too, are multiples of 2**-decimals.
    bits = -decimals - np.log2(spacing.astype(np.float64))
    return bool(bits.clip(min=0.0).sum() < MIN_BITS)


def _holds(dtype: type, values: np.ndarray) -> bool:
    """Whether a floating-point type holds all values exactly."""
    with np.errstate(over="ignore"):
        return bool((values.astype(dtype).astype(np.float64) == values).all())
