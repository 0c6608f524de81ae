"""Figures of replica exchange: what chains do at a barrier, the ladder, the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor

from bnn_utils.evidence import Tempering
from bnn_utils.plots.style import CHAIN_COLOURS, GREY, INK, Figure

if TYPE_CHECKING:
    import pandas as pd

KIND_COLOURS = ("#56b4e9", "#332288", "#aa4499")  # of networks: other ones than of chains


def kinds(runs: Mapping[str, Tensor], names: Mapping[str, int], title: str = "") -> Figure:
    """Which kind of network each chain is in at each draw, one row per chain and one panel per run.

    Args:
        runs: panel title -> a whole number for each draw, ``(chains, draws)``.
        names: name -> number; all other numbers are drawn as "neither".
    """
    figure = Figure(
        figsize=(10, 3.4),
        title=title,
        alt=f"One strip for each chain, coloured by the kind of network ({', '.join(names)})",
    )
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    colours = [*KIND_COLOURS[: len(names)], "white"]
    for ax, (name, numbers) in zip(axes, runs.items(), strict=True):
        shown = torch.full_like(numbers, len(names))
        for position, number in enumerate(names.values()):
            shown[numbers == number] = position
        # Nearest-neighbour drawing: a mixture of two kinds would look like a third one.
        ax.imshow(
            shown.cpu().numpy(),
            cmap=ListedColormap(colours),
            vmin=0,
            vmax=len(names),
            aspect="auto",
            interpolation="nearest",
        )
        ax.set_title(name, fontsize=10)
        ax.set(xlabel="draw", ylabel="chain", yticks=range(0, len(shown), max(1, len(shown) // 8)))
    patches = [Patch(fc=colour, ec=INK, label=name) for colour, name in zip(colours, [*names, "neither"], strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9)
    return figure


def ladder(tempering: Tempering, chain: int = 0, traveller: int = 0, draws: int = 500, title: str = "") -> Figure:
    """How often neighbours on the ladder swap, and the way of one traveller up and down.

    Args:
        chain, traveller: whose way is drawn, over the first ``draws`` draws.
    """
    table = tempering.table()
    name = table.columns[-1]  # of what is tempered
    what = f"mean {name.replace('_', ' ')}"
    figure = Figure(
        figsize=(10, 3.4),
        title=title,
        alt=f"Left: {what} along the ladder of temperatures. Middle: swap rates. Right: a traveller's way",
    )
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.6])
    left.plot(table["inverse_temperature"], table[name], "o-", color=CHAIN_COLOURS[0], ms=4)
    left.set(xlabel="inverse temperature", ylabel=what)
    middle.bar(np.arange(len(table) - 1) + 0.5, table["swap_rate"][:-1], color=GREY, width=0.8)
    middle.set(xlabel="between temperatures", ylabel="fraction of swaps accepted", ylim=(0, 1))
    place = (tempering.replica[chain, :draws] == traveller).int().argmax(-1).cpu()
    right.plot(place, color=CHAIN_COLOURS[0], lw=0.9)
    last = len(table) - 1
    right.set(xlabel="draw", ylim=(-0.5, last + 0.5))
    right.set_yticks([0, last], [tempering.hot_end, "posterior"])
    return figure


def evidence(table: pd.DataFrame, title: str = "") -> Figure:
    """Log evidence with two standard errors, against precision, one line per network.

    Args:
        table: with columns network, precision, log_evidence, se.
    """
    figure = Figure(
        figsize=(6.4, 3.8), title=title, alt="Log evidence against the prior's precision, a line per network"
    )
    ax = figure.subplots()
    networks = table.groupby("network", sort=False)
    for (network, rows), colour, mark in zip(networks, [*CHAIN_COLOURS, GREY], "os^Dv", strict=False):
        ax.errorbar(
            rows["precision"],
            rows["log_evidence"],
            yerr=2 * rows["se"],
            fmt=f"{mark}-",
            color=colour,
            ms=5,
            capsize=3,
            label=network,
        )
    ax.set(xscale="log", xlabel="precision of the prior (right: weights held near 0)", ylabel="log evidence")
    ax.legend(fontsize=9, title="network", title_fontsize=9)
    return figure
