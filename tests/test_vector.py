"""Functions on vectors, as instructions of LLVM: how accurate they are, their ends, and the same bits everywhere."""

import ctypes
import functools
from fractions import Fraction

import numpy as np
import pytest
from scipy import special

ir = pytest.importorskip("llvmlite.ir")
llvm = pytest.importorskip("llvmlite.binding")
vector = pytest.importorskip("bnn_utils.gradients.vector")

SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()
PRECISIONS = pytest.mark.parametrize("scalar", [SINGLE, DOUBLE], ids=["float32", "float64"])


def sigmoid(x):
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


FUNCTIONS = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "erf": lambda x: special.erf(x.astype(np.float64)),
}
ALL = pytest.mark.parametrize("name", FUNCTIONS)
# Where functions overflow, underflow, saturate or change the way in which they are computed, on either side of zero.
EDGES = [
    *(0, 2**-24, 2**-53, 0.35, 0.5**0.5, 1, 2**0.5, 4, 6, 9, 10, 20, 40),
    *(87.3365, 88.7228, 103.98, 708.396, 709.783, 745.13),
]
PLAIN = [(0, 1e-3), (0, 1), (0, 30), (1, 1e-3), (1, 1)]  # centers and scales


def dtype_of(scalar):
    return np.float32 if scalar == SINGLE else np.float64


@functools.cache
def compiled(operation, scalar=SINGLE, width=8, cpu="host"):
    """``operation(vectors, x)`` as a function of arrays: the name of a method, or anything that can be called."""
    pointer, count, dtype = scalar.as_pointer(), ir.IntType(64), np.dtype(dtype_of(scalar))
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, pointer, count]), "f")
    entry, loop, end = (function.append_basic_block(name) for name in ("entry", "loop", "end"))
    builder = ir.IRBuilder(entry)
    builder.branch(loop)
    builder.position_at_end(loop)
    start = builder.phi(count)
    start.add_incoming(ir.Constant(count, 0), entry)
    vectors = vector.Vectors(builder, scalar, width)
    x, y = (builder.bitcast(builder.gep(p, [start]), vectors.type.as_pointer()) for p in function.args[:2])
    x = builder.load(x, align=dtype.itemsize)
    result = getattr(vectors, operation)(x) if isinstance(operation, str) else operation(vectors, x)
    builder.store(result, y, align=dtype.itemsize)
    following = builder.add(start, ir.Constant(count, width))
    start.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, function.args[2]), loop, end)
    builder.position_at_end(end)
    builder.ret_void()

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    if cpu == "host":
        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    else:
        features = ""
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3)
    parsed = llvm.parse_assembly(str(module))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    address = engine.get_function_address("f")
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)

    def of_arrays(x, engine=engine):  # the code lives as long as its engine
        padded = np.zeros(-(-len(x) // width) * width, dtype)
        padded[: len(x)] = x
        y = np.empty_like(padded)
        call(padded.ctypes.data, y.ctypes.data, len(padded))
        return y[: len(x)]

    return of_arrays


@functools.cache
def numbers(scalar):
    """Bit patterns over the whole range, the numbers next to the edges, plain numbers, infinities and NaN."""
    dtype, bits, rng = dtype_of(scalar), np.uint32 if scalar == SINGLE else np.uint64, np.random.default_rng(0)
    patterns = np.arange(0, 2**32, 997) if scalar == SINGLE else rng.integers(0, 2**64, 2**18, bits)
    edges = np.array([*EDGES, np.finfo(dtype).tiny], dtype).view(bits)[:, None] + np.arange(-1000, 1001).astype(bits)
    plain = np.concatenate([center + scale * rng.normal(size=10**5) for center, scale in PLAIN])
    return np.concatenate(
        [patterns.astype(bits).view(dtype), edges.ravel().view(dtype), -edges.ravel().view(dtype), plain.astype(dtype),
         np.array([np.inf, -np.inf, np.nan], dtype)]
    )  # fmt: skip


def ulps(y, exact):
    """The errors of y in units of its last place: 0 where both are the same infinity or NaN, infinite or NaN else."""
    info = np.finfo(y.dtype)
    with np.errstate(all="ignore"):
        lowest = info.minexp - info.nmant
        unit = np.ldexp(np.ones_like(exact), np.maximum(np.frexp(exact)[1] - 1 - info.nmant, lowest))
        same = (y == exact.astype(y.dtype)) | (np.isnan(y) & np.isnan(exact))
        return np.where(same, 0, abs(y - exact) / unit)


@ALL
@PRECISIONS
def test_accuracy(name, scalar):
    x = numbers(scalar)
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name](x.astype(np.float64 if scalar == SINGLE else np.longdouble))
        errors = ulps(compiled(name, scalar)(x), exact)
        subnormal = abs(exact) < np.finfo(dtype_of(scalar)).tiny
    limit = np.where(subnormal | (scalar == SINGLE), 4, 1e-14 / np.finfo(np.float64).eps)
    assert (errors <= limit).all(), (x[~(errors <= limit)][:5], errors[~(errors <= limit)][:5])


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("exp", [0, -np.inf, np.inf, 1e30, -1e30], [1, 0, np.inf, np.inf, 0]),
        ("log", [1, 0, -0.0, -1e-45, -1, -np.inf, np.inf], [0, -np.inf, -np.inf, *[np.nan] * 3, np.inf]),
        ("log1p", [0, -1, -1.001, -np.inf, np.inf], [0, -np.inf, np.nan, np.nan, np.inf]),
        ("tanh", [0, -np.inf, np.inf, 1e30, -1e30], [0, -1, 1, 1, -1]),
        ("sigmoid", [0, -np.inf, np.inf, 1e30, -1e30], [0.5, 0, 1, 1, 0]),
        ("erf", [0, -np.inf, np.inf, 1e30, -1e30], [0, -1, 1, 1, -1]),
    ],
)
@PRECISIONS
def test_ends(name, x, y, scalar):
    np.testing.assert_array_equal(compiled(name, scalar)(np.array([*x, np.nan])), [*y, np.nan])


@pytest.mark.parametrize("name", ["tanh", "erf"])
@PRECISIONS
def test_odd_and_never_beyond_one(name, scalar):
    x = numbers(scalar)
    y = compiled(name, scalar)(x)
    np.testing.assert_array_equal(compiled(name, scalar)(-x), -y)
    assert np.nanmax(abs(y)) == 1


@PRECISIONS
def test_turns(scalar):
    u = np.concatenate([np.arange(2**16) / 2**16, np.random.default_rng(0).random(10**5)]).astype(dtype_of(scalar))
    u = u[u < 1]
    angle = 2 * np.pi * u.astype(np.float64) if scalar == SINGLE else 8 * np.arctan(np.longdouble(1)) * u
    limit = 1e-7 if scalar == SINGLE else 1e-15
    for i, exact in enumerate((np.cos, np.sin)):
        y = compiled(lambda v, u, i=i: v.cos_sin_turns(u)[i], scalar)(u)
        assert abs(y - exact(angle)).max() < limit
        np.testing.assert_array_equal(y[: 2**16 : 2**14], np.roll([1, 0, -1, 0], i))


def everything(v, x):
    """A value to which every function adds some bits."""
    functions = [getattr(v, name)(x) for name in FUNCTIONS]
    return functools.reduce(lambda a, b: v.fma(a, v.constant(0.7), b), [*functions, *v.cos_sin_turns(x)])


@PRECISIONS
def test_same_bits_at_all_widths_and_on_all_processors(scalar):
    x = np.random.default_rng(0).random(10**4).astype(dtype_of(scalar))
    expected = compiled(everything, scalar)(x)
    for width in (1, 4, 16):
        np.testing.assert_array_equal(compiled(everything, scalar, width)(x), expected)
    features = llvm.get_host_cpu_features()
    if all(features.get(name) for name in ("avx2", "fma", "bmi2", "f16c", "lzcnt", "movbe")):
        np.testing.assert_array_equal(compiled(everything, scalar, cpu="x86-64-v3")(x), expected)


@PRECISIONS
def test_arithmetic(scalar):
    x = np.random.default_rng(0).normal(size=64).astype(dtype_of(scalar))
    third = x.dtype.type(1 / 3)
    for operation, expected in [
        (lambda v, a: v.add(a, v.constant(1 / 3)), x + third),
        (lambda v, a: v.sub(v.constant(1 / 3), a), third - x),
        (lambda v, a: v.mul(a, v.splat(ir.Constant(scalar, 1 / 3))), x * third),
        (lambda v, a: v.div(a, v.constant(1 / 3)), x / third),
        (lambda v, a: v.sqrt(v.abs(v.neg(a))), np.sqrt(abs(x))),
        (lambda v, a: v.select(v.less(a, v.constant(0)), v.constant(1), a), np.where(x < 0, 1, x)),
        # What the product loses by rounding.
        (lambda v, a: v.fma(a, a, v.neg(v.mul(a, a))), [Fraction(float(a)) ** 2 - Fraction(float(a * a)) for a in x]),
    ]:
        np.testing.assert_array_equal(compiled(operation, scalar)(x), np.array(expected, x.dtype))


def test_extrema_and_nan():
    x = np.array([-2.0, 0.5, 3.0, np.nan])
    for operation, expected in [
        (lambda v, a: v.max(a, v.constant(1)), [1, 1, 3, np.nan]),
        (lambda v, a: v.min(a, v.constant(1)), [-2, 0.5, 1, np.nan]),
        (lambda v, a: v.max(v.constant(1), a), [1, 1, 3, 1]),
        (lambda v, a: v.min(v.constant(1), a), [-2, 0.5, 1, 1]),
    ]:
        np.testing.assert_array_equal(compiled(operation)(x), expected)


@PRECISIONS
@pytest.mark.parametrize("width", [1, 2, 8])
def test_sum(scalar, width):
    x = np.random.default_rng(0).normal(size=width).astype(dtype_of(scalar))
    expected = x
    while len(expected) > 1:
        expected = expected[: len(expected) // 2] + expected[len(expected) // 2 :]
    assert (compiled(lambda v, a: v.splat(v.sum(a)), scalar, width)(x) == expected).all()


def test_width_is_a_power_of_two():
    with pytest.raises(ValueError, match="power of two, not 6"):
        vector.Vectors(ir.IRBuilder(), SINGLE, 6)
