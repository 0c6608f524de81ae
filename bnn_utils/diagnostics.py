"""Convergence diagnostics of any quantity, in weight space or in function space."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.coupling import Pairs, copies, coupled, named
from bnn_utils.mixing import by_quantity, in_order, mean_ess, mean_se, rank, rank_rhat, split_chains, tail_ess, variance

if TYPE_CHECKING:
    from bnn_utils.mixing_native import Code

RHAT_LIMIT = 1.01  # Vehtari et al. 2021, section 4
FEWEST_SHARED = 10  # different predictions, in the same order, that make two chains copies: one in 10! by chance
ESS_PER_CHAIN = 100  # the same section: 400 of four chains, so that R-hat and ESS can themselves be trusted


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
    return by_quantity(lambda x, code: rank_rhat(rank(split_chains(x), code), code), draws)


def ess(draws: Tensor, method: Literal["bulk", "tail", "mean"] = "bulk") -> Tensor:
    """Effective sample size: how many independent draws would estimate as well (Vehtari et al. 2021, section 3).

    Args:
        draws: shape ``(chains, draws, ...)``.
        method: "bulk" for the centre (ranks), "tail" for the 5 % and 95 % quantiles, "mean" for the mean.

    Returns:
        shape ``(...)``, float64 on the CPU; NaN for a quantity that never changed.
    """
    methods = {
        "bulk": lambda x, code: mean_ess(rank(split_chains(x), code).scores, code),
        "tail": lambda x, code: tail_ess(split_chains(x), in_order(x), code),
        "mean": lambda x, code: mean_ess(split_chains(x), code),
    }
    _check.choice("method", method, methods)
    return by_quantity(methods[method], draws)


def mcse(draws: Tensor) -> Tensor:
    """Standard error of the mean whose 95 % intervals, mean +- 1.96 of it, cover: the larger of two.

    The standard deviation over the root of the ESS, as in Stan and ArviZ: it adds up autocorrelations until they are
    lost in their noise. A weak but slow component is below that noise, and may have half of the variance: with replica
    exchange, whose round trips take hundreds of draws and move a prediction by little, its intervals cover 80 to 95 %.

    Batch means: the spread of the means of 12 batches or a few more, each a third of one of 4 chains, or a whole one of
    12 chains or more (Argon and Andradottir 2006). Long batches know of slow components, and as 12 means know their own
    spread to a fifth only, it is widened by the quantile of Student's t over the normal one, 1.12 for 12.

    Where autocorrelations say all, as of independent draws, the larger of the two is 15 % too large on average and
    covers 96 to 97 %. Of a chain that is not many times as long as its slowest component's memory no error is right.

    Args:
        draws: shape ``(chains, draws, ...)``.

    Returns:
        shape ``(...)``, float64 on the CPU; NaN for a quantity that never changed.
    """
    return by_quantity(lambda x, code: mean_se(x, split_chains(x), code), draws)


class Mixing(NamedTuple):
    """What `rhat`, `ess` and `mcse` say, shape ``(...)`` each, float64 on the CPU."""

    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    mcse: Tensor


def diagnose(draws: Tensor) -> Mixing:
    """All of `rhat`, `ess` and `mcse` of draws ``(chains, draws, ...)``, in half the time: they share their ranks."""
    return Mixing(*by_quantity(_mixing, draws))


def _mixing(x: np.ndarray, code: Code | None) -> np.ndarray:
    halves = split_chains(x)
    ranks = rank(halves, code)
    # The middle draw of an odd number is in no half, so that the sorted halves lack it.
    ordered = ranks.ordered if x.shape[2] % 2 == 0 else in_order(x)
    bulk, tail = mean_ess(ranks.scores, code), tail_ess(halves, ordered, code)
    return np.stack([rank_rhat(ranks, code), bulk, tail, mean_se(x, halves, code)])


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
    draws, num_superchains = _check.tensor("draws", draws), _check.whole("num_superchains", num_superchains, 2)
    count, length = draws.shape[:2] if draws.ndim >= 2 else (0, 0)
    if count % num_superchains or count * length <= num_superchains:
        raise ValueError(
            "nested R-hat needs draws of shape (chains, draws, ...), two or more superchains of equally many chains, "
            f"and more than one draw in each; got {tuple(draws.shape)} and {num_superchains} superchains"
        )

    def of_superchains(x: np.ndarray, _: Code | None) -> np.ndarray:
        x = x.reshape(len(x), num_superchains, -1, length).astype(np.float64, copy=False)
        means = x.mean(axis=3)
        between = means.mean(axis=2).var(axis=1, ddof=1)
        within = variance(means) + variance(x).mean(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):  # a quantity that never changed in a superchain
            return np.sqrt(1 + between / within.mean(axis=1))

    return by_quantity(of_superchains, draws, fewest=1)


@dataclass(frozen=True, eq=False, repr=False)
class Convergence:
    """R-hat, ESS and standard errors of the predictions at M places; prints as its verdict.

    Attributes:
        places: inputs, shape ``(M, features)``.
        num_chains: how many chains were compared; the least ESS grows with it.
        r_hat, ess_bulk, ess_tail, mcse: shape ``(M,)``, float64 on the CPU; NaN where the prediction never changed.
            ``mcse`` is that of the mean prediction; it is reported and not judged.
        dependent: pairs of chains that are copies of each other, or move together as with the same random numbers:
            then the numbers above are wrong. Independent chains are named with a probability of at most 1e-6.
        stuck: chains whose prediction never changed at any place, while others did: among many chains one that never
            moved changes R-hat by little.
    """

    places: Tensor
    num_chains: int
    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    mcse: Tensor
    dependent: Pairs = field(default_factory=list)
    stuck: list[int] = field(default_factory=list)

    @property
    def ess_limit(self) -> int:
        """The least bulk and tail ESS, 100 for each chain: that of all chains together must not hide short ones."""
        return ESS_PER_CHAIN * self.num_chains

    @property
    def is_converged(self) -> bool:
        """R-hat at most 1.01, both ESS at least 100 per chain, wherever it changed; no chain stuck, none dependent."""
        failed = (self.r_hat > RHAT_LIMIT) | (self.ess_bulk < self.ess_limit) | (self.ess_tail < self.ess_limit)
        # Where it never changed nothing failed and nothing passed: a sampler that is stuck must not pass everywhere.
        return not failed.any() and not self.r_hat.isnan().all() and not self.dependent and not self.stuck

    @property
    def verdict(self) -> str:
        """The judgement in words, with the worst places; R-hat and errors are rounded up, ESS down."""
        unmoved = self.r_hat.isnan()
        if unmoved.all():
            return f"nothing to judge: the prediction never changed in any chain, at {self._count(unmoved)}"
        clauses = [
            *([self._dependence_clause()] if self.dependent else []),
            *([self._stuck_clause()] if self.stuck else []),
            self._rhat_clause(),
            self._ess_clause("bulk", self.ess_bulk),
            self._ess_clause("tail", self.ess_tail),
            self._mcse_clause(),
        ]
        if unmoved.any():
            clauses.append(
                f"nothing is known at {self._count(unmoved)}, {self._place(unmoved.int().argmax())} the first, where "
                "the prediction never changed in any chain (saturated or stuck)"
            )
        return f"{'no sign of trouble' if self.is_converged else 'not converged'}: {'; '.join(clauses)}"

    def __repr__(self) -> str:
        return self.verdict

    def _dependence_clause(self) -> str:
        return (
            f"{named(self.dependent)} are not independent: they hold the same predictions, or move together as runs "
            "with the same random numbers do; give each run a seed of its own, or none"
        )

    def _stuck_clause(self) -> str:
        chains = enumerated(self.stuck, self.num_chains)
        return f"the prediction of {chains} never changed at any place (saturated or stuck)"

    def _rhat_clause(self) -> str:
        worst, high = worst_place(self.r_hat), self.r_hat > RHAT_LIMIT
        largest, place = self.r_hat[worst].item(), self._place(worst)
        value = f"{np.ceil(1000 * largest) / 1000:.3f}" if largest < 100 else "over 100"
        if high.any():
            return f"R-hat is {value} at {place}, above {RHAT_LIMIT} at {self._count(high)}"
        return f"R-hat at most {value}, at {place}"

    def _ess_clause(self, name: str, values: Tensor) -> str:
        worst, low = worst_place(-values), values < self.ess_limit
        value, place = f"{np.floor(values[worst].item()):,.0f}", self._place(worst)
        if low.any():
            limit = f"{self.ess_limit:,}, {ESS_PER_CHAIN} for each of {self.num_chains:,} chains,"
            return f"{name} ESS is {value} at {place}, below {limit} at {self._count(low)}"
        return f"{name} ESS at least {value}, at {place}"

    def _mcse_clause(self) -> str:
        worst = worst_place(self.mcse)
        unit = 10 ** (math.floor(math.log10(self.mcse[worst])) - 1)
        return f"standard error at most {unit * math.ceil(self.mcse[worst] / unit):.2g}, at {self._place(worst)}"

    def _count(self, chosen: Tensor) -> str:
        return f"{int(chosen.sum()):,} of {len(chosen):,} places"

    def _place(self, index: Tensor) -> str:
        place = self.places[index].tolist()
        return f"({', '.join(str(round(x, 3)) for x in place)})" if len(place) <= 4 else f"place {int(index)}"


def enumerated(chains: list[int], of: int) -> str:
    """Some of all chains, in words: ``chains 0, 2 and 5``, ``12 of 64 chains (0, 3, 4, ...)``, ``all 4 chains``."""
    if len(chains) == of:
        return {1: "the chain", 2: "both chains"}.get(of, f"all {of:,} chains")
    if len(chains) > 4:
        return f"{len(chains):,} of {of:,} chains ({', '.join(map(str, chains[:3]))}, ...)"
    *most, last = map(str, chains)
    return f"chains {', '.join(most)} and {last}" if most else f"chain {last}"


def worst_place(badness: Tensor) -> Tensor:
    """Index of the largest of ``(M,)`` values, leaving out those that are NaN."""
    return badness.nan_to_num(nan=-torch.inf).argmax()


def convergence(predictions: Tensor, places: Tensor) -> Convergence:
    """R-hat, ESS and standard errors in function space: do the chains agree on what the network predicts?

    An R-hat of 1.01 takes some 50 effective draws in each half of a chain, however many chains there are. For many
    short ones there is `nested_rhat`.

    All of these take chains to be independent, so that is looked at too, see `bnn_utils.coupling`.

    Args:
        predictions: shape ``(chains, draws, M)``, such as ``posterior.predict(chain.draws, grid)``.
        places: the inputs that were predicted at, shape ``(M, features)``, such as ``grid``.

    Raises:
        ValueError: if the shapes don't fit each other, or a prediction is NaN or infinite.
    """
    predictions, places = _check.tensor("predictions", predictions), _check.tensor("places", places)
    if predictions.ndim != 3 or places.ndim != 2 or predictions.shape[2] != len(places):
        raise ValueError(
            "convergence needs predictions (chains, draws, M) and places (M, features), got "
            f"{tuple(predictions.shape)} and {tuple(places.shape)}; "
            "pass posterior.predict(chain.draws, grid) and grid, and of several outputs one at a time"
        )
    dependent = sorted({*copies(predictions, FEWEST_SHARED), *coupled(predictions)})
    is_stuck = (predictions == predictions[:, :1]).flatten(1).all(1)
    stuck = [] if is_stuck.all() else is_stuck.nonzero().flatten().tolist()
    return Convergence(places.detach().cpu(), len(predictions), *diagnose(predictions), dependent, stuck)
