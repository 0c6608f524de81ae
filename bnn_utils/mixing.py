"""R-hat and effective sample size of blocks of quantities, in NumPy: what the diagnostics rest on.

The definitions are those of Vehtari et al. (2021) and, in their details, of ArviZ.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check

if TYPE_CHECKING:
    from bnn_utils.mixing_native import Code

FEWEST_DRAWS = 4  # two in each half of a chain
FEWEST_BATCHES = 12  # of all chains together: with 10 to 30 intervals are about as good (Schmeiser 1982)
COLUMNS, ROWS = 256, 128  # of draws that are transposed at once
EXACT = 2**14  # flags whose pairs single precision counts: it errs by less than 0.05, and 0.5 would be too much
BLOCK_ELEMENTS = 2**17  # worked on by one thread at once: bounds the memory of many quantities to some ten megabytes

# Native code takes a fifth of a second to compile once and for all, and 50 ms to load: so many values save as much. Of
# shorter rows it would spend its time on empty buckets.
NATIVE_VALUES, NATIVE_DRAWS = 2**22, 400
MOST_DRAWS = 2**31 - 1  # places are 32-bit numbers


def by_quantity(
    function: Callable[[np.ndarray, Code | None], np.ndarray], draws: Tensor, fewest: int = FEWEST_DRAWS
) -> Tensor:
    """Blocks of quantities ``(Q, chains, draws)`` to ``function``, its results ``(..., Q)`` together and in shape.

    With each block it gets native code where that pays, and None elsewhere.
    """
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
    if not torch.stack(values.aminmax()).isfinite().all():  # several times as fast as to look at each value
        bad = sum(int((~part.isfinite()).sum()) for part in values.reshape(-1).split(BLOCK_ELEMENTS))
        raise ValueError(f"{bad} of the values are NaN or infinite")
    chains, length = values.shape[:2]
    columns = values.reshape(chains * length, -1).numpy()
    code = _code(columns)
    width = max(1, BLOCK_ELEMENTS // len(columns))
    # Read more at once than is worked on at once: each row of many quantities lies far from the next.
    group = -(-max(width, min(COLUMNS, COLUMNS * ROWS**2 // len(columns))) // width) * width

    def of_group(start: int) -> np.ndarray:
        x = _transposed(columns[:, start : start + group]).reshape(-1, chains, length)
        return np.concatenate([of_block(x[first : first + width]) for first in range(0, len(x), width)], axis=-1)

    def of_block(x: np.ndarray) -> np.ndarray:
        unmoved = (x == x[:, :1, :1]).all(axis=(1, 2))
        return np.where(unmoved, np.nan, function(x, code))

    # NumPy sorts and transforms on one thread; these are as many as the reader lets torch have.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        results = np.concatenate(list(pool.map(of_group, range(0, columns.shape[1], group))), axis=-1)
    return torch.from_numpy(results.reshape(results.shape[:-1] + values.shape[2:]))


def _code(columns: np.ndarray) -> Code | None:
    """Native code, if there is much to do."""
    if columns.size < NATIVE_VALUES or not NATIVE_DRAWS <= len(columns) <= MOST_DRAWS:
        return None
    try:
        from bnn_utils import mixing_native

        return mixing_native.code_of(columns.dtype.name)
    except (ImportError, OSError, RuntimeError):  # no llvmlite, or an old processor: NumPy gives the same
        return None


def _transposed(columns: np.ndarray) -> np.ndarray:
    """Contiguous, by some rows at a time, which stay in the cache: six times as fast as all at once."""
    result = np.empty(columns.shape[::-1], columns.dtype)
    for start in range(0, len(columns), ROWS):
        result[:, start : start + ROWS] = columns[start : start + ROWS].T
    return result


def split_chains(x: np.ndarray) -> np.ndarray:
    """Halves of chains side by side, ``(Q, chains, draws // 2, 2)``; the middle draw of an odd number is left out."""
    half = x.shape[2] // 2
    return np.stack([x[:, :, :half], x[:, :, -half:]], axis=3)


def in_order(x: np.ndarray) -> np.ndarray:
    return np.sort(x.reshape(len(x), -1), axis=1)


class Ranks(NamedTuple):
    ordered: np.ndarray  # (Q, S), all values of each quantity in ascending order
    places: np.ndarray  # (Q, S), where each of them stands: in the flattened block, or by native code in its row
    scores: np.ndarray  # normal scores, in the shape of the values


def rank(halves: np.ndarray, code: Code | None) -> Ranks:
    if code:
        values = halves.reshape(len(halves), -1)
        ordered, places, scores = code.rank(values, _score_table(values.shape[1]))
        return Ranks(ordered, places, scores.reshape(halves.shape))
    places = _argsort(halves.reshape(len(halves), -1))
    ordered = halves.ravel()[places]
    scores = np.empty(halves.shape)
    scores.ravel()[places.ravel()] = _normal_scores(ordered)
    return Ranks(ordered, places, scores)


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


def _normal_scores(ordered: np.ndarray) -> np.ndarray:
    """Ranks of ascending values ``(Q, S)`` as quantiles of the standard normal; ties share their rank."""
    quantities, size = ordered.shape
    table = _score_table(size)
    scores = np.tile(table[::2], quantities)
    tied = np.flatnonzero(ordered[:, 1:] == ordered[:, :-1])  # to the value before, which no first one of a row is
    tied += 1 + tied // (size - 1)
    first = tied[np.diff(tied, prepend=-1) > 1] - 1
    last = tied[np.diff(tied, append=scores.size + 1) > 1]
    shared = table[first + last - first // size * (2 * size)]
    scores[first] = shared
    scores[tied] = np.repeat(shared, last - first)
    return scores


@lru_cache(maxsize=4)
def _score_table(size: int) -> np.ndarray:
    """Normal scores of the ranks 1, 1.5, 2, ..., size (Blom 1958)."""
    from scipy.special import ndtri  # slow to import

    return ndtri((np.arange(2, 2 * size + 1) / 2 - 3 / 8) / (size + 1 / 4))


def rank_rhat(ranks: Ranks, code: Code | None) -> np.ndarray:
    _, chains, draws, _ = ranks.scores.shape
    if code:
        folded = code.fold(ranks.ordered, ranks.places, _score_table(ranks.ordered.shape[1]), chains)
    else:
        folded = _sums(_folded_scores(ranks))
    # Where all values lie equally far from the median, the folded ones never change and say nothing.
    return np.fmax(_rhat(*_sums(ranks.scores), draws), _rhat(*folded, draws))


def _folded_scores(ranks: Ranks) -> np.ndarray:
    """Normal scores of distances from the median.

    Down from the median and up from it they are in order, two runs that a merge sort joins in one pass. No distance has
    a sign, so that its bits leave room for one that says of which run it is.
    """
    size = ranks.ordered.shape[1]  # an even number, as of two halves
    half = size // 2
    down, up = ranks.ordered[:, half - 1 :: -1], ranks.ordered[:, half:]
    median = (down[:, :1].astype(np.float64) + up[:, :1]) / 2
    keys = np.concatenate([median - down, up - median], axis=1).view(np.uint64)
    keys <<= 1
    keys[:, half:] |= 1
    keys.sort(axis=1, kind="stable")
    is_up = (keys & 1).astype(bool)
    keys >>= 1
    scores = _normal_scores(keys)
    folded = np.empty(ranks.scores.shape)
    folded.ravel()[ranks.places[:, half - 1 :: -1].ravel()] = scores[np.flatnonzero(~is_up)]
    folded.ravel()[ranks.places[:, half:].ravel()] = scores[np.flatnonzero(is_up)]
    return folded


def _sums(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over each half of a chain, ``(Q, 2 chains)``; and of squares over all, ``(Q,)``."""
    return _series(scores).sum(axis=2).view(np.float64), np.einsum("qcdh,qcdh->q", scores, scores)


def _rhat(sums: np.ndarray, squares: np.ndarray, draws: int) -> np.ndarray:
    means = sums / draws
    # Scores are about zero, so that sums of squares will do; what rounding leaves of no variance may be negative.
    within = (squares - draws * np.einsum("qc,qc->q", means, means)) / (means.shape[1] * (draws - 1))
    between = draws * means.var(axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a quantity that never changed within its chains
        return np.sqrt((between / np.maximum(within, 0) + draws - 1) / draws)


def _series(halves: np.ndarray) -> np.ndarray:
    """Two halves as the real and the imaginary part of one series, ``(Q, chains, draws)``."""
    return halves.view(np.result_type(halves, np.complex64))[..., 0]


def variance(x: np.ndarray) -> np.ndarray:
    """Along the last axis; a single value counts as having none."""
    return x.var(axis=-1, ddof=1) if x.shape[-1] > 1 else np.zeros(x.shape[:-1])


def tail_ess(halves: np.ndarray, ordered: np.ndarray, code: Code | None) -> np.ndarray:
    """The smaller ESS of two indicators: of values up to the 5 % quantile, and of those above the 95 % quantile.

    ``ordered`` are all values ``(Q, S)`` in ascending order, those that are in no half too.
    """
    size = ordered.shape[1]
    places = [size * p + (1 - p) for p in (0.05, 0.95)]  # counted from 1, between two values (type 7 of R)
    low, high = (_interpolated(ordered, place)[:, None, None, None] for place in places)
    return np.minimum(*np.split(mean_ess(np.concatenate([halves <= low, halves > high]), code), 2))


def _interpolated(ordered: np.ndarray, place: float) -> np.ndarray:
    below = int(place)
    weight = place - below
    # Weighted as ArviZ does: where the two are tied, rounding decides on which side the tie falls.
    return (1 - weight) * ordered[:, below - 1].astype(np.float64) + weight * ordered[:, below].astype(np.float64)


def mean_se(x: np.ndarray, halves: np.ndarray, code: Code | None) -> np.ndarray:
    """Standard error of the mean of ``(Q, chains, draws)``: see `diagnostics.mcse`."""
    by_lags = x.std(axis=(1, 2), ddof=1, dtype=np.float64) / np.sqrt(mean_ess(halves, code))
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


def mean_ess(halves: np.ndarray, code: Code | None, done: int = 0) -> np.ndarray:
    """Effective sample size of the mean of `split_chains`: S / tau, with tau = -1 + 2 (rho_0 + rho_1 + ...).

    The sum over lags ends by Geyer's initial monotone sequence (1992), in the details as ArviZ does it: neighbours
    rho_2k + rho_2k+1 are taken while their sum is positive, and none for more than those before; of the first that
    are not taken, the even one is added once. At first a seventh of the lags is looked at, as the sum seldom ends
    later; where it does, all of them. Native code begins with a few. ``done`` is how many were not enough.
    """
    chains, draws = 2 * halves.shape[1], halves.shape[2]
    size = chains * draws
    seventh = max(2, draws // 7)
    code = code if code and seventh > code.LAGS else None
    lags = code.LAGS if code else seventh if done < seventh else draws
    products, means = (_products_of_flags if halves.dtype == bool else _products)(halves, lags, code)
    covariance = products / size
    within = covariance[:, :1] * draws / (draws - 1)
    total = covariance[:, :1] + means.var(axis=1, ddof=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # an indicator that never changed, see below
        rho = 1 - (within - covariance) / total
    rho[:, 0] = 1
    pairs = max(1, (lags - 1) // 2)
    even, odd = rho[:, 0 : 2 * pairs : 2], rho[:, 1 : 2 * pairs : 2]
    sums = even + odd
    ended = ~(sums > 0)
    more = np.flatnonzero(~ended.any(axis=1))
    ended[:, -1] = True
    last = ended.argmax(axis=1)[:, None]
    kept = np.arange(pairs) < last
    once = np.take_along_axis(np.where(sums < 0, np.maximum(even, 0), even), last, axis=1)
    tau = 2 * np.where(kept, np.minimum.accumulate(sums, axis=1), 0).sum(axis=1) - 1 + once[:, 0]
    # Antithetic draws may be worth more than independent ones, though not without limit.
    result = np.where(total[:, 0] == 0, size, size / np.maximum(tau, 1 / np.log10(size)))
    if lags < draws and len(more):
        result[more] = mean_ess(halves[more], None, lags)
    return result


def _products(halves: np.ndarray, lags: int, code: Code | None) -> tuple[np.ndarray, np.ndarray]:
    """Of residuals k draws apart, summed over all halves, ``(Q, lags)``; and the means of these, ``(Q, 2 chains)``."""
    if code:
        return code.products(halves, lags)
    series = _series(halves.astype(np.float64, copy=False))
    means = series.mean(axis=2)
    return _lagged(series - means[:, :, None], lags), means.view(np.float64)


def _products_of_flags(halves: np.ndarray, lags: int, code: Code | None) -> tuple[np.ndarray, np.ndarray]:
    """`_products` of what is true or false, from numbers of true ones, which are exact."""
    draws = halves.shape[2]
    pairs, counts, crossed = code.pairs(halves, lags) if code else _pairs(halves, lags)
    # Less the means: the sum of (x_t - m) (x_t+k - m) is that of x_t x_t+k - m (x_t + x_t+k) + m^2.
    means = counts / draws
    squares = np.square(means).sum(axis=1, keepdims=True) * np.arange(draws, draws - lags, -1)
    return pairs - crossed / draws + squares, means


def _pairs(halves: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Code.pairs`. They are counted by a Fourier transform in single precision, in half the time."""
    series = _series(halves.astype(np.float32))
    counts = series.sum(axis=2)
    if counts.view(np.float32).sum(axis=1).max() >= EXACT:
        series, counts = series.astype(np.complex128), counts.astype(np.complex128)
    # Not by `@`, which would start threads of its own.
    weighted = (series * counts.conj()[:, :, None]).sum(axis=1).real.astype(np.float64)
    crossed = np.cumsum(weighted + weighted[:, ::-1], axis=1)[:, : -lags - 1 : -1]
    return np.rint(_lagged(series, lags)), counts.view(series.real.dtype).astype(np.float64), crossed


def _lagged(series: np.ndarray, lags: int) -> np.ndarray:
    """Sums of products of draws k apart, ``(Q, lags)``, over all halves ``(Q, chains, draws)``, two in each series.

    Only these sums are needed and not those of each half, so that one transform does for two of them, and the power is
    added up before it is transformed back.
    """
    from scipy.fft import fft, next_fast_len, rfft  # slow to import

    length = next_fast_len(series.shape[2] + lags, real=True)  # the rest is zeros
    parts = fft(series, n=length).view(series.real.dtype)
    power = np.einsum("qcf,qcf->qf", parts, parts).reshape(len(series), length, 2).sum(axis=2, dtype=np.float64)
    return rfft(power).real[:, :lags] / length
