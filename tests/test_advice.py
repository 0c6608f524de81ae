"""Warnings: each is there for a fault that was planted, and for no healthy run."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    SGLD,
    Chain,
    ChEES,
    Data,
    Gaussian,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    advice,
    sample,
)
from bnn_utils._arviz import arviz
from bnn_utils.chain import LINE
from bnn_utils.evidence import Tempering
from targets import generator, normal, regression
from test_adaptation import gaussian

CHAINS, DRAWS = 4, 800


def planted(kernel=None, warmup=300, thinning=1, tempering=None, draws=None, **stats):
    """A healthy chain, independent draws of which every fifth proposal or so is rejected, but for what is passed."""
    lp = normal(CHAINS, DRAWS)
    usual = {
        "lp": lp,
        "acceptance_rate": 0.8 + 0.1 * normal(CHAINS, DRAWS, seed=1).clamp(-2, 2),
        "is_accept": normal(CHAINS, DRAWS, seed=2) < 0.84,
        "n_steps": torch.full((CHAINS, DRAWS), 5),
        "step_size": 0.1 * (1 + 0.5 * torch.rand(CHAINS, DRAWS, generator=generator())),
        "energy": normal(CHAINS, DRAWS, seed=3),
        "diverging": torch.zeros(CHAINS, DRAWS, dtype=torch.bool),
    }
    return Chain(
        draws=lp[..., None].expand(-1, -1, 2) if draws is None else draws,
        stats={name: values for name, values in (usual | stats).items() if values is not None},
        names=["a", "b"],
        kernel=kernel or HMC(0.1, 5, torch.ones(2), jitter=0.5),
        gradient="closed-form",
        device="cpu",
        seed=1,
        warmup=warmup,
        wall_time=1.0,
        compile_time=0.0,
        sampling_time=1.0,
        tempering=tempering,
        thinning=thinning,
    )


def changed(values, *places, to):
    values = values.clone()
    values[places] = to
    return values


def usual(name):
    return planted().stats[name]


def tempered(log_likelihood=None, replica=None, **kwargs):
    """Replica exchange over three temperatures, whose travellers move up one place with each draw."""
    going_round = (torch.arange(DRAWS)[:, None] + torch.arange(3)) % 3
    return planted(
        kernel=ReplicaExchange(HMC(0.1, 5), 3),
        tempering=Tempering(
            torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64).expand(CHAINS, 3),
            normal(CHAINS, DRAWS, 3) if log_likelihood is None else log_likelihood,
            going_round.expand(CHAINS, -1, -1) if replica is None else replica,
            torch.ones(CHAINS, DRAWS, 3),
            torch.ones(CHAINS, 3),
        ),
        **kwargs,
    )


HEALTHY = {
    "HMC": planted(),
    "HMC without a warm-up": planted(HMC(0.1, 5), warmup=0),
    "Langevin": planted(HMC(0.1, 1), acceptance_rate=usual("acceptance_rate") - 0.2),
    "ChEES": planted(ChEES()),
    "MAMS": planted(MAMS(), acceptance_rate=usual("acceptance_rate") + 0.1, energy=None),
    "replica exchange": tempered(),
    "replica exchange, which need not set masses": tempered(warmup=30),
    "replica exchange, whose swaps change the energy": tempered(energy=normal(CHAINS, DRAWS).cumsum(1)),
    "a dense mass, which is given, and needs no windows": planted(HMC(0.1, 5, torch.eye(2)), warmup=30),
    "draws from elsewhere": planted("NUTS", acceptance_rate=0.2 + 0 * usual("lp")),
    "no statistics": planted(**dict.fromkeys(planted().stats)),
    "a low rate without a warm-up that still moves": planted(warmup=0, acceptance_rate=usual("acceptance_rate") - 0.45),
    "thinned, so that energies are not of neighbours": planted(thinning=5, energy=normal(CHAINS, DRAWS).cumsum(1)),
    "replica exchange that moves by swaps alone": tempered(is_accept=torch.zeros(CHAINS, DRAWS, dtype=torch.bool)),
    "a flat density": planted(lp=torch.zeros(CHAINS, DRAWS)),
    "a rate that is not a number": planted(acceptance_rate=changed(usual("acceptance_rate"), 1, 5, to=math.nan)),
}


@pytest.mark.parametrize("chain", HEALTHY.values(), ids=HEALTHY)
def test_nothing_to_say(chain):
    assert chain.warnings == []
    assert "warnings" not in repr(chain)
    assert "warnings" not in chain._repr_html_()


# What was planted, and words of the one warning that there is.
FAULTS = {
    "divergences in one chain": (
        planted(diverging=changed(usual("diverging"), 1, slice(None, None, 100), to=True)),
        "8 of 3,200 transitions diverged (0.2%, in chain 1): ... smaller step size or a longer warm-up.",
    ),
    "early divergences": (
        planted(diverging=changed(usual("diverging"), slice(None), slice(0, 200, 20), to=True)),
        "40 of 3,200 transitions diverged (1.2%, in all 4 chains, nearly all in the first quarter): ... Take a longer",
    ),
    "late divergences": (
        planted(diverging=changed(usual("diverging"), slice(0, 2), slice(-6, None), to=True)),
        "12 of 3,200 transitions diverged (0.4%, in chains 0 and 1, nearly all in the last quarter): ",
    ),
    "one divergence": (
        planted(diverging=changed(usual("diverging"), 0, 0, to=True)),
        "1 of 3,200 transitions diverged (under 0.1%, in chain 0): ",
    ),
    "a low rate after a warm-up": (
        planted(acceptance_rate=usual("acceptance_rate") - 0.45),
        "mean acceptance rate is 0.35, where the warm-up aimed at 0.8: ",
    ),
    "a high rate after a warm-up": (
        planted(acceptance_rate=0.99 + 0 * usual("lp")),
        "mean acceptance rate is 0.99, where the warm-up aimed at 0.8: steps are shorter than they need be",
    ),
    "a high rate of single steps": (
        planted(HMC(0.1, 1), acceptance_rate=0.97 + 0 * usual("lp")),
        "mean acceptance rate is 0.97, where the warm-up aimed at 0.574: steps are shorter",
    ),
    "a high rate of ChEES": (
        planted(ChEES(), acceptance_rate=0.98 + 0 * usual("lp")),
        "mean acceptance rate is 0.98, where the warm-up aimed at 0.651: steps are shorter",
    ),
    "a low harmonic mean of ChEES, whose mean is not": (
        planted(
            ChEES(),
            acceptance_rate=0.05 + 0.9 * (torch.arange(DRAWS) % 2 == torch.arange(CHAINS)[:, None] % 2).double(),
        ),
        "mean acceptance rate is 0.10, where the warm-up aimed at 0.651: the draws are where steps must be shorter",
    ),
    "a high rate of MAMS": (
        planted(MAMS(), acceptance_rate=0.995 + 0 * usual("lp")),
        "mean acceptance rate is 0.99, where the warm-up aimed at 0.9: steps are shorter than they need be",
    ),
    "the bias of MCLMC, which is always told": (
        planted(MCLMC(), energy_error=0.02 * torch.ones(CHAINS, DRAWS)),
        "a variance of 0.0002 per parameter, where 0.0005 is wanted. ... off by up to 1.4% then. MAMS is",
    ),
    "a large bias of MCLMC": (
        planted(MCLMC(), energy_error=torch.ones(CHAINS, DRAWS)),
        "a variance of 0.5 per parameter, where 0.0005 is wanted. ... off by up to 70.7% then. Take a smaller",
    ),
    "the bias of MCLMC in a chain from a file": (planted("MCLMC(step_size=0.1)"), "MCLMC has no Metropolis step, so"),
    "a bias of MCLMC that nothing measures": (planted(MCLMC()), "MCLMC has no Metropolis step, so that its draws are"),
    "a low rate of replica exchange": (
        tempered(acceptance_rate=0.3 + 0 * usual("lp")),
        "mean acceptance rate is 0.30, where the warm-up aimed at 0.8",
    ),
    "a low rate without a warm-up": (
        planted(warmup=0, acceptance_rate=usual("acceptance_rate") / 4),
        "mean acceptance rate is 0.20, and at 0.6 to 0.9 a draw costs least. ... by warmup=.",
    ),
    "one chain lags behind": (
        planted(acceptance_rate=changed(usual("acceptance_rate"), 2, to=0.1)),
        "Chain 2 accepted far less than the others: at a rate of 0.10, where the median is 0.8",
    ),
    "a warm-up of one transition": (planted(warmup=1), "warm-up had 1 transition, in which the step size adapts only"),
    "a warm-up without a mass": (planted(ChEES(), warmup=19), "warm-up had 19 transitions, in which the step size"),
    "a short warm-up": (
        planted(warmup=149),
        "warm-up had 149 transitions, which leaves step size and mass little time",
    ),
    "a short warm-up with a dense mass": (
        planted(HMC(0.1, 5, torch.eye(2)), warmup=19),
        "warm-up had 19 transitions, in which the step size adapts only roughly",
    ),
    "a short warm-up of replica exchange": (tempered(warmup=29), "warm-up had 29 transitions, too few to set the temp"),
    "batches that ended apart": (
        planted(step_size=changed(usual("step_size"), 3, to=0.01)),
        "Step sizes differ by a factor of 13, from 0.01 in chain 3 to 0.13 in chain ",
    ),
    "a trajectory that is cut": (
        planted(ChEES(0.001, 13.6)),
        "trajectory length is 13,600 steps, and a transition makes at most 1,000: ",
    ),
    "trajectories that go nowhere": (
        planted(HMC(1e-4, 500, torch.ones(2))),
        "Trajectories of 500 steps take 0.05 units of time, and parameters forget where they were in 1.6, as some "
        "directions are narrow. Take about 20,000 steps by num_steps=",
    ),
    "slow energies": (
        planted(energy=normal(CHAINS, DRAWS).cumsum(1)),
        "E-BFMI is 0.0 ... in all 4 chains (at least 0.3 is wanted)",
    ),
    "slow energies of draws from elsewhere": (
        planted("NUTS", energy=changed(usual("energy"), 1, to=normal(DRAWS).cumsum(0))),
        " in chain 1 (at least 0.3 is wanted)",
    ),
    "two temperatures too far apart": (
        tempered(normal(CHAINS, DRAWS, 3) + torch.tensor([0, 0, 100])),
        "Temperatures 1 and 2 swap with a probability of ... below 0.05: hardly anything comes from the prior",
    ),
    "all temperatures too far apart": (
        tempered(normal(CHAINS, DRAWS, 3) + torch.tensor([0, 500, 600])),
        "(and 1 more pair) swap with a probability of ... below 0.05",
    ),
    "nothing goes round": (
        tempered(replica=torch.arange(3).expand(CHAINS, DRAWS, 3)),
        "All 4 chains made no round trip from prior to posterior and back, of ",
    ),
    "nothing goes round in one chain": (
        tempered(replica=changed(tempered().tempering.replica, 1, to=torch.arange(3))),
        "Chain 1 made no round trip from prior to posterior and back, of ",
    ),
    "one chain is elsewhere": (
        planted(lp=changed(usual("lp"), 3, to=usual("lp")[3] + 5)),
        "R-hat of lp is 1. ... (at most 1.01 is wanted) and bulk ESS is ... (at least 400): chains differ, or drift. ",
    ),
    "a drift": (
        planted(lp=usual("lp") + torch.linspace(0, 1, DRAWS)),
        "R-hat of lp is 1. ... (at most 1.01 is wanted)",
    ),
    "slow tails": (planted(lp=changed(usual("lp"), slice(None), slice(0, 45), to=-9.0)), "Tail ESS of lp is"),
    "lp that is not a number": (
        planted(lp=changed(usual("lp"), 1, slice(3, 5), to=math.nan)),
        "log density lp is NaN or infinite at 2 of 3,200 draws",
    ),
}


def says(warning, words):
    """Whether all parts of the words are there, in this order."""
    place = 0
    for part in words.split(" ... "):
        place = warning.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


@pytest.mark.parametrize(("chain", "words"), FAULTS.values(), ids=FAULTS)
def test_what_was_planted_is_said(chain, words):
    assert [says(warning, words) for warning in chain.warnings] == [True], chain.warnings


def test_chains_that_never_moved():
    """Whether or not statistics say so; it is no matter for R-hat that they agree."""
    moving = planted()
    draws, lp = changed(moving.draws, 2, to=1.0), changed(usual("lp"), 2, to=0.3)
    rates, is_accept = changed(usual("acceptance_rate"), 2, to=0.0), changed(usual("is_accept"), 2, to=False)
    words = "Chain 2 never moved in 800 draws. "
    chain = planted(draws=draws, lp=lp, acceptance_rate=rates, is_accept=is_accept)
    assert [says(warning, words) for warning in chain.warnings] == [True, False], "the other is about R-hat"
    assert says(planted(draws=draws, lp=None, is_accept=is_accept).warnings[0], words)
    assert says(planted(draws=draws, lp=lp, is_accept=None).warnings[0], words)
    everywhere = planted("NUTS", draws=torch.ones(CHAINS, DRAWS, 2), lp=torch.ones(CHAINS, DRAWS)).warnings
    assert everywhere == ["All 4 chains never moved in 800 draws. Take a smaller step size, or another start by init=."]
    assert not chain.drop(DRAWS - 9).warnings[0].startswith("Chain 2"), "too few draws to say so"


def test_a_single_chain():
    lp = usual("lp")[:1] + torch.linspace(0, 3, DRAWS)
    one = dataclasses.replace(
        planted(), draws=planted().draws[:1], stats={"lp": lp, "diverging": torch.arange(DRAWS)[None] >= 790}
    )
    assert says(
        one.warnings[1], "R-hat of lp is ... the halves of the chain differ. Draw for longer, in several chains"
    )
    assert says(one.warnings[0], "diverged ( ... %, nearly all in the last quarter)")
    assert says(dataclasses.replace(one, stats={"lp": usual("lp")[:1].cumsum(1)}).warnings[0], "at least 100")


def test_bfmi_is_arvizs():
    """The limit lies between ArviZ's numbers of the chains that are named and of those that are not."""
    speed = torch.linspace(0.05, 0.6, CHAINS)[:, None]
    energies = torch.zeros(CHAINS, DRAWS, dtype=torch.float64)
    for t in range(1, DRAWS):
        energies[:, t] = (1 - speed[:, 0]) * energies[:, t - 1] + normal(CHAINS, seed=t)
    chain = planted(energy=energies)
    bfmi = arviz().bfmi(chain.to_arviz())
    assert (bfmi < 0.3).tolist() == [True, False, False, False]
    assert says(chain.warnings[0], f"E-BFMI is {bfmi[0]:.2f} in chain 0 (")
    chain = planted(energy=changed(energies, 0, to=energies[1] + 0.001 * energies[0]))
    near = arviz().bfmi(chain.to_arviz())[0]
    for limit, is_said in ((near * 0.999, False), (near * 1.001, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(advice, "LEAST_BFMI", limit)
            assert (advice.energy(chain) is not None) == is_said


def test_how_chains_are_named():
    diverging = torch.zeros(64, 20, dtype=torch.bool)
    diverging[::5] = True
    chain = dataclasses.replace(planted(), draws=torch.zeros(64, 20, 2), stats={"diverging": diverging})
    assert says(chain.warnings[0], "in 13 of 64 chains (0, 5, 10, ...)): they could not follow")


# --- how they are shown -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", [chain for chain, _ in FAULTS.values()], ids=FAULTS)
def test_each_is_two_lines_of_the_repr(chain):
    (warning,) = chain.warnings
    _, below = repr(chain).split("\n  warnings\n")
    lines = below.splitlines()
    assert len(lines) <= 2
    assert max(map(len, lines)) <= LINE
    assert lines[0].startswith("    - ")
    assert " ".join(line[6:] for line in lines) == warning
    assert warning[-1] == "."
    assert warning[0].isupper() or warning[0].isdigit()


def test_several_are_one_below_the_other():
    chain = planted(warmup=10, diverging=torch.ones(CHAINS, DRAWS, dtype=torch.bool), kernel=ChEES(1e-9, 1.0))
    assert len(chain.warnings) == 3
    assert repr(chain).count("\n    - ") == 3
    assert repr(chain).count("  warnings\n") == 1
    page = chain._repr_html_()
    assert page.count("<tr>") == 1 + planted()._repr_html_().count("<tr>")
    assert page.count("<br>") == 2


def test_what_is_shown_is_escaped(monkeypatch):
    monkeypatch.setattr(advice, "CHECKS", (lambda chain: "R-hat > 1.01 & more",))
    assert "R-hat &gt; 1.01 &amp; more" in planted()._repr_html_()


# --- chains of any kind -----------------------------------------------------------------------------------------------

KERNELS = [
    *("", "NUTS", HMC(0.1, 1), HMC(0.1, 3, torch.eye(2)), ChEES(), MAMS(), MCLMC(), NUTS()),
    *(ReplicaExchange(HMC(0.1, 2), 3), SGLD(0.1, 5), "SGHMC(step_size=0.1, batch_size=5)", object(), None),
]
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e300, 1e-300])


@given(data=st.data())
def test_no_chain_is_too_strange(data):
    """Fails when a check raises an error, or tells a number that is none: then no chain could be shown."""
    chains, draws = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 3, 4, 5, 11, 120]))

    def values(*shape):
        few = torch.tensor(data.draw(st.lists(NUMBERS, min_size=1, max_size=6)), dtype=torch.float64)
        dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.bool, torch.int64]))
        return few.repeat(-(-math.prod(shape) // len(few)))[: math.prod(shape)].view(shape).to(dtype)

    names = data.draw(st.sets(st.sampled_from(list(planted().stats))))
    shape = data.draw(
        st.sampled_from([(chains, draws), (chains, draws), (chains, draws), (chains,), (chains, draws, 1)])
    )
    beta, *at_draws = values(chains, 3), *(values(chains, draws, 3) for _ in range(3))
    ladder = Tempering(*(field.double() for field in (beta, *at_draws, beta)))
    chain = dataclasses.replace(
        planted(),
        kernel=data.draw(st.sampled_from(KERNELS)),
        draws=values(chains, draws, 2),
        stats={name: values(*shape) for name in names},
        warmup=data.draw(st.sampled_from([0, 1, 20, 30, 1000])),
        thinning=data.draw(st.sampled_from([1, 5])),
        tempering=ladder if data.draw(st.booleans()) else None,
    )
    for warning in chain.warnings:
        assert isinstance(warning, str)
        assert "nan" not in warning or chain.tempering is not None


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(CHAINS, DRAWS).to_sparse(),
        torch.zeros(CHAINS, DRAWS, device="meta"),
        np.zeros((CHAINS, DRAWS)),
        None,
        3,
    ],
    ids=["sparse", "meta", "array", "None", "number"],
)
def test_statistics_that_are_no_numbers_say_nothing(values):
    chain = dataclasses.replace(planted(), stats=dict.fromkeys(planted().stats, values))
    assert chain.warnings == []


def test_no_draws():
    assert dataclasses.replace(planted(), draws=torch.zeros(4, 0, 2), stats={}).warnings == []


def test_draws_that_are_large_are_not_read():
    """Fails when a check goes through all draws, which takes seconds and gigabytes of a large network."""

    class Untouchable(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs or {})
            assert not isinstance(result, torch.Tensor) or result.numel() <= 2 * CHAINS, function
            return result

    chain = planted(draws=planted().draws.contiguous().as_subclass(Untouchable))
    assert chain.warnings == []
    assert planted(draws=chain.draws, lp=torch.ones(CHAINS, DRAWS)).warnings == [], "only both ends"


# --- real runs --------------------------------------------------------------------------------------------------------


def short(posterior, kernel, *arguments, **kwargs):
    return sample(posterior, kernel, *arguments, seed=1, progress=False, compile=False, **kwargs).warnings


def test_a_step_size_that_is_far_too_large():
    """Each trajectory ends 1e36 times as far away as it began. Nothing is said of the rate, which is no news."""
    stuck, diverged, disagree = short(gaussian([0.01, 1.0]), HMC(1.0, 8), 100, 4)
    assert says(stuck, "All 4 chains never moved in 100 draws")
    assert says(diverged, "400 of 400 transitions diverged (100.0%, in all 4 chains)")
    assert says(disagree, "R-hat of lp is over 100")


def test_the_tutorials_chain(posterior):
    """One chain of 5,000 draws: what the tutorial did not see. Of 200 such chains, none had an ESS of more than 50.

    (In 10 of them the halves agreed, by chance.)
    """
    found = short(posterior, HMC(0.05, 4), 5000)
    assert re.search(r"ESS (of lp )?is \d\d? \(at least 100\): .* in several chains, and see by ", found[-1])
    assert not any("warm-up had" in warning or "aimed at" in warning for warning in found)


def test_warmups_that_are_too_short():
    assert says(short(SILENT, ChEES(), 200, 8, warmup=15)[0], "The warm-up had 15 transitions")
    found = short(REGRESSION, ReplicaExchange(HMC(0.1, 5), 4), 200, 2, warmup=15)
    assert any(says(warning, "The warm-up had 15 transitions, too few to set the temperatures") for warning in found)


def test_trajectories_that_go_nowhere():
    """Two inputs that are nearly one: their difference is known a hundred times as well as no single weight is."""
    x = normal(100, 1)
    data = Data(x + 1e-3 * normal(100, 2, seed=1), x[:, 0])
    found = short(
        Posterior(nn.Linear(2, 1, bias=False), data, NormalPrior(1.0), Gaussian(0.02)), HMC(0.1, 5), 100, 4, warmup=300
    )
    assert any(says(warning, "Trajectories of 5 steps take 0. ... Take about") for warning in found)


def test_temperatures_that_do_not_meet():
    """Two of them, and a posterior that is narrow beside its prior."""
    kernel = ReplicaExchange(HMC(0.05, 5), 2)
    found = short(Posterior(nn.Linear(3, 1, bias=False), GIVEN, NormalPrior(0.01), Gaussian(0.05)), kernel, 200, 2, 30)
    assert any(says(warning, "Temperatures 0 and 1 swap with a probability of") for warning in found)
    assert any(says(warning, "Both chains made no round trip") for warning in found)


SILENT, GIVEN = gaussian([0.5, 1.0, 2.0]), regression().data
REGRESSION = Posterior(nn.Linear(3, 1, bias=False), GIVEN, NormalPrior(0.25), Gaussian(0.5))
RUNS = {
    "HMC": (SILENT, HMC(0.1, 6), 150, 1000),
    "HMC without a warm-up": (SILENT, HMC(0.5, 5, torch.tensor([0.25, 1.0, 4.0]), jitter=0.3), 0, 1000),
    "Langevin": (SILENT, HMC(0.1, 1), 150, 2000),
    "ChEES": (SILENT, ChEES(), 150, 1000),
    "NUTS": (REGRESSION, NUTS(), 150, 1000),
    "MAMS": (SILENT, MAMS(), 150, 2000),
    "replica exchange": (REGRESSION, ReplicaExchange(HMC(0.1, 5), 4), 100, 1000),
}


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(2), id="2", marks=pytest.mark.statistical),
        # Other seeds of their own: run with other seeds again, these would be a quarter of the time of `make robust`.
        pytest.param(range(2, 20), id="18 more", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_healthy_runs_are_told_nothing(run, seeds):
    """By far the most likely of false alarms is that about R-hat, of means of 16 halves of chains.

    With n effective draws in each half it exceeds 1.01 where a chi-square of 15 degrees of freedom exceeds 0.3 n; with
    n of 200 or more, as here, that has a probability of 1e-6, and the folded draws have as much.
    """
    posterior, kernel, warmup, num_samples = run
    for seed in seeds:
        chain = sample(posterior, kernel, num_samples, 8, warmup, seed=seed, progress=False)
        assert chain.warnings == []
