"""How an extraction came to its network, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._common import BLUE, FLOOR, NEUTRAL, Display, certified_handles, turned


class ExtractionDisplay(Display):
    """Errors of the network and its widths over the number of queries, one point per round.

    The full line is the relative error on rows kept out of training, the dashed one that on the
    training rows; networks that fit the answers without being the model show in their distance.
    The widths that each round found stand above. A certified network is colored.

    Parameters
    ----------
    history : sequence of dict
        The ``history`` of an :class:`~sklearn_ec.extraction.Extraction`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    widths_ax_ : matplotlib SecondaryAxis
        The axis with the widths.
    held_out_line_ : matplotlib Line2D
        Errors on held-out rows.
    training_line_ : matplotlib Line2D
        Errors on training rows.
    points_ : matplotlib PathCollection
        One point per round, on held-out rows.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    AuditDisplay : Errors on fresh inputs, for several budgets.

    Examples
    --------
    >>> from sklearn_ec.inspection import ExtractionDisplay
    >>> rounds = [
    ...     {"n_queries": 60, "layer_sizes": (6,), "loss": 1e-9, "held_out_error": 0.1},
    ...     {"n_queries": 84, "layer_sizes": (4,), "loss": 1e-31, "held_out_error": 1e-15},
    ... ]
    >>> history = [row | {"certified": row["loss"] < 1e-20} for row in rounds]
    >>> ExtractionDisplay(history).plot().ax_.get_title()
    'certified with 84 queries, 2 rounds'
    """

    def __init__(self, history: Sequence[dict[str, Any]]):
        self.history = history

    @classmethod
    def from_extraction(cls, extraction: Any, *, ax: Any = None) -> ExtractionDisplay:
        """Draw the rounds of an extraction.

        Parameters
        ----------
        extraction : Extraction
            What :func:`~sklearn_ec.extraction.extract` returned.
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        ExtractionDisplay
            The display.
        """
        return cls(extraction.history).plot(ax)

    def plot(self, ax: Any = None) -> ExtractionDisplay:
        """Draw the errors and the widths.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        ExtractionDisplay
            This display.
        """
        ax = self._prepare_axes(ax, height=3.0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        queries = [row["n_queries"] for row in self.history]
        errors = [max(row["held_out_error"], FLOOR) for row in self.history]
        training = [max(np.sqrt(row["loss"]), FLOOR) for row in self.history]
        colors = [BLUE if row["certified"] else NEUTRAL for row in self.history]
        style = {"color": "0.4", "linewidth": 1}
        (self.held_out_line_,) = ax.plot(queries, errors, label="held-out rows", **style)
        (self.training_line_,) = ax.plot(queries, training, "--", label="training rows", **style)
        self.points_ = ax.scatter(queries, errors, c=colors, s=24, zorder=3)
        ax.margins(x=0.1, y=0.1)
        ax.set_ylabel("relative error of the outputs")
        self._mark_queries(queries)
        self._draw_widths(queries)
        self._set_title(self._verdict())
        lines = [self.held_out_line_, self.training_line_]
        self._draw_legend(lines + certified_handles(colors))
        return self

    def _draw_widths(self, queries: list[int]) -> None:
        """The widths that each round found, above the axes."""
        from matplotlib.ticker import NullLocator

        self.widths_ax_ = self.ax_.secondary_xaxis("top")
        self.widths_ax_.xaxis.set_minor_locator(NullLocator())
        widths = ["-".join(map(str, row["layer_sizes"])) for row in self.history]
        self.widths_ax_.set_xticks(
            queries, widths, rotation=turned(len(queries)), **self._text_size
        )
        self.widths_ax_.set_xlabel("widths found", **self._text_size)

    def _verdict(self) -> str:
        last, n_rounds = self.history[-1], len(self.history)
        verdict = "certified" if last["certified"] else "not certified"
        rounds = "1 round" if n_rounds == 1 else f"{n_rounds} rounds"
        return f"{verdict} with {last['n_queries']:,} queries, {rounds}"
