"""Make the reference posterior of the tutorial's problem: many chains of replica exchange in double precision.

python tools/reference.py            # as shipped, some twenty minutes on two cores
python tools/reference.py --check    # a short run with another seed, against what is shipped
"""

from __future__ import annotations

import argparse
import math
import sys
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils import (
    HMC,
    Chain,
    Posterior,
    ReplicaExchange,
    reference,
    sample,
    square_grid,
    tutorial,
)
from bnn_utils.diagnostics import convergence, mcse
from bnn_utils.evidence import Evidence
from bnn_utils.references import FILE

CHAINS, DRAWS, WARMUP, TEMPERATURES, STEPS, BATCH = 64, 25_000, 3_000, 16, 8, 16
PLACES_AT_ONCE = 5
SEGMENT = 4, 1_500  # chains and draws of the short runs that the standard errors are tried on
Z_95, COVERAGE = 1.96, (0.93, 0.97)  # and what 95 % intervals are to cover
LARGEST_Z = 4.0


def draw(posterior: Posterior, num_samples: int, warmup: int, seed: int) -> Chain:
    return sample(
        posterior,
        ReplicaExchange(HMC(step_size=0.05, num_steps=STEPS), num_temperatures=TEMPERATURES),
        num_samples,
        num_chains=CHAINS,
        warmup=warmup,
        seed=seed,
        batch_size=BATCH,
        workers=2,
    )


class Findings(NamedTuple):
    """What a run says."""

    grid: Tensor  # (M, 2)
    mean: Tensor  # (M,), predictions
    se: Tensor  # (M,)
    coverage: Tensor  # (M,), of 95 % intervals of segments of the run
    evidence: Evidence
    quality: str


def findings(posterior: Posterior, chain: Chain) -> Findings:
    grid = square_grid(num=25, limit=6.0, like=posterior.data.x)
    # A few places at a time: all predictions at once would not fit into memory.
    checks, means, coverages = [], [], []
    for places in grid.split(PLACES_AT_ONCE):
        p = posterior.predict(chain.draws, places)
        checks.append(convergence(p, places))
        means.append(p.mean((0, 1)))
        coverages.append(coverage(p))
    r_hat, least = max(c.r_hat.max().item() for c in checks), min(c.ess_bulk.min().item() for c in checks)
    covered = torch.cat(coverages)
    quality = (
        f"largest R-hat {r_hat:.4f}, smallest bulk ESS {least:,.0f}, 95 % intervals of {' x '.join(map(str, SEGMENT))} "
        f"of its draws cover {covered.mean():.1%} of the predictions"
    )
    return Findings(
        grid, torch.cat(means), torch.cat([c.mcse for c in checks]), covered, chain.tempering.log_evidence(), quality
    )


def coverage(p: Tensor) -> Tensor:
    """How many 95 % intervals of short runs, cut out of ``(chains, draws, M)``, hold the mean of all: ``(M,)``."""
    chains, length = SEGMENT
    groups, parts = len(p) // chains, p.shape[1] // length
    runs = p[: groups * chains, : parts * length].view(groups, chains, parts, length, -1).permute(1, 3, 0, 2, 4)
    z = (runs.mean((0, 1)) - p.mean((0, 1))) / mcse(runs)
    return (z.abs() < Z_95).double().mean((0, 1))


def compare(found: Findings) -> bool:
    """Whether a run agrees with what is shipped."""
    shipped = reference()
    z = ((found.mean - shipped.mean) / torch.hypot(found.se, shipped.se)).abs().max().item()
    ours, theirs = found.evidence.stepping_stones, shipped.log_evidence
    z_evidence = abs(ours.value - theirs.value) / math.hypot(ours.se, theirs.se)
    print(f"joint standard errors from what is shipped, at most: {z:.2f} (predictions), {z_evidence:.2f} (evidence)")
    return max(z, z_evidence) <= LARGEST_Z


def write(found: Findings, chain: Chain) -> None:
    path = resources.files("bnn_utils") / "resources" / FILE
    evidence = found.evidence
    how = (
        f"{CHAINS} chains of {chain.kernel} in {BATCH} to a batch, {DRAWS:,} draws each after {WARMUP:,} of warmup, "
        f"seed 0, {chain.draws.dtype}, torch {torch.__version__}; {found.quality}; log evidence by stepping stones "
        f"(thermodynamic integration: {evidence.thermodynamic})"
    )
    arrays = {"grid": found.grid, "mean": found.mean, "se": found.se}
    np.savez_compressed(str(path), **arrays, log_evidence=np.array(evidence.stepping_stones), how=np.array(how))
    print(f"wrote {FILE}: {how}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    posterior = tutorial.posterior()
    chain = draw(posterior, 2_000, 1_000, seed=1) if check else draw(posterior, DRAWS, WARMUP, seed=0)
    found = findings(posterior, chain)
    print(f"{chain}\n{found.quality}; by place {found.coverage.min():.1%} to {found.coverage.max():.1%}")
    print(f"log evidence {found.evidence}")
    if check:  # of too few short runs to ask what their intervals cover
        sys.exit(not compare(found))
    covered = found.coverage.mean().item()
    if not COVERAGE[0] <= covered <= COVERAGE[1]:
        sys.exit(f"95 % intervals cover {covered:.1%}: nothing is written, as no standard error here can be trusted")
    write(found, chain)


if __name__ == "__main__":
    main()
