"""What threads gain and cost: seconds of fits alone, and of two that share the machine.

    python benchmarks/threads.py [--sizes small medium large]

Each fit runs in a process of its own, which tells the seconds of ``fit`` alone. Two at once start
together; both run with the defaults, and the slower one counts. Two independent fits at once on two
cores should take no more than twice as long as one alone.
"""

import argparse
import os
import subprocess
import sys
import time

import numpy as np

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher

# Rows, inputs and neurons (tanh, reference teachers).
PROBLEMS = {"small": (600, 4, 4), "medium": (2000, 12, 8), "large": (5000, 30, 8)}
SETTINGS = {"default": None, "1 thread": "1", "2 threads": "2"}


def fit(size):
    n_rows, n_inputs, width = PROBLEMS[size]
    teacher = make_teacher(n_inputs, width, activation="tanh", random_state=0)
    X = np.random.default_rng(0).uniform(-1.7, 1.7, size=(n_rows, n_inputs))
    y = teacher.predict(X)
    model = ExpandClusterRegressor(hidden_layer_sizes=width, activation="tanh", random_state=0)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    model.fit(X, y)
    print(time.perf_counter() - start, int(model.recovered_), flush=True)


class Fit:
    """A fit in a process of its own, which waits for the signal to begin."""

    def __init__(self, size, n_threads):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        if n_threads is not None:
            environment["OMP_NUM_THREADS"] = n_threads
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--fit", size],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process.stdout.readline()

    def begin(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def seconds(self):
        seconds, recovered = self.process.communicate()[0].split()
        assert recovered == "1"
        return float(seconds)


def seconds_of(size, n_threads=None, n_fits=1):
    """Seconds of the slowest of some fits at once."""
    fits = [Fit(size, n_threads) for _ in range(n_fits)]
    for each in fits:
        each.begin()
    return max(each.seconds() for each in fits)


def main(sizes):
    columns = [*SETTINGS, "two at once", "ratio", "alone / best"]
    print(f"{'rows x inputs, neurons':24s}" + "".join(f"{column:>14s}" for column in columns))
    for size in sizes:
        alone = [seconds_of(size, n_threads) for n_threads in SETTINGS.values()]
        both = seconds_of(size, n_fits=2)
        name = "{} x {}, {}".format(*PROBLEMS[size])
        values = [*alone, both, both / alone[0], alone[0] / min(alone)]
        print(f"{name:24s}" + "".join(f"{value:14.2f}" for value in values), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--fit", choices=PROBLEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit:
        fit(arguments.fit)
    else:
        main(arguments.sizes)
