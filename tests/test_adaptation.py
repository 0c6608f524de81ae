"""What warm-ups learn: step size, mass and trajectory length, on Gaussians whose right answers are known."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import erfc
from scipy.stats import qmc
from targets import generator, normal
from torch import nn

from bnn_utils import HMC, ChEES, Data, Likelihood, NormalPrior, Posterior, sample
from bnn_utils.adaptation import MAX_STEPS, ChEESWarmup, DualAveraging, Moments, Warmup, halton, windows
from bnn_utils.diagnostics import ess, rhat
from bnn_utils.engines import ENGINES
from bnn_utils.hmc import ADAPTED_JITTER, HMCState, Proposal


class Silent(Likelihood):
    """Says nothing about theta: the posterior is the prior."""

    def targets(self, y, outputs):
        return y

    def distribution(self, outputs):
        raise NotImplementedError

    def log_probs(self, outputs, y):
        return 0 * outputs.sum(-1)

    def grad(self, outputs, y):
        return torch.zeros_like(outputs)


def gaussian(sd):
    """The posterior Normal(0, diag(sd^2)), by way of a prior."""
    sd = torch.as_tensor(sd, dtype=torch.float64)
    x = torch.zeros(1, len(sd), dtype=torch.float64)
    return Posterior(nn.Linear(len(sd), 1, bias=False), Data(x, x[:, 0]), NormalPrior(sd**-2), Silent())


ILL_SCALED = torch.logspace(-2, 0.5, 10, dtype=torch.float64)  # standard deviations 0.01 to 3


def run(kernel, posterior, warmup, draws, num_chains=1, seed=0, start=None):
    """The transitions of an engine, those of the warm-up among them."""
    stream = generator(seed)
    start = posterior.sample_prior(num_chains, stream) if start is None else start
    with torch.inference_mode():
        chain = ENGINES["builtin"](kernel, posterior, start, stream, False, warmup)
        return [next(chain) for _ in range(warmup + draws)]


def acceptance(transitions):
    return torch.stack([transition.info.acceptance_rate for transition in transitions]).mean().item()


# --- step size --------------------------------------------------------------------------------------------------------


def test_dual_averaging_is_the_papers():
    """Hoffman and Gelman (2014), algorithm 5, line by line in Python's floats, for three step sizes at once."""
    starts, errors = [0.001, 1.0, 50.0], 0.8 - torch.rand(60, 3, dtype=torch.float64, generator=generator())
    steps = DualAveraging.start(torch.tensor(starts, dtype=torch.float64))
    torch.testing.assert_close(steps.step_size, torch.tensor(starts, dtype=torch.float64))
    mu, h_bar, log_eps_bar = [math.log(10 * eps) for eps in starts], [0.0] * 3, [0.0] * 3
    for m, error in enumerate(errors, start=1):
        steps = steps.update(error)
        for j in range(3):
            h_bar[j] = (1 - 1 / (m + 10)) * h_bar[j] + 1 / (m + 10) * error[j].item()
            log_eps = mu[j] - math.sqrt(m) / 0.05 * h_bar[j]
            log_eps_bar[j] = m**-0.75 * log_eps + (1 - m**-0.75) * log_eps_bar[j]
            assert steps.step_size[j].item() == pytest.approx(math.exp(log_eps), rel=1e-10)
            assert steps.final[j].item() == pytest.approx(math.exp(log_eps_bar[j]), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_step_size_has_the_wanted_acceptance(scale):
    """Where the rate is ``erfc((step / scale)^2)``, as in high dimensions (Beskos et al. 2013), without noise.

    What is left after n transitions is the pull towards mu, log(0.5) here: the errors of the rate add up to
    ``gamma sqrt(n) (mu - x)``, so the last is ``gamma (mu - x) / (2 sqrt(n))``, and their average less than twice that.
    """
    warmup, num = Warmup(HMC(0.05, 4, torch.ones(1)), 1000), 1000
    for _ in range(num):
        rate = erfc((warmup.kernel.step_size / scale) ** 2)
        warmup.update(torch.zeros(1, 1), torch.tensor(rate))
    right = scale * brentq(lambda step: erfc(step**2) - 0.8, 1e-3, 2)
    pull = 0.05 * abs(math.log(0.5 / right)) / num**0.5
    assert erfc((warmup.kernel.step_size / scale) ** 2) == pytest.approx(0.8, abs=pull)


@pytest.mark.parametrize(("lanes", "lowest", "highest"), [(64, 0.76, 0.83), (1, 0.76, 0.99)])
@pytest.mark.statistical
def test_acceptance_after_a_warmup(lanes, lowest, highest):
    """Two leapfrog steps, so that acceptance falls as steps grow (many would come full circle).

    Over 20 seeds it was 0.795 ± 0.005 with 64 lanes and 0.87 ± 0.025 with one, whose noise lets dual averaging err to
    the side of short steps; the limits are 5 of those away. Fails when the step size is not adapted, or not again after
    the mass has been.
    """
    transitions = run(HMC(0.001, 2), gaussian(ILL_SCALED), 400, 400, lanes)
    assert lowest < acceptance(transitions[400:]) < highest


@pytest.mark.statistical
def test_a_step_that_is_far_too_long_recovers():
    """Nothing is accepted at first; over 20 seeds, 0.909 ± 0.009 was in the end."""
    posterior = gaussian(ILL_SCALED)
    transitions = run(HMC(1e5, 8), posterior, 300, 100, start=torch.zeros(1, 10, dtype=torch.float64))
    assert transitions[0].info.diverging.all()
    assert acceptance(transitions[:5]) == 0
    assert 0.85 < acceptance(transitions[300:]) < 0.97


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("dim", "num_steps"), [(1, 2), (1, 20), (3, 10), (10, 3), (10, 7), (10, 8), (10, 11), (50, 5), (50, 20)]
)
def test_no_trajectory_is_tuned_to_come_full_circle(dim, num_steps):
    """Whatever the number of steps, draws are worth a tenth of independent ones, and chains agree.

    Fails without jitter: with 7 steps in 10 dimensions R-hat is 6 then, with 8 steps an ESS of 0.01 for each draw.
    """
    scales = torch.logspace(-2, 1, dim, dtype=torch.float64)
    chain = sample(gaussian(scales), HMC(0.05, num_steps), 1000, num_chains=16, warmup=300, seed=1, progress=False)
    assert rhat(chain.draws).max() < 1.01
    assert ess(chain.draws).min() > 1600
    assert ess(chain.draws, "tail").min() > 1600


def test_jitter_is_on_where_a_warmup_adapts():
    """From its first transition on, for several steps; one that was asked for is kept; without a warm-up, none."""
    posterior, kernel = gaussian([1.0, 2.0, 3.0]), HMC(0.1, 3)
    assert {t.kernel.jitter for t in run(kernel, posterior, 30, 5, 4)} == {ADAPTED_JITTER}
    assert {t.kernel.jitter for t in run(HMC(0.1, 3, jitter=0.1), posterior, 30, 5, 4)} == {0.1}
    assert {t.kernel.jitter for t in run(HMC(0.1, 1), posterior, 30, 5, 4)} == {None}
    for transition in run(kernel, posterior, 0, 5, 4):
        assert transition.kernel is kernel
        assert transition.info.step_size == 0.1


# --- mass -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moments_are_those_of_all_batches_together(dtype):
    """Far from 0, where a sum of squares would lose all digits; then drawn towards 0.001 as by five more draws."""
    batches = [(1e4 + normal(size, 3, seed=size)).to(dtype) for size in (1, 7, 2, 30)]
    moments = Moments.start(batches[0])
    for batch in batches:
        moments = moments.update(batch)
    variance = torch.cat(batches).double().var(0)
    torch.testing.assert_close(moments.mean, torch.cat(batches).double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.squares, 39 * variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(moments.variance, 40 / 45 * variance + 5 / 45 * 1e-3, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("num_warmup", "first", "ends"),
    [
        (1000, 75, [100, 150, 250, 450, 950]),  # Stan's documented windows: 75, then 25, 50, 100, 200, 500, then 50
        (200, 75, [100, 150]),
        (150, 75, [100]),
        (149, 22, [135]),
        (100, 15, [90]),
        (21, 3, [19]),
        (20, 3, [18]),
        (19, 19, []),
        (1, 1, []),
        (0, 0, []),
    ],
)
def test_windows(num_warmup, first, ends):
    assert windows(num_warmup) == (first, ends)


def test_windows_of_any_warmup():
    """Each twice as long as the one before, except that the last takes what is left, and time for the step size."""
    for num_warmup in range(20, 3000):
        first, ends = windows(num_warmup)
        lengths = np.diff([first, *ends])
        assert (lengths > 0).all()
        assert num_warmup - ends[-1] == (50 if num_warmup >= 150 else num_warmup // 10)
        assert (lengths[1:-1] == 2 * lengths[:-2]).all()
        assert len(lengths) == 1 or lengths[-1] >= 2 * lengths[-2]


@pytest.mark.parametrize(("lanes", "factor"), [(1, 2.0), (64, 1.2)])
@pytest.mark.statistical
def test_the_mass_is_that_of_the_posterior(lanes, factor):
    """The ten variances span five orders of magnitude. Over 20 seeds the logarithms of their estimates had standard
    deviations of 0.15 with one lane and 0.037 with 64; the limits are near 5 of those.

    Fails when positions from before the first window count, or when mass and inverse mass are mixed up.
    """
    transitions = run(HMC(0.001, 10), gaussian(ILL_SCALED), 600 if lanes == 1 else 300, 1, lanes)
    ratio = transitions[-1].kernel.inv_mass / ILL_SCALED**2
    assert (1 / factor < ratio).all()
    assert (ratio < factor).all()


@pytest.mark.parametrize("kernel", [HMC(0.1, 3), ChEES()], ids=["HMC", "ChEES"])
@pytest.mark.parametrize("mass", [torch.full((3,), 2.0), torch.eye(3) + 0.5], ids=["diagonal", "dense"])
def test_a_given_mass_is_kept(kernel, mass):
    mass = mass.double()
    kernel = type(kernel)(*list(vars(kernel).values())[:2], mass)
    *_, last = run(kernel, gaussian([1.0, 2.0, 3.0]), 150, 1, 4)
    assert last.kernel.inv_mass is mass
    assert last.kernel.step_size != kernel.step_size


# --- what a warm-up is and is not -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [HMC(0.1, 3), ChEES()], ids=["HMC", "ChEES"])
def test_the_kernel_changes_in_the_warmup_and_not_afterwards(kernel):
    transitions = run(kernel, gaussian([1.0, 2.0, 3.0]), 30, 20, 4)
    assert transitions[0].kernel.step_size == kernel.step_size
    assert len({transition.kernel.step_size for transition in transitions[:30]}) == 30
    assert {transition.kernel for transition in transitions[30:]} == {transitions[30].kernel}
    assert transitions[30].kernel.inv_mass is not None


@pytest.mark.parametrize("kernel", [HMC(0.1, 3), ChEES()], ids=["HMC", "ChEES"])
def test_without_a_warmup_nothing_adapts(kernel):
    assert {id(transition.kernel) for transition in run(kernel, gaussian([1.0, 2.0]), 0, 20)} == {id(kernel)}


@pytest.mark.parametrize("kernel", [HMC(0.1, 3), ChEES()], ids=["HMC", "ChEES"])
def test_a_chain_says_with_what_it_was_drawn(kernel):
    posterior = gaussian([1.0, 2.0, 3.0])
    chain = sample(posterior, kernel, 20, num_chains=4, warmup=30, seed=5, progress=False)
    transitions = run(kernel, posterior, 30, 20, 4, seed=5)
    assert chain.kernel == repr(transitions[-1].kernel)
    assert "inv_mass=diagonal" in chain.kernel
    assert torch.equal(chain.draws, torch.stack([transition.theta for transition in transitions[30:]], 1))
    last, sizes = transitions[-1].kernel, chain.stats["step_size"]
    spread = getattr(last, "jitter", 0) * last.step_size
    assert (sizes - last.step_size).abs().max() <= spread
    assert (sizes.unique().numel() == sizes.numel()) == bool(spread)


def test_each_batch_adapts_on_its_own():
    """As if it were alone."""
    posterior = gaussian([1.0, 2.0, 3.0])
    kernel = HMC(0.1, 3, jitter=0)
    chain = sample(posterior, kernel, 5, num_chains=5, batch_size=2, warmup=30, seed=5, progress=False)
    assert (chain.stats["step_size"] == chain.stats["step_size"][:, :1]).all()
    steps = chain.stats["step_size"][:, 0].tolist()
    assert steps[0] == steps[1] != steps[2] == steps[3] != steps[4]


# --- trajectory length ------------------------------------------------------------------------------------------------


def test_halton():
    """Against SciPy's, which begins with 0."""
    expected = qmc.Halton(1, scramble=False).random(1001)[1:, 0]
    assert [halton(number) for number in range(1, 1001)] == expected.tolist()


MASSES = {
    "identity": None,
    "diagonal": torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64),
    "dense": torch.tensor([[4.0, 1.0, 0.3], [1.0, 1.0, 0.2], [0.3, 0.2, 0.25]], dtype=torch.float64),
}


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("time", [0.4, 1.3, 2.5, 4.0])
def test_gradient_of_the_criterion(mass, time):
    """Against a finite difference along exact trajectories: circles, where the mass is the posterior's precision.

    Each lane has a mirror image, so that means stay at 0 and the two agree without Monte Carlo error. Some lanes count
    for less, and one, that is infinitely far away, for nothing.
    """
    inv_mass = MASSES[mass]
    covariance = torch.eye(3, dtype=torch.float64) if inv_mass is None else inv_mass
    factor = torch.linalg.cholesky(covariance.diag() if covariance.ndim == 1 else covariance)
    z, q, rate = 2 * normal(50, 3, seed=1), normal(50, 3, seed=2), torch.rand(50, generator=generator()).double()
    z, q, rate = torch.cat([z, -z]), torch.cat([q, -q]), torch.cat([rate, rate])
    center = torch.tensor([3.0, -5.0, 7.0], dtype=torch.float64)

    def criterion(t):
        return (rate * ((z * math.cos(t) + q * math.sin(t)).square().sum(-1) - z.square().sum(-1)) ** 2).sum() / 4

    def energies(rates):
        return torch.zeros_like(rates), -rates.log()

    end, p = (z * math.cos(time) + q * math.sin(time)) @ factor.mT, (q * math.cos(time) - z * math.sin(time))
    p = torch.linalg.solve(factor, p, left=False)  # p' = q' L^-1, for M = (L L')^-1
    end, p = (torch.cat([values, torch.full((1, 3), torch.inf).double()]) for values in (end + center, p))
    start = torch.cat([z @ factor.mT + center, center[None]])
    weights = torch.cat([rate, torch.zeros(1).double()])
    proposal = Proposal(HMCState(end, *[None] * 2), p, *energies(weights))
    warmup = ChEESWarmup(ChEES(0.1, 1.0, inv_mass), 100)
    slope = (criterion(time + 1e-5) - criterion(time - 1e-5)) / 2e-5 / rate.sum()
    torch.testing.assert_close(warmup._gradient(start, proposal, weights), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.statistical
def test_learned_length_of_one_wide_direction():
    """Of all directions the widest decides; its sd is 10 here.

    The criterion averaged over u is proportional to ``1/2 - sin(2 T / sd) / (4 T / sd)``, highest at T = 2.247 sd.
    Half a step is to be taken off, by which rounding up lengthens the trajectories. Over 20 seeds the length was 0.98 ±
    0.03 of that. Fails when the sign of the gradient is wrong, without jitter (a quarter of a period, 1.57 sd), and
    when the factor u is left out of the gradient (half a period).
    """
    posterior = gaussian([10.0] + 9 * [1.0])
    *_, last = run(ChEES(0.1, 0.5, torch.ones(10).double()), posterior, 400, 1, 64)
    best = 10 * brentq(lambda t: math.tan(2 * t) - 2 * t, 2, 2.35)
    assert last.kernel.trajectory_length == pytest.approx(best - last.kernel.step_size / 2, rel=0.18)


@pytest.mark.parametrize("sd", [10 * [1.0], [100.0] + 9 * [0.01]], ids=["round", "wide"])
@pytest.mark.parametrize("lanes", [4, 64])
@pytest.mark.statistical
def test_learned_length_with_learned_mass(sd, lanes):
    """All directions have one width then, and about two steps, of 0.75, are best: 1.4 to 1.8 over 80 runs.

    Fails when a step size that is only tried moves the length, and when the length stays what it was before the mass
    was set, because it then ends in one of the lower maxima of the criterion, at 5 or more.
    """
    *_, last = run(ChEES(), gaussian(sd), 400, 1, lanes)
    assert 1.3 < last.kernel.trajectory_length < 2.3


def test_number_of_steps_follows_halton():
    """Through warm-up and draws."""
    u, warmup = qmc.Halton(1, scramble=False).random(180)[1:, 0], 150
    transitions = run(ChEES(0.1, 2.0), gaussian(10 * [1.0]), warmup, 29, 4)
    for jitter, transition in zip(u, transitions, strict=True):
        kernel = transition.kernel
        assert transition.info.n_steps == math.ceil(jitter * kernel.trajectory_length / kernel.step_size)
    assert len({transition.info.n_steps for transition in transitions[warmup:]}) > 1


def test_steps_are_limited():
    """A trajectory that wants more is cut, and one that wants less than one step makes one."""
    calls = []

    def log_prob_and_grad(theta):
        calls.append(1)
        return -theta.square().sum(-1) / 2, -theta

    kernel = ChEES(1e-3, 1e4)
    state = kernel.init(log_prob_and_grad, torch.zeros(2, 3))
    _, info, _ = kernel.build_kernel(log_prob_and_grad)(generator(), state)
    assert info.n_steps == MAX_STEPS == len(calls) - 1
    assert {ChEES(1.0, 0.1).steps(count) for count in range(20)} == {1}


@pytest.mark.statistical
def test_one_lane_learns_no_length():
    """It is its own mean; the rest is learned all the same."""
    *_, last = run(ChEES(0.1, 0.5, torch.ones(2).double()), gaussian([1.0, 1.0]), 100, 1)
    assert last.kernel.trajectory_length == pytest.approx(0.5)
    assert last.kernel.step_size > 0.3


# --- what is refused, and how kernels show themselves -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"trajectory_length": math.inf}, "trajectory_length must be positive and finite, got inf"),
        ({"inv_mass": torch.tensor([1.0, -2.0])}, "inv_mass must be positive and finite, but it holds -2"),
    ],
)
def test_chees_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChEES(**arguments)


def test_repr():
    assert repr(ChEES(0.1234567, 2.0)) == "ChEES(step_size=0.123, trajectory_length=2)"
    assert repr(ChEES(0.1, 2.0, MASSES["dense"])) == "ChEES(step_size=0.1, trajectory_length=2, inv_mass=dense)"
