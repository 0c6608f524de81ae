"""Arithmetic and elementary functions on vectors, written as instructions of LLVM.

Every operation is rounded as IEEE 754 says, in the order written here: no flag lets the compiler reorder or contract.
So numbers are the same to the bit on all processors and at all widths of the vectors. A product and a sum rounded once
are ``llvm.fma``: an instruction where the processor has one (x86-64-v3, arm64), elsewhere slow calls of the C library.

There are no branches, so that the functions fit into loops. Arguments are reduced as usual (Muller, Elementary
Functions, 2016), the float64 parts of log(2) are fdlibm's, and the float32 parts Cephes's. Polynomials and quotients of
them have the smallest maximal relative error of the function, by Remez's algorithm with 50 digits. For float32, one
coefficient after the other was rounded, from the constant on, and the rest fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

LONG = 6  # numbers of coefficients beyond this


class _Precision(NamedTuple):
    """What the functions take that depends on the precision; coefficients start with the constant."""

    integer: ir.IntType  # as wide as the number
    mantissa: int  # bits of it
    bias: int  # of the exponent
    log_2: tuple[float, float]  # a head whose product with an exponent is exact, and the rest
    exp_range: tuple[float, float]  # exp is 0 below, infinite above
    exp: Sequence[float]  # exp(r) at |r| <= log(2)
    log: Sequence[float]  # (2 artanh(s) / s - 2) / s^2 by s^2, at 1 + s over 1 - s from sqrt(1/2) to sqrt(2)
    tanh_range: float  # tanh is 1 above
    tanh: Sequence[float]  # tanh(r) / r by r^2 at |r| <= log(2) / 4
    erf_range: float  # erf is 1 above
    erf: tuple[Sequence[float], Sequence[float]]  # artanh(erf(x)) / x - 1 by x^2 below: numerator, denominator
    sin: Sequence[float]  # sin(2 pi t) / t by t^2 at |t| <= 1 / 8
    cos: Sequence[float]  # cos(2 pi t) by t^2 at |t| <= 1 / 8


_SINGLE = _Precision(
    integer=ir.IntType(32),
    mantissa=23,
    bias=127,
    log_2=(0.693359375, -2.1219444005469057e-4),
    exp_range=(-104.0, 89.0),
    exp=(1.0, 1.0, 0.50000036, 0.16666616, 0.041661177, 0.008335946, 0.0014106166, 0.00019638576),
    log=(0.66666776, 0.39977568, 0.2987147),
    tanh_range=10.0,
    tanh=(1.0, -0.3333127, 0.1311046),
    erf_range=4.0,
    erf=(
        (
            0.12837918, 0.10277207, -0.00020615697, -0.0005962628, 7.017357e-05, 9.295437e-07, -1.1877506e-06,
            1.420724e-07, -7.475264e-09, 1.511747e-10,
        ),
        (1.0,),
    ),
    sin=(6.2831855, -41.341866, 81.62562, -76.77429),
    cos=(1.0, -19.739162, 64.92221, -83.61791),
)  # fmt: skip

_DOUBLE = _Precision(
    integer=ir.IntType(64),
    mantissa=52,
    bias=1023,
    log_2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
    exp_range=(-746.0, 710.0),
    exp=(
        1.0, 0.9999999999999876, 0.4999999999999884, 0.16666666666731847, 0.04166666666719359, 0.008333333323614883,
        0.0013888888822775512, 0.0001984127603161675, 2.4801621107535048e-05, 2.755540614223949e-06,
        2.7549624801242454e-07, 2.5335361781215557e-08, 2.157140603964971e-09,
    ),
    log=(
        0.666666666665878, 0.40000000052120804, 0.2857141714003027, 0.22223371704946066, 0.18123623114265278,
        0.1682023810015495,
    ),
    tanh_range=20.0,
    tanh=(
        1.0, -0.3333333333312369, 0.1333333323436541, -0.053968102119248955, 0.02185930463544892,
        -0.008552006110013515,
    ),
    erf_range=6.0,
    erf=(
        (
            0.1283791670955124, 0.14653971357936865, 0.04648161413516311, 0.010409574069241864, 0.001441263464886531,
            0.0001454073654493892, 9.148865326021501e-06, 3.4580628961885687e-07, 2.5549584163838067e-09,
        ),
        (
            1.0, 0.3409206592284883, 0.09077411367618504, 0.01356858718869699, 0.0015768968598788478,
            0.00011113587865703482, 5.417480145199415e-06, 8.830573700579693e-08, 1.435599065076479e-10,
        ),
    ),
    sin=(
        6.283185307179586, -41.341702240399634, 81.60524927594444, -76.70585970329135, 42.05868489845422,
        -15.09379726144544, 3.7807201386804556,
    ),
    cos=(
        1.0, -19.739208802178485, 64.93939402238934, -85.45681709402712, 60.244620342670814, -26.42426441464181,
        7.8103411199417945,
    ),
)  # fmt: skip


class Vectors:
    """Arithmetic on vectors of ``width`` floating-point numbers, as instructions of LLVM.

    Functions state their largest errors: for float32 in units of the last place (ulp), over all 2^32 numbers; for
    float64 relative to the result, as found at a million numbers, unless the result is subnormal.

    Args:
        builder: where the instructions go.
        scalar: ``ir.FloatType()`` or ``ir.DoubleType()``.
        width: a power of two.
    """

    def __init__(self, builder: ir.IRBuilder, scalar: ir.Type, width: int) -> None:
        if width < 1 or width & (width - 1):
            raise ValueError(f"the width must be a power of two, not {width}")
        self.builder, self.scalar, self.width = builder, scalar, width
        self.type = ir.VectorType(scalar, width)
        self._precision = _SINGLE if scalar == ir.FloatType() else _DOUBLE
        self._integers = ir.VectorType(self._precision.integer, width)

    def constant(self, value: float) -> ir.Constant:
        """A vector of ``value``, rounded to the nearest number."""
        return ir.Constant(self.type, [value] * self.width)

    def splat(self, scalar_value: ir.Value) -> ir.Value:
        """A vector of a scalar."""
        undefined = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar_value, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, undefined, self._indices([0] * self.width))

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fadd(a, b)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fsub(a, b)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fmul(a, b)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fdiv(a, b)

    def neg(self, a: ir.Value) -> ir.Value:
        return self.builder.fneg(a)

    def abs(self, a: ir.Value) -> ir.Value:
        return self._intrinsic("fabs", a)

    def sqrt(self, a: ir.Value) -> ir.Value:
        return self._intrinsic("sqrt", a)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``, rounded once."""
        return self._intrinsic("fma", a, b, c)

    def max(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger number; ``a`` where either is NaN, so that a NaN in ``a`` stays."""
        return self.select(self.less(a, b), b, a)

    def min(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller number; ``a`` where either is NaN, so that a NaN in ``a`` stays."""
        return self.select(self.less(b, a), b, a)

    def less(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """A mask of where ``a < b``; false where either is NaN."""
        return self.builder.fcmp_ordered("<", a, b)

    def select(self, mask: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.select(mask, a, b)

    def sum(self, a: ir.Value) -> ir.Value:
        """The sum as a scalar: halves are added to each other until one number is left."""
        for half in (self.width >> i for i in range(1, self.width.bit_length())):
            low, high = (self.builder.shuffle_vector(a, a, self._indices(range(i, i + half))) for i in (0, half))
            a = self.add(low, high)
        return self.builder.extract_element(a, ir.Constant(ir.IntType(32), 0))

    def exp(self, a: ir.Value) -> ir.Value:
        """Within 1.8 ulp (float32) and 1e-15 (float64)."""
        return self._exp(a, *self._precision.exp_range)

    def log(self, a: ir.Value) -> ir.Value:
        """Within 2.9 ulp (float32) and 6e-16 (float64)."""
        p = self._precision
        small = self.less(a, self.constant(2.0 ** (1 - p.bias)))  # zero or subnormal: its exponent is not in its bits
        scaled = self.select(small, self.mul(a, self.constant(2.0**p.mantissa)), a)
        _, k, mantissa = self._split(scaled)
        k = self.sub(k, self.select(small, self.constant(p.mantissa), self.constant(0.0)))
        return self._log_ends(a, self._log(k, self.sub(mantissa, self.constant(1.0))))

    def log1p(self, a: ir.Value) -> ir.Value:
        """Within 2.9 ulp (float32) and 6e-16 (float64)."""
        p = self._precision
        rounded = self.add(a, self.constant(1.0))
        exponent, k, _ = self._split(rounded)
        # With 1 + a = 2^k (1 + f), f = 2^-k a + (2^-k - 1): what 1 + a loses by rounding does not enter. The factor is
        # 2^(2 - k), as 2^-k may be subnormal.
        scale = self._shift_left(self.builder.sub(self._integer(2 * p.bias + 2), exponent), p.mantissa)
        scale, quarter = self.builder.bitcast(scale, self.type), self.constant(0.25)
        f = self.fma(self.mul(a, quarter), scale, self.fma(scale, quarter, self.constant(-1.0)))
        tiny = self.less(self.abs(a), self.constant(2.0 ** -(p.mantissa + 2)))  # a quarter of a subnormal is inexact
        return self._log_ends(rounded, self.select(tiny, a, self._log(k, f)))

    def tanh(self, a: ir.Value) -> ir.Value:
        """Within 2.6 ulp (float32) and 1.6e-15 (float64); exactly odd, and never beyond 1."""
        return self._tanh(self._clamp(a, self._precision.tanh_range))

    def sigmoid(self, a: ir.Value) -> ir.Value:
        """Within 3.5 ulp (float32) and 1.2e-15 (float64), where it is tiny too."""
        e = self._exp(a, self._precision.exp_range[0], 40.0)
        return self.div(e, self.add(e, self.constant(1.0)))

    def erf(self, a: ir.Value) -> ir.Value:
        """Within 3.5 ulp (float32) and 1.9e-15 (float64); exactly odd, and never beyond 1."""
        a = self._clamp(a, self._precision.erf_range)
        z = self.mul(a, a)
        numerator, denominator = (self._polynomial(z, coefficients) for coefficients in self._precision.erf)
        return self._tanh(self.fma(a, self.div(numerator, denominator), a))

    def cos_sin_turns(self, u: ir.Value) -> tuple[ir.Value, ir.Value]:
        """``cos(2 pi u)`` and ``sin(2 pi u)`` for u in [0, 1), each within 8.1e-8 (float32) and 2e-16 (float64)."""
        p = self._precision
        magic = self.constant(1.5 * 2.0**p.mantissa)
        shifted = self.fma(u, self.constant(4.0), magic)
        quadrant = self.builder.bitcast(shifted, self._integers)  # in the last two bits
        t = self.fma(self.sub(shifted, magic), self.constant(-0.25), u)
        z = self.mul(t, t)
        cos, sin = self._polynomial(z, p.cos), self.mul(t, self._polynomial(z, p.sin))
        odd = self.builder.trunc(quadrant, ir.VectorType(ir.IntType(1), self.width))
        next_quadrant = self.builder.add(quadrant, self._integer(1))
        return (
            self._negate_by_bit_1(self.select(odd, sin, cos), next_quadrant),
            self._negate_by_bit_1(self.select(odd, cos, sin), quadrant),
        )

    def _exp(self, a: ir.Value, low: float, high: float) -> ir.Value:
        """exp(a) = exp(r) 2^k 2^k for a = 2 k log(2) + r: of the two products, only the last may over- or underflow."""
        p = self._precision
        a = self.max(self.min(a, self.constant(high)), self.constant(low))
        s, k = self._power(a, 0.5 / math.log(2.0))
        r = a
        for part in p.log_2:
            r = self.fma(k, self.constant(-2.0 * part), r)
        return self.mul(self.mul(self._polynomial(r, p.exp), s), s)

    def _tanh(self, a: ir.Value) -> ir.Value:
        """With a = k log(2) / 2 + r, s = 2^k and t = tanh(r), ((s - 1) + t (s + 1)) / ((s + 1) + t (s - 1))."""
        s, k = self._power(a, 2.0 / math.log(2.0))
        r = self.fma(k, self.constant(-math.log(2.0) / 2.0), a)
        t = self.mul(r, self._polynomial(self.mul(r, r), self._precision.tanh))
        one = self.constant(1.0)
        below, above = self.sub(s, one), self.add(s, one)
        return self.div(self.fma(t, above, below), self.fma(t, below, above))

    def _clamp(self, a: ir.Value, high: float) -> ir.Value:
        return self.max(self.min(a, self.constant(high)), self.constant(-high))

    def _power(self, a: ir.Value, factor: float) -> tuple[ir.Value, ir.Value]:
        """``2^k`` and k, the integer next to ``a * factor``: rounded by a sum whose last bit is worth one."""
        p = self._precision
        magic = self.constant(1.5 * 2.0**p.mantissa + p.bias)
        shifted = self.fma(a, self.constant(factor), magic)  # its last bits are k + bias, the exponent of 2^k
        power = self._shift_left(self.builder.bitcast(shifted, self._integers), p.mantissa)
        return self.builder.bitcast(power, self.type), self.sub(shifted, magic)

    def _split(self, a: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """k + bias as integers, k, and m from sqrt(1/2) to sqrt(2), where a = 2^k m is positive and not subnormal."""
        p = self._precision
        one = p.bias << p.mantissa  # the bits of 1.0, and of sqrt(1/2):
        root = one - (1 << p.mantissa) + math.floor((math.sqrt(2.0) - 1.0) * 2.0**p.mantissa)
        bits = self.builder.add(self.builder.bitcast(a, self._integers), self._integer(one - root))
        exponent = self.builder.lshr(bits, self._integer(p.mantissa))
        mantissa = self.builder.add(self.builder.and_(bits, self._integer((1 << p.mantissa) - 1)), self._integer(root))
        # The last bit of 2^mantissa is worth one.
        shifted = self.builder.or_(exponent, self._integer((p.bias + p.mantissa) << p.mantissa))
        k = self.sub(self.builder.bitcast(shifted, self.type), self.constant(2.0**p.mantissa + p.bias))
        return exponent, k, self.builder.bitcast(mantissa, self.type)

    def _log(self, k: ir.Value, f: ir.Value) -> ir.Value:
        """``k log(2) + log(1 + f)``, with log(1 + f) = 2 artanh(s) for s = f / (2 + f)."""
        s = self.div(f, self.add(f, self.constant(2.0)))
        series = self._polynomial(self.mul(s, s), (2.0, *self._precision.log))
        return self.fma(k, self.constant(math.log(2.0)), self.mul(s, series))

    def _log_ends(self, a: ir.Value, log: ir.Value) -> ir.Value:
        """``log`` where ``a`` is positive and finite; -inf at 0, NaN below, and infinity and NaN as they are."""
        log = self.select(self.less(self.constant(0.0), a), log, self.constant(-math.inf))
        log = self.select(self.less(a, self.constant(0.0)), self.constant(math.nan), log)
        return self.select(self.less(a, self.constant(math.inf)), log, a)

    def _polynomial(self, a: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        """By Horner's scheme. Of a long one even and odd powers are added up apart, where neither waits for the other,
        but for the largest two terms, whose rounding counts.
        """
        if len(coefficients) <= LONG:
            *others, value = map(self.constant, coefficients)
        else:
            others, square = list(map(self.constant, coefficients[:2])), self.mul(a, a)
            even, odd = (self._polynomial(square, coefficients[first::2]) for first in (2, 3))
            value = self.fma(odd, a, even)
        for coefficient in reversed(others):
            value = self.fma(value, a, coefficient)
        return value

    def _negate_by_bit_1(self, a: ir.Value, integers: ir.Value) -> ir.Value:
        bits = self._precision.integer.width
        sign = self.builder.and_(self._shift_left(integers, bits - 2), self._integer(1 << (bits - 1)))
        return self.builder.bitcast(self.builder.xor(self.builder.bitcast(a, self._integers), sign), self.type)

    def _shift_left(self, integers: ir.Value, bits: int) -> ir.Value:
        return self.builder.shl(integers, self._integer(bits))

    def _integer(self, value: int) -> ir.Constant:
        return ir.Constant(self._integers, [value] * self.width)

    def _indices(self, indices: Sequence[int]) -> ir.Constant:
        return ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices))

    def _intrinsic(self, name: str, *arguments: ir.Value) -> ir.Value:
        name = f"llvm.{name}.v{self.width}f{self._precision.integer.width}"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(
            module, ir.FunctionType(self.type, [self.type] * len(arguments)), name
        )
        return self.builder.call(function, arguments)
