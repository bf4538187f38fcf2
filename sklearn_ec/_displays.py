"""Plots. Matplotlib is imported on use only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import dendrogram

from ._types import Dendrogram

# SciPy draws trees recursively; larger ones show their topmost subtrees only.
MAX_LEAVES = 1000
HEIGHT_FLOOR = 1e-16
NEUTRAL = "0.7"


def plot_dendrogram(record: Dendrogram, ax: Any = None) -> Any:
    """Draw a :class:`Dendrogram` with a logarithmic height axis and colored kept clusters."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    if len(record.linkage) == 0:
        raise ValueError("The dendrogram has a single leaf: there is nothing to plot.")
    tree = record.linkage.copy()
    tree[:, 2] = np.maximum(tree[:, 2], HEIGHT_FLOOR)
    n_leaves = len(record.labels)
    dendrogram(
        tree,
        ax=ax,
        no_labels=True,
        link_color_func=_cluster_colors(record, plt.get_cmap("tab10")),
        truncate_mode="lastp" if n_leaves > MAX_LEAVES else None,
        p=MAX_LEAVES,
    )
    ax.set_yscale("log")
    ax.set_ylim(bottom=tree[:, 2].min() / 2, top=tree[:, 2].max() * 2)
    ax.set_xlabel(f"{n_leaves} neurons of {len(np.unique(record.students))} students")
    ax.set_ylabel("distance of incoming weight vectors")
    title = f"{len(record.cut_heights)} clusters kept"
    if record.n_students:
        title += f", {record.n_agreeing} of {record.n_students} students agree on the network"
    ax.set_title(title)
    return ax


def _cluster_colors(record: Dendrogram, colormap: Any) -> Callable[[int], str]:
    """Color of every merge: its cluster's where all its leaves are in one kept cluster."""
    from matplotlib.colors import to_hex

    n_leaves = len(record.labels)
    labels = np.append(record.labels, np.full(len(record.linkage), -1))
    for merge, (left, right) in enumerate(record.linkage[:, :2].astype(int)):
        if labels[left] == labels[right]:
            labels[n_leaves + merge] = labels[left]
    colors = [NEUTRAL if label < 0 else to_hex(colormap(label % 10)) for label in labels]
    return lambda node: colors[node]
