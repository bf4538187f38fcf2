"""Sphinx configuration: ``sphinx-build -W docs docs/_build``."""

import sklearn_ec

project = "sklearn_ec"
copyright = "sklearn_ec developers"
version = release = sklearn_ec.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
nitpicky = False

autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_validation_checks = {"GL06", "GL08", "PR01", "PR02", "PR03", "RT01", "SS01"}
# Records: their parameters are their documented attributes.
numpydoc_validation_exclude = {r"\.NeuronMatch$", r"\.Teacher$", r"\.RecoveryProblem$"}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "show_memory": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_ec"
html_show_sourcelink = False
