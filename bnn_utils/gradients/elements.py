"""Priors of independent elements as instructions for LLVM, around the log likelihood of what they make of theta.

What `bnn_utils.families` and `bnn_utils.links` say of all elements of a lane at once. The log likelihood is a function
that is called by its address. What elements there are is told by tables, so that all priors share the code.

Elements lie in slots, vector by vector: a run of slots has one kind of density, one transform, and one log scale that
they have in common. The last vector of a run is filled up with zeros, whose density is 1. The first run is one of
nothing else; then follow those of log scales, then all others. Sums go over a run's vectors, and over one run after the
other: numbers are the same to the bit on all processors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llvmlite import ir

from bnn_utils.families import VALUES
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I64, VOID, Value, Writer

KINDS = (*VALUES, "centred")
# Of a run: its kind, whether parameters are exponentials of its elements, where its slots begin and end, and slots of
# log scales, 0 for none: of the one that parameters are multiplied by, and of the one that elements belong to, which is
# the same unless they are centred.
RUN = ("kind", "is_exp", "first", "last", "factor", "scale")
SIZES = ("num_lanes", "dim", "num_parameters", "in_tile", "num_runs", "num_slots", "num_scales")
ARRAYS = (
    "numbers",  # the log of the prior's normaliser, and 1, or -1 for the inverse of scales
    "constants",  # of the densities a, b and c, (3, slots)
    *("parameters", "slopes"),  # (lanes in a tile, P), what the likelihood is asked for, and its gradient
    "memory",  # (lanes in a tile, len(ROWS), slots)
)
CONTEXT = (*SIZES, "likelihood", "context", "runs", "slots", *ARRAYS)
ROWS = (
    *("theta", "exponential"),  # of log scales
    *("transformed", "parameter", "slope"),  # without the scale, and with it; and its derivative
    *("grad", "total"),  # by the parameter, of the likelihood; by the element, of all
)


def assemble(dtype: str) -> str:
    """The text of a module of LLVM with `of_tile` and `of_tiles`."""
    return str(_Assembly(dtype).module)


class _Lane:
    """A function in the making that works for one lane: its memory, and what is the same for all."""

    def __init__(self, writer: _Assembly, b: ir.IRBuilder, context: Value, memory: Value | None = None) -> None:
        self.writer, self.b, self.context, self.memory = writer, b, context, memory
        self.v = Vectors(b, writer.scalar, writer.width)

    def field(self, name: str) -> Value:
        return self.b.load(self.writer.at(self.b, self.context, I64(CONTEXT.index(name))))

    def array(self, name: str, kind: ir.Type | None = None) -> Value:
        return self.b.inttoptr(self.field(name), (kind or self.writer.scalar).as_pointer())

    def row(self, name: str, slot: Value) -> Value:
        begin = self.b.mul(I64(ROWS.index(name)), self.field("num_slots"))
        return self.writer.at(self.b, self.memory, self.b.add(begin, slot))

    def load(self, name: str, slot: Value) -> Value:
        return self.writer.load(self.b, self.row(name, slot), self.v.type)

    def store(self, slot: Value, **values: Value) -> None:
        for name, value in values.items():
            self.writer.store(self.b, value, self.row(name, slot))

    def slots(self, num: Value, row: str) -> Iterator[tuple[Value, Value]]:
        """A loop over the first elements of theta: which, and their places in a row."""
        slots = self.array("slots", I64)
        with self.writer.loop(self.b, I64(0), num) as k:
            yield k, self.row(row, self.b.load(self.writer.at(self.b, slots, k)))

    @contextmanager
    def runs(self) -> Iterator[dict[str, Value]]:
        """A loop over them."""
        table = self.array("runs", I64)
        with self.writer.loop(self.b, I64(0), self.field("num_runs")) as k:
            place = self.b.mul(k, I64(len(RUN)))
            yield {
                name: self.b.load(self.writer.at(self.b, table, self.b.add(place, I64(n))))
                for n, name in enumerate(RUN)
            }

    def over(self, run: dict[str, Value]) -> Iterator[Value]:
        with self.writer.loop(self.b, run["first"], run["last"], self.writer.width) as slot:
            yield slot


class _Assembly(Writer):
    """A module in the making."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.context = I64.as_pointer()
        self.forwards, self.backwards = self._forwards(), self._backwards()
        self.of_tile = self._of_tile()
        self._of_tiles()

    def _of_tile(self) -> ir.Function:
        """Log densities ``(C,)`` of a tile's lanes and their gradients ``(C, D)`` at theta ``(C, D)``."""
        function = self.function("of_tile", ir.FunctionType(VOID, [self.context, I64, *3 * [self.pointer]]))
        context, tile, theta, value, grad = function.args
        b = ir.IRBuilder(function.append_basic_block())
        all_lanes = _Lane(self, b, context)
        dim, num_parameters, in_tile = map(all_lanes.field, ("dim", "num_parameters", "in_tile"))
        of_lane = b.mul(I64(len(ROWS)), all_lanes.field("num_slots"))
        begin = b.mul(tile, in_tile)
        end, num_lanes = b.add(begin, in_tile), all_lanes.field("num_lanes")
        end = b.select(b.icmp_signed("<", end, num_lanes), end, num_lanes)

        @contextmanager
        def lanes(own: str, of_theta: Value) -> Iterator[tuple[Value, list[Value]]]:
            """Which, and where its memory begins, its row of an array of this function's own, and of another one."""
            with self.loop(b, begin, end) as lane:
                place = b.sub(lane, begin)
                memory = self.at(b, all_lanes.array("memory"), b.mul(place, of_lane))
                row = self.at(b, all_lanes.array(own), b.mul(place, num_parameters))
                yield lane, [context, memory, row, self.at(b, of_theta, b.mul(lane, dim))]

        def as_if_of_all(own: str) -> Value:
            """An array in which the tile's lanes lie where they lie in one of all lanes."""
            before = b.mul(b.mul(begin, num_parameters), I64(self.bytes))
            return b.inttoptr(b.sub(all_lanes.field(own), before), self.pointer)

        with lanes("parameters", theta) as (_, arguments):
            b.call(self.forwards, arguments)
        address = b.inttoptr(all_lanes.field("likelihood"), function.type)
        inner = b.inttoptr(all_lanes.field("context"), self.context)
        b.call(address, [inner, tile, as_if_of_all("parameters"), value, as_if_of_all("slopes")])
        with lanes("slopes", grad) as (lane, arguments):
            log_prior, place = b.call(self.backwards, arguments), self.at(b, value, lane)
            b.store(b.fadd(log_prior, b.load(place)), place)
        b.ret_void()
        return function

    def _of_tiles(self) -> None:
        """The same of tiles from first to last."""
        function = self.function("of_tiles", ir.FunctionType(VOID, [self.context, I64, I64, *3 * [self.pointer]]))
        context, first, last, *arrays = function.args
        b = ir.IRBuilder(function.append_basic_block())
        with self.loop(b, first, last) as tile:
            b.call(self.of_tile, [context, tile, *arrays])
        b.ret_void()

    def _of_lane(self, name: str, result: ir.Type) -> tuple[_Lane, Value, Value]:
        kind = ir.FunctionType(result, [self.context, *3 * [self.pointer]])
        function = self.function(name, kind, internal=True)
        context, memory, of_parameters, of_theta = function.args
        return _Lane(self, ir.IRBuilder(function.append_basic_block()), context, memory), of_parameters, of_theta

    def _forwards(self) -> ir.Function:
        """From theta to the parameters."""
        lane, parameters, theta = self._of_lane("forwards", VOID)
        b, v = lane.b, lane.v
        for k, place in lane.slots(lane.field("dim"), "theta"):
            b.store(b.load(self.at(b, theta, k)), place)
        sign = v.splat(b.load(self.at(b, lane.array("numbers"), I64(1))))
        with self.loop(b, I64(0), lane.field("num_scales"), self.width) as slot:
            lane.store(slot, exponential=v.exp(v.mul(sign, lane.load("theta", slot))))
        with lane.runs() as run:
            factor = v.splat(b.load(lane.row("exponential", run["factor"])))
            with b.if_else(b.icmp_signed("==", run["is_exp"], I64(0))) as (identity, exponential):
                with identity:
                    for slot in lane.over(run):
                        u = lane.load("theta", slot)
                        lane.store(slot, transformed=u, slope=factor, parameter=v.mul(u, factor))
                with exponential:
                    for slot in lane.over(run):
                        x = v.exp(lane.load("theta", slot))
                        lane.store(slot, transformed=x, slope=v.mul(x, factor), parameter=v.mul(x, factor))
        for k, place in lane.slots(lane.field("num_parameters"), "parameter"):
            b.store(b.load(place), self.at(b, parameters, k))
        b.ret_void()
        return b.function

    def _backwards(self) -> ir.Function:
        """From the likelihood's gradient by the parameters to that of all by theta; and the log prior."""
        lane, slopes, grad = self._of_lane("backwards", self.scalar)
        b, v = lane.b, lane.v
        total, of_scale = (self.variable(b, v.type) for _ in range(2))
        b.store(v.constant(0.0), total)
        for k, place in lane.slots(lane.field("num_parameters"), "grad"):
            b.store(b.load(self.at(b, slopes, k)), place)
        constants = lane.array("constants")

        def constant(number: int, slot: Value) -> Value:
            place = b.add(b.mul(I64(number), lane.field("num_slots")), slot)
            return self.load(b, self.at(b, constants, place), v.type)

        with lane.runs() as run:
            b.store(v.constant(0.0), of_scale)
            scale = [v.splat(b.load(lane.row(name, run["scale"]))) for name in ("theta", "exponential")]
            after = b.append_basic_block()
            kinds = b.switch(run["kind"], after)
            for number, kind in enumerate(KINDS):
                block = b.append_basic_block()
                kinds.add_case(I64(number), block)
                b.position_at_end(block)
                for slot in lane.over(run):
                    u, x, g = (lane.load(name, slot) for name in ("theta", "transformed", "grad"))
                    a, *others = (constant(n, slot) for n in range(3))
                    if kind == "centred":
                        value, slope, more = _centred(v, u, a, *scale)
                        more = v.add(b.load(of_scale), more)
                    else:
                        value, slope = _FORMULAS[kind](v, u, a, *others)
                        more = v.fma(g, x, b.load(of_scale))
                    b.store(v.add(b.load(total), value), total)
                    b.store(more, of_scale)
                    lane.store(slot, total=v.fma(g, lane.load("slope", slot), slope))
                b.branch(after)
            b.position_at_end(after)
            place = lane.row("total", run["scale"])  # of a run before this one
            more = b.fmul(v.sum(b.load(of_scale)), b.load(lane.row("exponential", run["factor"])))
            b.store(b.fadd(b.load(place), more), place)
        for k, place in lane.slots(lane.field("dim"), "total"):
            b.store(b.load(place), self.at(b, grad, k))
        b.ret(b.fadd(b.load(self.at(b, lane.array("numbers"), I64(0))), v.sum(b.load(total))))
        return b.function


# --- densities: the value, and its derivative; of zeros that fill up a run, whose constants are 0, both are 0 ---------


def _normal(v: Vectors, u: Value, a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    d = v.sub(u, a)
    slope = v.neg(v.mul(b, d))
    return v.mul(v.constant(0.5), v.mul(slope, d)), slope


def _student(v: Vectors, u: Value, a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    d = v.sub(u, a)
    square, twice = v.mul(b, v.mul(d, d)), v.mul(v.constant(-2.0), v.mul(b, c))
    return v.neg(v.mul(c, v.log1p(square))), v.div(v.mul(twice, d), v.add(v.constant(1.0), square))


def _laplace(v: Vectors, u: Value, a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    d, zero = v.sub(u, a), v.constant(0.0)
    return v.neg(v.mul(b, v.abs(d))), v.select(v.less(zero, d), v.neg(b), v.select(v.less(d, zero), b, zero))


def _power(v: Vectors, u: Value, a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    power = v.mul(b, v.exp(v.mul(c, u)))
    return v.fma(a, u, v.neg(power)), v.fma(v.neg(c), power, a)


def _half_student(v: Vectors, u: Value, a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    """Here b is its logarithm, and a is 1."""
    z = v.fma(v.constant(2.0), u, b)
    softplus = v.add(v.max(z, v.constant(0.0)), v.log1p(v.exp(v.neg(v.abs(z)))))
    return v.fma(v.neg(c), softplus, u), v.fma(v.mul(v.constant(-2.0), c), v.sigmoid(z), a)


_FORMULAS: dict[str, Callable[..., tuple[Value, Value]]] = {
    "normal": _normal,
    "student": _student,
    "laplace": _laplace,
    "power": _power,
    "half_student": _half_student,
}


def _centred(v: Vectors, u: Value, a: Value, log_scale: Value, inverse: Value) -> tuple[Value, Value, Value]:
    """And the derivative by the log scale; a is 1, and 0 of zeros that fill up the run."""
    x = v.mul(u, inverse)
    square = v.mul(x, x)
    value = v.fma(v.constant(-0.5), square, v.neg(v.mul(a, log_scale)))
    return value, v.neg(v.mul(x, inverse)), v.sub(square, a)
