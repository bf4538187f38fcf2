"""The paper's figures 4 and 5 and its MNIST table, made with this package.

    python benchmarks/paper.py --small
    python benchmarks/paper.py --teachers 1 --jobs 2
    python benchmarks/paper.py --jobs 2
    python benchmarks/paper.py --small --mnist --data mnist

Figure 4: students of one synthetic teacher (4 inputs, 4 neurons, activation g) by expansion factor,
and the network that Expand-and-Cluster makes of each group of them. Figure 5: the same for teachers
of every size. The table: networks trained on MNIST, see ``benchmarks/mnist.py``, whose ``--data``
this takes, too. Students are trained to the end, as those of the paper; the teachers are those of
:func:`sklearn_ec.datasets.load_reference_suite`, since the authors' own were not published.

The table has the results of ``benchmarks/mnist.py``, too. Figures go to ``--output`` as SVG files,
tables to the standard output. Each fit is kept in benchmarks/results: an interrupted run continues
where it stopped.

The published numbers are those of the paper's abstracts and of the caption of its figure 4, and,
of MNIST, those of the script that plots them in the public code of the authors' follow-up (Beiser
et al., 2025), where the RMSE is the root of the loss on the logits. Numbers behind the paper's
figure 5 were not at hand: the abstract of its second version says 80 % of the 150 teachers at an
expansion factor of four.
"""

import argparse
import json
import warnings
from pathlib import Path

import mnist
import numpy as np
from _resumable import RESULTS, run_resumable
from joblib import delayed
from recovery import EXACT, fit
from sklearn.exceptions import ConvergenceWarning

from sklearn_ec.datasets import load_reference_suite
from sklearn_ec.metrics import max_cosine_distance

CONVERGED = 1e-14  # as in the paper
LEAST_LOSS = 1e-32  # what a figure shows of a loss of zero
EXAMPLE = (4, 4)  # inputs and neurons of the teacher of figure 4
N_STUDENTS = {2: 20, 4: 20, 8: 10}  # of a teacher, by its width, as in the paper
COLUMN, PAGE = 3.3, 6.8  # widths of figures, in inches

# Teachers of figure 5: inputs, widths, teachers per cell; and the expansion factors.
SMALL = {"n_inputs": (2, 4, 8), "widths": (2, 4), "n_seeds": 1}
FULL = {"n_inputs": (2, 4, 8, 16, 32), "widths": (2, 4, 8), "n_seeds": 10}
RHOS = (1, 2, 4, 8)

# Converged students of figure 4 at rho=1, from its caption: the larger ones all gave four neurons.
PUBLISHED_AT_RHO_1 = "0 of 20"
# Activation: width of the teacher, of the students, and of the network that was found; RMSE.
PUBLISHED_MNIST = {
    "g": (256, 1024, 258, 1.53e-3),
    "tanh": (128, 512, 133, 1.73e-3),
    "logistic": (256, 1024, 276, 8.73e-4),
    "softplus": (64, 256, 69, 2.97e-3),
    "relu": (64, 256, 72, 8.16e-3),
}
# Teachers that one CPU core recovers within minutes each; those of the paper want a GPU.
SMALL_MNIST = {"width": 8, "rows": 10_000, "activations": ("tanh", "relu")}


def expand_and_cluster(problem, rho):
    """Losses of the students, and what the network is that they gave."""
    options = {
        "rho": rho,
        "auto": False,
        "n_students": N_STUDENTS[problem.teacher.layer_sizes_[0]],
        "solver": "auto",
        "max_iter": 300,
        "exhaustive": True,
        "threads": 1,
    }
    model, seconds = fit(problem, "g", options)
    distance = max_cosine_distance(problem.teacher, model, "g")
    return {
        "name": task_name(problem, rho),
        "n_inputs": problem.X.shape[1],
        "width": problem.teacher.layer_sizes_[0],
        "rho": rho,
        "students": np.nan_to_num(model.student_losses_, nan=1.0).tolist(),
        "found": model.layer_sizes_[0],
        "loss": model.loss_,
        "distance": distance,
        "exact": bool(model.layer_sizes_ == problem.teacher.layer_sizes_ and distance <= EXACT),
        "certified": model.recovered_,
        "seconds": seconds,
    }


def task_name(problem, rho):
    return f"{problem.name}-rho{rho}"


def run_synthetic(suite, jobs):
    """A result for each teacher and expansion factor."""
    problems = load_reference_suite("g", **suite)
    tasks = {
        task_name(problem, rho): delayed(expand_and_cluster)(problem, rho)
        for rho in RHOS
        for problem in problems
    }
    results = []
    for result in run_resumable(tasks, RESULTS / "paper-synthetic.jsonl", jobs):
        results.append(result)
        print(
            f"{len(results):4d}/{len(tasks)} {result['name']:32s} {n_converged(result)} of "
            f"{len(result['students'])} students, {result['found']} neurons, "
            f"loss {result['loss']:.0e}, {result['seconds']:.1f} s",
            flush=True,
        )
    return results


def n_converged(*results):
    return sum(loss <= CONVERGED for result in results for loss in result["students"])


def of(results, **wanted):
    return [result for result in results if wanted.items() <= result.items()]


# Figures


def draw_cell(ax, results):
    """Students as dots, the networks that they gave as stars, by expansion factor."""
    rng = np.random.default_rng(0)
    for place, rho in enumerate(RHOS):
        cell = of(results, rho=rho)
        students = np.concatenate([result["students"] for result in cell])
        jitter = rng.uniform(-0.32, 0.32, size=len(students))
        ax.plot(place + jitter, np.clip(students, LEAST_LOSS, 1), "o", **STUDENTS)
        for style, is_right in ((RIGHT, True), (WRONG, False)):
            losses = [
                max(result["loss"], LEAST_LOSS) for result in cell if result["exact"] == is_right
            ]
            ax.plot(np.full(len(losses), place), losses, **style)
    ax.axhline(CONVERGED, color="black", linestyle=":", linewidth=0.8)
    ax.set(yscale="log", xlim=(-0.6, len(RHOS) - 0.4), ylim=(LEAST_LOSS / 30, 10))
    ax.set_xticks(range(len(RHOS)), [f"{rho:g}" for rho in RHOS])
    ax.set_yticks([1e-30, 1e-20, 1e-10, 1])


STUDENTS = {"color": "#0072b2", "markersize": 3, "markeredgewidth": 0, "alpha": 0.5}
RIGHT = {"marker": "*", "markersize": 8, "color": "#e69f00", "linestyle": "none", "mec": "black"}
RIGHT |= {"mew": 0.4, "zorder": 3}
WRONG = RIGHT | {"marker": "X", "markersize": 6, "color": "white"}


def draw_legend(figure, results, n_columns):
    from matplotlib.lines import Line2D

    is_wrong = not all(result["exact"] for result in results)
    handles = [
        Line2D([], [], linestyle="none", marker="o", label="student", **STUDENTS),
        Line2D([], [], color="black", linestyle=":", linewidth=0.8, label="converged (1e-14)"),
        Line2D([], [], label="the teacher, recovered", **RIGHT),
        *([Line2D([], [], label="another network", **WRONG)] if is_wrong else []),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=n_columns, frameon=False)


def draw_example(results, path):
    import matplotlib.pyplot as plt

    n_inputs, width = EXAMPLE
    figure, ax = plt.subplots(figsize=(COLUMN, 2.9), layout="constrained")
    first = of(results, n_inputs=n_inputs, width=width)
    name = first[0]["name"].rsplit("-rho", 1)[0]
    shown = [result for result in first if result["name"].startswith(f"{name}-")]
    draw_cell(ax, shown)
    ax.set(xlabel="expansion factor", ylabel="loss / variance of y")
    ax.set_title(f"{n_inputs} inputs, {width} neurons, activation g")
    draw_legend(figure, shown, 2)
    save(figure, path)


def draw_suite(results, suite, path):
    import matplotlib.pyplot as plt

    shape = len(suite["widths"]), len(suite["n_inputs"])
    figure, axes = plt.subplots(
        *shape,
        figsize=(PAGE, 0.7 + 1.4 * shape[0]),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, width in zip(axes, suite["widths"], strict=True):
        for ax, n_inputs in zip(row, suite["n_inputs"], strict=True):
            draw_cell(ax, of(results, n_inputs=n_inputs, width=width))
            ax.set_title(f"{n_inputs} inputs, {width} neurons")
    for ax in axes[-1]:
        ax.set_xlabel("expansion factor")
    figure.supylabel("loss / variance of y", fontsize=8)
    draw_legend(figure, results, 4)
    save(figure, path)


def save(figure, path):
    figure.savefig(path, metadata={"Date": None})
    print(path)


# Tables


def print_synthetic(results):
    print(f"\n{'rho':>4}  students converged  paper    recovered  certified  worst distance")
    example = dict(zip(("n_inputs", "width"), EXAMPLE, strict=True))
    for title, cell in (("example of figure 4", of(results, **example)), ("all", results)):
        print(title)
        for rho in RHOS:
            print(synthetic_row(of(cell, rho=rho), rho, title))


def synthetic_row(cell, rho, title):
    published = PUBLISHED_AT_RHO_1 if rho == 1 and title != "all" else "-"
    exact = [result for result in cell if result["exact"]]
    distance = max((result["distance"] for result in exact), default=np.nan)
    n_students = sum(len(result["students"]) for result in cell)
    n_certified = sum(result["certified"] for result in cell)
    return (
        f"{rho:4g}  {n_converged(*cell):8d} of {n_students:<7d} {published:>7}  "
        f"{len(exact):3d} of {len(cell):<3d} {n_certified:9d}  {distance:14.0e}"
    )


def print_mnist(results):
    print(f"\n{'activation':10}  {'':8}  teacher  students  found  excess  RMSE of logits")
    for activation, (width, students, found, rmse) in PUBLISHED_MNIST.items():
        print(mnist_row(activation, "paper", width, students, found, rmse))
        for result in of(results, activation=activation):
            print(
                mnist_row(
                    activation,
                    "here",
                    result["width"],
                    result["students"],
                    result["found"],
                    result["rmse, logits"],
                )
            )


def mnist_row(activation, source, width, students, found, rmse):
    excess = 100 * (found - width) / width
    return (
        f"{activation:10}  {source:8}  {width:7d}  {students:8d}  {found:5d}  {excess:5.1f}%  "
        f"{rmse:14.1e}"
    )


# MNIST


def mnist_options(arguments, width, rows):
    return argparse.Namespace(
        width=width,
        rows=rows,
        rho=2,
        students=4,
        device=arguments.device,
        solver="auto",
        cache=RESULTS / "mnist",
        resume=True,
        working_memory=2048,
        verbose=0,
    )


def recover_mnist(name, activation, options, folder):
    images, labels, test_images, _ = mnist.load_images(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = mnist.recover(options, activation, images, labels, test_images)
    return {"name": name} | result


def known_mnist():
    """Results that benchmarks/mnist.py kept."""
    path = RESULTS / "mnist" / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [result for result in map(json.loads, lines) if "activation" in result]


def run_mnist(arguments):
    """A result for each teacher: small ones on one core, those of the paper with a GPU."""
    teachers = [
        (activation, SMALL_MNIST["width"], SMALL_MNIST["rows"])
        for activation in SMALL_MNIST["activations"]
    ]
    if not arguments.small:
        teachers = [(name, numbers[0], 60_000) for name, numbers in PUBLISHED_MNIST.items()]
    tasks = {}
    for activation, width, rows in teachers:
        name = f"784-{width}-10 {activation}, {rows} images"
        options = mnist_options(arguments, width, rows)
        tasks[name] = delayed(recover_mnist)(name, activation, options, arguments.data)
    path = RESULTS / "paper-mnist.jsonl"
    return list(run_resumable(tasks, path, 1))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="few teachers: minutes on one core")
    parser.add_argument("--teachers", type=int, help="of each size; without it 10, 1 with --small")
    parser.add_argument("--jobs", type=int, default=1, help="teachers at a time")
    parser.add_argument("--mnist", action="store_true", help="networks trained on MNIST, too")
    parser.add_argument("--data", type=Path, help="folder with the IDX files of MNIST")
    parser.add_argument("--device", default="cpu", help="of MNIST")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the figures")
    arguments = parser.parse_args()

    suite = dict(SMALL if arguments.small else FULL)
    suite["n_seeds"] = arguments.teachers or suite["n_seeds"]
    results = run_synthetic(suite, arguments.jobs)
    networks = known_mnist() + (run_mnist(arguments) if arguments.mnist else [])
    print_synthetic(results)
    print_mnist(networks)

    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"font.size": 8, "axes.titlesize": 8, "svg.hashsalt": "paper"})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw_example(results, arguments.output / "paper_figure4.svg")
    draw_suite(results, suite, arguments.output / "paper_figure5.svg")


if __name__ == "__main__":
    main()
