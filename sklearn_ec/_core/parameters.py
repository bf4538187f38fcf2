"""Parameters of which scikit-learn cannot say what is wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils._param_validation import InvalidParameterError

from .activations import ACTIVATIONS, is_activation
from .hints import activation_hint, angle_hint

MUST_BE = "parameter of ExpandClusterRegressor must be"


def check_angle(beta: Any) -> None:
    """Raise if an angle is probably meant in degrees."""
    if degrees := angle_hint(beta):
        raise InvalidParameterError(
            f"The 'beta' {MUST_BE} at most pi. Got {beta!r} instead: {degrees}"
        )


def check_activation(name: str) -> None:
    """Raise if there is no such activation."""
    if name != "auto" and not is_activation(name):
        raise InvalidParameterError(
            f"The 'activation' {MUST_BE} 'auto' or the name of an activation. "
            f"Got {name!r} instead: {activation_hint(name, ACTIVATIONS)}"
        )


def assumed_widths(hidden_layer_sizes: Any, rho: Any) -> tuple[int, ...] | None:
    """The given widths, None for ``"auto"``; raises if they do not fit the expansion factors."""
    sizes = hidden_layer_sizes
    rhos = np.atleast_1d(np.asarray(rho, dtype=float))
    if rhos.ndim != 1 or not (rhos >= 1).all():
        raise ValueError(
            f"rho must be a number of at least 1 or a tuple of such numbers, got {rho!r}."
        )
    if not isinstance(sizes, str):
        sizes = np.atleast_1d(np.asarray(sizes))
        if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 1).any():
            raise ValueError(
                "hidden_layer_sizes must be a positive int, a tuple of positive ints or "
                f"'auto', got {hidden_layer_sizes!r}."
            )
    n_layers = 1 if isinstance(sizes, str) else len(sizes)
    if np.ndim(rho) and len(rhos) != n_layers:
        raise ValueError(
            f"rho={rho!r} has {len(rhos)} factors for {n_layers} hidden layers: give one "
            "per layer, or one number for all."
        )
    return None if isinstance(sizes, str) else tuple(sizes.tolist())
