"""Draws in a folder.

What is in the folder, of batch 0:

    run.zarr/zarr.json              the facts of the run, and how large the arrays are
    run.zarr/draws/c.0.<k>.0        chunk k of its draws; of each statistic there is a folder like this one
    run.zarr/checkpoints/0-even     the last commit and the one before it: state, random stream, and the draws behind
    run.zarr/checkpoints/0-odd      the last full chunk

A commit writes the chunks that have become full, and then a checkpoint in the place of the older of two. Each file is
written beside its place, forced to the disk, and put there under its name. So whatever happens in the middle, one of
the two checkpoints is whole, and so are all chunks that it relies on: these are never written again.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bnn_utils import checkpoints, files
from bnn_utils.checkpoints import Checkpoint, Record
from bnn_utils.kernels.base import Info
from bnn_utils.stores import layout as zarr
from bnn_utils.stores import opening
from bnn_utils.stores.base import Array, arrays_of, as_info, check, columns, rows
from bnn_utils.stores.layout import METADATA, Layout, empty_chunk
from bnn_utils.stores.opening import BEGINNING, Batch, slot

# Of a chunk of one batch, over all arrays. A checkpoint holds half of one on average, so larger ones make commits
# dearer; smaller ones make more files, each of which waits for the disk. A short run is content with less.
CHUNK_BYTES, SHORT_CHUNK_BYTES = 2**23, 2**20
# Of all batches together: each has a chunk in memory that is not yet full.
MOST_CHUNK_BYTES = 2**27


class ZarrDraws:
    """The draws in a folder, up to the commit that was the last one when it was opened.

    Attributes:
        path: of the folder.
        facts: what the run is, as it was said when the folder was made.
        sizes: chains of each batch.
        num_draws: for how many draws of each chain there is room.
    """

    def __init__(self, path: Path, layout: Layout, batches: list[Batch], device: torch.device) -> None:
        self.path, self.device = path, device
        self._layout, self._batches = layout, batches

    @property
    def facts(self) -> dict[str, Any]:
        return self._layout.facts

    @property
    def sizes(self) -> tuple[int, ...]:
        return self._layout.sizes

    @property
    def num_draws(self) -> int:
        return self._layout.num_draws

    def count(self, batch: int) -> int:
        """How many draws of each chain of a batch there are."""
        return self._batches[batch].count

    def checkpoint(self, batch: int) -> Checkpoint | None:
        """The last that was committed; None at the beginning, and for a reader who doesn't know the kernel's state."""
        return self._batches[batch].checkpoint

    @torch.inference_mode(False)
    def read(self, batch: int | None = None, start: int = 0, stop: int | None = None) -> Info:
        """As `Store.read`, from the chunks in which these draws lie; a copy.

        Raises:
            ValueError: if there are no draws yet, or a chunk is damaged, which is named.
        """
        layout, all_rows = self._layout, rows(self.sizes)
        if layout.arrays is None:
            raise ValueError(f"there are no draws in {str(self.path)!r} yet")
        chosen = range(len(self.sizes)) if batch is None else [batch]
        start, stop, _ = slice(start, stop).indices(min(self.count(b) for b in chosen))
        first = all_rows[chosen[0]].start
        lead = (all_rows[chosen[-1]].stop - first, max(stop - start, 0))
        out = {name: torch.empty(*lead, *array.shape, dtype=array.dtype) for name, array in layout.arrays.items()}
        for b in chosen:
            chains = slice(all_rows[b].start - first, all_rows[b].stop - first)
            for name in out:
                for draws, values in self.parts(b, name, start, stop):
                    out[name][chains, draws.start - start : draws.stop - start] = values
        return as_info({name: values.to(self.device) for name, values in out.items()})

    def parts(self, batch: int, name: str, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """An array of a batch by the chunks in which its draws ``start`` to ``stop`` lie, on the CPU: which, and they.

        Raises:
            ValueError: if a chunk is damaged, which is named.
        """
        for position, inside, outside in pieces(start, stop, self._layout.length):
            yield outside, self._chunk(batch, position, name)[: self.sizes[batch], inside]

    @property
    def arrays(self) -> dict[str, Array]:
        """What is known of draws, log density and statistics, by name; nothing before the first draw."""
        return self._layout.arrays or {}

    def snapshot(self) -> ZarrDraws:
        """The draws that are there now, for reading alone."""
        return ZarrDraws(self.path, self._layout, list(self._batches), self.device)

    def _chunk(self, batch: int, position: int, name: str) -> Tensor:
        state, layout = self._batches[batch], self._layout
        if position >= state.full:
            return state.chunks[position - state.full][name]
        path = zarr.chunk_path(self.path, layout, name, batch, position)
        return zarr.read_chunk(path, layout.chunk_shape(name), layout.known[name])


class ZarrStore(ZarrDraws):
    """A `Store` in a folder, which can be opened again; also a Zarr group, for whoever reads it with other programs.

    These find draws in the arrays once their chunk is full or the store was closed, and NaN (or 0) behind.

    A commit waits for the disk, some milliseconds for the checkpoint and for each chunk, and the checkpoint holds half
    of a chunk's draws on average: every ten seconds is often enough.
    """

    def __init__(
        self, path: Path, layout: Layout, batches: list[Batch], device: torch.device, lock: BinaryIO | None
    ) -> None:
        super().__init__(path, layout, batches, device)
        self._lock = lock  # None once the store is closed
        self._are_made = layout.arrays is not None  # the arrays, in the folder
        self._changed: set[int] = set()  # batches with draws from this process

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        facts: Mapping[str, Any],
        sizes: Sequence[int],
        num_draws: int,
        draws_per_chunk: int | None = None,
        device: torch.device | str = "cpu",
    ) -> ZarrStore:
        """The store of a run, made if it is not there.

        Args:
            path: of a folder, such as "run.zarr".
            facts: what determines the run's draws, and what a reader should know of it, such as the parameters' names:
                words, whole numbers, floats, lists and dicts. Floats are compared to a relative difference of 1e-5.
            sizes: chains of each batch, all equal but the last, which may have less.
            num_draws: for how many draws of each chain to make room; a store that has room for more keeps it.
            draws_per_chunk: of a new store; without it, as many as make a chunk of 8 MB.
            device: where draws come back to, and tensors of states that were not on the CPU.

        Raises:
            ValueError: if the folder holds another run, in words, or is not a store, or its zarr.json is damaged.
            OSError: if another process writes to it, or on a failure of the disk.

        Warns:
            RuntimeWarning: if a file is damaged, which is named. The run goes on from the last checkpoint whose draws
                are all there, or begins anew.
        """
        folder, sizes = Path(files.to_path(path)), tuple(sizes)
        if any(size != sizes[0] for size in sizes[:-1]) or not 0 < sizes[-1] <= sizes[0]:
            raise ValueError(f"batches must have equally many chains, but the last, which may have less; got {sizes}")
        new = Layout(zarr.plain(facts), sizes, num_draws)
        opening.check_place(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = opening.take_lock(folder)
        try:
            opening.remove_litter(folder)
            layout = opening.adopt(folder, new) if (folder / METADATA).exists() else opening.create(folder, new)
            if layout.draws_per_chunk is None:
                layout = layout._replace(draws_per_chunk=draws_per_chunk)
            batches = [opening.last_good(folder, layout, batch, torch.device(device)) for batch in range(len(sizes))]
        except BaseException:
            lock.close()
            raise
        return cls(folder, layout, batches, torch.device(device), lock)

    @torch.inference_mode(False)
    def append(self, batch: int, info: Info) -> None:
        """In memory: what is not committed is lost if the process is killed."""
        self._check_is_open()
        state, new = self._batches[batch], columns(info)
        layout = self._layout
        start, stop = state.count, state.count + info.log_prob.shape[1]
        check(new, self.sizes[batch], stop, self.num_draws, layout.arrays)
        if layout.arrays is None:
            layout = with_arrays(layout, new)
        chunks = list(state.chunks)
        for position, inside, outside in pieces(start, stop, layout.length):
            if position - state.full == len(chunks):
                chunks.append({name: empty_chunk(layout, name) for name in new})
            for name, values in new.items():
                chunk = chunks[position - state.full][name]
                chunk[: self.sizes[batch], inside] = values[:, outside.start - start : outside.stop - start]
        self._layout = layout
        self._batches[batch] = state._replace(count=stop, chunks=tuple(chunks))

    def commit(self, batch: int, checkpoint: Checkpoint) -> None:
        """As `Store.commit`: when it returns, all that was appended before is on the disk.

        Raises:
            TypeError: if the state holds something that could not come back, in words.
            OSError: if that fails, as on a full disk. It says how many draws are safe; the store stays as it was.
        """
        self._check_is_open()
        state, layout = self._batches[batch], self._layout
        num_full, rest = 0, 0
        if layout.arrays is not None:
            num_full, rest = divmod(state.count - state.full * layout.length, layout.length)
        tail = {name: v[: self.sizes[batch], :rest] for name, v in state.chunks[num_full].items()} if rest else {}
        record = Record(state.number + 1, state.count, tail, checkpoint)
        content = checkpoints.to_bytes(record)
        try:
            if state.number == 0:  # what was damaged there, if anything, shall not be found again
                files.replace(slot(self.path, batch, 0), *checkpoints.to_bytes(BEGINNING))
            if state.chunks:
                self._prepare(batch)
            for position, chunk in enumerate(state.chunks[:num_full], state.full):
                self._write_chunk(batch, position, chunk)
            files.replace(slot(self.path, batch, record.number), *content)
        except OSError as error:
            raise self._failure(batch, error) from error
        self._batches[batch] = Batch(
            record.number, checkpoint, state.count, state.count, state.full + num_full, state.chunks[num_full:]
        )

    def close(self) -> None:
        """Let other programs see the last draws as well, and other processes write.

        Raises:
            OSError: if that fails, as on a full disk; all that was committed is safe.
        """
        if self._lock is None:
            return
        try:
            for batch in self._changed:
                state = self._batches[batch]
                rest = state.committed - state.full * self._layout.length
                if rest:
                    chunk = {name: empty_chunk(self._layout, name) for name in self._layout.known}
                    for name, values in chunk.items():
                        values[:, :rest] = state.chunks[0][name][:, :rest]
                    try:
                        self._write_chunk(batch, state.full, chunk)
                    except OSError as error:
                        raise self._failure(batch, error) from error
        finally:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> ZarrStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_is_open(self) -> None:
        if self._lock is None:
            raise ValueError(f"the store {str(self.path)!r} is closed: open it again")

    def _prepare(self, batch: int) -> None:
        """Once, before the first draws of this process reach the folder."""
        layout = self._layout
        if not self._are_made:
            for name in layout.known:
                (self.path / name).mkdir(exist_ok=True)
                files.replace(self.path / name / METADATA, zarr.array_text(layout, name))
            files.replace(self.path / METADATA, zarr.group_text(layout))
            self._are_made = True
        if batch not in self._changed:
            # What lies behind the checkpoint is not of this run's past, or is the end of a chunk that will be longer.
            for name in layout.known:
                for path in (self.path / name).glob(f"c.{batch}.*"):
                    if int(path.name.split(".")[2]) >= self._batches[batch].full:
                        path.unlink()
            self._changed.add(batch)

    def _write_chunk(self, batch: int, position: int, chunk: dict[str, Tensor]) -> None:
        for name, values in chunk.items():
            path = zarr.chunk_path(self.path, self._layout, name, batch, position)
            zarr.write_chunk(path, values, self._layout.known[name])

    def _failure(self, batch: int, error: OSError) -> OSError:
        safe = self._batches[batch].committed
        reason = (
            f"could not write: {error.strerror or error}; the first {safe:,} draws of each chain of batch {batch} are "
            f"safe in {str(self.path)!r}, from where the same call goes on when this is mended"
        )
        return OSError(error.errno or errno.EIO, reason, error.filename)


def open_for_reading(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> ZarrDraws:
    """The draws in a store's folder up to the last commit, also while another process writes there.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is not a store, or its zarr.json is damaged.

    Warns:
        RuntimeWarning: if a checkpoint is damaged, which is named; the one before it is used.
    """
    folder = Path(files.to_path(path))
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(folder))
    num_batches = len(zarr.read_layout(folder).sizes)
    found = [opening.readable(folder, batch) for batch in range(num_batches)]
    layout = zarr.read_layout(folder)  # again, as the arrays may have been made meanwhile
    batches = []
    for batch, (records, problems) in enumerate(found):
        batches.append(Batch(0, None, 0, 0, 0, ()))
        if records:
            # A reader may lack the class of a kernel's state, and does not need it.
            with suppress(ValueError):
                checkpoint = None
                checkpoint = records[0].checkpoint(torch.device(device))
            batches[-1] = opening.as_batch(layout, records[0], checkpoint)
        opening.warn(problems, batch, batches[-1])
    return ZarrDraws(folder, layout, batches, torch.device(device))


# --- chunks in memory -------------------------------------------------------------------------------------------------


def with_arrays(layout: Layout, new: dict[str, Tensor]) -> Layout:
    """The layout, once draws show their names, dtypes and shapes."""
    arrays = arrays_of(new)
    for name, array in arrays.items():
        if not name.isidentifier() or name == "checkpoints":
            raise ValueError(f"a statistic can't be called {name!r} in a folder: use letters, digits and underscores")
        if array.dtype not in files.DTYPES.values():
            raise TypeError(f"{name} has dtype {array.dtype}, and in a folder must have one of {files.KINDS}")
    if len({name.casefold() for name in arrays}) < len(arrays):
        raise ValueError(f"names of statistics must differ in more than capitals, got {', '.join(arrays)}")
    num_bytes = layout.sizes[0] * sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays.values())
    longest = max(SHORT_CHUNK_BYTES // num_bytes, layout.num_draws)
    chunk_bytes = min(CHUNK_BYTES, MOST_CHUNK_BYTES // len(layout.sizes))
    draws_per_chunk = layout.draws_per_chunk or max(1, min(chunk_bytes // num_bytes, longest))
    return layout._replace(arrays=arrays, draws_per_chunk=draws_per_chunk)


def pieces(start: int, stop: int, length: int) -> Iterator[tuple[int, slice, slice]]:
    """The chunks in which draws lie: position, which of its draws these are, and which of all draws."""
    while start < stop:
        position, first = divmod(start, length)
        num = min(length - first, stop - start)
        yield position, slice(first, first + num), slice(start, start + num)
        start += num
