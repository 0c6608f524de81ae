"""The log density of one flat vector in JAX, as the JAX libraries take it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from problem import NETWORK, PRECISION, Problem


def network(theta: jax.Array, x: jax.Array, sizes: tuple[int, ...] = NETWORK) -> jax.Array:
    """Logits at the points in the columns of x: (D,), (2, M) -> (M,)."""
    # With points in rows, `x @ W.T + b`, XLA's code for many chains takes more than three times as long.
    *hidden, last = pairwise(sizes)
    h, start = x, 0
    for inputs, outputs in hidden:
        middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
        h = jnp.tanh(theta[start:middle].reshape(outputs, inputs) @ h + theta[middle:end, None])
        start = end
    return theta[start : start + last[0]] @ h + theta[-1]


def log_likelihood(
    points: np.ndarray, labels: np.ndarray, sizes: tuple[int, ...] = NETWORK
) -> Callable[[jax.Array], jax.Array]:
    x, y = jnp.asarray(points.T), jnp.asarray(labels)

    def log_prob(theta: jax.Array) -> jax.Array:
        logits = network(theta, x, sizes)
        return jnp.sum(y * logits - jax.nn.softplus(logits))

    return log_prob


def log_density(problem: Problem) -> Callable[[jax.Array], jax.Array]:
    likelihood = log_likelihood(problem.x, problem.y, problem.network)
    return lambda theta: likelihood(theta) - PRECISION / 2 * theta @ theta
