"""One measurement in a process of its own: reads a job, as JSON, from the command line and writes what it measured."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from importlib import import_module
from typing import Any

from problem import Problem


def main() -> None:
    job = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        # Libraries that keep threads of their own in spite of all settings have one core like all others.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # A row that says "compiled" was compiled.
    warnings.filterwarnings("error", message="could not compile")
    measured = measure(job) if "library" in job else import_module("scaling").measure(job)
    print(json.dumps(measured))


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Seconds that a library needs for its import, for the first call and, where the job is warm, for the second."""
    started = time.perf_counter()
    import numpy as np

    module, function = job["program"]
    program = import_module(f"programs.{module}")
    imported = time.perf_counter()
    with np.load(job["problem"]) as file:
        problem = Problem(file["x"], file["y"], file["starts"][: job["num_chains"]])

    begun = time.perf_counter()
    run = getattr(program, function)(problem, job["num_draws"])
    draws, acceptance = run(job["seed"])
    seconds = first = time.perf_counter() - begun
    if job["warm"]:
        begun = time.perf_counter()
        draws, acceptance = run(job["seed"] + 1)
        seconds = time.perf_counter() - begun

    expected = (job["num_chains"], job["num_draws"], problem.starts.shape[1])
    if draws.shape != expected or draws.dtype != np.float32 or not np.isfinite(draws).all():
        sys.exit(f"draws of shape {draws.shape} and type {draws.dtype}; expected finite float32 of shape {expected}")
    distances = np.square(np.diff(draws, axis=1)).sum(-1)
    return {
        "value": seconds * 1e3 / job["num_draws"] if job["unit"] == "ms" else seconds,
        "import_s": imported - started,
        "first_s": first,
        "acceptance": acceptance,
        "moved": float((distances > 0).mean()),
        "jump": float(distances[distances > 0].mean()),
    }


if __name__ == "__main__":
    main()
