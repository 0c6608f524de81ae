"""Runs into folders: the same call goes on, another one is refused, and kills change nothing."""

import os
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    SGHMC,
    SGLD,
    Bernoulli,
    Chain,
    ChEES,
    Gaussian,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    Symmetric,
    batches,
    boxes,
    executors,
    sample,
)
from bnn_utils.stores import open_for_reading

ARGUMENTS = {"num_chains": 4, "warmup": 60, "batch_size": 2, "seed": 1, "progress": False}
KERNELS = {
    "HMC": HMC(0.05, 3),
    "all found": HMC(),
    "ChEES": ChEES(),
    "NUTS": NUTS(),
    "Symmetric": Symmetric(HMC(0.05, 3), 2),
    "MAMS": MAMS(),
    "MCLMC": MCLMC(),
    "ReplicaExchange": ReplicaExchange(HMC(0.05, 3), 4),
    "from a reference": ReplicaExchange(HMC(0.05, 3), 4, reference=torch.tensor([0.5, 0.6, 0.7])),
    "SGLD": SGLD(0.01, 3),
    "SGHMC": SGHMC(0.01, 3, cycle_length=4, exploration=0.5),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@pytest.fixture
def small():
    return Posterior(nn.Linear(2, 1), boxes(n=8), NormalPrior(1.0), Bernoulli())


def same(one, other):
    is_same = torch.equal(one.draws, other.draws) and one.stats.keys() == other.stats.keys()
    is_same = is_same and all(torch.equal(values, other.stats[name]) for name, values in one.stats.items())
    if one.tempering is not None:
        ladders = zip(one.tempering.items(), other.tempering.items(), strict=True)
        is_same = is_same and all(torch.equal(mine[2], theirs[2]) for mine, theirs in ladders)
    return is_same


def stopping(monkeypatch, after):
    """Sampling ends with an interruption after so many segments."""
    original, count = batches.Batches.take, iter(range(10**9))

    def take(self, batch, made):
        original(self, batch, made)
        if next(count) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(batches.Batches, "take", take)


# --- the same call again ----------------------------------------------------------------------------------------------


@each_kernel
def test_a_folder_changes_no_draw_and_takes_more(small, kernel, tmp_path):
    """Run to its end, called again, with more draws, and read: always the draws of one run in memory."""
    store, whole = tmp_path / "run.zarr", sample(small, kernel, 50, **ARGUMENTS)
    first = sample(small, kernel, 30, store=store, **ARGUMENTS)
    assert same(first, sample(small, kernel, 30, store=store, **ARGUMENTS))
    assert same(Chain.load(store), first)
    longer = sample(small, kernel, 50, store=store, **ARGUMENTS)
    assert same(longer, whole)
    assert same(Chain.load(store), whole)
    assert same(sample(small, kernel, 30, store=store, **ARGUMENTS), first)
    assert same(longer.extend(7, progress=False), sample(small, kernel, 57, **ARGUMENTS))
    assert Chain.load(store).num_draws == 57


@each_kernel
@pytest.mark.parametrize("after", [1, 4, 9])
def test_goes_on_after_an_interruption(small, kernel, after, tmp_path, monkeypatch):
    """In a warm-up, or among draws, whether a segment was committed or not. Fails when a checkpoint lacks anything."""
    store, whole = tmp_path / "run.zarr", sample(small, kernel, 50, **ARGUMENTS)
    with monkeypatch.context() as patch:
        stopping(patch, after)
        try:
            with pytest.warns(RuntimeWarning, match="interrupted"):
                sample(small, kernel, 50, store=store, **ARGUMENTS)
        except KeyboardInterrupt:  # before the first draw
            pass
    assert same(sample(small, kernel, 50, store=store, **ARGUMENTS), whole)


@each_kernel
def test_goes_on_from_maxima(small, kernel, tmp_path, monkeypatch):
    """Interrupted once and again, and called with more draws."""
    arguments, store = ARGUMENTS | {"init": "map"}, tmp_path / "run.zarr"
    whole = sample(small, kernel, 50, **arguments)
    for after in (1, 9):
        with monkeypatch.context() as patch:
            stopping(patch, after)
            with suppress(KeyboardInterrupt), warnings.catch_warnings(action="ignore"):
                sample(small, kernel, 30, store=store, **arguments)
    assert same(sample(small, kernel, 50, store=store, **arguments), whole)
    assert same(Chain.load(store), whole)
    with pytest.raises(ValueError, match="init was 'maxima above draws from the prior', now 'draws from the prior'"):
        sample(small, kernel, 50, store=store, **ARGUMENTS)


def test_an_error_leaves_a_good_folder(small, tmp_path, monkeypatch):
    """In the 26th of the draws of a single batch: those before it are in the error, and the folder is good."""
    arguments = ARGUMENTS | {"batch_size": 4, "compile": False}
    store, whole, calls = tmp_path / "run.zarr", sample(small, KERNELS["HMC"], 50, **arguments), iter(range(10**9))
    original = HMC.step

    def failing(self, density, generator, state):
        if next(calls) == 60 + 25:
            raise ZeroDivisionError
        return original(self, density, generator, state)

    with monkeypatch.context() as patch:
        patch.setattr(HMC, "step", failing)
        with pytest.raises(ZeroDivisionError) as caught:
            sample(small, KERNELS["HMC"], 50, store=store, **arguments)
    assert torch.equal(caught.value.chain.draws, whole.draws[:, :25])
    assert same(sample(small, KERNELS["HMC"], 50, store=store, **arguments), whole)


def test_without_a_seed_the_folder_knows_it(small, tmp_path):
    arguments = ARGUMENTS | {"seed": None}
    first = sample(small, KERNELS["HMC"], 20, store=tmp_path / "run.zarr", **arguments)
    again = sample(small, KERNELS["HMC"], 30, store=tmp_path / "run.zarr", **arguments)
    assert again.seed == first.seed
    assert torch.equal(again.draws[:, :20], first.draws)


def test_a_generator_in_the_same_state_goes_on(small, tmp_path):
    def arguments(seed):
        return ARGUMENTS | {"seed": torch.Generator().manual_seed(seed)}

    sample(small, KERNELS["HMC"], 20, store=tmp_path / "run.zarr", **arguments(3))
    again = sample(small, KERNELS["HMC"], 30, store=tmp_path / "run.zarr", **arguments(3))
    assert same(again, sample(small, KERNELS["HMC"], 30, **arguments(3)))
    with pytest.raises(ValueError, match="holds another run: seed was 'a generator in the state "):
        sample(small, KERNELS["HMC"], 30, store=tmp_path / "run.zarr", **arguments(4))


def test_times_add_up(small, tmp_path):
    first = sample(small, KERNELS["HMC"], 20, store=tmp_path / "run.zarr", **ARGUMENTS)
    again = sample(small, KERNELS["HMC"], 60, store=tmp_path / "run.zarr", **ARGUMENTS)
    assert 0 < first.sampling_time < again.sampling_time < again.wall_time
    assert Chain.load(tmp_path / "run.zarr").sampling_time == pytest.approx(again.sampling_time)


# --- another call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": HMC(0.06, 3)}, r"kernel.step_size was 0.05, now 0.06; sampler was 'HMC\(step_size=0.05, num_"),
        (
            {"kernel": HMC(0.05, 3, torch.ones(3))},
            r"kernel.inv_mass was None, now 'torch.float32 of shape \(3,\), SHA-256 ",
        ),
        ({"kernel": ChEES()}, "kernel.class was 'HMC', now 'ChEES'"),
        ({"seed": 2}, "seed was '1', now '2'"),
        ({"warmup": 61}, "warmup was 60, now 61"),
        ({"thin": 2}, "thin was 1, now 2"),
        ({"num_chains": 5}, "batch"),
        ({"init": torch.zeros(4, 3)}, "init was 'draws from the prior', now '"),
        ({"init": "map"}, "init was 'draws from the prior', now 'maxima above draws from the prior'"),
        ({"data": boxes(n=12)}, "posterior was '.*8 points.*', now '.*12 points"),
        ({"y": 1}, r"log likelihood there\[0\] was -"),
        ({"prior": NormalPrior(1.1)}, r"log prior at some draws from the prior\[0\] was -"),
        ({"likelihood": Gaussian(1.0)}, r"posterior was '.*Bernoulli.*', now '.*Gaussian"),
        ({"net": nn.Sequential(nn.Linear(2, 1), nn.Tanh())}, r"log likelihood there\[0\] was -"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_is_refused(small, change, message, tmp_path):
    """With what differs; the folder stays as it was."""
    before = sample(small, KERNELS["HMC"], 10, store=tmp_path / "run.zarr", **ARGUMENTS)
    arguments = ARGUMENTS | {name: change[name] for name in change if name in (*ARGUMENTS, "thin", "init")}
    data = change.get("data", boxes(n=8))
    if "y" in change:
        data.y[0] = 1 - data.y[0]
    posterior = Posterior(
        change.get("net", nn.Linear(2, 1)),
        data,
        change.get("prior", NormalPrior(1.0)),
        change.get("likelihood", Bernoulli()),
    )
    with pytest.raises(ValueError, match=rf"run\.zarr' holds another run: .*{message}"):
        sample(posterior, change.get("kernel", KERNELS["HMC"]), 10, store=tmp_path / "run.zarr", **arguments)
    assert same(Chain.load(tmp_path / "run.zarr"), before)


def test_a_folder_of_something_else(small, tmp_path):
    (tmp_path / "notes.txt").write_text("not a run")
    with pytest.raises(ValueError, match="it is no store"):
        sample(small, KERNELS["HMC"], 10, store=tmp_path, **ARGUMENTS)
    with pytest.raises(ValueError, match="it is no store"):
        Chain.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="make it first"):
        sample(small, KERNELS["HMC"], 10, store=tmp_path / "there" / "run.zarr", **ARGUMENTS)
    with pytest.raises(TypeError, match="a path must be a str or a path"):
        sample(small, KERNELS["HMC"], 10, store=3, **ARGUMENTS)


def test_numbers_of_a_new_process_may_differ_by_rounding(small, tmp_path, monkeypatch):
    """Log densities at the probes, by which a posterior is known, are compared to five digits."""
    sample(small, KERNELS["HMC"], 10, store=tmp_path / "run.zarr", **ARGUMENTS)
    original = Posterior.log_likelihood
    monkeypatch.setattr(Posterior, "log_likelihood", lambda self, theta: original(self, theta) * (1 + 1e-7))
    assert sample(small, KERNELS["HMC"], 10, store=tmp_path / "run.zarr", **ARGUMENTS).num_draws == 10
    monkeypatch.setattr(Posterior, "log_likelihood", lambda self, theta: original(self, theta) * (1 + 1e-3))
    with pytest.raises(ValueError, match="log likelihood there"):
        sample(small, KERNELS["HMC"], 10, store=tmp_path / "run.zarr", **ARGUMENTS)


# --- who reads and who writes -----------------------------------------------------------------------------------------


def test_what_is_read_while_a_run_goes_on(small, tmp_path, monkeypatch):
    """At each moment the beginning of the draws."""
    monkeypatch.setattr(batches, "SECONDS_BETWEEN_COMMITS", 0.0)
    monkeypatch.setattr(executors, "SECONDS_OF_SEGMENT", 0.0)  # a transition each
    store, whole, seen = tmp_path / "run.zarr", sample(small, KERNELS["HMC"], 20, **ARGUMENTS), []
    original = batches.Batches.take

    def take(self, batch, made):
        original(self, batch, made)
        found = open_for_reading(store)
        if min(found.count(0), found.count(1)):
            draws = Chain.load(store).draws
            assert torch.equal(draws, whole.draws[:, : draws.shape[1]])
            seen.append(draws.shape[1])

    monkeypatch.setattr(batches.Batches, "take", take)
    sample(small, KERNELS["HMC"], 20, store=store, **ARGUMENTS)
    assert sorted(set(seen)) == list(range(1, 21))


def test_two_runs_into_one_folder(small, tmp_path, monkeypatch):
    original = batches.Batches.take

    def take(self, batch, made):
        original(self, batch, made)
        with pytest.raises(BlockingIOError, match="open for writing elsewhere"):
            sample(small, KERNELS["HMC"], 10, store=tmp_path / "run.zarr", **ARGUMENTS)

    monkeypatch.setattr(batches.Batches, "take", take)
    sample(small, KERNELS["HMC"], 10, store=tmp_path / "run.zarr", **ARGUMENTS)


@pytest.mark.skipif(not hasattr(sys, "platform") or sys.platform == "win32", reason="it forks")
@pytest.mark.parametrize("workers", [1, 2])
def test_kills(workers):
    """A few of the thirty for each kernel that `python tests/kills.py` makes."""
    script = Path(__file__).parent / "kills.py"
    command = [sys.executable, str(script), "--trials", "3", "--workers", str(workers), "--kernels", "HMC"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_memory_has_no_room_for_is_refused_at_the_first_transition(small):
    """Theta alone would take half of the memory, and with its statistics more than all: no number of draws is made."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    num = int(total / 2 / small.dim / 8)
    with pytest.raises(ValueError, match=r"draws of 1 chains with \d+ bytes each would take .*thin=.*store="):
        sample(small, HMC(0.05, 3), num, seed=1, progress=False, compile=False)


def test_what_the_disk_has_no_room_for_is_refused_at_the_first_transition(small, tmp_path):
    """And the folder is left as one in which fewer draws find room."""
    arguments = {"seed": 1, "progress": False, "compile": False, "store": tmp_path / "run.zarr"}
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(ValueError, match=r"draws of 1 chains with \d+ bytes each would take .* the disk of .*thin="):
        sample(small, HMC(0.05, 3), free // 8, **arguments)
    assert sample(small, HMC(0.05, 3), 50, **arguments).num_draws == 50
