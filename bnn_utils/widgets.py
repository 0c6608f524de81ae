"""Widgets: the notebooks' figures, to be moved by hand."""

from __future__ import annotations

import ipywidgets
from torch import Tensor

from bnn_utils.chain import Chain
from bnn_utils.plots import decision_maps
from bnn_utils.posterior import Posterior


class Explorer(ipywidgets.VBox):
    """Controls above a picture; where no kernel runs, a line of text."""

    def __repr__(self) -> str:
        return "(Controls and a picture: they need a running kernel.)"


def draw_slider(chain: Chain, posterior: Posterior, grid: Tensor, step: int = 50) -> Explorer:
    """A slider over the draws of the first chain that shows the network at each.

    Args:
        chain: draws of ``posterior``.
        grid: where to predict, shape ``(M, 2)``, square.
        step: draws from one position of the slider to the next.
    """
    slider = ipywidgets.IntSlider(value=0, min=0, max=chain.num_draws - 1, step=step, description="draw")
    image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width="560px", max_width="100%"))

    def show(change: dict[str, int]) -> None:
        number = change["new"]
        p = posterior.predict(chain.draws[0, number], grid)
        title = f"log density {chain.stats['lp'][0, number]:.1f}"
        image.value = decision_maps({f"draw {number}": p}, grid, posterior.data, title).png()

    slider.observe(show, names="value")
    show({"new": slider.value})
    return Explorer([slider, image])
