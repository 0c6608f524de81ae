"""Distributions of torch as a sampler needs them: a density of 0 and no error where a trajectory diverged."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    ComposeTransform,
    Distribution,
    Independent,
    MixtureSameFamily,
    OneHotCategorical,
    Transform,
    TransformedDistribution,
    VonMises,
    constraints,
)
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property

LINE = (-math.inf, math.inf)
# What needs no look in every evaluation: no real number makes no density, and matrices are decomposed in any case.
SEEN_TO = ("_Real", "_PositiveDefinite")


def unchecked(value: Any, like: Tensor) -> Any:
    """A copy of a distribution and of all that it is made of, without torch's checks, in dtype and device of ``like``.

    With the checks, what a trajectory that diverges brings would end a run, and is for the sampler to reject.
    """
    if isinstance(value, Tensor):
        return value.detach().to(like) if value.is_floating_point() else value.to(like.device)
    if type(value) in (list, tuple):
        return type(value)(unchecked(part, like) for part in value)
    if isinstance(value, _InverseTransform):
        return _Inverse(unchecked(value.inv, like))
    if not isinstance(value, (Distribution, Transform)):
        return value
    copied = copy.copy(value)
    copied.__dict__ |= {name: unchecked(part, like) for name, part in vars(copied).items()}
    if isinstance(copied, Distribution):
        copied._validate_args = False
    return copied


class _Inverse(_InverseTransform):
    """Torch's own forgets on the way to another process what it inverts."""

    def __reduce__(self) -> tuple[type, tuple[Transform]]:
        return _Inverse, (self.inv,)


def log_prob(distribution: Distribution, value: Tensor, is_computed: bool = False) -> Tensor:
    """Log density; where torch would raise an error, NaN for parameters that are none, and -inf for such values.

    A distribution that checks nothing computes some number there, such as the density of an exponential variable below
    0, or of a Poisson number with a negative rate.

    Args:
        is_computed: whether the value depends on parameters. Data have been checked against a support that doesn't.
    """
    if type(distribution) is Independent:
        return _sum(log_prob(distribution.base_dist, value, is_computed), distribution.reinterpreted_batch_ndims)
    if type(distribution) is MixtureSameFamily:
        parts = log_prob(distribution.component_distribution, distribution._pad(value), is_computed)
        return torch.logsumexp(parts + distribution.mixture_distribution.logits.log_softmax(-1), dim=-1)
    if _is_transformed(distribution):
        event_dim, slopes = len(distribution.event_shape), []
        for transform in reversed(distribution.transforms):
            start = transform.inv(value)
            event_dim += transform.domain.event_dim - transform.codomain.event_dim
            slope = transform.log_abs_det_jacobian(start, value)
            slopes.append(_sum(slope, event_dim - transform.domain.event_dim))
            value = start
        base = distribution.base_dist
        return _sum(log_prob(base, value, True), event_dim - len(base.event_shape)) - sum(slopes)
    values = distribution.log_prob(value)
    if is_computed or not has_fixed_support(distribution):
        support = support_of(distribution)
        if _is_checked(support):
            values = torch.where(support.check(value), values, -math.inf)
    are_valid = list(_valid_parameters(distribution))
    return torch.where(functools.reduce(torch.logical_and, are_valid), values, math.nan) if are_valid else values


def _valid_parameters(distribution: Distribution) -> Iterator[Tensor]:
    """Whether each parameter is one, in the batch shape."""
    try:
        wanted = distribution.arg_constraints
    except NotImplementedError:  # a class of the caller's own, which doesn't say
        return
    for name, constraint in wanted.items():
        is_lazy = name not in vars(distribution) and isinstance(getattr(type(distribution), name, None), lazy_property)
        if is_lazy or not _is_checked(constraint):
            continue
        parameter = getattr(distribution, name)
        # Probabilities have been normalised, and add up to 1 but for rounding, which torch's check may take for more.
        is_valid = (parameter >= 0).all(-1) if constraint is constraints.simplex else constraint.check(parameter)
        num = is_valid.ndim - len(distribution.batch_shape)
        yield is_valid.flatten(-num).all(-1) if num > 0 else is_valid  # of some vectors' it is one for each element


def _is_checked(constraint: Constraint | None) -> TypeGuard[Constraint]:
    if constraint is None or constraints.is_dependent(constraint):
        return False
    return type(_base(constraint)).__name__ not in SEEN_TO


def support_of(distribution: Distribution) -> Constraint | None:
    """The support; None where a class of the caller's own doesn't say."""
    try:
        return distribution.support
    except NotImplementedError:
        return None


def has_fixed_support(distribution: Distribution) -> bool:
    """Whether the support is the same for all parameters."""
    return not isinstance(type(distribution).support, property)


def mean(distribution: Distribution) -> Tensor | None:
    """Expected value; of classes, their probabilities. None where torch knows none."""
    if isinstance(distribution, (Categorical, OneHotCategorical)):
        return distribution.probs
    if type(distribution) is Independent:
        return mean(distribution.base_dist)
    if type(distribution) is MixtureSameFamily:
        parts, probs = mean(distribution.component_distribution), distribution.mixture_distribution.probs
        if parts is None:
            return None
        num = parts.ndim - len(distribution.component_distribution.batch_shape)
        return (probs.reshape(*probs.shape, *num * [1]) * parts).sum(-1 - num)
    try:
        return distribution.mean
    except NotImplementedError:
        return None


def covers_the_line(distribution: Distribution) -> bool:
    """Whether it is a density over all real numbers, or over vectors of them.

    What torch calls the support may be larger: of a TransformedDistribution it is all that the last transform can give,
    although an exponential variable that is shifted, say, has a smallest value. VonMises is a distribution of angles,
    and has a density on the line that doesn't end.
    """
    return interval(distribution) == LINE


def interval(distribution: Distribution) -> tuple[float, float] | None:
    """From where to where elements have a density; None where that isn't known, or it is no density of such."""
    if isinstance(distribution, VonMises):
        return None
    if isinstance(distribution, Independent):
        return interval(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        return interval(distribution.component_distribution)
    if not _is_transformed(distribution):
        support = support_of(distribution)
        return LINE if support is None else _bounds(support)
    found = interval(distribution.base_dist)
    for transform in _flat(distribution.transforms):
        if found is None:
            return None
        if isinstance(transform, AffineTransform) and found != LINE:
            ends = torch.stack([torch.as_tensor(transform(torch.tensor(end))) for end in found])
            found = (ends.min().item(), ends.max().item()) if ends.numel() == 2 else None
        else:
            found = _bounds(transform.codomain) if found == _bounds(transform.domain) else None
    return found


def _is_transformed(distribution: Distribution) -> TypeGuard[TransformedDistribution]:
    """Whether it is no more than transforms of another one, unlike LogNormal, which has a support of its own."""
    kind = type(distribution)
    return isinstance(distribution, TransformedDistribution) and kind.support is TransformedDistribution.support


def _flat(transforms: list[Transform]) -> list[Transform]:
    parts = ([one] if not isinstance(one, ComposeTransform) else _flat(one.parts) for one in transforms)
    return [one for part in parts for one in part]


def _base(constraint: Constraint) -> Constraint:
    """The constraint of single numbers, say, in one of vectors or mixtures of them."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _bounds(constraint: Constraint) -> tuple[float, float] | None:
    constraint = _base(constraint)
    if constraint is constraints.real:
        return LINE
    if constraint.is_discrete:
        return None
    low = torch.as_tensor(getattr(constraint, "lower_bound", -math.inf))
    high = torch.as_tensor(getattr(constraint, "upper_bound", math.inf))
    if low.numel() > 1 or high.numel() > 1:
        return None
    found = (low.item(), high.item())
    return None if found == LINE else found


def _sum(values: Tensor, num_dims: int) -> Tensor:
    """Over the last dimensions."""
    return values.flatten(values.ndim - num_dims).sum(-1) if num_dims else values
