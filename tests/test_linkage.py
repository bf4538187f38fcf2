import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.cluster.hierarchy import linkage, to_tree
from scipy.spatial.distance import cdist, squareform

from sklearn_ec._linkage import average_linkage

N_STUDENTS, N_KNOWN, N_JUNK = 6, 5, 3


def ensemble(has_sign_flip, noise=1e-10):
    """Every student holds all known neurons up to noise, and three of its own; their labels."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=(N_KNOWN, 8))
    vectors = [
        np.vstack([known + noise * rng.normal(size=known.shape), rng.normal(size=(N_JUNK, 8))])
        for _ in range(N_STUDENTS)
    ]
    labels = np.array([[*range(N_KNOWN), *[-1] * N_JUNK]] * N_STUDENTS)
    vectors = np.vstack(vectors)
    if has_sign_flip:
        vectors *= rng.choice([-1.0, 1.0], size=(len(vectors), 1))
    students = np.repeat(np.arange(N_STUDENTS), N_KNOWN + N_JUNK)
    order = rng.permutation(len(vectors))
    return vectors[order], students[order], labels.ravel()[order]


def all_distances(vectors, has_sign_flip):
    distances = cdist(vectors, vectors)
    return np.minimum(distances, cdist(vectors, -vectors)) if has_sign_flip else distances


@pytest.mark.parametrize("has_sign_flip", [False, True])
def test_linkage_is_average_linkage_of_the_distances(has_sign_flip):
    vectors, _, _ = ensemble(has_sign_flip, noise=0.1)
    tree = average_linkage(vectors, has_sign_flip)
    full = all_distances(vectors, has_sign_flip)
    root = to_tree(tree)
    assert_allclose(root.dist, full[np.ix_(root.left.pre_order(), root.right.pre_order())].mean())
    expected = linkage(squareform(full, checks=False), method="average")
    assert_allclose(tree, expected, rtol=1e-9)


def test_linkage_of_one_vector_is_empty():
    assert average_linkage(np.ones((1, 3)), True).shape == (0, 4)
