"""Pool the neurons of several students: the best of all make a better start than those of one.

A wide student that is trained for a short time holds most neurons of the sought network, but seldom
all of them; others hold the rest. On ReLU networks this decides: of four students with 16 neurons,
trained on 10,000 MNIST images of a 784-8-10 network, none held all eight, and none came below a
loss of 3e-5. Of eight such fits, each came to a pool whose eight best neurons were those of the
network, within a cosine distance of 1.4e-3, in one to seven rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.forward import network_outputs, read_features, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Pool

from .students import initial_weights

TrainBriefly = Callable[[list[Network]], list[Network]]


def pool_neurons(
    networks: Sequence[Network],
    train: TrainBriefly,
    samples: Samples,
    activation: Activation,
    rng: np.random.Generator,
    pool: Pool,
) -> Network:
    """A network of the best neurons of several, found in rounds with fresh neurons.

    The networks have one hidden layer and are equally wide; so is the new one. ``train`` trains
    such networks for a short time. The rounds end early once half of the neurons do nearly as well.
    """
    (width,), n_networks = networks[0].widths, len(networks)
    for _ in range(pool.max_rounds):
        best = pooled_network(networks, width, samples, activation, pool)
        core = pooled_network(networks, max(1, width // 2), samples, activation, pool)
        if _loss(core, samples, activation) <= _loss_of_compact(best, samples, activation, pool):
            return best
        mixed = [
            _with_fresh_neurons(core, width, samples, activation, rng, pool.left_out)
            for _ in range(n_networks)
        ]
        networks = [best, *train(mixed)]
    return pooled_network(networks, width, samples, activation, pool)


def _with_fresh_neurons(
    core: Network,
    width: int,
    samples: Samples,
    activation: Activation,
    rng: np.random.Generator,
    left_out: float,
) -> Network:
    """Most neurons of a network and random ones beside them."""
    hidden = core.layers[0]
    kept = rng.permutation(len(hidden))[int(left_out * len(hidden)) :]
    n_inputs, seeds = samples.X.shape[1], rng.integers(2**31, size=1)
    fresh, _ = initial_weights(seeds, n_inputs, (width - len(kept),), 1, False)
    return solve_readout([np.vstack([hidden[kept], fresh[0]])], samples, activation, core.has_skip)


def pooled_network(
    networks: Sequence[Network], width: int, samples: Samples, activation: Activation, pool: Pool
) -> Network:
    """A network of those neurons of networks with one hidden layer that explain y best together."""
    has_skip = networks[0].has_skip
    neurons = np.vstack([network.layers[0] for network in networks])
    features = read_features([neurons], samples.X, activation, has_skip)
    root = np.sqrt(samples.sample_weight)[:, None]
    kept = best_subset(features * root, samples.y * root, len(neurons), width, pool.ridge)
    return solve_readout([neurons[kept]], samples, activation, has_skip)


def compact_network(
    network: Network, samples: Samples, activation: Activation, pool: Pool
) -> Network:
    """The smallest network of neurons of a network of one hidden layer that is hardly worse."""
    allowed = _loss_of_compact(network, samples, activation, pool)
    for width in range(network.widths[0] - 1, 0, -1):
        smaller = pooled_network([network], width, samples, activation, pool)
        if _loss(smaller, samples, activation) > allowed:
            break
        network = smaller
    return network


def _loss(network: Network, samples: Samples, activation: Activation) -> float:
    squares = (network_outputs(network, samples.X, activation) - samples.y) ** 2
    return float(np.average(squares.mean(axis=1), weights=samples.sample_weight))


def _loss_of_compact(
    network: Network, samples: Samples, activation: Activation, pool: Pool
) -> float:
    """Up to which loss a part of a network is hardly worse."""
    return max(pool.compact_factor * _loss(network, samples, activation), pool.compact_floor)


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
