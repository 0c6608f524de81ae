"""Draws in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_utils.checkpoints import Checkpoint
from bnn_utils.kernels.base import Info
from bnn_utils.stores.base import Array, arrays_of, as_info, check, columns, rows


class MemoryStore:
    """A `Store` in memory: one block of all chains for each array, filled as the run goes on.

    Nothing is ever moved, so that a run needs as much memory as its draws, and what `read` returns is a view.
    A block's pages are taken from the system when they are written.
    """

    def __init__(self, sizes: Sequence[int], num_draws: int) -> None:
        self.sizes, self.num_draws = tuple(sizes), num_draws
        self._rows = rows(self.sizes)
        self._blocks: dict[str, Tensor] | None = None  # name -> (chains, num_draws, ...)
        self._arrays: dict[str, Array] | None = None
        self._counts = [0] * len(self.sizes)
        self._checkpoints: list[Checkpoint | None] = [None] * len(self.sizes)

    def count(self, batch: int) -> int:
        return self._counts[batch]

    def checkpoint(self, batch: int) -> Checkpoint | None:
        return self._checkpoints[batch]

    @torch.inference_mode(False)  # what comes out are ordinary tensors, wherever they were computed
    def append(self, batch: int, info: Info) -> None:
        start, new = self._counts[batch], columns(info)
        stop = start + info.log_prob.shape[1]
        check(new, self.sizes[batch], stop, self.num_draws, self._arrays)
        if self._blocks is None:
            self._arrays, lead = arrays_of(new), (sum(self.sizes), self.num_draws)
            self._blocks = {name: values.new_empty(*lead, *values.shape[2:]) for name, values in new.items()}
        for name, values in new.items():
            self._blocks[name][self._rows[batch], start:stop] = values
        self._counts[batch] = stop  # last: an append that is interrupted has not happened

    def commit(self, batch: int, checkpoint: Checkpoint) -> None:
        self._checkpoints[batch] = checkpoint

    @torch.inference_mode(False)
    def read(self, batch: int | None = None, start: int = 0, stop: int | None = None) -> Info:
        if self._blocks is None:
            raise ValueError("there are no draws yet")
        chains = slice(None) if batch is None else self._rows[batch]
        draws = slice(*slice(start, stop).indices(min(self._counts) if batch is None else self._counts[batch]))
        return as_info({name: block[chains, draws] for name, block in self._blocks.items()})

    def close(self) -> None:
        pass
