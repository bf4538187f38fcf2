"""Adam for plain tensors, without PyTorch's compiler.

The first optimizer that a process makes with :mod:`torch.optim` imports ``torch._dynamo`` and
SymPy: one to three seconds, as long as a fit of a small network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# The defaults of Kingma and Ba (2015).
DECAY, SQUARED_DECAY = 0.9, 0.999
EPSILON = 1e-8


class Adam:
    """Adam as :class:`torch.optim.Adam` has it, with ``param_groups`` and ``state`` like there.

    Parameters
    ----------
    parameters : iterable of Tensor
        The tensors to train, each with its ``grad`` when a step is taken.
    lr : float
        Learning rate.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float):
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.state: dict[Tensor, dict[str, Tensor]] = {
            parameter: {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            for parameter in self.param_groups[0]["params"]
        }

    @torch.no_grad()
    def step(self) -> None:
        """Change all parameters along their gradients."""
        (group,) = self.param_groups
        for parameter in group["params"]:
            state, gradient = self.state[parameter], parameter.grad
            state["step"] += 1
            n_steps = float(state["step"])
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.lerp_(gradient, 1.0 - DECAY)
            square.mul_(SQUARED_DECAY).addcmul_(gradient, gradient, value=1.0 - SQUARED_DECAY)
            scale = square.sqrt().div_(math.sqrt(1.0 - SQUARED_DECAY**n_steps)).add_(EPSILON)
            parameter.addcdiv_(mean, scale, value=-group["lr"] / (1.0 - DECAY**n_steps))
