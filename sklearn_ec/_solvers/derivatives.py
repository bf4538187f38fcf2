"""Outputs of stacked networks and their derivatives, by sweeps through the layers.

A network is a tuple of layers, each of shape ``(batch, fan_out, n_features)``. The features that a
layer reads are ``[h(, older), 1]``: the activations ``h`` of the layer below (the inputs, for the
first one), in networks with skip terms the activations of all layers further down to the inputs,
and a constant. With the pre-activations ``z = features · layerᵀ`` and ``h = s(z)`` the sweeps are

- up: the outputs, which are the last ``z``;
- down: cotangents of every ``z`` from those of the outputs, hence gradients and Jacobians;
- up again, along a step: the second derivative of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sklearn_ec._core.activations import Activation

Layers = tuple[Tensor, ...]


@dataclass(frozen=True)
class ForwardPass:
    """What a sweep up leaves: features and pre-activations of every layer.

    The features of the first layer have shape (n_rows, n_inputs + 1), all others
    (batch, n_rows, n_features).
    """

    features: list[Tensor]
    preactivations: list[Tensor]
    activation: Activation

    @property
    def outputs(self) -> Tensor:
        """Shape (batch, n_rows, n_outputs)."""
        return self.preactivations[-1]

    @cached_property
    def slopes(self) -> list[Tensor]:
        """Derivatives of the activations of every hidden layer, (batch, n_rows, width) each."""
        return self._of_hidden(self.activation.tensor_derivative)

    @cached_property
    def curvatures(self) -> list[Tensor]:
        """Their second derivatives."""
        return self._of_hidden(self.activation.tensor_second_derivative)

    def take(self, index: Tensor) -> ForwardPass:
        """The same for some of the networks."""
        inputs, *features = self.features
        return ForwardPass(
            [inputs, *(part[index] for part in features)],
            [part[index] for part in self.preactivations],
            self.activation,
        )

    def on_rows(self, rows: slice) -> ForwardPass:
        """The same for some of the rows."""
        inputs, *features = self.features
        return ForwardPass(
            [inputs[rows], *(part[:, rows] for part in features)],
            [part[:, rows] for part in self.preactivations],
            self.activation,
        )

    def float(self, inputs: Tensor) -> ForwardPass:
        """The same in single precision, with the features of the first layer."""
        features = [part.float() for part in self.features[1:]]
        preactivations = [part.float() for part in self.preactivations]
        return ForwardPass([inputs, *features], preactivations, self.activation)

    def _of_hidden(self, function: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        pairs = zip(self.preactivations[:-1], self.features[1:], strict=True)
        return [function(z, features[..., : z.shape[-1]]) for z, features in pairs]


def forward(layers: Layers, inputs: Tensor, activation: Activation) -> ForwardPass:
    """Run all networks on ``inputs`` of shape (n_rows, n_inputs + 1), last column one."""
    features, preactivations = [inputs], [inputs @ layers[0].mT]
    for layer in layers[1:]:
        h = activation.tensor_function(preactivations[-1])
        features.append(_next_features(h, features[-1], has_skip(layers)))
        preactivations.append(features[-1] @ layer.mT)
    return ForwardPass(features, preactivations, activation)


def has_skip(layers: Layers) -> bool:
    """Whether layers read activations from further down than the layer below."""
    return layers[-1].shape[-1] > layers[-2].shape[-2] + 1


def _hidden_columns(layers: Layers, index: int) -> Tensor:
    """The columns of a layer that read activations of hidden layers."""
    lowest = 0 if has_skip(layers) else index - 1
    return layers[index][..., : sum(layer.shape[-2] for layer in layers[lowest:index])]


def backpropagate(layers: Layers, run: ForwardPass, cotangents: Tensor) -> list[Tensor]:
    """Cotangents of the pre-activations of every layer from those of the outputs.

    ``cotangents`` has shape (batch, n, n_rows, n_outputs) for ``n`` of them at a time; so have the
    results, with the widths of the layers last.
    """
    found, skipped = [cotangents], None
    for index in range(len(layers) - 1, 0, -1):
        gradient = found[0] @ _hidden_columns(layers, index)[:, None]  # by the activations below
        if skipped is not None:
            gradient = gradient + skipped
        z = run.preactivations[index - 1]
        found.insert(0, gradient[..., : z.shape[-1]] * run.slopes[index - 1][:, None])
        skipped = gradient[..., z.shape[-1] :] if has_skip(layers) else None
    return found


def sensitivities(layers: Layers, run: ForwardPass) -> list[Tensor]:
    """Norms of the outputs' derivatives by every pre-activation, (batch, n_rows, fan_out) each."""
    batch, n_rows, n_outputs = run.outputs.shape
    identity = torch.eye(n_outputs, dtype=run.outputs.dtype, device=run.outputs.device)
    cotangents = identity[:, None, :].expand(batch, -1, n_rows, -1)
    found = backpropagate(layers, run, cotangents)
    return [part.square().sum(dim=1).sqrt() for part in found]


def gradients(layers: Layers, run: ForwardPass, cotangents: Tensor) -> Layers:
    """Derivatives of ``Σ cotangents · outputs`` with respect to every layer."""
    found = backpropagate(layers, run, cotangents[:, None])
    pairs = zip(found, run.features, strict=True)
    return tuple(cotangent[:, 0].mT @ features for cotangent, features in pairs)


def tangent(layers: Layers, run: ForwardPass, steps: Layers) -> Tensor:
    """First derivative of the outputs along a step, shape (batch, n_rows, n_outputs).

    The step of the readout may be left out. All networks read the inputs in one matrix product:
    twice as fast as one product for each.
    """
    z_first = (run.features[0] @ steps[0].flatten(end_dim=1).mT).unflatten(1, steps[0].shape[:2])
    z_first = z_first.transpose(0, 1)
    first = z_first[..., :0]  # derivatives of the hidden activations that the next layer reads
    for index in range(1, len(layers)):
        h_first = run.slopes[index - 1] * z_first
        first = torch.cat([h_first, first], dim=-1) if has_skip(layers) else h_first
        z_first = first @ _hidden_columns(layers, index).mT
        if index < len(steps):
            z_first = z_first + run.features[index] @ steps[index].mT
    return z_first


def pull_back(
    layers: Layers,
    run: ForwardPass,
    cotangents: Tensor,
    n_layers: int | None = None,
) -> Layers:
    """The same as :func:`gradients` of the first layers, with one product for the inputs."""
    lowest, *found = backpropagate(layers, run, cotangents[:, None])[:n_layers]
    stacked = lowest[:, 0].mT.contiguous().flatten(end_dim=1)
    first = (stacked @ run.features[0]).unflatten(0, (-1, layers[0].shape[1]))
    pairs = zip(found, run.features[1:])  # noqa: B905, layers above are left out
    return first, *(cotangent[:, 0].mT @ features for cotangent, features in pairs)


def jacobian(layers: Layers, run: ForwardPass, weight: Tensor) -> Tensor:
    """Jacobian of the outputs, each row times its weight, of shape (n_rows, 1).

    Its shape is (batch, n_outputs, n_rows, n_parameters), layer by layer.
    """
    batch, n_rows, n_outputs = run.outputs.shape
    identity = torch.eye(n_outputs, dtype=run.outputs.dtype, device=run.outputs.device)
    cotangents = (identity[:, None, :] * weight).expand(batch, -1, -1, -1)
    sizes = [layer[0].numel() for layer in layers]
    columns = run.outputs.new_empty(batch, n_outputs, n_rows, sum(sizes))
    for block, cotangent, features in zip(
        columns.split(sizes, dim=3),
        backpropagate(layers, run, cotangents),
        run.features,
        strict=True,
    ):
        features = features.expand(batch, -1, -1)[:, None, :, None, :]
        out = block.unflatten(3, (-1, features.shape[-1]))
        torch.mul(cotangent[..., None], features, out=out)
    return columns


def curvature(layers: Layers, run: ForwardPass, steps: Layers) -> Tensor:
    """Second derivative of the outputs along a step, shape (batch, n_rows, n_outputs)."""
    z_first = run.features[0] @ steps[0].mT
    first = second = z_second = z_first[..., :0]  # derivatives of the activations that are read
    for index in range(1, len(layers)):
        columns, changes = (_hidden_columns(part, index).mT for part in (layers, steps))
        h_second = run.curvatures[index - 1] * z_first.square()
        if index > 1:
            h_second = h_second + run.slopes[index - 1] * z_second
        h_first = run.slopes[index - 1] * z_first
        first = torch.cat([h_first, first], dim=-1) if has_skip(layers) else h_first
        second = torch.cat([h_second, second], dim=-1) if has_skip(layers) else h_second
        z_second = 2.0 * (first @ changes) + second @ columns
        if index < len(layers) - 1:
            z_first = run.features[index] @ steps[index].mT + first @ columns
    return z_second


def _next_features(h: Tensor, features: Tensor, has_skip: bool) -> Tensor:
    """``[h(, older), 1]`` from the features of a layer and the activations that it gave."""
    rest = features if has_skip else features[..., -1:]
    return torch.cat([h, rest.expand(*h.shape[:-1], -1)], dim=-1)
