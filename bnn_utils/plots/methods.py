"""Figure of different methods for one posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bnn_utils.plots.style import CHAIN_COLOURS, INK, Figure
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
