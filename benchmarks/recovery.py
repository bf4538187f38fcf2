"""Recover suites of teachers and print a table by cell.

    python benchmarks/recovery.py --suite reference --activation g
    python benchmarks/recovery.py --suite rough --activation all --seeds 1
    python benchmarks/recovery.py --suite mlp --activation tanh
    python benchmarks/recovery.py --suite deep --activation tanh --seeds 3 --rho 3

Results go to benchmarks/results as JSON lines, one per teacher; an interrupted run continues where
it stopped (delete the file to start over).

Controls: ``--rho 1`` shows what expanding gains, ``--solver adam --max-iter 300`` what Levenberg
gains. Give both sides ``--exhaustive`` to compare shares of students at zero loss (at most 1e-20).

A teacher counts as exact when the widths are right and the worst one-to-one cosine distance between
the incoming vectors [w; b] of teacher and recovered network is at most 1e-10. It is determined by
the data when the Jacobian of its own outputs has full rank at these rows; otherwise a continuum of
networks gives the same outputs there.
"""

import argparse
import time
import warnings
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch
from _resumable import RESULTS, run_resumable
from joblib import delayed
from sklearn.datasets import load_diabetes, load_digits, load_linnerud
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import scale

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import ACTIVATIONS, get_activation
from sklearn_ec._core.coordinates import standardize
from sklearn_ec._core.records import Network
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._solvers.jacobian import Linearization
from sklearn_ec.datasets import (
    DEEP_SIZES,
    RecoveryProblem,
    Teacher,
    _all_kinks_show,
    load_deep_suite,
    load_reference_suite,
    make_teacher,
)
from sklearn_ec.metrics import _layers, max_cosine_distance

EXACT = 1e-10
SUITES = ("reference", "rough", "deep", "deepest", "deep_rough", "deep_undrawn", "mlp")
DEEPEST_SIZES = ((6, 5, 4, 4, 3, 1),)
ROUGH_SIZES = ((5, 4, 4, 1), (4, 6, 4, 2), (6, 5, 4, 3, 1), (8, 8, 8, 2))
RANK_TOLERANCE = 1e-13


def make_problems(suite, activation, n_seeds, rho, widths):
    if suite == "mlp":
        seeds = range(n_seeds)
        return [problem for seed in seeds for problem in mlp_problems(activation, seed, widths)]
    if suite == "deep":
        return load_deep_suite(activation, n_seeds=n_seeds)
    if suite == "deepest":
        return load_deep_suite(activation, sizes=DEEPEST_SIZES, n_seeds=n_seeds)
    if suite == "deep_undrawn":
        shapes, seeds = DEEP_SIZES, range(n_seeds)
        return [undrawn_problem(activation, shape, seed) for shape in shapes for seed in seeds]
    if suite == "deep_rough":
        shapes, seeds = ROUGH_SIZES, range(n_seeds)
        return [rough_deep_problem(activation, shape, seed) for shape in shapes for seed in seeds]
    return load_reference_suite(activation, family=suite, n_seeds=n_seeds, rho=rho)


def undrawn_problem(activation, shape, seed):
    """A problem of the deep suite, its teacher as drawn first: neurons may be dead or linear."""
    rng = np.random.RandomState(np.array([*shape, seed]))
    n_rows = len(load_deep_suite(activation, sizes=(shape,), n_seeds=1)[0].X)
    X = rng.uniform(-(3**0.5), 3**0.5, size=(n_rows, shape[0]))
    teacher = make_teacher(
        shape[0], shape[1:-1], shape[-1], activation, family="deep", random_state=rng
    )
    name = f"deep_undrawn-{activation}-{'-'.join(map(str, shape))}-s{seed}"
    return RecoveryProblem(name, teacher, X, teacher.predict(X))


def rough_deep_problem(activation, shape, seed, n_rows=4000):
    """A deep teacher with weights of length 1 to 2 and 4000 Gaussian rows.

    It is drawn anew until each neuron is active, and inactive, on 2 % of the rows, and the rows
    determine it.
    """
    rng = np.random.RandomState(np.array([*shape, seed, 1]))
    X = rng.normal(size=(n_rows, shape[0]))
    name = f"deep_rough-{activation}-{'-'.join(map(str, shape))}-s{seed}"
    while True:
        weights, biases = [], []
        for fan_in, width in zip(shape[:-1], shape[1:], strict=True):
            directions = rng.normal(size=(fan_in, width))
            lengths = rng.uniform(1.0, 2.0, size=width)
            weights.append(lengths * directions / np.linalg.norm(directions, axis=0))
            biases.append(rng.uniform(-1.0, 1.0, size=width))
        teacher = Teacher(weights, biases, activation)
        problem = RecoveryProblem(name, teacher, X, teacher.predict(X))
        shows = not get_activation(activation).homogeneous or _all_kinks_show(teacher, X)
        if shows and is_determined(problem, activation):
            return problem


def mlp_problems(activation, seed, widths):
    """MLPRegressors trained on real data, probed at their training rows.

    Columns are standardized. Pixels of the digits that are lit in less than a tenth of the rows are
    dropped, constant ones among them: with a pixel that is lit in a single row, 12 neurons have 12
    weights and 10 equations, and a ReLU neuron that is inactive on the few rows of a pixel has no
    equation for its weight.
    """
    loaders = {"diabetes": load_diabetes, "digits": load_digits, "linnerud": load_linnerud}
    problems = []
    for data, load in loaders.items():
        X, y = load(return_X_y=True)
        X = scale(X[:, (X != 0).mean(axis=0) >= 0.1])
        y = np.eye(10)[y] if data == "digits" else scale(y)
        for width in widths:
            mlp = MLPRegressor(
                hidden_layer_sizes=(width,), activation=activation, max_iter=2000, random_state=seed
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                mlp.fit(X, y)
            outputs = mlp.predict(X)
            n_parameters = sum(w.size for w in mlp.coefs_ + mlp.intercepts_)
            if outputs.size >= 4 * n_parameters:
                mlp.activation_, mlp.layer_sizes_ = activation, (width,)
                name = f"mlp-{activation}-{data}-r{width}-s{seed}"
                problems.append(RecoveryProblem(name, mlp, X, outputs))
    return problems


def fit(problem, activation, options):
    """The model fitted to a problem, and how many seconds that took."""
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    model = ExpandClusterRegressor(
        options["rho"],
        hidden_layer_sizes="auto" if options["auto"] else problem.teacher.layer_sizes_,
        activation=activation,
        n_students=options["n_students"],
        solver=options["solver"],
        max_iter=options["max_iter"],
        random_state=0,
    )
    if options["exhaustive"]:
        training = replace(
            model._settings.training,
            converged_share=np.inf,
            first_question_epoch=np.inf,
        )
        search = replace(model._settings.search, brief_steps=options["max_iter"])
        model._settings = replace(model._settings, training=training, search=search)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(problem.X, problem.y)
    return model, time.perf_counter() - start


def recover(problem, activation, options):
    model, seconds = fit(problem, activation, options)
    sizes = problem.teacher.layer_sizes_
    distance = max_cosine_distance(problem.teacher, model, activation)
    return {
        "name": problem.name,
        "sizes": sizes,
        "recovered_sizes": model.layer_sizes_,
        "exact": bool(model.layer_sizes_ == sizes and distance <= EXACT),
        "distance": distance,
        "determined": is_determined(problem, activation),
        "loss": model.loss_,
        "new_error": new_error(problem, model),
        "origin": model.origin_,
        "n_students": len(model.student_losses_),
        "recovered": model.recovered_,
        "reason": model.certificate_.reason,
        "weight_error": float(model.certificate_.weight_error),
        "isolation": float(model.certificate_.isolation),
        "n_agreeing": model.n_agreeing_,
        "kept_clusters": [len(record.cut_heights) for record in model.dendrogram_],
        "converged_share": float(np.mean(model.student_losses_ <= model.tol)),
        "converged_students": int(np.sum(model.student_losses_ <= model.tol)),
        "best_student": float(np.nanmin(model.student_losses_)),
        "n_iter": model.n_iter_,
        "seconds": seconds,
    }


def new_error(problem, model):
    """Largest error on rows of shuffled columns, in standard deviations of y."""
    X = np.random.default_rng(1).permuted(problem.X, axis=0)
    y = problem.teacher.predict(X).reshape(len(X), -1)
    errors = np.abs(model.predict(X).reshape(len(X), -1) - y)
    return float((errors / problem.y.std(axis=0)).max())


def is_determined(problem, activation):
    """Whether the Jacobian of the teacher has full rank at the rows."""
    smallest, largest = singular_values(problem, activation)[[-1, 0]]
    return bool(smallest > RANK_TOLERANCE * largest)


def singular_values(problem, activation):
    """Singular values of the teacher's own Jacobian at all rows, in decreasing order."""
    y = problem.y.reshape(len(problem.y), -1)
    rows, coordinates = standardize(problem.X, y, np.ones(len(y)))
    weights, biases = _layers(problem.teacher)
    weights, biases = list(weights), list(biases)
    biases[0] = biases[0] + coordinates.x_mean @ weights[0]
    weights[0] = coordinates.x_scale[:, None] * weights[0]
    if coordinates.basis is not None:
        weights[0] = coordinates.basis.T @ weights[0]
    weights[-1] = weights[-1] / coordinates.y_scale
    biases[-1] = (biases[-1] - coordinates.y_mean) / coordinates.y_scale
    layers = zip(weights, biases, strict=True)
    network = Network(tuple(np.column_stack([w.T, b]) for w, b in layers))
    trainer = Polisher(rows, rows, activation, "cpu", has_skip=False)
    return Linearization(trainer.task, network).singular_values.numpy()


def run(problems, activation, options, path, jobs):
    tasks = {problem.name: delayed(recover)(problem, activation, options) for problem in problems}
    results = {}
    for result in run_resumable(tasks, path, jobs):
        results[result["name"]] = result
        verdict = "exact" if result["exact"] else "MISSED"
        reason = result["reason"]
        if not result["determined"]:
            reason = f"the data do not determine the teacher; {reason}"
        sizes = "-".join(map(str, result["recovered_sizes"]))
        print(
            f"{len(results):4d}/{len(tasks)} {result['name']:32s} {verdict:6s} "
            f"{sizes:>5s} distance {result['distance']:.0e} "
            f"loss {result['loss']:.0e} {result['seconds']:6.1f} s  {reason}",
            flush=True,
        )
    return [results[name] for name in tasks]


def print_table(results):
    """Results by cell, by activation where there are several, and in total."""
    print(
        f"\n{'cell':32s} exact  determined  flag right  students at zero  worst distance"
        "  worst loss  mean seconds"
    )
    for name, rows in grouped(results, lambda name: name.rsplit("-s", 1)[0]):
        print(_row(name, rows))
    activations = grouped(results, lambda name: name.split("-")[1])
    for name, rows in activations if len(activations) > 1 else []:
        print(_row(name, rows))
    print(_row("total", results))


def grouped(results, key):
    groups = defaultdict(list)
    for result in results:
        groups[key(result["name"])].append(result)
    return list(groups.items())


def _row(name, rows):
    exact = [row["exact"] for row in rows]
    determined = sum(row["determined"] for row in rows)
    right = sum(row["exact"] == row["recovered"] for row in rows)
    return (
        f"{name:32s} {sum(exact):2d}/{len(rows):<3d} {determined:7d} {right:9d}/{len(rows):<4d}"
        f" {np.mean([row['converged_share'] for row in rows]):15.0%}"
        f" {max(row['distance'] for row in rows):12.0e} {max(row['loss'] for row in rows):12.0e}"
        f" {np.mean([row['seconds'] for row in rows]):10.1f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=[*SUITES], default="reference")
    parser.add_argument("--activation", choices=[*ACTIVATIONS, "all"], default="g")
    parser.add_argument("--seeds", type=int, default=10, help="teachers per cell")
    parser.add_argument("--inputs", type=int, nargs="+", help="only cells with so many inputs")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[4, 6, 8, 12], help="of the suite mlp"
    )
    parser.add_argument("--jobs", type=int, default=1, help="teachers at a time")
    parser.add_argument("--threads", type=int, help="torch threads per job")
    parser.add_argument("--rho", type=float, default=4)
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument(
        "--solver", choices=["auto", "levenberg", "matrix_free", "adam"], default="auto"
    )
    parser.add_argument("--max-iter", type=int, default=300)
    parser.add_argument("--exhaustive", action="store_true", help="train all students to the end")
    parser.add_argument("--auto", action="store_true", help="do not give the width")
    arguments = parser.parse_args()
    options = {
        "rho": arguments.rho,
        "auto": arguments.auto,
        "n_students": arguments.students,
        "solver": arguments.solver,
        "max_iter": arguments.max_iter,
        "exhaustive": arguments.exhaustive,
        "threads": arguments.threads or (1 if arguments.jobs > 1 else None),
    }
    names = list(ACTIVATIONS) if arguments.activation == "all" else [arguments.activation]
    start, results = time.perf_counter(), []
    for activation in names:
        problems = make_problems(arguments.suite, activation, arguments.seeds, 4, arguments.widths)
        if arguments.inputs:
            problems = [p for p in problems if p.X.shape[1] in arguments.inputs]
        size = "auto" if arguments.auto else "given"
        stem = f"{arguments.suite}-{activation}-rho{arguments.rho:g}-{size}-n{arguments.students}"
        stem += f"-{arguments.solver}-{arguments.max_iter}" + "-exhaustive" * arguments.exhaustive
        path = RESULTS / f"{stem}.jsonl"
        results += run(problems, activation, options, path, arguments.jobs)
    print_table(results)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
