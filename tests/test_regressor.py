"""The estimator end to end: recovery, scikit-learn's manners, and what happens when things fail."""

import copy
import itertools
import pickle
import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from builders import SHORT_POLISH, SHORT_WARM_UP, SILENT, QuickRegressor, with_settings
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._core.activations import ACTIVATIONS, DISTINCT_ACTIVATIONS, get_activation
from sklearn_ec._core.canonical import canonical_form
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._finish import finisher
from sklearn_ec._search.ensemble import Ensemble
from sklearn_ec.datasets import load_deep_suite, load_reference_suite, make_teacher
from sklearn_ec.inspection import NeuronMatchDisplay, SimilarityDisplay
from sklearn_ec.metrics import max_cosine_distance, relative_rmse

EXACT = 1e-10


def make_model(width=4, activation="tanh", **params):
    defaults = {"n_students": 5, "random_state": 0}
    return ExpandClusterRegressor(
        hidden_layer_sizes=width, activation=activation, **{**defaults, **params}
    )


def make_quick_model(*args, **params):
    """With a short warm-up."""
    return with_settings(make_model(*args, **params), **SHORT_WARM_UP)


@pytest.fixture(scope="module")
def fitted(tanh_problem):
    teacher, X, y = tanh_problem
    return make_model().fit(X, y)


@pytest.mark.parametrize(
    "activation",
    [
        name if name in ("tanh", "relu") else pytest.param(name, marks=pytest.mark.slow)
        for name in ACTIVATIONS
    ],
)
def test_recovers_every_activation(activation):
    teacher = make_teacher(3, 3, activation=activation, random_state=1)
    X = np.random.default_rng(1).uniform(-2, 2, size=(800, 3))
    model = make_model(3, activation, n_students=10).fit(X, teacher.predict(X))
    X_new = np.random.default_rng(2).uniform(-3, 3, size=(500, 3))
    assert model.recovered_
    assert model.layer_sizes_ == (3,)
    assert max_cosine_distance(teacher, model, activation) <= EXACT
    assert relative_rmse(teacher.predict(X_new), model.predict(X_new)) <= 1e-11


def test_recovers_leaky_relu_of_any_slope(tmp_path):
    """With the slope in its name, in worker processes, files and exports, too."""
    name = "leaky_relu(0.2)"
    teacher = make_teacher(3, 3, activation=name, random_state=1)
    X = np.random.default_rng(1).uniform(-2, 2, size=(400, 3))
    model = make_model(3, name, n_students=11, n_jobs=2).fit(X, teacher.predict(X))
    assert model.recovered_
    assert (model.activation_, model.layer_sizes_) == (name, (3,))
    assert max_cosine_distance(teacher, model, model.activation_) <= EXACT
    X_new = np.random.default_rng(2).uniform(-3, 3, size=(500, 3))
    assert_allclose(model.predict(X_new), teacher.predict(X_new), atol=1e-12)
    model.save(tmp_path / "network")
    assert_array_equal(type(model).load(tmp_path / "network").predict(X), model.predict(X))


@pytest.mark.slow
def test_hard_tanh_neurons_are_two_relu_neurons_each():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, size=(600, 3))
    weights, biases = rng.normal(size=(3, 2)), 0.3 * rng.normal(size=2)
    y = np.clip(X @ weights + biases, -1, 1) @ [1.0, -0.7]
    model = make_model(4, "relu", n_students=10).fit(X, y)
    assert model.recovered_
    expected = [np.repeat(weights, 2, axis=1), np.ones((4, 1))], [biases.repeat(2), np.zeros(1)]
    expected[1][0] += [1.0, -1.0, 1.0, -1.0]
    assert max_cosine_distance(expected, model, "relu") <= EXACT


@pytest.mark.parametrize("activation", [pytest.param("tanh", marks=pytest.mark.slow), "relu"])
def test_recovers_several_outputs(activation):
    teacher = make_teacher(4, 5, 3, activation, family="rough", random_state=0)
    X = np.random.default_rng(0).normal(size=(700, 4))
    model = make_model(5, activation).fit(X, teacher.predict(X))
    assert model.recovered_
    assert max_cosine_distance(teacher, model, activation) <= EXACT
    assert model.predict(X).shape == (700, 3)


@pytest.mark.parametrize("width", [pytest.param(8, marks=pytest.mark.slow), "auto"])
def test_recovers_an_mlp_regressor_from_its_predictions(width):
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X), scale(y)
    mlp = MLPRegressor(
        hidden_layer_sizes=(8,), activation="tanh", max_iter=2000, random_state=0
    ).fit(X, y)
    model = make_model(width, n_students=10).fit(X, mlp.predict(X))
    assert model.recovered_
    assert max_cosine_distance(mlp, model, "tanh") <= EXACT


def test_recovers_from_badly_scaled_columns(tanh_problem):
    teacher, X, _ = tanh_problem
    factors = np.array([1e-3, 1.0, 1e3])
    scaled = teacher.weights_[0] / factors[:, None], teacher.biases_[0]
    y = 1e4 * teacher.predict(X) + 7e4
    model = make_model().fit(X * factors, y)
    expected = ([scaled[0], 1e4 * teacher.weights_[1]], [scaled[1], np.array([7e4])])
    assert model.recovered_
    assert max_cosine_distance(expected, model, "tanh") <= EXACT
    assert_allclose(model.predict(X * factors), y, rtol=1e-11)


@pytest.mark.slow
def test_pruning_finds_its_way_out_of_a_local_minimum():
    """A student that has not learned the network loses a neuron of it, and is pruned again."""
    (problem,) = load_reference_suite("softplus", n_inputs=(2,), widths=(8,), n_seeds=1)
    model = ExpandClusterRegressor(
        activation="softplus", hidden_layer_sizes=8, n_students=1, max_iter=20, random_state=0
    ).fit(problem.X, problem.y)
    assert model.recovered_
    assert model.layer_sizes_ == (8,)


@pytest.mark.slow
def test_dependent_columns_get_the_minimum_norm_weights(tanh_problem):
    teacher, X, y = tanh_problem
    constant = np.full((len(X), 1), 5.0)
    frame = pd.DataFrame(np.hstack([X, X[:, :1], constant]), columns=["a", "b", "c", "d", "e"])
    with pytest.warns(ConvergenceWarning, match="weights on a, d, e are not determined"):
        model = make_model().fit(frame, y)
    shared = teacher.weights_[0].copy()
    shared[0] /= 2
    expected = np.vstack([shared, shared[:1], np.zeros((1, 4))])
    network = ([expected, teacher.weights_[1]], teacher.biases_)
    assert not model.recovered_
    assert model.certificate_.function_certified
    assert model.certificate_.open_columns == ("a", "d", "e")
    assert model.certificate_.weight_error == np.inf
    assert_allclose(model.predict(frame), y, rtol=0, atol=1e-12)
    assert max_cosine_distance(network, model, "tanh") <= EXACT


@pytest.mark.slow
def test_clusters_alone_give_the_network(tanh_problem):
    teacher, X, y = tanh_problem
    model = make_model(prune=False, n_students=20).fit(X, y)
    assert model.recovered_
    assert max_cosine_distance(teacher, model, "tanh") <= EXACT
    kept = [cluster for cluster in model.cluster_report_ if cluster["status"] == "kept"]
    assert len(kept) == 4
    assert all(cluster["median_angle"] < 1e-4 for cluster in kept)
    assert [entry["certified"] for entry in model.search_report_] == [True]
    with pytest.warns(ConvergenceWarning, match="not certified"):
        strict = copy.copy(model).recluster(beta=0.0, gamma=1.0)
    assert [entry["certified"] for entry in strict.search_report_] == [False]
    assert [entry["certified"] for entry in model.search_report_] == [True]


def test_learned_attributes(tanh_problem, fitted):
    _, X, y = tanh_problem
    assert [w.shape for w in fitted.weights_] == [(3, 4), (4, 1)]
    assert [b.shape for b in fitted.biases_] == [(4,), (1,)]
    assert fitted.n_outputs_ == 1
    assert fitted.n_features_in_ == 3
    assert fitted.student_losses_.shape == (5,)
    assert 1 <= fitted.n_iter_ <= fitted.max_iter
    assert_allclose(np.sqrt(fitted.loss_), fitted.certificate_.error)
    record = fitted.dendrogram_[0]
    n_leaves = len(record.labels)
    assert record.linkage.shape == (n_leaves - 1, 4)
    assert len(record.students) == len(record.neurons) == n_leaves
    assert len(record.cut_heights) == record.labels.max() + 1
    assert record.vectors.shape == (n_leaves, 4)
    assert record.statuses.tolist() == [entry["status"] for entry in fitted.cluster_report_]
    sizes = [entry["size"] for entry in fitted.cluster_report_]
    assert np.bincount(record.clusters[record.clusters >= 0]).tolist() == sizes
    outputs = np.tanh(X @ fitted.weights_[0] + fitted.biases_[0]) @ fitted.weights_[1]
    assert_allclose(fitted.predict(X), outputs[:, 0] + fitted.biases_[1], rtol=1e-15)


@pytest.mark.slow
def test_an_early_network_is_compared_with_students_as_they_are(tanh_problem, monkeypatch):
    """One student ends the training; it votes with the better half, of which none is pruned."""
    pruned = []
    finish = finisher.Finisher._finish

    def spy(self, network):
        pruned.append(network)
        return finish(self, network)

    monkeypatch.setattr(finisher.Finisher, "_finish", spy)
    monkeypatch.setattr(Ensemble, "seek_in_clusters", lambda *_: [])  # as if they held nothing
    _, X, y = tanh_problem
    model = make_model(n_students=6, tol=0.0)
    with_settings(model, training={"first_pruning_epoch": 1}).fit(X, y)
    assert model.recovered_
    assert model.n_iter_ == DEFAULTS.training.steps_per_epoch
    (student,) = pruned
    assert student.widths == (16,)
    assert model.origin_ == "student"
    assert model.layer_sizes_ == (4,)
    assert model.width_agreement_ == (1, 1)
    record = model.dendrogram_[0]
    leaves = np.bincount(record.students, minlength=6)
    assert sorted(leaves.tolist()) == [0, 0, 0, 4, 16, 16]
    best = np.argsort(model.student_losses_)[:3]
    assert set(np.flatnonzero(leaves)) == set(best)
    assert leaves[best[0]] == 4  # the exact widths
    assert 1 <= model.n_agreeing_ <= 3
    assert (record.n_agreeing, record.n_students) == (model.n_agreeing_, 6)


def test_no_student_agrees_on_a_network_that_none_holds(tanh_problem):
    _, X, y = tanh_problem
    noisy = y + 0.1 * np.random.default_rng(0).normal(size=len(y))
    with pytest.warns(ConvergenceWarning):
        model = make_model(n_students=3, max_iter=10, prune=False).fit(X, noisy)
    assert model.n_agreeing_ <= 1


@pytest.mark.slow
def test_students_of_adam_can_be_recovered_from(tanh_problem):
    teacher, X, y = tanh_problem
    model = make_model(n_students=4, solver="adam", max_iter=30).fit(X, y)
    assert model.student_losses_.min() > 1e-12  # Adam alone stays far from zero
    assert model.recovered_  # pruning does not
    assert max_cosine_distance(teacher, model, "tanh") <= EXACT


def test_fitted_state_holds_no_tensor(fitted):
    data = pickle.dumps(fitted)
    assert b"torch" not in data
    assert b"skorch" not in data


def test_pickle_and_clone(tanh_problem, fitted):
    _, X, y = tanh_problem
    unpickled = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(unpickled.predict(X), fitted.predict(X))
    assert_array_equal(clone(fitted).fit(X, y).predict(X), fitted.predict(X))


def test_fit_does_not_touch_global_random_states(tanh_problem, fitted):
    _, X, y = tanh_problem
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    make_model().fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.slow
def test_result_does_not_depend_on_the_order_of_rows(tanh_problem, fitted):
    _, X, y = tanh_problem
    order = np.random.default_rng(0).permutation(len(X))
    model = make_model().fit(X[order], y[order])
    assert_array_equal(model.weights_[0], fitted.weights_[0])


@pytest.mark.slow
def test_repeated_rows_are_no_new_equations(tanh_problem, fitted):
    _, X, y = tanh_problem
    model = make_model().fit(np.vstack([X, X]), np.hstack([y, y]))
    assert model.certificate_.n_equations == fitted.certificate_.n_equations
    assert_allclose(model.predict(X), y, atol=1e-12)


def test_rows_of_weight_zero_are_ignored(tanh_problem, fitted):
    _, X, y = tanh_problem
    weight = np.r_[np.ones(len(X)), np.zeros(10)]
    X_extra, y_extra = np.vstack([X, np.full((10, 3), 9.0)]), np.r_[y, np.full(10, 1e9)]
    model = make_model().fit(X_extra, y_extra, sample_weight=weight)
    assert_array_equal(model.weights_[0], fitted.weights_[0])


@pytest.mark.slow
def test_input_types(tanh_problem, fitted):
    _, X, y = tanh_problem
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = make_model().fit(frame, pd.Series(y))
    assert_array_equal(model.feature_names_in_, ["a", "b", "c"])
    assert_array_equal(model.predict(frame), fitted.predict(X))
    column = make_model().fit(X, y[:, None])
    assert_array_equal(column.predict(X), fitted.predict(X)[:, None])


def test_float32_input_is_predicted_in_float64(tanh_problem):
    teacher, X, y = tanh_problem
    model = make_model(n_students=2).fit(X.astype(np.float32), y.astype(np.float32))
    predicted = model.predict(X.astype(np.float32))
    assert predicted.dtype == np.float64
    assert relative_rmse(y, predicted) < 1e-6
    assert model.recovered_
    certificate = model.certificate_
    assert certificate.precision == "float32"
    assert 1e-9 < certificate.error < certificate.rounding < 1e-6
    assert max_cosine_distance(teacher, model, "tanh") < certificate.weight_error**2 < 1e-6


@pytest.mark.slow
def test_pipeline_and_cross_validation(tanh_problem):
    _, X, y = tanh_problem
    scores = cross_val_score(make_pipeline(StandardScaler(), make_model()), X, y, cv=2)
    assert_allclose(scores, 1.0, atol=1e-12)


@pytest.mark.slow
def test_grid_search_over_thresholds(tanh_problem):
    _, X, y = tanh_problem
    grid = {"gamma": [0.5, 0.9], "beta": [0.1, 0.5]}
    model = QuickRegressor(hidden_layer_sizes=4, activation="tanh", n_students=3, random_state=0)
    search = GridSearchCV(model, grid, cv=2).fit(X, y)
    assert search.best_score_ > 1 - 1e-12
    assert search.best_estimator_.recovered_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("prune", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"gamma": 1.0}, marks=pytest.mark.slow),
        pytest.param({"beta": 0.0}, marks=pytest.mark.slow),
        {"cut": "global"},
    ],
)
def test_recluster_equals_fit(tanh_problem, prune, change):
    _, X, y = tanh_problem
    model = make_model(prune=prune, max_iter=20).fit(X, y).recluster(**change)
    other = make_model(prune=prune, max_iter=20, **change).fit(X, y)
    assert model.get_params() == other.get_params()
    assert model.cluster_report_ == other.cluster_report_
    assert_array_equal(model.predict(X), other.predict(X))
    assert model.recovered_ == other.recovered_


def test_thresholds_that_keep_nothing_leave_the_certified_network(fitted):
    assert fitted.origin_ == "clusters"
    strict = copy.deepcopy(fitted).recluster(beta=0.0)
    assert not any(cluster["status"] == "kept" for cluster in strict.cluster_report_)
    assert (strict.recovered_, strict.origin_) == (True, "clusters")  # those of the default ones
    assert strict.layer_sizes_ == fitted.layer_sizes_


@pytest.mark.filterwarnings("ignore:The network is not certified")
def test_thresholds_decide_without_pruning(tanh_problem):
    """Of students that have hardly been trained, few neurons agree closely."""
    _, X, y = tanh_problem
    model = make_model(prune=False, max_iter=10).fit(X, y)
    widths = {copy.deepcopy(model).recluster(beta=b).layer_sizes_ for b in (1e-4, 0.01, 0.3)}
    assert len(widths) > 1


def test_recluster_rejects_bad_thresholds(fitted):
    with pytest.raises(ValueError, match="gamma"):
        fitted.recluster(gamma=2.0)
    assert fitted.gamma == 0.5
    with pytest.raises(NotFittedError):
        make_model().recluster()


def test_verbose_prints_one_line_per_stage(tanh_problem, capsys):
    _, X, y = tanh_problem
    with_settings(make_model(verbose=1), **SILENT).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    pattern = r"hidden layers \(4,\), tanh: \d of 5 students converged after \d+ steps, best loss"
    assert re.search(pattern, lines[0])
    assert "network (4,): certified, loss" in lines[1]


# What must not be certified


def assert_not_recovered(model, X, y, match="not certified"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    assert not model.recovered_
    messages = [str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning)]
    assert len(caught) == len(messages) == 1
    assert re.search(match, messages[0])
    return model


@pytest.mark.slow
def test_noise_is_not_certified(tanh_problem):
    _, X, y = tanh_problem
    noisy = y + 1e-3 * np.random.default_rng(0).normal(size=len(y))
    model = assert_not_recovered(make_quick_model(), X, noisy, "above rounding")
    assert relative_rmse(y, model.predict(X)) < 5e-3


@pytest.mark.slow
def test_wrong_activation_is_not_certified(tanh_problem):
    _, X, y = tanh_problem
    model = make_quick_model(activation="softplus", rho=2, n_students=3, max_iter=30)
    with_settings(model, **SHORT_POLISH)
    message = r'try another activation \(activation="auto" compares them\) or other widths'
    assert_not_recovered(model, X[:300], y[:300], message)


@pytest.mark.slow
def test_other_functions_are_not_certified(tanh_problem):
    X = tanh_problem[1]
    model = with_settings(make_quick_model(rho=2, max_iter=60), **SHORT_POLISH)
    assert_not_recovered(model, X, np.sin(3 * X[:, 0]) * X[:, 1], "above rounding")


@pytest.mark.slow
def test_too_few_rows_are_not_certified(tanh_problem):
    _, X, y = tanh_problem
    assert_not_recovered(make_model(), X[:12], y[:12])


def test_equations_must_outnumber_parameters_twofold():
    teacher = make_teacher(2, 2, activation="tanh", random_state=0)
    X = np.random.default_rng(0).uniform(-2, 2, size=(18, 2))
    model = make_model(2, rho=1).set_params(n_students=10)
    assert_not_recovered(model, X, teacher.predict(X), "too few for 9 parameters|above rounding")


def test_constant_target_is_predicted(tanh_problem):
    X = tanh_problem[1]
    model = assert_not_recovered(make_model(2, n_students=2), X, np.full(len(X), 3.0))
    assert_allclose(model.predict(X), 3.0)


def test_no_cluster_survives(tanh_problem):
    _, X, y = tanh_problem
    noisy = y + 0.1 * np.random.default_rng(0).normal(size=len(y))
    model = make_model(beta=0.0, gamma=1.0, prune=False)
    assert_not_recovered(model, X, noisy, "0 clusters were kept")
    assert relative_rmse(y, model.predict(X)) < 0.2


# Bad input


@pytest.mark.parametrize(
    ("rho", "sizes", "match"),
    [
        ((3, 3), 4, "2 factors for 1 hidden layers"),
        ((3,), (4, 3), "1 factors for 2 hidden layers"),
        ([2, 2, 2], (4, 3), "3 factors for 2 hidden layers"),
        ((3, 3), "auto", "2 factors for 1 hidden layers"),
        ((3, 0.5), (4, 3), "rho must be a number of at least 1"),
        (((3, 3),), (4, 3), "rho must be a number of at least 1"),
    ],
)
def test_rho_has_one_factor_per_layer(tanh_problem, rho, sizes, match):
    _, X, y = tanh_problem
    with pytest.raises(ValueError, match=match):
        make_model(sizes, rho=rho).fit(X, y)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"rho": 0.5}, "'rho' parameter"),
        ({"activation": "sine"}, "'activation' parameter .* it is not supported"),
        ({"activation": "sigmoid"}, "'activation' parameter .* did you mean 'logistic'"),
        ({"activation": np.tanh}, "'activation' parameter .* an instance of 'str'"),
        ({"gamma": 0.0}, "'gamma' parameter"),
        ({"beta": 4.0}, "'beta' parameter"),
        ({"beta": 30}, r"in radians, for 30 degrees give math.radians\(30\)"),
        ({"beta": -1.0}, "'beta' parameter"),
        ({"cut": "none"}, "'cut' parameter"),
        ({"n_students": 0}, "'n_students' parameter"),
        ({"hidden_layer_sizes": 0}, "'hidden_layer_sizes' parameter"),
        ({"hidden_layer_sizes": (2.5,)}, "positive int"),
        ({"hidden_layer_sizes": ()}, "positive int"),
        ({"device": "abacus"}, "device='abacus'"),
    ],
)
def test_bad_parameters(tanh_problem, params, match):
    _, X, y = tanh_problem
    with pytest.raises(ValueError, match=match):
        make_model().set_params(**params).fit(X, y)


@pytest.mark.parametrize(
    ("X", "y", "match"),
    [
        ([[1.0, np.nan], [2.0, 3.0]], [1.0, 2.0], "NaN"),
        ([[1.0, 2.0], [2.0, 3.0]], [1.0, np.inf], "infinity"),
        ([["a", "b"], ["c", "d"]], [1.0, 2.0], "could not convert"),
        ([1.0, 2.0], [1.0, 2.0], "Expected 2D array"),
        ([[1.0], [2.0]], [1.0], "inconsistent numbers of samples"),
        ([[1.0]], [1.0], "minimum of 2 is required"),
    ],
)
def test_bad_data(X, y, match):
    with pytest.raises(ValueError, match=match):
        make_model().fit(X, y)


def test_weights_must_not_all_be_zero(tanh_problem):
    _, X, y = tanh_problem
    with pytest.raises(ValueError, match="zero"):
        make_model().fit(X, y, sample_weight=np.zeros(len(y)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_missing_cuda_is_named(tanh_problem):
    _, X, y = tanh_problem
    with pytest.raises(ValueError, match="device='cuda'"):
        make_model(device="cuda").fit(X, y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recovers_on_cuda(tanh_problem):
    teacher, X, y = tanh_problem
    model = make_model(device="cuda").fit(X, y)
    assert model.recovered_
    assert max_cosine_distance(teacher, model, "tanh") <= EXACT
    assert b"torch" not in pickle.dumps(model)


# Nothing known


@pytest.mark.slow
def test_depth_and_widths_are_found():
    (problem,) = load_deep_suite(sizes=((4, 3, 2, 1),), n_seeds=1)
    model = QuickRegressor(activation="tanh", n_students=5, random_state=0)
    model.fit(problem.X, problem.y)
    assert model.recovered_
    assert model.layer_sizes_ == (3, 2)
    assert max_cosine_distance(problem.teacher, model, "tanh") <= EXACT
    agreeing, n_pruned = model.width_agreement_
    assert agreeing == n_pruned == (model.origin_ == "student")
    tried = [(entry["depth"], entry["width"]) for entry in model.search_report_]
    assert tried == [(1, 8), (2, 4)]
    assert [entry["certified"] for entry in model.search_report_] == [False, True]


@pytest.mark.slow
def test_width_and_activation_are_found():
    teacher, X, y = small_problem("silu", n_rows=60)
    model = QuickRegressor(2, activation="auto", n_students=3, random_state=0).fit(X, y)
    assert model.recovered_
    assert (model.activation_, model.layer_sizes_) == ("silu", (2,))
    assert max_cosine_distance(teacher, model, "silu") <= EXACT
    before = list(itertools.takewhile(lambda name: name != "silu", DISTINCT_ACTIVATIONS))
    assert [entry["activation"] for entry in model.search_report_] == [*before, "silu"]
    assert {entry["width"] for entry in model.search_report_} == {4}  # 54 training rows


def small_problem(activation, n_rows=200):
    teacher = make_teacher(2, 2, activation=activation, random_state=0)
    X = np.random.default_rng(0).uniform(-2, 2, size=(n_rows, 2))
    return teacher, X, teacher.predict(X)


@pytest.fixture(scope="module")
def found_g():
    """A model of known width that had to find its activation."""
    teacher, X, y = small_problem("g")
    return teacher, X, y, make_quick_model(2, "auto", rho=2, n_students=3).fit(X, y)


def test_everything_reads_the_activation_that_was_found(found_g, capsys):
    teacher, X, y, model = found_g
    assert model.recovered_
    assert (model.activation, model.activation_) == ("auto", "g")
    assert_allclose(model.predict(X), y, atol=1e-12)
    outputs = model.to_torch()(torch.from_numpy(X)).detach().numpy()
    assert_allclose(outputs[:, 0], y, atol=1e-12)
    with pytest.raises(ValueError, match="'g'"):
        model.to_mlp_regressor()
    model.summary()
    assert capsys.readouterr().out.startswith("ExpandClusterRegressor, activation g\n")
    display = NeuronMatchDisplay.from_estimator(model, teacher)
    assert display.match.cosine_distances.max() <= EXACT
    SimilarityDisplay.from_estimator(model)
    plt.close("all")
    again = copy.deepcopy(model).recluster(gamma=0.9)
    assert again.activation_ == "g"
    assert again.recovered_


@pytest.mark.slow
def test_logistic_neurons_are_found_as_tanh():
    _, X, y = small_problem("logistic")
    model = make_quick_model(2, "auto", rho=2, n_students=3).fit(X, y)
    assert model.recovered_
    assert model.activation_ == "tanh"
    assert_allclose(model.predict(X), y, atol=1e-12)


def test_report_of_the_search_holds_what_is_documented(found_g):
    model = found_g[-1]
    _, _, entry = type(model).__doc__.partition("    search_report_ : list of dict\n")
    documented = re.findall("``([a-z_]+)``", entry[: entry.index("    loss_ : float")])
    assert len(documented) == 9
    for trial in model.search_report_:
        assert list(trial) == documented
    assert [t["activation"] for t in model.search_report_ if t["certified"]] == ["g"]
    assert {(t["depth"], t["width"], t["n_students"]) for t in model.search_report_} == {(1, 2, 3)}


def test_search_takes_weights_and_constant_columns():
    teacher, X, y = small_problem("tanh")
    X, y, weight = np.insert(X, 1, 3.0, axis=1), y.copy(), np.linspace(0.5, 2.0, len(X))
    y[:5], weight[:5] = 99.0, 0.0
    model = QuickRegressor(2, activation="tanh", n_students=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="weights on x1 are not determined"):
        model.fit(X, y, weight)
    assert not model.recovered_
    assert model.certificate_.function_certified
    assert model.certificate_.open_columns == ("x1",)
    assert model.layer_sizes_ == (2,)
    assert_array_equal(model.weights_[0][1], 0.0)
    network = [np.insert(teacher.weights_[0], 1, 0.0, axis=0), teacher.weights_[1]], teacher.biases_
    assert max_cosine_distance(network, model, "tanh") <= EXACT
    assert [entry["n_students"] for entry in model.search_report_] == [2]


# Noise


def noisy_problem(activation, n_outputs=1, n_rows=400):
    """Rows with noise of 1e-3 of each output's standard deviation, which comes last."""
    teacher = make_teacher(3, 2, n_outputs, activation, family="deep", random_state=0)
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n_rows, 3))
    y = teacher.predict(X).reshape(n_rows, n_outputs)
    noise = 1e-3 * y.std(axis=0)
    return teacher, X, y + noise * rng.normal(size=y.shape), noise


def fit_noisy(X, y, **params):
    """A model of one neuron too many, and the text of its warning."""
    model = make_quick_model(3, rho=2, **{"n_students": 3, **params})
    with pytest.warns(ConvergenceWarning) as caught:
        model.fit(X, y)
    return model, str(caught[0].message)


@pytest.fixture(
    scope="module",
    params=[("tanh", 2), pytest.param(("relu", 1), marks=pytest.mark.slow)],
    ids=["tanh", "relu"],
)
def noisy_fit(request):
    problem = noisy_problem(*request.param)
    return *problem, *fit_noisy(*problem[1:3], activation=request.param[0])


def test_noisy_networks_have_the_right_width(noisy_fit):
    teacher, X, _, _, model, message = noisy_fit
    assert not model.recovered_
    assert model.layer_sizes_ == (2,)
    n_agreeing, n_pruned = model.width_agreement_
    assert n_agreeing == n_pruned >= 3
    assert "data are taken as noisy" in message
    assert "Widths (2,) were chosen" in message
    assert f"{n_pruned} of {n_pruned} pruned students agree" in message
    assert max_cosine_distance(teacher, model, model.activation) < 1e-4
    assert relative_rmse(teacher.predict(X), model.predict(X).squeeze()) < 3e-4


def test_the_noise_level_is_that_of_the_data(noisy_fit):
    *_, noise, model, _ = noisy_fit
    assert_allclose(model.noise_level_, noise, rtol=0.1)


def test_standard_errors_cover_the_weights(noisy_fit):
    teacher, *_, model, _ = noisy_fit
    activation = get_activation(teacher.activation)
    weights, biases = canonical_form(teacher.weights_, teacher.biases_, activation)
    parts = zip(weights, biases, model.weights_, model.biases_, strict=True)
    deviations = np.concatenate(
        [
            ((np.vstack([w, b]) - np.vstack([true_w, true_b])) / errors).ravel()
            for (true_w, true_b, w, b), errors in zip(parts, model.standard_errors(), strict=True)
        ]
    )
    assert (np.abs(deviations) < 1.96).mean() > 0.7
    assert 0.3 < np.sqrt(np.mean(deviations**2)) < 1.7


@pytest.mark.slow
def test_recluster_equals_fit_under_noise(noisy_fit):
    teacher, X, y, _, model, _ = noisy_fit
    change = {"gamma": 1.0, "cut": "global"}
    with pytest.warns(ConvergenceWarning, match="not certified"):
        again = copy.deepcopy(model).recluster(**change)
    other, _ = fit_noisy(X, y, activation=teacher.activation, **change)
    assert again.get_params() == other.get_params()
    assert again.cluster_report_ == other.cluster_report_
    assert_array_equal(again.predict(X), other.predict(X))
    assert_array_equal(again.noise_level_, other.noise_level_)


def test_rounded_outputs_are_certified():
    teacher, X, _, _ = noisy_problem("tanh", 2, n_rows=1000)
    model = make_quick_model(3, rho=2, n_students=3).fit(X, np.round(teacher.predict(X), 3))
    assert model.recovered_
    assert model.layer_sizes_ == (2,)
    assert model.certificate_.precision == "3 decimals"
    assert_allclose(model.noise_level_, 1e-3 / 12**0.5, rtol=0.1)  # uniform
    assert max_cosine_distance(teacher, model, "tanh") < model.certificate_.weight_error**2 < 1e-4


@pytest.mark.slow
def test_noise_in_rounded_outputs_is_noise():
    """Of three times the rounding; the same where the user says that nothing was rounded."""
    teacher, X, _, _ = noisy_problem("tanh", 2, n_rows=1000)
    y = teacher.predict(X)
    noise = 3e-3 / 12**0.5 * np.random.default_rng(2).normal(size=y.shape)
    noisy, message = fit_noisy(X, np.round(y + noise, 3))
    exact, same_message = fit_noisy(X, np.round(y, 3), precision="float64")
    for model, text, level in ((noisy, message, 10**0.5), (exact, same_message, 1.0)):
        assert not model.recovered_
        assert not model.certificate_.function_certified
        assert model.layer_sizes_ == (2,)
        assert "noisy" in text
        assert_allclose(model.noise_level_, 1e-3 / 12**0.5 * level, rtol=0.1)
        assert max_cosine_distance(teacher, model, "tanh") < 1e-5
    assert exact.certificate_.precision == "float64"


@pytest.mark.parametrize("precision", ["float128", "3 decimals", 0, -0.1, None])
def test_precision_is_a_type_or_a_step(tanh_problem, precision):
    _, X, y = tanh_problem
    with pytest.raises(ValueError, match="precision"):
        make_model(precision=precision).fit(X, y)


@pytest.mark.slow
def test_a_single_student_is_pruned_on_noisy_data():
    _, X, y, noise = noisy_problem("tanh")
    model, _ = fit_noisy(X, y, n_students=1)
    assert model.layer_sizes_ == (2,)
    n_agreeing, n_pruned = model.width_agreement_
    assert n_agreeing == n_pruned == len(model.student_losses_)
    assert_allclose(model.noise_level_, noise, rtol=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_ordinary_data_give_a_regressor_as_good_as_an_mlp():
    X, y = make_friedman1(1300, noise=1, random_state=0)
    y = scale(y)
    model = QuickRegressor(activation="relu", n_students=5, random_state=0)
    assert_not_recovered(model, X[:300], y[:300], "noisy")
    mlps = [
        MLPRegressor(
            hidden_layer_sizes=(width,), solver="lbfgs", alpha=alpha, max_iter=2000, random_state=0
        )
        for width in (4, 6, 8)
        for alpha in (1e-2, 1.0)
    ]
    best = max(mlp.fit(X[:300], y[:300]).score(X[300:], y[300:]) for mlp in mlps)
    assert model.score(X[300:], y[300:]) > best - 0.02
    assert len(model.search_report_) <= 4
    # Probes, three brief rounds and one to the end.
    assert max(entry["n_students"] for entry in model.search_report_) <= 25


@pytest.fixture(scope="module")
def deep_problem():
    teacher = make_teacher(3, (3, 2), 2, "tanh", family="deep", random_state=0)
    X = np.random.default_rng(0).uniform(-1.7, 1.7, size=(600, 3))
    return teacher, X, teacher.predict(X)


@pytest.fixture(scope="module")
def deep_model(deep_problem):
    _, X, y = deep_problem
    model = make_model((3, 2), rho=(2, 3), gamma=0.9)  # what all voters share, not most of them
    # asked later, the clusters are tight
    return with_settings(model, training={"first_question_epoch": 3}).fit(X, y)


def test_a_deep_network_is_recovered_in_all_layers(deep_problem, deep_model):
    teacher, X, y = deep_problem
    assert deep_model.recovered_
    assert deep_model.layer_sizes_ == (3, 2)
    assert max_cosine_distance(teacher, deep_model, "tanh") < 1e-20
    assert [w.shape for w in deep_model.weights_] == [(3, 3), (3, 2), (2, 2)]
    assert_allclose(deep_model.predict(X), y, rtol=0, atol=1e-12)
    inputs = torch.from_numpy(X)
    outputs = deep_model.to_torch()(inputs).detach().numpy()
    assert_allclose(outputs, y, rtol=0, atol=1e-12)
    assert_allclose(deep_model.to_mlp_regressor().predict(X), y, rtol=0, atol=1e-12)


def test_clusters_and_students_of_all_layers_are_reported(deep_model):
    assert [len(record.cut_heights) for record in deep_model.dendrogram_] == [3, 2]
    kept = [c["layer"] for c in deep_model.cluster_report_ if c["status"] == "kept"]
    assert (kept.count(0), kept.count(1)) == (3, 2)
    assert deep_model.n_agreeing_ >= 3


def test_reclustering_a_deep_fit_changes_nothing_at_the_same_thresholds(deep_model):
    again = copy.deepcopy(deep_model).recluster(gamma=deep_model.gamma)
    for a, b in zip(again.weights_, deep_model.weights_, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("sizes", [(4,), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_a_wrong_depth_is_never_certified(deep_problem, sizes):
    _, X, y = deep_problem
    model = make_quick_model(sizes, rho=2, n_students=2, max_iter=20)
    with_settings(model, **SHORT_POLISH)
    with pytest.warns(ConvergenceWarning, match="not certified"):
        model.fit(X[:100], y[:100])
    assert not model.recovered_
