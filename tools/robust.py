"""Run notebooks and statistical tests with other seeds and other instruction sets, and count which assertions fail.

    python tools/robust.py                              # all, into notebooks/robust.md; some three hours on two cores
    python tools/robust.py --stored                     # the page of what has been run so far
    python tools/robust.py --only 03_hmc --seeds 20     # one notebook (or `tests`), printed
    python tools/robust.py --only 03_hmc --seeds 0      # with its own seeds, in each instruction set

A claim about draws has to hold for practically every seed, and on every processor; one seed on one machine shows
neither. What has been run before, with the same sources, is not run again. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reseed

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "notebooks" / "robust.md"
STORE = ROOT / ".robust"  # outcomes, with digests of the files that they depend on
TESTS = "statistical"  # the mark of those that are run
LONG = (
    "06_convergence",
    "09_your_own",
    "10_one_vector_many_packages",
    "11_samplers",
    "12_long_runs",
    "13_real_data",
    "15_price_of_approximation",
)
SEEDS = {"tests": 50} | dict.fromkeys(LONG, 8) | {"16_questions": 1}
SEEDS_OF_OTHERS = 20
# Stand-ins for other processors: how PyTorch's kernels compute, and in which order they add.
INSTRUCTION_SETS = ("default", "avx2", "avx512")
LIMIT = 1800  # seconds for one run

REPORT = """# Other seeds, other processors

A script, `tools/robust.py`, runs each notebook, the solutions of its exercises included, and all statistical tests as
if other seeds had been written into them, and once with the seeds as they are in each instruction set of PyTorch that
the processor has. It goes on after an assertion that fails, or a cell that warns of something, and counts. `make
robust` makes this page.

Of the other seeds the page says how many were run, of how many that `make robust` runs when it is not stopped.

An assertion about draws may fail by chance: in a notebook for at most one seed in 1,000, in a test for one in 10,000.
So few seeds don't show that; how far numbers stay from their limits does. For each comparison of numbers in an
assertion the script takes the room between both sides over the other seeds: the logarithm of their ratio, or their
difference where one may be negative, and of absolute values. It divides the median by the spread on the side of the
limit, the root mean square of how far rooms below the median are off it: so many standard deviations away was the
limit. Of a normal number, 3.1 are a false alarm in 1,000, and 3.7 one in 10,000. The last column has the least;
comparisons of notebooks below 3.1 and of tests below 3.7 are listed under the table, with what makes them safe all the
same, such as numbers that fall into two clusters, each of them narrow and far from the limit. Left out are p-values,
limits that are quantiles or numbers of standard errors, whose rate of false alarms follows from theory and stands
beside them, and bounds that nothing can pass, such as those of a uniform number.

Where packages of others are installed, random streams that these make themselves keep their seeds.

"""
NEAR = {"tests": 3.7}  # standard deviations
NEAR_OF_NOTEBOOKS = 3.1
FEWEST_SEEDS = 8  # for a standard deviation
# Comparisons whose limits are quantiles of what is compared, by theory.
BY_THEORY = re.compile(r"isf\(|ppf\(|pvalue|FALSE_ALARM|limit|\bz\b|\.se\b|\* error|\bchance\(|\blow <=", re.IGNORECASE)
# Those that are near in standard deviations, and were looked at one by one.
LOOKED_AT = {
    "test_all_chains_from_one_mode: calibration(HMC": "p-values fall into two clusters, the higher about 1e-13",
    "full_circle[50-None]: ess(": "sizes fall into two clusters, the lower about 3,900: see `tests/resonance.py`",
    "fitted reference]: one.tempering.swap_rates.min() > 0": "a mean of probabilities: 0.11 at least",
    "test_simulated_targets: p.max() < 0.99": "over 1,000 seeds 0.92 at most",
    "mams_keeps_what_it_rejects: 20 < rejected": "32 of 200 at least; it asks only that some are",
    "swap_rates.std() < 0.13": "0.08 at most; without a warm-up 0.3",
}
# Those that hold whatever is drawn.
CERTAIN = re.compile(
    r"draws [<>]= (low|high)$|u\.abs\(\)\.max\(\) < 1$|<= steps\.min\(\)|steps\.max\(\) <= 1\.2$"
    r"|- 1\)\.abs\(\)\.max\(\) <= 0\.5$|0 < fair\.value"
)


class Run(NamedTuple):
    """A notebook or tests, once."""

    what: Path  # notebook, or folder of tests
    number: int  # of the other seeds; 0 for the seeds as they are
    instructions: str = ""  # an instruction set; "" for what the processor has

    @property
    def name(self) -> str:
        return self.what.stem

    def __str__(self) -> str:
        return f"{self.name} {self.instructions or f'seeds {self.number}'}"


class Outcome(NamedTuple):
    checked: list[str]
    failed: dict[str, str]  # assertion -> message
    seconds: float
    room: dict[str, list[float]]  # comparison -> difference to the limit, logarithm of the ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of notebooks, such as 03_hmc; 'tests'")
    parser.add_argument("--seeds", type=int, help="how many other seeds")
    parser.add_argument("--stored", action="store_true", help="run nothing: the page of what has been run so far")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, each on one thread")
    arguments = parser.parse_args()
    everything = [Run(path, 0) for path in (ROOT / "tests", *sorted((ROOT / "notebooks").glob("*.py")))]
    chosen = [run for run in everything if arguments.only is None or run.name in arguments.only]
    if not chosen:
        parser.error(f"there is no {' or '.join(arguments.only)}; there are {', '.join(r.name for r in everything)}")
    started = time.perf_counter()
    runs = plan(chosen, arguments.seeds)
    if arguments.stored:
        runs = [run for run in runs if not files_to_run(stored_outcome(run), run)]
    outcomes = run_all(runs, arguments.jobs)
    print(report(outcomes))
    if arguments.only is None and arguments.seeds is None:
        PAGE.write_text(page(outcomes))
    print(f"{len(outcomes)} runs, {(time.perf_counter() - started) / 60:.0f} minutes")
    sys.exit(any(outcome.failed for outcome in outcomes.values()))


def plan(chosen: list[Run], seeds: int | None = None) -> list[Run]:
    """Each with other seeds, and with its own in each instruction set."""
    runs = []
    for run in chosen:
        count = SEEDS.get(run.name, SEEDS_OF_OTHERS) if seeds is None else seeds
        runs += [run._replace(number=number) for number in range(1, count + 1)]
        if seeds in (None, 0):
            runs += [run._replace(instructions=instructions) for instructions in available()]
    return runs


def available() -> list[str]:
    """The instruction sets that this processor has: those up to the one that PyTorch chooses by itself."""
    # Asked in another process and without the variable. What the variable names PyTorch takes on trust, and a set that
    # the processor lacks ends the process at the first instruction of it.
    answer = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"],
        env={name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return list(INSTRUCTION_SETS[: INSTRUCTION_SETS.index(answer) + 1]) if answer in INSTRUCTION_SETS else ["default"]


def run_all(runs: list[Run], jobs: int) -> dict[Run, Outcome]:
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = {}
        for run, outcome in zip(runs, pool.map(run_once, runs), strict=True):
            outcomes[run] = outcome
            failed = "".join(f"\n    {name}: {message}" for name, message in outcome.failed.items())
            print(f"{run}: {len(outcome.checked)} checked, {len(outcome.failed)} failed{failed}", flush=True)
    return outcomes


def run_once(run: Run) -> Outcome:
    """In a process of its own, on one thread; from the store, where the same was run before."""
    STORE.mkdir(exist_ok=True)
    stored, before = store_of(run), stored_outcome(run)
    stale = files_to_run(before, run)
    if stale:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if run.instructions:
            environment["ATEN_CPU_CAPABILITY"] = run.instructions
        result, started = stored.with_suffix(".new"), time.perf_counter()
        command = [sys.executable, "tools/reseed.py", str(result), str(run.number), str(run.what)]
        if run.what.is_dir():
            command += [TESTS]
            environment["PYTEST_ADDOPTS"] = f"-k '{' or '.join(sorted(stale))}'"
        try:
            process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
            said = (process.stderr.strip() or "nothing was said").split("\n")[-1]
        except subprocess.TimeoutExpired:
            said = f"it took more than {LIMIT} s"
        seconds = time.perf_counter() - started
        if not result.exists():  # the process died; another try may do better, so this is not stored
            return Outcome([], {"the run comes to its end": said}, seconds, {})
        stored.write_text(json.dumps(merged(before, json.loads(result.read_text()), stale, seconds)))
        result.unlink()
    outcome = json.loads(stored.read_text())
    return Outcome(**{field: value for field, value in outcome.items() if field in Outcome._fields})


def store_of(run: Run) -> Path:
    machine = hashlib.blake2b(f"{processor()} {sys.version} {torch_version()}".encode(), digest_size=4).hexdigest()
    return STORE / f"{run.name}-{run.number}-{run.instructions or 'own'}-{machine}.json"


def stored_outcome(run: Run) -> dict[str, Any]:
    """What was found when it was run before, or nothing."""
    stored = store_of(run)
    return json.loads(stored.read_text()) if stored.exists() else {}


def files_to_run(before: dict[str, Any], run: Run) -> set[str]:
    """Names of the files of tests, or of the notebook, that have no outcome or depend on a file that has changed since.

    Files of tests don't depend on each other; all depend on the library and on what they share.
    """
    wanted = reseed.marked(run.what) if run.what.is_dir() else {run.what}
    digests = {Path(path): digest for path, digest in before.get("sources", {}).items()}
    changed = {path for path, digest in digests.items() if not path.exists() or reseed.digest(path) != digest}
    shared = {path for path in changed if not (run.what.is_dir() and path.name.startswith("test_"))}
    return {path.stem for path in wanted if shared or path in changed or path not in digests}


def merged(before: dict[str, Any], after: dict[str, Any], stale: set[str], seconds: float) -> dict[str, Any]:
    """What was found before, but for files that were run again."""

    def kept(found: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if name.partition(".py::")[0] not in stale}

    if not any(".py::" in name for name in before.get("checked", [])):  # a notebook is run as a whole
        return after | {"seconds": seconds}
    return {
        "checked": sorted({*kept(dict.fromkeys(before["checked"])), *after["checked"]}),
        "failed": kept(before["failed"]) | after["failed"],
        "room": kept(before["room"]) | after["room"],
        "sources": after["sources"],
        "seconds": before["seconds"] + seconds,
    }


# --- the page ---------------------------------------------------------------------------------------------------------


def page(outcomes: dict[Run, Outcome]) -> str:
    return REPORT + report(outcomes) + made_on(outcomes)


def report(outcomes: dict[Run, Outcome]) -> str:
    return table(outcomes) + failures(outcomes) + near(outcomes)


def table(outcomes: dict[Run, Outcome]) -> str:
    """A line for the tests, and for each notebook."""
    heads = ("what", "assertions", "other seeds", "instruction sets", "assertions that failed", "nearest limit")
    lines, distances = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], limits(outcomes)
    for name in dict.fromkeys(run.name for run in outcomes):
        mine = {run: outcome for run, outcome in outcomes.items() if run.name == name}
        checked = set().union(*(outcome.checked for outcome in mine.values()))
        failed = set().union(*(outcome.failed for outcome in mine.values()))
        seeds = sum(not run.instructions for run in mine)
        sets = ", ".join(run.instructions for run in mine if run.instructions)
        planned = SEEDS.get(name, SEEDS_OF_OTHERS)
        nearest = min((off for (where, _), off in distances.items() if where == name), default=math.inf)
        cells = (name, len(checked), f"{seeds} of {planned}", sets or "-", len(failed) or "none", told(nearest))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def told(distance: float) -> str:
    return f"{distance:.1f}" if math.isfinite(distance) else "-"


def limits(outcomes: dict[Run, Outcome]) -> dict[tuple[str, str], float]:
    """By where and which comparison: the standard deviations, over other seeds, between its numbers and its limit."""
    rooms: dict[tuple[str, str], list[list[float]]] = {}
    for run, outcome in outcomes.items():
        if run.number:
            for claim, room in outcome.room.items():
                if not (BY_THEORY.search(claim) or CERTAIN.search(claim)):
                    rooms.setdefault((run.name, claim), []).append(room)
    return {key: distance(key[1], np.array(found)) for key, found in rooms.items() if len(found) >= FEWEST_SEEDS}


def distance(claim: str, rooms: np.ndarray) -> float:
    """Median over the spread below it, of ``(seeds, 2)``, differences and logarithms; infinite for a constant."""
    is_logarithm = np.isfinite(rooms[:, 1]).all() and "abs(" not in claim  # small errors have huge logarithms
    room = rooms[:, int(is_logarithm)]
    median = np.median(room)
    below = np.sort(median - room)[(len(room) + 1) // 2 :]  # half of the seeds
    spread = np.sqrt(np.square(below).mean())
    return median / spread if spread > 1e-12 * abs(median) else math.inf


def near(outcomes: dict[Run, Outcome]) -> str:
    """The comparisons that were not far from their limits; nothing if all were."""
    close = {key: off for key, off in limits(outcomes).items() if off < NEAR.get(key[0], NEAR_OF_NOTEBOOKS)}
    if not close:
        return ""
    heads = ("where", "comparison", "standard deviations", "why it is safe")
    lines = ["\n## Near their limits\n", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (where, claim), off in sorted(close.items(), key=lambda item: item[1]):
        why = next((reason for part, reason in LOOKED_AT.items() if part in claim), "-")
        lines.append(f"| {where} | `{claim.replace('|', '&#124;')}` | {off:.1f} | {why} |")
    return "\n".join(lines) + "\n"


def failures(outcomes: dict[Run, Outcome]) -> str:
    """Which assertions failed, in how many of the runs that reached them; nothing if none did."""
    reached, failed, example = Counter(), Counter(), {}
    for run, outcome in outcomes.items():
        reached.update((run.name, name) for name in {*outcome.checked, *outcome.failed})
        failed.update((run.name, name) for name in outcome.failed)
        for name, message in outcome.failed.items():
            example.setdefault((run.name, name), f"{run.instructions or f'seeds {run.number}'}: {message}")
    if not failed:
        return ""
    lines = ["\n## What failed\n", "| where | assertion | failed | first |", "|---|---|---|---|"]
    for (where, name), times in failed.most_common():
        cells = (where, f"`{name}`", f"{times} of {reached[where, name]}", example[where, name])
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def made_on(outcomes: dict[Run, Outcome]) -> str:
    minutes = sum(outcome.seconds for outcome in outcomes.values()) / 60
    return (
        f"\n{len(outcomes)} runs, {minutes:.0f} minutes of one core each added up, on {processor()} with Python "
        f"{platform.python_version()}, torch {torch_version()} and NumPy {version('numpy')}.\n"
    )


def torch_version() -> str:
    return version("torch")


def processor() -> str:
    """Its name and family, as Linux tells them; elsewhere, its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    return f"{facts.get('model name', platform.machine())}, model {facts.get('model', 'unknown')}"


if __name__ == "__main__":
    main()
