"""Chains whose draws stay in their folder: they say what a chain in memory says."""

import pickle
import shutil

import pandas as pd
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
    NormalPrior,
    Posterior,
    ReplicaExchange,
    advice,
    boxes,
    sample,
    stored,
)
from bnn_utils.stored import StoredChain
from bnn_utils.stores import folder as folders

POSTERIOR = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Bernoulli())
KERNELS = {
    "HMC": HMC(0.3, 3),
    "ChEES": ChEES(),
    "NUTS": NUTS(),
    "MAMS": MAMS(),
    "MCLMC": MCLMC(),
    "ReplicaExchange": ReplicaExchange(HMC(0.3, 3), 3),
    "SGLD": SGLD(0.01, 3),
    "SGHMC": SGHMC(0.01, 3),
}
NUM = 150


def draw(num=NUM, kernel="HMC", **kwargs):
    arguments = {"num_chains": 4, "warmup": 30, "seed": 1, "progress": False, "compile": False}
    return sample(POSTERIOR, KERNELS[kernel], num, **arguments | kwargs)


@pytest.fixture
def many(monkeypatch):
    """So that even these draws are many, and chunks have few."""
    monkeypatch.setattr(stored, "MOST_BYTES", 10_000)
    monkeypatch.setattr(folders, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(folders, "SHORT_CHUNK_BYTES", 2000)


def same(one, two):
    assert one.num_draws == two.num_draws
    assert one.num_chains == two.num_chains
    assert one.dim == two.dim
    assert torch.equal(one.draws, two.draws)
    assert list(one.stats) == list(two.stats)
    assert all(torch.equal(one.stats[name], two.stats[name]) for name in two.stats)
    assert list(one.kept) == list(two.kept)
    assert all(torch.allclose(one.kept[name], two.kept[name], rtol=1e-12) for name in two.kept)
    assert (one.tempering is None) == (two.tempering is None)
    for mine, theirs in zip(*(chain.tempering.items() if chain.tempering else [] for chain in (one, two)), strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[2], theirs[2])
    facts = ("names", "gradient", "device", "seed", "warmup", "thinning", "dropped")
    assert all(getattr(one, name) == getattr(two, name) for name in facts)
    return True


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_it_is_the_chain_in_memory(many, kernel, batch_size, tmp_path):
    """Whole, thinned, shortened, both, and extended; fails when a part of a chunk lands in another place."""
    whole = draw(kernel=kernel, batch_size=batch_size)
    chain = draw(kernel=kernel, batch_size=batch_size, store=tmp_path / "run.zarr")
    assert [type(each) for each in (whole, chain, Chain.load(tmp_path / "run.zarr"))] == [
        Chain,
        StoredChain,
        StoredChain,
    ]
    assert same(chain, whole)
    assert same(Chain.load(tmp_path / "run.zarr"), whole)
    for k in (2, 7, NUM):
        assert same(chain.thin(k), whole.thin(k))
        assert type(chain.thin(k)) is Chain
    for n in (0, 1, 40, NUM - 1):
        assert same(chain.drop(n), whole.drop(n))
        assert chain.drop(n).sampling_time == pytest.approx(chain.sampling_time * (NUM - n) / NUM)
    assert same(chain.drop(23).drop(8).thin(5), whole.drop(31).thin(5))
    assert same(chain.extend(50, progress=False), whole.extend(50, progress=False))
    assert same(chain, whole), "as many draws as before, though its folder has more"


def test_parts_are_all_draws_and_statistics(many, tmp_path):
    whole, chain = draw(batch_size=3), draw(batch_size=3, store=tmp_path / "run.zarr").drop(7)
    for name, values in {"draws": whole.draws, **whole.stats}.items():
        found, parts = torch.full_like(values[:, 7:].double(), torch.nan), list(chain.parts(name))
        for chains, draws, part in parts:
            assert found[chains, draws].isnan().all(), "none twice"
            found[chains, draws] = part.double()
        assert torch.equal(found, values[:, 7:].double())
        assert len(parts) > 10
    assert not list(chain.parts("nothing"))


def test_a_part_is_read_once(many, tmp_path, monkeypatch):
    """Also to ask whether there is such a statistic; fails when whole arrays are read to learn that."""
    chain, read = draw(store=tmp_path / "run.zarr"), []
    read_chunk = folders.zarr.read_chunk
    monkeypatch.setattr(folders.zarr, "read_chunk", lambda *args: read.append(args[0]) or read_chunk(*args))
    assert "energy" in chain.stats
    assert not read
    for name in ("draws", "energy"):
        read.clear()
        num = len(list(chain.parts(name)))
        assert num - 1 <= len(read) == len(set(read)) <= num, "the last part is in memory"


@pytest.mark.parametrize("keep_draws", [True, False])
def test_what_was_kept_stays_there_too(many, keep_draws, tmp_path):
    keep = {"p": lambda theta: POSTERIOR.predict(theta, POSTERIOR.data.x), "length": lambda theta: theta.norm(dim=1)}
    arguments = {"batch_size": 3, "keep": keep, "keep_draws": keep_draws}
    whole, chain = draw(**arguments), draw(**arguments, store=tmp_path / "run.zarr")
    assert type(chain) is StoredChain
    for each in (chain, Chain.load(tmp_path / "run.zarr")):
        assert same(each, whole)
        assert same(each.thin(7), whole.thin(7))
        assert same(each.drop(9), whole.drop(9))
        assert "kept             p (chains, draws, 4), length (chains, draws)" in repr(each)
    total = sum(part.values.sum((0, 1)) for part in chain.parts("kept_p"))
    assert torch.allclose(total, whole.kept["p"].sum((0, 1)), rtol=1e-12)
    (whole_part,) = whole.parts("kept_p")
    assert torch.equal(whole_part.values, whole.kept["p"])
    if keep_draws:
        assert torch.allclose(chain.expectation(keep["p"]), whole.kept["p"].mean((0, 1)), rtol=1e-12)
        return
    for each in (whole, chain):
        assert not list(each.parts("draws"))
        with pytest.raises(ValueError, match=r"theta was not kept \(keep_draws=False\)"):
            each.expectation(keep["p"])


def test_expectation(many, tmp_path, monkeypatch):
    """The mean over all draws, of functions with results of any shape, in memory and in a folder."""
    monkeypatch.setattr("bnn_utils.chain.FIRST_DRAWS", 16)
    monkeypatch.setattr("bnn_utils.chain.FUNCTION_ELEMENTS", 100)
    whole, chain = draw(), draw(store=tmp_path / "run.zarr")
    x = POSTERIOR.data.x
    for function in (lambda theta: POSTERIOR.predict(theta, x), lambda theta: theta[:, 0], lambda theta: theta > 0):
        mean = function(whole.draws.flatten(0, 1)).double().mean(0)
        for each in (whole, chain):
            found = each.expectation(function)
            assert found.dtype == torch.float64
            assert torch.allclose(found, mean, rtol=1e-12)
    with pytest.raises(ValueError, match=r"shape \(1,\) from 16 draws: it must return one row for each"):
        chain.expectation(lambda theta: theta.sum()[None])
    with pytest.raises(TypeError, match=r"takes a function of theta \(S, D\), got 3"):
        chain.expectation(3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_tables_look_at_some_draws_and_say_so(many, kernel, tmp_path):
    chain = draw(kernel=kernel, store=tmp_path / "run.zarr")
    step = int(chain.summary().columns.name.removeprefix("of one draw in "))
    assert 2 <= step < NUM / 4
    few = draw(kernel=kernel).thin(step)
    few_bytes = sum(values.nbytes for values in (few.draws, *few.stats.values()))
    assert few_bytes <= stored.MOST_BYTES
    columns = ["mean", "sd", "mcse", "ess_bulk", "ess_tail", "r_hat"]
    pd.testing.assert_frame_equal(chain.summary()[columns], few.summary()[columns], check_names=False)
    pd.testing.assert_frame_equal(chain.quantiles(), few.quantiles(), check_names=False)
    assert chain.quantiles().columns.name == f"of one draw in {step}"
    end = chain.drop(NUM - 5)  # few enough to look at all
    assert end.quantiles().columns.name == "of one draw in 1"
    pd.testing.assert_frame_equal(end.quantiles(), draw(kernel=kernel).drop(NUM - 5).quantiles(), check_names=False)


def test_what_it_says_of_itself(many, tmp_path):
    """Divergences and acceptance are those of all draws: one is not lost between two draws that tables look at."""
    whole, chain = draw(400), draw(400, store=tmp_path / "run.zarr")
    told = [repr(each).split("warnings")[0].splitlines() for each in (chain, whole)]
    told = [[line for line in lines if "wall duration" not in line] for lines in told]
    assert told[0] == told[1]
    assert len(told[0]) > 7
    assert not any("diverged" in text for text in whole.warnings)
    store = chain.source.store
    where = next(p for p in sorted((store.path / "diverging").glob("c.0.*")) if p.name != "c.0.0")
    position, array = int(where.name.split(".")[2]), store.arrays["diverging"]
    shape = (4, store._layout.draws_per_chunk)
    values = folders.zarr.read_chunk(where, shape, array)
    values[2, 0] = True
    folders.zarr.write_chunk(where, values, array)
    damaged = Chain.load(store.path)
    assert position < damaged.source.store._batches[0].full
    assert "1 divergences" in repr(damaged)
    assert [
        text for text in damaged.warnings if text.startswith("1 of 1,600 transitions diverged (under 0.1%, in chain")
    ]


def test_checks_of_all_draws_say_the_same_of_parts(many, tmp_path):
    """E-BFMI from chunk to chunk; fails when the jump between two chunks is left out, or counted twice."""
    whole, chain = draw(NUM, "HMC", batch_size=3), draw(NUM, "HMC", batch_size=3, store=tmp_path / "run.zarr")
    energy = whole.stats["energy"].double()
    bfmi = energy.diff(dim=1).square().mean(1) / energy.var(1)
    for each in (whole, chain):
        found = advice.energy_fractions(each)
        assert torch.allclose(found, bfmi, rtol=1e-9)


def test_it_goes_to_files_arviz_and_other_processes(many, tmp_path):
    whole, chain = draw(), draw(store=tmp_path / "run.zarr")
    chain.save(tmp_path / "chain.nc")
    assert same(Chain.load(tmp_path / "chain.nc"), whole)
    assert chain.to_arviz()["posterior"].equals(whole.to_arviz()["posterior"])
    assert same(pickle.loads(pickle.dumps(chain)), whole)
    other = draw(seed=2)
    assert same(Chain.merge([chain, other]), Chain.merge([whole, other]))
    assert chain.best_draw() == whole.best_draw()


def test_a_folder_that_is_gone_is_named(many, tmp_path):
    chain = draw(store=tmp_path / "run.zarr")
    shutil.rmtree(tmp_path / "run.zarr")
    with pytest.raises(ValueError, match=r"run.zarr/draws/c.0.0.0' is missing"):
        chain.summary()


@pytest.mark.parametrize("kernel", ["HMC", "ReplicaExchange"])
def test_a_folder_in_which_chains_have_no_draws(kernel, tmp_path):
    """As one is while a run of several batches has not come to the last of them."""
    path = tmp_path / "run.zarr"
    draw(20, kernel, store=path, batch_size=2)
    for checkpoint in path.glob("checkpoints/1-*"):
        checkpoint.unlink()
    with (
        pytest.warns(RuntimeWarning, match="batch 1 is taken from its start"),
        pytest.raises(ValueError, match=r"there are no draws of all chains in '.*run.zarr' yet"),
    ):
        Chain.load(path)


def test_a_reader_who_does_not_know_the_state(tmp_path, monkeypatch):
    """Draws and statistics are those of the run; the ladder, which is in the state, is not known."""
    chain = draw(20, "ReplicaExchange", store=tmp_path / "run.zarr")
    assert Chain.load(tmp_path / "run.zarr").tempering is not None
    monkeypatch.setattr("bnn_utils.packing._known", lambda name: None)
    read = Chain.load(tmp_path / "run.zarr")
    assert torch.equal(read.draws, chain.draws)
    assert torch.equal(read.stats["lp"], chain.stats["lp"])
    assert read.tempering is None


def test_what_memory_has_no_room_for_is_refused(many, tmp_path, monkeypatch):
    chain = draw(store=tmp_path / "run.zarr")
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 5000)
    with pytest.raises(ValueError, match=r"theta at 150 draws of 4 chains would take .*chain.thin\(k\).*expectation"):
        _ = chain.draws
    assert chain.thin(10).num_draws == 15
