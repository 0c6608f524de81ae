"""The log density in other worlds: for SciPy and NumPy, and for JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bnn_utils import _check

if TYPE_CHECKING:
    from bnn_utils.backprop import Target
    from bnn_utils.posterior import Posterior

NumpyFunction = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def numpy_function(posterior: Posterior) -> NumpyFunction:
    """``theta -> (log_prob, grad)`` on NumPy arrays: (D,) -> scalar, (D,); (C, D) -> (C,), (C, D).

    The function may be called from several threads.
    """
    # Samplers ask for as many rows every time, and laying out a target's memory takes several times as long as one call
    # of it, so targets are kept. Each call overwrites that memory, so a call has its target to itself. (Thread-local
    # ones crash: threads that Python did not start, such as JAX's and Rust's, are new to it in every call.)
    idle: list[tuple[int, Target]] = []

    @torch.no_grad()
    def log_prob_and_grad(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = _check.tensor("theta", theta).detach().to(dtype=posterior.dtype, device=posterior.device)
        posterior.flat.check(rows)
        lanes = rows.view(-1, posterior.dim)
        try:
            num_lanes, target = idle.pop()
        except IndexError:  # other threads have them all
            num_lanes, target = None, None
        if num_lanes != len(lanes):
            target = posterior.target(len(lanes))
        value, grad = target.log_prob_and_grad(lanes)
        idle.append((len(lanes), target))
        return value.view(rows.shape[:-1]).cpu().numpy()[()], grad.view(rows.shape).cpu().numpy()

    return log_prob_and_grad


def jax_function(posterior: Posterior) -> Callable[[Any], Any]:
    """``theta -> log_prob`` for JAX, differentiable once in reverse mode, in the dtype of its argument.

    The density and its gradient are computed together by torch, outside of JAX (`jax.pure_callback`), so the function
    may be jitted and mapped: rows mapped over by vmap go to torch as one batch.
    """
    import jax
    import jax.numpy as jnp

    numpy = numpy_function(posterior)

    def both(theta: Any) -> tuple[Any, Any]:
        def compute(theta: Any) -> tuple[np.ndarray, np.ndarray]:
            theta = np.asarray(theta)
            value, grad = numpy(theta.reshape(-1, posterior.dim))
            lead = theta.shape[:-1]
            return value.reshape(lead).astype(theta.dtype), grad.reshape(theta.shape).astype(theta.dtype)

        shapes = jax.ShapeDtypeStruct((), theta.dtype), jax.ShapeDtypeStruct(theta.shape, theta.dtype)
        return jax.pure_callback(compute, shapes, theta, vmap_method="broadcast_all")

    def check(theta: Any) -> Any:
        theta = jnp.asarray(theta)
        if theta.shape != (posterior.dim,):
            raise ValueError(
                f"theta has shape {theta.shape}, but this function takes ({posterior.dim},): for rows, jax.vmap it"
            )
        return theta

    @jax.custom_vjp
    def differentiable(theta: Any) -> Any:
        return both(theta)[0]

    differentiable.defvjp(both, lambda grad, upstream: (upstream * grad,))

    def log_prob(theta: Any) -> Any:
        return differentiable(check(theta))

    return log_prob
