"""Priors over the flat vector: densities, draws, what they mean for a network of any width, and what they refuse."""

import math

import pytest
import torch
from scipy.stats import kstest, laplace, norm, t
from torch import nn
from torch.distributions import Gamma, Independent, Laplace, Normal, StudentT

from bnn_utils import Bernoulli, Data, ElementPrior, FanInPrior, FlatModule, NormalPrior, Posterior


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Parts(nn.Module):
    """Parameters of every shape."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.norm = nn.Embedding(5, 4), nn.Conv2d(3, 8, (2, 5)), nn.LayerNorm(4)
        self.linear, self.scale = nn.Linear(4, 2), nn.Parameter(torch.zeros(()))


FAN_IN = {
    "scale": None,
    "embedding.weight": 1,
    "conv.weight": 3 * 2 * 5,
    "conv.bias": None,
    "norm.weight": 1,
    "norm.bias": None,
    "linear.weight": 4,
    "linear.bias": None,
}


def test_scale_by_fan_in():
    flat = FlatModule(Parts().double())
    prior = FanInPrior(weight=3.0, bias=0.5).distribution(flat)
    assert set(FAN_IN) == set(flat.shapes)
    for name, fan_in in FAN_IN.items():
        expected = 0.5 if fan_in is None else 3 / math.sqrt(fan_in)
        torch.testing.assert_close(
            prior.precision[flat.slices[name]].rsqrt(), torch.full((flat.sizes[name],), expected, dtype=torch.float64)
        )


@pytest.mark.parametrize("width", [4, 400])
def test_a_unit_receives_the_same_from_any_width(width):
    """Fails for one precision for all, under which the output's spread grows with the width."""
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()
    x = normal(1, 2)
    draws = Posterior(net, Data(x, torch.ones(1)), FanInPrior(bias=0.1), Bernoulli()).sample_prior(4000, generator())
    flat = FlatModule(net)
    hidden = torch.tanh(flat.unravel(draws)["0.weight"] @ x[0] + flat.unravel(draws)["0.bias"])
    variance = hidden.square().mean() + 0.1**2
    z = flat(draws, x).square().mean() / variance - 1
    assert abs(z) < norm.isf(1e-4 / 2) * math.sqrt(6 / 4000)  # kurtosis of the output is below 7 for four units


PRIORS = {
    "normal": (NormalPrior(2.0), Normal(0.0, 2**-0.5), Normal(0.0, 2**-0.5)),
    "fan-in": (FanInPrior(0.5, 2.0), Normal(0.0, 0.5 / 2**0.5), Normal(0.0, 2.0)),
    "one of torch's": (ElementPrior(Laplace(0.0, 2.0)), Laplace(0.0, 2.0), Laplace(0.0, 2.0)),
    "one for each name": (
        ElementPrior({"bias": StudentT(3.0, 1.0), "*": Laplace(0.0, 0.25)}),
        Laplace(0.0, 0.25),
        StudentT(3.0, 1.0),
    ),
}
priors = pytest.mark.parametrize(("prior", "weight", "bias"), PRIORS.values(), ids=PRIORS)


def expected_log_prior(theta, weight, bias):
    """Of nn.Linear(2, 1): two weights, then a bias."""
    return weight.log_prob(theta[..., :2]).sum(-1) + bias.log_prob(theta[..., 2])


@priors
@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_density_and_gradient(prior, weight, bias, gradient):
    data = Data(normal(4, 2), torch.arange(4) % 2)
    posterior = Posterior(nn.Linear(2, 1), data, prior, Bernoulli(), gradient)
    theta = normal(5, 3).requires_grad_()
    expected = expected_log_prior(theta, weight, bias)
    torch.testing.assert_close(posterior.log_prior(theta), expected, rtol=1e-7, atol=1e-7)
    (slope,) = torch.autograd.grad((expected + posterior.log_likelihood(theta)).sum(), theta)
    value, grad = posterior.log_prob_and_grad(theta.detach())
    torch.testing.assert_close(value, (expected + posterior.log_likelihood(theta)).detach(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(grad, slope, rtol=1e-6, atol=1e-6)


@priors
@pytest.mark.statistical
def test_draws(prior, weight, bias):
    """Kolmogorov-Smirnov of 20,000 draws of each element; fails when scale and precision are mixed up."""
    flat = FlatModule(nn.Linear(2, 1).double())
    posterior = Posterior(flat.module, Data(normal(4, 2), torch.arange(4) % 2), prior, Bernoulli())
    before = torch.get_rng_state()
    draws = posterior.sample_prior(20_000, generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws, posterior.sample_prior(20_000, generator(1)))
    assert draws.dtype == torch.float64
    reference = {Normal: norm, Laplace: laplace, StudentT: t}
    for column, one in zip(draws.T.numpy(), (weight, weight, bias), strict=True):
        shape = [one.df.item()] if isinstance(one, StudentT) else []
        cdf = reference[type(one)](*shape, loc=one.loc.item(), scale=one.scale.item()).cdf
        assert kstest(column, cdf).pvalue > 1e-4 / 3


@priors
@pytest.mark.statistical
def test_prior_predictive(prior, weight, bias):
    """Labels of made-up networks; both classes come up."""
    posterior = Posterior(nn.Linear(2, 1), Data(normal(4, 2), torch.arange(4) % 2), prior, Bernoulli())
    theta = posterior.sample_prior(500, generator())
    labels = posterior.simulate(theta, generator(1))
    p = posterior.predict(theta, posterior.data.x)
    z = (labels - p).sum(0) / (p * (1 - p)).sum(0).sqrt()
    assert z.abs().max() < norm.isf(1e-4 / 2 / 4)
    assert set(labels.unique().tolist()) == {0, 1}


def test_a_diverged_theta_is_no_error():
    prior = ElementPrior(Laplace(0.0, 1.0)).distribution(FlatModule(nn.Linear(2, 1)))
    assert prior.log_prob(torch.full((2, 3), torch.nan)).isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FanInPrior(weight=0), "weight, a standard deviation, must be positive and finite, got 0"),
        (lambda: FanInPrior(bias=math.inf), "bias, a standard deviation, .* got inf"),
        (lambda: ElementPrior(Normal(torch.zeros(2), 1.0)), r"batch shape \(2,\) and event shape \(\): an element's"),
        (lambda: ElementPrior(Independent(Normal(torch.zeros(2), 1.0), 1)), r"event shape \(2,\)"),
        (lambda: ElementPrior({"*": Gamma(1.0, 1.0)}), "Gamma, with support .*, is no density over all real numbers"),
        (
            lambda: ElementPrior({"0.*": Normal(0.0, 1.0)}).distribution(FlatModule(nn.Linear(2, 1))),
            r"no pattern of \['0.\*'\] matches parameter weight; add one, or '\*' for the rest",
        ),
        (
            lambda: ElementPrior({"*": Normal(0.0, 1.0), "log_scale": Normal(0.0, 2.0)}).distribution(
                FlatModule(nn.Linear(2, 1))
            ),
            r"the pattern 'log_scale' sets no parameter of this network \(weight, bias\)",
        ),
    ],
)
def test_what_is_no_prior(make, message):
    with pytest.raises(ValueError, match=message):
        make()
