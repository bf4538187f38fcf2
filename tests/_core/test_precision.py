"""How targets are rounded, and what that does to a network's outputs."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.precision import (
    FULL,
    MAX_DECIMALS,
    Precision,
    evaluate,
    find_input_precision,
    find_precision,
)
from sklearn_ec.datasets import make_teacher

TORCH = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "g": lambda z: torch.sigmoid(4.0 * z) + torch.nn.functional.softplus(z),
}


def normal(size=(200, 2), seed=0):
    return np.random.default_rng(seed).normal(size=size)


# Which precision is found


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
@pytest.mark.parametrize("as_double", [False, True])
def test_floating_point_types_are_found_by_type_and_by_value(name, as_double):
    values = normal().astype(name)
    found = find_precision(values.astype(np.float64) if as_double else values)
    assert (found.name, found.step) == (name, 0.0)
    assert found.is_full == (name == "float64")


@pytest.mark.parametrize("decimals", range(1, MAX_DECIMALS + 1))
@pytest.mark.parametrize("size", [1.0, -3.0, 0.1])
def test_decimals_are_found(decimals, size):
    found = find_precision(np.round(size * normal(), decimals))
    assert found.name == f"{decimals} decimals"
    assert found.step == 10.0**-decimals
    assert not found.is_full


@pytest.mark.parametrize("offset", [1e3, -1e6, 1e9])
@pytest.mark.parametrize("decimals", [1, 2, 4])
def test_decimals_of_large_values_are_found(offset, decimals):
    assert find_precision(np.round(offset + normal(), decimals)).name == f"{decimals} decimals"


def test_decimals_that_the_type_can_hardly_hold_are_none():
    """At 1e12, neighbors of float64 are 1e-4 apart: three decimals are nearly all there are."""
    assert find_precision(np.round(1e12 + normal(), 3)).is_full
    assert find_precision(np.round(1e12 + normal(), 2)).name == "2 decimals"


@pytest.mark.parametrize("decimals", [1, 3])
def test_decimals_in_single_precision_are_found_where_the_type_says_so(decimals):
    values = np.round(normal(), decimals).astype(np.float32)
    assert find_precision(values).name == f"{decimals} decimals"
    assert find_precision(values.astype(np.float64)).name == "float32"


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint16, bool, np.float32, np.float64])
def test_integers_have_no_decimals(dtype):
    found = find_precision(np.random.default_rng(0).integers(0, 2, size=60).astype(dtype))
    assert (found.name, found.step) == ("0 decimals", 1.0)


def test_lists_and_single_columns_are_taken_as_well():
    assert find_precision([0.25, -1.5, 3.0]).name == "2 decimals"
    assert find_precision([[0.1], [0.2]]).name == "1 decimals"


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e4, 1e12])
def test_chance_never_makes_decimals(name, scale):
    """50 values each, of any size, with and without an offset, by type and by value."""
    for seed in range(50):
        values = normal(size=50, seed=seed) * scale
        for y in (values, values + 30.0 * scale, values + 1e3 * scale):
            given = y.astype(name)
            assert find_precision(given).name == name
            assert find_precision(given.astype(np.float64)).name == name


@pytest.mark.parametrize("largest", [1, 100, 30_000, 10**6, 9 * 10**6])
def test_integers_that_single_precision_holds_are_integers(largest):
    values = np.random.default_rng(0).integers(-largest, largest + 1, size=60)
    assert find_precision(values.astype(np.float64)).name == "0 decimals"
    assert find_precision(values / 4).name == "2 decimals"


def test_zeros_are_a_constant():
    assert find_precision(np.zeros((60, 1))).name == "0 decimals"


def test_one_value_off_the_grid_is_enough():
    values = np.round(normal(), 3)
    values[7, 1] += np.pi * 1e-7
    assert find_precision(values).is_full


def test_the_user_knows_better():
    values = np.round(normal(), 3)
    for name in ("float16", "float32", "float64"):
        assert find_precision(values, name) == Precision(name)
    found = find_precision(normal(), 0.05)
    assert (found.name, found.step) == ("multiples of 0.05", 0.05)
    assert find_precision(normal(), np.float32(0.5)).step == 0.5
    assert find_precision(values, 1).step == 1.0


def test_decimals_of_inputs_are_exact():
    """The network is asked the decimals themselves, while single precision may hide digits."""
    assert find_input_precision(np.round(normal(), 2)) is FULL
    assert find_input_precision(np.arange(6).reshape(3, 2)) is FULL
    assert find_input_precision(normal()).is_full
    assert find_input_precision(normal().astype(np.float32)).name == "float32"
    assert find_input_precision(normal().astype(np.float32).astype(np.float64)).name == "float32"


# Spacing


def test_spacing_is_the_distance_to_the_next_value():
    y = normal().astype(np.float32)
    expected = np.nextafter(np.abs(y), np.float32(np.inf)) - np.abs(y)
    found = Precision("float32").spacing(y.astype(np.float64))
    assert found.dtype == np.float64
    assert_array_equal(found, expected)
    assert_array_equal(Precision.of_step(0.05).spacing(y), np.full(y.shape, 0.05))


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_rounding_to_a_type_is_uniform_within_the_spacing(name):
    y = normal(size=(10_000, 1))
    spacing = Precision(name).spacing(y)
    assert_allclose(np.std((y.astype(name) - y) / spacing), 12**-0.5, rtol=0.05)


# What rounding does to a network


def teacher_in_single_precision(activation, sizes, n_outputs, seed):
    teacher = make_teacher(3, sizes, n_outputs, activation, family="rough", random_state=seed)
    for parts in (teacher.weights_, teacher.biases_):
        parts[:] = [part.astype(np.float32).astype(np.float64) for part in parts]
    return teacher


def torch_outputs(teacher, X, activation, dtype=torch.float32):
    """Brute force: the network as somebody runs it in torch."""
    values = torch.from_numpy(X).to(dtype)
    for layer, (weight, bias) in enumerate(zip(teacher.weights_, teacher.biases_, strict=True)):
        if layer:
            values = TORCH[activation](values)
        weight, bias = torch.from_numpy(weight.T).to(dtype), torch.from_numpy(bias).to(dtype)
        values = torch.nn.functional.linear(values, weight, bias)
    return values.double().numpy()


NETWORKS = pytest.mark.parametrize(
    ("activation", "sizes", "n_outputs"),
    [(name, sizes, k) for name in TORCH for sizes, k in [((4,), 1), ((4,), 3), ((4, 3), 2)]],
)


@NETWORKS
def test_evaluation_in_double_precision_is_that_of_torch(activation, sizes, n_outputs):
    teacher = teacher_in_single_precision(activation, sizes, n_outputs, 0)
    X = normal(size=(100, 3))
    found = evaluate(teacher.weights_, teacher.biases_, X, get_activation(activation), np.float64)
    assert_allclose(found, torch_outputs(teacher, X, activation, torch.float64), rtol=1e-12)


@NETWORKS
def test_imitation_errs_like_torch(activation, sizes, n_outputs):
    """Value by value within some units in the last place, on average of about the same size.

    The imitation may err more: processors that round less often err by 0.66 times as much.
    """
    single, function = Precision("float32"), get_activation(activation)
    X = np.random.default_rng(0).uniform(-2, 2, size=(1000, 3)).astype(np.float32)
    X = X.astype(np.float64)
    for seed in range(3):
        teacher = teacher_in_single_precision(activation, sizes, n_outputs, seed)
        given = torch_outputs(teacher, X, activation)
        exact = torch_outputs(teacher, X, activation, torch.float64)
        imitated = single.imitate(teacher.weights_, teacher.biases_, X, function)
        assert_array_equal(imitated, imitated.astype(np.float32))
        unit = np.finfo(np.float32).eps * np.abs(exact).max()
        assert_allclose(imitated, given, rtol=0, atol=20 * unit)
        ratio = np.linalg.norm(given - exact) / np.linalg.norm(imitated - exact)
        assert 0.6 < ratio < 1.3


@pytest.mark.parametrize("step", [1e-3, 0.05, 1.0])
def test_imitated_decimals_are_rounded_outputs(step):
    teacher = make_teacher(3, 4, activation="tanh", random_state=0)
    X = normal(size=(2000, 3))
    outputs = teacher.predict(X)[:, None]
    imitated = Precision.of_step(step).imitate(
        teacher.weights_, teacher.biases_, X, get_activation("tanh")
    )
    assert_allclose(imitated, step * np.round(outputs / step), rtol=1e-12, atol=1e-15)
    assert np.abs(imitated - outputs).max() <= 0.5 * step + 1e-12


@pytest.mark.parametrize(("activation", "gains"), [("relu", (1e3, 1e-3)), ("tanh", (1e-6, 1.0))])
def test_networks_that_the_type_cannot_run_have_rounded_outputs(activation, gains):
    """Half precision ends at 65,504: the network was not run in it, but its outputs were rounded.

    The inputs are too large for it, or the sums of the hidden layer.
    """
    X = normal(size=(100, 3)) * (1e6 if activation == "tanh" else 60.0)
    weights = [gains[0] * np.array([[1.0], [2.0], [0.5]]), np.full((1, 1), gains[1])]
    biases = [np.array([0.1]), np.zeros(1)]
    function = get_activation(activation)
    outputs = evaluate(weights, biases, X, function, np.float64)
    imitated = Precision("float16").imitate(weights, biases, X, function)
    assert_array_equal(imitated, outputs.astype(np.float16))
