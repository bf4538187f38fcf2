r"""Matrix-free Levenberg, for networks whose ``JᵀJ`` is too large to be formed.

The damped normal equations of :mod:`sklearn_ec._solvers.levenberg` are solved by conjugate
gradients, from products with ``JᵀJ`` alone: a sweep up through the layers along the direction, and
a sweep down. The iterates solve the equations on growing Krylov spaces, so that the quadratic model
promises the same decrease, ``λ‖Δ‖² − Δ·g``, wherever the iteration stops.

The preconditioner holds the diagonal blocks of ``JᵀJ + λI``, one for the incoming vector of every
neuron: with the derivatives ``c_nkj`` of output ``k`` by pre-activation ``j`` and the features
``φ_n`` that the neuron reads, ``Σ_n (Σ_k c_nkj²) φ_n φ_nᵀ``. With it, students of 16 tanh neurons
on 9,000 MNIST images (rank 664, 10,810 parameters) need 5 to 30 products per solve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sklearn_ec._core.settings import ConjugateGradients, Damping

from .derivatives import ForwardPass, Layers, forward, pull_back, sensitivities, tangent
from .equations import flat_parameters, split_parameters
from .levenberg import Dense
from .task import LeastSquaresTask

# Arrays as large as the blocks that a step holds, while these are inverted and afterwards; and as
# large as the activations of all rows, during the products that follow.
FACTORED_BLOCKS = 3
BLOCKS_IN_PRODUCTS = 2
ROW_VECTORS = 17.5
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
    blocks: Layers  # of the hidden layers, as of :func:`diagonal_blocks`
    solves: ConjugateGradients

    @classmethod
    def assemble(
        cls,
        task: LeastSquaresTask,
        layers: Layers,
        blocks: Layers,
        solves: ConjugateGradients,
        single: LeastSquaresTask | None = None,
    ) -> MatrixFreeEquations:
        """Equations on the rows of a task; ``single`` has the same rows in single precision."""
        run = forward(layers, task.inputs, task.activation)
        residuals = (run.outputs - task.targets) * task.sqrt_weight.square()
        gradient = pull_back(layers, run, residuals / task.n_equations)
        features = run.features[-1] * task.sqrt_weight
        readout_gram = features.mT @ features / task.n_equations
        if single is not None:
            task, layers = single, tuple(layer.float() for layer in layers)
            run = run.float(single.inputs)
        return cls(task, layers, run, gradient, readout_gram, blocks, solves)

    def take(self, index: Tensor) -> MatrixFreeEquations:
        if len(index) == len(self.layers[0]):
            return self
        return MatrixFreeEquations(
            self.task,
            tuple(layer[index] for layer in self.layers),
            self.run.take(index),
            tuple(part[index] for part in self.gradient),
            self.readout_gram[index],
            tuple(block[index] for block in self.blocks),
            self.solves,
        )

    def damped(self, damping: Tensor) -> DampedMatrixFreeSystem:
        """Invert the blocks of ``JᵀJ + λI`` and factorize that of the readout."""
        rcond = self.solves.block_rcond
        readout_factor, succeeded = _damped_factor(self.readout_gram[:, None], damping, rcond)
        inverses = []
        for block in self.blocks:
            factor, is_positive = _damped_factor(block, damping, rcond)
            inverses.append(torch.cholesky_inverse(factor).to(self.dtype))
            succeeded = succeeded & is_positive
        return DampedMatrixFreeSystem(
            self, damping, tuple(inverses), readout_factor[:, 0], succeeded
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
        """Weighted change of the outputs along a direction of the hidden layers."""
        change = tangent(self.layers, self.run, direction)
        return change * self._weight

    def readout_change(self, direction: Tensor) -> Tensor:
        """Weighted change of the outputs along a direction of the readout."""
        return (self.run.features[-1] @ direction.mT) * self._weight

    def hidden_gradient(self, change: Tensor) -> Layers:
        """``Jᵀ`` times a weighted change, for the hidden layers."""
        n_hidden = len(self.layers) - 1
        return pull_back(self.layers, self.run, change, n_hidden)

    def readout_gradient(self, change: Tensor) -> Tensor:
        """``Jᵀ`` times a weighted change, for the readout."""
        return change.mT @ self.run.features[-1]

    @property
    def _weight(self) -> Tensor:
        return self.task.sqrt_weight.square() / self.task.n_equations


def _damped_factor(blocks: Tensor, damping: Tensor, rcond: float) -> tuple[Tensor, Tensor]:
    """Cholesky factors of damped blocks (lower triangles), and whether those of a network exist."""
    matrix = blocks.clone()
    diagonal = matrix.diagonal(dim1=2, dim2=3)
    least = rcond * diagonal.amax(dim=2, keepdim=True)
    diagonal.add_(torch.maximum(damping[:, None, None], least))
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor, (info == 0).all(dim=1)


@dataclass(frozen=True)
class DampedMatrixFreeSystem:
    """``JᵀJ + λI`` of a batch of networks, with the readout eliminated.

    What is left for the hidden layers, the Schur complement, costs no more to multiply with than
    ``JᵀJ``: the change of the outputs is rid of what the readout can undo on its way back.
    """

    equations: MatrixFreeEquations
    damping: Tensor  # (batch,)
    inverses: Layers  # of the damped blocks of the hidden layers
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
        for _ in range(solves.max_iterations):
            if not active.any():
                break
            product = self._product(direction)
            curvature = (direction * product).sum(dim=1)
            active = active & (curvature > 0)
            length = torch.where(active, size / curvature, 0.0)[:, None]
            step = step + length * direction
            residual = residual - length * product
            preconditioned = self._precondition(residual)
            next_size = (residual * preconditioned).sum(dim=1)
            ratio = torch.where(active, next_size / size, 0.0)[:, None]
            direction = preconditioned + ratio * direction
            active, size = active & (next_size > goal), next_size
        return step

    def _product(self, direction: Tensor) -> Tensor:
        """The Schur complement of the readout times a direction of the hidden layers."""
        equations = self.equations
        change = equations.hidden_change(split_parameters(direction, equations.layers[:-1]))
        undoing = self._solve_readout(equations.readout_gradient(change))
        change = change - equations.readout_change(undoing)
        product = flat_parameters(equations.hidden_gradient(change))
        return product + self.damping[:, None].to(direction.dtype) * direction

    def _solve_readout(self, gradient: Tensor) -> Tensor:
        solved = torch.cholesky_solve(gradient.mT.double(), self.readout_factor).mT
        return solved.to(gradient.dtype)

    def _precondition(self, residual: Tensor) -> Tensor:
        """The inverse blocks times gradients of the hidden layers, (batch, n_parameters).

        There may be several gradients of each network, one behind the other.
        """
        parts = split_parameters(residual, self.equations.layers[:-1])
        pairs = zip(self.inverses, parts, strict=True)
        return flat_parameters(tuple(_times_blocks(inverse, part) for inverse, part in pairs))


def _times_blocks(blocks: Tensor, vectors: Tensor) -> Tensor:
    """Symmetric matrices (n, fan_out, n_features, n_features) times vectors of each network."""
    vectors = vectors.unflatten(0, (len(blocks), -1)).permute(0, 2, 3, 1)
    return (blocks @ vectors).permute(0, 3, 1, 2).flatten(end_dim=1)


def diagonal_blocks(
    task: LeastSquaresTask, layers: Layers, rows_per_feature: int | None = None
) -> Layers:
    """The blocks of ``JᵀJ`` of every hidden neuron's incoming vector (lower triangles).

    Shape (batch, fan_out, n_features, n_features) for each hidden layer. Where there are more rows
    than so many for each feature of a layer, a share of them at equal distances.
    """
    if rows_per_feature is not None:
        task = task.spread(rows_per_feature * max(layer.shape[2] for layer in layers[:-1]))
    blocks = tuple(layer.new_zeros(*layer.shape, layer.shape[2]) for layer in layers[:-1])
    n_neurons = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    for rows in task.chunks(task.targets.shape[1] * n_neurons):
        run = forward(layers, task.inputs[rows], task.activation)
        *found, _ = sensitivities(layers, run)
        for block, sensitivity, features in zip(blocks, found, run.features[:-1], strict=True):
            scales = sensitivity * task.sqrt_weight[rows]
            size = task.gram_columns(features.shape[-1])
            _add_grams(block, scales, features.expand(len(block), -1, -1), size)
    return tuple(block.div_(task.n_equations) for block in blocks)


def _add_grams(blocks: Tensor, scales: Tensor, features: Tensor, size: int) -> None:
    """Add the Gram matrices (lower triangles) of every neuron's features, scaled row by row."""
    n_features = features.shape[2]
    for network, grams in enumerate(blocks):
        for neuron, gram in enumerate(grams):
            scaled = features[network] * scales[network, :, neuron, None]
            for start in range(0, n_features, size):
                columns = slice(start, start + size)
                gram[start:, columns].addmm_(scaled[:, start:].mT, scaled[:, columns])


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
        self._blocks: Layers = ()
        self._owners = torch.arange(0)  # networks that the blocks are of

    def fresh(self) -> MatrixFree:
        return MatrixFree(self.solves, self.in_single)

    def rule(self, damping: Damping) -> Damping:
        floor, rounding_loss = self.solves.damping_floor, self.solves.rounding_loss
        return replace(damping, floor=floor, rounding_loss=rounding_loss)

    def start_damping(self, losses: Tensor, damping: float) -> Tensor:
        share = losses.clamp(self.solves.least_share, 1.0)
        return (share * losses).clamp(max=damping)

    def step_bytes(self, task: LeastSquaresTask, layers: Layers) -> int:
        n_parameters = sum(layer[0].numel() for layer in layers)
        n_blocks = sum(layer[0].numel() * layer.shape[2] for layer in layers[:-1])
        n_blocks += layers[-1].shape[2] ** 2
        n_activations = sum(layer.shape[1] for layer in layers)
        n_vectors = ROW_VECTORS * (n_parameters + len(task.inputs) * n_activations)
        n_elements = max(FACTORED_BLOCKS * n_blocks, BLOCKS_IN_PRODUCTS * n_blocks + n_vectors)
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
            self._blocks = diagonal_blocks(task, layers, self.solves.block_rows)
            self._owners = index
        at = torch.searchsorted(self._owners, index)
        blocks = tuple(block if len(at) == len(block) else block[at] for block in self._blocks)
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
