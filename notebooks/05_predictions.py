# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. What the network predicts
#
# Thousands of networks have been drawn. Each one is a map of the plane with sharp edges.
# Together they say something that none of them can say alone: *here I know, there I don't*.
#
# You will see
# - the map of the single best draw, and the average map over many draws,
# - uncertainty taken apart: doubt inside each network, or networks that disagree,
# - the sampler at work, as an animation, and with controls to stop it anywhere.
#
# Words in bold are in the [glossary](glossary.md).
#
# One warning goes with all of it. The chain has not converged ([notebook
# 4](04_diagnostics.ipynb) shows that), so these maps are good for shapes and not for decimals.
#
# This is notebook 5 of 16, and takes some 10 s on two cores. Before it comes [4. Should we
# believe the chain?](04_diagnostics.ipynb), after it [6. A posterior that has
# converged](06_convergence.ipynb).

# %%
import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, default_device
from bnn_utils import animate, plots, sample, square_grid, widgets
from bnn_utils.predict import entropy, predictive_mean, split_uncertainty

device = default_device()
data = boxes(n=80, seed=1234).to(device)
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
posterior = Posterior(net, data, prior=NormalPrior(precision=0.09), likelihood=Bernoulli())

chain = sample(posterior, HMC(step_size=0.05, num_steps=4), num_samples=5000, seed=1)
grid = square_grid(num=25, limit=6.0, like=data.x)
p = posterior.predict(chain.draws[0], grid)  # (draws, 625)
print("a probability for each draw and grid point:", tuple(p.shape))

# %% [markdown]
# ## One network
# The draw with the highest log density. It gets the points right, and it is certain over most
# of the plane. Who told it what lies in the cross between the boxes, or outside of them?

# %%
_, best = chain.best_draw()
plots.decision_maps(
    {"highest log density": p[best]},
    grid,
    data,
    title="One network: a firm answer over most of the plane",
)

# %%
right = ((posterior.predict(chain.draws[0, best], data.x) > 0.5) == data.y.bool()).sum()
assert right > 75  # fails if the climb takes all 5,000 draws: for one seed in some 1,500
assert ((p[best] < 0.05) | (p[best] > 0.95)).double().mean() > 0.5
print("verdict: it gets more than 75 of the", len(data), "points right,")
print("and is more than 95% sure on more than half of the plane")

# %% [markdown]
# ## Many networks
# The **posterior predictive** probability is the average over draws. The original tutorial
# takes every 10th of the first 1,500. We show that first. Then four chains instead of one, as
# [notebook 4](04_diagnostics.ipynb) advises, and all of their draws after those 1,500. Look at
# the cross between the boxes, and then at the rim of the map, where there are no data either.
#
# How sure is a probability? Its **entropy** says so in bits: 1 for a coin flip, 0 for a certain
# answer. The cell after the figure takes averages of it.

# %%
four = sample(
    posterior, HMC(step_size=0.05, num_steps=4), num_samples=5000, num_chains=4, seed=1
)
p_four = posterior.predict(four.draws[:, 1500:], grid)  # (chains, draws, 625)

as_published = p[:1500:10]
mean_published, mean = predictive_mean(as_published), predictive_mean(p_four)
maps = {
    f"one chain, every 10th of the first 1,500 ({len(as_published)})": mean_published,
    f"four chains, all after the first 1,500 ({p_four.shape[:2].numel():,})": mean,
}
plots.decision_maps(
    maps, grid, data, title="The average is pale between the boxes, and not beyond them"
)

# %%
between = grid.abs().min(dim=1).values < 0.5
box = ((grid.abs() >= 0.5) & (grid.abs() <= 5)).all(dim=1)
beyond = ~box & ~between

assert entropy(mean[between]).mean() > 0.7  # over 120 seeds 0.83 to 0.99
assert entropy(mean[box]).mean() < 0.6 and entropy(mean[beyond]).mean() < 0.7  # 0.2 to 0.5
assert entropy(p[best][between]).mean() < entropy(mean[between]).mean()
print("verdict: between the boxes the average is close to a coin flip, one network is surer;")
print("in the boxes, and beyond them, the average is sure")

# %% [markdown]
# Beyond the boxes the average is nearly as sure as inside, with no data to say so. The networks
# extend a box's colour outwards in the same way, because tanh is flat far from its edges.
# Averaging finds doubt only where networks disagree.
#
# The thinned average includes the chain's way from its start, and **thinning** throws draws
# away without making the others any better. There is no reason to thin but memory.
#
# ## Two kinds of not knowing
# A prediction of one half can mean two things. Every network says "a coin flip": as far as it
# can tell the labels are noisy, and more data won't help (**aleatoric**). Or half of the
# networks say "surely 1" and half "surely 0": they disagree, and data would settle it
# (**epistemic**). Entropy tells them apart. The entropy of the average map is the total. The
# average of the single networks' entropies is the aleatoric part. What is left is the
# disagreement; its name is the mutual information of label and parameters. The labels here have
# no noise. What should the middle map look like?
#
# total = aleatoric + epistemic

# %%
split = split_uncertainty(p_four)
plots.uncertainty_maps(
    split, grid, data, title="Between the boxes the uncertainty is mostly disagreement"
)

# %%
torch.testing.assert_close(split.total, split.aleatoric + split.epistemic)
assert split.epistemic[between].mean() > split.epistemic[box].mean()
share = (split.epistemic[between].mean() / split.total[between].mean()).item()
assert share > 0.5 and split.aleatoric[between].mean() > 0.1
print("verdict: the parts add up; between the boxes, more than half is disagreement")

# %% [markdown]
# The middle map is not empty, although the labels have no noise. It measures the doubt *inside*
# each network, along its soft edges: the model cannot know that the labels are clean.
#
# ## The sampler at work
# Draws 1, 251, 501 and so on, as in the original. The first frame is nearly the prior. Once the
# chain has climbed, watch the edges swing through the empty cross while the boxes keep their
# colours. The animation is saved as `results.gif` beside this notebook.

# %% tags=["nbval-ignore-output"]
numbers = [*range(0, 5000, 250), 4999]
animation = animate.contours(
    p[numbers], grid, data, [f"Iteration: {k + 1}" for k in numbers],
    alt="Animated contours: edges move between the boxes, the boxes keep their colours",
)  # fmt: skip
animation.save("results.gif")
animation

# %% [markdown]
# Its companion shows the average over all draws so far. Single maps jump; the average can move
# less and less. Don't take that for convergence: the last frame adds 250 draws to 4,750, so no
# probability can move by more than a twentieth, however badly the chain mixes.

# %% tags=["nbval-ignore-output"]
ends = range(250, 5001, 250)
running = torch.stack([predictive_mean(p[:end]) for end in ends])
companion = animate.contours(
    running, grid, data, [f"Average of the first {end:,} draws" for end in ends],
    alt="Animated contours of the running average: it settles, pale between the boxes",
)  # fmt: skip
companion

# %%
later = posterior.predict(four.draws[:, numbers[len(numbers) // 2 :]], data.x)  # all chains
assert ((later > 0.5) == data.y.bool()).double().mean() > 0.8, "the boxes keep their colours"
assert len(animation.gif) + len(companion.gif) < 1_000_000
change = (running[1:] - running[:-1]).abs().amax(1)
assert not (change > torch.tensor([250 / end for end in ends[1:]]).to(change)).any()
print("verdict: the running average can move less and less, as any average must")

# %% [markdown]
# ## In your hands
# Drag the slider, or focus it and use the arrow keys; the play button moves it by itself. The
# buttons above change what is shown: the single draw, the average of all draws up to there, or
# one of the two kinds of uncertainty. In which view does the picture stop moving first?
# (Without a running kernel you see the picture below it only. There is more to move in the
# [playground](08_playground.ipynb).)

# %%
widgets.posterior_explorer(chain, posterior, grid)

# %%
maps = {f"draw {k:,}": p[k] for k in (1000, 2000, 3000, 4000)}
plots.decision_maps(maps, grid, data, title="Four positions of the slider")

# %% [markdown]
# ## Exercises
# Try each in a new cell before you open its solution; both start from what this notebook has
# computed.
#
# ### Exercise: far, far away
# Walk away from the data, along the diagonals `(r, r)`, `(r, -r)` and so on, and along the axes
# `(r, 0)`, `(0, r)` and so on, with r = 10, 100 and 1,000. Nobody has ever been there. What
# should the entropy of the average be, and what is it?
#
# <details><summary>Solution</summary>
#
# ```python
# diagonals, axes = [[1, 1], [1, -1], [-1, -1], [-1, 1]], [[1, 0], [0, 1], [-1, 0], [0, -1]]
# for r in (10.0, 100.0, 1000.0):
#     places = r * torch.tensor(diagonals + axes).to(grid)
#     there = entropy(predictive_mean(posterior.predict(four.draws[:, 1500:], places)))
#     diagonal, axis = there[:4].min(), there[4:].max()
#     print(f"r = {r:6,.0f}: {diagonal:.2f} bits on the surest diagonal, {axis:.2f} on an axis")
# assert diagonal < axis  # over 160 seeds 0.25 apart, or more
# ```
#
# The axes are the middle of the cross, where networks disagree; on diagonals the average is
# surer, however far it is from all it knows: tanh is flat out there, so each network repeats
# what it said at the edge. The average inherits it.
#
# </details>
#
# ### Exercise: one more question
# You may ask for one more label. Where? Ask where the networks disagree most. Say the answer is
# class 1, add the point to the data, draw again, and look what has become of the epistemic
# uncertainty there.
#
# <details><summary>Solution</summary>
#
# ```python
# from bnn_utils import Data
#
# where = grid[split.epistemic.argmax()][None]
# more = Data(torch.cat([data.x, where]), torch.cat([data.y, data.y.new_ones(1)]))
# wiser = Posterior(net, more, posterior.prior, posterior.likelihood)
# again = sample(wiser, HMC(0.05, 4), num_samples=5000, num_chains=4, seed=1, progress=False)
# after = split_uncertainty(wiser.predict(again.draws[:, 1500:], where)).epistemic.item()
# print(f"{split.epistemic.max():.2f} bits of disagreement before, {after:.2f} after")
# assert after < split.epistemic.max()
# ```
#
# Disagreement is what data can remove, so it says where to look next. Choosing questions this
# way is called active learning.
#
# </details>

# %% [markdown]
# ## What to remember
# - One network is sure over most of the plane. The average of many is unsure where the networks
#   disagree: between the boxes, and not beyond them, where there are no data either.
# - Epistemic uncertainty is disagreement between networks, and data there would reduce it.
# - The pictures are convincing, and the chain behind them has not converged. Pictures don't
#   show that; diagnostics do.
#
# **Next:** [6. A posterior that has converged](06_convergence.ipynb)
