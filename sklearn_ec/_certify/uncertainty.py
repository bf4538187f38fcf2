"""What noise leaves open: its level, and the standard errors of a network's weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sklearn_ec._core.activations import Activation, get_activation
from sklearn_ec._core.coordinates import Problem
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._solvers.jacobian import Linearization
from sklearn_ec._solvers.task import LeastSquaresTask, resolve_device, task_of


def noise_level(network: Network, samples: Samples, activation: Activation) -> np.ndarray:
    """Standard deviation of the residuals of each output, corrected for the parameters used."""
    residuals = network_outputs(network, samples.X, activation) - samples.y
    n_samples, n_outputs = samples.y.shape
    freedom = max(n_samples - network.n_parameters / n_outputs, 1.0)
    return np.sqrt((residuals**2 * samples.sample_weight[:, None]).sum(axis=0) / freedom)


def standard_errors(
    weights: list[np.ndarray],
    biases: list[np.ndarray],
    noise_level: np.ndarray,
    problem: Problem,
    activation: str,
    device: str,
) -> list[np.ndarray]:
    """Standard errors of weights and, in the last row, biases: (fan_in + 1, fan_out) per layer.

    All is in the user's units.
    """
    coordinates = problem.coordinates
    network = coordinates.to_standardized(weights, biases)
    task = task_of(problem.train, get_activation(activation), resolve_device(device))
    errors = layer_errors(
        task,
        network,
        noise_level / coordinates.y_scale,
        incoming_map=coordinates.incoming_map(),
        output_scale=coordinates.y_scale,
    )
    return [part.T for part in errors]


def layer_errors(
    task: LeastSquaresTask,
    network: Network,
    noise_level: np.ndarray,
    incoming_map: np.ndarray | None = None,
    output_scale: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Standard errors of a network's weights, in the layout of its layers.

    They hold for other coordinates of inputs and outputs where these are given by the matrix that
    ``[w; b]`` of the first layer are multiplied with, and by the units of the outputs.
    """
    device = task.inputs.device

    def tensor(part: np.ndarray | None) -> Tensor | None:
        return None if part is None else torch.tensor(part, device=device)

    noise = torch.tensor(noise_level, device=device)
    linearization = Linearization(task, network)
    errors = linearization.standard_errors(noise, tensor(incoming_map), tensor(output_scale))
    return [part.cpu().numpy() for part in errors]
