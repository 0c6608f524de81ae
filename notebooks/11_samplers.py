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
# samplers that the field uses most are in this one as well, behind the same door: `sample`
# takes any of them. Which should you take? They differ in how they move, in what they ask you
# to choose, and in whether what they draw is right. Words in bold are in the
# [glossary](glossary.md).
#
# You will see
# - six samplers on one posterior, in one loop,
# - how each of them moves, as a picture,
# - what each gets for a thousand gradients, and for a second,
# - the price of leaving out the accept step, measured,
# - that symmetries can be moves, and what that changes and what not,
# - scales that are inferred with the weights,
# - what each sampler is for, and when it fails.

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

# %% [markdown]
# ## Six kernels, one loop
# All six know the gradient. **HMC** rolls along it for a fixed time, and then a coin decides
# whether the end is kept. The next three change how long it rolls. **NUTS** rolls until the path
# turns back. **ChEES** learns one length for all chains, the one at which they get furthest.
# **MAMS** goes with speed 1 wherever it is: the gradient changes its direction only. **MCLMC**
# moves like that too, but never stops and never asks whether it should have gone, so that its
# draws are a little wrong. **Replica exchange** runs HMC at twelve temperatures at once.
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


def draw(name):
    """16 chains of 500 draws; of MCLMC, whose transition is one step, every 20th."""
    thin = 20 if name == "MCLMC" else 1
    return sample(
        posterior, KERNELS[name], num_samples=500, num_chains=16, warmup=500, thin=thin, seed=1,
        progress=False,
    )  # fmt: skip


chains, seconds = {}, {}
for name in KERNELS:
    begin = time.perf_counter()
    chains[name] = draw(name)
    seconds[name] = time.perf_counter() - begin

for name, chain in chains.items():
    print(f"{name:16}", type(chain.kernel).__name__, tuple(chain.draws.shape))

# %% [markdown]
# ## How they move
# A posterior that takes notes: whenever a kernel asks for the density or its gradient, it writes
# down where. (As in notebook 10, we put a function of our own in place of the likelihood.) Of
# replica exchange's twelve lanes we write down the coldest.


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
    watched, draws = Watched(*model), [start]
    watched.places = []
    options = {"num_samples": 1, "progress": False, "compile": False}
    chain = sample(watched, chains[name].kernel, init=start, seed=3, **options)
    while len(watched.places) < gradients:
        chain = chain.extend(1, progress=False)
    places = torch.stack([start, *watched.places])
    return places[:, PLANE], torch.cat([start[None], chain.draws[0]])[:, PLANE]


found = {name: moves(name) for name in KERNELS}
cloud = chains["replica exchange"].draws.flatten(0, 1)[:, PLANE]
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
    p = posterior.predict(chain.draws, known.grid)
    mixing = convergence(p, known.grid)
    ess = mixing.ess_bulk.min().item()
    per_transition = 2 if name == "MCLMC" else 12 * 12 if name == "replica exchange" else None
    steps = chain.stats["n_steps"].double().mean().item()
    cost = per_transition or steps * (2 if name == "MAMS" else 1)
    gradients = cost * 16 * (500 + 500 * (20 if name == "MCLMC" else 1))
    return {
        "R-hat": mixing.r_hat.max().item(), "ESS": ess, "ESS/s": ess / seconds[name],
        "ESS per 1,000": 1000 * ess / gradients, "chains with both": kind_changes(chain),
        "distance": (p.mean((0, 1)) - known.mean).abs().mean().item(),
    }  # fmt: skip


# %% tags=["nbval-ignore-output"]
table = pd.DataFrame.from_dict({name: row(name) for name in KERNELS}, orient="index")
table["draws are"] = ["exact" if name in EXACT else "biased" for name in KERNELS]
table.round({"R-hat": 2, "ESS": 0, "ESS/s": 1, "ESS per 1,000": 3, "distance": 4})

# %%
crossing = table["chains with both"]
assert crossing["replica exchange"] >= 12
assert crossing.drop("replica exchange").max() <= 4
assert table["distance"].max() < 0.02
print("verdict: only replica exchange crosses between the kinds; all predict much the same")

