"""Plant faults in the samplers, one at a time, in a copy of the project, and report which tests notice.

    python tests/faults.py                           # all faults; about an hour on two cores
    python tests/faults.py --only swap               # those whose description contains "swap"
    python tests/faults.py --to notebooks/faults.md  # the report into a file

A fault that no test notices means that the tests prove less than they seem to: the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import ast
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
    """``new`` in place of ``old``, an expression in a function or method of a module of bnn_utils.

    Expressions are compared by what they mean to Python: how a line is laid out does not matter. ``samplers`` selects
    tests, as pytest's -k does.
    """

    what: str
    module: str
    function: str
    old: str
    new: str
    samplers: str = "identity"


HMC, EXCHANGE, CHEES = "kernels/hmc.py", "kernels/replica_exchange.py", "kernels/chees.py"
SWAPPING = "replica or temperature or swap or modes"

ACCEPTANCE = "log_ratio(before, after) > u.log()"
KEPT = "_where(is_accept, proposal.position, start)"
TRAJECTORY = "leapfrog(start, p, density.log_prob_and_grad, {}, num_steps, metric.velocity, density.grad)"

FAULTS = [
    Fault(
        "first half step backwards",
        HMC,
        "leapfrog",
        "_step(p, start.grad, step_size / 2)",
        "_step(p, start.grad, -step_size / 2)",
    ),
    Fault(
        "last half step made whole",
        HMC,
        "leapfrog",
        "_step(p, end.grad, step_size / 2)",
        "_step(p, end.grad, step_size)",
    ),
    Fault("no Metropolis correction", HMC, "accept", ACCEPTANCE, "log_ratio(before, after) > -torch.inf"),
    Fault("acceptance with u for log u", HMC, "accept", ACCEPTANCE, "log_ratio(before, after) > u - 1"),
    Fault("energy without the momentum", HMC, "_energy", "(p * velocity(p)).sum(-1)", "0 * p.sum(-1)"),
    Fault(
        "stale gradient after a rejection",
        HMC,
        "accept",
        KEPT,
        f"{KEPT}._replace(grad=proposal.position.grad)",
    ),
    Fault(
        "stale density after a rejection",
        HMC,
        "accept",
        KEPT,
        f"{KEPT}._replace(log_prob=proposal.position.log_prob)",
    ),
    Fault("momentum too small", HMC, "propose", "metric.momentum(noise)", "0.9 * metric.momentum(noise)"),
    Fault("momentum by the inverse mass, diagonal", HMC, "metric", "rounded.rsqrt()", "rounded.sqrt()", "diagonal"),
    Fault(
        "momentum by the inverse mass, dense",
        HMC,
        "metric",
        "Metric(rounded, factor)",
        "Metric(rounded, torch.linalg.cholesky(precise).to(theta))",  # after the check of the factor
        "dense",
    ),
    Fault("velocity without the mass", HMC, "Metric.velocity", "self.inv_mass * p", "p", "diagonal"),
    Fault(
        "one momentum for all lanes",
        HMC,
        "propose",
        "metric.momentum(noise)",
        "metric.momentum(0 * noise + noise[0])",
    ),
    Fault("one uniform for all lanes", HMC, "accept", ACCEPTANCE, "log_ratio(before, after) > u[0].log()"),
    Fault(
        "steps longer on one side of 0",
        HMC,
        "propose",
        TRAJECTORY.format("step_size"),
        TRAJECTORY.format("step_size * (1 + (start.theta[:, :1] > 0) / 2)"),
    ),
    Fault(
        "number of steps by where the lanes are",
        CHEES,
        "ChEES.step",
        "num_steps(state.count, state.trajectory_length, state.step_size)",
        "max(1, int(num_steps(state.count, state.trajectory_length, state.step_size)"
        " * (1 + state.position.theta.mean().tanh())))",
        "ChEES",
    ),
    Fault(
        "swap without the difference of the likelihoods",
        EXCHANGE,
        "ReplicaExchange.step",
        "by_chain(state.log_likelihood).diff(dim=1)",
        "by_chain(state.log_likelihood)[:, 1:]",
        SWAPPING,
    ),
    Fault("swap with the sign turned round", EXCHANGE, "Ladder.of", "-beta.diff()", "beta.diff()", SWAPPING),
    Fault(
        "every swap accepted",
        EXCHANGE,
        "ReplicaExchange.step",
        "log_ratio > u.log()",
        "log_ratio > -torch.inf",
        SWAPPING,
    ),
    Fault(
        "swaps of all pairs at once",
        EXCHANGE,
        "ReplicaExchange.step",
        "(log_ratio > u.log()) & ladder.turns[state.count % 2]",
        "log_ratio > u.log()",
        SWAPPING,
    ),
    Fault(
        "gradient left behind in a swap",
        EXCHANGE,
        "ReplicaExchange.step",
        "state.grad_likelihood[rows]",
        "state.grad_likelihood",
        SWAPPING,
    ),
    Fault(
        "prior tempered with the likelihood",
        EXCHANGE,
        "Tempered.position",
        "torch.addcmul(log_prior, self._beta, log_likelihood)",
        "self._beta * (log_prior + log_likelihood)",
        SWAPPING,
    ),
    Fault(
        "labels of another data set",
        "posterior.py",
        "Posterior.targets_for",
        "self.counted.y.transpose(0, 1)",
        "self.counted.y.transpose(0, 1).roll(1, 0)",
        "identity or replica",
    ),
    Fault(
        "warm-up forgotten between segments",
        "run.py",
        "_advance",
        "Checkpoint(state, generator.get_state(), start.done + num)",
        "Checkpoint(state._replace(warmup=None) if hasattr(state, 'warmup') else state,"
        " generator.get_state(), start.done + num)",
    ),
    Fault(
        "every segment from the beginning of the random stream",
        "run.py",
        "_advance",
        "generator.set_state(start.rng)",
        "generator.manual_seed(0)",
    ),
    Fault(
        "the same random numbers in every segment",
        "run.py",
        "_advance",
        "generator.get_state()",
        "start.rng",
    ),
    Fault(
        "draws before an interruption kept twice",
        "batches.py",
        "Batches._kept",
        "place >= skipped",
        "True",
    ),
    Fault(
        "after the warm-up with the step size that was given",
        HMC,
        "HMC.step",
        "jittered(state.step_size, state.jitter, generator, state.position.theta)",
        "jittered(self.step_size if state.warmup is None else state.step_size, state.jitter, generator,"
        " state.position.theta)",
        "adapted",
    ),
    Fault(
        "a chain's kernel is the one that was given",
        "kernels/base.py",
        "adapted",
        "hasattr(kernel, 'adapted')",
        "False",
        "adapted",
    ),
]

# What is asked of the samplers -> the files, and the tests in them.
INSTRUMENTS = {
    "units": (["test_hmc.py", "test_replica_exchange.py"], None),
    "runs": (["test_run.py"], None),
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
        ValueError: if the expression is not there exactly once: the module has changed, and the fault must follow.
    """
    path = folder / "bnn_utils" / fault.module
    module = ast.parse(path.read_text())
    swap = Swap(*(ast.parse(text, mode="eval").body for text in (fault.old, fault.new)))
    swap.visit(function_in(module, fault.function))
    if swap.count != 1:
        raise ValueError(
            f"{fault.what}: {fault.old!r} is in {fault.function} of {fault.module} {swap.count} times, not once"
        )
    path.write_text(ast.unparse(ast.fix_missing_locations(module)))


def function_in(module: ast.Module, name: str) -> ast.AST:
    """A function, or a method as "class.method"."""
    place: ast.AST = module
    for part in name.split("."):
        found = [node for node in place.body if getattr(node, "name", None) == part]
        if not found:
            raise ValueError(f"there is no {name}")
        place = found[0]
    return place


class Swap(ast.NodeTransformer):
    """One expression in place of another."""

    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self.old, self.new, self.count = ast.dump(old), new, 0

    def visit(self, node: ast.AST) -> ast.AST:
        if ast.dump(node) == self.old:
            self.count += 1
            return self.new
        return self.generic_visit(node)


if __name__ == "__main__":
    main()
