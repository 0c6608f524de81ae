"""The measurements as a page to read."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from problem import (
    ACCEPTANCE,
    ACCEPTANCE_OF_FEW,
    EXCHANGE_STEPS,
    EXP,
    JUMP,
    LARGE,
    LARGER,
    LARGEST,
    MANY_CHAINS,
    NUM_TEMPERATURES,
    OURS,
    TANH,
    TEMPERED,
    VARIANTS,
    WORKLOADS,
    Setting,
)

PACKAGES = ("bnn-utils", "llvmlite", "torch", "numpy", "jax", "jaxlib", "blackjax", "numpyro", "pyro-ppl", "hamiltorch")

# Workload, row of another library, how many times as fast "bnn_utils" is to be.
FASTER = [
    ("A", "BlackJAX", 5.0),
    ("A1", "BlackJAX", 1.0),
    ("A2", "BlackJAX", 3.0),
    *(("B", peer, 1.5) for peer in MANY_CHAINS),
    *((workload, peer, 2.5) for workload in "CD" for peer in MANY_CHAINS),
    *((workload, peer, 1.25) for workload in ("G", "G4", "G5") for peer in ("BlackJAX", "NumPyro in jax.jit")),
]
# Of replica exchange: how many times as many effective draws per second as NUTS by NumPyro, how many at all, and in how
# many seconds its chains are to agree, with so many effective draws.
TIMES_NUTS, ESS_PER_SECOND, LARGEST_RHAT, SMALLEST_ESS, SECONDS = 300, 1_000, 1.01, 4_000, 10
TIMES_FLOAT32, TIMES_LIMIT = 2, 3  # how many times as long it may take, at most

PAGE = """# Side by side

Made by `make bench` on {today}. `results.csv` holds every single measurement; here are the medians of {repetitions}.

{machine}

**The problem** is the tutorial's: 80 points in four boxes, a 2-3-2-1 tanh network that ends in a logit, Normal priors
of precision 0.09 on its 20 parameters, float32; Hamiltonian Monte Carlo with step size 0.05, 4 leapfrog steps, identity
mass and no adaptation. All libraries start at the same draws from the prior, new ones in each repetition.

In workloads G, G4 and G5 the network is 2-50-50-1, with {points} points and step sizes
{step_sizes}: where points are many their force is strong at a draw from the prior, and only small
steps are accepted there. A64 and C64 are A and C in float64, for all libraries.

**The rules.** Every measurement has a process of its own, bound to one core, with one thread. Libraries alternate. The
clock starts after the imports, which have a column of their own, and stops when all draws lie in NumPy arrays. A first
call builds the model, traces and compiles; the cache on disk is empty. In A2 another process has filled it: this
project keeps its native code there. JAX can keep compiled code too, but does so only when told to, and here it is not.
A warm call is the second of the same shapes in its process, and in milliseconds it is divided by its number of
transitions. Each library is used in the fastest way found that its documentation would recognise: in JAX a density of
one flat vector, with the points in columns; in Pyro a potential function.

This project has two rows: `bnn_utils` is what runs when nothing is said, in native code, and `bnn_utils, torch` is the
same with `compile=False`. The tutorial's network has code for chains that lie side by side in a register; the
transitions of larger ones call a gradient, chain by chain.

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
Replica exchange has {temperatures} temperatures and {exchange_steps} leapfrog steps, and a ninth as many draws of
warm-up: one of the fastest of a dozen settings that were tried on this posterior. NUTS sets its number of steps itself.

Chains that do not agree, with R-hat above 1.01, have no effective sample size to speak of. The number they get is
noise, and it flatters: it counts draws of what the chains visited, not of what they missed.

{effective}

## Targets

All by medians. The row of this project is `bnn_utils`, in F that of replica exchange.

{targets}

## Where the time of a transition in native code goes

Milliseconds, for as many transitions as in C and D. Random numbers are drawn ahead for a block of transitions.
Trajectories are what the native code does with them: gradients, steps, energies, acceptance and recording. Everything
else is what `sample` adds around it: making ready, checking that all numbers are finite, and the chain with its
statistics.

{profile}

## What one transition costs

Milliseconds of this project alone, measured once, against lanes (80 points, 2-3-2-1), points (64 lanes, 2-3-2-1) and
width (64 lanes, 80 points): in torch by autograd, in torch by the closed-form gradient, and as it runs when nothing is
said, in native code. Beyond 256 parameters, from 2-16-16-1 on, that works chain by chain.

The limit is the arithmetic that a transition cannot do without, at {peak:.0f} GFLOP/s, the speed of float32
multiply-adds whose numbers never leave the registers, on the same core in the same run. It has two parts, which are
added:

- Products: two operations per multiply-add of the matrix products, forward (n m per point in a layer of n inputs and m
  outputs) and backward (n m for the weights, and n m for the inputs in all layers but the first).
- Functions: per point a tanh for each hidden unit and an exp with a division for the gradient at the output. They are
  counted in instructions for float32 as written in `bnn_utils/gradients/vector.py`: {tanh} for a tanh, one of them a
  division, and {exp} for an exp. At best each takes the time of a multiply-add, and so counts as two operations. A
  division takes longer, but goes on beside the others.

In float64 a tanh takes {tanh_double} instructions and an exp {exp_double}, since their polynomials are longer, and a
vector holds half as many numbers. By the same count a transition of C64 takes {times_in_double:.2f} times as long as
one of C, if each is as fast as it can be.

All of it times leapfrog steps, points and lanes. Biases, derivatives of activations, the value of the density, the
prior, random numbers and the leapfrog steps themselves are not counted.

An empty place: the measurement would have taken more than {skip:.0f} s.

{curves}
"""


def markdown(table: pd.DataFrame, skip_beyond: float) -> str:
    peak = table[table["workload"] == "peak"]["value"].median()
    (low_few, high_few), (low, high) = ACCEPTANCE_OF_FEW, ACCEPTANCE
    sizes = LARGE, LARGER, LARGEST
    return PAGE.format(
        today=date.today().isoformat(),
        repetitions=repetitions(table),
        machine=machine(),
        **{"low": low, "high": high, "low_few": low_few, "high_few": high_few, "near": JUMP[0], "far": JUMP[1]},
        points=listed(f"{size.points:,}" for size in sizes),
        step_sizes=listed(f"{size.step_size:g}" for size in sizes),
        temperatures=NUM_TEMPERATURES,
        exchange_steps=EXCHANGE_STEPS,
        **{"tanh": TANH["float32"], "exp": EXP["float32"]},
        **{"tanh_double": TANH["float64"], "exp_double": EXP["float64"]},
        times_in_double=Setting().times_in_double,
        workloads="\n\n".join(workload_table(table, name) for name in WORKLOADS),
        effective=effective_table(table),
        targets=target_table(table, peak),
        profile=profile_table(table),
        peak=peak,
        skip=skip_beyond,
        curves="\n\n".join(curve_table(table, curve, peak) for curve in ("lanes", "points", "width")),
    )


def medians(table: pd.DataFrame, workload: str) -> pd.DataFrame:
    """One row per library, fastest first."""
    rows = table[table["workload"] == workload]
    return rows.groupby("library").median(numeric_only=True).sort_values("value")


def repetitions(table: pd.DataFrame) -> str:
    """How many: a workload that was measured anew may have others."""
    counts = {name: table.loc[table["workload"] == name, "repetition"].nunique() for name in (*WORKLOADS, "F")}
    most = max(set(counts.values()), key=list(counts.values()).count)
    return ", ".join([str(most), *(f"in {name} {count}" for name, count in counts.items() if count != most)])


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
    if workload.call != "warm":
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


def target_table(table: pd.DataFrame, peak: float) -> str:
    """What was to be reached, what was measured, and whether that is enough; without libraries that are not here."""
    rows = []

    def judge(workload: str, target: str, measured: str, is_met: bool) -> None:
        rows.append([workload, target, measured, "met" if is_met else "missed"])

    for workload, peer, goal in FASTER:
        values = medians(table, workload)["value"]
        if peer in values:
            ratio = values[peer] / values["bnn_utils"]
            judge(workload, f"at least {goal:g} times as fast as {peer}", f"{ratio:.2f}", ratio >= goal)
    ours = {name: medians(table, name)["value"]["bnn_utils"] for name in ("A", "A64", "C", "C64")}
    for name in "AC":
        ratio = ours[f"{name}64"] / ours[name]
        judge(f"{name}64", f"at most {TIMES_FLOAT32} times {name}", f"{ratio:.2f}", ratio <= TIMES_FLOAT32)
    ratio = ours["C"] / milliseconds(Setting(WORKLOADS["C"].num_chains).flops, peak)
    judge("C", f"at most {TIMES_LIMIT} times the limit below", f"{ratio:.2f}", ratio <= TIMES_LIMIT)
    samplers = medians(table, "F")
    mine = samplers.loc[TEMPERED]
    judge("F", f"at least {ESS_PER_SECOND:,} ESS/s", f"{mine['value']:,.0f}", mine["value"] >= ESS_PER_SECOND)
    if "NumPyro, NUTS" in samplers.index:
        ratio = mine["value"] / samplers["value"]["NumPyro, NUTS"]
        judge("F", f"at least {TIMES_NUTS} times the ESS/s of NumPyro, NUTS", f"{ratio:.0f}", ratio >= TIMES_NUTS)
    is_met = mine["r_hat"] <= LARGEST_RHAT and mine["ess"] >= SMALLEST_ESS and mine["first_s"] <= SECONDS
    target = f"R-hat of at most {LARGEST_RHAT} and ESS of at least {SMALLEST_ESS:,} within {SECONDS} s"
    judge("F", target, f"{mine['r_hat']:.3f} and {mine['ess']:,.0f} in {mine['first_s']:.1f} s", is_met)
    return lines(["workload", "target", "measured", "verdict"], rows)


def profile_table(table: pd.DataFrame) -> str:
    measured = table[table["workload"] == "profile"]
    rows = measured.groupby(["chains", "library"])["value"].median().unstack()[measured["library"].unique()]
    cells = ([f"{int(chains):,}", *(number(value) for value in row)] for chains, row in rows.iterrows())
    return lines(["chains", *rows.columns], cells)


def curve_table(table: pd.DataFrame, curve: str, peak: float) -> str:
    rows = []
    size = {"lanes": "chains", "points": "points", "width": "network"}[curve]
    settings = curve_medians(table, curve)
    libraries = [library for library in VARIANTS if library in set(settings["library"])]
    for _, group in settings.groupby("flops"):
        values = group.set_index("library")["value"]
        cells = [number(values[library]) if library in values else "" for library in libraries]
        first = group.iloc[0]
        name = first[size] if curve == "width" else f"{first[size]:,}"
        limits = (milliseconds(first[part], peak) for part in ("product_flops", "flops"))
        rows.append([name, *cells, *(f"{value:.2g}" for value in limits)])
    return lines([curve, *libraries, "limit by products", "limit"], rows)


def curve_medians(table: pd.DataFrame, curve: str) -> pd.DataFrame:
    """Median cost of each setting of a curve by each variant, with the operations that it needs."""
    rows = table[table["workload"] == f"E {curve}"]
    settings = rows.groupby(["library", "chains", "points", "network"], as_index=False)["value"].median()
    settings = settings.astype({"chains": int, "points": int})
    of_rows = [
        Setting(row.chains, row.points, tuple(map(int, row.network.split("-")))) for row in settings.itertuples()
    ]
    settings["product_flops"] = [setting.product_flops for setting in of_rows]
    settings["flops"] = [setting.flops for setting in of_rows]
    return settings.sort_values("flops")


def milliseconds(flops: float, peak: float) -> float:
    """That the operations take at the peak of a core, in GFLOP/s."""
    return flops / peak / 1e6


def listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    cells = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
