"""Kernels of a reader's own, which the library has never seen: written against the protocol and nothing else."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_utils.kernels.base import Info


class Walk(NamedTuple):
    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)


@dataclass(frozen=True, eq=False)
class RandomWalk:
    """Metropolis et al. (1953): a normal step, accepted with probability min(1, density there / density here)."""

    factor: Tensor  # (D, D), from standard normal noise to steps

    lanes_per_chain = 1

    def init(self, density, theta, num_warmup):
        return Walk(theta, density.joint.log_prob_and_grad(theta)[0])

    def step(self, density, generator, state):
        state, info, _ = self.walk(density, generator, state, 1.0)
        return state, info

    def walk(self, density, generator, state, width):
        """One step, and the probability with which it was accepted, ``(C,)``."""
        noise = torch.randn(state.theta.shape, generator=generator, dtype=state.theta.dtype)
        u = torch.rand(len(noise), generator=generator, dtype=noise.dtype)
        there = state.theta + width * (noise @ self.factor.to(noise).mT)
        log_prob = density.joint.log_prob_and_grad(there)[0]
        is_accept = log_prob - state.log_prob > u.log()
        theta = torch.where(is_accept[:, None], there, state.theta)
        rate = (log_prob - state.log_prob).clamp(max=0).exp()
        state = Walk(theta, torch.where(is_accept, log_prob, state.log_prob))
        return state, Info(*state, {"is_accept": is_accept}), rate


class Adapting(NamedTuple):
    walk: Walk
    log_width: float
    to_go: int  # transitions of the warm-up
    count: int


@dataclass(frozen=True, eq=False)
class AdaptingWalk(RandomWalk):
    """A random walk that learns in its warm-up how far to step (Robbins and Monro 1951)."""

    width: float = 1.0

    def init(self, density, theta, num_warmup):
        return Adapting(super().init(density, theta, num_warmup), math.log(self.width), num_warmup, 0)

    def step(self, density, generator, state):
        walk, info, rate = self.walk(density, generator, state.walk, math.exp(state.log_width))
        log_width, to_go = state.log_width, state.to_go
        if to_go:
            log_width, to_go = log_width + (rate.mean().item() - 0.6) / math.sqrt(state.count + 1), to_go - 1
        stats = {"step_size": math.exp(state.log_width), "acceptance_rate": rate}
        return Adapting(walk, log_width, to_go, state.count + 1), info._replace(stats=info.stats | stats)

    def adapted(self, state):
        return replace(self, width=math.exp(state.log_width))


@dataclass(frozen=True, eq=False)
class ManyAtOnce(RandomWalk):
    """A random walk that draws the random numbers of many transitions first, in the order of one after the other."""

    def steps(self, density, generator, state, num):
        like = state.theta
        numbers = [
            (
                torch.randn(like.shape, generator=generator, dtype=like.dtype) @ self.factor.to(like).mT,
                torch.rand(len(like), generator=generator, dtype=like.dtype).log(),
            )
            for _ in range(num)
        ]
        infos = []
        for step, limit in numbers:
            log_prob = density.joint.log_prob_and_grad(state.theta + step)[0]
            is_accept = log_prob - state.log_prob > limit
            theta = torch.where(is_accept[:, None], state.theta + step, state.theta)
            state = Walk(theta, torch.where(is_accept, log_prob, state.log_prob))
            infos.append(Info(*state, {"is_accept": is_accept}))
        return state, Info.stack(infos)
