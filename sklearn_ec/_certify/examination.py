r"""Examine a network: is it *the* network behind the data? Decided without a teacher.

With ``e`` the relative root mean squared error on the training rows (at least the rounding of the
targets) and ``σ_i``, ``v_i`` the singular values and right singular vectors of the network's
scaled Jacobian, ``recovered`` demands all of

1. ``e`` and its twin on rows kept out of training are at rounding level;
2. the ``n·k`` equations outnumber the network's parameters at least twofold;
3. every neuron bends: over the rows, ``s(z)`` differs from any affine function of ``z``; and no two
   neurons with linear flips, ``s(z) = s(-z) + c z``, have opposite incoming vectors;
4. the weights are determined: with an error of at most ``ε_i`` along each left singular vector, to
   first order no ``[w; b]`` is wrong by more than 10⁻³ of its length (3·10⁻² where targets are
   rounded), neither in standardized coordinates nor in the units of the user;
5. no other network nearby fits as well: ``ε_i c_i ≤ 0.1 σ_i²`` (``σ_i²`` where targets are rounded)
   along the weakest directions, with ``c_i`` the root mean square of the second derivative of the
   residuals along ``v_i``;
6. neurons with kinks, which have no curvature: every row is checked by others, its redundancy
   ``1 - h`` is at least 10⁻³ (0.1 where targets are rounded), with its leverage ``h``;
7. ``e`` is explained by a change of the weights, to first order, or by the rounding with which
   the outputs are computed, up to ten times; or it does not depend smoothly on the inputs.

Where the targets are exact, all of ``e`` may lie along any one direction: ``ε_i = e``. Where they
are rounded more coarsely, the rounding is imitated (see :mod:`sklearn_ec._core.precision`): ``e``
must not exceed it, nothing may be left in the residuals that depends smoothly on the inputs, and
``ε_i`` is four times what the imitated rounding amounts to along the i-th direction, or on average.

The third catches layers that are there for nothing: over a single hidden layer of ReLU neurons, a
second one can pass sums of their nonnegative activations on unchanged. Two opposite neurons are one
and a linear function. Behind such pairs may be a neuron that is linear on these rows, and bends
elsewhere: of four leaky ReLU neurons one was off in all of 31 rows, and three neurons with two
opposite ones fitted these exactly, each weight determined.

The fifth is the Newton-Kantorovich condition ``h = ‖J⁺‖² L e ≤ 1/2``, under which exactly one
exact network lies nearby, with the curvature measured direction by direction instead of a bound
``L`` over all of them. A network with a spare neuron fails it: two copies at a distance δ have a
singular value of ``δ c`` and an error of ``δ² c / 2`` that nothing else can absorb, so ``e c ≥ σ² /
2``. Measured on networks of 8 neurons over 2 inputs, where neurons are nearly polynomial and σ_min
is 3e-8 to 5e-5, ``σ² / (e c)`` is at least 26 with the right neurons and at most 0.1 with a
duplicate, a group that cancels or an idle neuron added.

The sixth is Baarda's local redundancy (1968): an error of a row's targets shows in its residuals up
to that share, and not at all where a direction of weights is there for it alone. All outputs of a
row count together, since outputs that depend on each other check nothing. Two nearly equal ReLU
neurons with no more rows between their kinks than it takes to place these fit them whatever their
targets are, and so do others with their kinks elsewhere. No data tell a ReLU neuron from two that
are on in the same rows and have parallel outgoing weights; these count as one.

The seventh catches one neuron in the place of two that are nearly equal: at a distance of 1e-6 it
leaves an error of 3e-14, far below what has to be allowed where inexact weights make the error, but
84 times the rounding. Jacobians that are not factorized are not asked.

A network that meets all of this in standardized coordinates *computes* what the data tell: its
function is certified on their subspace. Where columns are constant or depend on each other, or
hardly vary, weights in the user's units are open all the same; then it is not ``recovered``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.canonical import canonical_network
from sklearn_ec._core.coordinates import Coordinates
from sklearn_ec._core.forward import network_outputs, read_features
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import DEFAULTS, Verdict
from sklearn_ec._solvers.jacobian import RCOND, Linearization, least_neuron_singular_value
from sklearn_ec._solvers.task import LeastSquaresTask, task_of
from sklearn_ec._solvers.weak_directions import WeakLinearization

from .certificate import CERTIFIED, Certificate, Obstacle
from .structure import structured_share

TINY = np.finfo(np.float64).tiny
EPS = np.finfo(np.float64).eps

_Linearization = Linearization | WeakLinearization


def certify(
    network: Network,
    task: LeastSquaresTask,
    samples: Samples,
    held_out: Samples,
    coordinates: Coordinates,
    verdict: Verdict = DEFAULTS.verdict,
    untested: str = "",
) -> Certificate:
    """Judge a network without skip term; the task holds the samples as tensors.

    ``untested`` says why no rows are left to test it: for that it is refused, whatever is measured.
    """
    examination = _Examination(network, task, samples, held_out, coordinates, verdict)
    return examination.certificate(untested)


class _Examination:
    """The measurements of one network, each taken once the cheaper ones were passed."""

    def __init__(
        self,
        network: Network,
        task: LeastSquaresTask,
        samples: Samples,
        held_out: Samples,
        coordinates: Coordinates,
        verdict: Verdict,
    ):
        self.network = network
        self.task = task
        self.activation = task.activation
        self.samples = samples
        self.held_out = held_out
        self.coordinates = coordinates
        self.verdict = verdict
        self.error = relative_error(network, samples, self.activation)
        self.held_out_error = relative_error(network, held_out, self.activation)
        self.exact_rounding = verdict.rounding_factor * coordinates.y_rounding
        self.imitated = self._imitated_rounding()
        imitated_rounding = verdict.imitation_factor * _rms(self.imitated)
        self.rounding = float(max(self.exact_rounding, imitated_rounding))
        self.weight_error = self.isolation = self.redundancy = np.nan
        self.open_columns = np.zeros(len(coordinates.x_mean), dtype=bool)

    def certificate(self, untested: str) -> Certificate:
        obstacle, reason = self._first_obstacle()
        if untested:
            obstacle, reason = "no rows left", untested
        names = tuple(f"x{index}" for index in np.flatnonzero(self.open_columns))
        return Certificate(
            error=self.error,
            held_out_error=self.held_out_error,
            rounding=self.rounding,
            precision=self.coordinates.precision.name,
            n_equations=self.samples.n_equations,
            n_parameters=self.network.n_parameters,
            weight_error=self.weight_error,
            isolation=self.isolation,
            redundancy=self.redundancy,
            function_certified=obstacle in CERTIFIED,
            passed=not obstacle,
            obstacle=obstacle,
            reason=reason,
            open_columns=names,
            is_conclusive=self._is_conclusive(obstacle),
        )

    @property
    def is_large(self) -> bool:
        """Whether single neurons are judged before the whole Jacobian."""
        return self.network.n_parameters > self.verdict.max_dense_parameters

    def _is_conclusive(self, obstacle: Obstacle) -> bool:
        """Whether other students have nothing to add, see :class:`Certificate`."""
        if obstacle in CERTIFIED:
            return True
        is_open = obstacle == "weights" and np.isnan(self.isolation)
        return self.is_large and bool(is_open or self.isolation >= self.verdict.min_isolation)

    def _imitated_rounding(self) -> np.ndarray | None:
        """Errors as the targets have, where the network's are too large for exact ones."""
        if max(self.error, self.held_out_error) <= self.exact_rounding:
            return None
        return self._imitate()

    def _imitate(self, shift: float = 0.0) -> np.ndarray | None:
        return self.coordinates.imitated_rounding(
            self.network, self.samples, self.activation, shift
        )

    def _first_obstacle(self) -> tuple[Obstacle, str]:
        if not (self.error <= self.rounding and self.held_out_error <= self.rounding):
            return "error", (
                f"the relative error is {self.error:.1e} on training rows and "
                f"{self.held_out_error:.1e} on held-out rows, above rounding ({self.rounding:.1e})"
            )
        if self.imitated is not None and (output := self._output_above_rounding()) is not None:
            return "error", (
                f"the error of output {output} is above rounding: "
                f"its targets are of {self.coordinates.precision.name}"
            )
        verdict, samples, n_parameters = self.verdict, self.samples, self.network.n_parameters
        if samples.n_equations < verdict.min_equations_per_parameter * n_parameters:
            return "equations", (
                f"{samples.n_equations} equations are too few for {n_parameters} parameters: "
                f"give at least {verdict.min_equations_per_parameter:g} times as many"
            )
        if self.imitated is not None and (share := self._structure()) > verdict.max_structure:
            return "structure", (
                f"the error is as small as that of targets of {self.coordinates.precision.name}, "
                f"but {share:.0%} of its variance depends on the inputs"
            )
        if not least_bend(self.network, samples, self.activation) >= verdict.min_bend:
            return "bend", "a neuron is a linear function on the data"
        return self._determinacy()

    def _has_opposite_neurons(self) -> bool:
        """Whether two neurons are one and a linear function, as exactly as weights are known."""
        if not self.activation.has_linear_flip:
            return False
        known = self.weight_error if np.isfinite(self.weight_error) else 0.0
        tolerance = max(self.verdict.min_angle, 2.0 * known)
        return least_angle_to_opposite(self.network) <= tolerance

    def _output_above_rounding(self) -> int | None:
        """The first output whose error exceeds its own rounding: that of others may hide it."""
        verdict = self.verdict
        for samples in (self.samples, self.held_out):
            factor = verdict.imitation_factor
            if self.coordinates.precision.step:
                chance = verdict.chance / np.sqrt(len(samples.X))
                factor = min(factor, verdict.step_factor + chance)
            limits = np.maximum(self.exact_rounding, factor * self._roundings())
            errors = np.sqrt(np.mean(self._residuals(samples) ** 2, axis=0))
            if not (errors <= limits).all():
                return int(np.argmax(errors / limits))
        return None

    def _roundings(self) -> np.ndarray:
        """Imitated rounding of each output, at least that of exact targets."""
        assert self.imitated is not None
        roundings = np.sqrt(np.mean(self.imitated**2, axis=0))
        return np.maximum(roundings, self.coordinates.y_rounding)

    def _residuals(self, samples: Samples) -> np.ndarray:
        residuals = network_outputs(self.network, samples.X, self.activation) - samples.y
        return residuals * np.sqrt(samples.sample_weight)[:, None]

    def _structure(self) -> float:
        samples = self.samples.joined(self.held_out)
        scale = 1.0 if self.imitated is None else self._roundings()
        return structured_share(self._residuals(samples) / scale, samples.X)

    def _misses_another_network(self, linearization: Linearization) -> bool:
        """Whether an error as small as that of exact targets is that of one neuron for two.

        What inexact weights leave, a change of them explains; what is left in exact networks is
        half of the rounding with which their outputs are computed, that of 3 neurons for 4, two of
        them at a distance of 1e-6, was 84 times it.
        """
        unexplained = linearization.unexplained_error(self.error)
        if unexplained <= self.verdict.max_unexplained * self._output_rounding():
            return False
        return self._structure() > self.verdict.max_structure

    def _output_rounding(self) -> float:
        """Relative rounding error of the sums that the outputs and the first layer are."""
        *hidden, readout = self.network.layers
        features = read_features(hidden, self.samples.X, self.activation, False)
        terms = np.abs(features) @ np.abs(readout).T
        offsets = np.abs(self.coordinates.x_mean) / self.coordinates.x_scale
        return EPS * max(_rms(terms), 1.0 + offsets.max()) + self.coordinates.y_rounding

    def _determinacy(self) -> tuple[Obstacle, str]:
        """Whether the data determine the weights, and whether no other network is nearby.

        Large networks are first judged by their single neurons, a lower bound: where that is too
        large, nothing else matters, and the isolation stays nan. Then a share of the rows is asked,
        which tells less than all; where it does not suffice, all are, unless they are too many for
        a factorization.
        """
        limit, *_ = self._limits()
        if self.is_large:
            longest = max(layer.shape[1] for layer in self.network.layers)
            few = self.task.spread(self.verdict.weak_directions.rows_per_feature * longest)
            self.weight_error = self._neuron_error(few)
            if self.weight_error > limit and few is not self.task:  # more rows tell more
                self.weight_error = self._neuron_error(self.task)
            if self.weight_error > limit:
                return "weights", _open_to(self.weight_error)
        share = self._share()
        obstacle = self._determinacy_on(share)
        is_final = not obstacle[0] or obstacle[0] in CERTIFIED or not self._is_factorized
        return obstacle if is_final or share is self.task else self._determinacy_on(self.task)

    @property
    def _is_factorized(self) -> bool:
        return self.network.n_parameters <= self.verdict.max_factorized_parameters

    def _share(self) -> LeastSquaresTask:
        """A task of as many rows as tell about the weights of a large network, else of all."""
        if self._is_factorized and (self.imitated is not None or not self.is_large):
            return self.task
        n_equations, task = self.verdict.equations * self.network.n_parameters, self.task
        rows = self.samples.thinned(n_equations, seed=0)
        if rows is self.samples:
            return task
        return task_of(rows, self.activation, str(task.inputs.device), task.watch, task.blocks)

    def _determinacy_on(self, task: LeastSquaresTask) -> tuple[Obstacle, str]:
        """The same on the rows of a task, whatever single neurons say."""
        limit, least_isolation, least_redundancy = self._limits()
        canonical = canonical_network(self.network, self.activation)
        linearization: _Linearization
        if not self._is_factorized:
            linearization, standardized = self._weakest(task, canonical)
        else:
            factorized, standardized = self._factorized(task, canonical, limit)
            if self.imitated is None and self._misses_another_network(factorized):
                return "structure", (
                    f"no change of the weights explains the error of {self.error:.1e}, which is "
                    "above the rounding of the outputs and depends on the inputs"
                )
            linearization = factorized
        if not standardized <= limit:
            return "weights", _open_to(standardized)
        if not self.isolation >= least_isolation:  # nan is no proof
            return "isolation", (
                "other networks nearby fit as well: the isolation of this one is "
                f"{self.isolation:.1e}, below {least_isolation:g}"
            )
        if self.activation.homogeneous:
            self.redundancy = linearization.least_redundancy()
            if not self.redundancy >= least_redundancy:
                return "redundancy", (
                    "kinks may lie elsewhere: some rows are fitted whatever their targets are, "
                    f"with a redundancy of {max(self.redundancy, 0.0):.1e}, below "
                    f"{least_redundancy:g}"
                )
        if self._has_opposite_neurons():
            return "bend", "two opposite neurons may stand for one that is linear on the data"
        if self.open_columns.any():
            return "columns", "the rows leave incoming weights open"
        return "", ""

    def _neuron_error(self, task: LeastSquaresTask) -> float:
        """The largest error of single neurons' weights that rows of a task leave open."""
        return self._typical_error() / max(least_neuron_singular_value(task, self.network), TINY)

    def _factorized(
        self, task: LeastSquaresTask, network: Network, limit: float
    ) -> tuple[Linearization, float]:
        """The linearization, and the largest weight error in standardized coordinates."""
        linearization = Linearization(task, network, self._weighted_rounding())
        errors = self._errors(linearization.coefficients)
        standardized = _largest(linearization.relative_errors(errors))
        self._measure_in_original_units(linearization, errors, limit)
        self.isolation = _isolation(linearization, errors, self.verdict.n_weak_directions)
        return linearization, standardized

    def _weakest(self, task: LeastSquaresTask, network: Network) -> tuple[_Linearization, float]:
        """The same of a very large network, from its weakest directions.

        All of the error may lie along the weakest one, and reach each weight from there.
        """
        verdict, coordinates = self.verdict, self.coordinates
        linearization = WeakLinearization(task, network, verdict.weak_directions)
        values = linearization.singular_values
        errors = torch.full_like(values, max(self.error, coordinates.y_rounding))
        self.isolation = _isolation(linearization, errors, len(values))
        bound = np.inf
        if values[-1] > verdict.weak_directions.least_value:
            bound = float(errors[-1] / values[-1])
            bound *= _largest_amplification(network, coordinates.incoming_map())
        self.open_columns = coordinates.open_columns()
        self.weight_error = np.inf if self.open_columns.any() else bound
        return linearization, bound

    def _limits(self) -> tuple[float, float, float]:
        """Of the weight error, the isolation and the redundancy."""
        verdict = self.verdict
        if self.imitated is None:
            return verdict.max_weight_error, verdict.min_isolation, verdict.min_redundancy
        return (
            verdict.max_rounded_weight_error,
            verdict.min_rounded_isolation,
            verdict.min_rounded_redundancy,
        )

    def _measure_in_original_units(
        self, linearization: Linearization, errors: Tensor, limit: float
    ) -> None:
        """Error of the weights in the user's units, and the columns whose weights are open."""
        device = self.task.inputs.device
        units = (
            torch.tensor(self.coordinates.incoming_map(), device=device),
            torch.tensor(self.coordinates.y_scale, device=device),
            torch.tensor(self.coordinates.y_mean, device=device),
        )
        relative = linearization.relative_errors(errors, *units)
        self.weight_error = _largest(relative)
        self.open_columns = self.coordinates.open_columns()
        if self.open_columns.any():
            self.weight_error = np.inf
        # At a fixed length, the weight on one column opens those on all others.
        free = linearization.relative_errors(errors, *units, fixed_lengths=False)
        by_column = free[0][:, :-1].amax(dim=0).cpu().numpy()
        self.open_columns |= by_column > limit
        if self.weight_error > limit and not self.open_columns.any():
            self.open_columns[np.argmax(by_column)] = True  # it takes part in a bias that is open

    def _typical_error(self) -> float:
        """Error that may lie along one direction."""
        if self.imitated is None:
            return max(self.error, self.coordinates.y_rounding)
        return self.verdict.certainty * self.error / np.sqrt(self.imitated.size)

    def _weighted_rounding(self) -> Tensor | None:
        if self.imitated is None:
            return None
        # Where an output is the same in many rows, its rounding is at least an eighth of a step in
        # one of two grids, and at most half a step.
        shifts = (0.0, 0.25) if self.coordinates.precision.step else (0.0,)
        imitated = [self._imitate(shift) for shift in shifts]
        roundings = np.stack([errors for errors in imitated if errors is not None])
        return torch.from_numpy(roundings).to(self.task.inputs.device) * self.task.sqrt_weight

    def _errors(self, coefficients: Tensor) -> Tensor:
        """Largest error along each left singular direction."""
        if self.imitated is None:
            return torch.full_like(coefficients[:, 0], self._typical_error())
        scale = self.verdict.certainty * max(1.0, self.error / _rms(self.imitated))
        typical = _rms(self.imitated) / np.sqrt(self.imitated.size)
        return scale * coefficients.abs().amax(dim=1).clamp_min(typical)


def _largest(relative_errors: list[Tensor]) -> float:
    """That of the neuron with the largest one, nan if there is any."""
    return float(torch.cat([part.norm(dim=1) for part in relative_errors]).max())


def _largest_amplification(network: Network, incoming_map: np.ndarray) -> float:
    """How many times an error of unit length in scaled weights may move a neuron's vector.

    Relative to its length, in the user's units or in standardized ones. Twice as much, since
    homogeneous neurons are brought back to their lengths.
    """
    first, last = network.layers[0], network.layers[-1]
    lengths = np.linalg.norm(first @ incoming_map.T, axis=1) / np.linalg.norm(first, axis=1)
    turned = np.linalg.norm(incoming_map, 2) / lengths.min()
    shortest = np.linalg.norm(last[:, :-1], axis=1).min()
    readout = max(1.0, lengths.max() / lengths.min()) / min(shortest, 1.0)
    longest = max(layer.shape[1] for layer in network.layers)
    return float(2.0 * max(turned, readout) * np.sqrt(longest))


def _rms(values: np.ndarray | None) -> float:
    return 0.0 if values is None else float(np.sqrt(np.mean(values**2)))


def _open_to(error: float) -> str:
    return f"the data leave the weights open to a relative error of {error:.1e}"


def _isolation(linearization: _Linearization, errors: Tensor, n_weak_directions: int) -> float:
    curvatures = linearization.curvatures(n_weak_directions).cpu().numpy()
    n_weak = len(curvatures)
    values = linearization.singular_values.cpu().numpy()
    weakest = np.where(values > RCOND * values[0], values, 0.0)[-n_weak:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.min(weakest**2 / (errors[-n_weak:].cpu().numpy() * curvatures)))


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


def least_angle_to_opposite(network: Network) -> float:
    """The smallest angle between a neuron and the opposite of another one of its layer."""
    least = np.inf
    for layer in network.layers[:-1]:
        vectors = layer / np.maximum(np.linalg.norm(layer, axis=1), TINY)[:, None]
        least = min(least, 2.0 + 2.0 * float((vectors @ vectors.T).min()))
    return float(np.sqrt(max(least, 0.0)))


def relative_error(network: Network, samples: Samples, activation: Activation) -> float:
    """Root mean squared error in units of the targets' standard deviation."""
    residuals = network_outputs(network, samples.X, activation) - samples.y
    return float(np.sqrt(np.mean(residuals**2 * samples.sample_weight[:, None])))
