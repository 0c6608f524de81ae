"""Figures of tests of a sampler: energy errors, ranks of known truths, runs that part."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from bnn_utils.plots.style import CHAIN_COLOURS, GREY, INK, Figure, shared_legend
from bnn_utils.sbc import Calibration, counts, ecdf_band

BAND = 0.05  # probability with which uniform ranks leave the band somewhere
INSIDE = "where all of it is in 95 % of all runs of a right sampler"


def energy_slopes(step_sizes: Tensor, errors: Mapping[str, Tensor], title: str = "") -> Figure:
    """Median energy error against step size, log scales, with lines of slope 1 and 2: legend label -> ``(K,)``."""
    figure = Figure(figsize=(7, 3.6), title=title, alt="Energy error against step size, on log scales")
    ax = figure.subplots()
    steps = step_sizes.cpu().numpy()
    smallest = steps.argmin()
    for colour, marker, (label, medians) in zip(CHAIN_COLOURS, "os^v", errors.items(), strict=False):
        values = medians.cpu().numpy()
        ax.loglog(steps, values, marker, color=colour, ms=8, mec=INK, mew=0.4, label=label)
        slope = round(np.polyfit(np.log(steps), np.log(values), 1)[0])
        line = values[smallest] * (steps / steps[smallest]) ** slope
        ax.loglog(steps, line, color=colour, lw=1, ls="--")
        where = (steps[smallest], line[smallest])
        ax.annotate(f"slope {slope}", where, (12, -4), textcoords="offset points", color=INK, fontsize=9)
    ax.set(xlabel="step size", ylabel="energy error (median)")
    ax.xaxis.set_minor_formatter("")
    ax.set_xticks(steps, [f"{step:.3g}" for step in steps])
    ax.legend(fontsize=9)
    return figure


def calibrations(runs: Mapping[str, Calibration], quantity: str, title: str = "") -> Figure:
    """Ranks of the truth for several samplers: how often each came, and the ECDF minus that of uniform ranks.

    The grey bands hold all bars, or all of the curve, with a probability of 95 % where ranks are uniform (Säilynoja,
    Bürkner and Vehtari 2022).

    Args:
        runs: panel title -> ranks.
        quantity: one of their names.
    """
    figure = Figure(
        figsize=(4.4 * len(runs) + 0.6, 5),
        title=title,
        alt=f"Rank histograms and ECDF differences of the {quantity} for {', '.join(runs)}",
    )
    axes = figure.subplots(2, len(runs), sharex="row", sharey="row", squeeze=False)
    for (above, below), (name, run) in zip(axes.T, runs.items(), strict=True):
        column = run.ranks[:, [run.names.index(quantity)]]
        times, number, length = counts(column, run.num_draws)[:, 0].numpy(), len(column), run.num_draws
        rank = np.arange(length + 1)
        above.bar(rank, times, width=0.9, color=CHAIN_COLOURS[0])
        above.axhspan(*_bars_band(number, length), color=GREY, alpha=0.4, lw=0)
        above.axhline(number / (length + 1), color=INK, lw=0.8, ls="--")
        above.set(xlabel=f"rank of the truth among {length} draws", xlim=(-0.6, length + 0.6))
        above.xaxis.set_major_locator(MaxNLocator(integer=True))
        above.set_title(name, fontsize=10)
        uniform = np.r_[0, rank[1:] / (length + 1), 1]
        lowest, highest = (np.r_[0, edge.numpy() / number, 1] for edge in ecdf_band(number, length, BAND))
        below.fill_between(uniform, lowest - uniform, highest - uniform, color=GREY, alpha=0.4, lw=0, label=INSIDE)
        below.plot(uniform, np.r_[0, times.cumsum() / number] - uniform, color=CHAIN_COLOURS[0])
        below.axhline(0, color=INK, lw=0.8, ls="--", label="expected")
        below.set(xlabel="fraction of ranks, if uniform", xlim=(0, 1))
        below.xaxis.set_major_formatter(PercentFormatter(1))
    axes[0, 0].set_ylabel("data sets")
    axes[1, 0].set_ylabel("fraction found\nminus expected")
    shared_legend(figure, axes[1])
    return figure


def partings(distances: Tensor, usual: float, title: str = "") -> Figure:
    """How far two runs are apart at each draw, on a log scale, for pairs that started nearly together.

    Args:
        distances: shape ``(pairs, draws)``.
        usual: how far two draws of one chain are apart that are 1,000 draws apart.
    """
    figure = Figure(figsize=(8, 3.8), title=title, alt="Distance between twin runs against the draw, on a log scale")
    ax = figure.subplots()
    lines = distances.cpu().T.numpy()
    ax.semilogy(lines, color=GREY, lw=0.5, alpha=0.4)
    ax.semilogy(np.median(lines, axis=1), color=CHAIN_COLOURS[0], lw=2, label=f"median of {lines.shape[1]} pairs")
    ax.axhline(usual, color=INK, lw=1, ls="--", label="two draws of one chain, 1,000 draws apart")
    ax.set(xlabel="draw", ylabel="distance between the twins", xlim=(0, len(lines)))
    ax.legend(fontsize=9, loc="lower right")
    return figure


def _bars_band(number: int, length: int) -> tuple[float, float]:
    """Between which counts all bars lie: each alone with a probability that makes 95 % for all (Bonferroni)."""
    from scipy.stats import binom

    tail = BAND / (length + 1) / 2
    return binom.ppf(tail, number, 1 / (length + 1)) - 0.5, binom.isf(tail, number, 1 / (length + 1)) + 0.5
