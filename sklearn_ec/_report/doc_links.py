"""Where the documentation is published: at the URL that the package's metadata declare."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata

# Path of an estimator's page, filled in by scikit-learn's HTML representation.
ESTIMATOR_PAGE = "generated/{estimator_module}.{estimator_name}.html"


def published_url() -> str:
    """``Documentation`` among the project's URLs in ``pyproject.toml``; empty if there is none."""
    try:
        return documentation_among(metadata("sklearn_ec").get_all("Project-URL") or [])
    except PackageNotFoundError:  # run from the source tree
        return ""


def documentation_among(project_urls: Iterable[str]) -> str:
    """The URL of the entry ``Documentation, URL``."""
    for entry in project_urls:
        label, _, url = entry.partition(",")
        if label.strip().lower() == "documentation":
            return url.strip()
    return ""


def page_template(base_url: str) -> str:
    """Template for the URL of an estimator's page; empty, that is no link, without a base."""
    return f"{base_url.rstrip('/')}/{ESTIMATOR_PAGE}" if base_url else ""
