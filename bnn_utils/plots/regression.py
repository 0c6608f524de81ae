"""Figures of regression: predicted targets over one input."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from bnn_utils.data import Data
from bnn_utils.plots.style import CHAIN_COLOURS, INK, Figure


def predictive_bands(
    bands: Mapping[str, Tensor],
    x: Tensor,
    data: Data,
    truth: Tensor | None = None,
    title: str = "",
    columns: int = 3,
) -> Figure:
    """Where targets are expected over one input, one panel per entry, with the data.

    Args:
        bands: panel title -> lower edge, middle and upper edge, shape ``(3, M)``, such as ``predictive_quantiles``
            gives.
        x: inputs in ascending order, shape ``(M,)`` or ``(M, 1)``.
        data: one input, one target.
        truth: the function behind the data, shape ``(M,)``.
    """
    columns = min(columns, len(bands))
    rows = math.ceil(len(bands) / columns)
    figure = Figure(
        figsize=(3.3 * columns + 0.4, 2.5 * rows + 0.5),
        title=title,
        alt=f"Expected targets with a band around them, and the data: {'; '.join(bands)}",
    )
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    across = x.flatten().cpu().numpy()
    points = data.x.flatten().cpu().numpy(), data.y.cpu().numpy()
    middle, height = points[1].mean(), np.ptp(points[1])
    for ax, (name, band) in zip(axes.flat, bands.items(), strict=False):
        low, median, high = band.cpu().numpy()
        ax.fill_between(across, low, high, color=CHAIN_COLOURS[0], alpha=0.25, lw=0)
        ax.plot(across, median, color=CHAIN_COLOURS[0], lw=1.8)
        if truth is not None:
            ax.plot(across, truth.cpu().numpy(), color=INK, lw=1, ls="--")
        ax.scatter(*points, s=10, color=INK, zorder=3)
        ax.set_title(name, fontsize=10)
    for ax in axes.flat[len(bands) :]:
        ax.set_visible(False)
    # A prior's band may be many times as wide as the data.
    axes[0, 0].set(xlim=(across[0], across[-1]), ylim=(middle - 1.5 * height, middle + 1.5 * height))
    figure.supxlabel("input", fontsize=10)
    figure.supylabel("target", fontsize=10)
    return figure
