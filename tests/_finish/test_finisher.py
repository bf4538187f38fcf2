"""Pruning, the skip term and the certificate on planted networks."""

import dataclasses
import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sklearn_ec._certify.certificate import certify, relative_error
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import Coordinates, standardize
from sklearn_ec._core.forward import network_outputs, read_features
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.signs import with_skip
from sklearn_ec._expand.training import Trainer
from sklearn_ec._finish.finisher import Candidate, Finisher
from sklearn_ec._finish.pruning import (
    ExactCap,
    NoiseCap,
    Removal,
    cheapest_removal,
    prune,
    pruning_path,
    removal_candidates,
    without_neurons,
)
from sklearn_ec._solvers.jacobian import stacked
from sklearn_ec.datasets import make_teacher
from sklearn_ec.metrics import max_cosine_distance

EPS = np.finfo(float).eps


def plain(samples):
    """Coordinates of rows that are as the user gave them."""
    n_inputs, n_outputs = samples.X.shape[1], samples.y.shape[1]
    return Coordinates(
        x_mean=np.zeros(n_inputs),
        x_scale=np.ones(n_inputs),
        basis=None,
        y_mean=np.zeros(n_outputs),
        y_scale=np.ones(n_outputs),
        y_rounding=EPS,
    )


def planted(activation, width=3, n_rows=400, n_inputs=3, seed=0):
    """A network, a trainer on rows of it, and rows kept out."""
    rng = np.random.default_rng(seed)
    network = Network(
        (rng.normal(size=(width, n_inputs + 1)), np.append(1.0 + rng.random(width), 0.3)[None])
    )
    return network, *rows_of(network, activation, n_rows, rng)


def planted_deep(activation, sizes=(3, 4, 3, 1), n_rows=1000):
    """The same with several hidden layers."""
    teacher = make_teacher(
        sizes[0], sizes[1:-1], sizes[-1], activation, family="deep", random_state=0
    )
    pairs = zip(teacher.weights_, teacher.biases_, strict=True)
    network = Network(tuple(np.hstack([w.T, b[:, None]]) for w, b in pairs))
    return network, *rows_of(network, activation, n_rows, np.random.default_rng(0))


def rows_of(network, name, n_rows, rng):
    activation, parts = get_activation(name), []
    for n in (n_rows, 50):
        X = rng.normal(size=(n, network.levels[0]))
        parts.append(Samples(X, network_outputs(network, X, activation), np.ones(n)))
    return Trainer(*parts, name, "cpu", activation.has_linear_flip), parts[1]


def with_spare_neurons(network, noise=0.0, seed=1):
    """A duplicate that shares a neuron's outgoing weight, a zero group and a junk neuron."""
    rng = np.random.default_rng(seed)
    hidden, readout = network.layers
    width = network.widths[0]
    extra = rng.normal(size=(2, hidden.shape[1]))
    hidden = np.vstack([hidden, hidden[:1], extra[:1], extra[:1], extra[1:]])
    outgoing = readout[:, :width].copy()
    half = 0.5 * outgoing[:, :1]
    outgoing[:, :1] = half
    spare = np.array([[0.4, -0.4, 1e-3]])
    readout = np.hstack([outgoing, half, spare, readout[:, width:]])
    return Network((hidden + noise * rng.normal(size=hidden.shape), readout))


def with_duplicates(network, noise=0.0, seed=1):
    """Every hidden layer with each neuron twice, the outgoing weights split unevenly."""
    rng = np.random.default_rng(seed)
    layers = list(network.layers)
    for depth, width in enumerate(network.widths):
        share = rng.uniform(0.2, 0.8, size=width)
        outgoing, bias = layers[depth + 1][:, :width], layers[depth + 1][:, width:]
        layers[depth] = np.vstack([layers[depth], layers[depth]])
        layers[depth + 1] = np.hstack([outgoing * share, outgoing * (1 - share), bias])
    return Network(tuple(a + noise * rng.normal(size=a.shape) for a in layers))


def with_noise(trainer, held_out, noise, name):
    """A trainer and held-out rows with noise in their targets."""
    rng = np.random.default_rng(0)
    parts = [
        Samples(part.X, part.y + noise * rng.normal(size=part.y.shape), part.sample_weight)
        for part in (trainer.samples, held_out)
    ]
    return Trainer(*parts, name, "cpu", trainer.has_skip), parts[1]


def as_layers(network):
    return [layer[:, :-1].T for layer in network.layers], [a[:, -1] for a in network.layers]


@pytest.mark.parametrize("activation", ["tanh", "g", "relu", "softplus", "elu"])
def test_finish_finds_the_planted_network(activation):
    network, trainer, held_out = planted(activation)
    start = with_spare_neurons(network, noise=1e-3)
    if trainer.has_skip:
        start = with_skip(start)
    candidate = Finisher(trainer, held_out, plain(held_out), prune=True).finish(start)
    assert candidate.certificate.passed
    assert candidate.network.widths == network.widths
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), activation) < 1e-20


@pytest.mark.parametrize(
    ("activation", "sizes"),
    [
        *itertools.product(["tanh", "softplus", "g", "relu"], [(3, 4, 3, 1), (3, 4, 3, 2)]),
        ("tanh", (4, 4, 3, 2, 1)),
    ],
)
def test_finish_finds_the_planted_deep_network(activation, sizes):
    network, trainer, held_out = planted_deep(activation, sizes)
    start = with_duplicates(network, noise=1e-3)
    assert start.widths == tuple(2 * width for width in network.widths)
    candidate = Finisher(trainer, held_out, plain(held_out), prune=True).finish(start)
    assert candidate.certificate.passed
    assert candidate.network.widths == network.widths
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), activation) < 1e-20


@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_finish_resolves_signs_of_deep_networks(activation):
    network, trainer, held_out = planted_deep(activation)
    start = flipped_into_skip(network, get_activation(activation))
    rows = trainer.samples
    assert_allclose(network_outputs(start, rows.X, trainer.activation), rows.y, atol=1e-12)
    candidate = Finisher(trainer, held_out, plain(held_out), prune=True).finish(start)
    assert candidate.certificate.passed
    assert candidate.network.widths == network.widths
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), activation) < 1e-20


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


def test_prune_keeps_necessary_neurons():
    network, trainer, _ = planted("tanh", width=4)
    pruned, loss = prune(network, 1e-31, trainer)
    assert pruned.widths == (4,)
    assert loss < 1e-24


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_prune_keeps_necessary_neurons_of_all_layers(activation):
    network, trainer, _ = planted_deep(activation)
    start = with_skip(network) if trainer.has_skip else network
    pruned, loss = prune(start, 1e-31, trainer)
    assert pruned.widths == (4, 3)
    assert loss < 1e-24


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_prune_finds_the_one_layer_that_is_too_wide(activation, layer):
    network, trainer, _ = planted_deep(activation)
    layers = list(network.layers)
    layers[layer] = np.vstack([layers[layer], layers[layer][:1]])
    halves = layers[layer + 1][:, :1] * 0.5
    outgoing = layers[layer + 1][:, 1 : network.widths[layer]]
    layers[layer + 1] = np.hstack([halves, outgoing, halves, layers[layer + 1][:, -1:]])
    start = Network(tuple(layers))
    pruned, loss = prune(with_skip(start) if trainer.has_skip else start, 1e-31, trainer)
    assert pruned.widths == (4, 3)
    assert loss < 1e-24


def test_candidates_are_the_neurons_of_least_cost():
    """Brute force: remove each neuron, solve the readout again, compare the errors."""
    network, trainer, _ = planted("tanh", width=4)
    spare = with_spare_neurons(network)
    costs = [error_without(spare, [neuron], trainer) for neuron in range(spare.widths[0])]
    first = removal_candidates(spare, trainer, 0, group=1)
    assert len(first) == 3
    assert all(removal.layer == 0 for removal in first)
    needed = {1, 2, 3}  # all but one neuron of each duplicated pair, and the junk neuron, may go
    found = [int(removal.neurons[0]) for removal in first]
    assert not needed & set(found)
    assert max(costs[i] for i in found) < 1e-20 < min(costs[i] for i in needed)
    assert max(removal.cost for removal in first) < 1e-20


def error_without(network, neurons, trainer):
    """Squared error without some neurons of the only hidden layer, the readout solved again."""
    samples = trainer.samples
    hidden = np.delete(network.layers[0], neurons, axis=0)
    design = read_features([hidden], samples.X, trainer.activation, network.has_skip)
    solution = np.linalg.lstsq(design, samples.y, rcond=1e-14)[0]
    return np.sum((design @ solution - samples.y) ** 2)


def test_costs_are_the_rise_of_the_squared_error():
    network, trainer, _ = planted("tanh", width=4)
    removals = removal_candidates(network, trainer, 0, group=1)
    assert [removal.cost for removal in removals] == sorted(removal.cost for removal in removals)
    for removal in removals:
        assert_allclose(removal.cost, error_without(network, removal.neurons, trainer), rtol=1e-6)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_candidates_of_deep_networks_cost_nothing_where_neurons_are_spare(layer, has_skip, group):
    network, trainer, _ = planted_deep("softplus")
    spare = with_duplicates(network)
    spare = with_skip(spare) if has_skip else spare
    for removal in removal_candidates(spare, trainer, layer, group):
        assert removal.layer == layer
        assert len(np.unique(removal.neurons % network.widths[layer])) == group  # one of each pair
        assert removal.cost < 1e-18
        smaller = without_neurons(spare, trainer, removal)
        expected = list(spare.widths)
        expected[layer] -= group
        assert smaller.widths == tuple(expected)
        assert smaller.has_skip == has_skip
        outputs = network_outputs(smaller, trainer.samples.X, trainer.activation)
        assert_allclose(outputs, trainer.samples.y, rtol=0, atol=1e-9)
    exact = with_skip(network) if has_skip else network
    for removal in removal_candidates(exact, trainer, layer, group=1):
        assert removal.cost > 1e-6


def test_neurons_that_several_layers_read_are_replaced_in_all_of_them():
    """A neuron that the second layer ignores, and the readout reads past it, is no spare one."""
    network, trainer, _ = planted_deep("softplus")
    start = with_skip(network)
    start.layers[1][:, 0] = 0.0
    bypass = start.columns(2, 1).start
    start.layers[2][:, bypass] = 1.0
    y = network_outputs(start, trainer.samples.X, trainer.activation)
    rows = Samples(trainer.samples.X, y, trainer.samples.sample_weight)
    trainer = Trainer(rows, rows, "softplus", "cpu", has_skip=True)
    removals = removal_candidates(start, trainer, 0, group=1)
    costs = {int(removal.neurons[0]): removal.cost for removal in removals}
    assert 0 not in costs or costs[0] > 1e-6
    without = without_neurons(start, trainer, Removal(0, np.array([0]), 0.0))
    outputs = network_outputs(without, rows.X, trainer.activation)
    assert np.abs(outputs - y).max() > 1e-3
    assert without.widths == (3, 3)


def test_a_group_of_candidates_is_jointly_superfluous():
    network, trainer, _ = planted("tanh", width=4)
    spare = with_spare_neurons(network)
    (group,) = removal_candidates(spare, trainer, 0, group=4)
    design = read_features(
        [np.delete(spare.layers[0], group.neurons, axis=0)],
        trainer.samples.X,
        trainer.activation,
        False,
    )
    solution = np.linalg.lstsq(design, trainer.samples.y, rcond=1e-14)[0]
    assert_allclose(design @ solution, trainer.samples.y, atol=1e-12)


def test_exact_cap_follows_the_lowest_loss():
    network, _, _ = planted("tanh")
    cap = ExactCap(1e-8, 0.0)
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
    cap = ExactCap(1e-6, rounding_loss)
    assert_allclose(cap.allowed(network), 1e-5)
    cap.update(network, 0.5e-8)
    assert_allclose(cap.allowed(network), rounding_loss or 5e-8)
    cap.update(network, 0.0)
    assert cap.allowed(network) == (rounding_loss or 1e-24)
    assert ExactCap(0.0, rounding_loss).allowed(network) == (rounding_loss or 1e-24)


def test_noise_cap_is_the_loss_of_equal_criterion():
    """``N ln(loss) + P ln(N)`` of the lowest so far: 16 parameters, and 11 with a neuron less."""
    network, _, _ = planted("tanh")
    smaller = Network((network.layers[0][1:], network.layers[1][:, 1:]))
    cap = NoiseCap(network, 1e-4, n_equations=200)
    assert_allclose(cap.allowed(network), 1e-4)
    allowed = 1e-4 * 200 ** (5 / 200)
    assert_allclose(cap.allowed(smaller), allowed)
    cap.update(smaller, 1.01 * allowed)  # above the lowest so far
    assert_allclose(cap.allowed(smaller), allowed)
    cap.update(smaller, 0.5 * allowed)
    assert_allclose(cap.allowed(smaller), 0.5 * allowed)
    assert_allclose(cap.allowed(network), 0.5e-4)


@pytest.mark.parametrize("noise", [0.0, 1e-2])
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_a_pruning_path_leads_down_below_the_cap(activation, noise):
    network, trainer, held_out = planted(activation)
    trainer, _ = with_noise(trainer, held_out, noise, activation)
    start = with_spare_neurons(network, noise=1e-3)
    start = with_skip(start) if trainer.has_skip else start
    start, loss = trainer.polish(start, 100)
    cap = NoiseCap(start, loss, 400) if noise else ExactCap(loss, 0.0)
    path = list(pruning_path(start, loss, trainer, cap))
    assert path[0] == (start, loss)
    assert path[-1][0].widths == network.widths
    neurons = [sum(member.widths) for member, _ in path]
    assert all(after < before for before, after in itertools.pairwise(neurons))
    for member, member_loss in path:
        assert_allclose(float(trainer.task.losses(stacked(member, "cpu"))[0]), member_loss)
    again = NoiseCap(start, loss, 400) if noise else ExactCap(loss, 0.0)
    for member, member_loss in path[1:]:
        assert member_loss <= again.allowed(member)
        again.update(member, member_loss)
    assert cap.allowed(network) == again.allowed(network)


def test_groups_go_before_single_neurons():
    network, trainer, _ = planted("tanh", width=2)
    start = with_duplicates(with_duplicates(with_duplicates(network)))
    path = list(pruning_path(start, 1e-30, trainer, ExactCap(1e-30, 0.0)))
    assert [member.widths[0] for member, _ in path][:3] == [16, 12, 9]
    assert path[-1][0].widths == (2,)


def test_the_cheapest_removal_is_the_best_polished_network():
    """Brute force: remove each neuron, polish, compare."""
    network, trainer, held_out = planted("tanh", width=4)
    trainer, _ = with_noise(trainer, held_out, 1e-2, "tanh")
    losses = []
    for neuron in range(4):
        removal = Removal(0, np.array([neuron]), 0.0)
        losses.append(trainer.polish(without_neurons(network, trainer, removal), 1000)[1])
    smaller, loss = cheapest_removal(network, 0.0, trainer)
    assert smaller.widths == (3,)
    assert_allclose(loss, min(losses), rtol=1e-2)


def test_networks_of_single_neurons_lose_none():
    network, trainer, _ = planted_deep("tanh", (3, 1, 1, 1), n_rows=200)
    assert cheapest_removal(network, 0.0, trainer) is None
    assert list(pruning_path(network, 0.0, trainer, ExactCap(0.0, 0.0))) == [(network, 0.0)]


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_denoise_finds_the_planted_network(activation):
    network, trainer, held_out = planted(activation)
    trainer, held_out = with_noise(trainer, held_out, 1e-3, activation)
    start = with_spare_neurons(network, noise=1e-2)
    candidate = Finisher(trainer, held_out, plain(held_out), prune=True).denoise(start)
    assert candidate.network.widths == network.widths
    assert not candidate.network.has_skip
    assert not candidate.certificate.passed
    assert_allclose(candidate.certificate.error, 1e-3, rtol=0.1)
    distance = max_cosine_distance(as_layers(network), as_layers(candidate.network), activation)
    assert 1e-12 < distance < 1e-4


def test_denoise_finds_the_planted_deep_network():
    network, trainer, held_out = planted_deep("tanh", (3, 3, 2, 1))
    trainer, held_out = with_noise(trainer, held_out, 1e-3, "tanh")
    start = with_duplicates(network, noise=1e-2)
    candidate = Finisher(trainer, held_out, plain(held_out), prune=True).denoise(start)
    assert candidate.network.widths == network.widths
    assert max_cosine_distance(as_layers(network), as_layers(candidate.network), "tanh") < 1e-3


def test_the_most_parsimonious_network_is_within_one_standard_error():
    network, trainer, held_out = planted("tanh")
    _, held_out = with_noise(trainer, held_out, 1e-2, "tanh")
    finisher = Finisher(trainer, held_out, plain(held_out), prune=True)
    wide, wider = with_spare_neurons(network), with_spare_neurons(with_spare_neurons(network))
    certificate = certify(network, trainer.task, trainer.samples, held_out, plain(held_out))
    worse = Network((network.layers[0], network.layers[1] * 1.1))
    best, good, bad = (Candidate(n, certificate) for n in (wider, wide, worse))
    assert finisher.most_parsimonious([best, good, bad]) is good
    assert finisher.most_parsimonious([bad, best]) is best
    assert finisher.most_parsimonious([bad]) is bad
    certificate = dataclasses.replace(certificate, error=-1.0)
    closest = Candidate(wide, certificate)
    assert finisher.most_parsimonious([good, closest, best]) is closest


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_a_linear_term_becomes_a_pair_of_neurons(activation):
    """A network plus a linear function that no flip of signs absorbs."""
    network, trainer, held_out = planted(activation)
    slope = np.array([0.3, -0.2, 0.5])
    shifted = [
        Samples(part.X, part.y + (part.X @ slope)[:, None], part.sample_weight)
        for part in (trainer.samples, held_out)
    ]
    trainer = Trainer(*shifted, activation, "cpu", has_skip=True)
    start = with_linear_term(network, slope)
    candidate = Finisher(trainer, shifted[1], plain(shifted[1]), prune=True).finish(start)
    assert not candidate.network.has_skip
    assert candidate.network.widths == (5,)
    assert candidate.certificate.error < 1e-12


def with_linear_term(network, slope):
    """The network plus a linear function of the inputs, in its readout."""
    *hidden, readout = with_skip(network).layers
    readout[:, -len(slope) - 1 : -1] = slope
    return Network((*hidden, readout))


def test_judge_as_is_changes_no_output():
    network, trainer, held_out = planted("relu")
    skip = with_linear_term(network, [0.1, 0.2, 0.3])
    candidate = Finisher(trainer, held_out, plain(held_out), prune=True).judge_as_is(skip)
    X = trainer.samples.X
    before = network_outputs(skip, X, trainer.activation)
    after = network_outputs(candidate.network, X, trainer.activation)
    assert not candidate.network.has_skip
    assert_allclose(after, before, rtol=1e-12)
    assert not candidate.certificate.passed


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_neurons_without_a_kink_in_the_data_are_removed_first(sign):
    """Always active, a ReLU neuron is a linear function that the skip term holds as well."""
    network, trainer, _ = planted("relu")
    kinkless = sign * np.array([0.1, -0.2, 0.1, 5.0])
    hidden, readout = network.layers
    spare = Network((np.vstack([hidden, kinkless]), np.insert(readout, 3, 2.0, axis=1)))
    candidates = removal_candidates(with_skip(spare), trainer, 0, 1)
    assert candidates[0].neurons.tolist() == [3]
    crowd = with_spare_neurons(with_skip(spare), 0.0)  # with a duplicate and a pair that cancels
    (group,) = removal_candidates(crowd, trainer, 0, 4)
    assert 3 in group.neurons


def test_certificate_accepts_the_planted_network():
    network, trainer, held_out = planted("tanh")
    certificate = certify(network, trainer.task, trainer.samples, held_out, plain(held_out))
    assert certificate.passed
    assert certificate.reason == ""
    assert certificate.n_equations == 400
    assert certificate.n_parameters == 16


def test_large_networks_are_judged_by_single_neurons_first(monkeypatch):
    network, trainer, held_out = planted("tanh")
    whole = certify(network, trainer.task, trainer.samples, held_out, plain(held_out))
    monkeypatch.setattr("sklearn_ec._certify.certificate.MAX_DENSE_PARAMETERS", 0)
    assert certify(network, trainer.task, trainer.samples, held_out, plain(held_out)) == whole
    assert whole.is_conclusive
    assert whole.fits_exactly


def open_in_one_neuron():
    """A ReLU network, and rows on which one input varies only where its last neuron is off."""
    network, trainer, held_out = planted("relu", n_rows=800)
    network.layers[0][-1] = [-1.0, 0.1, 0.0, -0.3]
    parts = []
    for samples in (trainer.samples, held_out):
        X = samples.X.copy()
        X[X[:, 0] < 0.0, 2] = 0.0
        y = network_outputs(network, X, trainer.activation)
        parts.append(Samples(X, y, samples.sample_weight))
    return network, Trainer(*parts, "relu", "cpu", has_skip=True), parts[1]


@pytest.mark.parametrize("limit", [0, 1000])
def test_weights_that_the_rows_leave_open_are_found_either_way(limit, monkeypatch):
    monkeypatch.setattr("sklearn_ec._certify.certificate.MAX_DENSE_PARAMETERS", limit)
    network, trainer, held_out = open_in_one_neuron()
    certificate = certify(network, trainer.task, trainer.samples, held_out, plain(held_out))
    assert not certificate.passed
    assert certificate.fits_exactly
    assert certificate.weight_error > 1.0
    assert "leave the weights open" in certificate.reason
    assert np.isnan(certificate.isolation) == (limit == 0)
    assert certificate.is_conclusive == (limit == 0)


def wrong_until_the_held_out_rows_join(contradiction=0.0):
    """A network that is exact on training rows, but not on the held-out ones.

    Training rows leave the weight of the last input open, which varies in them only where the last
    neuron is off.
    """
    network, trainer, held_out = open_in_one_neuron()
    X = held_out.X.copy()
    X[:, 2] += 1.0
    y = network_outputs(network, X, trainer.activation)
    y[0] += contradiction
    held_out = Samples(X, y, held_out.sample_weight)
    wrong = Network((network.layers[0].copy(), network.layers[1]))
    wrong.layers[0][-1, 2] += 1e-6
    trainer = Trainer(trainer.samples, held_out, "relu", "cpu", has_skip=False)
    return network, wrong, trainer, held_out


@pytest.fixture
def all_networks_are_large(monkeypatch):
    monkeypatch.setattr("sklearn_ec._solvers.matrix_free.DENSE_FLOPS", 0.0)
    monkeypatch.setattr("sklearn_ec._certify.certificate.MAX_DENSE_PARAMETERS", 0)


def test_held_out_rows_join_where_others_leave_large_networks_open(all_networks_are_large):
    network, wrong, trainer, held_out = wrong_until_the_held_out_rows_join()
    assert (
        1e-8
        < certify(wrong, trainer.task, trainer.samples, held_out, plain(held_out)).held_out_error
        < 1e-5
    )
    candidate = Finisher(trainer, held_out, plain(held_out), prune=True).finish(wrong)
    (found, _), (true, _) = candidate.network.layers, network.layers
    assert_allclose(found[-1] / -found[-1, 0], true[-1], atol=1e-12)
    certificate = candidate.certificate
    assert certificate.is_exact
    assert certificate.n_equations == 850
    assert certificate.is_conclusive
    assert not certificate.passed
    assert certificate.obstacle == "no rows left"
    assert "before they joined the training" in certificate.reason


def test_held_out_rows_that_no_network_fits_do_not_join(all_networks_are_large):
    _, wrong, trainer, held_out = wrong_until_the_held_out_rows_join(contradiction=0.1)
    candidate = Finisher(trainer, held_out, plain(held_out), prune=True).finish(wrong)
    certificate = candidate.certificate
    assert certificate.fits_exactly
    assert certificate.n_equations == 800
    assert not certificate.is_conclusive
    assert_allclose(certificate.held_out_error, 0.1 * 50**-0.5, rtol=0.01)


def test_held_out_rows_never_join_the_training_of_small_networks():
    _, wrong, trainer, held_out = wrong_until_the_held_out_rows_join()
    certificate = Finisher(trainer, held_out, plain(held_out), prune=True).finish(wrong).certificate
    assert certificate.n_equations == 800
    assert certificate.held_out_error > 1e-8


def test_no_neuron_that_an_exact_large_network_needs_is_tried(all_networks_are_large, monkeypatch):
    network, trainer, _ = planted("tanh")
    duplicated = with_duplicates(network)
    *_, (pruned, loss) = pruning_path(duplicated, 0.0, trainer, ExactCap(0.0, 0.0))
    assert pruned.widths == network.widths
    monkeypatch.setattr(Trainer, "polish", lambda *_, **__: pytest.fail("polished"))
    assert [n.widths for n, _ in pruning_path(pruned, loss, trainer, ExactCap(loss, 0.0))] == [(3,)]


def test_large_networks_are_polished_to_the_end(all_networks_are_large):
    """The group of spare neurons that goes first is the last one; it is polished roughly."""
    network, trainer, _ = planted("tanh", width=12)
    spare = with_spare_neurons(network, noise=1e-4)
    loss = float(trainer.task.losses(stacked(spare, "cpu"))[0])
    pruned, pruned_loss = prune(spare, loss, trainer)
    assert pruned.widths == (12,)
    assert pruned_loss < 1e-20 < loss


def test_other_students_may_help_where_a_network_is_refused_for_other_reasons(monkeypatch):
    monkeypatch.setattr("sklearn_ec._certify.certificate.MAX_DENSE_PARAMETERS", 0)
    network, trainer, held_out = planted("tanh")
    for refused in (with_spare_neurons(network), with_spare_neurons(network, noise=1e-3)):
        certificate = certify(refused, trainer.task, trainer.samples, held_out, plain(held_out))
        assert not certificate.passed
        assert not certificate.is_conclusive


def test_certificate_refuses_spare_neurons():
    network, trainer, held_out = planted("tanh")
    certificate = certify(
        with_spare_neurons(network, 0.0), trainer.task, trainer.samples, held_out, plain(held_out)
    )
    assert "above rounding" in certificate.reason  # the junk neuron has weight
    hidden, readout = network.layers
    halves = readout * [0.5, 1.0, 1.0, 1.0]
    duplicate = Network(
        (np.vstack([hidden, hidden[:1]]), np.insert(halves, 3, halves[:, 0], axis=1))
    )
    certificate = certify(duplicate, trainer.task, trainer.samples, held_out, plain(held_out))
    assert certificate.error < 1e-13
    assert not certificate.passed
    assert "leave the weights open" in certificate.reason


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_certificate_tells_deep_networks_from_those_with_spare_neurons(activation):
    network, trainer, held_out = planted_deep(activation)
    certificate = certify(network, trainer.task, trainer.samples, held_out, plain(held_out))
    assert certificate.passed
    assert certificate.n_parameters == 16 + 15 + 4
    for depth in range(2):
        layers = list(network.layers)
        layers[depth] = np.vstack([layers[depth], layers[depth][:1]])
        halves = layers[depth + 1].copy()
        halves[:, 0] *= 0.5
        width = network.widths[depth]
        layers[depth + 1] = np.insert(halves, width, halves[:, 0], axis=1)
        certificate = certify(
            Network(tuple(layers)), trainer.task, trainer.samples, held_out, plain(held_out)
        )
        assert certificate.error < 1e-13
        assert not certificate.passed
        assert "leave the weights open" in certificate.reason


def test_certificate_measures_curvature_where_neurons_are_nearly_polynomial():
    """A singular value below the root of the error, and still a single solution."""
    teacher = make_teacher(2, 8, activation="silu", random_state=1)
    X = np.random.default_rng(1).uniform(-1.7, 1.7, size=(900, 2))
    rows, coordinates = standardize(X, teacher.predict(X)[:, None], np.ones(len(X)))
    weights, biases = teacher.weights_, teacher.biases_
    hidden = np.hstack(
        [
            (weights[0] * coordinates.x_scale[:, None]).T,
            (biases[0] + coordinates.x_mean @ weights[0])[:, None],
        ]
    )
    bias = (biases[1] - coordinates.y_mean) / coordinates.y_scale
    readout = np.hstack([(weights[1] / coordinates.y_scale).T, bias[:, None]])
    network = Network((hidden, readout))
    trainer = Trainer(rows, rows, "silu", "cpu", has_skip=False)
    certificate = certify(network, trainer.task, trainer.samples, rows, coordinates)
    assert certificate.passed
    smallest = max(certificate.error, coordinates.y_rounding) / certificate.weight_error
    assert smallest < 1e-5
    halves = readout * np.r_[0.5, np.ones(8)]
    spare = Network((np.vstack([hidden, hidden[:1]]), np.insert(halves, 8, halves[:, 0], axis=1)))
    assert not certify(spare, trainer.task, trainer.samples, rows, coordinates).passed


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_certificate_refuses_an_idle_neuron_on_constant_targets(activation):
    rows = Samples(np.random.default_rng(0).normal(size=(50, 2)), np.zeros((50, 1)), np.ones(50))
    trainer = Trainer(rows, rows, activation, "cpu", has_skip=False)
    idle = Network((np.ones((1, 3)), np.zeros((1, 2))))
    assert not certify(idle, trainer.task, trainer.samples, rows, plain(rows)).passed


def test_certificate_refuses_errors_on_held_out_rows():
    network, trainer, held_out = planted("tanh")
    wrong = Samples(held_out.X, held_out.y + 1e-9, held_out.sample_weight)
    certificate = certify(network, trainer.task, trainer.samples, wrong, plain(wrong))
    assert not certificate.passed
    assert_allclose(certificate.held_out_error, 1e-9, rtol=1e-3)


def test_certificate_refuses_too_few_equations():
    network, trainer, held_out = planted("tanh", n_rows=31)
    certificate = certify(network, trainer.task, trainer.samples, held_out, plain(held_out))
    assert not certificate.passed
    assert "31 equations are too few for 16 parameters" in certificate.reason
    network, trainer, held_out = planted("tanh", n_rows=32)
    assert certify(network, trainer.task, trainer.samples, held_out, plain(held_out)).passed


def test_relative_error_is_weighted():
    network, trainer, _ = planted("tanh")
    y = trainer.samples.y.copy()
    y[0] += 1.0
    weight = np.r_[0.0, np.ones(399)]
    ignored = Samples(trainer.samples.X, y, weight)
    assert relative_error(network, ignored, trainer.activation) < 1e-14
    counted = Samples(trainer.samples.X, y, np.ones(400))
    assert_allclose(relative_error(network, counted, trainer.activation), 400**-0.5)


def test_finisher_without_pruning_keeps_the_width():
    network, trainer, held_out = planted("tanh")
    spare = with_spare_neurons(network)
    candidate = Finisher(trainer, held_out, plain(held_out), prune=False).finish(spare)
    assert candidate.network.widths == spare.widths
    assert candidate.network.layers[0].shape == spare.layers[0].shape


def test_certificate_refuses_a_layer_that_passes_activations_on():
    """A second ReLU layer over a single one: sums of nonnegative activations have no kink."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4, 4))
    through = np.array([[1.0, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.7, 0.0]])
    network = Network((hidden, through, np.array([[1.0, -1.0, 0.2]])))
    parts = []
    for n in (600, 60):
        X = rng.normal(size=(n, 3))
        y = network_outputs(network, X, get_activation("relu"))
        parts.append(Samples(X, y, np.ones(n)))
    certificate = certify(network, Trainer(*parts, "relu", "cpu", False), parts[1], plain(parts[1]))
    assert not certificate.passed
    assert "linear function on the data" in certificate.reason
