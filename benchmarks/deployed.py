"""Recover networks that are at work somewhere, from their outputs on random inputs.

    python benchmarks/deployed.py FOLDER
    python benchmarks/deployed.py FOLDER --networks h2o-H --rho 1.5 --rows 10000

A network is a file ``NAME.npz`` of the folder with arrays ``W0, b0, W1, b1, ...`` (``h = s(h @ W +
b)``, the last layer linear), ``activation``, and ``low`` and ``high``, the box from which inputs
are drawn uniformly. None of them comes with this project.

Printed are the widths that were found, the verdict, the worst one-to-one cosine distance between
the incoming vectors of both networks, and the ratio of the smallest to the largest singular value
of the network's own Jacobian at these rows (all inputs, outputs and columns in units of their
spread): below about 1e-8 the rows do not determine it. Results go to
benchmarks/results/deployed.jsonl; networks found there are not recovered again.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from _resumable import RESULTS, run_resumable
from joblib import delayed
from sklearn.exceptions import ConvergenceWarning

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.coordinates import prepare
from sklearn_ec._core.records import Network
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._solvers.jacobian import Linearization
from sklearn_ec.datasets import Teacher
from sklearn_ec.metrics import max_cosine_distance


def load_network(path):
    """The network of a file, and the corners of the box of its inputs."""
    with np.load(path) as data:
        n_layers = sum(name.startswith("W") for name in data.files)
        weights = [data[f"W{layer}"].astype(float) for layer in range(n_layers)]
        biases = [data[f"b{layer}"].astype(float).ravel() for layer in range(n_layers)]
        return Teacher(weights, biases, str(data["activation"])), data["low"], data["high"]


def smallest_singular_value(network, X, y):
    """Of the Jacobian of its outputs at these rows, as a share of the largest one."""
    problem = prepare(X, y, np.ones(len(X)), np.random.default_rng(0))
    layers = [
        np.vstack([weights, biases]).T
        for weights, biases in zip(network.weights_, network.biases_, strict=True)
    ]
    first, last = layers[0], layers[-1]
    first[:, -1] += first[:, :-1] @ X.mean(axis=0)
    first[:, :-1] *= X.std(axis=0)
    last /= y.std(axis=0)[:, None]
    polisher = Polisher(problem.train, problem.held_out, network.activation, "cpu", False)
    values = Linearization(polisher.task, Network(tuple(layers))).singular_values
    return float(values[-1] / values[0])


def recover(path, rows, options):
    network, low, high = load_network(path)
    rng = np.random.default_rng(0)
    X = rng.uniform(low, high, size=(rows, len(low)))
    y = network.predict(X).reshape(rows, -1)
    model = ExpandClusterRegressor(
        hidden_layer_sizes=network.layer_sizes_,
        activation=network.activation,
        random_state=0,
        **options,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    seconds = time.perf_counter() - start
    is_exact = model.layer_sizes_ == network.layer_sizes_
    return {
        "name": path.stem,
        "sizes": [X.shape[1], *network.layer_sizes_, y.shape[1]],
        "activation": network.activation,
        "rows": rows,
        "widths": model.layer_sizes_,
        "certified": model.recovered_,
        "reason": model.certificate_.reason,
        "error": model.certificate_.error,
        "distance": max_cosine_distance(network, model, network.activation) if is_exact else None,
        "singular_value": smallest_singular_value(network, X, y),
        "origin": model.origin_,
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", help="names of files, without .npz; default all")
    parser.add_argument("--rho", type=float, default=1.5, help="expansion factor")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    paths = sorted(arguments.folder.glob("*.npz"))
    if arguments.networks:
        paths = [path for path in paths if path.stem in arguments.networks]
    options = {
        "rho": arguments.rho,
        "n_students": arguments.students,
        "verbose": arguments.verbose,
    }
    tasks = {path.stem: delayed(recover)(path, arguments.rows, options) for path in paths}
    print("network          certified  distance  smallest  seconds  widths")
    for result in run_resumable(tasks, RESULTS / "deployed.jsonl", jobs=1):
        distance = "-" if result["distance"] is None else f"{result['distance']:.1e}"
        print(
            f"{result['name']:16s} {result['certified']!s:9s}  {distance:8s}  "
            f"{result['singular_value']:.1e}  {result['seconds']:7.1f}  "
            f"{result['widths']} of {result['sizes']}  {result['reason']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
