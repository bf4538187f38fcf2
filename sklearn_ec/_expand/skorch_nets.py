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

from sklearn_ec._core.settings import Settings, Training, WarmUp
from sklearn_ec._core.threads import threads_for
from sklearn_ec._solvers.derivatives import Layers, forward, gradients
from sklearn_ec._solvers.levenberg import Levenberg, LinearSolver
from sklearn_ec._solvers.task import LeastSquaresTask

from .adam import Adam
from .students import network_at
from .training_state import BatchState, Checkpoint, OnEpoch


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

    def initialize_optimizer(self, triggered_directly: bool | None = None) -> _StudentNet:
        """None of :mod:`torch.optim`: see :mod:`sklearn_ec._expand.adam`."""
        return self

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any) -> Any:
        remaining = self.max_epochs - self.n_epochs
        return super().fit_loop(X, y, epochs=remaining, **fit_params)


class AdamNet(_StudentNet):
    """Minibatch Adam with a cosine learning rate, all students at once."""

    def __init__(
        self,
        module: nn.Module,
        *,
        schedule: WarmUp,
        seed: int = 0,
        start: AdamState | None = None,
        **kwargs: Any,
    ):
        self.schedule = schedule
        self.seed = seed
        self.start = start
        super().__init__(module, lr=schedule.learning_rate, **kwargs)

    def initialize_optimizer(self, triggered_directly: bool | None = None) -> AdamNet:
        self.optimizer_ = Adam(self.module_.layers, self.lr)
        return self

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
        per_epoch = self.schedule.steps_per_epoch
        n_steps = self.max_epochs * per_epoch
        first = (self.n_epochs - 1) * per_epoch
        flops = adam_flops(self.module_.weights, self.schedule.minibatch)
        for step in range(first, first + per_epoch):
            rate = 0.5 * (1.0 + math.cos(math.pi * step / n_steps))
            rate = max(rate, self.schedule.least_rate_share)
            self.optimizer_.param_groups[0]["lr"] = self.lr * rate
            with threads_for(flops):
                loss = self._minibatch_step(data, targets)
        return {"loss": loss, "y_pred": None}

    @torch.inference_mode()
    def _minibatch_step(self, data: dict[str, Tensor], targets: Tensor) -> Tensor:
        """One step of Adam; gradients take half of the time that autograd needs."""
        n_samples = len(targets)
        size = min(self.schedule.minibatch, n_samples)
        rows = torch.from_numpy(self.rng_.choice(n_samples, size, replace=False, shuffle=False))
        rows = rows.to(targets.device)
        layers = self.module_.weights
        run = forward(layers, data["inputs"][rows], self.module_.activation)
        weight = data["sqrt_weight"][rows]
        residuals = (run.outputs - targets[rows]) * weight
        cotangents = residuals * weight * (2.0 / residuals[0].numel())
        found = gradients(layers, run, cotangents)
        for parameter, gradient in zip(self.module_.layers, found, strict=True):
            parameter.grad = gradient
        self.optimizer_.step()
        return residuals.square().mean()


class LevenbergNet(_StudentNet):
    """Batched Levenberg, all students at once."""

    def __init__(
        self,
        module: nn.Module,
        *,
        task: LeastSquaresTask,
        tol: float,
        settings: Settings,
        linear: LinearSolver | None = None,
        working_bytes: float = math.inf,
        start: BatchState | None = None,
        **kwargs: Any,
    ):
        self.task = task
        self.tol = tol
        self.settings = settings
        self.linear = linear
        self.working_bytes = working_bytes
        self.start = start
        super().__init__(module, **kwargs)

    def initialize(self) -> LevenbergNet:
        super().initialize()
        self.solver_ = Levenberg(
            self.task,
            self.module_.weights,
            self.linear,
            rule=self.settings.damping,
            tol=self.tol,
            working_bytes=self.working_bytes,
        )
        if self.start is not None:
            self.solver_.restore(map(torch.from_numpy, self.start.solver))
        return self

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        self.solver_.run(self.settings.training.steps_per_epoch)
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
        if isinstance(net, LevenbergNet):
            return net.solver_.losses.cpu().numpy().copy()
        with torch.no_grad():
            return self.task.losses(net.module_.weights).cpu().numpy()


class TrainingMonitor(Callback):
    """Remember the best student on held-out rows, and stop training when more is of no use.

    Training stops when enough students converged, when ``is_recovered`` says so of the net (asked
    at exponentially growing intervals), or when no student improves on the held-out rows any more.
    """

    def __init__(
        self,
        held_out: LeastSquaresTask,
        tol: float,
        training: Training,
        is_recovered: Callable[[LevenbergNet], bool] | None = None,
    ):
        self.held_out = held_out
        self.tol = tol
        self.training = training
        self.is_recovered = is_recovered

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.stopped_ = self.succeeded_ = False
        self.n_epochs_ = 0
        if net.start is None:
            self.next_question_ = self.training.first_question_epoch
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
            converged.double().mean() >= self.training.converged_share
        ) or self._is_recovered(net)
        stalled = epoch - self.last_progress_ >= self.training.patience_epochs
        self.n_epochs_ = epoch
        if self.succeeded_ or stalled or solver.finished.all():
            self.stopped_ = True
            raise KeyboardInterrupt  # skorch's way to end a fit, as its EarlyStopping does

    def _remember(self, solver: Levenberg, epoch: int) -> None:
        losses = self.held_out.losses(solver.layers)
        losses = torch.where(losses.isfinite(), losses, math.inf)
        if (losses < (1.0 - self.training.least_improvement) * self.best_losses_).any():
            self.last_progress_ = epoch
        if losses.min() < self.best_losses_.min():
            best = int(losses.argmin())
            self.best_network_ = network_at(solver.layers, best)
        self.best_losses_ = torch.minimum(self.best_losses_, losses)

    def _is_recovered(self, net: LevenbergNet) -> bool:
        if self.is_recovered is None or net.n_epochs < self.next_question_:
            return False
        is_large, training = net.solver_.linear.is_matrix_free, self.training
        self.next_question_ *= (
            training.large_question_factor if is_large else training.question_factor
        )
        return self.is_recovered(net)


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


def fit_net(net: NeuralNet, task: LeastSquaresTask) -> None:
    """Fit a net; skorch ends it quietly where it is interrupted."""
    net.fit({"inputs": task.inputs, "sqrt_weight": task.sqrt_weight}, task.targets)


def adam_flops(layers: Layers, n_rows: int) -> int:
    """Floating-point operations of a minibatch step of all students."""
    return 6 * n_rows * sum(layer.numel() for layer in layers)


def n_levenberg_epochs(max_iter: int, training: Training) -> int:
    return max(1, math.ceil(max_iter / training.steps_per_epoch))
