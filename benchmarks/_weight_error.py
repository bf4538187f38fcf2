"""How wrong recovered weights are, in the units in which ``weight_error`` is stated."""

import numpy as np

from sklearn_ec._core.activations import get_activation
from sklearn_ec.metrics import _in_reference_basis, match_neurons

# A stated error holds if the true one is at most this many times as large.
MARGIN = 10.0


def relative_weight_error(teacher, model, activation):
    """Largest error of a neuron's [w; b] relative to its length; inf where sizes differ."""
    if tuple(teacher.layer_sizes_) != tuple(model.layer_sizes_):
        return np.inf
    function, worst = get_activation(activation), 0.0
    for layer in range(len(teacher.layer_sizes_)):
        match = match_neurons(model, teacher, activation, layer)
        squares = 2.0 * match.scales * match.cosine_distances
        if function.homogeneous:
            squares = 2.0 * match.cosine_distances
        else:
            squares = squares + (1.0 - match.scales) ** 2
        worst = max(worst, float(np.sqrt(squares.max())))
    found, true = (
        np.column_stack([network.weights_[-1].T, network.biases_[-1]])
        for network in (model, teacher)
    )
    found, true = _in_reference_basis(found, true, match, function)
    lengths = np.linalg.norm(found, axis=1)
    return max(worst, float((np.linalg.norm(found - true, axis=1) / lengths).max()))
