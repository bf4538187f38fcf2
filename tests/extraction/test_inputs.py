"""Distributions of inputs."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec.extraction import BiasedNoise, ColumnBootstrap, Composition, Gaussian, Uniform
from sklearn_ec.extraction._inputs import Widened, as_inputs

ROWS = np.arange(12.0).reshape(3, 4)


def rng():
    return np.random.default_rng(0)


def test_uniform():
    drawn = Uniform([0.0, 2.0], 3.0)(rng(), 1000)
    assert drawn.shape == (1000, 2)
    assert_allclose(drawn.min(axis=0), [0.0, 2.0], atol=0.01)
    assert_allclose(drawn.max(axis=0), 3.0, atol=0.01)


def test_gaussian():
    drawn = Gaussian(0.0, np.array([1.0, 2.0]))(rng(), 10_000)
    assert_allclose(drawn.std(axis=0), [1.0, 2.0], rtol=0.05)
    assert_allclose(drawn.mean(axis=0), 0.0, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0.0, 1.0), "need bounds of each column"),
        (lambda: Uniform([0.0, 1.0], 0.5), "low at most high"),
        (lambda: Uniform([0.0], np.inf), "finite bounds"),
        (lambda: Gaussian(0.0, 1.0), "a finite mean and a scale of at least 0 for each column"),
        (lambda: Gaussian([0.0], -1.0), "a scale of at least 0"),
        (lambda: Composition(ROWS, (3, 3)), r"Images of shape \(3, 3\) have 9 pixels, rows have 4"),
        (lambda: ColumnBootstrap([[np.nan]]), "rows contains NaN"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_columns_are_drawn_on_their_own():
    drawn = ColumnBootstrap(ROWS)(rng(), 100)
    assert all(set(column) == set(own) for column, own in zip(drawn.T, ROWS.T, strict=True))
    assert len(np.unique(drawn, axis=0)) > 3


def test_biased_noise_has_one_sign_in_a_row():
    noise = BiasedNoise(np.zeros((2, 50)), scale=2.0)(rng(), 100)
    signs = np.sign(noise)
    assert (signs == signs[:, :1]).all()
    assert 30 < (signs[:, 0] > 0).sum() < 70
    assert 1.9 < np.abs(noise).max() <= 2.0
    assert BiasedNoise(ROWS).scale == pytest.approx(ROWS.std(axis=0)[0])


def test_images_are_composed_of_places():
    images = np.stack([np.full(16, value) for value in range(5)])
    drawn = Composition(images, (4, 4), grid=(2, 2))(rng(), 50).reshape(50, 4, 4)
    for place in (np.s_[:, :2, :2], np.s_[:, 2:, :2], np.s_[:, :2, 2:], np.s_[:, 2:, 2:]):
        part = drawn[place].reshape(50, 4)
        assert (part == part[:, :1]).all()
    assert len(np.unique(drawn.reshape(50, -1), axis=0)) > 5


def test_widened_inputs_reach_over_the_range_of_all_columns():
    drawn = Widened(ColumnBootstrap(ROWS), np.zeros(4), np.full(4, 11.0))(rng(), 1000)
    is_new = ~np.isin(drawn, ROWS)
    assert 0.2 < is_new.mean() < 0.3
    assert drawn.min() >= 0.0
    assert drawn.max() <= 11.0


def test_inputs_in_short():
    assert as_inputs(([0.0, 1.0], 2.0)) == Uniform([0.0, 1.0], 2.0)
    assert_array_equal(np.unique(as_inputs(ROWS)(rng(), 3), axis=0), ROWS)
    assert as_inputs(len) is len
