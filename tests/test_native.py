"""Native code: the numbers of the closed form, whatever the network; how it is kept; and what happens without it."""

import itertools
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import nn

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    Bernoulli,
    Categorical,
    ChEES,
    Data,
    ElementPrior,
    FanInPrior,
    Gaussian,
    LogScale,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    Standardise,
    Symmetric,
    boxes,
    sample,
)
from bnn_utils import density as densities
from bnn_utils.gradients import LogDensity, caller, fused, machine, native
from bnn_utils.gradients.blocks import assemble
from bnn_utils.gradients.native import Code, code_of, drawn, program_of
from bnn_utils.kernels.base import Info
from bnn_utils.kernels.hmc import Position
from targets import generator, normal

ACTIVATIONS = [
    nn.Tanh(),
    nn.Sigmoid(),
    nn.ReLU(),
    nn.SiLU(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Softplus(),
    nn.Softplus(2.0, 1.5),
    nn.Identity(),
]
# likelihood, outputs of the last nn.Linear, what follows it, targets for labels 0, 1 and 2
LIKELIHOODS = {
    "Bernoulli": (Bernoulli(), 1, [], lambda y: y.clamp(max=1)),
    "Categorical": (Categorical(), 3, [], lambda y: y),
    "Gaussian": (Gaussian(0.5), 1, [], lambda y: y / 2),
    "Gaussian, two targets": (Gaussian(0.5), 2, [], lambda y: torch.stack([y / 2, 1 - y], dim=-1)),
    "Gaussian, a parameter as a mean": (Gaussian(0.5), 1, [LogScale(1)], lambda y: torch.stack([y / 2, 1 - y], dim=-1)),
    "Gaussian, noise inferred": (Gaussian(), 2, [LogScale(2)], lambda y: torch.stack([y / 2, 1 - y], dim=-1)),
    "Gaussian, noise computed": (Gaussian(), 2, [], lambda y: y / 2),
    "Gaussian, noise by softplus": (Gaussian(link="softplus"), 2, [], lambda y: y / 2),
    "Gaussian, in units": (
        Gaussian(link="softplus", units=Standardise(torch.tensor([[3.0, 9.0], [4.0, -1.0]]))),
        4,
        [],
        lambda y: torch.stack([3 + y, 2 - y], dim=-1),
    ),
}
# Of blocks and parts of a large network's points.
LARGE, SMALL = {"BLOCK_ELEMENTS": 2**16}, {"BLOCK_ELEMENTS": 64, "POINTS_OF_PART": 10}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def assert_same(one, two):
    """To the bit, with all that is in them."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert_same(tuple(one.items()), tuple(two.items()))
    elif isinstance(one, tuple):
        for pair in zip(one, two, strict=True):
            assert_same(*pair)
    else:
        assert one == two


def error(one, two):
    """Largest, relative to the largest number in each lane: sums of many terms are rounded."""
    scale = two.abs().amax(-1, keepdim=True).clamp(min=1) if two.ndim > 1 else two.abs().clamp(min=1)
    return ((one - two).abs() / scale).max()


def assert_close(one, two, tolerance):
    assert error(one, two) < tolerance


@given(
    widths=st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=0, max_size=3),
    activations=st.lists(st.sampled_from(ACTIVATIONS), min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    likelihood=st.sampled_from(list(LIKELIHOODS)),
    sizes=st.tuples(st.sampled_from([1, 3, 16, 17, 40]), st.sampled_from([1, 7, 16, 33])),
    num_features=st.sampled_from([2, 9]),
    num_datasets=st.sampled_from([None, 1, "lanes"]),
    is_weighted=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1000),
)
@example(
    widths=[3],
    activations=ACTIVATIONS[:4],
    biases=4 * [True],
    likelihood="Gaussian, a parameter as a mean",
    sizes=(17, 7),
    num_features=2,
    num_datasets=None,
    is_weighted=False,
    dtype=torch.float64,
    seed=0,
)
# Without shrinking, in which each try would be compiled.
@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
def test_it_is_the_closed_form(
    widths, activations, biases, likelihood, sizes, num_features, num_datasets, is_weighted, dtype, seed
):
    """Of random networks, the value and the gradient, for few lanes and many, few points and many.

    In single precision, too, what is expected is computed in double precision. Where terms cancel each other, torch
    errs by more than the tolerance as well: then by four times as much at most.
    """
    likelihood, num_outputs, last, targets = LIKELIHOODS[likelihood]
    layers, (num_lanes, num_points), dice = [], sizes, generator(seed)
    for (a, b), activation, bias in zip(
        itertools.pairwise([num_features, *widths, num_outputs]), activations, biases, strict=False
    ):
        layers += [nn.Linear(a, b, bias), activation]
    layers.pop()  # some activations end where a likelihood can't follow
    shape = (num_points,) if num_datasets is None else (num_lanes if num_datasets == "lanes" else 1, num_points)
    y = targets(torch.randint(3, shape, generator=dice).to(dtype))
    weights = torch.randint(1, 3, (num_points,), generator=dice).to(dtype) / 2 if is_weighted else None
    data = Data(
        torch.randn(num_points, num_features, generator=dice, dtype=dtype), y if num_datasets is None else y[0], weights
    )
    net = nn.Sequential(*layers, *last)
    posterior = Posterior(net, data, NormalPrior(1.0), likelihood, gradient="closed-form")
    theta = torch.randn(num_lanes, posterior.dim, generator=dice, dtype=dtype)
    precise = Posterior(net, data.to(torch.float64), NormalPrior(1.0), likelihood, gradient="closed-form")
    if num_datasets is not None:
        posterior, precise = posterior.with_targets(y), precise.with_targets(y.double())
    expected = precise.density(num_lanes).likelihood.log_prob_and_grad(theta.double())
    of_torch = posterior.density(num_lanes).likelihood.log_prob_and_grad(theta)
    found = [posterior.density(num_lanes, compile=True).likelihood.log_prob_and_grad(theta)]
    for sizes in (LARGE, SMALL):  # as a large network, at once, and in parts and blocks of points
        with mock.patch.multiple(fused, **sizes):
            found.append(fused.Fused(posterior, num_lanes).log_prob_and_grad(theta))
    limits = [max(TOLERANCE[dtype], 4 * error(one, two)) for one, two in zip(of_torch, expected, strict=True)]
    for made in found:
        for one, two, limit in zip(made, expected, limits, strict=True):
            assert_close(one, two, limit)


@pytest.mark.parametrize("num_lanes", [3, 16], ids=["over points", "over lanes"])
def test_points_without_weight_count_for_nothing(posterior, num_lanes):
    """Fails where a vector is filled up with points that count, or an impossible point's weight of 0 makes it NaN."""
    theta = normal(num_lanes, 20)
    for num_points in (1, 5, 17):
        data = Data(posterior.data.x[:num_points], posterior.data.y[:num_points])
        one = Posterior(posterior.flat.module, data, NormalPrior(1.0), Bernoulli())
        value, grad = one.density(num_lanes, compile=True).likelihood.log_prob_and_grad(theta)
        torch.testing.assert_close(value, one.log_likelihood(theta))
        torch.testing.assert_close(grad, one.density(num_lanes).likelihood.grad(theta))


def test_another_prior(make_posterior, theta):
    """One without a closed form: its gradient comes by autograd, and trajectories are torch's."""
    posterior = make_posterior(prior=ElementPrior(torch.distributions.Laplace(0.0, 1.0)))
    mine, other = posterior.density(5, compile=True), posterior.density(5)
    for one, two in zip(mine.joint.log_prob_and_grad(theta), other.joint.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(one, two)
    assert mine.joint.native is None
    chains = [sample(posterior, HMC(0.05, 4), 10, 5, seed=1, progress=False, compile=flag) for flag in (True, False)]
    torch.testing.assert_close(chains[0].draws, chains[1].draws, rtol=0, atol=1e-9)


# --- transitions ------------------------------------------------------------------------------------------------------

KERNELS = {
    "HMC": (HMC(0.05, 4), 0),
    "one step": (HMC(0.05, 1), 0),
    "jitter": (HMC(0.05, 4, jitter=0.3), 0),
    "diagonal mass": (HMC(0.05, 4, inv_mass=torch.linspace(0.5, 1.5, 20)), 0),
    "dense mass": (HMC(0.05, 4, inv_mass=torch.eye(20) + 0.1), 0),
    "warm-up": (HMC(0.01, 2), 6),
    "ChEES": (ChEES(0.02, 0.1), 0),
    "ChEES, warm-up": (ChEES(0.02, 0.1), 6),
    "NUTS": (NUTS(0.02, 5), 0),
    "NUTS, diagonal mass": (NUTS(0.02, 5, torch.linspace(0.5, 1.5, 20)), 0),
    "NUTS, dense mass": (NUTS(0.02, 5, torch.eye(20) + 0.1), 0),
    "NUTS, warm-up": (NUTS(0.002, 2), 6),
    "MAMS": (MAMS(0.1, 0.4), 0),
    "MAMS, diagonal mass": (MAMS(0.1, 0.4, torch.linspace(0.5, 1.5, 20)), 0),
    "MAMS, warm-up": (MAMS(0.1, 0.4), 6),
    "MCLMC": (MCLMC(0.1, 0.4), 0),
    "MCLMC, diagonal mass": (MCLMC(0.1, 0.4, torch.linspace(0.5, 1.5, 20)), 0),
    "MCLMC, warm-up": (MCLMC(0.1, 0.4), 6),
    "replica exchange": (ReplicaExchange(HMC(0.02, 3), 4), 0),
    "replica exchange, warm-up": (ReplicaExchange(HMC(0.001, 3), 5), 6),
    "replica exchange, mass": (ReplicaExchange(HMC(0.02, 3, torch.linspace(0.5, 1.5, 20), jitter=0.0), 3), 0),
    "replica exchange, dense mass": (ReplicaExchange(HMC(0.02, 3, torch.eye(20) + 0.1), 3), 0),
}


@pytest.mark.parametrize("prior", [NormalPrior(0.09), FanInPrior()], ids=["one precision", "many"])
@pytest.mark.parametrize("num_chains", [1, 5, 24])
@pytest.mark.parametrize(("kernel", "warmup"), KERNELS.values(), ids=KERNELS)
def test_chains_follow_those_of_torch(make_posterior, kernel, warmup, num_chains, prior):
    """Until rounding has grown: every draw and every statistic, from the same random numbers."""
    posterior = make_posterior(prior=prior)
    arguments = {"num_chains": num_chains, "warmup": warmup, "seed": 1, "progress": False}
    mine, other = (sample(posterior, kernel, 10, compile=flag, **arguments) for flag in (True, False))
    assert (mine.gradient, other.gradient) == ("closed-form, compiled", "closed-form")
    torch.testing.assert_close(mine.draws, other.draws, rtol=0, atol=1e-7)
    assert mine.stats.keys() == other.stats.keys()
    for name, values in other.stats.items():
        assert mine.stats[name].dtype == values.dtype
        torch.testing.assert_close(
            mine.stats[name], values, rtol=1e-6, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("num_chains", [1, 5])
@pytest.mark.parametrize("kernel", [name for name, (one, _) in KERNELS.items() if isinstance(one, (HMC, ChEES))])
def test_chains_of_large_networks_follow_those_of_torch(make_posterior, kernel, num_chains, monkeypatch):
    """Transitions of HMC call the likelihood there, lane by lane, unless a lane is shared out among threads."""
    monkeypatch.setattr(densities, "is_small", lambda posterior: False)
    posterior, (made, warmup) = make_posterior(prior=FanInPrior()), KERNELS[kernel]
    assert posterior.density(num_chains, compile=True).joint.hmc is not None
    arguments = {"num_chains": num_chains, "warmup": warmup, "seed": 1, "progress": False}
    mine, other = (sample(posterior, made, 10, compile=flag, **arguments) for flag in (True, False))
    torch.testing.assert_close(mine.draws, other.draws, rtol=0, atol=1e-7)
    for name, values in other.stats.items():
        torch.testing.assert_close(mine.stats[name], values, rtol=1e-6, atol=1e-6)
    with mock.patch.multiple(fused, **SMALL):
        assert posterior.density(num_chains, compile=True).joint.hmc is None


def test_a_likelihood_that_was_replaced(posterior):
    """As by one that counts its calls: trajectories in native code would pass it over."""
    density = posterior.density(3, compile=True)
    assert density.joint.native is density.likelihood.native
    assert density.joint.caller is not None
    density = posterior.density(3, compile=True)
    density.likelihood = LogDensity(*density.likelihood[:2])
    assert density.joint.native is None
    assert density.joint.caller is None


@pytest.mark.parametrize("num_chains", [1, 5])
@pytest.mark.parametrize("num_datasets", [1, 5])
@pytest.mark.parametrize("sizes", [LARGE, SMALL], ids=["at once", "in parts"])
@pytest.mark.parametrize(
    "kernel", [NUTS(0.003, 5), MAMS(0.01, 0.05), MCLMC(0.01, 0.05)], ids=lambda kernel: type(kernel).__name__
)
def test_transitions_of_large_networks(kernel, sizes, num_chains, num_datasets):
    """Follow torch's, with layers without a bias, a noise that is a parameter, and data of each lane's own.

    Fails when numbers of theta are in another order than its gradient's, or a part of the points is left out.
    """
    dice = generator(3)
    x = torch.randn(70, 3, generator=dice, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(3, 9, bias=False), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 1), LogScale())
    posterior = Posterior(net, Data(x, x[:, 0].sin()), FanInPrior(), Gaussian())
    if num_datasets > 1:
        num_chains = num_datasets
        posterior = posterior.with_targets(torch.randn(num_datasets, 70, generator=dice, dtype=torch.float64))
    with mock.patch.multiple(fused, **sizes):
        code = fused.Fused(posterior, num_chains)
    density, other = (posterior.density(num_chains) for _ in range(2))
    density.likelihood = code.likelihood
    theta = normal(num_chains, posterior.dim) / 2
    (mine, found), (theirs, expected) = (
        _twice(kernel, density, kernel.init(density, theta, 0), generator()) for density in (density, other)
    )
    assert density.joint.caller is not None
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(Info.stack([found]), Info.stack([expected]))


def _twice(kernel, density, state, dice):
    """The state after two transitions, and what is recorded of the second."""
    state, _ = kernel.step(density, dice, state)
    return kernel.step(density, dice, state)


@given(
    kernel=st.sampled_from([MAMS, MCLMC]),
    sizes=st.sampled_from([(2.0, 7.0), (20.0, 20.0), (1e6, 1e6)]),  # no lane diverges, one in five does, and all do
    has_mass=st.booleans(),
    is_large=st.booleans(),
    shape=st.sampled_from([(1, 1), (2, 3), (3, 17), (4, 40), (3, 1), (16, 5)]),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, phases=[Phase.explicit, Phase.generate])
def test_trajectories_at_constant_speed(kernel, sizes, has_mass, is_large, shape, dtype, seed):
    """Each transition is that of torch from the same state, in what it keeps and in what it records.

    Where they go they were the same but for 120 units of rounding at most, and energies, relative to where they began,
    but for 1,400. Fails when the kicks within a step and between steps are exchanged, and when a lane that diverges
    keeps its direction.
    """
    (num_features, num_lanes), dice, rounding = shape, generator(seed), torch.finfo(dtype).eps
    x = torch.randn(20, num_features, generator=dice, dtype=dtype)
    net = nn.Sequential(nn.Linear(num_features, 3), nn.Tanh(), nn.Linear(3, 1))
    posterior = Posterior(net, Data(x, (x[:, 0] > 0).to(dtype)), FanInPrior(), Bernoulli())
    kernel = kernel(*sizes, torch.linspace(0.5, 1.5, posterior.dim) if has_mass else None)
    mine, other = posterior.density(num_lanes, compile=True), posterior.density(num_lanes)
    if is_large:
        mine.likelihood = fused.Fused(posterior, num_lanes).likelihood
    state = kernel.init(other, torch.randn(num_lanes, posterior.dim, generator=dice, dtype=dtype), 0)
    for _ in range(4):
        start, theirs = state.position, torch.Generator().set_state(dice.get_state())
        after, info = kernel.step(mine, dice, state)
        state, expected = kernel.step(other, theirs, state)
        assert torch.equal(dice.get_state(), theirs.get_state())
        assert_close(after.position.theta, state.position.theta, 1000 * rounding)
        assert_close(after.position.log_prob, state.position.log_prob, 1000 * rounding)
        assert_close(after.position.grad, state.position.grad, 1000 * rounding)
        if isinstance(kernel, MCLMC):
            assert_close(after.u, state.u, 1000 * rounding)
        found, stats = (Info.stack([one]).stats for one in (info, expected))
        assert found.keys() == stats.keys()
        goes = ~stats["diverging"]
        errors = [one.pop("energy_error")[goes] / (1 + start.log_prob[:, None].abs()[goes]) for one in (found, stats)]
        torch.testing.assert_close(*errors, rtol=0, atol=20_000 * rounding)
        torch.testing.assert_close(found, stats, rtol=0, atol=20_000 * rounding)


def test_trajectories_that_diverge_are_rejected(posterior):
    """In theta's last digit: a huge step leads to where nothing is finite, and the chain stays."""
    for compile in (True, False):
        chain = sample(posterior, HMC(1e200, 3), 5, 20, seed=1, progress=False, compile=compile)
        assert not chain.stats["is_accept"].any()
        assert chain.stats["diverging"].all()
        assert (chain.stats["acceptance_rate"] == 0).all()
        assert (chain.draws == chain.draws[:, :1]).all()


@pytest.mark.parametrize("num_chains", [1, 3, 20])
@pytest.mark.parametrize(
    "kernel",
    [
        HMC(0.05, 2),
        HMC(0.05, 2, jitter=0.2),
        HMC(0.05, 2, inv_mass=torch.eye(20) + 0.1),
        ChEES(0.05, 0.3),
        NUTS(0.1),
        NUTS(0.1, inv_mass=torch.eye(20) + 0.1),
        MAMS(0.5, 3.0),
        MAMS(50.0, 100.0, torch.linspace(0.5, 1.5, 20)),
        MCLMC(0.5, 3.0),
        MCLMC(50.0, 100.0, torch.linspace(0.5, 1.5, 20)),
        ReplicaExchange(HMC(0.05, 2), 3),
        ReplicaExchange(HMC(0.05, 2, inv_mass=torch.eye(20) + 0.1), 3),
        Symmetric(HMC(0.05, 2), every=3),
        Symmetric(ReplicaExchange(HMC(0.05, 2), 3), every=1),
        Symmetric(MCLMC(0.5, 3.0), every=3),
    ],
    ids=[
        *("HMC", "jitter", "dense", "ChEES", "NUTS", "dense NUTS", "MAMS", "MAMS of large steps"),
        *("MCLMC", "MCLMC of large steps", "replica exchange", "dense replica exchange"),
        *("symmetric", "symmetric replica exchange", "symmetric MCLMC"),
    ],
)
def test_many_transitions_at_once_are_one_after_the_other(posterior, kernel, num_chains, monkeypatch):
    """To the bit, with the generator: how many is decided by the clock."""
    num_lanes = num_chains * kernel.lanes_per_chain
    density, theta = posterior.density(num_lanes, compile=True), normal(num_chains, 20)
    start, found = kernel.init(density, theta, 0), []
    for module in (native, caller):  # in blocks of 3
        monkeypatch.setattr(module, "NUMBERS_AHEAD", 3 * num_lanes * 20)
    for nums in ([11], [1] * 11, [4, 7]):
        dice, state, infos = generator(), start, []
        for num in nums:
            state, info = kernel.steps(density, dice, state, num)
            infos.append(info)
        found.append((state, dice, torch.cat([info.theta for info in infos], 1)))
    dice, state, thetas = generator(), start, []
    for _ in range(11):
        state, info = kernel.step(density, dice, state)
        thetas.append(info.theta)
    found.append((state, dice, torch.stack(thetas, 1)))
    first, *others = found
    for state, dice, thetas in others:
        assert torch.equal(thetas, first[2])
        assert_same(state, first[0])
        assert torch.equal(dice.get_state(), first[1].get_state())


@pytest.mark.parametrize("num_chains", [7, 64])
@pytest.mark.parametrize(
    "kernel",
    [HMC(0.05, 3, jitter=0.2), NUTS(0.1), MAMS(0.5, 3.0), MCLMC(50.0, 3.0), ReplicaExchange(HMC(0.05, 3), 6)],
    ids=["HMC", "NUTS", "MAMS", "MCLMC", "replica exchange"],
)
def test_threads_change_no_bit(posterior, kernel, num_chains, monkeypatch):
    """Fails where a chain's temperatures are shared out among threads, which swap before others are ready."""
    for module in (native, caller):
        monkeypatch.setattr(module, "SECONDS_FOR_THREADS", 1e-12)
    density = posterior.density(num_chains * kernel.lanes_per_chain, compile=True)
    start, found = kernel.init(density, normal(num_chains, 20), 0), []
    for num_threads in (1, 2, 3, 100):
        density.share_out(num_threads)
        found.append(kernel.steps(density, generator(), start, 6))
    for made in found[1:]:
        assert_same(made, found[0])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_jitter", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 16), (1, 20), (4, 8), (5, 20)])
def test_random_numbers_are_torchs(posterior, shape, has_jitter, dtype):
    """In the documented order: jitter, momenta, acceptance; the generator goes as far."""
    code = code_of(replace(program_of(posterior, 1), dtype=str(dtype).removeprefix("torch.")))
    assert code.knows_torchs_normals
    mine, theirs = generator(), generator()
    sizes, noise, uniforms = drawn(mine, 4, torch.empty(shape, dtype=dtype), code, shape[0] * has_jitter, shape[0])
    for t in range(4):
        if has_jitter:
            assert torch.equal(sizes[t], torch.rand(shape[0], 1, generator=theirs, dtype=dtype)[:, 0])
        expected = torch.randn(shape, generator=theirs, dtype=dtype)
        torch.testing.assert_close(noise[t], expected, rtol=1e-5, atol=100 * torch.finfo(dtype).eps)
        assert torch.equal(uniforms[t], torch.rand(shape[0], generator=theirs, dtype=dtype))
    assert torch.equal(mine.get_state(), theirs.get_state())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_uniform_numbers_are_torchs(posterior, dtype):
    """From wherever its generator is: its 624 words run out within a call, between two, and not at all."""
    code = code_of(replace(program_of(posterior, 1), dtype=str(dtype).removeprefix("torch.")))
    assert code.knows_torchs_uniforms
    mine, theirs = generator(), generator()
    for count in (1, 7, 616, 1, 623, 624, 625, 1248, 2, 20_000):
        found = torch.empty(count, dtype=dtype)
        code.draw_uniforms(mine, found)
        assert torch.equal(found, torch.rand(count, generator=theirs, dtype=dtype)), count
        assert torch.equal(mine.get_state(), theirs.get_state()), count


def test_where_torch_draws_otherwise_torch_draws(posterior, monkeypatch):
    """Fails when a version of torch with another generator, here one that stands still, gets other draws."""
    arguments = {"num_chains": 3, "seed": 1, "compile": True, "progress": False}
    expected = sample(posterior, HMC(0.05, 4), 10, warmup=5, **arguments).draws
    draw_uniforms = Code.draw_uniforms

    def stands_still(self, generator, out):
        draw_uniforms(self, torch.Generator().set_state(generator.get_state()), out)

    monkeypatch.setattr(Code, "draw_uniforms", stands_still)
    monkeypatch.setattr(native, "_CODE", {})
    code = code_of(program_of(posterior, 3))
    assert not code.knows_torchs_uniforms
    assert torch.equal(sample(posterior, HMC(0.05, 4), 10, warmup=5, **arguments).draws, expected)


def test_workers_load_it_for_themselves(posterior):
    arguments = {"num_chains": 10, "batch_size": 5, "seed": 1, "compile": True, "progress": False}
    one, two = (sample(posterior, HMC(0.05, 4), 10, workers=workers, **arguments) for workers in (1, 2))
    assert torch.equal(one.draws, two.draws)
    assert two.gradient == "closed-form, compiled"


def test_it_says_that_it_compiles(posterior, capsys):
    first = sample(posterior, HMC(0.05, 4), 5, seed=1, compile=True)
    assert "compiling, some 0.5 s unless it was done before" in capsys.readouterr().err
    again = sample(posterior, HMC(0.05, 4), 5, seed=1, compile=True, progress=False)
    assert torch.equal(first.draws, again.draws)
    assert again.compile_time < 0.1
    assert sample(posterior, HMC(0.05, 4), 5, seed=1, compile=False, progress=False).compile_time == 0


@pytest.mark.parametrize(
    "wrong",
    [lambda t: t[:4], lambda t: t[:, :19], lambda t: t.float(), lambda t: t[0]],
    ids=["lanes", "D", "dtype", "one"],
)
def test_what_does_not_fit_is_refused(posterior, theta, wrong):
    """Fails when native code reads what is not there."""
    density = posterior.density(5, compile=True)
    with pytest.raises(ValueError, match=r"this density is for vectors in the shape \(5, 20\) and torch.float64, one"):
        density.joint.log_prob_and_grad(wrong(theta))
    with pytest.raises(ValueError, match=r"this density is for vectors in the shape \(5, 20\) and torch.float64, one"):
        fused.Fused(posterior, 5).log_prob_and_grad(wrong(theta))
    with pytest.raises(ValueError, match="this density is for vectors"):
        density.joint.native.trajectory(Position(theta, theta[:, 0], theta), wrong(theta), 0.1, 2, None)
    with pytest.raises(ValueError, match="this density is for vectors"):
        density.joint.native.transitions(
            generator(), (wrong(theta), theta[:, 0], theta), 0.1, 0.0, torch.tensor([2]), None, None
        )
    with pytest.raises(ValueError, match="this density is for vectors"):
        density.joint.caller.grow(generator(), (wrong(theta), theta[:, 0], theta), 0.1, 5, 1e3, None, None, 1)
    for start, u in ((wrong(theta), theta), (theta, wrong(theta))):
        with pytest.raises(ValueError, match="this density is for vectors"):
            density.joint.caller.travel(
                generator(), (start, theta[:, 0], theta), u, 0.1, 0.1, 0.0, torch.tensor([2]), 0.2, 1e3, None
            )
    start = wrong(theta), theta[:, 0], theta, torch.arange(5)[None]
    with pytest.raises(ValueError, match="this density is for vectors"):
        density.joint.native.exchanges(generator(), start, 3 * (theta[:, :1],), 0, 0.0, 2, None, None, 1)


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_UTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch):
    """The sizes of modules that LLVM has translated."""
    sizes, translate = [], machine.translate
    monkeypatch.setattr(machine, "translate", lambda text: sizes.append(len(text)) or translate(text))
    return sizes


def load(program, key=0):
    return machine.load((program, key), lambda: assemble(program), ())


def test_code_is_made_once_for_a_shape(posterior, cache, made):
    program = program_of(posterior, 1)
    for _ in range(2):
        load(program)
    assert len(made) == 1
    load(program, key=1)
    assert len(made) == 2, "what it depends on is another thing"
    assert [path.suffix for path in cache.iterdir()] == 2 * [machine.SUFFIX]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    ],
    ids=["empty", "cut off", "changed"],
)
def test_a_damaged_file_is_made_again(posterior, cache, made, damage):
    program = program_of(posterior, 1)
    load(program)
    (path,) = cache.iterdir()
    before = path.read_bytes()
    damage(path)
    load(program)
    assert len(made) == 2
    assert path.read_bytes()[32:] == before[32:]


def test_another_shapes_file_is_not_taken(posterior, cache, made):
    """Fails when the digest is of the code alone."""
    program = program_of(posterior, 1)
    load(program, key=0), load(program, key=1)
    one, two = cache.iterdir()
    one.write_bytes(two.read_bytes())
    load(program, key=0), load(program, key=1)
    assert len(made) == 3


def test_a_cache_that_can_not_be_written(posterior, tmp_path, monkeypatch, made):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BNN_UTILS_CACHE", str(tmp_path / "file" / "cache"))
    assert load(program_of(posterior, 1)).function("normals", [])
    assert len(made) == 1


@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        ("posix", {"BNN_UTILS_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ("posix", {"XDG_CACHE_HOME": "/b"}, "/b/bnn_utils"),
        ("posix", {"HOME": "/c"}, "/c/.cache/bnn_utils"),
    ],
)
def test_where_the_cache_is(name, variables, expected, monkeypatch):
    for variable in ("BNN_UTILS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert machine.folder().as_posix() == expected


# --- without it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("sys.modules['llvmlite'] = None", "ModuleNotFoundError: import of llvmlite"),
        (
            "import llvmlite.binding as llvm; llvm.get_host_cpu_features = lambda: llvm.FeatureMap({'fma': False})",
            "RuntimeError: this processor has no fused multiply-add",
        ),
    ],
    ids=["no llvmlite", "an old processor"],
)
def test_without_native_code(obstacle, reason):
    """It says so once, and goes on."""
    code = f"""
import sys, torch
{obstacle}
from torch import nn
from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, sample
posterior = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Bernoulli())
plain, one, two = (sample(posterior, HMC(0.1, 1), 5, num_chains=n, seed=0, compile=c, progress=False)
                   for n, c in ((2, False), (2, True), (3, True)))
print(torch.equal(plain.draws, one.draws), one.gradient, two.num_chains)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True closed-form 3\n"
    assert done.stderr.count("RuntimeWarning: there is no native code, so it runs in torch and slower") == 1
    assert reason in done.stderr
    assert "install it (pip install llvmlite)" in done.stderr


@pytest.mark.parametrize("hidden", [3, 300])
@pytest.mark.parametrize("part", [0, 1], ids=["value", "gradient"])
def test_code_that_computes_something_else_is_not_taken(hidden, part, monkeypatch):
    """Of small networks and of large ones: it says so, and the draws are torch's."""
    kind = native.Native if hidden == 3 else fused.Fused
    right = kind.log_prob_and_grad

    def wrong(self, theta):
        found = list(right(self, theta))
        found[part] = found[part] * 1.1 + 0.1
        return tuple(found)

    net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    posterior = Posterior(net, boxes(n=8), NormalPrior(1.0), Bernoulli())
    assert posterior.density(2, compile=True).is_compiled
    monkeypatch.setattr(kind, "log_prob_and_grad", wrong)
    densities._warn.cache_clear()  # it warns once
    with pytest.warns(RuntimeWarning, match=r"runs in torch and slower \(RuntimeError: what LLVM makes is off by"):
        density = posterior.density(2, compile=True)
    assert not density.is_compiled


def test_what_is_loaded_when_it_is_needed():
    """LLVM with the first run, and torch's compiler, which takes more than a second, not at all."""
    code = """
import sys, bnn_utils
from torch import nn
from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, sample
print("llvmlite" in sys.modules)
sample(Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Bernoulli()), HMC(0.1, 1), 5, progress=False)
print("llvmlite.binding" in sys.modules, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue False\n"


class Own(Bernoulli):
    pass


def test_what_has_no_native_code(make_posterior):
    for posterior, what in (
        (make_posterior(gradient="autograd"), r"the autograd gradient and Bernoulli\(\), on cpu"),
        (make_posterior(likelihood=Own()), r"the closed-form gradient and Own\(\), on cpu"),
    ):
        with pytest.raises(
            ValueError, match=f"one of this package's likelihoods on the CPU; this posterior has {what}"
        ):
            sample(posterior, HMC(0.05, 4), 5, compile=True, progress=False)
        assert sample(posterior, HMC(0.05, 4), 5, progress=False).gradient == posterior.gradient


def test_a_large_network(make_posterior):
    """Its chains follow those of torch until rounding has grown; only what comes between products is native."""
    posterior = make_posterior(
        module=nn.Sequential(nn.Linear(2, 70), nn.Tanh(), nn.Linear(70, 3), nn.GELU(), nn.Linear(3, 1))
    )
    arguments = {"num_chains": 3, "seed": 1, "progress": False}
    mine, other = (sample(posterior, HMC(0.02, 3), 8, compile=flag, **arguments) for flag in ("auto", False))
    assert (mine.gradient, other.gradient) == ("closed-form, compiled", "closed-form")
    torch.testing.assert_close(mine.draws, other.draws, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_threads_change_no_bit_of_a_large_network(num_lanes, monkeypatch):
    """Lanes and parts of points are shared out; fails where parts depend on threads, or these share their memory."""
    monkeypatch.setattr(native, "SECONDS_FOR_THREADS", 1e-12)
    for name, value in SMALL.items():
        monkeypatch.setattr(fused, name, value)
    net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 11), nn.SiLU(), nn.Linear(11, 1)).double()
    density = Posterior(net, boxes(), NormalPrior(1.0), Bernoulli()).density(num_lanes, compile=True)
    theta, found = normal(num_lanes, density.dim), []
    for num_threads in (1, 2, 3, 100):
        density.share_out(num_threads)
        found.append(density.joint.log_prob_and_grad(theta))
    for made in found[1:]:
        assert_same(made, found[0])


def test_auto_takes_it_wherever_there_is_some(posterior, make_posterior):
    """However short the run: fails when a few draws are not the first ones of many."""
    few, many = (sample(posterior, HMC(0.05, 4), num, 2, seed=1, progress=False) for num in (3, 300))
    assert few.gradient == many.gradient == "closed-form, compiled"
    assert torch.equal(few.draws, many.draws[:, :3])
    assert sample(posterior, HMC(0.05, 4), 3, compile=False, progress=False).gradient == "closed-form"
