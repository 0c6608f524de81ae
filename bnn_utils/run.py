"""Runs: chains on their way, segment by segment, in this process or in others.

A segment is some transitions of one batch of chains, from one checkpoint to the next. It is pure: the same plan and
checkpoint give the same draws, in any process, as often as wanted. Progress, interruption, saving, and the death of a
worker are all handled between segments. How long a segment is depends on the clock, and never changes a draw.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnn_utils.checkpoints import Checkpoint
from bnn_utils.density import Density
from bnn_utils.kernels.base import Info, Kernel, check_info, first_lost
from bnn_utils.posterior import Posterior

SECONDS_OF_SEGMENT = 0.2
# Elements of the widest layer, over all points and lanes, from which on two threads were seen to help (by 1.3 to 1.7).
# Below, they cost up to half the speed, and much more where other programs keep the cores busy.
ELEMENTS_FOR_THREADS = 2**19
SETTING_THREADS = threading.Lock()


@dataclass(frozen=True, eq=False)
class Plan:
    """What to run for a batch of chains; nothing in it depends on where.

    Attributes:
        posterior, kernel: what to draw from, and how.
        num_chains: of the batch.
        num_warmup: transitions in which the kernel adapts.
        compile: with the gradient compiled.
        one_thread: of torch, whose rounding depends on it. Native code takes as many as torch had before: its
            rounding doesn't.
    """

    posterior: Posterior
    kernel: Kernel
    num_chains: int
    num_warmup: int
    compile: bool
    one_thread: bool
    # Densities that no thread works with now: laying out their memory takes longer than a call of them.
    idle: list[Density] = field(default_factory=list, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"idle": []}

    @contextmanager
    def density(self) -> Iterator[Density]:
        """A density for this thread alone, while transitions are made."""
        num_threads, threads = torch.get_num_threads(), threads_of_torch(1 if self.one_thread else None)
        # Without the bookkeeping of autograd, which a tensor this small pays for with a tenth of its time.
        with threads, torch.inference_mode():
            try:
                density = self.idle.pop()
            except IndexError:  # there is none, or other threads have them all
                density = self.posterior.density(self.num_chains * self.kernel.lanes_per_chain, self.compile)
            density.share_out(num_threads)
            try:
                yield density
            finally:
                self.idle.append(density)


def begin(plan: Plan, theta: Tensor, generator: torch.Generator) -> Checkpoint:
    """Where a batch that starts at theta ``(C, D)`` sets out; the generator is as far as its draws of the starts."""
    with plan.density() as density:
        state = plan.kernel.init(density, theta, plan.num_warmup)
    return Checkpoint(state, generator.get_state(), 0)


def advance(plan: Plan, start: Checkpoint, num: int) -> tuple[Checkpoint, Info]:
    """The next ``num`` transitions of a batch: where they end, and what is recorded of them, ``(C, num, ...)``.

    Pure: same arguments, same result, in any process.
    """
    with plan.density() as density:
        return _advance(plan, density, start, num, [])


def _advance(plan: Plan, density: Density, start: Checkpoint, num: int, made: list[Info]) -> tuple[Checkpoint, Info]:
    """The same; after an exception ``made`` holds what is recorded of the transitions before."""
    generator = torch.Generator(plan.posterior.device)
    generator.set_state(start.rng)
    state, kernel, (num_chains, dim) = start.state, plan.kernel, (plan.num_chains, density.dim)
    at_once = kernel.steps(density, generator, state, num) if hasattr(kernel, "steps") else NotImplemented
    if at_once is not NotImplemented:
        state, info = at_once
        check_info(kernel, info, (num_chains, num, dim), density.dtype)
    else:
        for _ in range(num):
            state, info = kernel.step(density, generator, state)
            if not made:
                check_info(kernel, info, (num_chains, dim), density.dtype)
            made.append(info)
        info = Info.stack(made)
    lost = first_lost(info)
    if lost is not None:
        del made[lost:]
        raise ValueError(
            f"{type(kernel).__name__} went to where theta or the log density is not a finite number, in transition "
            f"{start.done + lost + 1}: a kernel rejects such proposals, or takes smaller steps"
        )
    return Checkpoint(state, generator.get_state(), start.done + num), info


class Segment(NamedTuple):
    """What comes of a segment."""

    end: Checkpoint | None  # None where it ended with an error
    info: Info | None  # of all of its transitions, or of those before the error
    seconds: float  # that the transitions took
    preparation: float = 0.0  # seconds before, of which compilation may be many
    is_compiled: bool = False
    error: BaseException | None = None


def segment(plan: Plan, start: Checkpoint, num: int) -> Segment:
    """`advance`, with what it made before an exception: nothing that was drawn is lost."""
    made: list[Info] = []
    started = called = time.perf_counter()
    try:
        with plan.density() as density:
            started = time.perf_counter()
            end, info = _advance(plan, density, start, num, made)
    except BaseException as error:
        before = Info.stack(made) if made else None
        return Segment(None, before, time.perf_counter() - started, started - called, error=error)
    return Segment(end, info, time.perf_counter() - started, started - called, density.is_compiled)


def next_length(num: int, seconds: float, wanted: float = SECONDS_OF_SEGMENT) -> int:
    """How many transitions to make next, after ``num`` of them have taken so many seconds."""
    return max(1, min(4 * num, int(num * wanted / max(seconds, 1e-9))))


def needs_one_thread(posterior: Posterior, num_rows: int, compile: bool, num_batches: int) -> bool:
    """Several batches, and small ones, by points of all: they lose more by waiting for each other than they gain.

    Native code has threads of its own, and leaves torch too little to be worth the change.
    """
    return num_batches > 1 or (not compile and num_rows * posterior.width < ELEMENTS_FOR_THREADS)


@contextmanager
def threads_of_torch(num: int | None) -> Iterator[None]:
    """``torch.set_num_threads`` for this Python thread alone, or nothing.

    The number belongs to a thread, but to set it also says with which number new threads begin. Runs that overlap would
    leave there what they found of each other, so it is put back at once, by a new thread, which knows it.
    """
    before = torch.get_num_threads()
    if num in (None, before):
        yield
        return
    _set_threads(num)
    try:
        yield
    finally:
        _set_threads(before)


def _set_threads(num: int) -> None:
    with SETTING_THREADS, ThreadPoolExecutor(1) as new:
        of_new_ones = new.submit(torch.get_num_threads).result()
        torch.set_num_threads(num)
        new.submit(torch.set_num_threads, of_new_ones).result()
