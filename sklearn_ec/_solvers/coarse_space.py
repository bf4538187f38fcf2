r"""The coarse space of matrix-free solves: the network in the subspace of its inputs that it sees.

A network reads its inputs through their products with the incoming vectors of its first layer.
Changes of these vectors within their own span are those that neurons trade with each other; blocks
of single neurons say little about them. They are few: of 48 neurons on 784 inputs, 2,352 of 37,680.
With an orthonormal basis ``Z`` of this space, all weights of layers further up in it, and the
normal equations ``E`` of the network on the inputs ``Zᵀx``, the preconditioner gains the term
``Z (E + λI)⁻¹ Zᵀ`` (Nicolaides, 1987; an additive two-level method).

To 0.9, 0.99 and 0.999 of the decrease that a step's quadratic model promises, with a damping of a
tenth of the loss, solves take 15, 50 and more than 100 products without this term, 4, 13 and 26
with it (48 ``g`` neurons, 32 of them of a network 784-32-1, at 2e-4, Gaussian inputs); 16 ``g``
neurons, 8 of them of a network on MNIST, at 8e-6: more than 100 without, 13, 32 and 59 with it; 16
ReLU neurons there at 5e-5: 18, 40 and 73 without, 7, 19 and 35 with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sklearn_ec._core.settings import ConjugateGradients

from .derivatives import Layers, has_skip
from .equations import (
    DampedDenseSystem,
    DampedShallowSystem,
    DenseEquations,
    ShallowEquations,
    flat_parameters,
    split_parameters,
)
from .task import LeastSquaresTask


@dataclass(frozen=True)
class CoarseSpace:
    """The directions of the first layer that its neurons span, and the normal equations there."""

    basis: Tensor  # (batch, n_features, n_directions + 1), orthonormal columns, the bias last
    equations: tuple[DenseEquations | ShallowEquations, ...]  # one for each network

    @classmethod
    def of(cls, task: LeastSquaresTask, layers: Layers, rows_per_parameter: int) -> CoarseSpace:
        """That of stacked networks, from so many rows at equal distances."""
        task = task.spread(rows_per_parameter * n_coarse(layers))
        basis = _basis(layers[0])
        restricted = _restricted(layers, basis)
        return cls(
            basis,
            tuple(
                replace(task, inputs=task.inputs @ basis[i]).normal_equations(
                    tuple(layer[i : i + 1] for layer in restricted)
                )
                for i in range(len(basis))
            ),
        )

    @classmethod
    def if_small(
        cls, task: LeastSquaresTask, layers: Layers, solves: ConjugateGradients
    ) -> CoarseSpace | None:
        """That of stacked networks, where :func:`is_small`."""
        return cls.of(task, layers, solves.coarse_rows) if is_small(layers, solves) else None

    def take(self, index: Tensor) -> CoarseSpace:
        """The same for some of the networks."""
        return CoarseSpace(self.basis[index], tuple(self.equations[i] for i in index.tolist()))

    def damped(self, damping: Tensor, rcond: float) -> CoarseSystem:
        """Factorize ``E + λI``; ``λ`` is at least a share of the largest diagonal element."""
        systems = []
        for equations, each in zip(self.equations, damping, strict=True):
            least = rcond * equations.largest
            systems.append(equations.damped(torch.maximum(each, least)))
        return CoarseSystem(self.basis, tuple(systems))


@dataclass(frozen=True)
class CoarseSystem:
    """``Z (E + λI)⁻¹ Zᵀ`` for each of stacked networks; nothing where there is no inverse."""

    basis: Tensor
    systems: tuple[DampedDenseSystem | DampedShallowSystem, ...]

    def times(self, gradients: Layers) -> Tensor:
        """It times gradients of the hidden layers, (batch, n_parameters).

        There may be several gradients of each network, one behind the other.
        """
        n_networks = len(self.basis)
        first, *others = (part.unflatten(0, (n_networks, -1)) for part in gradients)
        basis = self.basis.to(first.dtype)[:, None]
        coarse = tuple(part.flatten(end_dim=1) for part in (first @ basis, *others))
        flat = flat_parameters(coarse).double().unflatten(0, (n_networks, -1))
        solved = torch.stack(
            [
                system.solve_hidden(right.mT[None])[0].mT
                if system.succeeded
                else torch.zeros_like(right)
                for system, right in zip(self.systems, flat, strict=True)
            ]
        )
        steps = split_parameters(solved.flatten(end_dim=1).to(first.dtype), coarse)
        lifted = (steps[0].unflatten(0, (n_networks, -1)) @ basis.mT).flatten(end_dim=1)
        return flat_parameters((lifted, *steps[1:]))


def is_small(layers: Layers, solves: ConjugateGradients) -> bool:
    """Whether a coarse space pays: of few parameters, and not of all inputs.

    What is in all of them is no coarse space, but the whole: of 51 tanh neurons on the 48 pixels of
    the digits, a step took a second with it, 0.1 s without.
    """
    _, width, n_features = layers[0].shape
    return width < n_features - 1 and n_coarse(layers) <= solves.max_coarse


def n_coarse(layers: Layers) -> int:
    """Number of parameters of the hidden layers in the coarse space."""
    _, width, n_features = layers[0].shape
    n_above = sum(layer[0].numel() for layer in layers[1:-1])
    return width * (min(width, n_features - 1) + 1) + n_above


def _basis(first: Tensor) -> Tensor:
    """Orthonormal directions that the incoming vectors span, and that of the bias."""
    weights = first[..., :-1].nan_to_num(posinf=0.0, neginf=0.0)
    *_, directions = torch.linalg.svd(weights, full_matrices=False)
    n_networks, n_directions, n_inputs = directions.shape
    basis = first.new_zeros(n_networks, n_inputs + 1, n_directions + 1)
    basis[:, :-1, :-1] = directions.mT
    basis[:, -1, -1] = 1.0
    return basis


def _restricted(layers: Layers, basis: Tensor) -> Layers:
    """The same networks, which read inputs in the basis, in skip terms too."""
    first, *others = layers
    if has_skip(layers):  # the inputs and the constant come last
        n_features = first.shape[2]
        others = [
            torch.cat([layer[..., :-n_features], layer[..., -n_features:] @ basis], dim=2)
            for layer in others
        ]
    else:  # of their own, since they serve several steps
        others = [layer.clone() for layer in others]
    return (first @ basis, *others)
