r"""The preconditioner of matrix-free solves: blocks of single neurons, coupled within a layer.

With the derivatives ``c_nkj`` of output ``k`` by the pre-activation of neuron ``j`` and the
features ``φ_n`` that the layer reads, ``JᵀJ`` has the blocks ``Σ_n (Σ_k c_nki c_nkj) φ_n φ_nᵀ``.
Those of single neurons are held, ``A_j``. The others are taken to be as correlated as the
derivatives are, ``r_ij``: with Cholesky factors ``L_j`` of ``A_j + λI`` and the shares ``f²`` of
undamped diagonals in damped ones, feature by feature,

    ``L (1 - f² + f r f) Lᵀ``,

with the correlations drawn towards zero by a share, and ones on the diagonal. What neurons do in
the span of their incoming vectors comes in addition, see :mod:`sklearn_ec._solvers.coarse_space`.

Where neurons share half of their rows, as ReLU neurons do, their blocks alone miss a factor as
large as the number of neurons: solves of a 784-32-1 network on 75,459 rows take 18, 42 and 85
products to a relative residual of 0.1, 1e-2 and 1e-4 without the coupling, 6, 14 and 38 with it.
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

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class NeuronBlocks:
    """The blocks of single neurons, and how the neurons of a layer go together.

    Each has an entry for every hidden layer: ``grams`` of shape (batch, fan_out, n_features,
    n_features), lower triangles, and ``correlations`` of shape (batch, fan_out, fan_out).
    """

    grams: Layers
    correlations: Layers
    coarse: CoarseSpace | None = None  # what neurons do together, where that is small

    @classmethod
    def of(
        cls,
        task: LeastSquaresTask,
        layers: Layers,
        rows_per_feature: int | None = None,
        solves: ConjugateGradients | None = None,
    ) -> NeuronBlocks:
        """Those of stacked networks.

        Where there are more rows than so many for each feature of a layer, a share of them at equal
        distances. The coarse space is found where ``solves`` says that it is small.
        """
        hidden, coarse = layers[:-1], None
        if solves is not None:
            coarse = CoarseSpace.if_small(task, layers, solves)
        if rows_per_feature is not None:
            task = task.spread(rows_per_feature * max(layer.shape[2] for layer in hidden))
        grams = tuple(layer.new_zeros(*layer.shape, layer.shape[2]) for layer in hidden)
        products = tuple(layer.new_zeros(*layer.shape[:2], layer.shape[1]) for layer in hidden)
        for _, run, slopes in task.derivatives(layers):
            for gram, product, slope, features in zip(
                grams, products, slopes, run.features[:-1], strict=True
            ):
                scales, size = slope.square().sum(dim=1).sqrt(), task.gram_columns(gram.shape[3])
                _add_grams(gram, scales, features.expand(len(gram), -1, -1), size)
                slope = slope.flatten(1, 2)
                product += slope.mT @ slope
        n = task.n_equations
        grams = tuple(gram.div_(n) for gram in grams)
        return cls(grams, tuple(map(_normalized, products)), coarse)

    def take(self, index: Tensor) -> NeuronBlocks:
        """The same for some of the networks."""
        if len(index) == len(self.grams[0]):
            return self
        grams = tuple(gram[index] for gram in self.grams)
        coarse = None if self.coarse is None else self.coarse.take(index)
        return NeuronBlocks(grams, tuple(part[index] for part in self.correlations), coarse)

    @staticmethod
    def n_elements(layers: Layers) -> int:
        """Numbers that are held of each network."""
        return sum(a[0].numel() * (a.shape[1] + a.shape[2]) for a in layers[:-1])

    def damped(
        self, damping: Tensor, solves: ConjugateGradients, dtype: torch.dtype
    ) -> Preconditioner:
        """Their approximate inverse for every network, with its own damping."""
        return Preconditioner.of(self, damping, solves, dtype)


@dataclass(frozen=True)
class Preconditioner:
    """An approximate inverse of the hidden layers' part of ``JᵀJ + λI``."""

    inverses: Layers  # of the Cholesky factors, (batch, fan_out, n_features, n_features) each
    couplings: Layers  # inverses of 1 - f² + f r f, (batch, n_features, fan_out, fan_out) each
    succeeded: Tensor  # (batch,), False where a block is not positive definite
    coarse: CoarseSystem | None = None

    @classmethod
    def of(
        cls,
        blocks: NeuronBlocks,
        damping: Tensor,
        solves: ConjugateGradients,
        dtype: torch.dtype,
    ) -> Preconditioner:
        """That of every network, with its own damping."""
        inverses, couplings = [], []
        succeeded = torch.ones_like(damping, dtype=torch.bool)
        for gram, correlation in zip(blocks.grams, blocks.correlations, strict=True):
            factor, is_positive, shares = damped_factor(gram, damping, solves.block_rcond)
            identity = torch.eye(gram.shape[3], dtype=gram.dtype, device=gram.device)
            inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
            inverses.append(inverse.to(dtype))
            f = shares.sqrt().mT[..., None]
            matrix = (1.0 - solves.correlation_shrinkage) * f * correlation[:, None] * f.mT
            matrix.diagonal(dim1=2, dim2=3).fill_(1.0)
            factor, info = torch.linalg.cholesky_ex(matrix)
            couplings.append(torch.cholesky_inverse(factor).to(dtype))
            succeeded = succeeded & is_positive & (info == 0).all(dim=1)
        coarse = blocks.coarse.damped(damping, solves.coarse_rcond) if blocks.coarse else None
        return cls(tuple(inverses), tuple(couplings), succeeded, coarse)

    def times(self, residual: Tensor, layers: Layers) -> Tensor:
        """The inverse times gradients of the hidden layers, (batch, n_parameters).

        There may be several gradients of each network, one behind the other.
        """
        parts, gradients = [], split_parameters(residual, layers)
        for inverse, coupling, part in zip(self.inverses, self.couplings, gradients, strict=True):
            # As rows, for which products are five times as fast as for columns.
            rows = part.unflatten(0, (len(inverse), -1)).transpose(1, 2) @ inverse.mT
            rows = (coupling @ rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) @ inverse
            parts.append(rows.transpose(1, 2).flatten(end_dim=1))
        product = flat_parameters(tuple(parts))
        return product if self.coarse is None else product + self.coarse.times(gradients)


def damped_factor(
    blocks: Tensor, damping: Tensor, least_damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factors of damped blocks (lower triangles).

    Also whether those of each network exist, and the shares of the undamped diagonals in the damped
    ones, (batch, fan_out, n_features).
    """
    matrix = blocks.clone()
    diagonal = matrix.diagonal(dim1=2, dim2=3)
    least = least_damping * diagonal.amax(dim=2, keepdim=True)
    before = diagonal.clone()
    diagonal.add_(torch.maximum(damping[:, None, None], least))
    shares = before / diagonal.clamp_min(TINY)
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor, (info == 0).all(dim=1), shares


def _normalized(products: Tensor) -> Tensor:
    """Correlations from sums of products."""
    lengths = products.diagonal(dim1=1, dim2=2).sqrt().clamp_min(TINY)
    return products / lengths[:, :, None] / lengths[:, None, :]


def _add_grams(blocks: Tensor, scales: Tensor, features: Tensor, size: int) -> None:
    """Add the Gram matrices (lower triangles) of every neuron's features, scaled row by row.

    Rows in which a neuron is off are left out.
    """
    n_features = features.shape[2]
    for network, grams in enumerate(blocks):
        for neuron, gram in enumerate(grams):
            own = scales[network, :, neuron]
            is_on = own != 0.0
            rows = slice(None) if is_on.all() else is_on
            scaled = features[network, rows] * own[rows, None]
            for start in range(0, n_features, size):
                columns = slice(start, start + size)
                gram[start:, columns].addmm_(scaled[:, start:].mT, scaled[:, columns])
