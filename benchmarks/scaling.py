"""What one transition costs as the problem grows, and how fast the processor multiplies matrices."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, Chain, NormalPrior, Posterior, boxes, sample
from problem import CURVES, NUM_STEPS, PRECISION, STEP_SIZE, Setting, network_name

FEWEST, MOST, WARMUP = 3, 1_000, 2  # transitions


def measure(job: dict[str, Any]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    if job["curve"] == "peak":
        return [peak()]
    settings = CURVES[job["curve"]][: job["settings"]]
    return curve(settings, job["variant"], job["seconds"], job["limit"])


def curve(settings: list[Setting], variant: str, seconds: float, limit: float) -> list[dict[str, Any]]:
    """Milliseconds per transition along a curve, up to a setting that would take more than ``limit`` seconds."""
    rows: list[dict[str, Any]] = []
    for before, setting in pairwise([None, *settings]):
        if before and (FEWEST + WARMUP) * rows[-1]["value"] / 1e3 * setting.flops / before.flops > limit:
            break
        try:
            rows.append(cost(setting, variant, seconds))
        except ValueError:
            if not variant.endswith("compiled"):
                raise
            break  # too large a network to compile
    return rows


def cost(setting: Setting, variant: str, seconds: float) -> dict[str, Any]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(setting.network):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    data = boxes(setting.points).to(torch.float32)
    gradient = "autograd" if variant.endswith("autograd") else "closed-form"
    prior, likelihood = NormalPrior(precision=PRECISION), Bernoulli()
    posterior = Posterior(nn.Sequential(*layers[:-1]), data, prior, likelihood, gradient=gradient)

    def draw(num_samples: int) -> Chain:
        return sample(
            posterior,
            HMC(STEP_SIZE, NUM_STEPS),
            num_samples,
            num_chains=setting.lanes,
            warmup=WARMUP,
            progress=False,
            compile=variant.endswith("compiled"),
        )

    num_samples = max(FEWEST, min(MOST, int(seconds / draw(1).sampling_time)))
    return {
        "chains": setting.lanes,
        "points": setting.points,
        "network": network_name(setting.network),
        "draws": num_samples,
        "value": draw(num_samples).sampling_time * 1e3 / num_samples,
    }


def peak(size: int = 1_024, times: int = 20) -> dict[str, Any]:
    """10^9 floating-point operations per second in the fastest of several products of square matrices."""
    a, b = torch.randn(2, size, size)
    fastest = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        a @ b
        fastest = min(fastest, time.perf_counter() - started)
    return {"value": 2 * size**3 / fastest / 1e9}
