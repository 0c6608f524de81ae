"""What a network at fixed inputs does with theta, so that what does not depend on theta is computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from bnn_utils.flat import FlatModule
from bnn_utils.layers import ACTIVATIONS, Layer

# What modules call, or readers in a forward of their own -> the module that means the same.
KINDS: dict[Callable[..., Tensor], type[nn.Module]] = {
    torch.tanh: nn.Tanh, Tensor.tanh: nn.Tanh, torch.sigmoid: nn.Sigmoid, Tensor.sigmoid: nn.Sigmoid,
    F.relu: nn.ReLU, torch.relu: nn.ReLU, Tensor.relu: nn.ReLU, F.silu: nn.SiLU, F.gelu: nn.GELU,
    F.softplus: nn.Softplus,
}  # fmt: skip


@dataclass(frozen=True)
class Ref:
    """Stands in the arguments of an operation for a tensor that depends on theta: the index-th that there was."""

    index: int


class Operation(NamedTuple):
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: range  # the indices of the tensors that it returns


class Tape(TorchFunctionMode):
    """The operations of ``flat`` at inputs x that depend on theta, in order; a function of theta, as ``flat`` is.

    All else is a constant of the tape, such as what frozen layers make of x: it was computed when the tape was
    recorded. No operation but torch's is seen, none of NumPy or of a compiled module. What shows that something was
    missed is noted; whoever makes a tape compares its values with the network's as well.

    Args:
        flat: the network.
        x: inputs, shape ``(N, ...)``.

    Attributes:
        is_complete: whether nothing was seen that a tape cannot repeat.
        constants: tensors that the operations take, without those that were there before, such as x and parameters.
        layers: where the operations are a chain of Linear layers and activations: its features and its layers.
    """

    def __init__(self, flat: FlatModule, x: Tensor) -> None:
        super().__init__()
        self._operations: list[Operation] = []
        self._versions: list[tuple[Tensor, int]] = []
        self.is_complete = True
        # With gradients on, what depends on theta requires one: also what comes from an operation that was not seen.
        with torch.inference_mode(False), torch.enable_grad():
            theta = flat.ravel().requires_grad_()
            self._tensors, self._index = [theta], {id(theta): 0}
            with self:
                output = flat(theta, x)
        self._result = self._index.get(id(output), 0)
        # A constant that was changed after it was taken is no constant; views share the count with what they view.
        unchanged = all(tensor._version == version for tensor, version in self._versions)
        self.is_complete &= self._result > 0 and unchanged
        known = {id(x), *map(id, flat.module.parameters())}
        self.constants = list({id(t): t for t, _ in self._versions if id(t) not in known}.values())
        self.layers = self._chain()
        del self._tensors, self._index, self._versions

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        depends = any(id(tensor) in self._index for tensor in inputs)
        constants = [(t, t._version) for t in inputs if id(t) not in self._index] if depends else []
        outputs = func(*args, **kwargs)
        made = _tensors(outputs)
        if not depends:
            self.is_complete &= not any(tensor.requires_grad for tensor in made)
        elif made or getattr(func, "__name__", "") != "__get__":  # shapes and dtypes are the same for every theta
            # A tape knows nothing of no_grad, or of what stands around an operation inside an autograd.Function.
            self.is_complete &= torch.is_grad_enabled() and not any(tensor.requires_grad for tensor, _ in constants)
            self._versions += constants
            args, kwargs = tree_map(self._refer, (args, kwargs))
            start = len(self._tensors)
            self._tensors += made  # which also keeps their ids from being given to others
            self._index |= {id(tensor): start + k for k, tensor in enumerate(made)}
            self._operations.append(Operation(func, args, kwargs, range(start, len(self._tensors))))
        return outputs

    def _refer(self, value: Any) -> Any:
        return Ref(self._index[id(value)]) if isinstance(value, Tensor) and id(value) in self._index else value

    def __call__(self, theta: Tensor) -> Tensor:
        """Outputs ``(N, ...)`` at theta ``(D,)``, ``(C, N, ...)`` at ``(C, D)``."""
        return self._replay(theta) if theta.ndim == 1 else vmap(self._replay)(theta)

    def _replay(self, theta: Tensor) -> Tensor:
        values = [theta]
        for function, args, kwargs, _ in self._operations:
            args, kwargs = _fill((args, kwargs), values)
            values += _tensors(function(*args, **kwargs))
        return values[self._result]

    def _chain(self) -> tuple[Tensor, list[Layer]] | None:
        """Features and layers as `layers.linear_chain` would find them, if all operations are theirs."""
        if not self.is_complete:
            return None
        features: Tensor | None = None
        layers: list[Layer] = []
        used: list[slice] = []
        last, scale = None, None

        def place(value: Any) -> slice | None:
            """Where in theta a parameter lies."""
            if not isinstance(value, Ref):
                return None
            tensor = self._tensors[value.index]
            if not self._is_in_theta(tensor) or not tensor.is_contiguous():
                return None
            return slice(tensor.storage_offset(), tensor.storage_offset() + tensor.numel())

        for function, args, kwargs, outputs in self._operations:
            is_first, of_last = last is None, last is not None and args[:1] == (last,)
            is_cut = outputs and all(self._is_in_theta(self._tensors[k]) for k in outputs)  # parameters, out of theta
            is_size = not outputs and function in (Tensor.__len__, Tensor.size, Tensor.dim, Tensor.numel)
            if is_size or (is_cut and function is not Tensor.expand_as):
                continue
            if len(outputs) != 1 or (layers and layers[-1].log_scale is not None):
                return None
            if function is F.linear and not kwargs and (of_last or (is_first and isinstance(args[0], Tensor))):
                _, weight, bias = (*args, None)[:3]
                at, of_bias = place(weight), place(bias)
                if at is None or (of_bias is None and bias is not None) or self._tensors[weight.index].ndim != 2:
                    return None
                used += [at] if of_bias is None else [at, of_bias]
                features = args[0] if is_first else features
                layers.append(Layer(at, of_bias, tuple(self._tensors[weight.index].shape)))
            elif function in KINDS and of_last and layers[-1].activation is None:
                kind = KINDS[function]
                layers[-1].activation = ACTIVATIONS[kind](kind(*args[1:], **kwargs))
            elif function is Tensor.expand_as and layers and args[1:] == (last,):  # the first half of a `LogScale`
                at = place(args[0])
                if at is None or self._tensors[args[0].index].shape != (layers[-1].shape[0],):
                    return None
                used.append(at)
                scale = Ref(outputs[0])
                continue
            elif function is torch.cat and scale and args == ([last, scale],) and kwargs == {"dim": -1}:
                layers[-1].log_scale = used[-1]
            else:
                return None
            last = Ref(outputs[0])
        if features is None:  # there is no layer
            return None
        theta = self._tensors[0]
        ends = [0, *(part.stop for part in sorted(used, key=lambda part: part.start))]
        starts = [*sorted(part.start for part in used), len(theta)]
        is_chain = (
            last == Ref(self._result)
            and starts == ends  # all of theta, each element once
            and (scale is None or layers[-1].log_scale is not None)
            and features.ndim == 2
            and features.dtype == theta.dtype
        )
        return (features, layers) if is_chain else None

    def _is_in_theta(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() == self._tensors[0].untyped_storage().data_ptr()


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _fill(value: Any, values: list[Tensor]) -> Any:
    """``value`` with tensors in the place of what stands for them."""
    if isinstance(value, Ref):
        return values[value.index]
    if type(value) in (tuple, list):
        return type(value)(_fill(part, values) for part in value)
    if type(value) is dict:
        return {name: _fill(part, values) for name, part in value.items()}
    return value
