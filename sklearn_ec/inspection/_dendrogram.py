"""The tree of the students' neurons, on a logarithmic height axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list

from sklearn_ec._core.records import Dendrogram
from sklearn_ec._folding import unwrap

from ._common import (
    FLOOR,
    NEUTRAL,
    STATUS_COLORS,
    STATUS_MARKERS,
    Display,
    cluster_colors,
    count,
    layer_dendrogram,
    layer_prefix,
    status_handle,
)

# Trees with more merges are a bitmap in vector formats.
MAX_VECTOR_MERGES = 5000


class DendrogramDisplay(Display):
    """Dendrogram of the students' neurons in one hidden layer, with its cut.

    The height of a merge is the mean distance between the incoming weight vectors of the two parts,
    on a logarithmic axis: neurons of students at zero loss that are the same lie around 1e-12 or
    lower, different ones around 1. Kept clusters are colored, with a dot on top and a bar where the
    tree is cut, halfway up the gap to the next merge; clusters that were dropped are gray, and the
    marker on top says why. Positions are computed without recursion, so that chains of any length
    can be drawn.

    Parameters
    ----------
    dendrogram : Dendrogram
        The tree, one of the ``dendrogram_`` of a fitted
        :class:`~sklearn_ec.ExpandClusterRegressor`.
    layer : int, default=None
        Its hidden layer, for the title.
    certified : bool, default=None
        Whether the network is certified, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    lines_ : matplotlib LineCollection
        One line of four points per merge, in the order of the linkage matrix.
    cuts_ : matplotlib LineCollection
        One bar per kept cluster, where the tree is cut.
    markers_ : dict of str to matplotlib PathCollection
        The tops of the clusters, by status.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    SimilarityDisplay : The distances that the tree summarizes.
    AlignmentDisplay : Why clusters are kept or dropped.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec import ExpandClusterRegressor
    >>> from sklearn_ec.inspection import DendrogramDisplay
    >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
    >>> model = ExpandClusterRegressor(
    ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
    ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
    >>> display = DendrogramDisplay.from_estimator(model)
    >>> display.ax_.get_yscale()
    'log'
    """

    def __init__(
        self, dendrogram: Dendrogram, *, layer: int | None = None, certified: bool | None = None
    ):
        self.dendrogram = dendrogram
        self.layer = layer
        self.certified = certified

    @classmethod
    def from_estimator(cls, estimator: Any, *, layer: int = 0, ax: Any = None) -> DendrogramDisplay:
        """Draw the dendrogram of a fitted estimator.

        Parameters
        ----------
        estimator : ExpandClusterRegressor, Pipeline or TransformedTargetRegressor
            A fitted estimator, or pipelines and target transformers around one.
        layer : int, default=0
            Hidden layer, from 0.
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        DendrogramDisplay
            The display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If there is no ExpandClusterRegressor in it.
        ValueError
            If the layer was not clustered, or has a single neuron.
        """
        estimator = unwrap(estimator)
        record = layer_dendrogram(estimator, layer)
        return cls(record, layer=layer, certified=estimator.recovered_).plot(ax)

    def plot(self, ax: Any = None) -> DendrogramDisplay:
        """Draw the tree.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        DendrogramDisplay
            This display.

        Raises
        ------
        ValueError
            If the tree has a single leaf.
        """
        if len(self.dendrogram.linkage) == 0:
            raise ValueError("The dendrogram has a single leaf: there is nothing to plot.")
        ax = self._prepare_axes(ax, height=3.0)
        tree = _Layout(self.dendrogram)
        self._draw_merges(tree)
        self._draw_clusters(tree)
        ax.set_yscale("log")
        ax.set(xlim=(-1, len(tree.order)), ylim=(tree.bottom, tree.top), xticks=[])
        ax.set_xlabel(
            f"{count(len(tree.order), 'neuron')} of "
            f"{count(len(np.unique(self.dendrogram.students)), 'voting student')}"
        )
        ax.set_ylabel("distance between incoming vectors")
        self._set_title(self._title())
        self._draw_legend(self._legend_handles())
        return self

    def _draw_merges(self, tree: _Layout) -> None:
        from matplotlib.collections import LineCollection

        clusters = tree.clusters[len(tree.order) :]
        colors = [tree.colors[cluster] for cluster in clusters]
        # Where there are many, the long stems of lone neurons would hide all else.
        thin = np.clip(60 / len(tree.order), 0.1, 1.0)
        self.lines_ = LineCollection(
            list(tree.segments()),
            colors=colors,
            linewidths=[thin if color == NEUTRAL else 1.0 for color in colors],
            rasterized=len(clusters) > MAX_VECTOR_MERGES,
        )
        self.ax_.add_collection(self.lines_)

    def _draw_clusters(self, tree: _Layout) -> None:
        from matplotlib.collections import LineCollection

        by_status: dict[str, list[int]] = {status: [] for status in STATUS_MARKERS}
        for cluster, status in enumerate(self.dendrogram.statuses):
            by_status[status].append(cluster)
        self.markers_ = {
            status: self._draw_tops(tree, clusters, status)
            for status, clusters in by_status.items()
            if clusters
        }
        self.cuts_ = LineCollection(
            [tree.cut_bar(cluster) for cluster in by_status["kept"]],
            colors="black",
            linewidths=1.5,
            zorder=3,
        )
        self.ax_.add_collection(self.cuts_)

    def _draw_tops(self, tree: _Layout, clusters: list[int], status: str) -> Any:
        nodes = tree.tops[clusters]
        color = [tree.colors[c] for c in clusters] if status == "kept" else STATUS_COLORS[status]
        marker = STATUS_MARKERS[status]
        return self.ax_.scatter(
            tree.x[nodes], tree.heights[nodes], s=16, c=color, marker=marker, zorder=3
        )

    def _title(self) -> str:
        record = self.dendrogram
        title = f"{layer_prefix(self.layer)}{count(len(record.cut_heights), 'cluster')} kept"
        if record.n_students:
            title += f", {record.n_agreeing} of {record.n_students} students agree on the network"
        return title

    def _legend_handles(self) -> list[Any]:
        from matplotlib.lines import Line2D

        cut = Line2D([], [], color="black", linewidth=1.5, label="cut")
        return [status_handle(*item) for item in self.markers_.items()] + [cut]


class _Layout:
    """Where the nodes of a tree are drawn; nodes are numbered as in SciPy, leaves first."""

    def __init__(self, record: Dendrogram):
        linkage = record.linkage
        self.children = linkage[:, :2].astype(int)
        self.order = leaves_list(linkage)
        merges = np.maximum(linkage[:, 2], FLOOR)
        self.bottom, self.top = merges.min() / 4, merges.max() * 4
        self.heights = np.concatenate([np.full(len(self.order), self.bottom), merges])
        self.x = self._spread(np.argsort(self.order).astype(float))
        self.leaf_clusters = record.clusters
        self.clusters = self._common(record.clusters)
        self.tops = self._tops(len(record.statuses))
        self.colors = self._cluster_colors(record)
        self.parent_heights = np.full(len(self.heights), self.top)
        self.parent_heights[self.children] = merges[:, None]

    def _spread(self, leaf_x: np.ndarray) -> np.ndarray:
        """Every merge in the middle of its two parts."""
        x = np.append(leaf_x, np.empty(len(self.children)))
        for merge, (left, right) in enumerate(self.children):
            x[len(leaf_x) + merge] = (x[left] + x[right]) / 2
        return x

    def _common(self, leaf_clusters: np.ndarray) -> np.ndarray:
        """Cluster of every node: its leaves' where they are all in one, else -1."""
        clusters = np.append(leaf_clusters, np.full(len(self.children), -1))
        for merge, (left, right) in enumerate(self.children):
            if clusters[left] == clusters[right]:
                clusters[len(leaf_clusters) + merge] = clusters[left]
        return clusters

    def _cluster_colors(self, record: Dendrogram) -> dict[int, str]:
        """Color of every cluster, -1 included: gray unless it is kept."""
        by_label = cluster_colors(record.labels[self.order])
        colors = dict.fromkeys(range(-1, len(record.statuses)), NEUTRAL)
        for label, cluster in enumerate(np.flatnonzero(record.statuses == "kept")):
            colors[int(cluster)] = by_label[label]
        return colors

    def segments(self) -> np.ndarray:
        """The lines of all merges, shape (n_merges, 4, 2)."""
        own = self.heights[len(self.order) :]
        left, right = self.children.T
        x = np.stack([self.x[left], self.x[left], self.x[right], self.x[right]], axis=1)
        y = np.stack([self.heights[left], own, own, self.heights[right]], axis=1)
        return np.stack([x, y], axis=2)

    def cut_bar(self, cluster: int) -> np.ndarray:
        """A horizontal bar over a cluster, halfway up the gap to the next merge."""
        x = self.x[np.flatnonzero(self.leaf_clusters == cluster)]
        top = self.tops[cluster]
        height = np.sqrt(self.heights[top] * self.parent_heights[top])
        return np.array([[x.min() - 0.4, height], [x.max() + 0.4, height]])

    def _tops(self, n_clusters: int) -> np.ndarray:
        """The topmost node of every cluster."""
        tops = np.empty(n_clusters, dtype=int)
        inside = np.flatnonzero(self.clusters >= 0)
        tops[self.clusters[inside]] = inside  # parents come after their children
        return tops
