"""Saved estimators come back as they were; files that are not theirs are refused."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._certify.certificate import Certificate
from sklearn_ec._core.records import Dendrogram, Network
from sklearn_ec._io import persistence
from sklearn_ec._io.persistence import Decoder, encode, is_saved

safetensors = pytest.importorskip("safetensors", reason="save and load need safetensors")
pytest.importorskip("safetensors.numpy")


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        assert_array_equal(actual, expected)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert_same(list(actual.items()), list(expected.items()))
    elif isinstance(expected, Certificate | Dendrogram):
        assert_same(vars(actual), vars(expected))
    else:
        assert_array_equal(actual, expected)  # nan equals nan


def round_trip(value):
    """Through strict JSON, as in a file."""
    tensors = {}
    text = json.dumps(encode(value, "value", tensors), allow_nan=False)
    return Decoder(tensors)(json.loads(text))


@pytest.fixture
def saved(tanh_model, tmp_path):
    path = tmp_path / "model.safetensors"
    tanh_model.save(path)
    return path


def rewrite(path, change, fix_checksum=True):
    """Change what the header says."""
    tensors = safetensors.numpy.load(path.read_bytes())
    with safetensors.safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()["sklearn_ec"])
    change(document)
    if fix_checksum:
        del document["checksum"]
        document["checksum"] = persistence._checksum(document, tensors)
    path.write_bytes(safetensors.numpy.save(tensors, {"sklearn_ec": json.dumps(document)}))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**70,
        0.1,
        float("nan"),
        -float("inf"),
        -0.0,
        "ü",
        (1, (2.0, "x"), []),
        [{"layer": 0, "height": float("inf")}, {}],
        {1: "int key", "$array": "looks like a marker", (1, 2): np.array([1.0, np.nan])},
        np.float64(0.1),
        np.float32(0.1),
        np.float64("nan"),
        np.int64(-3),
        np.bool_(True),
        np.array(3.0),
        np.zeros((0, 4)),
        np.array([np.nan, -np.inf, -0.0]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12)[::-2],
        np.array([[True, False]]),
        np.array(["a", "bc"], dtype=object),
        np.array([["a"], ["bc"]]),
        Dendrogram(
            np.ones((2, 4)),
            *[np.arange(3)] * 3,
            cut_heights=np.zeros(0),
            vectors=np.ones((3, 2)),
            clusters=np.zeros(3, dtype=int),
            statuses=np.array(["small"]),
            n_students=3,
        ),
        Certificate(
            error=1e-16,
            held_out_error=1e-16,
            rounding=1e-13,
            precision="float32",
            n_equations=5,
            n_parameters=2,
            weight_error=np.nan,
            isolation=np.inf,
            redundancy=np.nan,
            function_certified=True,
            passed=False,
            obstacle="columns",
            reason="reason",
            open_columns=("x0", "age"),
        ),
    ],
)
def test_values_round_trip(value):
    assert_same(round_trip(value), value)
    assert_same(round_trip([value, {"a": value}]), [value, {"a": value}])


def test_random_state_goes_on_where_it_was():
    random_state = np.random.RandomState(0)
    random_state.normal(size=3)
    assert_array_equal(round_trip(random_state).normal(size=5), random_state.normal(size=5))
    with pytest.raises(TypeError, match="value is a RandomState that save cannot write"):
        encode(np.random.RandomState(np.random.PCG64(0)), "value", {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [object()]}, r"value\['a'\]\[0\] is a object"),
        (Network((np.zeros((1, 2)),)), "value is a Network"),
        (np.array([1, None], dtype=object), "value is an array of objects"),
        (np.array([1j]), "value is an array of complex128"),
        (np.complex128(1), "value is a complex128"),
    ],
)
def test_other_types_are_refused(value, message):
    with pytest.raises(TypeError, match=message):
        encode(value, "value", {})


def test_fitted_estimator_round_trips(tanh_problem, tanh_model, saved):
    _, X, _ = tanh_problem
    loaded = ExpandClusterRegressor.load(saved)
    assert_array_equal(loaded.predict(X), tanh_model.predict(X))
    assert_array_equal(loaded.to_mlp_regressor().predict(X), tanh_model.predict(X))
    assert_same(loaded.get_params(), tanh_model.get_params())
    kept = {name: value for name, value in vars(tanh_model).items() if is_saved(name)}
    assert {name for name in vars(loaded) if is_saved(name)} == set(kept)
    for name, value in kept.items():
        assert_same(getattr(loaded, name), value)
    assert {"weights_", "dendrogram_", "certificate_", "n_outputs_", "n_features_in_"} < set(kept)
    again = saved.with_name("again")
    loaded.save(again)
    assert again.read_bytes() == saved.read_bytes()


def test_feature_names_several_outputs_and_a_subclass(tanh_model, tmp_path):
    pandas = pytest.importorskip("pandas")

    class Subclass(ExpandClusterRegressor):
        pass

    model = Subclass(random_state=np.random.RandomState(0), hidden_layer_sizes=np.array([4]))
    for name, value in vars(tanh_model).items():
        if is_saved(name):
            setattr(model, name, value)
    model.set_params(activation="tanh")
    model.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    model._single_output = False
    model.save(str(tmp_path / "model"))
    loaded = Subclass.load(str(tmp_path / "model"))
    frame = pandas.DataFrame(np.eye(3), columns=["a", "b", "c"])
    assert type(loaded) is Subclass
    assert loaded.predict(frame).shape == (3, 1)
    assert_array_equal(loaded.predict(frame), model.predict(frame))
    assert loaded.random_state.randint(100) == model.random_state.randint(100)
    assert_array_equal(loaded.hidden_layer_sizes, [4])


def test_new_attributes_of_plain_type_need_no_change(tanh_model, tmp_path):
    model = clone(tanh_model)
    vars(model).update(vars(tanh_model))
    model.search_report_ = [{"width": np.int64(1), "loss": np.float32(np.nan), "why": None}]
    model.save(tmp_path / "model")
    loaded = ExpandClusterRegressor.load(tmp_path / "model")
    assert_same(loaded.search_report_, model.search_report_)


def test_loaded_estimators_cannot_recluster(saved):
    loaded = ExpandClusterRegressor.load(saved)
    with pytest.raises(NotFittedError, match="recluster needs the training rows and students"):
        loaded.recluster(gamma=0.9)
    with pytest.raises(NotFittedError, match="standard_errors needs the training rows"):
        loaded.standard_errors()


def test_a_loaded_estimator_can_be_cloned_pickled_and_fitted(tanh_problem, saved):
    _, X, y = tanh_problem
    loaded = ExpandClusterRegressor.load(saved)
    assert_same(clone(loaded).get_params(), loaded.get_params())
    assert_array_equal(pickle.loads(pickle.dumps(loaded)).predict(X), loaded.predict(X))
    assert loaded.fit(X, y).recovered_


def test_save_needs_a_fit(tmp_path):
    with pytest.raises(NotFittedError):
        ExpandClusterRegressor().save(tmp_path / "model")


def test_failed_saves_leave_the_old_file(tanh_model, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            tanh_model.save(saved)
    model = clone(tanh_model).set_params(device=object())
    vars(model).update(weights_=[], biases_=[])
    with pytest.raises(TypeError, match="device is a object"):
        model.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        ExpandClusterRegressor.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("content", [b"", b"model", pickle.dumps({"a": 1}), b"\xff" * 1000])
def test_foreign_files(content, tmp_path):
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="foreign is not a safetensors file, or a truncated one"):
        ExpandClusterRegressor.load(path)


def test_truncated_files(saved):
    content = saved.read_bytes()
    for length in (4, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file, or a"):
            ExpandClusterRegressor.load(saved)


def test_single_flipped_bits_are_found(saved):
    content = saved.read_bytes()
    document = persistence.load_state(saved)
    n_found = 0
    for position in np.random.default_rng(0).integers(len(content), size=300):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(position % 8)
        saved.write_bytes(damaged)
        try:
            assert_same(persistence.load_state(saved), document)  # another spelling, as 1E-16
        except ValueError as error:
            n_found += str(error).startswith(f"{saved} ")
    assert n_found >= 295


def test_safetensors_files_of_others(tmp_path):
    for metadata in (None, {"format": "pt"}):
        safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "other", metadata=metadata)
        with pytest.raises(ValueError, match=r"other cannot be read: .* sklearn_ec did not write"):
            ExpandClusterRegressor.load(tmp_path / "other")


def test_files_of_later_versions(saved):
    changes = {"format_version": 2, "sklearn_ec_version": "9.9"}
    rewrite(saved, lambda document: document.update(changes))
    with pytest.raises(ValueError, match=r"format version is 2, written by sklearn_ec 9\.9, .* 1:"):
        ExpandClusterRegressor.load(saved)


def test_changed_headers_are_found(saved):
    rewrite(saved, set_parameter("n_students", 5), fix_checksum=False)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: it is damaged"):
        ExpandClusterRegressor.load(saved)


def set_attribute(name, value):
    return lambda document: document["attributes"].update({name: value})


def set_parameter(name, value):
    return lambda document: document["parameters"].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("attributes"), "cannot be read"),
        (set_attribute("weights_", {"$array": "nowhere"}), "cannot be read"),
        (set_attribute("weights_", {"$pickle": "cos"}), "cannot be read"),
        (set_attribute("weights_", {"$record": ["Popen", {"args": "ls"}]}), "cannot be read"),
        (set_attribute("weights_", {"$record": ["Certificate", {"error": 1.0}]}), "cannot be read"),
        (set_attribute("weights_", {"$scalar": ["object", 1]}), "cannot be read"),
        (set_attribute("weights_", {"$strings": ["<f8", [1], [1]]}), "cannot be read"),
        (set_attribute("weights_", {"$random_state": 3}), "cannot be read"),
        (set_attribute("weights_", {}), "cannot be read"),
        (set_attribute("predict", 1), "not learned: predict"),
        (set_attribute("__class__", 1), "not learned: __class__"),
        (set_attribute("_trained", 1), "not learned: _trained"),
        (set_parameter("temperature", 1), "unusable parameters: .*temperature"),
        (set_parameter("activation", "sine"), "unusable parameters: .*activation"),
    ],
)
def test_crafted_states_are_refused(change, message, saved):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=rf"model\.safetensors .*{message}"):
        ExpandClusterRegressor.load(saved)


def test_parameters_that_came_later_get_their_defaults(tanh_model, saved):
    rewrite(saved, lambda document: document["parameters"].pop("max_iter"))
    assert ExpandClusterRegressor.load(saved).max_iter == ExpandClusterRegressor().max_iter


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", "null", "{", ""])
def test_headers_that_are_no_document(text, tmp_path):
    content = safetensors.numpy.save({"a": np.zeros(3)}, {"sklearn_ec": text})
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match="model cannot be read"):
        ExpandClusterRegressor.load(tmp_path / "model")


@pytest.mark.parametrize("method", ["save", "load"])
def test_missing_package_names_the_extra(method, tanh_model, saved, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("safetensors")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"package safetensors: pip install sklearn_ec\[export\]"):
        getattr(tanh_model, method)(saved)


def test_skops_round_trip(tanh_problem, tanh_model):
    skops_io = pytest.importorskip("skops.io", reason="skops is not installed")
    _, X, _ = tanh_problem
    content = skops_io.dumps(tanh_model)
    untrusted = skops_io.get_untrusted_types(data=content)
    assert all(name.startswith("sklearn_ec.") for name in untrusted)
    loaded = skops_io.loads(content, trusted=untrusted)
    np.testing.assert_allclose(loaded.predict(X), tanh_model.predict(X), rtol=0, atol=1e-12)
    assert_same(loaded.weights_, tanh_model.weights_)
    assert_same(loaded.certificate_, tanh_model.certificate_)
    with pytest.raises(skops_io.exceptions.UntrustedTypesFoundException):
        skops_io.loads(content)
