"""What the predictions of many draws say together: their mean, and where their uncertainty comes from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Uncertainty(NamedTuple):
    """Uncertainty of a binary prediction, in bits: 1 is a coin flip, 0 is certainty."""

    total: Tensor  # (M,), entropy of the mean prediction
    aleatoric: Tensor  # (M,), mean entropy of the single predictions
    epistemic: Tensor  # (M,), mutual information of label and parameters: total - aleatoric


def predictive_mean(probabilities: Tensor) -> Tensor:
    """Mean over all draws: ``(..., M)`` -> ``(M,)``."""
    return probabilities.reshape(-1, probabilities.shape[-1]).mean(0)


def split_uncertainty(probabilities: Tensor) -> Uncertainty:
    """Split the entropy of a binary prediction into what more data could remove (epistemic) and the rest (aleatoric).

    H(mean p) = mean H(p) + I(y; theta)   (Depeweg et al. 2018; BALD of Houlsby et al. 2011)

    Args:
        probabilities: of class 1 under each draw, shape ``(..., M)``, all leading dimensions draws.

    Raises:
        ValueError: if a value lies outside [0, 1].
    """
    outside = ~((probabilities >= 0) & (probabilities <= 1))
    if outside.any():
        raise ValueError(f"probabilities must lie in [0, 1], got {probabilities[outside][0].item():g}")
    total = entropy(predictive_mean(probabilities))
    aleatoric = predictive_mean(entropy(probabilities))
    # Jensen's inequality makes the difference non-negative; rounding can miss it by some 1e-16.
    return Uncertainty(total, aleatoric, (total - aleatoric).clamp(min=0))


def entropy(p: Tensor) -> Tensor:
    """Entropy of Bernoulli(p) in bits, elementwise; 0 at p = 0 and p = 1."""
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)
