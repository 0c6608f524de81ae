"""Large networks in native code: what `bnn_utils.gradients.products` describes, called for tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnn_utils.gradients import LogDensity
from bnn_utils.gradients.native import (
    activation_of,
    arrays_of,
    check_vectors,
    code_of,
    filled_up,
    layers_of,
    noise_of,
    shared_out,
)
from bnn_utils.layers import Layer

if TYPE_CHECKING:
    from bnn_utils.gradients.products import Products
    from bnn_utils.posterior import Posterior

# Numbers that are kept of a block of points, in the second-level cache of a core.
BLOCK_ELEMENTS = 2**16

# Points are shared out as well as lanes, in parts of so many or more, so that one lane has work for several threads.
POINTS_OF_PART, MOST_PARTS, PART_ELEMENTS = 4096, 16, 2**24

SECONDS_PER_PRODUCT = 1.5e-11  # and sum, of one core


class Fused:
    """The log likelihood of a large network and its gradient, which are summed up for parts of the points.

    Parts depend on sizes alone: threads, among which parts and lanes are shared out, change no number. What a call
    works in the next call overwrites.

    Args:
        posterior: given by its model and data.
        num_lanes: C.

    Attributes:
        num_threads: at most.
        seconds: that gradients of all lanes take one core, roughly.
        lanes_in_tile: that are worked on together.
        numbers: what draws random numbers; None for torch.
        splits_lanes: whether a lane is shared out among threads as well.

    Raises:
        ImportError, RuntimeError: as `Code`.
    """

    def __init__(self, posterior: Posterior, num_lanes: int) -> None:
        from bnn_utils.gradients.writer import width_of

        products = _products_of(posterior)
        self._code = code_of(products)
        self.num_lanes, self.num_threads, self.lanes_in_tile, self.numbers = num_lanes, 1, 1, None
        # A layer without bias has one that is always 0, from behind all parameters, and drops its gradient.
        order = _order(layers_of(posterior))
        self._order = torch.where(order < 0, posterior.flat.dim, order)
        self._inverse = self._order.argsort()[: posterior.flat.dim]
        x, y, weights = filled_up(*arrays_of(posterior, num_lanes))
        self._data = x, y, weights, len(weights), 0 if len(y) == 1 else y[0].numel()
        width = width_of(posterior.dtype.itemsize)
        vectors = max(1, min(len(weights), BLOCK_ELEMENTS // products.memory) // width)
        # Rows that are a multiple of 8 cache lines long would all lie in a few sets of the first-level cache.
        self._block = width * (vectors - 1 if vectors % 8 == 0 else vectors)
        num_blocks = -(-len(weights) // self._block)
        most = min(MOST_PARTS, PART_ELEMENTS // (num_lanes * products.dim), len(weights) // POINTS_OF_PART)
        self._part = self._block * -(-num_blocks // max(1, most))
        self._num_parts = -(-len(weights) // self._part)
        self.splits_lanes = self._num_parts > 1
        self._memory = products.memory * self._block
        self.seconds = SECONDS_PER_PRODUCT * 6 * products.dim * len(weights) * num_lanes

    def log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``(C, D)`` -> ``(C,)``, ``(C, D)``."""
        check_vectors((self.num_lanes, len(self._inverse)), self._data[0].dtype, theta)
        num_jobs = self._num_parts * self.num_lanes
        ordered = torch.cat([theta, theta.new_zeros(self.num_lanes, 1)], dim=1).index_select(1, self._order)
        values, grads = theta.new_empty(num_jobs), theta.new_empty(num_jobs, ordered.shape[1])

        def call(first: int, last: int) -> None:
            memory = theta.new_empty(self._memory)
            extent = first, last, self.num_lanes, self._part, self._block
            self._code.call("gradients", *extent, ordered, values, grads, memory, *self._data)

        shared_out(call, num_jobs, self.num_threads, self.seconds)
        grad = grads.view(self._num_parts, *ordered.shape).sum(0)
        return values.view(self._num_parts, -1).sum(0), grad.index_select(1, self._inverse)

    @property
    def likelihood(self) -> LogDensity:
        return LogDensity(self.log_prob_and_grad, lambda theta: self.log_prob_and_grad(theta)[1], callee=self)

    def called(self) -> tuple[int, Tensor, Any]:
        """For other native code: where the log likelihood of a lane begins, the context to call it with, and what must
        live as long. It works in memory of its own, so that each thread needs another one.
        """
        from bnn_utils.gradients.products import CONTEXT

        x, y, weights, num, y_stride = self._data
        parts, dim = self._num_parts, len(self._order)
        sizes = {"dim": len(self._inverse), "parts": parts, "part": self._part, "block": self._block, "num": num}
        arrays = {"order": self._order, "x": x, "y": y, "weights": weights}
        for name, size in {"theta": dim, "values": parts, "grads": parts * dim, "memory": self._memory}.items():
            arrays[name] = x.new_empty(size)
        known = sizes | {"y_stride": y_stride} | {name: array.data_ptr() for name, array in arrays.items()}
        return self._code.address("of_tile"), torch.tensor([known[name] for name in CONTEXT]), (self._code, arrays)


def _order(layers: list[Layer]) -> Tensor:
    """Places in theta of the numbers of a lane, as `Products` lays them out; -1 for a bias that isn't there."""
    places = []
    for layer in layers:
        weight, bias = (torch.arange(part.start, part.stop) for part in (layer.weight, layer.bias or slice(0, 0)))
        places += [weight, bias if layer.bias else torch.full(layer.shape[:1], -1)]
    log_scale = layers[-1].log_scale or slice(0, 0)
    return torch.cat([*places, torch.arange(log_scale.start, log_scale.stop)])


def _products_of(posterior: Posterior) -> Products:
    from bnn_utils.gradients.products import Products

    layers = layers_of(posterior)
    log_scale = layers[-1].log_scale or slice(0, 0)
    return Products(
        shapes=tuple(layer.shape for layer in layers),
        activations=tuple(map(activation_of, layers)),
        num_log_scales=log_scale.stop - log_scale.start,
        num_targets=arrays_of(posterior, posterior.num_datasets)[1].shape[1],
        likelihood=type(posterior.likelihood).__name__,
        noise=noise_of(posterior.likelihood),
        dtype=str(posterior.dtype).removeprefix("torch."),
    )
