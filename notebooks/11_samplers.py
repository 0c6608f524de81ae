# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11. Samplers
#
# In [notebook 10](10_one_vector_many_packages.ipynb) one flat vector went to many packages. The
# samplers that the field uses most are in this one as well, behind one door: `sample` takes
# any of them. Which should you take? They differ in how they move, in what they ask you
# to choose, and in whether what they draw is right. Words in bold are in the
# [glossary](glossary.md).
#
# You will see
# - six samplers on one posterior, in one loop,
# - how each of them moves, as a picture,
# - what each gets for a thousand gradients, and for a second,
# - the price of leaving out the accept step, measured,
# - symmetries as moves, and what they change and what not,
# - scales that are inferred with the weights,
# - what each sampler is for, and when it fails.
#
# This is notebook 11 of 16, and takes some 26 s on two cores. Before it comes [10. One
# vector, many packages](10_one_vector_many_packages.ipynb), after it [12. Long
# runs](12_long_runs.ipynb).

# %%
import time

import pandas as pd
import torch
from torch import nn
from torch.distributions import HalfNormal

from bnn_utils import HMC, MAMS, MCLMC, NUTS, SGHMC, Bernoulli, ByInput, ChEES, Data
from bnn_utils import HierarchicalPrior, NormalPrior, Posterior, ReplicaExchange, Symmetric
from bnn_utils import boxes, plots, reference, sample
from bnn_utils.diagnostics import convergence, mcse, rhat
from bnn_utils.gradients import LogDensity

torch.set_num_threads(1)
data = boxes(n=80, seed=1234)
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
model = net, data, NormalPrior(precision=0.09), Bernoulli()
posterior, known = Posterior(*model), reference()
grid, truth = known.problem().inputs, known.mean[:625]  # first come predictions on the grid

# %% [markdown]
# ## Six kernels, one loop
# All six know the gradient. **Hamiltonian Monte Carlo** (HMC) rolls along it for a fixed time,
# and then a coin decides whether the end is kept. The next three change how long it rolls.
# **NUTS** rolls until the path turns back. **ChEES** learns one length for all chains, at which
# they get furthest. **MAMS** goes with speed 1 wherever it is: the gradient changes its
# direction only. **MCLMC** moves like that too, but never stops and never asks whether it
# should have gone, so that its draws are a little wrong. **Replica exchange** runs HMC at
# twelve temperatures at once.
#
# Nobody gets a step size, a length or a mass: each finds these in its warm-up. (HMC inside
# replica exchange does need to be told how many steps to make.)

# %%
KERNELS = {
    "HMC": HMC(),
    "NUTS": NUTS(),
    "ChEES": ChEES(),
    "MAMS": MAMS(),
    "MCLMC": MCLMC(),
    "replica exchange": ReplicaExchange(HMC(step_size=0.05, num_steps=12), 12),
}
EXACT = [name for name in KERNELS if name != "MCLMC"]
DRAWN = {"num_samples": 500, "num_chains": 16, "warmup": 500, "seed": 1, "progress": False}

# %% [markdown]
# 16 chains of 500 draws each; of MCLMC, whose transition is one small step, every 20th.

# %%
chains, seconds = {}, {}
for name in KERNELS:
    begin, thin = time.perf_counter(), 20 if name == "MCLMC" else 1
    chains[name] = sample(posterior, KERNELS[name], thin=thin, **DRAWN)
    seconds[name] = time.perf_counter() - begin

for name, chain in chains.items():
    print(f"{name:16}", type(chain.kernel).__name__, tuple(chain.draws.shape))

# %% [markdown]
# ## How they move
# A posterior that takes notes: whenever a kernel asks for the density or its gradient, it
# writes down where. (As in notebook 10, we put a function of our own in place of the
# likelihood.) Of replica exchange's twelve lanes we write down the coldest.


# %%
class Watched(Posterior):
    """A posterior that notes where it was asked, by the last vector of each batch."""

    places = None

    def density(self, num_lanes, compile=False):
        density = super().density(num_lanes, compile)
        of = density.likelihood
        if self.places is not None:
            ask = self.noting(of.log_prob_and_grad), self.noting(of.grad)
            density.likelihood = LogDensity(*ask)
        return density

    def noting(self, function):
        def call(theta):
            self.places.append(theta[-1].clone())
            return function(theta)

        return call


# %% [markdown]
# All start at the same draw, with what their warm-up has found, and go on until they have asked
# some 150 times. We look at two of the 20 weights, those that lead into the output. Grey: where
# the posterior is. The line leads from one place where the kernel asked for a gradient to the
# next, and the orange dots are draws. Guess: whose line is smooth? Who makes the most draws?

# %%
PLANE = [17, 18]
start = chains["replica exchange"].draws[0, -1]


def moves(name, gradients=150):
    """Where a kernel asks, and where it draws, for so many gradients at least."""
    watched = Watched(*model)
    watched.places = []
    options = {"num_samples": 1, "progress": False, "compile": False}
    chain = sample(watched, chains[name].kernel, init=start, seed=3, **options)
    while len(watched.places) < gradients:
        chain = chain.extend(1, progress=False)
    places = torch.stack([start, *watched.places])
    return places[:, PLANE], torch.cat([start[None], chain.draws[0]])[:, PLANE]


# %%
found = {name: moves(name) for name in KERNELS}
cloud = chains["replica exchange"].draws.flatten(0, 1)[:, PLANE]
cloud = cloud[(cloud.sign() == start[PLANE].sign()).all(1)]  # where we are, of four copies
names = [posterior.names[k] for k in PLANE]
plots.paths(found, cloud, names, title="Long curves, or many small steps")

# %%
draws_made = {name: len(draws) for name, (_, draws) in found.items()}
assert max(draws_made, key=draws_made.get) == "MCLMC"
assert all(len(places) > 150 for places, _ in found.values())
print("verdict: MCLMC makes a draw of every two gradients; the others roll first")

# %% [markdown]
# Many draws are not many *independent* draws: MCLMC's lie side by side. So count what they are
# worth.
#
# ## What they get
# The columns: R-hat of the predictions at the 625 places of the grid, the largest, and their
# bulk ESS, the smallest; the ESS per second, and the ESS per 1,000 gradients, warm-up included
# in both; and the *distance*, the mean absolute difference from the predictions of
# `reference()`.
#
# All chains start at draws from the prior. Who crosses between AND and OR, the two kinds of
# network of [notebook 6](06_convergence.ipynb), and who keeps to the kind it came to first?


# %%
def kind_changes(chain):
    """In how many chains both kinds of network came up."""
    weight, bias = chain.draws[..., 17:19], chain.draws[..., 19:]
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).to(weight)
    corners = (weight @ signs.mT + bias > 0).sum(-1)
    return ((corners == 1).any(1) & (corners == 3).any(1)).sum().item()


def row(name):
    chain = chains[name]
    p = posterior.predict(chain.draws, grid)
    mixing = convergence(p, grid)
    ess = mixing.ess_bulk.min().item()
    per_transition = 2 if name == "MCLMC" else 12 * 12 if name == "replica exchange" else None
    steps = chain.stats["n_steps"].double().mean().item()
    cost = per_transition or steps * (2 if name == "MAMS" else 1)
    gradients = cost * 16 * (500 + 500 * (20 if name == "MCLMC" else 1))
    return {
        "R-hat": mixing.r_hat.max().item(), "ESS": ess, "ESS/s": ess / seconds[name],
        "ESS per 1,000": 1000 * ess / gradients, "chains with both": kind_changes(chain),
        "distance": (p.mean((0, 1)) - truth).abs().mean().item(),
    }  # fmt: skip


# %% tags=["nbval-ignore-output"]
table = pd.DataFrame.from_dict({name: row(name) for name in KERNELS}, orient="index")
table["draws are"] = ["exact" if name in EXACT else "biased" for name in KERNELS]
table.round({"R-hat": 2, "ESS": 0, "ESS/s": 1, "ESS per 1,000": 3, "distance": 4})

# %%
crossing = table["chains with both"]
assert crossing["replica exchange"] >= 12
assert crossing[["HMC", "NUTS", "ChEES", "MAMS"]].max() <= 2
assert table.loc[EXACT, "distance"].max() < 0.01
print("verdict: of the exact ones only replica exchange crosses, and all predict much the same")


# %% [markdown]
# (A gradient of the coldest lane costs replica exchange eleven others, so that its ESS per
# gradient counts all twelve.) What does crossing change? Little, here, because the chains start
# at draws from the prior, and half of them come to each kind. From one start, those that do not
# cross would not have found the other kind: [notebook 7](07_trust.ipynb) shows that of HMC.
#
# ## The price of not asking
# MCLMC takes each step without asking whether it should. So do **SGHMC** and SGLD, and these
# don't even look at all points: a step sees a *minibatch*, here 20 of the 80. That is what
# makes a million points possible, and it makes the draws wrong twice, by the step and by the
# noise.
#
# How wrong? Start 128 chains at draws that are right, and see where they drift. We watch the
# mean log density: it is too low when draws are spread too widely.

# %%
right = chains["replica exchange"]
starts = right.draws[:, ::60].flatten(0, 1)[:128]
level = right.stats["lp"].mean(), mcse(right.stats["lp"][..., None])[0]


def drift(kernel):
    """How far the mean log density is from where it should be, with its standard error."""
    chain = sample(posterior, kernel, 300, init=starts, seed=2, progress=False)
    draws = chain.draws[:, 150::10]
    lp = posterior.log_prob(draws.flatten(0, 1)).view(draws.shape[:2])
    error = torch.hypot(lp.mean(1).std() / len(lp) ** 0.5, level[1])
    return {"drift": (lp.mean() - level[0]).item(), "error": error.item()}


STEPS = [4e-3, 1e-3, 2.5e-4]
drifts = pd.DataFrame([drift(SGHMC(step, batch_size=20)) for step in STEPS], index=STEPS)

# %% tags=["nbval-ignore-output"]
drifts.rename_axis("step size").round(2)

# %%
worst, least = drifts["drift"].iloc[[0, -1]].abs()
assert worst > 5 * drifts["error"].iloc[0] and least < worst / 2
print("verdict: SGHMC's draws are biased, and smaller steps bias them less")

# %% [markdown]
# So with a sampler that never rejects, halve the step size and draw again: what changes is a
# part of the bias. `chain.warnings` says so, and of MCLMC it says how large its energy errors
# were, which bounds the bias on a Gaussian.
#
# ## Symmetries as moves
# Exchange two hidden units, or turn all signs of a tanh unit round: another vector, the same
# function. There are 384 copies of each network here ([notebook 4](04_diagnostics.ipynb)).
# `Symmetric(kernel)` jumps to one of them, drawn at random, before every tenth transition. The
# density is the same there, so that the jump is never rejected. Guess: what will R-hat say now,
# of the weights, and of the predictions?

# %%
still = chains["HMC"]
jumping = sample(
    posterior,
    Symmetric(HMC()),
    num_samples=500,
    num_chains=16,
    warmup=500,
    seed=1,
    progress=False,
)
both = {"HMC": still, "Symmetric(HMC)": jumping}
of_weights = {name: rhat(chain.draws) for name, chain in both.items()}
plots.rhat_weights(
    of_weights, posterior.names, title="With symmetries as moves all weights mix, but for one"
)

# %%
*others, last = of_weights["Symmetric(HMC)"].tolist()
assert max(others) < 1.1 < last, "the last is the output's bias"
assert (of_weights["HMC"] > 1.2).sum() >= 3
assert rhat(posterior.predict(jumping.draws, grid)).max() < 1.3
print("verdict: all weights mix but the output's bias, which no symmetry moves")

# %% [markdown]
# The one that is left tells AND from OR, and that is a barrier, no symmetry: so the moves part
# the two for us. Nothing was won for predictions, as a jump to a copy is no step to another
# function. And something is lost: all units of a layer have the same distribution now, and none
# has a name.
#
# ## Scales that are inferred
# How wide should the prior be? In notebook 2 we took 0.09 for the precision, because the
# tutorial did. A scale can be inferred like a weight. `HierarchicalPrior` gives one to a layer,
# or, by `ByInput`, to each of its inputs: an input that says nothing is turned down then
# (*automatic relevance determination*, Neal 1996). The log scales are further elements of the
# vector, and every sampler takes them as it takes the rest.
#
# Five inputs, of which the label knows two:

# %%
generator = torch.Generator().manual_seed(5)
x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
noise = torch.randn(200, generator=generator, dtype=torch.float64)
five = Data(x, (x[:, 0] + x[:, 1] ** 2 - 1 + 0.3 * noise > 0).double())
wide = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
prior = HierarchicalPrior({"0.weight": ByInput(HalfNormal(2.0)), "*": 1.0})
relevance = Posterior(wide, five, prior, Bernoulli())
print(relevance.names[-5:])

# %% tags=["nbval-ignore-output"]
chain = sample(relevance, NUTS(), 500, num_chains=8, warmup=500, seed=1, progress=False)
scales = chain.draws[..., -5:].exp().flatten(0, 1)
inputs = [f"input {k}" for k in range(5)]
quantiles = pd.DataFrame(scales.quantile(torch.tensor([0.05, 0.5, 0.95]).double(), dim=0).T)
quantiles.set_axis(inputs).set_axis(["5 %", "median", "95 %"], axis=1).round(2)

# %%
medians = scales.median(0).values
assert medians[:2].min() > 1.5 * medians[2:].max()
weights = relevance.flat.unravel(relevance.parameters(chain.draws[:, -1]))["0.weight"]
assert weights.shape == (8, 6, 5)
print("verdict: the two inputs that count have the two largest scales")

# %% [markdown]
# `posterior.parameters` makes the network's weights of such a vector, as in the last lines.
#
# ## Which one
# `sample(posterior)`, with nothing else, takes one of them: NUTS where there is no hidden
# layer, ChEES for up to 256 parameters, HMC beyond, because these were best where we measured
# (`benchmarks/samplers.md`). It says which. Otherwise:
#
# | take | when | it fails when |
# |---|---|---|
# | `HMC(step_size, num_steps)` | you want to see what happens | lengths come full circle |
# | `HMC()` | nothing is known, and gradients are cheap | widths differ by a thousand |
# | `NUTS()` | lengths differ from place to place | lanes wait for the longest path |
# | `ChEES()` | many chains, large networks, no native code | one length does not fit all |
# | `MAMS()` | hundreds of parameters and more | few parameters, heavy tails |
# | `MCLMC()` | a first look, or a bias that you can afford | you need the tails |
# | `SGHMC(step_size, batch_size)` | data too large for a gradient of all | you need it exact |
# | `ReplicaExchange(HMC(...), K)` | modes, or the evidence | the prior is too far off |
#
# None crosses what it has never seen. Many chains from far apart, and R-hat of predictions, are
# the answer to that, whatever the sampler.

# %% [markdown]
# ## Exercises
# ### Exercise: a start in one mode
# Start all 16 chains of HMC at one draw, `start`. What does R-hat say, and how far are the
# predictions?
#
# <details><summary>Solution</summary>
#
# ```python
# stuck = sample(posterior, HMC(), 500, 16, warmup=500, init=start, seed=4, progress=False)
# p = posterior.predict(stuck.draws, grid)
# distance = (p.mean((0, 1)) - truth).abs().mean()
# print(kind_changes(stuck), "of 16 chains saw both kinds")
# assert distance > table.loc["HMC", "distance"]
# ```
#
# The chains agree with each other and are all of one kind: R-hat can't tell what nobody has
# seen. Starts that are far apart can.
#
# </details>
#
# ### Exercise: the scale of a layer
# Give the second layer of the last network a scale too, `"2.weight": HalfNormal(2.0)`. How many
# elements does the vector have now, and what is the new one called?
#
# <details><summary>Solution</summary>
#
# ```python
# scaled = {"0.weight": ByInput(HalfNormal(2.0)), "2.weight": HalfNormal(2.0), "*": 1.0}
# other = Posterior(wide, five, HierarchicalPrior(scaled), Bernoulli())
# print(other.dim, other.names[-1])
# assert other.names[-1] == "log_scale(2.weight)" and other.dim == relevance.dim + 1
# ```
#
# One more: a scale for all weights between the two layers.
#
# </details>
#
# ## What to remember
# - One flat vector, any sampler: `sample(posterior, kernel)`, and each finds its own settings.
# - Count ESS of predictions, per second or per gradient, not draws.
# - Exact samplers agree. One that never rejects is biased; measure by how much.
# - Symmetries as moves mix weights, not functions.
# - Scales can be inferred like weights: they are elements of the same vector.
#
# **Next:** [12. Long runs](12_long_runs.ipynb)
