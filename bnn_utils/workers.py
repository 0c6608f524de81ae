"""Processes of our own, by loky, which end when this process does. The caller's own pools are left alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

# A worker needs some seconds to start, most of them to import torch. So it waits for the next run for a while: long
# enough for a program that samples again at once, and too short for a reader to change a module that it has imported.
SECONDS_OF_IDLENESS = 5.0


class _Idle(NamedTuple):
    """A pool that no run uses now, and what will end it. (loky's own timeout would warn of workers that it ends.)"""

    pool: ProcessPoolExecutor
    timer: threading.Timer


# By process (a fork has none) and number of workers.
_idle: dict[tuple[int, int], list[_Idle]] = {}
_lock = threading.Lock()


class Workers(Executor):
    """A pool of processes; one that is lost, as with the death of one of them, is replaced at the next submission."""

    def __init__(self, num: int) -> None:
        self._num = num
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        if self._pool is None:
            self._pool = _take_pool(self._num)
        # Processes start in here. One that dies while it starts breaks the pipe over which it is told what to do.
        with _interrupts_blocked():
            try:
                return self._pool.submit(function, *args, **kwargs)
            except (BrokenExecutor, BrokenPipeError):
                self.kill()
                self._pool = _new_pool(self._num)
                return self._pool.submit(function, *args, **kwargs)

    def release(self) -> None:
        """Leave the processes, which have nothing to do, to the next run."""
        pool, self._pool = self._pool, None
        if pool is not None:
            _leave((os.getpid(), self._num), pool)

    def kill(self) -> None:
        """End the processes, whatever they are doing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)


def _take_pool(num: int) -> ProcessPoolExecutor:
    with _lock:
        waiting = _idle.get((os.getpid(), num))
        if not waiting:
            return _new_pool(num)
        found = waiting.pop()
    found.timer.cancel()
    return found.pool


def _leave(kind: tuple[int, int], pool: ProcessPoolExecutor) -> None:
    def end() -> None:
        with _lock:
            if idle not in _idle[kind]:  # a run has just taken it
                return
            _idle[kind].remove(idle)
        pool.shutdown(wait=True, kill_workers=True)

    idle = _Idle(pool, threading.Timer(SECONDS_OF_IDLENESS, end))
    idle.timer.daemon = True
    with _lock:
        _idle.setdefault(kind, []).append(idle)
    idle.timer.start()


def _new_pool(num: int) -> ProcessPoolExecutor:
    from loky import ProcessPoolExecutor

    # Its start unblocks signals, so that it must not happen while they are blocked.
    resource_tracker.ensure_running()
    return ProcessPoolExecutor(
        num,
        initializer=_start_by_value(),
        initargs=(os.getpid(),),
        # Above this growth loky takes a worker for one that leaks memory, and ends it; a new plan may be that large.
        env={"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"},
    )


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C comes after the block, and never to processes that are started in it.

    In a terminal it reaches all processes. It is for this one, which ends the others.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_by_value() -> Callable[[int], None]:
    """What a worker does first.

    A function inside a function is pickled by value, with all that is in it. One that is imported from here would
    import torch before it runs, and nobody would watch in these seconds.
    """

    def start(parent: int) -> None:
        import os
        import signal
        import threading
        import time

        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def end_with_parent() -> None:
            # The kernel gives orphans another parent. On Windows it doesn't, and orphans end when they have been idle.
            while os.getppid() == parent:
                time.sleep(0.25)
            os._exit(1)

        threading.Thread(target=end_with_parent, daemon=True).start()

    return start
