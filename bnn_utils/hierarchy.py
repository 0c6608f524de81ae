"""Priors whose scales are inferred together with the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.distributions import Distribution, Normal
from torch.distributions.transforms import ExpTransform

from bnn_utils import _check
from bnn_utils.distributions import covers_the_line, interval, unchecked
from bnn_utils.families import Centred, ClosedForm, Family, Flat, Part, family
from bnn_utils.flat import FlatModule
from bnn_utils.links import Link
from bnn_utils.priors import by_name, check_element, check_patterns


@dataclass(frozen=True, eq=False)
class ByInput:
    """A scale for each input of a layer, for `HierarchicalPrior`: automatic relevance determination (Neal 1996).

    The weights that lead from an input, ``weight[:, j]``, have scale j in common.

    Args:
        distribution: of each scale, such as ``HalfCauchy(1.0)``.
    """

    distribution: Distribution


class HierarchicalPrior:
    r"""Normals with mean 0 whose standard deviations are inferred, one for a parameter or for each input of a layer.

    ``weight_k ~ Normal(0, scale_s(k))`` with ``scale_s`` from a distribution of positive numbers (Neal 1996). The
    logarithms of the scales are further elements of theta, after those of the network; their prior is the density
    of the logarithm, with its Jacobian.

    Not centred, which is the default, theta holds ``z_k ~ Normal(0, 1)`` in place of the weight, and the network
    computes with ``scale_s(k) z_k``. That mixes better where data say little about single weights, as in most
    networks; where they say much, centred does (Betancourt and Girolami 2015). Centred, theta holds the weight itself.
    `Posterior.parameters` makes weights of theta in either case.

    Args:
        scales: pattern of parameter names -> what their standard deviation is: a number that is known; a distribution
            of positive numbers, such as ``HalfCauchy(1.0)``, for one scale of each parameter that matches; or
            ``ByInput(HalfCauchy(1.0))``. A distribution of all real numbers, such as ``Log(HalfCauchy(1.0))`` for the
            ``log_scale`` of a `LogScale`, is that of the parameter's elements themselves. First match first, as in
            ``{"*.weight": HalfCauchy(1.0), "*": 1.0}``.
        centred: whether theta holds the weights themselves.

    Raises:
        TypeError: if a scale is none of these.
        ValueError: if one is not positive, or a distribution not of single positive numbers; and, once the module is
            known, if a pattern matches nothing, a parameter is matched by no pattern, or one with a scale for each
            input has less than two dimensions.
    """

    def __init__(self, scales: Mapping[str, float | Distribution | ByInput], centred: bool = False) -> None:
        _check.instance("scales", scales, Mapping, "a mapping, such as {'*.weight': HalfCauchy(1.0), '*': 1.0}")
        check_patterns(scales)
        self.centred = _check.flag("centred", centred)
        self.scales = {pattern: _checked(pattern, one) for pattern, one in scales.items()}
        if not any(_prior_of(one) for one in self.scales.values()):
            raise ValueError(
                "no scale is to be inferred: give one a distribution, such as HalfCauchy(1.0), or take NormalPrior"
            )

    def distribution(self, flat: FlatModule) -> ClosedForm:
        like = flat.ravel()
        parts: list[Part] = []
        families: list[Family] = []
        names: list[str] = []
        priors: list[Distribution] = []
        scale_of = torch.full((flat.dim,), -1)
        for name, scale in by_name(self.scales, flat).items():
            of_scale, shape = _prior_of(scale), flat.shapes[name]
            of_element = scale if _is_of_elements(scale) else Normal(0.0, 1.0 if of_scale else scale)
            parts.append(Part(flat.sizes[name], unchecked(of_element, like)))
            families += flat.sizes[name] * [_family(of_element)]
            if of_scale is None:
                continue
            which, num = torch.zeros(shape, dtype=torch.long), 1
            if isinstance(scale, ByInput):
                if len(shape) < 2:
                    raise ValueError(
                        f"{name}, of shape {shape}, has no scale for each input: that takes a weight of shape (out, "
                        "in, ...); give it one scale, a distribution"
                    )
                num = shape[1]
                which = torch.arange(num).view(-1, *[1] * (len(shape) - 2)).expand(shape)
                names += [f"log_scale({name}[:,{j}])" for j in range(num)]
            else:
                names.append(f"log_scale({name})")
            scale_of[flat.slices[name]] = which.flatten() + len(priors)
            priors += num * [of_scale]
        for one in priors:
            parts.append(Part(1, unchecked(one, like), ExpTransform()))
            families.append(_family(one))
        scale_of = scale_of.to(like.device)
        if not self.centred:
            return ClosedForm(parts, families, like, Link(flat.names, [], names, scale_of))
        places = (scale_of >= 0).nonzero().flatten()
        centred = Centred(places, scale_of[places] + flat.dim)
        nobody = torch.full_like(scale_of, -1)
        return ClosedForm(parts, families, like, Link(flat.names, [], names, nobody), centred)

    def __repr__(self) -> str:
        return f"HierarchicalPrior({self.scales}{', centred=True' * self.centred})"


def _is_of_elements(scale: float | Distribution | ByInput) -> bool:
    return isinstance(scale, Distribution) and covers_the_line(scale)


def _prior_of(scale: float | Distribution | ByInput) -> Distribution | None:
    """Of a scale that is inferred."""
    if isinstance(scale, ByInput):
        return scale.distribution
    return scale if isinstance(scale, Distribution) and not _is_of_elements(scale) else None


def _family(distribution: Distribution) -> Family:
    """Of what `_checked` has let through."""
    found = family(distribution)
    assert found is not None
    return found


def _checked(pattern: str, scale: float | Distribution | ByInput) -> float | Distribution | ByInput:
    if not isinstance(scale, (ByInput, Distribution)):
        what = "a positive number, a distribution such as HalfCauchy(1.0), or ByInput of one"
        return _check.positive(f"the scale of {pattern!r}", _check.number(f"the scale of {pattern!r}", scale, what))
    given = scale.distribution if isinstance(scale, ByInput) else scale
    _check.instance(f"the distribution of {pattern!r}", given, Distribution, "one of torch.distributions")
    check_element(given)
    is_scale = interval(given) == (0.0, math.inf) and not isinstance(given, Flat)
    if family(given) is None or not (is_scale or _is_of_elements(scale)):
        raise ValueError(
            f"{pattern!r} can't have the distribution {given}: one of a scale is HalfCauchy, HalfNormal, Exponential, "
            "Gamma, InverseGamma, LogNormal or Weibull, and one of elements themselves Normal, StudentT, Cauchy, "
            "Laplace or Log of one of a scale"
        )
    return scale
