"""Singular values, Newton steps and curvatures of single networks."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklearn_ec._linearization import Linearization
from sklearn_ec._students import layer_shapes
from sklearn_ec._training import Trainer
from sklearn_ec._types import Network, Samples


@pytest.fixture
def rows():
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.5, 2.0, size=300)
    return Samples(rng.normal(size=(300, 3)), rng.normal(size=(300, 1)), weight / weight.mean())


@pytest.fixture
def trainer(rows):
    return Trainer(rows, rows, "tanh", "cpu", has_skip=False)


def random_network(widths=(3,), n_outputs=1, seed=0):
    rng = np.random.default_rng(seed)
    shapes = layer_shapes(3, widths, n_outputs, has_skip=False)
    return Network(tuple(rng.normal(size=shape) for shape in shapes))


def flat(layers):
    return np.concatenate([np.ravel(layer) for layer in layers])


def unflatten(parameters, network):
    parts = np.split(parameters, np.cumsum([layer.size for layer in network.layers])[:-1])
    return tuple(p.reshape(layer.shape) for p, layer in zip(parts, network.layers, strict=True))


def residuals_of(task, layers):
    return task.residuals(tuple(torch.from_numpy(layer)[None] for layer in layers)).numpy().ravel()


def numerical_jacobian(task, network, step=1e-6):
    start = flat(network.layers)
    columns = []
    for offset in step * np.eye(len(start)):
        ends = [
            residuals_of(task, unflatten(start + sign * offset, network)) for sign in (1.0, -1.0)
        ]
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, axis=1)


def incoming_lengths(network):
    """The unit of every parameter."""
    *hidden, readout = network.layers
    lengths = [np.repeat(np.linalg.norm(a, axis=1), a.shape[1]) for a in hidden]
    return np.concatenate([*lengths, np.ones(readout.size)])


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 2)])
@pytest.mark.parametrize("n_chunks", [1, 5])
def test_singular_values(rows, monkeypatch, n_chunks, widths, n_outputs):
    rows = Samples(rows.X, np.tile(rows.y, n_outputs), rows.sample_weight)
    trainer = Trainer(rows, rows, "tanh", "cpu", has_skip=False)
    chunks = trainer.task.chunks(1)[0]
    step = min(chunks.stop, 300) // n_chunks
    monkeypatch.setattr(
        type(trainer.task),
        "chunks",
        lambda self, n: [slice(i, i + step) for i in range(0, len(self.inputs), step)],
    )
    network = random_network(widths, n_outputs)
    jacobian = numerical_jacobian(trainer.task, network)
    scaled = jacobian * incoming_lengths(network) / np.sqrt(len(jacobian))
    values = np.linalg.svd(scaled, compute_uv=False)
    computed = Linearization(trainer.task, network)
    assert_allclose(computed.singular_values.numpy(), values, rtol=1e-5)
    changes = np.linalg.norm(jacobian @ computed.directions.numpy().T, axis=0)
    assert_allclose(changes / np.sqrt(len(jacobian)), values, rtol=1e-5)


# Seeds of networks in which every neuron has a kink that the outputs show.
@pytest.mark.parametrize(
    ("widths", "seed"), [((3,), 0), ((3, 2), 11), ((3, 4), 55), ((4, 3, 3), 107)]
)
def test_scale_of_homogeneous_neurons_is_pinned(rows, widths, seed):
    trainer = Trainer(rows, rows, "relu", "cpu", has_skip=False)
    network = random_network(widths, seed=seed)
    unpinned = numerical_jacobian(trainer.task, network) * incoming_lengths(network)
    values = np.linalg.svd(unpinned / np.sqrt(len(unpinned)), compute_uv=False)
    assert np.sum(values < 1e-8) == sum(widths)
    assert Linearization(trainer.task, network).singular_values[-1] > 1e-3
    for layer in range(len(widths)):
        doubled = with_double(network, layer)
        assert Linearization(trainer.task, doubled).singular_values[-1] < 1e-12


def with_double(network, layer):
    """The first neuron of a layer twice, with outgoing weights of 0.5."""
    layers = list(network.layers)
    layers[layer] = np.vstack([layers[layer], layers[layer][:1]])
    layers[layer + 1] = np.insert(layers[layer + 1], network.widths[layer], 0.5, axis=1)
    return Network(tuple(layers))


@pytest.mark.parametrize("name", ["tanh", "relu"])
@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 2)])
def test_newton_step_solves_the_linearized_problem(rows, name, widths):
    trainer = Trainer(rows, rows, name, "cpu", has_skip=False)
    network = random_network(widths)
    jacobian = numerical_jacobian(trainer.task, network)
    residuals = residuals_of(trainer.task, network.layers)
    steps = Linearization(trainer.task, network).newton_step()
    assert [tuple(step.shape) for step in steps] == [(1, *a.shape) for a in network.layers]
    step, scale = flat(steps), incoming_lengths(network)
    # Minimum norm in units of the parameters' scales.
    expected = -scale * np.linalg.lstsq(jacobian * scale, residuals, rcond=1e-7)[0]
    assert_allclose(step, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 2)])
def test_curvatures_match_finite_differences(trainer, widths):
    network = random_network(widths)
    linearization = Linearization(trainer.task, network)
    size, squares = 1e-4, []
    for direction in linearization.directions[-4:].numpy():
        values = [
            residuals_of(
                trainer.task, unflatten(flat(network.layers) + sign * size * direction, network)
            )
            for sign in (1.0, 0.0, -1.0)
        ]
        bend = (values[0] - 2.0 * values[1] + values[2]) / size**2
        squares.append(np.mean(bend**2))
    assert_allclose(linearization.curvatures(4).numpy(), np.sqrt(squares), rtol=1e-4)
    everything = linearization.curvatures(1000)
    assert len(everything) == network.n_parameters
