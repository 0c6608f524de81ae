"""Functions of the draws that a run records: beside theta or in its place, wherever they go, and whatever ends it."""

import pickle
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    SGLD,
    Bernoulli,
    Chain,
    ChEES,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    boxes,
    sample,
    square_grid,
)
from bnn_utils.batches import Batches
from bnn_utils.diagnostics import diagnose
from bnn_utils.stores import open_for_reading

POSTERIOR = Posterior(nn.Linear(2, 1), boxes(n=8), NormalPrior(1.0), Bernoulli())
GRID = square_grid(5)
LOCK = threading.Lock()  # which can't be pickled
KERNELS = {
    "HMC": HMC(0.05, 3),
    "ChEES": ChEES(),
    "NUTS": NUTS(),
    "MAMS": MAMS(),
    "MCLMC": MCLMC(),
    "ReplicaExchange": ReplicaExchange(HMC(0.05, 3), 4),
    "SGLD": SGLD(0.01, 30),
}
ARGUMENTS = {"num_chains": 4, "warmup": 60, "batch_size": 2, "seed": 1, "progress": False}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
beside_or_in_place = pytest.mark.parametrize("keep_draws", [True, False], ids=["beside", "in place"])


def predictions(theta):
    with LOCK:
        return POSTERIOR.predict(theta, GRID)


def is_positive(theta):
    return theta[:, 0] > 0


KEEP = {"p": predictions, "positive": is_positive}


def draw(num_samples=50, kernel=KERNELS["HMC"], keep=KEEP, **changes):
    return sample(POSTERIOR, kernel, num_samples, **ARGUMENTS | changes, keep=keep)


def assert_kept(chain, draws):
    """Of these draws, all functions."""
    assert set(chain.kept) == set(KEEP)
    for name, function in KEEP.items():
        expected = function(draws.flatten(0, 1)).unflatten(0, draws.shape[:2])
        torch.testing.assert_close(chain.kept[name], expected)
    if chain.dim:
        assert torch.equal(chain.draws, draws)
    else:
        assert chain.draws.shape == (*draws.shape[:2], 0)
        assert chain.names == []


def stopping(monkeypatch, after):
    """Sampling ends after so many segments."""
    original, count = Batches.take, iter(range(10**9))

    def take(self, batch, made):
        original(self, batch, made)
        if next(count) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Batches, "take", take)


# --- what is recorded -------------------------------------------------------------------------------------------------


@each_kernel
@beside_or_in_place
def test_values_are_those_at_the_draws(kernel, keep_draws):
    """Which are the same as without; so are the statistics."""
    plain, chain = draw(kernel=kernel, keep=None), draw(kernel=kernel, keep_draws=keep_draws)
    assert_kept(chain, plain.draws)
    assert chain.kept["positive"].dtype == torch.bool
    assert plain.kept == {}
    assert chain.stats.keys() == plain.stats.keys()
    assert all(torch.equal(chain.stats[name], values) for name, values in plain.stats.items())
    assert (chain.tempering is None) == (plain.tempering is None)
    assert chain.warnings == plain.warnings


@beside_or_in_place
def test_only_draws_that_are_kept_are_looked_at(keep_draws):
    """But for a first look, before the warm-up. Fails where functions also see what thinning leaves out."""
    seen = []

    def first(theta):
        seen.append(theta.clone())
        return theta[:, 0]

    chain = draw(20, keep={"first": first}, keep_draws=keep_draws, thin=7, batch_size=4)
    thinned = draw(20, keep=None, thin=7, batch_size=4).draws
    assert torch.equal(chain.kept["first"], thinned[..., 0])
    looks = sum(map(len, seen)) - 4 * 20
    assert looks == 5 + 1 + 1 + 4, "the starts and a draw from the prior, two of these alone, and a transition"


@beside_or_in_place
def test_workers_need_not_know_the_functions(keep_draws):
    """These hold a lock. The last batch has fewer chains."""
    chain = draw(num_chains=5, workers=2, keep_draws=keep_draws)
    assert_kept(chain, draw(num_chains=5, keep=None).draws)


def test_a_function_may_change_its_argument_and_take_gradients():
    """Fails when it is passed the draws themselves, or tensors of inference mode."""

    def gradient(theta):
        with torch.enable_grad():
            theta.requires_grad_()
            theta.square().sum().backward()
        return theta.grad

    def zero(theta):
        return theta.zero_()

    chain = draw(keep={"gradient": gradient, "zero": zero})
    assert torch.equal(chain.draws, draw(keep=None).draws)
    torch.testing.assert_close(chain.kept["gradient"], 2 * chain.draws)
    assert not chain.kept["zero"].any()
    assert not any(values.requires_grad or values.is_inference() for values in chain.kept.values())


def test_nan_is_a_value():
    assert draw(keep={"nan": lambda theta: theta * torch.nan}).kept["nan"].isnan().all()


def test_one_chain_and_equal_starts():
    """A function that mixes rows is found there too: beside them is a draw from the prior."""
    for change in ({"num_chains": 1}, {"init": torch.zeros(3)}):
        with pytest.raises(ValueError, match="must be a function of each draw alone"):
            draw(keep={"mean": lambda theta: theta.mean(0).expand(theta.shape)}, **change)


def test_chance_is_refused():
    noise = torch.Generator().manual_seed(1)
    with pytest.raises(ValueError, match="changes with the others in theta, or from call to call"):
        draw(keep={"noise": lambda theta: torch.randn(theta.shape, generator=noise)})


# --- folders, and more draws ------------------------------------------------------------------------------------------


@each_kernel
@beside_or_in_place
def test_a_folder_goes_on(kernel, keep_draws, tmp_path):
    """Called again, with more draws, extended, and read."""
    arguments = {"kernel": kernel, "store": tmp_path / "run.zarr", "keep_draws": keep_draws}
    whole = draw(60, kernel, keep=None).draws
    assert_kept(draw(30, **arguments), whole[:, :30])
    assert_kept(Chain.load(tmp_path / "run.zarr"), whole[:, :30])
    longer = draw(50, **arguments)
    assert_kept(longer, whole[:, :50])
    assert_kept(longer.extend(10, progress=False), whole)
    assert_kept(Chain.load(tmp_path / "run.zarr"), whole)


@beside_or_in_place
def test_in_memory_it_is_extended(keep_draws):
    chain, whole = draw(30, keep_draws=keep_draws), draw(45, keep=None).draws
    for _ in range(2):  # it stays as it is
        assert_kept(chain.extend(15, progress=False), whole)
    assert_kept(chain, whole[:, :30])


@beside_or_in_place
@pytest.mark.parametrize("after", [4, 9])
def test_goes_on_after_an_interruption(keep_draws, after, tmp_path, monkeypatch):
    arguments, whole = {"store": tmp_path / "run.zarr", "keep_draws": keep_draws}, draw(keep=None).draws
    with monkeypatch.context() as patch:
        stopping(patch, after)
        try:
            with pytest.warns(RuntimeWarning, match="interrupted"):
                part = draw(**arguments)
            assert_kept(part, whole[:, : part.num_draws])
        except KeyboardInterrupt:  # before the first draw
            pass
    assert_kept(draw(**arguments), whole)


@beside_or_in_place
def test_other_programs_read_it(keep_draws, tmp_path):
    """Theta that was not kept is no array there."""
    xarray, zarr = pytest.importorskip("xarray"), pytest.importorskip("zarr")
    chain = draw(store=tmp_path / "run.zarr", keep_draws=keep_draws)
    group = zarr.open_group(tmp_path / "run.zarr", mode="r")
    assert ("draws" in group) == keep_draws
    np.testing.assert_array_equal(group["kept_p"], chain.kept["p"])
    with xarray.open_zarr(tmp_path / "run.zarr", chunks=None) as data:
        assert data["kept_p"].dims == ("chain", "draw", "kept_p_dim_0")
        np.testing.assert_array_equal(data["kept_positive"], chain.kept["positive"])
        np.testing.assert_array_equal(data["lp"], chain.stats["lp"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keep": None}, r"keep was \['p', 'positive'\], now \[\]"),
        ({"keep": {"p": predictions, "q": is_positive}}, r"keep\[1\] was 'positive', now 'q'"),
        ({"keep_draws": False}, "keep_draws was True, now False"),
    ],
    ids=["none", "another name", "in place"],
)
def test_a_folder_of_other_names_is_refused(change, words, tmp_path):
    draw(10, store=tmp_path / "run.zarr")
    with pytest.raises(ValueError, match=f"holds another run: {words}"):
        draw(10, store=tmp_path / "run.zarr", **change)


# --- what fails -------------------------------------------------------------------------------------------------------


def failing(after):
    """A function that raises once it has seen so many draws."""
    seen = []

    def fail(theta):
        seen.extend(theta)
        if len(seen) > after:
            raise ZeroDivisionError("too many")
        return predictions(theta)

    return fail


def test_a_function_that_raises_at_the_starts_is_named(tmp_path):
    """Before the folder is made."""
    with pytest.raises(ZeroDivisionError, match="too many") as caught:
        draw(keep={"p": failing(0)}, store=tmp_path / "run.zarr")
    assert caught.value.__notes__ == ["This was raised by the function keep['p'], of theta of shape (3, 3)."]
    assert not (tmp_path / "run.zarr").exists()


@beside_or_in_place
@pytest.mark.parametrize("folder", [None, "run.zarr"])
def test_a_function_that_raises_in_the_middle_loses_no_draw(keep_draws, folder, tmp_path, monkeypatch):
    """All before are there, and the folder goes on with a function that doesn't."""
    monkeypatch.setattr("bnn_utils.executors.SECONDS_OF_SEGMENT", 0.0)  # a transition each
    arguments = {"keep_draws": keep_draws, "store": folder and tmp_path / folder}
    whole = draw(keep=None).draws
    with pytest.raises(ZeroDivisionError) as caught:
        draw(keep={"p": failing(101), "positive": is_positive}, **arguments)
    chain = caught.value.chain
    assert 5 < chain.num_draws < 50
    assert_kept(chain, whole[:, : chain.num_draws])
    assert any("keep['p']" in note for note in caught.value.__notes__)
    if folder:
        assert min(map(open_for_reading(tmp_path / folder).count, range(2))) == chain.num_draws
        assert_kept(draw(**arguments), whole)


def test_another_shape_in_the_middle(monkeypatch):
    monkeypatch.setattr("bnn_utils.executors.SECONDS_OF_SEGMENT", 0.0)
    calls = iter(range(10**9))
    with pytest.raises(ValueError, match=r"these draws have .*kept_p \(torch.float64, \[\]\)"):
        draw(keep={"p": lambda theta: predictions(theta) if next(calls) < 20 else theta[:, 0]})


def test_values_that_will_not_fit_are_refused():
    """The draws would. At the first transition, in the warm-up."""
    with pytest.raises(ValueError, match=r"draws of 4 chains with 80,\d+ bytes each would take .*thin="):
        draw(10**8, keep={"p": lambda theta: theta[:, :1].expand(-1, 10_000)}, keep_draws=False)


def test_draws_that_will_not_fit_need_not_be_kept(monkeypatch):
    """Fails where theta counts all the same: this memory holds the statistics and no more."""
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 17_000}[name])
    with pytest.raises(ValueError, match="bytes each would take"):
        draw()
    chain = draw(keep={"positive": is_positive}, keep_draws=False)
    assert chain.kept["positive"].shape == (4, 50)


def test_functions_that_take_long_get_few_draws_at_a_time():
    """So that an interruption is noticed in between. Fails when segments are as long as transitions alone allow."""
    seen = []

    def slow(theta):
        seen.append(len(theta))
        time.sleep(0.005 * len(theta))
        return theta[:, 0]

    draw(100, keep={"slow": slow}, warmup=500, batch_size=4)
    assert max(seen) <= 200, "a second, for what is to take a fifth"


# --- chains -----------------------------------------------------------------------------------------------------------


@beside_or_in_place
def test_thinned_dropped_and_merged(keep_draws):
    chain = draw(kernel=KERNELS["ReplicaExchange"], keep_draws=keep_draws)
    other = draw(kernel=KERNELS["ReplicaExchange"], keep_draws=keep_draws, seed=2)
    draws, others = (draw(kernel=KERNELS["ReplicaExchange"], keep=None, seed=seed).draws for seed in (1, 2))
    assert_kept(chain.thin(3), draws[:, 2::3])
    assert_kept(chain.drop(10), draws[:, 10:])
    assert_kept(Chain.merge([chain, other]), torch.cat([draws, others]))


def test_what_only_some_of_merged_chains_have_is_left_out():
    chain, other = draw(), draw(seed=2, keep={"positive": is_positive})
    assert list(Chain.merge([chain, other]).kept) == ["positive"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"seed": 2, "keep": {"p": is_positive}},
            r"differ in the shapes of what was kept: number 0 has \{'p': \(25,\)\}",
        ),
        ({"seed": 2, "keep_draws": False}, "must all have theta, or none"),
    ],
    ids=["shape", "theta"],
)
def test_chains_that_can_not_be_merged(change, words):
    with pytest.raises(ValueError, match=words):
        Chain.merge([draw(10), draw(10, **change)])


def test_copies_are_found_without_draws():
    chain = replace(draw(keep_draws=False), seed=None)
    with pytest.raises(ValueError, match=r"chains 0 and 4 .* hold the same draws"):
        Chain.merge([chain, chain])


@beside_or_in_place
@each_kernel
def test_saved_and_pickled(kernel, keep_draws, tmp_path):
    chain = draw(kernel=kernel, keep_draws=keep_draws, thin=2).drop(3)
    draws = draw(kernel=kernel, keep=None, thin=2).draws[:, 3:]
    chain.save(tmp_path / "chain.nc")
    assert_kept(Chain.load(tmp_path / "chain.nc"), draws)
    assert_kept(pickle.loads(pickle.dumps(chain)), draws)


@beside_or_in_place
def test_for_arviz(keep_draws):
    chain = draw(keep_draws=keep_draws)
    data = chain.to_arviz()
    assert set(data.posterior.data_vars) == {"p", "positive"} | ({"theta"} if keep_draws else set())
    assert data.posterior["p"].dims == ("chain", "draw", "p_dim_0")
    np.testing.assert_array_equal(data.posterior["p"], chain.kept["p"])


def test_what_a_chain_without_draws_says():
    """Of itself, in warnings, which look at its statistics, and of parameters, which it has not."""
    chain = draw(keep_draws=False)
    assert "parameters       not kept" in repr(chain)
    assert "kept             p (chains, draws, 25), positive (chains, draws)" in repr(chain)
    assert any("R-hat of lp" in said for said in chain.warnings)
    for table in (chain.summary, chain.quantiles):
        with pytest.raises(ValueError, match=r"theta was not kept \(keep_draws=False\).*p, positive.*diagnose"):
            table()
    assert diagnose(chain.kept["p"]).r_hat.shape == (25,)
