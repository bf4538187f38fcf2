"""Classifiers that are seen only through ``predict_proba``: probabilities as regression targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special
from sklearn.utils import check_array

__all__ = ["proba_from_targets", "targets_from_proba"]

N_ROWS_NAMED = 5


def targets_from_proba(proba: Any) -> np.ndarray:
    r"""Turn the probabilities of a classifier into targets that are linear in its last layer.

    A classifier with a softmax output computes :math:`p_j = e^{z_j} / \sum_i e^{z_i}`; its
    probabilities give the outputs :math:`z` of its last layer up to a constant per row, which
    centering fixes: :math:`y_j = \log p_j - \frac{1}{k} \sum_i \log p_i`. With two classes, the
    target is the logit :math:`y = \log p_1 - \log p_0`, which is :math:`z` itself where the last
    layer is a single logistic neuron.

    Parameters
    ----------
    proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Probabilities, as from ``predict_proba``; a vector holds those of class 1 of two.

    Returns
    -------
    ndarray of shape (n_samples, n_classes) or (n_samples,)
        Centered log-probabilities, which sum to zero in every row; logits, one-dimensional, for two
        classes.

    Raises
    ------
    ValueError
        If rows hold values that are no probabilities, do not sum to 1, or hold probabilities that
        were rounded to 0 or 1. Nothing is clipped.

    See Also
    --------
    proba_from_targets : The way back.

    Notes
    -----
    Probabilities from a softmax keep all their digits however small they are: leave out only rows
    with a probability of exactly 0. A binary classifier that computes :math:`p_0` as
    :math:`1 - p_1`, as scikit-learn's do, loses digits where :math:`p_1` is close to 1: the logit
    has an error of about ``1e-16 / p_0``, and rows with ``p_0`` below 1e-4 may prevent the
    certificate. Query inputs that are less extreme, or leave these rows out::

        keep = proba.min(axis=1) > 1e-4

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.probabilities import targets_from_proba
    >>> targets_from_proba([[0.2, 0.8], [0.5, 0.5]])
    array([1.38629436, 0.        ])
    >>> targets_from_proba([[0.25, 0.25, 0.5]])
    array([[-0.23104906, -0.23104906,  0.46209812]])
    """
    proba = check_array(proba, dtype=[np.float64, np.float32], ensure_2d=False, input_name="proba")
    if proba.ndim == 2 and proba.shape[1] < 2:
        raise ValueError("proba has a single column: give one per class, or a vector for class 1.")
    columns = np.column_stack([1.0 - proba, proba]) if proba.ndim == 1 else proba
    _check_rows(columns)
    if proba.ndim == 1:
        proba = proba.astype(np.float64)
        return np.log(proba) - np.log1p(-proba)
    logarithms = np.log(columns, dtype=np.float64)
    if columns.shape[1] == 2:
        return logarithms[:, 1] - logarithms[:, 0]
    return logarithms - logarithms.mean(axis=1, keepdims=True)


def proba_from_targets(y: Any) -> np.ndarray:
    """Turn predicted targets back into probabilities, the inverse of ``targets_from_proba``.

    Parameters
    ----------
    y : array-like of shape (n_samples,) or (n_samples, n_classes)
        Logits of class 1 of two, or one value per class, up to a constant per row.

    Returns
    -------
    ndarray of shape (n_samples, n_classes)
        Probabilities; two columns for logits.

    Raises
    ------
    ValueError
        If y holds values that are not finite.

    See Also
    --------
    targets_from_proba : The way there.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.probabilities import proba_from_targets, targets_from_proba
    >>> proba_from_targets([0.0, np.log(4.0)])
    array([[0.5, 0.5],
           [0.2, 0.8]])
    >>> proba_from_targets(targets_from_proba([[0.25, 0.25, 0.5]]))
    array([[0.25, 0.25, 0.5 ]])
    """
    y = check_array(y, dtype=np.float64, ensure_2d=False, input_name="y")
    if y.ndim == 1 or y.shape[1] == 1:
        logits = y.ravel()
        return np.column_stack([special.expit(-logits), special.expit(logits)])
    return special.softmax(y, axis=1)


def _check_rows(proba: np.ndarray) -> None:
    precision = np.finfo(proba.dtype)
    tolerance = np.sqrt(precision.eps)  # as in scikit-learn's metrics
    _refuse(
        (proba < 0).any(axis=1) | (proba > 1 + tolerance).any(axis=1),
        "hold values below 0 or above 1: give the probabilities from predict_proba",
    )
    _refuse(
        np.abs(proba.sum(axis=1) - 1) > tolerance,
        "do not sum to 1: give the columns of all classes",
    )
    _refuse(
        (proba < precision.tiny).any(axis=1),
        "hold probabilities rounded to 0 or 1, whose targets are infinite: leave these rows out, "
        "or query inputs where the classifier is less certain",
    )


def _refuse(rows: np.ndarray, problem: str) -> None:
    if rows.any():
        named = np.flatnonzero(rows)[:N_ROWS_NAMED]
        dots = ", ..." if rows.sum() > N_ROWS_NAMED else ""
        raise ValueError(
            f"{rows.sum()} of {len(rows)} rows of proba ({', '.join(map(str, named))}{dots}) "
            f"{problem}."
        )
