"""How much of a model a number of queries recovers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._common import BLUE, FLOOR, NEUTRAL, Display, certified_handles


class AuditDisplay(Display):
    """Error of the recovered network over the number of queries, on logarithmic axes.

    Certified networks are colored, others gray; a label at each point tells the widths found.

    Parameters
    ----------
    rows : sequence of dict
        The ``rows`` of an :class:`~sklearn_ec.extraction.Audit`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    points_ : matplotlib PathCollection
        One point per row.
    legend_ : matplotlib Legend
        The legend.

    See Also
    --------
    ExtractionDisplay : The rounds of one extraction.

    Examples
    --------
    >>> from sklearn_ec.inspection import AuditDisplay
    >>> row = {"n_queries": 80, "output_error": 1e-15, "certified": True, "layer_sizes": (4,)}
    >>> AuditDisplay([row]).plot().ax_.get_title()
    'certified with 80 queries'
    """

    def __init__(self, rows: Sequence[dict[str, Any]]):
        self.rows = rows

    def plot(self, ax: Any = None) -> AuditDisplay:
        """Draw the errors.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        AuditDisplay
            This display.
        """
        ax = self._prepare_axes(ax)
        ax.set_xscale("log")
        ax.set_yscale("log")
        queries = [row["n_queries"] for row in self.rows]
        errors = [max(row["output_error"], FLOOR) for row in self.rows]
        colors = [BLUE if row["certified"] else NEUTRAL for row in self.rows]
        ax.plot(queries, errors, color=NEUTRAL, linewidth=1)
        self.points_ = ax.scatter(queries, errors, c=colors, s=24, zorder=3)
        for row, x, y in zip(self.rows, queries, errors, strict=True):
            ax.annotate(
                "-".join(map(str, row["layer_sizes"])),
                (x, y),
                textcoords="offset points",
                xytext=(4, 4),
                **self._text_size,
            )
        ax.margins(x=0.15, y=0.1)
        self._mark_queries(queries)
        ax.set_ylabel("relative error on fresh inputs")
        certified = [row["n_queries"] for row in self.rows if row["certified"]]
        verdict = f"certified with {min(certified):,} queries" if certified else "not certified"
        self._set_title(verdict)
        self._draw_legend(certified_handles(colors))
        return self
