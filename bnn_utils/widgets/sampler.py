"""What step size and number of steps do to Hamiltonian Monte Carlo."""

from __future__ import annotations

from typing import NamedTuple

import ipywidgets
import torch
from torch import Tensor

from bnn_utils.chain import Chain
from bnn_utils.diagnostics import ess
from bnn_utils.hmc import HMC, HMCState, leapfrog
from bnn_utils.plots import Figure, trajectories
from bnn_utils.posterior import Posterior
from bnn_utils.sampling import sample
from bnn_utils.widgets.explorer import Explorer

NUM_PATHS = 4
NUM_CHAINS, NUM_TRANSITIONS = 8, 200  # of the run that is made at every change
LOOK_AROUND = HMC(step_size=0.05, num_steps=8)  # adapts, then finds a start and the plane to look at
PLANE_POINTS = 60


class Paths(NamedTuple):
    """Leapfrog trajectories from one start."""

    theta: Tensor  # (P, steps + 1, D)
    energy_error: Tensor  # (P, steps + 1), H minus H at the start


class Plane(NamedTuple):
    """The log density on a plane through a start, along the two directions in which draws vary most."""

    directions: Tensor  # (2, D), orthonormal
    u: Tensor  # (G,), coordinates along the first, 0 at the start
    v: Tensor  # (G,)
    log_prob: Tensor  # (G, G), rows along v


def sampler_explorer(posterior: Posterior, start: Tensor | None = None, seed: int = 0) -> Explorer:
    """Choose step size and number of steps of HMC and see what they do.

    Left, leapfrog trajectories from four momenta, which stay the same, over a slice of the log density (they run in all
    dimensions; the slice shows their shadows). Middle, their energy errors. Below, acceptance rate and effective sample
    size (ESS) of a run made with these settings: 8 chains of 200 transitions from the same start.

    Args:
        posterior: what to draw from; of any inputs.
        start: where trajectories and chains start, shape ``(D,)``; without it, the last draw of a short run.
        seed: of the momenta and the runs.
    """
    look = sample(posterior, LOOK_AROUND, 300, warmup=300, init=start, seed=seed, progress=False, compile=False)
    start = look.draws[0, -1] if start is None else start.to(look.draws)
    plane = slice_through(posterior, start, look.draws[0])

    def work(step_size: float, num_steps: int) -> tuple[Figure, str]:
        paths = roll(posterior, start, step_size, num_steps, seed)
        kernel = HMC(step_size, num_steps)
        inits = start.expand(NUM_CHAINS, -1)
        chain = sample(posterior, kernel, NUM_TRANSITIONS, init=inits, seed=seed, progress=False, compile=False)
        shadows = (paths.theta - start) @ plane.directions.T
        rate = chain.stats["acceptance_rate"].mean().item()
        title = f"Step size {step_size:.3g}, {num_steps} steps: {rate:.0%} accepted"
        return trajectories(shadows.cpu(), plane[1:], paths.energy_error.cpu(), title), worth(chain, num_steps)

    controls = {
        "step_size": ipywidgets.FloatLogSlider(
            value=LOOK_AROUND.step_size, min=-3, max=0, step=0.05, readout_format=".3g", description="step size"
        ),
        "num_steps": ipywidgets.IntSlider(value=LOOK_AROUND.num_steps, min=1, max=30, description="steps"),
    }
    return Explorer(controls, work)


@torch.no_grad()
def roll(posterior: Posterior, start: Tensor, step_size: float, num_steps: int, seed: int) -> Paths:
    """Every step of some leapfrog trajectories from ``start``, ``(D,)``, with momenta that depend on the seed alone."""
    generator = torch.Generator(start.device).manual_seed(seed)
    p = torch.randn(NUM_PATHS, len(start), generator=generator, dtype=start.dtype, device=start.device)
    target = posterior.target(NUM_PATHS)
    theta = start.repeat(NUM_PATHS, 1)
    state = HMCState(theta, *target.log_prob_and_grad(theta))
    thetas, energies = [theta], [p.square().sum(-1) / 2 - state.log_prob]
    for _ in range(num_steps):
        state, p = leapfrog(state, p, target.log_prob_and_grad, step_size, 1)
        thetas.append(state.theta)
        energies.append(p.square().sum(-1) / 2 - state.log_prob)
    energy = torch.stack(energies, dim=1)
    return Paths(torch.stack(thetas, dim=1), energy - energy[:, :1])


@torch.no_grad()
def slice_through(posterior: Posterior, start: Tensor, draws: Tensor) -> Plane:
    """The plane through ``start`` along the two main directions of draws ``(S, D)``, three deviations far."""
    _, sizes, directions = torch.linalg.svd(draws - draws.mean(0), full_matrices=False)
    u, v = (
        torch.linspace(-1, 1, PLANE_POINTS).to(start) * (3 * size / len(draws) ** 0.5).clamp(min=0.1)
        for size in sizes[:2]
    )
    directions = directions[:2]
    places = start + u[None, :, None] * directions[0] + v[:, None, None] * directions[1]
    log_prob = posterior.log_prob(places.flatten(0, 1)).view(PLANE_POINTS, PLANE_POINTS)
    return Plane(directions, u.cpu(), v.cpu(), log_prob.cpu())


def worth(chain: Chain, num_steps: int) -> str:
    """How much a run is worth, in words."""
    draws, gradients = chain.num_chains * chain.num_draws, chain.num_chains * chain.num_draws * num_steps
    rate, diverging = chain.stats["acceptance_rate"].mean().item(), int(chain.stats["diverging"].sum())
    effective = ess(chain.stats["lp"]).nan_to_num(0).item()  # NaN where no chain ever moved
    return (
        f"A run of {chain.num_chains} chains: {rate:.0%} accepted, {diverging} divergences; {draws:,} draws are worth "
        f"{effective:.0f} independent ones of the log density, {1000 * effective / gradients:.1f} per 1,000 gradients."
    )
