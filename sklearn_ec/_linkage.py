"""Average linkage."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import linkage

from ._distances import pairwise_distances


def average_linkage(vectors: np.ndarray, has_sign_flip: bool, device: str = "cpu") -> np.ndarray:
    """SciPy linkage matrix of the average-linkage tree; empty for a single vector."""
    if len(vectors) < 2:
        return np.empty((0, 4))
    return linkage(pairwise_distances(vectors, has_sign_flip, device), method="average")
