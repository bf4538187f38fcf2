"""Train students through skorch: a warm-up with Adam, then Levenberg; or Adam alone."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from sklearn.exceptions import EfficiencyWarning
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor

from sklearn_ec._core.records import Network, Students
from sklearn_ec._solvers.derivatives import Layers
from sklearn_ec._solvers.jacobian import stacked
from sklearn_ec._solvers.levenberg import BatchedLevenberg, networks_at_a_time
from sklearn_ec._solvers.matrix_free import MatrixFreeLevenberg, suited_solver
from sklearn_ec._solvers.task import LeastSquaresTask

from .neuron_pool import compact_network, pool_neurons
from .polishing import Polisher
from .skorch_nets import (
    AdamNet,
    AdamState,
    EpochReporter,
    IsRecovered,
    LevenbergNet,
    LossRecorder,
    TrainingMonitor,
    n_adam_epochs,
    n_levenberg_epochs,
    n_levenberg_steps,
)
from .students import StackedStudents, initial_weights, network_at
from .training_state import BatchState, Checkpoint, Course, OnEpoch

WARM_UP_STEPS = 1000
LARGE_WARM_UP_STEPS = 16_000  # of students for which dense steps cost too much
POOLING_STEPS = 4000  # of each round in which neurons of several students are pooled
# Floating-point operations that one epoch of Levenberg may take for all students of a batch.
BATCH_FLOPS = {"cpu": 1e12, "cuda": 3e13}
# Large students gain nothing from being trained together.
MIN_BATCH = {BatchedLevenberg: 4, MatrixFreeLevenberg: 1}


class Trainer(Polisher):
    """Trains students, too."""

    def train(
        self,
        seeds: np.ndarray,
        widths: tuple[int, ...],
        *,
        max_iter: int,
        tol: float,
        is_recovered: IsRecovered | None = None,
        checkpoint: Checkpoint | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> Students:
        """Train one student per seed: a short warm-up with Adam, then Levenberg.

        Where students are large, Levenberg takes them in batches, best first, and stops after the
        first batch of which enough converged, or whose best student ``is_recovered`` accepts. Of
        large ones with ReLU neurons, the first starts from the best neurons of all, see
        :mod:`sklearn_ec._expand.neuron_pool`, and ``is_recovered`` sees those that matter before.

        A training that left a checkpoint goes on from there. One that is interrupted ends with the
        students as they are.
        """
        course = checkpoint.load() if checkpoint else None
        is_new = course is None
        if course is None:
            course = self._warmed_up(seeds, widths)
        try:
            if is_new and course.starts_from_pool and is_recovered is not None:
                course.succeeded = self._pool_is_recovered(course, is_recovered)
            while not course.ended:
                self._train_batch(course, max_iter, tol, is_recovered, checkpoint, on_epoch)
        except KeyboardInterrupt:
            course.interrupted = True
        return course.students()

    def _warmed_up(self, seeds: np.ndarray, widths: tuple[int, ...]) -> Course:
        module, completed = self._warm_up(seeds, widths)
        order = self._best_first(module.weights)
        starts_from_pool = completed and self._can_pool(module.weights)
        if starts_from_pool:
            completed = self._pool(module, seeds, order[-1])
            order = order.roll(1)
        losses = self.task.losses(module.weights)
        held_out = self.held_out_task.losses(module.weights).nan_to_num(math.inf)
        best = int(held_out.argmin())
        batches = self._batches(order, module.weights)
        self._warn_about_memory(module.weights, max(map(len, batches)))
        return Course(
            layers=_arrays(module.weights),
            losses=losses.cpu().numpy(),
            batches=[batch.cpu().numpy() for batch in batches],
            best=network_at(module.weights, best),
            best_held_out_loss=float(held_out[best]),
            starts_from_pool=starts_from_pool and completed,
            interrupted=not completed,
        )

    def _pool_is_recovered(self, course: Course, is_recovered: IsRecovered) -> bool:
        """Whether the few neurons of the pool that matter give the network."""
        student = int(course.batch[0])
        pooled = Network(tuple(layer[student] for layer in course.layers))
        compact = compact_network(pooled, self.samples, self.activation)
        loss = float(self.task.losses(stacked(compact, self.device))[0])
        return is_recovered(student, compact, loss)

    def _train_batch(
        self,
        course: Course,
        max_iter: int,
        tol: float,
        is_recovered: IsRecovered | None,
        checkpoint: Checkpoint | None,
        on_epoch: OnEpoch | None,
    ) -> None:
        recorder = LossRecorder(self.task)
        monitor = TrainingMonitor(self.held_out_task, course.batch, tol, is_recovered)

        def snapshot(net: LevenbergNet) -> Course:
            course.running = BatchState(
                n_epochs=net.n_epochs,
                solver=_arrays(net.solver_.state),
                loss_curves=list(recorder.losses_),
                held_out_losses=monitor.best_losses_.cpu().numpy(),
                best=monitor.best_network_,
                last_progress=monitor.last_progress_,
                next_question=monitor.next_question_,
            )
            return course

        layers = tuple(
            torch.from_numpy(layer[course.batch]).to(self.device) for layer in course.layers
        )
        net = LevenbergNet(
            StackedStudents(layers, self.activation),
            task=self.task,
            tol=tol,
            solver=self.levenberg(layers),
            working_bytes=self.working_bytes,
            start=course.running,
            device=self.device,
            max_epochs=n_levenberg_epochs(max_iter),
            callbacks=[recorder, monitor, EpochReporter(on_epoch, snapshot, checkpoint)],
        )
        self._fit(net, self.task)
        snapshot(net)
        course.succeeded = monitor.succeeded_
        course.interrupted = not (monitor.stopped_ or monitor.n_epochs_ == net.max_epochs)
        course.finish_batch(n_iter=n_levenberg_steps(net.n_epochs))

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
        start: AdamState | None = checkpoint.load() if checkpoint else None
        if start is None:
            module = self._initial_students(seeds, widths)
        else:
            layers = tuple(torch.from_numpy(layer).to(self.device) for layer in start.layers)
            module = StackedStudents(layers, self.activation)
        recorder = LossRecorder(self.task.unwatched())

        def snapshot(net: AdamNet) -> AdamState:
            moments = [net.optimizer_.state[parameter] for parameter in module.layers]
            return AdamState(
                n_epochs=net.n_epochs,
                layers=_arrays(module.weights),
                moments=[{k: v.cpu().numpy() for k, v in m.items()} for m in moments],
                rng=net.rng_.bit_generator.state,
                loss_curves=list(recorder.losses_),
            )

        reporter = EpochReporter(on_epoch, snapshot, checkpoint)
        completed = self._adam(
            module, self.task, int(seeds[0]), max_iter, start, [recorder, reporter]
        )
        losses = self.task.losses(module.weights)
        held_out = self.held_out_task.losses(module.weights).nan_to_num(math.inf)
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
        losses = self.task.losses(layers)
        return torch.where(losses.isfinite(), losses, math.inf).argsort(stable=True)

    def _batches(self, order: Tensor, layers: Layers) -> tuple[Tensor, ...]:
        """Indices of the students that Levenberg trains at a time."""
        solver = self.levenberg(layers)
        flops = n_levenberg_steps(1) * solver.flops(self.task, layers)
        limit = BATCH_FLOPS[torch.device(self.device).type] / flops
        return order.split(max(MIN_BATCH[solver], int(limit)))

    def _warn_about_memory(self, layers: Layers, size: int) -> None:
        """Tell when a batch of so many students must be split."""
        n_bytes = self.levenberg(layers).step_bytes(self.task, layers)
        n_fitting = networks_at_a_time(len(layers[0]), n_bytes, self.working_bytes)
        if n_fitting < size:
            warnings.warn(
                f"{size} students take about {size * n_bytes / 2**20:.0f} MiB at a time, the "
                f"working memory is {self.working_bytes / 2**20:.0f} MiB: they are trained "
                f"{n_fitting} at a time (about {n_fitting * n_bytes / 2**20:.0f} MiB), with the "
                "same result. Raise working_memory if there is more.",
                EfficiencyWarning,
                stacklevel=2,
            )

    def _warm_up(self, seeds: np.ndarray, widths: tuple[int, ...]) -> tuple[StackedStudents, bool]:
        """Initial students after a short training, and whether that was completed."""
        module = self._initial_students(seeds, widths)
        if not self._is_large(module.weights):
            return self._train_briefly(module, WARM_UP_STEPS, int(seeds[0]))
        module, completed = self._train_briefly(module, LARGE_WARM_UP_STEPS, int(seeds[0]))
        return self._stack(self._settled_networks(module)), completed

    def _train_briefly(
        self, module: StackedStudents, n_steps: int, seed: int
    ) -> tuple[StackedStudents, bool]:
        """Train with Adam in single precision; also tells whether that was completed."""
        module = module.float()
        n_epochs = n_adam_epochs(n_steps)
        completed = self._adam(module, self.task.float(), seed, n_epochs)
        return module.double(), completed

    def _is_large(self, layers: Layers) -> bool:
        """Whether Levenberg steps cost so much that a long warm-up pays."""
        return suited_solver(self.task, layers, self.working_bytes) is MatrixFreeLevenberg

    def _can_pool(self, layers: Layers) -> bool:
        """Whether neurons of several students are to be pooled: large ones of one hidden layer.

        Smooth activations need no pool. Levenberg moves their neurons from afar, and what students
        lack after the warm-up no subset of short-trained neurons has either.
        """
        n_students, width, _ = layers[0].shape
        is_shallow = len(layers) == 2 and min(n_students, width) > 1
        return is_shallow and self.activation.homogeneous and self._is_large(layers)

    def _pool(self, module: StackedStudents, seeds: np.ndarray, worst: Tensor) -> bool:
        """Let the worst student start from the best neurons of all; tell whether that was done."""
        rng = np.random.default_rng(seeds)

        def train(networks: list[Network]) -> list[Network]:
            seed = int(rng.integers(2**31))
            trained, completed = self._train_briefly(self._stack(networks), POOLING_STEPS, seed)
            if not completed:
                raise KeyboardInterrupt
            return _finite(self._settled_networks(trained))

        networks = _finite(_to_networks(module.weights))
        if not networks:
            return True
        try:
            pooled = pool_neurons(networks, train, self.samples, self.activation, rng)
        except KeyboardInterrupt:
            return False
        for layer, start in zip(module.layers, pooled.layers, strict=True):
            layer.data[worst] = torch.from_numpy(start).to(self.device)
        return True

    def _settled_networks(self, module: StackedStudents) -> list[Network]:
        networks = _to_networks(module.weights)
        return [self.settled(network) if network.is_finite else network for network in networks]

    def _stack(self, networks: list[Network]) -> StackedStudents:
        layers = zip(*(network.layers for network in networks), strict=True)
        tensors = tuple(torch.from_numpy(np.stack(layer)).to(self.device) for layer in layers)
        return StackedStudents(tensors, self.activation)

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
        seed: int,
        n_epochs: int,
        start: AdamState | None = None,
        callbacks: list[Callback] | None = None,
    ) -> bool:
        """Train a module in place; tell whether that was completed."""
        ticker = EpochReporter(on_epoch=self._tick)
        net = AdamNet(
            module,
            seed=seed,
            start=start,
            device=self.device,
            max_epochs=n_epochs,
            callbacks=[*(callbacks or []), ticker],
        )
        self._fit(net, task)
        n_before = start.n_epochs if start else 0
        return n_before + sum("train_loss" in epoch for epoch in net.history) == n_epochs

    def _tick(self) -> bool:
        self.watch.tick()
        return False

    @staticmethod
    def _fit(net: NeuralNet, task: LeastSquaresTask) -> None:
        """Fit a net; skorch ends it quietly where it is interrupted."""
        net.fit({"inputs": task.inputs, "sqrt_weight": task.sqrt_weight}, task.targets)


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.cpu().numpy() for tensor in tensors)


def _to_networks(layers: Layers) -> list[Network]:
    return [network_at(layers, index) for index in range(len(layers[0]))]


def _finite(networks: list[Network]) -> list[Network]:
    return [network for network in networks if network.is_finite]
