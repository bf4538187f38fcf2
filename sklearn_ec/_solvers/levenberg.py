r"""Batched Levenberg: Gauss-Newton with identity damping, for many small networks at once.

Each network minimizes the mean of squared residuals ``r`` over ``n`` rows and ``k`` outputs with
the step

.. math:: \left(\tfrac{1}{nk} J^T J + \lambda I\right) \Delta = -\tfrac{1}{nk} J^T r ,

which is implicit Euler on the gradient flow with step size :math:`1/\lambda`: it follows the flow
while the damping is large and converges quadratically as the damping vanishes. Every network has
its own damping.

Neurons that are nearly polynomial over the data make long curved valleys. A second-order
correction, the geodesic acceleration of Transtrum and Sethna (2012, arXiv:1201.5885), follows
them: with the second derivative :math:`c` of the residuals along the step,

.. math:: \left(\tfrac{1}{nk} J^T J + \lambda I\right) \Delta_2 = -\tfrac{1}{2nk} J^T c ,

and the network moves by :math:`\Delta + \Delta_2`. It costs one more solve with the same factors.
Students of 8 softplus neurons over 2 inputs reach 1e-16 in 200 steps, not 1e-11.

The equations, and the rows behind them, are those of :mod:`sklearn_ec._solvers.equations` and
:mod:`sklearn_ec._solvers.task`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from sklearn.exceptions import EfficiencyWarning
from torch import Tensor

from sklearn_ec._core.settings import Damping
from sklearn_ec._core.threads import threads_for

from .derivatives import Layers
from .equations import NormalEquations
from .task import LeastSquaresTask


class LinearSolver(Protocol):
    """How the damped normal equations are formed and solved."""

    is_matrix_free: bool
    accuracy: float  # of the solves, relative

    def fresh(self) -> LinearSolver:
        """The same, without anything of earlier steps."""

    def rule(self, damping: Damping) -> Damping:
        """The rule of the damping at the precision of these solves."""

    def start_damping(self, losses: Tensor, damping: float) -> Tensor:
        """Damping of the first step, shape (batch,)."""

    def step_bytes(self, task: LeastSquaresTask, layers: Layers) -> int:
        """Predicted peak memory of a step, for each network that it advances."""

    def flops(self, task: LeastSquaresTask, layers: Layers) -> int:
        """Floating-point operations of a step, for each network that it advances."""

    def equations(
        self, task: LeastSquaresTask, layers: Layers, index: Tensor, n_steps: int
    ) -> NormalEquations:
        """Those of some networks, whose layers are given, after so many steps."""


@dataclass(frozen=True)
class Dense:
    """Normal equations that are formed, and factorized."""

    is_matrix_free = False
    accuracy = 0.0

    def fresh(self) -> Dense:
        return self

    def rule(self, damping: Damping) -> Damping:
        return damping

    def start_damping(self, losses: Tensor, damping: float) -> Tensor:
        return torch.full_like(losses, damping)

    def step_bytes(self, task: LeastSquaresTask, layers: Layers) -> int:
        return task.step_bytes(layers)

    def flops(self, task: LeastSquaresTask, layers: Layers) -> int:
        return task.flops(layers)

    def equations(
        self, task: LeastSquaresTask, layers: Layers, index: Tensor, n_steps: int
    ) -> NormalEquations:
        return task.normal_equations(layers)


def _dot(a: Layers, b: Layers) -> Tensor:
    """Scalar product of every network's parameters, shape (batch,)."""
    products = [(x * y).sum(dim=(1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(products).sum(dim=0)


def predicted_decrease(equations: NormalEquations, steps: Layers, damping: Tensor) -> Tensor:
    """Decrease of the loss that the quadratic model promises for steps that solve it."""
    return damping * _dot(steps, steps) - _dot(steps, equations.gradient)


def networks_at_a_time(n_networks: int, n_bytes: int, working_bytes: float) -> int:
    """How many networks of ``n_bytes`` each may take a step together, at least one."""
    return max(1, int(min(n_networks, working_bytes / n_bytes)))


class Levenberg:
    """Advance a batch of networks, each with its own damping, until each is finished.

    A network is finished when its loss is at most ``tol``, when rounding stops its descent, or when
    no step lowers its loss any more. A network whose loss is not finite is finished from the start
    and never touches another one. Below ``rounding_loss``, that of the targets, a rejected step is
    the last one.

    As many networks take their step at a time as fit into ``working_bytes``, and half as many after
    each time that the device runs out of memory. The result is the same up to rounding.
    """

    def __init__(
        self,
        task: LeastSquaresTask,
        layers: Layers,
        linear: LinearSolver | None = None,
        *,
        rule: Damping | None = None,
        tol: float = 0.0,
        damping: float | None = None,
        rounding_loss: float = 0.0,
        least_promise: float = 0.0,
        working_bytes: float = math.inf,
    ):
        self.task = task
        self.layers = tuple(layer.clone() for layer in layers)
        self.linear = (linear or Dense()).fresh()
        self.rule = self.linear.rule(rule or Damping())
        self.tol = tol
        self.rounding_loss = max(self.rule.rounding_loss, rounding_loss)
        self.least_promise = least_promise
        self.losses = task.losses(self.layers)
        start = self.rule.start if damping is None else damping
        self.damping = self.linear.start_damping(self.losses, start)
        self.finished = ~self.losses.isfinite() | (self.losses <= tol)
        n_bytes = self.linear.step_bytes(task, layers)
        self.batch_size = networks_at_a_time(len(layers[0]), n_bytes, working_bytes)
        self._n_steps = 0
        self._is_stationary = False

    @property
    def state(self) -> tuple[Tensor, ...]:
        """Everything that a step changes; networks along the first axis."""
        return *self.layers, self.losses, self.damping, self.finished

    def restore(self, state: Iterable[Tensor], index: Tensor | slice = slice(None)) -> None:
        """Set the state of all networks, or of some."""
        for tensor, earlier in zip(self.state, state, strict=True):
            tensor[index] = earlier

    def take(self, index: Tensor) -> Layers:
        """The layers of some of the networks; those of all are no copies."""
        if len(index) == len(self.layers[0]):
            return self.layers
        return tuple(layer[index] for layer in self.layers)

    def run(self, max_iter: int) -> int:
        """Take up to ``max_iter`` steps; return how many were taken.

        Those of a single network end where one promises to take away less than the share
        ``least_promise`` of the loss.
        """
        for iteration in range(max_iter):
            if self.finished.all():
                return iteration
            self.step()
            if self._is_stationary:
                return iteration + 1
        return max_iter

    @torch.inference_mode()
    def step(self) -> None:
        """One step of every unfinished network; a rejected one is retried with more damping.

        An exception leaves every network before or after its step, never in between.
        """
        active = torch.nonzero(~self.finished).squeeze(1)
        while len(active):
            batch = active[: self.batch_size]
            with threads_for(len(batch) * self.linear.flops(self.task, self.layers)):
                has_memory = self._has_memory_for_step(batch)
            if has_memory:
                active = active[len(batch) :]
            else:
                self._halve_batches(len(batch))
        self._n_steps += 1

    def _has_memory_for_step(self, index: Tensor) -> bool:
        before = [tensor[index] for tensor in self.state]
        try:
            self._advance(index)
        except torch.cuda.OutOfMemoryError:
            completed = False
        except BaseException:
            self.restore(before, index)
            raise
        else:
            completed = True
        if not completed:  # outside of the except block, which keeps the step's tensors alive
            self.restore(before, index)
        return completed

    def _halve_batches(self, size: int) -> None:
        n_bytes = self.linear.step_bytes(self.task, self.layers)
        device = self.task.inputs.device
        if size == 1:
            raise torch.cuda.OutOfMemoryError(
                f"{device} has no memory for the training of one student, about "
                f"{n_bytes / 2**20:.0f} MiB: choose a smaller rho or another device."
            )
        self.batch_size = size // 2
        warnings.warn(
            f"{device} ran out of memory with {size} students at a time (about "
            f"{size * n_bytes / 2**20:.0f} MiB): training goes on with {self.batch_size}.",
            EfficiencyWarning,
            stacklevel=2,
        )

    def _advance(self, active: Tensor) -> None:
        before = self.losses[active]
        equations = self._equations(active)
        pending = torch.arange(len(active), device=active.device)
        for _ in range(self.rule.max_retries):
            accepted = self._try(equations.take(pending), active[pending])
            pending = pending[~accepted]
            if len(pending) == 0 or self._is_stationary:
                break
        self._mark_finished(active, before)

    def _equations(self, index: Tensor) -> NormalEquations:
        return self.linear.equations(self.task, self.take(index), index, self._n_steps)

    def _try(self, equations: NormalEquations, index: Tensor) -> Tensor:
        damping = self.damping[index]
        layers = self.take(index)
        system = equations.damped(damping)
        steps = system.step(equations.gradient)
        gradient, curvature = self.task.curvature_gradient(layers, steps, equations.kept)
        # Accelerations are zero where they change less than what inexact solves leave.
        matters = 0.25 * curvature > self.linear.accuracy**2 * self.losses[index]
        corrections = system.step(tuple(part * matters[:, None, None] for part in gradient))
        moved = tuple(
            layer + step + 0.5 * correction
            for layer, step, correction in zip(layers, steps, corrections, strict=True)
        )
        losses = self.task.losses(moved)
        accepted = system.succeeded & (losses < self.losses[index])
        longest = self.rule.max_correction**2 * _dot(steps, steps)
        accepted &= 0.25 * _dot(corrections, corrections) <= longest
        predicted = predicted_decrease(equations, steps, damping)
        if self.least_promise > 0.0 and len(self.losses) == 1:
            self._is_stationary = bool(predicted < self.least_promise * self.losses[index])
        gain = (self.losses[index] - losses) / predicted.clamp_min(torch.finfo(losses.dtype).tiny)
        self.damping[index] = next_damping(damping, gain, accepted, self.rule)
        for layer, new in zip(self.layers, moved, strict=True):
            layer[index[accepted]] = new[accepted]
        self.losses[index[accepted]] = losses[accepted]
        return accepted

    def _mark_finished(self, active: Tensor, before: Tensor) -> None:
        losses, damping = self.losses[active], self.damping[active]
        slow = (losses > 0.5 * before) & (damping < self.rule.rounding_damping)
        at_rounding = (losses < self.rounding_loss) & (slow | (losses == before))
        stuck = damping > self.rule.ceiling
        self.finished[active] = (losses <= self.tol) | at_rounding | stuck


def next_damping(damping: Tensor, gain: Tensor, accepted: Tensor, rule: Damping) -> Tensor:
    """The damping after steps that gained a share of what the model promised."""
    bold = accepted & (gain > rule.bold_gain)
    timid = ~accepted | (gain < rule.timid_gain)
    raised = torch.where(timid, damping * rule.increase, damping)
    return torch.where(bold, damping / rule.decrease, raised).clamp_min(rule.floor)
