"""Figures of what predictions proved to be worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from torch import Tensor

from bnn_utils.plots.style import CHAIN_COLOURS, GREY, INK, LINE_STYLES, Figure, shared_legend

if TYPE_CHECKING:
    import pandas as pd


def scores(table: pd.DataFrame, columns: Sequence[str], title: str = "") -> Figure:
    """Scores of several methods, one panel per column: a dot for each split, a bar for their mean.

    Args:
        table: a row per method and split, with a column "method" and those that are drawn.
    """
    methods = list(dict.fromkeys(table["method"]))
    figure = Figure(
        figsize=(2.5 * len(columns) + 1.2, 0.34 * len(methods) + 1.2),
        title=title,
        alt=f"Dots per split and bars at the means of {', '.join(columns)} for {', '.join(methods)}",
    )
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for ax, column in zip(axes, columns, strict=True):
        for place, method in enumerate(methods):
            values = table.loc[table["method"] == method, column]
            ax.plot(values, np.full(len(values), place), "o", color=CHAIN_COLOURS[0], ms=6, mec="white", mew=0.6)
            ax.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=INK, lw=1.6)
        ax.set_title(column, fontsize=10)
        ax.grid(axis="x", color=GREY, alpha=0.3, lw=0.6)
        ax.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    return figure


def answers(images: Tensor, probabilities: Mapping[str, Tensor], title: str = "") -> Figure:
    """Images, and below each the probabilities of its classes by several methods.

    Args:
        images: shape ``(n, height, width)``, 0 is paper.
        probabilities: method -> shape ``(n, K)``.
    """
    figure = Figure(
        figsize=(1.5 * len(images) + 0.6, 3.4),
        title=title,
        alt=f"{len(images)} images and the probabilities of their classes by {' and '.join(probabilities)}",
    )
    above, below = figure.subplots(2, len(images), squeeze=False, height_ratios=[1, 1.1], sharey="row")
    for number, (image, ax) in enumerate(zip(images.cpu().numpy(), above, strict=True)):
        ax.imshow(image, cmap="Greys", interpolation="nearest")
        ax.set_axis_off()
        for colour, style, (name, p) in zip(CHAIN_COLOURS, LINE_STYLES, probabilities.items(), strict=False):
            below[number].plot(p[number].cpu().numpy(), style, marker="o", ms=3.5, color=colour, lw=1.3, label=name)
        below[number].set(ylim=(-0.03, 1.03), xticks=range(0, p.shape[-1], 2), xlabel="class")
    below[0].set_ylabel("probability")
    shared_legend(figure, below)
    return figure


def prices(table: pd.DataFrame, own: pd.DataFrame | None = None, title: str = "", columns: int = 3) -> Figure:
    """How far methods are from posteriors that are known, against what they cost; a panel for each posterior.

    A method with one row has ended on its own: it is a mark, with a dotted line to what more gradients would change.

    Args:
        table: a row per problem, method and budget, with columns "problem", "method", "gradients" and "wasserstein",
            the distance in posterior standard deviations.
        own: rows of the same kind, drawn as large marks; of methods of the table, in the same colours.
    """
    problems, methods = (list(dict.fromkeys(table[name])) for name in ("problem", "method"))
    columns = min(columns, len(problems))
    rows = math.ceil(len(problems) / columns)
    figure = Figure(
        figsize=(4.2 * columns + 0.4, 3.3 * rows + 1.2),
        title=title,
        alt=f"Distance from the posterior against gradients, for {', '.join(problems)}; lines are {', '.join(methods)}",
    )
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    styles: dict[str, dict[str, Any]] = {
        method: {"color": CHAIN_COLOURS[k % 4], "ls": LINE_STYLES[k // 4 % 4], "marker": "osD^"[k // 4 % 4], "lw": 1.3}
        for k, method in enumerate(methods)
    }
    most = table["gradients"].max()
    for ax, problem in zip(axes.flat, problems, strict=False):
        for method, part in table[table["problem"] == problem].groupby("method", sort=False):
            x, y, style = part["gradients"].to_numpy(), part["wasserstein"].to_numpy(), styles[str(method)]
            ax.plot(x, y, ms=4.5, mec="white", mew=0.4, **style)
            if len(part) == 1:
                ax.plot([x[0], most], [y[0], y[0]], **style | {"ls": ":", "lw": 1, "marker": ""})
        for _, row in (table[:0] if own is None else own[own["problem"] == problem]).iterrows():
            style = styles[row["method"]] | {"ls": ""}
            ax.plot(row["gradients"], row["wasserstein"], ms=10, mec=INK, mew=1.2, zorder=4, **style)
        ax.set(xscale="log", yscale="log")
        ax.set_xlabel("gradients of the log density", fontsize=10)
        ax.set_title(problem, fontsize=10)
        ax.grid(color=GREY, alpha=0.3, lw=0.6)
    for ax in axes.flat[len(problems) :]:
        ax.set_visible(False)
    figure.supylabel("distance, in posterior standard deviations", fontsize=10)
    handles = [Line2D([], [], label=method, **style) for method, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns, fontsize=8.5, frameon=False)
    return figure
