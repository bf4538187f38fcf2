"""Why a network is not certified, and what would help: one message for each reason.

Only what the measurements speak for is proposed: no more steps for students that stand still, no
more students where all of them end at the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sklearn_ec._certify.certificate import Certificate
from sklearn_ec._core.coordinates import Problem
from sklearn_ec._core.hints import counted_output_hint
from sklearn_ec._core.records import Samples, Students
from sklearn_ec._core.settings import DEFAULTS, Settings, Verdict
from sklearn_ec._search.ensemble import Ensemble

# Held-out errors that exceed the training error by this factor show that rows are few.
OVERFIT = 10.0
# A student was still improving where its last epoch left less than this share of the loss.
IMPROVING = 0.7
# Students stand at different losses where the best is below this share of the median.
DIFFERENT = 0.1
MAX_CLASSES = 30
MAX_NAMES = 5  # of columns that a message lists
LARGEST_OFFSET = 1e-6  # of sums of probabilities from 1

TargetKind = Literal["numbers", "constant", "linear", "steps", "labels", "probabilities"]
WITHOUT_NEURONS = ("constant", "linear")  # targets that no hidden neuron leaves a trace in
WITHOUT_NETWORK = (*WITHOUT_NEURONS, "steps")  # targets that no network made


@dataclass(frozen=True)
class Evidence:
    """What a fit knows besides the certificate."""

    targets: TargetKind
    students: Students
    tol: float
    max_iter: int
    n_outputs: int
    is_noisy: bool  # whether most pruned students agree on a network behind noisy data
    activation_given: bool
    sizes_given: bool
    settings: Settings = DEFAULTS


def advice(certificate: Certificate, evidence: Evidence) -> str:
    """What to change, in one or two sentences."""
    if evidence.targets in ("labels", *WITHOUT_NETWORK):
        return TARGET_ADVICE[evidence.targets]
    match certificate.obstacle:
        case "equations":
            settings = evidence.settings
            needed = settings.verdict.min_equations_per_parameter * certificate.n_parameters
            missing = math.ceil((needed - certificate.n_equations) / evidence.n_outputs)
            share = 1.0 - settings.preparation.held_out_share  # of the rows, up to rounding
            return f"Give at least {math.ceil((missing + 1) / share)} more rows."
        case "columns":
            return _about_columns(certificate)
        case "bend":
            return (
                "Assume fewer layers or neurons, or give rows on both sides of the neuron's bend."
            )
        case "weights" | "isolation":
            more = "" if certificate.precision == "float64" else _about_precision(certificate)
            return f"Give more rows, or rows that vary more.{more}"
        case "redundancy":
            return "Give more rows, most of all where two nearly equal neurons switch on."
        case "no rows left":
            return "Compare the network with rows that fit has not seen."
        case "structure":
            return f"Another network made the data: {_about_the_model(evidence)}"
    hint = f"{TARGET_ADVICE['probabilities']} " if evidence.targets == "probabilities" else ""
    return hint + _about_the_error(certificate, evidence)


TARGET_ADVICE: dict[TargetKind, str] = {
    "constant": "y is constant: no hidden neuron leaves a trace in it.",
    "linear": (
        "y is a linear function of X: no hidden neuron leaves a trace in it. Give rows that reach "
        "further, to where the network bends, or use LinearRegression."
    ),
    "steps": (
        f"y takes at most {MAX_CLASSES} values, as labels do, where X takes many: a network is "
        "recovered from what it computes, not from the class it decides for. Give its logits or "
        "probabilities, see sklearn_ec.probabilities."
    ),
    "labels": (
        "y looks like class labels: a network is recovered from what it computes, not from the "
        "class it decides for. Give its logits or probabilities, see sklearn_ec.probabilities."
    ),
    "probabilities": (
        "If y holds the probabilities of a classifier, give its logits or log-probabilities, see "
        "sklearn_ec.probabilities."
    ),
}


def _about_columns(certificate: Certificate) -> str:
    names = enumerated(certificate.open_columns)
    if len(certificate.open_columns) == 1:
        rows = "Give rows in which this column varies more, or leave it out."
    else:
        rows = (
            "Give rows in which each of these columns varies independently of the others, or leave "
            "out those that follow from others."
        )
    return (
        f"The function is certified for inputs like those in X, but the weights on {names} are not "
        f"determined. {rows}"
    )


def enumerated(names: Sequence[str]) -> str:
    """Names with commas, the first few of many."""
    if len(names) <= MAX_NAMES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MAX_NAMES])} and {len(names) - MAX_NAMES} more"


def _about_precision(certificate: Certificate) -> str:
    return f" y is known to {certificate.precision}: query the network in float64 if you can."


def _about_the_error(certificate: Certificate, evidence: Evidence) -> str:
    is_fitted = certificate.fits_exactly or evidence.is_noisy
    if is_fitted and certificate.held_out_error > OVERFIT * certificate.error:
        return "The error is larger on rows that were kept out of training: give more rows."
    if evidence.is_noisy:
        return (
            "The data are taken as noisy, and this is the smallest network that explains them; "
            "noisy data cannot be recovered exactly. If they are free of noise, "
            f"{_about_the_model(evidence)}"
        )
    if _still_improving(evidence):
        return "The students were still improving: raise max_iter."
    losses = evidence.students.losses
    losses = losses[np.isfinite(losses)]
    if losses.min(initial=np.inf) < DIFFERENT * np.median(losses):
        return (
            "The students stand still at different losses: raise n_students or rho. If it "
            f"persists, {_about_the_model(evidence)}"
        )
    return f"The students stand still at the same loss: {_about_the_model(evidence)}"


def _about_the_model(evidence: Evidence) -> str:
    proposals = []
    if evidence.activation_given:
        proposals.append('another activation (activation="auto" compares them)')
    if evidence.sizes_given:
        proposals.append('other widths or depths (hidden_layer_sizes="auto" searches)')
    if not proposals:
        return "no small network of the known activations may have made these data."
    return f"try {' or '.join(proposals)}."


def _still_improving(evidence: Evidence) -> bool:
    """Whether the best student fell until the last step that it was given."""
    students = evidence.students
    ranked = students.by_loss()
    if len(ranked) == 0 or students.n_iter < evidence.max_iter:
        return False
    curve = students.loss_curves[ranked[0]]
    curve = curve[np.isfinite(curve)]
    return len(curve) > 1 and curve[-1] > evidence.tol and curve[-1] < IMPROVING * curve[-2]


def kind_of_targets(
    problem: Problem, y: np.ndarray, settings: Verdict = DEFAULTS.verdict
) -> TargetKind:
    """Whether targets are of a kind that holds no network, or hides it; ``y`` as given."""
    samples, coordinates = problem.train, problem.coordinates
    exact_rounding = settings.rounding_factor * coordinates.y_rounding
    rounding = max(exact_rounding, np.sqrt(samples.rounding_loss))
    if (np.ptp(samples.y, axis=0) <= rounding).all():
        return "constant"
    least = math.ceil(settings.min_equations_per_parameter * (samples.X.shape[1] + 1))
    if len(samples.X) > least:
        few = samples.take(np.linspace(0, len(samples.X) - 1, 2 * least, dtype=int))
        if _linear_error(few) <= rounding and _linear_error(samples) <= rounding:
            return "linear"
    return "steps" if _are_steps(samples) else _kind_of_classes(y)


def _are_steps(samples: Samples) -> bool:
    """Whether targets take few values, each in several rows, and each input many."""
    if len(np.unique(samples.y[: 10 * MAX_CLASSES], axis=0)) > MAX_CLASSES:
        return False  # of large tables, not all rows are sorted to see this
    values, counts = np.unique(samples.y, axis=0, return_counts=True)
    if len(values) > MAX_CLASSES or counts.min() < 2:
        return False
    return all(len(np.unique(column)) > 2 * MAX_CLASSES for column in samples.X.T)


def _linear_error(samples: Samples) -> float:
    """Root mean squared error of the best affine map."""
    features = np.column_stack([samples.X, np.ones(len(samples.X))])
    residuals = samples.y - features @ np.linalg.lstsq(features, samples.y, rcond=None)[0]
    return float(np.sqrt(np.mean(residuals**2)))


def _kind_of_classes(y: np.ndarray) -> TargetKind:
    if y.shape[1] == 1 and len(y) > 2 * MAX_CLASSES:
        values = np.unique(y)
        if len(values) <= MAX_CLASSES and (values == np.round(values)).all():
            return "labels"
    if not ((y >= 0.0) & (y <= 1.0)).all():
        return "numbers"
    if y.shape[1] == 1:
        return "probabilities"
    if (np.abs(y.sum(axis=1) - 1.0) > LARGEST_OFFSET).any():
        return "numbers"
    return "labels" if np.isin(y, (0.0, 1.0)).all() else "probabilities"


def what_helps(model: Any, targets: TargetKind, ensemble: Ensemble) -> str:
    """What to change where a fitted model is not certified."""
    if targets in WITHOUT_NEURONS:
        return TARGET_ADVICE[targets]
    hint = counted_output_hint(model.hidden_layer_sizes, model.n_outputs_)
    evidence = evidence_of(model, targets, ensemble)
    return f"{advice(model.certificate_, evidence)} {hint}".rstrip()


def explain_failure(model: Any, targets: TargetKind, ensemble: Ensemble, proposal: str) -> str:
    """Why a fitted model is not certified, what was measured, and what would help."""
    if targets in WITHOUT_NEURONS:
        return f"The network is not certified: {proposal}"
    losses, tol = model.student_losses_, ensemble.tol
    n_kept = sum(cluster["status"] == "kept" for cluster in model.cluster_report_)
    message = (
        f"The network is not certified: {model.certificate_.reason}. "
        f"{np.sum(losses <= tol)} of {len(losses)} students reached the target loss "
        f"{tol:g} (best {np.nanmin(losses):.1e}), {n_kept} clusters were kept. "
    )
    if ensemble.denoised:
        agreeing, n_pruned = model.width_agreement_
        message += (
            f"Widths {model.layer_sizes_} were chosen by the error on held-out rows, "
            f"{agreeing} of {n_pruned} pruned students agree on them. "
        )
    return f"{message}{proposal}"


def evidence_of(model: Any, targets: TargetKind, ensemble: Ensemble) -> Evidence:
    n_agreeing, n_pruned = model.width_agreement_
    return Evidence(
        targets=targets,
        students=ensemble.students,
        tol=ensemble.tol,
        max_iter=model.max_iter,
        n_outputs=model.n_outputs_,
        is_noisy=bool(ensemble.denoised) and 2 * n_agreeing > n_pruned,
        activation_given=model.activation != "auto",
        sizes_given=not isinstance(model.hidden_layer_sizes, str),
        settings=model._settings,
    )


def explain_interrupt(model: Any, cause: str, n_students: int) -> str:
    """What a model is after a fit that ended early."""
    message = f"The fit {cause} with {n_students} students: the network is "
    if model.recovered_:
        message += "certified, other students were not asked."
    else:
        message += "the best one so far. recluster() finishes it from these students. "
        message += counted_output_hint(model.hidden_layer_sizes, model.n_outputs_)
    return message.rstrip()
