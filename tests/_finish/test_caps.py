"""How far the loss may rise when neurons go."""

import pytest
from numpy.testing import assert_allclose

from builders import (
    planted,
)
from sklearn_ec._core.records import Network
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._finish.caps import ExactCap, NoiseCap


def test_exact_cap_follows_the_lowest_loss():
    network, _, _ = planted("tanh")
    cap = ExactCap(1e-8, 0.0, DEFAULTS)
    assert_allclose(cap.allowed(network), 1e-7)
    cap.update(network, 5e-8)  # above the lowest so far
    assert_allclose(cap.allowed(network), 1e-7)
    cap.update(network, 1e-12)
    assert_allclose(cap.allowed(network), 1e-11)
    cap.update(network, 1e-32)
    assert_allclose(cap.allowed(network), 1e-24)  # lower losses are rounding


@pytest.mark.parametrize("rounding_loss", [0.0, 1e-8])
def test_exact_cap_allows_rounding(rounding_loss):
    """Of the targets, once it is reached, and of the arithmetic, even from a loss of zero."""
    network, _, _ = planted("tanh")
    cap = ExactCap(1e-6, rounding_loss, DEFAULTS)
    assert_allclose(cap.allowed(network), 1e-5)
    cap.update(network, 0.5e-8)
    assert_allclose(cap.allowed(network), rounding_loss or 5e-8)
    cap.update(network, 0.0)
    assert cap.allowed(network) == (rounding_loss or 1e-24)
    assert ExactCap(0.0, rounding_loss, DEFAULTS).allowed(network) == (rounding_loss or 1e-24)


def test_noise_cap_is_the_loss_of_equal_criterion():
    """``N ln(loss) + P ln(N)`` of the lowest so far: 16 parameters, and 11 with a neuron less."""
    network, _, _ = planted("tanh")
    smaller = Network((network.layers[0][1:], network.layers[1][:, 1:]))
    cap = NoiseCap(network, 1e-4, 200, DEFAULTS.noise)
    assert_allclose(cap.allowed(network), 1e-4)
    allowed = 1e-4 * 200 ** (5 / 200)
    assert_allclose(cap.allowed(smaller), allowed)
    cap.update(smaller, 1.01 * allowed)  # above the lowest so far
    assert_allclose(cap.allowed(smaller), allowed)
    cap.update(smaller, 0.5 * allowed)
    assert_allclose(cap.allowed(smaller), 0.5 * allowed)
    assert_allclose(cap.allowed(network), 0.5e-4)
