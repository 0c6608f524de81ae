"""What public functions ask of their arguments, so that a wrong call ends where it was made, and in plain words.

A number is also one of NumPy's or a tensor without dimensions; True and False are none. Values come back as the rest of
the library takes them: numbers as Python's, arrays as tensors.
"""

from __future__ import annotations

import math
import numbers
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def told(value: object) -> str:
    """A value in an error's words: itself where it is short, else what it is."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, (Tensor, np.ndarray)):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)} and {value.dtype}"
    if value is None or isinstance(value, (str, bytes, bool, np.bool_, numbers.Number)):
        return f"{value!r:.60}"
    return f"an object of type {type(value).__name__}"


def instance(name: str, value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raise unless the value is of a kind, in words: ``wanted`` is what to pass."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {wanted}, got {told(value)}")


def number(name: str, value: Any, wanted: str = "a number") -> float:
    """A real number, maybe NaN or infinite."""
    if type(value) in (float, int):  # in a hurry: kernels are made anew in every transition of a warm-up
        return value
    plain = value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise TypeError(f"{name} must be {wanted}, got {told(value)}")
    return plain if isinstance(plain, int | float) else float(plain)  # such as a Fraction


def positive(name: str, value: Any) -> float:
    plain = number(name, value)
    if not 0 < plain < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {plain}")
    return float(plain)


def whole(name: str, value: Any, lowest: int, highest: float = math.inf) -> int:
    """A whole number between two others; 1e3 is one."""
    wanted = f"a whole number of at least {lowest}" + (f" and at most {highest}" if highest < math.inf else "")
    plain = number(name, value, wanted)
    if not (lowest <= plain <= highest and plain < math.inf and plain == int(plain)):
        raise ValueError(f"{name} must be {wanted}, got {plain}")
    return int(plain)


def seed(value: Any) -> int:
    """A whole number of any size and sign."""
    wanted = "a whole number or a torch.Generator"
    if isinstance(value, np.random.Generator | np.random.RandomState):
        raise TypeError(f"seed must be {wanted}, got a generator of NumPy's: pass int(rng.integers(2**32))")
    plain = number("seed", value, wanted)
    if not isinstance(plain, numbers.Integral):
        raise TypeError(f"seed must be {wanted}, got {told(value)}")
    return int(plain)


def settle(frozen: object, **values: Any) -> None:
    """Set fields of a frozen dataclass, while it is made, to what they mean."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def posterior(value: object) -> None:
    from bnn_utils.posterior import Posterior  # which imports this module

    instance("posterior", value, Posterior, "a Posterior, as by Posterior(module, data, prior, likelihood)")


def generator(value: object) -> None:
    instance("generator", value, torch.Generator, "a torch.Generator, such as torch.Generator().manual_seed(0)")


def flag(name: str, value: Any) -> bool:
    instance(name, value, (bool, np.bool_), "True or False")
    return bool(value)


def choice(name: str, value: object, choices: Iterable[object]) -> None:
    if not any(value is one or (isinstance(value, str) and value == one) for one in choices):
        *most, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {told(value)}")


def tensor(name: str, value: Any) -> Tensor:
    """Dense real numbers: a tensor as it is; what NumPy can make an array of, as a copy in NumPy's dtype.

    Raises:
        TypeError: if it is no array of numbers.
        ValueError: if it is complex or sparse.
    """
    if not isinstance(value, Tensor):
        wanted = f"{name} must be a tensor or an array of numbers"
        if isinstance(value, (str, bytes, bool, dict, set, type(None), type)) or hasattr(value, "draws"):
            of_chain = ": pass its attribute draws" if name == "draws" else ": pass what is computed from its draws"
            raise TypeError(f"{wanted}, got {told(value)}{of_chain if hasattr(value, 'draws') else ''}")
        try:
            array = np.array(value)  # a copy: some can't be written to, such as JAX's, and torch warns of that
        except (ValueError, TypeError, RuntimeError) as error:  # such as rows of different lengths
            raise TypeError(f"{wanted}, got {told(value)}: {error}") from error
        if array.dtype.kind not in "buifc":
            raise TypeError(f"{wanted}, got {told(value)}, which holds values of type {array.dtype}")
        try:
            value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except TypeError as error:
            raise TypeError(f"{wanted} that torch knows, got {array.dtype}: pass it as float64") from error
    if value.is_complex():
        raise ValueError(f"{name} is {value.dtype}: take real numbers, such as {name}.real and {name}.imag")
    if value.layout != torch.strided or value.is_quantized:
        raise ValueError(f"{name} is {'quantized' if value.is_quantized else 'sparse'}: pass {name}.to_dense()")
    return value


def memory(what: str, num_bytes: float, device: torch.device, remedy: str = "ask for fewer") -> None:
    """Raise where numbers can't be kept, because the device has less memory than they take."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    elif device.type == "cpu" and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:  # it is for the allocation to fail
        return
    if num_bytes > total:
        raise ValueError(f"{what} would take {_size(num_bytes)}, and {device} has {_size(total)}: {remedy}")


def disk(what: str, num_bytes: float, folder: Path, remedy: str) -> None:
    """Raise where numbers can't be kept in a folder, because its disk has less room than they take."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"{what} would take {_size(num_bytes)}, and the disk of {str(folder)!r} has room for {_size(free)}: "
            f"{remedy}, or make room"
        )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.0f} GiB"
