"""Priors: distributions over the flat parameter vector of a given module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from bnn_utils.flat import FlatModule


class DiagonalNormal(Independent):
    """Independent normals with mean 0, one precision per element, shape ``(D,)``, written out for speed."""

    def __init__(self, precision: Tensor) -> None:
        self.precision = precision
        self.log_normalizer = 0.5 * (precision / (2 * math.pi)).log().sum()
        super().__init__(Normal(torch.zeros_like(precision), precision.rsqrt(), validate_args=False), 1)

    def log_prob(self, theta: Tensor) -> Tensor:
        return torch.sub(self.log_normalizer, (theta * theta) @ self.precision, alpha=0.5)


class Prior(Protocol):
    """What `Posterior` asks of a prior: a distribution over the flat vectors of a given module."""

    def distribution(self, flat: FlatModule) -> Distribution:
        """A distribution with event shape ``(D,)``, in the dtype and on the device of ``flat.ravel()``."""
        ...


class NormalPrior:
    """Independent normals with mean 0: ``theta_d ~ Normal(0, precision_d^(-1/2))``.

    Args:
        precision: one number for all elements; or pattern -> number, matched against parameter names as in
            ``{"*.weight": 0.09, "*.bias": 1.0}``, first match first; or a tensor of shape ``(D,)``.

    Raises:
        ValueError: if a precision is not positive and finite, and, once the module is known, if a pattern matches
            nothing, a parameter is matched by no pattern, or a tensor has the wrong length.
    """

    def __init__(self, precision: float | Mapping[str, float] | Tensor) -> None:
        values = precision.values() if isinstance(precision, Mapping) else [precision]
        for value in values:
            value = torch.as_tensor(value, dtype=torch.float64)
            bad = value[~((value > 0) & value.isfinite())]
            if len(bad):
                raise ValueError(f"a precision (1 / variance) must be positive and finite, got {bad[0].item():g}")
        self.precision = precision

    def distribution(self, flat: FlatModule) -> DiagonalNormal:
        like = flat.ravel()
        if isinstance(self.precision, Mapping):
            precision = torch.empty_like(like)
            unused = set(self.precision)
            for name, place in flat.slices.items():
                pattern = next((p for p in self.precision if fnmatchcase(name, p)), None)
                if pattern is None:
                    raise ValueError(
                        f"no pattern of {list(self.precision)} matches parameter {name}; add one, or '*' for the rest"
                    )
                unused.discard(pattern)
                precision[place] = self.precision[pattern]
            if unused:
                raise ValueError(
                    f"the pattern {sorted(unused)[0]!r} sets no parameter of this network ({', '.join(flat.shapes)})"
                )
        else:
            precision = torch.as_tensor(self.precision, dtype=like.dtype, device=like.device)
            if precision.ndim and precision.shape != like.shape:
                raise ValueError(
                    f"precision has shape {tuple(precision.shape)}, but this network has {flat.dim} parameters: "
                    f"pass one number, ({flat.dim},), or a mapping from name patterns"
                )
            precision = precision.expand(flat.dim).clone()
        return DiagonalNormal(precision)

    def __repr__(self) -> str:
        is_vector = isinstance(self.precision, Tensor) and self.precision.ndim == 1
        return f"NormalPrior(precision={f'tensor of {len(self.precision)}' if is_vector else self.precision})"
