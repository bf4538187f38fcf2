"""The distances between the students' neurons as an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list
from scipy.spatial.distance import squareform

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.distances import pairwise_distances
from sklearn_ec._folding import unwrap

from ._common import (
    FLOOR,
    LARGE,
    SMALL,
    Display,
    cluster_colors,
    count,
    in_lines,
    layer_dendrogram,
    layer_prefix,
)

MAX_NEURONS = 1000
LABEL_WIDTH = 40  # letters below the image


class SimilarityDisplay(Display):
    """Distances between the students' neurons, in the order of the dendrogram.

    Distances are those between incoming weight vectors ``[w; b]``, blind to signs where the
    activation has a sign symmetry, on a logarithmic color scale. Neurons that the students share
    are blocks on the diagonal; those of kept clusters have a frame in the color that
    :class:`DendrogramDisplay` gives them.

    Parameters
    ----------
    distances : ndarray of shape (n_neurons, n_neurons)
        Distances between neurons.
    labels : ndarray of shape (n_neurons,)
        Kept cluster of every neuron, -1 for none; clusters are contiguous.
    every : int, default=1
        The neurons are each ``every``-th one, for the axis label.
    layer : int, default=None
        Their hidden layer, for the title.
    certified : bool, default=None
        Whether the network is certified, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    image_ : matplotlib AxesImage
        The distances.
    colorbar_ : matplotlib Colorbar
        Its scale.
    frames_ : list of matplotlib Rectangle
        One frame per kept cluster.

    See Also
    --------
    DendrogramDisplay : The tree of the same distances.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.inspection import SimilarityDisplay
    >>> distances = np.array([[0.0, 1e-9, 1.0], [1e-9, 0.0, 1.0], [1.0, 1.0, 0.0]])
    >>> display = SimilarityDisplay(distances, labels=np.array([0, 0, -1])).plot()
    >>> len(display.frames_)
    1
    """

    def __init__(
        self,
        distances: np.ndarray,
        labels: np.ndarray,
        *,
        every: int = 1,
        layer: int | None = None,
        certified: bool | None = None,
    ):
        self.distances = distances
        self.labels = labels
        self.every = every
        self.layer = layer
        self.certified = certified

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, layer: int = 0, max_neurons: int = MAX_NEURONS, ax: Any = None
    ) -> SimilarityDisplay:
        """Draw the distances between the neurons that a fitted estimator clustered.

        Parameters
        ----------
        estimator : ExpandClusterRegressor, Pipeline or TransformedTargetRegressor
            A fitted estimator, or pipelines and target transformers around one.
        layer : int, default=0
            Hidden layer, from 0.
        max_neurons : int, default=1000
            Of more neurons, every second, third, ... in the order of the dendrogram is shown. The
            matrix takes ``8 * max_neurons**2`` bytes.
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        SimilarityDisplay
            The display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If there is no ExpandClusterRegressor in it.
        ValueError
            If the layer was not clustered or ``max_neurons`` is not positive.
        """
        estimator = unwrap(estimator)
        record = layer_dendrogram(estimator, layer)
        if max_neurons < 1:
            raise ValueError(f"max_neurons must be at least 1, got {max_neurons}.")
        every = -(-len(record.labels) // max_neurons)
        order = leaves_list(record.linkage) if len(record.linkage) else np.zeros(1, dtype=int)
        shown = order[::every]
        has_sign_flip = get_activation(estimator.activation_).has_sign_flip
        distances = squareform(pairwise_distances(record.vectors[shown], has_sign_flip))
        display = cls(
            distances,
            record.labels[shown],
            every=every,
            layer=layer,
            certified=estimator.recovered_,
        )
        return display.plot(ax)

    def plot(self, ax: Any = None) -> SimilarityDisplay:
        """Draw the matrix.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        SimilarityDisplay
            This display.
        """
        ax = self._prepare_axes(ax, height=2.9)
        from matplotlib.colors import LogNorm

        drawn = np.maximum(self.distances, FLOOR)
        self.image_ = ax.imshow(
            drawn,
            cmap="viridis_r",
            norm=LogNorm(self._least_distance(), max(1.0, drawn.max())),
            interpolation="nearest",
        )
        self.colorbar_ = self.figure_.colorbar(
            self.image_, ax=ax, label="distance between incoming vectors"
        )
        self._set_colorbar_size()
        self._draw_frames()
        which = count(len(self.labels), "neuron")
        if self.every > 1:
            which += f" (one in {self.every})"
        order = in_lines(f"{which}, in the order of the dendrogram", LABEL_WIDTH)
        ax.set(xticks=[], yticks=[], xlabel=order)
        self._set_title(f"{layer_prefix(self.layer)}{count(len(self.frames_), 'cluster')} kept")
        return self

    def _least_distance(self) -> float:
        """The end of the color scale: the diagonal does not count."""
        others = self.distances[~np.eye(len(self.distances), dtype=bool)]
        return float(np.clip(others.min(initial=0.1), FLOOR, 0.1))

    def _set_colorbar_size(self) -> None:
        if self._owns_figure:
            self.colorbar_.ax.tick_params(which="both", labelsize=SMALL)
            self.colorbar_.ax.yaxis.label.set_size(LARGE)

    def _draw_frames(self) -> None:
        from matplotlib.patches import Rectangle

        self.frames_ = []
        for label, color in cluster_colors(self.labels).items():
            rows = np.flatnonzero(self.labels == label)
            frame = Rectangle(
                (rows[0] - 0.5, rows[0] - 0.5),
                len(rows),
                len(rows),
                fill=False,
                edgecolor=color,
                linewidth=2,
                clip_on=False,
            )
            self.frames_.append(self.ax_.add_patch(frame))
