"""The log density of one flat vector in JAX, as the JAX libraries take it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from problem import PRECISION, Problem


def network(theta: jax.Array, x: jax.Array) -> jax.Array:
    """Logits at the points in the columns of x: (D,), (2, M) -> (M,)."""
    # With points in rows, `x @ W.T + b`, XLA's code for many chains takes more than three times as long.
    h = jnp.tanh(theta[:6].reshape(3, 2) @ x + theta[6:9, None])
    h = jnp.tanh(theta[9:15].reshape(2, 3) @ h + theta[15:17, None])
    return theta[17:19] @ h + theta[19]


def log_likelihood(points: np.ndarray, labels: np.ndarray) -> Callable[[jax.Array], jax.Array]:
    x, y = jnp.asarray(points.T), jnp.asarray(labels)

    def log_prob(theta: jax.Array) -> jax.Array:
        logits = network(theta, x)
        return jnp.sum(y * logits - jax.nn.softplus(logits))

    return log_prob


def log_density(problem: Problem) -> Callable[[jax.Array], jax.Array]:
    likelihood = log_likelihood(problem.x, problem.y)
    return lambda theta: likelihood(theta) - PRECISION / 2 * theta @ theta
