"""How students start: at random, with neurons that others share, or grown from a network."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from builders import planted, planted_deep, random_network, settings_with
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.students import grown, initial_weights, with_shared_neurons
from sklearn_ec._expand.training import StudentTrainer

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
        np.arange(3), (5, 4), max_iter=10, tol=0.0, start=network
    )
    assert students.loss_curves[:, 0].max() < 1e-28  # that of the network
    assert [layer.shape[1] for layer in students.layers] == [5, 4, 1]


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_students_of_one_layer_grow_with_the_skip_terms_of_all(activation):
    network, polisher, _ = planted(activation, settings=settings_with(warm_up={"steps": 0}))
    trainer = StudentTrainer(polisher)
    shapes = [layer.shape for layer in trainer.warmed_up(np.arange(2), (6,)).layers]
    state = trainer.warmed_up(np.arange(2), (6,), start=network)
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
