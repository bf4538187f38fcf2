"""Frozen records that the modules hand to each other, and the array layouts they share.

Layouts (``skip`` columns exist only for even+linear activations while signs are unresolved):

- hidden weights: ``(n_students, n_neurons, n_inputs + 1)``, the bias in the last column;
- readout weights: ``(n_students, n_outputs, n_neurons + 1)``, the bias in the last column, or
  ``(n_students, n_outputs, n_neurons + 1 + n_inputs)`` with a linear skip term behind it.

A single network drops the leading axis. scikit-learn's transposed layout, ``(fan_in, fan_out)``,
appears only in the attributes of the regressor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_VOTERS = 3


@dataclass(frozen=True)
class Samples:
    """Standardized training rows; ``sample_weight`` has mean 1."""

    X: np.ndarray  # (n_samples, n_inputs)
    y: np.ndarray  # (n_samples, n_outputs)
    sample_weight: np.ndarray  # (n_samples,)

    @property
    def n_equations(self) -> int:
        return self.y.size

    def take(self, rows: np.ndarray) -> Samples:
        weight = self.sample_weight[rows]
        return Samples(self.X[rows], self.y[rows], weight / weight.mean())


@dataclass(frozen=True)
class Network:
    """One network with a single hidden layer, in standardized coordinates."""

    hidden: np.ndarray  # (n_neurons, n_inputs + 1)
    readout: np.ndarray  # (n_outputs, n_neurons + 1 [+ n_inputs])

    @property
    def width(self) -> int:
        return self.hidden.shape[0]

    @property
    def n_parameters(self) -> int:
        return self.hidden.size + self.readout.size

    @property
    def outgoing(self) -> np.ndarray:
        """Outgoing weights, shape (n_outputs, n_neurons)."""
        return self.readout[:, : self.width]

    @property
    def bias(self) -> np.ndarray:
        return self.readout[:, self.width]

    @property
    def skip(self) -> np.ndarray:
        """Linear skip term, shape (n_outputs, n_inputs) or (n_outputs, 0)."""
        return self.readout[:, self.width + 1 :]


@dataclass(frozen=True)
class Students:
    """Trained students as stacked arrays, ordered as they were initialized."""

    hidden: np.ndarray  # (n_students, n_neurons, n_inputs + 1)
    readout: np.ndarray  # (n_students, n_outputs, n_neurons + 1 [+ n_inputs])
    losses: np.ndarray  # (n_students,), relative mean squared error; nan where training failed
    trained: np.ndarray  # (n_students,), False for students that only had the warm-up
    n_iter: int
    best: Network  # the best state of any student on the held-out rows, at any time
    best_held_out_loss: float

    def __len__(self) -> int:
        return len(self.losses)

    def network(self, student: int) -> Network:
        return Network(self.hidden[student], self.readout[student])

    def by_loss(self) -> np.ndarray:
        """Indices of the trained students that did not fail, best first."""
        order = np.argsort(self.losses, kind="stable")
        return order[self.trained[order] & np.isfinite(self.losses[order])]

    def converged(self, tol: float) -> np.ndarray:
        """Indices of the students whose loss is at most ``tol``, in order."""
        ranked = self.by_loss()
        return np.sort(ranked[self.losses[ranked] <= tol])

    def voters(self, tol: float) -> np.ndarray:
        """Students whose neurons are clustered, in order: the converged ones.

        With fewer than ``MIN_VOTERS`` of them, the better half of the trained students votes.
        """
        converged = self.converged(tol)
        if len(converged) >= MIN_VOTERS:
            return converged
        ranked = self.by_loss()
        return np.sort(ranked[: max(MIN_VOTERS, -(-len(ranked) // 2))])


@dataclass(frozen=True)
class Dendrogram:
    """Average-linkage tree over the students' neurons of one hidden layer, and its cut.

    Attributes
    ----------
    linkage : ndarray of shape (n_leaves - 1, 4)
        Linkage matrix in SciPy's format; distances between incoming weight vectors ``[w; b]`` in
        standardized coordinates.
    students : ndarray of shape (n_leaves,)
        Student of every leaf.
    neurons : ndarray of shape (n_leaves,)
        Index of every leaf's neuron within its student.
    labels : ndarray of shape (n_leaves,)
        Kept cluster of every leaf, -1 for none.
    cut_heights : ndarray of shape (n_clusters,)
        Height of every kept cluster's subtree.
    n_students : int
        Number of students, those without leaves included.
    n_agreeing : int
        Number of students that hold every neuron of the reconstructed network.
    """

    linkage: np.ndarray
    students: np.ndarray
    neurons: np.ndarray
    labels: np.ndarray
    cut_heights: np.ndarray
    n_students: int = 0
    n_agreeing: int = 0

    def plot(self, ax: Any = None) -> Any:
        """Draw the tree on a logarithmic axis, one color per kept cluster (needs matplotlib).

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        matplotlib Axes
            The axes drawn on.
        """
        from ._displays import plot_dendrogram

        return plot_dendrogram(self, ax)
