r"""The path that replica exchange tempers: from the prior, or from a reference, to the posterior.

At inverse temperature beta the density is ``start(theta) ratio(theta)^beta``, where start is a normalised density, and
start times ratio is the joint density of parameters and data:

- from the prior, the ratio is the likelihood;
- from a reference q, it is ``prior(theta) likelihood(theta) / q(theta)``, so that the density at beta is
  ``q(theta)^(1 - beta) [prior(theta) likelihood(theta)]^beta``.

A reference that was fitted to the posterior lies nearer to it than a prior that is vague (variational parallel
tempering: Surjanovic, Syed, Bouchard-Côté and Campbell 2022). As q is normalised, both paths lead to the same evidence.

What it cannot do: q knows widths and no correlations, and it covers all symmetric copies of a network. Where the prior
is about as wide as these copies together, as one by fan-in was for the networks tried, q is much the same density.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.gradients import LogDensity
from bnn_utils.priors import DiagonalNormal
from bnn_utils.symmetry import exchangeable

if TYPE_CHECKING:
    from bnn_utils.density import Density
    from bnn_utils.posterior import Posterior

# By how much a reference is wider than the draws that it is fitted to. Where q is narrower than the posterior, the
# ratio grows without bound in the tails. On the tutorial's posterior half the width raised the barrier from 4.0 to 4.9
# and the error of the evidence threefold, 0.7 of it raised them to 4.4 and by a half; 1.0 to 2.0 made no difference.
BROADER = 1.2


class Path(NamedTuple):
    """Log densities, each with its gradient."""

    start: LogDensity  # normalised
    ratio: LogDensity  # joint density over start


def path_of(density: Density, reference: Tensor | None) -> Path:
    """From the prior, or from independent normals with mean 0 and these standard deviations, ``(D,)``.

    Raises:
        ValueError: if the reference is of another number of parameters.
    """
    if reference is None:
        return Path(density.prior, density.likelihood)
    if len(reference) != density.dim:
        raise ValueError(
            f"reference has {len(reference)} standard deviations, but the posterior has {density.dim} parameters"
        )
    joint = density.joint
    q = DiagonalNormal(reference.to(device=density.device, dtype=density.dtype).square().reciprocal())

    def grad(theta: Tensor) -> Tensor:
        return theta * -q.precision

    def ratio(theta: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, grad_joint = joint.log_prob_and_grad(theta)
        return log_prob - q.log_prob(theta), grad_joint.addcmul_(q.precision, theta)

    def grad_ratio(theta: Tensor) -> Tensor:
        return joint.grad(theta).addcmul_(q.precision, theta)

    return Path(LogDensity(lambda theta: (q.log_prob(theta), grad(theta)), grad), LogDensity(ratio, grad_ratio))


def fit_reference(posterior: Posterior, draws: Tensor) -> Tensor:
    """Standard deviations of a reference for `ReplicaExchange`, from draws that are roughly of the posterior.

    sd_d = 1.2 sqrt(mean of theta_e^2 over all draws and all e that are exchangeable with d)

    and no more than the prior's, where this is normal. The moments are about 0, and elements that trade places when
    hidden units are exchanged share theirs (`bnn_utils.symmetry.exchangeable`): so draws near one copy of a network
    give a reference for all copies of it, by order and by signs.

    Args:
        draws: shape ``(..., D)``: of a pilot run, say; maxima of `find_map` are narrower than the posterior.

    Returns:
        shape ``(D,)``, in the posterior's dtype and on its device.

    Raises:
        TypeError: if this is no posterior, or no draws.
        ValueError: if draws are of another number of parameters, not finite, or 0 throughout.
    """
    _check.posterior(posterior)
    draws = _check.tensor("draws", draws).detach()
    if draws.ndim == 0 or draws.shape[-1] != posterior.dim or draws.numel() == 0:
        raise ValueError(f"draws must have the shape (..., {posterior.dim}), got {tuple(draws.shape)}")
    like = posterior.flat.ravel()
    squares = draws.reshape(-1, posterior.dim).to(device="cpu", dtype=torch.float64).square().mean(0)
    further = torch.arange(posterior.flat.dim, posterior.dim)  # scales that are inferred: nobody's
    groups = torch.cat([exchangeable(posterior.flat), further])
    sums = squares.new_zeros(posterior.dim).index_add(0, groups, squares)
    sd = BROADER * (sums / groups.bincount(minlength=posterior.dim))[groups].sqrt()
    if not ((sd > 0) & sd.isfinite()).all():
        raise ValueError("draws must be finite, and not 0 in all draws of a parameter: a reference needs a width")
    sd = sd.to(like)
    prior = posterior.prior_distribution
    return torch.minimum(sd, prior.precision.rsqrt()) if isinstance(prior, DiagonalNormal) else sd
