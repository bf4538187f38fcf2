"""The public estimator: parameters, documentation and the order of the steps."""

from __future__ import annotations

import math
import os
import time
import warnings
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, _fit_context, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ._activations import ACTIVATIONS, get_activation
from ._annealing import Annealer, Candidate
from ._cache import open_store
from ._clustering import average_linkage, cluster_labels, cluster_report, find_clusters
from ._ensemble import Ensemble, Recipe
from ._expansion import WidthSearch, find_width
from ._export import to_mlp_regressor, to_sequential
from ._groups import GroupTrainer, Interrupted
from ._preprocessing import prepare
from ._progress import CallbackSupportMixin, Stage, begin_fit, end_fit, print_network
from ._reconstruction import canonical_form, collapse, incoming_vectors
from ._students import layer_shapes
from ._training import Trainer
from ._types import Dendrogram, Students

N_PROBES = 5
MAX_SEED = np.iinfo(np.int32).max


class ExpandClusterRegressor(CallbackSupportMixin, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Recover a neural network from samples of its input-output mapping.

    Expand-and-Cluster [1]_: train students that are ``rho`` times wider than the sought network,
    cluster their neurons' incoming weight vectors, and reconstruct the network from the clusters.
    Where the data come from a network and carry no noise, the reconstructed network is that network
    up to the symmetries of its activation, and ``recovered_`` says so.

    Parameters
    ----------
    rho : float or tuple of float, default=4
        Expansion factor: students have ``ceil(rho * width)`` neurons in each hidden layer. A tuple
        holds one factor per hidden layer. At least 1.
    hidden_layer_sizes : int, tuple of int or "auto", default="auto"
        Widths assumed for the hidden layers of the sought network. ``"auto"`` assumes one hidden
        layer and doubles its width from 1 until students fit the data exactly. It gives up where
        students would hold more parameters than there are equations, ``n_samples * n_outputs``, or
        where two doublings in a row did not lower the loss on held-out rows by a tenth; the best
        width on these rows is taken then. The recovered widths may differ from the assumed ones,
        see ``layer_sizes_``; the number of hidden layers does not.
    activation : str, default="relu"
        Activation function of the sought network: "logistic", "tanh", "relu", "leaky_relu" (slope
        0.01), "softplus", "gelu", "silu", "elu", "erf" or "g", the paper's
        ``sigmoid(4x) + softplus(x)``.
    n_students : int, default=20
        Largest number of students. They are trained in groups of 10, one group after the other,
        until one of them, pruned, is certified or 60 % of a group have converged (without pruning,
        all groups are trained). The search for the width probes each width with 5; where it finds
        none that fits the data, the best of these are the students. Where fewer than 3 deep
        students converged and none gave the network, as many again are trained.
    gamma : float, default=0.5
        Least fraction of the voting students that must share a cluster, in (0, 1]. Students whose
        loss reached ``tol`` vote. If these are fewer than 3, some of the best students are annealed
        to join them where this gives the network; else the better half of the trained ones votes.
    beta : float, default=pi/6
        Largest median angle between the vectors of a cluster, in radians.
    cut : {"local", "global"}, default="local"
        How the dendrogram is cut: every branch where its clusters last longest, or all at the one
        height where the number of large clusters peaks, as in the paper.
    solver : {"levenberg", "adam"}, default="levenberg"
        How students are trained: batched Levenberg after a warm-up of 1,000 steps of Adam, or
        minibatch Adam alone, with a cosine learning rate, as a control. Reconstructed networks are
        always polished with Levenberg.
    max_iter : int, default=300
        Largest number of iterations per student: Levenberg steps, or epochs of 100 minibatches of
        Adam.
    tol : float, default=1e-20
        Mean squared error, relative to the variance of y, at which a student has converged.
    prune : bool, default=True
        Whether to remove superfluous neurons one group after the other (annealed pruning), and to
        anneal single students where the clusters alone do not give the network. Without it the
        clusters decide alone.
    device : str, default="auto"
        Device to train on, as in torch: "cpu", "cuda", ...; "auto" is CUDA where there is one.
    memory : str, path or object with the joblib.Memory interface, default=None
        Where trained students are kept. A further fit to the same data with the same settings loads
        them, whatever its ``gamma``, ``beta``, ``cut`` and ``n_students``; a fit that was killed
        goes on from its last checkpoint (at most a second, or 10 Levenberg steps, earlier). Needs
        a fixed ``random_state``. See :ref:`cache`.
    n_jobs : int, default=None
        Number of groups of students that are trained at a time, as in joblib: None is 1 unless in
        a ``joblib.parallel_config`` context, -1 all processors. The result does not depend on it.
    working_memory : float, default=None
        Memory in MiB that the training may take for temporary arrays: so many students take a step
        at a time as fit in, with the same result up to rounding. None is scikit-learn's setting
        ``working_memory`` (1024 by default) on the CPU, and 80 % of the free memory on a GPU.
    warm_start : bool, default=False
        Whether a further ``fit`` to the same data keeps the students that it has, so that with a
        larger ``n_students`` only new ones are trained. The seed of the first fit is kept, too.
    random_state : int, RandomState instance or None, default=None
        Seeds the students' initial weights, the minibatches of the warm-up and the choice of
        held-out rows.
    verbose : int, default=0
        Print one line per group of students and one for the network if positive.

    Attributes
    ----------
    layer_sizes_ : tuple of int
        Hidden widths of the reconstructed network.
    weights_ : list of ndarray
        Weight matrices, shape (fan_in, fan_out) each, as ``MLPRegressor.coefs_``. Neurons are
        sorted by decreasing norm of their outgoing weights. Odd activations have the sign that
        makes a neuron's largest outgoing weight positive; homogeneous activations have incoming
        vectors ``[w; b]`` of unit length in all hidden layers, their scale moved up. Where columns
        of X are constant or linearly dependent, incoming weights are not determined; those of
        minimum norm are returned.
    biases_ : list of ndarray
        Bias vectors, shape (fan_out,) each.
    dendrogram_ : list of Dendrogram
        Per hidden layer the linkage tree over the students' neurons, with its cut. Above the first
        layer, incoming vectors are expressed on the neurons kept in the layers below (on those of
        the reconstructed network once it is certified), and neurons that these do not explain are
        left out. Without a certificate, the list ends with a layer without kept clusters.
    cluster_report_ : list of dict
        Per cluster its ``layer``, ``size`` (neurons), ``n_students`` (distinct), ``median_angle``
        (radians), ``height`` of its last merge, ``persistence`` (height of the next merge over that
        of the last one) and ``status``: "kept", "small" (fewer than ``gamma`` of the voting
        students), "unaligned" (median angle above ``beta``) or "unstable" (local cut, persistence
        below 3).
    student_losses_ : ndarray of shape (n_trained_students,)
        Relative mean squared error of every student that was trained; nan where training failed.
    student_loss_curves_ : ndarray of shape (n_trained_students, n_epochs + 1)
        Relative mean squared error of every student after the warm-up and after each epoch of 10
        Levenberg steps (before training and after each epoch of 100 minibatches with
        ``solver="adam"``); nan where a student was not trained any more.
    n_reused_students_ : int
        How many of them were not trained by this fit, but come from ``memory`` or, with
        ``warm_start``, from the fit before.
    n_agreeing_ : int
        Number of voting and annealed students that hold every neuron of the reconstructed network,
        up to an angle of 0.01 between incoming vectors.
    loss_ : float
        Relative mean squared error of the reconstructed network on the training rows.
    recovered_ : bool
        Whether the network is certified to be the one behind the data, see Notes.
    certificate_ : Certificate
        The measurements behind ``recovered_`` and the reason of a refusal.
    n_iter_ : int
        Iterations taken by the students.
    n_outputs_ : int
        Number of outputs.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during fit, where X has names that are all strings.

    Notes
    -----
    ``recovered_`` needs no teacher. It is True only if

    1. the relative root mean squared error ``e`` is at rounding level on the training rows and on a
       tenth of the rows (at most 1,000) that are kept out of training;
    2. the equations ``n_samples * n_outputs`` outnumber the reconstructed network's parameters at
       least twofold;
    3. the data determine the weights: ``e <= 1e-3 * s`` with the smallest singular value ``s`` of
       the network's scaled Jacobian;
    4. no other network nearby fits as well: ``e * c <= 0.1 * s**2`` for each of the 10 weakest
       singular directions, with the curvature ``c`` of the residuals along it (the
       Newton-Kantorovich condition). A network with a spare neuron fails here;
    5. no neuron is a linear function on the data, as those of a superfluous layer can be.

    X and y are standardized internally; the affine maps are folded back into the first and the
    last layer exactly. Repeated rows are merged, their weights added up.

    The fitted estimator keeps its training data, in standardized coordinates, for ``recluster``.

    References
    ----------
    .. [1] F. Martinelli, B. Şimşek, W. Gerstner and J. Brea. "Expand-and-Cluster: Parameter
       Recovery of Neural Networks". ICML 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ec import ExpandClusterRegressor
    >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
    >>> y = np.tanh(X @ [1.0, -0.5] + 0.3) - np.tanh(X @ [0.2, 1.0])
    >>> model = ExpandClusterRegressor(
    ...     hidden_layer_sizes=2, activation="tanh", n_students=4, random_state=0
    ... ).fit(X, y)
    >>> model.recovered_, model.layer_sizes_
    (True, (2,))
    """

    _parameter_constraints: dict = {
        "rho": [Interval(Real, 1, None, closed="left"), "array-like"],
        "hidden_layer_sizes": [
            "array-like",
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "n_students": [Interval(Integral, 1, None, closed="left")],
        "gamma": [Interval(Real, 0, 1, closed="right")],
        "beta": [Interval(Real, 0, math.pi, closed="both")],
        "cut": [StrOptions({"local", "global"})],
        "solver": [StrOptions({"levenberg", "adam"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "prune": ["boolean"],
        "device": [str],
        "memory": [str, os.PathLike, HasMethods("cache"), None],
        "n_jobs": [Integral, None],
        "working_memory": [Interval(Real, 0, None, closed="neither"), None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        rho=4,
        *,
        hidden_layer_sizes="auto",
        activation="relu",
        n_students=20,
        gamma=0.5,
        beta=math.pi / 6,
        cut="local",
        solver="levenberg",
        max_iter=300,
        tol=1e-20,
        prune=True,
        device="auto",
        memory=None,
        n_jobs=None,
        working_memory=None,
        warm_start=False,
        random_state=None,
        verbose=0,
    ):
        self.rho = rho
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.n_students = n_students
        self.gamma = gamma
        self.beta = beta
        self.cut = cut
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.prune = prune
        self.device = device
        self.memory = memory
        self.n_jobs = n_jobs
        self.working_memory = working_memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Train students on (X, y), cluster their neurons and reconstruct the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Inputs of the sought network.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Its outputs.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the squared error; rows of weight zero are ignored.

        Returns
        -------
        self : ExpandClusterRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If an input or a parameter is not usable.

        Warns
        -----
        ConvergenceWarning
            If the network is not certified, with what was measured and what to change. If training
            was interrupted (Ctrl-C): the network is then the best one so far.
        UserWarning
            If ``memory`` is set without a fixed ``random_state``: nothing can be found again.
        EfficiencyWarning
            If the working memory is too small for a group of students.
        """
        widths = self._assumed_widths()
        X, y, sample_weight = self._validate(X, y, sample_weight)
        progress = begin_fit(self, X, y)
        rng = np.random.default_rng(self._draw_seed())
        self._problem = prepare(X, y, sample_weight, rng)
        annealer = self._annealer()
        self._ensemble = None
        try:
            search = WidthSearch(widths) if widths else self._find_width(annealer, rng)
            ensemble = self._train_students(annealer, search, rng)
            self._search, self._ensemble = search, ensemble
            self._ensemble.confirm(annealer)
            self._reconstruct(annealer)
        except KeyboardInterrupt as interrupt:
            self._settle(annealer, interrupt)
        end_fit(progress, self, X, y)
        return self

    def predict(self, X):
        """Run the reconstructed network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Inputs.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Outputs in float64, one-dimensional if y was in ``fit``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        function = get_activation(self.activation).function
        values = X
        for weights, bias in zip(self.weights_[:-1], self.biases_[:-1], strict=True):
            values = function(values @ weights + bias)
        outputs = values @ self.weights_[-1] + self.biases_[-1]
        return outputs[:, 0] if self._single_output else outputs

    def recluster(self, gamma=None, beta=None, cut=None):
        """Cut the fitted students' dendrogram anew and reconstruct the network, without training.

        The result is what ``fit`` with these thresholds would have given.

        Parameters
        ----------
        gamma : float, default=None
            New ``gamma``; None keeps the present one.
        beta : float, default=None
            New ``beta`` in radians; None keeps the present one.
        cut : {"local", "global"}, default=None
            New ``cut``; None keeps the present one.

        Returns
        -------
        self : ExpandClusterRegressor
            The estimator with new parameters and learned attributes.

        Raises
        ------
        ValueError
            If a threshold is out of range; the estimator stays as it was.

        Warns
        -----
        ConvergenceWarning
            If the network is not certified, as in ``fit``.
        """
        check_is_fitted(self)
        new = {"gamma": gamma, "beta": beta, "cut": cut}
        new = {name: value for name, value in new.items() if value is not None}
        clone(self).set_params(**new)._validate_params()
        self.set_params(**new)._reconstruct(self._annealer())
        return self

    def to_torch(self):
        """Return the reconstructed network as a torch module.

        Returns
        -------
        torch.nn.Sequential
            Linear layers in float64 with the activation between them, on the CPU. Outputs have
            shape (n_samples, n_outputs).

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> model.to_torch()
        Sequential(
          (0): Linear(in_features=2, out_features=1, bias=True)
          (1): Tanh()
          (2): Linear(in_features=1, out_features=1, bias=True)
        )
        """
        check_is_fitted(self)
        return to_sequential(self.weights_, self.biases_, self.activation)

    def to_mlp_regressor(self):
        """Return the reconstructed network as a fitted ``MLPRegressor``.

        Returns
        -------
        sklearn.neural_network.MLPRegressor
            A regressor with the same predictions.

        Raises
        ------
        ValueError
            If ``MLPRegressor`` lacks the activation: it has logistic, tanh and relu.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> np.allclose(model.to_mlp_regressor().predict(X), model.predict(X))
        True
        """
        check_is_fitted(self)
        mlp = to_mlp_regressor(self.weights_, self.biases_, self.activation)
        if hasattr(self, "feature_names_in_"):
            mlp.feature_names_in_ = self.feature_names_in_
        return mlp

    def _assumed_widths(self) -> tuple[int, ...] | None:
        """The given widths, None for ``"auto"``."""
        sizes = self.hidden_layer_sizes
        rhos = np.atleast_1d(np.asarray(self.rho, dtype=float))
        if rhos.ndim != 1 or not (rhos >= 1).all():
            raise ValueError(
                f"rho must be a number of at least 1 or a tuple of such numbers, got {self.rho!r}."
            )
        if not isinstance(sizes, str):
            sizes = np.atleast_1d(np.asarray(sizes))
            if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 1).any():
                raise ValueError(
                    "hidden_layer_sizes must be a positive int, a tuple of positive ints or "
                    f"'auto', got {self.hidden_layer_sizes!r}."
                )
        n_layers = 1 if isinstance(sizes, str) else len(sizes)
        if np.ndim(self.rho) and len(rhos) != n_layers:
            raise ValueError(
                f"rho={self.rho!r} has {len(rhos)} factors for {n_layers} hidden layers: give one "
                "per layer, or one number for all."
            )
        return None if isinstance(sizes, str) else tuple(sizes.tolist())

    def _validate(
        self, X: Any, y: Any, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        X, y = validate_data(
            self,
            X,
            y,
            multi_output=True,
            y_numeric=True,
            dtype=np.float64,
            ensure_min_samples=2,
        )
        sample_weight = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        self._single_output = y.ndim == 1
        y = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        self.n_outputs_ = y.shape[1]
        return X, y, sample_weight

    def _annealer(self) -> Annealer:
        problem = self._problem
        trainer = Trainer(
            problem.train,
            problem.held_out,
            self.activation,
            self.device,
            has_skip=get_activation(self.activation).has_linear_flip,
            working_memory=self.working_memory,
        )
        y_rounding = problem.coordinates.y_rounding
        store = open_store(self.memory)
        return Annealer(trainer, problem.held_out, y_rounding, self.prune, store)

    def _draw_seed(self) -> int:
        """The seed of this fit; with ``warm_start`` that of the first one."""
        if self.memory is not None and self.random_state is None:
            warnings.warn(
                "memory is set, but random_state is None: every fit draws new students and finds "
                "nothing again. Set random_state to an integer.",
                stacklevel=3,
            )
        if not (self.warm_start and hasattr(self, "_seed")):
            self._seed = int(check_random_state(self.random_state).randint(MAX_SEED))
            self._known_groups: dict[str, Ensemble] = {}
        return self._seed

    def _find_width(self, annealer: Annealer, rng: np.random.Generator) -> WidthSearch:
        def train_probes(width: int) -> tuple[Students, int | None]:
            seeds = rng.integers(MAX_SEED, size=min(N_PROBES, self.n_students))
            ensemble = self._train(annealer, seeds, (width,))
            if ensemble.certified:
                network = next(iter(ensemble.certified.values())).network
                return ensemble.students, network.widths[0]
            most_converged = np.mean(ensemble.students.losses <= self.tol) >= 0.5
            return ensemble.students, width if most_converged else None

        def n_parameters(width: int) -> int:
            n_inputs, widths = self._problem.train.X.shape[1], self._student_widths((width,))
            return sum(map(math.prod, layer_shapes(n_inputs, widths, self.n_outputs_, False)))

        return find_width(train_probes, n_parameters, self._problem.train.n_equations)

    def _train_students(
        self, annealer: Annealer, search: WidthSearch, rng: np.random.Generator
    ) -> Ensemble:
        """The students of the assumed width; its probes where the search for it failed."""
        if search.students is not None:
            ensemble = Ensemble(search.students, self.tol)
        else:
            seeds = rng.integers(MAX_SEED, size=self.n_students)
            ensemble = self._train(annealer, seeds, search.widths)
            if len(search.widths) > 1 and ensemble.is_promising:
                seeds = rng.integers(MAX_SEED, size=self.n_students)
                ensemble = ensemble.joined(self._train(annealer, seeds, search.widths))
        losses = ensemble.students.losses
        n_failed = int(np.sum(~np.isfinite(losses)))
        if n_failed == len(losses):
            raise ValueError(
                f"The training of all {n_failed} students diverged: check the scale of y, "
                "remove outliers from it, or choose another activation."
            )
        if n_failed:
            warnings.warn(
                f"{n_failed} of {len(losses)} students diverged and were dropped.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return ensemble

    def _train(self, annealer: Annealer, seeds: np.ndarray, widths: tuple[int, ...]) -> Ensemble:
        recipe = Recipe(self._student_widths(widths), self.solver, self.max_iter, self.tol)
        stage = Stage(self, widths, len(seeds), recipe.max_epochs)
        known = self._known_groups if self.warm_start else None
        trainer = GroupTrainer(annealer, recipe, stage, n_jobs=self.n_jobs, known=known)
        try:
            ensemble = trainer.train(seeds)
        except Interrupted as interrupt:
            self._keep_best(interrupt.ensemble, widths)
            raise
        stage.end()
        self._keep_best(ensemble, widths)
        return ensemble

    def _keep_best(self, ensemble: Ensemble, widths: tuple[int, ...]) -> None:
        """Remember the students to use should the fit be interrupted."""
        loss = ensemble.students.best_held_out_loss
        if self._ensemble is None or loss < self._ensemble.students.best_held_out_loss:
            self._ensemble, self._search = ensemble, WidthSearch(widths)

    def _student_widths(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        factors = np.broadcast_to(self.rho, len(widths)).tolist()
        return tuple(math.ceil(f * width) for f, width in zip(factors, widths, strict=True))

    def _settle(self, annealer: Annealer, interrupt: KeyboardInterrupt) -> None:
        """Take the best network so far, where there is one."""
        if self._ensemble is None:
            raise interrupt
        self._reconstruct(annealer, interrupted=True)
        warnings.warn(
            f"The fit was interrupted with {len(self._ensemble.students)} students: the network is "
            "the best one so far. recluster() finishes it from these students.",
            ConvergenceWarning,
            stacklevel=3,
        )

    def _reconstruct(self, annealer: Annealer, interrupted: bool = False) -> None:
        """Everything that depends on the thresholds: cluster, collapse, finish, set attributes."""
        start = time.perf_counter()
        collapsed = self._cluster(annealer)
        ensemble = self._ensemble
        if ensemble.certified:
            candidate = next(iter(ensemble.certified.values()))
        elif interrupted:
            candidate = annealer.judge_as_is(ensemble.students.best)
        else:
            candidate = self._best_candidate(annealer, collapsed)
        self._set_network(candidate)
        self.n_agreeing_ = ensemble.n_agreeing(candidate.network, annealer.trainer)
        for index, record in enumerate(self.dendrogram_):
            self.dendrogram_[index] = replace(
                record, n_students=len(ensemble.students), n_agreeing=self.n_agreeing_
            )
        if self.verbose:
            print_network(self, time.perf_counter() - start)
        if not (self.recovered_ or interrupted):
            warnings.warn(self._explain_failure(), ConvergenceWarning, stacklevel=3)

    def _cluster(self, annealer: Annealer) -> list[np.ndarray]:
        """The collapsed hidden layers, from the inputs up to a layer without any cluster.

        Incoming vectors above the first layer are expressed on the collapsed neurons below, or on
        those of the network once it is certified.
        """
        certified = next(iter(self._ensemble.certified.values()), None)
        self.dendrogram_: list[Dendrogram] = []
        self.cluster_report_: list[dict[str, Any]] = []
        collapsed: list[np.ndarray] = []
        for layer in range(len(self._search.widths)):
            lower = list(certified.network.layers[:layer]) if certified else collapsed
            kept = self._cluster_layer(layer, lower, annealer.trainer)
            if not (len(kept) or certified):
                break
            collapsed.append(kept)
        return collapsed

    def _cluster_layer(self, layer: int, lower: list[np.ndarray], trainer: Trainer) -> np.ndarray:
        """One incoming vector per kept cluster of a layer, in the basis of those below."""
        activation, voters = trainer.activation, self._ensemble.voters()
        vectors, owners, neurons = incoming_vectors(voters, lower, trainer.samples, activation)
        if not len(vectors):  # nothing that the layers below explain
            return vectors
        tree = average_linkage(vectors, activation.has_sign_flip)
        clusters = find_clusters(
            vectors,
            tree,
            owners,
            min_students=math.ceil(self.gamma * len(voters) - 1e-9),
            beta=self.beta,
            cut=self.cut,
            has_sign_flip=activation.has_sign_flip,
        )
        self.cluster_report_ += cluster_report(clusters, layer)
        labels, heights = cluster_labels(clusters, len(vectors))
        self.dendrogram_.append(Dendrogram(tree, owners, neurons, labels, heights))
        return collapse(clusters, vectors, owners, self._ensemble.students.losses)

    def _best_candidate(self, annealer: Annealer, collapsed: list[np.ndarray]) -> Candidate:
        """The first certified network of the clusters and the best students, else the best.

        Without a certificate, the lowest error on held-out rows decides.
        """
        candidates = []
        if len(collapsed) == len(self._search.widths):
            candidates.append(annealer.finish(annealer.solve_readout(collapsed)))
        if self.prune and not (candidates and candidates[0].certificate.passed):
            candidates.extend(self._ensemble.anneal_best(annealer))
        for candidate in candidates:
            if candidate.certificate.passed:
                return candidate
        candidates.append(annealer.judge_as_is(self._ensemble.students.best))
        return min(candidates, key=lambda candidate: candidate.certificate.held_out_error)

    def _set_network(self, candidate: Candidate) -> None:
        weights, biases = self._problem.coordinates.to_original(candidate.network)
        activation = get_activation(self.activation)
        self.weights_, self.biases_ = canonical_form(weights, biases, activation)
        self.layer_sizes_ = candidate.network.widths
        self.loss_ = candidate.certificate.error**2
        self.certificate_ = candidate.certificate
        self.recovered_ = candidate.certificate.passed
        self.student_losses_ = self._ensemble.students.losses
        self.student_loss_curves_ = self._ensemble.students.loss_curves
        self.n_iter_ = self._ensemble.students.n_iter
        self.n_reused_students_ = self._ensemble.n_reused

    def _explain_failure(self) -> str:
        losses = self.student_losses_
        n_kept = sum(cluster["status"] == "kept" for cluster in self.cluster_report_)
        message = (
            f"The network is not certified: {self.certificate_.reason}. "
            f"{np.sum(losses <= self.tol)} of {len(losses)} students reached the target loss "
            f"{self.tol:g} (best {np.nanmin(losses):.1e}), {n_kept} clusters were kept. "
        )
        if self._search.problem:
            message += f"The search for the width ended at {self._search.widths[0]}: "
            message += f"{self._search.problem}. "
        return message + (
            "If the data are free of noise, raise rho, n_students or max_iter, give more rows or "
            "try another activation; noisy data cannot be recovered exactly."
        )
