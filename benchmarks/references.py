"""The page of references: pictures, what is hard about each, how it was confirmed, and the best sampler so far.

    python benchmarks/references.py

Reads the answers that come with the package, references.csv, which `tools/reference.py` writes, and price.csv, which
`benchmarks/price.py` writes; makes references.md beside this file and docs/references.png. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bnn_utils.plots.style import probability_contours, scatter, square
from bnn_utils.references import PROBLEMS, Problem, Reference, names, reference
from samplers import as_markdown

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs" / "references.png"
COLUMNS, DPI = 4, 90
BAND, INK = "#92c5de", "#053061"

PAGE = """# Posteriors that are known

`bnn_utils.references` has {num} posteriors of small networks, each with its answers: the mean, the standard deviation
and 23 quantiles of predictions at fixed inputs, of differences between predictions at eight pairs of them, and of the
noise where it is inferred; the log score on points that are held out; the log evidence, where two algorithms know it;
all with Monte Carlo standard errors. So that whoever writes a sampler for Bayesian neural networks, in whatever
package, can ask how far its draws are from the truth, and not only whether they predict well:

```python
from bnn_utils.references import reference, score

known = reference("sine_tanh")
score(lambda x: draws_of_predictions(x), known)      # or a chain, or ArviZ's data
```

![Predictions of each posterior, means and intervals](../docs/references.png)

Maps are the probability of class 1, bands hold 50 % and 90 % of the posterior; of other problems, predictions are in
the order of their means.

{table}

The best sampler so far is the one with the smallest Wasserstein distance (in posterior standard deviations) in
[the price of approximation](price.md), and the gradients that it took. Below some 0.03, which so many draws of the
posterior itself would have, methods can't be ranked.

## Confirmed twice

Each was computed by two algorithms that share as little as could be found: replica exchange from the prior, and
sequential Monte Carlo, which has particles in place of chains; or, where noise that is inferred makes weights so stiff
that particles hardly move, MAMS, which moves at constant speed. The largest network was too large for the first two:
there it was HMC and MAMS. Standard errors are
from the spread of replicates, chains or runs. The largest of thousands of differences between the two, in joint
standard errors, is held against what it would be by chance, which is simulated: a difference that comes up less than
once in 100 times is a disagreement, and then nothing is written down. Nor is it where the comparison would not see that
a twentieth of one mode's mass went to the other, which is tried by doing so.

{kept}

{agreement}

`python tools/reference.py NAME` computes one of them again, `make references` all; `reference(NAME).certificate` has
kernels, seeds, versions and diagnostics. `tests/test_references.py` plants wrong answers: another prior, another data
set, moved masses of modes.
"""


def main() -> None:
    known = {name: reference(name) for name in names()}
    table = pd.read_csv(HERE / "references.csv").set_index("problem")
    missing = [name for name in table.index if not table.loc[name, "agrees"]]
    kept = f"So {', '.join(missing)} had to be left out." if missing else "All that were tried agree."
    rest = [name for name in PROBLEMS if name not in table.index]
    kept += f" Of {', '.join(rest)} there is a recipe that was not run to its end." if rest else ""
    asked = {name: found.problem() for name, found in known.items() if name != "boston"}
    page = PAGE.format(
        num=len(known),
        table=as_markdown(summary(known, asked, best_samplers())),
        agreement=as_markdown(confirmed(table)),
        kept=kept,
    )
    (HERE / "references.md").write_text(page)
    picture(known, asked).savefig(PICTURE)
    print(page)


def summary(known: dict[str, Reference], asked: dict[str, Problem], best: dict[str, str]) -> pd.DataFrame:
    rows = []
    for name, found in known.items():
        about = asked[name].about if name in asked else "a real regression: houses in Boston, first of the usual splits"
        rows.append(
            {
                "name": f"`{name}`",
                "parameters": asked[name].posterior.dim if name in asked else 752,
                "what is hard": about,
                "largest error of a mean": f"{(found.mean_se / found.sd).nan_to_num().max():.3f} sd",
                "log evidence": "" if found.log_evidence is None else str(found.log_evidence),
                "log score": str(found.log_score),
                "best sampler so far": best.get(name, "not compared yet"),
            }
        )
    return pd.DataFrame(rows)


def best_samplers() -> dict[str, str]:
    """Of each problem in price.csv: which method came closest, and with how many gradients."""
    if not (HERE / "price.csv").exists():
        return {}
    rows = pd.read_csv(HERE / "price.csv").dropna(subset=["wasserstein"])
    of_budgets = rows.groupby(["problem", "method", "budget"])[["wasserstein", "gradients"]].median().reset_index()
    best = of_budgets.loc[of_budgets.groupby("problem")["wasserstein"].idxmin()]
    return {
        row.problem: f"{row.method}: {row.wasserstein:.3f} with {row.gradients:,.0f} gradients"
        for row in best.itertuples()
    }


def confirmed(table: pd.DataFrame) -> pd.DataFrame:
    """What `tools/reference.py` wrote down, for reading."""
    return pd.DataFrame(
        {
            "name": [f"`{name}`" for name in table.index],
            "first": table["first"],
            "second": table["second"],
            "numbers": table["numbers"].astype(int),
            "largest difference": table["largest_z"],
            "by chance, usual and 1 in 20": [
                f"{usual:.2f}, {most:.2f}"
                for usual, most in zip(table["usual"], table["exceeded_in_5_percent"], strict=True)
            ],
            "p": table["p_value"],
            "with 5 % of a mode moved": [f"{z:.1f}" if z == z else "" for z in table["largest_z_with_moved_mass"]],
            "evidences apart by": [f"{z:.2f}" if z == z else "" for z in table["z_evidence"]],
            "largest R-hat": table["largest_r_hat"],
            "smallest ESS": table["smallest_ess"],
            "agree": ["yes" if agrees else "no" for agrees in table["agrees"]],
        }
    )


def picture(known: dict[str, Reference], asked: dict[str, Problem]) -> Figure:
    rows = -(-len(known) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 3.3 * rows), dpi=DPI, layout="constrained")
    figure.suptitle("What is known: mean predictions, and intervals that hold 50 % and 90 % of the posterior")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for ax, (name, found) in zip(axes, known.items(), strict=False):
        ax.set_title(name)
        panel(asked.get(name))(ax, found, asked.get(name))
    for ax in axes[len(known) :]:
        ax.set_axis_off()
    return figure


def panel(asked: Problem | None) -> Callable[[Axes, Reference, Problem | None], None]:
    if asked is not None and asked.inputs.shape[1:] == (2,):
        return boxes
    return line if asked is not None and asked.inputs.shape[1:] == (1,) else ordered


def boxes(ax: Axes, found: Reference, asked: Problem | None) -> None:
    assert asked is not None
    probability_contours(ax, asked.inputs, found.mean[: len(asked.inputs)])
    scatter(ax, asked.posterior.data, 8)
    square(ax, 6)


def line(ax: Axes, found: Reference, asked: Problem | None) -> None:
    assert asked is not None
    x, num = asked.inputs[:, 0], len(asked.inputs)
    bands(ax, x.tolist(), found, slice(0, num))
    ax.scatter(asked.posterior.data.x[:, 0], asked.posterior.data.y, s=8, color="#222222", zorder=3)
    ax.set(xlabel="x", ylabel="f(x)", ylim=(-3, 3))


def ordered(ax: Axes, found: Reference, asked: Problem | None) -> None:
    """Predictions at a few inputs; of several classes, of the first."""
    num = (len(found.mean) // 2 if asked is None else len(asked.inputs) * (asked.num_classes or 1)) or 1
    places = found.mean[: min(num, 60)].argsort()
    bands(ax, list(range(len(places))), found, places)
    ax.set(xlabel="inputs and classes, in order", ylabel="prediction")


def bands(ax: Axes, x: list[float], found: Reference, places: slice | Tensor) -> None:
    levels = found.levels.tolist()
    rows = {level: found.quantiles[levels.index(level), places] for level in (0.05, 0.25, 0.75, 0.95)}
    ax.fill_between(x, rows[0.05], rows[0.95], color=BAND, alpha=0.45, linewidth=0)
    ax.fill_between(x, rows[0.25], rows[0.75], color=BAND, linewidth=0)
    ax.plot(x, found.mean[places], color=INK)


if __name__ == "__main__":
    main()
