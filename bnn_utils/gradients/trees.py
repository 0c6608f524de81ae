"""NUTS in native code: what `bnn_utils.gradients.growth` describes, called for tensors."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bnn_utils.gradients.native import SECONDS_FOR_THREADS, check_vectors, drawn, in_threads, mixed
from bnn_utils.random import lane_keys

if TYPE_CHECKING:
    from bnn_utils.gradients.fused import Fused
    from bnn_utils.gradients.native import Native
    from bnn_utils.priors import DiagonalNormal

# That are drawn for a block of transitions. Lanes wait for each other at its end, so that it is a long one.
NUMBERS_AHEAD = 2**22
DIRECTION, SUBTREE, STATE = range(3)  # what a lane's numbers decide
TYPICAL_STEPS = 16  # of a transition, to judge what is worth a thread


class Grown(NamedTuple):
    """Where T transitions lead C lanes, and what is recorded of them."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    grad: Tensor  # (C, D)
    thetas: Tensor  # (C, T, D)
    log_probs: Tensor  # (C, T), as are all that follow
    rates: Tensor
    energies: Tensor
    errors: Tensor
    steps: Tensor  # int64
    depths: Tensor  # int64
    diverging: Tensor  # bool
    reached: Tensor  # bool


class Trees:
    """Transitions of NUTS under independent normals, with any log likelihood that native code computes.

    Lanes are shared out among threads, which changes no number.

    Args:
        likelihood: in native code.
        prior: of all parameters.
    """

    def __init__(self, likelihood: Native | Fused, prior: DiagonalNormal) -> None:
        self._likelihood, self._prior = likelihood, prior
        # That no thread works in now, by the depth of trees.
        self._memory: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)

    def transitions(
        self,
        generator: torch.Generator,
        start: tuple[Tensor, Tensor, Tensor],
        step_size: float,
        max_depth: int,
        max_energy_error: float,
        inv_mass: Tensor | None,
        factor: Tensor | None,
        num: int,
    ) -> Grown:
        """``num`` transitions from theta, log_prob and grad, with a mass of any kind."""
        from bnn_utils.gradients.growth import SETTING, padded
        from bnn_utils.gradients.writer import width_of

        likelihood, like = self._likelihood, start[0]
        check_vectors((likelihood.num_lanes, len(self._prior.precision)), self._prior.precision.dtype, like, start[2])
        theta, log_prob, grad = (values.clone(memory_format=torch.contiguous_format) for values in start)
        num_lanes, dim = theta.shape
        width = width_of(theta.dtype.itemsize)
        size = padded(dim, width)
        filled_up = lambda values: F.pad(values, (0, size - dim)).contiguous()  # noqa: E731
        mass = torch.ones_like(self._prior.precision) if inv_mass is None else inv_mass
        whole, flag = {"dtype": torch.int64}, {"dtype": torch.bool}
        records = {
            "thetas": theta.new_empty(num_lanes, num, dim),
            **{name: theta.new_empty(num_lanes, num) for name in ("log_probs", "rates", "energies", "errors")},
            **{name: torch.empty(num_lanes, num, **whole) for name in ("steps", "depths")},
            **{name: torch.empty(num_lanes, num, **flag) for name in ("diverging", "reached")},
        }
        arrays = {
            "constants": theta.new_tensor([step_size, self._prior.log_normalizer.item(), -max_energy_error]),
            "precision": filled_up(self._prior.precision),
            "inv_mass": filled_up(mass),
            **{"theta": theta, "log_prob": log_prob, "grad": grad},
            **{"asked": torch.empty_like(theta), "value": torch.empty_like(log_prob), "slope": torch.empty_like(grad)},
        }
        sizes = {"num_lanes": num_lanes, "dim": dim, "length": num, "max_depth": max_depth}
        sizes |= {"is_dense": int(mass.ndim == 2), "in_tile": likelihood.lanes_in_tile}
        length = max(1, NUMBERS_AHEAD // theta.numel())
        num_tiles = -(-num_lanes // likelihood.lanes_in_tile)
        for begin in range(0, num, length):
            count = min(length, num - begin)
            first, noise, second = drawn(generator, count, theta, likelihood.numbers, num_lanes)
            noise = mixed(noise, factor)
            is_diagonal = factor is not None and factor.ndim == 1
            arrays["momenta"], arrays["keys"] = noise * factor if is_diagonal else noise, lane_keys(first, second)
            of_block = {name: values[:, begin : begin + count] for name, values in records.items()}
            addresses = {name: values.data_ptr() for name, values in (arrays | of_block).items()}
            known = sizes | {"num": count} | addresses
            tiles = itertools.count()  # the next one goes to whichever thread is free: they take unlike long

            def work(known: dict[str, int] = known, tiles: Any = tiles) -> None:
                try:
                    memory = self._memory[max_depth].pop()
                except IndexError:
                    memory = self._new_memory(max_depth, width, size)
                address, context, _, numbers, counts = memory
                known = known | {"likelihood": address, "context": context.data_ptr()}
                setting = torch.tensor([known[name] for name in SETTING])
                while (tile := next(tiles)) < num_tiles:
                    _nuts(theta.dtype)(
                        tile, tile + 1, numbers.shape[1], *(x.data_ptr() for x in (setting, numbers, counts))
                    )
                self._memory[max_depth].append(memory)

            worth = likelihood.seconds * TYPICAL_STEPS * count / SECONDS_FOR_THREADS
            in_threads(work, int(max(1, min(likelihood.num_threads, num_tiles, worth))))
        return Grown(theta, log_prob, grad, *records.values())

    def _new_memory(self, max_depth: int, width: int, size: int) -> tuple[Any, ...]:
        """For one thread: the likelihood's address and what it is to be given, and what lanes of a tile work in."""
        from bnn_utils.gradients.growth import COUNTS, memory_of

        lanes, dtype = self._likelihood.lanes_in_tile, self._prior.precision.dtype
        numbers = torch.zeros(lanes, memory_of(size, max_depth, width), dtype=dtype)
        return *self._likelihood.called(), numbers, torch.zeros(lanes, len(COUNTS), dtype=torch.int64)


@functools.cache
def _nuts(dtype: torch.dtype) -> Any:
    """The function, compiled now or before, in this process or another one.

    Raises:
        ImportError: without llvmlite.
        RuntimeError: where LLVM fails, or the processor is too old.
    """
    from bnn_utils import random
    from bnn_utils.gradients import formulas, growth, machine, vector, writer

    name = str(dtype).removeprefix("torch.")
    files = tuple(module.__file__ for module in (growth, formulas, vector, writer, random))
    library = machine.load(("nuts", name), lambda: growth.assemble(name), files)
    function = library.function("nuts", 3 * [ctypes.c_int64] + 3 * [ctypes.c_void_p])
    function.library = library  # lives as long
    return function
