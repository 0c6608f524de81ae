"""Priors: distributions over the flat parameter vector of a given module."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, constraints

from bnn_utils import _check
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
        TypeError: if it is none of these.
        ValueError: if a precision is not positive and finite, and, once the module is known, if a pattern matches
            nothing, a parameter is matched by no pattern, or a tensor has the wrong length.
    """

    def __init__(self, precision: float | Mapping[str, float] | Tensor) -> None:
        if isinstance(precision, Mapping):
            _check_patterns(precision)
            precision = {name: _check.number(f"the precision of {name!r}", one) for name, one in precision.items()}
        elif np.ndim(precision) == 0:
            precision = _check.number("precision", precision, "a number, a vector or a mapping of patterns to numbers")
        else:
            precision = _check.tensor("precision", precision)
            if precision.ndim > 1:
                raise ValueError(
                    f"precision has shape {tuple(precision.shape)}: pass one number, a vector with one for each "
                    "parameter, or a mapping from name patterns"
                )
        for value in precision.values() if isinstance(precision, dict) else [precision]:
            value = torch.as_tensor(value, dtype=torch.float64)
            bad = value[~((value > 0) & value.isfinite())]
            if len(bad):
                raise ValueError(f"a precision (1 / variance) must be positive and finite, got {bad[0].item():g}")
        self.precision = precision

    def distribution(self, flat: FlatModule) -> DiagonalNormal:
        like = flat.ravel()
        if isinstance(self.precision, Mapping):
            precision = torch.empty_like(like)
            for name, value in _by_name(self.precision, flat).items():
                precision[flat.slices[name]] = value
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


class FanInPrior:
    """Normals scaled by fan-in: a weight has standard deviation ``weight / sqrt(fan_in)``, all else has ``bias``.

    What a unit receives then has the same spread in layers of any width, and a wide network has a limit, the Gaussian
    process of Neal (1996). Weights are the parameters of two or more dimensions: of ``(out, in, ...)`` fan-in is the
    product of all but the first. An embedding's row is looked up, not summed over, so its fan-in is 1.

    Args:
        weight, bias: scales, standard deviations.

    Raises:
        ValueError: if a scale is not positive and finite.
    """

    def __init__(self, weight: float = 1.0, bias: float = 1.0) -> None:
        weight, bias = _check.number("weight", weight), _check.number("bias", bias)
        for name, value in (("weight", weight), ("bias", bias)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}, a standard deviation, must be positive and finite, got {value:g}")
        self.weight, self.bias = weight, bias

    def distribution(self, flat: FlatModule) -> DiagonalNormal:
        looked_up = {id(part.weight) for part in flat.module.modules() if isinstance(part, nn.Embedding)}
        parameters = dict(flat.module.named_parameters())
        precision = torch.empty_like(flat.ravel())
        for name, shape in flat.shapes.items():
            fan_in = 1 if id(parameters[name]) in looked_up else math.prod(shape[1:])
            precision[flat.slices[name]] = fan_in / self.weight**2 if len(shape) > 1 else 1 / self.bias**2
        return DiagonalNormal(precision)

    def __repr__(self) -> str:
        return f"FanInPrior(weight={self.weight:g}, bias={self.bias:g})"


class ElementPrior:
    """Any prior of independent elements, by torch.distributions.

    Args:
        distributions: of single real numbers, such as ``Laplace(0.0, 1.0)``: one for all elements; or pattern ->
            distribution, matched against parameter names as in ``{"*.weight": StudentT(4.0), "*": Normal(0.0, 1.0)}``,
            first match first.

    Raises:
        ValueError: if a distribution is not of single numbers, or not of all real numbers (a sampler that moves by
            gradients would walk out of the support), and, once the module is known, if a pattern matches nothing or a
            parameter is matched by no pattern.
    """

    def __init__(self, distributions: Distribution | Mapping[str, Distribution]) -> None:
        self.distributions = distributions if isinstance(distributions, Mapping) else {"*": distributions}
        _check_patterns(self.distributions)
        for one in self.distributions.values():
            wanted = "a distribution, such as torch.distributions.Laplace(0.0, 1.0)"
            _check.instance("an element's prior", one, Distribution, wanted)
        for one in self.distributions.values():
            if one.batch_shape or one.event_shape:
                raise ValueError(
                    f"{one} has batch shape {tuple(one.batch_shape)} and event shape {tuple(one.event_shape)}: an "
                    "element's prior is of a single number, as Laplace(0.0, 1.0); for other priors see Prior"
                )
            if one.support is not constraints.real:
                raise ValueError(
                    f"{type(one).__name__} has support {one.support}, but an element of theta may be any real number: "
                    "transform the parameter in the module, and give its logarithm, say, a prior on the whole line"
                )

    def distribution(self, flat: FlatModule) -> Distribution:
        return _Elements(_by_name(self.distributions, flat), flat)

    def __repr__(self) -> str:
        return f"ElementPrior({self.distributions})"


class _Elements(Distribution):
    """Elements of theta, independent, each parameter's alike: name -> distribution of one element."""

    def __init__(self, parts: Mapping[str, Distribution], flat: FlatModule) -> None:
        self._parts = [(flat.slices[name], _without_checks(one)) for name, one in parts.items()]
        self._like = flat.ravel()
        super().__init__(event_shape=self._like.shape, validate_args=False)

    def log_prob(self, theta: Tensor) -> Tensor:
        return sum(one.log_prob(theta[..., place]).sum(-1) for place, one in self._parts)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        shape = tuple(sample_shape)
        parts = [one.sample((*shape, place.stop - place.start)) for place, one in self._parts]
        return torch.cat([part.to(self._like) for part in parts], dim=-1)


def _without_checks(distribution: Distribution) -> Distribution:
    """A copy that computes with what it gets: a trajectory that diverges is for the sampler to reject."""
    copied = copy.copy(distribution)
    copied._validate_args = False
    return copied


def _check_patterns(patterns: Mapping[str, Any]) -> None:
    for pattern in patterns:
        _check.instance("a pattern of parameter names", pattern, str, "a str, such as '*.weight'")
    if not patterns:
        raise ValueError("there is no pattern: name parameters, as in {'*.weight': ..., '*': ...}")


def _by_name(patterns: Mapping[str, Any], flat: FlatModule) -> dict[str, Any]:
    """Parameter name -> the value of the first pattern that matches it.

    Raises:
        ValueError: if a parameter is matched by no pattern, or a pattern is the first match of none.
    """
    found, unused = {}, set(patterns)
    for name in flat.shapes:
        pattern = next((p for p in patterns if fnmatchcase(name, p)), None)
        if pattern is None:
            raise ValueError(f"no pattern of {list(patterns)} matches parameter {name}; add one, or '*' for the rest")
        unused.discard(pattern)
        found[name] = patterns[pattern]
    if unused:
        raise ValueError(
            f"the pattern {sorted(unused)[0]!r} sets no parameter of this network ({', '.join(flat.shapes)})"
        )
    return found
