"""What a prior over weights says about functions."""

from __future__ import annotations

import math

import ipywidgets
import torch
from torch import Tensor, nn

from bnn_utils import _check
from bnn_utils.data import square_grid
from bnn_utils.flat import FlatModule
from bnn_utils.plots import Figure, prior_predictive
from bnn_utils.widgets.explorer import Explorer

ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU, "sigmoid": nn.Sigmoid, "SiLU": nn.SiLU}
NUM_NETWORKS = 200
SURE = 0.95


def prior_explorer(precision: float = 0.09, seed: int = 0) -> Explorer:
    """Choose a prior and see which functions it believes in, before any data.

    Six networks drawn from it as maps of the probability of class 1, and how sure 200 networks are all over the plane.
    The networks have two inputs and two hidden layers of equal width. Their random numbers stay the same: it is the
    same six networks that a lower precision stretches.

    Args:
        precision: of the normal prior of all weights, to begin with.
        seed: of the networks.
    """
    precision, seed = _check.positive("precision", precision), _check.seed(seed)
    grid = square_grid(25, limit=6.0)

    def work(precision: float, width: int, activation: str) -> tuple[Figure, str]:
        p = predictions(precision, width, activation, grid, seed)
        sure = ((p < 1 - SURE) | (p > SURE)).double().mean().item()
        title = f"{width} units a layer, precision {precision:.3g}: {sure:.0%} of all answers are surer than {SURE:.0%}"
        return prior_predictive(p, grid, title), f"Standard deviation of a weight: {precision**-0.5:.2g}."

    middle = math.log10(precision)  # a place where the slider can stop, so that it shows what the picture shows
    controls = {
        "precision": ipywidgets.FloatLogSlider(
            value=precision, min=middle - 2, max=middle + 2, step=0.1, readout_format=".3g", description="precision"
        ),
        "width": ipywidgets.IntSlider(value=3, min=1, max=64, description="width"),
        "activation": ipywidgets.Dropdown(options=list(ACTIVATIONS), description="activation"),
    }
    return Explorer(controls, work)


@torch.no_grad()
def predictions(precision: float, width: int, activation: str, grid: Tensor, seed: int) -> Tensor:
    """Probabilities of class 1 of networks drawn from the prior, ``(networks, M)``."""

    def linear(inputs: int, outputs: int) -> nn.Module:
        # Without values: those that torch would draw from its global stream are replaced anyway.
        return nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=grid.dtype)

    bend = ACTIVATIONS[activation]
    flat = FlatModule(nn.Sequential(linear(2, width), bend(), linear(width, width), bend(), linear(width, 1)))
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(NUM_NETWORKS, flat.dim, generator=generator, dtype=grid.dtype) / precision**0.5
    return torch.sigmoid(flat(theta, grid).squeeze(-1))
