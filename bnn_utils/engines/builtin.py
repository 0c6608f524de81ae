"""The built-in engine: all chains as lanes of one batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import Tensor

from bnn_utils.adaptation import ChEES, ChEESWarmup, Warmup
from bnn_utils.engines.transition import Transition
from bnn_utils.hmc import HMC
from bnn_utils.posterior import Posterior
from bnn_utils.tempering import ExchangeInfo, ExchangeWarmup, ReplicaExchange


@singledispatch
def transitions(
    kernel: HMC, posterior: Posterior, theta: Tensor, generator: torch.Generator, compile: bool = False, warmup: int = 0
) -> Iterator[Transition]:
    """Transitions of all chains from theta ``(C, D)``; see `bnn_utils.engines`."""
    target = posterior.target(len(theta), compile)
    state, learning = kernel.init(target.log_prob_and_grad, theta), Warmup(kernel, warmup)
    for _ in range(warmup):
        kernel = learning.kernel
        state, info = kernel.build_kernel(*target)(generator, state)
        yield Transition(state.theta, state.log_prob, info, kernel)
        learning.update(state.theta, info.acceptance_rate.mean())
    kernel = learning.kernel
    transition = kernel.build_kernel(*target)
    while True:
        state, info = transition(generator, state)
        yield Transition(state.theta, state.log_prob, info, kernel)


@transitions.register
def _chees(
    kernel: ChEES, posterior: Posterior, theta: Tensor, generator: torch.Generator, compile: bool, warmup: int
) -> Iterator[Transition]:
    target = posterior.target(len(theta), compile)
    state, learning = kernel.init(target.log_prob_and_grad, theta), ChEESWarmup(kernel, warmup)
    for _ in range(warmup):
        kernel, start = learning.kernel, state
        state, info, proposal = kernel.build_kernel(*target)(generator, start)
        yield Transition(state.lanes.theta, state.lanes.log_prob, info, kernel)
        learning.update(start, proposal, state)
    kernel = learning.kernel
    transition = kernel.build_kernel(*target)
    while True:
        state, info, _ = transition(generator, state)
        yield Transition(state.lanes.theta, state.lanes.log_prob, info, kernel)


@transitions.register
def _replica_exchange(
    kernel: ReplicaExchange, posterior: Posterior, theta: Tensor, generator: torch.Generator, compile: bool, warmup: int
) -> Iterator[Transition]:
    target = posterior.split_target(len(theta) * kernel.lanes_per_chain, compile)
    state, learning = kernel.init(target[1], theta), ExchangeWarmup(kernel, warmup)
    for _ in range(warmup):
        kernel = learning.kernel
        state, info = kernel.build_kernel(*target, theta)(generator, state)
        yield _cold(info, kernel)
        learning.update(info)
    kernel = learning.kernel
    transition = kernel.build_kernel(*target, theta)
    while True:
        state, info = transition(generator, state)
        yield _cold(info, kernel)


def _cold(info: ExchangeInfo, kernel: ReplicaExchange) -> Transition:
    """The chain at the posterior, with what its diagnostics need of the others."""
    ladder = {"log_likelihood": info.log_likelihood, "replica": info.replica, "acceptance_rate": info.acceptance_rate}
    return Transition(info.theta, info.log_prob, info.cold, kernel, ladder)
