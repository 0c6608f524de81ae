"""Every sampler draws from the right distribution: closed forms, detailed balance, lanes that keep to themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

from bnn_utils import HMC, MAMS, NUTS, ChEES, NormalPrior, ReplicaExchange, Symmetric, density, sample
from bnn_utils.diagnostics import ess, mcse
from bnn_utils.gradients.caller import Caller
from samplers import ROUGHLY, SAMPLERS, WALKS, each_sampler, placed, swap_rates
from targets import (
    FALSE_ALARM,
    Mixture,
    distribution_function,
    exact,
    generator,
    normal,
    one_parameter,
    regression,
    rotated,
    spread,
    vector,
    with_moments,
)

pytestmark = [pytest.mark.slow, pytest.mark.statistical]

# A sampler whose draws are those of "random walk" to the bit, as test_own_kernels.py shows; to ask both about how their
# draws are distributed is to compute the same numbers twice.
SAME = "many at once"

# --- closed forms -----------------------------------------------------------------------------------------------------

# ESS is an estimate. Where it is 15 % too large, errors beyond 5 standard errors are five times as frequent; a tenth of
# the false alarms allows for that and more.
ONE_TEST = FALSE_ALARM / 10


TARGETS = {  # posterior, mean, covariance
    "1": (with_moments(vector(3.0), vector(0.25)[:, None]), vector(3.0), vector(0.25)[:, None]),
    "3, rotated": (regression(num_points=5, seed=3), *exact(regression(num_points=5, seed=3))),
    "10, condition number 900": (
        with_moments(normal(10), spread(0.1, 3, 10).square().diag()),
        normal(10),
        spread(0.1, 3, 10).square().diag(),
    ),
    "50, rotated": (
        with_moments(normal(50), rotated(spread(0.5, 2, 50), 1)),
        normal(50),
        rotated(spread(0.5, 2, 50), 1),
    ),
}


def standardised(draws, mean, covariance):
    """To independent standard normals: ``(..., D)`` -> ``(..., D)``."""
    factor = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(factor, (draws - mean).unsqueeze(-1), upper=False).squeeze(-1)


def surprises(z):
    """Statistics of standard normals ``(chains, draws, D)``, each of expectation 0: ``(chains, draws, K)``."""
    quantiles = [(z < norm.ppf(p)).double() - p for p in (0.05, 0.5, 0.95)]
    return torch.cat([z, z.square() - 1, *quantiles, z[..., 1:] * z[..., :-1]], dim=-1)


def assert_expectation_is_0(values):
    """Of ``(chains, draws, K)``: all together raise a false alarm with the probability of one test."""
    assert ess(values, "mean").min() > 400, "the errors could not be trusted"
    errors = values.mean((0, 1)) / mcse(values)
    assert errors.abs().max() < norm.isf(ONE_TEST / (2 * len(errors)))


@each_sampler(SAME)
@pytest.mark.parametrize("target", TARGETS)
def test_gaussian(sampler, target):
    """Means, variances, quantiles and covariances; a linear regression, which is a network of one layer.

    Fails when the Metropolis correction is left out, when momenta are drawn from the inverse mass, when a warm-up goes
    on adapting, and when swaps are accepted without the difference of the likelihoods.
    """
    posterior, mean, covariance = TARGETS[target]
    if len(mean) < sampler.fewest_parameters:
        pytest.skip("it is not for one parameter")
    draws = sampler.draw(posterior, covariance, 1000, 100, seed=1).draws[:, 200:]
    assert_expectation_is_0(surprises(standardised(draws, mean, covariance)))


@pytest.mark.parametrize("kernel", [HMC(), ChEES(), NUTS(), MAMS()], ids=lambda kernel: type(kernel).__name__)
def test_gaussian_by_transitions_of_large_networks(kernel, monkeypatch):
    """The same of a linear regression that is taken for large, whose density native transitions call.

    Fails when accepted and rejected positions trade places there, when a step leaves out half a kick, and when the
    energy of the momentum is left out.
    """
    monkeypatch.setattr(density, "is_small", lambda posterior: False)
    posterior, mean, covariance = TARGETS["3, rotated"]
    assert isinstance(posterior.density(100, compile=True).joint.hmc, Caller)
    draws = sample(posterior, kernel, 1000, 100, warmup=300, seed=1, progress=False).draws
    assert_expectation_is_0(surprises(standardised(draws, mean, covariance)))


@each_sampler(SAME)
def test_lanes_are_independent_draws(sampler):
    """Where 4,000 chains are, 60 transitions from one point: means are normal, sums of squares chi-squared, exactly.

    Both would have other widths if lanes had anything in common. Fails when lanes share their momenta.
    """
    posterior, mean, covariance = TARGETS["3, rotated"]
    start = mean + vector(1.0, -1.0, 1.0) * covariance.diagonal().sqrt()
    z = standardised(sampler.draw(posterior, covariance, 60, 4000, init=start, seed=2).draws[:, -1], mean, covariance)
    lanes, one_test = len(z), FALSE_ALARM / 6  # two tests of three directions
    assert (z.mean(0) * lanes**0.5).abs().max() < norm.isf(one_test / 2)
    squares = z.square().sum(0)
    assert chi2.ppf(one_test / 2, lanes) < squares.min()
    assert squares.max() < chi2.isf(one_test / 2, lanes)


@pytest.mark.parametrize("reference", [None, vector(5.0)], ids=["prior", "reference"])
def test_two_modes_with_known_weights(reference):
    """By symmetry 0.2 of the posterior lies above 0, where all chains start; plain HMC finds the other mode in none.

    Plain HMC has no warm-up, which begins with giant steps and may throw a chain across. Fails when the density of the
    reference is left out of the ratio.
    """
    posterior, start = one_parameter(Mixture(), NormalPrior(0.1), [0.0]), vector(4.0).expand(64, 1)
    plain = sample(posterior, HMC(0.2, 5), 400, init=start, seed=1, progress=False)
    kernel = ReplicaExchange(HMC(0.2, 5), 8, reference=reference)
    chain = sample(posterior, kernel, 1000, warmup=150, init=start, seed=1, progress=False)
    precision = 0.1 + 1 / Mixture().sd ** 2  # of either mode
    center = Mixture().gap / Mixture().sd ** 2 / precision
    is_above = (chain.draws > 0).double()
    z = (chain.draws - center * (2 * is_above - 1)) * precision**0.5
    assert_expectation_is_0(torch.cat([is_above - 0.2, surprises(z)], dim=-1))
    assert (plain.draws > 0).all()
    assert chain.tempering.round_trips.min() > 0


# --- detailed balance -------------------------------------------------------------------------------------------------


def double_well(num_parameters=1):
    """One parameter with modes of weights 0.2 and 0.8, and a barrier that is easily crossed; others are the prior's."""
    return one_parameter(Mixture(gap=1.2, sd=0.5), NormalPrior(0.5), [0.0], num_parameters)


def exact_draws(posterior, num, stream, beta=1.0):
    theta, below = distribution_function(posterior, beta)
    uniform = torch.rand(num, generator=stream, dtype=torch.float64).numpy()
    return torch.from_numpy(np.interp(uniform, below, theta))[:, None]


def assert_balanced(before, after, cells):
    """As many go from cell i to cell j as from j to i, for all pairs that were seen often enough.

    Given how many went either way, how many went one way is binomial.
    """
    flow = torch.bincount(before * cells + after, minlength=cells**2).view(cells, cells).double()
    i, j = torch.triu_indices(cells, cells, offset=1)
    there, back = flow[i, j], flow[j, i]
    often = there + back >= 20
    assert often.sum() >= 6
    statistic = ((there - back).square() / (there + back))[often].sum()
    assert statistic < chi2.isf(FALSE_ALARM, int(often.sum()))


@each_sampler("replica exchange", "fitted reference", "NUTS", SAME)
def test_detailed_balance(sampler):
    """One transition from 200,000 exact draws, seen through eight cells. Some proposals are rejected.

    (Replica exchange swaps and explores in turn; each is in balance, both together only invariant. So is NUTS, which
    prefers what it added last.) Fails when the Metropolis correction is left out or looks at the wrong energy.
    """
    dim, stream = sampler.fewest_parameters, generator(3)
    posterior, covariance = double_well(dim), 0.5**2 * torch.eye(dim, dtype=torch.float64)
    start = exact_draws(double_well(), sampler.size(200_000), stream)
    start = torch.cat([start, posterior.sample_prior(len(start), stream)[:, 1:]], dim=1)
    kernel = sampler.tuned(covariance)
    chain = sample(posterior, kernel, 1, init=start, seed=stream, progress=False)
    assert 0.02 < 1 - chain.stats["is_accept"].double().mean() < 0.5
    before, after = start[:, 0].contiguous(), chain.draws[:, 0, 0].contiguous()
    edges = before.quantile(torch.linspace(0, 1, 9, dtype=torch.float64)[1:-1])
    assert_balanced(*(torch.bucketize(x, edges) for x in (before, after)), cells=8)


def test_detailed_balance_of_swaps():
    """Of 200,000 exact pairs, prior and posterior, that do nothing but swap; the cells are 16 of both places together.

    Fails when a swap is accepted without the difference of the likelihoods, or with its sign turned round.
    """
    posterior, num, stream = double_well(), 200_000, generator(4)
    kernel = ReplicaExchange(HMC(1e-9, 1), 2, vector(0, 1))
    density = posterior.density(2 * num)
    pairs = torch.stack([exact_draws(posterior, num, stream, beta) for beta in (0.0, 1.0)], dim=1)
    state = placed(kernel, density, pairs.view(-1, 1))
    after, _ = kernel.step(density, stream, state)
    assert 0.2 < swap_rates(state).mean() < 0.9
    edges = vector(-1.0, 0.0, 1.0)
    cells = [
        torch.bucketize(theta.view(num, 2).contiguous(), edges) @ torch.tensor([4, 1])
        for theta in (state.theta, after.theta)
    ]
    assert_balanced(*cells, cells=16)


# --- mechanics and lanes, on the network's posterior ------------------------------------------------------------------


def finer(kernel, halvings):
    """The same trajectories in steps half as long, so many times."""
    if isinstance(kernel, ReplicaExchange):
        sizes = None if kernel.step_sizes is None else kernel.step_sizes / 2**halvings
        return replace(kernel, kernel=finer(kernel.kernel, halvings), step_sizes=sizes)
    if isinstance(kernel, Symmetric):
        return replace(kernel, kernel=finer(kernel.kernel, halvings))
    if isinstance(kernel, NUTS):
        return replace(kernel, step_size=kernel.step_size / 2**halvings, max_tree_depth=1 + halvings)
    if isinstance(kernel, (ChEES, MAMS)):
        return replace(kernel, step_size=kernel.step_size / 2**halvings, trajectory_length=4 * kernel.step_size)
    return replace(kernel, step_size=kernel.step_size / 2**halvings, num_steps=kernel.num_steps * 2**halvings)


@each_sampler(*WALKS)
def test_energy_error_is_proportional_to_the_step_squared(sampler, posterior):
    """The slope of a line through four step sizes, on log scales. Fails when a half step is left out or made whole.

    NUTS chooses at random which state of a trajectory it tells of: with 200 of them the slope varies by 0.053, with
    3,000 by 0.016.
    """
    start = normal(3000 if sampler is SAMPLERS["NUTS"] else sampler.size(200), 20) / 2
    kernel = sampler.tuned(ROUGHLY)
    kernels = [finer(kernel, halvings) for halvings in range(4, 8)]
    chains = [sample(posterior, kernel, 1, init=start, seed=5, progress=False) for kernel in kernels]
    errors = [chain.stats["energy_error"].abs().median().log2().item() for chain in chains]
    steps = [chain.stats["step_size"].mean().log2().item() for chain in chains]
    assert np.polyfit(steps, errors, 1)[0] == pytest.approx(2, abs=0.1)


@each_sampler()
@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_lanes_do_not_influence_each_other(sampler, gradient, make_posterior, theta):
    """To the bit: fails when anything is summed or decided across lanes."""
    posterior = make_posterior(gradient=gradient)
    moved, others = theta.clone(), [0, 1, 3, 4]
    moved[2] += 1
    kernel = sampler.tuned(ROUGHLY)
    one, other = (sample(posterior, kernel, 30, init=start, seed=3, progress=False) for start in (theta, moved))
    assert torch.equal(one.draws[others], other.draws[others])
    for name, values in one.stats.items():
        assert torch.equal(values[others], other.stats[name][others])
    if one.tempering is not None:
        assert one.tempering.swap_rates.min() > 0
        for (_, _, mine), (_, _, theirs) in zip(one.tempering.items(), other.tempering.items(), strict=True):
            assert torch.equal(mine[others], theirs[others])
    assert not (one.draws[2] == other.draws[2]).any()


@each_sampler(SAME)
def test_lanes_are_uncorrelated(sampler):
    """Sums over one half of the lanes and over the other have a product of expectation 0: of places and their squares.

    (The latter see what lanes share in their decisions, which have no sign.) A product of the two is as likely to be
    positive as negative, so that its mean is soon normal; the square of one sum has a long tail. Fails when lanes share
    momenta or uniforms.
    """
    posterior, mean, covariance = TARGETS["3, rotated"]
    num = 2000 if sampler.thin > 1 else 6000  # others' neighbouring draws may be much alike, with some data
    z = standardised(sampler.draw(posterior, covariance, num, 64, seed=6).draws[:, 200:], mean, covariance)
    values = torch.cat([z, (z.square() - 1) / 2**0.5], dim=-1)
    one, other = (half.sum(0, keepdim=True) / len(half) ** 0.5 for half in values.chunk(2))
    assert_expectation_is_0(one * other)
