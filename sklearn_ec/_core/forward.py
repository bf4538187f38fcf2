"""Networks forward, and layers by least squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg

from .activations import Activation
from .records import Network, Samples

# Singular values of a layer's features below this relative size are rounding.
FEATURE_CONDITION = 1e-15
BLOCK_ROWS = 4096  # that are read at a time, so that no copy of all inputs is made


def read_features(
    layers: Sequence[np.ndarray], X: np.ndarray, activation: Activation, has_skip: bool
) -> np.ndarray:
    """Features ``[h(, older), 1]`` that a layer on top of the given ones reads."""
    if len(X) > BLOCK_ROWS:
        blocks = (X[i : i + BLOCK_ROWS] for i in range(0, len(X), BLOCK_ROWS))
        return np.vstack([read_features(layers, block, activation, has_skip) for block in blocks])
    features = np.hstack([X, np.ones((len(X), 1))])
    for layer in layers:
        h = activation.function(features @ layer.T)
        features = np.hstack([h, features if has_skip else features[:, -1:]])
    return features


def network_outputs(network: Network, X: np.ndarray, activation: Activation) -> np.ndarray:
    """Outputs of a network, shape (n_samples, n_outputs)."""
    hidden, readout = network.layers[:-1], network.layers[-1]
    return read_features(hidden, X, activation, network.has_skip) @ readout.T


def solve_layer(features: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The layer of minimum norm that maps features to targets best: (fan_out, n_features)."""
    root = np.sqrt(weight)[:, None]
    return linalg.lstsq(features * root, targets * root, cond=FEATURE_CONDITION)[0].T.copy()


def solve_readout(
    hidden: Sequence[np.ndarray], samples: Samples, activation: Activation, has_skip: bool
) -> Network:
    """The network with these hidden layers and the least-squares readout."""
    features = read_features(hidden, samples.X, activation, has_skip)
    return Network((*hidden, solve_layer(features, samples.y, samples.sample_weight)))
