"""Simulation-based calibration: its tests of uniformity, its two procedures, and that it sees faults."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest, multinomial

from bnn_utils import HMC, Posterior, ReplicaExchange, sbc
from bnn_utils.kernels.hmc import propose, recorded
from bnn_utils.priors import DiagonalNormal
from bnn_utils.sbc import around, chi_square, counts, ecdf, ecdf_band, ranks, simulation_based_calibration
from targets import FALSE_ALARM, generator, normal, regression


@dataclass(frozen=True, eq=False, repr=False)
class NeverRejects(HMC):
    """HMC without its last step: every proposal is taken."""

    def step(self, density, generator, state):
        proposal = propose(generator, state.position, density.joint, self.step_size, self.num_steps, state.metric)
        accepted = torch.ones(len(state.position.theta), dtype=torch.bool)
        info = recorded(proposal.position, proposal, accepted, self.num_steps, self.step_size)
        return state._replace(position=proposal.position), info


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_ranks_by_hand():
    truth, draws = torch.tensor([[2.5, 0.0]]), torch.tensor([[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    assert ranks(truth, draws, generator()).tolist() == [[2, 0]]


@pytest.mark.statistical
def test_ties_are_drawn_by_lot():
    """Two draws below, three that equal the truth: any rank from 2 to 5, equally often."""
    draws = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 2.0]).expand(40_000, -1)
    found = ranks(torch.ones(40_000), draws, generator())
    times = torch.bincount(found, minlength=7)
    assert times[[0, 1, 6]].sum() == 0
    limits = binom.ppf(FALSE_ALARM / 8, 40_000, 0.25), binom.isf(FALSE_ALARM / 8, 40_000, 0.25)
    assert limits[0] <= times[2:6].min()
    assert times[2:6].max() <= limits[1]


def test_what_is_no_number_has_no_rank():
    with pytest.raises(ValueError, match="a quantity is NaN for some theta"):
        ranks(torch.tensor([math.nan]), torch.zeros(1, 3), generator())


@pytest.mark.statistical
def test_the_start_lies_anywhere_in_the_chain():
    """k draws from one side, L - k from the other, each from its beginning; every k equally often."""
    number = torch.arange(1, 5).expand(20_000, -1)
    found = around(-number, number, generator())
    k = (found < 0).sum(1)
    for side, count in ((-found, k), (found, 4 - k)):
        expected = torch.where(number <= count[:, None], number, 0)
        assert torch.equal(side.clamp(min=0).sort(1).values, expected.sort(1).values)
    limits = binom.ppf(FALSE_ALARM / 10, 20_000, 0.2), binom.isf(FALSE_ALARM / 10, 20_000, 0.2)
    times = torch.bincount(k, minlength=5)
    assert limits[0] <= times.min()
    assert times.max() <= limits[1]
    assert around(normal(3, 4, 2), normal(3, 4, 2), generator()).shape == (3, 4, 2)


# --- uniformity -------------------------------------------------------------------------------------------------------


def every_outcome(number, places):
    """All ways in which so many ranks fall on places, and the probability of each under uniformity."""
    outcomes = [c for c in itertools.product(range(number + 1), repeat=places) if sum(c) == number]
    return np.array(outcomes), multinomial(number, np.full(places, 1 / places)).pmf(outcomes)


@pytest.mark.parametrize(("number", "num_draws"), [(9, 3), (14, 2), (5, 5)])
def test_ecdf_against_every_outcome(number, num_draws):
    """By enumeration: the p-value is the probability of an outcome that is at least as extreme somewhere."""
    outcomes, probability = every_outcome(number, num_draws + 1)
    assert probability.sum() == pytest.approx(1)
    below = outcomes.cumsum(1)[:, :-1]
    p = binom(number, np.arange(1, num_draws + 1) / (num_draws + 1))
    least = 2 * np.minimum(p.cdf(below), p.sf(below - 1)).min(1)
    columns = torch.from_numpy(np.stack([np.repeat(np.arange(num_draws + 1), outcome) for outcome in outcomes], axis=1))
    expected = [probability[least <= value * (1 + 1e-9)].sum() for value in least]
    np.testing.assert_allclose(ecdf(columns, num_draws), expected, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 0.05])
def test_band_against_every_outcome(alpha):
    """It is left with a probability of at most alpha, and the next narrower one with a larger probability."""
    number, num_draws = 12, 3
    outcomes, probability = every_outcome(number, num_draws + 1)
    below = outcomes.cumsum(1)[:, :-1]
    lowest, highest = (edge.numpy() for edge in ecdf_band(number, num_draws, alpha))

    def left(low, high):
        return probability[((below < low) | (below > high)).any(1)].sum()

    assert 0 < left(lowest, highest) <= alpha
    p = binom(number, np.arange(1, num_draws + 1) / (num_draws + 1))
    tails = 2 * np.minimum(p.cdf(lowest), p.sf(highest - 1))
    narrower = tails.min() * (1 + 1e-9)  # the next tail probability that changes an edge
    assert left(p.ppf(narrower / 2), p.isf(narrower / 2)) > alpha


@pytest.mark.statistical
def test_p_values_of_uniform_ranks():
    """Chi-square's are nearly uniform; the ECDF's never too small. Of 4,000 runs, at most so many below 0.01."""
    uniform = torch.randint(16, (512, 4000), generator=generator())
    assert kstest(chi_square(uniform, 15).numpy(), "uniform").pvalue > FALSE_ALARM
    assert (ecdf(uniform, 15) < 0.01).sum() <= binom.isf(FALSE_ALARM, 4000, 0.01)


@pytest.mark.statistical
def test_each_test_sees_its_kind_of_fault():
    """A single rank that is too frequent, as by an error in the order of draws; many of them a little, as by a bias.

    Medians of 60 runs. Over 25 seeds the decimal logarithms of the two p-values were -13.5 ± 0.6 and -1.7 ± 0.1 for the
    single rank, and their difference was -1.7 ± 0.3 for the bias.
    """
    uniform = torch.randint(16, (1600, 60), generator=generator())
    single = torch.where(torch.rand(1600, 60, generator=generator(1)) < 0.06, 7, uniform)
    rising = 1 + 0.2 * torch.linspace(-1, 1, 16)
    biased = torch.multinomial(rising, 1600 * 60, replacement=True, generator=generator(2)).view(1600, 60)
    p, p_single, p_biased = (
        [test(ranks, 15).median().log10() for test in (chi_square, ecdf)] for ranks in (uniform, single, biased)
    )
    assert min(p) > -0.7
    assert p_single[0] < -8 < -3 < p_single[1]
    assert p_biased[1] < p_biased[0] - 0.3


def test_ranks_that_are_all_the_same():
    """So far from uniform that probabilities round to 0."""
    for rank in (0, 7, 15):
        assert ecdf(torch.full((5000, 1), rank), 15) < 1e-10
        assert chi_square(torch.full((5000, 1), rank), 15) < 1e-10


def test_counts():
    assert counts(torch.tensor([[0, 1], [2, 1], [2, 1]]), 2).T.tolist() == [[1, 0, 2], [0, 3, 0]]


def test_too_few_data_sets():
    with pytest.raises(ValueError, match=r"100 data sets are 6.2 for each of the ranks 0 to 15, .* num_datasets=320"):
        chi_square(torch.zeros(100, 1, dtype=torch.int64), 15)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 2"):
        ecdf_band(100, 15, 2)


# --- calibration ------------------------------------------------------------------------------------------------------

QUANTITIES = {"first": lambda theta: theta[..., 0], "length": lambda theta: theta.square().sum(-1)}


def calibrate(kernel, **arguments):
    return simulation_based_calibration(regression(), kernel, QUANTITIES, progress=False, **{"seed": 1, **arguments})


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (HMC(0.15, 5), {"thin": 5}),
        (HMC(0.05, 1), {"thin": 1}),  # hardly moves, and is right
        (HMC(0.1, 5), {"warmup": 100, "thin": 10}),
        (ReplicaExchange(HMC(0.15, 5), 4), {"warmup": 100, "thin": 10}),
    ],
    ids=["through the truth", "slowly through the truth", "from the prior", "replica exchange"],
)
@pytest.mark.statistical
def test_right_samplers_are_calibrated(kernel, arguments):
    found = calibrate(kernel, **arguments)
    assert found.ranks.shape == (512, 3)
    assert found.names == ["first", "length", "log likelihood"]
    assert found.is_calibrated, found.verdict
    assert found.verdict.startswith("no sign of a fault: of 6 p-values of 512 data sets the smallest is 0.")


@pytest.mark.statistical
def test_a_sampler_that_never_rejects_is_not():
    """Over 20 seeds, of the inputs too, the p-value was below 1e-15; with steps of 0.16 it depends on the inputs."""
    found = calibrate(NeverRejects(0.25, 5), thin=5)
    assert not found.is_calibrated
    assert repr(found).startswith("not calibrated: of 6 p-values of 512 data sets the smallest is")
    assert found.table().loc["log likelihood", "ecdf"] < 1e-6


@pytest.mark.parametrize("arguments", [{"thin": 5}, {"warmup": 100, "thin": 10}], ids=["through the truth", "usual"])
@pytest.mark.statistical
def test_a_wrong_prior_is_seen(monkeypatch, arguments):
    """The sampler's, not that of the simulations."""
    right = Posterior.with_targets

    def with_another_prior(self, y):
        other = right(self, y)
        other.prior_distribution = DiagonalNormal(16 * self.prior_distribution.precision)
        return other

    monkeypatch.setattr(Posterior, "with_targets", with_another_prior)
    assert not calibrate(HMC(0.15, 5), **arguments).is_calibrated


@pytest.mark.statistical
def test_chains_too_short_for_the_usual_procedure():
    """Started from the prior they have not converged, and that is seen as well."""
    assert not calibrate(HMC(0.02, 1), warmup=1, thin=1).is_calibrated


def test_same_seed_same_ranks():
    one, two, other = (calibrate(HMC(0.15, 5), thin=2, seed=seed).ranks for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_what_is_refused():
    with pytest.raises(ValueError, match="replica exchange needs warmup="):
        calibrate(ReplicaExchange(HMC(0.15, 5), 4))
    with pytest.raises(ValueError, match="called 'log likelihood', which is ranked in any case"):
        simulation_based_calibration(regression(), HMC(0.1, 3), {sbc.LOG_LIKELIHOOD: lambda theta: theta[..., 0]})
