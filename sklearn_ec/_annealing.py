"""Finish a network: polish, prune, resolve signs, refine, certify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from ._cache import CACHE_VERSION, Store, digest
from ._certificate import Certificate, certify
from ._pruning import CAP_FACTOR, CAP_FLOOR, POLISH_STEPS, prune, regrow
from ._reconstruction import linear_pairs, resolve_signs, solve_readout, with_skip
from ._training import Trainer
from ._types import Network, Samples

# Steps before the first removal, when steps are most expensive and do least.
FIRST_POLISH_STEPS = 20
# Networks above this relative mean squared error are not worth annealing.
ANNEALING_LOSS = 1e-3
# Below this relative mean squared error a network is refined to the last digit.
REFINEMENT_LOSS = 1e-18


@dataclass(frozen=True)
class Candidate:
    """A finished network and its certificate."""

    network: Network
    certificate: Certificate


class Annealer:
    """Finishes networks: polish, prune, resolve signs, certify. A store remembers the results."""

    def __init__(
        self,
        trainer: Trainer,
        held_out: Samples,
        y_rounding: float,
        prune: bool,
        store: Store | None = None,
    ):
        self.trainer = trainer
        self.held_out = held_out
        self.y_rounding = y_rounding
        self.prune = prune
        self.store = store

    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        return {name: part for name, part in vars(self).items() if name not in ("store", "key")}

    @cached_property
    def key(self) -> str:
        """Digest of the problem and of how it is solved."""
        return digest([CACHE_VERSION, self])

    def solve_readout(self, hidden: Sequence[np.ndarray]) -> Network:
        """The network with these hidden layers, with skip terms where signs are open."""
        trainer = self.trainer
        return solve_readout(hidden, trainer.samples, trainer.activation, trainer.has_skip)

    def finish(self, network: Network, persistent: bool = True) -> Candidate:
        """Polish, prune, resolve signs and certify a network.

        A ``persistent`` attempt grows a deep network again that pruning left in a local minimum.
        """
        if self.store is None:
            return self._finish(network, persistent)
        key = digest(["finish", self.key, network, persistent])
        return self.store.recall(key, partial(self._finish, network, persistent))[0]

    def _finish(self, network: Network, persistent: bool) -> Candidate:
        if self.prune and self.trainer.has_skip:
            network = with_skip(network)
        n_steps = FIRST_POLISH_STEPS if self.prune else POLISH_STEPS
        network, loss = self.trainer.polish(network, n_steps)
        if self.prune and loss < ANNEALING_LOSS:
            network, loss = prune(network, loss, self.trainer)
            if persistent and len(network.widths) > 1:
                network, loss = regrow(network, loss, self.trainer)
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
        """Absorb the skip terms in the signs of the neurons, else in additional neurons."""
        if not network.has_skip:
            return network, loss
        activation = self.trainer.activation
        flipped = self.trainer.polish(resolve_signs(network, activation), POLISH_STEPS)
        if flipped[1] <= max(CAP_FACTOR * loss, CAP_FLOOR):
            return flipped
        return self.trainer.polish(linear_pairs(network, activation), POLISH_STEPS)
