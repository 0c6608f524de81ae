"""Many threads at once on the same objects: each gets to the bit what it gets alone, and the process stays."""

import random
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import ipywidgets
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Distribution, Laplace, Normal, StudentT
from torch.func import jacrev
from torch.utils import _python_dispatch

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
    Data,
    ElementPrior,
    FlatModule,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    boxes,
    sample,
)
from bnn_utils.diagnostics import convergence
from bnn_utils.gradients import native
from bnn_utils.likelihoods import _unchecked
from bnn_utils.plots import Figure
from bnn_utils.random import lend_to_torch
from bnn_utils.sbc import simulation_based_calibration
from bnn_utils.widgets.explorer import Explorer

NUM_THREADS = 8


def state():
    """What belongs to the process."""
    with ThreadPoolExecutor(1) as new:
        threads = torch.get_num_threads(), new.submit(torch.get_num_threads).result()
    return {
        "torch": torch.get_rng_state().tolist(),
        "NumPy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "Python": random.getstate(),
        "checks of distributions": Distribution.__dict__["_validate_args"],
        "kind of these": type(Distribution.__dict__["_validate_args"]),
        "numbers of threads": threads,
        "default dtype": torch.get_default_dtype(),
        "warnings": list(warnings.filters),
        "modes": _python_dispatch.is_in_torch_dispatch_mode(include_infra_modes=False),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def at_once(*calls):
    """Results of the calls, each in a thread of its own, which take turns as often as they can; the process stays."""
    together, before, interval = threading.Barrier(len(calls)), state(), sys.getswitchinterval()

    def call(function):
        together.wait()
        return function()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            results = [future.result() for future in [pool.submit(call, function) for function in calls]]
    finally:
        sys.setswitchinterval(interval)
    assert state() == before
    return results


def same(one, two):
    if isinstance(one, Chain):
        return torch.equal(one.draws, two.draws) and all(torch.equal(one.stats[k], two.stats[k]) for k in one.stats)
    if isinstance(one, tuple | list):
        return all(map(same, one, two))
    return np.array_equal(np.asarray(one), np.asarray(two), equal_nan=True)


def check(*calls, rounds=1):
    """Each gives in a crowd what it gives alone."""
    alone = [call() for call in calls]
    for _ in range(rounds):
        assert all(map(same, at_once(*calls), alone))


def small(*last, width=2):
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), *last, nn.Linear(width, 1))


def noisy(outputs):
    return Normal(outputs[..., 0], 1 + outputs[..., 0].square())


DATA = boxes(n=12)
NUMBERS = Data(DATA.x, torch.linspace(-1, 1, 12).double())
HEAVY = ElementPrior({"*.weight": StudentT(4.0), "*": Laplace(0.0, 1.0)})
MODELS = {
    "closed form": lambda: Posterior(small(), DATA, NormalPrior(1.0), Bernoulli()),
    "autograd": lambda: Posterior(small(nn.LayerNorm(2)), DATA, NormalPrior(1.0), Bernoulli()),
    "by distribution": lambda: Posterior(small(), NUMBERS, NormalPrior(1.0), noisy),
    "element prior": lambda: Posterior(small(nn.LayerNorm(2)), DATA, HEAVY, Bernoulli()),
}
KERNELS = {
    "HMC": HMC(0.1, 2),
    "ChEES": ChEES(0.1, 0.2),
    "NUTS": NUTS(),
    "MAMS": MAMS(0.1, 0.2),
    "MCLMC": MCLMC(),
    "replica exchange": ReplicaExchange(HMC(0.1, 2), 3),
    "SGLD": SGLD(0.01, 12),
    "SGHMC": SGHMC(0.01, 5),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_sampling(make, kernel):
    """Fails when a call in one thread writes theta into the module that another one is calling, and when streams,
    checks of distributions or the number of threads are switched for the whole process.
    """
    posterior = make()

    def draw(seed):
        return lambda: sample(posterior, kernel, 2, 2, warmup=2, seed=seed, progress=False, compile=False)

    calls = [draw(seed) for seed in range(NUM_THREADS)]
    check(*calls)
    chain = calls[0]()
    if isinstance(kernel, SGLD):  # whose lp is an estimate
        return
    lp = posterior.log_prob(chain.draws.flatten(0, 1)).view(2, 2)
    torch.testing.assert_close(chain.stats["lp"], lp, rtol=1e-9, atol=1e-9)


FUNCTIONS = {
    "outputs": lambda posterior, theta, stream: posterior.outputs(theta, posterior.data.x).detach(),
    "predict": lambda posterior, theta, stream: posterior.predict(theta, posterior.data.x),
    "log_prob_and_grad": lambda posterior, theta, stream: posterior.log_prob_and_grad(theta),
    "log_likelihoods": lambda posterior, theta, stream: posterior.log_likelihoods(theta),
    "sample_prior": lambda posterior, theta, stream: posterior.sample_prior(5, stream),
    "simulate": lambda posterior, theta, stream: posterior.simulate(theta, stream),
    "numpy": lambda posterior, theta, stream: posterior.numpy()(theta.numpy()),
    "from_draws": lambda posterior, theta, stream: Chain.from_draws(theta[None], posterior),
    "with_targets": lambda posterior, theta, stream: posterior.with_targets(posterior.data.y).log_prob(theta).detach(),
    "one by one": lambda posterior, theta, stream: [posterior.log_prob(row).detach() for row in theta],
    # By reverse mode twice: torch's forward mode, which torch.func.hessian takes, is not for several threads.
    "hessian": lambda posterior, theta, stream: jacrev(jacrev(posterior.log_prob))(theta[0]).detach(),
    "ravel": lambda posterior, theta, stream: posterior.flat.ravel(),
    "layers": lambda posterior, theta, stream: list(posterior.flat.module.state_dict().values()),
}


def thetas(posterior):
    return [posterior.sample_prior(4, torch.Generator().manual_seed(k)) for k in range(NUM_THREADS)]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_all_functions_of_one_posterior(make):
    """All of them at once, in each thread with a theta of its own."""
    posterior = make()

    def calls(theta, seed):
        def call():
            stream = torch.Generator().manual_seed(seed)
            return [function(posterior, theta, stream) for function in FUNCTIONS.values()]

        return call

    check(*[calls(theta, seed) for seed, theta in enumerate(thetas(posterior))])


def test_one_numpy_function():
    posterior = MODELS["by distribution"]()
    function = posterior.numpy()
    check(*[lambda theta=theta: function(theta.numpy()) for theta in thetas(posterior)], rounds=3)


def test_one_jax_function():
    jax = pytest.importorskip("jax")
    posterior = MODELS["autograd"]()
    both = jax.value_and_grad(posterior.jax())
    check(*[lambda theta=theta: both(theta[0].float().numpy()) for theta in thetas(posterior)])


def test_calibration_and_diagnostics():
    posterior = MODELS["by distribution"]()

    def calibrate(seed):
        arguments = {"num_datasets": 4, "num_draws": 3, "thin": 1, "seed": seed, "progress": False}
        first = {"first": lambda theta: theta[..., 0]}
        return lambda: simulation_based_calibration(posterior, HMC(0.1, 2), first, **arguments).ranks

    predictions = torch.rand(3, 40, 5, generator=torch.Generator().manual_seed(0))

    def diagnose():
        found = convergence(predictions, torch.zeros(5, 1))
        return [found.r_hat, found.ess_bulk, found.mcse]

    check(*map(calibrate, range(4)), *4 * [diagnose])


def test_an_explorer_beside_a_running_cell():
    """Its thread draws one picture after another while the same posterior is sampled."""
    posterior, shown = MODELS["element prior"](), []
    theta = thetas(posterior)[0]

    def work(draw):
        for _ in range(40):
            shown.append(posterior.predict(theta, DATA.x))
        return Figure(figsize=(0.1, 0.1), alt="nothing"), f"draw {draw}"

    explorer = Explorer({"draw": ipywidgets.IntSlider()}, work)
    alone = sample(posterior, HMC(0.1, 2), 60, 2, seed=1, progress=False)
    explorer.controls["draw"].value = 1
    chain = sample(posterior, HMC(0.1, 2), 60, 2, seed=1, progress=False)
    explorer.wait()
    assert explorer.status.value == "draw 1"
    assert all(torch.equal(one, shown[0]) for one in shown)
    assert same(chain, alone)


# --- what belongs to the process --------------------------------------------------------------------------------------


def test_streams_of_other_threads_are_their_own():
    """Draws from the global stream, and from streams that are lent, go on side by side."""

    def lent(seed):
        def draw():
            with lend_to_torch(torch.Generator().manual_seed(seed)):
                return [Normal(0.0, 1.0).sample((3,)) for _ in range(50)]

        return draw

    def global_stream():
        return [torch.rand(3) for _ in range(50)]

    before = torch.get_rng_state()
    alone = [lent(0)(), lent(1)(), lent(2)()]
    expected = global_stream()
    torch.set_rng_state(before)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(global_stream)
        assert all(map(same, [draw() for draw in (lent(0), lent(1), lent(2))], alone))
        assert same(found.result(), expected)
    torch.set_rng_state(before)
    check(lent(0), lent(1), lent(2), rounds=3)


def test_distributions_of_other_threads_are_checked():
    """Those made inside are not, those made elsewhere are, and afterwards all are."""
    entered, left = threading.Event(), threading.Event()

    def inside():
        with _unchecked():
            Normal(0.0, -1.0)
            with _unchecked():
                Normal(0.0, -1.0)
            Normal(0.0, -1.0)
            entered.set()
            left.wait(60)
            made = Normal(0.0, 1.0).expand((2,))
        with pytest.raises(ValueError, match="to satisfy the constraint"):
            Normal(0.0, -1.0)
        with pytest.raises(ValueError, match="within the support"):
            made.log_prob(torch.tensor([torch.nan, 0.0]))

    def outside():
        entered.wait(60)
        with pytest.raises(ValueError, match="to satisfy the constraint"):
            Normal(0.0, -1.0)
        left.set()

    at_once(inside, outside)
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        Normal(0.0, -1.0)


def test_a_reader_who_turns_checks_off_keeps_them_off():
    Distribution.set_default_validate_args(False)
    try:
        with _unchecked():
            pass
        assert Distribution._validate_args is False
    finally:
        Distribution.set_default_validate_args(True)


def test_numbers_of_threads_are_given_back_to_all():
    """Runs overlap, the first to begin is the first to end; threads that begin meanwhile find the reader's number."""
    posterior, found = MODELS["closed form"](), []

    def draw(num_samples):
        def call():
            before = torch.get_num_threads()
            sample(posterior, HMC(0.1, 1), num_samples, seed=0, progress=False)
            found.append((before, torch.get_num_threads()))

        return call

    at_once(*[draw(num) for num in (1, 20, 40, 60)])
    assert found == 4 * [(2, 2)]


def test_native_code_is_made_once(monkeypatch):
    """Fails when each thread makes it, which takes as many times as long."""
    made, make = [], native.Code

    def slowly(program):
        time.sleep(0.01)
        made.append(threading.get_ident())
        return make(program)

    monkeypatch.setattr(native, "Code", slowly)
    monkeypatch.setattr(native, "_CODE", {})
    posterior = MODELS["closed form"]()
    at_once(*NUM_THREADS * [lambda: posterior.density(3, compile=True)])
    assert len(made) == 1


@pytest.mark.slow
def test_native_code():
    posterior = MODELS["closed form"]()

    def draw(seed):
        return lambda: sample(posterior, HMC(0.1, 2), 50, 3, seed=seed, progress=False, compile=True)

    check(*[draw(seed) for seed in range(NUM_THREADS)])
    assert draw(0)().gradient == "closed-form, compiled"


# --- modules ----------------------------------------------------------------------------------------------------------


def test_a_module_that_is_called_while_it_is_read_and_trained():
    """The reader's module has its own parameters at all times, for whoever looks."""
    module = small()
    flat, x = FlatModule(module), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    parameters = list(module.parameters())
    theta, stop = torch.ones(3, flat.dim), threading.Event()

    def call():
        for _ in range(50):
            flat(theta, x)
            flat(theta[0], x)
        stop.set()

    def read():
        while not stop.is_set():
            assert all(one is two for one, two in zip(module.parameters(), parameters, strict=True))

    def train():
        while not stop.is_set():
            (gradient,) = torch.autograd.grad(module(x).sum(), [module[0].bias])
            assert gradient.isfinite().all()

    at_once(call, read, train)
