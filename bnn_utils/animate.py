"""Animated contours, as GIFs that every notebook viewer shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from PIL import Image
from torch import Tensor

from bnn_utils import _check
from bnn_utils.data import Data
from bnn_utils.plots import Figure, image_bundle, probability_contours, scatter

COLOURS = 48  # of a GIF's palette: the fewest that keep the ramp smooth


@dataclass(frozen=True)
class Animation:
    """A GIF that shows itself in a notebook."""

    gif: bytes
    alt: str

    def save(self, path: str | PathLike[str]) -> None:
        Path(path).write_bytes(self.gif)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(image_bundle(self.gif, "gif", self.alt), raw=True)


def contours(
    frames: Tensor, grid: Tensor, data: Data, titles: Sequence[str], alt: str, seconds_per_frame: float = 0.25
) -> Animation:
    """Probability contours, one frame per row.

    Args:
        frames: probabilities on the grid, shape ``(F, M)``.
        grid: shape ``(M, 2)``, square.
        titles: one per frame.
        alt: what the animation shows, for readers who don't see it.
        seconds_per_frame: how long each frame stays; the last one stays four times as long.

    Raises:
        ValueError: if there is no frame, or not one title for each.
    """
    if len(frames) == 0 or len(titles) != len(frames):
        raise ValueError(
            f"there are {len(frames)} frames and {len(titles)} titles: one title for each frame"
            if len(frames)
            else "there is no frame to show"
        )
    seconds_per_frame = _check.positive("seconds_per_frame", seconds_per_frame)
    figure = Figure(figsize=(4.4, 4.0), alt=alt)
    images = []
    for p, title in zip(frames, titles, strict=True):
        figure.clear()
        ax = figure.subplots()
        filled = probability_contours(ax, grid, p)
        scatter(ax, data, size=22)
        limit = float(grid.max())
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="x1", ylabel="x2")
        ax.set_title(title, fontsize=10)
        figure.colorbar(filled, label="probability of class 1", ticks=[0, 0.5, 1])
        images.append(Image.open(io.BytesIO(figure.png())).convert("RGB"))
    # One palette for all frames, without dithering: both keep the file small, as unchanged pixels cost nothing.
    palette = images[len(images) // 2].quantize(COLOURS)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    duration = [round(1000 * seconds_per_frame)] * (len(images) - 1) + [round(4000 * seconds_per_frame)]
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=True
    )
    return Animation(buffer.getvalue(), alt)
