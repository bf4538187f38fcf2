"""What the HTML representation of a fitted estimator says above scikit-learn's diagram."""

from __future__ import annotations

import html
from typing import Any

from .summary import architecture, next_step, verdict

# The colors of Okabe and Ito; letters keep the color of the page, light or dark.
CERTIFIED, REFUSED = "#009e73", "#d55e00"


def panel(estimator: Any) -> str:
    """The verdict, the network and what to do next; empty before ``fit``."""
    if not hasattr(estimator, "certificate_"):
        return ""
    certificate = estimator.certificate_
    rows = {
        "network": architecture(estimator),
        "error": f"{certificate.error:.0e} on training rows, {certificate.held_out_error:.0e} on "
        "held-out rows, relative",
        "next": next_step(estimator),
    }
    color = CERTIFIED if certificate.passed else REFUSED
    return (
        f'<div class="sklearn-ec-panel" style="border-left: 4px solid {color}; padding: 0.2em '
        '0.8em; margin: 0.5em 0; max-width: 45em; line-height: 1.4;">'
        f"<strong>{html.escape(verdict(certificate))}</strong>"
        f"{''.join(_line(*row) for row in rows.items() if row[1])}</div>"
    )


def _line(name: str, text: str) -> str:
    return f'<div><span style="opacity: 0.7;">{name}:</span> {html.escape(text)}</div>'
