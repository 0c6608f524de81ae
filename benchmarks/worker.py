"""One measurement in a process of its own: reads a job, as JSON, from the command line and writes what it measured."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from problem import Problem

if TYPE_CHECKING:
    import numpy as np


def main() -> None:
    job = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        # Libraries that keep threads of their own in spite of all settings have one core like all others.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # Where there should be native code, nothing else is timed.
    warnings.filterwarnings("error", message="there is no native code")
    measured = measure(job) if "library" in job else import_module("scaling").measure(job)
    print(json.dumps(measured))


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Seconds that a library needs for its import, for the first call and, where that is timed, for the second."""
    started = time.perf_counter()
    import numpy as np

    module, function = job["program"]
    program = import_module(f"programs.{module}")
    imported = time.perf_counter()
    with np.load(job["problem"]) as file:
        starts = file["starts"][: job["num_chains"]]
        problem = Problem(file["x"], file["y"], starts, tuple(job["network"]), job["step_size"])

    begun = time.perf_counter()
    run = getattr(program, function)(problem, job["num_draws"])
    draws, reported = run(job["seed"])
    seconds = first = time.perf_counter() - begun
    if job["call"] == "warm":
        begun = time.perf_counter()
        draws, reported = run(job["seed"] + 1)
        seconds = time.perf_counter() - begun

    shape, dtype = (job["num_chains"], job["num_draws"], starts.shape[1]), starts.dtype
    if draws.shape != shape or draws.dtype != dtype or not np.isfinite(draws).all():
        sys.exit(f"draws of shape {draws.shape} and type {draws.dtype}; expected finite {dtype} of shape {shape}")
    costs = {"import_s": imported - started, "first_s": first}
    if job["unit"] == "ESS/s":
        ess, r_hat = mixing(draws)
        return costs | {"value": ess / seconds, "ess": ess, "r_hat": r_hat, "divergences": reported}
    distances = np.square(np.diff(draws, axis=1)).sum(-1)
    return costs | {
        "value": seconds * 1e3 / job["num_draws"] if job["unit"] == "ms" else seconds,
        "acceptance": reported,
        "moved": float((distances > 0).mean()),
        "jump": float(distances[distances > 0].mean()),
    }


def mixing(draws: np.ndarray) -> tuple[float, float]:
    """Smallest bulk ESS and largest R-hat of the predicted probability over a grid, by the same code for all."""
    import torch

    from bnn_utils import diagnostics, square_grid

    ess, r_hat = [], []
    for row in square_grid(25, 6.0).numpy().reshape(25, 25, 2):  # all places at once would take gigabytes
        p = torch.from_numpy(probabilities(draws, row))
        ess.append(diagnostics.ess(p).min().item())
        r_hat.append(diagnostics.rhat(p).max().item())
    return min(ess), max(r_hat)


def probabilities(draws: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Probabilities of class 1, in float64: draws (C, N, 20), points (M, 2) -> (C, N, M)."""
    import numpy as np

    theta = draws.astype(np.float64)

    def layer(x: np.ndarray, start: int, inputs: int, outputs: int) -> np.ndarray:
        weight, bias = np.split(theta[..., start : start + (inputs + 1) * outputs], [inputs * outputs], axis=-1)
        return x @ weight.reshape(*theta.shape[:2], outputs, inputs).swapaxes(2, 3) + bias[:, :, None]

    hidden = np.tanh(layer(np.tanh(layer(x, 0, 2, 3)), 9, 3, 2))
    return (1 + np.tanh(layer(hidden, 17, 2, 1)[..., 0] / 2)) / 2


if __name__ == "__main__":
    main()
