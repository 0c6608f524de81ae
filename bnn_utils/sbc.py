r"""Simulation-based calibration: a sampler is asked for parameters that are known, because they were made up.

Draw a truth from the prior, targets from the network with that truth, and let the sampler say what it makes of the
targets. Given the targets, the truth is one more draw from their posterior: it can be told from L draws of a right
sampler by nothing, and its rank among them, in whatever order, is 0, 1, ..., or L with equal probability (Cook, Gelman
and Rubin 2006; Talts, Betancourt, Simpson, Vehtari and Gelman 2018). Many made-up data sets, all lanes of one batch,
show whether it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.kernels.base import Kernel, check_kernel
from bnn_utils.likelihoods import Likelihood
from bnn_utils.posterior import Posterior
from bnn_utils.random import as_generator, fresh_seed
from bnn_utils.sampling import sample

if TYPE_CHECKING:
    import pandas as pd

# That a right sampler is called wrong, by all tests of a run together.
FALSE_ALARM = 1e-4
# For chi-square: with 32 data sets for each rank, p-values below 1e-5 were 1.3 times as frequent as they should be, in
# ten million simulated runs; with 10, twice.
FEWEST_PER_RANK = 20
# Ranked beside the reader's quantities, which may not tell a posterior from the prior as it does (Modrák et al. 2023).
LOG_LIKELIHOOD = "log likelihood"


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Ranks of truths among draws, and how far from uniform they are; prints as its verdict.

    Attributes:
        ranks: shape ``(data sets, quantities)``, from 0, all draws lie above the truth, to ``num_draws``.
        num_draws: among which a truth was ranked, L.
        names: of the quantities.
        seed: of the data sets and the draws; None if a generator was passed.
    """

    ranks: Tensor
    num_draws: int
    names: list[str]
    seed: int | None = None

    def table(self) -> pd.DataFrame:
        """P-values of uniformity, one row per quantity: by chi-square and by the ECDF."""
        import pandas as pd

        columns = {"chi_square": chi_square(self.ranks, self.num_draws), "ecdf": ecdf(self.ranks, self.num_draws)}
        index = pd.Index(self.names, name="quantity")
        return pd.DataFrame({name: p.numpy() for name, p in columns.items()}, index=index)

    @property
    def is_calibrated(self) -> bool:
        """Whether no fault was seen: every p-value is at least 1e-4 divided by the number of p-values in `table`.

        A right sampler fails with a probability of about 1e-4 at most (Bonferroni). A sampler that passes may still be
        wrong: in a quantity that was not ranked, or by less than so many data sets show.
        """
        p = self.table().to_numpy()
        return bool((p >= FALSE_ALARM / p.size).all())

    @property
    def verdict(self) -> str:
        """`is_calibrated` in words, "no sign of a fault" or "not calibrated", with the smallest p-value."""
        p = self.table()
        smallest, quantity = p.to_numpy().min(), p.min(axis=1).idxmin()
        found = "no sign of a fault" if self.is_calibrated else "not calibrated"
        value = f"{smallest:.1g}" if smallest > 1e-10 else "below 1e-10"  # where rounding takes over
        return (
            f"{found}: of {p.size} p-values of {len(self.ranks):,} data sets the smallest is {value}, for {quantity!r}"
        )

    def __repr__(self) -> str:
        return self.verdict


def simulation_based_calibration(
    posterior: Posterior,
    kernel: Kernel,
    quantities: Mapping[str, Callable[[Tensor], Tensor]],
    num_datasets: int = 512,
    num_draws: int = 15,
    thin: int = 20,
    warmup: int = 0,
    seed: int | torch.Generator | None = None,
    progress: bool = True,
) -> Calibration:
    """Ranks of made-up truths among a sampler's draws, for a posterior's network, prior, likelihood and inputs.

    Without a warm-up a chain is laid *through* the truth, which is the one draw from its posterior that costs nothing:
    some of the draws are made from the truth onwards, the others from the truth backwards, how many is a matter of
    chance. A reversible kernel, such as `HMC`, runs backwards as it runs forwards, so that the chain is in equilibrium
    and the truth at a random place of it: its rank is uniform however slowly the chain mixes (Besag and Clifford 1989;
    Gandy and Scott 2020). What is tested is whether the kernel is right, not whether its chains are long enough.
    (`ChEES` and `MAMS` go through their lengths from the truth on in both directions, which for a chain that mixes
    slowly changes the ranks a little.)

    With a warm-up, the usual procedure: chains start at draws from the prior and adapt. Then the chains have to
    converge, and ``thin`` to be large enough for draws that are nearly independent. Replica exchange always needs it.

    Args:
        posterior: whose inputs are used; its targets are not.
        kernel: as in `sample`.
        quantities: name -> function of theta ``(..., D)`` that gives ``(...)``, such as the prediction at some input.
            The log likelihood of the data set comes as one more.
        num_datasets: how many, S. All are one batch.
        num_draws: L.
        thin: transitions from one draw to the next.
        warmup, seed, progress: as in `sample`.

    Raises:
        TypeError: for an argument of another type.
        ValueError: if a quantity is not one number for each theta, if replica exchange is to do without a warm-up, if
            the posterior's density is none that targets can be drawn from, as with weighted points, and whatever
            `sample` refuses.
    """
    _check.posterior(posterior)
    check_kernel(kernel)
    if posterior.data.weights is not None:
        raise ValueError(
            "the points have weights, by which their log likelihoods are multiplied: no distribution of targets has "
            "that density, so none can be simulated to test against; test the same posterior without weights"
        )
    _check.instance("quantities", quantities, Mapping, "a mapping from names to functions")
    for name, function in quantities.items():
        _check.instance("the name of a quantity", name, str, "a str")
        _check.instance(f"the quantity {name!r}", function, Callable, "a function of theta")  # type: ignore[arg-type]
    num_datasets, num_draws = _check.whole("num_datasets", num_datasets, 1), _check.whole("num_draws", num_draws, 1)
    thin, warmup = _check.whole("thin", thin, 1), _check.whole("warmup", warmup, 0)
    if kernel.lanes_per_chain > 1 and not warmup:
        raise ValueError(
            "replica exchange needs warmup=..., several hundred transitions: the truth is a draw at the coldest "
            "temperature only, so no chain can start in equilibrium"
        )
    if LOG_LIKELIHOOD in quantities:
        raise ValueError(f"a quantity is called {LOG_LIKELIHOOD!r}, which is ranked in any case: call it otherwise")
    seed = fresh_seed() if seed is None else seed
    generator = as_generator(seed, posterior.device)
    truth = posterior.sample_prior(num_datasets, generator)
    y = posterior.simulate(truth, generator)
    _check_simulated(posterior, truth, y)
    directions = 1 if warmup else 2
    chain = sample(
        posterior.with_targets(torch.cat(directions * [y])),
        kernel,
        num_draws,
        num_chains=directions * num_datasets,
        warmup=warmup,
        init=None if warmup else torch.cat([truth, truth]),
        seed=generator,
        progress=progress,
        thin=thin,
    )
    draws = chain.draws
    if not warmup:
        backward, forward = draws.split(num_datasets)
        draws = around(backward, forward, generator)
    together = torch.cat([truth[:, None], draws], dim=1)  # (S, 1 + L, D)
    log_likelihood = posterior.with_targets(y).log_likelihood(together.flatten(0, 1)).view(num_datasets, -1)
    found = [_of_each(name, function, together) for name, function in quantities.items()]
    values = torch.stack([*found, log_likelihood], dim=-1)
    return Calibration(
        ranks(values[:, 0], values[:, 1:], generator),
        num_draws,
        [*quantities, LOG_LIKELIHOOD],
        None if isinstance(seed, torch.Generator) else _check.seed(seed),
    )


def _check_simulated(posterior: Posterior, truth: Tensor, y: Tensor) -> None:
    """Raise where the log likelihood is not that of the distribution which the targets were drawn from."""
    given, outputs = posterior.with_targets(y), posterior.outputs(truth, posterior.data.x)
    found, expected = given.log_likelihood(truth), Likelihood.log_probs(posterior.likelihood, outputs, y).sum(-1)
    off = ~torch.isclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    if off.any():
        raise ValueError(
            f"targets were drawn from the distribution of {posterior.likelihood!r}, where their log density is "
            f"{expected[off][0]:g}, but their log likelihood is {found[off][0]:g}: a sampler of the one can't be "
            "tested by draws from the other; let distribution and log_probs be the same"
        )


def _of_each(name: str, function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """A quantity of theta ``(..., D)``, shape ``(...)``."""
    values = _check.tensor(f"the quantity {name!r}", function(theta)).to(theta)
    if values.shape != theta.shape[:-1]:
        raise ValueError(
            f"the quantity {name!r} has shape {tuple(values.shape)}, and must be one number for each theta, "
            f"{tuple(theta.shape[:-1])}, where theta has shape {tuple(theta.shape)}"
        )
    return values


def around(backward: Tensor, forward: Tensor, generator: torch.Generator) -> Tensor:
    """Of two chains from the same start, the first k draws of one and the first L - k of the other, by chance k.

    Args:
        backward, forward: shape ``(S, L, ...)``.

    Returns:
        the same shape; what is at a random place of the whole chain is the start, which is left out.
    """
    num, length = backward.shape[:2]
    k = torch.randint(length + 1, (num, 1), generator=generator, device=generator.device)
    number = torch.arange(length, device=k.device).expand(num, -1)
    is_forward = (number >= k).to(backward.device)
    place = torch.where(number < k, number, number - k).to(backward.device)
    rows = torch.arange(num, device=backward.device)[:, None]
    both = torch.stack([backward, forward])
    return both[is_forward.long(), rows, place]


def ranks(truth: Tensor, draws: Tensor, generator: torch.Generator) -> Tensor:
    """How many draws lie below the truth; among draws that equal it, its place is drawn by lot.

    Args:
        truth: shape ``(S, ...)``.
        draws: shape ``(S, L, ...)``.

    Returns:
        whole numbers from 0 to L, shape ``(S, ...)``, on the CPU.

    Raises:
        ValueError: if a value is NaN, which has no rank.
    """
    truth, draws = _check.tensor("truth", truth), _check.tensor("draws", draws)
    _check.generator(generator)
    if draws.ndim != truth.ndim + 1 or (draws.shape[0], *draws.shape[2:]) != tuple(truth.shape):
        raise ValueError(
            f"draws have shape {tuple(draws.shape)}, and truths (S, ...) need (S, L, ...): {tuple(truth.shape)}"
        )
    if truth.isnan().any() or draws.isnan().any():
        raise ValueError("a quantity is NaN for some theta, and has no rank there")
    below, equal = (draws < truth[:, None]).sum(1), (draws == truth[:, None]).sum(1)
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64  # Apple's GPUs have no other
    lot = torch.rand(equal.shape, generator=generator, dtype=dtype, device=generator.device).to(equal.device)
    return (below + (lot * (equal + 1)).long()).cpu()


def chi_square(ranks: Tensor, num_draws: int) -> Tensor:
    """P-values by which ranks ``(S, Q)`` are uniform: chi-square of how often each rank came, shape ``(Q,)``.

    Raises:
        ValueError: if there are less than 20 data sets for each rank.
    """
    from scipy.stats import chi2

    ranks, num_draws = _check.tensor("ranks", ranks), _check.whole("num_draws", num_draws, 1)
    expected = len(ranks) / (num_draws + 1)
    if expected < FEWEST_PER_RANK:
        raise ValueError(
            f"{len(ranks)} data sets are {expected:.1f} for each of the ranks 0 to {num_draws}, and chi-square needs "
            f"{FEWEST_PER_RANK}: ask for num_datasets={FEWEST_PER_RANK * (num_draws + 1)} or for fewer draws"
        )
    statistic = (counts(ranks, num_draws) - expected).square().sum(0) / expected
    return torch.from_numpy(chi2.sf(statistic.numpy(), num_draws))


def counts(ranks: Tensor, num_draws: int) -> Tensor:
    """How often each rank came: ``(S, Q)`` -> ``(1 + L, Q)``."""
    return (ranks == torch.arange(num_draws + 1)[:, None, None]).sum(1).double()


def ecdf(ranks: Tensor, num_draws: int) -> Tensor:
    """P-values by which ranks ``(S, Q)`` are uniform: the ECDF where it is least probable, shape ``(Q,)``.

    How many ranks are at most i is binomial. The least of the two-sided tail probabilities over all i is compared with
    its distribution, which is exact (Säilynoja, Bürkner and Vehtari 2022, section 2.2). It sees what is wrong with
    many neighbouring ranks, as bias and width are, better than chi-square does.
    """
    from scipy.stats import binom

    number, places = len(ranks), _places(num_draws)
    below = counts(ranks, num_draws).cumsum(0)[:-1].numpy()
    p = binom(number, places[:, None])
    least = 2 * np.minimum(p.cdf(below), p.sf(below - 1)).min(axis=0)
    # What lies strictly inside is less extreme; probabilities round, hence by a little more.
    inside = (_coverage(number, *_band(number, places, g * (1 + 1e-9))) if g < 1 else 0 for g in least)
    return torch.tensor([1 - probability for probability in inside], dtype=torch.float64).clamp(0, 1)


def ecdf_band(num_datasets: int, num_draws: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Between which counts all of the ECDF of uniform ranks stays with probability of at least ``1 - alpha``.

    Returns:
        the least and the largest number of ranks that are at most i, for i = 0, ..., L - 1; shape ``(L,)`` each.

    Raises:
        ValueError: if alpha is not between 0 and 1.
    """
    num_datasets, num_draws = _check.whole("num_datasets", num_datasets, 1), _check.whole("num_draws", num_draws, 1)
    alpha = _check.number("alpha", alpha)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    places = _places(num_draws)
    # Each place alone may be left with probability gamma: no more than alpha, no less than an even share of it.
    low, high = np.log(alpha / num_draws), np.log(alpha)
    for _ in range(40):
        middle = (low + high) / 2
        is_wide_enough = 1 - _coverage(num_datasets, *_band(num_datasets, places, np.exp(middle))) <= alpha
        low, high = (middle, high) if is_wide_enough else (low, middle)
    lowest, highest = _band(num_datasets, places, np.exp(low))
    return torch.from_numpy(lowest), torch.from_numpy(highest)


def _places(num_draws: int) -> np.ndarray:
    """The probability of a rank of at most i, for i = 0, ..., L - 1."""
    return np.arange(1, num_draws + 1) / (num_draws + 1)


def _band(number: int, places: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """The counts whose two-sided tail probability is at least gamma, at each place alone."""
    from scipy.stats import binom

    # (SciPy's quantile of probability 0 is -1.)
    return tuple(tail(gamma / 2, number, places).astype(int).clip(min=0) for tail in (binom.ppf, binom.isf))


def _coverage(number: int, lowest: np.ndarray, highest: np.ndarray) -> float:
    """Probability with which the counts of uniform ranks, added up, stay between the two at every place.

    The counts of the 1 + L ranks are independent Poisson numbers of mean ``number / (1 + L)``, given that their sum is
    ``number``: so the distribution of the sum is carried from rank to rank, and what has left the band is dropped.
    """
    from scipy.stats import poisson

    steps = poisson.pmf(np.arange(number + 1), number / (len(lowest) + 1))
    inside, start = np.ones(1), 0  # probabilities of the sums start, start + 1, ...
    for low, high in zip([*lowest, number], [*highest, number], strict=True):
        inside = np.convolve(inside, steps)[low - start : high - start + 1]
        start = low
    return inside.item() / poisson.pmf(number, number)
