"""The least-squares problem that networks are trained on: rows as tensors on one device.

Passes over the rows go chunk by chunk, so that no temporary array outgrows the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.records import Samples
from sklearn_ec._core.settings import Blocks
from sklearn_ec._core.threads import notice_crowd
from sklearn_ec._core.watch import Watch

from .derivatives import (
    ForwardPass,
    Layers,
    backpropagate,
    curvature,
    forward,
    gradients,
    has_skip,
    jacobian,
    sensitivities,
)
from .equations import DenseEquations, ShallowEquations, split_parameters

# Matrices as large as the normal equations that a step holds at a time, for each network.
STEP_MATRICES = 3


@dataclass(frozen=True)
class LeastSquaresTask:
    """The rows to fit, as tensors on one device."""

    inputs: Tensor  # (n_samples, n_inputs + 1), last column one
    targets: Tensor  # (n_samples, n_outputs)
    sqrt_weight: Tensor  # (n_samples, 1)
    activation: Activation
    watch: Watch = field(default_factory=Watch)  # told of every pass over the rows
    blocks: Blocks = field(default_factory=Blocks)

    @property
    def n_equations(self) -> int:
        return self.targets.numel()

    def unwatched(self) -> LeastSquaresTask:
        """The same rows for what has to be computed even if the time is over."""
        return replace(self, watch=Watch())

    def float(self) -> LeastSquaresTask:
        """The same rows in single precision."""
        return replace(
            self,
            inputs=self.inputs.float(),
            targets=self.targets.float(),
            sqrt_weight=self.sqrt_weight.float(),
            watch=Watch(),
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

    def spread(self, n_rows: int) -> LeastSquaresTask:
        """So many rows or up to twice as many, at equal distances; itself where there are fewer."""
        step = len(self.inputs) // n_rows
        return self if step < 2 else self.take(slice(None, None, step))

    def normal_equations(self, layers: Layers) -> DenseEquations | ShallowEquations:
        """Assemble ``JᵀJ`` and ``Jᵀr`` of every network in chunks of rows."""
        if len(layers) == 2:
            return self._shallow_equations(layers)
        return self._dense_equations(layers)

    def _kept_pass(self, layers: Layers) -> ForwardPass | None:
        """The pass over all rows, where it takes little memory."""
        n_activations = sum(layer.shape[0] * layer.shape[1] for layer in layers)
        if len(self.inputs) * n_activations > self.blocks.kept_elements:
            return None
        return forward(layers, self.inputs, self.activation)

    def _passes(
        self, layers: Layers, row_elements: int, kept: ForwardPass | None
    ) -> Iterator[tuple[slice, ForwardPass]]:
        """Blocks of rows and the passes over them, parts of one that was kept."""
        for rows in self.chunks(row_elements):
            if kept is None:
                yield rows, forward(layers, self.inputs[rows], self.activation)
            elif rows.stop >= len(self.inputs) and rows.start == 0:
                yield rows, kept
            else:
                yield rows, kept.on_rows(rows)

    def _shallow_equations(self, layers: Layers) -> ShallowEquations:
        hidden, readout = layers
        batch, width, fan_in = hidden.shape
        n_hidden = width * fan_in
        n_columns = n_hidden + readout.shape[2]
        gram = hidden.new_zeros(batch, n_columns, n_columns)
        hidden_gradient = torch.zeros_like(hidden)
        readout_gradient = torch.zeros_like(readout)
        outgoing, kept = readout[:, :, :width], self._kept_pass(layers)
        for rows, run in self._passes(layers, batch * n_columns, kept):
            inputs, sqrt_weight = self.inputs[rows], self.sqrt_weight[rows]
            residuals = (run.outputs - self.targets[rows]) * sqrt_weight
            slopes = run.slopes[0] * sqrt_weight
            columns = hidden.new_empty(batch, len(inputs), n_columns)
            torch.mul(
                slopes[..., None],
                inputs[None, :, None, :],
                out=columns[:, :, :n_hidden].view(batch, len(inputs), width, fan_in),
            )
            torch.mul(run.features[1], sqrt_weight, out=columns[:, :, n_hidden:])
            _add_gram(gram, columns, self.gram_columns(columns.shape[2]))
            readout_gradient += residuals.mT @ columns[:, :, n_hidden:]
            hidden_gradient += ((residuals @ outgoing) * slopes).mT @ inputs
        n = self.n_equations
        gradient = (hidden_gradient / n, readout_gradient / n)
        return ShallowEquations(gradient, _mirrored(gram).div_(n), outgoing, kept)

    def _dense_equations(self, layers: Layers) -> DenseEquations:
        batch, kept = len(layers[0]), self._kept_pass(layers)
        n_outputs, n_parameters = self.targets.shape[1], sum(layer[0].numel() for layer in layers)
        gram = layers[0].new_zeros(batch, n_parameters, n_parameters)
        gradient = layers[0].new_zeros(batch, n_parameters, 1)
        for rows, run in self._passes(layers, batch * n_parameters * n_outputs, kept):
            residuals = (run.outputs - self.targets[rows]) * self.sqrt_weight[rows]
            columns = jacobian(layers, run, self.sqrt_weight[rows]).flatten(1, 2)
            _add_gram(gram, columns, self.gram_columns(columns.shape[2]))
            gradient += columns.mT @ residuals.mT.reshape(batch, -1, 1)
        n = self.n_equations
        parts = split_parameters(gradient[..., 0] / n, layers)
        return DenseEquations(parts, _mirrored(gram).div_(n), kept)

    def curvature(self, layers: Layers, steps: Layers, rows: slice) -> Tensor:
        """Second derivative of the weighted residuals along a step, (batch, n_rows, n_outputs)."""
        run = forward(layers, self.inputs[rows], self.activation)
        return curvature(layers, run, steps) * self.sqrt_weight[rows]

    def curvature_gradient(
        self, layers: Layers, steps: Layers, kept: ForwardPass | None = None
    ) -> tuple[Layers, Tensor]:
        """``Jᵀc`` and the mean of ``c²``, with second derivatives ``c`` along a step.

        The pass over all rows may be given.
        """
        total = tuple(torch.zeros_like(layer) for layer in layers)
        squares = layers[0].new_zeros(len(layers[0]))
        n_elements = sum(layer.shape[0] * layer.shape[1] for layer in layers[:-1])
        for rows, run in self._passes(layers, 8 * n_elements, kept):
            curved = curvature(layers, run, steps)
            squares += (curved * self.sqrt_weight[rows]).square().sum(dim=(1, 2))
            curved = curved * self.sqrt_weight[rows].square()
            for part, gradient in zip(total, gradients(layers, run, curved), strict=True):
                part += gradient
        n = self.n_equations
        return tuple(part / n for part in total), squares / n

    def derivatives(self, layers: Layers) -> Iterator[tuple[slice, ForwardPass, Layers]]:
        """Blocks of rows, their passes, and the derivatives of the weighted outputs.

        These are by the pre-activations, (batch, n_outputs, n_rows, fan_out) for each hidden layer.
        """
        n_outputs = self.targets.shape[1]
        identity = torch.eye(n_outputs, dtype=self.targets.dtype, device=self.targets.device)
        n_neurons = sum(layer.shape[0] * layer.shape[1] for layer in layers)
        for rows in self.chunks(n_outputs * n_neurons):
            run = forward(layers, self.inputs[rows], self.activation)
            cotangents = identity[:, None, :] * self.sqrt_weight[rows]
            cotangents = cotangents.expand(len(layers[0]), -1, -1, -1)
            yield rows, run, tuple(backpropagate(layers, run, cotangents)[:-1])

    def readout_gram(self, layers: Layers, run: ForwardPass) -> Tensor:
        """Gram matrices of what the readouts read, (batch, n_features, n_features)."""
        features, weight = run.features[-1], self.sqrt_weight.square()
        if not has_skip(layers):
            return (features * weight).mT @ features
        n_hidden = features.shape[2] - self.inputs.shape[1]
        own = (features[..., :n_hidden] * weight).mT @ features
        gram = self._input_gram.repeat(len(features), 1, 1)
        gram = torch.cat([own[..., n_hidden:].mT, gram], dim=2)
        return torch.cat([own, gram], dim=1)

    @cached_property
    def _input_gram(self) -> Tensor:
        weighted = self.inputs * self.sqrt_weight
        return weighted.mT @ weighted

    def jacobian(self, layers: Layers, rows: slice) -> Tensor:
        """Jacobian of one network's weighted outputs, layer by layer.

        ``layers`` holds the layers of a single network, as a batch of one. The result has shape
        (n_rows * n_outputs, n_parameters), the rows of one output after those of another.
        """
        run = forward(layers, self.inputs[rows], self.activation)
        return jacobian(layers, run, self.sqrt_weight[rows])[0].flatten(0, 1)

    def sensitivities(self, layers: Layers) -> list[np.ndarray]:
        """Size of the outputs' derivatives by each pre-activation of one network.

        One array of shape (n_samples, fan_out) for each layer.
        """
        run = forward(layers, self.inputs, self.activation)
        return [part[0].cpu().numpy() for part in sensitivities(layers, run)]

    def flops(self, layers: Layers) -> int:
        """Floating-point operations of one assembly of a network's normal equations."""
        n_rows, n_columns = self._gram_shape(layers)
        return 2 * n_rows * n_columns**2

    def step_bytes(self, layers: Layers) -> int:
        """Predicted peak memory of a Levenberg step, for each network that it advances."""
        n_rows, n_columns = self._gram_shape(layers)
        n_chunk_rows = min(n_rows, self.blocks.min_rows * (n_rows // len(self.inputs)))
        n_elements = STEP_MATRICES * n_columns**2 + 3 * n_chunk_rows * n_columns
        return self.targets.element_size() * n_elements

    def _gram_shape(self, layers: Layers) -> tuple[int, int]:
        """Rows and columns of the matrix whose Gram matrix the normal equations need."""
        if len(layers) == 2:
            return len(self.inputs), layers[0][0].numel() + layers[1].shape[2]
        return self.n_equations, sum(layer[0].numel() for layer in layers)

    def chunks(self, row_elements: int, min_rows: int = 0) -> Iterator[slice]:
        """Blocks of rows of which each has a temporary array of limited size."""
        is_cpu = self.inputs.device.type == "cpu"
        limit = self.blocks.elements_on_cpu if is_cpu else self.blocks.elements_on_cuda
        size = max(self.blocks.min_rows, min_rows, limit // row_elements)
        for start in range(0, len(self.inputs), size):
            notice_crowd()
            self.watch.tick()
            yield slice(start, start + size)

    def gram_columns(self, n_columns: int) -> int:
        """Width of the block columns of a symmetric product."""
        return max(self.blocks.min_gram_columns, -(-n_columns // 3))


def _add_gram(gram: Tensor, columns: Tensor, size: int) -> None:
    """Add ``columnsᵀ columns`` to the upper triangle of ``gram``, so many columns at a time."""
    for start in range(0, columns.shape[2], size):
        block = columns[:, :, start : start + size]
        gram[:, start : start + size, start:].baddbmm_(block.mT, columns[:, :, start:])


def _mirrored(gram: Tensor) -> Tensor:
    """Copy the upper triangle of ``gram`` to the lower one, in place."""
    lower = gram.triu(1).mT.contiguous()
    return gram.triu_().add_(lower)


def task_of(
    samples: Samples,
    activation: Activation,
    device: str,
    watch: Watch | None = None,
    blocks: Blocks | None = None,
) -> LeastSquaresTask:
    """The rows as tensors on a device; on the CPU they share the memory of the inputs.

    Unless that is read-only, as in worker processes: tensors cannot be.
    """
    return LeastSquaresTask(
        inputs=torch.from_numpy(np.require(samples.inputs, requirements="W")).to(device),
        targets=torch.tensor(samples.y, device=device),
        sqrt_weight=torch.from_numpy(np.sqrt(samples.sample_weight)[:, None]).to(device),
        activation=activation,
        watch=watch or Watch(),
        blocks=blocks or Blocks(),
    )


def resolve_device(device: str) -> str:
    """``"auto"`` is CUDA where there is one, the CPU elsewhere."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={device!r} cannot be used for float64 tensors ({error}): choose 'auto', "
            "'cpu' or a CUDA device that torch sees."
        ) from error
    return device
