"""Figure of different methods for one posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bnn_utils.plots.style import CHAIN_COLOURS, GREY, INK, Figure
from bnn_utils.plots.tempering import KIND_COLOURS

if TYPE_CHECKING:
    import pandas as pd


def methods(table: pd.DataFrame, kinds: Sequence[str], title: str = "") -> Figure:
    """How far each method is from the reference, and which kinds of network its draws are.

    Args:
        table: one row per method, named by the index, with a column ``distance`` (of predictions, on a log scale) and a
            column for each kind: the fraction of draws that are of it.
        kinds: names of these columns; the rest of the draws is "neither".
    """
    figure = Figure(
        figsize=(10, 0.9 + 0.32 * len(table)),
        title=title,
        alt=f"Left: distance from the reference posterior by method, on a log scale. Right: bars of {', '.join(kinds)}",
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.3, 1])
    rows = np.arange(len(table))
    left.hlines(rows, table["distance"].min() / 2, table["distance"], color=CHAIN_COLOURS[0], lw=1)
    left.plot(table["distance"], rows, "o", color=CHAIN_COLOURS[0])
    left.set(xscale="log", xlabel="mean distance of predictions from the reference", xlim=table["distance"].min() / 2)
    left.set_yticks(rows, table.index)
    left.invert_yaxis()
    begin = np.zeros(len(table))
    for kind, colour in [*zip(kinds, KIND_COLOURS, strict=False), ("neither", "white")]:
        width = table[kind].to_numpy() if kind in kinds else 1 - begin
        right.barh(rows, width, left=begin, color=colour, ec=INK, lw=0.6, label=kind)
        begin = begin + width
    right.axvline(0.5, color=INK, ls="--", lw=1)
    right.set(xlabel="fraction of draws", xlim=(0, 1))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds) + 1, fontsize=9)
    return figure


def paths(moves: Mapping[str, tuple[Tensor, Tensor]], cloud: Tensor, names: tuple[str, str], title: str = "") -> Figure:
    """How samplers move, in the plane of two weights, a panel for each.

    Args:
        moves: name -> places where it asked for the density, shape ``(places, 2)``, and draws, ``(draws, 2)``, in the
            order in which they came.
        cloud: draws that show where the posterior is, shape ``(draws, 2)``.
        names: of the two weights.
    """
    columns = -(-len(moves) // 2)
    figure = Figure(
        figsize=(10, 6.4),
        title=title,
        alt=f"For each of {', '.join(moves)}: a path in the plane of two weights, over a cloud of draws",
    )
    axes = figure.subplots(2, columns, sharex=True, sharey=True).flat
    edges = cloud.quantile(cloud.new_tensor([0.005, 0.995]), dim=0)
    ends = torch.cat([edges, *(draws for _, draws in moves.values())])
    low, high = ends.min(0).values - 0.3, ends.max(0).values + 0.3
    for ax, (name, (places, draws)) in zip(axes, moves.items(), strict=False):
        ax.plot(*cloud.T, ".", color=GREY, ms=2, alpha=0.25, zorder=0, rasterized=True)
        ax.plot(*places.T, "-", color=CHAIN_COLOURS[0], lw=0.9)
        ax.plot(*draws.T, "o", color=CHAIN_COLOURS[1], ms=4.5, mec=INK, mew=0.5)
        ax.plot(*places[0], "o", color="white", mec=INK, ms=8)
        ax.set_title(f"{name}: {len(places):,} gradients, {len(draws)} draws", fontsize=10)
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    for ax in [*axes][len(moves) :]:
        ax.set_visible(False)
    figure.supxlabel(names[0], fontsize=10)
    figure.supylabel(names[1], fontsize=10)
    return figure
