"""How far draws, of any sampler or approximation, are from a posterior that is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bnn_utils import _check
from bnn_utils.chain import Chain
from bnn_utils.diagnostics import mcse
from bnn_utils.evidence import Estimate
from bnn_utils.likelihoods import Bernoulli, Categorical
from bnn_utils.predict import log_score
from bnn_utils.references.known import Reference
from bnn_utils.references.problems import Folder, Problem

if TYPE_CHECKING:
    import pandas as pd

TESTED = (0.05, 0.25, 0.5, 0.75, 0.95)  # levels of the quantiles at which probabilities are compared
INTERVAL = (0.05, 0.95)
INNER = 0.7  # the least share of a quantity's variance that its quantiles from 0.5 % to 99.5 % tell of
FALSE_ALARM = 0.05  # that draws from the posterior itself are told from it
FEWEST = 48  # draws from which errors can be computed
GROUPS = 24  # of draws, one of which is left out at a time to see how much the distances vary
SAME = 1e-9  # of numbers without an error
SIMULATIONS, SIMULATED_DRAWS = 1_000, 1_000


class Distance(NamedTuple):
    """A distance with its Monte Carlo standard error, and what draws from the posterior, as many, would have."""

    value: float
    se: float
    by_chance: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.se:.3f} ({self.by_chance:.3f} by chance)"


@dataclass(frozen=True, eq=False, repr=False)
class Score:
    """How far draws are from what is known; prints as its verdict.

    Distances are in posterior standard deviations, over all quantities of `Problem.values` that vary; without those
    whose spread hangs on less than one draw in a hundred, such as probabilities that are nearly always 1.

    Attributes:
        name: of the problem.
        mean: root mean square difference of means.
        sd: root mean square of the logarithm of the ratio of standard deviations; infinite for a single function.
        wasserstein: mean Wasserstein distance (of order 1) of each quantity's distribution.
        coverage: posterior mass inside of the draws' central 90 % intervals, on average; 0.9 for the posterior.
        mode: the mass of the mode that has a name, and the known one; None where there is none.
        log_score_lost: how much lower the mean log density of held-out points is; None where it can't be computed.
        largest: the largest difference of all probabilities below quantiles, of averages of these that see location
            and spread, and of the mode's mass, in standard errors.
        allowed: what draws from the posterior itself exceed in one of 20 cases.
        num_draws: how many there were.
    """

    name: str
    mean: Distance
    sd: Distance
    wasserstein: Distance
    coverage: Estimate
    mode: tuple[Estimate, Estimate] | None
    log_score_lost: Estimate | None
    largest: float
    allowed: float
    num_draws: int

    @property
    def is_indistinguishable(self) -> bool:
        """Whether no difference is larger than chance makes it; never with less than 48 draws, which show nothing.

        Draws from the posterior itself pass in 95 % of cases. That draws pass does not make them right: it says how far
        these, being so many, can see.
        """
        return self.num_draws >= FEWEST and self.largest <= self.allowed

    @property
    def verdict(self) -> str:
        if self.num_draws < FEWEST:
            found = f"{self.num_draws} draws, too few to be compared with a distribution"
        elif self.is_indistinguishable:
            found = "indistinguishable from the posterior by these draws"
        else:
            found = "not the posterior"
        return (
            f"{found}: means are {self.mean.value:.3f} posterior standard deviations off, where "
            f"{self.mean.by_chance:.3f} is chance; the largest difference is {self.largest:.1f} standard errors, where "
            f"{self.allowed:.1f} is allowed"
        )

    def table(self) -> pd.DataFrame:
        """One row for each distance: value, standard error, and what it would be for the posterior itself."""
        import pandas as pd

        rows: dict[str, tuple[float, float, float]] = {
            "mean": self.mean,
            "standard deviation": self.sd,
            "Wasserstein distance": self.wasserstein,
            "coverage of 90 % intervals": (*self.coverage, 0.9),
        }
        if self.mode is not None:
            rows["mass of the mode"] = (*self.mode[0], self.mode[1].value)
        if self.log_score_lost is not None:
            rows["log score lost"] = (*self.log_score_lost, 0.0)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "se", "of the posterior"])

    def __repr__(self) -> str:
        return self.verdict


Draws = Chain | ArrayLike | Tensor | Callable[[Tensor], ArrayLike]


def score(
    draws: Draws | Any,
    known: Reference,
    log_likelihoods: Tensor | ArrayLike | None = None,
    folder: Folder = None,
    seed: int = 0,
) -> Score:
    """Compare draws with a reference.

    >>> from bnn_utils import HMC, sample
    >>> from bnn_utils.references import reference, score
    >>> known = reference("line")
    >>> chain = sample(known.problem().posterior, HMC(), 500, num_chains=8, warmup=200, seed=0, progress=False)
    >>> score(chain, known).mean.value < 0.1
    True

    Args:
        draws: a chain of ours, or ArviZ's data of one, with draws of theta; or function values, ``(chains, draws, Q)``
            or ``(draws, Q)`` if they are independent, as `Problem.values` or `Problem.of_predictions` gives them; or,
            from any other package, a function from inputs to draws of predictions, ``(chains, draws, M)`` or ``(draws,
            M)``, with one more dimension for more than two classes. ``(1, Q)`` is a single function.
        known: as by ``reference("boxes")``.
        log_likelihoods: of function values, the log density of each point that is held out under each draw, in the same
            shape with H in place of Q: without it the log score is not compared. A chain needs none.
        folder: as in `bnn_utils.references.problem`.
        seed: of the simulation of what chance makes.

    Raises:
        TypeError: if the draws are none of these.
        ValueError: if they have another shape, or values that are not finite.
    """
    _check.instance("known", known, Reference, "a Reference, as by reference('boxes')")
    problem = known.problem(folder)
    values, logs = _function_values(draws, problem)
    if log_likelihoods is not None:
        logs = _check.tensor("log_likelihoods", log_likelihoods).double()
    values = _three("draws", values, (len(known.mean), len(known.mean) - problem.num_noise))
    logs = None if logs is None else _three("log_likelihoods", logs, (len(problem.held_out),))
    if logs is not None and logs.shape[:2] != values.shape[:2]:
        raise ValueError(
            f"log likelihoods are of {tuple(logs.shape[:2])} chains and draws, and function values of "
            f"{tuple(values.shape[:2])}"
        )
    varies = _compared(known)[: values.shape[-1]]
    truth = _Truth.of(known, varies)
    is_mode = problem.is_mode(values).double()[..., None] if problem.mode and known.mode else None
    values = values[..., varies]
    num = values.shape[0] * values.shape[1]
    found = _distances(values.flatten(0, 1), logs if logs is None else logs.flatten(0, 1), truth)
    errors, chances, largest, allowed = torch.full((5,), torch.nan), 3 * [math.nan], math.inf, math.nan
    if num >= FEWEST:
        errors = _jackknife(values, logs, truth)
        relative_se = (mcse(values) / values.std((0, 1))).nan_to_num()  # 1 / sqrt(effective sample size)
        chances = truth.by_chance(values, relative_se)
        largest, allowed = _largest(values, is_mode, truth, relative_se, seed)
    mean, sd, wasserstein, coverage, own_score = found.tolist()
    mode, lost = None, None
    if is_mode is not None and known.mode is not None:
        se = mcse(is_mode).nan_to_num().item() if num >= FEWEST else math.nan
        mode = Estimate(is_mode.mean().item(), se), known.mode
    if logs is not None:
        lost = Estimate(known.log_score.value - own_score, math.hypot(errors[4].item(), known.log_score.se))
    return Score(
        name=known.name,
        mean=Distance(mean, errors[0].item(), chances[0]),
        sd=Distance(sd, errors[1].item(), chances[1]),
        wasserstein=Distance(wasserstein, errors[2].item(), chances[2]),
        coverage=Estimate(coverage, errors[3].item()),
        mode=mode,
        log_score_lost=lost,
        largest=largest,
        allowed=allowed,
        num_draws=num,
    )


def _function_values(draws: Any, problem: Problem) -> tuple[Any, Tensor | None]:
    """Values as `Problem.values` gives them, and log likelihoods of held-out points where they can be known."""
    if hasattr(draws, "posterior") and not isinstance(draws, Chain):  # ArviZ's, of either version
        draws = Chain.from_arviz(draws, problem.posterior)
    if isinstance(draws, Chain):
        return problem.values(draws.draws), problem.log_likelihoods(draws.draws)
    if not callable(draws):
        return draws, None
    predictions = _check.tensor("what the function returns", draws(problem.inputs)).double()
    values, likelihood = problem.of_predictions(predictions), problem.posterior.likelihood
    if not isinstance(likelihood, Bernoulli | Categorical):
        return values, None
    p, y = _check.tensor("what the function returns", draws(problem.held_out.x)).double(), problem.held_out.y
    if isinstance(likelihood, Bernoulli):
        return values, torch.where(y > 0.5, p, 1 - p).log()
    return values, p.gather(-1, y.long().expand(p.shape[:-1])[..., None])[..., 0].log()


def _three(name: str, values: Any, widths: tuple[int, ...]) -> Tensor:
    """Of ``(chains, draws, width)`` or ``(draws, width)`` the first."""
    found = _check.tensor(name, values).detach().cpu().double()
    if found.ndim not in (2, 3) or found.shape[-1] not in widths or found.numel() == 0:
        wanted = " or ".join(map(str, sorted(set(widths))))
        raise ValueError(
            f"{name} have shape {tuple(found.shape)}, and this reference needs (chains, draws, {wanted}), or (draws, "
            f"{wanted}) if they are independent, as problem.values(theta) gives them"
        )
    bad = int((~found.isfinite()).sum()) if name == "draws" else int(found.isnan().sum())
    if bad:
        raise ValueError(f"{name} hold {bad} values that are NaN or infinite: take these draws out, and say so")
    return found if found.ndim == 3 else found[None]


def _compared(known: Reference) -> Tensor:
    """Which quantities vary, and not by a draw in a hundred alone: of these no short run knows the spread."""
    inner = _weights(known.levels) @ (known.quantiles - known.mean).square()
    return (known.sd > 0) & (inner >= INNER * known.sd.square())


def _weights(levels: Tensor) -> Tensor:
    """How much probability lies next to each of the quantiles, ``(L,)``."""
    zero, one = levels.new_tensor([0.0]), levels.new_tensor([1.0])
    return torch.cat([zero, (levels[1:] + levels[:-1]) / 2, one]).diff()


class _Truth(NamedTuple):
    """What is known of the quantities that are compared."""

    mean: Tensor  # (Q,)
    sd: Tensor  # (Q,)
    levels: Tensor  # (L,)
    quantiles: Tensor  # (L, Q)
    below_se: Tensor  # (L, Q)
    mode: Estimate

    @classmethod
    def of(cls, known: Reference, varies: Tensor) -> _Truth:
        num = len(varies)

        def of_varying(value: Tensor) -> Tensor:
            return value[..., :num][..., varies]

        return cls(
            of_varying(known.mean),
            of_varying(known.sd),
            known.levels,
            of_varying(known.quantiles),
            of_varying(known.below_se),
            known.mode or Estimate(math.nan, math.nan),
        )

    def by_chance(self, values: Tensor, relative_se: Tensor) -> list[float]:
        """Distances of means, standard deviations and distributions of as many draws from the posterior.

        As of independent draws that give such errors of the mean, and whose tails are as heavy.
        """
        centred = values - values.mean((0, 1))
        kurtosis = (centred.pow(4).mean((0, 1)) / centred.square().mean((0, 1)).square()).nan_to_num(nan=1)
        relative = torch.where(relative_se > 0, relative_se, torch.inf).square()
        # The error of a quantile is that of the probability below it, by the slope of the quantiles.
        slope = torch.gradient(self.quantiles, spacing=(self.levels,), dim=0)[0] / self.sd
        of_quantiles = (self.levels * (1 - self.levels))[:, None].sqrt() * slope
        of_all = math.sqrt(2 / math.pi) * (self.weights @ of_quantiles) * relative.sqrt()
        return [
            relative.mean().sqrt().item(),
            (relative * (kurtosis - 1) / 4).mean().sqrt().item(),
            of_all.mean().item(),
        ]

    @property
    def weights(self) -> Tensor:
        return _weights(self.levels)

    def below(self, values: Tensor) -> Tensor:
        """The posterior probability of less than each value, ``(Q,)`` -> ``(Q,)``.

        Straight lines lie between the quantiles, and the outermost two go on for as much again as they are apart.
        """
        q = self.quantiles
        grid = torch.cat([2 * q[:1] - q[1:2], q, 2 * q[-1:] - q[-2:-1]]).numpy()
        levels = np.concatenate([[0.0], self.levels.numpy(), [1.0]])
        found = [np.interp(value, column, levels) for value, column in zip(values.tolist(), grid.T, strict=True)]
        return torch.tensor(found, dtype=torch.float64)


def _distances(values: Tensor, logs: Tensor | None, truth: _Truth) -> Tensor:
    """Of draws ``(n, Q)``: of means, deviations, distributions; coverage; mean log score. Shape ``(5,)``."""
    mean, sd = values.mean(0), values.std(0, correction=0)
    of_mean = ((mean - truth.mean) / truth.sd).square().mean().sqrt()
    of_sd = (sd / truth.sd).log().square().mean().sqrt()
    ordered = values.sort(dim=0).values
    own = ordered[_places(truth.levels, len(values))]
    of_all = truth.weights @ (own - truth.quantiles).abs() / truth.sd
    low, high = (ordered[_places(torch.tensor([level]), len(values))[0]] for level in INTERVAL)
    coverage = truth.below(high) - truth.below(low)
    own_score = torch.tensor(torch.nan) if logs is None else log_score(logs).mean()
    return torch.stack([of_mean, of_sd, of_all.mean(), coverage.mean(), own_score.double()])


def _places(levels: Tensor, num: int) -> Tensor:
    """Where quantiles stand among so many draws in order."""
    return (levels * num).long().clamp(max=num - 1)


def _jackknife(values: Tensor, logs: Tensor | None, truth: _Truth) -> Tensor:
    """Standard errors of `_distances`, from leaving out one part of the draws at a time (Quenouille, Tukey)."""
    chains, length = values.shape[:2]
    in_chain = max(1, min(length, round(GROUPS / chains)))
    groups = (torch.arange(chains)[:, None] * in_chain + torch.arange(length) * in_chain // length) % GROUPS
    groups = groups.flatten()
    flat, flat_logs = values.flatten(0, 1), None if logs is None else logs.flatten(0, 1)
    found = []
    for group in groups.unique():
        kept = groups != group
        found.append(_distances(flat[kept], None if flat_logs is None else flat_logs[kept], truth))
    rows = torch.stack(found)
    return ((len(rows) - 1) * (rows - rows.mean(0)).square().mean(0)).sqrt()


def _largest(
    values: Tensor, is_mode: Tensor | None, truth: _Truth, relative_se: Tensor, seed: int
) -> tuple[float, float]:
    """The largest difference in standard errors, and what is exceeded in one of 20 cases where there is none.

    Chance is simulated: sums of independent draws, normal, with the correlation of all that is compared.
    """
    some = torch.linspace(0, values.shape[0] * values.shape[1] - 1, SIMULATED_DRAWS).long()
    largest, columns = 0.0, []
    for differences, known_se, level in _linear(values, is_mode, truth):
        mean, se = differences.mean((0, 1)), mcse(differences).nan_to_num()
        if level is not None:
            # Of a probability, the error that it would have if it were the known one: a small one, by chance, must not
            # bring a small error with it. What never changed is as dependent as the quantity itself.
            share = (level + mean).clamp(0, 1)
            changes = (share * (1 - share) > 0) & (se > 0)
            alike = relative_se if len(se) == len(relative_se) else relative_se.max()
            relative = torch.where(changes, se / (share * (1 - share)).sqrt(), alike)
            se = (level * (1 - level)) ** 0.5 * relative
        joint = torch.hypot(se, known_se)
        z = torch.where(joint > 0, mean.abs() / joint, torch.where(mean.abs() < SAME, 0.0, torch.inf))
        largest = max(largest, z.max().item())
        columns.append(differences.flatten(0, 1)[some].float())
    rows = torch.cat(columns, dim=1)
    rows = (rows - rows.mean(0)) / rows.std(0).clamp(min=1e-12) / len(rows) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    found = [(torch.randn(100, len(rows), generator=generator) @ rows).abs().amax(1) for _ in range(SIMULATIONS // 100)]
    return largest, torch.cat(found).double().quantile(1 - FALSE_ALARM).item()


def _linear(values: Tensor, is_mode: Tensor | None, truth: _Truth) -> Iterator[tuple[Tensor, Tensor, float | None]]:
    """What is compared, ``(chains, draws, ...)`` with a mean of 0; errors of what is known; of a probability, it."""
    # Bounded scores of location and spread: means and deviations may hang on a few draws, whose number no error tells.
    location, spread = torch.zeros_like(values), torch.zeros_like(values)
    of_location, of_spread = torch.zeros_like(truth.mean), torch.zeros_like(truth.mean)
    for row, (level, weight) in enumerate(zip(truth.levels.tolist(), truth.weights.tolist(), strict=True)):
        # Where draws of the posterior are tied, what is below depends on rounding.
        se, is_tied = truth.below_se[row].nan_to_num(), truth.below_se[row].isnan()
        below = torch.where(is_tied, 0.0, (values <= truth.quantiles[row]).double() - level)
        location += weight * below
        spread += weight * (1 - 2 * level) * below
        of_location += weight * se
        of_spread += weight * abs(1 - 2 * level) * se
        if round(level, 3) in TESTED:
            yield below, se, level
    yield location, of_location, None
    yield spread, of_spread, None
    if is_mode is not None:
        yield is_mode - truth.mode.value, torch.tensor([truth.mode.se]), truth.mode.value
