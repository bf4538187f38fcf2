"""The start of students: random weights, and a short training with Adam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from skorch.callbacks import Callback

from sklearn_ec._core.forward import network_outputs, solve_readout
from sklearn_ec._core.records import Network
from sklearn_ec._core.settings import WarmUp
from sklearn_ec._core.signs import with_skip
from sklearn_ec._solvers.derivatives import Layers
from sklearn_ec._solvers.task import LeastSquaresTask

from .compacting import compact_network
from .directions import active_directions, bending_directions
from .polishing import Polisher
from .skorch_nets import AdamNet, AdamState, EpochReporter, fit_net
from .students import (
    StackedStudents,
    added,
    grown_students,
    initial_weights,
    network_at,
    with_shared_neurons,
)


@dataclass(frozen=True)
class Start:
    """What students begin as: random networks that Adam warms up, unless they are given more."""

    n_steps: int | None = None  # of the warm-up; None for as many as students of their size take
    rate: float = 1.0  # of the warm-up, as a share of the usual one
    shared: Sequence[np.ndarray] = ()  # neurons of the lowest layers, of which all have some more
    # Without a warm-up: the lowest layers as all of them have them, with random ones above, or a
    # network, with a few random neurons besides its own.
    collapsed: Sequence[np.ndarray] = ()
    network: Network | None = None


USUAL = Start()


class WarmUpTrainer:
    """Makes students and trains them with Adam, in single precision."""

    def __init__(self, polisher: Polisher):
        self.polisher = polisher
        self.settings = polisher.settings

    def initial_students(
        self, seeds: np.ndarray, widths: tuple[int, ...], shared: Sequence[np.ndarray] = ()
    ) -> StackedStudents:
        samples = self.polisher.samples
        n_inputs, n_outputs = samples.X.shape[1], samples.y.shape[1]
        # Deep students train better without skip terms: relu 8-6-5-1 to 4e-7 instead of 1e-5.
        has_skip = self.polisher.has_skip and len(widths) == 1
        layers = initial_weights(seeds, n_inputs, widths, n_outputs, has_skip)
        return self.stack(with_shared_neurons(layers, shared))

    def begin(
        self, seeds: np.ndarray, widths: tuple[int, ...], start: Start
    ) -> tuple[StackedStudents, bool]:
        """Students that Levenberg starts from, and whether that was completed."""
        if start.network is not None:
            return self.grow(seeds, widths, start.network)
        if start.collapsed:
            return self.expand(seeds, widths, start.collapsed), True
        return self.train(seeds, widths, start)

    def grow(
        self, seeds: np.ndarray, widths: tuple[int, ...], network: Network
    ) -> tuple[StackedStudents, bool]:
        """Students that start as a network, and whether that was completed.

        Their other neurons are random, and compute nothing. Those of large students of one hidden
        layer learn the residual of the network first: Levenberg would not find it in a few steps.
        """
        is_shallow, n_added = len(widths) == 1, widths[0] - network.widths[0]
        if self.polisher.has_skip and is_shallow:
            network = with_skip(network)
        if not (is_shallow and n_added and self.polisher.are_large(widths)):
            return self.stack(grown_students([network] * len(seeds), widths, seeds)), True
        samples = self.polisher.samples
        residuals = samples.y - network_outputs(network, samples.X, self.polisher.activation)
        scale = np.sqrt(np.mean(residuals**2))
        learner = WarmUpTrainer(self.polisher.with_targets(residuals / scale))
        if self.polisher.trains_along_few(n_added):
            module, completed = learner._train_along(learner._axes(n_added), seeds, n_added)
        else:
            module, completed = learner.train(seeds, (n_added,))
        joined = [added(network, new, scale) for new in _to_networks(module.weights)]
        return self._stack_networks(joined), completed

    def expand(
        self, seeds: np.ndarray, widths: tuple[int, ...], collapsed: Sequence[np.ndarray]
    ) -> StackedStudents:
        """Students on collapsed lower layers: those above are random, but the readout solved."""
        samples, activation = self.polisher.samples, self.polisher.activation
        layers = initial_weights(seeds, samples.X.shape[1], widths, samples.y.shape[1], False)
        for layer, neurons in zip(layers, collapsed, strict=False):
            layer[:] = neurons
        students = zip(*layers[:-1], strict=True)
        return self._stack_networks(
            [solve_readout(s, samples, activation, False) for s in students]
        )

    def train(
        self,
        seeds: np.ndarray,
        widths: tuple[int, ...],
        start: Start = USUAL,
    ) -> tuple[StackedStudents, bool]:
        """Initial students after a short training, and whether that was completed."""
        module = self.initial_students(seeds, widths, start.shared)
        is_large = self._are_large(module.weights)
        is_single = len(widths) == len(seeds) == 1 and start.n_steps is None
        if is_large and is_single and self.polisher.trains_along_few(widths[0]):
            return self._train_in_stages(seeds, widths[0])
        n_steps = self._n_steps(module.weights) if start.n_steps is None else start.n_steps
        module, completed = self._train_briefly(module, n_steps, int(seeds[0]), start.rate)
        if is_large:
            module = self._stack_networks(self._settled_networks(module))
        return module, completed

    def _train_in_stages(self, seeds: np.ndarray, width: int) -> tuple[StackedStudents, bool]:
        """A student of one hidden layer, from one after the other, as long as this helps.

        Each is trained in the directions that the best one before reads: it mixes neurons that the
        next one tells apart. It ends as the few neurons that do nearly as well: others would hold
        up Levenberg.
        """
        stages, task = self.settings.stages, self.polisher.task
        module, completed = self._train_along(self._axes(width), seeds, width)
        best, lowest = network_at(module.weights, 0), float(task.losses(module.weights))
        for stage in (self._train_anew, self._train_further):
            helps = True
            while completed and helps and lowest > stages.enough:
                module, completed = stage(best, seeds, width)
                loss = float(task.losses(module.weights))
                helps = loss < stages.progress * lowest
                if loss < lowest:
                    best, lowest = network_at(module.weights, 0), loss
        return self._stack_networks([self._compact(best, seeds)]), completed

    def _train_anew(
        self, before: Network, seeds: np.ndarray, width: int
    ) -> tuple[StackedStudents, bool]:
        """A student in the directions that the one before reads."""
        return self._train_along(self._axes(width, before), seeds, width)

    def _train_further(
        self, before: Network, seeds: np.ndarray, width: int
    ) -> tuple[StackedStudents, bool]:
        """The student before, with further neurons that learned its residual."""
        stages, network = self.settings.stages, self._compact(before, seeds)
        n_added = math.ceil(stages.growth * width)
        module, completed = self.grow(seeds, (network.widths[0] + n_added,), network)
        if not completed:
            return module, completed
        rate, seed = stages.further_rate, int(seeds[0])
        return self._train_briefly(module, stages.steps, seed, rate, schedule=stages)

    def _compact(self, network: Network, seeds: np.ndarray) -> Network:
        """The few neurons of a student that do nearly as well."""
        samples, (width,) = self.polisher.samples, network.widths
        n_rows = self.settings.stages.compact_rows * width
        few = samples.thinned(n_rows * samples.y.shape[1], seeds)
        return compact_network(network, few, self.polisher.activation, self.settings.compacting)

    def _axes(self, width: int, before: Network | None = None) -> np.ndarray:
        """Directions for a student: those of the one before, and those that its residual shows."""
        samples, task = self.polisher.samples, self.polisher.task
        n_axes, inputs = math.ceil(self.settings.stages.directions * width), task.inputs[:, :-1]
        if before is None:
            return bending_directions(inputs, samples.y, n_axes)
        residuals = samples.y - network_outputs(before, samples.X, self.polisher.activation)
        active = active_directions(before, task, n_axes)
        bending = bending_directions(inputs, residuals, n_axes // 2, beyond_chance=True)
        return np.linalg.qr(np.column_stack([active, bending]))[0]

    def _train_along(
        self, axes: np.ndarray, seeds: np.ndarray, width: int
    ) -> tuple[StackedStudents, bool]:
        """A student trained along orthonormal directions of the inputs, then in all of them."""
        stages, seed = self.settings.stages, int(seeds[0])
        within = WarmUpTrainer(self.polisher.along(axes))
        module = within.initial_students(seeds, (width,))
        module, completed = within._train_briefly(module, stages.steps_along, seed)
        hidden, readout = (layer.cpu().numpy() for layer in module.weights)
        layers = [np.concatenate([hidden[..., :-1] @ axes.T, hidden[..., -1:]], axis=2), readout]
        if within.polisher.has_skip:
            own, skip = np.split(readout, [width + 1], axis=2)
            layers[1] = np.concatenate([own, skip @ axes.T], axis=2)
        module = self.stack(layers)
        if completed:
            module, completed = self._train_briefly(module, stages.steps, seed, schedule=stages)
        return module, completed

    def _n_steps(self, layers: Layers) -> int:
        """Steps of the warm-up; of many parameters they grow as Levenberg steps cost more."""
        steps = self.settings.warm_up
        if self._are_large(layers):
            return steps.large_steps
        n_parameters = sum(layer[0].numel() for layer in layers)
        power = steps.power if len(layers) == 2 else steps.deep_power
        share = max(1.0, n_parameters / steps.few_parameters) ** power
        return min(int(share * steps.steps), max(steps.most_steps, steps.steps))

    def adam(
        self,
        module: StackedStudents,
        task: LeastSquaresTask,
        seed: int,
        n_epochs: int,
        start: AdamState | None = None,
        callbacks: list[Callback] | None = None,
        rate: float = 1.0,
        schedule: WarmUp | None = None,
    ) -> bool:
        """Train a module in place with Adam; tell whether that was completed."""
        ticker = EpochReporter(on_epoch=self._tick)
        schedule = self.settings.warm_up if schedule is None else schedule
        n_share = int(schedule.minibatch_share * len(task.inputs))
        net = AdamNet(
            module,
            schedule=replace(
                schedule,
                learning_rate=rate * schedule.learning_rate,
                minibatch=max(schedule.minibatch, n_share),
            ),
            seed=seed,
            start=start,
            device=self.polisher.device,
            max_epochs=n_epochs,
            callbacks=[*(callbacks or []), ticker],
        )
        fit_net(net, task)
        n_done = sum("train_loss" in epoch for epoch in net.history)
        n_done += start.n_epochs if start else 0
        return n_done == n_epochs and not self.polisher.watch.has_ended

    def stack(self, layers: list[np.ndarray] | tuple[np.ndarray, ...]) -> StackedStudents:
        tensors = tuple(torch.from_numpy(layer).to(self.polisher.device) for layer in layers)
        return StackedStudents(tensors, self.polisher.activation)

    def _train_briefly(
        self,
        module: StackedStudents,
        n_steps: int,
        seed: int,
        rate: float = 1.0,
        schedule: WarmUp | None = None,
    ) -> tuple[StackedStudents, bool]:
        """Train with Adam in single precision; also tells whether that was completed.

        With many inputs, unless there is another schedule, smaller steps and more of them.
        """
        module, task = module.float(), self.polisher.task.float()
        if schedule is None:
            rate, n_steps = self._pace * rate, int(n_steps / self._pace)
        n_epochs = n_steps // self.settings.warm_up.steps_per_epoch
        completed = self.adam(module, task, seed, n_epochs, rate=rate, schedule=schedule)
        return module.double(), completed

    @property
    def _pace(self) -> float:
        """The rate that suits the number of inputs, as a share of the usual one."""
        settings, n_inputs = self.settings.warm_up, self.polisher.samples.X.shape[1]
        return min(1.0, settings.rate_per_inputs / (n_inputs * settings.learning_rate))

    def _are_large(self, layers: Layers) -> bool:
        """Whether Levenberg steps cost so much that a long warm-up pays."""
        return self.polisher.cheapest(layers).is_matrix_free

    def _settled_networks(self, module: StackedStudents) -> list[Network]:
        settled = self.polisher.settled
        networks = _to_networks(module.weights)
        return [settled(network) if network.is_finite else network for network in networks]

    def _stack_networks(self, networks: list[Network]) -> StackedStudents:
        layers = zip(*(network.layers for network in networks), strict=True)
        return self.stack([np.stack(layer) for layer in layers])

    def _tick(self) -> bool:
        self.polisher.watch.tick()
        return False


def _to_networks(layers: Layers) -> list[Network]:
    return [network_at(layers, index) for index in range(len(layers[0]))]
