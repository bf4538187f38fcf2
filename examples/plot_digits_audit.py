"""
How many answers give a network away?
=====================================

An audit: a network that recognizes digits answers queries. After how many answers can it be
extracted, weight by weight? Here the queries are images of the data set itself, nothing is chosen
cleverly.
"""

# %%
# The network
# -----------
# Six tanh neurons and ten outputs, trained on scikit-learn's digits. Pixels that are lit in less
# than a tenth of the images are left out: too few images would say anything about their weights.
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import scale

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.inspection import NeuronMatchDisplay
from sklearn_ec.metrics import max_cosine_distance

images, digits = load_digits(return_X_y=True)
X = scale(images[:, (images != 0).mean(axis=0) >= 0.1])
secret = MLPRegressor(
    hidden_layer_sizes=(6,), activation="tanh", max_iter=2000, random_state=0
).fit(X, np.eye(10)[digits])
n_parameters = sum(weights.size for weights in secret.coefs_ + secret.intercepts_)
accuracy = np.mean(secret.predict(X).argmax(axis=1) == digits)
print(f"{X.shape[1]} pixels, {n_parameters} parameters, accuracy {accuracy:.0%}")

# %%
# Extraction from more and more answers
# -------------------------------------
# Each answer is ten numbers. Students of twelve neurons have 718 parameters: with 70 answers or
# fewer they fit what they see in many ways. The certificate refuses what is found then, because it
# predicts held-out rows badly.
all_rows = np.random.default_rng(0).permutation(len(X))
n_answers = [30, 50, 70, 80, 100, 200, 400]
distances, certified = [], []
for n_rows in n_answers:
    rows = all_rows[:n_rows]
    model = ExpandClusterRegressor(
        rho=2, hidden_layer_sizes=6, activation="tanh", n_students=6, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the certificate's reason is printed
        model.fit(X[rows], secret.predict(X[rows]))
    distances.append(max_cosine_distance(secret, model, "tanh"))
    certified.append(model.recovered_)
    print(f"{n_rows:4d} answers: worst distance {distances[-1]:.0e}, {model.certificate_.reason}")

# %%
# The verdict
# -----------
# Nothing can be found with fewer equations than parameters; a tenth of the rows is kept out of
# training and does not count. From 80 answers on, 4 % of the data set, every weight is exact to
# rounding. The certificate asks for twice as many equations as parameters and confirms it from 100
# answers on.
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
ax.plot(n_answers, distances, color="0.7", zorder=1)
for verdict, label, color in [(True, "certified", "tab:blue"), (False, "refused", "tab:red")]:
    chosen = np.array(certified) == verdict
    ax.scatter(np.array(n_answers)[chosen], np.array(distances)[chosen], c=color, label=label)
for factor, word, style in [(1, "as many", ":"), (2, "twice as many", "--")]:
    n_needed = factor * n_parameters / 10 / 0.9
    label = f"{word} equations as parameters"
    ax.axvline(n_needed, color="black", linestyle=style, linewidth=1, label=label)
ax.set(xscale="log", yscale="log", xlabel="answers", ylabel="worst cosine distance of [w; b]")
ax.set_xticks(n_answers, n_answers)
ax.minorticks_off()
ax.legend(loc="center right")

# %%
# The extracted network
# ---------------------
# From 400 answers, neuron by neuron.
NeuronMatchDisplay.from_estimator(model, secret)
