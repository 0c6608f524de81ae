"""Networks that are asked in the reader's units: the same posterior as by hand, and everything comes back in them."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal

from bnn_utils import (
    HMC,
    Bernoulli,
    ByInput,
    Data,
    FanInPrior,
    Gaussian,
    HierarchicalPrior,
    LogScale,
    NormalPrior,
    Posterior,
    Standardise,
    Symmetric,
    fit_reference,
    sample,
)
from bnn_utils.symmetry import copies, fold
from targets import generator, normal

# Numbers as of a table: a thousand of one thing, hundredths of another, and one column that says nothing.
X = torch.cat([normal(40, 2, seed=1) * torch.tensor([800.0, 0.02]) + torch.tensor([5e3, -1]), torch.ones(40, 1)], dim=1)
Y = 2e4 + 3e3 * normal(40, seed=2)


def layers(width=1):
    """Their own parameters are whatever torch drew, and no test depends on them."""
    return [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, width)]


def in_units(y=Y, **noise):
    width = 1 if y.ndim == 1 else y.shape[1]
    net = nn.Sequential(Standardise(X), *layers(width), LogScale(width)).double()
    return Posterior(net, Data(X, y), FanInPrior(2, 1), Gaussian(units=Standardise(y), **noise))


def by_hand(y=Y, **noise):
    """With scikit-learn's rule: deviations by N, and 1 for columns that are constant."""
    x = (X - X.mean(0)) / torch.where(X.std(0) == 0, 1, X.std(0, correction=0))
    width = 1 if y.ndim == 1 else y.shape[1]
    net = nn.Sequential(*layers(width), LogScale(width)).double()
    z = (y - y.mean(0)) / y.std(0, correction=0)
    return Posterior(net, Data(x, z), FanInPrior(2, 1), Gaussian(**noise))


@pytest.mark.parametrize("link", ["exp", "softplus"])
@pytest.mark.parametrize("y", [Y, torch.stack([Y, Y.flip(0) / 1e4], dim=1)], ids=["one target", "two targets"])
def test_the_same_posterior_as_by_hand(y, link):
    """But for the density of a target in other units, which is that of standard ones over their unit."""
    posterior, other = in_units(y, link=link), by_hand(y, link=link)
    theta = normal(5, posterior.dim, seed=3)
    jacobian = len(y) * y.std(0, correction=0).log().sum()
    torch.testing.assert_close(posterior.log_prob(theta), other.log_prob(theta) - jacobian, rtol=1e-10, atol=1e-10)
    assert posterior.gradient == "closed-form"
    for compile in (False, True):
        density = posterior.density(5, compile=compile)
        assert density.is_compiled is compile
        value, grad = density.joint.log_prob_and_grad(theta)
        torch.testing.assert_close(value, posterior.log_prob(theta), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grad, other.log_prob_and_grad(theta)[1], rtol=1e-9, atol=1e-9)


def test_what_comes_back_is_in_the_readers_units():
    """Means, targets with their noise and log scores, at the data and elsewhere."""
    posterior, other = in_units(), by_hand()
    draws, x = normal(2, 3, posterior.dim, seed=4), X[:7] + 100
    z = (x - X.mean(0)) / torch.where(X.std(0) == 0, 1, X.std(0, correction=0))
    mean, sd = Y.mean(), Y.std(correction=0)
    torch.testing.assert_close(posterior.predict(draws, x), mean + sd * other.predict(draws, z))
    drawn = posterior.predictive_draws(draws, x, seed=5)
    torch.testing.assert_close(drawn, mean + sd * other.predictive_draws(draws, z, seed=5))
    data = Data(x, Y[:7])
    scores = other.log_likelihoods(draws, Data(z, (Y[:7] - mean) / sd)) - sd.log()
    torch.testing.assert_close(posterior.log_likelihoods(draws, data), scores)
    torch.testing.assert_close(
        posterior.log_likelihoods(draws).sum(-1), posterior.log_likelihood(draws.view(6, -1)).view(2, 3)
    )
    replicated = posterior.simulate(draws[0], generator(6))
    again = posterior.with_targets(replicated)
    expected = torch.stack([again.dataset(k).log_prob(draws[0, k]) for k in range(3)])
    torch.testing.assert_close(again.log_prob(draws[0]), expected)


def test_single_precision_and_back():
    """The numbers are the data's, wherever they were computed."""
    net = nn.Sequential(Standardise(X), *layers(), LogScale())
    posterior = Posterior(net, Data(X.float(), Y.float()), FanInPrior(2, 1), Gaussian(units=Standardise(Y)))
    theta = normal(3, posterior.dim)
    torch.testing.assert_close(
        posterior.log_prob(theta.float()).double(), in_units().log_prob(theta), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(posterior.in_double().log_prob(theta), in_units().log_prob(theta), rtol=1e-5, atol=1e-5)


def test_draws_are_those_of_the_standardised_posterior():
    """Same starts, same random numbers: for a while, until the last bits have grown."""
    runs = [sample(p, HMC(0.01, 3), 20, 2, seed=7, progress=False).draws for p in (in_units(), by_hand())]
    torch.testing.assert_close(*runs, rtol=1e-6, atol=1e-6)


def test_symmetries_and_inputs_are_known_behind_it():
    posterior, other = in_units(), by_hand()
    draws = normal(3, posterior.dim)
    assert copies(posterior.flat) == copies(other.flat) == math.factorial(4) * 2**4
    torch.testing.assert_close(fold(draws, posterior.flat), fold(draws, other.flat))
    torch.testing.assert_close(fit_reference(posterior, draws), fit_reference(other, draws))
    chain = sample(posterior, Symmetric(HMC(0.01, 3)), 5, 2, seed=7, progress=False)
    torch.testing.assert_close(chain.draws, sample(other, Symmetric(HMC(0.01, 3)), 5, 2, seed=7, progress=False).draws)
    by_input = Posterior(
        posterior.flat.module,
        Data(X, Y),
        HierarchicalPrior({"1.weight": ByInput(HalfNormal(1.0)), "*": 1.0}),
        Gaussian(units=Standardise(Y)),
    )
    assert by_input.dim == posterior.dim + 3


def test_noise_by_softplus_is_finite_where_an_exponential_is_not():
    """Draws from the prior of a deep network whose noise is computed, as the losses of an overflow are silent."""
    x, dice = normal(50, 5), generator(8)
    widths = [5, 16, 16, 16, 16, 2]
    net = nn.Sequential(*[m for k in range(5) for m in (nn.Linear(*widths[k : k + 2]), nn.ReLU())][:-1])
    finite = {}
    for link in ("exp", "softplus"):
        posterior = Posterior(net, Data(x.float(), x[:, 0].float()), NormalPrior(1.0), Gaussian(link=link))
        theta = posterior.sample_prior(200, dice)
        value, grad = posterior.log_prob_and_grad(theta)
        finite[link] = (value.isfinite() & grad.isfinite().all(1)).double().mean().item()
    assert finite["exp"] < 0.5
    assert finite["softplus"] == 1


def test_the_layer_itself():
    layer = Standardise(X)
    z = layer(X)
    torch.testing.assert_close(z[:, :2].mean(0), torch.zeros(2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z[:, :2].std(0, correction=0), torch.ones(2).double())
    assert torch.equal(z[:, 2], torch.zeros(40).double())
    torch.testing.assert_close(layer.back(z), X)
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"mean", "sd"}
    images = normal(6, 2, 3)
    assert Standardise(images).mean.shape == (2, 3)
    assert torch.equal(Standardise(X.numpy()).sd, layer.sd)
    thirds = torch.full((3, 1), 0.1).float()  # whose mean is not 0.1 in floats
    assert torch.equal(Standardise(thirds)(thirds), torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.arange(3), r"dtype torch.int64, .* x.double\(\)"),
        (torch.zeros(0, 2), r"no points: its shape is \(0, 2\)"),
        (torch.tensor([1.0, math.nan]), "x holds 1 NaN or infinite values"),
    ],
)
def test_what_has_no_mean_is_refused(x, said):
    with pytest.raises(ValueError, match=said):
        Standardise(x)


def test_units_of_other_targets_are_refused():
    with pytest.raises(ValueError, match=r"units are of targets of shape \('N', 3\), and these have \(40,\): say"):
        Posterior(nn.Sequential(*layers()).double(), Data(X, Y), NormalPrior(1.0), Gaussian(1.0, units=Standardise(X)))
    with pytest.raises(TypeError, match="units must be what standardises targets, such as"):
        Gaussian(units=np.ones(2))
    with pytest.raises(ValueError, match="link must be"):
        Gaussian(link="log")


def test_the_units_are_a_copy():
    """What is changed later changes nothing."""
    units = Standardise(Y)
    likelihood = Gaussian(1.0, units=units)
    units.mean += 1
    assert likelihood.units.mean != units.mean
    posterior = Posterior(
        nn.Sequential(*layers()), Data(X.float() / X.amax(0).float(), Y.float()), NormalPrior(1.0), likelihood
    )
    assert posterior.likelihood.units.mean.dtype == torch.float32
    assert likelihood.units.mean.dtype == torch.float64
    assert repr(likelihood) == f"Gaussian(scale=1, units=Standardise(mean={Y.mean():g}, sd={Y.std(correction=0):g}))"
    assert repr(Standardise(X)) == "Standardise((3,))"


def test_scales_far_from_1_are_said(recwarn):
    """Of what the first layer takes, and of targets in the likelihood's units; the reader's line is named."""
    net = nn.Sequential(*layers(), LogScale()).double()
    with pytest.warns(UserWarning, match="column 0 has a root mean square of 5.*put Standardise") as said:
        Posterior(net, Data(X, Y / 2e4), FanInPrior(2, 1), Gaussian())
    assert [warning.filename for warning in said] == [__file__]
    with pytest.warns(UserWarning, match=r"targets .* square is 1.98e\+04, .*Gaussian\(units=Standardise"):
        Posterior(net, Data(X / X.amax(0), Y), FanInPrior(2, 1), Gaussian())
    with pytest.warns(UserWarning, match="targets are far from unit scale: their root mean square is 0.0198"):
        Posterior(net, Data(X / X.amax(0), Y / 1e6), FanInPrior(2, 1), Gaussian())
    recwarn.clear()
    in_units(), by_hand()
    Posterior(
        nn.Sequential(Standardise(X), *layers()).double(), Data(X, (Y > 2e4).double()), NormalPrior(1.0), Bernoulli()
    )
    assert not recwarn
