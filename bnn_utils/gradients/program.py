"""A small network's posterior as instructions for LLVM: gradients, and trajectories.

A network with its sizes and activations becomes one loop over points that holds a variable for every number, so that
nothing but the data is ever read from far away. It works on a vector of points of one lane at a time, or on one point
of as many lanes: `Program.over` says which. The data are arguments, so that all networks of one shape share the code.

There are no fast-math flags. Products with sums are written as the one instruction that they are, and sums have a fixed
order: what is computed is the same to the bit on every processor that has this instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llvmlite import ir

from bnn_utils.gradients.formulas import Noise, activated, combined, finite, judged
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I64, VOID, Value, Writer

LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}
PAIRS = 8  # of uniform numbers that torch turns into normal ones together

# The state of torch's generator, in words of 64 bits: those that a twister's 624 words begin at, and that hold how many
# are left, plus one, and which is next.
TWISTER, STATE_WORDS, STATE_LEFT, STATE_NEXT = 624, 3, 1, 2
UPPER, LOWER = 2**31, 2**31 - 1  # bits of one word and of the next, from which a new one is made
I32, WORDS = ir.IntType(32), 8  # that are made at once


@dataclass(frozen=True)
class Unit:
    """One layer: places in theta of ``[b | W]``, row by row, and the activation's name with its options."""

    places: tuple[tuple[int, ...], ...]
    has_bias: bool
    activation: str | None
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Program:
    """All that the instructions depend on.

    Attributes:
        layers: from the inputs to the outputs.
        log_scales: places in theta of log scales, which are outputs as well.
        likelihood: "Bernoulli", "Categorical" or "Gaussian".
        noise: of Gaussian.
        dtype: "float32" or "float64".
        over: what vectors go over.
        width: numbers in a vector.
        is_weighted: whether points count as often as their weights say. Over points there are always weights: those
            that fill up the last vector have none.
        has_datasets: over lanes, whether each has targets of its own.
    """

    layers: tuple[Unit, ...]
    log_scales: tuple[int, ...]
    likelihood: str
    noise: Noise | None
    dtype: str
    over: Literal["points", "lanes"]
    width: int
    is_weighted: bool
    has_datasets: bool

    @property
    def dim(self) -> int:
        return sum(len(row) for unit in self.layers for row in unit.places) + len(self.log_scales)

    @property
    def num_features(self) -> int:
        return len(self.layers[0].places[0]) - self.layers[0].has_bias

    @property
    def num_targets(self) -> int:
        """Numbers per point, that of units included."""
        if self.noise is None:
            return 1
        outputs = len(self.layers[-1].places) + len(self.log_scales)
        return (outputs // 2 if self.noise.scale is None else outputs) + self.noise.has_units

    @property
    def lanes(self) -> int:
        """That are worked on at once, a tile."""
        return self.width if self.over == "lanes" else 1


class Rows(NamedTuple):
    """The lanes of a tile."""

    first: Value
    last: Value  # of all lanes
    place: Callable[[Value], Value]  # from a lane to its row in an array

    def at(self, place: Callable[[Value], Value]) -> Rows:
        return self._replace(place=place)


class Assembly(Writer):
    """A module in the making, with `gradients`, `trajectories`, `uniforms` and `normals`.

    Within functions, "tile" means the numbers of `Program.lanes` lanes: an array ``[D]`` of vectors of that width.
    What is called from outside begins with the tiles from ``first`` to ``last`` of C lanes, and ends with the data:

    x ``[features, N]``, y ``[K, N]`` of one data set after the other, weights ``[N]``, N.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program.dtype)
        self.program = program
        self.tile_type = ir.VectorType(self.scalar, program.lanes)
        self.slope, self.both = (self._evaluation(name, name == "both") for name in ("slope", "both"))
        self.velocity = self._velocity()
        self.trajectory = self._trajectory()
        self.gradients = self._gradients()
        for write in (self._of_tile, self._trajectories, self._uniforms, self._normals):
            write()

    # --- the network --------------------------------------------------------------------------------------------------

    def _evaluation(self, name: str, has_value: bool) -> ir.Function:
        """The gradient of the log likelihood for a tile, and if asked for its value."""
        program, tile = self.program, self.tile_type.as_pointer()
        kind = ir.FunctionType(self.tile_type if has_value else VOID, [tile, tile, *3 * [self.pointer], I64])
        function = self.function(name, kind, internal=True)
        theta, grad, x, y, weights, num = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v, over_points = Vectors(b, self.scalar, program.width), program.over == "points"

        def parameter(k: int) -> Value:
            value = b.load(self.at(b, theta, I64(k)))
            return v.splat(b.extract_element(value, I64(0))) if over_points else value

        t = [parameter(k) for k in range(program.dim)]
        zero = v.constant(0.0)
        sums = [b.alloca(v.type) for _ in range(program.dim)]
        total = b.alloca(v.type)
        for memory in (*sums, total):
            b.store(zero, memory)

        def add(memory: Value, a: Value, h: Value | None = None) -> None:
            before = b.load(memory)
            b.store(v.add(before, a) if h is None else v.fma(a, h, before), memory)

        with self.loop(b, I64(0), num, program.width if over_points else 1) as n:

            def of_point(array: Value, row: int, has_lanes: bool = False) -> Value:
                place = b.add(b.mul(I64(row), num), n)
                if over_points:
                    return self.load(b, self.at(b, array, place), v.type)
                if has_lanes:
                    return self.load(b, self.at(b, array, b.mul(place, I64(program.width))), v.type)
                return v.splat(b.load(self.at(b, array, place)))

            h = [of_point(x, i) for i in range(program.num_features)]
            kept = []
            for unit in program.layers:
                inputs = [None, *h] if unit.has_bias else h
                z = [combined(v, [(t[k], i) for k, i in zip(row, inputs, strict=True)]) for row in unit.places]
                parts = [activated(v, unit.activation, unit.options, one) for one in z]
                h, backs = [part[0] for part in parts], [part[1] for part in parts]
                kept.append((unit, inputs, backs))
            outputs = [*h, *(t[k] for k in program.log_scales)]
            targets = [of_point(y, k, program.has_datasets) for k in range(program.num_targets)]
            value, g = judged(v, program.likelihood, program.noise, outputs, targets, has_value)
            if over_points or program.is_weighted:
                weight = of_point(weights, 0)
                g = [v.mul(weight, one) for one in g]
                if has_value:  # where the weight is 0, what is impossible counts for nothing either
                    value = v.select(v.less(zero, weight), v.mul(weight, value), zero)
            if has_value:
                add(total, value)
            for k, one in zip(program.log_scales, g[len(h) :], strict=True):
                add(sums[k], one)
            g = g[: len(h)]
            for unit, inputs, backs in reversed(kept):
                g = [back(one) for back, one in zip(backs, g, strict=True)]
                for one, row in zip(g, unit.places, strict=True):
                    for k, i in zip(row, inputs, strict=True):
                        add(sums[k], one, i)
                columns = list(zip(*unit.places, strict=True))[unit.has_bias :]
                if unit is not program.layers[0]:
                    g = [combined(v, [(t[k], one) for k, one in zip(column, g, strict=True)]) for column in columns]

        def reduced(memory: Value) -> Value:
            value = b.load(memory)
            return b.insert_element(self.tile_type(ir.Undefined), v.sum(value), I64(0)) if over_points else value

        for k, memory in enumerate(sums):
            b.store(reduced(memory), self.at(b, grad, I64(k)))
        b.ret(reduced(total)) if has_value else b.ret_void()
        return function

    # --- mechanics ----------------------------------------------------------------------------------------------------

    def _trajectory(self) -> ir.Function:
        """Leapfrog steps of a tile: theta, p and the gradient move, what is new of the likelihood is put beside it.

        The gradient is that of ``log prior + beta log likelihood``. At a likelihood of 0, or one that overflows, a
        tempered one is the smallest there is, with no gradient: at beta = 0 it must count for nothing.
        """
        tile = self.tile_type.as_pointer()
        kind = ir.FunctionType(
            self.tile_type,
            [*4 * [tile], self.tile_type, self.tile_type, ir.IntType(1), I64, *2 * [self.pointer], I64, *self._data],
        )
        function = self.function("trajectory", kind, internal=True)
        theta, p, grad, grad_likelihood, beta, size, is_tempered, num_steps, *args = function.args
        precision, inv_mass, is_dense, *data = args
        b = ir.IRBuilder(function.append_basic_block())
        v, velocity = Vectors(b, self.scalar, self.program.lanes), self._tile(b)
        half = v.mul(v.constant(0.5), size)

        def cleaned(value: Value, otherwise: float) -> Value:
            return b.select(is_tempered, v.select(finite(v, value), value, v.constant(otherwise)), value)

        def drift() -> None:
            b.call(self.velocity, [p, velocity, inv_mass, is_dense])
            with self._parameters(b) as k:
                place = self.at(b, theta, k)
                b.store(v.fma(size, b.load(self.at(b, velocity, k)), b.load(place)), place)

        def kick(size: Value) -> None:
            with self._parameters(b) as k:
                place = self.at(b, grad_likelihood, k)
                of_likelihood = cleaned(b.load(place), 0.0)
                b.store(of_likelihood, place)
                of_prior = v.mul(v.splat(b.load(self.at(b, precision, k))), b.load(self.at(b, theta, k)))
                force = v.fma(beta, of_likelihood, v.neg(of_prior))
                b.store(force, self.at(b, grad, k))
                place = self.at(b, p, k)
                b.store(v.fma(size, force, b.load(place)), place)

        with self._parameters(b) as k:
            place = self.at(b, p, k)
            b.store(v.fma(half, b.load(self.at(b, grad, k)), b.load(place)), place)
        with self.loop(b, I64(1), num_steps):
            drift()
            b.call(self.slope, [theta, grad_likelihood, *data])
            kick(size)
        drift()
        value = b.call(self.both, [theta, grad_likelihood, *data])
        kick(half)
        b.ret(cleaned(value, -LARGEST[self.program.dtype]))
        return function

    def _velocity(self) -> ir.Function:
        """``M^-1 p`` of a tile, with a diagonal ``(D,)`` or a dense matrix ``(D, D)``."""
        tile = self.tile_type.as_pointer()
        function = self.function("velocity", ir.FunctionType(VOID, [tile, tile, self.pointer, I64]), internal=True)
        p, velocity, inv_mass, is_dense = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v = Vectors(b, self.scalar, self.program.lanes)
        total = self.variable(b, v.type)

        def term(weight: Value, k: Value) -> tuple[Value, Value]:
            return v.splat(b.load(self.at(b, inv_mass, weight))), b.load(self.at(b, p, k))

        with b.if_else(b.icmp_signed("==", is_dense, I64(0))) as (diagonal, dense):
            with diagonal, self._parameters(b) as k:
                b.store(v.mul(*term(k, k)), self.at(b, velocity, k))
            with dense, self._parameters(b) as k:
                b.store(v.constant(0.0), total)
                with self._parameters(b) as j:
                    b.store(v.fma(*term(b.add(b.mul(k, I64(self.program.dim)), j), j), b.load(total)), total)
                b.store(b.load(total), self.at(b, velocity, k))
        b.ret_void()
        return function

    def _log_prior(self, b: ir.IRBuilder, v: Vectors, theta: Value, precision: Value, log_normalizer: Value) -> Value:
        """Of `DiagonalNormal`, for a tile."""
        square = lambda k: (b.load(self.at(b, theta, k)), v.splat(b.load(self.at(b, precision, k))))  # noqa: E731
        return v.fma(v.constant(-0.5), self._quadratic(b, v, square), v.splat(log_normalizer))

    def _quadratic(self, b: ir.IRBuilder, v: Vectors, term: Callable[[Value], tuple[Value, Value]]) -> Value:
        """``sum_k w_k a_k^2`` with (a_k, w_k) from ``term``."""
        total = self.variable(b, v.type)
        b.store(v.constant(0.0), total)
        with self._parameters(b) as k:
            a, weight = term(k)
            b.store(v.fma(v.mul(weight, a), a, b.load(total)), total)
        return b.load(total)

    # --- what is called from outside ----------------------------------------------------------------------------------

    def _gradients(self) -> ir.Function:
        """Log likelihoods ``(C,)`` and their gradients ``(C, D)`` at theta ``(C, D)``."""
        function, b = self._entry("gradients", [*3 * [self.pointer]])
        first, last, num_lanes, theta, value, grad, *data = function.args
        here, there = self._tile(b), self._tile(b)
        with self.loop(b, first, last) as tile:
            rows = self._rows(b, tile, num_lanes)
            self._read(b, theta, rows, here)
            found = b.call(self.both, [here, there, *self._data_of(b, data, tile)])
            self._put(b, found, value, rows)
            self._write(b, there, grad, rows)
        b.ret_void()
        return function

    def _of_tile(self) -> None:
        """The same of one tile, for other native code, which knows nothing of the data: a context holds C and these."""
        kind = ir.FunctionType(VOID, [I64.as_pointer(), I64, *3 * [self.pointer]])
        function = self.function("of_tile", kind)
        context, tile, *arrays = function.args
        b = ir.IRBuilder(function.append_basic_block())
        num_lanes, *words = (b.load(self.at(b, context, I64(k))) for k in range(2 + len(self._data)))
        kinds = [*self._data, I64]
        data = [b.inttoptr(x, kind) if kind == self.pointer else x for x, kind in zip(words, kinds, strict=True)]
        b.call(self.gradients, [tile, b.add(tile, I64(1)), num_lanes, *arrays, *data])
        b.ret_void()

    def _trajectories(self) -> None:
        """Leapfrog steps of lanes: theta, p and grad ``(C, D)`` move, each by its step size; log_prob is filled in."""
        function, b = self._entry("trajectories", [*5 * [self.pointer], I64, *2 * [self.pointer], I64, self.scalar])
        first, last, num_lanes, theta, p, grad, log_prob, sizes, *args = function.args
        num_steps, precision, inv_mass, is_dense, log_normalizer, *data = args
        v = Vectors(b, self.scalar, self.program.lanes)
        tiles, beta, is_tempered = [self._tile(b) for _ in range(4)], v.constant(1.0), ir.IntType(1)(0)
        with self.loop(b, first, last) as tile:
            rows = self._rows(b, tile, num_lanes)
            for array, memory in zip((theta, p, grad), tiles, strict=False):
                self._read(b, array, rows, memory)
            size, of_tile = self._get(b, sizes, rows), self._data_of(b, data, tile)
            constants = is_tempered, num_steps, precision, inv_mass, is_dense
            found = b.call(self.trajectory, [*tiles, beta, size, *constants, *of_tile])
            of_prior = self._log_prior(b, v, tiles[0], precision, log_normalizer)
            self._put(b, v.add(found, of_prior), log_prob, rows)
            for array, memory in zip((theta, p, grad), tiles, strict=False):
                self._write(b, memory, array, rows)
        b.ret_void()

    def _uniforms(self) -> None:
        """``count`` uniform numbers as torch draws them, from the state of its generator, which goes on.

        It is the Mersenne twister (Matsumoto and Nishimura 1998): of each 624 words the next follow, eight at a time.
        A float64 takes two words.
        """
        function = self.function("uniforms", ir.FunctionType(VOID, [I64.as_pointer(), self.pointer, I64]))
        state, out, count = function.args
        b = ir.IRBuilder(function.append_basic_block())
        vector, size = ir.VectorType(I32, WORDS), I64(TWISTER)
        words = self.at(b, self.variable(b, ir.ArrayType(I32, 2 * TWISTER)), I64(0), I64(0))

        def vector_at(place: Value | int) -> Value:
            return b.bitcast(self.at(b, words, I64(place) if isinstance(place, int) else place), vector.as_pointer())

        def read(place: Value, ahead: int) -> Value:
            return b.load(vector_at(b.add(place, I64(ahead))), align=4)

        def constant(kind: ir.Type, value: int) -> ir.Constant:
            return ir.Constant(kind, [value] * WORDS if kind == vector else value)

        def tempered(y: Value) -> Value:
            for shift, bits, mask in ((b.lshr, 11, 2**32 - 1), (b.shl, 7, 0x9D2C5680), (b.shl, 15, 0xEFC60000)):
                y = b.xor(y, b.and_(shift(y, constant(y.type, bits)), constant(y.type, mask)))
            return b.xor(y, b.lshr(y, constant(y.type, 18)))

        with self.loop(b, I64(0), size) as k:
            word = b.load(self.at(b, state, b.add(k, I64(STATE_WORDS))))
            b.store(b.trunc(word, I32), self.at(b, words, k))
        done, place = (self.variable(b, I64) for _ in range(2))
        left = b.bitcast(self.at(b, state, I64(STATE_LEFT)), I32.as_pointer())
        b.store(I64(0), done)
        b.store(b.sub(I64(TWISTER + 1), b.zext(b.load(left), I64)), place)
        total, target = b.mul(count, I64(self.bytes // 4)), b.bitcast(out, I32.as_pointer())
        missing = b.sub(b.add(total, b.load(place)), size)
        rounds = b.sdiv(b.add(missing, I64(2 * TWISTER - 1)), size)  # one more than the times that words run out
        with self.loop(b, I64(0), rounds) as turn:
            with b.if_then(b.icmp_signed("<", I64(0), turn)):
                with self.loop(b, I64(0), size, WORDS) as n:
                    joined = b.or_(
                        b.and_(read(n, 0), constant(vector, 0x80000000)),
                        b.and_(read(n, 1), constant(vector, 0x7FFFFFFF)),
                    )
                    odd = b.sub(constant(vector, 0), b.and_(joined, constant(vector, 1)))
                    twisted = b.xor(b.lshr(joined, constant(vector, 1)), b.and_(odd, constant(vector, 0x9908B0DF)))
                    b.store(b.xor(read(n, 397), twisted), vector_at(b.add(n, size)), align=4)
                with self.loop(b, I64(0), size, WORDS) as n:
                    b.store(read(n, TWISTER), vector_at(n), align=4)
                b.store(I64(0), place)
            first, begin = b.load(place), b.load(done)
            there, wanted = b.sub(size, first), b.sub(total, begin)
            num = b.select(b.icmp_signed("<", there, wanted), there, wanted)
            in_vectors = b.and_(num, I64(-WORDS))
            with self.loop(b, I64(0), in_vectors, WORDS) as n:
                to = b.bitcast(self.at(b, target, b.add(begin, n)), vector.as_pointer())
                b.store(tempered(read(b.add(first, n), 0)), to, align=4)
            with self.loop(b, in_vectors, num) as n:
                word = b.load(self.at(b, words, b.add(first, n)))
                b.store(tempered(word), self.at(b, target, b.add(begin, n)))
            b.store(b.add(begin, num), done), b.store(b.add(first, num), place)
        with self.loop(b, I64(0), size) as k:
            word = b.load(self.at(b, words, k))
            b.store(b.zext(word, I64), self.at(b, state, b.add(k, I64(STATE_WORDS))))
        b.store(b.trunc(b.sub(I64(TWISTER + 1), b.load(place)), I32), left)
        b.store(b.load(place), self.at(b, state, I64(STATE_NEXT)))
        with self.loop(b, I64(0), count) as n:
            self._make_uniform(b, self.at(b, out, n))
        b.ret_void()

    def _make_uniform(self, b: ir.IRBuilder, place: Value) -> None:
        """Of the word or the two words that lie there, by their last bits, as many as the number has."""
        kind, bits = (I32, 24) if self.bytes == 4 else (I64, 53)
        word = b.load(b.bitcast(place, kind.as_pointer()))
        if kind == I64:  # the first of the two is the upper half
            word = b.or_(b.shl(word, I64(32)), b.lshr(word, I64(32)))
        number = b.sitofp(b.and_(word, kind(2**bits - 1)), self.scalar)
        b.store(b.fmul(number, self.scalar(2.0**-bits)), place)

    def _normals(self) -> None:
        """Normal numbers as torch makes them of uniform ones, ``num`` times ``count`` of them; count is 16 or more.

        Of 16 uniform numbers the first 8 give the radius and the others the angle (Box and Muller 1958); the last 16
        of a count that is no multiple of 16 are made anew, of uniform numbers that follow. Between two times lie
        ``stride`` uniform numbers.
        """
        kind = ir.FunctionType(VOID, [self.pointer, self.pointer, I64, I64, I64])
        function = self.function("normals", kind)
        words, out, num, count, stride = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v = Vectors(b, self.scalar, PAIRS)

        def sixteen(source: Value, target: Value) -> None:
            radius = v.sub(v.constant(1.0), self.load(b, source, v.type))
            radius = v.sqrt(v.mul(v.constant(-2.0), v.log(radius)))
            turn = self.load(b, self.at(b, source, I64(PAIRS)), v.type)
            for part, wave in enumerate(v.cos_sin_turns(turn)):
                self.store(b, v.mul(radius, wave), self.at(b, target, I64(part * PAIRS)))

        with self.loop(b, I64(0), num) as t:
            source = self.at(b, words, b.mul(t, stride))
            target = self.at(b, out, b.mul(t, count))
            with self.loop(b, I64(0), b.sub(count, I64(2 * PAIRS - 1)), 2 * PAIRS) as n:
                sixteen(self.at(b, source, n), self.at(b, target, n))
            with b.if_then(b.icmp_signed("!=", b.and_(count, I64(2 * PAIRS - 1)), I64(0))):
                sixteen(self.at(b, source, count), self.at(b, target, b.sub(count, I64(2 * PAIRS))))
        b.ret_void()

    # --- instructions -------------------------------------------------------------------------------------------------

    @property
    def _data(self) -> list[ir.Type]:
        return [*3 * [self.pointer], I64]

    def _entry(self, name: str, kinds: list[ir.Type]) -> tuple[ir.Function, ir.IRBuilder]:
        """A function that begins with tiles and lanes, and ends with data and how far lanes' targets are apart."""
        function = self.function(name, ir.FunctionType(VOID, [I64, I64, I64, *kinds, *self._data, I64]))
        return function, ir.IRBuilder(function.append_basic_block())

    def _data_of(self, b: ir.IRBuilder, data: list[Value], tile: Value) -> list[Value]:
        """The data of a tile: targets may be its own."""
        x, y, weights, num, stride = data
        return [x, self.at(b, y, b.mul(tile, stride)), weights, num]

    def _tile(self, b: ir.IRBuilder) -> Value:
        return self.at(b, self.variable(b, ir.ArrayType(self.tile_type, self.program.dim)), I64(0), I64(0))

    def _rows(self, b: ir.IRBuilder, tile: Value, num_lanes: Value) -> Rows:
        return Rows(b.mul(tile, I64(self.program.lanes)), b.sub(num_lanes, I64(1)), lambda row: row)

    @contextmanager
    def _lanes(self, b: ir.IRBuilder, rows: Rows) -> Iterator[tuple[Value, Value]]:
        """A loop over the lanes of a tile, with the places of their rows.

        The last lane fills up the last tile, and is computed and written many times.
        """
        with self.loop(b, I64(0), I64(self.program.lanes)) as lane:
            row = b.add(rows.first, lane)
            yield lane, rows.place(b.select(b.icmp_signed("<", row, rows.last), row, rows.last))

    def _get(self, b: ir.IRBuilder, array: Value, rows: Rows) -> Value:
        """A number of each lane."""
        memory = self.variable(b, self.tile_type)
        with self._lanes(b, rows) as (lane, place):
            b.store(b.load(self.at(b, array, place)), self.at(b, b.bitcast(memory, self.pointer), lane))
        return b.load(memory)

    def _put(self, b: ir.IRBuilder, value: Value, array: Value, rows: Rows) -> None:
        memory = self.variable(b, value.type)
        b.store(value, memory)
        with self._lanes(b, rows) as (lane, place):
            b.store(b.load(self.at(b, b.bitcast(memory, array.type), lane)), self.at(b, array, place))

    def _read(self, b: ir.IRBuilder, array: Value, rows: Rows, tile: Value) -> None:
        """Rows of an array ``(..., D)`` into a tile."""
        for source, target in self._numbers(b, array, rows, tile):
            b.store(b.load(source), target)

    def _write(self, b: ir.IRBuilder, tile: Value, array: Value, rows: Rows) -> None:
        for target, source in self._numbers(b, array, rows, tile):
            b.store(b.load(source), target)

    def _numbers(self, b: ir.IRBuilder, array: Value, rows: Rows, tile: Value) -> Iterator[tuple[Value, Value]]:
        """A loop over all numbers of a tile: their places in an array ``(..., D)``, and in the tile."""
        numbers = b.bitcast(tile, self.pointer)
        with self._lanes(b, rows) as (lane, place):
            begin = b.mul(place, I64(self.program.dim))
            with self._parameters(b) as k:
                in_tile = b.add(b.mul(k, I64(self.program.lanes)), lane)
                yield self.at(b, array, b.add(begin, k)), self.at(b, numbers, in_tile)

    def _parameters(self, b: ir.IRBuilder) -> Any:
        return self.loop(b, I64(0), I64(self.program.dim))
