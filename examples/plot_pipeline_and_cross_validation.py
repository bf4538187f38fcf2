"""
In a pipeline, cross-validated
==============================

The estimator is an ordinary scikit-learn regressor: it stands at the end of a pipeline, and
cross-validation scores it on rows that it has not seen. Where a network is behind the data, the
error on these rows is rounding, in every fold.
"""

# %%
# Answers of a network
# --------------------
# An ``MLPRegressor`` with six neurons is trained on the diabetes data in their raw units: years,
# body mass index, blood values. From here on only its answers at the 442 rows are used.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import cross_validate
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.metrics import relative_rmse

X, target = load_diabetes(return_X_y=True, scaled=False)
secret = make_pipeline(
    StandardScaler(),
    MLPRegressor(hidden_layer_sizes=(6,), activation="tanh", max_iter=2000, random_state=0),
).fit(X, scale(target))
y = secret.predict(X)

# %%
# Three regressors, five folds
# ----------------------------
# Each is scored by its root mean squared error on held-out rows, relative to the spread of y.
recovery = ExpandClusterRegressor(
    rho=3, hidden_layer_sizes=6, activation="tanh", n_students=10, random_state=0
)
mlp = MLPRegressor(
    hidden_layer_sizes=(6,), activation="tanh", solver="lbfgs", max_iter=5000, random_state=1
)
regressors = {"Ridge": Ridge(), "MLPRegressor": mlp, "ExpandClusterRegressor": recovery}
scorer = make_scorer(relative_rmse, greater_is_better=False)
results = {
    name: cross_validate(
        make_pipeline(StandardScaler(), regressor), X, y, scoring=scorer, return_estimator=True
    )
    for name, regressor in regressors.items()
}
for name, result in results.items():
    print(f"{name:25s}{np.median(-result['test_score']):.0e}")

# %%
# The last one knows that it is right: ``recovered_`` is True in all folds, without looking at the
# held-out rows. The fitted pipeline itself shows what it does, with links to the documentation.
models = [pipeline[-1] for pipeline in results["ExpandClusterRegressor"]["estimator"]]
print([model.recovered_ for model in models], [model.layer_sizes_ for model in models])
results["ExpandClusterRegressor"]["estimator"][0]

# %%
# Errors on held-out rows
# -----------------------
# A network of the same size that is trained on these answers in the usual way approximates them. It
# is not the same network.
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for place, result in enumerate(results.values()):
    ax.scatter(place + np.linspace(-0.1, 0.1, 5), -result["test_score"], s=40)
ax.set_xticks(range(len(results)), list(results))
ax.set(yscale="log", xlim=(-0.5, 2.5), ylabel="relative error on held-out rows")
ax.set_title("five folds")
