"""
What the neurons of wide students do
====================================

A student that is wider than the network, and computes the same function, has neurons to spare.
The paper tells which kinds there can be: a catalogue made by hand, then a count in students that
were trained.
"""

# %%
# A student made by hand
# ----------------------
# The network has two ReLU neurons of one input. The student has ten, of five kinds, and the same
# outputs.
import matplotlib.pyplot as plt
import numpy as np

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import Teacher, make_teacher

# Incoming weight, bias and outgoing weight of each neuron.
network = [(1.0, -0.3, 1.5), (-1.0, 0.8, -1.0)]
kinds = {
    "duplicates": [(1.0, -0.3, 0.5), (1.0, -0.3, 1.0)],
    "zero group": [(1.0, 0.6, 0.8), (1.0, 0.6, -0.5), (1.0, 0.6, -0.3)],
    "constant": [(0.0, 1.0, 0.7)],
    "linear group": [(1.0, 0.2, 0.6), (-1.0, -0.2, -0.6)],
    "off-bound": [(0.5, 1.5, -1.2)],
}
student = [neuron for neurons in kinds.values() for neuron in neurons] + network[1:]


def as_network(neurons, offset):
    incoming, biases, outgoing = np.array(neurons).T
    return Teacher([incoming[None], outgoing[:, None]], [biases, np.array([offset])], "relu")


x = np.linspace(-2, 2, 401)[:, None]
difference = as_network(student, 0.98).predict(x) - as_network(network, 0.0).predict(x)
print(f"largest difference of the outputs: {np.max(np.abs(difference)):.0e}")

# %%
# What each kind contributes
# --------------------------
# *Duplicates* share a neuron of the network: their outgoing weights add up to its own. Those of a
# *zero group* add up to zero. A *constant* neuron has no incoming weight. A *linear group* leaves a
# linear function, which others take away: here an *off-bound* neuron, whose kink is where no data
# are. The output bias takes up the constants.
figure, axes = plt.subplots(1, 5, figsize=(12, 3.2), layout="constrained", sharey=True)
for ax, (kind, neurons) in zip(axes, kinds.items(), strict=True):
    contributions = [a * np.maximum(w * x + b, 0) for w, b, a in neurons]
    for index, contribution in enumerate(contributions):
        label = "one neuron" if index == 0 else None
        ax.plot(x, contribution, color="skyblue", linewidth=4, label=label)
    ax.plot(x, sum(contributions), color="black", linestyle="--", label="their sum")
    ax.set(title=kind, xlabel="input")
axes[0].set_ylabel("contribution to the output")
axes[0].legend(loc="lower left")

# %%
# Students that were trained
# --------------------------
# A network of four tanh neurons, students of 16; those at zero loss are counted. Neurons in the
# kept clusters are those of the network, some of them held several times. A pair of neurons outside
# that has the same incoming vector, up to its sign, is a zero group. The others are zero groups of
# one, with outgoing weights near zero: each contributes less than 1e-6 of the output's spread. What
# is not of the network differs from student to student, so that clusters across students single out
# the neurons of the network.
N_NEURONS = 4
teacher = make_teacher(4, N_NEURONS, activation="tanh", random_state=1)
X = np.random.default_rng(0).uniform(-np.sqrt(3), np.sqrt(3), size=(600, 4))
model = ExpandClusterRegressor(
    rho=4, hidden_layer_sizes=N_NEURONS, activation="tanh", prune=False, random_state=0
).fit(X, teacher.predict(X))
tree = model.dendrogram_[0]

voters = np.unique(tree.students)
counts = {kind: np.zeros(len(voters), int) for kind in ("network", "copies", "groups", "others")}
for place, voter in enumerate(voters):
    is_own = tree.students == voter
    labels, vectors = tree.labels[is_own], tree.vectors[is_own]
    held = len(set(labels[labels >= 0]))
    spare = vectors[labels < 0]
    distances = np.minimum(
        np.linalg.norm(spare[:, None] - spare, axis=-1),
        np.linalg.norm(spare[:, None] + spare, axis=-1),
    )
    np.fill_diagonal(distances, np.inf)
    n_grouped = int(np.sum(distances.min(axis=1) < 1e-6))
    counts["network"][place] = held
    counts["copies"][place] = np.sum(labels >= 0) - held
    counts["groups"][place] = n_grouped
    counts["others"][place] = len(spare) - n_grouped
print(f"certified: {model.recovered_}, widths {model.layer_sizes_}")
print(f"students at zero loss that hold all neurons: {np.sum(counts['network'] == N_NEURONS)}")

# %%
# Neurons of each student
# -----------------------
names = {
    "network": "neurons of the network",
    "copies": "further copies of them",
    "groups": "zero groups",
    "others": "switched off",
}
colors = ["tab:blue", "lightskyblue", "tab:orange", "0.8"]
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
bottom = np.zeros(len(voters))
for (kind, number), color in zip(counts.items(), colors, strict=True):
    ax.bar(range(len(voters)), number, bottom=bottom, color=color, label=names[kind])
    bottom += number
ax.set_xticks(range(len(voters)), voters)
ax.set(xlabel="student at zero loss", ylabel="neurons")
# sphinx_gallery_thumbnail_number = 2
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
