"""Train the students of one trial: in rounds, each from what those before found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from sklearn_ec._core.records import Network
from sklearn_ec._expand.warm_up import Start
from sklearn_ec._finish.finisher import Finisher
from sklearn_ec._finish.noisy import reached_noise_floor

from .ensemble import Ensemble
from .rounds import Round
from .trials import Shape, Trial


class TrialTrainer:
    """Trains the students of trials.

    Parameters
    ----------
    finishers : dict
        One finisher for each activation in question.
    train : callable
        Trains students: ``train(finisher, widths, n_students, round)``.
    n_parameters : callable
        Maps assumed widths to the number of parameters of one student.
    are_large : callable
        Maps a finisher and assumed widths to whether steps of Levenberg on students take long.
    n_students : int
        Number of students of a round.
    max_iter : int
        Number of steps of the last round.

    Attributes
    ----------
    trials : list
        All trials so far: a smaller exact network of another one ends the training.
    """

    def __init__(
        self,
        finishers: dict[str, Finisher],
        train: Callable[..., Ensemble],
        n_parameters: Callable[[Shape], int],
        are_large: Callable[[Finisher, Shape], bool],
        n_students: int,
        max_iter: int,
    ):
        self.finishers = finishers
        self.settings = next(iter(finishers.values())).settings
        self.train = train
        self.n_parameters = n_parameters
        self.are_large = are_large
        self.n_students = n_students
        self.max_iter = max_iter
        self.trials: list[Trial] = []

    def new_trial(self, activation: str, widths: Shape, n_students: int, round: Round) -> Trial:
        """The students of a round as a trial, which is not among the others yet."""
        start, finisher = time.perf_counter(), self.finishers[activation]
        ensemble = self.train(finisher, widths, n_students, round)
        seconds = time.perf_counter() - start
        return Trial(activation, widths, finisher, ensemble, seconds, is_race=round.is_race)

    def n_students_of(self, activation: str, widths: Shape, round: Round) -> int:
        """How many students a round has: fewer where they only begin something."""
        settings = self.settings.search
        if round.max_iter != 0 and round.asks_finisher:
            return self.n_students
        limit = settings.group_size
        if len(widths) == 1 and self.are_large(self.finishers[activation], widths):
            limit = settings.n_large if round.start.network is None else settings.n_large_grown
            if self.finishers[activation].polisher.trains_along_few(widths[0]):
                limit = 1  # what it reads tells where further neurons are
        return min(limit, self.n_students)

    def rounds(self, activation: str, widths: Shape) -> list[Round]:
        """The rounds of training: brief ones on a share of the rows, the last one to the end.

        There is one brief round on all rows at most. Of students whose steps take longer than their
        warm-up, there are rounds of nothing else before.
        """
        finisher, settings = self.finishers[activation], self.settings.search
        n_parameters = self.n_parameters(widths)
        if not self._can_be_brief(activation):
            return [Round()]
        flops = 2.0 * settings.brief_equations[0] * n_parameters**3  # of a step of the first round
        is_large = flops > self.settings.training.most_dense_flops(len(widths))
        available = finisher.polisher.samples.n_equations / n_parameters
        shares = [min(share, available) for share in settings.brief_equations]
        brief = [] if is_large else list(dict.fromkeys(shares))
        first = settings.warm_up_first[min(len(widths), 2) - 1]
        return [
            *([self._warm_up] if n_parameters > first else []),
            *(Round(settings.brief_steps, share) for share in brief),
            Round(),
        ]

    def train_to_the_end(
        self, trial: Trial, rounds: Sequence[Round] | None = None, lowest: float = math.inf
    ) -> Trial:
        """Train further students in rounds, up to a certificate or to where more would not help.

        Each round starts from what those before found. Where pruning ended in a corner that no
        student came close to, all students grow from there: one of them mostly finds what is
        missing. Else they start with the neurons that the others share; after a warm-up alone, as
        long as there are more of them each time, with a lower rate of Adam. Where a brief round of
        shallow students, on more rows, does no better than the one before, whose ``lowest`` loss
        was this, and they are far from zero, there is no network. Of deep ones it says little:
        ``g`` 6-5-4-3-1 stood at 1e-12 in two rounds.
        """
        start, finisher = time.perf_counter(), trial.finisher
        if rounds is None:
            rounds = self.rounds(trial.activation, trial.widths)
        waiting, latest, n_shared, rate = list(rounds), trial.ensemble, 0, 1.0
        while waiting and not self._is_settled(trial, latest):
            shared = self._shared_layers(trial, latest)
            if trial.has_ended or not trial.ensemble.show_network(finisher):
                break
            self.grow(trial, self.n_students)
            if trial.has_ended or trial.ensemble.agree_exactly:
                break
            if latest.is_warm_up and sum(map(len, shared)) > n_shared:
                n_shared, rate = sum(map(len, shared)), self.settings.search.cooling * rate
                round = replace(self._warm_up, start=Start(shared=shared, rate=rate))
            else:
                round = replace(waiting.pop(0), start=Start(shared=shared))
            latest = self.train(
                finisher,
                trial.widths,
                self.n_students_of(trial.activation, trial.widths, round),
                round,
            )
            trial.ensemble = trial.ensemble.joined(latest)
            if round.equations is not None and len(trial.widths) == 1:
                before, lowest = lowest, trial.ensemble.lowest_loss
                enough = self.settings.search.stands_out * before
                if not lowest < max(enough, self.settings.finish.network_loss):
                    break
        trial.seconds += time.perf_counter() - start
        return trial

    def grow(self, trial: Trial, n_students: int) -> None:
        """Let students grow from the corner in which pruning ended, as long as this helps.

        Those that got no further are not kept: close to each other, they would look like students
        at a noise floor, and their clusters are the corner once more.
        """
        settings = self.settings.search
        while self._can_be_brief(trial.activation) and not trial.has_ended:
            network, loss = self._start_of_growth(trial)
            is_aimed = self._are_aimed(trial)
            share = settings.improvement if is_aimed else settings.stands_out
            is_better = loss < share * trial.corner
            if network is None or not is_better:
                break
            if not is_aimed and trial.is_approximation(network):
                break
            trial.corner = loss
            enough = share * loss
            for round in self._growths(trial, network, loss):
                self._grow_once(trial, round, n_students, enough)
                if trial.has_ended or self._start_of_growth(trial)[1] < enough:
                    break

    def _start_of_growth(self, trial: Trial) -> tuple[Network | None, float]:
        """As the trial says; where new neurons are aimed, of any width."""
        if not self._are_aimed(trial):
            return trial.start_of_growth
        worthwhile_loss = self.settings.finish.worthwhile_loss
        return trial.ensemble.corner(worthwhile_loss, any_width=True)

    def growth(self, trial: Trial, corner: Network) -> Round:
        """The round of students that start as a network, with a few random neurons besides.

        Large shallow ones, which learned what is missing before, need no steps.
        """
        start = Start(network=corner)
        if self._are_large(trial):
            return replace(self._warm_up, start=start)
        settings = self.settings.search
        return Round(settings.brief_steps, settings.brief_equations[0], start=start)

    def _grow_once(self, trial: Trial, round: Round, n_students: int, enough: float) -> None:
        n_students = min(n_students, self.n_students_of(trial.activation, trial.widths, round))
        grown = self.train(trial.finisher, trial.widths, n_students, round)
        if not round.asks_finisher:
            grown.finish_best(trial.finisher, self.settings.search.n_expanded_finished)
        if grown.is_conclusive or grown.lowest_loss < enough:
            trial.ensemble = trial.ensemble.joined(grown)
        else:
            trial.ensemble = trial.ensemble.with_attempt(grown.best_candidate)

    def _growths(self, trial: Trial, corner: Network, loss: float) -> Iterator[Round]:
        """Rounds of students that grow from a corner.

        Near zero, deep ones keep its lower layers, which are often right where the last is not, as
        many as possible first, and have fresh neurons above. Others start as the corner, which has
        hardly more neurons than the sought network then: one with many more leads to others of
        their kind.
        """
        settings = self.settings.search
        if self._are_large(trial) or not loss < settings.expansion_loss:
            yield self.growth(trial, corner)
            return
        expanded = Round(
            settings.expansion_steps, settings.expansion_equations, asks_finisher=False
        )
        for n_lower in range(len(corner.widths) - 1, 0, -1):
            yield replace(expanded, start=Start(collapsed=corner.layers[:n_lower]))
        if loss > 0.0:
            most = [width + settings.n_spare for width in trial.widths]
            yield replace(expanded, start=Start(network=trial.finisher.narrowed(corner, most)))

    def _are_large(self, trial: Trial) -> bool:
        return len(trial.widths) == 1 and self.are_large(trial.finisher, trial.widths)

    def _are_aimed(self, trial: Trial) -> bool:
        return self._are_large(trial) and not trial.finisher.polisher.has_weak_inputs

    def _can_be_brief(self, activation: str) -> bool:
        """Whether a few steps of students tell something."""
        finisher, settings = self.finishers[activation], self.settings.search
        is_adam = finisher.polisher.solver == "adam"
        return finisher.prune and self.max_iter > settings.brief_steps and not is_adam

    @property
    def _warm_up(self) -> Round:
        return Round(max_iter=0)

    def _shared_layers(self, trial: Trial, latest: Ensemble) -> tuple[np.ndarray, ...]:
        """The neurons that students share, whose network is tried."""
        if latest.is_warm_up and len(latest.students) < self.settings.cluster.min_voters:
            return ()
        if latest.is_warm_up:
            layers = latest.seek_in_clusters(trial.finisher)
            trial.ensemble.clustered = latest.clustered or trial.ensemble.clustered
        else:
            layers = trial.ensemble.seek_in_clusters(trial.finisher)
        return trial.finisher.with_resolved_signs(layers)

    def _is_settled(self, trial: Trial, latest: Ensemble) -> bool:
        """Whether a trial has its network, or its latest students converged or stopped at noise."""
        students, samples = latest.students, trial.finisher.polisher.samples
        is_over = students.succeeded or students.n_failed == len(students)
        is_over |= trial.ensemble.agree_exactly or _is_beaten(trial, self.trials)
        if trial.has_ended or is_over or latest.is_warm_up:
            return trial.has_ended or is_over
        return reached_noise_floor(students, samples, self.settings.noise)


def _is_beaten(trial: Trial, others: Sequence[Trial]) -> bool:
    """Whether the exact network of a trial is larger than that of another one."""
    size, sizes = trial.exact_size, [other.exact_size for other in others]
    return size is not None and any(s is not None and s < size for s in sizes)
