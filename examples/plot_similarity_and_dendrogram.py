"""
What the students share
=======================

Wide students that fit the data exactly share the neurons of the network behind it, and little else.
This is what the method rests on, and it can be seen: in the matrix of distances between the
students' neurons, in its dendrogram, and in the clusters cut from it.
"""

# %%
# Students at zero loss
# ---------------------
# A random network with four neurons answers 600 queries. Twenty students with 16 neurons each are
# trained; ``prune=False`` lets the clusters decide alone, so that students are trained until 60 %
# of them are at zero loss.
import numpy as np

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher
from sklearn_ec.inspection import (
    AlignmentDisplay,
    DendrogramDisplay,
    SimilarityDisplay,
    StudentLossDisplay,
)

teacher = make_teacher(4, 4, activation="g", random_state=1)
X = np.random.default_rng(0).uniform(-np.sqrt(3), np.sqrt(3), size=(600, 4))
model = ExpandClusterRegressor(
    rho=4, hidden_layer_sizes=4, activation="g", prune=False, random_state=0
).fit(X, teacher.predict(X))
model.summary()
StudentLossDisplay.from_estimator(model)

# %%
# The matrix of distances
# -----------------------
# Between all neurons of the students at zero loss, in the order of the dendrogram. The four bright
# blocks are the neurons of the network, which the students share; a student may hold several
# copies. The scale is logarithmic: within a block vectors differ by little more than rounding.
# Everything else is what students need to fill their width: neurons that cancel each other or do
# nothing.
SimilarityDisplay.from_estimator(model)

# %%
# The dendrogram
# --------------
# The same distances as a tree. The cut isolates the parts that enough students share and that last
# over many orders of magnitude.
DendrogramDisplay.from_estimator(model)
# sphinx_gallery_thumbnail_number = 3

# %%
# Which clusters are kept
# -----------------------
# A cluster is kept where at least a share ``gamma`` of the students hold it and the median angle
# between its vectors is at most ``beta``. Here the gap is so wide that neither value matters.
AlignmentDisplay.from_estimator(model)
