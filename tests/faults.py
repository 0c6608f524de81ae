"""Plant faults in the samplers, one at a time, in a copy of the project, and report which tests notice.

    python tests/faults.py                           # all faults; about an hour and a half on two cores
    python tests/faults.py --only swap               # those whose description contains "swap"
    python tests/faults.py --to notebooks/faults.md  # the report into a file

A fault that no test notices means that the tests prove less than they seem to: the exit status is 1 then. What is
planted says when it is executed, so that tests that never come by are not taken for tests that noticed nothing.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    """``new`` in place of ``old``, an expression in a function or method of a module of bnn_utils.

    Expressions are compared by what they mean to Python: how a line is laid out does not matter. ``samplers`` selects
    tests, as pytest's -k does. ``path`` is what small networks run in meanwhile, "native" code, which is the default,
    or "torch".
    """

    what: str
    module: str
    function: str
    old: str
    new: str
    samplers: str = "identity"
    path: str = "native"


in_torch = partial(Fault, path="torch")

HMC, EXCHANGE, CHEES = "kernels/hmc.py", "kernels/replica_exchange.py", "kernels/chees.py"
TREES, GROWTH = "kernels/nuts.py", "gradients/growth.py"
MICROCANONICAL, ISOKINETIC = "kernels/microcanonical.py", "gradients/isokinetic.py"
LEAPFROG = "gradients/leapfrog.py"
NATIVE, PROGRAM, BLOCKS = "gradients/native.py", "gradients/program.py", "gradients/blocks.py"
VECTOR, FORMULAS = "gradients/vector.py", "gradients/formulas.py"
SWAPPING = "replica or temperature or swap or modes"

ACCEPTANCE = "log_ratio(before, after) > u.log()"
KEPT = "of_each_lane(is_accept, proposal.position, start)"
TRAJECTORY = "leapfrog(start, p, density.log_prob_and_grad, {}, num_steps, metric.velocity, density.grad)"

FAULTS = [
    in_torch(
        "first half step backwards",
        HMC,
        "leapfrog",
        "_step(p, start.grad, step_size / 2)",
        "_step(p, start.grad, -step_size / 2)",
    ),
    in_torch(
        "last half step made whole",
        HMC,
        "leapfrog",
        "_step(p, end.grad, step_size / 2)",
        "_step(p, end.grad, step_size)",
    ),
    in_torch("no Metropolis correction", HMC, "accept", ACCEPTANCE, "log_ratio(before, after) > -torch.inf"),
    in_torch("acceptance with u for log u", HMC, "accept", ACCEPTANCE, "log_ratio(before, after) > u - 1"),
    in_torch("energy without the momentum", HMC, "energy_of", "(p * velocity(p)).sum(-1)", "0 * p.sum(-1)"),
    in_torch(
        "stale gradient after a rejection",
        HMC,
        "accept",
        KEPT,
        f"{KEPT}._replace(grad=proposal.position.grad)",
    ),
    in_torch(
        "stale density after a rejection",
        HMC,
        "accept",
        KEPT,
        f"{KEPT}._replace(log_prob=proposal.position.log_prob)",
    ),
    in_torch("momentum too small", HMC, "propose", "metric.momentum(noise)", "0.9 * metric.momentum(noise)"),
    in_torch("momentum by the inverse mass, diagonal", HMC, "metric", "rounded.rsqrt()", "rounded.sqrt()", "diagonal"),
    in_torch(
        "momentum by the inverse mass, dense",
        HMC,
        "metric",
        "Metric(rounded, factor)",
        "Metric(rounded, torch.linalg.cholesky(precise).to(theta))",  # after the check of the factor
        "dense",
    ),
    in_torch("velocity without the mass", HMC, "Metric.velocity", "self.inv_mass * p", "p", "diagonal"),
    in_torch(
        "one momentum for all lanes",
        HMC,
        "propose",
        "metric.momentum(noise)",
        "metric.momentum(0 * noise + noise[0])",
    ),
    in_torch("one uniform for all lanes", HMC, "accept", ACCEPTANCE, "log_ratio(before, after) > u[0].log()"),
    in_torch(
        "steps longer on one side of 0",
        HMC,
        "trajectory",
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
    in_torch(
        "NUTS takes the last state of a doubling",
        TREES,
        "doubled",
        "lane_uniform(key, 3 * (2**level + i) + STATE) < (log_weight - total).exp()",
        "lane_uniform(key, 3 * (2**level + i) + STATE) < 2",
        "NUTS",
    ),
    in_torch(
        "NUTS takes every doubling, whatever it weighs",
        TREES,
        "_joined",
        "u < (more - before).clamp(max=0).exp()",
        "u < 2",
        "NUTS",
    ),
    in_torch(
        "NUTS goes on when a part of a doubling turns back",
        TREES,
        "doubled",
        "grows & ~turns_back(stretches[-1], last)",
        "grows",
        "NUTS",
    ),
    in_torch(
        "NUTS always goes forwards",
        TREES,
        "transition",
        "lane_uniform(key, 3 * 2**level + DIRECTION) < 0.5",
        "lane_uniform(key, 3 * 2**level + DIRECTION) < 2",
        "NUTS",
    ),
    in_torch(
        "NUTS forgets the weight of what was there before",
        TREES,
        "_joined",
        "torch.logaddexp(before, more)",
        "more",
        "NUTS",
    ),
    in_torch(
        "NUTS has one key for all lanes",
        TREES,
        "NUTS.step",
        "lane_keys(first, torch.rand(len(theta), **of_each))",
        "0 * first.long() + lane_keys(first, torch.rand(len(theta), **of_each))[0]",
        "NUTS",
    ),
    Fault(
        "HMC of a density that is called: every end accepted",
        LEAPFROG,
        "_Assembly._end",
        "lane.is_less(lane.on_one(lane.one.log, uniform), log_ratio)",
        "I1(1)",
        "large_networks",
    ),
    Fault(
        "HMC of a density that is called: last half step made whole",
        LEAPFROG,
        "_Assembly._arrive",
        "b.select(is_last, self._half(lane), lane.get('size'))",
        "lane.get('size')",
        "large_networks",
    ),
    Fault(
        "HMC of a density that is called: one momentum for all lanes",
        LEAPFROG,
        "_Assembly._begin",
        "lane.array('momenta', b.mul(drawn, lane.dim))",
        "lane.array('momenta', b.mul(b.mul(lane.get('transition'), lane.field('num_lanes')), lane.dim))",
        "large_networks",
    ),
    Fault(
        "HMC of a density that is called: velocity without the mass",
        LEAPFROG,
        "Hamiltonian._velocity",
        "lane.v.mul(inv_mass, one)",
        "one",
        "large_networks",
    ),
    Fault(
        "NUTS takes the last state of a doubling, in native code",
        GROWTH,
        "_Assembly._arrive",
        "lane.is_less(lane.uniform(b.add(first, place), STATE), lane.probability(b.fsub(log_weight, total)))",
        "I1(1)",
        "NUTS",
    ),
    Fault(
        "NUTS takes every doubling, in native code",
        GROWTH,
        "_Assembly._take_over",
        "lane.is_less(u, lane.probability(b.fsub(more, before)))",
        "I1(1)",
        "NUTS",
    ),
    Fault(
        "NUTS has one key for all lanes, in native code",
        GROWTH,
        "_Assembly._begin",
        "lane.array('keys', drawn, kind=I64)",
        "lane.array('keys', b.mul(lane.get('transition'), lane.field('num_lanes')), kind=I64)",
        "NUTS",
    ),
    Fault(
        "a symmetry leaves the gradient where it was",
        HMC,
        "Position.moved",
        "self._replace(theta=move(self.theta), grad=move(self.grad))",
        "self._replace(theta=move(self.theta))",
        "symmetric",
    ),
    in_torch(
        "a log scale without its Jacobian",
        "families.py",
        "family",
        "(1.0, 0.5 * scale**-2, 2.0)",
        "(0.0, 0.5 * scale**-2, 2.0)",
        "scales",
    ),
    Fault(
        "a half-Cauchy's tail forgotten, in native code",
        "gradients/elements.py",
        "_half_student",
        "v.fma(v.neg(c), softplus, u)",
        "u",
        "scales",
    ),
    in_torch(
        "the ratio to a reference without the reference",
        "kernels/path.py",
        "path_of",
        "log_prob - q.log_prob(theta)",
        "log_prob",
        "reference",
    ),
    in_torch(
        "swap without the difference of the likelihoods",
        EXCHANGE,
        "_swap_ratio",
        "state.log_likelihood.view(state.replica.shape).diff(dim=1)",
        "state.log_likelihood.view(state.replica.shape)[:, 1:]",
        SWAPPING,
    ),
    Fault("swap with the sign turned round", EXCHANGE, "Ladder.of", "-beta.diff()", "beta.diff()", SWAPPING),
    in_torch(
        "every swap accepted",
        EXCHANGE,
        "ReplicaExchange._in_torch",
        "log_ratio > u.log()",
        "log_ratio > -torch.inf",
        SWAPPING,
    ),
    in_torch(
        "swaps of all pairs at once",
        EXCHANGE,
        "ReplicaExchange._in_torch",
        "(log_ratio > u.log()) & ladder.turns[state.count % 2]",
        "log_ratio > u.log()",
        SWAPPING,
    ),
    in_torch(
        "gradient left behind in a swap",
        EXCHANGE,
        "ReplicaExchange._in_torch",
        "state.grad_likelihood[rows]",
        "state.grad_likelihood",
        SWAPPING,
    ),
    in_torch(
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
    in_torch(
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
    Fault(
        "native: last half step made whole",
        PROGRAM,
        "Assembly._trajectory",
        "kick(half)",
        "kick(size)",
    ),
    Fault(
        "native: one step too many",
        PROGRAM,
        "Assembly._trajectory",
        "self.loop(b, I64(1), num_steps)",
        "self.loop(b, I64(0), num_steps)",
    ),
    Fault(
        "native: acceptance with the sign turned round",
        BLOCKS,
        "Blocks._is_accepted",
        "v.sub(start, end)",
        "v.sub(end, start)",
    ),
    Fault(
        "native: energy without the prior",
        BLOCKS,
        "Blocks._transitions",
        "v.add(found, self._log_prior(b, v, there, precision, log_normalizer))",
        "found",
    ),
    Fault(
        "native: log prior without the half",
        PROGRAM,
        "Assembly._log_prior",
        "v.constant(-0.5)",
        "v.constant(-1.0)",
    ),
    Fault(
        "native: gradient left behind in an acceptance",
        BLOCKS,
        "Blocks._transitions",
        "self._copy(b, (there, here), (slope_there, slope), where=is_accept)",
        "self._copy(b, (there, here), where=is_accept)",
    ),
    Fault(
        "native: the same noise in every transition of a block",
        BLOCKS,
        "Blocks._transitions",
        "self._draw_momentum(b, v, p, noise, drawn, factor)",
        "self._draw_momentum(b, v, p, noise, rows, factor)",
    ),
    Fault(
        "native: noise and acceptance from the same uniform numbers",
        NATIVE,
        "drawn",
        "words[:, first + of_noise :].contiguous()",
        "words[:, first : first + num_lanes].contiguous()",
    ),
    Fault(
        "native: jitter ignored",
        NATIVE,
        "Native.transitions",
        "varied(step_size, jitter, u, uniforms)",
        "torch.full_like(uniforms, step_size)",
        "adapted",
    ),
    Fault(
        "native: after the warm-up with the step size that was given",
        HMC,
        "HMC._in_native_code",
        "in_native_code(native, generator, state.position, state.step_size, state.jitter, steps, state.metric)",
        "in_native_code(native, generator, state.position, self.step_size, state.jitter, steps, state.metric)",
        "adapted",
    ),
    Fault(
        "native: half the angle in normal numbers",
        PROGRAM,
        "Assembly._normals",
        "v.cos_sin_turns(turn)",
        "v.cos_sin_turns(v.mul(v.constant(0.5), turn))",
    ),
    Fault(
        "native: logarithm of 2 to two digits",
        VECTOR,
        "Vectors._log",
        "self.constant(math.log(2.0))",
        "self.constant(0.69)",
    ),
    Fault(
        "native: no gradient for a bias",
        PROGRAM,
        "Assembly._evaluation",
        "add(sums[k], one, i)",
        "k != program.layers[0].places[0][0] and add(sums[k], one, i)",
    ),
    Fault(
        "native: slope of tanh with the sign turned round",
        FORMULAS,
        "activated",
        "v.fma(v.neg(v.mul(h, h)), g, g)",
        "v.fma(v.mul(h, h), g, g)",
    ),
    Fault(
        "native: points that fill up a vector count",
        NATIVE,
        "filled_up",
        "weights.new_zeros(num)",
        "weights.new_ones(num)",
    ),
    Fault(
        "native: lanes beyond the last are read and written",
        PROGRAM,
        "Assembly._lanes",
        "b.select(b.icmp_signed('<', row, rows.last), row, rows.last)",
        "row",
    ),
    Fault(
        "native: hot forces are the cold ones",
        PROGRAM,
        "Assembly._trajectory",
        "v.fma(beta, of_likelihood, v.neg(of_prior))",
        "v.sub(of_likelihood, of_prior)",
        SWAPPING,
    ),
    Fault(
        "native: hot densities are the cold ones",
        BLOCKS,
        "Blocks._exchanges",
        "v.fma(beta, found, self._log_prior(b, v, there, precision, log_normalizer))",
        "v.add(found, self._log_prior(b, v, there, precision, log_normalizer))",
        SWAPPING,
    ),
    Fault(
        "native: swap with the sign turned round",
        BLOCKS,
        "Blocks._is_swapped",
        "b.fsub(high, low)",
        "b.fsub(low, high)",
        SWAPPING,
    ),
    Fault(
        "native: swaps of all pairs at once",
        BLOCKS,
        "Blocks._exchanges",
        "self.loop(b, parity, pairs, 2)",
        "self.loop(b, I64(0), pairs)",
        SWAPPING,
    ),
    Fault(
        "native: gradient left behind in a swap",
        BLOCKS,
        "Blocks._exchanges",
        "((theta, dim), (grad, dim), (likelihood, 1), (replica, 1))",
        "((theta, dim), (likelihood, 1), (replica, 1))",
        SWAPPING,
    ),
    Fault(
        "native: likelihood left behind in an acceptance",
        BLOCKS,
        "Blocks._exchanges",
        "((found, log_likelihood), (log_prob, now))",
        "((log_likelihood, log_likelihood), (log_prob, now))",
        SWAPPING,
    ),
    in_torch(
        "microcanonical: Jacobian of a sphere of one dimension more",
        MICROCANONICAL,
        "kick",
        "freedom * log_stretch.squeeze(-1)",
        "(freedom + 1) * log_stretch.squeeze(-1)",
        "MAMS",
    ),
    in_torch(
        "microcanonical: Jacobian of the last kick left out",
        MICROCANONICAL,
        "integrate",
        "start.log_prob - end.log_prob + (kinetic + gained)",
        "start.log_prob - end.log_prob + kinetic",
        "MAMS",
    ),
    in_torch(
        "microcanonical: steps without the mass",
        MICROCANONICAL,
        "integrate",
        "u if factor is None else u / factor",
        "u",
        "MAMS",
    ),
    in_torch(
        "microcanonical: one direction for all lanes",
        MICROCANONICAL,
        "refreshed",
        "torch.randn(u.shape, generator=generator, dtype=u.dtype, device=u.device)",
        "torch.randn(u.shape, generator=generator, dtype=u.dtype, device=u.device)[:1].expand_as(u)",
        "MAMS",
    ),
    Fault(
        "microcanonical: Jacobian of a sphere of one dimension more, in native code",
        ISOKINETIC,
        "_Assembly._kick",
        "b.fmul(freedom, log_stretch)",
        "b.fmul(b.fadd(freedom, self.scalar(1.0)), log_stretch)",
        "MAMS",
    ),
    Fault(
        "microcanonical: every end accepted, in native code",
        ISOKINETIC,
        "_Assembly._end",
        "lane.is_less(lane.on_one(lane.one.log, uniform), log_ratio)",
        "I1(1)",
        "MAMS",
    ),
    Fault(
        "microcanonical: steps without the mass, in native code",
        ISOKINETIC,
        "_Assembly._go",
        "v.mul(scale, u)",
        "u",
        "MAMS",
    ),
    Fault(
        "microcanonical: one direction for all lanes, in native code",
        ISOKINETIC,
        "_Assembly._begin",
        "lane.array('noise', b.mul(drawn, lane.dim))",
        "lane.array('noise', b.mul(b.mul(lane.get('transition'), lane.field('num_lanes')), lane.dim))",
        "MAMS",
    ),
]

# What is asked of the samplers -> the files, and the tests in them.
INSTRUMENTS = {
    "units": (
        [
            *("test_hmc.py", "test_microcanonical.py", "test_nuts.py", "test_replica_exchange.py", "test_scales.py"),
            "test_symmetric.py",
        ],
        None,
    ),
    "both codes": (
        [
            "test_native.py::test_chains_follow_those_of_torch",
            "test_native.py::test_random_numbers_are_torchs",
            "test_native.py::test_points_without_weight_count_for_nothing",
            "test_native.py::test_it_is_the_closed_form",
            "test_joints.py",
            "test_vector.py",
        ],
        None,
    ),
    "runs": (["test_run.py"], None),
    "energy": (["test_exactness.py"], "energy_error"),
    "closed forms": (["test_exactness.py"], "test_gaussian or two_modes"),
    "balance": (["test_exactness.py"], "balance"),
    "lanes": (["test_exactness.py"], "lanes"),
    "Geweke": (["test_joint.py"], "in_turn"),
    "SBC": (["test_joint.py"], "calibration"),
}
PATHS = ("native", "torch")
FAILED = re.compile(r"^FAILED \S+?::(\S+.*?)(?: - |$)", re.MULTILINE)
CRASHED = re.compile(r"^Fatal Python error.*? in (test_\w+)$", re.MULTILINE | re.DOTALL)
EXECUTED = "executed"  # a file that appears when what is planted is executed
LIMIT = 600  # seconds for one instrument; a fault can make a sampler very slow, and that is no verdict


REPORT = """# Planted faults, and the tests that noticed

A script, `tests/faults.py`, plants each fault in a copy of the library and runs the suite on the
samplers that it concerns, in native code or, for faults in torch's code, in torch. **x**: a test of this kind failed. A
dash: all of them passed, because they look for other things, or because the fault is too small for them. Empty: none of
them runs what was planted, or they took too long. `make faults` makes this page; it says so if a fault went unseen.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="plant the faults whose description contains this")
    parser.add_argument("--to", type=Path, help="write the report here")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if arguments.only in fault.what]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sound = list(
            pool.map(caught, *zip(*((None, name, path) for name in INSTRUMENTS for path in PATHS), strict=True))
        )
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


def table(faults: list[Fault], rows: list[list[str | None]]) -> str:
    """One line for each fault: which instruments noticed, and one of the tests."""
    lines = [["fault", *INSTRUMENTS, "noticed by, among others"], ["---"] * (len(INSTRUMENTS) + 2)]
    for fault, row in zip(faults, rows, strict=True):
        first = next(filter(None, row), "")
        seen = ("" if name is None else "x" if name else "-" for name in row)
        lines.append([fault.what, *seen, f"`{first}`" if first else "**unseen**"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def look(fault: Fault) -> list[str | None]:
    """What each instrument says to the fault."""
    return [caught(fault, name, fault.path) for name in INSTRUMENTS]


def caught(fault: Fault | None, instrument: str, path: str) -> str | None:
    """The first test of an instrument that notices the fault, nothing, or None where none of its tests executes it.

    Raises:
        RuntimeError: if tests can't be run, or one fails although the fault was not executed.
    """
    files, tests = INSTRUMENTS[instrument]
    select = " and ".join(f"({part})" for part in (tests, fault and tests and fault.samplers) if part)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("bnn_utils", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if fault is not None:
            plant(fault, folder)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", select]
        try:
            run = subprocess.run(
                [*command, *(f"tests/{file}" for file in files)],
                cwd=folder,
                # Native code of its own: what is loaded from a cache would not be assembled, nor say so.
                env=os.environ | {"BNN_UTILS_TESTS": path, "BNN_UTILS_CACHE": str(folder / "native")},
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            if fault is None:
                raise
            return None
        is_executed = (folder / EXECUTED).exists()
    if run.returncode in (0, 5):  # all passed, or this instrument has no test of the samplers in question
        return "" if is_executed or fault is None else None
    failed = FAILED.search(run.stdout) or CRASHED.search(run.stderr)
    if failed is None or not (is_executed or fault is None):
        raise RuntimeError(
            f"{instrument} did not run{' the fault' * bool(failed)}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        )
    return failed.group(1)


def plant(fault: Fault, folder: Path) -> None:
    """Change the module in a copy of the project; the file ``EXECUTED`` appears there when the change is executed.

    Of native code, that is when it is written down, for a network on which it runs next.

    Raises:
        ValueError: if the expression is not there exactly once: the module has changed, and the fault must follow.
    """
    path = folder / "bnn_utils" / fault.module
    module = ast.parse(path.read_text())
    new = f"(_executed(), {fault.new})[1]"
    swap = Swap(*(ast.parse(text, mode="eval").body for text in (fault.old, new)))
    swap.visit(function_in(module, fault.function))
    if swap.count != 1:
        raise ValueError(
            f"{fault.what}: {fault.old!r} is in {fault.function} of {fault.module} {swap.count} times, not once"
        )
    touch = f"_executed = __import__('functools').cache(__import__('pathlib').Path({str(folder / EXECUTED)!r}).touch)"
    path.write_text(f"{ast.unparse(ast.fix_missing_locations(module))}\n{touch}\n")


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
