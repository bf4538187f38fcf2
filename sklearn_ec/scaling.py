"""Fold column-wise scalers into the recovered network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
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

from ._activations import get_activation
from ._reconstruction import canonical_form
from ._regressor import ExpandClusterRegressor

__all__ = ["fold_scalers"]

# Learned attributes that a column-wise affine map leaves as they are: counts, measurements relative
# to the spread of y, and distances in the coordinates that the estimator standardizes to itself.
INVARIANT_ATTRIBUTES = (
    "_single_output",
    "activation_",
    "certificate_",
    "cluster_report_",
    "dendrogram_",
    "layer_sizes_",
    "loss_",
    "n_agreeing_",
    "n_features_in_",
    "n_iter_",
    "n_outputs_",
    "n_reused_students_",
    "recovered_",
    "search_report_",
    "student_loss_curves_",
    "student_losses_",
    "width_agreement_",
)


@dataclass(frozen=True)
class Scaling:
    """The map ``(columns - offset) / scale``."""

    offset: Any  # number or array of shape (n_columns,)
    scale: Any


def fold_scalers(model: Any) -> ExpandClusterRegressor:
    """Fold the scalers around a fitted estimator into its first and last layer.

    In a pipeline, ``weights_`` act on scaled columns, and their outputs are scaled targets. The
    returned estimator has the same predictions and acts on the columns and targets as they were
    given to ``model``: with ``x ↦ (x - o) / s`` in front, the first layer's weights become
    ``w / s`` and its biases ``b - w · (o / s)``.

    Parameters
    ----------
    model : Pipeline, TransformedTargetRegressor or ExpandClusterRegressor
        A fitted :class:`ExpandClusterRegressor`, in any nesting of pipelines with scalers in front
        of it and of target transformers around it. Scalers are ``StandardScaler``,
        ``MinMaxScaler``, ``MaxAbsScaler``, ``RobustScaler``, ``FunctionTransformer`` without a
        function, and ``"passthrough"``.

    Returns
    -------
    ExpandClusterRegressor
        A fitted copy. ``weights_`` and ``biases_`` are in the canonical form of ``fit``: order,
        signs and lengths may differ from those of the scaled network. All that is measured in the
        internal standardized coordinates or relative to the spread of y carries over, as
        ``dendrogram_``, ``cluster_report_``, ``student_losses_``, ``loss_`` and ``certificate_``;
        ``noise_level_`` is scaled. The training rows and students are left out, so that there are
        no ``standard_errors()``: ``recluster`` the estimator inside ``model``, then fold again.

    Raises
    ------
    NotFittedError
        If ``model`` is not fitted.
    TypeError
        If a step is not a scaler that is known to be affine, naming the step.

    Notes
    -----
    Where a column's offset is many times its scale, the folded biases are large and cancel against
    the weights: predictions lose the digits that the raw column has no room for, about
    ``log10(offset / scale)`` of them. Where columns are linearly dependent, the weights are those
    of minimum norm on the scaled columns.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_ec import ExpandClusterRegressor
    >>> from sklearn_ec.scaling import fold_scalers
    >>> X = np.random.default_rng(0).uniform(0, 10, size=(200, 2))
    >>> y = np.tanh(X @ [0.3, -0.2] + 0.5)
    >>> pipeline = make_pipeline(
    ...     StandardScaler(),
    ...     ExpandClusterRegressor(
    ...         hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
    ...     ),
    ... ).fit(X, y)
    >>> network = fold_scalers(pipeline)
    >>> np.allclose(network.predict(X), y, rtol=0, atol=1e-12)
    True
    >>> np.round(network.weights_[0].T, 6), np.round(network.biases_[0], 6)
    (array([[ 0.3, -0.2]]), array([0.5]))
    """
    check_is_fitted(model)
    network = _fold(model)
    if hasattr(model, "feature_names_in_"):
        network.feature_names_in_ = model.feature_names_in_
    return network


def _fold(model: Any) -> ExpandClusterRegressor:
    if isinstance(model, Pipeline):
        return _fold_pipeline(model)
    if isinstance(model, TransformedTargetRegressor):
        return _fold_targets(model)
    if isinstance(model, ExpandClusterRegressor):
        return _invariant_copy(model)
    raise TypeError(
        f"{type(model).__name__} is no ExpandClusterRegressor, and no pipeline or "
        "TransformedTargetRegressor around one."
    )


def _fold_pipeline(pipeline: Pipeline) -> ExpandClusterRegressor:
    *scalers, (_, last) = pipeline.steps
    network = _fold(last)
    for name, scaler in reversed(scalers):
        scaling = _scaling(scaler, f"step {name!r} of the pipeline")
        weights, biases = network.weights_, network.biases_
        weights[0] = weights[0] / np.reshape(scaling.scale, (-1, 1))
        biases[0] = biases[0] - np.broadcast_to(scaling.offset, len(weights[0])) @ weights[0]
        network.weights_, network.biases_ = _canonical(network)
    return network


def _fold_targets(model: TransformedTargetRegressor) -> ExpandClusterRegressor:
    network = _fold(model.regressor_)
    scaling = _scaling(model.transformer_, "the transformer of the targets")
    network.weights_[-1] = network.weights_[-1] * scaling.scale
    network.biases_[-1] = network.biases_[-1] * scaling.scale + scaling.offset
    network.noise_level_ = network.noise_level_ * scaling.scale
    network.weights_, network.biases_ = _canonical(network)
    network._single_output = model._training_dim == 1
    return network


def _invariant_copy(model: ExpandClusterRegressor) -> ExpandClusterRegressor:
    network = clone(model)
    learned = vars(model).items()
    vars(network).update({name: value for name, value in learned if name in INVARIANT_ATTRIBUTES})
    network.noise_level_ = model.noise_level_
    network.weights_ = [weight.copy() for weight in model.weights_]
    network.biases_ = [bias.copy() for bias in model.biases_]
    return network


def _canonical(network: ExpandClusterRegressor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return canonical_form(network.weights_, network.biases_, get_activation(network.activation_))


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
