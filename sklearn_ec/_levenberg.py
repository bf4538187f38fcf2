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

A network with one hidden layer is ``f(x) = B φ(x)`` with the features ``φ = [s(z)(, x), 1]`` and
``z = W [x; 1]``. With the rows ``[s'(z_j)·[x; 1]]_j`` collected in ``S`` and the features in ``Φ``,

- the hidden block of ``JᵀJ`` is ``(SᵀS) ∘ (AᵀA)``, with ``A`` the outgoing weights in ``B``;
- the block between hidden weights and output ``k`` is ``diag(a_k) SᵀΦ``;
- every output has the same readout block ``ΦᵀΦ``, and different outputs do not interact.

So one matrix product, ``[S Φ]ᵀ[S Φ]``, serves any number of outputs, and eliminating the readout
leaves the Schur complement ``(SᵀS − SᵀΦ (ΦᵀΦ + λ)⁻¹ ΦᵀS) ∘ (AᵀA) + λ`` of the size of the hidden
layer alone. Networks with more layers have the plain ``JᵀJ`` of all parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from sklearn.exceptions import EfficiencyWarning
from torch import Tensor

from ._activations import Activation
from ._sweeps import Layers, curvature, forward, gradients, jacobian, sensitivities
from ._watch import Watch

DAMPING_FLOOR = 1e-16
DAMPING_CEILING = 1e8
MAX_RETRIES = 4
# A step is rejected where the second-order correction is longer than this share of it: there the
# expansion along the step has broken down.
MAX_BEND = 0.375
# Below this relative mean squared error a rejected step, or an almost undamped one that does not
# halve the loss, means that rounding stops the descent.
ROUNDING_LOSS = 1e-24
ROUNDING_DAMPING = 1e-10
# Blocks of the Gram matrix narrower than this cost more overhead than symmetry saves.
MIN_GRAM_BLOCK = 64
# Elements of the largest temporary array; on a CPU it should stay near the caches.
CHUNK_ELEMENTS = {"cpu": 3_000_000, "cuda": 128_000_000}
MIN_CHUNK_ROWS = 256
# Matrices as large as the normal equations that a step holds at a time, for each network.
STEP_MATRICES = 4


@dataclass(frozen=True)
class LeastSquaresTask:
    """The rows to fit, as tensors on one device."""

    inputs: Tensor  # (n_samples, n_inputs + 1), last column one
    targets: Tensor  # (n_samples, n_outputs)
    sqrt_weight: Tensor  # (n_samples, 1)
    activation: Activation
    watch: Watch = field(default_factory=Watch)  # told of every pass over the rows

    @property
    def n_equations(self) -> int:
        return self.targets.numel()

    def unwatched(self) -> LeastSquaresTask:
        """The same rows for what has to be computed once the time is over."""
        return replace(self, watch=Watch())

    def float(self) -> LeastSquaresTask:
        """The same rows in single precision."""
        return LeastSquaresTask(
            self.inputs.float(), self.targets.float(), self.sqrt_weight.float(), self.activation
        )

    def residuals(self, layers: Layers) -> Tensor:
        """Weighted residuals, shape (batch, n_samples, n_outputs)."""
        outputs = forward(layers, self.inputs, self.activation).outputs
        return (outputs - self.targets) * self.sqrt_weight

    def losses(self, layers: Layers) -> Tensor:
        """Mean squared residual of every network, shape (batch,)."""
        squares = layers[0].new_zeros(len(layers[0]))
        n_elements = sum(layer.shape[0] * layer.shape[1] for layer in layers)
        for rows in self.chunks(n_elements):
            squares += self.take(rows).residuals(layers).square().sum(dim=(1, 2))
        return squares / self.n_equations

    def take(self, rows: slice) -> LeastSquaresTask:
        """The same task on some of the rows."""
        return replace(
            self,
            inputs=self.inputs[rows],
            targets=self.targets[rows],
            sqrt_weight=self.sqrt_weight[rows],
        )

    def normal_equations(self, layers: Layers) -> NormalEquations:
        """Assemble ``JᵀJ`` and ``Jᵀr`` of every network in chunks of rows."""
        if len(layers) == 2:
            return self._shallow_equations(layers)
        return self._dense_equations(layers)

    def _shallow_equations(self, layers: Layers) -> ShallowEquations:
        hidden, readout = layers
        batch, width, fan_in = hidden.shape
        n_hidden = width * fan_in
        n_columns = n_hidden + readout.shape[2]
        gram = hidden.new_zeros(batch, n_columns, n_columns)
        hidden_gradient = torch.zeros_like(hidden)
        readout_gradient = torch.zeros_like(readout)
        outgoing = readout[:, :, :width]
        for rows in self.chunks(batch * n_columns):
            inputs, sqrt_weight = self.inputs[rows], self.sqrt_weight[rows]
            run = forward(layers, inputs, self.activation)
            residuals = (run.outputs - self.targets[rows]) * sqrt_weight
            slopes = self.activation.tensor_derivative(run.preactivations[0]) * sqrt_weight
            columns = hidden.new_empty(batch, len(inputs), n_columns)
            torch.mul(
                slopes[..., None],
                inputs[None, :, None, :],
                out=columns[:, :, :n_hidden].view(batch, len(inputs), width, fan_in),
            )
            torch.mul(run.features[1], sqrt_weight, out=columns[:, :, n_hidden:])
            _add_gram(gram, columns)
            readout_gradient += residuals.mT @ columns[:, :, n_hidden:]
            hidden_gradient += ((residuals @ outgoing) * slopes).mT @ inputs
        n = self.n_equations
        gradient = (hidden_gradient / n, readout_gradient / n)
        return ShallowEquations(gradient, _mirrored(gram).div_(n), outgoing)

    def _dense_equations(self, layers: Layers) -> DenseEquations:
        batch = len(layers[0])
        n_outputs, n_parameters = self.targets.shape[1], sum(layer[0].numel() for layer in layers)
        gram = layers[0].new_zeros(batch, n_parameters, n_parameters)
        gradient = layers[0].new_zeros(batch, n_parameters, 1)
        for rows in self.chunks(batch * n_parameters * n_outputs):
            run = forward(layers, self.inputs[rows], self.activation)
            residuals = (run.outputs - self.targets[rows]) * self.sqrt_weight[rows]
            columns = jacobian(layers, run, self.activation).mul_(self.sqrt_weight[rows])
            columns = columns.flatten(start_dim=1, end_dim=2)
            _add_gram(gram, columns)
            gradient += columns.mT @ residuals.mT.reshape(batch, -1, 1)
        n = self.n_equations
        parts = split_parameters(gradient[..., 0] / n, layers)
        return DenseEquations(parts, _mirrored(gram).div_(n))

    def curvature(self, layers: Layers, steps: Layers, rows: slice) -> Tensor:
        """Second derivative of the weighted residuals along a step, (batch, n_rows, n_outputs)."""
        run = forward(layers, self.inputs[rows], self.activation)
        return curvature(layers, run, self.activation, steps) * self.sqrt_weight[rows]

    def curvature_gradient(self, layers: Layers, steps: Layers) -> Layers:
        """``Jᵀc`` with the second derivative ``c`` of the residuals along a step."""
        total = tuple(torch.zeros_like(layer) for layer in layers)
        n_elements = sum(layer.shape[0] * layer.shape[1] for layer in layers[:-1])
        for rows in self.chunks(8 * n_elements):
            run = forward(layers, self.inputs[rows], self.activation)
            curved = curvature(layers, run, self.activation, steps)
            curved = curved * self.sqrt_weight[rows].square()
            for part, gradient in zip(
                total, gradients(layers, run, self.activation, curved), strict=True
            ):
                part += gradient
        return tuple(part / self.n_equations for part in total)

    def jacobian(self, layers: Layers, rows: slice) -> Tensor:
        """Jacobian of one network's weighted outputs, layer by layer.

        ``layers`` holds the layers of a single network, as a batch of one. The result has shape
        (n_rows * n_outputs, n_parameters), the rows of one output after those of another.
        """
        run = forward(layers, self.inputs[rows], self.activation)
        return (jacobian(layers, run, self.activation)[0] * self.sqrt_weight[rows]).flatten(0, 1)

    def sensitivities(self, layers: Layers) -> list[np.ndarray]:
        """Root mean square of the outputs' derivatives by each pre-activation of one network."""
        run = forward(layers, self.inputs, self.activation)
        found = sensitivities(layers, run, self.activation)
        return [part.square().mean(dim=1)[0].sqrt().cpu().numpy() for part in found]

    def flops(self, layers: Layers) -> int:
        """Floating-point operations of one assembly of a network's normal equations."""
        n_rows, n_columns = self._gram_shape(layers)
        return 2 * n_rows * n_columns**2

    def step_bytes(self, layers: Layers) -> int:
        """Predicted peak memory of a Levenberg step, for each network that it advances."""
        n_rows, n_columns = self._gram_shape(layers)
        n_chunk_rows = min(n_rows, MIN_CHUNK_ROWS * (n_rows // len(self.inputs)))
        n_elements = STEP_MATRICES * n_columns**2 + 3 * n_chunk_rows * n_columns
        return self.targets.element_size() * n_elements

    def _gram_shape(self, layers: Layers) -> tuple[int, int]:
        """Rows and columns of the matrix whose Gram matrix the normal equations need."""
        if len(layers) == 2:
            return len(self.inputs), layers[0][0].numel() + layers[1].shape[2]
        return self.n_equations, sum(layer[0].numel() for layer in layers)

    def chunks(self, row_elements: int, min_rows: int = MIN_CHUNK_ROWS) -> Iterator[slice]:
        """Blocks of rows of which each has a temporary array of limited size."""
        limit = CHUNK_ELEMENTS[self.inputs.device.type]
        size = max(MIN_CHUNK_ROWS, min_rows, limit // row_elements)
        for start in range(0, len(self.inputs), size):
            self.watch.tick()
            yield slice(start, start + size)


def gram_block_size(n_columns: int) -> int:
    """Width of the block columns of a symmetric product."""
    return max(MIN_GRAM_BLOCK, -(-n_columns // 3))


def _add_gram(gram: Tensor, columns: Tensor) -> None:
    """Add ``columnsᵀ columns`` to the upper triangle of ``gram``, block by block."""
    n_columns = columns.shape[2]
    size = gram_block_size(n_columns)
    for start in range(0, n_columns, size):
        block = columns[:, :, start : start + size]
        gram[:, start : start + size, start:].baddbmm_(block.mT, columns[:, :, start:])


def _mirrored(gram: Tensor) -> Tensor:
    """Copy the upper triangle of ``gram`` to the lower one, in place."""
    lower = gram.triu(1).mT.contiguous()
    return gram.triu_().add_(lower)


def split_parameters(flat: Tensor, layers: Layers) -> Layers:
    """Parts of ``flat``, shape (batch, n_parameters), in the shapes of the layers."""
    parts = flat.split([layer[0].numel() for layer in layers], dim=1)
    shaped = zip(parts, layers, strict=True)
    return tuple(part.reshape(-1, *layer.shape[1:]) for part, layer in shaped)


@dataclass(frozen=True)
class DenseEquations:
    """``JᵀJ`` and ``Jᵀr`` of a batch of networks of any depth."""

    gradient: Layers
    gram: Tensor  # (batch, n_parameters, n_parameters)

    def take(self, index: Tensor) -> DenseEquations:
        if len(index) == len(self.gram):
            return self
        gradient = tuple(part[index] for part in self.gradient)
        return DenseEquations(gradient, self.gram[index])

    def damped(self, damping: Tensor) -> DampedDenseSystem:
        """Factorize ``JᵀJ + λI``."""
        matrix = self.gram.clone()
        matrix.diagonal(dim1=1, dim2=2).add_(damping[:, None])
        factor, info = torch.linalg.cholesky_ex(matrix)
        return DampedDenseSystem(factor, info == 0)


@dataclass(frozen=True)
class DampedDenseSystem:
    """Factor of ``JᵀJ + λI`` of a batch of networks."""

    factor: Tensor  # (batch, n_parameters, n_parameters)
    succeeded: Tensor  # (batch,), False where the matrix is not positive definite

    def step(self, gradient: Layers) -> Layers:
        """``−(JᵀJ + λI)⁻¹`` times a gradient."""
        flat = torch.cat([part.flatten(start_dim=1) for part in gradient], dim=1)
        return split_parameters(
            -torch.cholesky_solve(flat[..., None], self.factor)[..., 0], gradient
        )


@dataclass(frozen=True)
class ShallowEquations:
    """``JᵀJ`` (as the Gram matrix of ``[S Φ]``) and ``Jᵀr`` of networks with one hidden layer."""

    gradient: Layers
    gram: Tensor  # (batch, n_hidden + n_features, n_hidden + n_features)
    outgoing: Tensor  # (batch, n_outputs, n_neurons)

    def take(self, index: Tensor) -> ShallowEquations:
        if len(index) == len(self.gram):
            return self
        gradient = tuple(part[index] for part in self.gradient)
        return ShallowEquations(gradient, self.gram[index], self.outgoing[index])

    def damped(self, damping: Tensor) -> DampedShallowSystem:
        """Factorize ``JᵀJ + λI`` by way of the readout's Schur complement."""
        batch, width, fan_in = self.gradient[0].shape
        n_hidden = width * fan_in
        cross = self.gram[:, :n_hidden, n_hidden:]
        readout_block = self.gram[:, n_hidden:, n_hidden:].clone()
        readout_block.diagonal(dim1=1, dim2=2).add_(damping[:, None])
        readout_factor, readout_info = torch.linalg.cholesky_ex(readout_block)

        half = torch.linalg.solve_triangular(readout_factor, cross.mT, upper=False)
        schur = torch.baddbmm(self.gram[:, :n_hidden, :n_hidden], half.mT, half, alpha=-1.0)
        coupling = self.outgoing.mT @ self.outgoing
        schur = schur.view(batch, width, fan_in, width, fan_in)
        schur = (schur * coupling[:, :, None, :, None]).view(batch, n_hidden, n_hidden)
        schur.diagonal(dim1=1, dim2=2).add_(damping[:, None])
        hidden_factor, hidden_info = torch.linalg.cholesky_ex(schur)
        succeeded = (readout_info == 0) & (hidden_info == 0)
        return DampedShallowSystem(cross, self.outgoing, readout_factor, hidden_factor, succeeded)


@dataclass(frozen=True)
class DampedShallowSystem:
    """Factors of ``JᵀJ + λI`` of a batch of networks with one hidden layer."""

    cross: Tensor  # (batch, n_hidden, n_features)
    outgoing: Tensor  # (batch, n_outputs, n_neurons)
    readout_factor: Tensor  # (batch, n_features, n_features)
    hidden_factor: Tensor  # (batch, n_hidden, n_hidden)
    succeeded: Tensor  # (batch,), False where the matrix is not positive definite

    def step(self, gradient: Layers) -> Layers:
        """``−(JᵀJ + λI)⁻¹`` times a gradient."""
        hidden_gradient, readout_gradient = gradient
        batch, width, fan_in = hidden_gradient.shape
        n_hidden, n_outputs = width * fan_in, self.outgoing.shape[1]
        readout_part = torch.cholesky_solve(readout_gradient.mT, self.readout_factor)
        carried = (self.cross @ readout_part).view(batch, width, fan_in, n_outputs)
        carried = (carried * self.outgoing.mT[:, :, None, :]).sum(dim=3)
        right = (hidden_gradient - carried).reshape(batch, n_hidden, 1)
        hidden_step = -torch.cholesky_solve(right, self.hidden_factor).view(batch, width, fan_in)

        spread = hidden_step[..., None] * self.outgoing.mT[:, :, None, :]
        carried = self.cross.mT @ spread.reshape(batch, n_hidden, n_outputs)
        readout_step = -torch.cholesky_solve(readout_gradient.mT + carried, self.readout_factor).mT
        return hidden_step, readout_step


class DampedSystem(Protocol):
    """``JᵀJ + λI`` of a batch of networks, ready to be solved."""

    @property
    def succeeded(self) -> Tensor:
        """Shape (batch,), False where the matrix is not positive definite."""

    def step(self, gradient: Layers) -> Layers:
        """``−(JᵀJ + λI)⁻¹`` times a gradient."""


class NormalEquations(Protocol):
    """``JᵀJ``, as a matrix or as an operator, and ``Jᵀr`` of a batch of networks."""

    @property
    def gradient(self) -> Layers:
        """``Jᵀr``, layer by layer."""

    def take(self, index: Tensor) -> NormalEquations:
        """The same for some of the networks."""

    def damped(self, damping: Tensor) -> DampedSystem:
        """The system with damping, one for each network."""


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


class BatchedLevenberg:
    """Advance a batch of networks, each with its own damping, until each is finished.

    A network is finished when its loss is at most ``tol``, when rounding stops its descent, or when
    no step lowers its loss any more. A network whose loss is not finite is finished from the start
    and never touches another one.

    So many networks take their step at a time as fit into ``working_bytes``, and half as many after
    each time that the device runs out of memory. The result is the same up to rounding.
    """

    damping_floor = DAMPING_FLOOR
    rounding_loss = ROUNDING_LOSS

    def __init__(
        self,
        task: LeastSquaresTask,
        layers: Layers,
        *,
        tol: float = 0.0,
        damping: float = 1e-2,
        working_bytes: float = math.inf,
    ):
        self.task = task
        self.layers = tuple(layer.clone() for layer in layers)
        self.tol = tol
        self.losses = task.losses(self.layers)
        self.damping = torch.full_like(self.losses, damping)
        self.finished = ~self.losses.isfinite() | (self.losses <= tol)
        n_bytes = self.step_bytes(task, layers)
        self.batch_size = networks_at_a_time(len(layers[0]), n_bytes, working_bytes)

    @staticmethod
    def step_bytes(task: LeastSquaresTask, layers: Layers) -> int:
        """Predicted peak memory of a step, for each network that it advances."""
        return task.step_bytes(layers)

    @staticmethod
    def flops(task: LeastSquaresTask, layers: Layers) -> int:
        """Floating-point operations of a step, for each network that it advances."""
        return task.flops(layers)

    @property
    def state(self) -> tuple[Tensor, ...]:
        """Everything that a step changes; networks along the first axis."""
        return *self.layers, self.losses, self.damping, self.finished

    def restore(self, state: Iterable[Tensor], index: Tensor | slice = slice(None)) -> None:
        """Set the state of all networks, or of some."""
        for tensor, earlier in zip(self.state, state, strict=True):
            tensor[index] = earlier

    def take(self, index: Tensor) -> Layers:
        """The layers of some of the networks."""
        return tuple(layer[index] for layer in self.layers)

    def run(self, max_iter: int) -> int:
        """Take up to ``max_iter`` steps; return how many were taken."""
        for iteration in range(max_iter):
            if self.finished.all():
                return iteration
            self.step()
        return max_iter

    def step(self) -> None:
        """One step of every unfinished network; a rejected one is retried with more damping.

        An exception leaves every network before or after its step, never in between.
        """
        active = torch.nonzero(~self.finished).squeeze(1)
        while len(active):
            batch = active[: self.batch_size]
            if self._has_memory_for_step(batch):
                active = active[len(batch) :]
            else:
                self._halve_batches(len(batch))

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
        n_bytes = self.step_bytes(self.task, self.layers)
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
        for _ in range(MAX_RETRIES):
            accepted = self._try(equations.take(pending), active[pending])
            pending = pending[~accepted]
            if len(pending) == 0:
                break
        self._mark_finished(active, before)

    def _equations(self, index: Tensor) -> NormalEquations:
        return self.task.normal_equations(self.take(index))

    def _try(self, equations: NormalEquations, index: Tensor) -> Tensor:
        damping = self.damping[index]
        layers = self.take(index)
        system = equations.damped(damping)
        steps = system.step(equations.gradient)
        bends = system.step(self.task.curvature_gradient(layers, steps))
        moved = tuple(
            layer + step + 0.5 * bend
            for layer, step, bend in zip(layers, steps, bends, strict=True)
        )
        losses = self.task.losses(moved)
        accepted = system.succeeded & (losses < self.losses[index])
        accepted &= 0.25 * _dot(bends, bends) <= MAX_BEND**2 * _dot(steps, steps)
        predicted = predicted_decrease(equations, steps, damping)
        gain = (self.losses[index] - losses) / predicted.clamp_min(torch.finfo(losses.dtype).tiny)
        self.damping[index] = _next_damping(damping, gain, accepted, self.damping_floor)
        for layer, new in zip(self.layers, moved, strict=True):
            layer[index[accepted]] = new[accepted]
        self.losses[index[accepted]] = losses[accepted]
        return accepted

    def _mark_finished(self, active: Tensor, before: Tensor) -> None:
        losses, damping = self.losses[active], self.damping[active]
        slow = (losses > 0.5 * before) & (damping < ROUNDING_DAMPING)
        at_rounding = (losses < self.rounding_loss) & (slow | (losses == before))
        stuck = damping > DAMPING_CEILING
        self.finished[active] = (losses <= self.tol) | at_rounding | stuck


def _next_damping(damping: Tensor, gain: Tensor, accepted: Tensor, floor: float) -> Tensor:
    bold = accepted & (gain > 0.5)
    timid = ~accepted | (gain < 0.25)
    damping = torch.where(bold, damping / 3.0, torch.where(timid, damping * 4.0, damping))
    return damping.clamp_min(floor)
