r"""The certificate: is this network *the* network behind the data? Decided without a teacher.

With ``e`` the relative root mean squared error on the training rows (at least the rounding of the
targets) and ``σ_i``, ``v_i`` the singular values and right singular vectors of the network's
scaled Jacobian, ``recovered`` demands all of

1. ``e`` and its twin on rows kept out of training are at rounding level;
2. the ``n·k`` equations outnumber the network's parameters at least twofold;
3. the weights are determined: ``e ≤ 10⁻³ σ_min``. To first order the weights of an exact network
   differ by at most ``e / σ_min`` from these;
4. no other network nearby fits as well: ``e c_i ≤ 0.1 σ_i²`` along the weakest directions, with
   ``c_i`` the root mean square of the second derivative of the residuals along ``v_i``;
5. every neuron bends: over the rows, ``s(z)`` differs from any affine function of ``z``.

The fifth catches layers that are there for nothing: over a single hidden layer of ReLU neurons, a
second one can pass sums of their nonnegative activations on unchanged.

The fourth is the Newton-Kantorovich condition ``h = ‖J⁺‖² L e ≤ 1/2``, under which exactly one
exact network lies nearby, with the curvature measured direction by direction instead of a bound
``L`` over all of them. A network with a spare neuron fails it: two copies at a distance δ have a
singular value of ``δ c`` and an error of ``δ² c / 2`` that nothing else can absorb, so ``e c ≥ σ² /
2``. Measured on networks of 8 neurons over 2 inputs, where neurons are nearly polynomial and σ_min
is 3e-8 to 5e-5, ``σ² / (e c)`` is at least 26 with the right neurons and at most 0.1 with a
duplicate, a group that cancels or an idle neuron added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._activations import Activation
from ._linearization import Linearization, least_neuron_singular_value
from ._reconstruction import network_outputs, read_features
from ._training import Trainer
from ._types import Network, Samples

# Relative root mean squared error that counts as rounding, in units of the targets' rounding.
ROUNDING_FACTOR = 1000.0
MIN_EQUATIONS_PER_PARAMETER = 2.0
MAX_WEIGHT_ERROR = 1e-3
MIN_ISOLATION = 10.0
N_WEAK_DIRECTIONS = 10
# Least deviation of a neuron's activation from an affine function, relative to its spread.
MIN_BEND = 1e-9
# Networks of more parameters are judged by their single neurons before their whole Jacobian.
MAX_DENSE_PARAMETERS = 1000
TINY = np.finfo(np.float64).tiny


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
    n_equations : int
        Number of training rows times number of outputs.
    n_parameters : int
        Number of weights and biases.
    weight_error : float
        First-order bound on the relative error of the weights, the error over the smallest singular
        value of the scaled Jacobian; nan where the errors are above rounding.
    isolation : float
        How far the nearest other solution is out of reach, the least of ``σ_i² / (e c_i)`` over the
        weakest directions; nan where the errors are above rounding.
    passed : bool
        Whether the network is certified.
    reason : str
        Why it is not; empty if it is.
    """

    error: float
    held_out_error: float
    rounding: float
    n_equations: int
    n_parameters: int
    weight_error: float
    isolation: float
    passed: bool
    reason: str

    @property
    def is_conclusive(self) -> bool:
        """Whether other students have nothing to add.

        The network is certified, or it is large and exact but for what the rows leave open: of
        single neurons, or until the held-out rows joined the training.
        """
        is_large = self.n_parameters > MAX_DENSE_PARAMETERS
        is_open = self.weight_error > MAX_WEIGHT_ERROR and np.isnan(self.isolation)
        is_isolated = self.isolation >= MIN_ISOLATION
        return self.passed or (is_large and bool(is_open or is_isolated))

    @property
    def fits_exactly(self) -> bool:
        """Whether the error on the training rows is at rounding level."""
        return self.error <= self.rounding

    @property
    def is_exact(self) -> bool:
        """Whether the errors are at rounding level."""
        return max(self.error, self.held_out_error) <= self.rounding


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
    weight_error = isolation = np.nan
    reason = ""
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
    elif not least_bend(network, trainer.samples, trainer.activation) >= MIN_BEND:
        reason = "a neuron is a linear function on the data: assume fewer layers or neurons"
    else:
        weight_error, isolation = _determinacy(network, trainer, max(error, y_rounding))
        if not weight_error <= MAX_WEIGHT_ERROR:
            reason = f"the data leave the weights open to a relative error of {weight_error:.1e}"
        elif not isolation >= MIN_ISOLATION:  # nan is no proof
            reason = (
                "other networks nearby fit as well: the isolation of this one is "
                f"{isolation:.1e}, below {MIN_ISOLATION:g}"
            )
    return Certificate(
        error=error,
        held_out_error=held_out_error,
        rounding=rounding,
        n_equations=n_equations,
        n_parameters=network.n_parameters,
        weight_error=weight_error,
        isolation=isolation,
        passed=not reason,
        reason=reason,
    )


def _determinacy(network: Network, trainer: Trainer, error: float) -> tuple[float, float]:
    """The first-order error of the weights, and how isolated the network is.

    Of large networks first that of single neurons, a lower bound: where it is too large, nothing
    else matters, and the isolation stays nan.
    """
    if network.n_parameters > MAX_DENSE_PARAMETERS:
        least = least_neuron_singular_value(trainer.task, network)
        if error > MAX_WEIGHT_ERROR * least:
            return error / max(least, TINY), np.nan
    linearization = Linearization(trainer.task, network)
    curvatures = linearization.curvatures(N_WEAK_DIRECTIONS).cpu().numpy()
    weakest = np.abs(linearization.singular_values.cpu().numpy()[-len(curvatures) :])
    with np.errstate(divide="ignore", invalid="ignore"):
        isolation = np.min(weakest**2 / (error * curvatures))
        return float(error / weakest[-1]), float(isolation)


def least_bend(network: Network, samples: Samples, activation: Activation) -> float:
    """How far the straightest neuron's activation is from an affine function of its input."""
    bends = []
    for depth, layer in enumerate(network.layers[:-1]):
        z = read_features(network.layers[:depth], samples.X, activation, False) @ layer.T
        h = activation.function(z)
        z, h = z - z.mean(axis=0), h - h.mean(axis=0)
        slopes = (z * h).sum(axis=0) / np.maximum((z * z).sum(axis=0), TINY)
        spreads = np.maximum(np.linalg.norm(h, axis=0), TINY)
        bends.append(np.linalg.norm(h - slopes * z, axis=0) / spreads)
    return float(np.concatenate(bends).min())


def relative_error(network: Network, samples: Samples, activation: Activation) -> float:
    """Root mean squared error in units of the targets' standard deviation."""
    residuals = network_outputs(network, samples.X, activation) - samples.y
    return float(np.sqrt(np.mean(residuals**2 * samples.sample_weight[:, None])))
