"""Recover networks of which nothing, or nothing but the activation, is known; print a table.

    python benchmarks/unknown.py --suite sizes
    python benchmarks/unknown.py --suite activations
    python benchmarks/unknown.py --suite noise
    python benchmarks/unknown.py --suite rounded
    python benchmarks/unknown.py --suite tables

``sizes``: 60 noise-free teachers, the activation given, ``hidden_layer_sizes="auto"``: five of one
hidden layer and five of two for each of six activations. ``activations``: five teachers (three of
one hidden layer, two of two) for each of nine activations, ``activation="auto"`` too.

``noise``: 60 teachers of one hidden layer, widths 2 to 6, 4,000 rows, Gaussian noise of 1e-3 of the
output's standard deviation, the activation given. ``rounded``: the same with outputs rounded to
``--decimals``.

``tables``: ordinary regression tables that no small network made, against other regressors.

Results go to benchmarks/results as JSON lines; an interrupted run continues where it stopped
(delete the file to start over).
"""

import argparse
import time
import warnings
from collections import defaultdict

import numpy as np
import torch
from _resumable import RESULTS, run_resumable
from joblib import delayed
from scipy import stats
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, make_friedman1, make_friedman2, make_friedman3
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import RecoveryProblem, load_deep_suite, load_reference_suite
from sklearn_ec.metrics import match_neurons, max_cosine_distance

EXACT = 1e-10
CLOSE = 1e-3
NOISE = 1e-3
SIZE_ACTIVATIONS = ("tanh", "logistic", "relu", "softplus", "gelu", "g")
DISTINCT_ACTIVATIONS = (
    "tanh",
    "relu",
    "leaky_relu",
    "softplus",
    "gelu",
    "silu",
    "elu",
    "erf",
    "g",
)
NOISE_ACTIVATIONS = ("tanh", "relu", "g", "softplus")
SAME_FUNCTIONS = {"logistic": "tanh"}
ONE_LAYER = ((3, 2), (4, 3), (5, 5), (8, 6), (6, 8))  # inputs, width
TWO_LAYERS = ((4, 2, 2, 1), (5, 3, 3, 1), (5, 4, 3, 1), (6, 5, 4, 2), (8, 6, 5, 1))
NOISE_INPUTS = (3, 4, 6)  # by seed


def one_layer(activation, shape, seed):
    inputs, width = shape
    return load_reference_suite(activation, n_seeds=seed + 1, n_inputs=(inputs,), widths=(width,))[
        seed
    ]


def two_layers(activation, shape, seed):
    return load_deep_suite(activation, sizes=(shape,), n_seeds=seed + 1)[seed]


def make_problems(suite):
    """Problems and the activations to fit them with."""
    if suite == "sizes":
        return [
            (make(activation, shape, 0), activation)
            for activation in SIZE_ACTIVATIONS
            for make, shapes in ((one_layer, ONE_LAYER), (two_layers, TWO_LAYERS))
            for shape in shapes
        ]
    if suite == "activations":
        return [
            (make(activation, shape, 1), "auto")
            for activation in DISTINCT_ACTIVATIONS
            for make, shapes in ((one_layer, ONE_LAYER[1:4]), (two_layers, TWO_LAYERS[1:3]))
            for shape in shapes
        ]
    return [
        (one_layer(activation, (NOISE_INPUTS[seed], width), seed), activation)
        for activation in NOISE_ACTIVATIONS
        for width in range(2, 7)
        for seed in range(len(NOISE_INPUTS))
    ]


def with_noise(problem, decimals):
    """4,000 rows of a teacher with Gaussian noise, or rounded."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-(3**0.5), 3**0.5, size=(4000, problem.X.shape[1]))
    y = problem.teacher.predict(X)
    if decimals is not None:
        return RecoveryProblem(problem.name, problem.teacher, X, np.round(y, decimals))
    y = y + NOISE * y.std(axis=0) * rng.normal(size=y.shape)
    return RecoveryProblem(problem.name, problem.teacher, X, y)


def recover(problem, activation, options):
    torch.set_num_threads(options["threads"])
    if options["suite"] in ("noise", "rounded"):
        problem = with_noise(problem, options["decimals"])
    model = ExpandClusterRegressor(activation=activation, random_state=0)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(problem.X, problem.y)
    seconds = time.perf_counter() - start
    teacher = problem.teacher
    same_sizes = model.layer_sizes_ == tuple(teacher.layer_sizes_)
    covered = coverage(teacher, model) if same_sizes else []
    return {
        "name": problem.name,
        "activation": teacher.activation,
        "right_activation": is_same_function(teacher.activation, model.activation_),
        "found": [model.activation_, *model.layer_sizes_],
        "same_sizes": same_sizes,
        "distance": max_cosine_distance(teacher, model, model.activation_) if same_sizes else None,
        "recovered": model.recovered_,
        "loss": model.loss_,
        "noise_level": model.noise_level_.tolist(),
        "width_agreement": model.width_agreement_,
        "covered": covered,
        "n_trials": len(model.search_report_),
        "seconds": seconds,
    }


def is_same_function(a, b):
    return SAME_FUNCTIONS.get(a, a) == SAME_FUNCTIONS.get(b, b)


def coverage(teacher, model):
    """Whether the intervals of nominally 95 % hold the teacher's first-layer weights, by entry.

    Signs, and lengths for homogeneous activations, are undone. Empty for another activation.
    """
    if teacher.activation != model.activation_ or model.recovered_:
        return []
    match = match_neurons(teacher, model, model.activation_)
    true = np.vstack([teacher.weights_[0], teacher.biases_[0]])[:, match.reference]
    found = np.vstack([model.weights_[0], model.biases_[0]])[:, match.recovered]
    errors = model.standard_errors()[0][:, match.recovered]
    true = true * match.signs
    if teacher.activation in ("relu", "leaky_relu"):
        true = true / np.linalg.norm(true, axis=0)
    quantile = stats.norm.ppf(0.975)
    return (np.abs(true - found) <= quantile * errors).ravel().tolist()


def make_tables():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, size=(1000, 1))
    return {
        "diabetes": load_diabetes(return_X_y=True),
        "friedman1": make_friedman1(2000, noise=1.0, random_state=0),
        "friedman2": make_friedman2(2000, noise=50.0, random_state=0),
        "friedman3": make_friedman3(2000, noise=0.1, random_state=0),
        "sin": (x, np.sin(3 * x[:, 0]) + 0.1 * rng.normal(size=1000)),
    }


def compare(name, table, options):
    """R² on a third of the rows of a table, for several regressors."""
    torch.set_num_threads(options["threads"])
    X, X_test, y, y_test = train_test_split(*table, test_size=1 / 3, random_state=0)
    mlp = make_pipeline(StandardScaler(), MLPRegressor(max_iter=2000, random_state=0))
    grid = {
        "mlpregressor__hidden_layer_sizes": [(4,), (8,), (16,), (32,)],
        "mlpregressor__alpha": [1e-4, 1e-2, 1.0],
        "mlpregressor__learning_rate_init": [1e-3, 1e-2],
    }
    tuned = GridSearchCV(mlp, grid, cv=3)
    models = {
        "ExpandClusterRegressor": ExpandClusterRegressor(random_state=0),
        "MLPRegressor, tuned": TransformedTargetRegressor(tuned, transformer=StandardScaler()),
        "HistGradientBoosting": HistGradientBoostingRegressor(random_state=0),
        "ridge": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))),
    }
    result = {"name": name}
    for label, model in models.items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            score = model.fit(X, y).score(X_test, y_test)
        result[label] = {"r2": score, "seconds": time.perf_counter() - start}
    result["layer_sizes"] = models["ExpandClusterRegressor"].layer_sizes_
    result["noise_level"] = models["ExpandClusterRegressor"].noise_level_.tolist()
    chosen = models["MLPRegressor, tuned"].regressor_.best_params_
    result["mlp_sizes"] = chosen["mlpregressor__hidden_layer_sizes"]
    return result


def print_recoveries(results, suite):
    noisy = suite in ("noise", "rounded")
    limit = CLOSE if noisy else EXACT
    groups = defaultdict(list)
    for r in results:
        groups[r["activation"]].append(r)
    groups["all"] = results
    print(f"{'activation':12} right sizes  within {limit:g}  certified  worst   median s  longest")
    for name, group in groups.items():
        sized = [r for r in group if r["same_sizes"] and r["right_activation"]]
        exact = [r for r in sized if r["distance"] <= limit]
        seconds = [r["seconds"] for r in group]
        worst = max((r["distance"] for r in sized), default=np.nan)
        print(
            f"{name:12} {len(sized):4} of {len(group):3} {len(exact):7} of {len(group):3} "
            f"{sum(r['recovered'] for r in group):8}  {worst:8.1e} {np.median(seconds):8.1f} "
            f"{max(seconds):8.1f}"
        )
    covered = [entry for r in results for entry in r["covered"]]
    if covered:
        print(f"standard errors cover {np.mean(covered):.1%} of {len(covered)} entries (95 %)")
    for r in results:
        if not (r["same_sizes"] and r["right_activation"] and r["distance"] <= limit):
            print("missed:", r["name"], r["found"], r["distance"], f"loss {r['loss']:.1e}")


def print_tables(results):
    for r in results:
        print(r["name"], "found", r["layer_sizes"], "MLPRegressor", r["mlp_sizes"])
        for label, entry in r.items():
            if isinstance(entry, dict):
                print(f"    {label:24} R² {entry['r2']:6.3f}   {entry['seconds']:6.1f} s")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = ["sizes", "activations", "noise", "rounded", "tables"]
    parser.add_argument("--suite", default="sizes", choices=suites)
    parser.add_argument("--decimals", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    options = {"suite": args.suite, "threads": args.threads, "decimals": None}
    path = f"unknown-{args.suite}"
    if args.suite == "rounded":
        options["decimals"] = args.decimals
        path += f"-{args.decimals}"
    if args.suite == "tables":
        tables = make_tables().items()
        tasks = {name: delayed(compare)(name, table, options) for name, table in tables}
    else:
        problems = make_problems(args.suite)
        tasks = {p.name: delayed(recover)(p, activation, options) for p, activation in problems}
    results = list(run_resumable(tasks, RESULTS / f"{path}.jsonl", args.jobs))
    print_tables(results) if args.suite == "tables" else print_recoveries(results, args.suite)


if __name__ == "__main__":
    main()
