"""Ways to approximate a posterior, each as a function of a problem, a budget of gradients and a seed; for `price.py`.

A gradient is one of the log density of all the data, at one theta; those of minibatches count in proportion. What a
method needs to find its start and the size of its steps counts as well.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import vector_to_parameters

from bnn_utils import (
    HMC,
    MCLMC,
    NUTS,
    SGHMC,
    SGLD,
    Bernoulli,
    Data,
    Gaussian,
    LogScale,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    find_map,
)
from bnn_utils.density import Density
from bnn_utils.gradients.native import can_be_native
from bnn_utils.kernels.base import Kernel
from bnn_utils.references import Problem
from bnn_utils.run import Plan, advance, begin

NUM_CHAINS = 8  # at most
DRAWS, DRAWS_OF_MANY, MANY = 125, 250, 1_000_000  # that are kept of each chain, and from how many gradients on more
GRADIENTS_OF_A_LANE = 1000  # at least: where there would be fewer, there are fewer chains
AT_ONCE = 20_000  # transitions of which all draws are in memory
WARMUP = 1 / 3  # of the budget, as of that for whatever comes before the draws
RATE = 0.05  # of Adam, at first
POWER_STEPS, SMALL = 20, 1e-4  # of power iteration
BATCHES = 4  # minibatches in an epoch
FRICTION = 0.1  # of SGHMC
ADDED_NOISE = 0.1  # of minibatches: its variance beside that of what SGLD and SGHMC add, where the density bends most
RANK = 20  # of SWAG's covariance, as in its paper
DROPPED = 0.1  # share of the units
MASKS, PARTICLES = 8, 10  # for one step of Adam, of dropout and of variational inference
STEPS_OF_NUTS = 16  # in a transition, at first; it makes 1,023 at most


class Told(NamedTuple):
    """What a method says: draws ``(chains, draws, D)``, what they cost, and the problem where it is another one."""

    theta: Tensor
    gradients: float
    problem: Problem | None = None


def always(problem: Problem) -> str:
    return ""


class Method(NamedTuple):
    """A method. Without a budget it takes what it needs, and more would not change what it says.

    ``unsuitable`` says of a problem why the method is not for it, and nothing where it is.
    """

    told: Callable[[Problem, int, int], Told]
    package: str = "bnn_utils"
    has_budget: bool = True
    unsuitable: Callable[[Problem], str] = always


class Counted:
    """A posterior that counts how often its joint density is asked for."""

    def __init__(self, posterior: Posterior) -> None:
        self.posterior, self.gradients, self._make = copy.copy(posterior), 0, posterior.density
        self.posterior.__dict__["density"] = self._density

    def _density(self, num_lanes: int, compile: bool = False) -> Density:
        density = self._make(num_lanes, compile)
        joint = density.joint

        def log_prob_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
            self.gradients += len(theta)
            return joint.log_prob_and_grad(theta)

        density.__dict__["joint"] = joint._replace(log_prob_and_grad=log_prob_and_grad)
        return density


def num_draws(budget: int) -> int:
    """Of each chain that are kept: where distances are larger than chance, few show it as well as many."""
    return DRAWS_OF_MANY if budget >= MANY else DRAWS


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def density_of(posterior: Posterior, num_lanes: int) -> Density:
    """In native code where there is some."""
    return posterior.density(num_lanes, compile=can_be_native(posterior))


def num_outputs(posterior: Posterior) -> int:
    return posterior.outputs(posterior.flat.ravel(), posterior.data.x[:1]).shape[-1]


def learns_noise(posterior: Posterior) -> bool:
    """Whether the size of the noise is a parameter of its own."""
    return isinstance(list(posterior.flat.module.modules())[-1], LogScale)


# --- maxima -----------------------------------------------------------------------------------------------------------


def maxima(num: int) -> Method:
    """Maxima, each from a draw of the prior and each as one draw: of one MAP, of several a deep ensemble
    (Lakshminarayanan, Pritzel and Blundell 2017) whose loss is the posterior's own density.
    """

    def told(problem: Problem, budget: int, seed: int) -> Told:
        counted = Counted(problem.posterior)
        theta = find_map(counted.posterior, num, seed=seed, progress=False).theta
        return Told(theta[None], counted.gradients)

    return Method(told, has_budget=False)


def climb(posterior: Posterior, theta: Tensor, num_steps: int) -> Tensor:
    """Adam on the log joint density from theta ``(C, D)``, with rates that fall to 0 along a cosine."""
    theta, density = theta.clone(), density_of(posterior, len(theta))
    adam = torch.optim.Adam([theta], lr=RATE, maximize=True)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, num_steps)
    for _ in range(num_steps):
        theta.grad = density.joint.log_prob_and_grad(theta)[1]
        adam.step()
        slower.step()
    return theta


def largest_curvature(posterior: Posterior, theta: Tensor, generator: Generator) -> float:
    """The largest absolute eigenvalue of the Hessian of the log joint density, at any of theta ``(C, D)``.

    By power iteration, with products of Hessian and vector from differences of gradients: 40 gradients for each theta.
    """
    density = density_of(posterior, len(theta))
    v = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
    for _ in range(POWER_STEPS):
        v = SMALL * v / v.norm(dim=1, keepdim=True)
        above, below = (density.joint.log_prob_and_grad(theta + sign * v)[1] for sign in (1, -1))
        v = (above - below) / (2 * SMALL)
    return v.norm(dim=1).max().item()


# --- normal distributions ---------------------------------------------------------------------------------------------


class Linearised:
    """Stands where a problem has its posterior: the same, for a network that is linear in theta around a place."""

    def __init__(self, posterior: Posterior, at: Tensor) -> None:
        self._posterior, self._at = posterior, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._posterior, name)

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        """f(x, at) + df/dtheta (theta - at), theta ``(..., D)`` -> ``(..., M, K)``."""
        with torch.enable_grad():
            slopes = torch.autograd.functional.jacobian(lambda at: self._posterior.outputs(at, x), self._at)
        return self._posterior.outputs(self._at, x) + torch.einsum("mkd,...d->...mk", slopes, theta - self._at)

    def predict(self, theta: Tensor, x: Tensor) -> Tensor:
        return self._posterior.likelihood.mean(self.outputs(theta, x))

    def log_likelihoods(self, theta: Tensor, data: Data) -> Tensor:
        return self._posterior.likelihood.log_probs(self.outputs(theta, data.x), data.y)


class OtherLogit(nn.Module):
    """Two classes as softmax has them: the logit of class 0 is 0."""

    def forward(self, logit: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(logit), logit], dim=-1)


def laplace(last_layer: bool) -> Method:
    """laplace-torch: a normal around the MAP, whose precision is that of the prior plus the generalised Gauss-Newton
    matrix, of all weights or of the last layer's; the noise is the MAP's. Predictions are those of the network that is
    linear in these weights (Immer, Korzepa and Bauer 2021).
    """

    def told(problem: Problem, budget: int, seed: int) -> Told:
        from laplace import Laplace
        from torch.utils.data import DataLoader, TensorDataset

        posterior, likelihood, data = problem.posterior, problem.posterior.likelihood, problem.posterior.data
        counted = Counted(posterior)
        at = find_map(counted.posterior, 1, seed=seed, progress=False).theta[0]
        module = copy.deepcopy(posterior.flat.module)
        parts = [part for part in list(module.children()) or [module] if not isinstance(part, LogScale)]
        size = sum(p.numel() for part in parts for p in part.parameters())
        of_last = sum(p.numel() for p in parts[-1].parameters())
        net = nn.Sequential(*parts, *[OtherLogit()] * isinstance(likelihood, Bernoulli))
        vector_to_parameters(at[:size], net.parameters())
        assert isinstance(posterior.prior, NormalPrior)  # or the method is unsuitable
        options: dict[str, Any] = {"prior_precision": posterior.prior.precision}
        if isinstance(likelihood, Gaussian):
            options["sigma_noise"] = float(at[-1].exp() if likelihood.scale is None else likelihood.scale)
        if last_layer:
            options["subnetwork_indices"] = torch.arange(size - of_last, size)
        kind, y = (
            ("regression", data.y[:, None]) if isinstance(likelihood, Gaussian) else ("classification", data.y.long())
        )
        fitted = Laplace(net, kind, "subnetwork" if last_layer else "all", "full", **options)
        fitted.fit(DataLoader(TensorDataset(data.x, y), batch_size=len(y)))
        theta = at.repeat(NUM_CHAINS * DRAWS, 1)
        theta[:, :size] = fitted.sample(len(theta), generator=seeded(seed)).detach()
        linear: Any = Linearised(posterior, at)
        # The matrix takes the gradient of each output at each point.
        gradients = counted.gradients + num_outputs(posterior)
        return Told(theta.view(NUM_CHAINS, DRAWS, -1), gradients, replace(problem, posterior=linear))

    def unsuitable(problem: Problem) -> str:
        posterior, likelihood = problem.posterior, problem.posterior.likelihood
        if isinstance(likelihood, Gaussian) and likelihood.scale is None and not learns_noise(posterior):
            return "laplace-torch knows no noise that depends on the input"
        if not isinstance(posterior.prior, NormalPrior):
            return "its subnetworks know a prior with one precision only"
        return "the last layer is the whole network" * (last_layer and not has_hidden_units(posterior))

    return Method(told, "laplace", False, unsuitable)


def swag(problem: Problem, budget: int, seed: int) -> Told:
    r"""SWAG (Maddox et al. 2019, algorithm 1): a normal by the moments of stochastic gradient descent, once an epoch.

    Its covariance is half the variances of the path plus half of what its last 20 deviations span. The rate is that at
    which the path itself is most like the posterior, ``2 D / tr C`` with C the covariance of a minibatch's gradient
    (Mandt, Hoffman and Blei 2017, theorem 1), or the inverse of the largest curvature, whichever is smaller.
    """
    posterior, generator = problem.posterior, seeded(seed)
    spent = int(WARMUP * budget)
    theta = climb(posterior, posterior.sample_prior(1, generator), spent)
    stability = 1 / largest_curvature(posterior, theta, generator)
    minibatches = posterior.density(1).minibatches
    size = -(-minibatches.num_points // BATCHES)

    def gradients(theta: Tensor) -> list[Tensor]:
        return [minibatches.log_prob_and_grad(theta, places)[1] for places in minibatches.epoch(generator, size)]

    noise = torch.cat([grad for _ in range(5) for grad in gradients(theta)]).var(0).sum().item()
    rate = min(2 * posterior.dim / noise, stability)
    mean, square = theta.clone(), theta.square()
    deviations: list[Tensor] = []
    spent += 2 * POWER_STEPS + 5
    for epoch in range(1, budget - spent + 1):
        for places in minibatches.epoch(generator, size):
            theta = theta + rate * minibatches.log_prob_and_grad(theta, places)[1]
        mean, square = mean + (theta - mean) / (epoch + 1), square + (theta.square() - square) / (epoch + 1)
        deviations = [*deviations, theta - mean][-RANK:]
    num, rank = NUM_CHAINS * DRAWS, len(deviations)
    z, w = torch.randn(num, posterior.dim, generator=generator), torch.randn(num, rank, generator=generator)
    variance = (square - mean.square()).clamp(min=0)
    spread = variance.sqrt() * z.to(theta) + w.to(theta) @ torch.cat(deviations) / math.sqrt(max(1, rank - 1))
    return Told((mean + spread / math.sqrt(2)).view(NUM_CHAINS, DRAWS, -1), budget)


def variational(problem: Problem, budget: int, seed: int) -> Told:
    """NumPyro's AutoNormal: independent normals that climb the evidence lower bound (Kucukelbir et al. 2017)."""
    import jax
    import numpy as np
    import numpyro
    from numpyro.distributions import ImproperUniform, constraints
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    log_prob, num_steps = problem.posterior.jax(), budget // PARTICLES

    def model() -> None:
        theta = numpyro.sample("theta", ImproperUniform(constraints.real_vector, (), (problem.posterior.dim,)))
        numpyro.factor("log joint density", log_prob(theta))

    guide = AutoNormal(model)
    adam = numpyro.optim.Adam(lambda step: RATE * (1 - step / num_steps))
    run, draw = jax.random.split(jax.random.key(seed))
    fitted = SVI(model, guide, adam, Trace_ELBO(PARTICLES)).run(run, num_steps, progress_bar=False)
    draws = guide.sample_posterior(draw, fitted.params, sample_shape=(NUM_CHAINS, DRAWS))["theta"]
    return Told(torch.from_numpy(np.array(draws)).to(problem.posterior.dtype), num_steps * PARTICLES)


# --- another network --------------------------------------------------------------------------------------------------


def has_hidden_units(posterior: Posterior) -> bool:
    return posterior.layers is not None and len(posterior.layers) > 1


def masks(posterior: Posterior, num: int, generator: Generator) -> Tensor:
    """By what theta is multiplied to drop hidden units at random and keep the mean of what follows: ``(num, D)``."""
    factors = torch.ones(num, posterior.dim, dtype=posterior.dtype)
    assert posterior.layers is not None  # or the method is unsuitable
    for layer in posterior.layers[1:]:
        kept = (torch.rand(num, 1, layer.shape[1], generator=generator) >= DROPPED).to(factors) / (1 - DROPPED)
        factors[:, layer.weight] = kept.expand(-1, layer.shape[0], -1).flatten(1)
    return factors


def dropout(problem: Problem, budget: int, seed: int) -> Told:
    """Monte Carlo dropout (Gal and Ghahramani 2016): each hidden unit is dropped with probability 0.1, in training and
    in predictions. So it is another network than the posterior's, with the posterior's prior as its weight decay.
    """
    posterior, generator = problem.posterior, seeded(seed)
    theta, density, num_steps = posterior.sample_prior(1, generator), density_of(posterior, MASKS), budget // MASKS
    adam = torch.optim.Adam([theta], lr=RATE, maximize=True)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, num_steps)
    for _ in range(num_steps):
        kept = masks(posterior, MASKS, generator)
        slope = kept * density.likelihood.log_prob_and_grad(theta * kept)[1]
        theta.grad = slope.mean(0, keepdim=True) + density.prior.grad(theta)
        adam.step()
        slower.step()
    draws = theta * masks(posterior, NUM_CHAINS * DRAWS, generator)
    return Told(draws.view(NUM_CHAINS, DRAWS, -1), num_steps * MASKS)


# --- chains -----------------------------------------------------------------------------------------------------------


def num_chains(budget: int, lanes: int = 1) -> int:
    return min(NUM_CHAINS, max(1, budget // (GRADIENTS_OF_A_LANE * lanes)))


def run(
    problem: Problem, kernel: Kernel, theta: Tensor, left: float, generator: Generator, per_step: float, steps: int
) -> tuple[Tensor, float]:
    """Chains from theta ``(C, D)`` that end when their gradients are spent, and how many gradients they took.

    A third is for the warm-up, whose length in transitions has to be known before: it follows from how many steps are
    expected. A warm-up that took more than half of all is made again with half as many transitions: whoever has run a
    few chains before knows that number, so that it is not counted.

    Args:
        left: gradients of all chains together.
        per_step: gradients in a step of a lane.
        steps: that are expected in a transition.
    """
    posterior, begun, most = problem.posterior, generator.get_state(), num_draws(int(left))
    is_native = can_be_native(posterior) and not isinstance(kernel, SGLD)
    each = len(theta) * kernel.lanes_per_chain * per_step  # gradients of a step of all lanes
    num_warmup, after_warmup = int(WARMUP * left / (each * steps)), math.inf
    while after_warmup > left / 2:
        generator.set_state(begun)
        plan = Plan(posterior, kernel, len(theta), num_warmup, is_native, one_thread=True)
        checkpoint, after_warmup = begin(plan, theta, generator), each / per_step
        for num in parts(num_warmup):
            checkpoint, info = advance(plan, checkpoint, num)
            after_warmup += info.stats["n_steps"].double().mean().item() * num * each
            if after_warmup > left / 2:
                break
        if num_warmup == 0:
            break
        num_warmup //= 2
    spent, num, kept = after_warmup, 1, []
    while spent < left:
        checkpoint, info = advance(plan, checkpoint, num)
        cost = info.stats["n_steps"].double().mean().item() * each  # of a transition of all chains
        spent += num * cost
        thin = max(1, int((left - after_warmup) / cost / most))
        kept.append(info.theta[:, ::thin].clone())
        num = max(1, min(AT_ONCE, int((left - spent) / cost / 2)))  # half, as transitions may come to need more
    draws = torch.cat(kept, dim=1)
    return draws[:, torch.linspace(0, draws.shape[1] - 1, min(most, draws.shape[1])).long()], spent


def parts(num: int) -> list[int]:
    """So many transitions as numbers of some at a time."""
    return [min(AT_ONCE, num - k) for k in range(0, num, AT_ONCE)]


def chains(kernel: Kernel, per_step: float, steps: int) -> Method:
    """Chains of one of our kernels, from draws of the prior; with the numbers of `run`."""

    def told(problem: Problem, budget: int, seed: int) -> Told:
        generator = seeded(seed)
        theta = problem.posterior.sample_prior(num_chains(budget, kernel.lanes_per_chain), generator)
        return Told(*run(problem, kernel, theta, budget, generator, per_step, steps))

    return Method(told)


def stochastic(friction: float) -> Method:
    """SGLD, or SGHMC, with steps of one size.

    A third of the budget goes into a climb, as no step is ever rejected and none would be small enough at most draws of
    the prior. With a curvature L there, N points and b in a minibatch, the noise of a minibatch's gradient has about
    the variance L N / b where the density bends most, and a step of size eps adds ``eps^2 / 4`` of it to the
    ``friction eps`` that belong there. So ``eps = 4 * 0.1 * friction b / (N L)`` adds a tenth.
    """

    def told(problem: Problem, budget: int, seed: int) -> Told:
        posterior, generator = problem.posterior, seeded(seed)
        theta, num_steps = posterior.sample_prior(num_chains(budget), generator), 0
        num_steps = int(WARMUP * budget) // len(theta)
        theta = climb(posterior, theta, num_steps)
        step_size = 4 * ADDED_NOISE * friction / BATCHES / largest_curvature(posterior, theta, generator)
        size = -(-len(posterior.counted) // BATCHES)
        kernel = SGLD(step_size, size) if friction == 1 else SGHMC(step_size, size, friction=friction)
        spent = len(theta) * (num_steps + 2 * POWER_STEPS)
        draws, more = run(problem, kernel, theta, budget - spent, generator, 1 / BATCHES, BATCHES)
        return Told(draws, spent + more)

    return Method(told)


METHODS = {
    "MAP": maxima(1),
    "last-layer Laplace": laplace(last_layer=True),
    "Laplace": laplace(last_layer=False),
    "SWAG": Method(swag),
    "MC dropout": Method(dropout, unsuitable=lambda p: "it has no hidden units" * (not has_hidden_units(p.posterior))),
    "mean-field VI": Method(variational, "numpyro"),
    "ensemble of 5": maxima(5),
    "ensemble of 50": maxima(50),
    "SGLD": stochastic(1.0),
    "SGHMC": stochastic(FRICTION),
    "MCLMC": chains(MCLMC(), per_step=2, steps=1),
    "HMC": chains(HMC(num_steps=64), per_step=1, steps=64),
    "NUTS": chains(NUTS(), per_step=1, steps=STEPS_OF_NUTS),
    "replica exchange": chains(ReplicaExchange(HMC(0.05, 8), 12), per_step=1, steps=8),
}
