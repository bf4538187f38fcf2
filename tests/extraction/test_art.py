"""The attack on a classifier of the Adversarial Robustness Toolbox."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_ec import ExpandClusterRegressor

pytest.importorskip("art", reason="needs the extra art")

from art.attacks.attack import ExtractionAttack  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402

from sklearn_ec.extraction.art import ExpandClusterExtraction  # noqa: E402


def test_a_classifier_is_extracted():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    victim = PyTorchClassifier(module, nn.CrossEntropyLoss(), input_shape=(2, 2), nb_classes=2)
    attack = ExpandClusterExtraction(
        victim,
        known=ExpandClusterRegressor(hidden_layer_sizes=3, activation="tanh", random_state=0),
        max_queries=500,
        random_state=0,
    )
    assert isinstance(attack, ExtractionAttack)
    images = np.random.default_rng(0).normal(size=(200, 2, 2)).astype(np.float32)
    thief = attack.extract(images)
    assert attack.extraction_.recovered
    assert attack.extraction_.estimator.certificate_.precision == "float32"
    assert np.abs(thief.predict(images) - victim.predict(images)).max() < 1e-5
