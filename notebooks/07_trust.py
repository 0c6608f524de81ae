# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Why believe the sampler?
#
# So far we have judged *chains*: too short, too few, stuck behind a barrier. But what if the
# *program* is wrong? A sampler with a mistake in it does not crash. It returns numbers, the
# numbers look like a posterior, R-hat may be perfect, and they are draws from something else.
#
# There is one way to find out: ask questions to which the answer is known, of a kind that a
# wrong sampler cannot get right. This notebook asks two of them, each of a right sampler and of
# one that was broken on purpose. A test that has never failed has shown nothing. Words in bold
# are in the [glossary](glossary.md).
#
# You will see
# - a law of mechanics that every correct integrator obeys, and a small slip that breaks it,
# - made-up data whose true parameters are known, and where the truth ranks among the draws,
# - how two runs that start a hair's breadth apart part, and what a seed is worth.
#
# This is notebook 7 of 16, and takes some 22 s on two cores. Before it comes [6. A posterior
# that has converged](06_convergence.ipynb), after it [8. The
# playground](08_playground.ipynb).

# %%
from typing import NamedTuple

import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, ReplicaExchange, boxes
from bnn_utils import default_device, plots, sample
from bnn_utils.kernels.base import Info
from bnn_utils.kernels.hmc import Metric, Position, leapfrog, propose
from bnn_utils.sbc import Calibration, ranks, simulation_based_calibration

torch.set_num_threads(1)  # rows of 20 numbers are not worth sharing between cores
data = boxes(n=80, seed=1234).to(default_device())
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
posterior = Posterior(net, data, NormalPrior(precision=0.09), Bernoulli())

# %% [markdown]
# ## Does the ball keep its energy?
# Hamiltonian Monte Carlo rolls a ball over the landscape of the posterior
# ([notebook 3](03_hmc.ipynb)). Mechanics says that its energy never changes. The leapfrog
# integrator takes steps, so it gets the energy slightly wrong, and mechanics even says by how
# much: the error shrinks with the *square* of the step size. Half the step, a quarter of the
# error. On log scales that is a line of slope 2.
#
# For the broken one, take the most common slip. A leapfrog trajectory begins with *half* a step
# of the momentum. Here it begins with a whole one. The trajectories look as smooth as before.

# %%
start = sample(
    posterior, HMC(step_size=0.05, num_steps=4), num_samples=1500, num_chains=256, seed=1
).draws[:, -1]
state = Position(start, *posterior.log_prob_and_grad(start))
generator = torch.Generator(start.device).manual_seed(0)
p = torch.randn(start.shape, generator=generator, dtype=start.dtype, device=start.device)


def energy(state, p):
    return p.square().sum(-1) / 2 - state.log_prob


def energy_error(step_size, slip):
    """Median over trajectories of one length; a slip of 1/2 makes the first half step whole."""
    pushed = p + slip * step_size * state.grad
    end = leapfrog(
        state, pushed, posterior.log_prob_and_grad, step_size, round(0.16 / step_size)
    )
    return (energy(*end) - energy(state, p)).abs().median()


# %% [markdown]
# Both start from the same 256 places with the same pushes. (The median over them is asked for,
# because a mean could be the error of a single path in a narrow place.) Guess: with tiny steps,
# who is better? And with large ones, would you notice?

# %%
step_sizes = torch.tensor([0.008, 0.004, 0.002, 0.001])
errors = {
    name: torch.stack([energy_error(step, slip) for step in step_sizes.tolist()])
    for name, slip in {"leapfrog": 0, "first half step made whole": 1 / 2}.items()
}
plots.energy_slopes(
    step_sizes, errors, title="A quarter of the error for half the step: the slip loses that"
)

# %%
x = step_sizes.log() - step_sizes.log().mean()
slopes = {
    name: (x @ values.log().cpu().to(x) / x.square().sum()).item()
    for name, values in errors.items()
}
# Over 24 seeds 2.016 +- 0.018 and 1.020 +- 0.020.
assert abs(slopes["leapfrog"] - 2) < 0.15
assert abs(slopes["first half step made whole"] - 1) < 0.15
print("slopes:", {name: round(slope) for name, slope in slopes.items()})

# %% [markdown]
# The slip turns the 2 into a 1. A slope needs no reference, no other program and no luck, and
# one wrong half step cannot hide from it. It says nothing about what happens *after* the
# trajectory, though: a sampler accepts some proposals and rejects others, and most mistakes
# that matter are made there.
#
# ## A truth that is known because we made it up
# We don't know the posterior of the tutorial's data. But we can make up data of our own:
#
# 1. Draw parameters from the prior. They are *the truth*.
# 2. Let the network with these parameters label the 80 points.
# 3. Ask the sampler for draws from the posterior of these labels.
#
# Given the labels, the truth is a draw from the posterior like any other: nobody can tell it
# from the sampler's draws, if these are right. So put the truth and 15 draws in order, by any
# quantity you like. The truth must come first as often as second, ninth or last. Do that for
# a thousand made-up data sets, and the ranks must be uniform. This is called
# **simulation-based calibration**.
#
# There is a catch: the sampler must not be blamed for chains that are too short, and on this
# posterior they all are. The way out is that the truth *is* a draw from the posterior. A chain
# that starts there is in equilibrium at once. Make some of the draws forwards from the truth
# and the others backwards, how many by lot: then the truth is at a random place of a chain, and
# its rank is uniform even if the chain hardly moves.
#
# Now break the sampler. Hamiltonian Monte Carlo ends each trajectory by a decision to accept or
# to reject. Ours does not bother. A **kernel** for `sample` is two functions: the state with
# which a chain sets out, and one transition, which returns the next state and what is to be
# kept of it.


# %%
class NeverRejects(NamedTuple):
    """HMC that believes every proposal."""

    step_size: float
    num_steps: int
    lanes_per_chain = 1

    def init(self, density, theta, num_warmup):
        return Position(theta, *density.joint.log_prob_and_grad(theta))

    def step(self, density, generator, state):
        settings = self.step_size, self.num_steps, Metric(None, None)
        end = propose(generator, state, density.joint, *settings).position
        return end, Info(end.theta, end.log_prob)


# %% [markdown]
# What shall we rank? The prediction in the very centre of the plane; how sure it is, that is
# how far from one half; and how well the network fits its data, the log likelihood, which
# always comes with it.
#
# Which of the three will give the broken sampler away? Guess before you run it: it makes steps
# that are too bold and never takes one back.

# %%
single = Posterior(net, data.to(torch.float32), NormalPrior(precision=0.09), Bernoulli())
centre = torch.zeros(1, 2).to(single.data.x)
quantities = {
    "prediction": lambda theta: single.predict(theta, centre)[..., 0],
    "sureness": lambda theta: (single.predict(theta, centre)[..., 0] - 0.5).abs(),
}
runs = {
    name: simulation_based_calibration(single, kernel, quantities, num_datasets=1024, seed=1)
    for name, kernel in {"HMC": HMC(0.1, 8), "never rejects": NeverRejects(0.1, 8)}.items()
}
plots.calibrations(
    runs, "log likelihood", title="The right sampler's ranks are flat, the broken one's pile up"
)

# %% [markdown]
# Above: how many of the data sets gave each rank, with the grey band in which all bars end in
# 95 % of all runs of a right sampler. Below: the same, added up from the left, minus what is
# expected, with its own band. It sees what many neighbouring bars have in common.
#
# For the broken sampler the truth ranks too high. Its draws fit the data worse than the truth
# does: bold steps go uphill and are never taken back. Now all three quantities:

# %% tags=["nbval-ignore-output"]
for name, run in runs.items():
    print(name, "-", run.verdict)
    print(run.table().map("{:.1g}".format), "\n")

# %%
broken = runs["never rejects"].table()
assert runs["HMC"].is_calibrated and not runs["never rejects"].is_calibrated
assert broken.loc["log likelihood"].max() < 1e-6 < broken.loc["prediction"].max()
high = runs["never rejects"].ranks[:, 2].double()
assert high.mean() > 15 / 2 + 1, "the truth ranks too high"
print("verdict: HMC passes; the broken one fails, and the prediction does not show it")

# %% [markdown]
# The prediction in the centre looks fine, and no wonder: the two classes are alike, so an error
# that treats them alike cancels. A test sees what it ranks, and nothing else. That is why
# the log likelihood always comes along.
#
# ## And the sampler of the last notebook?
# Replica exchange ([notebook 6](06_convergence.ipynb)) can't start in equilibrium, because the
# truth is a draw at the coldest temperature only. It has to start elsewhere, so it has more to
# prove: not only that it would stay in the posterior, but that it finds it. The usual way is a
# start from the prior, a warm-up, then draws that are far enough apart to be independent.
#
# Would that show what was wrong with HMC in notebook 6? There each chain stayed what it was, an
# AND or an OR. But labels that a network from the prior makes up are hardly ever like the
# tutorial's, and where they are easier there may be no barrier. And where there is one, a start
# from the prior falls to each side about as often as the truth does, for the truth is from the
# prior as well: on average over data sets, all looks right. So we make it harder, in two ways:
# - *There is a barrier.* We keep those data sets only whose labels are like the tutorial's: at
#   least 35 of 40 are the same. That is allowed, because it depends on the labels alone: given
#   labels, whichever they are, the truth is a draw from their posterior.
# - *All chains start at one and the same network*, an AND that knows nothing of the truths.
#
# One data set in about 9,000 is kept, but making them up costs little.

# %% tags=["nbval-ignore-output"]
smaller = Posterior(net, boxes(n=40).to(single.data.x), single.prior, single.likelihood)
kept = []
for _ in range(20):
    theta = smaller.sample_prior(100_000, generator)
    labels = smaller.simulate(theta, generator)
    alike = (labels == smaller.data.y).sum(1) >= 35
    kept.append((theta[alike], labels[alike]))
truth, labels = map(torch.cat, zip(*kept, strict=True))
print(len(truth), "data sets of 2,000,000 are like the tutorial's")
assert 150 < len(truth) < 320  # a Poisson number of mean 230

# %% [markdown]
# `corners` counts as in notebook 6: it is 1 for an AND and 3 for an OR. (Among the truths there
# are some with a count of 2: there the output follows one of its two units alone.) We rank the
# count, the prediction in the centre, and the log likelihood, among three draws each.


# %%
def corners(theta):
    """In how many corners of its inputs the output unit says class 1, for theta (..., 20)."""
    weight, bias = theta[..., 17:19], theta[..., 19:]
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).to(weight)
    return (weight @ signs.mT + bias > 0).sum(-1)


def chains_for_all(kernel, init):
    """For each data set, three draws of a chain, 300 transitions apart."""
    model = smaller.with_targets(labels)
    chain = sample(
        model, kernel, 900, num_chains=len(truth), warmup=600, init=init, seed=generator
    )
    return chain.draws[:, 299::300]


def calibration(draws):
    """Ranks of the truths in what distinguishes the kinds, in a prediction, and in the fit."""
    theta = torch.cat([truth[:, None], draws], dim=1)
    fit = smaller.with_targets(labels).log_likelihood(theta.flatten(0, 1)).view(len(truth), -1)
    values = [corners(theta).to(fit), quantities["prediction"](theta), fit]
    values = torch.stack(values, dim=-1)
    names = ["corners", "prediction", "log likelihood"]
    return Calibration(ranks(values[:, 0], values[:, 1:], generator), draws.shape[1], names)


# %% [markdown]
# The network that all start at is the best AND among the chains at the top of this page. The
# kernel that explores inside replica exchange is the same HMC. Guess: it has a warm-up of 600
# transitions, and 300 between two draws. Is that enough to find an OR?

# %% tags=["nbval-ignore-output"]
an_and = start[state.log_prob.where(corners(start) == 1, -torch.inf).argmax()]
hmc = HMC(step_size=0.1, num_steps=4)
draws = {
    "HMC from the prior": chains_for_all(hmc, None),
    "HMC from one AND": chains_for_all(hmc, an_and),
    "replica exchange from one AND": chains_for_all(
        ReplicaExchange(hmc, num_temperatures=8), an_and
    ),
}
all_kinds = {"truths": truth} | draws
share = {name: (corners(t) == 3).double().mean().item() for name, t in all_kinds.items()}
print("ORs, of all:", {name: round(value, 2) for name, value in share.items()})

# %%
ranked = {name: calibration(theta) for name, theta in draws.items()}
plots.calibrations(
    ranked,
    "corners",
    title="From one AND, HMC's draws have too few corners, so the truth ranks high",
)

# %% tags=["nbval-ignore-output"]
for name, run in ranked.items():
    print(name, "-", run.verdict)

# %%
# Over 5 groups of 230 data sets HMC's p-value was below 1e-12, and its share of ORs 0.026 +-
# 0.010; 0.27 +- 0.03 of the truths are ORs, and 0.35 +- 0.03 of its draws from the prior.
assert ranked["HMC from one AND"].table().loc["corners"].max() < 1e-6
assert ranked["replica exchange from one AND"].is_calibrated
assert min(share["truths"], share["HMC from the prior"]) > 3 * share["HMC from one AND"]
print(
    "verdict: from one AND, HMC finds too few ORs; replica exchange forgets where it started,"
)
print("and its ranks are uniform, for data sets that it has never seen")

# %% [markdown]
# HMC from the prior has ORs enough, because starts from the prior brought them along. Its ranks
# are too often the lowest or the highest, a sign of chains that don't move; their mean is about
# right.
#
# What does calibration tell, then? Along a chain through the truth: that a sampler leaves the
# posterior as it is. From starts at the prior: that chains end at the right places *on average
# over data sets*, not that they move between modes. For that, start them all in one mode.
#
# ## What a seed is worth
# The same **seed** gives the same draws: on this machine, with these libraries, to the last
# bit. Somewhere else the processor may add numbers in another order, and the sixteenth digit
# comes out differently. Does that matter? Let 64 chains run twice, with the same random
# numbers, from starts that differ by 0.000000000000001. How many draws until you can see the
# difference?

# %%
twins = [
    sample(posterior, HMC(0.05, 4), num_samples=3000, init=theta, seed=2, compile=False).draws
    for theta in (start[:64], start[:64] + 1e-15)
]
again = sample(posterior, HMC(0.05, 4), num_samples=10, init=start[:64], seed=2, compile=False)
assert torch.equal(again.draws, twins[0][:, :10])
distance = (twins[0] - twins[1]).norm(dim=-1)
usual = (twins[0][:, 1000:] - twins[0][:, :-1000]).norm(dim=-1).median().item()
plots.partings(
    distance,
    usual,
    title="The twins part exponentially, by a digit within 200 draws",
)

# %% [markdown]
# Each grey line is a pair. On a log scale their median rises in a straight line: the distance
# is multiplied again and again. That is **chaos**. Once apart, most twins stay apart.

# %%
digits = distance.median(0).values.log10()
growing = ((digits > -13) & (digits < -3)).nonzero().flatten()
line = torch.stack([growing.to(digits), digits[growing]])
digits_per_draw = line.cov()[0, 1] / line[0].var()
apart = distance[:, 1500] > 1
# Over 8 seeds a digit takes 39 to 82 draws, and 0.73 to 0.91 of the pairs are apart.
assert torch.corrcoef(line)[0, 1] > 0.8 and digits_per_draw > 1 / 200
assert digits[0] < -13 and digits[1500:].min() > 0, "they don't come together again"
assert apart.double().mean() > 0.5
print("the median distance grew from below 1e-13 to above 1, by a digit within 200 draws,")
print("and stayed there")

# %% [markdown]
# So a seed reproduces a run on one machine. What travels to another machine is the
# *distribution* of the draws, and what is printed and compared in these notebooks is of that
# kind: counts, exact identities, and claims with room for chance.
#
# ## Who tests the tests?
# Every sampler in the library goes through the same suite: the two tests of this notebook,
# posteriors that are known in closed form, detailed balance, chains that must not influence
# each other. A script, `tests/faults.py`, then plants faults in the samplers, one at a time,
# and lets the suite look for them: a wrong sign, a forgotten rejection, a stale gradient, a
# swap with the wrong odds. Here is [which test noticed which](faults.md).
#
# And a claim that holds for the seed under which it was written is no claim. Another script,
# `tools/robust.py`, runs all notebooks and the suite with other seeds, and with other
# instruction sets of the processor: [how often an assertion failed](robust.md).
#
# That is evidence, not proof. A fault that no test looks for is still there.
#
# ## What to remember
# - A wrong sampler returns numbers like a right one. Only questions with known answers tell
#   them apart.
# - Test the tests: break the sampler and see that they fail.
# - Rank what matters, and the log likelihood. What you don't rank you don't see.
# - Starts from the prior hide a barrier on average. Start all chains on one side of it.
# - A seed reproduces draws on one machine; distributions are what travels.
#
# **Next:** [8. The playground](08_playground.ipynb)
