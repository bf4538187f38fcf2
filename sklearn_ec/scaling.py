"""Fold column-wise scalers into the recovered network."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor

from ._core.activations import get_activation
from ._core.canonical import canonical_form
from ._folding import fold, inside, is_wrapper, target_scaling, unwrap
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
    "origin_",
    "recovered_",
    "search_report_",
    "student_loss_curves_",
    "student_losses_",
    "width_agreement_",
)


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
        ``noise_level_`` is scaled, and ``certificate_.weight_error``, which is in the units of the
        scaled columns, is nan. The training rows and students are left out, so that there are
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
    unwrap(model)  # refuses other models
    network = _fold(model)
    if hasattr(model, "feature_names_in_"):
        network.feature_names_in_ = model.feature_names_in_
    return network


def _fold(model: Any) -> ExpandClusterRegressor:
    if not is_wrapper(model):
        return _invariant_copy(model)
    network = _fold(inside(model))
    weights, biases = fold(model, (network.weights_, network.biases_))
    activation = get_activation(network.activation_)
    network.weights_, network.biases_ = canonical_form(weights, biases, activation)
    network.certificate_ = replace(network.certificate_, weight_error=math.nan)
    if isinstance(model, TransformedTargetRegressor):
        network.noise_level_ = network.noise_level_ * target_scaling(model).scale
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
