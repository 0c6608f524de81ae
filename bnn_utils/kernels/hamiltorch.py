"""hamiltorch (Cobb, Baydin, Markham and Roberts 2019) as a kernel.

Written for version 0.4.1 at commit 19b627b. Its `sample` is called for one transition at a time: all it knows between
transitions is the position, so the draws are the same as in one call, and that way an interruption loses nothing and
its burn-in (which, on a rejection, can go back to the starting point) is never used.

It draws from torch's global stream, in torch's default dtype, and prints: all of these belong to the whole process, so
that runs in several threads take turns, transition by transition. Other threads meanwhile may find the default dtype to
be that of theta, draw from the stream that was lent, which changes its draws, and miss what they print.
"""

from __future__ import annotations

import importlib.util
import io
import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.adaptation import Warmup
from bnn_utils.kernels.base import Info, acceptance_rate
from bnn_utils.kernels.hmc import HMC, Metric, begin, jittered, learned, mass_of

if TYPE_CHECKING:
    from bnn_utils.density import Density
    from bnn_utils.posterior import Posterior

INSTALL = (
    "pip install 'hamiltorch @ git+https://github.com/AdamCobb/hamiltorch@19b627b2aabc77c1b4b78db0f860372eb1bf9778'"
)

# Held while anything of the process's is changed.
TURN = threading.RLock()


def is_installed() -> bool:
    return importlib.util.find_spec("hamiltorch") is not None


class HamiltorchState(NamedTuple):
    """Where the lanes are, with what they move, and what a warm-up has learned so far."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    step_size: float
    jitter: float
    metric: Metric
    warmup: Warmup | None


@dataclass(frozen=True, eq=False)
class Hamiltorch:
    """HMC by hamiltorch, one chain after the other; arguments and draws as of `HMC`.

    With one chain and the same seed, both consume the same random numbers. (After a transition whose energy is not
    finite, hamiltorch skips the uniform, and the two part.)

    Raises:
        TypeError, ValueError: as `HMC`.
        ModuleNotFoundError: when it is to sample and hamiltorch is not installed; the message says how to get it.
    """

    step_size: float
    num_steps: int
    inv_mass: Tensor | None = None
    jitter: float | None = None
    dense_mass: bool = False

    lanes_per_chain: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.num_steps is None:
            raise TypeError(
                "num_steps must be a whole number, got None: hamiltorch finds none; HMC(), with nothing given, does"
            )
        _check.settle(self, **vars(self._as_hmc()))

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> HamiltorchState:
        """The state of lanes at theta, shape ``(C, D)``."""
        _import_quietly()
        return HamiltorchState(theta, density.posterior.log_prob(theta).detach(), *begin(self, theta, num_warmup))

    def step(
        self, density: Density, generator: torch.Generator, state: HamiltorchState
    ) -> tuple[HamiltorchState, Info]:
        """One transition of each lane."""
        hamiltorch, posterior = _import_quietly(), density.posterior
        lanes_per_dataset = len(state.theta) // posterior.num_datasets
        with torch.inference_mode(False), torch.enable_grad():  # it needs autograd, which the caller may do without
            before, steps = state.theta.clone(), []
            sizes = jittered(state.step_size, state.jitter, generator, before)
            per_lane = sizes.flatten().tolist() if isinstance(sizes, Tensor) else [sizes] * len(before)
            inv_mass = None if state.metric.inv_mass is None else state.metric.inv_mass.clone()
            for lane, (row, size) in enumerate(zip(before, per_lane, strict=True)):
                own = posterior.dataset(lane // lanes_per_dataset)
                with TURN, _global_stream(generator), _default_dtype(row.dtype), redirect_stdout(io.StringIO()):
                    steps.append(_transition(hamiltorch, own, self, size, inv_mass, row))
            theta = torch.stack([end for end, _, _ in steps])
            start_energy, end_energy = theta.new_tensor([energies for _, energies, _ in steps]).unbind(-1)
            is_accept = torch.tensor([accepted for _, _, accepted in steps], device=theta.device)
            log_prob = torch.where(is_accept, posterior.log_prob(theta).detach(), state.log_prob.clone())
        step_size = sizes.squeeze(-1) if isinstance(sizes, Tensor) else sizes
        energies = {"start_energy": start_energy, "end_energy": end_energy}
        stats = {"is_accept": is_accept, "n_steps": self.num_steps, "step_size": step_size, **energies}
        state = state._replace(theta=theta, log_prob=log_prob)
        if state.warmup is not None:
            state = state._replace(**learned(state.warmup, theta, acceptance_rate(start_energy, end_energy)))
        return state, Info(theta, log_prob, stats)

    def adapted(self, state: HamiltorchState) -> Hamiltorch:
        """The kernel with the step size, the jitter and the mass of a state."""
        return replace(self, step_size=state.step_size, jitter=state.jitter or self.jitter, **mass_of(self, state))

    def __repr__(self) -> str:
        return repr(self._as_hmc()).replace("HMC", "Hamiltorch")

    def _as_hmc(self) -> HMC:
        return HMC(self.step_size, self.num_steps, self.inv_mass, self.jitter, self.dense_mass)


def _transition(
    hamiltorch: ModuleType,
    posterior: Posterior,
    kernel: Hamiltorch,
    step_size: float,
    inv_mass: Tensor | None,
    theta: Tensor,
) -> tuple[Tensor, tuple[float, float], bool]:
    """One transition from theta ``(D,)``: where it ends, the energies at its two ends, and whether it was accepted."""
    energies: list[float] = []
    hamiltonian = hamiltorch.samplers.hamiltonian

    def listen(*args: object, **kwargs: object) -> Tensor:
        energy = hamiltonian(*args, **kwargs).detach()  # with its graph, torch warns when hamiltorch reads its value
        energies.append(float(energy))
        return energy

    # hamiltorch computes the energies at both ends of a trajectory, and returns neither.
    with patch.object(hamiltorch.samplers, "hamiltonian", listen):
        start, end = hamiltorch.sample(
            log_prob_func=posterior.log_prob,
            params_init=theta,
            num_samples=1,
            num_steps_per_sample=kernel.num_steps,
            step_size=step_size,
            inv_mass=inv_mass,
            burn=-1,
            verbose=False,
        )
    # Where an energy is not finite it raises an error of its own and rejects.
    start_energy, end_energy = (*energies, math.inf, math.inf)[:2]
    return end, (start_energy, end_energy), not torch.equal(start, end)


def _import_quietly() -> ModuleType:
    """hamiltorch, without what its import does: seeding Python's, NumPy's and torch's global generators."""
    with TURN:
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (guarded, not used)
        try:
            with torch.random.fork_rng():
                import hamiltorch
        except ModuleNotFoundError as error:
            if error.name != "hamiltorch":
                raise
            raise ModuleNotFoundError(
                f"the kernel Hamiltorch needs hamiltorch, which is not installed; get it with: {INSTALL}\n"
                "or take the kernel HMC, which draws from the same distribution",
                name="hamiltorch",
            ) from error
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
    return hamiltorch


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """hamiltorch draws its uniforms in the default dtype; they should have theta's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _global_stream(generator: torch.Generator) -> Iterator[None]:
    """torch's global stream is that of ``generator``, which advances; afterwards the global one is what it was."""
    is_cuda = generator.device.type == "cuda"
    with torch.random.fork_rng(devices=[generator.device] if is_cuda else []):
        if is_cuda:
            # hamiltorch also draws on the CPU, whose stream starts from a number drawn here: left alone, it would be
            # put back afterwards and give the same numbers each time.
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            torch.cuda.set_rng_state(generator.get_state(), generator.device)
        else:
            torch.set_rng_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.cuda.get_rng_state(generator.device) if is_cuda else torch.get_rng_state())
