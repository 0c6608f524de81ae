"""Check the posterior independently: replica exchange, by this project, against sequential Monte Carlo, by BlackJAX.

Writes independent.md and independent.csv beside this file, and ends with exit code 1 where the two disagree. With
--quick, which shows only that everything still runs, both go into build/benchmarks and nothing is judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import torch
from blackjax.base import SamplingAlgorithm
from blackjax.mcmc.hmc import HMCState
from blackjax.smc.resampling import systematic

from bnn_utils import HMC, ReplicaExchange, boxes, diagnostics, sample, square_grid, tutorial
from problem import DIM, PRECISION, STEP_SIZE
from programs import jax_density
from report import lines

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LARGEST_Z = 4.0

NUM_STEPS, NUM_TEMPERATURES, NUM_CHAINS, WARMUP = 8, 16, 16, 1_500

TARGET_ESS = 0.7  # of the particles, after a reweighting
LEAPFROG_STEPS, ACCEPTANCE = 16, 0.75
BATCH_SIZE = 256  # particles moved at once: they stay in the cache

PAGE = """# An independent check

Made by `make bench` on {today}: the tutorial's posterior by two algorithms that share the 80 points and no code.

**Replica exchange** by this project: {chains} chains of {draws:,} draws after {warmup:,} of warm-up, {temperatures}
temperatures, in float64. Standard errors by effective sample sizes or batch means, whichever says more; the log
evidence by stepping stones.

**Sequential Monte Carlo** by BlackJAX {version}: {runs} independent runs of `adaptive_tempered_smc` with {particles:,}
particles each, in float64. From the prior to the posterior in reweightings that leave an effective {ess:.0%} of the
particles, each followed by systematic resampling and {mutations} transitions of HMC with {leapfrog} leapfrog steps,
whose sizes follow the acceptance rate. Standard errors by the spread of the runs.

Compared are the log evidence and the probability of class 1 at {places} places, a 25 x 25 grid on [-6, 6]^2. z is the
difference divided by the joint standard error. `independent.csv` holds all of them.

{table}

Allowed is a z of {allowed:g}, up or down, everywhere: **{verdict}**. Two correct computations pass in at least 98 of
100 cases, by simulation: the predictions of neighbouring places go together, so that the {places} count as some tens.
Fewer runs would pass less often, because their spread would be known less well: 20 in about 94.
"""


class Result(NamedTuple):
    """Predictive mean at M places and log evidence, with standard errors."""

    mean: np.ndarray  # (M,)
    mean_se: np.ndarray  # (M,)
    log_evidence: float
    log_evidence_se: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=6_000, help="of each chain of replica exchange")
    parser.add_argument("--runs", type=int, default=48, help="of sequential Monte Carlo")
    parser.add_argument("--particles", type=int, default=1_024, help="of each run")
    parser.add_argument("--mutations", type=int, default=10, help="transitions after each resampling")
    parser.add_argument("--quick", action="store_true", help="few draws and particles")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.draws, arguments.runs, arguments.particles = 50, 2, BATCH_SIZE
    folder = ROOT / "build" / "benchmarks" if arguments.quick else HERE
    folder.mkdir(parents=True, exist_ok=True)

    grid = square_grid(25, 6.0).numpy()
    other = sequential_monte_carlo(grid, arguments.runs, arguments.particles, arguments.mutations)
    table = compare(grid, replica_exchange(grid, arguments.draws), other)
    table.to_csv(folder / "independent.csv", index=False, float_format="%.6g")
    agrees = bool((table["z"].abs() <= LARGEST_Z).all())
    page = PAGE.format(
        today=date.today().isoformat(),
        version=blackjax.__version__,
        **{"temperatures": NUM_TEMPERATURES, "chains": NUM_CHAINS, "warmup": WARMUP},
        **{"ess": TARGET_ESS, "leapfrog": LEAPFROG_STEPS},
        **vars(arguments),
        places=len(grid),
        table=summary(table),
        allowed=LARGEST_Z,
        verdict="not judged" if arguments.quick else "they agree" if agrees else "they disagree",
    )
    (folder / "independent.md").write_text(page)
    print(f"{page}\n{(folder / 'independent.md').relative_to(ROOT)} holds this page.")
    sys.exit(not (agrees or arguments.quick))


def replica_exchange(grid: np.ndarray, num_draws: int) -> Result:
    posterior = tutorial.posterior()
    kernel = ReplicaExchange(HMC(STEP_SIZE, NUM_STEPS), NUM_TEMPERATURES)
    chain = sample(posterior, kernel, num_draws, num_chains=NUM_CHAINS, warmup=WARMUP, seed=1, progress=False)
    probabilities = posterior.predict(chain.draws, torch.from_numpy(grid))
    assert chain.tempering is not None  # of this kernel
    return Result(
        probabilities.mean((0, 1)).numpy(),
        diagnostics.mcse(probabilities).numpy(),
        *chain.tempering.log_evidence().stepping_stones,
    )


def sequential_monte_carlo(grid: np.ndarray, num_runs: int, num_particles: int, num_mutations: int) -> Result:
    """Adaptive tempering from the prior to the posterior, several times."""
    jax.config.update("jax_enable_x64", True)
    data = boxes()
    log_likelihood = jax_density.log_likelihood(data.x.numpy(), data.y.numpy())
    scale = PRECISION**-0.5
    hmc = blackjax.hmc.build_kernel()

    def log_prior(theta: jax.Array) -> jax.Array:
        return jax.scipy.stats.norm.logpdf(theta, scale=scale).sum()

    def transition(key: jax.Array, state: HMCState, log_density: Callable, step_size: jax.Array) -> tuple:
        return hmc(key, state, log_density, step_size, jnp.ones(DIM), LEAPFROG_STEPS)

    def algorithm(step_sizes: jax.Array) -> SamplingAlgorithm:
        return blackjax.adaptive_tempered_smc(
            log_prior,
            log_likelihood,
            transition,
            blackjax.hmc.init,
            {"step_size": step_sizes},
            systematic,
            TARGET_ESS,
            num_mcmc_steps=num_mutations,
            batch_size=BATCH_SIZE,
        )

    def reweight(carry: tuple) -> tuple:
        """One temperature further."""
        key, state, log_evidence, step_size = carry
        key, size_key, step_key = jax.random.split(key, 3)
        # No one size suits all places: they are spread over a factor of e.
        step_sizes = step_size * jnp.exp(-jax.random.uniform(size_key, (num_particles,)))
        state, info = algorithm(step_sizes).step(step_key, state)
        step_size *= jnp.exp(info.update_info.acceptance_rate.mean() - ACCEPTANCE)
        return key, state, log_evidence + info.log_likelihood_increment, step_size

    @jax.jit
    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key, prior_key = jax.random.split(key)
        particles = scale * jax.random.normal(prior_key, (num_particles, DIM))
        start = (key, blackjax.smc.tempered.init(particles), jnp.zeros(()), jnp.ones(()))
        _, state, log_evidence, _ = jax.lax.while_loop(lambda carry: carry[1].tempering_param < 1, reweight, start)
        logits = jax.vmap(jax_density.network, (0, None))(state.particles, jnp.asarray(grid.T))
        return state.weights @ jax.nn.sigmoid(logits), log_evidence

    runs = [run(key) for key in jax.random.split(jax.random.key(0), num_runs)]
    return combine(*map(np.array, zip(*runs, strict=True)))


def combine(means: np.ndarray, log_evidences: np.ndarray) -> Result:
    """All runs as one: the log of their mean evidence, and their predictive means weighted by evidence.

    The evidence that a run estimates is unbiased for any number of particles, and so is its product with the predictive
    mean (Del Moral 2004, theorem 7.4.2), but for adaptation. Averaged over runs before the logarithm and the ratio are
    taken, they leave next to no bias; the standard errors are those of the two by the delta method.

    Args:
        means: shape ``(runs, M)``.
        log_evidences: shape ``(runs,)``.
    """
    num_runs, largest = len(log_evidences), log_evidences.max()
    evidences = np.exp(log_evidences - largest)
    weights = evidences / evidences.sum()
    mean = weights @ means
    unbiased = num_runs / (num_runs - 1)
    return Result(
        mean,
        np.sqrt(unbiased * weights**2 @ np.square(means - mean)),
        largest + np.log(evidences.mean()),
        np.sqrt(unbiased * np.square(weights - 1 / num_runs).sum()),
    )


def compare(grid: np.ndarray, ours: Result, other: Result) -> pd.DataFrame:
    """One row per place and a last one, of no place, for the log evidence."""
    columns = {"x1": np.append(grid[:, 0], np.nan), "x2": np.append(grid[:, 1], np.nan)}
    for name, estimate in (("replica_exchange", ours), ("smc", other)):
        columns[name] = np.append(estimate.mean, estimate.log_evidence)
        columns[f"{name}_se"] = np.append(estimate.mean_se, estimate.log_evidence_se)
    table = pd.DataFrame(columns)
    joint_se = np.hypot(table["replica_exchange_se"], table["smc_se"])
    return table.assign(z=(table["replica_exchange"] - table["smc"]) / joint_se)


def summary(table: pd.DataFrame) -> str:
    """The log evidence and the place of the largest z, up or down."""
    worst = table.loc[table["z"][:-1].abs().idxmax()]
    names = {"log evidence": table.iloc[-1], f"probability at ({worst.x1:g}, {worst.x2:g}), where z is largest": worst}
    rows = (
        [name, *(f"{row[key]:.4f} ± {row[f'{key}_se']:.4f}" for key in ("replica_exchange", "smc")), f"{row.z:+.2f}"]
        for name, row in names.items()
    )
    return lines(["", "replica exchange", "sequential Monte Carlo", "z"], rows)


if __name__ == "__main__":
    main()
