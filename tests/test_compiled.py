"""The compiled gradient: the same numbers, when it pays, and what happens without a compiler."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnn_utils import (
    HMC,
    Bernoulli,
    Categorical,
    Data,
    Gaussian,
    LogScale,
    NormalPrior,
    Posterior,
    boxes,
    density,
    sample,
)
from bnn_utils.gradients import compiled
from bnn_utils.gradients.compiled import MAX_PARAMETERS, pays_off, unrolled


def compiler_works():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


needs_compiler = pytest.mark.skipif(not compiler_works(), reason="there is no C++ compiler")
ACTIVATIONS = [nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Softplus(), nn.Identity()]


@given(
    widths=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    activations=st.lists(st.sampled_from(ACTIVATIONS), min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_unrolled_is_the_closed_form(widths, activations, biases, seed):
    layers = []
    for (a, b), activation, bias in zip(itertools.pairwise([2, *widths, 1]), activations, biases, strict=False):
        layers += [nn.Linear(a, b, bias), activation]
    posterior = Posterior(nn.Sequential(*layers), boxes(12), NormalPrior(1.0), Gaussian(0.5), gradient="closed-form")
    theta = torch.randn(3, posterior.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_likelihood, grad = unrolled(posterior.layers, posterior.likelihood, theta.T, posterior.data.x, posterior.data.y)
    torch.testing.assert_close(log_likelihood, posterior.log_likelihood(theta), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad.T - theta, posterior.density(3).joint.grad(theta), rtol=1e-10, atol=1e-10)


class ByAutograd(Bernoulli):
    """A likelihood without a closed form of its own, whose gradient goes by autograd."""

    def distribution(self, outputs):
        return torch.distributions.Normal(outputs.squeeze(-1), 0.7, validate_args=False)

    def log_prob(self, outputs, y):
        return self.distribution(outputs).log_prob(y).sum(-1)

    def grad(self, outputs, y):
        return super(Bernoulli, self).grad(outputs, y)


@needs_compiler
@pytest.mark.parametrize("likelihood", [Bernoulli(), ByAutograd()], ids=["closed", "autograd"])
def test_compiled_is_the_uncompiled(make_posterior, theta, likelihood):
    posterior = make_posterior(likelihood=likelihood)
    mine = posterior.density(5, compile=True)
    other = posterior.density(5).joint
    assert mine.is_compiled
    for one, two in zip(mine.joint.log_prob_and_grad(theta), other.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
        assert one.is_contiguous()
    torch.testing.assert_close(mine.joint.grad(theta), other.grad(theta), rtol=1e-10, atol=1e-10)


@needs_compiler
@pytest.mark.parametrize(
    ("last", "likelihood"),
    [
        (nn.Linear(2, 3), Categorical()),
        (nn.Sequential(nn.Linear(2, 1), LogScale()), Gaussian()),
        (nn.Linear(2, 1), lambda outputs: torch.distributions.Poisson(outputs[..., 0].exp())),
    ],
    ids=["classes", "inferred noise", "a function"],
)
def test_other_likelihoods_compile(last, likelihood):
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), last)
    posterior = Posterior(net, Data(boxes(12).x, torch.arange(12) % 3), NormalPrior(1.0), likelihood)
    theta = torch.randn(3, posterior.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine = posterior.density(3, compile=True)
    other = posterior.density(3).joint
    assert mine.is_compiled
    for one, two in zip(mine.joint.log_prob_and_grad(theta), other.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@needs_compiler
def test_compiled_with_a_data_set_for_each_lane(posterior, theta):
    labels = (torch.rand(5, 80, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    together = posterior.with_targets(labels)
    mine = together.density(5, compile=True)
    other = together.density(5).joint
    assert mine.is_compiled
    for one, two in zip(mine.joint.log_prob_and_grad(theta), other.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@needs_compiler
def test_compiled_chains(posterior, capsys):
    """They follow the uncompiled ones until rounding has grown, say that they were compiled, and cost nothing twice."""
    arguments = {"num_chains": 5, "seed": 1}
    first = sample(posterior, HMC(0.05, 4), 40, compile=True, **arguments)
    assert "compiling, some 15 s unless it was done before" in capsys.readouterr().err
    again = sample(posterior, HMC(0.05, 4), 40, compile=True, progress=False, **arguments)
    plain = sample(posterior, HMC(0.05, 4), 40, compile=False, progress=False, **arguments)
    assert torch.equal(first.draws, again.draws)
    torch.testing.assert_close(first.draws[:, :20], plain.draws[:, :20], rtol=0, atol=1e-9)
    assert (first.gradient, plain.gradient) == ("closed-form, compiled", "closed-form")
    assert plain.compile_time == 0
    assert again.compile_time < 0.1


@needs_compiler
def test_workers_compile_for_themselves(posterior):
    arguments = {"num_chains": 10, "batch_size": 5, "seed": 1, "compile": True, "progress": False}
    one, two = (sample(posterior, HMC(0.05, 4), 10, workers=workers, **arguments) for workers in (1, 2))
    assert torch.equal(one.draws, two.draws)
    assert two.gradient == "closed-form, compiled"


def test_without_a_compiler():
    """It says so once, and goes on."""
    code = """
import os, torch
os.environ["CXX"] = "a-compiler-that-is-not-there"
from torch import nn
from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, sample
posterior = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Bernoulli())
plain, one, two = (sample(posterior, HMC(0.1, 1), 5, num_chains=n, seed=0, compile=c, progress=False)
                   for n, c in ((2, False), (2, True), (3, True)))
print(torch.equal(plain.draws, one.draws), one.gradient, two.num_chains)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True closed-form 3\n"
    assert done.stderr.count("RuntimeWarning: could not compile the gradient, so it runs uncompiled and slower") == 1
    assert "install g++" in done.stderr


def test_ctrl_c_that_ends_the_compiler_is_none_of_its_failures(tmp_path):
    """It interrupts the run, and the next one compiles; fails when the gradient is taken for one that can't be."""
    compiler = tmp_path / "g++"
    compiler.write_text(f"""#!/bin/sh
case "$*" in *header.hpp*) if mkdir {tmp_path}/ended 2>/dev/null; then kill -INT $$; sleep 60; fi;; esac
exec g++ "$@"
""")
    compiler.chmod(0o755)
    code = """
from torch import nn
from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, sample
posterior = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Bernoulli())
for _ in range(2):
    try:
        print(sample(posterior, HMC(0.1, 1), 5, seed=0, compile=True, progress=False).gradient)
    except KeyboardInterrupt:
        print("interrupted")
"""
    environment = os.environ | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("interrupted\nclosed-form, compiled\n", "")


def test_what_can_not_be_compiled(make_posterior):
    wide = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
    for posterior, what in (
        (make_posterior(gradient="autograd"), "20 parameters and the autograd gradient, on cpu"),
        (make_posterior(module=wide), "257 parameters and the closed-form gradient, on cpu"),
    ):
        with pytest.raises(
            ValueError, match=f"at most {MAX_PARAMETERS} parameters on the CPU; this posterior has {what}"
        ):
            sample(posterior, HMC(0.05, 4), 5, compile=True, progress=False)
        assert sample(posterior, HMC(0.05, 4), 5, progress=False).gradient == posterior.gradient


def test_when_it_pays(posterior, monkeypatch):
    """Far to either side of break-even; the decision takes work and nothing else into account."""
    layers = posterior.layers
    assert not pays_off(layers, num_points=80, num_lanes=1, num_gradients=20_000)
    assert not pays_off(layers, num_points=80, num_lanes=64, num_gradients=2_000)
    assert pays_off(layers, num_points=80, num_lanes=1024, num_gradients=200_000)
    assert pays_off(layers, num_points=80_000, num_lanes=64, num_gradients=20_000)
    tried = []
    monkeypatch.setattr(compiled, "SECONDS_TO_COMPILE", -100.0)
    monkeypatch.setattr(density, "compile_likelihood", lambda *arguments: tried.append(arguments[4]))
    sample(posterior, HMC(0.05, 4), 2, num_chains=3, progress=False)
    assert set(tried) == {3}
    sample(posterior, HMC(0.05, 4), 2, num_chains=4, compile=False, progress=False)
    assert set(tried) == {3}
