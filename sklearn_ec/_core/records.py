"""Frozen records that the modules hand to each other, and the array layouts they share.

A network is a tuple of layers, each of shape ``(fan_out, n_features)``: row ``j`` holds the
incoming weights of neuron ``j``, its bias in the last column. The last layer is the readout. While
the signs of even+linear neurons are unresolved, layers also read the activations of all layers
further down, the inputs included: the columns of these skip terms lie in front of the bias, nearer
layers first.

Students have the same layout with one more axis in front. scikit-learn's transposed layout,
``(fan_in, fan_out)``, appears only in the attributes of the regressor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Standardized training rows; ``sample_weight`` has mean 1.

    A relative mean squared error up to ``rounding_loss`` is what the rounding of the targets
    explains; 0 where these are as precise as the arithmetic.
    """

    inputs: np.ndarray  # (n_samples, n_inputs + 1), last column one, which biases read
    y: np.ndarray  # (n_samples, n_outputs)
    sample_weight: np.ndarray  # (n_samples,)
    rounding_loss: float = 0.0

    @classmethod
    def of(
        cls, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray, rounding_loss: float = 0.0
    ) -> Samples:
        inputs = np.empty((len(X), X.shape[1] + 1))
        inputs[:, :-1], inputs[:, -1] = X, 1.0
        return cls(inputs, y, sample_weight, rounding_loss)

    @property
    def X(self) -> np.ndarray:  # noqa: N802
        """The inputs alone, (n_samples, n_inputs): a view."""
        return self.inputs[:, :-1]

    @property
    def n_equations(self) -> int:
        return self.y.size

    def take(self, rows: np.ndarray) -> Samples:
        weight = self.sample_weight[rows]
        return replace(
            self,
            inputs=self.inputs[rows],
            y=self.y[rows],
            sample_weight=weight / weight.mean(),
        )

    def thinned(
        self, n_equations: float, seed: int | np.ndarray, chances: np.ndarray | None = None
    ) -> Samples:
        """So many rows, drawn at random, as give this many equations; all where these are fewer.

        Those of larger ``chances`` are drawn sooner.
        """
        n_rows, n_outputs = self.y.shape
        n_kept = math.ceil(n_equations / n_outputs)
        if n_kept >= n_rows:
            return self
        p = None if chances is None else chances / chances.sum()
        rows = np.random.default_rng(seed).choice(n_rows, n_kept, replace=False, p=p)
        return self.take(np.sort(rows))

    def joined(self, others: Samples) -> Samples:
        """These rows and further ones behind them."""
        return replace(
            self,
            inputs=np.vstack([self.inputs, others.inputs]),
            y=np.vstack([self.y, others.y]),
            sample_weight=np.concatenate([self.sample_weight, others.sample_weight]),
        )


@dataclass(frozen=True)
class Network:
    """One network in standardized coordinates."""

    layers: tuple[np.ndarray, ...]  # (fan_out, n_features) each

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(len(layer) for layer in self.layers[:-1])

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of activations that can be read: those of the inputs, then the widths."""
        return self.layers[0].shape[1] - 1, *self.widths

    @property
    def n_parameters(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def is_finite(self) -> bool:
        return all(np.isfinite(layer).all() for layer in self.layers)

    @property
    def has_skip(self) -> bool:
        """Whether layers read activations from further down than the layer below."""
        return self.layers[-1].shape[1] > self.widths[-1] + 1

    def without_unread(self) -> Network:
        """The same function without the neurons that no layer reads."""
        layers = list(self.layers)
        for level in range(len(layers) - 1, 0, -1):
            network = Network(tuple(layers))
            readers = range(level, len(layers) if self.has_skip else level + 1)
            columns = {reader: network.columns(reader, level) for reader in readers}
            read = [layers[reader][:, own].any(axis=0) for reader, own in columns.items()]
            unread = np.flatnonzero(~np.any(read, axis=0))
            if len(unread) == len(layers[level - 1]):
                continue  # a layer keeps its neurons where the network is constant
            layers[level - 1] = np.delete(layers[level - 1], unread, axis=0)
            for reader, own in columns.items():
                layers[reader] = np.delete(layers[reader], own.start + unread, axis=1)
        return Network(tuple(layers))

    def columns(self, layer: int, level: int) -> slice:
        """Columns of a layer that read a level; level 0 is the inputs."""
        start = sum(self.levels[level + 1 : layer + 1])
        return slice(start, start + self.levels[level])


@dataclass(frozen=True)
class Students:
    """Trained students as stacked arrays, ordered as they were initialized."""

    layers: tuple[np.ndarray, ...]  # (n_students, fan_out, n_features) each
    losses: np.ndarray  # (n_students,), relative mean squared error; nan where training failed
    trained: np.ndarray  # (n_students,), False for students that only had the warm-up
    n_iter: int
    best: Network  # the best state of any student on the held-out rows, at any time
    best_held_out_loss: float
    # (n_students, n_epochs + 1), loss before the first and after each epoch; nan after the last
    loss_curves: np.ndarray
    succeeded: bool = False  # enough students converged, or one of them was recovered
    interrupted: bool = False  # the training was stopped from outside

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def lowest_loss(self) -> float:
        """Infinity where all failed."""
        return float(np.nanmin(self.losses, initial=np.inf))

    @property
    def n_failed(self) -> int:
        """Number of students whose training diverged."""
        return int(np.sum(~np.isfinite(self.losses)))

    def joined(self, others: Students) -> Students:
        """These students and further ones behind them."""
        both = (self, others)
        best = min(both, key=lambda students: students.best_held_out_loss)
        return Students(
            layers=tuple(map(np.concatenate, zip(self.layers, others.layers, strict=True))),
            losses=np.concatenate([students.losses for students in both]),
            trained=np.concatenate([students.trained for students in both]),
            n_iter=max(students.n_iter for students in both),
            best=best.best,
            best_held_out_loss=best.best_held_out_loss,
            loss_curves=stacked_curves([*self.loss_curves, *others.loss_curves]),
            succeeded=self.succeeded or others.succeeded,
            interrupted=self.interrupted or others.interrupted,
        )

    def network(self, student: int) -> Network:
        return Network(tuple(layer[student] for layer in self.layers))

    def by_loss(self) -> np.ndarray:
        """Indices of the trained students that did not fail, best first."""
        order = np.argsort(self.losses, kind="stable")
        return order[self.trained[order] & np.isfinite(self.losses[order])]

    def converged(self, tol: float) -> np.ndarray:
        """Indices of the students whose loss is at most ``tol``, in order."""
        ranked = self.by_loss()
        return np.sort(ranked[self.losses[ranked] <= tol])

    def voters(self, tol: float, min_voters: int) -> np.ndarray:
        """Students whose neurons are clustered, in order: the converged ones.

        With fewer than ``min_voters`` of them, the better half of the trained students votes.
        """
        converged = self.converged(tol)
        if len(converged) >= min_voters:
            return converged
        ranked = self.by_loss()
        return np.sort(ranked[: max(min_voters, -(-len(ranked) // 2))])


def stacked_curves(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Curves of different lengths as the rows of one array, padded with nan."""
    stacked = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(stacked, curves, strict=True):
        row[: len(curve)] = curve
    return stacked


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
    cut_heights : ndarray of shape (n_kept,)
        Height of every kept cluster's subtree.
    vectors : ndarray of shape (n_leaves, fan_in + 1)
        Incoming weight vector ``[w; b]`` of every leaf in standardized coordinates, of unit length
        for homogeneous activations. They take ``8 * (fan_in + 1)`` bytes per leaf.
    clusters : ndarray of shape (n_leaves,)
        Cluster of every leaf as an index into ``statuses``, -1 for leaves that stayed alone.
    statuses : ndarray of shape (n_clusters,)
        Why every cluster is kept or not, in the order of the layer's entries in
        ``cluster_report_``: "kept", "small", "unaligned" or "unstable".
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
    vectors: np.ndarray
    clusters: np.ndarray
    statuses: np.ndarray
    n_students: int = 0
    n_agreeing: int = 0
