"""Symmetries as moves: all copies alike, nothing changed but weights. What chains draw with them: test_exactness.py."""

import pytest
import torch
from scipy.stats import binom, chi2
from torch import nn

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    SGLD,
    Bernoulli,
    ChEES,
    Data,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    Symmetric,
    boxes,
    sample,
)
from bnn_utils.symmetry import copies, draw_copies, fold
from own_kernels import RandomWalk
from targets import FALSE_ALARM, generator, normal


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU(), nn.Identity()])
def test_copies_are_one_function_with_one_prior_density(make_posterior, activation):
    net = nn.Sequential(nn.Linear(2, 4, bias=False), activation, nn.Linear(4, 3), activation, nn.Linear(3, 1))
    posterior = Posterior(
        net.double(), boxes().to(torch.float64), NormalPrior({"*.weight": 0.1, "*.bias": 2.0}), Bernoulli()
    )
    theta = normal(30, posterior.dim)
    move = draw_copies(posterior.flat, 30, generator())
    copied = move(theta)
    torch.testing.assert_close(posterior.outputs(copied, posterior.data.x), posterior.outputs(theta, posterior.data.x))
    torch.testing.assert_close(posterior.log_prior(copied), posterior.log_prior(theta))
    grads = (posterior.log_prob_and_grad(place)[1] for place in (theta, copied))
    torch.testing.assert_close(move(next(grads)), next(grads))
    if not isinstance(activation, nn.ReLU):
        torch.testing.assert_close(fold(copied, posterior.flat), fold(theta, posterior.flat))


@pytest.mark.statistical
def test_all_copies_are_drawn_alike():
    """Of two tanh units in each of two layers, 64 copies. Fails when signs, or orders, are those of another layer."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    data = Data(normal(8, 1), boxes(n=8).y)
    posterior = Posterior(net.double(), data, NormalPrior(1.0), Bernoulli())
    num, theta = 64 * 200, normal(1, posterior.dim)
    copied = draw_copies(posterior.flat, num, generator(1))(theta.expand(num, -1))
    _, counts = copied.unique(dim=0, return_counts=True)
    assert len(counts) == copies(posterior.flat) == 64
    assert ((counts - 200.0).square() / 200).sum() < chi2.isf(FALSE_ALARM, 63)


@pytest.mark.statistical
@pytest.mark.parametrize(
    "kernel",
    [
        HMC(1e-5, 2),
        ChEES(1e-5, 2e-5),
        MAMS(1e-5, 2e-5),
        MCLMC(1e-5),
        ReplicaExchange(HMC(1e-5, 2), 2),
        SGLD(1e-12, 100),
    ],
    ids=repr,
)
def test_chains_from_one_copy_come_to_all(posterior, kernel):
    """In tiny steps, which leave them where they were but for symmetries: each tanh unit's signs are even."""
    start = posterior.sample_prior(1, generator())[0]
    alone = sample(posterior, kernel, 5, 200, init=start, seed=1, progress=False)
    moved = sample(posterior, Symmetric(kernel, every=1), 5, 200, init=start, seed=1, progress=False)
    first = posterior.flat.slices["0.weight"].start
    assert (alone.draws[:, -1, first] > 0).unique().numel() == 1
    positive = int((moved.draws[:, -1, first] > 0).sum())
    assert binom.ppf(FALSE_ALARM / 2, 200, 0.5) < positive < binom.isf(FALSE_ALARM / 2, 200, 0.5)
    near = fold(start, posterior.flat)
    assert (fold(moved.draws, posterior.flat) - near).abs().median() < 0.1
    if kernel.lanes_per_chain == 1:
        assert (moved.stats["lp"] - alone.stats["lp"]).abs().max() < 1


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("num", "times"), [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_only_every_so_often(posterior, at_once, num, times, monkeypatch):
    """Before the first transition, the fifth and the ninth, however many are made at once."""
    moves, kernel, dice = [], Symmetric(HMC(0.05, 3), every=4), generator()
    monkeypatch.setattr(HMC, "moved", lambda kernel, state, move: moves.append(move) or state)
    density = posterior.density(1, compile=True)
    state = kernel.init(density, normal(1, 20), 0)
    if at_once:
        kernel.steps(density, dice, state, num)
    else:
        for _ in range(num):
            state, _ = kernel.step(density, dice, state)
    assert len(moves) == times


def test_the_kernel_inside_is_what_is_told_of(posterior):
    chain = sample(posterior, Symmetric(HMC(0.5, 3), every=2), 200, 4, 10, seed=1, progress=False)
    assert repr(chain.kernel).startswith("Symmetric(HMC(step_size=")
    assert repr(chain.kernel).endswith(", every=2)")
    assert any(warning.startswith("The warm-up had 10 transitions") for warning in chain.warnings)
    more = sample(posterior, chain.kernel, 3, 4, init=chain.draws[:, -1], seed=2, progress=False)
    assert repr(more.kernel) == repr(chain.kernel)


def test_what_has_no_such_moves(posterior, make_posterior):
    with pytest.raises(TypeError, match=r"RandomWalk has no moved\(state, move\) -> state, by which its state would"):
        Symmetric(RandomWalk(torch.eye(20)))
    precision = torch.linspace(0.5, 1.5, 20)
    with pytest.raises(
        ValueError, match="does not treat the hidden units of a layer alike: at a draw from it, its log"
    ):
        sample(make_posterior(prior=NormalPrior(precision)), Symmetric(HMC(0.1, 2)), 3, progress=False)
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"symmetries are known for an nn.Sequential of trainable nn.Linear layers"):
        sample(make_posterior(net.double()), Symmetric(HMC(0.1, 2)), 3, progress=False)
