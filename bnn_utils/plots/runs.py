"""Figures of long runs: how far one has come, and what is left when draws are thinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from bnn_utils import _check
from bnn_utils.plots.style import CHAIN_COLOURS, INK, LINE_STYLES, Figure


def watched(seconds: Sequence[float], counts: Sequence[int], values: Tensor, name: str, title: str = "") -> Figure:
    """A run as it was seen from outside: how many draws there were when, and a trace of those at the end.

    Args:
        seconds: when one looked.
        counts: how many draws of each chain were there.
        values: of a quantity at the draws, shape ``(chains, draws)``; long traces are drawn at every so-many-th draw.
        name: of the quantity.
    """
    values = _check.tensor("values", values).detach().cpu()
    figure = Figure(
        figsize=(10, 3.2),
        title=title,
        alt=f"Left: draws in the folder against seconds. Right: trace of {name}, one colour per chain",
    )
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.8])
    left.step(seconds, counts, "o-", where="post", color=CHAIN_COLOURS[0], ms=2.5)
    left.set(xlabel="seconds since the start", ylabel="draws of each chain in the folder")
    left.set_ylim(bottom=0)
    apart = max(1, values.shape[1] // 2000)
    for k, row in enumerate(values[:, ::apart]):
        right.plot(np.arange(len(row)) * apart, row, color=CHAIN_COLOURS[k % 4], lw=1)
    right.set(xlabel="draw", ylabel=name)
    return figure


def thinning(keep: Sequence[int], worth: Mapping[str, Tensor], title: str = "") -> Figure:
    """What is left where one draw of each so many is kept: of the memory, and of what averages are worth.

    Args:
        keep: one draw of each of these numbers.
        worth: legend label -> fractions ``(K,)`` of what all draws are worth.
    """
    figure = Figure(
        figsize=(7, 3.6), title=title, alt="What thinning leaves of the memory and of what averages are worth"
    )
    ax = figure.subplots()
    for k, (label, values) in enumerate(worth.items()):
        ax.plot(keep, values.cpu(), f"{'os^'[k % 3]}-", color=CHAIN_COLOURS[k % 4], label=label)
    ax.plot(keep, 1 / np.asarray(keep), LINE_STYLES[1], color=INK, label="memory")
    ax.set(xscale="log", xlabel="one draw is kept of each", ylabel="what is left", ylim=(0, 1.1))
    ax.set_xticks(keep, [str(k) for k in keep])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(fontsize=9)
    return figure
