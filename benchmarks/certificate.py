"""Calibrate ``recovered_``: does it ever lie, and how often does it refuse an exact network?

    python benchmarks/certificate.py --jobs 2

500 runs of thirteen kinds, small networks so that most take seconds. A True is wrong if the
network's outputs on new inputs differ from the true ones, if the data come from a network with this
activation and the recovered one is not exact (right width, cosine distances up to 1e-10; where
targets are rounded, the stated error of the weights must hold up to a factor of 10), or if the
assumed number of layers is wrong. Of columns that leave weights open, any True is. A False is wrong
if the recovered network is exact and the data are free of noise.

ReLU neurons that are on in the same rows, and have parallel outgoing weights, are one neuron as far
as these rows tell: no method could find two. They count as that one.
"""

import argparse
import time
import warnings
from collections import defaultdict
from itertools import combinations

import numpy as np
import torch
from _resumable import RESULTS, run_resumable
from _weight_error import MARGIN, relative_weight_error
from joblib import delayed
from sklearn.exceptions import ConvergenceWarning

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec.datasets import Teacher, make_teacher
from sklearn_ec.metrics import max_cosine_distance, relative_rmse

EXACT = 1e-10
SAME_FUNCTION = 1e-6
RUNS = {
    "exact": 110,
    "wrong activation": 13,
    "too shallow": 10,
    "too deep": 1,
    "noise": 15,
    "too few rows": 40,
    "duplicated rows": 25,
    "nearly equal neurons": 40,
    "no network": 4,
    "open columns": 80,
    "float32": 93,
    "float32 and noise": 29,
    "decimals": 40,
}
ROUNDED = ("float32", "float32 and noise", "decimals")
WRONG_DEPTHS = ("too shallow", "too deep")
# Not equivalent to each other: no width of one represents the other.
RIVALS = {
    "tanh": ["erf", "softplus", "g"],
    "erf": ["tanh", "gelu", "relu"],
    "relu": ["tanh", "softplus", "elu"],
    "softplus": ["silu", "gelu", "tanh"],
    "g": ["softplus", "logistic", "gelu"],
}
FUNCTIONS = [
    lambda X: np.sin(3.0 * X[:, 0]) * X[:, 1],
    lambda X: X[:, 0] ** 2 - X[:, 0] * X[:, 1],
    lambda X: np.exp(-(X[:, 0] ** 2) - X[:, 1] ** 2),
    lambda X: np.floor(2.0 * X[:, 0]) + (X[:, 1] > 0),
    lambda X: 1.0 / (1.2 + np.cos(X[:, 0] + X[:, 1])),
]


def make_run(kind, seed):
    """Inputs, outputs, fresh inputs, their outputs, teacher (or None), activation, sizes."""
    rng = np.random.default_rng(seed)
    activation = list(ACTIVATIONS)[seed % len(ACTIVATIONS)]
    n_inputs, width = int(rng.integers(2, 5)), int(rng.integers(2, 5))
    n_outputs = int(rng.integers(1, 3))
    sizes = width
    if kind == "wrong activation":
        activation = list(RIVALS)[seed % len(RIVALS)]
    if kind == "too shallow":
        sizes = (width, int(rng.integers(2, 4)))
    family = ("reference", "rough")[seed // len(ACTIVATIONS) % 2]
    teacher = make_teacher(n_inputs, sizes, n_outputs, activation, family=family, random_state=seed)
    if kind == "nearly equal neurons":
        distance = 10.0 ** rng.uniform(-6, -0.5)
        teacher.weights_[0][:, 1] = teacher.weights_[0][:, 0]
        teacher.weights_[0][:, 1] += distance * rng.normal(size=n_inputs)
        teacher.biases_[0][1] = teacher.biases_[0][0] + distance * rng.normal()
    n_parameters = sum(w.size for w in teacher.weights_ + teacher.biases_)
    n_samples = int(rng.integers(300, 800))
    if kind in ("too few rows", "duplicated rows"):
        n_samples = max(4, int(rng.uniform(0.5, 3.0) * n_parameters / n_outputs))
    X, fresh = (rng.uniform(-1.7, 1.7, size=(n, n_inputs)) for n in (n_samples, 1000))
    truth = teacher.predict
    if kind == "no network":
        teacher, truth = None, FUNCTIONS[seed % len(FUNCTIONS)]
    y, fresh_y = truth(X), truth(fresh)
    if kind == "open columns":
        return open_columns_run(seed, rng, n_inputs, width, n_outputs, activation, n_samples)
    if kind in ROUNDED:
        y = rounded(kind, y, rng)
    if kind == "noise":
        y = y + 10.0 ** rng.uniform(-8, -2) * y.std(axis=0) * rng.normal(size=y.shape)
    if kind == "duplicated rows":
        X, y = np.repeat(X, 8, axis=0), np.repeat(y, 8, axis=0)
    if kind == "wrong activation":
        activation, teacher = rng.choice(RIVALS[activation]), None
    if kind in WRONG_DEPTHS:
        teacher = None
    assumed = max(1, width + int(rng.choice([0, 0, 0, -1, 2])))
    sizes = (assumed, 2) if kind == "too deep" else (assumed,)
    return X, y, fresh, fresh_y, teacher, str(activation), sizes


def open_columns_run(seed, rng, n_inputs, width, n_outputs, activation, n_samples):
    """A network of inputs of which some are constant or linear functions of others."""
    basis = rng.uniform(-1.7, 1.7, size=(n_samples + 1000, n_inputs))
    added = (
        np.full((len(basis), 1), rng.uniform(0.5, 2.0)),
        rng.uniform(0.1, 100.0) * basis[:, :1],
        np.eye(3)[rng.integers(3, size=len(basis))],
        basis @ rng.uniform(0.5, 2.0, size=(n_inputs, 1)),
    )[seed % 4]
    inputs = np.hstack([basis, added])
    teacher = make_teacher(
        inputs.shape[1], width, n_outputs, activation, family="rough", random_state=seed
    )
    outputs = teacher.predict(inputs)
    split = inputs[:n_samples], outputs[:n_samples], inputs[n_samples:], outputs[n_samples:]
    return *split, teacher, activation, (width,)


def rounded(kind, y, rng):
    """Targets in float32, with or without noise, or in two to six decimals."""
    if kind == "decimals":
        return np.round(y, int(rng.integers(2, 7)))
    if kind == "float32 and noise":
        rounding = np.sqrt(
            np.mean(np.spacing(np.abs(y).astype(np.float32)).astype(float) ** 2) / 12
        )
        y = y + 10.0 ** rng.uniform(1.5, 3.0) * rounding * rng.normal(size=y.shape)
    return y.astype(np.float32)


def as_the_rows_tell(teacher, X):
    """The teacher with one ReLU neuron for two that are on in the same rows, where one will do."""
    if teacher.activation not in ("relu", "leaky_relu") or len(teacher.layer_sizes_) > 1:
        return teacher
    hidden = np.vstack([teacher.weights_[0], teacher.biases_[0]])
    outgoing, inputs = teacher.weights_[1], np.column_stack([X, np.ones(len(X))])
    for i, j in combinations(range(hidden.shape[1]), 2):
        left, size, right = np.linalg.svd(outgoing[[i, j]], full_matrices=False)
        joint = hidden[:, [i, j]] @ left[:, 0]
        if joint @ hidden[:, i] < 0:
            joint, right = -joint, -right
        is_on = inputs @ np.column_stack([hidden[:, [i, j]], joint]) > 0
        if size[1:].max(initial=0.0) < 1e-12 * size[0] and (is_on == is_on[:, :1]).all():
            weights = [np.column_stack([np.delete(hidden, [i, j], axis=1), joint])[:-1]]
            biases = [np.append(np.delete(teacher.biases_[0], [i, j]), joint[-1])]
            readout = np.vstack([np.delete(outgoing, [i, j], axis=0), size[0] * right[:1]])
            merged = Teacher([*weights, readout], [*biases, teacher.biases_[1]], teacher.activation)
            return as_the_rows_tell(merged, X)
    return teacher


def is_exact(kind, teacher, model, activation, distance):
    """Whether the weights are those of the teacher, as exactly as the kind allows."""
    if kind == "open columns":
        return False
    if kind in ROUNDED:
        error = relative_weight_error(teacher, model, activation)
        return bool(error <= MARGIN * model.certificate_.weight_error)
    return bool(distance <= EXACT)


def calibrate(kind, seed):
    torch.set_num_threads(1)
    X, y, fresh, fresh_y, teacher, activation, sizes = make_run(kind, seed)
    model = ExpandClusterRegressor(
        4, hidden_layer_sizes=sizes, activation=activation, n_students=5, random_state=seed
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    distance = np.inf
    if teacher is not None:
        teacher = as_the_rows_tell(teacher, X)
        distance = max_cosine_distance(teacher, model, activation)
    error = relative_rmse(fresh_y, model.predict(fresh))
    exact = teacher is not None and is_exact(kind, teacher, model, activation, distance)
    same = error <= max(SAME_FUNCTION, model.certificate_.rounding)
    right = same and (exact or teacher is None) and kind not in WRONG_DEPTHS
    right = right and kind != "float32 and noise"
    return {
        "name": f"{kind}-{seed}",
        "kind": kind,
        "activation": activation,
        "recovered": model.recovered_,
        "exact": exact,
        "wrong": bool(model.recovered_ and not right),
        "refused": bool(exact and "noise" not in kind and not model.recovered_),
        "distance": float(distance),
        "fresh_error": float(error),
        "isolation": float(model.certificate_.isolation),
        "redundancy": float(model.certificate_.redundancy),
        "weight_error": float(model.certificate_.weight_error),
        "reason": model.certificate_.reason,
        "seconds": time.perf_counter() - start,
    }


def print_table(results):
    kinds = defaultdict(list)
    for result in results:
        kinds[result["kind"]].append(result)
        kinds["total"].append(result)
    print(f"\n{'kind':22s} runs  exact  True  wrong True  wrong False  mean seconds")
    for kind in [*RUNS, "total"]:
        rows = kinds[kind]
        exact, recovered, wrong, refused = (
            sum(row[key] for row in rows) for key in ("exact", "recovered", "wrong", "refused")
        )
        seconds = np.mean([row["seconds"] for row in rows])
        print(
            f"{kind:22s} {len(rows):4d} {exact:6d} {recovered:5d} {wrong:11d} {refused:12d}"
            f" {seconds:13.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--first-seed", type=int, default=0, help="other numbers give other runs")
    arguments = parser.parse_args()
    tasks = {
        f"{kind}-{arguments.first_seed + seed}": delayed(calibrate)(
            kind, arguments.first_seed + seed
        )
        for kind, n_runs in RUNS.items()
        for seed in range(n_runs)
    }
    results = []
    for result in run_resumable(tasks, RESULTS / "certificate.jsonl", arguments.jobs):
        results.append(result)
        if result["wrong"] or result["refused"]:
            verdict = "WRONG TRUE" if result["wrong"] else "wrong False"
            print(f"{result['name']}: {verdict} {result}", flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
