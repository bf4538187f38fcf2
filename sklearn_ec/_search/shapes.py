"""Which depth, width and activation hold the network? Probe students, cheapest first.

The search climbs from a single hidden layer: a shape is probed by a few students that are trained
for a few steps with every activation in question, then the next deeper and the next wider shape,
and it moves on while this lowers the loss on held-out rows. Depth and activation show at once: on
tanh teachers, tanh students of the right depth reach 1e-9 to 1e-18 within 30 steps, those of a
wrong activation 1e-8, those of one layer too few 1e-4. The width needs only to be large enough,
pruning finds the exact one. Promising probes are pruned, and the first certified network ends the
search.
"""

from __future__ import annotations

import math
import time

import numpy as np

from sklearn_ec._expand.warm_up import Start

from .rounds import Round
from .trial_trainer import TrialTrainer
from .trials import Shape, Trial

# Activations of which two neurons make one of the other.
PAIR = {"relu", "leaky_relu"}
# Activations that are those of ReLU where weights are large.
SHARP = {"gelu", "silu", "softplus"}


def _pair_of(activation: str) -> set[str]:
    """An activation and the one whose neurons are pairs of its neurons, if there is one."""
    return PAIR if activation in PAIR else {activation}


class Search:
    """Find students that hold the network.

    Parameters
    ----------
    trainer : TrialTrainer
        Trains the students of each trial; its finishers are those of the activations in question.
    earlier : Trial, default=None
        Students of a fit to other rows, which are asked first.
    """

    def __init__(self, trainer: TrialTrainer, earlier: Trial | None = None):
        self.trainer = trainer
        self.finishers, self.settings = trainer.finishers, trainer.settings
        self.n_students = trainer.n_students
        self.trials = trainer.trials
        if earlier is not None:
            self.trials.append(earlier)

    def run(self) -> Trial:
        """The certified trial, else the most parsimonious one that does about best."""
        self._finish_promising()
        if trial := self._ended():
            return trial
        first = self._first_shape()
        self._probe(first)
        shape: Shape | None = first
        while shape is not None and not self._is_over:
            shape = self._climb(shape)
        return self._ended() or self._conclude(self._approximated or self._most_parsimonious())

    def _conclude(self, trial: Trial) -> Trial:
        """Train further students, unless one was pruned to a deep approximation."""
        best = trial.ensemble.best_candidate
        is_deep = len(trial.widths) > 1
        if not (is_deep and best and trial.is_approximation(best.network)):
            return self.trainer.train_to_the_end(trial)
        trial.ensemble.is_complete = True
        return trial

    def run_given(self, widths: Shape) -> Trial:
        """The trial of given widths, with the best activation of those in question."""
        self._finish_promising()
        if trial := self._ended():
            return trial
        if len(self.finishers) > 1:
            self._probe(widths)
            self._probe_finalists(widths)
            self._finish_promising()
            return self._ended() or self.trainer.train_to_the_end(self._most_parsimonious())
        (activation,) = self.finishers
        rounds = self.trainer.rounds(activation, widths)
        if self.trials:
            return self.trainer.train_to_the_end(self.trials[0], rounds)
        first, *others = rounds
        trial = self.trainer.new_trial(
            activation, widths, self.trainer.n_students_of(activation, widths, first), first
        )
        self.trials.append(trial)
        lowest = math.inf if first.equations is None else trial.ensemble.lowest_loss
        return self.trainer.train_to_the_end(trial, others, lowest)

    def run_briefly(self, widths: Shape) -> Trial:
        """A few briefly trained students of given widths, where there is no network to be found."""
        n_students = min(self.settings.search.n_brief, self.n_students)
        trial = self.trainer.new_trial(
            next(iter(self.finishers)), widths, n_students, self._probing
        )
        trial.ensemble.is_complete = True
        self.trials.append(trial)
        return trial

    def run_approximately(self) -> Trial:
        """Students that make a small network together, where no network made the targets."""
        n_students = min(self.settings.search.n_probes, self.n_students)
        activation, shape = next(iter(self.finishers)), self._first_shape()
        trial = self.trainer.new_trial(activation, shape, n_students, self._probing)
        trial.ensemble.approximate(trial.finisher)
        self.trials.append(trial)
        return trial

    @property
    def _probing(self) -> Round:
        return Round(self.settings.search.probe_steps, asks_finisher=False)

    @property
    def _race(self) -> Round:
        settings = self.settings.search
        return Round(
            settings.race_steps,
            settings.brief_equations[0],
            asks_finisher=False,
            start=Start(n_steps=settings.race_warm_up),
        )

    def _first_shape(self) -> Shape:
        width = self.settings.search.start_widths[0]
        while width > 1 and not self._fits((width,)):
            width //= 2
        return (width,)

    def _fits(self, shape: Shape) -> bool:
        n_equations = next(iter(self.finishers.values())).polisher.samples.n_equations
        largest = min(n_equations, self.settings.search.max_student_parameters)
        return self.trainer.n_parameters(shape) <= largest

    def _climb(self, shape: Shape) -> Shape | None:
        """Probe the neighbors of a shape; the best of them if it is better, None at the top.

        A deep approximation ends this at once unless other activations are in question, one of
        which may be exact where this one comes near.
        """
        for neighbor in self._neighbors(shape):
            self._probe(neighbor)
            if self._is_over or (self._approximated and len(self.finishers) == 1):
                return None
            if not self._improves(shape) and self._best_of(shape).is_at_noise_floor:
                self._probe_finalists(shape)
                return None
        self._probe_finalists(self._best().widths)
        self._finish_promising()
        is_better = self._improves(shape) and not self._approximated
        return self._best().widths if is_better else None

    def _improves(self, shape: Shape) -> bool:
        """Whether the best trial is much better than those of a shape."""
        enough = self.settings.search.improvement * self._best_of(shape).score
        return self._best().score < enough

    def _neighbors(self, shape: Shape) -> list[Shape]:
        """One layer more, and twice the width; those that fit and were not probed yet."""
        start_widths, depth, width = self.settings.search.start_widths, len(shape), shape[0]
        neighbors = [tuple(2 * w for w in shape)]
        if depth < len(start_widths):
            deeper = start_widths[depth] * width // start_widths[depth - 1]
            neighbors.insert(0, (max(deeper, 1),) * (depth + 1))
        probed = {trial.widths for trial in self.trials}
        return [n for n in neighbors if n not in probed and self._fits(n)]

    def _probe(self, shape: Shape) -> None:
        """Train probes with the activations in question; finish those that stand out.

        Where these are many, a race decides which ones, and whether now: few students, after a
        short warm-up and few steps, rank activations as the probes do.
        """
        settings, activations = self.settings.search, self._activations()
        others = min((trial.score for trial in self.trials), default=0.0)
        if len(activations) <= settings.n_finalists:
            self._probe_each(shape, activations)
            return
        stage = self._train_each(shape, activations, self._race)
        enough = max(self.settings.finish.network_loss, settings.improvement * others)
        if min(trial.score for trial in stage) < enough:
            self._probe_finalists(shape)

    def _probe_finalists(self, shape: Shape) -> None:
        """Probe the best activations of a race, once, and those that make pairs with them.

        Where none did well, ReLU may have lost by bad luck: its few students are the roughest.
        """
        raced = [trial for trial in self.trials if trial.widths == shape]
        if self._is_over or not all(trial.is_race for trial in raced):
            return
        raced.sort(key=lambda trial: trial.score)
        best = [trial.activation for trial in raced[: self.settings.search.n_finalists]]
        finalists = set(best).union(*map(_pair_of, best))
        if raced[0].score > self.settings.finish.network_loss:
            finalists |= PAIR
        untried = [t.activation for t in raced if t.activation in finalists and not t.tried]
        self._probe_each(shape, untried)

    def _probe_each(self, shape: Shape, activations: list[str]) -> None:
        """Train a probe with each activation; finish those that stand out."""
        settings = self.settings.search
        others = [trial.score for trial in self.trials if trial.widths != shape]
        stage = self._train_each(shape, activations, self._probing)
        stage.sort(key=lambda trial: trial.score)
        for trial in stage:
            if self._is_over:
                break
            stands_out = trial.score < settings.stands_out * min(others, default=0.0)
            is_good = trial.score < self._promising_loss(trial)
            if not trial.tried and (is_good or (stands_out and trial is stage[0])):
                self._finish(trial)

    def _train_each(self, shape: Shape, activations: list[str], round: Round) -> list[Trial]:
        """Students of each activation; those that look exact are finished before others train."""
        settings = self.settings.search
        n_students = min(settings.n_race if round.is_race else settings.n_probes, self.n_students)
        stage: list[Trial] = []
        for activation in activations:
            stage.append(self.trainer.new_trial(activation, shape, n_students, round))
            self._add(stage[-1])
            stage.sort(key=lambda trial: list(self.finishers).index(trial.activation))
            for trial in filter(self._looks_exact, stage):
                self._finish(trial)
                if self._is_over:
                    return stage
        return stage

    def _add(self, trial: Trial) -> None:
        """Keep a trial, in the place of the race of the same activation and widths, if any."""
        for other in self.trials:
            if (other.activation, other.widths) == (trial.activation, trial.widths):
                trial.seconds += other.seconds
                self.trials.remove(other)
                break
        self.trials.append(trial)

    def _looks_exact(self, trial: Trial) -> bool:
        """Whether a trial is to be finished at once; of a pair, both are to be probed before."""
        probed = {t.activation for t in self.trials if t.widths == trial.widths and not t.is_race}
        pair = _pair_of(trial.activation) & self.finishers.keys()
        is_waiting = len(pair) > 1 and not pair <= probed
        return trial.score < self.settings.search.exact_loss and not (trial.tried or is_waiting)

    def _activations(self) -> list[str]:
        """All in question for the first two shapes, then the best so far."""
        if len({trial.widths for trial in self.trials}) < 2:
            return list(self.finishers)
        best: dict[str, float] = {}
        for trial in self.trials:
            best[trial.activation] = min(best.get(trial.activation, np.inf), trial.score)
        return sorted(best, key=best.__getitem__)[: self.settings.search.n_finalists]

    def _finish_promising(self) -> None:
        """Finish the best probes, one after the other, up to a certificate."""
        ranked = sorted(self.trials, key=lambda trial: trial.score)
        for trial in ranked[: self.settings.search.n_finalists]:
            if self._is_over:
                break
            if not trial.tried:
                self._finish(trial)

    def _finish(self, trial: Trial) -> None:
        if self._worth_finishing(trial):
            start = time.perf_counter()
            trial.tried = True
            trial.ensemble.seek(trial.finisher)
            self._try_limit(trial)
            if not self._is_over:
                self.trainer.grow(trial, self.settings.search.n_probes)
            trial.seconds += time.perf_counter() - start
            if trial.has_right_shape and not self._is_over:
                self.trainer.train_to_the_end(trial)
            self._try_paired(trial)

    def _try_limit(self, trial: Trial) -> None:
        """Where a network of few neurons nearly fits, let ReLU students grow from sharp ones.

        ``gelu`` 4-3 comes to 2e-13 of a ReLU network that ReLU students do not learn in 30 steps.
        """
        network, _ = trial.ensemble.corner(self.settings.search.exact_loss)
        if network is not None and trial.activation in SHARP and "relu" in self.finishers:
            n_students, round = self.settings.search.n_probes, self.trainer.growth(trial, network)
            limit = self.trainer.new_trial(
                "relu", trial.widths, min(n_students, self.n_students), round
            )
            if limit.exact_size is not None:
                self._add(limit)

    def _try_paired(self, trial: Trial) -> None:
        """Where an exact network is refused, train students whose neurons are pairs of its neurons.

        ReLU students may learn leaky ReLU networks more easily than leaky ones do, with two neurons
        for each, or the other way; the data leave open how these share their work.
        """
        if trial.exact_size is None or trial.certified:
            return
        pair = _pair_of(trial.activation)
        for other in self.trials:
            is_paired = other.activation in pair and other.widths == trial.widths
            if is_paired and not other.tried:
                other.tried = True
                other.ensemble.seek(other.finisher)
                self.trainer.train_to_the_end(other)

    def _worth_finishing(self, trial: Trial) -> bool:
        """Whether a probe may hold the network: shallow ones that do come near to rounding."""
        is_good = trial.held_out_loss < self.settings.finish.worthwhile_loss
        if len(trial.widths) == 1:
            is_good &= trial.score < self._promising_loss(trial)
        return trial.finisher.prune and is_good and not trial.is_at_noise_floor

    def _promising_loss(self, trial: Trial) -> float:
        rounding_loss = trial.finisher.polisher.samples.rounding_loss
        return max(self.settings.search.promising_loss, 10.0 * rounding_loss)

    def _ended(self) -> Trial | None:
        """The trial that gave the network: a certified one, else one that others cannot improve."""
        ended = (trial for trial in self.trials if trial.has_ended)
        return min(ended, key=lambda trial: not trial.certified, default=None)

    @property
    def _approximated(self) -> Trial | None:
        """A trial after which other shapes can do no better: no small network made the data."""
        return next((trial for trial in self.trials if trial.is_approximated), None)

    @property
    def _is_over(self) -> bool:
        """Whether there is the network, or one that is exact but for what the rows leave open."""
        return any(trial.has_ended or trial.exact_size is not None for trial in self.trials)

    def _best(self) -> Trial:
        return min(self.trials, key=lambda trial: trial.score)

    def _best_of(self, shape: Shape) -> Trial:
        trials = [trial for trial in self.trials if trial.widths == shape]
        return min(trials, key=lambda trial: trial.score)

    def _most_parsimonious(self) -> Trial:
        """The trial of the smallest exact network.

        Where there is none, the cheapest trial whose loss on held-out rows is near the lowest.
        """
        exact = [trial for trial in self.trials if trial.exact_size is not None]
        if exact:
            return min(exact, key=lambda trial: (trial.exact_size, trial.score))
        lowest = min(trial.score for trial in self.trials)
        highest = lowest / self.settings.search.improvement
        good = [trial for trial in self.trials if trial.score <= highest]
        return min(
            good, key=lambda t: (len(t.widths), self.trainer.n_parameters(t.widths), t.score)
        )
