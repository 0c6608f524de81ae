"""The log density of one flat vector in PyTorch, by autograd, as the libraries for one chain take it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from problem import PRECISION, Problem


def log_density(problem: Problem) -> Callable[[Tensor], Tensor]:
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)

    def log_prob(theta: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, theta[:6].view(3, 2), theta[6:9]))
        h = torch.tanh(F.linear(h, theta[9:15].view(2, 3), theta[15:17]))
        logits = F.linear(h, theta[17:19].view(1, 2), theta[19:]).squeeze(-1)
        return -F.binary_cross_entropy_with_logits(logits, y, reduction="sum") - PRECISION / 2 * theta.dot(theta)

    return log_prob
