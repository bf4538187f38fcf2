"""The students of one fit: how they are trained, which of them vote, and what annealing gave.

Nothing here depends on the thresholds ``gamma``, ``beta`` and ``cut``, so that ``recluster`` needs
no training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ._annealing import ANNEALING_LOSS, FIRST_POLISH_LOSS, Annealer, Candidate
from ._course import Checkpoint, OnEpoch
from ._nets import n_levenberg_epochs
from ._noise import reached_noise_floor
from ._reconstruction import count_agreeing
from ._training import Trainer
from ._types import MIN_VOTERS, Network, Students

MAX_ANNEALED = 3
MAX_DENOISED = 5
# Students of exact data get below this, or near their tolerance, on held-out rows, too.
MAX_HELD_OUT_LOSS = 1e-6


@dataclass
class Ensemble:
    """Trained students, and the networks that annealing made of some of them, by student."""

    students: Students
    tol: float
    certified: dict[int, Candidate] = field(default_factory=dict)
    annealed: dict[int, Candidate] = field(default_factory=dict)  # those that were not certified
    denoised: dict[int, Candidate] = field(default_factory=dict)  # where nothing was certified
    n_reused: int = 0  # students that an earlier fit trained
    settled: bool = False

    @property
    def is_promising(self) -> bool:
        """Whether more students might give the network: few of these converged, none gave it."""
        students = self.students
        return (
            not self.certified
            and len(students.converged(self.tol)) < MIN_VOTERS
            and bool((students.losses < ANNEALING_LOSS).any())
        )

    @property
    def conclusive(self) -> dict[int, Candidate]:
        """The networks that other students cannot improve."""
        annealed = self.annealed.items()
        return self.certified | {s: c for s, c in annealed if c.certificate.is_conclusive}

    def joined(self, others: Ensemble) -> Ensemble:
        """These students and further ones behind them."""
        n_before = len(self.students)
        return Ensemble(
            self.students.joined(others.students),
            self.tol,
            certified=self.certified | {n_before + s: c for s, c in others.certified.items()},
            annealed=self.annealed | {n_before + s: c for s, c in others.annealed.items()},
            n_reused=self.n_reused + others.n_reused,
        )

    def copy(self, n_reused: int) -> Ensemble:
        """The same students, for further networks to be added."""
        return Ensemble(
            self.students,
            self.tol,
            certified=dict(self.certified),
            annealed=dict(self.annealed),
            denoised=dict(self.denoised),
            n_reused=n_reused,
        )

    def settle(self, annealer: Annealer) -> None:
        """Anneal what the clustering and the choice of the network need, once training is over."""
        if self.settled:
            return
        if annealer.prune and not self.certified:
            if reached_noise_floor(self.students, annealer.trainer.samples):
                self._denoise(annealer)
            if not (self._agree_on_widths() or self.conclusive):
                self._anneal_best(annealer)
            if not (self.certified or self.denoised or self._is_exact()):
                self._denoise(annealer)
        self.settled = True

    def _agree_on_widths(self) -> bool:
        """Whether most of the denoised students have the same widths."""
        widths = [candidate.network.widths for candidate in self.denoised.values()]
        return any(widths.count(w) > len(widths) / 2 for w in set(widths))

    def _is_exact(self) -> bool:
        """Whether a student or an annealed one fits the data to rounding."""
        certificates = [candidate.certificate for candidate in self.annealed.values()]
        return self._has_exact_student() or any(c.is_exact for c in certificates)

    def _has_exact_student(self) -> bool:
        students = self.students
        generalizes = students.best_held_out_loss <= max(MAX_HELD_OUT_LOSS, 10.0 * self.tol)
        return generalizes and len(students.converged(self.tol)) > 0

    def anneal_first(self, annealer: Annealer) -> None:
        """Anneal the best student."""
        for student in self.students.by_loss()[:1]:
            self._anneal(int(student), annealer)

    def _anneal_best(self, annealer: Annealer) -> None:
        """Anneal the best students, up to the first certified one."""
        best = self.students.by_loss()[:MAX_ANNEALED]
        for student in best[self.students.losses[best] < ANNEALING_LOSS]:
            if int(student) not in self.annealed:
                self._anneal(int(student), annealer)
            if self.conclusive:
                break

    def _anneal(self, student: int, annealer: Annealer) -> None:
        candidate = annealer.finish(self.students.network(student))
        is_certified = candidate.certificate.function_certified
        kept = self.certified if is_certified else self.annealed
        kept[student] = candidate

    def _denoise(self, annealer: Annealer) -> None:
        """Find the smallest networks that fit the data as well as the best students do."""
        for student in self.students.by_loss()[:MAX_DENOISED]:
            self.denoised[int(student)] = annealer.denoise(self.students.network(student))

    def voters(self) -> dict[int, Network]:
        """The students whose neurons are clustered.

        On noisy data these are the denoised students; else as :meth:`Students.voters` says, with
        the annealed student that gave the network as it is after that.
        """
        conclusive = self.conclusive
        if self.denoised and not conclusive:
            return {s: self.denoised[s].network for s in sorted(self.denoised)}
        students, tol = self.students, self.tol
        voters = {int(student): students.network(student) for student in students.voters(tol)}
        voters.update({s: candidate.network for s, candidate in conclusive.items()})
        return dict(sorted(voters.items()))

    def n_agreeing(self, network: Network, trainer: Trainer) -> int:
        """How many students hold every neuron of a network, as trained or annealed."""
        voters = list(self.voters().values())
        return count_agreeing(network, voters, trainer.samples, trainer.activation)

    def width_agreement(self, network: Network) -> tuple[int, int]:
        """How many pruned students have the widths of a network, and how many there are."""
        pruned = (self.conclusive | self.denoised).values()
        return sum(c.network.widths == network.widths for c in pruned), len(pruned)


@dataclass(frozen=True)
class Recipe:
    """How students are trained."""

    widths: tuple[int, ...]
    solver: str
    max_iter: int
    tol: float
    anneal: bool = True  # whether training ends once the best student, annealed, is certified

    @property
    def max_epochs(self) -> int:
        """Largest number of epochs of a batch of students."""
        return self.max_iter if self.solver == "adam" else n_levenberg_epochs(self.max_iter)


def train_group(
    annealer: Annealer,
    recipe: Recipe,
    seeds: np.ndarray,
    checkpoint: Checkpoint | None = None,
    on_epoch: OnEpoch | None = None,
) -> Ensemble:
    """Train students until enough converged or annealing one of them gives the network."""
    trainer = annealer.trainer
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
    annealed: dict[int, Candidate] = {}

    def is_recovered(student: int, network: Network, loss: float) -> bool:
        # Large students take minutes, the few neurons of a pool do not.
        is_costly = trainer.is_matrix_free(network) and network.widths == recipe.widths
        if loss < (FIRST_POLISH_LOSS if is_costly else ANNEALING_LOSS):
            candidate = annealer.finish(network)
            if candidate.certificate.function_certified:
                certified[student] = candidate
            elif candidate.certificate.is_conclusive:
                annealed[student] = candidate
            trainer.watch.say("training")
        return bool(certified or annealed)

    students = trainer.train(
        seeds,
        recipe.widths,
        max_iter=recipe.max_iter,
        tol=recipe.tol,
        is_recovered=is_recovered if annealer.prune and recipe.anneal else None,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )
    return Ensemble(students, recipe.tol, certified, annealed)
