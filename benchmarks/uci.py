"""Regression on UCI data: what methods predict on splits that others published numbers for, and whether chains agree.

    python benchmarks/uci.py                                  # all, into uci.csv and uci.md beside this file
    python benchmarks/uci.py --only yacht --splits 0 1        # some of it
    python benchmarks/uci.py --stored                         # the page again, of what was run

What is in uci.csv is not run again. The folder of the data (`--data`) has one for each set, with ``data.txt`` and the
rows of each split (Hernández-Lobato and Adams 2015; Gal and Ghahramani 2016). Each method runs in a process of its own,
on one core. The network has one hidden layer of 50 ReLU, noise that is inferred, and sees standardised numbers; all
scores are in the data's units.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from samplers import HERE, NUM_CHAINS, UCI, in_process, processor_name

if TYPE_CHECKING:
    from torch import Tensor

    from bnn_utils import Data, Posterior

SPLITS, HIDDEN, SEED = 20, 50, 5
PREDICTIVE_DRAWS = 2000  # by which intervals and CRPS are judged
KEYS = ["data", "split", "method"]

REPORT = """# Regression on UCI data

`make uci` makes this table: one hidden layer of 50 ReLU, `FanInPrior(2, 1)`, noise inferred (`LogScale`), inputs and
targets standardised by those that are learned from, scores of the points held out in the data's units. Means over
splits with their standard errors; of chains the largest R-hat and the smallest ESS of any prediction in any split.
The log score is that of the predictive density, higher is better; 90 % intervals should cover 90 %.

"""


class Method(NamedTuple):
    """Draws ``(chains, draws, D)`` of a posterior from a seed; `is_chain` where R-hat and ESS mean something."""

    draw: Callable[[Posterior, int], Tensor]
    is_chain: bool


def by(kernel: str, warmup: int, draws: int) -> Method:
    """Chains of a kernel, written as a reader would."""

    def draw(posterior: Posterior, seed: int) -> Tensor:
        import bnn_utils

        made = eval(kernel, vars(bnn_utils))
        return bnn_utils.sample(
            posterior, made, draws, NUM_CHAINS, warmup=warmup, seed=seed, progress=False, workers=1
        ).draws

    return Method(draw, True)


def maxima(num: int) -> Method:
    """Maxima, each as one draw."""

    def draw(posterior: Posterior, seed: int) -> Tensor:
        from bnn_utils import find_map

        return find_map(posterior, num, seed=seed, progress=False).theta[:, None]

    return Method(draw, False)


METHODS = {
    "MAP": maxima(1),
    "ensemble of 5 MAPs": maxima(5),
    "HMC()": by("HMC()", 1000, 2000),
    "ChEES()": by("ChEES()", 1000, 2000),
    "MAMS()": by("MAMS()", 1000, 2000),
    "NUTS()": by("NUTS()", 1000, 2000),
}


def split(folder: Path, number: int) -> tuple[Data, Data]:
    """What is learned from, and what is held out, in the data's units."""
    import torch

    from bnn_utils import Data

    table = np.loadtxt(folder / "data.txt")
    columns = {part: np.loadtxt(folder / f"index_{part}.txt").astype(int) for part in ("features", "target")}
    x, y = (torch.from_numpy(table[:, columns[part]]).float() for part in ("features", "target"))
    rows = (np.loadtxt(folder / f"index_{part}_{number}.txt").astype(int) for part in ("train", "test"))
    train, test = (Data(x[row], y[row].flatten()) for row in rows)
    return train, test


def posterior_of(train: Data) -> Posterior:
    from torch import nn

    from bnn_utils import FanInPrior, Gaussian, LogScale, Posterior, Standardise

    net = nn.Sequential(
        Standardise(train.x), nn.Linear(train.x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), LogScale()
    )
    return Posterior(net, train, FanInPrior(2, 1), Gaussian(units=Standardise(train.y)))


def measure(folder: Path, number: int, name: str) -> dict[str, float]:
    """In this process."""
    import torch

    from bnn_utils import diagnostics
    from bnn_utils.predict import coverage, crps, log_score, predictive_mean

    torch.set_num_threads(1)
    train, test = split(folder, number)
    posterior, method = posterior_of(train), METHODS[name]
    before = time.process_time()
    draws = method.draw(posterior, SEED + number)
    seconds = time.process_time() - before
    predictions = posterior.predict(draws, test.x).double()
    flat = draws.flatten(0, 1)
    some = flat[torch.linspace(0, len(flat) - 1, PREDICTIVE_DRAWS).long()]  # the same several times, if they are few
    targets = posterior.predictive_draws(some, test.x, seed=SEED)
    return {
        "rmse": (predictive_mean(predictions, of_classes=False) - test.y).square().mean().sqrt().item(),
        "log_score": log_score(posterior.log_likelihoods(draws, test).double()).mean().item(),
        "crps": crps(targets, test.y).mean().item(),
        "coverage": coverage(targets, test.y).value,
        "r_hat": diagnostics.rhat(predictions).max().item() if method.is_chain else np.nan,
        "smallest_ess": diagnostics.ess(predictions).min().item() if method.is_chain else np.nan,
        "seconds": seconds,
        "learned_from": len(train),
        "held_out": len(test),
    }


def stored() -> pd.DataFrame:
    path = HERE / "uci.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)


def write(rows: pd.DataFrame) -> None:
    """Table and page, in the order of sets and methods."""
    order = {"data": list(UCI).index, "split": int, "method": list(METHODS).index}
    rows = rows.sort_values(KEYS, key=lambda column: column.map(order[column.name]))
    rows.to_csv(HERE / "uci.csv", index=False, float_format="%.5g")
    parts = [f"## {name}\n\n{table(part)}" for name, part in rows.groupby("data", sort=False)]
    (HERE / "uci.md").write_text(REPORT + "\n\n".join(parts) + f"\n\nOn one core of {processor_name()}.\n")


def table(rows: pd.DataFrame) -> str:
    """A line for each method; differences of log scores are paired by split, and from the best method's."""
    from bnn_utils.predict import mean_difference

    best = rows.groupby("method")["log_score"].mean().idxmax()
    of_best = rows[rows["method"] == best].set_index("split")["log_score"]
    head = [
        "method",
        "splits",
        "RMSE",
        "log score",
        "behind the best",
        "CRPS",
        "90 % cover",
        "R-hat",
        "ESS",
        "s a split",
    ]
    lines = [head, ["---"] * len(head)]
    for method, part in rows.groupby("method", sort=False):
        behind = (of_best - part.set_index("split")["log_score"]).dropna()
        overlap = (part["held_out"] / part["learned_from"]).iloc[0]
        difference = mean_difference(behind.to_numpy(), overlap) if len(behind) > 1 and method != best else None
        is_chain = part["r_hat"].notna().all()
        lines.append(
            [
                method,
                str(len(part)),
                *(mean_and_error(part[score]) for score in ("rmse", "log_score")),
                "-" if difference is None else f"{difference.value:.2f} ± {difference.se:.2f}",
                mean_and_error(part["crps"]),
                f"{np.average(part['coverage'], weights=part['held_out']):.0%}",
                f"{part['r_hat'].max():.3f}" if is_chain else "-",
                f"{part['smallest_ess'].min():.0f}" if is_chain else "-",
                f"{part['seconds'].mean():.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_and_error(values: pd.Series) -> str:
    return f"{values.mean():.2f}" + (f" ± {values.sem():.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=UCI, choices=UCI)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--splits", nargs="*", type=int, default=range(SPLITS))
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "uci", help="the folder of UCI sets")
    parser.add_argument("--stored", action="store_true", help="run nothing")
    parser.add_argument("--one", nargs=3, metavar=("DATA", "SPLIT", "METHOD"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, number, method = given.one
        print(json.dumps(measure(given.data / name, int(number), method)))
        return
    todo = [(name, number, method) for name in given.only for number in given.splits for method in given.methods]
    done = set(stored()[KEYS].itertuples(index=False, name=None))
    todo = [] if given.stored else [key for key in todo if key not in done]
    for count, (name, number, method) in enumerate(todo, start=1):
        if not (given.data / name).is_dir():
            print(f"{name} is left out: it is not in {given.data}")
            continue
        found = json.loads(in_process(__file__, "--one", name, str(number), method, "--data", str(given.data)))
        row = dict(zip(KEYS, (name, number, method), strict=True)) | found
        print(f"{count} of {len(todo)}: {json.dumps(row)}", flush=True)
        rows = stored()
        write(pd.DataFrame([row]) if rows.empty else pd.concat([rows, pd.DataFrame([row])]))
    if given.stored:
        write(stored())


if __name__ == "__main__":
    main()
