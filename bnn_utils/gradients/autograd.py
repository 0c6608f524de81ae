"""Gradients by autograd, for any network: of all vectors and points at once, or in blocks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnn_utils.gradients import LogDensity

if TYPE_CHECKING:  # likelihoods use `value_and_grad` themselves
    from bnn_utils.likelihoods import Likelihood
    from bnn_utils.network import Network


def value_and_grad(function: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """``function`` at inputs and its gradient by autograd; values must each depend on inputs of their own."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()  # the copy may be differentiated even if the original may not
        value = function(inputs)
        # Each value depends on its own inputs alone, so the gradient of the sum holds the gradients of all.
        (grad,) = torch.autograd.grad(value.sum(), inputs)
    return value.detach(), grad


def by_autograd(log_prob: Callable[[Tensor], Tensor]) -> LogDensity:
    """A log density ``(C, D) -> (C,)`` of torch's operations, with its gradient."""
    return LogDensity(
        log_prob_and_grad=lambda theta: value_and_grad(log_prob, theta),
        grad=lambda theta: value_and_grad(log_prob, theta)[1],
    )


def by_autograd_in_blocks(network: Network, likelihood: Likelihood, y: Tensor) -> LogDensity:
    """The log likelihood, in blocks of vectors; where one is too large, of points: forward once more, and back.

    Args:
        network: at its inputs, with the blocks that memory allows.
        likelihood: of all points.
        y: targets for each vector, shape ``(C, N, ...)``.
    """
    num_lanes = len(y)

    def of_block(theta: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if len(network.blocks) == 1:
            return value_and_grad(lambda theta: likelihood.log_prob(network(theta), y), theta)
        outputs = network(theta)
        upstream, total = likelihood.grad(outputs, y), torch.zeros_like(theta)
        for points, part in network.blocks:
            weights = upstream[:, points]

            def weighted(theta: Tensor, f: Callable[[Tensor], Tensor] = part, g: Tensor = weights) -> Tensor:
                return (f(theta) * g).flatten(1).sum(1)

            total += value_and_grad(weighted, theta)[1]
        return likelihood.log_prob(outputs, y), total

    def log_prob_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            theta = theta.clone()
            value, grad = theta.new_empty(num_lanes), torch.empty_like(theta)
            for start in range(0, num_lanes, network.num_lanes):
                lanes = slice(start, start + network.num_lanes)
                value[lanes], grad[lanes] = of_block(theta[lanes], y[lanes])
        return value, grad

    return LogDensity(log_prob_and_grad, lambda theta: log_prob_and_grad(theta)[1])
