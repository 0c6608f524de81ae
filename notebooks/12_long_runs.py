# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12. Long runs
#
# So far every run was over before the coffee was cold. A run that takes a night is another
# matter. Somebody closes the laptop, the power fails, the cluster's time is up. One wants to
# look at it before the morning, to let more processors help, and to know beforehand whether the
# draws will fit on the disk. This notebook does all of that to runs of a few seconds, because
# long ones are made of the same parts. Words in bold are in the [glossary](glossary.md).
#
# You will see
# - what a chain is between two transitions, and that it goes on from there to the bit,
# - a run that is watched from outside, then killed, and then finished as if nothing had been,
# - two processes, and a small cluster that loses a worker, making the very same draws,
# - what a run will cost, told from its first twenty transitions,
# - what it saves, and what it costs, to keep one draw of each ten,
# - a kernel of your own, in a dozen lines, which gets all of this for nothing.
#
# This is notebook 12 of 16, and takes some 59 s on two cores. Before it comes [11.
# Samplers](11_samplers.ipynb), after it [13. From a table to a posterior that one may
# believe](13_real_data.ipynb).

# %%
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, Chain, NormalPrior, Posterior, boxes, plots, sample
from bnn_utils import square_grid
from bnn_utils.diagnostics import rhat
from bnn_utils.kernels.base import Info
from bnn_utils.run import advance

scratch = TemporaryDirectory(ignore_cleanup_errors=True)
os.chdir(scratch.name)  # the runs below leave folders behind, which vanish with this one

# %%
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
posterior = Posterior(net, boxes(), prior=NormalPrior(precision=0.09), likelihood=Bernoulli())
kernel = HMC(step_size=0.05, num_steps=16)

# %% [markdown]
# ## What a chain is made of
# Stop a chain between two **transitions**. What does it need to go on? Where it is, with
# whatever the sampler has learned: the *state*. What chance will bring: the state of the random
# number generator, its *stream*. And how many transitions have been: a *number*, which says
# when the warm-up ends. These three are a **checkpoint**, and nothing else is needed.

# %%
chain = sample(posterior, kernel, num_samples=200, num_chains=4, seed=1, progress=False)

(checkpoint,) = chain.run.checkpoints
print("state: ", ", ".join(checkpoint.state._fields))
print("stream:", f"{checkpoint.rng.numel():,} bytes")
print("number:", checkpoint.done)

# %% [markdown]
# From one checkpoint to the next leads a function, `advance`. It looks at no clock, keeps no
# notes, and has nobody to ask: the same arguments give the same result. The public way to call
# it is `chain.extend`. So take a chain of 200 draws, and 100 more by each of the two. Guess: to
# how many digits do they equal draws 201 to 300 of a chain that was longer from the beginning?

# %%
whole = sample(posterior, kernel, num_samples=300, num_chains=4, seed=1, progress=False)
(plan,) = chain.run.plans
_, info = advance(plan, checkpoint, 100)

assert torch.equal(info.theta, whole.draws[:, 200:])
assert torch.equal(chain.extend(100, progress=False).draws, whole.draws)
print("verdict: the same to the last bit, by advance and by extend")

# %% [markdown]
# All that follows is this function, called in other places and at other times.
#
# ## A run in another process
# Give `sample` a folder, and its draws and checkpoints go there while it runs:
# `store="night.zarr"`. To have a run that we can kill without hurting this notebook, here is a
# little program. It takes the folder and the number of draws from its command line.

# %%
PROGRAM = """
import sys
from torch import nn
from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, sample

net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
posterior = Posterior(net, boxes(), prior=NormalPrior(precision=0.09), likelihood=Bernoulli())
sample(
    posterior, HMC(step_size=0.05, num_steps=16), num_samples=int(sys.argv[2]), num_chains=4,
    warmup=100, seed=1, compile=False, progress=False, store=sys.argv[1],
)
"""
Path("program.py").write_text(PROGRAM)


def command(folder, num_samples):
    return [sys.executable, "program.py", folder, str(num_samples)]


# %% [markdown]
# We ask for 200,000 draws of each of four chains, some minutes of work, and watch from here.
# `Chain.load` reads what is in the folder, also while the run goes on: all up to the last
# checkpoint, one of which is made every five seconds. Another notebook could do the same, or,
# as the folder is in [Zarr's format](https://zarr.dev), a program that has never heard of us.


# %%
def so_far(folder):
    """The chain as it is now, None as long as there are no draws."""
    try:
        return Chain.load(folder)
    except (FileNotFoundError, ValueError):
        return None


process = subprocess.Popen(command("night.zarr", 200_000))
begin, looks = time.perf_counter(), []
while len({count for _, count, _ in looks}) < 3 and process.poll() is None:
    seen = so_far("night.zarr")
    looks.append((time.perf_counter() - begin, seen.num_draws if seen else 0, seen))
    time.sleep(0.25)

# %% [markdown]
# Left, when how many draws were there: at first none, because Python and PyTorch have to start.
# Right, what each chain says of the centre of the plane, averaged over its draws so far, and in
# the title how well they agree ([notebook 4](04_diagnostics.ipynb)). Is it worth its night?

# %% tags=["nbval-ignore-output"]
seconds, counts, found = zip(*looks, strict=True)
centre = torch.zeros(1, 2).to(posterior.data.x)
p = posterior.predict(seen.draws, centre)[..., 0]
average = p.cumsum(1) / torch.arange(1, seen.num_draws + 1)
title = f"A run seen from outside: R-hat is {rhat(p).item():.2f} so far"
plots.watched(seconds, counts, average, "average so far, in the centre", title)

# %%
assert process.poll() is None, "it is still running"
earlier = [look for look in found if look]
assert list(counts) == sorted(counts) and len(earlier) > 1
assert all(torch.equal(look.draws, seen.draws[:, : look.num_draws]) for look in earlier)
print("verdict: each look shows the draws of the look before, and more")

# %% [markdown]
# Whoever looks early sees early whether chains will agree, or why they can't
# ([notebook 6](06_convergence.ipynb)), and need not wait for the morning.
#
# ## Killed in the middle
# Now the power fails. `kill` ends the process at once: it can't write a last word.

# %%
process.kill()
process.wait()
left = so_far("night.zarr")
assert left.num_draws >= seen.num_draws
print("the process is dead, and its draws up to the last checkpoint are there")

# %% [markdown]
# What to do? *The same call again.* It finds the folder, sees that it is the same run, and goes
# on from the last checkpoint. (Here it is asked for 1,000 draws more than there are, because we
# don't have the minutes for all.) Beside it, into another folder, a run of the same length that
# nobody disturbs. Guess: from which draw on will the two differ?

# %%
num_samples = left.num_draws + 1000
for folder in ("night.zarr", "undisturbed.zarr"):
    subprocess.run(command(folder, num_samples), check=True)

killed, undisturbed = Chain.load("night.zarr"), Chain.load("undisturbed.zarr")
assert killed.num_draws == num_samples
assert torch.equal(killed.draws, undisturbed.draws)
assert all(torch.equal(killed.stats[name], undisturbed.stats[name]) for name in killed.stats)
print("verdict: all draws, and all their statistics, are those of the undisturbed run")

# %% [markdown]
# From none. What was drawn after the last checkpoint was lost with the process, and was drawn
# again, with the same random numbers. The same holds for Ctrl-C, for a full disk and for a
# queue that ends the job: call again.
#
# How does it know that it is the same run? Suppose somebody thinks that the steps are too
# small, doubles them, and forgets to change the folder:

# %%
bold = HMC(step_size=0.1, num_steps=16)
settings = {"num_chains": 4, "warmup": 100, "seed": 1, "compile": False, "progress": False}
try:
    sample(posterior, bold, num_samples, **settings, store="night.zarr")
    raise AssertionError("two runs in one folder")
except ValueError as error:
    print(error)

# %% [markdown]
# The error says what differs. Half of the draws from one kernel and half from another, in one
# folder, would be nobody's posterior. The fix is a folder for each run:

# %%
other = sample(posterior, bold, 200, **settings, store="bold.zarr")
assert torch.equal(Chain.load("bold.zarr").draws, other.draws)
print("two runs, two folders")

# %% [markdown]
# ## Who computes it
# If it does not matter when a segment of a chain is computed, nor how often, it can't matter
# where. Chains are shared out in groups. Each **batch**, as such a group is called, has a
# random stream of its own, so draws depend on how chains are grouped, and on nothing else: not
# on how many processes there are (`workers=2`), nor on whether they are on this machine.

# %%
settings |= {"num_samples": num_samples // 4, "batch_size": 2}
alone = sample(posterior, kernel, **settings)
by_two = sample(posterior, kernel, **settings, workers=2)
assert torch.equal(alone.draws, by_two.draws)
print("verdict: two batches of two chains, the same in one process and in two")

# %% [markdown]
# Machines of a cluster come in by an *executor*, the interface of Python's own
# `concurrent.futures`. [Dask](https://distributed.dask.org) has one. Here its cluster is two
# processes on this machine; on a hundred machines the call is the same. Half a second after the
# start, we kill one of the two.


# %%
def with_a_death(client):
    """The run on a cluster, of which one worker is killed on the way."""
    client.run(exec, "import bnn_utils")  # takes seconds, in which nothing would be computed
    victim = min(client.run(os.getpid).values())
    with ThreadPoolExecutor(1) as thread:
        call = settings | {"executor": client.get_executor()}
        run = thread.submit(sample, posterior, kernel, **call)
        time.sleep(0.5)
        assert not run.done(), "it is in the middle"
        os.kill(victim, signal.SIGKILL)
        return run.result()


# %% tags=["nbval-ignore-output"]
if find_spec("distributed"):
    from dask.distributed import Client, LocalCluster

    place = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**place, silence_logs="CRITICAL") as cluster, Client(cluster) as client:
        assert torch.equal(alone.draws, with_a_death(client).draws)
    print("verdict: a worker died, and the draws are the same")
else:
    print("dask is not installed, so no cluster: pip install -e '.[dask]'")

# %% [markdown]
# What the dead worker had in hand is sent to another one: a checkpoint and a number of
# transitions, some kilobytes.
#
# ## What will it cost?
# Before a night is spent: how long will it take, and how large will it get? Twenty transitions
# tell. Each draw needs so many bytes for `theta` and for its statistics, wherever it is kept.


# %%
def price(num_chains, num_draws):
    """What a run will cost, as told by twenty transitions of it."""
    probe = sample(posterior, kernel, 20, num_chains, seed=1, compile=False, progress=False)
    kept = [probe.draws, *probe.stats.values()]
    size = sum(part.element_size() * part[:, 0].numel() for part in kept)
    each = probe.sampling_time / 20
    return {
        "chains": num_chains, "ms per transition": 1000 * each, "bytes per draw": size,
        "minutes": num_draws * each / 60, "GB": num_draws * size / 1e9,
    }  # fmt: skip


# %% [markdown]
# A run of 10,000 draws, with more and more chains. Guess first: 64 chains are 64 times as large
# as one. Do they also take 64 times as long? ("Bytes per draw" are those of all chains.)

# %% tags=["nbval-ignore-output"]
pd.DataFrame([price(num_chains, 10_000) for num_chains in (1, 64, 1024)]).round(3)

# %% [markdown]
# Memory grows with the number of chains, time hardly does at first: a transition of few chains
# is mostly overhead ([notebook 3](03_hmc.ipynb)). Add the warm-up, whose transitions cost as
# much as others and are not kept.
#
# How good is such a forecast? Here is a real run of 64 chains.

# %%
forecast = price(64, num_draws=600)
many = sample(
    posterior, kernel, 600, num_chains=64, seed=1, compile=False, progress=False,
    store="many.zarr",
)  # fmt: skip
size = sum(part.nbytes for part in (many.draws, *many.stats.values()))
on_disk = sum(path.stat().st_size for path in Path("many.zarr").rglob("*") if path.is_file())
assert abs(size / (1e9 * forecast["GB"]) - 1) < 1e-6 and 1 < on_disk / size < 2
# 12 times 0.94 to 1.07 with all cores busy; the room is for programs that come or go meanwhile.
assert 1 / 5 < many.sampling_time / (60 * forecast["minutes"]) < 5
print("verdict: the size is as forecast, the folder less than twice as large,")
print("and the time is within a factor of 5")

# %% [markdown]
# Why twice? A folder also holds the last two checkpoints, and each of them holds the draws
# that don't fill a file yet, some megabytes at most. For a large run that is nothing. And time
# is a forecast like that of the weather: other programs share the processor.
#
# ## One draw of each ten
# A draw resembles the one before. **Thinning** keeps one of each ten and forgets the others:
# `thin=10`. That saves nine tenths of the memory and of the disk, and no time at all, as the
# draws in between have to be made.

# %%
settings = {"num_chains": 64, "seed": 1, "compile": False, "progress": False}
thinned = sample(posterior, kernel, num_samples=60, **settings, thin=10)
assert torch.equal(thinned.draws, many.thin(10).draws)
print("thin=10 in a run, and chain.thin(10) after it, keep the same draws")

# %% [markdown]
# What does it cost? Average a prediction over the draws of one chain. The 64 chains give 64
# averages, which differ, and their variance says what one is worth: twice the variance, half
# the worth. So compare the variance with all draws to that with one of each `k`, at 49 places.
# At which `k` do you expect to notice?

# %%
places = square_grid(num=7, limit=6.0, like=posterior.data.x)
# Chain by chain, which needs less memory than all at once; (chains, draws, places).
p = torch.stack([posterior.predict(draws, places) for draws in many.draws])


def variance(p):
    """Of averages over one chain, at each place."""
    return p.mean(1).var(0)


keep = (1, 2, 5, 10, 20, 50, 100)
worth = torch.stack([variance(p) / variance(p[:, k - 1 :: k]) for k in keep])
worths = {"at the typical place": worth.median(1).values, "where it costs most": worth.amin(1)}
plots.thinning(keep, worths, title="Memory falls at once, what averages are worth falls late")

# %%
typical, least = worths.values()
first = variance(p) / variance(p[:, :60])  # the first 60 draws, which need as much memory
# Over 12 seeds 0.97 +- 0.02, 0.20 +- 0.05 and 0.16 +- 0.06.
assert typical[keep.index(10)] > 0.8 and least[keep.index(100)] < 0.5
assert first.median() < 0.5
print("verdict: a tenth of the draws is worth more than 80 % of all at the typical place, and")
print("as many draws in a row less than 50 %; one of each hundred costs half somewhere")

# %% [markdown]
# So thinning makes nothing better. It is for draws that don't fit, or whose predictions take
# longer to compute than they are worth. Keep at least one draw in each stretch over which draws
# resemble each other; what varies quickly from draw to draw pays first.
#
# ## Predictions in place of draws
# A large network has many parameters, and you may ask for a few predictions only. `keep=` takes
# functions of `theta` and records what they say at each draw, beside the draws or in their
# place. Here are three places that we want to know about, and no draws.

# %%
asked = [0, 24, 48]
wanted = {"p": lambda theta: posterior.predict(theta, places[asked])}
told = sample(posterior, kernel, 600, **settings, keep=wanted, keep_draws=False)
assert torch.allclose(told.kept["p"], p[..., asked])
share = told.kept["p"].nbytes / many.draws.nbytes
print(f"{len(asked)} probabilities at each draw, those of the run before,")
print(f"in {share:.0%} of the memory that theta takes")

# %% [markdown]
# And a million draws of 64 chains? Draws that take more than 64 MB stay in their folder, and so
# does what was kept. `chain.expectation` averages a function over all of them, some at a time;
# tables look at one draw in so many, and say so; `chain.thin(100)` brings some into memory, for
# all else.

# %%
mean = many.expectation(lambda theta: posterior.predict(theta, places))
assert torch.allclose(mean, p.mean((0, 1)))
print("the mean over all draws, some at a time, is the mean over all at once")

# %% [markdown]
# ## A kernel of your own
# All of this asks of a **kernel** that it keeps no secrets: that what it needs next is in the
# state that it returns. Here is the oldest one, the random walk of Metropolis and others
# (1953): take a step at random, and stay where you were if the density there is too small.


# %%
class Walk(NamedTuple):
    theta: torch.Tensor  # (chains, parameters)
    log_prob: torch.Tensor  # (chains,)


class RandomWalk(NamedTuple):
    width: float
    lanes_per_chain = 1

    def init(self, density, theta, num_warmup):
        return Walk(theta, density.joint.log_prob_and_grad(theta)[0])

    def step(self, density, generator, state):
        noise = torch.empty_like(state.theta).normal_(generator=generator)
        there = state.theta + self.width * noise
        log_prob = density.joint.log_prob_and_grad(there)[0]
        u = torch.empty_like(log_prob).uniform_(generator=generator)
        is_accept = u.log() < log_prob - state.log_prob
        theta = torch.where(is_accept[:, None], there, state.theta)
        state = Walk(theta, torch.where(is_accept, log_prob, state.log_prob))
        return state, Info(*state, {"is_accept": is_accept})


# %% [markdown]
# It has never heard of folders, workers or checkpoints. So send it through all doors at once:
# two processes draw into a folder, stop, and go on. Will it come out the same?

# %%
settings = {"num_chains": 4, "batch_size": 2, "seed": 1, "progress": False}
walk = RandomWalk(width=0.1)
short = sample(posterior, walk, 500, **settings, workers=2, store="walk.zarr")
longer = short.extend(500, progress=False)
plain = sample(posterior, walk, 1000, **settings)
assert torch.equal(longer.draws, plain.draws)
assert torch.equal(Chain.load("walk.zarr").draws, plain.draws)
assert 0 < plain.stats["is_accept"].double().mean() < 1
print("verdict: in two processes, in a folder, extended: the same draws as in one go")

# %% [markdown]
# Whether a kernel is *right* is another question, and [notebook 7](07_trust.ipynb) asks it.
#
# ## What to remember
# - A chain between two transitions is a state, a random stream and a number. From there it goes
#   on to the bit, whenever and wherever.
# - `store=` for whatever takes longer than you would like to wait twice. After any end: the
#   same call again.
# - `Chain.load` on the folder of a run that goes on. Look early, and stop what won't converge.
# - `workers=` and `executor=` change who computes, and never what.
# - Ask twenty transitions what ten thousand will cost.
# - Thinning saves memory, not time, and makes no average better; `keep=` records predictions.
# - A kernel that returns all that it needs next gets all of this without a line of code.
#
# **Next:** [13. From a table to a posterior that one may believe](13_real_data.ipynb)
