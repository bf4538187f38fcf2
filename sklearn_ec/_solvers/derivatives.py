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

from dataclasses import dataclass

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

    @property
    def outputs(self) -> Tensor:
        """Shape (batch, n_rows, n_outputs)."""
        return self.preactivations[-1]

    def take(self, index: Tensor) -> ForwardPass:
        """The same for some of the networks."""
        inputs, *features = self.features
        return ForwardPass(
            [inputs, *(part[index] for part in features)],
            [part[index] for part in self.preactivations],
        )

    def float(self, inputs: Tensor) -> ForwardPass:
        """The same in single precision, with the features of the first layer."""
        features = [part.float() for part in self.features[1:]]
        return ForwardPass([inputs, *features], [part.float() for part in self.preactivations])


def forward(layers: Layers, inputs: Tensor, activation: Activation) -> ForwardPass:
    """Run all networks on ``inputs`` of shape (n_rows, n_inputs + 1), last column one."""
    features, preactivations = [inputs], [inputs @ layers[0].mT]
    for layer in layers[1:]:
        h = activation.tensor_function(preactivations[-1])
        features.append(_next_features(h, features[-1], has_skip(layers)))
        preactivations.append(features[-1] @ layer.mT)
    return ForwardPass(features, preactivations)


def has_skip(layers: Layers) -> bool:
    """Whether layers read activations from further down than the layer below."""
    return layers[-1].shape[-1] > layers[-2].shape[-2] + 1


def _hidden_columns(layers: Layers, index: int) -> Tensor:
    """The columns of a layer that read activations of hidden layers."""
    lowest = 0 if has_skip(layers) else index - 1
    return layers[index][..., : sum(layer.shape[-2] for layer in layers[lowest:index])]


def backpropagate(
    layers: Layers, run: ForwardPass, activation: Activation, cotangents: Tensor
) -> list[Tensor]:
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
        slopes = activation.tensor_derivative(z)[:, None]
        found.insert(0, gradient[..., : z.shape[-1]] * slopes)
        skipped = gradient[..., z.shape[-1] :] if has_skip(layers) else None
    return found


def sensitivities(layers: Layers, run: ForwardPass, activation: Activation) -> list[Tensor]:
    """Norms of the outputs' derivatives by every pre-activation, (batch, n_rows, fan_out) each."""
    batch, n_rows, n_outputs = run.outputs.shape
    identity = torch.eye(n_outputs, dtype=run.outputs.dtype, device=run.outputs.device)
    cotangents = identity[:, None, :].expand(batch, -1, n_rows, -1)
    found = backpropagate(layers, run, activation, cotangents)
    return [part.square().sum(dim=1).sqrt() for part in found]


def gradients(
    layers: Layers, run: ForwardPass, activation: Activation, cotangents: Tensor
) -> Layers:
    """Derivatives of ``Σ cotangents · outputs`` with respect to every layer."""
    found = backpropagate(layers, run, activation, cotangents[:, None])
    pairs = zip(found, run.features, strict=True)
    return tuple(cotangent[:, 0].mT @ features for cotangent, features in pairs)


def tangent(layers: Layers, run: ForwardPass, activation: Activation, steps: Layers) -> Tensor:
    """First derivative of the outputs along a step, shape (batch, n_rows, n_outputs).

    The step of the readout may be left out. All networks read the inputs in one matrix product:
    twice as fast as one product for each.
    """
    z_first = (run.features[0] @ steps[0].flatten(end_dim=1).mT).unflatten(1, steps[0].shape[:2])
    z_first = z_first.transpose(0, 1)
    first = z_first[..., :0]  # derivatives of the hidden activations that the next layer reads
    for index in range(1, len(layers)):
        h_first = activation.tensor_derivative(run.preactivations[index - 1]) * z_first
        first = torch.cat([h_first, first], dim=-1) if has_skip(layers) else h_first
        z_first = first @ _hidden_columns(layers, index).mT
        if index < len(steps):
            z_first = z_first + run.features[index] @ steps[index].mT
    return z_first


def pull_back(
    layers: Layers,
    run: ForwardPass,
    activation: Activation,
    cotangents: Tensor,
    n_layers: int | None = None,
) -> Layers:
    """The same as :func:`gradients` of the first layers, with one product for the inputs."""
    lowest, *found = backpropagate(layers, run, activation, cotangents[:, None])[:n_layers]
    stacked = lowest[:, 0].mT.contiguous().flatten(end_dim=1)
    first = (stacked @ run.features[0]).unflatten(0, (-1, layers[0].shape[1]))
    pairs = zip(found, run.features[1:])  # noqa: B905, layers above are left out
    return first, *(cotangent[:, 0].mT @ features for cotangent, features in pairs)


def jacobian(layers: Layers, run: ForwardPass, activation: Activation) -> Tensor:
    """Jacobian of the outputs, shape (batch, n_outputs, n_rows, n_parameters), layer by layer."""
    batch, n_rows, n_outputs = run.outputs.shape
    identity = torch.eye(n_outputs, dtype=run.outputs.dtype, device=run.outputs.device)
    cotangents = identity[:, None, :].expand(batch, -1, n_rows, -1)
    blocks = []
    for cotangent, features in zip(
        backpropagate(layers, run, activation, cotangents), run.features, strict=True
    ):
        features = features.expand(batch, -1, -1)[:, None, :, None, :]
        block = cotangent[..., None] * features
        blocks.append(block.flatten(start_dim=3))
    return torch.cat(blocks, dim=3)


def curvature(layers: Layers, run: ForwardPass, activation: Activation, steps: Layers) -> Tensor:
    """Second derivative of the outputs along a step, shape (batch, n_rows, n_outputs)."""
    first = second = torch.zeros_like(run.features[0])  # derivatives of the features
    z_first = run.features[0] @ steps[0].mT
    z_second = torch.zeros_like(z_first)
    for index in range(1, len(layers)):
        layer, step = layers[index], steps[index]
        z = run.preactivations[index - 1]
        slopes = activation.tensor_derivative(z)
        curvatures = activation.tensor_second_derivative(z)
        h_second = curvatures * z_first.square() + slopes * z_second
        first = _next_features(slopes * z_first, first, has_skip(layers))
        second = _next_features(h_second, second, has_skip(layers))
        z_second = 2.0 * (first @ step.mT) + second @ layer.mT
        if index < len(layers) - 1:
            z_first = run.features[index] @ step.mT + first @ layer.mT
    return z_second


def _next_features(h: Tensor, features: Tensor, has_skip: bool) -> Tensor:
    """``[h(, older), 1]`` from the features of a layer and the activations that it gave.

    Works for derivatives of features too, whose constant is zero.
    """
    rest = features if has_skip else features[..., -1:]
    return torch.cat([h, rest.expand(*h.shape[:-1], -1)], dim=-1)
