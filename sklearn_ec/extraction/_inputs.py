"""Where queries are made: distributions of inputs, drawn without feedback from the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_array

# Draws inputs of shape (n, n_features).
Inputs = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Uniform:
    """Inputs uniform in a box.

    Parameters
    ----------
    low, high : float or ndarray of shape (n_features,)
        Bounds of each column; an array for at least one of them tells the number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.extraction import Uniform
    >>> Uniform([0.0, 2.0], 3.0)(np.random.default_rng(0), 4).shape
    (4, 2)
    """

    low: Any
    high: Any

    def __post_init__(self) -> None:
        low, high = np.broadcast_arrays(*map(np.asarray, (self.low, self.high)))
        if low.ndim != 1:
            raise ValueError(
                "Uniform inputs need bounds of each column, (n_features,) values of low or high: "
                f"got shapes {np.shape(self.low)} and {np.shape(self.high)}."
            )
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
            raise ValueError("Uniform inputs need finite bounds, low at most high in each column.")

    def __call__(self, rng: np.random.Generator, n: int) -> np.ndarray:
        low, high = np.broadcast_arrays(*map(np.asarray, (self.low, self.high)))
        return rng.uniform(low, high, size=(n, len(low)))


@dataclass(frozen=True)
class Gaussian:
    """Inputs whose columns are normal and independent.

    Parameters
    ----------
    mean, scale : float or ndarray of shape (n_features,)
        Mean and standard deviation of each column; an array for at least one of them tells the
        number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.extraction import Gaussian
    >>> Gaussian(np.zeros(2), 1.0)(np.random.default_rng(0), 4).shape
    (4, 2)
    """

    mean: Any
    scale: Any

    def __post_init__(self) -> None:
        mean, scale = np.broadcast_arrays(*map(np.asarray, (self.mean, self.scale)))
        if mean.ndim != 1 or not (np.isfinite(mean).all() and (scale >= 0).all()):
            raise ValueError(
                "Gaussian inputs need a finite mean and a scale of at least 0 for each column, "
                f"(n_features,) values of one of them: got {self.mean!r} and {self.scale!r}."
            )

    def __call__(self, rng: np.random.Generator, n: int) -> np.ndarray:
        mean, scale = np.broadcast_arrays(*map(np.asarray, (self.mean, self.scale)))
        return rng.normal(mean, scale, size=(n, len(mean)))


class _FromRows:
    """Inputs made from example rows."""

    def __init__(self, rows: Any):
        self.rows = check_array(rows, dtype=np.float64, input_name="rows")

    def _drawn(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return self.rows[rng.integers(len(self.rows), size=n)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.rows)} rows of {self.rows.shape[1]} columns)"


class Examples(_FromRows):
    """Example rows themselves, each once as far as they go.

    Parameters
    ----------
    rows : array-like of shape (n_rows, n_features)
        Example rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.extraction import Examples
    >>> Examples([[0.0, 1.0], [2.0, 3.0]])(np.random.default_rng(0), 4).shape
    (4, 2)
    """

    def __call__(self, rng: np.random.Generator, n: int) -> np.ndarray:
        order = rng.permutation(len(self.rows))
        return self.rows[np.resize(order, n)]


class ColumnBootstrap(_FromRows):
    """Inputs whose columns are drawn from those of example rows, each on its own.

    Parameters
    ----------
    rows : array-like of shape (n_rows, n_features)
        Example rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.extraction import ColumnBootstrap
    >>> ColumnBootstrap([[0.0, 1.0], [2.0, 3.0]])(np.random.default_rng(0), 4).shape
    (4, 2)
    """

    def __call__(self, rng: np.random.Generator, n: int) -> np.ndarray:
        chosen = rng.integers(len(self.rows), size=(n, self.rows.shape[1]))
        return np.take_along_axis(self.rows, chosen, axis=0)


class BiasedNoise(_FromRows):
    """Example rows with noise of one sign: uniform in (0, a) or in (-a, 0), for half of them each.

    Every row moves as a whole, which switches neurons on and off that noise around the rows
    leaves as they are [1]_.

    Parameters
    ----------
    rows : array-like of shape (n_rows, n_features)
        Example rows.
    scale : float or ndarray of shape (n_features,), default=None
        Largest noise ``a`` of each column. None for the spread of the rows: the root mean square of
        the columns' standard deviations.

    References
    ----------
    .. [1] J. Beiser, F. Martinelli, W. Gerstner, J. Brea, "Data augmentation techniques to reverse
       engineer neural network weights from input-output queries", UniReps workshop, NeurIPS 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.extraction import BiasedNoise
    >>> BiasedNoise([[0.0, 1.0], [2.0, 3.0]])(np.random.default_rng(0), 4).shape
    (4, 2)
    """

    def __init__(self, rows: Any, scale: Any = None):
        super().__init__(rows)
        self.scale = _spread(self.rows) if scale is None else scale

    def __call__(self, rng: np.random.Generator, n: int) -> np.ndarray:
        rows = self._drawn(rng, n)
        signs = np.where(rng.random((n, 1)) < 0.5, -1.0, 1.0)
        return rows + signs * self.scale * rng.random(rows.shape)


class Composition(_FromRows):
    """Images that are put together from the same places of several example images [1]_.

    Parameters
    ----------
    rows : array-like of shape (n_rows, height * width)
        Example images of one channel.
    shape : tuple of int
        Height and width of an image, in pixels.
    grid : tuple of int, default=(3, 3)
        Rows and columns of places.

    References
    ----------
    .. [1] J. Beiser, F. Martinelli, W. Gerstner, J. Brea, "Data augmentation techniques to reverse
       engineer neural network weights from input-output queries", UniReps workshop, NeurIPS 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec.extraction import Composition
    >>> Composition(np.eye(4), shape=(2, 2), grid=(2, 1))(np.random.default_rng(0), 4).shape
    (4, 4)
    """

    def __init__(self, rows: Any, shape: tuple[int, int], grid: tuple[int, int] = (3, 3)):
        super().__init__(rows)
        if np.prod(shape) != self.rows.shape[1]:
            raise ValueError(
                f"Images of shape {shape} have {np.prod(shape)} pixels, rows have "
                f"{self.rows.shape[1]} columns."
            )
        edges = [np.arange(size) * n // size for size, n in zip(shape, grid, strict=True)]
        self.places = (edges[0][:, None] * grid[1] + edges[1]).ravel()  # of every pixel

    def __call__(self, rng: np.random.Generator, n: int) -> np.ndarray:
        chosen = rng.integers(len(self.rows), size=(n, self.places.max() + 1))
        return np.take_along_axis(self.rows, chosen[:, self.places], axis=0)


class Widened:
    """Inputs of a distribution of which some columns are drawn anew, over the range of all columns.

    They tell the incoming weights of columns that hardly vary, or only together with others.

    Parameters
    ----------
    draw : callable
        Draws inputs, ``draw(rng, n)`` of shape (n, n_features).
    low, high : ndarray of shape (n_features,)
        Range of each column.
    share : float, default=0.5
        Largest share of the columns of a row that are drawn anew.
    """

    def __init__(self, draw: Inputs, low: np.ndarray, high: np.ndarray, share: float = 0.5):
        self.draw = draw
        self.low, self.high = low, high
        self.share = share

    def __call__(self, rng: np.random.Generator, n: int) -> np.ndarray:
        rows = np.array(self.draw(rng, n))
        is_new = rng.random(rows.shape) < self.share * rng.random((n, 1))
        anew = rng.uniform(self.low, self.high, size=rows.shape)
        return np.where(is_new, anew, rows)


def as_inputs(inputs: Any) -> Inputs:
    """A distribution of inputs from bounds, from example rows or from a callable."""
    if callable(inputs):
        return inputs
    if isinstance(inputs, tuple) and len(inputs) == 2:
        return Uniform(*inputs)
    return Examples(inputs)


def rounded(X: Any, n: int) -> np.ndarray:
    """Drawn inputs, rounded to single precision."""
    X = np.asarray(X)
    if X.ndim != 2 or len(X) != n or X.dtype.kind not in "fiub" or not np.isfinite(X).all():
        raise ValueError(
            f"inputs(rng, {n}) must return {n} rows of finite numbers, shape ({n}, n_features): "
            f"got an array of shape {X.shape} and type {X.dtype}."
        )
    return X.astype(np.float32).astype(np.float64)


def _spread(rows: np.ndarray) -> float:
    return float(np.sqrt(rows.var(axis=0).mean()))
