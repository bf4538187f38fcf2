"""What is left in residuals that depends on the inputs."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sklearn_ec._certify.structure import structured_share


def inputs(n_samples=800, n_inputs=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n_samples, n_inputs))


def smooth(X, n_outputs=1):
    """Smooth functions of the inputs, of unit variance."""
    directions = np.random.default_rng(1).normal(size=(X.shape[1], n_outputs))
    values = np.tanh(X @ directions) + 0.3 * np.sin(X[:, :1] + np.arange(n_outputs))
    return (values - values.mean(axis=0)) / values.std(axis=0)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("n_samples", [60, 200, pytest.param(800, marks=pytest.mark.slow)])
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_noise_has_a_share_near_its_chance(n_samples, n_outputs, draw):
    """The squared correlation of two independent vectors is one over their length on average.

    That of predictions varies more, since they are smooth.
    """
    X, shares = inputs(n_samples), []
    for seed in range(100, 120):
        rng = np.random.default_rng(seed)
        size = (n_samples, n_outputs)
        noise = rng.normal(size=size) if draw == "normal" else rng.uniform(-0.5, 0.5, size=size)
        shares.append(structured_share(noise, X))
    chance = 1.0 / (n_samples * n_outputs)
    assert min(shares) >= 0.0
    assert np.mean(shares) < 4.0 * chance
    assert max(shares) < min(20.0 * chance, 0.2)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("n_inputs", [1, 3, 6])
def test_smooth_residuals_are_nearly_all_structure(n_inputs, n_outputs):
    X = inputs(n_inputs=n_inputs)
    assert 0.9 < structured_share(smooth(X, n_outputs), X) <= 1.0


def test_a_linear_or_a_constant_residual_is_structure():
    X = inputs()
    assert structured_share(X[:, :1] - 0.2, X) > 0.999
    assert structured_share(np.ones((800, 2)), X) > 0.999


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("n_samples", [200, 400, 800, pytest.param(2000, marks=pytest.mark.slow)])
def test_mixtures_are_in_between(n_samples, share):
    """With features for a quarter of the rows, a fit that takes all of them would find nothing."""
    X = inputs(n_samples)
    shares = []
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(size=(n_samples, 1))
        shares.append(structured_share(np.sqrt(share) * smooth(X) + np.sqrt(1 - share) * noise, X))
    assert_allclose(np.mean(shares), share, rtol=0.3 if n_samples < 400 else 0.2)


@pytest.mark.parametrize("factor", [1e-12, -1.0, 1e6])
def test_the_scale_of_residuals_does_not_matter(factor):
    X = inputs()
    residuals = smooth(X, 2) + np.random.default_rng(3).normal(size=(800, 2))
    share = structured_share(residuals, X)
    assert_allclose(structured_share(factor * residuals, X), share, rtol=1e-9)


def test_a_misfit_of_one_output_shows():
    """Errors in the other outputs have nothing to do with the inputs."""
    X = inputs()
    residuals = np.random.default_rng(4).normal(size=(800, 3))
    residuals[:, 1] = 2.0 * smooth(X)[:, 0]
    assert_allclose(structured_share(residuals, X), 4 / 6, rtol=0.1)


def test_rounding_of_smooth_outputs_is_noise():
    X = inputs()
    y = smooth(X, 2)
    assert structured_share(np.round(y, 3) - y, X) < 0.01
    assert structured_share(y.astype(np.float32) - y, X) < 0.01


def test_residuals_of_zero_and_few_rows_have_no_structure():
    assert structured_share(np.zeros((50, 2)), inputs(50)) == 0.0
    for n_samples in (2, 3, 5):
        X = inputs(n_samples)
        assert 0.0 <= structured_share(X[:, :1], X) <= 1.0


def test_inputs_without_columns_tell_only_the_mean():
    noise = np.random.default_rng(5).normal(size=(400, 1))
    assert structured_share(noise, np.zeros((400, 0))) < 0.02
    assert structured_share(noise + 3.0, np.zeros((400, 0))) > 0.8
