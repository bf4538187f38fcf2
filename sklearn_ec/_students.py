"""The module that holds all students as stacked tensors, and how students start."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from ._activations import Activation


class StackedStudents(nn.Module):
    """All students of a group: one tensor per layer, students along the first axis."""

    def __init__(self, hidden: Tensor, readout: Tensor, activation: Activation):
        super().__init__()
        self.hidden = nn.Parameter(hidden)
        self.readout = nn.Parameter(readout)
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of every student, shape (n_samples, n_students, n_outputs)."""
        outputs = stacked_outputs(inputs, self.hidden, self.readout, self.activation)
        return outputs.transpose(0, 1)


def stacked_outputs(
    inputs: Tensor, hidden: Tensor, readout: Tensor, activation: Activation
) -> Tensor:
    """Outputs of every student, shape (n_students, n_samples, n_outputs).

    ``inputs`` has shape (n_samples, n_inputs + 1), its last column one.
    """
    width = hidden.shape[1]
    activations = activation.tensor_function(inputs @ hidden.mT)
    outputs = activations @ readout[:, :, :width].mT + readout[:, None, :, width]
    if readout.shape[2] > width + 1:
        outputs = outputs + inputs[:, :-1] @ readout[:, :, width + 1 :].mT
    return outputs


def initial_weights(
    seeds: np.ndarray, width: int, n_inputs: int, n_outputs: int, n_skip: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random hidden and readout weights, one seed per student.

    Incoming weights are normal with variance 1 / n_inputs, hidden biases normal with standard
    deviation 1/2 (for standardized inputs, hyperplanes that cross the data), outgoing weights
    normal with variance 1 / width, the skip term zero.
    """
    hidden = np.empty((len(seeds), width, n_inputs + 1))
    readout = np.zeros((len(seeds), n_outputs, width + 1 + n_skip))
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(int(seed))
        hidden[i, :, :-1] = rng.normal(scale=max(n_inputs, 1) ** -0.5, size=(width, n_inputs))
        hidden[i, :, -1] = rng.normal(scale=0.5, size=width)
        readout[i, :, :width] = rng.normal(scale=width**-0.5, size=(n_outputs, width))
    return hidden, readout
