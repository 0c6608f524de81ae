"""Figures of data, parameters, predictions and their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from bnn_utils import _check
from bnn_utils.data import Data
from bnn_utils.flat import FlatModule
from bnn_utils.plots.style import (
    CHAIN_COLOURS,
    GREY,
    INK,
    LINE_STYLES,
    UNCERTAINTY_MAP,
    Figure,
    check_maps,
    mesh,
    probability_contours,
    scatter,
    square,
)
from bnn_utils.predict import Uncertainty


def points(data: Data, title: str = "") -> Figure:
    """The data set: two inputs, two classes."""
    figure = Figure(figsize=(5.2, 4.6), title=title, alt="Scatter plot of the data: class 1 circles, class 0 squares")
    ax = figure.subplots()
    scatter(ax, data, size=60, edge="black")
    square(ax, limit=6)
    ax.axhline(0, color=GREY, lw=0.8, zorder=0)
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    ax.legend(loc="upper center", ncols=2, fontsize=9)
    return figure


def parameter_layout(flat: FlatModule, theta: Tensor | None = None, title: str = "") -> Figure:
    """Which slice of the flat vector is which parameter; with theta, its values too."""
    _check.instance("flat", flat, FlatModule, "a FlatModule, such as posterior.flat")
    figure = Figure(
        figsize=(10, 2.0), title=title, alt="A strip of cells, one per element of theta, shaded by parameter tensor"
    )
    ax = figure.subplots()
    for number, (name, place) in enumerate(flat.slices.items()):
        ax.axvspan(place.start, place.stop, color=("#cfdde6", "#94b3c6")[number % 2])
        ax.text((place.start + place.stop) / 2, 1.06, name, ha="center", va="bottom", fontsize=9)
    for position in range(flat.dim if flat.dim <= 60 else 0):
        ax.axvline(position, color="white", lw=1)
        label = str(position) if theta is None else f"{theta[position]:.1f}"
        ax.text(position + 0.5, 0.5, label, ha="center", va="center", fontsize=8)
    middles = [(place.start + place.stop) / 2 for place in flat.slices.values()]
    ax.set_xticks(middles, [" x ".join(map(str, shape)) or "1" for shape in flat.shapes.values()])
    ax.set(xlim=(0, flat.dim), ylim=(0, 1), yticks=[])
    ax.spines[:].set_visible(False)
    return figure


def decision_maps(
    maps: Mapping[str, Tensor], grid: Tensor, data: Data | None = None, title: str = "", columns: int = 4
) -> Figure:
    """Probability of class 1 over the plane, one panel per entry: panel title -> probabilities ``(M,)`` on the grid."""
    check_maps(maps)
    columns = min(_check.whole("columns", columns, 1), len(maps))
    rows = math.ceil(len(maps) / columns)
    side = 4.6 if columns == 1 else 3.9 if columns == 2 else 2.6
    figure = Figure(
        figsize=(side * columns + 1, side * rows + 0.5),
        title=title,
        alt=f"Contour maps of the probability of class 1: {'; '.join(maps)}",
    )
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax, (name, p) in zip(axes.flat, maps.items(), strict=False):
        filled = probability_contours(ax, grid, p)
        if data is not None:
            scatter(ax, data, size=30 if columns <= 2 else 10)
        ax.set_title(name, fontsize=10)
    for ax in axes.flat[len(maps) :]:
        ax.set_visible(False)
    for ax in axes.flat:
        square(ax, limit=float(grid.max()))
        ax.label_outer()
    figure.colorbar(filled, ax=axes, label="probability of class 1", ticks=[0, 0.25, 0.5, 0.75, 1], shrink=0.9)
    return figure


def uncertainty_maps(split: Uncertainty, grid: Tensor, data: Data, title: str = "") -> Figure:
    """Total, aleatoric and epistemic uncertainty over the plane, in bits."""
    figure = Figure(
        figsize=(10.5, 3.9),
        title=title,
        alt="Three maps: total uncertainty and the aleatoric and epistemic parts that it is the sum of",
    )
    axes = figure.subplots(1, 3, sharey=True)
    names = {"total": "total: entropy of the mean", "aleatoric": "aleatoric: each network's own doubt",
             "epistemic": "epistemic: the networks disagree"}  # fmt: skip
    for ax, (part, name) in zip(axes, names.items(), strict=True):
        filled = ax.contourf(*mesh(grid, getattr(split, part)), levels=np.linspace(0, 1, 21), cmap=UNCERTAINTY_MAP)
        scatter(ax, data, size=12)
        square(ax, limit=float(grid.max()))
        ax.label_outer()
        ax.set_title(name, fontsize=10)
    figure.colorbar(filled, ax=axes, label="bits", ticks=[0, 0.25, 0.5, 0.75, 1])
    return figure


def uncertainty_map(bits: Tensor, grid: Tensor, data: Data, title: str = "") -> Figure:
    """One kind of uncertainty over the plane, in bits: ``(M,)`` on the grid."""
    figure = Figure(figsize=(5.6, 5.1), title=title, alt="Map of uncertainty in bits")
    ax = figure.subplots()
    filled = ax.contourf(*mesh(grid, bits), levels=np.linspace(0, 1, 21), cmap=UNCERTAINTY_MAP)
    scatter(ax, data, size=30)
    square(ax, limit=float(grid.max()))
    figure.colorbar(filled, ax=ax, label="bits", ticks=[0, 0.25, 0.5, 0.75, 1], shrink=0.9)
    return figure


def trajectory(
    path: Tensor, plane: tuple[Tensor, Tensor, Tensor], errors: Mapping[str, Tensor], title: str = ""
) -> Figure:
    """One leapfrog trajectory on a slice of the log density, and its energy error for several step sizes.

    Args:
        path: positions in the plane's coordinates, shape ``(steps + 1, 2)``.
        plane: coordinates u ``(G,)``, v ``(G,)`` and the log density there, ``(G, G)``, rows along v.
        errors: label -> energy error after each step.
    """
    figure = Figure(
        figsize=(10, 4),
        title=title,
        alt="Left: a leapfrog path over contours of the log density. Right: its energy error for several step sizes",
    )
    left, right = figure.subplots(1, 2)
    u, v, log_prob = plane
    top = log_prob.max().item()
    left.contourf(u, v, log_prob, levels=np.linspace(top - 60, top, 25), cmap="Greys_r", alpha=0.75, extend="min")
    left.plot(*path.T, ".-", color=CHAIN_COLOURS[1], lw=1.2, ms=4, markeredgecolor=INK, markeredgewidth=0.3)
    left.plot(*path[0], "o", color="white", mec=INK, ms=9, label="start")
    left.plot(*path[-1], "D", color=INK, ms=8, label="end: the proposal")
    left.set(xlabel="main direction of the path (darker ground: lower log density)", ylabel="second direction")
    left.legend(fontsize=9)
    for colour, style, (label, error) in zip(CHAIN_COLOURS, LINE_STYLES, errors.items(), strict=False):
        right.plot(np.linspace(0, 1, len(error)), error, style, color=colour, label=label)
    right.axhline(0, color=GREY, lw=0.8)
    right.set(xlabel="part of the trajectory", ylabel="energy error  H - H(start)")
    right.legend(fontsize=9)
    return figure
