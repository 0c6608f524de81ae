"""What a run is, in words and numbers: by these a store knows whether it is the same run that goes on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from bnn_utils.keep import Keep
from bnn_utils.kernels.base import Kernel
from bnn_utils.posterior import Posterior

NUM_PROBES = 3
FROM_PRIOR, FROM_MAXIMA = "draws from the prior", "maxima above draws from the prior"


def facts_of(
    posterior: Posterior,
    kernel: Kernel,
    seed: int | torch.Generator,
    init: Tensor | str | None,
    warmup: int,
    thin: int,
    compile: bool,
    keep: Keep,
) -> dict[str, Any]:
    """All that the draws of a run depend on, but for how many they are and in which batches; and what is recorded.

    A posterior may hold any code. What it is shows in its log densities at some points: another network, other data,
    another prior or likelihood give other numbers, on each processor the same but for rounding. Of the functions in
    keep only the names are known.
    """
    generator = torch.Generator(posterior.device).manual_seed(0)
    with torch.no_grad():
        theta = posterior.probes(NUM_PROBES * posterior.num_datasets, generator)
        log_prior, log_likelihood = posterior.log_prior(theta), posterior.log_likelihood(theta)
    return {
        "posterior": repr(posterior),
        "names": posterior.names,
        "log prior at some draws from the prior": log_prior.tolist(),
        "log likelihood there": log_likelihood.tolist(),
        "kernel": described(kernel),
        "sampler": in_words(kernel),
        "seed": f"a generator in the state {digest(seed.get_state())}"
        if isinstance(seed, torch.Generator)
        else str(seed),
        "init": FROM_PRIOR if init is None else FROM_MAXIMA if isinstance(init, str) else digest(init),
        "warmup": warmup,
        "thin": thin,
        "gradient": posterior.gradient + ", compiled" * compile,
        "device": posterior.device.type,
        "keep": sorted(keep.functions),
        "keep_draws": keep.draws,
    }


def described(value: Any) -> Any:
    """A kernel by its class and its settings, tensors by their digests."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}, SHA-256 {digest(value)}"
    if is_dataclass(value):
        settings = vars(value)
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        settings = value._asdict()
    elif value is None or isinstance(value, (bool, int, float, str)):
        return value
    else:
        return in_words(value)
    return {"class": type(value).__qualname__} | {name: described(setting) for name, setting in settings.items()}


def in_words(kernel: Any) -> str:
    """Its repr, without the address that objects have in one process and not in the next."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(kernel))


def digest(values: Tensor) -> str:
    """Sixteen digits of a tensor's bytes."""
    flat = values.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
