"""Standardized coordinates, the split into training and held-out rows, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular

from .activations import Activation
from .forward import row_blocks
from .precision import FULL, Precision, evaluate
from .records import Network, Samples
from .settings import DEFAULTS, Preparation

# A column is open where its unit vector has this share of its squared length outside of the row
# space: rounding leaves 1e-15 there.
MAX_OPEN_SHARE = 1e-12
# Least singular value, relative to the largest, of columns whose Gram matrix is used.
MIN_CONDITION = 1e-3
# So many rows for each column tell whether all vary: of 470,000 rows of 784 columns, in a twentieth
# of the time.
TELLING_ROWS = 32


@dataclass(frozen=True)
class Coordinates:
    """The affine maps between the user's columns and the coordinates that students see.

    ``X`` is centered, scaled to unit variance (less where a column has far outliers) and, where its
    columns are constant or linearly dependent, expressed in an orthonormal basis of its row space.
    ``y`` is centered and scaled.
    """

    x_mean: np.ndarray
    x_scale: np.ndarray
    basis: np.ndarray | None  # (n_features, rank), None where X has full rank
    y_mean: np.ndarray
    y_scale: np.ndarray
    # Relative rounding error of float64 targets: eps times their largest entry over their spread.
    y_rounding: float
    precision: Precision = FULL  # of the targets
    x_precision: Precision = FULL

    def transform(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = X - self.x_mean
        scaled /= self.x_scale
        if self.basis is not None:
            scaled = scaled @ self.basis
        return scaled, (y - self.y_mean) / self.y_scale

    def to_standardized(self, weights: list[np.ndarray], biases: list[np.ndarray]) -> Network:
        """The network that :meth:`to_original` gives these weights and biases for."""
        incoming = weights[0].T * self.x_scale
        if self.basis is not None:
            incoming = incoming @ self.basis
        bias = biases[0] + self.x_mean @ weights[0]
        layers = [np.column_stack([incoming, bias])]
        layers += [np.vstack([w, b]).T for w, b in zip(weights[1:], biases[1:], strict=True)]
        layers[-1] = layers[-1] / self.y_scale[:, None]
        layers[-1][:, -1] -= self.y_mean / self.y_scale
        return Network(tuple(layers))

    def carried_to(self, others: Coordinates, layers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Stacked networks in other coordinates; what those do not tell of the inputs is lost."""
        to_columns = (
            np.eye(len(self.x_scale)) if self.basis is None else self.basis.T
        ) / self.x_scale
        basis = np.eye(len(others.x_scale)) if others.basis is None else others.basis
        turn = to_columns @ (others.x_scale[:, None] * basis)
        shift = to_columns @ (others.x_mean - self.x_mean)
        carried, n_older = [], 0
        for depth, layer in enumerate(layers):
            own = slice(n_older, n_older + len(turn))
            if depth == 0 or layer.shape[-1] > layers[depth - 1].shape[-2] + 1:  # it reads inputs
                incoming = layer[..., own]
                bias = layer[..., -1:] + (incoming @ shift)[..., None]
                layer = np.concatenate(
                    [layer[..., :n_older], incoming @ turn, layer[..., own.stop : -1], bias],
                    axis=-1,
                )
            carried.append(layer)
            n_older += layer.shape[-2]
        last = carried[-1] * (self.y_scale / others.y_scale)[:, None]
        last[..., -1] += (self.y_mean - others.y_mean) / others.y_scale
        return [*carried[:-1], last]

    def to_original_inputs(self, X: np.ndarray) -> np.ndarray:
        """The user's columns of standardized rows, up to rounding."""
        scaled = X if self.basis is None else X @ self.basis.T
        return scaled * self.x_scale + self.x_mean

    def imitated_rounding(
        self, network: Network, samples: Samples, activation: Activation, shift: float = 0.0
    ) -> np.ndarray | None:
        """Errors as targets of this precision have, (n_samples, n_outputs); None for exact ones.

        Where only the inputs are given in less than full precision, theirs counts.
        """
        if self.precision.is_full and self.x_precision.is_full:
            return None
        weights, biases = self.to_original(network)
        X = self.to_original_inputs(samples.X)
        outputs = evaluate(weights, biases, X, activation, np.float64)
        if self.precision.is_full:
            lost = np.random.default_rng(0).uniform(-0.5, 0.5, X.shape)
            moved = X + lost * self.x_precision.spacing(X)
            given = evaluate(weights, biases, moved, activation, np.float64)
        else:
            given = self.precision.imitate(weights, biases, X, activation, shift)
        return (given - outputs) / self.y_scale

    def open_columns(self) -> np.ndarray:
        """Mask of the columns whose incoming weights no row tells, (n_features,).

        These are constant, or part of a linear relation between columns that holds in all rows.
        """
        if self.basis is None:
            return np.zeros(len(self.x_mean), dtype=bool)
        told = (self.basis**2).sum(axis=1)  # squared length of each column's unit vector
        return told < 1.0 - MAX_OPEN_SHARE

    def incoming_map(self) -> np.ndarray:
        """The matrix that takes ``[w; b]`` of the first layer to the user's columns."""
        n_vectors = len(self.x_mean) if self.basis is None else self.basis.shape[1]
        units = np.eye(n_vectors + 1)
        nothing = np.zeros((len(self.y_mean), len(units) + 1))
        weights, biases = self.to_original(Network((units, nothing)))
        return np.vstack([weights[0], biases[0]])

    def to_original(self, network: Network) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Weights ``(fan_in, fan_out)`` and biases of a network without skip terms, exactly.

        Where columns of X are linearly dependent, the incoming weight vectors are those of minimum
        norm; a constant column gets weight zero.
        """
        incoming = network.layers[0][:, :-1]
        if self.basis is not None:
            incoming = incoming @ self.basis.T
        incoming = incoming / self.x_scale
        if self.basis is not None:
            row_space, _ = np.linalg.qr(self.x_scale[:, None] * self.basis)
            incoming = incoming @ row_space @ row_space.T
            # The projection loses digits where columns differ much in scale: put them back.
            lost = network.layers[0][:, :-1] - (incoming * self.x_scale) @ self.basis
            incoming = incoming + lost @ self.basis.T / self.x_scale
        bias = network.layers[0][:, -1] - incoming @ self.x_mean
        weights = [incoming, *(layer[:, :-1] for layer in network.layers[1:])]
        biases = [bias, *(layer[:, -1] for layer in network.layers[1:])]
        weights[-1] = weights[-1] * self.y_scale[:, None]
        biases[-1] = biases[-1] * self.y_scale + self.y_mean
        return [weight.T.copy() for weight in weights], [bias.copy() for bias in biases]


@dataclass(frozen=True)
class Problem:
    """Everything that a fit keeps of its data, so that ``recluster`` can use it again."""

    train: Samples
    held_out: Samples
    coordinates: Coordinates

    @property
    def shape(self) -> tuple[int, int]:
        """Number of columns and of outputs."""
        return len(self.coordinates.x_mean), len(self.coordinates.y_mean)


def prepare(
    X: np.ndarray,
    y: np.ndarray,
    sample_weight: np.ndarray,
    rng: np.random.Generator,
    precision: Precision = FULL,
    x_precision: Precision = FULL,
    settings: Preparation = DEFAULTS.preparation,
) -> Problem:
    """Merge repeated rows, standardize, and keep some rows out of training."""
    X, y, sample_weight = merge_duplicate_rows(X, y, sample_weight)
    if len(X) == 0:
        raise ValueError("All sample weights are zero: give at least one row a positive weight.")
    samples, coordinates = standardize(X, y, sample_weight, precision, x_precision, settings)
    train, held_out = split_rows(samples, rng, settings)
    return Problem(train, held_out, coordinates)


def merge_duplicate_rows(
    X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the rows, merge equal ones, add up their weights, drop those of weight zero.

    A repeated row is no new equation. The fit depends neither on the order of the rows nor on
    whether a row is repeated or weighted.
    """
    used = np.flatnonzero(sample_weight > 0)
    if len(used) == 0:
        return X[used], y[used], sample_weight[used]
    order = _lexical_order(X, y, used)
    starts = np.flatnonzero(~_repeat_the_one_before(X, y, order))
    first = order[starts]
    return X[first], y[first], np.add.reduceat(sample_weight[order], starts)


def _lexical_order(X: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows, sorted by their entries; those behind the first one count where it has ties."""
    order = rows[np.argsort(X[rows, 0], kind="stable")]
    first = X[order, 0]
    equal = first[1:] == first[:-1]
    tied = np.append(equal, False) | np.append(False, equal)
    rows = order[tied]
    order[tied] = rows[np.lexsort(np.hstack([X[rows], y[rows]]).T[::-1])]
    return order


def _repeat_the_one_before(X: np.ndarray, y: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Which of sorted rows are equal to the one before."""
    repeat = np.append(False, X[order[1:], 0] == X[order[:-1], 0])
    rows, before = order[repeat], order[np.flatnonzero(repeat) - 1]
    repeat[repeat] = (X[rows] == X[before]).all(axis=1) & (y[rows] == y[before]).all(axis=1)
    return repeat


def standardize(
    X: np.ndarray,
    y: np.ndarray,
    sample_weight: np.ndarray,
    precision: Precision = FULL,
    x_precision: Precision = FULL,
    settings: Preparation = DEFAULTS.preparation,
) -> tuple[Samples, Coordinates]:
    """Rows in standardized coordinates, and these coordinates."""
    x_mean, x_scale, x_varies = _mean_scale_and_whether_it_varies(X, sample_weight)
    deviation = np.maximum(X.max(axis=0) - x_mean, x_mean - X.min(axis=0))
    x_scale = np.maximum(x_scale, deviation / settings.max_deviation)
    y_mean, y_scale, y_varies = _mean_scale_and_whether_it_varies(y, sample_weight)
    if precision.step and y_varies.any():  # outputs are known equally well, whatever their spread
        y_scale = np.full_like(y_scale, np.sqrt(np.mean(y_scale[y_varies] ** 2)))
    y_rounding = np.finfo(np.float64).eps * float(np.max(_largest(y) / y_scale))
    rounding = precision.spacing(y) / (np.sqrt(12.0) * y_scale)
    rounding_loss = precision.slack**2 * float(np.mean(rounding**2))
    if precision.is_full or rounding_loss > settings.max_rounding_loss:
        precision, rounding_loss = FULL, 0.0
    coordinates = Coordinates(
        x_mean, x_scale, None, y_mean, y_scale, y_rounding, precision, x_precision
    )
    scaled_X, scaled_y = coordinates.transform(X, y)
    varying = scaled_X if x_varies.all() else scaled_X * x_varies
    basis = _row_space_basis(varying, _largest(X) / x_scale)
    if basis is not None:
        coordinates, scaled_X = replace(coordinates, basis=basis), scaled_X @ basis
    weight = sample_weight / sample_weight.mean()
    return Samples.of(scaled_X, scaled_y, weight, rounding_loss), coordinates


def split_rows(
    samples: Samples,
    rng: np.random.Generator,
    settings: Preparation = DEFAULTS.preparation,
) -> tuple[Samples, Samples]:
    """Training rows and rows kept out of training; with one row, both are that row."""
    n_samples = len(samples.X)
    n_held_out = min(settings.max_held_out, max(1, round(settings.held_out_share * n_samples)))
    order = rng.permutation(n_samples)
    is_needed = have_high_leverage(samples.X, settings)[order]
    order = order[np.argsort(is_needed, kind="stable")]
    train = np.sort(order[n_held_out:]) if n_samples > 1 else order
    return samples.take(train), samples.take(np.sort(order[:n_held_out]))


def have_high_leverage(X: np.ndarray, settings: Preparation) -> np.ndarray:
    """Which rows tell much about some direction that hardly another row tells about."""
    norms = np.einsum("ij,ij->i", X, X) + 1.0
    if norms.max() <= settings.high_leverage * _least_eigenvalue(X):
        return np.zeros(len(X), dtype=bool)
    found = leverages(X)
    mean = found.mean()
    return found > mean + settings.high_leverage * (1.0 - mean)


def leverages(X: np.ndarray) -> np.ndarray:
    """Diagonal of the hat matrix of an affine fit: 1 for rows that alone decide a direction."""
    X = _with_ones(X)
    triangle = _gram_factor(X)
    if triangle is None:
        basis, _ = np.linalg.qr(X)
        return (basis**2).sum(axis=1)
    inverse = solve_triangular(triangle, np.eye(len(triangle)))
    return np.concatenate([((X[rows] @ inverse) ** 2).sum(axis=1) for rows in row_blocks(len(X))])


def _with_ones(X: np.ndarray) -> np.ndarray:
    return np.hstack([X, np.ones((len(X), 1))])


def _least_eigenvalue(X: np.ndarray) -> float:
    """A lower bound of that of ``[X, 1]ᵀ[X, 1]``, and so of ``XᵀX``, from a share of many rows.

    Zero where these tell nothing.
    """
    step = len(X) // (TELLING_ROWS * (X.shape[1] + 1))
    if step < 2:
        return 0.0
    share = _with_ones(X[::step])
    values = np.linalg.eigvalsh(share.T @ share)
    return float(values[0]) if values[0] > MIN_CONDITION**2 * values[-1] else 0.0


def _gram_factor(X: np.ndarray) -> np.ndarray | None:
    """``R`` of ``X = QR`` from ``XᵀX``, in a third of the time; None where squares lose digits."""
    gram = X.T @ X
    values = np.linalg.eigvalsh(gram)
    is_well_conditioned = values[0] > MIN_CONDITION**2 * values[-1]
    return np.linalg.cholesky(gram).T if is_well_conditioned else None


def _mean_scale_and_whether_it_varies(
    values: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each column: the mean, the spread (one for a constant), and whether there is any."""
    share = weight / weight.sum()
    mean = share @ values
    scale = np.sqrt(
        sum(share[rows] @ (values[rows] - mean) ** 2 for rows in row_blocks(len(values)))
    )
    varies = np.ptp(values, axis=0) > 100 * np.finfo(np.float64).eps * _largest(values)
    return mean, np.where(varies, scale, 1.0), varies


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest absolute value of each column."""
    return np.maximum(values.max(axis=0), -values.min(axis=0))


def _row_space_basis(X: np.ndarray, largest: np.ndarray) -> np.ndarray | None:
    """Orthonormal basis of the row space, shape (n_features, rank); None for full rank.

    ``largest`` holds the largest entry of each column before centering, which sets its rounding.
    """
    rounding, eps = 10.0 * np.sqrt(len(X)) * np.linalg.norm(largest), np.finfo(np.float64).eps
    most = np.linalg.norm(X)  # of the largest singular value
    if np.sqrt(_least_eigenvalue(X)) > max(most * max(X.shape), rounding) * eps:
        return None
    factor = _gram_factor(X)
    triangle = np.linalg.qr(X, mode="r") if factor is None else factor
    _, singular_values, rotation = np.linalg.svd(triangle, full_matrices=False)
    threshold = max(singular_values[0] * max(X.shape), rounding) * eps
    rank = int(np.count_nonzero(singular_values > threshold))
    return None if rank == X.shape[1] else rotation[:rank].T.copy()
