"""The front door: seeds, starts, interruptions, progress, and errors that help."""

import itertools
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    Bernoulli,
    ChEES,
    Hamiltorch,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    boxes,
    executors,
    sample,
)
from bnn_utils.gradients import LogDensity
from bnn_utils.kernels import hamiltorch

KERNEL = HMC(0.05, 4)


def draw(posterior, num_samples=20, progress=False, seed=0, **kwargs):
    return sample(posterior, kwargs.pop("kernel", KERNEL), num_samples, progress=progress, seed=seed, **kwargs)


def failing(posterior, monkeypatch, after, error):
    """A posterior whose gradient raises after a number of calls."""
    watch(posterior, monkeypatch, lambda calls: raise_if(calls > after, error))
    return posterior


def raise_if(condition, error):
    if condition:
        raise error


def watch(posterior, monkeypatch, look):
    """Call ``look`` with the number of the call whenever a gradient is computed."""
    original, count = posterior.density, itertools.count(1)

    def density(num_lanes, compile=False):
        def looked_at(function):
            def call(theta):
                look(next(count))
                return function(theta)

            return call

        found = original(num_lanes)  # in torch: nobody can look into native code
        found.joint = LogDensity(*map(looked_at, found.joint[:2]))
        return found

    monkeypatch.setattr(posterior, "density", density)


# --- seeds and starts -------------------------------------------------------------------------------------------------


def test_same_seed_same_draws(posterior):
    one, two, other = (draw(posterior, num_chains=3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.draws, two.draws)
    assert not torch.equal(one.draws, other.draws)


def test_a_generator_goes_on(posterior):
    stream = torch.Generator().manual_seed(5)
    first, second = draw(posterior, seed=stream), draw(posterior, seed=stream)
    assert torch.equal(first.draws, draw(posterior, seed=5).draws)
    assert not torch.equal(first.draws, second.draws)
    assert first.seed is None


def test_global_random_states_are_left_alone(posterior):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    draw(posterior)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


def test_chains_start_at_draws_from_the_prior(posterior):
    """With a step size of almost nothing the first draw is the start."""
    chain = draw(posterior, 1, num_chains=4, seed=3, kernel=HMC(1e-12, 1))
    prior = posterior.sample_prior(4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(chain.draws[:, 0], prior, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "num_chains", "chains"), [((20,), 1, 1), ((20,), 3, 3), ((4, 20), 1, 4), ((4, 20), 4, 4)]
)
def test_starting_points(posterior, shape, num_chains, chains):
    init = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    chain = draw(posterior, 1, num_chains=num_chains, init=init, kernel=HMC(1e-12, 1))
    assert chain.draws.shape == (chains, 1, 20)
    torch.testing.assert_close(chain.draws[:, 0], init.double().expand(chains, 20), rtol=0, atol=1e-9)


@pytest.mark.statistical
def test_warmup_adapts_and_is_thrown_away(posterior):
    """The draws are those of the adapted kernel, which the chain names, from where the warm-up ended.

    Over 40 seeds the mean log density of 64 chains was 44 ± 4 higher there.
    """
    cold, warm = (draw(posterior, 20, num_chains=64, warmup=warmup, seed=1) for warmup in (0, 100))
    assert (cold.warmup, warm.warmup) == (0, 100)
    assert warm.draws.shape == (64, 20, 20)
    assert cold.stats["step_size"].unique().tolist() == [0.05]
    named = re.fullmatch(r"HMC\(step_size=(.+), num_steps=4, inv_mass=diagonal, jitter=0.5\)", repr(warm.kernel))
    assert (warm.stats["step_size"] / float(named[1]) - 1).abs().max() <= 0.5
    assert warm.stats["lp"].mean() > cold.stats["lp"].mean(), "it has climbed"


def test_shapes_names_and_statistics(posterior):
    chain = draw(posterior, 7, num_chains=3)
    assert chain.draws.shape == (3, 7, 20)
    assert list(chain.stats) == [
        "lp", "acceptance_rate", "is_accept", "n_steps", "step_size", "energy", "energy_error", "diverging",
    ]  # fmt: skip
    assert all(value.shape == (3, 7) for value in chain.stats.values())
    torch.testing.assert_close(chain.stats["lp"], posterior.log_prob(chain.draws.reshape(-1, 20)).reshape(3, 7))
    assert chain.names == posterior.flat.names
    assert 0 < chain.sampling_time <= chain.wall_time


def test_counts_may_be_whole_numbers_of_any_type(posterior):
    chain = draw(posterior, 1e1, num_chains=np.int64(2), warmup=3.0, seed=np.int64(5))
    assert torch.equal(chain.draws, draw(posterior, 10, num_chains=2, warmup=3, seed=5).draws)


def test_mass_comes_in_any_dtype(posterior):
    mass = torch.linspace(0.5, 1.5, 20)
    one = draw(posterior, kernel=HMC(0.05, 4, mass))
    two = draw(posterior, kernel=HMC(0.05, 4, mass.double()))
    assert torch.equal(one.draws, two.draws)
    assert one.draws.dtype == torch.float64


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_interruption_returns_the_draws_so_far(posterior, monkeypatch):
    whole = draw(posterior, 20, num_chains=2, warmup=22, compile=False)
    stopping = failing(posterior, monkeypatch, after=1 + 4 * (22 + 8) + 2, error=KeyboardInterrupt())
    with pytest.warns(RuntimeWarning, match="interrupted: the chain holds the 8 draws made so far, of 20"):
        chain = draw(stopping, 20, num_chains=2, warmup=22)
    assert repr(chain.kernel) == repr(whole.kernel)
    assert torch.equal(chain.draws, whole.draws[:, :8])
    assert torch.equal(chain.stats["lp"], whole.stats["lp"][:, :8])


def test_interruption_before_the_first_draw(posterior, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        draw(failing(posterior, monkeypatch, after=10, error=KeyboardInterrupt()), warmup=5)


def test_errors_bring_the_draws_so_far(posterior, monkeypatch):
    with pytest.raises(ZeroDivisionError) as caught:
        draw(failing(posterior, monkeypatch, after=1 + 4 * 8 + 2, error=ZeroDivisionError("inside the network")), 20)
    assert caught.value.chain.num_draws == 8
    assert "The 8 draws made before this error" in caught.value.__notes__[0]


def test_threads_are_given_back(posterior, monkeypatch):
    before, inside, step = torch.get_num_threads(), [], HMC.step

    def watched(*args):
        inside.append(torch.get_num_threads())
        return step(*args)

    monkeypatch.setattr(HMC, "step", watched)
    torch.set_num_threads(2)
    try:
        draw(posterior, 2, compile=False)
        assert set(inside) == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            draw(failing(posterior, monkeypatch, after=3, error=ZeroDivisionError()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- batches and workers ----------------------------------------------------------------------------------------------


def same(one, two):
    return torch.equal(one.draws, two.draws) and all(torch.equal(one.stats[k], two.stats[k]) for k in one.stats)


def test_draws_do_not_depend_on_the_number_of_workers(posterior):
    """Fails when batches share a stream, or when a stream belongs to a worker."""
    one, two, many = (draw(posterior, num_chains=7, batch_size=2, seed=3, warmup=25, workers=n) for n in (1, 2, 5))
    assert same(one, two)
    assert same(one, many)
    assert one.draws.shape == (7, 20, 20)
    assert len(one.draws[:, 0, 0].unique()) == 7
    assert not torch.equal(one.draws, draw(posterior, num_chains=7, batch_size=3, seed=3).draws)


@pytest.mark.parametrize(
    "kernel", [ChEES(), MAMS(), MCLMC(), NUTS(), ReplicaExchange(KERNEL, 4)], ids=lambda kernel: type(kernel).__name__
)
def test_every_kernel_travels_to_workers(posterior, kernel):
    one, two = (
        draw(posterior, kernel=kernel, num_chains=3, batch_size=2, seed=3, warmup=35, workers=n) for n in (1, 2)
    )
    assert same(one, two)
    assert repr(one.kernel) == repr(two.kernel) != repr(kernel)
    assert (one.tempering is None) == (kernel.lanes_per_chain == 1)
    if one.tempering is not None:
        for (_, _, mine), (_, _, theirs) in zip(one.tempering.items(), two.tempering.items(), strict=True):
            assert torch.equal(mine, theirs)


def test_one_batch_draws_from_the_seeds_own_stream(posterior):
    whole = draw(posterior, num_chains=3, seed=5)
    assert same(whole, draw(posterior, num_chains=3, seed=5, batch_size=3))
    assert same(whole, draw(posterior, num_chains=3, seed=5, batch_size=99))


def test_starting_points_stay_with_their_chains(posterior):
    init = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chain = draw(posterior, 1, init=init, batch_size=2, workers=2, kernel=HMC(1e-12, 1))
    torch.testing.assert_close(chain.draws[:, 0], init, rtol=0, atol=1e-9)


def test_a_generator_is_advanced_by_batches_too(posterior):
    stream = torch.Generator().manual_seed(5)
    first, second = (draw(posterior, num_chains=4, batch_size=2, seed=stream) for _ in range(2))
    assert not torch.equal(first.draws, second.draws)


class FailsFarOut(Bernoulli):
    def log_prob(self, outputs, y):
        if (outputs.abs() > 12).any():
            raise ZeroDivisionError("too far out")
        return super().log_prob(outputs, y)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_one_batch_keeps_the_draws_of_all(workers):
    """Chain 3 walks into the error; the others come as far, whoever draws them, and all keep the draws up to there."""
    posterior = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), FailsFarOut())
    init = torch.zeros(4, 3, dtype=torch.float64)
    whole = draw(posterior, 3, init=init, batch_size=1, kernel=HMC(0.5, 3), seed=1)
    with pytest.raises(ZeroDivisionError, match="too far out") as caught:
        # There is no time to finish.
        draw(posterior, 10**7, init=init, batch_size=1, workers=workers, kernel=HMC(0.5, 3), seed=1)
    chain = caught.value.chain
    assert chain.num_chains == 4
    assert chain.num_draws >= 3
    assert torch.equal(chain.draws[:, :3], whole.draws)
    assert f"The {chain.num_draws:,} draws made before this error" in caught.value.__notes__[-1]


def test_interrupting_workers(posterior, monkeypatch):
    """While they draw: the chains are equally long, and are what an undisturbed run draws."""
    arguments = {"num_chains": 4, "batch_size": 1, "seed": 2}
    draw(posterior, 1, **arguments, workers=2)  # so that they are awake
    waits, wait = itertools.count(), executors.wait

    def interrupted(*args, **kwargs):
        result = wait(*args, **kwargs)
        raise_if(next(waits) == 40, KeyboardInterrupt())  # each of the four has been there by then
        return result

    monkeypatch.setattr(executors, "wait", interrupted)
    with pytest.warns(RuntimeWarning, match=r"interrupted: the chain holds the [\d,]+ draws made so far, of 1,000,000"):
        chain = draw(posterior, 1_000_000, **arguments, workers=2)
    assert chain.num_draws > 10
    assert same(chain, draw(posterior, chain.num_draws, **arguments))


def test_workers_take_what_is_defined_in_a_notebook():
    """Classes of the main program can't be imported elsewhere: they travel by value, and it is not run again."""
    code = """
import torch
from torch import nn
from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, sample
print("here")
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 1)
    def forward(self, x):
        return self.inner(x).sin()
posterior = Posterior(Net(), boxes(n=4), NormalPrior(1.0), Bernoulli())
arguments = dict(num_chains=2, batch_size=1, seed=0, progress=False)
one, two = (sample(posterior, HMC(0.1, 2), 5, **arguments, workers=n) for n in (1, 2))
print(torch.equal(one.draws, two.draws))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("here\nTrue\n", "")


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bar(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def test_progress_shows_speed_acceptance_and_divergences(posterior, bar, capsys):
    draw(posterior, 30, warmup=10, progress=True)
    shown = capsys.readouterr().err
    for word in ("40/40", "draw/s", "acceptance ", "divergences 0"):
        assert word in shown


def test_progress_counts_divergences(posterior, bar, capsys):
    chain = draw(posterior, 10, num_chains=2, progress=True, kernel=HMC(5.0, 4))
    assert chain.stats["diverging"].sum() == 20
    assert "divergences 20" in capsys.readouterr().err


def test_silence(posterior, bar, capsys, monkeypatch):
    draw(posterior, progress=False)
    assert capsys.readouterr() == ("", "")


def test_silence_by_the_environment():
    """tqdm reads the variable when it is imported, so this takes a process of its own."""
    code = """
from torch import nn
from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, sample
posterior = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Bernoulli())
print(sample(posterior, HMC(0.1, 1), 5).num_draws)
"""
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("5\n", "")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ({"num_samples": 2.5}, "got 2.5"),
        ({"num_chains": -1}, "num_chains must be a whole number of at least 1, got -1"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1"),
        ({"kernel": HMC(0.1, 4, torch.ones(19))}, r"inv_mass has shape \(19,\), but the posterior has 20 parameters"),
        ({"compile": "always"}, "compile must be True, False or 'auto', got 'always'"),
        ({"compile": True, "kernel": Hamiltorch(0.1, 4)}, "compile=True is not for the kernel Hamiltorch, which has"),
        ({"thin": 0}, "thin must be a whole number of at least 1, got 0"),
        ({"kernel": MAMS(inv_mass=torch.ones(19))}, r"inv_mass has shape \(19,\), but the posterior has 20"),
        ({"kernel": MCLMC(inv_mass=torch.ones(19))}, r"inv_mass has shape \(19,\), but the posterior has 20"),
        ({"kernel": ChEES(inv_mass=torch.ones(19))}, r"inv_mass has shape \(19,\), but the posterior has 20"),
        ({"kernel": ReplicaExchange(HMC(0.1, 4, torch.ones(19)))}, r"inv_mass has shape \(19,\), but the posterior"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"workers": 0}, "workers must be a whole number of at least 1, got 0"),
        ({"workers": 2, "num_chains": 5}, "5 chains in one batch leave nothing to share: add batch_size=3"),
        ({"init": torch.zeros(19)}, "this network has 20 parameters"),
        ({"init": torch.zeros(3, 20), "num_chains": 2}, "init has 3 starting points, but num_chains is 2"),
        ({"init": torch.full((20,), torch.nan)}, "chain 0 starts where the log density is nan; start it elsewhere"),
        (
            {"init": torch.tensor([[0.0], [1e200]], dtype=torch.float64).expand(2, 20)},
            "chain 1 starts where .* is -inf",
        ),
    ],
)
def test_errors(posterior, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(posterior, **arguments)


def test_missing_hamiltorch(posterior, monkeypatch):
    monkeypatch.setitem(sys.modules, "hamiltorch", None)
    with pytest.raises(
        ModuleNotFoundError, match="needs hamiltorch, which is not installed; get it with: pip install"
    ) as caught:
        draw(posterior, kernel=Hamiltorch(0.1, 4))
    assert hamiltorch.INSTALL in str(caught.value)


def test_hamiltorch_that_lacks_something_else(posterior, monkeypatch, tmp_path):
    """Its own error, not the advice to install what is there."""
    (tmp_path / "hamiltorch.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hamiltorch", raising=False)
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_package_that_is_not_there'"):
        draw(posterior, kernel=Hamiltorch(0.1, 4))


# --- any module -------------------------------------------------------------------------------------------------------


def test_modules_without_closed_form_are_sampled_too():
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 1))
    posterior = Posterior(net, boxes(n=12), NormalPrior(1.0), Bernoulli())
    chain = draw(posterior, 10, num_chains=2)
    assert posterior.gradient == "autograd"
    assert not chain.draws.requires_grad
    assert chain.stats["is_accept"].any()


# --- nothing said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "kernel", "why"),
    [
        ([nn.Linear(2, 1)], NUTS, "there is no hidden layer"),
        ([nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)], ChEES, "there are hidden layers"),
        ([nn.Linear(2, 80), nn.Tanh(), nn.Linear(80, 1)], HMC, "there are more than 256 parameters"),
    ],
)
def test_the_kernel_is_chosen_and_told(layers, kernel, why, capsys):
    posterior = Posterior(nn.Sequential(*layers), boxes(20), NormalPrior(1.0), Bernoulli())
    chain = sample(posterior, num_samples=2, warmup=30, seed=1)
    assert f"{kernel.__name__}, as {why}" in capsys.readouterr().err
    assert type(chain.kernel) is kernel
    assert chain.draws.shape == (8, 2, posterior.dim)
    starts = chain.draws[:3, -1]
    again = sample(posterior, num_samples=2, warmup=5, init=starts, seed=1, progress=False)
    assert len(again.draws) == 3
    assert capsys.readouterr().err == ""


def test_all_by_itself(posterior):
    """The whole call, ``sample(posterior)``; the kernel's own settings are those that the warm-up found."""
    chain = sample(posterior, seed=1, progress=False)
    assert chain.draws.shape == (8, 1000, posterior.dim)
    assert repr(chain.kernel) != repr(ChEES())
