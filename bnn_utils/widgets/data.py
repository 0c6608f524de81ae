"""A data set drawn by hand, and the posterior that follows it."""

from __future__ import annotations

from functools import partial

import ipywidgets
import torch
from torch import Tensor, nn

from bnn_utils import _check
from bnn_utils.data import Data, square_grid
from bnn_utils.diagnostics import rhat
from bnn_utils.kernels.hmc import HMC
from bnn_utils.likelihoods import Bernoulli
from bnn_utils.plots import Figure, MeanAndDisagreement
from bnn_utils.posterior import Posterior
from bnn_utils.priors import NormalPrior
from bnn_utils.sampling import sample
from bnn_utils.tutorial import boxes
from bnn_utils.widgets.explorer import Explorer
from bnn_utils.widgets.points import Point, PointPad

LIMIT = 6.0
PRECISION = 0.09
# From many places at once. Of 1,000 draws of each chain 25 are looked at: to predict takes longer than to draw.
NUM_CHAINS, NUM_DRAWS, THIN, WARMUP = 64, 25, 40, 100
KERNEL = HMC(step_size=0.05, num_steps=8)


def data_explorer(data: Data | None = None, seed: int = 0) -> Explorer:
    """Draw your own data, and see what the posterior makes of them.

    A click adds a point, dragging moves it, a right or double click removes it; keys do the same (see below the
    points). After each change 64 chains of 1,000 draws are drawn anew from the posterior of the tutorial's network,
    with 2 inputs, 3 and 2 tanh units. Above, their average prediction; below, where they disagree. Without points, that
    is the prior.

    Args:
        data: points to begin with, x ``(N, 2)`` between -6 and 6, and labels 0 and 1; without it, four boxes of five.
        seed: of the chains.

    Raises:
        ValueError: if the inputs are not two, or out of reach, or labels are none of 0 and 1.
    """
    data = boxes(n=20) if data is None else data
    _check.instance("data", data, Data, "a Data, as by Data(x, y)")
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    grid = square_grid(25, limit=LIMIT, like=torch.zeros(0))
    pad = PointPad(_points(data), LIMIT)
    seeds = ipywidgets.BoundedIntText(value=seed, max=2**31 - 1, description="seed", layout={"width": "150px"})
    again = ipywidgets.Button(description="Resample", tooltip="draw other chains from the same posterior")
    again.on_click(lambda _: seeds.set_trait("value", seeds.value + 1))

    def work_on(figure: MeanAndDisagreement, points: tuple[Point, ...], seed: int) -> tuple[Figure, str]:
        drawn = draw(net, points, grid, seed)
        return figure.show(drawn, as_data(points)), _status(points, drawn)

    return Explorer(
        {"points": pad, "seed": seeds},
        work=partial(work_on, MeanAndDisagreement(grid)),
        still=lambda **values: work_on(MeanAndDisagreement(grid), **values),
        arranged=[pad, ipywidgets.HBox([seeds, again])],
        beside=True,
    )


def draw(net: nn.Module, points: tuple[Point, ...], grid: Tensor, seed: int) -> Tensor:
    """Predictions of draws from the posterior given the points, ``(chains, draws, M)``; from the prior without any."""
    data = as_data(points)
    posterior = Posterior(net, data or Data(grid[:1], grid.new_zeros(1)), NormalPrior(PRECISION), Bernoulli())
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_CHAINS, 1 if data else NUM_DRAWS, posterior.dim)
    theta = torch.randn(shape, generator=generator, dtype=grid.dtype) / PRECISION**0.5
    if data:
        chain = sample(
            posterior, KERNEL, NUM_DRAWS, warmup=WARMUP, init=theta[:, 0], seed=generator, progress=False, thin=THIN
        )
        theta = chain.draws
    return posterior.predict(theta, grid)


def as_data(points: tuple[Point, ...]) -> Data | None:
    """The points as a data set; None without any."""
    if not points:
        return None
    table = torch.tensor(points)  # single precision: twice as fast, and nobody sees the difference
    return Data(table[:, :2], table[:, 2])


def _points(data: Data) -> tuple[Point, ...]:
    x, y = data.x.cpu().double(), data.y.cpu()
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"points of the plane have inputs of shape (N, 2), but these have shape {tuple(x.shape)}")
    if x.abs().max() > LIMIT:
        raise ValueError(
            f"points lie between {-LIMIT:g} and {LIMIT:g} here, but one is at {x[x.abs().amax(1).argmax()].tolist()}: "
            "rescale the inputs"
        )
    wrong = y[(y != 0) & (y != 1)]
    if y.ndim != 1 or len(wrong):
        got = f"y has shape {tuple(y.shape)}" if y.ndim != 1 else f"y holds {wrong[0].item():g}"
        raise ValueError(f"labels are 0 and 1, one for each point, but {got}")
    return tuple((*place, int(label)) for place, label in zip(x.tolist(), y.tolist(), strict=True))


def _status(points: tuple[Point, ...], p: Tensor) -> str:
    if not points:
        return "No points yet: these are networks drawn from the prior."
    labels = {label for _, _, label in points}
    alone = f"All points are of class {labels.pop()}: nothing asks for an edge. " if len(labels) == 1 else ""
    worst = rhat(p).nan_to_num(1).max().item()
    num = p.shape[:2].numel() * THIN
    return f"{alone}{num:,} draws of {len(p)} chains; R-hat of the predictions up to {worst:.2f}."
