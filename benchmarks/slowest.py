"""Where the slowest fits of a suite spend their time.

    python benchmarks/slowest.py --suite sizes
    python benchmarks/slowest.py --suite reference --activation g tanh relu softplus

Reads what ``unknown.py`` and ``recovery.py`` (ten teachers per cell, or ``--seeds``) left in
benchmarks/results, runs the ten slowest once more, one at a time, and looks a hundred times a
second which step they are in: the students' training, their clusters, what is between a student and
a candidate (polishing, pruning, signs), or the certificate.
"""

import argparse
import json
import sys
import threading
import time
from collections import Counter

import numpy as np
import recovery
import torch
import unknown
from _resumable import RESULTS

# Steps by the functions that they begin with; where several are under way, the inner one counts.
STEPS = {
    "certify": "certificate",
    "cluster_layers": "clusters",
    "finish": "finishing",
    "denoise": "finishing",
    "on_collapsed": "finishing",
    "approximate": "finishing",
    "train_group": "training",
}
COLUMNS = ("training", "clusters", "finishing", "certificate", "other")
INTERVAL = 0.01  # seconds
OPTIONS = {"rho": 4, "n_students": 20, "solver": "auto", "max_iter": 300, "exhaustive": False}


class Sampler(threading.Thread):
    """Counts how often the main thread is seen in each step."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seen, self.is_over = Counter(), threading.Event()

    def run(self):
        main = threading.main_thread().ident
        while not self.is_over.wait(INTERVAL):
            frame = sys._current_frames()[main]
            while frame is not None and frame.f_code.co_name not in STEPS:
                frame = frame.f_back
            self.seen[STEPS[frame.f_code.co_name] if frame else "other"] += 1


def tasks_of(suite, activations, n_seeds):
    """Each problem's name, and a function that recovers it."""
    if suite == "sizes":
        options = {"suite": "sizes", "threads": 1}
        return {
            problem.name: lambda p=problem, a=activation: unknown.recover(p, a, options)
            for problem, activation in unknown.make_problems("sizes")
        }
    options = OPTIONS | {"auto": False, "threads": 1}
    return {
        problem.name: lambda p=problem, a=activation: recovery.recover(p, a, options)
        for activation in activations
        for problem in recovery.make_problems("reference", activation, n_seeds, 4, [])
    }


def seconds_of(suite, activations):
    """Seconds of each problem in the results of the suite."""
    files = ["unknown-sizes"]
    if suite == "reference":
        files = [f"reference-{a}-rho4-given-n20-auto-300" for a in activations]
    lines = [line for f in files for line in (RESULTS / f"{f}.jsonl").read_text().splitlines()]
    return {result["name"]: result["seconds"] for result in map(json.loads, lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=["sizes", "reference"], default="sizes")
    parser.add_argument("--activation", nargs="+", default=["g", "tanh", "relu", "softplus"])
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds = seconds_of(arguments.suite, arguments.activation)
    tasks = tasks_of(arguments.suite, arguments.activation, arguments.seeds)
    median, longest = np.median(list(seconds.values())), max(seconds.values())
    print(f"{len(seconds)} fits, median {median:.1f} s, longest {longest / median:.1f} times that")
    print(f"{'fit':32s} seconds  " + "  ".join(f"{column:>11s}" for column in COLUMNS))
    for name in sorted(seconds, key=seconds.__getitem__)[:-11:-1]:
        sampler, start = Sampler(), time.perf_counter()
        sampler.start()
        tasks[name]()
        sampler.is_over.set()
        shares = [sampler.seen[column] / sampler.seen.total() for column in COLUMNS]
        print(
            f"{name:32s} {time.perf_counter() - start:7.1f}  "
            + "  ".join(f"{share:11.0%}" for share in shares),
            flush=True,
        )


if __name__ == "__main__":
    main()
