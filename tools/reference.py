"""Make a reference: a posterior's answers by two algorithms, which are written down where these agree.

    python tools/reference.py boxes              # one of bnn_utils.references.PROBLEMS, or "all"
    python tools/reference.py boston --data ../shared/uci

Takes some minutes for each on one core. What was done is kept in build/references, so that the same command goes on
where it was interrupted. benchmarks/references.csv gets a row for each problem, whether the two agree or not.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from bnn_utils import HMC, MAMS, Chain, ReplicaExchange, __version__, sample
from bnn_utils.diagnostics import ess, rhat
from bnn_utils.evidence import Estimate
from bnn_utils.kernels.base import Kernel
from bnn_utils.predict import log_score
from bnn_utils.random import spawn
from bnn_utils.references import PROBLEMS, Problem, problem
from bnn_utils.references.agreement import (
    LEVELS,
    Agreement,
    Marginals,
    Replicates,
    agreement,
    influences,
    marginals,
    moved_mass,
    replicates,
)
from bnn_utils.references.known import File, Reference, write
from bnn_utils.references.smc import sequential_monte_carlo

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "references.csv"
FOLDER = ROOT / "build" / "references"
DRAWS_FOR_CORRELATION = 1_000
MOVED = 0.05  # of a mode's mass, which a comparison has to see
LARGEST_Z = 3.5  # of the log evidence: by chance once in 2,000 times


class Run(NamedTuple):
    """What an algorithm says: draws of each replicate ``(n, D)``, their weights, and facts for the certificate."""

    draws: list[Tensor]
    weights: Tensor
    log_evidence: Estimate | None
    how: str
    facts: dict[str, Any]


Algorithm = Callable[[Problem, Path, int], Run]


def chains(
    kernel: Kernel, num_chains: int, num_draws: int, thin: int, warmup: int, batch_size: int | None = None
) -> Algorithm:
    """Long runs of one of the library's kernels, each chain from a draw of the prior; a chain is a replicate."""

    def run(asked: Problem, folder: Path, seed: int) -> Run:
        chain = sample(
            asked.posterior,
            kernel,
            num_draws,
            num_chains=num_chains,
            warmup=warmup,
            seed=seed,
            thin=thin,
            batch_size=batch_size,
            progress=sys.stderr.isatty(),
            store=folder / f"{type(kernel).__name__}.zarr",
        )
        how = f"{num_chains} chains of {kernel}, {num_draws:,} draws each, one in {thin}, after {warmup:,} of warm-up"
        facts = {
            "seed": seed,
            **diagnosed(asked, chain),
            "seconds": round(chain.wall_time),
        }
        evidence = None if chain.tempering is None else chain.tempering.log_evidence().stepping_stones
        return Run(list(chain.draws), equal(num_chains), evidence, how, facts)

    return run


def diagnosed(asked: Problem, chain: Chain) -> dict[str, Any]:
    """Diagnostics of what is compared, and of travel between the prior and the posterior."""
    values = torch.stack([asked.values(draws).float() for draws in chain.draws])
    changes = values.flatten(0, 1).std(0) > 0
    found = {
        "largest R-hat": round(float(rhat(values)[changes].max()), 4),
        "smallest bulk ESS": int(ess(values)[changes].min()),
        "smallest tail ESS": int(ess(values, "tail")[changes].min()),
        "warnings": chain.warnings,
    }
    if chain.tempering is not None:
        found["round trips of a chain, at least"] = int(chain.tempering.round_trips.min())
        found["barrier"] = round(chain.tempering.barrier, 2)
    return found


def smc(num_runs: int, num_particles: int, num_moves: int, num_steps: int = 8) -> Algorithm:
    """Independent runs of sequential Monte Carlo, each a replicate that counts as much as its evidence."""

    def run(asked: Problem, folder: Path, seed: int) -> Run:
        found, about, seconds = [], "", 0.0
        # Not of consecutive seeds, whose streams go together in torch.
        for number, stream in enumerate(spawn(seed, num_runs, asked.posterior.device)):
            path = folder / f"smc-{num_particles}-{num_moves}-{num_steps}-{number}.npz"
            if not path.exists():
                before = time.perf_counter()
                made = sequential_monte_carlo(asked.posterior, num_particles, num_moves, num_steps, stream)
                about = f"{made.num_stages} temperatures, acceptance rate {made.acceptance_rate:.2f}"
                part = path.with_suffix(".part.npz")
                took = time.perf_counter() - before
                np.savez(part, theta=made.theta.numpy(), log_evidence=made.log_evidence, about=about, seconds=took)
                part.rename(path)
            with np.load(path) as file:
                found.append((torch.from_numpy(file["theta"]), float(file["log_evidence"])))
                about, seconds = str(file["about"]), seconds + float(file["seconds"])
        logs = torch.tensor([log_evidence for _, log_evidence in found], dtype=torch.float64)
        weights = logs.softmax(0)
        log_evidence = float(logs.logsumexp(0)) - math.log(num_runs)
        # Of the logarithm of an average, to first order.
        relative = (logs - log_evidence).exp()
        evidence = Estimate(log_evidence, float(relative.std() / num_runs**0.5))
        how = (
            f"{num_runs} runs of sequential Monte Carlo with {num_particles:,} particles, {num_moves} transitions of "
            f"{num_steps} leapfrog steps at each temperature"
        )
        facts = {
            "seed": seed,
            "last run": about,
            "runs that count": round(1 / float(weights.square().sum()), 1),
            "standard deviation of their log evidence": round(float(logs.std()), 3),
            "seconds": round(seconds),
        }
        return Run([theta for theta, _ in found], weights, evidence, how, facts)

    return run


def equal(num: int) -> Tensor:
    return torch.full((num,), 1 / num, dtype=torch.float64)


class Recipe(NamedTuple):
    first: Algorithm
    second: Algorithm
    is_exact: bool = False  # known in closed form, which then takes the place of the first


def exchange(temperatures: int, num_steps: int, thin: int, num_draws: int = 2_000, num_chains: int = 64) -> Algorithm:
    kernel = ReplicaExchange(HMC(0.05, num_steps), num_temperatures=temperatures)
    return chains(kernel, num_chains, num_draws, thin, warmup=2_000, batch_size=16)


def isokinetic(thin: int) -> Algorithm:
    """Where weights can be so stiff, by noise that is inferred, that particles hardly move."""
    return chains(MAMS(), 32, 1_500, thin, warmup=2_000)


RECIPES = {
    "boxes": Recipe(exchange(12, 8, thin=20), smc(32, 4_096, num_moves=20)),
    "boxes_relu": Recipe(exchange(16, 8, thin=40), smc(96, 4_096, num_moves=60)),
    "boxes_weak_prior": Recipe(exchange(16, 8, thin=30), smc(32, 4_096, num_moves=40)),
    "boxes_wide": Recipe(exchange(16, 16, thin=5), smc(32, 4_096, num_moves=10)),
    "boxes_deep": Recipe(exchange(14, 8, thin=20), smc(32, 4_096, num_moves=20)),
    "line": Recipe(exchange(6, 8, thin=2), smc(32, 4_096, num_moves=5), is_exact=True),
    "sine_tanh": Recipe(exchange(16, 16, thin=15), isokinetic(thin=4)),
    "sine_relu": Recipe(exchange(16, 16, thin=25), isokinetic(thin=4)),
    "noise_by_input": Recipe(exchange(16, 16, thin=20), isokinetic(thin=4)),
    "wine": Recipe(exchange(14, 16, thin=4), smc(32, 4_096, num_moves=10)),
    "convolution": Recipe(exchange(10, 8, thin=1, num_chains=32), smc(16, 1_024, num_moves=10)),
    "boston": Recipe(chains(HMC(), 16, 1_000, 2, 1_000), chains(MAMS(), 16, 800, 2, 1_500)),
    "digits": Recipe(chains(HMC(), 16, 500, 1, 500), chains(MAMS(), 16, 500, 2, 500)),
}


class Truth(NamedTuple):
    """What everything is compared with: marginals, and the log density of each point that is held out."""

    marginals: Marginals
    log_density: Tensor  # (H,)
    log_evidence: Estimate | None

    def exact(self) -> Replicates:
        """The averages of `replicates`, where all this is known exactly."""
        mean, sd, quantiles, _ = self.marginals
        below = torch.tensor(LEVELS, dtype=torch.float64).repeat_interleave(quantiles.shape[1])
        return Replicates(torch.cat([mean, sd, below, self.log_density.mean()[None]])[None], equal(1))


def closed_form(asked: Problem) -> Truth:
    """Of a linear regression with known noise.

    With inputs X (a column of ones for the bias) the posterior is normal, of precision ``P = prior + X'X / sigma^2``
    and mean ``P^-1 X'y / sigma^2``; so are predictions and their differences, which are linear in theta.
    """
    posterior, sigma = asked.posterior, float(asked.posterior.likelihood.scale)  # type: ignore[attr-defined]
    prior = torch.diag(posterior.prior_distribution.precision.expand(posterior.dim))  # type: ignore[attr-defined]
    x, held_out = (torch.cat([one.x, torch.ones_like(one.x[:, :1])], dim=1) for one in (posterior.data, asked.held_out))
    y = posterior.data.y
    covariance = torch.linalg.inv(prior + x.T @ x / sigma**2)
    center = covariance @ x.T @ y / sigma**2
    # What a unit vector changes are the coefficients.
    origin = asked.values(torch.zeros_like(center)[None])
    linear = asked.values(torch.eye(posterior.dim, dtype=x.dtype)) - origin
    mean, sd = center @ linear + origin[0], (linear * (covariance @ linear)).sum(0).sqrt()
    quantiles = mean + torch.from_numpy(ndtri(np.array(LEVELS)))[:, None] * sd
    spread = ((held_out @ covariance * held_out).sum(1) + sigma**2).sqrt()
    log_density = Normal(held_out @ center, spread).log_prob(asked.held_out.y)
    of_data = MultivariateNormal(torch.zeros_like(y), x @ torch.linalg.inv(prior) @ x.T + sigma**2 * torch.eye(len(y)))
    known = Marginals(mean, sd, quantiles, torch.zeros(quantiles.shape, dtype=torch.bool))
    return Truth(known, log_density, Estimate(of_data.log_prob(y).item(), 0.0))


def of_run(run: Run, values: list[Tensor], logs: list[Tensor]) -> Truth:
    """The same from a run, whose draws have these values and log densities of held-out points."""
    scores = [log_score(part) + w.log() for part, w in zip(logs, run.weights, strict=True)]
    return Truth(marginals(values, run.weights), torch.stack(scores).logsumexp(0), run.log_evidence)


class Compared(NamedTuple):
    known: Reference
    agreement: Agreement
    with_moved_mass: Agreement | None  # where there are modes
    z_evidence: float  # NaN where there is none

    @property
    def agrees(self) -> bool:
        """Also whether they would not, were the masses of modes off by a little."""
        return not self.why_not

    @property
    def why_not(self) -> str:
        if not self.agreement.agrees or self.z_evidence > LARGEST_Z:
            return "the two algorithms do not agree"
        if self.with_moved_mass is not None and self.with_moved_mass.agrees:
            return "they would also agree with masses of modes that are wrong: make longer runs"
        return ""


def compare(name: str, data: Path | None, folder: Path, recipe: Recipe) -> Compared:
    """Both algorithms' answers, and whether they agree with each other, and with a closed form where there is one."""
    asked = problem(name, data)
    folder.mkdir(parents=True, exist_ok=True)
    runs = recipe.first(asked, folder, 0), recipe.second(asked, folder, 1)
    values = [[asked.values(draws) for draws in run.draws] for run in runs]
    logs = [[asked.log_likelihoods(draws) for draws in run.draws] for run in runs]
    truth = closed_form(asked) if recipe.is_exact else of_run(runs[0], values[0], logs[0])
    beside = [
        [besides(asked, v, part, truth) for v, part in zip(*both, strict=True)]
        for both in zip(values, logs, strict=True)
    ]
    sides = [replicates(v, b, truth.marginals, run.weights) for v, b, run in zip(values, beside, runs, strict=True)]
    moved = None
    if asked.mode:  # would the second run be told from the first, if a part of one mode's mass were the other's?
        places = [moved_mass(asked.is_mode(v), MOVED) for v in values[1]]
        rows = ([part[k] for part, k in zip(parts, places, strict=True)] for parts in (values[1], beside[1]))
        moved = replicates(*rows, truth.marginals, runs[1].weights)
    apart = max(1, sum(map(len, values[0])) // DRAWS_FOR_CORRELATION)
    some, some_beside = (torch.cat(parts)[::apart] for parts in (values[0], beside[0]))
    scores = torch.cat([influences(some, truth.marginals), some_beside], dim=1)
    if recipe.is_exact:
        best = truth.exact()
        found = max((agreement(best, side, scores) for side in sides), key=lambda one: one.largest)
    else:
        best, found = sides[0], agreement(*sides, scores)
    # An evidence that only one of them knows is not confirmed.
    is_known = all(run.log_evidence for run in runs)
    truth = truth if is_known else truth._replace(log_evidence=None)
    with_moved = None if moved is None else agreement(best, moved, scores)
    others = [run.log_evidence for run in runs if is_known and run.log_evidence != truth.log_evidence]
    certificate = {
        "fingerprint": asked.fingerprint(),
        "first": recipe.is_exact * "closed form, and " + runs[0].how,
        "first run": runs[0].facts,
        "second": runs[1].how,
        "second run": runs[1].facts,
        "agreement": str(found),
        "log evidence": " and ".join(str(run.log_evidence) for run in runs if run.log_evidence) or "not known",
        **({} if with_moved is None else {f"with {MOVED:.0%} of a mode's mass moved": str(with_moved)}),
        "versions": {"bnn_utils": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "command": f"python tools/reference.py {name}",
    }
    known = summary(asked, truth, best, certificate)
    return Compared(
        known, found, with_moved, max((apart_by(truth.log_evidence, one) for one in others), default=math.nan)
    )


def apart_by(one: Estimate | None, other: Estimate | None) -> float:
    """How many joint standard errors."""
    assert one is not None
    assert other is not None
    return abs(one.value - other.value) / math.hypot(one.se, other.se)


def summary(asked: Problem, truth: Truth, best: Replicates, certificate: dict[str, Any]) -> Reference:
    """What is written down."""
    known, estimate = truth.marginals, best.estimate
    se = best.se if len(best.weights) > 1 else torch.zeros_like(estimate)
    num, rest = len(known.mean), (2 + len(LEVELS)) * len(known.mean)
    return Reference(
        name=asked.name,
        mean=known.mean,
        mean_se=se[:num],
        sd=known.sd,
        sd_se=se[num : 2 * num],
        levels=torch.tensor(LEVELS, dtype=torch.float64),
        quantiles=known.quantiles,
        below_se=se[2 * num : rest].view(len(LEVELS), num).where(~known.is_tied, torch.nan),
        log_score=Estimate(truth.log_density.mean().item(), se[rest].item()),
        log_evidence=truth.log_evidence,
        mode=Estimate(estimate[rest + 1].item(), se[rest + 1].item()) if asked.mode else None,
        certificate=certificate,
    )


def besides(asked: Problem, values: Tensor, logs: Tensor, truth: Truth) -> Tensor:
    """Of each draw: its part of the log score, to first order, and whether it is of the mode that has a name."""
    score = truth.log_density.mean() + ((logs - truth.log_density).exp() - 1).mean(1)
    return torch.stack([score, *([asked.is_mode(values).double()] if asked.mode else [])], dim=1)


def row(name: str, found: Compared) -> dict[str, Any]:
    usual, most = found.agreement.by_chance.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    known = found.known
    return {
        "problem": name,
        "first": known.certificate["first"],
        "second": known.certificate["second"],
        "numbers": len(found.agreement.z),
        "largest_z": round(found.agreement.largest, 2),
        "usual": round(usual, 2),
        "exceeded_in_5_percent": round(most, 2),
        "p_value": round(found.agreement.p_value, 3),
        "z_evidence": round(found.z_evidence, 2),
        "largest_z_with_moved_mass": None if found.with_moved_mass is None else round(found.with_moved_mass.largest, 2),
        "largest_r_hat": known.certificate["first run"].get("largest R-hat"),
        "smallest_ess": known.certificate["first run"].get("smallest bulk ESS"),
        "agrees": found.agrees,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*PROBLEMS, "all"])
    parser.add_argument("--data", type=Path, help="the folder with the UCI tables, see bnn_utils.datasets")
    arguments = parser.parse_args()
    failed = False
    for name in PROBLEMS if arguments.name == "all" else [arguments.name]:
        found = compare(name, arguments.data, FOLDER / name, RECIPES[name])
        evidence = found.known.certificate["log evidence"]
        print(f"{name}: {found.agreement}; log evidence {evidence} (z = {found.z_evidence:.2f})")
        rows = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["problem"])
        rows = pd.concat([rows[rows["problem"] != name], pd.DataFrame([row(name, found)])])
        rows = rows.sort_values("problem", key=lambda column: column.map(list(PROBLEMS).index))
        rows.astype({"numbers": int}).to_csv(TABLE, index=False)
        path = Path(str(File(name).path))
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if found.agrees:
            write(found.known, path)
            print(json.dumps(found.known.certificate, indent=1))
        else:
            failed = True
            print(f"{name}: nothing is written, as {found.why_not}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
