"""From a model that answers to a certified network: choose inputs, ask, recover, ask again."""

from ._adapters import as_query
from ._audit import Audit, audit
from ._extract import Extraction, extract
from ._inputs import BiasedNoise, ColumnBootstrap, Composition, Examples, Gaussian, Uniform
from ._queries import QueryError

__all__ = [
    "Audit",
    "BiasedNoise",
    "ColumnBootstrap",
    "Composition",
    "Examples",
    "Extraction",
    "Gaussian",
    "QueryError",
    "Uniform",
    "as_query",
    "audit",
    "extract",
]
