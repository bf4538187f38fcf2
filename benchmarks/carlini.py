"""Recover the ReLU networks of Carlini, Jagielski and Mironov (CRYPTO 2020, table 1).

    python benchmarks/carlini.py
    python benchmarks/carlini.py --networks 10-20-20-1 --rho 1.5
    python benchmarks/carlini.py --networks 784-32-1 --activation tanh

They choose their queries one after the other; here Gaussian inputs are drawn once. As there, the
weights are random, N(0, 1) over the root of the number of inputs, without biases, and then trained
for 500 steps of Adam (rate 3e-4, batches of 4) on 20 Gaussian points with random labels 0 and 1.
Errors are the largest on 20,000 new Gaussian inputs, relative to the largest output there, as
powers of two. With another ``--activation``, the same weights. Results go to
benchmarks/results/carlini.jsonl; networks found there are not recovered again.
"""

import argparse
import math
import time
import warnings

import numpy as np
import torch
from _resumable import RESULTS, run_resumable
from joblib import delayed
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import Teacher
from sklearn_ec.metrics import max_cosine_distance

# Architecture: queries of theirs and their largest error (log2), rows and expansion factor here.
NETWORKS = {
    "10-10-10-1": (16.0, -38.0, 8_000, 2.0),
    "10-20-20-1": (17.1, -38.7, 16_000, 1.5),
    "40-20-10-10-1": (17.8, -23.4, 60_000, 1.5),
    "80-40-20-1": (18.5, -40.4, 100_000, 1.5),
    "784-32-1": (19.2, -27.4, 300_000, 1.5),
    "784-128-1": (21.5, -24.7, 600_000, 1.5),
}
SMALL = list(NETWORKS)[:3]
N_NEW = 20_000


def make_network(sizes, seed, activation="relu"):
    """A nearly random network, trained for a moment on random labels."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        layer = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        layer.weight.data.normal_(generator=generator).div_(fan_in**0.5)
        layer.bias.data.zero_()
        layers += [layer, nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    points = torch.randn(20, sizes[0], generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (20, 1), generator=generator).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    for _ in range(500):
        rows = torch.randint(20, (4,), generator=generator)
        optimizer.zero_grad()
        (module(points[rows]) - labels[rows]).square().mean().backward()
        optimizer.step()
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().numpy().T for layer in linear]
    return Teacher(weights, [layer.bias.detach().numpy() for layer in linear], activation)


def recover(name, seed, rows, activation, options):
    sizes = tuple(map(int, name.split("-")))
    network = make_network(sizes, seed, activation)
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, sizes[0]))
    model = ExpandClusterRegressor(
        hidden_layer_sizes=sizes[1:-1], activation=activation, random_state=0, **options
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, network.predict(X))
    seconds = time.perf_counter() - start
    new = rng.normal(size=(N_NEW, sizes[0]))
    outputs = network.predict(new)
    error = np.abs(model.predict(new) - outputs).max() / np.abs(outputs).max()
    is_exact = model.layer_sizes_ == network.layer_sizes_
    return {
        "name": task_name(name, seed, activation),
        "rows": rows,
        "log2_rows": math.log2(rows),
        "widths": model.layer_sizes_,
        "certified": model.recovered_,
        "reason": model.certificate_.reason,
        "log2_error": math.log2(max(error, 2.0**-60)),
        "distance": max_cosine_distance(network, model, activation) if is_exact else None,
        "origin": model.origin_,
        "n_students": len(model.student_losses_),
        "best_student": float(np.nanmin(model.student_losses_)),
        "seconds": seconds,
    }


def task_name(name, seed, activation):
    return f"{name}-s{seed}" + ("" if activation == "relu" else f"-{activation}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=SMALL)
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--seeds", type=int, default=1, help="networks of each architecture")
    parser.add_argument("--rho", type=float, help="expansion factor")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    tasks = {}
    for name in arguments.networks:
        *_, rows, rho = NETWORKS[name]
        options = {
            "rho": arguments.rho or rho,
            "n_students": arguments.students,
            "verbose": arguments.verbose,
        }
        for seed in range(arguments.seeds):
            recovery = delayed(recover)(
                name, seed, arguments.rows or rows, arguments.activation, options
            )
            tasks[task_name(name, seed, arguments.activation)] = recovery
    print("network           rows    theirs  certified  error    theirs  seconds  widths")
    for result in run_resumable(tasks, RESULTS / "carlini.jsonl", jobs=1):
        queries, their_error, *_ = NETWORKS[result["name"].rsplit("-s", 1)[0]]
        print(
            f"{result['name']:16s} 2^{result['log2_rows']:.1f}  2^{queries:.1f}  "
            f"{result['certified']!s:9s}  2^{result['log2_error']:.1f}  2^{their_error:.1f}  "
            f"{result['seconds']:7.1f}  {result['widths']}  {result['reason']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
