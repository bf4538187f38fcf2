"""Matrix-free Levenberg: products, preconditioner, solves, minima; each against dense algebra."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import EfficiencyWarning
from test_levenberg import (
    alone,
    assert_close_layers,
    dense_system,
    direct_residuals,
    flat,
    output_by_output,
    pick,
    random_batch,
    random_task,
    task_of_teacher,
)

from builders import SHORT_POLISH, SHORT_WARM_UP, planted, settings_with, with_settings
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.coordinates import split_rows, standardize
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import (
    ConjugateGradients,
    Damping,
    EvenSolves,
    Polish,
    Settings,
    Training,
    WellPosedSolves,
)
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.training import StudentTrainer
from sklearn_ec._solvers import matrix_free
from sklearn_ec._solvers.derivatives import forward, gradients, pull_back, tangent
from sklearn_ec._solvers.jacobian import stacked
from sklearn_ec._solvers.levenberg import Dense, Levenberg, predicted_decrease
from sklearn_ec._solvers.matrix_free import (
    MatrixFree,
    MatrixFreeEquations,
    suited_solver,
)
from sklearn_ec._solvers.preconditioner import NeuronBlocks
from sklearn_ec._solvers.task import LeastSquaresTask
from sklearn_ec.datasets import make_teacher
from sklearn_ec.metrics import max_cosine_distance

SHAPES = [(1, False), (3, False), (1, True), (2, True)]  # n_outputs, has_skip
WIDTHS = [(3,), (3, 2), (3, 2, 4)]
NAMES = ["tanh", "relu", "gelu", "g"]

SOLVES = ConjugateGradients()
# Few iterations, in which hardly any conjugacy is lost.
ROUGH_SOLVES = replace(SOLVES, relative_residual=0.3, tail=0)
# Conjugate gradients down to rounding, and nearly so.
EXACT_SOLVES = replace(SOLVES, relative_residual=1e-12, max_iterations=2000)
FINAL_SOLVES = replace(
    EvenSolves(),
    relative_residual=Polish().final_residual,
    max_iterations=Polish().max_final_iterations,
)
DENSE_FLOPS = Training().dense_flops


def rowwise(vectors):
    """Flat parameters of every network, one row each."""
    return torch.cat([part.flatten(start_dim=1) for part in vectors], dim=1).numpy()


def equations_of(task, layers, solves=SOLVES):
    return MatrixFreeEquations.assemble(task, layers, NeuronBlocks.of(task, layers), solves)


def matrix_free_levenberg(task, layers, solves=SOLVES, **options):
    return Levenberg(task, layers, MatrixFree(solves), **options)


def assert_close(actual, expected, rtol):
    """Relative to the largest entry."""
    assert_allclose(actual, expected, rtol=0, atol=rtol * max(np.abs(expected).max(), 1e-300))


# Sweeps


@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_tangent_and_pull_back_are_products_with_the_jacobian(name, widths, n_outputs, has_skip):
    rng = np.random.default_rng(0)
    task = random_task(rng, name, n_outputs=n_outputs)
    layers = random_batch(rng, 3, widths, n_outputs=n_outputs, has_skip=has_skip)
    steps = random_batch(rng, 3, widths, n_outputs=n_outputs, has_skip=has_skip)
    cotangents = torch.tensor(rng.normal(size=(3, 20, n_outputs)))
    weight = task.sqrt_weight
    run = forward(layers, task.inputs, task.activation)
    changes = (tangent(layers, run, steps) * weight).numpy()
    pulled = pull_back(layers, run, cotangents * weight)
    expected = gradients(layers, run, cotangents * weight)
    assert [part.shape for part in pulled] == [layer.shape for layer in layers]
    assert_close_layers(pulled, expected, rtol=1e-12, atol=1e-12)
    for i in range(3):
        jacobian = task.jacobian(alone(layers, i), slice(None)).numpy()
        direct = jacobian @ rowwise(steps)[i]
        assert_close(output_by_output(changes[i]), direct, 1e-13)
        direct = jacobian.T @ output_by_output(cotangents[i].numpy())
        assert_close(rowwise(pulled)[i], direct, 1e-13)


def test_some_networks_of_a_sweep_are_those_of_a_sweep_of_some():
    rng = np.random.default_rng(0)
    task, layers = random_task(rng, "tanh"), random_batch(rng, 4, (3, 2))
    index = torch.tensor([2, 0])
    taken = forward(layers, task.inputs, task.activation).take(index)
    expected = forward(pick(layers, index), task.inputs, task.activation)
    assert_close_layers(taken.features, expected.features, rtol=1e-14, atol=1e-15)
    assert_close_layers(taken.preactivations, expected.preactivations, rtol=1e-14, atol=1e-15)


# Equations


@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_products_and_gradients_are_those_of_the_normal_equations(
    name, widths, n_outputs, has_skip
):
    rng = np.random.default_rng(1)
    task = random_task(rng, name, n_samples=60, n_outputs=n_outputs)
    layers = random_batch(rng, 3, widths, n_outputs=n_outputs, has_skip=has_skip)
    direction = random_batch(rng, 3, widths, n_outputs=n_outputs, has_skip=has_skip)
    equations = equations_of(task, layers)
    *hidden, readout = direction
    change = equations.hidden_change(tuple(hidden)) + equations.readout_change(readout)
    parts = (*equations.hidden_gradient(change), equations.readout_gradient(change))
    product = rowwise(parts)
    expected = task.normal_equations(layers).gradient
    assert_close_layers(equations.gradient, expected, rtol=1e-12, atol=1e-13)
    for i in range(3):
        matrix, gradient, _ = dense_system(task, alone(layers, i))
        assert_close(rowwise(equations.gradient)[i], gradient, 1e-12)
        assert_close(product[i], matrix @ rowwise(direction)[i], 1e-12)


# Solves


@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_exact_solves_match_a_dense_solver(name, widths, n_outputs, has_skip):
    rng = np.random.default_rng(3)
    task = random_task(rng, name, n_samples=60, n_outputs=n_outputs)
    layers = random_batch(rng, 3, widths, n_outputs=n_outputs, has_skip=has_skip)
    right = random_batch(rng, 3, widths, n_outputs=n_outputs, has_skip=has_skip)
    damping = torch.tensor([1e-3, 1e-1, 10.0], dtype=torch.float64)
    equations = equations_of(task, layers, EXACT_SOLVES)
    system = equations.damped(damping)
    assert system.succeeded.all()
    for vector in (equations.gradient, right):
        steps = rowwise(system.step(vector))
        for i in range(3):
            matrix = dense_system(task, alone(layers, i))[0]
            matrix += damping[i].item() * np.eye(len(matrix))
            assert_close(steps[i], np.linalg.solve(matrix, -rowwise(vector)[i]), 1e-8)


@pytest.mark.parametrize("n_iterations", [1, 2, 5, None])
@pytest.mark.parametrize("widths", WIDTHS)
def test_inexact_solves_decrease_the_model_as_predicted(widths, n_iterations):
    """Wherever the conjugate gradients stop."""
    solves = ROUGH_SOLVES
    if n_iterations is not None:
        solves = replace(ROUGH_SOLVES, relative_residual=0.0, max_iterations=n_iterations)
    rng = np.random.default_rng(4)
    task = random_task(rng, "gelu", n_samples=60, n_outputs=2)
    layers = random_batch(rng, 3, widths, n_outputs=2)
    damping = torch.tensor([1e-3, 1e-1, 10.0], dtype=torch.float64)
    equations = equations_of(task, layers, solves)
    steps = equations.damped(damping).step(equations.gradient)
    decrease = predicted_decrease(equations, steps, damping).numpy()
    losses = task.losses(layers).numpy()
    assert (decrease > 0).all()
    for i in range(3):
        matrix, gradient, jacobian = dense_system(task, alone(layers, i))
        residuals = direct_residuals(task, [layer.numpy() for layer in pick(layers, i)])
        linear = output_by_output(residuals) + jacobian @ rowwise(steps)[i]
        assert_allclose(decrease[i], losses[i] - (linear**2).mean(), rtol=1e-9)
        damped = matrix + damping[i].item() * np.eye(len(matrix))
        best = gradient @ np.linalg.solve(damped, gradient)
        descent = -gradient @ rowwise(steps)[i]
        assert 0.0 < descent <= best * (1.0 + 1e-9)
        if n_iterations is None:
            assert descent > 0.9 * best


@pytest.mark.parametrize("solves", [SOLVES, FINAL_SOLVES])
def test_solves_end_at_the_relative_residual(solves):
    rng = np.random.default_rng(5)
    task, layers = random_task(rng, "tanh", n_samples=60), random_batch(rng, 3, (3, 2))
    equations = equations_of(task, layers, solves)
    damping = torch.full((3,), 1e-4, dtype=torch.float64)
    system = equations.damped(damping)
    *hidden_step, _ = system.step(equations.gradient)
    *hidden_gradient, readout_gradient = equations.gradient
    alone = system._solve_readout(readout_gradient)
    carried = equations.hidden_gradient(equations.readout_change(alone))
    gradient = torch.from_numpy(rowwise(hidden_gradient) - rowwise(carried))
    residual = gradient + system._product(torch.from_numpy(rowwise(hidden_step)))[0]
    sizes = [(r * system._precondition(r)).sum(dim=1) for r in (residual, gradient)]
    assert (sizes[0] <= solves.relative_residual**2 * sizes[1]).all()


def test_curvatures_in_single_precision_are_not_lost_in_the_products():
    """Along a direction that the outputs hardly tell, of a network with large outgoing weights."""
    rng = np.random.default_rng(6)
    task, layers = random_task(rng, "tanh", n_samples=200), random_batch(rng, 1, (4,))
    layers[-1][..., :-1] *= 1e3
    equations, damping = equations_of(task, layers), torch.tensor([1e-12], dtype=torch.float64)
    system, single = equations.damped(damping), equations.in_single(task.float()).damped(damping)
    n_hidden = layers[0].numel()
    matrix = torch.cat([system._product(row[None])[0] for row in torch.eye(n_hidden).double()])
    values, vectors = torch.linalg.eigh(matrix)
    weakest = vectors[:, 0][None]
    _, exact = system._product(weakest)
    assert_close(exact.numpy(), values[:1].numpy(), 1e-6)
    product, curvature = single._product(weakest.float())
    assert_close(curvature.numpy(), exact.numpy(), 1e-2)
    in_product = (weakest.float() * product).sum(dim=1)
    assert abs(in_product - exact) > abs(curvature - exact)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_blocks_that_are_singular_to_rounding_are_lifted(factor):
    """Two equal inputs, and a damping far below the rounding of the blocks."""
    rng = np.random.default_rng(6)
    task = random_task(rng, "tanh", n_samples=60)
    task.inputs[:, 1] = task.inputs[:, 0]
    layers = random_batch(rng, 2, (4,))
    layers[1][:, :, 0] *= factor  # of an idle neuron, too
    system = equations_of(task, layers).damped(torch.full((2,), 1e-24, dtype=torch.float64))
    assert system.succeeded.all()
    preconditioner = system.preconditioner
    assert all(part.isfinite().all() for part in preconditioner.inverses)
    assert all(part.isfinite().all() for part in preconditioner.couplings)


@pytest.mark.parametrize("widths", [(3,), (3, 2)])
def test_failed_blocks_are_reported_and_leave_the_others_alone(widths):
    rng = np.random.default_rng(7)
    task, layers = random_task(rng, "tanh"), random_batch(rng, 4, widths)
    layers[0][2, 0, 0] = np.nan
    blocks = NeuronBlocks.of(task, layers)
    last = blocks.grams[-1]
    last[1, 0] = -torch.eye(last.shape[2], dtype=torch.float64)
    equations = MatrixFreeEquations.assemble(task, layers, blocks, ROUGH_SOLVES)
    damping = torch.tensor([1e-2, 1e-2, 1e-2, 1e-3], dtype=torch.float64)
    system = equations.damped(damping)
    assert system.succeeded.tolist() == [True, False, False, True]
    steps = system.step(equations.gradient)
    index = torch.tensor([0, 3])
    others = equations.take(index)
    assert_close_layers(others.blocks.grams, pick(blocks.grams, index), rtol=0, atol=0)
    others = others.damped(damping[index]).step(others.gradient)
    assert_close_layers(pick(steps, index), others, rtol=1e-10, atol=1e-12)
    assert equations.take(torch.arange(4)) is equations


def test_a_network_without_a_gradient_stays_where_it_is():
    """The other network goes on for many iterations."""
    rng = np.random.default_rng(8)
    task, layers = random_task(rng, "tanh", n_samples=60), random_batch(rng, 2, (3, 2))
    equations = equations_of(task, layers)
    gradient = tuple(part.clone() for part in equations.gradient)
    for part in gradient:
        part[0] = 0.0
    steps = equations.damped(torch.full((2,), 1e-4, dtype=torch.float64)).step(gradient)
    assert not flat(pick(steps, 0)).any()
    assert flat(pick(steps, 1)).all()


# Minima


def test_a_network_of_idle_neurons_advances_beside_another_one():
    """Its outputs have no second derivative, so that there is nothing to correct."""
    rng = np.random.default_rng(9)
    task, layers = random_task(rng, "relu", n_samples=60), random_batch(rng, 2, (4,))
    layers[0][0, :, -1] = -100.0
    together = matrix_free_levenberg(task, layers)
    single = matrix_free_levenberg(task, alone(layers, 0))
    for solver in (together, single):
        solver.run(30)
    mean = (task.targets * task.sqrt_weight**2).sum() / (task.sqrt_weight**2).sum()
    expected = ((task.targets - mean) * task.sqrt_weight).square().mean()
    assert_allclose(single.losses[0].item(), expected.item(), rtol=1e-10)
    assert_allclose(together.losses[0].item(), expected.item(), rtol=1e-10)


# Widths 4 to 8 or (4, 3), 20 to 60 inputs, two or three outputs.
N_PROBLEMS = 20


def mid_size_problem(number):
    """Noisy rows of a random network, and a start near it.

    ReLU networks have a minimum for each set of rows that their neurons are active on: less noise
    keeps the minimum, and both solvers, in that of the teacher.
    """
    rng = np.random.default_rng(number)
    smooth = ["tanh", "logistic", "softplus", "gelu", "silu", "erf", "elu", "g"]
    name = [*smooth, "relu", "leaky_relu"][number % 10]
    n_inputs, n_outputs = (20, 25, 30, 40, 60)[number % 5], 2 + number % 2
    widths = (4 + number % 5,) if number < 16 else (4, 3)
    gain = 3.0 if name == "logistic" else 1.5
    layers = random_batch(rng, 1, widths, n_inputs, n_outputs)
    layers = tuple(gain * layer / np.sqrt(layer.shape[2]) for layer in layers)
    n_rows = 3 * sum(layer.numel() for layer in layers) // n_outputs
    noise = 1e-4 if ACTIVATIONS[name].homogeneous else 1e-2
    task = task_of_teacher(rng, name, pick(layers, 0), n_rows, noise)
    return task, tuple(a + 1e-2 * torch.tensor(rng.normal(size=a.shape)) for a in layers)


def at_unit_lengths(layers, activation):
    """A network whose homogeneous neurons have incoming vectors of length one."""
    layers = [layer.clone() for layer in layers]
    if activation.homogeneous:
        for layer, above in zip(layers[:-1], layers[1:], strict=True):
            lengths = layer.norm(dim=2, keepdim=True)
            layer /= lengths
            above[..., : layer.shape[1]] *= lengths.mT
    return layers


@pytest.mark.parametrize(
    "number",
    [
        *range(10),  # one of each activation
        *(pytest.param(number, marks=pytest.mark.slow) for number in range(10, N_PROBLEMS)),
    ],
)
def test_both_solvers_find_the_same_minimum(number):
    """Networks with kinks have others close by: there, both begin with much damping."""
    task, start = mid_size_problem(number)
    solves = replace(SOLVES, least_share=1.0) if task.activation.homogeneous else SOLVES
    solvers = [Levenberg(task, start, linear) for linear in (Dense(), MatrixFree(solves))]
    for solver in solvers:
        assert solver.run(200) < 200
        assert solver.finished.all()
    dense, matrix_free = (solver.losses[0].item() for solver in solvers)
    assert dense > Damping().rounding_loss  # a minimum, not an exact fit
    assert dense < 0.1 * task.losses(start)[0].item()
    assert abs(matrix_free - dense) <= 1e-10 * dense
    networks = [flat(at_unit_lengths(solver.layers, task.activation)) for solver in solvers]
    assert_close(networks[1], networks[0], 1e-5)


@pytest.mark.parametrize("widths", [(4,), (4, 3)])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_exact_problems_are_solved_to_rounding(name, widths):
    rng = np.random.default_rng(0)
    layers = random_batch(rng, 1, widths, n_inputs=6, n_outputs=2)
    task = task_of_teacher(rng, name, pick(layers, 0), n_samples=300)
    start = tuple(a + 1e-2 * torch.tensor(rng.normal(size=a.shape)) for a in layers)
    solver = matrix_free_levenberg(task, start)
    solver.run(300)
    assert solver.losses[0] < 1e-26


@pytest.mark.parametrize("widths", [(5,), (4, 3)])
def test_losses_never_increase_and_belong_to_the_weights(widths):
    rng = np.random.default_rng(10)
    task = random_task(rng, "softplus", n_samples=60, n_outputs=2)
    solves = replace(SOLVES, relative_residual=0.1)  # with the usual one, a step may be rejected
    solver = matrix_free_levenberg(task, random_batch(rng, 4, widths, n_outputs=2), solves)
    losses = solver.losses.clone()
    for _ in range(2 * SOLVES.block_steps + 1):
        solver.step()
        assert (solver.losses < losses).all()
        losses = solver.losses.clone()
    torch.testing.assert_close(losses, task.losses(solver.layers))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_network_never_alters_the_others(broken):
    rng = np.random.default_rng(11)
    task, layers = random_task(rng, "g", n_samples=100), random_batch(rng, 3)
    layers[0][1] = broken
    batch = matrix_free_levenberg(task, layers)
    assert batch.finished.tolist() == [False, True, False]
    batch.run(8)
    others = torch.tensor([0, 2])
    clean = matrix_free_levenberg(task, pick(layers, others))
    clean.run(8)
    assert_close_layers(pick(batch.layers, others), clean.layers, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(batch.layers[0][1], layers[0][1], equal_nan=True)


def test_blocks_serve_several_steps_and_are_computed_anew_for_other_networks(monkeypatch):
    calls = []

    class Spy(NeuronBlocks):
        @classmethod
        def of(cls, task, layers, rows_per_feature, solves):
            calls.append(len(layers[0]))
            return NeuronBlocks.of(task, layers, rows_per_feature, solves)

    monkeypatch.setattr(matrix_free, "NeuronBlocks", Spy)
    rng = np.random.default_rng(12)
    task = random_task(rng, "tanh", n_samples=60)
    solver = matrix_free_levenberg(task, random_batch(rng, 3))
    solver.run(SOLVES.block_steps)
    assert calls == [3]
    solver.run(1)
    assert calls == [3, 3]
    solver.finished[1] = True  # the blocks of the others are still there
    solver.run(1)
    assert calls == [3, 3]
    solver.finished[:] = torch.tensor([True, False, False])
    solver.run(1)
    assert calls == [3, 3]
    assert Training().steps_per_epoch % SOLVES.block_steps == 0


def test_blocks_of_the_right_networks_are_used():
    """Networks that finish leave the others' blocks in their places."""
    rng = np.random.default_rng(13)
    task, layers = random_task(rng, "tanh", n_samples=60), random_batch(rng, 4)
    solver = matrix_free_levenberg(task, layers)
    solver.finished[:] = torch.tensor([True, False, True, False])
    solver._n_steps = 1
    linear = solver.linear
    linear._blocks, linear._owners = NeuronBlocks.of(task, layers), torch.arange(4)
    index = torch.tensor([1, 3])
    assert_same_blocks(solver._equations(index).blocks, task, pick(layers, index))
    linear._blocks, linear._owners = NeuronBlocks.of(task, pick(layers, index)), index
    others = torch.tensor([0, 1])  # of another batch
    assert_same_blocks(solver._equations(others).blocks, task, pick(layers, others))


def assert_same_blocks(found, task, layers):
    expected = NeuronBlocks.of(task, layers)
    assert_close_layers(found.grams, expected.grams, rtol=1e-13, atol=1e-14)
    assert_close_layers(found.correlations, expected.correlations, rtol=1e-13, atol=1e-14)


# Memory


def bytes_for(task, layers, n_networks):
    return n_networks * MatrixFree().step_bytes(task, layers)


@pytest.mark.parametrize("widths", [(5,), (4, 3)])
def test_smaller_batches_take_the_same_steps(widths):
    """Five networks at most two at a time, with solves that do not depend on the preconditioner."""
    rng = np.random.default_rng(14)
    task = random_task(rng, "softplus", n_samples=60, n_outputs=2)
    layers = random_batch(rng, 5, widths, n_outputs=2)
    whole, split = (
        matrix_free_levenberg(task, layers, EXACT_SOLVES, working_bytes=working_bytes)
        for working_bytes in (np.inf, bytes_for(task, layers, 2))
    )
    assert (whole.batch_size, split.batch_size) == (5, 2)
    for solver in (whole, split):
        solver.run(6)
    torch.testing.assert_close(split.losses, whole.losses, rtol=1e-8, atol=0)
    torch.testing.assert_close(split.damping, whole.damping, rtol=1e-12, atol=0)
    assert_close_layers(split.layers, whole.layers, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_smaller_batches_find_the_same_minimum():
    """With inexact solves, too: fresh blocks for every batch change the way, not where it ends."""
    task, start = mid_size_problem(0)
    rng = np.random.default_rng(15)
    start = tuple(
        layer + 1e-2 * torch.tensor(rng.normal(size=(3, *layer.shape[1:]))) for layer in start
    )
    losses = []
    for working_bytes in (np.inf, bytes_for(task, start, 2), 0.0):
        solver = matrix_free_levenberg(task, start, working_bytes=working_bytes)
        assert solver.run(200) < 200
        losses.append(solver.losses.numpy())
    assert solver.batch_size == 1
    assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-10)


# Which solver


def size_only(n_rows, n_inputs, n_outputs, widths):
    """A task and a network that take no memory."""
    sizes = (n_inputs, *widths, n_outputs)
    zero = torch.zeros((), dtype=torch.float64)
    task = LeastSquaresTask(
        zero.expand(n_rows, n_inputs + 1),
        zero.expand(n_rows, n_outputs),
        zero.expand(n_rows, 1),
        ACTIVATIONS["tanh"],
    )
    shapes = [(1, b, a + 1) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    return task, tuple(zero.expand(shape) for shape in shapes)


def test_dense_equations_are_taken_where_they_fit_and_are_cheap():
    task, layers = size_only(1000, 10, 1, (8,))
    dense = Dense().step_bytes(task, layers)
    assert not suited_solver(task, layers, np.inf, DENSE_FLOPS).is_matrix_free
    assert not suited_solver(task, layers, dense, DENSE_FLOPS).is_matrix_free
    wide = size_only(1000, 100, 1, (20,))
    dense, matrix_free = (linear.step_bytes(*wide) for linear in (Dense(), MatrixFree()))
    assert matrix_free < dense
    assert not suited_solver(*wide, dense, DENSE_FLOPS).is_matrix_free
    assert suited_solver(*wide, dense - 1, DENSE_FLOPS).is_matrix_free


def test_dense_equations_are_kept_where_they_are_the_smaller_ones():
    """Many rows and few parameters: the activations outweigh the normal equations."""
    task, layers = size_only(100_000, 2, 1, (4,))
    assert Dense().step_bytes(task, layers) < MatrixFree().step_bytes(task, layers)
    assert not suited_solver(task, layers, 1.0, DENSE_FLOPS).is_matrix_free


def test_dense_equations_are_not_taken_where_they_are_expensive():
    n_columns = 100 * 101 + 101
    rows = int(DENSE_FLOPS / (2 * n_columns**2))
    for n_rows, is_matrix_free in ((rows, False), (rows + 1, True)):
        sizes = size_only(n_rows, 100, 1, (100,))
        assert suited_solver(*sizes, np.inf, DENSE_FLOPS).is_matrix_free == is_matrix_free
    mnist = size_only(60_000, 784, 10, (64,))
    assert suited_solver(*mnist, np.inf, DENSE_FLOPS).is_matrix_free
    assert MatrixFree().flops(*mnist) < Dense().flops(*mnist)


@pytest.fixture(scope="module")
def rows():
    """Rows of 40 inputs. Students of 8 neurons take 6 MiB with normal equations, 1 MiB without."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(330, 40))
    y = make_teacher(40, 3, activation="tanh", random_state=0).predict(X)
    samples, _ = standardize(X, y[:, None], np.ones(len(y)))
    return split_rows(samples, rng)


def levenberg_kinds(monkeypatch):
    """How the solvers that are really used solve, in order."""
    kinds = []
    original = Levenberg.run

    def spy(self, max_iter):
        is_final = self.linear.is_matrix_free and self.linear.solves == FINAL_SOLVES
        kinds.append("final" if is_final else type(self.linear))
        return original(self, max_iter)

    monkeypatch.setattr(Levenberg, "run", spy)
    return kinds


@pytest.mark.parametrize(
    ("solver", "working_memory", "expected"),
    [
        ("auto", None, Dense),
        pytest.param("auto", 4.0, MatrixFree, marks=pytest.mark.slow),
        ("levenberg", None, Dense),
        ("matrix_free", None, MatrixFree),
    ],
)
def test_the_trainer_uses_the_chosen_or_the_suited_solver(
    rows, monkeypatch, solver, working_memory, expected
):
    settings = settings_with(**SHORT_WARM_UP)
    polisher = Polisher(*rows, "tanh", "cpu", False, working_memory, solver, settings=settings)
    kinds = levenberg_kinds(monkeypatch)
    trainer = StudentTrainer(polisher)
    students = trainer.train(np.arange(2), (8,), max_iter=10, tol=0.0)
    assert set(kinds) == {expected}
    assert students.losses.max() < 1e-2 * students.loss_curves[:, 0].min()
    kinds.clear()
    network = students.network(0)
    _, loss = polisher.polish(network, 5)
    assert kinds == [expected]
    assert loss < students.losses[0]
    assert polisher.is_matrix_free(network) == (expected is MatrixFree)


ALL_MATRIX_FREE = Settings(training=Training(dense_flops=0.0))


def spread_out(solver="auto", working_memory=None, settings=ALL_MATRIX_FREE):
    """A network near an exact fit, and its polisher: 6 MiB with normal equations, 1 MiB without."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(330, 40))
    true = Network((rng.normal(size=(8, 41)) / 6, rng.normal(size=(1, 9))))
    samples = Samples.of(X, network_outputs(true, X, ACTIVATIONS["tanh"]), np.ones(len(X)))
    network = Network(tuple(a + 0.01 * rng.normal(size=a.shape) for a in true.layers))
    options = {"working_memory": working_memory, "solver": solver, "settings": settings}
    return network, Polisher(samples, samples, "tanh", "cpu", False, **options)


@pytest.mark.parametrize(
    ("solver", "working_memory", "expected"),
    [
        ("auto", 10.0, Dense),
        pytest.param("auto", 4.0, "final", marks=pytest.mark.slow),
        ("matrix_free", 10.0, "final"),
    ],
)
def test_large_networks_that_stall_near_zero_get_exact_steps(
    monkeypatch, solver, working_memory, expected
):
    settings = replace(ALL_MATRIX_FREE, polish=Polish(large_window=1, final_progress=0.0))
    network, trainer = spread_out(solver, working_memory, settings)
    kinds = levenberg_kinds(monkeypatch)
    _, loss = trainer.polish(network, 100, enough=1e-9)
    assert set(kinds) == {MatrixFree}
    assert Polish().final_loss < loss <= 1e-9
    kinds.clear()
    _, loss = trainer.polish(network, 100)
    assert list(dict.fromkeys(kinds)) == [MatrixFree, expected]
    assert loss < 1e-26


def test_exact_steps_are_not_dense_where_these_take_long(monkeypatch):
    polish = Polish(large_window=1, final_progress=0.0, final_dense_flops=0.0)
    settings = replace(ALL_MATRIX_FREE, polish=polish)
    network, trainer = spread_out(working_memory=10.0, settings=settings)
    kinds = levenberg_kinds(monkeypatch)
    _, loss = trainer.polish(network, 100)
    assert list(dict.fromkeys(kinds)) == [MatrixFree, "final"]
    assert loss < 1e-26


@pytest.mark.slow
def test_large_networks_that_do_not_stall_keep_cheap_steps(monkeypatch):
    network, trainer = spread_out()
    kinds = levenberg_kinds(monkeypatch)
    _, loss = trainer.polish(network, 100)
    assert set(kinds) == {MatrixFree}
    assert loss < 1e-26


def test_steps_of_the_final_solver_are_nearly_exact():
    """By the share of the possible decrease of the model that they miss."""
    network, trainer = spread_out()
    layers, damping = stacked(network, "cpu"), torch.tensor([1e-5])
    matrix, gradient, _ = dense_system(trainer.task, layers)
    possible = gradient @ np.linalg.solve(matrix + 1e-5 * np.eye(len(matrix)), gradient)
    missed = []
    for solves in (ROUGH_SOLVES, FINAL_SOLVES):
        equations = equations_of(trainer.task, layers, solves)
        step = rowwise(equations.damped(damping).step(equations.gradient))[0]
        missed.append(1.0 + gradient @ step / possible)
    assert 0.0 < missed[1] < 0.01
    assert missed[1] < 0.1 * missed[0]


@pytest.mark.slow
def test_too_little_memory_is_told_by_the_solver_that_trains(rows):
    options = {"working_memory": 1.0, "settings": settings_with(**SHORT_WARM_UP)}
    trainer = StudentTrainer(Polisher(*rows, "tanh", "cpu", has_skip=False, **options))
    with pytest.warns(EfficiencyWarning, match="3 students take about 2 MiB .* 1 at a time"):
        trainer.train(np.arange(3), (8,), max_iter=10, tol=0.0)


def test_a_network_is_recovered_without_normal_equations(monkeypatch):
    """Nor the coarse space, whose equations would be those of all of so small a network."""

    def fail(*args):
        raise AssertionError("normal equations")

    monkeypatch.setattr(LeastSquaresTask, "normal_equations", fail)
    teacher = make_teacher(3, 3, activation="tanh", random_state=0)
    X = np.random.default_rng(0).uniform(-2, 2, size=(300, 3))
    model = ExpandClusterRegressor(
        rho=2,
        hidden_layer_sizes=3,
        activation="tanh",
        solver="matrix_free",
        n_students=2,
        random_state=0,
    )
    names = ("conjugate_gradients", "well_posed_solves", "even_solves")
    solves = dict.fromkeys(names, {"max_coarse": 0})
    with_settings(model, **SHORT_WARM_UP, **SHORT_POLISH, **solves).fit(X, teacher.predict(X))
    assert model.recovered_
    assert model.layer_sizes_ == (3,)
    assert max_cosine_distance(teacher, model, "tanh") < 1e-12


def test_solves_go_on_until_iterations_add_little():
    """To what the quadratic model has to give, where the relative residual ends them far before."""
    rng = np.random.default_rng(5)
    task, layers = random_task(rng, "tanh", n_samples=60), random_batch(rng, 3, (6,))
    damping = torch.full((3,), 1e-9, dtype=torch.float64)
    hasty = replace(SOLVES, relative_residual=0.9, tail=0)
    missing = []
    for solves in (hasty, replace(hasty, tail=5), EXACT_SOLVES):
        equations = equations_of(task, layers, solves)
        steps = equations.damped(damping).step(equations.gradient)
        missing.append(predicted_decrease(equations, steps, damping))
    short, long = ((missing[2] - part) / missing[2] for part in missing[:2])
    assert (short > 0.05).any()
    assert (long < 0.05).all()


# Products in single precision


@pytest.mark.parametrize("widths", [(5,), (4, 3)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_steps_with_products_in_single_precision_are_right_to_it(activation, widths):
    rng = np.random.default_rng(16)
    task = random_task(rng, activation, n_samples=200, n_outputs=2)
    layers = random_batch(rng, 2, widths, n_outputs=2)
    damping = torch.tensor([1e-2, 1e-3], dtype=torch.float64)
    blocks = NeuronBlocks.of(task, layers)
    steps = []
    for single in (None, task.float()):
        equations = MatrixFreeEquations.assemble(task, layers, blocks, EXACT_SOLVES, single)
        assert all(part.dtype == torch.float64 for part in equations.gradient)
        steps.append(equations.damped(damping).step(equations.gradient))
    assert_close_layers(steps[1], steps[0], rtol=1e-2, atol=1e-4)
    tiny = tuple(1e-30 * part for part in equations.gradient)
    assert_close_layers(
        tuple(1e30 * part for part in equations.damped(damping).step(tiny)),
        steps[1],
        rtol=1e-5,
        atol=1e-7,
    )


def test_levenberg_with_single_products_comes_to_rounding():
    network, polisher, _ = planted("tanh")
    rng = np.random.default_rng(17)
    start = tuple(
        layer + 1e-2 * torch.tensor(rng.normal(size=layer.shape))
        for layer in stacked(network, "cpu")
    )
    solver = Levenberg(polisher.task, start, MatrixFree(in_single=True))
    solver.run(100)
    assert float(solver.losses[0]) < 1e-24


def test_single_products_take_damping_above_their_rounding():
    """With less, conjugate gradients meet negative curvature, and end after a product or two."""
    network, polisher, _ = planted("tanh")
    linear = MatrixFree(WellPosedSolves(), in_single=True)
    losses, floor = torch.tensor([1e-12], dtype=torch.float64), linear.solves.single_damping_floor
    assert float(linear.start_damping(losses, 1e-3)) == floor
    assert float(MatrixFree().start_damping(losses, 1e-3)) < floor
    solver = Levenberg(polisher.task, stacked(network, "cpu"), linear, damping=0.0)
    solver.run(3)
    assert float(solver.damping[0]) >= floor
