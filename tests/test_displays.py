"""The artists of the plots."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from sklearn_ec import _displays
from sklearn_ec._clustering import average_linkage
from sklearn_ec._types import Dendrogram


def make_record(n_leaves=12):
    rng = np.random.default_rng(0)
    labels = np.arange(n_leaves) % 3 - 1
    centers = 10.0 * rng.normal(size=(3, 4))
    vectors = centers[labels] + 1e-6 * rng.normal(size=(n_leaves, 4))
    vectors[labels < 0] = rng.normal(size=(np.sum(labels < 0), 4))
    tree = average_linkage(vectors, has_sign_flip=False)
    students = np.arange(n_leaves) // 3
    return Dendrogram(tree, students, np.zeros(n_leaves, int), labels, np.array([1e-6, 1e-6]))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn_colors(ax):
    return {to_hex(c) for collection in ax.collections for c in collection.get_color()}


def test_kept_clusters_have_colors_of_their_own():
    ax = make_record().plot()
    colormap = plt.get_cmap("tab10")
    assert drawn_colors(ax) == {to_hex(colormap(0)), to_hex(colormap(1)), to_hex("0.7")}
    assert ax.get_yscale() == "log"
    assert ax.get_title() == "2 clusters kept"
    assert "12 neurons of 4 students" in ax.get_xlabel()


def test_title_tells_how_many_students_agree():
    record = replace(make_record(), n_students=20, n_agreeing=17)
    title = record.plot().get_title()
    assert title == "2 clusters kept, 17 of 20 students agree on the network"


def test_draws_on_given_axes():
    _, ax = plt.subplots()
    assert make_record().plot(ax=ax) is ax


def test_identical_vectors_are_drawn_at_the_floor():
    tree = average_linkage(np.ones((4, 2)), has_sign_flip=False)
    record = Dendrogram(tree, np.arange(4), np.zeros(4, int), np.zeros(4, int), np.zeros(1))
    ax = record.plot()
    assert ax.get_ylim()[0] > 0


def test_large_trees_are_truncated(monkeypatch):
    monkeypatch.setattr(_displays, "MAX_LEAVES", 5)
    ax = make_record(60).plot()
    n_links = sum(len(collection.get_paths()) for collection in ax.collections)
    assert n_links == 4


def test_a_single_leaf_cannot_be_plotted():
    record = Dendrogram(np.empty((0, 4)), np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(0))
    with pytest.raises(ValueError, match="single leaf"):
        record.plot()
