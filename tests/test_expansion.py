"""The search for the width, on scripted probes."""

from types import SimpleNamespace

import pytest

from sklearn_ec._expansion import find_width


def probes(loss):
    return SimpleNamespace(best_held_out_loss=loss)


def search(losses, fits=None, n_equations=10**6):
    """Probes of width w have the held-out loss losses[w]; width ``fits`` fits exactly."""
    probed = []

    def train_probes(width):
        probed.append(width)
        return probes(losses[width]), width if width == fits else None

    return find_width(train_probes, lambda width: 10 * width, n_equations), probed


def test_doubles_until_the_probes_fit():
    found, probed = search({1: 1.0, 2: 0.5, 4: 1e-20}, fits=4)
    assert (found.widths, found.problem) == ((4,), "")
    assert probed == [1, 2, 4]


def test_uses_the_width_that_the_fit_takes():
    found = find_width(lambda width: (probes(0.0), 7), lambda width: width, 100)
    assert found.widths == (7,)
    assert found.students is None


def test_ends_where_widening_does_not_help():
    found, probed = search({1: 1.0, 2: 0.5, 4: 0.49, 8: 0.6})
    assert found.widths == (2,)
    assert found.students.best_held_out_loss == 0.5
    assert "did no better" in found.problem
    assert probed == [1, 2, 4, 8]


def test_one_bad_width_does_not_end_the_search():
    found, _ = search({1: 1.0, 2: 1.1, 4: 1e-20}, fits=4)
    assert found.widths == (4,)


@pytest.mark.parametrize(("n_equations", "widths"), [(39, [1, 2]), (40, [1, 2, 4])])
def test_ends_where_rows_run_out(n_equations, widths):
    found, probed = search({1: 1.0, 2: 0.5, 4: 0.1}, n_equations=n_equations)
    assert probed == widths
    assert found.widths == (widths[-1],)
    assert f"more than the {n_equations} equations" in found.problem
