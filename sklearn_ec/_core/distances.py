"""Distances between vectors, accurate where they are tiny, computed block by block."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from .threads import threads_for

# Below this relative size a squared distance from the Gram matrix is mostly rounding.
GRAM_PRECISION = 1e-6
# Entries of the Gram matrix that are computed at a time.
BLOCK_ENTRIES = 2**22


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


def pairwise_distances(vectors: np.ndarray, has_sign_flip: bool, device: str = "cpu") -> np.ndarray:
    """Euclidean distances, condensed; ``min(‖u − v‖, ‖u + v‖)`` where signs do not matter.

    The Gram matrix gives all distances with matrix products, on any device; cancellation ruins the
    small ones, which are the signal here, so these are computed again from the differences. For
    ``n`` vectors the result takes ``4 n²`` bytes. Next to it there is a copy of the vectors on the
    device, and a few blocks of at most ``BLOCK_ENTRIES`` (at least ``n``) entries.
    """
    n = len(vectors)
    table = torch.tensor(vectors, dtype=torch.float64, device=device)
    squared_norms = table.square().sum(dim=1)
    condensed = np.empty(n * (n - 1) // 2)
    n_rows = max(1, BLOCK_ENTRIES // max(1, n))
    filled = 0
    for start in range(0, n, n_rows):
        rows = slice(start, start + n_rows)
        with threads_for(2 * n * table.numel()):
            distances, near = _gram_distances(table, squared_norms, rows, has_sign_flip)
        _recompute(distances, np.triu(near, k=1), vectors[start:], has_sign_flip)
        for row, to_others in enumerate(distances):
            to_later = to_others[row + 1 :]
            condensed[filled : filled + len(to_later)] = to_later
            filled += len(to_later)
    return condensed


def _gram_distances(
    table: Tensor, squared_norms: Tensor, rows: slice, has_sign_flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from some rows to these and all rows below, and which of them are inaccurate."""
    gram = table[rows] @ table[rows.start :].T
    if has_sign_flip:
        gram = gram.abs_()
    sums = squared_norms[rows, None] + squared_norms[rows.start :]
    squared = (sums - 2.0 * gram).clamp_(min=0.0)
    near = squared <= GRAM_PRECISION * sums
    return squared.sqrt_().cpu().numpy(), near.cpu().numpy()


def _recompute(
    distances: np.ndarray, near: np.ndarray, vectors: np.ndarray, has_sign_flip: bool
) -> None:
    """Replace the distances of near pairs in place; row ``i`` is about vector ``i``.

    The rows that are near to each other share most of their near columns: they go together.
    """
    for row in range(len(near)):
        columns = np.flatnonzero(near[row])
        if not len(columns):
            continue
        rows = np.append(row, columns[columns < len(near)])
        first, second = vectors[rows], vectors[columns]
        if has_sign_flip:
            first, second = _signed_like(vectors[row], first), _signed_like(vectors[row], second)
        distances[np.ix_(rows, columns)] = cdist(first, second)
        near[np.ix_(rows, columns)] = False


def _signed_like(vector: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The others with the signs that bring them close to a vector."""
    return others * np.where(others @ vector < 0, -1.0, 1.0)[:, None]
