"""The estimator end to end: recovery, scikit-learn's manners, and what happens when things fail."""

import copy
import pickle
import re
import warnings

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

from sklearn_ec import ExpandClusterRegressor, _pruning, _training
from sklearn_ec._activations import ACTIVATIONS
from sklearn_ec.datasets import make_teacher
from sklearn_ec.metrics import max_cosine_distance, relative_rmse

EXACT = 1e-10


def make_model(width=4, activation="tanh", **params):
    defaults = {"n_students": 5, "random_state": 0}
    return ExpandClusterRegressor(
        hidden_layer_sizes=width, activation=activation, **{**defaults, **params}
    )


@pytest.fixture(scope="module")
def fitted(tanh_problem):
    teacher, X, y = tanh_problem
    return make_model().fit(X, y)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_recovers_every_activation(activation):
    teacher = make_teacher(3, 3, activation=activation, random_state=1)
    X = np.random.default_rng(1).uniform(-2, 2, size=(800, 3))
    model = make_model(3, activation, n_students=10).fit(X, teacher.predict(X))
    X_new = np.random.default_rng(2).uniform(-3, 3, size=(500, 3))
    assert model.recovered_
    assert model.layer_sizes_ == (3,)
    assert max_cosine_distance(teacher, model, activation) <= EXACT
    assert relative_rmse(teacher.predict(X_new), model.predict(X_new)) <= 1e-11


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_recovers_several_outputs(activation):
    teacher = make_teacher(4, 5, 3, activation, family="rough", random_state=0)
    X = np.random.default_rng(0).normal(size=(700, 4))
    model = make_model(5, activation).fit(X, teacher.predict(X))
    assert model.recovered_
    assert max_cosine_distance(teacher, model, activation) <= EXACT
    assert model.predict(X).shape == (700, 3)


@pytest.mark.parametrize("width", [8, "auto"])
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


def test_dependent_columns_get_the_minimum_norm_weights(tanh_problem):
    teacher, X, y = tanh_problem
    constant = np.full((len(X), 1), 5.0)
    model = make_model().fit(np.hstack([X, X[:, :1], constant]), y)
    shared = teacher.weights_[0].copy()
    shared[0] /= 2
    expected = np.vstack([shared, shared[:1], np.zeros((1, 4))])
    network = ([expected, teacher.weights_[1]], teacher.biases_)
    assert model.recovered_
    assert max_cosine_distance(network, model, "tanh") <= EXACT


def test_clusters_alone_give_the_network(tanh_problem):
    teacher, X, y = tanh_problem
    model = make_model(prune=False, n_students=20).fit(X, y)
    assert model.recovered_
    assert max_cosine_distance(teacher, model, "tanh") <= EXACT
    kept = [cluster for cluster in model.cluster_report_ if cluster["status"] == "kept"]
    assert len(kept) == 4
    assert all(cluster["median_angle"] < 1e-4 for cluster in kept)


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


def test_further_students_confirm_an_early_network(tanh_problem, monkeypatch):
    """One student ends the training; two more are pruned, and all three hold every neuron."""
    monkeypatch.setattr(_training, "FIRST_QUESTION_EPOCH", 1)
    _, X, y = tanh_problem
    model = make_model(n_students=6, tol=0.0).fit(X, y)
    assert model.recovered_
    assert model.n_iter_ == _training.LEVENBERG_STEPS_PER_EPOCH
    assert model.n_agreeing_ == 3
    assert [cluster["n_students"] for cluster in model.cluster_report_] == [3] * 4
    assert len(np.unique(model.dendrogram_[0].students)) == 3
    assert len(model.dendrogram_[0].students) == 3 * 4  # exact widths, not the students'
    assert (model.dendrogram_[0].n_agreeing, model.dendrogram_[0].n_students) == (3, 6)


def test_no_student_agrees_on_a_network_that_none_holds(tanh_problem):
    _, X, y = tanh_problem
    noisy = y + 0.1 * np.random.default_rng(0).normal(size=len(y))
    with pytest.warns(ConvergenceWarning):
        model = make_model(n_students=3, max_iter=10, prune=False).fit(X, noisy)
    assert model.n_agreeing_ <= 1


def test_students_of_adam_can_be_recovered_from(tanh_problem):
    teacher, X, y = tanh_problem
    model = make_model(n_students=4, solver="adam", max_iter=30).fit(X, y)
    assert model.student_losses_.min() > 1e-12  # Adam alone stays far from zero
    assert model.recovered_  # annealing does not
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


def test_result_does_not_depend_on_the_order_of_rows(tanh_problem, fitted):
    _, X, y = tanh_problem
    order = np.random.default_rng(0).permutation(len(X))
    model = make_model().fit(X[order], y[order])
    assert_array_equal(model.weights_[0], fitted.weights_[0])


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


def test_input_types(tanh_problem, fitted):
    _, X, y = tanh_problem
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = make_model().fit(frame, pd.Series(y))
    assert_array_equal(model.feature_names_in_, ["a", "b", "c"])
    assert_array_equal(model.predict(frame), fitted.predict(X))
    column = make_model().fit(X, y[:, None])
    assert_array_equal(column.predict(X), fitted.predict(X)[:, None])


def test_float32_input_is_predicted_in_float64(tanh_problem):
    _, X, y = tanh_problem
    with pytest.warns(ConvergenceWarning):
        model = make_model(n_students=2).fit(X.astype(np.float32), y.astype(np.float32))
    predicted = model.predict(X.astype(np.float32))
    assert predicted.dtype == np.float64
    assert relative_rmse(y, predicted) < 1e-5
    assert not model.recovered_


def test_pipeline_and_cross_validation(tanh_problem):
    _, X, y = tanh_problem
    scores = cross_val_score(make_pipeline(StandardScaler(), make_model()), X, y, cv=2)
    assert_allclose(scores, 1.0, atol=1e-12)


def test_grid_search_over_thresholds(tanh_problem):
    _, X, y = tanh_problem
    grid = {"gamma": [0.5, 0.9], "beta": [0.1, 0.5]}
    search = GridSearchCV(make_model(n_students=3), grid, cv=2).fit(X, y)
    assert search.best_score_ > 1 - 1e-12
    assert search.best_estimator_.recovered_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("change", [{"gamma": 1.0}, {"beta": 0.0}, {"cut": "global"}])
def test_recluster_equals_fit(tanh_problem, prune, change):
    _, X, y = tanh_problem
    model = make_model(prune=prune, max_iter=20).fit(X, y).recluster(**change)
    other = make_model(prune=prune, max_iter=20, **change).fit(X, y)
    assert model.get_params() == other.get_params()
    assert model.cluster_report_ == other.cluster_report_
    assert_array_equal(model.predict(X), other.predict(X))
    assert model.recovered_ == other.recovered_


def test_recluster_rejects_bad_thresholds(fitted):
    with pytest.raises(ValueError, match="gamma"):
        fitted.recluster(gamma=2.0)
    assert fitted.gamma == 0.5
    with pytest.raises(NotFittedError):
        make_model().recluster()


def test_verbose_prints_one_line_per_stage(tanh_problem, capsys):
    _, X, y = tanh_problem
    make_model(verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    pattern = r"hidden layers \(4,\): \d of 5 students converged after \d+ steps, best loss"
    assert re.search(pattern, lines[0])


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


def test_noise_is_not_certified(tanh_problem):
    _, X, y = tanh_problem
    noisy = y + 1e-3 * np.random.default_rng(0).normal(size=len(y))
    model = assert_not_recovered(make_model(), X, noisy, "above rounding")
    assert relative_rmse(y, model.predict(X)) < 5e-3


def test_wrong_activation_is_not_certified(tanh_problem):
    _, X, y = tanh_problem
    model = make_model(activation="softplus", n_students=3, max_iter=30)
    assert_not_recovered(model, X[:300], y[:300], "try another activation")


def test_other_functions_are_not_certified(tanh_problem):
    X = tanh_problem[1]
    assert_not_recovered(make_model(), X, np.sin(3 * X[:, 0]) * X[:, 1], "above rounding")


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


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_noisy_data_of_unknown_width_end_in_a_sensible_regressor(activation):
    X, y = make_friedman1(400, noise=1, random_state=0)
    model = ExpandClusterRegressor(activation=activation, n_students=5, random_state=0)
    assert_not_recovered(model, X[:300], y[:300], "taken as noisy: widths .* chosen by the error on held-out rows")
    assert model.score(X[300:], y[300:]) > 0.7


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
        ({"activation": "sine"}, "'activation' parameter"),
        ({"gamma": 0.0}, "'gamma' parameter"),
        ({"beta": 4.0}, "'beta' parameter"),
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


@pytest.fixture(scope="module")
def deep_problem():
    teacher = make_teacher(3, (3, 2), 2, "tanh", family="deep", random_state=0)
    X = np.random.default_rng(0).uniform(-1.7, 1.7, size=(600, 3))
    return teacher, X, teacher.predict(X)


@pytest.fixture(scope="module")
def deep_model(deep_problem):
    _, X, y = deep_problem
    model = ExpandClusterRegressor(
        (2, 3), hidden_layer_sizes=(3, 2), activation="tanh", n_students=5, random_state=0
    )
    return model.fit(X, y)


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


@pytest.mark.parametrize("sizes", [(4,), (2, 2, 2)])
def test_a_wrong_depth_is_never_certified(deep_problem, sizes, monkeypatch):
    _, X, y = deep_problem
    monkeypatch.setattr(_pruning, "POLISH_STEPS", 60)
    monkeypatch.setattr(_pruning, "MAX_REGROWTHS", 1)
    model = ExpandClusterRegressor(
        2, hidden_layer_sizes=sizes, activation="tanh", n_students=3, max_iter=40, random_state=0
    )
    with pytest.warns(ConvergenceWarning, match="not certified"):
        model.fit(X, y)
    assert not model.recovered_
