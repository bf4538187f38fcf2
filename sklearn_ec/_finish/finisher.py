"""Finish a network: polish, prune, resolve signs, refine, certify."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

import numpy as np

from sklearn_ec._certify.certificate import Certificate
from sklearn_ec._certify.examination import certify
from sklearn_ec._cluster.common_basis import on_collapsed
from sklearn_ec._core.coordinates import Coordinates
from sklearn_ec._core.forward import solve_readout
from sklearn_ec._core.records import Network, Samples, Students
from sklearn_ec._core.settings import Settings
from sklearn_ec._core.signs import linear_pairs, resolve_signs, with_skip
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._io.cache import CACHE_VERSION, Store, digest

from .caps import Cap, ExactCap, NoiseCap
from .imitators import without_copies
from .nearly_linear import with_linear_neurons
from .noisy import left_out_loss, one_standard_error_bound, smallest_network, squared_errors
from .pruning import prune, pruning_path, unstick
from .removals import narrowed, reduced, without_spare


@dataclass(frozen=True)
class Candidate:
    """A finished network and its certificate."""

    network: Network
    certificate: Certificate


class Finisher:
    """Finishes networks: polish, prune, resolve signs, certify.

    Results are remembered: students may be finished while others train, and once more at the end.
    A store remembers them beyond the fit.
    """

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
        self._results: dict[str, Candidate] = {}

    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        parts = ("polisher", "held_out", "coordinates", "prune")
        return {name: getattr(self, name) for name in parts}

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

    def with_resolved_signs(self, hidden: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Collapsed layers without skip terms."""
        if not self.polisher.has_skip or len(hidden) < 2:
            return tuple(hidden)
        return resolve_signs(self.solve_readout(hidden), self.polisher.activation).layers[:-1]

    def on_collapsed(
        self, network: Network, lower: Sequence[np.ndarray], loss: float
    ) -> Network | None:
        """A network on collapsed layers; None where a short polish does not undo what they cost."""
        polisher = self.polisher
        replaced = on_collapsed(
            network, lower, polisher.samples, polisher.activation, polisher.has_skip
        )
        return self.if_better(resolve_signs(replaced, polisher.activation), loss)

    def if_better(self, network: Network, loss: float) -> Network | None:
        """A network after a short polish on few rows; None where it does not get below a loss.

        Large ones that are far above are not tried, since that takes minutes.
        """
        settings, polisher = self.settings.finish, self.polisher
        is_large = polisher.is_matrix_free(network)
        if is_large and not self._loss(network) < settings.large_factor * loss:
            return None
        polished, polished_loss = self._on_few_rows(network).polish(
            network,
            settings.first_polish_steps,
            enough=settings.better_share * loss if is_large else 0.0,
            is_hasty=not polisher.has_weak_inputs,
        )
        return polished if polished_loss < loss else None

    def of_clusters(self, collapsed: Sequence[np.ndarray], loss: float) -> Network | None:
        """The network of collapsed layers after a short polish; None where it stays above a loss.

        Students that agree on all other neurons may imitate a nearly linear one, each in its way.
        """
        network = self.solve_readout(collapsed)
        return self.if_better(network, loss) or self._with_linear_neurons(network, loss)

    def finish(self, network: Network) -> Candidate:
        """Polish, prune, resolve signs and certify a network.

        Large ones that pruning left in a local minimum are settled.
        """
        return self._recall("finish", self._finish, network.without_unread())

    def narrowed(self, network: Network, widths: Sequence[int]) -> Network:
        """A network without its cheapest neurons, so that no layer is wider than told."""
        return narrowed(network, widths, self._on_few_rows(network))

    def refit(self, network: Network) -> Candidate:
        """Polish and certify a network of other rows, without a change of its neurons."""
        polished = self.polisher.polish(network, self.settings.prune.polish_steps)
        return self._concluded(*polished)

    def _finish(self, network: Network) -> Candidate:
        """Deep networks are finished without skip terms first, which cost parameters.

        Where the result is refused, skip terms follow; they show which neurons are there to undo
        the linear part of others. Signs that cannot be resolved may cost more than that gains.
        """
        if not (self.prune and self.polisher.has_skip):
            return self._pruned(network)
        if len(network.widths) == 1 or network.has_skip:
            return self._pruned(with_skip(network))
        plain = self._pruned(network)
        if plain.certificate.is_conclusive:
            return plain
        is_better = plain.certificate.error**2 < self._loss(network)
        resolved = self._pruned(with_skip(plain.network if is_better else network))
        is_worse = resolved.certificate.error > plain.certificate.error
        return plain if is_worse and not resolved.certificate.fits_exactly else resolved

    def _pruned(self, network: Network) -> Candidate:
        """A network polished, pruned, its signs resolved, and certified.

        A share of the rows tells which neurons go, unless some bend in rows that are not among it.
        """
        few = self._on_few_rows(network)
        takes_long = network.n_parameters > self.settings.warm_up.few_parameters
        if self.prune and len(network.widths) == 1 and takes_long:
            network = without_spare(network, self._loss(network), few)
            most = network.widths[0] - 1
            network = self._with_linear_neurons(network, self._loss(network), most) or network
            few = self._on_few_rows(network)
        candidate, loss = self._pruned_with(few, network)
        exact_loss = max(self.settings.prune.exact_loss, self.polisher.samples.rounding_loss)
        is_exact = candidate.certificate.fits_exactly
        if few is self.polisher or is_exact or loss > exact_loss:
            return candidate
        return self._pruned_with(self.polisher, network)[0]

    def _with_linear_neurons(
        self, network: Network, loss: float, most: float = math.inf
    ) -> Network | None:
        """A network polished below a loss, with one neuron for all that imitate a linear one.

        It has so many neurons at most.

        Large ones of neurons with a kink may need it. Where inputs vary in all directions, skip
        terms show those neurons, see :meth:`_turned`.
        """
        polisher = self.polisher
        is_large = polisher.is_matrix_free(network) and polisher.has_weak_inputs
        if not (is_large and polisher.activation.homogeneous) or network.has_skip:
            return None
        candidates = with_linear_neurons(network, loss, self._on_few_rows(network))
        few_enough = takewhile(lambda candidate: candidate.widths[0] <= most, candidates)
        polished = (self.if_better(candidate, loss) for candidate in few_enough)
        return next((better for better in polished if better is not None), None)

    def _on_few_rows(self, network: Network) -> Polisher:
        if not self.prune:
            return self.polisher
        settings = self.settings.finish
        equations = settings.equations
        if self.polisher.is_matrix_free(network):
            is_weak = self.polisher.has_weak_inputs
            equations = settings.weak_equations if is_weak else settings.large_equations
        return self.polisher.on_few_rows(equations * network.n_parameters)

    def _pruned_with(self, polisher: Polisher, network: Network) -> tuple[Candidate, float]:
        """What pruning on the rows of a polisher gives, and the loss there."""
        settings = self.settings
        final: list[Candidate] = []

        def is_final(network: Network, loss: float) -> bool:
            if not self._fits_held_out_rows(network):
                return False
            if network.has_skip:
                network, loss = self._with_signs(network)
            candidate = self._concluded(network, loss)
            final.extend([candidate] if candidate.certificate.function_certified else [])
            return bool(final)

        polisher.watch.say(f"polishing, widths {network.widths}")
        is_large = self.prune and polisher.is_matrix_free(network)
        network, loss = self._polished(polisher, network, is_large)
        finish = settings.finish
        if self.prune and loss < (finish.first_polish_loss if is_large else finish.worthwhile_loss):
            if is_large and self._has_hasty_signs(network, polisher):
                network, loss = self._turned(network, loss, polisher)
            network, loss = prune(network, loss, polisher, is_final)
            if final:
                return final[0], loss
        network = self._on_all_rows(network, loss, polisher, is_large)
        candidate = self._concluded(network, loss)
        certificate = candidate.certificate
        if is_large and certificate.fits_exactly and not certificate.is_exact:
            return self._with_held_out_rows(candidate), loss
        return candidate, loss

    def _on_all_rows(
        self, network: Network, loss: float, polisher: Polisher, is_large: bool
    ) -> Network:
        """A network pruned on some rows, polished on all of them.

        A large one in a corner stays as it is, unless few rows tell about some directions: there
        it is led out. On all rows, of which a share tells even less: eight ReLU neurons on 1,623
        of 9,000 MNIST images at 6e-8 took 145 s to zero there, and 56 s more on all of them; on all
        of them at once 94 s.
        """
        settings = self.settings.prune
        exact_loss = max(settings.exact_loss, polisher.samples.rounding_loss)
        may_stick = is_large and len(network.widths) == 1 and polisher.has_weak_inputs
        if polisher is not self.polisher and (may_stick or not (is_large and loss > exact_loss)):
            progress = settings.large_final_progress if may_stick else None
            network, loss = self.polisher.polish(network, settings.polish_steps, progress=progress)
        is_corner = may_stick and loss > self.settings.polish.final_loss
        return unstick(network, loss, self.polisher) if is_corner else network

    def _fits_held_out_rows(self, network: Network) -> bool:
        """Whether a network that is exact on some rows nearly is on the held-out ones.

        Those with many spare neurons are not: 25 ReLU neurons for 16, trained on the digits, lost
        them one by one, and each was polished on all rows and refined for 8 seconds before.
        """
        rounding_loss = self.polisher.samples.rounding_loss
        limit = max(self.settings.finish.refinement_loss, 10.0 * rounding_loss)
        losses = self.polisher.held_out_losses([layer[None] for layer in network.layers])
        return not losses[0] > limit

    def _concluded(self, network: Network, loss: float) -> Candidate:
        """A pruned network with its signs resolved, refined and certified."""
        settings = self.settings
        rounding_loss = self.polisher.samples.rounding_loss
        cap = ExactCap(loss, rounding_loss, settings)
        network, loss = self._without_skip(network, loss, cap)
        if rounding_loss:
            network, loss = self.polisher.polish(network, settings.prune.polish_steps)
        return self._refined(network, loss)

    def _refined(self, network: Network, loss: float) -> Candidate:
        """A network as it is certified: to the last digit where it is near zero."""
        limit = max(self.settings.finish.refinement_loss, self.polisher.samples.rounding_loss)
        if loss < limit:
            network = self.polisher.refine(network)
        return self._judge(network)

    def _polished(
        self, polisher: Polisher, network: Network, is_large: bool
    ) -> tuple[Network, float]:
        """A network before its pruning: large ones only far enough for it, settled if need be."""
        settings = self.settings.finish
        n_steps = settings.first_polish_steps if self.prune else self.settings.prune.polish_steps
        if not is_large:
            return polisher.polish(network, n_steps)
        enough, is_well_posed = settings.first_polish_loss, not polisher.has_weak_inputs
        if is_well_posed and len(network.widths) == 1:
            network = without_copies(network, polisher)
        network, loss = polisher.polish(network, n_steps, enough=enough, is_hasty=is_well_posed)
        if is_well_posed or loss <= enough:
            return network, loss
        return polisher.polish(polisher.settled(network), n_steps, enough=enough)

    def _turned(self, network: Network, loss: float, polisher: Polisher) -> tuple[Network, float]:
        """A large network after a few steps with skip terms, in which its neurons may turn.

        Those that are on in nearly all rows are to spare then.
        """
        settings = self.settings.finish
        limit = max(loss, self.settings.prune.cap_floor)
        n_steps, enough = settings.first_polish_steps, settings.turning_share * limit
        turned = without_spare(with_skip(network), limit, polisher)
        turned = without_copies(turned, polisher)
        turned, _ = polisher.polish(turned, n_steps, enough=enough, is_hasty=True)
        resolved = resolve_signs(turned, polisher.activation)
        resolved, resolved_loss = polisher.polish(resolved, n_steps, enough=limit, is_hasty=True)
        return (resolved, resolved_loss) if resolved_loss < limit else (network, loss)

    @staticmethod
    def _has_hasty_signs(network: Network, polisher: Polisher) -> bool:
        """Whether neurons may have signs that students without skip terms chose too early.

        A ReLU neuron of the wrong sign takes another that undoes its linear part: of 33 neurons
        at 1e-6, two were left for one of the 32 of a 784-32-1 network, exact on the rows where that
        other one is on, after 38 steps. With skip terms from there, 15 steps get to the 32. Inputs
        that hardly vary in some directions would be left to the skip terms.
        """
        is_open = polisher.activation.has_linear_flip and not network.has_skip
        return is_open and len(network.widths) == 1 and not polisher.has_weak_inputs

    def _with_held_out_rows(self, candidate: Candidate) -> Candidate:
        """Train a network that is exact on all other rows on the held-out ones too.

        They decide what the others leave open, as on which side of a kink a row lies. If they can
        be fitted as well, the network counts as exact. No row is left to test it, so that it is not
        certified.
        """
        error = candidate.certificate.held_out_error
        polisher = self.polisher.with_samples(self.polisher.samples.joined(self.held_out))
        network, _ = polisher.polish(candidate.network, self.settings.prune.removal_steps)
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
        """The result of a step, remembered."""
        key, compute_now = digest([step, network]), partial(compute, network)
        if key not in self._results:
            self._results[key] = (
                compute_now()
                if self.store is None
                else self.store.recall(digest([key, self.key]), compute_now)[0]
            )
        return self._results[key]

    def pooled(self, students: Students) -> tuple[Network, float]:
        """The neurons of the best students as one network, after some steps together.

        Also what it leaves of the loss of the best one, on rows that its readout does not know.
        The students have one hidden layer.
        """
        polisher, settings = self.polisher, self.settings.approximation
        first = [layer[students.by_loss()[: settings.n_students]] for layer in students.layers]
        few = self._on_few_rows(students.network(0))
        layers = few.polish_together(first, settings.first_steps)
        losses, (_, width, _) = polisher.losses(layers), layers[0].shape
        most = max(len(polisher.samples.X) // (settings.rows_per_neuron * width), 1)
        best = np.argsort(losses)[: min(settings.n_pooled, most)]
        network = self.solve_readout([np.concatenate(layers[0][best])])
        left_out = left_out_loss(network, polisher.samples, polisher.activation)
        return network, left_out / max(losses[best[0]], settings.floor)

    def approximate(self, network: Network, n_neurons: int) -> Candidate:
        """A network with as few neurons as do about as well, soon, where none made the data.

        It has not many more than so many, whatever it starts from.
        """
        return self._recall("approximate", partial(self._approximate, n_neurons), network)

    def _approximate(self, n_neurons: int, network: Network) -> Candidate:
        polisher, settings = self.polisher, self.settings.approximation
        per_neuron = network.n_parameters / network.widths[0]
        most = polisher.samples.n_equations / (settings.equations * per_neuron)
        n_neurons = math.ceil(min(settings.max_growth * n_neurons, most))
        network = reduced(network, n_neurons, polisher)
        network = linear_pairs(network, polisher.activation)
        network, loss = polisher.polish(network, settings.polish_steps, progress=settings.progress)
        cap = NoiseCap(network, loss, polisher.samples.n_equations, settings)
        *_, (network, _) = pruning_path(network, loss, polisher, cap)
        return self._judge(network)

    def _denoise(self, network: Network) -> Candidate:
        polisher, settings = self.polisher, self.settings
        if polisher.has_skip:
            network = with_skip(network)
        network, loss = polisher.polish(network, settings.noise.polish_steps)
        network, loss = smallest_network(network, loss, polisher, self.held_out)
        cap = NoiseCap(network, loss, polisher.samples.n_equations, settings.noise)
        network, loss = self._without_skip(network, loss, cap)
        network, loss = polisher.polish(
            network, settings.prune.polish_steps, progress=settings.noise.final_progress
        )
        return self._refined(network, loss)

    def _loss(self, network: Network) -> float:
        return float(self.polisher.losses([layer[None] for layer in network.layers])[0])

    def judge_as_is(self, network: Network) -> Candidate:
        """Certify a network without changing the function that it computes."""
        return self._judge(linear_pairs(network, self.polisher.activation))

    def most_parsimonious(self, candidates: Sequence[Candidate]) -> Candidate:
        """The smallest network whose held-out error is within one standard error of the lowest.

        Errors at rounding level are equally low.
        """
        activation = self.polisher.activation
        errors = [squared_errors(c.network, self.held_out, activation) for c in candidates]
        bound = one_standard_error_bound(errors)
        good = [
            candidate
            for candidate, error in zip(candidates, errors, strict=True)
            if candidate.certificate.is_exact or error.mean() <= bound
        ]
        return min(good, key=lambda c: (c.network.n_parameters, c.certificate.error))

    def _judge(self, network: Network) -> Candidate:
        self.polisher.watch.say(f"certifying a network of widths {network.widths}")
        task, samples = self.polisher.task, self.polisher.samples
        certificate = certify(
            network, task, samples, self.held_out, self.coordinates, self.settings.verdict
        )
        if self._is_near_enough(network, certificate):
            certificate = replace(certificate, is_conclusive=True)
        return Candidate(network, certificate)

    def _is_near_enough(self, network: Network, certificate: Certificate) -> bool:
        """Whether a large network has the right neurons, near zero as far as its steps get.

        Along directions that few rows tell about they crawl, and would with other students.
        """
        n_needed = self.settings.verdict.min_equations_per_parameter * network.n_parameters
        is_determined = certificate.n_equations >= n_needed
        error = certificate.error
        return is_determined and self.polisher.is_near_enough(network.n_parameters, error**2)

    def _with_signs(self, network: Network) -> tuple[Network, float]:
        """The network whose neurons absorb the skip terms in their signs, polished."""
        resolved = resolve_signs(network, self.polisher.activation)
        return self.polisher.polish(resolved, self.settings.prune.polish_steps)

    def _without_skip(self, network: Network, loss: float, cap: Cap) -> tuple[Network, float]:
        """Absorb the skip terms in the signs of the neurons, else in as few neurons as it takes.

        The latter only where the network is near zero loss, or shallow: it is long.
        """
        if not network.has_skip:
            return network, loss
        activation, n_steps = self.polisher.activation, self.settings.prune.polish_steps
        flipped = self._with_signs(network)
        is_hopeless = len(network.widths) > 1 and loss > self.settings.finish.hopeless_loss
        if flipped[1] <= cap.allowed(flipped[0]) or is_hopeless:
            return flipped
        paired = self.polisher.polish(linear_pairs(network, activation), n_steps)
        *_, smallest = pruning_path(*paired, self.polisher, cap)
        return smallest
