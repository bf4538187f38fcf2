"""The skorch nets that train stacked students, and what watches over them.

One skorch "epoch" is a chunk of solver steps, so that skorch's callbacks and history cost nothing
next to the steps. The rows live on the device as whole tensors; there is no data loader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn

from sklearn_ec._core.records import Network
from sklearn_ec._core.threads import threads_for
from sklearn_ec._solvers.derivatives import Layers
from sklearn_ec._solvers.levenberg import BatchedLevenberg
from sklearn_ec._solvers.matrix_free import MatrixFreeLevenberg
from sklearn_ec._solvers.task import LeastSquaresTask

from .students import network_at
from .training_state import BatchState, Checkpoint, OnEpoch

MINIBATCH = 256
LEARNING_RATE = 1e-2
ADAM_STEPS_PER_EPOCH = 100
LEVENBERG_STEPS_PER_EPOCH = 10
# Training has stalled when no student improved on the held-out rows for so many epochs.
PATIENCE_EPOCHS = 5
CONVERGED_SHARE = 0.6
# The best student is pruned after so many epochs of Levenberg, then after more by a factor each
# time. Epochs of large students cost more than pruning them.
FIRST_QUESTION_EPOCH = {BatchedLevenberg: 3, MatrixFreeLevenberg: 1}
QUESTION_FACTOR = {BatchedLevenberg: 4, MatrixFreeLevenberg: 2}

# Judges a student by its index, network and loss.
IsRecovered = Callable[[int, Network, float], bool]


class WholeBatch:
    """Data iterator of a skorch net that hands over all rows at once."""

    def __init__(self, dataset: Any, batch_size: int | None = None):
        self.dataset = dataset

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield self.dataset.X, self.dataset.y


@dataclass(frozen=True)
class AdamState:
    """Students that Adam alone trains, between two epochs."""

    n_epochs: int
    layers: tuple[np.ndarray, ...]
    moments: list[dict[str, np.ndarray]]  # the optimizer's, for each layer
    rng: Any  # state of the bit generator
    loss_curves: list[np.ndarray]


class _StudentNet(NeuralNet):
    """A skorch net around :class:`StackedStudents` whose train step is a chunk of solver steps.

    ``start`` is the state after the first epochs, where they were trained before.
    """

    start: Any = None  # AdamState or BatchState

    def __init__(self, module: nn.Module, *, device: str, max_epochs: int, **kwargs: Any):
        defaults = {
            "criterion": nn.MSELoss,
            "iterator_train": WholeBatch,
            "train_split": None,
            "verbose": 0,
        }
        super().__init__(module, device=device, max_epochs=max_epochs, **{**defaults, **kwargs})

    @property
    def n_epochs(self) -> int:
        """Number of epochs begun so far."""
        return len(self.history) + (self.start.n_epochs if self.start else 0)

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any) -> Any:
        remaining = self.max_epochs - self.n_epochs
        return super().fit_loop(X, y, epochs=remaining, **fit_params)


class AdamNet(_StudentNet):
    """Minibatch Adam with a cosine learning rate, all students at once."""

    def __init__(
        self, module: nn.Module, *, seed: int = 0, start: AdamState | None = None, **kwargs: Any
    ):
        self.seed = seed
        self.start = start
        super().__init__(module, optimizer=torch.optim.Adam, lr=LEARNING_RATE, **kwargs)

    def initialize(self) -> AdamNet:
        super().initialize()
        self.rng_ = np.random.default_rng(self.seed)
        if self.start is not None:
            self.rng_.bit_generator.state = self.start.rng
            for moments, parameter in zip(self.start.moments, self.module_.layers, strict=True):
                tensors = {name: torch.from_numpy(moment) for name, moment in moments.items()}
                tensors.update({n: t.to(self.device) for n, t in tensors.items() if n != "step"})
                self.optimizer_.state[parameter] = tensors
        return self

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        data, targets = batch
        n_steps = self.max_epochs * ADAM_STEPS_PER_EPOCH
        first = (self.n_epochs - 1) * ADAM_STEPS_PER_EPOCH
        flops = adam_flops(self.module_.weights)
        for step in range(first, first + ADAM_STEPS_PER_EPOCH):
            rate = 0.5 * (1.0 + math.cos(math.pi * step / n_steps))
            self.optimizer_.param_groups[0]["lr"] = self.lr * max(rate, 0.01)
            with threads_for(flops):
                loss = self._minibatch_step(data, targets)
        return {"loss": loss, "y_pred": None}

    def _minibatch_step(self, data: dict[str, Tensor], targets: Tensor) -> Tensor:
        n_samples = len(targets)
        size = min(MINIBATCH, n_samples)
        rows = torch.from_numpy(self.rng_.choice(n_samples, size, replace=False, shuffle=False))
        rows = rows.to(targets.device)
        self.optimizer_.zero_grad(set_to_none=True)
        residuals = self.module_(data["inputs"][rows]) - targets[rows, None, :]
        residuals = residuals * data["sqrt_weight"][rows, None, :]
        losses = residuals.square().mean(dim=(0, 2))
        losses.sum().backward()
        self.optimizer_.step()
        return losses.detach().mean()


class LevenbergNet(_StudentNet):
    """Batched Levenberg, all students at once."""

    def __init__(
        self,
        module: nn.Module,
        *,
        task: LeastSquaresTask,
        tol: float,
        solver: type[BatchedLevenberg] = BatchedLevenberg,
        working_bytes: float = math.inf,
        start: BatchState | None = None,
        **kwargs: Any,
    ):
        self.task = task
        self.tol = tol
        self.solver = solver
        self.working_bytes = working_bytes
        self.start = start
        super().__init__(module, **kwargs)

    def initialize(self) -> LevenbergNet:
        super().initialize()
        self.solver_ = self.solver(
            self.task, self.module_.weights, tol=self.tol, working_bytes=self.working_bytes
        )
        if self.start is not None:
            self.solver_.restore(map(torch.from_numpy, self.start.solver))
        return self

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        self.solver_.run(LEVENBERG_STEPS_PER_EPOCH)
        for parameter, layer in zip(self.module_.layers, self.solver_.layers, strict=True):
            parameter.data.copy_(layer)
        return {"loss": self.solver_.losses.nanmean(), "y_pred": None}


class LossRecorder(Callback):
    """Record the loss of every student before training and after each epoch."""

    def __init__(self, task: LeastSquaresTask):
        self.task = task

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.losses_ = list(net.start.loss_curves) if net.start else [self._losses(net)]

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.losses_.append(self._losses(net))

    def _losses(self, net: Any) -> np.ndarray:
        with torch.no_grad():
            return self.task.losses(net.module_.weights).cpu().numpy()


class TrainingMonitor(Callback):
    """Remember the best student on held-out rows, and stop training when more is of no use.

    Training stops when enough students converged, when ``is_recovered`` says so of the best student
    (asked at exponentially growing intervals with its index, network and loss), or when no student
    improves on the held-out rows any more. ``students`` holds the indices of the net's students.
    """

    def __init__(
        self,
        held_out: LeastSquaresTask,
        students: np.ndarray,
        tol: float,
        is_recovered: IsRecovered | None,
    ):
        self.held_out = held_out
        self.students = students
        self.tol = tol
        self.is_recovered = is_recovered

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.stopped_ = self.succeeded_ = False
        self.n_epochs_ = 0
        if net.start is None:
            self.next_question_ = FIRST_QUESTION_EPOCH[type(net.solver_)]
            self.best_losses_ = torch.full_like(net.solver_.losses, math.inf)
            self.best_network_ = network_at(net.solver_.layers, 0)
            self.last_progress_ = 0
            self._remember(net.solver_, epoch=0)
        else:
            self.n_epochs_ = net.start.n_epochs
            self.next_question_ = net.start.next_question
            self.best_losses_ = torch.from_numpy(net.start.held_out_losses).to(net.device)
            self.best_network_ = net.start.best
            self.last_progress_ = net.start.last_progress

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        epoch, solver = net.n_epochs, net.solver_
        self._remember(solver, epoch)
        converged = solver.losses <= self.tol
        self.succeeded_ = bool(
            converged.double().mean() >= CONVERGED_SHARE
        ) or self._best_is_recovered(solver, epoch)
        stalled = epoch - self.last_progress_ >= PATIENCE_EPOCHS
        self.n_epochs_ = epoch
        if self.succeeded_ or stalled or solver.finished.all():
            self.stopped_ = True
            raise KeyboardInterrupt  # skorch's way to end a fit, as its EarlyStopping does

    def _remember(self, solver: BatchedLevenberg, epoch: int) -> None:
        losses = self.held_out.losses(solver.layers)
        losses = torch.where(losses.isfinite(), losses, math.inf)
        if (losses < 0.99 * self.best_losses_).any():
            self.last_progress_ = epoch
        if losses.min() < self.best_losses_.min():
            best = int(losses.argmin())
            self.best_network_ = network_at(solver.layers, best)
        self.best_losses_ = torch.minimum(self.best_losses_, losses)

    def _best_is_recovered(self, solver: BatchedLevenberg, epoch: int) -> bool:
        if self.is_recovered is None or epoch < self.next_question_:
            return False
        self.next_question_ *= QUESTION_FACTOR[type(solver)]
        best = int(torch.where(solver.losses.isfinite(), solver.losses, math.inf).argmin())
        network = network_at(solver.layers, best)
        return self.is_recovered(int(self.students[best]), network, float(solver.losses[best]))


class EpochReporter(Callback):
    """Save the state of a training, and report its progress, after each epoch that goes on."""

    def __init__(
        self,
        on_epoch: OnEpoch | None,
        snapshot: Callable[[Any], Any] | None = None,
        checkpoint: Checkpoint | None = None,
    ):
        self.snapshot = snapshot
        self.checkpoint = checkpoint
        self.on_epoch = on_epoch

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if self.snapshot and self.checkpoint and self.checkpoint.is_due():
            self.checkpoint.save(self.snapshot(net))
        if self.on_epoch is not None and self.on_epoch():
            raise KeyboardInterrupt


def adam_flops(layers: Layers) -> int:
    """Floating-point operations of a minibatch step of all students."""
    return 6 * MINIBATCH * sum(layer.numel() for layer in layers)


def n_adam_epochs(n_steps: int) -> int:
    return n_steps // ADAM_STEPS_PER_EPOCH


def n_levenberg_epochs(max_iter: int) -> int:
    return max(1, math.ceil(max_iter / LEVENBERG_STEPS_PER_EPOCH))


def n_levenberg_steps(n_epochs: int) -> int:
    return n_epochs * LEVENBERG_STEPS_PER_EPOCH
