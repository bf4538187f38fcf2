"""Compare a recovered network with the network it was recovered from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from ._core.activations import Activation, get_activation
from ._core.distances import unit_rows
from ._folding import Layers, fold, inside, is_wrapper

__all__ = ["NeuronMatch", "match_neurons", "max_cosine_distance", "relative_rmse"]


@dataclass(frozen=True)
class NeuronMatch:
    """One-to-one assignment between the hidden neurons of two networks.

    Attributes
    ----------
    reference : ndarray of shape (n_pairs,)
        Indices of the matched neurons in the reference network, ascending.
    recovered : ndarray of shape (n_pairs,)
        Indices of their partners in the recovered network.
    cosine_distances : ndarray of shape (n_pairs,)
        Cosine distances between the incoming weight vectors ``[w; b]``, in [0, 2], after undoing
        the sign of each pair.
    signs : ndarray of shape (n_pairs,)
        1.0, or -1.0 for pairs of opposite sign (activations with a sign symmetry only).
    scales : ndarray of shape (n_pairs,)
        Length of the recovered vector over that of the reference vector.
    missing : ndarray of shape (n_missing,)
        Reference neurons without a partner.
    excess : ndarray of shape (n_excess,)
        Recovered neurons without a partner.
    """

    reference: np.ndarray
    recovered: np.ndarray
    cosine_distances: np.ndarray
    signs: np.ndarray
    scales: np.ndarray
    missing: np.ndarray
    excess: np.ndarray


def match_neurons(reference: Any, recovered: Any, activation: str, layer: int = 0) -> NeuronMatch:
    """Match the hidden neurons of two networks one to one, by their incoming weight vectors.

    The assignment minimizes the sum of the cosine distances (Hungarian method); signs do not count
    where the activation has a sign symmetry. Above the first hidden layer, the neurons of the layer
    below are matched first, and the recovered vectors expressed in the basis of the reference:
    columns permuted, signs and scales of the matched neurons undone.

    Parameters
    ----------
    reference, recovered : estimator, torch.nn.Sequential or (weights, biases)
        Networks: a fitted :class:`~sklearn_ec.ExpandClusterRegressor`, a teacher of
        :mod:`sklearn_ec.datasets`, a fitted ``MLPRegressor``, a ``torch.nn.Sequential`` of linear
        layers and activations, or a pair of lists of arrays, weights of shape (fan_in, fan_out) and
        biases of shape (fan_out,), one per layer. Estimators may be within pipelines and
        ``TransformedTargetRegressor``: scalers are folded into the network, as by
        :func:`~sklearn_ec.scaling.fold_scalers`.
    activation : str
        Activation of the hidden layers, see :class:`~sklearn_ec.ExpandClusterRegressor`.
    layer : int, default=0
        Hidden layer to compare, from 0.

    Returns
    -------
    NeuronMatch
        The assignment with distances, signs and scales.

    Raises
    ------
    ValueError
        If the networks have different numbers of inputs or lack the layer.
    TypeError
        If one of them is not a network, or if a step in front of it is not a scaler that is known
        to be affine.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.metrics import match_neurons
    >>> weights = [np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0], [1.0]])]
    >>> biases = [np.zeros(2), np.zeros(1)]
    >>> swapped = [-weights[0][:, ::-1], -weights[1][::-1]]
    >>> match = match_neurons((weights, biases), (swapped, biases), "tanh")
    >>> match.recovered, match.signs, match.cosine_distances
    (array([1, 0]), array([-1., -1.]), array([0., 0.]))
    """
    function = get_activation(activation)
    first, second = _incoming_vectors(reference, layer), _incoming_vectors(recovered, layer)
    if layer > 0:
        below = match_neurons(reference, recovered, activation, layer - 1)
        first, second = _in_reference_basis(first, second, below, function)
    elif first.shape[1] != second.shape[1]:
        raise ValueError(
            f"The networks have {first.shape[1] - 1} and {second.shape[1] - 1} inputs: compare "
            "networks with the same inputs."
        )
    distances, signs = _cosine_distances(first, second, sign_blind=function.has_sign_flip)
    rows, columns = linear_sum_assignment(distances)
    lengths = np.linalg.norm(first[rows], axis=1), np.linalg.norm(second[columns], axis=1)
    return NeuronMatch(
        reference=rows,
        recovered=columns,
        cosine_distances=distances[rows, columns],
        signs=signs[rows, columns],
        scales=lengths[1] / np.where(lengths[0] > 0, lengths[0], 1.0),
        missing=np.setdiff1d(np.arange(len(first)), rows),
        excess=np.setdiff1d(np.arange(len(second)), columns),
    )


def max_cosine_distance(reference: Any, recovered: Any, activation: str) -> float:
    """Worst cosine distance between matched neurons, over all hidden layers.

    Parameters
    ----------
    reference, recovered : network
        As in :func:`match_neurons`.
    activation : str
        Activation of the hidden layers.

    Returns
    -------
    float
        At least 1.0, the distance of unrelated vectors, if layers or neurons are missing or in
        excess.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.metrics import max_cosine_distance
    >>> network = ([np.eye(2), np.ones((2, 1))], [np.zeros(2), np.zeros(1)])
    >>> max_cosine_distance(network, network, "relu")
    0.0
    """
    n_hidden = len(_layers(reference)[0]) - 1
    worst = float(n_hidden != len(_layers(recovered)[0]) - 1)
    for layer in range(0 if worst else n_hidden):
        match = match_neurons(reference, recovered, activation, layer)
        differs = len(match.missing) or len(match.excess)
        worst = max(worst, float(match.cosine_distances.max(initial=0.0)), float(differs > 0))
    return worst


def relative_rmse(y_true: Any, y_pred: Any) -> float:
    """Root mean squared error relative to the standard deviation of each output.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples,) or (n_samples, n_outputs)
        True and predicted outputs.

    Returns
    -------
    float
        ``sqrt(mean_k(MSE_k / Var_k))``; an output that is constant counts with variance 1.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> from sklearn_ec.metrics import relative_rmse
    >>> relative_rmse([0.0, 2.0], [0.0, 1.0])
    0.7071067811865476
    """
    y_true, y_pred = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    if y_true.shape != y_pred.shape:
        raise ValueError(
            f"y_true has shape {y_true.shape} and y_pred {y_pred.shape}: give equal shapes."
        )
    variance = y_true.var(axis=0)
    squared = ((y_true - y_pred) ** 2).mean(axis=0)
    return float(np.sqrt(np.mean(squared / np.where(variance > 0, variance, 1.0))))


def _cosine_distances(
    first: np.ndarray, second: np.ndarray, sign_blind: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Half the squared chord between unit vectors, accurate to rounding squared near zero."""
    first, second = unit_rows(first), unit_rows(second)
    cosines = first @ second.T
    signs = np.where(cosines < 0, -1.0, 1.0) if sign_blind else np.ones_like(cosines)
    differences = first[:, None, :] - signs[:, :, None] * second[None, :, :]
    return 0.5 * (differences**2).sum(axis=2), signs


def _in_reference_basis(
    first: np.ndarray, second: np.ndarray, below: NeuronMatch, activation: Activation
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of two networks on the reference's neurons of the layer below.

    Neurons below without a partner get a column of their own, zero in the other network. Where
    ``s(-z) = c - s(z)``, a neuron of opposite sign moves ``c`` times its weight to the bias.
    """
    weights = second[:, below.recovered]
    bias = second[:, -1].copy()
    if activation.symmetry == "odd":
        bias += activation.flip * weights[:, below.signs < 0].sum(axis=1)
        weights = weights * below.signs
    if activation.homogeneous:
        weights = weights * below.scales
    n_excess = len(below.excess)
    expressed = np.zeros((len(second), first.shape[1] + n_excess))
    expressed[:, below.reference] = weights
    expressed[:, first.shape[1] - 1 : -1] = second[:, below.excess]
    expressed[:, -1] = bias
    padding = np.zeros((len(first), n_excess))
    return np.hstack([first[:, :-1], padding, first[:, -1:]]), expressed


def _incoming_vectors(network: Any, layer: int) -> np.ndarray:
    """Incoming weight vectors ``[w; b]`` of a hidden layer, shape (n_neurons, fan_in + 1)."""
    weights, biases = _layers(network)
    if len(weights) < 2:
        raise ValueError("A network needs a hidden layer: got fewer than two weight matrices.")
    if not 0 <= layer < len(weights) - 1:
        raise ValueError(
            f"layer={layer} is no hidden layer of a network with {len(weights) - 1} of them: "
            "count from 0."
        )
    return np.column_stack([weights[layer].T, biases[layer]])


def _layers(network: Any) -> Layers:
    """Weights and biases of a network, on the inputs as they are given to it."""
    if is_wrapper(network):
        return fold(network, _layers(inside(network)))
    if hasattr(network, "weights_"):
        return network.weights_, network.biases_
    if hasattr(network, "coefs_"):
        return network.coefs_, network.intercepts_
    if isinstance(network, tuple) and len(network) == 2:
        return [np.asarray(w) for w in network[0]], [np.asarray(b) for b in network[1]]
    if hasattr(network, "named_children"):
        linear = [module for module in network.children() if hasattr(module, "weight")]
        weights = [module.weight.detach().cpu().numpy().T for module in linear]
        return weights, [module.bias.detach().cpu().numpy() for module in linear]
    raise TypeError(
        f"{type(network).__name__} is not a network: give a fitted estimator, a "
        "torch.nn.Sequential or a pair (weights, biases) of lists of arrays."
    )
