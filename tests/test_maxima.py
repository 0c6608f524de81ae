"""Maxima: known ones are found, each climb on its own; what is none is told; chains start from them."""

import numpy as np
import pytest
import torch
from scipy.optimize import root
from scipy.special import expit
from torch import distributions, nn

from bnn_utils import (
    HMC,
    Bernoulli,
    ChEES,
    Data,
    ElementPrior,
    Gaussian,
    LogScale,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    find_map,
    maxima,
    sample,
    sampling,
)
from bnn_utils.random import spawn
from bnn_utils.starts import draw_starts
from targets import PRECISION, density_of, exact, generator, linear, normal, one_parameter, regression, vector


def find(posterior, num=4, seed=0):
    return find_map(posterior, num, seed, progress=False)


def endless(dtype=torch.float64):
    """Targets that are met exactly, a scale of the noise that is learned, and a prior too wide to keep it from 0."""
    x = normal(12, 3).to(dtype)
    net = nn.Sequential(nn.Linear(3, 1, bias=False), LogScale())
    prior = ElementPrior(distributions.Cauchy(0.0, 1.0))
    return Posterior(net, Data(x, x @ x.new_tensor([1, 2, -1])), prior, Gaussian())


# --- known maxima -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_regression(dtype):
    """The closed form."""
    posterior = regression()
    data = posterior.data.to(dtype)
    found, mean = find(linear(data.x, data.y, NormalPrior(PRECISION))), exact(posterior)[0]
    assert found.theta.dtype == dtype
    assert found.converged.all()
    assert (found.theta.double() - mean).abs().max() < 1e-6
    assert (found.log_prob - posterior.log_prob(mean)).abs().max() < (1e-10 if dtype == torch.float64 else 1e-4)
    assert found.height.tolist() == [0, 0, 0, 0]


def test_logistic_regression():
    """Where SciPy's solver of equations finds the gradient to be 0, in NumPy."""
    x, precision = normal(40, 3), 0.5
    y = (x[:, 0] + normal(40, seed=1) > 0).double()
    found = find(Posterior(nn.Linear(3, 1, bias=False), Data(x, y), NormalPrior(precision), Bernoulli()))
    x, y = x.numpy(), y.numpy()
    solved = root(lambda theta: x.T @ (y - expit(x @ theta)) - precision * theta, np.zeros(3), tol=1e-12)
    assert solved.success
    assert found.converged.all()
    assert (found.theta - torch.from_numpy(solved.x)).abs().max() < 1e-6


def test_a_network(posterior):
    """Several maxima, the highest first: the gradient is 0, the curvature negative (in all directions, or none)."""
    found = find(posterior, 8)
    assert found.converged.all()
    assert (found.log_prob.diff() <= 0).all()
    log_prob, grad = posterior.log_prob_and_grad(found.theta)
    torch.testing.assert_close(found.log_prob, log_prob)
    torch.testing.assert_close(found.grad_norm, grad.norm(dim=1), rtol=0.5, atol=1e-8)
    assert grad.abs().max() < 1e-4
    curvature = torch.autograd.functional.hessian(posterior.log_prob, found.theta[0])
    assert torch.linalg.eigvalsh(curvature).max() < 1e-6


def test_weights_count(make_posterior):
    """A point of weight 2 is the same point twice."""
    x = normal(20, 3)
    y, weights, rows = (x[:, 0] > 0).double(), torch.ones(20).double(), [*range(20), 0]
    weights[0] = 2
    both = Data(x, y, weights), Data(x[rows], y[rows])
    one, other = (find(make_posterior(nn.Linear(3, 1), data)).theta[0] for data in both)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# --- each on its own --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [True, False])
def test_the_other_starts_have_no_effect(posterior, theta, compile):
    """To the bit where they are as many; of a single maximum, but for rounding where they are not."""
    others = torch.cat([theta[:1], 2 * theta.flip(0)[:4]])
    first, second = (maxima.climb(posterior, starts, compile, 300, progress=False) for starts in (theta, others))
    assert torch.equal(first.theta[0], second.theta[0])
    assert first.log_prob[0] == second.log_prob[0]
    convex = regression()
    starts = convex.sample_prior(5, generator(1))
    together, alone = (maxima.climb(convex, part, compile, 300, progress=False) for part in (starts, starts[:1]))
    torch.testing.assert_close(together.theta[0], alone.theta[0], rtol=0, atol=1e-8)


def test_seeds(posterior):
    first, same, other = (find(posterior, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.theta, same.theta)
    assert not torch.equal(first.theta, other.theta)
    assert first.seed == 1
    stream = generator(1)
    again, more = (find(posterior, seed=stream) for _ in range(2))
    assert torch.equal(again.theta, first.theta)
    assert not torch.equal(more.theta, first.theta)
    assert again.seed is None
    assert len({find(posterior, 1, None).seed for _ in range(3)}) == 3


def test_nothing_global_changes(posterior):
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    find(posterior)
    assert torch.equal(before, torch.random.get_rng_state())
    assert threads == torch.get_num_threads()


# --- what is told -----------------------------------------------------------------------------------------------------


def test_it_prints_as_its_summary(posterior):
    found = find(posterior, 6, seed=3)
    heights = 1 + sum(gap > 0.01 for gap in (-found.log_prob.diff()).tolist())
    assert 1 < heights <= 6
    assert repr(found).startswith(f"Maxima of 6 climbs (6 converged) at {heights} heights: the first has log_prob -")
    table = found.table()
    assert list(table.columns) == ["log_prob", "height", "grad_norm", "ended"]
    assert table.log_prob.tolist() == found.log_prob.tolist()
    assert table.height.iloc[-1] == heights - 1


def test_a_kink():
    """log_prob = -10 |theta - 1| and a wide prior: the gradient is about 10 on both sides of the maximum."""
    posterior = one_parameter(lambda outputs: distributions.Laplace(outputs[..., 0], 0.1), NormalPrior(0.01), [1.0])
    found = find(posterior)
    assert (found.theta - 1).abs().max() < 1e-6
    assert set(found.ended) == {"no step up"}
    assert not found.converged.any()
    assert "4 no step up" in repr(found)


@pytest.mark.parametrize("nothing", [-torch.inf, torch.nan])
@pytest.mark.parametrize("start", [1e-6, 0.01, 0.3, 1.0, 7.0, 40.0, 1000.0])
def test_places_without_density(start, nothing):
    """A step too far, to theta below 0, ends no climb: log_prob = 2 log theta - 2 theta - theta^2 / 2."""

    def log_prob_and_grad(theta):
        value, grad = 2 * theta.log() - 2 * theta - theta**2 / 2, 2 / theta - 2 - theta
        return torch.where(theta > 0, value, nothing).sum(1), torch.where(theta > 0, grad, torch.nan)

    density = density_of(log_prob_and_grad)
    density.device = torch.device("cpu")
    found = maxima._lbfgs(density, vector(start), 100)
    assert found.ended == "converged"
    assert abs(found.theta.item() - (3**0.5 - 1)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_density_without_bound(dtype):
    with pytest.warns(RuntimeWarning, match="4 of 4 climbs ended unbounded: their maximum is far, or there is none"):
        found = find(endless(dtype))
    assert found.ended == 4 * ["unbounded"]
    with pytest.raises(ValueError, match="4 of 4 chains would start where the density is unbounded, and never move"):
        sample(endless(dtype), HMC(0.01, 3), 5, 4, init="map", seed=0, progress=False)


def test_unbounded_ones_come_last(posterior, monkeypatch):
    """However high they are."""
    places = posterior.sample_prior(3, generator())
    ends = maxima.Maxima(places, vector(5, -2, -1), vector(1, 0, 0), ["unbounded", "converged", "converged"])
    monkeypatch.setattr(maxima, "climb", lambda *_: ends)
    with pytest.warns(RuntimeWarning, match="1 of 3 climbs ended unbounded"):
        found = find(posterior, 3)
    assert found.log_prob.tolist() == [-1, -2, 5]
    assert torch.equal(found.theta, places[[2, 1, 0]])
    assert found.height.tolist() == [0, 1, 2]


def test_climbs_that_take_too_long(posterior, theta):
    """Far below the top they still rise by more than 1, near it by less."""
    density, top = posterior.density(1), find(posterior, 1).theta[0]
    below, near = (maxima._lbfgs(density, start, 4) for start in (theta[0], top + 0.01))
    assert (below.ended, near.ended) == ("rising", "slow")
    assert posterior.log_prob(theta[0]) < below.log_prob < near.log_prob


def test_rising_ones_are_warned_of(posterior, monkeypatch):
    monkeypatch.setattr(maxima, "ADAM_STEPS", 2)
    monkeypatch.setattr(maxima, "LBFGS_ITERATIONS", 5)
    with pytest.warns(RuntimeWarning, match="of 4 climbs ended rising: their maximum is far, or there is none"):
        assert "rising" in find(posterior).ended


def test_several_data_sets(posterior):
    both = posterior.with_targets(torch.stack([posterior.data.y, 1 - posterior.data.y]))
    with pytest.raises(ValueError, match=r"there are 2 data sets, .* climb to those of posterior.dataset\(k\)"):
        find(both)
    with pytest.raises(ValueError, match=r"there are 2 data sets"):
        sample(both, HMC(0.1, 3), 5, 2, init="map")


# --- chains from maxima -----------------------------------------------------------------------------------------------

KERNELS = {"HMC": HMC(0.05, 3), "ChEES": ChEES(), "ReplicaExchange": ReplicaExchange(HMC(0.05, 3), 4)}


def draw(posterior, kernel, num=5, **arguments):
    arguments = {"num_chains": 4, "batch_size": 2, "seed": 1, "init": "map", "progress": False} | arguments
    return sample(posterior, kernel, num, **arguments)


def test_chains_start_at_maxima_above_their_prior_draws(posterior):
    """Those at which they start without init: from the stream of their batch."""
    compile = sampling.can_be_native(posterior)
    expected = [
        maxima.climb(posterior, draw_starts(posterior, 2, stream), compile, 500, progress=False)
        for stream in spawn(1, 2, posterior.device)
    ]
    assert all(part.converged.all() for part in expected)
    first = draw(posterior, HMC(1e-12, 1), 1).draws[:, 0]
    torch.testing.assert_close(first, torch.cat([part.theta for part in expected]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_every_kernel(posterior, kernel):
    """The same draws in every run; those of a longer run when it is extended."""
    chain = draw(posterior, kernel, warmup=20)
    assert torch.equal(chain.extend(3, progress=False).draws, draw(posterior, kernel, 8, warmup=20).draws)
    assert not torch.equal(chain.draws, draw(posterior, kernel, warmup=20, init=None).draws)
    assert not torch.equal(chain.draws, draw(posterior, kernel, warmup=20, seed=2).draws)


def test_workers_draw_the_same(posterior):
    assert torch.equal(draw(posterior, HMC(0.05, 3)).draws, draw(posterior, HMC(0.05, 3), workers=2).draws)
