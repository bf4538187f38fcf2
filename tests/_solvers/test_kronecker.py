"""Kronecker factors of each layer's part of the normal equations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from test_levenberg import alone, dense_system, in_chunks, random_batch, random_task

from sklearn_ec._core.settings import ConjugateGradients
from sklearn_ec._solvers.coarse_space import CoarseSpace
from sklearn_ec._solvers.equations import flat_parameters, split_parameters
from sklearn_ec._solvers.kronecker import Factor, KroneckerFactors
from sklearn_ec._solvers.matrix_free import DampedMatrixFreeSystem, MatrixFreeEquations
from sklearn_ec._solvers.preconditioner import NeuronBlocks

SOLVES = ConjugateGradients()
WIDTHS = [(3,), (3, 2), (3, 2, 4)]


def matrix_of(factor, network=0):
    values, vectors = factor.values[network].numpy(), factor.vectors[network].numpy()
    return vectors * values @ vectors.T


@pytest.mark.parametrize("chunk_elements", [None, 1])
@pytest.mark.parametrize(("n_outputs", "has_skip"), [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize("widths", WIDTHS)
def test_factors_are_mean_products_of_derivatives_and_of_features(
    widths, n_outputs, has_skip, chunk_elements
):
    """The constant feature leaves the derivatives themselves in the normal equations."""
    rng = np.random.default_rng(3)
    task = in_chunks(random_task(rng, "tanh", 600, n_outputs=n_outputs), chunk_elements)
    layers = random_batch(rng, 2, widths, n_outputs=n_outputs, has_skip=has_skip)
    found = KroneckerFactors.of(task, layers)
    run = MatrixFreeEquations.assemble(task, layers, found, SOLVES).run
    for i in range(2):
        matrix, start = dense_system(task, alone(layers, i))[0], 0
        for depth, layer in enumerate(layers[:-1]):
            fan_out, n_features = layer.shape[1:]
            biases = start + n_features - 1 + n_features * np.arange(fan_out)
            products = matrix_of(found.derivatives[depth], i)
            assert_allclose(products, matrix[np.ix_(biases, biases)], atol=1e-12)
            features = run.features[depth].expand(2, -1, -1)[i] * task.sqrt_weight
            moments = (features.mT @ features / len(features)).numpy()
            assert_allclose(matrix_of(found.features[depth], i), moments, atol=1e-12)
            start += layer[i].numel()


@pytest.mark.parametrize("damping", [1e-3, 0.0])
@pytest.mark.parametrize("widths", WIDTHS)
def test_the_preconditioner_inverts_its_model(widths, damping):
    """Several gradients of one network; without damping, the least one."""
    rng = np.random.default_rng(6)
    task = random_task(rng, "tanh", n_samples=60, n_outputs=2)
    layers = random_batch(rng, 1, widths, n_outputs=2)
    factors = KroneckerFactors.of(task, layers)
    solves = replace(SOLVES, block_rcond=1e-3)
    given = torch.full((1,), damping, dtype=torch.float64)
    preconditioner = factors.damped(given, solves, torch.float64)
    right = tuple(torch.tensor(rng.normal(size=(2, *layer.shape[1:]))) for layer in layers[:-1])
    found = preconditioner.times(flat_parameters(right), layers[:-1]).numpy()
    expected = []
    both = zip(factors.derivatives, factors.features, right, strict=True)
    for derivatives, features, vectors in both:
        model = np.kron(matrix_of(derivatives), matrix_of(features))
        least = 1e-3 * float(derivatives.values.max() * features.values.max())
        model += max(damping, least) * np.eye(len(model))
        expected.append(np.linalg.solve(model, vectors.flatten(start_dim=1).numpy().T).T)
    assert_allclose(found, np.hstack(expected), rtol=1e-9, atol=1e-9)


def test_networks_have_their_own_factors_and_damping():
    rng = np.random.default_rng(4)
    task, layers = random_task(rng, "g", n_samples=100), random_batch(rng, 3)
    layers[0][1] = np.nan
    damping = torch.tensor([1e-1, 1e-2, 1e-3], dtype=torch.float64)
    vectors = torch.tensor(rng.normal(size=(3, layers[0][0].numel())))
    factors = KroneckerFactors.of(task, layers)
    found = factors.damped(damping, SOLVES, torch.float64).times(vectors, layers[:-1])
    assert found.isfinite().all()
    for i in (0, 2):
        own = KroneckerFactors.of(task, alone(layers, i))
        taken = factors.take(torch.tensor([i]))
        for single in (own, taken):
            preconditioner = single.damped(damping[[i]], SOLVES, torch.float64)
            expected = preconditioner.times(vectors[[i]], alone(layers, i)[:-1])
            assert_allclose(found[[i]], expected, rtol=1e-9, atol=1e-12)
    assert factors.take(torch.arange(3)) is factors


def test_a_matrix_that_is_not_finite_counts_as_zero():
    factor = Factor.of(torch.tensor([[[np.nan, 0.0], [0.0, np.inf]]], dtype=torch.float64))
    assert not factor.values.any()
    assert factor.vectors.isfinite().all()


def test_it_takes_fewer_products_than_blocks_where_inputs_are_normal(monkeypatch):
    rng = np.random.default_rng(8)
    task = random_task(rng, "relu", n_samples=6000, n_inputs=40)
    layers = random_batch(rng, 1, (16,), n_inputs=40)
    products, product = [], DampedMatrixFreeSystem._product

    def counted(system, direction):
        products[-1] += 1
        return product(system, direction)

    monkeypatch.setattr(DampedMatrixFreeSystem, "_product", counted)
    solves = replace(SOLVES, relative_residual=1e-2)
    for kind in (KroneckerFactors, NeuronBlocks):
        equations = MatrixFreeEquations.assemble(task, layers, kind.of(task, layers, 16), solves)
        products.append(0)
        equations.damped(torch.full((1,), 1e-9, dtype=torch.float64)).step(equations.gradient)
    assert products[0] < 0.8 * products[1]


@pytest.mark.parametrize(("name", "has_coarse"), [("g", True), ("relu", False)])
def test_the_coarse_space_comes_in_addition_unless_scales_are_free(name, has_coarse):
    rng = np.random.default_rng(9)
    task = random_task(rng, name, n_samples=200, n_inputs=4)
    layers = random_batch(rng, 2, n_inputs=4)
    damping, hidden = torch.full((2,), 1e-3, dtype=torch.float64), layers[:-1]
    vectors = torch.tensor(rng.normal(size=(2, layers[0][0].numel())))
    factors = KroneckerFactors.of(task, layers, None, SOLVES)
    assert (factors.coarse is not None) == has_coarse
    alone = KroneckerFactors.of(task, layers).damped(damping, SOLVES, torch.float64)
    added = factors.damped(damping, SOLVES, torch.float64).times(vectors, hidden)
    added = added - alone.times(vectors, hidden)
    if has_coarse:
        coarse = CoarseSpace.of(task, layers, SOLVES.coarse_rows).damped(damping, 1e-13)
        gradients = split_parameters(vectors, hidden)
        assert_allclose(added, coarse.times(gradients), rtol=1e-9, atol=1e-12)
    else:
        assert not added.any()
