"""Recovered neurons next to the true ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_ec._folding import unwrap
from sklearn_ec.metrics import NeuronMatch, match_neurons

from ._common import BLUE, ORANGE, PURPLE, VERMILION, Display, layer_prefix

# The squared rounding error of a unit vector; smaller cosine distances are drawn here.
DISTANCE_FLOOR = 1e-33
# Distance of neurons without a partner, that of unrelated vectors.
UNRELATED = 1.0
MAX_LABELED = 40
TOLERANCE = 1e-3


class NeuronMatchDisplay(Display):
    """Cosine distance of every true neuron to the recovered one that it is matched with.

    Neurons are paired one to one, see :func:`~sklearn_ec.metrics.match_neurons`, and count as
    matched up to a distance of ``tolerance``. True neurons without a partner and recovered neurons
    in excess stand at 1, the distance of unrelated vectors, the latter behind the true ones. Labels
    on the axis give the true neuron and, below, its recovered partner.

    Parameters
    ----------
    match : NeuronMatch
        The assignment.
    layer : int, default=None
        The hidden layer, for the title.
    tolerance : float, default=1e-3
        Largest cosine distance of a pair that counts as matched. The default is an angle of 2.6
        degrees.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    matched_, distant_, missing_, excess_ : matplotlib PathCollection
        One point per neuron.
    tolerance_line_ : matplotlib Line2D
        The largest distance of matched neurons.
    legend_ : matplotlib Legend
        The legend.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.inspection import NeuronMatchDisplay
    >>> from sklearn_ec.metrics import match_neurons
    >>> true = ([np.eye(2), np.ones((2, 1))], [np.zeros(2), np.zeros(1)])
    >>> one_of_them = ([np.eye(2)[:, :1], np.ones((1, 1))], [np.zeros(1), np.zeros(1)])
    >>> display = NeuronMatchDisplay(match_neurons(true, one_of_them, "relu")).plot()
    >>> display.ax_.get_title()
    '1 of 2 neurons matched, 1 missing'
    """

    def __init__(
        self, match: NeuronMatch, *, layer: int | None = None, tolerance: float = TOLERANCE
    ):
        self.match = match
        self.layer = layer
        self.tolerance = tolerance

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        reference: Any,
        *,
        layer: int = 0,
        tolerance: float = TOLERANCE,
        ax: Any = None,
    ) -> NeuronMatchDisplay:
        """Compare the neurons of a fitted estimator with the true ones.

        Parameters
        ----------
        estimator : ExpandClusterRegressor, Pipeline or TransformedTargetRegressor
            A fitted estimator, or pipelines and target transformers around one, whose scalers are
            folded into the network.
        reference : network
            The true network: a pair ``(weights, biases)`` or any other that
            :func:`~sklearn_ec.metrics.match_neurons` takes.
        layer : int, default=0
            Hidden layer, from 0.
        tolerance : float, default=1e-3
            Largest cosine distance of a pair that counts as matched.
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        NeuronMatchDisplay
            The display.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the networks have different numbers of inputs or lack the layer.
        TypeError
            If the reference is not a network, or the estimator no ExpandClusterRegressor, or if a
            step in front of one is not a scaler that is known to be affine.
        """
        activation = unwrap(estimator).activation_
        match = match_neurons(reference, estimator, activation, layer)
        return cls(match, layer=layer, tolerance=tolerance).plot(ax)

    def plot(self, ax: Any = None) -> NeuronMatchDisplay:
        """Draw the distances.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        NeuronMatchDisplay
            This display.
        """
        ax = self._prepare_axes(ax, height=2.9)
        match = self.match
        n_true = len(match.reference) + len(match.missing)
        behind = n_true + np.arange(len(match.excess))
        distances = np.maximum(match.cosine_distances, DISTANCE_FLOOR)
        close = match.cosine_distances <= self.tolerance
        pairs = match.reference
        self.matched_ = self._draw(pairs[close], distances[close], "o", BLUE, "matched")
        self.distant_ = self._draw(pairs[~close], distances[~close], "D", PURPLE, "too far")
        self.missing_ = self._draw(match.missing, UNRELATED, "X", VERMILION, "missing")
        self.excess_ = self._draw(behind, UNRELATED, "s", ORANGE, "in excess")
        self.tolerance_line_ = ax.axhline(
            max(self.tolerance, DISTANCE_FLOOR),
            color="black",
            linestyle="--",
            linewidth=1,
            label=f"tolerance {self.tolerance:.3g}",
        )
        ax.set_yscale("log")
        ax.set(xlim=(-0.7, n_true + len(match.excess) - 0.3), ylim=(DISTANCE_FLOOR / 10, 10))
        self._label_neurons(n_true)
        ax.set_ylabel("cosine distance of [w; b]")
        self._set_title(layer_prefix(self.layer) + self._counts(int(close.sum())))
        self._draw_legend()
        return self

    def _counts(self, n_matched: int) -> str:
        match = self.match
        n_pairs, n_missing = len(match.reference), len(match.missing)
        others = {
            "too far": n_pairs - n_matched,
            "missing": n_missing,
            "in excess": len(match.excess),
        }
        parts = [f"{n_matched} of {n_pairs + n_missing} neurons matched"]
        return ", ".join(parts + [f"{n} {what}" for what, n in others.items() if n])

    def _draw(self, x: np.ndarray, y: Any, marker: str, color: str, label: str) -> Any:
        return self.ax_.scatter(
            x,
            np.broadcast_to(y, len(x)),
            marker=marker,
            color=color,
            s=40,
            label=f"{label} ({len(x)})" if len(x) else None,
            zorder=3,
        )

    def _label_neurons(self, n_true: int) -> None:
        match = self.match
        if n_true + len(match.excess) > MAX_LABELED:
            self.ax_.set_xlabel("true neuron")
            return
        partners = {int(i): int(j) for i, j in zip(match.reference, match.recovered, strict=True)}
        labels = [f"{neuron}\n{partners.get(neuron, '–')}" for neuron in range(n_true)]
        labels += [f"–\n{neuron}" for neuron in match.excess]
        self.ax_.set_xticks(range(len(labels)), labels)
        self.ax_.set_xlabel("true neuron, and below the recovered one")
        self.ax_.grid(axis="x", linewidth=0.5, color="0.9")
