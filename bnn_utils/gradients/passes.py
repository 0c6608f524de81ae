"""Large networks: what comes between products of matrices, each as one pass over the numbers, as instructions for LLVM.

A library's product of matrices is hard to beat, and hands its result over to memory. What follows (a bias, an
activation, its derivative, the sum over points that is the bias' gradient, the likelihood) would go through that memory
again in each of torch's operations. Here it goes once. All arrays have a row of N points for each unit of each lane, N
a multiple of the vectors' width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from bnn_utils.gradients.formulas import activated, judged
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I64, VOID, Value, Writer

BY_OUTPUT = ("Tanh", "Sigmoid", "ReLU")  # whose derivative is known from what they give
Activation = tuple[str | None, tuple[tuple[str, Any], ...]]  # its name, and its options


@dataclass(frozen=True)
class Passes:
    """All that the instructions depend on.

    Attributes:
        num_features: of the first layer, which is a pass of its own where they are few; 0 where it isn't.
        activations: of the hidden layers, each once.
        last: of the last layer.
        num_outputs: of the last layer, K.
        num_log_scales: parameters that are outputs as well.
        num_targets: numbers per point.
        likelihood: "Bernoulli", "Categorical" or "Gaussian".
        scale: of Gaussian noise where it is known.
        dtype: "float32" or "float64".
    """

    num_features: int
    activations: tuple[Activation, ...]
    last: Activation
    num_outputs: int
    num_log_scales: int
    num_targets: int
    likelihood: str
    scale: float | None
    dtype: str

    @staticmethod
    def is_in_place(activation: Activation) -> bool:
        """Whether what an activation gives takes the place of what it got: the way back needs nothing else."""
        return activation[0] is None or activation[0] in BY_OUTPUT


def assemble(passes: Passes) -> str:
    """The text of a module of LLVM with `forward`, `backward`, `enter`, `leave` for each activation, and `judge`."""
    return str(_Assembly(passes).module)


class _Assembly(Writer):
    """A module in the making. Functions begin with the rows, or for `judge` the lanes, from ``first`` to ``last``."""

    def __init__(self, passes: Passes) -> None:
        super().__init__(passes.dtype)
        self.passes = passes
        for number, activation in enumerate(passes.activations):
            self._forward(f"forward_{number}", activation, 0)
            self._backward(f"backward_{number}", activation, 0)
            if passes.num_features:
                self._forward(f"enter_{number}", activation, passes.num_features)
                self._backward(f"leave_{number}", activation, passes.num_features)
        self._judge()

    def _entry(self, name: str, num_pointers: int) -> tuple[list[Value], ir.IRBuilder, Vectors]:
        kind = ir.FunctionType(VOID, [I64, I64, I64, *num_pointers * [self.pointer]])
        function = self.function(name, kind)
        b = ir.IRBuilder(function.append_basic_block())
        return list(function.args), b, Vectors(b, self.scalar, self.width)

    def _forward(self, name: str, activation: Activation, num_features: int) -> None:
        """Units h = f(z + b), in place of z where the way back needs nothing else.

        With features, z + b comes from rows ``[b | w]`` of weights, and inputs ``[features, N]``.
        """
        (first, last, num, weights, x, z, h), b, v = self._entry(name, 4)
        of_inputs = I64(1 + num_features)
        with self.loop(b, first, last) as row:
            start, constants = b.mul(row, num), b.mul(row, of_inputs)
            bias, *slopes = (
                v.splat(b.load(self.at(b, weights, b.add(constants, I64(i))))) for i in range(1 + num_features)
            )
            with self.loop(b, I64(0), num, self.width) as n:
                place = b.add(start, n)
                if num_features:
                    value = bias
                    for i, slope in enumerate(slopes):
                        value = v.fma(slope, self._input(b, v, x, i, num, n), value)
                else:
                    value = v.add(self.load(b, self.at(b, z, place), v.type), bias)
                if Passes.is_in_place(activation):
                    self.store(b, activated(v, *activation, value)[0], self.at(b, z, place))
                else:
                    self.store(b, value, self.at(b, z, place))
                    self.store(b, activated(v, *activation, value)[0], self.at(b, h, place))
        b.ret_void()

    def _backward(self, name: str, activation: Activation, num_features: int) -> None:
        """Gradients by h become gradients by z, in place; the gradient by ``[b | w]`` is their sum with the inputs.

        With features this is the first layer, and nobody needs the gradients by z.
        """
        (first, last, num, grad, kept, x, g), b, v = self._entry(name, 4)
        sums = [self.variable(b, v.type) for _ in range(1 + num_features)]
        with self.loop(b, first, last) as row:
            start = b.mul(row, num)
            for memory in sums:
                b.store(v.constant(0.0), memory)
            with self.loop(b, I64(0), num, self.width) as n:
                place = b.add(start, n)
                value = self.load(b, self.at(b, g, place), v.type)
                value = _back(v, activation, self.load(b, self.at(b, kept, place), v.type), value)
                if not num_features:
                    self.store(b, value, self.at(b, g, place))
                b.store(v.add(b.load(sums[0]), value), sums[0])
                for i, memory in enumerate(sums[1:]):
                    b.store(v.fma(value, self._input(b, v, x, i, num, n), b.load(memory)), memory)
            for i, memory in enumerate(sums):
                place = b.add(b.mul(row, I64(1 + num_features)), I64(i))
                b.store(v.sum(b.load(memory)), self.at(b, grad, place))
        b.ret_void()

    def _judge(self) -> None:
        """Log likelihoods ``(C,)`` of outputs z + b, and the gradients by z, in place, by b and by log scales."""
        passes = self.passes
        kind = ir.FunctionType(VOID, [I64, I64, I64, *8 * [self.pointer], I64])
        function = self.function("judge", kind)
        first, last, num, z, bias, scales, y, weights, values, grad_bias, grad_scales, stride = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v = Vectors(b, self.scalar, self.width)
        outputs, log_scales = passes.num_outputs, passes.num_log_scales
        total = self.variable(b, v.type)
        sums = [self.variable(b, v.type) for _ in range(outputs + log_scales)]
        with self.loop(b, first, last) as lane:
            for memory in (total, *sums):
                b.store(v.constant(0.0), memory)
            targets = self.at(b, y, b.mul(lane, stride))

            def constant(array: Value, count: int, k: int, lane: Value = lane) -> Value:
                return self.at(b, array, b.add(b.mul(lane, I64(count)), I64(k)))

            biases = [v.splat(b.load(constant(bias, outputs, k))) for k in range(outputs)]
            of_scales = [v.splat(b.load(constant(scales, log_scales, k))) for k in range(log_scales)]
            with self.loop(b, I64(0), num, self.width) as n:
                rows = [b.add(b.mul(b.add(b.mul(lane, I64(outputs)), I64(k)), num), n) for k in range(outputs)]
                inputs = [
                    v.add(self.load(b, self.at(b, z, row), v.type), c) for row, c in zip(rows, biases, strict=True)
                ]
                parts = [activated(v, *passes.last, value) for value in inputs]
                wanted = [self._input(b, v, targets, k, num, n) for k in range(passes.num_targets)]
                value, g = judged(
                    v, passes.likelihood, passes.scale, [*(part[0] for part in parts), *of_scales], wanted, True
                )
                weight = self._input(b, v, weights, 0, num, n)
                counts = v.less(v.constant(0.0), weight)
                b.store(v.add(b.load(total), v.select(counts, v.mul(weight, value), v.constant(0.0))), total)
                g = [v.mul(weight, one) for one in g]
                g = [*(part[1](one) for part, one in zip(parts, g, strict=False)), *g[outputs:]]
                for row, one in zip(rows, g, strict=False):
                    self.store(b, one, self.at(b, z, row))
                for memory, one in zip(sums, g, strict=True):
                    b.store(v.add(b.load(memory), one), memory)
            b.store(v.sum(b.load(total)), self.at(b, values, lane))
            for array, count, memories in (
                (grad_bias, outputs, sums[:outputs]),
                (grad_scales, log_scales, sums[outputs:]),
            ):
                for k, memory in enumerate(memories):
                    b.store(v.sum(b.load(memory)), constant(array, count, k))
        b.ret_void()

    def _input(self, b: ir.IRBuilder, v: Vectors, array: Value, row: int, num: Value, n: Value) -> Value:
        """Points from n on, of one row of an array that all lanes share."""
        return self.load(b, self.at(b, array, b.add(b.mul(I64(row), num), n)), v.type)


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
