"""Models inside pipelines and target transformers, and their networks in the units outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils.validation import check_is_fitted

from ._regressor import ExpandClusterRegressor

Layers = tuple[list[np.ndarray], list[np.ndarray]]  # weights (fan_in, fan_out), biases


def is_wrapper(model: Any) -> bool:
    return isinstance(model, Pipeline | TransformedTargetRegressor)


def inside(wrapper: Any) -> Any:
    """The model that a fitted pipeline or TransformedTargetRegressor wraps."""
    check_is_fitted(wrapper)
    return wrapper.steps[-1][1] if isinstance(wrapper, Pipeline) else wrapper.regressor_


def unwrap(model: Any) -> ExpandClusterRegressor:
    """The fitted estimator itself, out of any nesting of wrappers."""
    check_is_fitted(model)
    core = model
    while is_wrapper(core):
        core = inside(core)
    if not isinstance(core, ExpandClusterRegressor):
        raise TypeError(
            f"{type(core).__name__} is no ExpandClusterRegressor, and no pipeline or "
            "TransformedTargetRegressor around one."
        )
    return core


def fold(wrapper: Any, layers: Layers) -> Layers:
    """The layers of the wrapped network on the columns and targets as the wrapper is given them."""
    weights, biases = list(layers[0]), list(layers[1])
    if isinstance(wrapper, Pipeline):
        for name, scaler in reversed(wrapper.steps[:-1]):
            scaling = _scaling(scaler, f"step {name!r} of the pipeline")
            weights[0] = weights[0] / np.reshape(scaling.scale, (-1, 1))
            biases[0] = biases[0] - np.broadcast_to(scaling.offset, len(weights[0])) @ weights[0]
    else:
        scaling = target_scaling(wrapper)
        weights[-1] = weights[-1] * scaling.scale
        biases[-1] = biases[-1] * scaling.scale + scaling.offset
    return weights, biases


@dataclass(frozen=True)
class Scaling:
    """The map ``(columns - offset) / scale``."""

    offset: Any  # number or array of shape (n_columns,)
    scale: Any


def target_scaling(wrapper: TransformedTargetRegressor) -> Scaling:
    return _scaling(wrapper.transformer_, "the transformer of the targets")


def _scaling(scaler: Any, place: str) -> Scaling:
    if _is_identity(scaler):
        return Scaling(0.0, 1.0)
    if type(scaler) not in SCALINGS:  # a subclass may compute anything
        known = ", ".join(known.__name__ for known in SCALINGS)
        raise TypeError(
            f"{place} is a {type(scaler).__name__}, which cannot be folded: use {known}."
        )
    if getattr(scaler, "clip", False):
        raise TypeError(f"{place} clips, which cannot be folded: set clip=False.")
    return SCALINGS[type(scaler)](scaler)


def _is_identity(scaler: Any) -> bool:
    if isinstance(scaler, FunctionTransformer):
        return scaler.func is None and scaler.inverse_func is None
    return scaler is None or (isinstance(scaler, str) and scaler == "passthrough")


def _standard(scaler: StandardScaler) -> Scaling:
    return Scaling(
        scaler.mean_ if scaler.with_mean else 0.0, scaler.scale_ if scaler.with_std else 1.0
    )


def _robust(scaler: RobustScaler) -> Scaling:
    return Scaling(
        scaler.center_ if scaler.with_centering else 0.0,
        scaler.scale_ if scaler.with_scaling else 1.0,
    )


SCALINGS: dict[type, Callable[[Any], Scaling]] = {
    StandardScaler: _standard,
    MinMaxScaler: lambda scaler: Scaling(-scaler.min_ / scaler.scale_, 1.0 / scaler.scale_),
    MaxAbsScaler: lambda scaler: Scaling(0.0, scaler.scale_),
    RobustScaler: _robust,
}
