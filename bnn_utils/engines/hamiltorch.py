"""hamiltorch (Cobb, Baydin, Markham and Roberts 2019) as an engine.

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
from dataclasses import replace
from itertools import count
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from bnn_utils.adaptation import Warmup
from bnn_utils.engines.transition import Transition
from bnn_utils.hmc import HMC
from bnn_utils.posterior import Posterior

INSTALL = (
    "pip install 'hamiltorch @ git+https://github.com/AdamCobb/hamiltorch@19b627b2aabc77c1b4b78db0f860372eb1bf9778'"
)

# Held while anything of the process's is changed.
TURN = threading.RLock()


def is_installed() -> bool:
    return importlib.util.find_spec("hamiltorch") is not None


def transitions(
    kernel: HMC, posterior: Posterior, theta: Tensor, generator: torch.Generator, compile: bool = False, warmup: int = 0
) -> Iterator[Transition]:
    """Transitions of all chains from theta ``(C, D)``, one chain after the other; see `bnn_utils.engines`.

    Raises:
        ModuleNotFoundError: if hamiltorch is not installed.
    """
    hamiltorch = _import_quietly()
    log_prob = posterior.log_prob(theta).detach()
    chains_per_dataset = len(theta) // posterior.num_datasets
    posteriors = [posterior.dataset(chain // chains_per_dataset) for chain in range(len(theta))]
    learning = Warmup(kernel, warmup)
    for done in count(1):
        kernel = learning.kernel
        with torch.inference_mode(False), torch.enable_grad():  # it needs autograd, which the caller may do without
            steps = []
            sizes = kernel.draw_step_sizes(generator, theta)
            per_chain = sizes.flatten().tolist() if isinstance(sizes, Tensor) else [sizes] * len(theta)
            for own, row, size in zip(posteriors, theta, per_chain, strict=True):
                with TURN, _global_stream(generator), _default_dtype(theta.dtype), redirect_stdout(io.StringIO()):
                    steps.append(_transition(hamiltorch, own, replace(kernel, step_size=size), row))
            theta = torch.stack([end for end, _, _ in steps])
            start_energy, end_energy = theta.new_tensor([energies for _, energies, _ in steps]).unbind(-1)
            is_accept = torch.tensor([accepted for _, _, accepted in steps], device=theta.device)
            log_prob = torch.where(is_accept, posterior.log_prob(theta).detach(), log_prob)
        info = kernel.info(start_energy, end_energy, is_accept, sizes)
        yield Transition(theta, log_prob, info, kernel)
        if done <= warmup:
            learning.update(theta, info.acceptance_rate.mean())


def _transition(
    hamiltorch: ModuleType, posterior: Posterior, kernel: HMC, theta: Tensor
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
            num_steps_per_sample=int(kernel.num_steps),
            step_size=kernel.step_size,
            inv_mass=kernel.inv_mass,
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
                f"engine='hamiltorch' needs hamiltorch, which is not installed; get it with: {INSTALL}\n"
                "or leave engine='builtin', which draws from the same distribution",
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
