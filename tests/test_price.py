"""Parts of `benchmarks/approximations.py`: what is counted, and approximations that are exact where all is linear."""

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from bnn_utils import HMC, MCLMC, ReplicaExchange, find_map
from bnn_utils.references import problem

# By its path: other modules of the benchmarks have the names of modules of the tests.
PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "approximations.py"
SPEC = spec_from_file_location("approximations", PATH)
approximations = module_from_spec(SPEC)
SPEC.loader.exec_module(approximations)


@pytest.fixture(scope="module")
def line():
    return problem("line")


@pytest.fixture(scope="module")
def boxes():
    return problem("boxes")


def test_maxima_are_counted(boxes):
    """Fails when L-BFGS is left out of the count: 1,000 steps of Adam are not all."""
    told = approximations.maxima(3).told(boxes, 0, 0)
    assert told.theta.shape == (1, 3, 20)
    assert 3_100 < told.gradients < 3 * 4_000
    torch.testing.assert_close(told.theta[0], find_map(boxes.posterior, 3, seed=0, progress=False).theta)


@pytest.mark.parametrize(
    ("kernel", "per_step", "steps", "each"),
    [(HMC(num_steps=16), 1, 16, 16), (MCLMC(), 2, 1, 2), (ReplicaExchange(HMC(0.05, 8), 4), 1, 8, 32)],
    ids=["HMC", "MCLMC", "replica exchange"],
)
def test_chains_spend_their_budget(boxes, kernel, per_step, steps, each, monkeypatch):
    """Within a transition of all chains; fails when warm-up, lanes or the two gradients of MCLMC's steps are missed."""
    budget, at_once = 40_000, 8 * each
    monkeypatch.setattr(approximations, "DRAWS", budget)  # all of them
    told = approximations.chains(kernel, per_step, steps).told(boxes, budget, 0)
    chains, draws, _ = told.theta.shape
    assert chains == 8
    assert budget <= told.gradients < budget + at_once
    num_warmup = int(budget * approximations.WARMUP / at_once)
    assert told.gradients == chains * kernel.lanes_per_chain + at_once * (num_warmup + draws)


def test_minibatches_count_in_proportion(boxes):
    """An epoch of four minibatches is one gradient; fails when each step counts as one."""
    told = approximations.stochastic(1.0).told(boxes, 2_000, 0)
    assert 2_000 <= told.gradients <= 2_000 + len(told.theta)


def test_largest_curvature(line):
    hessian = torch.autograd.functional.hessian(line.posterior.log_prob, torch.zeros(4, dtype=torch.float64))
    found = approximations.largest_curvature(line.posterior, torch.zeros(2, 4, dtype=torch.float64), torch.Generator())
    assert found == pytest.approx(torch.linalg.eigvalsh(hessian).abs().max().item(), rel=1e-4)


def test_a_linear_network_is_its_own_linearisation(line, boxes):
    """And any network is, at the place itself; fails when the place is left out of the difference."""
    theta = line.posterior.sample_prior(5, torch.Generator().manual_seed(0))
    same = replace(line, posterior=approximations.Linearised(line.posterior, theta[0]))
    torch.testing.assert_close(same.values(theta), line.values(theta))
    torch.testing.assert_close(same.log_likelihoods(theta), line.log_likelihoods(theta))
    theta = boxes.posterior.sample_prior(2, torch.Generator().manual_seed(0))
    there = replace(boxes, posterior=approximations.Linearised(boxes.posterior, theta[0])).values(theta)
    torch.testing.assert_close(there[0], boxes.values(theta[0]))
    assert (there[1] - boxes.values(theta[1])).abs().max() > 0.01


def test_masks_drop_units_and_keep_the_mean(boxes):
    """All weights that leave a unit are dropped together; fails when each weight has a mask of its own."""
    num = 20_000
    kept = approximations.masks(boxes.posterior, num, torch.Generator().manual_seed(0))
    first, second, _ = boxes.posterior.layers
    assert (kept[:, first.weight] == 1).all()
    by_unit = kept[:, second.weight].view(num, *second.shape)
    assert (by_unit == by_unit[:, :1]).all()
    dropped = (by_unit[:, 0] == 0).double().mean(0)
    # Four standard errors, each exceeded once in 16,000 times, of three units.
    assert (dropped - approximations.DROPPED).abs().max() < 4 * (0.1 * 0.9 / num) ** 0.5
    torch.testing.assert_close(by_unit.mean(0), torch.ones_like(by_unit[0]), atol=0.015, rtol=0)


def test_swag_stays_around_the_mean_of_a_line(line):
    """Of a normal posterior, within a standard deviation; fails when deviations are not taken from the mean."""
    told = approximations.swag(line, 2_000, 0)
    top = find_map(line.posterior, 1, seed=0, progress=False).theta[0]
    hessian = -torch.autograd.functional.hessian(line.posterior.log_prob, top)
    sd = torch.linalg.inv(hessian).diagonal().sqrt()
    draws = told.theta.flatten(0, 1)
    assert ((draws.mean(0) - top) / sd).abs().max() < 1
    assert (draws.std(0) < 1.5 * sd).all()
