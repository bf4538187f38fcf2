r"""Matrix-free Levenberg, for networks whose ``JᵀJ`` is too large to be formed.

The damped normal equations of :mod:`sklearn_ec._solvers.levenberg` are solved by conjugate
gradients, from products with ``JᵀJ`` alone: a sweep up through the layers along the direction, and
a sweep down. The iterates solve the equations on growing Krylov spaces, so that the quadratic model
promises the same decrease, ``λ‖Δ‖² − Δ·g``, wherever the iteration stops.

Preconditioners are those of :mod:`sklearn_ec._solvers.preconditioner`, or of
:mod:`sklearn_ec._solvers.kronecker`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sklearn_ec._core.settings import ConjugateGradients, Damping

from .coarse_space import is_small, n_coarse
from .derivatives import ForwardPass, Layers, forward, pull_back, tangent
from .equations import flat_parameters, split_parameters
from .kronecker import KroneckerFactors, KroneckerPreconditioner
from .levenberg import Dense
from .preconditioner import NeuronBlocks, Preconditioner, damped_factor
from .task import LeastSquaresTask

# Arrays as large as the blocks that a step holds, while these are inverted and afterwards; and as
# large as the activations of all rows, during the products that follow.
FACTORED_BLOCKS = 3
BLOCKS_IN_PRODUCTS = 2
ROW_VECTORS = 17.5
COARSE_MATRICES = 3  # as large as the normal equations of the coarse space
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class MatrixFreeEquations:
    """``Jᵀr`` of a batch of networks, and products with the parts of their ``JᵀJ``.

    The hidden layers come first, the readout last. Products have the precision of ``task``,
    ``layers`` and ``run``, all else is in double precision.
    """

    task: LeastSquaresTask
    layers: Layers
    run: ForwardPass
    gradient: Layers
    readout_gram: Tensor  # (batch, n_features, n_features), the same for every output
    blocks: NeuronBlocks | KroneckerFactors
    solves: ConjugateGradients

    @classmethod
    def assemble(
        cls,
        task: LeastSquaresTask,
        layers: Layers,
        blocks: NeuronBlocks | KroneckerFactors,
        solves: ConjugateGradients,
        single: LeastSquaresTask | None = None,
    ) -> MatrixFreeEquations:
        """Equations on the rows of a task; ``single`` has the same rows in single precision."""
        run = forward(layers, task.inputs, task.activation)
        residuals = (run.outputs - task.targets) * task.sqrt_weight.square()
        gradient = pull_back(layers, run, residuals / task.n_equations)
        readout_gram = task.readout_gram(layers, run) / task.n_equations
        equations = cls(task, layers, run, gradient, readout_gram, blocks, solves)
        return equations if single is None else equations.in_single(single)

    def in_single(self, task: LeastSquaresTask) -> MatrixFreeEquations:
        """The same with products in single precision, as the task is."""
        layers = tuple(layer.float() for layer in self.layers)
        return replace(self, task=task, layers=layers, run=self.run.float(task.inputs))

    def take(self, index: Tensor) -> MatrixFreeEquations:
        if len(index) == len(self.layers[0]):
            return self
        return MatrixFreeEquations(
            self.task,
            tuple(layer[index] for layer in self.layers),
            self.run.take(index),
            tuple(part[index] for part in self.gradient),
            self.readout_gram[index],
            self.blocks.take(index),
            self.solves,
        )

    def damped(self, damping: Tensor) -> DampedMatrixFreeSystem:
        """Factorize the blocks of ``JᵀJ + λI`` and that of the readout."""
        solves = self.solves
        readout_factor, is_positive, _ = damped_factor(
            self.readout_gram[:, None], damping, solves.block_rcond
        )
        preconditioner = self.blocks.damped(damping, solves, self.dtype)
        succeeded = is_positive & preconditioner.succeeded
        return DampedMatrixFreeSystem(
            self, damping, preconditioner, readout_factor[:, 0], succeeded
        )

    @property
    def kept(self) -> ForwardPass | None:
        """The pass over all rows, where it is in double precision."""
        return self.run if self.dtype == torch.float64 else None

    @property
    def dtype(self) -> torch.dtype:
        """That of the products."""
        return self.layers[0].dtype

    def hidden_change(self, direction: Layers) -> Tensor:
        """Change of the outputs along a direction of the hidden layers."""
        return tangent(self.layers, self.run, direction)

    def readout_change(self, direction: Tensor) -> Tensor:
        """Change of the outputs along a direction of the readout."""
        return self.run.features[-1] @ direction.mT

    def hidden_gradient(self, change: Tensor) -> Layers:
        """``Jᵀ`` times a change, weighted, for the hidden layers."""
        n_hidden = len(self.layers) - 1
        return pull_back(self.layers, self.run, change * self.weight, n_hidden)

    def readout_gradient(self, change: Tensor) -> Tensor:
        """``Jᵀ`` times a change, weighted, for the readout."""
        return (change * self.weight).mT @ self.run.features[-1]

    @property
    def weight(self) -> Tensor:
        """What the squared residuals of a row count in the loss, shape (n_rows, 1)."""
        return self.task.sqrt_weight.square() / self.task.n_equations


@dataclass(frozen=True)
class DampedMatrixFreeSystem:
    """``JᵀJ + λI`` of a batch of networks, with the readout eliminated.

    What is left for the hidden layers, the Schur complement, costs no more to multiply with than
    ``JᵀJ``: the change of the outputs is rid of what the readout can undo on its way back.
    """

    equations: MatrixFreeEquations
    damping: Tensor  # (batch,)
    preconditioner: Preconditioner | KroneckerPreconditioner
    readout_factor: Tensor  # (batch, n_features, n_features)
    succeeded: Tensor  # (batch,), False where a block is not positive definite

    def step(self, gradient: Layers) -> Layers:
        """``−(JᵀJ + λI)⁻¹`` times a gradient."""
        equations = self.equations
        size = flat_parameters(gradient).norm(dim=1).clamp_min(TINY)[:, None, None]
        gradient = tuple((part / size).to(equations.dtype) for part in gradient)
        *hidden_gradient, readout_gradient = gradient
        alone = self._solve_readout(readout_gradient)
        carried = equations.hidden_gradient(equations.readout_change(alone))
        step = self._solve_hidden(
            flat_parameters(carried) - flat_parameters(tuple(hidden_gradient))
        )
        hidden_step = split_parameters(step, equations.layers[:-1])
        undone = equations.readout_gradient(equations.hidden_change(hidden_step))
        steps = *hidden_step, -self._solve_readout(readout_gradient + undone)
        return tuple(part.double() * size for part in steps)

    def _solve_hidden(self, residual: Tensor) -> Tensor:
        """Preconditioned conjugate gradients with the Schur complement."""
        step = torch.zeros_like(residual)
        direction = preconditioned = self._precondition(residual)
        size = (residual * preconditioned).sum(dim=1)
        solves = self.equations.solves
        goal = solves.relative_residual**2 * size
        active = self.succeeded & (size > 0)
        gains: list[Tensor] = []  # of the quadratic model, by iteration
        total = torch.zeros_like(size)
        for _ in range(solves.max_iterations):
            if not active.any():
                break
            product, curvature = self._product(direction)
            active = active & (curvature > 0)
            length = torch.where(active, size / curvature, 0.0)[:, None]
            step = step + length * direction
            residual = residual - length * product
            preconditioned = self._precondition(residual)
            next_size = (residual * preconditioned).sum(dim=1)
            ratio = torch.where(active, next_size / size, 0.0)[:, None]
            direction = preconditioned + ratio * direction
            is_over = next_size <= goal
            if solves.tail:
                gains.append(length[:, 0] * size)
                total += gains[-1]
                is_over &= torch.stack(gains[-solves.tail :]).sum(dim=0) < solves.tail_share * total
            active, size = active & ~is_over, next_size
        return step

    def _product(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The Schur complement of the readout times a direction of the hidden layers.

        Also the curvature along it, from the changes of the outputs: rounding in the product may
        hide one that is tiny.
        """
        equations, damping = self.equations, self.damping.to(direction.dtype)
        change = equations.hidden_change(split_parameters(direction, equations.layers[:-1]))
        undoing = self._solve_readout(equations.readout_gradient(change))
        left = change - equations.readout_change(undoing)
        product = flat_parameters(equations.hidden_gradient(left))
        curvature = (change * left * equations.weight).sum(dim=(1, 2))
        curvature += damping * direction.square().sum(dim=1)
        return product + damping[:, None] * direction, curvature

    def _solve_readout(self, gradient: Tensor) -> Tensor:
        solved = torch.cholesky_solve(gradient.mT.double(), self.readout_factor).mT
        return solved.to(gradient.dtype)

    def _precondition(self, residual: Tensor) -> Tensor:
        return self.preconditioner.times(residual, self.equations.layers[:-1])


class MatrixFree:
    """Inexact solves by conjugate gradients, without ``JᵀJ``.

    ``in_single`` says whether products are in single precision: three times as fast, and as good as
    long as no direction that matters is lost in their rounding. Gradients and losses are not.
    """

    is_matrix_free = True

    def __init__(self, solves: ConjugateGradients | None = None, in_single: bool = False):
        self.solves = solves or ConjugateGradients()
        self.in_single = in_single
        self._single: LeastSquaresTask | None = None
        self.accuracy = self.solves.relative_residual
        self._kind = KroneckerFactors if self.solves.shares_features else NeuronBlocks
        self._blocks: NeuronBlocks | KroneckerFactors = self._kind((), ())
        self._owners = torch.arange(0)  # networks that the blocks are of

    def fresh(self) -> MatrixFree:
        return MatrixFree(self.solves, self.in_single)

    def rule(self, damping: Damping) -> Damping:
        solves = self.solves
        floor = solves.single_damping_floor if self.in_single else solves.damping_floor
        return replace(
            damping,
            floor=floor,
            rounding_loss=solves.rounding_loss,
            rounding_damping=max(damping.rounding_damping, 10.0 * floor),
            increase=solves.damping_increase,
        )

    def start_damping(self, losses: Tensor, damping: float) -> Tensor:
        share, floor = losses.clamp(self.solves.least_share, 1.0), self.rule(Damping()).floor
        return (share * losses).clamp(max=damping).clamp(min=floor)

    def step_bytes(self, task: LeastSquaresTask, layers: Layers) -> int:
        n_parameters = sum(layer[0].numel() for layer in layers)
        n_blocks = self._kind.n_elements(layers)
        n_blocks += layers[-1].shape[2] ** 2
        n_activations = sum(layer.shape[1] for layer in layers)
        n_vectors = ROW_VECTORS * (n_parameters + len(task.inputs) * n_activations)
        n_elements = max(FACTORED_BLOCKS * n_blocks, BLOCKS_IN_PRODUCTS * n_blocks + n_vectors)
        if is_small(layers, self.solves):
            n_elements += COARSE_MATRICES * (n_coarse(layers) + layers[-1].shape[2]) ** 2
        return task.targets.element_size() * math.ceil(n_elements)

    def flops(self, task: LeastSquaresTask, layers: Layers) -> int:
        n_parameters = sum(layer[0].numel() for layer in layers)
        n_blocks = sum(layer[0].numel() * layer.shape[2] for layer in layers)
        n_products = self.solves.typical_products * n_parameters
        return 4 * len(task.inputs) * (n_products + n_blocks // self.solves.block_steps)

    def equations(
        self, task: LeastSquaresTask, layers: Layers, index: Tensor, n_steps: int
    ) -> MatrixFreeEquations:
        is_stale = n_steps % self.solves.block_steps == 0
        if is_stale or not torch.isin(index, self._owners).all():
            if self.in_single and self._single is None:
                self._single = task.float()
            self._blocks = self._kind.of(task, layers, self.solves.block_rows, self.solves)
            self._owners = index
        blocks = self._blocks.take(torch.searchsorted(self._owners, index))
        return MatrixFreeEquations.assemble(task, layers, blocks, self.solves, self._single)


def suited_solver(
    task: LeastSquaresTask,
    layers: Layers,
    working_bytes: float,
    dense_flops: float,
    solves: ConjugateGradients | None = None,
) -> Dense | MatrixFree:
    """The solver that advances a network fastest within the memory.

    Dense up to so many floating-point operations. Where neither fits, the one that takes less.
    """
    dense, matrix_free = Dense(), MatrixFree(solves)
    enough = max(working_bytes, matrix_free.step_bytes(task, layers))
    fits = dense.step_bytes(task, layers) <= enough
    is_fast = dense.flops(task, layers) <= dense_flops
    return dense if fits and is_fast else matrix_free
