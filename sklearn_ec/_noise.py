"""Networks behind noisy data: how small they may be, and how precise their weights are.

With noise no loss reaches rounding, and spare neurons fit the noise. A network is pruned as long as
the Bayesian information criterion falls, then further as long as its error on held-out rows stays
within one standard error of the lowest on the way (the one-standard-error rule of Breiman et al.,
1984, Section 3.4.3).
"""

from __future__ import annotations

import numpy as np

from ._activations import Activation
from ._preprocessing import Problem
from ._pruning import NoiseCap, cheapest_removal, pruning_path
from ._reconstruction import network_outputs
from ._training import Trainer
from ._types import Network, Samples, Students

# Students at the noise floor have errors on held-out rows within this factor of each other.
FLOOR_SPREAD = 1.2
# Their errors on held-out rows are this many times those on training rows, at most, once these are
# corrected for the number of parameters.
MAX_OPTIMISM = 1.5
N_AGREEING = 3


def reached_noise_floor(students: Students, samples: Samples) -> bool:
    """Whether several students stopped at the same error, on held-out rows as on training rows.

    The rounding of the targets is no noise.
    """
    ranked = students.by_loss()[:N_AGREEING]
    if len(ranked) < N_AGREEING:
        return False
    losses = students.losses[ranked]
    if losses[0] <= samples.rounding_loss:
        return False
    n_parameters = students.network(int(ranked[0])).n_parameters
    freedom = max(1.0 - n_parameters / samples.n_equations, 0.1)
    agree = losses[-1] <= FLOOR_SPREAD * losses[0]
    return bool(agree and students.best_held_out_loss <= MAX_OPTIMISM * losses[0] / freedom**2)


def smallest_network(
    network: Network, loss: float, trainer: Trainer, held_out: Samples
) -> tuple[Network, float]:
    """The smallest pruned network whose held-out error is within one standard error of the best."""
    cap = NoiseCap(network, loss, trainer.samples.n_equations)
    path = list(pruning_path(network, loss, trainer, cap))
    errors = [squared_errors(member, held_out, trainer.activation) for member, _ in path]
    while True:
        smaller = cheapest_removal(*path[-1], trainer)
        if smaller is None:
            break
        path.append(smaller)
        errors.append(squared_errors(smaller[0], held_out, trainer.activation))
        if errors[-1].mean() > one_standard_error_bound(errors):
            break
    bound = one_standard_error_bound(errors)
    return next(p for p, e in zip(path[::-1], errors[::-1], strict=True) if e.mean() <= bound)


def one_standard_error_bound(errors: list[np.ndarray]) -> float:
    """The lowest mean error plus its standard error; one array of squared errors per network."""
    best = min(errors, key=np.mean)
    return float(best.mean() + best.std() / np.sqrt(len(best)))


def squared_errors(network: Network, samples: Samples, activation: Activation) -> np.ndarray:
    """Squared error of every row, averaged over outputs, times the row's weight."""
    residuals = network_outputs(network, samples.X, activation) - samples.y
    return (residuals**2).mean(axis=1) * samples.sample_weight


def noise_level(network: Network, samples: Samples, activation: Activation) -> np.ndarray:
    """Standard deviation of the residuals of each output, corrected for the parameters used."""
    residuals = network_outputs(network, samples.X, activation) - samples.y
    n_samples, n_outputs = samples.y.shape
    freedom = max(n_samples - network.n_parameters / n_outputs, 1.0)
    return np.sqrt((residuals**2 * samples.sample_weight[:, None]).sum(axis=0) / freedom)


def standard_errors(
    weights: list[np.ndarray],
    biases: list[np.ndarray],
    noise_level: np.ndarray,
    problem: Problem,
    activation: str,
    device: str,
) -> list[np.ndarray]:
    """Standard errors of weights and, in the last row, biases: (fan_in + 1, fan_out) per layer.

    All is in the user's units.
    """
    coordinates = problem.coordinates
    network = coordinates.to_standardized(weights, biases)
    trainer = Trainer(problem.train, problem.held_out, activation, device, has_skip=False)
    errors = trainer.standard_errors(
        network,
        noise_level / coordinates.y_scale,
        incoming_map=coordinates.incoming_map(),
        output_scale=coordinates.y_scale,
    )
    return [part.T for part in errors]
