"""The posterior's networks one after another, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import ipywidgets
import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.chain import Chain
from bnn_utils.plots import Figure, decision_maps, uncertainty_map
from bnn_utils.posterior import Posterior
from bnn_utils.predict import entropy
from bnn_utils.widgets.explorer import Explorer, around, check_plane

VIEWS = ("single draw", "running mean", "aleatoric", "epistemic")
CACHED_CHAINS = 4  # 5,000 draws on 625 points take 40 MB


class Predictions(NamedTuple):
    """Predictions of one chain on the grid, in float32 to save memory; row k of a running mean is over draws 0 to k."""

    p: Tensor  # (draws, M), probability of class 1
    mean: Tensor  # (draws, M), running mean of p
    aleatoric: Tensor  # (draws, M), running mean of the entropy of p, in bits

    @classmethod
    def of(cls, p: Tensor) -> Predictions:
        count = torch.arange(1, len(p) + 1, dtype=torch.float64)[:, None]
        p = p.cpu().double()
        doubt = entropy(p, of_classes=False)
        return cls(p.float(), (p.cumsum(0) / count).float(), (doubt.cumsum(0) / count).float())


def posterior_explorer(
    chain: Chain | Mapping[str, Chain], posterior: Posterior, grid: Tensor | None = None
) -> Explorer:
    """Move through the draws of a chain: one network, or the average and the uncertainty of all up to there.

    Several runs can be compared by passing them under names: of other samplers, or at other temperatures, as
    ``{"temperature 1": cold, "temperature 4": warm}``, where the likelihood of the posterior that ``warm`` was drawn
    from is taken to the power of 1/4. Predictions are kept for the four chains that were looked at last, so that
    moving on takes a drawing and no computation.

    Args:
        chain: draws of ``posterior``, or name -> draws.
        posterior: what predicts, with two inputs and labels 0 and 1.
        grid: where to predict, shape ``(M, 2)``, square; without it, 25 times 25 points over the data.

    Raises:
        ValueError: if the inputs are not two, there is no chain, or draws don't fit the posterior.
    """
    _check.posterior(posterior)
    check_plane(posterior)
    runs = dict(chain) if isinstance(chain, Mapping) else {"run": chain}
    if not runs:
        raise ValueError("there is no chain to look at: pass a Chain, or a mapping from names to Chains")
    for run in runs.values():
        _check.instance("a chain", run, Chain, "a Chain, as by sample(...) or Chain.from_draws(draws, posterior)")
        posterior.check_shape(run.draws[0])
    grid = around(posterior.data.x) if grid is None else grid

    @lru_cache(CACHED_CHAINS)
    def predictions(run: str, number: int) -> Predictions:
        return Predictions.of(posterior.predict(runs[run].draws[number], grid))

    def work(run: str, number: int, view: str, draw: int) -> tuple[Figure, str]:
        p, mean, aleatoric = (values[draw] for values in predictions(run, number))
        lp = runs[run].stats["lp"][number, draw].item()
        status = f"draw {draw + 1:,} of {runs[run].num_draws:,}, log density {lp:.1f}"
        so_far = f"the first {draw + 1:,} draws" if draw else "the first draw"
        if view == "single draw":
            return decision_maps({status: p}, grid, posterior.data), status
        if view == "running mean":
            return decision_maps({f"average of {so_far}": mean}, grid, posterior.data), status
        bits = aleatoric if view == "aleatoric" else entropy(mean, of_classes=False) - aleatoric
        title = {"aleatoric": "each network's own doubt", "epistemic": "how much the networks disagree"}[view]
        return uncertainty_map(bits.clamp(0, 1), grid, posterior.data, f"{view}: {title}, {so_far}"), status

    first = next(iter(runs.values()))
    controls = {
        "run": ipywidgets.Dropdown(options=list(runs), description="run"),
        "number": ipywidgets.IntSlider(max=first.num_chains - 1, description="chain"),
        "view": ipywidgets.ToggleButtons(options=VIEWS, style={"button_width": "auto"}),
        "draw": ipywidgets.IntSlider(max=first.num_draws - 1, description="draw", layout={"width": "420px"}),
    }
    play = ipywidgets.Play(max=first.num_draws - 1, step=max(1, first.num_draws // 100), interval=300)
    ipywidgets.jslink((play, "value"), (controls["draw"], "value"))

    def fit(change: dict[str, str]) -> None:
        run = runs[change["new"]]
        controls["number"].max = run.num_chains - 1
        controls["draw"].max = play.max = run.num_draws - 1
        play.step = max(1, run.num_draws // 100)

    controls["run"].observe(fit, names="value")
    if len(runs) == 1:
        controls["run"].layout.display = "none"
    if all(run.num_chains == 1 for run in runs.values()):
        controls["number"].layout.display = "none"
    which = ipywidgets.HBox([controls["run"], controls["number"]])
    return Explorer(controls, work, arranged=[which, controls["view"], ipywidgets.HBox([controls["draw"], play])])
