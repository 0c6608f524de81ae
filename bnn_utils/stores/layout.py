"""A store's folder as other programs see it: a Zarr group (version 3), which Zarr and xarray open.

It is written and read here and not by the package zarr, for what a run needs beyond the format: a file is on the disk
when a call returns, a call that was interrupted does not go on in another thread, and a chunk that is missing is an
error and not a block of NaN.

Chunks are not compressed: the digits of draws are noise, of which zstd saves 5 to 10 %. Each ends with its CRC-32C,
which finds what a disk or a copy has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from bnn_utils import files
from bnn_utils.checkpoints import Damaged
from bnn_utils.stores.base import Array

FORMAT = 1
METADATA = "zarr.json"
# Two runs are the same if their facts are, and floats among them to this relative difference: a log density differs by
# rounding between processors, by some 1e-6 of itself in float32.
TOLERANCE = 1e-5
LONGEST_VALUE, MOST_DIFFERENCES = 200, 10  # that a message shows


class Layout(NamedTuple):
    """All that the group's metadata say."""

    facts: dict[str, Any]
    sizes: tuple[int, ...]  # chains of each batch; a chunk holds those of one
    num_draws: int
    draws_per_chunk: int | None = None  # both are known with the first draws
    arrays: dict[str, Array] | None = None

    @property
    def known(self) -> dict[str, Array]:
        """The arrays, where there are draws."""
        assert self.arrays is not None
        return self.arrays

    @property
    def length(self) -> int:
        """Draws per chunk, where there are draws."""
        assert self.draws_per_chunk is not None
        return self.draws_per_chunk

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """The last batch's too, as chunks are equal: what it lacks in chains is filled up."""
        return (self.sizes[0], self.length, *self.known[name].shape)


def stored(array: Array) -> np.dtype:
    """Zarr's core types know no bfloat16; float32 holds all of its values, and those of float16."""
    return files.array(torch.empty(0, dtype=array.dtype)).dtype.newbyteorder("<")


def fill(array: Array) -> float:
    """What stands where there are no draws yet."""
    return math.nan if array.dtype.is_floating_point else 0


# --- metadata ---------------------------------------------------------------------------------------------------------


def group_text(layout: Layout) -> bytes:
    """The group's zarr.json, with the metadata of its arrays, so that a reader finds all of them at one time."""
    of_arrays = {name: array_metadata(layout, name) for name in layout.arrays or {}}
    ours = {"format": FORMAT, "batch_sizes": list(layout.sizes)} | {
        "num_draws": layout.num_draws,
        "draws_per_chunk": layout.draws_per_chunk,
    }
    metadata = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"facts": layout.facts, "bnn_utils": ours},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": of_arrays},
    }
    ours["sha256"] = _digest(metadata)
    return json.dumps(metadata, indent=1, allow_nan=False).encode()


def array_text(layout: Layout, name: str) -> bytes:
    return json.dumps(array_metadata(layout, name), indent=1, allow_nan=False).encode()


def array_metadata(layout: Layout, name: str) -> dict[str, Any]:
    array = layout.known[name]
    further = [f"{name}_dim_{k}" for k in range(len(array.shape))]
    if name == "draws":
        further = ["parameter"]
    elif name.startswith("tempering_") and further:
        further[0] = "temperature"
    dtype = stored(array)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [sum(layout.sizes), layout.num_draws, *array.shape],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(layout.chunk_shape(name))}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if dtype.kind == "f" else False if dtype.kind == "b" else 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": {"torch_dtype": str(array.dtype).removeprefix("torch.")},
        "dimension_names": ["chain", "draw", *further],
        "storage_transformers": [],
    }


def read_layout(folder: Path) -> Layout:
    """What the group's zarr.json says.

    Raises:
        ValueError: if it is missing, damaged, or not one of ours.
    """
    path = folder / METADATA
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{str(folder)!r} holds no {METADATA}: it is no store, or a damaged one") from error
    damaged = f"{str(path)!r} was changed or damaged after it was written; take another copy of the folder"
    try:
        metadata = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(damaged) from error
    try:
        attributes = metadata["attributes"]
        ours = attributes["bnn_utils"]
        digest, version = ours.pop("sha256"), ours["format"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is not as bnn_utils writes it: of another program, or damaged") from error
    if digest != _digest(metadata):
        raise ValueError(damaged)
    if version != FORMAT:
        raise ValueError(f"{str(folder)!r} has format {version}, and this version of bnn_utils reads format {FORMAT}")
    arrays = {
        name: Array(files.DTYPES[array["attributes"]["torch_dtype"]], tuple(array["shape"][2:]))
        for name, array in metadata["consolidated_metadata"]["metadata"].items()
    }
    sizes = tuple(ours["batch_sizes"])
    return Layout(attributes["facts"], sizes, ours["num_draws"], ours["draws_per_chunk"], arrays or None)


def _digest(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


# --- chunks -----------------------------------------------------------------------------------------------------------


def chunk_path(folder: Path, layout: Layout, name: str, batch: int, position: int) -> Path:
    return folder / name / ".".join(["c", str(batch), str(position), *("0" for _ in layout.known[name].shape)])


def write_chunk(path: Path, values: Tensor, array: Array) -> None:
    content = files.array(values).astype(stored(array), copy=False).tobytes()
    files.replace(path, content, google_crc32c.value(content).to_bytes(4, "little"))


def read_chunk(path: Path, shape: tuple[int, ...], array: Array) -> Tensor:
    """The values of a chunk, in the array's dtype.

    Raises:
        Damaged: if it is not there, or not as it was written.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{str(path)!r} is missing") from error
    values, checksum = memoryview(content)[:-4], content[-4:]
    if len(values) != math.prod(shape) * stored(array).itemsize:
        raise Damaged(f"{str(path)!r} is damaged: it has {len(content)} bytes, which are not those that were written")
    if google_crc32c.value(bytes(values)).to_bytes(4, "little") != checksum:
        raise Damaged(f"{str(path)!r} is damaged: its checksum differs")
    native = np.frombuffer(values, stored(array)).astype(stored(array).newbyteorder("="))
    return torch.from_numpy(native.reshape(shape)).to(array.dtype)


def empty_chunk(layout: Layout, name: str) -> Tensor:
    array = layout.known[name]
    return torch.full(layout.chunk_shape(name), fill(array), dtype=array.dtype)


# --- facts ------------------------------------------------------------------------------------------------------------


def plain(value: Any, name: str = "facts") -> Any:
    """A fact as JSON gives it back, numbers that it has no sign for as words.

    Raises:
        TypeError: if JSON does not know it.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{name}[{k}]") for k, item in enumerate(value)]
    raise TypeError(f"{name} must be numbers, words, True, False, None, lists or dicts of these, got {value!r:.80}")


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Where facts differ, in words; both are `plain`."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in there | here:
            where = f"{name}.{key}" if name else key
            if key in there and key in here:
                yield from differences(there[key], here[key], where)
            else:
                yield (
                    f"{where} was {_told(there[key])}, now there is none"
                    if key in there
                    else (f"{where} is {_told(here[key])}, and there was none")
                )
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for k, pair in enumerate(zip(there, here, strict=True)):
            yield from differences(*pair, f"{name}[{k}]")
    elif _are_numbers(there, here):
        are_whole = isinstance(there, int) and isinstance(here, int)
        if there != here and (are_whole or not math.isclose(there, here, rel_tol=TOLERANCE)):
            yield f"{name} was {there!r}, now {here!r}"
    elif type(there) is not type(here) or there != here:
        yield f"{name} was {_told(there)}, now {_told(here)}"


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def check_facts(folder: Path, there: Layout, here: Layout) -> None:
    """Raise unless a store holds the run that is to be stored."""
    found = list(differences(there.facts, here.facts))
    if there.sizes != here.sizes:
        found.append(f"its batches had {list(there.sizes)} chains, now {list(here.sizes)}")
    if found:
        more = f", and {len(found) - MOST_DIFFERENCES} more" if len(found) > MOST_DIFFERENCES else ""
        raise ValueError(
            f"{str(folder)!r} holds another run: {'; '.join(found[:MOST_DIFFERENCES])}{more}. Take another path, or "
            "remove the folder if its draws are not needed"
        )
