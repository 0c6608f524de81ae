"""The built-in engine: all chains as lanes of one batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bnn_utils.hmc import HMC, HMCInfo
from bnn_utils.posterior import Posterior


def transitions(
    posterior: Posterior, kernel: HMC, theta: Tensor, generator: torch.Generator, compile: bool = False
) -> Iterator[tuple[Tensor, Tensor, HMCInfo]]:
    """Transitions of all chains from theta ``(C, D)``; see `bnn_utils.engines`."""
    target = posterior.target(len(theta), compile)
    state = kernel.init(target.log_prob_and_grad, theta)
    transition = kernel.build_kernel(*target)
    while True:
        state, info = transition(generator, state)
        yield state.theta, state.log_prob, info
