"""Train students through skorch: a warm-up with Adam, then Levenberg; or Adam alone."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from sklearn.exceptions import EfficiencyWarning
from torch import Tensor

from sklearn_ec._core.records import Samples, Students
from sklearn_ec._solvers.derivatives import Layers
from sklearn_ec._solvers.levenberg import networks_at_a_time

from .polishing import Polisher
from .skorch_nets import (
    AdamNet,
    AdamState,
    EpochReporter,
    LevenbergNet,
    LossRecorder,
    TrainingMonitor,
    fit_net,
    n_levenberg_epochs,
)
from .students import network_at
from .training_state import BatchState, Checkpoint, IsRecovered, OnEpoch, TrainingState
from .warm_up import USUAL, Start, WarmUpTrainer


class StudentTrainer:
    """Trains students with the solver of a polisher, and on its rows; Levenberg on some of them."""

    def __init__(self, polisher: Polisher, rows: Samples | None = None):
        self.polisher = polisher.with_samples(rows or polisher.samples)
        self.settings = polisher.settings.training
        self.warm_up = WarmUpTrainer(polisher)

    def train(
        self,
        seeds: np.ndarray,
        widths: tuple[int, ...],
        *,
        max_iter: int,
        tol: float,
        start: Start = USUAL,
        is_recovered: IsRecovered | None = None,
        checkpoint: Checkpoint | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> Students:
        """Train one student per seed: a short warm-up with Adam, then Levenberg.

        Where they are large, Levenberg takes them in batches, best first, and stops after the first
        batch of which enough converged, or which ``is_recovered`` accepts. Without steps of
        Levenberg, it sees the students after their warm-up.

        A training that left a checkpoint goes on from there. One that is interrupted ends with the
        students as they are.
        """
        state = checkpoint.load() if checkpoint else None
        state = state or self.warmed_up(seeds, widths, start)
        try:
            if max_iter == 0 and is_recovered is not None and not state.interrupted:
                state.succeeded = is_recovered(state.students(), np.arange(len(seeds)))
            if max_iter == 0:
                return state.students()
            while not state.ended:
                self._train_batch(state, max_iter, tol, is_recovered, checkpoint, on_epoch)
        except KeyboardInterrupt:
            state.interrupted = True
        return state.students()

    def warmed_up(
        self, seeds: np.ndarray, widths: tuple[int, ...], start: Start = USUAL
    ) -> TrainingState:
        """The students that Levenberg starts from."""
        polisher = self.polisher
        module, completed = self.warm_up.begin(seeds, widths, start)
        losses = polisher.task.losses(module.weights)
        held_out = polisher.held_out_task.losses(module.weights).nan_to_num(math.inf)
        best = int(held_out.argmin())
        batches = self._batches(self._best_first(module.weights), module.weights)
        self._warn_about_memory(module.weights, max(map(len, batches)))
        return TrainingState(
            layers=_arrays(module.weights),
            losses=losses.cpu().numpy(),
            batches=[batch.cpu().numpy() for batch in batches],
            best=network_at(module.weights, best),
            best_held_out_loss=float(held_out[best]),
            interrupted=not completed,
        )

    def _train_batch(
        self,
        state: TrainingState,
        max_iter: int,
        tol: float,
        is_recovered: IsRecovered | None,
        checkpoint: Checkpoint | None,
        on_epoch: OnEpoch | None,
    ) -> None:
        polisher = self.polisher
        recorder = LossRecorder(polisher.task)

        def ask(net: LevenbergNet) -> bool:
            assert is_recovered is not None
            return is_recovered(snapshot(net).running_students, np.sort(state.batch))

        monitor = TrainingMonitor(
            polisher.held_out_task, tol, self.settings, ask if is_recovered else None
        )

        def snapshot(net: LevenbergNet) -> TrainingState:
            state.running = BatchState(
                n_epochs=net.n_epochs,
                solver=_arrays(net.solver_.state),
                loss_curves=list(recorder.losses_),
                held_out_losses=monitor.best_losses_.cpu().numpy(),
                best=monitor.best_network_,
                last_progress=monitor.last_progress_,
                next_question=monitor.next_question_,
            )
            return state

        module = self.warm_up.stack([layer[state.batch] for layer in state.layers])
        net = LevenbergNet(
            module,
            task=polisher.task,
            tol=tol,
            settings=polisher.settings,
            linear=polisher.suited(module.weights),
            working_bytes=polisher.working_bytes,
            start=state.running,
            device=polisher.device,
            max_epochs=n_levenberg_epochs(max_iter, self.settings),
            callbacks=[recorder, monitor, EpochReporter(on_epoch, snapshot, checkpoint)],
        )
        fit_net(net, polisher.task)
        snapshot(net)
        state.succeeded = monitor.succeeded_
        state.interrupted = not (monitor.stopped_ or monitor.n_epochs_ == net.max_epochs)
        state.finish_batch(n_iter=net.n_epochs * self.settings.steps_per_epoch)

    def train_with_adam(
        self,
        seeds: np.ndarray,
        widths: tuple[int, ...],
        *,
        max_iter: int,
        checkpoint: Checkpoint | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> Students:
        """Train one student per seed with minibatch Adam alone, in double precision.

        One iteration is an epoch of 100 minibatches. This is the control
        that the Levenberg solver is measured against.
        """
        polisher = self.polisher
        start: AdamState | None = checkpoint.load() if checkpoint else None
        if start is None:
            module = self.warm_up.initial_students(seeds, widths)
        else:
            module = self.warm_up.stack(start.layers)
        recorder = LossRecorder(polisher.task.unwatched())

        def snapshot(net: AdamNet) -> AdamState:
            moments = [net.optimizer_.state[parameter] for parameter in module.layers]
            return AdamState(
                n_epochs=net.n_epochs,
                layers=_arrays(module.weights),
                moments=[{k: v.cpu().numpy() for k, v in m.items()} for m in moments],
                rng=net.rng_.bit_generator.state,
                loss_curves=list(recorder.losses_),
            )

        callbacks = [recorder, EpochReporter(on_epoch, snapshot, checkpoint)]
        completed = self.warm_up.adam(
            module, polisher.task, int(seeds[0]), max_iter, start, callbacks
        )
        losses = polisher.task.losses(module.weights)
        held_out = polisher.held_out_task.losses(module.weights).nan_to_num(math.inf)
        best = int(held_out.argmin())
        return Students(
            layers=_arrays(module.weights),
            losses=torch.where(losses.isfinite(), losses, math.nan).cpu().numpy(),
            trained=np.ones(len(seeds), dtype=bool),
            n_iter=len(recorder.losses_) - 1,
            best=network_at(module.weights, best),
            best_held_out_loss=float(held_out[best]),
            loss_curves=np.stack(recorder.losses_, axis=1),
            interrupted=not completed,
        )

    def _best_first(self, layers: Layers) -> Tensor:
        """Indices of students by loss, those that diverged last."""
        losses = self.polisher.task.losses(layers)
        return torch.where(losses.isfinite(), losses, math.inf).argsort(stable=True)

    def _batches(self, order: Tensor, layers: Layers) -> tuple[Tensor, ...]:
        """Indices of the students that Levenberg trains at a time."""
        settings, linear = self.settings, self.polisher.suited(layers)
        is_cuda = torch.device(self.polisher.device).type == "cuda"
        limit = settings.batch_flops_on_cuda if is_cuda else settings.batch_flops_on_cpu
        flops = settings.steps_per_epoch * linear.flops(self.polisher.task, layers)
        smallest = 1 if linear.is_matrix_free else settings.min_batch
        return order.split(max(smallest, int(limit / flops)))

    def _warn_about_memory(self, layers: Layers, size: int) -> None:
        """Tell when a batch of so many students must be split."""
        polisher = self.polisher
        n_bytes = polisher.suited(layers).step_bytes(polisher.task, layers)
        n_fitting = networks_at_a_time(len(layers[0]), n_bytes, polisher.working_bytes)
        if n_fitting < size:
            warnings.warn(
                f"{size} students take about {size * n_bytes / 2**20:.0f} MiB at a time, the "
                f"working memory is {polisher.working_bytes / 2**20:.0f} MiB: they are trained "
                f"{n_fitting} at a time (about {n_fitting * n_bytes / 2**20:.0f} MiB), with the "
                "same result. Raise working_memory if there is more.",
                EfficiencyWarning,
                stacklevel=2,
            )


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.cpu().numpy() for tensor in tensors)
