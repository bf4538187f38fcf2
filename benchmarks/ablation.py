"""What each move that improves a network after its training is worth: the same fits without it.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --suite mnist --data FOLDER
    python benchmarks/ablation.py --suite deep --moves growing retracing

``clusters``: networks of the clusters, layers that students share; ``growing``: students that
start as a network in a corner, or on its lower layers; ``expanding``: what is done near zero
instead of a brief round, more steps, from a narrowed corner or on its lower layers;
``retracing``: pruning goes back to where there were neurons to spare; ``skip_terms``: a second
pruning, with skip terms. Large networks only: ``merging``, one neuron for each that several
imitate; ``settling``, less weight along directions that few rows tell about.

Suites: ``shallow``, the reference teachers of three activations, first of each cell; ``deep``,
first of each cell; ``mnist``, networks 784-8-10 on 10,000 images. Results go to
benchmarks/results/ablation.jsonl, one thread for each fit; an interrupted run goes on.
"""

import argparse
import json
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import mnist
import numpy as np
import recovery
import torch
from _resumable import RESULTS, run_resumable
from joblib import delayed

from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._finish import pruning
from sklearn_ec._finish.finisher import Finisher
from sklearn_ec._search.ensemble import Ensemble
from sklearn_ec._search.trial_trainer import TrialTrainer

# Move: where it is, and what takes its place.
MOVES = {
    "clusters": (Ensemble, "seek_in_clusters", lambda self, finisher: []),
    "growing": (TrialTrainer, "grow", lambda self, trial, n_students: None),
    "expanding": (
        TrialTrainer,
        "_growths",
        lambda self, trial, corner, loss: [self.growth(trial, corner)],
    ),
    "retracing": (pruning, "_retraced", lambda path, network, loss, polisher: None),
    "skip_terms": (Finisher, "_finish", Finisher._pruned),
    "merging": (pruning, "_try_merging", lambda network, loss, polisher, cap: (network, loss)),
    "settling": (Polisher, "settled", lambda self, network, shrinkage=None: network),
}
LARGE_ONLY = ("merging", "settling")
ACTIVATIONS = {
    "shallow": ("g", "relu", "softplus"),
    "deep": ("tanh", "relu", "softplus", "logistic", "g"),
    "mnist": ("tanh", "relu", "g", "logistic", "softplus"),
}
OPTIONS = {
    "auto": False,
    "n_students": 20,
    "solver": "auto",
    "max_iter": 300,
    "exhaustive": False,
    "threads": 1,
}
EXACT_RMSE = 1e-10  # of the outputs of a network of images, relative


def recover(suite, activation, problem, move, data):
    """Recover a network without a move; ``None`` leaves all in their places."""
    torch.set_num_threads(1)
    with patch.object(*MOVES[move]) if move else nullcontext():
        if suite == "mnist":
            result = recover_from_images(activation, data)
        else:
            options = OPTIONS | {"rho": 3 if suite == "deep" else 4}
            result = recovery.recover(problem, activation, options)
    name = task_name(suite, activation, problem, move)
    kept = {key: result[key] for key in ("exact", "recovered", "loss", "seconds")}
    return {"name": name, "suite": suite, "move": move} | kept


def recover_from_images(activation, data):
    images, labels, test_images, _ = mnist.load_images(data)
    arguments = Namespace(
        cache=RESULTS / "mnist",
        width=8,
        rows=10_000,
        rho=2,
        students=4,
        device="cpu",
        solver="auto",
        working_memory=2048,
        resume=False,
        verbose=0,
    )
    result = mnist.recover(arguments, activation, images, labels, test_images)
    return result | {"exact": result["excess"] == 0 and result["rmse"] < EXACT_RMSE}


def make_problems(suite, activation):
    if suite == "mnist":
        return [None]
    name = "reference" if suite == "shallow" else "deep"
    return recovery.make_problems(name, activation, 1, 4, [])


def task_name(suite, activation, problem, move):
    problem_name = problem.name if problem else f"mnist-{activation}"
    return f"{suite}/{problem_name}/{move or 'all moves'}"


def print_table(results):
    print("suite    without       exact  certified  worst loss  median seconds  longest   all")
    for suite in ACTIVATIONS:
        for move in (None, *MOVES):
            rows = [r for r in results if r["suite"] == suite and r["move"] == move]
            if not rows:
                continue
            seconds = np.array([row["seconds"] for row in rows])
            exact, certified = (sum(row[key] for row in rows) for key in ("exact", "recovered"))
            print(
                f"{suite:8s} {move or '-':12s} {exact:3d}/{len(rows):<3d} {certified:9d}  "
                f"{max(row['loss'] for row in rows):10.0e}  {np.median(seconds):14.1f}  "
                f"{seconds.max():7.1f}  {seconds.sum():5.0f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", nargs="+", choices=ACTIVATIONS, default=["shallow", "deep"])
    parser.add_argument("--activation", nargs="+", help="some of those of the suites")
    parser.add_argument("--moves", nargs="*", choices=MOVES, default=list(MOVES))
    parser.add_argument("--data", type=Path, help="folder with the IDX files of MNIST")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    tasks = {}
    for suite in arguments.suite:
        moves = [m for m in arguments.moves if suite == "mnist" or m not in LARGE_ONLY]
        for activation in arguments.activation or ACTIVATIONS[suite]:
            for problem in make_problems(suite, activation):
                for move in (None, *moves):
                    tasks[task_name(suite, activation, problem, move)] = delayed(recover)(
                        suite, activation, problem, move, arguments.data
                    )
    results = []
    for result in run_resumable(tasks, RESULTS / "ablation.jsonl", arguments.jobs):
        results.append(result)
        print(json.dumps(result), flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
