"""Data sets, the grid they are looked at on, and the device they live on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnn_utils import _check


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs and targets of one data set.

    Args:
        x: inputs, shape ``(N, ...)``, one row per point.
        y: targets, shape ``(N,)`` or ``(N, ...)``; which values are allowed is the likelihood's business.
        weights: how often each point counts, shape ``(N,)``, not negative: its log likelihood is multiplied by its
            weight. A weight of 2 is the same point twice, a weight of 0 as good as no point. None counts each once.

    Tensors stay as they are. NumPy's arrays, frames and series of pandas and lists of numbers become tensors, in the
    dtype that NumPy gives them: float64 where torch would take float32 for a list.

    Raises:
        TypeError: if x, y or weights are no array of numbers.
        ValueError: if x, y and weights differ in length or device, are empty, complex, sparse, or hold NaN or infinite
            values, or if weights are negative or all 0.
    """

    x: Tensor
    y: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        given = {"x": self.x, "y": self.y} | ({} if self.weights is None else {"weights": self.weights})
        _check.settle(self, **{name: _check.tensor(name, value) for name, value in given.items()})
        for name in given:
            value = getattr(self, name)
            if value.ndim == 0 or len(value) == 0:
                raise ValueError(f"{name} holds no points: its shape is {tuple(value.shape)}")
            if value.is_meta:  # has a shape and a dtype, and no values to check
                continue
            bad = ~torch.isfinite(value)
            if bad.any():
                first = bad.nonzero()[0].tolist()
                raise ValueError(
                    f"{name} has {int(bad.sum())} NaN or infinite values, the first at {first}; "
                    "remove those points or fill them in"
                )
        if len(self.x) != len(self.y):
            raise ValueError(f"x has {len(self.x)} points and y has {len(self.y)}; they must be equally many")
        if self.x.device != self.y.device:
            raise ValueError(f"x lies on {self.x.device} and y on {self.y.device}; move both with data.to(device)")
        if self.weights is not None:
            self._check_weights(self.weights)

    def _check_weights(self, weights: Tensor) -> None:
        if weights.shape != (len(self),):
            raise ValueError(
                f"weights have shape {tuple(weights.shape)}; one for each of the {len(self)} points is ({len(self)},)"
            )
        if weights.device != self.x.device:
            raise ValueError(f"x lies on {self.x.device} and weights on {weights.device}; they must lie together")
        if weights.is_meta:
            return
        if (weights < 0).any():
            raise ValueError(f"weights must not be negative: a point counts 0 times or more, got {weights.min():g}")
        if not weights.any():
            raise ValueError("all weights are 0, so that no point counts: leave weights out to count each once")

    def __len__(self) -> int:
        return len(self.x)

    def to(self, *args: Any, **kwargs: Any) -> Data:
        """The same data in another dtype or on another device; arguments as for ``torch.Tensor.to``.

        Integer tensors (class labels, token numbers) keep their dtype.
        """

        def move(value: Tensor) -> Tensor:
            try:
                moved = value.to(*args, **kwargs)
            except (TypeError, RuntimeError) as error:
                given = ", ".join(map(_check.told, [*args, *kwargs.values()]))
                raise TypeError(
                    f"data.to takes a dtype, such as torch.float32, or a device, such as 'cpu', got {given}"
                ) from error
            if value.is_floating_point() and not moved.is_floating_point():
                raise ValueError(
                    f"x would lose its fractions in {moved.dtype}, or is complex there: say a dtype of floats"
                )
            return moved if value.is_floating_point() else moved.to(value.dtype)

        return Data(move(self.x), move(self.y), None if self.weights is None else move(self.weights))


def square_grid(num: int = 25, limit: float = 6.0, like: Tensor | None = None) -> Tensor:
    """A regular grid over ``[-limit, limit]^2``.

    Returns:
        shape ``(num * num, 2)``, first coordinate fastest, in the dtype and on the device of ``like``
        (float64 on the CPU without it).
    """
    num, limit = _check.whole("num", num, 2), _check.positive("limit", limit)
    like = torch.empty(0, dtype=torch.float64) if like is None else like
    _check.instance("like", like, Tensor, "a torch.Tensor, such as data.x, whose dtype and device the grid gets")
    if not like.is_floating_point():
        raise ValueError(f"like has dtype {like.dtype}: a grid needs floats")
    _check.memory(f"{num=} makes a grid that", 2 * num**2 * like.element_size(), like.device)
    axis = torch.linspace(-limit, limit, num, dtype=like.dtype, device=like.device)
    x2, x1 = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x1.flatten(), x2.flatten()], dim=1)


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
