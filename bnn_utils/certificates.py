r"""Is a sampler right? One call asks any transition function, of this library, of another or of your own.

Draws of a posterior that are exact and independent are the best place to start chains at: a right sampler leaves their
distribution as it is, in every transition, however slowly it mixes, and a wrong one does not. There are exact draws
where the posterior is known in closed form, and also of a small network's, by rejection: a likelihood of classes is at
most 1, so a draw from the prior that is kept with a probability equal to its likelihood is a draw from the posterior.

Each of many chains starts at an exact draw of its own and gives the average of its draws, of some quantities. Chains
are independent, so that no autocorrelation has to be estimated: the averages are compared with the expectation by
Student's t. What is averaged are polynomials of a quantity's rank among exact draws (Neyman 1937, the smooth test), of
degrees 1 to 4, which see location, spread, skewness and tails. Where a chain ends depends on where it began, and how
far the beginning was off is known: it is taken out by regression (a control variate). So chains that hardly move in the
time are judged by their drift, as sharply as those that forget their start are by their averages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from bnn_utils import _check
from bnn_utils.data import Data
from bnn_utils.evidence import Estimate
from bnn_utils.kernels.base import PROTOCOL, Kernel, check_kernel
from bnn_utils.likelihoods import Bernoulli, Gaussian
from bnn_utils.posterior import Posterior
from bnn_utils.priors import NormalPrior
from bnn_utils.random import as_generator, fresh_seed
from bnn_utils.sampling import sample

if TYPE_CHECKING:
    import pandas as pd

# That a right sampler is called wrong, by all instruments of a certificate together; and that one which mixes is said
# not to.
FALSE_ALARM = 1e-4
NUM_EXACT = 100_000  # exact draws that stand for the distribution; their own error is part of every test
DEGREES = 4  # of the polynomials
# Averages of so many chains are near enough to normal: if each gives a single effective draw, p-values below 1e-6 are
# up to nine times as frequent as they should be, in three million simulated runs; with 200 chains, three times.
FEWEST_CHAINS = 100
PILOT_CHAINS = 64  # of the run in which a kernel adapts
BLOCK = 100_000  # draws from the prior at once

Sampler = Callable[[Posterior, Tensor, int, int], Any]


class Finding(NamedTuple):
    """What one instrument says.

    Attributes:
        instrument: its name.
        asks: its question.
        quantity: where the smallest p-value was found.
        statistic: there, Student's t.
        p_value: the smallest of all its tests, times their number.
        passed: whether that is not too small.
        bias: the largest of any mean or standard deviation, in posterior standard deviations of the quantity.
        bias_of: of what.
    """

    instrument: str
    asks: str
    quantity: str
    statistic: float
    p_value: float
    passed: bool
    bias: Estimate
    bias_of: str


@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """Whether a sampler is right, and whether it comes from the prior to all of a posterior; prints as a table.

    Attributes:
        sampler: its name.
        findings: of the instruments that ask whether it is right.
        mixing: of those that ask whether it comes to a posterior; a right sampler need not, in that time.
        seed: of all that was drawn; None if a generator was passed.
    """

    sampler: str
    findings: list[Finding]
    mixing: list[Finding]
    seed: int | None

    @property
    def passed(self) -> bool:
        """Whether no fault was seen. A right sampler fails with a probability of 1e-4.

        A sampler that passes may still be wrong, by less than so many draws show or on posteriors of another kind.
        """
        return all(finding.passed for finding in self.findings)

    @property
    def mixes(self) -> bool:
        """Whether chains come to the posterior, as far as can be seen. Of those that do, 1e-4 are said not to."""
        return all(finding.passed for finding in self.mixing)

    @property
    def verdict(self) -> str:
        """In words: exact or not, by how much, and whether the posterior is reached."""
        failed, far = (
            ", ".join(finding.instrument for finding in findings if not finding.passed)
            for findings in (self.findings, self.mixing)
        )
        worst = max(self.findings, key=lambda finding: abs(finding.bias.value))
        reached = f"chains do not come to the posterior ({far})" if far else "chains come to the posterior"
        return (
            f"{self.sampler}: {f'not exact on {failed}' if failed else 'no sign of a fault'}; "
            f"the largest bias is {_told(worst.bias)} posterior standard deviations ({worst.bias_of}, "
            f"{worst.instrument}); {reached}"
        )

    def table(self) -> pd.DataFrame:
        """One row per instrument."""
        import pandas as pd

        rows = [*self.findings, *self.mixing]
        columns = {
            "asks": [row.asks for row in rows],
            "quantity": [row.quantity for row in rows],
            "statistic": [row.statistic for row in rows],
            "p_value": [row.p_value for row in rows],
            "passed": [row.passed for row in rows],
            "bias": [row.bias.value for row in rows],
            "bias_se": [row.bias.se for row in rows],
            "bias_of": [row.bias_of for row in rows],
        }
        return pd.DataFrame(columns, index=pd.Index([row.instrument for row in rows], name="instrument"))

    def __repr__(self) -> str:
        table = self.table().drop(columns=["bias", "bias_se"])
        table["p_value"] = [f"{p:.2g}" for p in table["p_value"]]
        table["statistic"] = [f"{t:.1f}" for t in table["statistic"]]
        table.insert(5, "bias", [_told(row.bias) for row in (*self.findings, *self.mixing)])
        return f"{self.verdict}\n\n{table.reset_index().to_string(index=False)}"


def _told(bias: Estimate) -> str:
    return f"{bias.value:+.3f} ± {bias.se:.3f}"


# --- posteriors that are known ----------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A posterior with exact draws, ``(num, generator) -> (num, D)``, and what is compared, ``(S, D) -> (S, K)``."""

    name: str
    asks: str
    posterior: Posterior
    exact: Callable[[int, torch.Generator], Tensor]
    names: list[str]
    values: Callable[[Tensor], Tensor]


def regression() -> Target:
    """Bayesian linear regression, a network of one layer with ten weights: its posterior is normal and correlated."""
    noise, precision, dim = 2.0, 1.0, 10
    generator = torch.Generator().manual_seed(0)  # of the data set, which is always the same
    x = torch.randn(12, dim + 1, generator=generator, dtype=torch.float64)
    x = x[:, :dim] + x[:, dim:] / 2  # what all inputs have in common
    y = x.mean(1)
    posterior = Posterior(nn.Linear(dim, 1, bias=False), Data(x, y), NormalPrior(precision), Gaussian(noise))
    covariance = torch.linalg.inv(precision * torch.eye(dim, dtype=x.dtype) + x.mT @ x / noise**2)
    mean, factor = covariance @ x.mT @ y / noise**2, torch.linalg.cholesky(covariance)

    def exact(num: int, generator: torch.Generator) -> Tensor:
        return mean + torch.randn(num, dim, generator=generator, dtype=x.dtype) @ factor.mT

    def values(theta: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(factor, (theta - mean).mT, upper=False).mT
        return torch.cat([theta, z * z.roll(1, dims=-1), z.square().sum(-1, keepdim=True)], dim=-1)

    names = [f"{what} {k}" for what in ("weight", "product") for k in range(dim)] + ["log density"]
    asks = "does a normal posterior stay?"
    return Target("linear regression", asks, posterior, exact, names, values)


def two_modes() -> Target:
    """A mixture of two normal distributions with weights 0.2 and 0.8, and beside it a parameter without data.

    A normal prior and a mixture as likelihood, which puts the output of the network near +1.2 or -1.2: the posterior is
    a mixture too, with the same weights by symmetry.
    """
    gap, sd, precision = 1.2, 0.5, 0.5
    weights = torch.tensor([0.2, 0.8], dtype=torch.float64)
    places = torch.tensor([gap, -gap], dtype=torch.float64)

    def likelihood(outputs: Tensor) -> MixtureSameFamily:
        component = Normal(outputs - places, sd, validate_args=False)
        return MixtureSameFamily(
            Categorical(weights.expand(component.loc.shape), validate_args=False), component, validate_args=False
        )

    data = Data(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    posterior = Posterior(nn.Linear(2, 1, bias=False), data, NormalPrior(precision), likelihood)
    total = precision + sd**-2

    def exact(num: int, generator: torch.Generator) -> Tensor:
        theta = torch.randn(num, 2, generator=generator, dtype=torch.float64)
        is_first = torch.rand(num, generator=generator, dtype=torch.float64) < weights[0]
        center = torch.where(is_first, places[0], places[1]) / sd**2 / total
        return torch.stack([center + theta[:, 0] * total**-0.5, theta[:, 1] * precision**-0.5], dim=1)

    def values(theta: Tensor) -> Tensor:
        return torch.cat([theta, posterior.log_prob(theta)[:, None]], dim=1)

    asks = "do two modes keep their weights?"
    return Target("two modes", asks, posterior, exact, ["place", "other parameter", "log density"], values)


def network() -> Target:
    """A 2-2-1 tanh network that tells three neighbours from the three other points on a circle."""
    angle = math.pi / 3 * torch.arange(6, dtype=torch.float64)
    x = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    y = (torch.arange(6) < 3).double()
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    posterior = Posterior(module, Data(x, y), NormalPrior(0.25), Bernoulli())
    places = torch.cat([x[1:4:2], torch.zeros(1, 2, dtype=x.dtype)])

    def exact(num: int, generator: torch.Generator) -> Tensor:
        kept: list[Tensor] = []
        while sum(map(len, kept)) < num:
            theta = posterior.sample_prior(BLOCK, generator)
            u = torch.rand(BLOCK, generator=generator, dtype=theta.dtype)
            kept.append(theta[u.log() < posterior.log_likelihood(theta)])
        return torch.cat(kept)[:num]

    def values(theta: Tensor) -> Tensor:
        sizes = [part.square().sum(-1) for part in (theta[:, :6], theta[:, 6:])]
        of_theta = torch.stack([posterior.log_likelihood(theta), posterior.log_prob(theta), *sizes], dim=1)
        return torch.cat([of_theta, posterior.outputs(theta, places)[..., 0]], dim=1)

    names = ["log likelihood", "log density", "size of the first layer", "size of the second layer"]
    names += [f"output {k}" for k in range(len(places))]
    asks = "does a network's posterior stay?"
    return Target("neural network", asks, posterior, exact, names, values)


# --- tests ------------------------------------------------------------------------------------------------------------


def legendre(u: Tensor) -> Tensor:
    """Of uniform numbers ``(...)``: polynomials of degrees 1 to 4 with mean 0 and variance 1, ``(..., 4)``."""
    x = 2 * u - 1
    polynomials = [torch.ones_like(x), x]
    for k in range(1, DEGREES):
        polynomials.append(((2 * k + 1) * x * polynomials[k] - k * polynomials[k - 1]) / (k + 1))
    return torch.stack([math.sqrt(2 * k + 1) * polynomials[k] for k in range(1, DEGREES + 1)], dim=-1)


def ranked(values: Tensor, ordered: Tensor) -> Tensor:
    """Where values ``(..., K)`` lie among exact ones, in order, ``(K, N)``: numbers from 0 to 1."""
    rows = values.flatten(0, -2).mT.contiguous()
    below = torch.searchsorted(ordered, rows) + torch.searchsorted(ordered, rows, right=True)
    return (below / (2 * ordered.shape[1])).mT.view(values.shape)


def expectation(average: Tensor, start: Tensor | None, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate and standard error of an expectation from chains' averages ``(C, ...)``, shape ``(...)`` each.

    Averages are differences from the mean of the `NUM_EXACT` exact values, whose variance is given. ``start`` is the
    same at the chains' starts, which are exact too: what they are off by is taken out by regression.
    """
    num, error = len(average), variance / NUM_EXACT
    if start is None:
        return average.mean(0), (average.var(0) / num + error).sqrt()
    centered = start - start.mean(0)
    slope = (centered * average).sum(0) / centered.square().sum(0)
    value = average.mean(0) - slope * start.mean(0)
    residual = average - value - slope * start
    scatter = residual.square().sum(0) / (num - 2)
    leverage = 1 / num + start.mean(0).square() / centered.square().sum(0)
    return value, (scatter * leverage + (1 - slope).square() * error).sqrt()


class Values(NamedTuple):
    """What is compared, of K quantities: in chains ``(C, T, K)``, at their exact starts ``(C, K)``, in exact draws.

    Where chains did not start at exact draws, ``start`` is None.
    """

    chains: Tensor
    start: Tensor | None
    exact: Tensor  # (N, K)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        """A function of values, averaged over each chain, and at the starts."""
        return function(self.chains).mean(1), None if self.start is None else function(self.start)


def smooth_test(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Student's t and p-values, ``(K, 4)``: of each quantity's polynomials."""
    from scipy.stats import t

    ordered = values.exact.mT.contiguous().sort(dim=1).values
    found, se = expectation(*values.mapped(lambda x: legendre(ranked(x, ordered))), torch.ones((), dtype=ordered.dtype))
    # A quantity that never changed says nothing; rounding must not say something for it.
    statistic = (found / se.clamp(min=1e-9)).numpy()
    return statistic, 2 * t.sf(np.abs(statistic), len(values.chains) - 2)


def biases(values: Values) -> tuple[Tensor, Tensor]:
    """Of means and of standard deviations, in standard deviations of the exact draws, with errors: ``(2, K)`` each."""
    mean, sd = values.exact.mean(0), values.exact.std(0)
    squares = ((values.exact - mean) / sd).square()
    of_mean, se_mean = expectation(*values.mapped(lambda x: (x - mean) / sd), torch.ones_like(sd))
    of_square, se_square = expectation(*values.mapped(lambda x: ((x - mean) / sd).square() - 1), squares.var(0))
    of_sd = (1 + of_square - of_mean.square()).clamp(min=0).sqrt() - 1
    return torch.stack([of_mean, of_sd]), torch.stack([se_mean, se_square / 2])


def judge(target: Target, draws: Tensor, start: Tensor | None, exact: Tensor, alpha: float) -> Finding:
    """What draws ``(C, T, D)`` say, of chains that began at exact draws ``(C, D)`` or, with None, anywhere.

    Args:
        exact: draws to compare with, ``(N, D)``.
        alpha: the smallest p-value with which the instrument passes.
    """
    chains = target.values(draws.flatten(0, 1)).unflatten(0, draws.shape[:2])
    if not chains.isfinite().all():
        raise ValueError(
            f"on {target.name!r} the sampler came to places where the density is 0 or not a number, which no right "
            "sampler comes to: let it reject proposals whose log density is not finite"
        )
    values = Values(chains, None if start is None else target.values(start), target.values(exact))
    statistic, p = smooth_test(values)
    k, degree = np.unravel_index(p.argmin(), p.shape)
    bias, se = biases(values)
    kind, quantity = np.unravel_index(int(bias.abs().argmax()), bias.shape)
    p_value = min(1.0, float(p.size * p.min()))
    return Finding(
        target.name,
        target.asks,
        f"{('location', 'spread', 'skewness', 'tails')[degree]} of {target.names[k]}",
        statistic[k, degree].item(),
        p_value,
        p_value >= alpha,
        Estimate(bias[kind, quantity].item(), se[kind, quantity].item()),
        f"{('mean', 'standard deviation')[kind]} of {target.names[quantity]}",
    )


# --- the certificate --------------------------------------------------------------------------------------------------


def certify(
    sampler: Kernel | Sampler,
    seed: int | torch.Generator | None = None,
    num_chains: int = 2000,
    num_draws: int = 100,
    warmup: int = 300,
) -> Certificate:
    """Ask whether a sampler draws from the right distribution: a kernel, or a function around any package's sampler.

    Three posteriors with exact draws are sampled, from such draws on: a linear regression (10 parameters), a mixture of
    two modes (2 parameters), and a small neural network (9 parameters), all of them in float64 and with standard
    deviations between 0.4 and 2.5, so that one step size suits all. A fourth run says whether chains come from draws of
    the prior to the network's posterior; a right sampler that takes longer does not pass that, and is none the worse.

    A sampler of one's own, in NumPy, which must fail, because it keeps what it should reject:

    >>> import numpy as np
    >>> from bnn_utils.certificates import certify
    >>> def metropolis(posterior, start, num_draws, seed, correct=True):
    ...     log_prob, rng = posterior.numpy(), np.random.default_rng(seed)
    ...     theta = start.numpy()
    ...     here, draws = log_prob(theta)[0], []
    ...     for _ in range(num_draws):
    ...         there = theta + 0.4 * rng.standard_normal(theta.shape)
    ...         value = log_prob(there)[0]
    ...         accept = np.log(rng.random(len(theta))) < value - here if correct else value > here - 3
    ...         theta, here = np.where(accept[:, None], there, theta), np.where(accept, value, here)
    ...         draws.append(theta)
    ...     return np.stack(draws, axis=1)
    >>> certify(metropolis, seed=0).passed
    True
    >>> certify(lambda *arguments: metropolis(*arguments, correct=False), seed=0).passed
    False

    Args:
        sampler: a kernel, which adapts in a run apart and is judged as that leaves it; or a function of a posterior,
            starts ``(C, D)`` in float64, a number of draws and a seed, which returns the consecutive states of C
            independent chains, ``(C, num_draws, D)``: the first is the state after one transition from the start.
            Inside, ``posterior.log_prob``, ``posterior.numpy()`` or ``posterior.jax()`` is the density. What adapts
            must do so before, in chains of its own: states that made a sampler adapt are no exact draws any more.
        seed: a number or a generator; without it, by chance.
        num_chains: C, at least 100. The more there are, the smaller the faults that are seen. (The fourth run has a
            tenth as many chains, at least 100, ten times as long.)
        num_draws: transitions of each chain.
        warmup: transitions in which a kernel adapts, for each posterior; 0 to judge it as it is.

    Raises:
        TypeError: for an argument of another type.
        ValueError: if the sampler returns states of another shape, or that are not finite, or none that moves.
    """
    draw, name = _as_function(sampler, _check.whole("warmup", warmup, 0))
    num_chains = _check.whole("num_chains", num_chains, FEWEST_CHAINS)
    num_draws = _check.whole("num_draws", num_draws, 2)
    seed = fresh_seed() if seed is None else seed
    generator = as_generator(seed, torch.device("cpu"))
    targets, findings = [regression(), two_modes(), network()], []
    for target in targets:
        exact, start = target.exact(NUM_EXACT, generator), target.exact(num_chains, generator)
        draws = _drawn(draw, target, start, num_draws, generator)
        findings.append(judge(target, draws, start, exact, FALSE_ALARM / len(targets)))
    mixing = _mixing(draw, target, exact, max(FEWEST_CHAINS, num_chains // 10), 10 * num_draws, generator)
    return Certificate(name, findings, mixing, None if isinstance(seed, torch.Generator) else _check.seed(seed))


def _mixing(
    draw: Sampler, target: Target, exact: Tensor, num_chains: int, num_draws: int, generator: torch.Generator
) -> list[Finding]:
    """Whether the second half of chains that begin at draws from the prior is distributed as exact draws are.

    Their warm-up is the sampler's business.
    """
    start = target.posterior.sample_prior(num_chains, generator)
    draws = _drawn(draw, target, start, num_draws, generator)[:, num_draws // 2 :]
    asks = f"is that reached in {num_draws // 2:,} transitions?"
    return [judge(target, draws, None, exact, FALSE_ALARM)._replace(instrument="from the prior", asks=asks)]


def _as_function(sampler: Kernel | Sampler, warmup: int) -> tuple[Sampler, str]:
    """The sampler as a function, and what it is called."""
    if hasattr(sampler, "lanes_per_chain"):
        check_kernel(sampler)
        return partial(_by_kernel, cast(Kernel, sampler), warmup), type(sampler).__name__
    if not callable(sampler):
        raise TypeError(
            "sampler must be a function of (posterior, start, num_draws, seed) that returns states (chains, num_draws, "
            f"D), or a kernel: {PROTOCOL}; got {_check.told(sampler)}"
        )
    return sampler, getattr(sampler, "__name__", type(sampler).__name__)


def _by_kernel(kernel: Kernel, warmup: int, posterior: Posterior, start: Tensor, num_draws: int, seed: int) -> Tensor:
    """States of a kernel that adapted before; of one with several lanes in a chain, which are brought into it then."""
    generator = as_generator(seed, start.device)
    if warmup and kernel.lanes_per_chain == 1:
        pilot = sample(posterior, kernel, 1, PILOT_CHAINS, warmup, seed=generator, progress=False)
        kernel, warmup = cast(Kernel, pilot.kernel), 0
    return sample(posterior, kernel, num_draws, warmup=warmup, init=start, seed=generator, progress=False).draws


def _drawn(draw: Sampler, target: Target, start: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """What a sampler returns, if it can be judged."""
    seed = int(torch.randint(2**31, (), generator=generator))
    returned = draw(target.posterior, start.clone(), num_draws, seed)
    draws = _check.tensor("what the sampler returns", returned).detach().cpu().double()
    expected = (len(start), num_draws, start.shape[1])
    if draws.shape != expected:
        swapped = draws.ndim == 3 and draws.transpose(0, 1).shape == expected
        hint = ": chains come first, so swap the first two axes" if swapped else ""
        raise ValueError(
            f"on {target.name!r} the sampler returned states of shape {tuple(draws.shape)}, and {expected} was asked "
            f"for: (chains, num_draws, parameters){hint}"
        )
    lost = ~draws.isfinite().flatten(1).all(1)
    if lost.any():
        raise ValueError(
            f"on {target.name!r} the states of {int(lost.sum()):,} of {len(draws):,} chains are NaN or infinite: "
            "proposals whose log density is not finite are to be rejected"
        )
    if (draws == draws[:, :1]).all():
        raise ValueError(
            f"on {target.name!r} no chain moved in {num_draws} transitions, so there is nothing to judge: take smaller "
            "steps, or look at what is returned"
        )
    return draws
