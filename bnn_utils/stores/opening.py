"""What is found in a store's folder when it is opened, and what is still good of it."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from bnn_utils import checkpoints, files
from bnn_utils.checkpoints import Checkpoint, Damaged, Reader, Record
from bnn_utils.stores import layout as zarr
from bnn_utils.stores.layout import METADATA, Layout

try:
    import fcntl
except ImportError:  # on Windows, where nothing keeps a second process from writing
    fcntl = None  # type: ignore[assignment]

SLOTS = ("even", "odd")  # numbers of the commits whose checkpoints a file takes
BEGINNING = Record(number=0, count=0, tail={}, checkpoint=None)


class Batch(NamedTuple):
    """Where a batch stands. It is replaced as a whole, so that an interruption leaves the old one or the new one."""

    number: int  # of the last commit
    checkpoint: Checkpoint | None
    committed: int  # draws up to it
    count: int  # type: ignore[assignment]  # draws appended; a tuple's own method is not needed
    full: int  # chunks on the disk
    chunks: tuple[dict[str, Tensor], ...]  # of the draws behind these, the last one in part filled


def slot(folder: Path, batch: int, number: int) -> Path:
    return folder / "checkpoints" / f"{batch}-{SLOTS[number % 2]}"


def check_place(folder: Path) -> None:
    """Raise unless a store is here, or one may be made here."""
    if not folder.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {str(folder.parent)!r}; make it first", str(folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "this is a file; a store is a folder", str(folder))
    if folder.is_dir() and not (folder / METADATA).exists():
        others = [entry.name for entry in folder.iterdir() if entry.name != "checkpoints"]
        others = [name for name in others if not files.LITTER.fullmatch(name)]
        if others or any(is_of_a_run(path) for path in (folder / "checkpoints").glob("*-*")):
            raise ValueError(
                f"{str(folder)!r} holds something, but no {METADATA}: it is no store, or a damaged one; take another "
                "path"
            )


def is_of_a_run(path: Path) -> bool:
    """Whether this is more than a new store has."""
    try:
        return Reader(str(path)).number > 0
    except Damaged:
        return False


def take_lock(folder: Path) -> BinaryIO:
    """A file that keeps others from writing to the store as long as it is open; it is closed with its process."""
    file = open(folder / "checkpoints" / "lock", "ab")  # noqa: SIM115
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        reason = "this store is open for writing elsewhere: wait, take another path, or read it with open_for_reading"
        raise BlockingIOError(error.errno, reason, str(folder)) from error
    except OSError as error:  # some file systems of clusters have no locks
        warnings.warn(
            f"{str(folder)!r} can't be locked ({error.strerror}): see that no other process writes to it",
            RuntimeWarning,
            stacklevel=3,
        )
    return file


def remove_litter(folder: Path) -> None:
    """Files that a process had begun when it was killed."""
    for place in (folder, *(entry for entry in folder.iterdir() if entry.is_dir())):
        for path in place.glob(".*"):
            if files.LITTER.fullmatch(path.name):
                path.unlink()


def create(folder: Path, layout: Layout) -> Layout:
    """A new store: its checkpoints first, so that from now on one that is missing is known to be."""
    for batch in range(len(layout.sizes)):
        for number in (-1, 0):
            files.replace(slot(folder, batch, number), *checkpoints.to_bytes(BEGINNING._replace(number=number)))
    files.replace(folder / METADATA, zarr.group_text(layout))
    files.sync_folder(folder.parent)
    return layout


def adopt(folder: Path, new: Layout) -> Layout:
    """The store that is there, if it is of this run, with room for as many draws."""
    old = zarr.read_layout(folder)
    zarr.check_facts(folder, old, new)
    layout = old._replace(num_draws=max(old.num_draws, new.num_draws))
    for name in layout.arrays or {}:
        path, text = folder / name / METADATA, zarr.array_text(layout, name)
        found = path.read_bytes() if path.is_file() else None
        if found not in (text, zarr.array_text(old, name)):
            said = "is missing" if found is None else "was changed or damaged"
            warnings.warn(f"{str(path)!r} {said}, and is written anew", RuntimeWarning, stacklevel=3)
        if found != text:
            path.parent.mkdir(exist_ok=True)
            files.replace(path, text)
    if layout != old:
        files.replace(folder / METADATA, zarr.group_text(layout))
    return layout


def readable(folder: Path, batch: int) -> tuple[list[Reader], list[str]]:
    """The checkpoints of a batch, the last one first, and what is wrong with others."""
    readers, problems = [], []
    for number in range(2):
        try:
            readers.append(Reader(str(slot(folder, batch, number))))
        except Damaged as error:
            problems.append(str(error))
    return sorted(readers, key=lambda reader: -reader.number), problems


def last_good(folder: Path, layout: Layout, batch: int, device: torch.device) -> Batch:
    """The last checkpoint up to which all draws are there."""
    readers, problems = readable(folder, batch)
    state = Batch(0, None, 0, 0, 0, ())
    for reader in readers:
        try:
            check_chunks(folder, layout, batch, reader.count)
        except Damaged as error:
            problems.append(str(error))
        else:
            state = as_batch(layout, reader, reader.checkpoint(device))
            break
    warn(problems, batch, state)
    return state


def check_chunks(folder: Path, layout: Layout, batch: int, count: int) -> None:
    """Raise `Damaged` unless all chunks up to a draw are as they were written."""
    for name, array in (layout.arrays or {}).items():
        for position in range(count // layout.length):
            path = zarr.chunk_path(folder, layout, name, batch, position)
            zarr.read_chunk(path, layout.chunk_shape(name), array)


def as_batch(layout: Layout, reader: Reader, checkpoint: Checkpoint | None = None) -> Batch:
    full, tail = 0, reader.tail()
    if layout.arrays is not None:
        full = reader.count // layout.length
    chunk = {name: zarr.empty_chunk(layout, name) for name in tail}
    for name, values in tail.items():
        chunk[name][: len(values), : values.shape[1]] = values
    return Batch(max(reader.number, 0), checkpoint, reader.count, reader.count, full, (chunk,) if tail else ())


def warn(problems: Sequence[str], batch: int, state: Batch) -> None:
    if problems:
        what = (
            f"the checkpoint that is whole, with {state.count:,} draws of each chain" if state.number else "its start"
        )
        text = f"{'; '.join(dict.fromkeys(problems))}: batch {batch} is taken from {what}"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
