"""
Expanding helps
===============

Why students are wider than the network that is sought: narrow ones get stuck. The loss that 20
students reach, as a function of the expansion factor ``rho``.
"""

# %%
# Students of four widths
# -----------------------
# The network has four neurons, the students 4, 8, 16 and 32. ``prune=False`` switches off what
# helps students that are stuck, and ``tol=0`` lets all of them train to the end instead of stopping
# when most have converged.
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher

teacher = make_teacher(4, 4, activation="g", random_state=1)
X = np.random.default_rng(0).uniform(-np.sqrt(3), np.sqrt(3), size=(600, 4))
y = teacher.predict(X)

rhos = [1, 2, 4, 8]
losses = []
for rho in rhos:
    model = ExpandClusterRegressor(
        rho, hidden_layer_sizes=4, activation="g", prune=False, tol=0.0, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # rho=1 does not find the network
        losses.append(model.fit(X, y).student_losses_)

# %%
# Losses against width
# --------------------
# Each dot is a student. Below 1e-20 a student computes the network's outputs up to rounding, and
# only then its neurons include those of the network. As narrow as the network, students end in
# local minima. The wider they are, the lower they get, although the data and the number of steps
# are the same.
figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 4.5), width_ratios=(2, 1), layout="constrained"
)
jitter = np.random.default_rng(0).uniform(-0.15, 0.15, size=20)
for place, student_losses in enumerate(losses):
    converged = student_losses <= 1e-20
    colors = np.where(converged, "tab:blue", "0.6")
    left.scatter(place + jitter, student_losses, c=colors, s=25)
left.axhline(1e-20, color="black", linestyle="--", linewidth=1)
left.set(yscale="log", xlabel="rho", ylabel="loss (mean squared error / variance of y)")
left.set_title("each student's loss")

shares = [np.mean(student_losses <= 1e-20) for student_losses in losses]
right.bar(range(len(rhos)), shares, color="tab:blue")
right.set(ylim=(0, 1), xlabel="rho", ylabel="share of students")
right.set_title("students at zero loss")
for ax in (left, right):
    ax.set_xticks(range(len(rhos)), rhos)
for rho, share in zip(rhos, shares, strict=True):
    print(f"rho={rho}: {share:.0%} of the students at zero loss")
