"""The module that holds all students as stacked tensors, and how students start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._solvers.derivatives import Layers, forward


def has_skip_terms(activation: Activation, samples: Samples, max_inputs: int) -> bool:
    """Whether students read the inputs linearly, too, to leave the signs of neurons open.

    With many inputs it is the linear map that tells the neurons apart which are active nearly
    everywhere: skip terms would absorb it.
    """
    return activation.has_linear_flip and samples.X.shape[1] <= max_inputs


class StackedStudents(nn.Module):
    """All students of a group: one tensor per layer, students along the first axis."""

    def __init__(self, layers: Layers, activation: Activation):
        super().__init__()
        self.layers = nn.ParameterList(layers)
        self.activation = activation

    @property
    def weights(self) -> Layers:
        """The layers as plain tensors."""
        return tuple(layer.detach() for layer in self.layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of every student, shape (n_samples, n_students, n_outputs)."""
        return forward(tuple(self.layers), inputs, self.activation).outputs.transpose(0, 1)


def layer_shapes(
    n_inputs: int, widths: tuple[int, ...], n_outputs: int, has_skip: bool
) -> list[tuple[int, int]]:
    """Shape (fan_out, n_features) of every layer of a network."""
    fans_in, shapes, n_older = [n_inputs, *widths], [], 0
    for fan_in, fan_out in zip(fans_in, [*widths, n_outputs], strict=True):
        shapes.append((fan_out, fan_in + 1 + n_older))
        n_older += fan_in * has_skip
    return shapes


def initial_weights(
    seeds: np.ndarray, n_inputs: int, widths: tuple[int, ...], n_outputs: int, has_skip: bool
) -> list[np.ndarray]:
    """Random weights of all layers, one seed per student.

    Incoming weights are normal with variance 1 / fan_in, hidden biases normal with standard
    deviation 1/2 (for standardized inputs, hyperplanes that cross the data), output biases and skip
    terms zero.
    """
    shapes = layer_shapes(n_inputs, widths, n_outputs, has_skip)
    layers = [np.zeros((len(seeds), *shape)) for shape in shapes]
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(int(seed))
        for layer, fan_in in zip(layers, [n_inputs, *widths], strict=True):
            shape = (layer.shape[1], fan_in)
            layer[i, :, :fan_in] = rng.normal(scale=max(fan_in, 1) ** -0.5, size=shape)
            if layer is not layers[-1]:
                layer[i, :, -1] = rng.normal(scale=0.5, size=layer.shape[1])
    return layers


def with_shared_neurons(layers: list[np.ndarray], shared: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Initial weights in which the first neurons of the lowest layers are given ones.

    Those of every layer read the given ones below, one column each and the bias. A fifth of a layer
    stays random: what the students share may not be all of the sought network.
    """
    for layer, neurons in zip(layers, shared, strict=False):
        kept = neurons[: 4 * layer.shape[1] // 5]
        layer[:, : len(kept)] = 0.0
        layer[:, : len(kept), : kept.shape[1] - 1] = kept[:, :-1]
        layer[:, : len(kept), -1] = kept[:, -1]
    return layers


def grown(network: Network, widths: tuple[int, ...], rng: np.random.Generator) -> Network:
    """The same function with random neurons, which nothing reads, up to the given widths.

    Their incoming weights are normal, as large as those of the other neurons.
    """
    layers = list(network.layers)
    added = [new - old for new, old in zip(widths, network.widths, strict=True)]
    for depth, n in enumerate(added):
        layer = layers[depth]
        own = network.columns(depth, depth)
        new = np.zeros((n, layer.shape[1]))
        size = np.sqrt(np.mean(layer[:, own] ** 2))
        new[:, own] = size * rng.normal(size=new[:, own].shape)
        new[:, -1] = size * rng.normal(size=n)
        layers[depth] = np.vstack([layer, new])
    for depth in range(1, len(layers)):
        readable = range(depth) if network.has_skip else [depth - 1]
        ends = [network.columns(depth, below + 1).stop for below in readable]
        at = np.repeat(ends, [added[below] for below in readable])
        layers[depth] = np.insert(layers[depth], at, 0.0, axis=1)
    return Network(tuple(layers))


def added(network: Network, other: Network, scale: float) -> Network:
    """The sum of a network of one hidden layer and another one, times a scale."""
    (hidden, readout), (new, new_readout) = network.layers, other.layers
    own, rest = np.split(readout, [len(hidden)], axis=1)
    new_own, new_rest = np.split(scale * new_readout, [len(new)], axis=1)
    return Network((np.vstack([hidden, new]), np.hstack([own, new_own, rest + new_rest])))


def grown_students(
    networks: Sequence[Network], widths: tuple[int, ...], seeds: np.ndarray
) -> list[np.ndarray]:
    """Stacked students that compute what networks do, grown to the given widths."""
    rngs = [np.random.default_rng(int(seed)) for seed in seeds]
    students = [grown(network, widths, rng) for network, rng in zip(networks, rngs, strict=True)]
    return [np.stack(layer) for layer in zip(*(s.layers for s in students), strict=True)]


def network_at(layers: Layers, index: int) -> Network:
    """One of several stacked networks, on the CPU."""
    return Network(tuple(layer[index].cpu().numpy().copy() for layer in layers))
