"""A convolutional network of 100,000 weights on digits: what can be sampled of it, and how much a biased kernel errs.

    python benchmarks/large.py                     # all, into large.csv and large.md beside this file
    python benchmarks/large.py --only "MCLMC()"    # some of it

Each method runs in a process of its own, on one core, four chains as one batch. Of draws only predictions are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from samplers import HERE, in_process, processor_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bnn_utils import Data, Posterior

NUM_CHAINS, SEED, LEARNED_FROM = 4, 3, 500
ADAM_STEPS, R_HAT = 200, 1.01

REPORT = """# A network of 100,000 weights

`benchmarks/large.py` makes this table: two convolutions and two linear layers under `FanInPrior(1.41, 1)`, {dim:,}
weights that learn from {learned} digits of 8 by 8 pixels, as scikit-learn ships them, and predict the other {new:,}.
Four chains each. R-hat and ESS are of the probability of each of these digits' own class; chains agree at a digit where
R-hat is at most {limit}. Log scores are per digit, higher is better.

The last layer alone is a posterior of its own, given the features of one trained network, and HMC samples it exactly.
Of all weights, MCLMC is what fits into minutes, and it has no Metropolis step: with a quarter of the variance of its
energy error its bias falls too, so that differences between the two are what the bias does. Where the average over this
posterior predicts worse than one trained network, the prior has to be thought over.

"""

COMPARISON = """

Between means of these probabilities of two runs, over all digits, and in joint standard errors, z. By chance alone the
mean of all |z| is {mean:.2f}, and the largest of so many about {largest:.1f}.

| chains | and | mean difference | largest | mean \\|z\\| | largest \\|z\\| |
| --- | --- | --- | --- | --- | --- |
"""


class Method(NamedTuple):
    """Probabilities of classes ``(chains, draws, M, K)`` at new points, from a posterior."""

    probabilities: Callable[[Posterior, Tensor], Tensor]
    num_parameters: Callable[[Posterior], int] = lambda posterior: posterior.dim
    is_chain: bool = True


def network() -> nn.Sequential:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.SiLU(),
        nn.Flatten(), nn.Linear(512, 184), nn.SiLU(), nn.Linear(184, 10),
    )  # fmt: skip


def digits() -> tuple[Posterior, Data]:
    """The posterior, and what is held out."""
    import torch
    from sklearn.datasets import load_digits

    from bnn_utils import Categorical, Data, FanInPrior, Posterior

    raw = load_digits()
    x = torch.from_numpy((raw.data - raw.data.mean()) / raw.data.std()).float().view(-1, 1, 8, 8)
    y = torch.from_numpy(raw.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, new = order[:LEARNED_FROM], order[LEARNED_FROM:]
    prior = FanInPrior(weight=2**0.5, bias=1.0)
    return Posterior(network(), Data(x[train], y[train]), prior, Categorical()), Data(x[new], y[new])


def trained(posterior: Posterior) -> Tensor:
    """A network as they are trained, ``(D,)``: by Adam on the likelihood alone, from a draw of the prior.

    The maximum of the posterior density is of no use: of so many weights it holds nearly all at 0.
    """
    import torch

    theta = posterior.sample_prior(1, torch.Generator().manual_seed(SEED)).requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.001, maximize=True)
    for _ in range(ADAM_STEPS):
        adam.zero_grad()
        posterior.log_likelihood(theta).sum().backward()
        adam.step()
    return theta[0].detach()


def one_network(posterior: Posterior, x: Tensor) -> Tensor:
    return posterior.predict(trained(posterior)[None, None], x)


def last_layer(posterior: Posterior, x: Tensor) -> Tensor:
    """All draws of the last layer, by HMC; the other layers stay as they were trained."""
    from torch import nn
    from torch.nn.utils import vector_to_parameters

    from bnn_utils import HMC, Data, Posterior, sample

    net = copy.deepcopy(posterior.flat.module).requires_grad_(False)
    assert isinstance(net, nn.Sequential)
    vector_to_parameters(trained(posterior), net.parameters())
    features, head = net[:-1], net[-1]
    data = Data(features(posterior.data.x), posterior.data.y)
    alone = Posterior(head.requires_grad_(True), data, posterior.prior, posterior.likelihood)
    chain = sample(alone, HMC(), 1000, NUM_CHAINS, warmup=500, seed=SEED, progress=False, workers=1)
    return alone.predict(chain.draws, features(x))


def by(kernel: str, warmup: int, draws: int, thin: int = 1) -> Method:
    """Chains of a kernel, written as a reader would."""

    def probabilities(posterior: Posterior, x: Tensor) -> Tensor:
        import bnn_utils

        made = eval(kernel, vars(bnn_utils))
        keep = {"p": lambda theta: posterior.predict(theta, x)}
        chain = bnn_utils.sample(
            posterior,
            made,
            draws,
            NUM_CHAINS,
            warmup=warmup,
            thin=thin,
            seed=SEED,
            progress=False,
            workers=1,
            keep=keep,
            keep_draws=False,
        )
        return chain.kept["p"]

    return Method(probabilities)


LAST = "last layer, HMC()"
METHODS = {
    "one network": Method(one_network, is_chain=False),
    LAST: Method(last_layer, lambda posterior: 184 * 10 + 10),
    "MCLMC()": by("MCLMC()", 800, 200, 6),
    "MCLMC(), a quarter of the variance": by("MCLMC(energy_variance=0.000125)", 800, 200, 12),
    "MAMS()": by("MAMS()", 100, 100),
}


def measure(method: str, to: Path) -> dict[str, float]:
    """In this process; means and errors of the probabilities of the own class go to a file."""
    import torch

    from bnn_utils import diagnostics

    torch.set_num_threads(1)
    posterior, new = digits()
    before = time.process_time()
    p = METHODS[method].probabilities(posterior, new.x)
    seconds = time.process_time() - before
    own = p[..., range(len(new)), new.y].double()  # (chains, draws, M)
    mean = p.mean((0, 1))
    found = {
        "parameters": METHODS[method].num_parameters(posterior),
        "accuracy": (mean.argmax(-1) == new.y).double().mean().item(),
        "log_score": own.mean((0, 1)).log().mean().item(),
        "seconds": seconds,
    }
    if METHODS[method].is_chain:
        r_hat, ess = diagnostics.rhat(own), diagnostics.ess(own)
        found |= {
            "r_hat": r_hat.max().item(),
            "median_r_hat": r_hat.median().item(),
            "agree": (r_hat <= R_HAT).double().mean().item(),
            "smallest_ess": ess.min().item(),
            "median_ess": ess.median().item(),
        }
        np.savez(to / f"{list(METHODS).index(method)}.npz", mean=own.mean((0, 1)), mcse=diagnostics.mcse(own))
    return found


def compare(folder: Path) -> list[str]:
    """Chains of all weights in pairs, as lines of the page."""
    lines = []
    for first, second in combinations([name for name in METHODS if name != LAST], 2):
        paths = [folder / f"{list(METHODS).index(name)}.npz" for name in (first, second)]
        if not all(path.exists() for path in paths):
            continue
        (mean, mcse), (other, of_other) = ((one["mean"], one["mcse"]) for one in map(np.load, paths))
        z = np.abs(mean - other) / np.hypot(mcse, of_other)
        far = np.abs(mean - other)
        lines.append(f"| {first} | {second} | {far.mean():.4f} | {far.max():.3f} | {z.mean():.2f} | {z.max():.1f} |")
    return lines


def write(rows: pd.DataFrame, kept: Path) -> None:
    rows = rows.sort_values("method", key=lambda column: column.map(list(METHODS).index))
    rows.to_csv(HERE / "large.csv", index=False, float_format="%.5g")
    posterior, new = digits()
    head = ["method", "parameters", "accuracy", "log score", "R-hat", "median", "agree", "ESS", "median", "s"]
    lines = [head, ["---"] * len(head)]
    for _, row in rows.iterrows():
        of_chains = [
            f"{row[name]:{form}}"
            for name, form in {
                "r_hat": ".3f",
                "median_r_hat": ".3f",
                "agree": ".0%",
                "smallest_ess": ".0f",
                "median_ess": ".0f",
            }.items()
            if METHODS[row["method"]].is_chain
        ] or 5 * ["-"]
        lines.append(
            [
                row["method"],
                f"{row['parameters']:,.0f}",
                f"{row['accuracy']:.1%}",
                f"{row['log_score']:.4f}",
                *of_chains,
                f"{row['seconds']:.0f}",
            ]
        )
    page = REPORT.format(dim=posterior.dim, learned=len(posterior.data), new=len(new), limit=R_HAT)
    page += "\n".join(f"| {' | '.join(line)} |" for line in lines)
    page += COMPARISON.format(mean=math.sqrt(2 / math.pi), largest=norm.isf(0.5 / len(new)))
    page += "\n".join(compare(kept))
    (HERE / "large.md").write_text(f"{page}\n\nOn one core of {processor_name()}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--kept", type=Path, default=HERE.parent / "build" / "large", help="where means are kept")
    parser.add_argument("--one", metavar="METHOD", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.kept)))
        return
    given.kept.mkdir(parents=True, exist_ok=True)
    for method in given.only:
        found = json.loads(in_process(__file__, "--one", method, "--kept", str(given.kept)))
        row = pd.DataFrame([{"method": method} | found])
        print(row.to_string(), flush=True)
        path = HERE / "large.csv"
        before = pd.read_csv(path) if path.exists() else row.iloc[:0]
        write(pd.concat([before[before["method"] != method], row]), given.kept)


if __name__ == "__main__":
    main()
