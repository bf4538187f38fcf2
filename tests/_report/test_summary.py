"""The printed summary of a fitted estimator."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from builders import SHORT_WARM_UP, with_settings
from sklearn_ec import ExpandClusterRegressor


def make_model(**parameters):
    return ExpandClusterRegressor(
        2, hidden_layer_sizes=4, activation="tanh", random_state=0, **parameters
    )


def summary_lines(model, capsys):
    model.summary()
    return capsys.readouterr().out.splitlines()


def test_prints_the_verdict_the_layers_and_the_measurements(tanh_problem, capsys):
    _, X, y = tanh_problem
    lines = summary_lines(make_model(n_students=4).fit(X, y), capsys)
    assert lines[0] == "ExpandClusterRegressor, activation tanh"
    assert lines[1] == "certified"
    assert lines[3] == "layer  neurons  clusters kept  small  unaligned  unstable"
    assert lines[4].split()[:3] == ["0", "4", "4"]
    names = ["students", "relative", "equations", "weights", "next"]
    assert [line.split()[0] for line in lines[6:] if line[0] != " "] == names


def test_says_why_a_network_is_refused(tanh_problem, capsys):
    _, X, y = tanh_problem
    model = with_settings(make_model(n_students=2, max_iter=10, prune=False), **SHORT_WARM_UP)
    with pytest.warns(ConvergenceWarning, match="not certified") as warned:
        model.fit(X, y)
    lines = summary_lines(model, capsys)
    verdict = " ".join(lines[1 : lines.index("")])
    assert verdict == f"not certified: {model.certificate_.reason}"
    assert not any(line.startswith("weights") for line in lines)  # they were not judged
    start = next(n for n, line in enumerate(lines) if line.startswith("next"))
    proposal = " ".join(line[16:] for line in lines[start:])
    assert "raise max_iter" in proposal
    assert str(warned[0].message).endswith(proposal)


def test_lines_fit_80_columns(tanh_problem, capsys):
    _, X, y = tanh_problem
    model = with_settings(make_model(n_students=2, max_iter=10, prune=False), **SHORT_WARM_UP)
    with pytest.warns(ConvergenceWarning, match="not certified"):
        model.fit(X, y)
    model.certificate_ = replace(model.certificate_, n_equations=10**9, n_parameters=10**7)
    assert max(map(len, summary_lines(model, capsys))) <= 80


def test_estimators_that_were_loaded_have_no_proposal(tanh_problem, capsys, tmp_path):
    _, X, y = tanh_problem
    model = with_settings(make_model(n_students=2, max_iter=10, prune=False), **SHORT_WARM_UP)
    with pytest.warns(ConvergenceWarning, match="not certified"):
        model.fit(X, y)
    model.save(tmp_path / "network.safetensors")
    loaded = ExpandClusterRegressor.load(tmp_path / "network.safetensors")
    assert summary_lines(loaded, capsys)[-1].startswith("equations")


def test_a_fitted_estimator_is_needed():
    with pytest.raises(NotFittedError):
        make_model().summary()


def test_names_the_columns_that_leave_weights_open(tanh_problem, capsys):
    _, X, y = tanh_problem
    X = np.column_stack([X, np.full(len(X), 2.0)])
    with pytest.warns(ConvergenceWarning, match="the weights on x3 are not determined"):
        model = make_model(n_students=4).fit(X, y)
    verdict = summary_lines(model, capsys)[1]
    assert verdict == (
        "function certified, weights not: the rows leave incoming weights open on x3"
    )
