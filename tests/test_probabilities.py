"""Probabilities as targets and back, and classifiers recovered from them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.metrics import max_cosine_distance
from sklearn_ec.probabilities import proba_from_targets, targets_from_proba


def train_classifier(classes, sharpness=1.0):
    """Four tanh neurons on some classes of the iris data, with its outputs times ``sharpness``."""
    X, target = load_iris(return_X_y=True)
    rows = np.isin(target, classes)
    classifier = MLPClassifier(
        hidden_layer_sizes=(4,), activation="tanh", max_iter=3000, random_state=0
    ).fit(scale(X)[rows], target[rows])
    classifier.coefs_[-1] *= sharpness
    classifier.intercepts_[-1] *= sharpness
    return classifier


def recover(queries, proba):
    return ExpandClusterRegressor(
        hidden_layer_sizes=4, activation="tanh", n_students=5, random_state=0
    ).fit(queries, targets_from_proba(proba))


@pytest.mark.parametrize("classes", [pytest.param((0, 1, 2), marks=pytest.mark.slow), (1, 2)])
def test_recovers_a_classifier(classes):
    classifier = train_classifier(classes)
    queries, new = np.random.default_rng(0).normal(size=(2, 1500, 4))
    model = recover(queries, classifier.predict_proba(queries))
    assert model.recovered_
    assert max_cosine_distance(classifier, model, "tanh") <= 1e-20
    proba = proba_from_targets(model.predict(new))
    assert_allclose(proba, classifier.predict_proba(new), rtol=1e-12)


@pytest.mark.slow
def test_tiny_probabilities_of_several_classes_keep_their_digits():
    classifier = train_classifier((0, 1, 2), sharpness=10.0)
    queries = np.random.default_rng(0).normal(size=(1500, 4))
    proba = classifier.predict_proba(queries)
    assert proba.min() < 1e-30
    model = recover(queries, proba)
    assert model.recovered_
    assert_allclose(proba_from_targets(model.predict(queries)), proba, rtol=1e-10)
    # The outputs sum to zero, so that the readout has rank 2; its columns are the centered ones.
    outgoing = classifier.coefs_[1] - classifier.coefs_[1].mean(axis=1, keepdims=True)
    norms = np.sort(np.linalg.norm(outgoing, axis=1))[::-1]
    assert_allclose(np.linalg.norm(model.weights_[1], axis=1), norms, rtol=1e-10)
    assert_allclose(model.weights_[1].sum(axis=1), 0.0, atol=1e-11 * norms[0])


def test_certain_rows_of_a_binary_classifier_are_left_out():
    classifier = train_classifier((1, 2), sharpness=6.0)
    queries = np.random.default_rng(0).normal(size=(1500, 4))
    proba = classifier.predict_proba(queries)
    keep = proba.min(axis=1) > 1e-4
    assert keep.mean() < 0.5
    model = recover(queries[keep], proba[keep])
    assert model.recovered_
    assert_allclose(proba_from_targets(model.predict(queries)), proba, rtol=0, atol=1e-12)


def test_round_trip_of_several_classes():
    y = np.random.default_rng(0).normal(scale=50.0, size=(200, 3))
    targets = targets_from_proba(special.softmax(y, axis=1))
    assert targets.shape == (200, 3)
    assert_allclose(targets, y - y.mean(axis=1, keepdims=True), rtol=0, atol=1e-13)
    assert_allclose(targets.sum(axis=1), 0.0, atol=1e-13)
    assert_allclose(proba_from_targets(targets), special.softmax(y, axis=1), rtol=1e-12)


def test_round_trip_of_two_classes():
    y = np.linspace(-30, 30, 101)
    proba = proba_from_targets(y)
    assert_allclose(proba, np.column_stack([special.expit(-y), special.expit(y)]), rtol=1e-15)
    assert_allclose(proba_from_targets(y[:, None]), proba)
    assert_allclose(targets_from_proba(proba), y, rtol=0, atol=1e-14)  # both columns have digits
    assert_allclose(targets_from_proba(proba[:, 1])[y < 3], y[y < 3], rtol=0, atol=1e-14)
    assert_allclose(proba_from_targets(np.column_stack([0 * y, y])), proba, rtol=1e-14)


def test_probabilities_in_float32():
    proba = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=np.float32)
    targets = targets_from_proba(proba)
    assert targets.dtype == np.float64
    assert_allclose(proba_from_targets(targets), proba, rtol=1e-6)
    assert targets_from_proba(proba[:, 0]).dtype == np.float64


def with_rows(rows, value):
    proba = np.full((9, 3), 1 / 3)
    proba[rows] = value
    return proba


@pytest.mark.parametrize(
    ("proba", "message"),
    [
        (with_rows([2, 5], [0, 0.5, 0.5]), r"2 of 9 rows of proba \(2, 5\) hold .* rounded to 0"),
        (with_rows([3], [1e-320, 0.5, 0.5]), "1 of 9 rows .* rounded to 0 or 1"),
        (with_rows(slice(7), [1, 0, 0]), r"7 of 9 rows of proba \(0, 1, 2, 3, 4, \.\.\.\) hold"),
        ([[0.0, 1.0]], "1 of 1 rows .* rounded to 0 or 1.*: leave these rows out"),
        ([0.5, 1.0, 0.0], r"2 of 3 rows of proba \(1, 2\) .* rounded to 0 or 1"),
        ([1.0 - 1e-17], "rounded to 0 or 1"),
        (with_rows([1], [-0.5, 0.5, 1.0]), r"1 of 9 rows of proba \(1\) hold values below 0"),
        ([0.5, 1.5], "1 of 2 rows .* above 1"),
        (with_rows([0], [0.3, 0.3, 0.3]), "1 of 9 rows .* do not sum to 1"),
        ([[0.5], [0.5]], "single column"),
        ([0.5, np.nan], "proba contains NaN"),
    ],
)
def test_other_rows_are_refused(proba, message):
    with pytest.raises(ValueError, match=message):
        targets_from_proba(proba)


def test_targets_must_be_finite():
    with pytest.raises(ValueError, match="y contains infinity"):
        proba_from_targets([0.0, np.inf])
