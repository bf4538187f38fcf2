"""Look at a fitted estimator: plots in scikit-learn's manner, and the records they draw."""

from sklearn_ec._certify.certificate import Certificate
from sklearn_ec._core.records import Dendrogram

from ._alignment import AlignmentDisplay
from ._audit import AuditDisplay
from ._dendrogram import DendrogramDisplay
from ._extraction import ExtractionDisplay
from ._neuron_match import NeuronMatchDisplay
from ._search import SearchDisplay
from ._similarity import SimilarityDisplay
from ._student_loss import StudentLossDisplay

__all__ = [
    "AlignmentDisplay",
    "AuditDisplay",
    "Certificate",
    "Dendrogram",
    "DendrogramDisplay",
    "ExtractionDisplay",
    "NeuronMatchDisplay",
    "SearchDisplay",
    "SimilarityDisplay",
    "StudentLossDisplay",
]
