import itertools

import numpy as np
import pytest

from builders import evaluate, random_network
from sklearn_ec._core.activations import get_activation
from sklearn_ec._core.coordinates import (
    have_high_leverage,
    leverages,
    merge_duplicate_rows,
    split_rows,
    standardize,
)
from sklearn_ec._core.precision import FULL, Precision
from sklearn_ec._core.records import Network, Samples
from sklearn_ec._core.settings import Preparation
from sklearn_ec._expand.students import layer_shapes

BASE = np.random.default_rng(0).normal(size=(100, 4))
SCALES = np.array([1e-3, 1e-1, 1e1, 1e3])
CONSTANT = np.full((100, 1), 7.0)
HIGH_LEVERAGE = Preparation().high_leverage

# Columns, and the rank of their centered rows.
FULL_RANK = {
    "plain": BASE,
    "shifted": BASE + np.array([5.0, -3.0, 0.0, 100.0]),
    "badly scaled": BASE * SCALES,
    "one column": BASE[:, :1],
}
REDUCED = {
    "constant": (np.hstack([BASE, CONSTANT]), 4),
    "duplicate": (BASE[:, [0, 1, 2, 0, 3]], 4),
    "duplicate with an offset": (np.hstack([BASE, BASE[:, 2:3] + 1e3]), 4),
    "dependent": (np.hstack([BASE, BASE @ np.arange(8.0).reshape(4, 2)]), 4),
    "constant and duplicate": (np.hstack([BASE[:, :2], CONSTANT, BASE[:, :1]]), 2),
    "all constant": (np.hstack([CONSTANT, -CONSTANT]), 0),
    "fewer rows than columns": (BASE[:3], 2),
    "one row": (BASE[:1], 0),
}
BADLY_SCALED = {
    "constant, badly scaled": (np.hstack([BASE * SCALES, CONSTANT]), 4),
    "small duplicate, badly scaled": ((BASE * SCALES)[:, [0, 1, 2, 3, 0]], 4),
    "large duplicate, badly scaled": ((BASE * SCALES)[:, [0, 1, 2, 3, 3]], 4),
}
ALL_REDUCED = REDUCED | BADLY_SCALED
EVERY_CASE = FULL_RANK | {case: X for case, (X, _) in ALL_REDUCED.items()}


def targets_and_weights(n_samples):
    rng = np.random.default_rng(1)
    y = rng.normal(size=(n_samples, 2)) * [1e-3, 1e4] + [3.0, -5e3]
    return y, rng.uniform(0.5, 4.0, size=n_samples)


def network_in_original_columns(X, widths=(5,), seed=2):
    """A random network in standardized coordinates, and the weights it gets for the columns."""
    rng = np.random.default_rng(seed)
    samples, coordinates = standardize(X, *targets_and_weights(len(X)))
    n_inputs = samples.X.shape[1]
    shapes = layer_shapes(n_inputs, widths, 2, has_skip=False)
    network = Network(tuple(rng.normal(size=shape) for shape in shapes))
    return network, samples, coordinates, *coordinates.to_original(network)


def test_merge_adds_weights_and_drops_zeros():
    X = np.array([[1.0, 2.0], [0.0, 5.0], [1.0, 2.0], [9.0, 9.0], [1.0, 2.0], [0.0, 5.0]])
    y = np.array([[3.0], [1.0], [3.0], [7.0], [4.0], [1.0]])
    merged = merge_duplicate_rows(X, y, np.array([1.0, 2.0, 4.0, 0.0, 8.0, 0.0]))
    np.testing.assert_array_equal(merged[0], [[0.0, 5.0], [1.0, 2.0], [1.0, 2.0]])
    np.testing.assert_array_equal(merged[1], [[1.0], [3.0], [4.0]])
    np.testing.assert_array_equal(merged[2], [2.0, 5.0, 8.0])


def test_merge_treats_both_zeros_as_equal():
    X, y, weight = merge_duplicate_rows(
        np.array([[0.0], [-0.0]]), np.array([[-0.0], [0.0]]), np.ones(2)
    )
    assert (X.shape, y.shape, weight.tolist()) == ((1, 1), (1, 1), [2.0])


def test_merge_depends_neither_on_order_nor_on_repetition():
    rng = np.random.default_rng(3)
    X = rng.integers(0, 3, size=(60, 2)).astype(float)
    y = rng.integers(0, 2, size=(60, 1)).astype(float)
    weight = rng.integers(0, 4, size=60)
    expected = merge_duplicate_rows(X, y, weight.astype(float))
    order = rng.permutation(60)
    permuted = merge_duplicate_rows(X[order], y[order], weight[order].astype(float))
    repeated = np.repeat(np.arange(60), weight)
    unweighted = merge_duplicate_rows(X[repeated], y[repeated], np.ones(len(repeated)))
    assert len(expected[0]) < 60
    for merged in (permuted, unweighted):
        for actual, desired in zip(merged, expected, strict=True):
            np.testing.assert_array_equal(actual, desired)


@pytest.mark.parametrize("case", FULL_RANK)
def test_standardized_columns_have_weighted_mean_zero_and_variance_one(case):
    X = FULL_RANK[case]
    y, weight = targets_and_weights(len(X))
    samples, coordinates = standardize(X, y, weight)
    assert coordinates.basis is None
    np.testing.assert_allclose(samples.sample_weight, weight / weight.mean())
    for values in (samples.X, samples.y):
        mean = np.average(values, axis=0, weights=weight)
        np.testing.assert_allclose(mean, 0.0, atol=1e-12)
        np.testing.assert_allclose(np.average(values**2, axis=0, weights=weight), 1.0, rtol=1e-12)


@pytest.mark.parametrize("case", ALL_REDUCED)
def test_dependent_columns_are_replaced_by_a_basis_of_their_row_space(case):
    X, rank = ALL_REDUCED[case]
    y, weight = targets_and_weights(len(X))
    samples, coordinates = standardize(X, y, weight)
    assert samples.X.shape == (len(X), rank)
    assert coordinates.basis.shape == (X.shape[1], rank)
    np.testing.assert_allclose(
        coordinates.basis.T @ coordinates.basis, np.eye(rank), rtol=0, atol=1e-13
    )
    # Nothing but rounding lies outside the basis.
    scaled = (X - coordinates.x_mean) / coordinates.x_scale
    np.testing.assert_allclose(samples.X @ coordinates.basis.T, scaled, rtol=0, atol=1e-12)


def test_columns_that_vary_by_rounding_only_count_as_constant():
    column = np.array([1e8, 1e8 * (1 + 1e-15), 1e8 * (1 - 1e-15)])
    X = np.column_stack([column, [1.0, 2.0, 4.0]])
    samples, coordinates = standardize(X, column[:, None], np.ones(3))
    assert samples.X.shape == (3, 1)
    assert coordinates.x_scale[0] == 1.0
    assert coordinates.y_scale[0] == 1.0


def test_small_variation_on_a_large_mean_is_kept():
    X = 1e6 + 1e-4 * BASE
    samples, coordinates = standardize(X, BASE[:, :1], np.ones(100))
    assert coordinates.basis is None
    np.testing.assert_allclose(coordinates.x_scale, 1e-4 * BASE.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(np.var(samples.X, axis=0), 1.0, rtol=1e-9)


def test_rounding_of_the_targets_is_that_of_the_worst_output():
    y = np.column_stack([1e6 + np.array([-1.0, 1.0]), [0.0, 1.0]])
    _, coordinates = standardize(BASE[:2, :1], y, np.ones(2))
    np.testing.assert_allclose(coordinates.y_rounding, 2.0**-52 * 1e6, rtol=1e-5)


@pytest.mark.parametrize("widths", [(5,), (5, 4), (5, 4, 3)])
@pytest.mark.parametrize("case", EVERY_CASE)
def test_network_in_original_columns_computes_the_same_function(case, widths):
    X = EVERY_CASE[case]
    network, samples, coordinates, weights, biases = network_in_original_columns(X, widths)
    sizes = (X.shape[1], *widths, 2)
    assert [weight.shape for weight in weights] == list(itertools.pairwise(sizes))
    assert [bias.shape for bias in biases] == [(width,) for width in sizes[1:]]

    hidden, *others = network.layers
    preactivations = samples.X @ hidden[:, :-1].T + hidden[:, -1]
    in_columns = X @ weights[0] + biases[0]
    np.testing.assert_allclose(in_columns, preactivations, rtol=0, atol=1e-12)

    outputs, actual = preactivations, in_columns
    for layer, weight, bias in zip(others, weights[1:], biases[1:], strict=True):
        outputs = np.tanh(outputs) @ layer[:, :-1].T + layer[:, -1]
        actual = np.tanh(actual) @ weight + bias
    expected = outputs * coordinates.y_scale + coordinates.y_mean
    errors = (actual - expected) / coordinates.y_scale
    np.testing.assert_allclose(errors, 0.0, atol=1e-11)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_standardized_and_original_coordinates_are_inverse(case):
    X = EVERY_CASE[case]
    network, _, coordinates, weights, biases = network_in_original_columns(X)
    back = coordinates.to_standardized(weights, biases)
    for layer, same in zip(back.layers, network.layers, strict=True):
        tolerance = 1e-12 * (1.0 + np.abs(coordinates.x_mean / coordinates.x_scale).max())
        np.testing.assert_allclose(layer, same, rtol=0, atol=tolerance * np.abs(same).max())


@pytest.mark.parametrize("has_skip", [False, True])
def test_networks_are_carried_to_the_coordinates_of_other_rows(has_skip):
    rng = np.random.default_rng(0)
    X, others = rng.normal(2.0, 3.0, size=(40, 3)), rng.normal(-1.0, 0.5, size=(60, 3))
    y, more = rng.normal(size=(40, 2)), rng.normal(5.0, 2.0, size=(60, 2))
    _, before = standardize(X, y, np.ones(40))
    _, now = standardize(others, more, np.ones(60))
    network = random_network(rng, (4, 3), 3, 2, has_skip)
    layers = before.carried_to(now, [np.stack([layer, layer]) for layer in network.layers])
    new = rng.normal(size=(10, 3))
    there, here = (c.transform(new, np.zeros((10, 2)))[0] for c in (before, now))
    tanh = get_activation("tanh")
    expected = evaluate(network, tanh, there) * before.y_scale + before.y_mean
    for student in range(2):
        carried = Network(tuple(layer[student] for layer in layers))
        actual = evaluate(carried, tanh, here) * now.y_scale + now.y_mean
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_incoming_map_takes_the_first_layer_to_the_original_columns(case):
    network, _, coordinates, weights, biases = network_in_original_columns(EVERY_CASE[case])
    mapped = coordinates.incoming_map() @ network.layers[0].T
    expected = np.vstack([weights[0], biases[0]])
    scale = np.abs(expected).max(axis=0, initial=1e-300)
    np.testing.assert_allclose(mapped / scale, expected / scale, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ALL_REDUCED)
def test_incoming_weights_have_minimum_norm(case):
    X, _ = ALL_REDUCED[case]
    network, samples, coordinates, weights, _ = network_in_original_columns(X)
    preactivations = samples.X @ network.layers[0][:, :-1].T
    smallest = np.linalg.pinv(X - coordinates.x_mean, rcond=1e-12) @ preactivations
    scale = np.abs(smallest).max(initial=1e-300)
    np.testing.assert_allclose(weights[0] / scale, smallest / scale, rtol=0, atol=1e-9)


def test_constant_columns_get_no_weight_and_duplicates_share_it():
    X = REDUCED["constant and duplicate"][0]
    _, _, _, weights, _ = network_in_original_columns(X)
    np.testing.assert_allclose(weights[0][2], 0.0, atol=1e-15)
    np.testing.assert_allclose(weights[0][0], weights[0][3], rtol=1e-12)


@pytest.mark.parametrize("n_samples", [2, 3, 9, 10, 101, 12_000])
def test_split_rows_are_disjoint_and_complete(n_samples):
    X = np.arange(float(n_samples))[:, None]
    weight = np.random.default_rng(4).uniform(0.5, 2.0, size=n_samples)
    train, held_out = split_rows(Samples.of(X, 2.0 * X, weight), np.random.default_rng(5))
    n_held_out = len(held_out.X)
    assert n_held_out == min(1000, max(1, round(0.1 * n_samples)))
    rows = np.concatenate([train.X[:, 0], held_out.X[:, 0]])
    np.testing.assert_array_equal(np.sort(rows), X[:, 0])
    for part in (train, held_out):
        chosen = part.X[:, 0].astype(int)
        assert np.all(np.diff(chosen) > 0)
        np.testing.assert_array_equal(part.y, 2.0 * part.X)
        np.testing.assert_allclose(part.sample_weight, weight[chosen] / weight[chosen].mean())


def test_split_rows_is_determined_by_the_generator():
    samples = Samples.of(BASE, BASE[:, :1], np.ones(100))
    held_out = [split_rows(samples, np.random.default_rng(seed))[1].X for seed in (6, 6, 7)]
    np.testing.assert_array_equal(held_out[0], held_out[1])
    assert not np.array_equal(held_out[0], held_out[2])


@pytest.mark.parametrize("case", FULL_RANK)
def test_leverages_are_the_diagonal_of_the_hat_matrix(case):
    X = FULL_RANK[case]
    samples, _ = standardize(X, BASE[:, :1], np.ones(100))
    found = leverages(samples.X)
    design = np.column_stack([samples.X, np.ones(100)])
    hat = design @ np.linalg.pinv(design)
    np.testing.assert_allclose(found, hat.diagonal(), rtol=1e-9)
    np.testing.assert_allclose(found.sum(), X.shape[1] + 1, rtol=1e-12)
    assert (found <= 1.0 + 1e-12).all()


@pytest.mark.parametrize("case", ALL_REDUCED)
def test_leverages_sum_to_the_rank(case):
    X, rank = ALL_REDUCED[case]
    samples, _ = standardize(X, *targets_and_weights(len(X)))
    np.testing.assert_allclose(leverages(samples.X).sum(), rank + 1, rtol=1e-12)


def with_a_pixel(n_lit):
    """Rows of which the first few alone light a column."""
    X = np.random.default_rng(9).normal(size=(200, 4))
    X[:, 3] = 0.0
    X[:n_lit, 3] = 1.0
    return standardize(X, X[:, :1], np.ones(200))[0]


@pytest.mark.parametrize("n_lit", [1, 2, 3])
def test_rows_that_alone_light_a_column_stay_in_training(n_lit):
    samples = with_a_pixel(n_lit)
    assert (leverages(samples.X)[:n_lit] > HIGH_LEVERAGE).all()
    held_out = set()
    for seed in range(100):
        train, kept = split_rows(samples, np.random.default_rng(seed))
        assert (len(train.X), len(kept.X)) == (180, 20)
        assert set(samples.X[:n_lit, 0]) <= set(train.X[:, 0])
        held_out |= set(kept.X[:, 0])
    assert len(held_out) == 200 - n_lit  # every other row is held out now and then


def test_split_rows_draws_at_random_where_no_leverage_is_high():
    samples = Samples.of(BASE, BASE[:, :1], np.ones(100))
    assert leverages(BASE).max() < HIGH_LEVERAGE
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(100)
        train, held_out = split_rows(samples, np.random.default_rng(seed))
        np.testing.assert_array_equal(train.X, BASE[np.sort(order[10:])])
        np.testing.assert_array_equal(held_out.X, BASE[np.sort(order[:10])])


@pytest.mark.parametrize("n_samples", [2, 4, 6])
def test_some_rows_are_held_out_where_every_leverage_is_high(n_samples):
    X = BASE[:n_samples]
    assert (leverages(X) > HIGH_LEVERAGE).all()
    train, held_out = split_rows(
        Samples.of(X, X[:, :1], np.ones(n_samples)), np.random.default_rng(0)
    )
    assert (len(train.X), len(held_out.X)) == (n_samples - 1, 1)


def test_where_rows_are_few_an_average_leverage_is_not_high():
    """Settling leaves rows of high leverage out: where all were, no weight was left."""
    X = np.random.default_rng(0).normal(size=(300, 100))
    assert (leverages(X) > HIGH_LEVERAGE).mean() > 0.9
    assert not have_high_leverage(X, Preparation()).any()
    X[0] *= 10.0
    assert np.flatnonzero(have_high_leverage(X, Preparation())).tolist() == [0]


def test_split_of_one_row_uses_it_twice():
    samples = Samples.of(BASE[:1], BASE[:1, :1], np.ones(1))
    train, held_out = split_rows(samples, np.random.default_rng(8))
    np.testing.assert_array_equal(train.X, samples.X)
    np.testing.assert_array_equal(held_out.X, samples.X)


def test_far_outliers_bound_the_scale_of_a_column():
    """A pixel lit in one row of 900 keeps that row within six units."""
    X = np.random.default_rng(0).uniform(-1, 1, size=(900, 2))
    X[:, 1] = 0.0
    X[7, 1] = 0.25
    samples, coordinates = standardize(X, X[:, :1], np.ones(900))
    np.testing.assert_allclose(np.abs(samples.X[7, 1]), 6.0, rtol=1e-12)
    np.testing.assert_allclose(samples.X[:, 0].std(), 1.0, rtol=1e-12)
    assert coordinates.basis is None


# Rounded targets

SPREADS = np.random.default_rng(3).normal(size=(100, 2)) * [1.0, 50.0]


def test_outputs_of_the_same_step_share_a_scale():
    """Each counts by how well it is known: their rounding is the same in standardized units."""
    y = np.round(SPREADS, 2)
    samples, coordinates = standardize(BASE, y, np.ones(100), Precision.of_step(0.01))
    np.testing.assert_allclose(coordinates.y_scale, np.sqrt(np.mean(y.var(axis=0))))
    np.testing.assert_allclose(np.mean(samples.y**2), 1.0)
    rounding = 0.01 / 12**0.5 / coordinates.y_scale[0]
    np.testing.assert_allclose(samples.rounding_loss, 1.5**2 * rounding**2)
    with_constant = np.column_stack([y, np.full(100, 3.0)])
    _, same = standardize(BASE, with_constant, np.ones(100), Precision.of_step(0.01))
    np.testing.assert_allclose(same.y_scale, coordinates.y_scale[0])
    _, coordinates = standardize(BASE, SPREADS, np.ones(100))
    np.testing.assert_allclose(coordinates.y_scale, SPREADS.std(axis=0))


def test_the_rounding_loss_is_that_of_the_values():
    y = SPREADS.astype(np.float32).astype(np.float64)
    samples, coordinates = standardize(BASE, y, np.ones(100), Precision("float32"))
    spacing = np.spacing(np.abs(y).astype(np.float32)) / coordinates.y_scale
    np.testing.assert_allclose(samples.rounding_loss, 25.0 * np.mean(spacing**2) / 12.0, rtol=1e-6)
    assert coordinates.precision == Precision("float32")
    assert standardize(BASE, y, np.ones(100))[0].rounding_loss == 0.0
    train, held_out = split_rows(samples, np.random.default_rng(0))
    for part in (train, held_out, train.joined(held_out)):
        assert part.rounding_loss == samples.rounding_loss


def test_targets_that_are_rounded_too_coarsely_count_as_they_are():
    """Labels, for instance."""
    y = np.random.default_rng(0).integers(0, 3, size=(100, 1)).astype(float)
    samples, coordinates = standardize(BASE, y, np.ones(100), Precision.of_step(1.0))
    assert samples.rounding_loss == 0.0
    assert coordinates.precision is FULL
