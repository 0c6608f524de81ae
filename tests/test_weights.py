"""Weighted points: whole weights are repeated points, wherever a density, a gradient or a score is computed."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, Poisson

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    SGHMC,
    Bernoulli,
    Categorical,
    ChEES,
    Data,
    FanInPrior,
    Gaussian,
    LogScale,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    sample,
)
from bnn_utils.gradients import backprop
from bnn_utils.predict import log_score
from bnn_utils.sbc import simulation_based_calibration
from targets import generator, normal, vector

NUM = 12
X, REAL, COUNT = normal(NUM, 2), normal(NUM, seed=1), torch.arange(NUM) % 4
TIMES = torch.tensor([1, 2, 0, 1, 3, 1, 0, 2, 1, 1, 4, 1])  # how often each point comes


def count(outputs):
    return Poisson(outputs[..., 0].exp())


# likelihood, number of outputs of the network, targets
LIKELIHOODS = {
    "Bernoulli": (Bernoulli(), nn.Linear(3, 1), COUNT % 2),
    "Categorical": (Categorical(), nn.Linear(3, 4), COUNT),
    "Gaussian": (Gaussian(0.5), nn.Linear(3, 1), REAL),
    "Gaussian, noise inferred": (Gaussian(), nn.Sequential(nn.Linear(3, 1), LogScale()), REAL),
    "a function": (count, nn.Linear(3, 1), COUNT),
}
likelihoods = pytest.mark.parametrize(("likelihood", "last", "y"), LIKELIHOODS.values(), ids=LIKELIHOODS)
gradients = pytest.mark.parametrize("gradient", ["closed-form", "autograd"])


def both(likelihood, last, y, gradient="closed-form", weights=TIMES):
    """The posterior of weighted points, and that of each point as often as it counts."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), last)
    repeated = Data(X.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES, 0))
    return [Posterior(net, data, FanInPrior(), likelihood, gradient) for data in (Data(X, y, weights), repeated)]


def assert_same(one, two):
    for mine, expected in zip(one, two, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@gradients
@likelihoods
@pytest.mark.parametrize("kind", [torch.int64, torch.float32, torch.float64])
def test_whole_weights_are_repeated_points(likelihood, last, y, gradient, kind):
    weighted, repeated = both(likelihood, last, y, gradient, TIMES.to(kind))
    assert "12 weighted points" in repr(weighted)
    theta = normal(5, weighted.dim)
    torch.testing.assert_close(weighted.log_likelihood(theta), repeated.log_likelihood(theta))
    assert_same(weighted.log_prob_and_grad(theta), repeated.log_prob_and_grad(theta))
    assert_same(weighted.log_prob_and_grad(theta[0]), repeated.log_prob_and_grad(theta[0]))
    torch.testing.assert_close(weighted.density(5).joint.grad(theta), repeated.density(5).joint.grad(theta))
    one, two = weighted.density(5), repeated.density(5)
    for mine, expected in ((one.prior, two.prior), (one.likelihood, two.likelihood)):
        assert_same(mine.log_prob_and_grad(theta), expected.log_prob_and_grad(theta))


@pytest.mark.parametrize("block", [1, 2 * 4 * 3, 5 * 4 * 3])
@likelihoods
def test_in_blocks(likelihood, last, y, monkeypatch, block):
    """Of lanes and points; fails where a block is weighed by another one's weights."""
    weighted, repeated = both(likelihood, last, y)
    theta = normal(5, weighted.dim)
    expected = repeated.log_prob_and_grad(theta)
    monkeypatch.setattr(backprop, "BLOCK_ELEMENTS", block)
    assert_same(weighted.log_prob_and_grad(theta), expected)
    torch.testing.assert_close(weighted.density(5).joint.grad(theta), expected[1])


@pytest.mark.parametrize("num_lanes", [5, 16], ids=["over points", "over lanes"])
@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "a function"])
def test_in_native_code(name, num_lanes):
    weighted, repeated = both(*LIKELIHOODS[name])
    theta = normal(num_lanes, weighted.dim)
    density = weighted.density(num_lanes, compile=True)
    assert density.is_compiled
    assert_same(density.joint.log_prob_and_grad(theta), repeated.log_prob_and_grad(theta))


@gradients
@pytest.mark.parametrize("rows_each", [1, 2])
def test_many_data_sets(gradient, rows_each):
    """Weights stay with the inputs, whatever the targets."""
    weighted, repeated = both(*LIKELIHOODS["Bernoulli"], gradient)
    labels = (torch.rand(3, NUM, generator=generator()) < 0.5).double()
    theta = normal(3 * rows_each, weighted.dim)
    weighted, repeated = weighted.with_targets(labels), repeated.with_targets(labels.repeat_interleave(TIMES, 1))
    assert_same(weighted.log_prob_and_grad(theta), repeated.log_prob_and_grad(theta))
    torch.testing.assert_close(weighted.log_prob(theta), repeated.log_prob(theta))
    assert_same(weighted.dataset(1).log_prob_and_grad(theta), repeated.dataset(1).log_prob_and_grad(theta))


@pytest.mark.parametrize(
    "kernel", [HMC(0.05, 3), ChEES(), MAMS(), MCLMC(), NUTS(), ReplicaExchange(HMC(0.05, 3), 3), SGHMC(0.01, 1000)]
)
def test_chains(kernel):
    """Draw for draw, until rounding has grown."""
    weighted, repeated = both(*LIKELIHOODS["Categorical"])
    start = 0.1 * normal(4, weighted.dim)
    one, two = (sample(p, kernel, 5, 4, 3, start, seed=0, progress=False) for p in (weighted, repeated))
    torch.testing.assert_close(one.draws, two.draws, rtol=0, atol=1e-8)
    x = normal(7, 2, seed=5)
    torch.testing.assert_close(weighted.predict(one.draws, x), repeated.predict(one.draws, x))


def test_chains_in_other_processes():
    weighted, _ = both(*LIKELIHOODS["Bernoulli"])
    arguments = {"num_chains": 4, "batch_size": 2, "seed": 1, "progress": False}
    one, two = (sample(weighted, HMC(0.05, 2), 3, workers=workers, **arguments) for workers in (1, 2))
    assert torch.equal(one.draws, two.draws)


def test_copies_and_other_packages():
    weighted, repeated = both(*LIKELIHOODS["Bernoulli"])
    theta = normal(5, weighted.dim)
    expected = repeated.log_prob_and_grad(theta)
    assert_same(pickle.loads(pickle.dumps(weighted)).log_prob_and_grad(theta), expected)
    assert_same(weighted.numpy()(theta.numpy()), [value.numpy() for value in expected])
    net, data = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), weighted.data.to(torch.float32)
    for posterior in (Posterior(net, data, FanInPrior(), Bernoulli()), repeated):
        with_others = posterior.with_targets(torch.stack([posterior.data.y, 1 - posterior.data.y]))
        value, grad = with_others.numpy()(theta[:2].numpy())  # in float64
        if posterior is not repeated:
            mine = (value, grad)
    np.testing.assert_allclose(mine[0], value, rtol=1e-6)
    np.testing.assert_allclose(mine[1], grad, rtol=1e-4, atol=1e-5)


def test_for_jax():
    jax = pytest.importorskip("jax")
    weighted, repeated = both(*LIKELIHOODS["Bernoulli"])
    theta = normal(weighted.dim).numpy().astype(np.float32)
    for function in (lambda f: f, jax.grad):
        one, two = (function(posterior.jax())(theta) for posterior in (weighted, repeated))
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@gradients
def test_any_weights(gradient):
    """By the formula, sum_i w_i log p(y_i), and its gradient by plain autograd."""
    weights = normal(NUM, seed=4).exp()
    posterior = Posterior(nn.Linear(2, 1), Data(X, REAL, weights), NormalPrior(1.0), Gaussian(0.5), gradient)
    theta = normal(4, 3).requires_grad_()
    mean = theta[:, :2] @ X.T + theta[:, 2:]
    expected = (weights * Normal(mean, 0.5).log_prob(REAL)).sum(-1)
    value, grad = posterior.density(4).likelihood.log_prob_and_grad(theta.detach())
    assert_same((value, grad), (expected.detach(), torch.autograd.grad(expected.sum(), theta)[0]))


@gradients
def test_a_weight_of_0_is_no_point(gradient):
    """Even where the point is impossible, or its slope infinite."""

    def function(outputs):
        return Normal(outputs[..., 0].sqrt(), 1.0)  # of an output of 0 the slope is infinite, below there is no density

    x, y = torch.cat([torch.ones(3, 2), torch.zeros(1, 2), -torch.ones(1, 2)]).double(), torch.ones(5).double()
    net = nn.Linear(2, 1, bias=False)
    nn.init.constant_(net.weight, 0.5)
    weighted = Posterior(net, Data(x, y, torch.tensor([1, 1, 1, 0, 0])), NormalPrior(1.0), function, gradient)
    without = Posterior(net, Data(x[:3], y[:3]), NormalPrior(1.0), function, gradient)
    theta = vector(0.5, 1.0)
    assert_same(weighted.log_prob_and_grad(theta), without.log_prob_and_grad(theta))
    assert weighted.log_prob_and_grad(theta)[1].isfinite().all()
    assert weighted.log_likelihoods(theta)[3:].tolist() == [0, 0]


# --- scores -----------------------------------------------------------------------------------------------------------


def test_log_likelihoods_add_up():
    weighted, repeated = both(*LIKELIHOODS["Categorical"])
    draws = normal(2, 3, weighted.dim)
    values = weighted.log_likelihoods(draws)
    assert values.shape == (2, 3, NUM)
    torch.testing.assert_close(values.sum(-1), weighted.log_likelihood(draws.flatten(0, 1)).view(2, 3))
    plain, _ = both(*LIKELIHOODS["Categorical"], weights=None)
    torch.testing.assert_close(values, TIMES * plain.log_likelihoods(draws))
    for mine, other in ((Data(X[:5], COUNT[:5]), plain), (Data(X[:5], COUNT[:5], TIMES[:5]), weighted)):
        for posterior in (weighted, repeated):
            torch.testing.assert_close(posterior.log_likelihoods(draws, mine), other.log_likelihoods(draws)[..., :5])


@pytest.mark.statistical
def test_leaving_out_a_weighted_point():
    """Importance sampling from the posterior to the one without a point, as PSIS-LOO does, against a refit.

    Linear regression with known noise, where both are exact: 1 / mean exp(-w log p) is the density of w equal
    observations given all others. Draws are the posterior's own; the test allows 5 standard errors by the delta method,
    which a normal error exceeds at 12 points with a probability of 7e-6.
    """
    weights, noise = vector(1, 2, 1, 3, 1, 0.5, 2, 1, 1, 1, 2, 1), 2.0
    posterior = Posterior(nn.Linear(2, 1, bias=False), Data(X, REAL, weights), NormalPrior(1.0), Gaussian(noise))

    def exact(weights):
        covariance = torch.linalg.inv(torch.eye(2).double() + X.T @ (weights[:, None] * X) / noise**2)
        return covariance @ (X.T @ (weights * REAL)) / noise**2, covariance

    def log_evidence(weights):
        """Of pseudo-data, log int prior(theta) prod_i p(y_i | theta)^w_i dtheta."""
        mean, covariance = exact(weights)
        at_mean = (weights * Normal(X @ mean, noise).log_prob(REAL)).sum() - mean @ mean / 2
        return at_mean + torch.logdet(covariance) / 2

    mean, covariance = exact(weights)
    draws = mean + normal(40_000, 2, seed=6) @ torch.linalg.cholesky(covariance).T
    inverse = (-posterior.log_likelihoods(draws)).exp()
    estimate, error = -inverse.mean(0).log(), inverse.std(0) / inverse.mean(0) / len(draws) ** 0.5
    expected = []
    for point in range(NUM):
        others = weights.clone()
        others[point] = 0
        expected.append(log_evidence(weights) - log_evidence(others))
    assert ((estimate - torch.stack(expected)).abs() < 5 * error).all()
    torch.testing.assert_close(log_score(posterior.log_likelihoods(mean[None])), posterior.log_likelihoods(mean))


def test_weights_are_no_model_of_the_data():
    """Nothing can be simulated that has the density; without weights it can."""
    weighted, _ = both(*LIKELIHOODS["Bernoulli"])
    with pytest.raises(ValueError, match=r"the points have weights, .* test the same posterior without weights"):
        simulation_based_calibration(weighted, HMC(0.1, 2), {}, 40, 1, 1, progress=False)
    assert weighted.simulate(normal(3, weighted.dim), generator()).shape == (3, NUM)


# --- what are weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(11), ValueError, r"weights have shape \(11,\); one for each of the 12 points is \(12,\)"),
        (torch.ones(12, 1), ValueError, r"weights have shape \(12, 1\)"),
        (torch.tensor(1.0), ValueError, r"weights holds no points: its shape is \(\)"),
        (torch.zeros(12), ValueError, "all weights are 0"),
        (torch.tensor([1.0] * 11 + [-2.0]), ValueError, "must not be negative: .* got -2"),
        (torch.tensor([1.0] * 11 + [np.nan]), ValueError, r"weights has 1 NaN or infinite values, the first at \[11\]"),
        (torch.tensor([1.0] * 11 + [np.inf]), ValueError, "weights has 1 NaN or infinite"),
        (torch.ones(12, dtype=torch.complex64), ValueError, "weights is torch.complex64"),
        (["a"] * 12, TypeError, "weights must be a tensor or an array of numbers"),
        (torch.ones(12, device="meta"), ValueError, "x lies on cpu and weights on meta"),
    ],
)  # fmt: skip
def test_what_are_no_weights(weights, error, message):
    with pytest.raises(error, match=message):
        Data(X, REAL, weights)


def test_weights_move_along():
    data = Data(X, REAL, TIMES).to(torch.float32)
    assert torch.equal(data.weights, TIMES)
    assert Data(X, REAL, TIMES.double()).to(torch.float32).weights.dtype == torch.float32
    assert Data(X, REAL).to(torch.float32).weights is None
    mask = Posterior(nn.Linear(2, 1), Data(X, REAL, TIMES > 0), NormalPrior(1.0), Gaussian(1.0))
    assert mask.data.weights.dtype == torch.float64
    assert len(mask.data) == NUM
