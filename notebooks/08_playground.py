# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. The playground
#
# Seven notebooks made claims and asserted them. Here you make your own. Four explorers wait,
# and each is one line that also works on *your* network and *your* chain.
#
# You will see
# - what step size and number of steps do to a sampler,
# - what a prior believes before it has seen any data,
# - draw after draw of a chain, at three temperatures,
# - a posterior that follows the points you draw.
#
# Words in bold are in the [glossary](glossary.md).
#
# Controls react where a kernel runs: open this notebook by `make lab` or on Binder, and choose
# *Run All Cells*. Below each explorer stands a picture that it makes, for those who only read.
# All controls can be reached by the Tab key and moved by the arrow keys.
#
# This is notebook 8 of 16, and takes some 9 s on two cores. Before it comes [7. Why believe
# the sampler?](07_trust.ipynb), after it [9. Your own network, your own
# data](09_your_own.ipynb).

# %%
import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, Data, NormalPrior, Posterior, boxes, default_device
from bnn_utils import sample, widgets
from bnn_utils.predict import split_uncertainty

data = boxes(n=80, seed=1234).to(default_device())
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
prior = NormalPrior(precision=0.09)
posterior = Posterior(net, data, prior=prior, likelihood=Bernoulli())

# %% [markdown]
# ## Two knobs of a sampler
# [Hamiltonian Monte Carlo](03_hmc.ipynb) rolls a ball: so many **leapfrog** steps of such a
# size. Left, four balls start at one place with different pushes; the lighter the ground, the
# more probable. Right, their **energy** errors. The line below is about a real run that is
# made each time you let go: eight chains of 200 **transitions**.
#
# Try larger steps, one notch at a time. Where do the balls leave the map? Then go back and try
# more steps of a small size.
#
# Before you do, guess: does the setting with the highest **acceptance rate** get furthest for
# its money? The money is gradients, one for each leapfrog step; how far it gets is the mean
# squared jump from one draw to the next.

# %%
sampler = widgets.sampler_explorer(posterior)
sampler

# %% tags=["nbval-ignore-output"]
sampler.figure(step_size=0.1, num_steps=20)


# %%
def money_spent(step_size, num_steps):
    """Acceptance rate, the median of 32 chains, and squared jump per gradient."""
    run = sample(
        posterior, HMC(step_size, num_steps), 300, num_chains=32, seed=0, progress=False
    )
    jump = run.draws[:, 100:].diff(dim=1).square().sum(-1).mean()
    return run.stats["acceptance_rate"][:, 100:].mean(1).median(), jump / num_steps


(shy, crawl), (bold, stride), (rash, stuck) = (
    money_spent(step_size, num_steps)
    for step_size, num_steps in ((0.02, 4), (0.05, 8), (0.8, 8))
)
assert shy > 0.95 > bold > 0.5 and rash < 0.1  # other seeds: 0.995, 0.82 +- 0.03, 0
assert stride > 4 * crawl and stride > 4 * stuck
print("verdict: small steps are nearly always kept and get nowhere, huge ones hardly ever are;")
print("the best loses a few proposals")

# %% [markdown]
# ## What a prior believes
# A **prior** is a belief about weights, and nobody has a feeling for weights. So look at the
# functions: six networks drawn from it, and how often which probability turns up anywhere in
# 200 of them.
#
# The prior of these notebooks has **precision** 0.09. Try 10, and 100: the networks become too
# shy to say anything. Then widen the layers. When does the histogram have two towers, and what
# would such a prior say about a place that it knows nothing of?

# %%
beliefs = widgets.prior_explorer(precision=0.09)
beliefs

# %%
beliefs.figure(precision=0.09, width=32)


# %%
def surer(precision, width):
    """Share of answers that are surer than 95 %, over 500 networks and the data's inputs."""
    wide = nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    )
    model = Posterior(wide, data, NormalPrior(precision), Bernoulli())
    p = model.predict(
        model.sample_prior(500, torch.Generator(data.x.device).manual_seed(0)), data.x
    )
    return ((p - 0.5).abs() > 0.45).double().mean()


assert surer(0.09, 3) > 0.5 and surer(0.09, 32) > 0.8 and surer(10.0, 3) < 0.01
print(
    "verdict: this prior is sure of most answers before any data, the more so in wide networks;"
)
print("at precision 10 it is sure of none")

# %% [markdown]
# ## Draw after draw, at three temperatures
# Press the play button and watch a chain at work, one network after another. *Running mean*
# averages all up to there; *aleatoric* and *epistemic* take its uncertainty apart, as in
# [notebook 5](05_predictions.ipynb).
#
# The first control chooses the run. At **temperature** T the data count less: the
# **likelihood** is taken to the power 1/T. A few lines make such a likelihood. Guess first:
# what becomes of the disagreement between networks, in the boxes, as T rises?


# %%
class Tempered(Bernoulli):
    """The likelihood to the power of 1 / temperature."""

    def __init__(self, temperature):
        self.temperature = temperature

    def log_probs(self, outputs, y):
        return super().log_probs(outputs, y) / self.temperature

    def grad(self, outputs, y):
        return super().grad(outputs, y) / self.temperature


runs = {}
for temperature in (1, 10, 100):
    tempered = Posterior(net, data, prior, Tempered(temperature))
    kernel = HMC(step_size=0.05, num_steps=8)
    runs[f"temperature {temperature}"] = sample(
        tempered, kernel, num_samples=1500, num_chains=4, seed=1, progress=False
    )

# %%
draws = widgets.posterior_explorer(runs, posterior)
draws

# %%
draws.figure(run="temperature 10", view="epistemic", draw=1499)

# %%
disagreement = [
    split_uncertainty(posterior.predict(run.draws[:, 1000:], data.x)).epistemic.mean().item()
    for run in runs.values()
]
assert disagreement[0] < disagreement[1] - 0.02 < disagreement[2] - 0.04
print("verdict: the hotter, the more the networks disagree, also where there are data")

# %% [markdown]
# ## Your own data
# Click into the square, and the **posterior** follows: 64 chains of 1,000 draws, made anew
# after each change. Drag a point across the border between the colours. Put a single blue
# square into the middle of the red ones. Clear everything: what is left is the prior.
#
# Look for the places where the networks disagree, and put a point there. Do they still? And
# watch the R-hat below the picture: is it ever down at 1.01? Short chains seldom agree,
# and [notebook 6](06_convergence.ipynb) shows what it takes.

# %%
yours = widgets.data_explorer()
yours

# %%
yours.figure()


# %%
def disagreement_in_the_middle(points):
    model = Posterior(net, points, prior, Bernoulli())
    run = sample(model, HMC(0.03, 8), 500, num_chains=32, warmup=300, seed=1, progress=False)
    middle = torch.zeros(1, 2).to(points.x)
    return split_uncertainty(model.predict(run.draws, middle)).epistemic.item()


some = boxes(n=20).to(data.x.device)
places = torch.tensor([[0.0, 0.0], [0.2, -0.2], [-0.2, 0.2]]).to(some.x)
more = Data(torch.cat([some.x, places]), torch.cat([some.y, some.y.new_ones(3)]))
assert disagreement_in_the_middle(more) < disagreement_in_the_middle(some) - 0.1
print("verdict: three points in the middle of the cross, and the networks disagree less there")

# %% [markdown]
# ## What to remember
# - Acceptance says that steps are small enough. How far a chain gets for its gradients says
#   whether they are worth it.
# - A prior over weights is a prior over functions. Draw from it and look, before any data.
# - Heat makes networks disagree, data make them agree, and they do so where the data are.
# - Each explorer is one line: `widgets.sampler_explorer(posterior)`,
#   `widgets.prior_explorer()`, `widgets.posterior_explorer(chain, posterior)`,
#   `widgets.data_explorer(data)`.
#
# **Next:** [9. Your own network, your own data](09_your_own.ipynb)
