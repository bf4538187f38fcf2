"""Polish single networks: Levenberg down to rounding, with the solver that suits their size."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn import get_config

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import leverages
from sklearn_ec._core.forward import solve_readout
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Settings
from sklearn_ec._core.watch import Watch
from sklearn_ec._solvers.derivatives import Layers
from sklearn_ec._solvers.jacobian import Linearization, stacked
from sklearn_ec._solvers.levenberg import BatchedLevenberg
from sklearn_ec._solvers.matrix_free import (
    FinalMatrixFreeLevenberg,
    MatrixFreeLevenberg,
    suited_solver,
)
from sklearn_ec._solvers.task import resolve_device, task_of

from .students import network_at

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
SOLVERS = {"levenberg": BatchedLevenberg, "matrix_free": MatrixFreeLevenberg}
# Share of a device's free memory that training may take.
FREE_MEMORY_SHARE = 0.8


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
        self.task = task_of(train, self.activation, self.device, self.watch)
        self.held_out_task = task_of(held_out, self.activation, self.device, self.watch)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def with_samples(self, samples: Samples) -> Polisher:
        """The same on other rows or targets."""
        return Polisher(samples, *self._arguments[1:])

    def identity(self) -> dict[str, Any]:
        """What results depend on; device and memory matter up to rounding only."""
        train, held_out, activation, _, has_skip, _, solver, _, settings = self._arguments
        return {
            "train": train,
            "held_out": held_out,
            "activation": activation,
            "has_skip": has_skip,
            "solver": solver,
            "settings": settings,
        }

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
        common = X[leverages(X) <= self.settings.preparation.high_leverage]
        return common.T @ common / max(len(common), 1)

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


def _has_stalled_near_zero(solver: BatchedLevenberg, before: float) -> bool:
    """Whether cheap steps crawl where exact ones may not, from the loss a window before."""
    loss = float(solver.losses[0])
    is_near_zero = FINISHED_LOSS < loss < FINAL_LOSS
    return type(solver) is MatrixFreeLevenberg and is_near_zero and loss > STALLED * before
