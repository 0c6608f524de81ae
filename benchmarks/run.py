"""Time this project beside other libraries, every measurement in a process of its own, and say what came out.

Writes results.csv and results.md beside this file and docs/benchmark.png; with --quick all three into build/benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import chart
import report
from bnn_utils import boxes
from problem import (
    ACCEPTANCE,
    ACCEPTANCE_OF_FEW,
    CURVES,
    EFFECTIVE,
    JUMP,
    LIBRARIES,
    PRECISION,
    VARIANTS,
    WORKLOADS,
    Size,
    Workload,
    network_name,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# One thread for everybody, on the processor.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "CUDA_VISIBLE_DEVICES": "",
}
COLUMNS = [
    *("workload", "library", "chains", "points", "network", "draws", "repetition"),
    *("value", "unit", "import_s", "first_s", "acceptance", "moved", "jump", "ess", "r_hat", "divergences"),
]
MOST_CHAINS = max(workload.num_chains for workload in WORKLOADS.values())
SKIP_BEYOND = 10.0  # seconds that one point on a curve of cost may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few draws, once: does every program still run?")
    parser.add_argument("--only", help="measure this workload anew, such as G, and keep the other rows of results.csv")
    parser.add_argument("--chart-only", action="store_true", help="draw the chart from results.csv again")
    arguments = parser.parse_args()
    if arguments.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    tables, pictures = (ROOT / "build" / "benchmarks",) * 2 if arguments.quick else (HERE, ROOT / "docs")
    tables.mkdir(parents=True, exist_ok=True)
    if not arguments.chart_only:
        rows = measure(1 if arguments.quick else arguments.repetitions, arguments.quick, arguments.only)
        table = pd.DataFrame(rows, columns=COLUMNS)
        if arguments.only:
            others = pd.read_csv(tables / "results.csv")
            table = pd.concat([others[others["workload"] != arguments.only], table])
        table = table.astype(dict.fromkeys(("chains", "points", "draws"), "Int64"))
        table.to_csv(tables / "results.csv", index=False, float_format="%.4g")
        (tables / "results.md").write_text(report.markdown(table, SKIP_BEYOND))
    chart.draw(pd.read_csv(tables / "results.csv")).savefig(pictures / "benchmark.png")
    print(f"\n{(tables / 'results.md').relative_to(ROOT)} holds the tables.")


def measure(repetitions: int, quick: bool, only: str | None = None) -> list[dict[str, Any]]:
    """One row per measurement. Libraries alternate, so that a slow minute of the machine is shared by all."""
    rows = []
    present = {library for library in LIBRARIES if is_installed(library)}
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(repetitions):
            for name, workload in [*WORKLOADS.items(), *(("F", part) for part in EFFECTIVE)]:
                if only not in (None, name):
                    continue
                if quick:
                    workload = workload._replace(num_draws=min(workload.num_draws, 50))
                for library in (library for library in workload.libraries if library in present):
                    problem = save_problem(Path(folder), workload, repetition)
                    rows.append(measure_library(name, workload, library, problem, repetition))
            if only is None and repetition == 0:  # they take as long as the tables, and are read by their shape
                rows += measure_curves(Path(folder), quick, repetition)
    return rows


def save_problem(folder: Path, workload: Workload, repetition: int) -> Path:
    """The data and the starting points in a file, which a process can read without importing this project."""
    size = workload.size
    data = boxes(size.points)
    starts = np.random.default_rng(repetition).normal(scale=PRECISION**-0.5, size=(MOST_CHAINS, size.dim))
    path = folder / "problem.npz"
    x, y, starts = (values.astype(workload.dtype) for values in (data.x.numpy(), data.y.numpy(), starts))
    np.savez(path, x=x, y=y, starts=starts)
    return path


def measure_library(name: str, workload: Workload, library: str, problem: Path, repetition: int) -> dict[str, Any]:
    job = {
        "library": library,
        "program": LIBRARIES[library],
        "num_chains": workload.num_chains,
        "num_draws": workload.num_draws,
        "call": workload.call,
        "unit": workload.unit,
        "seed": 1_000 * repetition,
        "problem": str(problem),
        "network": workload.size.network,
        "step_size": workload.size.step_size,
        "dtype": workload.dtype,
    }
    with tempfile.TemporaryDirectory() as cache:
        if workload.call == "cached":  # as another process has left it
            run_apart(job, Path(cache))
        measured = run_apart(job, Path(cache))
    size = workload.size
    what = {"workload": name, "library": library, "points": size.points, "network": network_name(size.network)}
    much = {"chains": workload.num_chains, "draws": workload.num_draws, "unit": workload.unit, "repetition": repetition}
    row = what | much | measured
    if name != "F":
        check_same_work(row, size)
    print(f"{name:3} {library:34} {row['value']:10.4g} {workload.unit}", flush=True)
    return row


def measure_curves(cache: Path, quick: bool, repetition: int) -> list[dict[str, Any]]:
    """What one transition costs. Compilation is not timed here, so that its cache may serve all."""
    rows = []
    extent = {"seconds": 0.05, "settings": 2} if quick else {"seconds": 1.0, "settings": None}
    for curve, variant in product(CURVES, VARIANTS):
        job = {"curve": curve, "variant": variant, "limit": SKIP_BEYOND, **extent}
        label = {"workload": f"E {curve}", "library": variant, "unit": "ms", "repetition": repetition}
        measured = run_apart(job, cache)
        rows += [row | label for row in measured]
        values = ", ".join(f"{row['value']:.3g}" for row in measured)
        print(f"E   {variant:34} {curve}: {values} ms", flush=True)
    label = {"workload": "profile", "unit": "ms", "repetition": repetition}
    rows += [row | label for row in run_apart({"curve": "profile"}, cache)]
    (row,) = run_apart({"curve": "peak"}, cache)
    return [*rows, row | {"workload": "peak", "library": "registers", "unit": "GFLOP/s", "repetition": repetition}]


def is_installed(library: str) -> bool:
    module, _ = LIBRARIES[library]
    installed = module == "ours" or find_spec(module) is not None
    if not installed:
        extra = "hamiltorch" if module == "hamiltorch" else "bench"
        print(f"{library} is left out: {module} is not installed; get it with: pip install -e '.[{extra}]'")
    return installed


def run_apart(job: dict[str, Any], cache: Path) -> Any:
    """What a fresh process measures, with what others have compiled into the same cache."""
    command = [sys.executable, str(HERE / "worker.py"), json.dumps(job)]
    of_job = {"BNN_UTILS_CACHE": str(cache), "JAX_ENABLE_X64": str(job.get("dtype") == "float64").lower()}
    environment = os.environ | ENVIRONMENT | of_job
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(f"{result.stderr}\nthis job failed: {job}")
    return json.loads(result.stdout.splitlines()[-1])


def check_same_work(row: dict[str, Any], size: Size) -> None:
    """Stop if a program did not accept and move as HMC with this step size and number of steps does here."""
    low, high = ACCEPTANCE_OF_FEW if row["chains"] < 64 else ACCEPTANCE
    tolerance = 0.02 + 2 / (row["chains"] * row["draws"]) ** 0.5  # four standard deviations of a fraction, and some
    if not low < row["acceptance"] < high or abs(row["acceptance"] - row["moved"]) > tolerance:
        what = f"accepts {row['acceptance']:.2f}, by its own account, and moves in {row['moved']:.2f} of transitions"
    elif not JUMP[0] < row["jump"] / size.jump < JUMP[1]:
        what = f"moves by {row['jump']:.2f} (squared) in an accepted transition"
    else:
        return
    sys.exit(f"workload {row['workload']}: {row['library']} {what}, so it does not compute what the others compute")


if __name__ == "__main__":
    main()
