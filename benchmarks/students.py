"""Training speed: seconds per student beside other programs, and the Gauss-Newton assembly's rate.

    python benchmarks/students.py --threads 1
    python benchmarks/students.py --threads 1 --students 10 --peers scipy torch-lm

1. Seconds per student, and per student that reaches a relative mean squared error of 1e-20 (d=4,
   width 4, rho=4, activation g, then tanh). All start from the same students after this package's
   warm-up, but ``MLPRegressor``, which has no g and makes its own initial weights. Other programs
   get the warm-up for free, and may take as many steps as ours, ``MLPRegressor`` 20,000.
   "sklearn_ec" is what the package does: the warm-up, and steps on all students until 60 % of them
   converged. "Levenberg alone" leaves the warm-up out and takes every student to its end, as the
   peers do. With one thread, seconds per student are those of the processor, which other programs
   disturb less. Peers that are not installed are skipped: ``pip install -e ".[benchmarks]"``.
2. The float64 rate of assembling JᵀJ for 20 students at d=16, width 8, rho=4, n=4,000, against a
   matrix product of the same machine: with the 2·n·P² operations of the plain product JᵀJ, and with
   those executed (symmetry saves some).
"""

import argparse
import time

import numpy as np
import torch
from _peers import MAX_ITER, PEERS, TOL, Start, Training, restrict_jax, timed
from threadpoolctl import threadpool_limits

from sklearn_ec._core.coordinates import split_rows, standardize
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.students import initial_weights
from sklearn_ec._expand.training import StudentTrainer
from sklearn_ec._solvers.levenberg import Levenberg
from sklearn_ec._solvers.task import LeastSquaresTask
from sklearn_ec.datasets import load_reference_suite

N_STUDENTS = 20
WIDTHS = (16,)


def best_of(function, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def make_trainer(activation="g"):
    problem = load_reference_suite(activation, n_seeds=1, n_inputs=(4,), widths=(4,))[0]
    y = problem.y[:, None]
    samples, _ = standardize(problem.X, y, np.ones(len(y)))
    train, held_out = split_rows(samples, np.random.default_rng(0))
    return StudentTrainer(Polisher(train, held_out, activation, "cpu", has_skip=False))


def train_as_package(trainer, n_students):
    seeds = np.arange(n_students)
    students, seconds = timed(
        lambda: trainer.train(seeds, WIDTHS, max_iter=MAX_ITER, tol=TOL),
    )
    return Training(*seconds, students.losses, students.n_iter, "with warm-up")


def train_to_the_end(start):
    """Every student, without a warm-up."""
    layers = torch.from_numpy(start.hidden), torch.from_numpy(start.readout)
    solver, n_steps = Levenberg(start.task, layers, tol=TOL), []

    def train():
        while not solver.finished.all() and len(n_steps) < MAX_ITER:
            n_steps.append(int((~solver.finished).sum()))
            solver.step()

    _, seconds = timed(train)
    return Training(*seconds, solver.losses.numpy(), sum(n_steps) / len(start.hidden))


def print_row(name, training, n_threads):
    seconds = training.cpu_seconds if n_threads == 1 else training.seconds
    n_students, n_converged = len(training.losses), int(np.sum(training.losses <= TOL))
    per_converged = seconds / n_converged if n_converged else np.inf
    print(
        f"  {name:31s}  {n_converged:2d} of {n_students:2d}  {training.seconds:7.2f}"
        f"  {training.cpu_seconds:7.2f}  {seconds / n_students:11.3f}  {per_converged:13.3f}"
        f"  {training.n_steps:7.1f}  {np.median(training.losses):7.1e}  {training.note}",
        flush=True,
    )


def compare(activation, n_students, names):
    trainer, n_threads = make_trainer(activation), torch.get_num_threads()
    train_as_package(trainer, n_students)
    warm_up = lambda: trainer.warm_up.train(np.arange(n_students), WIDTHS)[0]
    module, (_, warm_up_seconds) = timed(warm_up)
    hidden, readout = (layer.numpy() for layer in module.weights)
    start = Start(trainer.polisher.task, activation, hidden, readout)
    n_rows, n_parameters = len(start.task.inputs), hidden[0].size + readout[0].size
    print(
        f"students to a relative MSE of {TOL:g} (d=4, width 4, rho=4, {activation}, {n_rows} rows, "
        f"{n_parameters} parameters, {n_threads} threads; warm-up {warm_up_seconds:.2f} CPU s)"
    )
    print(
        f"  {'':31s}  {'converged':8s}  seconds    CPU s  per student  per converged"
        "    steps  median loss"
    )
    print_row("sklearn_ec", train_as_package(trainer, n_students), n_threads)
    print_row("sklearn_ec, Levenberg alone", train_to_the_end(start), n_threads)
    for name in names:
        compare_peer(PEERS[name], start, n_threads)


def compare_peer(peer, start, n_threads):
    if start.activation_name not in peer.activations:
        return
    if peer.is_installed:
        print_row(peer.name, peer.train(start), n_threads)
    else:
        print(f'  {peer.name}: not installed, pip install -e ".[benchmarks]" installs it')


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--students", type=int, default=N_STUDENTS)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--activations", nargs="+", choices=("g", "tanh"), default=("g", "tanh"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    restrict_jax(options.threads)
    with threadpool_limits(options.threads, "blas"):
        for activation in options.activations:
            compare(activation, options.students, options.peers)
    rate_of_assembly()


if __name__ == "__main__":
    main()
