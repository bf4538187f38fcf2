"""The canonical form: the same for all equivalent networks."""

import numpy as np
import pytest

from builders import assert_same_function, disguise, random_network
from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.canonical import canonical_form
from sklearn_ec._core.records import Network

NAMES = sorted(ACTIVATIONS)


def canonical(network, activation):
    weights = [layer[:, :-1].T for layer in network.layers]
    return canonical_form(weights, [layer[:, -1] for layer in network.layers], activation)


def as_network(weights, biases):
    pairs = zip(weights, biases, strict=True)
    return Network(tuple(np.hstack([w.T, b[:, None]]) for w, b in pairs))


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("widths", [(6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_canonical_form_keeps_the_function_and_fixes_order_sign_and_scale(name, widths, n_outputs):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(12)
    network = random_network(rng, widths, 3, n_outputs)
    before = [layer.copy() for layer in network.layers]
    weights, biases = canonical(network, activation)
    form = as_network(weights, biases)
    assert_same_function(form, network, activation, rng)
    for layer, same in zip(network.layers, before, strict=True):
        np.testing.assert_array_equal(layer, same)

    for depth, width in enumerate(widths):
        outgoing = weights[depth + 1]
        sizes = np.linalg.norm(outgoing, axis=1)
        assert np.all(np.diff(sizes) <= 1e-14 * sizes[:-1])
        if activation.homogeneous:
            lengths = np.linalg.norm(form.layers[depth], axis=1)
            np.testing.assert_allclose(lengths, 1.0, rtol=1e-14)
        if activation.symmetry == "odd":
            largest = np.argmax(np.abs(outgoing), axis=1)
            assert np.all(outgoing[np.arange(width), largest] > 0)


@pytest.mark.parametrize("widths", [(5,), (5, 4), (5, 4, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_canonical_form_is_the_same_for_equivalent_networks(name, widths):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(13)
    network = random_network(rng, widths, 3, 2)
    equivalent, _ = disguise(rng, network, activation)
    assert_same_function(equivalent, network, activation, rng)
    expected, form = canonical(network, activation), canonical(equivalent, activation)
    for actual, desired in zip(form[0] + form[1], expected[0] + expected[1], strict=True):
        atol = 1e-13 * max(1.0, np.abs(desired).max())
        np.testing.assert_allclose(actual, desired, rtol=0, atol=atol)


def test_canonical_form_without_neurons_or_with_dead_ones():
    weights, biases = canonical_form(
        [np.empty((3, 0)), np.empty((0, 2))],
        [np.empty(0), np.array([1.0, 2.0])],
        ACTIVATIONS["tanh"],
    )
    assert weights[0].shape == (3, 0)
    np.testing.assert_array_equal(biases[1], [1.0, 2.0])
    dead = Network((np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[5.0, 1.0, 0.0]])))
    weights, biases = canonical(dead, ACTIVATIONS["relu"])
    np.testing.assert_allclose(weights[0], [[0.0, 0.6]])
    np.testing.assert_allclose(weights[1], [[5.0], [5.0]])
