"""The log density as a function of arrays: of NumPy's, for SciPy and others, and of JAX's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bnn_utils import _check

if TYPE_CHECKING:
    from bnn_utils.density import Density

NumpyFunction = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def numpy_function(check: Callable[[torch.Tensor], None], density: Callable[[int], Density]) -> NumpyFunction:
    """``theta -> (log_prob, grad)`` on NumPy arrays: (D,) -> scalar, (D,); (C, D) -> (C,), (C, D).

    The function may be called from several threads.

    Args:
        check: raises for a theta of another shape.
        density: makes the Density for a number of rows, such as ``posterior.density``.
    """
    # Samplers ask for as many rows every time, and laying out a density's memory takes several times as long as one
    # call of it, so densities are kept. Each call overwrites that memory, so a call has its density to itself.
    # (Thread-local ones crash: threads that Python did not start, such as JAX's and Rust's, are new to it in every
    # call.)
    idle: list[Density] = []

    @torch.inference_mode()  # at all times, as memory that was made in it can't be used outside
    def log_prob_and_grad(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = _check.tensor("theta", theta).detach()
        check(rows)
        num_lanes = 1 if rows.ndim == 1 else len(rows)
        try:
            one = idle.pop()
        except IndexError:  # other threads have them all
            one = None
        if one is None or one.num_lanes != num_lanes:
            one = density(num_lanes)
        rows = rows.to(dtype=one.dtype, device=one.device)
        value, grad = one.joint.log_prob_and_grad(rows.view(-1, one.dim))
        idle.append(one)
        return value.view(rows.shape[:-1]).cpu().numpy()[()], grad.view(rows.shape).cpu().numpy()

    return log_prob_and_grad


def jax_function(
    dim: int, check: Callable[[torch.Tensor], None], density: Callable[[int], Density]
) -> Callable[[Any], Any]:
    """``theta -> log_prob`` for JAX, differentiable once in reverse mode, in the dtype of its argument.

    The density and its gradient are computed together by torch, outside of JAX (`jax.pure_callback`), so the function
    may be jitted and mapped: rows mapped over by vmap go to torch as one batch.

    Args:
        dim: length of theta, D.
        check, density: as for `numpy_function`.
    """
    import jax
    import jax.numpy as jnp

    numpy = numpy_function(check, density)

    def both(theta: Any) -> tuple[Any, Any]:
        def compute(theta: Any) -> tuple[np.ndarray, np.ndarray]:
            theta = np.asarray(theta)
            value, grad = numpy(theta.reshape(-1, dim))
            lead = theta.shape[:-1]
            return value.reshape(lead).astype(theta.dtype), grad.reshape(theta.shape).astype(theta.dtype)

        shapes = jax.ShapeDtypeStruct((), theta.dtype), jax.ShapeDtypeStruct(theta.shape, theta.dtype)
        return jax.pure_callback(compute, shapes, theta, vmap_method="broadcast_all")

    def checked(theta: Any) -> Any:
        theta = jnp.asarray(theta)
        if theta.shape != (dim,):
            raise ValueError(f"theta has shape {theta.shape}, but this function takes ({dim},): for rows, jax.vmap it")
        return theta

    @jax.custom_vjp
    def differentiable(theta: Any) -> Any:
        return both(theta)[0]

    differentiable.defvjp(both, lambda grad, upstream: (upstream * grad,))

    def log_prob(theta: Any) -> Any:
        return differentiable(checked(theta))

    return log_prob
