"""The artists of the plots."""

import copy
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose
from scipy.cluster.hierarchy import leaves_list
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._cluster.linkage import average_linkage
from sklearn_ec.inspection import (
    AlignmentDisplay,
    AuditDisplay,
    Dendrogram,
    DendrogramDisplay,
    ExtractionDisplay,
    NeuronMatchDisplay,
    SearchDisplay,
    SimilarityDisplay,
    StudentLossDisplay,
)
from sklearn_ec.metrics import match_neurons

GRAY = to_hex("0.7")
DISPLAYS = [
    DendrogramDisplay,
    SimilarityDisplay,
    AlignmentDisplay,
    StudentLossDisplay,
    SearchDisplay,
]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted(tanh_problem):
    _, X, y = tanh_problem
    return ExpandClusterRegressor(
        2, hidden_layer_sizes=4, activation="tanh", n_students=4, random_state=0
    ).fit(X, y)


@pytest.fixture(scope="module", params=["pipeline", "targets"])
def wrapped(request, tanh_problem):
    """The same in a pipeline in a target transformer, and the other way round."""
    _, X, y = tanh_problem
    model = ExpandClusterRegressor(
        2, hidden_layer_sizes=4, activation="tanh", n_students=4, random_state=0
    )
    targets = TransformedTargetRegressor(transformer=StandardScaler())
    if request.param == "targets":
        return targets.set_params(regressor=make_pipeline(StandardScaler(), model)).fit(X, y)
    return make_pipeline(StandardScaler(), targets.set_params(regressor=model)).fit(X, y)


def make_record(n_leaves=12):
    """Two kept clusters, a small and an unaligned one."""
    rng = np.random.default_rng(0)
    clusters = np.arange(n_leaves) % 4
    centers = 10.0 * rng.normal(size=(4, 4))
    vectors = centers[clusters] + 1e-6 * rng.normal(size=(n_leaves, 4))
    return Dendrogram(
        linkage=average_linkage(vectors, has_sign_flip=False),
        students=np.arange(n_leaves) // 3,
        neurons=np.zeros(n_leaves, int),
        labels=np.array([0, 1, -1, -1])[clusters],
        cut_heights=np.array([1e-6, 1e-6]),
        vectors=vectors,
        clusters=clusters,
        statuses=np.array(["kept", "kept", "small", "unaligned"]),
    )


def make_chain(n_leaves):
    """A tree that adds one leaf after the other."""
    merged = np.append(0, n_leaves + np.arange(n_leaves - 2))
    heights = np.geomspace(1e-13, 1.0, n_leaves - 1)
    alone = np.full(n_leaves, -1)
    return Dendrogram(
        linkage=np.column_stack(
            [merged, np.arange(1, n_leaves), heights, np.arange(2, n_leaves + 1)]
        ).astype(float),
        students=np.zeros(n_leaves, int),
        neurons=np.arange(n_leaves),
        labels=alone,
        cut_heights=np.empty(0),
        vectors=np.zeros((n_leaves, 2)),
        clusters=alone,
        statuses=np.empty(0, dtype=str),
    )


@pytest.mark.parametrize("display", DISPLAYS)
def test_a_fitted_estimator_is_needed(display):
    with pytest.raises(NotFittedError):
        display.from_estimator(ExpandClusterRegressor())


@pytest.mark.parametrize("display", DISPLAYS)
def test_draws_on_given_axes_and_keeps_them(display, fitted):
    figure, ax = plt.subplots()
    drawn = display.from_estimator(fitted, ax=ax)
    assert isinstance(drawn, display)
    assert drawn.ax_ is ax
    assert drawn.figure_ is figure
    assert drawn.plot() is drawn
    assert drawn.ax_ is not ax


@pytest.mark.parametrize("display", DISPLAYS)
def test_estimators_in_pipelines_and_target_transformers_are_drawn(display, wrapped, fitted):
    title = display.from_estimator(wrapped).ax_.get_title()
    assert title == display.from_estimator(fitted).ax_.get_title()


@pytest.mark.parametrize("display", DISPLAYS)
def test_figures_of_their_own_are_as_wide_as_a_column(display, fitted):
    drawn = display.from_estimator(fitted)
    assert drawn.figure_.get_size_inches()[0] == 3.3
    drawn.figure_.draw_without_rendering()
    inside = drawn.figure_.bbox.padded(2.0)
    texts = [drawn.ax_.title, drawn.ax_.xaxis.label, drawn.ax_.yaxis.label]
    for artist in [*texts, *([drawn.legend_] if drawn.legend_ else [])]:
        box = artist.get_window_extent()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1


@pytest.mark.parametrize("display", [AlignmentDisplay, DendrogramDisplay, StudentLossDisplay])
@pytest.mark.parametrize("is_given", [True, False])
def test_legends_cover_nothing(display, is_given, fitted):
    ax = plt.subplots(layout="constrained")[1] if is_given else None
    drawn = display.from_estimator(fitted, ax=ax)
    drawn.figure_.draw_without_rendering()
    legend = drawn.legend_.get_window_extent()
    assert not legend.overlaps(drawn.ax_.get_window_extent().shrunk(0.98, 0.98))
    if not is_given:
        assert legend.y1 <= drawn.ax_.xaxis.label.get_window_extent().y0 + 1.0


@pytest.mark.parametrize("display", DISPLAYS)
def test_titles_begin_with_the_verdict(display, fitted):
    title = display.from_estimator(fitted).ax_.get_title()
    assert title.startswith("network certified\n")
    refused = copy.copy(fitted)
    refused.recovered_ = False
    assert display.from_estimator(refused).ax_.get_title().startswith("network not certified\n")


@pytest.mark.parametrize("display", [DendrogramDisplay, SimilarityDisplay, AlignmentDisplay])
@pytest.mark.parametrize("layer", [-1, 1])
def test_layers_out_of_range_are_refused(display, layer, fitted):
    with pytest.raises(ValueError, match=f"layer={layer} has no dendrogram.* 1 of them"):
        display.from_estimator(fitted, layer=layer)


def test_matplotlib_is_imported_on_use_only():
    code = "import sys, sklearn_ec.inspection; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dendrogram_colors_kept_clusters_and_marks_the_others():
    display = DendrogramDisplay(make_record()).plot()
    colors = [to_hex(color) for color in display.lines_.get_color()]
    assert len(colors) == 11
    # Each kept cluster of three neurons has two merges.
    kept = sorted(set(colors) - {GRAY})
    assert [colors.count(color) for color in kept] == [2, 2]
    counts = {status: len(artist.get_offsets()) for status, artist in display.markers_.items()}
    assert counts == {"kept": 2, "small": 1, "unaligned": 1}
    top_colors = sorted(map(to_hex, display.markers_["kept"].get_facecolor()))
    assert top_colors == kept
    assert display.ax_.get_yscale() == "log"
    assert display.ax_.get_title() == "2 clusters kept"
    assert display.ax_.get_xlabel() == "12 neurons of 4 voting students"


def test_dendrogram_is_cut_between_a_cluster_and_the_next_merge():
    record = make_record()
    display = DendrogramDisplay(record).plot()
    heights = [bar[0, 1] for bar in display.cuts_.get_segments()]
    assert len(heights) == 2
    assert all(1e-5 < height < record.linkage[-3:, 2].min() for height in heights)
    order = leaves_list(record.linkage)
    for label, bar in enumerate(display.cuts_.get_segments()):
        places = np.flatnonzero(record.labels[order] == label)
        assert_allclose(bar[:, 0], [places[0] - 0.4, places[-1] + 0.4])


def test_dendrogram_lines_meet_in_the_middle_of_their_parts():
    record = make_record()
    segments = np.array(DendrogramDisplay(record).plot().lines_.get_segments())
    n_leaves = len(record.labels)
    assert_allclose(segments[:, 1, 1], record.linkage[:, 2])
    for merge, pair in enumerate(record.linkage[:, :2].astype(int)):
        for child, x in zip(pair, segments[merge, [0, 3], 0], strict=True):
            if child >= n_leaves:
                assert_allclose(x, segments[child - n_leaves, 1:3, 0].mean())


def test_dendrogram_title_tells_how_many_students_agree():
    record = replace(make_record(), n_students=20, n_agreeing=17)
    title = DendrogramDisplay(record, layer=1).plot().ax_.get_title()
    assert title == "hidden layer 1: 2 clusters kept,\n17 of 20 students agree on the network"


def test_identical_vectors_are_drawn_at_the_floor():
    record = make_record()
    tree = record.linkage.copy()
    tree[:, 2] = 0.0
    display = DendrogramDisplay(replace(record, linkage=tree)).plot()
    assert display.ax_.get_ylim()[0] > 0
    assert np.array(display.lines_.get_segments())[..., 1].min() > 0


def test_long_chains_are_drawn_without_recursion():
    display = DendrogramDisplay(make_chain(20_000)).plot()
    assert len(display.lines_.get_segments()) == 19_999
    assert display.lines_.get_rasterized()


def test_a_single_leaf_has_no_dendrogram():
    record = replace(make_chain(2), linkage=np.empty((0, 4)))
    with pytest.raises(ValueError, match="single leaf"):
        DendrogramDisplay(record).plot()


def test_similarity_frames_kept_clusters_in_dendrogram_order(fitted):
    display = SimilarityDisplay.from_estimator(fitted)
    record = fitted.dendrogram_[0]
    n_neurons = len(record.labels)
    assert display.image_.get_array().shape == (n_neurons, n_neurons)
    assert len(display.frames_) == len(record.cut_heights)
    assert "distance" in display.colorbar_.ax.get_ylabel()
    for frame in display.frames_:
        rows = np.arange(n_neurons)[int(frame.get_y() + 0.5) :][: frame.get_height()]
        assert len(np.unique(display.labels[rows])) == 1
        assert display.distances[np.ix_(rows, rows)].max() < 0.2


def test_similarity_is_blind_to_signs(fitted):
    flipped = copy.copy(fitted)
    vectors = fitted.dendrogram_[0].vectors.copy()
    vectors[::2] *= -1.0
    flipped.dendrogram_ = [replace(fitted.dendrogram_[0], vectors=vectors)]
    distances = SimilarityDisplay.from_estimator(flipped).distances
    assert_allclose(distances, SimilarityDisplay.from_estimator(fitted).distances)


def test_similarity_of_many_neurons_shows_some(fitted):
    display = SimilarityDisplay.from_estimator(fitted, max_neurons=5)
    n_neurons = len(fitted.dendrogram_[0].labels)
    every = -(-n_neurons // 5)
    assert display.distances.shape == (-(-n_neurons // every),) * 2
    assert f"(one in {every})" in display.ax_.get_xlabel()
    with pytest.raises(ValueError, match="max_neurons must be at least 1"):
        SimilarityDisplay.from_estimator(fitted, max_neurons=0)


def test_similarity_of_one_neuron():
    display = SimilarityDisplay(np.zeros((1, 1)), np.zeros(1, dtype=int)).plot()
    assert display.ax_.get_title() == "1 cluster kept"


def test_alignment_shows_clusters_and_thresholds(fitted):
    display = AlignmentDisplay.from_estimator(fitted)
    statuses = [entry["status"] for entry in fitted.cluster_report_]
    counts = {status: len(artist.get_offsets()) for status, artist in display.points_.items()}
    assert counts == {status: statuses.count(status) for status in set(statuses)}
    n_voters = len(np.unique(fitted.dendrogram_[0].students))
    assert_allclose(display.gamma_line_.get_ydata(), fitted.gamma * n_voters)
    assert_allclose(display.beta_line_.get_xdata(), fitted.beta)
    assert display.ax_.get_xscale() == "log"
    assert "radians" in display.ax_.get_xlabel()
    labels = [text.get_text() for text in display.legend_.get_texts()]
    assert f"kept ({counts.pop('kept')})" in labels
    assert counts
    assert {f"dropped: {status} ({n})" for status, n in counts.items()} <= set(labels)
    assert "beta = 0.524 rad" in labels


def test_alignment_draws_clusters_without_angle():
    report = [{"size": 3, "n_students": 3, "median_angle": 0.0, "status": "kept"}]
    display = AlignmentDisplay(report, n_voters=3, gamma=0.5, beta=0.0).plot()
    assert display.points_["kept"].get_offsets()[0, 0] > 0


def test_losses_have_one_line_per_student_and_end_where_training_did():
    curves = np.array(
        [[1.0, 1e-9, 0.0], [1.0, 0.5, 0.4], [1.0, np.nan, np.nan], [np.nan, np.nan, np.nan]]
    )
    display = StudentLossDisplay(curves, tol=1e-20, iterations_per_epoch=10).plot()
    assert [list(line.get_xdata()) for line in display.lines_] == [[0, 10, 20], [0, 10, 20], [0]]
    assert [line.get_color() for line in display.lines_] == ["#0072b2", "0.7", "0.7"]
    assert display.lines_[0].get_ydata()[-1] > 0
    assert display.ax_.get_title() == "1 of 4 students converged"
    assert display.ax_.get_ylim()[0] < 1e-20


def test_losses_of_an_estimator_count_levenberg_steps(fitted):
    display = StudentLossDisplay.from_estimator(fitted)
    assert len(display.lines_) == 4
    assert max(line.get_xdata()[-1] for line in display.lines_) == fitted.n_iter_
    labels = [text.get_text() for text in display.legend_.get_texts()]
    curves = [curve[np.isfinite(curve)] for curve in fitted.student_loss_curves_]
    n_converged = sum(curve[-1] <= fitted.tol for curve in curves)
    assert ("converged" in labels, "not converged" in labels) == (n_converged > 0, n_converged < 4)
    assert labels[-1] == "target 1e-20"
    title = f"network certified\n{n_converged} of 4 students converged on their own"
    assert display.ax_.get_title() == title


def test_match_shows_distances_missing_and_excess_neurons(fitted, tanh_problem):
    teacher, _, _ = tanh_problem
    weights, biases = list(teacher.weights_), list(teacher.biases_)
    display = NeuronMatchDisplay.from_estimator(fitted, (weights, biases))
    assert len(display.matched_.get_offsets()) == 4
    assert display.matched_.get_offsets()[:, 1].max() < 1e-20
    fewer = ([weights[0][:, :3], weights[1][:3]], [biases[0][:3], biases[1]])
    excess = NeuronMatchDisplay.from_estimator(fitted, fewer)
    assert excess.excess_.get_offsets().tolist() == [[3, 1]]
    labels = [tick.get_text() for tick in excess.ax_.get_xticklabels()]
    assert labels[-1] == f"–\n{excess.match.excess[0]}"
    missing = NeuronMatchDisplay(match_neurons((weights, biases), fewer, "tanh"), layer=0).plot()
    assert missing.missing_.get_offsets().tolist() == [[3, 1]]
    assert missing.ax_.get_title() == "hidden layer 0: 3 of 4 neurons matched,\n1 missing"


def test_match_counts_pairs_up_to_the_tolerance(fitted, tanh_problem):
    teacher, _, _ = tanh_problem
    weights = [teacher.weights_[0].copy(), teacher.weights_[1]]
    weights[0][:, 2] += 0.3
    network = (weights, teacher.biases_)
    display = NeuronMatchDisplay.from_estimator(fitted, network)
    assert display.ax_.get_title() == "hidden layer 0: 3 of 4 neurons matched,\n1 too far"
    assert display.distant_.get_offsets()[:, 0].tolist() == [2]
    assert display.matched_.get_offsets()[:, 0].tolist() == [0, 1, 3]
    assert_allclose(display.tolerance_line_.get_ydata(), 1e-3)
    labels = [text.get_text() for text in display.legend_.get_texts()]
    assert labels == ["matched (3)", "too far (1)", "tolerance 0.001"]
    generous = NeuronMatchDisplay.from_estimator(fitted, network, tolerance=0.5)
    assert generous.ax_.get_title() == "hidden layer 0: 4 of 4 neurons matched"


def test_match_is_that_of_the_raw_columns(wrapped, tanh_problem):
    teacher, _, _ = tanh_problem
    display = NeuronMatchDisplay.from_estimator(wrapped, teacher)
    assert display.ax_.get_title() == "hidden layer 0: 4 of 4 neurons matched"
    assert display.matched_.get_offsets()[:, 1].max() < 1e-20
    both = NeuronMatchDisplay.from_estimator(wrapped, wrapped)
    assert both.match.cosine_distances.max() == 0.0


def test_match_needs_a_fitted_estimator_and_a_layer_that_exists(fitted, tanh_problem):
    teacher, _, _ = tanh_problem
    with pytest.raises(NotFittedError):
        NeuronMatchDisplay.from_estimator(ExpandClusterRegressor(), teacher)
    with pytest.raises(ValueError, match="layer=1 is no hidden layer"):
        NeuronMatchDisplay.from_estimator(fitted, teacher, layer=1)


def test_match_of_many_neurons_has_no_labels():
    network = ([np.eye(50), np.ones((50, 1))], [np.zeros(50), np.zeros(1)])
    display = NeuronMatchDisplay(match_neurons(network, network, "relu")).plot()
    assert display.ax_.get_xlabel() == "true neuron"


@pytest.mark.parametrize("display", DISPLAYS)
def test_loaded_estimators_can_be_drawn(display, fitted, tmp_path):
    fitted.save(tmp_path / "network.safetensors")
    loaded = ExpandClusterRegressor.load(tmp_path / "network.safetensors")
    assert display.from_estimator(loaded).ax_.get_title() == (
        display.from_estimator(fitted).ax_.get_title()
    )


def make_trial(width, activation, loss, depth=1, certified=False):
    return {
        "depth": depth,
        "width": width,
        "activation": activation,
        "loss": loss,
        "held_out_loss": 2.0 * loss,
        "certified": certified,
        "seconds": 1.5,
    }


def test_search_shows_the_trials_in_order_and_the_winner():
    report = [make_trial(4, "relu", 1e-3), make_trial(4, "tanh", 0.0), make_trial(8, "relu", 1e-5)]
    display = SearchDisplay(report, winner=1).plot()
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels == ["1 × 4, relu", "1 × 4, tanh", "1 × 8, relu"]
    assert display.ax_.get_ylim()[0] > display.ax_.get_ylim()[1]  # the first one on top
    assert_allclose(display.losses_.get_offsets()[[0, 2], 0], [1e-3, 1e-5])
    assert_allclose(display.held_out_losses_.get_offsets()[0], [2e-3, 0])
    assert display.losses_.get_offsets()[1, 0] > 0
    colors = [to_hex(color) for color in display.losses_.get_facecolors()]
    assert colors == [GRAY, "#0072b2", GRAY]
    assert display.ax_.get_title() == "3 shapes and activations tried"


def test_search_finds_the_trial_that_gave_the_network(fitted):
    assert SearchDisplay.from_estimator(fitted).winner == 0
    searched = copy.copy(fitted)
    wrong = [make_trial(4, "relu", 1e-25), make_trial(4, "tanh", 1e-26, depth=2)]
    searched.search_report_ = [*wrong, *fitted.search_report_]
    assert SearchDisplay.from_estimator(searched).winner == 2
    del searched._trained  # as of loaded estimators
    wider = make_trial(8, "tanh", 1e-28)
    searched.search_report_ = [*wrong, wider, *fitted.search_report_]
    assert SearchDisplay.from_estimator(searched).winner == 3
    searched.search_report_ = wrong
    display = SearchDisplay.from_estimator(searched)
    assert display.winner is None
    assert [text.get_text() for text in display.legend_.get_texts()] == [
        "training rows",
        "held-out rows",
    ]


def test_search_of_students_without_a_loss():
    display = SearchDisplay([make_trial(4, "relu", np.nan)]).plot()
    display.figure_.draw_without_rendering()
    assert display.ax_.get_title() == "1 shape and activation tried"


def make_round(n_queries, layer_sizes, loss, certified=False):
    return {
        "n_queries": n_queries,
        "layer_sizes": layer_sizes,
        "loss": loss,
        "held_out_error": 3.0 * np.sqrt(loss),
        "certified": certified,
    }


def test_extraction_shows_errors_and_widths_round_by_round():
    history = [make_round(80, (4, 4), 1e-4), make_round(112, (5, 4), 0.0, certified=True)]
    display = ExtractionDisplay(history).plot()
    assert_allclose(display.points_.get_offsets()[0], [80, 0.03])
    assert_allclose(display.training_line_.get_ydata()[0], 0.01)
    assert display.training_line_.get_ydata()[1] > 0
    colors = [to_hex(color) for color in display.points_.get_facecolors()]
    assert colors == [GRAY, "#0072b2"]
    widths = [label.get_text() for label in display.widths_ax_.get_xticklabels()]
    assert widths == ["4-4", "5-4"]
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == ["80", "112"]
    assert display.ax_.get_title() == "certified with 112 queries, 2 rounds"
    labels = [text.get_text() for text in display.legend_.get_texts()]
    assert labels == ["held-out rows", "training rows", "certified", "not certified"]


def test_extraction_of_one_round_and_on_given_axes():
    _, ax = plt.subplots()
    display = ExtractionDisplay([make_round(1200, (4,), 1e-4)]).plot(ax)
    assert display.ax_ is ax
    assert ax.get_title() == "not certified with 1,200 queries, 1 round"
    display.figure_.draw_without_rendering()


def test_extraction_of_many_rounds_turns_the_labels():
    history = [make_round(int(80 * 1.4**k), (16, 8, 4), 10.0**-k) for k in range(12)]
    display = ExtractionDisplay(history).plot()
    display.figure_.draw_without_rendering()
    for axis in (display.ax_.xaxis, display.widths_ax_.xaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert all(left.x1 <= right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_audit_colors_certified_networks_and_names_the_widths():
    row = {"n_queries": 40, "output_error": 0.1, "certified": False, "layer_sizes": (4, 2)}
    better = {"n_queries": 80, "output_error": 0.0, "certified": True, "layer_sizes": (4,)}
    display = AuditDisplay([row, better]).plot()
    assert [text.get_text() for text in display.ax_.texts] == ["4-2", "4"]
    assert [to_hex(color) for color in display.points_.get_facecolors()] == [GRAY, "#0072b2"]
    assert [text.get_text() for text in display.legend_.get_texts()] == [
        "certified",
        "not certified",
    ]
    assert AuditDisplay([row]).plot().ax_.get_title() == "not certified"


def test_the_activation_that_was_found_counts(fitted, tanh_problem, capsys):
    found = copy.copy(fitted).set_params(activation="auto")
    SimilarityDisplay.from_estimator(found)
    NeuronMatchDisplay.from_estimator(found, tanh_problem[0])
    found.summary()
    assert "activation tanh" in capsys.readouterr().out
