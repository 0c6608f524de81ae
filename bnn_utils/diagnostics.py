"""Convergence diagnostics of any quantity, in weight space or in function space."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bnn_utils._arviz import arviz

FEWEST_DRAWS = 4  # two in each half of a chain
BLOCK_ELEMENTS = 2**20  # ranked at once: bounds the memory of many quantities to some ten megabytes


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger of bulk and tail (Vehtari et al. 2021, sections 3 and 4).

    Each chain is cut in half, so that one chain suffices to see a drift; that different chains ended in different
    places only several can show.

    Args:
        draws: shape ``(chains, draws, ...)``: parameters, predictions, or anything else computed from each draw.

    Returns:
        shape ``(...)``, float64 on the CPU: 1 when halves of chains agree, NaN for a quantity that never changed,
        infinite for one that differs between chains only.
    """
    array = _as_array(draws)
    columns = array.reshape(*array.shape[:2], -1)
    width = max(1, BLOCK_ELEMENTS // (array.shape[0] * array.shape[1]))
    blocks = [_rank_rhat(columns[:, :, start : start + width]) for start in range(0, columns.shape[2], width)]
    return torch.from_numpy(np.concatenate(blocks).reshape(array.shape[2:]))


def ess(draws: Tensor, method: Literal["bulk", "tail", "mean"] = "bulk") -> Tensor:
    """Effective sample size by ArviZ: how many independent draws would estimate as well.

    Args:
        draws: shape ``(chains, draws, ...)``.
        method: "bulk" for the centre (ranks), "tail" for the 5 % and 95 % quantiles, "mean" for the mean.

    Returns:
        shape ``(...)``, float64 on the CPU; NaN for a quantity that never changed.
    """
    return torch.from_numpy(_by_arviz("ess", draws, method))


def mcse(draws: Tensor) -> Tensor:
    """Standard error of the mean by ArviZ: ``(chains, draws, ...)`` -> ``(...)``, NaN where nothing moved."""
    return torch.from_numpy(_by_arviz("mcse", draws, "mean"))


def _by_arviz(function: str, draws: Tensor, method: str) -> np.ndarray:
    az = arviz()
    array = _as_array(draws)
    values = getattr(az, function)(az.convert_to_dataset({"v": array}), method=method)["v"].to_numpy()
    # ArviZ calls a quantity that never changed perfectly known. From a chain, it is one that nothing is known of.
    return np.where(np.ptp(array, axis=(0, 1)) == 0, np.nan, values)


def _as_array(draws: Tensor) -> np.ndarray:
    array = torch.as_tensor(draws).detach().cpu().double().numpy()
    if array.ndim < 2 or array.shape[1] < FEWEST_DRAWS:
        raise ValueError(
            f"diagnostics need draws of shape (chains, draws, ...) with at least {FEWEST_DRAWS} draws per chain, "
            f"got {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(array))} of the values are NaN or infinite")
    return array


def _rank_rhat(array: np.ndarray) -> np.ndarray:
    halves = _split(array)
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    # Where all values lie equally far from the median, the folded ones never change and say nothing.
    return np.fmax(_rhat(_normal_scores(halves)), _rhat(_normal_scores(folded)))


def _split(array: np.ndarray) -> np.ndarray:
    """Halves of chains as chains; the middle draw of an odd number is left out."""
    half = array.shape[1] // 2
    return np.concatenate([array[:, :half], array[:, -half:]])


def _normal_scores(array: np.ndarray) -> np.ndarray:
    """Ranks over all chains as quantiles of the standard normal (Blom 1958)."""
    from scipy.stats import norm, rankdata  # half a second to import

    chains, draws = array.shape[:2]
    ranks = rankdata(array.reshape(chains * draws, -1), axis=0).reshape(array.shape)
    return norm.ppf((ranks - 3 / 8) / (chains * draws + 1 / 4))


def _rhat(array: np.ndarray) -> np.ndarray:
    draws = array.shape[1]
    within = array.var(axis=1, ddof=1).mean(axis=0)
    between = draws * array.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a quantity that never changed within its chains
        return np.sqrt((between / within + draws - 1) / draws)
