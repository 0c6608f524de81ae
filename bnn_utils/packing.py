"""Values as the bytes of a file, and back: numbers, text, tensors, and NamedTuples and dicts of these.

A file is a line of JSON, which says how the values are nested, then the bytes of its tensors one after the other, then
a seal (`files.seal`). It holds data only: a NamedTuple goes by the name of its class, which is looked up among those
that this program has already defined. Nothing is imported, and no code comes from a file.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check, files

CPU = torch.device("cpu")


def pack(kind: str, version: int, fields: dict[str, Any]) -> list[bytes]:
    """The parts of a file of this kind.

    Raises:
        TypeError: if a value could not come back, in words.
    """
    tensors: list[bytes] = []
    encoded = {name: _encode(value, name, tensors) for name, value in fields.items()}
    parts = [json.dumps(encoded).encode() + b"\n", *tensors]
    return [*parts, files.seal(kind, version, *parts)]


class Packed:
    """The values in a file's bytes, in which `files.problem_of_seal` has found no problem."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._start = content.index(b"\n") + 1
        self._fields = json.loads(content[: self._start])

    def value(self, name: str, device: torch.device = CPU) -> Any:
        """One of the values, with all tensors that were not on the CPU on a device.

        Raises:
            ValueError: if this program does not know a NamedTuple in it, or another one of its name.
        """
        return self._decode(self._fields[name], device)

    def _decode(self, value: Any, device: torch.device) -> Any:
        if not isinstance(value, dict):
            return value
        if "dict" in value:
            return {name: self._decode(item, device) for name, item in value["dict"].items()}
        if "class" in value:
            kind, fields = _known(value["class"]), value["fields"]
            if kind is None or list(kind._fields) != list(fields):
                said = "which is not defined" if kind is None else f"whose fields are {', '.join(kind._fields)}"
                raise ValueError(
                    f"this checkpoint was made with {value['class']} ({', '.join(fields)}), {said}: import or define "
                    "it as it was, then open the store again"
                )
            return kind._make(self._decode(item, device) for item in fields.values())
        tensor = torch.empty(value["shape"], dtype=getattr(torch, value["tensor"]))
        stored = np.frombuffer(self._content, np.uint8, value["bytes"], self._start + value["at"])
        tensor.reshape(-1).view(torch.uint8).numpy()[:] = stored
        return tensor if value["device"] == "cpu" else tensor.to(device)


def _encode(value: Any, where: str, tensors: list[bytes]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value  # JSON keeps all digits of a float, and Python's also infinity and NaN
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized:
        at = sum(map(len, tensors))
        flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        tensors.append(flat.view(torch.uint8).numpy().tobytes())
        dtype = str(value.dtype).removeprefix("torch.")
        shape = list(value.shape)
        return {"tensor": dtype, "shape": shape, "device": value.device.type, "at": at, "bytes": len(tensors[-1])}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: _encode(item, f"{where}[{name!r}]", tensors) for name, item in value.items()}}
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        kind = _known(name)
        if kind is None or kind._fields != value._fields:
            raise TypeError(
                f"{where} is of {name}, and a checkpoint finds a class again only where it is defined at the top of a "
                "module: move it there"
            )
        fields = zip(value._fields, value, strict=True)
        return {"class": name, "fields": {field: _encode(item, f"{where}.{field}", tensors) for field, item in fields}}
    raise TypeError(
        f"{where} must be a dense tensor, a number, a str, None or a NamedTuple of these to be stored, "
        f"got {_check.told(value)}"
    )


def _known(name: str) -> type[NamedTuple] | None:
    """The NamedTuple of this name, ``module:class``, if this program has defined it."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # not getattr: of a module, that may import
    is_ours = isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")
    return found if is_ours else None
