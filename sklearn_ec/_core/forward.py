"""Networks forward, and layers by least squares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import linalg

from .activations import Activation
from .records import Network, Samples

# Singular values of a layer's features below this relative size are rounding.
FEATURE_CONDITION = 1e-15
BLOCK_ROWS = 4096  # that are read at a time, so that no copy of all inputs is made


def row_blocks(n_rows: int) -> Iterator[slice]:
    """Blocks of rows; one where there are few."""
    return (slice(i, i + BLOCK_ROWS) for i in range(0, max(n_rows, 1), BLOCK_ROWS))


def read_features(
    layers: Sequence[np.ndarray], X: np.ndarray, activation: Activation, has_skip: bool
) -> np.ndarray:
    """Features ``[h(, older), 1]`` that a layer on top of the given ones reads."""
    if len(X) > BLOCK_ROWS:
        blocks = row_blocks(len(X))
        return np.vstack([read_features(layers, X[rows], activation, has_skip) for rows in blocks])
    features = np.hstack([X, np.ones((len(X), 1))])
    for layer in layers:
        h = activation.function(features @ layer.T)
        features = np.hstack([h, features if has_skip else features[:, -1:]])
    return features


def network_outputs(network: Network, X: np.ndarray, activation: Activation) -> np.ndarray:
    """Outputs of a network, shape (n_samples, n_outputs)."""
    hidden, readout = network.layers[:-1], network.layers[-1]
    blocks = (read_features(hidden, X[r], activation, network.has_skip) for r in row_blocks(len(X)))
    return np.vstack([features @ readout.T for features in blocks])


def reduced_problem(
    layers: Sequence[np.ndarray], samples: Samples, activation: Activation, has_skip: bool
) -> np.ndarray:
    """Features that a layer on top of the given ones reads, and y behind them, times root weights.

    All rows of a block; of more, a triangular factor, which has the same Gram matrix.
    """

    def read(rows: slice) -> np.ndarray:
        features = read_features(layers, samples.X[rows], activation, has_skip)
        root = np.sqrt(samples.sample_weight[rows])[:, None]
        return np.hstack([features, samples.y[rows]]) * root

    first, *others = row_blocks(len(samples.X))
    reduced = read(first)
    for rows in others:
        reduced = np.asarray(np.linalg.qr(np.vstack([reduced, read(rows)]), mode="r"))
    return reduced


def solve_layer(features: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The layer of minimum norm that maps features to targets best: (fan_out, n_features)."""
    root = np.sqrt(weight)[:, None]
    return linalg.lstsq(features * root, targets * root, cond=FEATURE_CONDITION)[0].T.copy()


def solve_readout(
    hidden: Sequence[np.ndarray], samples: Samples, activation: Activation, has_skip: bool
) -> Network:
    """The network with these hidden layers and the least-squares readout."""
    reduced, n_outputs = reduced_problem(hidden, samples, activation, has_skip), samples.y.shape[1]
    features, targets = reduced[:, :-n_outputs], reduced[:, -n_outputs:]
    return Network((*hidden, linalg.lstsq(features, targets, cond=FEATURE_CONDITION)[0].T.copy()))
