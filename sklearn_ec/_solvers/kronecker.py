r"""The preconditioner of matrix-free solves: Kronecker factors of each layer's part of ``JᵀJ``.

With the derivatives ``c_nj`` of the outputs by the pre-activation of neuron ``j`` and the features
``φ_n`` that the layer reads, ``JᵀJ`` has the blocks ``Σ_n c_ni c_nj φ_n φ_nᵀ``. They are about
``S_ij F``, with the mean products ``S`` of the derivatives and ``F`` of the features (Martens and
Grosse, 2015); those of single ReLU neurons without biases are, where inputs are normal. In the
eigenbases of both, ``S ⊗ F + λI`` is diagonal, whatever ``λ``. What neurons do in the span of their
incoming vectors may come in addition, see :mod:`sklearn_ec._solvers.coarse_space`.

The blocks of single neurons (:mod:`sklearn_ec._solvers.preconditioner`) take longer than the
products, the more so the more neurons there are, and the few rows that they are taken from tell
them less well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_ec._core.settings import ConjugateGradients

from .coarse_space import CoarseSpace, CoarseSystem
from .derivatives import Layers
from .equations import flat_parameters, split_parameters
from .task import LeastSquaresTask


@dataclass(frozen=True)
class Factor:
    """Eigenvalues and eigenvectors of a symmetric matrix for each of several networks."""

    values: Tensor  # (batch, n)
    vectors: Tensor  # (batch, n, n), as columns

    @classmethod
    def of(cls, matrices: Tensor) -> Factor:
        """Those of matrices without negative eigenvalues; zeros where they are not finite."""
        values, vectors = torch.linalg.eigh(matrices.nan_to_num(0.0, 0.0, 0.0))
        return cls(values.clamp_min(0.0), vectors)

    def take(self, index: Tensor) -> Factor:
        return Factor(self.values[index], self.vectors[index])


@dataclass(frozen=True)
class KroneckerFactors:
    """Mean products of the derivatives, and of the features, for every hidden layer."""

    derivatives: tuple[Factor, ...]  # of fan_out each
    features: tuple[Factor, ...]  # of n_features each
    coarse: CoarseSpace | None = None  # what neurons do together, where that is small

    @classmethod
    def of(
        cls,
        task: LeastSquaresTask,
        layers: Layers,
        rows_per_feature: int | None = None,
        solves: ConjugateGradients | None = None,
    ) -> KroneckerFactors:
        """Those of stacked networks.

        Where there are more rows than so many for each feature of a layer, from a share of them at
        equal distances. The coarse space is found where ``solves`` says that it is small, unless
        the scales of neurons are free: its equations are singular then, and single precision is
        lost in them (32 ReLU neurons on 784 inputs: 120 products in a step instead of 10).
        """
        hidden, coarse = layers[:-1], None
        if solves is not None and not task.activation.homogeneous:
            coarse = CoarseSpace.if_small(task, layers, solves)
        if rows_per_feature is not None:
            task = task.spread(rows_per_feature * max(layer.shape[2] for layer in hidden))
        products = [layer.new_zeros(*layer.shape[:2], layer.shape[1]) for layer in hidden]
        grams = [layer.new_zeros(len(layer), layer.shape[2], layer.shape[2]) for layer in hidden]
        for rows, run, slopes in task.derivatives(layers):
            for product, gram, slope, features in zip(
                products, grams, slopes, run.features[:-1], strict=True
            ):
                slope = slope.flatten(1, 2)
                product += slope.mT @ slope
                weighted = features * task.sqrt_weight[rows]
                gram += weighted.mT @ weighted
        return cls(
            tuple(Factor.of(product / task.n_equations) for product in products),
            tuple(Factor.of(gram / len(task.inputs)) for gram in grams),
            coarse,
        )

    def take(self, index: Tensor) -> KroneckerFactors:
        """The same for some of the networks."""
        if len(index) == len(self.features[0].values):
            return self
        coarse = None if self.coarse is None else self.coarse.take(index)
        derivatives = tuple(factor.take(index) for factor in self.derivatives)
        return KroneckerFactors(derivatives, tuple(f.take(index) for f in self.features), coarse)

    @staticmethod
    def n_elements(layers: Layers) -> int:
        """Numbers that are held of each network."""
        return sum(a.shape[1] ** 2 + a.shape[2] ** 2 for a in layers[:-1])

    def damped(
        self, damping: Tensor, solves: ConjugateGradients, dtype: torch.dtype
    ) -> KroneckerPreconditioner:
        """Their approximate inverse for every network, with its own damping."""
        inverses = []
        for derivatives, features in zip(self.derivatives, self.features, strict=True):
            values = derivatives.values[:, :, None] * features.values[:, None]
            least = solves.block_rcond * values.amax(dim=(1, 2))
            inverses.append(
                (1.0 / (values + torch.maximum(damping, least)[:, None, None])).to(dtype)
            )
        return KroneckerPreconditioner(
            tuple(factor.vectors.to(dtype) for factor in self.derivatives),
            tuple(factor.vectors.to(dtype) for factor in self.features),
            tuple(inverses),
            succeeded=torch.ones_like(damping, dtype=torch.bool),
            coarse=self.coarse.damped(damping, solves.coarse_rcond) if self.coarse else None,
        )


@dataclass(frozen=True)
class KroneckerPreconditioner:
    """An approximate inverse of the hidden layers' part of ``JᵀJ + λI``."""

    derivatives: Layers  # eigenvectors, (batch, fan_out, fan_out) each
    features: Layers  # eigenvectors, (batch, n_features, n_features) each
    inverses: Layers  # of damped eigenvalues, (batch, fan_out, n_features) each
    succeeded: Tensor  # (batch,), always True
    coarse: CoarseSystem | None = None

    def times(self, residual: Tensor, layers: Layers) -> Tensor:
        """The inverse times gradients of the hidden layers, (batch, n_parameters).

        There may be several gradients of each network, one behind the other.
        """
        parts, gradients = [], split_parameters(residual, layers)
        factors = zip(self.derivatives, self.features, self.inverses, gradients, strict=True)
        for left, right, inverse, gradient in factors:
            part = gradient.unflatten(0, (len(inverse), -1))
            left, right = left[:, None], right[:, None]
            part = (left.mT @ part @ right) * inverse[:, None]
            parts.append((left @ part @ right.mT).flatten(end_dim=1))
        product = flat_parameters(tuple(parts))
        return product if self.coarse is None else product + self.coarse.times(gradients)
