"""How much memory large calls take, each in a process of its own: never what all draws and points need at once."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from bnn_utils import Bernoulli, Gaussian, NormalPrior, Posterior, boxes, network
from bnn_utils import posterior as posterior_module

# Gigabytes, beside those that Python and the libraries have once they are imported: 0.2 with torch for the CPU alone,
# and 0.5 with what it needs for CUDA.
LIMIT = 1.2

START = """
import resource
import torch
from torch import nn
from bnn_utils import SGHMC, Categorical, Chain, Data, Gaussian, NormalPrior, Posterior, sample
from bnn_utils.starts import check_starts

stream = torch.Generator().manual_seed(0)

def images(num):
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 16, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(16 * 14 * 14, 10),
    )
    data = Data(torch.randn(num, 1, 28, 28, generator=stream), torch.arange(num) % 10)
    return Posterior(net, data, NormalPrior(100.0), Categorical())

def points(num, width, gradient="auto"):
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    x = torch.randn(num, 2, generator=stream)
    return Posterior(net, Data(x, x[:, 0]), NormalPrior(1.0), Gaussian(0.1), gradient)

def parameters(num):
    draws = torch.randn(8, 1500, num, generator=stream)
    names = [str(k) for k in range(num)]
    return Chain(draws, {}, names, "", "", "cpu", 0, 0, 1.0, 0.0, 1.0)

# On Linux getrusage tells a process that a large one started the peak of that one, from before it became its own.
def peak():
    try:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
"""
END = "print((peak() - before) / 2**20)"
SITUATIONS = {
    "predictions of 400 images by 100 networks": "p = images(400); p.predict(p.sample_prior(100, stream), p.data.x)",
    "predictions at 100,000 points": "p = points(100_000, 50); p.predict(p.sample_prior(16, stream), p.data.x)",
    "targets at 100,000 points": "p = points(100_000, 50); p.predictive_draws(p.sample_prior(16, stream), p.data.x, 0)",
    "draws from elsewhere, 100,000 points": """
p = points(100_000, 2); Chain.from_draws(p.sample_prior(2000, stream).view(4, 500, -1), p)""",
    "the start of 256 chains, 20,000 points": "p = points(20_000, 50); check_starts(p, p.sample_prior(256, stream))",
    "the gradient of 24 networks, 100,000 points": """
p = points(100_000, 50, "autograd"); p.log_prob_and_grad(p.sample_prior(24, stream))""",
    "the gradient of 32 networks, 400 images": "p = images(400); p.log_prob_and_grad(p.sample_prior(32, stream))",
    "tables of 20,201 parameters": "c = parameters(20_201); c.quantiles(); c.summary()",
}


def peak(code):
    """Gigabytes more than after all imports."""
    run = subprocess.run([sys.executable, "-c", f"{START}\n{code}\n{END}"], capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS)
def test_memory_is_bounded(situation):
    assert peak(SITUATIONS[situation]) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["auto", "autograd"])
def test_a_million_points_in_minibatches(gradient):
    """Of 20 numbers each, through 64 and 64 units: the start, which looks at all of them, and an epoch of two chains.

    Fails when all are copied in a step or an epoch, and when a gradient keeps what all of them went through.
    """
    code = f"""
x = torch.randn(1_000_000, 20, generator=stream)
net = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
posterior = Posterior(net, Data(x, x[:, 0]), NormalPrior(1.0), Gaussian(0.5), "{gradient}")
sample(posterior, SGHMC(1e-7, 5_000), 1, 2, seed=0, progress=False)"""
    assert peak(code) < 0.7


# --- what it rests on: a measure of what networks write, and blocks that add up ---------------------------------------


class ByFunctions(nn.Module):
    """What modules' hooks would not see."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2))

    def forward(self, x):
        wide = torch.sin(x.repeat(1, 50))  # 2 x 100 numbers
        return nn.functional.linear(wide.view(-1, 50, 2).mean(1), self.weight)  # 2 + 1


@pytest.mark.parametrize(
    ("module", "numbers"),
    [
        (nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 1)), 101),
        (ByFunctions(), 203),
        (nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(16, 1)), 17),
    ],
)
def test_what_a_network_writes(module, numbers):
    posterior = Posterior(module, boxes(12), NormalPrior(1.0), Gaussian(1.0))
    assert posterior.network._cost.per_point == 8 * numbers


@pytest.mark.parametrize("block", [1, 101 * 8 * 7, 101 * 8 * 80, 3 * 101 * 8 * 80])
@pytest.mark.parametrize("num_datasets", [1, 6])
def test_blocks_of_lanes_and_points_add_up(block, num_datasets, monkeypatch):
    """By autograd, from a point and a lane at a time to all at once; fails where a block is left out."""

    def make():
        net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 1))
        one = Posterior(net, boxes(), NormalPrior(1.0), Bernoulli(), gradient="autograd")
        labels = (torch.rand(6, 80, generator=torch.Generator().manual_seed(1)) < 0.5).double()
        return one.with_targets(labels) if num_datasets == 6 else one

    whole = make()
    theta = 0.3 * whole.sample_prior(6, torch.Generator().manual_seed(2))
    monkeypatch.setattr(network, "BLOCK_BYTES", block)
    monkeypatch.setattr(posterior_module, "BLOCK_BYTES", block)
    parts = make()
    assert (len(parts.network.blocks), parts.network.num_lanes) != (1, whole.network.num_lanes)
    with torch.inference_mode():
        found = parts.density(6).joint.log_prob_and_grad(theta)
        split = [part.log_prob_and_grad(theta) for part in (parts.density(6).prior, parts.density(6).likelihood)]
    for one, expected in zip(found, whole.density(6).joint.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-11)
    for k in range(2):
        torch.testing.assert_close(split[0][k] + split[1][k], found[k], rtol=1e-12, atol=1e-11)
    assert torch.equal(parts.density(6).joint.grad(theta), found[1])
    torch.testing.assert_close(parts.log_prob(theta), found[0], rtol=1e-12, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(parts.log_prob(theta), found[0], rtol=1e-12, atol=1e-11)
    theta.requires_grad_()
    (grad,) = torch.autograd.grad(parts.log_prob(theta).sum(), theta)
    torch.testing.assert_close(grad, found[1], rtol=1e-12, atol=1e-11)
