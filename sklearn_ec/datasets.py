"""Teachers, and suites of recovery problems made from them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from sklearn.utils import check_random_state

from ._core.activations import get_activation

__all__ = ["RecoveryProblem", "Teacher", "load_deep_suite", "load_reference_suite", "make_teacher"]

Family = Literal["reference", "rough", "deep"]
SUITE_INPUTS = (2, 4, 8, 16, 32)
SUITE_WIDTHS = (2, 4, 8)
# Least share of the rows on either side of the kink of a piecewise linear neuron.
MIN_KINK_SHARE = 0.02
DEEP_SIZES = ((5, 4, 3, 1), (6, 5, 4, 2), (8, 6, 5, 1), (6, 5, 4, 3, 1))


@dataclass(frozen=True)
class Teacher:
    """A network to be recovered.

    Attributes
    ----------
    weights_ : list of ndarray
        Weight matrices, shape (fan_in, fan_out) each.
    biases_ : list of ndarray
        Bias vectors, shape (fan_out,) each.
    activation : str
        Activation of the hidden layers.
    """

    weights_: list[np.ndarray]
    biases_: list[np.ndarray]
    activation: str

    @property
    def layer_sizes_(self) -> tuple[int, ...]:
        """Hidden widths."""
        return tuple(len(bias) for bias in self.biases_[:-1])

    def predict(self, X: Any) -> np.ndarray:
        """Outputs of the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_inputs)
            Inputs.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Outputs, one-dimensional for a single output.
        """
        function = get_activation(self.activation).function
        values = np.asarray(X, dtype=float)
        for weights, bias in zip(self.weights_[:-1], self.biases_[:-1], strict=True):
            values = function(values @ weights + bias)
        outputs = values @ self.weights_[-1] + self.biases_[-1]
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs


@dataclass(frozen=True)
class RecoveryProblem:
    """A teacher and the samples from which it is to be recovered.

    Attributes
    ----------
    name : str
        Family, activation, number of inputs, width and seed.
    teacher : Teacher
        The network behind the data.
    X : ndarray of shape (n_samples, n_inputs)
        Inputs.
    y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        The teacher's outputs, without noise.
    """

    name: str
    teacher: Teacher
    X: np.ndarray
    y: np.ndarray


def make_teacher(
    n_inputs: int = 4,
    hidden_layer_sizes: int | tuple[int, ...] = 4,
    n_outputs: int = 1,
    activation: str = "g",
    *,
    family: Family = "reference",
    random_state: Any = None,
) -> Teacher:
    """Make a random network.

    Parameters
    ----------
    n_inputs : int, default=4
        Number of inputs.
    hidden_layer_sizes : int or tuple of int, default=4
        Widths of the hidden layers.
    n_outputs : int, default=1
        Number of outputs.
    activation : str, default="g"
        Activation of the hidden layers, see :class:`~sklearn_ec.ExpandClusterRegressor`.
    family : {"reference", "rough", "deep"}, default="reference"
        ``"reference"``, after the paper's synthetic teachers: incoming weights of unit length in
        uniformly random directions, biases uniform in [-1, 1], outgoing weights +1 and -1 in turn,
        no output bias. ``"rough"``: incoming weights of length uniform in [0.5, 2], biases uniform
        in [-1, 1], outgoing weights of random sign and size ``0.3 + |normal|``, normal output bias.
        ``"deep"``: incoming weights of length 1.5, biases normal with standard deviation 0.3,
        output weights of unit length per output, no output bias.
    random_state : int, RandomState instance or None, default=None
        Seed of the weights.

    Returns
    -------
    Teacher
        The network.

    Raises
    ------
    ValueError
        If the activation or the family is unknown.

    Examples
    --------
    >>> from sklearn_ec.datasets import make_teacher
    >>> teacher = make_teacher(3, 5, activation="tanh", random_state=0)
    >>> teacher.layer_sizes_, teacher.predict([[0.0, 0.0, 0.0]]).shape
    ((5,), (1,))
    """
    get_activation(activation)
    if family not in ("reference", "rough", "deep"):
        raise ValueError(f"Unknown family {family!r}: choose 'reference', 'rough' or 'deep'.")
    rng = check_random_state(random_state)
    widths = np.atleast_1d(hidden_layer_sizes).tolist()
    weights, biases = [], []
    for fan_in, width in zip([n_inputs, *widths[:-1]], widths, strict=True):
        directions = _random_directions(rng, width, fan_in)
        lengths: Any = {"reference": 1.0, "deep": 1.5}.get(family)
        if family == "rough":
            lengths = rng.uniform(0.5, 2.0, size=(width, 1))
        weights.append((lengths * directions).T)
        is_deep = family == "deep"
        biases.append(0.3 * rng.normal(size=width) if is_deep else rng.uniform(-1.0, 1.0, width))
    shape = (widths[-1], n_outputs)
    biases.append(np.zeros(n_outputs))
    if family == "deep":
        weights.append(_random_directions(rng, n_outputs, widths[-1]).T)
    elif family == "rough":
        signs = rng.choice([-1.0, 1.0], size=shape)
        weights.append(signs * (0.3 + np.abs(rng.normal(size=shape))))
        biases[-1] = rng.normal(size=n_outputs)
    else:
        weights.append((-1.0) ** np.add.outer(np.arange(widths[-1]), np.arange(n_outputs)))
    return Teacher(weights, biases, activation)


def load_reference_suite(
    activation: str = "g",
    *,
    family: Family = "reference",
    n_seeds: int = 10,
    n_inputs: tuple[int, ...] = SUITE_INPUTS,
    widths: tuple[int, ...] = SUITE_WIDTHS,
    rho: float = 4,
) -> list[RecoveryProblem]:
    """Make the suite of recovery problems: every number of inputs x width x seed.

    With the defaults these are 150 teachers of one hidden layer. Each comes with
    ``max(1000, 5 P)`` noise-free rows, where ``P`` is the number of parameters of a student that is
    ``rho`` times as wide as the teacher.

    Parameters
    ----------
    activation : str, default="g"
        Activation of the teachers.
    family : {"reference", "rough"}, default="reference"
        ``"reference"`` teachers have one output and inputs uniform in [-√3, √3]; ``"rough"``
        teachers have 1, 2 or 3 outputs, depending on the seed, and standard normal inputs.
        See :func:`make_teacher`.
    n_seeds : int, default=10
        Teachers per cell.
    n_inputs : tuple of int, default=(2, 4, 8, 16, 32)
        Numbers of inputs.
    widths : tuple of int, default=(2, 4, 8)
        Widths of the teachers.
    rho : float, default=4
        Expansion factor that the number of rows is meant for.

    Returns
    -------
    list of RecoveryProblem
        The problems; any of them is the same whatever else is asked for.

    Raises
    ------
    ValueError
        If the activation or the family is unknown.

    Examples
    --------
    >>> from sklearn_ec.datasets import load_reference_suite
    >>> problems = load_reference_suite("tanh", n_seeds=1, n_inputs=(2,))
    >>> [problem.name for problem in problems]
    ['reference-tanh-d2-r2-s0', 'reference-tanh-d2-r4-s0', 'reference-tanh-d2-r8-s0']
    >>> problems[0].X.shape
    (1000, 2)
    """
    return [
        _make_problem(activation, family, inputs, width, seed, rho)
        for inputs, width, seed in product(n_inputs, widths, range(n_seeds))
    ]


def load_deep_suite(
    activation: str = "tanh",
    *,
    sizes: tuple[tuple[int, ...], ...] = DEEP_SIZES,
    n_seeds: int = 3,
    rho: float = 3,
) -> list[RecoveryProblem]:
    """Make recovery problems of several hidden layers: every shape x seed.

    Teachers are of the family ``"deep"`` of :func:`make_teacher`, inputs uniform in [-√3, √3], and
    there are ``max(1000, 5 P)`` noise-free rows, where ``P`` is the number of parameters of a
    student whose hidden layers are ``rho`` times as wide as the teacher's. Teachers with ReLU or
    leaky ReLU neurons are drawn anew until every neuron is active, and inactive, on at least 2 % of
    the rows: no data determine a neuron that is always active or never.

    Parameters
    ----------
    activation : str, default="tanh"
        Activation of the teachers.
    sizes : tuple of tuple of int, default=((5, 4, 3, 1), (6, 5, 4, 2), (8, 6, 5, 1), \
            (6, 5, 4, 3, 1))
        Numbers of inputs, of neurons in each hidden layer, and of outputs.
    n_seeds : int, default=3
        Teachers per shape.
    rho : float, default=3
        Expansion factor that the number of rows is meant for.

    Returns
    -------
    list of RecoveryProblem
        The problems; any of them is the same whatever else is asked for.

    Raises
    ------
    ValueError
        If the activation is unknown.

    Examples
    --------
    >>> from sklearn_ec.datasets import load_deep_suite
    >>> problem = load_deep_suite("tanh", n_seeds=1)[0]
    >>> problem.name, problem.teacher.layer_sizes_, problem.X.shape
    ('deep-tanh-5-4-3-1-s0', (4, 3), (1000, 5))
    """
    return [
        _make_deep_problem(activation, shape, seed, rho)
        for shape, seed in product(sizes, range(n_seeds))
    ]


def _random_directions(rng: np.random.RandomState, n: int, n_dimensions: int) -> np.ndarray:
    directions = rng.normal(size=(n, n_dimensions))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _make_deep_problem(
    activation: str, shape: tuple[int, ...], seed: int, rho: float
) -> RecoveryProblem:
    rng = np.random.RandomState(np.array([*shape, seed]))
    n_inputs, widths, n_outputs = shape[0], shape[1:-1], shape[-1]
    expanded = [n_inputs, *(int(np.ceil(rho * width)) for width in widths), n_outputs]
    n_parameters = sum((a + 1) * b for a, b in zip(expanded, expanded[1:], strict=False))
    X = rng.uniform(-(3**0.5), 3**0.5, size=(max(1000, 5 * n_parameters), n_inputs))
    while True:
        teacher = make_teacher(
            n_inputs, widths, n_outputs, activation, family="deep", random_state=rng
        )
        if not get_activation(activation).homogeneous or _all_kinks_show(teacher, X):
            break
    name = f"deep-{activation}-{'-'.join(map(str, shape))}-s{seed}"
    return RecoveryProblem(name, teacher, X, teacher.predict(X))


def _all_kinks_show(teacher: Teacher, X: np.ndarray) -> bool:
    """Whether each neuron is active on some rows and inactive on others, enough to locate it."""
    function = get_activation(teacher.activation).function
    values = X
    for weights, bias in zip(teacher.weights_[:-1], teacher.biases_[:-1], strict=True):
        z = values @ weights + bias
        share = (z > 0).mean(axis=0)
        if np.minimum(share, 1.0 - share).min() < MIN_KINK_SHARE:
            return False
        values = function(z)
    return True


def _make_problem(
    activation: str, family: Family, n_inputs: int, width: int, seed: int, rho: float
) -> RecoveryProblem:
    rng = np.random.RandomState(np.array([n_inputs, width, seed]))
    n_outputs = 1 + seed % 3 if family == "rough" else 1
    teacher = make_teacher(n_inputs, width, n_outputs, activation, family=family, random_state=rng)
    student_width = int(np.ceil(rho * width))
    n_parameters = student_width * (n_inputs + 1) + n_outputs * (student_width + 1)
    shape = (max(1000, 5 * n_parameters), n_inputs)
    X = rng.normal(size=shape) if family == "rough" else rng.uniform(-(3**0.5), 3**0.5, size=shape)
    name = f"{family}-{activation}-d{n_inputs}-r{width}-s{seed}"
    return RecoveryProblem(name, teacher, X, teacher.predict(X))
