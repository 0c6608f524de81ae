"""Engines: what turns a kernel into a chain.

An engine is a generator function

    transitions(posterior, kernel, theta, generator, compile) -> iterator of (theta (C, D), log_prob (C,), info)

that yields the state of all chains after each transition, for as long as it is asked. Counting, progress, interruption
and storage are `bnn_utils.runs`' business and the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bnn_utils.engines import builtin, hamiltorch
from bnn_utils.hmc import HMC, HMCInfo
from bnn_utils.posterior import Posterior

Engine = Callable[[Posterior, HMC, Tensor, torch.Generator, bool], Iterator[tuple[Tensor, Tensor, HMCInfo]]]

ENGINES: dict[str, Engine] = {"builtin": builtin.transitions, "hamiltorch": hamiltorch.transitions}


def available() -> list[str]:
    """Names of the engines that can run here."""
    return [name for name in ENGINES if name != "hamiltorch" or hamiltorch.is_installed()]
