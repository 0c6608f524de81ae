"""Batches of chains on their way through an engine, in this process or in several."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils.engines import ENGINES
from bnn_utils.engines.transition import Kernel, Transition
from bnn_utils.hmc import HMCInfo
from bnn_utils.posterior import Posterior

SECONDS_BETWEEN_REPORTS = 0.5
# Elements of the widest layer, over all points and lanes, from which on two threads were seen to help (by 1.3 to 1.7).
# Below, they cost up to half the speed, and much more where other programs keep the cores busy.
ELEMENTS_FOR_THREADS = 2**19
SETTING_THREADS = threading.Lock()


class Batch(NamedTuple):
    """Chains that move together, as lanes, and share a random stream."""

    theta: Tensor  # (C, D), where they start
    generator: torch.Generator


class Job(NamedTuple):
    """What to run; nothing in it depends on where."""

    posterior: Posterior
    kernel: Kernel
    engine: str
    compile: bool
    warmup: int
    num_samples: int
    batches: list[Batch]

    @property
    def num_transitions(self) -> int:
        """Transitions of each chain."""
        return self.warmup + self.num_samples

    def num_lanes(self, batch: Batch) -> int:
        """Rows of the batch's gradients."""
        return len(batch.theta) * self.kernel.lanes_per_chain


class Progress(NamedTuple):
    done: int  # transitions of each chain
    acceptance: float  # of late
    divergences: int  # so far, in all chains


Report = Callable[[Progress], None]


class Draws(NamedTuple):
    """What one batch has drawn."""

    theta: Tensor  # (C, draws, D)
    log_prob: Tensor  # (C, draws)
    info: HMCInfo  # (C, draws)
    kernel: Kernel  # that drew them, as the warm-up left it
    ladder: dict[str, Tensor]  # (C, draws, K) each

    @classmethod
    def stack(cls, transitions: Sequence[Transition]) -> Draws:
        theta, log_prob, infos, kernels, ladders = zip(*transitions, strict=True)
        ladder = {name: torch.stack([values[name] for values in ladders], 1) for name in ladders[0]}
        return cls(torch.stack(theta, 1), torch.stack(log_prob, 1), HMCInfo.stack(infos), kernels[-1], ladder)

    def first(self, num: int) -> Draws:
        """The first ``num`` draws."""
        info = HMCInfo(*(value[:, :num] for value in self.info))
        ladder = {name: values[:, :num] for name, values in self.ladder.items()}
        return Draws(self.theta[:, :num], self.log_prob[:, :num], info, self.kernel, ladder)


class Run:
    """A job in this process: all batches in turn, one transition each, so that at any time all have come equally far.

    Attributes:
        num_draws: how many draws all chains have.
        is_compiled: whether the gradient was compiled.
        compile_time: seconds that compilation took.
        sampling_time: seconds spent on the draws, without warmup.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.num_draws, self.is_compiled = 0, False
        self.compile_time = self.sampling_time = 0.0
        self._kept: list[list[Transition]] = []

    def go(self, report: Report | None, until: Callable[[int], int] | None = None) -> None:
        """Run to the end; ``report`` is called now and then, ``until`` before each transition, for where the end is."""
        job = self.job
        until = until or (lambda done: job.num_transitions)
        # Without the bookkeeping of autograd, which a tensor this small pays for with a tenth of its time.
        with _threads(job), torch.inference_mode():
            called = time.perf_counter()
            if job.compile:
                self.is_compiled = all([job.posterior.compile(job.num_lanes(batch)) for batch in job.batches])
                self.compile_time = time.perf_counter() - called
            engine = ENGINES[job.engine]
            chains = [engine(job.kernel, job.posterior, *batch, job.compile, job.warmup) for batch in job.batches]
            done, divergences, recent = 0, 0, []
            started = reported = time.perf_counter()
            try:
                while done < until(done):
                    if done == job.warmup:
                        started = time.perf_counter()
                    group = [next(chain) for chain in chains]
                    done += 1
                    if done > job.warmup:
                        self._kept.append(group)
                    if report is None:
                        continue
                    recent.append([transition.info for transition in group])
                    # Reading a statistic waits for the device, so it is done now and then and not at every transition.
                    if done == job.num_transitions or time.perf_counter() - reported > SECONDS_BETWEEN_REPORTS:
                        infos = [HMCInfo.stack(batch) for batch in zip(*recent, strict=True)]
                        acceptance = torch.cat([info.acceptance_rate.flatten() for info in infos]).mean().item()
                        divergences += sum(int(info.diverging.sum()) for info in infos)
                        report(Progress(done, acceptance, divergences))
                        recent, reported = [], time.perf_counter()
            finally:
                self.num_draws = len(self._kept)
                self.sampling_time = time.perf_counter() - started

    def draws(self) -> list[Draws]:
        """What has been drawn, batch by batch."""
        return [Draws.stack(transitions) for transitions in zip(*self._kept, strict=True)]


class ParallelRun:
    """A job in several processes, its batches dealt out to them like cards; otherwise as `Run`.

    Each process runs a `Run` of its own. They share a small table in a file: the first row says after how many
    transitions to stop, the others how far each has come. On an interruption all go on to where the furthest is, and
    after an error all stop where it happened, so that all chains have equally many draws and none is thrown away.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self.job = job
        self.shares = [job.batches[first::workers] for first in range(min(workers, len(job.batches)))]
        self.num_draws, self.is_compiled = 0, False
        self.compile_time = self.sampling_time = 0.0
        self._draws: list[list[Draws]] = []

    def go(self, report: Report | None) -> None:
        from loky import get_reusable_executor

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "progress"
            table = np.memmap(path, np.float64, "w+", shape=(1 + len(self.shares), 3))
            table[0] = self.job.num_transitions
            executor = get_reusable_executor(max_workers=len(self.shares))
            futures = [
                executor.submit(_work, self.job._replace(batches=share), path, row)
                for row, share in enumerate(self.shares, start=1)
            ]
            try:
                interrupted = None
                while wait(futures, timeout=SECONDS_BETWEEN_REPORTS).not_done:
                    if report is not None and table[1:, 0].min() > 0:
                        done, acceptance, divergences = table[1:].T
                        report(Progress(int(done.min()), acceptance.mean().item(), int(divergences.sum())))
            except KeyboardInterrupt as error:
                interrupted = error
                table[0] = table[1:, 0].max()
            parts = [future.result() for future in futures]
            del table  # some systems don't remove a file that is mapped
        self.num_draws = min(part.num_draws for part in parts)
        self.is_compiled = all(part.is_compiled for part in parts)
        self.compile_time = max(part.compile_time for part in parts)
        self.sampling_time = max(part.sampling_time for part in parts)
        self._draws = [part.draws for part in parts]
        for error in [*(part.error for part in parts), interrupted]:
            if error is not None:
                raise error

    def draws(self) -> list[Draws]:
        """What has been drawn, batch by batch."""
        pieces = {}
        for first, share in enumerate(self._draws):
            for position, draws in enumerate(share):
                pieces[first + position * len(self._draws)] = draws.first(self.num_draws)
        return [pieces[position] for position in sorted(pieces)]


class _Part(NamedTuple):
    """What a process brings home."""

    num_draws: int
    draws: list[Draws]
    is_compiled: bool
    compile_time: float
    sampling_time: float
    error: Exception | None


def _work(job: Job, path: Path, row: int) -> _Part:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one tells the others
    table = np.memmap(path, np.float64, "r+").reshape(-1, 3)

    def report(progress: Progress) -> None:
        table[row] = progress

    def until(done: int) -> int:
        table[row, 0] = done
        return int(table[0, 0])

    run, failure = Run(job), None
    try:
        run.go(report, until)
    except Exception as error:
        error.add_note(f"It was raised in another process:\n{traceback.format_exc()}")
        failure = error
        table[0] = min(table[0, 0], table[row, 0])
    return _Part(run.num_draws, run.draws(), run.is_compiled, run.compile_time, run.sampling_time, failure)


@contextmanager
def _threads(job: Job) -> Iterator[None]:
    """One thread, except for a single large batch: smaller ones lose more by waiting for each other than they gain."""
    elements = job.num_lanes(job.batches[0]) * len(job.posterior.data) * job.posterior.width
    if not (job.compile or len(job.batches) > 1 or elements < ELEMENTS_FOR_THREADS):
        yield
        return
    before = _set_threads_here(1)
    try:
        yield
    finally:
        _set_threads_here(before)


def _set_threads_here(num: int) -> int:
    """``torch.set_num_threads`` for this Python thread alone; returns the number before.

    The number belongs to a thread, but to set it also says with which number new threads begin. Runs that overlap would
    leave there what they found of each other, so it is put back at once, by a new thread, which knows it.
    """
    with SETTING_THREADS, ThreadPoolExecutor(1) as new:
        before = torch.get_num_threads()
        if before != num:
            of_new_ones = new.submit(torch.get_num_threads).result()
            torch.set_num_threads(num)
            new.submit(torch.set_num_threads, of_new_ones).result()
    return before
