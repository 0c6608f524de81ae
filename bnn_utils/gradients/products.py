"""Large networks as instructions for LLVM: the layers' products of matrices, and all that comes between them.

All of a lane's numbers at some hundred points stay in the caches, from the inputs to the gradient. A product works on
vectors of points of some rows at once, sums in registers, and what follows (a bias, an activation, its derivative) is
done before the sums leave them. Sums have a fixed order, so that numbers are the same to the bit on all processors.

Arrays have a row of points for each unit, a multiple of the vectors' width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from bnn_utils.gradients.formulas import Noise, activated, judged
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I64, VOID, Value, Writer

BY_OUTPUT = ("Tanh", "Sigmoid", "ReLU")  # whose derivative is known from what they give
ROWS = 6  # of a product at once: their sums are in 12 of the 16 registers of AVX2
GRAD_ROWS, GRAD_COLUMNS = 4, 3  # of the gradient by weights at once, with vectors of half the width: 12 as well
# What a function for one lane is given beside it: sizes and whole numbers, and where arrays begin.
CONTEXT = (
    *("dim", "parts", "part", "block", "num", "y_stride"),
    *("order", "theta", "values", "grads", "memory", "x", "y", "weights"),
)
Activation = tuple[str | None, tuple[tuple[str, Any], ...]]  # its name, and its options


@dataclass(frozen=True)
class Products:
    """All that the instructions depend on.

    Attributes:
        shapes: of the layers' weights, (out, in).
        activations: after each layer.
        num_log_scales: parameters that are outputs as well.
        num_targets: numbers per point, that of units included.
        likelihood: "Bernoulli", "Categorical" or "Gaussian".
        noise: of Gaussian.
        dtype: "float32" or "float64".
    """

    shapes: tuple[tuple[int, int], ...]
    activations: tuple[Activation, ...]
    num_log_scales: int
    num_targets: int
    likelihood: str
    noise: Noise | None
    dtype: str

    @property
    def dim(self) -> int:
        """Numbers of a lane: of each layer its weights and its bias, and log scales."""
        return sum(out * (1 + width) for out, width in self.shapes) + self.num_log_scales

    @property
    def memory(self) -> int:
        """Numbers that are kept of each point of a block."""
        return sum(self.rows)

    @property
    def rows(self) -> list[int]:
        """The same array by array: hidden units, what activations got that the way back needs, outputs, gradients."""
        hidden = [out for out, _ in self.shapes[:-1]]
        extra = [0 if is_in_place(a) else out for out, a in zip(hidden, self.activations, strict=False)]
        return [*hidden, *extra, self.shapes[-1][0], *2 * [max(hidden, default=0)]]


def is_in_place(activation: Activation) -> bool:
    """Whether what an activation gives takes the place of what it got: the way back needs nothing else."""
    return activation[0] is None or activation[0] in BY_OUTPUT


def assemble(products: Products) -> str:
    """The text of a module of LLVM with `gradients`."""
    return str(_Assembly(products).module)


class _Assembly(Writer):
    """A module in the making."""

    def __init__(self, products: Products) -> None:
        super().__init__(products.dtype)
        self.products = products
        hidden = dict.fromkeys(products.activations[:-1])
        self.forward = {activation: self._forward(k, activation) for k, activation in enumerate(hidden)}
        self.backward = {activation: self._backward(k, activation) for k, activation in enumerate(hidden)}
        self.outputs = self._forward(len(hidden), (None, ()))
        self.judge, self.sums = self._judge(), self._sums()
        self.gradients = self._gradients()
        self._of_tile()

    # --- products -----------------------------------------------------------------------------------------------------

    def _product(
        self, name: str, num_pointers: int, begin: Callable[..., Value], end: Callable[..., None]
    ) -> ir.Function:
        """Rows ``sum_k w_mk h_kn`` that begin with something and end somewhere.

        Its arguments: rows M, terms K, points, how far weights are apart along m and along k, weights, h, how far rows
        of h and of all other arrays are apart, and those arrays.
        """
        pointers = [self.pointer] * num_pointers
        kinds = [*5 * [I64], self.pointer, self.pointer, I64, I64, *pointers]
        function = self.function(name, ir.FunctionType(VOID, kinds), internal=True)
        num_rows, terms, num, row_step, term_step, weights, h, h_stride, stride, *others = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v = Vectors(b, self.scalar, self.width)
        sums = [self.variable(b, v.type) for _ in range(ROWS)]
        with self.loop(b, I64(0), num, self.width) as n, self.loop(b, I64(0), num_rows, ROWS) as first:
            rows = self._rows(b, first, num_rows, ROWS)
            starts = [self.at(b, weights, b.mul(row, row_step)) for row in rows]
            for memory, row in zip(sums, rows, strict=True):
                b.store(begin(b, v, row, *others), memory)
            with self.loop(b, I64(0), terms) as k:
                of_input = self.load(b, self.at(b, h, b.add(b.mul(k, h_stride), n)), v.type)
                place = b.mul(k, term_step)
                for memory, start in zip(sums, starts, strict=True):
                    weight = v.splat(b.load(self.at(b, start, place)))
                    b.store(v.fma(weight, of_input, b.load(memory)), memory)
            for memory, row in zip(sums, rows, strict=True):
                end(b, v, b.load(memory), b.add(b.mul(row, stride), n), *others)
        b.ret_void()
        return function

    def _forward(self, number: int, activation: Activation) -> ir.Function:
        """Units f(W h + b) from b and h; in place of W h + b where the way back needs nothing else."""

        def end(b: ir.IRBuilder, v: Vectors, value: Value, place: Value, _: Value, z: Value, out: Value) -> None:
            if not is_in_place(activation):
                self.store(b, value, self.at(b, z, place))
            self.store(b, activated(v, *activation, value)[0], self.at(b, out, place))

        return self._product(
            f"forward_{number}", 3, lambda b, v, row, bias, *_: v.splat(b.load(self.at(b, bias, row))), end
        )

    def _backward(self, number: int, activation: Activation) -> ir.Function:
        """Gradients ``(W' g) f'`` by what an activation got, from gradients g by what the next layer gave."""

        def end(b: ir.IRBuilder, v: Vectors, value: Value, place: Value, kept: Value, out: Value) -> None:
            at_kept = self.load(b, self.at(b, kept, place), v.type)
            self.store(b, _back(v, activation, at_kept, value), self.at(b, out, place))

        return self._product(f"backward_{number}", 2, lambda b, v, *_: v.constant(0.0), end)

    def _sums(self) -> ir.Function:
        """Over points, of g h' and of g: what is added to the gradients by weights and by the bias.

        Its arguments: rows M of g, rows K of h, points, g and how far its rows are apart, h likewise, both gradients.
        """
        p = self.pointer
        function = self.function("sums", ir.FunctionType(VOID, [I64, I64, I64, p, I64, p, I64, p, p]), internal=True)
        num_rows, num_columns, num, g, g_stride, h, h_stride, grad_weights, grad_bias = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v = Vectors(b, self.scalar, self.width // 2)
        sums = [self.variable(b, v.type) for _ in range(GRAD_ROWS * GRAD_COLUMNS)]
        of_bias = sums[:GRAD_ROWS]

        def added(pairs: list[tuple[Value, Value]]) -> None:
            """Vectors in memory to numbers; all are read before one is written, as the same may be there twice."""
            totals = [b.fadd(b.load(place), v.sum(b.load(memory))) for memory, place in pairs]
            for total, (_, place) in zip(totals, pairs, strict=True):
                b.store(total, place)

        with self.loop(b, I64(0), num_rows, GRAD_ROWS) as first:
            rows = self._rows(b, first, num_rows, GRAD_ROWS)
            of_g = [self.at(b, g, b.mul(row, g_stride)) for row in rows]
            for memory in of_bias:
                b.store(v.constant(0.0), memory)
            with self.loop(b, I64(0), num, v.width) as n:
                for memory, start in zip(of_bias, of_g, strict=True):
                    b.store(v.add(b.load(memory), self.load(b, self.at(b, start, n), v.type)), memory)
            added([(memory, self.at(b, grad_bias, row)) for memory, row in zip(of_bias, rows, strict=True)])
            with self.loop(b, I64(0), num_columns, GRAD_COLUMNS) as column:
                columns = self._rows(b, column, num_columns, GRAD_COLUMNS)
                of_h = [self.at(b, h, b.mul(one, h_stride)) for one in columns]
                for memory in sums:
                    b.store(v.constant(0.0), memory)
                with self.loop(b, I64(0), num, v.width) as n:
                    left, right = ([self.load(b, self.at(b, a, n), v.type) for a in array] for array in (of_g, of_h))
                    for memory, (one, other) in zip(sums, itertools.product(left, right), strict=True):
                        b.store(v.fma(one, other, b.load(memory)), memory)
                places = [b.add(b.mul(row, num_columns), one) for row, one in itertools.product(rows, columns)]
                added([(m, self.at(b, grad_weights, place)) for m, place in zip(sums, places, strict=True)])
        b.ret_void()
        return function

    def _rows(self, b: ir.IRBuilder, first: Value, num: Value, count: int) -> list[Value]:
        """So many rows from the first on; beyond the last row it is the last one, computed and written again."""
        rows, last = [b.add(first, I64(r)) for r in range(count)], b.sub(num, I64(1))
        return [b.select(b.icmp_signed("<", row, last), row, last) for row in rows]

    # --- likelihood ---------------------------------------------------------------------------------------------------

    def _judge(self) -> ir.Function:
        """Log likelihood of outputs z at some points, and the gradients by z, in place, and by log scales, added.

        Its arguments: points, z and how far its rows are apart, log scales and the gradient by them, and targets and
        weights from those points on, with how far rows of targets are apart.
        """
        products, p = self.products, self.pointer
        kind = ir.FunctionType(self.scalar, [I64, p, I64, p, p, p, p, I64])
        function = self.function("judge", kind, internal=True)
        num, z, stride, scales, grad_scales, targets, weights, target_stride = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v = Vectors(b, self.scalar, self.width)
        outputs = products.shapes[-1][0]
        of_scales = [v.splat(b.load(self.at(b, scales, I64(k)))) for k in range(products.num_log_scales)]
        total, *sums = (self.variable(b, v.type) for _ in range(1 + len(of_scales)))
        for memory in (total, *sums):
            b.store(v.constant(0.0), memory)
        with self.loop(b, I64(0), num, self.width) as n:
            rows = [self.at(b, z, b.add(b.mul(I64(k), stride), n)) for k in range(outputs)]
            parts = [activated(v, *products.activations[-1], self.load(b, row, v.type)) for row in rows]
            wanted = [
                self.load(b, self.at(b, targets, b.add(b.mul(I64(k), target_stride), n)), v.type)
                for k in range(products.num_targets)
            ]
            found = [*(part[0] for part in parts), *of_scales]
            value, g = judged(v, products.likelihood, products.noise, found, wanted, True)
            weight = self.load(b, self.at(b, weights, n), v.type)
            counts = v.less(v.constant(0.0), weight)
            b.store(v.add(b.load(total), v.select(counts, v.mul(weight, value), v.constant(0.0))), total)
            g = [v.mul(weight, one) for one in g]
            for row, part, one in zip(rows, parts, g, strict=False):
                self.store(b, part[1](one), row)
            for memory, one in zip(sums, g[outputs:], strict=True):
                b.store(v.add(b.load(memory), one), memory)
        for k, memory in enumerate(sums):
            place = self.at(b, grad_scales, I64(k))
            b.store(b.fadd(b.load(place), v.sum(b.load(memory))), place)
        b.ret(v.sum(b.load(total)))
        return function

    # --- what is called from outside ----------------------------------------------------------------------------------

    def _gradients(self) -> ir.Function:
        """Log likelihoods and their gradients for jobs from ``first`` to ``last``: each is some points for some lane.

        Jobs go over lanes, C, and then over parts of so many points. Theta is ``(C, dim)``, what is found ``(jobs,)``
        and ``(jobs, dim)``. Memory holds `Products.memory` rows of a block of points. The data: inputs
        ``[features, N]``, targets ``[K, N]`` of one data set after the other, weights ``[N]``, N, and how far lanes'
        targets are apart.
        """
        p, products = self.pointer, self.products
        kinds = [*5 * [I64], *7 * [p], I64, I64]
        function = self.function("gradients", ir.FunctionType(VOID, kinds))
        first, last, num_lanes, part, block, theta, values, grads, memory, x, y, weights, num, y_stride = function.args
        b = ir.IRBuilder(function.append_basic_block())
        smaller = lambda a, c: b.select(b.icmp_signed("<", a, c), a, c)  # noqa: E731
        in_lane = list(itertools.accumulate((out * (1 + width) for out, width in products.shapes), initial=0))
        starts = itertools.accumulate(products.rows, initial=0)
        *kept, outputs, one, other, _ = (self.at(b, memory, b.mul(I64(row), block)) for row in starts)
        units, activations = kept[: len(kept) // 2], products.activations
        kept = [h if is_in_place(a) else z for h, z, a in zip(units, kept[len(units) :], activations, strict=False)]
        turns = one, other
        total = self.variable(b, self.scalar)
        with self.loop(b, first, last) as job:
            lane, start = b.srem(job, num_lanes), b.mul(b.sdiv(job, num_lanes), part)
            of_lane, grad = (self.at(b, a, b.mul(k, I64(products.dim))) for a, k in ((theta, lane), (grads, job)))
            targets = self.at(b, y, b.mul(lane, y_stride))
            b.store(self.scalar(0.0), total)
            with self.loop(b, I64(0), I64(products.dim)) as k:
                b.store(self.scalar(0.0), self.at(b, grad, k))
            end = smaller(b.add(start, part), num)
            with self.loop(b, start, end, block) as here:
                count = smaller(block, b.sub(end, here))
                inputs = [(self.at(b, x, here), num), *((h, block) for h in units)]
                for layer, (out, width) in enumerate(products.shapes):
                    weight = self.at(b, of_lane, I64(in_lane[layer]))
                    bias = self.at(b, weight, I64(out * width))
                    is_last = layer == len(units)
                    code = self.outputs if is_last else self.forward[activations[layer]]
                    to = (outputs, outputs) if is_last else (kept[layer], units[layer])
                    extent = I64(out), I64(width), count, I64(width), I64(1)
                    b.call(code, [*extent, weight, *inputs[layer], block, bias, *to])
                scales, of_scales = (self.at(b, array, I64(in_lane[-1])) for array in (of_lane, grad))
                data = self.at(b, targets, here), self.at(b, weights, here), num
                value = b.call(self.judge, [count, outputs, block, scales, of_scales, *data])
                b.store(b.fadd(b.load(total), value), total)
                g = outputs
                for layer, (out, width) in reversed(list(enumerate(products.shapes))):
                    weight, of_weight = (self.at(b, array, I64(in_lane[layer])) for array in (of_lane, grad))
                    of_bias = self.at(b, of_weight, I64(out * width))
                    b.call(self.sums, [I64(out), I64(width), count, g, block, *inputs[layer], of_weight, of_bias])
                    if layer:
                        code, below = self.backward[activations[layer - 1]], turns[layer % 2]
                        extent = I64(width), I64(out), count, I64(1), I64(width)
                        b.call(code, [*extent, weight, g, block, block, kept[layer - 1], below])
                        g = below
            b.store(b.load(total), self.at(b, values, job))
        b.ret_void()
        return function

    def _of_tile(self) -> None:
        """The same of one lane, whose theta ``(C, D)`` is in the posterior's order, for other native code.

        A context holds `CONTEXT`: sizes, places in theta of a lane's numbers (D for none), memory for these, for what
        is found of each part, and for a block of points, and the data.
        """
        kind = ir.FunctionType(VOID, [I64.as_pointer(), I64, *3 * [self.pointer]])
        function = self.function("of_tile", kind)
        context, lane, theta, value, grad = function.args
        b = ir.IRBuilder(function.append_basic_block())
        known = {name: b.load(self.at(b, context, I64(k))) for k, name in enumerate(CONTEXT)}
        for name in ("theta", "values", "grads", "memory", "x", "y", "weights"):
            known[name] = b.inttoptr(known[name], self.pointer)
        order, dim = b.inttoptr(known["order"], I64.as_pointer()), known["dim"]
        of_lane = [self.at(b, array, b.mul(lane, dim)) for array in (theta, grad)]

        @contextmanager
        def numbers() -> Iterator[tuple[Value, list[Value], Value]]:
            """In our order: which, where in theta and in its gradient, and whether there."""
            with self.loop(b, I64(0), I64(self.products.dim)) as k:
                place = b.load(self.at(b, order, k))
                yield k, [self.at(b, array, place) for array in of_lane], b.icmp_signed("<", place, dim)

        with numbers() as (k, (place, _), is_there):
            b.store(self.scalar(0.0), self.at(b, known["theta"], k))
            with b.if_then(is_there):
                b.store(b.load(place), self.at(b, known["theta"], k))
        targets = self.at(b, known["y"], b.mul(lane, known["y_stride"]))
        sizes = I64(0), known["parts"], I64(1), known["part"], known["block"]
        memory = [known[name] for name in ("theta", "values", "grads", "memory")]
        b.call(self.gradients, [*sizes, *memory, known["x"], targets, known["weights"], known["num"], I64(0)])
        b.store(self._sum_over_parts(b, known["values"], I64(0), I64(1), known["parts"]), self.at(b, value, lane))
        with numbers() as (k, (_, place), is_there), b.if_then(is_there):
            total = self._sum_over_parts(b, known["grads"], k, I64(self.products.dim), known["parts"])
            b.store(total, place)
        b.ret_void()

    def _sum_over_parts(self, b: ir.IRBuilder, array: Value, first: Value, step: Value, num: Value) -> Value:
        total = self.variable(b, self.scalar)
        b.store(self.scalar(0.0), total)
        with self.loop(b, I64(0), num) as part:
            one = b.load(self.at(b, array, b.add(first, b.mul(part, step))))
            b.store(b.fadd(b.load(total), one), total)
        return b.load(total)


def _back(v: Vectors, activation: Activation, kept: Value, g: Value) -> Value:
    """The gradient by z: from what the activation gave, where that is enough, or from z."""
    one, zero = v.constant(1.0), v.constant(0.0)
    match activation[0]:
        case "Tanh":
            return v.mul(g, v.fma(v.neg(kept), kept, one))
        case "Sigmoid":
            return v.mul(g, v.fma(v.neg(kept), kept, kept))
        case "ReLU":
            return v.select(v.less(zero, kept), g, zero)
    return activated(v, *activation, kept)[1](g)
