"""Figures of what predictions proved to be worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
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
