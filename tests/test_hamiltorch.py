"""The kernel Hamiltorch against the real hamiltorch; the reference chains are in test_reference_chains.py."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from bnn_utils import HMC, Data, Hamiltorch, Likelihood, NormalPrior, Posterior, sample
from bnn_utils.kernels import hamiltorch as ours
from samplers import needs_hamiltorch

pytestmark = needs_hamiltorch


class UnitNoise(Likelihood):
    """``y_i ~ Normal(output_i, 1)``"""

    def targets(self, y, outputs):
        return y

    def distribution(self, outputs):
        return torch.distributions.Normal(outputs.squeeze(-1), 1.0)


def draw(posterior, num_samples, kernel=None, seed=0, **kwargs):
    return sample(posterior, kernel or Hamiltorch(0.05, 4), num_samples, seed=seed, progress=False, **kwargs)


@pytest.fixture
def hamiltorch():
    return ours._import_quietly()


def test_import_seeds_nothing():
    code = """
import random, numpy, torch
states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
expected = random.random(), numpy.random.random(), torch.rand(1).item()
random.setstate(states[0]); numpy.random.set_state(states[1]); torch.set_rng_state(states[2])
from bnn_utils.kernels import hamiltorch
hamiltorch._import_quietly()
assert (random.random(), numpy.random.random(), torch.rand(1).item()) == expected
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_global_states_are_left_alone_and_nothing_is_printed(posterior, capsys):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    draw(posterior, 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]
    assert torch.get_default_dtype() == torch.float32
    assert capsys.readouterr() == ("", "")


def test_same_draws_and_statistics_as_hmc(posterior):
    theirs = draw(posterior, 50, kernel=Hamiltorch(0.1, 4), seed=3)
    mine = sample(posterior, HMC(0.1, 4), 50, seed=3, progress=False)
    assert 0 < mine.stats["is_accept"].sum() < 50, "the comparison needs both outcomes"
    torch.testing.assert_close(theirs.draws, mine.draws, rtol=0, atol=1e-8)
    assert list(theirs.stats) == list(mine.stats)
    for name, value in mine.stats.items():
        torch.testing.assert_close(theirs.stats[name], value, rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_same_warmup_as_hmc():
    """On a Gaussian, where rounding grows slowly: step sizes, mass and draws agree to many digits."""
    x = torch.tensor([[1.0, 0.0], [0.0, 30.0], [2.0, 1.0]], dtype=torch.float64)
    posterior = Posterior(nn.Linear(2, 1, bias=False), Data(x, x[:, 0]), NormalPrior(1.0), UnitNoise())
    theirs, mine = (
        sample(posterior, make(0.05, 2), 20, warmup=60, seed=3, progress=False) for make in (Hamiltorch, HMC)
    )
    assert repr(theirs.kernel) == repr(mine.kernel).replace("HMC", "Hamiltorch")
    assert "inv_mass=diagonal" in repr(mine.kernel)
    torch.testing.assert_close(theirs.draws, mine.draws, rtol=0, atol=1e-6)
    torch.testing.assert_close(theirs.stats["step_size"], mine.stats["step_size"], rtol=1e-6, atol=0)


def test_several_chains(posterior):
    chain = draw(posterior, 6, num_chains=3, warmup=2)
    assert chain.draws.shape == (3, 6, 20)
    torch.testing.assert_close(chain.stats["lp"], posterior.log_prob(chain.draws.reshape(-1, 20)).reshape(3, 6))


def test_divergences_are_rejected_and_flagged(posterior, capsys):
    init = torch.ones(20, dtype=torch.float64)
    chain = draw(posterior, 5, kernel=Hamiltorch(1e200, 3), init=init)
    assert chain.stats["diverging"].all()
    assert not chain.stats["is_accept"].any()
    assert torch.equal(chain.draws[0, -1], init)
    assert capsys.readouterr().out == ""


def test_interruption_returns_the_draws_so_far(posterior, monkeypatch):
    whole = draw(posterior, 9, num_chains=2)
    original, rounds = ours._transition, 0

    def stopping(*args):
        nonlocal rounds
        rounds += 1
        if rounds > 2 * 4 + 1:  # in the middle of the fifth draw, with the first chain's already made
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(ours, "_transition", stopping)
    with pytest.warns(RuntimeWarning, match="holds the 4 draws made so far, of 9"):
        chain = draw(posterior, 9, num_chains=2)
    assert torch.equal(chain.draws, whole.draws[:, :4])


def test_threads_take_turns(posterior, capsys):
    """Each draws what it draws alone, and the process is as it was. Fails when the global stream is lent to two."""
    alone = [draw(posterior, 5, seed=seed).draws for seed in range(3)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(draw, posterior, 5, seed=seed) for seed in range(3)]
        assert all(torch.equal(run.result().draws, draws) for run, draws in zip(runs, alone, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_burn_in_is_not_thrown_back(posterior, hamiltorch, golden):
    """hamiltorch's own burn-in can end where it began: a rejection right after it restores the starting point."""
    start, kernel, seeds = golden["tutorial_f64"][0], Hamiltorch(0.15, 4), range(12)
    thrown_back = 0
    for seed in seeds:
        with ours._global_stream(torch.Generator().manual_seed(seed)):
            kept = hamiltorch.sample(
                posterior.log_prob,
                start,
                num_samples=60,
                num_steps_per_sample=4,
                step_size=0.15,
                burn=50,
                verbose=False,
            )
        thrown_back += torch.equal(kept[1], start)
        chain = draw(posterior, 1, kernel=kernel, init=start, warmup=50, seed=seed)
        assert not torch.equal(chain.draws[0, 0], start)
    assert thrown_back > 0, "hamiltorch no longer has the defect that this kernel works around"
