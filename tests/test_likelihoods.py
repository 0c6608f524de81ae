"""Likelihoods against torch.distributions and pencil and paper."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    Bernoulli,
    Categorical,
    ChEES,
    Data,
    Gaussian,
    Likelihood,
    LogScale,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    Standardise,
    sample,
)
from bnn_utils.likelihoods import ByDistribution
from bnn_utils.random import lend_to_torch
from bnn_utils.sbc import simulation_based_calibration
from targets import vector

bernoulli = Bernoulli()


def test_against_torch_distributions():
    outputs = torch.linspace(-8, 8, 24, dtype=torch.float64).reshape(3, 8, 1)
    y = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.float64)
    expected = torch.distributions.Bernoulli(logits=outputs[..., 0]).log_prob(y).sum(-1)
    torch.testing.assert_close(bernoulli.log_prob(outputs, y), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(bernoulli.mean(outputs), torch.sigmoid(outputs[..., 0]))


def test_by_hand():
    """Odds of 3 : 1, that is a logit of log 3, for a point of each class."""
    outputs = torch.full((2, 1), math.log(3), dtype=torch.float64)
    y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    value, grad = bernoulli.log_prob(outputs, y), bernoulli.grad(outputs, y)
    assert value.item() == pytest.approx(math.log(3 / 4) + math.log(1 / 4), rel=1e-14)
    assert grad.flatten().tolist() == pytest.approx([1 / 4, -3 / 4], rel=1e-14)
    assert bernoulli.mean(outputs).tolist() == pytest.approx([3 / 4, 3 / 4], rel=1e-14)


def test_closed_forms_are_the_general_ones():
    outputs = torch.linspace(-30, 30, 50, dtype=torch.float64).reshape(5, 10, 1)
    y = (torch.arange(10) % 2).double()
    general = super(Bernoulli, bernoulli)
    torch.testing.assert_close(bernoulli.log_prob(outputs, y), general.log_prob(outputs, y), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(bernoulli.grad(outputs, y), general.grad(outputs, y), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(dtype):
    outputs = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], dtype=dtype)
    y = torch.tensor([1, 0, 0, 1], dtype=dtype)
    value, grad = bernoulli.log_prob(outputs, y), bernoulli.grad(outputs, y)
    assert value == bernoulli.log_prob(outputs, y) == -2e4
    assert grad.flatten().tolist() == [0, 0, -1, 1]
    assert bernoulli.mean(outputs).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_labels_come_in_any_dtype(dtype):
    targets = bernoulli.targets(torch.tensor([0, 1]).to(dtype), torch.zeros(2, 1, dtype=torch.float64))
    assert targets.dtype == torch.float64
    assert targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("y", "outputs", "message"),
    [
        ([0, 1, 2, -1], (4, 1), "labels 0 and 1, but y also holds -1, 2"),
        ([0.5, 1, 0, 1], (4, 1), r"y also holds 0\.5"),
        ([[0], [1]], (2, 1), r"labels of shape \(N,\), got \(2, 1\)"),
        ([0, 1], (2,), r"outputs of shape \(2, 1\); this network gives \(2,\)"),
        ([0, 1], (2, 2), r"this network gives \(2, 2\): end it with nn.Linear\(..., 1\)"),
        ([0, 1], (3, 1), r"outputs of shape \(2, 1\); this network gives \(3, 1\)"),
    ],
)
def test_targets_and_outputs_that_do_not_fit(y, outputs, message):
    with pytest.raises(ValueError, match=message):
        bernoulli.targets(torch.tensor(y), torch.zeros(outputs))


# --- classes and real numbers -----------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def poisson(outputs):
    return torch.distributions.Poisson(outputs[..., 0].exp())


# likelihood, number of outputs, targets of 12 points
CASES = {
    "Bernoulli": (Bernoulli(), 1, torch.arange(12) % 2),
    "Categorical": (Categorical(), 3, torch.arange(12) % 3),
    "known noise": (Gaussian(scale=0.7), 1, normal(12, seed=1)),
    "known noise, two targets": (Gaussian(scale=0.7), 2, normal(12, 2, seed=1)),
    "noise by the outputs": (Gaussian(), 2, normal(12, seed=1)),
    "noise by the outputs, two targets": (Gaussian(), 4, normal(12, 2, seed=1)),
    "noise by softplus": (Gaussian(link="softplus"), 2, normal(12, seed=1)),
    "known noise, in units": (Gaussian(scale=0.7, units=Standardise(3 + normal(9))), 1, normal(12, seed=1)),
    "noise by softplus, two targets, in units": (
        Gaussian(link="softplus", units=Standardise(5 * normal(9, 2))),
        4,
        normal(12, 2, seed=1),
    ),
    "a function": (ByDistribution(poisson), 1, torch.arange(12) % 4),
}
cases = pytest.mark.parametrize(("likelihood", "num", "y"), CASES.values(), ids=CASES)


@cases
def test_log_probs_are_the_distributions(likelihood, num, y):
    outputs = normal(5, 12, num)
    y = likelihood.targets(y, outputs[0])
    distribution = likelihood.distribution(outputs)
    expected = distribution.log_prob(y)
    assert distribution.batch_shape == (5, 12)
    assert distribution.event_shape == y.shape[1:]
    torch.testing.assert_close(likelihood.log_probs(outputs, y), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(likelihood.log_prob(outputs, y), expected.sum(-1), rtol=1e-12, atol=1e-12)


@cases
def test_gradients_are_autograds(likelihood, num, y):
    outputs = normal(5, 12, num)
    y = likelihood.targets(y, outputs[0])
    expected = Likelihood.grad(likelihood, outputs, y)
    torch.testing.assert_close(likelihood.grad(outputs, y), expected, rtol=1e-12, atol=1e-12)


@cases
def test_each_row_may_have_targets_of_its_own(likelihood, num, y):
    outputs = normal(2, 12, num)
    both = torch.stack([likelihood.targets(y, outputs[0]), likelihood.targets(y.flip(0), outputs[0])])
    values, grads = likelihood.log_prob(outputs, both), likelihood.grad(outputs, both)
    for row in range(2):
        torch.testing.assert_close(values[row], likelihood.log_prob(outputs[row], both[row]))
        torch.testing.assert_close(grads[row], likelihood.grad(outputs[row], both[row]))


@cases
def test_twice_the_data_twice_the_log_likelihood(likelihood, num, y):
    """A sum over points; fails for a mean."""
    outputs = normal(12, num)
    y = likelihood.targets(y, outputs)
    twice = likelihood.log_prob(torch.cat([outputs, outputs]), torch.cat([y, y]))
    torch.testing.assert_close(twice, 2 * likelihood.log_prob(outputs, y), rtol=1e-14, atol=0)


@cases
@pytest.mark.statistical
def test_mean_is_the_average_target(likelihood, num, y):
    outputs = normal(12, num)
    with lend_to_torch(generator()):
        drawn = likelihood.distribution(outputs).sample((100_000,)).double()
    if isinstance(likelihood, Categorical):
        drawn = torch.nn.functional.one_hot(drawn.long(), num).double()
    error = drawn.std(0) / math.sqrt(len(drawn))
    z = (drawn.mean(0) - likelihood.mean(outputs)) / error
    assert z.abs().max() < norm.isf(1e-4 / 2 / z.numel())


def test_two_classes_are_bernoulli():
    """The softmax of (0, z) is the sigmoid of z."""
    z = normal(7, 1)
    y = torch.arange(7) % 2
    outputs = torch.cat([torch.zeros_like(z), z], dim=1)
    torch.testing.assert_close(Categorical().log_prob(outputs, y), bernoulli.log_prob(z, y.double()))
    torch.testing.assert_close(Categorical().mean(outputs)[:, 1], bernoulli.mean(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_of_classes(dtype):
    outputs = torch.tensor([[1e4, 0, 0], [0, 1e4, -1e4]], dtype=dtype)
    y = torch.tensor([0, 2])
    assert Categorical().log_probs(outputs, y).tolist() == [0, -2e4]
    assert Categorical().grad(outputs, y).tolist() == [[0, 0, 0], [0, -1, 1]]


def test_gaussian_by_hand():
    """Two standard deviations off: -2 - log(scale) - log(2 pi) / 2."""
    expected = -2 - math.log(0.5) - math.log(2 * math.pi) / 2
    y = torch.tensor([2.0], dtype=torch.float64)
    assert Gaussian(scale=0.5).log_prob(torch.tensor([[1.0]]).double(), y).item() == pytest.approx(expected)
    outputs = torch.tensor([[1.0, math.log(0.5)]], dtype=torch.float64)
    assert Gaussian().log_prob(outputs, y).item() == pytest.approx(expected)


def test_log_scale_is_a_parameter_beside_the_outputs():
    layer = LogScale(2).double()
    assert layer(normal(3, 5, 2)).shape == (3, 5, 4)
    assert [tuple(p.shape) for p in layer.parameters()] == [(2,)]
    assert torch.equal(layer(normal(5, 2))[:, :2], normal(5, 2))
    with pytest.raises(ValueError, match=r"LogScale\(2\) follows a layer with 1 outputs: say LogScale\(1\)"):
        layer(normal(5, 1))


def test_a_function_computes_with_what_diverged():
    """NaN is for the sampler to reject; torch's own checks are as they were afterwards."""
    likelihood, nan = ByDistribution(poisson), torch.full((2, 1), torch.nan)
    assert likelihood.log_prob(nan, torch.ones(2)).isnan()
    with pytest.raises(ValueError, match="Expected parameter rate"):
        torch.distributions.Poisson(nan)


@pytest.mark.parametrize(
    ("likelihood", "y", "outputs", "message"),
    [
        (Categorical(), [0, 1, 2, 3], (4, 3), "class numbers 0 to 2, .* 3 outputs, but y also holds 3"),
        (Categorical(), [0.0, 0.5, 1], (3, 3), r"but y also holds 0\.5"),
        (Categorical(), [0, 1], (2, 1), r"outputs of shape \(2, K\) with K >= 2; this network gives \(2, 1\)"),
        (Categorical(), [[0, 1], [1, 0]], (2, 2), r"got \(2, 2\); of one-hot rows take y.argmax\(1\)"),
        (Gaussian(0.1), [0.0, 1], (2, 2), r"Gaussian\(scale=0.1\) needs a mean for each target, .* \(2, 1\)"),
        (Gaussian(), [0.0, 1], (2, 1), r"this network gives \(2, 1\): end it with .*1\), LogScale\(1\), or"),
        (Gaussian(), [[0.0], [1]], (2, 2), r"got \(2, 1\): pass y\[:, 0\]"),
        (Gaussian(1), [[0.0, 1], [1, 2]], (2, 3), r"outputs of shape \(2, 2\); this network gives \(2, 3\)"),
        (ByDistribution(poisson), [0, -1], (2, 1), "y holds -1, which Poisson cannot give"),
        (ByDistribution(poisson), [[0], [1]], (2, 1), r"batch shape \(2,\) .*need \(2,\) and \(1,\)"),
        (
            ByDistribution(lambda outputs: torch.distributions.Poisson(outputs.exp())),
            [0, 1],
            (2, 1),
            r"batch shape \(2, 1\).*squeeze the outputs' last dimension",
        ),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_the_others(likelihood, y, outputs, message):
    with pytest.raises(ValueError, match=message):
        likelihood.targets(torch.tensor(y), torch.zeros(outputs))


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan])
def test_noise_is_positive(scale):
    with pytest.raises(ValueError, match="scale"):
        Gaussian(scale)


# --- all that torch has -----------------------------------------------------------------------------------------------

D = torch.distributions
real, pairs = normal(12, seed=1), normal(12, 2, seed=1)
positive, fraction, count = real.exp(), real.sigmoid(), torch.arange(12) % 4
shares, zeros = normal(12, 3, seed=2).softmax(-1), torch.zeros_like
MIXED = torch.eye(2, dtype=torch.float64) + 0.5

# function of the outputs, number of outputs, targets of 12 points
FUNCTIONS = {
    "Bernoulli": (lambda o: D.Bernoulli(logits=o[..., 0]), 1, count % 2),
    "Beta": (lambda o: D.Beta(o[..., 0].exp(), o[..., 1].exp()), 2, fraction),
    "Binomial": (lambda o: D.Binomial(5, logits=o[..., 0]), 1, count),
    "Categorical": (lambda o: D.Categorical(logits=o), 4, count),
    "Categorical, probs": (lambda o: D.Categorical(probs=o.softmax(-1)), 4, count),
    "Cauchy": (lambda o: D.Cauchy(o[..., 0], o[..., 1].exp()), 2, real),
    "Chi2": (lambda o: D.Chi2(o[..., 0].exp()), 1, positive),
    "ContinuousBernoulli": (lambda o: D.ContinuousBernoulli(logits=o[..., 0]), 1, fraction),
    "Dirichlet": (lambda o: D.Dirichlet(o.exp()), 3, shares),
    "Exponential": (lambda o: D.Exponential(o[..., 0].exp()), 1, positive),
    "FisherSnedecor": (lambda o: D.FisherSnedecor(o[..., 0].exp(), o[..., 1].exp()), 2, positive),
    "Gamma": (lambda o: D.Gamma(o[..., 0].exp(), o[..., 1].exp()), 2, positive),
    "Geometric": (lambda o: D.Geometric(logits=o[..., 0]), 1, count),
    "Gumbel": (lambda o: D.Gumbel(o[..., 0], o[..., 1].exp()), 2, real),
    "HalfCauchy": (lambda o: D.HalfCauchy(o[..., 0].exp()), 1, positive),
    "HalfNormal": (lambda o: D.HalfNormal(o[..., 0].exp()), 1, positive),
    "InverseGamma": (lambda o: D.InverseGamma(o[..., 0].exp(), o[..., 1].exp()), 2, positive),
    "Kumaraswamy": (lambda o: D.Kumaraswamy(o[..., 0].exp(), o[..., 1].exp()), 2, fraction),
    "Laplace": (lambda o: D.Laplace(o[..., 0], o[..., 1].exp()), 2, real),
    "LogNormal": (lambda o: D.LogNormal(o[..., 0], o[..., 1].exp()), 2, positive),
    "LogisticNormal": (lambda o: D.LogisticNormal(o, torch.ones_like(o)), 2, shares),
    "Multinomial": (lambda o: D.Multinomial(4, logits=o), 3, torch.tensor([1, 2, 1]).expand(12, 3)),
    "MultivariateNormal": (lambda o: D.MultivariateNormal(o, scale_tril=MIXED.tril()), 2, pairs),
    "NegativeBinomial": (lambda o: D.NegativeBinomial(o[..., 0].exp(), logits=o[..., 1]), 2, count),
    "Normals": (lambda o: D.Independent(D.Normal(o[..., :2], o[..., 2:].exp()), 1), 4, pairs),
    "OneHotCategorical": (lambda o: D.OneHotCategorical(logits=o), 4, torch.nn.functional.one_hot(count)),
    "Poisson": (poisson, 1, count),
    "RelaxedBernoulli": (lambda o: D.RelaxedBernoulli(o.new_tensor(0.5), logits=o[..., 0]), 1, fraction),
    "StudentT": (lambda o: D.StudentT(3.0, o[..., 0], o[..., 1].exp()), 2, real),
    "VonMises": (lambda o: D.VonMises(o[..., 0], o[..., 1].exp()), 2, real),
    "Weibull": (lambda o: D.Weibull(o[..., 0].exp(), o[..., 1].exp()), 2, positive),
    "Wishart": (lambda o: D.Wishart(4 + o[..., 0].exp(), scale_tril=MIXED.tril()), 1, MIXED.expand(12, 2, 2)),
    "a logistic": (
        lambda o: D.TransformedDistribution(
            D.Uniform(zeros(o[..., 0]), torch.ones_like(o[..., 0])),
            [D.SigmoidTransform().inv, D.AffineTransform(o[..., 0], o[..., 1].exp())],
        ),
        2,
        real,
    ),
    "a mixture": (
        lambda o: D.MixtureSameFamily(D.Categorical(logits=o[..., :2]), D.Normal(o[..., 2:], 1.0)),
        4,
        real,
    ),
    "normals, transformed": (
        lambda o: D.TransformedDistribution(D.Independent(D.Normal(o, torch.ones_like(o)), 1), D.ExpTransform()),
        2,
        pairs.exp(),
    ),
}
functions = pytest.mark.parametrize(("function", "num", "y"), FUNCTIONS.values(), ids=FUNCTIONS)
X = normal(12, 2, seed=3)


def posterior_of(likelihood, num, y, **kwargs):
    """Of one layer, whose own parameters are made up once and for all."""
    net = nn.Linear(2, num)
    torch.nn.init.constant_(net.weight, 0.1)
    torch.nn.init.constant_(net.bias, -0.1)
    return Posterior(net, Data(X + 0, y, kwargs.pop("weights", None)), NormalPrior(4.0), likelihood, **kwargs)


@functions
def test_chains_with_each_of_torchs(function, num, y):
    """Several chains by the closed form, which made targets that autograd could not use; by plain torch otherwise."""
    posterior = posterior_of(function, num, y)
    assert posterior.gradient == "closed-form"
    draws = sample(posterior, HMC(0.05, 2), 2, num_chains=3, seed=1, progress=False).draws[:, -1]
    values, grads = posterior.log_prob_and_grad(draws)
    for theta, value, grad in zip(draws, values, grads, strict=True):
        theta = theta.clone().requires_grad_()
        outputs = X @ theta[: 2 * num].view(num, 2).T + theta[2 * num :]
        expected = function(outputs).log_prob(y.double()).sum() + D.Normal(0, vector(0.5)).log_prob(theta).sum()
        torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grad, torch.autograd.grad(expected, theta)[0], rtol=1e-8, atol=1e-8)


class Counts(Likelihood):
    """One of the reader's own, whose distribution torch checks."""

    def targets(self, y, outputs):
        return y.to(outputs.dtype)

    def distribution(self, outputs):
        return D.Poisson(outputs[..., 0].exp())


class CountsByHand(Counts):
    """The same, the long way round."""

    def log_probs(self, outputs, y):
        return D.Poisson(outputs[..., 0].exp()).log_prob(y)


KERNELS = {
    "HMC": HMC(0.05, 2),
    "ChEES": ChEES(),
    "NUTS": NUTS(),
    "MAMS": MAMS(),
    "MCLMC": MCLMC(),
    "replica exchange": ReplicaExchange(HMC(0.05, 2), 3),
}
OWN = CASES | {"a class": (Counts(), 1, count), "a class by hand": (CountsByHand(), 1, count)}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize(("likelihood", "num", "y"), OWN.values(), ids=OWN)
def test_chains_with_each_kernel(likelihood, num, y, kernel):
    """One chain or several, one data set or several: the closed form is followed as autograd is."""
    posterior, other = (posterior_of(likelihood, num, y, gradient=way) for way in ("closed-form", "autograd"))
    start = 0.1 * normal(4, posterior.dim)
    several, once = torch.stack(4 * [posterior.data.y]), {"seed": 1, "progress": False}
    for chains, change in ((1, None), (4, None), (4, several)):
        if chains == 1 and isinstance(kernel, (ChEES, MAMS)):
            continue
        mine, expected = (
            sample(p if change is None else p.with_targets(change), kernel, 3, chains, 2, init=start[:chains], **once)
            for p in (posterior, other)
        )
        torch.testing.assert_close(mine.draws, expected.draws, rtol=0, atol=1e-8)


def test_chains_in_other_processes():
    arguments = {"num_chains": 4, "batch_size": 2, "seed": 1, "progress": False}
    posterior = posterior_of(poisson, 1, count)
    one, two = (sample(posterior, HMC(0.05, 2), 3, workers=workers, **arguments) for workers in (1, 2))
    assert torch.equal(one.draws, two.draws)


@pytest.mark.parametrize("likelihood", [Counts(), CountsByHand(), poisson])
def test_calibration_runs(likelihood):
    """As few data sets as there may be, for targets that are made up."""
    posterior, first = posterior_of(likelihood, 1, count), {"first": lambda theta: theta[..., 0]}
    found = simulation_based_calibration(posterior, HMC(0.05, 2), first, 40, 1, 1, progress=False)
    assert found.ranks.shape == (40, 2)


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
@pytest.mark.parametrize("likelihood", [Counts(), poisson, Bernoulli()])
def test_made_in_inference_mode(likelihood, gradient):
    """Tensors made there are closed to autograd, unless they are copied."""
    y, expected = count % 2, posterior_of(likelihood, 1, count % 2, gradient=gradient)
    with torch.inference_mode():
        made = posterior_of(likelihood, 1, y + 0, gradient=gradient)
        both = made.with_targets(torch.stack([y, y]))
    theta = normal(2, 3)
    for posterior, rows in ((made, theta), (made, theta[:1]), (both, theta)):
        for one, two in zip(posterior.log_prob_and_grad(rows), expected.log_prob_and_grad(rows), strict=True):
            torch.testing.assert_close(one, two)


# --- outputs and targets for which there is no density ----------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300])
@pytest.mark.parametrize(
    ("likelihood", "num", "y"),
    [*OWN.values(), *((ByDistribution(function), num, y) for function, num, y in FUNCTIONS.values())],
    ids=[*OWN, *(f"{name} of torch" for name in FUNCTIONS)],
)
def test_what_diverged_is_no_error(likelihood, num, y, value):
    """A run would end; in density, gradient and mean. Of torch itself, all checks are as they were."""
    good = normal(2, 12, num)
    y = likelihood.targets(y, good[0])
    bad = torch.cat([good[:1], torch.full_like(good[:1], value)])
    values, grads = likelihood.log_prob(bad, y.expand(2, *y.shape)), likelihood.grad(bad, y.expand(2, *y.shape))
    torch.testing.assert_close(values[0], likelihood.log_prob(good[0], y))
    torch.testing.assert_close(grads[0], likelihood.grad(good[0], y))
    assert values.shape == (2,)
    assert grads.shape == bad.shape
    assert not values[1] > 1e3, "a density"
    with pytest.raises(ValueError, match="Expected parameter rate"):
        D.Poisson(vector(math.nan))


@pytest.mark.parametrize(
    ("function", "num", "y"),
    [
        (lambda o: D.MultivariateNormal(o, o[..., :1, None].exp() * torch.eye(2)), 2, pairs),
        (lambda o: D.LowRankMultivariateNormal(o, o[..., None], o.exp()), 2, pairs),
        (lambda o: D.Normal(o[..., 0], 1.0, validate_args=True), 1, real),
    ],
)  # fmt: skip
def test_a_run_that_would_end_does_not_begin(function, num, y):
    """Torch decomposes matrices, and checks what it is told to check, whatever its default is."""
    with pytest.raises(
        ValueError, match=r"raises an error where outputs are NaN, .*give a MultivariateNormal its scale_tril"
    ):
        posterior_of(function, num, y)


NO_PARAMETERS = {  # torch computes some number for each, unless it checks
    "Poisson": (lambda o: D.Poisson(o[..., 0]), 0.0),
    "Bernoulli": (lambda o: D.Bernoulli(probs=1 - o[..., 0]), 1.0),
    "Categorical": (lambda o: D.Categorical(probs=torch.cat([o, 2 - o], -1)), 1.0),
    "Dirichlet": (lambda o: D.Dirichlet(torch.cat([o - 0.5, 2 - o], -1)), vector(0.5, 0.5)),
    "Gamma": (lambda o: D.Gamma(o[..., 0] - 0.5, 1.0), 1.0),
    "in vectors": (lambda o: D.Independent(D.Poisson(torch.cat([o, o + 9], -1)), 1), vector(0, 1)),
    "in a mixture": (
        lambda o: D.MixtureSameFamily(D.Categorical(torch.ones(2)), D.Poisson(torch.cat([o, o + 9], -1))),
        0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "y"), NO_PARAMETERS.values(), ids=NO_PARAMETERS)
def test_parameters_that_are_none(function, y):
    """Of an output of -1, which is one too many; at 1 all is well."""
    y = torch.as_tensor(y, dtype=torch.float64).expand(1, *torch.as_tensor(y).shape)
    outputs = vector(1, -1).view(2, 1, 1)
    values = ByDistribution(function).log_prob(outputs, y.expand(2, *y.shape))
    torch.testing.assert_close(values[0], function(outputs[0]).log_prob(y).sum())
    assert values[1].isnan()


OUTSIDE = {  # a target of 1, which needs an output below 1
    "Pareto": lambda o: D.Pareto(o[..., 0], 2.0),
    "Uniform": lambda o: D.Uniform(o[..., 0], o[..., 0] + 2),
    "shifted": lambda o: D.TransformedDistribution(D.Exponential(vector(1)), D.AffineTransform(o[..., 0], 1.0)),
    "shifted vectors": lambda o: D.TransformedDistribution(
        D.Independent(D.Gamma(torch.ones_like(o), 1.0), 1), D.AffineTransform(o, 1.0, event_dim=1)
    ),
}


@pytest.mark.parametrize("function", OUTSIDE.values(), ids=OUTSIDE)
def test_targets_that_parameters_exclude(function):
    """A density of 0, where torch would raise an error, or compute something without its checks."""
    likelihood, outputs = ByDistribution(function), vector(0.25, 1.5).view(2, 1, 1)
    y = torch.ones(2, 1, *function(outputs).event_shape, dtype=torch.float64)
    values = likelihood.log_prob(outputs, y)
    torch.testing.assert_close(values[0], function(outputs[:1]).log_prob(y[:1]).sum())
    assert values[1] == -math.inf
    assert likelihood.grad(outputs, y).shape == (2, 1, 1)


def test_a_mixture_of_shifted_ones():
    """A part that excludes the target takes no part; by hand, log(e^-0.75 / 2)."""

    def function(outputs):
        places = torch.cat([outputs, outputs + 10], dim=-1)
        shifted = D.TransformedDistribution(D.Exponential(torch.ones_like(places)), D.AffineTransform(places, 1.0))
        return D.MixtureSameFamily(D.Categorical(torch.ones_like(places)), shifted)

    value = ByDistribution(function).log_prob(vector(0.25).view(1, 1), vector(1))
    assert value.item() == pytest.approx(-0.75 - math.log(2))


def test_targets_that_the_networks_own_parameters_exclude():
    with pytest.raises(ValueError, match=r"which Pareto cannot give at this network's own parameters: its support is"):
        posterior_of(lambda o: D.Pareto(9 + o[..., 0].exp(), 2.0), 1, positive)


@pytest.mark.parametrize("y", [[-1, 0], [0.5, 1]])
def test_targets_that_a_class_cannot_give(y):
    """A class of the reader's own need not check them."""
    y = torch.tensor(y)
    with pytest.raises(ValueError, match=f"y holds {y[0]:g}, which Poisson cannot give"):
        Posterior(nn.Linear(2, 1), Data(X[:2], y), NormalPrior(1.0), Counts())
    fine = Posterior(nn.Linear(2, 1), Data(X[:2], torch.ones(2)), NormalPrior(1.0), Counts())
    for refused in (lambda: fine.with_targets(y), lambda: fine.log_likelihoods(normal(3), Data(X[:2], y))):
        with pytest.raises(ValueError, match=f"y holds {y[0]:g}"):
            refused()


def test_densities_in_another_dtype():
    data = Data(X, real).to(torch.float32)
    with pytest.raises(ValueError, match=r"the log likelihood comes as torch.float64, but .* in torch.float32"):
        Posterior(nn.Linear(2, 1), data, NormalPrior(1.0), lambda o: D.Normal(o[..., 0], torch.ones(12).double()))
    with pytest.raises(ValueError, match=r"y is torch.complex64: take real numbers, such as y.real"):
        Data(X, real.to(torch.complex64))


# --- what a subclass inherits -----------------------------------------------------------------------------------------


class TwiceTheOnes(Bernoulli):
    def log_probs(self, outputs, y):
        return (1 + y) * super().log_probs(outputs, y)


class AsNumbers(Bernoulli):
    def distribution(self, outputs):
        return D.Normal(outputs.squeeze(-1), 0.7)


class Cooler(Categorical):
    def distribution(self, outputs):
        return D.Categorical(logits=outputs / 2)


class Shifted(Gaussian):
    def _residual(self, outputs, y):
        residual, log_scale = super()._residual(outputs, y)
        return residual.tanh(), log_scale


class Doubled(Gaussian):
    def _split(self, outputs):
        mean, log_scale = super()._split(outputs)
        return mean.square(), log_scale


class Half(Bernoulli):
    def log_prob(self, outputs, y):
        return super().log_prob(outputs, y) / 2


class Mixin:
    def log_probs(self, outputs, y):
        return super().log_probs(outputs, y) * 3


class Mixed(Mixin, Bernoulli):
    pass


class WithItsOwn(Likelihood):
    power = 2.0

    def targets(self, y, outputs):
        return y.to(outputs.dtype)

    def distribution(self, outputs):
        return D.Normal(outputs[..., 0] ** self.power, 1.0)

    def grad(self, outputs, y):
        return 2 * outputs * (y - outputs[..., 0] ** 2)[..., None]


class Cubic(WithItsOwn):
    power = 3.0


class Grandchild(TwiceTheOnes):
    def distribution(self, outputs):
        return D.Normal(outputs.squeeze(-1), 0.7)


def bce(outputs, y):
    return y * outputs[..., 0] - outputs[..., 0].exp().log1p()


def as_numbers(outputs, y):
    return D.Normal(outputs[..., 0], 0.7).log_prob(y)


SUBCLASSES = {  # number of outputs, targets, log likelihoods, mean of outputs
    TwiceTheOnes(): (1, count % 2, lambda o, y: (1 + y) * bce(o, y), lambda o: o[..., 0].sigmoid()),
    AsNumbers(): (1, count % 2, as_numbers, lambda o: o[..., 0]),
    Cooler(): (4, count, lambda o, y: D.Categorical(logits=o / 2).log_prob(y), lambda o: (o / 2).softmax(-1)),
    Shifted(2.0): (
        1, real, lambda o, y: -((y - o[..., 0]) / 2).tanh() ** 2 / 2 - math.log(2 * math.sqrt(2 * math.pi)), None,
    ),
    Doubled(2.0): (1, real, lambda o, y: D.Normal(o[..., 0] ** 2, 2.0).log_prob(y), lambda o: o[..., 0] ** 2),
    Mixed(): (1, count % 2, lambda o, y: 3 * bce(o, y), lambda o: o[..., 0].sigmoid()),
    Cubic(): (1, real, lambda o, y: D.Normal(o[..., 0] ** 3, 1.0).log_prob(y), lambda o: o[..., 0] ** 3),
    WithItsOwn(): (1, real, lambda o, y: D.Normal(o[..., 0] ** 2, 1.0).log_prob(y), lambda o: o[..., 0] ** 2),
    Grandchild(): (1, count % 2, as_numbers, lambda o: o[..., 0]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("likelihood", "case"), SUBCLASSES.items(), ids=[type(likelihood).__name__ for likelihood in SUBCLASSES]
)
def test_a_subclass_has_its_own_density(likelihood, case):
    """Fails where it keeps the gradient, log_probs or mean of the class above; by plain autograd of what it means."""
    num, y, log_probs, mean = case
    posterior, theta = posterior_of(likelihood, num, y), normal(3, 3 * num).requires_grad_()
    outputs = posterior.outputs(theta, X)
    expected = log_probs(outputs, posterior.data.y)
    torch.testing.assert_close(likelihood.log_probs(outputs, posterior.data.y), expected)
    torch.testing.assert_close(posterior.log_likelihoods(theta.detach()), expected.detach())
    (slope,) = torch.autograd.grad(expected.sum(), theta)
    value, grad = posterior.density(3).likelihood.log_prob_and_grad(theta.detach())
    torch.testing.assert_close(value, expected.sum(-1).detach())
    torch.testing.assert_close(grad, slope)
    if mean is not None:
        torch.testing.assert_close(posterior.predict(theta.detach(), X), mean(outputs).detach())


def test_a_subclass_of_the_same_density_keeps_the_closed_form():
    class Renamed(Bernoulli):
        extra = 1

        def targets(self, y, outputs):
            return super().targets(y, outputs)

        def __repr__(self):
            return "by another name"

    for name in ("log_probs", "grad", "log_prob", "mean"):
        assert getattr(Renamed, name) is getattr(Bernoulli, name)


def test_a_log_prob_that_is_no_sum():
    """The chain is right; points have no log likelihoods, and none can be weighed."""
    posterior = posterior_of(Half(), 1, count % 2)
    theta = normal(3, 3)
    value, grad = posterior.density(3).likelihood.log_prob_and_grad(theta)
    expected, slope = posterior_of(Bernoulli(), 1, count % 2).density(3).likelihood.log_prob_and_grad(theta)
    torch.testing.assert_close((value, grad), (expected / 2, slope / 2))
    with pytest.raises(ValueError, match=r"Half has a log_prob of its own, .* not the sum of its log_probs"):
        posterior.log_likelihoods(theta)
    with pytest.raises(ValueError, match="Half has a log_prob of its own"):
        posterior_of(Half(), 1, count % 2, weights=torch.ones(12))


@pytest.mark.parametrize("likelihood", [TwiceTheOnes(), Half(), Shifted(2.0)])
def test_a_density_that_nothing_is_drawn_from_is_not_calibrated(likelihood):
    posterior = posterior_of(likelihood, 1, count % 2)
    with pytest.raises(ValueError, match=r"their log density is .*, but their log likelihood is"):
        simulation_based_calibration(posterior, HMC(0.05, 2), {}, 40, 1, 1, progress=False)


def test_parts_that_do_not_fit_each_other():
    likelihood = Bernoulli()
    likelihood.log_probs = lambda outputs, y: bce(outputs, y) / 2
    with pytest.raises(ValueError, match="this Bernoulli has an attribute 'log_probs' that hides its method"):
        posterior_of(likelihood, 1, count % 2)

    with pytest.MonkeyPatch.context() as patch:  # of the class, which no subclass notices
        patch.setattr(Bernoulli, "log_probs", lambda self, outputs, y: bce(outputs, y) / 2)
        with pytest.raises(ValueError, match=r"Bernoulli.grad is not the gradient of its log_prob"):
            posterior_of(Bernoulli(), 1, count % 2)

    class Wrong(Bernoulli):
        def grad(self, outputs, y):
            return 2 * super().grad(outputs, y)

    with pytest.raises(ValueError, match=r"Wrong.grad is not the gradient of its log_prob: .* it is off by 0.5"):
        posterior_of(Wrong(), 1, count % 2)


# --- expected targets -------------------------------------------------------------------------------------------------


def test_classes_by_a_function_have_probabilities():
    outputs = normal(5, 12, 4)
    for function in (lambda o: D.Categorical(logits=o), lambda o: D.OneHotCategorical(probs=o.softmax(-1))):
        torch.testing.assert_close(ByDistribution(function).mean(outputs), outputs.softmax(-1))
    several = ByDistribution(lambda o: D.Independent(D.Categorical(logits=o.unflatten(-1, (2, 2))), 1))
    torch.testing.assert_close(several.mean(outputs), outputs.unflatten(-1, (2, 2)).softmax(-1))
    mixed = ByDistribution(
        lambda o: D.MixtureSameFamily(D.Categorical(vector(0.25, 0.75)), D.Categorical(logits=o.unflatten(-1, (2, 2))))
    )
    torch.testing.assert_close(mixed.mean(outputs), vector(0.25, 0.75) @ outputs.unflatten(-1, (2, 2)).softmax(-1))


def test_means_of_vectors():
    """In the shape of a target; of mixtures as torch has them."""
    for name in ("Dirichlet", "Multinomial", "Normals", "Wishart", "a mixture"):
        function, num, y = FUNCTIONS[name]
        found = posterior_of(function, num, y).predict(normal(5, 3 * num), X)
        assert found.shape == (5, *y.shape)
        outputs = normal(5, 12, num)
        torch.testing.assert_close(ByDistribution(function).mean(outputs), function(outputs).mean)


@pytest.mark.parametrize(
    "function",
    [
        lambda o: D.Cauchy(o[..., 0], 1.0),
        lambda o: D.StudentT(1.0, o[..., 0]),
        lambda o: D.HalfCauchy(o[..., 0].exp()),
        lambda o: D.TransformedDistribution(D.Normal(o[..., 0], 1.0), D.ExpTransform()),
    ],
)  # fmt: skip
def test_where_there_is_no_mean(function):
    with pytest.raises(
        ValueError, match=r"has no mean, or torch knows none, .* look at quantiles of simulated targets"
    ):
        posterior_of(function, 1, positive).predict(normal(5, 3), X)


@pytest.mark.parametrize("value", [1e4, math.inf, math.nan])
def test_a_draw_that_diverged_has_a_mean(value):
    """It overflows, or is no number, and others are as they were."""
    likelihood = ByDistribution(poisson)
    assert not likelihood.mean(torch.full((2, 12, 1), value)).isfinite().any()
    outputs = torch.cat([normal(1, 12, 1), torch.full((1, 12, 1), value, dtype=torch.float64)])
    torch.testing.assert_close(likelihood.mean(outputs)[0], outputs[0, :, 0].exp())
