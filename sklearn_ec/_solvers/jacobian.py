"""A network to first and second order in its parameters, to the last digit.

The normal equations of the solver square the condition number: directions of singular values below
1e-8 are lost in them. Here the Jacobian itself is factorized, chunk by chunk.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sklearn_ec._core.records import Network
from sklearn_ec._core.threads import threads_for

from .derivatives import Layers, forward, sensitivities
from .equations import split_parameters
from .task import LeastSquaresTask

# Singular values below this share of the largest are not inverted.
RCOND = 1e-13
# Above this share of the largest, squares of singular values are right to about a percent.
SQUARED_RCOND = 1e-12
TINY = torch.finfo(torch.float64).tiny


class Linearization:
    """Singular value decomposition of the Jacobian of the relative root mean squared error.

    Incoming vectors count relative to their length. The free scale of homogeneous neurons is pinned
    by one extra row each, which scale no residual.

    Attributes
    ----------
    singular_values : Tensor of shape (n_parameters,)
        In decreasing order.
    coefficients : Tensor of shape (n_parameters, n_residuals)
        The residuals along the left singular vectors: those of the network, or given ones, of shape
        (n_residuals, n_samples, n_outputs).
    directions : Tensor of shape (n_parameters, n_parameters)
        Right singular vectors as rows, in the parameters' own units, layer by layer.
    """

    def __init__(self, task: LeastSquaresTask, network: Network, residuals: Tensor | None = None):
        self.task = task
        self.layers = stacked(network, task.inputs.device)
        if residuals is None:
            residuals = task.residuals(self.layers)
        scale = parameter_scale(self.layers)
        with threads_for(task.flops(self.layers)):
            triangle = self._triangle(scale, residuals)
            jacobian, along = triangle.tensor_split([len(scale)], dim=1)
            left, self.singular_values, right = torch.linalg.svd(jacobian, full_matrices=False)
        self.directions = right * scale
        self.coefficients = left.mT @ along

    def newton_step(self) -> Layers:
        """The Gauss-Newton step of minimum norm."""
        kept = self.singular_values > RCOND * self.singular_values[0]
        amounts = self.coefficients[kept, 0] / self.singular_values[kept]
        return split_parameters(-amounts[None] @ self.directions[kept], self.layers)

    def unexplained_error(self, error: float) -> float:
        """What no change of the weights takes away of the network's relative error."""
        explained = float(self.coefficients[self.singular_values > 0.0, 0].square().sum())
        return math.sqrt(max(error**2 - explained, 0.0))

    def curvatures(self, n_directions: int) -> Tensor:
        """Root mean square of the second derivative of the residuals along the last directions."""
        return curvatures(self.task, self.layers, self.directions[-n_directions:])

    def leverages(self, task: LeastSquaresTask) -> np.ndarray:
        """Squared effect of further rows on the parameters, as far as these are open, (n_samples,).

        Directions that no row tells count as if they had the least singular value that is inverted.
        """
        least = RCOND * self.singular_values[0]
        spread = (self.directions / self.singular_values.clamp_min(least)[:, None]).mT
        found = []
        for rows in task.chunks(spread.shape[0] * task.targets.shape[1]):
            left = task.jacobian(self.layers, rows) @ spread
            found.append(left.square().sum(dim=1).reshape(task.targets.shape[1], -1).sum(dim=0))
        return torch.cat(found).cpu().numpy()

    def least_redundancy(self) -> float:
        """One minus the leverage of the row that the others check least, all its outputs together.

        Outputs may depend on each other, and check nothing then: the leverage is that of the
        combination of outputs with the largest one.
        """
        kept = self.singular_values > RCOND * self.singular_values[0]
        spread = (self.directions[kept] / self.singular_values[kept, None]).mT
        n_outputs, largest = self.task.targets.shape[1], 0.0
        for rows in self.task.chunks(spread.shape[0] * n_outputs):
            left = self.task.jacobian(self.layers, rows) @ spread
            left = left.reshape(n_outputs, -1, left.shape[1]).transpose(0, 1)
            largest = max(largest, float(torch.linalg.eigvalsh(left @ left.mT).max()))
        return 1.0 - largest / self.task.n_equations

    def standard_errors(
        self,
        noise_level: Tensor,
        incoming_map: Tensor | None = None,
        output_scale: Tensor | None = None,
    ) -> list[Tensor]:
        """Standard error of every weight, in the shapes of the layers.

        ``noise_level`` holds the standard deviation of the noise of each output. The Jacobian's
        pseudo-inverse carries the noise over to the weights, to first order. Homogeneous neurons
        keep the length of their incoming vectors. The errors hold for other coordinates where these
        are given, by the matrix that ``[w; b]`` of the first layer are multiplied with and the
        units of the outputs; the pseudo-inverse is that of the task's own.
        """
        kept = self.singular_values > RCOND * self.singular_values[0]
        spread = (self.directions[kept] / self.singular_values[kept, None]).mT
        gram = self._noise_gram(spread, noise_level)
        changes, layers = self._in_coordinates(spread, incoming_map, output_scale)
        spread = self._stacked(changes, layers)
        variances = ((spread @ gram) * spread).sum(dim=1)
        return [part[0] for part in split_parameters(variances.clamp_min(0.0).sqrt()[None], layers)]

    def relative_errors(
        self,
        errors: Tensor,
        incoming_map: Tensor | None = None,
        output_scale: Tensor | None = None,
        output_shift: Tensor | None = None,
        *,
        fixed_lengths: bool = True,
    ) -> list[Tensor]:
        """Error of every weight relative to its incoming vector's length, in the layers' shapes.

        ``errors`` holds an error along each left singular direction; these count as independent.
        Coordinates as in :meth:`standard_errors`; ``output_shift`` is added to the outputs.
        Homogeneous neurons have unit length in these coordinates; it is kept, or else the balance
        of their layers.
        """
        kept = self.singular_values > RCOND * self.singular_values[0]
        amounts = errors / torch.where(kept, self.singular_values, TINY)
        spread = (self.directions * amounts[:, None]).mT
        changes, layers = self._in_coordinates(spread, incoming_map, output_scale)
        if self.task.activation.homogeneous:
            changes, layers = _on_unit_neurons(changes, layers)
        spread = self._stacked(changes, layers, fixed_lengths)
        if output_shift is not None:
            *hidden, last = layers
            bias = last[..., -1:] + output_shift[:, None]
            layers = (*hidden, torch.cat([last[..., :-1], bias], dim=2))
        found = split_parameters(spread.norm(dim=1)[None], layers)
        pairs = zip(found, layers, strict=True)
        return [
            (part / layer.norm(dim=2, keepdim=True).clamp_min(TINY))[0] for part, layer in pairs
        ]

    def _in_coordinates(
        self, spread: Tensor, incoming_map: Tensor | None, output_scale: Tensor | None
    ) -> tuple[Layers, Layers]:
        """Changes of the layers, a batch of them, and the layers in other coordinates."""
        changes = split_parameters(spread.mT, self.layers)
        layers = _in_coordinates(self.layers, incoming_map, output_scale)
        return _in_coordinates(changes, incoming_map, output_scale), layers

    def _stacked(self, changes: Layers, layers: Layers, fixed_lengths: bool = True) -> Tensor:
        """Changes as columns, moved to where homogeneous neurons keep their lengths."""
        spread = torch.cat([change.flatten(start_dim=1) for change in changes], dim=1).mT
        if self.task.activation.homogeneous and fixed_lengths:
            return _at_fixed_lengths(spread, layers)
        return spread

    def _noise_gram(self, spread: Tensor, noise_level: Tensor) -> Tensor:
        """Covariance of the noise along the left singular vectors, per number of equations."""
        gram = spread.new_zeros(spread.shape[1], spread.shape[1])
        for rows in self.task.chunks(spread.shape[0] * len(noise_level)):
            left = self.task.jacobian(self.layers, rows) @ spread
            noise = noise_level.repeat_interleave(len(left) // len(noise_level))
            left = left * noise[:, None]
            gram += left.mT @ left
        return gram / self.task.n_equations**2

    def _triangle(self, scale: Tensor, residuals: Tensor) -> Tensor:
        """Triangular factor of the scaled Jacobian with the residuals in the last columns."""
        n_residuals, _, n_outputs = residuals.shape
        n_columns = len(scale) + n_residuals
        triangle = scale.new_zeros(0, n_columns)
        for rows in self.task.chunks(n_columns * n_outputs, 2 * n_columns // n_outputs):
            jacobian = self.task.jacobian(self.layers, rows) * scale
            columns = residuals[:, rows].mT.reshape(n_residuals, -1).mT
            block = torch.cat([jacobian, columns], dim=1)
            triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
        triangle = triangle / math.sqrt(self.task.n_equations)
        if self.task.activation.homogeneous:
            pins = scale_directions(self.layers) / scale
            pins = torch.cat([pins, pins.new_zeros(len(pins), n_residuals)], dim=1)
            triangle = torch.cat([triangle, pins])
        return triangle


def _least_singular_value(matrix: Tensor) -> float:
    """From the Gram matrix, three times as fast, unless it is lost in the rounding of squares."""
    squares = torch.linalg.eigvalsh(matrix.mT @ matrix)
    if squares[0] > SQUARED_RCOND * squares[-1]:
        return math.sqrt(squares[0])
    return float(torch.linalg.svdvals(torch.linalg.qr(matrix, mode="r").R)[-1])


def least_neuron_singular_value(task: LeastSquaresTask, network: Network) -> float:
    """Smallest singular value of the parts of the Jacobian that belong to single neurons.

    In the units of :class:`Linearization`, of whose smallest singular value it is an upper bound:
    directions of incoming vectors in which no row tells anything, since the neuron is saturated or
    switched off wherever its inputs vary. It takes one factorization of the inputs per neuron.
    The scales of homogeneous neurons, which are pinned there and free here, can lower it below the
    bound: by a factor of up to 5 in 300 random ReLU networks.
    """
    layers = stacked(network, task.inputs.device)
    run = forward(layers, task.inputs, task.activation)
    weights = sensitivities(layers, run)
    least = math.inf
    for layer, weight, features in zip(layers, weights, run.features, strict=True):
        features = features.expand(1, -1, -1)[0] * task.sqrt_weight
        lengths = torch.ones_like(layer[0, :, 0]) if layer is layers[-1] else layer[0].norm(dim=1)
        for neuron_weight, length in zip(weight[0].mT, lengths, strict=True):
            scaled = features * neuron_weight[:, None] * length
            with threads_for(2 * features.numel() * features.shape[1]):
                least = min(least, _least_singular_value(scaled))
    return least / math.sqrt(task.n_equations)


def _in_coordinates(
    layers: Layers, incoming_map: Tensor | None, output_scale: Tensor | None
) -> Layers:
    first, *middle, last = layers
    if incoming_map is not None:
        first = first @ incoming_map.mT
    if output_scale is not None:
        last = last * output_scale[:, None]
    return first, *middle, last


def _on_unit_neurons(changes: Layers, layers: Layers) -> tuple[Layers, Layers]:
    """Both where all hidden neurons have unit length, up to the length of each row.

    The columns that read a neuron take its length over.
    """
    scaled_changes, scaled_layers = [changes[0]], [layers[0]]
    for change, layer in zip(changes[1:], layers[1:], strict=True):
        lengths = scaled_layers[-1].norm(dim=2)
        columns = torch.cat([lengths, torch.ones_like(lengths[:, :1])], dim=1)[:, None]
        scaled_changes.append(change * columns)
        scaled_layers.append(layer * columns)
    return tuple(scaled_changes), tuple(scaled_layers)


def _at_fixed_lengths(changes: Tensor, layers: Layers) -> Tensor:
    """Changes of the parameters, one per column, moved along the free scales of the neurons.

    Afterwards no incoming vector of a hidden layer changes its length.
    """
    scales = scale_directions(layers)
    lengths = torch.zeros_like(scales)
    start = index = 0
    for layer in layers[:-1]:
        for neuron in layer[0]:
            lengths[index, start : start + len(neuron)] = neuron
            start, index = start + len(neuron), index + 1
    return changes - scales.mT @ torch.linalg.solve(lengths @ scales.mT, lengths @ changes)


def stacked(network: Network, device: torch.device | str) -> Layers:
    """A network as a batch of one."""
    return tuple(torch.from_numpy(layer[None]).to(device) for layer in network.layers)


def curvatures(task: LeastSquaresTask, layers: Layers, directions: Tensor) -> Tensor:
    """Root mean square of the second derivative of one network's residuals along directions."""
    steps = split_parameters(directions, layers)
    batch = len(steps[0])
    layers = tuple(layer.expand(batch, -1, -1) for layer in layers)
    squares = directions.new_zeros(batch)
    n_neurons = sum(layer.shape[1] for layer in layers[:-1])
    for rows in task.chunks(8 * batch * n_neurons):
        squares += task.curvature(layers, steps, rows).square().sum(dim=(1, 2))
    return (squares / task.n_equations).sqrt()


def parameter_scale(layers: Layers) -> Tensor:
    """The length of a parameter's incoming vector, one for those of the readout, flat."""
    *hidden, last = layers
    scales = [layer.norm(dim=2, keepdim=True).expand_as(layer).flatten() for layer in hidden]
    return torch.cat([*scales, torch.ones_like(last).flatten()])


def scale_directions(layers: Layers) -> Tensor:
    """Unit vectors along ``(u_j, -a_j)``, which leave a homogeneous network's outputs unchanged.

    The network has no skip terms.
    """
    directions = []
    for index in range(len(layers) - 1):
        for neuron in range(layers[index].shape[1]):
            changes = [torch.zeros_like(layer) for layer in layers]
            changes[index][0, neuron] = layers[index][0, neuron]
            changes[index + 1][0, :, neuron] = -layers[index + 1][0, :, neuron]
            directions.append(torch.cat([change.flatten() for change in changes]))
    return torch.nn.functional.normalize(torch.stack(directions), dim=1)
