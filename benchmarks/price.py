"""The price of approximation: how far methods are from posteriors that are known, against the gradients they took.

    python benchmarks/price.py                              # all, into price.csv and price.md beside this file
    python benchmarks/price.py --only boxes --methods SWAG  # some of it
    python benchmarks/price.py --stored                     # page and picture again, of what was run

What is in price.csv is not run again, and methods of packages that are not installed are left out: with several
environments, call it from each. The methods are those of `approximations.py`, the posteriors those of
`bnn_utils.references`. All runs on one core. It also writes docs/price.png, and bnn_utils/resources/price.csv, the
distances that a notebook reads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import pandas as pd

from samplers import ENVIRONMENT, HERE, as_markdown, processor_name

os.environ.update(ENVIRONMENT)  # before torch and JAX count the cores

import torch
from torch import Tensor

from approximations import METHODS, Told
from bnn_utils import plots
from bnn_utils.references import Problem, Reference, reference, score
from bnn_utils.references.problems import NUM_PAIRS

NAMES = ("line", "boxes", "boxes_relu", "sine_tanh", "wine")
REPETITIONS = {1_000: 3, 10_000: 3, 100_000: 3, 1_000_000: 1, 10_000_000: 1}  # of each budget
AS_NEEDED = 0  # the budget of a method that ends on its own
SECONDS = 100.0  # a run that would take longer is left out
KEYS = ["problem", "method", "budget", "seed"]
DISTRIBUTIONS = {"laplace": "laplace-torch", "numpyro": "numpyro"}
TABLE, PICTURE = HERE / "price.csv", HERE.parent / "docs" / "price.png"
FOR_NOTEBOOK = HERE.parent / "bnn_utils" / "resources" / "price.csv"

REPORT = """# The price of approximation

`benchmarks/price.py` makes this page: each method beside posteriors whose predictions are known
(`bnn_utils.references`), by the gradients it took. A gradient is one of the log density of all the data; those of
minibatches count in proportion, and so does all that comes before the draws: climbs, warm-ups, curvatures.

Distances are in posterior standard deviations. The Wasserstein distance is that of each quantity's distribution, on
average over the quantities: predictions at given inputs, differences between some of them, and the size of the noise.
Up to 100,000 gradients there are three seeds, and numbers are their medians; 1,000 independent draws of the posterior
would be some {floor:.2f} away by chance. Beyond there is one seed, and up to 2,000 draws are kept.

MAP, Laplace and ensembles end on their own: more gradients would not change what they say. Chains start at draws of the
prior, eight of them, or fewer where each lane would have less than 1,000 gradients, and a third of the budget is for
the warm-up. SGLD, SGHMC and SWAG begin with a climb of a third of the budget, and their step size follows from the
curvature and the noise of minibatches there, by formulas that `benchmarks/approximations.py` states; none was chosen
with a distance in view. MC dropout is another network, one that drops a tenth of its hidden units. bde (microcanonical
Langevin ensembles) is left out: its networks have no tanh, two logits for two classes, and noise that depends on the
input, so that none of these posteriors is one of its.

![Distance against gradients, one panel for each posterior, one line for each method](../docs/price.png)

"""

WRONG = """## What each method gets wrong

The largest of five numbers, at each method's largest budget: how far **means** are off, in standard deviations; how
much too wide or too narrow **spreads** are, as the root mean square logarithm of the ratio of standard deviations; how
far off **correlations** are, of predictions at {pairs} pairs of inputs; how far the 5 % and 95 % quantiles are off,
after mean and spread have been put right (**tails**); and twice how far off the mass of a **mode** is. Where all are
below {small}, it says nothing.

"""

SMALL, NO_WIDTH = 0.1, 0.01

# --- measuring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(known: Reference, problem: Problem, method: str, budget: int, seed: int) -> dict[str, float | str]:
    before = time.process_time()
    told = METHODS[method].told(problem, budget, seed)
    seconds = time.process_time() - before
    package = METHODS[method].package
    facts: dict[str, float | str] = {"gradients": told.gradients, "seconds": seconds, "package": package}
    facts["version"] = version(DISTRIBUTIONS[package]) if package in DISTRIBUTIONS else ""
    return facts | distances(known, problem, told)


def distances(known: Reference, problem: Problem, told: Told) -> dict[str, float | str]:
    own = told.problem or problem
    values = own.values(told.theta)
    logs = own.log_likelihoods(told.theta)
    if not values.isfinite().all():
        return {"why": "its draws have predictions that are not finite"}
    found = score(values, known, logs)
    assert found.log_score_lost is not None
    return {
        "mean": found.mean.value,
        "sd": found.sd.value,
        "wasserstein": found.wasserstein.value,
        "mode": math.nan if found.mode is None else found.mode[0].value - found.mode[1].value,
        "log_score_lost": found.log_score_lost.value,
        "coverage": found.coverage.value,
        **shape(values.flatten(0, 1), known, problem),
    }


def shape(values: Tensor, known: Reference, problem: Problem) -> dict[str, float]:
    """Of draws ``(S, Q)``: the geometric mean of the ratios of standard deviations, how far off correlations are, and
    quantiles that mean and standard deviation don't account for.
    """
    mean, sd = values.mean(0), values.std(0, correction=0)
    varies = (known.sd > 0) & (sd > 0)
    if len(values) == 1:
        return {"width": 0.0, "correlation": math.nan, "tails": math.nan}
    rows = [int((known.levels - level).abs().argmin()) for level in (0.05, 0.95)]
    own = (values.quantile(known.levels[rows], dim=0) - mean) / sd
    wanted = (known.quantiles[rows] - known.mean) / known.sd
    return {
        "width": (sd / known.sd)[varies].log().mean().exp().item(),
        "correlation": (correlations(sd, problem) - correlations(known.sd, problem)).square().nanmean().sqrt().item(),
        "tails": (own - wanted)[:, varies].square().mean().sqrt().item(),
    }


def correlations(sd: Tensor, problem: Problem) -> Tensor:
    """Of predictions at pairs of inputs, from the standard deviations of both and of their difference."""
    num = len(problem.inputs)
    classes = problem.num_classes or 1
    of_places = sd[: num * classes].view(num, classes)[torch.linspace(0, num - 1, NUM_PAIRS + 1).long()]
    of_differences = sd[num * classes : (num + NUM_PAIRS) * classes].view(NUM_PAIRS, classes)
    one, other = of_places[:-1], of_places[1:]
    return (one.square() + other.square() - of_differences.square()) / (2 * one * other)


def budgets_of(method: str) -> dict[int, int]:
    """The budgets of a method, with how many repetitions each has."""
    return REPETITIONS if METHODS[method].has_budget else {AS_NEEDED: 3}


def too_long(rows: pd.DataFrame, problem: str, method: str, budget: int) -> str:
    """Why a run is left out, by what the one with a tenth of the budget took."""
    before = rows[(rows["problem"] == problem) & (rows["method"] == method) & (rows["budget"] * 10 == budget)]
    if before.empty or not before["seconds"].isna().all():
        seconds = 10 * before["seconds"].max()
        return f"it would take more than {SECONDS:.0f} s" if seconds > SECONDS else ""
    return str(before["why"].iloc[0])


# --- what is stored ---------------------------------------------------------------------------------------------------


def stored() -> pd.DataFrame:
    rows = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=[*KEYS, "gradients", "seconds"])
    return rows if "why" in rows else rows.assign(why=None)


def add(row: dict[str, float | str]) -> None:
    rows = stored()
    rows = pd.DataFrame([row]) if rows.empty else pd.concat([rows, pd.DataFrame([row])])
    order = {"problem": NAMES.index, "method": list(METHODS).index, "budget": int, "seed": int}
    rows = rows.sort_values(KEYS, key=lambda column: column.map(order[str(column.name)]))
    rows.to_csv(TABLE, index=False, float_format="%.5g")


def medians(rows: pd.DataFrame) -> pd.DataFrame:
    """Over repetitions, of what was run."""
    run = rows[rows["wasserstein"].notna()]
    return run.groupby(KEYS[:-1], sort=False).median(numeric_only=True).reset_index()


# --- page and picture -------------------------------------------------------------------------------------------------


def write() -> None:
    rows = stored()
    found = medians(rows)
    found[[*KEYS[:-1], "gradients", "wasserstein"]].to_csv(FOR_NOTEBOOK, index=False, float_format="%.4g")
    plots.prices(found.sort_values("method", key=lambda names: names.map(list(METHODS).index), kind="stable")).savefig(
        PICTURE
    )
    last = found.groupby(["problem", "method"], sort=False).tail(1)
    parts = [f"## {name}\n\n{by_budget(part)}\n{at_last(last[last['problem'] == name])}"
             for name, part in found.groupby("problem", sort=False)]  # fmt: skip
    wrong = last.assign(wrong=[most_wrong(row) for _, row in last.iterrows()])
    table = wrong.pivot(index="method", columns="problem", values="wrong").fillna("-")
    table = table.loc[[name for name in METHODS if name in table.index], [n for n in NAMES if n in table.columns]]
    text = REPORT.format(floor=0.03) + "\n".join(parts) + "\n" + WRONG.format(pairs=NUM_PAIRS, small=SMALL)
    text += as_markdown(table.reset_index()) + not_run(rows) + f"\nOn one core of {processor_name()}.\n"
    (HERE / "price.md").write_text(text)


def by_budget(rows: pd.DataFrame) -> str:
    """Wasserstein distances of one problem: a line for each method, a column for each budget."""
    lines = []
    for method, part in rows.groupby("method", sort=False):
        by = part.set_index("budget")["wasserstein"]
        line = {"method": method, "as needed": f"{by[0]:.3f}" if 0 in by else ""}
        lines.append(line | {f"{budget:,}": f"{by[budget]:.3f}" if budget in by else "" for budget in REPETITIONS})
    return "Wasserstein distance by budget:\n\n" + as_markdown(pd.DataFrame(lines))


def at_last(rows: pd.DataFrame) -> str:
    """All numbers of one problem, at each method's largest budget."""
    has_mode = rows["mode"].notna().any()
    shown = {
        "method": rows["method"],
        "gradients": rows["gradients"].map("{:,.0f}".format),
        "mean off": rows["mean"].map("{:.3f}".format),
        "sd off": rows["sd"].map(lambda value: f"{value:.3f}" if np.isfinite(value) else "-"),
        "width": rows["width"].map("{:.2f}".format),
        **({"mode off": rows["mode"].map("{:+.3f}".format)} if has_mode else {}),
        "log score lost": rows["log_score_lost"].map("{:.4f}".format),
        "90 % cover": rows["coverage"].map("{:.0%}".format),
        "s": rows["seconds"].map("{:.1f}".format),
    }
    return "At the largest budget:\n\n" + as_markdown(pd.DataFrame(shown))


def most_wrong(row: pd.Series) -> str:
    """The largest error, in words."""
    if row["width"] < NO_WIDTH:
        return "no spread"
    log_width = math.log(row["width"])
    spread = row["sd"] if np.isfinite(row["sd"]) else abs(log_width)  # of those that have some, as where noise is held
    wide = "too wide" if log_width > 0 else "too narrow"
    errors = {
        "means": row["mean"],
        f"spread, {wide if abs(log_width) > spread / 2 else 'too wide or too narrow'}": spread,
        "correlations": row["correlation"],
        "tails": row["tails"],
        "modes": 2 * abs(row["mode"]),
    }
    known = {name: value for name, value in errors.items() if value == value}
    worst = max(known, key=lambda name: known[name])
    return f"{worst} ({known[worst]:.2f})" if known[worst] >= SMALL else "nothing"


def not_run(rows: pd.DataFrame) -> str:
    """What is missing, and why."""
    lines = []
    missing = rows[rows["wasserstein"].isna()]
    for (method, why), part in missing.groupby(["method", "why"], sort=False):
        places = [
            f"{name} at {', '.join(f'{budget:,}' for budget in sorted(set(of_name['budget']) - {AS_NEEDED}))}"
            if of_name["budget"].max() > AS_NEEDED else str(name)
            for name, of_name in part.groupby("problem", sort=False)
        ]  # fmt: skip
        lines.append(f"- {method}, {'; '.join(places)}: {why}.")
    left_out = [name for name in METHODS if name not in set(rows["method"])]
    lines += [f"- {name}: the package {METHODS[name].package} was not installed." for name in left_out]
    return "\n## What was not run\n\n" + "\n".join([*lines, "- Other empty places."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--budgets", nargs="*", type=int, default=[AS_NEEDED, *REPETITIONS])
    parser.add_argument("--stored", action="store_true", help="run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    methods = [name for name in given.methods if find_spec(METHODS[name].package)]
    for name in set(given.methods) - set(methods):
        print(f"{name} is left out: the package {METHODS[name].package} is not installed")
    for name in given.only if not given.stored else ():
        known = reference(name)
        problem = known.problem()
        for method in methods:
            for budget, repetitions in budgets_of(method).items():
                for seed in range(repetitions if budget in given.budgets else 0):
                    key = dict(zip(KEYS, (name, method, budget, seed), strict=True))
                    rows = stored()
                    if (rows[KEYS] == list(key.values())).all(axis=1).any():
                        continue
                    why = METHODS[method].unsuitable(problem) or too_long(rows, name, method, budget)
                    row = key | ({"why": why} if why else measure(known, problem, method, budget, seed))
                    print(json.dumps(row), flush=True)
                    add(row)
    write()


if __name__ == "__main__":
    main()
