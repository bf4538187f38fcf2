"""Does the verdict hold on data as people have them? Open columns, float32, decimals.

    python benchmarks/verdict.py --suite columns
    python benchmarks/verdict.py --suite rounded
    python benchmarks/verdict.py --suite refused

``columns``: 200 networks of one or two hidden layers whose inputs have a constant, nearly constant
(1e-13 to 1e-6), duplicated, rescaled, one-hot encoded or summed column. A True is wrong if a
neuron's ``[w; b]`` is off by more than ten times the stated ``weight_error``, relative to its
length; the named columns and the function on new rows of the same kind are checked.

``rounded``: 60 torch networks that answer in float32 (relu, tanh, softplus, g; one and two hidden
layers; one to three outputs), 24 of them in float64, and 20 each whose outputs are rounded to 3 and
to 6 decimals. Counts exact widths and True, compares the true error of the weights with the stated
one, and the time with that of float64.

``refused``: 140 sets of targets in float32 (100) or with 3 or 6 decimals (20 each) that must not be
certified: noise of 3 to 100 times the rounding, a wrong activation, no network.

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
from _weight_error import MARGIN, relative_weight_error
from certificate import FUNCTIONS, RIVALS
from joblib import delayed
from sklearn.exceptions import ConvergenceWarning

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import _all_kinks_show, make_teacher
from sklearn_ec.metrics import relative_rmse

ROUNDED_ACTIVATIONS = ("relu", "tanh", "softplus", "g")
COLUMN_ACTIVATIONS = ("tanh", "relu", "softplus", "g", "logistic", "gelu")
COLUMN_KINDS = ("constant", "near constant", "duplicate", "scaled copy", "one-hot", "sum")
SHAPES = ((4,), (6,), (4, 3))
REFUSED_SHAPES = ((2,), (3,), (4,), (3,), (2,), (4,), (3,), (3, 2))  # small: a No is slow
SAME_FUNCTION = 1e-6
N_ROWS = (1000, 2000)  # for one hidden layer, and for two
N_ROWS_OF_THREE_DECIMALS = (20_000, 2000)
N_ROWS_OF_REFUSED = (400, 800)
MAX_TIME = 300.0  # seconds for each fit


def fit(X, y, activation, sizes, seed, **parameters):
    torch.set_num_threads(1)
    model = ExpandClusterRegressor(
        hidden_layer_sizes=sizes,
        activation=activation,
        random_state=seed,
        max_time=MAX_TIME,
        **parameters,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    return model, time.perf_counter() - start


def report(model, seconds, **more):
    certificate = model.certificate_
    return {
        **more,
        "sizes": list(model.layer_sizes_),
        "recovered": bool(model.recovered_),
        "function_certified": bool(certificate.function_certified),
        "error": certificate.error,
        "rounding": certificate.rounding,
        "precision": certificate.precision,
        "stated": float(certificate.weight_error),
        "isolation": float(certificate.isolation),
        "reason": certificate.reason,
        "seconds": seconds,
    }


def add_columns(kind, X, rng, coefficients, size):
    """Inputs with open columns, and which columns these are."""
    n, d = X.shape
    if kind == "constant":
        return np.c_[X, np.full(n, 1.5)], [d]
    if kind == "near constant":
        return np.c_[X, 1.5 + size * rng.uniform(-1, 1, n)], [d]
    if kind == "duplicate":
        return np.c_[X, X[:, 0]], [0, d]
    if kind == "scaled copy":
        return np.c_[X, 3.0 - 100.0 * X[:, 1]], [1, d]
    if kind == "one-hot":
        return np.c_[X, np.eye(3)[rng.integers(3, size=n)]], [d, d + 1, d + 2]
    return np.c_[X, X @ coefficients], list(range(d + 1))


def columns_run(seed):
    rng = np.random.default_rng(seed)
    kind = COLUMN_KINDS[seed % len(COLUMN_KINDS)]
    activation = COLUMN_ACTIVATIONS[seed // len(COLUMN_KINDS) % len(COLUMN_ACTIVATIONS)]
    sizes = (3, 2) if seed % 4 == 3 else (3,)
    coefficients, size = rng.uniform(0.5, 2.0, 3), 10.0 ** rng.uniform(-13, -6)
    n_rows = 800 if len(sizes) > 1 else 400
    inputs = rng.uniform(-2, 2, size=(n_rows + 1000, 3))
    inputs, opened = add_columns(kind, inputs, rng, coefficients, size)
    family = "deep" if len(sizes) > 1 else "rough"
    teacher = make_teacher(
        inputs.shape[1], sizes, 1, activation, family=family, random_state=1000 + seed
    )
    # A column of large values has small weights, lest neurons be saturated.
    teacher.weights_[0] /= np.maximum(inputs.std(axis=0), 1.0)[:, None]
    y = teacher.predict(inputs)
    model, seconds = fit(inputs[:n_rows], y[:n_rows], activation, sizes, seed, rho=3, n_students=10)
    error = relative_weight_error(teacher, model, activation)
    certificate = model.certificate_
    named = [int(name[1:]) for name in certificate.open_columns]
    right_columns = kind == "near constant" or named == opened
    if kind == "near constant":
        right_columns = named in ([], opened)
    fresh_error = relative_rmse(y[n_rows:], model.predict(inputs[n_rows:]))
    return report(
        model,
        seconds,
        name=f"columns-{seed}",
        kind=kind,
        activation=activation,
        depth=len(sizes),
        size=size,
        true_error=error,
        fresh_error=fresh_error,
        open_columns=named,
        wrong_true=bool(model.recovered_ and not error <= MARGIN * certificate.weight_error),
        wrong_columns=bool(certificate.function_certified and not right_columns),
        wrong_function=bool(certificate.function_certified and not fresh_error <= SAME_FUNCTION),
    )


def make_victim(seed, offset, shapes, n_rows=N_ROWS):
    """A network, its activation and inputs as float32 values."""
    rng = np.random.default_rng(offset + seed)
    activation = ROUNDED_ACTIVATIONS[seed % len(ROUNDED_ACTIVATIONS)]
    sizes = shapes[seed // len(ROUNDED_ACTIVATIONS) % len(shapes)]
    n_inputs, n_outputs = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    X = rng.uniform(-2, 2, size=(n_rows[len(sizes) - 1], n_inputs)).astype(np.float32)
    for draw in range(1000):
        teacher = make_teacher(
            n_inputs,
            sizes,
            n_outputs,
            activation,
            family="deep" if len(sizes) > 1 else "rough",
            random_state=1000 * (offset + seed) + draw,
        )
        if activation != "relu" or _all_kinks_show(teacher, X):
            break
    for parts in (teacher.weights_, teacher.biases_):
        parts[:] = [part.astype(np.float32).astype(np.float64) for part in parts]
    return teacher, activation, X, rng


def torch_outputs(teacher, activation, X):
    """What torch answers in float32."""
    functions = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "softplus": torch.nn.functional.softplus,
        "g": lambda z: torch.sigmoid(4.0 * z) + torch.nn.functional.softplus(z),
    }
    values = torch.from_numpy(X)
    for layer, (weight, bias) in enumerate(zip(teacher.weights_, teacher.biases_, strict=True)):
        if layer:
            values = functions[activation](values)
        weight, bias = (torch.tensor(part.T, dtype=torch.float32) for part in (weight, bias))
        values = torch.nn.functional.linear(values, weight, bias)
    return values.numpy()


def answers(teacher, activation, X, precision):
    if precision == "float32":
        return torch_outputs(teacher, activation, X)
    exact = np.asarray(teacher.predict(X.astype(np.float64))).reshape(len(X), -1)
    return exact if precision == "float64" else given(exact, precision)


def given(values, precision):
    """Values in float32 or rounded to decimals."""
    if precision == "float32":
        return values.astype(np.float32)
    return np.round(values, int(precision[0]))


def rounded_run(precision, seed):
    teacher, activation, X, _ = make_victim(
        seed, 3000, SHAPES, N_ROWS_OF_THREE_DECIMALS if precision == "3 decimals" else N_ROWS
    )
    y = answers(teacher, activation, X, precision)
    model, seconds = fit(X, y, activation, teacher.layer_sizes_, seed, rho=3, n_students=10)
    return report(
        model,
        seconds,
        name=f"{precision}-{seed}",
        kind=precision,
        activation=activation,
        depth=len(teacher.layer_sizes_),
        true_sizes=list(teacher.layer_sizes_),
        true_error=relative_weight_error(teacher, model, activation),
    )


def refused_run(precision, seed):
    teacher, activation, X, rng = make_victim(seed, 6000, REFUSED_SHAPES, N_ROWS_OF_REFUSED)
    kind = ("noise", "wrong activation", "no network")[min(seed % 5, 2) if seed % 5 < 3 else 0]
    y = answers(teacher, activation, X, precision)
    sizes = teacher.layer_sizes_
    if kind == "noise":
        exact = answers(teacher, activation, X, "float64")
        rounding = np.sqrt(np.mean((y.astype(np.float64) - exact) ** 2))
        factor = 10.0 ** rng.uniform(np.log10(3.0), 2.0)
        noisy = exact + factor * rounding * rng.normal(size=exact.shape)
        y = given(noisy, precision)
    elif kind == "wrong activation":
        activation = str(rng.choice(RIVALS[activation]))
    else:
        y = FUNCTIONS[seed // 5 % len(FUNCTIONS)](X.astype(np.float64))
        y = given(y, precision)
    model, seconds = fit(X, y, activation, sizes, seed, rho=2, n_students=3)
    return report(
        model,
        seconds,
        name=f"{precision}-{seed}",
        kind=f"{kind}, {precision}",
        activation=activation,
        depth=len(sizes),
        wrong_true=bool(model.recovered_),
    )


DECIMALS = ("3 decimals", "6 decimals")
SUITES = {
    "columns": {f"columns-{seed}": delayed(columns_run)(seed) for seed in range(200)},
    "rounded": {
        f"{precision}-{seed}": delayed(rounded_run)(precision, seed)
        for precision, n in (("float32", 60), ("float64", 24), *((name, 20) for name in DECIMALS))
        for seed in range(n)
    },
    "refused": {
        f"{precision}-{seed}": delayed(refused_run)(precision, seed)
        for precision, n in (("float32", 100), *((name, 20) for name in DECIMALS))
        for seed in range(n)
    },
}


def print_table(results):
    kinds = defaultdict(list)
    for result in results:
        kinds[result["kind"]].append(result)
        kinds["total"].append(result)
    print(f"\n{'kind':30s} runs  True  function  wrong  exact widths  uncovered  median s  longest")
    for kind, rows in sorted(kinds.items(), key=lambda item: item[0] == "total"):
        wrong = sum(any(v for k, v in row.items() if k.startswith("wrong_")) for row in rows)
        exact = sum(row["sizes"] == row.get("true_sizes") for row in rows)
        uncovered = sum(
            row["recovered"] and not row.get("true_error", 0.0) <= row["stated"] for row in rows
        )
        seconds = [row["seconds"] for row in rows]
        print(
            f"{kind:30s} {len(rows):4d} {sum(row['recovered'] for row in rows):5d}"
            f" {sum(row['function_certified'] for row in rows):9d} {wrong:6d} {exact:13d}"
            f" {uncovered:10d} {np.median(seconds):9.1f} {max(seconds):8.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--every", type=int, default=1, help="every how many runs")
    arguments = parser.parse_args()
    tasks = dict(list(SUITES[arguments.suite].items())[:: arguments.every])
    results = []
    path = RESULTS / f"verdict-{arguments.suite}.jsonl"
    for result in run_resumable(tasks, path, arguments.jobs):
        results.append(result)
        for key in ("wrong_true", "wrong_columns", "wrong_function"):
            if result.get(key):
                print(f"{result['name']}: {key} {result}", flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
