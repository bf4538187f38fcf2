"""Cluster the students' incoming weight vectors: distances, linkage, cuts, alignment filter.

All functions are pure and know nothing about networks: they see vectors and, for every vector, the
student that it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

Cut = Literal["local", "global"]
Status = Literal["kept", "small", "unaligned"]
# A local cluster grows through merges at most so much higher than the one that formed it.
GROWTH_FACTOR = 30.0
# Below this relative size a squared distance from the Gram matrix is mostly rounding.
GRAM_PRECISION = 1e-6


@dataclass(frozen=True)
class Cluster:
    """Leaves of one cluster and the height at which the cut isolates it."""

    leaves: np.ndarray
    height: float
    n_students: int
    median_angle: float
    status: Status


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


def pairwise_distances(vectors: np.ndarray, has_sign_flip: bool) -> np.ndarray:
    """Euclidean distances, condensed; ``min(‖u − v‖, ‖u + v‖)`` where signs do not matter.

    The Gram matrix gives all distances with one matrix product; cancellation ruins the small ones,
    which are the signal here, so these are computed again from the differences.
    """
    gram = vectors @ vectors.T
    squared_norms = np.diag(gram)
    if has_sign_flip:
        signs = np.where(gram < 0, -1.0, 1.0)
        gram = np.abs(gram)
    sums = squared_norms[:, None] + squared_norms[None, :]
    squared = np.maximum(sums - 2.0 * gram, 0.0)
    rows, columns = np.nonzero(np.triu(squared <= GRAM_PRECISION * sums, k=1))
    for block in np.array_split(np.arange(len(rows)), 1 + len(rows) * vectors.shape[1] // 10**7):
        i, j = rows[block], columns[block]
        other = signs[i, j, None] * vectors[j] if has_sign_flip else vectors[j]
        squared[i, j] = squared[j, i] = ((vectors[i] - other) ** 2).sum(axis=1)
    np.fill_diagonal(squared, 0.0)
    return squareform(np.sqrt(squared), checks=False)


def median_angle(vectors: np.ndarray, has_sign_flip: bool) -> float:
    """Median angle between the pairs of a cluster, in radians; 0 for a single vector.

    Equation (7) of the paper filters clusters by it. The angle comes from the chord between unit
    vectors, accurate where it is tiny.
    """
    if len(vectors) < 2:
        return 0.0
    chords = pairwise_distances(unit_rows(vectors), has_sign_flip)
    return float(np.median(2.0 * np.arcsin(np.clip(chords / 2.0, 0.0, 1.0))))


def average_linkage(vectors: np.ndarray, has_sign_flip: bool) -> np.ndarray:
    """SciPy linkage matrix of the average-linkage tree; empty for a single vector."""
    if len(vectors) < 2:
        return np.empty((0, 4))
    return linkage(pairwise_distances(vectors, has_sign_flip), method="average")


def cut_tree(
    tree: np.ndarray, students: np.ndarray, min_students: int, cut: Cut
) -> list[tuple[np.ndarray, float]]:
    """Leaves and height of every cluster of the cut, large ones first; they hold all leaves.

    Parameters
    ----------
    tree : ndarray of shape (n_leaves - 1, 4)
        SciPy linkage matrix.
    students : ndarray of shape (n_leaves,)
        The student that each leaf belongs to.
    min_students : int
        Least number of distinct students for a cluster to count as large.
    cut : {"local", "global"}
        ``"local"`` cuts every branch at its own height: the smallest subtrees that hold enough
        students, grown while the next merge is low and joins no other large subtree. ``"global"``
        cuts at the one height where the number of large clusters peaks (the paper's rule).
    """
    nodes = _Nodes(tree, students)
    cut_nodes = _local_cut if cut == "local" else _global_cut
    roots = cut_nodes(tree, nodes, min_students)
    clusters = [(nodes.leaves(root), nodes.height(root)) for root in roots]
    return sorted(clusters, key=lambda cluster: (-len(cluster[0]), int(cluster[0][0])))


class _Nodes:
    """The tree's nodes numbered as SciPy does: leaves first, then merges in order of height."""

    def __init__(self, tree: np.ndarray, students: np.ndarray):
        self.n_leaves = len(students)
        self.tree = tree
        self.children = tree[:, :2].astype(int)
        self.parent = np.full(self.n_leaves + len(tree), -1)
        for merge, pair in enumerate(self.children):
            self.parent[pair] = self.n_leaves + merge
        members: list[set[int]] = [{int(student)} for student in students]
        for left, right in self.children:
            members.append(members[left] | members[right])
        self.n_students = np.array([len(m) for m in members])

    def height(self, node: int) -> float:
        return 0.0 if node < self.n_leaves else float(self.tree[node - self.n_leaves, 2])

    def leaves(self, node: int) -> np.ndarray:
        found, stack = [], [node]
        while stack:
            node = stack.pop()
            if node < self.n_leaves:
                found.append(node)
            else:
                stack.extend(self.children[node - self.n_leaves].tolist())
        return np.sort(np.array(found))


def _local_cut(tree: np.ndarray, nodes: _Nodes, min_students: int) -> list[int]:
    large = nodes.n_students >= min_students
    # A node is minimal when it is large and neither child is; it holds a seed of a cluster.
    n_seeds = np.zeros(len(large), dtype=int)
    n_seeds[: nodes.n_leaves] = large[: nodes.n_leaves]
    for merge, (left, right) in enumerate(nodes.children):
        node = nodes.n_leaves + merge
        below = n_seeds[left] + n_seeds[right]
        n_seeds[node] = below if below else int(large[node])
    roots = []
    for node in np.flatnonzero(large).tolist():
        is_leaf = node < nodes.n_leaves
        if is_leaf or not large[nodes.children[node - nodes.n_leaves]].any():
            roots.append(_grow(node, nodes, n_seeds))
    return roots + _remainder(nodes, roots)


def _remainder(nodes: _Nodes, roots: list[int]) -> list[int]:
    """The largest subtrees that hold no root and lie in none."""
    top = len(nodes.parent) - 1
    ancestors: set[int] = set()
    for root in roots:
        while (root := int(nodes.parent[root])) >= 0:
            ancestors.add(root)
    if not roots:
        return [top]
    children = {int(c) for a in ancestors for c in nodes.children[a - nodes.n_leaves]}
    return sorted(children - ancestors - set(roots))


def _grow(node: int, nodes: _Nodes, n_seeds: np.ndarray) -> int:
    # Merges below rounding of the vectors say nothing: a tree that is exact starts there.
    limit = GROWTH_FACTOR * max(nodes.height(node), 1e-14)
    while (parent := nodes.parent[node]) >= 0:
        if n_seeds[parent] > 1 or nodes.height(parent) > limit:
            break
        node = int(parent)
    return node


def _global_cut(tree: np.ndarray, nodes: _Nodes, min_students: int) -> list[int]:
    """The end of the first run of heights with most large clusters, in one pass over the merges."""
    large = nodes.n_students >= min_students
    count = int(large[: nodes.n_leaves].sum())
    counts = np.empty(len(tree) + 1, dtype=int)
    counts[0] = count
    for merge, (left, right) in enumerate(nodes.children):
        count += int(large[nodes.n_leaves + merge]) - int(large[left]) - int(large[right])
        counts[merge + 1] = count
    # Merges at equal heights happen together: only the last of them is a cut.
    is_cut = np.append(np.diff(tree[:, 2]) > 0, True) if len(tree) else np.array([], dtype=bool)
    is_cut = np.concatenate([[len(tree) == 0 or tree[0, 2] > 0], is_cut])
    cuts = np.flatnonzero(is_cut)
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
) -> list[Cluster]:
    """Clusters of a cut with the reason why each is kept or dropped, large ones first.

    A cluster is kept when at least ``min_students`` distinct students share it and the median angle
    between its vectors is at most ``beta``. Leaves that stayed alone are no clusters.
    """
    clusters = []
    for leaves, height in cut_tree(tree, students, min_students, cut):
        n_students = len(np.unique(students[leaves]))
        if len(leaves) == 1 and n_students < min_students:
            continue
        angle = median_angle(vectors[leaves], has_sign_flip)
        status: Status = "kept"
        if n_students < min_students:
            status = "small"
        elif angle > beta:
            status = "unaligned"
        clusters.append(Cluster(leaves, height, n_students, angle, status))
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
