# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10. One vector, many packages
#
# In [notebook 2](02_model.ipynb) all weights of a network went into one flat vector. Here is
# what that buys. A density over a flat vector is the one thing that every optimiser, every
# sampler and every approximation knows how to take. Write the network once, in PyTorch, and
# hand it to all of them.
#
# You will see
# - two doors out of PyTorch: one function for NumPy and SciPy, one for JAX,
# - about a dozen methods, most of them from other packages, on one posterior, in one loop,
# - which of them miss one of the two kinds of network of [notebook 6](06_convergence.ipynb),
#   and which only seem not to,
# - how draws from elsewhere come home.
#
# Words in bold are in the [glossary](glossary.md).
#
# None of the other packages has to be there. What is not installed is left out, by name:
# `pip install -e '.[peers]'` gets all of them.
#
# This is notebook 10 of 16, and takes some 45 s on two cores. Before it comes [9. Your own
# network, your own data](09_your_own.ipynb), after it [11. Samplers](11_samplers.ipynb).

# %%
import os
import time
import timeit
from importlib.util import find_spec

# Vectors of 20 numbers are not worth sharing between cores. NumPy has to know before it comes.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import nn

from bnn_utils import HMC, MAMS, MCLMC, NUTS, Bernoulli, Chain, ChEES, Hamiltorch, NormalPrior
from bnn_utils import Posterior, ReplicaExchange, boxes, plots, reference, sample, widgets
from bnn_utils.diagnostics import convergence, rhat
from bnn_utils.gradients import LogDensity
from bnn_utils.symmetry import fold

torch.set_num_threads(1)
data = boxes(n=80, seed=1234)
net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
posterior = Posterior(net, data, prior=NormalPrior(precision=0.09), likelihood=Bernoulli())

# %% [markdown]
# ## Two doors
# `posterior.numpy()` is a function of a NumPy array that returns the log density and its
# gradient. `posterior.jax()` is a function that JAX can differentiate, compile and map over
# rows; inside, PyTorch still does the work. Both take one vector of 20 numbers, or many.

# %%
theta = posterior.sample_prior(3, torch.Generator().manual_seed(0)).numpy()
value, gradient = posterior.numpy()(theta)
print("NumPy:", value.shape, gradient.shape)
assert np.allclose(value, posterior.log_prob(torch.from_numpy(theta)), rtol=1e-12)

# %% tags=["nbval-ignore-output"]
if find_spec("jax"):
    import jax

    jax.config.update("jax_enable_x64", True)  # JAX's own default is single precision
    value_too, gradient_too = jax.jit(jax.vmap(jax.value_and_grad(posterior.jax())))(theta)
    assert np.allclose(value_too, value, rtol=1e-12) and np.allclose(gradient_too, gradient)
    print("JAX:  ", value_too.shape, gradient_too.shape)
else:
    print("JAX is not installed, so the packages that need it are left out below")

# %% [markdown]
# ## Count everybody's work
# Seconds depend on the machine, and on how far the way is to PyTorch and back. So we also count
# *evaluations*: at how many vectors the density was asked for, with its gradient or without. A
# batch of 64 vectors counts 64. The counter sits inside the posterior, where nobody gets past
# it: every door and every kernel of this library asks for its `density`, and the joint density
# of this posterior is its likelihood, which we count, and its prior.


# %%
class Counted(Posterior):
    """A posterior that counts at how many vectors it was evaluated."""

    evaluations = 0

    def log_prob(self, theta):
        self.evaluations += theta.numel() // self.dim
        return super().log_prob(theta)

    def density(self, num_lanes, compile=False):
        density = super().density(num_lanes, compile)
        of = density.likelihood
        density.likelihood = LogDensity(
            self.counting(of.log_prob_and_grad), self.counting(of.grad)
        )
        return density

    def counting(self, function):
        def call(theta):
            self.evaluations += len(theta)
            return function(theta)

        return call


# %%
def starts(model, num, seed=1):
    """Everybody starts at draws from the prior."""
    return model.sample_prior(num, torch.Generator().manual_seed(seed))


# %% [markdown]
# ## A point, and two bells
# SciPy looks for the highest point of the density, from 50 starts, and we keep the best: the
# **maximum a posteriori** of notebook 2. As a chain it has one draw.
#
# The **Laplace approximation** puts a Gaussian there that is bent like the density at its top.
# The bend is a matrix of second derivatives: differences of 40 gradients, taken in one batch.


# %%
def uphill(model, start):
    f = model.numpy()
    return minimize(lambda theta: [-v for v in f(theta)], start, jac=True, method="L-BFGS-B")


def optimum(model):
    found = [uphill(model, start) for start in starts(model, 50).numpy()]
    best = min(found, key=lambda result: result.fun)
    return Chain.from_draws(best.x[None, None], model)


def gaussian_at(model, mode):
    """4,000 draws of the Gaussian that is bent like the density at its top, ``mode (20,)``."""
    f, step = model.numpy(), 1e-4 * np.eye(model.dim)
    bend = (f(mode - step)[1] - f(mode + step)[1]) / 2e-4
    root = np.linalg.cholesky((bend + bend.T) / 2)
    noise = np.random.default_rng(1).normal(size=(model.dim, 4000))
    return Chain.from_draws((mode + np.linalg.solve(root.T, noise).T)[None], model)


def laplace(model):
    return gaussian_at(model, optimum(model).draws[0, 0].numpy())


# %% [markdown]
# **Variational inference** also ends with a Gaussian, but looks for the one that resembles the
# posterior most: it climbs the expected log density under the Gaussian plus the Gaussian's
# entropy (Kucukelbir et al. 2017), by a plain optimiser of PyTorch's. The Gaussian has a full
# covariance matrix: `factor` times its own transpose.


# %%
def variational(model):
    generator = torch.Generator().manual_seed(1)
    mean = starts(model, 1)[0].requires_grad_()
    factor = (0.1 * torch.eye(model.dim, dtype=mean.dtype)).requires_grad_()

    def draw(num):
        noise = torch.randn(num, model.dim, generator=generator, dtype=mean.dtype)
        return mean + noise @ factor.tril().T

    optimiser = torch.optim.Adam([mean, factor], lr=0.02)
    for _ in range(5000):
        loss = -model.log_prob(draw(32)).mean() - factor.diagonal().abs().log().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Chain.from_draws(draw(4000).detach()[None], model)


# %% [markdown]
# ## Samplers from elsewhere
# **NUTS** is Hamiltonian Monte Carlo that chooses its number of steps itself: it rolls until
# the path turns back. NumPyro has it in JAX, and takes `-log_prob` as a `potential_fn`. nutpie
# has it in Rust, and takes a function that makes the function: just what `model.numpy` is. Both
# get their defaults, but for one: a path may have 63 leapfrog steps at most, about as many as
# our own HMC below. They would take up to 1,023, which nobody here has the time for.


# %%
def nuts_numpyro(model):
    from numpyro.infer import MCMC, NUTS

    log_prob = model.jax()
    kernel = NUTS(potential_fn=lambda theta: -log_prob(theta), max_tree_depth=6)
    mcmc = MCMC(
        kernel, num_warmup=100, num_samples=150, num_chains=4, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(1), init_params=starts(model, 4).numpy())
    return Chain.from_draws(np.array(mcmc.get_samples(group_by_chain=True)), model)


# %%
def nuts_nutpie(model):
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    compiled = from_pyfunc(
        ndim=model.dim,
        make_logp_fn=model.numpy,
        make_expand_fn=lambda seed1, seed2, chain: lambda theta: {"theta": theta},
        expanded_names=["theta"],
        expanded_shapes=[(model.dim,)],
        expanded_dtypes=[np.dtype("float64")],
        make_initial_point_fn=lambda seed: starts(model, 1, seed)[0].numpy(),
    )
    trace = nutpie.sample(
        compiled, tune=100, draws=150, chains=4, seed=1, maxdepth=6, progress_bar=False,
        cores=1,  # chains in parallel only wait for each other: Python runs one at a time
    )  # fmt: skip
    return Chain.from_arviz(trace, model, sampler="NUTS, by nutpie")


# %% [markdown]
# emcee needs no gradient at all. Its 64 walkers are an **affine-invariant ensemble**: each
# moves along the line to another one. **Sequential Monte Carlo**, here BlackJAX's, takes 512
# draws from the prior, its particles, and lets the data count a little more at each step: good
# particles are copied, bad ones dropped, and all are moved by HMC. It wants prior and
# likelihood apart. The prior is a line of JAX, and the likelihood is what remains.


# %%
def ensemble(model):
    import emcee

    f = model.numpy()
    sampler = emcee.EnsembleSampler(64, model.dim, lambda theta: f(theta)[0], vectorize=True)
    sampler.random_state = np.random.RandomState(1).get_state()
    sampler.run_mcmc(starts(model, 64).numpy(), 1000, thin_by=10)
    return Chain.from_draws(sampler.get_chain(discard=500).swapaxes(0, 1), model)


# %%
def sequential(model):
    import blackjax
    from blackjax.smc.resampling import systematic

    log_joint, scale = model.jax(), model.prior.precision**-0.5

    def log_prior(theta):
        return jax.scipy.stats.norm.logpdf(theta, scale=scale).sum()

    def log_likelihood(theta):
        return log_joint(theta) - log_prior(theta)

    @jax.jit
    def step(key, state, step_size):
        settings = {
            "step_size": step_size,
            "inverse_mass_matrix": jax.numpy.ones(model.dim),
            "num_integration_steps": 16,
        }
        return blackjax.adaptive_tempered_smc(
            log_prior, log_likelihood, blackjax.hmc.build_kernel(), blackjax.hmc.init,
            blackjax.smc.extend_params(settings), systematic, target_ess=0.7, num_mcmc_steps=2,
        ).step(key, state)  # fmt: skip

    state = blackjax.smc.tempered.init(starts(model, 512).numpy())
    key, step_size, power = jax.random.key(1), 0.5, 0.0
    while power < 1:
        key, now, last = jax.random.split(key, 3)
        state, info = step(now, state, step_size)
        power = state[-1]  # to which the likelihood is taken
        step_size *= np.exp(info.update_info.acceptance_rate.mean() - 0.75)
    state, _ = step(last, state, step_size)  # the particles had weights: now they are equal
    return Chain.from_draws(np.array(state.particles)[None], model)


# %% [markdown]
# ## The table
# Our own samplers are one line each, and hamiltorch, if it is there, is a kernel among them.
# `MCLMC` rejects nothing, and is biased for it: its name says so wherever its speed is shown.
# Each row of `METHODS` is a name, what has to be installed, and a function that takes a
# posterior and brings home a `Chain`.


# %%
def ours(kernel, *numbers):
    """A sampler of ours, with its numbers of draws, chains, and transitions that adapt it."""
    return lambda model: sample(model, kernel, *numbers, seed=1, progress=False)


# %%
METHODS = {
    "optimum (SciPy)": ("scipy", optimum),
    "Laplace (SciPy)": ("scipy", laplace),
    "variational (torch)": ("torch", variational),
    "ensemble (emcee)": ("emcee", ensemble),
    "NUTS (NumPyro)": ("numpyro", nuts_numpyro),
    "NUTS (nutpie)": ("nutpie", nuts_nutpie),
    "HMC (hamiltorch)": ("hamiltorch", ours(Hamiltorch(0.05, 8), 300, 4, 100)),
    "HMC": ("bnn_utils", ours(HMC(0.05, 64), 500, 64, 300)),
    "ChEES": ("bnn_utils", ours(ChEES(), 150, 64, 150)),
    "NUTS": ("bnn_utils", ours(NUTS(max_tree_depth=6), 200, 64, 200)),
    "MAMS": ("bnn_utils", ours(MAMS(), 150, 64, 150)),
    "MCLMC (biased)": ("bnn_utils", ours(MCLMC(), 3000, 64, 1000)),
    "SMC (BlackJAX)": ("blackjax", sequential),
    "replica exchange": (
        "bnn_utils",
        ours(ReplicaExchange(HMC(0.05, 8), num_temperatures=16), 2000, 8, 800),
    ),
}


# %%
def installed(methods):
    """The methods whose package is there, name -> function; the others are named."""
    missing = {needs for needs, _ in methods.values() if not find_spec(needs)}
    if missing:
        print("left out, because not installed:", ", ".join(sorted(missing)))
    return {name: run for name, (needs, run) in methods.items() if needs not in missing}


# %% [markdown]
# ## One loop
# Everyone gets about ten seconds of one machine, compilation included, and starts at draws from
# the prior; optimum and Laplace are done sooner. What do we ask about each?
# - *evaluations*: how often the density was computed, as counted above;
# - *distance*: the mean absolute difference of its predictions from those of `reference()`, the
#   very long run that comes with this package, over 625 places;
# - *AND* and *OR*: which part of its draws are networks of which kind, as in notebook 6;
# - *both*: which part of its chains has been both, at one draw or another;
# - *R-hat* and *ESS* of its predictions, at the worst place.
#
# A point, a Gaussian and a cloud of particles are no chains, so the last two are for the rest,
# and so is *both*. ESS is counted among 3,000 draws at most: for long chains it is too low.
#
# Guess before you run it: who gets closest? Who misses one kind?


# %%
known = reference()
grid, truth = known.problem().inputs, known.mean[:625]  # first come predictions on the grid


def corners(draws):
    """In how many corners of its inputs the output unit says class 1, for draws (..., 20)."""
    weight, bias = draws[..., 17:19], draws[..., 19:]
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).to(weight)
    return (weight @ signs.mT + bias > 0).sum(-1)


def predictions(chain):
    """On the grid; of long chains every so many draws, 3,000 at most, to save memory."""
    apart = -(-chain.num_chains * chain.num_draws // 3000)
    return posterior.predict(chain.draws[:, ::apart], grid)


# %%
def judge(chain):
    """What the columns say of one chain, and its predictive map."""
    p = predictions(chain)
    is_and, is_or = corners(chain.draws) == 1, corners(chain.draws) == 3
    row = {"draws": f"{chain.num_chains} x {chain.num_draws:,}"}
    row["distance"] = (p.mean((0, 1)) - truth).abs().mean().item()
    row |= {"AND": is_and.double().mean().item(), "OR": is_or.double().mean().item()}
    if chain.num_chains > 1:
        found = convergence(p, grid)
        row["both"] = (is_and.any(1) & is_or.any(1)).double().mean().item()
        row["R-hat"] = found.r_hat.nan_to_num(nan=1).max().item()
        row["ESS"] = found.ess_bulk.nan_to_num(nan=torch.inf).min().item()
    return row, p.mean((0, 1))


# %% tags=["nbval-ignore-output"]
chains, rows, maps = {}, {}, {}
for name, run in installed(METHODS).items():
    counted = Counted(net, data, prior=NormalPrior(precision=0.09), likelihood=Bernoulli())
    begin = time.perf_counter()
    chains[name] = run(counted)
    cost = {"seconds": time.perf_counter() - begin, "evaluations": counted.evaluations}
    row, maps[name] = judge(chains[name])
    rows[name] = cost | row
table = pd.DataFrame.from_dict(rows, orient="index")
table["ESS/s"] = table["ESS"] / table["seconds"]
table["ESS per 1,000"] = 1000 * table["ESS"] / table["evaluations"]
print(len(table), "methods, one posterior")

# %% tags=["nbval-ignore-output"]
FORMATS = {
    "draws": "{}", "seconds": "{:.1f}", "evaluations": "{:,}", "distance": "{:.4f}",
    "AND": "{:.2f}", "OR": "{:.2f}", "both": "{:.2f}", "R-hat": "{:.2f}", "ESS": "{:.0f}",
    "ESS/s": "{:.1f}", "ESS per 1,000": "{:.2f}",
}  # fmt: skip
pd.DataFrame(
    {name: table[name].map(form.format, na_action="ignore") for name, form in FORMATS.items()}
).fillna("-")

# %% [markdown]
# The last column is ESS per 1,000 evaluations: what is left when seconds are taken out. (Where
# R-hat is far from 1, an ESS means little.)
#
# Now the maps. Look for the one that is sure of itself where it should not be, and for the one
# that believes in nothing.

# %% tags=["nbval-ignore-output"]
plots.decision_maps(
    {"reference": truth} | maps, grid, data,
    title="One point bends the borders, a Gaussian there blurs them; who has arrived agrees",
)  # fmt: skip

# %% [markdown]
# Left, the distance, and mind its logarithmic scale. Right, the kinds: half of the posterior is
# AND, half is OR. Which bars are of one colour?

# %% tags=["nbval-ignore-output"]
plots.methods(
    table, ["AND", "OR"], title="The variational Gaussian knows one kind of network only"
)

# %%
distance, kinds = table["distance"], table[["AND", "OR"]]
assert distance["optimum (SciPy)"] > 0.05 and distance["Laplace (SciPy)"] > 0.05
assert kinds.loc["Laplace (SciPy)"].sum() < 0.6, "most of its draws are neither"
assert distance[["HMC", "replica exchange"]].max() < 0.01
# All AND, all OR, or, for one seed in twenty, all neither: over 20 seeds, at least 0.995.
bell = kinds.loc["variational (torch)"]
assert max(*bell, 1 - bell.sum()) > 0.9
late = table.index.intersection(["ensemble (emcee)", "HMC (hamiltorch)"])
assert (table.loc[late, "R-hat"] > 1.1).all(), "where they are installed"
print("verdict: the highest point is untypical, and most draws of the Gaussian that is fitted")
print("to it are neither AND nor OR; the variational Gaussian is all of one kind;")
print("HMC and replica exchange are within 0.01 of the reference")

# %% [markdown]
# A Gaussian has one top, and this posterior has at least two, each in many copies (notebook 6).
# The variational Gaussian settles on one top, and which one depends on where it starts. On an
# AND or an OR its map is nearly right: these two part in the cross only, where data are missing
# and all maps are pale.
#
# Where a bar is white, many draws are neither. Samplers that show that have not arrived: emcee,
# which has no gradient to guide it through 20 dimensions, and hamiltorch, which asks for one
# vector at a time and whose ten seconds are short chains. Their R-hat says so.
#
# ## What is the highest hill worth?
# Are optimum and Laplace so far off because one network, or one Gaussian, is too little? Or is
# the highest hill the wrong one to be on? Let draws say. From 320 draws of replica exchange we
# go uphill, by Adam with steps that shrink, all at once, and see where they end. Guess: how
# many of them end at the optimum that SciPy found?


# %%
def climb(draws):
    """Where draws (n, 20) end that go uphill."""
    theta = draws.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.02, total_iters=1000)
    for _ in range(1000):
        theta.grad = -posterior.log_prob_and_grad(theta)[1]
        optimiser.step()
        schedule.step()
    return theta.detach()


# %% tags=["nbval-ignore-output"]
ends = climb(chains["replica exchange"].draws[:, ::50].flatten(0, 1))
heights = posterior.log_prob(ends)
top = posterior.log_prob(chains["optimum (SciPy)"].draws[0, 0])
print(f"the optimum: {top:.1f}; the ends of {len(ends)} climbs:")
print(pd.Series(heights.numpy().round(1)).value_counts().to_string())

# %%
# Of some 3,000 draws of other runs none came to the optimum.
assert (heights > top - 0.5).double().mean() < 0.01
assert ((heights + 47.35).abs() < 0.25).double().mean() > 0.95
print("verdict: nearly all draws climb to -47.3 or -47.4, and hardly any to the optimum")

# %% [markdown]
# So the highest hill holds less than one draw in a hundred: it is narrow. The two hills that
# draws are on are an AND and an OR. Are they better places for a point, and for Laplace's
# Gaussian? The last column is the mean log joint of the Gaussian's draws. If the density were
# that Gaussian, it would be half a unit below the top for each dimension, about -57.

# %% tags=["nbval-ignore-output"]
kind = {"AND": 1, "OR": 3}


def hill(mode):
    """What a point at a mode says, and the Gaussian there: distances, kinds, mean log joint."""
    point, cloud = torch.from_numpy(mode)[None], gaussian_at(posterior, mode).draws[0]
    row = {
        name: (posterior.predict(draws, grid).mean(0) - truth).abs().mean().item()
        for name, draws in {"point": point, "Laplace": cloud}.items()
    }
    row |= {name: (corners(cloud) == k).double().mean().item() for name, k in kind.items()}
    return row | {"log joint": posterior.log_prob(cloud).mean().item()}


modes = {"the highest": chains["optimum (SciPy)"].draws[0, 0]}
for name, number in kind.items():
    modes[f"the common {name}"] = ends[heights.where(corners(ends) == number, -np.inf).argmax()]
hills = {name: hill(uphill(posterior, mode.numpy()).x) for name, mode in modes.items()}
hills = pd.DataFrame.from_dict(hills, orient="index")
hills.round(3)

# %%
common = hills.drop("the highest")
assert common["point"].max() < 0.06 < 0.1 < hills.loc["the highest", "point"]
assert common["Laplace"].min() > 0.3 and common["log joint"].max() < -100
print("verdict: on the hills where draws are, one point is within 0.06 of the reference;")
print("Laplace's Gaussian is more than 0.3 away")

# %% [markdown]
# A single network from the right hill is less than half as far away as the MAP. And Laplace's
# Gaussian is no better there, although nearly all of its draws are of one kind. It is bent like
# the density at the very top, but further out the density falls faster than the Gaussian does,
# so that on average its draws are far below -57. The variational Gaussian, which looks at a
# whole region and not at one point, is much closer.
#
# ## Who only seems right
# Look again at HMC. Its distance is as small as any. But its column *both* says that hardly any
# chain has been both kinds. Then why are there about as many ANDs as ORs? Because that was
# decided at the start: 64 networks from the prior, and each chain stays on the side of the
# **barrier** that it first rolls down to. With four chains, as NUTS has here, it is luck.
#
# So take that luck away. All chains start at one and the same network. Guess what each will say
# about AND and OR.

# %%
found = chains["replica exchange"]
one_network = found.draws[found.best_draw()].expand(16, -1)
from_one = {
    "HMC": sample(
        posterior, HMC(0.05, 64), 300, warmup=200, init=one_network, seed=2, progress=False
    ),
    "replica exchange": sample(
        posterior, ReplicaExchange(HMC(0.05, 8), num_temperatures=16), 600, warmup=400,
        init=one_network, seed=2, progress=False,
    ),
}  # fmt: skip
plots.kinds(
    {name: corners(chain.draws) for name, chain in from_one.items()}, kind,
    title="From one start, HMC knows one kind of network; replica exchange finds both",
)  # fmt: skip

# %%
first = corners(one_network[0])
stayed = {name: (corners(c.draws) == first).double().mean() for name, c in from_one.items()}
assert stayed["HMC"] > 0.9 and 0.2 < stayed["replica exchange"] < 0.8
assert table.loc["HMC", "both"] < 0.2 and table.loc["replica exchange", "both"] > 0.9
assert table.loc["HMC", "R-hat"] > 1.01
nuts = table.index.intersection(["NUTS (NumPyro)", "NUTS (nutpie)"])
assert (table.loc[nuts, "both"] < 1).all(), "not all four chains, where they are installed"
print("verdict: what HMC says about the two kinds is what its starts said; R-hat notices,")
print("and the distance does not; replica exchange forgets its start")

# %% [markdown]
# That goes for NUTS, which is HMC, whoever has written it. Two methods here work without such
# luck: replica exchange and sequential Monte Carlo. Both come from the prior, where there is no
# barrier, and both are algorithms that you get *around* the density, not out of it. That is the
# point of the flat vector: when one method fails, the next one is a few lines away.
#
# ## Is that fair?
# It is a comparison of what you get for one density, written once in PyTorch and handed over.
# It is no ranking of packages, and these are the reasons:
# - Each call from another package is a trip to PyTorch and back. Who asks for 64 or 512 vectors
#   at once pays for the trip once; who asks for one at a time pays each time (the next cell
#   has the numbers). With a density written in JAX, NumPyro and BlackJAX don't travel at all;
#   the project's benchmarks (`benchmarks/results.md`) compare that way.
# - Ten seconds are short for NUTS, with some hundred draws, and its paths were cut at 63 steps.
#   What the trips cost it is not in its ESS per evaluation, but with an R-hat like that an ESS
#   is too uncertain to compare.
# - Laplace approximations of networks are at their best with a *linearised* network, as
#   laplace-torch does it; drawing weights, as here, is what a flat vector alone allows.
# - Everyone ran once, with one seed. The differences between those who are below 0.01 are of
#   the size of chance; one run of 512 particles leaves much to it.

# %% tags=["nbval-ignore-output"]
speed = (table["evaluations"] / table["seconds"]).sort_values()
print("evaluations per second, from one vector at a time to hundreds at once:")
print(speed.map("{:,.0f}".format).to_string())

# %%
f, vectors = posterior.numpy(), starts(posterior, 64).numpy()


def fastest(call):
    """Of 20 times, because other programs can only make it slower."""
    return min(timeit.repeat(call, number=1, repeat=20))


ratio = fastest(lambda: [f(theta) for theta in vectors]) / fastest(lambda: f(vectors))
assert ratio > 5  # 22 on the machine where this was written
print("verdict: 64 vectors at once cost less than a fifth of what they cost one by one")

# %% [markdown]
# ## The way home
# Draws made elsewhere are draws. nutpie returned an ArviZ object, and `Chain.from_arviz` took
# it, with the statistics that came along; arrays of shape (chains, draws, 20) come home by
# `Chain.from_draws`. From then on nobody asks where they are from. Here is nutpie's chain,
# or, where nutpie is missing, one of our own after a tour through ArviZ.

# %%
tour = Chain.from_arviz(chains["ChEES"].to_arviz(), posterior, sampler="ChEES, through ArviZ")
assert torch.equal(tour.draws, chains["ChEES"].draws)
assert torch.allclose(tour.stats["lp"], chains["ChEES"].stats["lp"])
print("after the tour, the draws are the same to the last bit")

# %% tags=["nbval-ignore-output"]
guest = chains.get("NUTS (nutpie)", tour)
guest

# %% [markdown]
# All that earlier notebooks did works on it: a verdict in function space, and R-hat of every
# weight before and after folding. In notebook 6 one weight stayed where it was, the bias of the
# output. Here too? (With four chains that depends on luck: all may be of one kind.)

# %% tags=["nbval-ignore-output"]
print(convergence(predictions(guest), grid))

# %% tags=["nbval-ignore-output"]
raw, folded = rhat(guest.draws), rhat(fold(guest.draws, posterior.flat))
plots.rhat_weights(
    {"as drawn": raw, "folded": folded}, guest.names,
    title="Folded, the weights of a guest agree better",
)  # fmt: skip

# %%
assert folded.median() < raw.median()
print("verdict: folding brings down the R-hat of a guest's weights")

# %% [markdown]
# And so do the explorers of the playground ([notebook 8](08_playground.ipynb)): move through
# the guest's networks, or compare them with replica exchange.

# %%
explorer = widgets.posterior_explorer(
    {"the guest": guest, "replica exchange": chains["replica exchange"]}, posterior
)
explorer

# %%
explorer.figure(run="the guest", view="epistemic", draw=99)

# %% [markdown]
# ## What to remember
# - One flat vector, one density: `posterior.numpy()` and `posterior.jax()` hand it to any
#   optimiser, sampler or approximation; `Chain.from_draws` and `Chain.from_arviz` bring home
#   what they made.
# - The highest point need not be where the probability is: let draws climb, and count.
# - Close predictions don't show that a method has found everything. Count the kinds, and start
#   all chains at one place: what it can't leave, it does not explore.
# - Where a barrier is, change the algorithm, not the package. Handed over in batches, even a
#   density of Python's is fast.
#
# **Next:** [11. Samplers](11_samplers.ipynb)
