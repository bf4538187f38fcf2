"""Train students through skorch, and polish single networks."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn import get_config
from sklearn.exceptions import EfficiencyWarning
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor

from ._activations import get_activation
from ._course import BatchState, Checkpoint, Course, OnEpoch
from ._levenberg import BatchedLevenberg, LeastSquaresTask, networks_at_a_time
from ._linearization import Linearization, stacked
from ._matrix_free import FinalMatrixFreeLevenberg, MatrixFreeLevenberg, suited_solver
from ._nets import (
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
from ._pooling import compact_network, pool_neurons
from ._preprocessing import HIGH_LEVERAGE, leverages
from ._reconstruction import solve_readout
from ._students import StackedStudents, initial_weights, network_at
from ._sweeps import Layers
from ._types import Network, Samples, Students
from ._watch import Watch

WARM_UP_STEPS = 1000
LARGE_WARM_UP_STEPS = 16_000  # of students for which dense steps cost too much
POOLING_STEPS = 4000  # of each round in which neurons of several students are pooled
# Large students lose weight in directions of less variance than this, apart from rows of high
# leverage.
SHRINKAGE = 1e-3
POLISH_DAMPING = 1e-3
POLISH_WINDOW = 20
# A polish has stalled when a window leaves more than this share of the loss.
POLISH_PROGRESS = 0.99
# Large networks below FINAL_LOSS have the right neurons. What is left may be spread over directions
# that few rows tell about, where cheap steps crawl: on 10,000 MNIST images, 16 ``g`` neurons stall
# at 1e-15, and come to 1e-30 with nine dense steps. Others do not stall, and dense steps, of less
# precision, would hold them up: 8 tanh neurons come to 1e-26 with cheap ones. So the steps change
# when a window above FINISHED_LOSS leaves more than the share STALLED of the loss.
FINAL_LOSS = 1e-12
FINISHED_LOSS = 1e-20
STALLED = 0.5
MAX_REFINEMENTS = 10
# Floating-point operations that one epoch of Levenberg may take for all students of a batch.
BATCH_FLOPS = {"cpu": 1e12, "cuda": 3e13}
# Large students gain nothing from being trained together.
MIN_BATCH = {BatchedLevenberg: 4, MatrixFreeLevenberg: 1}
SOLVERS = {"levenberg": BatchedLevenberg, "matrix_free": MatrixFreeLevenberg}
# Share of a device's free memory that training may take.
FREE_MEMORY_SHARE = 0.8


class Trainer:
    """Trains students and polishes networks on one set of rows, on one device.

    Pickled and hashed as its arguments, so that workers build their own tensors on their own
    device.
    """

    def __init__(
        self,
        train: Samples,
        held_out: Samples,
        activation: str,
        device: str,
        has_skip: bool,
        working_memory: float | None = None,
        solver: str = "auto",
        watch: Watch | None = None,
    ):
        self.watch = watch or Watch()
        self._arguments = (
            train,
            held_out,
            activation,
            device,
            has_skip,
            working_memory,
            solver,
            self.watch,
        )
        self.samples = train
        self.activation_name = activation
        self.activation = get_activation(activation)
        self.device = resolve_device(device)
        self.has_skip = has_skip
        self.working_memory = working_memory
        self.solver = solver
        self.task = self._task(train)
        self.held_out_task = self._task(held_out)

    def __reduce__(self) -> tuple[Any, ...]:
        return Trainer, self._arguments

    def with_samples(self, samples: Samples) -> Trainer:
        """A trainer on other rows or targets."""
        return Trainer(samples, *self._arguments[1:])

    def identity(self) -> dict[str, Any]:
        """What results depend on; device and memory matter up to rounding only."""
        train, held_out, activation, _, has_skip, _, solver, _ = self._arguments
        return {
            "train": train,
            "held_out": held_out,
            "activation": activation,
            "has_skip": has_skip,
            "solver": solver,
        }

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
        :mod:`sklearn_ec._pooling`, and ``is_recovered`` sees those that matter before.

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
        losses = self.task.unwatched().losses(module.weights)
        held_out = self.held_out_task.unwatched().losses(module.weights).nan_to_num(math.inf)
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
        losses = self.task.unwatched().losses(module.weights)
        held_out = self.held_out_task.unwatched().losses(module.weights).nan_to_num(math.inf)
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
        losses = self.task.unwatched().losses(layers)
        return torch.where(losses.isfinite(), losses, math.inf).argsort(stable=True)

    def _batches(self, order: Tensor, layers: Layers) -> tuple[Tensor, ...]:
        """Indices of the students that Levenberg trains at a time."""
        solver = self.levenberg(layers)
        flops = n_levenberg_steps(1) * solver.flops(self.task, layers)
        limit = BATCH_FLOPS[torch.device(self.device).type] / flops
        return order.split(max(MIN_BATCH[solver], int(limit)))

    def levenberg(self, layers: Layers) -> type[BatchedLevenberg]:
        """The solver for networks of this size: the chosen one, else the one that suits them."""
        suited = suited_solver(self.task, layers, self.working_bytes)
        return SOLVERS.get(self.solver, suited)

    def _with_exact_steps(self, solver: BatchedLevenberg) -> BatchedLevenberg:
        """The same state with nearly exact steps, dense ones where there is memory for them."""
        n_bytes = BatchedLevenberg.step_bytes(self.task, solver.layers)
        is_dense = self.solver == "auto" and n_bytes <= self.working_bytes
        kind = BatchedLevenberg if is_dense else FinalMatrixFreeLevenberg
        return kind(self.task, solver.layers, tol=solver.tol, damping=float(solver.losses[0]))

    def is_matrix_free(self, network: Network) -> bool:
        """Whether a network is polished without forming its normal equations."""
        return self.levenberg(stacked(network, self.device)) is MatrixFreeLevenberg

    @property
    def working_bytes(self) -> float:
        """Memory that a step of Levenberg may take."""
        if self.working_memory is not None:
            return self.working_memory * 2**20
        if torch.device(self.device).type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            cached = torch.cuda.memory_reserved(self.device)
            cached -= torch.cuda.memory_allocated(self.device)
            return FREE_MEMORY_SHARE * (free + cached)
        return get_config()["working_memory"] * 2**20

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
        or where twice the present rate would not reach the ``target`` loss. Large networks that
        stall near zero get nearly exact steps, from dense equations if there is memory for them.
        """
        layers = stacked(network, self.device)
        solver = self.levenberg(layers)(self.task, layers, tol=enough, damping=POLISH_DAMPING)
        for n_windows in range(math.ceil(max_iter / POLISH_WINDOW) - 1, -1, -1):
            before = float(solver.losses[0])
            solver.run(POLISH_WINDOW)
            loss = float(solver.losses[0])
            if solver.finished.all():
                break
            if _has_stalled_near_zero(solver, before):
                solver = self._with_exact_steps(solver)
                continue
            if loss > progress * before:
                break
            if target < loss * (loss / before) ** (2 * n_windows):
                break
        return network_at(solver.layers, 0), loss

    def refine(self, network: Network, loss: float) -> tuple[Network, float]:
        """Gauss-Newton steps without damping, until one does not halve the loss.

        They reach rounding level in directions that are lost in the normal equations. Matrix-free
        steps get there by themselves.
        """
        if self.is_matrix_free(network):
            return network, loss
        for _ in range(MAX_REFINEMENTS):
            linearization = Linearization(self.task, network)
            steps = linearization.newton_step()
            layers = tuple(a + b for a, b in zip(linearization.layers, steps, strict=True))
            refined_loss = float(self.task.losses(layers)[0])
            if not refined_loss < loss:
                break
            is_last = refined_loss > 0.5 * loss
            network, loss = network_at(layers, 0), refined_loss
            if is_last:
                break
        return network, loss

    def standard_errors(
        self,
        network: Network,
        noise_level: np.ndarray,
        incoming_map: np.ndarray | None = None,
        output_scale: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Standard errors of a network's weights, in the layout of its layers.

        They hold for other coordinates of inputs and outputs where these are given by the matrix
        that ``[w; b]`` of the first layer are multiplied with, and by the units of the outputs.
        """

        def tensor(part: np.ndarray | None) -> Tensor | None:
            return None if part is None else torch.tensor(part, device=self.device)

        noise = torch.tensor(noise_level, device=self.device)
        linearization = Linearization(self.task, network)
        errors = linearization.standard_errors(noise, tensor(incoming_map), tensor(output_scale))
        return [part.cpu().numpy() for part in errors]

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

    def settled(self, network: Network, shrinkage: float = SHRINKAGE) -> Network:
        """A network with less weight along directions that few rows tell about.

        Adam walks at random there: its steps have the same length however small the gradient. A
        ReLU neuron that it switches off in the only images in which a pixel is lit never comes
        back: 784-8-10 students of the right neurons stop at 2e-4, and reach 3e-30 from here.
        """
        first, *others = network.layers[:-1]
        own = network.columns(0, 0)
        covariance = self._common_covariance
        damped = covariance + shrinkage * np.eye(len(covariance))
        weights = np.linalg.solve(damped, covariance @ first[:, own].T).T
        hidden = [np.column_stack([weights, first[:, -1]]), *others]
        return solve_readout(hidden, self.samples, self.activation, network.has_skip)

    @cached_property
    def _common_covariance(self) -> np.ndarray:
        """Second moments of the inputs over the rows of low leverage."""
        X = self.samples.X
        common = X[leverages(X) <= HIGH_LEVERAGE]
        return common.T @ common / max(len(common), 1)

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

    def _task(self, samples: Samples) -> LeastSquaresTask:
        ones = np.ones((len(samples.X), 1))
        return LeastSquaresTask(
            inputs=torch.from_numpy(np.hstack([samples.X, ones])).to(self.device),
            targets=torch.tensor(samples.y, device=self.device),
            sqrt_weight=torch.from_numpy(np.sqrt(samples.sample_weight)[:, None]).to(self.device),
            activation=self.activation,
            watch=self.watch,
        )

    @staticmethod
    def _fit(net: NeuralNet, task: LeastSquaresTask) -> None:
        """Fit a net; skorch ends it quietly where it is interrupted."""
        net.fit({"inputs": task.inputs, "sqrt_weight": task.sqrt_weight}, task.targets)


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


def _has_stalled_near_zero(solver: BatchedLevenberg, before: float) -> bool:
    """Whether cheap steps crawl where exact ones may not, from the loss a window before."""
    loss = float(solver.losses[0])
    is_near_zero = FINISHED_LOSS < loss < FINAL_LOSS
    return type(solver) is MatrixFreeLevenberg and is_near_zero and loss > STALLED * before


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.cpu().numpy() for tensor in tensors)


def _to_networks(layers: Layers) -> list[Network]:
    return [network_at(layers, index) for index in range(len(layers[0]))]


def _finite(networks: list[Network]) -> list[Network]:
    return [network for network in networks if network.is_finite]
