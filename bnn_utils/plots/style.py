"""What all figures share.

Class 1 is red circles and class 0 blue squares; probabilities run from blue to red with white at 0.5; uncertainty has
one sequential ramp, and R-hat and ESS have another, on one scale in all figures, where dark is bad. Whatever else has
to be told apart (chains, networks, runs) shares one palette, with line styles or marks beside the colour. All of it is
chosen to be read by those who confuse red and green, and in grey print: sure of class 0 is darker than sure of class 1.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.contour import QuadContourSet
from torch import Tensor

from bnn_utils import _check
from bnn_utils.data import Data
from bnn_utils.diagnostics import RHAT_LIMIT

RED, BLUE, GREY, INK = "#b2182b", "#2166ac", "#8c8c8c", "#222222"
UNCERTAINTY_MAP, RHAT_MAP = "viridis", "magma_r"
PROBABILITY_MAP = LinearSegmentedColormap.from_list(
    "probability", ["#0b3c73", "#4393c3", "#f7f7f7", "#f4a582", "#d0503e"], N=20
)
PROBABILITY_LEVELS = np.linspace(0, 1, 21)
CHAIN_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#661100")  # of Okabe and Ito 2008, and a brown that differs in grey
LINE_STYLES = ("-", "--", "-.", ":")
DPI = 110
# Four bands on the good side of the limit and five on the bad, so that 1.01 shows beside 1.5.
RHAT_LEVELS = (1.001, 1.002, 1.005, RHAT_LIMIT, 1.02, 1.05, 1.1, 1.2)
ESS_LEVELS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2.5, 7.5, 25)  # times the limit
GOOD_TO_BAD = colormaps[RHAT_MAP](np.r_[np.linspace(0, 0.15, 4), np.linspace(0.36, 0.98, 5)])


class Figure(matplotlib.figure.Figure):
    """A Matplotlib figure with a title and alternative text, which shows itself where it ends a cell.

    Args:
        figsize: width and height, in inches.
        title: the finding; empty for none.
        alt: what is drawn; the title is added to it.
    """

    def __init__(self, figsize: tuple[float, float] | None = None, *, title: str = "", alt: str, **kwargs: Any) -> None:
        super().__init__(figsize, layout="constrained", dpi=DPI, facecolor="white", **kwargs)
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


def scatter(ax: Axes, data: Data, size: float, edge: str = "white") -> None:
    """The points of a data set with two inputs and labels 0 and 1."""
    _check.instance("data", data, Data, "a Data, as by Data(x, y)")
    if data.x.ndim != 2 or data.x.shape[1] != 2:
        raise ValueError(f"this figure shows inputs of shape (N, 2), but these have shape {tuple(data.x.shape)}")
    x, y = data.x.cpu(), data.y.cpu()
    for label, colour, marker in ((1, RED, "o"), (0, BLUE, "s")):
        x1, x2 = x[y == label].T
        ax.scatter(x1, x2, c=colour, marker=marker, s=size, ec=edge, lw=0.7, label=f"class {label}", zorder=3)


def probability_contours(ax: Axes, grid: Tensor, p: Tensor) -> QuadContourSet:
    """Filled contours of a probability, white at 0.5, with the decision boundary drawn in."""
    xyz = mesh(grid, p)
    ramp = probability_ramp()
    filled = ax.contourf(*xyz, levels=PROBABILITY_LEVELS, cmap=ramp.cmap, norm=ramp.norm)
    if p.min() < 0.5 < p.max():
        ax.contour(*xyz, levels=[0.5], colors=INK, linewidths=1.2)
    return filled


def probability_ramp() -> ScalarMappable:
    """The colours of probabilities, for a colour bar of its own."""
    return ScalarMappable(TwoSlopeNorm(0.5, 0, 1), PROBABILITY_MAP)


def mesh(grid: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid points ``(M, 2)`` and values ``(M,)`` as the three square arrays that Matplotlib's contours take."""
    grid, values = _check.tensor("grid", grid), _check.tensor("values", values)
    side = math.isqrt(len(grid))
    if side * side != len(grid) or values.shape != (len(grid),):
        raise ValueError(
            f"a map needs a square grid and one value per point, got {tuple(grid.shape)} and {tuple(values.shape)}; "
            "make the grid with square_grid()"
        )
    x1, x2 = grid.cpu().numpy().T.reshape(2, side, side)
    return x1, x2, values.cpu().numpy().reshape(side, side)


def check_maps(maps: Mapping[str, Tensor]) -> None:
    """Raise unless there is a panel to draw."""
    _check.instance("maps", maps, Mapping, "a mapping from titles to values")
    if not maps:
        raise ValueError("there is no map to draw: pass {title: values on the grid}")


def shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below the panels, of everything that any of them shows."""
    entries = {label: mark for ax in axes for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries), fontsize=8)


def square(ax: Axes, limit: float) -> None:
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="x1", ylabel="x2")
