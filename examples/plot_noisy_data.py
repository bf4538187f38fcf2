"""
Noisy data
==========

With noise in the targets no network is exact, and none is certified. What can be had instead: the
right width, weights with standard errors, and the level of the noise.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher
from sklearn_ec.metrics import match_neurons

# %%
# The secret network has five tanh neurons on three inputs. Its 4,000 answers carry Gaussian noise
# of a hundredth of their standard deviation.
teacher = make_teacher(3, 5, activation="tanh", random_state=1)
rng = np.random.default_rng(0)
X = rng.uniform(-2, 2, size=(4000, 3))
y = teacher.predict(X)
noise = 0.01 * y.std()
y = y + noise * rng.normal(size=len(y))

# %%
# Nothing but the activation is given: the search finds one hidden layer, since further layers and
# more neurons do not lower the loss on held-out rows. A warning says that the network is not
# certified; it is expected here.
model = ExpandClusterRegressor(activation="tanh", random_state=0)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    model.fit(X, y)
agreeing, n_pruned = model.width_agreement_
print(f"certified (recovered_)     {model.recovered_}")
print(f"hidden layers              {model.layer_sizes_}, {agreeing} of {n_pruned} students agree")
print(f"noise level                {model.noise_level_[0]:.4f} (true {noise:.4f})")
for trial in model.search_report_:
    print(
        f"  tried {trial['depth']} x {trial['width']:2}    loss on held-out rows "
        f"{trial['held_out_loss']:.2e}   {trial['seconds']:.1f} s"
    )

# %%
# Standard errors
# ---------------
# ``standard_errors()`` follow from the Gauss-Newton matrix and from ``noise_level_``. About 95 % of
# the true weights should lie within 1.96 standard errors of the recovered ones.
match = match_neurons(teacher, model, "tanh")
true = np.vstack([teacher.weights_[0], teacher.biases_[0]])[:, match.reference] * match.signs
found = np.vstack([model.weights_[0], model.biases_[0]])[:, match.recovered]
errors = model.standard_errors()[0][:, match.recovered]
covered = np.abs(true - found) <= 1.96 * errors
print(f"{covered.sum()} of {covered.size} intervals hold the true weight")

order = np.argsort(errors, axis=None)
fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
ax.axhline(0, color="0.6", linewidth=1)
ax.errorbar(
    np.arange(true.size),
    (found - true).ravel()[order],
    yerr=1.96 * errors.ravel()[order],
    fmt="o",
    markersize=4,
    capsize=2,
)
ax.set_xticks([])
ax.set_xlabel("weights and biases of the hidden layer, by standard error")
ax.set_ylabel("recovered minus true, with 95 % interval")
ax.set_title(f"{covered.sum()} of {covered.size} intervals hold the true value")
plt.show()
