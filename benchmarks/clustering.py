"""Clustering at scale: seconds and peak memory, and the global cut against ``fcluster``.

    python benchmarks/clustering.py
    python benchmarks/clustering.py --leaves 60000 --noise 1e-10

1. Linkage and clusters of made-up incoming vectors of 20 students, 785 weights each (28 x 28 pixels
   and a bias): 15 % of the neurons are anything, the others copies of known neurons, of both signs
   and with noise, about 56 of each. Beyond 20,000 leaves, near-exact copies are merged first.
2. The global cut of 5,000 leaves, which evaluates all heights in one pass, against the calls of
   SciPy's ``fcluster`` alone, one for each height; that both give the same partition is checked.
"""

import argparse
import resource
import time

import numpy as np
from scipy.cluster.hierarchy import fcluster

from sklearn_ec._cluster.cuts import cut_tree, find_clusters
from sklearn_ec._cluster.linkage import average_linkage

N_STUDENTS = 20
LEAVES_PER_KNOWN = 66
SHARE_OF_JUNK = 0.15
MIN_STUDENTS = 16
N_CUT_LEAVES = 5000


def make_ensemble(n_leaves, n_weights, noise):
    """Vectors of all students' neurons, and the student of each."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=(n_leaves // LEAVES_PER_KNOWN, n_weights)) / np.sqrt(n_weights)
    vectors = known[np.arange(n_leaves) // N_STUDENTS % len(known)]  # all students hold each
    vectors += noise * rng.normal(size=vectors.shape) / np.sqrt(n_weights)
    junk = rng.random(n_leaves) < SHARE_OF_JUNK
    vectors[junk] = rng.normal(size=(junk.sum(), n_weights)) / np.sqrt(n_weights)
    vectors *= rng.choice([-1.0, 1.0], size=(n_leaves, 1))
    return vectors, np.arange(n_leaves) % N_STUDENTS


def peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def time_clustering(n_leaves, n_weights, noise):
    vectors, students = make_ensemble(n_leaves, n_weights, noise)
    before = peak_gib()
    start = time.perf_counter()
    tree = average_linkage(vectors, has_sign_flip=True)
    linked = time.perf_counter()
    clusters = find_clusters(
        vectors,
        tree,
        students,
        min_students=MIN_STUDENTS,
        beta=0.1,
        cut="local",
        has_sign_flip=True,
    )
    end = time.perf_counter()
    n_kept = sum(cluster.status == "kept" for cluster in clusters)
    print(f"{n_leaves} vectors of {n_weights} weights, noise {noise:g}")
    print(f"  linkage      {linked - start:7.1f} s")
    n_known = n_leaves // LEAVES_PER_KNOWN
    print(f"  clusters     {end - linked:7.1f} s, {n_kept} kept of {n_known} known neurons")
    print(f"  total        {end - start:7.1f} s")
    print(f"  peak memory  {peak_gib():7.2f} GiB, {before:.2f} GiB of it the vectors and libraries")


def compare_cuts(n_leaves):
    vectors, students = make_ensemble(n_leaves, n_weights=32, noise=1e-6)
    tree = average_linkage(vectors, has_sign_flip=True)
    start = time.perf_counter()
    parts = cut_tree(tree, students, MIN_STUDENTS, "global")
    ours = time.perf_counter() - start
    heights = np.unique(tree[:, 2])
    start = time.perf_counter()
    partitions = [fcluster(tree, height, criterion="distance") for height in heights]
    theirs = time.perf_counter() - start
    labels = best_partition(partitions, students)
    same = len(parts) == labels.max() and all(len(set(labels[p.leaves])) == 1 for p in parts)
    print(f"global cut of {n_leaves} leaves")
    print(f"  one pass  {ours:8.3f} s")
    print(f"  fcluster  {theirs:8.3f} s for {len(heights)} heights")
    print(f"  ratio     {theirs / ours:8.0f}, same partition: {same}")


def best_partition(partitions, students):
    """The last of the first run with most clusters that enough students share."""
    counts = []
    for labels in partitions:
        pairs = np.unique(labels * N_STUDENTS + students)
        counts.append(np.sum(np.bincount(pairs // N_STUDENTS) >= MIN_STUDENTS))
    at = int(np.argmax(counts))
    while at + 1 < len(counts) and counts[at + 1] == counts[at]:
        at += 1
    return partitions[at]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=int, default=20_000)
    parser.add_argument("--weights", type=int, default=785)
    parser.add_argument("--noise", type=float, default=1e-6, help="length of the noise vectors")
    args = parser.parse_args()
    time_clustering(args.leaves, args.weights, args.noise)
    compare_cuts(N_CUT_LEAVES)
