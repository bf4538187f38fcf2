"""Which neurons a network can do without, and what it is without them.

That is decided by backward elimination: the neuron whose removal, with the layers that read it
solved again, raises the loss least. This sees duplicates and linear combinations, which the size of
a neuron's contribution does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.forward import read_features, reduced_problem, solve_layer, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._solvers.jacobian import stacked

from .caps import caution

# Singular values of a layer's features below this share of the largest count as zero.
FEATURE_RCOND = 1e-14
TINY = np.finfo(np.float64).tiny
UNREAD = 1e-200  # mean weight of a neuron that changes no output: some, so that it is solved for


@dataclass(frozen=True)
class Removal:
    """Neurons of one hidden layer that might go, and by how much the squared error would rise."""

    layer: int
    neurons: np.ndarray
    cost: float


def without_spare(network: Network, loss: float, polisher: Polisher) -> Network:
    """A network without neurons that together cost a small share of its loss, unpolished.

    Spare neurons make the equations of a step nearly singular: 200 products instead of 20.
    """
    spare_loss = polisher.settings.prune.spare_share * loss
    for layer, width in enumerate(network.widths):
        removal, *_ = removal_candidates(network, loss, polisher, layer, width - 1, spare_loss)
        if width > 1 and removal.cost <= spare_loss * polisher.samples.n_equations:
            network = without_neurons(network, polisher, removal)
    return network


def narrowed(network: Network, widths: Sequence[int], polisher: Polisher) -> Network:
    """A network of so many neurons in each layer at most: the cheapest go, one by one, polished."""
    n_steps = polisher.settings.prune.removal_steps
    for layer, most in enumerate(widths):
        while network.widths[layer] > most:
            cheapest, *_ = removal_candidates(network, 0.0, polisher, layer, 1)
            network, _ = polisher.polish(without_neurons(network, polisher, cheapest), n_steps)
    return network


def reduced(network: Network, n_neurons: int, polisher: Polisher) -> Network:
    """A network of one hidden layer with so many neurons at most, unpolished."""
    n_removed = network.widths[0] - n_neurons
    if n_removed <= 0:
        return network
    removal, *_ = removal_candidates(network, 0.0, polisher, 0, n_removed, math.inf)
    return without_neurons(network, polisher, removal)


def removal_candidates(
    network: Network,
    loss: float,
    polisher: Polisher,
    layer: int,
    n_removed: int,
    cheap_loss: float | None = None,
) -> list[Removal]:
    """Sets of neurons worth removing, cheapest first: one of several neurons, or a few single ones.

    A set of up to so many is found by backward elimination, one neuron after the other, as long as
    these are clearly to spare, or cost no more than ``cheap_loss`` together.
    """
    problems, settings = _reader_problems(network, polisher, layer), polisher.settings.prune
    neurons = np.arange(network.widths[layer])
    costs = _total_costs(problems, len(neurons))
    order = np.argsort(costs)[: settings.single_tries]
    singles = [Removal(layer, neurons[[i]], float(costs[i])) for i in order]
    if cheap_loss is None:
        cheap_loss = cheap_loss_of(network, loss, polisher)
    cheap_cost = cheap_loss * polisher.samples.n_equations
    removed: list[int] = []
    cost = 0.0
    while len(removed) < n_removed:
        costs = _total_costs(problems, len(neurons))
        cheapest = int(np.argmin(costs))
        if cost + costs[cheapest] > cheap_cost:
            break
        removed.append(neurons[cheapest])
        cost += float(costs[cheapest])
        neurons = np.delete(neurons, cheapest)
        problems = [(np.delete(design, cheapest, axis=1), targets) for design, targets in problems]
    return [Removal(layer, np.array(removed), cost)] if len(removed) > 1 else singles


def without_neurons(network: Network, polisher: Polisher, removal: Removal) -> Network:
    """The network without some neurons; the layers that read them and the readout solved again.

    Or the readout alone, where this is better: what a ReLU neuron reads of a neuron that is on only
    where it is off itself may be there to keep it off, and what replaces that switches it on.
    """
    samples, activation = polisher.samples, polisher.activation
    layers, weights = list(network.layers), _reader_weights(network, polisher, removal.layer)
    layers[removal.layer] = np.delete(layers[removal.layer], removal.neurons, axis=0)
    plain, readers = list(layers), _hidden_readers(network, removal.layer)
    for reader in readers:
        gone = network.columns(reader, removal.layer + 1).start + removal.neurons
        plain[reader] = np.delete(layers[reader], gone, axis=1)
        z = _preactivations(network, reader, samples, activation)
        features = read_features(layers[:reader], samples.X, activation, network.has_skip)
        neurons = zip(z.T, weights[reader].T, strict=True)
        layers[reader] = np.vstack([solve_layer(features, t[:, None], w) for t, w in neurons])
    solved = solve_readout(layers[:-1], samples, activation, network.has_skip)
    if not readers:
        return solved
    unchanged = solve_readout(plain[:-1], samples, activation, network.has_skip)
    stacks = [np.stack(pair) for pair in zip(solved.layers, unchanged.layers, strict=True)]
    return (solved, unchanged)[int(np.argmin(np.nan_to_num(polisher.losses(stacks), nan=np.inf)))]


def cheap_loss_of(
    network: Network, loss: float, polisher: Polisher, is_careful: bool = True
) -> float:
    """Relative loss that removals may add, before a polish, if they are clearly to spare.

    Of large networks, and deep ones whose certificates take long, no more than there is: attempts
    cost minutes, a polish of theirs less, and a neuron of 27-25-25-1 that goes at 6e-7 is missed
    for minutes. Where a polish did not get them to zero, ``is_careful`` is False, and they lose
    all that is worth an attempt. Near zero, where steps or a certificate take long, more than of
    small ones: an attempt costs less than a certificate, or many steps with neurons to spare.
    """
    settings, is_large = polisher.settings, polisher.is_matrix_free(network)
    prune, rounding_loss = settings.prune, polisher.samples.rounding_loss
    takes_long = is_large or network.n_parameters > settings.verdict.max_dense_parameters
    if takes_long and loss <= max(settings.polish.final_loss, rounding_loss):
        return max(prune.cheap_factor * loss, prune.large_cheap_cost)
    if loss <= max(prune.cap_floor, rounding_loss):
        return max(prune.cheap_factor * loss, prune.cap_floor)
    if is_large or (takes_long and len(network.widths) > 1):
        return loss if is_careful else prune.large_factor * loss
    return max(prune.cheap_factor * caution(loss, prune) * loss, prune.cheap_cost)


def _hidden_readers(network: Network, layer: int) -> range:
    """Hidden layers that read the activations of a hidden layer."""
    last = len(network.layers) - 1
    return range(layer + 1, last if network.has_skip else min(layer + 2, last))


def _preactivations(
    network: Network, layer: int, samples: Samples, activation: Activation
) -> np.ndarray:
    below = network.layers[:layer]
    return read_features(below, samples.X, activation, network.has_skip) @ network.layers[layer].T


def _reader_weights(network: Network, polisher: Polisher, layer: int) -> list[np.ndarray]:
    """Weights of the rows for the neurons of each layer, (n_samples, fan_out).

    None where no hidden layer reads the given one. They are what a pre-activation changes at the
    outputs in a row: where a ReLU neuron is off, what it reads may change, as long as it stays off.
    For that, all rows have a share of the mean weight.
    """
    if not _hidden_readers(network, layer):
        return []
    share, weight = polisher.settings.prune.least_row_weight, polisher.samples.sample_weight
    weights = []
    for size in polisher.task.sensitivities(stacked(network, polisher.device)):
        least = share * np.maximum((size**2).mean(axis=0), UNREAD)
        weights.append((size**2 + least) * weight[:, None])
    return weights


def _reader_problems(
    network: Network, polisher: Polisher, layer: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The least-squares problems of what reads a hidden layer: of each neuron, and of the readout.

    The features come as a triangular factor, those of the hidden layer in front. Targets are y for
    the readout, else the pre-activations, in units of what they change at the outputs.
    """
    samples, activation = polisher.samples, polisher.activation
    last, weights = len(network.layers) - 1, _reader_weights(network, polisher, layer)
    problems = []
    for reader in _hidden_readers(network, layer):
        features = read_features(network.layers[:reader], samples.X, activation, network.has_skip)
        z, own = features @ network.layers[reader].T, network.columns(reader, layer + 1)
        for target, weight in zip(z.T, weights[reader].T, strict=True):
            rows = np.column_stack([features, target]) * np.sqrt(weight)[:, None]
            problems.append(_triangular(rows, features.shape[1], own))
    if network.has_skip or layer == last - 1:
        reduced = reduced_problem(network.layers[:last], samples, activation, network.has_skip)
        own, n_features = network.columns(last, layer + 1), network.layers[last].shape[1]
        problems.append(_triangular(reduced, n_features, own))
    return problems


def _triangular(rows: np.ndarray, n_features: int, own: slice) -> tuple[np.ndarray, np.ndarray]:
    """Features and targets of a problem as triangular factors, some of the features in front."""
    features, targets, front = rows[:, :n_features], rows[:, n_features:], np.r_[own]
    design = np.hstack([features[:, front], np.delete(features, front, axis=1), targets])
    triangle = np.asarray(np.linalg.qr(design, mode="r"))[:n_features]
    return triangle[:, :n_features], triangle[:, n_features:]


def _total_costs(problems: list[tuple[np.ndarray, np.ndarray]], n_neurons: int) -> np.ndarray:
    return np.sum([_removal_costs(*problem)[:n_neurons] for problem in problems], axis=0)


def _removal_costs(design: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """By how much the squared error of a least-squares problem rises without each feature.

    With the solution ``B`` and ``C = (ΦᵀΦ)⁻¹`` it is ``‖B_j‖² / C_jj``. Features that are linear
    combinations of others, as those of ReLU neurons without a kink in the data, cost nothing: in
    the null space of ``Φ`` the solution of minimum norm goes with a huge ``C``.
    """
    left, values, right = np.linalg.svd(design, full_matrices=False)
    cutoff = FEATURE_RCOND * values[0]
    inverses = np.where(values > cutoff, 1.0 / np.maximum(values, cutoff), 0.0)
    solution = (right.T * inverses) @ (left.T @ targets)
    covariance = ((right / np.maximum(values, cutoff)[:, None]) ** 2).sum(axis=0)
    with np.errstate(over="ignore"):  # a feature that nothing can replace costs infinitely much
        return (solution**2).sum(axis=1) / np.maximum(covariance, TINY)
