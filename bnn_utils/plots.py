"""The figures of the notebooks, in one style.

Class 1 is red circles and class 0 blue squares; probabilities run from blue to red with white at 0.5; uncertainty and
R-hat have one sequential ramp each. Every function returns a `Figure`, which shows itself at the end of a cell.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.contour import QuadContourSet
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from bnn_utils.chain import Chain
from bnn_utils.data import Data
from bnn_utils.flat import FlatModule
from bnn_utils.predict import Uncertainty

if TYPE_CHECKING:
    import pandas as pd

RED, BLUE, GREY, INK = "#b2182b", "#2166ac", "#8c8c8c", "#222222"
PROBABILITY_MAP, UNCERTAINTY_MAP, RHAT_MAP = "RdBu_r", "viridis", "magma_r"
PROBABILITY_LEVELS = np.linspace(0, 1, 21)
CHAIN_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # Okabe and Ito 2008
DPI = 110
RHAT_LIMIT = 1.01  # Vehtari et al. 2021


class Figure(matplotlib.figure.Figure):
    """A Matplotlib figure with a title and alternative text, which shows itself where it ends a cell.

    Args:
        title: the finding; empty for none.
        alt: what is drawn; the title is added to it.
    """

    def __init__(self, *args: Any, title: str = "", alt: str, **kwargs: Any) -> None:
        super().__init__(*args, layout="constrained", dpi=DPI, facecolor="white", **kwargs)
        self.alt = f"{alt}. {title}" if title else alt
        if title:
            self.suptitle(title, fontsize=11)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(image_bundle(self.png(), "png", self.alt), raw=True)


def image_bundle(data: bytes, kind: str, alt: str) -> dict[str, str]:
    """An image for notebooks that don't trust their outputs and for readers who don't see it."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"text/html": f'<img src="{source}" alt="{html.escape(alt)}">', "text/plain": f"<Image: {alt}>"}


def points(data: Data, title: str = "") -> Figure:
    """The data set: two inputs, two classes."""
    figure = Figure(figsize=(5.2, 4.6), title=title, alt="Scatter plot of the data: class 1 circles, class 0 squares")
    ax = figure.subplots()
    scatter(ax, data, size=60)
    _square(ax, limit=6)
    ax.axhline(0, color=GREY, lw=0.8, zorder=0)
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    ax.legend(loc="upper center", ncols=2, fontsize=9)
    return figure


def parameter_layout(flat: FlatModule, theta: Tensor | None = None, title: str = "") -> Figure:
    """Which slice of the flat vector is which parameter; with theta, its values too."""
    figure = Figure(
        figsize=(10, 2.0), title=title, alt="A strip of cells, one per element of theta, coloured by parameter tensor"
    )
    ax = figure.subplots()
    ramp = colormaps["Set2"]
    for number, (name, place) in enumerate(flat.slices.items()):
        ax.axvspan(place.start, place.stop, color=ramp(number % 8))
        ax.text((place.start + place.stop) / 2, 1.06, name, ha="center", va="bottom", fontsize=9)
    for position in range(flat.dim if flat.dim <= 60 else 0):
        ax.axvline(position, color="white", lw=1)
        label = position if theta is None else f"{theta[position]:.1f}"
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
    columns = min(columns, len(maps))
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
        _square(ax, limit=float(grid.max()))
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
        filled = ax.contourf(*_mesh(grid, getattr(split, part)), levels=np.linspace(0, 1, 21), cmap=UNCERTAINTY_MAP)
        scatter(ax, data, size=12)
        _square(ax, limit=float(grid.max()))
        ax.label_outer()
        ax.set_title(name, fontsize=10)
    figure.colorbar(filled, ax=axes, label="bits", ticks=[0, 0.25, 0.5, 0.75, 1])
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
    top = log_prob.max()
    left.contourf(u, v, log_prob.clamp(min=top - 60), levels=24, cmap="Greys_r", alpha=0.75)
    left.plot(*path.T, ".-", color=CHAIN_COLOURS[1], lw=1.2, ms=4, markeredgecolor=INK, markeredgewidth=0.3)
    left.plot(*path[0], "o", color="white", mec=INK, ms=9, label="start")
    left.plot(*path[-1], "D", color=RED, mec=INK, ms=8, label="end: the proposal")
    left.set(xlabel="main direction of the path (darker ground: lower log density)", ylabel="second direction")
    left.legend(fontsize=9)
    for colour, (label, error) in zip(CHAIN_COLOURS, errors.items(), strict=False):
        right.plot(np.linspace(0, 1, len(error)), error, color=colour, label=label)
    right.axhline(0, color=GREY, lw=0.8)
    right.set(xlabel="part of the trajectory", ylabel="energy error  H - H(start)")
    right.legend(fontsize=9)
    return figure


def against_published(ours: pd.DataFrame, published: pd.DataFrame, title: str = "") -> Figure:
    """Bulk ESS and R-hat of two chains, each sorted, because their parameters don't correspond one to one."""
    figure = Figure(figsize=(10, 3.6), title=title, alt="Sorted bulk ESS and R-hat of the published chain and of ours")
    left, right = figure.subplots(1, 2)
    for ax, column, name in ((left, "ess_bulk", "bulk ESS"), (right, "r_hat", "R-hat")):
        rank = np.arange(1, len(ours) + 1)
        ax.plot(rank, np.sort(published[column]), "s", color=GREY, ms=7, label="published (Lux, Turing)")
        ax.plot(rank, np.sort(ours[column]), "o", color=CHAIN_COLOURS[0], ms=6, mec=INK, mew=0.4, label="ours")
        ax.set(xlabel="parameters, from smallest to largest", ylabel=name, xticks=[1, 5, 10, 15, 20])
    left.set_yscale("log")
    left.axhline(400, color=INK, ls="--", lw=1)
    left.text(1, 400, "400: enough for stable estimates", va="bottom", fontsize=8)
    right.axhline(RHAT_LIMIT, color=INK, ls="--", lw=1)
    right.text(len(ours), RHAT_LIMIT, f"{RHAT_LIMIT}: limit", va="bottom", ha="right", fontsize=8)
    left.set_ylim(1, 1000)
    left.legend(fontsize=9, loc="lower right")
    return figure


def speed(results: pd.DataFrame, title: str = "") -> Figure:
    """Seconds for the tutorial's chain by several libraries, and what one transition costs for more and more chains.

    Args:
        results: the benchmark's table, ``benchmarks/results.csv``; medians over its repetitions are drawn.
    """
    figure = Figure(
        figsize=(10, 3.6),
        title=title,
        alt="Left: seconds for 5,000 draws, by library. Right: milliseconds per transition against number of chains",
    )
    left, right = figure.subplots(1, 2)
    seconds = results[results["workload"] == "A"].groupby("library")["value"].median().sort_values(ascending=False)
    colours = [RED if library.startswith("bnn_utils") else GREY for library in seconds.index]
    left.bar_label(left.barh(seconds.index, seconds, color=colours), fmt=" %.1f s")
    left.set(xlabel="seconds for 1 chain of 5,000 draws, first call")
    left.margins(x=0.2)
    lanes = results[results["workload"] == "E lanes"]
    for (library, curve), colour in zip(lanes.groupby("library"), (BLUE, INK, RED), strict=False):
        medians = curve.groupby("chains")["value"].median()
        right.loglog(medians.index, medians, "o-", color=colour, label=library)
    right.set(xlabel="chains in one batch", ylabel="ms for one transition of all")
    right.legend(fontsize=9)
    return figure


def traces(chain: Chain, parameters: Sequence[int], starts: int = 300, title: str = "") -> Figure:
    """Traces of the log density and of some parameters, one colour per chain; the log density's start is cut off."""
    figure = Figure(figsize=(10, 1.5 * (len(parameters) + 1)), title=title, alt="Trace plots, one colour per chain")
    axes = figure.subplots(len(parameters) + 1, 1, sharex=True)
    for ax, values, name in zip(
        axes,
        [chain.stats["lp"], *(chain.draws[..., k] for k in parameters)],
        ["log density", *(chain.names[k] for k in parameters)],
        strict=True,
    ):
        for colour, row in zip(_chain_colours(chain), values.cpu(), strict=True):
            ax.plot(row, color=colour, lw=0.5)
        ax.set_ylabel(name, fontsize=9)
    low = chain.stats["lp"][:, min(starts, chain.num_draws // 2) :].min().item()
    axes[0].set_ylim(bottom=low - 2)
    axes[-1].set_xlabel("draw")
    return figure


def ranks(draws: Tensor, names: Sequence[str], bins: int = 20, title: str = "") -> Figure:
    """Rank histograms (Vehtari et al. 2021): ranks over all chains, counted per chain; flat where chains agree.

    Args:
        draws: shape ``(chains, draws, K)``.
        names: K titles.
    """
    from scipy.stats import rankdata

    chains, length, quantities = draws.shape
    figure = Figure(
        figsize=(2.5 * quantities, 1.1 * chains + 0.8),
        title=title,
        alt="Rank histograms per chain",
    )
    axes = figure.subplots(chains, quantities, sharex=True, sharey=True, squeeze=False)
    flat = draws.reshape(chains * length, quantities).cpu().numpy()
    rank = (rankdata(flat, axis=0) - 0.5).reshape(chains, length, quantities) / (chains * length)
    for (row, column), ax in np.ndenumerate(axes):
        counts, edges = np.histogram(rank[row, :, column], bins=bins, range=(0, 1))
        ax.bar(
            edges[:-1],
            counts * bins / length,
            width=1 / bins,
            align="edge",
            color=CHAIN_COLOURS[row % 4],
            ec="white",
            lw=0.3,
        )
        ax.axhline(1, color=INK, lw=0.8, ls="--")
        if row == 0:
            ax.set_title(names[column], fontsize=9)
        if column == 0:
            ax.set_ylabel(f"chain {row}", fontsize=9)
    figure.supylabel("share of draws (1: even)", fontsize=9)
    figure.supxlabel("rank among all draws, from lowest to highest", fontsize=9)
    return figure


def autocorrelations(draws: Tensor, names: Sequence[str], max_lag: int = 1000, title: str = "") -> Figure:
    """Autocorrelation against lag of some quantities, shape ``(chains, draws, K)``, averaged over chains."""
    figure = Figure(figsize=(7, 3.4), title=title, alt="Autocorrelation against lag")
    ax = figure.subplots()
    centred = (draws - draws.mean(1, keepdim=True)).cpu()
    spectrum = torch.fft.rfft(centred, n=2 * draws.shape[1], dim=1).abs().square()
    covariance = torch.fft.irfft(spectrum, dim=1)[:, :max_lag].mean(0)
    for k, name in enumerate(names):
        ax.plot(covariance[:, k] / covariance[0, k], lw=1.5, color=CHAIN_COLOURS[k % 4], label=name)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(xlabel="lag (draws)", ylabel="autocorrelation", xlim=(0, max_lag))
    ax.legend(fontsize=9)
    return figure


def energies(chain: Chain, starts: int, title: str = "") -> Figure:
    """Marginal energy against its change from draw to draw, after ``starts`` draws of each chain (Betancourt 2017)."""
    figure = Figure(figsize=(7, 3.2), title=title, alt="Histograms of the energy and of its changes between draws")
    ax = figure.subplots()
    energy = chain.stats["energy"][:, starts:].cpu()
    centred, change = (energy - energy.mean(1, keepdim=True)).flatten(), energy.diff(dim=1).flatten()
    limit = torch.cat([centred, change]).abs().quantile(0.999).item()
    bins = np.linspace(-limit, limit, 61)
    for values, colour, name in (
        (centred, CHAIN_COLOURS[0], "energy around its mean: what has to be explored"),
        (change, CHAIN_COLOURS[1], "change from draw to draw: what one step explores"),
    ):
        ax.hist(values.numpy(), bins=bins, density=True, histtype="stepfilled", color=colour, alpha=0.55, label=name)
    ax.set(xlabel="energy", ylabel="density")
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])  # room for the legend
    ax.legend(fontsize=9)
    return figure


def rhat_comparison(weights: Tensor, function: Tensor, title: str = "") -> Figure:
    """R-hat of every weight beside R-hat of the prediction at every grid point."""
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
    ax.xaxis.set_major_locator(FixedLocator([1, 1.05, 1.1, 1.2, 1.5, 2, 3, 5]))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(fontsize=9, loc="lower right")
    return figure


def rhat_map(values: Tensor, grid: Tensor, data: Data, title: str = "") -> Figure:
    """R-hat of the prediction at every grid point, with the worst point marked."""
    figure = Figure(figsize=(5.8, 4.6), title=title, alt="Map of R-hat of the predictions, worst point marked")
    ax = figure.subplots()
    levels = np.linspace(1, max(RHAT_LIMIT, values.max().item()), 21)
    shown = ax.contourf(*_mesh(grid, values.clamp(min=1)), levels=levels, cmap=RHAT_MAP)
    scatter(ax, data, size=20)
    worst = grid[values.argmax()].cpu()
    ax.plot(*worst, "*", color="white", mec=INK, ms=18, label="worst point", clip_on=False, zorder=4)
    _square(ax, limit=float(grid.max()))
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.colorbar(shown, label="R-hat of the prediction", format="%.2f")
    return figure


def scatter(ax: Axes, data: Data, size: float) -> None:
    """The points of a data set with two inputs and labels 0 and 1."""
    x, y = data.x.cpu(), data.y.cpu()
    for label, colour, marker in ((1, RED, "o"), (0, BLUE, "s")):
        chosen = x[y == label]
        ax.scatter(*chosen.T, c=colour, marker=marker, s=size, ec="black", lw=0.7, label=f"class {label}", zorder=3)


def probability_contours(ax: Axes, grid: Tensor, p: Tensor) -> QuadContourSet:
    """Filled contours of a probability, white at 0.5, with the decision boundary drawn in."""
    mesh = _mesh(grid, p)
    norm = TwoSlopeNorm(0.5, 0, 1)
    filled = ax.contourf(*mesh, levels=PROBABILITY_LEVELS, cmap=PROBABILITY_MAP, norm=norm)
    if p.min() < 0.5 < p.max():
        ax.contour(*mesh, levels=[0.5], colors=INK, linewidths=1.2)
    return filled


def _mesh(grid: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid points ``(M, 2)`` and values ``(M,)`` as the three square arrays that Matplotlib's contours take."""
    side = math.isqrt(len(grid))
    if side * side != len(grid) or values.shape != (len(grid),):
        raise ValueError(
            f"a map needs a square grid and one value per point, got {tuple(grid.shape)} and {tuple(values.shape)}; "
            "make the grid with square_grid()"
        )
    x1, x2 = grid.cpu().numpy().T.reshape(2, side, side)
    return x1, x2, values.cpu().numpy().reshape(side, side)


def _square(ax: Axes, limit: float) -> None:
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="x1", ylabel="x2")


def _chain_colours(chain: Chain) -> list[str]:
    return [CHAIN_COLOURS[k % len(CHAIN_COLOURS)] for k in range(chain.num_chains)]
