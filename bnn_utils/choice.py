"""Which sampler a posterior gets when nobody says: the one that was best, by a table, for its kind and size."""

from __future__ import annotations

from bnn_utils.kernels.base import Kernel
from bnn_utils.kernels.chees import ChEES
from bnn_utils.kernels.hmc import HMC
from bnn_utils.kernels.nuts import NUTS
from bnn_utils.posterior import Posterior

LARGE = 256  # parameters


def choose(posterior: Posterior) -> tuple[Kernel, str]:
    """The kernel, and why.

    By the smallest effective sample size per second of `benchmarks/samplers.md`, of exact kernels that find all of
    their settings. None of them crosses between modes that are far apart: for that, and for the evidence, there is
    `ReplicaExchange`, which needs to be told more, and is the best where there are such modes and prior and posterior
    are not too far apart, as in the tutorial's problem, and not elsewhere.
    """
    if posterior.layers is not None and len(posterior.layers) == 1:
        return NUTS(), "there is no hidden layer"
    if posterior.dim > LARGE:
        return HMC(), f"there are more than {LARGE} parameters"
    return ChEES(), f"there are hidden layers, or a module of your own, and at most {LARGE} parameters"
