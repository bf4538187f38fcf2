"""Average linkage within a stated memory."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.cluster.hierarchy import linkage
from sklearn.exceptions import EfficiencyWarning

from sklearn_ec._core.distances import pairwise_distances

# Up to so many vectors, 3.2 GB of memory, the tree is that of all distances.
MAX_LEAVES = 20_000
# Among more, vectors that are nearer than about this are merged before.
DUPLICATE_DISTANCE = 1e-7
# Random projections that tell different vectors apart.
N_PROJECTIONS = 8


def average_linkage(vectors: np.ndarray, has_sign_flip: bool, device: str = "cpu") -> np.ndarray:
    """SciPy linkage matrix of the average-linkage tree; empty for a single vector.

    For ``n`` vectors the linkage takes ``8 n²`` bytes of memory: the condensed distances and
    SciPy's copy of them. Beyond ``MAX_LEAVES`` vectors, near-exact duplicates are merged before:
    each group of them becomes the average-linkage tree of its members, and these trees are leaves
    in that of one member of every group. ``n`` is then the number of groups. Merges within groups
    have the heights that they would have otherwise; a mean distance between larger clusters counts
    every group once, however many members it has.

    Warns
    -----
    EfficiencyWarning
        If more than ``MAX_LEAVES`` vectors are linked at once all the same.
    """
    if len(vectors) <= MAX_LEAVES:
        return _full_linkage(vectors, has_sign_flip, device)
    groups = near_duplicates(vectors, has_sign_flip)
    ends = np.cumsum(np.bincount(groups))[:-1]
    members = np.split(np.argsort(groups, kind="stable"), ends)
    forest = _Forest(len(vectors))
    tops = [
        forest.add(_full_linkage(vectors[leaves], has_sign_flip, device), leaves)
        for leaves in members
    ]
    representatives = vectors[[leaves[0] for leaves in members]]
    forest.add(_full_linkage(representatives, has_sign_flip, device), np.array(tops))
    return forest.to_linkage()


def _full_linkage(vectors: np.ndarray, has_sign_flip: bool, device: str) -> np.ndarray:
    """The tree of all distances."""
    n = len(vectors)
    if n < 2:
        return np.empty((0, 4))
    if n > MAX_LEAVES:
        warnings.warn(
            f"The linkage of {n:,} different neurons takes {8 * n**2 / 1e9:.1f} GB of memory: "
            "choose fewer students or a smaller rho if there is less.",
            EfficiencyWarning,
            stacklevel=2,
        )
    return linkage(pairwise_distances(vectors, has_sign_flip, device), method="average")


def near_duplicates(vectors: np.ndarray, has_sign_flip: bool) -> np.ndarray:
    """Group of every vector, from 0; a group has more than one only if these nearly agree.

    The projections of duplicates on random directions nearly agree as well, or their absolute
    values where signs do not matter: each gap between projections separates groups.
    """
    rng = np.random.default_rng(0)
    groups = np.zeros(len(vectors), dtype=int)
    for direction in rng.normal(size=(N_PROJECTIONS, vectors.shape[1])):
        projected = vectors @ direction
        if has_sign_flip:
            projected = np.abs(projected)
        order = np.lexsort((projected, groups))
        gaps = np.diff(projected[order]) > DUPLICATE_DISTANCE
        groups[order] = np.append(0, np.cumsum(gaps | (np.diff(groups[order]) > 0)))
    return groups


class _Forest:
    """Trees that are joined into one; leaves are nodes 0 to ``n_leaves - 1``."""

    def __init__(self, n_leaves: int):
        self.n_leaves = n_leaves
        self.children: list[tuple[int, int]] = []
        self.heights = [0.0] * n_leaves

    def add(self, tree: np.ndarray, leaves: np.ndarray) -> int:
        """Join nodes as a linkage matrix does with its leaves; the node on top.

        No merge is lower than its parts, which near the height of duplicates it could be.
        """
        nodes = leaves.tolist()
        for (left, right), height in zip(tree[:, :2].astype(int), tree[:, 2], strict=True):
            pair = nodes[left], nodes[right]
            nodes.append(len(self.heights))
            self.children.append(pair)
            self.heights.append(max(height, *(self.heights[node] for node in pair)))
        return nodes[-1]

    def to_linkage(self) -> np.ndarray:
        """SciPy linkage matrix: merges in order of height."""
        n = self.n_leaves
        heights = np.array(self.heights)
        order = n + np.argsort(heights[n:], kind="stable")
        numbers = np.arange(len(heights))
        numbers[order] = np.arange(n, len(heights))
        children = np.sort(numbers[np.array(self.children)[order - n]], axis=1)
        sizes = np.ones(len(heights))
        for merge, pair in enumerate(children):
            sizes[n + merge] = sizes[pair].sum()
        return np.column_stack([children, heights[order], sizes[n:]])
