"""Everything stays on the device of the data, and nothing is read back inside a transition.

Without a GPU this is shown on the meta device, where tensors have shapes and no values: whatever reads a value fails,
and whatever brings two devices together is seen by a mode that looks at every operation.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    Bernoulli,
    ChEES,
    Data,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    boxes,
    sample,
)
from bnn_utils.adaptation import Moments
from bnn_utils.evidence import Tempering
from bnn_utils.kernels.base import Info
from bnn_utils.kernels.hmc import Metric, metric

READS_A_VALUE = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item", "masked_select", "_unique2"}


class OneDevice(TorchDispatchMode):
    """Fails on what brings devices together (0-dim tensors on the CPU excepted), reads values, or needs float64.

    Apple's GPUs have no float64.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in READS_A_VALUE, f"{name} reads a value"
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        devices = {str(t.device) for t in tensors if t.ndim or t.device.type != "cpu"}
        assert len(devices) <= 1, f"{name} brings {sorted(devices)} together"
        assert devices <= {"cpu"} or all(t.dtype != torch.float64 for t in tensors), f"{name} takes or makes float64"
        return result


MASSES = {"identity": None, "diagonal": torch.ones(20), "dense": torch.eye(20)}


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_a_transition_stays_on_its_device(make_posterior, gradient, mass):
    meta = torch.device("meta")
    posterior = make_posterior(data=boxes().to(dtype=torch.float32, device=meta), gradient=gradient)
    kernel, density, theta = HMC(0.05, 4), posterior.density(8), torch.zeros(8, 20, device=meta)
    # A dense mass is inverted in float64, and looked at, when a run begins.
    made = metric(MASSES[mass], torch.zeros(8, 20))
    start = kernel.init(density, theta, 0)._replace(
        metric=Metric(*(None if values is None else values.to(meta) for values in made))
    )
    with OneDevice(), torch.inference_mode():
        posterior.log_prob_and_grad(theta)
        state, info = kernel.step(density, None, start)
        statistics = Info.stack([info]).stats
    assert all(value.device == meta for value in (*state.position, *statistics.values()))


def on_meta(make_posterior, gradient):
    """A posterior, starting points, and a mass that was checked elsewhere, without values."""
    posterior = make_posterior(data=boxes().to(dtype=torch.float32, device="meta"), gradient=gradient)
    return posterior, torch.zeros(8, 20, device="meta")


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_replica_exchange_stays_on_its_device(make_posterior, gradient):
    """Swap, trajectories at four temperatures, and all that is said about them."""
    posterior, theta = on_meta(make_posterior, gradient)
    ladder, sizes = torch.tensor([0, 0.1, 0.4, 1]), torch.tensor([1.0, 0.2, 0.1, 0.05])
    kernel = ReplicaExchange(HMC(0.05, 4), 4, ladder, sizes)
    density = posterior.density(32)
    start = kernel.init(density, theta, 0)  # the ladder is laid out from float64 on the CPU
    with OneDevice(), torch.inference_mode():
        state, info = kernel.step(density, None, start)
        state, info = kernel.step(density, None, state)
        statistics = Info.stack([info]).stats
    assert state.count == 2
    tensors = [*state[:4], *state.ladder[2:], *info[:2], *statistics.values()]
    assert len(tensors) == 4 + 6 + 2 + 7 + 3
    assert {value.device.type for value in tensors} == {"meta"}


@pytest.mark.parametrize(
    "kernel", [ChEES(0.05, 0.5), MAMS(0.1, 1.0), MCLMC()], ids=lambda kernel: type(kernel).__name__
)
@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_others_stay_on_their_device(make_posterior, gradient, kernel):
    posterior, theta = on_meta(make_posterior, gradient)
    density = posterior.density(8)
    with OneDevice(), torch.inference_mode():
        state, info = kernel.step(density, None, kernel.init(density, theta, 0))
        statistics = Info.stack([info]).stats
    assert {value.device.type for value in (*state.position, *info[:2], *statistics.values())} == {"meta"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda theta: theta.sum().item(), "reads a value"),
        (lambda theta: bool((theta > 0).any()), "reads a value|is_nonzero"),
        (lambda theta: theta[theta[:, 0] > 0], "nonzero|reads a value|data-dependent"),
        (lambda theta: theta.cpu(), "brings|copy out of meta"),
        (lambda theta: theta + torch.ones(20), "brings|device"),
        (lambda theta: theta.double(), "takes or makes float64"),
    ],
)
def test_the_mode_sees_faults(fault, message):
    with OneDevice(), pytest.raises((AssertionError, RuntimeError, NotImplementedError), match=message):
        fault(torch.zeros(8, 20, device="meta"))


def test_moments_where_there_is_no_float64():
    """As on Apple's GPUs: positions go to the CPU, and the mass comes back."""

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    assert tensor.device.type == "cpu" or tensor.dtype != torch.float64, f"{func} makes float64"
            return result

    with FakeTensorMode(), NoFloat64():
        theta = torch.zeros(8, 20, device="mps")
        variance = Moments.start(theta).update(theta).update(theta).variance
        assert (variance.device.type, variance.dtype) == ("cpu", torch.float64)
        mass = variance.to(theta)
        assert (mass.device.type, mass.dtype) == ("mps", torch.float32)
        rates = torch.zeros(8, 3, device="mps")
        ladder = dict.fromkeys(("log_likelihood", "replica", "acceptance_rate"), rates.unsqueeze(1))
        assert Tempering(inverse_temperatures=rates, step_sizes=rates, **ladder).swap_rates.shape == (2,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_on_a_gpu(net, gradient):
    """No synchronisation inside a transition, and chains that sample what the CPU's do."""
    data = boxes().to("cuda")
    posterior = Posterior(net, data, NormalPrior(0.09), Bernoulli(), gradient=gradient)
    stream = torch.Generator("cuda").manual_seed(0)
    kernel, density = HMC(0.05, 4), posterior.density(8)
    state = kernel.init(density, posterior.sample_prior(8, stream), 0)
    kernel.step(density, stream, state)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            state, _ = kernel.step(density, stream, state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = Posterior(net, Data(data.x.cpu(), data.y.cpu()), NormalPrior(0.09), Bernoulli())
    position = state.position
    torch.testing.assert_close(position.log_prob.cpu(), on_cpu.log_prob(position.theta.cpu()))
    chain = sample(posterior, kernel, 50, num_chains=8, seed=0, progress=False)
    assert chain.device.startswith("cuda")
    assert chain.draws.is_cuda
    assert 0.5 < chain.stats["acceptance_rate"].mean() <= 1
    chain = sample(posterior, MCLMC(), 50, num_chains=8, warmup=100, seed=0, progress=False)
    assert chain.draws.is_cuda
    for other in (kernel, ChEES(), MAMS(), NUTS(), ReplicaExchange(kernel, 6)):
        chain = sample(posterior, other, 50, num_chains=8, warmup=100, seed=0, progress=False)
        assert chain.draws.is_cuda
        assert 0.5 < chain.stats["acceptance_rate"].mean() <= 1
    assert chain.tempering.log_likelihood.is_cuda
    assert chain.tempering.round_trips.shape == (8,)
    assert chain.tempering.log_evidence().stepping_stones.se > 0
    assert len(chain.tempering.table()) == 6
