"""Certificates: right samplers pass, planted faults don't, and what can't be judged is refused in words.

HMC, NUTS, ChEES and MAMS passed under 65 other seeds, the other right samplers under 12; each fault was rejected under
20.
"""

import doctest
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest, norm

from bnn_utils import HMC, MAMS, NUTS, SGLD, ChEES, NormalPrior, ReplicaExchange, certificates
from bnn_utils.certificates import (
    NUM_EXACT,
    Values,
    biases,
    certify,
    expectation,
    legendre,
    network,
    regression,
    two_modes,
)
from bnn_utils.kernels.base import Info
from targets import FALSE_ALARM, distribution_function, generator, normal, one_parameter


class Walk(NamedTuple):
    theta: torch.Tensor  # (C, D)
    log_prob: torch.Tensor  # (C,)


def hmc(posterior, start, num_draws, seed, fault="none", step_size=0.35, num_steps=5):
    """Textbook HMC in NumPy (Neal 2011, figure 2), with a fault."""
    log_prob_and_grad, rng = posterior.numpy(), np.random.default_rng(seed)
    precision = posterior.prior_distribution.precision.numpy()

    def density(theta):
        value, grad = log_prob_and_grad(theta)
        if fault == "another prior":
            return value - 0.1 * np.square(theta) @ precision, grad - 0.2 * precision * theta
        if fault == "another prior in the gradient":
            return value, grad - 0.2 * precision * theta
        return (0.9 * value, 0.9 * grad) if fault == "temperature" else (value, grad)

    theta = start.numpy()
    p = rng.standard_normal(theta.shape)
    value, grad = density(theta)
    kept = [[] for _ in theta]  # of each chain
    while min(map(len, kept)) < num_draws:
        if fault != "momentum not refreshed":
            p = rng.standard_normal(theta.shape if fault != "one momentum for all chains" else theta.shape[1])
        there, q, slope = theta, np.broadcast_to(p, theta.shape), grad
        for _ in range(num_steps):
            q = q + step_size / 2 * slope
            there = there + step_size * q
            height, slope = density(there)
            q = q + step_size / 2 * slope
        energies = np.square(p).sum(-1) / 2 - value, np.square(q).sum(-1) / 2 - height
        accept = np.log(rng.random(len(theta))) < energies[0] - energies[1]
        accept |= fault == "always accepted"
        rows = accept[:, None]
        theta, grad, value = np.where(rows, there, theta), np.where(rows, slope, grad), np.where(accept, height, value)
        p = np.where(rows, q, p)
        for chain, place in enumerate(theta):
            if accept[chain] or fault != "only what was accepted":
                kept[chain].append(place)
    return np.stack([chain[:num_draws] for chain in kept])


class Metropolis(NamedTuple):
    """The random walk of notebook 14, and its mistake: after a refusal it keeps the log density of what was refused."""

    forgets: bool = False
    lanes_per_chain = 1

    def init(self, density, theta, num_warmup):
        return Walk(theta, density.joint.log_prob_and_grad(theta)[0])

    def step(self, density, generator, state):
        noise = torch.randn(state.theta.shape, generator=generator, dtype=state.theta.dtype)
        u = torch.rand(len(noise), generator=generator, dtype=noise.dtype)
        there = state.theta + 0.4 * noise
        log_prob = density.joint.log_prob_and_grad(there)[0]
        is_accept = u.log() < log_prob - state.log_prob
        theta = torch.where(is_accept[:, None], there, state.theta)
        state = Walk(theta, log_prob if self.forgets else torch.where(is_accept, log_prob, state.log_prob))
        return state, Info(*state, {"is_accept": is_accept})


RIGHT = {
    "HMC": HMC(0.2, 6),
    "NUTS": NUTS(),
    "ChEES": ChEES(),
    "MAMS": MAMS(),
    "replica exchange": ReplicaExchange(HMC(0.2, 6), 4),
    "random walk": Metropolis(),
    "HMC in NumPy": hmc,
    # A trajectory need not follow the density's gradient for its end to be accepted at the right rate.
    "another prior in the gradient": partial(hmc, fault="another prior in the gradient"),
}
FAULTS = [
    "always accepted",
    "another prior",
    "temperature",
    "momentum not refreshed",
    "one momentum for all chains",
    "only what was accepted",
]
WRONG = {"forgetful random walk": Metropolis(forgets=True)}
WRONG |= {fault: partial(hmc, fault=fault, step_size=0.45) for fault in FAULTS}

SIZES = {"num_chains": 1000, "num_draws": 50}


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("sampler", RIGHT.values(), ids=RIGHT)
def test_right_samplers_pass(sampler):
    """Fails for every fault of the next test."""
    found = certify(sampler, seed=1, **SIZES)
    assert found.passed, found


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("sampler", WRONG.values(), ids=WRONG)
def test_faults_are_seen(sampler):
    found = certify(sampler, seed=1, **SIZES)
    assert not found.passed, found


@pytest.mark.slow
@pytest.mark.statistical
def test_slow_is_not_wrong():
    """A right sampler that takes small steps passes, and does not come from the prior to the posterior."""
    found = certify(HMC(0.01, 2), seed=1, **SIZES, warmup=0)
    assert found.passed, found
    assert not found.mixes
    assert "no sign of a fault" in found.verdict
    assert "chains do not come to the posterior (from the prior)" in found.verdict


@pytest.mark.slow
@pytest.mark.statistical
def test_an_unadjusted_sampler_is_told_its_bias():
    """Langevin steps that are never rejected, of variance 0.2: draws are too wide where the posterior is narrow."""
    found = certify(SGLD(0.2, batch_size=100), seed=1, **SIZES)
    assert not found.passed
    largest = max(found.findings, key=lambda finding: abs(finding.bias.value))
    assert abs(largest.bias.value) - 4 * largest.bias.se > 0.05
    assert largest.bias_of in found.verdict


# --- what it rests on -------------------------------------------------------------------------------------------------


def test_polynomials_are_orthonormal():
    """By Gauss-Legendre quadrature, which is exact for these degrees."""
    x, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(8))
    values = torch.cat([torch.ones(8, 1).double(), legendre((x + 1) / 2)], dim=1)
    torch.testing.assert_close(values.mT @ (weight[:, None] / 2 * values), torch.eye(5).double())


@pytest.mark.statistical
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0, None], ids=["forgets", "moves", "stays", "starts elsewhere"])
def test_standard_errors(kept):
    """Squared errors of 2,000 expectations, in units of their standard errors, have mean 1.

    Averages hold some of the chain's start, and all are differences from the mean of the exact draws, which is off too.
    Fails without the share of the exact draws, and when the starts are not taken out.
    """
    chains, num = 1000, 2000
    off = NUM_EXACT**-0.5 * normal(num, seed=1)
    start = normal(chains, num, seed=2)
    averages = (kept or 0.0) * start + 0.1 * normal(chains, num, seed=3)
    value, se = expectation(averages - off, None if kept is None else start - off, torch.ones(num).double())
    sum_of_squares = (value / se).square().sum()
    assert chi2.ppf(FALSE_ALARM / 2, num) < sum_of_squares < chi2.isf(FALSE_ALARM / 2, num)
    if kept is not None:
        assert se.mean() < 0.12 / chains**0.5 + NUM_EXACT**-0.5, "the starts' own spread is gone"


@pytest.mark.statistical
def test_biases():
    """Independent draws that are off by 0.1 and too wide by a fifth. Fails when variances are reported."""
    exact, chains = normal(NUM_EXACT, 1, seed=1), 0.1 + 1.2 * normal(2000, 10, 1, seed=2)
    bias, se = biases(Values(2 * chains + 3, None, 2 * exact + 3))
    z = (bias[:, 0] - torch.tensor([0.1, 0.2])) / se[:, 0]
    assert z.abs().max() < norm.isf(FALSE_ALARM / 4)
    assert se.max() < 0.02


@pytest.mark.statistical
def test_exact_draws_of_the_regression():
    """Whitened by what log density says of itself: its curvature, by finite differences. Fails with other noise."""
    target, dim = regression(), 10
    unit, middle = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    grad = target.posterior.log_prob_and_grad(torch.cat([unit, middle[None]]))[1]
    precision = grad[-1] - grad[:-1]  # a quadratic function's gradient is linear
    factor = torch.linalg.cholesky(precision)
    z = (target.exact(2000, generator(1)) - torch.linalg.solve(precision, grad[-1])) @ factor
    p = [kstest(column, norm.cdf).pvalue for column in z.T.numpy()]
    p += [kstest(z.square().sum(1).numpy(), chi2(dim).cdf).pvalue]
    assert min(p) > FALSE_ALARM / len(p)


@pytest.mark.statistical
def test_exact_draws_of_two_modes():
    """The distribution function by integration. Fails with other weights of the modes."""
    target = two_modes()
    theta = target.exact(2000, generator(1)).numpy()
    places, below = distribution_function(one_parameter(target.posterior.likelihood, NormalPrior(0.5), [0.0]))
    p = [
        kstest(theta[:, 0], lambda x: np.interp(x, places, below)).pvalue,
        kstest(theta[:, 1], norm(scale=0.5**-0.5).cdf).pvalue,
    ]
    assert min(p) > FALSE_ALARM / 2


@pytest.mark.statistical
def test_exact_draws_of_the_network():
    """Against draws from the prior that are weighted by their likelihood. Fails when it counts twice."""
    target, stream = network(), generator(1)
    prior = target.posterior.sample_prior(200_000, stream)
    weight = target.posterior.log_likelihood(prior).exp()
    weight /= weight.sum()
    exact, values = target.values(target.exact(5000, stream)), target.values(prior)
    mean = weight @ values
    variance = weight.square() @ (values - mean).square() + exact.var(0) / len(exact)
    z = (exact.mean(0) - mean) / variance.sqrt()
    assert z.abs().max() < norm.isf(FALSE_ALARM / 2 / len(z))


# --- calls ------------------------------------------------------------------------------------------------------------


def independent(posterior, start, num_draws, seed):
    """No chain at all: for tests of how a sampler is called, which need no more."""
    stream = generator(seed)
    target = next(one for one in (regression(), two_modes(), network()) if one.posterior.dim == posterior.dim)
    return target.exact(len(start) * num_draws, stream).view(len(start), num_draws, -1)


@pytest.mark.slow
@pytest.mark.statistical
def test_a_seed_makes_it_again():
    one, same, other = (certify(independent, seed, num_chains=100, num_draws=4) for seed in (3, generator(3), 4))
    assert one.passed
    assert one.mixes
    assert one.findings == same.findings != other.findings
    assert (one.seed, same.seed) == (3, None)


@pytest.mark.slow
@pytest.mark.statistical
def test_it_prints_as_a_table():
    found = certify(independent, seed=3, num_chains=100, num_draws=4)
    table = found.table()
    assert list(table.index) == ["linear regression", "two modes", "neural network", "from the prior"]
    assert table["passed"].all()
    text = repr(found)
    assert text.startswith("independent: no sign of a fault; the largest bias is ")
    assert all(name in text for name in table.index)


@pytest.mark.slow
def test_example():
    """That of `certify`."""
    ran = doctest.testmod(certificates)
    assert (ran.failed, ran.attempted > 4) == (0, True)


def refused(change):
    """A sampler that returns something else than it should, made of independent draws."""
    return lambda *arguments: change(independent(*arguments), *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda draws, *_: draws[:, :, :-1], r"on 'linear regression' .* shape \(100, 4, 9\), and \(100, 4, 10\)"),
        (lambda draws, *_: draws.transpose(0, 1), r"chains come first, so swap the first two axes"),
        (lambda draws, *_: draws[0], r"shape \(4, 10\)"),
        (
            lambda draws, *_: draws.index_fill(0, torch.tensor([3, 5]), torch.nan),
            r"2 of 100 chains are NaN or infinite",
        ),
        (lambda draws, posterior, start, *_: start[:, None].expand(draws.shape), r"no chain moved in 4 transitions"),
        (lambda draws, *_: 1e200 * draws, r"places where the density is 0 or not a number"),
    ],
    ids=["too few parameters", "draws first", "one chain", "NaN", "stuck", "far away"],
)
def test_what_cannot_be_judged(change, message):
    with pytest.raises(ValueError, match=message):
        certify(refused(change), seed=1, num_chains=100, num_draws=4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sampler": 3}, TypeError, r"sampler must be a function of \(posterior, start, num_draws, seed\) .* got 3"),
        ({"sampler": HMC}, TypeError, r"got the class HMC itself"),
        ({"sampler": lambda *_: None}, TypeError, r"what the sampler returns must be a tensor or an array"),
        ({"num_chains": 99}, ValueError, r"num_chains must be a whole number of at least 100"),
        ({"num_draws": 1}, ValueError, r"num_draws must be a whole number of at least 2"),
        ({"warmup": -1}, ValueError, r"warmup must be a whole number of at least 0"),
        ({"seed": "one"}, TypeError, r"seed must be a whole number or a torch.Generator"),
    ],
)
def test_wrong_calls(arguments, error, message):
    with pytest.raises(error, match=message):
        certify(**{"sampler": independent, "seed": 1} | arguments)
