"""Teachers and suites."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec.datasets import load_deep_suite, load_reference_suite, make_teacher


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


def test_deep_teachers():
    teacher = make_teacher(7, (40, 30), 2, "tanh", family="deep", random_state=0)
    assert [weight.shape for weight in teacher.weights_] == [(7, 40), (40, 30), (30, 2)]
    for weight in teacher.weights_[:2]:
        assert_allclose(np.linalg.norm(weight, axis=0), 1.5)
    assert_allclose(np.linalg.norm(teacher.weights_[2], axis=0), 1.0)
    assert_allclose(np.std(np.concatenate(teacher.biases_[:2])), 0.3, rtol=0.25)
    assert_array_equal(teacher.biases_[2], [0.0, 0.0])


@pytest.mark.parametrize("family", ["reference", "rough", "deep"])
def test_teachers_of_any_depth_are_reproducible(family):
    first, second, other = (
        make_teacher(3, (4, 3, 2), 2, "tanh", family=family, random_state=seed)
        for seed in (0, 0, 1)
    )
    assert first.layer_sizes_ == (4, 3, 2)
    pairs = zip(first.weights_ + first.biases_, second.weights_ + second.biases_, strict=True)
    for weight, same in pairs:
        assert_array_equal(weight, same)
    assert not np.allclose(first.weights_[1], other.weights_[1])


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


def test_deep_suite_is_complete_and_reproducible():
    suite = load_deep_suite("softplus")
    assert len(suite) == len({problem.name for problem in suite}) == 12
    sizes = [(4, 3), (5, 4), (6, 5), (5, 4, 3)]
    assert [problem.teacher.layer_sizes_ for problem in suite[::3]] == sizes
    assert [problem.X.shape[1] for problem in suite[::3]] == [5, 6, 8, 6]
    assert [problem.y.ndim for problem in suite[::3]] == [1, 2, 1, 1]
    (again,) = load_deep_suite("softplus", sizes=((6, 5, 4, 2),), n_seeds=2)[1:]
    same = {problem.name: problem for problem in suite}[again.name]
    assert again.name == "deep-softplus-6-5-4-2-s1"
    assert_array_equal(again.X, same.X)
    assert_array_equal(again.y, same.y)


def test_teachers_of_the_deep_suite_are_the_same_for_all_smooth_activations():
    suites = [load_deep_suite(name, n_seeds=2) for name in ("tanh", "g", "relu")]
    for first, second, kinked in zip(*suites, strict=True):
        assert_array_equal(first.X, second.X)
        assert_array_equal(first.X, kinked.X)
        for weight, same in zip(first.teacher.weights_, second.teacher.weights_, strict=True):
            assert_array_equal(weight, same)
        assert second.teacher.activation == "g"


@pytest.mark.parametrize(
    ("activation", "slope"), [("relu", 0.0), ("leaky_relu", 0.01), ("leaky_relu(0.2)", 0.2)]
)
def test_all_kinks_of_the_deep_suite_lie_among_the_rows(activation, slope):
    for problem in load_deep_suite(activation):
        teacher, values = problem.teacher, problem.X
        for weights, bias in zip(teacher.weights_[:-1], teacher.biases_[:-1], strict=True):
            z = values @ weights + bias
            active = (z > 0).mean(axis=0)
            assert active.min() >= 0.02
            assert active.max() <= 0.98
            values = np.where(z > 0, z, slope * z)


@pytest.mark.parametrize(("rho", "n_rows"), [(3, 1700), (1, 1000)])
def test_rows_of_the_deep_suite(rho, n_rows):
    problem = load_deep_suite("tanh", sizes=((8, 5, 4, 1),), n_seeds=1, rho=rho)[0]
    n_parameters = 9 * 5 * rho + (5 * rho + 1) * 4 * rho + 4 * rho + 1
    assert max(1000, 5 * n_parameters) == n_rows
    assert problem.X.shape == (n_rows, 8)
    assert np.abs(problem.X).max() <= np.sqrt(3)
    assert_allclose(problem.X.std(), 1.0, rtol=0.02)
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
