"""A network at fixed inputs: as many points and vectors at once as memory allows, and what is frozen once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnn_utils.flat import FlatModule
from bnn_utils.layers import Layer
from bnn_utils.tape import Tape

# Bytes that all operations on a block write together. A forward pass holds less at any time, a gradient up to some
# three times as much. Four times as large was a fifth slower, a quarter as large no faster.
BLOCK_BYTES = 2**26

# What frozen parts make of the data is kept up to this size, and computed at every call beyond.
CONSTANT_BYTES = 2**29

Maker = Callable[[FlatModule, Tensor], Callable[[Tensor], Tensor]]  # network and inputs to a function of theta


class Cost(NamedTuple):
    """Bytes that the operations of a network write, and that a tape keeps."""

    per_point: int  # and vector
    per_lane: int  # whatever the number of points: parameters, and what is made of them alone
    kept: int = 0  # per point, of what frozen parts make of the inputs


class Network:
    """A network at inputs x: theta ``(D,)`` to outputs ``(N, ...)``, ``(C, D)`` to ``(C, N, ...)``.

    Made by `at_inputs`.

    Args:
        flat: the network, whose output for a point must not depend on the other points.
        x: inputs, shape ``(N, ...)``.
        make: what makes functions of theta: the network as it is, or a `Tape` of it.
        cost: of such a function.
        most: points in a block.

    Attributes:
        blocks: of points, and for each the function from theta to the outputs there.
        num_points: N.
        num_lanes: how many vectors go through a block at once.
    """

    def __init__(self, flat: FlatModule, x: Tensor, make: Maker, cost: Cost, most: int) -> None:
        self._flat, self._make, self._cost, self._most = flat, make, cost, max(1, most)
        self.num_points = len(x)
        parts = x.tensor_split(max(1, -(-len(x) // self._most)))  # as equal as can be
        ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
        self.blocks = [(slice(end - len(part), end), make(flat, part)) for part, end in zip(parts, ends, strict=True)]
        at_once = cost.per_lane + cost.per_point * max(map(len, parts))
        self.num_lanes = max(1, BLOCK_BYTES // max(1, at_once))

    def at(self, x: Tensor) -> Network:
        """The same network at other inputs, made as this one is."""
        has_room = self._cost.kept * len(x) <= CONSTANT_BYTES
        return Network(self._flat, x, self._make if has_room else _each_time, self._cost, self._most)

    def __call__(self, theta: Tensor) -> Tensor:
        if theta.ndim == 2 and len(theta) > self.num_lanes:
            return torch.cat([self(rows) for rows in theta.split(self.num_lanes)])
        outputs = [network(theta) for _, network in self.blocks]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=theta.ndim - 1)

    def chain(self) -> tuple[Tensor, list[Layer]] | None:
        """Where a chain of layers follows frozen parts: what it takes, shape ``(N, features)``, and its layers."""
        tapes = [network for _, network in self.blocks if isinstance(network, Tape)]
        found = [tape.layers for tape in tapes if tape.layers is not None]
        if len(found) < len(self.blocks) or any(layers != found[0][1] for _, layers in found):
            return None
        return torch.cat([features for features, _ in found]), found[0][1]


def at_inputs(flat: FlatModule, x: Tensor) -> Network:
    """The network at inputs x, where what frozen parts make of x is computed once if that is certain to be the same.

    Certain is what a `Tape` has seen to be independent of theta, if the tape gives what the network gives, at the
    network's own parameters and at others.
    """
    cost = cost_of(flat, x)
    has_constants = len(list(flat.module.parameters())) > len(flat.shapes) or any(True for _ in flat.module.buffers())
    if has_constants and x.device.type != "meta":
        try:
            taped = _taped(flat, x, cost)
        except Exception:  # of whatever kind: a module that a tape cannot follow runs as a whole
            taped = None
        if taped is not None:
            return taped
    return Network(flat, x, _whole, cost, BLOCK_BYTES // max(1, cost.per_point))


def _taped(flat: FlatModule, x: Tensor, whole: Cost) -> Network | None:
    """The network by tapes; None where they are not complete, save nothing, keep too much or give something else."""
    few = _few(x)
    tapes = [Tape(flat, x[:num]) for num in few]
    if not all(tape.is_complete for tape in tapes):
        return None
    cost = _cost(Tape, flat, x)
    kept, _ = _per_point([sum(tensor.nbytes for tensor in tape.constants) for tape in tapes], few)
    if cost.per_point >= whole.per_point or kept * len(x) > CONSTANT_BYTES:
        return None
    cost = cost._replace(kept=kept)
    # While a tape is recorded or compared the whole network runs, of which less is held at once than it writes.
    most = BLOCK_BYTES // max(1, cost.per_point, whole.per_point // 2)
    network = Network(flat, x, Tape, cost, most)
    theta = flat.ravel()
    lanes = torch.stack([theta, theta + torch.linspace(-0.1, 0.1, flat.dim).to(theta)])
    with torch.no_grad():
        for part, tape in network.blocks:
            assert isinstance(tape, Tape)
            found, expected = tape(lanes), flat(lanes, x[part])
            atol = torch.finfo(theta.dtype).eps ** 0.75 * expected.abs().nan_to_num().max().item()
            if not (tape.is_complete and torch.allclose(found, expected, rtol=0, atol=atol, equal_nan=True)):
                return None
    return network


def _whole(flat: FlatModule, x: Tensor) -> Callable[[Tensor], Tensor]:
    return partial(flat, x=x)


def _each_time(flat: FlatModule, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A tape that is recorded for each block of vectors, and not kept."""
    return lambda theta: Tape(flat, x)(theta)


def _few(x: Tensor) -> list[int]:
    """Numbers of points by which to measure: not one, which some networks take for something else."""
    return [2, 4] if len(x) >= 4 else [0, len(x)]


def _per_point(amounts: list[int], few: list[int]) -> tuple[int, int]:
    """Slope and intercept of amounts that grow with the number of points."""
    slope = max(0, amounts[1] - amounts[0]) // (few[1] - few[0])
    return slope, max(0, amounts[0] - slope * few[0])


def cost_of(flat: FlatModule, x: Tensor) -> Cost:
    """Of the network as it is, with nothing computed once."""
    return _cost(_whole, flat, x)


@torch.no_grad()
def _cost(make: Maker, flat: FlatModule, x: Tensor) -> Cost:
    few, theta, written = _few(x), flat.ravel(), []
    for num in few:
        network = make(flat, x[:num]) if num else None
        with _Meter() as meter:
            if network is not None:
                network(theta)
        written.append(meter.bytes)
    per_point, per_lane = _per_point(written, few)
    return Cost(per_point, per_lane + 2 * theta.nbytes)


class _Meter(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, inside modules and outside; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would load all of its compiler, in a second or more

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        taken = {_memory(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        made = [tensor for tensor in tree_leaves(outputs) if isinstance(tensor, Tensor)]
        self.bytes += sum(tensor.nbytes for tensor in made if _memory(tensor) not in taken)
        return outputs


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
