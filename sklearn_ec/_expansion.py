"""How wide must the students be? Search the width of a network of unknown size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ._types import Students

# Widening counts as progress when it lowers the held-out loss below this share of the best so far.
PROGRESS = 0.9
MAX_FAILURES = 2


@dataclass(frozen=True)
class WidthSearch:
    """The assumed widths; where no width fits the data, also its probe students and the reason."""

    widths: tuple[int, ...]
    students: Students | None = None
    problem: str = ""


def find_width(
    train_probes: Callable[[int], tuple[Students, int | None]],
    n_parameters: Callable[[int], int],
    n_equations: int,
) -> WidthSearch:
    """Double the width until probe students fit the data, or until that is hopeless.

    Parameters
    ----------
    train_probes : callable
        Maps a width to its trained probe students and, if they fit the data exactly, to the width
        that this takes.
    n_parameters : callable
        Maps a width to the number of parameters of one student.
    n_equations : int
        Number of equations, ``n_samples * n_outputs``.

    Returns
    -------
    WidthSearch
        The width that fits exactly; else the width of lowest loss on held-out rows.
    """
    width, best, n_failures = 1, WidthSearch((1,)), 0
    while True:
        students, sufficient_width = train_probes(width)
        if sufficient_width is not None:
            return WidthSearch((sufficient_width,))
        if _is_progress(students, best.students):
            best, n_failures = WidthSearch((width,), students), 0
        else:
            n_failures += 1
        if n_failures >= MAX_FAILURES:
            problem = f"wider students than those for width {best.widths[0]} did no better"
            return replace(best, problem=f"{problem} on held-out rows, as with noisy data")
        if n_parameters(2 * width) > n_equations:
            problem = f"students for width {2 * width} would hold {n_parameters(2 * width)}"
            problem += f" parameters, more than the {n_equations} equations"
            return replace(best, problem=f"{problem}: give more rows or a smaller rho")
        width *= 2


def _is_progress(students: Students, best: Students | None) -> bool:
    if best is None:
        return True
    return students.best_held_out_loss < PROGRESS * best.best_held_out_loss
