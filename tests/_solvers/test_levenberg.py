import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.settings import Blocks, Damping
from sklearn_ec._expand.students import layer_shapes
from sklearn_ec._solvers.equations import DenseEquations, ShallowEquations
from sklearn_ec._solvers.levenberg import Levenberg, next_damping, predicted_decrease
from sklearn_ec._solvers.task import LeastSquaresTask

RULE = Damping()
NAMES = sorted(ACTIVATIONS)
SHAPES = [(1, False), (2, False), (1, True), (3, True)]  # n_outputs, has_skip
DEEP = list(itertools.product(["tanh", "relu", "gelu", "g"], [(3, 2), (3, 2, 4)]))
NETWORKS = [(name, (3,)) for name in NAMES] + DEEP


def random_batch(rng, batch, widths=(3,), n_inputs=2, n_outputs=1, has_skip=False):
    shapes = layer_shapes(n_inputs, widths, n_outputs, has_skip)
    return tuple(torch.tensor(rng.normal(size=(batch, *shape))) for shape in shapes)


def random_task(rng, name, n_samples=20, n_inputs=2, n_outputs=1):
    """Weighted rows with random targets, so that residuals are large."""
    inputs = np.hstack([rng.normal(size=(n_samples, n_inputs)), np.ones((n_samples, 1))])
    weight = rng.uniform(0.2, 3.0, size=(n_samples, 1))
    return LeastSquaresTask(
        torch.tensor(inputs),
        torch.tensor(rng.normal(size=(n_samples, n_outputs))),
        torch.tensor(np.sqrt(weight / weight.mean())),
        ACTIVATIONS[name],
    )


def direct_outputs(task, layers):
    """Outputs of one network in plain numpy, with skip terms where a layer has columns for them."""
    inputs = task.inputs.numpy()
    ones, levels = inputs[:, -1:], inputs[:, :-1]  # nearer levels in front
    for layer in layers:
        z = np.hstack([levels[:, : layer.shape[1] - 1], ones]) @ layer.T
        levels = np.hstack([task.activation.function(z), levels])
    return z


def direct_residuals(task, layers):
    return (direct_outputs(task, layers) - task.targets.numpy()) * task.sqrt_weight.numpy()


def in_chunks(task, n_elements):
    """The same task with temporary arrays of so many elements at most."""
    if n_elements is None:
        return task
    return replace(task, blocks=Blocks(elements_on_cpu=n_elements))


def task_of_teacher(rng, name, layers, n_samples=200, noise=0.0):
    """Rows whose targets a given network computes."""
    layers = as_arrays(layers)
    task = random_task(rng, name, n_samples, layers[0].shape[1] - 1, len(layers[-1]))
    targets = torch.tensor(direct_outputs(task, layers)) + noise * task.targets
    return LeastSquaresTask(task.inputs, targets, task.sqrt_weight, task.activation)


def pick(layers, index):
    """One network, or a part of a batch."""
    return tuple(layer[index] for layer in layers)


def alone(layers, index):
    return pick(layers, slice(index, index + 1))


def as_arrays(layers):
    return [np.asarray(layer) for layer in layers]


def flat(layers):
    return np.concatenate([np.ravel(layer) for layer in layers])


def unflatten(parameters, layers):
    parts = np.split(parameters, np.cumsum([layer.numel() for layer in layers])[:-1])
    return [part.reshape(layer.shape) for part, layer in zip(parts, layers, strict=True)]


def output_by_output(residuals):
    """The order of the Jacobian's rows."""
    return residuals.T.ravel()


def assert_close_layers(actual, expected, rtol, atol):
    for first, second in zip(actual, expected, strict=True):
        torch.testing.assert_close(first, second, rtol=rtol, atol=atol)


def dense_system(task, layers):
    """``JᵀJ / nk`` and ``Jᵀr / nk`` of one network, a batch of one, and its Jacobian."""
    jacobian = task.jacobian(layers, slice(None)).numpy()
    residuals = output_by_output(direct_residuals(task, as_arrays(pick(layers, 0))))
    n = task.n_equations
    return jacobian.T @ jacobian / n, jacobian.T @ residuals / n, jacobian


@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 4)])
@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
def test_losses_match_direct_computation(n_outputs, has_skip, widths):
    rng = np.random.default_rng(0)
    layers = random_batch(rng, 4, widths, n_outputs=n_outputs, has_skip=has_skip)
    task = random_task(rng, "gelu", n_outputs=n_outputs)
    expected = np.array([direct_residuals(task, as_arrays(pick(layers, i))) for i in range(4)])
    actual = task.residuals(layers).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    losses = (expected**2).mean(axis=(1, 2))
    np.testing.assert_allclose(task.losses(layers).numpy(), losses, rtol=1e-13)
    single = task.float().losses(tuple(layer.float() for layer in layers))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), losses, rtol=1e-5)


@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize(("name", "widths"), NETWORKS)
def test_jacobian_matches_finite_differences(name, widths, n_outputs, has_skip):
    rng = np.random.default_rng(1)
    task = random_task(rng, name, n_outputs=n_outputs)
    layers = random_batch(rng, 1, widths, n_outputs=n_outputs, has_skip=has_skip)
    start, step = flat(layers), 2e-5

    def residuals(parameters):
        changed = unflatten(parameters, pick(layers, 0))
        return output_by_output(direct_residuals(task, changed))

    expected = [
        8.0 * (residuals(start + offset) - residuals(start - offset))
        - (residuals(start + 2.0 * offset) - residuals(start - 2.0 * offset))
        for offset in step * np.eye(len(start))
    ]
    expected = np.transpose(expected) / (12.0 * step)
    jacobian = task.jacobian(layers, slice(None)).numpy()
    np.testing.assert_allclose(jacobian, expected, rtol=0, atol=1e-8)
    parts = [task.jacobian(layers, rows) for rows in (slice(0, 7), slice(7, 20))]
    parts = [part.reshape(n_outputs, -1, len(start)) for part in parts]
    together = torch.cat(parts, dim=1).reshape(jacobian.shape)
    np.testing.assert_allclose(together.numpy(), jacobian, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("chunk_elements", [None, 1])
@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize(("name", "widths"), NETWORKS)
def test_curvature_matches_finite_differences(name, widths, n_outputs, has_skip, chunk_elements):
    rng = np.random.default_rng(1)
    task = in_chunks(random_task(rng, name, n_samples=600, n_outputs=n_outputs), chunk_elements)
    point = random_batch(rng, 2, widths, n_outputs=n_outputs, has_skip=has_skip)
    step = random_batch(rng, 2, widths, n_outputs=n_outputs, has_skip=has_skip)
    size = 1e-4
    ahead, behind = (
        task.residuals(tuple(p + sign * size * s for p, s in zip(point, step, strict=True)))
        for sign in (1.0, -1.0)
    )
    expected = (ahead - 2.0 * task.residuals(point) + behind) / size**2
    curvature = task.curvature(point, step, slice(None))
    # Rows that a kink passes within the step have no second derivative.
    close = torch.isclose(curvature, expected, rtol=1e-4, atol=1e-4 * expected.std().item())
    assert close.double().mean() > 0.99
    gradient, _ = task.curvature_gradient(point, step)
    for i in range(2):
        jacobian = task.jacobian(alone(point, i), slice(None)).numpy()
        direct = jacobian.T @ output_by_output(curvature[i].numpy()) / task.n_equations
        actual = flat(pick(gradient, i))
        scale = max(1.0, np.abs(direct).max())
        np.testing.assert_allclose(actual, direct, rtol=0, atol=1e-12 * scale)


class UncorrectedTask(LeastSquaresTask):
    """Levenberg as it is in textbooks, to first order."""

    def curvature_gradient(self, layers, steps, kept=None):
        return tuple(map(torch.zeros_like, layers)), torch.zeros_like(layers[0][:, 0, 0])


@pytest.mark.slow
def test_second_order_correction_speeds_up_curved_valleys():
    """Eight nearly polynomial neurons over two inputs, from students of twice the width."""
    rng = np.random.default_rng(0)
    task = task_of_teacher(rng, "softplus", pick(random_batch(rng, 1, (8,)), 0), n_samples=500)
    start = random_batch(rng, 4, (16,))
    losses = []
    for kind in (LeastSquaresTask, UncorrectedTask):
        solver = Levenberg(kind(**vars(task)), start)
        solver.run(150)
        losses.append(solver.losses.median().item())
    assert losses[0] < 0.1 * losses[1]


# A wide network, and rows in chunks, take other paths through the Gram matrix.
@pytest.mark.parametrize("chunk_elements", [None, 1])
@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize("widths", [(3,), (40,), (3, 2), (3, 2, 4), (30, 3)])
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "g"])
def test_steps_match_a_dense_solver(name, widths, n_outputs, has_skip, chunk_elements):
    rng = np.random.default_rng(2)
    task = in_chunks(random_task(rng, name, n_samples=600, n_outputs=n_outputs), chunk_elements)
    assert len(list(task.chunks(100))) == (1 if chunk_elements is None else 3)
    layers = random_batch(rng, 4, widths, n_outputs=n_outputs, has_skip=has_skip)
    damping = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)
    equations = task.normal_equations(layers)
    assert isinstance(equations, ShallowEquations if len(widths) == 1 else DenseEquations)
    system = equations.damped(damping)
    steps = system.step(equations.gradient)
    decrease = predicted_decrease(equations, steps, damping).numpy()
    losses = task.losses(layers).numpy()
    assert system.succeeded.all()
    for i in range(4):
        matrix, gradient, jacobian = dense_system(task, alone(layers, i))
        actual = flat(pick(equations.gradient, i))
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(actual, gradient, rtol=0, atol=1e-13 * scale)
        expected = np.linalg.solve(matrix + damping[i].item() * np.eye(len(matrix)), -gradient)
        step = flat(pick(steps, i))
        np.testing.assert_allclose(step, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        linear = output_by_output(direct_residuals(task, as_arrays(pick(layers, i))))
        linear = linear + jacobian @ step
        np.testing.assert_allclose(decrease[i], losses[i] - (linear**2).mean(), rtol=1e-9)


@pytest.mark.parametrize("chunk_elements", [None, 1])
@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "g"])
def test_both_kinds_of_equations_agree_on_one_hidden_layer(
    name, n_outputs, has_skip, chunk_elements
):
    rng = np.random.default_rng(12)
    task = in_chunks(random_task(rng, name, n_samples=600, n_outputs=n_outputs), chunk_elements)
    layers = random_batch(rng, 3, (7,), n_outputs=n_outputs, has_skip=has_skip)
    damping = torch.tensor([1e-3, 1e-1, 10.0], dtype=torch.float64)
    right = random_batch(rng, 3, (7,), n_outputs=n_outputs, has_skip=has_skip)
    shallow, dense = task._shallow_equations(layers), task._dense_equations(layers)
    assert_close_layers(shallow.gradient, dense.gradient, rtol=1e-12, atol=1e-13)
    for equations in (shallow, dense):  # other right-hand sides than the gradient, too
        assert equations.damped(damping).succeeded.all()
    for vector in (dense.gradient, right):
        steps = [equations.damped(damping).step(vector) for equations in (shallow, dense)]
        assert_close_layers(*steps, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("chunk_elements", [None, 1])
@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(3,), (3, 2)])
def test_a_pass_that_is_kept_changes_nothing(widths, has_skip, chunk_elements):
    rng = np.random.default_rng(4)
    task = in_chunks(random_task(rng, "g", n_samples=600), chunk_elements)
    layers, steps = (random_batch(rng, 3, widths, has_skip=has_skip) for _ in range(2))
    forgetful = replace(task, blocks=replace(task.blocks, kept_elements=0))
    equations, expected = task.normal_equations(layers), forgetful.normal_equations(layers)
    assert equations.kept is not None
    assert expected.kept is None
    assert_close_layers(equations.gradient, expected.gradient, rtol=1e-13, atol=1e-14)
    index = torch.tensor([2, 0])
    some = [pick(layers, index), pick(steps, index)]
    gradient, squares = task.curvature_gradient(*some, equations.take(index).kept)
    expected_gradient, expected_squares = task.curvature_gradient(*some)
    assert_close_layers(gradient, expected_gradient, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(squares, expected_squares, rtol=1e-13, atol=0)


@pytest.mark.parametrize("widths", [(3,), (3, 2)])
def test_failed_solves_are_marked_and_leave_the_others_alone(widths):
    rng = np.random.default_rng(3)
    task = random_task(rng, "tanh")
    layers = random_batch(rng, 4, widths)
    layers[-1][1] = 0.0  # without damping, nothing determines the hidden weights
    layers[0][2, 0, 0] = np.nan
    equations = task.normal_equations(layers)
    damping = torch.tensor([1e-2, 0.0, 1e-2, 1e-3], dtype=torch.float64)
    system = equations.damped(damping)
    steps = system.step(equations.gradient)
    assert system.succeeded.tolist() == [True, False, False, True]
    index = torch.tensor([0, 3])
    others = equations.take(index)
    others = others.damped(damping[index]).step(others.gradient)
    assert_close_layers(pick(steps, index), others, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["shallow", "dense"])
@pytest.mark.parametrize("block", ["hidden", "readout"])
def test_indefinite_blocks_are_failed_solves(block, kind):
    """A factorization that breaks down half-way leaves finite numbers behind."""
    diagonal = torch.ones(6, dtype=torch.float64)
    diagonal[slice(0, 4) if block == "hidden" else slice(4, 6)] = -1.0
    ones = torch.ones(1, 1, 6, dtype=torch.float64)
    gram, gradient = diagonal.diag()[None], (ones[..., :4], ones[..., :2])
    if kind == "shallow":
        equations = ShallowEquations(gradient, gram, ones[..., :1])
    else:
        equations = DenseEquations(gradient, gram)
    assert not equations.damped(torch.zeros(1, dtype=torch.float64)).succeeded.any()
    assert equations.damped(torch.full((1,), 2.0, dtype=torch.float64)).succeeded.all()


@pytest.mark.parametrize("widths", [(3,), (3, 2)])
@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
def test_a_batch_advances_like_each_network_alone(n_outputs, has_skip, widths):
    rng = np.random.default_rng(4)
    task = random_task(rng, "softplus", n_samples=100, n_outputs=n_outputs)
    layers = random_batch(rng, 3, widths, n_outputs=n_outputs, has_skip=has_skip)
    together = Levenberg(task, layers)
    assert together.run(8) == 8
    for i in range(3):
        single = Levenberg(task, alone(layers, i))
        single.run(8)
        assert_close_layers(pick(single.layers, 0), pick(together.layers, i), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(single.losses[0], together.losses[i], rtol=1e-10, atol=0)
        assert single.damping[0] == together.damping[i]


@pytest.mark.parametrize("widths", [(3,), (3, 2)])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_network_is_finished_and_never_alters_the_others(broken, widths):
    rng = np.random.default_rng(5)
    task = random_task(rng, "g", n_samples=100)
    layers = random_batch(rng, 3, widths)
    layers[0][1] = broken
    batch = Levenberg(task, layers)
    assert batch.finished.tolist() == [False, True, False]
    batch.run(8)
    others = torch.tensor([0, 2])
    clean = Levenberg(task, pick(layers, others))
    clean.run(8)
    assert_close_layers(pick(batch.layers, others), clean.layers, rtol=1e-12, atol=1e-14)
    for name in ("losses", "damping"):
        torch.testing.assert_close(
            getattr(batch, name)[others], getattr(clean, name), rtol=1e-12, atol=1e-14
        )
    assert not batch.losses[1].isfinite()
    torch.testing.assert_close(batch.layers[0][1], layers[0][1], equal_nan=True)
    for layer, start in zip(batch.layers[1:], layers[1:], strict=True):
        assert torch.equal(layer[1], start[1])


@pytest.mark.parametrize(
    ("name", "widths"),
    [("tanh", (2,)), ("logistic", (2,)), ("silu", (2,)), ("tanh", (2, 2)), ("g", (2, 2))],
)
def test_final_loss_of_a_noisy_problem_agrees_with_scipy(name, widths):
    rng = np.random.default_rng(6 if len(widths) == 1 else 8)  # well determined
    layers = random_batch(rng, 1, widths)
    task = task_of_teacher(rng, name, pick(layers, 0), n_samples=100, noise=0.05)
    start = layers[0] + 0.02 * torch.tensor(rng.normal(size=layers[0].shape)), *layers[1:]
    solver = Levenberg(task, start)
    assert solver.run(500) < 500
    assert solver.finished.all()
    # No step lowers the loss any more: rejections have raised the damping over its ceiling.
    assert RULE.ceiling < solver.damping[0] <= RULE.ceiling * RULE.increase**RULE.max_retries

    def residuals(parameters):
        return direct_residuals(task, unflatten(parameters, pick(layers, 0))).ravel()

    reference = least_squares(
        residuals, flat(start), method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    np.testing.assert_allclose(solver.losses[0].item(), 2.0 * reference.cost / 100, rtol=1e-9)


@pytest.mark.parametrize(("name", "widths"), [(name, (2,)) for name in NAMES] + DEEP)
def test_noise_free_problem_is_solved_to_rounding(name, widths):
    rng = np.random.default_rng(7)
    layers = random_batch(rng, 3, widths, n_outputs=2)
    task = task_of_teacher(rng, name, pick(layers, 0))
    first, *others = alone(layers, 0)
    start = first + 0.02 * torch.tensor(rng.normal(size=(3, *first.shape[1:])))
    solver = Levenberg(task, (start, *(layer.expand(3, -1, -1) for layer in others)))
    assert solver.run(300) < 300
    assert solver.finished.all()
    # The normal equations of deep networks lose more digits.
    assert solver.losses.max() < (1e-26 if len(widths) == 1 else RULE.rounding_loss)


@pytest.mark.parametrize(("name", "widths"), [(name, (6,)) for name in NAMES] + DEEP)
def test_losses_never_increase_and_belong_to_the_weights(name, widths):
    rng = np.random.default_rng(8)
    task = random_task(rng, name, n_samples=60, n_outputs=2)
    layers = random_batch(rng, 5, widths, n_outputs=2)
    before = [layer.clone() for layer in layers]
    solver = Levenberg(task, layers)
    first = losses = solver.losses.clone()
    for _ in range(40):
        solver.step()
        assert (solver.losses <= losses).all()
        losses = solver.losses.clone()
    assert (losses < first).all()
    torch.testing.assert_close(solver.losses, task.losses(solver.layers))
    assert all(map(torch.equal, layers, before))


def test_run_counts_its_steps_and_stops_when_all_are_finished(monkeypatch):
    rng = np.random.default_rng(9)
    task = random_task(rng, "tanh", n_samples=60)
    layers = random_batch(rng, 2)
    steps = []
    step = Levenberg.step
    monkeypatch.setattr(Levenberg, "step", lambda self: (steps.append(1), step(self)))
    solver = Levenberg(task, layers)
    assert solver.run(0) == 0
    assert solver.run(4) == len(steps) == 4
    target = solver.losses.max().item()

    solver = Levenberg(task, layers, tol=target)
    steps.clear()
    taken = solver.run(50)
    assert 0 < taken == len(steps) <= 4
    assert (solver.losses <= target).all()
    assert solver.run(50) == 0
    assert Levenberg(task, layers, tol=1e9).finished.all()


def test_finished_networks_are_left_alone():
    rng = np.random.default_rng(10)
    task = random_task(rng, "tanh", n_samples=60)
    layers = random_batch(rng, 3)
    solver = Levenberg(task, layers)
    solver.finished[1] = True
    solver.run(5)
    assert all(map(torch.equal, pick(solver.layers, 1), pick(layers, 1)))
    assert not torch.equal(solver.layers[0][0], layers[0][0])


@pytest.mark.parametrize("rounding_loss", [0.0, 1e9])
def test_slow_progress_finishes_below_the_rounding_of_the_targets_alone(rounding_loss):
    rng = np.random.default_rng(11)
    task = random_task(rng, "tanh", n_samples=60)
    start = Levenberg(task, random_batch(rng, 1))
    start.run(30)
    solver = Levenberg(task, start.layers, rounding_loss=rounding_loss)
    before = solver.losses.clone()
    solver.damping[:] = 0.1 * RULE.rounding_damping
    solver.step()
    assert 0.5 * before < solver.losses <= before
    assert solver.finished.all() == (rounding_loss > 0)


def test_damping_follows_the_gain_ratio():
    damping = torch.full((6,), 0.6, dtype=torch.float64)
    damping[5] = RULE.floor
    gain = torch.tensor([0.9, 0.4, 0.1, 0.9, np.nan, 0.9], dtype=torch.float64)
    accepted = torch.tensor([True, True, True, False, False, True])
    expected = torch.tensor([0.2, 0.6, 2.4, 2.4, 2.4, RULE.floor], dtype=torch.float64)
    found = next_damping(damping, gain, accepted, RULE)
    torch.testing.assert_close(found, expected)
    lower = next_damping(damping, gain, accepted, replace(RULE, floor=1e-24))
    torch.testing.assert_close(lower[5], damping[5] / 3.0, rtol=1e-12, atol=0)
