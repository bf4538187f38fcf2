"""Adam takes the steps of PyTorch's, without loading its compiler."""

import subprocess
import sys

import pytest
import torch

from sklearn_ec._expand.adam import Adam

FIT = """
import sys
import numpy as np
from sklearn_ec import ExpandClusterRegressor
from sklearn_ec.datasets import make_teacher

X = np.random.default_rng(0).normal(size=(200, 2))
y = make_teacher(2, 1, activation="tanh", random_state=0).predict(X)
ExpandClusterRegressor(hidden_layer_sizes=1, activation="tanh", random_state=0).fit(X, y)
print(*{"torch._dynamo", "sympy"} & set(sys.modules))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_pytorch(dtype):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, 5, generator=generator, dtype=dtype) for _ in range(2)]
    ours, theirs = ([torch.nn.Parameter(part.clone()) for part in start] for _ in range(2))
    own, reference = Adam(ours, 1e-2), torch.optim.Adam(theirs, 1e-2)
    for rate in (1e-2, 5e-3, 1e-3):
        for optimizer in (own, reference):
            optimizer.param_groups[0]["lr"] = rate
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator, dtype=dtype)
            other.grad = mine.grad.clone()
        own.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
        for name, moment in reference.state[other].items():
            torch.testing.assert_close(own.state[mine][name], moment, rtol=1e-6, atol=1e-9)


def test_a_fit_does_not_load_the_compiler_of_pytorch():
    run = subprocess.run([sys.executable, "-c", FIT], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == ""
