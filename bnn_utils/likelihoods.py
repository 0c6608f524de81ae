"""Likelihoods: what the network's outputs say about the targets. Thin, resting on torch.distributions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F


class Likelihood(ABC):
    """A distribution of each target given the network's output there.

    A new likelihood says two things: which targets it takes (`targets`) and the distribution that outputs mean
    (`distribution`). The rest follows; `log_prob` and `grad` may be overridden where they have a closed form.
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

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log likelihood, summed over points: outputs ``(..., N, K)`` -> ``(...)``."""
        return self.distribution(outputs).log_prob(y).sum(-1)

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of the log likelihood with respect to the outputs, in their shape."""
        return value_and_grad(lambda outputs: self.log_prob(outputs, y), outputs)[1]

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected target: outputs ``(..., N, K)`` -> ``(..., N)``."""
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

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        logits = outputs.squeeze(-1)
        return -F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").sum(-1)

    def grad(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (y - torch.sigmoid(outputs.squeeze(-1))).unsqueeze(-1)


def value_and_grad(function: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """``function`` at inputs and its gradient by autograd; values must each depend on inputs of their own."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()  # the copy may be differentiated even if the original may not
        value = function(inputs)
        # Each value depends on its own inputs alone, so the gradient of the sum holds the gradients of all.
        (grad,) = torch.autograd.grad(value.sum(), inputs)
    return value.detach(), grad
