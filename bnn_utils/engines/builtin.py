"""The built-in engine: all chains as lanes of one batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bnn_utils.hmc import HMC, HMCInfo
from bnn_utils.posterior import Posterior


@torch.no_grad()
def transitions(
    posterior: Posterior, kernel: HMC, theta: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, HMCInfo]]:
    """Transitions of all chains from theta ``(C, D)``; see `bnn_utils.engines`."""
    state = kernel.init(posterior.log_prob_and_grad, theta)
    transition = kernel.build_kernel(posterior.log_prob_and_grad)
    while True:
        state, info = transition(generator, state)
        yield state.theta, state.log_prob, info
