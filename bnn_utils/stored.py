"""Chains whose draws stay in the folder of their run, because they are many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bnn_utils import _check, advice
from bnn_utils.chain import Chain, Part
from bnn_utils.evidence import LADDER, Tempering
from bnn_utils.kernels.base import KEPT
from bnn_utils.stores import Store, ZarrDraws
from bnn_utils.stores.base import as_info, rows

if TYPE_CHECKING:
    import pandas as pd
    from arviz import InferenceData

# Draws and statistics that take more stay in their folder, and tables look at as many of them as take less.
MOST_BYTES = 2**26
ARRAYS = ("draws", "stats", "kept", "tempering")  # of a chain

Ladders = Sequence[tuple[Tensor, Tensor] | None]


def chain_of(store: Store | ZarrDraws, stop: int | None, ladders: Ladders, **facts: Any) -> Chain:
    """The draws of a store as a chain, which reads them when they are needed where they are many.

    Args:
        stop: the draws up to there; None for all that all batches have.
        ladders: for each batch its temperatures and step sizes, None where there are none.
        facts: the other attributes of the chain.
    """
    if isinstance(store, ZarrDraws) and store.arrays:
        most = min(map(store.count, range(len(store.sizes))))
        source = Source(store.snapshot(), 0, most if stop is None else min(stop, most), ladders)
        if source.num_bytes > MOST_BYTES:
            if "draws" not in store.arrays:  # theta was not kept
                facts["names"] = []
            return StoredChain.of_source(source, **facts)
    return Chain.of_run(store.read(stop=stop), ladders, store.sizes, **facts)


class Source(NamedTuple):
    """Where the draws of a chain are: those from ``start`` to ``stop`` of a store."""

    store: ZarrDraws
    start: int
    stop: int
    ladders: Ladders

    @property
    def num_bytes(self) -> int:
        per_draw = sum(math.prod(array.shape) * array.dtype.itemsize for array in self.store.arrays.values())
        return (self.stop - self.start) * sum(self.store.sizes) * per_draw

    def parts(self, name: str) -> Iterator[Part]:
        for batch, chains in enumerate(rows(self.store.sizes)):
            for draws, values in self.store.parts(batch, name, self.start, self.stop):
                yield Part(chains, slice(draws.start - self.start, draws.stop - self.start), values)

    @torch.inference_mode(False)
    def read(self, name: str, step: int = 1) -> Tensor:
        """Draws ``step - 1, 2 step - 1, ...`` of all chains, in memory."""
        array, lead = self.store.arrays[name], (sum(self.store.sizes), (self.stop - self.start) // step)
        num_bytes = math.prod((*lead, *array.shape)) * array.dtype.itemsize
        remedy = "take one draw in k, chain.thin(k), or all in parts, chain.parts or chain.expectation"
        what = f"{'theta' if name == 'draws' else name} at {lead[1]:,} draws of {lead[0]:,} chains"
        _check.memory(what, num_bytes, self.store.device, remedy)
        out = torch.empty(*lead, *array.shape, dtype=array.dtype)
        for chains, draws, values in self.parts(name):
            chosen = values[:, (step - 1 - draws.start) % step :: step]
            first = -(-(draws.start - step + 1) // step)
            out[chains, first : first + chosen.shape[1]] = chosen
        return out.to(self.store.device)


class Arrays(Mapping[str, Tensor]):
    """Name -> values, which are read each time: of statistics, or of those arrays whose names begin with a prefix."""

    def __init__(self, source: Source, prefix: str = "") -> None:
        self._source, self._prefix = source, prefix
        others = () if prefix else (LADDER, KEPT)
        found = [name for name in source.store.arrays if name.startswith(prefix) and not name.startswith(others)]
        found = [name for name in found if name != "draws"]
        self._names = [name.removeprefix(prefix) for name in found]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._source.read(self._prefix + name)

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class StoredChain(Chain):
    """A chain whose draws stay in the folder of their run, because they take more than 64 MB.

    It is used like any other. ``draws`` and each statistic are read from the folder when they are asked for, as far as
    memory has room for them; `expectation` goes through all draws, some at a time, and so does `parts`. What needs all
    draws at once, such as R-hat, is computed from one draw in k, evenly spread: tables say so, and what they say holds
    for these draws. ``chain.thin(k)`` are such draws as a chain in memory, from which all else follows.
    """

    source: Source

    @classmethod
    def of_source(cls, source: Source, **facts: Any) -> StoredChain:
        chain = cls.__new__(cls)  # without the arrays, which a chain in memory is made of
        vars(chain).update(facts, source=source)
        return chain

    @cached_property
    def draws(self) -> Tensor:
        return self.source.read("draws") if self.dim else self.few.draws.new_empty(self.num_chains, self.num_draws, 0)

    @cached_property
    def stats(self) -> Mapping[str, Tensor]:
        return Arrays(self.source)

    @cached_property
    def kept(self) -> Mapping[str, Tensor]:
        return Arrays(self.source, KEPT)

    @cached_property
    def tempering(self) -> Tempering | None:
        found = {LADDER + name: values for name, values in Arrays(self.source, LADDER).items()}
        return Tempering.of_run(found, self.source.ladders, self.source.store.sizes, self.thinning)

    @property
    def num_chains(self) -> int:
        return sum(self.source.store.sizes)

    @property
    def num_draws(self) -> int:
        return self.source.stop - self.source.start

    @property
    def dim(self) -> int:
        return len(self.names)

    def parts(self, name: str) -> Iterator[Part]:
        if name in self.source.store.arrays:
            for chains, draws, values in self.source.parts(name):
                yield Part(chains, draws, values.double() if name in self.stats else values)

    def _part(self, part: slice, **changes: Any) -> Chain:
        if part.step > 1:
            return self._read(part.step)
        source = self.source._replace(start=self.source.start + part.start)
        return StoredChain.of_source(source, **self._known() | {"run": None} | changes)

    def _read(self, step: int) -> Chain:
        """One draw in ``step``, in memory."""
        facts = self._known() | {"run": None, "thinning": self.thinning * step}
        info = as_info({name: self.source.read(name, step) for name in self.source.store.arrays})
        return Chain.of_run(info, self.source.ladders, self.source.store.sizes, **facts)

    def _known(self) -> dict[str, Any]:
        """All attributes but the arrays and what is computed from them."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ARRAYS}

    @cached_property
    def few(self) -> Chain:
        return self._read(max(1, min(self.num_draws, -(-self.source.num_bytes // MOST_BYTES))))

    @cached_property
    def warnings(self) -> list[str]:
        of_all = (advice.divergences, advice.energy)
        return [said for check in advice.CHECKS if (said := check(self if check in of_all else self.few))]

    def summary(self) -> pd.DataFrame:
        return self._told(self.few.summary())

    def quantiles(self) -> pd.DataFrame:
        return self._told(self.few.quantiles())

    def _told(self, table: pd.DataFrame) -> pd.DataFrame:
        table.columns.name = f"of one draw in {self.few.thinning // self.thinning:,}"
        return table

    def to_arviz(self, log_likelihoods: Tensor | None = None) -> InferenceData:
        return self._read(1).to_arviz(log_likelihoods)

    def save(self, path: str | PathLike[str]) -> None:
        self._read(1).save(path)
