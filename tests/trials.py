"""Runs that are interrupted at random moments, each in a process of its own.

python tests/trials.py --workers 2 --trials 100
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, sample
from bnn_utils.batches import Batches

NET = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
POSTERIOR = Posterior(NET, boxes(), NormalPrior(0.09), Bernoulli())
DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
WARNING = "RuntimeWarning: interrupted: the chain holds the "
SECONDS_OF_PATIENCE = 60


def draw(num_samples, workers=1):
    arguments = {"num_chains": 3, "batch_size": 2, "warmup": 20, "seed": 1, "progress": False, "compile": False}
    return sample(POSTERIOR, HMC(0.05, 4), num_samples, workers=workers, **arguments)


class Trial(NamedTuple):
    what: str
    seconds: float  # from the first signal until `sample` returned
    to_end: float  # until the process had ended
    draws: torch.Tensor | None
    faults: list[str]


def trial(workers: int, rng: random.Random, span: float) -> Trial:
    """A run that is sent signals at a random moment."""
    num_samples = rng.choice([50, 2000, 200_000])
    number, to_all = rng.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM]), rng.random() < 0.5
    times = rng.choice([1, 1, 2, 4])
    is_warm = workers > 1 and rng.random() < 0.75  # workers have started already
    delay = rng.uniform(0, 3 if is_warm else span)
    whom = "the group" if to_all else "the process"
    whose = f"{workers} workers{' that run' * is_warm}"
    what = f"{num_samples:6} draws, {whose}, {times} {number.name} to {whom} after {delay:.2f} s"
    folder = Path(tempfile.mkdtemp())  # no `with`: it would end in the fork, too
    child = _start(folder, num_samples, workers, is_warm)
    while not (folder / "ready").exists():
        time.sleep(0.01)
    time.sleep(delay)
    sent = time.monotonic()
    for _ in range(times):
        (os.killpg if to_all else os.kill)(child, number)  # one that has ended is there until we wait for it
        time.sleep(rng.uniform(0, 0.03))
    code = _exit_code(child, sent + SECONDS_OF_PATIENCE)
    ended = time.monotonic()
    while (left := alive(child)) and time.monotonic() - ended < 2:
        time.sleep(0.05)
    out, err = ((folder / file).read_text() for file in ("stdout", "stderr"))
    returned = float((folder / "returned").read_text()) if (folder / "returned").exists() else ended
    draws = torch.load(folder / "draws") if (folder / "draws").exists() else None
    shutil.rmtree(folder)
    faults = [f"left: {line}" for line in left]
    was_ended = code == -signal.SIGTERM == -number and draws is None and not err  # before the first transition
    if not was_ended:
        if code is None:
            faults.append(f"it went on for {SECONDS_OF_PATIENCE} seconds")
        elif code:
            faults.append(f"it returned {code}: {err}")
        if (draws is None) != (out == "nothing\n"):
            faults.append(f"it printed {out!r}")
        lines = err.splitlines()
        if lines and not (len(lines) <= 2 and WARNING in lines[0]):
            faults.append(err)
    return Trial(what, max(0.0, returned - sent), ended - sent, draws, faults)


def _exit_code(child: int, until: float) -> int | None:
    """None for one that was still going on, and is killed."""
    while time.monotonic() < until:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _start(folder: Path, num_samples: int, workers: int, is_warm: bool) -> int:
    """Start the run in a fork, which has imported everything, and return its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    for number, handler in DEFAULTS.items():  # a shell ignores Ctrl-C for what it starts in the background
        signal.signal(number, handler)
    for file, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / file, os.O_WRONLY | os.O_CREAT), stream)
    if is_warm:
        draw(1, workers)
    runs, go = [], Batches.go

    def watched(self, *args):
        runs.append(self)
        return go(self, *args)

    Batches.go = watched
    try:
        (folder / "ready").touch()
        chain = draw(num_samples, workers)
        after = {number: signal.getsignal(number) for number in DEFAULTS}
        _ignore()
        _write(folder)
        torch.save(chain.draws, folder / "draws")
        assert after == DEFAULTS
    except KeyboardInterrupt:
        _ignore()
        _write(folder)
        assert not any(run.num_draws for run in runs), "draws were lost"
        print("nothing")
    assert not torch.is_inference_mode_enabled()
    assert not _zombies()
    sys.exit()


def _write(folder: Path) -> None:
    (folder / "returned").write_text(str(time.monotonic()))


def _ignore() -> None:
    for number in DEFAULTS:
        signal.signal(number, signal.SIG_IGN)


def alive(session: int) -> list[str]:
    """Command lines of the processes of a session."""
    return [command for state, _, number, command in _processes() if number == session and state != "Z"]


def _zombies() -> list[str]:
    return [command for state, parent, _, command in _processes() if parent == os.getpid() and state == "Z"]


def _processes() -> list[tuple[str, int, int, str]]:
    """State, parent, session and command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, session = (folder / "stat").read_text().rsplit(") ", 1)[1].split()[:4]
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue
        found.append((state, int(parent), int(session), command))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--span", type=float, default=8.0, help="seconds in which the first signal comes")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork has none of the threads that OpenMP has started, and would wait for them
    draw(1)  # so that all is imported
    rng, trials = random.Random(args.seed), []
    for _ in range(args.trials):
        one = trial(args.workers, rng, args.span)
        num_draws = "no" if one.draws is None else one.draws.shape[1]
        print(
            f"{one.what}: {one.seconds:.2f} s ({one.to_end:.2f} s), {num_draws} draws",
            *one.faults,
            sep="\n    ",
            flush=True,
        )
        trials.append(one)
    chains = [one.draws for one in trials if one.draws is not None]
    whole = draw(max([1, *(draws.shape[1] for draws in chains)])).draws
    equal = sum(torch.equal(draws, whole[:, : draws.shape[1]]) for draws in chains)
    failed = sum(bool(one.faults) for one in trials)
    print(f"{len(trials)} trials, {failed} with faults; {equal} of {len(chains)} chains equal the undisturbed one")
    for name in ("seconds", "to_end"):
        seconds = sorted(getattr(one, name) for one in trials)
        print(f"{name}: median {seconds[len(seconds) // 2]:.2f}, slowest {seconds[-1]:.2f}")
    sys.exit(failed > 0 or equal != len(chains))


if __name__ == "__main__":
    main()
