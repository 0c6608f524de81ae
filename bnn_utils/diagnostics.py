"""Convergence diagnostics of any quantity, in weight space or in function space."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

RHAT_LIMIT = 1.01  # Vehtari et al. 2021, section 4
ESS_LIMIT = 400  # the same section: 100 for each of four chains, so that R-hat and ESS can themselves be trusted
FEWEST_DRAWS = 4  # two in each half of a chain
BLOCK_ELEMENTS = 2**18  # worked on by one thread at once: bounds the memory of many quantities to some ten megabytes


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger of bulk and tail (Vehtari et al. 2021, sections 3 and 4).

    Each chain is cut in half, so that one chain suffices to see a drift; that different chains ended in different
    places only several can show.

    Args:
        draws: shape ``(chains, draws, ...)``: parameters, predictions, or anything else computed from each draw.

    Returns:
        shape ``(...)``, float64 on the CPU: 1 when halves of chains agree, NaN for a quantity that never changed,
        enormous or infinite for one that differs between chains only.

    Raises:
        ValueError: if a value is NaN or infinite, or there are fewer than 4 draws.
    """
    return _by_quantity(lambda x: _rank_rhat(_rank(_split(x))), draws)


def ess(draws: Tensor, method: Literal["bulk", "tail", "mean"] = "bulk") -> Tensor:
    """Effective sample size: how many independent draws would estimate as well (Vehtari et al. 2021, section 3).

    Args:
        draws: shape ``(chains, draws, ...)``.
        method: "bulk" for the centre (ranks), "tail" for the 5 % and 95 % quantiles, "mean" for the mean.

    Returns:
        shape ``(...)``, float64 on the CPU; NaN for a quantity that never changed.
    """
    methods = {
        "bulk": lambda x: _ess(_rank(_split(x)).scores),
        "tail": _tail_ess,
        "mean": lambda x: _ess(_split(x)),
    }
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, got {method!r}")
    return _by_quantity(methods[method], draws)


def mcse(draws: Tensor) -> Tensor:
    """Standard error of the mean: ``(chains, draws, ...)`` -> ``(...)``, NaN where nothing moved."""
    return _by_quantity(lambda x: x.std(axis=(1, 2), ddof=1, dtype=np.float64) / np.sqrt(_ess(_split(x))), draws)


def nested_rhat(draws: Tensor, num_superchains: int) -> Tensor:
    """R-hat for many short chains (Margossian et al. 2024): does the average of a superchain forget its start?

        nested R-hat = sqrt(1 + B / W)
        B = variance between the means of the superchains
        W = variance inside a superchain, averaged over them: between the means of its chains, plus within its chains

    The chains of a superchain must have started at the same point and differ in their random numbers only: if each
    started elsewhere, W would hold the very differences that B is to be held against. The superchains must have
    started further apart than the posterior is wide. Chains are not cut in half and draws not ranked, so that one draw
    per chain is enough, and the quantity must have a variance. Chains that forgot their starts give about
    sqrt(1 + 1 / n), with n the effective draws of one superchain: 1.03 for one draw of each of 16 chains.

    Args:
        draws: shape ``(chains, draws, ...)``; the chains of one superchain are consecutive rows.
        num_superchains: at least two; they are equally large.

    Returns:
        shape ``(...)``, float64 on the CPU; NaN for a quantity that never changed, enormous or infinite for one that
        differs between superchains only.

    Raises:
        ValueError: if the chains are not as many superchains of equal size, or a value is NaN or infinite.
    """
    count, length = draws.shape[:2] if draws.ndim >= 2 else (0, 0)
    if num_superchains < 2 or count % num_superchains or count * length <= num_superchains:
        raise ValueError(
            "nested R-hat needs draws of shape (chains, draws, ...), two or more superchains of equally many chains, "
            f"and more than one draw in each; got {tuple(draws.shape)} and {num_superchains} superchains"
        )

    def of_superchains(x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), num_superchains, -1, length).astype(np.float64, copy=False)
        means = x.mean(axis=3)
        between = means.mean(axis=2).var(axis=1, ddof=1)
        within = _variance(means) + _variance(x).mean(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):  # a quantity that never changed in a superchain
            return np.sqrt(1 + between / within.mean(axis=1))

    return _by_quantity(of_superchains, draws, fewest=1)


@dataclass(frozen=True, eq=False, repr=False)
class Convergence:
    """R-hat and ESS of the predictions at M places; prints as its verdict.

    Attributes:
        places: inputs, shape ``(M, features)``.
        r_hat, ess_bulk, ess_tail: shape ``(M,)``, float64 on the CPU; NaN where the prediction never changed.
    """

    places: Tensor
    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor

    @property
    def is_converged(self) -> bool:
        """R-hat at most 1.01 and both ESS at least 400, wherever the prediction changed at all."""
        failed = (self.r_hat > RHAT_LIMIT) | (self.ess_bulk < ESS_LIMIT) | (self.ess_tail < ESS_LIMIT)
        # Where it never changed nothing failed and nothing passed: a sampler that is stuck must not pass everywhere.
        return not failed.any() and not self.r_hat.isnan().all()

    @property
    def verdict(self) -> str:
        """The judgement in words, with the worst places; R-hat is rounded up and ESS down."""
        unmoved = self.r_hat.isnan()
        if unmoved.all():
            return f"nothing to judge: the prediction never changed in any chain, at {self._count(unmoved)}"
        clauses = [
            self._rhat_clause(),
            self._ess_clause("bulk", self.ess_bulk),
            self._ess_clause("tail", self.ess_tail),
        ]
        if unmoved.any():
            clauses.append(
                f"nothing is known at {self._count(unmoved)}, {self._place(unmoved.int().argmax())} the first, where "
                "the prediction never changed in any chain (saturated or stuck)"
            )
        return f"{'no sign of trouble' if self.is_converged else 'not converged'}: {'; '.join(clauses)}"

    def __repr__(self) -> str:
        return self.verdict

    def _rhat_clause(self) -> str:
        worst, high = worst_place(self.r_hat), self.r_hat > RHAT_LIMIT
        largest, place = self.r_hat[worst].item(), self._place(worst)
        value = f"{np.ceil(1000 * largest) / 1000:.3f}" if largest < 100 else "over 100"
        if high.any():
            return f"R-hat is {value} at {place}, above {RHAT_LIMIT} at {self._count(high)}"
        return f"R-hat at most {value}, at {place}"

    def _ess_clause(self, name: str, values: Tensor) -> str:
        worst, low = worst_place(-values), values < ESS_LIMIT
        value, place = f"{np.floor(values[worst].item()):,.0f}", self._place(worst)
        if low.any():
            return f"{name} ESS is {value} at {place}, below {ESS_LIMIT} at {self._count(low)}"
        return f"{name} ESS at least {value}, at {place}"

    def _count(self, chosen: Tensor) -> str:
        return f"{int(chosen.sum()):,} of {len(chosen):,} places"

    def _place(self, index: Tensor) -> str:
        place = self.places[index].tolist()
        return f"({', '.join(str(round(x, 3)) for x in place)})" if len(place) <= 4 else f"place {int(index)}"


def worst_place(badness: Tensor) -> Tensor:
    """Index of the largest of ``(M,)`` values, leaving out those that are NaN."""
    return badness.nan_to_num(nan=-torch.inf).argmax()


def convergence(predictions: Tensor, places: Tensor) -> Convergence:
    """R-hat, bulk ESS and tail ESS in function space: do the chains agree on what the network predicts?

    An R-hat of 1.01 takes some 50 effective draws in each half of a chain, however many chains there are. For many
    short ones there is `nested_rhat`.

    Args:
        predictions: shape ``(chains, draws, M)``, such as ``posterior.predict(chain.draws, grid)``.
        places: the inputs that were predicted at, shape ``(M, features)``, such as ``grid``.

    Raises:
        ValueError: if the shapes don't fit each other, or a prediction is NaN or infinite.
    """
    if predictions.ndim != 3 or places.ndim != 2 or predictions.shape[2] != len(places):
        raise ValueError(
            "convergence needs predictions (chains, draws, M) and places (M, features), got "
            f"{tuple(predictions.shape)} and {tuple(places.shape)}; "
            "pass posterior.predict(chain.draws, grid) and grid, and of several outputs one at a time"
        )
    return Convergence(places.detach().cpu(), *_by_quantity(_convergence, predictions))


def _convergence(x: np.ndarray) -> np.ndarray:
    ranks = _rank(_split(x))
    # The middle draw of an odd number is in no half, so that the sorted halves lack it.
    ordered = ranks.ordered if x.shape[2] % 2 == 0 else None
    return np.stack([_rank_rhat(ranks), _ess(ranks.scores), _tail_ess(x, ordered)])


def _by_quantity(function: Callable[[np.ndarray], np.ndarray], draws: Tensor, fewest: int = FEWEST_DRAWS) -> Tensor:
    """Blocks of quantities ``(Q, chains, draws)`` to ``function``, its results ``(..., Q)`` together and in shape."""
    values = torch.as_tensor(draws).detach().cpu()
    if values.ndim < 2 or values.shape[1] < fewest:
        raise ValueError(
            f"diagnostics need draws of shape (chains, draws, ...) with at least {fewest} draws per chain, "
            f"got {tuple(values.shape)}"
        )
    if values.dtype != torch.float32:  # which is ranked as it is, in half the time
        values = values.double()
    columns = values.reshape(*values.shape[:2], -1).numpy()
    if not np.isfinite(columns).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(columns))} of the values are NaN or infinite")
    width = max(1, BLOCK_ELEMENTS // (values.shape[0] * values.shape[1]))

    def of_block(start: int) -> np.ndarray:
        x = np.ascontiguousarray(columns[:, :, start : start + width].transpose(2, 0, 1))
        unmoved = (x == x[:, :1, :1]).all(axis=(1, 2))
        return np.where(unmoved, np.nan, function(x))

    # NumPy sorts and transforms on one thread; these are as many as the reader lets torch have.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        results = np.concatenate(list(pool.map(of_block, range(0, columns.shape[2], width))), axis=-1)
    return torch.from_numpy(results.reshape(results.shape[:-1] + values.shape[2:]))


def _split(x: np.ndarray) -> np.ndarray:
    """Halves of chains as chains, ``(Q, 2 chains, draws // 2)``; the middle draw of an odd number is left out."""
    half = x.shape[2] // 2
    return np.concatenate([x[:, :, :half], x[:, :, -half:]], axis=1)


class _Ranks(NamedTuple):
    ordered: np.ndarray  # (Q, S), all values of each quantity in ascending order
    places: np.ndarray  # (Q, S), where each of them stands in the flattened block
    scores: np.ndarray  # (Q, chains, draws), normal scores


def _rank(chains: np.ndarray) -> _Ranks:
    places = _argsort(chains.reshape(len(chains), -1))
    ordered = chains.ravel()[places].astype(np.float64, copy=False)
    return _Ranks(ordered, places, _normal_scores(ordered, places).reshape(chains.shape))


def _argsort(values: np.ndarray) -> np.ndarray:
    """Where the ascending values of each row stand in the flattened array.

    NumPy sorts integers of 16 bits by radix, ten times as fast as it sorts floats, so the floats are sorted by their
    16-bit digits, lowest first. Their bits are in order once the sign bit is turned round, of negative ones all bits.
    """
    bits = values.view(f"i{values.itemsize}")
    keys = bits ^ (bits >> (8 * values.itemsize - 1) | np.iinfo(bits.dtype).min)
    lowest, *higher = keys.astype(keys.dtype.newbyteorder("<"), copy=False).view("<u2").reshape(values.size, -1).T
    rows = values.shape[1] * np.arange(len(values))[:, None]
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


def _rank_rhat(ranks: _Ranks) -> np.ndarray:
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
    within = chains.var(axis=2, ddof=1).mean(axis=1)
    between = draws * chains.mean(axis=2).var(axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a quantity that never changed within its chains
        return np.sqrt((between / within + draws - 1) / draws)


def _variance(x: np.ndarray) -> np.ndarray:
    """Along the last axis; a single value counts as having none."""
    return x.var(axis=-1, ddof=1) if x.shape[-1] > 1 else np.zeros(x.shape[:-1])


def _tail_ess(x: np.ndarray, ordered: np.ndarray | None = None) -> np.ndarray:
    """The smaller ESS of two indicators: of values up to the 5 % quantile, and of those up to the 95 % quantile.

    ``ordered`` are the values of x ``(Q, S)`` in ascending order, where they are at hand.
    """
    size = x.shape[1] * x.shape[2]
    places = [size * p + (1 - p) for p in (0.05, 0.95)]  # counted from 1, between two values (type 7 of R)
    if ordered is None:
        near = [int(place) + k for place in places for k in (-1, 0)]
        ordered = np.partition(x.reshape(len(x), size), near, axis=1)
    return np.minimum(*(_ess(_split(x <= _interpolated(ordered, place)[:, None, None])) for place in places))


def _interpolated(ordered: np.ndarray, place: float) -> np.ndarray:
    below = int(place)
    weight = place - below
    # Weighted as ArviZ does: where the two are tied, rounding decides on which side the tie falls.
    return (1 - weight) * ordered[:, below - 1].astype(np.float64) + weight * ordered[:, below].astype(np.float64)


def _ess(chains: np.ndarray) -> np.ndarray:
    """Effective sample size of the mean of ``(Q, chains, draws)``: S / tau, with tau = -1 + 2 (rho_0 + rho_1 + ...).

    The sum over lags ends by Geyer's initial monotone sequence (1992), in the details as ArviZ does it: neighbours
    rho_2k + rho_2k+1 are taken while their sum is positive, and none for more than those before; of the first that
    are not taken, the even one is added once.
    """
    from scipy.fft import next_fast_len  # slow to import

    size, draws = chains.shape[1] * chains.shape[2], chains.shape[2]
    chains = chains.astype(np.float64, copy=False)
    means = chains.mean(axis=2, keepdims=True)
    padded = np.zeros((*chains.shape[:2], next_fast_len(2 * draws, real=True)))
    np.subtract(chains, means, out=padded[:, :, :draws])
    parts = np.fft.rfft(padded).view(np.float64)  # real and imaginary, in turn
    # Only the mean covariance over chains is needed, so that the power is added up before it is transformed back.
    power = np.einsum("qcf,qcf->qf", parts, parts).reshape(len(parts), -1, 2).sum(axis=2)
    covariance = np.fft.irfft(power, n=padded.shape[2])[:, :draws] / size

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
