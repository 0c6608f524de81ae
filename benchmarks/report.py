"""The measurements as a page to read."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from problem import ACCEPTANCE, ACCEPTANCE_OF_FEW, JUMP, MANY_CHAINS, OURS, TEMPERED, WORKLOADS, Setting

PACKAGES = ("bnn-utils", "torch", "numpy", "jax", "jaxlib", "blackjax", "numpyro", "pyro-ppl", "hamiltorch")

# Workload, row of this project, row of another library, how many times as fast it is to be, if that was fixed.
TARGETS = [
    ("A", "bnn_utils", "BlackJAX", 1.0),
    ("A", "bnn_utils", "NumPyro", 3.0),
    ("A", "bnn_utils", "NumPyro in jax.jit", 3.0),
    ("A", "bnn_utils", "hamiltorch.sample_model", 10.0),
    ("A", "bnn_utils", "Pyro", 5.0),
    *(("B", "bnn_utils", peer, 1.0) for peer in MANY_CHAINS),
    *((workload, "bnn_utils, compiled", peer, 2.5) for workload in "CD" for peer in MANY_CHAINS),
    *(("G", "bnn_utils", peer, 1.0) for peer in MANY_CHAINS),
    ("F", TEMPERED, "NumPyro, NUTS", 50.0),
    ("F", TEMPERED, "BlackJAX, NUTS", None),
]

PAGE = """# Side by side

Made by `make bench` on {today}. `results.csv` holds every single measurement; here are the medians of {repetitions}.

{machine}

**The problem** is the tutorial's: 80 points in four boxes, a 2-3-2-1 tanh network that ends in a logit, Normal priors
of precision 0.09 on its 20 parameters, float32; Hamiltonian Monte Carlo with step size 0.05, 4 leapfrog steps, identity
mass and no adaptation. All libraries start at the same draws from the prior, new ones in each repetition. In workload G
the network is 2-50-50-1, there are 1,000 points, and the step size is 0.008.

**The rules.** Every measurement has a process of its own, bound to one core, with one thread. Libraries alternate. The
clock starts after the imports, which have a column of their own, and stops when all draws lie in NumPy arrays. A first
call builds the model, traces and compiles. A warm call is the second of the same shapes in its process, divided by its
number of transitions. Each library is used in the fastest way found that its documentation would recognise: in JAX a
density of one flat vector, with the points in columns; in Pyro a potential function.

NumPyro has two rows. `MCMC.run` compiles its loop again at every call, so that its warm rows hold a compilation, spread
over the transitions. With the whole run under `jax.jit` they hold none.

**The same work.** In every measurement the acceptance rate that the library reports lies between {low} and {high}
(fewer than 64 chains: {low_few} to {high_few}) and agrees with the fraction of transitions in which the draws move. An
accepted transition moves by a squared distance of {near} to {far} times D (4 step_size)^2, what it would be without a
force: 0.8 for the tutorial's problem. A measurement that fails one of these ends the benchmark.

![The table as bars, and what one transition costs as the problem grows](../docs/benchmark.png)

{workloads}

## F. Effective draws of the predictions per second

What the draws are for: the probability of class 1 at the 625 places of a 25 x 25 grid on [-6, 6]^2. Counted is the
smallest bulk ESS among these places, per second of the first call, which builds, traces, compiles, warms up and draws.
ESS and R-hat are computed from the draws after the clock has stopped, by the same code for all; every column is a
median of its own.

Here the samplers differ, and each draws what it would be asked for. NUTS has its defaults, 4 chains that are advanced
together and as many draws of warm-up; NumPyro's in its fastest form, "vectorized" and the whole run under `jax.jit`.
Replica exchange has 16 temperatures and a quarter as many draws of warm-up.

Chains that do not agree, with R-hat above 1.01, have no effective sample size to speak of. The number they get is
noise, and it flatters: it counts draws of what the chains visited, not of what they missed.

{effective}

## Targets

How many times as fast as the other library, by medians; in F, how many times as many effective draws per second.

{targets}

## Where the time of a compiled transition goes

Milliseconds. Calling a compiled gradient costs what it costs for one chain, where there is next to nothing to
compute; what is left of the gradients is arithmetic. Everything else is drawing momenta, updating positions and
momenta, and accepting, with gradients that cost nothing. Storing the draws is not in it.

{profile}

## What one transition costs

Milliseconds of this project alone, against lanes (80 points, 2-3-2-1), points (64 lanes, 2-3-2-1) and width (64 lanes,
80 points): by autograd, by the closed-form gradient, and by the closed-form gradient compiled.

The limit is the arithmetic that a transition cannot do without, at {peak:.0f} GFLOP/s, the speed of the fastest product
of two 1,024 x 1,024 float32 matrices on the same core in the same run. Counted are two operations per multiply-add of
the matrix products, forward (n m per point in a layer of n inputs and m outputs) and backward (n m for the weights, and
n m for the inputs in all layers but the first), times leapfrog steps, points and lanes. Activations, biases, the prior,
random numbers and the leapfrog steps themselves are not counted.

An empty place: the network is too large to be compiled, or the measurement would have taken more than {skip:.0f} s.

{curves}
"""


def markdown(table: pd.DataFrame, skip_beyond: float) -> str:
    peak = table[table["workload"] == "peak"]["value"].median()
    (low_few, high_few), (low, high) = ACCEPTANCE_OF_FEW, ACCEPTANCE
    return PAGE.format(
        today=date.today().isoformat(),
        repetitions=table["repetition"].nunique(),
        machine=machine(),
        **{"low": low, "high": high, "low_few": low_few, "high_few": high_few, "near": JUMP[0], "far": JUMP[1]},
        workloads="\n\n".join(workload_table(table, name) for name in WORKLOADS),
        effective=effective_table(table),
        targets=target_table(table),
        profile=profile_table(table),
        peak=peak,
        skip=skip_beyond,
        curves="\n\n".join(curve_table(table, curve, peak) for curve in ("lanes", "points", "width")),
    )


def medians(table: pd.DataFrame, workload: str) -> pd.DataFrame:
    """One row per library, fastest first."""
    rows = table[table["workload"] == workload]
    return rows.groupby("library").median(numeric_only=True).sort_values("value")


def machine() -> str:
    packages = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            packages.append(f"{package} not installed")
    return f"On one thread of {processor()}, {platform.system()}, with {', '.join(packages)}."


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def workload_table(table: pd.DataFrame, name: str) -> str:
    workload = WORKLOADS[name]
    header = ["library", workload.unit, "first call (s)", "import (s)", "acceptance", "moved", "squared distance"]
    columns = ["value", "first_s", "import_s", "acceptance", "moved", "jump"]
    if not workload.warm:
        del header[2], columns[1]
    rows = (
        [f"**{library}**" if library in OURS else library, *(number(row[column]) for column in columns)]
        for library, row in medians(table, name).iterrows()
    )
    return f"## {name}. {workload.title}\n\n{lines(header, rows)}"


def effective_table(table: pd.DataFrame) -> str:
    header = ["sampler", "ESS/s", "seconds", "smallest bulk ESS", "largest R-hat", "divergences", "chains x draws"]
    rows = (
        [
            f"**{library}**" if library == TEMPERED else library,
            *(number(row[column]) for column in ("value", "first_s", "ess")),
            f"{row['r_hat']:.3f}",
            f"{row['divergences']:.0f}",
            f"{row['chains']:.0f} x {row['draws']:,.0f}",
        ]
        for library, row in medians(table, "F")[::-1].iterrows()
    )
    return lines(header, rows)


def target_table(table: pd.DataFrame) -> str:
    rows = []
    for workload, ours, peer, target in TARGETS:
        values = medians(table, workload)["value"]
        if peer in values:
            ratio = values[ours] / values[peer] if workload == "F" else values[peer] / values[ours]
            goal, verdict = ("-", "-") if target is None else (f"{target:g}", "met" if ratio >= target else "missed")
            rows.append([workload, ours, peer, goal, f"{ratio:.2f}", verdict])
    return lines(["workload", "row", "against", "target", "measured", "verdict"], rows)


def profile_table(table: pd.DataFrame) -> str:
    rows = table[table["workload"] == "profile"].groupby(["chains", "library"])["value"].median().unstack()
    cells = ([f"{int(chains):,}", *(number(value) for value in row)] for chains, row in rows.iterrows())
    return lines(["chains", *rows.columns], cells)


def curve_table(table: pd.DataFrame, curve: str, peak: float) -> str:
    rows = []
    size = {"lanes": "chains", "points": "points", "width": "network"}[curve]
    settings = curve_medians(table, curve)
    libraries = [library for library in ("bnn_utils, autograd", *OURS) if library in set(settings["library"])]
    for key, group in settings.groupby("flops"):
        values = group.set_index("library")["value"]
        cells = [number(values[library]) if library in values else "" for library in libraries]
        first = group[size].iloc[0]
        rows.append([first if curve == "width" else f"{first:,}", *cells, f"{limit(key, peak):.2g}"])
    return lines([curve, *libraries, "limit"], rows)


def curve_medians(table: pd.DataFrame, curve: str) -> pd.DataFrame:
    """Median cost of each setting of a curve by each variant, with the operations that it needs."""
    rows = table[table["workload"] == f"E {curve}"]
    settings = rows.groupby(["library", "chains", "points", "network"], as_index=False)["value"].median()
    settings = settings.astype({"chains": int, "points": int})
    settings["flops"] = [
        Setting(row.chains, row.points, tuple(map(int, row.network.split("-")))).flops for row in settings.itertuples()
    ]
    return settings.sort_values("flops")


def limit(flops: float, peak: float) -> float:
    """Milliseconds that the operations take at the peak of a core, in GFLOP/s."""
    return flops / peak / 1e6


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    cells = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
