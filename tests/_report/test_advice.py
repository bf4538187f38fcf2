"""What a refusal proposes: each message where it helps, and nowhere else."""

import dataclasses
import re

import numpy as np
import pytest

from sklearn_ec._certify.certificate import Certificate
from sklearn_ec._core.coordinates import prepare
from sklearn_ec._core.precision import find_precision
from sklearn_ec._core.records import Network, Students
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._report.advice import Evidence, advice, enumerated, kind_of_targets

PROPOSALS = {
    "rows": "more rows",
    "steps": "max_iter",
    "students": "n_students",
    "activation": 'activation="auto"',
    "sizes": 'hidden_layer_sizes="auto"',
    "precision": "float64",
}


def make_certificate(obstacle, **fields):
    defaults = {
        "error": 1e-3,
        "held_out_error": 1e-3,
        "rounding": 1e-12,
        "precision": "float64",
        "n_equations": 400,
        "n_parameters": 16,
        "weight_error": np.nan,
        "isolation": np.nan,
        "redundancy": np.nan,
        "function_certified": False,
        "passed": False,
        "obstacle": obstacle,
        "reason": "measured",
    }
    return Certificate(**(defaults | fields))


def make_students(losses, n_iter=300, curve=None):
    """Students of given losses; the curve is that of the best one."""
    losses = np.asarray(losses, dtype=float)
    network = Network((np.zeros((1, 2)), np.zeros((1, 2))))
    curves = np.full((len(losses), 4), np.nan)
    curves[:, :2] = np.column_stack([losses, losses])
    if curve is not None:
        curves[np.nanargmin(losses), : len(curve)] = curve
    return Students(
        layers=tuple(np.stack([layer] * len(losses)) for layer in network.layers),
        losses=losses,
        trained=np.ones(len(losses), dtype=bool),
        n_iter=n_iter,
        best=network,
        best_held_out_loss=1e-3,
        loss_curves=curves,
    )


def evidence(**fields):
    defaults = {
        "targets": "numbers",
        "students": make_students([1e-6] * 5),
        "tol": 1e-20,
        "max_iter": 300,
        "n_outputs": 1,
        "is_noisy": False,
        "activation_given": True,
        "sizes_given": True,
    }
    return Evidence(**(defaults | fields))


def proposed(text):
    """What a message proposes."""
    assert text
    assert text[0].isupper() or text.startswith("y ")
    assert text.endswith(".")
    return {name for name, sign in PROPOSALS.items() if sign in text}


# Rows


def n_training_equations(n_rows, n_outputs):
    X = np.random.default_rng(0).normal(size=(n_rows, 1))
    y = np.random.default_rng(1).normal(size=(n_rows, n_outputs))
    return prepare(X, y, np.ones(n_rows), np.random.default_rng(0)).train.n_equations


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_the_advised_number_of_rows_is_enough_and_hardly_more(n_outputs):
    """Brute force: split that many rows."""
    for n_rows in range(4, 60):
        have = n_training_equations(n_rows, n_outputs)
        for n_parameters in (have // 2 + 1, have // 2 + 9, 2 * have + 7):
            certificate = make_certificate("equations", n_equations=have, n_parameters=n_parameters)
            text = advice(certificate, evidence(n_outputs=n_outputs))
            more = int("".join(filter(str.isdigit, text)))
            assert text == f"Give at least {more} more rows."
            assert n_training_equations(n_rows + more, n_outputs) >= 2 * n_parameters
            assert n_training_equations(n_rows + more - 4, n_outputs) < 2 * n_parameters
    assert DEFAULTS.preparation.max_held_out == 1000  # of more rows, a smaller share is held out


@pytest.mark.parametrize("obstacle", ["weights", "isolation"])
def test_rows_that_vary_more_determine_weights(obstacle):
    assert proposed(advice(make_certificate(obstacle), evidence())) == {"rows"}
    rounded = make_certificate(obstacle, precision="float32")
    text = advice(rounded, evidence())
    assert proposed(text) == {"rows", "precision"}
    assert "y is known to float32" in text


def test_a_neuron_that_does_not_bend_needs_rows_on_both_sides():
    text = advice(make_certificate("bend"), evidence())
    assert "fewer layers or neurons" in text
    assert "both sides" in text
    assert proposed(text) == set()


def test_networks_that_were_trained_on_all_rows_want_others():
    assert "rows that fit has not seen" in advice(make_certificate("no rows left"), evidence())


def test_errors_that_are_larger_on_held_out_rows_want_more_of_them():
    certificate = make_certificate("error", error=1e-14, held_out_error=1e-4)
    text = advice(certificate, evidence())
    assert "larger on rows that were kept out of training" in text
    assert proposed(text) == {"rows"}
    noisy = make_certificate("error", error=1e-4, held_out_error=1.1e-3)
    assert proposed(advice(noisy, evidence(is_noisy=True))) == {"rows"}
    assert "rows" not in proposed(advice(noisy, evidence()))


# Columns


def test_open_columns_are_named():
    certificate = make_certificate(
        "columns", function_certified=True, weight_error=np.inf, open_columns=("age", "x3")
    )
    text = advice(certificate, evidence())
    assert "function is certified" in text
    assert "the weights on age, x3 are not" in text
    assert "independently of the others" in text
    assert "leave out those that follow from others" in text


def test_columns_that_vary_too_little_are_to_vary_more():
    certificate = make_certificate(
        "columns", function_certified=True, weight_error=0.3, open_columns=("x3",)
    )
    text = advice(certificate, evidence())
    assert "Give rows in which this column varies more, or leave it out." in text


# Targets


@pytest.mark.parametrize("obstacle", ["error", "bend", "equations", "weights"])
@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("constant", "y is constant"),
        ("linear", "LinearRegression"),
        ("labels", "class labels.*sklearn_ec.probabilities"),
        ("steps", "at most 30 values.*sklearn_ec.probabilities"),
    ],
)
def test_targets_without_a_network_are_named_whatever_was_measured(targets, expected, obstacle):
    text = advice(make_certificate(obstacle), evidence(targets=targets))
    assert re.search(expected, text)
    assert not proposed(text) & {"steps", "students", "activation", "sizes", "precision"}


def test_probabilities_get_a_hint_where_no_network_fits():
    for certificate in (make_certificate("error"), make_certificate("error", rounding=1.0)):
        text = advice(certificate, evidence(targets="probabilities"))
        assert "give its logits" in text
    assert "logits" not in advice(make_certificate("error"), evidence())
    assert "logits" not in advice(make_certificate("weights"), evidence(targets="probabilities"))


def kind_of(y, X=None, precision="auto"):
    y = np.asarray(y).reshape(len(y), -1)
    X = np.random.default_rng(0).normal(size=(len(y), 2)) if X is None else X
    problem = prepare(
        X,
        y.astype(np.float64),
        np.ones(len(y)),
        np.random.default_rng(0),
        find_precision(y, precision),
    )
    return kind_of_targets(problem, y)


ROWS = np.random.default_rng(0).normal(size=(200, 2))


def test_kinds_of_numbers():
    smooth = np.tanh(ROWS[:, 0])
    assert kind_of(smooth, ROWS) == "numbers"
    assert kind_of(np.round(smooth, 3), ROWS) == "numbers"
    assert kind_of(smooth.astype(np.float32), ROWS) == "numbers"
    assert kind_of(np.round(1e4 * smooth), ROWS) == "numbers"  # many integers


@pytest.mark.parametrize("value", [0.0, 3.0, -1e9, 0.1])
def test_constant_targets_are_constant(value):
    assert kind_of(np.full(200, value)) == "constant"
    assert kind_of(np.full((200, 2), value)) == "constant"
    varying = np.c_[np.full(200, value), np.tanh(ROWS[:, 0])]
    assert kind_of(varying, ROWS) == "numbers"


@pytest.mark.parametrize("given", [np.float64, np.float32, "3 decimals"])
def test_linear_targets_are_linear_at_any_precision(given):
    y = np.c_[ROWS @ [1.0, -2.0] + 5.0, ROWS @ [0.3, 0.7]]
    bent = y + np.tanh(ROWS[:, :1])
    for values, expected in ((y, "linear"), (bent, "numbers")):
        rounded = np.round(values, 3) if given == "3 decimals" else values.astype(given)
        assert kind_of(rounded, ROWS) == expected


def test_few_rows_are_never_called_linear():
    """Six rows and three coefficients: chance would do."""
    assert kind_of(ROWS[:6] @ [1.0, 2.0], ROWS[:6]) == "numbers"


def test_integers_of_few_values_are_labels():
    classes = np.random.default_rng(1).integers(0, 10, size=200)
    grid = np.random.default_rng(2).integers(0, 20, size=(200, 2)).astype(float)
    assert kind_of(classes, grid) == "labels"
    assert kind_of(classes.astype(float) - 1, grid) == "labels"
    assert kind_of(np.where(classes > 5, 1.0, -1.0), grid) == "labels"
    assert kind_of(classes / 4, grid) == "numbers"
    assert kind_of(np.eye(10)[classes], grid) == "labels"
    assert kind_of(classes[:40], grid[:40]) != "labels"  # too few rows to tell


def test_few_values_on_inputs_of_many_are_steps():
    classes = np.random.default_rng(1).integers(0, 10, size=200)
    assert kind_of(classes, ROWS) == "steps"
    assert kind_of(classes / 4, ROWS) == "steps"
    assert kind_of(np.eye(10)[classes], ROWS) == "steps"
    relu = np.maximum(ROWS[:, 0] - 1.5, 0.0)
    assert kind_of(relu, ROWS) == "numbers"  # few values besides zero, each in one row
    assert kind_of(classes[:40], ROWS[:40]) != "steps"  # too few rows to tell


def test_probabilities_are_in_the_unit_interval_and_sum_to_one():
    logits = np.random.default_rng(2).normal(size=(200, 3))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert kind_of(softmax) == "probabilities"
    assert kind_of(softmax.astype(np.float32)) == "probabilities"
    assert kind_of(softmax[:, 0]) == "probabilities"
    assert kind_of(softmax[:, :2]) == "numbers"
    assert kind_of(logits) == "numbers"


# Errors


def test_noisy_data_are_called_so():
    text = advice(make_certificate("error"), evidence(is_noisy=True))
    assert "data are taken as noisy" in text
    assert proposed(text) == {"activation", "sizes"}
    text = advice(
        make_certificate("error"),
        evidence(is_noisy=True, activation_given=False, sizes_given=False),
    )
    assert proposed(text) == set()
    assert "free of noise, no small network" in text


@pytest.mark.parametrize(
    ("n_iter", "curve", "is_improving"),
    [
        (300, [1e-2, 1e-6], True),
        (310, [1e-2, 1e-6], True),  # whole epochs
        (290, [1e-2, 1e-6], False),  # it stopped by itself
        (300, [1e-6, 1e-6], False),
        (300, [1e-6, 0.71e-6], False),
        (300, [1e-6, 0.69e-6], True),
        (300, [1e-2, 1e-21], False),  # converged
        (300, [1e-6], False),
    ],
)
def test_more_steps_are_proposed_to_students_that_still_improve(n_iter, curve, is_improving):
    students = make_students([1e-3, 1e-6, 1e-3], n_iter, curve)
    text = advice(make_certificate("error"), evidence(students=students))
    assert ("steps" in proposed(text)) == is_improving
    if is_improving:
        assert text == "The students were still improving: raise max_iter."


def test_other_students_may_improve_while_the_best_one_stands_still():
    students = make_students([1e-3, 1e-6], 300, [1e-6, 1e-6])
    students.loss_curves[0, :2] = [1.0, 1e-3]
    assert "steps" not in proposed(advice(make_certificate("error"), evidence(students=students)))


@pytest.mark.parametrize(
    ("losses", "are_different"),
    [
        ([1e-6] * 5, False),
        ([1e-6, 2e-6, 3e-6, 9e-6, 9e-6], False),
        ([1e-6, 1e-4, 1e-3, 1e-3, 1e-2], True),
        ([1e-6, np.nan, 1e-3, 1e-3, np.inf], True),
        ([1e-6], False),
    ],
)
def test_more_students_are_proposed_where_they_end_at_different_losses(losses, are_different):
    text = advice(make_certificate("error"), evidence(students=make_students(losses)))
    assert ("students" in proposed(text)) == are_different
    assert ("raise n_students or rho" in text) == are_different
    assert {"activation", "sizes"} <= proposed(text)


@pytest.mark.parametrize("obstacle", ["error", "structure"])
@pytest.mark.parametrize("activation_given", [True, False])
@pytest.mark.parametrize("sizes_given", [True, False])
def test_another_model_is_proposed_only_where_it_was_given(obstacle, activation_given, sizes_given):
    precision = "float32" if obstacle == "structure" else "float64"
    text = advice(
        make_certificate(obstacle, precision=precision),
        evidence(activation_given=activation_given, sizes_given=sizes_given),
    )
    is_expected = {"activation": activation_given, "sizes": sizes_given}
    expected = {name for name, is_there in is_expected.items() if is_there}
    assert proposed(text) == expected
    assert ("no small network" in text) == (not (activation_given or sizes_given))


@pytest.mark.parametrize(
    "obstacle",
    [
        "error",
        "structure",
        "equations",
        "bend",
        "weights",
        "isolation",
        "redundancy",
        "columns",
        "no rows left",
    ],
)
def test_every_obstacle_has_its_advice(obstacle):
    certificate = make_certificate(obstacle, open_columns=("x1",) if obstacle == "columns" else ())
    text = advice(certificate, evidence())
    proposed(text)
    assert "  " not in text
    others = {
        advice(dataclasses.replace(certificate, obstacle=other), evidence())
        for other in ("error", "equations", "bend", "weights", "columns", "no rows left")
        if other != obstacle and {other, obstacle} != {"weights", "isolation"}
    }
    assert text not in others


def test_of_many_columns_the_first_few_are_named():
    names = tuple(f"x{index}" for index in range(9))
    assert enumerated(names[:6]) == "x0, x1, x2, x3, x4, x5"
    assert enumerated(names) == "x0, x1, x2, x3, x4 and 4 more"
