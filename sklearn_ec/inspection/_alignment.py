"""Why clusters are kept or dropped: how many students share them, and how tight they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_ec._folding import unwrap

from ._common import (
    FLOOR,
    STATUS_COLORS,
    STATUS_MARKERS,
    Display,
    layer_dendrogram,
    layer_prefix,
    status_handle,
)


class AlignmentDisplay(Display):
    """Size of every cluster against its median angle, with the thresholds ``gamma`` and ``beta``.

    Clusters at the upper left, shared by at least a share ``gamma`` of the voting students and with
    a median angle of at most ``beta``, are kept. A gap between them and the rest says that the
    thresholds do not matter; points near a line say that other values are worth a ``recluster``.
    The area of a point grows with the number of neurons: students may hold several copies.

    Parameters
    ----------
    report : list of dict
        Clusters of one hidden layer, entries of the ``cluster_report_`` of a fitted
        :class:`~sklearn_ec.ExpandClusterRegressor`.
    n_voters : int
        Number of voting students.
    gamma : float
        Least share of the voting students in a kept cluster.
    beta : float
        Largest median angle of a kept cluster, in radians.
    layer : int, default=None
        The hidden layer, for the title.
    certified : bool, default=None
        Whether the network is certified, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    points_ : dict of str to matplotlib PathCollection
        The clusters, by status.
    gamma_line_ : matplotlib Line2D
        The least number of students.
    beta_line_ : matplotlib Line2D
        The largest angle.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    DendrogramDisplay : The tree that the clusters are cut from.

    Examples
    --------
    >>> from sklearn_ec.inspection import AlignmentDisplay
    >>> report = [
    ...     {"size": 5, "n_students": 4, "median_angle": 1e-9, "status": "kept"},
    ...     {"size": 2, "n_students": 1, "median_angle": 0.8, "status": "small"},
    ... ]
    >>> display = AlignmentDisplay(report, n_voters=4, gamma=0.5, beta=0.52).plot()
    >>> sorted(display.points_)
    ['kept', 'small']
    """

    def __init__(
        self,
        report: list[dict[str, Any]],
        *,
        n_voters: int,
        gamma: float,
        beta: float,
        layer: int | None = None,
        certified: bool | None = None,
    ):
        self.report = report
        self.n_voters = n_voters
        self.gamma = gamma
        self.beta = beta
        self.layer = layer
        self.certified = certified

    @classmethod
    def from_estimator(cls, estimator: Any, *, layer: int = 0, ax: Any = None) -> AlignmentDisplay:
        """Draw the clusters of a fitted estimator.

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
        AlignmentDisplay
            The display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If there is no ExpandClusterRegressor in it.
        ValueError
            If the layer was not clustered.
        """
        estimator = unwrap(estimator)
        layer_dendrogram(estimator, layer)
        report = [entry for entry in estimator.cluster_report_ if entry["layer"] == layer]
        # All voters have neurons in the first layer.
        n_voters = len(np.unique(estimator.dendrogram_[0].students))
        display = cls(
            report,
            n_voters=n_voters,
            gamma=estimator.gamma,
            beta=estimator.beta,
            layer=layer,
            certified=estimator.recovered_,
        )
        return display.plot(ax)

    def plot(self, ax: Any = None) -> AlignmentDisplay:
        """Draw the clusters and the thresholds.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        AlignmentDisplay
            This display.
        """
        ax = self._prepare_axes(ax, height=2.8)
        ax.set_xscale("log")
        ax.set(xlim=(FLOOR / 3, 2 * np.pi), ylim=(0, 1.15 * self.n_voters))
        self.points_ = {}
        for status in STATUS_MARKERS:
            clusters = [entry for entry in self.report if entry["status"] == status]
            if clusters:
                self.points_[status] = self._draw_points(clusters, status)
        self.gamma_line_ = ax.axhline(
            self.gamma * self.n_voters,
            color="black",
            linestyle="--",
            linewidth=1,
            label=f"gamma = {self.gamma:.3g}",
        )
        self.beta_line_ = ax.axvline(
            max(self.beta, FLOOR),
            color="black",
            linestyle=":",
            linewidth=1.5,
            label=f"beta = {self.beta:.3g} rad",
        )
        ax.yaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("median angle within the cluster (radians)")
        ax.set_ylabel(f"students in the cluster (of {self.n_voters})")
        self._set_title(f"{layer_prefix(self.layer)}which clusters are kept")
        self._draw_legend(
            [status_handle(*item) for item in self.points_.items()]
            + [self.gamma_line_, self.beta_line_]
        )
        return self

    def _draw_points(self, clusters: list[dict[str, Any]], status: str) -> Any:
        return self.ax_.scatter(
            [max(entry["median_angle"], FLOOR) for entry in clusters],
            [entry["n_students"] for entry in clusters],
            s=[12 + 30 * entry["size"] / self.n_voters for entry in clusters],
            color=STATUS_COLORS[status],
            marker=STATUS_MARKERS[status],
            alpha=0.6,
            linewidths=0,
        )
