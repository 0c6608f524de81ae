"""Checkpoints, from which a run goes on, and their files (`bnn_utils.packing`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnn_utils import files, packing

KIND, FORMAT = "checkpoint", 1


class Checkpoint(NamedTuple):
    """Where chains stand after a transition. It determines all that they draw from then on."""

    state: Any  # the kernel's: a NamedTuple of tensors, numbers, strings, None and NamedTuples of these
    rng: Tensor  # generator.get_state()
    done: int  # transitions so far, those of the warm-up among them


class Damaged(ValueError):
    """A file that is not as it was written; the message names it."""


class Record(NamedTuple):
    """What one file says of a batch of chains."""

    number: int  # of the commit, from 1 on
    count: int  # type: ignore[assignment]  # draws up to the checkpoint
    tail: dict[str, Tensor]  # name -> the last of these draws, which fill no chunk yet
    checkpoint: Checkpoint | None  # None before the first commit


def to_bytes(record: Record) -> list[bytes]:
    """The parts of the record's file.

    Raises:
        TypeError: if its checkpoint holds something that could not come back, in words.
    """
    return packing.pack(KIND, FORMAT, record._asdict())


class Reader:
    """A record's file.

    Raises:
        Damaged: if it is not there, or not as it was written.
    """

    def __init__(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                content = file.read()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Damaged(f"{path!r} is missing") from error
        why = files.problem_of_seal(content, KIND, FORMAT)
        if why:
            raise Damaged(f"{path!r} is no whole checkpoint: {why}")
        self._packed = packing.Packed(content)

    @property
    def number(self) -> int:
        return self._packed.value("number")

    @property
    def count(self) -> int:
        return self._packed.value("count")

    def tail(self) -> dict[str, Tensor]:
        return self._packed.value("tail")

    def checkpoint(self, device: torch.device) -> Checkpoint | None:
        """With all tensors that were not on the CPU on a device.

        Raises:
            ValueError: if this program does not know the class of a state, or another one of its name.
        """
        return self._packed.value("checkpoint", device)
