"""Likelihoods: what the network's outputs say about the targets. Thin, resting on torch.distributions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from bnn_utils import _check


class Likelihood(ABC):
    """A distribution of each target given the network's output there.

    A new likelihood says two things: which targets it takes (`targets`) and the distribution that outputs mean
    (`distribution`). The rest follows; `log_probs` and `grad` may be overridden where they have a closed form. Log
    likelihoods are sums over points, never means: twice the data weigh twice as much against the prior.
    """

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
        """Log likelihood of each point: outputs ``(..., N, K)`` -> ``(..., N)``."""
        return self.distribution(outputs).log_prob(y)

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log likelihood, summed over points: outputs ``(..., N, K)`` -> ``(...)``."""
        return self.log_probs(outputs, y).sum(-1)

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of the log likelihood with respect to the outputs, in their shape."""
        return value_and_grad(lambda outputs: self.log_prob(outputs, y), outputs)[1]

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected target: outputs ``(..., N, K)`` -> ``(..., N)``; of classes, their probabilities ``(..., N, K)``."""
        return self.distribution(outputs).mean

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


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
            of the outputs are log scales: the same for all points if the network ends in `LogScale`, which makes the
            noise one more element of theta; different ones if the network computes them.

    Raises:
        ValueError: if the scale is not positive and finite.
    """

    def __init__(self, scale: float | None = None) -> None:
        if scale is not None:
            scale = _check.number("scale", scale)
            if not 0 < scale < math.inf:
                raise ValueError(f"the noise's scale (a standard deviation) must be positive and finite, got {scale:g}")
        self.scale = scale

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
        return y.to(outputs.dtype)

    def distribution(self, outputs: Tensor) -> Distribution:
        mean, log_scale = self._split(outputs)
        scale = torch.full_like(mean, self.scale) if log_scale is None else log_scale.exp()
        if mean.shape[-1] == 1:
            return Normal(mean.squeeze(-1), scale.squeeze(-1), validate_args=False)
        return Independent(Normal(mean, scale, validate_args=False), 1)

    def log_probs(self, outputs: Tensor, y: Tensor) -> Tensor:
        residual, log_scale = self._residual(outputs, y)
        if log_scale is None:
            log_scale = math.log(self.scale)
        return (-0.5 * residual.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        residual, log_scale = self._residual(outputs, y)
        if log_scale is None:
            return residual / self.scale
        return torch.cat([residual * (-log_scale).exp(), residual.square() - 1], dim=-1)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        return (outputs, None) if self.scale is not None else outputs.chunk(2, dim=-1)

    def _residual(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(y - mean) / scale``, shape ``(..., N, K)``, and the log scale."""
        mean, log_scale = self._split(outputs)
        y = y[..., None] if mean.shape[-1] == 1 else y
        return (y - mean) * (1 / self.scale if log_scale is None else (-log_scale).exp()), log_scale

    def __repr__(self) -> str:
        return "Gaussian()" if self.scale is None else f"Gaussian(scale={self.scale:g})"


class LogScale(nn.Module):
    """A last layer for `Gaussian`: puts log scales, which are parameters, beside the outputs that come in.

    ``(..., K) -> (..., 2 K)``: the noise is inferred together with the weights, the same at all points.

    Args:
        num: K, how many outputs come in.
    """

    def __init__(self, num: int = 1) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(_check.whole("num", num, 1)))

    def forward(self, x: Tensor) -> Tensor:
        num = x.shape[-1]
        if num != len(self.log_scale):
            raise ValueError(f"LogScale({len(self.log_scale)}) follows a layer with {num} outputs: say LogScale({num})")
        return torch.cat([x, self.log_scale.expand_as(x)], dim=-1)


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
        if not y.is_meta and not found.support.check(y).all():
            wrong = y[~found.support.check(y)].flatten()
            raise ValueError(
                f"y holds {wrong[0].item():g}, which {type(found).__name__} cannot give: its support is {found.support}"
            )
        return y

    def distribution(self, outputs: Tensor) -> Distribution:
        # A trajectory that diverges has outputs that are NaN or infinite, which is for the sampler to reject; checks
        # in torch would end the run.
        with _unchecked():
            return self.function(outputs)

    def log_probs(self, outputs: Tensor, y: Tensor) -> Tensor:
        with _unchecked():
            return self.function(outputs).log_prob(y)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


@contextmanager
def _unchecked() -> Iterator[None]:
    """While it is open, torch.distributions check no arguments."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def value_and_grad(function: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """``function`` at inputs and its gradient by autograd; values must each depend on inputs of their own."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()  # the copy may be differentiated even if the original may not
        value = function(inputs)
        # Each value depends on its own inputs alone, so the gradient of the sum holds the gradients of all.
        (grad,) = torch.autograd.grad(value.sum(), inputs)
    return value.detach(), grad
