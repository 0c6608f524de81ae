"""The log density of one flat vector in JAX, as both JAX libraries take it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from problem import PRECISION, Problem


def log_density(problem: Problem) -> Callable[[jax.Array], jax.Array]:
    # Points in columns: with points in rows, `x @ W.T + b`, XLA's code for many chains takes more than three times as
    # long.
    x, y = jnp.asarray(problem.x.T), jnp.asarray(problem.y)

    def log_prob(theta: jax.Array) -> jax.Array:
        h = jnp.tanh(theta[:6].reshape(3, 2) @ x + theta[6:9, None])
        h = jnp.tanh(theta[9:15].reshape(2, 3) @ h + theta[15:17, None])
        logits = theta[17:19] @ h + theta[19]
        return jnp.sum(y * logits - jax.nn.softplus(logits)) - PRECISION / 2 * theta @ theta

    return log_prob
