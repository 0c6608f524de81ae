"""Random numbers of the tests, and posteriors whose answers are known."""

import math
import warnings
from types import SimpleNamespace

import torch
from scipy.integrate import cumulative_trapezoid
from torch import nn

from bnn_utils import Data, Gaussian, Likelihood, NormalPrior, Posterior
from bnn_utils.gradients import LogDensity

FALSE_ALARM = 1e-4  # of each statistical test, if its seed were drawn anew


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def density_of(log_prob_and_grad, grad=None):
    """A function of one's own as kernels take a density."""
    return SimpleNamespace(joint=LogDensity(log_prob_and_grad, grad or (lambda theta: log_prob_and_grad(theta)[1])))


# --- a normal prior and normal targets: Gaussian at every temperature -------------------------------------------------

PRECISION, NOISE = 0.25, 0.5  # of the prior; standard deviation of the targets


class Noisy(Likelihood):
    """``y_i ~ Normal(output_i, NOISE)``"""

    def targets(self, y, outputs):
        return y.to(outputs.dtype)

    def distribution(self, outputs):
        return torch.distributions.Normal(outputs.squeeze(-1), NOISE, validate_args=False)


def linear(x, y, prior):
    """Bayesian linear regression: a network of one layer."""
    with warnings.catch_warnings():  # of scales, which are what moments ask for
        warnings.simplefilter("ignore", UserWarning)
        return Posterior(nn.Linear(x.shape[1], 1, bias=False), Data(x, y), prior, Gaussian(NOISE))


def regression(seed=0, num_points=12, dim=3):
    """Random inputs, and targets from random coefficients."""
    x = normal(num_points, dim, seed=seed)
    y = x @ normal(dim, seed=seed + 1) + NOISE * normal(num_points, seed=seed + 2)
    return linear(x, y, NormalPrior(PRECISION))


def exact(posterior, beta=1, reference=None):
    """Mean and covariance of a regression's theta at an inverse temperature, from the prior or from a reference."""
    x, y = posterior.data.x, posterior.data.y
    prior = posterior.prior_distribution.precision
    hot = prior if reference is None else reference**-2
    precision = ((1 - beta) * hot + beta * prior).diag() + beta * x.T @ x / NOISE**2
    covariance = torch.linalg.inv(precision)
    return covariance @ (beta * x.T @ y / NOISE**2), covariance


def with_moments(mean, covariance):
    """The regression whose posterior is Normal(mean, covariance); its prior is twice as wide as that is anywhere."""
    precision = 0.25 / torch.linalg.eigvalsh(covariance)[-1]
    size, directions = torch.linalg.eigh(torch.linalg.inv(covariance) - precision * torch.eye(len(mean)).double())
    x = NOISE * size.sqrt().diag() @ directions.T  # x' x / NOISE^2 is what the data add to the precision
    y = NOISE**2 * torch.linalg.solve(x.T, torch.linalg.solve(covariance, mean))
    return linear(x, y, NormalPrior(precision.item()))


def rotated(sd, seed):
    """A covariance with these standard deviations, ``(D,)``, along axes of its own."""
    axes = torch.linalg.qr(normal(len(sd), len(sd), seed=seed))[0]
    return axes @ sd.square().diag() @ axes.T


def spread(low, high, dim):
    return torch.logspace(math.log10(low), math.log10(high), dim, dtype=torch.float64)


# --- one parameter: any density, known by integration -----------------------------------------------------------------


class Mixture(Noisy):
    """``y`` lies ``gap`` below the output with probability 0.2 and as far above it with 0.8, give or take ``sd``."""

    def __init__(self, gap=4.0, sd=0.3):
        self.gap, self.sd = gap, sd

    def distribution(self, outputs):
        component = torch.distributions.Normal(outputs + vector(-self.gap, self.gap), self.sd, validate_args=False)
        weights = torch.distributions.Categorical(vector(0.2, 0.8).expand_as(component.loc))
        return torch.distributions.MixtureSameFamily(weights, component, validate_args=False)


def one_parameter(likelihood, prior, y, num_parameters=1):
    """The posterior of one number, which the network puts out; of others, with which it does nothing, the prior."""
    x = torch.eye(num_parameters, dtype=torch.float64)[:1].expand(len(y), -1)
    return Posterior(
        nn.Linear(num_parameters, 1, bias=False), Data(x, vector(*y)), prior, likelihood, gradient="autograd"
    )


@torch.no_grad()
def distribution_function(posterior, beta=1.0, reference=None):
    """Places and the probability below each, for a posterior of one parameter at an inverse temperature, as `exact`."""
    width = 8 * posterior.prior_distribution.variance.sqrt().item()
    coarse, fine = (torch.linspace(-size, size, 100_001, dtype=torch.float64) for size in (width, 10))
    theta = torch.cat([coarse, fine]).sort().values
    log_prior, log_likelihood = posterior.log_prior(theta[:, None]), posterior.log_likelihood(theta[:, None])
    log_density = log_prior + beta * log_likelihood.nan_to_num(-1e300, -1e300, -1e300)
    if reference is not None:
        log_density += (1 - beta) * (-0.5 * (theta / reference).square() - log_prior)
    below = cumulative_trapezoid((log_density - log_density.max()).exp(), theta, initial=0)
    return theta.numpy(), below / below[-1]
