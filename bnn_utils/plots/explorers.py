"""Figures of the explorers that no other place needs: paths of a sampler, functions of a prior, points to be edited."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.image import imsave
from torch import Tensor

from bnn_utils.data import Data
from bnn_utils.kernels.base import MAX_ENERGY_ERROR
from bnn_utils.plots.style import (
    BLUE,
    CHAIN_COLOURS,
    GREY,
    INK,
    LINE_STYLES,
    PROBABILITY_LEVELS,
    RED,
    UNCERTAINTY_MAP,
    Figure,
    mesh,
    probability_contours,
    probability_ramp,
    scatter,
    square,
)
from bnn_utils.predict import predictive_mean, split_uncertainty

HEIGHT_SHOWN = 60  # of the log density, below its highest place on the slice


def trajectories(paths: Tensor, plane: tuple[Tensor, Tensor, Tensor], energy_errors: Tensor, title: str = "") -> Figure:
    """Leapfrog trajectories from one start on a slice of the log density, and their energy errors.

    Args:
        paths: positions in the plane's coordinates, shape ``(P, steps + 1, 2)``.
        plane: coordinates u ``(G,)``, v ``(G,)`` and the log density there, ``(G, G)``, rows along v.
        energy_errors: after each step, shape ``(P, steps + 1)``.
    """
    figure = Figure(
        figsize=(10, 4),
        title=title,
        alt=f"Left: {len(paths)} leapfrog paths over contours of the log density. Right: their energy errors",
    )
    left, right = figure.subplots(1, 2)
    u, v, log_prob = (values.cpu().numpy() for values in plane)
    top = log_prob.max()
    levels = np.linspace(top - HEIGHT_SHOWN, top, 25)
    left.contourf(u, v, log_prob, levels=levels, cmap="Greys_r", alpha=0.75, extend="min")
    positions, of_paths = paths.cpu().numpy(), energy_errors.cpu().numpy()
    for colour, style, path, errors in zip(CHAIN_COLOURS, LINE_STYLES, positions, of_paths, strict=False):
        left.plot(*path.T, style, color=colour, lw=1.2, marker=".", ms=4, mec=INK, mew=0.3)
        left.plot(*path[-1], "D", color=colour, mec=INK, ms=8)
        right.plot(errors, style, color=colour, marker=".", ms=4)
    left.plot(*positions[0, 0], "o", color="white", mec=INK, ms=9, label="start")
    left.plot([], [], "D", color=GREY, mec=INK, ms=8, label="end: the proposal")
    left.set(xlim=(u[0], u[-1]), ylim=(v[0], v[-1]))
    left.set(xlabel="main direction of the paths (darker ground: lower log density)", ylabel="second direction")
    left.legend(fontsize=9, loc="upper right")
    right.axhline(0, color=GREY, lw=0.8)
    right.set_yscale("symlog", linthresh=1)
    right.set(xlabel="leapfrog step", ylabel="energy error  H - H(start)", ylim=(-10, 2 * MAX_ENERGY_ERROR))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.axhline(MAX_ENERGY_ERROR, color=INK, ls="--", lw=1)
    right.text(0, MAX_ENERGY_ERROR, "divergence", va="bottom", fontsize=8)
    return figure


def prior_predictive(p: Tensor, grid: Tensor, title: str = "", shown: int = 6) -> Figure:
    """Networks drawn from a prior, the first few as maps, and how often which probability turns up anywhere.

    Args:
        p: probability of class 1 by each network, shape ``(networks, M)``, on a square grid ``(M, 2)``.
        shown: how many are drawn as maps.
    """
    figure = Figure(
        figsize=(10, 4.2),
        title=title,
        alt=f"Left: maps of {shown} networks drawn from the prior. Right: histogram of the probabilities of all",
    )
    [[maps, right]] = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.6, 1])
    axes = maps.subplots(2, -(-shown // 2), sharex=True, sharey=True)
    for ax, values in zip(axes.flat, p, strict=False):
        filled = probability_contours(ax, grid, values)
        ax.set(aspect="equal", xticks=[], yticks=[])
    maps.colorbar(filled, ax=axes, label="probability of class 1", ticks=[0, 0.25, 0.5, 0.75, 1], location="left")
    ax = right.subplots()
    values = p.flatten().cpu().numpy()
    ax.hist(values, bins=np.linspace(0, 1, 41), weights=np.full(len(values), 1 / len(values)), color=CHAIN_COLOURS[0])
    ax.set(xlabel="probability of class 1", ylabel=f"share, {len(p)} networks, all places", xlim=(0, 1), ylim=(0, 0.5))
    return figure


class MeanAndDisagreement(Figure):
    """The average prediction of many draws above their epistemic uncertainty, on a square grid ``(M, 2)``.

    Others may be shown in the same figure later. Its axes are laid out and drawn once: that takes most of the time.
    """

    canvas: FigureCanvasAgg

    def __init__(self, grid: Tensor, title: str = "") -> None:
        super().__init__(
            figsize=(3.7, 6.2),
            title=title,
            alt="Above: map of the average probability of class 1. Below: map of how much networks disagree, in bits",
        )
        FigureCanvasAgg(self)
        self._grid = grid
        self._empty: Any = None  # the picture without maps, from the first one on
        self._panels = self.subplots(2, 1, sharex=True)
        names = "average of all networks", "epistemic: the networks disagree"
        ramps = probability_ramp(), ScalarMappable(Normalize(0, 1), UNCERTAINTY_MAP)
        for ax, name, ramp, label in zip(self._panels, names, ramps, ("probability of class 1", "bits"), strict=True):
            ticks = [0, 0.25, 0.5, 0.75, 1]
            self.colorbar(ramp, ax=ax, label=label, boundaries=PROBABILITY_LEVELS, ticks=ticks)
            square(ax, limit=float(grid.max()))
            ax.label_outer()
            ax.set_title(name, fontsize=10)

    # Matplotlib's own `show` is for figures with a window, which this one never has.
    def show(self, p: Tensor, data: Data | None) -> MeanAndDisagreement:  # type: ignore[override]
        """Draws' predictions ``(..., M)``, and points if there are any, in place of those before."""
        for artist in self._maps:
            artist.remove()
        above, below = self._panels
        probability_contours(above, self._grid, predictive_mean(p, of_classes=False))
        epistemic = split_uncertainty(p, of_classes=False).epistemic
        below.contourf(*mesh(self._grid, epistemic), levels=PROBABILITY_LEVELS, cmap=UNCERTAINTY_MAP)
        if data is not None:
            for ax in self._panels:
                scatter(ax, data, size=20)
        return self

    def png(self) -> bytes:
        canvas = self.canvas
        if self._empty is None:
            for artist in self._maps:
                artist.set_visible(False)
            engine = self.get_layout_engine()
            assert engine is not None  # as all figures here have
            engine.execute(self)  # as `savefig` does: a second time, in `draw`, makes it better
            canvas.draw()
            self._empty = canvas.copy_from_bbox(self.bbox)
            for artist in self._maps:
                artist.set_visible(True)
        canvas.restore_region(self._empty)
        for ax in self._panels:
            for artist in [*sorted(ax.collections, key=Artist.get_zorder), *ax.spines.values()]:
                ax.draw_artist(artist)
        buffer = io.BytesIO()
        imsave(buffer, canvas.buffer_rgba(), format="png", pil_kwargs={"compress_level": 1})
        return buffer.getvalue()

    @property
    def _maps(self) -> list[Artist]:
        return [artist for ax in self._panels for artist in ax.collections]


def mean_and_disagreement(p: Tensor, grid: Tensor, data: Data | None, title: str = "") -> Figure:
    """The average prediction of many draws above their epistemic uncertainty; p has shape ``(..., M)``."""
    return MeanAndDisagreement(grid, title).show(p, data)


def editable_points(
    ax: Axes, points: Sequence[tuple[float, float, int]], cross: tuple[float, float], limit: float
) -> None:
    """Draw points ``(x1, x2, class)`` and a cross into axes that may hold older ones."""
    ax.clear()
    for label, colour, marker in ((1, RED, "o"), (0, BLUE, "s")):
        chosen = [place for *place, this in points if this == label]
        if chosen:
            x1, x2 = zip(*chosen, strict=True)
            ax.scatter(x1, x2, c=colour, marker=marker, s=60, ec="black", lw=0.7, zorder=3)
    ax.plot(*cross, "+", color=INK, ms=14, zorder=4)
    square(ax, limit)
    ax.grid(color=GREY, alpha=0.3)
