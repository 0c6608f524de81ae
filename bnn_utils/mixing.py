"""R-hat and effective sample size of blocks of quantities, in NumPy: what the diagnostics rest on.

The definitions are those of Vehtari et al. (2021) and, in their details, of ArviZ.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check

FEWEST_DRAWS = 4  # two in each half of a chain
FEWEST_BATCHES = 12  # of all chains together: with 10 to 30 intervals are about as good (Schmeiser 1982)
COLUMNS, ROWS = 256, 128  # of draws that are transposed at once
BLOCK_ELEMENTS = 2**18  # worked on by one thread at once: bounds the memory of many quantities to some ten megabytes


def by_quantity(function: Callable[[np.ndarray], np.ndarray], draws: Tensor, fewest: int = FEWEST_DRAWS) -> Tensor:
    """Blocks of quantities ``(Q, chains, draws)`` to ``function``, its results ``(..., Q)`` together and in shape."""
    values = _check.tensor("draws", draws).detach().cpu()
    if values.ndim < 2 or values.shape[1] < fewest:
        raise ValueError(
            f"diagnostics need draws of shape (chains, draws, ...) with at least {fewest} draws per chain, "
            f"got {tuple(values.shape)}"
        )
    if values.numel() == 0:
        raise ValueError(
            f"draws have shape {tuple(values.shape)}: there are no quantities, and at least one chain is needed"
        )
    if values.dtype != torch.float32:  # which is ranked as it is, in half the time
        values = values.double()
    bad = 0
    for part in values.reshape(-1).split(BLOCK_ELEMENTS):
        if not torch.stack(part.aminmax()).isfinite().all():  # several times as fast as to look at each value
            bad += int((~part.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of the values are NaN or infinite")
    chains, length = values.shape[:2]
    columns = values.reshape(chains * length, -1).numpy()
    width = max(1, BLOCK_ELEMENTS // len(columns))
    # Read more at once than is worked on at once: each row of many quantities lies far from the next.
    group = -(-max(width, min(COLUMNS, COLUMNS * ROWS**2 // len(columns))) // width) * width

    def of_group(start: int) -> np.ndarray:
        x = _transposed(columns[:, start : start + group]).reshape(-1, chains, length)
        return np.concatenate([of_block(x[first : first + width]) for first in range(0, len(x), width)], axis=-1)

    def of_block(x: np.ndarray) -> np.ndarray:
        unmoved = (x == x[:, :1, :1]).all(axis=(1, 2))
        return np.where(unmoved, np.nan, function(x))

    # NumPy sorts and transforms on one thread; these are as many as the reader lets torch have.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        results = np.concatenate(list(pool.map(of_group, range(0, columns.shape[1], group))), axis=-1)
    return torch.from_numpy(results.reshape(results.shape[:-1] + values.shape[2:]))


def _transposed(columns: np.ndarray) -> np.ndarray:
    """Contiguous, by some rows at a time, which stay in the cache: six times as fast as all at once."""
    result = np.empty(columns.shape[::-1], columns.dtype)
    for start in range(0, len(columns), ROWS):
        result[:, start : start + ROWS] = columns[start : start + ROWS].T
    return result


def split_chains(x: np.ndarray) -> np.ndarray:
    """Halves of chains as chains, ``(Q, 2 chains, draws // 2)``; the middle draw of an odd number is left out."""
    half = x.shape[2] // 2
    return np.concatenate([x[:, :, :half], x[:, :, -half:]], axis=1)


class Ranks(NamedTuple):
    ordered: np.ndarray  # (Q, S), all values of each quantity in ascending order
    places: np.ndarray  # (Q, S), where each of them stands in the flattened block
    scores: np.ndarray  # (Q, chains, draws), normal scores


def rank(chains: np.ndarray) -> Ranks:
    places = _argsort(chains.reshape(len(chains), -1))
    ordered = chains.ravel()[places].astype(np.float64, copy=False)
    return Ranks(ordered, places, _normal_scores(ordered, places).reshape(chains.shape))


def _argsort(values: np.ndarray) -> np.ndarray:
    """Where the ascending values of each row stand in the flattened array; ties in the order in which they stand.

    The bits of floats are in order once the sign bit is turned round, of negative ones all bits. NumPy sorts integers
    several times as fast as it finds the order of floats: of 32 bits, each together with its place in one number of 64.
    Those of 64 bits are sorted by their 16-bit digits, lowest first, which NumPy does by radix.
    """
    bits = values.view(f"i{values.itemsize}")
    rows = values.shape[1] * np.arange(len(values))[:, None]
    if values.itemsize == 4:
        packed = (bits ^ (bits >> 31 & np.int32(2**31 - 1))).astype(np.int64) << 32 | np.arange(values.shape[1])
        packed.sort(axis=1)
        return (packed & 2**32 - 1) + rows
    keys = bits ^ (bits >> (8 * values.itemsize - 1) | np.iinfo(bits.dtype).min)
    lowest, *higher = keys.astype(keys.dtype.newbyteorder("<"), copy=False).view("<u2").reshape(values.size, -1).T
    places = np.argsort(lowest.reshape(values.shape), axis=1, kind="stable") + rows
    for digit in higher:
        places = places.ravel()[np.argsort(digit[places], axis=1, kind="stable") + rows]
    return places


def _normal_scores(ordered: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Ranks of ascending values as quantiles of the standard normal, each put at its place; ties share their rank."""
    quantities, size = ordered.shape
    table = _score_table(size)
    scores = np.tile(table[::2], (quantities, 1))
    equal = np.zeros((quantities, size + 1), bool)  # to the value before
    np.equal(ordered[:, 1:], ordered[:, :-1], out=equal[:, 1:-1])
    before, after = equal[:, :-1], equal[:, 1:]
    starts, ends = np.flatnonzero(after & ~before), np.flatnonzero(before & ~after)
    scores[before | after] = np.repeat(table[starts + ends - starts // size * (2 * size)], ends - starts + 1)
    in_time = np.empty(scores.size)
    in_time[places] = scores
    return in_time


@lru_cache(maxsize=4)
def _score_table(size: int) -> np.ndarray:
    """Normal scores of the ranks 1, 1.5, 2, ..., size (Blom 1958)."""
    from scipy.special import ndtri  # slow to import

    return ndtri((np.arange(2, 2 * size + 1) / 2 - 3 / 8) / (size + 1 / 4))


def rank_rhat(ranks: Ranks) -> np.ndarray:
    ordered, places, scores = ranks
    size = ordered.shape[1]
    median = (ordered[:, [(size - 1) // 2]] + ordered[:, [size // 2]]) / 2
    folded = np.abs(ordered - median)
    # Down to the median and up again: two runs in order, which a merge sort joins in one pass.
    by_fold = np.argsort(folded, axis=1, kind="stable") + size * np.arange(len(folded))[:, None]
    folded, places = folded.ravel()[by_fold], places.ravel()[by_fold]
    # Where all values lie equally far from the median, the folded ones never change and say nothing.
    return np.fmax(_rhat(scores), _rhat(_normal_scores(folded, places).reshape(scores.shape)))


def _rhat(chains: np.ndarray) -> np.ndarray:
    draws = chains.shape[2]
    means = chains.mean(axis=2)
    residuals = chains - means[:, :, None]
    within = np.einsum("qcd,qcd->q", residuals, residuals) / (chains.shape[1] * (draws - 1))
    between = draws * means.var(axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a quantity that never changed within its chains
        return np.sqrt((between / within + draws - 1) / draws)


def variance(x: np.ndarray) -> np.ndarray:
    """Along the last axis; a single value counts as having none."""
    return x.var(axis=-1, ddof=1) if x.shape[-1] > 1 else np.zeros(x.shape[:-1])


def tail_ess(x: np.ndarray, ordered: np.ndarray | None = None) -> np.ndarray:
    """The smaller ESS of two indicators: of values up to the 5 % quantile, and of those up to the 95 % quantile.

    ``ordered`` are the values of x ``(Q, S)`` in ascending order, where they are at hand.
    """
    size = x.shape[1] * x.shape[2]
    places = [size * p + (1 - p) for p in (0.05, 0.95)]  # counted from 1, between two values (type 7 of R)
    if ordered is None:
        near = [int(place) + k for place in places for k in (-1, 0)]
        ordered = np.partition(x.reshape(len(x), size), near, axis=1)
    return np.minimum(*(mean_ess(split_chains(x <= _interpolated(ordered, place)[:, None, None])) for place in places))


def _interpolated(ordered: np.ndarray, place: float) -> np.ndarray:
    below = int(place)
    weight = place - below
    # Weighted as ArviZ does: where the two are tied, rounding decides on which side the tie falls.
    return (1 - weight) * ordered[:, below - 1].astype(np.float64) + weight * ordered[:, below].astype(np.float64)


def mean_se(x: np.ndarray) -> np.ndarray:
    """Standard error of the mean of ``(Q, chains, draws)``: see `diagnostics.mcse`."""
    by_lags = x.std(axis=(1, 2), ddof=1, dtype=np.float64) / np.sqrt(mean_ess(split_chains(x)))
    return np.maximum(by_lags, _batch_se(x))


def _batch_se(x: np.ndarray) -> np.ndarray:
    """By the spread of the means of 12 long batches, 1.96 of which are as wide as the interval by Student's t."""
    from scipy.special import ndtri, stdtrit  # slow to import

    quantities, chains, draws = x.shape
    in_chain = min(draws, -(-FEWEST_BATCHES // chains))
    num, size = chains * in_chain, draws // in_chain
    means = x[:, :, draws - in_chain * size :].reshape(quantities, num, size).mean(axis=2, dtype=np.float64)
    widened = stdtrit(num - 1, 0.975) / ndtri(0.975)
    return widened * means.std(axis=1, ddof=1) * np.sqrt(size / (chains * draws))


def mean_ess(chains: np.ndarray) -> np.ndarray:
    """Effective sample size of the mean of ``(Q, chains, draws)``: S / tau, with tau = -1 + 2 (rho_0 + rho_1 + ...).

    The sum over lags ends by Geyer's initial monotone sequence (1992), in the details as ArviZ does it: neighbours
    rho_2k + rho_2k+1 are taken while their sum is positive, and none for more than those before; of the first that
    are not taken, the even one is added once.
    """
    from scipy.fft import next_fast_len  # slow to import

    size, draws = chains.shape[1] * chains.shape[2], chains.shape[2]
    chains = chains.astype(np.float64, copy=False)
    means = chains.mean(axis=2, keepdims=True)
    length = next_fast_len(2 * draws, real=True)  # the rest is zeros
    parts = np.fft.rfft(chains - means, n=length).view(np.float64)  # real and imaginary, in turn
    # Only the mean covariance over chains is needed, so that the power is added up before it is transformed back.
    power = np.einsum("qcf,qcf->qf", parts, parts).reshape(len(parts), -1, 2).sum(axis=2)
    covariance = np.fft.irfft(power, n=length)[:, :draws] / size

    within = covariance[:, :1] * draws / (draws - 1)
    total = covariance[:, :1] + means.var(axis=1, ddof=1)
    with np.errstate(invalid="ignore"):  # an indicator that never changed, see below
        rho = 1 - (within - covariance) / total
    rho[:, 0] = 1
    pairs = max(1, (draws - 1) // 2)
    even, odd = rho[:, 0 : 2 * pairs : 2], rho[:, 1 : 2 * pairs : 2]
    sums = even + odd
    ended = sums <= 0
    ended[:, -1] = True
    last = ended.argmax(axis=1)[:, None]
    kept = np.arange(pairs) < last
    once = np.take_along_axis(np.where(sums < 0, np.maximum(even, 0), even), last, axis=1)
    tau = 2 * np.where(kept, np.minimum.accumulate(sums, axis=1), 0).sum(axis=1) - 1 + once[:, 0]
    # Antithetic draws may be worth more than independent ones, though not without limit.
    return np.where(total[:, 0] == 0, size, size / np.maximum(tau, 1 / np.log10(size)))
