"""Polish single networks: Levenberg down to rounding, with the solver that suits their size."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn import get_config

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import have_high_leverage, leverages
from sklearn_ec._core.forward import solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import ConjugateGradients, Reporting, Settings
from sklearn_ec._core.watch import Watch
from sklearn_ec._solvers.derivatives import Layers
from sklearn_ec._solvers.jacobian import Linearization, stacked
from sklearn_ec._solvers.levenberg import Dense, Levenberg, LinearSolver
from sklearn_ec._solvers.matrix_free import MatrixFree, suited_solver
from sklearn_ec._solvers.task import LeastSquaresTask, resolve_device, task_of

from .students import layer_shapes, network_at


class Unfinished(KeyboardInterrupt):
    """A polish was stopped from outside; ``network`` is as far as it got."""

    def __init__(self, network: Network):
        super().__init__(network)
        self.network = network


class Polisher:
    """Polishes networks on one set of rows, on one device.

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
        settings: Settings | None = None,
    ):
        self.watch = watch or Watch()
        self.settings = settings or Settings()
        self._arguments = (
            train,
            held_out,
            activation,
            device,
            has_skip,
            working_memory,
            solver,
            self.watch,
            self.settings,
        )
        self.samples = train
        self.activation_name = activation
        self.activation = get_activation(activation)
        self.device = resolve_device(device)
        self.has_skip = has_skip
        self.working_memory = working_memory
        self.solver = solver
        self.n_steps = 0  # that networks were polished for
        self.task, self.held_out_task = (
            task_of(rows, self.activation, self.device, self.watch, self.settings.blocks)
            for rows in (train, held_out)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def with_samples(self, samples: Samples) -> Polisher:
        """The same on other rows or targets."""
        if samples is self.samples:
            return self
        return Polisher(samples, *self._arguments[1:])

    def on_few_rows(self, n_equations: float) -> Polisher:
        """The same on as many random rows as give so many equations.

        Where few rows tell about some directions, those that tell most are drawn sooner: of 67 tanh
        neurons, 64 of them those of a 784-64-10 network, four steps on 19,400 of 59,000 MNIST
        images lower the loss on all of them from 2.6e-7 to 4.6e-8; on 14,300 drawn evenly, they
        raise it.
        """
        if n_equations >= self.samples.n_equations:
            return self
        chances = self._leverages if self.has_weak_inputs else None
        return self.with_samples(self.samples.thinned(n_equations, seed=0, chances=chances))

    def with_targets(self, y: np.ndarray) -> Polisher:
        """The same rows, of which there is no further copy, with other training targets."""
        other = copy.copy(self)
        other.samples = replace(self.samples, y=y)
        other._arguments = (other.samples, *self._arguments[1:])
        other.task = replace(self.task, targets=torch.from_numpy(y).to(self.device))
        return other

    def along(self, axes: np.ndarray) -> Polisher:
        """The same rows, with what their inputs are along orthonormal directions."""
        train, held_out = (
            Samples.of(rows.X @ axes, rows.y, rows.sample_weight, rows.rounding_loss)
            for rows in self._arguments[:2]
        )
        return Polisher(train, held_out, *self._arguments[2:])

    def identity(self) -> dict[str, Any]:
        """What results depend on; device and memory matter up to rounding only."""
        train, held_out, activation, _, has_skip, _, solver, _, settings = self._arguments
        return {
            "train": train,
            "held_out": held_out,
            "activation": activation,
            "has_skip": has_skip,
            "solver": solver,
            "settings": replace(settings, reporting=Reporting()),
        }

    def losses(self, layers: Sequence[np.ndarray]) -> np.ndarray:
        """Loss of every one of stacked networks; nan where it is not finite."""
        return self._losses(self.task, layers)

    def held_out_losses(self, layers: Sequence[np.ndarray]) -> np.ndarray:
        """The same on the rows kept out of training."""
        return self._losses(self.held_out_task, layers)

    def _losses(self, task: LeastSquaresTask, layers: Sequence[np.ndarray]) -> np.ndarray:
        losses = task.losses(tuple(torch.from_numpy(a).to(self.device) for a in layers))
        return torch.where(losses.isfinite(), losses, math.nan).cpu().numpy()

    def polish(
        self,
        network: Network,
        max_iter: int,
        target: float = math.inf,
        enough: float = 0.0,
        progress: float | None = None,
        is_hasty: bool = False,
    ) -> tuple[Network, float]:
        """Levenberg on a single network, down to rounding or to a loss that is ``enough``.

        The descent is given up where a window of steps leaves more than the share ``progress`` of
        the loss, or where twice the present rate would not reach the ``target`` loss; that of a
        large network, where ``is_hasty``, unless it goes ahead fast. Large networks get products in
        single precision; where these do not go ahead fast, and are not given up for it, double ones
        for as long as they do better. Those that stall near zero get nearly exact steps, from dense
        equations if there is memory for them; those for which there are none end there.
        """
        settings, layers = self.settings.polish, stacked(network, self.device)
        progress = settings.progress if progress is None else progress
        is_single = is_cheap = self.suited(layers).is_matrix_free
        window = settings.large_window if is_cheap else settings.window
        if is_hasty and is_cheap:
            window, progress = settings.hasty_window, settings.hasty_progress
        linear = self._cheap(layers, is_single, is_hasty)
        solver = self._levenberg(layers, linear, enough, settings.start_damping)
        single_share = math.inf
        was_compared = is_hasty or not is_single or progress <= settings.single_progress
        for n_windows in range(math.ceil(max_iter / window) - 1, -1, -1):
            before = float(solver.losses[0])
            self.n_steps += _advance(solver, window)
            loss = float(solver.losses[0])
            if solver.finished.all():
                break
            crawls = is_cheap and loss > settings.single_progress * before
            if crawls and self.is_near_enough(network.n_parameters, loss):
                break
            if not was_compared and loss > settings.single_progress * before:
                was_compared = not is_single
                is_better = loss <= single_share * before
                single_share = loss / before
                if is_single or not is_better:
                    is_single = not is_single
                    linear, damping = self._cheap(layers, is_single), solver.damping
                    solver = self._levenberg(solver.layers, linear, enough, math.inf)
                    solver.damping = damping  # a start would be rejected many times
                    continue
            if is_cheap and self._has_stalled_near_zero(loss, before):
                is_cheap, exact = False, self._exact(solver.layers)
                if exact is not None:
                    solver = self._levenberg(solver.layers, exact, enough, loss)
                    continue
            if loss > progress * before:
                break
            if target < loss * (loss / before) ** (2 * n_windows):
                break
        return network_at(solver.layers, 0), loss

    def polish_together(self, layers: Sequence[np.ndarray], n_steps: int) -> list[np.ndarray]:
        """The layers of stacked networks after a few steps of Levenberg."""
        stacks = tuple(torch.from_numpy(layer).to(self.device) for layer in layers)
        solver = self._levenberg(stacks, self.suited(stacks), 0.0, self.settings.damping.start)
        solver.run(n_steps)
        return [layer.cpu().numpy() for layer in solver.layers]

    def polish_alternatives(
        self, networks: Sequence[Network], max_iter: int, progress: float
    ) -> list[tuple[Network, float]]:
        """Polish several networks, each until a window leaves more than a share of its loss.

        Small ones of the same widths take their steps together, which costs little more than one.
        """
        if self.is_matrix_free(networks[0]) or len({network.widths for network in networks}) > 1:
            return [self.polish(network, max_iter, progress=progress) for network in networks]
        settings = self.settings.polish
        stacks = (np.stack(layers) for layers in zip(*(n.layers for n in networks), strict=True))
        layers = tuple(torch.from_numpy(stack).to(self.device) for stack in stacks)
        solver = self._levenberg(layers, self.suited(layers), 0.0, settings.start_damping)
        for _ in range(math.ceil(max_iter / settings.window)):
            before = solver.losses.clone()
            self.n_steps += solver.run(settings.window)
            solver.finished |= solver.losses > progress * before
            if solver.finished.all():
                break
        losses = solver.losses.tolist()
        return [(network_at(solver.layers, i), loss) for i, loss in enumerate(losses)]

    def refine(self, network: Network) -> Network:
        """Gauss-Newton steps without damping, until two in a row do not halve the loss.

        Nor are there any where no step could halve it. They reach rounding level in directions that
        are lost in the normal equations. The first may lead up: eight softplus neurons on two
        inputs go from 8e-25 to 7e-24, and then to 4e-30. Matrix-free steps get there by themselves.
        """
        if self.is_matrix_free(network):
            return network
        refined, n_misses, task = network, 0, self.task
        loss = lowest = float(task.losses(stacked(network, self.device))[0])
        for _ in range(self.settings.polish.max_refinements):
            linearization = Linearization(task, refined)
            if linearization.unexplained_error(math.sqrt(loss)) ** 2 > 0.5 * loss:
                break
            steps = linearization.newton_step()
            layers = tuple(a + b for a, b in zip(linearization.layers, steps, strict=True))
            refined, loss = network_at(layers, 0), float(task.losses(layers)[0])
            n_misses = 0 if loss < 0.5 * lowest else n_misses + 1
            if loss < lowest:
                network, lowest = refined, loss
            if n_misses == 2 or not math.isfinite(loss):
                break
        return network

    def settled(self, network: Network, shrinkage: float | None = None) -> Network:
        """A network with less weight along directions that few rows tell about.

        Adam walks at random there: its steps have the same length however small the gradient. A
        ReLU neuron that it switches off in the only images in which a pixel is lit never comes
        back: 784-8-10 students of the right neurons stop at 2e-4, and reach 3e-30 from here.
        """
        first, *others = network.layers[:-1]
        own = network.columns(0, 0)
        covariance = self._common_covariance
        shrinkage = self.settings.polish.shrinkage if shrinkage is None else shrinkage
        damped = covariance + shrinkage * np.eye(len(covariance))
        weights = np.linalg.solve(damped, covariance @ first[:, own].T).T
        hidden = [np.column_stack([weights, first[:, -1]]), *others]
        return solve_readout(hidden, self.samples, self.activation, network.has_skip)

    @cached_property
    def least_variance(self) -> float:
        """Along any direction, rows of high leverage left out."""
        return float(np.linalg.eigvalsh(self._common_covariance)[0])

    @property
    def has_weak_inputs(self) -> bool:
        """Whether few rows tell about some directions, so that descents may crawl along them."""
        return self.least_variance < self.settings.polish.shrinkage

    def trains_along_few(self, width: int) -> bool:
        """Whether a large student of one hidden layer is trained along few directions first."""
        n_inputs, share = self.samples.X.shape[1], self.settings.stages.directions
        return not self.has_weak_inputs and share * width < n_inputs

    @cached_property
    def _common_covariance(self) -> np.ndarray:
        """Second moments of the inputs over rows of low leverage; of many rows, over a share."""
        n_rows, n_inputs = self.samples.X.shape
        step = max(1, n_rows // (self.settings.polish.covariance_rows * (n_inputs + 1)))
        X = self.samples.X[::step]
        common = X[~have_high_leverage(X, self.settings.preparation)]
        return common.T @ common / max(len(common), 1)

    @cached_property
    def _leverages(self) -> np.ndarray:
        return leverages(self.samples.X)

    def suited(self, layers: Layers) -> LinearSolver:
        """How networks of this size solve their equations: as chosen, else as suits them."""
        if self.solver == "levenberg":
            return Dense()
        if self.solver == "matrix_free":
            return MatrixFree(self.settings.conjugate_gradients)
        return self.cheapest(layers)

    def cheapest(self, layers: Layers) -> LinearSolver:
        """How networks of this size solve their equations fastest."""
        settings = self.settings
        return suited_solver(
            self.task,
            layers,
            self.solver_bytes,
            settings.training.most_dense_flops(len(layers) - 1),
            settings.conjugate_gradients,
        )

    def are_large(self, widths: tuple[int, ...]) -> bool:
        """Whether Levenberg steps of networks of these widths cost so much that they come last."""
        n_inputs, n_outputs = self.samples.X.shape[1], self.samples.y.shape[1]
        shapes = layer_shapes(n_inputs, widths, n_outputs, has_skip=False)
        layers = tuple(torch.empty(1, *shape, device="meta") for shape in shapes)
        return self.cheapest(layers).is_matrix_free

    def is_matrix_free(self, network: Network) -> bool:
        """Whether a network is polished without forming its normal equations."""
        return self.suited(stacked(network, self.device)).is_matrix_free

    def _levenberg(
        self, layers: Layers, linear: LinearSolver, tol: float, damping: float
    ) -> Levenberg:
        return Levenberg(
            self.task,
            layers,
            linear,
            rule=self.settings.damping,
            tol=tol,
            damping=damping,
            rounding_loss=self.samples.rounding_loss,
            least_promise=self.settings.polish.least_promise if linear.is_matrix_free else 0.0,
        )

    @property
    def _solves(self) -> ConjugateGradients:
        """How solves of matrix-free polishes go."""
        settings = self.settings
        if self.has_weak_inputs:
            return settings.conjugate_gradients
        is_even = self.least_variance > settings.polish.even_variance
        return settings.even_solves if is_even else settings.well_posed_solves

    def _cheap(self, layers: Layers, in_single: bool, is_hasty: bool = False) -> LinearSolver:
        """The steps that suit; matrix-free ones with products in single precision, if told so.

        ``is_hasty`` says whether products are to be few, too.
        """
        linear = self.suited(layers)
        if not linear.is_matrix_free:
            return linear
        solves = self._solves
        if is_hasty:
            most = self.settings.well_posed_solves.hasty_iterations
            solves = replace(solves, max_iterations=most)
        return MatrixFree(solves, in_single)

    def _exact(self, layers: Layers) -> LinearSolver | None:
        """Nearly exact solves, dense ones where there is memory and time; None for huge ones."""
        settings, dense = self.settings.polish, Dense()
        fits = dense.step_bytes(self.task, layers) <= self.solver_bytes
        is_quick = dense.flops(self.task, layers) <= settings.final_dense_flops
        if self.solver == "auto" and fits and is_quick:
            return dense
        if sum(layer[0].numel() for layer in layers) > settings.most_nearly_exact:
            return None
        return MatrixFree(
            replace(
                self._solves,
                relative_residual=settings.final_residual,
                max_iterations=settings.max_final_iterations,
            )
        )

    def _has_stalled_near_zero(self, loss: float, before: float) -> bool:
        """Whether cheap steps crawl where exact ones may not, from the loss a window before."""
        settings = self.settings.polish
        is_near_zero = settings.finished_loss < loss < settings.final_loss
        return is_near_zero and loss > settings.final_progress * before

    def is_near_enough(self, n_parameters: int, loss: float) -> bool:
        """Whether a huge network is so near zero that it may crawl from there.

        It does along directions that few rows tell about, and there are no better steps for it.
        """
        settings = self.settings.polish
        is_huge = n_parameters > settings.most_nearly_exact
        return is_huge and loss <= settings.final_loss and self.has_weak_inputs

    @property
    def solver_bytes(self) -> float:
        """Memory that decides how equations are solved: never what happens to be free."""
        if self.working_memory is not None:
            return self.working_memory * 2**20
        return get_config()["working_memory"] * 2**20

    @property
    def working_bytes(self) -> float:
        """Memory that a step of Levenberg may take."""
        if self.working_memory is None and torch.device(self.device).type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            cached = torch.cuda.memory_reserved(self.device)
            cached -= torch.cuda.memory_allocated(self.device)
            return self.settings.training.free_memory_share * (free + cached)
        return self.solver_bytes


def _advance(solver: Levenberg, n_steps: int) -> int:
    """Take up to so many steps with a single network, and return how many were taken."""
    try:
        return solver.run(n_steps)
    except KeyboardInterrupt as stop:
        raise Unfinished(network_at(solver.layers, 0)) from stop
