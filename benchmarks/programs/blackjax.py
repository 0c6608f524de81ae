"""BlackJAX: one compiled scan over transitions, chains by `vmap` inside it, as in its example of many chains."""

from __future__ import annotations

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

from problem import DIM, NUM_STEPS, STEP_SIZE, Problem, Run
from programs.jax_density import log_density


def build(problem: Problem, num_draws: int) -> Run:
    num_chains = len(problem.starts)
    hmc = blackjax.hmc(log_density(problem), STEP_SIZE, jnp.ones(DIM), NUM_STEPS)

    def transition(states: blackjax.mcmc.hmc.HMCState, key: jax.Array) -> tuple[blackjax.mcmc.hmc.HMCState, tuple]:
        states, infos = jax.vmap(hmc.step)(jax.random.split(key, num_chains), states)
        return states, (states.position, infos.acceptance_rate)

    @jax.jit
    def chains(key: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(transition, jax.vmap(hmc.init)(starts), jax.random.split(key, num_draws))[1]

    def run(seed: int) -> tuple[np.ndarray, float]:
        draws, acceptance = map(np.asarray, chains(jax.random.key(seed), problem.starts))
        return draws.swapaxes(0, 1), float(acceptance.mean())

    return run
