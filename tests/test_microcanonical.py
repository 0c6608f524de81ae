"""The microcanonical kernels: the dynamics, what transitions keep and say, the warm-up, and how large MCLMC's bias is.

What MAMS draws: test_exactness.py and test_joint.py.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bnn_utils import MAMS, MCLMC, sample
from bnn_utils.diagnostics import mcse
from bnn_utils.kernels.base import MAX_ENERGY_ERROR
from bnn_utils.kernels.hmc import Position, metric
from bnn_utils.kernels.microcanonical import integrate, kick, refreshed
from targets import FALSE_ALARM, density_of, generator, normal, rotated, spread, vector, with_moments
from test_adaptation import gaussian, run_stuck

INV_MASS = vector(1.2, 0.7, 1.1)


def bumpy(theta):
    """A density that is not Gaussian."""
    return (theta.cos() - theta.square() / 2).sum(-1), -theta.sin() - theta


def directions(lanes, dim, seed=1):
    u = normal(lanes, dim, seed=seed)
    return u / u.norm(dim=-1, keepdim=True)


def at(theta, density=bumpy):
    return Position(theta, *density(theta))


def travel(theta, u, step_size, num_steps, inv_mass=None, density=bumpy):
    return integrate(at(theta, density), u, density_of(density).joint, step_size, num_steps, metric(inv_mass, theta))


masses = pytest.mark.parametrize("inv_mass", [None, INV_MASS], ids=["identity", "diagonal"])


# --- dynamics ---------------------------------------------------------------------------------------------------------


@masses
def test_it_is_reversible(inv_mass):
    """Forward, turned round, forward: back at the start, and what was lost is gained. Fails when the kicks differ."""
    theta, u = normal(5, 3), directions(5, 3)
    end, u_end, error = travel(theta, u, 0.2, 20, inv_mass)
    back, u_back, error_back = travel(end.theta, -u_end, 0.2, 20, inv_mass)
    assert (end.theta - theta).abs().max() > 0.5
    torch.testing.assert_close(back.theta, theta, rtol=0, atol=1e-10)
    torch.testing.assert_close(-u_back, u, rtol=0, atol=1e-10)
    torch.testing.assert_close(error_back, -error, rtol=0, atol=1e-10)


@masses
def test_the_energy_error_holds_the_jacobian(inv_mass):
    """By autograd: the change of log density and the log of what becomes of the volume, on the plane times the sphere.

    The map is extended from the sphere to the space around it by what it makes of ``u / |u|``, times ``|u|``, which
    changes the volume there as it does on the sphere. Fails when the kinetic energy has a factor of D for D - 1.
    """

    def trajectory(together):
        theta, v = together.view(2, 1, 3)
        end, u, _ = travel(theta, v / v.norm(), 0.3, 4, inv_mass)
        return torch.cat([end.theta, u * v.norm()]).flatten()

    theta, u = normal(1, 3), directions(1, 3)
    jacobian = torch.func.jacrev(trajectory)(torch.cat([theta, u]).flatten())
    sign, log_determinant = torch.linalg.slogdet(jacobian)
    end, _, error = travel(theta, u, 0.3, 4, inv_mass)
    assert abs(log_determinant.item()) > 0.1
    assert sign == 1
    torch.testing.assert_close(-error, end.log_prob - bumpy(theta)[0] + log_determinant, rtol=0, atol=1e-10)


@pytest.mark.statistical
@masses
def test_the_error_is_proportional_to_the_step_squared(inv_mass):
    """At the end of a way of given length, by the median of 400 lanes: over 20 seeds the slope was 2.00 ± 0.01.

    Fails when the outer kicks are larger than the coefficient.
    """
    theta, u = normal(400, 3), directions(400, 3)
    steps = [4, 8, 16, 32]
    errors = [travel(theta, u, 1 / num, num, inv_mass)[2].abs().median().log2().item() for num in steps]
    assert np.polyfit(np.log2(steps), errors, 1)[0] == pytest.approx(-2, abs=0.1)


def test_a_mass_is_a_change_of_coordinates():
    """As without one, where each parameter is divided by its standard deviation."""
    scale, theta, u = INV_MASS.sqrt(), normal(5, 3), directions(5, 3)

    def scaled(x):
        log_prob, grad = bumpy(x * scale)
        return log_prob, grad * scale

    end, u_end, error = travel(theta, u, 0.2, 5, INV_MASS)
    other, u_other, error_other = travel(theta / scale, u, 0.2, 5, density=scaled)
    torch.testing.assert_close(end.theta, other.theta * scale)
    torch.testing.assert_close(u_end, u_other)
    torch.testing.assert_close(error, error_other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1.0, 1e3, 1e15])
def test_directions_stay_on_the_sphere(dtype, size):
    """From no gradient to one whose cosh would be infinite, also turned right away from it."""
    u = directions(50, 4).to(dtype)
    slope = (size * normal(50, 4, seed=2)).to(dtype)
    slope[0] = -size * u[0]
    turned, kinetic = kick(u, slope, 1.0)
    torch.testing.assert_close(turned[1:].norm(dim=-1), torch.ones(49, dtype=dtype))
    assert kinetic[1:].isfinite().all()
    if size == 0:
        torch.testing.assert_close(turned, u)
        assert (kinetic == 0).all()


def test_a_kick_is_the_flow():
    """Of many small ones, and of the differential equation."""
    u, slope = directions(20, 4), normal(20, 4, seed=2)
    once, kinetic = kick(u, slope, 2.0)
    end, total, size = u, torch.zeros(20), 2.0 / 4000
    for _ in range(4000):  # Euler's steps, the energy's by the midpoint
        before = (end * slope).sum(-1)
        end = end + size / 3 * (slope - before[:, None] * end)
        end = end / end.norm(dim=-1, keepdim=True)
        total = total + size * (before + (end * slope).sum(-1)) / 2
    torch.testing.assert_close(once, end, rtol=0, atol=3e-3)
    torch.testing.assert_close(kinetic, total.double(), rtol=0, atol=3e-3)


@pytest.mark.statistical
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_memory_is_lost_over_the_decoherence_length(share):
    """After 1 / share steps the mean cosine with the first direction is about 1 / e.

    But for terms of 1 / D, 0.02, and for noise, whose standard error is 0.14 / 4000^0.5, a tenth of that. Fails when
    the noise has no factor of 2.
    """
    stream, first = generator(), directions(4000, 50)
    u = first
    for _ in range(round(1 / share)):
        u = refreshed(stream, u, share)
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(4000).double())
    assert (u * first).sum(-1).mean().item() == pytest.approx(math.exp(-1), abs=0.03)


@pytest.mark.statistical
def test_fresh_directions_are_uniform():
    """Each coordinate has a mean square of 1 / D, and the mean over lanes is 0. Fails when 0 stays 0."""
    u = refreshed(generator(), torch.zeros(20_000, 3).double(), 0.01)
    assert (u.mean(0) * (3 * 20_000) ** 0.5).abs().max() < norm.isf(FALSE_ALARM / 12)
    deviation = (1 / 5 - 1 / 9) ** 0.5  # of a squared coordinate, which is Beta(1/2, 1)
    assert ((u.square().mean(0) - 1 / 3) / deviation * 20_000**0.5).abs().max() < norm.isf(FALSE_ALARM / 12)


# --- transitions ------------------------------------------------------------------------------------------------------


def run(kernel, density, theta, num, seed=0):
    stream, state = generator(seed), kernel.init(density, theta, 0)
    for _ in range(num):
        state, info = kernel.step(density, stream, state)
        yield state, info


@pytest.mark.parametrize("kernel", [MAMS(0.1, 0.6), MCLMC()], ids=["MAMS", "MCLMC"])
def test_two_gradients_a_step(kernel):
    calls = []

    def counted(theta):
        calls.append(len(theta))
        return bumpy(theta)

    steps = sum(info.stats["n_steps"] for _, info in run(kernel, density_of(counted), normal(4, 3), 10))
    assert calls == [4] * (1 + 2 * steps)


@pytest.mark.statistical
def test_mams_keeps_what_it_rejects(posterior, theta):
    """And its statistics are of this transition. Fails when a rejected lane keeps the gradient of its proposal."""
    before, rejected = theta, 0
    for state, info in run(MAMS(0.6, 4.0), posterior.density(5), theta, 40):
        stays, stats = ~info.stats["is_accept"], info.stats
        assert torch.equal(state.position.theta[stays], before[stays])
        assert not (state.position.theta == before)[~stays].any()
        log_prob, grad = posterior.log_prob_and_grad(state.position.theta)
        torch.testing.assert_close(state.position.log_prob, log_prob, rtol=1e-12, atol=0)
        torch.testing.assert_close(state.position.grad, grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(stats["acceptance_rate"], (-stats["energy_error"]).exp().clamp(max=1))
        before, rejected = state.position.theta, rejected + int(stays.sum())
    assert 20 < rejected < 180
    assert "energy" not in stats


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, -2 * MAX_ENERGY_ERROR])
@pytest.mark.parametrize("kernel", [MAMS(0.1, 0.1), MCLMC()], ids=["MAMS", "MCLMC"])
def test_impossible_places(kernel, value):
    """The first lane steps to where the density is ``value``, the second to a good place."""
    heights = [0.0, 0.0]

    def cliff(theta):
        return vector(*heights), torch.zeros_like(theta)

    density, start, stream = density_of(cliff), normal(2, 3), generator()
    state = kernel.init(density, start, 0)
    heights[0] = value
    state, info = kernel.step(density, stream, state)
    assert info.stats["diverging"].tolist() == [True, False]
    assert torch.equal(state.position.theta[0], start[0])
    assert state.position.log_prob.tolist() == [0, 0]
    assert not torch.equal(state.position.theta[1], start[1])
    heights[0] = 0.0
    state, info = kernel.step(density, stream, state)
    assert not info.stats["diverging"].any()
    assert not (state.position.theta == start).any(), "it goes on in another direction"


@pytest.mark.parametrize("kernel", [MAMS(10.0, 10.0), MCLMC(10.0, 1.0)], ids=["MAMS", "MCLMC"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite(kernel, bad):
    def cliff(theta):
        return torch.zeros(len(theta)).double(), torch.where(theta.abs() > 1, bad, 0 * theta)

    start = torch.zeros(3, 2).double()
    for state, info in run(kernel, density_of(cliff), start, 3):
        assert info.stats["diverging"].all()
        assert torch.equal(state.position.theta, start)


@pytest.mark.parametrize("kernel", [MAMS(), MCLMC()], ids=["MAMS", "MCLMC"])
def test_one_parameter_is_refused(kernel):
    posterior = with_moments(vector(3.0), vector(0.25)[:, None])
    with pytest.raises(ValueError, match="takes two parameters or more, and this posterior has 1: take HMC"):
        sample(posterior, kernel, 10, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0"),
        ({"inv_mass": torch.eye(2)}, r"inv_mass must be None or a tensor of shape \(D,\), got \(2, 2\): pass the diag"),
        ({"inv_mass": vector(1.0, -1.0)}, "inv_mass must be positive and finite, but it holds -1"),
    ],
)
@pytest.mark.parametrize("kernel", [MAMS, MCLMC])
def test_what_is_refused(kernel, arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel(**arguments)


def test_repr_shows_the_settings():
    assert repr(MAMS(0.1234567, 2.0)) == "MAMS(step_size=0.123, trajectory_length=2)"
    assert repr(MCLMC(0.1, 2.0, vector(1, 2))) == (
        "MCLMC(step_size=0.1, decoherence_length=2, inv_mass=diagonal, energy_variance=0.0005)"
    )


# --- warm-up and bias -------------------------------------------------------------------------------------------------

COVARIANCE = rotated(spread(0.5, 2, 10), 1)
GAUSSIAN = with_moments(torch.zeros(10).double(), COVARIANCE)


def draw(kernel, num_samples=1000, num_chains=64, warmup=500, seed=1, **arguments):
    return sample(GAUSSIAN, kernel, num_samples, num_chains, warmup, seed=seed, progress=False, **arguments)


@pytest.mark.statistical
def test_the_warmup_of_mams():
    """Over 20 seeds a rate of 0.907 ± 0.006, and a length of 2.15 ± 0.08 quarter turns.

    The posterior is four times as long as it is wide, in directions that no diagonal mass mends, and wants trajectories
    longer than those with which it begins. Fails when the length stays there.
    """
    chain = draw(MAMS(), 300)
    assert 0.87 < chain.stats["acceptance_rate"].mean() < 0.945
    assert 1.5 < chain.kernel.trajectory_length / (math.pi / 2 * 10**0.5) < 4
    assert chain.warnings == []


@pytest.mark.statistical
@pytest.mark.parametrize("inv_mass", [None, torch.ones(10).double()], ids=["learned", "given"])
def test_the_warmup_of_mclmc(inv_mass):
    """Over 10 seeds the variance of the energy error was 1.01 ± 0.07 times what was wanted, for each parameter.

    The length is twice the size: the root of the sum of the variances in coordinates of the mass. Fails when the
    variance is not divided by D, and when a given mass is overwritten.
    """
    chain = draw(MCLMC(inv_mass=inv_mass), 300)
    variance = chain.stats["energy_error"].square().mean().item() / 10
    assert 1 / 3 < variance / chain.kernel.energy_variance < 3
    if inv_mass is None:
        assert (chain.kernel.inv_mass / COVARIANCE.diagonal()).log().abs().max() < 0.5
        assert chain.kernel.decoherence_length == pytest.approx(2 * 10**0.5)
    else:
        assert torch.equal(chain.kernel.inv_mass, inv_mass)
        assert 0.8 < chain.kernel.decoherence_length / (2 * COVARIANCE.trace().sqrt().item()) < 1.2


@pytest.mark.statistical
@pytest.mark.parametrize("kernel", [MAMS(), MCLMC()], ids=["MAMS", "MCLMC"])
@pytest.mark.parametrize("lanes", [4, 64])
def test_a_chain_that_is_stuck_teaches_nothing(kernel, lanes):
    """Over 20 seeds step sizes were 4.7 ± 0.3 and 5.3 ± 0.07 (MAMS), and 3.6 ± 0.13 and 3.60 ± 0.04 (MCLMC).

    Fails where it teaches."""
    state, info = run_stuck(kernel, gaussian(10 * [1.0]), 200, 50, lanes)
    assert (info.theta[0] == info.theta[0, 0]).all()
    assert 2.5 < state.step_size < 7


@pytest.mark.slow
@pytest.mark.statistical
def test_the_bias_of_mclmc_is_what_it_says():
    """Along the axes of a Gaussian, relative errors of variances have a root mean square within what warnings say.

    With the step size of a warm-up, whose bias is seen in the mean over axes, and with one that is far too large. Noise
    adds to the root mean square no more than its own, which is less than 4.1 standard errors of the worst axis at least
    as often as one axis is, all but 4e-5 of the time. Fails when the energy error is told without the kinetic energy.
    Over 6 seeds a bias of 0.017 ± 0.001 (0.014 ± 0.001 in the mean over axes) where 0.022 ± 0.001 was said; over 20,
    of 0.704 ± 0.004 where 0.776 ± 0.002 was.
    """
    variance, axes = torch.linalg.eigh(COVARIANCE)
    for kernel, warmup in ((MCLMC(), 500), (MCLMC(5.0, 6.0), 0)):
        chain = draw(kernel, 4000, warmup=warmup).drop(200)
        squares = (chain.draws @ axes).square() / variance
        bias, noise = (squares.mean((0, 1)) - 1).square().mean().sqrt().item(), 4.1 * mcse(squares).max().item()
        said = math.sqrt(chain.stats["energy_error"].square().mean().item() / 10)
        assert bias < said + noise
        about = next(warning for warning in chain.warnings if warning.startswith("MCLMC is biased"))
        assert f"are off by up to {said:.1%}" in about
        assert ("smaller step size" in about) == (warmup == 0)
        if warmup:
            mean = squares.mean(-1, keepdim=True)
            assert 1 - mean.mean() > 4.1 * mcse(mean).item()
        else:
            assert bias > 0.3 + noise
