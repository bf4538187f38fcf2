"""How the time and the memory of training grow with the network, the rows and the students.

    python benchmarks/growth.py
    python benchmarks/growth.py --output docs/images

One quantity at a time grows from a network of 64 inputs and 16 tanh neurons, 8,000 rows and four
students: seconds of a warm-up step and of a Levenberg step of all students, and the peak memory of
the latter next to what a formula says, in processes of their own. Exponents are those of
straight lines through the last four points in logarithmic axes. Results are kept in
benchmarks/results/growth.jsonl: an interrupted run continues where it stopped.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from _resumable import RESULTS

from sklearn_ec._core.settings import ConjugateGradients

BASE = {"inputs": 64, "width": 16, "rows": 8000, "students": 4, "depth": 1}
GRIDS = {
    "width": [8, 16, 32, 64, 128],
    "inputs": [16, 32, 64, 128, 256, 512, 784],
    "rows": [1000, 2000, 4000, 8000, 16_000, 32_000, 64_000],
    "students": [1, 2, 4, 8, 16],
    "depth": [1, 2, 3, 4],
}
N_STEPS, N_WARM_UP_STEPS = 3, 100
# What is measured in a process of its own, and its environment: arrays that are freed stay in the
# process else, or do not, by chance.
MEASURES = {
    "seconds": {},
    "memory": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
}
# Arrays of a step, with the normal equations and without: as large as these, or as the blocks of
# the preconditioner; as the activations on all rows; as a temporary one of a block of rows. Of the
# coarse space of a preconditioner, as large as its normal equations.
COARSE_ARRAYS = 3.0
ARRAYS = {False: (2.65, 1.5, 1.1), True: (2.85, 1.25, 5.3)}
MAX_ELEMENTS = 3_000_000  # of a temporary array
LAST = 4  # points of a fitted line
QUANTITIES = {"step": "Levenberg step, s", "warm_up_step": "Adam step, s", "peak": "memory, MiB"}


def solver_of(point):
    """A Levenberg solver of all students, and a warm-up trainer with the students."""
    import torch

    from sklearn_ec._core.records import Samples
    from sklearn_ec._expand.polishing import Polisher
    from sklearn_ec._expand.warm_up import WarmUpTrainer
    from sklearn_ec._solvers.levenberg import Levenberg

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(point["rows"], point["inputs"]))
    y = np.tanh(X @ rng.normal(size=(point["inputs"], 4)) / 8.0).sum(axis=1, keepdims=True)
    samples = Samples.of(X, y / y.std(), np.ones(len(X)))
    few = samples.take(np.arange(100))
    trainer = WarmUpTrainer(Polisher(few, few, "tanh", "cpu", has_skip=False))
    polisher = Polisher(samples, few, "tanh", "cpu", has_skip=False)
    module = trainer.initial_students(
        np.arange(point["students"]), (point["width"],) * point["depth"]
    )
    linear = polisher.suited(module.weights)
    tiny = trainer.initial_students(np.arange(1), (2,) * point["depth"])
    Levenberg(trainer.polisher.task, tiny.weights, linear).run(1)  # libraries' first calls
    return Levenberg(polisher.task, module.weights, linear), WarmUpTrainer(polisher), module


def measure_seconds(point):
    """Seconds of one step, in this process."""
    solver, trainer, module = solver_of(point)
    start = time.perf_counter()
    solver.run(N_STEPS)
    step = (time.perf_counter() - start) / N_STEPS
    start = time.perf_counter()
    trainer._train_briefly(module, N_WARM_UP_STEPS, 0)
    warm_up_step = (time.perf_counter() - start) / N_WARM_UP_STEPS
    return {"step": step, "warm_up_step": warm_up_step}


def measure_memory(point):
    """Peak of a step in MiB, in this process, whose freed arrays go back at once."""
    solver, _, module = solver_of(point)
    before = reset_peak()
    solver.run(1)
    return {
        "parameters": sum(layer[0].numel() for layer in module.weights),
        "matrix_free": solver.linear.is_matrix_free,
        "peak": (memory("VmHWM") - before) / 2**10,
    }


def predicted(result):
    """MiB of the step of a point: matrices or blocks, activations on all rows, a block of rows."""
    inputs, width, rows = (result[key] for key in ("inputs", "width", "rows"))
    students, depth, n_parameters = (result[key] for key in ("students", "depth", "parameters"))
    shapes = [(width, inputs + 1), *[(width, width + 1)] * (depth - 1)]
    n_blocks = sum(n_out * n_in * (n_out + n_in) for n_out, n_in in shapes) + (width + 1) ** 2
    n_activations = rows * (depth * width + 1)
    if result["matrix_free"]:
        n_kept = n_blocks
        n_of_block = students * n_activations * min(1.0, MAX_ELEMENTS / (rows * (inputs + 1)))
        n_coarse = depth * width * (width + 1)
        if width < inputs and n_coarse <= ConjugateGradients.max_coarse:
            n_kept += COARSE_ARRAYS / ARRAYS[True][0] * (n_coarse + width + 1) ** 2
    else:
        n_kept = n_parameters**2
        n_of_block = min(students * rows * n_parameters, MAX_ELEMENTS)
    of_kept, of_activations, of_block = ARRAYS[result["matrix_free"]]
    n_elements = students * (of_kept * n_kept + of_activations * n_activations)
    return 8 * (n_elements + of_block * n_of_block) / 2**20


def reset_peak():
    """Give freed memory back, and forget the peak so far (Linux); KiB in use."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name):
    """A line of the process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measured(point, path):
    """The result of a point: kept, or measured in fresh processes."""
    lines = path.read_text().splitlines() if path.exists() else []
    for result in map(json.loads, lines):
        if point.items() <= result.items():
            return result
    result = dict(point)
    for quantity, variables in MEASURES.items():
        command = [sys.executable, __file__, "--point", json.dumps(point), "--measure", quantity]
        environment = os.environ | variables
        done = subprocess.run(command, check=True, capture_output=True, env=environment)
        result |= json.loads(done.stdout)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")
    return result


def exponent(values, times):
    """Slope of the line through the last points, in logarithmic axes."""
    return np.polyfit(np.log(values[-LAST:]), np.log(times[-LAST:]), 1)[0]


def print_table(quantity, results):
    print(f"\n{quantity:>8}  parameters  solver       step s   Adam step s  peak MiB  predicted")
    for result in results:
        solver = "matrix-free" if result["matrix_free"] else "dense"
        print(
            f"{result[quantity]:8d}  {result['parameters']:10d}  {solver:11s}  "
            f"{result['step']:7.3f}  {result['warm_up_step']:12.5f}  {result['peak']:8.0f}  "
            f"{predicted(result):9.0f}"
        )
    values = [result[quantity] for result in results]
    slopes = [exponent(values, [max(r[key], 1e-9) for r in results]) for key in QUANTITIES]
    print(
        "exponents: " + ", ".join(f"{k} {s:.1f}" for k, s in zip(QUANTITIES, slopes, strict=True))
    )


def draw(grids, path):
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"font.size": 8, "svg.hashsalt": "growth"})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(QUANTITIES), len(grids), figsize=(6.8, 5.0), layout="constrained", sharey="row"
    )
    for column, (quantity, results) in zip(axes.T, grids.items(), strict=True):
        values = [result[quantity] for result in results]
        for ax, key in zip(column, QUANTITIES, strict=True):
            measured_values = [result[key] for result in results]
            ax.loglog(values, measured_values, "o-", color="#0072b2", markersize=3)
            if key == "peak":
                ax.loglog(values, list(map(predicted, results)), "k:", linewidth=0.8)
            ax.set_title(f"^{exponent(values, measured_values):.1f}", fontsize=8)
            ax.set_xticks(values[:: max(1, len(values) // 2)])
            ax.minorticks_off()
            ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        column[-1].set_xlabel(quantity)
    for ax, title in zip(axes[:, 0], QUANTITIES.values(), strict=True):
        ax.set_ylabel(title)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    print(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the picture")
    arguments = parser.parse_args()
    if arguments.point:
        measure = {"seconds": measure_seconds, "memory": measure_memory}[arguments.measure]
        print(json.dumps(measure(arguments.point)))
        return
    path = RESULTS / "growth.jsonl"
    grids = {
        quantity: [measured(BASE | {quantity: value}, path) for value in values]
        for quantity, values in GRIDS.items()
    }
    for quantity, results in grids.items():
        print_table(quantity, results)
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(grids, arguments.output / "growth.svg")


if __name__ == "__main__":
    main()
