"""This project."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, Data, NormalPrior, Posterior, ReplicaExchange, sample
from problem import EXCHANGE_STEPS, NUM_STEPS, NUM_TEMPERATURES, PRECISION, Problem, Run


def build(problem: Problem, num_draws: int, compile: Literal[False, "auto"] = "auto") -> Run:
    posterior, starts = _posterior(problem), torch.from_numpy(problem.starts)

    def run(seed: int) -> tuple[np.ndarray, float]:
        chain = sample(
            posterior,
            HMC(problem.step_size, NUM_STEPS),
            num_draws,
            num_chains=len(starts),
            init=starts,
            seed=seed,
            progress=False,
            compile=compile,
        )
        return chain.draws.numpy(), chain.stats["acceptance_rate"].mean().item()

    return run


def build_in_torch(problem: Problem, num_draws: int) -> Run:
    return build(problem, num_draws, compile=False)


def build_tempered(problem: Problem, num_draws: int) -> Run:
    """Replica exchange with a ninth as many draws of warm-up."""
    posterior, starts = _posterior(problem), torch.from_numpy(problem.starts)

    def run(seed: int) -> tuple[np.ndarray, float]:
        chain = sample(
            posterior,
            ReplicaExchange(HMC(problem.step_size, EXCHANGE_STEPS), NUM_TEMPERATURES),
            num_draws,
            num_chains=len(starts),
            warmup=num_draws // 9,
            init=starts,
            seed=seed,
            progress=False,
        )
        return chain.draws.numpy(), chain.stats["diverging"].sum().item()

    return run


def _posterior(problem: Problem) -> Posterior:
    layers = [layer for sizes in pairwise(problem.network) for layer in (nn.Linear(*sizes), nn.Tanh())]
    data = Data(torch.from_numpy(problem.x), torch.from_numpy(problem.y))
    return Posterior(nn.Sequential(*layers[:-1]), data, prior=NormalPrior(precision=PRECISION), likelihood=Bernoulli())
