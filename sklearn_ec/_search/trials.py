"""One trial of a search: students of one activation and one assumed shape, and what they show."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_ec._core.records import Network
from sklearn_ec._finish.finisher import Finisher
from sklearn_ec._finish.noisy import reached_noise_floor

from .ensemble import Ensemble

Shape = tuple[int, ...]


@dataclass
class Trial:
    """Students of one activation and one assumed shape."""

    activation: str
    widths: Shape
    finisher: Finisher
    ensemble: Ensemble
    seconds: float
    is_race: bool = False  # whether its students took a few steps without a warm-up
    tried: bool = False  # whether its best student was finished
    corner: float = math.inf  # loss of the network that students grew from last

    @property
    def held_out_loss(self) -> float:
        return self.ensemble.students.best_held_out_loss

    @property
    def loss(self) -> float:
        return self.ensemble.students.lowest_loss

    @property
    def score(self) -> float:
        """The loss on held-out rows; the training loss where this is clearly that of exact data.

        The held-out loss misjudges ReLU students: between two rows, kinks may lie anywhere.
        """
        exact_loss = self.finisher.settings.search.exact_loss
        limit = max(exact_loss, self.finisher.polisher.samples.rounding_loss)
        return self.loss if self.loss < limit else self.held_out_loss

    @property
    def certified(self) -> bool:
        return self.ensemble.recovered is not None

    @property
    def has_ended(self) -> bool:
        """Whether it gave a network that other students cannot improve."""
        return self.ensemble.is_conclusive

    @property
    def exact_size(self) -> int | None:
        """Parameters of the smallest finished network that fits the training rows to rounding."""
        candidates = self.ensemble.candidates
        sizes = [c.network.n_parameters for c in candidates if c.certificate.fits_exactly]
        return min(sizes, default=None)

    @property
    def is_at_noise_floor(self) -> bool:
        finisher = self.finisher
        return reached_noise_floor(
            self.ensemble.students, finisher.polisher.samples, finisher.settings.noise
        )

    def is_approximation(self, network: Network) -> bool:
        """Whether a pruned network keeps more than half of the neurons of the students.

        Unless it is no wider than assumed, there is no network of the assumed widths in it.
        """
        is_wider = not all(map(operator.le, network.widths, self.widths))
        n_neurons = sum(self.ensemble.students.network(0).widths)
        return is_wider and 2 * sum(network.widths) > n_neurons

    @property
    def start_of_growth(self) -> tuple[Network | None, float]:
        """The network that further students may begin with, and its loss.

        That is the one in a corner, or a deep one that is exact and refused, at a loss of zero: if
        it is wider than assumed, there may be a smaller one. Two ReLU neurons that are one, and a
        linear function that this leaves, are in no corner.
        """
        best, finish = self.ensemble.best_candidate, self.finisher.settings.finish
        if best is None or len(self.widths) == 1 or not best.certificate.fits_exactly:
            return self.ensemble.corner(finish.worthwhile_loss)
        is_wider = not all(map(operator.le, best.network.widths, self.widths))
        is_start = is_wider and self.ensemble.is_narrower(best.network)
        if best.certificate.is_conclusive or not is_start:
            return None, math.inf
        return best.network, 0.0

    @property
    def is_approximated(self) -> bool:
        """Whether it is deep and nearly fits, but not without most of the students' neurons."""
        network = self._near_fit
        return network is not None and len(self.widths) > 1 and self.is_approximation(network)

    @property
    def has_right_shape(self) -> bool:
        """Whether pruning left a network that nearly fits, so that no other shape need be probed.

        With one hidden layer it has no more neurons than assumed: 13 came to 1e-11 of a deep one.
        """
        network = self._near_fit
        if network is None or len(self.widths) > 1:
            return network is not None and not self.is_approximation(network)
        return network.widths <= self.widths

    @property
    def _near_fit(self) -> Network | None:
        """The pruned network that nearly fits, if there is one."""
        return self.ensemble.corner(self.finisher.settings.search.exact_loss)[0]

    def report(self) -> dict[str, Any]:
        students = self.ensemble.students
        losses = students.losses
        return {
            "depth": len(self.widths),
            "width": self.widths[0],
            "activation": self.activation,
            "n_students": len(losses),
            "converged": float(np.mean(losses <= self.ensemble.tol)),
            "loss": self.loss,
            "held_out_loss": students.best_held_out_loss,
            "certified": self.certified,
            "seconds": self.seconds,
        }


def with_verdict(
    reports: list[dict[str, Any]], activation: str, widths: Shape, certified: bool
) -> list[dict[str, Any]]:
    """Reports in which the trial that gave the network has the verdict on it.

    The network may come from the clusters of the trial's students, which the trial does not know.
    """
    source = {"depth": len(widths), "width": widths[0], "activation": activation}
    return [
        report | {"certified": certified} if source.items() <= report.items() else report
        for report in reports
    ]
