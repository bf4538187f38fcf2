"""The students of one fit: how they are trained, which of them vote, and what annealing gave.

Nothing here depends on the thresholds ``gamma``, ``beta`` and ``cut``, so that ``recluster`` needs
no training.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ._annealing import ANNEALING_LOSS, Annealer, Candidate
from ._course import Checkpoint, OnEpoch
from ._reconstruction import count_agreeing
from ._training import Trainer, n_levenberg_epochs
from ._types import MIN_VOTERS, Network, Students

MAX_ANNEALED = 3


@dataclass
class Ensemble:
    """Trained students, and the networks that annealing made of some of them, by student."""

    students: Students
    tol: float
    certified: dict[int, Candidate] = field(default_factory=dict)
    annealed: dict[int, Candidate] | None = None  # the best ones, once the clusters have failed
    n_reused: int = 0  # students that an earlier fit trained

    @property
    def is_promising(self) -> bool:
        """Whether more students might give the network: few of these converged, none gave it."""
        students = self.students
        return (
            not self.certified
            and len(students.converged(self.tol)) < MIN_VOTERS
            and bool((students.losses < ANNEALING_LOSS).any())
        )

    def joined(self, others: Ensemble) -> Ensemble:
        """These students and further ones behind them."""
        certified = {len(self.students) + s: c for s, c in others.certified.items()}
        students = self.students.joined(others.students)
        n_reused = self.n_reused + others.n_reused
        return Ensemble(students, self.tol, {**self.certified, **certified}, n_reused=n_reused)

    def copy(self, n_reused: int) -> Ensemble:
        """The same students, for further networks to be added."""
        return replace(self, certified=dict(self.certified), n_reused=n_reused)

    def confirm(self, annealer: Annealer) -> None:
        """Where one student gave the network and few converged, anneal more of them to vote."""
        if not self.certified:
            return
        voters = self.voters()
        others = [student for student in self.students.by_loss() if student not in voters]
        for student in others[: max(0, MIN_VOTERS - len(voters))]:
            if self.students.losses[student] < ANNEALING_LOSS:
                candidate = annealer.finish(self.students.network(student), persistent=False)
                if candidate.certificate.passed:
                    self.certified[int(student)] = candidate

    def voters(self) -> dict[int, Network]:
        """The students whose neurons are clustered.

        Once a network is certified these are the annealed students that were certified, and the
        converged ones; else as :meth:`Students.voters` says.
        """
        students, tol = self.students, self.tol
        trained = students.converged(tol) if self.certified else students.voters(tol)
        voters = {int(student): students.network(student) for student in trained}
        voters.update({s: candidate.network for s, candidate in self.certified.items()})
        return dict(sorted(voters.items()))

    def anneal_best(self, annealer: Annealer) -> list[Candidate]:
        """Finished best students, up to the first certified one; they are kept."""
        if self.annealed is None:
            self.annealed = {}
            best = self.students.by_loss()[:MAX_ANNEALED]
            for student in best[self.students.losses[best] < ANNEALING_LOSS]:
                candidate = annealer.finish(self.students.network(student))
                self.annealed[int(student)] = candidate
                if candidate.certificate.passed:
                    break
        return list(self.annealed.values())

    def n_agreeing(self, network: Network, trainer: Trainer) -> int:
        """How many students hold every neuron of a network, as trained or annealed."""
        annealed = (self.annealed or {}).items()
        passed = {s: c.network for s, c in annealed if c.certificate.passed}
        voters = list((self.voters() | passed).values())
        return count_agreeing(network, voters, trainer.samples, trainer.activation)


@dataclass(frozen=True)
class Recipe:
    """How students are trained."""

    widths: tuple[int, ...]
    solver: str
    max_iter: int
    tol: float

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

    def is_recovered(student: int, network: Network, loss: float) -> bool:
        if loss < ANNEALING_LOSS:
            candidate = annealer.finish(network)
            if candidate.certificate.passed:
                certified[student] = candidate
        return bool(certified)

    students = trainer.train(
        seeds,
        recipe.widths,
        max_iter=recipe.max_iter,
        tol=recipe.tol,
        is_recovered=is_recovered if annealer.prune else None,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )
    return Ensemble(students, recipe.tol, certified)
