"""The network in the subspace of its inputs that it sees, and what it does for solves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from test_levenberg import alone, dense_system, pick, random_batch, random_task
from test_preconditioner import SOLVES, assert_close

from sklearn_ec._solvers.coarse_space import CoarseSpace, is_small, n_coarse
from sklearn_ec._solvers.equations import flat_parameters
from sklearn_ec._solvers.matrix_free import MatrixFreeEquations
from sklearn_ec._solvers.preconditioner import NeuronBlocks

ALL_ROWS = 1000  # for each parameter
N_INPUTS = 7


def coarse_basis(space, layers, network):
    """``Z``, for all hidden layers: columns are changes of all their weights."""
    first, *others = (layer[0] for layer in layers[:-1])
    basis = space.basis[network].numpy()
    columns = np.kron(np.eye(len(first)), basis)
    return block_diag(columns, np.eye(sum(layer.numel() for layer in others)))


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize(
    ("widths", "has_skip"),
    [((3,), False), ((3,), True), ((9,), False), ((9,), True), ((3, 2), False)],
)
def test_it_inverts_the_normal_equations_in_the_span_of_the_weights(widths, n_outputs, has_skip):
    """With the readout eliminated; of skip terms it knows those within the span."""
    rng = np.random.default_rng(0)
    task = random_task(rng, "tanh", 400, N_INPUTS, n_outputs)
    layers = random_batch(rng, 2, widths, N_INPUTS, n_outputs, has_skip)
    space = CoarseSpace.of(task, layers, ALL_ROWS)
    damping = torch.tensor([1e-2, 1e-3], dtype=torch.float64)
    gradients = tuple(torch.tensor(rng.normal(size=(4, *layer.shape[1:]))) for layer in layers[:-1])
    found = space.damped(damping, 0.0).times(gradients).numpy()
    flat = flat_parameters(gradients).numpy()
    for i in range(2):
        network = alone(layers, i)
        matrix = dense_system(task, network)[0]
        whole = coarse_basis(space, layers, i)
        assert whole.shape[1] == n_coarse(layers)
        reader = np.eye(layers[-1].shape[2])
        if has_skip:
            reader = block_diag(np.eye(widths[0]), space.basis[i].numpy())
        readout = np.kron(np.eye(n_outputs), reader)
        total = block_diag(whole, readout)
        inner = total.T @ matrix @ total + damping[i].item() * np.eye(total.shape[1])
        inverse = np.linalg.inv(inner)[: whole.shape[1], : whole.shape[1]]
        expected = flat[2 * i : 2 * i + 2] @ (whole @ inverse @ whole.T)
        assert_close(found[2 * i : 2 * i + 2], expected, 1e-9)


def test_its_outputs_are_those_of_the_network():
    """The network on inputs in the basis: its equations have the same gradient there."""
    rng = np.random.default_rng(1)
    task = random_task(rng, "g", 300, N_INPUTS, 2)
    layers = random_batch(rng, 2, (4,), N_INPUTS, 2)
    space = CoarseSpace.of(task, layers, ALL_ROWS)
    for i in range(2):
        gradient = task.normal_equations(alone(layers, i)).gradient
        first, readout = space.equations[i].gradient
        assert_close(first.numpy(), (gradient[0] @ space.basis[i]).numpy(), 1e-10)
        assert_close(readout.numpy(), gradient[1].numpy(), 1e-10)


def test_networks_are_taken_with_their_equations():
    rng = np.random.default_rng(2)
    task, layers = random_task(rng, "g", 300, N_INPUTS), random_batch(rng, 3, (4,), N_INPUTS)
    index = torch.tensor([2, 0])
    damping = torch.full((2,), 1e-3, dtype=torch.float64)
    some = CoarseSpace.of(task, layers, ALL_ROWS).take(index).damped(damping, 0.0)
    others = CoarseSpace.of(task, pick(layers, index), ALL_ROWS).damped(damping, 0.0)
    gradient = (torch.tensor(rng.normal(size=(2, *layers[0].shape[1:]))),)
    assert_close(some.times(gradient).numpy(), others.times(gradient).numpy(), 1e-9)


def test_it_stays_as_it_was_while_the_network_changes():
    """It serves several steps, which change the layers in place."""
    rng = np.random.default_rng(3)
    task, layers = random_task(rng, "g", 300, N_INPUTS), random_batch(rng, 1, (4,), N_INPUTS)
    space, damping = CoarseSpace.of(task, layers, ALL_ROWS), torch.ones(1, dtype=torch.float64)
    gradient = (torch.tensor(rng.normal(size=(1, *layers[0].shape[1:]))),)
    before = space.damped(damping, 0.0).times(gradient)
    for layer in layers:
        layer *= 2.0
    torch.testing.assert_close(space.damped(damping, 0.0).times(gradient), before)


def test_a_broken_network_adds_nothing():
    rng = np.random.default_rng(4)
    task, layers = random_task(rng, "g", 300, N_INPUTS), random_batch(rng, 2, (4,), N_INPUTS)
    layers[0][1] = np.nan
    damping = torch.full((2,), 1e-3, dtype=torch.float64)
    system = CoarseSpace.of(task, layers, ALL_ROWS).damped(damping, 0.0)
    product = system.times((torch.ones_like(layers[0]),))
    assert product[0].any()
    assert not product[1].any()


def test_solves_of_few_products_get_further_with_it():
    """Pairs of neurons that hardly differ: what ten products leave of the promised decrease.

    Solves of a given residual may take more, since it is measured where it matters.
    """
    rng = np.random.default_rng(5)
    task = random_task(rng, "tanh", 2000, 20)
    layers = random_batch(rng, 1, (8,), 20)
    layers[0][:, 4:] = layers[0][:, :4] + 0.1 * layers[0][:, 4:]
    matrix, gradient, _ = dense_system(task, layers)
    matrix = matrix + 1e-7 * np.eye(len(matrix))
    most = gradient @ np.linalg.solve(matrix, gradient) / 2
    solves = replace(SOLVES, relative_residual=0.0, max_iterations=10)
    left = []
    for max_coarse in (n_coarse(layers), n_coarse(layers) - 1):
        blocks = NeuronBlocks.of(task, layers, None, replace(solves, max_coarse=max_coarse))
        equations = MatrixFreeEquations.assemble(task, layers, blocks, solves)
        damping = torch.full((1,), 1e-7, dtype=torch.float64)
        step = flat_parameters(equations.damped(damping).step(equations.gradient))[0].numpy()
        left.append(1.0 + (gradient @ step + step @ matrix @ step / 2) / most)
    assert left[0] < 0.3 * left[1]


@pytest.mark.parametrize(
    ("width", "max_coarse", "expected"),
    [(6, 42, True), (6, 41, False), (7, 2500, False), (9, 2500, False)],
)
def test_it_has_few_parameters_and_is_not_all_of_the_space(width, max_coarse, expected):
    layers = random_batch(np.random.default_rng(6), 1, (width,), n_inputs=7)
    assert is_small(layers, replace(SOLVES, max_coarse=max_coarse)) == expected
