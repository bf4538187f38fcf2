"""Other programs that train students of one hidden layer, from the same weights and rows.

Each peer is a function of the start that returns a :class:`Training`. Those that the package does
not need come with ``pip install -e ".[benchmarks]"``. Weights of rows, all one here, are left out.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from scipy.optimize import least_squares
from sklearn.neural_network import MLPRegressor

from sklearn_ec._core.activations import Activation
from sklearn_ec._solvers.task import LeastSquaresTask

TOL = 1e-20
MAX_ITER = 300
MAX_LBFGS_ITER = 20_000


@dataclass(frozen=True)
class Start:
    """Students of the same shape, ``[w; b]`` of their neurons and ``[a; c]``, and the rows."""

    task: LeastSquaresTask
    activation_name: str
    hidden: np.ndarray  # (n_students, width, n_inputs + 1)
    readout: np.ndarray  # (n_students, n_outputs, width + 1)

    @property
    def students(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(zip(self.hidden, self.readout, strict=True))

    @property
    def activation(self) -> Activation:
        return self.task.activation

    def losses(self, hidden, readout) -> np.ndarray:
        layers = torch.from_numpy(np.array(hidden)), torch.from_numpy(np.array(readout))
        return self.task.losses(layers).numpy()


@dataclass(frozen=True)
class Training:
    """What it took, and the relative mean squared error of every student."""

    seconds: float
    cpu_seconds: float
    losses: np.ndarray
    n_steps: float  # of a student, on average
    note: str = ""


def timed(function: Callable):
    """The result, and its seconds on the clock and on the processors."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, (time.perf_counter() - clock, time.process_time() - cpu)


def train_one_by_one(start: Start, fit: Callable) -> Training:
    """``fit`` takes the layers of a student to its new layers and the number of steps."""
    fits, seconds = timed(lambda: [fit(*student) for student in start.students])
    hidden, readout, n_steps = zip(*fits, strict=True)
    return Training(*seconds, start.losses(hidden, readout), float(np.mean(n_steps)))


class ScipyStudent:
    """One student as SciPy sees it: a flat vector, residuals and their Jacobian."""

    def __init__(self, task: LeastSquaresTask, layers):
        self.task, self.shapes = task, [layer.shape for layer in layers]
        self.start = np.concatenate([layer.ravel() for layer in layers])

    def unpack(self, flat):
        """The layers as a batch of one."""
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])[:-1]
        parts = zip(np.split(flat, ends), self.shapes, strict=True)
        return tuple(torch.from_numpy(part.reshape(1, *shape)) for part, shape in parts)

    def residuals(self, flat):
        """Output by output, as the rows of the Jacobian."""
        return self.task.residuals(self.unpack(flat)).mT.flatten().numpy()

    def jacobian(self, flat):
        return self.task.jacobian(self.unpack(flat), slice(None)).numpy()

    def fit(self):
        def stop(intermediate_result):
            if np.mean(intermediate_result.fun**2) <= TOL:
                raise StopIteration

        return least_squares(
            self.residuals,
            self.start,
            self.jacobian,
            method="trf",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            max_nfev=MAX_ITER,
            callback=stop,
        )


def scipy_trf(start: Start) -> Training:
    """With the analytic Jacobian of this package."""

    def fit(*layers):
        student = ScipyStudent(start.task, layers)
        result = student.fit()
        hidden, readout = student.unpack(result.x)
        return hidden[0].numpy(), readout[0].numpy(), result.nfev

    return train_one_by_one(start, fit)


def restrict_jax(n_threads: int) -> None:
    """To be called before jax is first used; it knows one thread, or one per core."""
    if n_threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"


def jax_activation(name: str) -> Callable:
    import jax

    functions = {
        "g": lambda z: jax.nn.sigmoid(4.0 * z) + jax.nn.softplus(z),
        "tanh": jax.numpy.tanh,
    }
    return functions[name]


def optimistix_solver(linear_solver):
    """Its Levenberg-Marquardt that stops at the target as well."""
    import optimistix
    from jax import numpy as jnp

    class ToTarget(optimistix.LevenbergMarquardt):
        def terminate(self, fn, y, args, options, state, tags):
            stop, result = super().terminate(fn, y, args, options, state, tags)
            reached = jnp.mean(state.f_info.residual**2) <= TOL
            return stop | (reached & ~state.first_step), result

    return ToTarget(rtol=1e-15, atol=1e-15, linear_solver=linear_solver)


def train_with_optimistix(start: Start, linear_solver, *, together: bool) -> Training:
    import jax
    import optimistix

    jax.config.update("jax_enable_x64", True)
    activate, solver = jax_activation(start.activation_name), optimistix_solver(linear_solver)
    rows = start.task.inputs.numpy(), start.task.targets.numpy()

    def residuals(layers, rows):
        (hidden, readout), (inputs, targets) = layers, rows
        neurons = activate(inputs @ hidden.T)
        return (neurons @ readout[:, :-1].T + readout[:, -1] - targets).ravel()

    def fit(layers):
        solution = optimistix.least_squares(
            residuals, solver, layers, rows, max_steps=MAX_ITER, throw=False
        )
        return *solution.value, solution.stats["num_steps"]

    layers = tuple(map(jax.numpy.asarray, (start.hidden, start.readout)))
    train = jax.vmap(fit) if together else lambda layers: jax.lax.map(fit, layers)
    compiled, (compile_seconds, _) = timed(lambda: jax.jit(train).lower(layers).compile())
    trained, seconds = timed(lambda: jax.block_until_ready(compiled(layers)))
    hidden, readout, n_steps = map(np.asarray, trained)
    note = f"compiled in {compile_seconds:.1f} s"
    return Training(*seconds, start.losses(hidden, readout), float(n_steps.mean()), note)


def optimistix_qr(start: Start) -> Training:
    import lineax

    return train_with_optimistix(start, lineax.QR(), together=True)


def optimistix_cholesky(start: Start, *, together: bool = True) -> Training:
    import lineax

    return train_with_optimistix(start, lineax.Normal(lineax.Cholesky()), together=together)


class TorchStudent(torch.nn.Module):
    def __init__(self, hidden, readout, activate):
        super().__init__()
        self.hidden = torch.nn.Parameter(torch.tensor(hidden))
        self.readout = torch.nn.Parameter(torch.tensor(readout))
        self.activate = activate

    def forward(self, inputs):
        neurons = self.activate(inputs @ self.hidden.mT)
        return neurons @ self.readout[:, :-1].mT + self.readout[:, -1]


def torch_levenberg_marquardt(start: Start) -> Training:
    """With Cholesky, its fastest solver here, and the least damping of this package."""
    from torch_levenberg_marquardt.damping import StandardDampingStrategy
    from torch_levenberg_marquardt.training import LevenbergMarquardtModule

    logging.getLogger(LevenbergMarquardtModule.__module__).setLevel(logging.ERROR)
    task = start.task

    def fit(hidden, readout):
        student = TorchStudent(hidden, readout, start.activation.tensor_function)
        trainer = LevenbergMarquardtModule(
            student,
            damping_strategy=StandardDampingStrategy(min_value=1e-16),
            solve_method="cholesky",
        )
        loss, stopped, n_steps = np.inf, False, 0
        while loss > TOL and not stopped and n_steps < MAX_ITER:
            _, loss, stopped, _ = trainer.training_step(task.inputs, task.targets)
            n_steps += 1
        return student.hidden.detach().numpy(), student.readout.detach().numpy(), n_steps

    return train_one_by_one(start, fit)


def sklearn_lbfgs(start: Start) -> Training:
    """From initial weights of its own, one seed for each student."""
    inputs, targets = start.task.inputs[:, :-1].numpy(), start.task.targets.numpy()
    seeds = iter(range(len(start.hidden)))

    def fit(hidden, readout):
        mlp = MLPRegressor(
            hidden_layer_sizes=len(hidden),
            activation=start.activation_name,
            solver="lbfgs",
            alpha=0.0,
            tol=0.0,
            max_iter=MAX_LBFGS_ITER,
            max_fun=MAX_LBFGS_ITER,
            random_state=next(seeds),
        ).fit(inputs, targets.squeeze(1))
        layers = [
            np.vstack([coefs, intercepts]).T
            for coefs, intercepts in zip(mlp.coefs_, mlp.intercepts_, strict=True)
        ]
        return *layers, mlp.n_iter_

    return train_one_by_one(start, fit)


@dataclass(frozen=True)
class Peer:
    name: str
    train: Callable[..., Training]
    package: str
    activations: tuple[str, ...] = ("g", "tanh")

    @property
    def is_installed(self) -> bool:
        return find_spec(self.package) is not None


PEERS = {
    "scipy": Peer("SciPy trf", scipy_trf, "scipy"),
    "optimistix-qr": Peer("optimistix QR", optimistix_qr, "optimistix"),
    "optimistix-cholesky": Peer("optimistix Cholesky", optimistix_cholesky, "optimistix"),
    "optimistix-single": Peer(
        "optimistix Cholesky, one by one",
        partial(optimistix_cholesky, together=False),
        "optimistix",
    ),
    "torch-lm": Peer(
        "torch-levenberg-marquardt", torch_levenberg_marquardt, "torch_levenberg_marquardt"
    ),
    "sklearn-lbfgs": Peer("MLPRegressor lbfgs", sklearn_lbfgs, "sklearn", ("tanh",)),
}
