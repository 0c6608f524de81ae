"""The one place where ArviZ is imported: late, because it is slow, and without its once-a-day notice."""

from __future__ import annotations

import threading
import warnings
from functools import cache
from types import ModuleType

IMPORTING = threading.Lock()  # which warnings are shown is for the whole process


@cache
def arviz() -> ModuleType:
    with IMPORTING, warnings.catch_warnings():
        # Shown on one import a day only, so that a stored notebook would differ on some days.
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz

    return arviz
