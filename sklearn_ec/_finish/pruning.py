"""Pruning: remove neurons from an over-wide network near zero loss.

Sets of neurons are removed, the rest is polished, and the removal stands if the loss stays below
a cap that is tied to the lowest loss reached so far. Each removal that keeps only neurons of the
sought network makes the loss *fall*, so a student stuck at 1e-8 ends at rounding level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from sklearn_ec._core.records import Network
from sklearn_ec._expand.polishing import Polisher

from .caps import Cap, ExactCap, NoiseCap
from .imitators import merged_network, without_copies
from .removals import Removal, cheap_loss_of, removal_candidates, without_neurons
from .wrong_kinks import with_moved_kinks

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
    is_over = is_corner or polisher.is_near_enough(network.n_parameters, loss)
    if polisher.is_matrix_free(network) and loss > settings.exact_loss and not is_over:
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


def _try_merging(
    network: Network, loss: float, polisher: Polisher, cap: Cap
) -> tuple[Network, float]:
    """One neuron for each that several imitate together, where the loss allows it."""
    merged = merged_network(network, polisher)
    if merged is None and not polisher.has_weak_inputs:
        merged = without_copies(network, polisher)
    if merged is None or merged is network:
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
        sizes = [max(1, min(g, w // 4)) for g, w in zip(sizes, network.widths, strict=True)]
        is_careful = polished is None or _cannot_crawl(network, polisher)
        cheap = cheap_loss_of(network, loss, polisher, is_careful)
        removals = _removals(network, loss, polisher, sizes, resting, cheap)
        least = min((candidates[0].cost for candidates in removals), default=math.inf)
        is_cheap = least <= cheap * polisher.samples.n_equations
        if is_final and not is_cheap and network is not polished:
            if loss > exact_loss:
                enough = _next_part(network, loss, polisher)
                network, loss = _polished_to_the_end(network, polisher, cap, enough)
                cap.update(network, loss)
                yield network, loss
                if loss <= max(enough, exact_loss):
                    continue  # what was not cheap before may be now
            elif is_final(network, loss):
                return
            polished = network
            continue
        is_corner = network is polished and not is_cheap and _cannot_crawl(network, polisher)
        if is_corner or not removals:
            return
        for candidates in removals:
            smaller = _try_removals(network, loss, polisher, candidates, cap)
            if smaller is not None:
                network, loss = smaller
                cap.update(network, loss)
                yield network, loss
                break
            layer, n_tried = candidates[0].layer, len(candidates[0].neurons)
            if n_tried == 1:
                resting[layer] = sum(network.widths)
            sizes[layer] = n_tried // 2


def _removals(
    network: Network,
    loss: float,
    polisher: Polisher,
    sizes: list[int],
    resting: dict[int, int],
    cheap_loss: float,
) -> list[list[Removal]]:
    """What may go of each layer that does not rest: sets first, then the cheapest neurons."""
    n_neurons = sum(network.widths)
    removals = [
        removal_candidates(network, loss, polisher, layer, sizes[layer], cheap_loss)
        for layer, width in enumerate(network.widths)
        if width > 1 and resting.get(layer, math.inf) > n_neurons
    ]
    return sorted(removals, key=lambda c: (len(c[0].neurons) == 1, c[0].cost))


def _cannot_crawl(network: Network, polisher: Polisher) -> bool:
    """Whether a network that a polish to the end does not bring to zero has too few neurons.

    So it is with large ones of one hidden layer, unless inputs hardly vary in some directions,
    along which steps crawl. Removals that cost more than the loss never stood: 31 of 32 ReLU
    neurons on 784 inputs lost six in a minute, and more in the next.
    """
    is_shallow = len(network.widths) == 1
    return is_shallow and polisher.is_matrix_free(network) and not polisher.has_weak_inputs


def _may_have_wrong_kinks(network: Network, polisher: Polisher) -> bool:
    """Whether a large network has kinks that few rows tell about, and outputs that tell neurons."""
    has_kinks = polisher.activation.homogeneous and len(network.widths) == 1
    has_several_outputs = polisher.samples.y.shape[1] > 1
    is_large = polisher.is_matrix_free(network) and polisher.has_weak_inputs
    return has_kinks and has_several_outputs and is_large


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
        cheap = cheap_loss_of(network, loss, polisher, is_careful=False)
        worth_trying = (settings.spare_cost if is_exact else cheap) * polisher.samples.n_equations
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
    is_hasty = _cannot_crawl(network, polisher) and enough > polisher.settings.polish.final_loss
    return polisher.polish(network, cap.n_steps, target, enough, progress, is_hasty)


def _polished_to_the_end(
    network: Network, polisher: Polisher, cap: Cap, enough: float
) -> tuple[Network, float]:
    """A network polished as far as it goes, unless it crawls, or until a loss that is enough."""
    settings = polisher.settings
    if _cannot_crawl(network, polisher):
        progress = settings.polish.hasty_progress
    elif polisher.is_matrix_free(network):
        progress = settings.prune.large_final_progress
    else:
        progress = settings.prune.final_progress
    if _may_have_wrong_kinks(network, polisher):
        pace = min(progress, settings.wrong_kinks.progress)
        network, loss = _polished(network, polisher, cap, enough=enough, progress=pace)
        network, loss = with_moved_kinks(network, loss, polisher)
    return _polished(network, polisher, cap, enough=enough, progress=progress)


def _next_part(network: Network, loss: float, polisher: Polisher) -> float:
    """The loss at which a large network may have cheap neurons that it had not before."""
    settings = polisher.settings.prune
    part = settings.large_part * loss
    return part if polisher.is_matrix_free(network) and part > settings.exact_loss else 0.0


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


def unstick(network: Network, loss: float, polisher: Polisher) -> Network:
    """Lead a pruned large network out of a corner: settle it more and more, polish, prune again."""
    settings = polisher.settings.prune
    for shrinkage in settings.settling:
        if loss < max(settings.exact_loss, polisher.samples.rounding_loss):
            break
        settled = polisher.polish(polisher.settled(network, shrinkage), settings.settling_steps)
        if settled[1] < settings.settling_progress * loss:
            network, loss = prune(*settled, polisher)
    return network
