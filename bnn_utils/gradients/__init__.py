"""Log densities with their gradients: by autograd, in closed form, and in native code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class LogDensity(NamedTuple):
    """A log density over batches of vectors, each row on its own, as kernels take it.

    What a call returns is new: the caller may write to it, and later calls leave it alone.
    """

    log_prob_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]  # (C, D) -> (C,), (C, D)
    grad: Callable[[Tensor], Tensor]  # (C, D) -> (C, D), the gradient alone
    # Leapfrog steps in one call, where there is native code for them:
    # (position, momentum, step size, number of steps, inverse mass) -> position, momentum, as `leapfrog` makes them
    trajectory: Callable[..., tuple[Any, Tensor]] | None = None
