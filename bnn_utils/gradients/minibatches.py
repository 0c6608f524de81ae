"""Log densities estimated from some of the points, which each vector draws for itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnn_utils.gradients import LogDensity
from bnn_utils.gradients.autograd import value_and_grad
from bnn_utils.gradients.backprop import BLOCK_ELEMENTS, Backprop, slices
from bnn_utils.likelihoods import Weighted
from bnn_utils.network import BLOCK_BYTES, Cost, cost_of
from bnn_utils.random import permutations

if TYPE_CHECKING:  # a posterior makes densities itself
    from bnn_utils.posterior import Posterior


class Minibatches:
    r"""Unbiased estimates of a log joint density of N points and of its gradient, for C lanes at once.

    Of points i in B, drawn evenly from all N,

        log p(theta) + N / |B| sum_{i in B} w_i log p(y_i | f(theta, x_i))   (Welling and Teh 2011, eq. 4)

    Each lane has a minibatch of its own. That takes C times as many rows to be copied as one minibatch for all, little
    beside what the network does with them; but lanes with a minibatch in common would have its error in common, and
    would not be independent chains.

    Only rows of a minibatch are ever copied. The gradient is in closed form where the posterior's is, in torch, or by
    autograd, where frozen parts are computed for each minibatch again.

    Args:
        posterior: given by its model and data; with several data sets, all lanes draw from the same inputs.
        prior: its log prior density.
        num_lanes: C.

    Attributes:
        num_points: N, without those of weight 0.
    """

    def __init__(self, posterior: Posterior, prior: LogDensity, num_lanes: int) -> None:
        data = posterior.counted
        self.num_points, self._num_lanes, self._prior = len(data), num_lanes, prior
        self._flat, self._layers, self._likelihood = posterior.flat, posterior.layers, posterior.likelihood
        self._link = posterior.link
        self._y, self._weights = data.y, data.weights
        self._dataset: Tensor | None = None  # of each lane, (C, 1)
        if posterior.num_datasets > 1:
            posterior.targets_for(num_lanes)  # raises for another number of lanes
            self._dataset = torch.arange(num_lanes, device=data.x.device)[:, None] * posterior.num_datasets // num_lanes
        self._networks: dict[tuple[int, ...], Backprop] = {}
        # How much may be worked on at once, and what a point of a lane takes of it.
        if self._layers is None:
            self._x, self._room, self._cost = data.x, BLOCK_BYTES, cost_of(posterior.flat, data.x)
        else:
            assert posterior.features is not None  # which come with the layers
            self._x, width = posterior.features, max(layer.shape[0] for layer in self._layers)
            self._room, self._cost = BLOCK_ELEMENTS if data.x.device.type == "cpu" else sys.maxsize, Cost(width, 0)

    def epoch(self, generator: torch.Generator, batch_size: int) -> tuple[Tensor, ...]:
        """Minibatches in which each point comes once, in an order of each lane's own: places ``(C, b)``.

        They have ``batch_size`` points at most, and are as equal as can be. A single one holds all points as they are,
        and draws nothing; otherwise each lane draws a permutation, for which a point takes 24 bytes meanwhile.
        """
        num = -(-self.num_points // batch_size)
        if num == 1:
            return (torch.arange(self.num_points, device=self._x.device).expand(self._num_lanes, -1),)
        return permutations((self._num_lanes, self.num_points), generator).tensor_split(num, dim=1)

    def log_prob_and_grad(self, theta: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Theta ``(C, D)`` and the points of each lane, ``(C, b)``, to the estimates ``(C,)`` and ``(C, D)``."""
        value, grad = self._prior.log_prob_and_grad(theta)
        parameters = theta if self._link is None else self._link(theta)
        scale, cost = self.num_points / places.shape[1], self._cost
        points = slices(places.shape[1], self._room // max(1, cost.per_point))
        at_once = cost.per_lane + cost.per_point * max(part.stop - part.start for part in points)
        for lanes in slices(len(theta), self._room // max(1, at_once)):
            for part in points:
                found, slope = self._log_likelihood_and_grad(parameters[lanes], places[lanes, part], lanes)
                if self._link is not None:
                    slope = self._link.pull_back(theta[lanes], parameters[lanes], slope)
                value[lanes].add_(found, alpha=scale)
                grad[lanes].add_(slope, alpha=scale)
        return value, grad

    def _log_likelihood_and_grad(self, parameters: Tensor, places: Tensor, lanes: slice) -> tuple[Tensor, Tensor]:
        """Sums over a minibatch, of some lanes."""
        with torch.inference_mode(False):  # autograd is closed to tensors that are made in it
            x = self._x[places]
            y = self._y[places] if self._dataset is None else self._y[places, self._dataset[lanes]]
            weights = None if self._weights is None else self._weights[places]
        likelihood = self._likelihood if weights is None else Weighted(self._likelihood, weights)
        if self._layers is None:
            return value_and_grad(lambda rows: likelihood.log_prob(self._flat(rows, x, has_own_x=True), y), parameters)
        if places.shape not in self._networks:
            self._networks[places.shape] = Backprop(self._layers, x, len(parameters))
        network = self._networks[places.shape]
        network.load(x)
        outputs = network.outputs(parameters)
        return likelihood.log_prob(outputs, y), network.gradient(likelihood.grad(outputs, y))
