"""Priors: distributions over the flat parameter vector of a given module."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn.utils.parametrize import ParametrizationList

from bnn_utils import _check
from bnn_utils.distributions import covers_the_line, unchecked
from bnn_utils.families import ClosedForm, Flat, Part, drawn
from bnn_utils.families import family as family_of
from bnn_utils.flat import FlatModule
from bnn_utils.likelihoods import _unchecked, first_line
from bnn_utils.links import Link, of_distributions, to_support


class DiagonalNormal(Independent):
    """Independent normals with mean 0, one precision per element, shape ``(D,)``, written out for speed."""

    def __init__(self, precision: Tensor) -> None:
        self.precision = precision
        self.log_normalizer = 0.5 * (precision / (2 * math.pi)).log().sum()
        super().__init__(Normal(torch.zeros_like(precision), precision.rsqrt(), validate_args=False), 1)

    def log_prob(self, theta: Tensor) -> Tensor:
        return torch.sub(self.log_normalizer, (theta * theta) @ self.precision, alpha=0.5)

    def grad(self, theta: Tensor) -> Tensor:
        return theta * -self.precision


class Prior(Protocol):
    """What `Posterior` asks of a prior: a distribution over the flat vectors of a given module.

    It computes with a copy, without torch's checks of arguments and in the posterior's dtype.
    """

    def distribution(self, flat: FlatModule) -> Distribution:
        """A distribution with event shape ``(D,)``, in the dtype and on the device of ``flat.ravel()``.

        Where theta is not the network's parameters themselves, it has an attribute ``link`` that makes these of theta
        (`bnn_utils.links.Link`).
        """
        ...


def density(prior: Prior, flat: FlatModule) -> Distribution:
    """The prior's distribution as a sampler takes it.

    Raises:
        ValueError: if it is not over all real vectors, or raises an error for elements that are no numbers.
    """
    found = _density(prior.distribution(flat), flat)
    link = link_of(found)
    theta = flat.ravel() if link is None else link.theta(flat.ravel())
    found.log_prob(theta)
    try:
        found.log_prob(torch.full_like(theta, math.nan))
    except Exception as error:
        raise ValueError(
            f"the prior {prior!r} raises an error where theta is NaN, which would end a run when a trajectory "
            f"diverges: {first_line(error)} Let its log_prob give NaN, which is rejected"
        ) from error
    return found


def link_of(distribution: Distribution) -> Link | None:
    """What makes a network's parameters of theta, where these are not theta itself."""
    return getattr(distribution, "link", None)


def is_proper(distribution: Distribution) -> bool:
    """Whether there are draws from it."""
    parts = distribution.parts if isinstance(distribution, (ClosedForm, _Elements)) else []
    return not any(isinstance(part.distribution, Flat) for part in parts)


def _density(found: Distribution, flat: FlatModule) -> Distribution:
    if isinstance(found, (DiagonalNormal, ClosedForm, _Elements)):
        return found
    if isinstance(found, Distribution):
        _check_line(found)
        found = unchecked(found, flat.ravel())
    if type(found).__module__.startswith("torch.distributions"):
        return found
    return cast("Distribution", _Unchecked(found))  # it has what is asked of one


class _Unchecked:
    """A distribution of the caller's own, which may make torch's from what a trajectory that diverges brings."""

    def __init__(self, distribution: Distribution) -> None:
        self.distribution, self.link = distribution, link_of(distribution)

    def log_prob(self, theta: Tensor) -> Tensor:
        with _unchecked():
            return self.distribution.log_prob(theta)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return self.distribution.sample(sample_shape)


def _check_line(distribution: Distribution) -> None:
    if not covers_the_line(distribution):
        raise ValueError(
            f"{type(distribution).__name__}, with support {distribution.support}, is no density over all real numbers, "
            "but an element of theta may be any: transform the parameter in the module, and give its logarithm, say, a "
            "prior on the whole line"
        )


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
            check_patterns(precision)
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
            for name, value in by_name(self.precision, flat).items():
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
        if isinstance(self.precision, Tensor) and self.precision.ndim == 1:
            return f"NormalPrior(precision=tensor of {len(self.precision)})"
        return f"NormalPrior(precision={self.precision})"


class FanInPrior:
    """Normals scaled by fan-in: a weight has standard deviation ``weight / sqrt(fan_in)``, all else has ``bias``.

    Fan-in is the number of products that a unit sums. What it receives from inputs of variance 1 then has variance
    ``weight^2 + bias^2`` in layers of any width, and a wide network has a limit, the Gaussian process of Neal (1996).

    The layers of torch whose weights have a fan-in: Linear, Bilinear, convolutions, transposed convolutions (each
    element of a kernel shares an output with those that the stride leads to the same places), RNN, GRU and LSTM and
    their cells (a gate sums over inputs and hidden units, and has two biases, of half the variance each),
    MultiheadAttention; 1 for what is looked up or multiplies one number: Embedding, the normalisations' scales and
    PReLU. In modules of other kinds, parameters of no or one dimension have ``bias``.

    Args:
        weight, bias: scales, standard deviations.

    Raises:
        ValueError: if a scale is not positive and finite, and, once the module is known, if a parameter has no known
            fan-in: one of two or more dimensions in a module of another kind, parametrized ones (weight norm), an
            EmbeddingBag's, or one that two layers share with different fan-ins.
    """

    def __init__(self, weight: float = 1.0, bias: float = 1.0) -> None:
        weight, bias = _check.number("weight", weight), _check.number("bias", bias)
        for name, value in (("weight", weight), ("bias", bias)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}, a standard deviation, must be positive and finite, got {value:g}")
        self.weight, self.bias = weight, bias

    def distribution(self, flat: FlatModule) -> DiagonalNormal:
        names = {id(p): name for name, p in flat.module.named_parameters() if name in flat.shapes}
        found: dict[str, Tensor] = {}
        for part in flat.module.modules():
            for own, p in part.named_parameters(recurse=False, remove_duplicate=False):
                if id(p) not in names:  # it is frozen
                    continue
                name, summed = names[id(p)], _summed(part, own, p)
                if summed is None:
                    raise ValueError(
                        f"FanInPrior doesn't know what a unit sums over with {name}, of shape {tuple(p.shape)}, in "
                        f"{type(part).__name__}: {INSTEAD}"
                    )
                number, is_weight = summed
                scale = self.weight if is_weight else self.bias
                precision = (torch.as_tensor(number, dtype=torch.float64) / scale**2).expand(p.shape)
                if not torch.equal(found.setdefault(name, precision), precision):
                    raise ValueError(
                        f"{name} is shared by layers in which a unit sums over different numbers of inputs, one of "
                        f"them {type(part).__name__}: {INSTEAD}"
                    )
        return DiagonalNormal(torch.cat([found[name].flatten() for name in flat.shapes]).to(flat.ravel()))

    def __repr__(self) -> str:
        return f"FanInPrior(weight={self.weight:g}, bias={self.bias:g})"


INSTEAD = "give priors by name, as in NormalPrior({'*.bias': 1.0, '*': 0.5}), or by ElementPrior"
# A unit sums over all dimensions of the weight but the first.
SUMS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
MULTIPLIES = (nn.Embedding, nn.PReLU, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
NAMES = {
    nn.MultiheadAttention: r"(in|q|k|v)_proj_weight|in_proj_bias|bias_[kv]",
    nn.RNNBase: r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?",
    nn.RNNCellBase: "(weight|bias)_(ih|hh)",
}


def _summed(layer: nn.Module, name: str, p: Tensor) -> tuple[float | Tensor, bool] | None:
    """How many like this parameter a unit sums, and whether these are weights, or else biases; None where unknown."""
    kind: Any = next(one for one in type(layer).__mro__ if one.__module__.startswith("torch.nn.modules"))
    if isinstance(layer, ParametrizationList):
        return None
    if type(layer).forward is not kind.forward or not issubclass(kind, (*SUMS, *MULTIPLIES, *RECURRENT)):
        return (1, False) if p.ndim < 2 else None  # of a layer of the caller's own, whatever it inherits
    wanted = next((names for one, names in NAMES.items() if issubclass(kind, one)), "weight|bias")
    if not re.fullmatch(wanted, name):
        return None
    if "weight" not in name:
        return 2 if issubclass(kind, RECURRENT) else 1, False
    if issubclass(kind, MULTIPLIES):
        return 1, True
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return layer.in_channels // layer.groups * _meeting(layer), True
    if issubclass(kind, RECURRENT) and "_hr" not in name:
        inputs, hidden = (getattr(layer, re.sub("_ih|_hh", one, name)) for one in ("_ih", "_hh"))
        return inputs.shape[1] + hidden.shape[1], True
    return math.prod(p.shape[1:]), True


def _meeting(layer: nn.modules.conv._ConvTransposeNd) -> Tensor:
    """Of each element of a transposed convolution's kernel, how many, with it, contribute to the same outputs.

    Output o = s i + d j - padding sums over the inputs i and elements j for which d j leaves one remainder modulo s.
    """
    number = torch.ones(())
    for size, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
        remainder = dilation * torch.arange(size) % stride
        number = number[..., None] * (remainder[:, None] == remainder).sum(1)
    return number


class ElementPrior:
    """Any prior of independent elements, by torch.distributions.

    A parameter whose distribution is of positive numbers is positive, and one with a distribution between two bounds is
    between them: theta holds its logarithm then, or what a sigmoid brings between the bounds, and the log prior is the
    density of that, with the transform's Jacobian. So a noise scale in a module of the caller's own has a half-Cauchy
    prior by ``ElementPrior({"noise": HalfCauchy(1.0), "*": Normal(0.0, 1.0)})``; `Posterior.parameters` gives the scale
    itself, and `Posterior.theta` the vector to start at.

    Args:
        distributions: of single numbers, such as ``Laplace(0.0, 1.0)``: one for all elements; or pattern ->
            distribution, matched against parameter names as in ``{"*.weight": StudentT(4.0), "*": Normal(0.0, 1.0)}``,
            first match first.

    Raises:
        ValueError: if a distribution is not of single numbers in an interval, and, once the module is known, if a
            pattern matches nothing or a parameter is matched by no pattern.
    """

    def __init__(self, distributions: Distribution | Mapping[str, Distribution]) -> None:
        self.distributions = distributions if isinstance(distributions, Mapping) else {"*": distributions}
        check_patterns(self.distributions)
        for one in self.distributions.values():
            wanted = "a distribution, such as torch.distributions.Laplace(0.0, 1.0)"
            _check.instance("an element's prior", one, Distribution, wanted)
        for one in self.distributions.values():
            check_element(one)

    def distribution(self, flat: FlatModule) -> Distribution:
        like = flat.ravel()
        given = by_name(self.distributions, flat)
        parts = [Part(flat.sizes[name], unchecked(one, like), to_support(one, like)) for name, one in given.items()]
        families = [family for name, one in given.items() for family in flat.sizes[name] * [family_of(one)]]
        link = of_distributions(flat, given)
        known = [family for family in families if family is not None]
        if len(known) < len(families):
            return _Elements(parts, like, link)
        return ClosedForm(parts, known, like, link)

    def __repr__(self) -> str:
        return f"ElementPrior({self.distributions})"


def check_element(distribution: Distribution) -> None:
    """Raise unless it is of a single number in an interval."""
    if distribution.batch_shape or distribution.event_shape:
        raise ValueError(
            f"{distribution} has batch shape {tuple(distribution.batch_shape)} and event shape "
            f"{tuple(distribution.event_shape)}: an element's prior is of a single number, as Laplace(0.0, 1.0); for "
            "other priors see Prior"
        )
    to_support(distribution, torch.zeros(()))


class _Elements(Distribution):
    """Elements of theta, independent, of whatever distributions; those of an interval by what is brought there."""

    def __init__(self, parts: list[Part], like: Tensor, link: Link | None) -> None:
        self.parts, self._like, self.link = parts, like[:0], link
        super().__init__(event_shape=like.shape, validate_args=False)

    def log_prob(self, theta: Tensor) -> Tensor:
        total: Any = 0.0
        for u, (_, distribution, transform) in zip(
            theta.split([part.num for part in self.parts], dim=-1), self.parts, strict=True
        ):
            if transform is None:
                values = distribution.log_prob(u)
            else:
                x = transform(u)
                values = distribution.log_prob(x) + transform.log_abs_det_jacobian(u, x)
            total = total + values.sum(-1)
        return total

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        return drawn(self.parts, tuple(sample_shape), self._like)


def check_patterns(patterns: Mapping[str, Any]) -> None:
    for pattern in patterns:
        _check.instance("a pattern of parameter names", pattern, str, "a str, such as '*.weight'")
    if not patterns:
        raise ValueError("there is no pattern: name parameters, as in {'*.weight': ..., '*': ...}")


def by_name(patterns: Mapping[str, Any], flat: FlatModule) -> dict[str, Any]:
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
