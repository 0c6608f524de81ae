"""What replica exchange says beside its draws: the log evidence against closed forms, rates, round trips, files."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import cumulative_trapezoid
from scipy.stats import chi2, norm
from torch.distributions import MultivariateNormal, Normal

from bnn_utils import HMC, Chain, NormalPrior, ReplicaExchange, sample
from bnn_utils.evidence import Estimate, Tempering, integral, stepping_stones
from targets import FALSE_ALARM, NOISE, PRECISION, Mixture, exact, normal, one_parameter, regression, vector
from test_replica_exchange import Near


def log_evidence(posterior):
    """Of a regression: its targets are normal, with covariance ``NOISE^2 + x x' / PRECISION``."""
    x, y = posterior.data.x, posterior.data.y
    covariance = NOISE**2 * torch.eye(len(y), dtype=torch.float64) + x @ x.T / PRECISION
    return MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y).item()


def moments(posterior, beta, reference=None):
    """Mean and variance of what is tempered, of a regression at an inverse temperature: it is quadratic in theta.

    That is the log likelihood, or the log of the joint density over the reference's.
    """
    mean, covariance = exact(posterior, beta, reference)
    x, residual = posterior.data.x, posterior.data.y - posterior.data.x @ mean
    hot = 0 * mean if reference is None else posterior.prior_distribution.precision - reference**-2
    spread = (x.T @ x / NOISE**2 + hot.diag()) @ covariance
    slope = x.T @ residual / NOISE**2 - hot * mean
    constant = -len(residual) * math.log(NOISE * (2 * math.pi) ** 0.5)
    value = constant - residual.square().sum() / NOISE**2 / 2 - spread.trace() / 2
    if reference is not None:
        value += posterior.log_prior(mean) - Normal(0, reference).log_prob(mean).sum()
    return value.item(), ((spread @ spread).trace() / 2 + slope @ covariance @ slope).item()


def quadrature(posterior, ladder, reference=None):
    """What thermodynamic integration comes to without Monte Carlo error: the trapezoid with its correction, interval by
    interval, of ``s E[l]`` by ``u = log s``, where s is the inverse temperature plus half of the first that is not 0.
    """
    total, shift = 0.0, ladder[1].item() / 2
    for a, b in itertools.pairwise(ladder.tolist()):
        (s_a, m_a, v_a), (s_b, m_b, v_b) = ((beta + shift, *moments(posterior, beta, reference)) for beta in (a, b))
        width = math.log(s_b / s_a)
        slopes = s_b * m_b + s_b**2 * v_b - s_a * m_a - s_a**2 * v_a
        total += width * (s_a * m_a + s_b * m_b) / 2 - width**2 * slopes / 12
    return total


def correlated(posterior, ladder, chains, draws, seed=0):
    """Log likelihoods ``(chains, draws, K)`` of exact draws that are correlated in time, 0.6 from one to the next, and,
    one half, between temperatures."""
    shape = (chains, draws, len(ladder), posterior.dim)
    noise = (normal(*shape, seed=seed) + normal(chains, draws, 1, posterior.dim, seed=seed + 1)) / 2**0.5
    for before, now in itertools.pairwise(noise.unbind(1)):
        now.mul_(0.8).add_(before, alpha=0.6)
    values = []
    for beta, z in zip(ladder.tolist(), noise.unbind(2), strict=True):
        mean, covariance = exact(posterior, beta)
        theta = mean + z @ torch.linalg.cholesky(covariance).T
        values.append(posterior.log_likelihood(theta.flatten(0, 1)).view(chains, draws))
    return torch.stack(values, -1)


def tempering(log_likelihood, ladder, replica=None):
    """A `Tempering` of which the rest does not matter."""
    chains, draws, num = log_likelihood.shape
    if replica is None:
        replica = torch.arange(num).expand(chains, draws, num)
    ones = torch.ones(chains, num, dtype=torch.float64)
    return Tempering(ladder.expand(chains, -1), log_likelihood, replica, torch.ones_like(log_likelihood), ones)


def draw(posterior, num_temperatures=6, num_samples=40, num_chains=3, seed=0, reference=None, **kwargs):
    kernel = ReplicaExchange(HMC(0.1, 3), num_temperatures, reference=reference)
    return sample(posterior, kernel, num_samples, num_chains, seed=seed, progress=False, **kwargs)


# --- the log evidence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 10])
@pytest.mark.statistical
def test_evidence_from_a_reference(seed):
    """The same number by the other path; the two estimates together have a false-alarm rate of 1e-4.

    Fails when the density of the reference is left out of the ratio.
    """
    posterior, reference = regression(seed), vector(0.7, 1.5, 4.0)
    run = draw(posterior, 8, 400, 32, warmup=150, seed=1, reference=reference).tempering
    stones, thermodynamic = run.log_evidence()
    known = quadrature(posterior, run.inverse_temperatures[0], reference)
    limit = norm.isf(FALSE_ALARM / 4)
    assert abs(stones.value - log_evidence(posterior)) < limit * stones.se
    assert abs(thermodynamic.value - known) < limit * thermodynamic.se
    assert max(stones.se, thermodynamic.se) < 0.1


@pytest.mark.parametrize("num_temperatures", [6, 10, 16])
@pytest.mark.parametrize("data", [{"seed": 0}, {"seed": 10, "num_points": 30}, {"seed": 20, "dim": 5}])
@pytest.mark.statistical
def test_evidence_of_a_regression(data, num_temperatures):
    """The two estimates together have a false-alarm rate of 1e-4.

    Thermodynamic integration has an error of its own, which its standard error does not know: known here, because the
    rule can be applied to exact moments. Fails when swaps forget the difference of the temperatures, and when the prior
    has another precision in the kernel than in the evidence.
    """
    posterior = regression(**data)
    run = draw(posterior, num_temperatures, 400, 32, warmup=150, seed=1).tempering
    stones, thermodynamic = run.log_evidence()
    limit = norm.isf(FALSE_ALARM / 4)
    assert abs(stones.value - log_evidence(posterior)) < limit * stones.se
    assert abs(thermodynamic.value - quadrature(posterior, run.inverse_temperatures[0])) < limit * thermodynamic.se
    assert max(stones.se, thermodynamic.se) < 0.1


@pytest.mark.parametrize("data", [{"seed": 0}, {"seed": 10, "num_points": 30}, {"seed": 20, "dim": 8}])
def test_error_of_thermodynamic_integration(data):
    """What its standard error does not know: little with 16 temperatures that divide the barrier evenly, and more than
    any standard error with 4. Fails when the correction by the variances is left out, or has the wrong sign.
    """
    posterior = regression(**data)
    beta = np.linspace(0, 1, 2000) ** 4
    # Up to a factor, where temperatures are many (Predescu et al. 2004).
    barrier = cumulative_trapezoid([moments(posterior, each)[1] ** 0.5 for each in beta], beta, initial=0)
    for num, smallest, largest in ((4, 0.1, 10.0), (16, 0.0, 0.002)):
        places = np.interp(np.linspace(0, barrier[-1], num), barrier, beta)
        error = quadrature(posterior, torch.from_numpy(places)) - log_evidence(posterior)
        assert smallest <= abs(error) < largest


@pytest.mark.parametrize("rule", [stepping_stones, integral])
@pytest.mark.statistical
def test_standard_errors(rule):
    """200 estimates, each from 400 draws that are correlated in time and between temperatures: their errors are
    normal with the standard deviation that each of them says, or up to a fifth less, as `mcse` is on the safe side.
    Fails when either correlation is neglected.
    """
    posterior, ladder, count = regression(), torch.linspace(0, 1, 16, dtype=torch.float64) ** 4, 200
    truth = {stepping_stones: log_evidence(posterior), integral: quadrature(posterior, ladder)}[rule]
    estimates = [rule(ladder, part) for part in correlated(posterior, ladder, count, 400).split(1)]
    z = torch.tensor([(value - truth) / se for value, se in estimates], dtype=torch.float64)
    assert abs(z.mean()) * count**0.5 < norm.isf(FALSE_ALARM / 4)
    assert 0.8**2 * chi2.ppf(FALSE_ALARM / 4, count) < z.square().sum() < chi2.isf(FALSE_ALARM / 4, count)


@pytest.mark.statistical
def test_standard_errors_of_a_run():
    """The same of 60 chains: after the warm-up each is a run of its own."""
    posterior, count = regression(), 60
    run = draw(posterior, 10, 600, count, warmup=150, seed=3).tempering
    ladder = run.inverse_temperatures[0]
    for rule, truth in ((stepping_stones, log_evidence(posterior)), (integral, quadrature(posterior, ladder))):
        estimates = [rule(ladder, part) for part in run.log_likelihood.split(1)]
        z = torch.tensor([(value - truth) / se for value, se in estimates], dtype=torch.float64)
        assert abs(z.mean()) * count**0.5 < norm.isf(FALSE_ALARM / 4)
        assert 0.8**2 * chi2.ppf(FALSE_ALARM / 4, count) < z.square().sum() < chi2.isf(FALSE_ALARM / 4, count)


@pytest.mark.statistical
def test_evidence_of_two_modes():
    """By symmetry both components of the mixture say the same."""
    posterior = one_parameter(Mixture(), NormalPrior(0.1), [0.0])
    stones, _ = draw(posterior, 10, 400, 32, warmup=150, seed=1).tempering.log_evidence()
    assert abs(stones.value - norm.logpdf(4, scale=(10 + 0.3**2) ** 0.5)) < 4 * stones.se < 0.2


@pytest.mark.statistical
def test_evidence_where_most_of_the_prior_is_impossible():
    """The probability of the possible part, times the density there; thermodynamic integration does not apply."""
    posterior = one_parameter(Near(), NormalPrior(0.01), [1.0, 0.4])
    start = torch.full((32, 1), 0.7, dtype=torch.float64)
    stones, thermodynamic = draw(posterior, 5, 400, 32, warmup=100, seed=1, init=start).tempering.log_evidence()
    truth = math.log((norm.cdf(1.4, scale=10) - norm.cdf(0.0, scale=10)) / 2**2)
    assert abs(stones.value - truth) < 4 * stones.se < 0.3  # over 24 seeds 4 * (0.049 ± 0.005)
    assert math.isnan(thermodynamic.value)
    assert math.isnan(thermodynamic.se)


def test_batches_are_pooled_by_their_sizes():
    """Each batch has a ladder of its own; the standard errors are those of independent estimates."""
    posterior = regression()
    chain = draw(posterior, 8, 400, 7, warmup=100, batch_size=3, seed=2)
    run, parts, sizes = chain.tempering, [], [3, 3, 1]
    ladders = run.inverse_temperatures.split(sizes)
    for ladder, log_likelihood in zip(ladders, run.log_likelihood.split(sizes), strict=True):
        assert (ladder == ladder[0]).all()
        parts.append(stepping_stones(ladder[0], log_likelihood))
    assert len(run.inverse_temperatures[:, 1].unique()) == 3
    stones, _ = run.log_evidence()
    assert stones.value == pytest.approx(sum(n * part.value for n, part in zip(sizes, parts, strict=True)) / 7)
    assert stones.se == pytest.approx(sum((n * part.se) ** 2 for n, part in zip(sizes, parts, strict=True)) ** 0.5 / 7)
    assert abs(stones.value - log_evidence(posterior)) < 4 * stones.se


def test_chains_of_one_ladder_are_one_estimate():
    """In whatever batches they were drawn: without a warm-up they share the ladder."""
    posterior = regression()
    run = draw(posterior, 8, 50, 4, batch_size=2, seed=2).tempering
    whole = stepping_stones(run.inverse_temperatures[0], run.log_likelihood)
    assert run.log_evidence().stepping_stones == pytest.approx(whole)


def test_estimates_in_words():
    assert str(Estimate(-17.77777, 0.0123)) == "-17.778 ± 0.012"


# --- rates and round trips --------------------------------------------------------------------------------------------


def test_swap_rates_and_barrier():
    """One by one: ``min(1, exp((beta_k - beta_k+1) (l_k+1 - l_k)))``, each chain with its ladder."""
    log_likelihood = 5 * normal(2, 7, 4)
    ladders = torch.stack([vector(0, 0.1, 0.4, 1), vector(0, 0.2, 0.3, 1)])
    run = tempering(log_likelihood, ladders)
    for k in range(3):
        rates = []
        for chain, step in itertools.product(range(2), range(7)):
            hot, cold = log_likelihood[chain, step, k : k + 2].tolist()
            rates.append(min(1.0, math.exp((ladders[chain, k] - ladders[chain, k + 1]) * (cold - hot))))
        assert run.swap_rates[k].item() == pytest.approx(np.mean(rates))
    assert run.barrier == pytest.approx(3 - run.swap_rates.sum().item())


def slow_round_trips(replica):
    """Of one chain's history, a list of permutations: up and down again by one traveller, at any time."""
    total, top = 0, len(replica[0]) - 1
    for traveller in range(top + 1):
        visits = [place for place in (list(step).index(traveller) for step in replica) if place in (0, top)]
        changes = sum(a != b for a, b in itertools.pairwise(visits))
        total += changes // 2
    return total


@given(
    st.integers(2, 4).flatmap(
        lambda num: st.lists(st.lists(st.permutations(range(num)), min_size=25, max_size=25), min_size=1, max_size=3)
    )
)
def test_round_trips(histories):
    replica = torch.tensor(histories)
    run = tempering(torch.zeros(replica.shape), torch.linspace(0, 1, replica.shape[-1]), replica)
    assert run.round_trips.tolist() == [slow_round_trips(history) for history in histories]


@pytest.mark.statistical
def test_round_trips_take_time():
    """Nobody travels faster than one place in a transition: 1,000 draws have time for at most 125 trips of each of 5.

    Over 60 data sets the least number of trips was 18.
    """
    trips = draw(regression(), 5, 1000, 3, warmup=100, seed=1).tempering.round_trips
    assert trips.shape == (3,)
    assert trips.min() > 0
    assert trips.max() <= 5 * 125


def index_process(rejection, chains, draws, seed=0):
    """Replicas whose swaps fail independently, as after perfect exploration, and log likelihoods with these rates."""
    num = len(rejection) + 1
    rng, here = np.random.default_rng(seed), np.tile(np.arange(num), (chains, 1))
    turns, history = [np.arange(num - 1) % 2 == parity for parity in (0, 1)], []
    for draw in range(draws):
        swapped = (rng.random((chains, num - 1)) > rejection) & turns[draw % 2]
        source = np.arange(num) + np.pad(swapped, ((0, 0), (0, 1))) * 1 - np.pad(swapped, ((0, 0), (1, 0))) * 1
        here = np.take_along_axis(here, source, axis=1)
        history.append(here)
    ladder = torch.linspace(0, 1, num, dtype=torch.float64)
    log_likelihood = np.cumsum([0, *(-np.log1p(-rejection) * (num - 1))])
    return tempering(
        torch.from_numpy(log_likelihood).expand(chains, draws, -1), ladder, torch.from_numpy(np.stack(history, 1))
    )


def test_no_swap_fails():
    """Each of K travellers needs 2 K transitions for a round trip: all together make one in two transitions."""
    run = index_process(np.zeros(5), 2, 1200)
    assert run.barrier == 0
    assert run.round_trips.tolist() == pytest.approx([600, 600], abs=6)  # the last trip of each is not over
    assert run.round_trip_efficiency == pytest.approx(1, abs=0.02)


@pytest.mark.statistical
def test_round_trips_of_perfect_exploration():
    """K travellers make one round trip in 2 + 2 sum r / (1 - r) transitions (Syed et al. 2021), all together, and each
    may lose one trip to the beginning and one to the end. Fails when one traveller is counted as all.
    """
    rejection, chains, draws = np.linspace(0.05, 0.15, 10), 64, 4000
    run = index_process(rejection, chains, draws)
    expected, made = draws / (2 + 2 * (rejection / (1 - rejection)).sum()), run.round_trips.double()
    error = norm.isf(FALSE_ALARM / 2) * made.std().item() / chains**0.5
    assert expected - 2 * (len(rejection) + 1) - error < made.mean() < expected + error
    assert run.barrier == pytest.approx(1)
    assert run.round_trip_efficiency == pytest.approx(made.mean().item() * 4 / draws)


# --- tables, words and files ------------------------------------------------------------------------------------------


def test_table():
    chain = draw(regression(), 4, warmup=30)
    table, run = chain.tempering.table(), chain.tempering
    assert list(table) == ["inverse_temperature", "step_size", "acceptance_rate", "swap_rate", "log_likelihood"]
    np.testing.assert_allclose(table["inverse_temperature"], run.inverse_temperatures[0])
    np.testing.assert_allclose(table["step_size"], run.step_sizes[0])
    np.testing.assert_allclose(table["acceptance_rate"], run.acceptance_rate.mean((0, 1)))
    np.testing.assert_allclose(table["swap_rate"], [*run.swap_rates, math.nan])
    np.testing.assert_allclose(table["log_likelihood"], run.log_likelihood.mean((0, 1)))


def test_a_chain_shows_its_tempering():
    chain = draw(regression(), 4, 200)
    rates = chain.tempering.swap_rates
    shown = f"4 temperatures, swap rates {rates.min():.2f} to {rates.max():.2f}, barrier {3 - rates.sum():.1f}, "
    assert shown in repr(chain)
    efficiency = chain.tempering.round_trip_efficiency
    words = f"{chain.tempering.round_trips.min()} or more round trips in each chain, {efficiency:.0%} of those possible"
    assert words in repr(chain)
    assert "4 temperatures" in chain._repr_html_()
    assert repr(chain.kernel).startswith("ReplicaExchange(HMC(step_size=0.1, num_steps=3), 4 temperatures")


def test_the_cold_chain_is_the_chain(posterior):
    chain = draw(posterior, 4)
    run, draws = chain.tempering, chain.draws.flatten(0, 1)
    torch.testing.assert_close(run.log_likelihood[..., -1].flatten(), posterior.log_likelihood(draws))
    torch.testing.assert_close(chain.stats["lp"].flatten(), posterior.log_prob(draws))
    assert torch.equal(run.acceptance_rate[..., -1], chain.stats["acceptance_rate"])
    assert {tuple(values.shape) for _, _, values in run.items()} == {(3, 4), (3, 40, 4)}


@pytest.mark.parametrize("reference", [None, vector(1.0, 2.0, 1.0)], ids=["prior", "reference"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_file_round_trip(tmp_path, batch_size, reference):
    chain = draw(regression(), 4, warmup=40, batch_size=batch_size, reference=reference)
    chain.save(tmp_path / "run.nc")
    loaded = Chain.load(tmp_path / "run.nc")
    for (name, dims, mine), (their_name, their_dims, theirs) in zip(
        chain.tempering.items(), loaded.tempering.items(), strict=True
    ):
        assert (name, dims) == (their_name, their_dims)
        torch.testing.assert_close(theirs, mine, rtol=0, atol=0)  # the dtype too
    assert set(loaded.stats) == set(chain.stats)
    assert loaded.tempering.hot_end == ("prior" if reference is None else "reference")
    assert loaded.tempering.log_evidence() == chain.tempering.log_evidence()


def test_a_reference_is_told_of():
    """Wherever the log likelihood and the prior are, for the path from the prior."""
    posterior, reference = regression(), vector(1.0, 2.0, 1.0)
    chain, other = draw(posterior, 4, reference=reference), draw(posterior, 4, seed=1)
    assert chain.tempering.log_likelihood is None
    assert list(chain.tempering.table())[-1] == "log_ratio"
    assert "tempering_log_ratio" in chain.to_arviz().sample_stats
    assert chain.thin(2).tempering.log_ratio.shape == (3, 20, 4)
    assert Chain.merge([chain, draw(posterior, 4, seed=1, reference=reference)]).tempering.hot_end == "reference"
    with pytest.raises(ValueError, match="hot end of their temperatures: number 0 has reference, number 1 has prior"):
        Chain.merge([chain, other])


def test_arviz_has_a_dimension_of_temperatures():
    statistics = draw(regression(), 4).to_arviz().sample_stats
    assert statistics["tempering_log_likelihood"].dims == ("chain", "draw", "temperature")
    assert statistics["tempering_replica"].shape == (3, 40, 4)
    assert statistics["tempering_inverse_temperatures"].dims == ("chain", "temperature")
    assert statistics["acceptance_rate"].shape == (3, 40)


def test_an_interrupted_run_keeps_its_tempering(monkeypatch):
    whole, step, count = draw(regression(), warmup=15), ReplicaExchange.step, itertools.count(1)

    def interrupted(*args):
        if next(count) > 27:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(ReplicaExchange, "step", interrupted)
    monkeypatch.setattr(ReplicaExchange, "steps", lambda *_: NotImplemented)  # one after the other
    with pytest.warns(RuntimeWarning, match="holds the 12 draws made so far, of 40"):
        chain = draw(regression(), warmup=15)
    assert torch.equal(chain.tempering.log_likelihood, whole.tempering.log_likelihood[:, :12])
    assert torch.equal(chain.tempering.replica, whole.tempering.replica[:, :12])
    assert torch.equal(chain.tempering.step_sizes, whole.tempering.step_sizes)


def test_other_kernels_have_no_tempering(posterior):
    assert sample(posterior, HMC(0.1, 3), 5, progress=False).tempering is None
