"""The students of one fit: which of them vote, and what was made of them.

Training does not depend on the thresholds ``gamma``, ``beta`` and ``cut`` of a fit, so that
``recluster`` needs no training: it ends by clusters of the default thresholds.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from sklearn_ec._cluster.common_basis import count_agreeing
from sklearn_ec._cluster.layerwise import ClusteredLayers, Thresholds, Voters, cluster_layers
from sklearn_ec._core.coordinates import Coordinates
from sklearn_ec._core.records import Network, Students
from sklearn_ec._core.settings import Finish, Noise
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.students import grown_students
from sklearn_ec._finish.finisher import Candidate, Finisher
from sklearn_ec._finish.noisy import last_ratios, reached_noise_floor

# What the network was made of: the clusters of all layers, or a student that was pruned.
Origin = Literal["clusters", "student"]


@dataclass(frozen=True)
class Clustered:
    """The network that clusters gave."""

    collapsed: list[np.ndarray]  # one incoming vector per cluster, for each hidden layer
    candidate: Candidate

    def rank(self) -> tuple[bool, float]:
        """Lower is better: those that others cannot improve first, then by their error."""
        certificate = self.candidate.certificate
        return not certificate.is_conclusive, certificate.error


@dataclass
class Ensemble:
    """Trained students, and the networks made of their clusters and, by pruning, of single ones."""

    students: Students
    tol: float
    clustered: Clustered | None = None
    certified: dict[int, Candidate] = field(default_factory=dict)  # by student
    finished: dict[int, Candidate] = field(default_factory=dict)  # those that were not certified
    denoised: dict[int, Candidate] = field(default_factory=dict)  # where nothing was certified
    attempt: Candidate | None = None  # the best network that was made while training went on
    n_reused: int = 0  # students that an earlier fit trained
    is_complete: bool = False

    @property
    def is_warm_up(self) -> bool:
        """Whether Levenberg has not taken a step yet."""
        return self.students.n_iter == 0

    @property
    def recovered(self) -> Candidate | None:
        """The certified network: that of the clusters, else that of a pruned student."""
        if self.clustered and self.clustered.candidate.certificate.function_certified:
            return self.clustered.candidate
        return next(iter(self.certified.values()), None)

    @property
    def candidates(self) -> list[Candidate]:
        """All networks that were made."""
        others = [self.clustered.candidate] if self.clustered else []
        others += [self.attempt] if self.attempt else []
        pruned = (*self.certified.values(), *self.finished.values(), *self.denoised.values())
        return [*others, *pruned]

    @property
    def best_candidate(self) -> Candidate | None:
        """The network of the lowest error, the smallest of exact ones."""
        return best_of(*self.candidates)

    @property
    def lowest_loss(self) -> float:
        """That of a network made of students, or else of a student."""
        lowest, best = self.students.lowest_loss, self.best_candidate
        return lowest if best is None else min(lowest, best.certificate.error**2)

    def corner(
        self, worthwhile_loss: float, any_width: bool = False
    ) -> tuple[Network | None, float]:
        """The best network that is narrower than the students, and its loss.

        Infinity where there is none, or where it misses the data by much or by rounding alone.
        """
        best = self.best_candidate
        if best is None or best.certificate.fits_exactly:
            return None, np.inf
        loss = best.certificate.error**2
        is_near = (any_width or self.is_narrower(best.network)) and loss < worthwhile_loss
        return (best.network, loss) if is_near else (None, np.inf)

    def is_narrower(self, network: Network) -> bool:
        """Whether no layer of a network is wider than that of the students."""
        return all(map(operator.le, network.widths, self.students.network(0).widths))

    def origin_of(self, candidate: Candidate) -> Origin:
        by_clusters = self.clustered is not None and candidate is self.clustered.candidate
        return "clusters" if by_clusters else "student"

    @property
    def is_conclusive(self) -> bool:
        """Whether there is a network that other students cannot improve."""
        clustered = self.clustered
        by_clusters = clustered is not None and clustered.candidate.certificate.is_conclusive
        return by_clusters or bool(self.conclusive_networks)

    @property
    def conclusive_networks(self) -> dict[int, Candidate]:
        """The pruned students that others cannot improve."""
        finished = self.finished.items()
        return self.certified | {s: c for s, c in finished if c.certificate.is_conclusive}

    @property
    def agree_exactly(self) -> bool:
        """Whether two networks, of students or clusters, have the same widths, exact on their rows.

        Others would be refused as these were, for what the rows leave open.
        """
        clustered = [self.clustered.candidate] if self.clustered else []
        made = (*clustered, *self.certified.values(), *self.finished.values())
        widths = [c.network.widths for c in made if c.certificate.fits_exactly]
        return len(set(widths)) < len(widths)

    def joined(self, others: Ensemble) -> Ensemble:
        """These students and further ones behind them."""
        n_before = len(self.students)
        return Ensemble(
            self.students.joined(others.students),
            self.tol,
            clustered=min(
                filter(None, (self.clustered, others.clustered)), key=Clustered.rank, default=None
            ),
            attempt=best_of(self.attempt, others.attempt),
            certified=self.certified | {n_before + s: c for s, c in others.certified.items()},
            finished=self.finished | {n_before + s: c for s, c in others.finished.items()},
            n_reused=self.n_reused + others.n_reused,
        )

    def with_attempt(self, candidate: Candidate | None) -> Ensemble:
        """The same students, with a network of others."""
        return replace(self, attempt=best_of(self.attempt, candidate))

    def copy(self, n_reused: int) -> Ensemble:
        """The same students, for further networks to be added."""
        return replace(
            self,
            certified=dict(self.certified),
            finished=dict(self.finished),
            denoised=dict(self.denoised),
            n_reused=n_reused,
            is_complete=False,
        )

    def complete(self, finisher: Finisher) -> None:
        """Finish what the clustering and the choice of the network need, once training is over."""
        if self.is_complete:
            return
        settings = finisher.settings
        if finisher.prune and not (self.recovered or self.is_conclusive):
            if reached_noise_floor(self.students, finisher.polisher.samples, settings.noise):
                self._denoise(finisher, settings.finish.max_denoised)
            if not (self.is_conclusive or self.show_network(finisher)):
                self._explain_without_network(finisher)
                self.is_complete = True
                return
            agree = self._agree_on_widths(settings.noise) or self.agree_exactly
            if not (agree or self.is_conclusive):
                self._finish_best(finisher)
            if not (self.recovered or self.denoised or self._is_exact(settings.finish)):
                self._denoise(finisher, settings.noise.n_agreeing)
        self.is_complete = True

    @property
    def _denoised_widths(self) -> list[tuple[int, ...]]:
        return [candidate.network.widths for candidate in self.denoised.values()]

    def _agree_on_widths(self, noise: Noise) -> bool:
        """Whether several denoised students have the same widths."""
        widths = self._denoised_widths
        return any(widths.count(w) >= noise.n_agreeing for w in set(widths))

    def _look_noisy(self, noise: Noise) -> bool:
        """Whether several denoised students have the same widths, or all of them."""
        return len(set(self._denoised_widths)) == 1 or self._agree_on_widths(noise)

    def _is_exact(self, settings: Finish) -> bool:
        """Whether a student or a pruned one fits the data to rounding, or rules out noise."""
        certificates = [candidate.certificate for candidate in self.candidates]
        is_exact = any(c.is_exact or c.rules_out_noise for c in certificates)
        return is_exact or self._has_exact_student(settings)

    def _has_exact_student(self, settings: Finish) -> bool:
        students, limit = self.students, max(settings.max_held_out_loss, 10.0 * self.tol)
        return students.best_held_out_loss <= limit and len(students.converged(self.tol)) > 0

    def seek(self, finisher: Finisher, prunes: bool = True) -> bool:
        """Look for the network in the clusters, then in the best student; tell whether it is there.

        Clusters come first: after 30 steps they hold 13 of 15 ``g`` networks of one layer. Their
        network is finished in a fraction of the time that pruning takes, and fails at once. Where
        they hold the lower layers alone, these take the place of the student's own. ``prunes`` says
        whether the student is pruned all the same where they do not hold all but the last.
        """
        ranked, collapsed = self.students.by_loss(), []
        if len(ranked) >= finisher.settings.cluster.min_voters:
            collapsed = self.seek_in_clusters(finisher)
        if not self.is_conclusive and self.show_network(finisher) and len(ranked):
            best = int(ranked[0])
            simpler = self._on_collapsed(best, finisher, collapsed, all_below=not prunes)
            if simpler is not None or prunes:
                self._finish(best, finisher, simpler)
        return self.is_conclusive

    def show_network(self, finisher: Finisher) -> bool:
        """Whether the students, after some steps, look as if a network had made the data.

        Small ones of one hidden layer do where one of them explains rows that it was not trained on
        nearly to rounding. Others may not look like it until one is pruned.
        """
        students, settings, polisher = self.students, finisher.settings, finisher.polisher
        n_parameters, n_epochs = students.network(0).n_parameters, students.loss_curves.shape[1] - 1
        is_small = n_parameters <= settings.warm_up.few_parameters
        is_shallow = len(students.layers) == 2
        if not (is_small and is_shallow) or n_epochs == 0 or polisher.solver == "adam":
            return True
        limit = max(settings.finish.network_loss, 10.0 * polisher.samples.rounding_loss, self.tol)
        return students.best_held_out_loss < limit

    def seek_in_clusters(self, finisher: Finisher) -> list[np.ndarray]:
        """Make the network of the clusters of default thresholds, where they hold all layers.

        That takes a network that does about as well as the students, and better than those that
        were refused. Returns the incoming vectors of the clusters, layer by layer.
        """
        layers, polished = self.cluster(finisher), None
        if len(layers.collapsed) == len(self.students.layers) - 1 and not self.denoised:
            limit = max(self.students.lowest_loss, finisher.settings.finish.first_polish_loss)
            if self.best_candidate is not None:
                limit = min(limit, self.best_candidate.certificate.error**2)
            polished = finisher.of_clusters(layers.collapsed, limit)
            if polished is None:
                return layers.collapsed
            if not finisher.polisher.is_matrix_free(polished):
                polished = None  # small ones are finished from their start, which takes seconds
        candidate = self.network_of(layers, finisher, polished)
        if candidate is not None:
            self.clustered = Clustered(layers.collapsed, candidate)
        return layers.collapsed

    def cluster(
        self,
        finisher: Finisher,
        thresholds: Thresholds | None = None,
        certified: Network | None = None,
    ) -> ClusteredLayers:
        """Cluster the neurons of the students that vote."""
        polisher, settings = finisher.polisher, finisher.settings.cluster
        voters = Voters(
            self.voters(settings.min_voters),
            self.students.losses,
            polisher.samples,
            polisher.activation,
            polisher.has_skip,
            polisher.device,
            polisher.has_weak_inputs,
        )
        n_layers = len(self.students.layers) - 1
        return cluster_layers(voters, n_layers, thresholds or Thresholds(), certified, settings)

    def network_of(
        self, layers: ClusteredLayers, finisher: Finisher, polished: Network | None = None
    ) -> Candidate | None:
        """The network of clusters, finished; None where a layer has none.

        It may have been ``polished`` before.
        """
        collapsed, clustered = layers.collapsed, self.clustered
        if len(collapsed) < len(self.students.layers) - 1:
            return None
        is_noisy = self._look_noisy(finisher.settings.noise)
        if self.is_complete and not (is_noisy or self.show_network(finisher)):
            better = finisher.if_better(finisher.solve_readout(collapsed), self.lowest_loss)
            return finisher.approximate(better, len(collapsed[0])) if better else None
        if self.denoised:
            return finisher.denoise(finisher.solve_readout(collapsed))
        if clustered and all(map(np.array_equal, collapsed, clustered.collapsed)):
            return clustered.candidate
        return finisher.finish(polished or finisher.solve_readout(collapsed))

    def finish_best(self, finisher: Finisher, most: int) -> None:
        """Finish so many of the best students, unless one or two leave nothing to improve."""
        best = self.students.by_loss()[:most]
        for student in best[self.students.losses[best] < finisher.settings.finish.worthwhile_loss]:
            if int(student) not in self.finished:
                self._finish(int(student), finisher)
            if self.is_conclusive or self.agree_exactly:
                break

    def _finish_best(self, finisher: Finisher) -> None:
        """Finish the clusters' network, then the best students, up to the first certified one."""
        settings = finisher.settings.finish
        if is_overfitted(self.students, settings):
            return
        best = self.students.by_loss()[: settings.max_finished]
        if not self.denoised and (self.students.losses[best] < settings.worthwhile_loss).any():
            self.seek_in_clusters(finisher)
            if self.is_conclusive:
                return
        self.finish_best(finisher, settings.max_finished)

    def _on_collapsed(
        self, student: int, finisher: Finisher, collapsed: Sequence[np.ndarray], all_below: bool
    ) -> Network | None:
        """A student with collapsed layers in the place of its own: as many as do no harm, if any.

        ``all_below`` says whether that must be all below the last one.
        """
        network, loss = self.students.network(student), float(self.students.losses[student])
        n_below = len(network.widths) - 1
        least = max(n_below, 1) if all_below else 1
        for n_lower in range(min(len(collapsed), n_below), least - 1, -1):
            simpler = finisher.on_collapsed(network, collapsed[:n_lower], loss)
            if simpler is not None:
                return simpler
        return None

    def _finish(self, student: int, finisher: Finisher, network: Network | None = None) -> None:
        """Finish a student, or the network that stands for it."""
        candidate = finisher.finish(network or self.students.network(student))
        is_certified = candidate.certificate.function_certified
        kept = self.certified if is_certified else self.finished
        kept[student] = candidate

    def _denoise(self, finisher: Finisher, most: int) -> None:
        """Find the smallest networks that fit the data as well as the best students do.

        Those of so many students at most, until some agree on the widths, or one is exact.
        """
        for student in map(int, self.students.by_loss()[:most]):
            is_exact = any(c.certificate.rules_out_noise for c in self.denoised.values())
            if is_exact or self._agree_on_widths(finisher.settings.noise):
                break
            if student not in self.denoised:
                self.denoised[student] = finisher.denoise(self.students.network(student))

    def _explain_without_network(self, finisher: Finisher) -> None:
        """A small network for data that none made, unless noise alone hides it.

        Students at a noise floor, or too weak to get there, have stopped, and their neurons do no
        better together; denoised, they agree.
        """
        settings, best = finisher.settings.noise, self.students.by_loss()
        have_stopped = last_ratios(self.students.loss_curves[best[:1]]) >= settings.floor_progress
        may_be_noisy = not self.denoised and have_stopped.all()
        is_explained = self.lowest_loss < self.students.lowest_loss
        if not len(best) or (is_explained and not may_be_noisy):
            return
        pooled, gain = finisher.pooled(self.students)
        if may_be_noisy and gain > settings.pooling_gain:
            self._denoise(finisher, settings.n_agreeing - 1)
            if self._look_noisy(settings):
                self._denoise(finisher, settings.n_agreeing)
        if not (self._look_noisy(settings) or is_explained):
            self._approximate(pooled, finisher)

    def approximate(self, finisher: Finisher) -> None:
        """End with a small network of students of one hidden layer."""
        if finisher.prune and len(self.students.by_loss()):
            self._approximate(finisher.pooled(self.students)[0], finisher)
        self.is_complete = True

    def _approximate(self, pooled: Network, finisher: Finisher) -> None:
        """Make the neurons of several students one network of few."""
        candidate = finisher.approximate(pooled, self.students.layers[0].shape[1])
        self.attempt = best_of(self.attempt, candidate)

    def voters(self, min_voters: int) -> dict[int, Network]:
        """The students whose neurons are clustered.

        On noisy data these are the denoised students; else as :meth:`Students.voters` says, with
        the pruned student that gave the network as it is after that.
        """
        conclusive = self.conclusive_networks
        if self.denoised and not conclusive:
            return {s: self.denoised[s].network for s in sorted(self.denoised)}
        students = self.students
        voting = students.voters(self.tol, min_voters)
        voters = {int(student): students.network(student) for student in voting}
        voters.update({s: candidate.network for s, candidate in conclusive.items()})
        return dict(sorted(voters.items()))

    def n_agreeing(self, network: Network, finisher: Finisher) -> int:
        """How many students hold every neuron of a network, as trained or pruned."""
        polisher, settings = finisher.polisher, finisher.settings.cluster
        voters = list(self.voters(settings.min_voters).values())
        return count_agreeing(network, voters, polisher.samples, polisher.activation, settings)

    def width_agreement(self, network: Network) -> tuple[int, int]:
        """How many pruned students have the widths of a network, and how many there are."""
        pruned = (self.conclusive_networks | self.denoised).values()
        return sum(c.network.widths == network.widths for c in pruned), len(pruned)


def carried_over(
    ensemble: Ensemble,
    before: Coordinates,
    now: Coordinates,
    widths: tuple[int, ...],
    finisher: Finisher,
) -> Ensemble | None:
    """The students and the network of a fit to other rows; the first student is the network.

    One that was exact there is polished, and judged: what those rows left open, these may tell.
    None where the students are wider than those of the present fit, or far from its targets, or
    where they fitted their rows alone: others would start from neurons that mean nothing.
    """
    polisher, finish = finisher.polisher, finisher.settings.finish
    if is_overfitted(ensemble.students, finish):
        return None
    ranked, best = ensemble.students.by_loss(), ensemble.best_candidate
    networks = [_carried(ensemble.students.network(s), before, now) for s in ranked]
    refitted: dict[int, Candidate] = {}
    if best is not None:
        network = _carried(best.network, before, now)
        if best.certificate.fits_exactly:
            refitted[0] = finisher.refit(network)
            network = refitted[0].network
        networks.insert(0, with_skip(network) if networks[0].has_skip else network)
    networks = [n for n in networks if all(map(operator.le, n.widths, widths))]
    if not networks:
        return None
    layers = grown_students(networks, widths, np.arange(len(networks)))
    losses, held_out = polisher.losses(layers), polisher.held_out_losses(layers)
    if not (losses < finish.worthwhile_loss).any():
        return None
    best_student = int(np.argmin(np.nan_to_num(held_out, nan=np.inf)))
    students = Students(
        layers=tuple(layers),
        losses=losses,
        trained=np.ones(len(losses), dtype=bool),
        n_iter=ensemble.students.n_iter,
        best=Network(tuple(layer[best_student] for layer in layers)),
        best_held_out_loss=float(held_out[best_student]),
        loss_curves=losses[:, None],
    )
    certified = {s: c for s, c in refitted.items() if c.certificate.function_certified}
    return Ensemble(
        students,
        ensemble.tol,
        certified=certified,
        finished={} if certified else refitted,
        n_reused=len(losses),
    )


def _carried(network: Network, before: Coordinates, now: Coordinates) -> Network:
    """A network in the coordinates of other rows."""
    layers = before.carried_to(now, [layer[None] for layer in network.layers])
    return Network(tuple(layer[0] for layer in layers))


def is_overfitted(students: Students, settings: Finish) -> bool:
    """Whether none of the students explains the rows that were held out."""
    return students.best_held_out_loss > settings.overfitted_loss


def best_of(*candidates: Candidate | None) -> Candidate | None:
    """The one of the lowest error of those that there are, the smallest of exact ones."""
    present = [candidate for candidate in candidates if candidate is not None]
    return min(present, key=_rank, default=None)


def _rank(candidate: Candidate) -> tuple[float, int]:
    certificate = candidate.certificate
    error = 0.0 if certificate.fits_exactly else certificate.error
    return error, candidate.network.n_parameters
