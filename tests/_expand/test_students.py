"""How students start: at random, with neurons that others share, or grown from a network."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from builders import ALL_LARGE, evaluate, planted, planted_deep, random_network, settings_with
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs, solve_readout
from sklearn_ec._core.records import Network
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.students import added, grown, initial_weights, with_shared_neurons
from sklearn_ec._expand.training import StudentTrainer
from sklearn_ec._expand.warm_up import Start

X = np.random.default_rng(0).normal(size=(50, 3))


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("widths", [(2,), (3, 2), (2, 3, 2)])
def test_a_grown_network_computes_the_same(widths, has_skip):
    network = random_network(np.random.default_rng(0), widths, 3, 2)
    network = with_skip(network) if has_skip else network
    activation = get_activation("softplus")
    wider = tuple(width + extra for width, extra in zip(widths, (2, 0, 1), strict=False))
    larger = grown(network, wider, np.random.default_rng(1))
    assert larger.widths == wider
    assert larger.has_skip == has_skip
    expected = network_outputs(network, X, activation)
    assert_allclose(network_outputs(larger, X, activation), expected, rtol=1e-12)
    fresh = larger.layers[0][widths[0] :]
    assert (fresh != 0).all()
    other = grown(network, wider, np.random.default_rng(2))
    assert (other.layers[0][widths[0] :] != fresh).all()


def test_shared_neurons_come_first_and_a_fifth_of_a_layer_stays_random():
    layers = initial_weights(np.arange(4), 3, (6, 5), 1, False)
    before = [layer.copy() for layer in layers]
    first, second = np.full((2, 4), 7.0), np.full((9, 3), 8.0)  # more than the layer takes
    layers = with_shared_neurons(layers, [first, second])
    assert (layers[0][:, :2] == 7.0).all()
    assert_array_equal(layers[0][:, 2:], before[0][:, 2:])
    # Those of the second layer read the two of the first and the bias.
    assert (layers[1][:, :4, [0, 1, -1]] == 8.0).all()
    assert (layers[1][:, :4, 2:-1] == 0.0).all()
    assert_array_equal(layers[1][:, 4:], before[1][:, 4:])
    assert_array_equal(layers[2], before[2])
    assert with_shared_neurons(before, ()) is before


def test_students_grow_without_a_warm_up():
    network, polisher, _ = planted_deep("tanh")
    students = StudentTrainer(polisher).train(
        np.arange(3), (5, 4), max_iter=10, tol=0.0, start=Start(network=network)
    )
    assert students.loss_curves[:, 0].max() < 1e-28  # that of the network
    assert [layer.shape[1] for layer in students.layers] == [5, 4, 1]


def test_students_expand_above_collapsed_layers():
    """Those above are random, one seed per student, but for the readout."""
    network, polisher, _ = planted_deep("tanh")
    lower = network.layers[:1]
    state = StudentTrainer(polisher).warmed_up(
        np.arange(3), (len(lower[0]), 8), start=Start(collapsed=lower)
    )
    hidden = [layer[0] for layer in state.layers[:-1]]
    assert (state.layers[0] == lower[0]).all()
    assert state.layers[1].shape[1] == 8
    assert (state.layers[1][0] != state.layers[1][1]).all()
    readout = solve_readout(hidden, polisher.samples, polisher.activation, False)
    assert_allclose(state.layers[-1][0], readout.layers[-1], rtol=1e-12)
    assert state.losses.max() < 0.1  # random neurons on the right ones explain most


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_students_of_one_layer_grow_with_the_skip_terms_of_all(activation):
    network, polisher, _ = planted(activation, settings=settings_with(warm_up={"steps": 0}))
    trainer = StudentTrainer(polisher)
    shapes = [layer.shape for layer in trainer.warmed_up(np.arange(2), (6,)).layers]
    state = trainer.warmed_up(np.arange(2), (6,), start=Start(network=network))
    assert [layer.shape for layer in state.layers] == shapes
    assert state.losses.max() < 1e-28


def test_levenberg_takes_the_rows_it_is_given_and_the_warm_up_all():
    _, polisher, _ = planted("tanh")
    some = polisher.samples.take(np.arange(60))
    everything, part = (StudentTrainer(polisher, rows) for rows in (None, some))
    seeds, widths = np.arange(2), (6,)
    for layer, same in zip(
        everything.warmed_up(seeds, widths).layers,
        part.warmed_up(seeds, widths).layers,
        strict=True,
    ):
        assert_array_equal(layer, same)
    students = part.train(seeds, widths, max_iter=20, tol=0.0)
    networks = [students.network(student) for student in range(2)]
    errors = [network_outputs(n, some.X, polisher.activation) - some.y for n in networks]
    assert_allclose(students.losses, [np.mean(error**2) for error in errors], rtol=1e-6)


def test_large_students_grow_by_neurons_that_learned_the_residual():
    """A network without one of its neurons, whose place random ones do not take."""
    settings = settings_with(base=ALL_LARGE, warm_up={"large_steps": 2000})
    network, polisher, _ = planted("relu", width=4, settings=settings)
    hidden, readout = network.layers
    lacking = Network((hidden[1:], np.delete(readout, 0, axis=1)))
    loss = polisher.losses([layer[None] for layer in lacking.layers])[0]
    state = StudentTrainer(polisher).warmed_up(np.arange(3), (6,), start=Start(network=lacking))
    assert [layer.shape[1] for layer in state.layers] == [6, 1]
    assert_array_equal(state.layers[0][:, :3], np.repeat(hidden[None, 1:], 3, axis=0))
    assert state.losses.min() < 0.1 * loss


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_sum_of_networks_computes_their_sum(activation):
    rng = np.random.default_rng(0)
    network, other = (random_network(rng, (width,), 3, 2) for width in (4, 2))
    X = rng.normal(size=(20, 3))
    both = added(network, other, 0.5)
    assert both.widths == (6,)
    activation = get_activation(activation)
    expected = evaluate(network, activation, X) + 0.5 * evaluate(other, activation, X)
    assert_allclose(evaluate(both, activation, X), expected, rtol=1e-12, atol=1e-14)
