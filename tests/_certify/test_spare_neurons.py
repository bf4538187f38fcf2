"""The certificate tells planted networks from those with spare, idle or open neurons."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from builders import (
    ALL_LARGE,
    open_in_one_neuron,
    plain,
    planted,
    planted_deep,
    rows_of,
    with_spare_neurons,
)
from sklearn_ec._certify.examination import certify, relative_error
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import standardize
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Verdict
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec.datasets import make_teacher


def test_certificate_accepts_the_planted_network():
    network, polisher, held_out = planted("tanh")
    certificate = certify(network, polisher.task, polisher.samples, held_out, plain(held_out))
    assert certificate.passed
    assert certificate.reason == ""
    assert certificate.n_equations == 400
    assert certificate.n_parameters == 16


def test_large_networks_are_judged_by_single_neurons_first():
    network, polisher, held_out = planted("tanh")
    rows = polisher.task, polisher.samples, held_out, plain(held_out)
    whole = certify(network, *rows)
    on_all_rows = replace(ALL_LARGE.verdict, equations=1e9)
    assert certify(network, *rows, on_all_rows) == whole
    assert whole.is_conclusive
    assert whole.fits_exactly


@pytest.mark.parametrize("limit", [0, 1000])
def test_weights_that_the_rows_leave_open_are_found_either_way(limit):
    network, polisher, held_out = open_in_one_neuron()
    verdict = Verdict(max_dense_parameters=limit)
    certificate = certify(
        network, polisher.task, polisher.samples, held_out, plain(held_out), verdict
    )
    assert not certificate.passed
    assert certificate.fits_exactly
    assert certificate.weight_error > 1.0
    assert "leave the weights open" in certificate.reason
    assert np.isnan(certificate.isolation) == (limit == 0)
    assert certificate.is_conclusive == (limit == 0)


@pytest.mark.parametrize("limit", [0, 1000])
def test_large_networks_without_why_are_refused_and_conclusive(limit):
    """Whatever was measured, unless that ended with single neurons that the rows leave open."""
    why = "rows were joined"
    for is_open, (network, polisher, held_out) in (
        (False, planted("tanh")),
        (True, open_in_one_neuron()),
    ):
        certificate = certify(
            network,
            polisher.task,
            polisher.samples,
            held_out,
            plain(held_out),
            Verdict(max_dense_parameters=limit),
            untested=why,
        )
        assert (certificate.obstacle, certificate.reason) == ("no rows left", why)
        assert not certificate.passed
        assert not certificate.function_certified
        assert certificate.is_exact
        assert certificate.is_conclusive == (limit == 0 and not is_open)


def test_other_students_may_help_where_a_network_is_refused_for_other_reasons():
    network, polisher, held_out = planted("tanh")
    rows = polisher.task, polisher.samples, held_out, plain(held_out)
    for refused in (with_spare_neurons(network), with_spare_neurons(network, noise=1e-3)):
        certificate = certify(refused, *rows, ALL_LARGE.verdict)
        assert not certificate.passed
        assert not certificate.is_conclusive


def test_certificate_refuses_spare_neurons():
    network, polisher, held_out = planted("tanh")
    certificate = certify(
        with_spare_neurons(network, 0.0), polisher.task, polisher.samples, held_out, plain(held_out)
    )
    assert "above rounding" in certificate.reason  # the junk neuron has weight
    hidden, readout = network.layers
    halves = readout * [0.5, 1.0, 1.0, 1.0]
    duplicate = Network(
        (np.vstack([hidden, hidden[:1]]), np.insert(halves, 3, halves[:, 0], axis=1))
    )
    certificate = certify(duplicate, polisher.task, polisher.samples, held_out, plain(held_out))
    assert certificate.error < 1e-13
    assert not certificate.passed
    assert "leave the weights open" in certificate.reason


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "softplus"])
@pytest.mark.parametrize(("angle", "passes"), [(0.0, False), (1e-9, False), (0.3, True)])
def test_opposite_neurons_may_stand_for_a_linear_one(activation, angle, passes):
    """A neuron that is linear on these rows, and bends elsewhere, gives the same targets.

    With a single output, the bias of the readout would be open, too.
    """
    rng = np.random.default_rng(0)
    hidden, readout = rng.normal(size=(3, 4)), rng.normal(size=(2, 5))
    opposite = -hidden[:1] + angle * np.linalg.norm(hidden[0]) * np.eye(1, 4)
    pair = Network((np.vstack([hidden, opposite]), readout))
    polisher, held_out = rows_of(pair, activation, 400, rng)
    certificate = certify(pair, polisher.task, polisher.samples, held_out, plain(held_out))
    assert certificate.passed == certificate.function_certified == passes
    assert ("opposite" in certificate.reason) == (certificate.obstacle == "bend") == (not passes)


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_certificate_tells_deep_networks_from_those_with_spare_neurons(activation):
    network, polisher, held_out = planted_deep(activation)
    certificate = certify(network, polisher.task, polisher.samples, held_out, plain(held_out))
    assert certificate.passed
    assert certificate.n_parameters == 16 + 15 + 4
    for depth in range(2):
        layers = list(network.layers)
        layers[depth] = np.vstack([layers[depth], layers[depth][:1]])
        halves = layers[depth + 1].copy()
        halves[:, 0] *= 0.5
        width = network.widths[depth]
        layers[depth + 1] = np.insert(halves, width, halves[:, 0], axis=1)
        certificate = certify(
            Network(tuple(layers)), polisher.task, polisher.samples, held_out, plain(held_out)
        )
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
    readout = np.hstack([(weights[1] / coordinates.y_scale).T, bias[:, None]])
    network = Network((hidden, readout))
    polisher = Polisher(rows, rows, "silu", "cpu", has_skip=False)
    certificate = certify(network, polisher.task, polisher.samples, rows, coordinates)
    assert certificate.passed
    smallest = max(certificate.error, coordinates.y_rounding) / certificate.weight_error
    assert smallest < 1e-5
    halves = readout * np.r_[0.5, np.ones(8)]
    spare = Network((np.vstack([hidden, hidden[:1]]), np.insert(halves, 8, halves[:, 0], axis=1)))
    assert not certify(spare, polisher.task, polisher.samples, rows, coordinates).passed


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_certificate_refuses_an_idle_neuron_on_constant_targets(activation):
    rows = Samples.of(np.random.default_rng(0).normal(size=(50, 2)), np.zeros((50, 1)), np.ones(50))
    polisher = Polisher(rows, rows, activation, "cpu", has_skip=False)
    idle = Network((np.ones((1, 3)), np.zeros((1, 2))))
    assert not certify(idle, polisher.task, polisher.samples, rows, plain(rows)).passed


def test_certificate_refuses_errors_on_held_out_rows():
    network, polisher, held_out = planted("tanh")
    wrong = Samples.of(held_out.X, held_out.y + 1e-9, held_out.sample_weight)
    certificate = certify(network, polisher.task, polisher.samples, wrong, plain(wrong))
    assert not certificate.passed
    assert_allclose(certificate.held_out_error, 1e-9, rtol=1e-3)


def test_certificate_refuses_too_few_equations():
    network, polisher, held_out = planted("tanh", n_rows=31)
    certificate = certify(network, polisher.task, polisher.samples, held_out, plain(held_out))
    assert not certificate.passed
    assert "31 equations are too few for 16 parameters" in certificate.reason
    network, polisher, held_out = planted("tanh", n_rows=32)
    assert certify(network, polisher.task, polisher.samples, held_out, plain(held_out)).passed


def test_relative_error_is_weighted():
    network, polisher, _ = planted("tanh")
    y = polisher.samples.y.copy()
    y[0] += 1.0
    weight = np.r_[0.0, np.ones(399)]
    ignored = Samples.of(polisher.samples.X, y, weight)
    assert relative_error(network, ignored, polisher.activation) < 1e-14
    counted = Samples.of(polisher.samples.X, y, np.ones(400))
    assert_allclose(relative_error(network, counted, polisher.activation), 400**-0.5)


def test_certificate_refuses_a_layer_that_passes_activations_on():
    """A second ReLU layer over a single one: sums of nonnegative activations have no kink."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4, 4))
    through = np.array([[1.0, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.7, 0.0]])
    network = Network((hidden, through, np.array([[1.0, -1.0, 0.2]])))
    parts = []
    for n in (600, 60):
        X = rng.normal(size=(n, 3))
        y = network_outputs(network, X, get_activation("relu"))
        parts.append(Samples.of(X, y, np.ones(n)))
    polisher = Polisher(*parts, "relu", "cpu", False)
    certificate = certify(network, polisher.task, polisher.samples, parts[1], plain(parts[1]))
    assert not certificate.passed
    assert "linear function on the data" in certificate.reason
