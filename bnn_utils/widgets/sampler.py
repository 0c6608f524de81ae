"""What step size and number of steps do to Hamiltonian Monte Carlo."""

from __future__ import annotations

from typing import NamedTuple

import ipywidgets
import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.chain import Chain
from bnn_utils.diagnostics import ess
from bnn_utils.kernels.hmc import HMC, Position, leapfrog
from bnn_utils.plots import Figure, trajectories
from bnn_utils.posterior import Posterior
from bnn_utils.sampling import sample
from bnn_utils.widgets.explorer import Explorer

NUM_PATHS = 4
NUM_CHAINS, NUM_TRANSITIONS = 8, 200  # of the run that is made at every change
TUTORIAL = HMC(step_size=0.05, num_steps=4)
WALK = 300  # transitions to a place where the posterior is
PLANE_STEPS, PLANE_POINTS = 50, 60


class Paths(NamedTuple):
    """Leapfrog trajectories from one start."""

    theta: Tensor  # (P, steps + 1, D)
    energy_error: Tensor  # (P, steps + 1), H minus H at the start


class Plane(NamedTuple):
    """The log density on a plane through a start."""

    directions: Tensor  # (2, D), orthonormal
    u: Tensor  # (G,), coordinates along the first, 0 at the start
    v: Tensor  # (G,)
    log_prob: Tensor  # (G, G), rows along v


def sampler_explorer(posterior: Posterior, start: Tensor | None = None, seed: int = 0) -> Explorer:
    """Choose step size and number of steps of HMC and see what they do.

    Left, leapfrog trajectories from four momenta, which stay the same, on a slice of the log density along which they
    move most; they move in all dimensions, and these are their shadows. Right, their energy errors. Below, acceptance
    rate, mean squared jump per gradient and effective sample size (ESS) of a run with these settings: 8 chains of 200
    transitions from that start.

    Args:
        posterior: what to draw from; of any inputs.
        start: where trajectories and chains start, shape ``(D,)``; without it, the last draw of a short run.
        seed: of the momenta and the runs.

    Raises:
        ValueError: if ``start`` has another shape than theta, or the log density there is not finite.
    """
    _check.posterior(posterior)
    start = None if start is None else _check.tensor("start", start)
    if start is None:
        start = sample(posterior, TUTORIAL, 1, warmup=WALK, seed=seed, progress=False).draws[0, 0]
    posterior.check_shape(start)
    if start.ndim != 1:
        raise ValueError(f"start is one vector, of shape ({posterior.dim},), but got {tuple(start.shape)}")
    start = start.to(dtype=posterior.dtype, device=posterior.device)
    if not posterior.log_prob(start).isfinite():
        raise ValueError(
            f"the log density at start is {posterior.log_prob(start).item()}: start nearer to 0, or at a draw"
        )
    plane = slice_through(posterior, start, seed)

    def work(step_size: float, num_steps: int) -> tuple[Figure, str]:
        paths = roll(posterior, start, step_size, num_steps, seed)
        kernel = HMC(step_size, num_steps)
        inits = start.expand(NUM_CHAINS, -1)
        chain = sample(posterior, kernel, NUM_TRANSITIONS, init=inits, seed=seed, progress=False)
        shadows = (paths.theta - start) @ plane.directions.T
        rate = chain.stats["acceptance_rate"].mean().item()
        title = f"Step size {step_size:.3g}, {num_steps} steps: {rate:.0%} accepted"
        return trajectories(shadows, plane[1:], paths.energy_error, title), worth(chain, num_steps)

    controls = {
        "step_size": ipywidgets.FloatLogSlider(
            value=TUTORIAL.step_size, min=-3, max=0, step=0.05, readout_format=".3g", description="step size"
        ),
        "num_steps": ipywidgets.IntSlider(value=TUTORIAL.num_steps, min=1, max=30, description="steps"),
    }
    return Explorer(controls, work)


@torch.no_grad()
def roll(posterior: Posterior, start: Tensor, step_size: float, num_steps: int, seed: int) -> Paths:
    """Every step of some leapfrog trajectories from ``start``, ``(D,)``, with momenta that depend on the seed alone."""
    generator = torch.Generator(start.device).manual_seed(seed)
    p = torch.randn(NUM_PATHS, len(start), generator=generator, dtype=start.dtype, device=start.device)
    joint = posterior.density(NUM_PATHS).joint
    theta = start.repeat(NUM_PATHS, 1)
    state = Position(theta, *joint.log_prob_and_grad(theta))
    thetas, energies = [theta], [p.square().sum(-1) / 2 - state.log_prob]
    for _ in range(num_steps):
        state, p = leapfrog(state, p, joint.log_prob_and_grad, step_size, 1)
        thetas.append(state.theta)
        energies.append(p.square().sum(-1) / 2 - state.log_prob)
    energy = torch.stack(energies, dim=1)
    return Paths(torch.stack(thetas, dim=1), energy - energy[:, :1])


@torch.no_grad()
def slice_through(posterior: Posterior, start: Tensor, seed: int) -> Plane:
    """The plane through ``start`` on which trajectories from there move most, and as far as they get."""
    step_size = 1.0
    while not (paths := roll(posterior, start, step_size, PLANE_STEPS, seed)).energy_error.abs().max() < 1:
        step_size /= 2  # until the steps are small enough for the landscape, whatever its scale
    offsets = (paths.theta - start).flatten(0, 1)
    directions = torch.linalg.svd(offsets, full_matrices=False)[2][:2]
    u, v = (
        torch.linspace(-1.2, 1.2, PLANE_POINTS).to(start) * reach for reach in (offsets @ directions.T).abs().amax(0)
    )
    places = start + u[None, :, None] * directions[0] + v[:, None, None] * directions[1]
    log_prob = posterior.log_prob(places.flatten(0, 1)).view(PLANE_POINTS, PLANE_POINTS)
    return Plane(directions, u, v, log_prob)


def worth(chain: Chain, num_steps: int) -> str:
    """What a run gave for its gradients, in words."""
    rate, diverging = chain.stats["acceptance_rate"].mean().item(), int(chain.stats["diverging"].sum())
    jump = chain.draws.diff(dim=1).square().sum(-1).mean().item()  # Pasarica and Gelman 2010
    effective = ess(chain.stats["lp"]).nan_to_num(0).item()  # NaN where no chain ever moved
    return (
        f"{chain.num_chains} chains of {chain.num_draws} transitions: {rate:.0%} accepted, {diverging} divergences, "
        f"mean squared jump per gradient {jump / num_steps:.2g}, ESS of the log density {effective:.0f}."
    )
