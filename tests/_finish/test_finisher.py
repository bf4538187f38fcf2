"""The order of finishing: polish, prune, resolve signs, certify; on planted networks."""

import dataclasses
import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from builders import (
    ALL_LARGE,
    open_in_one_neuron,
    plain,
    planted,
    planted_deep,
    settings_with,
    with_duplicates,
    with_noise,
    with_spare_neurons,
)
from sklearn_ec._certify.examination import certify
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.forward import network_outputs
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._expand.students import grown
from sklearn_ec._finish import finisher, pruning
from sklearn_ec._finish.caps import ExactCap
from sklearn_ec._finish.finisher import Candidate, Finisher
from sklearn_ec._finish.pruning import prune, pruning_path
from sklearn_ec._solvers.jacobian import stacked
from sklearn_ec.metrics import max_cosine_distance


def as_layers(network):
    return [layer[:, :-1].T for layer in network.layers], [a[:, -1] for a in network.layers]


def flipped_into_skip(network, activation):
    """Two hidden layers with the first neuron of each flipped: ``s(z) = s(-z) + c z``."""
    first, second, readout = (layer.copy() for layer in with_skip(network).layers)
    c, n_inputs, n_first, n_second = activation.flip, *network.levels
    own = np.r_[:n_inputs, -1]  # inputs and bias, in the first layer
    of_inputs = np.r_[n_first : n_first + n_inputs, -1]
    second[:, of_inputs] += c * np.outer(second[:, 0], first[0, own])
    first[0] *= -1.0
    readout[:, n_second:] += c * np.outer(readout[:, 0], second[0])
    second[0] *= -1.0
    return Network((first, second, readout))


@pytest.mark.parametrize("activation", ["tanh", "g", "relu", "softplus", "elu"])
def test_finish_finds_the_planted_network(activation):
    network, polisher, held_out = planted(activation)
    start = with_spare_neurons(network, noise=1e-3)
    if polisher.has_skip:
        start = with_skip(start)
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).finish(start)
    assert candidate.certificate.passed
    assert candidate.network.widths == network.widths
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), activation) < 1e-20


@pytest.mark.parametrize(
    ("activation", "sizes"),
    [
        ("tanh", (3, 4, 3, 1)),
        ("relu", (3, 4, 3, 2)),
        *(
            pytest.param(activation, sizes, marks=pytest.mark.slow)
            for activation, sizes in [
                ("tanh", (3, 4, 3, 2)),
                ("relu", (3, 4, 3, 1)),
                *itertools.product(["softplus", "g"], [(3, 4, 3, 1), (3, 4, 3, 2)]),
                ("tanh", (4, 4, 3, 2, 1)),
            ]
        ),
    ],
)
def test_finish_finds_the_planted_deep_network(activation, sizes):
    network, polisher, held_out = planted_deep(activation, sizes)
    start = with_duplicates(network, noise=1e-3)
    assert start.widths == tuple(2 * width for width in network.widths)
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).finish(start)
    assert candidate.certificate.passed
    assert candidate.network.widths == network.widths
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), activation) < 1e-20


@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_finish_resolves_signs_of_deep_networks(activation):
    network, polisher, held_out = planted_deep(activation)
    start = flipped_into_skip(network, get_activation(activation))
    rows = polisher.samples
    assert_allclose(network_outputs(start, rows.X, polisher.activation), rows.y, atol=1e-12)
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).finish(start)
    assert candidate.certificate.passed
    assert candidate.network.widths == network.widths
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), activation) < 1e-20


def test_large_networks_are_led_out_of_a_corner_where_few_rows_tell():
    """On all rows: no gradient tells two neurons that they should be on in the only row."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(300, 2)), np.zeros(300)])
    X[7] = 0.5, 0.5, 6.0
    incoming = np.array([[1.0, 0.5, 0.3, 0.1], [-0.4, 1.0, 0.4, 0.3]])
    stuck = Network((incoming.copy(), np.array([[1.0, 0.5, 0.0], [-0.6, 1.0, 0.2]])))
    stuck.layers[0][:, 2] = -2.0
    for rare in (X[:, 2], rng.normal(size=300)):
        X = np.column_stack([X[:, :2], rare])
        y = network_outputs(Network((incoming, stuck.layers[1])), X, get_activation("relu"))
        samples = Samples.of(X, y, np.ones(300))
        polisher = Polisher(samples, samples, "relu", "cpu", has_skip=False)
        few = polisher.with_samples(samples.take(np.arange(8, 300)))
        finisher = Finisher(polisher, samples, plain(samples), prune=True)
        freed = finisher._on_all_rows(stuck, 1e-6, few, is_large=True)
        if polisher.has_weak_inputs:
            assert polisher.losses([layer[None] for layer in freed.layers])[0] < 1e-25
        else:
            assert freed is stuck


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_denoise_finds_the_planted_network(activation):
    network, polisher, held_out = planted(activation)
    polisher, held_out = with_noise(polisher, held_out, 1e-3, activation)
    start = with_spare_neurons(network, noise=1e-2)
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).denoise(start)
    assert candidate.network.widths == network.widths
    assert not candidate.network.has_skip
    assert not candidate.certificate.passed
    assert_allclose(candidate.certificate.error, 1e-3, rtol=0.1)
    distance = max_cosine_distance(as_layers(network), as_layers(candidate.network), activation)
    assert 1e-12 < distance < 1e-4


def test_an_exact_network_is_refined_where_noise_was_looked_for(monkeypatch):
    """Students that stopped are denoised; one of them came to 9e-25, and was refused."""
    network, polisher, held_out = planted("tanh")
    rng = np.random.default_rng(0)
    nearby = Network(
        tuple(layer + rng.normal(scale=1e-10, size=layer.shape) for layer in network.layers)
    )
    loss = polisher.losses([layer[None] for layer in nearby.layers])[0]
    monkeypatch.setattr(Polisher, "polish", lambda self, network, *steps, **until: (network, loss))
    monkeypatch.setattr(finisher, "smallest_network", lambda network, *others: (network, loss))
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).denoise(nearby)
    assert candidate.certificate.passed


@pytest.mark.slow
def test_denoise_finds_the_planted_deep_network():
    network, polisher, held_out = planted_deep("tanh", (3, 3, 2, 1))
    polisher, held_out = with_noise(polisher, held_out, 1e-3, "tanh")
    start = with_duplicates(network, noise=1e-2)
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).denoise(start)
    assert candidate.network.widths == network.widths
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), "tanh") < 1e-3


def test_the_most_parsimonious_network_is_within_one_standard_error():
    network, polisher, held_out = planted("tanh")
    _, held_out = with_noise(polisher, held_out, 1e-2, "tanh")
    finisher = Finisher(polisher, held_out, plain(held_out), prune=True)
    wide, wider = with_spare_neurons(network), with_spare_neurons(with_spare_neurons(network))
    certificate = certify(network, polisher.task, polisher.samples, held_out, plain(held_out))
    worse = Network((network.layers[0], network.layers[1] * 1.1))
    best, good, bad = (Candidate(n, certificate) for n in (wider, wide, worse))
    assert finisher.most_parsimonious([best, good, bad]) is good
    assert finisher.most_parsimonious([bad, best]) is best
    assert finisher.most_parsimonious([bad]) is bad
    certificate = dataclasses.replace(certificate, error=-1.0)
    closest = Candidate(wide, certificate)
    assert finisher.most_parsimonious([good, closest, best]) is closest


def test_the_smallest_exact_network_is_the_most_parsimonious():
    """Rounding errors of one may be some times those of the other."""
    network, polisher, held_out = planted("tanh")
    wide = grown(network, (network.widths[0] + 1,), np.random.default_rng(0))
    off = Network((network.layers[0], network.layers[1] * (1.0 + 5e-14)))
    finisher = Finisher(polisher, held_out, plain(held_out), prune=True)
    wide, off, bad = map(
        finisher.judge_as_is, (wide, off, Network((network.layers[0], network.layers[1] * 1.1)))
    )
    assert wide.certificate.held_out_error < off.certificate.held_out_error
    assert finisher.most_parsimonious([bad, wide, off]) is off


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_a_linear_term_becomes_a_pair_of_neurons(activation):
    """A network plus a linear function that no flip of signs absorbs."""
    network, polisher, held_out = planted(activation)
    slope = np.array([0.3, -0.2, 0.5])
    shifted = [
        Samples.of(part.X, part.y + (part.X @ slope)[:, None], part.sample_weight)
        for part in (polisher.samples, held_out)
    ]
    polisher = Polisher(*shifted, activation, "cpu", has_skip=True)
    start = with_linear_term(network, slope)
    candidate = Finisher(polisher, shifted[1], plain(shifted[1]), prune=True).finish(start)
    assert not candidate.network.has_skip
    assert candidate.network.widths <= (5,)  # pruning may find that one neuron does
    assert candidate.certificate.error < 1e-12


def with_linear_term(network, slope):
    """The network plus a linear function of the inputs, in its readout."""
    *hidden, readout = with_skip(network).layers
    readout[:, -len(slope) - 1 : -1] = slope
    return Network((*hidden, readout))


def test_judge_as_is_changes_no_output():
    network, polisher, held_out = planted("relu")
    skip = with_linear_term(network, [0.1, 0.2, 0.3])
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).judge_as_is(skip)
    X = polisher.samples.X
    before = network_outputs(skip, X, polisher.activation)
    after = network_outputs(candidate.network, X, polisher.activation)
    assert not candidate.network.has_skip
    assert_allclose(after, before, rtol=1e-12)
    assert not candidate.certificate.passed


def wrong_until_the_held_out_rows_join(contradiction=0.0, settings=ALL_LARGE):
    """A network that is exact on training rows, but not on the held-out ones.

    Training rows leave the weight of the last input open, which varies in them only where the last
    neuron is off.
    """
    network, polisher, held_out = open_in_one_neuron()
    X = held_out.X.copy()
    X[:, 2] += 1.0
    y = network_outputs(network, X, polisher.activation)
    y[0] += contradiction
    held_out = Samples.of(X, y, held_out.sample_weight)
    wrong = Network((network.layers[0].copy(), network.layers[1]))
    wrong.layers[0][-1, 2] += 1e-6
    polisher = Polisher(
        polisher.samples, held_out, "relu", "cpu", has_skip=False, settings=settings
    )
    return network, wrong, polisher, held_out


def test_held_out_rows_join_where_others_leave_large_networks_open():
    network, wrong, polisher, held_out = wrong_until_the_held_out_rows_join()
    assert (
        1e-8
        < certify(wrong, polisher.task, polisher.samples, held_out, plain(held_out)).held_out_error
        < 1e-5
    )
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).finish(wrong)
    (found, _), (true, _) = candidate.network.layers, network.layers
    assert_allclose(found[-1] / -found[-1, 0], true[-1], atol=1e-12)
    certificate = candidate.certificate
    assert certificate.is_exact
    assert certificate.n_equations == 850
    assert certificate.is_conclusive
    assert not certificate.passed
    assert certificate.obstacle == "no rows left"
    assert "before they joined the training" in certificate.reason


def test_held_out_rows_that_no_network_fits_do_not_join():
    _, wrong, polisher, held_out = wrong_until_the_held_out_rows_join(contradiction=0.1)
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).finish(wrong)
    certificate = candidate.certificate
    assert certificate.fits_exactly
    assert certificate.n_equations == 800
    assert not certificate.is_conclusive
    assert_allclose(certificate.held_out_error, 0.1 * 50**-0.5, rtol=0.01)


def test_held_out_rows_never_join_the_training_of_small_networks():
    _, wrong, polisher, held_out = wrong_until_the_held_out_rows_join(settings=DEFAULTS)
    certificate = (
        Finisher(polisher, held_out, plain(held_out), prune=True).finish(wrong).certificate
    )
    assert certificate.n_equations == 800
    assert certificate.held_out_error > 1e-8


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_large_networks_without_skip_terms_turn_neurons_round(noise):
    """``relu(z) = relu(-z) + relu(z + c) - c`` on rows of ``z > -c``: two neurons for one."""
    network, polisher, held_out = planted("relu", settings=ALL_LARGE)
    polisher = Polisher(
        polisher.samples, held_out, "relu", "cpu", has_skip=False, settings=ALL_LARGE
    )
    (hidden, readout), X = network.layers, polisher.samples.X
    offset = 1.01 * np.abs(X @ hidden[0, :-1] + hidden[0, -1]).max()
    undoing = hidden[:1] + offset * np.eye(1, 4, 3)
    turned = np.vstack([-hidden[:1], hidden[1:], undoing])
    bias = readout[:, -1:] - offset * readout[:, :1]
    start = np.hstack([readout[:, :-1], readout[:, :1], bias])
    rng = np.random.default_rng(0)
    start = Network((turned + noise * rng.normal(size=turned.shape), start))
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).finish(start)
    assert candidate.network.widths == network.widths
    assert not candidate.network.has_skip
    assert candidate.certificate.passed
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), "relu") < 1e-20


def test_no_neuron_that_an_exact_large_network_needs_is_tried(monkeypatch):
    network, polisher, _ = planted("tanh", settings=ALL_LARGE)
    duplicated, cap = with_duplicates(network), ExactCap(0.0, 0.0, ALL_LARGE)
    *_, (pruned, loss) = pruning_path(duplicated, 0.0, polisher, cap)
    assert pruned.widths == network.widths
    monkeypatch.setattr(Polisher, "polish", lambda *_, **__: pytest.fail("polished"))
    cap = ExactCap(loss, 0.0, ALL_LARGE)
    assert [n.widths for n, _ in pruning_path(pruned, loss, polisher, cap)] == [(3,)]


@pytest.mark.slow
def test_large_networks_are_polished_to_the_end():
    """The group of spare neurons that goes first is the last one; it is polished roughly."""
    network, polisher, _ = planted("tanh", width=12, settings=ALL_LARGE)
    spare = with_spare_neurons(network, noise=1e-4)
    loss = float(polisher.task.losses(stacked(spare, "cpu"))[0])
    pruned, pruned_loss = prune(spare, loss, polisher)
    assert pruned.widths == (12,)
    assert pruned_loss < 1e-20 < loss


def test_no_network_is_finished_twice(monkeypatch):
    """Students that stopped while they trained are finished at the end, as they were before."""
    network, polisher, held_out = planted("tanh", width=4)
    finish = Finisher(polisher, held_out, plain(held_out), prune=True).finish
    first = finish(with_spare_neurons(network, noise=1e-3))
    monkeypatch.setattr(Finisher, "_finish", lambda *arguments: pytest.fail("finished again"))
    assert finish(with_spare_neurons(network, noise=1e-3)) is first


def test_finisher_without_pruning_keeps_the_width():
    network, polisher, held_out = planted("tanh")
    spare = with_spare_neurons(network)
    candidate = Finisher(polisher, held_out, plain(held_out), prune=False).finish(spare)
    assert candidate.network.widths == spare.widths
    assert candidate.network.layers[0].shape == spare.layers[0].shape


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_certificate_ends_the_pruning(activation, monkeypatch):
    """No removal is tried that would only confirm that a certified network has none to spare."""
    network, polisher, held_out = planted_deep(activation)
    finisher = Finisher(polisher, held_out, plain(polisher.samples), prune=True)
    tried = []
    original = pruning.without_neurons

    def spy(network, polisher, removal):
        tried.append(removal.cost)
        return original(network, polisher, removal)

    monkeypatch.setattr(pruning, "without_neurons", spy)
    candidate = finisher.finish(with_duplicates(network))
    assert candidate.certificate.passed
    assert candidate.network.widths == network.widths
    assert tried
    assert max(tried) < 1e-12


def test_networks_that_miss_held_out_rows_lose_neurons_before_they_are_refined(monkeypatch):
    network, polisher, held_out = planted("relu", n_rows=80)
    start, concluded = with_spare_neurons(network, noise=0.3), []
    original = Finisher._concluded

    def spy(finisher, network, loss):
        concluded.append(finisher.polisher.held_out_losses([a[None] for a in network.layers])[0])
        return original(finisher, network, loss)

    monkeypatch.setattr(Finisher, "_concluded", spy)
    candidate = Finisher(polisher, held_out, plain(held_out), prune=True).finish(with_skip(start))
    assert candidate.network.widths == network.widths
    assert len(concluded) == 1
    assert concluded[0] < 1e-18


def test_neurons_that_bend_in_few_rows_are_kept():
    """The share of rows that pruning works on may hold none of them."""
    rng = np.random.default_rng(0)
    hidden = np.array([[1.0, 0.3, 0.2], [-0.5, 1.0, 0.1], [0.2, -1.0, -2.9]])
    network = Network((hidden, np.array([[1.0, -0.8, 3.0, 0.1]])))
    X = rng.normal(size=(4000, 2))
    y = network_outputs(network, X, get_activation("relu"))
    rows = Samples.of(X[:3600], y[:3600], np.ones(3600))
    held_out = Samples.of(X[3600:], y[3600:], np.ones(400))
    active = (X[:3600] @ hidden[2, :2] + hidden[2, 2] > 0).sum()
    assert 4 <= active < 40
    polisher = Polisher(rows, held_out, "relu", "cpu", has_skip=True)
    assert len(rows.thinned(6 * network.n_parameters, seed=0).X) < 100
    candidate = Finisher(polisher, held_out, plain(rows), prune=True).finish(
        with_duplicates(network)
    )
    assert candidate.network.widths == (3,)
    assert candidate.certificate.fits_exactly


@pytest.mark.parametrize(
    ("n_rows", "scale", "off", "is_conclusive"),
    [
        (300, 1e-3, 1e-8, True),
        (300, 1.0, 1e-8, False),  # inputs vary in all directions
        (300, 1e-3, 1e-4, False),  # far from zero
        (20, 1e-3, 1e-8, False),  # too few rows for so many parameters
    ],
)
def test_a_huge_network_near_zero_is_the_last_one_where_few_rows_tell(
    n_rows, scale, off, is_conclusive
):
    """It is not certified."""
    rng = np.random.default_rng(0)
    network, *_ = planted("tanh")
    X = rng.normal(size=(n_rows, 3)) * [1.0, 1.0, scale]
    rows = Samples.of(X, network_outputs(network, X, get_activation("tanh")), np.ones(n_rows))
    settings = settings_with(polish={"most_nearly_exact": 0})
    polisher = Polisher(rows, rows, "tanh", "cpu", has_skip=False, settings=settings)
    near = Network((network.layers[0] + off, network.layers[1]))
    certificate = Finisher(polisher, rows, plain(rows), prune=True).judge_as_is(near).certificate
    assert certificate.is_conclusive == is_conclusive
    assert not certificate.function_certified
