"""Diagnostics against ArviZ, and on specimens that must fail them."""

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata

from bnn_utils import diagnostics
from bnn_utils._arviz import arviz
from bnn_utils.diagnostics import ess, mcse, rhat


def walk(chains, draws, *shape, seed=0):
    """Autocorrelated draws whose chains disagree somewhat, with a heavy tail: nothing about them is easy."""
    rng = np.random.default_rng(seed)
    draws = np.cumsum(rng.standard_normal((chains, draws, *shape)), axis=1) + 10 * rng.standard_normal(shape)
    return torch.from_numpy(draws + rng.standard_cauchy(draws.shape))


def iid(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def by_arviz(function, draws, method):
    """One column at a time."""
    columns = draws.numpy().reshape(*draws.shape[:2], -1)
    values = [getattr(arviz(), function)(columns[:, :, k], method=method) for k in range(columns.shape[2])]
    return torch.tensor(values, dtype=torch.float64).reshape(draws.shape[2:])


@pytest.mark.parametrize("shape", [(2, 4), (2, 101, 3), (4, 100, 2, 3), (5, 50, 1)])
@pytest.mark.parametrize("make", [walk, iid, lambda *shape: walk(*shape).round()], ids=["walk", "iid", "ties"])
def test_rhat_is_arvizs(make, shape):
    draws = make(*shape)
    torch.testing.assert_close(rhat(draws), by_arviz("rhat", draws, "rank"), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inside ArviZ
def test_rhat_of_two_values():
    """Where the median lies halfway between them, their distances from it are all the same and say nothing."""
    draws = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1, -1, 1, 1, -1]).repeat(2, 20)
    with np.errstate(invalid="ignore"):
        expected = by_arviz("rhat", draws, "rank")
    torch.testing.assert_close(rhat(draws), expected, rtol=1e-12, atol=0)


def test_rhat_in_blocks(monkeypatch):
    draws = walk(3, 40, 5, 2)
    whole = rhat(draws)
    monkeypatch.setattr(diagnostics, "BLOCK_ELEMENTS", 3 * 40 * 4)
    torch.testing.assert_close(rhat(draws), whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize("draws", [100, 101])
def test_rhat_of_one_chain(draws):
    """ArviZ refuses one chain, but its plain R-hat takes the ranks of our halves; the middle draw of 101 has none."""
    chain = walk(1, draws).numpy()
    halves = np.concatenate([chain[:, :50], chain[:, -50:]])

    def of_ranks(values):
        scores = norm.ppf((rankdata(values).reshape(2, 50) - 0.375) / 100.25)
        return arviz().rhat(scores, method="identity")

    expected = max(of_ranks(halves), of_ranks(abs(halves - np.median(halves))))
    assert rhat(torch.from_numpy(chain)).item() == pytest.approx(expected, rel=1e-12)


def test_rhat_of_independent_draws_is_near_one():
    """With 4 x 1,000 independent draws R-hat exceeds 1.01 about once in 1e5 quantities; these are 50."""
    values = rhat(iid(4, 1000, 50))
    assert values.max() < 1.015
    assert values.min() > 0.999


SPECIMENS = {
    "one chain drifts": iid(1, 400) + torch.linspace(0, 3, 400),
    "one chain of four drifts": torch.cat([iid(3, 400), iid(1, 400) + torch.linspace(0, 3, 400)]),
    "one chain of four is elsewhere": iid(4, 400) + torch.tensor([[0.0], [0], [0], [2]]),
    "one chain of four is wider, about the same centre": iid(4, 400) * torch.tensor([[1.0], [1], [1], [3]]),
    "two modes": iid(4, 400) + torch.tensor([[-5.0], [-5], [5], [5]]),
    "one chain of four is stuck": torch.cat([iid(3, 400), torch.zeros(1, 400)]),
    "every chain is stuck, each elsewhere": torch.arange(4.0)[:, None].expand(4, 400),
    "two chains are stuck, equally far from the middle": torch.tensor([[-1.0], [1.0]]).expand(2, 400),
}


@pytest.mark.parametrize("draws", SPECIMENS.values(), ids=SPECIMENS)
def test_rhat_flags(draws):
    assert rhat(draws) > 1.05


def test_rhat_of_a_constant_is_not_a_number():
    """And says nothing about the quantities beside it."""
    draws = torch.cat([torch.full((3, 50, 1), 0.1), walk(3, 50, 1)], dim=2)
    assert rhat(draws).isnan().tolist() == [True, False]


@pytest.mark.parametrize("function", [rhat, ess, mcse])
def test_ranks_of_single_precision(function):
    draws = walk(3, 50, 2).float()
    torch.testing.assert_close(function(draws), function(draws.double()), rtol=1e-14, atol=0)
    assert function(draws).dtype == torch.float64


@pytest.mark.parametrize("shape", [(1, 100, 3), (4, 101), (3, 60, 2, 2)])
@pytest.mark.parametrize("method", ["bulk", "tail", "mean"])
def test_ess_is_arvizs(shape, method):
    draws = iid(*shape) + 0.1 * walk(*shape)
    torch.testing.assert_close(ess(draws, method), by_arviz("ess", draws, method), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(1, 100, 3), (4, 101), (3, 60, 2, 2)])
def test_mcse_is_arvizs(shape):
    draws = iid(*shape) + 0.1 * walk(*shape)
    torch.testing.assert_close(mcse(draws), by_arviz("mcse", draws, "mean"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", [rhat, ess, mcse])
def test_draws_that_say_nothing(function):
    with pytest.raises(ValueError, match=r"shape \(chains, draws, ...\) with at least 4 draws per chain, got \(3,\)"):
        function(torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \(2, 3, 5\)"):
        function(torch.zeros(2, 3, 5))
    draws = torch.zeros(2, 10)
    draws[1, 3] = torch.nan
    draws[0, 2] = torch.inf
    with pytest.raises(ValueError, match="2 of the values are NaN or infinite"):
        function(draws)


@pytest.mark.parametrize("function", [ess, mcse])
def test_what_never_changed_says_nothing(function):
    """ArviZ would give a chain that never moved as many effective draws as it has."""
    draws = torch.stack([torch.ones(2, 50, dtype=torch.float64), iid(2, 50)], dim=-1)
    assert function(draws).isnan().tolist() == [True, False]
