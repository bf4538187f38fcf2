import numpy as np
import pytest
import torch

from sklearn_ec._core.activations import (
    ACTIVATIONS,
    LEAKY_RELU_SLOPE,
    get_activation,
    is_activation,
    leaky_relu_slope,
)

NAMES = sorted(ACTIVATIONS)
# Every sign and size, and no kink: nothing is closer to 0 than 1e-3.
POINTS = np.concatenate(
    [np.geomspace(1e-3, 45.0, 300), -np.geomspace(1e-3, 45.0, 300), np.linspace(19.9, 40.1, 203)]
)


def names_with(**attributes):
    return [
        name
        for name, activation in sorted(ACTIVATIONS.items())
        if all(getattr(activation, key) == value for key, value in attributes.items())
    ]


def tensor(z):
    return torch.as_tensor(z, dtype=torch.float64)


def largest_error(actual, expected, z):
    """Largest error relative to the size of the input, at which rounding enters."""
    return np.max(np.abs(actual - expected) / np.maximum(1.0, np.abs(z)))


def test_table_names_the_documented_activations():
    assert names_with(symmetry="odd") == ["erf", "logistic", "tanh"]
    assert names_with(symmetry="none") == ["elu", "g"]
    assert names_with(symmetry="even_linear") == ["gelu", "leaky_relu", "relu", "silu", "softplus"]
    assert names_with(homogeneous=True) == ["leaky_relu", "relu"]


def derivative_of(activation, z):
    return activation.tensor_derivative(z, activation.tensor_function(z))


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_torch_agree(name):
    activation = ACTIVATIONS[name]
    z = np.append(POINTS, 0.0)
    expected = activation.function(z)
    # torch's gelu goes through 1 + erf, so its negative tail is exact to absolute rounding only.
    atol = 1e-15 if name == "gelu" else 0.0
    actual = activation.tensor_function(tensor(z)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=2e-15, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_matches_finite_differences(name):
    activation, step = ACTIVATIONS[name], 1e-5
    up, down = (activation.function(POINTS + sign * step) for sign in (1.0, -1.0))
    derivative = derivative_of(activation, tensor(POINTS)).numpy()
    np.testing.assert_allclose(derivative, (up - down) / (2.0 * step), rtol=1e-8, atol=2e-9)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_exact_to_rounding(name):
    """Automatic differentiation sees errors that finite differences cannot resolve."""
    z = tensor(np.append(POINTS, 0.0)).requires_grad_()
    (expected,) = torch.autograd.grad(ACTIVATIONS[name].tensor_function(z).sum(), z)
    derivative = derivative_of(ACTIVATIONS[name], z.detach())
    torch.testing.assert_close(derivative, expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_matches_automatic_differentiation(name):
    activation, z = ACTIVATIONS[name], tensor(POINTS).requires_grad_()
    derivative = derivative_of(activation, z)
    expected = torch.zeros_like(z)
    if derivative.requires_grad:
        (expected,) = torch.autograd.grad(derivative.sum(), z)
    z = z.detach()
    second_derivative = activation.tensor_second_derivative(z, activation.tensor_function(z))
    torch.testing.assert_close(second_derivative, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_tensor_functions_keep_shape_and_dtype(name, dtype):
    z = torch.linspace(-3.0, 3.0, 24, dtype=dtype).reshape(2, 3, 4)
    activation = ACTIVATIONS[name]
    for values in (activation.tensor_function(z), derivative_of(activation, z)):
        assert values.dtype == dtype
        assert values.shape == z.shape


@pytest.mark.parametrize("name", names_with(symmetry="odd"))
def test_odd_identity(name):
    activation = ACTIVATIONS[name]
    expected = activation.flip - activation.function(POINTS)
    assert activation.has_sign_flip
    assert not activation.has_linear_flip
    np.testing.assert_allclose(activation.function(-POINTS), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", names_with(symmetry="even_linear"))
def test_even_linear_identity(name):
    activation = ACTIVATIONS[name]
    expected = activation.function(POINTS) - activation.flip * POINTS
    assert activation.has_sign_flip
    assert activation.has_linear_flip
    assert largest_error(activation.function(-POINTS), expected, POINTS) < 1e-15


@pytest.mark.parametrize("name", names_with(symmetry="none"))
def test_no_flip_identity_where_none_is_claimed(name):
    """Both ``s(z) + s(-z) - 2 s(0)`` and ``s(z) - s(-z)`` are nonlinear functions of ``z``."""
    activation = ACTIVATIONS[name]
    z = np.array([0.5, 1.0, 2.0])
    even = activation.function(z) + activation.function(-z) - 2.0 * activation.function(np.zeros(1))
    odd = activation.function(z) - activation.function(-z)
    assert not activation.has_sign_flip
    assert np.abs(even).max() > 0.1
    assert np.ptp(odd / z) > 0.1


@pytest.mark.parametrize("scale", [1e-3, 0.7, 250.0])
@pytest.mark.parametrize("name", NAMES)
def test_positive_homogeneity(name, scale):
    activation = ACTIVATIONS[name]
    holds = np.allclose(
        activation.function(scale * POINTS), scale * activation.function(POINTS), rtol=1e-14, atol=0
    )
    assert holds == activation.homogeneous


@pytest.mark.parametrize(
    ("name", "slope"),
    [("leaky_relu", LEAKY_RELU_SLOPE), ("leaky_relu(0.2)", 0.2), ("leaky_relu(1e-3)", 1e-3)],
)
def test_leaky_relu_has_the_slope_of_its_name(name, slope):
    assert leaky_relu_slope(name) == slope
    activation, z = get_activation(name), np.array([-2.0, 3.0])
    np.testing.assert_array_equal(activation.function(z), [-2.0 * slope, 3.0])
    np.testing.assert_array_equal(activation.tensor_function(tensor(z)), [-2.0 * slope, 3.0])
    np.testing.assert_array_equal(derivative_of(activation, tensor(z)), [slope, 1.0])
    flipped = activation.function(z) - activation.flip * z
    np.testing.assert_allclose(activation.function(-z), flipped, rtol=0, atol=1e-15)
    assert get_activation(name) is activation


@pytest.mark.parametrize("slope", ["0", "1", "2", "-0.2", "nan", "", "0.2, 3", "x"])
def test_slopes_outside_of_0_to_1_are_refused(slope):
    name = f"leaky_relu({slope})"
    assert not is_activation(name)
    with pytest.raises(ValueError, match=r"'leaky_relu\(0.2\)' for a slope between 0 and 1"):
        get_activation(name)


def test_other_activations_have_no_slope():
    assert [name for name in NAMES if leaky_relu_slope(name) is not None] == ["leaky_relu"]
    assert not is_activation("elu(0.2)")


@pytest.mark.parametrize("name", ["softplus", "g"])
def test_softplus_is_accurate_where_torch_switches_to_the_identity(name):
    z = np.linspace(20.0, 40.0, 401)
    small = np.log1p(np.exp(-z))  # softplus(z) = z + small
    expected = z + small + (1.0 if name == "g" else 0.0)
    assert small.max() > 1e-9
    for actual in (
        ACTIVATIONS[name].function(z),
        ACTIVATIONS[name].tensor_function(tensor(z)).numpy(),
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-15, atol=0)


def test_get_activation_returns_the_table_entry():
    for name, activation in ACTIVATIONS.items():
        assert get_activation(name) is activation


@pytest.mark.parametrize("unknown", ["step", "", None, 3, np.tanh, ["relu"]])
def test_get_activation_error_lists_the_names(unknown):
    with pytest.raises(ValueError, match="Unknown activation") as error:
        get_activation(unknown)
    assert repr(unknown) in str(error.value)
    assert all(name in str(error.value) for name in NAMES)


def test_get_activation_error_translates_names():
    with pytest.raises(ValueError, match="Unknown activation 'Swish': did you mean 'silu'"):
        get_activation("Swish")
