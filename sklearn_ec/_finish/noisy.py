"""Networks behind noisy data: how small they may be.

With noise no loss reaches rounding, and spare neurons fit the noise. A network is pruned as long as
the Bayesian information criterion falls, then further as long as its error on held-out rows stays
within one standard error of the lowest on the way (the one-standard-error rule of Breiman et al.,
1984, Section 3.4.3).
"""

from __future__ import annotations

import numpy as np

from sklearn_ec._core.activations import Activation
from sklearn_ec._core.forward import network_outputs, read_features
from sklearn_ec._core.records import Network, Samples, Students
from sklearn_ec._core.settings import Noise
from sklearn_ec._expand.polishing import Polisher

from .caps import NoiseCap
from .pruning import cheapest_removal, pruning_path
from .removals import FEATURE_RCOND


def reached_noise_floor(students: Students, samples: Samples, settings: Noise) -> bool:
    """Whether the better half stopped at the same error, on held-out rows as on training rows.

    The rounding of the targets is no noise.
    """
    n_agreeing = max(len(students) // 2, settings.n_agreeing)
    ranked = students.by_loss()[:n_agreeing]
    if len(ranked) < n_agreeing:
        return False
    losses = students.losses[ranked]
    if losses[0] <= samples.rounding_loss:
        return False
    n_parameters = students.network(int(ranked[0])).n_parameters
    freedom = max(1.0 - n_parameters / samples.n_equations, 0.1)
    have_stopped = last_ratios(students.loss_curves[ranked]) >= settings.floor_progress
    agree = losses[-1] <= settings.floor_spread * losses[0] and have_stopped.all()
    largest = settings.max_optimism * losses[0] / freedom**2
    return bool(agree and students.best_held_out_loss <= largest)


def last_ratios(curves: np.ndarray) -> np.ndarray:
    """What the last epoch left of each student's loss, 1 where there was none.

    Curves are nan behind their last epoch.
    """
    last = np.isfinite(curves).sum(axis=1) - 1
    rows = np.arange(len(curves))
    return curves[rows, last] / curves[rows, np.maximum(last - 1, 0)]


def smallest_network(
    network: Network, loss: float, polisher: Polisher, held_out: Samples
) -> tuple[Network, float]:
    """The smallest pruned network whose held-out error is within one standard error of the best."""
    cap = NoiseCap(network, loss, polisher.samples.n_equations, polisher.settings.noise)
    path = list(pruning_path(network, loss, polisher, cap))
    errors = [squared_errors(member, held_out, polisher.activation) for member, _ in path]
    while True:
        smaller = cheapest_removal(*path[-1], polisher)
        if smaller is None:
            break
        path.append(smaller)
        errors.append(squared_errors(smaller[0], held_out, polisher.activation))
        if errors[-1].mean() > one_standard_error_bound(errors):
            break
    bound = one_standard_error_bound(errors)
    return next(p for p, e in zip(path[::-1], errors[::-1], strict=True) if e.mean() <= bound)


def left_out_loss(network: Network, samples: Samples, activation: Activation) -> float:
    """Mean squared error of rows whose readout is solved without them, one at a time.

    That is ``r / (1 - h)`` for a row of residual ``r`` and leverage ``h`` (Allen, 1974, PRESS).
    """
    root = np.sqrt(samples.sample_weight)[:, None]
    hidden, targets = network.layers[:-1], samples.y * root
    features = read_features(hidden, samples.X, activation, network.has_skip) * root
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    basis = left[:, values > FEATURE_RCOND * values[0]]
    freedom = np.maximum(1.0 - (basis**2).sum(axis=1, keepdims=True), FEATURE_RCOND)
    return float((((targets - basis @ (basis.T @ targets)) / freedom) ** 2).mean())


def one_standard_error_bound(errors: list[np.ndarray]) -> float:
    """The lowest mean error plus its standard error; one array of squared errors per network."""
    best = min(errors, key=np.mean)
    return float(best.mean() + best.std() / np.sqrt(len(best)))


def squared_errors(network: Network, samples: Samples, activation: Activation) -> np.ndarray:
    """Squared error of every row, averaged over outputs, times the row's weight."""
    residuals = network_outputs(network, samples.X, activation) - samples.y
    return (residuals**2).mean(axis=1) * samples.sample_weight
