"""Activations, their derivatives and log likelihoods of points, as instructions for LLVM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import Value
from bnn_utils.likelihoods import SMALLEST_SCALE


def combined(v: Vectors, terms: list[tuple[Value, Value | None]]) -> Value:
    """``sum_i a_i b_i``, where None stands for 1."""
    (a, b), *others = terms
    total = a if b is None else v.mul(a, b)
    for a, b in others:
        total = v.fma(a, b, total)
    return total


def finite(v: Vectors, a: Value) -> Value:
    """Mask of the numbers that are neither infinite nor NaN."""
    return v.less(v.abs(a), v.constant(math.inf))


def activated(
    v: Vectors, activation: str | None, options: tuple[tuple[str, Any], ...], z: Value
) -> tuple[Value, Callable[[Value], Value]]:
    """An activation at z, and the gradient's way back through it, as torch defines them."""
    one, half, given = v.constant(1.0), v.constant(0.5), dict(options)
    match activation:
        case None:
            return z, lambda g: g
        case "Tanh":
            h = v.tanh(z)
            return h, lambda g: v.fma(v.neg(v.mul(h, h)), g, g)
        case "Sigmoid":
            h = v.sigmoid(z)
            return h, lambda g: v.mul(g, v.fma(v.neg(h), h, h))
        case "ReLU":
            zero = v.constant(0.0)
            return v.max(z, zero), lambda g: v.select(v.less(zero, z), g, zero)
        case "SiLU":
            s = v.sigmoid(z)
            return v.mul(z, s), lambda g: v.mul(g, v.mul(s, v.fma(z, v.sub(one, s), one)))
        case "GELU" if given["approximate"] == "none":
            below = v.mul(half, v.add(one, v.erf(v.mul(z, v.constant(math.sqrt(0.5))))))

            def back(g: Value) -> Value:
                density = v.mul(v.constant(1 / math.sqrt(2 * math.pi)), v.exp(v.mul(v.mul(v.constant(-0.5), z), z)))
                return v.mul(g, v.fma(z, density, below))

            return v.mul(z, below), back
        case "GELU":
            root, cubic = math.sqrt(2 / math.pi), 0.044715
            square = v.mul(z, z)
            h = v.tanh(v.mul(v.mul(v.constant(root), z), v.fma(v.constant(cubic), square, one)))
            below = v.mul(half, v.add(one, h))

            def back(g: Value) -> Value:
                inner = v.mul(v.constant(root), v.fma(v.constant(3 * cubic), square, one))
                slope = v.mul(v.mul(half, v.fma(v.neg(h), h, one)), inner)
                return v.mul(g, v.fma(z, slope, below))

            return v.mul(z, below), back
        case "Softplus":
            scaled = v.mul(v.constant(given["beta"]), z)
            is_linear = v.less(v.constant(given["threshold"]), scaled)
            curved = v.mul(v.constant(1 / given["beta"]), v.log1p(v.exp(scaled)))
            return (
                v.select(is_linear, z, curved),
                lambda g: v.select(is_linear, g, v.mul(g, v.sigmoid(scaled))),
            )
    raise NotImplementedError(activation)


class Noise(NamedTuple):
    """What `bnn_utils.likelihoods.Gaussian` says of its noise.

    Attributes:
        scale: where it is known.
        link: from outputs to scales.
        has_units: whether targets are in units of their own, whose logarithm, summed, is one number more per point. It
            comes with the data, so that code need not be made for each data set.
    """

    scale: float | None
    link: str
    has_units: bool


def judged(
    v: Vectors, likelihood: str, noise: Noise | None, outputs: list[Value], targets: list[Value], has_value: bool
) -> tuple[Value | None, list[Value]]:
    """The log likelihood of points, where it is asked for, and its gradient by the outputs; targets are in units."""
    one, zero = v.constant(1.0), v.constant(0.0)
    match likelihood:
        case "Bernoulli":
            ((z,), (y,)) = outputs, targets
            e = v.exp(v.neg(v.abs(z)))
            g = v.sub(y, v.div(v.select(v.less(z, zero), e, one), v.add(one, e)))
            if not has_value:
                return None, [g]
            return v.sub(v.fma(y, z, v.neg(v.max(z, zero))), v.log1p(e)), [g]
        case "Categorical":
            (y,), largest = targets, outputs[0]
            for z in outputs[1:]:
                largest = v.max(largest, z)
            shifted = [v.sub(z, largest) for z in outputs]
            e = [v.exp(z) for z in shifted]
            total = e[0]
            for part in e[1:]:
                total = v.add(total, part)
            classes = [v.less(v.abs(v.sub(y, v.constant(float(k)))), v.constant(0.5)) for k in range(len(outputs))]
            g = [v.sub(v.select(c, one, zero), v.div(part, total)) for c, part in zip(classes, e, strict=True)]
            if not has_value:
                return None, g
            mine = shifted[0]
            for c, z in zip(classes[1:], shifted[1:], strict=True):
                mine = v.select(c, z, mine)
            return v.sub(mine, v.log(total)), g
        case "Gaussian" if noise is not None:
            *targets, log_unit = targets if noise.has_units else [*targets, None]
            num = len(targets)
            means, of_noise, value, g, of_scales = outputs[:num], outputs[num:], None, [], []
            for k, (y, mean) in enumerate(zip(targets, means, strict=True)):
                inverse, log_scale, slope = _scale(v, noise, of_noise[k] if of_noise else None, has_value)
                residual = v.mul(v.sub(y, mean), inverse)
                g.append(v.mul(residual, inverse))
                of_scale = v.fma(residual, residual, v.constant(-1.0))
                of_scales.append(of_scale if slope is None else v.mul(of_scale, slope))
                if has_value:
                    rest = v.add(log_scale, v.constant(0.5 * math.log(2 * math.pi)))
                    part = v.fma(v.mul(v.constant(-0.5), residual), residual, v.neg(rest))
                    value = part if value is None else v.add(value, part)
            if has_value and noise.has_units:
                value = v.sub(value, log_unit)
            return value, g + (of_scales if of_noise else [])
    raise NotImplementedError(likelihood)


def _scale(v: Vectors, noise: Noise, output: Value | None, has_log: bool) -> tuple[Value, Value | None, Value | None]:
    """One over the noise's scale, its logarithm if asked for, and its derivative by the output if that is not 1."""
    if output is None:
        assert noise.scale is not None  # or else there would be an output that says it
        return v.constant(1 / noise.scale), v.constant(math.log(noise.scale)), None
    if noise.link == "exp":
        return v.exp(v.neg(output)), output, None
    one = v.constant(1.0)
    curved = v.log1p(v.exp(v.neg(v.abs(output))))
    scale = v.add(v.add(v.max(output, v.constant(0.0)), curved), v.constant(SMALLEST_SCALE))
    inverse = v.div(one, scale)
    return inverse, v.log(scale) if has_log else None, v.mul(v.sigmoid(output), inverse)
