"""A reconstructed network as a model of another library, from its weights and biases."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.neural_network import MLPRegressor
from torch import Tensor, nn

from sklearn_ec._core.activations import SOFTPLUS_THRESHOLD, get_activation, leaky_relu_slope

MLP_ACTIVATIONS = ("logistic", "tanh", "relu")


class ActivationModule(nn.Module):
    """An activation that torch has no module for, by its name."""

    def __init__(self, activation: str):
        super().__init__()
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        return get_activation(self.activation).tensor_function(z)

    def extra_repr(self) -> str:
        return self.activation


def activation_module(activation: str) -> nn.Module:
    slope = leaky_relu_slope(activation)
    if slope is not None:
        return nn.LeakyReLU(slope)
    modules = {
        "logistic": nn.Sigmoid(),
        "tanh": nn.Tanh(),
        "relu": nn.ReLU(),
        "softplus": nn.Softplus(threshold=SOFTPLUS_THRESHOLD),
        "gelu": nn.GELU(),
        "silu": nn.SiLU(),
        "elu": nn.ELU(),
    }
    return modules.get(activation, ActivationModule(activation))


def to_sequential(
    weights: list[np.ndarray], biases: list[np.ndarray], activation: str
) -> nn.Sequential:
    """Linear layers in float64 with the activation between them."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear(weight.shape[0], weight.shape[1], dtype=torch.float64)
        linear.weight.data = torch.tensor(weight.T)
        linear.bias.data = torch.tensor(bias)
        layers += [linear, activation_module(activation)]
    return nn.Sequential(*layers[:-1])


def to_mlp_regressor(
    weights: list[np.ndarray], biases: list[np.ndarray], activation: str
) -> MLPRegressor:
    """A fitted MLPRegressor with these weights, from which ``partial_fit`` goes on."""
    if activation not in MLP_ACTIVATIONS:
        raise ValueError(
            f"MLPRegressor has no activation {activation!r}, only {', '.join(MLP_ACTIVATIONS)}: "
            "use to_torch instead."
        )
    sizes = tuple(len(bias) for bias in biases[:-1])
    mlp = MLPRegressor(hidden_layer_sizes=sizes, activation=activation)
    mlp.coefs_ = [weight.copy() for weight in weights]
    mlp.intercepts_ = [bias.copy() for bias in biases]
    mlp.n_features_in_ = len(weights[0])
    mlp.n_outputs_ = len(biases[-1])
    mlp.n_layers_ = len(weights) + 1
    mlp.out_activation_ = "identity"
    _start_training_record(mlp)
    return mlp


def _start_training_record(mlp: MLPRegressor) -> None:
    """What ``partial_fit`` sets in its first call, together with random weights."""
    mlp.t_ = mlp.n_iter_ = mlp._no_improvement_count = 0
    mlp.loss_curve_ = []
    mlp.best_loss_ = np.inf
    mlp.validation_scores_ = mlp.best_validation_score_ = None
