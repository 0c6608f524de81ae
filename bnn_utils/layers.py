"""What a chain of Linear layers and activations is made of, as closed forms and symmetries need to know it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from bnn_utils import _check
from bnn_utils.flat import FlatModule

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """``h = f(z)`` by torch's own operators, and the gradient's way back through it."""

    name: str
    forward: Callable[..., Tensor]  # (z, **options, out=h)
    backward: Callable[..., Tensor]  # (gradient with respect to h, z or h, **options, grad_input=...)
    takes_output: bool  # whether the way back wants h, or else z
    forward_options: dict[str, Any] = field(default_factory=dict)
    backward_options: dict[str, Any] = field(default_factory=dict)


def _same(name: str, forward: Callable[..., Tensor], backward: Callable[..., Tensor], **options: Any) -> Activation:
    return Activation(name, forward, backward, False, options, options)


def _gelu(z: Tensor, approximate: str, out: Tensor) -> Tensor:
    # In float32 torch 2.13's own gelu.out leaves memory with gaps between rows as it was.
    return out.copy_(nn.functional.gelu(z, approximate=approximate))


ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.Tanh: lambda _: Activation("Tanh", torch.tanh, aten.tanh_backward.grad_input, True),
    nn.Sigmoid: lambda _: Activation("Sigmoid", torch.sigmoid, aten.sigmoid_backward.grad_input, True),
    nn.ReLU: lambda _: Activation(
        "ReLU", aten.relu.out, aten.threshold_backward.grad_input, True, {}, {"threshold": 0}
    ),
    nn.SiLU: lambda _: _same("SiLU", aten.silu.out, aten.silu_backward.grad_input),
    nn.GELU: lambda m: _same("GELU", _gelu, aten.gelu_backward.grad_input, approximate=m.approximate),
    nn.Softplus: lambda m: _same(
        "Softplus", aten.softplus.out, aten.softplus_backward.grad_input, beta=m.beta, threshold=m.threshold
    ),
}


@dataclass
class Layer:
    """``h <- activation(W h + b)``, with W and b at their places in theta; after the last layer perhaps log scales."""

    weight: slice
    bias: slice | None
    shape: tuple[int, int]  # of W: (out, in)
    activation: Activation | None = None
    log_scale: slice | None = None  # of a `LogScale` that follows

    def places(self, device: torch.device | None = None) -> Tensor:
        """Places in theta of the matrix ``[b | W]``, shape (out, 1 + in), or (out, in) without bias."""
        weight = torch.arange(self.weight.start, self.weight.stop, device=device).view(self.shape)
        if self.bias is None:
            return weight
        return torch.cat([torch.arange(self.bias.start, self.bias.stop, device=device)[:, None], weight], dim=1)


class LogScale(nn.Module):
    """A last layer for `Gaussian`: puts log scales, which are parameters, beside the outputs that come in.

    ``(..., K) -> (..., 2 K)``: the noise is inferred together with the weights, the same at all points.

    Args:
        num: K, how many outputs come in.
    """

    def __init__(self, num: int = 1) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(_check.whole("num", num, 1)))

    def forward(self, x: Tensor) -> Tensor:
        num = x.shape[-1]
        if num != len(self.log_scale):
            raise ValueError(f"LogScale({len(self.log_scale)}) follows a layer with {num} outputs: say LogScale({num})")
        return torch.cat([x, self.log_scale.expand_as(x)], dim=-1)


class Standardise(nn.Module):
    """Numbers by their mean and standard deviation: ``(x - mean) / sd``, of each column its own.

    As a first layer, ``nn.Sequential(Standardise(train.x), nn.Linear(...), ...)``, it lets a network be asked in the
    reader's units, while its weights see inputs for which priors are meant. It has no parameters. What `Gaussian` does
    with one of targets is said there.

    Args:
        x: of the points that are learned from, shape ``(N, ...)``: those held out must not be known to it.

    Attributes:
        mean, sd: buffers, shape ``x.shape[1:]``; sd is 1 where all points have the same number.

    Raises:
        ValueError: if there are no points, or numbers that are whole, NaN or infinite.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, x: Tensor | ArrayLike) -> None:
        super().__init__()
        x = _check.tensor("x", x).detach()
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"x holds no points: its shape is {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(
                f"x has dtype {x.dtype}, and should be floats: numbers of classes have no mean, for others "
                "say x.double()"
            )
        if not (x.is_meta or x.isfinite().all()):
            raise ValueError(f"x holds {int((~x.isfinite()).sum())} NaN or infinite values: take those points out")
        sd, mean = torch.std_mean(x.double(), dim=0, correction=0)
        # Of equal numbers rounding may leave a deviation that is not 0.
        is_constant = x.amax(0) == x.amin(0)
        self.register_buffer("mean", torch.where(is_constant, x[0], mean.to(x)))
        self.register_buffer("sd", torch.where(is_constant, 1, sd).to(x))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x)) / self.sd.to(x)

    def back(self, z: Tensor) -> Tensor:
        """From standardised numbers to the reader's: ``mean + sd z``."""
        return self.mean.to(z) + self.sd.to(z) * z

    def extra_repr(self) -> str:
        if self.mean.ndim:
            return f"{tuple(self.mean.shape)}"
        return f"mean={self.mean.item():g}, sd={self.sd.item():g}"


def linear_chain(flat: FlatModule, after_frozen: bool = False) -> list[Layer] | None:
    """The layers that compute what ``flat`` computes, or None where its module is something else.

    It is a chain of trainable nn.Linear, each at most once, with elementwise activations after any of them and perhaps
    a `LogScale` at the end; if so asked for, after parts without parameters, such as `Standardise`, which the layers
    then say nothing of.
    """
    names = {id(p): name for name, p in flat.module.named_parameters() if p.requires_grad}
    layers: list[Layer] = []
    used: list[str] = []
    for module in _flatten(flat.module):
        if layers and layers[-1].log_scale is not None:
            return None
        if after_frozen and not layers and not any(p.requires_grad for p in module.parameters()):
            continue
        if type(module) is nn.Linear:
            weight, bias = names.get(id(module.weight)), names.get(id(module.bias))
            if weight is None or (bias is None and module.bias is not None):  # frozen: the general path's business
                return None
            used += [weight] if bias is None else [weight, bias]
            shape = cast("tuple[int, int]", flat.shapes[weight])
            layers.append(Layer(flat.slices[weight], None if bias is None else flat.slices[bias], shape))
        elif type(module) in ACTIVATIONS and layers and layers[-1].activation is None:
            layers[-1].activation = ACTIVATIONS[type(module)](module)
        elif type(module) is LogScale and layers and len(module.log_scale) == layers[-1].shape[0]:
            log_scale = names.get(id(module.log_scale))
            if log_scale is None:
                return None
            used.append(log_scale)
            layers[-1].log_scale = flat.slices[log_scale]
        else:
            return None
    return layers if used == list(flat.shapes) else None


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
