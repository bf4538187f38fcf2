import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from sklearn_ec import _levenberg
from sklearn_ec._activations import ACTIVATIONS
from sklearn_ec._levenberg import (
    DAMPING_CEILING,
    DAMPING_FLOOR,
    MAX_RETRIES,
    ROUNDING_DAMPING,
    BatchedLevenberg,
    LeastSquaresTask,
    NormalEquations,
    _next_damping,
)

NAMES = sorted(ACTIVATIONS)
SHAPES = [(1, False), (2, False), (1, True), (3, True)]  # n_outputs, has_skip


def random_batch(rng, batch, width=3, n_inputs=2, n_outputs=1, has_skip=False):
    n_features = width + 1 + n_inputs * has_skip
    hidden = rng.normal(size=(batch, width, n_inputs + 1))
    return torch.tensor(hidden), torch.tensor(rng.normal(size=(batch, n_outputs, n_features)))


def random_task(rng, name, n_samples=20, n_inputs=2, n_outputs=1):
    """Weighted rows with random targets, so that residuals are large."""
    inputs = np.hstack([rng.normal(size=(n_samples, n_inputs)), np.ones((n_samples, 1))])
    weight = rng.uniform(0.2, 3.0, size=(n_samples, 1))
    return LeastSquaresTask(
        torch.tensor(inputs),
        torch.tensor(rng.normal(size=(n_samples, n_outputs))),
        torch.tensor(np.sqrt(weight / weight.mean())),
        ACTIVATIONS[name],
    )


def direct_outputs(task, hidden, readout):
    """Outputs of one network in plain numpy, with a skip term where the readout has one."""
    inputs = task.inputs.numpy()
    ones, X = inputs[:, -1:], inputs[:, :-1]
    features = np.hstack([task.activation.function(inputs @ hidden.T), ones, X])
    return features[:, : readout.shape[1]] @ readout.T


def direct_residuals(task, hidden, readout):
    difference = direct_outputs(task, hidden, readout) - task.targets.numpy()
    return difference * task.sqrt_weight.numpy()


def task_of_teacher(rng, name, hidden, readout, n_samples=200, noise=0.0):
    """Rows whose targets a given network computes."""
    hidden, readout = hidden.numpy(), readout.numpy()
    task = random_task(rng, name, n_samples, hidden.shape[1] - 1, len(readout))
    targets = torch.tensor(direct_outputs(task, hidden, readout)) + noise * task.targets
    return LeastSquaresTask(task.inputs, targets, task.sqrt_weight, task.activation)


def flat(hidden, readout):
    return np.concatenate([np.ravel(hidden), np.ravel(readout)])


def gradients_of(equations):
    return equations.hidden_gradient, equations.readout_gradient


def dense_system(task, hidden, readout):
    """``JᵀJ / nk`` and ``Jᵀr / nk`` of one network from its Jacobian, and the Jacobian."""
    jacobian = task.jacobian(hidden, readout, slice(None)).numpy()
    residuals = direct_residuals(task, hidden.numpy(), readout.numpy()).ravel()
    n = task.n_equations
    return jacobian.T @ jacobian / n, jacobian.T @ residuals / n, jacobian


@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
def test_losses_match_direct_computation(n_outputs, has_skip):
    rng = np.random.default_rng(0)
    hidden, readout = random_batch(rng, 4, n_outputs=n_outputs, has_skip=has_skip)
    task = random_task(rng, "gelu", n_outputs=n_outputs)
    expected = np.array(
        [direct_residuals(task, h, r) for h, r in zip(hidden.numpy(), readout.numpy(), strict=True)]
    )
    actual = task.residuals(hidden, readout).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        task.losses(hidden, readout).numpy(), (expected**2).mean(axis=(1, 2)), rtol=1e-13
    )
    single = task.float().losses(hidden.float(), readout.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), (expected**2).mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_jacobian_matches_finite_differences(name, n_outputs, has_skip):
    rng = np.random.default_rng(1)
    task = random_task(rng, name, n_outputs=n_outputs)
    hidden, readout = (x[0] for x in random_batch(rng, 1, n_outputs=n_outputs, has_skip=has_skip))
    start, step = flat(hidden, readout), 1e-5

    def residuals(parameters):
        changed = parameters[: hidden.numel()].reshape(hidden.shape)
        return direct_residuals(task, changed, parameters[hidden.numel() :].reshape(readout.shape))

    expected = [
        (residuals(start + offset) - residuals(start - offset)).ravel() / (2.0 * step)
        for offset in step * np.eye(len(start))
    ]
    jacobian = task.jacobian(hidden, readout, slice(None)).numpy()
    np.testing.assert_allclose(jacobian, np.transpose(expected), rtol=0, atol=1e-8)
    parts = [task.jacobian(hidden, readout, rows) for rows in (slice(0, 7), slice(7, 20))]
    np.testing.assert_allclose(torch.cat(parts).numpy(), jacobian, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("chunk_elements", [None, 1])
@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_curvature_matches_finite_differences(
    name, n_outputs, has_skip, chunk_elements, monkeypatch
):
    if chunk_elements is not None:
        monkeypatch.setitem(_levenberg.CHUNK_ELEMENTS, "cpu", chunk_elements)
    rng = np.random.default_rng(1)
    task = random_task(rng, name, n_samples=600, n_outputs=n_outputs)
    point = random_batch(rng, 2, n_outputs=n_outputs, has_skip=has_skip)
    step = random_batch(rng, 2, n_outputs=n_outputs, has_skip=has_skip)
    size = 1e-4
    ahead, behind = (
        task.residuals(*(p + sign * size * s for p, s in zip(point, step, strict=True)))
        for sign in (1.0, -1.0)
    )
    expected = (ahead - 2.0 * task.residuals(*point) + behind) / size**2
    curvature = task.curvature(*point, *step, slice(None))
    # Rows that a kink passes within the step have no second derivative.
    close = torch.isclose(curvature, expected, rtol=1e-4, atol=1e-4 * expected.std().item())
    assert close.double().mean() > 0.99
    hidden_gradient, readout_gradient = task.curvature_gradient(*point, *step)
    for i in range(2):
        jacobian = task.jacobian(point[0][i], point[1][i], slice(None))
        gradient = (jacobian.mT @ curvature[i].flatten() / task.n_equations).numpy()
        actual = flat(hidden_gradient[i], readout_gradient[i])
        np.testing.assert_allclose(actual, gradient, rtol=0, atol=1e-12)


class UncorrectedTask(LeastSquaresTask):
    """Levenberg as it is in textbooks, to first order."""

    def curvature_gradient(self, hidden, readout, hidden_step, readout_step):
        return torch.zeros_like(hidden), torch.zeros_like(readout)


def test_second_order_correction_speeds_up_curved_valleys():
    """Eight nearly polynomial neurons over two inputs, from students of twice the width."""
    rng = np.random.default_rng(0)
    task = task_of_teacher(rng, "softplus", *(x[0] for x in random_batch(rng, 1, 8)), n_samples=500)
    start = random_batch(rng, 4, 16)
    losses = []
    for kind in (LeastSquaresTask, UncorrectedTask):
        solver = BatchedLevenberg(kind(**vars(task)), *start)
        solver.run(150)
        losses.append(solver.losses.median().item())
    assert losses[0] < 0.1 * losses[1]


# A wide network, and rows in chunks, take other paths through the Gram matrix.
@pytest.mark.parametrize(("width", "chunk_elements"), [(3, None), (3, 1), (40, None)])
@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
@pytest.mark.parametrize("name", ["tanh", "relu", "g"])
def test_steps_match_a_dense_solver(name, n_outputs, has_skip, width, chunk_elements, monkeypatch):
    rng = np.random.default_rng(2)
    task = random_task(rng, name, n_samples=600, n_outputs=n_outputs)
    if chunk_elements is not None:
        monkeypatch.setitem(_levenberg.CHUNK_ELEMENTS, "cpu", chunk_elements)
    assert len(task.chunks(100)) == (1 if chunk_elements is None else 3)
    hidden, readout = random_batch(rng, 4, width, n_outputs=n_outputs, has_skip=has_skip)
    damping = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)
    equations = task.normal_equations(hidden, readout)
    system = equations.damped(damping)
    hidden_step, readout_step = system.step(*gradients_of(equations))
    decrease = equations.predicted_decrease(hidden_step, readout_step, damping).numpy()
    losses = task.losses(hidden, readout).numpy()
    assert system.succeeded.all()
    for i in range(4):
        matrix, gradient, jacobian = dense_system(task, hidden[i], readout[i])
        actual = flat(equations.hidden_gradient[i], equations.readout_gradient[i])
        np.testing.assert_allclose(actual, gradient, rtol=0, atol=1e-13)
        expected = np.linalg.solve(matrix + damping[i].item() * np.eye(len(matrix)), -gradient)
        step = flat(hidden_step[i], readout_step[i])
        np.testing.assert_allclose(step, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        linear = direct_residuals(task, hidden[i].numpy(), readout[i].numpy()).ravel()
        linear = linear + jacobian @ step
        np.testing.assert_allclose(decrease[i], losses[i] - (linear**2).mean(), rtol=1e-9)


def test_failed_solves_are_marked_and_leave_the_others_alone():
    rng = np.random.default_rng(3)
    task = random_task(rng, "tanh")
    hidden, readout = random_batch(rng, 4)
    readout[1] = 0.0  # without damping, nothing determines the hidden weights
    hidden[2, 0, 0] = np.nan
    equations = task.normal_equations(hidden, readout)
    damping = torch.tensor([1e-2, 0.0, 1e-2, 1e-3], dtype=torch.float64)
    system = equations.damped(damping)
    hidden_step, readout_step = system.step(*gradients_of(equations))
    assert system.succeeded.tolist() == [True, False, False, True]
    index = torch.tensor([0, 3])
    alone = equations.take(index)
    alone = alone.damped(damping[index]).step(*gradients_of(alone))
    torch.testing.assert_close(hidden_step[index], alone[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(readout_step[index], alone[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("block", ["hidden", "readout"])
def test_indefinite_blocks_are_failed_solves(block):
    """A factorization that breaks down half-way leaves finite numbers behind."""
    diagonal = torch.ones(6, dtype=torch.float64)
    diagonal[slice(0, 4) if block == "hidden" else slice(4, 6)] = -1.0
    ones = torch.ones(1, 1, 6, dtype=torch.float64)
    equations = NormalEquations(diagonal.diag()[None], ones[..., :1], ones[..., :4], ones[..., :2])
    assert not equations.damped(torch.zeros(1, dtype=torch.float64)).succeeded.any()
    assert equations.damped(torch.full((1,), 2.0, dtype=torch.float64)).succeeded.all()


@pytest.mark.parametrize(("n_outputs", "has_skip"), SHAPES)
def test_a_batch_advances_like_each_network_alone(n_outputs, has_skip):
    rng = np.random.default_rng(4)
    task = random_task(rng, "softplus", n_samples=100, n_outputs=n_outputs)
    hidden, readout = random_batch(rng, 3, n_outputs=n_outputs, has_skip=has_skip)
    together = BatchedLevenberg(task, hidden, readout)
    assert together.run(8) == 8
    for i in range(3):
        alone = BatchedLevenberg(task, hidden[i : i + 1], readout[i : i + 1])
        alone.run(8)
        torch.testing.assert_close(alone.hidden[0], together.hidden[i], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(alone.readout[0], together.readout[i], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(alone.losses[0], together.losses[i], rtol=1e-10, atol=0)
        assert alone.damping[0] == together.damping[i]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_network_is_finished_and_never_alters_the_others(broken):
    rng = np.random.default_rng(5)
    task = random_task(rng, "g", n_samples=100)
    hidden, readout = random_batch(rng, 3)
    hidden[1] = broken
    batch = BatchedLevenberg(task, hidden, readout)
    assert batch.finished.tolist() == [False, True, False]
    batch.run(8)
    others = torch.tensor([0, 2])
    clean = BatchedLevenberg(task, hidden[others], readout[others])
    clean.run(8)
    for name in ("hidden", "readout", "losses", "damping"):
        torch.testing.assert_close(
            getattr(batch, name)[others], getattr(clean, name), rtol=1e-12, atol=1e-14
        )
    assert not batch.losses[1].isfinite()
    torch.testing.assert_close(batch.hidden[1], hidden[1], equal_nan=True)
    assert torch.equal(batch.readout[1], readout[1])


@pytest.mark.parametrize("name", ["tanh", "logistic", "silu"])
def test_final_loss_of_a_noisy_problem_agrees_with_scipy(name):
    rng = np.random.default_rng(6)
    hidden, readout = random_batch(rng, 1, width=2)
    task = task_of_teacher(rng, name, hidden[0], readout[0], n_samples=100, noise=0.05)
    start = hidden + 0.02 * torch.tensor(rng.normal(size=hidden.shape))
    solver = BatchedLevenberg(task, start, readout)
    assert solver.run(500) < 500
    assert solver.finished.all()
    # No step lowers the loss any more: rejections have raised the damping over its ceiling.
    assert DAMPING_CEILING < solver.damping[0] <= DAMPING_CEILING * 4.0**MAX_RETRIES

    def residuals(parameters):
        parts = parameters[:6].reshape(2, 3), parameters[6:].reshape(1, 3)
        return direct_residuals(task, *parts).ravel()

    reference = least_squares(
        residuals, flat(start, readout), method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    np.testing.assert_allclose(solver.losses[0].item(), 2.0 * reference.cost / 100, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_noise_free_problem_is_solved_to_rounding(name):
    rng = np.random.default_rng(7)
    hidden, readout = random_batch(rng, 3, width=2, n_outputs=2)
    task = task_of_teacher(rng, name, hidden[0], readout[0])
    start = hidden[:1] + 0.02 * torch.tensor(rng.normal(size=(3, *hidden.shape[1:])))
    solver = BatchedLevenberg(task, start, readout[:1].expand(3, -1, -1))
    assert solver.run(300) < 300
    assert solver.finished.all()
    assert solver.losses.max() < 1e-26


@pytest.mark.parametrize("name", NAMES)
def test_losses_never_increase_and_belong_to_the_weights(name):
    rng = np.random.default_rng(8)
    task = random_task(rng, name, n_samples=60, n_outputs=2)
    hidden, readout = random_batch(rng, 5, width=6, n_outputs=2)
    before = hidden.clone(), readout.clone()
    solver = BatchedLevenberg(task, hidden, readout)
    first = losses = solver.losses.clone()
    for _ in range(40):
        solver.step()
        assert (solver.losses <= losses).all()
        losses = solver.losses.clone()
    assert (losses < first).all()
    torch.testing.assert_close(solver.losses, task.losses(solver.hidden, solver.readout))
    assert torch.equal(hidden, before[0])
    assert torch.equal(readout, before[1])


def test_run_counts_its_steps_and_stops_when_all_are_finished(monkeypatch):
    rng = np.random.default_rng(9)
    task = random_task(rng, "tanh", n_samples=60)
    hidden, readout = random_batch(rng, 2)
    steps = []
    step = BatchedLevenberg.step
    monkeypatch.setattr(BatchedLevenberg, "step", lambda self: (steps.append(1), step(self)))
    solver = BatchedLevenberg(task, hidden, readout)
    assert solver.run(0) == 0
    assert solver.run(4) == len(steps) == 4
    target = solver.losses.max().item()

    solver = BatchedLevenberg(task, hidden, readout, tol=target)
    steps.clear()
    taken = solver.run(50)
    assert 0 < taken == len(steps) <= 4
    assert (solver.losses <= target).all()
    assert solver.run(50) == 0
    assert BatchedLevenberg(task, hidden, readout, tol=1e9).finished.all()


def test_finished_networks_are_left_alone():
    rng = np.random.default_rng(10)
    task = random_task(rng, "tanh", n_samples=60)
    hidden, readout = random_batch(rng, 3)
    solver = BatchedLevenberg(task, hidden, readout)
    solver.finished[1] = True
    solver.run(5)
    assert torch.equal(solver.hidden[1], hidden[1])
    assert torch.equal(solver.readout[1], readout[1])
    assert not torch.equal(solver.hidden[0], hidden[0])


def test_slow_progress_far_from_rounding_finishes_nothing():
    rng = np.random.default_rng(11)
    task = random_task(rng, "tanh", n_samples=60)
    hidden, readout = random_batch(rng, 1)
    solver = BatchedLevenberg(task, hidden, readout)
    solver.run(30)
    before = solver.losses.clone()
    solver.damping[:] = 0.1 * ROUNDING_DAMPING
    solver.step()
    assert 0.5 * before < solver.losses <= before
    assert not solver.finished.any()


def test_damping_follows_the_gain_ratio():
    damping = torch.full((6,), 0.6, dtype=torch.float64)
    damping[5] = DAMPING_FLOOR
    gain = torch.tensor([0.9, 0.4, 0.1, 0.9, np.nan, 0.9], dtype=torch.float64)
    accepted = torch.tensor([True, True, True, False, False, True])
    expected = torch.tensor([0.2, 0.6, 2.4, 2.4, 2.4, DAMPING_FLOOR], dtype=torch.float64)
    torch.testing.assert_close(_next_damping(damping, gain, accepted), expected)
