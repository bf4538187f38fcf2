"""Merge neurons that imitate one neuron together.

Wide students approximate a neuron that is nearly linear on the data, or switched on in almost all
rows, by a sum of several that resemble neither it nor each other. Removing them one by one leads
nowhere: what is left ends in a local minimum. Several outputs give them away, since all have the
outgoing weights of the one neuron up to a factor. Here a single neuron is fitted to the sum of what
they contribute, and takes their place.

Of 32 neurons trained on 10,000 MNIST images of a 784-16-10 network of ``g`` neurons, 15 were those
of the network at a loss of 5e-7, and 17 imitated the last, which is on in 93 % of the images.
Merged and polished, the 16 reached 1e-15 in two minutes; single removals ended at 17 neurons and
3e-6 after twenty.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.sparse.csgraph import connected_components

from sklearn_ec._core.distances import unit_rows
from sklearn_ec._core.forward import read_features, solve_readout
from sklearn_ec._core.records import Network
from sklearn_ec._expand.polishing import Polisher


def merged_network(network: Network, polisher: Polisher) -> Network | None:
    """The network with one neuron for all that have parallel outgoing weights.

    It has one hidden layer. None where no set of neurons imitates another one, and with a single
    output, where it does not show.
    """
    settings, samples, (width,) = polisher.settings.imitators, polisher.samples, network.widths
    incoming, outgoing = network.layers[0], network.layers[-1][:, :width]
    features = read_features(network.layers[:-1], samples.X, polisher.activation, False)[:, :width]
    sets = parallel_sets(outgoing, settings.max_angle)
    parts = [joint_contributions(features[:, members], outgoing[:, members]) for members in sets]
    if len(outgoing) == 1 or max(map(unexplained_share, parts)) <= settings.max_unexplained:
        return None
    neurons = [
        _joint_neuron(incoming[members], part, polisher)
        for members, part in zip(sets, parts, strict=True)
    ]
    return solve_readout([np.vstack(neurons)], samples, polisher.activation, network.has_skip)


def parallel_sets(outgoing: np.ndarray, max_angle: float) -> list[np.ndarray]:
    """Neurons whose outgoing weight vectors, the columns, are about parallel or opposite."""
    directions = unit_rows(outgoing.T)
    is_parallel = np.abs(directions @ directions.T) >= np.cos(max_angle)
    n_sets, labels = connected_components(is_parallel, directed=False)
    return [np.flatnonzero(labels == label) for label in range(n_sets)]


def joint_contributions(features: np.ndarray, outgoing: np.ndarray) -> np.ndarray:
    """What neurons add to the outputs along their common direction, centered, one per column."""
    direction = np.linalg.svd(outgoing)[0][:, 0]
    contributions = features * (direction @ outgoing)
    return contributions - contributions.mean(axis=0)


def unexplained_share(contributions: np.ndarray) -> float:
    """Share of the variance of their sum that a multiple of the strongest one leaves."""
    total = contributions.sum(axis=1)
    if not total.any():
        return 0.0
    strongest = contributions[:, np.argmax(contributions.std(axis=0))]
    explained = (strongest @ total) ** 2 / (strongest @ strongest)
    return float(1.0 - explained / (total @ total))


def _joint_neuron(
    incoming: np.ndarray, contributions: np.ndarray, polisher: Polisher
) -> np.ndarray:
    """Incoming vector, shape (1, n_inputs + 1), of the neuron that does most like several."""
    if len(incoming) == 1:
        return incoming
    settings = polisher.settings.imitators
    total = contributions.sum(axis=1, keepdims=True)
    samples = replace(polisher.samples, y=total / (total.std() or 1.0))
    alone = polisher.with_samples(samples)
    strongest = np.argsort(-contributions.std(axis=0))[: settings.n_starts]
    best, unexplained = incoming[strongest[:1]], math.inf
    for neuron in strongest:
        start = solve_readout([incoming[[neuron]]], samples, polisher.activation, polisher.has_skip)
        network, loss = alone.polish(
            start, settings.fit_steps, enough=settings.fit_loss, progress=settings.fit_progress
        )
        if loss < unexplained:
            best, unexplained = network.layers[0], loss
        if unexplained <= settings.max_unexplained:
            break
    return best
