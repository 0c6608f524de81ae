"""NumPyro: `MCMC.run` as its documentation writes it, and the same compiled as a whole.

`MCMC.run` compiles its loop anew at every call. Under `jax.jit` it does not, which costs more lines and is the faster.
"""

from __future__ import annotations

import jax
import numpy as np
from numpyro.infer import HMC, MCMC, NUTS

from problem import NUM_STEPS, Problem, Run
from programs.jax_density import log_density


def build(problem: Problem, num_draws: int) -> Run:
    mcmc, starts = _sampler(problem, num_draws)

    def run(seed: int) -> tuple[np.ndarray, float]:
        mcmc.run(jax.random.key(seed), init_params=starts, extra_fields=("accept_prob",))
        return np.asarray(mcmc.get_samples(group_by_chain=True)), float(mcmc.get_extra_fields()["accept_prob"].mean())

    return run


def build_jitted(problem: Problem, num_draws: int) -> Run:
    @jax.jit
    def chains(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mcmc, starts = _sampler(problem, num_draws)
        mcmc.run(key, init_params=starts, extra_fields=("accept_prob",))
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields()["accept_prob"]

    def run(seed: int) -> tuple[np.ndarray, float]:
        draws, acceptance = map(np.asarray, chains(jax.random.key(seed)))
        return draws, float(acceptance.mean())

    return run


def build_nuts(problem: Problem, num_draws: int) -> Run:
    """NUTS with all its defaults and as many draws of warm-up. Chains in sequence would take longer on one core."""
    log_prob = log_density(problem)

    @jax.jit
    def chains(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mcmc = MCMC(
            NUTS(potential_fn=lambda theta: -log_prob(theta)),
            num_warmup=num_draws,
            num_samples=num_draws,
            num_chains=len(problem.starts),
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(key, init_params=problem.starts, extra_fields=("diverging",))
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields()["diverging"]

    def run(seed: int) -> tuple[np.ndarray, float]:
        draws, diverging = map(np.asarray, chains(jax.random.key(seed)))
        return draws, float(diverging.sum())

    return run


def _sampler(problem: Problem, num_draws: int) -> tuple[MCMC, np.ndarray]:
    """The sampler, and its starting points in the shape it takes."""
    log_prob = log_density(problem)
    kernel = HMC(
        potential_fn=lambda theta: -log_prob(theta),
        step_size=problem.step_size,
        num_steps=NUM_STEPS,
        trajectory_length=None,
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    num_chains = len(problem.starts)
    mcmc = MCMC(
        kernel,
        num_warmup=0,
        num_samples=num_draws,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    return mcmc, problem.starts if num_chains > 1 else problem.starts[0]
