"""BlackJAX: one compiled scan over transitions, chains by `vmap` inside it, as in its example of many chains."""

from __future__ import annotations

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.hmc import HMCState

from problem import NUM_STEPS, Problem, Run
from programs.jax_density import log_density


def build(problem: Problem, num_draws: int) -> Run:
    num_chains, dim = problem.starts.shape
    hmc = blackjax.hmc(log_density(problem), problem.step_size, jnp.ones(dim), NUM_STEPS)

    def transition(states: HMCState, key: jax.Array) -> tuple[HMCState, tuple]:
        states, infos = jax.vmap(hmc.step)(jax.random.split(key, num_chains), states)
        return states, (states.position, infos.acceptance_rate)

    @jax.jit
    def chains(key: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(transition, jax.vmap(hmc.init)(starts), jax.random.split(key, num_draws))[1]

    def run(seed: int) -> tuple[np.ndarray, float]:
        draws, acceptance = map(np.asarray, chains(jax.random.key(seed), problem.starts))
        return draws.swapaxes(0, 1), float(acceptance.mean())

    return run


def build_nuts(problem: Problem, num_draws: int) -> Run:
    """NUTS after as many draws of window adaptation, each chain with its own."""
    num_chains, log_prob = len(problem.starts), log_density(problem)
    warmup = blackjax.window_adaptation(blackjax.nuts, log_prob)

    def chain(key: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        warmup_key, key = jax.random.split(key)
        (state, parameters), _ = warmup.run(warmup_key, start, num_draws)
        nuts = blackjax.nuts(log_prob, **parameters)

        def transition(state: HMCState, key: jax.Array) -> tuple[HMCState, tuple]:
            state, info = nuts.step(key, state)
            return state, (state.position, info.is_divergent)

        return jax.lax.scan(transition, state, jax.random.split(key, num_draws))[1]

    chains = jax.jit(jax.vmap(chain))

    def run(seed: int) -> tuple[np.ndarray, float]:
        draws, diverging = map(np.asarray, chains(jax.random.split(jax.random.key(seed), num_chains), problem.starts))
        return draws, float(diverging.sum())

    return run
