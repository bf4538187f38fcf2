"""
Recover a classifier from its probabilities
===========================================

A neural network classifies irises. Only its ``predict_proba`` is used: centered log-probabilities
are linear in the outputs of its last layer, so that they serve as regression targets.
"""

# %%
# The secret classifier
# ---------------------
# Four tanh neurons and a softmax over three species, from the length and the width of the petals.
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.metrics import match_neurons
from sklearn_ec.probabilities import proba_from_targets, targets_from_proba

X, species = load_iris(return_X_y=True)
X = scale(X[:, 2:])
secret = MLPClassifier(
    hidden_layer_sizes=(4,), activation="tanh", max_iter=5000, random_state=0
).fit(X, species)

# %%
# Recover it
# ----------
# Its probabilities at 2,000 random inputs give the targets. Targets sum to zero in every row: one
# number per row, the same for all classes, leaves probabilities as they are.
queries = np.random.default_rng(0).uniform(-3, 3, size=(2000, 2))
targets = targets_from_proba(secret.predict_proba(queries))
model = ExpandClusterRegressor(
    hidden_layer_sizes=4, activation="tanh", n_students=10, random_state=0
).fit(queries, targets)
print("hidden layers", model.layer_sizes_, "certified", model.recovered_)

# %%
# Compare
# -------
# The probabilities agree to rounding at inputs that were not queried, far from the data too.
new = np.random.default_rng(1).uniform(-10, 10, size=(10_000, 2))
difference = np.abs(proba_from_targets(model.predict(new)) - secret.predict_proba(new)).max()
match = match_neurons(secret, model, "tanh")
print(f"largest difference of the probabilities, new inputs  {difference:.1e}")
print(f"worst cosine distance of [w; b]                      {match.cosine_distances.max():.1e}")

# %%
# What the two networks see
# -------------------------
# One color per species, mixed by their probabilities. Each hidden neuron is drawn as the line where
# it changes sign: those of the secret network in white, those of the recovered one dashed on top.
palette = [to_rgb(color) for color in ("C0", "C1", "C2")]
side = np.linspace(-3, 3, 300)
grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
panels = {
    "the secret classifier": secret.predict_proba(grid),
    "the recovered network": proba_from_targets(model.predict(grid)),
}


def draw_neurons(ax, weights, bias, **style):
    for w, b in zip(weights.T, bias, strict=True):
        ax.axline(-b * w / (w @ w), slope=-w[0] / w[1], **style)


figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), sharey=True, layout="constrained")
for ax, (title, proba) in zip(axes, panels.items(), strict=True):
    ax.imshow((proba @ palette).reshape(300, 300, 3), origin="lower", extent=(-3, 3, -3, 3))
    draw_neurons(ax, secret.coefs_[0], secret.intercepts_[0], color="white", linewidth=3)
    ax.set(title=title, xlabel="petal length (standardized)", xlim=(-3, 3), ylim=(-3, 3))
draw_neurons(axes[1], model.weights_[0], model.biases_[0], color="black", linestyle="--")
axes[0].set_ylabel("petal width (standardized)")
figure.suptitle(f"probabilities differ by at most {difference:.1e}")
