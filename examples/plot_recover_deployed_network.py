"""
Recover a network that is at work
=================================

ESA's processor for images of the Sentinel-2 satellites estimates the leaf area index of vegetation
with a small neural network. Its constants are published, so that a recovery can be checked against
them, weight by weight. Seen are only its answers to random inputs, rounded to float32.
"""

# %%
# The network
# -----------
# Eleven inputs (eight bands and the cosines of three angles, each scaled to [-1, 1]), five tanh
# neurons, one output, which is scaled to a leaf area index. The constants are those of M. Weiss and
# F. Baret, "S2ToolBox Level 2 products: LAI, FAPAR, FCOVER", version 1.1, 2016.
import time

import matplotlib.pyplot as plt
import numpy as np

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.inspection import DendrogramDisplay
from sklearn_ec.metrics import match_neurons

inputs = ["B3", "B4", "B5", "B6", "B7", "B8a", "B11", "B12", "view", "sun", "azimuth"]
# fmt: off
published = np.array([  # one row per neuron
    [-0.023406878966470, 0.921655164636366, 0.135576544080099, -1.938331472397950,
     -3.342495816122680, 0.902277648009576, 0.205363538258614, -0.040607844721716,
     -0.083196409727092, 0.260029270773809, 0.284761567218845],
    [-0.132555480856684, -0.139574837333540, -1.014606016898920, -1.330890038649270,
     0.031730624503341, -1.433583541317050, -0.959637898574699, 1.133115706551000,
     0.216603876541632, 0.410652303762839, 0.064760155543506],
    [0.086015977724868, 0.616648776881434, 0.678003876446556, 0.141102398644968,
     -0.096682206883546, -1.128832638862200, 0.302189102741375, 0.434494937299725,
     -0.021903699490589, -0.228492476802263, -0.039460537589826],
    [-0.109366593670404, -0.071046262972729, 0.064582411478320, 2.906325236823160,
     -0.673873108979163, -3.838051868280840, 1.695979344531530, 0.046950296081713,
     -0.049709652688365, 0.021829545430994, 0.057483827104091],
    [-0.089939416159969, 0.175395483106147, -0.081847329172620, 2.219895367487790,
     1.713873975136850, 0.713069186099534, 0.138970813499201, -0.060771761518025,
     0.124263341255473, 0.210086140404351, -0.183878138700341],
]).T
published_biases = np.array(
    [4.96238030555279, 1.416008443981500, 1.075897047213310, 1.533988264655420, 3.024115930757230])
# The output in [-1, 1] is scaled to the range of the leaf area index.
lowest, highest = 0.000319182538301, 14.4675094548151
half_range = (highest - lowest) / 2
published_readout = half_range * np.array(
    [-1.500135489728730, -0.096283269121503, -0.194935930577094, -0.352305895755591,
     0.075107415847473])
published_offset = half_range * (1.096963107077220 + 1) + lowest
# fmt: on


def leaf_area_index(X):
    """What the processor answers."""
    hidden = np.tanh(X @ published + published_biases)
    return (hidden @ published_readout + published_offset).astype(np.float32)


# %%
# Recover it
# ----------
# Nothing but the activation is given. The number of hidden layers and their widths are searched.
X = np.random.default_rng(0).uniform(-1, 1, size=(4000, len(inputs)))
start = time.perf_counter()
model = ExpandClusterRegressor(activation="tanh", random_state=0)
model.fit(X, leaf_area_index(X))
seconds = time.perf_counter() - start

# %%
# Compare with the published constants
# ------------------------------------
# Outputs leave the order of the neurons and the sign of each tanh neuron open. Matched one to one,
# every constant is the published one, as far as float32 answers tell.
secret = ([published, published_readout[:, None]], [published_biases, [published_offset]])
match = match_neurons(secret, model, "tanh")
order, signs = match.recovered, match.signs

rows = [*inputs, "bias", "readout"]
expected = np.vstack([published, published_biases, published_readout])[:, match.reference]
found = signs * np.vstack(
    [model.weights_[0][:, order], model.biases_[0][order], model.weights_[1][order, 0]]
)
differences = np.append(found / expected - 1, model.biases_[1] / published_offset - 1)
worst = np.max(np.abs(differences))

for name, value in [
    ("published widths", (published.shape[1],)),
    ("recovered widths", model.layer_sizes_),
    ("certified (recovered_)", model.recovered_),
    ("precision of the answers", model.certificate_.precision),
    ("constants", differences.size),
    ("of them equal to 6 digits", np.sum(np.abs(differences) < 5e-7)),
    ("largest relative difference of a constant", f"{worst:.1e}"),
    ("seconds", f"{seconds:.1f}"),
]:
    print(f"{name:45s}{value}")

# %%
# Weight by weight
# ----------------
# A column is a neuron. The readout is that of the leaf area index. On the right, the number of
# digits that published and recovered constant have in common.
figure, axes = plt.subplots(1, 3, figsize=(10, 5.2), layout="constrained", sharey=True)
digits = -np.log10(np.maximum(np.abs(found / expected - 1), 1e-16))
panels = [
    ("published", expected, {"cmap": "RdBu", "vmin": -4, "vmax": 4}, "{:.4f}"),
    (
        f"recovered from {len(X):,} answers",
        found,
        {"cmap": "RdBu", "vmin": -4, "vmax": 4},
        "{:.4f}",
    ),
    ("digits in common", digits, {"cmap": "Greens", "vmin": 0, "vmax": 16}, "{:.1f}"),
]
for ax, (title, values, colors, form) in zip(axes, panels, strict=True):
    image = ax.imshow(values, aspect="auto", **colors)
    ax.set_title(title)
    ax.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
    ax.set_xlabel("neuron")
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        color = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        ax.text(column, row, form.format(value), ha="center", va="center", color=color, fontsize=8)
axes[0].set_yticks(range(len(rows)), rows)
figure.savefig("recovered_network.png", dpi=100)
print("The figure is in recovered_network.png")

# %%
# What gave it away
# -----------------
# ``origin_`` says whether the clusters or the best student gave the network. Here are the students'
# neurons, clustered by their incoming weight vectors. The network's are among those that students
# share, although they were trained from different random weights; kept clusters that are to spare
# are pruned.
print("origin of the network:", model.origin_)
DendrogramDisplay.from_estimator(model)
