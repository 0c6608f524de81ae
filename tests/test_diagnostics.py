"""Diagnostics against ArviZ, and on specimens that must fail them."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, f, norm, rankdata
from scipy.stats import t as student

import bnn_utils
from bnn_utils import mixing
from bnn_utils._arviz import arviz
from bnn_utils.diagnostics import Convergence, convergence, diagnose, ess, mcse, nested_rhat, rhat


def walk(chains, draws, *shape, seed=0):
    """Autocorrelated draws whose chains disagree somewhat, with a heavy tail: nothing about them is easy."""
    rng = np.random.default_rng(seed)
    draws = np.cumsum(rng.standard_normal((chains, draws, *shape)), axis=1) + 10 * rng.standard_normal(shape)
    return torch.from_numpy(draws + rng.standard_cauchy(draws.shape))


def iid(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def ar(coefficient):
    """Maker of draws in each of which ``coefficient`` of the one before survives."""

    def make(chains, draws, *shape):
        x = iid(chains, draws, *shape)
        for t in range(1, draws):
            x[:, t] = coefficient * x[:, t - 1] + (1 - coefficient**2) ** 0.5 * x[:, t]
        return x

    return make


def by_arviz(function, draws, method):
    """One column at a time, in double precision: from SciPy 1.18 on, ranks are in the precision of what is ranked."""
    columns = draws.double().numpy().reshape(*draws.shape[:2], -1)
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


@pytest.mark.parametrize("function", [rhat, ess, mcse, lambda draws: nested_rhat(draws, 3)])
def test_blocks(function, monkeypatch):
    draws = walk(3, 40, 5, 2)
    whole = function(draws)
    monkeypatch.setattr(mixing, "BLOCK_ELEMENTS", 3 * 40 * 4)
    torch.testing.assert_close(function(draws), whole, rtol=1e-14, atol=0)


def test_number_of_threads_is_the_readers():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        rhat(iid(2, 40))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


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


@pytest.mark.statistical
def test_rhat_of_independent_draws_is_near_one():
    """With 4 x 1,000 independent draws R-hat exceeds 1.01 about once in 1e5 quantities; these are 50."""
    values = rhat(iid(4, 1000, 50))
    assert values.max() < 1.015
    assert values.min() > 0.998, "no number is below the root of 499 / 500"


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


DRAWS = {
    "independent": iid,
    "slow": ar(0.95),
    "antithetic": ar(-0.6),
    "nearly alternating": ar(-0.99),
    "random walk": lambda *shape: iid(*shape).cumsum(1),
    "heavy tails": lambda *shape: iid(*shape) + 0.1 * walk(*shape),
    "chains apart": lambda *shape: iid(*shape) + torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)),
    "rejections": lambda *shape: ar(0.5)(*shape)[:, torch.arange(shape[1]) // 3 * 3],
    "integers": lambda *shape: (3 * ar(0.5)(*shape)).round(),
    "tenths": lambda *shape: ar(0.9)(*shape).round(decimals=1),
    "two values": lambda *shape: (ar(0.5)(*shape) > 0.3).double(),
    "saturated": lambda *shape: torch.sigmoid(20 * ar(0.9)(*shape)).float().double(),
    "zeros of both signs": lambda *shape: ar(0.5)(*shape).trunc(),
}
# Halves of 2 to 5 draws, where Geyer's sequence is cut by the end of the chain, odd numbers, one chain.
SHAPES = [(2, 4, 5), (3, 5, 5), (2, 7, 5), (1, 8, 5), (2, 9, 5), (4, 11, 5), (1, 100, 3), (4, 101), (3, 60, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", DRAWS.values(), ids=DRAWS)
def test_ess_is_arvizs(make, shape):
    """Fails without the split, with the lags cut at another place, with other ranks of ties."""
    draws = make(*shape)
    moved = draws.amax((0, 1)) > draws.amin((0, 1))  # of the rest ArviZ thinks otherwise
    for method in ("bulk", "tail", "mean"):
        expected = by_arviz("ess", draws, method).where(moved, torch.nan)
        torch.testing.assert_close(ess(draws, method), expected, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make", [DRAWS[name] for name in ("rejections", "slow", "random walk", "two values", "tenths")]
)
def test_long_chains_are_arvizs(make, dtype):
    """With many ties, as of rejected proposals; with sums that end after few lags, and with those that do not; with
    more than 2**14 draws in a tail, as of two values.
    """
    draws = make(8, 5000, 2).to(dtype)
    torch.testing.assert_close(rhat(draws), by_arviz("rhat", draws, "rank"), rtol=1e-12, atol=0)
    for method in ("bulk", "tail"):
        torch.testing.assert_close(ess(draws, method), by_arviz("ess", draws, method), rtol=1e-12, atol=0)


def test_flags_are_counted_exactly():
    """In single precision, up to the largest number that is trusted to it: all in few chains, or spread over many."""
    rng = np.random.default_rng(0)
    for shape, part in (((1, 4, 4000, 2), 0.5), ((1, 500, 100, 2), 0.16), ((1, 64, 1000, 2), 0.12)):
        flags = rng.random(shape) < part
        assert flags.sum() < mixing.EXACT
        flags = mixing._series(flags.astype(np.float32))
        single = mixing._lagged(flags, 100)
        assert abs(single - np.rint(mixing._lagged(flags.astype(np.complex128), 100))).max() < 0.05


HARD_TO_RANK = {
    "distinct": lambda x: x,
    "ties": lambda x: x.round(1),
    "two values": lambda x: np.sign(x),
    "zeros of both signs": np.trunc,
    "tiny": lambda x: x.round(1) * np.finfo(x.dtype).smallest_subnormal * 30,
    "huge": lambda x: x / abs(x).max() * np.finfo(x.dtype).max / 4,
    "one value": np.zeros_like,
    "in order": np.sort,
    "one apart": lambda x: np.where(x == x.max(), x, 3),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("chains", "draws"), [(1, 2), (1, 7), (3, 35), (5, 400)])
@pytest.mark.parametrize("make", HARD_TO_RANK.values(), ids=HARD_TO_RANK)
def test_native_ranks_are_numpys(make, chains, draws, dtype):
    code = pytest.importorskip("bnn_utils.mixing_native").code_of(dtype)
    halves = make(iid(3, 2 * chains * draws).numpy().astype(dtype)).reshape(3, chains, draws, 2)
    expected, found = mixing.rank(halves, None), mixing.rank(halves, code)
    rows = np.arange(3)[:, None] * halves[0].size
    np.testing.assert_array_equal(
        found.ordered.view(f"i{halves.itemsize}"), expected.ordered.view(f"i{halves.itemsize}")
    )
    np.testing.assert_array_equal(found.places + rows, expected.places)
    np.testing.assert_array_equal(found.scores, expected.scores)
    folded = code.fold(found.ordered, found.places, mixing._score_table(halves[0].size), chains)
    for values, of_numpy in zip(folded, mixing._sums(mixing._folded_scores(expected)), strict=True):
        np.testing.assert_allclose(values, of_numpy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("draws", [67, 115, 128, 471])
def test_native_sums_over_lags_are_numpys(draws, dtype):
    code = pytest.importorskip("bnn_utils.mixing_native").code_of(dtype)
    halves = walk(2, 3, draws, 2).numpy().astype(dtype)
    for lags in (4, code.LAGS, 64):
        for found, expected in zip(code.products(halves, lags), mixing._products(halves, lags, None), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * abs(expected).max())
        for flags in (halves > np.median(halves), halves > halves.max(), halves <= halves.max()):
            for found, expected in zip(code.pairs(flags, lags), mixing._pairs(flags, lags), strict=True):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 4, 5), (4, 101, 3), (3, 301, 3), (2, 1200, 2)], ids=str)
@pytest.mark.parametrize("make", DRAWS.values(), ids=DRAWS)
def test_native_diagnostics_are_numpys(make, shape, dtype, monkeypatch):
    """With the first few lags enough, and not enough."""
    pytest.importorskip("llvmlite")
    draws = make(*shape).to(dtype)
    expected = [*diagnose(draws), ess(draws, "mean")]
    monkeypatch.setattr(mixing, "NATIVE_VALUES", 0)
    monkeypatch.setattr(mixing, "NATIVE_DRAWS", 0)
    for found, of_numpy in zip([*diagnose(draws), ess(draws, "mean")], expected, strict=True):
        torch.testing.assert_close(found, of_numpy, rtol=1e-12, atol=0, equal_nan=True)


def test_native_code_is_for_much_to_do(monkeypatch):
    pytest.importorskip("llvmlite")
    much = np.empty((mixing.NATIVE_DRAWS, -(-mixing.NATIVE_VALUES // mixing.NATIVE_DRAWS)), np.float32)
    assert mixing._code(much) is not None
    assert mixing._code(much[:, :-1]) is None
    assert mixing._code(much.reshape(mixing.NATIVE_DRAWS // 2, -1)) is None
    monkeypatch.setitem(sys.modules, "bnn_utils.mixing_native", None)  # as where it can't be imported
    monkeypatch.delattr(bnn_utils, "mixing_native")
    assert mixing._code(much) is None


def by_batches(draws):
    """Of one quantity: half the 95 % interval by Student's t of the means of equal batches, over 1.96."""
    chains, length = draws.shape
    for in_chain in range(1, length + 1):
        if chains * in_chain >= 12:
            break
    size = length // in_chain
    means = [c[length - (k + 1) * size : length - k * size].mean().item() for c in draws for k in range(in_chain)]
    error = np.std(means, ddof=1) * (size / (chains * length)) ** 0.5
    return error * student.isf(0.025, len(means) - 1) / norm.isf(0.025)


@pytest.mark.parametrize("shape", [*SHAPES, (12, 9), (20, 31)], ids=str)
@pytest.mark.parametrize("make", DRAWS.values(), ids=DRAWS)
def test_mcse_is_the_larger_of_arvizs_and_batch_means(make, shape):
    draws = make(*shape)
    moved = draws.amax((0, 1)) > draws.amin((0, 1))
    batches = torch.tensor(
        [by_batches(x) for x in draws.flatten(2).movedim(-1, 0)] if draws.ndim > 2 else [by_batches(draws)]
    )
    expected = by_arviz("mcse", draws, "mean").maximum(batches.reshape(shape[2:])).where(moved, torch.nan)
    torch.testing.assert_close(mcse(draws), expected, rtol=1e-12, atol=0, equal_nan=True)


def switching(memory, chains, draws, runs):
    """1 or -1, which turns seldom: autocorrelations are exp(-lag / memory)."""
    rng = np.random.default_rng(1)
    turned = rng.random((chains, draws, runs)) < (1 - np.exp(-1 / memory)) / 2
    turned[:, 0] = rng.random((chains, runs)) < 0.5
    return torch.from_numpy(1.0 - 2 * (turned.cumsum(axis=1) % 2))


def coverage(draws):
    """How many of many runs have the true mean, 0, in their 95 % interval."""
    return ((draws.mean((0, 1)) / mcse(draws)).abs() < norm.isf(0.025)).double().mean().item()


def covers(fraction, runs):
    """False alarm at most 1e-4 where the true coverage is between 93 and 97 %."""
    low, high = binom.ppf(1e-4, runs, 0.93), binom.isf(1e-4, runs, 0.97)
    return low <= fraction * runs <= high


@pytest.mark.parametrize("shape", [(1, 4000, 2000), (4, 1000, 3000), (16, 400, 2000)], ids=str)
@pytest.mark.statistical
def test_errors_cover_where_something_slow_is_hidden(shape):
    """A fast process, and a weak one that remembers 50 draws: a fortieth of the variance and half of the error. By the
    effective sample size alone, 95 % intervals cover 87 to 89 %: its sum ends where autocorrelations are noise.
    """
    assert covers(coverage(ar(0.5)(*shape) + 0.2 * switching(50, *shape)), shape[-1])


@pytest.mark.parametrize("shape", [(4, 50, 10_000), (1, 400, 3_000), (16, 100, 3_000)], ids=str)
@pytest.mark.parametrize("coefficient", [0.0, 0.5, -0.3])
@pytest.mark.statistical
def test_errors_cover_where_the_effective_sample_size_is_right(shape, coefficient):
    """They are somewhat too large there, which must not show. Fails when Student's t is applied twice."""
    assert covers(coverage(ar(coefficient)(*shape)), shape[-1])


@pytest.mark.statistical
def test_errors_of_what_alternates_are_too_large_and_not_much():
    """Antithetic draws are worth no more than log10(draws) independent ones each, as by Stan and ArviZ."""
    draws = ar(-0.9)(4, 1000, 1000)
    assert 1 < (mcse(draws).mean() / draws.mean((0, 1)).std()).item() < 2.7


@pytest.mark.statistical
def test_ess_of_what_is_known():
    """An AR(1) process with coefficient a has S (1 - a) / (1 + a) effective draws.

    The estimate of 64 quantities varies by some 10 % each at a = 0.9, so that their mean is within 5 %.
    """
    for a in (0.0, 0.5, 0.9):
        assert ess(ar(a)(4, 2000, 64), "mean").mean() == pytest.approx(8000 * (1 - a) / (1 + a), rel=0.05)


def test_an_unknown_method():
    with pytest.raises(ValueError, match="method must be 'bulk', 'tail' or 'mean', got 'median'"):
        ess(iid(2, 10), "median")


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


def by_loop(draws, num_superchains):
    """Margossian et al. 2024, equations 15 to 19, of one quantity, one step at a time."""
    chains, length = draws.shape
    size = chains // num_superchains
    superchains = [draws[k * size : (k + 1) * size] for k in range(num_superchains)]
    overall = sum(float(s.mean()) for s in superchains) / num_superchains
    between = sum((float(s.mean()) - overall) ** 2 for s in superchains) / (num_superchains - 1)
    within = 0.0
    for s in superchains:
        b = w = 0.0
        if size > 1:
            b = sum((float(c.mean()) - float(s.mean())) ** 2 for c in s) / (size - 1)
        if length > 1:
            w = sum(sum((float(x) - float(c.mean())) ** 2 for x in c) / (length - 1) for c in s) / size
        within += (b + w) / num_superchains
    return (1 + between / within) ** 0.5


@pytest.mark.parametrize(
    ("chains", "length", "num_superchains"), [(12, 5, 4), (12, 5, 2), (12, 1, 2), (4, 7, 4), (2, 30, 2)]
)
def test_nested_rhat_by_its_formula(chains, length, num_superchains):
    draws = walk(chains, length, 3)
    expected = torch.tensor([by_loop(draws[..., k], num_superchains) for k in range(3)], dtype=torch.float64)
    torch.testing.assert_close(nested_rhat(draws, num_superchains), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(nested_rhat(draws.float(), num_superchains).float(), expected.float())


def test_nested_rhat_by_hand():
    """Each superchain: means 1 and 3 of its chains (variance 2), variance 2 in each chain; superchains 4 apart."""
    one = torch.tensor([[0.0, 2.0], [2.0, 4.0]])
    assert nested_rhat(torch.cat([one, one + 4]), 2).item() == pytest.approx((1 + 8 / 4) ** 0.5, rel=1e-14)


@pytest.mark.statistical
def test_nested_rhat_of_chains_that_forgot_their_start():
    """16 superchains of 32 chains, one draw each: 32 B / W has the F distribution; false alarm 1e-4 for 50 of them."""
    scaled = 32 * (nested_rhat(iid(512, 1, 50), 16) ** 2 - 1)
    assert scaled.max() < f.isf(0.5e-4 / 50, 15, 16 * 31)
    assert scaled.min() > f.ppf(0.5e-4 / 50, 15, 16 * 31)


@pytest.mark.statistical
def test_nested_rhat_of_chains_that_remember_their_start():
    start = iid(64, 1, 1, 1).expand(64, 8, 1, 1).reshape(512, 1, 1)
    draws = 0.7 * start + 0.7 * iid(512, 1, 1, seed=1)
    assert nested_rhat(draws, 64) > 1.2
    assert nested_rhat(draws[torch.randperm(512, generator=torch.Generator().manual_seed(0))], 64) < 1.15, (
        "where the chains of a superchain don't share their start, nothing shows"
    )


def test_nested_rhat_of_what_never_changed():
    draws = torch.stack([torch.full((6, 4), 0.1), torch.arange(3.0).repeat_interleave(2)[:, None].expand(6, 4)], -1)
    nan, huge = nested_rhat(draws, 3)
    assert nan.isnan()
    assert huge > 1e6


@pytest.mark.parametrize("num_superchains", [0, 1])
def test_nested_rhat_needs_two_superchains(num_superchains):
    with pytest.raises(
        ValueError, match=f"num_superchains must be a whole number of at least 2, got {num_superchains}"
    ):
        nested_rhat(iid(12, 1, 2), num_superchains)


@pytest.mark.parametrize("num_superchains", [5, 12])
def test_nested_rhat_needs_superchains(num_superchains):
    with pytest.raises(ValueError, match=rf"got \(12, 1, 2\) and {num_superchains} superchains"):
        nested_rhat(iid(12, 1, 2), num_superchains)


PLACES = torch.tensor([[0.5, -2.0], [0.0, 1.5], [3.0, 3.0], [-1.0, 0.25]])


def judged(
    r_hat=(1.0, 1.0, 1.0, 1.0), bulk=(900.0, 900, 900, 900), tail=(900.0, 900, 900, 900), se=(0.01, 0.0, 0.0, 0.0)
):
    return Convergence(PLACES, 4, *(torch.tensor(values, dtype=torch.float64) for values in (r_hat, bulk, tail, se)))


@pytest.mark.parametrize("draws", [100, 101])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convergence_is_rhat_and_ess_at_each_place(draws, dtype):
    predictions = torch.sigmoid(walk(3, draws, 4).to(dtype))
    found = convergence(predictions, PLACES)
    for values, expected in (
        (found.r_hat, rhat(predictions)),
        (found.ess_bulk, ess(predictions)),
        (found.ess_tail, ess(predictions, "tail")),
        (found.mcse, mcse(predictions)),
    ):
        torch.testing.assert_close(values, expected, rtol=0, atol=0)
    assert found.places.equal(PLACES)
    assert str(found) == repr(found) == found.verdict


@pytest.mark.statistical
def test_verdict_of_independent_predictions():
    found = convergence(iid(4, 1000, 4), PLACES)
    assert found.is_converged
    assert found.verdict.startswith("no sign of trouble: R-hat at most 1.00")


def test_verdict_without_trouble():
    found = judged((1.0, 1.0031, 1.0, 0.999), (8412.9, 9000.0, 9e4, 9e5), (9e4, 9e4, 4100.0, 9e5), (0, 0.005101, 0, 0))
    assert found.is_converged
    assert found.verdict == (
        "no sign of trouble: R-hat at most 1.004, at (0.0, 1.5); bulk ESS at least 8,412, at (0.5, -2.0); "
        "tail ESS at least 4,100, at (3.0, 3.0); standard error at most 0.0052, at (0.0, 1.5)"
    )


def test_verdict_with_trouble():
    found = judged((1.0455, 1.01, 1.02, 1.0), (900.0, 212.7, 399.0, 400.0))
    assert not found.is_converged
    assert found.verdict == (
        "not converged: R-hat is 1.046 at (0.5, -2.0), above 1.01 at 2 of 4 places; "
        "bulk ESS is 212 at (0.0, 1.5), below 400, 100 for each of 4 chains, at 2 of 4 places; "
        "tail ESS at least 900, at (0.5, -2.0); standard error at most 0.01, at (0.5, -2.0)"
    )


@pytest.mark.parametrize("values", [{"r_hat": (1.0, 1.0, 1.0101, 1.0)}, {"bulk": (400.0, 399.9, 400, 400)},
                                    {"tail": (400.0, 400, 400, 399.9)}])  # fmt: skip
def test_one_bad_place_is_enough(values):
    assert judged((1.01,) * 4, (400.0,) * 4, (400.0,) * 4).is_converged
    assert not judged(**values).is_converged
    assert judged(**values).verdict.startswith("not converged: ")


def test_the_least_ess_grows_with_the_number_of_chains():
    """900 effective draws are enough of 9 chains and too few of 10."""
    for num_chains, limit in ((1, 100), (9, 900), (10, 1000)):
        found = replace(judged(), num_chains=num_chains)
        assert found.ess_limit == limit
        assert found.is_converged == (limit <= 900)
    assert "tail ESS is 900 at (0.5, -2.0), below 1,000, 100 for each of 10 chains, at 4 of 4 places; " in found.verdict
    assert convergence(iid(10, 40, 4), PLACES).num_chains == 10


def test_verdict_names_what_never_changed():
    """As where a probability is 1 to the last digit in every draw; at the other places it is judged as usual."""
    predictions = iid(4, 1000, 4).float()
    predictions[..., 2] = 1
    found = convergence(predictions, PLACES)
    assert found.is_converged
    assert found.r_hat.isnan().tolist() == found.ess_tail.isnan().tolist() == [False, False, True, False]
    assert found.verdict.endswith(
        "; nothing is known at 1 of 4 places, (3.0, 3.0) the first, where the prediction never changed in any chain "
        "(saturated or stuck)"
    )
    predictions[1:, :, 2] = 0
    found = convergence(predictions, PLACES)  # now it differs between chains
    assert not found.is_converged
    assert "R-hat is over 100 at (3.0, 3.0), above 1.01 at 1 of 4 places" in found.verdict


def test_worst_places_are_looked_for_where_something_is_known():
    nan = torch.nan
    found = judged((nan, 1.0, 1.003, 1.0), (nan, 900.0, 800, 900), (nan, 900.0, 900, 700), (nan, 0.01, 0.02, 0.01))
    assert found.verdict.startswith(
        "no sign of trouble: R-hat at most 1.003, at (3.0, 3.0); bulk ESS at least 800, at (3.0, 3.0); "
        "tail ESS at least 700, at (-1.0, 0.25); standard error at most 0.02, at (3.0, 3.0); "
        "nothing is known at 1 of 4 places, (0.5, -2.0) the first"
    )


def test_stuck_everywhere_is_not_converged():
    found = convergence(torch.ones(4, 100, 4), PLACES)
    assert not found.is_converged
    assert found.verdict == "nothing to judge: the prediction never changed in any chain, at 4 of 4 places"


def test_a_stuck_chain_among_many():
    """It hardly changes R-hat where it is stuck in the midst of the others, and would pass."""
    predictions = iid(64, 400, 4)
    assert convergence(predictions, PLACES).is_converged
    predictions[5] = 0.67
    found = convergence(predictions, PLACES)
    assert found.r_hat.max() < 1.01
    assert found.stuck == [5]
    assert not found.is_converged
    words = (
        "not converged: the prediction of chain 5 never changed at any place (saturated or stuck); R-hat at most 1.00"
    )
    assert found.verdict.startswith(words)
    predictions[5, 0, 3] = 0
    assert convergence(predictions, PLACES).stuck == []


def test_places_of_many_features_go_by_number():
    values = torch.tensor([900.0, 900.0, 300.0])
    assert (
        "bulk ESS is 300 at place 2, below"
        in Convergence(torch.zeros(3, 5), 4, values / 900, values, values, values).verdict
    )


@pytest.mark.parametrize(
    ("predictions", "places"),
    [((4, 100, 3), (4, 2)), ((4, 100), (4, 2)), ((4, 100, 4, 3), (4, 2)), ((4, 100, 4), (4,))],
)
def test_convergence_needs_places_to_its_predictions(predictions, places):
    with pytest.raises(ValueError, match=r"pass posterior\.predict") as raised:
        convergence(torch.zeros(predictions), torch.zeros(places))
    assert f"got {predictions} and {places}" in str(raised.value)


def test_convergence_of_broken_predictions():
    with pytest.raises(ValueError, match="1 of the values are NaN or infinite"):
        convergence(iid(2, 10, 4).index_put((torch.tensor(0),) * 3, torch.tensor(torch.nan).double()), PLACES)
