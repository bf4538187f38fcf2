"""Reduce a large student of one hidden layer to the few neurons that explain most together."""

from __future__ import annotations

import numpy as np

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.forward import network_outputs, read_features, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Compacting


def compact_network(
    network: Network, samples: Samples, activation: Activation, settings: Compacting
) -> Network:
    """The smallest network of neurons of a network of one hidden layer that is hardly worse."""
    allowed = max(settings.factor * _loss(network, samples, activation), settings.floor)
    for width in range(network.widths[0] - 1, 0, -1):
        smaller = narrower(network, width, samples, activation, settings.ridge)
        if _loss(smaller, samples, activation) > allowed:
            break
        network = smaller
    return network


def narrower(
    network: Network, width: int, samples: Samples, activation: Activation, ridge: float
) -> Network:
    """A network of those neurons of one hidden layer that explain y best together."""
    (neurons, _), has_skip = network.layers, network.has_skip
    features = read_features([neurons], samples.X, activation, has_skip)
    root = np.sqrt(samples.sample_weight)[:, None]
    kept = best_subset(features * root, samples.y * root, len(neurons), width, ridge)
    return solve_readout([neurons[kept]], samples, activation, has_skip)


def _loss(network: Network, samples: Samples, activation: Activation) -> float:
    squares = (network_outputs(network, samples.X, activation) - samples.y) ** 2
    return float(np.average(squares.mean(axis=1), weights=samples.sample_weight))


def best_subset(
    features: np.ndarray, targets: np.ndarray, n_candidates: int, n_kept: int, ridge: float
) -> np.ndarray:
    """Which of the first ``n_candidates`` features to keep for a least-squares problem, as indices.

    Backward elimination chooses them, one after the other; then the one outside that would help
    most takes the place of the one that is missed least, as long as this explains more.
    """
    problem = _NormalEquations(features, targets, ridge)
    others = np.arange(n_candidates, features.shape[1])
    kept = problem.eliminate(np.arange(n_candidates), others, n_kept)
    while n_kept < n_candidates:
        outside = np.setdiff1d(np.arange(n_candidates), kept)
        present = np.r_[kept, others]
        added = outside[np.argmax(problem.gains(outside, present))]
        swapped = problem.eliminate(np.r_[kept, added], others, n_kept)
        if problem.explained(np.r_[swapped, others]) <= problem.explained(present):
            break
        kept = swapped
    return np.sort(kept)


class _NormalEquations:
    """The normal equations of a least-squares problem, for subsets of its features."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, ridge: float):
        scale = np.linalg.norm(features, axis=0)
        features = features / np.where(scale > 0, scale, 1.0)
        self.ridge = ridge
        self.gram = features.T @ features + ridge * np.eye(len(scale))
        self.moments = features.T @ targets

    def eliminate(self, candidates: np.ndarray, others: np.ndarray, n_kept: int) -> np.ndarray:
        """The candidates that are left when one after the other goes, ``others`` always staying.

        Without feature ``j`` the squared error rises by ``‖B_j‖² / C_jj``, with the solution ``B``
        and ``C = (ΦᵀΦ)⁻¹``, which are updated.
        """
        at = np.r_[candidates, others]
        inverse = np.linalg.inv(self.gram[np.ix_(at, at)])
        solution = inverse @ self.moments[at]
        left = np.arange(len(candidates))
        while len(left) > n_kept:
            cheapest = int(np.argmin((solution[left] ** 2).sum(axis=1) / inverse[left, left]))
            j, left = left[cheapest], np.delete(left, cheapest)
            column = inverse[:, j] / inverse[j, j]
            solution -= np.outer(column, solution[j])
            inverse -= np.outer(column, inverse[j])
        return candidates[left]

    def gains(self, candidates: np.ndarray, present: np.ndarray) -> np.ndarray:
        """By how much the squared error would fall with each candidate besides those present."""
        cross = self.gram[np.ix_(present, candidates)]
        explained = np.linalg.solve(self.gram[np.ix_(present, present)], cross)
        unexplained = self.moments[candidates] - explained.T @ self.moments[present]
        size = self.gram[candidates, candidates] - (cross * explained).sum(axis=0)
        return (unexplained**2).sum(axis=1) / np.maximum(size, self.ridge)

    def explained(self, present: np.ndarray) -> float:
        """By how much features lower the squared error from that of zero."""
        moments = self.moments[present]
        return float(
            (moments * np.linalg.solve(self.gram[np.ix_(present, present)], moments)).sum()
        )
