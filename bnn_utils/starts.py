"""Where chains start: where they were asked to, or at draws from the prior from which a chain can set out."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from bnn_utils.posterior import Posterior

# How often a start whose density or gradient is not finite is drawn again.
MOST_STARTS = 100


def fit_init(posterior: Posterior, init: Tensor, num_chains: int) -> Tensor:
    """Starting points ``(C, D)`` in the posterior's dtype and on its device."""
    posterior.check_shape(init)
    if init.ndim == 2 and (len(init) == 0 or num_chains not in (1, len(init))):
        raise ValueError(f"init has {len(init)} starting points, but num_chains is {num_chains}")
    theta = init.detach().to(dtype=posterior.dtype, device=posterior.device)
    return theta.expand(num_chains, -1).clone() if init.ndim == 1 else theta.clone()


def _bad_starts(posterior: Posterior, theta: Tensor) -> Tensor:
    """Which starts ``(C, D)`` a chain can't set out from: their density or gradient is not finite."""
    log_prob, grad = posterior.log_prob_and_grad(theta)
    return ~(log_prob.isfinite() & grad.isfinite().all(-1))


def draw_starts(posterior: Posterior, num: int, stream: torch.Generator) -> Tensor:
    """Starts from the prior ``(num, D)``; one that no chain can set out from is drawn again, and told of."""
    theta = posterior.sample_prior(num, stream)
    first = bad = _bad_starts(posterior, theta)
    for _ in range(MOST_STARTS):
        if not bad.any():
            break
        theta = torch.where(bad[:, None], posterior.sample_prior(num, stream), theta)
        bad = _bad_starts(posterior, theta)
    if bad.any():
        raise ValueError(
            f"the log density or its gradient is not finite at {MOST_STARTS} draws from the prior: narrow the prior, "
            "or start elsewhere with init=, nearer to 0"
        )
    if first.any():
        warnings.warn(
            f"{int(first.sum())} of {num} starts from the prior had a log density or gradient that is not finite and "
            "were drawn again: the prior reaches places where nothing can be computed; narrow it or compute in float64",
            RuntimeWarning,
            stacklevel=4,
        )
    return theta


def check_starts(posterior: Posterior, theta: Tensor) -> None:
    bad = _bad_starts(posterior, theta).nonzero().flatten()
    if len(bad):
        lane = int(bad[0])
        log_prob = posterior.log_prob_and_grad(theta)[0][lane]
        and_gradient = ", but its gradient is not finite" if log_prob.isfinite() else ""
        raise ValueError(
            f"chain {lane} starts where the log density is {log_prob.item()}{and_gradient}; start it elsewhere with "
            f"init=, nearer to 0 (its largest parameter is {theta[lane].abs().max().item():g})"
        )
