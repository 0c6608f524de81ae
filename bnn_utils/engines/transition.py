"""What an engine yields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from bnn_utils.adaptation import ChEES
from bnn_utils.hmc import HMC, HMCInfo
from bnn_utils.tempering import ReplicaExchange

Kernel = HMC | ChEES | ReplicaExchange


class Transition(NamedTuple):
    """Where all chains are after one transition, and how they came there."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    info: HMCInfo  # (C,)
    kernel: Kernel  # that made it
    ladder: Mapping[str, Tensor] = {}  # what replica exchange records at all temperatures: name -> (C, K)
