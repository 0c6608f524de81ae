"""Explicit random streams: nothing in this package draws from, or seeds, a global one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def as_generator(seed: int | torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on ``device``: a new one for a seed, or the one passed in."""
    if isinstance(seed, torch.Generator):
        if seed.device.type != device.type:
            raise ValueError(f"the generator lies on {seed.device}, but the data on {device}")
        return seed
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def lend_to_torch(generator: torch.Generator) -> Iterator[None]:
    """Let code that only knows torch's global stream draw from ``generator``; the global stream stays as it was.

    Needed for torch.distributions and for hamiltorch, which take no generator.
    """
    device = generator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        get, put = (
            (lambda: torch.cuda.get_rng_state(device), lambda state: torch.cuda.set_rng_state(state, device))
            if device.type == "cuda"
            else (torch.get_rng_state, torch.set_rng_state)
        )
        put(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(get())
