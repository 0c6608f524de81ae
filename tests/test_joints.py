"""Joint densities in native code under priors in closed form: the numbers of torch, and transitions with them."""

import itertools
import threading
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import (
    Cauchy,
    Chi2,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Laplace,
    LogNormal,
    Normal,
    SigmoidTransform,
    StudentT,
    Uniform,
    Weibull,
)

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    Bernoulli,
    ByInput,
    ChEES,
    Data,
    ElementPrior,
    Flat,
    Gaussian,
    HierarchicalPrior,
    Log,
    LogScale,
    Posterior,
    boxes,
    density,
    sample,
)
from bnn_utils.families import VALUES, ClosedForm, Family, Part, family
from bnn_utils.gradients import LogDensity, caller, fused, joints, machine, native
from bnn_utils.gradients.fused import Fused
from bnn_utils.gradients.joints import Joint
from bnn_utils.gradients.native import Native
from bnn_utils.links import Link
from targets import generator, normal
from test_native import ACTIVATIONS, LARGE, SMALL, TOLERANCE, assert_close, assert_same, error

OF_SCALES = [
    HalfCauchy(0.7),
    HalfNormal(2.0),
    Exponential(0.5),
    Gamma(2.0, 3.0),
    Chi2(3.0),
    InverseGamma(2.0, 1.5),
    Weibull(2.0, 1.5),
    LogNormal(-0.5, 0.8),
]
OF_ELEMENTS = [Normal(0.3, 2.0), StudentT(4.0, -0.2, 0.5), Cauchy(0.1, 2.0), Laplace(-0.3, 0.7), *map(Log, OF_SCALES)]
BOUNDED = [*OF_ELEMENTS, *OF_SCALES, Flat(), Flat(is_positive=True)]


def network(widths, activation=None, log_scale=False):
    layers = [(nn.Linear(a, b), activation or nn.Tanh()) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*list(itertools.chain(*layers))[:-1], *[LogScale()] * log_scale)


HIERARCHIES = {
    "one scale": {"*": HalfCauchy(1.0)},
    "by input": {"0.weight": ByInput(HalfCauchy(1.0)), "*.weight": HalfNormal(2.0), "*": 1.0},
    "by every input": {"*.weight": ByInput(InverseGamma(3.0, 2.0)), "*": 0.7},
}
PRIORS = {
    **{name: HierarchicalPrior(scales) for name, scales in HIERARCHIES.items()},
    **{f"{name}, centred": HierarchicalPrior(scales, centred=True) for name, scales in HIERARCHIES.items()},
    "Laplace": ElementPrior(Laplace(0.0, 1.0)),
    "positive": ElementPrior({"0.weight": StudentT(4.0), "2.bias": Gamma(2.0, 1.0), "*": HalfNormal(1.0)}),
}
each_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


def joints_of(posterior, num_lanes):
    """In native code, as a small network, and as a large one, at once and in parts of the points."""
    codes = [Native(posterior, num_lanes)]
    for sizes in (LARGE, SMALL):
        with mock.patch.multiple(fused, **sizes):
            codes.append(Fused(posterior, num_lanes))
    return [Joint(posterior.prior_distribution, code) for code in codes]


@given(
    widths=st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=0, max_size=2),
    activation=st.sampled_from(ACTIVATIONS[:4]),
    is_hierarchy=st.booleans(),
    centred=st.booleans(),
    of_scales=st.lists(st.sampled_from(OF_SCALES), min_size=3, max_size=3),
    of_elements=st.lists(st.sampled_from(BOUNDED), min_size=4, max_size=4),
    by_input=st.lists(st.booleans(), min_size=2, max_size=2),
    of_noise=st.sampled_from(OF_ELEMENTS),
    num_lanes=st.sampled_from([1, 3, 16, 17, 40]),
    num_datasets=st.sampled_from([None, "lanes"]),
    is_weighted=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, phases=[Phase.explicit, Phase.generate])
def test_it_is_the_closed_form(
    widths, activation, is_hierarchy, centred, of_scales, of_elements, by_input, of_noise,
    num_lanes, num_datasets, is_weighted, dtype, seed,
):  # fmt: skip
    """Of random networks and priors, the value and the gradient, for few lanes and many.

    What is expected is computed in double precision. Where terms cancel each other, torch errs by more than the
    tolerance as well: then by four times as much at most.

    Fails where zeros that fill up a vector count, a scale gets what belongs to another one, or a Jacobian is left out.
    """
    dice, num_points = generator(seed), 21
    net = network([3, *widths, 1], activation, log_scale=True)
    one, two, three = of_scales
    if is_hierarchy:
        weights = [ByInput(of) if flag else of for of, flag in zip((one, two), by_input, strict=True)]
        scales = {"0.weight": weights[0], "0.bias": 0.7, "*.weight": weights[1], "*log_scale": of_noise, "*": three}
    else:
        first, second, third, last = of_elements
        scales = {"0.weight": first, "0.bias": second, "*.weight": third, "*log_scale": of_noise, "*": last}
    if not widths:
        del scales["*.weight"], scales["*"]
    prior = HierarchicalPrior(scales, centred) if is_hierarchy else ElementPrior(scales)
    y = torch.randn(num_lanes, num_points, generator=dice, dtype=dtype)
    counts = torch.randint(1, 3, (num_points,), generator=dice).to(dtype) / 2 if is_weighted else None
    data = Data(torch.randn(num_points, 3, generator=dice, dtype=dtype), y[0], counts)
    posterior = Posterior(net, data, prior, Gaussian())
    precise = Posterior(net, data.to(torch.float64), prior, Gaussian())
    if num_datasets is not None:
        posterior, precise = posterior.with_targets(y), precise.with_targets(y.double())
    theta = torch.randn(num_lanes, posterior.dim, generator=dice, dtype=dtype)
    expected = precise.density(num_lanes).joint.log_prob_and_grad(theta.double())
    of_torch = posterior.density(num_lanes).joint.log_prob_and_grad(theta)
    limits = [max(TOLERANCE[dtype], 4 * error(one, two)) for one, two in zip(of_torch, expected, strict=True)]
    for joint in joints_of(posterior, num_lanes):
        for one, two, limit in zip(joint.log_prob_and_grad(theta), expected, limits, strict=True):
            assert_close(one, two, limit)


@pytest.mark.parametrize("num_lanes", [1, 20])
@each_prior
def test_densities_take_it(make_posterior, prior, num_lanes):
    """The joint density, not the likelihood, which replica exchange scales; of a gradient alone as well."""
    posterior = make_posterior(prior=prior)
    mine, other = posterior.density(num_lanes, compile=True), posterior.density(num_lanes)
    theta = normal(num_lanes, posterior.dim)
    with mock.patch.object(posterior.prior_distribution, "log_prob", side_effect=AssertionError("it is torch's")):
        value, grad = mine.joint.log_prob_and_grad(theta)
    assert torch.equal(mine.joint.grad(theta), grad)
    assert mine.joint.caller is not None
    assert mine.joint.native is None
    for part in ("joint", "likelihood"):
        found = (value, grad) if part == "joint" else mine.likelihood.log_prob_and_grad(theta)
        for one, two in zip(found, getattr(other, part).log_prob_and_grad(theta), strict=True):
            assert_close(one, two, 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [-1e3, -50.0, 50.0, 1e3])
@each_prior
def test_extremes(prior, size, dtype):
    """Far away: finite where torch is, and no more than that; a lane says nothing of another one."""
    posterior = Posterior(network([2, 3, 1]), boxes().to(dtype), prior, Bernoulli())
    theta = normal(posterior.dim, posterior.dim).to(dtype) / 2
    theta[range(posterior.dim), range(posterior.dim)] = size
    expected, grad = posterior.density(posterior.dim).joint.log_prob_and_grad(theta)
    for joint in joints_of(posterior, posterior.dim):
        value, slope = joint.log_prob_and_grad(theta)
        is_finite = expected.isfinite()
        assert torch.equal(value.isfinite(), is_finite)
        is_finite &= grad.isfinite().all(-1)
        for one, two in ((value, expected), (slope, grad)):
            assert_close(one[is_finite], two[is_finite], 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("num_chains", [1, 5, 24])
@each_prior
def test_transitions_follow_those_of_torch(make_posterior, prior, num_chains):
    """Until rounding has grown: every draw and every statistic, from the same random numbers."""
    posterior = make_posterior(prior=prior)
    start, dense = normal(num_chains, posterior.dim) / 2, torch.eye(posterior.dim) + 0.1
    kernels = [(NUTS(0.02, 4), 0), (NUTS(0.02, 4, dense), 0), (NUTS(0.002, 2), 6)]
    kernels += [(HMC(0.02, 4, mass, jitter=0.3), 0) for mass in (None, dense.diagonal(), dense)]
    kernels += [(HMC(0.02, 1), 0), (HMC(0.002, 2), 6), (ChEES(0.02, 0.08), 0), (ChEES(0.002, 0.004), 6)]
    for kernel, warmup in [*kernels, (MAMS(0.02, 0.08), 0), (MCLMC(0.02, 0.08), 0)]:
        arguments = {"num_chains": num_chains, "warmup": warmup, "init": start, "seed": 1, "progress": False}
        mine, other = (sample(posterior, kernel, 5, compile=flag, **arguments) for flag in (True, False))
        torch.testing.assert_close(mine.draws[:, :1], other.draws[:, :1], rtol=0, atol=1e-8 if warmup else 1e-11)
        torch.testing.assert_close(mine.draws, other.draws, rtol=0, atol=1e-7)
        for name, values in other.stats.items():
            torch.testing.assert_close(mine.stats[name], values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [NUTS(0.05, 5), HMC(0.05, 5, jitter=0.2)], ids=["NUTS", "HMC"])
@pytest.mark.parametrize("num_lanes", [7, 64])
@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("prior", [PRIORS["by input"], PRIORS["by input, centred"]], ids=["not centred", "centred"])
def test_threads_change_no_bit(make_posterior, prior, is_large, num_lanes, kernel, monkeypatch):
    """Fails where two threads work in one's memory."""
    for module in (native, caller):
        monkeypatch.setattr(module, "SECONDS_FOR_THREADS", 1e-12)
    if is_large:
        monkeypatch.setattr(density, "is_small", lambda posterior: False)
    posterior, found = make_posterior(prior=prior), []
    one = posterior.density(num_lanes, compile=True)
    theta = normal(num_lanes, posterior.dim) / 2
    for num_threads in (1, 2, 3, 100):
        one.share_out(num_threads)
        gradients = [one.joint.log_prob_and_grad(theta) for _ in range(3)]
        found.append((*gradients, kernel.steps(one, generator(), kernel.init(one, theta, 0), 6)))
    for made in found[1:]:
        assert_same(made, found[0])


def test_threads_have_memory_of_their_own(make_posterior, monkeypatch):
    """While both of two are in native code, in a first call and in a second one."""
    monkeypatch.setattr(native, "SECONDS_FOR_THREADS", 1e-12)
    posterior, contexts, both = make_posterior(prior=PRIORS["by input"]), [], threading.Barrier(2, timeout=60)
    joint = joints_of(posterior, 64)[0]
    of_tiles, joint._likelihood.num_threads = joint._functions.of_tiles, 2

    def watched(context, *arguments):
        both.wait()
        contexts.append(context)
        of_tiles(context, *arguments)

    joint._functions = joint._functions._replace(of_tiles=watched)
    for _ in range(2):
        joint.log_prob_and_grad(normal(64, posterior.dim))
    assert len(contexts) == 4
    assert set(contexts[:2]) == set(contexts[2:])
    assert len(set(contexts)) == 2


@each_prior
def test_a_run_goes_on_to_the_bit(make_posterior, prior, tmp_path):
    """Many transitions at once are one after the other; and a folder is filled as if by one run."""
    posterior, kernel = make_posterior(prior=prior), NUTS(0.05, 5)
    one, found = posterior.density(6, compile=True), []
    start = kernel.init(one, normal(6, posterior.dim) / 2, 0)
    for nums in ([7], [1] * 7, [3, 4]):
        dice, state, thetas = generator(), start, []
        for num in nums:
            state, info = kernel.steps(one, dice, state, num)
            thetas.append(info.theta)
        found.append((state, torch.cat(thetas, 1)))
    for made in found[1:]:
        assert_same(made, found[0])
    arguments = {"num_chains": 4, "warmup": 20, "batch_size": 2, "init": normal(4, posterior.dim), "seed": 1}
    arguments |= {"progress": False}
    sample(posterior, NUTS(), 10, store=tmp_path / "run.zarr", **arguments)
    longer = sample(posterior, NUTS(), 20, store=tmp_path / "run.zarr", **arguments)
    assert torch.equal(longer.draws, sample(posterior, NUTS(), 20, **arguments).draws)


@pytest.mark.parametrize("num_points", [70, 3])
def test_large_networks(num_points, monkeypatch):
    """Where points are shared out among threads, gradients stay torch's around the likelihood; trees do not."""
    for name, value in SMALL.items():
        monkeypatch.setattr(fused, name, value)
    x = normal(num_points, 3)
    net = network([3, 20, 15, 1], nn.ReLU(), log_scale=True)
    prior = HierarchicalPrior(
        {"0.weight": ByInput(HalfCauchy(1.0)), "*.weight": HalfNormal(1.0), "*log_scale": Log(HalfCauchy(1.0)), "*": 1}
    )
    posterior = Posterior(net, Data(x, x[:, 0].sin()), prior, Gaussian())
    arguments = {"num_chains": 2, "init": normal(2, posterior.dim) / 2, "seed": 1, "progress": False}
    mine, other = (sample(posterior, NUTS(0.003, 5), 3, compile=flag, **arguments) for flag in (True, False))
    torch.testing.assert_close(mine.draws, other.draws, rtol=0, atol=1e-9)
    one = posterior.density(2, compile=True)
    assert one._code.splits_lanes == (num_points > 10)
    is_native = isinstance(getattr(one.joint.log_prob_and_grad, "__self__", None), Joint)
    assert is_native != one._code.splits_lanes


class Bounded:
    """A prior in closed form whose parameters a sigmoid makes."""

    def distribution(self, flat):
        like, num = flat.ravel(), flat.dim
        none = torch.full((num,), -1)
        link = Link(flat.names, [(slice(0, num), SigmoidTransform())], [], none)
        families = num * [Family("normal", (0.0, 1.0, 0.0), 0.0)]
        return ClosedForm([Part(num, Normal(0.0, 1.0))], families, like, link)


@pytest.mark.parametrize("prior", [Bounded(), ElementPrior(Uniform(-2.0, 3.0))], ids=["sigmoid", "autograd"])
def test_what_stays_in_torch(make_posterior, prior):
    """Parameters between two bounds, and densities without a formula."""
    posterior = make_posterior(prior=prior)
    one, other = posterior.density(3, compile=True), posterior.density(3)
    assert one.is_compiled
    assert one.joint.caller is None
    for mine, theirs in zip(*(d.joint.log_prob_and_grad(normal(3, 20)) for d in (one, other)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_likelihood_that_was_replaced(make_posterior):
    """As by one that counts its calls: native code would pass it over."""
    one = make_posterior(prior=PRIORS["by input"]).density(3, compile=True)
    calls, likelihood = [], one.likelihood
    one.likelihood = LogDensity(lambda theta: calls.append(0) or likelihood.log_prob_and_grad(theta), likelihood.grad)
    one.joint.log_prob_and_grad(normal(3, one.dim))
    assert calls
    assert one.joint.caller is None


def test_what_does_not_fit_is_refused(make_posterior):
    """Fails when native code reads what is not there: the network has fewer parameters than theta has elements."""
    one = make_posterior(prior=PRIORS["by input"]).density(5, compile=True)
    for theta in (normal(4, one.dim), normal(5, 20), normal(5, one.dim).float()):
        with pytest.raises(ValueError, match=rf"this density is for vectors in the shape \(5, {one.dim}\) and"):
            one.joint.log_prob_and_grad(theta)
        with pytest.raises(ValueError, match="this density is for vectors"):
            one.joint.caller.grow(generator(), (theta, theta[:, 0], theta), 0.1, 5, 1e3, None, None, 1)


def test_code_is_made_once_for_all_priors(make_posterior, tmp_path, monkeypatch):
    """What depends on a prior are tables."""
    sizes, translate = [], machine.translate
    monkeypatch.setenv("BNN_UTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "translate", lambda text: sizes.append(len(text)) or translate(text))
    joints._functions.cache_clear()
    for prior in PRIORS.values():
        make_posterior(prior=prior).density(3, compile=True).joint.log_prob_and_grad  # noqa: B018
    assert len(sizes) == 1


def test_without_it(make_posterior, monkeypatch):
    """It says so once, and goes on in torch."""
    posterior = make_posterior(prior=PRIORS["by input"])
    theta = normal(3, posterior.dim)
    one, other = posterior.density(3, compile=True), posterior.density(3)
    monkeypatch.setattr(density, "Joint", mock.Mock(side_effect=RuntimeError("no joint")))
    density._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"there is no native code.*RuntimeError: no joint"):
        found = one.joint.log_prob_and_grad(theta)
    assert one.joint.caller is None
    torch.testing.assert_close(found, other.joint.log_prob_and_grad(theta))


def test_all_kinds_are_met():
    """Of densities, above."""
    assert {family(one).kind for one in BOUNDED} == set(VALUES)
