"""Chains that are not independent: copies, and runs that drew the same random numbers."""

import numpy as np
import pytest
import torch

from bnn_utils import HMC, MAMS, MCLMC, NUTS, SGHMC, Chain, ChEES, ReplicaExchange, coupling, sample
from bnn_utils.coupling import copies, coupled, named
from bnn_utils.diagnostics import convergence
from targets import FALSE_ALARM


def ar(coefficient, chains, draws, quantities=1, seed=0):
    """Independent chains, in equilibrium from the start."""
    noise = np.random.default_rng(seed).standard_normal((draws, chains, quantities))
    noise[1:] *= (1 - coefficient**2) ** 0.5
    for now, before in zip(noise[1:], noise, strict=False):
        now += coefficient * before
    return torch.from_numpy(noise.swapaxes(0, 1).copy())


def with_last(draws, last):
    return torch.cat([draws, last[None]])


LONG = ar(0.9, 1, 2000, 3, seed=1)[0]
OTHERS = ar(0.9, 2, 500, 3)
FIRST = with_last(OTHERS, LONG[:500])
COPIES = {
    "the same": LONG[:500],
    "shifted": LONG[100:600],
    "thinned": LONG[:1000:2],
    "only the last tenth": torch.cat([ar(0.9, 1, 450, 3, seed=2)[0], LONG[450:500]]),
    "a part, elsewhere": torch.cat([LONG[400:500], ar(0.9, 1, 400, 3, seed=2)[0]]),
    "with rejections": LONG[:250].repeat_interleave(2, dim=0),
    "single precision": LONG[:500].float().double(),
}


@pytest.mark.parametrize("last", COPIES.values(), ids=COPIES)
def test_copies(last):
    first = FIRST if last is not COPIES["single precision"] else FIRST.float().double()
    assert copies(with_last(first, last)) == [(2, 3)]
    assert copies(with_last(first, last)[:, :, :1]) == [(2, 3)], "one parameter"


def test_copies_of_two_draws():
    two = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    assert copies(two.repeat(3, 1, 1)) == [(0, 1), (1, 2)]


def stuck():
    """All started at one point, and three never left."""
    draws = ar(0.5, 4, 50, 3)
    draws[:3] = draws[0, 0]
    draws[3, :10] = draws[0, 0]
    return draws


def saturated():
    """Predictions of 0 and 1, which chains have in common, and none that moved."""
    return ar(0.9, 4, 300, 2).sign().float()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ar(0.9, 4, 500, 3),
        lambda: ar(0.0, 4, 20_000).float(),  # some values that are equal by chance
        stuck,
        saturated,
        lambda: ar(0.9, 4, 300).mul(3).round(),
        lambda: LONG.view(4, 500, 3),  # one chain cut into four
    ],
    ids=["independent", "one float32", "stuck", "saturated", "counts", "pieces"],
)
def test_no_copies(make):
    draws = make()
    assert copies(draws, fewest=10) == []
    if make is stuck:
        assert copies(draws) == []


def rejecting(rate, chains, draws, seed=0):
    """Independent proposals, few of which are accepted."""
    rng = np.random.default_rng(seed)
    moved = rng.random((chains, draws)) < rate
    last = np.maximum.accumulate(np.where(moved, np.arange(draws), 0), axis=1)
    return torch.from_numpy(np.take_along_axis(rng.standard_normal((chains, draws)), last, axis=1)[..., None])


TIMES = np.arange(1000)
INDEPENDENT = {
    "independent draws": lambda: ar(0.0, 64, 1000),
    "slow": lambda: ar(0.99, 64, 1000),
    "to and fro": lambda: ar(-0.999, 64, 1000),
    "random walks": lambda: ar(0.0, 64, 1000).cumsum(1),
    "drifting together": lambda: (1 + ar(0.0, 64, 1000)).cumsum(1),
    "coming from afar": lambda: ar(0.9, 64, 1000) + 30 * torch.from_numpy(np.exp(-TIMES / 60))[:, None],
    "swinging": lambda: (
        torch.from_numpy(np.sin(1.4 * TIMES + np.arange(64)[:, None] ** 2))[..., None] + 0.3 * ar(0.0, 64, 1000)
    ),
    "one move in fifty": lambda: rejecting(0.02, 64, 1000),
    "three moves in a thousand": lambda: rejecting(0.003, 64, 1000),
    "skewed": lambda: ar(0.5, 64, 1000).mul(2).exp(),
    "two values": lambda: ar(0.5, 64, 1000).sign(),
    "short": lambda: ar(0.5, 64, 30),
}


@pytest.mark.statistical
@pytest.mark.parametrize("make", INDEPENDENT.values(), ids=INDEPENDENT)
def test_independent_chains_are_not_named(make, monkeypatch):
    """2,016 pairs, at a rate of false alarms that is 100 times the one in use: 1e-4 for each set.

    Fails when autocorrelation is left out of the variance ("to and fro", "swinging"), or the few moves that coincide
    ("three moves in a thousand").
    """
    monkeypatch.setattr(coupling, "FALSE_ALARM", FALSE_ALARM)
    draws = make()
    assert coupled(draws) == []
    assert coupled(torch.cat([draws, draws.square()], dim=2)) == []


@pytest.mark.parametrize("last", [COPIES["the same"], COPIES["single precision"]])
def test_copies_move_together(last):
    assert coupled(with_last(FIRST, last)) == [(2, 3)]


def test_chains_that_came_together():
    """Two that were apart, and end in the same draws."""
    late = torch.cat([ar(0.9, 1, 200, 3, seed=2)[0], LONG[200:500]])
    assert coupled(with_last(FIRST, late)) == [(2, 3)]


@pytest.mark.statistical
@pytest.mark.parametrize("kernel", [HMC(0.05, 4), ChEES(0.05, 0.5), MAMS(0.2, 1.0), MCLMC(0.2, 1.0)], ids=repr)
def test_the_same_random_numbers_from_different_starts(posterior, kernel):
    """All six pairs of four runs with one seed: the least z of three seeds was 13.6, and 5.6 is enough.

    Fails when the runs are compared by where they are, which in different modes differs. (Where rejections keep a chain
    from moving, and where trajectories are so long that momentum says little of where they end, it takes more draws.)
    """
    starts = posterior.sample_prior(4, torch.Generator().manual_seed(1))
    runs = [sample(posterior, kernel, 500, init=start, seed=0, progress=False, compile=False) for start in starts]
    draws = torch.cat([run.draws for run in runs])
    assert copies(draws) == []
    assert len(coupled(draws)) == 6
    with pytest.warns(RuntimeWarning, match=r"chains 0 and 1 \(and 5 more pairs\) move together, as runs with"):
        Chain.from_draws(draws, posterior).summary()


LANES = [
    HMC(0.1, 5),
    ChEES(0.05, 0.5),
    MAMS(0.1, 2.0),
    MCLMC(),
    NUTS(0.1, 3),
    ReplicaExchange(HMC(0.1, 2), 3),
    SGHMC(0.02, 20),
]


@pytest.mark.statistical
@pytest.mark.parametrize("kernel", LANES, ids=repr)
def test_lanes_of_one_run_are_independent(posterior, kernel):
    """Also where they share trajectory lengths. False alarm: 1e-6."""
    chain = sample(posterior, kernel, 400, 16, seed=0, progress=False, compile=False)
    assert copies(chain.draws) == coupled(chain.draws) == []


def test_thousands_of_chains_are_compared_in_the_same_way(monkeypatch):
    """Quantity by quantity, by products of matrices, which for one quantity is the same number."""
    signs = FIRST[:, :, :1].diff(dim=1).sign().float()
    expected = coupling._deviations(torch.cat([signs, torch.zeros_like(signs)], dim=2))
    torch.testing.assert_close(coupling._deviations(signs), expected)
    monkeypatch.setattr(coupling, "MOST_PRODUCTS", 0)
    assert coupled(with_last(FIRST, LONG[:500])) == [(2, 3)]
    assert coupled(FIRST) == []


def test_quantities_that_never_changed():
    assert coupled(torch.ones(3, 100, 2)) == []
    assert coupled(torch.rand(1, 100, 2, generator=torch.Generator().manual_seed(0))) == []
    some = torch.cat([torch.zeros(4, 500, 3).double(), with_last(FIRST, LONG[:500])], dim=2)
    assert coupled(some) == [(2, 3)]


def test_names_of_pairs():
    assert named([(0, 2)]) == "chains 0 and 2"
    assert named([(0, 2), (1, 2)]) == "chains 0 and 2 (and 1 more pair)"
    assert named(1001 * [(0, 2)]) == "chains 0 and 2 (and 1,000 more pairs)"


# --- who says so ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["the same", "shifted", "thinned"])
def test_convergence_is_not_reached_by_copies(name):
    """R-hat and ESS of copies pass; the verdict names them."""
    long = ar(0.0, 1, 4000, 3, seed=1)[0]
    last = {"the same": long[:2000], "shifted": long[100:2100], "thinned": long[::2]}[name]
    draws, places = with_last(with_last(ar(0.0, 2, 2000, 3), long[:2000]), last), torch.zeros(3, 2)
    independent = convergence(draws[:3], places)
    assert independent.is_converged
    assert independent.dependent == []
    found = convergence(draws, places)
    assert found.r_hat.max() < 1.01
    assert found.ess_bulk.min() > 400
    assert not found.is_converged
    assert found.dependent == [(2, 3)]
    assert found.verdict.startswith(
        "not converged: chains 2 and 3 are not independent: they hold the same predictions, or move together as runs "
        "with the same random numbers do; give each run a seed of its own, or none; R-hat at most"
    )
