"""Incoming weight vectors of several networks in one basis, and one vector for each cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.distances import unit_rows
from sklearn_ec._core.forward import read_features, solve_layer, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import DEFAULTS, Clustering

from .cuts import Cluster


def incoming_vectors(
    voters: dict[int, Network],
    lower: Sequence[np.ndarray],
    samples: Samples,
    activation: Activation,
    has_skip: bool,
    settings: Clustering = DEFAULTS.cluster,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Incoming vectors of the voters' neurons in one layer, with student and neuron indices.

    ``lower`` are the collapsed layers below, with skip terms or without. Above the first layer,
    every student's pre-activations are regressed on the activations of the collapsed neurons, which
    gives all incoming vectors in one basis; neurons that these do not explain are dropped. Vectors
    of homogeneous activations get unit length: their length says nothing.
    """
    found = [
        (student, _in_common_basis(network, lower, samples, activation, has_skip, settings))
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
    settings: Clustering,
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
    spread = np.linalg.norm(z - z.mean(0), axis=0)
    kept = np.flatnonzero(unexplained <= settings.max_unexplained * spread)
    return vectors[kept], kept


def on_collapsed(
    network: Network,
    lower: Sequence[np.ndarray],
    samples: Samples,
    activation: Activation,
    has_skip: bool,
) -> Network:
    """A network without skip terms whose lowest layers are replaced by collapsed ones.

    The layer above them is regressed on these, as in :func:`incoming_vectors`, with skip terms
    where these have any; the readout is solved again.
    """
    n_lower = len(lower)
    z = read_features(network.layers[:n_lower], samples.X, activation, False)
    z = z @ network.layers[n_lower].T
    features = read_features(lower, samples.X, activation, has_skip)
    layers = [*lower, solve_layer(features, z, samples.sample_weight)]
    for layer in network.layers[n_lower + 1 : -1]:
        n_older = layers[-1].shape[1] - 1 if has_skip else 0
        layers.append(np.insert(layer, [layer.shape[1] - 1] * n_older, 0.0, axis=1))
    return solve_readout(layers, samples, activation, has_skip)


def count_agreeing(
    network: Network,
    voters: list[Network],
    samples: Samples,
    activation: Activation,
    settings: Clustering = DEFAULTS.cluster,
) -> int:
    """How many voters hold every neuron of a network, in all layers."""
    return sum(_holds(voter, network, samples, activation, settings) for voter in voters)


def _holds(
    voter: Network,
    network: Network,
    samples: Samples,
    activation: Activation,
    settings: Clustering,
) -> bool:
    for depth, layer in enumerate(network.layers[:-1]):
        lower = network.layers[:depth]
        vectors, _ = _in_common_basis(voter, lower, samples, activation, False, settings)
        cosines = unit_rows(vectors) @ unit_rows(layer).T
        if activation.has_sign_flip:
            cosines = np.abs(cosines)
        if not (cosines.max(axis=0, initial=-1.0) >= np.cos(settings.agreement_angle)).all():
            return False
    return True


def collapse(
    clusters: list[Cluster], vectors: np.ndarray, students: np.ndarray, losses: np.ndarray
) -> np.ndarray:
    """One incoming weight vector per kept cluster: the member of the best student in it."""
    kept = [cluster.leaves for cluster in clusters if cluster.status == "kept"]
    best = [leaves[np.argmin(losses[students[leaves]])] for leaves in kept]
    return vectors[best]
