"""Teachers and suites."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec.datasets import load_reference_suite, make_teacher


def test_reference_teachers():
    teacher = make_teacher(7, 5, random_state=0)
    assert_allclose(np.linalg.norm(teacher.weights_[0], axis=0), 1.0)
    assert np.abs(teacher.biases_[0]).max() <= 1.0
    assert_array_equal(teacher.weights_[1][:, 0], [1, -1, 1, -1, 1])
    assert_array_equal(teacher.biases_[1], [0.0])


def test_rough_teachers():
    teacher = make_teacher(7, 50, 3, family="rough", random_state=0)
    norms = np.linalg.norm(teacher.weights_[0], axis=0)
    assert 0.5 <= norms.min() < 0.7
    assert 1.8 < norms.max() <= 2.0
    assert np.abs(teacher.weights_[1]).min() >= 0.3
    assert (teacher.weights_[1] < 0).any()


def test_predict_follows_the_layers():
    teacher = make_teacher(3, (4, 2), 2, "logistic", random_state=0)
    assert teacher.layer_sizes_ == (4, 2)
    X = np.random.default_rng(0).normal(size=(5, 3))
    values = X
    for weights, bias in zip(teacher.weights_[:2], teacher.biases_[:2], strict=True):
        values = 1 / (1 + np.exp(-(values @ weights + bias)))
    assert_allclose(teacher.predict(X), values @ teacher.weights_[2] + teacher.biases_[2])


def test_suite_is_complete_and_reproducible():
    suite = load_reference_suite("g")
    assert len(suite) == len({problem.name for problem in suite}) == 150
    smaller = load_reference_suite("g", n_seeds=2, n_inputs=(8,), widths=(4,))
    again = {problem.name: problem for problem in suite}[smaller[1].name]
    assert_array_equal(again.X, smaller[1].X)
    assert_array_equal(again.y, smaller[1].y)


def test_rows_of_the_suite():
    problem = load_reference_suite("tanh", n_seeds=1, n_inputs=(32,), widths=(8,))[0]
    n_parameters = 32 * 33 + 33
    assert problem.X.shape == (5 * n_parameters, 32)
    assert np.abs(problem.X).max() <= np.sqrt(3)
    assert_allclose(problem.X.std(), 1.0, rtol=0.01)
    assert_array_equal(problem.y, problem.teacher.predict(problem.X))


def test_rough_suite_has_one_to_three_outputs():
    suite = load_reference_suite("relu", family="rough", n_seeds=3, n_inputs=(2,), widths=(2,))
    assert [problem.y.ndim for problem in suite] == [1, 2, 2]
    assert suite[2].y.shape[1] == 3


def test_errors():
    with pytest.raises(ValueError, match="Unknown activation 'sine'"):
        make_teacher(activation="sine")
    with pytest.raises(ValueError, match="Unknown family 'smooth'"):
        make_teacher(family="smooth")
