"""What was measured of a network, and whether it is *the* network behind the data.

How that is measured, and why so: :mod:`sklearn_ec._certify.examination`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sklearn_ec._core.settings import DEFAULTS

# The condition that a network failed first.
Obstacle = Literal[
    "",
    "error",
    "structure",
    "equations",
    "bend",
    "weights",
    "isolation",
    "redundancy",
    "columns",
    "no rows left",
]
CERTIFIED = ("", "columns")  # the obstacles that leave the function certified


@dataclass(frozen=True)
class Certificate:
    """What was measured of a network, and the verdict.

    Attributes
    ----------
    error : float
        Relative root mean squared error on the training rows.
    held_out_error : float
        The same on rows kept out of training.
    rounding : float
        Errors up to here are rounding.
    precision : str
        How the targets are rounded: "float64", "float32", "float16", "3 decimals", ...
    n_equations : int
        Number of training rows times number of outputs.
    n_parameters : int
        Number of weights and biases.
    weight_error : float
        First-order bound on the error of a neuron's ``[w; b]`` relative to its length, in the units
        of ``weights_``, the largest of all neurons; inf where columns are open by a linear
        dependence; nan where the errors are above rounding.
    isolation : float
        How far the nearest other solution is out of reach, the least of ``σ_i² / (ε_i c_i)`` over
        the weakest directions; nan where the errors are above rounding.
    redundancy : float
        Share of an error in a row's targets that shows in its own residuals, the least of all rows;
        nan where the errors are above rounding and of activations without kinks.
    function_certified : bool
        Whether the network computes the function behind the data, on all inputs that satisfy the
        linear relations between columns that hold in the data. Where ``passed`` is True, there are
        none.
    passed : bool
        Whether the weights, too, are those of the network behind the data.
    obstacle : str
        The condition that failed first, in a word; empty if the network passed.
    reason : str
        What was measured of it, in a sentence; empty if the network passed.
    open_columns : tuple of str
        Columns of X whose incoming weights the rows do not tell.
    is_conclusive : bool
        Whether other students have nothing to add: the function is certified, or the network is
        large and exact but for what the rows leave open, of single neurons, or until the held-out
        rows joined the training; or it is huge and near zero, and few rows tell about some
        directions, along which steps crawl.
    """

    error: float
    held_out_error: float
    rounding: float
    precision: str
    n_equations: int
    n_parameters: int
    weight_error: float
    isolation: float
    redundancy: float
    function_certified: bool
    passed: bool
    obstacle: Obstacle
    reason: str
    open_columns: tuple[str, ...] = ()
    is_conclusive: bool = False

    @property
    def fits_exactly(self) -> bool:
        """Whether the error on the training rows is at rounding level."""
        return self.error <= self.rounding

    @property
    def is_exact(self) -> bool:
        """Whether the errors are at rounding level."""
        return max(self.error, self.held_out_error) <= self.rounding

    @property
    def rules_out_noise(self) -> bool:
        """Whether so few parameters fit the training rows that their targets hold no noise."""
        n_needed = DEFAULTS.verdict.min_equations_per_parameter * self.n_parameters
        return self.fits_exactly and self.n_equations >= n_needed
