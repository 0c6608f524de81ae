"""Priors over the flat vector: densities, draws, what they mean for a network of any width, and what they refuse."""

import math
import warnings
from typing import ClassVar

import pytest
import torch
from scipy.stats import kstest, laplace, norm, t
from torch import nn
from torch.distributions import Independent, Laplace, Normal, Poisson, StudentT, constraints
from torch.distributions.transforms import ExpTransform

from bnn_utils import Bernoulli, Data, ElementPrior, FanInPrior, FlatModule, LogScale, NormalPrior, Posterior
from bnn_utils.links import Link


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
        (
            lambda: ElementPrior({"*": Poisson(1.0)}),
            "Poisson, with support .*, is no density of a number in an inter",
        ),
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


# --- fan-in, layer by layer -------------------------------------------------------------------------------------------


class Calls(nn.Module):
    """A layer called in a way of its own."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


def signs(*shape):
    """Inputs of variance 1, and of square 1, so that sums of squares are exact."""
    return 2 * torch.randint(2, shape, generator=generator()).double() - 1


def middle(layer, x):
    """Of a convolution, the places that no border is near."""
    outputs = layer(x)
    return outputs[(slice(None), slice(None), *(slice(size // 3, -(size // 3)) for size in outputs.shape[2:]))]


def with_hidden(layer, x):
    """What comes out after one step from hidden units of square 1."""
    hidden = signs(x.shape[0], layer.hidden_size)
    return layer(x, hidden) if isinstance(layer, nn.RNNCellBase) else layer(x[:, None], hidden[None])[0]


# layer, inputs, and the variance of each output in units of the prior's two
LAYERS = {
    "Linear": (nn.Linear(5, 3), signs(4, 5)),
    "Linear without bias": (nn.Linear(5, 3, bias=False), signs(4, 5)),
    "Bilinear": (Calls(nn.Bilinear(3, 4, 2), lambda layer, x: layer(x[:, :3], x[:, 3:])), signs(4, 7)),
    "Conv1d": (Calls(nn.Conv1d(4, 6, 3), middle), signs(2, 4, 20)),
    "Conv1d, groups": (Calls(nn.Conv1d(4, 6, 3, groups=2, stride=2), middle), signs(2, 4, 20)),
    "Conv2d": (Calls(nn.Conv2d(2, 3, (3, 2), dilation=2, padding=1), middle), signs(2, 2, 12, 12)),
    "Conv3d": (Calls(nn.Conv3d(2, 2, 2, groups=2), middle), signs(1, 2, 6, 6, 6)),
    "ConvTranspose1d": (Calls(nn.ConvTranspose1d(4, 6, 3), middle), signs(2, 4, 20)),
    "ConvTranspose1d, groups and stride": (
        Calls(nn.ConvTranspose1d(4, 6, 4, groups=2, stride=2, padding=1), middle),
        signs(2, 4, 20),
    ),
    "ConvTranspose1d, uneven": (Calls(nn.ConvTranspose1d(3, 2, 3, stride=2), middle), signs(2, 3, 20)),
    "ConvTranspose1d, dilation": (
        Calls(nn.ConvTranspose1d(3, 2, 5, stride=2, dilation=3, output_padding=1), middle),
        signs(2, 3, 30),
    ),
    "ConvTranspose2d": (Calls(nn.ConvTranspose2d(2, 3, (3, 4), stride=(2, 3)), middle), signs(1, 2, 12, 12)),
    "ConvTranspose3d": (Calls(nn.ConvTranspose3d(2, 1, 2, stride=2), middle), signs(1, 2, 4, 4, 4)),
    "Embedding": (nn.Embedding(5, 3), torch.tensor([0, 2, 2])),
    "PReLU": (nn.PReLU(3), -torch.ones(2, 3).double()),
    "LayerNorm": (nn.LayerNorm((2, 4), eps=0), torch.cat([signs(3, 2, 2), -signs(3, 2, 2)], -1)),
    "GroupNorm": (nn.GroupNorm(2, 4, eps=0), torch.stack([signs(3, 4), -signs(3, 4)], -1)),
    "RMSNorm": (nn.RMSNorm(4, eps=0), signs(3, 4)),
    "BatchNorm1d": (nn.BatchNorm1d(4, eps=0).eval(), signs(3, 4)),
    "InstanceNorm1d": (nn.InstanceNorm1d(4, eps=0, affine=True), torch.stack([signs(3, 4), -signs(3, 4)], -1)),
    "RNN": (Calls(nn.RNN(3, 5, batch_first=True), with_hidden), signs(4, 3)),
    "RNNCell": (Calls(nn.RNNCell(3, 5), with_hidden), signs(4, 3)),
    "RNNCell without bias": (Calls(nn.RNNCell(3, 5, bias=False), with_hidden), signs(4, 3)),
    "attention": (
        Calls(nn.MultiheadAttention(4, 2), lambda m, x: nn.functional.linear(x, m.in_proj_weight, m.in_proj_bias)),
        signs(3, 4),
    ),
    "attention, other widths": (
        Calls(nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False), lambda m, x: x @ m.v_proj_weight.T),
        signs(3, 5),
    ),
    "attention, at its end": (Calls(nn.MultiheadAttention(4, 2), lambda m, x: m.out_proj(x)), signs(3, 4)),
}


@pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS)
def test_what_a_unit_receives(layer, x):
    """Outputs are linear in the parameters, so their variance is a sum over elements: weight^2, and bias^2 if any."""
    flat = FlatModule(layer.double())
    prior = FanInPrior(weight=3.0, bias=0.5).distribution(flat)
    theta = torch.zeros(flat.dim, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda theta: flat(theta, x), theta)
    has_bias = any("bias" in name for name in flat.shapes)
    expected = torch.full(slopes.shape[:-1], 9 + 0.25 * has_bias, dtype=torch.float64)
    torch.testing.assert_close((slopes.square() / prior.precision).sum(-1), expected)


@pytest.mark.parametrize(
    "cells", [nn.LSTM(3, 4, 2, bidirectional=True), nn.LSTM(3, 4, 2, proj_size=2), nn.GRU(3, 4, 2)]
)
def test_what_a_gate_receives(cells):
    """Sums over inputs and hidden units, stacked gates or not, and two biases."""
    flat = FlatModule(cells.double())
    prior = FanInPrior(weight=3.0, bias=0.5).distribution(flat)
    variance = {name: 1 / p for name, p in flat.unravel(prior.precision).items()}
    gates = [name for name in variance if name.startswith("weight_ih")]
    assert len(gates) == 2 * (2 if cells.bidirectional else 1)
    for name in gates:
        received = variance[name].sum(1) + variance[name.replace("_ih", "_hh")].sum(1)
        torch.testing.assert_close(received, torch.full_like(received, 9))
        biases = [variance[name.replace("weight_ih", one)] for one in ("bias_ih", "bias_hh")]
        torch.testing.assert_close(sum(biases), torch.full_like(biases[0], 0.25))
    for name in (name for name in variance if name.startswith("weight_hr")):
        torch.testing.assert_close(variance[name].sum(1), torch.full((2,), 9, dtype=torch.float64))


def test_a_transformer():
    """All of its parameters are known; those of attention as above."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0).double()
    flat = FlatModule(layer)
    deviations = flat.unravel(FanInPrior(3.0, 0.5).distribution(flat).precision.rsqrt())
    for name, values in deviations.items():
        expected = 0.5 if "bias" in name else 3 / math.sqrt(values.shape[1]) if values.ndim == 2 else 3
        torch.testing.assert_close(values, torch.full_like(values, expected))


def test_attention_has_biases_of_three_dimensions():
    flat = FlatModule(nn.MultiheadAttention(4, 2, add_bias_kv=True).double())
    deviations = flat.unravel(FanInPrior(3.0, 0.5).distribution(flat).precision.rsqrt())
    for name in ("bias_k", "bias_v", "in_proj_bias", "out_proj.bias"):
        assert deviations[name].unique().tolist() == [0.5]


def tied():
    net = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4)).double()
    net[1].weight = net[0].weight
    return net


class Scaled(nn.Linear):
    """Whatever it inherits, it computes something else."""

    def forward(self, x):
        return x @ self.weight


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(2, 3))


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.EmbeddingBag(5, 3), r"what a unit sums over with weight, of shape \(5, 3\), in EmbeddingBag"),
        (Product(), r"with factor, of shape \(2, 3\), in Product: give priors by name, as in NormalPrior"),
        (nn.ParameterList([torch.zeros(2, 2)]), r"with 0, of shape \(2, 2\), in ParameterList"),
        (Scaled(2, 2), r"with weight, of shape \(2, 2\), in Scaled"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), r"with parametrizations.weight.original0"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)), r"with parametrizations.weight.original"),
        (old_weight_norm(), r"with weight_g, of shape \(3, 1\), in Linear"),
        (tied(), r"0.weight is shared by layers in which a unit sums over different numbers of inputs, .* Linear"),
    ],
)
def test_fan_ins_that_are_not_known(module, message):
    with pytest.raises(ValueError, match=message):
        FanInPrior().distribution(FlatModule(module.double()))


def test_layers_that_share_weights_or_are_frozen():
    """One prior where they agree, and none for what is no part of theta."""
    shared = nn.Linear(4, 4)
    flat = FlatModule(nn.Sequential(shared, nn.Tanh(), shared, nn.Embedding(3, 2).requires_grad_(False)).double())
    precision = FanInPrior(2.0, 0.5).distribution(flat).precision
    assert precision.tolist() == [1.0] * 16 + [4.0] * 4


def test_small_parameters_of_other_modules_have_the_bias_scale():
    net = nn.Sequential(nn.Linear(2, 1), LogScale()).double()
    assert FanInPrior(2.0, 0.5).distribution(FlatModule(net)).precision.tolist() == [0.5, 0.5, 4.0, 4.0]


class Positive(torch.distributions.Distribution):
    """Of a prior of the reader's own: theta is normal, and the network's parameters are its exponentials."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.independent(constraints.real, 1)

    def __init__(self, flat):
        super().__init__(event_shape=(flat.dim,))
        self.normal = Normal(0 * flat.ravel(), 1.0)
        none = torch.full((flat.dim,), -1)
        self.link = Link(flat.names, [(slice(0, flat.dim), ExpTransform())], [], none)

    def log_prob(self, theta):
        return self.normal.log_prob(theta).sum(-1)

    def sample(self, sample_shape=()):
        return self.normal.sample(sample_shape)


class PositivePrior:
    def distribution(self, flat):
        return Positive(flat)


def test_a_link_of_ones_own():
    """It is kept, whoever's class the distribution is."""
    x = normal(5, 2)
    posterior = Posterior(nn.Linear(2, 1), Data(x, torch.ones(5)), PositivePrior(), Bernoulli())
    theta = normal(3, 3, seed=1)
    assert torch.equal(posterior.parameters(theta), theta.exp())
    torch.testing.assert_close(
        posterior.outputs(theta, x), (x @ theta[:, :2].exp().mT + theta[:, 2].exp()).mT[..., None]
    )
