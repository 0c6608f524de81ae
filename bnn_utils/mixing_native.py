"""What `bnn_utils.mixing` takes most of its time for, as instructions for LLVM: ranks, and sums over the first lags.

Each of the functions goes over a block of quantities ``(Q, ...)``, as NumPy does there, and gives the same numbers:
ranks, scores and counts are exact, and other sums differ by rounding.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from llvmlite import ir

from bnn_utils.gradients import machine, vector, writer
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I8, I64, VOID, Value, Writer, width_of

I32, DOUBLE = ir.IntType(32), ir.DoubleType()
DOUBLES = width_of(8)
DIGIT = 11  # bits that are sorted by at once: three digits for 32 bits, six for 64
BUCKETS = 2**DIGIT
TOGETHER = 4  # lags: the vectors of their sums stay in registers
FLAGS = 64  # in a word
# Their names, and how many sizes and arrays they take.
FUNCTIONS = ("rank", 2, 6), ("fold", 3, 8), ("products_float32", 4, 4), ("products_float64", 4, 4), ("pairs", 4, 5)


class Code:
    """The functions for values of one dtype, compiled now or before, in this process or another one.

    All arrays are contiguous. Numbers of lags are multiples of four.

    Raises:
        RuntimeError: where LLVM fails, or the processor is too old.
    """

    LAGS = 32  # worth a try first: often enough, and in a third of the time of a Fourier transform

    def __init__(self, dtype: str) -> None:
        files = writer.__file__, vector.__file__, __file__
        self._library = machine.load(("mixing", dtype), lambda: str(_Assembly(dtype).module), files)
        self._functions = {
            name: self._library.function(name, [ctypes.c_int64] * numbers + [ctypes.c_void_p] * arrays)
            for name, numbers, arrays in FUNCTIONS
        }
        self._records = np.dtype([("key", f"u{np.dtype(dtype).itemsize}"), ("place", "i4")], align=True)
        self._of_thread = threading.local()

    def rank(self, values: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values ``(Q, S)`` in ascending order, their places in each row, and normal scores where they stood."""
        ordered, places, scores = np.empty_like(values), np.empty(values.shape, np.int32), np.empty(values.shape)
        work = self._memory("records", 2 * values.shape[1], self._records)
        self._call("rank", *values.shape, values, table, work, ordered, places, scores)
        return ordered, places, scores

    def fold(
        self, ordered: np.ndarray, places: np.ndarray, table: np.ndarray, chains: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sums ``(Q, 2 chains)`` over each half of a chain, and of squares ``(Q,)`` over all, of the normal scores of
        distances from the median.
        """
        num, size = ordered.shape
        sums, squares = np.zeros((num, 2 * chains)), np.zeros(num)
        distances, merged = self._memory("distances", size, np.float64), self._memory("merged", size, np.float64)
        merged_places = self._memory("places", size, np.int32)
        self._call("fold", num, size, chains, ordered, places, table, distances, merged, merged_places, sums, squares)
        return sums, squares

    def products(self, halves: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
        """Of residuals k draws apart, summed over all halves ``(Q, chains, draws, 2)``; and the means of these."""
        num, chains, draws, _ = halves.shape
        sums, means = np.zeros((num, lags)), np.empty((num, 2 * chains))
        work = self._memory("residuals", 2 * (draws + lags + DOUBLES), np.float64)
        self._call(f"products_{halves.dtype.name}", num, chains, draws, lags, halves, work, sums, means)
        return sums, means

    def pairs(self, flags: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many are true of halves ``(Q, chains, draws, 2)``: pairs k draws apart; in each half; and, over halves,
        sums of products of the latter and of how many lie k draws or more after its start, and before its end.
        """
        num, chains, draws, _ = flags.shape
        sums, crossed = np.zeros((num, lags), np.int64), np.zeros((num, lags), np.int64)
        counts = np.empty((num, 2 * chains), np.int64)
        work = self._memory("words", 2 * (draws + lags) // FLAGS + 3, np.int64)
        self._call("pairs", num, chains, draws, lags, flags, work, sums, counts, crossed)
        return sums, counts, crossed

    def _call(self, name: str, *arguments: int | np.ndarray) -> None:
        self._functions[name](*[x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments])

    def _memory(self, name: str, size: int, dtype: np.dtype | type) -> np.ndarray:
        """To work in, of this thread: new memory would have to be cleared by the operating system each time."""
        known = self._of_thread.__dict__
        if name not in known or len(known[name]) < size:
            known[name] = np.empty(size, dtype)
        return known[name]


@functools.cache
def code_of(dtype: str) -> Code:
    return Code(dtype)


class _Assembly(Writer):
    """A module in the making."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.key = ir.IntType(8 * self.bytes)
        self.record = ir.LiteralStructType([self.key, I32])
        self._rank()
        self._fold()
        self._products("float32", ir.FloatType())
        self._products("float64", DOUBLE)
        self._pairs()

    def _entry(self, name: str, num_sizes: int, *kinds: ir.Type) -> tuple[list[Value], ir.IRBuilder]:
        kind = ir.FunctionType(VOID, [I64] * num_sizes + [kind.as_pointer() for kind in kinds])
        function = self.function(name, kind)
        return list(function.args), ir.IRBuilder(function.append_basic_block())

    @contextmanager
    def _rows(self, b: ir.IRBuilder, num: Value, *arrays: tuple[Value, Value]) -> Iterator[list[Value]]:
        """Where each row begins of arrays whose rows have so many numbers."""
        with self.loop(b, I64(0), num) as row:
            yield [self.at(b, array, b.mul(row, size)) for array, size in arrays]
        b.ret_void()

    def _increase(self, b: ir.IRBuilder, memory: Value, by: Value) -> Value:
        """The number that was there before."""
        before = b.load(memory)
        b.store(b.add(before, by), memory)
        return before

    # --- ranks --------------------------------------------------------------------------------------------------------

    def _rank(self) -> None:
        """Sorted by digits, the lowest first; in one with the last of them the records come apart again."""
        kinds = self.scalar, DOUBLE, self.record, self.scalar, I32, DOUBLE
        (num, size, values, table, records, ordered, places, scores), b = self._entry("rank", 2, *kinds)
        shifts = range(0, self.key.width, DIGIT)
        counts = b.alloca(I32, len(shifts) * BUCKETS)

        def bucket(key: Value, number: int) -> Value:
            digit = b.and_(b.lshr(key, self.key(shifts[number])), self.key(BUCKETS - 1))
            return self.at(b, counts, b.add(b.zext(digit, I64) if self.bytes == 4 else digit, I64(number * BUCKETS)))

        rows = ((values, size), (ordered, size), (places, size), (scores, size))
        with self._rows(b, num, *rows) as (values, ordered, places, scores):
            with self.loop(b, I64(0), I64(len(shifts) * BUCKETS)) as i:
                b.store(I32(0), self.at(b, counts, i))
            with self.loop(b, I64(0), size) as i:
                key = self._key(b, b.load(self.at(b, values, i)))
                for number in range(len(shifts)):
                    self._increase(b, bucket(key, number), I32(1))
            for number in range(len(shifts)):
                self._add_up(b, self.at(b, counts, I64(number * BUCKETS)))
            for number in range(len(shifts)):
                source, sorted_ = (self.at(b, records, b.mul(size, I64(n % 2))) for n in (number + 1, number))
                with self.loop(b, I64(0), size) as i:
                    if number == 0:
                        key, place = self._key(b, b.load(self.at(b, values, i))), b.trunc(i, I32)
                    else:
                        key, place = (b.load(self.at(b, source, i, I32(field))) for field in (0, 1))
                    to = b.zext(self._increase(b, bucket(key, number), I32(1)), I64)
                    if number < len(shifts) - 1:
                        b.store(key, self.at(b, sorted_, to, I32(0)))
                        b.store(place, self.at(b, sorted_, to, I32(1)))
                    else:
                        b.store(self._value(b, key), self.at(b, ordered, to))
                        b.store(place, self.at(b, places, to))
            with self._ties(b, size, ordered, table) as (first, end, score), self.loop(b, first, end) as i:
                b.store(score, self.at(b, scores, b.zext(b.load(self.at(b, places, i)), I64)))

    def _key(self, b: ir.IRBuilder, value: Value) -> Value:
        """The bits of a float are in order once the sign bit is turned round, of negative ones all bits."""
        bits = b.bitcast(value, self.key)
        sign = b.ashr(bits, self.key(self.key.width - 1))
        return b.xor(bits, b.or_(sign, self.key(1 << (self.key.width - 1))))

    def _value(self, b: ir.IRBuilder, key: Value) -> Value:
        was_negative = b.xor(b.ashr(key, self.key(self.key.width - 1)), self.key(-1))
        return b.bitcast(b.xor(key, b.or_(was_negative, self.key(1 << (self.key.width - 1)))), self.scalar)

    def _add_up(self, b: ir.IRBuilder, counts: Value) -> None:
        """Counts become where each bucket begins."""
        total = self.variable(b, I32)
        b.store(I32(0), total)
        with self.loop(b, I64(0), I64(BUCKETS)) as i:
            memory = self.at(b, counts, i)
            count = b.load(memory)
            b.store(self._increase(b, total, count), memory)

    @contextmanager
    def _ties(self, b: ir.IRBuilder, size: Value, ordered: Value, table: Value) -> Iterator[tuple[Value, Value, Value]]:
        """Runs of equal values, with the score of the rank that they share, in the middle of first and last."""
        first, last_of_all = self.variable(b, I64), b.sub(size, I64(1))
        b.store(I64(0), first)
        with self.loop(b, I64(0), size) as i:
            is_last = b.icmp_signed("==", i, last_of_all)
            after = b.load(self.at(b, ordered, b.select(is_last, i, b.add(i, I64(1)))))
            differs = b.fcmp_unordered("!=", b.load(self.at(b, ordered, i)), after)
            with b.if_then(b.or_(is_last, differs)):
                begin, end = b.load(first), b.add(i, I64(1))
                yield begin, end, b.load(self.at(b, table, b.add(begin, i)))
                b.store(end, first)

    def _fold(self) -> None:
        """Distances down from the median and up from it are in order: two runs of equal length.

        They are merged from both ends at once, in half as many steps as there are values. So no run comes to its end
        before, and what comes next is chosen without a branch, which nobody could predict.
        """
        kinds = self.scalar, I32, DOUBLE, DOUBLE, DOUBLE, I32, DOUBLE, DOUBLE
        arguments, b = self._entry("fold", 3, *kinds)
        num, size, chains, ordered, places, table, distances, merged, merged_places, sums, squares = arguments
        chains_per_place = b.fdiv(b.sitofp(chains, DOUBLE), b.sitofp(size, DOUBLE))
        half = b.lshr(size, I64(1))
        last, last_down = b.sub(size, I64(1)), b.sub(half, I64(1))
        front, back = self.variable(b, I64), self.variable(b, I64)  # how many were taken from the run down
        total = self.variable(b, DOUBLE)

        def distance(place: Value) -> Value:
            """As whole numbers, whose order is the same: they are compared in fewer cycles."""
            return b.load(b.bitcast(self.at(b, distances, place), I64.as_pointer()))

        def take(down: Value, up: Value, is_down: Value, to: Value) -> None:
            b.store(b.load(self.at(b, distances, b.select(is_down, down, up))), self.at(b, merged, to))
            place = self.at(b, places, b.select(is_down, b.sub(last_down, down), up))
            b.store(b.load(place), self.at(b, merged_places, to))

        rows = ((ordered, size), (places, size), (sums, b.shl(chains, I64(1))), (squares, I64(1)))
        with self._rows(b, num, *rows) as (ordered, places, sums, squares):
            middle = [self._double(b, b.load(self.at(b, ordered, place))) for place in (last_down, half)]
            median = b.fmul(b.fadd(*middle), DOUBLE(0.5))
            with self.loop(b, I64(0), half) as i:
                below = self._double(b, b.load(self.at(b, ordered, b.sub(last_down, i))))
                b.store(b.fsub(median, below), self.at(b, distances, i))
                above = self._double(b, b.load(self.at(b, ordered, b.add(half, i))))
                b.store(b.fsub(above, median), self.at(b, distances, b.add(half, i)))
            b.store(DOUBLE(0.0), total)
            b.store(I64(0), front)
            b.store(I64(0), back)
            with self.loop(b, I64(0), half) as i:
                down = b.load(front)
                up = b.add(half, b.sub(i, down))
                is_down = b.icmp_signed("<=", distance(down), distance(up))
                take(down, up, is_down, i)
                self._increase(b, front, b.zext(is_down, I64))
                taken = b.load(back)
                down, up = b.sub(last_down, taken), b.sub(last, b.sub(i, taken))
                is_down = b.icmp_signed(">", distance(down), distance(up))
                take(down, up, is_down, b.sub(last, i))
                self._increase(b, back, b.zext(is_down, I64))
            with self._ties(b, size, merged, table) as (first, end, score), self.loop(b, first, end) as i:
                place = b.load(self.at(b, merged_places, i))
                # Which has its halves side by side. A product is faster than a division, and as exact between places.
                chain = b.fptosi(b.fmul(b.fadd(b.sitofp(place, DOUBLE), DOUBLE(0.5)), chains_per_place), I64)
                half = b.or_(b.shl(chain, I64(1)), b.zext(b.and_(place, I32(1)), I64))
                for memory, value in ((self.at(b, sums, half), score), (total, b.fmul(score, score))):
                    b.store(b.fadd(b.load(memory), value), memory)
            b.store(b.load(total), squares)

    def _double(self, b: ir.IRBuilder, value: Value) -> Value:
        return b.fpext(value, DOUBLE) if self.bytes == 4 else value

    # --- sums over lags -----------------------------------------------------------------------------------------------

    def _products(self, dtype: str, scalar: ir.Type) -> None:
        """Draws of both halves of a chain lie side by side, so that neighbours are two numbers apart."""
        arguments, b = self._entry(f"products_{dtype}", 4, scalar, DOUBLE, DOUBLE, DOUBLE)
        num, chains, draws, lags, halves, residuals, products, means = arguments
        v, pair = Vectors(b, DOUBLE, DOUBLES), ir.VectorType(DOUBLE, 2)
        length = b.shl(draws, I64(1))
        in_vectors = b.and_(length, I64(-DOUBLES))
        total, rest = self.variable(b, v.type), self.variable(b, pair)
        sums = [self.variable(b, v.type) for _ in range(TOGETHER)]

        def read(series: Value, place: Value, kind: ir.VectorType) -> Value:
            own = ir.VectorType(scalar, kind.count)
            values = b.load(b.bitcast(self.at(b, series, place), own.as_pointer()), align=4)
            return values if own == kind else b.fpext(values, kind)

        def parts() -> Iterator[tuple[Value, ir.Type, Value]]:
            for kind, start, stop in ((v.type, I64(0), in_vectors), (pair, in_vectors, length)):
                with self.loop(b, start, stop, kind.count) as n:
                    yield n, kind, rest if kind is pair else total

        of_chains = b.mul(chains, length)
        rows = (
            (halves, of_chains),
            (products, lags),
            (means, b.shl(chains, I64(1))),
        )
        with self._rows(b, num, *rows) as (halves, products, means), self.loop(b, I64(0), chains) as chain:
            series = self.at(b, halves, b.mul(chain, length))
            b.store(v.constant(0.0), total)
            b.store(ir.Constant(pair, [0.0, 0.0]), rest)
            for n, kind, memory in parts():
                b.store(b.fadd(b.load(memory), read(series, n, kind)), memory)
            mean = b.load(rest)
            for k in range(0, DOUBLES, 2):
                mean = b.fadd(mean, b.shuffle_vector(b.load(total), b.load(total), _indices(k, k + 1)))
            count = b.sitofp(draws, DOUBLE)
            both = ir.Constant(pair, ir.Undefined)
            for k in range(2):
                both = b.insert_element(both, b.fdiv(b.extract_element(mean, I32(k)), count), I32(k))
            self._put(b, both, self.at(b, means, b.shl(chain, I64(1))))
            spread = b.shuffle_vector(both, both, _indices(*[0, 1] * (DOUBLES // 2)))
            for n, kind, _ in parts():
                one = b.fsub(read(series, n, kind), both if kind is pair else spread)
                self._put(b, one, self.at(b, residuals, n))
            with self.loop(b, length, b.add(length, b.add(b.shl(lags, I64(1)), I64(DOUBLES))), 2) as n:
                self._put(b, ir.Constant(pair, [0.0, 0.0]), self.at(b, residuals, n))
            with self.loop(b, I64(0), lags, TOGETHER) as lag:
                for memory in sums:
                    b.store(v.constant(0.0), memory)
                with self.loop(b, I64(0), length, DOUBLES) as n:
                    now = self._doubles(b, self.at(b, residuals, n), v.type)
                    for k, memory in enumerate(sums):
                        place = b.add(n, b.shl(b.add(lag, I64(k)), I64(1)))
                        later = self._doubles(b, self.at(b, residuals, place), v.type)
                        b.store(v.fma(now, later, b.load(memory)), memory)
                for k, memory in enumerate(sums):
                    result = self.at(b, products, b.add(lag, I64(k)))
                    b.store(b.fadd(b.load(result), v.sum(b.load(memory))), result)

    def _doubles(self, b: ir.IRBuilder, pointer: Value, kind: ir.Type) -> Value:
        return b.load(b.bitcast(pointer, kind.as_pointer()), align=8)

    def _put(self, b: ir.IRBuilder, value: Value, pointer: Value) -> None:
        b.store(value, b.bitcast(pointer, value.type.as_pointer()), align=8)

    def _pairs(self) -> None:
        """Flags of a chain become bits, those of both halves side by side, of which pairs are counted by the word."""
        arguments, b = self._entry("pairs", 4, I8, I64, I64, I64, I64)
        num, chains, draws, lags, flags, words, pairs, counts, crossed = arguments
        length = b.shl(draws, I64(1))
        num_words = b.lshr(length, I64(6))
        sums = [self.variable(b, I64) for _ in range(3)]
        kind = ir.VectorType(I8, FLAGS)
        ones = (I64(0x5555555555555555), I64(-0x5555555555555556))

        def flag(place: Value) -> Value:
            return b.zext(b.load(self.at(b, flags_of_chain, place)), I64)

        rows = (
            (flags, b.mul(chains, length)),
            (pairs, lags),
            (counts, b.shl(chains, I64(1))),
            (crossed, lags),
        )
        with self._rows(b, num, *rows) as (flags, pairs, counts, crossed), self.loop(b, I64(0), chains) as chain:
            flags_of_chain = self.at(b, flags, b.mul(chain, length))
            with self.loop(b, I64(0), num_words) as w:
                memory = b.bitcast(self.at(b, flags_of_chain, b.shl(w, I64(6))), kind.as_pointer())
                is_true = b.icmp_signed("!=", b.load(memory, align=1), ir.Constant(kind, [0] * FLAGS))
                b.store(b.bitcast(is_true, I64), self.at(b, words, w))
            with self.loop(
                b, num_words, b.lshr(b.add(length, b.add(b.shl(lags, I64(1)), I64(3 * FLAGS))), I64(6))
            ) as w:
                b.store(I64(0), self.at(b, words, w))
            with self.loop(b, b.shl(num_words, I64(6)), length) as n:
                self._increase(b, self.at(b, words, num_words), b.shl(flag(n), b.and_(n, I64(63))))
            for memory in sums:
                b.store(I64(0), memory)
            with self.loop(b, I64(0), b.add(num_words, I64(1))) as w:
                word = b.load(self.at(b, words, w))
                for memory, mask in zip(sums, ones, strict=False):
                    self._increase(b, memory, b.ctpop(b.and_(word, mask)))
            of_halves = [b.load(memory) for memory in sums[:2]]
            for k, (count, memory) in enumerate(zip(of_halves, sums, strict=False)):
                b.store(count, self.at(b, counts, b.add(b.shl(chain, I64(1)), I64(k))))
                b.store(b.shl(count, I64(1)), memory)  # those that have another after them, and before them
            with self.loop(b, I64(0), lags) as lag:
                shift = b.shl(lag, I64(1))
                skipped, shift_in_word = b.lshr(shift, I64(6)), b.and_(shift, I64(63))
                b.store(I64(0), sums[2])
                with self.loop(b, I64(0), b.add(num_words, I64(1))) as w:
                    low = self.at(b, words, b.add(w, skipped))
                    high = b.load(self.at(b, low, I64(1)))
                    # In two steps: to shift by 64 at once is not defined.
                    high = b.shl(b.shl(high, I64(1)), b.xor(shift_in_word, I64(63)))
                    later = b.or_(b.lshr(b.load(low), shift_in_word), high)
                    self._increase(b, sums[2], b.ctpop(b.and_(b.load(self.at(b, words, w)), later)))
                self._increase(b, self.at(b, pairs, lag), b.load(sums[2]))
                for k, (count, memory) in enumerate(zip(of_halves, sums, strict=False)):
                    self._increase(b, self.at(b, crossed, lag), b.mul(count, b.load(memory)))
                    first, last = b.add(shift, I64(k)), b.add(b.sub(b.sub(length, I64(2)), shift), I64(k))
                    self._increase(b, memory, b.neg(b.add(flag(first), flag(last))))


def _indices(*places: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(I32, len(places)), list(places))
