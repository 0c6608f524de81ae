"""Large networks: products of matrices by torch, and all that comes between them in native passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnn_utils.gradients import LogDensity
from bnn_utils.gradients.backprop import rows, slices
from bnn_utils.gradients.native import activation_of, arrays_of, code_of, filled_up
from bnn_utils.layers import Layer

if TYPE_CHECKING:
    from bnn_utils.gradients.passes import Passes
    from bnn_utils.posterior import Posterior

# A first layer of so many inputs or less is faster written out than as a product.
FEW_FEATURES = 8

# Values of the widest layer that are worked on at once: they stay in the caches of a core.
BLOCK_ELEMENTS = 2**18


class Fused:
    r"""Log likelihood and gradient of a chain of layers for C parameter vectors at N points.

    Layer l computes z_l = W_l h_{l-1} + b_l and h_l = f(z_l), points in columns. On the way back, with g_l the gradient
    by z_l,  dW_l = g_l h_{l-1}',  db_l = sum_n g_ln,  g_{l-1} = (W_l' g_l) * f'(z_{l-1}).

    What is kept is overwritten by the next call; two threads need two of these.

    Args:
        passes: what is written for such layers.
        x: inputs ``(features, N)``, N a multiple of the vectors' width.
        y: targets ``(C, K, N)``, or ``(1, K, N)`` for all lanes.
        weights: of the points, ``(N,)``.
        num_lanes: C.
    """

    def __init__(
        self, layers: list[Layer], passes: Passes, x: Tensor, y: Tensor, weights: Tensor, num_lanes: int
    ) -> None:
        call, num = code_of(passes).call, x.shape[1]
        places = _places(layers, bool(passes.num_features))
        dim = sum(int((place >= 0).sum()) for place in places)
        # A layer without bias takes one that is always 0, from behind all vectors, and drops its gradient.
        lanes, nowhere = torch.arange(num_lanes)[:, None] * dim, num_lanes * dim
        self._order = torch.cat([torch.where(p < 0, nowhere, lanes + p).flatten() for p in places])
        self._inverse = self._order.argsort()[: num_lanes * dim]
        self._padded = x.new_zeros(num_lanes * dim + 1)
        self._theta, self._grad = x.new_empty(len(self._order)), x.new_empty(len(self._order))
        sizes = [num_lanes * len(place) for place in places]
        thetas, grads = iter(self._theta.split(sizes)), iter(self._grad.split(sizes))
        self._value = x.new_empty(num_lanes)
        self._calls: list[Callable[[], object]] = []
        back: list[list[Callable[[], object]]] = []
        h, g = x, None
        for number, layer in enumerate(layers):
            (out, width), is_last = layer.shape, layer is layers[-1]
            z, g_below = x.new_empty(num_lanes, out, num), g
            if number == 0 and passes.num_features:
                (bias, g_bias), name = (next(thetas), next(grads)), ("enter", "leave")
            else:
                (weight, g_weight), name = (next(thetas), next(grads)), ("forward", "backward")
                weight, g_weight = (values.view(num_lanes, out, width) for values in (weight, g_weight))
                bias, g_bias = next(thetas), next(grads)
                if number == 0:  # all lanes share x: one product of all their rows
                    self._calls.append(partial(torch.mm, rows(weight), x, out=rows(z)))
                else:
                    self._calls.append(partial(torch.bmm, weight, h, out=z))
            if is_last:
                scales, g_scales = next(thetas), next(grads)
                stride = 0 if len(y) == 1 else y[0].numel()
                judged = z, bias, scales, y, weights, self._value, g_bias, g_scales, stride
                self._calls.append(partial(call, "judge", 0, num_lanes, num, *judged))
                g, below = z, []
            else:
                activation, extent = activation_of(layer), (0, num_lanes * out, num)
                kind, h_below, g = passes.activations.index(activation), h, torch.empty_like(z)
                h = z if passes.is_in_place(activation) else torch.empty_like(z)
                self._calls.append(partial(call, f"{name[0]}_{kind}", *extent, bias, x, z, h))
                below = [partial(call, f"{name[1]}_{kind}", *extent, g_bias, z, x, g)]
            if is_last:
                h_below = h
            if name[0] == "forward":
                if number == 0:
                    below.append(partial(torch.mm, rows(g), x.mT, out=rows(g_weight)))
                else:
                    below.append(partial(torch.bmm, g, h_below.mT, out=g_weight))
                    below.append(partial(torch.bmm, weight.mT, g, out=g_below))
            back.append(below)
        self._calls += [one for below in reversed(back) for one in below]

    def log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``(C, D)`` -> ``(C,)``, which the next call overwrites, and ``(C, D)``."""
        self._padded[:-1] = theta.reshape(-1)
        torch.index_select(self._padded, 0, self._order, out=self._theta)
        for call in self._calls:
            call()
        return self._value, self._grad.index_select(0, self._inverse).view(theta.shape)


def _places(layers: list[Layer], has_few_features: bool) -> list[Tensor]:
    """Places in theta of the numbers of a lane, as `Fused` lays them out; -1 for a bias that isn't there."""
    places = []
    for number, layer in enumerate(layers):
        matrix = layer.places()
        if layer.bias is None:
            matrix = torch.cat([torch.full((len(matrix), 1), -1), matrix], dim=1)
        if number == 0 and has_few_features:
            places.append(matrix.flatten())
        else:
            places += [matrix[:, 1:].flatten(), matrix[:, 0]]
    log_scale = layers[-1].log_scale
    return [*places, torch.arange(0) if log_scale is None else torch.arange(log_scale.start, log_scale.stop)]


def fused(posterior: Posterior, num_lanes: int) -> LogDensity:
    """The log likelihood of a posterior with a chain of layers, for batches of ``num_lanes`` vectors.

    Raises:
        ImportError, RuntimeError: as `Code`.
    """
    layers, passes = posterior.layers, passes_of(posterior)
    x, y, weights = arrays_of(posterior, num_lanes)
    width, num_points = max(layer.shape[0] for layer in layers), len(weights)
    lanes = slices(num_lanes, BLOCK_ELEMENTS // (width * num_points))
    points = slices(num_points, BLOCK_ELEMENTS // (width * (lanes[0].stop - lanes[0].start)))
    blocks, memory = [], {}  # blocks of the same points and lanes' targets take turns in the same memory
    for block in lanes:
        for part in points:
            size = block.stop - block.start
            key = (part.start, size if len(y) == 1 else block.start)
            if key not in memory:
                data = filled_up(x[:, part], (y if len(y) == 1 else y[block])[..., part], weights[part])
                memory[key] = Fused(layers, passes, *data, size)
            blocks.append((block, memory[key]))

    def log_prob_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
        value, total = theta.new_zeros(num_lanes), torch.zeros_like(theta)
        for block, network in blocks:
            of_block, grad = network.log_prob_and_grad(theta[block])
            value[block] += of_block
            total[block] += grad
        return value, total

    return LogDensity(log_prob_and_grad, lambda theta: log_prob_and_grad(theta)[1])


def passes_of(posterior: Posterior) -> Passes:
    from bnn_utils.gradients.passes import Passes

    layers, scale = posterior.layers, getattr(posterior.likelihood, "scale", None)
    width, log_scale = layers[0].shape[1], layers[-1].log_scale
    return Passes(
        num_features=width if width <= FEW_FEATURES and len(layers) > 1 else 0,
        activations=tuple(dict.fromkeys(map(activation_of, layers[:-1]))),
        last=activation_of(layers[-1]),
        num_outputs=layers[-1].shape[0],
        num_log_scales=log_scale.stop - log_scale.start if log_scale else 0,
        num_targets=arrays_of(posterior, posterior.num_datasets)[1].shape[1],
        likelihood=type(posterior.likelihood).__name__,
        scale=scale,
        dtype=str(posterior.dtype).removeprefix("torch."),
    )
