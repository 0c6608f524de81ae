"""How much memory a run of 1,000,000 draws of 64 chains of 20 parameters takes, and what is computed from its folder.

    python tests/large.py               # of 1,000,000 draws: half an hour, and 13 GB on the disk
    python tests/large.py --draws 20000

Each step is a process of its own, and must stay below 600 MB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, Chain, NormalPrior, Posterior, boxes, sample, square_grid
from bnn_utils.diagnostics import convergence

LIMIT = 600  # megabytes of 10^6 bytes
NET = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
POSTERIOR = Posterior(NET, boxes(), NormalPrior(0.09), Bernoulli())
GRID = square_grid(5)


def draw(folder: str, num: int) -> str:
    chain = sample(POSTERIOR, HMC(0.05, 1), num, num_chains=64, seed=1, store=folder, progress=False, compile=False)
    return f"{chain.num_chains} chains of {chain.num_draws:,} draws"


def summary(folder: str, num: int) -> str:
    table = Chain.load(folder).summary()
    return f"{table.columns.name or 'of all draws'}: largest R-hat {table['r_hat'].max():.3f}"


def read(folder: str, num: int) -> str:
    return repr(Chain.load(folder))


def in_function_space(folder: str, num: int) -> str:
    few = Chain.load(folder).thin(max(1, num // 2000))
    return convergence(POSTERIOR.predict(few.draws, GRID), GRID).verdict


def predict(folder: str, num: int) -> str:
    p = Chain.load(folder).expectation(lambda theta: POSTERIOR.predict(theta, GRID))
    return f"mean predictions from {p.min():.3f} to {p.max():.3f}"


def peak() -> float:
    """Megabytes of resident memory, at most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def run(step: Callable[[str, int], str], folder: str, num: int, results: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(2)
    called = time.perf_counter()
    said = step(folder, num)
    results.put((said, time.perf_counter() - called, peak()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1_000_000)
    num, failed, spawn = parser.parse_args().draws, False, multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for step in (draw, read, summary, in_function_space, predict):
            results = spawn.SimpleQueue()
            process = spawn.Process(target=run, args=(step, f"{folder}/run.zarr", num, results))
            process.start()
            process.join()
            said, seconds, megabytes = results.get() if process.exitcode == 0 else ("failed", 0.0, float("inf"))
            print(f"{step.__name__}: {megabytes:.0f} MB, {seconds:.0f} s: {said}", flush=True)
            failed |= megabytes > LIMIT
    sys.exit(failed)


if __name__ == "__main__":
    main()
