"""Pruning: remove neurons from an over-wide network near zero loss.

Sets of neurons are removed, the rest is polished, and the removal stands if the loss stays below
a cap that is tied to the lowest loss reached so far. Each removal that keeps only neurons of the
sought network makes the loss *fall*, so a student stuck at 1e-8 ends at rounding level.

Which neurons go is decided by backward elimination: the neuron whose removal, with the layers that
read it solved again, raises the loss least. This sees duplicates and linear combinations, which the
size of a neuron's contribution does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.forward import read_features, solve_layer, solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Noise, Prune, Settings
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._solvers.jacobian import stacked

from .imitators import merged_network

# Singular values of a layer's features below this share of the largest count as zero.
FEATURE_RCOND = 1e-14
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Removal:
    """Neurons of one hidden layer that might go, and by how much the squared error would rise."""

    layer: int
    neurons: np.ndarray
    cost: float


class ExactCap:
    """The loss allowed after a removal where the data are exact.

    That is ten times the lowest so far, less where this is far from zero, the lowest itself for
    large networks, and no more than rounding once this is reached. Networks need not be polished
    further than the lowest.
    """

    def __init__(
        self, loss: float, rounding_loss: float, settings: Settings, is_large: bool = False
    ):
        self.n_steps = settings.prune.removal_steps
        self.progress = settings.polish.progress
        self.settings = settings.prune
        self.rounding_loss = rounding_loss
        self.lowest = loss
        self.is_large = is_large

    def most_steps(self, network: Network) -> float:
        return self.settings.path_steps + self.settings.path_steps_per_neuron * sum(network.widths)

    def allowed(self, network: Network) -> float:
        if self.lowest <= self.rounding_loss:
            return max(self.rounding_loss, self.settings.cap_floor)
        factor = 1.0 if self.is_large else self.settings.cap_factor
        factor *= _caution(self.lowest, self.settings)
        return max(factor * self.lowest, self.settings.cap_floor)

    def enough(self, network: Network, n_removed: int) -> float:
        lowest = max(self.lowest, self.rounding_loss, self.settings.cap_floor)
        return min(lowest, self.allowed(network))

    def update(self, network: Network, loss: float) -> None:
        self.lowest = min(self.lowest, loss)


class NoiseCap:
    """The loss allowed after a removal where the data are noisy.

    The Bayesian information criterion ``N ln(loss) + P ln(N)``, with ``N`` equations and ``P``
    parameters, must not rise above the lowest so far.
    """

    def __init__(self, network: Network, loss: float, n_equations: int, settings: Noise):
        self.n_steps = settings.polish_steps
        self.progress = settings.progress
        self.floor = settings.floor
        self.n_equations = n_equations
        self.path_steps = settings.path_steps
        self.lowest = self._criterion(network, loss)

    def most_steps(self, network: Network) -> float:
        return self.path_steps

    def allowed(self, network: Network) -> float:
        price = network.n_parameters * math.log(self.n_equations)
        return max(math.exp((self.lowest - price) / self.n_equations), self.floor)

    def enough(self, network: Network, n_removed: int) -> float:
        return self.allowed(network) if n_removed > 1 else 0.0

    def update(self, network: Network, loss: float) -> None:
        self.lowest = min(self.lowest, self._criterion(network, loss))

    def _criterion(self, network: Network, loss: float) -> float:
        fit = self.n_equations * math.log(max(loss, self.floor))
        return fit + network.n_parameters * math.log(self.n_equations)


Cap = ExactCap | NoiseCap
IsFinal = Callable[[Network, float], bool]


def prune(
    network: Network, loss: float, polisher: Polisher, is_final: IsFinal | None = None
) -> tuple[Network, float]:
    """Remove neurons as long as the loss allows it, on data without noise.

    ``is_final`` says of exact networks, where the next removal would cost much, whether they have
    no neuron to spare.
    """
    settings = polisher.settings.prune
    is_shallow = len(network.widths) == 1
    is_large = is_shallow and polisher.is_matrix_free(network)
    cap = ExactCap(loss, polisher.samples.rounding_loss, polisher.settings, is_large)
    if is_large:
        network, loss = _try_merging(network, loss, polisher, cap)
    last_step = polisher.n_steps + cap.most_steps(network)
    *path, (network, loss) = pruning_path(network, loss, polisher, cap, is_final)
    while polisher.n_steps < last_step and (again := _retraced(path, network, loss, polisher)):
        cap = ExactCap(again[1], polisher.samples.rounding_loss, polisher.settings)
        last_step = polisher.n_steps + cap.most_steps(again[0])
        *path, (smaller, smaller_loss) = pruning_path(*again, polisher, cap, is_final)
        if smaller_loss > settings.retrace_share * loss:
            break
        network, loss = smaller, smaller_loss
    if not is_shallow:
        return polisher.polish(network, settings.polish_steps)
    is_corner = is_final is not None and _cannot_crawl(network, polisher)
    if polisher.is_matrix_free(network) and loss > settings.exact_loss and not is_corner:
        network, loss = polisher.polish(
            network, settings.polish_steps, progress=settings.large_progress
        )
        if loss <= settings.exact_loss:  # what is to spare now costs nothing
            cap = ExactCap(loss, polisher.samples.rounding_loss, polisher.settings)
            *_, (network, loss) = pruning_path(network, loss, polisher, cap, is_final)
    return network, loss


def _retraced(
    path: list[tuple[Network, float]], network: Network, loss: float, polisher: Polisher
) -> tuple[Network, float] | None:
    """The way out of a corner: an earlier network of the path, with spare neurons, polished far.

    None where the network is exact or large, or has more than half of the neurons that the path
    began with, or where the earlier one does hardly better.
    """
    settings = polisher.settings.prune
    exact_loss = max(settings.cap_floor, polisher.samples.rounding_loss)
    limit = settings.retrace_width * sum(network.widths)
    wider = [earlier for earlier, _ in path if sum(earlier.widths) > limit]
    if loss <= exact_loss or not wider or polisher.is_matrix_free(wider[-1]):
        return None
    again = polisher.polish(wider[-1], settings.polish_steps)
    return again if again[1] < settings.retrace_share * loss else None


def without_spare(network: Network, loss: float, polisher: Polisher) -> Network:
    """A network without neurons that together cost a small share of its loss, unpolished.

    Spare neurons make the equations of a step nearly singular: 200 products instead of 20.
    """
    for layer, width in enumerate(network.widths):
        removal, *_ = removal_candidates(
            network, loss, polisher, layer, width - 1, polisher.settings.prune.spare_share * loss
        )
        if len(removal.neurons) > 1:
            network = without_neurons(network, polisher, removal)
    return network


def reduced(network: Network, n_neurons: int, polisher: Polisher) -> Network:
    """A network of one hidden layer with so many neurons at most, unpolished."""
    n_removed = network.widths[0] - n_neurons
    if n_removed <= 0:
        return network
    removal, *_ = removal_candidates(network, 0.0, polisher, 0, n_removed, math.inf)
    return without_neurons(network, polisher, removal)


def _try_merging(
    network: Network, loss: float, polisher: Polisher, cap: Cap
) -> tuple[Network, float]:
    """One neuron for each that several imitate together, where the loss allows it."""
    merged = merged_network(network, polisher)
    if merged is None:
        return network, loss
    settings, allowed = polisher.settings.prune, cap.allowed(merged)
    enough = cap.enough(merged, sum(network.widths) - sum(merged.widths))
    polished = polisher.polish(
        merged, settings.removal_steps, allowed, enough, settings.large_progress
    )
    if polished[1] > allowed:
        return network, loss
    cap.update(*polished)
    return polished


def pruning_path(
    network: Network,
    loss: float,
    polisher: Polisher,
    cap: Cap,
    is_final: IsFinal | None = None,
) -> Iterator[tuple[Network, float]]:
    """Smaller and smaller networks and their losses, the given one first.

    Sets of up to a quarter of a layer are tried before single neurons, the cheapest over all
    layers first. A layer rests once no single neuron could be removed, until other layers are
    smaller than they were then. Where the next removal is not cheap, or none is left, the network
    is polished to the end; if it is exact and ``is_final`` then, this is the last one. Far from
    that the path ends where it took more steps than paths to networks do.
    """
    yield network, loss
    watch, polished = polisher.watch, None
    settings, last_step = polisher.settings.prune, polisher.n_steps + cap.most_steps(network)
    exact_loss = max(settings.cap_floor, polisher.samples.rounding_loss)
    sizes = list(network.widths)
    resting: dict[int, int] = {}  # layer: number of neurons in the network when it came to rest
    while loss <= exact_loss or polisher.n_steps < last_step:
        watch.say(f"pruning, widths {network.widths}, loss {loss:.1e}")
        n_neurons = sum(network.widths)
        sizes = [max(1, min(g, w // 4)) for g, w in zip(sizes, network.widths, strict=True)]
        is_careful = polished is None or _cannot_crawl(network, polisher)
        cheap = _cheap_loss(network, loss, polisher, is_careful)
        removals = [
            removal_candidates(network, loss, polisher, layer, sizes[layer], cheap)
            for layer, width in enumerate(network.widths)
            if width > 1 and resting.get(layer, math.inf) > n_neurons
        ]
        least = min((candidates[0].cost for candidates in removals), default=math.inf)
        is_cheap = least <= cheap * polisher.samples.n_equations
        if is_final and not is_cheap and network is not polished:
            if loss > exact_loss:
                network, loss = _polished_to_the_end(network, polisher, cap)
                cap.update(network, loss)
                yield network, loss
                if loss <= exact_loss:
                    continue  # what was not cheap before may be now
            elif is_final(network, loss):
                return
            polished = network
            continue
        is_corner = network is polished and not is_cheap and _cannot_crawl(network, polisher)
        if is_corner or not removals:
            return
        for candidates in sorted(removals, key=lambda c: (len(c[0].neurons) == 1, c[0].cost)):
            smaller = _try_removals(network, loss, polisher, candidates, cap)
            if smaller is not None:
                network, loss = smaller
                cap.update(network, loss)
                yield network, loss
                break
            layer, n_tried = candidates[0].layer, len(candidates[0].neurons)
            if n_tried == 1:
                resting[layer] = n_neurons
            sizes[layer] = n_tried // 2


def _cannot_crawl(network: Network, polisher: Polisher) -> bool:
    """Whether a network that a polish to the end does not bring to zero has too few neurons.

    So it is with large ones of one hidden layer, unless inputs hardly vary in some directions,
    along which steps crawl. Removals that cost more than the loss never stood: 31 of 32 ReLU
    neurons on 784 inputs lost six in a minute, and more in the next.
    """
    is_shallow = len(network.widths) == 1
    return is_shallow and polisher.is_matrix_free(network) and not polisher.has_weak_inputs


def _try_removals(
    network: Network, loss: float, polisher: Polisher, candidates: list[Removal], cap: Cap
) -> tuple[Network, float] | None:
    """The first removal that stands, polished.

    Networks are polished only as far as the loss was before: steps cost most while there are many
    neurons, and get further with fewer. On noisy data, no network with spare neurons needs more
    than what is allowed.
    """
    settings = polisher.settings.prune
    is_noisy = isinstance(cap, NoiseCap)
    rounding_loss = 0.0 if is_noisy else polisher.samples.rounding_loss
    if polisher.is_matrix_free(network):
        is_exact = loss < max(settings.exact_loss, rounding_loss)
        limit = settings.spare_cost if is_exact else settings.large_factor * loss
        worth_trying = limit * polisher.samples.n_equations
        candidates = [removal for removal in candidates if removal.cost <= worth_trying]
    for removal in candidates:
        smaller = without_neurons(network, polisher, removal)
        allowed = cap.allowed(smaller)
        enough = cap.enough(smaller, len(removal.neurons))
        smaller, loss = _polished(smaller, polisher, cap, target=allowed, enough=enough)
        if loss <= allowed:
            return smaller, loss
    return None


def _polished(
    network: Network,
    polisher: Polisher,
    cap: Cap,
    target: float = math.inf,
    enough: float = 0.0,
    progress: float | None = None,
) -> tuple[Network, float]:
    """A network polished as far as it pays while neurons are removed."""
    progress = cap.progress if progress is None else progress
    if polisher.is_matrix_free(network):
        progress = min(progress, polisher.settings.prune.large_progress)
    return polisher.polish(network, cap.n_steps, target, enough, progress)


def _polished_to_the_end(network: Network, polisher: Polisher, cap: Cap) -> tuple[Network, float]:
    """A network polished as far as it goes, unless it crawls."""
    settings, is_large = polisher.settings.prune, polisher.is_matrix_free(network)
    progress = settings.large_final_progress if is_large else settings.final_progress
    return _polished(network, polisher, cap, progress=progress)


def _cheap_loss(
    network: Network, loss: float, polisher: Polisher, is_careful: bool = True
) -> float:
    """Relative loss that removals may add, before a polish, if they are clearly to spare.

    Of large networks no more than there is: attempts cost minutes, a polish of theirs less. Where
    that did not get them to zero, ``is_careful`` is False, and they lose all that is worth an
    attempt. Of exact ones, more than of small ones: an attempt costs less than a certificate.
    """
    settings = polisher.settings.prune
    if loss <= max(settings.cap_floor, polisher.samples.rounding_loss):
        is_large = polisher.is_matrix_free(network)
        floor = settings.large_cheap_cost if is_large else settings.cap_floor
        cheap = max(settings.cheap_factor * loss, floor)
    elif polisher.is_matrix_free(network):
        cheap = loss if is_careful else settings.large_factor * loss
    else:
        factor = settings.cheap_factor * _caution(loss, settings)
        cheap = max(factor * loss, settings.cheap_cost)
    return cheap


def _caution(loss: float, settings: Prune) -> float:
    """The share of what removals may cost elsewhere, where a network is far from zero."""
    return settings.far_share if loss > settings.far_loss else 1.0


def cheapest_removal(
    network: Network, loss: float, polisher: Polisher
) -> tuple[Network, float] | None:
    """The best polished network with one neuron less; None where each layer has but one."""
    n_tries, settings = polisher.settings.prune.single_tries, polisher.settings.noise
    removals = [
        removal
        for layer, width in enumerate(network.widths)
        if width > 1
        for removal in removal_candidates(network, loss, polisher, layer, 1)
    ]
    cheapest = sorted(removals, key=lambda removal: removal.cost)[:n_tries]
    if not cheapest:
        return None
    smaller = [without_neurons(network, polisher, removal) for removal in cheapest]
    polished = polisher.polish_alternatives(smaller, settings.polish_steps, settings.progress)
    return min(polished, key=lambda candidate: candidate[1])


def unstick(network: Network, loss: float, polisher: Polisher) -> tuple[Network, float]:
    """Lead a pruned large network out of a corner: settle it more and more, polish, prune again."""
    settings = polisher.settings.prune
    for shrinkage in settings.settling:
        if loss < max(settings.exact_loss, polisher.samples.rounding_loss):
            break
        if polisher.least_variance > shrinkage:
            continue
        settled = polisher.polish(polisher.settled(network, shrinkage), settings.settling_steps)
        if settled[1] < settings.settling_progress * loss:
            network, loss = prune(*settled, polisher)
    return network, loss


def without_neurons(network: Network, polisher: Polisher, removal: Removal) -> Network:
    """The network without some neurons; the layers that read them and the readout solved again."""
    samples, activation = polisher.samples, polisher.activation
    layers = list(network.layers)
    layers[removal.layer] = np.delete(layers[removal.layer], removal.neurons, axis=0)
    for reader in _hidden_readers(network, removal.layer):
        z = _preactivations(network, reader, samples, activation)
        features = read_features(layers[:reader], samples.X, activation, network.has_skip)
        layers[reader] = solve_layer(features, z, samples.sample_weight)
    return solve_readout(layers[:-1], samples, activation, network.has_skip)


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
        cheap_loss = _cheap_loss(network, loss, polisher)
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


def _hidden_readers(network: Network, layer: int) -> range:
    """Hidden layers that read the activations of a hidden layer."""
    last = len(network.layers) - 1
    return range(layer + 1, last if network.has_skip else min(layer + 2, last))


def _preactivations(
    network: Network, layer: int, samples: Samples, activation: Activation
) -> np.ndarray:
    below = network.layers[:layer]
    return read_features(below, samples.X, activation, network.has_skip) @ network.layers[layer].T


def _reader_problems(
    network: Network, polisher: Polisher, layer: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The least-squares problems of the layers that read a hidden layer.

    The features come as a triangular factor, those of the hidden layer in front. Targets are y for
    the readout, else the pre-activations, in units of what they change at the outputs.
    """
    samples, activation = polisher.samples, polisher.activation
    root = np.sqrt(samples.sample_weight)[:, None]
    last = len(network.layers) - 1
    readers = list(_hidden_readers(network, layer))
    if network.has_skip or layer == last - 1:
        readers.append(last)
    sensitivities = (
        polisher.task.sensitivities(stacked(network, polisher.device)) if last > 1 else []
    )
    problems = []
    for reader in readers:
        below = network.layers[:reader]
        features = read_features(below, samples.X, activation, network.has_skip)
        own = np.r_[network.columns(reader, layer + 1)]
        design = np.hstack([features[:, own], np.delete(features, own, axis=1)]) * root
        if reader == last:
            targets = samples.y * root
        else:
            targets = features @ network.layers[reader].T * root * sensitivities[reader]
        n_features = design.shape[1]
        triangle = np.asarray(np.linalg.qr(np.hstack([design, targets]), mode="r"))[:n_features]
        problems.append((triangle[:, :n_features], triangle[:, n_features:]))
    return problems


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
