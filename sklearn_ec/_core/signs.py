"""The signs of even+linear neurons: skip terms leave them open, and are absorbed in the end."""

from __future__ import annotations

import numpy as np
from scipy.optimize import lsq_linear
from scipy.spatial import cKDTree

from .activations import Activation
from .records import Network

# Up to so many neurons, all combinations of signs are searched (meeting in the middle).
MAX_ENUMERATED_NEURONS = 24
TINY = np.finfo(np.float64).tiny


def resolve_signs(network: Network, activation: Activation) -> Network:
    """An ordinary network without skip terms, where flipping neurons can absorb them.

    What is left of the skip terms is dropped, for the caller to judge.
    """
    if not network.has_skip:
        return network
    return _without_skip(network, list(flipped(network, activation).layers))


def flipped(network: Network, activation: Activation) -> Network:
    """The same function with the signs of neurons that leave least to the skip terms.

    For even+linear activations ``a·s(z) = a·s(−z) + c·a·z``: flipping the neurons of a set F adds
    ``c Σ_F a_j w_jᵀ`` to the skip terms θ that bypass their layer. Layer by layer from the inputs
    up, the set that comes closest to cancelling θ is flipped.
    """
    layers = [layer.copy() for layer in network.layers]
    for depth, layer in enumerate(layers[:-1]):
        own = network.columns(depth, depth)
        readers = range(depth + 1, len(layers))
        outgoing = np.vstack([layers[p][:, network.columns(p, depth + 1)] for p in readers])
        skips = np.vstack([layers[p][:, network.columns(p, depth)] for p in readers])
        linear = activation.flip * outgoing[:, None, :] * layer[:, own].T[None]
        turned = closest_subset(linear.reshape(-1, len(layer)), -skips.ravel())
        for p in readers:
            passed_on = activation.flip * layers[p][:, network.columns(p, depth + 1)][:, turned]
            layers[p][:, network.columns(p, depth)] += passed_on @ layer[turned][:, own]
            layers[p][:, -1] += passed_on @ layer[turned, -1]
        layer[turned] *= -1.0
    return Network(tuple(layers))


def with_skip(network: Network) -> Network:
    """The same network with skip terms of zero."""
    if network.has_skip:
        return network
    layers = [
        np.insert(layer, [layer.shape[1] - 1] * sum(network.levels[:depth]), 0.0, axis=1)
        for depth, layer in enumerate(network.layers)
    ]
    return Network(tuple(layers))


def _without_skip(network: Network, layers: list[np.ndarray]) -> Network:
    kept = [network.columns(depth, depth) for depth in range(len(layers))]
    return Network(
        tuple(np.hstack([a[:, own], a[:, -1:]]) for a, own in zip(layers, kept, strict=True))
    )


def closest_subset(terms: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mask of the columns of ``terms`` whose sum comes closest to ``target``.

    Where the columns are linearly independent, least squares is rounded, which is right for targets
    near the sum of a subset. Otherwise the sums of all subsets of one half of the columns are
    matched with those of the other half, up to ``MAX_ENUMERATED_NEURONS`` columns; beyond that the
    bounded relaxation is rounded.
    """
    n_columns = terms.shape[1]
    if terms.size == 0:
        return np.zeros(n_columns, dtype=bool)
    solution, _, rank, _ = np.linalg.lstsq(terms, target, rcond=1e-10)
    if rank == n_columns:
        return solution > 0.5
    if n_columns > MAX_ENUMERATED_NEURONS:
        return lsq_linear(terms, target, bounds=(0.0, 1.0)).x > 0.5
    left, right = np.array_split(np.arange(n_columns), 2)
    left_masks, right_masks = _all_masks(len(left)), _all_masks(len(right))
    left_sums = left_masks @ terms[:, left].T
    right_sums = target - right_masks @ terms[:, right].T
    distances, nearest = cKDTree(left_sums).query(right_sums)
    best = int(np.argmin(distances))
    mask = np.zeros(n_columns, dtype=bool)
    mask[left] = left_masks[nearest[best]]
    mask[right] = right_masks[best]
    return mask


def linear_pairs(network: Network, activation: Activation) -> Network:
    """Write the skip terms of a network as pairs of neurons, ``s(z) − s(−z) = c·z``.

    The result computes the same function without skip terms. A layer has two more neurons for each
    rank of the skip terms that bypass it.
    """
    if not network.has_skip:
        return network
    for depth in range(len(network.layers) - 1):
        network = _add_linear_pairs(network, depth, activation)
    return _without_skip(network, list(network.layers))


def _add_linear_pairs(network: Network, depth: int, activation: Activation) -> Network:
    """Let pairs of neurons carry what bypasses a hidden layer; its skip terms become zero."""
    layers, readers = list(network.layers), range(depth + 1, len(network.layers))
    skips = np.vstack([layers[p][:, network.columns(p, depth)] for p in readers])
    left, size, right = np.linalg.svd(skips, full_matrices=False)
    rank = int(np.count_nonzero(size > max(size.max(initial=0.0) * 1e-12, TINY)))
    own = network.columns(depth, depth)
    pairs = np.zeros((2 * rank, layers[depth].shape[1]))
    pairs[:rank, own], pairs[rank:, own] = right[:rank], -right[:rank]
    layers[depth] = np.vstack([layers[depth], pairs])
    outgoing = left[:, :rank] * size[:rank] / activation.flip
    ends = np.cumsum([len(layers[p]) for p in readers])[:-1]
    for p, weights in zip(readers, np.split(outgoing, ends), strict=True):
        layers[p] = layers[p].copy()
        layers[p][:, network.columns(p, depth)] = 0.0
        end = network.columns(p, depth + 1).stop
        layers[p] = np.hstack([layers[p][:, :end], weights, -weights, layers[p][:, end:]])
    return Network(tuple(layers))


def _all_masks(n: int) -> np.ndarray:
    return (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1
