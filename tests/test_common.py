"""scikit-learn's common checks, with small settings."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from builders import QuickRegressor

SMALL = {"n_students": 3, "max_iter": 20, "random_state": 0}
SMALLEST = {"n_students": 1, "max_iter": 5, "prune": False, "random_state": 0}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@parametrize_with_checks(
    [QuickRegressor(1, hidden_layer_sizes=1, activation="relu", **SMALLEST)],
)
def test_common_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        QuickRegressor(2, hidden_layer_sizes=2, activation="relu", **SMALL),
        QuickRegressor(1, activation="tanh", prune=False, cut="global", **SMALL),
    ]
)
def test_common_checks_of_usual_settings(estimator, check):
    check(estimator)
