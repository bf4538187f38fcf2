"""How the students were trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_ec._folding import unwrap

from ._common import BLUE, NEUTRAL, Display

TINY_LOSS = 1e-34


class StudentLossDisplay(Display):
    """Loss of every student over the iterations, on a logarithmic axis.

    Students whose loss reached the target are colored, the others gray; a dot marks where training
    ended. It ends for all students as soon as enough of them have converged or the network is
    found, so that gray curves may have been on their way down.

    Parameters
    ----------
    loss_curves : ndarray of shape (n_students, n_epochs + 1)
        Relative mean squared error of every student, nan after the end of its training.
    tol : float
        Loss at which a student has converged.
    iterations_per_epoch : int, default=1
        Iterations between two columns of ``loss_curves``.
    certified : bool, default=None
        Whether the network is certified, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    lines_ : list of matplotlib Line2D
        One line per student that has a loss.
    tol_line_ : matplotlib Line2D
        The loss at which a student has converged.
    legend_ : matplotlib Legend
        The legend.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.inspection import StudentLossDisplay
    >>> curves = np.array([[1.0, 1e-3, 1e-25], [1.0, 0.5, np.nan]])
    >>> display = StudentLossDisplay(curves, tol=1e-20).plot()
    >>> display.ax_.get_title()
    '1 of 2 students converged'
    """

    def __init__(
        self,
        loss_curves: np.ndarray,
        *,
        tol: float,
        iterations_per_epoch: int = 1,
        certified: bool | None = None,
    ):
        self.loss_curves = loss_curves
        self.tol = tol
        self.iterations_per_epoch = iterations_per_epoch
        self.certified = certified

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> StudentLossDisplay:
        """Draw the losses of a fitted estimator's students.

        Parameters
        ----------
        estimator : ExpandClusterRegressor, Pipeline or TransformedTargetRegressor
            A fitted estimator, or pipelines and target transformers around one.
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        StudentLossDisplay
            The display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If there is no ExpandClusterRegressor in it.
        """
        estimator = unwrap(estimator)
        steps = estimator._settings.training.steps_per_epoch
        display = cls(
            estimator.student_loss_curves_,
            tol=estimator.tol,
            iterations_per_epoch=1 if estimator.solver == "adam" else steps,
            certified=estimator.recovered_,
        )
        return display.plot(ax)

    def plot(self, ax: Any = None) -> StudentLossDisplay:
        """Draw the losses.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        StudentLossDisplay
            This display.
        """
        ax = self._prepare_axes(ax)
        ax.set_yscale("log")
        curves = [curve[np.isfinite(curve)] for curve in self.loss_curves]
        curves = [np.maximum(curve, TINY_LOSS) for curve in curves if len(curve)]
        self.lines_ = [self._draw_curve(curve) for curve in curves]
        self.tol_line_ = ax.axhline(
            max(self.tol, TINY_LOSS), color="black", linestyle="--", linewidth=1
        )
        n_converged = sum(bool(curve[-1] <= self.tol) for curve in curves)
        ax.set_xlabel("iteration")
        ax.set_ylabel("loss / variance of y")
        # Pruning may give the network before any student converges.
        alone = " on their own" if self.certified else ""
        self._set_title(f"{n_converged} of {len(self.loss_curves)} students converged{alone}")
        self._draw_legend(self._legend_handles())
        return self

    def _draw_curve(self, curve: np.ndarray) -> Any:
        converged = curve[-1] <= self.tol
        (line,) = self.ax_.plot(
            self.iterations_per_epoch * np.arange(len(curve)),
            curve,
            color=BLUE if converged else NEUTRAL,
            marker="o",
            markersize=4,
            markevery=[len(curve) - 1],
            linewidth=1,
            alpha=0.8,
            zorder=2.5 if converged else 2,
        )
        return line

    def _legend_handles(self) -> list[Any]:
        from matplotlib.lines import Line2D

        drawn = {line.get_color() for line in self.lines_}
        handles = [
            Line2D([], [], color=color, marker="o", markersize=4, label=label)
            for color, label in [(BLUE, "converged"), (NEUTRAL, "not converged")]
            if color in drawn
        ]
        target = Line2D([], [], color="black", linestyle="--", label=f"target {self.tol:.0e}")
        return [*handles, target]
