"""Extract networks over images: MNIST, the digits of scikit-learn, ART's own victim.

    python benchmarks/image_queries.py mnist --data mnist
    python benchmarks/image_queries.py digits
    python benchmarks/image_queries.py art --data mnist

``mnist``: a network 784-8-10 trained on MNIST, with the first images as example inputs. Images
leave the weights of pixels open that are lit in none or few of them; the queries that follow close
them, so that the network is certified on all inputs.

``digits``: an ``MLPRegressor`` of 6 tanh neurons trained on the digits of scikit-learn, from
twenty of its images and a budget of queries: images with noise around them, with biased noise,
composed of each other, and with columns drawn anew.

``art``: a network 784-4-10 of ReLU neurons in float32, the victim of ART's own test, by the attack
here, which asks the first images with noise on them, and by ART's
``FunctionallyEquivalentExtraction``: queries, seconds and the largest error of the logits on 1,000
test images, relative to their largest.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _resumable import RESULTS
from mnist import load_images, train_teacher
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import Teacher
from sklearn_ec.extraction import BiasedNoise, ColumnBootstrap, Composition, extract
from sklearn_ec.metrics import max_cosine_distance, relative_rmse

N_ROWS = 20  # of the digits


def make_victim(folder, width, activation, cache):
    """A network trained on MNIST, and its images."""
    images, labels, *_ = load_images(folder)
    path = cache / f"teacher-{activation}-{width}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, **train_teacher(width, activation, images, labels, "cpu"))
    parts = np.load(path)
    return Teacher([parts["W"], parts["A"]], [parts["b"], parts["c"]], activation), images


def run_mnist(arguments):
    victim, images = make_victim(arguments.data, 8, arguments.activation, arguments.cache)
    known = ExpandClusterRegressor(
        hidden_layer_sizes=8, activation=arguments.activation, rho=2, random_state=0
    )
    start = time.perf_counter()
    found = extract(victim.predict, images[:10_000], estimator=known, random_state=0, verbose=1)
    print(found)
    noise = np.random.default_rng(1).uniform(size=(1000, images.shape[1]))
    for name, X in (("images", images[-1000:]), ("noise", noise)):
        error = relative_rmse(victim.predict(X), found.estimator.predict(X))
        print(f"relative error on {name}: {error:.1e}")
    if found.estimator.layer_sizes_ == (8,):
        distance = max_cosine_distance(victim, found.estimator, arguments.activation)
        print(f"worst cosine distance: {distance:.1e}")
    print(f"certified: {found.recovered}, {time.perf_counter() - start:.0f} s")


class Noise:
    """Example rows with normal noise around them."""

    def __init__(self, rows, scale):
        self.rows, self.scale = rows, scale

    def __call__(self, rng, n):
        rows = self.rows[rng.integers(len(self.rows), size=n)]
        return rows + self.scale * rng.normal(size=rows.shape)


def run_digits(arguments):
    X, target = load_digits(return_X_y=True)
    X = X / 16.0
    victim = MLPRegressor(
        hidden_layer_sizes=6, activation="tanh", max_iter=300, random_state=0
    ).fit(X, np.eye(10)[target])
    rows = X[np.random.default_rng(0).permutation(len(X))[:N_ROWS]]
    spread = float(np.sqrt(rows.var(axis=0).mean()))
    designs = {
        "noise": Noise(rows, spread / 2),
        "biased noise": BiasedNoise(rows),
        "composition": Composition(rows, (8, 8)),
        "composition + biased noise": BiasedNoise(Composition(rows, (8, 8))(rng(), 1000)),
        "columns drawn anew": ColumnBootstrap(rows),
        "example rows alone": rows,
    }
    new = X[-500:]
    print("inputs                        queries  widths  certified  error on digits  seconds")
    for name, inputs in designs.items():
        known = ExpandClusterRegressor(hidden_layer_sizes=6, activation="tanh", random_state=0)
        start = time.perf_counter()
        found = extract(
            victim.predict,
            inputs,
            estimator=known,
            max_queries=arguments.budget,
            random_state=0,
        )
        error = relative_rmse(victim.predict(new), found.estimator.predict(new))
        print(
            f"{name:28s}  {found.n_queries:7d}  {found.estimator.layer_sizes_!s:6s}  "
            f"{found.recovered!s:9s}  {error:15.1e}  {time.perf_counter() - start:7.1f}",
            flush=True,
        )


def rng():
    return np.random.default_rng(0)


def run_art(arguments):
    from art.attacks.extraction import FunctionallyEquivalentExtraction
    from art.estimators.classification import PyTorchClassifier

    from sklearn_ec.extraction.art import ExpandClusterExtraction

    network, images = make_victim(arguments.data, 4, "relu", arguments.cache)
    hidden, readout = torch.nn.Linear(784, 4), torch.nn.Linear(4, 10)
    with torch.no_grad():
        for layer, weights, biases in zip(
            (hidden, readout), network.weights_, network.biases_, strict=True
        ):
            layer.weight.copy_(torch.from_numpy(weights.T))
            layer.bias.copy_(torch.from_numpy(biases))
    module = torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.ReLU(), readout)
    test = images[-1000:].astype(np.float32)

    class Counting(PyTorchClassifier):
        n_asked = 0

        def predict(self, x, *args, **kwargs):
            type(self).n_asked += len(x)
            return super().predict(x.astype(np.float32), *args, **kwargs)  # ART asks in float64

    def victim():
        Counting.n_asked = 0
        return Counting(module, torch.nn.CrossEntropyLoss(), input_shape=(784,), nb_classes=10)

    known = ExpandClusterRegressor(hidden_layer_sizes=4, rho=2, random_state=0)
    rows = images[: arguments.rows]
    noise = Noise(rows, float(np.sqrt(rows.var(axis=0).mean())) / 2)
    attacks = {
        "ExpandClusterExtraction": lambda v: ExpandClusterExtraction(
            v, known=known, inputs=noise, random_state=0
        ),
        "FunctionallyEquivalentExtraction": lambda v: FunctionallyEquivalentExtraction(
            v, num_neurons=4
        ),
    }
    logits = victim().predict(test)
    for name, make in attacks.items():
        classifier, start = victim(), time.perf_counter()
        np.random.seed(0)  # noqa: NPY002 - ART draws from it
        try:
            thief = make(classifier).extract(rows.astype(np.float32))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}")
            continue
        n_asked, seconds = Counting.n_asked, time.perf_counter() - start
        error = np.abs(thief.predict(test) - logits).max() / np.abs(logits).max()
        agreement = (thief.predict(test).argmax(1) == logits.argmax(1)).mean()
        print(
            f"{name:33s} {n_asked:7d} queries  {seconds:6.1f} s  largest error {error:.1e}  "
            f"same class {agreement:.1%}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["mnist", "digits", "art"])
    parser.add_argument("--data", type=Path, help="folder of the IDX files")
    parser.add_argument("--cache", type=Path, default=RESULTS / "mnist")
    parser.add_argument("--activation", default="tanh")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=2000)
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        {"mnist": run_mnist, "digits": run_digits, "art": run_art}[arguments.part](arguments)


if __name__ == "__main__":
    main()
