"""Regression on UCI data: what methods predict on splits that others published numbers for, and whether chains agree.

    python benchmarks/uci.py                                  # all, into uci.csv and uci.md beside this file
    python benchmarks/uci.py --only yacht --splits 0 1        # some of it
    python benchmarks/uci.py --stored                         # the page again, of what was run

What is in uci.csv is not run again. Tables are those of `bnn_utils.datasets`, kept in the folder `--data`. Each method
runs in a process of its own, on one core. The network has one hidden layer of 50 ReLU, noise that is inferred, and sees
standardised numbers; all scores are in the data's units. Methods of packages that are not installed are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from samplers import HERE, NUM_CHAINS, UCI, Budget, Compiled, blackjax_nuts, in_process, processor_name

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributions import Distribution

    from bnn_utils import Posterior

SPLITS, HIDDEN, SEED = 20, 50, 5
R_HAT = 1.01
PREDICTIVE_DRAWS = 2000  # by which intervals and CRPS are judged
KEYS = ["data", "split", "method"]

# Transitions of our chains: as many as it took until they agreed on bostonHousing, and elsewhere about as long.
BUDGETS = {
    "bostonHousing": Budget(500, 2000),
    "concrete": Budget(1000, 5000),
    "energy": Budget(500, 1000),
    "yacht": Budget(500, 1000),
}
BY_INPUT = Budget(500, 1500)  # of chains of a network that computes the noise too
NUTS_BUDGET = Budget(300, 300)  # of 1,023 steps each

# RMSE and log score of others: PBP (Hernández-Lobato and Adams 2015) and deep ensembles (Lakshminarayanan, Pritzel and
# Blundell 2017), means of all 20 splits; MC dropout with long training (Gal and Ghahramani's page of results by split),
# of the first 8 splits of bostonHousing and yacht and the first 3 of the others.
PUBLISHED = {
    "bostonHousing": {"PBP": (3.01, -2.57), "deep ensembles": (3.28, -2.41), "MC dropout": (2.71, -2.38)},
    "concrete": {"PBP": (5.67, -3.16), "deep ensembles": (6.03, -3.06), "MC dropout": (4.62, -2.92)},
    "energy": {"PBP": (1.80, -2.04), "deep ensembles": (2.09, -1.38), "MC dropout": (0.47, -1.19)},
    "yacht": {"PBP": (1.02, -1.63), "deep ensembles": (1.58, -1.18), "MC dropout": (0.64, -1.24)},
}

REPORT = """# Regression on UCI data

`make uci` makes this table: one hidden layer of 50 ReLU, `FanInPrior(2, 1)`, noise inferred (`LogScale`), inputs and
targets standardised by those that are learned from, scores of the points held out in the data's units. Scores are means
over splits with their standard errors. The log score is that of the predictive density, higher is better; how far it is
behind the best is the mean over splits that both methods have, in pairs, with an error that allows for rows that splits
share. 90 % intervals should cover 90 %. Published numbers are of PBP and deep ensembles over all 20 splits, and of MC
dropout over the first 8 (bostonHousing, yacht) or 3.

There are eight chains of each kernel. R-hat and ESS are of the predictions at all points held out: the largest R-hat
and the smallest ESS of all splits, and the median. Gradients are those of the draws. Seconds are of one core, with
warm-up, predictions and the compilation of other packages.

"""


class Told(NamedTuple):
    """What networks say at new points, outputs ``(chains, draws, M, 2)`` of means and log scales in standard units."""

    outputs: Tensor
    gradients: float = float("nan")


class Method(NamedTuple):
    """What predicts: a function of a posterior, new points, a seed and the table's budget of transitions."""

    told: Callable[[Posterior, Tensor, int, Budget], Told]
    is_chain: bool = False  # where R-hat and ESS mean something
    package: str = "bnn_utils"
    by_input: bool = False  # whether the network computes the noise too


def outputs_of(posterior: Posterior, draws: Tensor, x: Tensor) -> Tensor:
    import torch

    return torch.stack([posterior.outputs(one, x) for one in draws])


# --- ours -------------------------------------------------------------------------------------------------------------


def by(kernel: str, by_input: bool = False, init: Literal["map"] | None = None, own: Budget | None = None) -> Method:
    """Chains of a kernel, written as a reader would; with a budget of their own, or the table's."""

    def told(posterior: Posterior, x: Tensor, seed: int, budget: Budget) -> Told:
        import bnn_utils

        made, (warmup, draws, thin) = eval(kernel, vars(bnn_utils)), own or budget
        chain = bnn_utils.sample(
            posterior,
            made,
            draws,
            NUM_CHAINS,
            warmup=warmup,
            thin=thin,
            init=init,
            seed=seed,
            progress=False,
            workers=1,
        )
        return Told(outputs_of(posterior, chain.draws, x), chain.stats["n_steps"].double().sum().item())

    return Method(told, True, by_input=by_input)


def maxima(num: int) -> Method:
    """Maxima, each as one draw."""

    def told(posterior: Posterior, x: Tensor, seed: int, budget: Budget) -> Told:
        from bnn_utils import find_map

        return Told(outputs_of(posterior, find_map(posterior, num, seed=seed, progress=False).theta[:, None], x))

    return Method(told)


# --- theirs -----------------------------------------------------------------------------------------------------------


class Plain(NamedTuple):
    """A posterior without units, for other packages: the same density of theta, in standardised numbers."""

    posterior: Posterior
    net: nn.Sequential
    x: Tensor  # new points


def plain(posterior: Posterior, x: Tensor) -> Plain:
    from torch import nn

    from bnn_utils import Data, Gaussian, Posterior

    net, likelihood = copy.deepcopy(posterior.flat.module), posterior.likelihood
    assert isinstance(net, nn.Sequential)
    assert isinstance(likelihood, Gaussian)
    assert likelihood.units is not None
    scaling, *layers = list(net)
    rest = nn.Sequential(*layers)
    data = Data(scaling(posterior.data.x), likelihood.units(posterior.data.y))
    return Plain(Posterior(rest, data, posterior.prior, Gaussian()), rest, scaling(x))


def nuts(posterior: Posterior, x: Tensor, seed: int, budget: Budget) -> Told:
    """BlackJAX's, from draws of the prior, with its window adaptation."""
    import torch

    starts = posterior.sample_prior(NUM_CHAINS, torch.Generator().manual_seed(seed)).numpy()
    run = blackjax_nuts(plain(posterior, x).posterior, NUTS_BUDGET)
    assert isinstance(run, Compiled)
    run.prepare(starts)
    return Told(outputs_of(posterior, torch.from_numpy(run(starts, seed).copy()), x))


def laplace(posterior: Posterior, x: Tensor, seed: int, budget: Budget) -> Told:
    """laplace-torch: linear in its weights around the MAP, with all of the curvature, and the noise of the MAP."""
    import torch
    from laplace import Laplace
    from torch.nn.utils import vector_to_parameters
    from torch.utils.data import DataLoader, TensorDataset

    from bnn_utils import LogScale, find_map
    from bnn_utils.priors import DiagonalNormal

    posterior = posterior.in_double()  # at a maximum the noise is so small that single precision inverts no curvature
    same, net, new = plain(posterior, x.double())
    vector_to_parameters(find_map(posterior, 1, seed=seed, progress=False).theta[0], net.parameters())
    mean, last, prior = net[:-1], net[-1], same.prior_distribution
    assert isinstance(last, LogScale)
    assert isinstance(prior, DiagonalNormal)
    precision, noise = prior.precision[: sum(p.numel() for p in mean.parameters())], last.log_scale.exp().item()
    fitted = Laplace(mean, "regression", "all", "full", prior_precision=precision, sigma_noise=noise)
    fitted.fit(DataLoader(TensorDataset(same.data.x, same.data.y[:, None]), batch_size=100))
    draws = fitted.functional_samples(new, "glm", n_samples=1000, generator=torch.Generator().manual_seed(seed))
    return Told(last(draws.detach()).detach()[None].float())


def ensemble_of_chains(posterior: Posterior, x: Tensor, seed: int, budget: Budget) -> Told:
    """bde: eight networks, trained in the usual way, and a chain of MCLMC from each; its noise depends on the input."""
    import torch
    from bde import BdeRegressor
    from torch.nn.functional import softplus

    same, _, new = plain(posterior, x)
    model = BdeRegressor(
        n_members=NUM_CHAINS, hidden_layers=[HIDDEN], epochs=1000, validation_split=0.15, lr=1e-3, weight_decay=1e-4,
        patience=20, warmup_steps=5000, n_samples=1250, n_thinning=10, seed=seed,
    )  # fmt: skip
    model.fit(same.data.x.numpy(), same.data.y.numpy())
    raw = torch.from_numpy(np.array(model.predict(new.numpy(), raw=True)))
    mean, of_scale = raw.chunk(2, dim=-1)
    return Told(torch.cat([mean, softplus(of_scale).log()], dim=-1))


METHODS = {
    "MAP": maxima(1),
    "ensemble of 5 MAPs": maxima(5),
    "Laplace (laplace-torch)": Method(laplace, package="laplace"),
    "bde": Method(ensemble_of_chains, package="bde"),
    "HMC()": by("HMC()"),
    "HMC(), noise by input": by("HMC()", by_input=True, own=BY_INPUT),
    "HMC(), from maxima": by("HMC()", init="map"),
    "HMC(num_steps=5000)": by("HMC(num_steps=5000)"),
    "NUTS (BlackJAX)": Method(nuts, True, "blackjax"),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def posterior_of(name: str, number: int, by_input: bool, folder: Path | None) -> tuple[Posterior, Tensor, Tensor]:
    """The posterior of a split in float32, and the inputs and targets that are held out."""
    import torch
    from torch import nn

    from bnn_utils import FanInPrior, Gaussian, LogScale, Posterior, Standardise, datasets

    train, test = (part.to(torch.float32) for part in datasets.load(name, folder).split(number))
    last = [nn.Linear(HIDDEN, 2)] if by_input else [nn.Linear(HIDDEN, 1), LogScale()]
    net = nn.Sequential(Standardise(train.x), nn.Linear(train.x.shape[1], HIDDEN), nn.ReLU(), *last)
    likelihood = Gaussian(link="softplus" if by_input else "exp", units=Standardise(train.y))
    return Posterior(net, train, FanInPrior(2, 1), likelihood), test.x, test.y


def measure(name: str, number: int, method: str, folder: Path | None) -> dict[str, float]:
    """In this process."""
    import torch

    from bnn_utils.predict import coverage, crps, log_score

    torch.set_num_threads(1)
    posterior, x, y = posterior_of(name, number, METHODS[method].by_input, folder)
    before = time.process_time()
    told = METHODS[method].told(posterior, x, SEED + number, BUDGETS[name])
    seconds = time.process_time() - before
    noise = posterior.likelihood.distribution(told.outputs)
    flat = told.outputs.flatten(0, 1)
    some = flat[torch.linspace(0, len(flat) - 1, PREDICTIVE_DRAWS).long()]  # the same several times, if they are few
    one = posterior.likelihood.distribution(some)
    draws = one.mean + one.stddev * torch.randn(one.mean.shape, generator=torch.Generator().manual_seed(SEED))
    return {
        "rmse": (noise.mean.double().mean((0, 1)) - y).square().mean().sqrt().item(),
        "log_score": log_score(noise.log_prob(y).double()).mean().item(),
        "crps": crps(draws, y).mean().item(),
        "coverage": coverage(draws, y).value,
        **(agreement(posterior, noise, x) if METHODS[method].is_chain else {}),
        "gradients": told.gradients,
        "seconds": seconds,
        "learned_from": len(posterior.data),
        "held_out": len(y),
    }


def agreement(posterior: Posterior, noise: Distribution, x: Tensor) -> dict[str, float]:
    """Of chains about predictions at points ``(M, P)`` that are held out, and about the size of the noise."""
    import torch

    from bnn_utils import Standardise, diagnostics

    means, log_noise = noise.mean.double(), noise.stddev.double().log().mean(-1)  # (chains, draws, M), (chains, draws)
    log_noise = log_noise - posterior.data.y.std(correction=0).log()
    r_hat, ess, of_noise = diagnostics.rhat(means), diagnostics.ess(means), log_noise.mean(1)
    scaling, apart = Standardise(posterior.data.x), r_hat > R_HAT
    to_nearest = torch.cdist(scaling(x), scaling(posterior.data.x)).amin(1)
    return {
        "r_hat": r_hat.max().item(),
        "median_r_hat": r_hat.median().item(),
        "smallest_ess": ess.min().item(),
        "median_ess": ess.median().item(),
        "apart": apart.sum().item(),
        "distance_apart": to_nearest[apart].median().item(),  # to the nearest row that is learned from
        "distance_others": to_nearest[~apart].median().item(),
        "noise_r_hat": diagnostics.rhat(log_noise).item(),
        "least_log_noise": of_noise.min().item(),
        "largest_log_noise": of_noise.max().item(),
        "sd_of_log_noise": log_noise.std(1).mean().item(),  # within chains
    }


def stored() -> pd.DataFrame:
    path = HERE / "uci.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)


def write(rows: pd.DataFrame) -> None:
    """Table and page, in the order of sets and methods."""
    order = {"data": list(UCI).index, "split": int, "method": list(METHODS).index}
    rows = rows.sort_values(KEYS, key=lambda column: column.map(order[column.name]))
    rows.to_csv(HERE / "uci.csv", index=False, float_format="%.5g")
    of_sets = rows.groupby("data", sort=False)
    parts = ["\n\n".join([f"## {name}", scores(part), chains(part), reasons(part)]) for name, part in of_sets]
    (HERE / "uci.md").write_text(REPORT + "\n\n".join(parts) + f"\n\nOn one core of {processor_name()}.\n")


def scores(rows: pd.DataFrame) -> str:
    """A line for each method; differences of log scores are paired by split, and from the best that has all splits."""
    from bnn_utils.predict import mean_difference

    everywhere = rows.groupby("method").filter(lambda part: part["split"].nunique() == rows["split"].nunique())
    best = everywhere.groupby("method")["log_score"].mean().idxmax()
    of_best = rows[rows["method"] == best].set_index("split")["log_score"]
    lines = [["method", "splits", "RMSE", "log score", "behind the best", "CRPS", "90 % cover"]]
    for method, part in rows.groupby("method", sort=False):
        behind = (of_best - part.set_index("split")["log_score"]).dropna()
        overlap = (part["held_out"] / part["learned_from"]).iloc[0]
        difference = mean_difference(behind.to_numpy(), overlap) if len(behind) > 1 and method != best else None
        lines.append(
            [
                method,
                str(len(part)),
                *(mean_and_error(part[score]) for score in ("rmse", "log_score")),
                "-" if difference is None else with_error(difference.value, difference.se),
                mean_and_error(part["crps"]),
                f"{np.average(part['coverage'], weights=part['held_out']):.0%}",
            ]
        )
    for method, (rmse, score) in PUBLISHED[str(rows["data"].iloc[0])].items():
        lines.append([f"{method}, published", "", f"{rmse:.2f}", f"{score:.2f}", "", "", ""])
    return table(lines)


def chains(rows: pd.DataFrame) -> str:
    """A line for each method that makes chains."""
    lines = [
        ["chains", "splits", "largest R-hat", "median", "smallest ESS", "median", "million gradients", "s a split"]
    ]
    for method, part in rows.groupby("method", sort=False):
        if METHODS[str(method)].is_chain:
            lines.append(
                [
                    method,
                    str(len(part)),
                    f"{part['r_hat'].max():.3f}",
                    f"{part['median_r_hat'].median():.3f}",
                    f"{part['smallest_ess'].min():.0f}",
                    f"{part['median_ess'].median():.0f}",
                    f"{part['gradients'].mean() / 1e6:.1f}" if part["gradients"].notna().all() else "-",
                    f"{part['seconds'].mean():.0f}",
                ]
            )
    return table(lines) if len(lines) > 1 else ""


def table(lines: list[list[str]]) -> str:
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def reasons(rows: pd.DataFrame) -> str:
    """Where chains of HMC() don't agree, and in what they differ."""
    rows = rows[rows["method"] == "HMC()"]
    apart = rows[rows["r_hat"] > R_HAT]
    known = apart.dropna(subset="apart")
    if rows.empty:
        return ""
    said = f"Chains of HMC() agree in {len(rows) - len(apart)} of {len(rows)} splits."
    if apart.empty:
        return said
    points = ""
    if len(known):
        ratio = (known["distance_apart"] / known["distance_others"]).median()  # no number where all are apart
        far = f", which lie {ratio:.1f} times as far from the nearest row that was learned from as the rest"
        recorded = f" (recorded in {len(known)} of {len(apart)})" * (len(known) < len(apart))
        points = (
            f" R-hat exceeds {R_HAT} at {from_to(known['apart'], '.0f')} of {known['held_out'].iloc[0]} points"
            f"{far * bool(ratio > 0)}{recorded}."
        )
    range_of_noise = apart["largest_log_noise"] - apart["least_log_noise"]
    return (
        f"{said} In the others:{points} R-hat of the noise is {from_to(apart['noise_r_hat'], '.3f')}: "
        f"means of chains lie up to {100 * np.expm1(range_of_noise.max()):.0f} % "
        f"apart, {(range_of_noise / apart['sd_of_log_noise']).max():.1f} standard deviations of one chain. It is "
        f"{np.exp(rows['least_log_noise'].min()):.2g} to {np.exp(rows['largest_log_noise'].max()):.2g} standard "
        "deviations of the targets."
    )


def from_to(values: pd.Series, form: str) -> str:
    ends = f"{values.min():{form}}", f"{values.max():{form}}"
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def mean_and_error(values: pd.Series) -> str:
    return with_error(values.mean(), values.sem()) if len(values) > 1 else f"{values.mean():.2f}"


def with_error(value: float, error: float) -> str:
    digits = 2 if error < 10 else 0
    return f"{value:.{digits}f}\u00a0±\u00a0{error:.{digits}f}"  # in one line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=UCI, choices=UCI)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--splits", nargs="*", type=int, default=range(SPLITS))
    parser.add_argument("--data", type=Path, help="the folder of tables; without it, that of `bnn_utils.datasets`")
    parser.add_argument("--stored", action="store_true", help="run nothing")
    parser.add_argument("--one", nargs=3, metavar=("DATA", "SPLIT", "METHOD"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, number, method = given.one
        print(json.dumps(measure(name, int(number), method, given.data)))
        return
    if given.stored:
        write(stored())
        return
    done = set(stored()[KEYS].itertuples(index=False, name=None))
    methods = [name for name in given.methods if find_spec(METHODS[name].package)]
    for name in set(given.methods) - set(methods):
        print(f"{name} is left out: the package {METHODS[name].package} is not installed")
    todo = [(name, number, method) for name in given.only for number in given.splits for method in methods]
    todo = [key for key in todo if key not in done]
    folder = [] if given.data is None else ["--data", str(given.data)]
    for count, (name, number, method) in enumerate(todo, start=1):
        try:
            found = json.loads(in_process(__file__, "--one", name, str(number), method, *folder))
        except SystemExit as error:  # the others need not wait for it
            print(f"{count} of {len(todo)}: {error}", flush=True)
            continue
        row = dict(zip(KEYS, (name, number, method), strict=True)) | found
        print(f"{count} of {len(todo)}: {json.dumps(row)}", flush=True)
        rows = stored()  # again, as another process may have added to it
        write(pd.DataFrame([row]) if rows.empty else pd.concat([rows, pd.DataFrame([row])]))


if __name__ == "__main__":
    main()
