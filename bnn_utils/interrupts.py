"""Ctrl-C and SIGTERM while a run is under way: they are noted, and looked at between segments.

A KeyboardInterrupt that is raised wherever Python happens to be can leave torch in inference mode, a lock taken or a
draw half stored. Segments take a fraction of a second, so that nobody waits; only what takes longer, such as a
compilation or the transitions of a large network, is broken off after all.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# From a signal until what is still running is broken off.
SECONDS_OF_PATIENCE = 0.8

# SIGINT comes first and goes last: from then on, until then, nothing is raised.
DEFAULTS: dict[signal.Signals, Callable[[int, FrameType | None], Any] | signal.Handlers] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class Interrupts:
    """Whether the reader wants a run to end.

    Attributes:
        came: at least one signal did. Those after it are forgotten: they lose no draws.
    """

    def __init__(self) -> None:
        self.came = False
        self._since = 0.0
        self._is_breakable = False
        self._over = threading.Event()
        self._insisting: threading.Thread | None = None

    def check(self) -> None:
        """Raise a KeyboardInterrupt if a signal came."""
        if self.came:
            raise KeyboardInterrupt

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """What may take long, and is broken off by a KeyboardInterrupt where it does."""
        self._is_breakable = True
        try:
            self.check()
            yield
        finally:
            self._is_breakable = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        now = time.monotonic()
        if not self.came:
            self.came, self._since = True, now
            if self._is_breakable:
                self._insisting = threading.Thread(target=self._insist, args=(number,), daemon=True)
                self._insisting.start()
        elif self._is_breakable and now - self._since >= SECONDS_OF_PATIENCE:
            self._is_breakable = False
            raise KeyboardInterrupt

    def _insist(self, number: int) -> None:
        """Send the signal once more when patience ends."""
        if not self._over.wait(SECONDS_OF_PATIENCE) and self._is_breakable:
            if hasattr(signal, "pthread_kill"):
                main = threading.main_thread().ident
                assert main is not None  # it has been started
                signal.pthread_kill(main, number)
            else:  # Windows, where it doesn't wake a thread that waits for the system
                signal.raise_signal(number)

    def end(self) -> None:
        """Nothing insists any more after this."""
        self._over.set()
        if self._insisting is not None:
            self._insisting.join()


@contextmanager
def noted() -> Iterator[Interrupts]:
    """Note signals in the block, and put the handlers back.

    Signals are for the main thread: in another one nothing is noted. Where the program has a handler of its own, that
    goes on to handle the signal, and what it raises is raised.
    """
    interrupts = Interrupts()
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number, default in DEFAULTS.items() if is_main and signal.getsignal(number) is default]
    try:
        for number in ours:
            signal.signal(number, interrupts.note)
        yield interrupts
    finally:
        interrupts.end()
        for number in reversed(ours):
            signal.signal(number, DEFAULTS[number])
