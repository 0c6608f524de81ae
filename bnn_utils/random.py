"""Explicit random streams: nothing in this package draws from, or seeds, a global one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnn_utils import _check

# All that torch's generator on the CPU looks at: larger seeds with the same last 32 bits would give the same draws, so
# that they are mixed first.
SEED_BITS = 32


def fresh_seed() -> int:
    """A seed by chance, from the operating system's entropy: two of them are equal once in four thousand million."""
    return int(np.random.SeedSequence().generate_state(1, np.uint32)[0])


def as_generator(seed: int | torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on ``device``: a new one for a seed, or the one passed in."""
    if isinstance(seed, torch.Generator):
        if seed.device.type != device.type:
            raise ValueError(f"the generator lies on {seed.device}, but the data on {device}")
        return seed
    number = _check.seed(seed)
    if not 0 <= number < 2**SEED_BITS:
        number = _first(np.random.SeedSequence([number < 0, abs(number)]))
    return torch.Generator(device).manual_seed(number)


def spawn(seed: int | torch.Generator, num: int, device: torch.device) -> list[torch.Generator]:
    """``num`` generators with streams of their own, by NumPy's SeedSequence; a generator passed in is advanced."""
    if isinstance(seed, torch.Generator):
        seed = _number(as_generator(seed, device))
    children = np.random.SeedSequence(_check.seed(seed)).spawn(num)
    return [torch.Generator(device).manual_seed(_first(child)) for child in children]


def _first(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])


def _number(generator: torch.Generator) -> int:
    """A seed for another stream, drawn from this one."""
    return int(_large_numbers((1,), generator))


def permutations(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Of 0, 1, ..., N - 1, C of them, ``(C, N)``: the order of whole numbers that are hardly ever equal."""
    return _large_numbers(shape, generator).argsort(dim=1)


def _large_numbers(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    largest = 2**31 - 1 if generator.device.type == "mps" else 2**62  # Apple's GPUs draw whole numbers of 32 bits
    return torch.randint(largest, shape, generator=generator, device=generator.device)


def lend_to_torch(generator: torch.Generator) -> AbstractContextManager[object]:
    """Let code that only knows torch's global stream draw from ``generator``, in this thread alone.

    Needed for torch.distributions, which take no generator. The global stream is neither read nor moved: each operator
    of torch's that draws is given the generator, and draws what it would if that were the global one.

    Raises:
        RuntimeError: while it is open, where an operator draws that takes no generator, or draws on another device.
    """
    return _Lending(generator)


class _Lending(TorchDispatchMode):
    """A mode belongs to the thread that opened it: others don't notice."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generators = {generator.device.type: generator}
        if generator.device.type != "cpu":
            # Some code for such a device also draws on the CPU, from a stream that starts with a number drawn here.
            self.generators["cpu"] = torch.Generator().manual_seed(_number(generator))

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        place = _place_of_generator(func)
        if place is None:
            # In inference mode, operators that are made of others come here whole, with the drawing inside.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            if torch.Tag.nondeterministic_seeded not in func.tags:
                return func(*args, **kwargs)
            func = _with_generator(func)
        elif kwargs.get("generator") is not None or (len(args) > place and args[place] is not None):
            return func(*args, **kwargs)  # it has one
        return func(*args[:place], **kwargs | {"generator": self._of(func, args, kwargs)})

    def _of(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Generator:
        """The generator for the device on which this call draws."""
        tensor = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
        device = kwargs.get("device") or "cpu" if tensor is None else tensor.device
        kind = torch.device(device).type
        if kind not in self.generators:
            raise RuntimeError(
                f"{func} draws on {kind}, but the generator lies on {next(iter(self.generators))}: bring what it draws "
                "from to that device"
            )
        return self.generators[kind]

    # Torch notes in variables of the process that some thread is in a mode, for torch.compile to give up. Two threads
    # that come and go would leave them set; modes that say the following don't touch them.

    # And it keeps its compiler out of modes, for which it would load all of it, in a second or more.

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


@cache
def _place_of_generator(func: OpOverload) -> int | None:
    """Which of the operator's arguments is the generator, if any is."""
    return next((k for k, argument in enumerate(func._schema.arguments) if argument.name == "generator"), None)


@cache
def _with_generator(func: OpOverload) -> OpOverload:
    """The operator's variant that takes the same arguments and a generator."""
    wanted = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        others = [(argument.name, str(argument.type)) for argument in other._schema.arguments]
        if [argument for argument in others if argument[0] != "generator"] == wanted and other is not func:
            return other
    raise RuntimeError(
        f"{func} draws from torch's global stream and takes no generator: a distribution that draws with it cannot be "
        "given a stream of its own; draw with torch.rand, torch.randn or torch.distributions"
    )


# --- numbers of a lane's own ------------------------------------------------------------------------------------------

# How many random numbers a lane needs may depend on where it goes, and no other lane may see that. So each draws a key
# from the generator, and from it follow its numbers as in SplitMix64 (Steele, Lea and Flood 2014): the n-th is
# key + n GOLDEN, mixed.
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # shifts and factors
LAST_SHIFT = 31
KEY_BITS = 24  # of each of the two uniform numbers of which a key is made: all that one in single precision has


def lane_keys(first: Tensor, second: Tensor) -> Tensor:
    """From two uniform numbers for each lane, ``(...)``: int64."""
    high, low = ((u * 2**KEY_BITS).long() for u in (first, second))
    return (high << KEY_BITS) + low


def lane_uniform(key: Tensor, number: int) -> Tensor:
    """The n-th number in [0, 1) that follows from each key, ``(...)``, float32."""
    z = key + _wrapped(number * GOLDEN)
    for shift, factor in MIXING:
        z = (z ^ _shifted(z, shift)) * _wrapped(factor)
    return _shifted(z ^ _shifted(z, LAST_SHIFT), 64 - KEY_BITS).float() * 2.0**-KEY_BITS


def _wrapped(number: int) -> int:
    """As int64 has it, which wraps around."""
    return (number + 2**63) % 2**64 - 2**63


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
