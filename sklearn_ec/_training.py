"""Train students through skorch, and polish single networks.

One skorch "epoch" is a chunk of solver steps, so that skorch's callbacks and history cost nothing
next to the steps. The rows live on the device as whole tensors; there is no data loader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn

from ._activations import get_activation
from ._levenberg import BatchedLevenberg, LeastSquaresTask
from ._linearization import Linearization, stacked
from ._students import StackedStudents, initial_weights
from ._sweeps import Layers
from ._types import Network, Samples, Students, stacked_curves

WARM_UP_STEPS = 1000
WARM_UP_BATCH = 256
WARM_UP_LEARNING_RATE = 1e-2
WARM_UP_STEPS_PER_EPOCH = 100
LEVENBERG_STEPS_PER_EPOCH = 10
POLISH_DAMPING = 1e-3
POLISH_WINDOW = 20
# A polish has stalled when a window leaves more than this share of the loss.
POLISH_PROGRESS = 0.99
MAX_REFINEMENTS = 10
# Training has stalled when no student improved on the held-out rows for so many epochs.
PATIENCE_EPOCHS = 5
CONVERGED_SHARE = 0.6
# The best student is annealed after so many epochs of Levenberg, then after 4 times as many, ...
FIRST_QUESTION_EPOCH = 3
QUESTION_FACTOR = 4
# Floating-point operations that one epoch of Levenberg may take for all students of a group.
GROUP_FLOPS = {"cpu": 1e12, "cuda": 3e13}
MIN_GROUP = 4

# Judges a student by its index, network and loss.
IsRecovered = Callable[[int, Network, float], bool]


class WholeBatch:
    """Data iterator of a skorch net that hands over all rows at once."""

    def __init__(self, dataset: Any, batch_size: int | None = None):
        self.dataset = dataset

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield self.dataset.X, self.dataset.y


class _StudentNet(NeuralNet):
    """A skorch net around :class:`StackedStudents` whose train step is a chunk of solver steps."""

    def __init__(self, module: nn.Module, *, device: str, max_epochs: int, **kwargs: Any):
        defaults = {
            "criterion": nn.MSELoss,
            "iterator_train": WholeBatch,
            "train_split": None,
            "verbose": 0,
        }
        super().__init__(module, device=device, max_epochs=max_epochs, **{**defaults, **kwargs})


class AdamNet(_StudentNet):
    """Minibatch Adam with a cosine learning rate, all students at once."""

    def __init__(self, module: nn.Module, *, seed: int = 0, **kwargs: Any):
        self.seed = seed
        super().__init__(module, optimizer=torch.optim.Adam, lr=WARM_UP_LEARNING_RATE, **kwargs)

    def initialize(self) -> AdamNet:
        super().initialize()
        self.rng_ = np.random.default_rng(self.seed)
        return self

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        data, targets = batch
        n_steps = self.max_epochs * WARM_UP_STEPS_PER_EPOCH
        first = (len(self.history) - 1) * WARM_UP_STEPS_PER_EPOCH
        for step in range(first, first + WARM_UP_STEPS_PER_EPOCH):
            rate = 0.5 * (1.0 + math.cos(math.pi * step / n_steps))
            self.optimizer_.param_groups[0]["lr"] = self.lr * max(rate, 0.01)
            loss = self._minibatch_step(data, targets)
        return {"loss": loss, "y_pred": None}

    def _minibatch_step(self, data: dict[str, Tensor], targets: Tensor) -> Tensor:
        n_samples = len(targets)
        size = min(WARM_UP_BATCH, n_samples)
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

    def __init__(self, module: nn.Module, *, task: LeastSquaresTask, tol: float, **kwargs: Any):
        self.task = task
        self.tol = tol
        super().__init__(module, **kwargs)

    def initialize(self) -> LevenbergNet:
        super().initialize()
        module = self.module_
        self.solver_ = BatchedLevenberg(self.task, module.weights, tol=self.tol)
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
        self.losses_ = [self._losses(net)]

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.losses_.append(self._losses(net))

    def _losses(self, net: Any) -> np.ndarray:
        with torch.no_grad():
            return self.task.losses(net.module_.weights).cpu().numpy()

    @property
    def curves(self) -> np.ndarray:
        """Losses, shape (n_students, n_epochs + 1)."""
        return np.stack(self.losses_, axis=1)


class TrainingMonitor(Callback):
    """Remember the best student on held-out rows, and stop training when more is of no use.

    Training stops when enough students converged, when ``is_recovered`` says so of the best student
    (asked at exponentially growing intervals with its index, network and loss), or when no student
    improves on the held-out rows any more. ``students`` holds the indices of the net's students.
    """

    def __init__(
        self,
        held_out: LeastSquaresTask,
        students: Tensor,
        tol: float,
        is_recovered: IsRecovered | None,
    ):
        self.held_out = held_out
        self.students = students
        self.tol = tol
        self.is_recovered = is_recovered

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.stopped_ = self.succeeded_ = False
        self.next_question_ = FIRST_QUESTION_EPOCH
        self.best_losses_ = torch.full_like(net.solver_.losses, math.inf)
        self.best_network_ = _to_network(net.solver_.layers, 0)
        self.last_progress_ = 0
        self._remember(net.solver_, epoch=0)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        epoch, solver = len(net.history), net.solver_
        self._remember(solver, epoch)
        converged = solver.losses <= self.tol
        self.succeeded_ = bool(
            converged.double().mean() >= CONVERGED_SHARE
        ) or self._best_is_recovered(solver, epoch)
        stalled = epoch - self.last_progress_ >= PATIENCE_EPOCHS
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
            self.best_network_ = _to_network(solver.layers, best)
        self.best_losses_ = torch.minimum(self.best_losses_, losses)

    def _best_is_recovered(self, solver: BatchedLevenberg, epoch: int) -> bool:
        if self.is_recovered is None or epoch < self.next_question_:
            return False
        self.next_question_ *= QUESTION_FACTOR
        best = int(torch.where(solver.losses.isfinite(), solver.losses, math.inf).argmin())
        network = _to_network(solver.layers, best)
        return self.is_recovered(int(self.students[best]), network, float(solver.losses[best]))


class Trainer:
    """Trains students and polishes networks on one set of rows, on one device."""

    def __init__(
        self, train: Samples, held_out: Samples, activation: str, device: str, has_skip: bool
    ):
        self.samples = train
        self.activation = get_activation(activation)
        self.device = resolve_device(device)
        self.has_skip = has_skip
        self.task = self._task(train)
        self.held_out_task = self._task(held_out)

    def train(
        self,
        seeds: np.ndarray,
        widths: tuple[int, ...],
        *,
        max_iter: int,
        tol: float,
        is_recovered: IsRecovered | None = None,
    ) -> Students:
        """Train one student per seed: a short warm-up with Adam, then Levenberg.

        Where students are large, Levenberg takes them in groups, best first, and stops after the
        first group of which enough converged, or whose best student ``is_recovered`` accepts.
        """
        layers = self._warm_up(seeds, widths).weights
        losses = self.task.losses(layers)
        trained = torch.zeros(len(seeds), dtype=torch.bool)
        monitors, n_iter = [], 0
        curves = list(losses.cpu().numpy()[:, None])
        for group in self._groups(losses, layers):
            recorder = LossRecorder(self.task)
            monitor = TrainingMonitor(self.held_out_task, group, tol, is_recovered)
            net = LevenbergNet(
                StackedStudents(tuple(layer[group] for layer in layers), self.activation),
                task=self.task,
                tol=tol,
                device=self.device,
                max_epochs=max(1, math.ceil(max_iter / LEVENBERG_STEPS_PER_EPOCH)),
                callbacks=[recorder, monitor],
            )
            self._fit(net, self.task, monitor)
            solver = net.solver_
            for layer, trained_layer in zip(layers, solver.layers, strict=True):
                layer[group] = trained_layer
            losses[group], trained[group.cpu()] = solver.losses, True
            for student, curve in zip(group.tolist(), recorder.curves, strict=True):
                curves[student] = curve
            monitors.append(monitor)
            n_iter = max(n_iter, len(net.history) * LEVENBERG_STEPS_PER_EPOCH)
            if monitor.succeeded_:
                break
        best = min(monitors, key=lambda monitor: float(monitor.best_losses_.min()))
        return Students(
            layers=tuple(layer.cpu().numpy() for layer in layers),
            losses=torch.where(losses.isfinite(), losses, math.nan).cpu().numpy(),
            trained=trained.numpy(),
            n_iter=n_iter,
            best=best.best_network_,
            best_held_out_loss=float(best.best_losses_.min()),
            loss_curves=stacked_curves(curves),
        )

    def train_with_adam(
        self, seeds: np.ndarray, widths: tuple[int, ...], *, max_iter: int
    ) -> Students:
        """Train one student per seed with minibatch Adam alone, in double precision.

        One iteration is an epoch of ``WARM_UP_STEPS_PER_EPOCH`` minibatches. This is the control
        that the Levenberg solver is measured against.
        """
        students = self._initial_students(seeds, widths)
        recorder = LossRecorder(self.task)
        layers = self._adam(students, self.task, seeds, max_iter, [recorder]).weights
        losses = self.task.losses(layers)
        held_out = self.held_out_task.losses(layers).nan_to_num(math.inf)
        best = int(held_out.argmin())
        return Students(
            layers=tuple(layer.cpu().numpy() for layer in layers),
            losses=torch.where(losses.isfinite(), losses, math.nan).cpu().numpy(),
            trained=np.ones(len(seeds), dtype=bool),
            n_iter=max_iter,
            best=_to_network(layers, best),
            best_held_out_loss=float(held_out[best]),
            loss_curves=recorder.curves,
        )

    def _groups(self, losses: Tensor, layers: Layers) -> tuple[Tensor, ...]:
        """Indices of the students that Levenberg trains at a time, best first."""
        order = torch.where(losses.isfinite(), losses, math.inf).argsort(stable=True)
        flops = LEVENBERG_STEPS_PER_EPOCH * self.task.flops(layers)
        limit = GROUP_FLOPS[torch.device(self.device).type] / flops
        return order.split(max(MIN_GROUP, int(limit)))

    def polish(
        self,
        network: Network,
        max_iter: int,
        target: float = math.inf,
        enough: float = 0.0,
        progress: float = POLISH_PROGRESS,
    ) -> tuple[Network, float]:
        """Levenberg on a single network, down to rounding or to a loss that is ``enough``.

        The descent is given up where 20 steps leave more than the share ``progress`` of the loss,
        or where twice the present rate would not reach the ``target`` loss.
        """
        layers = stacked(network, self.device)
        solver = BatchedLevenberg(self.task, layers, tol=enough, damping=POLISH_DAMPING)
        for n_windows in range(math.ceil(max_iter / POLISH_WINDOW) - 1, -1, -1):
            before = float(solver.losses[0])
            solver.run(POLISH_WINDOW)
            loss = float(solver.losses[0])
            if solver.finished.all() or loss > progress * before:
                break
            if target < loss * (loss / before) ** (2 * n_windows):
                break
        return _to_network(solver.layers, 0), loss

    def refine(self, network: Network, loss: float) -> tuple[Network, float]:
        """Gauss-Newton steps without damping, as long as each halves the loss.

        They reach rounding level in directions that are lost in the normal equations.
        """
        for _ in range(MAX_REFINEMENTS):
            linearization = Linearization(self.task, network)
            steps = linearization.newton_step()
            layers = tuple(a + b for a, b in zip(linearization.layers, steps, strict=True))
            refined_loss = float(self.task.losses(layers)[0])
            if not refined_loss < 0.5 * loss:
                break
            network, loss = _to_network(layers, 0), refined_loss
        return network, loss

    def standard_errors(self, network: Network, noise_level: np.ndarray) -> list[np.ndarray]:
        """Standard errors of a network's weights, in the layout of its layers."""
        linearization = Linearization(self.task, network)
        noise = torch.from_numpy(noise_level).to(self.device)
        return [part.cpu().numpy() for part in linearization.standard_errors(noise)]

    def _warm_up(self, seeds: np.ndarray, widths: tuple[int, ...]) -> StackedStudents:
        """Initial students after a short training with Adam in single precision."""
        module = self._initial_students(seeds, widths).float()
        n_epochs = WARM_UP_STEPS // WARM_UP_STEPS_PER_EPOCH
        return self._adam(module, self.task.float(), seeds, n_epochs).double()

    def _initial_students(self, seeds: np.ndarray, widths: tuple[int, ...]) -> StackedStudents:
        n_inputs, n_outputs = self.samples.X.shape[1], self.samples.y.shape[1]
        # Deep students train better without skip terms: relu 8-6-5-1 to 4e-7 instead of 1e-5.
        has_skip = self.has_skip and len(widths) == 1
        layers = initial_weights(seeds, n_inputs, widths, n_outputs, has_skip)
        tensors = tuple(torch.from_numpy(layer).to(self.device) for layer in layers)
        return StackedStudents(tensors, self.activation)

    def _adam(
        self,
        module: StackedStudents,
        task: LeastSquaresTask,
        seeds: np.ndarray,
        n_epochs: int,
        callbacks: list[Callback] | None = None,
    ) -> StackedStudents:
        net = AdamNet(
            module,
            seed=int(seeds[0]),
            device=self.device,
            max_epochs=n_epochs,
            callbacks=callbacks,
        )
        self._fit(net, task)
        return module

    def _task(self, samples: Samples) -> LeastSquaresTask:
        ones = np.ones((len(samples.X), 1))
        return LeastSquaresTask(
            inputs=torch.from_numpy(np.hstack([samples.X, ones])).to(self.device),
            targets=torch.from_numpy(samples.y).to(self.device),
            sqrt_weight=torch.from_numpy(np.sqrt(samples.sample_weight)[:, None]).to(self.device),
            activation=self.activation,
        )

    @staticmethod
    def _fit(
        net: NeuralNet, task: LeastSquaresTask, monitor: TrainingMonitor | None = None
    ) -> None:
        data = {"inputs": task.inputs, "sqrt_weight": task.sqrt_weight}
        net.fit(data, task.targets)
        n_completed = sum("train_loss" in epoch for epoch in net.history)
        if n_completed < net.max_epochs and not (monitor is not None and monitor.stopped_):
            raise KeyboardInterrupt  # skorch swallows it; a truncated training is not a result


def resolve_device(device: str) -> str:
    """``"auto"`` is CUDA where there is one, the CPU elsewhere."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={device!r} cannot be used for float64 tensors ({error}): choose 'auto', "
            "'cpu' or a CUDA device that torch sees."
        ) from error
    return device


def _to_network(layers: Layers, index: int) -> Network:
    return Network(tuple(layer[index].cpu().numpy().copy() for layer in layers))
