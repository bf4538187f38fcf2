"""How much of a model is recovered by how many queries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from sklearn_ec._regressor import ExpandClusterRegressor
from sklearn_ec.inspection import AuditDisplay
from sklearn_ec.metrics import match_neurons, relative_rmse

from ._adapters import as_query
from ._extract import extract
from ._inputs import as_inputs, rounded
from ._queries import QueryLog

COLUMNS = {
    "n_queries": "queries",
    "layer_sizes": "widths",
    "certified": "certified",
    "output_error": "output error",
    "weight_error": "weight error",
    "seconds": "seconds",
}


@dataclass
class Audit:
    """What each budget of queries gave.

    Attributes
    ----------
    rows : list of dict
        One per budget, up to the first that gave the network: ``budget``, ``n_queries`` used,
        ``layer_sizes`` found, ``certified``, ``output_error``, the relative root mean squared error
        on fresh inputs, ``weight_error``, the largest cosine distance between neurons of the model
        and recovered ones (nan where the widths differ or the network is not given), and
        ``seconds``.
    n_test : int
        Number of fresh inputs, asked beyond the budgets.
    """

    rows: list[dict[str, Any]]
    n_test: int

    def __str__(self) -> str:
        """A table for a report, in Markdown."""
        lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---" * len(COLUMNS) + "|"]
        for row in self.rows:
            cells = [
                str(row["n_queries"]),
                "-".join(map(str, row["layer_sizes"])),
                "yes" if row["certified"] else "no",
                f"{row['output_error']:.1e}",
                "" if np.isnan(row["weight_error"]) else f"{row['weight_error']:.1e}",
                f"{row['seconds']:.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> AuditDisplay:
        """Draw errors over queries.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        AuditDisplay
            The display.
        """
        return AuditDisplay(self.rows).plot(ax=ax)


def audit(
    query: Any,
    inputs: Any,
    *,
    budgets: Sequence[int],
    estimator: ExpandClusterRegressor | None = None,
    network: Any = None,
    n_test: int = 1000,
    random_state: Any = None,
) -> Audit:
    """Extract a model with several budgets of queries, the smallest first.

    Parameters
    ----------
    query : callable or model
        The model, see :func:`~sklearn_ec.extraction.as_query`.
    inputs : tuple (low, high), array-like of shape (n_rows, n_features) or callable
        Where to ask, as in :func:`~sklearn_ec.extraction.extract`.
    budgets : sequence of int
        Numbers of queries, at least 10 each.
    estimator : ExpandClusterRegressor, default=None
        Holds what is known of the network, as in :func:`~sklearn_ec.extraction.extract`.
    network : Teacher or fitted MLP, default=None
        The model's network, where the auditor has it, see
        :func:`~sklearn_ec.metrics.match_neurons`.
    n_test : int, default=1000
        Number of fresh inputs of which the outputs are compared. They count in no budget.
    random_state : int, RandomState instance or None, default=None
        Seed of the inputs.

    Returns
    -------
    Audit
        A row per budget; its ``str`` is a table, ``plot`` draws it.

    Raises
    ------
    QueryError
        If the model cannot be asked, see :func:`~sklearn_ec.extraction.extract`.
    ValueError
        If there is no budget.

    Examples
    --------
    >>> from sklearn_ec import ExpandClusterRegressor
    >>> from sklearn_ec.datasets import make_teacher
    >>> from sklearn_ec.extraction import audit
    >>> model = make_teacher(3, 4, activation="tanh", random_state=0)
    >>> known = ExpandClusterRegressor(hidden_layer_sizes=4, activation="tanh", random_state=0)
    >>> found = audit(
    ...     model.predict, ([-2.0] * 3, 2.0), budgets=[100], estimator=known, random_state=0
    ... )
    >>> found.rows[0]["certified"]
    True
    """
    if not len(budgets):
        raise ValueError("budgets must hold at least one number of queries.")
    rng = check_random_state(random_state)
    seed = int(rng.randint(np.iinfo(np.int32).max))
    fresh = QueryLog(as_query(query), n_test)
    fresh.ask(rounded(as_inputs(inputs)(np.random.default_rng(seed + 1), n_test), n_test))
    rows = []
    for budget in sorted(budgets):
        start = time.perf_counter()
        found = extract(query, inputs, estimator=estimator, max_queries=budget, random_state=seed)
        fitted = found.estimator
        rows.append(
            {
                "budget": budget,
                "n_queries": found.n_queries,
                "layer_sizes": fitted.layer_sizes_,
                "certified": found.recovered,
                "output_error": relative_rmse(fresh.y, fitted.predict(fresh.X)),
                "weight_error": _weight_error(network, fitted),
                "seconds": time.perf_counter() - start,
            }
        )
        if found.recovered:
            break
    return Audit(rows, n_test)


def _weight_error(network: Any, fitted: ExpandClusterRegressor) -> float:
    if network is None:
        return np.nan
    distances = [0.0]
    for layer in range(len(fitted.layer_sizes_)):
        match = match_neurons(network, fitted, fitted.activation_, layer)
        if len(match.missing) or len(match.excess):
            return np.nan
        distances.append(match.cosine_distances.max())
    return max(distances)
