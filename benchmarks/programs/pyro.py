"""Pyro: one chain. A potential function is faster here than a model, with or without `jit_compile`."""

from __future__ import annotations

import numpy as np
import pyro
import torch
from pyro.infer.mcmc import HMC, MCMC

from problem import NUM_STEPS, STEP_SIZE, Problem, Run
from programs.torch_density import log_density


def build(problem: Problem, num_draws: int) -> Run:
    log_prob = log_density(problem)
    kernel = HMC(
        potential_fn=lambda sites: -log_prob(sites["theta"]),
        step_size=STEP_SIZE,
        num_steps=NUM_STEPS,
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )

    def run(seed: int) -> tuple[np.ndarray, float]:
        pyro.set_rng_seed(seed)
        mcmc = MCMC(
            kernel,
            num_samples=num_draws,
            warmup_steps=0,  # left out, there would be as many as draws
            initial_params={"theta": torch.from_numpy(problem.starts[0])},
            disable_progbar=True,
        )
        mcmc.run()
        (acceptance,) = mcmc.diagnostics()["acceptance rate"].values()
        return mcmc.get_samples(group_by_chain=True)["theta"].numpy(), acceptance

    return run
