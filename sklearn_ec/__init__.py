"""Recover a neural network from its inputs and outputs."""

from . import datasets, inspection, metrics, probabilities, scaling
from ._regressor import ExpandClusterRegressor
from ._version import __version__

__all__ = [
    "ExpandClusterRegressor",
    "__version__",
    "datasets",
    "inspection",
    "metrics",
    "probabilities",
    "scaling",
]
