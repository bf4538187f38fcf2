"""From clusters to a network: representatives, readout by least squares, signs, canonical form."""

from __future__ import annotations

import numpy as np
from scipy import linalg
from scipy.optimize import lsq_linear
from scipy.spatial import cKDTree

from ._activations import Activation
from ._clustering import Cluster, unit_rows
from ._types import Network, Samples

# Singular values of the readout's design matrix below this relative size are rounding.
READOUT_CONDITION = 1e-15
# Neurons of two networks agree up to this angle, in radians. Kinks of ReLU neurons may lie anywhere
# between two rows in students that hold several copies.
AGREEMENT_ANGLE = 1e-2
# Up to so many neurons, all combinations of signs are searched (meeting in the middle).
MAX_ENUMERATED_NEURONS = 24


def incoming_vectors(
    voters: dict[int, np.ndarray], activation: Activation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Incoming weight vectors of the voting students, with their student and neuron indices.

    ``voters`` maps a student to its hidden weights, shape (n_neurons, n_inputs + 1). Vectors of
    homogeneous activations get unit length: their length says nothing.
    """
    widths = [len(hidden) for hidden in voters.values()]
    vectors = np.vstack(list(voters.values()))
    if activation.homogeneous:
        vectors = unit_rows(vectors)
    neurons = np.concatenate([np.arange(width) for width in widths])
    return vectors, np.repeat(list(voters), widths), neurons


def count_agreeing(network: Network, voters: list[np.ndarray], activation: Activation) -> int:
    """How many voters, given by their hidden weights, hold every neuron of a network."""
    neurons = unit_rows(network.hidden)
    least_cosine = np.cos(AGREEMENT_ANGLE)
    n_agreeing = 0
    for hidden in voters:
        cosines = unit_rows(hidden) @ neurons.T
        if activation.has_sign_flip:
            cosines = np.abs(cosines)
        n_agreeing += bool((cosines.max(axis=0) >= least_cosine).all())
    return n_agreeing


def collapse(
    clusters: list[Cluster], vectors: np.ndarray, students: np.ndarray, losses: np.ndarray
) -> np.ndarray:
    """One incoming weight vector per kept cluster: the member of the best student in it."""
    kept = [cluster.leaves for cluster in clusters if cluster.status == "kept"]
    best = [leaves[np.argmin(losses[students[leaves]])] for leaves in kept]
    return vectors[best]


def design_matrix(
    hidden: np.ndarray, samples: Samples, activation: Activation, has_skip: bool
) -> np.ndarray:
    """Weighted inputs of the readout, ``[s(z), 1(, x)]``, shape (n_samples, n_features)."""
    z = samples.X @ hidden[:, :-1].T + hidden[:, -1]
    columns = [activation.function(z), np.ones((len(z), 1))]
    if has_skip:
        columns.append(samples.X)
    return np.hstack(columns) * np.sqrt(samples.sample_weight)[:, None]


def solve_readout(
    hidden: np.ndarray, samples: Samples, activation: Activation, has_skip: bool
) -> Network:
    """The network with these hidden neurons and the least-squares readout (minimum norm)."""
    design = design_matrix(hidden, samples, activation, has_skip)
    targets = samples.y * np.sqrt(samples.sample_weight)[:, None]
    readout = linalg.lstsq(design, targets, cond=READOUT_CONDITION)[0]
    return Network(hidden, readout.T.copy())


def resolve_signs(network: Network, activation: Activation) -> Network:
    """An ordinary network without skip term, where flipping neurons can absorb the skip term.

    For even+linear activations ``a·s(z) = a·s(−z) + c·a·z``: flipping the neurons of a set F adds
    ``c Σ_F a_j w_jᵀ`` to the skip term θ. The set that comes closest to cancelling θ is flipped;
    what is left of θ is dropped, for the caller to judge.
    """
    if not network.skip.size:
        return network
    linear = activation.flip * network.outgoing[:, None, :] * network.hidden[:, :-1].T[None]
    terms = linear.reshape(-1, network.width)  # (n_outputs * n_inputs, n_neurons)
    flipped = closest_subset(terms, -network.skip.ravel())
    hidden = network.hidden.copy()
    hidden[flipped] *= -1.0
    constant = activation.flip * network.outgoing[:, flipped] @ network.hidden[flipped, -1]
    readout = network.readout[:, : network.width + 1].copy()
    readout[:, -1] += constant
    return Network(hidden, readout)


def closest_subset(terms: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mask of the columns of ``terms`` whose sum comes closest to ``target``.

    Where the columns are linearly independent, least squares is rounded, which is right for targets
    near the sum of a subset. Otherwise the sums
    of all subsets of one half of the columns are matched with those of the other half, up to
    ``MAX_ENUMERATED_NEURONS`` columns; beyond that the bounded relaxation is rounded.
    """
    n_columns = terms.shape[1]
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
    """Write the skip term of a network as pairs of neurons, ``s(z) − s(−z) = c·z``.

    The result computes the same function without skip term. It has two more neurons for each rank
    of the skip term.
    """
    if not network.skip.any():
        return Network(network.hidden, network.readout[:, : network.width + 1])
    left, size, right = np.linalg.svd(network.skip, full_matrices=False)
    rank = int(np.count_nonzero(size > size[0] * 1e-12))
    directions = np.hstack([right[:rank], np.zeros((rank, 1))])
    outgoing = left[:, :rank] * size[:rank] / activation.flip
    hidden = np.vstack([network.hidden, directions, -directions])
    readout = np.hstack([network.outgoing, outgoing, -outgoing, network.bias[:, None]])
    return Network(hidden, readout)


def canonical_form(
    weights: list[np.ndarray], biases: list[np.ndarray], activation: Activation
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Fix what the data leave open: order, scale and sign of the hidden neurons.

    Homogeneous activations get incoming vectors ``[w; b]`` of unit length; odd ones get the sign
    that makes the largest outgoing weight positive; neurons are sorted by decreasing norm of their
    outgoing weights.
    """
    incoming, outgoing = weights[0].copy(), weights[1].copy()
    hidden_bias, output_bias = biases[0].copy(), biases[1].copy()
    if activation.homogeneous:
        norms = np.linalg.norm(np.vstack([incoming, hidden_bias]), axis=0)
        norms = np.where(norms > 0, norms, 1.0)
        incoming, hidden_bias = incoming / norms, hidden_bias / norms
        outgoing *= norms[:, None]
    if activation.symmetry == "odd" and outgoing.size:
        largest = np.argmax(np.abs(outgoing), axis=1)
        negative = outgoing[np.arange(len(outgoing)), largest] < 0
        output_bias += activation.flip * outgoing[negative].sum(axis=0)
        signs = np.where(negative, -1.0, 1.0)
        incoming, hidden_bias = incoming * signs, hidden_bias * signs
        outgoing *= signs[:, None]
    order = np.argsort(-np.linalg.norm(outgoing, axis=1), kind="stable")
    return [incoming[:, order], outgoing[order]], [hidden_bias[order], output_bias]


def _all_masks(n: int) -> np.ndarray:
    return (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1
