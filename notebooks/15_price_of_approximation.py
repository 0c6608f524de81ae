# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15. The price of approximation
# Nearly everybody who wants a Bayesian neural network takes something cheaper than a chain: one
# network, some networks, or a normal distribution around one. What is given up for it? As a
# rule nobody knows, because nobody knows the posterior. For small networks it is known: a
# **reference posterior** is one whose predictions were computed at length, by two algorithms
# that agree, and several come with this package. So here we ask each method how far it is from
# the truth, and what it cost to get there.
#
# You will see
# - how to ask any method, from any package, how far it is from a known posterior,
# - six methods beside the truth: between four boxes, and where there are no data at all,
# - what each of them gets wrong: the mean, the spread, or the mode,
# - what a thousand, a million and ten million gradients buy.
#
# Words in bold are in the [glossary](glossary.md).
#
# This is notebook 15 of 16, and takes some 25 s on two cores. Before it comes [14. A kernel,
# a likelihood and a prior of your own](14_your_own_kernel.ipynb), after it [16. Questions
# that only known posteriors can answer](16_questions.ipynb).

# %%
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from bnn_utils import HMC, Bernoulli, ReplicaExchange, find_map, plots, sample
from bnn_utils.predict import predictive_quantiles
from bnn_utils.references import reference, score

torch.set_num_threads(1)  # matrices as small as these gain nothing from a second core

# %% [markdown]
# ## Two posteriors that are known
# The boxes of notebook 1, and a sine whose middle nobody has seen, with noise that is inferred.
# Of each, the reference knows how predictions are distributed at given inputs: means, standard
# deviations, quantiles.

# %%
truth = {name: reference(name) for name in ("boxes", "sine_tanh")}
problems = {name: known.problem() for name, known in truth.items()}
for name, problem in problems.items():
    print(f"{name}: {problem.about}")

# %% [markdown]
# ## Methods
# A method is a function: a **posterior** and a seed in, out come predictions at any inputs, a
# row for each network that it believes in, and how many gradients of the log density it took.
# That is all that the score will see, so that a method from another package is no different.


# %%
class Told(NamedTuple):
    predict: Callable[
        [Tensor], Tensor
    ]  # inputs -> (networks, inputs) or (chains, draws, inputs)
    gradients: float


def told_by(posterior, theta, gradients):
    """By parameter vectors: what their networks predict."""
    return Told(lambda x: posterior.predict(theta, x), gradients)


# %% [markdown]
# One network, the highest point of the density (**maximum a posteriori**), or twenty, a
# **deep ensemble**, each climbed to from its own draw of the prior ([Lakshminarayanan,
# Pritzel and Blundell 2017](https://arxiv.org/abs/1612.01474)). A climb is a thousand steps of
# Adam and some hundreds of L-BFGS.

# %%
CLIMB = 1300  # gradients


def one_network(posterior, seed, num=1):
    theta = find_map(posterior, num, seed=seed, progress=False).theta
    return told_by(posterior, theta, CLIMB * num)


def deep_ensemble(posterior, seed):
    return one_network(posterior, seed, num=20)


# %% [markdown]
# A **Laplace approximation** ([MacKay 1992](https://doi.org/10.1162/neco.1992.4.3.448)): a
# normal distribution around that point. With $J$ the derivatives of the outputs at the data by
# $\theta$, and $\Lambda$ how sharply each point's likelihood bends in its output, its precision
# is
#
# $$J^T \Lambda J + \text{the prior's precision.}$$
#
# The outputs are taken as linear in $\theta$, which is the better way to use it ([Immer,
# Korzepa and Bauer 2021](https://arxiv.org/abs/2008.08400)).


# %%
def slopes(posterior, theta, x):
    """Derivatives of the first output at inputs (M, ...) by theta: (M, D)."""
    return jacobian(lambda at: posterior.outputs(at, x)[:, 0], theta)


def laplace(posterior, seed):
    top, x = find_map(posterior, 1, seed=seed, progress=False).theta[0], posterior.data.x
    of_y = posterior.likelihood.distribution(posterior.outputs(top, x)).variance
    bend = of_y if isinstance(posterior.likelihood, Bernoulli) else 1 / of_y
    J, prior = slopes(posterior, top, x), posterior.prior.precision
    root = torch.linalg.cholesky(J.T @ (bend[:, None] * J) + prior * torch.eye(posterior.dim))
    z = torch.randn(posterior.dim, 1000, generator=torch.Generator().manual_seed(seed))
    moved = torch.linalg.solve_triangular(root.T, z.to(root), upper=True).T  # (1000, D)

    def predict(x):
        off = moved @ slopes(posterior, top, x).T
        return posterior.likelihood.mean(posterior.outputs(top, x) + off[..., None])

    return Told(predict, CLIMB + 1)


# %% [markdown]
# **Variational inference** looks for the independent normals, one for each weight, that
# resemble the posterior most ([Blundell and others 2015](https://arxiv.org/abs/1505.05424)): it
# climbs the mean log density under them plus their entropy, here from the network above.


# %%
def mean_field(posterior, seed, steps=2000, particles=10):
    generator = torch.Generator().manual_seed(seed)
    mean = find_map(posterior, 1, seed=seed, progress=False).theta[0].requires_grad_()
    log_sd = torch.full_like(mean, -2.0).requires_grad_()
    adam = torch.optim.Adam([mean, log_sd], lr=0.02)

    def draw(num):
        z = torch.randn(num, posterior.dim, generator=generator, dtype=torch.float64)
        return mean + log_sd.exp() * z

    for _ in range(steps):
        adam.zero_grad()
        (-posterior.log_prob(draw(particles)).mean() - log_sd.sum()).backward()
        adam.step()
    return told_by(posterior, draw(1000).detach(), CLIMB + steps * particles)


# %% [markdown]
# And chains, which are only as wrong as they are short: eight of HMC, and eight of
# **replica exchange** ([notebook 6](06_convergence.ipynb)), each from draws of the prior. Of
# the draws 125 of each chain are kept, as many as the score needs.


# %%
def chains(kernel, gradients_each, num=1000, warmup=300):
    def told(posterior, seed):
        chain = sample(
            posterior, kernel, num, num_chains=8, warmup=warmup, seed=seed, progress=False
        )
        gradients = 8 * (num + warmup) * gradients_each
        return told_by(posterior, chain.draws[:, :: num // 125], gradients)

    return told


METHODS = {
    "MAP": one_network, "ensemble of 20": deep_ensemble, "Laplace": laplace,
    "mean-field VI": mean_field, "HMC": chains(HMC(num_steps=64), 64),
    "replica exchange": chains(ReplicaExchange(HMC(0.05, 8), num_temperatures=12), 8 * 12),
}  # fmt: skip


# %% tags=["nbval-ignore-output"]
def run(seed):
    """For each problem and method, what it says."""
    return {
        name: {method: told(problem.posterior, seed) for method, told in METHODS.items()}
        for name, problem in problems.items()
    }


told = run(seed=1)
pd.DataFrame({name: {m: t.gradients for m, t in by.items()} for name, by in told.items()})

# %% [markdown]
# ## Two modes, and a cross without labels
# The boxes again: the average probability of class 1 by each method, beside the truth. Before
# you look, guess: which maps will you not be able to tell from the truth? Does a deep ensemble
# come closer than a single network?

# %% tags=["nbval-ignore-output"]
boxes, grid = problems["boxes"], problems["boxes"].inputs
maps = {"the truth": truth["boxes"].mean[: len(grid)]}
for method, by in told["boxes"].items():
    maps[method] = by.predict(grid).reshape(-1, len(grid)).mean(0)
plots.decision_maps(
    maps, grid, boxes.posterior.data,
    title="One network is sure where it should not be; chains can't be told from the truth",
)  # fmt: skip

# %% [markdown]
# `score` takes the function, and compares more than means: the whole distribution of each
# prediction. The **Wasserstein distance** is how far on average one distribution has to be
# carried to become the other. With quantiles $f(u)$ of the method and $q(u)$ of the posterior
# it is
#
# $$W = \frac{1}{\sigma} \int_0^1 |f(u) - q(u)| \, du,$$
#
# here in units of the posterior standard deviation $\sigma$, and averaged over all quantities.


# %%
def judged(told):
    """A row of distances for each method, and each problem."""
    rows = []
    for name, by in told.items():
        for method, one in by.items():
            found = score(one.predict, truth[name])
            row = {"mean off": found.mean.value, "wasserstein": found.wasserstein.value}
            row |= {"90 % cover": found.coverage.value}
            if name == "boxes":
                lost = found.log_score_lost.value
                row |= {"mode": found.mode[0].value, "log score lost": lost}
            rows.append({"problem": name, "method": method, "gradients": one.gradients} | row)
    return pd.DataFrame(rows)


table = judged(told)

# %% tags=["nbval-ignore-output"]
table[table["problem"] == "boxes"].drop(columns="problem").round(3)

# %%
by_method = table[table["problem"] == "boxes"].set_index("method")["wasserstein"]
without_chains = by_method.drop(["HMC", "replica exchange"])
assert without_chains.min() > 2 * by_method["replica exchange"]
print("verdict: each method without chains is at least twice as far off as replica exchange")

# %% [markdown]
# The column "mode" is the share of networks that are an OR (notebook 6), which should be a
# half. A single network has to choose. Variational inference, as it begins here, stays with
# what it began with. The ensemble has some of both, and is no closer for it: its members all
# stand on tops, and tops are untypical, steeper and surer than nearly all of the posterior. Its
# ninety per cent intervals are wide, and in the wrong places.
#
# The last column is what held-out points say: how much lower their mean log density is than
# that of the posterior, for 400 new points in the boxes. They see that single networks are too
# sure near the edges, where some new points lie. Of the cross they see nothing.
#
# ## Where there are no data
# Now the sine. Lines are the middle of what networks predict, bands hold nine tenths of them.
# **Epistemic** uncertainty is wanted in the gap most of all: how wide is the band there? Guess
# for the ensemble of twenty networks before you look.

# %% tags=["nbval-ignore-output"]
sine, x, levels = problems["sine_tanh"], problems["sine_tanh"].inputs, [0.05, 0.5, 0.95]
known = truth["sine_tanh"]
rows = [int((known.levels - level).abs().argmin()) for level in levels]
bands = {"the truth": known.quantiles[rows, : len(x)]}
for method, by in told["sine_tanh"].items():
    bands[method] = predictive_quantiles(by.predict(x), levels)
title = "In the gap, twenty networks that were climbed to are hardly more than one"
plots.predictive_bands(bands, x, sine.posterior.data, title=title, columns=4)

# %%
in_gap = ((x > -0.5) & (x < 1)).flatten()


def width(by):
    """Of the spread in the gap: the method's over the posterior's."""
    sd = by.predict(x).reshape(-1, len(x)).std(0, correction=0)
    return (sd / known.sd[: len(x)])[in_gap].mean().item()


widths = {method: width(by) for method, by in told["sine_tanh"].items()}
assert widths["MAP"] == 0 and widths["ensemble of 20"] < 0.5
print("verdict: of the spread in the gap, one network has nothing, and twenty not even a half")

# %% tags=["nbval-ignore-output"]
pd.Series(widths, name="spread in the gap, over the posterior's").round(2).to_frame()

# %% tags=["nbval-ignore-output"]
table[table["problem"] == "sine_tanh"].drop(columns=["problem", "mode"]).round(3)

# %% [markdown]
# The climbs come from twenty different starts, and most of them end at the same function. An
# ensemble's spread is one of tops, or of climbs that were stopped before they got there, and
# neither is the posterior's. The Laplace approximation does better here than on the boxes: this
# posterior has one top that counts. Replica exchange is near the truth. So is HMC, unless one
# of its eight chains has not come down from the draw of the prior at which it began: with other
# seeds you may see that, and R-hat would have told.
#
# ## What gradients buy
# What you have seen is one budget for each method. `benchmarks/price.py` gave fourteen methods
# a thousand to ten million gradients each (`benchmarks/price.md`), and its distances come with
# the package. Large marks are yours. Both axes are logarithmic: draws of a chain that has
# arrived get closer by a factor of $\sqrt{10}$ for ten times as many gradients, and a method
# with a bias goes level. What would you take for ten thousand gradients? And for a million?

# %% tags=["nbval-ignore-output"]
stored = pd.read_csv(files("bnn_utils.resources") / "price.csv")
stored = stored[stored["problem"].isin(problems)]
mine = table[table["problem"].isin(stored["problem"]) & table["method"].isin(stored["method"])]
plots.prices(
    stored, mine, columns=2, title="Cheap methods end where they are, and chains go on"
)  # fmt: skip

# %%
at = stored[stored["problem"] == "boxes"].pivot(
    index="method", columns="budget", values="wasserstein"
)
cheap, chains_at_a_million = (
    at[0].min(),
    at.loc[["HMC", "MCLMC", "replica exchange"], 1_000_000],
)
assert chains_at_a_million.max() < cheap / 3
print(
    "verdict: what ends on its own is three times as far off as chains with a million gradients"
)

# %% [markdown]
# ## What to remember
# - With a thousand gradients a chain has not arrived, and one network is all there is. With
#   some hundred thousand, for networks of this size, chains are closer than anything cheaper.
# - More gradients help chains only. What MAP, Laplace and ensembles get wrong, they keep.
# - Held-out points see a part of it. They see nothing of places where there are no data, and
#   there the methods differ most.
# - Whatever you use: try it on a posterior that is known. It takes one call of `score`.
#
# **Next:** [16. Questions that only known posteriors can answer](16_questions.ipynb).
