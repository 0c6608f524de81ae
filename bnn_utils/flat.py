"""Any torch module as a function of one flat parameter vector."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bnn_utils import _check


class FlatModule:
    """A module as ``f(theta, x)``, with theta its trainable parameters laid end to end.

    Theta follows ``module.named_parameters()``: each trainable parameter once (tied ones under their first name),
    flattened row by row. Parameters with ``requires_grad=False`` keep their values and buffers keep theirs; neither is
    part of theta. The module is referred to and never changed, not even during a call: calls run in copies of its
    structure, which share its tensors, one copy for each call at a time, so that several threads may call at once.

    Args:
        module: any ``torch.nn.Module`` with at least one trainable parameter.

    Attributes:
        shapes: name -> shape of each trainable parameter, in the order of theta.
        sizes: name -> number of elements.
        slices: name -> its slice of theta.
        dim: length of theta.
        names: one label per element, such as ``0.weight[2,1]``.

    Raises:
        ValueError: if nothing is trainable, a parameter is not initialised, or dtypes or devices are mixed.
    """

    def __init__(self, module: nn.Module) -> None:
        _check.instance("module", module, nn.Module, "a torch.nn.Module")
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError(f"{type(module).__name__} has no parameter with requires_grad=True, nothing to infer")
        for name, p in trainable.items():
            if isinstance(p, nn.parameter.UninitializedParameter):
                raise ValueError(f"parameter {name} has no shape yet; call the lazy module once on an input first")
        kinds = {(p.dtype, str(p.device)) for p in trainable.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"one vector needs one dtype and one device; the parameters have {sorted(map(str, kinds))}"
            )
        self.module = module
        self.shapes = {name: tuple(p.shape) for name, p in trainable.items()}
        self.sizes = {name: p.numel() for name, p in trainable.items()}
        ends = list(itertools.accumulate(self.sizes.values()))
        self.slices = {name: slice(end - size, end) for (name, size), end in zip(self.sizes.items(), ends, strict=True)}
        self.dim = ends[-1]
        self._first = next(iter(trainable.values()))
        self._slots = _slots(module)
        self._copies: _Copies | None = None

    @property
    def names(self) -> list[str]:
        return [
            f"{name}[{','.join(map(str, index))}]" if shape else name
            for name, shape in self.shapes.items()
            for index in itertools.product(*map(range, shape))
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self._first.dtype

    def check(self, theta: Tensor) -> None:
        """Raise unless theta is a tensor of shape (D,) or (C, D)."""
        if not isinstance(theta, Tensor):
            raise TypeError(
                f"theta must be a torch.Tensor, got {_check.told(theta)}: pass torch.as_tensor(theta), or for NumPy "
                "take the function posterior.numpy()"
            )
        if theta.ndim not in (1, 2) or theta.shape[-1] != self.dim:
            raise ValueError(
                f"theta has shape {tuple(theta.shape)}, but this network has {self.dim} parameters "
                f"({', '.join(f'{name} {size}' for name, size in self.sizes.items())}): "
                f"pass ({self.dim},), or (C, {self.dim}) for C vectors at once"
            )

    def ravel(self, params: Mapping[str, Tensor] | None = None) -> Tensor:
        """The flat vector of ``params``; without them, of the module's current parameters.

        Args:
            params: name -> tensor of the parameter's shape, or with one leading dimension C for C vectors.

        Returns:
            a new tensor, shape ``(D,)`` or ``(C, D)``; differentiable with respect to ``params`` if given.
        """
        if params is None:
            current = dict(self.module.named_parameters())
            return torch.cat([current[name].detach().flatten() for name in self.shapes])
        _check.instance("params", params, Mapping, "a mapping from names to tensors")
        if set(params) != set(self.shapes):
            raise ValueError(f"expected the parameters {', '.join(self.shapes)}; got {', '.join(params) or 'none'}")
        pieces = []
        for name, shape in self.shapes.items():
            _check.instance(f"params[{name!r}]", params[name], Tensor, "a torch.Tensor")
            lead = params[name].shape[: params[name].ndim - len(shape)]
            if len(lead) > 1 or (*lead, *shape) != tuple(params[name].shape):
                raise ValueError(f"parameter {name} has shape {tuple(params[name].shape)}, expected {shape}")
            pieces.append(params[name].reshape(*lead, -1))
        leads = {tuple(piece.shape[:-1]) for piece in pieces}
        if len(leads) > 1:
            raise ValueError(f"all parameters need the same leading shape, got {sorted(leads)}")
        return torch.cat(pieces, dim=-1)

    def unravel(self, theta: Tensor) -> dict[str, Tensor]:
        """Name -> view of theta in the parameter's shape, with a leading C for theta of shape ``(C, D)``.

        The tensors share theta's memory and are differentiable with respect to it.
        """
        self.check(theta)
        lead = theta.shape[:-1]
        return {name: theta[..., self.slices[name]].view((*lead, *shape)) for name, shape in self.shapes.items()}

    def __call__(self, theta: Tensor, x: Tensor, has_own_x: bool = False) -> Tensor:
        """The module's output for inputs x at theta.

        Args:
            theta: shape ``(D,)`` or ``(C, D)``.
            x: whatever the module takes; the same for every row of theta.
            has_own_x: or of one more dimension, with a row for every row of theta.

        Returns:
            the module's output, with a leading C for theta of shape ``(C, D)``.
        """
        params, copies = self.unravel(theta), self._copies_of_today()
        if theta.ndim == 1:
            return self._output(copies, params, copies.buffers, x)
        buffers = {name: b.expand(len(theta), *b.shape) for name, b in copies.buffers.items()}
        return vmap(partial(self._output, copies), in_dims=(0, 0, 0 if has_own_x else None))(params, buffers, x)

    def _output(self, copies: _Copies, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        # Modules may write to their buffers in place (running means, counters); each row gets copies to write to.
        tensors = {**params, **{name: b.clone() for name, b in buffers.items()}}
        # A module that occurs twice has one slot per parameter. Left to find tied weights itself, functional_call fills
        # that slot twice and afterwards puts theta back into it, not the parameter.
        filled = {slot: tensors[name] for slot, name in self._slots.items() if name in tensors}
        watch: AbstractContextManager[Any]
        try:
            module, watch = copies.idle.pop(), nullcontext()
        except IndexError:  # other calls have them all
            module, watch = copies.one_more(), _Watch(self.module)
        with watch:
            output = functional_call(module, filled, (x,), tie_weights=False)
        copies.idle.append(module)  # not after an error, which may have left theta in it
        return output

    def _copies_of_today(self) -> _Copies:
        """Copies of the module as it now is: the reader may have called ``eval()`` since, or exchanged a part."""
        copies = self._copies
        if copies is None or copies.have_aged():
            copies = self._copies = _Copies(self.module)
        return copies

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_copies": None}

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        return f"FlatModule({type(self.module).__name__}, dim={self.dim}: {parts})"


def _slots(module: nn.Module) -> dict[str, str]:
    """Each place where a module keeps a parameter or a buffer -> the name under which that tensor comes first."""
    first: dict[int, str] = {}
    places: dict[str, str] = {}
    for path, part in module.named_modules():
        for kind in (part.named_parameters, part.named_buffers):
            for name, tensor in kind(path, recurse=False, remove_duplicate=False):
                places[name] = first.setdefault(id(tensor), name)
    return places


class _Copies:
    """Copies of a module's structure that wait for a call, and what the module held when they were made."""

    def __init__(self, module: nn.Module) -> None:
        self.idle: list[nn.Module] = []  # taking one out and putting it back are atomic
        self.buffers = dict(module.named_buffers())
        self._module = module
        parts = [part.__dict__ for part in module.modules()]
        values = [value for part in parts for value in part.values()]
        # One level deep: tensors, parts and hooks are in dictionaries of a part, most of which are empty.
        self._empty = [value for value in values if isinstance(value, dict | list) and not value]
        self._dicts = parts + [value for value in values if isinstance(value, dict) and value]
        self._lists = [value for value in values if isinstance(value, list | tuple)]
        self._held = self._contents()

    def _contents(self) -> list[object]:
        return list(itertools.chain(*map(dict.values, self._dicts), *self._lists))

    def have_aged(self) -> bool:
        """Whether the module holds something else by now."""
        now = self._contents()
        return any(self._empty) or len(now) != len(self._held) or not all(map(operator.is_, now, self._held))

    def one_more(self) -> nn.Module:
        """A copy that shares all tensors with the module."""
        try:
            return copy.deepcopy(self._module, {id(held): held for held in self._held if isinstance(held, Tensor)})
        except Exception as error:
            raise ValueError(
                f"{type(self._module).__name__} can't be copied, and each call runs in a copy of its own: {error}"
            ) from error


class _Watch(TorchFunctionMode):
    """Sees to it that a copy computes with theta, not with parameters of the module that it was copied from.

    Raises:
        ValueError: where one is used all the same.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        used = next((self._names[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._names), None)
        if used is not None and func.__name__ != "__get__":  # its shape or dtype may be asked for
            raise ValueError(
                f"forward computes with the parameter {used} past the module's attributes, so that theta would not "
                "reach it: a list or a function, such as a hook, holds it or its module. Use nn.ParameterList or "
                "nn.ModuleList, and in a hook the module that it is called with"
            )
        return func(*args, **(kwargs or {}))
