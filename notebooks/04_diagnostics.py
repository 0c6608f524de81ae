# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Should we believe the chain?
#
# A sampler always returns numbers. Whether they come from the posterior is a separate question,
# and there are instruments for it. Each sees one kind of trouble and is blind to others. This
# notebook points all of them at the tutorial's chain, which fails most of them, and at a
# specimen that passes: independent random numbers.
#
# You will see
# - traces, rank plots, autocorrelation and energy: what good and bad look like,
# - R-hat and effective sample size, from one chain and from four,
# - the same judgement in **weight space** and in **function space**, and a verdict.
#
# Words in bold are in the [glossary](glossary.md).
#
# This is notebook 4 of 16, and takes some 6 s on two cores. Before it comes [3. Hamiltonian
# Monte Carlo](03_hmc.ipynb), after it [5. What the network predicts](05_predictions.ipynb).

# %%
import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, default_device
from bnn_utils import plots, sample, square_grid
from bnn_utils.diagnostics import ess, rhat

device = default_device()
data = boxes(n=80, seed=1234).to(device)
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
posterior = Posterior(net, data, prior=NormalPrior(precision=0.09), likelihood=Bernoulli())

# %% [markdown]
# ## Four chains instead of one
# One chain can only be compared with itself. Four chains, started at four draws from the prior,
# can be compared with each other: if 5,000 draws are enough, nobody can tell afterwards which
# chain a draw came from. The first 1,500 draws of each are left out. For most starts that
# covers the climb to where the posterior is; the traces show whether it did here.

# %%
chain = sample(
    posterior, HMC(step_size=0.05, num_steps=4), num_samples=5000, num_chains=4, seed=1
)
draws = chain.draws[:, 1500:]
specimen = torch.randn(
    4, 3500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
)

print("chains, draws, parameters:", tuple(draws.shape))

# %% [markdown]
# ## Traces
# A **trace** plots a quantity against the draw's number. A good one looks like a hairy
# caterpillar: noise around one level, the same for all colours. The top row is the log density:
# it climbs from the start. How long does each chain take, and does it stay up there? Then look
# at the weights: slow wandering, colours that stay apart, and flat pieces, where nothing was
# accepted for a while.

# %%
watched = [0, 9, 17]  # one weight of each layer
plots.traces(
    chain,
    watched,
    title="The chains climb, then their weights wander, each its own way",
)

# %% [markdown]
# A trace shows a chain that drifts or gets stuck. It cannot show places that no chain has
# visited.
#
# ## R-hat and effective sample size
# **R-hat** asks whether chains, and halves of chains, agree: spread of all draws together over
# spread inside each. The limit in use today is 1.01. **Bulk ESS** says how many independent
# draws would estimate the centre as well, **tail ESS** the same for the 5 % and 95 % quantiles;
# 400 is a common least number for four chains.

# %% tags=["nbval-ignore-output"]
for name, values in (("specimen", specimen), ("weights", draws)):
    r_hat, bulk, tail = rhat(values), ess(values), ess(values, "tail")
    print(f"{name:9} R-hat    {r_hat.min():9.2f} to {r_hat.max():9.2f}")
    print(f"{name:9} bulk ESS {bulk.min():9.0f} to {bulk.max():9.0f}")
    print(f"{name:9} tail ESS {tail.min():9.0f} to {tail.max():9.0f}")

# %%
r_hat_weights = rhat(draws)
assert rhat(specimen).max() < 1.01 and ess(specimen).min() > 10_000
assert r_hat_weights.max() > 1.2 and ess(draws).min() < 100
print("verdict: the specimen passes, the weights fail:")
print("some have R-hat above 1.2, and some have less than 100 effective draws")

# %% [markdown]
# Could one chain have told? Its two halves can be compared, which shows a drift. But a chain
# that sits happily in one place has halves that agree. Be generous, and let 1.05 pass in place
# of 1.01. How many weights would a single chain have let pass, and how many of those survive
# the comparison of all four?

# %% tags=["nbval-ignore-output"]
alone = torch.stack([rhat(draws[k : k + 1]) for k in range(4)])
for k in range(4):
    passed = alone[k] < 1.05
    print(f"chain {k} alone lets {int(passed.sum())} of 20 weights pass;", end=" ")
    print(f"all four chains together, {int((passed & (r_hat_weights < 1.05)).sum())} of these")

# %% [markdown]
# ## Rank plots
# A **rank plot** puts the draws of all chains in order and asks, chain by chain, which ranks it
# holds. Chains that agree share all ranks evenly: flat bars at the dashed line. The specimen
# first.

# %%
plots.ranks(
    specimen[..., :2],
    ["independent numbers", "more of them"],
    title="Chains that agree: flat bars",
)

# %%
plots.ranks(
    draws[..., watched],
    [chain.names[k] for k in watched],
    title="Chains that don't agree: bars far from the line",
)

# %% [markdown]
# A rank plot shows *how* chains disagree: another level, or another width. Like R-hat it
# compares chains with each other and knows nothing of what all of them missed.
#
# ## Autocorrelation
# How long does a chain remember? The **autocorrelation** at lag k is the correlation of a draw
# with the one k draws later: 1 for a copy, 0 for no memory. The specimen forgets at once. Guess
# at which lag the weights have forgotten, before you look.

# %%
plots.autocorrelations(
    torch.cat([draws[..., watched].cpu(), specimen[..., :1]], dim=-1),
    [*(chain.names[k] for k in watched), "specimen"],
    title="The weights remember for hundreds of draws, the specimen for none",
)

# %%
centred = draws[..., watched] - draws[..., watched].mean(1, keepdim=True)
after_100 = (centred[:, 100:] * centred[:, :-100]).mean((0, 1)) / centred.square().mean((0, 1))
assert after_100.mean() > 0.3, "independent draws would give 0; with other seeds 0.63 +- 0.05"
print("verdict: 100 draws later, the watched weights still resemble themselves:")
print("on average their autocorrelation is above 0.3")

# %% [markdown]
# ## Energy
# Each fresh push changes the energy. If these changes are as wide as the energy's own
# distribution, the pushes can reach all levels. The mean squared change over the variance is
# the **BFMI** (Bayesian fraction of missing information); below 0.3 it warns of trouble.

# %%
plots.energies(
    chain, starts=1500, title="How far one push moves the energy, and how far the energy varies"
)

# %% tags=["nbval-ignore-output"]
energy = chain.stats["energy"][:, 1500:]
bfmi = energy.diff(dim=1).square().mean(1) / energy.var(1)
print("BFMI by chain:", [f"{value:.2f}" for value in bfmi.tolist()])
print(f"{int((bfmi > 0.3).sum())} of {len(bfmi)} chains pass")
# With other seeds 77 of 80 chains pass; those that don't were still climbing at draw 1,500.
assert (bfmi > 0.3).any(), "passed by a chain that has not converged"

# %% [markdown]
# A chain can pass here and be nowhere near convergence, as R-hat has shown above. The
# instrument tells whether a chain climbs up and down freely, not whether it gets *around*: a
# chain that never leaves one of two valleys can have a perfect BFMI.
#
# ## Weights or functions?
# Perhaps we ask too much. Weights have names, but the network does not care about them: swap
# two hidden units, or flip the sign of one and of what follows it, and every prediction stays
# the same. Chains may disagree about the weights and agree about everything that matters. So
# ask again about the predictions, at each of 625 points. Guess before you run it: will the
# weights fail? Will the predictions?

# %%
grid = square_grid(num=25, limit=6.0, like=data.x)
p = posterior.predict(draws, grid)  # (chains, draws, 625)
r_hat_function = rhat(p)
plots.rhat_comparison(
    r_hat_weights,
    r_hat_function,
    title="Predictions agree better than weights, and still not well enough",
)

# %% [markdown]
# And where do they disagree? Look for the dark places, and at what the data have to say there.

# %%
plots.rhat_map(
    r_hat_function,
    grid,
    data,
    title="The chains disagree over most of the plane",
)

# %% tags=["nbval-ignore-output"]
worst = grid[r_hat_function.argmax()].tolist()
print(f"worst place: ({worst[0]:.1f}, {worst[1]:.1f}) with R-hat {r_hat_function.max():.2f}")

# %%
failing = (r_hat_function > 1.01).double().mean()
assert r_hat_function.median() < r_hat_weights.median()
assert failing > 0.5 and r_hat_function.max() > 1.02
print("verdict: not converged, in weights or in predictions; most of the plane is above 1.01")

# %% [markdown]
# So part of the failure may be only names: predictions do agree better than weights. The rest
# is real, and you can see it. Here is each chain's own average. Compare the edges.

# %%
maps = {f"chain {k}": p[k].mean(0) for k in range(4)}
plots.decision_maps(maps, grid, data, title="Four chains, four averages")

# %%
apart = p.mean(1).max(0).values - p.mean(1).min(0).values
assert apart.max() > 0.05  # with other seeds 0.24 to 0.97
print("verdict: at some place the chains' averages lie more than 0.05 apart")

# %% [markdown]
# To a question that we want to ask, such as the probability at one place, four chains give four
# answers, and averaging them does not tell which is right. The maps of the next notebook are a
# picture of the posterior, not a measurement of it.

# %% [markdown]
# ## Exercises
# Try each in a new cell before you open its solution; both start from what this notebook has
# computed.
#
# ### Exercise: fool R-hat
# Think of a posterior with two valleys, one around -3 and one around 3. Make four chains of
# 1,000 independent normal draws each, all of them in the left valley. What does `rhat` say?
# Then move one chain to the right valley, and ask again.
#
# <details><summary>Solution</summary>
#
# ```python
# left = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) - 3
# both = left.clone()
# both[3] += 6  # one of four chains has found the other valley
# print(f"R-hat: {rhat(left):.2f} in one valley, {rhat(both):.2f} with one chain in the other")
# assert rhat(left) < 1.01 and rhat(both) > 1.3
# ```
#
# The first run is wrong about half of the posterior and passes. The second knows more and
# fails. More chains, from starts far apart, are more chances to be told.
#
# </details>
#
# ### Exercise: does thinning help?
# Keeping every 10th draw makes traces look better: neighbours resemble each other less. How
# much of the bulk ESS is left, for the weights and for the specimen? Guess both.
#
# <details><summary>Solution</summary>
#
# ```python
# for name, values in (("weights", draws), ("specimen", specimen)):
#     kept = (ess(values[:, ::10]) / ess(values)).median().item()
#     print(f"{name:8}: a tenth of the draws keeps {kept:.1f} of the effective draws")
#     assert kept > 0.8 if name == "weights" else kept < 0.2
# ```
#
# Of the weights nothing is lost, since neighbours are nearly copies, and nothing is gained
# either. Of the specimen nine tenths are lost. Thinning saves memory, and that is all.
#
# </details>

# %% [markdown]
# ## What to remember
# - Run several chains. Some weights look well in one chain alone.
# - Judge what you will use: predictions, not only weights.
# - Every instrument looks only at the draws there are. None can see a place that no chain has
#   been to.
#
# **Next:** [5. What the network predicts](05_predictions.ipynb)
