"""
Nothing known but the data
==========================

With ``hidden_layer_sizes="auto"`` and ``activation="auto"`` the estimator finds depth, widths and
activation from the data alone: a short race of students of each kind, then the certificate.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import load_deep_suite
from sklearn_ec.metrics import max_cosine_distance

# %%
# The secret network has two hidden layers of three and two tanh neurons.
problem = load_deep_suite("tanh", sizes=((4, 3, 2, 1),), n_seeds=1)[0]
model = ExpandClusterRegressor(activation="auto", random_state=0).fit(problem.X, problem.y)
distance = max_cosine_distance(problem.teacher, model, model.activation_)
print(f"activation                {model.activation_}")
print(f"hidden layers             {model.layer_sizes_}")
print(f"certified (recovered_)    {model.recovered_}")
print(f"worst cosine distance     {distance:.1e}")

# %%
# ``search_report_`` lists what was tried. Five students of each activation take 30 steps of
# Levenberg; those with one hidden layer stay far above zero, and of those with two, the right
# activation stands out. The best ones are pruned until one network is certified.
report = model.search_report_
fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
names = sorted({trial["activation"] for trial in report})
for depth, marker in ((1, "s"), (2, "o"), (3, "^")):
    trials = [trial for trial in report if trial["depth"] == depth]
    if trials:
        ax.scatter(
            [names.index(trial["activation"]) for trial in trials],
            [trial["held_out_loss"] for trial in trials],
            marker=marker,
            label=f"{depth} hidden layer{'s' if depth > 1 else ''}",
        )
certified = next(trial for trial in report if trial["certified"])
ax.annotate(
    "certified",
    (names.index(certified["activation"]), certified["held_out_loss"]),
    textcoords="offset points",
    xytext=(-10, -3),
    ha="right",
)
ax.set_yscale("log")
ax.set_xticks(np.arange(len(names)), names)
ax.set_ylabel("loss of the best student on held-out rows")
ax.legend(loc="lower left")
plt.show()
