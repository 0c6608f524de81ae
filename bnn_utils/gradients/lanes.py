"""What algorithms have in common whose lanes go each its own way, as instructions for LLVM.

The log likelihood is a function that is called by its address, for a tile of lanes at a time. Within a tile a lane that
has ended a transition begins its next one, whatever the others do, so that none waits. All else is done lane by lane,
in memory of its own: rows of D numbers, filled up with zeros to whole vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from llvmlite import ir

from bnn_utils.gradients.formulas import finite
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I64, VOID, Value, Writer

I1 = ir.IntType(1)


@dataclass(frozen=True)
class Layout:
    """What an algorithm adds, by names, to what is the same in all: sizes, and C lanes, D parameters, T transitions.

    Attributes:
        sizes: whole numbers that are the same for all lanes.
        constants: numbers that are.
        arrays: for all lanes.
        rows, numbers, counts: of a lane's memory, whose counts are whole numbers.
        moving: arrays ``(C, D)`` or ``(C,)`` that hold a lane's rows and numbers before and after all transitions.
    """

    sizes: tuple[str, ...]
    constants: tuple[str, ...]
    arrays: tuple[str, ...]
    rows: tuple[str, ...]
    numbers: tuple[str, ...]
    counts: tuple[str, ...]
    moving: tuple[tuple[str, str], ...] = ()

    @property
    def setting(self) -> tuple[str, ...]:
        """All sizes, and where the likelihood, what it is to be given, and all arrays begin."""
        return (
            *("num_lanes", "dim", "num", "length", "in_tile", *self.sizes, "likelihood", "context"),
            *("constants", "precision"),  # of the prior, (D,), filled up
            *("theta", "log_prob", "grad"),  # of the posterior: where lanes are; they move
            *("asked", "value", "slope"),  # where the log likelihood is asked for, and what it is there; like theta ...
            *("thetas", "log_probs"),  # what is recorded, (C, length, D) and (C, length)
            *self.arrays,
        )

    @property
    def all_constants(self) -> tuple[str, ...]:
        return ("log_normalizer", *self.constants)  # of the prior

    @property
    def all_rows(self) -> tuple[str, ...]:
        """Where a lane is going, where it was in the state that was chosen last, and the algorithm's."""
        return ("theta", "grad", "theta_chosen", "grad_chosen", *self.rows)

    @property
    def all_numbers(self) -> tuple[str, ...]:
        return ("log_prob_chosen", *self.numbers)

    @property
    def all_counts(self) -> tuple[str, ...]:
        return ("transition", *self.counts)

    @property
    def all_moving(self) -> tuple[tuple[str, str], ...]:
        chosen = tuple((name, f"{name}_chosen") for name in ("theta", "grad", "log_prob"))
        return (*chosen, *self.moving)

    def memory(self, size: int, width: int, more_rows: int) -> int:
        """Numbers of a lane's memory beside counts, with rows of ``size``."""
        return (len(self.all_rows) + more_rows) * size + padded(len(self.all_numbers), width)


def padded(num: int, width: int) -> int:
    return -(-num // width) * width


class Lane:
    """A function in the making that works for one lane: its memory, and what is the same for all."""

    def __init__(
        self, writer: Assembly, b: ir.IRBuilder, setting: Value, numbers: Value, counts: Value, lane: Value
    ) -> None:
        self.writer, self.b, self.arguments, self.lane = writer, b, [setting, numbers, counts, lane], lane
        self.layout = writer.layout
        self.setting, self.numbers, self.counts = setting, numbers, counts
        self.dim = self.field("dim")
        width = writer.width
        self.size = b.and_(b.add(self.dim, I64(width - 1)), I64(-width))
        self.v = Vectors(b, writer.scalar, width)
        self.one = Vectors(b, writer.scalar, 1)

    # --- memory -------------------------------------------------------------------------------------------------------

    def field(self, name: str) -> Value:
        return self.b.load(self.writer.at(self.b, self.setting, I64(self.layout.setting.index(name))))

    def array(self, name: str, *places: Value, kind: ir.Type | None = None) -> Value:
        """Where an array begins, or one of its numbers is."""
        pointer = self.b.inttoptr(self.field(name), (kind or self.writer.scalar).as_pointer())
        return self.writer.at(self.b, pointer, *places) if places else pointer

    def constant(self, name: str) -> Value:
        return self.b.load(self.array("constants", I64(self.layout.all_constants.index(name))))

    def row(self, name: str, side: Value | None = None) -> Value:
        place = I64(self.layout.all_rows.index(name))
        return self.row_at(place if side is None else self.b.add(place, side))

    def row_at(self, place: Value) -> Value:
        before = I64(padded(len(self.layout.all_numbers), self.writer.width))  # numbers lie before all rows
        return self.writer.at(self.b, self.numbers, self.b.add(before, self.b.mul(place, self.size)))

    def _place(self, name: str) -> Value:
        counts, numbers = self.layout.all_counts, self.layout.all_numbers
        array, names = (self.counts, counts) if name in counts else (self.numbers, numbers)
        return self.writer.at(self.b, array, I64(names.index(name)))

    def get(self, name: str) -> Value:
        return self.b.load(self._place(name))

    def set(self, **values: Value | int) -> None:
        for name, value in values.items():
            self.b.store(I64(value) if isinstance(value, int) else value, self._place(name))

    # --- rows ---------------------------------------------------------------------------------------------------------

    def over(self, *rows: Value) -> Iterator[tuple[list[Value], list[Value]]]:
        """A loop over whole vectors of rows: what they hold, and where."""
        with self.writer.loop(self.b, I64(0), self.size, self.writer.width) as k:
            places = [self.writer.at(self.b, row, k) for row in rows]
            yield [self.writer.load(self.b, place, self.v.type) for place in places], places

    def copy(self, *pairs: tuple[Value, Value]) -> None:
        """From rows to rows."""
        for values, places in self.over(*(row for pair in pairs for row in pair)):
            for value, place in zip(values[::2], places[1::2], strict=True):
                self.writer.store(self.b, value, place)

    def copy_numbers(self, source: Value, target: Value) -> None:
        """D of them, where at least one is not a row, and nothing may be written behind the last."""
        with self.writer.loop(self.b, I64(0), self.dim) as k:
            self.b.store(self.b.load(self.writer.at(self.b, source, k)), self.writer.at(self.b, target, k))

    def clear(self, row: Value) -> None:
        for _, (place,) in self.over(row):
            self.writer.store(self.b, self.v.constant(0.0), place)

    def sums(self, num: int, terms: Callable[[list[Value]], list[tuple[Value, Value]]], *rows: Value) -> list[Value]:
        """Over rows, of ``num`` products ``a b`` with (a, b) of terms."""
        totals = [self.writer.variable(self.b, self.v.type) for _ in range(num)]
        for total in totals:
            self.b.store(self.v.constant(0.0), total)
        for values, _ in self.over(*rows):
            for total, (a, b) in zip(totals, terms(values), strict=True):
                self.b.store(self.v.fma(a, b, self.b.load(total)), total)
        return [self.v.sum(self.b.load(total)) for total in totals]

    # --- numbers ------------------------------------------------------------------------------------------------------

    def on_one(self, function: Callable[..., Value], *values: Value) -> Value:
        """A function of vectors for numbers."""
        return self.b.extract_element(function(*map(self.one.splat, values)), I64(0))

    def log_sum_exp(self, x: Value, y: Value) -> Value:
        """``log(exp(x) + exp(y))``, of which one may be minus infinity, and y is not."""
        high, low = self.on_one(self.one.max, x, y), self.on_one(self.one.min, x, y)
        rest = self.on_one(lambda d: self.one.log1p(self.one.exp(d)), self.b.fsub(low, high))
        return self.b.fadd(high, rest)

    def probability(self, log_ratio: Value) -> Value:
        """``min(1, exp(log_ratio))``"""
        zero = self.one.constant(0.0)
        return self.on_one(lambda x: self.one.exp(self.one.min(x, zero)), log_ratio)

    def is_less(self, x: Value, y: Value) -> Value:
        return self.b.fcmp_ordered("<", x, y)

    def finite_or_least(self, log_ratio: Value) -> Value:
        """The number where it is finite, and minus infinity otherwise: what is never taken."""
        is_finite = self.on_one(lambda x: finite(self.one, x), log_ratio)
        return self.b.select(is_finite, log_ratio, self.writer.scalar(-math.inf))

    # --- the density --------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """For the log likelihood at the row of theta."""
        self.copy_numbers(self.row("theta"), self.array("asked", self.b.mul(self.lane, self.dim)))

    def answer(self) -> Value:
        """The log density of the posterior there, whose gradient goes to the row of grad."""
        b, v = self.b, self.v
        self.copy_numbers(self.array("slope", b.mul(self.lane, self.dim)), self.row("grad"))
        theta, precision = self.row("theta"), self.array("precision")
        for (at, grad, weight), (_, place, _) in self.over(theta, self.row("grad"), precision):
            self.writer.store(b, v.fma(v.neg(weight), at, grad), place)
        squares = self.sums(1, lambda r: [(v.mul(r[1], r[0]), r[0])], theta, precision)
        log_prior = b.fsub(self.constant("log_normalizer"), b.fmul(self.writer.scalar(0.5), squares[0]))
        return b.fadd(b.load(self.array("value", self.lane)), log_prior)

    def place_drawn(self) -> Value:
        """Of what was drawn for the lane's transition, in arrays ``(T, C)``."""
        return self.b.add(self.b.mul(self.get("transition"), self.field("num_lanes")), self.lane)

    def record(self, **values: Value) -> None:
        """Of a transition that has ended with the state that was chosen: that, and what else has an array."""
        b, transition = self.b, self.get("transition")
        place = b.add(b.mul(self.lane, self.field("length")), transition)
        self.copy_numbers(self.row("theta_chosen"), self.array("thetas", b.mul(place, self.dim)))
        for name, value in {"log_probs": self.get("log_prob_chosen"), **values}.items():
            b.store(value, self.array(name, place, kind=value.type))
        self.set(transition=b.add(transition, I64(1)))


class Assembly(Writer):
    """A module in the making, whose lanes ``begin`` a transition, ``go`` to where the log likelihood is asked for, and
    ``arrive`` there: that says whether all of the lane's transitions are over, the last of which ``end`` has recorded.
    """

    layout: ClassVar[Layout]
    of_lane: ClassVar[type[Lane]] = Lane
    begin: ir.Function
    go: ir.Function
    arrive: ir.Function
    end: ir.Function

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.whole = I64.as_pointer()

    def for_lane(self, name: str, write: Callable[[Any], None], result: ir.Type = VOID) -> ir.Function:
        """A function of a lane: setting, numbers, counts, lane; written by one of ``of_lane``."""
        kind = ir.FunctionType(result, [self.whole, self.pointer, self.whole, I64])
        function = self.function(name, kind, internal=True)
        b = ir.IRBuilder(function.append_basic_block())
        write(self.of_lane(self, b, *function.args))
        if result == VOID:
            b.ret_void()
        return function

    def ended(self, lane: Lane) -> Value:
        """The transition is recorded, and the next one begins, if there is another; whether there is none."""
        b = lane.b
        b.call(self.end, lane.arguments)
        is_over = b.icmp_signed("==", lane.get("transition"), lane.field("num"))
        with b.if_then(b.not_(is_over)):
            b.call(self.begin, lane.arguments)
        return is_over

    def write_transitions(self) -> None:
        """T transitions of the lanes of tiles from ``first`` to ``last``: setting, and memory for a tile's lanes."""
        kind = ir.FunctionType(VOID, [I64, I64, I64, self.whole, self.pointer, self.whole])
        function = self.function("transitions", kind)
        first, last, memory, setting, numbers, counts = function.args
        b = ir.IRBuilder(function.append_basic_block())
        all_lanes = self.of_lane(self, b, setting, numbers, counts, I64(0))
        running = self.variable(b, I64)
        in_tile, num_lanes = all_lanes.field("in_tile"), all_lanes.field("num_lanes")

        @contextmanager
        def lanes(tile: Value) -> Iterator[Lane]:
            begin = b.mul(tile, in_tile)
            end = b.add(begin, in_tile)
            with self.loop(b, begin, b.select(b.icmp_signed("<", end, num_lanes), end, num_lanes)) as lane:
                place, num_counts = b.sub(lane, begin), I64(len(self.layout.all_counts))
                mine = self.at(b, numbers, b.mul(place, memory)), self.at(b, counts, b.mul(place, num_counts))
                yield self.of_lane(self, b, setting, *mine, lane)

        @contextmanager
        def lanes_that_run(tile: Value) -> Iterator[Lane]:
            with lanes(tile) as lane, b.if_then(b.icmp_signed("<", lane.get("transition"), lane.field("num"))):
                yield lane

        p = self.pointer
        likelihood = ir.FunctionType(VOID, [self.whole, I64, p, p, p]).as_pointer()
        address = b.inttoptr(all_lanes.field("likelihood"), likelihood)
        context = all_lanes.array("context", kind=I64)
        asked = [all_lanes.array(name) for name in ("asked", "value", "slope")]
        with self.loop(b, first, last) as tile:
            b.store(I64(0), running)
            with lanes(tile) as lane:
                for array, name in self.layout.all_moving:
                    if name in self.layout.all_numbers:
                        lane.set(**{name: b.load(lane.array(array, lane.lane))})
                    else:
                        lane.clear(lane.row(name))
                        lane.copy_numbers(lane.array(array, b.mul(lane.lane, lane.dim)), lane.row(name))
                lane.set(transition=0)
                b.call(self.begin, lane.arguments)
                b.store(b.add(b.load(running), I64(1)), running)
            head, body, after = (b.append_basic_block() for _ in range(3))
            b.branch(head)
            b.position_at_end(head)
            b.cbranch(b.icmp_signed("<", I64(0), b.load(running)), body, after)
            b.position_at_end(body)
            with lanes_that_run(tile) as lane:
                b.call(self.go, lane.arguments)
            b.call(address, [context, tile, *asked])
            with lanes_that_run(tile) as lane:
                is_over = b.call(self.arrive, lane.arguments)
                b.store(b.sub(b.load(running), b.zext(is_over, I64)), running)
            b.branch(head)
            b.position_at_end(after)
            with lanes(tile) as lane:
                for array, name in self.layout.all_moving:
                    if name in self.layout.all_numbers:
                        b.store(lane.get(name), lane.array(array, lane.lane))
                    else:
                        lane.copy_numbers(lane.row(name), lane.array(array, b.mul(lane.lane, lane.dim)))
        b.ret_void()
