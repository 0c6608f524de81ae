"""Joint densities with priors in closed form in native code: what `bnn_utils.gradients.elements` describes."""

from __future__ import annotations

import ctypes
import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from bnn_utils.families import ClosedForm
from bnn_utils.gradients.native import check_vectors, shared_out

if TYPE_CHECKING:
    from bnn_utils.gradients.fused import Fused
    from bnn_utils.gradients.native import Native

SECONDS_PER_SLOT = 5e-9  # of one core


class Nothing(NamedTuple):
    """What a prior of independent normals is where all of the density is in the likelihood's place."""

    precision: Tensor  # (D,), of zeros
    log_normalizer: Tensor  # 0


def can_be_joint(prior: ClosedForm) -> bool:
    """Whether there is native code for it: for parameters that are elements of theta, or exponentials of them."""
    return prior.link is None or all(isinstance(one, ExpTransform) for _, one in prior.link.transforms)


class Joint:
    """A log joint density and its gradient by theta, of which other native code makes trajectories.

    Lanes are shared out among threads, which changes no number.

    Args:
        prior: of which `can_be_joint`.
        likelihood: of the parameters, in native code.

    Attributes:
        rest: the prior that is left for what takes this as a likelihood.
        num_lanes, num_threads, lanes_in_tile, numbers, splits_lanes: the likelihood's.
        seconds: that gradients of all lanes take one core, roughly.

    Raises:
        ImportError, RuntimeError: as `native.Code`.
    """

    def __init__(self, prior: ClosedForm, likelihood: Native | Fused) -> None:
        self._likelihood, self._prior = likelihood, prior
        self.rest = Nothing(prior._like.new_zeros(prior.event_shape), prior._like.new_zeros(()))
        self._table = _Table.of(prior)
        self._functions = _functions(prior._like.dtype)
        self._contexts: list[tuple[int, Tensor, Any]] = []  # that no thread works in now
        self.num_lanes, self.lanes_in_tile = likelihood.num_lanes, likelihood.lanes_in_tile
        self.numbers, self.splits_lanes = likelihood.numbers, likelihood.splits_lanes
        self.seconds = likelihood.seconds + SECONDS_PER_SLOT * self._table.constants.shape[1] * self.num_lanes

    @property
    def num_threads(self) -> int:
        return self._likelihood.num_threads

    def log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``(C, D)`` -> ``(C,)``, ``(C, D)``."""
        check_vectors((self.num_lanes, *self._prior.event_shape), self.rest.precision.dtype, theta)
        theta = theta.contiguous()
        value, grad = theta.new_empty(len(theta)), torch.empty_like(theta)

        def call(first: int, last: int) -> None:
            try:
                context = self._contexts.pop()
            except IndexError:
                context = self.called()
            arrays = (context[1], theta, value, grad)
            context_at, *places = (array.data_ptr() for array in arrays)
            self._functions.of_tiles(context_at, first, last, *places)
            self._contexts.append(context)

        shared_out(call, -(-self.num_lanes // self.lanes_in_tile), self.num_threads, self.seconds)
        return value, grad

    def grad(self, theta: Tensor) -> Tensor:
        return self.log_prob_and_grad(theta)[1]

    def called(self) -> tuple[int, Tensor, Any]:
        """For other native code, as `Fused.called`."""
        from bnn_utils.gradients.elements import CONTEXT, ROWS

        address, inner, inner_lives = self._likelihood.called()
        table, lanes, like = self._table, self.lanes_in_tile, self.rest.precision
        num_slots = table.constants.shape[1]
        arrays = {
            "runs": table.runs,
            "slots": table.slots,
            "constants": table.constants,
            "numbers": like.new_tensor([self._prior.log_normalizer, 1.0 if self._prior.centred is None else -1.0]),
            "parameters": like.new_empty(lanes, table.num_parameters),
            "slopes": like.new_empty(lanes, table.num_parameters),
            "memory": like.new_zeros(lanes, len(ROWS), num_slots),
            "context": inner,
        }
        known = {
            "num_lanes": self.num_lanes,
            "dim": len(like),
            "num_parameters": table.num_parameters,
            "in_tile": lanes,
            "num_runs": len(table.runs),
            "num_slots": num_slots,
            "num_scales": table.num_scales,
            "likelihood": address,
            **{name: array.data_ptr() for name, array in arrays.items()},
        }
        context = torch.tensor([known[name] for name in CONTEXT])
        return self._functions.address, context, (self._functions, arrays, inner_lives)


class _Table(NamedTuple):
    """What elements there are, as native code reads it."""

    runs: Tensor  # (runs, len(RUN)), int64
    slots: Tensor  # (D,), of the elements, int64
    constants: Tensor  # (3, slots)
    num_parameters: int
    num_scales: int  # slots up to the last log scale

    @classmethod
    def of(cls, prior: ClosedForm) -> _Table:
        from bnn_utils.gradients.elements import KINDS
        from bnn_utils.gradients.writer import width_of

        (dim,), link = prior.event_shape, prior.link
        num_parameters, width = dim if link is None else link.num_parameters, width_of(prior._like.dtype.itemsize)
        kind, is_exp, scale = (torch.zeros(dim, dtype=torch.int64) for _ in range(3))
        scale -= 1
        for group in prior.groups:
            kind[group.places] = KINDS.index(group.kind)
        if link is not None:
            for places, _ in link.transforms:
                is_exp[places] = 1
            scale[link.scaled] = link.scale_of
        if prior.centred is not None:
            kind[prior.centred.places], scale[prior.centred.places] = KINDS.index("centred"), prior.centred.scale_of
        is_parameter = torch.arange(dim) < num_parameters
        # Elements of a run have all of this in common, and runs are in this order.
        keys = torch.stack([is_parameter.long(), kind, is_exp, scale], dim=1)
        found, run_of, counts = keys.unique(dim=0, return_inverse=True, return_counts=True)
        lengths = (counts + width - 1) // width * width
        lasts = width + lengths.cumsum(0)  # after a vector of nothing
        firsts = lasts - lengths
        order = run_of.argsort(stable=True)
        slots = torch.empty_like(order)
        slots[order] = (firsts - counts.cumsum(0) + counts).repeat_interleave(counts) + torch.arange(dim)
        _, kinds, are_exp, scales = found.T
        scales = torch.where(scales < 0, 0, slots[scales])
        factors = torch.where(kinds == KINDS.index("centred"), 0, scales)
        nothing = torch.tensor([[KINDS.index("normal"), 0, 0, width, 0, 0]])
        runs = torch.cat([nothing, torch.stack([kinds, are_exp, firsts, lasts, factors, scales], dim=1)])
        constants = prior._like.new_zeros(3, int(lasts[-1]))
        for group in prior.groups:
            a, b, c = group.constants
            constants[:, slots[group.places]] = (
                torch.stack([torch.ones_like(a), b.log(), c]) if group.kind == "half_student" else group.constants
            )
        if prior.centred is not None:
            constants[0, slots[prior.centred.places]] = 1
        num_scales = width + int(lengths[found[:, 0] == 0].sum())
        return cls(runs.contiguous(), slots, constants, num_parameters, num_scales)


class _Functions(NamedTuple):
    of_tiles: Any
    address: int  # of `of_tile`
    library: Any  # lives as long


@functools.cache
def _functions(dtype: torch.dtype) -> _Functions:
    """The functions, compiled now or before, in this process or another one."""
    from bnn_utils import families
    from bnn_utils.gradients import elements, machine, vector, writer

    name = str(dtype).removeprefix("torch.")
    files = tuple(map(inspect.getfile, (elements, families, vector, writer)))
    library = machine.load(("elements", name), lambda: elements.assemble(name), files)
    kinds = [ctypes.c_void_p, *2 * [ctypes.c_int64], *3 * [ctypes.c_void_p]]
    return _Functions(library.function("of_tiles", kinds), library.address("of_tile"), library)
