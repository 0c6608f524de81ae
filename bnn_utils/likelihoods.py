"""Likelihoods: what the network's outputs say about the targets. Thin, resting on torch.distributions."""

from __future__ import annotations

import copy
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from textwrap import shorten
from types import FunctionType
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from bnn_utils import _check, distributions
from bnn_utils.gradients.autograd import value_and_grad
from bnn_utils.layers import Standardise

# Of noise by softplus, which else would round to 0 where an output is large and negative.
SMALLEST_SCALE = 1e-3

# What a method of a likelihood follows from, unless a class gives it a closed form; a gradient follows from all of it.
_SOURCES = {"log_probs": ("distribution",), "mean": ("distribution",), "log_prob": ("log_probs", "distribution")}
_NO_PART_OF_THE_DENSITY = {"targets", "mean", "grad", "_abc_impl"}


class Likelihood(ABC):
    """A distribution of each target given the network's output there.

    A new likelihood says two things: which targets it takes (`targets`) and the distribution that outputs mean
    (`distribution`). The rest follows; `log_probs` and `grad` may be overridden where they have a closed form. Log
    likelihoods are sums over points, never means: twice the data weigh twice as much against the prior. The log
    likelihood of a point depends on the outputs at that point alone.

    A subclass that changes the density keeps no closed form that belongs to another one: what it doesn't override
    follows from what it does, gradients by autograd. (To let some points count more than others needs no subclass:
    give `Data` weights.)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, sources in _SOURCES.items():
            if any(_depth(cls, source) < _depth(cls, name) for source in sources):
                setattr(cls, name, vars(Likelihood)[name])
        # A closed-form gradient may use whatever its class has, such as Gaussian's residual.
        place = _depth(cls, "grad")
        below, above = (set().union(*map(vars, part)) for part in (cls.__mro__[:place], cls.__mro__[place:]))
        if any(not name.startswith("__") for name in (below & above) - _NO_PART_OF_THE_DENSITY):
            cls.grad = Likelihood.grad  # type: ignore[method-assign]
        if cls.__module__ == __name__:  # the closed forms here ask torch.distributions for nothing
            return
        for name in ("distribution", "grad", *_SOURCES):
            written = vars(cls).get(name)
            if isinstance(written, FunctionType) and written is not vars(Likelihood)[name]:
                setattr(cls, name, _computing(written))

    @abstractmethod
    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Check targets and outputs against each other and return the targets in the dtype that `distribution` takes.

        Args:
            y: targets, shape ``(N, ...)``.
            outputs: the network's outputs at the same points for some theta, shape ``(N, ...)``.

        Raises:
            ValueError: if the targets or the shape of the outputs are none of this likelihood's.
        """

    @abstractmethod
    def distribution(self, outputs: Tensor) -> Distribution:
        """Outputs of shape ``(..., N, K)`` to a distribution of batch shape ``(..., N)``."""

    def log_probs(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log likelihood of each point: outputs ``(..., N, K)`` -> ``(..., N)``.

        NaN where outputs make no distribution, such as one with a negative rate, and -inf where it can't give y.
        """
        with _unchecked():
            return distributions.log_prob(self.distribution(outputs), y)

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log likelihood, summed over points: outputs ``(..., N, K)`` -> ``(...)``."""
        return self.log_probs(outputs, y).sum(-1)

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of the log likelihood with respect to the outputs, in their shape."""
        return value_and_grad(lambda outputs: self.log_prob(outputs, y), outputs)[1]

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected target: outputs ``(..., N, K)`` -> ``(..., N)``; of classes, their probabilities ``(..., N, K)``.

        Raises:
            ValueError: if the distribution has no mean, as Cauchy's.
        """
        with _unchecked():
            found = self.distribution(outputs)
            mean = distributions.mean(found)
            # Outputs of a draw that diverged may be large enough for a mean to overflow: then there is one at 0.
            if mean is None or (outputs.isfinite().any() and not mean.isfinite().any()):
                at_zero = distributions.mean(self.distribution(torch.zeros_like(outputs)))
                if mean is None or at_zero is None or not at_zero.isfinite().any():
                    raise ValueError(
                        f"{type(found).__name__} has no mean, or torch knows none, so there is no expected target to "
                        "predict: look at quantiles of simulated targets instead, posterior.simulate(draws, generator)"
                    )
        return mean

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _depth(kind: type, name: str) -> int:
    """How far up in the order of its classes an attribute was written last."""
    return next(place for place, one in enumerate(kind.__mro__) if name in vars(one))


def _computing(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with torch.distributions that check no arguments: what diverged is for the sampler to reject."""

    @wraps(method)
    def unchecked(*args: Any, **kwargs: Any) -> Any:
        with _unchecked():
            return method(*args, **kwargs)

    return unchecked


class Weighted(Likelihood):
    """A likelihood under which each point counts as often as its weight says: ``(N,)``, or of lanes ``(C, N)``."""

    def __init__(self, likelihood: Likelihood, weights: Tensor) -> None:
        self.likelihood, self.weights = likelihood, weights

    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        return self.likelihood.targets(y, outputs)

    def distribution(self, outputs: Tensor) -> Distribution:
        return self.likelihood.distribution(outputs)

    def log_probs(self, outputs: Tensor, y: Tensor) -> Tensor:
        # Where the weight is 0, what is impossible counts for nothing either.
        return (self.weights * self.likelihood.log_probs(outputs, y)).masked_fill(self.weights == 0, 0)

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.weights.unsqueeze(-1) * self.likelihood.grad(outputs, y)


class Bernoulli(Likelihood):
    """Two classes: ``y_i ~ Bernoulli(sigmoid(output_i))``, one logit per point.

    Computed from logits, ``log p(y | z) = y z - log(1 + e^z)``, so that nothing overflows or rounds to log 0.
    """

    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        if outputs.shape != (len(y), 1):
            raise ValueError(
                f"Bernoulli needs one logit per point, outputs of shape ({len(y)}, 1); this network gives "
                f"{tuple(outputs.shape)}: end it with nn.Linear(..., 1) and no sigmoid"
            )
        if y.ndim != 1:
            raise ValueError(f"Bernoulli needs labels of shape (N,), got {tuple(y.shape)}")
        wrong = y[:0] if y.is_meta else y[(y != 0) & (y != 1)].unique()
        if len(wrong):
            raise ValueError(
                f"Bernoulli needs labels 0 and 1, but y also holds {', '.join(f'{v:g}' for v in wrong[:5].tolist())}"
            )
        return y.to(outputs.dtype)

    def distribution(self, outputs: Tensor) -> torch.distributions.Bernoulli:
        return torch.distributions.Bernoulli(logits=outputs.squeeze(-1), validate_args=False)

    def log_probs(self, outputs: Tensor, y: Tensor) -> Tensor:
        logits = outputs.squeeze(-1)
        return -F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none")

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (y - torch.sigmoid(outputs.squeeze(-1))).unsqueeze(-1)


class Categorical(Likelihood):
    """K classes: ``y_i ~ Categorical(softmax(outputs_i))``, one logit for each class and point.

    The prior's K logits have one direction more than the softmax needs; that is usual, and the prior takes care of it.
    """

    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        if outputs.ndim != 2 or len(outputs) != len(y) or outputs.shape[1] < 2:
            raise ValueError(
                f"Categorical needs a logit for each class and point, outputs of shape ({len(y)}, K) with K >= 2; this "
                f"network gives {tuple(outputs.shape)}: end it with nn.Linear(..., K) and no softmax"
            )
        if y.ndim != 1:
            raise ValueError(
                f"Categorical needs class numbers of shape (N,), got {tuple(y.shape)}; of one-hot rows take y.argmax(1)"
            )
        num = outputs.shape[1]
        wrong = y[:0] if y.is_meta else y[(y < 0) | (y >= num) | (y != y.long())].unique()
        if len(wrong):
            raise ValueError(
                f"Categorical needs class numbers 0 to {num - 1}, one for each of the network's {num} outputs, but y "
                f"also holds {', '.join(f'{v:g}' for v in wrong[:5].tolist())}"
            )
        return y.long()

    def distribution(self, outputs: Tensor) -> torch.distributions.Categorical:
        return torch.distributions.Categorical(logits=outputs, validate_args=False)

    def log_probs(self, outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.log_softmax(-1).gather(-1, y.expand(outputs.shape[:-1])[..., None])[..., 0]

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        # Not by F.one_hot, which looks at the labels' values: that can be neither compiled nor left to a GPU's queue.
        is_class = y[..., None] == torch.arange(outputs.shape[-1], device=y.device)
        return is_class.to(outputs.dtype) - outputs.softmax(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)


class Gaussian(Likelihood):
    """Real targets with normal noise: ``y_i ~ Normal(mean_i, scale^2)``.

    Args:
        scale: the noise's standard deviation, where it is known: then an output is a mean. Without it the second half
            of the outputs say the scales: the same for all points if the network ends in `LogScale`, which makes the
            noise one more element of theta; different ones if the network computes them.
        link: from such an output to a scale. "exp" takes it for the scale's logarithm. "softplus" takes ``0.001 +
            log(1 + e^output)``, which neither overflows nor comes near 0: for noise that the network computes, where
            draws from a prior give outputs of some hundred, at which an exponential ends all arithmetic.
        units: ``Standardise(train.y)``, where outputs are to be standardised numbers: the mean is ``m + s mean`` and
            the scale ``s scale`` then, for the m and s of these targets. Predictions, noise and log likelihoods are in
            the reader's units all the same, and the prior is one of functions in standard units.

    Raises:
        ValueError: if the scale is not positive and finite, or the units are of other targets.
    """

    def __init__(
        self, scale: float | None = None, link: Literal["exp", "softplus"] = "exp", units: Standardise | None = None
    ) -> None:
        if scale is not None:
            scale = _check.number("scale", scale)
            if not 0 < scale < math.inf:
                raise ValueError(f"the noise's scale (a standard deviation) must be positive and finite, got {scale:g}")
        _check.choice("link", link, ("exp", "softplus"))
        if units is not None:
            _check.instance("units", units, Standardise, "what standardises targets, such as Standardise(train.y)")
        self.scale, self.link, self.units = scale, link, copy.deepcopy(units)

    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        width = 1 if y.ndim == 1 else y.shape[-1]
        if y.ndim > 2 or y.shape[1:] == (1,):
            raise ValueError(
                f"Gaussian needs targets of shape (N,), or (N, K) with K >= 2 numbers each, got {tuple(y.shape)}"
                f"{': pass y[:, 0]' if y.shape[1:] == (1,) else ''}"
            )
        wanted = (len(y), width if self.scale is not None else 2 * width)
        if outputs.shape != wanted:
            hint = (
                f"end it with nn.Linear(..., {width})"
                if self.scale is not None
                else f"end it with nn.Linear(..., {width}), LogScale({width}), or give the noise as Gaussian(scale=...)"
            )
            what = "a mean" if self.scale is not None else "a mean and a log scale"
            raise ValueError(
                f"{self!r} needs {what} for each target, outputs of shape {wanted}; this network gives "
                f"{tuple(outputs.shape)}: {hint}"
            )
        if self.units is not None and self.units.mean.shape != y.shape[1:]:
            raise ValueError(
                f"the units are of targets of shape {('N', *self.units.mean.shape)}, and these have {tuple(y.shape)}: "
                "say Gaussian(units=Standardise(data.y))"
            )
        return y.to(outputs.dtype)

    def like(self, x: Tensor) -> Gaussian:
        """The same, with units in the dtype of x and where x lies, so that no call has to move them."""
        if self.units is None:
            return self
        other = copy.copy(self)
        other.units = copy.deepcopy(self.units).to(x)
        return other

    def in_units(self, y: Tensor) -> Tensor:
        """Targets as outputs speak of them: standardised, if there are units."""
        return y if self.units is None else self.units(y)

    def distribution(self, outputs: Tensor) -> Distribution:
        mean, of_scale = self._split(outputs)
        scale = torch.full_like(mean, cast("float", self.scale)) if of_scale is None else self._scale(of_scale)
        if self.units is not None:
            mean, scale = self.units.back(mean), self.units.sd.to(scale) * scale
        if mean.shape[-1] == 1:
            return Normal(mean.squeeze(-1), scale.squeeze(-1), validate_args=False)
        return Independent(Normal(mean, scale, validate_args=False), 1)

    def log_probs(self, outputs: Tensor, y: Tensor) -> Tensor:
        residual, of_scale = self._residual(outputs, y)
        log_scale = self._log_scale(of_scale)
        if self.units is not None:
            log_scale = log_scale + self.units.sd.to(outputs).log()
        return (-0.5 * residual.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        residual, of_scale = self._residual(outputs, y)
        if of_scale is None:
            return residual / self.scale  # type: ignore[operator]
        inverse, by_log_scale = self._inverse(of_scale), residual.square() - 1
        if self.link == "softplus":
            by_log_scale = by_log_scale * torch.sigmoid(of_scale) * inverse
        return torch.cat([residual * inverse, by_log_scale], dim=-1)

    def _scale(self, output: Tensor) -> Tensor:
        return output.exp() if self.link == "exp" else F.softplus(output) + SMALLEST_SCALE

    def _log_scale(self, output: Tensor | None) -> Tensor | float:
        if output is None:
            return math.log(self.scale)  # type: ignore[arg-type]
        return output if self.link == "exp" else self._scale(output).log()

    def _inverse(self, output: Tensor | None) -> Tensor | float:
        if output is None:
            return 1 / self.scale  # type: ignore[operator]
        return (-output).exp() if self.link == "exp" else 1 / self._scale(output)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Means, and the outputs that say the scale: None where, and only where, it is known."""
        return (outputs, None) if self.scale is not None else outputs.chunk(2, dim=-1)  # type: ignore[return-value]

    def _residual(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(y - mean) / scale``, shape ``(..., N, K)``, and the outputs that say the scale."""
        mean, of_scale = self._split(outputs)
        y = self.in_units(y)
        y = y[..., None] if mean.shape[-1] == 1 else y
        return (y - mean) * self._inverse(of_scale), of_scale

    def __repr__(self) -> str:
        said = [] if self.scale is None else [f"scale={self.scale:g}"]
        said += [] if self.link == "exp" else [f"link={self.link!r}"]
        said += [] if self.units is None else [f"units={self.units!r}"]
        return f"Gaussian({', '.join(said)})"


class ByDistribution(Likelihood):
    """Any likelihood, as a function of the outputs.

    Args:
        function: outputs ``(..., N, K)`` to a distribution of batch shape ``(..., N)`` over single targets; made of
            torch's operations, so that it can be differentiated.
    """

    def __init__(self, function: Callable[[Tensor], Distribution]) -> None:
        self.function = function

    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        found = self.distribution(outputs)
        wanted = "a distribution of torch.distributions, as lambda outputs: Poisson(outputs[..., 0].exp()) does"
        if not isinstance(found, Distribution):
            raise TypeError(f"the likelihood's function must return {wanted}, got {_check.told(found)}")
        if found.batch_shape != (len(y),) or found.event_shape != y.shape[1:]:
            raise ValueError(
                f"the likelihood's function makes a distribution of batch shape {tuple(found.batch_shape)} and event "
                f"shape {tuple(found.event_shape)} from outputs of shape {tuple(outputs.shape)}; targets of shape "
                f"{tuple(y.shape)} need {(len(y),)} and {tuple(y.shape[1:])}: squeeze the outputs' last dimension, or "
                "use torch.distributions.Independent"
            )
        y = y.to(outputs.dtype)
        _check_support(found, y)
        return y

    def distribution(self, outputs: Tensor) -> Distribution:
        # A trajectory that diverges has outputs that are NaN or infinite, which is for the sampler to reject; checks
        # in torch would end the run.
        with _unchecked():
            return self.function(outputs)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


def _check_support(distribution: Distribution, y: Tensor) -> None:
    """Raise where y holds what the distribution can't give."""
    support = distributions.support_of(distribution)
    if support is not None and not y.is_meta and not (fits := support.check(y)).all():
        where = "" if distributions.has_fixed_support(distribution) else " at this network's own parameters"
        raise ValueError(
            f"y holds {y[~fits].flatten()[0].item():g}, which {type(distribution).__name__} cannot give{where}: its "
            f"support is {shorten(str(support), 100, placeholder=' ...')}"
        )


def check_targets(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> None:
    """Raise where y holds what a likelihood that goes by its distribution can't give for any outputs."""
    if type(likelihood).log_probs is Likelihood.log_probs:
        found = likelihood.distribution(outputs)
        if distributions.has_fixed_support(found):
            _check_support(found, y)


def check_likelihood(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> None:
    """Compare the parts of a likelihood with each other, at a network's outputs ``(N, K)``.

    Raises:
        ValueError: if a method hides behind an attribute, the gradient is another density's, or either raises an error
            for outputs that are no numbers.
    """
    kind, name = type(likelihood), type(likelihood).__name__
    hidden = [name for name in vars(likelihood) if callable(getattr(kind, name, None))]
    if hidden:
        raise ValueError(
            f"this {name} has an attribute {hidden[0]!r} that hides its method, and what follows from that doesn't "
            f"follow the attribute: write a class, class Mine({name}), with a method {hidden[0]}"
        )
    if outputs.is_meta:
        return
    likelihood.log_prob(outputs, y)
    diverged = torch.full_like(outputs, math.nan)
    try:
        likelihood.log_prob(diverged, y), likelihood.grad(diverged, y)
    except Exception as error:
        raise ValueError(
            f"the likelihood {likelihood!r} raises an error where outputs are NaN, which would end a run when a "
            f"trajectory diverges: {first_line(error)} Let it give NaN, which is rejected: leave validate_args out; "
            "give a MultivariateNormal its scale_tril, as torch decomposes a covariance at once"
        ) from error
    if kind.grad is not Likelihood.grad:
        try:
            expected = Likelihood.grad(likelihood, outputs, y)
        except RuntimeError:  # autograd can't go through this log_prob: that is why it has a gradient of its own
            return
        off, largest = (likelihood.grad(outputs, y) - expected).abs().max(), expected.abs().max()
        if off > (1e-2 + 4 * torch.finfo(outputs.dtype).eps) * largest + 1e-6:
            raise ValueError(
                f"{name}.grad is not the gradient of its log_prob: at the network's own parameters it is off by "
                f"{off:g}, where autograd finds elements of up to {largest:g}; a class without grad has it by autograd"
            )


def first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def check_log_probs(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> None:
    """Raise unless `log_prob` is the sum of `log_probs`, as it is where a class doesn't override it."""
    if type(likelihood).log_prob is Likelihood.log_prob:
        return
    total, parts = likelihood.log_prob(outputs, y), likelihood.log_probs(outputs, y).sum(-1)
    if not torch.allclose(total, parts, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise ValueError(
            f"{type(likelihood).__name__} has a log_prob of its own, {total.flatten()[0]:g} here, which is not the sum "
            f"of its log_probs, {parts.flatten()[0]:g}, so that points have no log likelihoods: override log_probs"
        )


class _DefaultHere(int):
    """The default of torch.distributions' checks as it was, but False in threads inside of `_unchecked`."""

    lock = threading.Lock()
    num_inside = 0
    here = threading.local()

    def __bool__(self) -> bool:
        return self != 0 and not getattr(self.here, "depth", 0)


@contextmanager
def _unchecked() -> Iterator[None]:
    """While it is open, torch.distributions check no arguments in this thread.

    Whether they do is said by one attribute for all threads. As long as any thread is inside, it is one that answers
    each thread for itself; the last one out puts back what was there.
    """
    kind = _DefaultHere
    with kind.lock:
        kind.num_inside += 1
        if not isinstance(Distribution._validate_args, kind):
            Distribution._validate_args = kind(Distribution._validate_args)  # type: ignore[assignment]
    kind.here.depth = getattr(kind.here, "depth", 0) + 1
    try:
        yield
    finally:
        kind.here.depth -= 1
        with kind.lock:
            kind.num_inside -= 1
            if kind.num_inside == 0 and isinstance(Distribution._validate_args, kind):
                Distribution._validate_args = Distribution._validate_args != 0
