"""Kernels of a reader's own: sampled, extended, shared out and calibrated like the library's, or refused in words.

That they draw from the right distribution: test_exactness.py and test_joint.py, which ask the same of all samplers.
"""

import doctest
from typing import NamedTuple

import pytest
import torch
from torch import nn

from bnn_utils import HMC, sample
from bnn_utils.kernels import base
from bnn_utils.kernels.base import Info
from bnn_utils.sbc import simulation_based_calibration
from own_kernels import AdaptingWalk, ManyAtOnce, RandomWalk
from targets import regression

FACTOR = 0.2 * torch.eye(3, dtype=torch.float64)
KERNELS = {
    "random walk": RandomWalk(FACTOR),
    "adapting walk": AdaptingWalk(FACTOR, 10.0),
    "many at once": ManyAtOnce(FACTOR),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@pytest.fixture
def posterior():
    return regression()


def draw(posterior, kernel, num_samples=30, num_chains=4, **arguments):
    return sample(posterior, kernel, num_samples, num_chains, **{"seed": 1, "progress": False} | arguments)


def same(one, two):
    return torch.equal(one.draws, two.draws) and all(torch.equal(one.stats[k], two.stats[k]) for k in one.stats)


def test_what_a_kernel_is():
    """The example of the module that says so."""
    found = doctest.testmod(base)
    assert (found.failed, found.attempted > 5) == (0, True)


# --- like the library's -----------------------------------------------------------------------------------------------


@each_kernel
def test_draws_and_statistics(posterior, kernel):
    chain = draw(posterior, kernel, warmup=20)
    assert chain.draws.shape == (4, 30, 3)
    torch.testing.assert_close(chain.stats["lp"].flatten(), posterior.log_prob(chain.draws.flatten(0, 1)))
    assert 0 < chain.stats["is_accept"].sum() < 120
    assert "diverging" not in chain.stats
    assert type(chain.kernel) is type(kernel)


def test_its_warmup_adapts(posterior):
    """And the kernel as it was left goes on without one."""
    kernel = KERNELS["adapting walk"]
    chain = draw(posterior, kernel, warmup=200)
    assert kernel.width == 10
    assert chain.kernel.width < 5
    assert (chain.stats["step_size"] == chain.kernel.width).all()
    assert (draw(posterior, chain.kernel).stats["step_size"] == chain.kernel.width).all()
    assert draw(posterior, kernel, num_samples=1, warmup=3).stats["step_size"].max() != 10


@each_kernel
@pytest.mark.parametrize("batch_size", [None, 2])
def test_extended(posterior, kernel, batch_size):
    """The draws of a longer run, to the bit."""
    whole, first = (draw(posterior, kernel, num, warmup=15, batch_size=batch_size, thin=2) for num in (25, 10))
    assert same(first.extend(15), whole)


@each_kernel
def test_workers(posterior, kernel):
    one, two = (draw(posterior, kernel, warmup=15, batch_size=2, workers=workers) for workers in (1, 2))
    assert same(one, two)


@pytest.mark.parametrize(
    "arguments", [{}, {"thin": 10}, {"num_samples": 60, "num_chains": 64, "warmup": 25, "thin": 3, "compile": False}]
)
def test_many_at_once_is_one_after_the_other(posterior, arguments):
    """To the bit, so test_exactness.py asks only one of both about its draws."""
    assert same(*(draw(posterior, KERNELS[name], **arguments) for name in ("random walk", "many at once")))


def test_many_at_once_are_asked_for(posterior, monkeypatch):
    """Fails when `steps` is there and not used."""

    def step(*_):
        raise AssertionError("one after the other")

    monkeypatch.setattr(ManyAtOnce, "step", step)
    assert draw(posterior, KERNELS["many at once"]).num_draws == 30


@pytest.mark.statistical
@each_kernel
def test_calibrated(kernel):
    """Of 512 data sets; a right sampler fails once in 10,000 times. Fails when it accepts everything."""
    first = {"first": lambda theta: theta[..., 0]}
    found = simulation_based_calibration(regression(), kernel, first, thin=5, seed=1, progress=False)
    assert found.is_calibrated, found.verdict


class AlwaysThere(RandomWalk):
    """Every proposal is taken."""

    def step(self, density, generator, state):
        noise = torch.randn(state.theta.shape, generator=generator, dtype=state.theta.dtype)
        theta = state.theta + noise @ self.factor.mT
        state = state._replace(theta=theta, log_prob=density.joint.log_prob_and_grad(theta)[0])
        return state, Info(*state, {"is_accept": torch.ones(len(noise), dtype=torch.bool)})


@pytest.mark.statistical
def test_a_wrong_one_is_not_calibrated():
    """Over 20 seeds all p-values were below 1e-10."""
    first = {"first": lambda theta: theta[..., 0]}
    found = simulation_based_calibration(regression(), AlwaysThere(FACTOR), first, thin=5, seed=1, progress=False)
    assert not found.is_calibrated


def test_a_network(make_posterior):
    kernel = RandomWalk(0.05 * torch.eye(20))
    chain = draw(make_posterior(), kernel)
    assert chain.draws.shape == (4, 30, 20)
    assert repr(chain).count("RandomWalk") == 1


# --- what is no kernel ------------------------------------------------------------------------------------------------


class WithoutStep(NamedTuple):
    lanes_per_chain = 1

    def init(self, density, theta, num_warmup):
        return None


class NoLanes(RandomWalk):
    lanes_per_chain = 0


class UnknownLanes(RandomWalk):
    lanes_per_chain = None


class HalfALane(RandomWalk):
    lanes_per_chain = 0.5


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        (3, "got 3"),
        ("HMC", "got 'HMC'"),
        (RandomWalk, "got the class RandomWalk itself"),
        (HMC, "got the class HMC itself"),
        (WithoutStep(), "got an object of type WithoutStep"),
        (lambda theta: theta, "got an object of type function"),
        (nn.Linear(2, 1), "got an object of type Linear"),
    ],
)
def test_no_kernel(posterior, kernel, told):
    """The protocol in words, and where an example is."""
    words = (
        r"kernel must be HMC, NUTS, .* or one of your own: an object with lanes_per_chain, init\(density, theta, "
        r"num_warmup\) -> state, and step\(density, generator, state\) -> \(state, Info\).*kernels.base shows one; "
    )
    with pytest.raises(TypeError, match=words + told):
        sample(posterior, kernel, 3)
    with pytest.raises(TypeError, match=words + told):
        simulation_based_calibration(posterior, kernel, {})


@pytest.mark.parametrize(
    ("kernel", "error", "got"),
    [(NoLanes, ValueError, "0"), (HalfALane, ValueError, "0.5"), (UnknownLanes, TypeError, "None")],
)
def test_number_of_lanes(posterior, kernel, error, got):
    words = f"lanes_per_chain of {kernel.__name__} must be a whole number of at least 1, got {got}"
    with pytest.raises(error, match=words):
        sample(posterior, kernel(FACTOR), 3)


# --- what a kernel may not return -------------------------------------------------------------------------------------


class Wrong(RandomWalk):
    """A random walk whose transitions, from some on, are changed by a function."""

    def __init__(self, change, after=0):
        super().__init__(FACTOR)
        object.__setattr__(self, "change", change)
        object.__setattr__(self, "after", after)

    def init(self, density, theta, num_warmup):
        return 0, super().init(density, theta, num_warmup)

    def step(self, density, generator, state):
        count, walk = state
        walk, info = super().step(density, generator, walk)
        return (count + 1, walk), self.change(info) if count >= self.after else info


def stat(name, value):
    return lambda info: info._replace(stats={name: value})


WRONG = {
    "no Info": (lambda info: info.theta, r"in place of the Info came a tensor of shape \(4, 3\)"),
    "a plain tuple": (tuple, "in place of the Info came an object of type tuple"),
    "one lane less": (
        lambda info: info._replace(theta=info.theta[1:]),
        r"a theta of shape \(4, 3\) and torch.float64; it is a tensor of shape \(3, 3\)",
    ),
    "transposed": (lambda info: info._replace(theta=info.theta.mT), r"it is a tensor of shape \(3, 4\)"),
    "another dtype": (lambda info: info._replace(theta=info.theta.float()), r"\(4, 3\) and torch.float32"),
    "theta as a list": (lambda info: info._replace(theta=info.theta.tolist()), "it is an object of type list"),
    "one log density": (lambda info: info._replace(log_prob=info.log_prob.sum()), r"a log_prob of shape \(4,\) and"),
    "a statistic called lp": (stat("lp", torch.zeros(4)), "a statistic can't be called 'lp'"),
    "a statistic called draws": (stat("draws", 1.0), "a statistic can't be called 'draws'"),
    "a ladder": (stat("tempering_replica", torch.zeros(4, 2)), "can't be called 'tempering_replica'"),
    "a value of a function": (stat("kept_p", torch.zeros(4, 2)), "can't be called 'kept_p'"),
    "a statistic of another shape": (stat("rate", torch.zeros(3)), r"\(4, '...'\); 'rate' is a tensor of shape \(3,\)"),
    "a statistic in words": (stat("rate", "high"), "'rate' is 'high'"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_what_a_step_may_not_return(posterior, change, words):
    with pytest.raises((TypeError, ValueError), match=r"Wrong must return \(state, Info\) from each step.*" + words):
        draw(posterior, Wrong(change))


@pytest.mark.parametrize("name", ["theta", "log_prob"])
def test_places_that_are_none(posterior, name):
    """NaN is found wherever it comes, and the draws before are kept."""

    def nowhere(info):
        values = getattr(info, name).clone()
        values[2] = torch.nan
        return info._replace(**{name: values})

    words = "Wrong went to where theta or the log density is not a finite number, in transition 19"
    with pytest.raises(ValueError, match=words) as caught:
        draw(posterior, Wrong(nowhere, after=18), warmup=5)
    assert caught.value.chain.num_draws == 13
    assert torch.equal(caught.value.chain.draws, draw(posterior, KERNELS["random walk"], 13, warmup=5).draws)


def test_statistics_may_be_of_any_kind(posterior):
    """Numbers, and tensors with more dimensions."""

    def more(info):
        return info._replace(stats={"number": 3, "half": 0.5, "vector": torch.ones(4, 2), "flag": torch.ones(4) > 0})

    stats = draw(posterior, Wrong(more)).stats
    assert {name: tuple(values.shape) for name, values in stats.items()} == {
        "lp": (4, 30), "number": (4, 30), "half": (4, 30), "vector": (4, 30, 2), "flag": (4, 30),
    }  # fmt: skip
    assert (stats["number"].dtype, stats["half"].dtype, stats["flag"].dtype) == (torch.int64, torch.float64, torch.bool)


def test_an_error_in_the_middle_of_many(posterior):
    """What one call for many transitions had made is lost, what the calls before it had made is not."""

    class Fails(ManyAtOnce):
        def steps(self, density, generator, state, num):
            if num > 1:
                raise ZeroDivisionError("in here")
            return super().steps(density, generator, state, num)

    with pytest.raises(ZeroDivisionError) as caught:
        draw(posterior, Fails(FACTOR))
    assert same(caught.value.chain, draw(posterior, KERNELS["many at once"], caught.value.chain.num_draws))
