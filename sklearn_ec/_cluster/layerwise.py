"""Cluster the students' neurons layer by layer, from the inputs up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.distances import unit_rows
from sklearn_ec._core.records import Dendrogram, Network, Samples
from sklearn_ec._core.settings import DEFAULTS, Clustering
from sklearn_ec._core.signs import with_skip

from .common_basis import collapse, incoming_vectors
from .cuts import cluster_indices, cluster_labels, cluster_report, find_clusters
from .linkage import average_linkage


@dataclass(frozen=True)
class Thresholds:
    """What decides which clusters are kept; named as the parameters of the estimator."""

    gamma: float = 0.5
    beta: float = math.pi / 6
    cut: Literal["local", "global"] = "local"


@dataclass
class ClusteredLayers:
    """The clusters of every hidden layer, up to the first without any."""

    dendrograms: list[Dendrogram] = field(default_factory=list)
    report: list[dict[str, Any]] = field(default_factory=list)
    collapsed: list[np.ndarray] = field(default_factory=list)  # one incoming vector per cluster


@dataclass(frozen=True)
class Voters:
    """The students whose neurons are clustered, and the rows that they were trained on."""

    networks: dict[int, Network]  # by student
    losses: np.ndarray  # of all students
    samples: Samples
    activation: Activation
    has_skip: bool  # whether collapsed layers have skip terms, since signs are open
    device: str  # where distances are computed
    # Whether few rows tell about some directions of the inputs: there, students that agree differ.
    has_weak_inputs: bool = False


def cluster_layers(
    voters: Voters,
    n_layers: int,
    thresholds: Thresholds,
    certified: Network | None = None,
    settings: Clustering = DEFAULTS.cluster,
) -> ClusteredLayers:
    """Cluster the hidden layers, from the inputs up to a layer without any cluster.

    Incoming vectors above the first layer are expressed on the collapsed neurons below, or on those
    of the certified network where there is one.
    """
    layers = ClusteredLayers()
    if certified and voters.has_skip:
        certified = with_skip(certified)
    for layer in range(n_layers):
        lower = list(certified.layers[:layer]) if certified else layers.collapsed
        kept = _cluster_layer(layers, lower, voters, thresholds, settings)
        if not (len(kept) or certified):
            break
        layers.collapsed.append(kept)
    return layers


def _cluster_layer(
    layers: ClusteredLayers,
    lower: list[np.ndarray],
    voters: Voters,
    thresholds: Thresholds,
    settings: Clustering,
) -> np.ndarray:
    """One incoming vector per kept cluster of the next layer, in the basis of those below."""
    activation = voters.activation
    vectors, owners, neurons = incoming_vectors(
        voters.networks, lower, voters.samples, activation, voters.has_skip, settings
    )
    if not len(vectors):  # nothing that the layers below explain
        return vectors
    seen, min_persistence = vectors, settings.min_persistence
    if voters.has_weak_inputs and not lower:
        seen, min_persistence = _as_seen(vectors, voters), settings.weak_min_persistence
    tree = average_linkage(seen, activation.has_sign_flip, voters.device)
    clusters = find_clusters(
        seen,
        tree,
        owners,
        min_students=math.ceil(thresholds.gamma * len(voters.networks) - 1e-9),
        beta=thresholds.beta,
        cut=thresholds.cut,
        has_sign_flip=activation.has_sign_flip,
        min_persistence=min_persistence,
    )
    layers.report += cluster_report(clusters, len(lower))
    labels, heights = cluster_labels(clusters, len(vectors))
    indices, statuses = cluster_indices(clusters, len(vectors))
    layers.dendrograms.append(
        Dendrogram(tree, owners, neurons, labels, heights, vectors, indices, statuses)
    )
    return collapse(clusters, vectors, owners, voters.losses)


def _as_seen(vectors: np.ndarray, voters: Voters) -> np.ndarray:
    """Vectors whose distances are those of the pre-activations on the rows, of the first layer.

    Where few rows tell about some directions, weights along them differ from student to student. On
    10,000 MNIST images, three students hold the 8 tanh neurons of a network to 6e-4 in the cosine
    distance of pre-activations, with cosines of weights down to 0.7: six clusters instead of eight.
    """
    inputs = voters.samples.inputs
    triangle = np.asarray(np.linalg.qr(inputs / math.sqrt(len(inputs)), mode="r"))
    seen = vectors @ triangle.T
    return unit_rows(seen) if voters.activation.homogeneous else seen
