"""sample(): the one front door to all engines."""

from __future__ import annotations

import operator
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bnn_utils.chain import Chain
from bnn_utils.engines import ENGINES
from bnn_utils.hmc import HMC, HMCInfo
from bnn_utils.posterior import Posterior
from bnn_utils.random import as_generator

SECONDS_BETWEEN_REPORTS = 0.5

Transition = tuple[Tensor, Tensor, HMCInfo]


def sample(
    posterior: Posterior,
    kernel: HMC,
    num_samples: int,
    num_chains: int = 1,
    warmup: int = 0,
    init: Tensor | None = None,
    seed: int | torch.Generator = 0,
    engine: str = "builtin",
    progress: bool = True,
) -> Chain:
    """Draw chains from a posterior.

    With one chain and the same seed, both engines consume the same random numbers: a start from the prior (without
    ``init``), then per transition the momentum and one uniform. (After a transition whose energy is not finite,
    hamiltorch skips the uniform, and the two part.) On the CPU, torch runs on one thread meanwhile.

    Args:
        posterior: what to draw from.
        kernel: such as ``HMC(step_size=0.05, num_steps=4)``.
        num_samples: draws per chain.
        num_chains: how many chains; lanes of one batch in the built-in engine.
        warmup: transitions per chain before the first draw that are thrown away.
        init: where to start, ``(D,)`` for all chains or ``(C, D)``; without it, each chain at a prior draw of its own.
        seed: a number, or a generator on the posterior's device, which is advanced.
        engine: "builtin" or "hamiltorch".
        progress: show a progress bar.

    Returns:
        the chain. After an interruption (Ctrl-C, the stop button) it holds the draws made so far, with a warning.

    Raises:
        ValueError: for a count, a start, a mass or an engine that cannot be used; the message says what to change.
        ModuleNotFoundError: if the engine is not installed; the message says how to get it.
        Exception: whatever the network raises while sampling, with the draws made so far as its attribute ``chain``.
    """
    called = time.perf_counter()
    num_samples, num_chains = _whole("num_samples", num_samples, 1), _whole("num_chains", num_chains, 1)
    warmup = _whole("warmup", warmup, 0)
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; there are {', '.join(map(repr, ENGINES))}")
    kernel = _fit_mass(kernel, posterior)
    generator = as_generator(seed, posterior.device)
    theta = _starting_points(posterior, init, num_chains, generator)

    kept: list[Transition] = []
    started = called

    def chain() -> Chain:
        now = time.perf_counter()
        stats = {"lp": torch.stack([log_prob for _, log_prob, _ in kept], dim=1)}
        for name in HMCInfo._fields:
            stats[name] = torch.stack([getattr(info, name) for _, _, info in kept], dim=1)
        return Chain(
            draws=torch.stack([theta for theta, _, _ in kept], dim=1),
            stats=stats,
            names=posterior.flat.names,
            kernel=repr(kernel),
            engine=engine,
            device=str(posterior.device),
            seed=None if isinstance(seed, torch.Generator) else operator.index(seed),
            warmup=warmup,
            wall_time=now - called,
            sampling_time=finished - started,
        )

    report = _Report(warmup + num_samples, progress)
    try:
        with report, _one_thread():
            transitions = ENGINES[engine](posterior, kernel, theta, generator)
            for _ in range(warmup):
                report.add(next(transitions))
            started = time.perf_counter()
            for _ in range(num_samples):
                kept.append(next(transitions))
                report.add(kept[-1])
    except KeyboardInterrupt:
        if not kept:
            raise
        warnings.warn(
            f"interrupted: the chain holds the {len(kept):,} draws made so far, of {num_samples:,}",
            RuntimeWarning,
            stacklevel=2,
        )
    except Exception as error:
        if kept:
            finished = time.perf_counter()
            error.chain = chain()
            error.add_note(f"The {len(kept):,} draws made before this error are in its attribute 'chain'.")
        raise
    finished = time.perf_counter()
    return chain()


class _Report:
    """A progress bar with transitions per second, acceptance and divergences."""

    def __init__(self, total: int, progress: bool) -> None:
        # tqdm's bar for notebooks does not look at this variable of tqdm's.
        silenced = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
        self.bar = tqdm(total=total, unit="draw", disable=silenced or not progress)
        self.recent: list[HMCInfo] = []
        self.divergences = 0
        self.reported = time.perf_counter()

    def add(self, transition: Transition) -> None:
        if self.bar.disable:
            return
        self.recent.append(transition[2])
        self.bar.update()
        # Reading a statistic waits for the device, so it is done now and then and not at every transition.
        if time.perf_counter() - self.reported > SECONDS_BETWEEN_REPORTS:
            self._show()

    def _show(self) -> None:
        if self.recent:
            acceptance = torch.stack([info.acceptance_rate for info in self.recent]).mean().item()
            self.divergences += int(torch.stack([info.diverging for info in self.recent]).sum())
            self.bar.set_postfix_str(f"acceptance {acceptance:.2f}, divergences {self.divergences}")
            self.recent.clear()
        self.reported = time.perf_counter()

    def __enter__(self) -> _Report:
        return self

    def __exit__(self, *exception: object) -> None:
        self._show()
        self.bar.close()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small batches are faster on one thread than on several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _whole(name: str, value: float, lowest: int) -> int:
    if not (lowest <= value < float("inf") and value == int(value)):
        raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value}")
    return int(value)


def _fit_mass(kernel: HMC, posterior: Posterior) -> HMC:
    """The kernel with its mass in the posterior's dtype and on its device."""
    if kernel.inv_mass is None:
        return kernel
    if kernel.inv_mass.shape[0] != posterior.dim:
        raise ValueError(
            f"inv_mass has shape {tuple(kernel.inv_mass.shape)}, but the posterior has {posterior.dim} parameters"
        )
    return HMC(kernel.step_size, kernel.num_steps, kernel.inv_mass.to(dtype=posterior.dtype, device=posterior.device))


def _starting_points(posterior: Posterior, init: Tensor | None, num_chains: int, generator: torch.Generator) -> Tensor:
    """Where the chains start, ``(C, D)``, checked to have a finite log density."""
    if init is None:
        theta = posterior.sample_prior(num_chains, generator)
    else:
        init = torch.as_tensor(init)
        posterior.flat.check(init)
        if init.ndim == 2 and num_chains not in (1, len(init)):
            raise ValueError(f"init has {len(init)} starting points, but num_chains is {num_chains}")
        theta = init.detach().to(dtype=posterior.dtype, device=posterior.device)
        theta = theta.expand(num_chains, -1).clone() if init.ndim == 1 else theta.clone()
    log_prob = posterior.log_prob(theta).detach()
    bad = (~log_prob.isfinite()).nonzero().flatten()
    if len(bad):
        lane = int(bad[0])
        raise ValueError(
            f"chain {lane} starts where the log density is {log_prob[lane].item()}; start it elsewhere with init=, "
            f"nearer to 0 (its largest parameter is {theta[lane].abs().max().item():g})"
        )
    return theta
