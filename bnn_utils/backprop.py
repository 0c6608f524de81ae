"""Closed-form backpropagation for chains of Linear layers, many parameter vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnn_utils.flat import FlatModule


class Activation(NamedTuple):
    function: Callable[[Tensor], Tensor]
    # dh/dz written in terms of h = function(z), which the forward pass has kept.
    derivative: Callable[[Tensor], Tensor]


ACTIVATIONS = {
    nn.Identity: Activation(lambda z: z, torch.ones_like),
    nn.Tanh: Activation(torch.tanh, lambda h: 1 - h * h),
    nn.Sigmoid: Activation(torch.sigmoid, lambda h: h * (1 - h)),
    nn.ReLU: Activation(torch.relu, lambda h: (h > 0).to(h.dtype)),
}


class Layer(NamedTuple):
    """``h <- activation(h W' + b)``, with W and b at their places in theta."""

    weight: slice
    bias: slice | None
    shape: tuple[int, int]  # of W: (out, in)
    activation: Activation


class LinearChain:
    """A Sequential of Linear layers and elementwise activations, with its gradient written out.

    It computes what `FlatModule` computes, without an autograd graph: for layer l with h_l = f(z_l) and
    z_l = h_{l-1} W_l' + b_l, and g_l the gradient with respect to z_l,

        dW_l = g_l' h_{l-1},   db_l = sum over points of g_l,   g_{l-1} = (g_l W_l) * f'(z_{l-1})

    (Rumelhart, Hinton and Williams 1986). C is the number of parameter vectors, N the number of points.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers

    @classmethod
    def of(cls, flat: FlatModule) -> LinearChain | None:
        """The chain that computes what ``flat`` computes, or None where its module is something else."""
        modules = list(_flatten(flat.module))
        prefix = {id(p): name for name, p in flat.module.named_parameters() if p.requires_grad}
        layers: list[Layer] = []
        used: list[str] = []
        for module in modules:
            if type(module) is nn.Linear:
                names = [prefix.get(id(p)) for p in (module.weight, module.bias) if p is not None]
                if None in names:  # frozen parts are the general path's business
                    return None
                used += names
                bias = flat.slices[names[1]] if len(names) == 2 else None
                layers.append(Layer(flat.slices[names[0]], bias, flat.shapes[names[0]], ACTIVATIONS[nn.Identity]))
            elif type(module) in ACTIVATIONS and layers and layers[-1].activation is ACTIVATIONS[nn.Identity]:
                layers[-1] = layers[-1]._replace(activation=ACTIVATIONS[type(module)])
            else:
                return None
        # Every parameter exactly once and in theta's order, so that the pieces of the gradient can be laid end to end.
        return cls(layers) if used == list(flat.shapes) else None

    def forward(self, theta: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs ``(C, N, K)`` at theta ``(C, D)`` for inputs ``(N, features)``, and the h of every layer."""
        h = x.expand(len(theta), *x.shape)
        kept = [h]
        for layer in self.layers:
            weight = self._weight(theta, layer)
            if layer.bias is None:
                z = torch.bmm(h, weight.mT)
            else:
                z = torch.baddbmm(theta[:, None, layer.bias], h, weight.mT)
            h = layer.activation.function(z)
            kept.append(h)
        return h, kept

    def backward(self, theta: Tensor, kept: list[Tensor], grad: Tensor) -> Tensor:
        """Gradient with respect to theta, ``(C, D)``, from the one with respect to the outputs, ``(C, N, K)``."""
        pieces: list[Tensor] = []
        for position in reversed(range(len(self.layers))):
            layer = self.layers[position]
            if layer.activation is not ACTIVATIONS[nn.Identity]:
                grad = grad * layer.activation.derivative(kept[position + 1])
            if layer.bias is not None:
                pieces.append(grad.sum(1))
            pieces.append(torch.bmm(grad.mT, kept[position]).flatten(1))
            if position:
                grad = torch.bmm(grad, self._weight(theta, layer))
        return torch.cat(pieces[::-1], dim=1)

    @staticmethod
    def _weight(theta: Tensor, layer: Layer) -> Tensor:
        return theta[:, layer.weight].view(-1, *layer.shape)


def _flatten(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of nested Sequentials in order; anything that is hooked or reparametrised stands for itself."""
    if type(module) is nn.Sequential and not _is_hooked(module):
        for child in module:
            yield from _flatten(child)
    elif _is_hooked(module):
        yield nn.Module()
    elif type(module) is not nn.Identity:
        yield module


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
