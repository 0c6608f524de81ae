"""NUTS as instructions for LLVM: what `bnn_utils.kernels.nuts` says, for lanes each of which goes its own way.

The log likelihood is a function that is called by its address, for a tile of lanes at a time. Within a tile a lane that
has ended a transition begins its next one, whatever the others do, so that none waits. All else is done lane by lane,
in memory of its own: rows of D numbers, filled up with zeros to whole vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llvmlite import ir

from bnn_utils.gradients.formulas import finite
from bnn_utils.gradients.trees import DIRECTION, STATE, SUBTREE
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I8, I64, VOID, Value, Writer
from bnn_utils.random import GOLDEN, KEY_BITS, LAST_SHIFT, MIXING

I1 = ir.IntType(1)

# What is the same for all lanes: numbers, and where arrays begin, C lanes, D parameters, T transitions.
SIZES = ("num_lanes", "dim", "num", "length", "max_depth", "is_dense", "in_tile")
ARRAYS = (
    "constants",  # the step size, the log of the prior's normaliser, and the log weight from which on a step diverges
    "precision",  # of the prior, (D,)
    "inv_mass",  # (D,) or (D, D); the rows of this and of precision are filled up
    *("theta", "log_prob", "grad"),  # of the posterior, (C, D), (C,), (C, D): where lanes are; they move
    *("momenta", "keys"),  # (T, C, D), and (T, C), int64
    *("asked", "value", "slope"),  # where the log likelihood is asked for, and what it is there, shapes as of theta ...
    # What is recorded: (C, length, D), and (C, length), of which the next two are int64, and the last two bytes.
    *("thetas", "log_probs", "rates", "energies", "errors", "steps", "depths", "diverging", "reached"),
)
SETTING = (*SIZES, "likelihood", "context", *ARRAYS)

# Rows of a lane's memory. Of each pair the first is the left end of the trajectory, the next one the right end.
ROWS = (
    *("thetas", "", "grads", "", "ps", "", "vs", "", "rho"),
    *("theta", "grad", "p", "v"),  # where it is going
    *("theta_chosen", "grad_chosen", "theta_added", "grad_added"),  # of the trajectory, and of its doubling
)
STRETCH = ("rho", "p_first", "v_first", "p_last", "v_last")  # rows of each that a doubling is made of so far
NUMBERS = (
    *("start", "log_prob_chosen", "energy_chosen", "log_weight", "log_prob_added", "energy_added", "log_weight_added"),
    *("size", "sum_of_rates"),
)
COUNTS = ("key", "transition", "level", "place", "side", "stretches", "steps", "depth", "is_diverging", "is_reached")


def memory_of(dim: int, max_depth: int, width: int) -> int:
    """Numbers of a lane's memory beside `COUNTS`."""
    return (len(ROWS) + len(STRETCH) * max_depth) * padded(dim, width) + padded(len(NUMBERS), width)


def padded(num: int, width: int) -> int:
    return -(-num // width) * width


def assemble(dtype: str) -> str:
    """The text of a module of LLVM with `nuts`."""
    return str(_Assembly(dtype).module)


class _Lane:
    """A function in the making that works for one lane: its memory, and what is the same for all."""

    def __init__(
        self, writer: _Assembly, b: ir.IRBuilder, setting: Value, numbers: Value, counts: Value, lane: Value
    ) -> None:
        self.writer, self.b, self.arguments, self.lane = writer, b, [setting, numbers, counts, lane], lane
        self.setting, self.numbers, self.counts = setting, numbers, counts
        self.dim = self.field("dim")
        width = writer.width
        self.size = b.and_(b.add(self.dim, I64(width - 1)), I64(-width))
        self.v = Vectors(b, writer.scalar, width)
        self.one = Vectors(b, writer.scalar, 1)

    # --- memory -------------------------------------------------------------------------------------------------------

    def field(self, name: str) -> Value:
        return self.b.load(self.writer.at(self.b, self.setting, I64(SETTING.index(name))))

    def array(self, name: str, *places: Value, kind: ir.Type | None = None) -> Value:
        """Where an array begins, or one of its numbers is."""
        pointer = self.b.inttoptr(self.field(name), (kind or self.writer.scalar).as_pointer())
        return self.writer.at(self.b, pointer, *places) if places else pointer

    def row(self, name: str, side: Value | None = None) -> Value:
        place = I64(ROWS.index(name)) if side is None else self.b.add(I64(ROWS.index(name)), side)
        return self.writer.at(self.b, self.numbers, self.b.add(self._scalars, self.b.mul(place, self.size)))

    def stretch(self, name: str, place: Value) -> Value:
        """A row of the stretch that has a place in the list of them."""
        row = self.b.add(self.b.mul(place, I64(len(STRETCH))), I64(len(ROWS) + STRETCH.index(name)))
        return self.writer.at(self.b, self.numbers, self.b.add(self._scalars, self.b.mul(row, self.size)))

    @property
    def _scalars(self) -> Value:
        """They lie before all rows."""
        return I64(padded(len(NUMBERS), self.writer.width))

    def _place(self, name: str) -> Value:
        array, names = (self.counts, COUNTS) if name in COUNTS else (self.numbers, NUMBERS)
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

    def uniform(self, place: Value, what: int) -> Value:
        b = self.b
        z = b.add(self.get("key"), b.mul(b.add(b.mul(place, I64(3)), I64(what)), I64(GOLDEN)))
        for shift, factor in MIXING:
            z = b.mul(b.xor(z, b.lshr(z, I64(shift))), I64(factor))
        z = b.lshr(b.xor(z, b.lshr(z, I64(LAST_SHIFT))), I64(64 - KEY_BITS))
        return b.fmul(b.sitofp(z, self.writer.scalar), self.writer.scalar(2.0**-KEY_BITS))

    def is_less(self, x: Value, y: Value) -> Value:
        return self.b.fcmp_ordered("<", x, y)


class _Assembly(Writer):
    """A module in the making."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.whole = I64.as_pointer()
        self.turns_back = self._turns_back()
        self.velocity = self._function("velocity", self._velocity)
        self.double = self._function("double", self._double)
        self.begin = self._function("begin", self._begin)
        self.end = self._function("end", self._end)
        self.go = self._function("go", self._go)
        self.arrive = self._function("arrive", self._arrive, I1)
        self._nuts()

    def _function(self, name: str, write: Callable[[_Lane], None], result: ir.Type = VOID) -> ir.Function:
        """Of a lane: setting, numbers, counts, lane."""
        kind = ir.FunctionType(result, [self.whole, self.pointer, self.whole, I64])
        function = self.function(name, kind, internal=True)
        b = ir.IRBuilder(function.append_basic_block())
        write(_Lane(self, b, *function.args))
        if result == VOID:
            b.ret_void()
        return function

    # --- what is called from outside ----------------------------------------------------------------------------------

    def _nuts(self) -> None:
        """T transitions of the lanes of tiles from ``first`` to ``last``: setting, and memory for a tile's lanes."""
        kind = ir.FunctionType(VOID, [I64, I64, I64, self.whole, self.pointer, self.whole])
        function = self.function("nuts", kind)
        first, last, memory, setting, numbers, counts = function.args
        b = ir.IRBuilder(function.append_basic_block())
        all_lanes = _Lane(self, b, setting, numbers, counts, I64(0))
        running = self.variable(b, I64)
        in_tile, num_lanes = all_lanes.field("in_tile"), all_lanes.field("num_lanes")

        @contextmanager
        def lanes(tile: Value) -> Iterator[_Lane]:
            begin = b.mul(tile, in_tile)
            end = b.add(begin, in_tile)
            with self.loop(b, begin, b.select(b.icmp_signed("<", end, num_lanes), end, num_lanes)) as lane:
                place = b.sub(lane, begin)
                mine = self.at(b, numbers, b.mul(place, memory)), self.at(b, counts, b.mul(place, I64(len(COUNTS))))
                yield _Lane(self, b, setting, *mine, lane)

        @contextmanager
        def lanes_that_run(tile: Value) -> Iterator[_Lane]:
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
                place = b.mul(lane.lane, lane.dim)
                lane.copy_numbers(lane.array("theta", place), lane.row("theta_chosen"))
                lane.copy_numbers(lane.array("grad", place), lane.row("grad_chosen"))
                lane.set(log_prob_chosen=b.load(lane.array("log_prob", lane.lane)), transition=0)
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
                place = b.mul(lane.lane, lane.dim)
                lane.copy_numbers(lane.row("theta_chosen"), lane.array("theta", place))
                lane.copy_numbers(lane.row("grad_chosen"), lane.array("grad", place))
                b.store(lane.get("log_prob_chosen"), lane.array("log_prob", lane.lane))
        b.ret_void()

    # --- one lane -----------------------------------------------------------------------------------------------------

    def _begin(self, lane: _Lane) -> None:
        """A transition, from the state that was chosen last, with the next momentum and key."""
        b = lane.b
        drawn = b.add(b.mul(lane.get("transition"), lane.field("num_lanes")), lane.lane)
        lane.copy_numbers(lane.array("momenta", b.mul(drawn, lane.dim)), lane.row("p"))
        b.call(self.velocity, lane.arguments)
        for side in (I64(0), I64(1)):
            lane.copy(
                (lane.row("theta_chosen"), lane.row("thetas", side)),
                (lane.row("grad_chosen"), lane.row("grads", side)),
                (lane.row("p"), lane.row("ps", side)),
                (lane.row("v"), lane.row("vs", side)),
            )
        lane.copy((lane.row("p"), lane.row("rho")))
        start = b.fsub(self._kinetic(lane), lane.get("log_prob_chosen"))
        zero = self.scalar(0.0)
        lane.set(key=b.load(lane.array("keys", drawn, kind=I64)), start=start, energy_chosen=start)
        lane.set(log_weight=zero, sum_of_rates=zero, level=0, steps=0, depth=0, is_diverging=0, is_reached=0)
        b.call(self.double, lane.arguments)

    def _double(self, lane: _Lane) -> None:
        """A doubling begins at the left or the right end."""
        b = lane.b
        first = b.shl(I64(1), lane.get("level"))
        forwards = lane.is_less(lane.uniform(first, DIRECTION), self.scalar(0.5))
        side, size = b.zext(forwards, I64), b.load(lane.array("constants"))
        lane.set(side=side, size=b.select(forwards, size, b.fneg(size)))
        lane.set(place=0, stretches=0, log_weight_added=self.scalar(-math.inf))
        lane.copy(*((lane.row(f"{name}s", side), lane.row(name)) for name in ("theta", "grad", "p")))

    def _go(self, lane: _Lane) -> None:
        """The first half of a leapfrog step, up to where the log likelihood must be known."""
        half = lane.v.splat(lane.b.fmul(lane.get("size"), self.scalar(0.5)))
        for (p, grad), (place, _) in lane.over(lane.row("p"), lane.row("grad")):
            self.store(lane.b, lane.v.fma(half, grad, p), place)
        lane.b.call(self.velocity, lane.arguments)
        size = lane.v.splat(lane.get("size"))
        for (theta, v), (place, _) in lane.over(lane.row("theta"), lane.row("v")):
            self.store(lane.b, lane.v.fma(size, v, theta), place)
        lane.copy_numbers(lane.row("theta"), lane.array("asked", lane.b.mul(lane.lane, lane.dim)))

    def _arrive(self, lane: _Lane) -> None:
        """The rest of the step, and what follows from it; whether it was the last one of all transitions."""
        b, v = lane.b, lane.v
        lane.copy_numbers(lane.array("slope", b.mul(lane.lane, lane.dim)), lane.row("grad"))
        half = v.splat(b.fmul(lane.get("size"), self.scalar(0.5)))
        rows = [*map(lane.row, ("theta", "grad", "p")), lane.array("precision")]
        for (theta, grad, p, precision), (_, at_grad, at_p, _) in lane.over(*rows):
            grad = v.fma(v.neg(precision), theta, grad)
            self.store(b, grad, at_grad)
            self.store(b, v.fma(half, grad, p), at_p)
        b.call(self.velocity, lane.arguments)
        squares = lane.sums(1, lambda r: [(v.mul(r[1], r[0]), r[0])], lane.row("theta"), lane.array("precision"))
        log_prior = b.fsub(b.load(lane.array("constants", I64(1))), b.fmul(self.scalar(0.5), squares[0]))
        log_prob = b.fadd(b.load(lane.array("value", lane.lane)), log_prior)
        energy = b.fsub(self._kinetic(lane), log_prob)
        difference = b.fsub(lane.get("start"), energy)
        is_finite = lane.on_one(lambda x: finite(lane.one, x), difference)
        log_weight = b.select(is_finite, difference, self.scalar(-math.inf))
        lane.set(steps=b.add(lane.get("steps"), I64(1)))
        lane.set(sum_of_rates=b.fadd(lane.get("sum_of_rates"), lane.probability(log_weight)))
        with b.if_then(lane.is_less(log_weight, b.load(lane.array("constants", I64(2))))):
            lane.set(is_diverging=1)
            self._return_ended(lane)
        total = lane.log_sum_exp(lane.get("log_weight_added"), log_weight)
        lane.set(log_weight_added=total)
        place, first = lane.get("place"), b.shl(I64(1), lane.get("level"))
        takes = lane.is_less(lane.uniform(b.add(first, place), STATE), lane.probability(b.fsub(log_weight, total)))
        with b.if_then(takes):
            lane.copy(*((lane.row(name), lane.row(f"{name}_added")) for name in ("theta", "grad")))
            lane.set(log_prob_added=log_prob, energy_added=energy)
        self._add_to_stretches(lane, place)
        with b.if_then(b.icmp_signed("<", b.add(place, I64(1)), first)):
            lane.set(place=b.add(place, I64(1)))
            b.ret(I1(0))
        self._take_over(lane)
        b.call(self.double, lane.arguments)
        b.ret(I1(0))

    def _add_to_stretches(self, lane: _Lane, place: Value) -> None:
        """The state as a stretch of one, joined with those before that are as long; returns where one turns back."""
        b, one, top = lane.b, I64(1), self.variable(lane.b, I64)
        b.store(lane.get("stretches"), top)
        p, v = lane.row("p"), lane.row("v")
        lane.copy(
            *((row, lane.stretch(name, b.load(top))) for row, name in ((p, "rho"), (p, "p_first"), (v, "v_first")))
        )
        joins = b.cttz(b.not_(place), I1(0))
        with self.loop(b, I64(0), joins):
            last, before = b.load(top), b.sub(b.load(top), one)
            with b.if_then(
                b.call(
                    self.turns_back,
                    [
                        lane.size,
                        *(lane.stretch(name, before) for name in ("rho", "v_first", "p_last", "v_last")),
                        *(lane.stretch(name, last) for name in ("rho", "p_first", "v_first")),
                        v,
                    ],
                )
            ):
                self._return_ended(lane)
            self._add_row(lane, lane.stretch("rho", last), lane.stretch("rho", before))
            b.store(before, top)
        lane.copy((p, lane.stretch("p_last", b.load(top))), (v, lane.stretch("v_last", b.load(top))))
        lane.set(stretches=b.add(b.load(top), one))

    def _take_over(self, lane: _Lane) -> None:
        """A doubling that is whole into the trajectory; returns where that ends with it."""
        b, side, level = lane.b, lane.get("side"), lane.get("level")
        far = b.sub(I64(1), side)
        turned = b.call(
            self.turns_back,
            [
                lane.size,
                *(lane.row("rho"), lane.row("vs", far), lane.row("ps", side), lane.row("vs", side)),
                *(lane.stretch(name, I64(0)) for name in ("rho", "p_first", "v_first")),
                lane.row("v"),
            ],
        )
        before, more = lane.get("log_weight"), lane.get("log_weight_added")
        u = lane.uniform(b.shl(I64(1), level), SUBTREE)
        with b.if_then(lane.is_less(u, lane.probability(b.fsub(more, before)))):
            lane.copy(*((lane.row(f"{name}_added"), lane.row(f"{name}_chosen")) for name in ("theta", "grad")))
            for name in ("log_prob", "energy"):
                lane.set(**{f"{name}_chosen": lane.get(f"{name}_added")})
        lane.set(log_weight=lane.log_sum_exp(before, more))
        lane.copy(*((lane.row(name), lane.row(f"{name}s", side)) for name in ("theta", "grad", "p", "v")))
        self._add_row(lane, lane.stretch("rho", I64(0)), lane.row("rho"))
        next_level = b.add(level, I64(1))
        lane.set(depth=b.add(lane.get("depth"), I64(1)), level=next_level)
        with b.if_then(turned):
            self._return_ended(lane)
        with b.if_then(b.icmp_signed("==", next_level, lane.field("max_depth"))):
            lane.set(is_reached=1)
            self._return_ended(lane)

    def _return_ended(self, lane: _Lane) -> None:
        """The transition is recorded, and the next one begins, if there is another."""
        b = lane.b
        b.call(self.end, lane.arguments)
        is_over = b.icmp_signed("==", lane.get("transition"), lane.field("num"))
        with b.if_then(b.not_(is_over)):
            b.call(self.begin, lane.arguments)
        b.ret(is_over)
        b.position_at_end(b.append_basic_block())  # what follows is never reached

    def _end(self, lane: _Lane) -> None:
        b, transition = lane.b, lane.get("transition")
        place = b.add(b.mul(lane.lane, lane.field("length")), transition)
        lane.copy_numbers(lane.row("theta_chosen"), lane.array("thetas", b.mul(place, lane.dim)))
        energy, steps = lane.get("energy_chosen"), lane.get("steps")
        rate = b.fdiv(lane.get("sum_of_rates"), b.sitofp(steps, self.scalar))
        error = b.fsub(energy, lane.get("start"))
        for name, value in (
            *(("log_probs", lane.get("log_prob_chosen")), ("rates", rate), ("energies", energy), ("errors", error)),
            *(("steps", steps), ("depths", lane.get("depth"))),
            *((name, b.trunc(lane.get(f"is_{name}"), I8)) for name in ("diverging", "reached")),
        ):
            b.store(value, lane.array(name, place, kind=value.type))
        lane.set(transition=b.add(transition, I64(1)))

    # --- on rows ------------------------------------------------------------------------------------------------------

    def _velocity(self, lane: _Lane) -> None:
        """``M^-1 p``, by the diagonal or column by column."""
        b, p, to = lane.b, lane.row("p"), lane.row("v")
        with b.if_else(b.icmp_signed("==", lane.field("is_dense"), I64(0))) as (diagonal, dense):
            with diagonal:
                for (one, inv_mass, _), (*_, place) in lane.over(p, lane.array("inv_mass"), to):
                    self.store(b, lane.v.mul(inv_mass, one), place)
            with dense:
                for _, (place,) in lane.over(to):
                    self.store(b, lane.v.constant(0.0), place)
                with self.loop(b, I64(0), lane.dim) as column:
                    one = lane.v.splat(b.load(self.at(b, p, column)))
                    for (inv_mass, before), (_, place) in lane.over(
                        lane.array("inv_mass", b.mul(column, lane.size)), to
                    ):
                        self.store(b, lane.v.fma(inv_mass, one, before), place)

    def _kinetic(self, lane: _Lane) -> Value:
        total = lane.sums(1, lambda r: [(r[0], r[1])], lane.row("p"), lane.row("v"))[0]
        return lane.b.fmul(self.scalar(0.5), total)

    def _add_row(self, lane: _Lane, more: Value, to: Value) -> None:
        for (a, b), (_, place) in lane.over(more, to):
            self.store(lane.b, lane.v.add(a, b), place)

    def _turns_back(self) -> ir.Function:
        """Whether one stretch and the next one do: length of rows; rho, v_first, p_last, v_last of the one; and rho,
        p_first, v_first, v_last of the next.
        """
        function = self.function("turns_back", ir.FunctionType(I1, [I64, *8 * [self.pointer]]), internal=True)
        size, *rows = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v = Vectors(b, self.scalar, self.width)
        totals = [self.variable(b, v.type) for _ in range(6)]
        for total in totals:
            b.store(v.constant(0.0), total)
        with self.loop(b, I64(0), size, self.width) as k:
            values = [self.load(b, self.at(b, row, k), v.type) for row in rows]
            rho, v_first, p_last, v_last, next_rho, next_p_first, next_v_first, next_v_last = values
            pieces = (
                (v.add(rho, next_rho), v_first, next_v_last),
                (v.add(rho, next_p_first), v_first, next_v_first),
                (v.add(p_last, next_rho), v_last, next_v_last),
            )
            products = [(one, velocity) for one, *velocities in pieces for velocity in velocities]
            for total, (one, velocity) in zip(totals, products, strict=True):
                b.store(v.fma(one, velocity, b.load(total)), total)
        turns = I1(0)
        for total in totals:
            turns = b.or_(turns, b.fcmp_ordered("<=", v.sum(b.load(total)), self.scalar(0.0)))
        b.ret(turns)
        return function
