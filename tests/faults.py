"""Plant faults in the samplers, one at a time, in a copy of the project, and report which tests notice.

    python tests/faults.py                           # all faults; some 15 minutes on two cores
    python tests/faults.py --only swap               # those whose description contains "swap"
    python tests/faults.py --to notebooks/faults.md  # the report into a file

A fault that no test notices means that the tests prove less than they seem to: the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    """``new`` in place of ``old`` in a module of bnn_utils; ``samplers`` selects tests, as pytest's -k does."""

    what: str
    module: str
    old: str
    new: str
    samplers: str = "identity"


EXCHANGE = "replica or temperature or swap or modes"

FAULTS = [
    Fault(
        "first half step backwards",
        "hmc.py",
        "p = _step(p, state.grad, step_size / 2)",
        "p = _step(p, state.grad, -step_size / 2)",
    ),
    Fault(
        "last half step made whole",
        "hmc.py",
        "return end, _step(p, end.grad, step_size / 2)",
        "return end, _step(p, end.grad, step_size)",
    ),
    Fault("no Metropolis correction", "hmc.py", "> u.log()  #", "> -torch.inf  #"),
    Fault("acceptance with u for log u", "hmc.py", "> u.log()  #", "> u - 1  #"),
    Fault(
        "energy without the momentum",
        "hmc.py",
        "(p * velocity(p)).sum(-1), alpha=0.5",
        "(p * velocity(p)).sum(-1), alpha=0",
    ),
    Fault(
        "stale gradient after a rejection",
        "hmc.py",
        "return _where(is_accept, proposal.state, state), is_accept",
        "return _where(is_accept, proposal.state, state)._replace(grad=proposal.state.grad), is_accept",
    ),
    Fault(
        "stale density after a rejection",
        "hmc.py",
        "return _where(is_accept, proposal.state, state), is_accept",
        "return _where(is_accept, proposal.state, state)._replace(log_prob=proposal.state.log_prob), is_accept",
    ),
    Fault("momentum too small", "hmc.py", "p = metric.momentum(noise)", "p = 0.9 * metric.momentum(noise)"),
    Fault(
        "momentum by the inverse mass, diagonal", "hmc.py", "sd = inv_mass.rsqrt()", "sd = inv_mass.sqrt()", "diagonal"
    ),
    Fault(
        "momentum by the inverse mass, dense",
        "hmc.py",
        "factor = torch.linalg.cholesky(mass)",
        "factor = torch.linalg.cholesky(inv_mass)",
        "dense",
    ),
    Fault(
        "velocity without the mass",
        "hmc.py",
        "lambda noise: noise * sd, lambda p: inv_mass * p,",
        "lambda noise: noise * sd, lambda p: p,",
        "diagonal",
    ),
    Fault(
        "one momentum for all lanes",
        "hmc.py",
        "p = metric.momentum(noise)",
        "p = metric.momentum(0 * noise + noise[0])",
    ),
    Fault("one uniform for all lanes", "hmc.py", "> u.log()  #", "> u[0].log()  #"),
    Fault(
        "steps longer on one side of 0",
        "hmc.py",
        "end, p_end = leapfrog(state, p, log_prob_and_grad, step_size,",
        "end, p_end = leapfrog(state, p, log_prob_and_grad, step_size * (1 + (state.theta[:, :1] > 0) / 2),",
    ),
    Fault(
        "number of steps by where the lanes are",
        "adaptation.py",
        "            steps = self.steps(count)\n",
        "            steps = max(1, int(self.steps(count) * (1 + lanes.theta.mean().tanh())))\n",
        "ChEES",
    ),
    Fault(
        "swap without the difference of the likelihoods",
        "tempering.py",
        "gaps * state.log_likelihood.view(num_chains, num).diff(dim=1)",
        "gaps * state.log_likelihood.view(num_chains, num)[:, 1:]",
        EXCHANGE,
    ),
    Fault("swap with the sign turned round", "tempering.py", "-ladder.diff()", "ladder.diff()", EXCHANGE),
    Fault(
        "every swap accepted",
        "tempering.py",
        "(log_ratio > u.log()) & turns",
        "(log_ratio > -torch.inf) & turns",
        EXCHANGE,
    ),
    Fault("swaps of all pairs at once", "tempering.py", " & turns[state.count % 2]).long()", ").long()", EXCHANGE),
    Fault(
        "gradient left behind in a swap",
        "tempering.py",
        "state.grad_likelihood[rows])",
        "state.grad_likelihood)",
        EXCHANGE,
    ),
    Fault(
        "prior tempered with the likelihood",
        "tempering.py",
        "log_prob = torch.addcmul(log_prior, beta, log_likelihood)",
        "log_prob = beta * (log_prior + log_likelihood)",
        EXCHANGE,
    ),
    Fault(
        "labels of another data set",
        "posterior.py",
        "repeat_interleave(num_lanes // self.num_datasets, dim=0)",
        "roll(1, 0).repeat_interleave(num_lanes // self.num_datasets, dim=0)",
        "identity or replica",
    ),
]

# What is asked of the samplers -> the files, and the tests in them.
INSTRUMENTS = {
    "units": (["test_hmc.py", "test_tempering.py"], None),
    "energy": (["test_exactness.py"], "energy_error"),
    "closed forms": (["test_exactness.py"], "test_gaussian or two_modes"),
    "balance": (["test_exactness.py"], "balance"),
    "lanes": (["test_exactness.py"], "lanes"),
    "Geweke": (["test_joint.py"], "in_turn"),
    "SBC": (["test_joint.py"], "calibration"),
}
LIMIT = 600  # seconds for one instrument; a fault can make a sampler very slow, and that is no verdict


REPORT = """# Planted faults, and the tests that noticed

A script, `tests/faults.py`, plants each fault in a copy of the library and runs the suite on the
samplers that it concerns. **x**: a test of this kind failed. A dash: all of them passed, because they look for other
things, or because the fault is too small for them. `make faults` makes this page; it says so if a fault went unseen.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="plant the faults whose description contains this")
    parser.add_argument("--to", type=Path, help="write the report here")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if arguments.only in fault.what]
    with ThreadPoolExecutor(cpu_count()) as pool:
        sound = list(pool.map(lambda name: caught(None, name), INSTRUMENTS))
        if any(sound):
            sys.exit(f"without a fault these fail: {', '.join(filter(None, sound))}")
        rows = []
        for fault, row in zip(faults, pool.map(look, faults), strict=True):
            print(f"{fault.what}: {', '.join(filter(None, row)) or 'UNSEEN'}", flush=True)
            rows.append(row)
    if arguments.to:
        arguments.to.write_text(REPORT + table(faults, rows))
    unseen = sum(not any(row) for row in rows)
    sys.exit(f"{unseen} of {len(faults)} faults went unseen" if unseen else None)


def table(faults: list[Fault], rows: list[list[str]]) -> str:
    """One line for each fault: which instruments noticed, and one of the tests."""
    lines = [["fault", *INSTRUMENTS, "noticed by, among others"], ["---"] * (len(INSTRUMENTS) + 2)]
    for fault, row in zip(faults, rows, strict=True):
        first = next(filter(None, row), "")
        lines.append([fault.what, *("x" if name else "-" for name in row), f"`{first}`" if first else "**unseen**"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def look(fault: Fault) -> list[str]:
    """Of each instrument, the first test that notices the fault, or nothing."""
    return [caught(fault, name) for name in INSTRUMENTS]


def caught(fault: Fault | None, instrument: str) -> str:
    files, tests = INSTRUMENTS[instrument]
    select = " and ".join(f"({part})" for part in (tests, fault and tests and fault.samplers) if part)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("bnn_utils", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if fault is not None:
            plant(fault, Path(folder))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", select]
        try:
            run = subprocess.run(
                [*command, *(f"tests/{file}" for file in files)],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            if fault is None:
                raise
            return ""
    if run.returncode in (0, 5):  # all passed, or this instrument has no test of the samplers in question
        return ""
    failed = re.search(r"^FAILED \S+?::(\S+.*?)(?: - |$)", run.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"{instrument} did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return failed.group(1)


def plant(fault: Fault, folder: Path) -> None:
    """Change the module in a copy of the project.

    Raises:
        ValueError: if the text to replace is not there exactly once: the module has changed, and the fault must follow.
    """
    path = folder / "bnn_utils" / fault.module
    source = path.read_text()
    if source.count(fault.old) != 1:
        raise ValueError(f"{fault.what}: {fault.old!r} is in {fault.module} {source.count(fault.old)} times, not once")
    path.write_text(source.replace(fault.old, fault.new))


if __name__ == "__main__":
    main()
