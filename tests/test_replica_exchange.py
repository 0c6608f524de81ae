"""Replica exchange: exact at every temperature, swaps in turn, chains on their own, ladders that a warm-up learns."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest, norm
from torch import nn

from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, ReplicaExchange, Symmetric, boxes, fit_reference, sample
from bnn_utils.kernels.path import BROADER
from bnn_utils.kernels.replica_exchange import equal_rejection, rounds
from bnn_utils.symmetry import draw_copies
from samplers import density_for, placed, swap_rates
from targets import (
    FALSE_ALARM,
    PRECISION,
    Mixture,
    Noisy,
    distribution_function,
    exact,
    generator,
    normal,
    one_parameter,
    regression,
    vector,
    with_moments,
)


class Near(Noisy):
    """``y`` lies at most 1 from the output: anything else is impossible."""

    def distribution(self, outputs):
        center = outputs.squeeze(-1)
        return torch.distributions.Uniform(center - 1, center + 1, validate_args=False)


class Count(Noisy):
    """A Poisson distribution, whose rate overflows where the output is large."""

    def distribution(self, outputs):
        return torch.distributions.Poisson(outputs.squeeze(-1).exp(), validate_args=False)


class LaplacePrior:
    def distribution(self, flat):
        scale = torch.ones_like(flat.ravel())
        return torch.distributions.Independent(torch.distributions.Laplace(0 * scale, scale), 1)


def travel(kernel, posterior, theta, num, seed=0):
    """The state before, the state after and the info of each of ``num`` transitions."""
    stream, density = generator(seed), density_for(posterior, len(theta) * kernel.num_temperatures)
    state = kernel.init(density, theta, 0)
    for _ in range(num):
        before = state
        state, info = kernel.step(density, stream, before)
        yield before, state, info


# --- the draws at all temperatures ------------------------------------------------------------------------------------


# A reference that is wider than the posterior, whatever the seeds of the tests are.
CORRELATED = with_moments(vector(0.6, -0.2, 0.4), vector(9, 3, 0, 3, 4, 0, 0, 0, 6).view(3, 3) / 100)
WIDER = vector(1.3, 0.5, 0.9)


@pytest.mark.parametrize("reference", [None, WIDER], ids=["prior", "reference"])
@pytest.mark.statistical
def test_gaussian_at_every_temperature(reference):
    """Where 2,000 chains are after 40 transitions from one point: independent draws at each temperature.

    Each direction's mean is normal and its sum of squares chi-squared, both exactly. Fails when swaps are accepted
    without the difference of the temperatures, or always, when momenta are not refreshed, when the prior's precision is
    another at one temperature, and when the gradient stays behind in a swap. From a reference, when its density is left
    out of the ratio.

    Some swaps and some trajectories are rejected, and others not, whatever the data: over 190 of them, mean rates were
    between 0.07 and 0.95.
    """
    chains, ladder = 2000, vector(0, 0.02, 0.2, 1)
    posterior, sizes = regression(), vector(2.6, 1.1, 0.35, 0.17)
    if reference is not None:
        posterior, sizes = CORRELATED, vector(0.6, 0.5, 0.35, 0.2)
    kernel = ReplicaExchange(HMC(0.1, 3), 4, ladder, sizes, reference)
    start = torch.zeros(chains, 3, dtype=torch.float64)
    *_, (before, state, info) = travel(kernel, posterior, start, 40)
    for rates in (swap_rates(before).mean(0), info.stats["tempering_acceptance_rate"].mean(0)):
        assert rates.min() > 0.01
        assert rates.max() < 0.99
    one_test = FALSE_ALARM / (2 * 4 * 3)
    for beta, theta in zip(ladder, state.theta.view(chains, 4, 3).unbind(1), strict=True):
        mean, covariance = exact(posterior, beta, reference)
        z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (theta - mean).T, upper=False)
        assert (z.mean(1) * chains**0.5).abs().max() < norm.isf(one_test / 2), f"mean at {beta}"
        squares = z.square().sum(1)
        assert chi2.ppf(one_test / 2, chains) < squares.min(), f"variance at {beta}"
        assert squares.max() < chi2.isf(one_test / 2, chains), f"variance at {beta}"


@pytest.mark.parametrize(
    ("likelihood", "prior", "y", "step_sizes", "reference"),
    [
        (Mixture(), NormalPrior(0.1), [0.0], [3.0, 1.0, 0.5, 0.2], None),
        (Near(), NormalPrior(0.25), [1.0, 0.4], [1.0, 0.5, 0.5, 0.5], None),
        (Count(), NormalPrior(1e-6), [0.0, 1.0, 2.0], [400.0, 5.0, 1.0, 0.3], None),
        (Noisy(), LaplacePrior(), [1.0, 0.2], [0.8, 0.7, 0.5, 0.3], None),
        (Near(), NormalPrior(0.25), [1.0, 0.4], [0.7, 0.5, 0.5, 0.5], 1.2),
        (Count(), NormalPrior(1e-6), [0.0, 1.0, 2.0], [0.8, 0.8, 0.6, 0.3], 1.5),
        (Noisy(), LaplacePrior(), [1.0, 0.2], [0.8, 0.7, 0.5, 0.3], 1.5),
    ],
    ids=[
        "two modes",
        "impossible outputs",
        "overflow",
        "another prior",
        "impossible outputs, reference",
        "overflow, reference",
        "another prior, reference",
    ],
)
@pytest.mark.statistical
def test_one_parameter_at_every_temperature(likelihood, prior, y, step_sizes, reference):
    """Kolmogorov's test of 1,000 chains after 60 transitions, against densities that were integrated numerically.

    At the hot end that is the prior, wherever the likelihood is 0 or no number. Fails when such a likelihood is not
    made finite, and when its gradient is not made so inside a trajectory.
    """
    posterior, ladder = one_parameter(likelihood, prior, y), vector(0, 0.001, 0.1, 1)
    start = torch.full((1000, 1), 0.5, dtype=torch.float64)
    hot_end = None if reference is None else vector(reference)
    kernel = ReplicaExchange(HMC(1.0, 4), 4, ladder, vector(*step_sizes), hot_end)
    *_, (_, state, _) = travel(kernel, posterior, start, 60)
    for beta, places in zip(ladder, state.theta.view(1000, 4).T.numpy(), strict=True):
        theta, below = distribution_function(posterior, beta.item(), reference)
        assert kstest(places, lambda q, theta=theta, below=below: np.interp(q, theta, below)).pvalue > FALSE_ALARM / 4


def test_state_and_info_belong_together(posterior, theta):
    """Fails when likelihood or gradient stay behind in a swap, or are those of a proposal that was rejected."""
    kernel = ReplicaExchange(HMC(0.1, 4), 4, vector(0, 0.1, 0.4, 1))
    moved = swapped = 0
    for _, state, info in travel(kernel, posterior, theta, 30):
        log_likelihood, grad = posterior.density(20).likelihood.log_prob_and_grad(state.theta)
        torch.testing.assert_close(state.log_likelihood, log_likelihood, rtol=1e-12, atol=0)
        torch.testing.assert_close(state.grad_likelihood, grad, rtol=1e-9, atol=1e-9)
        recorded = info.stats["tempering_log_likelihood"].flatten()
        torch.testing.assert_close(recorded, log_likelihood, rtol=1e-12, atol=0)
        assert torch.equal(info.theta, state.theta[3::4])
        torch.testing.assert_close(info.log_prob, posterior.log_prob(info.theta), rtol=1e-12, atol=0)
        moved += int(info.stats["is_accept"].sum())
        swapped += int((info.stats["tempering_replica"] != torch.arange(4)).sum())
    assert 15 < moved < 135
    assert swapped > 0


# --- from a reference -------------------------------------------------------------------------------------------------


def test_ratio_and_its_gradient(posterior, theta):
    """What is recorded is the joint density over the reference's; fails when either stays behind in a swap."""
    sd = torch.linspace(0.5, 3, 20, dtype=torch.float64)
    kernel, joint = ReplicaExchange(HMC(0.1, 4), 4, vector(0, 0.1, 0.4, 1), reference=sd), posterior.density(20).joint
    for _, state, info in travel(kernel, posterior, theta, 10):
        log_prob, grad = joint.log_prob_and_grad(state.theta)
        ratio = log_prob - torch.distributions.Normal(0, sd).log_prob(state.theta).sum(1)
        torch.testing.assert_close(state.log_likelihood, ratio, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.grad_likelihood, grad + state.theta / sd**2, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(info.stats["tempering_log_ratio"].flatten(), ratio, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(info.log_prob, posterior.log_prob(info.theta), rtol=1e-12, atol=1e-12)
        assert "tempering_log_likelihood" not in info.stats


def test_a_reference_that_is_the_prior(posterior):
    """The same draws but for rounding, though the prior's path is in native code."""
    sd, arguments = posterior.prior_distribution.precision.rsqrt(), {"seed": 1, "progress": False}
    kernels = [ReplicaExchange(HMC(0.05, 4), 4, reference=reference) for reference in (None, sd)]
    one, other = (sample(posterior, kernel, 10, 3, **arguments) for kernel in kernels)
    torch.testing.assert_close(one.draws, other.draws, rtol=0, atol=1e-9)
    torch.testing.assert_close(one.tempering.log_likelihood, other.tempering.log_ratio, rtol=1e-9, atol=1e-9)
    assert (one.tempering.hot_end, other.tempering.hot_end) == ("prior", "reference")
    assert torch.equal(sample(posterior, kernels[1], 1, 3, 10, **arguments).kernel.reference, sd)


def test_fitted_to_any_copy(posterior):
    """Fails when elements that trade places keep moments of their own, and when moments are about the mean."""
    draws = normal(50, 20) * torch.linspace(0.1, 2, 20) + 0.3
    found = fit_reference(posterior, draws)
    for seed in range(3):
        copies = draw_copies(posterior.flat, 50, generator(seed))(draws)
        torch.testing.assert_close(fit_reference(posterior, copies), found)
    torch.testing.assert_close(fit_reference(posterior, draws[:1].repeat(7, 1)), fit_reference(posterior, draws[0]))
    assert len(found.unique()) == 7  # two inputs, biases, weights, biases, weights, the last bias
    mean = draws.square().mean(0)
    torch.testing.assert_close(found[-1], BROADER * mean[-1].sqrt())
    torch.testing.assert_close(found[9:15], BROADER * mean[9:15].mean().sqrt().expand(6))


def test_fitted_no_wider_than_the_prior(posterior):
    prior = posterior.prior_distribution.precision.rsqrt()
    torch.testing.assert_close(fit_reference(posterior, 100 * torch.ones(20)), prior)


def test_fitted_to_a_module_whose_symmetries_are_not_known():
    """The elements of each parameter share one width; with another prior than a normal there is no other bound."""
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    posterior = Posterior(module, boxes(n=8), LaplacePrior(), Bernoulli())
    draws = 10 * normal(40, posterior.dim)
    found = fit_reference(posterior, draws)
    for part in posterior.flat.slices.values():
        width = BROADER * draws[:, part].square().mean().sqrt()
        torch.testing.assert_close(found[part].double(), width.expand(part.stop - part.start), rtol=1e-5, atol=0)


def test_symmetries_of_a_reference(posterior):
    """A reference by which units differ would make moves of symmetries wrong, and is refused."""
    fitted = fit_reference(posterior, normal(50, 20))
    sample(posterior, Symmetric(ReplicaExchange(HMC(0.05, 2), 3, reference=fitted)), 2, seed=0, progress=False)
    uneven = ReplicaExchange(HMC(0.05, 2), 3, reference=torch.linspace(0.5, 1, 20))
    with pytest.raises(ValueError, match="reference does not treat the hidden units of a layer alike"):
        sample(posterior, Symmetric(uneven), 2, seed=0, progress=False)


def test_a_reference_of_another_network(posterior):
    with pytest.raises(ValueError, match="reference has 19 standard deviations, but the posterior has 20 parameters"):
        sample(posterior, ReplicaExchange(HMC(0.05, 2), 3, reference=torch.ones(19)), 2, progress=False)


# --- swaps ------------------------------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_replicas_follow_their_positions_and_swap_in_turn():
    """With steps of almost nothing a position is a mark. Even pairs are due in even transitions, odd ones in odd."""
    chains, num, posterior = 6, 7, regression()
    kernel = ReplicaExchange(HMC(1e-9, 1), num, torch.linspace(0, 1, num, dtype=torch.float64))
    density = posterior.density(chains * num)
    marks = normal(chains * num, 3) / 3
    state, stream, swaps = placed(kernel, density, marks), generator(), [0, 0]
    for count in range(60):
        before, (state, info) = state.replica, kernel.step(density, stream, state)
        assert (state.replica.sort(1).values == torch.arange(num)).all()
        assert torch.equal(state.replica, info.stats["tempering_replica"])
        place = torch.arange(chains)[:, None] * num + state.replica
        torch.testing.assert_close(state.theta, marks[place.flatten()], rtol=0, atol=1e-6)
        for chain, k in itertools.product(range(chains), range(num)):
            partner = k + 1 if k % 2 == count % 2 else k - 1  # the only one with whom a swap is due
            if state.replica[chain, k] != before[chain, k]:
                assert state.replica[chain, k] == before[chain, partner]
                assert state.replica[chain, partner] == before[chain, k]
                swaps[count % 2] += 1
    assert min(swaps) > 20


@pytest.mark.statistical
def test_swap_rates_are_those_of_the_swaps():
    """Of 3,000 chains that stand still, as many swap as their rates say; fails on any other rule of acceptance.

    A warm-up learns from these rates.
    """
    posterior, chains = regression(), 3000
    kernel = ReplicaExchange(HMC(1e-9, 1), 2, vector(0, 1))
    density = posterior.density(2 * chains)
    theta = exact(posterior, 1)[0] + 0.3 * normal(2 * chains, 3)
    state = placed(kernel, density, theta, num_warmup=30)
    hot, cold = state.log_likelihood.view(chains, 2).T
    after, _ = kernel.step(density, generator(), state)
    rate = torch.exp(0 * cold + 1 * hot - 0 * hot - 1 * cold).clamp(max=1)
    torch.testing.assert_close(after.warmup.swap_rates, rate.mean(0, keepdim=True))
    swapped = (after.replica[:, 0] == 1).double()
    z = (swapped - rate).sum() / (rate * (1 - rate)).sum().sqrt()
    assert 0.2 < rate.mean() < 0.8
    assert z.abs() < norm.isf(FALSE_ALARM / 2)


# --- the same density by other ways -----------------------------------------------------------------------------------


def test_autograd_draws_the_same(make_posterior):
    arguments = {"num_samples": 6, "num_chains": 3, "seed": 1, "progress": False}
    chains = [
        sample(make_posterior(gradient=gradient), ReplicaExchange(HMC(0.05, 4), 5), **arguments)
        for gradient in ("closed-form", "autograd")
    ]
    torch.testing.assert_close(*(chain.draws for chain in chains), rtol=0, atol=1e-9)
    torch.testing.assert_close(*(chain.tempering.log_likelihood for chain in chains), rtol=1e-9, atol=1e-9)


def test_compiled_chains(posterior):
    arguments = {"num_samples": 10, "num_chains": 3, "seed": 1, "progress": False}
    kernel = ReplicaExchange(HMC(0.05, 4), 4)
    compiled, plain = (sample(posterior, kernel, compile=flag, **arguments) for flag in (True, False))
    assert (compiled.gradient, plain.gradient) == ("closed-form, compiled", "closed-form")
    torch.testing.assert_close(compiled.draws, plain.draws, rtol=0, atol=1e-9)
    torch.testing.assert_close(compiled.tempering.log_likelihood, plain.tempering.log_likelihood, rtol=1e-9, atol=1e-9)


def test_mass_is_used_at_all_temperatures():
    """A mass of a quarter and half the steps are the same as a mass of 1, but for the scale of the momenta."""
    posterior, arguments = regression(), {"num_samples": 10, "num_chains": 3, "seed": 1, "progress": False}
    plain = sample(posterior, ReplicaExchange(HMC(0.1, 4), 4), **arguments)
    heavy = sample(posterior, ReplicaExchange(HMC(0.05, 4, torch.full((3,), 4.0)), 4), **arguments)
    dense = sample(posterior, ReplicaExchange(HMC(0.05, 4, 4 * torch.eye(3)), 4), **arguments)
    for chain in (heavy, dense):
        torch.testing.assert_close(chain.draws, plain.draws, rtol=0, atol=1e-9)


# --- warm-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_warmup", "ends"),
    [
        (0, [0]),
        (1, [1]),
        (29, [29]),
        (30, [10, 30]),
        (70, [10, 30, 70]),
        (500, [16, 48, 112, 241, 500]),
        (6300, [100, 300, 700, 1500, 3100, 6300]),
    ],
)
def test_rounds(num_warmup, ends):
    assert rounds(num_warmup) == ends


def test_rounds_double():
    for num_warmup in range(30, 3000):
        lengths = np.diff([0, *rounds(num_warmup)])
        assert lengths.min() >= 10
        assert len(lengths) <= 6
        assert abs(lengths[1:] - 2 * lengths[:-1]).max() <= 2
        assert lengths.sum() == num_warmup


def test_ladder_divides_the_barrier_evenly():
    """A barrier ``3 sqrt(beta)``, known between any two temperatures: its even division is at squares."""
    beta = torch.linspace(0, 1, 11, dtype=torch.float64) ** 3
    for _ in range(3):
        beta = equal_rejection(beta, 0.3 * beta.sqrt().diff())
    torch.testing.assert_close(beta, torch.linspace(0, 1, 11, dtype=torch.float64) ** 2, rtol=0, atol=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.5, 6))
def test_ladder_rises_from_0_to_1(rejection, power):
    before = torch.linspace(0, 1, len(rejection) + 1, dtype=torch.float64) ** power
    beta = equal_rejection(before, vector(*rejection))
    assert (beta[0], beta[-1], len(beta)) == (0, 1, len(before))
    assert (beta.diff() > 0).all()


def test_ladder_stays_where_all_swaps_fail_equally_often():
    before = torch.linspace(0, 1, 8, dtype=torch.float64) ** 4
    for rejection in (0.0, 0.3, 1.0):
        torch.testing.assert_close(equal_rejection(before, torch.full((7,), rejection).double()), before)


@pytest.mark.statistical
def test_warmup_evens_out_swaps_and_acceptance(posterior):
    """On the tutorial's posterior. Over 20 seeds the swap rates had a standard deviation of 0.02 to 0.07 (0.3 without a
    warm-up), and the acceptance rates were 0.76 to 0.86. Fails when the ladder learns from a few transitions at the
    beginning only.
    """
    chain = sample(
        posterior, ReplicaExchange(HMC(0.05, 8), 10), 200, 8, warmup=500, seed=0, progress=False, compile=False
    )
    assert chain.tempering.swap_rates.std() < 0.13
    rates = chain.tempering.acceptance_rate.mean((0, 1))
    assert rates.min() > 0.7
    assert rates.max() < 0.92
    assert (chain.tempering.step_sizes.diff() < 0).all()  # the hotter, the wider


@pytest.mark.statistical
def test_without_a_warmup_nothing_adapts(posterior):
    """Of 400 step sizes, one at least lies in each outer eighth of where they may: false alarm 1e-23."""
    ladder, sizes = vector(0, 0.1, 0.5, 1), vector(2, 0.5, 0.1, 0.05)
    chain = sample(posterior, ReplicaExchange(HMC(0.05, 3), 4, ladder, sizes), 200, 2, seed=0, progress=False)
    assert torch.equal(chain.tempering.inverse_temperatures, ladder.expand(2, -1))
    assert torch.equal(chain.tempering.step_sizes, sizes.expand(2, -1))
    steps = chain.stats["step_size"] / 0.05  # the cold lanes', up to a fifth longer or shorter
    assert 0.8 <= steps.min() < 0.85
    assert 1.15 < steps.max() <= 1.2
    first = sample(posterior, ReplicaExchange(HMC(0.05, 3), 3), 1, seed=0, progress=False)
    torch.testing.assert_close(first.tempering.inverse_temperatures[0], vector(0, 0.5**4, 1))
    assert (first.tempering.step_sizes == 0.05).all()


def test_a_warmup_begins_with_what_it_was_given(posterior):
    """One round too short to set the ladder anew; step sizes do adapt."""
    ladder = vector(0, 0.1, 0.5, 1)
    chain = sample(posterior, ReplicaExchange(HMC(0.05, 3), 4, ladder), 5, 2, warmup=20, seed=0, progress=False)
    assert torch.equal(chain.tempering.inverse_temperatures[0], ladder)
    assert not (chain.tempering.step_sizes == 0.05).any()


def test_single_precision(make_posterior):
    data = regression().data.to(torch.float32)
    posterior = Posterior(nn.Linear(3, 1, bias=False), data, NormalPrior(PRECISION), Noisy())
    chain = sample(posterior, ReplicaExchange(HMC(0.1, 3), 6), 50, 4, warmup=60, seed=0, progress=False)
    assert chain.draws.dtype == chain.tempering.log_likelihood.dtype == torch.float32
    assert (chain.tempering.inverse_temperatures.diff() > 0).all()
    assert math.isfinite(chain.tempering.log_evidence().stepping_stones.value)


# --- what is refused, and how kernels show themselves -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "num_temperatures must be a whole number of at least 2, got 1"),
        ((2.5,), "num_temperatures must be a whole number of at least 2, got 2.5"),
        ((math.nan,), "at least 2, got nan"),
        ((3, vector(0, 1)), r"must be 3 numbers that rise from 0, the prior, to 1, the posterior; got \[0.0, 1.0\]"),
        ((3, vector(0.1, 0.5, 1)), "rise from 0, the prior"),
        ((3, vector(0, 0.5, 0.9)), "to 1, the posterior"),
        ((3, vector(0, 0, 1)), "numbers that rise"),
        ((3, vector(0, math.nan, 1)), "numbers that rise"),
        ((2, None, vector(1)), r"step_sizes must be 2 positive and finite numbers, got \[1.0\]"),
        ((2, None, vector(1, 0)), r"step_sizes must be 2 positive and finite numbers, got \[1.0, 0.0\]"),
        ((2, None, vector(1, math.inf)), "positive and finite"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReplicaExchange(HMC(0.1, 3), *arguments)


def test_repr():
    assert repr(ReplicaExchange(HMC(0.1, 3), 4)) == "ReplicaExchange(HMC(step_size=0.1, num_steps=3), 4 temperatures)"
    shown = repr(ReplicaExchange(HMC(0.1, 3), 2, reference=vector(0.5, 0.125)))
    assert shown.endswith("2 temperatures, from a reference with standard deviations 0.12 to 0.5)")
    shown = repr(ReplicaExchange(HMC(0.1, 3), 2, step_sizes=vector(3, 0.125)))
    assert shown.endswith("2 temperatures, step sizes 0.12 to 3)")
