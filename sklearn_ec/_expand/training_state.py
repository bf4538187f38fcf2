"""A training in progress, as arrays: what a checkpoint holds, and what becomes of it in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sklearn_ec._core.records import Network, Students, stacked_curves

# Told after every epoch that training goes on; says whether it shall stop.
OnEpoch = Callable[[], bool]
# Judges students in training, and their indices among all.
IsRecovered = Callable[[Students, np.ndarray], bool]


class Checkpoint(Protocol):
    """A place that outlives the process, for the training of one group of students."""

    def load(self) -> Any:
        """What was saved last, None if nothing was."""

    def is_due(self) -> bool:
        """Whether it is time to save."""

    def save(self, state: Any) -> None:
        """Replace what was saved before, at once or not at all."""


@dataclass(frozen=True)
class BatchState:
    """The students that Levenberg trains at a time, between two epochs."""

    n_epochs: int
    solver: tuple[np.ndarray, ...]  # layers, losses, damping and finished of the solver
    loss_curves: list[np.ndarray]  # (n_students,) for each epoch, the one before training included
    held_out_losses: np.ndarray  # (n_students,), lowest so far
    best: Network
    last_progress: int  # epoch
    next_question: int  # epoch


@dataclass
class TrainingState:
    """The training of students with Levenberg after their warm-up, batch by batch."""

    layers: tuple[np.ndarray, ...]  # (n_students, fan_out, n_features) each
    losses: np.ndarray  # (n_students,)
    batches: list[np.ndarray]  # students that Levenberg trains at a time, best first
    best: Network
    best_held_out_loss: float
    loss_curves: list[np.ndarray] = field(init=False)  # one per student
    trained: np.ndarray = field(init=False)  # (n_students,)
    n_finished: int = 0  # batches
    running: BatchState | None = None  # of the batch after the finished ones
    n_iter: int = 0
    succeeded: bool = False
    interrupted: bool = False

    def __post_init__(self) -> None:
        self.loss_curves = list(self.losses[:, None])
        self.trained = np.zeros(len(self.losses), dtype=bool)

    @property
    def ended(self) -> bool:
        return self.succeeded or self.interrupted or self.n_finished == len(self.batches)

    @property
    def batch(self) -> np.ndarray:
        """The students in training."""
        return self.batches[self.n_finished]

    @property
    def running_students(self) -> Students:
        """The students in training as they are, in order."""
        state, order = self.running, np.argsort(self.batch)
        assert state is not None
        *layers, losses, _, _ = state.solver
        losses = losses[order]
        return Students(
            layers=tuple(layer[order] for layer in layers),
            losses=np.where(np.isfinite(losses), losses, np.nan),
            trained=np.ones(len(losses), dtype=bool),
            n_iter=self.n_iter,
            best=state.best,
            best_held_out_loss=float(state.held_out_losses.min()),
            loss_curves=np.stack(state.loss_curves, axis=1)[order],
        )

    def finish_batch(self, n_iter: int) -> None:
        """Take over the state of the running batch as its result."""
        state, batch = self.running, self.batch
        assert state is not None
        *layers, losses, _, _ = state.solver
        for layer, trained_layer in zip(self.layers, layers, strict=True):
            layer[batch] = trained_layer
        self.losses[batch], self.trained[batch] = losses, True
        for student, curve in zip(batch, np.stack(state.loss_curves, axis=1), strict=True):
            self.loss_curves[student] = curve
        if state.held_out_losses.min() < self.best_held_out_loss:
            self.best, self.best_held_out_loss = state.best, float(state.held_out_losses.min())
        self.n_iter = max(self.n_iter, n_iter)
        self.n_finished += 1
        self.running = None

    def students(self) -> Students:
        """The students as they are now; after an interrupted warm-up all of them count."""
        trained = self.trained if self.trained.any() else np.ones_like(self.trained)
        return Students(
            layers=self.layers,
            losses=np.where(np.isfinite(self.losses), self.losses, np.nan),
            trained=trained,
            n_iter=self.n_iter,
            best=self.best,
            best_held_out_loss=self.best_held_out_loss,
            loss_curves=stacked_curves(self.loss_curves),
            succeeded=self.succeeded,
            interrupted=self.interrupted,
        )
