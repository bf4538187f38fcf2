"""An extraction attack of the Adversarial Robustness Toolbox (ART).

Needs the extra ``art``: ``pip install sklearn_ec[art]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_ec._io.optional_imports import import_optional

from ._extract import Extraction, extract

_attacks = import_optional("art.attacks.attack", "art")
_blackbox = import_optional("art.estimators.classification.blackbox", "art")
_estimators = import_optional("art.estimators.estimator", "art")

__all__ = ["ExpandClusterExtraction"]


class ExpandClusterExtraction(_attacks.ExtractionAttack):  # type: ignore[name-defined]
    """Extract the network of an ART classifier that gives logits.

    Parameters
    ----------
    classifier : art.estimators.classification.Classifier
        The victim: its ``predict`` gives the outputs of its last layer.
    known : ExpandClusterRegressor, default=None
        Holds what is known of the network, see :func:`~sklearn_ec.extraction.extract`.
    inputs : tuple (low, high), array-like or callable, default=None
        Where to ask, for inputs as vectors. None for the example rows that ``extract`` is given.
    max_queries : int, default=100_000
        Number of inputs that may be asked.
    random_state : int, RandomState instance or None, default=None
        Seed of the inputs.

    Attributes
    ----------
    extraction_ : Extraction
        The last extraction.
    """

    attack_params = ["known", "inputs", "max_queries", "random_state"]
    _estimator_requirements = (_estimators.BaseEstimator,)

    def __init__(
        self,
        classifier: Any,
        known: Any = None,
        inputs: Any = None,
        max_queries: int = 100_000,
        random_state: Any = None,
    ):
        super().__init__(estimator=classifier)
        self.known = known
        self.inputs = inputs
        self.max_queries = max_queries
        self.random_state = random_state
        self.extraction_: Extraction | None = None

    def extract(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        """Extract the network.

        Parameters
        ----------
        x : array-like of shape (n_rows, ...)
            Example inputs.
        y : None
            Not used.
        **kwargs : dict
            Not used.

        Returns
        -------
        art.estimators.classification.BlackBoxClassifier
            A classifier that runs the recovered network.
        """
        victim, shape = self.estimator, tuple(self.estimator.input_shape)
        rows = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
        self.extraction_ = extract(
            lambda X: victim.predict(X.reshape(-1, *shape).astype(np.float32)),
            rows if self.inputs is None else self.inputs,
            estimator=self.known,
            max_queries=self.max_queries,
            random_state=self.random_state,
        )
        network = self.extraction_.estimator
        return _blackbox.BlackBoxClassifier(
            lambda images: network.predict(images.reshape(len(images), -1).astype(np.float64)),
            input_shape=shape,
            nb_classes=victim.nb_classes,
            clip_values=victim.clip_values,
        )
