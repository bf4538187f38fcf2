"""The weakest directions of a large network's Jacobian, without a factorization of it.

Block inverse iteration from random vectors, with the solves of
:mod:`sklearn_ec._solvers.matrix_free`; the Rayleigh-Ritz values are those of the Jacobian itself,
so that small ones are not squared. Leverages are estimated from what least squares leave of random
targets (Hutchinson, 1990). Units are those of :class:`~sklearn_ec._solvers.jacobian.Linearization`,
and the free scales of homogeneous neurons are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sklearn_ec._core.records import Network
from sklearn_ec._core.settings import ConjugateGradients, WeakDirections
from sklearn_ec._core.threads import threads_for

from .derivatives import Layers, pull_back, tangent
from .equations import flat_parameters, split_parameters
from .jacobian import curvatures, parameter_scale, scale_directions, stacked
from .matrix_free import DampedMatrixFreeSystem, MatrixFreeEquations
from .preconditioner import NeuronBlocks
from .task import LeastSquaresTask


class WeakLinearization:
    """The smallest singular values of the Jacobian of the relative root mean squared error.

    Attributes
    ----------
    singular_values : Tensor of shape (n_directions,)
        In decreasing order. The last one is an upper bound of the smallest, and near it.
    directions : Tensor of shape (n_directions, n_parameters)
        Right singular vectors as rows, in the parameters' own units, layer by layer.
    """

    def __init__(self, task: LeastSquaresTask, network: Network, settings: WeakDirections):
        self.task = task
        self.settings = settings
        self.layers = stacked(network, task.inputs.device)
        self._scale = parameter_scale(self.layers)
        self._blocks = NeuronBlocks.of(task, self.layers, settings.rows_per_feature)
        solves = ConjugateGradients(
            relative_residual=settings.relative_residual,
            max_iterations=settings.max_iterations,
            tail=0,
        )
        self._equations = MatrixFreeEquations.assemble(task, self.layers, self._blocks, solves)
        self._generator = torch.Generator().manual_seed(0)
        self._free = self._free_scales()
        self._product_flops = 4.0 * len(task.inputs) * network.n_parameters
        self._system = self._damped(self._equations.in_single(task.float()))
        with threads_for(self._product_flops):
            self.singular_values, self.directions = self._iterate()
            if not self._is_resolved_in_single():
                self._system = self._damped(self._equations)
                self.singular_values, self.directions = self._iterate()

    def curvatures(self, n_directions: int) -> Tensor:
        """Root mean square of the second derivative of the residuals along the last directions."""
        return curvatures(self.task, self.layers, self.directions[-n_directions:])

    def least_redundancy(self) -> float:
        """An estimate of one minus the largest leverage of a row, all its outputs together."""
        n_outputs = self.task.targets.shape[1]
        n_probes = self.settings.probes_per_output * n_outputs
        moments = self.layers[0].new_zeros(len(self.task.inputs), n_outputs, n_outputs)
        solves = ConjugateGradients(
            relative_residual=self.settings.probe_residual,
            max_iterations=self.settings.max_probe_iterations,
        )
        system = replace(self._system, equations=replace(self._system.equations, solves=solves))
        for size in self._portions(n_probes):
            targets = self._random(size, len(self.task.inputs), n_outputs)
            with threads_for(self._product_flops):
                left = self._unexplained(targets, system)
            moments += torch.einsum("pnk,pnl->nkl", left, left)
        return float(torch.linalg.eigvalsh(moments / n_probes).min())

    def _damped(self, equations: MatrixFreeEquations) -> DampedMatrixFreeSystem:
        return equations.damped(torch.full_like(self.layers[0][:, 0, 0], self.settings.damping))

    def _is_resolved_in_single(self) -> bool:
        """Whether the weakest direction changes the outputs by far more than rounding does.

        By a share of what the weights that change could, were each alone and along the strongest of
        its features.
        """
        most, grams = 0.0, (*self._blocks.grams, self._equations.readout_gram[:, None])
        parts = split_parameters(self.directions[-1:], self.layers)
        for gram, part in zip(grams, parts, strict=True):
            strongest = gram.diagonal(dim1=2, dim2=3).amax(dim=2)
            most += float((strongest * part.square().sum(dim=2)).sum())
        return float(self.singular_values[-1]) ** 2 > self.settings.least_single_share * most

    def _iterate(self) -> tuple[Tensor, Tensor]:
        """Singular values and directions, once the smallest value has settled."""
        vectors = self._orthonormal(self._random(self.settings.n_directions, len(self._scale)))
        least = math.inf
        for _ in range(self.settings.max_rounds):
            vectors = self._orthonormal(self._inverse(vectors))
            changes = self._outputs_along(vectors * self._scale)
            left, values, right = torch.linalg.svd(changes.mT, full_matrices=False)
            vectors = right @ vectors
            before, least = least, float(values[-1])
            if least > (1.0 - self.settings.accuracy) * before:
                break
        return values, vectors * self._scale

    def _inverse(self, vectors: Tensor) -> Tensor:
        """``(SJᵀJS)⁻¹`` times vectors, for scales ``S``."""
        gradient = split_parameters(vectors / self._scale, self.layers)
        steps = self._system.step(gradient)
        return flat_parameters(steps) / self._scale

    def _orthonormal(self, vectors: Tensor) -> Tensor:
        vectors = vectors - (vectors @ self._free.mT) @ self._free
        return torch.linalg.qr(vectors.mT).Q.mT

    def _outputs_along(self, directions: Tensor) -> Tensor:
        """Changes of the weighted outputs along directions, (n_directions, n_equations)."""
        steps = split_parameters(directions, self.layers)
        changes = tangent(self.layers, self._equations.run, steps)
        return (changes * self._weight).flatten(start_dim=1)

    def _along_outputs(self, changes: Tensor) -> Layers:
        """``Jᵀ`` times changes of the weighted outputs, (batch, n_samples, n_outputs)."""
        return pull_back(self.layers, self._equations.run, changes * self._weight)

    def _unexplained(self, targets: Tensor, system: DampedMatrixFreeSystem) -> Tensor:
        """What the Jacobian's columns do not explain of targets, (batch, n_samples, n_outputs)."""
        steps = system.step(self._along_outputs(targets))
        return targets + self._outputs_along(flat_parameters(steps)).view_as(targets)

    @property
    def _weight(self) -> Tensor:
        return self.task.sqrt_weight / math.sqrt(self.task.n_equations)

    def _free_scales(self) -> Tensor:
        """Orthonormal vectors along which the scales of homogeneous neurons change, as rows."""
        if not self.task.activation.homogeneous:
            return self._scale.new_zeros(0, len(self._scale))
        directions = scale_directions(self.layers) / self._scale
        return torch.linalg.qr(directions.mT).Q.mT

    def _random(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        return drawn.to(self._scale.device)

    def _portions(self, n: int) -> Iterator[int]:
        """So many in portions, as many as there are directions at a time."""
        size = self.settings.n_directions
        return (min(size, n - start) for start in range(0, n, size))
