"""The canonical form of a network: order, scale and sign of its neurons."""

from __future__ import annotations

import numpy as np

from .activations import Activation
from .records import Network


def canonical_network(network: Network, activation: Activation) -> Network:
    """A network without skip terms in its canonical form."""
    weights = [layer[:, :-1].T for layer in network.layers]
    biases = [layer[:, -1] for layer in network.layers]
    pairs = zip(*canonical_form(weights, biases, activation), strict=True)
    return Network(tuple(np.column_stack([w.T, b]) for w, b in pairs))


def canonical_form(
    weights: list[np.ndarray], biases: list[np.ndarray], activation: Activation
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Fix what the data leave open: order, scale and sign of the hidden neurons.

    Homogeneous activations get incoming vectors ``[w; b]`` of unit length, from the first layer up;
    odd ones get the sign that makes the largest outgoing weight positive; neurons are sorted by
    decreasing norm of their outgoing weights, both from the last layer down.
    """
    weights, biases = [w.copy() for w in weights], [b.copy() for b in biases]
    n_hidden = len(weights) - 1
    for layer in range(n_hidden if activation.homogeneous else 0):
        norms = np.linalg.norm(np.vstack([weights[layer], biases[layer]]), axis=0)
        norms = np.where(norms > 0, norms, 1.0)
        weights[layer] /= norms
        biases[layer] /= norms
        weights[layer + 1] *= norms[:, None]
    for layer in reversed(range(n_hidden)):
        outgoing = weights[layer + 1]
        if activation.symmetry == "odd" and outgoing.size:
            largest = np.argmax(np.abs(outgoing), axis=1)
            signs = np.where(outgoing[np.arange(len(outgoing)), largest] < 0, -1.0, 1.0)
            biases[layer + 1] += activation.flip * outgoing[signs < 0].sum(axis=0)
            outgoing *= signs[:, None]
            weights[layer] *= signs
            biases[layer] *= signs
        order = np.argsort(-np.linalg.norm(outgoing, axis=1), kind="stable")
        weights[layer + 1] = outgoing[order]
        weights[layer], biases[layer] = weights[layer][:, order], biases[layer][order]
    return weights, biases
