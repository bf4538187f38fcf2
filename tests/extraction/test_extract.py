"""Extraction from callables: rounds, budget, faulty answers."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher
from sklearn_ec.extraction import Examples, QueryError, audit, extract
from sklearn_ec.metrics import max_cosine_distance

BOX = ([-2.0] * 3, 2.0)


@pytest.fixture(scope="module")
def teacher():
    return make_teacher(3, 4, activation="tanh", random_state=0)


def known(**params):
    params = {"hidden_layer_sizes": 4, "activation": "tanh", "random_state": 0} | params
    return ExpandClusterRegressor(**params)


class Counted:
    """A model that keeps what it was asked."""

    def __init__(self, predict):
        self.predict = predict
        self.asked = []

    def __call__(self, X):
        self.asked.append(X)
        return self.predict(X)

    @property
    def inputs(self):
        return np.concatenate(self.asked)


@pytest.fixture(scope="module")
def found(teacher):
    model = Counted(teacher.predict)
    return model, extract(model, BOX, estimator=known(), random_state=0)


def test_the_network_is_certified_with_three_equations_per_parameter(teacher, found):
    _, extraction = found
    assert extraction.recovered
    assert extraction.n_queries == 63  # of 21 parameters
    assert max_cosine_distance(teacher, extraction.estimator, "tanh") < 1e-24


def test_every_query_counts_and_none_is_repeated(teacher, found):
    model, extraction = found
    assert_array_equal(model.inputs, extraction.X)
    assert_array_equal(extraction.y, teacher.predict(model.inputs))
    assert len(np.unique(model.inputs, axis=0)) == len(model.inputs) == extraction.n_queries
    assert_array_equal(model.inputs, model.inputs.astype(np.float32))


def test_history_and_table(found):
    _, extraction = found
    (row,) = extraction.history
    assert row["n_queries"] == 63
    assert row["layer_sizes"] == (4,)
    assert row["certified"]
    assert str(extraction).splitlines()[1].split()[:2] == ["63", "(4,)"]
    display = extraction.plot()
    assert display.points_.get_offsets()[0, 0] == 63
    assert display.ax_.get_title() == "certified with 63 queries, 1 round"


def test_the_same_seed_asks_the_same(teacher, found):
    again = extract(teacher.predict, BOX, estimator=known(), random_state=0)
    assert_array_equal(again.X, found[1].X)


def test_the_estimator_comes_back_as_it_was_given(found):
    estimator, given = found[1].estimator, known()
    assert estimator.get_params() | {"rho": given.rho} == given.get_params()
    assert estimator._settings == given._settings


def test_the_given_estimator_is_left_alone(teacher):
    estimator = known()
    extract(teacher.predict, BOX, estimator=estimator, max_queries=63, random_state=0)
    assert not hasattr(estimator, "weights_")
    assert not estimator.warm_start


def test_a_network_without_enough_equations_is_asked_for_the_rest(teacher):
    """The width given is too small a guess for what the first round asks."""
    found = extract(
        teacher.predict, BOX, estimator=known(hidden_layer_sizes=2, rho=3), random_state=0
    )
    assert found.recovered
    assert found.estimator.layer_sizes_ == (4,)
    assert len(found.history) > 1
    sizes = [row["n_queries"] for row in found.history]
    assert sizes == sorted(set(sizes))


@pytest.mark.filterwarnings("error")
def test_the_budget_is_kept(teacher):
    model = Counted(teacher.predict)
    found = extract(model, BOX, estimator=known(), max_queries=20, random_state=0)
    assert found.n_queries == len(model.inputs) == 20
    assert not found.recovered
    assert found.history[-1]["obstacle"] in ("equations", "error")


def test_example_rows_are_asked_first(teacher):
    rows = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    model = Counted(teacher.predict)
    extract(model, rows, estimator=known(), random_state=0)
    assert {row.tobytes() for row in model.inputs[:30]} == {r.astype(float).tobytes() for r in rows}


def test_inputs_from_a_callable_are_checked(teacher):
    with pytest.raises(ValueError, match=r"must return 1000 rows of finite numbers"):
        extract(teacher.predict, lambda rng, n: np.full((n, 3), np.nan), estimator=known())


def test_a_budget_too_small_is_refused(teacher):
    with pytest.raises(ValueError, match="max_queries must be an integer of at least 10, got 3"):
        extract(teacher.predict, BOX, max_queries=3)


def test_inputs_that_are_all_alike_are_refused(teacher):
    with pytest.raises(ValueError, match="give inputs that take more values"):
        extract(teacher.predict, lambda rng, n: np.zeros((n, 3)), estimator=known())


def test_a_model_without_neurons_is_asked_once():
    found = extract(lambda X: 2.0 * X[:, 0] - 1.0, BOX, estimator=known(), random_state=0)
    assert len(found.history) == 1
    assert not found.recovered


def raises(X):
    raise TimeoutError("no answer")


FAULTS = {
    "raises": (raises, "raised TimeoutError: no answer"),
    "nan": (lambda X: np.full(len(X), np.nan), "gave nan or infinity for 55 of the inputs"),
    "one infinity": (lambda X: np.where(np.arange(len(X)) == 3, np.inf, 0.0), "first for row 3"),
    "too few rows": (lambda X: X[:-1, 0], r"gave answers of shape \(54,\)"),
    "too many rows": (lambda X: np.zeros(len(X) + 1), r"gave answers of shape \(56,\)"),
    "another number of outputs": (lambda X: X[:, :2], r"gave answers of shape \(55, 2\), after"),
    "three dimensions": (lambda X: X[None], r"gave answers of shape \(1, 55, 3\)"),
    "no outputs": (lambda X: X[:, :0], "without an output"),
    "words": (lambda X: ["cat"] * len(X), "gave answers of type <U3: real numbers are needed"),
    "complex numbers": (lambda X: X[:, 0] + 1j, "gave answers of type complex128"),
    "objects": (lambda X: [None] * len(X), "gave answers of type object"),
    "a number": (lambda X: 1.0, r"gave answers of shape \(\)"),
    "ragged": (lambda X: [[0.0]] * (len(X) - 1) + [[0.0, 1.0]], "gave what is no array"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_answers_keep_those_before(teacher, fault):
    faulty, message = FAULTS[fault]
    calls = []

    def model(X):
        calls.append(len(X))
        return teacher.predict(X) if len(calls) == 1 else faulty(X)

    with pytest.raises(QueryError, match=message) as caught:
        extract(model, BOX, estimator=known(), random_state=0)
    error = caught.value
    assert error.X_.shape == (calls[0], 3)
    assert_array_equal(error.y_, teacher.predict(error.X_))
    assert error.estimator_ is None


def test_an_audit_stops_at_the_first_certificate(teacher):
    found = audit(
        teacher.predict,
        BOX,
        budgets=[2000, 1000, 12],
        estimator=known(n_students=5),
        network=teacher,
        n_test=50,
        random_state=0,
    )
    assert [row["budget"] for row in found.rows] == [12, 1000]
    assert [row["certified"] for row in found.rows] == [False, True]
    assert found.rows[1]["output_error"] < 1e-12 < found.rows[0]["output_error"]
    assert found.rows[1]["weight_error"] < 1e-20
    table = str(found).splitlines()
    assert len(table) == 4
    assert table[0].startswith("| queries | widths")
    display = found.plot()
    assert len(display.points_.get_offsets()) == 2


def test_an_audit_needs_a_budget(teacher):
    with pytest.raises(ValueError, match="at least one number of queries"):
        audit(teacher.predict, BOX, budgets=[])


def test_examples_come_once_as_far_as_they_go():
    rows = np.arange(12.0).reshape(4, 3)
    drawn = Examples(rows)(np.random.default_rng(0), 6)
    assert len(np.unique(drawn[:4], axis=0)) == 4
    assert drawn.shape == (6, 3)
