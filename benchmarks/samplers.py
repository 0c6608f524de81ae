"""Which sampler for which posterior: every kernel beside those of BlackJAX and NumPyro, from the same starts.

    python benchmarks/samplers.py                          # all, into samplers.csv and samplers.md beside this file
    python benchmarks/samplers.py --only boston --data DIR # one posterior; DIR keeps the UCI tables

Each sampler runs in a process of its own, on one core, from the same draws of the prior. What is measured is the
effective sample size of the network's predictions at points that it has not seen, the smallest and the median over
the points, by the seconds of processor time that warm-up and draws take together. Compilation is left out for all.
Where R-hat of a prediction exceeds `R_HAT_LIMIT`, chains have not come to one distribution, and no number counts. Of
the others, each exact sampler is compared with each other one measured in the same call: how many joint standard errors
their predictions differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from bnn_utils import Posterior

HERE = Path(__file__).resolve().parent
R_HAT_LIMIT = 1.05
RATE_BEYOND_4 = 6.3e-5  # of normal numbers
TABLE, PAIRS = HERE / "samplers.csv", HERE / "agreement.csv"
NUM_CHAINS, SEED = 8, 11
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
UCI = ("bostonHousing", "concrete", "energy", "yacht")
# Those that are written out in JAX as well, for the other packages, and those that are not.
SHARED = ("linear", "tutorial", "5-8-1", "1-10-1, noise inferred", "boxes 2-50-50-1", *UCI)
OWN = ("5-8-1, scales inferred", "5-8-1, by autograd")
POSTERIORS = (*SHARED, *OWN)


class Budget(NamedTuple):
    """Transitions of each chain."""

    warmup: int
    draws: int
    thin: int = 1


Run = Callable[[np.ndarray, int], np.ndarray]  # starts (C, D) and a seed -> draws (C, T, D)


class Sampler(NamedTuple):
    """What makes it ready for a posterior and a budget, and how much it is asked to do."""

    library: str
    build: Callable[[Posterior, Budget], Run]
    budget: Budget
    is_exact: bool = True


REPORT = """# Which sampler for which posterior

`benchmarks/samplers.py` makes this table. All samplers run on one core, 8 chains each from the same draws of the prior,
and find step sizes, lengths and masses in their warm-up. ESS is that of predictions at new points, by seconds of
processor time for warm-up and draws together, without compilation. No number counts where R-hat exceeds {limit}. By
this table `sample(posterior)` chooses, see `bnn_utils.choice`. Each row is one run, and the smallest ESS of another may
be a third of it or the double: three runs of HMC() on bostonHousing had 320, 520 and 124. What is missing was not run,
or did not end within ten minutes.

"""

AGREEMENT = """
## Do they agree?

Exact samplers estimate the same means. Of all pairs whose R-hat allows it (`agreement.csv`), the largest difference of
their predictions at any of the new points, in joint standard errors. These are {count:,} comparisons, of which some
{expected:.1f} would exceed 4 by chance alone, if they were independent.

"""


# --- posteriors -------------------------------------------------------------------------------------------------------


def posterior_of(name: str, data: Path | None) -> tuple[Posterior, np.ndarray]:
    """The posterior and the points at which it predicts, in float32."""
    import torch
    from torch import nn

    from bnn_utils import (
        Bernoulli,
        Data,
        FanInPrior,
        Gaussian,
        LogScale,
        NormalPrior,
        Posterior,
        Standardise,
        datasets,
        square_grid,
        tutorial,
    )
    from problem import LARGE

    if name == "tutorial":
        return tutorial.posterior(), square_grid(5).numpy()
    if name.startswith("boxes"):
        sizes = LARGE.network
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.Tanh())][:-1]
        posterior = Posterior(nn.Sequential(*layers), tutorial.boxes(1000), NormalPrior(0.09), Bernoulli())
        return posterior, square_grid(5).numpy()
    if name not in UCI:
        return made_up(name)
    train, test = (part.to(torch.float32) for part in datasets.load(name, data).split(0))
    inputs, targets = Standardise(train.x), Standardise(train.y)
    net = nn.Sequential(nn.Linear(train.x.shape[1], 50), nn.ReLU(), nn.Linear(50, 1), LogScale())
    posterior = Posterior(net, Data(inputs(train.x), targets(train.y)), FanInPrior(2, 1), Gaussian())
    return posterior, inputs(test.x).numpy()


def made_up(name: str) -> tuple[Posterior, np.ndarray]:
    """Small problems: whether two of five inputs have the same sign, and a sine with noise."""
    import torch
    from torch import nn
    from torch.distributions import HalfCauchy

    from bnn_utils import Bernoulli, ByInput, Data, Gaussian, HierarchicalPrior, LogScale, NormalPrior, Posterior

    generator = torch.Generator().manual_seed(0)
    if name.startswith("1-10-1"):
        x = 6 * torch.rand(50, 1, generator=generator) - 3
        y = torch.sin(2 * x[:, 0]) + 0.1 * torch.randn(50, generator=generator)
        net = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1), LogScale())
        return Posterior(net, Data(x, y), NormalPrior(0.25), Gaussian()), torch.linspace(-3, 3, 50)[:, None].numpy()
    x, new = torch.randn(200, 5, generator=generator), torch.randn(100, 5, generator=generator)
    hidden = [] if name == "linear" else [nn.Linear(5, 8), nn.Tanh()]
    net = nn.Sequential(*hidden, nn.Linear(8 if hidden else 5, 1))
    prior = (
        HierarchicalPrior({"0.weight": ByInput(HalfCauchy(1.0)), "*": 1.0}) if "scales" in name else NormalPrior(1.0)
    )
    gradient: Literal["autograd", "auto"] = "autograd" if "autograd" in name else "auto"
    data = Data(x, (x[:, 0] * x[:, 1] > 0).float())
    return Posterior(net, data, prior, Bernoulli(), gradient), new.numpy()


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(kernel: str) -> Callable[[Posterior, Budget], Run]:
    """A kernel as it would be typed."""

    def build(posterior: Posterior, budget: Budget) -> Run:
        import torch

        import bnn_utils

        made = eval(kernel, vars(bnn_utils))

        def run(starts: np.ndarray, seed: int, budget: Budget = budget) -> np.ndarray:
            chain = bnn_utils.sample(
                posterior,
                made,
                budget.draws,
                init=torch.from_numpy(starts),
                warmup=budget.warmup,
                thin=budget.thin,
                seed=seed,
                progress=False,
            )
            return chain.draws.numpy()

        run(posterior.theta(posterior.flat.ravel()).expand(NUM_CHAINS, -1).numpy(), 0, Budget(2, 2))  # compiled by now
        return run

    return build


# --- theirs -----------------------------------------------------------------------------------------------------------


class Compiled:
    """Chains ``(key, start) -> draws (T, D)`` one after the other, in one compiled function."""

    def __init__(self, chain: Callable[[Any, Any], Any]) -> None:
        self._chain = chain
        self._function: Callable[[Any, Any], Any]

    def prepare(self, starts: np.ndarray) -> None:
        import jax

        def chains(keys: Any, starts: Any) -> Any:
            return jax.lax.map(lambda one: self._chain(*one), (keys, starts))

        self._function = jax.jit(chains).lower(jax.random.split(jax.random.key(0), len(starts)), starts).compile()

    def __call__(self, starts: np.ndarray, seed: int) -> np.ndarray:
        import jax

        return np.asarray(self._function(jax.random.split(jax.random.key(seed), len(starts)), starts))


def density(posterior: Posterior) -> Callable[[Any], Any]:
    """The same log density in JAX, but for a constant."""
    import jax
    import jax.numpy as jnp

    from bnn_utils.priors import DiagonalNormal

    layers, prior = posterior.layers, posterior.prior_distribution
    if layers is None or not isinstance(prior, DiagonalNormal):
        raise ValueError("only Linear layers under independent normals are written out in JAX")
    acts = [None if layer.activation is None else layer.activation.name for layer in layers]
    functions = {"Tanh": jnp.tanh, "ReLU": jax.nn.relu, None: lambda z: z}
    log_scale = layers[-1].log_scale
    x, y = jnp.asarray(posterior.data.x.numpy().T), jnp.asarray(posterior.data.y.numpy())
    precision = jnp.asarray(prior.precision.numpy())

    def log_prob(theta: Any) -> Any:
        h = x
        for layer, act in zip(layers, acts, strict=True):
            h = functions[act](theta[layer.weight].reshape(layer.shape) @ h + theta[layer.bias][:, None])
        if log_scale is None:
            fit = jnp.sum(y * h[0] - jax.nn.softplus(h[0]))
        else:
            s = theta[log_scale][0]
            fit = -0.5 * jnp.sum(jnp.square((y - h[0]) * jnp.exp(-s))) - len(y) * s
        return fit - 0.5 * jnp.sum(precision * theta * theta)

    return log_prob


def drawn(step: Callable[[Any, Any], Any], state: Any, key: Any, budget: Budget) -> Any:
    """Where BlackJAX's steps lead, ``(T, D)``: of each ``thin`` the last."""
    import jax

    def transition(state: Any, key: Any) -> tuple[Any, Any]:
        for one in jax.random.split(key, budget.thin):
            state, _ = step(one, state)
        return state, state.position

    return jax.lax.scan(transition, state, jax.random.split(key, budget.draws))[1]


def blackjax_nuts(posterior: Posterior, budget: Budget) -> Run:
    import blackjax
    import jax

    log_prob = density(posterior)

    def chain(key: Any, start: Any) -> Any:
        warmup = blackjax.window_adaptation(blackjax.nuts, log_prob)
        first, key = jax.random.split(key)
        (state, parameters), _ = warmup.run(first, start, budget.warmup)
        step = blackjax.nuts(log_prob, **parameters).step

        return drawn(step, state, key, budget)

    return Compiled(chain)


def blackjax_mclmc(posterior: Posterior, budget: Budget) -> Run:
    import blackjax
    import jax

    log_prob = density(posterior)
    kernel = blackjax.mcmc.mclmc.build_kernel()

    def chain(key: Any, start: Any) -> Any:
        first, second, key = jax.random.split(key, 3)
        state = blackjax.mcmc.mclmc.init(start, log_prob, first)
        state, parameters, _ = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=kernel,
            num_steps=int(budget.warmup / 0.3),  # three tenths of these are spent
            state=state,
            rng_key=second,
            logdensity_fn=log_prob,
        )
        mass, length, size = parameters.inverse_mass_matrix, parameters.L, parameters.step_size
        step = blackjax.mclmc(log_prob, L=length, step_size=size, inverse_mass_matrix=mass).step

        return drawn(step, state, key, budget)

    return Compiled(chain)


def blackjax_adjusted(posterior: Posterior, budget: Budget) -> Run:
    import blackjax
    import jax
    from blackjax.mcmc.adjusted_mclmc_dynamic import build_kernel, init, make_random_trajectory_length_fn

    log_prob = density(posterior)
    kernel = build_kernel(integration_steps_fn=make_random_trajectory_length_fn(random_trajectory_length=True))

    def chain(key: Any, start: Any) -> Any:
        first, second, key = jax.random.split(key, 3)
        state = init(start, log_prob, first)
        state, parameters, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
            mclmc_kernel=kernel,
            logdensity_fn=log_prob,
            num_steps=budget.warmup * 5,  # two tenths of these are spent
            state=state,
            rng_key=second,
            target=0.9,
        )
        options = {
            "step_size": parameters.step_size,
            "inverse_mass_matrix": parameters.inverse_mass_matrix,
            "integration_steps_params": (parameters.L / parameters.step_size,),
        }

        return drawn(lambda key, state: kernel(key, state, log_prob, **options), state, key, budget)

    return Compiled(chain)


def numpyro_nuts(posterior: Posterior, budget: Budget) -> Run:
    from numpyro.infer import MCMC, NUTS

    log_prob = density(posterior)

    def chain(key: Any, start: Any) -> Any:
        kernel = NUTS(potential_fn=lambda theta: -log_prob(theta))
        mcmc = MCMC(kernel, num_warmup=budget.warmup, num_samples=budget.draws, progress_bar=False)
        mcmc.run(key, init_params=start)
        return mcmc.get_samples()

    return Compiled(chain)


SAMPLERS = {
    "HMC()": Sampler("bnn_utils", ours("HMC()"), Budget(300, 300)),
    "NUTS()": Sampler("bnn_utils", ours("NUTS()"), Budget(300, 300)),
    "ChEES()": Sampler("bnn_utils", ours("ChEES()"), Budget(300, 300)),
    "MAMS()": Sampler("bnn_utils", ours("MAMS()"), Budget(300, 300)),
    "MCLMC()": Sampler("bnn_utils", ours("MCLMC()"), Budget(5_000, 1_000, 20), is_exact=False),
    "replica exchange": Sampler("bnn_utils", ours("ReplicaExchange(HMC(0.05, 12), 12)"), Budget(500, 1_000)),
    "BlackJAX, NUTS": Sampler("BlackJAX", blackjax_nuts, Budget(300, 300)),
    "BlackJAX, adjusted MCLMC": Sampler("BlackJAX", blackjax_adjusted, Budget(2_000, 1_000, 10)),
    "BlackJAX, MCLMC": Sampler("BlackJAX", blackjax_mclmc, Budget(5_000, 1_000, 20), is_exact=False),
    "NumPyro, NUTS": Sampler("NumPyro", numpyro_nuts, Budget(300, 300)),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(name: str, sampler: str, data: Path | None, starts: Path) -> dict[str, float | list[float]]:
    """In this process."""
    import torch

    from bnn_utils import diagnostics

    torch.set_num_threads(1)
    posterior, new = posterior_of(name, data)
    begin = np.load(starts)
    run = SAMPLERS[sampler].build(posterior, SAMPLERS[sampler].budget)
    if isinstance(run, Compiled):
        run.prepare(begin)
    before = time.process_time()
    draws = run(begin, SEED)
    seconds = time.process_time() - before
    predictions = posterior.predict(torch.from_numpy(draws.copy()), torch.from_numpy(new)).double()
    ess, r_hat = diagnostics.ess(predictions), diagnostics.rhat(predictions)
    return {
        "seconds": seconds,
        "r_hat": float(r_hat.max()),
        "smallest_ess": float(ess.min()),
        "median_ess": float(ess.median()),
        "mean": predictions.mean((0, 1)).tolist(),
        "mcse": diagnostics.mcse(predictions).tolist(),
    }


def start(name: str, data: Path | None, to: Path) -> None:
    import torch

    posterior, _ = posterior_of(name, data)
    np.save(to, posterior.sample_prior(NUM_CHAINS, torch.Generator().manual_seed(SEED)).numpy())


def compare(found: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Each pair of exact samplers whose chains agree: by how many joint standard errors their predictions differ."""
    counted = [name for name, one in found.items() if SAMPLERS[name].is_exact and one["r_hat"] <= R_HAT_LIMIT]
    rows = []
    for first, second in combinations(counted, 2):
        means, errors = (np.array([found[name][key] for name in (first, second)]) for key in ("mean", "mcse"))
        z = np.abs(means[0] - means[1]) / np.hypot(*errors)
        rows.append({"sampler": first, "other": second, "largest_z": z.max(), "points": len(z)})
    return pd.DataFrame(rows, columns=["sampler", "other", "largest_z", "points"])


def in_process(script: str, *arguments: str) -> str:
    """The last line that a script prints, on one core."""
    command = [sys.executable, str(Path(script).resolve()), *arguments]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().split("\n")[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=POSTERIORS, choices=POSTERIORS)
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--data", type=Path, help="the folder of tables; without it, that of `bnn_utils.datasets`")
    parser.add_argument("--one", nargs=3, metavar=("POSTERIOR", "SAMPLER", "STARTS"), help=argparse.SUPPRESS)
    parser.add_argument("--starts", nargs=2, metavar=("POSTERIOR", "TO"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], given.one[1], given.data, Path(given.one[2]))))
        return
    if given.starts:
        start(given.starts[0], given.data, Path(given.starts[1]))
        return
    kept = [] if given.data is None else ["--data", str(given.data)]
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            starts = str(Path(folder, "starts.npy"))
            in_process(__file__, "--starts", name, starts, *kept)
            measured = {}
            for sampler in given.samplers:
                if SAMPLERS[sampler].library != "bnn_utils" and name in OWN:
                    continue
                if sampler == "replica exchange" and name in ("boxes 2-50-50-1", *UCI, *OWN):
                    continue  # without native transitions it would take longer than all others together
                found = json.loads(in_process(__file__, "--one", name, sampler, starts, *kept))
                measured[sampler] = found
                numbers = {key: value for key, value in found.items() if not isinstance(value, list)}
                row = {"posterior": name, "sampler": sampler, "library": SAMPLERS[sampler].library} | numbers
                print(json.dumps(row), flush=True)
                merge(TABLE, pd.DataFrame([row]), ["posterior", "sampler"])
            merge(PAIRS, compare(measured).assign(posterior=name), ["posterior", "sampler", "other"])
            report()


def processor_name() -> str:
    """As Linux tells it; elsewhere, its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def merge(path: Path, rows: pd.DataFrame, keys: list[str]) -> None:
    """Into the table that is stored, in place of what was measured before of the same."""
    if path.exists():
        before = pd.read_csv(path)
        again = before.set_index(keys).index.isin(rows.set_index(keys).index)
        rows = pd.concat([before[~again], rows])
    orders = {"posterior": POSTERIORS, "sampler": tuple(SAMPLERS), "other": tuple(SAMPLERS)}
    rows = rows.sort_values(keys, key=lambda column: column.map(orders[str(column.name)].index))
    rows[[*keys, *rows.columns.difference(keys, sort=False)]].to_csv(path, index=False, float_format="%.4g")


def report() -> None:
    """What is stored, to read."""
    rows, pairs = pd.read_csv(TABLE), pd.read_csv(PAIRS)
    counts = rows["r_hat"] <= R_HAT_LIMIT

    def rates(ess: str) -> pd.Series:
        return (rows[ess] / rows["seconds"]).map("{:,.3g}".format).where(counts, "-")

    is_exact = rows["sampler"].map(lambda name: SAMPLERS[name].is_exact)
    shown = pd.DataFrame(
        {
            "posterior": rows["posterior"],
            "sampler": rows["sampler"].where(is_exact, rows["sampler"] + " (biased)"),
            "R-hat": rows["r_hat"].map("{:.3f}".format),
            "smallest ESS/s": rates("smallest_ess"),
            "median ESS/s": rates("median_ess"),
            "s": rows["seconds"].map("{:.1f}".format),
        }
    )
    worst = pairs.loc[pairs.groupby("posterior", sort=False)["largest_z"].idxmax()]
    agreement = pd.DataFrame(
        {
            "posterior": worst["posterior"],
            "pairs": worst["posterior"].map(pairs["posterior"].value_counts()),
            "new points": worst["points"],
            "largest difference": worst["largest_z"].map("{:.1f}".format),
            "between": worst["sampler"] + " and " + worst["other"],
        }
    )
    text = REPORT.format(limit=R_HAT_LIMIT) + as_markdown(shown)
    count = int(pairs["points"].sum())
    text += (
        AGREEMENT.format(count=count, expected=count * RATE_BEYOND_4)
        + as_markdown(agreement)
        + f"\nOn {processor_name()}.\n"
    )
    (HERE / "samplers.md").write_text(text)


def as_markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


if __name__ == "__main__":
    main()
