"""Sphinx configuration: ``sphinx-build -W docs docs/_build``."""

import sklearn_ec
from sklearn_ec._report.doc_links import ESTIMATOR_PAGE, published_url

project = "sklearn_ec"
copyright = "sklearn_ec developers"
version = release = sklearn_ec.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_design",
    "sphinx-mathjax-offline",  # MathJax beside the pages, so that formulas need no network
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
nitpicky = False

autosummary_generate = True
autodoc_typehints = "none"  # types stand in the list of parameters
numpydoc_show_class_members = False
# Everything but: an extended summary (ES01), examples of every method (EX01), "See Also" (SA01), a
# verb up front (SS05) and nameless return values (RT02).
numpydoc_validation_checks = {"all", "ES01", "EX01", "SA01", "SS05", "RT02"}
# Records: their parameters are their documented attributes.
numpydoc_validation_exclude = {
    r"\.Certificate$",
    r"\.Dendrogram$",
    r"\.NeuronMatch$",
    r"\.Teacher$",
    r"\.RecoveryProblem$",
    r"\.Extraction$",
    r"\.Audit$",
    r"\.QueryError",  # and what it inherits
}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "show_memory": False,
    "write_computation_times": False,  # a page that loads scripts from elsewhere
    # Pages of the API reference show the examples that use what they document.
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_ec",),
    "capture_repr": ("_repr_html_",),  # estimators, but not "<DendrogramDisplay object at 0x...>"
}

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_ec"
html_theme_options = {"header_links_before_dropdown": 6}
toc_object_entries_show_parents = "hide"  # long names are cut off at the margin
html_baseurl = published_url()
html_static_path = ["_static"]
html_css_files = ["custom.css"]
# Pages of their own have no section to navigate.
html_sidebars = {
    page: []
    for page in (
        "index",
        "install",
        "quickstart",
        "theory",
        "benchmarks",
        "comparison",
        "contributing",
        "changelog",
    )
}
html_show_sourcelink = False

# In the gallery, estimators link to their page in this documentation.
sklearn_ec.ExpandClusterRegressor._doc_link_template = f"../{ESTIMATOR_PAGE}"


def setup(app):
    """Pages show figures of the gallery, which are not there without it."""
    app.connect("config-inited", lambda _, config: allow_missing_figures(config))


def allow_missing_figures(config):
    if str(config.plot_gallery) in ("0", "False"):
        config.suppress_warnings.append("image.not_readable")
