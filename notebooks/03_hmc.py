# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Hamiltonian Monte Carlo
#
# The posterior is a landscape over 20 dimensions. We want draws from it: parameter vectors that
# turn up as often as they are probable. **Hamiltonian Monte Carlo** (HMC) gets them by rolling
# a ball. Flip the landscape upside down, put the ball at the current `theta`, give it a random
# push, let it roll for a while, and look where it is.
#
# You will see
# - the leapfrog integrator that does the rolling, in a dozen lines, and how much energy it
#   loses,
# - 5,000 draws with the original tutorial's settings: step size 0.05, 4 leapfrog steps,
# - their summary tables, beside the ones that the original published,
# - and where the time goes.
#
# Words in bold are in the [glossary](glossary.md).
#
# This is notebook 3 of 16, and takes some 7 s on two cores. Before it comes [2. One network,
# one vector](02_model.ipynb), after it [4. Should we believe the
# chain?](04_diagnostics.ipynb).

# %%
import pandas as pd
import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, Hamiltorch, NormalPrior, Posterior, boxes
from bnn_utils import default_device, plots, published_summary, sample
from bnn_utils.kernels.hamiltorch import INSTALL, is_installed
from bnn_utils.kernels.hmc import Position, leapfrog

torch.set_num_threads(1)  # rows of 20 numbers are not worth sharing between cores
device = default_device()
data = boxes(n=80, seed=1234).to(device)
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
posterior = Posterior(net, data, prior=NormalPrior(precision=0.09), likelihood=Bernoulli())

# %% [markdown]
# ## Rolling
# The ball has a position `theta` and a **momentum** `p`. Its **energy** `H` is its height,
# `-log_prob(theta)`, plus half its squared speed, `|p|^2 / 2`. Nature keeps `H` constant. The
# **leapfrog** method imitates nature in small steps: half a push by the gradient, a move, half
# a push.


# %%
def roll(theta, p, step_size, num_steps):
    """Positions and momenta along one leapfrog trajectory (Neal 2011, section 5.2.3)."""
    path = [(theta, p)]
    _, gradient = posterior.log_prob_and_grad(theta)
    for _ in range(num_steps):
        p = p + step_size / 2 * gradient  # half a push
        theta = theta + step_size * p  # a move
        _, gradient = posterior.log_prob_and_grad(theta)
        p = p + step_size / 2 * gradient  # half a push
        path.append((theta, p))
    thetas, momenta = zip(*path, strict=True)
    return torch.stack(thetas), torch.stack(momenta)


def energy(theta, p):
    return -posterior.log_prob(theta) + p.square().sum(-1) / 2


# %% [markdown]
# One path says little: some are easy to follow, others lead through narrow bends. So we take
# 128 starts in a sensible region (300 draws of as many short chains take us there), a random
# push for each, and four ways to go the same distance, from large steps to small ones. `roll`
# takes all 128 at once, as rows. To have something to see, the paths are much longer than those
# that the chain below will take. The library's own `leapfrog`, which the sampler uses, must
# take the same path; the cell checks it over the first steps.

# %%
chains = sample(posterior, HMC(0.05, 4), 300, num_chains=128, seed=1, progress=False)
starts = chains.draws[:, -1]
generator = torch.Generator(device).manual_seed(2)
pushes = torch.randn(starts.shape, generator=generator, dtype=starts.dtype, device=device)

step_sizes = (0.05, 0.025, 0.0125, 0.00625)
runs = {step: roll(starts, pushes, step, num_steps=round(2.4 / step)) for step in step_sizes}

lanes = Position(starts, *posterior.log_prob_and_grad(starts))
end, _ = leapfrog(lanes, pushes, posterior.log_prob_and_grad, step_size=0.05, num_steps=4)
torch.testing.assert_close(end.theta, runs[0.05][0][4])

# %% [markdown]
# How wrong does the energy get on a path? Take the largest error on the way. The one path that
# we look at is the middle one of the 128 by this error, with the largest steps.

# %%
errors = {
    step: torch.stack([energy(*at) for at in zip(*run, strict=True)]) - energy(starts, pushes)
    for step, run in runs.items()
}
largest = torch.stack([error.abs().amax(0) for error in errors.values()])  # (step sizes, 128)
middle = largest[0].argsort()[64]

# %% [markdown]
# Twenty dimensions don't fit on a page. So we cut the landscape along the two directions in
# which this path moves most. Left, the path on this cut; right, its energy error. What happens
# to the error when the steps get half as long?

# %%
path = runs[0.05][0][:, middle]
_, sizes, directions = torch.linalg.svd(path - path.mean(0), full_matrices=False)
flat_path = (path - path.mean(0)) @ directions[:2].T
share = (sizes[:2].square().sum() / sizes.square().sum()).item()

u, v = (torch.linspace(w.min() - 1.5, w.max() + 1.5, 60).to(path) for w in flat_path.T)
plane = path.mean(0) + u[None, :, None] * directions[0] + v[:, None, None] * directions[1]
heights = posterior.log_prob(plane.reshape(-1, 20)).reshape(60, 60)

labels = {f"step size {step}": error[:, middle].cpu() for step, error in errors.items()}
title = "The gradient bends the path; small steps keep the energy"
plots.trajectory(flat_path.cpu(), (u.cpu(), v.cpu(), heights.cpu()), labels, title)

# %%
typical = largest.median(dim=1).values  # over paths: the largest would speak of one alone
drops = typical[:-1] / typical[1:]
assert share > 0.8, "the picture shows most of the movement: over 60 seeds 0.983 +- 0.010"
# Over 60 seeds the last one is 3.94 +- 0.19, and the lowest of the other two 3.9.
assert (drops > 3).all() and drops[-1] < 5
print("verdict: of a typical path, half the step size takes two thirds of the energy error or")
print("more; once the steps are small, about three quarters")

# %% [markdown]
# ## Keep or go back
# One half of the step size leaves about a quarter of the error: the error goes with the square
# of the step size, but only when steps are small. Those of 0.05 are still too large for that in
# the narrow bends. [Notebook 7](07_trust.ipynb) makes this law a test.
#
# Because of that error the ball drifts off a little. HMC corrects it exactly. Call the end of
# the path the **proposal**, and its energy minus that of the start the error. The proposal is
# kept with probability `exp(-error)`, at most 1; otherwise the **chain** stays where it was.
# One **transition** is a fresh push, a few leapfrog steps, and this decision. That is the whole
# algorithm.
#
# ## 5,000 draws
# The settings are those of the original tutorial. A **kernel** is a description of what one
# transition does; `sample` makes as many as we ask for. Where
# [hamiltorch](https://github.com/AdamCobb/hamiltorch) is installed, the kernel is `Hamiltorch`,
# which leaves each transition to that package; otherwise it is `HMC`, on the same random
# numbers. The line below the bar says which one ran, and where.

# %% tags=["nbval-ignore-output"]
by = Hamiltorch if is_installed() else HMC
chain = sample(posterior, by(step_size=0.05, num_steps=4), num_samples=5000, seed=1)

other = "the other one is HMC" if is_installed() else f"hamiltorch: {INSTALL}"
print(f"drawn by {chain.kernel} on {chain.device}; {other}")

# %% [markdown]
# The chain describes itself. Look at the **acceptance rate**: how probable it was, on average,
# that a proposal was kept. A **divergence** is a path whose energy error explodes; a few on the
# way from the start do no harm, later ones would. Under internals stand the statistics kept for
# each draw: `lp` is the log joint density, `n_steps` the number of leapfrog steps, `energy` is
# `H`. Is a high acceptance rate good news? It shows that the steps are small enough, not that
# the chain gets anywhere.

# %% tags=["nbval-ignore-output"]
chain

# %%
print("the draws as a matrix:", tuple(chain.draws[0].shape))
assert torch.isfinite(chain.draws).all() and chain.stats["is_accept"].any()

# %% [markdown]
# ## The summary
# One row for each parameter: mean and standard deviation, **Monte Carlo standard error** of the
# mean (`mcse`), **effective sample size** in the bulk and in the tails (how many *independent*
# draws these 5,000 are worth), R-hat (1.00 when different parts of the chain agree), and
# effective draws per second. Look at `ess_bulk`: how many of 5,000 would you have hoped for?

# %% tags=["nbval-ignore-output"]
summary = chain.summary()
summary.round(2)

# %% [markdown]
# The quantiles say where the draws lie: 95 of 100 between the first column and the last. With
# so few effective draws the outer two are the least trustworthy.

# %% tags=["nbval-ignore-output"]
chain.quantiles().round(2)

# %% [markdown]
# ## Beside the original
# The original published the same table. Single rows can't be compared: its parameters are laid
# out in another order, and two hidden units can swap places without changing the network. So we
# sort each column and compare the ranges. Look at the dashed lines: where a trustworthy chain
# would be.

# %%
published = published_summary()
plots.against_published(
    summary,
    published,
    title="Both chains: few effective draws, the worst R-hat far above its limit",
)

# %%
for name, table in (("published", published), ("ours", summary)):
    assert table["ess_bulk"].median() < 50 and table["r_hat"].max() > 1.05, name
print("verdict: by both tables, half of the parameters have fewer than 50 effective draws,")
print("and the worst R-hat exceeds 1.05")
print(f"5,000 draws that all resemble the next 250: an ESS of about {5000 / (2 * 250):.0f}")

# %% [markdown]
# Where our smallest ESS lies below the smallest published one, that need not be a difference
# between the chains. ESS adds up how strongly a draw resembles later ones. The original's
# diagnostics package stops 250 draws ahead by default, so it cannot report much less than the
# number in the last line; ArviZ adds until the resemblance has died out, and here that takes
# longer.
#
# ## Where the time goes
# One gradient of this network is little arithmetic. Most programs spend far longer on going
# about it: every operation on a small array has a price of its own, whatever its size, and
# automatic differentiation adds its bookkeeping. The library therefore
# - writes the gradient out (`bnn_utils.gradients.backprop`) instead of recording the operations
#   for automatic differentiation, with a bias as one more column of the weights;
# - computes the density only at the end of a path, where the decision needs it;
# - moves all chains as rows of one batch, so that they share the price of each operation;
# - runs small networks in native code: a loop over points that holds a variable for every
#   number, written for the network's shape (`bnn_utils.gradients.program`), with whole blocks
#   of transitions inside.
#
# The next figure shows the project's stored benchmark, `benchmarks/results.md`. On its right,
# look where each curve starts to rise: before that, a transition pays for calls, and more
# chains are nearly free; after it, for arithmetic. Native code pays for little else. Guess
# first: how much more do 64 chains cost than one, in torch and in native code?

# %%
results = pd.read_csv("../benchmarks/results.csv")
medians = results.groupby(["workload", "library"])["value"].median()
lanes = results[results["workload"] == "E lanes"]
by_chains = lanes.groupby(["library", "chains"])["value"].median()
in_torch, native = by_chains["bnn_utils, torch"], by_chains["bnn_utils"]
dearer = [cost[64] / cost[1] for cost in (in_torch, native)]
title = "64 chains cost {:.1f} times as much as one in torch, {:.0f} times in native code"
plots.speed(results, title=title.format(*dearer))

# %%
assert in_torch[1] / native[1] > 10
print(f"native code takes one chain {in_torch[1] / native[1]:.0f} times as far in a second")
ratio = medians["A1", "hamiltorch.sample_model"] / medians["A1", "bnn_utils"]
print(f"hamiltorch.sample_model needs {ratio:,.0f} times as long for the tutorial's chain")

# %% [markdown]
# Speed does not make a chain converge. It makes it cheap to run enough chains to find out.

# %% [markdown]
# ## Exercises
# Try each in a new cell before you open its solution; both start from what this notebook has
# computed.
#
# ### Exercise: the way back
# Roll to the ends of the 128 paths with the largest steps. There, turn round: keep the place,
# reverse the momentum, and roll just as many steps. Where do you end? Guess before you run it,
# and remember that the energy was *not* kept exactly.
#
# <details><summary>Solution</summary>
#
# ```python
# path, momenta = runs[0.05]
# back, _ = roll(path[-1], -momenta[-1], step_size=0.05, num_steps=48)
# missed = (back[-1] - starts).abs().amax(1)
# assert missed.median() < 1e-9
# print("back at the start, but for rounding; the largest miss:", f"{missed.max():.0e}")
# ```
#
# Leapfrog keeps the energy only nearly, but its way back is exact. The decision to keep or go
# back needs just that: it is right only because each path could as well have been walked from
# its end. (On some of the paths rounding errors grow so fast that the way back can be seen to
# miss the start.)
#
# </details>
#
# ### Exercise: how large a step?
# Large steps travel further for the same price. Run 500 transitions from each of the first 64
# starts with step sizes 0.025, 0.05, 0.1, 0.2 and 0.4. Where does the acceptance rate fall
# below one half, and where do divergences become frequent?
#
# <details><summary>Solution</summary>
#
# ```python
# rates = {}
# for step in (0.025, 0.05, 0.1, 0.2, 0.4):
#     short = sample(posterior, HMC(step, 4), 500, init=starts[:64], seed=1, progress=False)
#     rates[step] = short.stats["acceptance_rate"].mean()
#     diverging = short.stats["diverging"].double().mean()
#     print(f"step size {step:<5}: acceptance {rates[step]:.2f}, divergent {diverging:.1%}")
# # Of 64 chains: 0.81 +- 0.02 and 0.16 +- 0.02; with the largest steps 0.32 +- 0.03 diverge.
# assert rates[0.05] > 0.5 > rates[0.2] and diverging > 0.1
# ```
#
# Between 0.05 and 0.2 the acceptance rate falls below one half. With the largest steps nearly
# nothing is kept, and many paths explode. Steps twice as long go twice as far, but only if they
# are kept.
#
# </details>

# %% [markdown]
# ## What to remember
# - Leapfrog steps keep the energy nearly constant, and the accept step repairs the rest.
# - 5,000 draws were made in seconds. For half of the parameters they are worth fewer than fifty
#   independent ones.
#
# **Next:** [4. Should we believe the chain?](04_diagnostics.ipynb)
