"""Training speed: seconds per student against SciPy, and the rate of the Gauss-Newton assembly.

    python benchmarks/students.py

1. Seconds per student that reaches a relative mean squared error of 1e-20 (d=4, width 4, rho=4, g):
   this package's warm-up and batched Levenberg for 20 students, against
   ``scipy.optimize.least_squares`` (trf, analytic Jacobian), student by student, which gets the
   warmed-up students for free and as many residual evaluations as ours may take steps.
2. The float64 rate of assembling JᵀJ for 20 students at d=16, width 8, rho=4, n=4,000, against a
   matrix product of the same machine: with the 2·n·P² operations of the plain product JᵀJ, and with
   those executed (symmetry saves some).
"""

import time

import numpy as np
import torch
from scipy.optimize import least_squares

from sklearn_ec._core.coordinates import split_rows, standardize
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.students import initial_weights
from sklearn_ec._expand.training import StudentTrainer
from sklearn_ec._solvers.task import LeastSquaresTask
from sklearn_ec.datasets import load_reference_suite

TOL = 1e-20
MAX_ITER = 300
N_STUDENTS = 20
N_SCIPY_STUDENTS = 5


def best_of(function, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def make_trainer():
    problem = load_reference_suite("g", n_seeds=1, n_inputs=(4,), widths=(4,))[0]
    y = problem.y[:, None]
    samples, _ = standardize(problem.X, y, np.ones(len(y)))
    train, held_out = split_rows(samples, np.random.default_rng(0))
    return StudentTrainer(Polisher(train, held_out, "g", "cpu", has_skip=False))


def time_package(trainer):
    start = time.perf_counter()
    students = trainer.train(np.arange(N_STUDENTS), (16,), max_iter=MAX_ITER, tol=TOL)
    return time.perf_counter() - start, int(np.sum(students.losses <= TOL))


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

        result = least_squares(
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
        return np.mean(result.fun**2)


def time_scipy(trainer):
    module, _ = trainer.warm_up.train(np.arange(N_STUDENTS), (16,))
    layers = [layer.numpy() for layer in module.weights]
    start, n_converged = time.perf_counter(), 0
    for student in range(N_SCIPY_STUDENTS):
        first = [layer[student] for layer in layers]
        n_converged += ScipyStudent(trainer.polisher.task, first).fit() <= TOL
    return time.perf_counter() - start, n_converged


def compare_with_scipy():
    trainer = make_trainer()
    time_package(trainer)
    ours, n_ours = time_package(trainer)
    theirs, n_theirs = time_scipy(trainer)
    threads = torch.get_num_threads()
    print(f"students to a relative MSE of {TOL:g} (d=4, width 4, rho=4, g, {threads} threads)")
    for name, seconds, n_converged, n_students in (
        ("sklearn_ec", ours, n_ours, N_STUDENTS),
        ("SciPy trf", theirs, n_theirs, N_SCIPY_STUDENTS),
    ):
        print(
            f"  {name:10s}  {n_converged:2d} of {n_students:2d} in {seconds:6.2f} s: "
            f"{seconds / n_students:7.3f} s per student, "
            f"{seconds / n_converged if n_converged else np.inf:7.3f} s per converged student"
        )
    print(f"  ratio per student           {theirs / N_SCIPY_STUDENTS / (ours / N_STUDENTS):6.1f}")
    if n_ours and n_theirs:
        print(f"  ratio per converged student {(theirs / n_theirs) / (ours / n_ours):6.1f}")


def executed_share(task, n_columns):
    """Share of the plain product's operations that the upper block triangle takes."""
    size = task.gram_columns(n_columns)
    starts = np.arange(0, n_columns, size)
    widths = np.minimum(size, n_columns - starts)
    return float(np.sum(widths * (n_columns - starts)) / n_columns**2)


def rate_of_assembly():
    rng = np.random.default_rng(0)
    n, d, width = 4000, 16, 32
    task = LeastSquaresTask(
        torch.from_numpy(np.hstack([rng.normal(size=(n, d)), np.ones((n, 1))])),
        torch.from_numpy(rng.normal(size=(n, 1))),
        torch.ones(n, 1, dtype=torch.float64),
        make_trainer().polisher.activation,
    )
    weights = initial_weights(np.arange(N_STUDENTS), d, (width,), 1, has_skip=False)
    layers = tuple(torch.from_numpy(layer) for layer in weights)
    n_parameters = sum(layer[0].numel() for layer in layers)
    seconds = best_of(lambda: task.normal_equations(layers))
    rate = 2 * n * n_parameters**2 * N_STUDENTS / seconds
    executed = executed_share(task, n_parameters)
    size = 2000
    matrix = torch.from_numpy(rng.normal(size=(size, size)))
    peak = 2 * size**3 / best_of(lambda: matrix @ matrix)
    print(f"assembly of {N_STUDENTS} JᵀJ (d={d}, {width} neurons, n={n}, P={n_parameters})")
    print(f"  assembly        {rate / 1e9:6.1f} GFLOP/s")
    print(f"  matrix product  {peak / 1e9:6.1f} GFLOP/s ({size} x {size})")
    share, executed_rate = 100 * rate / peak, 100 * executed * rate / peak
    print(f"  share {share:.0f} %, counting executed operations {executed_rate:.0f} %")


if __name__ == "__main__":
    compare_with_scipy()
    rate_of_assembly()
