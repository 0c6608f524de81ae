"""From theta, a vector of any real numbers, to a network's parameters: bounds, and scales that are inferred."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.constraint_registry import biject_to
from torch.distributions.transforms import ExpTransform

from bnn_utils.distributions import LINE, interval, support_of, unchecked
from bnn_utils.flat import FlatModule

FAR = 30.0  # elements of theta that bring a number this near to its bound leave no room for a step


class Link:
    r"""What makes parameters ``(..., P)`` of theta ``(..., D)``: P elements, and after these perhaps log scales.

    ``parameter_k = f_k(theta_k) exp(theta_s(k))``, where f_k is one of torch's transforms, or the identity, and s(k)
    the place of the log scale that element k has, if it has one.

    Args:
        names: one label for each parameter.
        transforms: of slices of theta, none of them overlapping.
        log_scales: labels of the log scales.
        scale_of: for each parameter which of them it has, ``(P,)``, -1 for none.

    Attributes:
        names: one label for each element of theta: ``0.weight[1,0]``, ``log(noise)`` or ``log_scale(0.weight)``, say.
        dim: D.
    """

    def __init__(
        self, names: list[str], transforms: list[tuple[slice, Transform]], log_scales: list[str], scale_of: Tensor
    ) -> None:
        self.num_parameters, self.dim = len(names), len(names) + len(log_scales)
        self.transforms = transforms
        self.names = [*names, *log_scales]
        for place, transform in transforms:
            what = "log" if isinstance(transform, ExpTransform) else "unconstrained"
            self.names[place] = [f"{what}({name})" for name in self.names[place]]
        self.scaled = (scale_of >= 0).nonzero().flatten()  # of the parameters
        self.scale_of = scale_of[self.scaled] + self.num_parameters  # places in theta

    def __call__(self, theta: Tensor) -> Tensor:
        """The parameters; differentiable."""
        parts, done = [], 0
        for place, transform in self.transforms:
            parts += [theta[..., done : place.start], transform(theta[..., place])]
            done = place.stop
        found = torch.cat([*parts, theta[..., done : self.num_parameters]], dim=-1)
        if len(self.scaled):
            found = found.index_copy(-1, self.scaled, found[..., self.scaled] * theta[..., self.scale_of].exp())
        return found

    def pull_back(self, theta: Tensor, parameters: Tensor, grad: Tensor) -> Tensor:
        """From the gradient by the parameters ``(C, P)`` to the one by theta ``(C, D)``."""
        found = theta.new_zeros(theta.shape)
        found[..., : self.num_parameters] = grad
        for place, transform in self.transforms:
            slope = transform.log_abs_det_jacobian(theta[..., place], parameters[..., place]).exp()
            found[..., place] *= slope
        if len(self.scaled):
            found[..., self.scaled] *= theta[..., self.scale_of].exp()
            found.index_add_(-1, self.scale_of, (grad * parameters)[..., self.scaled])
        return found

    def theta(self, parameters: Tensor) -> Tensor:
        """One that makes these parameters, with all scales 1; 0 where one is out of its bounds, or just there."""
        found = parameters.new_zeros(*parameters.shape[:-1], self.dim)
        found[..., : self.num_parameters] = parameters
        for place, transform in self.transforms:
            wanted = parameters[..., place]
            start = transform.inv(wanted)
            # Out of bounds torch's inverses give NaN, or what leads to the bound.
            is_one = (start.abs() < FAR) & torch.isclose(transform(start), wanted, rtol=1e-3, atol=1e-6)
            found[..., place] = start.where(is_one, torch.zeros_like(start))
        return found


def to_support(distribution: Distribution, like: Tensor) -> Transform | None:
    """The transform from all real numbers to where a distribution of single numbers has a density; None if to all.

    Raises:
        ValueError: if that is no interval.
    """
    bounds = interval(distribution)
    if bounds is None:
        raise ValueError(
            f"{type(distribution).__name__}, with support {support_of(distribution)}, is no density of a number in an "
            "interval: an element of theta may be any real number, and is brought to positive numbers or between two "
            "bounds, but to no others"
        )
    low, high = bounds
    if bounds == LINE:
        return None
    if bounds == (0, math.inf):
        return ExpTransform()
    if high == math.inf:
        support: constraints.Constraint = constraints.greater_than(low)
    else:
        support = constraints.less_than(high) if low == -math.inf else constraints.interval(low, high)
    return unchecked(biject_to(support), like)


def of_distributions(flat: FlatModule, distributions: Mapping[str, Distribution]) -> Link | None:
    """The link of parameters that have to be where their distributions are; None where all may be any real number."""
    like = flat.ravel()
    found = [(flat.slices[name], to_support(one, like)) for name, one in distributions.items()]
    transforms = [(place, transform) for place, transform in found if transform is not None]
    none = torch.full((flat.dim,), -1, device=like.device)
    return Link(flat.names, transforms, [], none) if transforms else None
