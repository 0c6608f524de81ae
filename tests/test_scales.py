"""Scales that are inferred, parameters with bounds and flat priors: densities, draws, and what the network computes."""

import math

import pytest
import torch
from scipy import stats
from scipy.stats import halfcauchy, halfnorm, kstest
from torch import nn
from torch.distributions import (
    Beta,
    Cauchy,
    Chi2,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
    Uniform,
    Weibull,
)

from bnn_utils import (
    HMC,
    NUTS,
    SGLD,
    Bernoulli,
    ByInput,
    Data,
    ElementPrior,
    Flat,
    FlatModule,
    Gaussian,
    HierarchicalPrior,
    Log,
    LogScale,
    Posterior,
    ReplicaExchange,
    Symmetric,
    fit_reference,
    sample,
    sbc,
)
from bnn_utils.distributions import unchecked
from bnn_utils.families import ClosedForm, family, grouped
from bnn_utils.symmetry import draw_copies


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def network(*extra):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), *extra).double()


DATA = Data(normal(20, 3, seed=1), (normal(20, seed=2) > 0).double())
SCALES = {"0.weight": ByInput(HalfCauchy(1.5)), "2.weight": HalfNormal(0.7), "*.bias": 2.0}


@pytest.fixture(scope="module", params=[False, True], ids=["not centred", "centred"])
def posterior(request):
    return Posterior(network(), DATA, HierarchicalPrior(SCALES, centred=request.param), Bernoulli())


# --- closed forms -----------------------------------------------------------------------------------------------------

ON_THE_LINE = [Normal(0.5, 2.0), StudentT(4.0, 0.5, 2.0), Cauchy(-1.0, 0.5), Laplace(0.5, 2.0)]
POSITIVE = [
    HalfCauchy(2.5), HalfNormal(0.7), Exponential(3.0), Gamma(2.5, 3.0), Chi2(3.0), InverseGamma(2.0, 3.0),
    LogNormal(0.5, 0.7), Weibull(2.0, 1.5),
]  # fmt: skip


def of_element(distribution, like):
    return ClosedForm([], [family(distribution)], like)


@pytest.mark.parametrize("one", ON_THE_LINE + POSITIVE, ids=lambda one: type(one).__name__)
def test_closed_forms_are_torchs_densities(one):
    """Of the logarithm where a number is positive; value and slope, also far out."""
    u = torch.tensor([-30.0, -3.0, -0.4, 0.0, 0.3, 2.0, 6.0], dtype=torch.float64, requires_grad=True)
    double = unchecked(one, u)
    expected = double.log_prob(u) if one in ON_THE_LINE else double.log_prob(u.exp()) + u
    (slope,) = torch.autograd.grad(expected.sum(), u)
    found = of_element(one, u.detach())
    theta = u.detach()[:, None]
    torch.testing.assert_close(found.log_prob(theta), expected.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.grad(theta)[:, 0], slope, rtol=1e-6, atol=1e-9)


def test_where_numbers_overflow_the_density_is_0():
    """exp(u) is infinite there: -inf, which is rejected, or the tail's own value; never NaN."""
    far = torch.tensor([[1e4], [-1e4]], dtype=torch.float64)
    for one in (*ON_THE_LINE, *POSITIVE):
        value = of_element(one, far).log_prob(far)
        assert not value.isnan().any(), one
        assert (value < -80).all() or isinstance(one, (Cauchy, StudentT)), one


def test_elements_are_grouped_by_kind():
    groups, constant = grouped(
        [family(one) for one in (Normal(0.0, 1.0), Laplace(0.0, 1.0), Normal(1.0, 2.0))], normal(3)
    )
    assert [(kind, places.tolist()) for kind, places, _ in groups] == [("normal", [0, 2]), ("laplace", [1])]
    assert constant == pytest.approx(-math.log(2 * math.pi) - 2 * math.log(2))


# --- from theta to parameters -----------------------------------------------------------------------------------------


def test_parameters_of_theta(posterior):
    """Scales in columns of the first layer and one for the second; biases are what they are."""
    theta = normal(5, posterior.dim)
    assert posterior.names[-4:] == [*(f"log_scale(0.weight[:,{j}])" for j in range(3)), "log_scale(2.weight)"]
    assert posterior.dim == posterior.flat.dim + 4
    raw, found = posterior.flat.unravel(theta[:, :-4]), posterior.flat.unravel(posterior.parameters(theta))
    scales = theta[:, -4:].exp() if "centred" not in repr(posterior.prior) else torch.ones(5, 4, dtype=torch.float64)
    torch.testing.assert_close(found["0.weight"], raw["0.weight"] * scales[:, None, :3])
    torch.testing.assert_close(found["2.weight"], raw["2.weight"] * scales[:, None, 3:])
    assert torch.equal(found["0.bias"], raw["0.bias"])
    assert torch.equal(posterior.parameters(posterior.theta(found_flat := posterior.flat.ravel())), found_flat)


def test_the_log_prior_is_the_one_that_is_written(posterior):
    theta = normal(6, posterior.dim)
    parameters, log_scales = posterior.flat.unravel(posterior.parameters(theta)), theta[:, -4:]
    expected = HalfCauchy(1.5).log_prob(log_scales[:, :3].exp()).sum(-1) + HalfNormal(0.7).log_prob(
        log_scales[:, 3].exp()
    )
    expected = expected + log_scales.sum(-1)
    for name, scale in (
        ("0.weight", log_scales[:, None, :3].exp()),
        ("2.weight", log_scales[:, None, 3:].exp()),
        ("0.bias", torch.full((), 2.0, dtype=torch.float64)),
        ("2.bias", torch.full((), 2.0, dtype=torch.float64)),
    ):
        expected = expected + Normal(0.0, scale.expand(parameters[name].shape)).log_prob(parameters[name]).flatten(
            1
        ).sum(1)
    if "centred" not in repr(posterior.prior):  # the density of z, which is the weight divided by its scale
        expected = expected + 4 * log_scales.sum(-1)
    torch.testing.assert_close(posterior.log_prior(theta), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
@pytest.mark.parametrize("compile", [False, True])
def test_gradients(posterior, gradient, compile):
    if gradient == "autograd" and compile:
        pytest.skip("native code is for the closed form")
    posterior = Posterior(network(), DATA, posterior.prior, Bernoulli(), gradient)
    theta = normal(5, posterior.dim).requires_grad_()
    value = posterior.log_prob(theta)
    (expected,) = torch.autograd.grad(value.sum(), theta)
    density = posterior.density(5, compile)
    found, grad = density.joint.log_prob_and_grad(theta.detach())
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(density.joint.grad(theta.detach()), expected)
    torch.testing.assert_close(density.likelihood.grad(theta.detach()) + density.prior.grad(theta.detach()), expected)


def test_predictions_are_of_the_parameters(posterior):
    theta, x = normal(4, posterior.dim), normal(7, 3, seed=3)
    expected = torch.stack([posterior.flat(row, x)[:, 0].sigmoid() for row in posterior.parameters(theta)])
    torch.testing.assert_close(posterior.predict(theta, x), expected)
    torch.testing.assert_close(posterior.outputs(theta, x)[..., 0].sigmoid(), expected)
    log_scores = posterior.log_likelihoods(theta)
    torch.testing.assert_close(log_scores.sum(-1), posterior.log_likelihood(theta))


def test_minibatches_of_all_points_give_the_joint(posterior):
    theta = normal(3, posterior.dim)
    places = torch.arange(20).expand(3, -1)
    for found, expected in zip(
        posterior.density(3).minibatches.log_prob_and_grad(theta, places),
        posterior.log_prob_and_grad(theta),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    assert sample(posterior, SGLD(1e-3, 5), num_samples=3, seed=0, progress=False).draws.isfinite().all()


def test_a_noise_scale_of_a_module_of_ones_own():
    """A half-Cauchy prior in one line: theta holds the logarithm, the module gets the scale."""

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.noise = nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return torch.stack([self.slope * x[:, 0], self.noise.log().expand(len(x))], dim=-1)

    x = normal(30, 1)
    prior = ElementPrior({"noise": HalfCauchy(1.0), "*": Normal(0.0, 1.0)})
    posterior = Posterior(Line().double(), Data(x, 2 * x[:, 0] + normal(30, seed=5)), prior, Gaussian())
    assert posterior.names == ["slope", "log(noise)"]
    theta = torch.tensor([1.5, -0.3], dtype=torch.float64)
    noise = theta[1].exp()
    torch.testing.assert_close(posterior.parameters(theta), torch.stack([theta[0], noise]))
    torch.testing.assert_close(
        posterior.log_prob(theta),
        Normal(0.0, 1.0).log_prob(theta[0])
        + HalfCauchy(1.0).log_prob(noise)
        + theta[1]
        + Normal(theta[0] * x[:, 0], noise).log_prob(posterior.data.y).sum(),
    )
    torch.testing.assert_close(posterior.theta(posterior.flat.ravel()), torch.tensor([0.0, math.log(0.5)]).double())
    # The same for LogScale, whose parameter is the logarithm itself.
    net = nn.Sequential(nn.Linear(1, 1, bias=False), LogScale()).double()
    same = Posterior(
        net, posterior.data, ElementPrior({"1.log_scale": Log(HalfCauchy(1.0)), "*": Normal(0.0, 1.0)}), Gaussian()
    )
    torch.testing.assert_close(same.log_prob(theta), posterior.log_prob(theta))


CDFS = {
    Uniform: stats.uniform(-1.0, 4.0).cdf,
    Beta: stats.beta(2.0, 3.0).cdf,
    Pareto: stats.pareto(1.0, scale=2.0).cdf,
    Gamma: stats.gamma(2.0, scale=1 / 3).cdf,
}


@pytest.mark.parametrize(
    ("one", "name", "low", "high"),
    [
        (Uniform(-1.0, 3.0), "unconstrained(weight[0,0])", -1.0, 3.0),
        (Beta(2.0, 3.0), "unconstrained(weight[0,0])", 0.0, 1.0),
        (Pareto(2.0, 1.0), "unconstrained(weight[0,0])", 2.0, math.inf),
        (Gamma(2.0, 3.0), "log(weight[0,0])", 0.0, math.inf),
    ],
)
@pytest.mark.statistical
def test_bounds_are_kept_and_draws_follow_the_distribution(one, name, low, high):
    """Kolmogorov-Smirnov of 20,000 draws; and theta's density, with the Jacobian, integrates to 1."""
    net = nn.Linear(1, 1, bias=False).double()
    net.weight.data.fill_(2.5)
    posterior = Posterior(net, Data(normal(4, 1), torch.arange(4) % 2), ElementPrior(one), Bernoulli())
    assert posterior.names == [name]
    theta = posterior.sample_prior(20_000, generator(4))
    draws = posterior.parameters(theta)[:, 0]
    assert (draws >= low).all()
    assert (draws <= high).all()
    assert kstest(draws.numpy(), CDFS[type(one)]).pvalue > 1e-4
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    assert posterior.log_prior(grid).exp().sum() * 1e-3 == pytest.approx(1, abs=2e-3)


@pytest.mark.statistical
def test_both_parametrisations_are_one_prior():
    """Scales and weights of 20,000 draws have the same distribution, and scales the one that was given."""
    draws = {}
    for centred in (False, True):
        posterior = Posterior(network(), DATA, HierarchicalPrior(SCALES, centred), Bernoulli())
        theta = posterior.sample_prior(20_000, generator(6 + centred))
        draws[centred] = posterior.parameters(theta)
        assert kstest(theta[:, -4].exp().numpy(), halfcauchy(scale=1.5).cdf).pvalue > 1e-4 / 4
        assert kstest(theta[:, -1].exp().numpy(), halfnorm(scale=0.7).cdf).pvalue > 1e-4 / 4
    for place in (0, 16, 20):  # a weight of each layer, and a bias between and after
        assert kstest(draws[False][:, place].numpy(), draws[True][:, place].numpy()).pvalue > 1e-4 / 6


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("centred", [False, True])
def test_simulation_based_calibration(centred):
    """Ranks of 512 parameters from the prior among draws; fails without the Jacobian of the log scales."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    prior = HierarchicalPrior(
        {"0.weight": ByInput(HalfNormal(1.0)), "2.weight": Gamma(3.0, 2.0), "*.bias": 1.0}, centred
    )
    posterior = Posterior(net, Data(normal(12, 2, seed=8), torch.zeros(12).double()), prior, Bernoulli())
    quantities = {name: lambda theta, k=k: theta[..., k] for k, name in enumerate(posterior.names)}
    quantities["prediction"] = lambda theta: posterior.predict(theta, normal(1, 2, seed=4))[..., 0]
    found = sbc.simulation_based_calibration(
        posterior, HMC(0.15, 12), quantities, num_datasets=512, thin=5, seed=9, progress=False
    )
    assert found.is_calibrated, found.table()


def test_a_run_goes_on_where_it_ended(posterior, tmp_path):
    arguments = {"num_chains": 2, "warmup": 20, "seed": 3, "progress": False}
    whole = sample(posterior, HMC(0.1, 3), num_samples=30, **arguments)
    sample(posterior, HMC(0.1, 3), num_samples=12, store=tmp_path / "run.zarr", **arguments)
    again = sample(posterior, HMC(0.1, 3), num_samples=30, store=tmp_path / "run.zarr", **arguments)
    assert torch.equal(whole.draws, torch.as_tensor(again.draws[:]))
    assert list(whole.summary().index) == posterior.names


def test_copies_leave_the_scales_alone():
    """Where a scale is one of all weights between two layers, units may be exchanged; where each has one, not."""
    posterior = Posterior(network(), DATA, HierarchicalPrior(SCALES), Bernoulli())
    theta = normal(5, posterior.dim)
    copies = draw_copies(posterior.flat, 5, generator())(theta)
    assert torch.equal(copies[:, -4:], theta[:, -4:])
    assert not torch.equal(copies, theta)
    torch.testing.assert_close(posterior.log_prob(copies), posterior.log_prob(theta))
    sample(posterior, Symmetric(HMC(0.1, 3)), num_samples=3, seed=0, progress=False)
    by_unit = HierarchicalPrior({"2.weight": ByInput(HalfNormal(1.0)), "*": 1.0})
    with pytest.raises(ValueError, match="does not treat the hidden units of a layer alike"):
        sample(Posterior(network(), DATA, by_unit, Bernoulli()), Symmetric(HMC(0.1, 3)), num_samples=3, progress=False)


def test_a_reference_covers_the_scales_too():
    posterior = Posterior(network(), DATA, HierarchicalPrior(SCALES), Bernoulli())
    reference = fit_reference(posterior, posterior.sample_prior(50, generator()))
    assert reference.shape == (posterior.dim,)
    kernel = ReplicaExchange(HMC(0.1, 3), 3, reference=reference)
    chain = sample(posterior, kernel, num_samples=5, num_chains=2, warmup=5, seed=1, progress=False)
    assert chain.draws.shape == (2, 5, posterior.dim)


def test_flat_priors_need_starts(tmp_path):
    x = normal(40, 3)
    data = Data(x, x[:, 0] + 0.1 * normal(40, seed=7))
    net = nn.Sequential(nn.Linear(3, 1), LogScale()).double()
    prior = ElementPrior({"1.log_scale": Log(Flat(is_positive=True)), "*": Flat()})
    posterior = Posterior(net, data, prior, Gaussian())
    theta = normal(4, posterior.dim)
    assert torch.equal(posterior.log_prior(theta), theta[:, -1])  # of the scale it is 1, and exp(u) the Jacobian
    with pytest.raises(ValueError, match="a flat prior has no draws: say where chains start, with init="):
        sample(posterior, NUTS(), num_samples=5, progress=False)
    start = posterior.theta(posterior.flat.ravel())
    chain = sample(
        posterior, NUTS(), num_samples=5, num_chains=2, init=start, seed=0, progress=False, store=tmp_path / "run.zarr"
    )
    assert chain.draws.shape == (2, 5, 5)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: HierarchicalPrior(1.0), TypeError, "scales must be a mapping, such as"),
        (lambda: HierarchicalPrior({"*": 1.0}), ValueError, "no scale is to be inferred: give one a distribution"),
        (lambda: HierarchicalPrior({"*": "1"}), TypeError, r"the scale of '\*' must be a positive number, a distri"),
        (
            lambda: HierarchicalPrior({"*": -1.0}),
            ValueError,
            r"the scale of '\*' must be positive and finite, got -1.0",
        ),
        (lambda: HierarchicalPrior({"*": ByInput(1.0)}), TypeError, "must be one of torch.distributions, got 1.0"),
        (lambda: HierarchicalPrior({"*": ByInput(Normal(0.0, 1.0))}), ValueError, r"'\*' can't have the distribution"),
        (lambda: HierarchicalPrior({"*": Beta(1.0, 1.0)}), ValueError, r"'\*' can't have the distribution Beta"),
        (lambda: HierarchicalPrior({"*": Flat(is_positive=True)}), ValueError, "can't have the distribution Flat"),
        (
            lambda: HierarchicalPrior({"*": HalfCauchy(torch.ones(2))}),
            ValueError,
            r"batch shape \(2,\) and event shape \(\)",
        ),
        (
            lambda: HierarchicalPrior({"*": ByInput(HalfCauchy(1.0))}).distribution(FlatModule(nn.Linear(2, 1))),
            ValueError,
            r"bias, of shape \(1,\), has no scale for each input",
        ),
        (lambda: Log(Normal(0.0, 1.0)), ValueError, "is not a distribution of all positive numbers"),
    ],
)
def test_what_is_no_prior(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_vectors_of_another_length(posterior):
    wrong = normal(2, posterior.flat.dim)
    for call in (posterior.log_prob, posterior.parameters, lambda draws: posterior.predict(draws, DATA.x)):
        with pytest.raises(ValueError, match=rf"with this prior it has {posterior.dim} elements, of which"):
            call(wrong)
    with pytest.raises(ValueError, match=rf"parameters have shape \(2, {posterior.dim}\), but this network has"):
        posterior.theta(normal(2, posterior.dim))
