"""Networks, students and rows with known answers, for tests that train nothing."""

import numpy as np

from sklearn_ec._core.records import Network, Samples
from sklearn_ec._expand.students import layer_shapes


def random_network(rng, widths, n_inputs, n_outputs, has_skip=False):
    shapes = layer_shapes(n_inputs, np.atleast_1d(widths).tolist(), n_outputs, has_skip)
    return Network(tuple(rng.normal(size=shape) for shape in shapes))


def evaluate(network, activation, X):
    """Outputs in plain numpy, with skip terms where a layer has columns for them."""
    ones, levels = np.ones((len(X), 1)), X  # nearer levels in front
    for layer in network.layers:
        z = np.hstack([levels[:, : layer.shape[1] - 1], ones]) @ layer.T
        levels = np.hstack([activation.function(z), levels])
    return z


def flip_into_skip(network, activation, flipped):
    """The same function with flipped neurons, the linear remainder in skip terms.

    ``flipped`` holds a mask per hidden layer. By ``s(z) = s(-z) + c z`` the activations of the
    ordinary network are linear in the constant and the activations of the flipped network.
    """
    layers, expressed = [], np.eye(network.layers[0].shape[1])
    for layer, mask in zip(network.layers, [*flipped, None], strict=True):
        z = layer @ expressed
        if mask is None:
            return Network((*layers, z))
        layers.append(np.where(mask[:, None], -z, z))
        expressed = np.block([[np.eye(len(z)), activation.flip * mask[:, None] * z]])
        constant = np.append(np.zeros(expressed.shape[1] - 1), 1.0)
        expressed = np.vstack([expressed, constant])
    raise AssertionError


def random_masks(rng, network):
    return [rng.random(width) < 0.5 for width in network.widths]


def disguise(rng, network, activation):
    """An equivalent network: neurons of all hidden layers permuted, turned and scaled."""
    layers, orders = [layer.copy() for layer in network.layers], []
    for depth, width in enumerate(network.widths):
        order = rng.permutation(width)
        signs, scales = np.ones(width), np.ones(width)
        if activation.symmetry == "odd":
            signs = rng.choice([-1.0, 1.0], size=width)
        if activation.homogeneous:
            scales = rng.uniform(0.1, 10.0, size=width)
        layers[depth] = (layers[depth] * (signs * scales)[:, None])[order]
        outgoing = layers[depth + 1][:, :-1]
        layers[depth + 1][:, -1] += activation.flip * outgoing[:, signs < 0].sum(axis=1)
        layers[depth + 1][:, :-1] = (outgoing * signs / scales)[:, order]
        orders.append(order)
    return Network(tuple(layers)), orders


def assert_same_function(first, second, activation, rng, atol=1e-11):
    X = 2.0 * rng.normal(size=(50, first.levels[0]))
    expected = evaluate(second, activation, X)
    atol = atol * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(evaluate(first, activation, X), expected, rtol=0, atol=atol)


def assert_same_layers(network, expected, atol=1e-13):
    for layer, same in zip(network.layers, expected.layers, strict=True):
        atol_here = atol * max(1.0, np.abs(same).max())
        np.testing.assert_allclose(layer, same, rtol=0, atol=atol_here)


def samples_of(network, activation, rng, n_samples=60):
    X = rng.normal(size=(n_samples, network.levels[0]))
    weight = rng.uniform(0.2, 3.0, size=n_samples)
    return Samples(X, evaluate(network, activation, X), weight / weight.mean())
