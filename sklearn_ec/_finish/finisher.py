"""Finish a network: polish, prune, resolve signs, refine, certify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from sklearn_ec._certify.certificate import Certificate, certify
from sklearn_ec._core.coordinates import Coordinates
from sklearn_ec._core.forward import solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Settings
from sklearn_ec._core.signs import linear_pairs, resolve_signs, with_skip
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._io.cache import CACHE_VERSION, Store, digest

from .noisy import one_standard_error_bound, smallest_network, squared_errors
from .pruning import Cap, ExactCap, NoiseCap, prune, pruning_path, unstick


@dataclass(frozen=True)
class Candidate:
    """A finished network and its certificate."""

    network: Network
    certificate: Certificate


class Finisher:
    """Finishes networks: polish, prune, resolve signs, certify. A store remembers the results."""

    def __init__(
        self,
        polisher: Polisher,
        held_out: Samples,
        coordinates: Coordinates,
        prune: bool,
        store: Store | None = None,
    ):
        self.polisher = polisher
        self.held_out = held_out
        self.coordinates = coordinates
        self.prune = prune
        self.store = store

    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        return {name: part for name, part in vars(self).items() if name not in ("store", "key")}

    @property
    def settings(self) -> Settings:
        return self.polisher.settings

    @cached_property
    def key(self) -> str:
        """Digest of the problem and of how it is solved."""
        return digest([CACHE_VERSION, self])

    def solve_readout(self, hidden: Sequence[np.ndarray]) -> Network:
        """The network with these hidden layers, with skip terms where signs are open."""
        polisher = self.polisher
        return solve_readout(hidden, polisher.samples, polisher.activation, polisher.has_skip)

    def finish(self, network: Network) -> Candidate:
        """Polish, prune, resolve signs and certify a network.

        Large ones that pruning left in a local minimum are settled.
        """
        return self._recall("finish", self._finish, network)

    def _finish(self, network: Network) -> Candidate:
        settings = self.settings
        self.polisher.watch.say(f"polishing, widths {network.widths}")
        if self.prune and self.polisher.has_skip:
            network = with_skip(network)
        is_large = self.prune and self.polisher.is_matrix_free(network)
        network, loss = self._polished(network, is_large)
        if self.prune and loss < settings.finish.worthwhile_loss:
            network, loss = prune(network, loss, self.polisher)
            if is_large and len(network.widths) == 1:
                network, loss = unstick(network, loss, self.polisher)
        rounding_loss = self.polisher.samples.rounding_loss
        cap = ExactCap(loss, rounding_loss, settings)
        network, loss = self._without_skip(network, loss, cap)
        if rounding_loss:
            network, loss = self.polisher.polish(network, settings.prune.polish_steps)
        if loss < max(settings.finish.refinement_loss, rounding_loss):
            network, loss = self.polisher.refine(network, loss)
        candidate = self._judge(network)
        certificate = candidate.certificate
        if is_large and certificate.fits_exactly and not certificate.is_exact:
            return self._with_held_out_rows(candidate)
        return candidate

    def _polished(self, network: Network, is_large: bool) -> tuple[Network, float]:
        """A network before its pruning: large ones only far enough for it, settled if need be."""
        polisher, settings = self.polisher, self.settings.finish
        n_steps = settings.first_polish_steps if self.prune else self.settings.prune.polish_steps
        enough = settings.first_polish_loss if is_large else 0.0
        network, loss = polisher.polish(network, n_steps, enough=enough)
        if is_large and loss > settings.first_polish_loss:
            network, loss = polisher.polish(polisher.settled(network), n_steps, enough=enough)
        return network, loss

    def _with_held_out_rows(self, candidate: Candidate) -> Candidate:
        """Train a network that is exact on all other rows on the held-out ones too.

        They decide what the others leave open, as on which side of a kink a row lies. If they can
        be fitted as well, the network counts as exact. No row is left to test it, so that it is not
        certified.
        """
        error = candidate.certificate.held_out_error
        polisher = self.polisher.with_samples(self.polisher.samples.joined(self.held_out))
        network, _ = polisher.polish(candidate.network, self.settings.prune.large_polish_steps)
        certificate = certify(
            network,
            polisher.task,
            polisher.samples,
            self.held_out,
            self.coordinates,
            self.settings.verdict,
            untested=f"the relative error on held-out rows was {error:.1e} before they joined the "
            "training, and none are left to test the network",
        )
        return Candidate(network, certificate) if certificate.is_exact else candidate

    def denoise(self, network: Network) -> Candidate:
        """The smallest network that fits noisy data about as well.

        See :mod:`sklearn_ec._finish.noisy`.
        """
        return self._recall("denoise", self._denoise, network)

    def _recall(
        self, step: str, compute: Callable[[Network], Candidate], network: Network
    ) -> Candidate:
        """The result of a step, remembered where there is a store."""
        if self.store is None:
            return compute(network)
        key = digest([step, self.key, network])
        return self.store.recall(key, partial(compute, network))[0]

    def _denoise(self, network: Network) -> Candidate:
        polisher, settings = self.polisher, self.settings
        if polisher.has_skip:
            network = with_skip(network)
        network, loss = polisher.polish(network, settings.noise.polish_steps)
        network, loss = smallest_network(network, loss, polisher, self.held_out)
        cap = NoiseCap(network, loss, polisher.samples.n_equations, settings.noise)
        network, loss = self._without_skip(network, loss, cap)
        network, _ = polisher.polish(
            network, settings.prune.polish_steps, progress=settings.noise.final_progress
        )
        return self._judge(network)

    def judge_as_is(self, network: Network) -> Candidate:
        """Certify a network without changing the function that it computes."""
        return self._judge(linear_pairs(network, self.polisher.activation))

    def most_parsimonious(self, candidates: Sequence[Candidate]) -> Candidate:
        """The smallest network whose held-out error is within one standard error of the lowest."""
        activation = self.polisher.activation
        errors = [squared_errors(c.network, self.held_out, activation) for c in candidates]
        bound = one_standard_error_bound(errors)
        good = [c for c, e in zip(candidates, errors, strict=True) if e.mean() <= bound]
        return min(good, key=lambda c: (c.network.n_parameters, c.certificate.error))

    def _judge(self, network: Network) -> Candidate:
        self.polisher.watch.say(f"certifying a network of widths {network.widths}")
        task, samples = self.polisher.task, self.polisher.samples
        certificate = certify(
            network, task, samples, self.held_out, self.coordinates, self.settings.verdict
        )
        return Candidate(network, certificate)

    def _without_skip(self, network: Network, loss: float, cap: Cap) -> tuple[Network, float]:
        """Absorb the skip terms in the signs of the neurons, else in as few neurons as it takes."""
        if not network.has_skip:
            return network, loss
        activation, n_steps = self.polisher.activation, self.settings.prune.polish_steps
        flipped = self.polisher.polish(resolve_signs(network, activation), n_steps)
        if flipped[1] <= cap.allowed(flipped[0]):
            return flipped
        paired = self.polisher.polish(linear_pairs(network, activation), n_steps)
        *_, smallest = pruning_path(*paired, self.polisher, cap)
        return smallest
