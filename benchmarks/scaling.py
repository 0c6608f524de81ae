"""What one transition costs as the problem grows, and how fast the processor multiplies and adds."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import torch
from llvmlite import ir
from torch import nn

from bnn_utils import HMC, Bernoulli, Chain, NormalPrior, Posterior, boxes, sample
from bnn_utils.gradients.machine import Library, translate
from bnn_utils.gradients.native import NUMBERS_AHEAD, code_of, drawn, program_of
from bnn_utils.gradients.products import ROWS
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I64, VOID, Writer
from problem import CURVES, NUM_STEPS, PRECISION, PROFILED, STEP_SIZE, WORKLOADS, Setting, Workload, network_name

FEWEST, MOST, WARMUP = 3, 10_000, 2  # transitions


def measure(job: dict[str, Any]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    if job["curve"] == "peak":
        return [peak()]
    if job["curve"] == "profile":
        return [row for name in PROFILED for row in profile(WORKLOADS[name])]
    settings = CURVES[job["curve"]][: job["settings"]]
    return curve(settings, job["variant"], job["seconds"], job["limit"])


def curve(settings: list[Setting], variant: str, seconds: float, limit: float) -> list[dict[str, Any]]:
    """Milliseconds per transition along a curve, up to a setting that would take more than ``limit`` seconds."""
    rows: list[dict[str, Any]] = []
    for k, setting in enumerate(settings):
        if k and (FEWEST + WARMUP) * rows[-1]["value"] / 1e3 * setting.flops / settings[k - 1].flops > limit:
            break
        rows.append(cost(setting, variant, seconds))
    return rows


def build(setting: Setting, gradient: Literal["autograd", "closed-form"]) -> Posterior:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(setting.network):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    data = boxes(setting.points).to(torch.float32)
    prior, likelihood = NormalPrior(precision=PRECISION), Bernoulli()
    return Posterior(nn.Sequential(*layers[:-1]), data, prior, likelihood, gradient=gradient)


def cost(setting: Setting, variant: str, seconds: float) -> dict[str, Any]:
    posterior = build(setting, "autograd" if variant.endswith("autograd") else "closed-form")

    def draw(num_samples: int) -> Chain:
        return sample(
            posterior,
            HMC(STEP_SIZE, NUM_STEPS),
            num_samples,
            num_chains=setting.lanes,
            warmup=WARMUP,
            seed=0,
            progress=False,
            compile="auto" if variant == "bnn_utils" else False,
        )

    num_samples = max(FEWEST, min(MOST, int(seconds / draw(1).sampling_time)))
    return {
        "chains": setting.lanes,
        "points": setting.points,
        "network": network_name(setting.network),
        "draws": num_samples,
        "value": draw(num_samples).sampling_time * 1e3 / num_samples,
    }


def profile(workload: Workload) -> list[dict[str, Any]]:
    """Milliseconds that the parts of a transition in native code take: random numbers, trajectories, and the rest."""
    lanes, num = workload.num_chains, workload.num_draws
    posterior, kernel = build(Setting(lanes), "closed-form"), HMC(STEP_SIZE, NUM_STEPS)
    stream = torch.Generator().manual_seed(0)
    theta = posterior.sample_prior(lanes, stream)
    density, code = posterior.density(lanes, compile=True), code_of(program_of(posterior, lanes))
    block = NUMBERS_AHEAD // theta.numel()
    with torch.inference_mode():
        state = kernel.init(density, theta, num_warmup=0)
        numbers = once(lambda: drawn(stream, block, theta, code, 0, lanes)) / block
        native = once(lambda: kernel.steps(density, stream, state, num)) / num
    whole = once(lambda: sample(posterior, kernel, num, num_chains=lanes, seed=0, progress=False)) / num
    parts = {"random numbers": numbers, "trajectories": native - numbers, "everything else": whole - native}
    return [{"chains": lanes, "library": part, "value": value} for part, value in parts.items()]


def once(function: Callable[[], object], seconds: float = 0.5) -> float:
    """Milliseconds of one call, by the median."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return median(times) * 1e3


def peak(rounds: int = 10**6) -> dict[str, Any]:
    """10^9 floating-point operations per second of multiply-adds whose numbers never leave the registers."""
    writer = Writer("float32")
    function = writer.function("rounds", ir.FunctionType(VOID, [writer.pointer, I64]))
    out, num = function.args
    b = ir.IRBuilder(function.append_basic_block())
    v = Vectors(b, writer.scalar, writer.width)
    places = [writer.at(b, out, I64(k * v.width)) for k in range(ROWS)]
    sums = [writer.variable(b, v.type) for _ in places]
    for memory, place in zip(sums, places, strict=True):
        b.store(writer.load(b, place, v.type), memory)
    with writer.loop(b, I64(0), num):
        for memory in sums:
            b.store(v.fma(b.load(memory), v.constant(0.5), v.constant(1.0)), memory)
    for memory, place in zip(sums, places, strict=True):
        writer.store(b, b.load(memory), place)
    b.ret_void()
    library = Library(translate(str(writer.module)))
    call, found = library.function("rounds", [ctypes.c_void_p, ctypes.c_int64]), torch.zeros(ROWS * v.width)
    return {"value": 2 * found.numel() * rounds / once(lambda: call(found.data_ptr(), rounds)) / 1e6}
