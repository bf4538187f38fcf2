import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.cluster.hierarchy import (
    fcluster,
    is_monotonic,
    is_valid_linkage,
    leaves_list,
    linkage,
    to_tree,
)
from scipy.spatial.distance import cdist, squareform
from sklearn.exceptions import EfficiencyWarning

from sklearn_ec._cluster.cuts import cut_tree
from sklearn_ec._cluster.linkage import (
    DUPLICATE_DISTANCE,
    _Forest,
    average_linkage,
    near_duplicates,
)

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


def leaf_sets(parts):
    return {frozenset(part.leaves.tolist()) for part in parts}


@pytest.fixture
def small_limit(monkeypatch):
    """Less than the vectors of the ensemble, more than its different ones."""
    monkeypatch.setattr("sklearn_ec._cluster.linkage.MAX_LEAVES", 25)


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


@pytest.mark.parametrize("has_sign_flip", [False, True])
def test_near_duplicates_are_the_copies(has_sign_flip):
    vectors, _, labels = ensemble(has_sign_flip)
    groups = near_duplicates(vectors, has_sign_flip)
    assert groups.max() + 1 == N_KNOWN + N_STUDENTS * N_JUNK
    copies = (labels == labels[:, None]) & (labels >= 0) | np.eye(len(labels), dtype=bool)
    assert_array_equal(groups == groups[:, None], copies)


def test_opposite_vectors_are_duplicates_only_where_signs_do_not_matter():
    vectors = np.random.default_rng(1).normal(size=(4, 8))
    vectors = np.vstack([vectors, -vectors])
    assert near_duplicates(vectors, has_sign_flip=False).max() == 7
    assert near_duplicates(vectors, has_sign_flip=True).max() == 3


@pytest.mark.parametrize("has_sign_flip", [False, True])
@pytest.mark.parametrize("cut", ["local", "global"])
def test_premerged_tree_has_the_same_clusters(cut, has_sign_flip, small_limit):
    vectors, students, labels = ensemble(has_sign_flip)
    full = squareform(all_distances(vectors, has_sign_flip), checks=False)
    premerged = average_linkage(vectors, has_sign_flip)
    expected, parts = (
        cut_tree(tree, students, N_STUDENTS, cut) for tree in (linkage(full, "average"), premerged)
    )
    assert leaf_sets(parts) == leaf_sets(expected)
    known = [np.flatnonzero(labels == label).tolist() for label in range(N_KNOWN)]
    heights = [
        [p.height for p in found if p.leaves.tolist() in known] for found in (parts, expected)
    ]
    assert len(heights[0]) == N_KNOWN
    assert_allclose(*heights, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The linkage of")
@pytest.mark.parametrize("noise", [0.0, 1e-10, 0.3 * DUPLICATE_DISTANCE, DUPLICATE_DISTANCE])
@pytest.mark.parametrize("has_sign_flip", [False, True])
def test_premerged_tree_is_valid(has_sign_flip, noise, small_limit):
    """Also with equal vectors, and where some copies are merged before and some are not."""
    vectors, _, _ = ensemble(has_sign_flip, noise)
    tree = average_linkage(vectors, has_sign_flip)
    assert is_valid_linkage(tree, throw=True)
    assert is_monotonic(tree)
    assert tree[-1, 3] == len(vectors)
    assert sorted(leaves_list(tree)) == list(range(len(vectors)))
    assert fcluster(tree, 1e-3, "distance").max() == N_KNOWN + N_STUDENTS * N_JUNK


def test_no_merge_is_lower_than_its_parts():
    def pair(height):
        return np.array([[0.0, 1.0, height, 2.0]])

    forest = _Forest(4)
    tops = [forest.add(pair(2.0), np.array([0, 3])), forest.add(pair(1.0), np.array([1, 2]))]
    forest.add(pair(1.5), np.array(tops))
    assert_array_equal(forest.to_linkage(), [[1, 2, 1, 2], [0, 3, 2, 2], [4, 5, 2, 4]])


def test_too_many_different_vectors_are_linked_with_a_warning(monkeypatch):
    vectors = np.random.default_rng(2).normal(size=(12, 4))
    expected = average_linkage(vectors, False)
    monkeypatch.setattr("sklearn_ec._cluster.linkage.MAX_LEAVES", 11)
    with pytest.warns(EfficiencyWarning, match="12 different neurons"):
        tree = average_linkage(vectors, False)
    assert_allclose(tree, expected)


def test_equal_vectors_are_one_cluster_of_height_zero(monkeypatch):
    monkeypatch.setattr("sklearn_ec._cluster.linkage.MAX_LEAVES", 5)
    vectors = np.repeat(np.array([[1.0, 2.0], [3.0, -1.0]]), 4, axis=0)
    tree = average_linkage(vectors, False)
    assert_allclose(tree[:, 2], [0.0] * 6 + [np.sqrt(13.0)])
    parts = cut_tree(tree, np.arange(8), 3, "local")
    assert leaf_sets(parts) == {frozenset(range(4)), frozenset(range(4, 8))}
