"""The tutorial's problem: four boxes of points, the network, its posterior, and the table that was published for it."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bnn_utils import _check
from bnn_utils.data import Data
from bnn_utils.likelihoods import Bernoulli
from bnn_utils.posterior import Posterior
from bnn_utils.priors import NormalPrior

if TYPE_CHECKING:
    import pandas as pd

BOX_SIDE = 4.5
# Lower-left corners; the first two boxes are class 1, the last two class 0.
BOX_CORNERS = ((0.5, 0.5), (-5.0, -5.0), (0.5, -5.0), (-5.0, 0.5))


def boxes(n: int = 80, seed: int = 1234) -> Data:
    """Four boxes of points, one per quadrant; opposite quadrants share a class (a noisy XOR).

    Args:
        n: number of points, a positive multiple of 4.
        seed: seed of NumPy's generator; the same seed gives the same points on every machine.

    Returns:
        Data with ``x`` of shape ``(n, 2)`` and ``y`` of shape ``(n,)`` in {0, 1}, float64 on the CPU.
        The first half of the points is class 1.
    """
    number = _check.number("n", n, "a whole number of at least 4")
    if not 4 <= number < float("inf") or number % 4:
        raise ValueError(f"n must be a positive multiple of 4 (four boxes of equal size), got {n}")
    n, seed = int(number), _check.whole("seed", seed, 0)
    _check.memory(f"{n=} points", 24 * n, torch.device("cpu"))
    rng = np.random.default_rng(seed)
    points = [
        np.stack([rng.random(n // 4) * BOX_SIDE + left, rng.random(n // 4) * BOX_SIDE + bottom], axis=1)
        for left, bottom in BOX_CORNERS
    ]
    labels = np.repeat([1.0, 0.0], n // 2)
    return Data(torch.from_numpy(np.concatenate(points)), torch.from_numpy(labels))


def network() -> nn.Sequential:
    """Layers of 3 and 2 tanh units between two inputs and a logit: 20 parameters, whatever torch draws for them."""
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))


def posterior() -> Posterior:
    """Of the network given the 80 boxes' points, with priors of standard deviation 10 / 3; float64 on the CPU."""
    return Posterior(network(), boxes(), NormalPrior(precision=0.09), Bernoulli())


def published_summary() -> pd.DataFrame:
    """The summary table that the original tutorial published for its chain, one row per parameter.

    Columns: mean, sd, mcse, ess_bulk, ess_tail, r_hat, ess_per_sec and the quantiles q2.5 ... q97.5. The rows are in
    Lux's parameter order and weights have symmetric copies, so compare ranges, not rows.
    """
    import pandas as pd

    with files("bnn_utils.resources").joinpath("published_chain.csv").open() as file:
        table = pd.read_csv(file, index_col="parameter")
    return table.rename(columns={"std": "sd", "rhat": "r_hat"})
