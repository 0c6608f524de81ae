"""Make the reference posterior of the tutorial's problem: many chains of replica exchange in double precision.

python tools/reference.py            # as shipped, some twenty minutes on two cores
python tools/reference.py --check    # a short run with another seed, against what is shipped
"""

from __future__ import annotations

import argparse
import math
import sys
from importlib import resources

import numpy as np
import torch
from torch import nn

from bnn_utils import (
    HMC,
    Bernoulli,
    Chain,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    boxes,
    reference,
    sample,
    square_grid,
)
from bnn_utils.diagnostics import convergence, mcse
from bnn_utils.references import FILE

CHAINS, DRAWS, WARMUP, TEMPERATURES, STEPS, BATCH = 64, 25_000, 3_000, 16, 8, 16
PLACES_AT_ONCE = 5


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    posterior = Posterior(net, boxes(), NormalPrior(precision=0.09), Bernoulli())
    grid = square_grid(num=25, limit=6.0, like=posterior.data.x)
    chain = draw(posterior, 2_000, 1_000, seed=1) if check else draw(posterior, DRAWS, WARMUP, seed=0)
    print(chain)

    # A few places at a time: all predictions at once would not fit into memory.
    checks, means, errors = [], [], []
    for places in grid.split(PLACES_AT_ONCE):
        p = posterior.predict(chain.draws, places)
        checks.append(convergence(p, places))
        means.append(p.mean((0, 1)))
        errors.append(mcse(p))
    mean, se = torch.cat(means), torch.cat(errors)
    evidence = chain.tempering.log_evidence()
    r_hat, least = max(c.r_hat.max().item() for c in checks), min(c.ess_bulk.min().item() for c in checks)
    print(f"largest R-hat {r_hat:.4f}, smallest bulk ESS {least:,.0f}, log evidence {evidence}")

    if check:
        shipped = reference()
        z = ((mean - shipped.mean) / torch.hypot(se, shipped.se)).abs().max().item()
        ours, theirs = evidence.stepping_stones, shipped.log_evidence
        z_evidence = abs(ours.value - theirs.value) / math.hypot(ours.se, theirs.se)
        print(
            f"joint standard errors from what is shipped, at most: {z:.2f} (predictions), {z_evidence:.2f} (evidence)"
        )
        sys.exit(max(z, z_evidence) > 4)
    path = resources.files("bnn_utils") / "resources" / FILE
    how = (
        f"{CHAINS} chains of {chain.kernel} in {BATCH} to a batch, {DRAWS:,} draws each after {WARMUP:,} of warmup, "
        f"seed 0, {chain.draws.dtype}, torch {torch.__version__}; largest R-hat {r_hat:.4f}, smallest bulk ESS "
        f"{least:,.0f}; log evidence by stepping stones (thermodynamic integration: {evidence.thermodynamic})"
    )
    np.savez_compressed(
        str(path), grid=grid, mean=mean, se=se, log_evidence=np.array(evidence.stepping_stones), how=np.array(how)
    )
    print(f"wrote {FILE}: {how}")


if __name__ == "__main__":
    main()
