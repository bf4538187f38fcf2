"""How far the loss may rise when a network loses neurons: on exact data, and on noisy ones."""

from __future__ import annotations

import math

from sklearn_ec._core.records import Network
from sklearn_ec._core.settings import Noise, Prune, Settings


class ExactCap:
    """The loss allowed after a removal where the data are exact.

    That is ten times the lowest so far, less where this is far from zero, the lowest itself for
    large networks, and no more than rounding once this is reached. Networks need not be polished
    further than the lowest.
    """

    def __init__(
        self, loss: float, rounding_loss: float, settings: Settings, is_large: bool = False
    ):
        self.n_steps = settings.prune.removal_steps
        self.progress = settings.polish.progress
        self.settings = settings.prune
        self.rounding_loss = rounding_loss
        self.lowest = loss
        self.is_large = is_large

    def most_steps(self, network: Network) -> float:
        return self.settings.path_steps + self.settings.path_steps_per_neuron * sum(network.widths)

    def allowed(self, network: Network) -> float:
        if self.lowest <= self.rounding_loss:
            return max(self.rounding_loss, self.settings.cap_floor)
        factor = 1.0 if self.is_large else self.settings.cap_factor
        factor *= caution(self.lowest, self.settings)
        return max(factor * self.lowest, self.settings.cap_floor)

    def enough(self, network: Network, n_removed: int) -> float:
        lowest = max(self.lowest, self.rounding_loss, self.settings.cap_floor)
        return min(lowest, self.allowed(network))

    def update(self, network: Network, loss: float) -> None:
        self.lowest = min(self.lowest, loss)


class NoiseCap:
    """The loss allowed after a removal where the data are noisy.

    The Bayesian information criterion ``N ln(loss) + P ln(N)``, with ``N`` equations and ``P``
    parameters, must not rise above the lowest so far.
    """

    def __init__(self, network: Network, loss: float, n_equations: int, settings: Noise):
        self.n_steps = settings.polish_steps
        self.progress = settings.progress
        self.floor = settings.floor
        self.n_equations = n_equations
        self.path_steps = settings.path_steps
        self.lowest = self._criterion(network, loss)

    def most_steps(self, network: Network) -> float:
        return self.path_steps

    def allowed(self, network: Network) -> float:
        price = network.n_parameters * math.log(self.n_equations)
        return max(math.exp((self.lowest - price) / self.n_equations), self.floor)

    def enough(self, network: Network, n_removed: int) -> float:
        return self.allowed(network) if n_removed > 1 else 0.0

    def update(self, network: Network, loss: float) -> None:
        self.lowest = min(self.lowest, self._criterion(network, loss))

    def _criterion(self, network: Network, loss: float) -> float:
        fit = self.n_equations * math.log(max(loss, self.floor))
        return fit + network.n_parameters * math.log(self.n_equations)


Cap = ExactCap | NoiseCap


def caution(loss: float, settings: Prune) -> float:
    """The share of what removals may cost elsewhere, where a network is far from zero."""
    return settings.far_share if loss > settings.far_loss else 1.0
