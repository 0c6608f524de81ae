r"""Densities of single numbers in closed form, many elements of theta at once.

Each kind is a formula of a real number u with up to three constants, of which `value` is the log density but for a
constant and `slope` its derivative. A number that has to be positive is ``x = exp(u)``, and its density one of u:
``log p(exp(u)) + u``, the Jacobian included. So a few kinds hold for most of torch's distributions:

| kind | value | distributions |
|---|---|---|
| normal | ``-b (u - a)^2 / 2`` | Normal; LogNormal, of log x |
| student | ``-c log(1 + b (u - a)^2)`` | StudentT, Cauchy |
| laplace | ``-b abs(u - a)`` | Laplace |
| power | ``a u - b exp(c u)`` | of log x: Exponential, Gamma, Chi2, HalfNormal, InverseGamma, Weibull; flat densities |
| half_student | ``u - c log(1 + b exp(2 u))`` | of log x: HalfCauchy |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Chi2,
    Distribution,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Laplace,
    LogNormal,
    Normal,
    StudentT,
    Transform,
    TransformedDistribution,
    Weibull,
    constraints,
)
from torch.distributions.transforms import ExpTransform

from bnn_utils.distributions import interval
from bnn_utils.links import Link

Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of u and the constants a, b and c

VALUES: dict[str, Formula] = {
    "normal": lambda u, a, b, c: -0.5 * b * (u - a).square(),
    "student": lambda u, a, b, c: -c * torch.log1p(b * (u - a).square()),
    "laplace": lambda u, a, b, c: -b * (u - a).abs(),
    "power": lambda u, a, b, c: a * u - b * (c * u).exp(),
    "half_student": lambda u, a, b, c: u - c * torch.logaddexp(2 * u + b.log(), torch.zeros_like(u)),
}
SLOPES: dict[str, Formula] = {
    "normal": lambda u, a, b, c: -b * (u - a),
    "student": lambda u, a, b, c: -2 * b * c * (u - a) / (1 + b * (u - a).square()),
    "laplace": lambda u, a, b, c: -b * (u - a).sign(),
    "power": lambda u, a, b, c: a - b * c * (c * u).exp(),
    "half_student": lambda u, a, b, c: 1 - 2 * c * torch.sigmoid(2 * u + b.log()),
}


class Family(NamedTuple):
    """A density of one real number: its kind, constants, and the constant that makes it one."""

    kind: str
    constants: tuple[float, float, float]
    log_normalizer: float


class Log(TransformedDistribution):
    """The distribution of the logarithm of a positive number, such as that of a noise scale in `LogScale`.

    Args:
        distribution: of the number, such as ``HalfCauchy(1.0)``.

    Raises:
        ValueError: if it is not one of all positive numbers.
    """

    def __init__(self, distribution: Distribution) -> None:
        if interval(distribution) != (0.0, math.inf):
            raise ValueError(
                f"{distribution} is not a distribution of all positive numbers, which have a logarithm: give one such "
                "as HalfCauchy(1.0)"
            )
        self.of = distribution
        super().__init__(distribution, ExpTransform().inv, validate_args=False)

    def __repr__(self) -> str:
        return f"Log({self.of})"


def family(distribution: Distribution) -> Family | None:
    """The density of a number, or of the logarithm of one that has to be positive; None where no formula is known."""
    kind, d = type(distribution), distribution
    if type(d) is Log:
        return family(d.of)  # whose formula is of the logarithm

    def of(*names: str) -> list[float]:
        return [torch.as_tensor(getattr(d, name)).double().item() for name in names]

    if kind in (Normal, LogNormal):
        loc, scale = of("loc", "scale")
        return Family("normal", (loc, scale**-2, 0.0), -math.log(scale) - 0.5 * math.log(2 * math.pi))
    if kind in (StudentT, Cauchy):
        loc, scale = of("loc", "scale")
        df = of("df")[0] if kind is StudentT else 1.0
        constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi) - math.log(scale)
        return Family("student", (loc, 1 / (df * scale**2), (df + 1) / 2), constant)
    if kind is Laplace:
        loc, scale = of("loc", "scale")
        return Family("laplace", (loc, 1 / scale, 0.0), -math.log(2 * scale))
    if kind is HalfCauchy:
        (scale,) = of("scale")
        return Family("half_student", (0.0, scale**-2, 1.0), math.log(2 / (math.pi * scale)))
    if kind is HalfNormal:
        (scale,) = of("scale")
        return Family("power", (1.0, 0.5 * scale**-2, 2.0), 0.5 * math.log(2 / math.pi) - math.log(scale))
    if kind is Exponential:
        (rate,) = of("rate")
        return Family("power", (1.0, rate, 1.0), math.log(rate))
    if kind in (Gamma, Chi2):
        shape, rate = of("concentration", "rate")
        return Family("power", (shape, rate, 1.0), shape * math.log(rate) - math.lgamma(shape))
    if kind is InverseGamma:
        shape, rate = of("concentration", "rate")
        return Family("power", (-shape, rate, -1.0), shape * math.log(rate) - math.lgamma(shape))
    if kind is Weibull:
        scale, shape = of("scale", "concentration")
        return Family("power", (shape, scale**-shape, shape), math.log(shape) - shape * math.log(scale))
    if isinstance(d, Flat):
        return Family("power", (float(d.is_positive), 0.0, 0.0), 0.0)
    return None


class Flat(Distribution):
    """The improper prior of density 1 everywhere, for one number; or for a positive one.

    It has no draws: chains have to be started somewhere (``init=``). Whether the posterior is proper is for the caller
    to know: with it, more than one parameter that the data say nothing about makes draws that wander off for ever.

    Args:
        is_positive: whether the number is positive.
    """

    has_rsample = False
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, is_positive: bool = False) -> None:
        self.is_positive = is_positive
        super().__init__(validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.positive if self.is_positive else constraints.real

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        raise ValueError(
            "a flat prior has no draws: say where chains start, with init= a tensor of shape (D,) for all or (C, D)"
        )

    def __repr__(self) -> str:
        return f"Flat({'is_positive=True' if self.is_positive else ''})"


class Elements(NamedTuple):
    """Elements of theta with densities of one kind."""

    kind: str
    places: Tensor  # (n,), in theta
    constants: Tensor  # (3, n)


def grouped(families: Sequence[Family], like: Tensor) -> tuple[list[Elements], float]:
    """Those of elements 0, 1, ..., by their kinds, in the dtype and on the device of ``like``; and their constant."""
    groups = []
    for kind in VALUES:
        places = [place for place, one in enumerate(families) if one.kind == kind]
        if places:
            constants = torch.tensor([families[place].constants for place in places], dtype=torch.float64)
            where = torch.tensor(places, device=like.device)
            groups.append(Elements(kind, where, constants.T.to(like, copy=True).contiguous()))
    return groups, math.fsum(one.log_normalizer for one in families)


class Part(NamedTuple):
    """Elements of theta that follow each other, alike; a draw from their distribution goes back by the transform."""

    num: int
    distribution: Distribution
    transform: Transform | None = None

    def draw(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        values = self.distribution.sample((*shape, self.num)).to(like)
        return values if self.transform is None else self.transform.inv(values)


def drawn(parts: Sequence[Part], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draws ``(*shape, D)`` of all parts."""
    return torch.cat([part.draw(shape, like) for part in parts], dim=-1)


class Centred(NamedTuple):
    """Elements of theta that are normal with mean 0 and a standard deviation whose log is an element as well."""

    places: Tensor  # (n,)
    scale_of: Tensor  # (n,), places of the log scales

    def terms(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Squared elements in units of their scales ``(..., n)``, and log scales."""
        log_scales = theta[..., self.scale_of]
        return (theta[..., self.places] * (-log_scales).exp()).square(), log_scales


class ClosedForm(Distribution):
    """A distribution of vectors of independent elements, each of a `Family`, but for `Centred` ones.

    Args:
        parts: what they are drawn from, in the order of theta.
        families: one for each element.
        like: a tensor of the wanted dtype, on the wanted device.
        link: what makes parameters of theta, if that is not theta itself.
        centred: elements that belong to a scale; in the order of theta they are standard normal.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        families: Sequence[Family],
        like: Tensor,
        link: Link | None = None,
        centred: Centred | None = None,
    ) -> None:
        self.parts, self._like, self.link, self.centred = list(parts), like[:0], link, centred
        flat = Family("power", (0.0, 0.0, 0.0), 0.0)
        apart = set() if centred is None else set(centred.places.tolist())
        self.groups, constant = grouped([flat if k in apart else one for k, one in enumerate(families)], like)
        self.log_normalizer = constant - 0.5 * math.log(2 * math.pi) * len(apart)
        super().__init__(event_shape=torch.Size([len(families)]), validate_args=False)

    def log_prob(self, theta: Tensor) -> Tensor:
        total = torch.full_like(theta[..., 0], self.log_normalizer)
        for kind, places, constants in self.groups:
            total = total + VALUES[kind](theta[..., places], *constants).sum(-1)
        if self.centred is not None:
            squares, log_scales = self.centred.terms(theta)
            total = total - (0.5 * squares + log_scales).sum(-1)
        return total

    def grad(self, theta: Tensor) -> Tensor:
        """Of the log density."""
        found = torch.empty_like(theta)
        for kind, places, constants in self.groups:
            found[..., places] = SLOPES[kind](theta[..., places], *constants)
        if self.centred is not None:
            places, scale_of = self.centred
            squares, log_scales = self.centred.terms(theta)
            found[..., places] -= theta[..., places] * (-2 * log_scales).exp()
            found.index_add_(-1, scale_of, squares - 1)
        return found

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        theta = drawn(self.parts, tuple(sample_shape), self._like)
        if self.centred is not None:
            places, scale_of = self.centred
            theta[..., places] *= theta[..., scale_of].exp()
        return theta
