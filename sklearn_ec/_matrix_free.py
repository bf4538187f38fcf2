r"""Matrix-free Levenberg, for networks whose ``JᵀJ`` is too large to be formed.

The damped normal equations of :mod:`sklearn_ec._levenberg` are solved by conjugate gradients, from
products with ``JᵀJ`` alone: a sweep up through the layers along the direction, and a sweep down.
The iterates solve the equations on growing Krylov spaces, so that the quadratic model promises the
same decrease, ``λ‖Δ‖² − Δ·g``, wherever the iteration stops.

The preconditioner holds the diagonal blocks of ``JᵀJ + λI``, one for the incoming vector of every
neuron: with the derivatives ``c_nkj`` of output ``k`` by pre-activation ``j`` and the features
``φ_n`` that the neuron reads, ``Σ_n (Σ_k c_nkj²) φ_n φ_nᵀ``. With it, students of 16 tanh neurons
on 9,000 MNIST images (rank 664, 10,810 parameters) need 5 to 30 products per solve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._levenberg import (
    BatchedLevenberg,
    LeastSquaresTask,
    gram_block_size,
    split_parameters,
)
from ._sweeps import ForwardPass, Layers, forward, pull_back, sensitivities, tangent

# A solve ends once the residual, as the preconditioner measures it, is below this share of the
# gradient, or after so many iterations.
RELATIVE_RESIDUAL = 0.1
MAX_ITERATIONS = 100
# Steps that the blocks of the preconditioner serve; a divisor of the steps of an epoch, so that a
# training that is continued between two epochs goes on as if it had not been interrupted.
BLOCK_STEPS = 5
# Least damping of a block, relative to its largest diagonal element.
BLOCK_RCOND = 1e-15
MAX_START_DAMPING = 1e-2
# Arrays as large as the blocks that a step holds at a time.
BLOCK_COPIES = 4
VECTOR_COPIES = 12
# Products with JᵀJ in a step, for the prediction of its cost.
TYPICAL_PRODUCTS = 40
# Floating-point operations of a dense step up to which it is taken.
DENSE_FLOPS = 1e11


@dataclass(frozen=True)
class MatrixFreeEquations:
    """``Jᵀr`` of a batch of networks, and products with their ``JᵀJ``."""

    task: LeastSquaresTask
    layers: Layers
    run: ForwardPass
    gradient: Layers
    blocks: Layers  # as of :func:`diagonal_blocks`

    @classmethod
    def assemble(
        cls, task: LeastSquaresTask, layers: Layers, blocks: Layers
    ) -> MatrixFreeEquations:
        run = forward(layers, task.inputs, task.activation)
        residuals = (run.outputs - task.targets) * task.sqrt_weight.square()
        gradient = pull_back(layers, run, task.activation, residuals / task.n_equations)
        return cls(task, layers, run, gradient, blocks)

    def take(self, index: Tensor) -> MatrixFreeEquations:
        if len(index) == len(self.layers[0]):
            return self
        return MatrixFreeEquations(
            self.task,
            tuple(layer[index] for layer in self.layers),
            self.run.take(index),
            tuple(part[index] for part in self.gradient),
            tuple(block[index] for block in self.blocks),
        )

    def damped(self, damping: Tensor) -> DampedMatrixFreeSystem:
        """Invert the blocks of ``JᵀJ + λI``."""
        inverses, succeeded = [], torch.ones_like(damping, dtype=torch.bool)
        for block in self.blocks:
            matrix = block.clone()
            diagonal = matrix.diagonal(dim1=2, dim2=3)
            least = BLOCK_RCOND * diagonal.amax(dim=2, keepdim=True)
            diagonal.add_(torch.maximum(damping[:, None, None], least))
            factor, info = torch.linalg.cholesky_ex(matrix)
            inverses.append(torch.cholesky_inverse(factor))
            succeeded = succeeded & (info == 0).all(dim=1)
        return DampedMatrixFreeSystem(self, damping, tuple(inverses), succeeded)

    def product(self, direction: Layers) -> Layers:
        """``JᵀJ`` times a direction."""
        activation, weight = self.task.activation, self.task.sqrt_weight.square()
        change = tangent(self.layers, self.run, activation, direction) * weight
        return pull_back(self.layers, self.run, activation, change / self.task.n_equations)


@dataclass(frozen=True)
class DampedMatrixFreeSystem:
    """``JᵀJ + λI`` of a batch of networks and the inverses of its diagonal blocks."""

    equations: MatrixFreeEquations
    damping: Tensor  # (batch,)
    inverses: Layers  # of the damped blocks
    succeeded: Tensor  # (batch,), False where a block is not positive definite

    def step(self, gradient: Layers) -> Layers:
        """``−(JᵀJ + λI)⁻¹`` times a gradient, by conjugate gradients."""
        residual = -_flat(gradient)
        step = torch.zeros_like(residual)
        direction = preconditioned = self._precondition(residual)
        size = (residual * preconditioned).sum(dim=1)
        goal = RELATIVE_RESIDUAL**2 * size
        active = self.succeeded & (size > 0)
        for _ in range(MAX_ITERATIONS):
            if not active.any():
                break
            product = self._product(direction)
            bend = (direction * product).sum(dim=1)
            active = active & (bend > 0)
            length = torch.where(active, size / bend, 0.0)[:, None]
            step = step + length * direction
            residual = residual - length * product
            preconditioned = self._precondition(residual)
            next_size = (residual * preconditioned).sum(dim=1)
            ratio = torch.where(active, next_size / size, 0.0)[:, None]
            direction = preconditioned + ratio * direction
            active, size = active & (next_size > goal), next_size
        return split_parameters(step, gradient)

    def _product(self, direction: Tensor) -> Tensor:
        parts = split_parameters(direction, self.equations.layers)
        return _flat(self.equations.product(parts)) + self.damping[:, None] * direction

    def _precondition(self, residual: Tensor) -> Tensor:
        parts = split_parameters(residual, self.equations.layers)
        *inverses, shared = self.inverses
        *hidden, readout = parts
        pairs = zip(inverses, hidden, strict=True)
        solved = [(inverse @ part[..., None])[..., 0] for inverse, part in pairs]
        return _flat((*solved, readout @ shared[:, 0]))


def _flat(parts: Layers) -> Tensor:
    return torch.cat([part.flatten(start_dim=1) for part in parts], dim=1)


def diagonal_blocks(task: LeastSquaresTask, layers: Layers) -> Layers:
    """The blocks of ``JᵀJ`` of every neuron's incoming vector (lower triangles).

    Shape (batch, fan_out, n_features, n_features) for each layer. All outputs share their block,
    which is there once.
    """
    owners = (*layers[:-1], layers[-1][:, :1])
    blocks = tuple(owner.new_zeros(*owner.shape, owner.shape[2]) for owner in owners)
    n_neurons = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    for rows in task.chunks(task.targets.shape[1] * n_neurons):
        run = forward(layers, task.inputs[rows], task.activation)
        found = sensitivities(layers, run, task.activation)
        for block, sensitivity, features in zip(blocks, found, run.features, strict=True):
            scales = sensitivity * task.sqrt_weight[rows]
            _add_grams(block, scales, features.expand(len(block), -1, -1))
    return tuple(block.div_(task.n_equations) for block in blocks)


def _add_grams(blocks: Tensor, scales: Tensor, features: Tensor) -> None:
    """Add the Gram matrices (lower triangles) of every neuron's features, scaled row by row."""
    n_features = features.shape[2]
    size = gram_block_size(n_features)
    for network, grams in enumerate(blocks):
        for neuron, gram in enumerate(grams):
            scaled = features[network] * scales[network, :, neuron, None]
            for start in range(0, n_features, size):
                columns = slice(start, start + size)
                gram[start:, columns].addmm_(scaled[:, start:].mT, scaled[:, columns])


class MatrixFreeLevenberg(BatchedLevenberg):
    """Levenberg without ``JᵀJ``: inexact steps by conjugate gradients."""

    damping_floor = 1e-24  # products lose less than JᵀJ itself, which ends at 1e-16

    def __init__(
        self,
        task: LeastSquaresTask,
        layers: Layers,
        *,
        damping: float = MAX_START_DAMPING,
        **options: Any,
    ):
        super().__init__(task, layers, **options)
        self.damping = self.losses.clamp(max=damping)
        self._blocks: Layers = ()
        self._owners = torch.arange(0, device=task.inputs.device)  # networks that the blocks are of
        self._n_steps = 0

    @staticmethod
    def step_bytes(task: LeastSquaresTask, layers: Layers) -> int:
        n_parameters = sum(layer[0].numel() for layer in layers)
        n_blocks = sum(layer[0].numel() * layer.shape[2] for layer in layers[:-1])
        n_blocks += layers[-1].shape[2] ** 2
        n_activations = sum(layer.shape[1] for layer in layers)
        n_features = sum(layer.shape[2] for layer in layers[1:])
        n_vectors = n_parameters + len(task.inputs) * n_activations
        n_elements = BLOCK_COPIES * n_blocks + VECTOR_COPIES * n_vectors
        n_elements += len(task.inputs) * n_features
        return task.targets.element_size() * n_elements

    @staticmethod
    def flops(task: LeastSquaresTask, layers: Layers) -> int:
        n_parameters = sum(layer[0].numel() for layer in layers)
        n_blocks = sum(layer[0].numel() * layer.shape[2] for layer in layers)
        n_rows = len(task.inputs)
        return 4 * n_rows * (TYPICAL_PRODUCTS * n_parameters + n_blocks // BLOCK_STEPS)

    def step(self) -> None:
        super().step()
        self._n_steps += 1

    def _equations(self, index: Tensor) -> MatrixFreeEquations:
        layers = self.take(index)
        is_stale = self._n_steps % BLOCK_STEPS == 0
        if is_stale or not torch.isin(index, self._owners).all():
            self._blocks, self._owners = diagonal_blocks(self.task, layers), index
        at = torch.searchsorted(self._owners, index)
        blocks = tuple(block if len(at) == len(block) else block[at] for block in self._blocks)
        return MatrixFreeEquations.assemble(self.task, layers, blocks)


def suited_solver(
    task: LeastSquaresTask, layers: Layers, working_bytes: float
) -> type[BatchedLevenberg]:
    """The solver that advances a network fastest within the memory.

    Where neither fits, the one that takes less.
    """
    dense, matrix_free = BatchedLevenberg, MatrixFreeLevenberg
    enough = max(working_bytes, matrix_free.step_bytes(task, layers))
    fits = dense.step_bytes(task, layers) <= enough
    is_fast = dense.flops(task, layers) <= DENSE_FLOPS
    return dense if fits and is_fast else matrix_free
