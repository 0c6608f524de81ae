r"""Sequential Monte Carlo from the prior to the posterior: a second opinion on what replica exchange says.

It shares neither kernel nor diagnostics with the samplers of `bnn_utils.kernels`: many particles, drawn from the prior,
are weighted, drawn again in proportion to their weights, and moved (Del Moral, Doucet and Jasra 2006). The evidence
that it estimates is unbiased, and independent runs say how far off it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_utils.gradients.native import can_be_native
from bnn_utils.posterior import Posterior

KEPT_ESS = 0.7  # of the particles, by each reweighting
TARGET_ACCEPTANCE = 0.8
FIRST_STEP = 0.1  # in units of the particles' standard deviations
LEARNING_RATE = 0.5  # by which the logarithm of a step size follows the acceptance rate
HALVINGS = 50  # of the interval in which the next temperature lies


class Particles(NamedTuple):
    """What one run says.

    Attributes:
        theta: equally weighted draws from the posterior, dependent on each other, ``(N, D)``.
        log_evidence: log p(y), every constant kept.
        num_stages: how many temperatures there were.
        acceptance_rate: of the last moves.
    """

    theta: Tensor
    log_evidence: float
    num_stages: int
    acceptance_rate: float


@torch.no_grad()
def sequential_monte_carlo(
    posterior: Posterior, num_particles: int, num_moves: int, num_steps: int, generator: torch.Generator
) -> Particles:
    """One run: draws from the prior become draws from ``prior likelihood^beta``, for beta from 0 to 1.

    The next beta is that at which weights ``likelihood^(beta - last beta)`` keep 0.7 of the effective particles. Each
    stage resamples systematically and makes transitions of HMC with leapfrog steps in units of the particles' standard
    deviations, whose size follows the acceptance rate and varies by a fifth.

    Args:
        num_particles: N.
        num_moves: transitions of each particle at each beta.
        num_steps: leapfrog steps of each.
        generator: on the posterior's device.
    """
    density = posterior.density(num_particles, compile=can_be_native(posterior))
    theta = posterior.sample_prior(num_particles, generator)
    log_likelihood, grad = density.likelihood.log_prob_and_grad(theta)
    beta, log_evidence, step, rate, num_stages = 0.0, 0.0, FIRST_STEP, 0.0, 0
    while beta < 1:
        next_beta = _next_beta(beta, log_likelihood)
        log_weights = (next_beta - beta) * log_likelihood
        log_evidence += float(log_weights.logsumexp(0)) - math.log(num_particles)
        chosen = _systematic(log_weights.softmax(0), generator)
        theta, log_likelihood, grad = theta[chosen], log_likelihood[chosen], grad[chosen]
        beta, num_stages = next_beta, num_stages + 1
        scale = theta.std(0)
        for _ in range(num_moves):
            theta, log_likelihood, grad, rate = _move(
                density, beta, scale * step, num_steps, generator, theta, log_likelihood, grad
            )
            step *= math.exp(LEARNING_RATE * (rate - TARGET_ACCEPTANCE))
    return Particles(theta, log_evidence, num_stages, rate)


def _next_beta(beta: float, log_likelihood: Tensor) -> float:
    """Where the effective number of particles is just what is to be kept, by bisection; 1 where more is left there."""

    def share(next_beta: float) -> float:
        weights = ((next_beta - beta) * log_likelihood).softmax(0)
        return 1 / (len(weights) * float(weights.square().sum()))

    if share(1.0) >= KEPT_ESS:
        return 1.0
    low, high = beta, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= KEPT_ESS else (low, middle)
    return high


def _systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Indices, each as often as its weight says, up to one: places of equally spaced numbers with a random start."""
    num = len(weights)
    u = torch.rand(1, generator=generator, dtype=weights.dtype, device=weights.device)
    points = (torch.arange(num, dtype=weights.dtype, device=weights.device) + u) / num
    return torch.searchsorted(weights.cumsum(0), points).clamp(max=num - 1)


def _move(
    density: object,
    beta: float,
    sizes: Tensor,
    num_steps: int,
    generator: torch.Generator,
    theta: Tensor,
    log_likelihood: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One transition of HMC for ``log prior + beta log likelihood``; step sizes ``(D,)`` stand for a diagonal mass."""
    jitter = 0.8 + 0.4 * torch.rand(len(theta), 1, generator=generator, dtype=theta.dtype, device=theta.device)
    epsilon = sizes * jitter
    p = torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
    prior, likelihood = density.prior, density.likelihood  # type: ignore[attr-defined]

    def energy(log_prior: Tensor, log_likelihood: Tensor, p: Tensor) -> Tensor:
        return p.square().sum(1) / 2 - log_prior - beta * log_likelihood

    log_prior, grad_prior = prior.log_prob_and_grad(theta)
    before = energy(log_prior, log_likelihood, p)
    there, new_log_likelihood, new_grad = theta, log_likelihood, grad
    p = p + epsilon / 2 * (grad_prior + beta * grad)
    for step in range(num_steps):
        there = there + epsilon * p
        new_log_likelihood, new_grad = likelihood.log_prob_and_grad(there)
        log_prior, grad_prior = prior.log_prob_and_grad(there)
        p = p + (epsilon if step < num_steps - 1 else epsilon / 2) * (grad_prior + beta * new_grad)
    probability = (before - energy(log_prior, new_log_likelihood, p)).nan_to_num(nan=-math.inf).clamp(max=0).exp()
    u = torch.rand(len(theta), generator=generator, dtype=theta.dtype, device=theta.device)
    is_accept = u < probability
    return (
        torch.where(is_accept[:, None], there, theta),
        torch.where(is_accept, new_log_likelihood, log_likelihood),
        torch.where(is_accept[:, None], new_grad, grad),
        float(probability.mean()),
    )
