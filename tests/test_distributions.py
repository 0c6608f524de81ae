"""Torch's distributions as densities of theta: which are over the whole line, and that none ends a run."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import cumulative_trapezoid
from torch import distributions as D
from torch import nn

from bnn_utils import HMC, Bernoulli, Data, ElementPrior, Posterior, sample
from targets import FALSE_ALARM, generator, normal, vector

LOG = D.ExpTransform().inv


def transformed(base, *transforms):
    return D.TransformedDistribution(base, list(transforms))


def mixture(*parts):
    stacked = type(parts[0])(*(torch.stack([getattr(part, name) for part in parts]) for name in ("loc", "scale")))
    return D.MixtureSameFamily(D.Categorical(vector(0.25, 0.75)), stacked)


def log_of(density):
    """Log density of the logarithm of a positive variable."""
    return lambda theta: density.logpdf(np.exp(theta)) + theta


def mixed(theta):
    return np.logaddexp(*(np.log(w) + stats.norm(m, s).logpdf(theta) for w, m, s in ((0.25, 0, 1), (0.75, 1, 0.5))))


# distribution of one number, and its log density by SciPy
LINE = {
    "Normal": (D.Normal(0.25, 0.5), stats.norm(0.25, 0.5).logpdf),
    "Laplace": (D.Laplace(0.25, 0.5), stats.laplace(0.25, 0.5).logpdf),
    "Cauchy": (D.Cauchy(0.25, 0.5), stats.cauchy(0.25, 0.5).logpdf),
    "StudentT": (D.StudentT(3.0, 0.25, 0.5), stats.t(3, 0.25, 0.5).logpdf),
    "Gumbel": (D.Gumbel(0.25, 0.5), stats.gumbel_r(0.25, 0.5).logpdf),
    "LogitRelaxedBernoulli": (
        D.relaxed_bernoulli.LogitRelaxedBernoulli(torch.tensor(2.0), logits=torch.tensor(0.5)),
        stats.logistic(0.25, 0.5).logpdf,
    ),
    "log of HalfCauchy": (transformed(D.HalfCauchy(0.5), LOG), log_of(stats.halfcauchy(0, 0.5))),
    "log of HalfNormal": (transformed(D.HalfNormal(0.5), LOG), log_of(stats.halfnorm(0, 0.5))),
    "log of Gamma": (transformed(D.Gamma(2.0, 0.5), LOG), log_of(stats.gamma(2, scale=2))),
    "log of InverseGamma": (transformed(D.InverseGamma(2.0, 0.5), LOG), log_of(stats.invgamma(2, scale=0.5))),
    "log of Weibull": (transformed(D.Weibull(0.5, 2.0), LOG), log_of(stats.weibull_min(2, scale=0.5))),
    "log of Exponential, doubled": (
        transformed(D.Exponential(1.0), D.AffineTransform(0.0, 2.0), LOG),
        log_of(stats.expon(0, 2)),
    ),
    "logit of Beta": (
        transformed(D.Beta(2.0, 3.0), D.SigmoidTransform().inv),
        lambda t: stats.beta(2, 3).logpdf(1 / (1 + np.exp(-t))) - t - 2 * np.logaddexp(0, -t),
    ),
    "logistic": (
        transformed(D.Uniform(0.0, 1.0), D.SigmoidTransform().inv, D.AffineTransform(0.25, 0.5)),
        stats.logistic(0.25, 0.5).logpdf,
    ),
    "composed": (
        transformed(D.HalfNormal(1.0), D.ComposeTransform([LOG, D.AffineTransform(0.25, -0.5)])),
        lambda t: log_of(stats.halfnorm())((t - 0.25) / -0.5) + math.log(2),
    ),
    "nested": (
        transformed(transformed(D.HalfNormal(1.0), LOG), D.AffineTransform(0.25, 0.5)),
        lambda t: log_of(stats.halfnorm())((t - 0.25) / 0.5) + math.log(2),
    ),
    "log of a mixture": (
        transformed(mixture(D.LogNormal(0.0, 1.0), D.LogNormal(1.0, 0.5)), LOG),
        mixed,
    ),
    "mixture": (
        mixture(D.Normal(0.0, 1.0), D.Normal(1.0, 0.5)),
        mixed,
    ),
    "Independent of nothing": (D.Independent(D.Normal(0.25, 0.5), 0), stats.norm(0.25, 0.5).logpdf),
}
line = pytest.mark.parametrize(("one", "expected"), LINE.values(), ids=LINE)
data = Data(normal(4, 2), torch.arange(4) % 2)


@line
def test_against_scipy(one, expected):
    """In double precision, although a distribution of Python's numbers keeps them in single."""
    posterior = Posterior(nn.Linear(2, 1), data, ElementPrior(one), Bernoulli())
    theta = normal(5, 3)
    values = posterior.log_prior(theta)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, vector(*(sum(map(expected, row)) for row in theta.tolist())), rtol=1e-10, atol=0)
    _, grad = posterior.density(5).prior.log_prob_and_grad(theta)
    nudge = 1e-6 * torch.eye(3, dtype=torch.float64)[1]
    slope = (posterior.log_prior(theta + nudge) - posterior.log_prior(theta - nudge)) / 2e-6
    torch.testing.assert_close(grad[:, 1], slope, rtol=1e-6, atol=1e-6)


@line
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_diverged_is_no_error(one, expected, dtype):
    """Density and gradient of NaN, infinite and very large elements; torch's own object checks as before."""
    before = vars(one).copy()
    posterior = Posterior(nn.Linear(2, 1), data.to(dtype), ElementPrior(one), Bernoulli())
    theta = torch.tensor([math.nan, math.inf, -math.inf, 1e300, -1e300], dtype=dtype)[:, None].expand(5, 3)
    value, grad = posterior.density(5).prior.log_prob_and_grad(torch.cat([normal(1, 3).to(dtype), theta]))
    assert value.dtype == grad.dtype == posterior.sample_prior(2, generator()).dtype == dtype
    assert value[0].isfinite()
    assert grad[0].isfinite().all()
    assert not (value[1:] > 0).any()
    assert all(vars(one)[name] is kept for name, kept in before.items())
    if not isinstance(one, D.Independent):
        with pytest.raises(ValueError, match="Expected value argument"):
            one.log_prob(torch.tensor(math.nan))


@line
@pytest.mark.statistical
def test_prior_draws(one, expected):
    """Kolmogorov-Smirnov of 3,000 draws inside [-40, 40] against the density, added up on a grid."""
    posterior = Posterior(nn.Linear(2, 1), data, ElementPrior(one), Bernoulli())
    draws = posterior.sample_prior(1000, generator()).flatten().numpy()
    grid = np.linspace(-40, 40, 8001)
    below = cumulative_trapezoid(np.exp(expected(grid)), grid, initial=0)
    inside = draws[abs(draws) < 40]
    found = stats.kstest(inside, lambda places: np.interp(places, grid, below / below[-1]))
    assert found.pvalue > FALSE_ALARM / len(LINE)


def test_a_prior_goes_to_other_processes():
    """Torch's inverse transforms forget there what they invert."""
    posterior = Posterior(nn.Linear(2, 1), data, ElementPrior(transformed(D.HalfCauchy(0.5), LOG)), Bernoulli())
    theta = normal(5, 3)
    copied = pickle.loads(pickle.dumps(posterior))
    assert torch.equal(copied.log_prior(theta), posterior.log_prior(theta))
    arguments = {"num_chains": 4, "batch_size": 2, "seed": 1, "progress": False}
    one, two = (sample(posterior, HMC(0.05, 2), 3, workers=workers, **arguments) for workers in (1, 2))
    assert torch.equal(one.draws, two.draws)


def test_a_run_with_divergences():
    """Steps that are far too long, so that theta overflows: they are rejected, and the run goes on."""
    posterior = Posterior(nn.Linear(2, 1), data, ElementPrior(transformed(D.HalfCauchy(0.5), LOG)), Bernoulli())
    chain = sample(posterior, HMC(1e200, 3), 5, num_chains=3, progress=False)
    assert chain.draws.isfinite().all()


NOT_THE_LINE = {
    "positive": D.Gamma(1.0, 1.0),
    "an interval": D.Uniform(-1.0, 1.0),
    "counts": D.Poisson(1.0),
    "shifted": transformed(D.Exponential(1.0), D.AffineTransform(-30.0, 1.0)),
    "mirrored": transformed(D.HalfNormal(1.0), D.AffineTransform(0.0, -1.0)),
    "log of what is shifted": transformed(D.Exponential(1.0), D.AffineTransform(1.0, 1.0), LOG),
    "logit of a part": transformed(D.Uniform(0.0, 0.5), D.SigmoidTransform().inv),
    "tanh": transformed(D.Normal(0.0, 1.0), D.TanhTransform()),
    "nested": transformed(transformed(D.Exponential(1.0), D.AffineTransform(0.0, 1.0)), D.AffineTransform(1.0, 1.0)),
    "a circle": D.VonMises(0.0, 1.0),
    "a circle, shifted": transformed(D.VonMises(0.0, 1.0), D.AffineTransform(1.0, 1.0)),
    "a mixture": D.MixtureSameFamily(D.Categorical(torch.ones(2)), D.HalfNormal(torch.ones(2))),
}


@pytest.mark.parametrize("one", NOT_THE_LINE.values(), ids=NOT_THE_LINE)
def test_what_is_no_density_over_the_line(one):
    """Torch calls some supports larger than they are; outside, the density would be made up."""

    class Mine:
        def distribution(self, flat):
            return D.Independent(one.expand((flat.dim,)), 1)

    with pytest.raises(ValueError, match="is no density over all real numbers"):
        Posterior(nn.Linear(2, 1), data, Mine(), Bernoulli())


@pytest.mark.parametrize("name", ["counts", "log of what is shifted", "logit of a part", "a circle"])
def test_what_is_no_density_in_an_interval(name):
    """The others are: a parameter is brought to where they are, see test_scales.py."""
    with pytest.raises(ValueError, match="is no density of a number in an interval"):
        ElementPrior(NOT_THE_LINE[name])


# --- priors of the reader's own ---------------------------------------------------------------------------------------


class Funnel(D.Distribution):
    """A scale that is the first element's exponential: makes torch's distributions out of theta."""

    arg_constraints = {}  # noqa: RUF012 (as torch has them)

    def __init__(self, dim):
        super().__init__(event_shape=(dim,))

    def log_prob(self, theta):
        others = D.Normal(0.0, theta[..., :1].exp()).log_prob(theta[..., 1:])
        return D.Normal(0.0, 1.0).log_prob(theta[..., 0]) + others.sum(-1)

    def sample(self, sample_shape=()):
        first = D.Normal(torch.zeros(1, dtype=torch.float64), 1.0).sample(sample_shape)
        return torch.cat([first, first.exp() * torch.randn(*sample_shape, 2, dtype=torch.float64)], -1)


OWN = {
    "Independent": lambda flat: D.Independent(D.Normal(torch.zeros(flat.dim), 0.5), 1),
    "MultivariateNormal": lambda flat: D.MultivariateNormal(torch.zeros(flat.dim), 0.25 * torch.eye(flat.dim)),
    "checked": lambda flat: D.Independent(D.Normal(torch.zeros(3), 0.5, validate_args=True), 1, validate_args=True),
    "a mixture": lambda flat: D.MixtureSameFamily(
        D.Categorical(torch.ones(2)), D.Independent(D.Normal(torch.zeros(2, flat.dim), 0.5), 1)
    ),
    "logs": lambda flat: D.Independent(transformed(D.LogNormal(torch.zeros(flat.dim), 0.5), LOG), 1),
    "a class": lambda flat: Funnel(flat.dim),
}


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_priors_of_the_readers_own(make):
    """Checked by torch, in single precision: the posterior's copy is neither, and the reader's object stays both."""
    made = []

    class Mine:
        def distribution(self, flat):
            made.append(make(flat))
            return made[-1]

    posterior = Posterior(nn.Linear(2, 1), data, Mine(), Bernoulli())
    theta = normal(2, 3)
    if not isinstance(made[0], Funnel):
        torch.testing.assert_close(posterior.log_prior(theta), D.Normal(0, vector(0.5)).log_prob(theta).sum(-1))
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1e300, -1e300], dtype=torch.float64)[:, None].expand(5, 3)
    value, grad = posterior.density(6).prior.log_prob_and_grad(torch.cat([theta[:1], bad]))
    torch.testing.assert_close(value[0], posterior.log_prior(theta[0]))
    assert grad[0].isfinite().all()
    assert not (value[1:] > 0).any()
    assert posterior.sample_prior(2, generator()).dtype == torch.float64
    with pytest.raises(ValueError, match="Expected"):
        made[0].log_prob(torch.full((3,), math.nan))


def test_a_prior_that_raises():
    class Strict(Funnel):
        def log_prob(self, theta):
            return D.Independent(D.Normal(torch.zeros_like(theta), 1.0, validate_args=True), 1).log_prob(theta)

    class Mine:
        def distribution(self, flat):
            return Strict(flat.dim)

    with pytest.raises(ValueError, match=r"raises an error where theta is NaN, .*: Expected value argument"):
        Posterior(nn.Linear(2, 1), data, Mine(), Bernoulli())


def test_a_prior_in_another_dtype():
    class Mine:
        def distribution(self, flat):
            return self

        def log_prob(self, theta):
            return -theta.float().square().sum(-1)

    with pytest.raises(ValueError, match=r"the log prior comes as torch.float32, but this posterior computes in"):
        Posterior(nn.Linear(2, 1), data, Mine(), Bernoulli())
