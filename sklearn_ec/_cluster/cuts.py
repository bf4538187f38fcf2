"""Cluster the students' incoming weight vectors: cuts of their tree, alignment filter.

All functions are pure and know nothing about networks: they see vectors and, for every vector, the
student that it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sklearn_ec._core.distances import pairwise_distances, unit_rows
from sklearn_ec._core.settings import DEFAULTS

from .linkage import MAX_LEAVES

Cut = Literal["local", "global"]
Status = Literal["kept", "small", "unaligned", "unstable"]
# Heights below this are rounding of the vectors.
ROUNDING_HEIGHT = 1e-14


@dataclass(frozen=True)
class Subtree:
    """A part of the tree: its leaves, the height of their last merge, and its persistence."""

    leaves: np.ndarray
    height: float
    persistence: float  # height of the next merge over that of the last one


@dataclass(frozen=True)
class Cluster(Subtree):
    """A part that the students share, or why it is none."""

    n_students: int
    median_angle: float
    status: Status


def median_angle(vectors: np.ndarray, has_sign_flip: bool) -> float:
    """Median angle between the pairs of a cluster, in radians; 0 for a single vector.

    Equation (7) of the paper filters clusters by it. The angle comes from the chord between unit
    vectors, accurate where it is tiny. Of more than ``MAX_LEAVES`` vectors, evenly spaced ones
    count.
    """
    if len(vectors) < 2:
        return 0.0
    every = -(-len(vectors) // MAX_LEAVES)
    sines = pairwise_distances(unit_rows(vectors[::every]), has_sign_flip)
    sines /= 2.0  # of half the angles, in place: these are the largest arrays
    np.arcsin(np.minimum(sines, 1.0, out=sines), out=sines)
    return 2.0 * float(np.median(sines, overwrite_input=True))


def cut_tree(tree: np.ndarray, students: np.ndarray, min_students: int, cut: Cut) -> list[Subtree]:
    """The subtrees that the cut isolates, large ones first; together they hold all leaves.

    Parameters
    ----------
    tree : ndarray of shape (n_leaves - 1, 4)
        SciPy linkage matrix.
    students : ndarray of shape (n_leaves,)
        The student that each leaf belongs to.
    min_students : int
        Least number of distinct students for a cluster to count as large.
    cut : {"local", "global"}
        ``"local"`` cuts every branch at its own height, where a subtree with enough students lasts
        longest: up to a merge that is much higher than its own. ``"global"`` cuts at the one height
        where the number of large clusters peaks (the paper's rule).
    """
    nodes = _Nodes(tree, students)
    cut_nodes = _local_cut if cut == "local" else _global_cut
    parts = cut_nodes(nodes, min_students)
    persistence = nodes.persistence()
    subtrees = [
        Subtree(nodes.leaves(part), float(nodes.heights[part]), float(persistence[part]))
        for part in parts
    ]
    return sorted(subtrees, key=lambda subtree: (-len(subtree.leaves), int(subtree.leaves[0])))


class _Nodes:
    """The tree's nodes numbered as SciPy does: leaves first, then merges in order of height."""

    def __init__(self, tree: np.ndarray, students: np.ndarray):
        self.n_leaves = len(students)
        self.children = tree[:, :2].astype(int)
        self.heights = np.concatenate([np.zeros(self.n_leaves), tree[:, 2]])
        _, bits = np.unique(students, return_inverse=True)
        members = [1 << bit for bit in bits.tolist()]  # one bit for each student
        for left, right in self.children:
            members.append(members[left] | members[right])
        self.n_students = np.array([m.bit_count() for m in members])

    def persistence(self) -> np.ndarray:
        """How long each subtree lasts: its parent's height over its own.

        Heights below rounding say nothing. The whole tree lasts up to the scale of standardized
        inputs, 1.
        """
        heights = np.maximum(self.heights, ROUNDING_HEIGHT)
        parent_heights = np.full(len(heights), max(1.0, heights[-1]))
        for merge, pair in enumerate(self.children):
            parent_heights[pair] = heights[self.n_leaves + merge]
        return parent_heights / heights

    def leaves(self, node: int) -> np.ndarray:
        found, stack = [], [node]
        while stack:
            node = stack.pop()
            if node < self.n_leaves:
                found.append(node)
            else:
                stack.extend(self.children[node - self.n_leaves].tolist())
        return np.sort(np.array(found))


def _local_cut(nodes: _Nodes, min_students: int) -> list[int]:
    """From the top down: a large subtree is a cluster unless a large one in it persists longer."""
    large = nodes.n_students >= min_students
    persistence = np.where(large, nodes.persistence(), -np.inf)
    longest_below = np.full(len(large), -np.inf)
    for merge, pair in enumerate(nodes.children):
        longest_below[nodes.n_leaves + merge] = np.maximum(
            persistence[pair], longest_below[pair]
        ).max()
    parts, stack = [], [len(large) - 1]
    while stack:
        node = stack.pop()
        if persistence[node] >= longest_below[node]:
            parts.append(node)
        else:
            stack.extend(nodes.children[node - nodes.n_leaves].tolist())
    return parts


def _global_cut(nodes: _Nodes, min_students: int) -> list[int]:
    """The end of the first run of heights with most large clusters, in one pass over the merges."""
    large = nodes.n_students >= min_students
    count = int(large[: nodes.n_leaves].sum())
    heights = nodes.heights[nodes.n_leaves :]
    counts = np.empty(len(heights) + 1, dtype=int)
    counts[0] = count
    for merge, (left, right) in enumerate(nodes.children):
        count += int(large[nodes.n_leaves + merge]) - int(large[left]) - int(large[right])
        counts[merge + 1] = count
    # Merges at equal heights happen together: only the last of them is a cut.
    cuts = np.flatnonzero(np.diff(heights, prepend=0.0, append=np.inf) > 0)
    peak = counts[cuts] == counts[cuts].max()
    first = int(np.argmax(peak))
    run = np.append(~peak[first:], True)
    n_merges = int(cuts[first + int(np.argmax(run)) - 1])
    alive = np.ones(nodes.n_leaves + n_merges, dtype=bool)
    alive[nodes.children[:n_merges].ravel()] = False
    return [int(node) for node in np.flatnonzero(alive)]


def find_clusters(
    vectors: np.ndarray,
    tree: np.ndarray,
    students: np.ndarray,
    *,
    min_students: int,
    beta: float,
    cut: Cut,
    has_sign_flip: bool,
    min_persistence: float = DEFAULTS.cluster.min_persistence,
) -> list[Cluster]:
    """Clusters of a cut with the reason why each is kept or dropped, large ones first.

    A cluster is kept when at least ``min_students`` distinct students share it, the median angle
    between its vectors is at most ``beta`` and, for the local cut, it lasts for some time, at least
    ``min_persistence``. Leaves that stayed alone are no clusters.
    """
    clusters = []
    for part in cut_tree(tree, students, min_students, cut):
        n_students = len(np.unique(students[part.leaves]))
        if len(part.leaves) == 1 and n_students < min_students:
            continue
        angle = median_angle(vectors[part.leaves], has_sign_flip)
        status: Status = "kept"
        if n_students < min_students:
            status = "small"
        elif angle > beta:
            status = "unaligned"
        elif cut == "local" and part.persistence < min_persistence:
            status = "unstable"
        clusters.append(
            Cluster(part.leaves, part.height, part.persistence, n_students, angle, status)
        )
    return clusters


def cluster_report(clusters: list[Cluster], layer: int) -> list[dict[str, Any]]:
    """The clusters of a layer as plain dicts."""
    return [
        {
            "layer": layer,
            "size": len(cluster.leaves),
            "n_students": cluster.n_students,
            "median_angle": cluster.median_angle,
            "height": cluster.height,
            "persistence": cluster.persistence,
            "status": cluster.status,
        }
        for cluster in clusters
    ]


def cluster_labels(clusters: list[Cluster], n_leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """Kept cluster of every leaf (-1 for none), and the height of every kept cluster."""
    kept = [cluster for cluster in clusters if cluster.status == "kept"]
    labels = np.full(n_leaves, -1)
    for label, cluster in enumerate(kept):
        labels[cluster.leaves] = label
    return labels, np.array([cluster.height for cluster in kept])


def cluster_indices(clusters: list[Cluster], n_leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of every leaf, kept or not (-1 for leaves that stayed alone), and all statuses."""
    indices = np.full(n_leaves, -1)
    for index, cluster in enumerate(clusters):
        indices[cluster.leaves] = index
    return indices, np.array([cluster.status for cluster in clusters], dtype=str)
