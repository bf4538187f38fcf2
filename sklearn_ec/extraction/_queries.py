"""The questions that were put to a model, and its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# Answers of a model, shape (n,) or (n, n_outputs), to inputs of shape (n, n_features).
Query = Callable[[np.ndarray], Any]


class QueryError(RuntimeError):
    """A query failed or gave an answer that cannot be used; earlier answers are kept.

    Attributes
    ----------
    X_ : ndarray of shape (n_queries, n_features)
        Inputs that were answered before.
    y_ : ndarray of shape (n_queries,) or (n_queries, n_outputs)
        Their answers.
    estimator_ : ExpandClusterRegressor or None
        The estimator of the last round, where one was fitted.
    """

    def __init__(self, message: str, X: np.ndarray, y: np.ndarray):
        super().__init__(message)
        self.X_, self.y_ = X, y
        self.estimator_: Any = None


class QueryLog:
    """All queries of an extraction: no input is asked twice, and every answer counts.

    Parameters
    ----------
    query : callable
        Maps inputs of shape (n, n_features) to answers of shape (n,) or (n, n_outputs).
    max_queries : int
        Number of inputs that may be asked.
    """

    def __init__(self, query: Query, max_queries: int):
        self.query = query
        self.max_queries = max_queries
        self.X = np.empty((0, 0))
        self.y: np.ndarray = np.empty(0)
        self._asked: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.X)

    @property
    def n_left(self) -> int:
        return self.max_queries - len(self)

    @property
    def n_outputs(self) -> int:
        return 1 if self.y.ndim == 1 else self.y.shape[1]

    def new(self, X: np.ndarray) -> np.ndarray:
        """The rows that were not asked yet, each once."""
        asked = set(self._asked)
        is_new = []
        for row in X:
            key = row.tobytes()
            is_new.append(key not in asked)
            asked.add(key)
        return X[np.array(is_new, dtype=bool)]

    def ask(self, X: np.ndarray) -> None:
        """Ask new inputs, as far as the budget goes, and keep the answers."""
        X = self.new(X)[: self.n_left]
        if not len(X):
            return
        y = self._answers(X)
        self.X = np.concatenate([self.X.reshape(-1, X.shape[1]), X])
        self.y = np.concatenate([self.y.astype(y.dtype), y]) if len(self.y) else y
        self._asked.update(row.tobytes() for row in X)

    def _answers(self, X: np.ndarray) -> np.ndarray:
        try:
            answers = self.query(X.copy())
        except Exception as error:
            raise self._error(f"raised {type(error).__name__}: {error}", X) from error
        try:
            y = np.asarray(answers)
        except Exception as error:
            raise self._error(f"gave what is no array ({error})", X) from error
        return self._checked(y, X)

    def _checked(self, y: np.ndarray, X: np.ndarray) -> np.ndarray:
        """Answers of a shape and a type that can be used, a single column as a vector."""
        if y.dtype.kind not in "fiub":
            raise self._error(
                f"gave answers of type {y.dtype}: real numbers are needed, such as logits", X
            )
        if y.ndim not in (1, 2) or len(y) != len(X):
            raise self._error(
                f"gave answers of shape {y.shape}: ({len(X)},) or ({len(X)}, n_outputs) is needed, "
                "one row for each input",
                X,
            )
        if y.ndim == 2 and y.shape[1] == 0:
            raise self._error(f"gave answers of shape {y.shape}, without an output", X)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if len(self) and y.shape[1:] != self.y.shape[1:]:
            raise self._error(
                f"gave answers of shape {y.shape}, after {self.y.shape} in the queries before", X
            )
        if y.dtype.kind != "f":
            y = y.astype(np.float64)
        bad = ~np.isfinite(y.reshape(len(y), -1)).all(axis=1)
        if bad.any():
            first = int(np.argmax(bad))
            raise self._error(
                f"gave nan or infinity for {bad.sum()} of the inputs, first for row {first} of "
                "them: leave such inputs out of `inputs`, or mend the model's answers",
                X,
            )
        return y

    def _error(self, what: str, X: np.ndarray) -> QueryError:
        return QueryError(
            f"The query of {len(X)} inputs with {X.shape[1]} columns {what}. The {len(self)} "
            "answers before are in `X_` and `y_` of this exception.",
            self.X,
            self.y,
        )
