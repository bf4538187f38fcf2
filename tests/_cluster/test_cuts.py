import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet, fcluster, to_tree
from scipy.spatial.distance import squareform

from sklearn_ec._cluster import cuts
from sklearn_ec._cluster.cuts import (
    ROUNDING_HEIGHT,
    Cluster,
    cluster_indices,
    cluster_labels,
    cluster_report,
    cut_tree,
    find_clusters,
    median_angle,
)
from sklearn_ec._cluster.linkage import average_linkage

CUTS = ["local", "global"]
NO_TREE = np.empty((0, 4))


def planted_ensemble(seed, *, has_sign_flip, junk_scale, n_students=9, n_known=4):
    """Vectors, students and planted labels (-1: junk); every third student holds a duplicate."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(n_known, 6))
    vectors, labels = [], []
    for student in range(n_students):
        held = np.append(np.arange(n_known), [0] if student % 3 == 0 else [])
        held = np.concatenate([held, np.full(11 - len(held), -1)]).astype(int)
        junk = junk_scale * rng.normal(size=(11, 6))
        noisy = known[held] + 1e-9 * rng.normal(size=(11, 6))
        neurons = np.where(held[:, None] >= 0, noisy, junk)
        if has_sign_flip:
            neurons *= rng.choice([-1.0, 1.0], size=(11, 1))
        order = rng.permutation(11)
        vectors.append(neurons[order])
        labels.append(held[order])
    return np.vstack(vectors), np.repeat(np.arange(n_students), 11), np.concatenate(labels)


def random_forest_of_scales(seed):
    """Vectors with structure at many scales, odd seeds with exact ties and equal vectors."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 30))
    centers = rng.normal(size=(int(rng.integers(1, 5)), 3))
    scales = 10.0 ** rng.integers(-6, 1, size=(n, 1))
    vectors = centers[rng.integers(len(centers), size=n)] + scales * rng.normal(size=(n, 3))
    if seed % 2:
        vectors = rng.integers(0, 3, size=(n, 2)).astype(float)
    students = rng.integers(0, int(rng.integers(1, 8)), size=n)
    return vectors, students, int(rng.integers(1, 6))


def as_partition(groups):
    return {frozenset(np.asarray(leaves).tolist()) for leaves in groups}


def leaf_sets(clusters):
    return as_partition([part.leaves for part in clusters])


def brute_global_cut(tree, students, min_students):
    """Evaluate every height; stop where the first run of the largest count ends."""
    partitions, counts = [], []
    for height in np.unique(np.append(tree[:, 2], 0.0)):
        labels = fcluster(tree, height, criterion="distance")
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        partitions.append(groups)
        counts.append(sum(len(set(students[group])) >= min_students for group in groups))
    at = counts.index(max(counts))
    while at + 1 < len(counts) and counts[at + 1] == max(counts):
        at += 1
    return as_partition(partitions[at])


def naive_local_cut(tree, students, min_students):
    """Top-down: keep a subtree unless a large one in it outlasts it; else split."""
    top = to_tree(tree)

    def log_height(node):
        return np.log(max(node.dist, ROUNDING_HEIGHT))

    def lasting(node, parent_height):
        is_large = len(set(students[node.pre_order()])) >= min_students
        return parent_height - log_height(node) if is_large else -np.inf

    def longest(node):
        if node.is_leaf():
            return -np.inf
        children = (node.left, node.right)
        return max(max(lasting(c, log_height(node)), longest(c)) for c in children)

    def split(node, parent_height):
        if lasting(node, parent_height) >= longest(node):
            return [node.pre_order()]
        return split(node.left, log_height(node)) + split(node.right, log_height(node))

    return as_partition(split(top, max(0.0, log_height(top))))


# The global cut uses one height: it ends just below the first merge of two planted clusters, where
# junk that is as near to them has joined already. Only the local cut stands such junk.
@pytest.mark.parametrize(
    ("cut", "junk_scale"), [("local", 1.0), ("local", 1000.0), ("global", 1000.0)]
)
@pytest.mark.parametrize("has_sign_flip", [False, True])
def test_cuts_find_exactly_the_planted_clusters(cut, junk_scale, has_sign_flip):
    for seed in range(5):
        vectors, students, labels = planted_ensemble(
            seed, has_sign_flip=has_sign_flip, junk_scale=junk_scale
        )
        clusters = find_clusters(
            vectors,
            average_linkage(vectors, has_sign_flip),
            students,
            min_students=6,
            beta=1e-3,
            cut=cut,
            has_sign_flip=has_sign_flip,
        )
        kept = [cluster for cluster in clusters if cluster.status == "kept"]
        planted = as_partition(np.flatnonzero(labels == label) for label in range(4))
        assert as_partition(cluster.leaves for cluster in kept) == planted
        assert {cluster.n_students for cluster in kept} == {9}
        assert all(0.0 < cluster.height < 1e-7 for cluster in kept)
        assert all(0.0 < cluster.median_angle < 1e-7 for cluster in kept)


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_global_cut_matches_every_height_tried(start):
    for seed in range(start, start + 50):
        vectors, students, min_students = random_forest_of_scales(seed)
        tree = average_linkage(vectors, has_sign_flip=False)
        clusters = cut_tree(tree, students, min_students, "global")
        assert leaf_sets(clusters) == brute_global_cut(tree, students, min_students), seed


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_local_cut_matches_naive_recursion(start):
    for seed in range(start, start + 50):
        vectors, students, min_students = random_forest_of_scales(seed)
        tree = average_linkage(vectors, has_sign_flip=False)
        clusters = cut_tree(tree, students, min_students, "local")
        assert leaf_sets(clusters) == naive_local_cut(tree, students, min_students), seed


@pytest.mark.parametrize(("apart", "joins"), [(1e-5, True), (1e-1, False)])
def test_local_clusters_end_at_the_longest_gap(apart, joins):
    """Two pairs of height 1e-6 join if the gap above their merge is the longer one."""
    points = np.array([0.0, 1e-6, apart, apart + 1e-6, 2.0])
    tree, students = average_linkage(points[:, None], has_sign_flip=False), np.arange(5)
    clusters = leaf_sets(cut_tree(tree, students, 2, "local"))
    pairs = {frozenset([0, 1]), frozenset([2, 3])}
    assert clusters == ({frozenset([0, 1, 2, 3])} if joins else pairs) | {frozenset([4])}


def test_local_clusters_must_last_for_some_time():
    """Two neurons of two students each that merge soon after they formed are no clusters."""
    points = np.array([0.0, 1.0, 2.5, 3.5])[:, None]
    tree, students = average_linkage(points, has_sign_flip=False), np.array([0, 1, 0, 1])
    for cut, statuses in (("local", {"unstable"}), ("global", {"kept"})):
        clusters = find_clusters(
            points, tree, students, min_students=2, beta=4.0, cut=cut, has_sign_flip=False
        )
        assert {cluster.status for cluster in clusters} == statuses
        np.testing.assert_allclose([cluster.persistence for cluster in clusters], 2.5)


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_is_a_sorted_partition_with_its_heights(cut):
    for seed in range(60):
        vectors, students, min_students = random_forest_of_scales(seed)
        tree = average_linkage(vectors, has_sign_flip=True)
        clusters = cut_tree(tree, students, min_students, cut)
        leaves = np.concatenate([part.leaves for part in clusters])
        assert sorted(leaves.tolist()) == list(range(len(vectors)))
        keys = [(-len(part.leaves), part.leaves[0]) for part in clusters]
        assert keys == sorted(keys)
        merge_heights = squareform(cophenet(tree))
        for part in clusters:
            members = part.leaves
            assert members.tolist() == sorted(members.tolist())
            assert part.height == merge_heights[np.ix_(members, members)].max()


def described(vectors, students, names, cut):
    """What is found about every cluster, under the names of its leaves."""
    tree = average_linkage(vectors, has_sign_flip=True)
    clusters = find_clusters(
        vectors, tree, students, min_students=5, beta=0.5, cut=cut, has_sign_flip=True
    )
    return {
        frozenset(names[c.leaves].tolist()): (c.status, c.n_students, c.height, c.median_angle)
        for c in clusters
    }


@pytest.mark.parametrize("cut", CUTS)
def test_order_of_students_and_neurons_does_not_matter(cut):
    rng = np.random.default_rng(4)
    for seed in range(5):
        vectors, students, _ = planted_ensemble(seed, has_sign_flip=True, junk_scale=1.0)
        order = rng.permutation(len(vectors))
        renamed = rng.permutation(students.max() + 1)[students]
        before = described(vectors, students, np.arange(len(vectors)), cut)
        after = described(vectors[order], renamed[order], order, cut)
        assert before.keys() == after.keys()
        for leaves, (status, n_students, *measured) in before.items():
            assert after[leaves][:2] == (status, n_students)
            np.testing.assert_allclose(after[leaves][2:], measured, rtol=1e-6)


@pytest.mark.parametrize("has_sign_flip", [False, True])
@pytest.mark.parametrize("n_vectors", [2, 3, 10])
def test_median_angle_matches_brute_force(n_vectors, has_sign_flip):
    vectors = np.random.default_rng(n_vectors).normal(size=(n_vectors, 3))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.array([units[i] @ units[j] for i in range(n_vectors) for j in range(i)])
    expected = np.median(np.arccos(np.abs(cosines) if has_sign_flip else cosines))
    np.testing.assert_allclose(median_angle(vectors, has_sign_flip), expected, rtol=1e-9)


@pytest.mark.parametrize("tiny", [1e-9, 1e-12])
def test_median_angle_of_tiny_angles(tiny):
    steps = np.array([0.0, 1.0, 3.0, 7.0])  # pairs differ by 1, 2, 3, 4, 6, 7
    vectors = np.column_stack([np.ones(4), tiny * steps])
    flipped = vectors * np.array([1.0, -2.0, 0.5, -4.0])[:, None]
    # Scaling to unit length rounds every entry, hence the tolerance.
    rtol = 1e-15 / tiny
    np.testing.assert_allclose(median_angle(vectors, False), 3.5 * tiny, rtol=rtol)
    np.testing.assert_allclose(median_angle(flipped, True), 3.5 * tiny, rtol=rtol)


def test_median_angle_of_many_vectors_is_that_of_some(monkeypatch):
    vectors = np.random.default_rng(8).normal(size=(25, 3))
    expected = median_angle(vectors[::3], False)
    monkeypatch.setattr(cuts, "MAX_LEAVES", 10)
    assert median_angle(vectors, False) == expected


def test_median_angle_of_opposite_vectors_depends_on_the_sign_flip():
    vectors = np.array([[1.0, 2.0], [-2.0, -4.0]])
    np.testing.assert_allclose(median_angle(vectors, False), np.pi, rtol=1e-7)
    assert median_angle(vectors, True) < 1e-15


def crowd_of_three_kinds():
    """A tight group of 4 students, a pair of 2, and 4 tiny vectors in all directions."""
    rng = np.random.default_rng(5)
    tight = np.array([10.0, 0.0]) + 1e-6 * rng.normal(size=(4, 2))
    pair = np.array([0.0, 10.0]) + 1e-6 * rng.normal(size=(2, 2))
    scattered = 1e-5 * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    alone = np.array([[-40.0, -40.0]])
    students = np.array([0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 2])
    return np.vstack([tight, pair, scattered, alone]), students


@pytest.mark.parametrize("cut", CUTS)
def test_statuses_report_and_labels(cut):
    vectors, students = crowd_of_three_kinds()
    tree = average_linkage(vectors, has_sign_flip=False)
    clusters = find_clusters(
        vectors, tree, students, min_students=4, beta=0.5, cut=cut, has_sign_flip=False
    )
    statuses = {tuple(cluster.leaves.tolist()): cluster.status for cluster in clusters}
    assert statuses[0, 1, 2, 3] == "kept"
    assert statuses[6, 7, 8, 9] == "unaligned"
    assert statuses[4, 5] == "small"
    assert len(statuses) == 3  # the lone vector is no cluster

    report = cluster_report(clusters, layer=2)
    for row, cluster in zip(report, clusters, strict=True):
        angle = median_angle(vectors[cluster.leaves], False)
        assert row == {
            "layer": 2,
            "size": len(cluster.leaves),
            "n_students": len(set(students[cluster.leaves])),
            "median_angle": angle,
            "height": cluster.height,
            "persistence": cluster.persistence,
            "status": cluster.status,
        }
    labels, heights = cluster_labels(clusters, len(vectors))
    assert labels.tolist() == [0, 0, 0, 0] + [-1] * 7
    assert heights.tolist() == [c.height for c in clusters if c.status == "kept"]


@pytest.mark.parametrize(("factor", "status"), [(0.999, "unaligned"), (1.001, "kept")])
def test_beta_bounds_the_median_angle(factor, status):
    vectors = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]])
    (cluster,) = find_clusters(
        vectors,
        average_linkage(vectors, True),
        np.arange(3),
        min_students=3,
        beta=factor * np.arctan(0.1),
        cut="local",
        has_sign_flip=True,
    )
    assert cluster.status == status


def test_labels_count_kept_clusters_only():
    def cluster(leaves, status):
        return Cluster(np.array(leaves), 0.1 * len(leaves), 9.0, len(leaves), 0.0, status)

    clusters = [cluster([1, 4, 5], "kept"), cluster([0, 2], "small"), cluster([3, 6], "kept")]
    labels, heights = cluster_labels(clusters, 8)
    assert labels.tolist() == [-1, 0, -1, 1, 0, 0, 1, -1]
    indices, statuses = cluster_indices(clusters, 8)
    assert indices.tolist() == [1, 0, 1, 2, 0, 0, 2, -1]
    assert statuses.tolist() == ["kept", "small", "kept"]
    np.testing.assert_allclose(heights, [0.3, 0.2])
    labels, heights = cluster_labels([], 3)
    assert labels.tolist() == [-1, -1, -1]
    assert heights.shape == (0,)
    assert cluster_indices([], 3)[1].shape == (0,)


@pytest.mark.parametrize(("min_students", "n_clusters"), [(1, 1), (2, 0)])
@pytest.mark.parametrize("cut", CUTS)
def test_cut_of_one_vector(cut, min_students, n_clusters):
    students = np.array([7])
    assert leaf_sets(cut_tree(NO_TREE, students, min_students, cut)) == {frozenset([0])}
    clusters = find_clusters(
        np.ones((1, 3)),
        NO_TREE,
        students,
        min_students=min_students,
        beta=0.1,
        cut=cut,
        has_sign_flip=True,
    )
    assert [cluster.status for cluster in clusters] == ["kept"] * n_clusters


@pytest.mark.parametrize("cut", CUTS)
def test_identical_vectors_are_one_cluster_of_height_zero(cut):
    vectors = np.tile(np.random.default_rng(6).normal(size=4), (5, 1))
    vectors[::2] *= -1.0
    (cluster,) = find_clusters(
        vectors,
        average_linkage(vectors, True),
        np.arange(5),
        min_students=3,
        beta=1e-12,
        cut=cut,
        has_sign_flip=True,
    )
    assert cluster.leaves.tolist() == [0, 1, 2, 3, 4]
    assert (cluster.height, cluster.median_angle, cluster.status) == (0.0, 0.0, "kept")


@pytest.mark.parametrize("cut", CUTS)
def test_every_neuron_of_a_single_student_is_its_own_cluster(cut):
    vectors = np.random.default_rng(7).normal(size=(6, 3))
    tree = average_linkage(vectors, True)
    assert leaf_sets(cut_tree(tree, np.zeros(6, int), 1, cut)) == {frozenset([i]) for i in range(6)}
    assert leaf_sets(cut_tree(tree, np.zeros(6, int), 2, cut)) == {frozenset(range(6))}
