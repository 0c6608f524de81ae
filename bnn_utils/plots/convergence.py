"""Figures of convergence: R-hat and effective sample sizes of weights and over the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from bnn_utils import _check
from bnn_utils.data import Data
from bnn_utils.diagnostics import RHAT_LIMIT, Convergence, worst_place
from bnn_utils.plots.style import (
    CHAIN_COLOURS,
    ESS_LEVELS,
    GOOD_TO_BAD,
    INK,
    RHAT_LEVELS,
    Figure,
    check_maps,
    mesh,
    scatter,
    shared_legend,
    square,
)


def rhat_comparison(weights: Tensor, function: Tensor, title: str = "") -> Figure:
    """R-hat of every weight beside R-hat of the prediction at every grid point."""
    weights, function = _check.tensor("weights", weights), _check.tensor("function", function)
    figure = Figure(figsize=(7, 3), title=title, alt="R-hat of the weights and of the predictions, as dots")
    ax = figure.subplots()
    for level, values, colour in ((1, weights, CHAIN_COLOURS[1]), (0, function, CHAIN_COLOURS[0])):
        values = values.cpu().sort().values
        spread = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else [0.0]
        ax.plot(
            values, level + np.asarray(spread), "o", color=colour, ms=3 if len(values) > 100 else 6, alpha=0.7, mew=0
        )
    ax.axvline(RHAT_LIMIT, color=INK, ls="--", lw=1, label=f"limit {RHAT_LIMIT}")
    ax.set_yticks([0, 1], [f"{len(function)} predictions", f"{len(weights)} weights"])
    ax.set(xlabel="R-hat", ylim=(-0.5, 1.5), xscale="log")
    ax.xaxis.set_major_locator(FixedLocator([1, 1.1, 1.2, 1.5, 2, 3, 5]))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(fontsize=9, loc="lower right")
    return figure


def rhat_weights(runs: Mapping[str, Tensor], names: Sequence[str], title: str = "") -> Figure:
    """R-hat of every weight, one colour per run: legend label -> R-hat ``(D,)``."""
    figure = Figure(figsize=(9, 3.4), title=title, alt="R-hat of every weight, as dots, on a log scale")
    ax = figure.subplots()
    for colour, marker, (label, values) in zip(CHAIN_COLOURS, "os^v", runs.items(), strict=False):
        ax.plot(values.cpu(), marker, color=colour, ms=7, mec=INK, mew=0.4, label=label)
    ax.axhline(RHAT_LIMIT, color=INK, ls="--", lw=1, label=f"limit {RHAT_LIMIT}")
    ax.set(yscale="log", ylabel="R-hat")
    ax.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    ax.yaxis.set_major_locator(FixedLocator([1, 1.1, 1.2, 1.5, 2, 3]))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.legend(fontsize=9)
    return figure


def rhat_map(values: Tensor, grid: Tensor, data: Data, title: str = "") -> Figure:
    """R-hat of the prediction at every grid point, with the worst point marked."""
    return rhat_maps({"": values}, grid, data, title)


def rhat_maps(maps: Mapping[str, Tensor], grid: Tensor, data: Data, title: str = "") -> Figure:
    """R-hat over the plane for several runs, side by side on one scale: panel title -> R-hat ``(M,)`` on the grid."""
    check_maps(maps)
    figure = Figure(
        figsize=(4.3 * len(maps) + 1.5, 4.6),
        title=title,
        alt=f"Map of R-hat of the predictions, worst point marked: {'; '.join(maps)}".removesuffix(": "),
    )
    axes = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        filled = _rhat_contours(ax, grid, values)
        scatter(ax, data, size=20)
        ax.set_title(name, fontsize=10)
        ax.label_outer()
    figure.colorbar(filled, ax=axes, label=f"R-hat of the prediction (line: {RHAT_LIMIT})", format="%g")
    shared_legend(figure, axes)
    return figure


def convergence_maps(convergence: Convergence, data: Data, title: str = "") -> Figure:
    """R-hat, bulk ESS and tail ESS of the predictions over the plane: dark is bad, and the limit is drawn in."""
    wanted = "a Convergence, as by diagnostics.convergence(predictions, grid)"
    _check.instance("convergence", convergence, Convergence, wanted)
    figure = Figure(
        figsize=(12, 5.2),
        title=title,
        alt="Maps of R-hat, bulk ESS and tail ESS of the predictions, dark where bad, worst points marked",
    )
    axes = figure.subplots(1, 3, sharey=True)
    places, least = convergence.places, convergence.ess_limit
    panels = (
        ("R-hat", _rhat_contours(axes[0], places, convergence.r_hat), RHAT_LIMIT),
        ("bulk ESS", _ess_contours(axes[1], places, convergence.ess_bulk, least), least),
        ("tail ESS", _ess_contours(axes[2], places, convergence.ess_tail, least), least),
    )
    for ax, (name, filled, limit) in zip(axes, panels, strict=True):
        scatter(ax, data, size=16)
        ax.set_title(name, fontsize=10)
        ax.label_outer()
        bar = figure.colorbar(filled, ax=ax, label=f"{name} (line: {limit:,})", format="{x:,g}", location="bottom")
        bar.ax.tick_params(labelsize=8)
        bar.ax.set_xlim(*sorted(bar.ax.get_xlim(), reverse=name != "R-hat"))  # bad to the right
    shared_legend(figure, axes)
    return figure


def _rhat_contours(ax: Axes, grid: Tensor, values: Tensor) -> QuadContourSet:
    worst = worst_place(values)
    values = values.clamp(max=100)  # Matplotlib leaves out what is infinite
    return _badness_contours(ax, grid, values, worst, RHAT_LEVELS, RHAT_LIMIT, GOOD_TO_BAD)


def _ess_contours(ax: Axes, grid: Tensor, values: Tensor, limit: float) -> QuadContourSet:
    levels = [limit * level for level in ESS_LEVELS]
    return _badness_contours(ax, grid, values, worst_place(-values), levels, limit, GOOD_TO_BAD[::-1])


def _badness_contours(
    ax: Axes, grid: Tensor, values: Tensor, worst: Tensor, levels: Sequence[float], limit: float, colours: np.ndarray
) -> QuadContourSet:
    """Filled contours with the limit drawn in and the worst place marked; grey where there is no value."""
    x1, x2, z = mesh(grid, values)
    filled = ax.contourf(x1, x2, z, levels=levels, colors=colours, extend="both")
    if (z < limit).any() and (z > limit).any():
        ax.contour(x1, x2, z, levels=[limit], colors=INK, linewidths=1.2)
    if not np.isnan(z).all():
        ax.plot(*grid[worst].cpu(), "*", color="white", mec=INK, ms=16, label="worst point", clip_on=False, zorder=4)
    ax.set_facecolor("#cccccc")
    if np.isnan(z).any():
        ax.plot([], [], "s", color="#cccccc", mec=INK, mew=0.4, ms=10, label="prediction never changed")
    square(ax, limit=float(grid.max()))
    return filled
