"""Arithmetic and elementary functions on vectors, written as instructions of LLVM.

Every operation is rounded as IEEE 754 says, in the order written here: no flag lets the compiler reorder or contract.
So results are the same to the bit on all processors, whatever the width of the vectors. Products and sums in one are
``llvm.fma``: one instruction where the processor has it (x86-64-v3, arm64), elsewhere a slow call of the C library.

There are no branches, so that the functions fit into loops. Arguments are reduced as is usual (Muller, Elementary
Functions, 2016); polynomials and quotients of polynomials are the best in relative error by Remez's algorithm, run
with 50 digits; for single precision coefficients were rounded one after the other and the rest fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir


class _Precision(NamedTuple):
    """What the functions take that depends on the precision; coefficients start with the constant."""

    integer: ir.IntType  # as wide as the number
    mantissa: int  # bits of it
    bias: int  # of the exponent
    log_2: tuple[float, float]  # a head whose product with an exponent is exact, and the rest
    exp_range: tuple[float, float]  # exp is 0 below, infinite above
    exp: Sequence[float]  # exp(r / 2) at |r| <= log 2
    log: Sequence[float]  # (2 artanh(s) / s - 2) / s^2 by s^2, at 1 + s over 1 - s from sqrt(1/2) to sqrt(2)
    tanh_range: float  # tanh is 1 above
    tanh: Sequence[float]  # tanh(r) / r by r^2 at |r| <= log(2) / 4
    erf_range: float  # erf is 1 above
    erf: tuple[Sequence[float], Sequence[float]]  # erf(x) / x by x^2 below, numerator and denominator
    sin: Sequence[float]  # sin(2 pi t) / t by t^2 at |t| <= 1 / 8
    cos: Sequence[float]  # cos(2 pi t) by t^2 at |t| <= 1 / 8


_SINGLE = _Precision(
    integer=ir.IntType(32),
    mantissa=23,
    bias=127,
    log_2=(0.693359375, -2.1219444005469057e-4),
    exp_range=(-104.0, 89.0),
    exp=(1.0, 0.5, 0.124999985, 0.020833146, 0.0026042564, 0.00026153756, 2.1623579e-05),
    log=(0.66666776, 0.39977568, 0.2987147),
    tanh_range=10.0,
    tanh=(1.0, -0.3333127, 0.1311046),
    erf_range=4.0,
    erf=(
        (1.1283791, 0.20559485, 0.054584894, 0.004360457, 0.00028868092, 1.8145527e-06),
        (1.0, 0.51553535, 0.12022808, 0.016180051, 0.0012881431, 3.583415e-05),
    ),
    sin=(6.2831855, -41.341866, 81.62562, -76.77429),
    cos=(1.0, -19.739162, 64.92221, -83.61791),
)

_DOUBLE = _Precision(
    integer=ir.IntType(64),
    mantissa=52,
    bias=1023,
    log_2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
    exp_range=(-746.0, 710.0),
    exp=(
        1.0,
        0.5000000000000046,
        0.12500000000000208,
        0.02083333333315433,
        0.0026041666665994785,
        0.00026041666862666485,
        2.1701389463515167e-05,
        1.5500904430667292e-06,
        9.687935842354509e-08,
        5.3994504537903845e-09,
        2.712825193283564e-10,
    ),
    log=(
        0.666666666665878,
        0.40000000052120804,
        0.2857141714003027,
        0.22223371704946066,
        0.18123623114265278,
        0.1682023810015495,
    ),
    tanh_range=20.0,
    tanh=(
        1.0,
        -0.3333333333312369,
        0.1333333323436541,
        -0.053968102119248955,
        0.02185930463544892,
        -0.008552006110013515,
    ),
    erf_range=6.0,
    erf=(
        (
            1.1283791670955126,
            0.22016224747250202,
            0.06611974178413105,
            0.006889004353491992,
            0.000855609534723687,
            5.693753548100395e-05,
            3.9000761606013604e-06,
            1.6945940613279896e-07,
            6.759230878332926e-09,
            1.7195989144186718e-10,
            3.336433115257532e-12,
            2.2270420887119248e-14,
            1.5715387400992506e-17,
        ),
        (
            1.0,
            0.5284470450116555,
            0.13474611047699886,
            0.021985410614810335,
            0.0025645662357142982,
            0.00022607631255009555,
            1.5497136319574617e-05,
            8.349343192466664e-07,
            3.515153287181796e-08,
            1.1244542282675633e-09,
            2.5492197136044297e-11,
            3.3192868794399644e-13,
            8.851985472293985e-16,
        ),
    ),
    sin=(
        6.283185307179586,
        -41.341702240399634,
        81.60524927594444,
        -76.70585970329135,
        42.05868489845422,
        -15.09379726144544,
        3.7807201386804556,
    ),
    cos=(
        1.0,
        -19.739208802178485,
        64.93939402238934,
        -85.45681709402712,
        60.244620342670814,
        -26.42426441464181,
        7.8103411199417945,
    ),
)


class Vectors:
    """Arithmetic on vectors of ``width`` floating-point numbers, as instructions of LLVM.

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
        return ir.Constant(self.type, [value] * self.width)

    def splat(self, scalar_value: ir.Value) -> ir.Value:
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
        """The sum as a scalar: the second half is added to the first until one number is left."""
        for half in (self.width >> i for i in range(1, self.width.bit_length())):
            low, high = (self.builder.shuffle_vector(a, a, self._indices(range(i, i + half))) for i in (0, half))
            a = self.add(low, high)
        return self.builder.extract_element(a, ir.Constant(ir.IntType(32), 0))

    def exp(self, a: ir.Value) -> ir.Value:
        return self._exp(a, *self._precision.exp_range)

    def log(self, a: ir.Value) -> ir.Value:
        p = self._precision
        shift = p.mantissa + 1
        small = self.less(a, self.constant(2.0 ** (1 - p.bias)))  # no exponent can be read off these before scaling
        scaled = self.select(small, self.mul(a, self.constant(2.0**shift)), a)
        exponent, mantissa = self._split(scaled)
        base = self.select(
            small, self.constant(2.0**p.mantissa + p.bias + shift), self.constant(2.0**p.mantissa + p.bias)
        )
        f = self.sub(mantissa, self.constant(1.0))
        return self._log_ends(a, self._log(f, self.sub(self._as_float(exponent), base)))

    def log1p(self, a: ir.Value) -> ir.Value:
        p = self._precision
        one = self.constant(1.0)
        u = self.add(one, a)
        exponent, _ = self._split(u)
        # With 1 + a = 2^k (1 + f), f = 2^-k a + (2^-k - 1), whatever u was rounded to. 4 * 2^-k as 2^-128 has no exponent.
        scale = self._shift_left(self.builder.sub(self._integer(2 * p.bias + 2), exponent), p.mantissa)
        scale = self.builder.bitcast(scale, self.type)
        quarter = self.constant(0.25)
        f = self.fma(self.mul(a, quarter), scale, self.fma(scale, quarter, self.constant(-1.0)))
        k = self.sub(self._as_float(exponent), self.constant(2.0**p.mantissa + p.bias))
        tiny = self.less(self.abs(a), self.constant(2.0 ** -(p.mantissa + 2)))  # a quarter of these may be rounded
        return self._log_ends(u, self.select(tiny, a, self._log(f, k)))

    def tanh(self, a: ir.Value) -> ir.Value:
        """Odd to the bit, and never beyond 1.

        With a = k log(2) / 2 + r and s = 2^k, tanh(a) = ((s - 1) + t (s + 1)) / ((s + 1) + t (s - 1)) for t = tanh(r).
        """
        p = self._precision
        a = self.max(self.min(a, self.constant(p.tanh_range)), self.constant(-p.tanh_range))
        s, k = self._power(a, 2.0 / math.log(2.0))
        r = self.fma(k, self.constant(-math.log(2.0) / 2.0), a)
        t = self.mul(r, self._polynomial(self.mul(r, r), p.tanh))
        one = self.constant(1.0)
        below, above = self.sub(s, one), self.add(s, one)
        return self.div(self.fma(t, above, below), self.fma(t, below, above))

    def sigmoid(self, a: ir.Value) -> ir.Value:
        e = self._exp(a, self._precision.exp_range[0], 40.0)
        return self.div(e, self.add(e, self.constant(1.0)))

    def erf(self, a: ir.Value) -> ir.Value:
        """Never beyond 1."""
        p = self._precision
        one, minus_one = self.constant(1.0), self.constant(-1.0)
        a = self.max(self.min(a, self.constant(p.erf_range)), self.constant(-p.erf_range))
        z = self.mul(a, a)
        numerator, denominator = (self._polynomial(z, coefficients) for coefficients in p.erf)
        return self.max(self.min(self.div(self.mul(a, numerator), denominator), one), minus_one)

    def cos_sin_turns(self, u: ir.Value) -> tuple[ir.Value, ir.Value]:
        """``cos(2 pi u)`` and ``sin(2 pi u)`` for u in [0, 1)."""
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
        """exp(a) = (2^k exp(r / 2))^2 for a = 2 k log(2) + r: the square overflows and underflows as it should."""
        p = self._precision
        a = self.max(self.min(a, self.constant(high)), self.constant(low))
        s, k = self._power(a, 0.5 / math.log(2.0))
        r = a
        for part in p.log_2:
            r = self.fma(k, self.constant(-2.0 * part), r)
        root = self.mul(s, self._polynomial(r, p.exp))
        return self.mul(root, root)

    def _power(self, a: ir.Value, factor: float) -> tuple[ir.Value, ir.Value]:
        """``2^k`` and k, the integer next to ``a * factor``: rounded by a sum whose last bit is worth one."""
        p = self._precision
        magic = self.constant(1.5 * 2.0**p.mantissa + p.bias)
        shifted = self.fma(a, self.constant(factor), magic)  # its last bits are k + bias, the exponent of 2^k
        power = self._shift_left(self.builder.bitcast(shifted, self._integers), p.mantissa)
        return self.builder.bitcast(power, self.type), self.sub(shifted, magic)

    def _split(self, a: ir.Value) -> tuple[ir.Value, ir.Value]:
        """k + bias as an integer, and m from sqrt(1/2) to sqrt(2), with a = 2^k m for positive a above the subnormal."""
        p = self._precision
        bits = self.builder.bitcast(a, self._integers)
        root = round(math.sqrt(0.5) * 2.0 ** (p.mantissa + 1)) - (1 << p.mantissa) + ((p.bias - 1) << p.mantissa)
        bits = self.builder.add(bits, self._integer((p.bias << p.mantissa) - root))
        mantissa = self.builder.add(self.builder.and_(bits, self._integer((1 << p.mantissa) - 1)), self._integer(root))
        return self.builder.lshr(bits, self._integer(p.mantissa)), self.builder.bitcast(mantissa, self.type)

    def _as_float(self, integers: ir.Value) -> ir.Value:
        """``2^mantissa + n`` for non-negative n, as a number."""
        p = self._precision
        return self.builder.bitcast(
            self.builder.or_(integers, self._integer((p.bias + p.mantissa) << p.mantissa)), self.type
        )

    def _log(self, f: ir.Value, k: ir.Value) -> ir.Value:
        """``k log(2) + log(1 + f)`` with log(1 + f) = 2 artanh(s) for s = f / (2 + f)."""
        s = self.div(f, self.add(f, self.constant(2.0)))
        series = self._polynomial(self.mul(s, s), (2.0, *self._precision.log))
        return self.fma(k, self.constant(math.log(2.0)), self.mul(s, series))

    def _log_ends(self, a: ir.Value, log: ir.Value) -> ir.Value:
        """``log`` where ``a`` is positive, and what IEEE 754 says elsewhere."""
        zero, infinity = self.constant(0.0), math.inf
        log = self.select(self.less(zero, a), log, self.constant(-infinity))
        log = self.select(self.less(a, zero), self.constant(math.nan), log)
        return self.select(self.less(a, self.constant(infinity)), log, a)

    def _polynomial(self, a: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        *rest, value = map(self.constant, coefficients)
        for coefficient in reversed(rest):
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
