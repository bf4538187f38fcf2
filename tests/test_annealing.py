"""Pruning, the skip term and the certificate on planted networks."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec._activations import get_activation
from sklearn_ec._annealing import Annealer, prune, removal_candidates
from sklearn_ec._certificate import certify, relative_error
from sklearn_ec._preprocessing import standardize
from sklearn_ec._reconstruction import design_matrix
from sklearn_ec._training import Trainer
from sklearn_ec._types import Network, Samples
from sklearn_ec.datasets import make_teacher
from sklearn_ec.metrics import max_cosine_distance

EPS = np.finfo(float).eps


def planted(activation, width=3, n_rows=400, n_inputs=3, seed=0):
    """A network, a trainer on rows of it, and rows kept out."""
    rng = np.random.default_rng(seed)
    network = Network(
        rng.normal(size=(width, n_inputs + 1)), np.append(1.0 + rng.random(width), 0.3)[None]
    )
    parts = []
    for n in (n_rows, 50):
        samples = Samples(rng.normal(size=(n, n_inputs)), np.zeros((n, 1)), np.ones(n))
        outputs = design_matrix(network.hidden, samples, get_activation(activation), False)
        parts.append(Samples(samples.X, outputs @ network.readout.T, samples.sample_weight))
    has_skip = get_activation(activation).has_linear_flip
    return network, Trainer(*parts, activation, "cpu", has_skip), parts[1]


def with_spare_neurons(network, noise=0.0, seed=1):
    """A duplicate that shares a neuron's outgoing weight, a zero group and a junk neuron."""
    rng = np.random.default_rng(seed)
    extra = rng.normal(size=(2, network.hidden.shape[1]))
    hidden = np.vstack([network.hidden, network.hidden[:1], extra[:1], extra[:1], extra[1:]])
    outgoing = network.outgoing.copy()
    half = 0.5 * outgoing[:, :1]
    outgoing[:, :1] = half
    spare = np.array([[0.4, -0.4, 1e-3]])
    readout = np.hstack([outgoing, half, spare, network.bias[:, None]])
    return Network(hidden + noise * rng.normal(size=hidden.shape), readout)


def as_layers(network):
    return (
        [network.hidden[:, :-1].T, network.outgoing.T],
        [network.hidden[:, -1], network.bias],
    )


@pytest.mark.parametrize("activation", ["tanh", "g", "relu", "softplus", "elu"])
def test_finish_finds_the_planted_network(activation):
    network, trainer, held_out = planted(activation)
    start = with_spare_neurons(network, noise=1e-3)
    if trainer.has_skip:
        start = Network(start.hidden, np.hstack([start.readout, np.zeros((1, 3))]))
    candidate = Annealer(trainer, held_out, EPS, prune=True).finish(start)
    assert candidate.certificate.passed
    assert candidate.network.width == network.width
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), activation) < 1e-20


def test_prune_keeps_necessary_neurons():
    network, trainer, _ = planted("tanh", width=4)
    pruned, loss = prune(network, 1e-31, trainer)
    assert pruned.width == 4
    assert loss < 1e-24


def test_candidates_are_the_neurons_of_least_cost():
    """Brute force: remove each neuron, solve the readout again, compare the errors."""
    network, trainer, _ = planted("tanh", width=4)
    spare = with_spare_neurons(network)
    samples, activation = trainer.samples, trainer.activation
    costs = []
    for neuron in range(spare.width):
        design = design_matrix(np.delete(spare.hidden, neuron, axis=0), samples, activation, False)
        solution = np.linalg.lstsq(design, samples.y, rcond=1e-14)[0]
        costs.append(np.sum((design @ solution - samples.y) ** 2))
    first = removal_candidates(spare, samples, activation, group=1)
    assert len(first) == 3
    needed = {1, 2, 3}  # all but one neuron of each duplicated pair, and the junk neuron, may go
    assert not needed & {int(c[0]) for c in first}
    assert max(costs[int(c[0])] for c in first) < 1e-20 < min(costs[i] for i in needed)


def test_a_group_of_candidates_is_jointly_superfluous():
    network, trainer, _ = planted("tanh", width=4)
    spare = with_spare_neurons(network)
    (group,) = removal_candidates(spare, trainer.samples, trainer.activation, group=4)
    design = design_matrix(
        np.delete(spare.hidden, group, axis=0), trainer.samples, trainer.activation, False
    )
    solution = np.linalg.lstsq(design, trainer.samples.y, rcond=1e-14)[0]
    assert_allclose(design @ solution, trainer.samples.y, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_a_linear_term_becomes_a_pair_of_neurons(activation):
    """A network plus a linear function that no flip of signs absorbs."""
    network, trainer, held_out = planted(activation)
    slope = np.array([0.3, -0.2, 0.5])
    shifted = [
        Samples(part.X, part.y + (part.X @ slope)[:, None], part.sample_weight)
        for part in (trainer.samples, held_out)
    ]
    trainer = Trainer(*shifted, activation, "cpu", has_skip=True)
    start = Network(network.hidden, np.hstack([network.readout, slope[None]]))
    candidate = Annealer(trainer, shifted[1], EPS, prune=True).finish(start)
    assert candidate.network.skip.size == 0
    assert candidate.network.width == 5
    assert candidate.certificate.error < 1e-12


def test_judge_as_is_changes_no_output():
    network, trainer, held_out = planted("relu")
    skip = Network(network.hidden, np.hstack([network.readout, [[0.1, 0.2, 0.3]]]))
    candidate = Annealer(trainer, held_out, EPS, prune=True).judge_as_is(skip)
    rows = trainer.samples
    before = design_matrix(skip.hidden, rows, trainer.activation, True) @ skip.readout.T
    after = design_matrix(candidate.network.hidden, rows, trainer.activation, False)
    assert_allclose(after @ candidate.network.readout.T, before, rtol=1e-12)
    assert not candidate.certificate.passed


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_neurons_without_a_kink_in_the_data_are_removed_first(sign):
    """Always active, a ReLU neuron is a linear function that the skip term holds as well."""
    network, trainer, _ = planted("relu")
    kinkless = sign * np.array([0.1, -0.2, 0.1, 5.0])
    spare = Network(
        np.vstack([network.hidden, kinkless]),
        np.hstack([network.outgoing, [[2.0]], network.readout[:, -1:], np.zeros((1, 3))]),
    )
    candidates = removal_candidates(spare, trainer.samples, trainer.activation, 1)
    assert candidates[0].tolist() == [3]
    crowd = with_spare_neurons(spare, 0.0)  # with a duplicate and a pair that cancels
    (group,) = removal_candidates(crowd, trainer.samples, trainer.activation, 4)
    assert 3 in group


def test_certificate_accepts_the_planted_network():
    network, trainer, held_out = planted("tanh")
    certificate = certify(network, trainer, held_out, EPS)
    assert certificate.passed
    assert certificate.reason == ""
    assert certificate.n_equations == 400
    assert certificate.n_parameters == 16


def test_certificate_refuses_spare_neurons():
    network, trainer, held_out = planted("tanh")
    certificate = certify(with_spare_neurons(network, 0.0), trainer, held_out, EPS)
    assert "above rounding" in certificate.reason  # the junk neuron has weight
    duplicate = Network(
        np.vstack([network.hidden, network.hidden[:1]]),
        np.hstack([network.outgoing * [0.5, 1, 1], 0.5 * network.outgoing[:, :1], [[0.3]]]),
    )
    certificate = certify(duplicate, trainer, held_out, EPS)
    assert certificate.error < 1e-13
    assert not certificate.passed
    assert "leave the weights open" in certificate.reason


def test_certificate_measures_curvature_where_neurons_are_nearly_polynomial():
    """A singular value below the root of the error, and still a single solution."""
    teacher = make_teacher(2, 8, activation="silu", random_state=1)
    X = np.random.default_rng(1).uniform(-1.7, 1.7, size=(900, 2))
    rows, coordinates = standardize(X, teacher.predict(X)[:, None], np.ones(len(X)))
    weights, biases = teacher.weights_, teacher.biases_
    hidden = np.hstack(
        [
            (weights[0] * coordinates.x_scale[:, None]).T,
            (biases[0] + coordinates.x_mean @ weights[0])[:, None],
        ]
    )
    bias = (biases[1] - coordinates.y_mean) / coordinates.y_scale
    network = Network(hidden, np.hstack([(weights[1] / coordinates.y_scale).T, bias[:, None]]))
    trainer = Trainer(rows, rows, "silu", "cpu", has_skip=False)
    certificate = certify(network, trainer, rows, coordinates.y_rounding)
    assert certificate.passed
    smallest = max(certificate.error, coordinates.y_rounding) / certificate.weight_error
    assert smallest < 1e-5
    spare = Network(
        np.vstack([hidden, hidden[:1]]),
        np.insert(network.readout * np.r_[0.5, np.ones(8)], 8, 0.5 * network.readout[:, 0], axis=1),
    )
    assert not certify(spare, trainer, rows, coordinates.y_rounding).passed


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_certificate_refuses_an_idle_neuron_on_constant_targets(activation):
    rows = Samples(np.random.default_rng(0).normal(size=(50, 2)), np.zeros((50, 1)), np.ones(50))
    trainer = Trainer(rows, rows, activation, "cpu", has_skip=False)
    idle = Network(np.ones((1, 3)), np.zeros((1, 2)))
    assert not certify(idle, trainer, rows, EPS).passed


def test_certificate_refuses_errors_on_held_out_rows():
    network, trainer, held_out = planted("tanh")
    wrong = Samples(held_out.X, held_out.y + 1e-9, held_out.sample_weight)
    certificate = certify(network, trainer, wrong, EPS)
    assert not certificate.passed
    assert_allclose(certificate.held_out_error, 1e-9, rtol=1e-3)


def test_certificate_refuses_too_few_equations():
    network, trainer, held_out = planted("tanh", n_rows=31)
    certificate = certify(network, trainer, held_out, EPS)
    assert not certificate.passed
    assert "31 equations are too few for 16 parameters" in certificate.reason
    network, trainer, held_out = planted("tanh", n_rows=32)
    assert certify(network, trainer, held_out, EPS).passed


def test_relative_error_is_weighted():
    network, trainer, _ = planted("tanh")
    y = trainer.samples.y.copy()
    y[0] += 1.0
    weight = np.r_[0.0, np.ones(399)]
    ignored = Samples(trainer.samples.X, y, weight)
    assert relative_error(network, ignored, trainer.activation) < 1e-14
    counted = Samples(trainer.samples.X, y, np.ones(400))
    assert_allclose(relative_error(network, counted, trainer.activation), 400**-0.5)


def test_annealer_without_pruning_keeps_the_width():
    network, trainer, held_out = planted("tanh")
    spare = with_spare_neurons(network)
    candidate = Annealer(trainer, held_out, EPS, prune=False).finish(spare)
    assert candidate.network.width == spare.width
    assert_array_equal(candidate.network.hidden.shape, spare.hidden.shape)
