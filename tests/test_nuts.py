"""NUTS: trees, beside an oracle that keeps whole trajectories; what is recorded. What it draws: test_exactness.py."""

import itertools
import math

import pytest
import torch
from scipy.stats import chi2

from bnn_utils import NUTS, random, sample
from bnn_utils.kernels.hmc import Position, energy_of, leapfrog
from bnn_utils.kernels.nuts import Stretch, turns_back
from bnn_utils.random import lane_keys, lane_uniform
from targets import FALSE_ALARM, density_of, generator, normal, rotated, spread, with_moments

DIM = 3
MASSES = {
    "identity": None,
    "diagonal": torch.tensor([1.2, 0.4, 2.0], dtype=torch.float64),
    "dense": torch.eye(DIM).double() + 0.4,
}


def bumpy(theta):
    """A density that is not Gaussian: trajectories in it are no ellipses."""
    return (2 * theta.cos() - theta.square() / 2).sum(-1), -2 * theta.sin() - theta


def of_one(theta, p, key, kernel, metric):
    """Where one lane's transition leads, its depth and its leapfrog steps, by keeping all states of its trajectory.

    Stretches are looked at as lists of places: every one that doublings are made of, by its definition.
    """

    def state(position, p):
        return position, p, metric.velocity(p), energy_of(position, p, metric.velocity).item()

    def turned(places):
        ps, vs = ([states[place][k][0] for place in sorted(places)] for k in (1, 2))
        half = len(places) // 2
        pieces = [range(len(ps)), range(half + 1), range(half - 1, len(ps))] if half > 1 else [range(len(ps))]
        return any(
            (sum(ps[i] for i in piece) @ vs[end]).item() <= 0 for piece in pieces for end in (piece[0], piece[-1])
        )

    def uniform(number):
        return lane_uniform(torch.tensor([key]), number).item()

    states = {0: state(Position(theta[None], *bumpy(theta[None])), p[None])}
    start, places, chosen, depth, num_steps = states[0][3], [0], 0, 0, 0
    for level in range(kernel.max_tree_depth):
        size, added, drawn, weights = 2**level, [], None, []
        sign = 1 if uniform(3 * size) < 0.5 else -1
        edge = max(places) if sign == 1 else min(places)
        for i in range(size):
            position, p, *_ = states[edge + sign * i]
            here, num_steps = edge + sign * (i + 1), num_steps + 1
            moved = leapfrog(position, p, bumpy, sign * kernel.step_size, 1, metric.velocity)
            states[here] = state(*moved)
            if not states[here][3] - start <= 1000:
                return chosen, states, depth, num_steps
            added.append(here)
            weights.append(math.exp(start - states[here][3]))
            if uniform(3 * (size + i) + 2) < weights[-1] / sum(weights):
                drawn = here
            lengths = [2**k for k in range(1, level + 1) if (i + 1) % 2**k == 0]
            if any(turned(added[-length:]) for length in lengths):
                return chosen, states, depth, num_steps
        before = sum(math.exp(start - states[place][3]) for place in places)
        if uniform(3 * size + 1) < sum(weights) / before:
            chosen = drawn
        places, depth = places + added, depth + 1
        if turned(places):
            break
    return chosen, states, depth, num_steps


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("step_size", [0.1, 0.4, 1.0, 30.0])
def test_trees_are_those_of_the_definition(mass, step_size):
    """Fails when a stretch is not looked at, or one too many, when a number is used twice, or weights are other ones.

    Trajectories of several lengths are met with each step size but the last, with which all diverge.
    """
    kernel, lanes = NUTS(step_size, 6, MASSES[mass]), 40
    density, theta = density_of(bumpy), normal(lanes, DIM)
    state = kernel.init(density, theta, 0)
    first = torch.rand(lanes, generator=(dice := generator(1)), dtype=theta.dtype)
    noise = torch.randn(theta.shape, generator=dice, dtype=theta.dtype)
    key, p = lane_keys(first, torch.rand(lanes, generator=dice, dtype=theta.dtype)), state.metric.momentum(noise)
    _, info = kernel.step(density, generator(1), state)
    depths = set()
    for lane in range(lanes):
        chosen, states, depth, num_steps = of_one(theta[lane], p[lane], key[lane].item(), kernel, state.metric)
        depths.add(depth)
        (end, *_, energy), start = states[chosen], states[0][3]
        torch.testing.assert_close(info.theta[lane], end.theta[0])
        torch.testing.assert_close(info.log_prob[lane], end.log_prob[0])
        found = {name: values[lane].item() for name, values in info.stats.items() if name != "step_size"}
        assert (found["tree_depth"], found["n_steps"]) == (depth, num_steps)
        assert found["energy"] == pytest.approx(energy)
        assert found["energy_error"] == pytest.approx(energy - start)
        others = [state[3] for place, state in states.items() if place != 0]
        rates = [min(1.0, math.exp(start - other)) for other in others if other - start < 1000]
        assert found["acceptance_rate"] == pytest.approx(sum(rates) / num_steps)
        assert found["diverging"] == any(not other - start <= 1000 for other in others)
    assert len(depths) > 1 if step_size < 30 else info.stats["diverging"].all()


def test_a_stretch_backwards_turns_as_it_does_forwards():
    """Trajectories may grow against time."""
    p, v = normal(6, 50, DIM), normal(6, 50, DIM, seed=1)
    one, two = (Stretch(p[k], p[k + 1], v[k + 1], p[k + 2], v[k + 2]) for k in (0, 3))
    forwards = turns_back(one, two)
    assert 0 < forwards.sum() < 50
    assert torch.equal(forwards, turns_back(two.reversed(), one.reversed()))


def test_trajectories_that_are_cut():
    """They say so, and the chain does."""
    kernel, density = NUTS(0.01, 3), density_of(bumpy)
    _, info = kernel.step(density, generator(), kernel.init(density, normal(20, DIM), 0))
    assert info.stats["reached_max_treedepth"].all()
    assert (info.stats["n_steps"] == 7).all()
    _, info = (kernel := NUTS(0.3)).step(density, generator(), kernel.init(density, normal(20, DIM), 0))
    assert not info.stats["reached_max_treedepth"].any()


def test_steps_that_diverge_leave_the_chain_where_it_is(posterior):
    for compile in (True, False):
        chain = sample(posterior, NUTS(1e200), 5, 20, seed=1, progress=False, compile=compile)
        assert chain.stats["diverging"].all()
        assert (chain.stats["n_steps"] == 1).all()
        assert (chain.stats["acceptance_rate"] == 0).all()
        assert (chain.draws == chain.draws[:, :1]).all()


def test_what_a_chain_says_of_trajectories_that_were_cut(posterior):
    chain = sample(posterior, NUTS(1e-4, 2), 20, 4, seed=1, progress=False)
    assert any(
        warning.startswith("80 of 80 trajectories (100.0%) were cut at the largest tree depth, after 3 leapfrog steps,")
        for warning in chain.warnings
    )


def test_how_it_is_told():
    assert repr(NUTS()) == "NUTS(step_size=0.1)"
    told = "NUTS(step_size=0.123, max_tree_depth=5, target_acceptance=0.95, inv_mass=dense)"
    assert repr(NUTS(0.12345, 5, MASSES["dense"], target_acceptance=0.95)) == told


@pytest.mark.statistical
@pytest.mark.parametrize(("target", "error"), [(0.8, 0.07), (0.95, 0.025)])
def test_the_target_is_reached(target, error):
    """Over 20 seeds rates were 0.013 ± 0.009 above a target of 0.8, and 0.006 ± 0.0024 below one of 0.95."""
    posterior = with_moments(normal(10), rotated(spread(0.3, 3, 10), 1))
    chain = sample(posterior, NUTS(target_acceptance=target), 200, 32, 300, seed=3, progress=False)
    assert chain.stats["acceptance_rate"].mean().item() == pytest.approx(target, abs=error)


# --- numbers of a lane's own ------------------------------------------------------------------------------------------


def test_numbers_are_those_of_splitmix64():
    """The first three of its seeds 0 and 1234567, as published, by their first 24 bits."""
    published = {
        0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F),
        1234567: (6457827717110365317, 3203168211198807973, 9817491932198370423),
    }
    for key, numbers in published.items():
        for n, number in enumerate(numbers, 1):
            assert lane_uniform(torch.tensor([key]), n).item() == (number >> 40) / 2**24


@pytest.mark.statistical
def test_numbers_are_uniform_and_unrelated():
    """Of keys that were drawn, two successive numbers at a time, in 16 x 16 cells."""
    u = torch.rand(2, 50_000, generator=generator(2))
    key = lane_keys(*u)
    assert len(key.unique()) == len(key)
    for n, m in itertools.pairwise((1, 2, 3, 1000)):
        cells = (16 * lane_uniform(key, n)).long() * 16 + (16 * lane_uniform(key, m)).long()
        counts = cells.bincount(minlength=256).double()
        expected = len(key) / 256
        assert ((counts - expected).square() / expected).sum() < chi2.isf(FALSE_ALARM / 3, 255)


def test_keys_take_all_bits_of_single_precision():
    last = 1 - 2.0**-random.KEY_BITS
    assert lane_keys(torch.tensor([last]), torch.tensor([last])).item() == 2**48 - 1
    assert lane_keys(torch.tensor([0.0]), torch.tensor([2.0**-24])).item() == 1
