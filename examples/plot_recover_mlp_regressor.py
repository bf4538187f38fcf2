"""
Recover an MLPRegressor from its predictions
============================================

A small network is trained on scikit-learn's diabetes data. Then only its ``predict`` is used: its
answers at the 442 rows of the data are enough to recover every weight and bias, to rounding.
"""

# %%
# The secret network
# ------------------
# Eight hidden neurons with tanh, trained on the standardized data. From here on we only call
# ``secret.predict``.
import time

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import scale

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.inspection import DendrogramDisplay, NeuronMatchDisplay, StudentLossDisplay
from sklearn_ec.metrics import match_neurons, max_cosine_distance

X, target = load_diabetes(return_X_y=True)
X, target = scale(X), scale(target)
secret = MLPRegressor(
    hidden_layer_sizes=(8,), activation="tanh", max_iter=2000, random_state=0
).fit(X, target)

# %%
# Recover it
# ----------
# Neither the width nor any weight is given, only the activation and the 442 answers.
start = time.perf_counter()
model = ExpandClusterRegressor(rho=4, activation="tanh", random_state=0)
model.fit(X, secret.predict(X))
seconds = time.perf_counter() - start

# %%
# Compare
# -------
# Matched one to one, the incoming weight vectors agree up to rounding, and so do the predictions on
# inputs that neither network has seen. ``recovered_`` knows it without looking at the secret.
X_new = np.random.default_rng(0).normal(size=(10_000, X.shape[1]))
expected = secret.predict(X_new)
output_error = np.max(np.abs(model.predict(X_new) - expected)) / np.std(expected)
match = match_neurons(secret, model, "tanh")

rows = [
    ("width of the secret network", secret.hidden_layer_sizes[0]),
    ("recovered width", model.layer_sizes_[0]),
    ("certified (recovered_)", model.recovered_),
    ("worst cosine distance of [w; b]", f"{max_cosine_distance(secret, model, 'tanh'):.1e}"),
    ("largest relative output error, new inputs", f"{output_error:.1e}"),
    ("seconds", f"{seconds:.1f}"),
]
for name, value in rows:
    print(f"{name:45s}{value}")

print("\nneuron  recovered as  sign  cosine distance")
for i, j, sign, distance in zip(
    match.reference, match.recovered, match.signs, match.cosine_distances, strict=True
):
    print(f"{i:6d}{j:14d}{sign:+6.0f}{distance:17.1e}")

# %%
# The dendrogram
# --------------
# The students' neurons, clustered by their incoming weight vectors, on a logarithmic axis. Neurons
# that the students share lie orders of magnitude closer to each other than the rest. Training stops
# as soon as one student, pruned, is certified; where few students are at zero loss by then, the
# next best are pruned as well, so that at least three vote. The title says how many of them hold
# every neuron of the recovered network.
DendrogramDisplay.from_estimator(model)

# %%
# The neurons
# -----------
# Each recovered neuron next to its partner in the secret network: rounding is all that is left
# between them.
NeuronMatchDisplay.from_estimator(model, secret)

# %%
# The students
# ------------
# A few dozen steps of Levenberg take students from a rough fit to zero loss. Training ends for all
# of them once enough are there, or once pruning the best one gave the network.
StudentLossDisplay.from_estimator(model)
