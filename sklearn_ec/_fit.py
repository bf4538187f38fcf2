"""The steps of one fit: search and train, cluster, finish; and what an interrupt leaves of it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from ._certify.certificate import Certificate
from ._cluster.layerwise import ClusteredLayers, Thresholds
from ._core.activations import DISTINCT_ACTIVATIONS, get_activation
from ._core.coordinates import Problem
from ._core.records import Dendrogram, Students
from ._core.watch import Watch
from ._expand.polishing import Polisher
from ._expand.students import has_skip_terms, layer_shapes
from ._finish.finisher import Candidate, Finisher
from ._io.cache import digest, open_store
from ._report.advice import WITHOUT_NETWORK, WITHOUT_NEURONS, TargetKind
from ._report.reporting import Heartbeat, Stage
from ._search.ensemble import Ensemble, Origin, carried_over
from ._search.rounds import Recipe, Round
from ._search.scheduling import GroupTrainer, Interrupted
from ._search.shapes import Search
from ._search.trial_trainer import TrialTrainer
from ._search.trials import Trial, with_verdict

MAX_SEED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Trained:
    """Students, and what was assumed of the sought network when they were trained."""

    ensemble: Ensemble
    widths: tuple[int, ...]  # of the hidden layers of the sought network
    activation: str


@dataclass(frozen=True)
class Recovery:
    """The network that a fit ends with, and what led to it."""

    trained: Trained
    candidate: Candidate
    origin: Origin
    layers: ClusteredLayers
    n_agreeing: int  # voters that hold every neuron of the network
    search_report: list[dict[str, Any]]
    seconds: float  # that it took to cluster and to finish
    interrupted_by: str = ""  # what ended the fit early

    @property
    def width_agreement(self) -> tuple[int, int]:
        """How many pruned students have the widths of the network, and how many there are."""
        return self.trained.ensemble.width_agreement(self.candidate.network)

    @property
    def dendrograms(self) -> list[Dendrogram]:
        n_students = len(self.trained.ensemble.students)
        return [
            replace(record, n_students=n_students, n_agreeing=self.n_agreeing)
            for record in self.layers.dendrograms
        ]

    def certificate(self, column_names: Sequence[Any] | None) -> Certificate:
        """The certificate with the user's names of the open columns."""
        certificate = self.candidate.certificate
        if column_names is None or not certificate.open_columns:
            return certificate
        named = tuple(str(column_names[int(column[1:])]) for column in certificate.open_columns)
        return replace(certificate, open_columns=named)


class Fit:
    """One call of ``fit`` or ``recluster``: a context in which the computation is watched.

    It reads the parameters of the estimator, which also carries scikit-learn's callbacks, and sets
    nothing. ``trained`` holds the best students so far, for the case of an interrupt.
    """

    problem: Problem

    def __init__(self, estimator: Any):
        self.estimator = estimator
        self.trained: Trained | None = None
        self.search_report: list[dict[str, Any]] = []
        self._finishers: dict[str, Finisher] = {}

    def __enter__(self) -> Fit:
        """Let the computation report while it lasts, and end after ``max_time``."""
        max_time = self.estimator.max_time
        deadline = None if max_time is None else time.time() + max_time
        self.heartbeat = Heartbeat(self.estimator)
        self.watch = Watch(deadline, self.heartbeat, self.estimator._settings.reporting.beat)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.watch.disarm()
        self.heartbeat.end()

    # Search and train

    def train(
        self,
        problem: Problem,
        widths: tuple[int, ...] | None,
        rng: np.random.Generator,
        *,
        known: dict[str, Ensemble] | None = None,
        targets: TargetKind = "numbers",
    ) -> None:
        """Train students of the given widths and activation, or of the best ones.

        ``known`` holds the groups of earlier fits, and takes up the new ones. A few students take a
        few steps where the targets are of a kind that no network, of any width, makes.
        """
        self.problem = problem

        def train(
            finisher: Finisher, widths: tuple[int, ...], n_students: int, round: Round
        ) -> Ensemble:
            seeds = rng.integers(MAX_SEED, size=n_students)
            return self._train_shape(finisher, seeds, widths, round, known)

        given = self.estimator.activation
        names = DISTINCT_ACTIVATIONS if given == "auto" else (given,)
        finishers = {name: self.finisher(name) for name in names}
        n_students, max_iter = self.estimator.n_students, self.estimator.max_iter
        trial = None if targets in WITHOUT_NETWORK else self._carried_over(widths)
        trainer = TrialTrainer(
            finishers, train, self._n_parameters, self._are_large, n_students, max_iter
        )
        search = Search(trainer, trial)
        try:
            if targets in WITHOUT_NEURONS:
                trial = search.run_briefly(widths or (1,))
            elif widths is not None:
                trial = search.run_given(widths)
            else:
                trial = search.run_approximately() if targets in WITHOUT_NETWORK else search.run()
        finally:
            self.search_report = [trial.report() for trial in search.trials]
        self.trained = Trained(trial.ensemble, trial.widths, trial.activation)

    def _carried_over(self, widths: tuple[int, ...] | None) -> Trial | None:
        """The students of a fit to other rows, where they are of use for this one."""
        estimator = self.estimator
        if not (estimator.warm_start and hasattr(estimator, "_trained")):
            return None
        problem, trained = estimator._problem, estimator._trained
        is_alike = (
            estimator.activation in ("auto", trained.activation)
            and widths in (None, trained.widths)
            and problem.shape == self.problem.shape
        )
        if not (estimator.prune and is_alike) or digest(problem) == digest(self.problem):
            return None
        finisher = self.finisher(trained.activation)
        ensemble = carried_over(
            trained.ensemble,
            problem.coordinates,
            self.problem.coordinates,
            self._student_widths(trained.widths),
            finisher,
        )
        if ensemble is None:
            return None
        return Trial(trained.activation, trained.widths, finisher, ensemble, 0.0)

    def resume(
        self, problem: Problem, trained: Trained, search_report: list[dict[str, Any]]
    ) -> None:
        """Go on with what an earlier fit trained."""
        self.problem, self.trained, self.search_report = problem, trained, search_report

    def _n_parameters(self, widths: tuple[int, ...]) -> int:
        """Number of parameters of a student, from assumed widths."""
        samples = self.problem.train
        n_inputs, n_outputs = samples.X.shape[1], samples.y.shape[1]
        shapes = layer_shapes(n_inputs, self._student_widths(widths), n_outputs, False)
        return sum(map(math.prod, shapes))

    def _are_large(self, finisher: Finisher, widths: tuple[int, ...]) -> bool:
        """Whether steps of Levenberg on students take long, from assumed widths."""
        return finisher.polisher.are_large(self._student_widths(widths))

    def _student_widths(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        factors = np.broadcast_to(self.estimator.rho, len(widths)).tolist()
        return tuple(math.ceil(f * width) for f, width in zip(factors, widths, strict=True))

    def _train_shape(
        self,
        finisher: Finisher,
        seeds: np.ndarray,
        widths: tuple[int, ...],
        round: Round,
        known: dict[str, Ensemble] | None,
    ) -> Ensemble:
        """Students of assumed widths."""
        estimator = self.estimator
        recipe = Recipe(
            self._student_widths(widths),
            estimator.solver,
            round.steps(estimator.max_iter),
            max(estimator.tol, self.problem.train.rounding_loss),
            round,
        )
        activation = finisher.polisher.activation_name
        title = f"hidden layers {widths}, {activation}"
        max_epochs = recipe.max_epochs(estimator._settings.training)
        stage = Stage(estimator, self.heartbeat, title, len(seeds), max_epochs)
        trainer = GroupTrainer(finisher, recipe, stage, n_jobs=estimator.n_jobs, known=known)
        try:
            ensemble = trainer.train(seeds)
        except Interrupted as interrupt:
            self._keep_better(Trained(interrupt.ensemble, widths, activation))
            raise
        stage.end()
        self._keep_better(Trained(ensemble, widths, activation))
        return ensemble

    def _keep_better(self, trained: Trained) -> None:
        """Remember what to use should the fit be interrupted: the best students and network."""
        before, self.trained = self.trained, trained
        if before is None:
            return
        loss = trained.ensemble.students.best_held_out_loss
        is_better = loss < before.ensemble.students.best_held_out_loss
        better, worse = (trained, before) if is_better else (before, trained)
        if better.activation == worse.activation:
            ensemble = better.ensemble.with_attempt(worse.ensemble.best_candidate)
            better = replace(better, ensemble=ensemble)
        self.trained = better

    # Cluster and finish

    def finisher(self, activation: str) -> Finisher:
        if activation not in self._finishers:
            estimator, problem = self.estimator, self.problem
            polisher = Polisher(
                problem.train,
                problem.held_out,
                activation,
                estimator.device,
                has_skip=has_skip_terms(
                    get_activation(activation),
                    problem.train,
                    estimator._settings.training.max_skip_inputs,
                ),
                working_memory=estimator.working_memory,
                solver=estimator.solver,
                watch=self.watch,
                settings=estimator._settings,
            )
            self._finishers[activation] = Finisher(
                polisher,
                problem.held_out,
                problem.coordinates,
                estimator.prune,
                open_store(estimator.memory),
            )
        return self._finishers[activation]

    def recover(self) -> Recovery:
        """Cluster the students' neurons, and find the network among clusters and students."""
        assert self.trained is not None
        finisher = self.finisher(self.trained.activation)
        self.trained.ensemble.complete(finisher)
        return self._reconstruct(self.trained, finisher)

    def best_so_far(self, interrupt: KeyboardInterrupt) -> Recovery:
        """The best network so far, where there is one."""
        if self.trained is None:
            raise interrupt
        max_time = self.estimator.max_time
        cause = f"reached max_time={max_time:g} s" if self.watch.is_over else "was interrupted"
        self.watch.disarm()
        return self._reconstruct(self.trained, self.finisher(self.trained.activation), cause)

    def _reconstruct(
        self, trained: Trained, finisher: Finisher, interrupted_by: str = ""
    ) -> Recovery:
        """Everything that depends on the thresholds: cluster, collapse, finish."""
        ensemble = trained.ensemble
        check_students(ensemble.students)
        start = time.perf_counter()
        layers, candidate, origin = self._best_network(ensemble, finisher, interrupted_by)
        return Recovery(
            trained,
            candidate,
            origin,
            layers,
            n_agreeing=ensemble.n_agreeing(candidate.network, finisher),
            search_report=with_verdict(
                self.search_report,
                trained.activation,
                trained.widths,
                candidate.certificate.passed,
            ),
            seconds=time.perf_counter() - start,
            interrupted_by=interrupted_by,
        )

    def _best_network(
        self, ensemble: Ensemble, finisher: Finisher, interrupted_by: str
    ) -> tuple[ClusteredLayers, Candidate, Origin]:
        """The clusters and the network: theirs where it is certified, else the best there is."""
        estimator = self.estimator
        thresholds = Thresholds(estimator.gamma, estimator.beta, estimator.cut)
        recovered = ensemble.recovered
        is_theirs = thresholds == Thresholds()  # those that made the network, if clusters did
        if recovered and (is_theirs or ensemble.certified):
            layers = ensemble.cluster(finisher, thresholds, recovered.network)
            return layers, recovered, ensemble.origin_of(recovered)
        layers = ensemble.cluster(finisher, thresholds)
        clustered = None
        if not (interrupted_by or ensemble.conclusive_networks):
            clustered = ensemble.network_of(layers, finisher)
        if clustered and clustered.certificate.function_certified:
            return layers, clustered, "clusters"
        if recovered:
            layers = ensemble.cluster(finisher, thresholds, recovered.network)
            return layers, recovered, ensemble.origin_of(recovered)
        candidates = [*ensemble.candidates, finisher.judge_as_is(ensemble.students.best)]
        candidates += [clustered] if clustered else []
        best = finisher.most_parsimonious(candidates)
        return layers, best, "clusters" if best is clustered else ensemble.origin_of(best)


def check_students(students: Students) -> None:
    """Warn of students whose training diverged; raise if it did for all of them."""
    n_failed = students.n_failed
    if n_failed == len(students):
        raise ValueError(
            f"The training of all {n_failed} students diverged: check the scale of y, "
            "remove outliers from it, or choose another activation."
        )
    if n_failed:
        warnings.warn(
            f"{n_failed} of {len(students)} students diverged and were dropped.",
            ConvergenceWarning,
            stacklevel=4,
        )
