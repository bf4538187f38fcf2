"""
Extract a model that answers
============================

An auditor has a model, not a table: here a PyTorch module in single precision, of two hidden
layers. :func:`~sklearn_ec.extraction.extract` asks it, recovers its network, and asks for what is
still open. Then an audit with several budgets, and a defence.
"""

# %%
# The model
# ---------
# Outputs of a float32 network carry an error of 1e-7. A certificate takes that into account.
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import Teacher
from sklearn_ec.extraction import audit, extract
from sklearn_ec.metrics import max_cosine_distance

warnings.simplefilter("ignore", ConvergenceWarning)  # the certificates are printed

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
for parameter in module.parameters():
    parameter.data *= 2
inputs = ([-2.0] * 5, 2.0)  # uniform in a box

# %%
# Extraction
# ----------
# Widths and activation are known here; 4.5 equations per parameter are asked.
known = ExpandClusterRegressor(hidden_layer_sizes=(6, 4), activation="tanh", random_state=0)
found = extract(module, inputs, estimator=known, random_state=0)
print(found)
print(f"certified: {found.recovered}, at {found.estimator.certificate_.precision}")

layers = [layer for layer in module if isinstance(layer, nn.Linear)]
secret = Teacher(
    [layer.weight.detach().double().numpy().T for layer in layers],
    [layer.bias.detach().double().numpy() for layer in layers],
    "tanh",
)
distance = max_cosine_distance(secret, found.estimator, "tanh")
print(f"worst cosine distance of [w; b]: {distance:.1e}")

# %%
# An audit
# --------
# How much do fewer queries tell? Below two equations per parameter, no network can be certified.
report = audit(
    module,
    inputs,
    budgets=[20, 50, 120],
    estimator=known.set_params(n_students=5),
    network=secret,
    random_state=0,
)
print(report)
report.plot()
plt.show()

# %%
# A defence that makes neurons alike
# ----------------------------------
# A defender may train the neurons of a layer to be alike (arXiv:2509.16546), since extraction tells
# them apart. Here eight neurons differ from their mean by a share of its length. Down to a tenth,
# the attack does not notice; at a hundredth, 1,000 queries do not give the network (not run here).
rng = np.random.default_rng(0)
mean, spread = rng.normal(size=(5, 1)), rng.normal(size=(5, 8))
readout = rng.normal(size=(8, 1))
biases = [rng.normal(size=8), np.zeros(1)]
known = ExpandClusterRegressor(
    hidden_layer_sizes=8, activation="tanh", n_students=5, random_state=0
)
for share in [1.0, 0.3, 0.1]:
    protected = Teacher([mean + share * spread, readout], [share * biases[0], biases[1]], "tanh")
    found = extract(protected.predict, inputs, estimator=known, max_queries=1000, random_state=0)
    print(
        f"neurons differ by {share:4.0%}: {found.n_queries:4d} queries, "
        f"{found.estimator.layer_sizes_}, certified: {found.recovered}"
    )
