"""A network to first and second order in its parameters, to the last digit.

The normal equations of the solver square the condition number: directions of singular values below
1e-8 are lost in them. Here the Jacobian itself is factorized, chunk by chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._levenberg import LeastSquaresTask
from ._types import Network

# Singular values below this share of the largest are not inverted.
RCOND = 1e-13


class Linearization:
    """Singular value decomposition of the Jacobian of the relative root mean squared error.

    Incoming vectors count relative to their length. The free scale of homogeneous neurons is pinned
    by one extra row each, which scale no residual.

    Attributes
    ----------
    singular_values : Tensor of shape (n_parameters,)
        In decreasing order.
    directions : Tensor of shape (n_parameters, n_parameters)
        Right singular vectors as rows, in the parameters' own units, hidden weights first.
    """

    def __init__(self, task: LeastSquaresTask, network: Network):
        device = task.inputs.device
        self.task = task
        self.hidden = torch.from_numpy(network.hidden).to(device)
        self.readout = torch.from_numpy(network.readout).to(device)
        lengths = self.hidden.norm(dim=1, keepdim=True).expand_as(self.hidden)
        scale = torch.cat([lengths.flatten(), torch.ones_like(self.readout).flatten()])
        triangle = self._triangle(scale)
        left, self.singular_values, right = torch.linalg.svd(triangle[:, :-1], full_matrices=False)
        self.directions = right * scale
        self._coefficients = left.mT @ triangle[:, -1]

    def newton_step(self) -> tuple[Tensor, Tensor]:
        """Hidden and readout part of the Gauss-Newton step of minimum norm."""
        kept = self.singular_values > RCOND * self.singular_values[0]
        amounts = self._coefficients[kept] / self.singular_values[kept]
        hidden_step, readout_step = self._split(-amounts[None] @ self.directions[kept])
        return hidden_step[0], readout_step[0]

    def curvatures(self, n_directions: int) -> Tensor:
        """Root mean square of the second derivative of the residuals along the last directions."""
        steps = self._split(self.directions[-n_directions:])
        batch = len(steps[0])
        hidden = self.hidden.expand(batch, -1, -1)
        readout = self.readout.expand(batch, -1, -1)
        squares = self.hidden.new_zeros(batch)
        for rows in self.task.chunks(8 * batch * len(self.hidden)):
            curvature = self.task.curvature(hidden, readout, *steps, rows)
            squares += curvature.square().sum(dim=(1, 2))
        return (squares / self.task.n_equations).sqrt()

    def _triangle(self, scale: Tensor) -> Tensor:
        """Triangular factor of the scaled Jacobian with the residuals in the last column."""
        n_columns = len(scale) + 1
        triangle = scale.new_zeros(0, n_columns)
        residuals = self.task.residuals(self.hidden[None], self.readout[None])[0]
        for rows in self.task.chunks(n_columns * len(self.readout)):
            jacobian = self.task.jacobian(self.hidden, self.readout, rows) * scale
            block = torch.cat([jacobian, residuals[rows].reshape(-1, 1)], dim=1)
            triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
        triangle = triangle / math.sqrt(self.task.n_equations)
        if self.task.activation.homogeneous:
            pins = _scale_directions(self.hidden, self.readout) / scale
            pins = torch.cat([pins, pins.new_zeros(len(pins), 1)], dim=1)
            triangle = torch.cat([triangle, pins])
        return triangle

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        n_hidden = self.hidden.numel()
        return (
            parameters[:, :n_hidden].reshape(-1, *self.hidden.shape),
            parameters[:, n_hidden:].reshape(-1, *self.readout.shape),
        )


def _scale_directions(hidden: Tensor, readout: Tensor) -> Tensor:
    """Unit vectors along ``(u_j, -a_j)``, which leave a homogeneous network's outputs unchanged."""
    width = len(hidden)
    neurons = torch.arange(width, device=hidden.device)
    incoming = hidden.new_zeros(width, *hidden.shape)
    incoming[neurons, neurons] = hidden
    outgoing = readout.new_zeros(width, *readout.shape)
    outgoing[neurons, :, neurons] = -readout[:, :width].mT
    directions = torch.cat([incoming.flatten(1), outgoing.flatten(1)], dim=1)
    return directions / directions.norm(dim=1, keepdim=True)
