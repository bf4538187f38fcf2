"""Networks, students and rows with known answers, and settings, for quick tests."""

from dataclasses import replace

import numpy as np

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import Coordinates
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.students import layer_shapes
from sklearn_ec.datasets import make_teacher

EPS = np.finfo(float).eps

# A tenth of the warm-up, for tests that do not depend on good students, and few steps of polishing,
# for tests that do not depend on good networks.
SHORT_WARM_UP = {"warm_up": {"steps": 100}}
SHORT_POLISH = {"prune": {"polish_steps": 60}, "noise": {"polish_steps": 60}}
# Stages alone report, however slow the machine is; everything reports at once.
SILENT = {"reporting": {"line": np.inf, "silence": np.inf}}
LOUD = {"reporting": {"beat": 0.0, "line": 0.0, "silence": 0.0}}


def settings_with(base=DEFAULTS, **parts):
    """Settings that differ in some fields: ``settings_with(prune={"polish_steps": 60})``."""
    changed = {name: replace(getattr(base, name), **fields) for name, fields in parts.items()}
    return replace(base, **changed)


def with_settings(estimator, **parts):
    """The estimator with other settings; its clones have those of its class."""
    estimator._settings = settings_with(estimator._settings, **parts)
    return estimator


class QuickRegressor(ExpandClusterRegressor):
    """With a short warm-up, in its clones, too."""

    _settings = settings_with(**SHORT_WARM_UP)


ALL_LARGE = settings_with(
    training={"dense_flops": 0.0, "deep_dense_flops": 0.0}, verdict={"max_dense_parameters": 0}
)


def plain(samples):
    """Coordinates of rows that are as the user gave them."""
    n_inputs, n_outputs = samples.X.shape[1], samples.y.shape[1]
    return Coordinates(
        x_mean=np.zeros(n_inputs),
        x_scale=np.ones(n_inputs),
        basis=None,
        y_mean=np.zeros(n_outputs),
        y_scale=np.ones(n_outputs),
        y_rounding=EPS,
    )


def planted(activation, width=3, n_rows=400, n_inputs=3, seed=0, settings=DEFAULTS):
    """A network, a polisher on rows of it, and rows kept out."""
    rng = np.random.default_rng(seed)
    network = Network(
        (rng.normal(size=(width, n_inputs + 1)), np.append(1.0 + rng.random(width), 0.3)[None])
    )
    return network, *rows_of(network, activation, n_rows, rng, settings)


def planted_deep(activation, sizes=(3, 4, 3, 1), n_rows=1000):
    """The same with several hidden layers."""
    teacher = make_teacher(
        sizes[0], sizes[1:-1], sizes[-1], activation, family="deep", random_state=0
    )
    pairs = zip(teacher.weights_, teacher.biases_, strict=True)
    network = Network(tuple(np.hstack([w.T, b[:, None]]) for w, b in pairs))
    return network, *rows_of(network, activation, n_rows, np.random.default_rng(0))


def rows_of(network, name, n_rows, rng, settings=DEFAULTS):
    activation, parts = get_activation(name), []
    for n in (n_rows, 50):
        X = rng.normal(size=(n, network.levels[0]))
        parts.append(Samples.of(X, network_outputs(network, X, activation), np.ones(n)))
    polisher = Polisher(*parts, name, "cpu", activation.has_linear_flip, settings=settings)
    return polisher, parts[1]


def with_spare_neurons(network, noise=0.0, seed=1):
    """A duplicate that shares a neuron's outgoing weight, a zero group and a junk neuron."""
    rng = np.random.default_rng(seed)
    hidden, readout = network.layers
    width = network.widths[0]
    extra = rng.normal(size=(2, hidden.shape[1]))
    hidden = np.vstack([hidden, hidden[:1], extra[:1], extra[:1], extra[1:]])
    outgoing = readout[:, :width].copy()
    half = 0.5 * outgoing[:, :1]
    outgoing[:, :1] = half
    spare = np.array([[0.4, -0.4, 1e-3]])
    readout = np.hstack([outgoing, half, spare, readout[:, width:]])
    return Network((hidden + noise * rng.normal(size=hidden.shape), readout))


def with_duplicates(network, noise=0.0, seed=1):
    """Every hidden layer with each neuron twice, the outgoing weights split unevenly."""
    rng = np.random.default_rng(seed)
    layers = list(network.layers)
    for depth, width in enumerate(network.widths):
        share = rng.uniform(0.2, 0.8, size=width)
        outgoing, bias = layers[depth + 1][:, :width], layers[depth + 1][:, width:]
        layers[depth] = np.vstack([layers[depth], layers[depth]])
        layers[depth + 1] = np.hstack([outgoing * share, outgoing * (1 - share), bias])
    return Network(tuple(a + noise * rng.normal(size=a.shape) for a in layers))


def with_noise(polisher, held_out, noise, name):
    """A polisher and held-out rows with noise in their targets."""
    rng = np.random.default_rng(0)
    parts = [
        Samples.of(part.X, part.y + noise * rng.normal(size=part.y.shape), part.sample_weight)
        for part in (polisher.samples, held_out)
    ]
    return Polisher(*parts, name, "cpu", polisher.has_skip), parts[1]


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
    return Samples.of(X, evaluate(network, activation, X), weight / weight.mean())


def open_in_one_neuron():
    """A ReLU network, and rows on which one input varies only where its last neuron is off."""
    network, polisher, held_out = planted("relu", n_rows=800)
    network.layers[0][-1] = [-1.0, 0.1, 0.0, -0.3]
    parts = []
    for samples in (polisher.samples, held_out):
        X = samples.X.copy()
        X[X[:, 0] < 0.0, 2] = 0.0
        y = network_outputs(network, X, polisher.activation)
        parts.append(Samples.of(X, y, samples.sample_weight))
    return network, Polisher(*parts, "relu", "cpu", has_skip=True), parts[1]
