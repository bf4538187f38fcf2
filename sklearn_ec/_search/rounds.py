"""How a group of students is trained: from where, how far, and until what is found.

Their training asks for the network between two epochs, in their clusters and in the best of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_ec._core.records import Samples, Students
from sklearn_ec._core.settings import Search as SearchSettings
from sklearn_ec._core.settings import Training
from sklearn_ec._expand.polishing import Polisher, Unfinished
from sklearn_ec._expand.skorch_nets import n_levenberg_epochs
from sklearn_ec._expand.students import grown_students, layer_shapes
from sklearn_ec._expand.training import StudentTrainer
from sklearn_ec._expand.training_state import Checkpoint, OnEpoch
from sklearn_ec._expand.warm_up import USUAL, Start
from sklearn_ec._finish.finisher import Finisher
from sklearn_ec._finish.removals import reduced

from .ensemble import Ensemble, best_of, is_overfitted


@dataclass(frozen=True)
class Round:
    """How far students are trained, and from where."""

    max_iter: int | None = None  # None for that of the estimator, 0 for the warm-up alone
    equations: float | None = None  # per parameter of a student; None for all rows
    asks_finisher: bool = True  # whether training ends once these students gave the network
    start: Start = USUAL

    @property
    def is_race(self) -> bool:
        """Whether a short training is to tell activations apart."""
        return self.start.n_steps is not None

    def steps(self, max_iter: int) -> int:
        """Number of steps of an estimator that allows so many."""
        return max_iter if self.max_iter is None else min(self.max_iter, max_iter)


@dataclass(frozen=True)
class Recipe:
    """How students are trained."""

    widths: tuple[int, ...]
    solver: str
    max_iter: int
    tol: float
    round: Round = Round()

    def max_epochs(self, training: Training) -> int:
        """Largest number of epochs of a batch of students."""
        is_adam = self.solver == "adam"
        return self.max_iter if is_adam else n_levenberg_epochs(self.max_iter, training)

    def trained_widths(self, search: SearchSettings, is_aimed: bool = False) -> tuple[int, ...]:
        """Widths in training: students that grow have a share more neurons than their start.

        Large ones whose new neurons are aimed have more of them, and may be wider than others.
        """
        start, collapsed = self.round.start.network, self.round.start.collapsed
        if collapsed:
            return (*map(len, collapsed), *self.widths[len(collapsed) :])
        if start is None:
            return self.widths
        share = search.aimed_growth if is_aimed else search.growth
        grown = [w + max(search.min_growth, math.ceil(share * w)) for w in start.widths]
        return tuple(grown if is_aimed else map(min, self.widths, grown))


def train_group(
    finisher: Finisher,
    recipe: Recipe,
    seeds: np.ndarray,
    checkpoint: Checkpoint | None = None,
    on_epoch: OnEpoch | None = None,
) -> Ensemble:
    """Train students until enough converged, or their clusters or the best one give the network."""
    polisher, max_iter = finisher.polisher, recipe.max_iter
    is_aimed = max_iter == 0 and not polisher.has_weak_inputs
    widths = recipe.trained_widths(finisher.settings.search, is_aimed)
    if recipe.solver == "adam":
        students = StudentTrainer(polisher).train_with_adam(
            seeds, widths, max_iter=max_iter, checkpoint=checkpoint, on_epoch=on_epoch
        )
        return Ensemble(students, recipe.tol)
    question = _Question(finisher, recipe, widths)
    rows = _share_of_rows(polisher.samples, recipe, widths, seeds)
    students = StudentTrainer(polisher, rows).train(
        seeds,
        widths,
        max_iter=max_iter,
        tol=recipe.tol,
        start=recipe.round.start,
        is_recovered=question if finisher.prune and recipe.round.asks_finisher else None,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )
    if rows is not polisher.samples:
        students = replace(students, losses=polisher.losses(students.layers))
    if students.network(0).widths != recipe.widths:
        students = replace(students, layers=_as_wide(students, recipe.widths, polisher, seeds))
    return Ensemble(students, recipe.tol, **question.found)


class _Question:
    """Asks whether students in training give the network, and keeps what was made of them."""

    def __init__(self, finisher: Finisher, recipe: Recipe, widths: tuple[int, ...]):
        self.finisher = finisher
        self.recipe = recipe
        self.widths = widths  # in training
        self.found: dict[str, Any] = {}  # fields of the ensemble

    def __call__(self, students: Students, indices: np.ndarray) -> bool:
        settings = self.finisher.settings.finish
        is_far = not (students.losses < settings.worthwhile_loss).any()
        if is_far or is_overfitted(students, settings):
            return False
        group = Ensemble(students, self.recipe.tol, attempt=self.found.get("attempt"))
        try:
            is_found = group.seek(self.finisher, self._prunes(students))
        except Unfinished as stop:
            group = group.with_attempt(self.finisher.judge_as_is(stop.network))
            raise
        finally:
            self._keep(group, indices)
        self.finisher.polisher.watch.say("training")
        return is_found

    def _keep(self, group: Ensemble, indices: np.ndarray) -> None:
        """Keep what was made of students in training, of these ones."""
        found = self.found
        for kept in ("certified", "finished"):
            for student, candidate in getattr(group, kept).items():
                if candidate.certificate.fits_exactly or candidate.certificate.is_conclusive:
                    found.setdefault(kept, {})[int(indices[student])] = candidate
        clustered = group.clustered
        if group.is_conclusive or (clustered and clustered.candidate.certificate.fits_exactly):
            found["clustered"] = clustered
        found["attempt"] = best_of(found.get("attempt"), group.best_candidate)

    def _prunes(self, students: Students) -> bool:
        """Whether it is time to prune the best student."""
        settings, n_epochs = self.finisher.settings, students.loss_curves.shape[1] - 1
        if self.finisher.polisher.is_matrix_free(students.network(0)):  # it takes minutes
            finish = settings.finish
            limit = finish.first_polish_loss if n_epochs else finish.large_polish_loss
            return bool(np.nanmin(students.losses) < limit)
        if n_epochs == 0:  # steps of one student take less time than those of all
            return len(self.widths) == 1
        return n_epochs >= settings.training.first_pruning_epoch


def _as_wide(
    students: Students, widths: tuple[int, ...], polisher: Polisher, seeds: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Layers of students of other widths: random neurons that nothing reads, or the best ones."""
    networks = list(map(students.network, range(len(students))))
    if len(widths) == 1:
        networks = [reduced(network, widths[0], polisher) for network in networks]
    return tuple(grown_students(networks, widths, seeds))


def _share_of_rows(
    samples: Samples, recipe: Recipe, widths: tuple[int, ...], seeds: np.ndarray
) -> Samples:
    """The rows of a group's Levenberg steps, drawn with its seeds."""
    if recipe.round.equations is None:
        return samples
    n_inputs, n_outputs = samples.X.shape[1], samples.y.shape[1]
    shapes = layer_shapes(n_inputs, widths, n_outputs, False)
    return samples.thinned(recipe.round.equations * sum(map(math.prod, shapes)), seeds)
