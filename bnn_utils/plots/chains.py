"""Figures of chains: traces, ranks, autocorrelation, energy, and tables beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.chain import Chain
from bnn_utils.diagnostics import RHAT_LIMIT
from bnn_utils.plots.style import CHAIN_COLOURS, GREY, INK, LINE_STYLES, Figure

if TYPE_CHECKING:
    import pandas as pd

CHAIN = "a Chain, as by sample(...) or Chain.from_draws(draws, posterior)"


def against_published(ours: pd.DataFrame, published: pd.DataFrame, title: str = "") -> Figure:
    """Bulk ESS and R-hat of two chains, each sorted, because their parameters don't correspond one to one."""
    figure = Figure(figsize=(10, 3.6), title=title, alt="Sorted bulk ESS and R-hat of the published chain and of ours")
    left, right = figure.subplots(1, 2)
    for ax, column, name in ((left, "ess_bulk", "bulk ESS"), (right, "r_hat", "R-hat")):
        rank = np.arange(1, len(ours) + 1)
        ax.plot(rank, np.sort(published[column]), "s", color=GREY, ms=7, label="published (Lux, Turing)")
        ax.plot(rank, np.sort(ours[column]), "o", color=CHAIN_COLOURS[0], ms=6, mec=INK, mew=0.4, label="ours")
        ax.set(xlabel="parameters, from smallest to largest", ylabel=name, xticks=[1, 5, 10, 15, 20])
    left.set_yscale("log")
    left.axhline(400, color=INK, ls="--", lw=1)
    left.text(1, 400, "400: enough for stable estimates", va="bottom", fontsize=8)
    right.axhline(RHAT_LIMIT, color=INK, ls="--", lw=1)
    right.text(len(ours), RHAT_LIMIT, f"{RHAT_LIMIT}: limit", va="bottom", ha="right", fontsize=8)
    left.set_ylim(1, 1000)
    left.legend(fontsize=9, loc="lower right")
    return figure


def speed(results: pd.DataFrame, title: str = "") -> Figure:
    """Seconds for the tutorial's chain by several libraries, and what one transition costs for more and more chains.

    Args:
        results: the benchmark's table, ``benchmarks/results.csv``; medians over its repetitions are drawn.
    """
    figure = Figure(
        figsize=(10, 3.6),
        title=title,
        alt="Left: seconds for 5,000 draws, by library. Right: milliseconds per transition against number of chains",
    )
    left, right = figure.subplots(1, 2)
    seconds = results[results["workload"] == "A1"].groupby("library")["value"].median().sort_values(ascending=False)
    colours = [CHAIN_COLOURS[0] if library.startswith("bnn_utils") else GREY for library in seconds.index]
    left.bar_label(left.barh(seconds.index, seconds, color=colours), fmt=" %.2g s")
    left.set(xscale="log", xlabel="seconds for 1 chain of 5,000 draws, first call")
    left.margins(x=0.2)
    lanes = results[results["workload"] == "E lanes"]
    for (library, curve), colour, mark in zip(lanes.groupby("library"), CHAIN_COLOURS, "o^s", strict=False):
        medians = curve.groupby("chains")["value"].median()
        right.loglog(medians.index, medians, f"{mark}-", color=colour, label=library)
    right.set(xlabel="chains in one batch", ylabel="ms for one transition of all")
    right.legend(fontsize=9)
    return figure


def traces(chain: Chain, parameters: Sequence[int], starts: int = 300, title: str = "") -> Figure:
    """Traces of the log density and of some parameters, one colour per chain; the log density's start is cut off."""
    _check.instance("chain", chain, Chain, CHAIN)
    _check.instance(
        "parameters", parameters, (Sequence, np.ndarray, Tensor), "a list of places in theta, such as [0, 3]"
    )
    parameters = [_check.whole("parameters", k, 0, chain.dim - 1) for k in parameters]
    figure = Figure(figsize=(10, 1.5 * (len(parameters) + 1)), title=title, alt="Trace plots, one colour per chain")
    axes = figure.subplots(len(parameters) + 1, 1, sharex=True, squeeze=False)[:, 0]
    for ax, values, name in zip(
        axes,
        [chain.stats["lp"], *(chain.draws[..., k] for k in parameters)],
        ["log density", *(chain.names[k] for k in parameters)],
        strict=True,
    ):
        for colour, row in zip(_chain_colours(chain), values.cpu(), strict=True):
            ax.plot(row, color=colour, lw=0.5)
        ax.set_ylabel(name, fontsize=9)
    low = chain.stats["lp"][:, min(starts, chain.num_draws // 2) :].min().item()
    axes[0].set_ylim(bottom=low - 2)
    axes[-1].set_xlabel("draw")
    return figure


def ranks(draws: Tensor, names: Sequence[str], bins: int = 20, title: str = "") -> Figure:
    """Rank histograms (Vehtari et al. 2021): ranks over all chains, counted per chain; flat where chains agree.

    Args:
        draws: shape ``(chains, draws, K)``.
        names: K titles.
    """
    from scipy.stats import rankdata

    draws = _quantities(draws, names)
    chains, length, quantities = draws.shape
    figure = Figure(
        figsize=(2.5 * quantities, 1.1 * chains + 0.8),
        title=title,
        alt="Rank histograms per chain",
    )
    axes = figure.subplots(chains, quantities, sharex=True, sharey=True, squeeze=False)
    flat = draws.reshape(chains * length, quantities).cpu().numpy()
    rank = (rankdata(flat, axis=0) - 0.5).reshape(chains, length, quantities) / (chains * length)
    for (row, column), ax in np.ndenumerate(axes):
        counts, edges = np.histogram(rank[row, :, column], bins=bins, range=(0, 1))
        ax.bar(
            edges[:-1],
            counts * bins / length,
            width=1 / bins,
            align="edge",
            color=CHAIN_COLOURS[row % 4],
            ec="white",
            lw=0.3,
        )
        ax.axhline(1, color=INK, lw=0.8, ls="--")
        if row == 0:
            ax.set_title(names[column], fontsize=9)
        if column == 0:
            ax.set_ylabel(f"chain {row}", fontsize=9)
    figure.supylabel("share of draws (1: even)", fontsize=9)
    figure.supxlabel("rank among all draws, from lowest to highest", fontsize=9)
    return figure


def autocorrelations(draws: Tensor, names: Sequence[str], max_lag: int = 1000, title: str = "") -> Figure:
    """Autocorrelation against lag of some quantities, shape ``(chains, draws, K)``, averaged over chains."""
    draws = _quantities(draws, names)
    figure = Figure(figsize=(7, 3.4), title=title, alt="Autocorrelation against lag")
    ax = figure.subplots()
    centred = (draws - draws.mean(1, keepdim=True)).cpu()
    spectrum = torch.fft.rfft(centred, n=2 * draws.shape[1], dim=1).abs().square()
    covariance = torch.fft.irfft(spectrum, dim=1)[:, :max_lag].mean(0)
    for k, name in enumerate(names):
        ax.plot(covariance[:, k] / covariance[0, k], LINE_STYLES[k % 4], lw=1.5, color=CHAIN_COLOURS[k % 4], label=name)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(xlabel="lag (draws)", ylabel="autocorrelation", xlim=(0, max_lag))
    ax.legend(fontsize=9)
    return figure


def energies(chain: Chain, starts: int, title: str = "") -> Figure:
    """Marginal energy against its change from draw to draw, after ``starts`` draws of each chain (Betancourt 2017).

    Raises:
        ValueError: if the chain has no energies, as draws from elsewhere may not.
    """
    _check.instance("chain", chain, Chain, CHAIN)
    starts = _check.whole("starts", starts, 0, chain.num_draws - 2)
    if "energy" not in chain.stats:
        raise ValueError(f"this chain has no statistic 'energy', only {', '.join(chain.stats)}")
    figure = Figure(figsize=(7, 3.2), title=title, alt="Histograms of the energy and of its changes between draws")
    ax = figure.subplots()
    energy = chain.stats["energy"][:, starts:].cpu()
    centred, change = (energy - energy.mean(1, keepdim=True)).flatten(), energy.diff(dim=1).flatten()
    limit = torch.cat([centred, change]).abs().quantile(0.999).item()
    bins = np.linspace(-limit, limit, 61).tolist()
    for values, style, name in (
        (centred, {"color": CHAIN_COLOURS[1]}, "energy around its mean: what has to be explored"),
        (change, {"ec": CHAIN_COLOURS[0], "lw": 2, "fill": False}, "change from draw to draw: what one step explores"),
    ):
        ax.hist(values.numpy(), bins=bins, density=True, histtype="stepfilled", label=name, **style)
    ax.set(xlabel="energy", ylabel="density")
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])  # room for the legend
    ax.legend(fontsize=9)
    return figure


def _quantities(draws: Tensor, names: Sequence[str]) -> Tensor:
    """Draws ``(chains, draws, K)`` of K quantities that have names."""
    draws = _check.tensor("draws", draws).detach()
    if draws.ndim != 3 or draws.shape[2] != len(names) or draws.numel() == 0:
        raise ValueError(
            f"draws have shape {tuple(draws.shape)} and there are {len(names)} names: (chains, draws, K) needs K names"
        )
    return draws


def _chain_colours(chain: Chain) -> list[str]:
    return [CHAIN_COLOURS[k % len(CHAIN_COLOURS)] for k in range(chain.num_chains)]
