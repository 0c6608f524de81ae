# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13. From a table to a posterior that one may believe
# You have a table: some columns to predict from, and one to predict. This notebook is the way
# from there to numbers that you may report, with the checks in the order in which one makes
# them. It goes the way twice. The first table is easy and ends with a result; the second one
# does not converge, and asks for a decision.
#
# You will see
# - why a table's units are a problem, and two words that solve it,
# - what to ask a **prior** before there is a posterior,
# - whether chains agree, and how to read their warnings,
# - scores on held-out rows, beside a method that takes a millisecond,
# - what to do where chains don't agree, and what to report.
#
# Words in bold are in the [glossary](glossary.md).
#
# This is notebook 13 of 16, and takes some 35 s on two cores. Before it comes [12. Long
# runs](12_long_runs.ipynb), after it [14. A kernel, a likelihood and a prior of your
# own](14_your_own_kernel.ipynb).

# %%
import warnings

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import train_test_split
from torch import nn

from bnn_utils import ChEES, Data, FanInPrior, Gaussian, LogScale, Posterior, Standardise
from bnn_utils import find_map, plots, sample
from bnn_utils.diagnostics import convergence, rhat
from bnn_utils.predict import coverage, crps, log_score, mean_difference

torch.set_num_threads(1)  # matrices as small as these gain nothing from a second core

# %% [markdown]
# ## The table
# 442 people with diabetes: age, sex, body mass index, blood pressure, six blood values, and how
# far the disease had progressed a year later (Efron, Hastie, Johnstone and Tibshirani 2004;
# scikit-learn ships it). With a table of your own, this line is `pd.read_csv("table.csv")`.

# %%
people = load_diabetes(as_frame=True, scaled=False).frame.astype("float32")
print(
    f"{len(people)} rows, to predict {people.columns[-1]} from {', '.join(people.columns[:-1])}"
)

# %% tags=["nbval-ignore-output"]
people.describe().loc[["mean", "std", "min", "max"]].round(1)

# %% [markdown]
# A hundred rows are held out from here on. No choice below has seen them.

# %%
train, test = train_test_split(people, test_size=100, random_state=0)
print(f"{len(train)} rows to learn from, {len(test)} held out")

# %% [markdown]
# ## Units
# A first attempt: a network with ten hidden units, whose last layer infers the size of the
# noise, and a prior for weights that is usual in the literature. What could be wrong with it?


# %%
def parts(table, target="target"):
    return table.drop(columns=target), table[target]


net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 1), LogScale())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    Posterior(net, Data(*parts(train)), FanInPrior(weight=1.0, bias=1.0), Gaussian())
for warning in caught:
    print(warning.message, end="\n\n")

# %%
assert len(caught) == 2
print("verdict: both the inputs and the target are far from the scale that the prior is for")

# %% [markdown]
# Such a prior says: inputs are about 1, so is what the network computes from them, and so is
# the noise. Here inputs are 100 and targets 150. `Standardise` as a first layer, and as units
# of the likelihood, brings both to mean 0 and standard deviation 1, inside the model: what goes
# in and what comes out stays in the table's units. Means and deviations are those of the rows
# to learn from, and not of those held out.


# %%
def model(table, hidden=10, target="target"):
    """A posterior for a table, in the table's units; without hidden units it is linear."""
    data = Data(*parts(table, target))
    inputs = data.x.shape[1]
    body = [nn.Linear(inputs, hidden), nn.ReLU()] if hidden else []
    last = nn.Linear(hidden or inputs, 1)
    net = nn.Sequential(Standardise(data.x), *body, last, LogScale())
    units = Standardise(data.y)
    return Posterior(net, data, FanInPrior(weight=1.0, bias=1.0), Gaussian(units=units))


posterior = model(train)
print(posterior)

# %% [markdown]
# ## What does the prior expect?
# Before the data speak, let the prior make up tables: 500 networks from the prior, and the
# targets that they would give to the people in our table. Ours need not look like a typical
# one, but it should not look impossible.

# %%
theta = posterior.sample_prior(500, torch.Generator().manual_seed(0))
made_up = posterior.simulate(theta, torch.Generator().manual_seed(1))  # (networks, people)
spread, ours = made_up.std(1), posterior.data.y.std()
rank = (spread < ours).double().mean().item()

# %% tags=["nbval-ignore-output"]
print(f"targets vary by {ours:.0f}, more than in {rank:.0%} of the tables that were made up")

# %%
assert 0.1 < rank < 0.9
print("verdict: the prior makes up tables like ours, and more and less varied ones")

# %% [markdown]
# ## One network first
# The maximum of the posterior density (MAP) is cheap, and finds mistakes early: if one good
# network predicts nothing, thousands won't either. Each climb starts at its own draw of the
# prior.

# %% tags=["nbval-ignore-output"]
best = find_map(posterior, num=8, seed=0, progress=False)
best.table().round(3)

# %%
held_out = Data(*parts(test))


def rmse(mean, y):
    """Root mean square error, in the table's units."""
    return (mean - y).square().mean().sqrt().item()


assert rmse(posterior.predict(best.theta[0], held_out.x), held_out.y) < 0.95 * held_out.y.std()
print("verdict: one network predicts better than the mean of all")

# %% [markdown]
# ## Chains, and whether they agree
# Without a kernel, `sample` takes the one that was fastest for posteriors of this kind, says
# which, and makes eight chains. Then ask in this order. Do the chains have warnings? Do they
# agree in **function space**, about each held-out person? The quantity is what the score is
# made of, the log density of that person's target.

# %% tags=["nbval-ignore-output"]
chain = sample(posterior, seed=1)
chain


# %%
def log_probs(posterior, draws, new):
    """Of each target by each draw, (chains, draws, M), in the table's units."""
    outputs = [posterior.outputs(one, new.x) for one in draws]  # chain by chain
    return torch.stack([posterior.likelihood.log_probs(each, new.y) for each in outputs])


# %% tags=["nbval-ignore-output"]
found = convergence(log_probs(posterior, chain.draws, held_out), held_out.x)
found

# %%
assert chain.warnings == [] and found.is_converged
print("verdict: no warnings; at each held-out row R-hat is below 1.01, and ESS above 800")

# %% [markdown]
# ## Held-out scores, and a method to beat
# A score by itself says little. A linear regression with a Bayesian prior takes a millisecond
# (scikit-learn's `BayesianRidge`): does the network beat it? Three scores of each person's
# prediction: error of the mean (RMSE), the log of the predictive density (**log score**), and
# CRPS, which asks for the whole distribution in the table's units. Ten splits, the same for
# all.


# %%
def scores(draws, log_density, y):
    """Of predictive draws (S, M) in the table's units, and log densities (M,) there."""
    return {
        "RMSE": rmse(draws.mean(0), y), "log score": log_density.mean().item(),
        "CRPS": crps(draws, y).mean().item(), "covered": coverage(draws, y).value,
    }  # fmt: skip


def by_network(posterior, draws, new):
    predicted = posterior.predictive_draws(draws, new.x, seed=0).flatten(0, 1)
    return scores(predicted, log_score(log_probs(posterior, draws, new)), new.y)


def by_ridge(train, new):
    learned = Data(*parts(train))
    ridge = BayesianRidge().fit(learned.x.numpy(), learned.y.numpy())
    mean, std = ridge.predict(new.x.numpy(), return_std=True)
    noise = np.random.default_rng(0).standard_normal((2000, len(mean)))
    predicted = torch.from_numpy(mean + std * noise).float()
    return scores(predicted, torch.from_numpy(norm.logpdf(new.y.numpy(), mean, std)), new.y)


# %%
def of_split(seed):
    """A row of scores for each method; and whether the chains passed."""
    train, test = train_test_split(people, test_size=100, random_state=seed)
    posterior, new = model(train), Data(*parts(test))
    chain = sample(posterior, ChEES(), 500, num_chains=8, warmup=300, seed=seed, progress=False)
    with warnings.catch_warnings():  # a lower climb has not ended: the highest counts
        warnings.simplefilter("ignore", RuntimeWarning)
        highest = find_map(posterior, num=4, seed=seed, progress=False).theta[:1]
    rows = {
        "Bayesian network": by_network(posterior, chain.draws, new),
        "MAP": by_network(posterior, highest.expand(1, 2000, -1), new),
        "Bayesian ridge": by_ridge(train, new),
    }
    worst = rhat(posterior.predict(chain.draws, new.x)).max().item()
    return [{"method": name, "split": seed, "R-hat": worst} | row for name, row in rows.items()]


table = pd.DataFrame([row for seed in range(10) for row in of_split(seed)])

# %%
assert table["R-hat"].max() < 1.02
print("verdict: the chains of all ten splits agree, R-hat of each prediction is below 1.02")

# %% tags=["nbval-ignore-output"]
plots.scores(
    table, ["RMSE", "log score", "CRPS", "covered"],
    title="The network predicts a little better than a linear regression, and than its MAP",
)  # fmt: skip

# %% [markdown]
# Compare in pairs, split by split. Splits share their rows, so ten differences say less than
# ten independent ones, and the errors allow for that ([Nadeau and Bengio
# 2003](https://doi.org/10.1023/A:1024068626366)).


# %%
def gain(column, over):
    """Mean difference of the Bayesian network's score to another's, with its standard error."""
    by_split = table.pivot(index="split", columns="method", values=column)
    return mean_difference(by_split["Bayesian network"] - by_split[over], overlap=100 / 342)


def told(column, over):
    return "{:+.3f} ± {:.3f}".format(*gain(column, over))


# %% tags=["nbval-ignore-output"]
others, columns = ("MAP", "Bayesian ridge"), ("RMSE", "log score", "CRPS")
pd.DataFrame([[told(c, over) for c in columns] for over in others], others, columns)

# %%
mine = table[table["method"] == "Bayesian network"]
covered = mine["covered"].mean()
for other in others:
    assert -0.1 < gain("CRPS", over=other).value / mine["CRPS"].mean() < 0
assert 0.85 < covered < 0.95
print("verdict: the network's CRPS is lower than that of both others, and by less than 10 %;")
print("nine-in-ten intervals hold 85 to 95 % of the held-out targets")

# %% [markdown]
# That is a result, and a common one: in a few hundred noisy rows there is not much for a
# network to find that a linear regression does not. Whether some per cent are worth a network
# is for you to say, and the table says how sure the per cent are. One network alone, the MAP,
# predicts worse than the average of many.
#
# ## A table that does not converge
# Cells from 569 tumours (Street, Wolberg and Mangasarian 1993): predict a cell's area from
# eight other measures. Hardly anything is noisy here: the area almost follows from perimeter
# and compactness, as that was computed as perimeter squared, divided by area, minus 1.

# %%
cells = load_breast_cancer(as_frame=True).frame.filter(like="mean ").astype("float32")
cells = cells.drop(columns="mean radius")
train, test = train_test_split(cells, train_size=300, random_state=0)
posterior = model(train, target="mean area")
print(posterior)

# %% tags=["nbval-ignore-output"]
chain = sample(posterior, ChEES(), 300, num_chains=8, warmup=300, seed=1)
for warning in chain.warnings:
    print(f"- {warning}\n")

# %% [markdown]
# Read warnings from the bottom: chains don't agree, so nothing else may be believed. Then look
# for the cause above it. In what do the chains differ? Here are the noise that each has
# inferred, and how high each stands.

# %% tags=["nbval-ignore-output"]
held_out = Data(*parts(test, "mean area"))
noise = chain.draws[..., -1].exp() * train["mean area"].std()
log_density = log_probs(posterior, chain.draws, held_out)
by_chain = pd.DataFrame({
    "noise": noise.mean(1), "log joint": chain.stats["lp"].mean(1),
    "log score": [log_score(one).mean().item() for one in log_density],
})  # fmt: skip
by_chain.round(2)

# %%
plots.ranks(
    torch.stack([noise[:4], chain.stats["lp"][:4]], dim=-1), ["noise", "log joint"],
    title="Chains differ in the noise, and in how high they stand",
)  # fmt: skip

# %%
r_hat = rhat(posterior.predict(chain.draws, held_out.x))
assert r_hat.max() > 1.1
print("verdict: the chains don't agree about the area of cells")

# %% [markdown]
# Where targets are met to within a few per cent of their spread, the posterior is a thin curved
# sheet. The step size has to be as small as the sheet is thin, and the way along it is as long
# as ever: thousands of steps, where one transition makes 1,000 at most. Chains fit to different
# depths and stay there.
#
# What can be done?
#
# 1. Run longer. The last warning names the effective sample size, and how much is wanted: their
#    ratio is how much longer, at the least.
# 2. Start better (`init="map"`), or take another kernel (`MAMS()`). Try it; when we did, it was
#    no cure.
# 3. *Describe the data better.* A thin sheet often says that a network spends its weights on
#    something that could have been written down.
#
# An area is a square of lengths. In logarithms products become sums, and what was a curved
# function is nearly a plane. So take the logarithms of area and perimeter, and no hidden units
# at all.

# %% tags=["nbval-ignore-output"]
lengths = ["mean area", "mean perimeter"]
train_logs, test_logs = train.copy(), test.copy()
for part in (train_logs, test_logs):
    part[lengths] = np.log(part[lengths])
linear = model(train_logs, hidden=0, target="mean area")
straight = sample(linear, ChEES(), 1000, num_chains=8, warmup=300, seed=1)
straight

# %%
logs = Data(*parts(test_logs, "mean area"))
assert rhat(linear.predict(straight.draws, logs.x)).max() < 1.01
assert straight.warnings == []
print("verdict: ten parameters converge, without a warning")

# %% [markdown]
# And is it as good? Draw areas from both predictive distributions, in the table's units: those
# of the linear model are logarithms, so take their exponential.

# %%
drawn = {
    "network": posterior.predictive_draws(chain.draws, held_out.x, seed=0),
    "line of logarithms": linear.predictive_draws(straight.draws, logs.x, seed=0).exp(),
}
found = {
    name: {
        "RMSE": rmse(areas.mean((0, 1)), held_out.y),
        "CRPS": crps(areas.flatten(0, 1), held_out.y).mean().item(),
        "covered": coverage(areas.flatten(0, 1), held_out.y).value,
    }
    for name, areas in drawn.items()
}

# %% tags=["nbval-ignore-output"]
pd.DataFrame(found).T.round(2)

# %%
better, worse = found["line of logarithms"], found["network"]
assert better["CRPS"] < worse["CRPS"]
print("verdict: ten parameters that converge predict areas better than a network that does not")

# %% [markdown]
# The network's numbers above are of no use in any case: another seed gives others. Had they
# been the better ones, it would have been an ensemble with a good score, which one may use, and
# not a posterior, of which one may say what is likely.
#
# Four tables about which others have published results stand in `benchmarks/uci.md`, with other
# methods beside HMC: where chains agree, where they don't, and in what they differ there.
# `bnn_utils.datasets` downloads these tables.
#
# ## What to report
# Enough for a reader to judge, and to repeat:
#
# - the data: rows, columns, how they were divided, in which units scores are,
# - the model: network, prior, likelihood, and what the prior expects,
# - the sampler: kernel, chains, draws, warm-up, seed, versions,
# - whether it converged: R-hat and ESS of the quantities that you report, warnings,
# - scores on held-out rows beside a simple method, in pairs, with errors; what intervals cover.

# %% tags=["nbval-ignore-output"]
report = {
    "data": f"{len(people)} rows, 10 splits with 100 held out, scores in the table's units",
    "model": repr(model(people)),
    "sampler": "8 chains of ChEES, 500 draws after 300 of warm-up, seeds 0 to 9",
    "largest R-hat of a prediction": f"{table['R-hat'].max():.3f}",
    "RMSE of the mean": f"{mine['RMSE'].mean():.1f}",
    "less than Bayesian ridge's, by": told("RMSE", over="Bayesian ridge"),
    "90 % intervals cover": f"{covered:.0%}",
    "torch": torch.__version__,
}
pd.Series(report).to_frame("")

# %% [markdown]
# ## What to remember
# - Units first: `Standardise` inside the model, so that priors mean what they say.
# - Ask the prior, then one network, then chains: each step finds the mistakes of its kind.
# - Chains agree about what you report, or there is no posterior to report.
# - Where they don't, look at which chains differ in what. A better description of the data
#   is worth more than a better sampler.
# - Have a simple method beside the network, and say by how much it is worse, or better.
#
# **Next:** [14. A kernel, a likelihood and a prior of your own](14_your_own_kernel.ipynb)
