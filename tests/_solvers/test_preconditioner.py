"""Blocks of single neurons, and the preconditioner that couples them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from test_levenberg import alone, dense_system, in_chunks, random_batch, random_task

from sklearn_ec._core.settings import ConjugateGradients
from sklearn_ec._solvers.equations import flat_parameters
from sklearn_ec._solvers.matrix_free import MatrixFreeEquations
from sklearn_ec._solvers.preconditioner import NeuronBlocks, Preconditioner

SOLVES = ConjugateGradients()
WIDTHS = [(3,), (3, 2), (3, 2, 4)]


def assert_close(actual, expected, rtol):
    """Up to a share of the largest element."""
    assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


# Many features take several block columns.
@pytest.mark.parametrize("chunk_elements", [None, 1])
@pytest.mark.parametrize(("n_outputs", "has_skip"), [(1, False), (3, False), (1, True), (2, True)])
@pytest.mark.parametrize(("n_inputs", "widths"), [(2, (3,)), (70, (3,)), (2, (3, 2)), (2, (70, 2))])
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "g"])
def test_blocks_are_the_diagonal_blocks_of_the_normal_equations(
    name, n_inputs, widths, n_outputs, has_skip, chunk_elements
):
    rng = np.random.default_rng(2)
    task = in_chunks(random_task(rng, name, 600, n_inputs, n_outputs), chunk_elements)
    assert len(list(task.chunks(10))) == (1 if chunk_elements is None else 3)
    layers = random_batch(rng, 2, widths, n_inputs, n_outputs, has_skip)
    blocks = NeuronBlocks.of(task, layers)
    readout = MatrixFreeEquations.assemble(task, layers, blocks, SOLVES).readout_gram[:, None]
    for i in range(2):
        matrix, start = dense_system(task, alone(layers, i))[0], 0
        for layer, block in zip(layers, (*blocks.grams, readout), strict=True):
            is_readout = layer is layers[-1]  # all outputs share their block
            fan_out, n_features = layer.shape[1:]
            assert block.shape == (2, 1 if is_readout else fan_out, n_features, n_features)
            for neuron in block[i].expand(fan_out, -1, -1).numpy():
                end = start + len(neuron)
                expected = matrix[start:end, start:end]
                assert_close(np.tril(neuron), np.tril(expected), 1e-12)
                start = end
        assert start == len(matrix)


@pytest.mark.parametrize("chunk_elements", [None, 1])
@pytest.mark.parametrize("widths", WIDTHS)
def test_correlations_are_those_of_the_derivatives_by_the_biases(widths, chunk_elements):
    """The constant feature leaves the derivatives themselves in the normal equations."""
    rng = np.random.default_rng(3)
    task = in_chunks(random_task(rng, "tanh", 600, n_outputs=2), chunk_elements)
    layers = random_batch(rng, 2, widths, n_outputs=2)
    found = NeuronBlocks.of(task, layers).correlations
    for i in range(2):
        matrix, start = dense_system(task, alone(layers, i))[0], 0
        for layer, correlations in zip(layers[:-1], found, strict=True):
            fan_out, n_features = layer.shape[1:]
            biases = start + n_features - 1 + n_features * np.arange(fan_out)
            products = matrix[np.ix_(biases, biases)]
            lengths = np.sqrt(np.diag(products))
            assert_close(correlations[i].numpy(), products / np.outer(lengths, lengths), 1e-12)
            start += layer[i].numel()


@pytest.mark.parametrize("shrinkage", [0.3, 1.0])
@pytest.mark.parametrize("widths", WIDTHS)
def test_the_preconditioner_inverts_its_model(widths, shrinkage):
    """Without any correlations, the damped blocks of the neurons alone."""
    rng = np.random.default_rng(6)
    task = random_task(rng, "tanh", n_samples=60, n_outputs=2)
    layers = random_batch(rng, 1, widths, n_outputs=2)
    blocks, damping = NeuronBlocks.of(task, layers), 1e-3
    solves = replace(SOLVES, correlation_shrinkage=shrinkage)
    preconditioner = Preconditioner.of(
        blocks, torch.full((1,), damping, dtype=torch.float64), solves, torch.float64
    )
    right = tuple(torch.tensor(rng.normal(size=(2, *layer.shape[1:]))) for layer in layers[:-1])
    found = preconditioner.times(flat_parameters(right), layers[:-1]).numpy()
    expected = []
    for gram, correlation, vectors in zip(blocks.grams, blocks.correlations, right, strict=True):
        model = model_of_layer(gram[0].numpy(), correlation[0].numpy(), damping, shrinkage)
        expected.append(np.linalg.solve(model, vectors.flatten(start_dim=1).numpy().T).T)
    assert_close(found, np.hstack(expected), 1e-11)


def model_of_layer(grams, correlations, damping, shrinkage):
    """``L (1 - f² + f r f) Lᵀ``, neuron by neuron."""
    fan_out, n_features = grams.shape[:2]
    damped = np.tril(grams) + np.tril(grams, -1).transpose(0, 2, 1)
    damped = damped + damping * np.eye(n_features)
    factors = np.linalg.cholesky(damped)
    diagonals = [np.diag(np.sqrt(np.diag(gram) / (np.diag(gram) + damping))) for gram in grams]
    model = np.zeros((fan_out, n_features, fan_out, n_features))
    for i in range(fan_out):
        for j in range(fan_out):
            shared = (1.0 - shrinkage) * correlations[i, j] * diagonals[i] @ diagonals[j]
            middle = np.eye(n_features) if i == j else shared
            model[i, :, j] = factors[i] @ middle @ factors[j].T
    return model.reshape(fan_out * n_features, -1)


def test_idle_neurons_have_no_correlations():
    rng = np.random.default_rng(7)
    task = random_task(rng, "tanh", n_samples=60)
    layers = random_batch(rng, 1, (3,))
    layers[1][:, :, 1] = 0.0
    correlations = NeuronBlocks.of(task, layers).correlations[0][0]
    assert not correlations[1].any()
    assert correlations.isfinite().all()


def test_coupled_neurons_take_fewer_products(monkeypatch):
    """ReLU neurons are on together in a quarter of all rows."""
    from sklearn_ec._solvers.matrix_free import DampedMatrixFreeSystem

    rng = np.random.default_rng(8)
    task = random_task(rng, "relu", n_samples=4000, n_inputs=20)
    layers = random_batch(rng, 1, (16,), n_inputs=20)
    products, product = [], DampedMatrixFreeSystem._product

    def counted(system, direction):
        products[-1] += 1
        return product(system, direction)

    monkeypatch.setattr(DampedMatrixFreeSystem, "_product", counted)
    for shrinkage in (SOLVES.correlation_shrinkage, 1.0):
        solves = replace(SOLVES, correlation_shrinkage=shrinkage, relative_residual=1e-2)
        blocks = NeuronBlocks.of(task, layers)
        equations = MatrixFreeEquations.assemble(task, layers, blocks, solves)
        products.append(0)
        equations.damped(torch.full((1,), 1e-9, dtype=torch.float64)).step(equations.gradient)
    assert products[0] < 0.6 * products[1]
