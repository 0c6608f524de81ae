"""Any torch module as a function of one flat parameter vector."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bnn_utils import _check


class FlatModule:
    """A module as ``f(theta, x)``, with theta its trainable parameters laid end to end.

    Theta follows ``module.named_parameters()``: each trainable parameter once (tied ones under their first name),
    flattened row by row. Parameters with ``requires_grad=False`` keep their values and buffers keep theirs; neither is
    part of theta. The module is referred to, not copied, and never changed.

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

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """The module's output for inputs x at theta.

        Args:
            theta: shape ``(D,)`` or ``(C, D)``.
            x: whatever the module takes; the same for every row of theta.

        Returns:
            the module's output, with a leading C for theta of shape ``(C, D)``.
        """
        params = self.unravel(theta)
        if theta.ndim == 1:
            return self._output(params, dict(self.module.named_buffers()), x)
        buffers = {name: b.expand(len(theta), *b.shape) for name, b in self.module.named_buffers()}
        return vmap(self._output, in_dims=(0, 0, None))(params, buffers, x)

    def _output(self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        # Modules may write to their buffers in place (running means, counters); each row gets copies to write to.
        tensors = {**params, **{name: b.clone() for name, b in buffers.items()}}
        # A module that occurs twice has one slot per parameter. Left to find tied weights itself, functional_call fills
        # that slot twice and afterwards puts theta back into it, not the parameter.
        filled = {slot: tensors[name] for slot, name in self._slots.items() if name in tensors}
        return functional_call(self.module, filled, (x,), tie_weights=False)

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
