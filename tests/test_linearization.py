"""Singular values, Newton steps and curvatures of single networks."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklearn_ec._linearization import Linearization
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


def random_network(width=3, n_outputs=1):
    rng = np.random.default_rng(0)
    return Network(rng.normal(size=(width, 4)), rng.normal(size=(n_outputs, width + 1)))


def numerical_jacobian(task, hidden, readout, step=1e-6):
    flat = np.concatenate([hidden.ravel(), readout.ravel()])
    columns = []
    for i in range(len(flat)):
        ends = []
        for sign in (1.0, -1.0):
            moved = flat.copy()
            moved[i] += sign * step
            parts = moved[: hidden.size].reshape(hidden.shape), moved[hidden.size :]
            tensors = [
                torch.from_numpy(p)[None] for p in (parts[0], parts[1].reshape(readout.shape))
            ]
            ends.append(task.residuals(*tensors).flatten().numpy())
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("n_chunks", [1, 5])
def test_smallest_singular_value(trainer, monkeypatch, n_chunks):
    chunks = trainer.task.chunks(1)[0]
    step = chunks.stop // n_chunks
    monkeypatch.setattr(
        type(trainer.task),
        "chunks",
        lambda self, n: [slice(i, i + step) for i in range(0, len(self.inputs), step)],
    )
    rng = np.random.default_rng(0)
    hidden, readout = rng.normal(size=(3, 4)), rng.normal(size=(1, 4))
    jacobian = numerical_jacobian(trainer.task, hidden, readout)
    lengths = np.repeat(np.linalg.norm(hidden, axis=1), 4)
    scale = np.concatenate([lengths, np.ones(4)])
    values = np.linalg.svd(jacobian * scale / np.sqrt(len(jacobian)), compute_uv=False)
    computed = Linearization(trainer.task, Network(hidden, readout))
    assert_allclose(computed.singular_values.numpy(), values, rtol=1e-5)


def test_scale_of_homogeneous_neurons_is_pinned(rows):
    trainer = Trainer(rows, rows, "relu", "cpu", has_skip=False)
    rng = np.random.default_rng(0)
    network = Network(rng.normal(size=(3, 4)), rng.normal(size=(1, 4)))
    assert Linearization(trainer.task, network).singular_values[-1] > 1e-3
    doubled = Network(
        np.vstack([network.hidden, network.hidden[:1]]), np.insert(network.readout, 3, 0.5, axis=1)
    )
    assert Linearization(trainer.task, doubled).singular_values[-1] < 1e-12


def test_newton_step_solves_the_linearized_problem(trainer):
    network = random_network()
    jacobian = numerical_jacobian(trainer.task, network.hidden, network.readout)
    parts = (torch.from_numpy(part)[None] for part in (network.hidden, network.readout))
    residuals = trainer.task.residuals(*parts).flatten().numpy()
    step = Linearization(trainer.task, network).newton_step()
    step = np.concatenate([part.flatten().numpy() for part in step])
    expected = -np.linalg.lstsq(jacobian, residuals)[0]
    assert_allclose(step, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_curvatures_match_finite_differences(trainer):
    network = random_network()
    linearization = Linearization(trainer.task, network)
    size, squares = 1e-4, []
    for direction in linearization.directions[-4:]:
        step = (direction[:12].view(3, 4), direction[12:].view(1, 4))
        values = []
        for sign in (1.0, 0.0, -1.0):
            hidden = linearization.hidden + sign * size * step[0]
            readout = linearization.readout + sign * size * step[1]
            values.append(trainer.task.residuals(hidden[None], readout[None]))
        bend = (values[0] - 2.0 * values[1] + values[2]) / size**2
        squares.append(bend.square().mean().item())
    assert_allclose(linearization.curvatures(4).numpy(), np.sqrt(squares), rtol=1e-4)
    everything = linearization.curvatures(1000)
    assert len(everything) == network.n_parameters
