"""What the displays share: axes, checks, colors. Matplotlib is imported on use only."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_ec._core.records import Dendrogram

# Distances and angles below this are drawn here: they are rounding, and a log axis has no zero.
FLOOR = 1e-16
# The colors of Okabe and Ito, which color-blind people tell apart.
BLUE, VERMILION, ORANGE, PURPLE = "#0072b2", "#d55e00", "#e69f00", "#cc79a7"
GREEN, SKY = "#009e73", "#56b4e9"
NEUTRAL = "0.7"
STATUS_MARKERS = {"kept": "o", "small": "v", "unaligned": "X", "unstable": "D"}
STATUS_COLORS = {"kept": BLUE, "small": "0.5", "unaligned": VERMILION, "unstable": PURPLE}
CLUSTER_COLORS = [BLUE, ORANGE, GREEN, SKY]
# Figures are as wide as the column of a paper, in inches, with letters of a size for it, in points.
COLUMN_WIDTH = 3.3
DPI = 200  # so that they are not small on a screen
LARGE, SMALL = 8, 7
TITLE_WIDTH = 46  # letters of a line
LEGEND_WIDTH = 56
MAX_LEVEL_LABELS = 4  # of queries, side by side


class Display:
    """A plot that keeps its axes and figure, and says first whether the network is certified.

    A figure of its own is as wide as the column of a paper. On given axes, letters have the size
    that matplotlib's settings say.
    """

    ax_: Any
    figure_: Any
    legend_: Any = None
    certified: bool | None = None

    def _prepare_axes(self, ax: Any, height: float = 2.7) -> Any:
        """The axes to draw on, those of a new figure if None."""
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        self._owns_figure = ax is None
        if ax is None:
            size = (COLUMN_WIDTH, height)
            _, ax = plt.subplots(figsize=size, dpi=DPI, layout="constrained")
            ax.tick_params(which="both", labelsize=SMALL)
            ax.xaxis.label.set_size(LARGE)
            ax.yaxis.label.set_size(LARGE)
            ax.spines[["top", "right"]].set_visible(False)
        self.ax_, self.figure_ = ax, ax.figure
        return ax

    @property
    def _text_size(self) -> dict[str, int]:
        """The size of small letters, matplotlib's own on given axes."""
        return {"fontsize": SMALL} if self._owns_figure else {}

    def _set_title(self, text: str) -> None:
        verdicts = {True: "network certified\n", False: "network not certified\n", None: ""}
        size = {"fontsize": LARGE} if self._owns_figure else {}
        self.ax_.set_title(verdicts[self.certified] + in_lines(text, TITLE_WIDTH), **size)

    def _draw_legend(self, handles: list[Any] | None = None) -> None:
        """A legend where it hides nothing: below the axes, to the right of given ones."""
        if handles is None:
            handles, _ = self.ax_.get_legend_handles_labels()
        if self._owns_figure:
            self.legend_ = self.figure_.legend(
                handles=handles,
                loc="outside lower center",
                ncols=_legend_columns([handle.get_label() for handle in handles]),
                frameon=False,
                fontsize=SMALL,
                columnspacing=1.2,
                handletextpad=0.5,
            )
        else:
            self.legend_ = self.ax_.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))

    def _mark_queries(self, queries: list[int]) -> None:
        """Numbers of queries on a logarithmic axis, as they are."""
        from matplotlib.ticker import NullLocator

        self.ax_.xaxis.set_minor_locator(NullLocator())
        labels = [f"{n:,}" for n in queries]
        self.ax_.set_xticks(queries, labels, rotation=turned(len(queries)))
        self.ax_.set_xlabel("queries")


def certified_handles(colors: list[str]) -> list[Any]:
    """Legend entries of the colors of certified and of other networks, where they occur."""
    from matplotlib.lines import Line2D

    names = {BLUE: "certified", NEUTRAL: "not certified"}
    return [
        Line2D([], [], linestyle="none", marker="o", markersize=5, color=color, label=name)
        for color, name in names.items()
        if color in colors
    ]


def turned(n_labels: int) -> float:
    """The angle at which so many labels of an axis do not touch each other."""
    return 90.0 if n_labels > MAX_LEVEL_LABELS else 0.0


def in_lines(text: str, width: int) -> str:
    """Text in lines of a width, broken after commas where that will do."""
    lines = [""]
    for part in text.split(", "):
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(part)
    return ",\n".join(textwrap.fill(line, width) for line in lines if line)


def _legend_columns(labels: list[str]) -> int:
    """How many entries, with room for their handles, stand side by side."""
    widest = max(map(len, labels), default=0) + 6
    return max(1, min(len(labels), LEGEND_WIDTH // widest))


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
