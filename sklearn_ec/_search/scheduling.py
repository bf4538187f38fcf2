"""Students are trained in groups, the units that are stored, continued and sent to workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from joblib import cpu_count, effective_n_jobs
from joblib.parallel import get_active_backend
from sklearn.utils.parallel import Parallel, delayed

from sklearn_ec._core.threads import at_work, n_allowed, threads_for
from sklearn_ec._expand.training_state import Checkpoint, OnEpoch
from sklearn_ec._finish.finisher import Finisher
from sklearn_ec._io.cache import digest

from .ensemble import Ensemble
from .rounds import Recipe, train_group


class StageListener(Protocol):
    """Told how the training of one shape goes on; says whether it shall stop."""

    def end_epoch(self) -> bool:
        """One more epoch of the present group is over."""

    def end_group(self, ensemble: Ensemble) -> bool:
        """One more group is over."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside; ``ensemble`` holds the students as they are."""

    def __init__(self, ensemble: Ensemble):
        super().__init__(ensemble)
        self.ensemble = ensemble


class GroupTrainer:
    """Trains students in groups, one after the other or on several workers.

    A group depends on the problem, on the recipe and on its own seeds. Training ends with the first
    group that gave the network or of which enough students converged. Workers train as many groups
    at a time as there are workers; what they trained behind that group is discarded, so that the
    result does not depend on their number. Without pruning, where the clusters decide alone, all
    groups are trained.

    ``known`` holds the groups of earlier trainings by key, and takes up the new ones.
    """

    def __init__(
        self,
        finisher: Finisher,
        recipe: Recipe,
        stage: StageListener,
        *,
        n_jobs: int | None = None,
        known: dict[str, Ensemble] | None = None,
    ):
        self.finisher = finisher
        self.recipe = recipe
        self.stage = stage
        self.n_jobs = n_jobs
        self.known = {} if known is None else known

    def train(self, seeds: np.ndarray) -> Ensemble:
        """The students of all groups up to the first successful one."""
        ensemble: Ensemble | None = None
        try:
            for group in self._groups(seeds):
                ensemble = group if ensemble is None else ensemble.joined(group)
                must_stop = self.stage.end_group(ensemble)
                if must_stop or (self.finisher.prune and self._is_over(group)):
                    break
        except Interrupted as stop:
            joined = ensemble.joined(stop.ensemble) if ensemble else stop.ensemble
            raise Interrupted(joined) from None
        except KeyboardInterrupt:
            if ensemble is None:
                raise
            raise Interrupted(ensemble) from None
        assert ensemble is not None
        return ensemble

    def _is_over(self, group: Ensemble) -> bool:
        """Whether a group has the network, or shows that there is none."""
        is_over = group.students.succeeded or group.agree_exactly
        return is_over or not group.show_network(self.finisher)

    def _groups(self, seeds: np.ndarray) -> Iterator[Ensemble]:
        n_workers = effective_n_jobs(self.n_jobs)
        groups = self._partition(seeds)
        for first in range(0, len(groups), n_workers):
            wave = {self._key(seeds): seeds for seeds in groups[first : first + n_workers]}
            missing = {key: seeds for key, seeds in wave.items() if key not in self.known}
            obtained = dict(zip(missing, self._obtain(missing, n_workers), strict=True))
            self.known |= {k: g for k, g in obtained.items() if not g.students.interrupted}
            for key in wave:
                group = obtained.get(key) or self.known[key]
                if group.students.interrupted:
                    raise Interrupted(group)
                yield group.copy(group.n_reused if key in missing else len(group.students))

    def _partition(self, seeds: np.ndarray) -> list[np.ndarray]:
        """The seeds of each group; what is known already stays together."""
        groups, group_size = [], self.finisher.settings.search.group_size
        while len(seeds):
            sizes = range(min(group_size, len(seeds)), 0, -1)
            size = next((n for n in sizes if self._key(seeds[:n]) in self.known), sizes[0])
            groups.append(seeds[:size])
            seeds = seeds[size:]
        return groups

    def _obtain(self, groups: dict[str, np.ndarray], n_workers: int) -> list[Ensemble]:
        arguments = [(self.finisher, self.recipe, seeds, key) for key, seeds in groups.items()]
        if n_workers == 1:
            return [obtain_group(*each, on_epoch=self.stage.end_epoch) for each in arguments]
        # Worker processes know how many threads they may use; threads of this process must be told.
        backend, _ = get_active_backend()
        is_this_process = getattr(backend, "supports_sharedmem", False)
        n_threads = max(1, min(cpu_count(), n_allowed()) // n_workers) if is_this_process else None
        return Parallel(n_jobs=self.n_jobs)(
            delayed(obtain_group)(*each, n_threads=n_threads) for each in arguments
        )

    def _key(self, seeds: np.ndarray) -> str:
        return digest(["students", self.finisher.key, self.recipe, seeds])


def obtain_group(
    finisher: Finisher,
    recipe: Recipe,
    seeds: np.ndarray,
    key: str,
    on_epoch: OnEpoch | None = None,
    n_threads: int | None = None,
) -> Ensemble:
    """One group of students: remembered, continued or trained.

    Of a training that was interrupted, the students as they are: these are never remembered.
    """

    def train(checkpoint: Checkpoint | None) -> Ensemble:
        with at_work(n_threads), threads_for():
            group = train_group(finisher, recipe, seeds, checkpoint, on_epoch)
        if group.students.interrupted and checkpoint is not None:
            raise Interrupted(group)
        return group

    if finisher.store is None:
        return train(None)
    try:
        group, is_new = finisher.store.recall_once(key, train)
    except Interrupted as stop:
        return stop.ensemble
    return group.copy(0 if is_new else len(seeds))
