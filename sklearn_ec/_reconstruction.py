"""From clusters to a network: representatives, layers by least squares, signs, canonical form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg
from scipy.optimize import lsq_linear
from scipy.spatial import cKDTree

from ._activations import Activation
from ._clustering import Cluster
from ._distances import unit_rows
from ._types import Network, Samples

# Singular values of a layer's features below this relative size are rounding.
FEATURE_CONDITION = 1e-15
# Neurons above the first layer take part in the clustering where the neurons kept below explain
# their pre-activations up to this share of their standard deviation.
MAX_UNEXPLAINED = 0.05
# Neurons of two networks agree up to this angle, in radians. Kinks of ReLU neurons may lie anywhere
# between two rows in students that hold several copies.
AGREEMENT_ANGLE = 1e-2
# Up to so many neurons, all combinations of signs are searched (meeting in the middle).
MAX_ENUMERATED_NEURONS = 24
TINY = np.finfo(np.float64).tiny


def read_features(
    layers: Sequence[np.ndarray], X: np.ndarray, activation: Activation, has_skip: bool
) -> np.ndarray:
    """Features ``[h(, older), 1]`` that a layer on top of the given ones reads."""
    features = np.hstack([X, np.ones((len(X), 1))])
    for layer in layers:
        h = activation.function(features @ layer.T)
        features = np.hstack([h, features if has_skip else features[:, -1:]])
    return features


def network_outputs(network: Network, X: np.ndarray, activation: Activation) -> np.ndarray:
    """Outputs of a network, shape (n_samples, n_outputs)."""
    hidden, readout = network.layers[:-1], network.layers[-1]
    return read_features(hidden, X, activation, network.has_skip) @ readout.T


def solve_layer(features: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The layer of minimum norm that maps features to targets best: (fan_out, n_features)."""
    root = np.sqrt(weight)[:, None]
    return linalg.lstsq(features * root, targets * root, cond=FEATURE_CONDITION)[0].T.copy()


def solve_readout(
    hidden: Sequence[np.ndarray], samples: Samples, activation: Activation, has_skip: bool
) -> Network:
    """The network with these hidden layers and the least-squares readout."""
    features = read_features(hidden, samples.X, activation, has_skip)
    return Network((*hidden, solve_layer(features, samples.y, samples.sample_weight)))


def incoming_vectors(
    voters: dict[int, Network],
    lower: Sequence[np.ndarray],
    samples: Samples,
    activation: Activation,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Incoming vectors of the voters' neurons in one layer, with student and neuron indices.

    ``lower`` are the collapsed layers below. Above the first layer, every student's pre-activations
    are regressed on the activations of the collapsed neurons, which gives all incoming vectors in
    one basis; neurons that these do not explain are dropped. Vectors of homogeneous activations get
    unit length: their length says nothing.
    """
    found = [
        (student, _in_common_basis(network, lower, samples, activation, activation.has_linear_flip))
        for student, network in voters.items()
    ]
    vectors = np.vstack([vectors for _, (vectors, _) in found])
    owners = np.concatenate([np.full(len(kept), student) for student, (_, kept) in found])
    neurons = np.concatenate([kept for _, (_, kept) in found])
    return (unit_rows(vectors) if activation.homogeneous else vectors), owners, neurons


def _in_common_basis(
    network: Network,
    lower: Sequence[np.ndarray],
    samples: Samples,
    activation: Activation,
    has_skip: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Incoming vectors of a layer's explained neurons on top of ``lower``, and their indices."""
    layer = network.layers[len(lower)]
    if not lower:
        return layer, np.arange(len(layer))
    below = network.layers[: len(lower)]
    z = read_features(below, samples.X, activation, network.has_skip) @ layer.T
    features = read_features(lower, samples.X, activation, has_skip)
    vectors = solve_layer(features, z, samples.sample_weight)
    unexplained = np.linalg.norm(z - features @ vectors.T, axis=0)
    kept = np.flatnonzero(unexplained <= MAX_UNEXPLAINED * np.linalg.norm(z - z.mean(0), axis=0))
    return vectors[kept], kept


def count_agreeing(
    network: Network, voters: list[Network], samples: Samples, activation: Activation
) -> int:
    """How many voters hold every neuron of a network, in all layers."""
    return sum(_holds(voter, network, samples, activation) for voter in voters)


def _holds(voter: Network, network: Network, samples: Samples, activation: Activation) -> bool:
    for depth, layer in enumerate(network.layers[:-1]):
        vectors, _ = _in_common_basis(voter, network.layers[:depth], samples, activation, False)
        cosines = unit_rows(vectors) @ unit_rows(layer).T
        if activation.has_sign_flip:
            cosines = np.abs(cosines)
        if not (cosines.max(axis=0, initial=-1.0) >= np.cos(AGREEMENT_ANGLE)).all():
            return False
    return True


def collapse(
    clusters: list[Cluster], vectors: np.ndarray, students: np.ndarray, losses: np.ndarray
) -> np.ndarray:
    """One incoming weight vector per kept cluster: the member of the best student in it."""
    kept = [cluster.leaves for cluster in clusters if cluster.status == "kept"]
    best = [leaves[np.argmin(losses[students[leaves]])] for leaves in kept]
    return vectors[best]


def resolve_signs(network: Network, activation: Activation) -> Network:
    """An ordinary network without skip terms, where flipping neurons can absorb them.

    For even+linear activations ``a·s(z) = a·s(−z) + c·a·z``: flipping the neurons of a set F adds
    ``c Σ_F a_j w_jᵀ`` to the skip terms θ that bypass their layer. Layer by layer from the inputs
    up, the set that comes closest to cancelling θ is flipped; what is left of θ is dropped, for the
    caller to judge.
    """
    if not network.has_skip:
        return network
    layers = [layer.copy() for layer in network.layers]
    for depth, layer in enumerate(layers[:-1]):
        own = network.columns(depth, depth)
        readers = range(depth + 1, len(layers))
        outgoing = np.vstack([layers[p][:, network.columns(p, depth + 1)] for p in readers])
        skips = np.vstack([layers[p][:, network.columns(p, depth)] for p in readers])
        linear = activation.flip * outgoing[:, None, :] * layer[:, own].T[None]
        flipped = closest_subset(linear.reshape(-1, len(layer)), -skips.ravel())
        for p in readers:
            passed_on = activation.flip * layers[p][:, network.columns(p, depth + 1)][:, flipped]
            layers[p][:, network.columns(p, depth)] += passed_on @ layer[flipped][:, own]
            layers[p][:, -1] += passed_on @ layer[flipped, -1]
        layer[flipped] *= -1.0
    return _without_skip(network, layers)


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


def canonical_form(
    weights: list[np.ndarray], biases: list[np.ndarray], activation: Activation
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Fix what the data leave open: order, scale and sign of the hidden neurons.

    Homogeneous activations get incoming vectors ``[w; b]`` of unit length, from the first layer up;
    odd ones get the sign that makes the largest outgoing weight positive; neurons are sorted by
    decreasing norm of their outgoing weights, both from the last layer down.
    """
    weights, biases = [w.copy() for w in weights], [b.copy() for b in biases]
    n_hidden = len(weights) - 1
    for layer in range(n_hidden if activation.homogeneous else 0):
        norms = np.linalg.norm(np.vstack([weights[layer], biases[layer]]), axis=0)
        norms = np.where(norms > 0, norms, 1.0)
        weights[layer] /= norms
        biases[layer] /= norms
        weights[layer + 1] *= norms[:, None]
    for layer in reversed(range(n_hidden)):
        outgoing = weights[layer + 1]
        if activation.symmetry == "odd" and outgoing.size:
            largest = np.argmax(np.abs(outgoing), axis=1)
            signs = np.where(outgoing[np.arange(len(outgoing)), largest] < 0, -1.0, 1.0)
            biases[layer + 1] += activation.flip * outgoing[signs < 0].sum(axis=0)
            outgoing *= signs[:, None]
            weights[layer] *= signs
            biases[layer] *= signs
        order = np.argsort(-np.linalg.norm(outgoing, axis=1), kind="stable")
        weights[layer + 1] = outgoing[order]
        weights[layer], biases[layer] = weights[layer][:, order], biases[layer][order]
    return weights, biases


def _all_masks(n: int) -> np.ndarray:
    return (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1
