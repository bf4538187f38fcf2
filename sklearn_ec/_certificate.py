r"""The certificate: is this network *the* network behind the data? Decided without a teacher.

With ``e`` the relative root mean squared error on the training rows and ``σ_min`` the smallest
singular value of the network's scaled Jacobian, ``recovered`` demands all of

1. ``e`` and its twin on rows kept out of training are at rounding level;
2. the ``n·k`` equations outnumber the network's parameters at least twofold;
3. the solution is isolated: ``e ≤ 0.1 σ_min²``, with ``e`` at least the rounding of the targets.
   This is the Newton-Kantorovich condition ``‖J⁺‖²·L·e ≤ 1/2`` with a margin for the curvature
   ``L``: one exact network lies within about ``e / σ_min`` of this one. A network with a spare
   neuron has a family of equally good neighbors, so its ``σ_min`` is at most of the order of ``√e``
   and it fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._activations import Activation
from ._reconstruction import design_matrix
from ._training import Trainer
from ._types import Network, Samples

# Relative root mean squared error that counts as rounding, in units of the targets' rounding.
ROUNDING_FACTOR = 1000.0
MIN_EQUATIONS_PER_PARAMETER = 2.0
ISOLATION = 0.1


@dataclass(frozen=True)
class Certificate:
    """What was measured, and the verdict."""

    error: float  # relative root mean squared error on the training rows
    held_out_error: float
    rounding: float  # errors up to here are rounding
    n_equations: int
    n_parameters: int
    smallest_singular_value: float  # nan where the errors are above rounding
    passed: bool
    reason: str


def certify(
    network: Network, trainer: Trainer, held_out: Samples, y_rounding: float
) -> Certificate:
    """Judge a network without skip term.

    ``y_rounding`` is the targets' relative rounding error (machine epsilon for targets of mean
    zero).
    """
    error = relative_error(network, trainer.samples, trainer.activation)
    held_out_error = relative_error(network, held_out, trainer.activation)
    rounding = ROUNDING_FACTOR * y_rounding
    n_equations = trainer.samples.n_equations
    isolation = np.nan
    if not (error <= rounding and held_out_error <= rounding):
        reason = (
            f"the relative error is {error:.1e} on training rows and {held_out_error:.1e} on "
            f"held-out rows, above rounding ({rounding:.1e})"
        )
    elif n_equations < MIN_EQUATIONS_PER_PARAMETER * network.n_parameters:
        reason = (
            f"{n_equations} equations are too few for {network.n_parameters} parameters: "
            f"give at least {MIN_EQUATIONS_PER_PARAMETER:g} times as many"
        )
    else:
        isolation = trainer.smallest_singular_value(network)
        reason = ""
        if max(error, y_rounding) > ISOLATION * isolation**2:
            reason = (
                "other networks fit as well: the smallest singular value of the Jacobian is "
                f"{isolation:.1e}, too small at an error of {error:.1e}"
            )
    return Certificate(
        error=error,
        held_out_error=held_out_error,
        rounding=rounding,
        n_equations=n_equations,
        n_parameters=network.n_parameters,
        smallest_singular_value=isolation,
        passed=not reason,
        reason=reason,
    )


def relative_error(network: Network, samples: Samples, activation: Activation) -> float:
    """Root mean squared error in units of the targets' standard deviation."""
    design = design_matrix(network.hidden, samples, activation, bool(network.skip.size))
    targets = samples.y * np.sqrt(samples.sample_weight)[:, None]
    return float(np.sqrt(np.mean((design @ network.readout.T - targets) ** 2)))
