import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.spatial.distance import pdist

from sklearn_ec._core.distances import pairwise_distances


def brute_distances(vectors, has_sign_flip):
    signs = (1.0, -1.0) if has_sign_flip else (1.0,)
    n = len(vectors)
    return np.array(
        [
            min(np.linalg.norm(vectors[i] - sign * vectors[j]) for sign in signs)
            for i in range(n)
            for j in range(i + 1, n)
        ]
    )


def copies_at_all_scales():
    """Vectors and copies of both signs, at distances from rounding to the size of the vectors."""
    rng = np.random.default_rng(0)
    vectors = np.vstack([rng.normal(size=(8, 5)), np.zeros((2, 5))])
    offsets = 10.0 ** rng.uniform(-14, 0, size=(50, 1)) * rng.normal(size=(50, 5))
    copies = np.repeat(vectors, 5, axis=0) * rng.choice([-1.0, 1.0], size=(50, 1)) + offsets
    return rng.permutation(np.vstack([vectors, copies, copies[:5]]))


@pytest.mark.parametrize("has_sign_flip", [False, True])
@pytest.mark.parametrize("block_entries", [1, 200, 700, 10**6])
def test_distances_match_brute_force(block_entries, has_sign_flip, monkeypatch):
    """In blocks of one row, of a few rows, of different numbers of rows, and in one block."""
    monkeypatch.setattr("sklearn_ec._core.distances.BLOCK_ENTRIES", block_entries)
    vectors = copies_at_all_scales()
    distances = pairwise_distances(vectors, has_sign_flip)
    assert_allclose(distances, brute_distances(vectors, has_sign_flip), rtol=1e-9, atol=0)
    if not has_sign_flip:
        assert_allclose(distances, pdist(vectors), rtol=1e-9, atol=0)


@pytest.mark.parametrize("has_sign_flip", [False, True])
@pytest.mark.parametrize("separation", [1e-14, 1e-12, 1e-9, 1e-6, 1e-4])
def test_distances_of_nearly_equal_vectors_keep_relative_accuracy(separation, has_sign_flip):
    rng = np.random.default_rng(1)
    vector = rng.normal(size=4)
    vector /= np.linalg.norm(vector)
    vectors = vector + separation * rng.normal(size=(6, 4))
    reference = pdist(vectors)  # differences of nearly equal numbers are exact
    if has_sign_flip:
        vectors *= np.array([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])[:, None]
    assert reference.min() < 10 * separation
    assert_allclose(pairwise_distances(vectors, has_sign_flip), reference, rtol=1e-14, atol=0)


@pytest.mark.parametrize("has_sign_flip", [False, True])
def test_distances_of_many_copies_in_several_blocks(has_sign_flip, monkeypatch):
    monkeypatch.setattr("sklearn_ec._core.distances.BLOCK_ENTRIES", 10**5)
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(3, 10))[np.arange(900) % 3] + 1e-9 * rng.normal(size=(900, 10))
    reference = pdist(vectors)
    copies = reference < 1e-6
    if has_sign_flip:
        vectors[::2] *= -1.0
    distances = pairwise_distances(vectors, has_sign_flip)
    assert_allclose(distances[copies], reference[copies], rtol=1e-13, atol=0)
    assert distances[~copies].min() > 1e-3


def test_distances_of_one_vector_are_none():
    assert pairwise_distances(np.ones((1, 3)), True).shape == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("has_sign_flip", [False, True])
def test_devices_agree(has_sign_flip):
    vectors = copies_at_all_scales()
    on_gpu, on_cpu = (pairwise_distances(vectors, has_sign_flip, d) for d in ("cuda", "cpu"))
    assert_allclose(on_gpu, on_cpu, rtol=1e-9, atol=0)
