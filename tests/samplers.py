"""Every kernel under one roof, for tests that ask the same of all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bnn_utils import HMC, MAMS, NUTS, Chain, ChEES, Hamiltorch, Posterior, ReplicaExchange, Symmetric, sample, sampling
from bnn_utils.density import Density
from bnn_utils.kernels import hamiltorch
from bnn_utils.kernels.base import Kernel
from bnn_utils.kernels.path import path_of
from bnn_utils.kernels.replica_exchange import ExchangeState
from own_kernels import AdaptingWalk, ManyAtOnce, RandomWalk
from targets import rotated, spread, with_moments


class Sampler(NamedTuple):
    """A kernel for a posterior of about some covariance, and how much it is asked to do."""

    kernel: Callable[[Tensor], Kernel]
    warmup: int = 0  # of those that learn
    thin: int = 1
    is_slow: bool = False  # it draws chains one after another
    fewest_parameters: int = 1  # with which it can do anything

    def size(self, num: int) -> int:
        """How many chains where the others get ``num``."""
        return max(4, num // 50) if self.is_slow else num

    def draw(self, posterior: Posterior, covariance: Tensor, num_samples: int, num_chains: int, **arguments) -> Chain:
        """Through the front door."""
        return sample(
            posterior,
            self.kernel(covariance),
            num_samples,
            self.size(num_chains),
            self.warmup,
            progress=False,
            thin=self.thin,
            **arguments,
        )

    def tuned(self, covariance: Tensor) -> Kernel:
        """The kernel as its warm-up on a Gaussian leaves it, for tests in which nothing may adapt."""
        kernel = self.kernel(covariance)
        if not self.warmup:
            return kernel
        posterior = with_moments(torch.zeros(len(covariance)).double(), covariance)
        return sample(posterior, kernel, 1, 64, self.warmup, seed=99, progress=False).kernel


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


def hamiltorch_hmc(covariance: Tensor) -> Hamiltorch:
    kernel = hmc("dense")(covariance)
    return Hamiltorch(kernel.step_size, kernel.num_steps, kernel.inv_mass)


def walk(covariance: Tensor) -> Tensor:
    """From noise to steps that are accepted more often than not, in all directions alike (Roberts et al. 1997)."""
    return 1.5 / len(covariance) ** 0.5 * torch.linalg.cholesky(covariance)


SAMPLERS = {
    "identity mass": Sampler(hmc("identity")),
    "diagonal mass": Sampler(hmc("diagonal")),
    "dense mass": Sampler(hmc("dense")),
    "adapted": Sampler(lambda covariance: HMC(0.1, 4), warmup=300),
    "all found": Sampler(lambda covariance: HMC(), warmup=300),
    "ChEES": Sampler(lambda covariance: ChEES(), warmup=300),
    "NUTS": Sampler(lambda covariance: NUTS(), warmup=300),
    "MAMS": Sampler(lambda covariance: MAMS(), warmup=300, fewest_parameters=2),
    "replica exchange": Sampler(lambda covariance: ReplicaExchange(hmc("diagonal")(covariance), 8), warmup=300),
    "fitted reference": Sampler(
        lambda covariance: ReplicaExchange(hmc("diagonal")(covariance), 8, reference=2 * covariance.diagonal().sqrt()),
        warmup=300,
    ),
    "symmetric": Sampler(lambda covariance: Symmetric(hmc("diagonal")(covariance), every=2)),
    "hamiltorch": Sampler(hamiltorch_hmc, is_slow=True),
    # They need about as many steps for a draw as there are parameters.
    "random walk": Sampler(lambda covariance: RandomWalk(walk(covariance)), thin=10),
    "adapting walk": Sampler(lambda covariance: AdaptingWalk(walk(covariance), 10.0), warmup=300, thin=10),
    "many at once": Sampler(lambda covariance: ManyAtOnce(walk(covariance)), thin=10),
}
WALKS = ("random walk", "adapting walk", "many at once")


# For the network's posterior, which is no Gaussian: with these widths a third to a half of all proposals is rejected.
ROUGHLY = rotated(spread(0.3, 0.9, 20), 2)


def density_for(posterior: Posterior, num_lanes: int) -> Density:
    """As `sample` makes it: in native code, where there is some."""
    return posterior.density(num_lanes, compile=sampling.can_be_native(posterior))


def placed(kernel: ReplicaExchange, density: Density, lanes: Tensor, num_warmup: int = 0) -> ExchangeState:
    """The state with every lane at a place of its own, ``(C K, D)``."""
    log_likelihood, grad = path_of(density, kernel.reference).ratio.log_prob_and_grad(lanes)
    state = kernel.init(density, lanes[:: kernel.num_temperatures], num_warmup)
    return state._replace(theta=lanes, log_likelihood=log_likelihood, grad_likelihood=grad)


def swap_rates(before: ExchangeState) -> Tensor:
    """Probabilities of the swaps that a transition from a state proposes, ``(C, K - 1)``."""
    log_likelihood = before.log_likelihood.view(before.replica.shape)
    return (-before.ladder.inverse_temperatures.diff() * log_likelihood.diff()).clamp(max=0).exp()


needs_hamiltorch = pytest.mark.skipif(not hamiltorch.is_installed(), reason="hamiltorch is not installed")


def each_sampler(*but: str) -> pytest.MarkDecorator:
    """The test once for every sampler, except some."""
    return pytest.mark.parametrize(
        "sampler",
        [
            pytest.param(sampler, id=name, marks=[needs_hamiltorch] if name == "hamiltorch" else [])
            for name, sampler in SAMPLERS.items()
            if name not in but
        ],
    )
