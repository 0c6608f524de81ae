"""Every kernel and engine under one roof, for tests that ask the same of all."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import pytest
import torch
from targets import generator, rotated, spread, with_moments
from torch import Tensor

from bnn_utils import HMC, Chain, ChEES, Posterior, ReplicaExchange, sample
from bnn_utils.backprop import Target
from bnn_utils.engines import ENGINES, available
from bnn_utils.engines.transition import Kernel
from bnn_utils.tempering import ExchangeState


class Sampler(NamedTuple):
    """A kernel for a posterior of about some covariance, a warm-up for those that learn, and an engine."""

    kernel: Callable[[Tensor], Kernel]
    warmup: int = 0
    engine: str = "builtin"

    def size(self, num: int) -> int:
        """How many chains where the built-in engine gets ``num``: hamiltorch draws them one after another."""
        return num if self.engine == "builtin" else max(4, num // 50)

    def draw(self, posterior: Posterior, covariance: Tensor, num_samples: int, num_chains: int, **arguments) -> Chain:
        """Through the front door."""
        return sample(
            posterior,
            self.kernel(covariance),
            num_samples,
            self.size(num_chains),
            self.warmup,
            engine=self.engine,
            progress=False,
            compile=False,
            **arguments,
        )

    def tuned(self, covariance: Tensor) -> Kernel:
        """The kernel as its warm-up on a Gaussian leaves it, for tests in which nothing may adapt."""
        kernel = self.kernel(covariance)
        if not self.warmup:
            return kernel
        stream, posterior = generator(99), with_moments(torch.zeros(len(covariance)).double(), covariance)
        start = posterior.sample_prior(64, stream)
        with torch.inference_mode():
            transitions = ENGINES[self.engine](kernel, posterior, start, stream, False, self.warmup)
            *_, last = islice(transitions, self.warmup + 1)
        return last.kernel


def hmc(mass: str) -> Callable[[Tensor], HMC]:
    def build(covariance: Tensor) -> HMC:
        inv_mass = {"identity": None, "diagonal": covariance.diagonal(), "dense": covariance}[mass]
        dense = torch.eye(len(covariance)) if inv_mass is None else inv_mass.diag() if inv_mass.ndim == 1 else inv_mass
        # Where the mass is the identity. Steps of 2 standard deviations of the narrowest direction would be unstable.
        sd = torch.linalg.eigvals(torch.linalg.solve(dense.to(covariance), covariance)).real.sqrt()
        step = 1.2 * sd.min().item() * min(1, 10 / len(sd)) ** 0.25  # the more directions, the larger the energy error
        # A step turns each direction by an angle of its own. After a quarter turn it has forgotten where it was, after
        # half a turn it is back, mirrored: of the lengths up to that, for the widest, the one that is best for all.
        angle = torch.arccos(1 - step**2 / sd**2 / 2)
        lengths = torch.arange(1, math.ceil(math.pi / angle.min()) + 1)
        return HMC(step, int(lengths[(lengths[:, None] * angle).cos().abs().max(1).values.argmin()]), inv_mass)

    return build


SAMPLERS = {
    "identity mass": Sampler(hmc("identity")),
    "diagonal mass": Sampler(hmc("diagonal")),
    "dense mass": Sampler(hmc("dense")),
    "adapted": Sampler(lambda covariance: HMC(0.1, 4), warmup=300),
    "ChEES": Sampler(lambda covariance: ChEES(), warmup=300),
    "replica exchange": Sampler(lambda covariance: ReplicaExchange(hmc("diagonal")(covariance), 8), warmup=300),
    "hamiltorch": Sampler(hmc("dense"), engine="hamiltorch"),
}


# For the network's posterior, which is no Gaussian: with these widths a third to a half of all proposals is rejected.
ROUGHLY = rotated(spread(0.3, 0.9, 20), 2)


def placed(kernel: ReplicaExchange, likelihood: Target, lanes: Tensor) -> ExchangeState:
    """The state with every lane at a place of its own, ``(C K, D)``."""
    log_likelihood, grad = likelihood.log_prob_and_grad(lanes)
    state = kernel.init(likelihood, lanes[:: kernel.num_temperatures])
    return state._replace(theta=lanes, log_likelihood=log_likelihood, grad_likelihood=grad)


def each_sampler(*but: str) -> pytest.MarkDecorator:
    """The test once for every sampler, except some."""
    return pytest.mark.parametrize(
        "sampler",
        [
            pytest.param(
                sampler,
                id=name,
                marks=pytest.mark.skipif(
                    sampler.engine not in available(), reason=f"{sampler.engine} is not installed"
                ),
            )
            for name, sampler in SAMPLERS.items()
            if name not in but
        ],
    )
