# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14. A kernel, a likelihood and a prior of your own
# The library's samplers are not special. `sample` runs whatever keeps one promise, and gives it
# batches, a progress bar, workers, checkpoints and diagnostics. So if you have an idea for a
# sampler, or a paper that proposes one, a dozen lines are enough to try it. The same holds for
# the two other parts of a **posterior**: what the noise looks like, and what is believed before
# any data.
#
# You will see
# - the random walk of 1953 as a kernel, checked against a posterior that is known,
# - the same kernel with a mistake that is easily made, and a test that finds it,
# - a kernel that uses the gradient, and what the gradient is worth,
# - a likelihood that does not trust every point, and a prior that expects smooth weights,
# - what is refused, and how.
#
# Words in bold are in the [glossary](glossary.md).
#
# This is notebook 14 of 16, and takes some 16 s on two cores. Before it comes [13. From a
# table to a posterior that one may believe](13_real_data.ipynb), after it [15. The price of
# approximation](15_price_of_approximation.ipynb).

# %%
from typing import NamedTuple

import pandas as pd
import torch
from scipy.stats import norm
from torch import nn
from torch.distributions import MultivariateNormal, StudentT

from bnn_utils import HMC, Data, Gaussian, NormalPrior, Posterior, plots, sample
from bnn_utils.diagnostics import ess, mcse, rhat
from bnn_utils.kernels.base import Info
from bnn_utils.predict import predictive_quantiles
from bnn_utils.sbc import simulation_based_calibration

torch.set_num_threads(1)  # rows as short as these are not worth sharing between cores


def noise(*shape, seed):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


# %% [markdown]
# ## A posterior that is known
# To see whether a sampler is right, give it something whose answer is known. A linear
# regression with a normal prior and normal noise has a normal posterior. With inputs `X` (and a
# column of ones for the bias), targets `y`, noise of standard deviation `sigma` and a prior of
# precision 1, its precision is `I + X'X / sigma^2`, and its mean solves
# `precision mean = X'y / sigma^2`.
#
# For PyTorch it is a network without a hidden layer, like any other: 31 parameters.

# %%
sigma, num_inputs = 0.5, 30
x, weights = noise(100, num_inputs, seed=0), noise(num_inputs, seed=1)
data = Data(x, x @ weights + sigma * noise(100, seed=2))
posterior = Posterior(nn.Linear(num_inputs, 1), data, NormalPrior(1.0), Gaussian(scale=sigma))

inputs = torch.cat([x, torch.ones(100, 1, dtype=x.dtype)], dim=1)  # the bias is theta's last
precision = torch.eye(num_inputs + 1, dtype=x.dtype) + inputs.T @ inputs / sigma**2
mean = torch.linalg.solve(precision, inputs.T @ data.y / sigma**2)
posterior

# %% [markdown]
# ## The oldest kernel
# The random walk of Metropolis and others (1953): take a normal step, and go back if the
# density there is too low. A step is kept with probability `min(1, p(there) / p(here))`.
#
# A **kernel** has three things. `lanes_per_chain` is 1 for most. `init` makes the first *state*
# of all chains at once, from their places `theta`, one chain in each row. `step` takes a state
# and gives the next one, with what is to be recorded of it. All that the next step needs is in
# the state, and all chance comes from the generator: that is the promise. `density.joint` is
# the log density of the posterior, with its gradient.


# %%
class Walk(NamedTuple):
    theta: torch.Tensor  # (chains, parameters)
    log_prob: torch.Tensor  # (chains,)


def choose(is_accept, new, old):
    """The new state of chains that accept, the old one of the others."""
    rows = [is_accept.view(-1, *(1 for _ in tensor.shape[1:])) for tensor in new]
    return type(new)(*map(torch.where, rows, new, old))


class RandomWalk(NamedTuple):
    width: float
    lanes_per_chain = 1

    def init(self, density, theta, num_warmup):
        return Walk(theta, density.joint.log_prob_and_grad(theta)[0])

    def step(self, density, generator, state):
        push = torch.empty_like(state.theta).normal_(generator=generator)
        u = torch.empty_like(state.log_prob).uniform_(generator=generator)
        there = state.theta + self.width * push
        log_prob = density.joint.log_prob_and_grad(there)[0]
        is_accept = u.log() < log_prob - state.log_prob
        state = self.after(is_accept, Walk(there, log_prob), state)
        return state, Info(*state, {"is_accept": is_accept})

    def after(self, is_accept, new, old):
        return choose(is_accept, new, old)


# %% [markdown]
# It goes through the same door as all others. The chains start at the known mean, so that
# nothing has to be waited for. Is each parameter's average where it should be? The difference
# is measured in **Monte Carlo standard errors**.

# %%
arguments = {"num_samples": 5000, "num_chains": 32, "init": mean, "progress": False}
walk = sample(posterior, RandomWalk(width=0.02), **arguments, seed=1)


def off_by(chain):
    """Of each parameter: how many standard errors its average is off."""
    return (chain.draws.mean((0, 1)) - mean) / mcse(chain.draws)


# %% tags=["nbval-ignore-output"]
pd.Series(off_by(walk), posterior.flat.names).abs().describe().round(2)

# %%
# Of 31 parameters, the largest is beyond this once in 10,000 times.
beyond = norm.isf(1e-4 / 2 / posterior.dim)
assert off_by(walk).abs().max() < beyond
print("verdict: all averages are where they should be, up to the error that chance leaves")

# %% [markdown]
# ## A mistake that is easily made
# After a refusal the state keeps the log density of the *old* place. Forget that, and keep the
# one of the place that was refused:


# %%
class Forgetful(RandomWalk):
    def after(self, is_accept, new, old):
        return super().after(is_accept, new, old)._replace(log_prob=new.log_prob)


# %% tags=["nbval-ignore-output"]
forgetful = sample(posterior, Forgetful(width=0.02), **arguments, seed=1)
print(f"largest difference of an average: {off_by(forgetful).abs().max():.1f} standard errors")

# %% [markdown]
# An average may well not show it: a wrong sampler can have the right mean. What sees it is
# **simulation-based calibration** ([notebook 7](07_trust.ipynb)): make up truths from the
# prior, data from each truth, draws from each posterior, and look at which rank the truth has
# among its draws. For a right sampler all ranks are equally probable. It needs no known answer,
# so it works for every network. Guess: will both kernels pass?

# %%
points = Data(x[:20, :2], data.y[:20])
small = Posterior(nn.Linear(2, 1), points, NormalPrior(1.0), Gaussian(scale=sigma))
first = {"first weight": lambda theta: theta[..., 0]}
kernels = {"random walk": RandomWalk(width=0.1), "forgetful": Forgetful(width=0.1)}
runs = {
    name: simulation_based_calibration(small, kernel, first, seed=1, progress=False)
    for name, kernel in kernels.items()
}

# %% tags=["nbval-ignore-output"]
plots.calibrations(
    runs, "log likelihood", title="The forgetful walk's truths rank where they should not"
)

# %%
assert runs["random walk"].is_calibrated and not runs["forgetful"].is_calibrated
print("verdict: the random walk shows no sign of a fault, the forgetful one is not calibrated")

# %% [markdown]
# ## A kernel with a gradient
# The random walk doesn't know which way is up. The Metropolis-adjusted Langevin algorithm
# ([Roberts and Tweedie 1996](https://doi.org/10.2307/3318418)) moves uphill a little, and then
# at random. The way back is no longer as probable as the way there, and the rule of acceptance
# makes up for that. The state holds the gradient too, so that each step asks for one new one.


# %%
class Slope(NamedTuple):
    theta: torch.Tensor  # (chains, parameters)
    log_prob: torch.Tensor  # (chains,)
    grad: torch.Tensor  # (chains, parameters)


class Langevin(NamedTuple):
    size: float
    lanes_per_chain = 1

    def init(self, density, theta, num_warmup):
        return Slope(theta, *density.joint.log_prob_and_grad(theta))

    def step(self, density, generator, state):
        push = torch.empty_like(state.theta).normal_(generator=generator)
        u = torch.empty_like(state.log_prob).uniform_(generator=generator)
        there = state.theta + self.size**2 / 2 * state.grad + self.size * push
        new = Slope(there, *density.joint.log_prob_and_grad(there))
        back = (state.theta - there - self.size**2 / 2 * new.grad) / self.size
        of_paths = (push.square() - back.square()).sum(dim=1) / 2
        is_accept = u.log() < new.log_prob - state.log_prob + of_paths
        state = choose(is_accept, new, state)
        return state, Info(state.theta, state.log_prob, {"is_accept": is_accept})


# %%
found = simulation_based_calibration(small, Langevin(size=0.2), first, seed=2, progress=False)
assert found.is_calibrated
print("verdict: no sign of a fault")

# %% [markdown]
# What is the gradient worth? Three kernels on the 31 parameters: the two above, and the
# library's HMC with four leapfrog steps. Gradients are what costs, so count effective draws of
# the parameter that has the fewest, per thousand gradients. Guess the factors between them.

# %%
chains = {
    "random walk": (walk, 1),
    "Langevin": (sample(posterior, Langevin(size=0.04), **arguments, seed=2), 1),
    "HMC, 4 steps": (sample(posterior, HMC(0.03, 4), **arguments, seed=3), 4),
}
per_gradient = pd.Series(
    {
        name: 1000 * ess(chain.draws).min().item() / (num * chain.draws[..., 0].numel())
        for name, (chain, num) in chains.items()
    },
    name="effective draws per 1,000 gradients",
)

# %% tags=["nbval-ignore-output"]
per_gradient.round(1).to_frame()

# %%
walked, drifted, rolled = per_gradient
assert drifted > 5 * walked and rolled > 2 * drifted
print("verdict: the gradient is worth a factor of 5 at least, several steps in a row 2 more")

# %% [markdown]
# The gap grows with the number of parameters D: to get independent draws the random walk needs
# a number of steps in proportion to D, Langevin to `D^(1/3)`, HMC to `D^(1/4)` ([Beskos and
# others 2013](https://doi.org/10.3150/12-BEJ414)).
#
# ## A likelihood of your own
# A likelihood may be a function: outputs of the network in, a distribution of
# `torch.distributions` out. Here are 30 points along a line, of which three were written down
# with the wrong sign. Normal noise takes them at their word. Student's t distribution has
# heavy tails: it lets a point be far off for some other reason. Dashed is the true line.

# %%
across = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]
y = across[:, 0] + 0.2 * noise(30, seed=3)
y[-3:] *= -1
likelihoods = {
    "normal noise": Gaussian(scale=0.2),
    "Student's t": lambda outputs: StudentT(2.0, outputs[..., 0], 0.2),
}
settings = {"num_samples": 1000, "num_chains": 8, "warmup": 300, "seed": 1, "progress": False}
lines = {}
for name, likelihood in likelihoods.items():
    fit = Posterior(nn.Linear(1, 1), Data(across, y), NormalPrior(1.0), likelihood)
    lines[name] = fit.predict(sample(fit, HMC(0.05, 8), **settings).draws, across)

# %% tags=["nbval-ignore-output"]
levels = [0.05, 0.5, 0.95]
bands = {name: predictive_quantiles(p, levels) for name, p in lines.items()}
title = "Three wrong points turn the line, unless the noise may have heavy tails"
plots.predictive_bands(bands, across, Data(across, y), across[:, 0], title)

# %%
off = {name: (p.mean((0, 1)) - across[:, 0]).abs().max().item() for name, p in lines.items()}
assert off["normal noise"] > 3 * off["Student's t"]
print("verdict: with Student's t the line is at least three times nearer to the truth")

# %% [markdown]
# ## A prior of your own
# A prior has one method, which gives a distribution of the whole vector `theta`. Take 30 inputs
# that are the last 30 hours of something, and weights that say how each hour counts. Suppose
# you believe that neighbouring hours count nearly the same. Then weights are not independent,
# and a normal distribution with correlations says so: `exp(-(i - j)^2 / (2 length^2))` between
# hours i and j. With 20 points for 31 parameters, what is believed matters.


# %%
class SmoothWeights(NamedTuple):
    length: float  # hours

    def distribution(self, flat):
        hours = torch.arange(flat.dim - 1).to(flat.ravel())
        apart = (hours[:, None] - hours) / self.length
        covariance = torch.eye(flat.dim).to(hours)  # the bias is independent
        covariance[:-1, :-1] = (-apart.square() / 2).exp() + 1e-4 * covariance[:-1, :-1]
        return MultivariateNormal(torch.zeros_like(flat.ravel()), covariance)


hours = torch.arange(30, dtype=torch.float64)
truth = 1.5 * (-((hours - 10) / 5).square() / 2).exp()
x = noise(20, 30, seed=4)
few = Data(x, x @ truth + 0.2 * noise(20, seed=5))
weights = {}
for name, prior in {"independent": NormalPrior(1.0), "smooth": SmoothWeights(4.0)}.items():
    hourly = Posterior(nn.Linear(30, 1), few, prior, Gaussian(scale=0.2))
    weights[name] = sample(hourly, HMC(), **settings).draws[..., :-1]
assert max(rhat(draws).max().item() for draws in weights.values()) < 1.03
print("verdict: the chains of both posteriors agree about every weight")

# %% tags=["nbval-ignore-output"]
bands = {name: predictive_quantiles(draws, levels) for name, draws in weights.items()}
title = "Twenty points find thirty weights, if these are believed to be smooth"
plots.predictive_bands(bands, hours, Data(hours[:, None], truth), title=title)

# %%
missed = {
    name: (draws.mean((0, 1)) - truth).square().mean().sqrt().item()
    for name, draws in weights.items()
}
assert missed["smooth"] < missed["independent"] / 2
print("verdict: with the smooth prior, weights are less than half as far from the truth")

# %% [markdown]
# Across is the hour, up its weight; the points are the weights that made the data. Twenty
# points can't tell thirty weights apart, so the band of independent ones is wide; the smooth
# prior says what the points leave open.
#
# ## What is refused
# A likelihood is called with the outputs of many parameter vectors at once, `(..., points,
# outputs)`. One that is right for a single vector only would give a wrong density for the
# others, without an error. So a posterior tries both when it is made, and compares. It also
# compares the gradients of likelihood and prior with finite differences.


# %%
def flat_only(outputs):
    return StudentT(2.0, outputs.flatten(), 0.2)


try:
    Posterior(nn.Linear(1, 1), Data(across, y), NormalPrior(1.0), flat_only)
    raise AssertionError("a likelihood for one vector alone was taken")
except ValueError as error:
    print(error)

# %% [markdown]
# ## What to remember
# - A kernel is `lanes_per_chain`, `init` and `step`. What the next step needs is in the state,
#   and chance comes from the generator. Then runs are shared out, stored, and go on after a
#   crash, to the bit ([notebook 12](12_long_runs.ipynb)).
# - Check it where the answer is known, and by calibration where it isn't. Plant a mistake, and
#   see that the check finds it.
# - Compare kernels by effective draws per gradient, or per second, of the slowest quantity.
# - A likelihood is a function from outputs to a distribution; a prior is a class with one
#   method. Both are tried when a posterior is made.
#
# **Next:** [15. The price of approximation](15_price_of_approximation.ipynb)
