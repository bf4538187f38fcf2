"""
Search the thresholds without training anew
===========================================

Two thresholds decide which clusters of neurons become neurons of the network: ``gamma``, the share
of the students that must hold a neuron, and ``beta``, the largest angle between its copies. They do
not matter to the students' training, which is nearly all of the time. With ``memory`` a grid search
trains the students of each fold once.
"""

# %%
# Half-trained students
# ---------------------
# A network of five tanh neurons answers 600 queries. Its students get only ten steps of Levenberg,
# and no pruning cleans up after the clusters: everything is up to the thresholds.
import tempfile
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher

N_NEURONS = 5
teacher = make_teacher(4, N_NEURONS, activation="tanh", random_state=1)
X = np.random.default_rng(0).uniform(-2, 2, size=(600, 4))
y = teacher.predict(X)


# %%
# Search
# ------
# ``memory`` needs a fixed ``random_state``. Here it is a temporary folder; in one that stays, the
# next search finds the students again, and so does this one after a crash. The scorer also tells
# the width of the network, and how many students the fit had to train.
#
# A network with spare neurons can be as exact as the right one. Among those with the best score the
# search therefore takes the smallest.
def measure(model, X, y):
    return {
        "score": model.score(X, y),
        "width": model.layer_sizes_[0],
        "trained": len(model.student_losses_) - model.n_reused_students_,
    }


def smallest_of_the_best(results):
    scores, widths = results["mean_test_score"], results["mean_test_width"]
    return np.where(scores > scores.max() - 1e-12, widths, np.inf).argmin()


grid = {"gamma": [0.3, 0.4, 0.5, 0.65, 0.8, 1.0], "beta": [0.003, 0.01, 0.03, 0.1, 0.3]}
start = time.perf_counter()
with tempfile.TemporaryDirectory() as memory, warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # many of these networks are wrong
    model = ExpandClusterRegressor(
        rho=3,
        hidden_layer_sizes=N_NEURONS,
        activation="tanh",
        n_students=10,
        max_iter=10,
        prune=False,
        memory=memory,
        random_state=0,
    )
    search = GridSearchCV(model, grid, cv=3, scoring=measure, refit=smallest_of_the_best)
    search.fit(X, y)
seconds = time.perf_counter() - start

results, best = search.cv_results_, search.best_estimator_
n_fits = 3 * len(results["params"])
n_trained = sum(results[f"split{fold}_test_trained"].sum() for fold in range(3))
print(f"{n_fits} fits in {seconds:.0f} s: {n_trained:.0f} students trained, not {10 * n_fits}")
print("best thresholds:", search.best_params_)
print("width with these, on all rows:", best.layer_sizes_, "certified:", best.recovered_)

# %%
# Score and width
# ---------------
# Where ``gamma`` is too large or ``beta`` too small, no cluster is good enough for some neuron, and
# the network is not exact. Where ``gamma`` is too small, clusters that few students share are kept:
# the network is exact, but has spare neurons.
shape = len(grid["beta"]), len(grid["gamma"])
errors = np.log10(np.maximum(1 - results["mean_test_score"], 1e-16))
panels = {
    "log10 of the unexplained variance, held-out rows": errors,
    f"mean width (the network has {N_NEURONS} neurons)": results["mean_test_width"],
}
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for ax, (title, values) in zip(axes, panels.items(), strict=True):
    image = ax.imshow(values.reshape(shape), cmap="Wistia", aspect="auto")
    for (row, column), value in np.ndenumerate(values.reshape(shape)):
        ax.text(column, row, f"{value:.3g}", ha="center", va="center")
    ax.set(xlabel="gamma", ylabel="beta (radians)", title=title)
    ax.set_xticks(range(shape[1]), grid["gamma"])
    ax.set_yticks(range(shape[0]), grid["beta"])
