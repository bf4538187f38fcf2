"""Sentences that name likely mistakes."""

import math

import numpy as np
import pytest

from sklearn_ec._core.activations import ACTIVATIONS
from sklearn_ec._core.hints import (
    ALIASES,
    UNSUPPORTED,
    activation_hint,
    angle_hint,
    counted_output_hint,
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sigmoid", "logistic"),
        ("swish", "silu"),
        ("ReLU", "relu"),
        ("SiLU", "silu"),
        ("GELU", "gelu"),
        ("Tanh", "tanh"),
        ("tahn", "tanh"),
        ("soft-plus", "softplus"),
        ("lrelu", "leaky_relu"),
    ],
)
def test_names_of_other_libraries_are_translated(name, meant):
    assert activation_hint(name, ACTIVATIONS) == f"did you mean {meant!r}?"


@pytest.mark.parametrize("name", ["leakyrelu", "LeakyReLU", "leaky_relu(2)", "LeakyReLU(0.2)"])
def test_the_slope_of_leaky_relu_is_explained(name):
    assert activation_hint(name, ACTIVATIONS).startswith("give 'leaky_relu', or 'leaky_relu(0.2)'")


@pytest.mark.parametrize("name", ["mish", "gelu_tanh", "linear", "identity", "Softsign", "SELU"])
def test_what_is_not_supported_is_said(name):
    hint = 'it is not supported, see "What is identifiable" in the user guide.'
    assert activation_hint(name, ACTIVATIONS) == hint


def test_other_names_get_the_list():
    hint = activation_hint("step", ACTIVATIONS)
    assert hint == f"choose one of {', '.join(sorted(ACTIVATIONS))}."


def test_the_tables_of_names_agree():
    known = {name.replace("_", "") for name in ACTIVATIONS}
    assert set(ALIASES.values()) <= set(ACTIVATIONS)
    assert not known & {*ALIASES, *UNSUPPORTED.split()}
    assert not set(ALIASES) & set(UNSUPPORTED.split())


@pytest.mark.parametrize("angle", [30, 30.0, np.float64(30)])
def test_degrees_are_turned_into_radians(angle):
    hint = angle_hint(angle)
    assert hint == "it is an angle in radians, for 30 degrees give math.radians(30)."


@pytest.mark.parametrize("angle", [0.0, math.pi, -1, np.nan, "30", None])
def test_other_angles_are_left_to_the_usual_checks(angle):
    assert angle_hint(angle) == ""


@pytest.mark.parametrize(
    ("sizes", "n_outputs", "meant"),
    [
        ((3, 1), 1, "(3,)"),
        ([5, 4, 2], 2, "(5, 4)"),
        (np.array([3, 1]), 1, "(3,)"),
        ((3, 2), 1, ""),
        ((1,), 1, ""),
        (1, 1, ""),
        ("auto", 1, ""),
    ],
)
def test_an_output_layer_among_the_hidden_ones_is_noticed(sizes, n_outputs, meant):
    expected = f"hidden_layer_sizes counts hidden layers only: did you mean {meant}?"
    assert counted_output_hint(sizes, n_outputs) == (expected if meant else "")
