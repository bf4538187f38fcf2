"""The text of ``ExpandClusterRegressor.summary``."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

import numpy as np

from sklearn_ec._certify.certificate import Certificate
from sklearn_ec._report.advice import enumerated

COLUMNS = {
    "kept": "clusters kept",
    "small": "small",
    "unaligned": "unaligned",
    "unstable": "unstable",
}
WIDTH = 80  # of a line
INDENT = 16  # of what was measured


def summary_text(estimator: Any) -> str:
    """The verdict, the layers with their clusters, the students and what was measured."""
    return "\n".join(
        [
            f"{type(estimator).__name__}, activation {estimator.activation_}",
            textwrap.fill(verdict(estimator.certificate_), WIDTH),
            "",
            *_layer_lines(estimator),
            "",
            *(_entry(name, value) for name, value in _measurements(estimator)),
            _entry("next", next_step(estimator)),
        ]
    ).rstrip()


def _entry(name: str, value: str) -> str:
    """A name and what there is to say of it, in lines that stand below each other."""
    return textwrap.fill(
        value, WIDTH, initial_indent=f"{name:<{INDENT}}", subsequent_indent=" " * INDENT
    )


def architecture(estimator: Any) -> str:
    """Inputs, widths of the hidden layers and outputs, and the activation."""
    sizes = (estimator.n_features_in_, *estimator.layer_sizes_, estimator.n_outputs_)
    return f"{'-'.join(map(str, sizes))}, activation {estimator.activation_}"


def next_step(estimator: Any) -> str:
    """What to do with the network, or what would help where it is not certified."""
    if estimator.certificate_.passed:
        return "to_torch(), to_mlp_regressor() or to_onnx() export the network, save() keeps it."
    return getattr(estimator, "_next_step", "")  # estimators that were loaded do not know


def verdict(certificate: Certificate) -> str:
    """Whether the network is certified, and why not."""
    if certificate.passed:
        return "certified"
    if certificate.function_certified:
        names = enumerated(certificate.open_columns)
        return f"function certified, weights not: {certificate.reason} on {names}"
    return f"not certified: {certificate.reason}"


def _layer_lines(estimator: Any) -> list[str]:
    """A table of the hidden layers: neurons of the network, clusters by status."""
    lines = ["layer  neurons  " + "  ".join(COLUMNS.values())]
    for layer, width in enumerate(estimator.layer_sizes_):
        statuses = Counter(
            entry["status"] for entry in estimator.cluster_report_ if entry["layer"] == layer
        )
        counts = "  ".join(f"{statuses[s]:>{len(title)}}" for s, title in COLUMNS.items())
        lines.append(f"{layer:>5}  {width:>7}  {counts}")
    return lines


def _measurements(estimator: Any) -> list[tuple[str, str]]:
    losses, certificate = estimator.student_losses_, estimator.certificate_
    measured = [
        (
            "students",
            f"{len(losses)}, {np.sum(losses <= estimator.tol)} of them converged to "
            f"{estimator.tol:.0e} (best {np.nanmin(losses):.0e}), {estimator.n_agreeing_} agree on "
            "the network",
        ),
        (
            "relative error",
            f"{certificate.error:.0e} on training rows, {certificate.held_out_error:.0e} on "
            f"held-out rows, rounding up to {certificate.rounding:.0e} ({certificate.precision})",
        ),
        ("equations", f"{certificate.n_equations:,} for {certificate.n_parameters:,} parameters"),
    ]
    if np.isfinite(certificate.weight_error):
        error, isolation = certificate.weight_error, certificate.isolation
        measured.append(
            ("weights", f"determined up to an error of {error:.0e}, isolation {isolation:.0e}")
        )
    return measured
