"""The students of one fit: how they are trained, which of them vote, and what pruning gave.

Nothing here depends on the thresholds ``gamma``, ``beta`` and ``cut``, so that ``recluster`` needs
no training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sklearn_ec._cluster.common_basis import count_agreeing
from sklearn_ec._core.records import Network, Students
from sklearn_ec._core.settings import Finish, Settings, Training
from sklearn_ec._expand.skorch_nets import n_levenberg_epochs
from sklearn_ec._expand.training import StudentTrainer
from sklearn_ec._expand.training_state import Checkpoint, OnEpoch
from sklearn_ec._finish.finisher import Candidate, Finisher
from sklearn_ec._finish.noisy import reached_noise_floor


@dataclass
class Ensemble:
    """Trained students, and the networks that pruning made of some of them, by student."""

    students: Students
    tol: float
    certified: dict[int, Candidate] = field(default_factory=dict)
    finished: dict[int, Candidate] = field(default_factory=dict)  # those that were not certified
    denoised: dict[int, Candidate] = field(default_factory=dict)  # where nothing was certified
    n_reused: int = 0  # students that an earlier fit trained
    is_complete: bool = False

    def is_promising(self, settings: Settings) -> bool:
        """Whether more students might give the network: few of these converged, none gave it."""
        students = self.students
        return (
            not self.certified
            and len(students.converged(self.tol)) < settings.cluster.min_voters
            and bool((students.losses < settings.finish.worthwhile_loss).any())
        )

    @property
    def conclusive_networks(self) -> dict[int, Candidate]:
        """The networks that other students cannot improve."""
        finished = self.finished.items()
        return self.certified | {s: c for s, c in finished if c.certificate.is_conclusive}

    def joined(self, others: Ensemble) -> Ensemble:
        """These students and further ones behind them."""
        n_before = len(self.students)
        return Ensemble(
            self.students.joined(others.students),
            self.tol,
            certified=self.certified | {n_before + s: c for s, c in others.certified.items()},
            finished=self.finished | {n_before + s: c for s, c in others.finished.items()},
            n_reused=self.n_reused + others.n_reused,
        )

    def copy(self, n_reused: int) -> Ensemble:
        """The same students, for further networks to be added."""
        return Ensemble(
            self.students,
            self.tol,
            certified=dict(self.certified),
            finished=dict(self.finished),
            denoised=dict(self.denoised),
            n_reused=n_reused,
        )

    def complete(self, finisher: Finisher) -> None:
        """Finish what the clustering and the choice of the network need, once training is over."""
        if self.is_complete:
            return
        settings = finisher.settings
        if finisher.prune and not self.certified:
            if reached_noise_floor(self.students, finisher.polisher.samples, settings.noise):
                self._denoise(finisher)
            if not (self._agree_on_widths() or self.conclusive_networks):
                self._finish_best(finisher)
            if not (self.certified or self.denoised or self._is_exact(settings.finish)):
                self._denoise(finisher)
        self.is_complete = True

    def _agree_on_widths(self) -> bool:
        """Whether most of the denoised students have the same widths."""
        widths = [candidate.network.widths for candidate in self.denoised.values()]
        return any(widths.count(w) > len(widths) / 2 for w in set(widths))

    def _is_exact(self, settings: Finish) -> bool:
        """Whether a student or a pruned one fits the data to rounding."""
        certificates = [candidate.certificate for candidate in self.finished.values()]
        return self._has_exact_student(settings) or any(c.is_exact for c in certificates)

    def _has_exact_student(self, settings: Finish) -> bool:
        students, limit = self.students, max(settings.max_held_out_loss, 10.0 * self.tol)
        return students.best_held_out_loss <= limit and len(students.converged(self.tol)) > 0

    def finish_first(self, finisher: Finisher) -> None:
        """Finish the best student."""
        for student in self.students.by_loss()[:1]:
            self._finish(int(student), finisher)

    def _finish_best(self, finisher: Finisher) -> None:
        """Finish the best students, up to the first certified one."""
        settings = finisher.settings.finish
        best = self.students.by_loss()[: settings.max_finished]
        for student in best[self.students.losses[best] < settings.worthwhile_loss]:
            if int(student) not in self.finished:
                self._finish(int(student), finisher)
            if self.conclusive_networks:
                break

    def _finish(self, student: int, finisher: Finisher) -> None:
        candidate = finisher.finish(self.students.network(student))
        is_certified = candidate.certificate.function_certified
        kept = self.certified if is_certified else self.finished
        kept[student] = candidate

    def _denoise(self, finisher: Finisher) -> None:
        """Find the smallest networks that fit the data as well as the best students do."""
        for student in self.students.by_loss()[: finisher.settings.finish.max_denoised]:
            self.denoised[int(student)] = finisher.denoise(self.students.network(student))

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


@dataclass(frozen=True)
class Recipe:
    """How students are trained."""

    widths: tuple[int, ...]
    solver: str
    max_iter: int
    tol: float
    asks_finisher: bool = True  # whether training ends once the best student, pruned, is certified

    def max_epochs(self, training: Training) -> int:
        """Largest number of epochs of a batch of students."""
        is_adam = self.solver == "adam"
        return self.max_iter if is_adam else n_levenberg_epochs(self.max_iter, training)


def train_group(
    finisher: Finisher,
    recipe: Recipe,
    seeds: np.ndarray,
    checkpoint: Checkpoint | None = None,
    on_epoch: OnEpoch | None = None,
) -> Ensemble:
    """Train students until enough converged or pruning one of them gives the network."""
    polisher, settings = finisher.polisher, finisher.settings.finish
    trainer = StudentTrainer(polisher)
    if recipe.solver == "adam":
        students = trainer.train_with_adam(
            seeds,
            recipe.widths,
            max_iter=recipe.max_iter,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )
        return Ensemble(students, recipe.tol)
    certified: dict[int, Candidate] = {}
    finished: dict[int, Candidate] = {}

    def is_recovered(student: int, network: Network, loss: float) -> bool:
        # Large students take minutes, the few neurons of a pool do not.
        is_costly = polisher.is_matrix_free(network) and network.widths == recipe.widths
        if loss < (settings.first_polish_loss if is_costly else settings.worthwhile_loss):
            candidate = finisher.finish(network)
            if candidate.certificate.function_certified:
                certified[student] = candidate
            elif candidate.certificate.is_conclusive:
                finished[student] = candidate
            polisher.watch.say("training")
        return bool(certified or finished)

    students = trainer.train(
        seeds,
        recipe.widths,
        max_iter=recipe.max_iter,
        tol=recipe.tol,
        is_recovered=is_recovered if finisher.prune and recipe.asks_finisher else None,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )
    return Ensemble(students, recipe.tol, certified, finished)
