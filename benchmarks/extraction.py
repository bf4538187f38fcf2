"""Extract networks from callables, and count the queries.

    python benchmarks/extraction.py
    python benchmarks/extraction.py --activations tanh --shapes 4-4-3-1
    python benchmarks/extraction.py --activations relu --shapes carlini-10-10-10-1

Teachers of one and two hidden layers with up to 600 parameters (see ``make_teacher``, family
"deep"), inputs uniform in [-√3, √3]; widths and activation are known. Teachers with ReLU neurons
are drawn anew until each is active, and inactive, on 2 % of the inputs. Shapes with "carlini" in
front are networks and inputs as in ``carlini.py``. Queries are counted in equations, queries times
outputs, per parameter of the teacher. Results go to benchmarks/results/extraction.jsonl; networks
found there are not extracted again.
"""

import argparse
import time

import numpy as np
from _resumable import RESULTS, run_resumable
from carlini import make_network
from joblib import delayed

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import _all_kinks_show, make_teacher
from sklearn_ec.extraction import Gaussian, Uniform, extract
from sklearn_ec.metrics import max_cosine_distance

SHAPES = (
    *("3-4-1", "5-8-2", "8-10-1", "10-12-5", "16-16-1", "6-20-10", "20-20-3", "30-16-1"),
    *("4-4-3-1", "5-6-4-2", "6-8-6-1", "8-8-8-2", "10-10-10-1", "10-16-8-3", "12-14-14-10"),
)
BOUND = 3**0.5


def make_model(shape, activation):
    rng = np.random.RandomState(np.array([*shape, 0]))
    X = rng.uniform(-BOUND, BOUND, size=(3000, shape[0]))
    while True:
        model = make_teacher(
            shape[0], shape[1:-1], shape[-1], activation, family="deep", random_state=rng
        )
        if activation != "relu" or _all_kinks_show(model, X):
            return model


def run(name, activation, max_equations):
    is_carlinis = name.startswith("carlini-")
    shape = tuple(map(int, name.removeprefix("carlini-").split("-")))
    model = make_network(shape, 0) if is_carlinis else make_model(shape, activation)
    box = Uniform([-BOUND] * shape[0], BOUND)
    inputs = Gaussian(np.zeros(shape[0]), 1.0) if is_carlinis else box
    n_parameters = sum((a + 1) * b for a, b in zip(shape[:-1], shape[1:], strict=True))
    known = ExpandClusterRegressor(
        hidden_layer_sizes=shape[1:-1], activation=activation, random_state=0
    )
    start = time.perf_counter()
    found = extract(
        model.predict,
        inputs,
        estimator=known,
        max_queries=max(10, int(max_equations * n_parameters / shape[-1])),
        random_state=0,
    )
    is_exact = found.estimator.layer_sizes_ == model.layer_sizes_
    return {
        "name": f"{name} {activation}",
        "n_parameters": n_parameters,
        "n_queries": found.n_queries,
        "equations_per_parameter": found.n_queries * shape[-1] / n_parameters,
        "recovered": found.recovered,
        "reason": found.estimator.certificate_.reason,
        "log2_error": largest_error(model, found.estimator, inputs),
        "distance": max_cosine_distance(model, found.estimator, activation) if is_exact else None,
        "rounds": len(found.history),
        "seconds": time.perf_counter() - start,
    }


def largest_error(model, estimator, inputs):
    """On 20,000 new inputs, relative to the largest output, as a power of two."""
    X = inputs(np.random.default_rng(1), 20_000)
    y = model.predict(X)
    error = np.abs(estimator.predict(X) - y).max() / np.abs(y).max()
    return float(np.log2(max(error, 2.0**-60)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--activations", nargs="+", default=["tanh", "relu"])
    parser.add_argument("--max-equations", type=float, default=10.0, help="per parameter")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    arguments = parser.parse_args()
    tasks = {
        f"{shape} {activation}": delayed(run)(shape, activation, arguments.max_equations)
        for activation in arguments.activations
        for shape in arguments.shapes
    }
    print("network                    parameters  queries  per parameter  rounds  certified  error")
    results = []
    for result in run_resumable(tasks, RESULTS / "extraction.jsonl", jobs=arguments.jobs):
        results.append(result)
        print(
            f"{result['name']:25s}  {result['n_parameters']:10d}  {result['n_queries']:7d}  "
            f"{result['equations_per_parameter']:13.1f}  {result['rounds']:6d}  "
            f"{result['recovered']!s:9s}  2^{result['log2_error']:.1f}  {result['seconds']:5.1f}  "
            f"{result['reason']}",
            flush=True,
        )
    shares = [result["equations_per_parameter"] for result in results]
    print(
        f"{sum(r['recovered'] for r in results)} of {len(results)} certified; equations per "
        f"parameter: median {np.median(shares):.1f}, largest {max(shares):.1f}"
    )


if __name__ == "__main__":
    main()
