"""The closed-form gradient of small networks, compiled: a variable for every number, one loop over points and lanes.

The compiler is Inductor, the one behind torch.compile, called directly: what torch.compile does around each call
(checking that the inputs are still of the same kind) takes half as long as the gradient of 64 lanes.
"""

from __future__ import annotations

import functools
import signal
import threading
import warnings
from collections.abc import Callable, Iterable
from subprocess import CalledProcessError

import torch
from torch import Tensor

from bnn_utils.gradients import LogDensity
from bnn_utils.layers import Layer
from bnn_utils.likelihoods import Likelihood, Weighted

# Every parameter becomes some lines of C++. Networks beyond this take more than half a minute to compile, and gain
# little over the uncompiled gradient's matrix products.
MAX_PARAMETERS = 128

# When compilation pays off, measured on one core of an AMD EPYC (Zen 4) in float32: seconds that one gradient saves per
# unit, point and lane (1.0 to 1.7 ns, by activation), and seconds of compilation with an empty cache. What a filled
# cache saves, two thirds, is left out: a call should give the same draws whatever the cache holds.
SECONDS_SAVED = 1.2e-9
SECONDS_TO_COMPILE, SECONDS_PER_PARAMETER = 15.0, 0.15

# Held while something is compiled: that changes which warnings the process shows, and two threads need no two copies.
COMPILING = threading.Lock()

OPTIONS = {
    # tanh(z) = 2 / (1 + exp(-2z)) - 1: exact to a rounding error of 1, and twice as fast.
    "cpp.use_decompose_tanh": True,
    # Whatever number of threads torch has at the time: the sums, and so the draws, would depend on it.
    "cpp.threads": 1,
    # The inputs are always of the same kind.
    "size_asserts": False,
    "alignment_asserts": False,
    # Products and sums in one instruction.
    "cpp.enable_floating_point_contract_flag": "fast",
    # All sums over points in one loop.
    "cpp.max_horizontal_fusion_size": 8 * MAX_PARAMETERS,
}


def num_parameters(layers: list[Layer]) -> int:
    last = layers[-1].log_scale
    return sum(layer.places().numel() for layer in layers) + (last.stop - last.start if last else 0)


def seconds_to_compile(layers: list[Layer]) -> float:
    """Predicted, with an empty cache."""
    return SECONDS_TO_COMPILE + SECONDS_PER_PARAMETER * num_parameters(layers)


def pays_off(layers: list[Layer], num_points: int, num_lanes: int, num_gradients: int) -> bool:
    """Whether compilation is predicted to take less time than it saves."""
    units = sum(layer.shape[0] for layer in layers)
    return SECONDS_SAVED * units * num_points * num_lanes * num_gradients > seconds_to_compile(layers)


def compile_likelihood(
    layers: list[Layer], likelihood: Likelihood, x: Tensor, y: Tensor, num_lanes: int, weights: Tensor | None = None
) -> LogDensity | None:
    """The log likelihood and its gradient, compiled for ``num_lanes`` vectors; Inductor caches them on disk.

    Returns:
        None, with one warning per process, where compilation fails, as it does without a C++ compiler.

    Raises:
        KeyboardInterrupt: if Ctrl-C, which reaches all processes of a terminal or kernel, has ended the compiler.
    """
    theta = x.new_zeros(num_parameters(layers), num_lanes)
    function = functools.partial(unrolled, layers, likelihood)
    data = (x, y) if weights is None else (x, y, weights)
    try:
        both = _compile(function, theta, *data)
        alone = _compile(lambda *inputs: function(*inputs)[1:], theta, *data)
    except Exception as error:
        if _is_interrupted(error):
            raise KeyboardInterrupt from None
        _warn(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return None

    def log_prob_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, grad = both(theta.mT.contiguous(), *data)
        return log_prob, grad.mT.contiguous()

    return LogDensity(log_prob_and_grad, lambda theta: alone(theta.mT.contiguous(), *data)[0].mT.contiguous())


def _is_interrupted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, CalledProcessError) and error.returncode == -signal.SIGINT:
            return True
        error = error.__cause__ or error.__context__
    return False


def _compile(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # parts of torch that Inductor uses and torch gives up
        # Imported here: these take seconds, and most runs do without.
        from torch._inductor import compile as inductor
        from torch.fx.experimental.proxy_tensor import make_fx

        graph = make_fx(function)(*inputs)
        graph.graph.eliminate_dead_code()
        compiled = inductor(graph, inputs, options=OPTIONS)
        compiled(*inputs)
    return compiled


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"could not compile the gradient, so it runs uncompiled and slower ({reason}). Compilation needs a C++ "
        "compiler: install g++, name another in the environment variable CXX, or silence this with compile=False",
        RuntimeWarning,
        stacklevel=2,
    )


def unrolled(
    layers: list[Layer], likelihood: Likelihood, theta: Tensor, x: Tensor, y: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log likelihood and its gradient as `Backprop` computes them, without a matrix product.

    A unit's values at all points in all lanes are one tensor ``(N, C)``, and every product is written out as a sum of
    products of those, so that the compiler finds nothing but elementwise arithmetic and sums over points, and fuses it.

    Args:
        theta: lanes last, shape ``(D, C)``.

    Returns:
        shapes ``(C,)`` and ``(D, C)``.
    """
    likelihood = likelihood if weights is None else Weighted(likelihood, weights)
    h: list[Tensor] = list(x.T.unsqueeze(-1))
    kept = []
    for layer in layers:
        inputs = h if layer.bias is None else [None, *h]  # None is the row of ones
        places = layer.places().tolist()
        z = [_sum(_times(theta[k], b) for k, b in zip(row, inputs, strict=True)) for row in places]
        act = layer.activation
        h = z if act is None else [act.forward(v, **act.forward_options, out=torch.empty_like(v)) for v in z]
        kept.append((act, inputs, places, h if act is None or act.takes_output else z))
    last = layers[-1].log_scale
    log_scales = range(last.start, last.stop) if last else range(0)
    outputs = torch.stack([*h, *(theta[k].expand_as(h[0]) for k in log_scales)], dim=-1).transpose(0, 1)
    g = likelihood.grad(outputs, y).transpose(0, 1).unbind(-1)
    grad = {k: v.sum(0) for k, v in zip(log_scales, g[len(h) :], strict=True)}
    g = g[: len(h)]
    for act, inputs, places, above in reversed(kept):
        if act is not None:
            g = [
                act.backward(v, k, **act.backward_options, grad_input=torch.empty_like(v))
                for v, k in zip(g, above, strict=True)
            ]
        for v, row in zip(g, places, strict=True):
            grad |= {k: _times(v, b).sum(0) for k, b in zip(row, inputs, strict=True)}
        columns = zip(inputs, zip(*places, strict=True), strict=True)
        g = [_sum(theta[k] * v for k, v in zip(column, g, strict=True)) for b, column in columns if b is not None]
    return likelihood.log_prob(outputs, y), torch.stack([grad[k] for k in range(len(theta))])


def _times(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a * b


def _sum(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    return functools.reduce(torch.add, others, first)
