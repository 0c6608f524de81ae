"""Chains: tables against ArviZ, files that come back as they were, files that are something else."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from bnn_utils import HMC, MAMS, MCLMC, NUTS, Chain, ChEES, ReplicaExchange, boxes, sample
from bnn_utils._arviz import arviz
from bnn_utils.diagnostics import convergence, mcse
from bnn_utils.plots import energies, ranks, traces
from bnn_utils.random import spawn
from bnn_utils.symmetry import fold


def draw(posterior, num_chains=3, seed=0, **kwargs):
    return sample(posterior, HMC(0.1, 5), 40, num_chains, warmup=5, seed=seed, progress=False, **kwargs)


@pytest.fixture
def chain(posterior):
    return draw(posterior, seed=3)


def test_shape_and_statistics(chain):
    assert (chain.num_chains, chain.num_draws, chain.dim) == chain.draws.shape == (3, 40, 20)
    names = "lp acceptance_rate is_accept n_steps step_size energy energy_error diverging"
    assert sorted(chain.stats) == sorted(names.split())
    assert {value.shape for value in chain.stats.values()} == {(3, 40)}
    assert (chain.names[0], len(chain.names)) == ("0.weight[0,0]", 20)
    assert chain.wall_time >= chain.sampling_time > 0


def test_lp_is_the_density_of_the_draws(chain, posterior):
    torch.testing.assert_close(chain.stats["lp"].flatten(), posterior.log_prob(chain.draws.flatten(0, 1)))


def test_best_draw(chain, posterior):
    best = posterior.log_prob(chain.draws[chain.best_draw()])
    torch.testing.assert_close(best, posterior.log_prob(chain.draws.flatten(0, 1)).max())
    chain.stats["lp"][2, 7] = 0.0
    assert chain.best_draw() == (2, 7)


def test_summary_is_arvizs(chain):
    mine, theirs = chain.summary(), arviz().summary(chain.to_arviz(), round_to="none")
    assert list(mine) == ["mean", "sd", "mcse", "ess_bulk", "ess_tail", "r_hat", "ess_per_sec"]
    assert list(mine.index) == chain.names
    same = {"mean": "mean", "sd": "sd", "ess_bulk": "ess_bulk", "ess_tail": "ess_tail"}
    for name, their_name in {**same, "r_hat": "r_hat"}.items():
        np.testing.assert_allclose(mine[name], theirs[their_name], rtol=1e-10, err_msg=name)
    np.testing.assert_array_equal(mine["mcse"], mcse(chain.draws))  # which is no smaller than ArviZ's
    np.testing.assert_allclose(mine["ess_per_sec"] * chain.sampling_time, theirs["ess_bulk"], rtol=1e-10)


def test_summary_of_one_chain_has_an_r_hat(posterior):
    assert np.isfinite(draw(posterior, num_chains=1).summary()).all(axis=None)


def test_quantiles(chain):
    table = chain.quantiles()
    assert list(table) == ["2.5%", "25%", "50%", "75%", "97.5%"]
    levels = torch.tensor([0.025, 0.25, 0.5, 0.75, 0.975], dtype=torch.float64)
    np.testing.assert_allclose(table.T, chain.draws.flatten(0, 1).quantile(levels, dim=0), rtol=1e-12)


def test_arviz_structure(chain):
    data = chain.to_arviz()
    assert data.posterior["theta"].dims == ("chain", "draw", "parameter")
    assert list(data.posterior.coords["parameter"].to_numpy()) == chain.names
    assert set(data.sample_stats) == set(chain.stats)
    one = data.posterior["theta"].sel(chain=1, draw=7, parameter="2.bias[1]")
    assert one.item() == chain.draws[1, 7, chain.names.index("2.bias[1]")]


# --- its kernel, and some of its draws --------------------------------------------------------------------------------


KERNELS = [HMC(0.1, 5), HMC(0.1, 1), ChEES(), MAMS(), MCLMC(), NUTS(), ReplicaExchange(HMC(0.1, 2), 3)]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_the_kernel_draws_on_as_it_was_left(posterior, kernel):
    """Fails when what a warm-up learned is lost, or can't be used a second time."""
    chain = sample(posterior, kernel, 10, 4, warmup=40, seed=1, progress=False)
    assert repr(chain.kernel) != repr(kernel)
    more = sample(posterior, chain.kernel, 10, 4, init=chain.draws[:, -1], seed=2, progress=False)
    assert repr(more.kernel) == repr(chain.kernel)
    jitter = getattr(kernel, "jitter", 0) or 0.5
    ratio = more.stats["step_size"].mean() / chain.stats["step_size"].mean()
    assert 1 / (1 + jitter) ** 2 < ratio < (1 + jitter) ** 2


def test_the_kernel_is_that_of_the_first_batch(posterior):
    chain = draw(posterior, batch_size=2, seed=3)
    assert repr(chain.kernel) == repr(draw(posterior, num_chains=2, seed=spawn(3, 2, "cpu")[0]).kernel)


def exchange(posterior):
    return sample(posterior, ReplicaExchange(HMC(0.1, 2), 3), 40, 2, warmup=5, seed=3, progress=False, compile=False)


def equal(one, two):
    """Everything about two chains but their times."""
    facts = ("names", "gradient", "device", "seed", "warmup", "wall_time", "compile_time", "thinning", "dropped")
    assert [getattr(one, name) for name in facts] == [getattr(two, name) for name in facts]
    assert one.kernel is two.kernel
    assert torch.equal(one.draws, two.draws)
    assert list(one.stats) == list(two.stats)
    assert all(torch.equal(one.stats[name], two.stats[name]) for name in one.stats)
    assert (one.tempering is None) == (two.tempering is None)
    if one.tempering is not None:
        assert one.tempering.thinning == two.tempering.thinning
        pairs = zip(one.tempering.items(), two.tempering.items(), strict=True)
        assert all(torch.equal(mine, theirs) for (_, _, mine), (_, _, theirs) in pairs)
    return True


@pytest.mark.parametrize("draw", [draw, exchange])
def test_thin(posterior, draw, tmp_path):
    """The last of each three; what is left over at the end is left out."""
    chain = draw(posterior, seed=3) if draw is not exchange else draw(posterior)
    thinned = chain.thin(3)
    kept = torch.arange(2, 40, 3)
    assert torch.equal(thinned.draws, chain.draws[:, kept])
    assert all(torch.equal(thinned.stats[name], values[:, kept]) for name, values in chain.stats.items())
    assert (thinned.thinning, thinned.warmup, thinned.dropped, thinned.seed) == (3, 5, 0, 3)
    assert thinned.sampling_time == chain.sampling_time
    assert thinned.draws.is_contiguous(), "a copy of its own"
    assert "13, one of 3 transitions each, after 5 of warmup" in repr(thinned)
    thinned.save(tmp_path / "thinned.nc")
    loaded = Chain.load(tmp_path / "thinned.nc")
    assert equal(dataclasses.replace(loaded, kernel=chain.kernel), thinned)
    assert equal(chain.thin(2).thin(3), chain.thin(6))
    assert equal(chain.thin(1), chain)
    assert chain.thin(40).num_draws == 1
    assert equal(Chain.merge([thinned]), thinned)
    if chain.tempering is not None:
        assert thinned.tempering.replica.shape == (2, 13, 3)
        assert torch.equal(thinned.tempering.replica, chain.tempering.replica[:, kept])
        assert torch.equal(thinned.tempering.step_sizes, chain.tempering.step_sizes)
        assert thinned.tempering.thinning == 3


@pytest.mark.parametrize("draw", [draw, exchange])
def test_drop(posterior, draw):
    chain = draw(posterior, seed=3) if draw is not exchange else draw(posterior)
    rest = chain.drop(10)
    assert torch.equal(rest.draws, chain.draws[:, 10:])
    assert all(torch.equal(rest.stats[name], values[:, 10:]) for name, values in chain.stats.items())
    assert (rest.thinning, rest.warmup, rest.dropped, rest.seed) == (1, 5, 10, 3)
    assert rest.sampling_time == 0.75 * chain.sampling_time
    assert rest.wall_time == chain.wall_time
    assert "30 after 5 of warmup and 10 that were dropped" in repr(rest)
    assert equal(chain.drop(4).drop(6), rest)
    assert equal(chain.drop(0), chain)
    assert equal(chain.drop(6).thin(3), chain.thin(3).drop(2))
    if chain.tempering is not None:
        assert torch.equal(rest.tempering.replica, chain.tempering.replica[:, 10:])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda chain: chain.thin(41), ValueError, r"thin\(41\) leaves none of 40 draws: k may be at most 40"),
        (lambda chain: chain.thin(0), ValueError, "k must be a whole number of at least 1, got 0"),
        (lambda chain: chain.thin(2.5), ValueError, "k must be a whole number of at least 1, got 2.5"),
        (lambda chain: chain.thin("2"), TypeError, "k must be a whole number of at least 1, got '2'"),
        (lambda chain: chain.drop(40), ValueError, r"drop\(40\) leaves none of 40 draws: n may be at most 39"),
        (lambda chain: chain.drop(-1), ValueError, "n must be a whole number of at least 0, got -1"),
        (lambda chain: chain.drop(None), TypeError, "n must be a whole number of at least 0, got None"),
    ],
)
def test_what_can_not_be_left_out(chain, call, error, message):
    with pytest.raises(error, match=message):
        call(chain)


def test_a_thinned_run_of_replica_exchange_knows_its_transitions(posterior):
    """Fails when round trips that are possible are counted by draws."""
    run = exchange(posterior).tempering
    thinned = exchange(posterior).thin(2).tempering
    ratio = (1 + run.barrier) / (1 + thinned.barrier)  # which differ by chance
    assert thinned.possible_round_trips == pytest.approx(run.possible_round_trips * ratio)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "seed", [3, 0, -1, 2**63 - 1, 2**64 - 1, None], ids=["3", "0", "-1", "2^63-1", "2^64-1", "generator"]
)
def test_file_round_trip(make_posterior, tmp_path, dtype, seed):
    chain = draw(make_posterior(data=boxes().to(dtype)), seed=torch.Generator() if seed is None else seed)
    chain.save(tmp_path / "run.nc")
    loaded = Chain.load(tmp_path / "run.nc")
    for field in dataclasses.fields(Chain):
        mine, theirs = getattr(chain, field.name), getattr(loaded, field.name)
        if field.name not in ("draws", "stats", "run"):
            mine = repr(mine) if field.name == "kernel" else mine
            assert (theirs, type(theirs)) == (mine, type(mine)), field.name
    assert loaded.seed == seed
    assert set(loaded.stats) == set(chain.stats)
    pairs = [(chain.draws, loaded.draws)] + [(chain.stats[name], loaded.stats[name]) for name in chain.stats]
    for mine, theirs in pairs:
        torch.testing.assert_close(theirs, mine, rtol=0, atol=0)  # the dtype too
    assert loaded.draws.dtype == dtype
    assert loaded.stats["is_accept"].dtype == torch.bool


def test_save_replaces_a_file(chain, posterior, tmp_path):
    draw(posterior, num_chains=1).save(tmp_path / "run.nc")
    chain.save(str(tmp_path / "run.nc"))
    assert Chain.load(str(tmp_path / "run.nc")).num_chains == 3


def test_save_over_the_file_a_chain_came_from(chain, tmp_path):
    """A chain that was loaded needs its file no more."""
    path = tmp_path / "run.nc"
    chain.save(path)
    loaded = Chain.load(path)
    loaded.save(path)
    assert torch.equal(Chain.load(path).draws, chain.draws)
    path.unlink()
    assert torch.equal(loaded.draws, chain.draws)


def write_other_netcdf(path):
    arviz().from_dict(posterior={"mu": np.zeros((1, 5))}).to_netcdf(str(path), engine="h5netcdf")


def write_without_statistics(path):
    data = arviz().from_dict(posterior={"theta": np.zeros((1, 5, 2))}, dims={"theta": ["parameter"]})
    data.to_netcdf(str(path), engine="h5netcdf")


def write_prior_only(path):
    arviz().from_dict(prior={"theta": np.zeros((1, 5))}).to_netcdf(str(path), engine="h5netcdf")


@pytest.mark.parametrize(
    "write",
    [
        write_other_netcdf,
        write_without_statistics,
        write_prior_only,
        lambda path: path.write_bytes(pickle.dumps({"draws": [1, 2, 3]})),
        lambda path: path.write_text("parameter,mean\n"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)),
    ],
    ids=["another model", "no statistics", "no posterior", "pickle", "text", "empty", "torn"],
)
def test_files_that_are_something_else(tmp_path, write):
    path = tmp_path / "run.nc"
    write(path)
    with pytest.raises(ValueError, match=r"run\.nc' does not hold a chain written by Chain\.save"):
        Chain.load(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*run\.nc'"):
        Chain.load(tmp_path / "run.nc")
    with pytest.raises(ValueError, match=r"holds no zarr.json: it is no store"):
        Chain.load(tmp_path)


# --- ArviZ's log likelihood, and draws from elsewhere -----------------------------------------------------------------


def test_loo_is_there(chain, posterior):
    """PSIS-LOO of draws that are too few for it; what counts is that the numbers arrive."""
    pointwise = posterior.log_likelihoods(chain.draws)
    data = chain.to_arviz(pointwise)
    np.testing.assert_array_equal(data["log_likelihood"]["y"], pointwise)
    with pytest.warns(UserWarning, match="Pareto distribution"):
        found = arviz().loo(data, pointwise=True)
    assert found.n_data_points == 80
    assert found.n_samples == 120


def test_log_likelihoods_of_other_draws(chain, posterior):
    with pytest.raises(ValueError, match=r"shape \(3, 39, 80\), expected \(3, 40, 'N'\)"):
        chain.to_arviz(posterior.log_likelihoods(chain.draws[:, 1:]))


@pytest.mark.parametrize("convert", [lambda draws: draws, lambda draws: draws.numpy(), lambda draws: draws.tolist()])
def test_draws_from_elsewhere(chain, posterior, tmp_path, convert):
    """They come home: everything that works on a chain of ours works on them."""
    home = Chain.from_draws(convert(chain.draws), posterior, sampler="a friend's NUTS", seconds=2.0)
    assert torch.equal(home.draws, chain.draws)
    torch.testing.assert_close(home.stats["lp"], chain.stats["lp"], rtol=1e-12, atol=0)
    assert home.best_draw() == chain.best_draw()
    assert home.summary()["mean"].equals(chain.summary()["mean"])
    assert torch.equal(fold(home.draws, posterior.flat), fold(chain.draws, posterior.flat))
    predictions = posterior.predict(home.draws, posterior.data.x)
    assert convergence(predictions, posterior.data.x).r_hat.shape == (80,)
    assert traces(home, [0, 3]).png() == traces(chain, [0, 3]).png()
    assert ranks(home.draws[..., :2], ["a", "b"]).png()
    assert "a friend's NUTS" in repr(home)
    assert "2.00 s" in repr(home)
    home.save(tmp_path / "home.nc")
    assert torch.equal(Chain.load(tmp_path / "home.nc").draws, chain.draws)
    with pytest.raises(ValueError, match="no statistic 'energy', only lp"):
        energies(home, 0)


def test_draws_come_home_by_arviz(chain, posterior):
    """Their statistics come along; lp is computed anew, as others leave constants out."""
    data = chain.to_arviz()
    data["sample_stats"]["lp"] = data["sample_stats"]["lp"] + 7
    home = Chain.from_arviz(data, posterior)
    assert torch.equal(home.draws, chain.draws)
    torch.testing.assert_close(home.stats["lp"], chain.stats["lp"], rtol=1e-12, atol=0)
    assert torch.equal(home.stats["energy"], chain.stats["energy"])
    assert set(home.stats) == set(chain.stats)
    facts = {line[2:].split("  ")[0]: line.split("  ")[-1].strip() for line in repr(home).splitlines()[1:]}
    assert facts["wall duration"] == "not known"
    assert facts["seed"].startswith("not known")
    assert facts["acceptance rate"].endswith(f"{int(chain.stats['diverging'].sum())} divergences")
    assert Chain.from_arviz(arviz().from_dict(posterior={"z": chain.draws.numpy()}), posterior, "z").num_draws == 40


@pytest.mark.parametrize(
    ("draws", "stats", "message"),
    [
        (np.zeros((5, 20)), {}, r"\(5, 20\), but this posterior's are \(chains, draws, 20\); .* draws\[None\]"),
        (np.zeros((2, 5, 19)), {}, r"\(2, 5, 19\), but this posterior's are"),
        (np.zeros((2, 0, 20)), {}, r"\(2, 0, 20\)"),
        (np.r_[np.zeros(20), np.nan, np.zeros(19)].reshape(1, 2, 20), {}, r"1 NaN or infinite values, .* \[0, 1, 0\]"),
        (np.zeros((2, 5, 20)), {"energy": np.zeros(5)}, r"statistic energy has shape \(5,\), expected \(2, 5\)"),
    ],
)  # fmt: skip
def test_draws_from_elsewhere_that_do_not_fit(posterior, draws, stats, message):
    with pytest.raises(ValueError, match=message):
        Chain.from_draws(draws, posterior, stats=stats)


def test_arviz_without_the_variable(posterior):
    with pytest.raises(ValueError, match="no variable 'theta' in the posterior group; it holds mu: name the one"):
        Chain.from_arviz(arviz().from_dict(posterior={"mu": np.zeros((1, 5))}), posterior)


# --- how a chain shows itself -----------------------------------------------------------------------------------------


def test_repr(chain):
    lines = repr(chain).splitlines()
    assert lines[0] == "Chain"
    shown = {line[2:].split("  ")[0]: line.split("  ")[-1] for line in lines[1:]}
    assert shown["sampler"] == repr(chain.kernel)
    assert shown["sampler"].startswith("HMC(step_size=0.0"), "the warm-up has adapted it, from 0.1"
    assert shown["sampler"].endswith(", num_steps=5, jitter=0.5)")
    assert shown["gradient"].strip() == "closed-form, compiled, float64 on cpu"
    assert shown["chains"].strip() == "3"
    assert shown["draws per chain"].strip() == "40 after 5 of warmup"
    rate = chain.stats["acceptance_rate"].mean()
    assert (
        shown["acceptance rate"].strip() == f"{rate:.3f} on average, {int(chain.stats['diverging'].sum())} divergences"
    )
    assert shown["seed"].strip() == "3"


def test_html_repr_shows_the_same_and_escapes_it(chain):
    other = dataclasses.replace(chain, kernel="<script>&", seed=None)
    page = other._repr_html_()
    assert "&lt;script&gt;&amp;" in page
    assert "<script" not in page
    assert "not known: taken from a generator" in page
    assert page.count("<tr>") == repr(other).partition("\n  warnings\n")[0].count("\n") + bool(other.warnings)


# --- runs as one chain ------------------------------------------------------------------------------------------------


def test_merge(chain, posterior, tmp_path):
    """Draws and statistics of all runs, times added up; as good as a run of all chains."""
    other = dataclasses.replace(draw(posterior, num_chains=2, seed=4), kernel="another")
    del other.stats["energy"]
    both = Chain.merge([chain, other])
    assert torch.equal(both.draws, torch.cat([chain.draws, other.draws]))
    assert set(both.stats) == set(chain.stats) - {"energy"}
    assert torch.equal(both.stats["lp"], torch.cat([chain.stats["lp"], other.stats["lp"]]))
    assert (both.num_chains, both.seed, both.warmup, both.gradient) == (5, None, 5, "closed-form, compiled")
    assert both.kernel == f"{chain.kernel!r}; another"
    assert both.sampling_time == chain.sampling_time + other.sampling_time
    assert "several" in repr(both)
    both.save(tmp_path / "both.nc")
    assert torch.equal(Chain.load(tmp_path / "both.nc").draws, both.draws)
    alone = Chain.merge([chain])
    assert alone.seed == chain.seed
    assert alone.kernel is chain.kernel
    assert repr(alone) == repr(chain)


def test_merge_of_tempered_runs(posterior):
    def run(num_temperatures, seed):
        kernel = ReplicaExchange(HMC(0.1, 2), num_temperatures)
        return sample(posterior, kernel, 20, 2, seed=seed, progress=False, compile=False)

    one, two = run(4, seed=1), run(4, seed=2)
    both = Chain.merge([one, two])
    for (name, dims, mine), (_, _, first), (_, _, second) in zip(
        *(chain.tempering.items() for chain in (both, one, two)), strict=True
    ):
        assert torch.equal(mine, torch.cat([first, second])), name
        assert dims[0] == "chain"
    estimates = [chain.tempering.log_evidence().stepping_stones.value for chain in (one, two, both)]
    assert min(estimates) <= estimates[2] <= max(estimates)
    for other, number in ((run(5, seed=3), "number 0 has 4, number 1 has 5"), (None, "number 1 has None")):
        other = other or dataclasses.replace(two, tempering=None)
        with pytest.raises(ValueError, match=f"differ in the number of temperatures: .*{number}"):
            Chain.merge([one, other])


def test_merge_of_what_does_not_belong_together(chain, posterior):
    other = draw(posterior, seed=4)
    with pytest.raises(ValueError, match="nothing to merge"):
        Chain.merge([])
    with pytest.raises(ValueError, match=r"different networks: where one has the parameter 4.bias.0., another has b"):
        Chain.merge([chain, dataclasses.replace(other, names=[*chain.names[:-1], "b"])])
    for changes, message in (
        ({"draws": other.draws.float()}, "differ in dtype: number 0 has torch.float64, number 1 has torch.float32"),
        ({"draws": other.draws[:, 1:]}, "differ in the number of draws: number 0 has 40, number 1 has 39"),
        ({"warmup": 7}, "differ in warmup: number 0 has 5, number 1 has 7; .* dataclasses.replace"),
        ({"thinning": 2}, "differ in thinning: number 0 has 1, number 1 has 2"),
        ({"dropped": 5}, "differ in the transitions that were dropped: number 0 has 0, number 1 has 5"),
        ({"draws": other.draws.to("meta")}, "differ in the device of their draws: number 0 has cpu, number 1 has meta"),
    ):
        with pytest.raises(ValueError, match=message):
            Chain.merge([chain, dataclasses.replace(other, **changes)])


def test_runs_that_would_count_twice(chain, posterior):
    """Fails when the same run, or its random numbers, pass for two."""
    with pytest.raises(ValueError, match="two of the runs have the seed 3: they drew the same random numbers"):
        Chain.merge([chain, draw(posterior, seed=4), draw(posterior, seed=3, init=torch.zeros(20))])
    unknown = dataclasses.replace(chain, seed=None)
    with pytest.raises(ValueError, match=r"chains 0 and 3 \(and 2 more pairs\) hold the same draws, wholly or in part"):
        Chain.merge([unknown, unknown])
    twice = torch.cat([chain.draws, chain.draws[1:2]])
    with pytest.raises(ValueError, match=r"chains 1 and 3 hold the same draws, .* pass each run once"):
        Chain.from_draws(twice, posterior)
    assert Chain.from_draws(torch.zeros(4, 10, 20), posterior).num_chains == 4, "stuck where they started"
