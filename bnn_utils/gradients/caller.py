"""Transitions in native code that call a likelihood: what `leapfrog`, `growth` and `isokinetic` describe, called for
tensors.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bnn_utils.gradients.native import SECONDS_FOR_THREADS, Transitions, check_vectors, drawn, in_threads, mixed, varied
from bnn_utils.random import lane_keys

if TYPE_CHECKING:
    from bnn_utils.gradients.fused import Fused
    from bnn_utils.gradients.joints import Joint, Nothing
    from bnn_utils.gradients.native import Native
    from bnn_utils.priors import DiagonalNormal

# That are drawn for a block of transitions. Lanes wait for each other at its end, so that it is a long one.
NUMBERS_AHEAD = 2**22
DIRECTION, SUBTREE, STATE = range(3)  # what a lane's numbers decide in NUTS
TYPICAL_STEPS = 16  # of a transition of NUTS, to judge what is worth a thread

Start = tuple[Tensor, Tensor, Tensor]  # theta (C, D), its log density (C,) and gradient (C, D)


class Grown(NamedTuple):
    """Where T transitions of NUTS lead C lanes, and what is recorded of them."""

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


class Travelled(NamedTuple):
    """Where T trajectories at constant speed lead C lanes, and what is recorded of them."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    grad: Tensor  # (C, D)
    u: Tensor  # (C, D)
    end_theta: Tensor  # (C, D), of the last trajectory, whether it was taken or not
    end_log_prob: Tensor  # (C,)
    end_grad: Tensor  # (C, D)
    thetas: Tensor  # (C, T, D)
    log_probs: Tensor  # (C, T), as are all that follow
    rates: Tensor
    errors: Tensor
    accepts: Tensor  # bool
    sizes: Tensor


class Caller:
    """Transitions of HMC, of NUTS and of the microcanonical samplers, under independent normals.

    They call any log likelihood that native code computes. Lanes are shared out among threads, which changes no number.

    Args:
        likelihood: in native code.
        prior: of all parameters.

    Attributes:
        splits_lanes: the likelihood's.
    """

    def __init__(self, likelihood: Native | Fused | Joint, prior: DiagonalNormal | Nothing) -> None:
        self._likelihood, self._prior, self.splits_lanes = likelihood, prior, likelihood.splits_lanes
        # That no thread works in now, by what is computed and how many more rows that takes.
        self._memory: defaultdict[tuple[str, int], list[tuple[Any, ...]]] = defaultdict(list)

    def transitions(
        self,
        generator: torch.Generator,
        start: Start,
        step_size: float,
        jitter: float,
        num_steps: Tensor,
        inv_mass: Tensor | None,
        factor: Tensor | None,
    ) -> Transitions:
        """Transitions of HMC, as `Native.transitions`, with a mass of any kind."""
        from bnn_utils.gradients import leapfrog

        num, arrays = len(num_steps), self._begun(start)
        theta = arrays["theta"]
        arrays["inv_mass"], is_dense = self._mass(inv_mass)
        records = self._records(num, "start_energy", "end_energy", "step_size")
        records |= self._records(num, "is_accept", dtype=torch.bool)

        def drawn_for(block: slice) -> dict[str, Tensor]:
            before, noise, uniforms = self._drawn(generator, block, theta, bool(jitter), True)
            sizes = varied(step_size, jitter, before, uniforms)
            records["step_size"][:, block] = sizes.T
            steps = num_steps[block].contiguous()
            return {"momenta": _momenta(noise, factor), "sizes": sizes, "uniforms": uniforms, "steps": steps}

        self._call(leapfrog, 0, {"is_dense": is_dense}, {}, arrays, records, drawn_for, num, int(num_steps.sum()))
        return Transitions(**{name: (arrays | records)[name] for name in Transitions._fields})

    def grow(
        self,
        generator: torch.Generator,
        start: Start,
        step_size: float,
        max_depth: int,
        max_energy_error: float,
        inv_mass: Tensor | None,
        factor: Tensor | None,
        num: int,
    ) -> Grown:
        """``num`` transitions of NUTS, with a mass of any kind."""
        from bnn_utils.gradients import growth

        arrays = self._begun(start)
        theta = arrays["theta"]
        arrays["inv_mass"], is_dense = self._mass(inv_mass)
        sizes = {"max_depth": max_depth, "is_dense": is_dense}
        constants = {"step_size": step_size, "least_log_weight": -max_energy_error}
        records = self._records(num, "rates", "energies", "errors")
        records |= self._records(num, "steps", "depths", dtype=torch.int64)
        records |= self._records(num, "diverging", "reached", dtype=torch.bool)

        def drawn_for(block: slice) -> dict[str, Tensor]:
            first, noise, second = self._drawn(generator, block, theta, True, True)
            return {"momenta": _momenta(noise, factor), "keys": lane_keys(first, second)}

        rows, num_steps = growth.rows_of(max_depth), num * TYPICAL_STEPS
        self._call(growth, rows, sizes, constants, arrays, records, drawn_for, num, num_steps)
        return Grown(**{name: (arrays | records)[name] for name in Grown._fields})

    def travel(
        self,
        generator: torch.Generator,
        start: Start,
        u: Tensor | None,
        nu: float,
        step_size: float,
        jitter: float,
        num_steps: Tensor,
        outer: float,
        max_energy_error: float,
        factor: Tensor | None,
    ) -> Travelled:
        """Trajectories at constant speed, one for each of the numbers of steps ``(T,)``, int64.

        Args:
            u: directions ``(C, D)``, which go on from one trajectory to the next, and all are taken that do not
                diverge; None to draw each anew, and accept or reject its end.
            nu: how much noise they get.
            outer: the part of a step that its outer kicks have.
            factor: of a diagonal mass, as in `Metric`.
        """
        from bnn_utils.gradients import isokinetic

        num, arrays, keeps = len(num_steps), self._begun(start), u is not None
        theta = arrays["theta"]
        if u is not None:
            self._check(u)
        arrays["u"] = torch.zeros_like(theta) if u is None else _copied(u)
        arrays |= {f"end_{name}": arrays[name].clone() for name in ("theta", "log_prob", "grad")}
        scale = torch.ones_like(self._prior.precision) if factor is None else factor.reciprocal()
        arrays["scale"] = self._filled_up(scale)
        records = self._records(num, "rates", "errors", "sizes") | self._records(num, "accepts", dtype=torch.bool)
        least = -max_energy_error if keeps else -torch.inf
        constants = {"nu": nu, "outer": outer, "least_log_ratio": least}

        def drawn_for(block: slice) -> dict[str, Tensor]:
            before, noise, uniforms = self._drawn(generator, block, theta, bool(jitter), not keeps)
            uniforms = theta.new_zeros(len(noise), len(theta)) if keeps else uniforms
            sizes = varied(step_size, jitter, before, uniforms)
            records["sizes"][:, block] = sizes.T
            return {"noise": noise, "sizes": sizes, "uniforms": uniforms, "steps": num_steps[block].contiguous()}

        sizes = {"keeps_u": int(keeps)}
        self._call(isokinetic, 0, sizes, constants, arrays, records, drawn_for, num, 2 * int(num_steps.sum()))
        return Travelled(**{name: (arrays | records)[name] for name in Travelled._fields})

    def _check(self, *values: Tensor) -> None:
        precision = self._prior.precision
        check_vectors((self._likelihood.num_lanes, len(precision)), precision.dtype, *values)

    def _begun(self, start: Start) -> dict[str, Tensor]:
        """Arrays of lanes that begin there."""
        self._check(start[0], start[2])
        theta, log_prob, grad = map(_copied, start)
        asked = {"asked": torch.empty_like(theta), "value": torch.empty_like(log_prob), "slope": torch.empty_like(grad)}
        return {"theta": theta, "log_prob": log_prob, "grad": grad, "precision": self._precision, **asked}

    def _records(self, num: int, *names: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        shape = self._likelihood.num_lanes, num
        return {name: torch.empty(shape, dtype=dtype or self._prior.precision.dtype) for name in names}

    def _drawn(
        self, generator: torch.Generator, block: slice, theta: Tensor, before: bool, after: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a block of transitions draws, with a uniform number of each lane before and after the noise, or none."""
        num, num_lanes = block.stop - block.start, len(theta)
        return drawn(generator, num, theta, self._likelihood.numbers, num_lanes * before, num_lanes * after)

    def _mass(self, inv_mass: Tensor | None) -> tuple[Tensor, int]:
        """As an array, and whether it is dense."""
        mass = torch.ones_like(self._prior.precision) if inv_mass is None else inv_mass
        return self._filled_up(mass), int(mass.ndim == 2)

    def _filled_up(self, values: Tensor) -> Tensor:
        """Rows ``(..., D)`` with zeros up to whole vectors."""
        return F.pad(values, (0, self._row - values.shape[-1])).contiguous()

    @functools.cached_property
    def _precision(self) -> Tensor:
        return self._filled_up(self._prior.precision)

    @functools.cached_property
    def _log_normalizer(self) -> float:
        return self._prior.log_normalizer.item()

    @functools.cached_property
    def _width(self) -> int:
        from bnn_utils.gradients.writer import width_of

        return width_of(self._prior.precision.dtype.itemsize)

    @functools.cached_property
    def _row(self) -> int:
        """Numbers of a row that is filled up."""
        from bnn_utils.gradients.lanes import padded

        return padded(len(self._prior.precision), self._width)

    def _call(
        self,
        algorithm: ModuleType,
        more_rows: int,
        sizes: dict[str, int],
        constants: dict[str, float],
        arrays: dict[str, Tensor],
        records: dict[str, Tensor],
        drawn_for: Callable[[slice], dict[str, Tensor]],
        num: int,
        num_gradients: int,
    ) -> None:
        """``num`` transitions of all lanes, in blocks whose numbers are drawn together.

        Args:
            algorithm: the module that describes it.
            more_rows: of a lane's memory, beyond those of its layout.
            sizes, constants, arrays: of its layout.
            records: what is recorded, ``(C, T)``; where lanes go, and their log densities, come to it.
            drawn_for: arrays for a block.
            num_gradients: roughly, of each lane.
        """
        likelihood, layout, theta = self._likelihood, algorithm.LAYOUT, arrays["theta"]
        (num_lanes, dim), function = theta.shape, _transitions(algorithm, theta.dtype)
        records["thetas"], records["log_probs"] = theta.new_empty(num_lanes, num, dim), theta.new_empty(num_lanes, num)
        constants = constants | {"log_normalizer": self._log_normalizer}
        arrays["constants"] = theta.new_tensor([constants[name] for name in layout.all_constants])
        sizes = sizes | {"num_lanes": num_lanes, "dim": dim, "length": num, "in_tile": likelihood.lanes_in_tile}
        length, num_tiles = max(1, NUMBERS_AHEAD // theta.numel()), -(-num_lanes // likelihood.lanes_in_tile)
        pool = self._memory[algorithm.__name__, more_rows]
        worth = likelihood.seconds * num_gradients / num / SECONDS_FOR_THREADS  # of each transition
        for begin in range(0, num, length):
            block = slice(begin, min(begin + length, num))
            count, of_block = block.stop - begin, {name: values[:, block] for name, values in records.items()}
            present = arrays | of_block | drawn_for(block)
            known = sizes | {"num": count} | {name: values.data_ptr() for name, values in present.items()}
            tiles = itertools.count()  # the next one goes to whichever thread is free: they take unlike long

            def work(known: dict[str, int] = known, tiles: Any = tiles) -> None:
                try:
                    memory = pool.pop()
                except IndexError:
                    memory = self._new_memory(layout, more_rows)
                address, context, _, numbers, counts = memory
                known = known | {"likelihood": address, "context": context.data_ptr()}
                setting = torch.tensor([known[name] for name in layout.setting])
                while (tile := next(tiles)) < num_tiles:
                    function(tile, tile + 1, numbers.shape[1], *(x.data_ptr() for x in (setting, numbers, counts)))
                pool.append(memory)

            in_threads(work, int(max(1, min(likelihood.num_threads, num_tiles, worth * count))))

    def _new_memory(self, layout: Any, more_rows: int) -> tuple[Any, ...]:
        """For one thread: the likelihood's address and what it is to be given, and what lanes of a tile work in."""
        lanes, size = self._likelihood.lanes_in_tile, layout.memory(self._row, self._width, more_rows)
        numbers = torch.zeros(lanes, size, dtype=self._prior.precision.dtype)
        return *self._likelihood.called(), numbers, torch.zeros(lanes, len(layout.all_counts), dtype=torch.int64)


def _momenta(noise: Tensor, factor: Tensor | None) -> Tensor:
    """Of standard normal numbers ``(T, C, D)``, by the factor of a mass of any kind."""
    noise = mixed(noise, factor)
    return noise * factor if factor is not None and factor.ndim == 1 else noise


def _copied(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


@functools.cache
def _transitions(algorithm: ModuleType, dtype: torch.dtype) -> Any:
    """The function, compiled now or before, in this process or another one.

    Raises:
        ImportError: without llvmlite.
        RuntimeError: where LLVM fails, or the processor is too old.
    """
    from bnn_utils import random
    from bnn_utils.gradients import formulas, lanes, leapfrog, machine, vector, writer

    name = str(dtype).removeprefix("torch.")
    files = tuple(map(inspect.getfile, (algorithm, leapfrog, lanes, formulas, vector, writer, random)))
    library = machine.load((algorithm.__name__, name), lambda: algorithm.assemble(name), files)
    function: Any = library.function("transitions", [*3 * [ctypes.c_int64], *3 * [ctypes.c_void_p]])
    function.library = library  # lives as long
    return function
