# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. One network, one vector
#
# The **posterior** is the distribution of the network's parameters once the data have been
# seen. A **sampler** makes **draws** from it: parameter vectors, each as often as it is
# probable. All it needs is a function of one **flat vector**: give it `theta`, get back the
# logarithm of a probability density. A network wants weights and biases in their shapes. This
# notebook joins the two, so that the network can be handed to any package that expects a flat
# vector.
#
# You will see
# - the network's 20 parameters as one vector, and the way there and back,
# - the prior, the likelihood, and their sum, the log joint density,
# - what the prior believes before it has seen a single point,
# - the best single network (MAP), found by an optimiser, beside the best draw of a sampler.
#
# Words in bold are in the [glossary](glossary.md).
#
# This is notebook 2 of 16, and takes some 6 s on two cores. Before it comes [1. Four boxes of
# points](01_data.ipynb), after it [3. Hamiltonian Monte Carlo](03_hmc.ipynb).

# %%
import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, FlatModule, NormalPrior, Posterior, boxes, default_device
from bnn_utils import plots, sample, square_grid
from torch.nn.functional import logsigmoid
from torch.nn.utils import vector_to_parameters

device = default_device()
data = boxes(n=80, seed=1234).to(device)

# %% [markdown]
# ## The network
# Two inputs, a layer of three tanh units, a layer of two, one output. The output is a
# **logit**: any real number, which the sigmoid turns into the probability of class 1. The
# network itself has no sigmoid at its end; you will see why below.

# %%
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
flat = FlatModule(net)

print(flat)
print("parameters:", flat.dim, "from", flat.names[0], "to", flat.names[-1])
assert flat.dim == (2 * 3 + 3) + (3 * 2 + 2) + (2 * 1 + 1) == 20

# %% [markdown]
# Each weight matrix, laid out row by row, is one slice of the vector; each bias is another. The
# numbers in the cells are positions in `theta`.

# %%
plots.parameter_layout(
    flat, title="20 parameters, one vector: each slice is one layer's weight or bias"
)

# %% [markdown]
# ## There and back
# `ravel` collects the network's current parameters into a vector. `unravel` cuts a vector into
# named pieces. The pieces are **views**: they share the vector's memory, so nothing is copied
# and gradients flow through. (The original tutorial writes this function by hand and calls it
# `vector_to_parameters`.) `flat(theta, x)` does both steps: it is the network as a function of
# its parameters and its inputs, with nothing stored inside, and stands where the original has
# its stateful wrapper.

# %%
theta = flat.ravel()
params = flat.unravel(theta)

print({name: tuple(p.shape) for name, p in params.items()})
assert torch.equal(flat.ravel(params), theta)
assert params["0.weight"].data_ptr() == theta.data_ptr(), "a view, not a copy"
# where the network still is: PyTorch makes them in float32, on the CPU
x = data.x.float().cpu()
assert torch.equal(flat(theta, x), net(x))

# %% [markdown]
# A vector of the wrong length is an error, and the error says what the network has:

# %%
try:
    flat.unravel(torch.zeros(19))
except ValueError as error:
    print(error)

# %% [markdown]
# ## Why not `vector_to_parameters`?
# PyTorch ships a function of that name. It is made for something else: it *writes* a vector
# into a network. For us that fails in three ways. Predict each before you run the cell: does a
# gradient reach `theta`? Does a vector that is five elements too long raise an error? Can it
# take seven vectors at once?

# %%
copy = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
vector = torch.zeros(20, requires_grad=True)
vector_to_parameters(vector, copy.parameters())
(reaches_theta,) = torch.autograd.grad(copy(torch.ones(1, 2)).sum(), vector, allow_unused=True)
print("gradient that reaches theta:", reaches_theta)

vector_to_parameters(torch.zeros(25), copy.parameters())
print("a vector of 25 for 20 parameters: no error")

seven = torch.zeros(7, 20)
try:
    vector_to_parameters(seven, copy.parameters())
except RuntimeError as error:
    print("seven vectors at once:", error)
print("seven vectors at once by FlatModule:", tuple(flat(seven, torch.ones(1, 2)).shape))
assert reaches_theta is None

# %% [markdown]
# ## Prior, likelihood, log joint
# The **prior** says what we believe about the weights before any data: independent normals with
# mean 0 and precision 0.09. (**Precision** is one over variance.) The **likelihood** says how
# probable the labels are for given weights: each label is a coin flip with the network's
# probability. Bayes' rule multiplies the two, so their logarithms add up to the **log joint**,
# the log posterior density but for a constant.

# %%
posterior = Posterior(net, data, prior=NormalPrior(precision=0.09), likelihood=Bernoulli())
theta = posterior.sample_prior(1, torch.Generator(device).manual_seed(0))[0]

sd = 0.09**-0.5
logits = posterior.flat(theta, data.x)[:, 0]
log_prior = torch.distributions.Normal(0, sd).log_prob(theta).sum()
log_likelihood = torch.where(data.y == 1, logsigmoid(logits), logsigmoid(-logits)).sum()

torch.testing.assert_close(posterior.log_prob(theta), log_prior + log_likelihood)
print(f"prior standard deviation {sd:.2f}; log joint = log prior + log likelihood: checked")

# %% [markdown]
# Why logits? A network that is sure of itself gives, say, a logit of 40. Through a sigmoid that
# rounds to a probability of exactly 1, and the log probability of the other class becomes minus
# infinity. The logit still knows it was 40.

# %%
sure = torch.tensor(40.0, dtype=torch.float64)
print("log(1 - sigmoid(40))  :", torch.log(1 - torch.sigmoid(sure)).item())
print("from the logit itself :", logsigmoid(-sure).item())

# %% [markdown]
# ## What the prior believes
# A thousand networks drawn from the prior, before any data; here are the first eight. Some say
# one class for the whole plane. Where there are edges, look at how sharp they are: weights as
# large as the prior's standard deviation drive tanh to its ends, so a prior network is a
# patchwork of flat pieces, and more often than not a piece is near 0 or 1.

# %%
grid = square_grid(num=25, limit=6.0, like=data.x)
prior_draws = posterior.sample_prior(1000, torch.Generator(device).manual_seed(1))
prior_p = posterior.predict(prior_draws, grid)

maps = {f"prior draw {k}": prior_p[k] for k in range(8)}
plots.decision_maps(
    maps, grid, title="Before any data: flat pieces, sharp edges, no regard to the boxes"
)

# %%
sure_of_itself = ((prior_p < 0.05) | (prior_p > 0.95)).double().mean()
balanced = (prior_p.mean(0) - 0.5).abs().max()
print(f"a prior network is more than 95% sure on {sure_of_itself:.1f} of the plane")
print("yet their average is undecided everywhere: 0.5 to within 0.1")
assert 0.4 < sure_of_itself < 0.95 and balanced < 0.1

# %% [markdown]
# Most are confident, all together they know nothing. Keep this picture for later: averaging
# over networks turns disagreement into doubt.
#
# ## The best single network
# Ordinary training looks for one good `theta`. With the log joint as its goal that is the
# **maximum a posteriori** (MAP) estimate. We start Adam at 16 draws from the prior, all at once
# as rows of one batch. Do they all climb the same hill?

# %%
starts = posterior.sample_prior(16, torch.Generator(device).manual_seed(2))
climbers = starts.clone().requires_grad_()
optimiser = torch.optim.Adam([climbers], lr=0.05)
for _ in range(3000):
    log_joint, gradient = posterior.log_prob_and_grad(climbers)
    climbers.grad = -gradient
    optimiser.step()

tops = posterior.log_prob(climbers).detach()
theta_map = climbers.detach()[tops.argmax()]

# %% tags=["nbval-ignore-output"]
best_first = tops.sort(descending=True).values.tolist()
print("log joint where the climbs ended:", [f"{value:.1f}" for value in best_first])

# %%
assert tops.max() - tops.min() > 1, "the starts end on hills of different height"
print("verdict: the log joint has several hills; which one is found depends on the start")

# %% [markdown]
# The original tutorial calls something else its MAP: of all the draws that a sampler made, the
# one with the highest log density. Here are both, side by side. (How the sampler works is the
# next notebook's story.) Look at the cross between the boxes and at the corners: where do the
# two networks differ?

# %%
chain = sample(posterior, HMC(step_size=0.05, num_steps=4), num_samples=5000, seed=1)
theta_best = chain.draws[chain.best_draw()]

maps = {"MAP by optimiser": theta_map, "best of 5,000 draws": theta_best}
maps = {name: posterior.predict(theta, grid) for name, theta in maps.items()}
plots.decision_maps(maps, grid, data, title="Two good networks, and how far they differ")

# %%
later = chain.stats["lp"][0, 1500:]  # the first 1,500 are the way from the start
gap_best = tops.max() - later.max()
gap_typical = tops.max() - later.mean()
# Over 192 chains the second gap was 12.1 +- 2.0, and at least 8.9; the first, at least 2.8.
assert gap_best > 0, "no draw is as good as the optimiser's point"
assert gap_typical > posterior.dim / 4
print("verdict: the best draw lies below the MAP, and a typical draw still further,")
print("by more than a quarter of a unit for each of the", posterior.dim, "dimensions")

# %% [markdown]
# That is no failure of the sampler. In 20 dimensions almost all of the posterior's probability
# lies *around* peaks, not on them: for a normal distribution a typical draw lies half a unit of
# log density below the top for every dimension. The MAP is the point of highest density, and a
# most untypical one. (Even that only as far as 16 climbs can tell: nobody knows that there is
# no higher hill.)
#
# Nor do typical draws have to lie around *this* peak. A hill holds as much probability as its
# height *and* its width make up, and the highest may be a narrow one. The last exercise looks
# for the hills that draws are on, and [notebook 10](10_one_vector_many_packages.ipynb) finds
# what the MAP's own hill is worth. Predictions should come from the many, not from the one.

# %% [markdown]
# ## Exercises
# Try each in a new cell before you open its solution; all start from what this notebook has
# computed.
#
# ### Exercise: a twin
# Two vectors can be the same network. Take a draw from the prior. Flip the sign of all that
# goes into the first hidden unit (its two weights and its bias), and of all that comes out of
# it. What happens to the function? (tanh is odd: tanh(-a) = -tanh(a). And the pieces that
# `unravel` gives are views.)
#
# <details><summary>Solution</summary>
#
# ```python
# twin = posterior.sample_prior(1, torch.Generator(device).manual_seed(3))[0]
# before = posterior.flat(twin, grid)
# pieces = posterior.flat.unravel(twin)  # views: writing to them changes twin
# pieces["0.weight"][0] *= -1
# pieces["0.bias"][0] *= -1
# pieces["2.weight"][:, 0] *= -1
# torch.testing.assert_close(posterior.flat(twin, grid), before)
# print("five numbers changed their signs, and the function is the same everywhere")
# ```
#
# Every network has such twins, so weights alone don't say what a network does. [Notebook
# 6](06_convergence.ipynb) counts them.
#
# </details>
#
# ### Exercise: monkeys at typewriters
# The best straight line gets 58 of the 80 points right ([notebook 1](01_data.ipynb)). Draw
# 10,000 networks from the prior, which know nothing of the data. How many of them do better
# than the line? How many points does the luckiest get right?
#
# <details><summary>Solution</summary>
#
# ```python
# many = posterior.sample_prior(10_000, torch.Generator(device).manual_seed(3))
# right = ((posterior.predict(many, data.x) > 0.5) == data.y.bool()).sum(1)
# better, luckiest = int((right > 58).sum()), int(right.max())
# print(f"{better} of 10,000 beat the line; the luckiest gets {luckiest} of 80 right")
# assert 30 < better < 300 and luckiest > 60  # over 30 seeds 98 +- 8 and 73 +- 3
# ```
#
# Waiting for luck would be a sampler, too: keep what fits, throw the rest away. It throws away
# nearly everything. The next notebook shows a way that doesn't.
#
# </details>
#
# ### Exercise: whose hill?
# Let draws climb. Run 64 chains of 1,500 draws from the prior, as many as rows of one batch,
# and let the last draw of each climb by Adam as above. Is the highest hill of all the one that
# most of them are on?
#
# <details><summary>Solution</summary>
#
# ```python
# many = sample(posterior, HMC(0.05, 4), 1500, num_chains=64, seed=4, progress=False)
# draws = many.draws[:, -1].clone().requires_grad_()
# optimiser = torch.optim.Adam([draws], lr=0.05)
# for _ in range(3000):
#     draws.grad = -posterior.log_prob_and_grad(draws)[1]
#     optimiser.step()
# ends = posterior.log_prob(draws).detach()
# heights, times = torch.unique((10 * ends).round() / 10, return_counts=True)
# print({round(h.item(), 1): n.item() for h, n in zip(heights, times, strict=True)})
# highest = max(tops.max(), ends.max())
# assert (ends > highest - 0.1).double().mean() < 0.5  # 0.06 +- 0.03
# ```
#
# Most draws climb to about -47.4, more than one unit below the highest hill. Some do reach the
# highest. But HMC is slow to leave the hill that it came to first, so that this count depends
# on where chains start. Notebook 10 counts again, with a sampler for which it does not.
#
# </details>

# %% [markdown]
# ## What to remember
# - A network is a function of one flat vector, and the log joint is a function of the same
#   vector.
# - Keep logits: probabilities round to 0 and 1, logits don't.
# - A single best network is one point of a large, rugged posterior, and the highest hill need
#   not be the one with the most probability.
#
# **Next:** [3. Hamiltonian Monte Carlo](03_hmc.ipynb)
