"""Engines: what turns a kernel into a chain.

An engine is a generator function

    transitions(kernel, posterior, theta, generator, compile, warmup) -> iterator of Transition

that yields the state of all chains after each transition, for as long as it is asked. In the first ``warmup``
transitions the kernel adapts. Counting, progress, interruption and storage are `bnn_utils.runs`' business and the same
for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bnn_utils.engines import builtin, hamiltorch
from bnn_utils.engines.transition import Kernel, Transition
from bnn_utils.posterior import Posterior

Engine = Callable[[Kernel, Posterior, Tensor, torch.Generator, bool, int], Iterator[Transition]]

ENGINES: dict[str, Engine] = {"builtin": builtin.transitions, "hamiltorch": hamiltorch.transitions}


def available() -> list[str]:
    """Names of the engines that can run here."""
    return [name for name in ENGINES if name != "hamiltorch" or hamiltorch.is_installed()]
