"""
Recover every layer of a deep network
=====================================

A network with two hidden layers is queried at random inputs. Students three times as wide are
trained briefly; pruned, one of them *is* the network, in all layers.
"""

# %%
# The secret network
# ------------------
# Six tanh neurons, four more on top of them, trained on scikit-learn's diabetes data. It answers
# 2,000 queries.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import scale

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.inspection import DendrogramDisplay
from sklearn_ec.metrics import match_neurons

X, target = load_diabetes(return_X_y=True)
secret = MLPRegressor(
    hidden_layer_sizes=(6, 4), activation="tanh", max_iter=2000, random_state=0
).fit(scale(X), scale(target))
queries = np.random.default_rng(0).normal(size=(2000, X.shape[1]))

# %%
# Recover it
# ----------
# The number of hidden layers is given; the widths are upper estimates.
model = ExpandClusterRegressor(
    rho=2, hidden_layer_sizes=(8, 6), activation="tanh", n_students=10, random_state=0
).fit(queries, secret.predict(queries))
print("hidden layers", model.layer_sizes_, "certified", model.recovered_)

# %%
# Compare
# -------
# Deeper layers are compared in the basis of the matched neurons below.
for layer in range(len(model.layer_sizes_)):
    distances = match_neurons(secret, model, "tanh", layer=layer).cosine_distances
    print(f"layer {layer}: worst cosine distance of [w; b] {distances.max():.1e}")

# %%
# One dendrogram per layer
# ------------------------
# The students' neurons of the second layer are expressed on the first layer's recovered neurons
# before they are clustered. Only students at zero loss, and those that were pruned to the network,
# vote; the others would add noise.
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for layer, ax in enumerate(axes):
    DendrogramDisplay.from_estimator(model, layer=layer, ax=ax)
    ax.set_title(f"hidden layer {layer}")
