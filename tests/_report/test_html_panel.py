"""What the HTML representation says above scikit-learn's diagram."""

import copy
from dataclasses import replace

import pytest
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from builders import SHORT_WARM_UP, with_settings
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._report.html_panel import CERTIFIED, REFUSED, panel


def test_shows_the_verdict_the_network_and_what_to_do_next(tanh_model):
    text = tanh_model._repr_html_()
    sizes = (tanh_model.n_features_in_, *tanh_model.layer_sizes_, tanh_model.n_outputs_)
    for part in ("<strong>certified", "-".join(map(str, sizes)), "activation tanh", "to_torch()"):
        assert part in text
    assert CERTIFIED in panel(tanh_model)
    assert text.endswith("</body>") == ExpandClusterRegressor()._repr_html_().endswith("</body>")


def test_says_what_would_help(tanh_problem):
    _, X, y = tanh_problem
    model = ExpandClusterRegressor(
        2,
        hidden_layer_sizes=4,
        activation="tanh",
        n_students=2,
        max_iter=10,
        prune=False,
        random_state=0,
    )
    with pytest.warns(ConvergenceWarning, match="not certified"):
        with_settings(model, **SHORT_WARM_UP).fit(X, y)
    assert "not certified: the relative error" in panel(model)
    assert "raise max_iter" in panel(model)
    assert REFUSED in panel(model)


def test_there_is_none_before_fit_and_in_pipelines(tanh_model):
    assert panel(ExpandClusterRegressor()) == ""
    pipeline = make_pipeline(StandardScaler(), tanh_model)
    assert "sklearn-ec-panel" not in pipeline._repr_html_()
    assert "ExpandClusterRegressor" in pipeline._repr_html_()


def test_notebooks_show_it_once_and_text_displays_do_not(tanh_model):
    bundle = tanh_model._repr_mimebundle_()
    assert bundle["text/html"].count("sklearn-ec-panel") == 1
    assert bundle["text/plain"] == repr(tanh_model)
    with config_context(display="text"):
        assert set(tanh_model._repr_mimebundle_()) == {"text/plain"}
        assert not hasattr(tanh_model, "_repr_html_")


def test_names_of_columns_are_escaped(tanh_model):
    model = copy.copy(tanh_model)
    model.certificate_ = replace(
        model.certificate_, passed=False, function_certified=True, open_columns=("<b>x</b>",)
    )
    assert "&lt;b&gt;x&lt;/b&gt;" in panel(model)
    assert "<b>x</b>" not in panel(model)
