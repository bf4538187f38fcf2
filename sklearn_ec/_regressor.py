"""The public estimator: parameters, documentation and the order of the steps."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, _fit_context, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ._certify.uncertainty import noise_level
from ._core.activations import get_activation
from ._core.canonical import canonical_form
from ._core.coordinates import prepare
from ._core.parameters import assumed_widths, check_activation, check_angle
from ._core.precision import FLOATS, Precision, find_input_precision, find_precision
from ._core.settings import Settings
from ._core.threads import threads_for
from ._core.watch import OutOfTime
from ._fit import MAX_SEED, Fit, Recovery
from ._io.exporting import ExportMixin
from ._report.advice import (
    explain_failure,
    explain_interrupt,
    kind_of_targets,
    what_helps,
)
from ._report.doc_links import page_template, published_url
from ._report.reporting import CallbackSupportMixin, begin_fit, end_fit, print_network
from ._report.reports import ReportMixin
from ._search.ensemble import Ensemble

if TYPE_CHECKING:
    from typing_extensions import Self


class ExpandClusterRegressor(
    ReportMixin, ExportMixin, CallbackSupportMixin, MultiOutputMixin, RegressorMixin, BaseEstimator
):
    """Recover a neural network from samples of its input-output mapping.

    Expand-and-Cluster [1]_: train students that are ``rho`` times wider than the sought network,
    cluster their neurons' incoming weight vectors, and reconstruct the network from the clusters.
    Where the data come from a network and carry no noise, the reconstructed network is that network
    up to the symmetries of its activation, and ``recovered_`` says so.

    Parameters
    ----------
    rho : float or tuple of float, default=4
        Expansion factor: students have ``ceil(rho * width)`` neurons in each hidden layer. A tuple
        holds one factor per given hidden layer. At least 1.
    hidden_layer_sizes : int, tuple of int or "auto", default="auto"
        Widths assumed for the hidden layers of the sought network. The recovered widths may differ
        from the assumed ones, see ``layer_sizes_``; the number of hidden layers does not.
        ``"auto"`` searches one to three hidden layers, see Notes.
    activation : str, default="relu"
        Activation function of the sought network: "logistic", "tanh", "relu", "leaky_relu" (of
        slope 0.01; "leaky_relu(0.2)" sets another one), "softplus", "gelu", "silu", "elu", "erf" or
        "g", the paper's ``sigmoid(4x) + softplus(x)``. ``"auto"`` decides between them, see Notes;
        "logistic" counts as "tanh" then, since networks of either compute the same functions.
    n_students : int, default=20
        Largest number of students of a round, trained in groups of 10 until a group gives the
        network or most of it have converged; searches probe with fewer. See :ref:`training`.
    gamma : float, default=0.5
        Least fraction of the voting students that must share a cluster, in (0, 1]. Students whose
        loss reached ``tol`` vote; if these are fewer than 3, the better half of the trained ones.
    beta : float, default=pi/6
        Largest median angle between the vectors of a cluster, in radians.
    cut : {"local", "global"}, default="local"
        How the dendrogram is cut: every branch where its clusters last longest, or all at the one
        height where the number of large clusters peaks, as in the paper.
    solver : {"auto", "levenberg", "matrix_free", "adam"}, default="auto"
        How students are trained after a warm-up with Adam, and networks polished: ``"levenberg"``
        factorizes the normal equations, ``"matrix_free"`` solves them by preconditioned conjugate
        gradients, for networks of thousands of parameters and more; ``"auto"`` takes the first
        where it fits into ``working_memory`` and is fast. ``"adam"`` trains with minibatches alone,
        as a control. See :doc:`/user_guide/cost`.
    max_iter : int, default=300
        Largest number of iterations per student: Levenberg steps, or epochs of 100 minibatches of
        Adam.
    tol : float, default=1e-20
        Mean squared error, relative to the variance of y, at which a student has converged; that of
        the rounding of y where this is larger, see ``precision``.
    prune : bool, default=True
        Whether to remove superfluous neurons, and to prune single students where the clusters do
        not give the network. Without it the clusters decide alone.
    precision : {"auto", "float64", "float32", "float16"} or float, default="auto"
        How precisely y is known. A float is the step between neighboring values in the units of y:
        0.001 for three decimals. ``"auto"`` finds out from the type of y and from its values. Say
        it where y was computed from rounded numbers. See :ref:`precision`.
    device : str, default="auto"
        Device to compute on, as in torch: "cpu", "cuda", ...; "auto" is CUDA where there is one.
    memory : str, path or object with the joblib.Memory interface, default=None
        Where trained students are kept. A further fit to the same data with the same settings loads
        them, whatever its thresholds and ``n_students``; a fit that was killed goes on from its
        last checkpoint. Needs a fixed ``random_state``. See :ref:`cache`.
    n_jobs : int, default=None
        Number of groups of students that are trained at a time, as in joblib. The result does not
        depend on it.
    working_memory : float, default=None
        Memory in MiB for temporary arrays: as many students take a step at a time as fit in, with
        the same result up to rounding. None is scikit-learn's setting ``working_memory`` (1024 by
        default) on the CPU, and 80 % of the free memory on a GPU.
    max_time : float, default=None
        Seconds after which ``fit`` and ``recluster`` end with the best network so far, as after
        Ctrl-C, and warn. They end at the next step, and reconstruct the network then. None sets no
        limit.
    warm_start : bool, default=False
        Whether a further ``fit`` starts from the one before. To the same data, it keeps the
        students, so that with a larger ``n_students`` only new ones are trained. To other rows, it
        looks for the network among the students before it trains new ones. The seed of the first
        fit is kept, too.
    random_state : int, RandomState instance or None, default=None
        Seeds initial weights, minibatches of the warm-up and the choice of rows.
    verbose : int, default=0
        If positive, print a line per group of students, and one every few seconds in between.

    Attributes
    ----------
    layer_sizes_ : tuple of int
        Hidden widths of the reconstructed network.
    activation_ : str
        Its activation function.
    weights_ : list of ndarray
        Weight matrices, shape (fan_in, fan_out) each, as ``MLPRegressor.coefs_``. Neurons are
        sorted by decreasing norm of their outgoing weights. Odd activations have the sign that
        makes a neuron's largest outgoing weight positive; homogeneous activations have incoming
        vectors ``[w; b]`` of unit length in all hidden layers, their scale moved up. Where columns
        of X leave weights open (``certificate_.open_columns``), those of minimum norm are returned.
    biases_ : list of ndarray
        Bias vectors, shape (fan_out,) each.
    dendrogram_ : list of Dendrogram
        Per hidden layer the linkage tree over the students' neurons, with its cut. Above the first
        layer, incoming vectors are expressed on the neurons kept in the layers below, or on those
        of a certified network. Without one, the list ends with a layer without kept clusters.
    cluster_report_ : list of dict
        Per cluster its ``layer``, ``size`` (neurons), ``n_students`` (distinct), ``median_angle``
        (radians), ``height`` of its last merge, ``persistence`` (height of the next merge over that
        of the last one) and ``status``: "kept", "small" (fewer than ``gamma`` of the voting
        students), "unaligned" (median angle above ``beta``) or "unstable" (local cut, persistence
        below 3).
    origin_ : {"clusters", "student"}
        What made the network: the clusters, of the default thresholds where the given ones fail,
        or pruning of a single student.
    student_losses_ : ndarray of shape (n_trained_students,)
        Relative mean squared error of every student that was trained; nan where training failed.
    student_loss_curves_ : ndarray of shape (n_trained_students, n_epochs + 1)
        The same after the warm-up and after each epoch of 10 Levenberg steps or 100 minibatches of
        Adam, on the rows that these took; nan where a student was not trained any more.
    n_reused_students_ : int
        How many of them were not trained by this fit, but come from ``memory`` or, with
        ``warm_start``, from the fit before.
    n_agreeing_ : int
        Number of voting students that hold every neuron of the reconstructed network, up to an
        angle of 0.01 between incoming vectors.
    width_agreement_ : tuple of int
        How many pruned students have the widths of the network, and how many there are.
    search_report_ : list of dict
        What was tried, in order: ``depth``, assumed ``width``, ``activation``, ``n_students``,
        share of ``converged`` students, lowest ``loss`` and ``held_out_loss``, whether the network
        that came of it is ``certified``, and ``seconds``.
    loss_ : float
        Relative mean squared error of the reconstructed network on the training rows.
    noise_level_ : ndarray of shape (n_outputs,)
        Standard deviation of the residuals on the training rows, corrected for the number of
        parameters, in the units of y.
    recovered_ : bool
        Whether the weights, in the units of ``weights_``, are certified to be those of the network
        behind the data, up to a relative error of ``certificate_.weight_error``. See Notes.
    certificate_ : Certificate
        The measurements behind ``recovered_`` and the reason of a refusal. Where only columns of X
        leave weights open, its ``function_certified`` is True.
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
    ``recovered_`` needs no teacher: the errors on training and held-out rows are rounding, there
    are at least twice as many equations as parameters, the data determine the weights, and no other
    network nearby fits as well. :doc:`/user_guide/certificate` has the seven conditions.

    ``hidden_layer_sizes="auto"`` and ``activation="auto"`` probe shapes and activations with few
    students of few steps, cheapest first, up to the first certified network, see
    :doc:`/user_guide/search`. Assumed widths only need to be large enough.

    Where no network is exact, the data count as noisy, and the smallest network that fits about as
    well as any is returned, with ``recovered_ = False``, see :doc:`/user_guide/noise`.

    X and y are standardized internally; the affine maps are folded back into the first and the
    last layer exactly. Repeated rows are merged, their weights added up. The fitted estimator keeps
    its training data, in standardized coordinates, for ``recluster``.

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
        "activation": [str],  # one that is known, see _validate_params
        "n_students": [Interval(Integral, 1, None, closed="left")],
        "gamma": [Interval(Real, 0, 1, closed="right")],
        "beta": [Interval(Real, 0, math.pi, closed="both")],
        "cut": [StrOptions({"local", "global"})],
        "solver": [StrOptions({"auto", "levenberg", "matrix_free", "adam"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "prune": ["boolean"],
        "precision": [StrOptions({"auto", *FLOATS}), Interval(Real, 0, None, closed="neither")],
        "device": [str],
        "memory": [str, os.PathLike, HasMethods("cache"), None],
        "n_jobs": [Integral, None],
        "working_memory": [Interval(Real, 0, None, closed="neither"), None],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }
    _settings = Settings()
    # Where the HTML representation links to.
    _doc_link_module = "sklearn_ec"
    _doc_link_template = page_template(published_url())

    def __init__(
        self,
        rho: float | Sequence[float] = 4,
        *,
        hidden_layer_sizes: int | Sequence[int] | Literal["auto"] = "auto",
        activation: str = "relu",
        n_students: int = 20,
        gamma: float = 0.5,
        beta: float = math.pi / 6,
        cut: Literal["local", "global"] = "local",
        solver: Literal["auto", "levenberg", "matrix_free", "adam"] = "auto",
        max_iter: int = 300,
        tol: float = 1e-20,
        prune: bool = True,
        precision: float | Literal["auto", "float64", "float32", "float16"] = "auto",
        device: str = "auto",
        memory: Any = None,
        n_jobs: int | None = None,
        working_memory: float | None = None,
        max_time: float | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
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
        self.precision = precision
        self.device = device
        self.memory = memory
        self.n_jobs = n_jobs
        self.working_memory = working_memory
        self.max_time = max_time
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    @threads_for()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
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
        torch.OutOfMemoryError
            If the device has no memory for even one student.

        Warns
        -----
        ConvergenceWarning
            If the network is not certified, with what was measured and what to change. If the fit
            was interrupted or reached ``max_time``: the network is then the best one so far.
        UserWarning
            If ``memory`` is set without a fixed ``random_state``: nothing can be found again.
        EfficiencyWarning
            If the working memory is too small for a group of students, or if more than 20,000
            different neurons are clustered.
        """
        widths = assumed_widths(self.hidden_layer_sizes, self.rho)
        with Fit(self) as run:
            X, y, sample_weight, precision = self._validate(X, y, sample_weight)
            context = begin_fit(self, X, y)
            rng = np.random.default_rng(self._draw_seed())
            problem = prepare(
                X,
                y,
                sample_weight,
                rng,
                precision,
                find_input_precision(X),
                self._settings.preparation,
            )
            targets = kind_of_targets(problem, y, self._settings.verdict)
            known = self._known_groups if self.warm_start else None
            try:
                run.train(problem, widths, rng, known=known, targets=targets)
                recovery = run.recover()
            except KeyboardInterrupt as interrupt:
                recovery = run.best_so_far(interrupt)
        self._problem, self._targets = problem, targets
        self._set(recovery)
        end_fit(context, self, X, y)
        return self

    def predict(self, X: Any) -> np.ndarray:
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
        function = get_activation(self.activation_).function
        values = X
        for weights, bias in zip(self.weights_[:-1], self.biases_[:-1], strict=True):
            values = function(values @ weights + bias)
        outputs = values @ self.weights_[-1] + self.biases_[-1]
        return outputs[:, 0] if self._single_output else outputs

    @threads_for()
    def recluster(
        self,
        gamma: float | None = None,
        beta: float | None = None,
        cut: Literal["local", "global"] | None = None,
    ) -> Self:
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
        NotFittedError
            If the estimator has no students: those of :meth:`load` and
            :func:`~sklearn_ec.scaling.fold_scalers` have none.

        Warns
        -----
        ConvergenceWarning
            If the network is not certified, as in ``fit``.
        """
        self._check_has_training_rows("recluster")
        new = {"gamma": gamma, "beta": beta, "cut": cut}
        new = {name: value for name, value in new.items() if value is not None}
        clone(self).set_params(**new)._validate_params()
        self.set_params(**new)
        with Fit(self) as run:
            run.resume(self._problem, self._trained, self.search_report_)
            try:
                recovery = run.recover()
            except OutOfTime as interrupt:
                recovery = run.best_so_far(interrupt)
        self._set(recovery)
        return self

    def _validate_params(self) -> None:
        """Validate as scikit-learn does, with hints where a name or an angle is mistaken."""
        check_angle(self.beta)
        super()._validate_params()
        check_activation(self.activation)

    def _validate(
        self, X: Any, y: Any, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Precision]:
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
        precision = find_precision(y, self.precision)
        y = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        self.n_outputs_ = y.shape[1]
        return X, y, sample_weight, precision

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

    def _set(self, recovery: Recovery) -> None:
        """Set the learned attributes; print and warn as the verdict demands."""
        trained, candidate = recovery.trained, recovery.candidate
        self._trained, students = trained, trained.ensemble.students
        coordinates, samples = self._problem.coordinates, self._problem.train
        activation = get_activation(trained.activation)
        self.activation_ = trained.activation
        weights, biases = coordinates.to_original(candidate.network)
        self.weights_, self.biases_ = canonical_form(weights, biases, activation)
        self.layer_sizes_ = candidate.network.widths
        self.loss_ = candidate.certificate.error**2
        noise = noise_level(candidate.network, samples, activation)
        self.noise_level_ = coordinates.y_scale * noise
        self.certificate_ = recovery.certificate(getattr(self, "feature_names_in_", None))
        self.recovered_, self.origin_ = candidate.certificate.passed, recovery.origin
        self.search_report_ = recovery.search_report
        self.cluster_report_, self.dendrogram_ = recovery.layers.report, recovery.dendrograms
        self.n_agreeing_, self.width_agreement_ = recovery.n_agreeing, recovery.width_agreement
        self.student_losses_, self.student_loss_curves_ = students.losses, students.loss_curves
        self.n_iter_, self.n_reused_students_ = students.n_iter, trained.ensemble.n_reused
        if self.verbose:
            print_network(self, recovery.seconds)
        message = self._next_step = ""
        if recovery.interrupted_by:
            message = self._next_step = explain_interrupt(
                self, recovery.interrupted_by, len(students)
            )
        elif not self.recovered_:
            self._next_step = what_helps(self, self._targets, trained.ensemble)
            message = explain_failure(self, self._targets, trained.ensemble, self._next_step)
        if message:
            warnings.warn(message, ConvergenceWarning, stacklevel=3)
