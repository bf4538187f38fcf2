"""Recover networks trained on MNIST from their logits; print exactness, time, memory and rate.

    python benchmarks/mnist.py --data mnist --width 8 --activation tanh relu --rows 10000
    python benchmarks/mnist.py --width 64 --activation g tanh logistic softplus relu --device cuda

The images come from the four IDX files (gzipped or not) in the folder ``--data``, from OpenML
without it. A teacher, 784-width-10, is trained with Adam and cross-entropy on all 60,000 images,
and recovered from its logits on the first ``--rows`` of them. Teachers and students are kept in
``--cache``: an interrupted run goes on where it stopped.

Some pixels are lit in few images or none, and what no image tells about a neuron no method can
tell: its weights of pixels that are lit only where it is saturated or switched off, and, where
there are more neurons than outputs, those of pixels lit in a single image, which gives fewer
equations than unknowns. So cosine distances are taken of vectors projected on the row space of the
images, and of vectors projected on what the images determine of that neuron, without its ``open``
directions: right singular vectors of its inputs, times the slope of its activation, whose singular
values are below 1e-8 of the largest. With more neurons than outputs, and up to 15,000 weights, they
are those of the changes of all incoming weights together, at fixed outgoing ones, and the limit is
1e-7: the Gram matrix of that Jacobian does not tell smaller singular values.

``rate`` is that of a product with the Gauss-Newton matrix, the work of a matrix-free step, next to
that of a large matrix product on the same device.
"""

import argparse
import gzip
import json
import math
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import fetch_openml
from sklearn.exceptions import ConvergenceWarning

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.settings import ConjugateGradients
from sklearn_ec._fit import Fit
from sklearn_ec._solvers.matrix_free import MatrixFreeEquations

N_CLASSES = 10
TEACHER_EPOCHS = 15
TEACHER_BATCH = 256
TEACHER_LEARNING_RATE = 3e-3
PIXEL_MEAN, PIXEL_SCALE = 0.1307, 0.3081  # as usual for MNIST
OPEN, JOINTLY_OPEN = 1e-8, 1e-7
MIN_SHARE = 1e-6  # of a joint change of unit length that makes a neuron's part of it open
MAX_JOINT_WEIGHTS = 15_000
ROW_SPACE = 1e-10


def read_idx(path):
    """Array in an IDX file, gzipped or not."""
    packed = path.with_name(path.name + ".gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    n_axes = content[3]
    shape = np.frombuffer(content, ">i4", count=n_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def load_images(folder):
    """Training and test images, one row of 784 values in [0, 1] each, and their labels."""
    if folder is None:
        images, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False)
        images, labels = images / 255.0, labels.astype(int)
        return images[:60_000], labels[:60_000], images[60_000:], labels[60_000:]
    parts = []
    for name in ("train", "t10k"):
        images = read_idx(folder / f"{name}-images-idx3-ubyte")
        parts += [images.reshape(len(images), -1) / 255.0]
        parts += [read_idx(folder / f"{name}-labels-idx1-ubyte").astype(int)]
    return tuple(parts)


def train_teacher(width, activation, images, labels, device):
    """Weights and biases of both layers, trained with Adam and a one-cycle learning rate.

    It sees normalized pixels; the normalization is folded into the first layer.
    """
    torch.manual_seed(0)
    X = torch.tensor((images - PIXEL_MEAN) / PIXEL_SCALE, dtype=torch.float32, device=device)
    y = torch.tensor(labels, device=device)
    hidden = torch.nn.Linear(X.shape[1], width).to(device)
    readout = torch.nn.Linear(width, N_CLASSES).to(device)
    function = get_activation(activation).tensor_function
    parameters = [*hidden.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=TEACHER_LEARNING_RATE)
    n_steps = TEACHER_EPOCHS * len(X) // TEACHER_BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TEACHER_LEARNING_RATE, n_steps)
    for _ in range(n_steps):
        rows = torch.randint(0, len(X), (TEACHER_BATCH,), device=device)
        logits = readout(function(hidden(X[rows])))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, y[rows]).backward()
        optimizer.step()
        schedule.step()
    incoming, biases, outgoing, offsets = [p.detach().double().cpu().numpy() for p in parameters]
    weights = incoming.T / PIXEL_SCALE
    biases = biases - PIXEL_MEAN * weights.sum(axis=0)
    return {"W": weights, "b": biases, "A": outgoing.T, "c": offsets}


def load_teacher(args, activation, images, labels):
    path = args.cache / f"teacher-{activation}-{args.width}.npz"
    if not path.exists():
        args.cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, **train_teacher(args.width, activation, images, labels, args.device))
    return dict(np.load(path))


def logits(teacher, activation, X):
    return activation.function(X @ teacher["W"] + teacher["b"]) @ teacher["A"] + teacher["c"]


def split_directions(X, threshold):
    """Right singular vectors, as rows: above a share of the largest singular value, and below."""
    _, values, right = np.linalg.svd(np.linalg.qr(X, mode="r"))
    return np.split(right, [np.count_nonzero(values > threshold * values[0])])


def open_directions(inputs, slopes, outgoing):
    """Orthonormal bases, for each neuron, of what the outputs do not tell about its vector."""
    n_neurons, size = slopes.shape[1], inputs.shape[1]
    if n_neurons <= N_CLASSES or n_neurons * size > MAX_JOINT_WEIGHTS:
        return [split_directions(inputs * slope[:, None], OPEN)[1].T for slope in slopes.T]
    columns = (slopes[:, :, None] * inputs[:, None]).reshape(len(inputs), -1)
    gram = (columns.T @ columns).reshape(n_neurons, size, n_neurons, size)
    gram *= (outgoing @ outgoing.T)[:, None, :, None]
    values, changes = np.linalg.eigh(gram.reshape(n_neurons * size, -1))
    changes = changes[:, values < JOINTLY_OPEN**2 * values[-1]].reshape(n_neurons, size, -1)
    parts = [np.linalg.svd(change, full_matrices=False)[:2] for change in changes]
    return [left[:, shares > MIN_SHARE] for left, shares in parts]


def compare(teacher, model, X):
    """Cosine distances of matched vectors in the row space, in what is determined, and open."""
    inputs = np.hstack([X, np.ones((len(X), 1))])
    row_space, _ = split_directions(inputs, ROW_SPACE)
    inputs = inputs @ row_space.T
    true = np.vstack([teacher["W"], teacher["b"]]).T @ row_space.T
    found = np.vstack([model.weights_[0], model.biases_[0]]).T @ row_space.T
    activation = get_activation(model.activation_)
    z = torch.from_numpy(inputs @ true.T)
    slopes = activation.tensor_derivative(z, activation.tensor_function(z)).numpy()
    undetermined = open_directions(inputs, slopes, teacher["A"])
    within, determined = [], []
    for neuron, other in match(true, found, activation.has_sign_flip):
        u, v, basis = true[neuron], found[other], undetermined[neuron]
        within.append(cosine_distance(u, v, activation))
        u, v = (vector - basis @ (basis.T @ vector) for vector in (u, v))
        determined.append(cosine_distance(u, v, activation))
    return within, determined, sum(basis.shape[1] for basis in undetermined)


def match(true, found, has_sign_flip):
    cosines = unit(true) @ unit(found).T
    return zip(*linear_sum_assignment(-np.abs(cosines) if has_sign_flip else -cosines), strict=True)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def cosine_distance(u, v, activation):
    """One minus the cosine, from the chord, accurate where it is tiny."""
    u, v = unit(u), unit(v)
    if activation.has_sign_flip and u @ v < 0:
        v = -v
    return float(((u - v) ** 2).sum() / 2)


def relative_rmse(model, teacher, X):
    y = logits(teacher, get_activation(model.activation_), X)
    return float(np.sqrt(np.mean((model.predict(X) - y) ** 2) / np.mean((y - y.mean(axis=0)) ** 2)))


def best_seconds(function, device, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_rate(model, n_students):
    """GFLOP/s of a Gauss-Newton product of all students, and of a matrix product, in float64."""
    with Fit(model) as run:
        run.resume(model._problem, model._trained, model.search_report_)
        task = run.finisher(model.activation_).polisher.task
    device, students = task.inputs.device, model._trained.ensemble.students.layers
    layers = tuple(torch.from_numpy(layer[:n_students]).to(device) for layer in students)
    equations = MatrixFreeEquations.assemble(task, layers, (), ConjugateGradients())
    hidden = layers[:-1]

    def product():
        equations.hidden_gradient(equations.hidden_change(hidden))

    n_flops = 4 * len(task.inputs) * sum(layer.numel() for layer in hidden)
    products = n_flops / best_seconds(product, device)
    square = torch.randn(4096, 4096, dtype=torch.float64, device=device)
    return products / 1e9, 2 * 4096**3 / best_seconds(lambda: square @ square, device) / 1e9


def recover(args, activation, images, labels, test_images):
    teacher = load_teacher(args, activation, images, labels)
    X = images[: args.rows]
    y = logits(teacher, get_activation(activation), X)
    model = ExpandClusterRegressor(
        hidden_layer_sizes=(args.width,),
        rho=args.rho,
        activation=activation,
        n_students=args.students,
        device=args.device,
        solver=args.solver,
        memory=args.cache / "students" if args.resume else None,
        working_memory=args.working_memory or None,
        random_state=0,
        verbose=args.verbose,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    seconds = time.perf_counter() - start
    width = model.layer_sizes_[0]
    result = {
        "teacher": f"784-{args.width}-10 {activation}, {args.rows} images",
        "activation": activation,
        "width": args.width,
        "students": math.ceil(args.rho * args.width),  # neurons of each
        "found": width,
        "excess": width - args.width,
        "loss": model.loss_,
        "recovered": model.recovered_,
        "rmse": relative_rmse(model, teacher, X),
        "rmse, logits": float(np.sqrt(np.mean((model.predict(X) - y) ** 2))),
        "rmse, test images": relative_rmse(model, teacher, test_images),
        "seconds": seconds,
        "seconds of training": model.search_report_[0]["seconds"],
        "peak GiB": peak_gib(args.device),
    }
    within, determined, n_open = compare(teacher, model, X)
    result["cosine, row space, worst"] = max(within)
    result["cosine, determined, worst"] = max(determined)
    result["cosine, determined, median"] = float(np.median(determined))
    result["open"] = n_open
    result["rate, GFLOP/s"], result["matrix product, GFLOP/s"] = measure_rate(model, args.students)
    return result


def peak_gib(device):
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the IDX files")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "results" / "mnist")
    parser.add_argument("--activation", nargs="+", default=["tanh"])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rho", type=float, default=2)
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--solver", default="auto")
    parser.add_argument("--working-memory", type=float, default=2048, help="MiB; 0: default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--resume", action="store_true", help="keep the students in the cache")
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images, labels, test_images, _ = load_images(args.data)
    for activation in args.activation:
        result = recover(args, activation, images, labels, test_images)
        for name, value in result.items():
            print(f"{name:28} {value:.3g}" if isinstance(value, float) else f"{name:28} {value}")
        print(flush=True)
        with (args.cache / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
