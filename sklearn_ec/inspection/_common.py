"""What the displays share: axes, checks, colors. Matplotlib is imported on use only."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_ec._core.records import Dendrogram

# Distances and angles below this are drawn here: they are rounding, and a log axis has no zero.
FLOOR = 1e-16
NEUTRAL = "0.7"
STATUS_MARKERS = {"kept": "o", "small": "v", "unaligned": "X", "unstable": "D"}
STATUS_COLORS = {"kept": "tab:blue", "small": "0.5", "unaligned": "tab:red", "unstable": "tab:pink"}
# tab10 without its gray and the colors of the statuses.
CLUSTER_COLORS = [f"C{index}" for index in (0, 1, 2, 4, 5, 8, 9)]


class Display:
    """A plot that keeps its axes and figure, and says first whether the network is certified."""

    ax_: Any
    figure_: Any
    certified: bool | None = None

    def _prepare_axes(self, ax: Any, figsize: tuple[float, float]) -> Any:
        """The axes to draw on, new ones if None."""
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=figsize, layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        return ax

    def _set_title(self, text: str) -> None:
        verdicts = {True: "network certified\n", False: "network not certified\n", None: ""}
        self.ax_.set_title(verdicts[self.certified] + text)

    def _draw_legend(self, handles: list[Any] | None = None) -> None:
        """A legend to the right of the axes, where it hides nothing."""
        self.ax_.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))


def layer_dendrogram(estimator: Any, layer: int) -> Dendrogram:
    """The tree of a hidden layer of a fitted estimator."""
    n_layers = len(estimator.dendrogram_)
    if not 0 <= layer < n_layers:
        raise ValueError(
            f"layer={layer} has no dendrogram: hidden layers are counted from 0, and the neurons "
            f"of {n_layers} of them were clustered."
        )
    return estimator.dendrogram_[layer]


def layer_prefix(layer: int | None) -> str:
    """The start of a title."""
    return "" if layer is None else f"hidden layer {layer}: "


def cluster_colors(ordered_labels: np.ndarray) -> dict[int, str]:
    """Color of every kept cluster; neighbors in the dendrogram's order have different ones."""
    kept = dict.fromkeys(int(label) for label in ordered_labels if label >= 0)
    return {label: CLUSTER_COLORS[rank % len(CLUSTER_COLORS)] for rank, label in enumerate(kept)}


def status_handle(status: str, points: Any) -> Any:
    """The legend entry of the clusters with a status, with their number."""
    from matplotlib.lines import Line2D

    fate = status if status == "kept" else f"dropped: {status}"
    return Line2D(
        [],
        [],
        marker=STATUS_MARKERS[status],
        color=STATUS_COLORS[status],
        label=f"{fate} ({len(points.get_offsets())})",
        linestyle="none",
        markersize=6,
    )


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
