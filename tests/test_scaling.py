"""Folded networks predict on raw columns what the pipeline predicts."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher
from sklearn_ec.metrics import max_cosine_distance
from sklearn_ec.scaling import fold_scalers


def make_model(activation="tanh"):
    return ExpandClusterRegressor(
        hidden_layer_sizes=2, activation=activation, n_students=4, random_state=0
    )


def make_problem(activation="tanh", n_outputs=1):
    teacher = make_teacher(3, 2, n_outputs, activation, random_state=0)
    X = np.random.default_rng(0).uniform([-2, 0, -1], [2, 4, 5], size=(300, 3))
    return teacher, X, teacher.predict(X)


@pytest.fixture(scope="module")
def problem():
    return make_problem()


@pytest.fixture(scope="module")
def fitted(problem):
    _, X, y = problem
    return make_pipeline(StandardScaler(), make_model()).fit(X, y)


def assert_equivalent(network, model, X):
    expected = model.predict(X)
    atol = 1e-12 * max(1.0, np.abs(expected).max())
    assert network.predict(X).shape == expected.shape
    assert_allclose(network.predict(X), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "scaler",
    [
        StandardScaler(with_mean=False),
        StandardScaler(with_std=False),
        MinMaxScaler(feature_range=(-1, 3)),
        MaxAbsScaler(),
        RobustScaler(),
        RobustScaler(with_centering=False, with_scaling=False),
        FunctionTransformer(),
        "passthrough",
        None,
    ],
    ids=str,
)
def test_scalers_of_the_inputs(scaler, problem, fitted):
    """The network of a fit on standardized columns, behind another scaler."""
    _, X, _ = problem
    pipeline = make_pipeline(scaler, fitted[-1])
    if hasattr(scaler, "fit"):
        pipeline[0].fit(X)
    assert_equivalent(fold_scalers(pipeline), pipeline, X)


def test_a_pipeline_gives_the_network_itself(problem, fitted):
    teacher, X, y = problem
    before = [weight.copy() for weight in fitted[-1].weights_]
    network = fold_scalers(fitted)
    assert_equivalent(network, fitted, X)
    assert network.recovered_
    assert max_cosine_distance(teacher, network, "tanh") <= 1e-10
    assert_array_equal(fitted[-1].weights_[0], before[0])
    again = make_model().fit(X, y)
    assert_allclose(network.weights_[0], again.weights_[0], rtol=1e-9)
    assert network.layer_sizes_ == again.layer_sizes_
    # Nothing that was measured depends on the scales.
    assert_allclose(network.dendrogram_[0].linkage, again.dendrogram_[0].linkage, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "activation",
    [
        "relu",
        pytest.param("leaky_relu(0.2)", marks=pytest.mark.slow),
        pytest.param("logistic", marks=pytest.mark.slow),
    ],
)
def test_inputs_and_targets_of_several_outputs(activation):
    teacher, X, y = make_problem(activation, n_outputs=2)
    y = y * [1e3, 0.1] + [50.0, -7.0]
    model = TransformedTargetRegressor(
        make_pipeline(MinMaxScaler(), StandardScaler(), make_model(activation)),
        transformer=StandardScaler(),
    ).fit(X, y)
    network = fold_scalers(model)
    expected = model.predict(X)
    atol = 1e-12 * np.abs(expected).max(axis=0)
    assert np.all(np.abs(network.predict(X) - expected) <= atol)
    assert max_cosine_distance(teacher, network, activation) <= 1e-10
    norms = np.linalg.norm(network.weights_[1], axis=1)
    assert norms[0] >= norms[1]
    if "relu" in activation:
        vectors = np.vstack([network.weights_[0], network.biases_[0]])
        assert_allclose(np.linalg.norm(vectors, axis=0), 1.0)


@pytest.mark.parametrize("inside", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("column", [False, True])
def test_targets_of_one_output(column, inside, problem):
    _, X, y = problem
    y = 20.0 * (y[:, None] if column else y) - 3.0
    if inside:
        targets = TransformedTargetRegressor(make_model(), transformer=MaxAbsScaler())
        model = make_pipeline(StandardScaler(), targets)
    else:
        model = TransformedTargetRegressor(make_pipeline(StandardScaler(), make_model()))
    model.fit(X, y)
    assert_equivalent(fold_scalers(model), model, X)


def test_feature_names_are_those_of_the_pipeline(problem):
    pandas = pytest.importorskip("pandas")
    _, X, y = problem
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    pipeline = make_pipeline(StandardScaler(), make_model()).fit(frame, y)
    network = fold_scalers(TransformedTargetRegressor(pipeline).fit(frame, y))
    assert list(network.feature_names_in_) == ["a", "b", "c"]
    assert_equivalent(network, pipeline, frame)
    pipeline[-1].feature_names_in_ = pipeline[0].feature_names_in_
    del pipeline[0].feature_names_in_
    assert not hasattr(fold_scalers(pipeline), "feature_names_in_")


def test_what_a_copy_leaves_out(fitted):
    fitted[-1].later_ = 0.1  # unknown attributes may depend on the scales
    network = fold_scalers(fitted)
    del fitted[-1].later_
    left_out = {"_known_groups", "_next_step", "_problem", "_seed", "_targets", "_trained"}
    assert set(vars(fitted[-1])) - set(vars(network)) == left_out
    assert not hasattr(network, "later_")
    with pytest.raises(NotFittedError, match="standard_errors needs the training rows"):
        network.standard_errors()
    with pytest.raises(NotFittedError, match="recluster needs the training rows"):
        network.recluster()


def test_noise_level_is_in_units_of_the_targets(problem):
    _, X, y = problem
    model = TransformedTargetRegressor(make_model(), transformer=StandardScaler()).fit(X, y)
    model.regressor_.noise_level_ = np.array([0.1])
    assert_allclose(fold_scalers(model).noise_level_, 0.1 * np.std(y))


def test_exports_of_a_folded_network(problem, fitted, tmp_path):
    pytest.importorskip("safetensors", reason="save and load need safetensors")
    _, X, _ = problem
    network = fold_scalers(fitted)
    assert_allclose(network.to_mlp_regressor().predict(X), fitted.predict(X), atol=1e-12)
    network.save(tmp_path / "network")
    loaded = ExpandClusterRegressor.load(tmp_path / "network")
    assert_array_equal(fold_scalers(loaded).predict(X), network.predict(X))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (PCA(), "step 'pca' of the pipeline is a PCA, which cannot be folded: use StandardScaler"),
        (MinMaxScaler(clip=True), "step 'minmaxscaler' of the pipeline clips"),
        (FunctionTransformer(np.log), "step 'functiontransformer' .* is a FunctionTransformer"),
    ],
)
def test_other_steps_are_named(step, message, fitted):
    with pytest.raises(TypeError, match=message):
        fold_scalers(make_pipeline(step, fitted[-1]))


def test_other_target_transformers_are_named(problem, fitted):
    _, X, y = problem
    model = TransformedTargetRegressor(func=np.negative, inverse_func=np.negative)
    model.set_params(regressor=make_model()).fit(X, y)
    with pytest.raises(TypeError, match="the transformer of the targets is a FunctionTransformer"):
        fold_scalers(model)


def test_other_models_are_refused(problem):
    _, X, y = problem
    with pytest.raises(NotFittedError):
        fold_scalers(make_pipeline(StandardScaler(), make_model()))
    with pytest.raises(TypeError, match="LinearRegression is no ExpandClusterRegressor"):
        fold_scalers(make_pipeline(StandardScaler(), LinearRegression()).fit(X, y))
