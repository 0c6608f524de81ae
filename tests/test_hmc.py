"""The HMC kernel: geometry of the integrator, what a transition keeps and says. What it draws: test_exactness.py."""

import math

import pytest
import torch
from scipy.stats import binom, norm

from bnn_utils import HMC
from bnn_utils.kernels.base import MAX_ENERGY_ERROR, Info
from bnn_utils.kernels.hmc import Position, leapfrog, metric
from targets import FALSE_ALARM, density_of, generator, normal

# Standard deviations 6, 1 and 0.5 along rotated axes: a condition number of 144.
ROTATION = torch.linalg.qr(normal(3, 3, seed=1))[0]
COVARIANCE = ROTATION @ torch.diag(torch.tensor([36.0, 1.0, 0.25], dtype=torch.float64)) @ ROTATION.T


def bumpy(theta):
    """A density that is not Gaussian: trajectories in it are no ellipses."""
    return (theta.cos() - theta.square() / 2).sum(-1), -theta.sin() - theta


KERNELS = {
    "identity": HMC(0.8, 11),
    "diagonal": HMC(0.8, 11, torch.tensor([1.2, 0.7, 1.1], dtype=torch.float64)),
    "dense": HMC(1.5, 3, COVARIANCE),
}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def run(kernel, density, theta, num, seed=0):
    """Position and statistics, ``(C,)`` each, after each of ``num`` transitions."""
    stream, state = generator(seed), kernel.init(density, theta, 0)
    for _ in range(num):
        state, info = kernel.step(density, stream, state)
        yield state.position, {name: values[:, 0] for name, values in Info.stack([info]).stats.items()}


# --- the integrator ---------------------------------------------------------------------------------------------------


def of_network(posterior):
    """Density and gradient of each row, in a form that torch.func can differentiate."""
    grad_and_value = torch.func.vmap(torch.func.grad_and_value(posterior.log_prob))
    return lambda theta: grad_and_value(theta)[::-1]


def masses(dim):
    factor = normal(dim, dim, seed=1) / dim**0.5
    return {"identity": None, "diagonal": 0.5 + normal(dim).square(), "dense": factor @ factor.T + torch.eye(dim) / 2}


geometries = pytest.mark.parametrize(
    ("make", "dim", "step_size"), [(lambda _: bumpy, 3, 0.05), (of_network, 20, 0.02)], ids=["bumps", "network"]
)


@pytest.mark.parametrize("mass", KERNELS)
@geometries
def test_leapfrog_is_reversible(posterior, make, dim, step_size, mass):
    """Forward, momentum turned round, forward: back at the start. Fails when a half step is left out or made whole."""
    theta, p = normal(5, dim), normal(5, dim, seed=1)
    density, velocity = make(posterior), metric(masses(dim)[mass], theta).velocity
    start = Position(theta, *density(theta))
    end, p_end = leapfrog(start, p, density, step_size, 20, velocity)
    back, p_back = leapfrog(end, -p_end, density, step_size, 20, velocity)
    assert (end.theta - start.theta).abs().min() > 1e-4
    torch.testing.assert_close(back.theta, start.theta, rtol=0, atol=1e-10)
    torch.testing.assert_close(back.log_prob, start.log_prob, rtol=0, atol=1e-10)
    torch.testing.assert_close(-p_back, p, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mass", KERNELS)
@geometries
def test_leapfrog_preserves_volume(posterior, make, dim, step_size, mass):
    """A trajectory's Jacobian, by autograd, has determinant 1. Fails when position and momentum move at once."""
    density, velocity = make(posterior), metric(masses(dim)[mass], normal(1, dim)).velocity

    def trajectory(together):
        theta, p = together.view(2, 1, dim)
        end, p_end = leapfrog(Position(theta, *density(theta)), p, density, step_size, 5, velocity)
        return torch.cat([end.theta, p_end]).flatten()

    jacobian = torch.func.jacrev(trajectory)(normal(2 * dim))
    assert (jacobian - torch.eye(2 * dim)).abs().max() > 0.1
    sign, log_determinant = torch.linalg.slogdet(jacobian)
    assert sign == 1
    assert abs(log_determinant.item()) < 1e-10


@kernels
def test_each_lane_may_have_a_step_of_its_own(kernel):
    """As if it went alone."""
    theta, p = normal(5, 3), normal(5, 3, seed=1)
    velocity, sizes = metric(kernel.inv_mass, theta).velocity, torch.linspace(0.02, 0.3, 5, dtype=torch.float64)
    start = Position(theta, *bumpy(theta))
    end, p_end = leapfrog(start, p, bumpy, sizes[:, None], 20, velocity)
    for lane, size in enumerate(sizes.tolist()):
        alone, p_alone = leapfrog(start, p, bumpy, size, 20, velocity)
        torch.testing.assert_close(end.theta[lane], alone.theta[lane])
        torch.testing.assert_close(end.log_prob[lane], alone.log_prob[lane])
        torch.testing.assert_close(p_end[lane], p_alone[lane])


@kernels
def test_mass_and_velocity_are_inverse(kernel):
    p = normal(5, 3)
    kinetic = metric(kernel.inv_mass, p)
    torch.testing.assert_close(kinetic.mass(kinetic.velocity(p)), p)


def test_a_step_costs_one_gradient():
    calls = []

    def counted(theta):
        calls.append(len(theta))
        return bumpy(theta)

    list(run(HMC(0.1, 7), density_of(counted), normal(4, 3), 10))
    assert calls == [4] * (1 + 10 * 7)


def test_the_density_is_needed_at_ends_only(posterior, theta):
    """With the gradient alone for the steps between, the same states to the bit."""
    both, alone = [], []

    def log_prob_and_grad(theta):
        both.append(1)
        return posterior.log_prob_and_grad(theta)

    def grad(theta):
        alone.append(1)
        return posterior.log_prob_and_grad(theta)[1]

    ((position, _),) = run(HMC(0.1, 7), density_of(log_prob_and_grad, grad), theta, 1)
    ((expected, _),) = run(HMC(0.1, 7), density_of(posterior.log_prob_and_grad), theta, 1)
    assert (len(both), len(alone)) == (1 + 1, 6)
    assert all(torch.equal(mine, other) for mine, other in zip(position, expected, strict=True))


# --- what a transition keeps and says ---------------------------------------------------------------------------------


in_both_codes = pytest.mark.parametrize("compile", [True, False], ids=["native", "torch"])


@in_both_codes
@pytest.mark.statistical
def test_rejection_keeps_state_and_gradient(posterior, theta, compile):
    """Fails when a rejected lane keeps the gradient or the density of its proposal."""
    before, rejected = theta, 0
    for state, stats in run(HMC(0.12, 10), posterior.density(5, compile), theta, 40):
        stays = ~stats["is_accept"]
        assert torch.equal(state.theta[stays], before[stays])
        assert not (state.theta == before)[~stays].any()
        log_prob, grad = posterior.log_prob_and_grad(state.theta)
        torch.testing.assert_close(state.log_prob, log_prob, rtol=1e-12, atol=0)
        torch.testing.assert_close(state.grad, grad, rtol=1e-10, atol=1e-10)
        before, rejected = state.theta, rejected + int(stays.sum())
    assert 20 < rejected < 180


@in_both_codes
@pytest.mark.statistical
def test_info_is_about_this_transition(posterior, theta, compile):
    """The energy is that of the state that was kept, which for a rejected lane is the one that it started with."""
    stream, before, accepted = generator(), posterior.log_prob(theta), 0
    for state, stats in run(HMC(0.12, 6), posterior.density(5, compile), theta, 20):
        assert stats["n_steps"].tolist() == [6] * 5
        assert stats["step_size"].tolist() == [0.12] * 5
        p = torch.randn(5, 20, dtype=torch.float64, generator=stream)
        torch.rand(5, dtype=torch.float64, generator=stream)
        start = p.square().sum(-1) / 2 - before
        kept = torch.where(stats["is_accept"], start + stats["energy_error"], start)
        torch.testing.assert_close(stats["energy"], kept)
        torch.testing.assert_close(stats["acceptance_rate"], (-stats["energy_error"]).exp().clamp(max=1))
        before, accepted = state.log_prob, accepted + int(stats["is_accept"].sum())
    assert 5 < accepted < 98


@in_both_codes
@pytest.mark.statistical
def test_jitter_gives_each_trajectory_a_step_size_of_its_own(posterior, compile):
    """Even over its range: mean and variance of a uniform; and the energies are those of just these trajectories."""
    lanes, stream, jitter = 400, generator(), 0.3
    start, kernel = posterior.sample_prior(lanes, generator(1)), HMC(0.01, 3, jitter=jitter)
    found = [stats for _, stats in run(kernel, posterior.density(lanes, compile), start, 10)]
    sizes = torch.stack([stats["step_size"] for stats in found])
    u = (sizes / 0.01 - 1) / jitter
    assert u.abs().max() < 1
    assert u.unique().numel() == u.numel()
    assert u.mean().abs() < norm.isf(FALSE_ALARM / 4) / (3 * u.numel()) ** 0.5
    assert (u.square().mean() - 1 / 3).abs() < norm.isf(FALSE_ALARM / 4) * (4 / 45 / u.numel()) ** 0.5
    torch.rand(lanes, 1, dtype=torch.float64, generator=stream)  # of which the first sizes were made
    p = torch.randn(start.shape, dtype=torch.float64, generator=stream)
    state = Position(start, *posterior.log_prob_and_grad(start))
    end, p_end = leapfrog(state, p, posterior.log_prob_and_grad, sizes[0][:, None], 3)
    error = (p_end.square() - p.square()).sum(-1) / 2 - end.log_prob + state.log_prob
    torch.testing.assert_close(found[0]["energy_error"], error)


# --- lanes ------------------------------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_each_lane_tosses_its_own_coin():
    """Proposals that halve the density are accepted half of the time; fails when lanes share their uniform number."""
    lanes, heights = 4000, iter([0.0, -math.log(2)])

    def halves(theta):
        return torch.full((len(theta),), next(heights), dtype=theta.dtype), torch.zeros_like(theta)

    ((_, stats),) = run(HMC(0.1, 1), density_of(halves), normal(lanes, 2), 1)
    torch.testing.assert_close(stats["acceptance_rate"], torch.full((lanes,), 0.5, dtype=torch.float64))
    accepted = int(stats["is_accept"].sum())
    assert binom.ppf(FALSE_ALARM / 2, lanes, 0.5) <= accepted <= binom.isf(FALSE_ALARM / 2, lanes, 0.5)


# --- divergences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, -2 * MAX_ENERGY_ERROR])
def test_divergence_is_flagged_and_rejected(value):
    """The first lane steps to where the density is ``value``, the second to a good place."""
    values = iter([[0.0, 0.0], [value, 0.0]])

    def cliff(theta):
        return torch.tensor(next(values), dtype=theta.dtype), torch.zeros_like(theta)

    start = normal(2, 3)
    ((state, stats),) = run(HMC(0.1, 1), density_of(cliff), start, 1)
    assert stats["diverging"].tolist() == [True, False]
    assert stats["is_accept"].tolist() == [False, True]
    assert stats["acceptance_rate"].tolist() == [0, 1]
    assert state.log_prob.tolist() == [0, 0]
    assert torch.equal(state.theta[0], start[0])


def test_gradient_that_is_not_a_number():
    def cliff(theta):
        return torch.zeros(len(theta), dtype=theta.dtype), torch.where(theta.abs() > 1, math.nan, 0 * theta)

    start = torch.zeros(3, 2, dtype=torch.float64)
    ((state, stats),) = run(HMC(10.0, 2), density_of(cliff), start, 1)
    assert stats["diverging"].all()
    assert torch.equal(state.theta, start)
    assert torch.equal(state.grad, torch.zeros_like(start))


@pytest.mark.parametrize(("drop", "diverges"), [(0.99, False), (1.01, True)])
def test_limit_of_the_energy_error(drop, diverges):
    values = iter([0.0, -drop * MAX_ENERGY_ERROR])

    def cliff(theta):
        return torch.tensor([next(values)], dtype=theta.dtype), torch.zeros_like(theta)

    ((_, stats),) = run(HMC(0.1, 1), density_of(cliff), normal(1, 3), 1)
    assert stats["diverging"].item() is diverges


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [0.0, -0.1, math.nan, math.inf])
def test_step_size(step_size):
    with pytest.raises(ValueError, match=f"step_size must be positive and finite, got {step_size}"):
        HMC(step_size, 4)


@pytest.mark.parametrize("jitter", [-0.1, 1.0, math.nan, math.inf])
def test_jitter(jitter):
    with pytest.raises(ValueError, match=f"jitter must be a fraction, 0 or more and less than 1, got {jitter}"):
        HMC(0.1, 4, jitter=jitter)


@pytest.mark.parametrize("num_steps", [0, -3, 2.5, math.nan, math.inf])
def test_num_steps(num_steps):
    with pytest.raises(ValueError, match=f"num_steps must be a whole number of at least 1, got {num_steps}"):
        HMC(0.1, num_steps)


@pytest.mark.parametrize(
    ("inv_mass", "message"),
    [
        (torch.tensor(1.0), r"a tensor of shape \(D,\) or \(D, D\), got \(\)"),
        (torch.ones(2, 2, 2), r"got \(2, 2, 2\)"),
        (torch.tensor([1.0, -2.0]), "positive and finite, but it holds -2"),
        (torch.tensor([1.0, math.nan]), "positive and finite, but it holds nan"),
        (torch.ones(2, 3), r"symmetric matrix, got shape \(2, 3\)"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "must be a symmetric matrix"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "positive definite, but its smallest eigenvalue is -1"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "nan"),
    ],
)
def test_inv_mass(inv_mass, message):
    with pytest.raises(ValueError, match=message):
        HMC(0.1, 4, inv_mass)


def test_repr_shows_the_settings():
    assert repr(HMC(0.05, 4)) == "HMC(step_size=0.05, num_steps=4)"
    assert repr(HMC(0.05, 4, jitter=0.5)) == "HMC(step_size=0.05, num_steps=4, jitter=0.5)"
    assert repr(KERNELS["diagonal"]) == "HMC(step_size=0.8, num_steps=11, inv_mass=diagonal)"
    assert repr(KERNELS["dense"]) == "HMC(step_size=1.5, num_steps=3, inv_mass=dense)"
