"""What a fitted estimator tells on request."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from sklearn_ec._certify.uncertainty import standard_errors

from .html_panel import panel
from .summary import summary_text


class ReportMixin:
    """The summary, the HTML representation, and the standard errors of the weights."""

    weights_: list[np.ndarray]
    biases_: list[np.ndarray]
    activation_: str
    noise_level_: Any
    device: str
    _problem: Any

    def standard_errors(self) -> list[np.ndarray]:
        """Return the standard errors of the reconstructed network's weights.

        To first order in noise of standard deviation ``noise_level_`` (Gauss-Newton matrix),
        independent from row to row and from output to output. Homogeneous activations: at the unit
        length of the incoming vectors.

        Returns
        -------
        list of ndarray
            Per layer an array of shape (fan_in + 1, fan_out) in the units of ``weights_``, the
            standard errors of the biases in the last row.

        Raises
        ------
        NotFittedError
            If the estimator has no training rows: those of :meth:`load` and
            :func:`~sklearn_ec.scaling.fold_scalers` have none.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> [errors.shape for errors in model.standard_errors()]
        [(3, 1), (2, 1)]
        """
        self._check_has_training_rows("standard_errors")
        return standard_errors(
            self.weights_,
            self.biases_,
            self.noise_level_,
            self._problem,
            self.activation_,
            self.device,
        )

    def summary(self) -> None:
        """Print a short table: verdict, layers, clusters, students and what was measured.

        Each hidden layer has its neurons in the reconstructed network and the clusters by status,
        see ``cluster_report_``. Where the network is not certified, the second line says why, and
        the last ones what would help. Lines have at most 80 characters.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> model.summary()  # doctest: +ELLIPSIS
        ExpandClusterRegressor, activation tanh
        certified
        ...
        """
        check_is_fitted(self)
        print(summary_text(self))

    def _repr_html_inner(self) -> str:
        return panel(self) + super()._repr_html_inner()  # type: ignore[misc]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        """What notebooks show: scikit-learn's diagram, below the verdict."""
        bundle = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        if "text/html" in bundle:
            bundle["text/html"] = panel(self) + bundle["text/html"]
        return bundle

    def _check_has_training_rows(self, purpose: str) -> None:
        check_is_fitted(self)
        if not hasattr(self, "_problem"):
            raise NotFittedError(
                f"{purpose} needs the training rows and students, which save and fold_scalers do "
                "not keep: use the estimator that was fitted, or fit this one."
            )
