"""What a search tried, and which trial gave the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sklearn_ec._folding import unwrap

from ._common import BLUE, NEUTRAL, Display

TINY_LOSS = 1e-34
ROW_HEIGHT = 0.17  # inches
MAX_HEIGHT = 9.0
MIN_ROWS = 6


class SearchDisplay(Display):
    """Loss of every shape and activation that a fit tried, in the order in which it tried them.

    Each row is a trial: the number of hidden layers, the assumed width and the activation. A full
    marker is the lowest loss of its students on their training rows, a hollow one that on rows kept
    out of training; where both are tiny, the shape and the activation are right. The trial that
    gave the network is colored. With a given shape and activation there is a single one.

    Parameters
    ----------
    report : sequence of dict
        The ``search_report_`` of a fitted :class:`~sklearn_ec.ExpandClusterRegressor`.
    winner : int, default=None
        Index of the trial that gave the network; None for none.
    certified : bool, default=None
        Whether the network is certified, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    losses_ : matplotlib PathCollection
        Lowest loss of each trial on training rows.
    held_out_losses_ : matplotlib PathCollection
        The same on held-out rows.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    StudentLossDisplay : How the students of the trial that gave the network were trained.

    Examples
    --------
    >>> from sklearn_ec.inspection import SearchDisplay
    >>> trial = {"depth": 1, "width": 4, "loss": 1e-5, "held_out_loss": 1e-4}
    >>> report = [trial | {"activation": "relu"}, trial | {"activation": "tanh", "loss": 1e-25}]
    >>> display = SearchDisplay(report, winner=1).plot()
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['1 × 4, relu', '1 × 4, tanh']
    """

    def __init__(
        self,
        report: Sequence[dict[str, Any]],
        *,
        winner: int | None = None,
        certified: bool | None = None,
    ):
        self.report = report
        self.winner = winner
        self.certified = certified

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> SearchDisplay:
        """Draw what a fitted estimator tried.

        Parameters
        ----------
        estimator : ExpandClusterRegressor, Pipeline or TransformedTargetRegressor
            A fitted estimator, or pipelines and target transformers around one.
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        SearchDisplay
            The display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If there is no ExpandClusterRegressor in it.
        """
        estimator = unwrap(estimator)
        report = estimator.search_report_
        return cls(report, winner=_winner(estimator), certified=estimator.recovered_).plot(ax)

    def plot(self, ax: Any = None) -> SearchDisplay:
        """Draw the losses.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        SearchDisplay
            This display.
        """
        n_trials = len(self.report)
        ax = self._prepare_axes(
            ax, height=min(1.4 + ROW_HEIGHT * max(n_trials, MIN_ROWS), MAX_HEIGHT)
        )
        rows = np.arange(n_trials)
        losses = self._values("loss")
        held_out = self._values("held_out_loss")
        colors = [BLUE if row == self.winner else NEUTRAL for row in rows]
        ax.hlines(rows, losses, held_out, colors=colors, linewidth=1)
        self.losses_ = ax.scatter(losses, rows, c=colors, s=20, zorder=3)
        self.held_out_losses_ = ax.scatter(
            held_out, rows, facecolors="white", edgecolors=colors, s=20, zorder=3
        )
        ax.set_xscale("log")
        ax.set_xlim(*_decades(losses, held_out))
        ax.set_yticks(rows, [_name(trial) for trial in self.report])
        ax.set_ylim(n_trials - 0.4, -0.6)
        ax.set_xlabel("lowest loss / variance of y")
        ax.set_ylabel("layers × neurons, activation")
        ax.grid(axis="y", linewidth=0.5, color="0.93")
        ax.set_axisbelow(True)
        self._set_title(self._title())
        self._draw_legend(self._legend_handles())
        return self

    def _values(self, key: str) -> np.ndarray:
        return np.maximum([trial[key] for trial in self.report], TINY_LOSS)

    def _title(self) -> str:
        n_trials = len(self.report)
        tried = "shape and activation" if n_trials == 1 else "shapes and activations"
        return f"{n_trials} {tried} tried"

    def _legend_handles(self) -> list[Any]:
        from matplotlib.lines import Line2D

        gave = [] if self.winner is None else [(BLUE, BLUE, "gave the network")]
        entries = [("0.4", "0.4", "training rows"), ("white", "0.4", "held-out rows"), *gave]
        return [
            Line2D(
                [], [], linestyle="none", marker="o", markersize=4.5, mfc=face, mec=edge, label=name
            )
            for face, edge, name in entries
        ]


def _decades(*losses: np.ndarray) -> tuple[float, float]:
    """Limits that leave a decade on either side of the finite losses."""
    values = np.concatenate(losses)
    values = values[np.isfinite(values)]
    return float(values.min(initial=1.0) / 10.0), float(values.max(initial=TINY_LOSS) * 10.0)


def _name(trial: dict[str, Any]) -> str:
    return f"{trial['depth']} × {trial['width']}, {trial['activation']}"


def _winner(estimator: Any) -> int | None:
    """Index of the trial that gave the network: the best one of its depth and activation."""
    found = {"depth": len(estimator.layer_sizes_), "activation": estimator.activation_}
    if hasattr(estimator, "_trained"):
        found["width"] = estimator._trained.widths[0]
    report = estimator.search_report_
    alike = [row for row, trial in enumerate(report) if found.items() <= trial.items()]
    return min(
        alike, key=lambda row: (not report[row]["certified"], report[row]["loss"]), default=None
    )
