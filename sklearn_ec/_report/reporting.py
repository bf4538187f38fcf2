"""Tell how a fit is getting on: lines for ``verbose``, tasks for scikit-learn's callbacks."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from sklearn_ec._search.ensemble import Ensemble

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in where scikit-learn has no callbacks."""


def begin_fit(estimator: Any, X: np.ndarray, y: np.ndarray) -> Any:
    """The context of the callbacks, None where scikit-learn has none."""
    if not hasattr(estimator, "_init_callback_context"):
        return None
    context = estimator._init_callback_context(max_subtasks=None)
    return context.call_on_fit_task_begin(estimator=estimator, X=X, y=y)


def end_fit(context: Any, estimator: Any, X: np.ndarray, y: np.ndarray) -> None:
    if context is not None:
        learned = {name: value for name, value in vars(estimator).items() if name.endswith("_")}
        context.call_on_fit_task_end(
            estimator=estimator, X=X, y=y, reconstruction_attributes=learned
        )


class Heartbeat:
    """Tells that a fit goes on where its stages are silent.

    ``verbose`` prints a line every few seconds. Callbacks see a task for each activity with a leaf
    for every beat, unless they saw the end of an epoch shortly before.
    """

    def __init__(self, estimator: Any):
        self.estimator = estimator
        self.settings = estimator._settings.reporting
        self.started = self._last_line = self._last_epoch = time.perf_counter()
        self._activity = ""
        self._task: Any = None

    def __call__(self, activity: str) -> bool:
        if self.estimator.verbose:
            self._print(activity)
        if time.perf_counter() - self._last_epoch < self.settings.silence:
            return False
        if activity != self._activity:
            self.end()
            context = getattr(self.estimator, "_callback_fit_ctx", None)
            self._task = begin_task(self.estimator, context, activity, max_subtasks=None)
            self._activity = activity
        return end_task(self.estimator, begin_task(self.estimator, self._task, "at work", 0))

    def end(self) -> None:
        end_task(self.estimator, self._task)
        self._task, self._activity = None, ""

    def end_epoch(self) -> None:
        """Note that callbacks saw the end of an epoch."""
        self._last_epoch = time.perf_counter()

    def _print(self, activity: str) -> None:
        now = time.perf_counter()
        if now - self._last_line >= self.settings.line:
            self._last_line = now
            print(
                f"[{type(self.estimator).__name__}] {now - self.started:.0f} s: {activity}",
                flush=True,
            )


def begin_task(estimator: Any, parent: Any, name: str, max_subtasks: int | None) -> Any:
    """A subtask of a callback context, None where there is none."""
    if parent is None:
        return None
    task = parent.subcontext(task_name=name, max_subtasks=max_subtasks)
    return task.call_on_fit_task_begin(estimator=estimator)


def end_task(estimator: Any, task: Any) -> bool:
    """End a task; True if a callback asks to stop."""
    return task is not None and task.call_on_fit_task_end(estimator=estimator)


class Stage:
    """The training of students of one width, group by group, each epoch by epoch."""

    def __init__(
        self, estimator: Any, heartbeat: Heartbeat, title: str, n_students: int, max_epochs: int
    ):
        self.estimator = estimator
        self.heartbeat = heartbeat
        self.title = title
        self.n_students = n_students
        self.max_epochs = max_epochs
        self.started = time.perf_counter()
        context = getattr(estimator, "_callback_fit_ctx", None)
        self._stage = self._begin(context, f"students, {self.title}", max_subtasks=None)
        self._group: Any = None
        self._n_epochs = 0

    def end_epoch(self) -> bool:
        """Report one more epoch of the present group; True if a callback asks to stop."""
        if self._stage is None:
            return False
        self.heartbeat.end_epoch()
        if self._group is None:
            self._group = self._begin(self._stage, "group of students", self.max_epochs)
        self._n_epochs += 1
        if self._n_epochs > self.max_epochs:  # large students are trained batch by batch
            return False
        return self._end(self._begin(self._group, "epoch", 0))

    def end_group(self, ensemble: Ensemble) -> bool:
        """Report one more group; True if a callback asks to stop."""
        if self.estimator.verbose:
            self._print(ensemble)
        if self._stage is None:
            return False
        group = self._group or self._begin(self._stage, "group of students", 0)
        self._group, self._n_epochs = None, 0
        return self._end(group)

    def end(self) -> None:
        if self._stage is not None:
            self._end(self._stage)

    def _begin(self, parent: Any, name: str, max_subtasks: int | None) -> Any:
        return begin_task(self.estimator, parent, name, max_subtasks)

    def _end(self, task: Any) -> bool:
        return end_task(self.estimator, task)

    def _print(self, ensemble: Ensemble) -> None:
        students, seconds = ensemble.students, time.perf_counter() - self.started
        line = (
            f"{self.title}: {np.sum(students.losses <= ensemble.tol)} of {len(students)} students "
            f"converged after {students.n_iter} steps, best loss {np.nanmin(students.losses):.1e}, "
            f"{seconds:.1f} s"
        )
        n_left = self.n_students - len(students)
        if n_left:
            line += f", {n_left} students and at most {seconds * n_left / len(students):.0f} s left"
        print(f"[{type(self.estimator).__name__}] {line}", flush=True)


def print_network(estimator: Any, seconds: float) -> None:
    """The line of the last stage."""
    verdict = "certified" if estimator.recovered_ else "not certified"
    print(
        f"[{type(estimator).__name__}] network {estimator.layer_sizes_}: {verdict}, loss "
        f"{estimator.loss_:.1e}, {seconds:.1f} s",
        flush=True,
    )
