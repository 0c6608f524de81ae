r"""Whether two computations of one posterior agree, from replicates of each that know nothing of each other.

A replicate is a chain, or a run of sequential Monte Carlo. Of each, all that a reference says of a posterior is an
average over draws: of every quantity its mean, its squared distance from the mean, and how often it lies below each of
some quantiles. So the spread of replicates gives standard errors that presuppose nothing about autocorrelation, and the
largest of thousands of differences, each in its standard errors, is held against what it is by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = (0.005, 0.025, *(k / 20 for k in range(1, 20)), 0.975, 0.995)  # of quantiles
SIMULATIONS = 200  # of the largest difference by chance
DRAWS_OF_SIMULATION = 1_000
TIED = 1e-3  # more probability than this at a single value
SAME, ROUNDING = 1e-9, 1e-13  # relative: of numbers without an error, and errors that are none
TOO_LARGE = 0.01  # a probability: a largest difference that is less probable by chance is a disagreement


class Marginals(NamedTuple):
    """Means, standard deviations and quantiles of Q quantities, of all draws together."""

    mean: Tensor  # (Q,)
    sd: Tensor  # (Q,)
    quantiles: Tensor  # (levels, Q)
    is_tied: Tensor  # (levels, Q), where many draws equal the quantile, such as probabilities that are rounded to 1


class Replicates(NamedTuple):
    """Averages over the draws of each of R replicates, and how much each replicate counts.

    Attributes:
        averages: shape ``(R, S)``: of the mean, standard deviation and probabilities below quantiles of `Marginals`, in
            this order and linear in the draws; then of what came beside the quantities.
        weights: of the replicates, shape ``(R,)``; their sum is 1.
    """

    averages: Tensor
    weights: Tensor

    @property
    def estimate(self) -> Tensor:
        return self.weights @ self.averages

    @property
    def se(self) -> Tensor:
        """Standard errors, from the spread of the replicates; of weighted ones that of a ratio, to first order."""
        num = len(self.weights)
        off = self.weights[:, None] * (self.averages - self.estimate)
        return (num / (num - 1) * off.square().sum(0)).sqrt()


def marginals(values: Sequence[Tensor], weights: Tensor) -> Marginals:
    """Of replicates ``(n, Q)`` with weights ``(R,)``; quantiles are those of all draws, each with its weight."""
    mean = sum(w * v.double().mean(0) for v, w in zip(values, weights, strict=True))
    variance = sum(w * (v.double() - mean).square().mean(0) for v, w in zip(values, weights, strict=True))
    of_draws = torch.cat([(w / len(v)).expand(len(v)) for v, w in zip(values, weights, strict=True)])
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    columns = torch.cat([v.T for v in values], dim=1)  # (Q, draws), each in one piece of memory
    quantiles = torch.empty(len(LEVELS), len(columns), dtype=torch.float64)
    is_tied = torch.empty(quantiles.shape, dtype=torch.bool)
    for k, column in enumerate(columns):
        ordered, order = column.sort()
        below = of_draws[order].cumsum(0)
        quantiles[:, k] = ordered[torch.searchsorted(below, levels).clamp(max=len(column) - 1)].double()
        last = torch.searchsorted(ordered, quantiles[:, k].to(ordered).contiguous(), right=True) - 1
        is_tied[:, k] = below[last] - levels > TIED
    return Marginals(torch.as_tensor(mean), torch.as_tensor(variance).sqrt(), quantiles, is_tied)


def influences(values: Tensor, known: Marginals) -> Tensor:
    """What each draw adds to the averages: ``(n, Q)`` -> ``(n, (2 + levels) Q)``, linear statistics of one draw.

    The standard deviation is that of the known mean, to first order: ``sd + ((q - mean)^2 - sd^2) / (2 sd)``. Where
    draws are tied at a quantile, what is below it depends on rounding: there the level itself stands for it.
    """
    values = values.double()
    sd = known.sd.clamp(min=torch.finfo(torch.float64).tiny)
    of_sd = known.sd + ((values - known.mean).square() - known.sd.square()) / (2 * sd)
    below = [
        torch.where(is_tied, level, (values <= quantiles).double())
        for level, quantiles, is_tied in zip(LEVELS, known.quantiles, known.is_tied, strict=True)
    ]
    return torch.cat([values, of_sd, *below], dim=1)


def replicates(values: Sequence[Tensor], beside: Sequence[Tensor], known: Marginals, weights: Tensor) -> Replicates:
    """Averages of `influences` of each replicate, and of what came beside: ``(n, Q)`` and ``(n, B)`` for each."""
    rows = [torch.cat([_average(v, known), b.double().mean(0)]) for v, b in zip(values, beside, strict=True)]
    return Replicates(torch.stack(rows), weights)


def _average(values: Tensor, known: Marginals) -> Tensor:
    """The mean of `influences`, some draws at a time: thousands of columns of all draws would not fit into memory."""
    parts = values.split(512)
    total = sum(influences(part, known).sum(0) for part in parts)
    return torch.as_tensor(total) / len(values)


class Agreement(NamedTuple):
    """How far two computations are apart, in joint standard errors.

    Attributes:
        z: of each number, shape ``(S,)``; 0 where neither has an error and they are equal.
        largest: of them all, whatever its sign.
        by_chance: the largest of each of some simulations of two computations that agree.
    """

    z: Tensor
    largest: float
    by_chance: Tensor

    @property
    def p_value(self) -> float:
        """How often chance makes the largest so large."""
        return (1 + int((self.by_chance >= self.largest).sum())) / (1 + len(self.by_chance))

    @property
    def agrees(self) -> bool:
        """Whether chance makes a difference as large in at least one of a hundred comparisons."""
        return self.p_value >= TOO_LARGE

    def __str__(self) -> str:
        usual, most = self.by_chance.quantile(torch.tensor([0.5, 0.95], dtype=self.by_chance.dtype)).tolist()
        return (
            f"largest of {len(self.z):,} differences: {self.largest:.2f} joint standard errors; by chance {usual:.2f} "
            f"is usual and {most:.2f} is exceeded once in 20 times (p = {self.p_value:.2f})"
        )


def agreement(one: Replicates, other: Replicates, draws: Tensor, seed: int = 0) -> Agreement:
    """Compare two computations of the same numbers.

    What chance makes is simulated: replicates whose averages are normal, with the correlation of draws, so that as many
    standard errors are as uncertain as here, and neighbouring places go together as they do.

    Args:
        one, other: averages ``(R, S)`` of the same S numbers; of what is known exactly a single replicate.
        draws: `influences` of some draws, with what comes beside, ``(n, S)``, for the correlation.
        seed: of the simulation.
    """
    sides = [side for side in (one, other) if len(side.weights) > 1]
    z = _in_errors(one.estimate - other.estimate, [side.se for side in sides], one.estimate.abs())
    chosen = torch.linspace(0, len(draws) - 1, min(len(draws), DRAWS_OF_SIMULATION)).long()
    scores = draws[chosen].float()
    scores = (scores - scores.mean(0)) / scores.std(0).clamp(min=1e-12) / len(scores) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    largest = [_by_chance(scores, sides, generator) for _ in range(SIMULATIONS)]
    return Agreement(z, z.abs().max().item(), torch.tensor(largest, dtype=torch.float64))


def _in_errors(difference: Tensor, errors: list[Tensor], size: Tensor) -> Tensor:
    se = torch.stack(errors).square().sum(0).sqrt()
    # A number without an error, such as a probability of 0, has to be the same on both sides, up to rounding.
    without = torch.where(difference.abs() <= SAME * size.clamp(min=1), 0.0, torch.inf)
    return torch.where(se > ROUNDING * size, difference / se, without)


def _by_chance(scores: Tensor, sides: list[Replicates], generator: torch.Generator) -> float:
    """The largest difference of two computations that agree: replicates are normal, and as many as here."""
    difference, errors = torch.zeros(scores.shape[1]), []
    for side, sign in zip(sides, (1, -1), strict=False):
        rows = torch.randn(len(side.weights), len(scores), generator=generator) @ scores
        # As they are now, all averages have the same error; some are better known by one side than by the other.
        scale = (side.se / side.weights.square().sum().sqrt()).float()
        found = Replicates(rows * scale, side.weights.float())
        difference += sign * found.estimate
        errors.append(found.se)
    return _in_errors(difference, errors, torch.zeros_like(difference)).nan_to_num().abs().max().item()


def moved_mass(is_mode: Tensor, share: float) -> Tensor:
    """A fault to plant: of draws ``(n,)`` those to take so that a share of one mode's are replaced by the other's."""
    taken = torch.arange(len(is_mode))
    inside, outside = is_mode.nonzero().flatten(), (~is_mode).nonzero().flatten()
    if len(outside):
        moved = inside[:: round(1 / share)]
        taken[moved] = outside[torch.arange(len(moved)) % len(outside)]
    return taken
