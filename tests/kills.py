"""Kill runs into a folder with SIGKILL at random moments, let the same call go on, and compare the draws.

    python tests/kills.py                     # 30 kills of each kernel, with one worker and with two
    python tests/kills.py --trials 4 --workers 1 --kernels HMC

Every run that was killed and called again must end with the draws, to the bit, of one that nobody killed. A folder
that was read after a kill must hold the beginning of these draws.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    Bernoulli,
    Chain,
    ChEES,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    batches,
    boxes,
    sample,
)
from bnn_utils.stores import folder as folders
from bnn_utils.stores import open_for_reading

KERNELS = {
    "HMC": HMC(0.05, 4),
    "ChEES": ChEES(),
    "NUTS": NUTS(),
    "MAMS": MAMS(),
    "MCLMC": MCLMC(),
    "ReplicaExchange": ReplicaExchange(HMC(0.05, 4), 4),
}
NUM_DRAWS, WARMUP = 400, 120
MOST_KILLS = 3  # of one run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    batches.SECONDS_BETWEEN_COMMITS = 0.0  # so that kills fall into commits, too
    folders.CHUNK_BYTES = folders.SHORT_CHUNK_BYTES = 2**16
    dice, failed = random.Random(arguments.seed), 0
    for name in arguments.kernels:
        for workers in arguments.workers:
            failed += sum(not trial(name, workers, dice) for _ in range(arguments.trials))
            print(f"{name}, {workers} workers: {arguments.trials} trials, {failed} failed so far", flush=True)
    sys.exit(f"{failed} runs differ" if failed else None)


def run(name: str, workers: int, store: Path | None) -> Chain:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    posterior = Posterior(net, boxes(), NormalPrior(0.09), Bernoulli())
    arguments = {"num_chains": 4, "warmup": WARMUP, "seed": 7, "batch_size": 2, "progress": False}
    return sample(posterior, KERNELS[name], NUM_DRAWS, workers=workers, store=store, **arguments)


whole: dict[str, tuple[Chain, float]] = {}


def trial(name: str, workers: int, dice: random.Random) -> bool:
    """Whether a run that is killed some times comes to the same end."""
    if name not in whole:
        started = time.perf_counter()
        whole[name] = run(name, 1, None), 0.0
        whole[name] = whole[name][0], time.perf_counter() - started
    expected, seconds = whole[name]
    longest = 1.5 * seconds if workers == 1 else 2 * seconds + 8  # workers take time to start
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "run.zarr"
        for number in range(dice.randint(1, MOST_KILLS)):
            kill(name, workers, store, dice.uniform(0, longest))
            if not begins_like(expected, store):
                print(f"after kill {number} the folder does not hold the beginning of the draws", flush=True)
                return False
        found = run(name, workers, store)
    values = {"draws": (found.draws, expected.draws)} | {
        key: (found.stats[key], expected.stats[key]) for key in expected.stats
    }
    others = [key for key, (one, two) in values.items() if not torch.equal(one, two)]
    if others:
        print(f"the run that went on differs in {', '.join(others)}", flush=True)
    return not others


def kill(name: str, workers: int, store: Path, seconds: float) -> None:
    """Run in a process of its own and kill it after so many seconds, or let it end before."""
    pid = os.fork()
    if pid == 0:
        run(name, workers, store)
        os._exit(0)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def begins_like(expected: Chain, store: Path) -> bool:
    """Whether the folder holds the first draws, or none."""
    if not (store / "zarr.json").exists():
        return not (store / "draws").exists()
    draws = open_for_reading(store)
    if 0 in map(draws.count, range(len(draws.sizes))):  # there is a chain when all batches have draws
        return True
    found = Chain.load(store)
    return torch.equal(found.draws, expected.draws[:, : found.num_draws])


if __name__ == "__main__":
    main()
