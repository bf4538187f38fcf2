"""Extraction: ask a model, recover the network from the answers, ask for what is still open."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.canonical import canonical_network
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.parameters import assumed_widths
from sklearn_ec._core.records import Samples
from sklearn_ec._core.settings import Settings
from sklearn_ec._core.watch import Watch
from sklearn_ec._expand.students import layer_shapes
from sklearn_ec._regressor import ExpandClusterRegressor
from sklearn_ec._report.advice import WITHOUT_NEURONS
from sklearn_ec._solvers.jacobian import Linearization
from sklearn_ec._solvers.task import task_of
from sklearn_ec.inspection import ExtractionDisplay

from ._adapters import as_query
from ._inputs import Inputs, Widened, as_inputs, rounded
from ._queries import QueryError, QueryLog


@dataclass(frozen=True)
class Demand:
    """Equations per parameter that the first round asks for."""

    network: float  # of the assumed network
    student: float  # of a student, at least, unless it is as narrow as it may be


# With 3, nine tenths of them in training, a certificate is possible, and students learn smooth
# networks; with fewer than 2 of their own they fit the rows whatever these are: 30-16-1 tanh took
# more than 8 minutes in the first round with 1.5, 25 s with 2. Of ReLU, the best neurons of several
# students make the start of one that is twice as wide as the network.
SMOOTH = Demand(network=3.0, student=2.0)
# With 3, students of 12-14-14-10 tanh explain no held-out rows, and those of 10-10-10-1 hardly.
DEEP = Demand(network=4.5, student=2.25)
SHALLOW_KINKS = Demand(network=3.0, student=1.5)
# With 6, ReLU students of two hidden layers of width 10 do not learn the network.
DEEP_KINKS = Demand(network=9.0, student=3.0)


@dataclass(frozen=True)
class Design:
    """How many queries are made, and of which kind."""

    least_rho: float = 1.25
    rows_per_column: int = 20  # in the first round, where the sizes are unknown
    # Queries of a round over those of the round before; with unknown sizes.
    growth: float = 1.4
    growth_of_search: float = 2.0
    # Equations per parameter of a network that was found, but needs more rows for its certificate.
    equations: float = 2.4
    # Steps of students, unless the budget is spent: more answers do more for them than more steps.
    max_iter: int = 60
    # Candidates that queries are chosen from. Inputs that show one weight of a ReLU network may be
    # three in a thousand: where two neurons of different layers are both on.
    pool: int = 10_000
    n_disputing: int = 5  # students that choose
    max_parameters: int = 2000  # of networks whose open directions are looked for


DESIGN = Design()
KINKED = ("relu", "leaky_relu")
N_FIRST = 8  # queries that tell how many outputs there are
N_RANGE = 1000  # inputs that tell the range of the columns


@dataclass
class Extraction:
    """What an extraction came to.

    Attributes
    ----------
    estimator : ExpandClusterRegressor
        The estimator, fitted to all queries.
    history : list of dict
        One entry per round: ``n_queries`` up to then, ``layer_sizes``, ``activation``, relative
        ``loss`` on the training rows and ``held_out_error`` on others, ``certified``, ``obstacle``
        of the certificate, and ``seconds`` of the fit.
    X, y : ndarray
        All inputs that were asked, shape (n_queries, n_features), and the answers.
    """

    estimator: ExpandClusterRegressor
    history: list[dict[str, Any]]
    X: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)

    @property
    def recovered(self) -> bool:
        """Whether the network is certified to be that of the model."""
        return self.estimator.recovered_

    @property
    def n_queries(self) -> int:
        """Number of inputs that were asked."""
        return len(self.X)

    def plot(self, ax: Any = None) -> ExtractionDisplay:
        """Draw the errors and the widths, round by round.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; a new figure if None.

        Returns
        -------
        ExtractionDisplay
            The display.
        """
        return ExtractionDisplay.from_extraction(self, ax=ax)

    def __str__(self) -> str:
        rows = [f"{'queries':>8}  {'widths':14}  {'loss':>8}  certified  seconds"]
        rows += [
            f"{row['n_queries']:8d}  {row['layer_sizes']!s:14}  {row['loss']:8.1e}  "
            f"{row['certified'] or row['obstacle']!s:9}  {row['seconds']:7.1f}"
            for row in self.history
        ]
        return "\n".join(rows)


def extract(
    query: Any,
    inputs: Any,
    *,
    estimator: ExpandClusterRegressor | None = None,
    max_queries: int = 100_000,
    random_state: Any = None,
    verbose: int = 0,
) -> Extraction:
    """Ask a model for its outputs until the network behind them is certified.

    The first round asks as few inputs as a certificate needs. Where it fails, the next ones ask
    for more: where the networks found so far disagree, and, once the network fits all answers, for
    what the inputs leave open. No input is asked twice, all answers are used in every round, and
    students and network of a round are the start of the next.

    Parameters
    ----------
    query : callable or model
        The model, see :func:`~sklearn_ec.extraction.as_query`. A callable maps an array of shape
        (n, n_features) to (n,) or (n, n_outputs).
    inputs : tuple (low, high), array-like of shape (n_rows, n_features) or callable
        Where to ask: uniform in a box, see :class:`~sklearn_ec.extraction.Uniform`; at example
        rows, and around them once these are used up; or at what ``inputs(rng, n)`` draws with a
        :class:`numpy.random.Generator`. Inputs are rounded to single precision, so that models in
        float32 see the same ones.
    estimator : ExpandClusterRegressor, default=None
        Holds what is known of the network: its activation and its hidden layers. None for the
        default: ReLU, of unknown sizes. Its ``rho`` is the largest one used.
    max_queries : int, default=100_000
        Number of inputs that may be asked, at least 10.
    random_state : int, RandomState instance or None, default=None
        Seed of the inputs.
    verbose : int, default=0
        With 1, a line per round.

    Returns
    -------
    Extraction
        The fitted estimator, whether it was ``recovered``, ``n_queries`` and the ``history``.

    Raises
    ------
    QueryError
        If the model raises, or answers with another shape, with nan or with what is no number. The
        exception keeps all earlier answers.
    ValueError
        If ``max_queries`` or the inputs cannot be used.

    Examples
    --------
    >>> from sklearn_ec import ExpandClusterRegressor
    >>> from sklearn_ec.datasets import make_teacher
    >>> from sklearn_ec.extraction import Uniform, extract
    >>> model = make_teacher(3, 4, activation="tanh", random_state=0)
    >>> known = ExpandClusterRegressor(hidden_layer_sizes=4, activation="tanh", random_state=0)
    >>> found = extract(model.predict, Uniform([-2.0] * 3, 2.0), estimator=known, random_state=0)
    >>> found.recovered, found.estimator.layer_sizes_, found.n_queries
    (True, (4,), 63)
    """
    if not isinstance(max_queries, Integral) or max_queries < 10:
        raise ValueError(f"max_queries must be an integer of at least 10, got {max_queries!r}.")
    queries = QueryLog(as_query(query), int(max_queries))
    rng = np.random.default_rng(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    estimator = clone(ExpandClusterRegressor() if estimator is None else estimator)
    rounds = _Rounds(queries, as_inputs(inputs), estimator, rng, verbose)
    try:
        rounds.run()
    except QueryError as error:
        error.estimator_ = rounds.fitted
        raise
    assert rounds.fitted is not None
    return Extraction(rounds.fitted, rounds.history, queries.X, queries.y)


class _Rounds:
    """The rounds of an extraction: ask, fit, look what is open."""

    def __init__(
        self,
        queries: QueryLog,
        draw: Inputs,
        estimator: ExpandClusterRegressor,
        rng: np.random.Generator,
        verbose: int,
    ):
        self.queries = queries
        self.draw = draw
        self.given = estimator.get_params()
        self.estimator = estimator.set_params(warm_start=True)
        self.largest_rho: Any = estimator.rho
        self.max_iter = estimator.max_iter
        self.settings = estimator._settings
        self.rng = rng
        self.verbose = verbose
        self.fitted: ExpandClusterRegressor | None = None
        self.history: list[dict[str, Any]] = []

    def run(self) -> None:
        self.widened = _widened(self.draw, self.rng)
        self.queries.ask(self._drawn(self.draw, N_FIRST))
        self._ask_for_more(self._first_size())
        self._fit()
        while not self._has_ended():
            self._ask_for_more(self._next_size())
            self._fit()
        self._restore()

    def _restore(self) -> None:
        """Give the estimator back as it came, but for the expansion factor of the last round."""
        given = {name: self.given[name] for name in ("warm_start", "max_iter")}
        self.estimator.set_params(**given)._settings = self.settings

    def _has_ended(self) -> bool:
        """Whether the network is found, there is none, or the budget is spent."""
        has_none = self.estimator._targets in WITHOUT_NEURONS
        return self.estimator.recovered_ or has_none or not self.queries.n_left

    # How many

    def _first_size(self) -> int:
        """Queries of the first round: enough for a certificate where the sizes are known."""
        n_features = self.queries.X.shape[1]
        widths = self._given_widths
        if widths is None:
            return DESIGN.rows_per_column * (n_features + 1)
        return self._rows(self._demand.network * self._n_parameters(widths))

    @property
    def _demand(self) -> Demand:
        """What networks of the given widths and activation demand."""
        is_deep = len(self._given_widths or ()) > 1
        if self.estimator.activation in KINKED:
            return DEEP_KINKS if is_deep else SHALLOW_KINKS
        return DEEP if is_deep else SMOOTH

    def _next_size(self) -> int:
        """Queries of the next round, those of all before included."""
        certificate, size = self.estimator.certificate_, len(self.queries)
        if self._given_widths is None:
            return math.ceil(DESIGN.growth_of_search * size)
        if certificate.obstacle == "equations":
            return max(self._rows(DESIGN.equations * certificate.n_parameters), size + 1)
        return math.ceil(DESIGN.growth * size)

    def _rows(self, n_equations: float) -> int:
        return math.floor(n_equations / self._n_independent_outputs)

    @property
    def _n_independent_outputs(self) -> int:
        """Outputs that are equations of their own: a narrow last layer makes others depend."""
        widths, n_outputs = self._given_widths, self.queries.n_outputs
        return n_outputs if widths is None else min(n_outputs, widths[-1])

    @property
    def _given_widths(self) -> tuple[int, ...] | None:
        return assumed_widths(self.estimator.hidden_layer_sizes, self.largest_rho)

    def _n_parameters(self, widths: tuple[int, ...]) -> int:
        n_features, n_outputs = self.queries.X.shape[1], self.queries.n_outputs
        return sum(map(math.prod, layer_shapes(n_features, widths, n_outputs, False)))

    def _rho(self) -> Any:
        """The largest expansion factor with enough equations for students."""
        widths, largest = self._given_widths, self.largest_rho
        if widths is None or np.ndim(largest):
            return largest
        n_equations = len(self.queries) * self._n_independent_outputs
        rhos = np.arange(largest, min(DESIGN.least_rho, largest), -1 / 16)
        for rho in rhos:
            expanded = tuple(math.ceil(rho * width) for width in widths)
            if self._demand.student * self._n_parameters(expanded) <= n_equations:
                return float(rho)
        return min(DESIGN.least_rho, largest)

    # Which

    def _ask_for_more(self, size: int) -> None:
        n = min(size, self.queries.max_queries) - len(self.queries)
        if n > 0:
            self.queries.ask(self._next_inputs(n))

    def _next_inputs(self, n: int) -> np.ndarray:
        """Inputs that tell most of what is open."""
        estimator = self.fitted
        if estimator is None:
            return self._drawn(self.draw, n)
        if not estimator.certificate_.fits_exactly:
            return np.concatenate([self._drawn(self.draw, n - n // 2), self._disputed(n // 2)])
        if estimator.certificate_.obstacle == "equations":
            return self._drawn(self.draw, n)
        return self._telling(n)

    def _drawn(self, draw: Inputs, n: int) -> np.ndarray:
        """New inputs, from the widened distribution where a distribution gives no more."""
        found = self.queries.new(rounded(draw(self.rng, n), n))
        while len(found) < n:
            n_before = len(found)
            more = rounded(self.widened(self.rng, n), n)
            found = self.queries.new(np.concatenate([found, more]))[:n]
            if len(found) == n_before:
                raise ValueError(
                    f"inputs gave {len(self.queries)} different rows, and no more: "
                    "give inputs that take more values."
                )
        return found

    def _disputed(self, n: int) -> np.ndarray:
        """Inputs on which the best students disagree most."""
        pool = self._drawn(self.draw, max(DESIGN.pool, n))
        outputs = np.stack(list(student_outputs(self.estimator, pool)))
        spread = outputs.std(axis=0).sum(axis=1)
        return pool[np.argsort(-spread, kind="stable")[:n]]

    def _telling(self, n: int) -> np.ndarray:
        """Inputs that tell most of what the answers leave open of the network that was found."""
        half = max(DESIGN.pool // 2, n)
        pool = np.concatenate([self._drawn(self.draw, half), self._drawn(self.widened, half)])
        if self.estimator.certificate_.n_parameters > DESIGN.max_parameters:
            return self.rng.permutation(pool)[:n]
        return pool[np.argsort(-leverages(self.estimator, pool), kind="stable")[:n]]

    # Fit

    def _fit(self) -> None:
        start = time.perf_counter()
        is_last = not self.queries.n_left
        limit = self.max_iter if is_last else min(self.max_iter, DESIGN.max_iter)
        self.estimator.set_params(rho=self._rho(), max_iter=limit)
        self.estimator._settings = self.settings if is_last else _hasty(self.settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.estimator.fit(self.queries.X, self.queries.y)
        self.fitted, certificate = self.estimator, self.estimator.certificate_
        self.history.append(
            {
                "n_queries": len(self.queries),
                "layer_sizes": self.estimator.layer_sizes_,
                "activation": self.estimator.activation_,
                "loss": self.estimator.loss_,
                "held_out_error": certificate.held_out_error,
                "certified": self.estimator.recovered_,
                "obstacle": certificate.obstacle,
                "seconds": time.perf_counter() - start,
            }
        )
        if self.verbose:
            verdict = "certified" if self.estimator.recovered_ else certificate.reason
            print(
                f"[extract] {len(self.queries)} queries, {self.estimator.layer_sizes_}: {verdict}"
            )


def _hasty(settings: Settings) -> Settings:
    """For rounds that others follow: what the best student does not give, more answers may.

    An exact network ends the round, whatever the rows leave open of it, as one of many parameters
    does anywhere: the next queries are chosen for that. A network for noise that is none took half
    of a round of 20-20-3 tanh networks.
    """
    return replace(
        settings,
        finish=replace(settings.finish, max_finished=1, max_denoised=0),
        verdict=replace(settings.verdict, max_dense_parameters=0),
    )


def student_outputs(estimator: ExpandClusterRegressor, X: np.ndarray) -> Iterator[np.ndarray]:
    """Outputs of the best students and of the network, in standardized units, (n, n_outputs)."""
    coordinates, students = estimator._problem.coordinates, estimator._trained.ensemble.students
    activation = get_activation(estimator.activation_)
    outputs = estimator.predict(X).reshape(len(X), -1)
    inputs, outputs = coordinates.transform(X, outputs)
    yield outputs
    for student in students.by_loss()[: DESIGN.n_disputing]:
        yield network_outputs(students.network(int(student)), inputs, activation)


def leverages(estimator: ExpandClusterRegressor, X: np.ndarray) -> np.ndarray:
    """How much inputs would tell of the network's parameters beyond what the rows tell, (n,)."""
    problem, activation = estimator._problem, get_activation(estimator.activation_)
    coordinates, blocks = problem.coordinates, estimator._settings.blocks
    network = coordinates.to_standardized(estimator.weights_, estimator.biases_)
    task = task_of(problem.train, activation, "cpu", Watch(), blocks)
    linearization = Linearization(task, canonical_network(network, activation))
    inputs, _ = coordinates.transform(X, np.zeros((len(X), 1)))
    rows = Samples.of(inputs, np.zeros((len(X), problem.train.y.shape[1])), np.ones(len(X)))
    return linearization.leverages(task_of(rows, activation, "cpu", Watch(), blocks))


def _widened(draw: Inputs, rng: np.random.Generator) -> Widened:
    """Inputs over the range of all columns; of those that do not vary, over that of all others."""
    X = rounded(draw(rng, N_RANGE), N_RANGE)
    low, high = X.min(axis=0), X.max(axis=0)
    is_constant = low == high
    return Widened(draw, np.where(is_constant, X.min(), low), np.where(is_constant, X.max(), high))
