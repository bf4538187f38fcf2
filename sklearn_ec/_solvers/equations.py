"""The normal equations of batches of networks, and how they are solved once they are damped.

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

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .derivatives import ForwardPass, Layers


def split_parameters(flat: Tensor, layers: Layers) -> Layers:
    """Parts of ``flat``, shape (batch, n_parameters), in the shapes of the layers."""
    parts = flat.split([layer[0].numel() for layer in layers], dim=1)
    shaped = zip(parts, layers, strict=True)
    return tuple(part.reshape(-1, *layer.shape[1:]) for part, layer in shaped)


def flat_parameters(parts: Layers) -> Tensor:
    """The parameters of all layers, shape (batch, n_parameters)."""
    return torch.cat([part.flatten(start_dim=1) for part in parts], dim=1)


def _taken(kept: ForwardPass | None, index: Tensor) -> ForwardPass | None:
    return None if kept is None else kept.take(index)


@dataclass(frozen=True)
class DenseEquations:
    """``JᵀJ`` and ``Jᵀr`` of a batch of networks of any depth."""

    gradient: Layers
    gram: Tensor  # (batch, n_parameters, n_parameters)
    kept: ForwardPass | None = None

    def take(self, index: Tensor) -> DenseEquations:
        if len(index) == len(self.gram):
            return self
        gradient = tuple(part[index] for part in self.gradient)
        return DenseEquations(gradient, self.gram[index], _taken(self.kept, index))

    @property
    def largest(self) -> Tensor:
        """The largest diagonal element of each matrix, (batch,)."""
        return self.gram.diagonal(dim1=1, dim2=2).amax(dim=1)

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
        flat = flat_parameters(gradient)
        return split_parameters(
            -torch.cholesky_solve(flat[..., None], self.factor)[..., 0], gradient
        )

    def solve_hidden(self, right: Tensor) -> Tensor:
        """The hidden layers' block of the inverse times columns, (batch, n_hidden, n_columns)."""
        n_hidden = right.shape[1]
        padded = torch.nn.functional.pad(right, (0, 0, 0, self.factor.shape[1] - n_hidden))
        return torch.cholesky_solve(padded, self.factor)[:, :n_hidden]


@dataclass(frozen=True)
class ShallowEquations:
    """``JᵀJ`` (as the Gram matrix of ``[S Φ]``) and ``Jᵀr`` of networks with one hidden layer."""

    gradient: Layers
    gram: Tensor  # (batch, n_hidden + n_features, n_hidden + n_features)
    outgoing: Tensor  # (batch, n_outputs, n_neurons)
    kept: ForwardPass | None = None

    def take(self, index: Tensor) -> ShallowEquations:
        if len(index) == len(self.gram):
            return self
        gradient = tuple(part[index] for part in self.gradient)
        kept = _taken(self.kept, index)
        return ShallowEquations(gradient, self.gram[index], self.outgoing[index], kept)

    @property
    def largest(self) -> Tensor:
        """The largest diagonal element of each matrix, (batch,)."""
        batch, width, fan_in = self.gradient[0].shape
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        hidden = diagonal[:, : width * fan_in].view(batch, width, fan_in).amax(dim=2)
        hidden = hidden * self.outgoing.square().sum(dim=1)
        return torch.maximum(hidden.amax(dim=1), diagonal[:, width * fan_in :].amax(dim=1))

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

    def solve_hidden(self, right: Tensor) -> Tensor:
        """The hidden layer's block of the inverse times columns, (batch, n_hidden, n_columns)."""
        return torch.cholesky_solve(right, self.hidden_factor)


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

    @property
    def kept(self) -> ForwardPass | None:
        """The pass over all rows that they were made from, in double precision, if it is kept."""

    def take(self, index: Tensor) -> NormalEquations:
        """The same for some of the networks."""

    def damped(self, damping: Tensor) -> DampedSystem:
        """The system with damping, one for each network."""
