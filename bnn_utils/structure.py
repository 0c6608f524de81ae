"""A network's structure as data, and back: which of torch's modules it is made of, by their names and arguments.

So a network comes back from a file without running any code that the file brings along.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from bnn_utils.layers import LogScale, Standardise

PLAIN = (bool, int, float, str, type(None))
PLACES = ("device", "dtype")  # arguments that say where and how numbers are kept, not what is computed


def describe(module: nn.Module) -> dict[str, Any] | None:
    """The module as data for JSON, without its numbers; None where it is, or has, a part that torch doesn't ship.

    Its parts are nested Sequentials, this package's `Standardise` and `LogScale`, and modules of `torch.nn` without
    parts of their own, with those arguments that they keep. Whether what `build` makes of it computes the same is for
    the caller to see.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    kind, name = type(module), type(module).__name__
    found: dict[str, Any] = {"kind": name, "training": module.training}
    if kind is nn.Sequential:
        parts = {path: describe(part) for path, part in module.named_children()}
        return None if None in parts.values() else found | {"parts": parts}
    if type(module) is Standardise:
        return found | {"shape": list(module.mean.shape)}
    if type(module) is LogScale:
        return found | {"num": len(module.log_scale)}
    arguments = _arguments(module) if _of_torch(name) is kind and not list(module.children()) else None
    return None if arguments is None else found | {"arguments": arguments}


def _of_torch(name: str) -> type[nn.Module] | None:
    """The module of `torch.nn` with this name."""
    kind = getattr(nn, name, None) if name.isidentifier() else None
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not nn.Module else None


def _arguments(module: nn.Module) -> dict[str, Any] | None:
    """Those that the module was made with, as far as it has attributes of their names; None where some are no data."""
    found = {}
    for name in inspect.signature(type(module)).parameters:
        if name in PLACES or not hasattr(module, name):
            continue
        value = getattr(module, name)
        if name == "bias":  # the argument says whether there is one
            value = value is not None and value is not False
        if not all(isinstance(one, PLAIN) for one in (value if isinstance(value, tuple) else (value,))):
            return None
        found[name] = value
    return found


def build(description: dict[str, Any]) -> nn.Module:
    """A module of this structure, on the device "meta": its numbers are for `load_state_dict(..., assign=True)`.

    Raises:
        ValueError: if there is no such module, or none with these arguments.
    """
    try:
        with torch.device("meta"):
            return _build(description)
    except Exception as error:
        raise ValueError(f"no network is described by {description!r:.200}: {error}") from error


def _build(description: dict[str, Any]) -> nn.Module:
    name = description["kind"]
    module: nn.Module
    if name == "Sequential":
        module = nn.Sequential(OrderedDict((path, _build(part)) for path, part in description["parts"].items()))
    elif name == "Standardise":
        module = Standardise(torch.zeros(1, *description["shape"]))
    elif name == "LogScale":
        module = LogScale(description["num"])
    elif (kind := _of_torch(name)) is not None:
        arguments = description["arguments"].items()
        module = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in arguments})
    else:
        raise ValueError(f"torch.nn has no {name}")
    module.training = description["training"]
    return module
