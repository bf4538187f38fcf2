"""Time what no small network made, next to exact networks of the same size.

    python benchmarks/refusals.py
    python benchmarks/refusals.py --activations tanh --sizes given

Tables of 600 noise-free rows: sin(3 x0) x1, x0 x1 x2 (four columns), friedman1 (five columns that
count, five that do not), and two step functions. Each is fitted with the width 3 given, and with
sizes unknown; R² is that on 2,000 new rows. The time is divided by that of exact networks with as
many rows and columns, in the same run: the median of three of three neurons, and with sizes
unknown, where the search tries two layers as well, of three in each of two; also by that of a
network of the size that the fit ended with, the first of three draws that is recovered. No table
may be certified. Results go to benchmarks/results/refusals.jsonl.
"""

import argparse
import time
import warnings
from collections import defaultdict

import numpy as np
import torch
from _resumable import RESULTS, run_resumable
from joblib import delayed
from sklearn.exceptions import ConvergenceWarning

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import load_deep_suite, make_teacher

ACTIVATIONS = ("tanh", "relu", "softplus")
SIZES = {"given": 3, "auto": "auto"}
N_ROWS, N_NEW = 600, 2000
FUNCTIONS = {
    "sine": (4, lambda x: np.sin(3 * x[:, 0]) * x[:, 1]),
    "product": (4, lambda x: x[:, 0] * x[:, 1] * x[:, 2]),
    "friedman1": (
        10,
        lambda x: (
            10 * np.sin(np.pi * (x[:, 0] + 1) * (x[:, 1] + 1) / 4)
            + 5 * x[:, 2] ** 2
            + 5 * x[:, 3]
            + 2.5 * x[:, 4]
        ),
    ),
    "step": (4, lambda x: np.where(x[:, 0] + 0.5 * x[:, 1] > 0, 1.0, -1.0)),
    "steps": (4, lambda x: np.sign(x[:, 0]) + 0.5 * np.sign(x[:, 1] - 0.3)),
}
# Inputs, hidden layers and seed of the exact networks.
TEACHERS = {
    f"teacher{seed}-{d}" + ("-deep" if sizes[1:] else ""): (d, sizes, seed)
    for sizes in ((3,), (3, 3))
    for d in (4, 10)
    for seed in range(3)
}


def make_table(name, activation, widths=None, seed=0):
    """Rows and their targets, and as much of new rows; those of a network of widths, if given."""
    rng = np.random.RandomState(0)
    if name in FUNCTIONS:
        n_features, function = FUNCTIONS[name]
        if widths:
            family = "deep" if len(widths) > 1 else "reference"
            teacher = make_teacher(
                n_features, widths, activation=activation, family=family, random_state=seed
            )
            function = teacher.predict
    else:
        n_features, sizes, seed = TEACHERS[name]
        if len(sizes) > 1:
            shape = (n_features, *sizes, 1)
            problem = load_deep_suite(activation, sizes=(shape,), n_seeds=seed + 1)[seed]
            X, y = problem.X, problem.y.ravel()
            return X[:N_ROWS], y[:N_ROWS], X[N_ROWS:], y[N_ROWS:]
        teacher = make_teacher(n_features, sizes, activation=activation, random_state=seed)
        function = teacher.predict
    X = rng.uniform(-1, 1, size=(N_ROWS + N_NEW, n_features))
    y = np.asarray(function(X)).ravel()
    return X[:N_ROWS], y[:N_ROWS], X[N_ROWS:], y[N_ROWS:]


def run(name, activation, sizes, twin=None, seed=0):
    """Fit a table, or a network of the widths ``twin`` on its rows."""
    torch.set_num_threads(1)
    X, y, X_new, y_new = make_table(name, activation, twin, seed)
    model = ExpandClusterRegressor(
        hidden_layer_sizes=SIZES[sizes], activation=activation, random_state=0
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    return {
        "name": task_name(name, activation, sizes, twin, seed),
        "depth": len(TEACHERS[name][1]) if name in TEACHERS else 0,
        "cell": [X.shape[1], activation, sizes],
        "seconds": time.perf_counter() - start,
        "r2": model.score(X_new, y_new),
        "recovered": model.recovered_,
        "layer_sizes": model.layer_sizes_,
        "loss": model.loss_,
    }


def task_name(name, activation, sizes, twin=None, seed=0):
    return f"{name} {activation} {sizes}" + (f" {twin} s{seed}" if twin else "")


def recovered_twin(result):
    """The seconds that a network of the size that a fit ended with takes; None if it is missed."""
    name, activation, sizes = result["name"].split()
    twin = tuple(result["layer_sizes"])
    for seed in range(3):
        task = delayed(run)(name, activation, sizes, twin, seed)
        tasks = {task_name(name, activation, sizes, twin, seed): task}
        (exact,) = run_resumable(tasks, RESULTS / "refusals.jsonl", jobs=1)
        if exact["recovered"]:
            return exact["seconds"]
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activations", nargs="+", default=ACTIVATIONS)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    arguments = parser.parse_args()
    tasks = {
        f"{name} {activation} {sizes}": delayed(run)(name, activation, sizes)
        for activation in arguments.activations
        for sizes in arguments.sizes
        for name in (*TEACHERS, *FUNCTIONS)
        if sizes == "auto" or not name.endswith("deep")
    }
    results = list(run_resumable(tasks, RESULTS / "refusals.jsonl", jobs=1))
    exact = defaultdict(list)
    for result in results:
        if result["depth"] and result["recovered"]:
            exact[(*result["cell"], result["depth"])].append(result["seconds"])
    ratios = defaultdict(list)
    print(f"{'table':28s}  seconds  / exact  / deep  / twin      R²  certified  widths")
    tables = [result for result in results if not result["depth"]]
    for result in tables:
        sizes = result["cell"][-1]
        others = {
            "one layer": np.median(exact[(*result["cell"], 1)] or np.nan),
            "two layers": np.median(exact[(*result["cell"], 2)] or np.nan),
            "its size": (sizes == "auto" and recovered_twin(result)) or np.nan,
        }
        columns = []
        for other, seconds in others.items():
            ratio = result["seconds"] / seconds
            columns.append(f"{ratio:7.1f}" if np.isfinite(ratio) else " " * 7)
            ratios[sizes, other] += [ratio] * np.isfinite(ratio)
        print(
            f"{result['name']:28s}  {result['seconds']:7.1f}  {'  '.join(columns)}  "
            f"{result['r2']:6.3f}  {result['recovered']!s:9s}  {tuple(result['layer_sizes'])}",
            flush=True,
        )
    print(f"{sum(result['recovered'] for result in tables)} of {len(tables)} wrongly certified")
    for (sizes, other), values in ratios.items():
        if values:
            print(
                f"sizes {sizes}, times an exact network of {other}: "
                f"median {np.median(values):.1f}, longest {max(values):.1f}"
            )


if __name__ == "__main__":
    main()
