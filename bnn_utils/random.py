"""Explicit random streams: nothing in this package draws from, or seeds, a global one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from bnn_utils import _check


def as_generator(seed: int | torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on ``device``: a new one for a seed, or the one passed in."""
    if isinstance(seed, torch.Generator):
        if seed.device.type != device.type:
            raise ValueError(f"the generator lies on {seed.device}, but the data on {device}")
        return seed
    return torch.Generator(device).manual_seed(_check.seed(seed))


def spawn(seed: int | torch.Generator, num: int, device: torch.device) -> list[torch.Generator]:
    """``num`` generators with streams of their own, by NumPy's SeedSequence; a generator passed in is advanced."""
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (1,), generator=as_generator(seed, device), device=seed.device))
    children = np.random.SeedSequence(_check.seed(seed)).spawn(num)
    return [as_generator(int(child.generate_state(1, np.uint64)[0]), device) for child in children]


@contextmanager
def lend_to_torch(generator: torch.Generator) -> Iterator[None]:
    """Let code that only knows torch's global stream draw from ``generator``; the global stream stays as it was.

    Needed for torch.distributions and for hamiltorch, which take no generator.
    """
    if generator.device.type == "cuda":
        # Such code also draws on the CPU, whose stream starts from a number drawn here: left alone, it would be put
        # back afterwards and give the same numbers each time.
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[generator.device]):
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            torch.cuda.set_rng_state(generator.get_state(), generator.device)
            try:
                yield
            finally:
                generator.set_state(torch.cuda.get_rng_state(generator.device))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            try:
                yield
            finally:
                generator.set_state(torch.get_rng_state())
