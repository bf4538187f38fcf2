"""Likely mistakes, and what was probably meant: sentences for errors and warnings."""

from __future__ import annotations

import math
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

import numpy as np

# What else activations are called, in lower case without separators.
ALIASES = {
    "expit": "logistic",
    "hyperbolictangent": "tanh",
    "lrelu": "leaky_relu",
    "rectifier": "relu",
    "sigmoid": "logistic",
    "swish": "silu",
}
UNSUPPORTED = """
arctan atan celu cos geglu gelunew gelupytorchtanh gelutanh glu hardshrink hardsigmoid hardswish
hardtanh identity linear logsigmoid logsoftmax mish prelu quickgelu relu6 rrelu selu sin sine
softmax softmin softshrink softsign swiglu tanhshrink
"""
# Least similarity of a misspelled name to the right one, as in difflib.
MIN_SIMILARITY = 0.7


def activation_hint(activation: Any, known: Collection[str]) -> str:
    """What to give instead of an activation that is not known."""
    key = "".join(character for character in str(activation).lower() if character not in " _-")
    if key in UNSUPPORTED.split():
        return 'it is not supported, see "What is identifiable" in the user guide.'
    if key.startswith("leakyrelu"):
        return "give 'leaky_relu', or 'leaky_relu(0.2)' for a slope between 0 and 1."
    names = {name.replace("_", ""): name for name in known} | ALIASES
    close = get_close_matches(key, names, n=1, cutoff=MIN_SIMILARITY)
    if close:
        return f"did you mean {names[close[0]]!r}?"
    return f"choose one of {', '.join(sorted(known))}."


def angle_hint(angle: Any) -> str:
    """What to give instead of an angle above pi, which is probably meant in degrees, else empty."""
    if not isinstance(angle, int | float | np.integer | np.floating) or not angle > math.pi:
        return ""
    return f"it is an angle in radians, for {angle:g} degrees give math.radians({angle:g})."


def counted_output_hint(hidden_layer_sizes: Any, n_outputs: int) -> str:
    """A question to those who seem to have counted the output layer as a hidden one, else empty."""
    sizes = np.atleast_1d(hidden_layer_sizes).tolist()
    if len(sizes) < 2 or sizes[-1] != n_outputs:
        return ""
    return f"hidden_layer_sizes counts hidden layers only: did you mean {tuple(sizes[:-1])}?"
