"""What a store is, and what all of them do alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bnn_utils.checkpoints import Checkpoint
from bnn_utils.kernels.base import Info


class Array(NamedTuple):
    """What is known of a column of draws."""

    dtype: torch.dtype
    shape: tuple[int, ...]  # of one draw


class Store(Protocol):
    """Draws and checkpoints of batches of chains, each batch as far as it has come.

    One thread writes at a time. An `append` that is interrupted, at any point, has happened or not: `count` tells, and
    one that has not is called again. A `commit` may be called again in any case.

    Attributes:
        sizes: chains of each batch.
        num_draws: for how many draws of each chain there is room.
    """

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def num_draws(self) -> int: ...

    def count(self, batch: int) -> int:
        """How many draws of each chain of a batch have been appended and are kept."""
        ...

    def checkpoint(self, batch: int) -> Checkpoint | None:
        """The last that was committed; None at the beginning."""
        ...

    def append(self, batch: int, info: Info) -> None:
        """Take the next T draws of a batch of C chains, stacked: ``(C, T, ...)``.

        Raises:
            ValueError: if they don't fit what was appended before, in words.
        """
        ...

    def commit(self, batch: int, checkpoint: Checkpoint) -> None:
        """Take note that the batch stood here after all draws that were appended so far: from here a run goes on."""
        ...

    def read(self, batch: int | None = None, start: int = 0, stop: int | None = None) -> Info:
        """Draws ``start`` to ``stop`` of a batch, stacked; without a batch, of all chains as far as all have come.

        Raises:
            ValueError: if nothing was appended yet.
        """
        ...

    def close(self) -> None:
        """Nothing will be appended any more."""
        ...


def rows(sizes: Sequence[int]) -> list[slice]:
    """Where each batch lies among all chains."""
    return [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]


def columns(info: Info) -> dict[str, Tensor]:
    """What is stored of draws, by name."""
    taken = {"draws", "lp"} & info.stats.keys()
    if taken:
        raise ValueError(f"a statistic can't be called {taken.pop()}: that is the name of a draw or of its log density")
    # Theta that is not recorded has no columns: other programs have no use for an empty array.
    draws = {"draws": info.theta} if info.theta.shape[-1] else {}
    return {**draws, "lp": info.log_prob, **info.stats}


def as_info(columns: dict[str, Tensor]) -> Info:
    others = dict(columns)
    log_prob = others.pop("lp")
    theta = others.pop("draws") if "draws" in others else log_prob.new_empty(*log_prob.shape, 0)
    return Info(theta, log_prob, others)


def arrays_of(columns: dict[str, Tensor]) -> dict[str, Array]:
    return {name: Array(values.dtype, tuple(values.shape[2:])) for name, values in columns.items()}


def check(new: dict[str, Tensor], size: int, stop: int, num_draws: int, known: dict[str, Array] | None) -> None:
    """Raise unless new draws of a batch fit what is known of others."""
    num = new["lp"].shape[1]
    for name, values in new.items():
        if values.shape[:2] != (size, num):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; {num} draws of the {size} chains of this batch have "
                f"({size}, {num}, ...)"
            )
    if stop > num_draws:
        raise ValueError(f"{num} more draws make {stop}, and there is room for {num_draws}")
    arrays = arrays_of(new)
    if known is not None and arrays != known:
        raise ValueError(f"these draws have {_told(arrays)}, and those before them {_told(known)}")


def _told(arrays: dict[str, Array]) -> str:
    return ", ".join(f"{name} ({array.dtype}, {list(array.shape)})" for name, array in arrays.items())
