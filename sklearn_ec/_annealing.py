"""Annealed pruning: turn an over-wide network near zero loss into the exact one.

Groups of neurons are removed, the rest is polished, and the removal stands if the loss stays below
a cap that is tied to the lowest loss reached so far. Each removal that keeps only neurons of the
sought network makes the loss *fall*, so a student stuck at 1e-8 ends at rounding level.

Which neurons go is decided by backward elimination: the neuron whose removal, with the readout
solved again, raises the loss least. This sees duplicates and linear combinations, which the size of
a neuron's contribution does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._activations import Activation
from ._certificate import Certificate, certify
from ._reconstruction import design_matrix, linear_pairs, resolve_signs, solve_readout
from ._training import Trainer
from ._types import Network, Samples

POLISH_STEPS = 1000
# Steps before the first removal, when steps are most expensive and do least.
FIRST_POLISH_STEPS = 20
# Networks above this relative mean squared error are not worth annealing.
ANNEALING_LOSS = 1e-3
# Below this relative mean squared error a network is refined to the last digit.
REFINEMENT_LOSS = 1e-18
# A removal stands while the loss is at most this factor above the lowest loss so far.
CAP_FACTOR = 10.0
# Losses below this are rounding, equally good.
CAP_FLOOR = 1e-24
# Single removals tried before a width is accepted as the smallest.
SINGLE_TRIES = 3
# Singular values of the readout's design matrix below this share of the largest count as zero.
READOUT_RCOND = 1e-14
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Candidate:
    """A finished network and its certificate."""

    network: Network
    certificate: Certificate


class Annealer:
    """Finishes networks: polish, prune, resolve signs, certify."""

    def __init__(self, trainer: Trainer, held_out: Samples, y_rounding: float, prune: bool):
        self.trainer = trainer
        self.held_out = held_out
        self.y_rounding = y_rounding
        self.prune = prune

    def solve_readout(self, hidden: np.ndarray) -> Network:
        """The network with these hidden neurons, with a skip term where signs are open."""
        trainer = self.trainer
        return solve_readout(hidden, trainer.samples, trainer.activation, trainer.has_skip)

    def finish(self, network: Network) -> Candidate:
        """Polish, prune, resolve signs and certify a network."""
        n_steps = FIRST_POLISH_STEPS if self.prune else POLISH_STEPS
        network, loss = self.trainer.polish(network, n_steps)
        if self.prune and loss < ANNEALING_LOSS:
            network, loss = prune(network, loss, self.trainer)
        network, loss = self._without_skip(network, loss)
        if loss < REFINEMENT_LOSS:
            network, loss = self.trainer.refine(network, loss)
        return self._judge(network)

    def judge_as_is(self, network: Network) -> Candidate:
        """Certify a network without changing the function that it computes."""
        return self._judge(linear_pairs(network, self.trainer.activation))

    def _judge(self, network: Network) -> Candidate:
        return Candidate(network, certify(network, self.trainer, self.held_out, self.y_rounding))

    def _without_skip(self, network: Network, loss: float) -> tuple[Network, float]:
        """Absorb the skip term in the signs of the neurons, else in additional neurons."""
        if not network.skip.size:
            return network, loss
        activation = self.trainer.activation
        flipped = self.trainer.polish(resolve_signs(network, activation), POLISH_STEPS)
        if flipped[1] <= max(CAP_FACTOR * loss, CAP_FLOOR):
            return flipped
        return self.trainer.polish(linear_pairs(network, activation), POLISH_STEPS)


def prune(network: Network, loss: float, trainer: Trainer) -> tuple[Network, float]:
    """Remove neurons in groups of up to a quarter of the layer, as long as the loss allows it."""
    cap = max(CAP_FACTOR * loss, CAP_FLOOR)
    group = max(1, network.width // 4)
    while network.width > 1:
        group = min(group, max(1, network.width // 4))
        smaller = _try_removals(network, trainer, group, cap)
        if smaller is not None:
            network, loss = smaller
            cap = min(cap, max(CAP_FACTOR * loss, CAP_FLOOR))
        elif group == 1:
            break
        else:
            group //= 2
    return network, loss


def _try_removals(
    network: Network, trainer: Trainer, group: int, cap: float
) -> tuple[Network, float] | None:
    samples, activation = trainer.samples, trainer.activation
    for removed in removal_candidates(network, samples, activation, group):
        hidden = np.delete(network.hidden, removed, axis=0)
        start = solve_readout(hidden, samples, activation, bool(network.skip.size))
        smaller, loss = trainer.polish(start, POLISH_STEPS, target=cap)
        if loss <= cap:
            return smaller, loss
    return None


def removal_candidates(
    network: Network, samples: Samples, activation: Activation, group: int
) -> list[np.ndarray]:
    """Sets of neurons worth removing, cheapest first: one group, or a few single neurons.

    A group is found by backward elimination, one neuron after the other.
    """
    design = design_matrix(network.hidden, samples, activation, bool(network.skip.size))
    targets = samples.y * np.sqrt(samples.sample_weight)[:, None]
    basis, design = np.linalg.qr(design)
    targets = basis.T @ targets
    neurons = np.arange(network.width)
    if group == 1:
        costs = _removal_costs(design, targets)[: network.width]
        return [neurons[[i]] for i in np.argsort(costs)[:SINGLE_TRIES]]
    removed = []
    for _ in range(group):
        cheapest = int(np.argmin(_removal_costs(design, targets)[: len(neurons)]))
        removed.append(neurons[cheapest])
        neurons, design = np.delete(neurons, cheapest), np.delete(design, cheapest, axis=1)
    return [np.array(removed)]


def _removal_costs(design: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """By how much the squared error of a least-squares problem rises without each feature.

    With the readout ``B`` and ``C = (ΦᵀΦ)⁻¹`` it is ``‖B_j‖² / C_jj``. Features that are linear
    combinations of others, as those of ReLU neurons without a kink in the data, cost nothing: in
    the null space of ``Φ`` the readout of minimum norm goes with a huge ``C``.
    """
    left, values, right = np.linalg.svd(design, full_matrices=False)
    cutoff = READOUT_RCOND * values[0]
    inverses = np.where(values > cutoff, 1.0 / np.maximum(values, cutoff), 0.0)
    readout = (right.T * inverses) @ (left.T @ targets)
    covariance = ((right / np.maximum(values, cutoff)[:, None]) ** 2).sum(axis=0)
    with np.errstate(over="ignore"):  # a feature that nothing can replace costs infinitely much
        return (readout**2).sum(axis=1) / np.maximum(covariance, TINY)
