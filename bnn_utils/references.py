"""The reference posterior of the tutorial's problem, computed once and with care, to compare other samplers with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from bnn_utils.evidence import Estimate

FILE = "reference.npz"


@dataclass(frozen=True, eq=False)
class Reference:
    """What the posterior of the tutorial's problem says, with Monte Carlo standard errors.

    The problem: ``bnn_utils.tutorial.posterior()``.

    Attributes:
        grid: places, shape ``(625, 2)``, those of ``square_grid(num=25, limit=6.0)``.
        mean: posterior predictive probability of class 1 there, shape ``(625,)``.
        se: its Monte Carlo standard error, shape ``(625,)``.
        log_evidence: log p(y), every constant kept.
        how: how it was made.
    """

    grid: Tensor
    mean: Tensor
    se: Tensor
    log_evidence: Estimate
    how: str

    def __repr__(self) -> str:
        return (
            f"Reference({len(self.mean)} predictions with standard errors up to {self.se.max():.2g}, "
            f"log evidence {self.log_evidence}; {self.how})"
        )


def reference() -> Reference:
    """The reference posterior that comes with this package; ``tools/reference.py`` makes it."""
    with (resources.files("bnn_utils") / "resources" / FILE).open("rb") as stream, np.load(stream) as file:
        return Reference(
            grid=torch.from_numpy(file["grid"]),
            mean=torch.from_numpy(file["mean"]),
            se=torch.from_numpy(file["se"]),
            log_evidence=Estimate(*file["log_evidence"].tolist()),
            how=str(file["how"]),
        )
