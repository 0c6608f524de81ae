"""Run a notebook, or the tests, as if other seeds had been written into them; `tools/robust.py` counts what then fails.

    python tools/reseed.py RESULT NUMBER NOTEBOOK.py          # one notebook, the solutions of its exercises included
    python tools/reseed.py RESULT NUMBER FOLDER MARK          # the tests in the folder with marks, as pytest's -m takes

NUMBER is that of the other seeds; 0 leaves seeds as they are. Every assertion is tried, also after one has failed, and
RESULT is a JSON file: which assertions were checked, which failed with what message, and how far numbers that were
compared lay from their limits. A cell that warns of something counts as failed too.

Every seed is replaced by another one where a random stream is made from it, in this process only, so that neither the
library nor the notebooks need to know. The data of the tutorial and of references stay: their seeds say which problem
is solved.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import operator
import os
import re
import sys
import tempfile
from contextlib import redirect_stderr
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from io import StringIO
from itertools import pairwise
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
DATA_MODULES = ("bnn_utils.tutorial", "bnn_utils.references.problems")
SYMBOLS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
SOLUTION = re.compile(r"<summary>Solution</summary>\n\n```python\n(.*?)```", re.DOTALL)


def main() -> None:
    result, number, what = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).resolve()
    opened = watch_data()
    if number:
        reseed(number)
    tried = run_tests(what, sys.argv[4]) if what.is_dir() else run_notebook(what)
    outcome = {
        "checked": sorted(tried.checked),
        "failed": tried.failed,
        "room": tried.room,
        "sources": sources(what, opened),
    }
    result.write_text(json.dumps(outcome))


def watch_data() -> set[Path]:
    """The data files that are opened from now on, in this process."""
    opened: set[Path] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path) and Path(arguments[0]).suffix in {".csv", ".npz"}:
            opened.add(Path(arguments[0]).resolve())

    sys.addaudithook(note)
    return opened


def sources(what: Path, opened: set[Path]) -> dict[str, str]:
    """Digests of all of the project's files that were at work: what was run, modules that were imported, their data."""
    modules = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    mine = {path for path in modules | opened if path.is_relative_to(ROOT) and ".venv" not in path.parts}
    mine |= marked(what) if what.is_dir() else {what}
    return {str(path): digest(path) for path in sorted(mine)}


def digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def marked(folder: Path) -> set[Path]:
    """The files of tests that have statistical ones."""
    return {path for path in folder.glob("test_*.py") if "mark.statistical" in path.read_text()}


class Tried:
    """Assertions by their text: which were reached, what the failed ones said, and how much room numbers had."""

    def __init__(self) -> None:
        self.checked: set[str] = set()
        self.failed: dict[str, str] = {}
        self.room: dict[str, list[float]] = {}  # comparison -> difference to the limit, logarithm of the ratio
        self.where = ""  # the test that is running

    def fail(self, name: str, message: str) -> None:
        self.checked.add(name)
        self.failed.setdefault(name, message.strip().split("\n")[0][:200])

    def compare(self, signs: list[str], claims: list[str], *values: Any) -> Any:
        """What ``values[0] < values[1] < ...`` is, with these signs, noting how much room each of them had."""
        result = True
        for sign, claim, (left, right) in zip(signs, claims, pairwise(values), strict=True):
            self._note(claim, *((left, right) if sign.startswith("<") else (right, left)))
            result = SIGNS[sign](left, right)
            if len(signs) > 1 and not result:
                break
        return result

    def _note(self, claim: str, small: Any, large: Any) -> None:
        try:
            small, large = (np.asarray(value, dtype=float) for value in (small, large))
        except (TypeError, ValueError, RuntimeError):  # no numbers
            return
        if not np.size(small - large):
            return
        is_positive = (small > 0).all() and (large > 0).all()
        room = [float((large - small).min()), float(np.log(large / small).min()) if is_positive else math.nan]
        claim = self.where + claim
        self.room[claim] = [min(pair) for pair in zip(self.room.get(claim, room), room, strict=True)]


# --- other seeds ------------------------------------------------------------------------------------------------------


def reseed(number: int) -> None:
    """From now on, in this process, a seed stands for the random stream of another one."""

    def other(seed: Any) -> Any:
        if not isinstance(seed, (int, np.integer)) or sys._getframe(2).f_globals.get("__name__") in DATA_MODULES:
            return seed
        return int(hashlib.blake2b(f"{number} {seed}".encode(), digest_size=4).hexdigest(), 16)

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(other(seed))

    class RandomState(np.random.RandomState):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(other(seed))

    default_rng = np.random.default_rng
    torch.Generator = Generator
    np.random.RandomState = RandomState  # scikit-learn's random_state
    np.random.default_rng = lambda seed=None: default_rng(other(seed))


# --- a notebook -------------------------------------------------------------------------------------------------------


class GoOn(ast.NodeTransformer):
    """Each assertion reports to ``__tried__`` whether it holds, and what follows it is run in any case."""

    def __init__(self, cell: str) -> None:
        self.cell = cell

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        text = f"assert {ast.unparse(node.test)}"
        node.test = measured(node.test, f"{self.cell}: ")
        return self._guarded(node, text)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        is_assertion = isinstance(called, ast.Attribute) and called.attr.startswith("assert_")
        return self._guarded(node, ast.unparse(node)) if is_assertion else node

    def _guarded(self, node: ast.stmt, text: str) -> ast.AST:
        name = json.dumps(f"{self.cell}: {text}")
        guard = ast.parse(
            f"try:\n    __tried__.checked.add({name})\n"
            f"except AssertionError as __error__:\n    __tried__.fail({name}, str(__error__) or 'does not hold')"
        ).body[0]
        guard.body.append(node)
        return ast.fix_missing_locations(ast.copy_location(guard, node))


def measured(claim: ast.expr, where: str = "") -> ast.expr:
    """The same claim, whose comparisons of numbers are made by ``__tried__``."""
    match claim:
        case ast.BoolOp(op=ast.And()):
            claim.values = [measured(value, where) for value in claim.values]
        case ast.Call(func=ast.Attribute(attr="all"), args=[], keywords=[]):
            claim.func.value = measured(claim.func.value, where)
        case ast.Call(func=ast.Name(id="all"), args=[ast.GeneratorExp() as each], keywords=[]):
            each.elt = measured(each.elt, where)
        case ast.Compare() if all(type(sign) in SYMBOLS for sign in claim.ops):
            values, signs = [claim.left, *claim.comparators], [SYMBOLS[type(sign)] for sign in claim.ops]
            texts = [ast.unparse(value) for value in values]
            claims = [f"{where}{a} {sign} {b}" for sign, (a, b) in zip(signs, pairwise(texts), strict=True)]
            call = ast.parse(f"__tried__.compare({signs}, {json.dumps(claims)})").body[0].value
            call.args += values
            return call
    return claim


def run_notebook(path: Path) -> Tried:
    """In a folder of its own, in this process, without a kernel: pictures are made and not shown."""
    import jupytext

    tried, namespace = Tried(), sys.modules["__main__"].__dict__
    os.environ |= {"TQDM_DISABLE": "1", "MPLBACKEND": "agg"}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "benchmarks").symlink_to(ROOT / "benchmarks")  # which notebook 3 reads
        Path(folder, "notebooks").mkdir()
        os.chdir(Path(folder, "notebooks"))
        namespace["__tried__"] = tried
        for name, source in pieces(jupytext.read(path)):
            with redirect_stderr(StringIO()) as said:
                try:
                    exec(compiled(source, name), namespace if name.startswith("cell") else dict(namespace))
                except Exception as error:
                    tried.fail(f"{name}: runs to its end", f"{type(error).__name__}: {error}")
            if said.getvalue().strip():  # a stored notebook has none of it, so that the tests would find a difference
                tried.fail(f"{name}: warns of nothing", said.getvalue().replace(f"{ROOT}/", ""))
        os.chdir(ROOT)
    return tried


def pieces(notebook: Any) -> list[tuple[str, str]]:
    """Code cells and then the solutions of exercises, which need all cells: (name, source) each."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [(f"cell {number}", source) for number, source in enumerate(code, start=1)] + [
        (f"solution {number}", source) for number, source in enumerate(SOLUTION.findall(text), start=1)
    ]


def compiled(source: str, name: str) -> CodeType:
    return compile(GoOn(name).visit(ast.parse(source)), name, "exec")


# --- tests ------------------------------------------------------------------------------------------------------------


class Measured(SourceFileLoader):
    """Reads a file of tests, so that comparisons in its assertions are made by `Tried.compare`."""

    tried: Tried

    def source_to_code(self, data: Any, path: Any, **options: Any) -> CodeType:
        tree = ast.parse(data)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                text = ast.unparse(node)
                node.test = measured(node.test)
                node.msg = node.msg or ast.Constant(f"not so: {text}")
        return super().source_to_code(ast.fix_missing_locations(tree), path, **options)

    def exec_module(self, module: ModuleType) -> None:
        module.__tried__ = self.tried
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType:  # never one that was stored without this
        return self.source_to_code(self.get_data(self.path), self.path)


class Finder(PathFinder):
    """Of files of tests."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = super().find_spec(name, path, target) if name.startswith("test_") else None
        if spec is not None and spec.origin:
            spec.loader = Measured(name, spec.origin)
        return spec


def run_tests(folder: Path, mark: str) -> Tried:
    """Those with the mark, in this process, whose seeds are other ones already when the tests are read."""
    import pytest

    tried = Measured.tried = Tried()
    sys.meta_path.insert(0, Finder())

    class Listener:
        def pytest_runtest_logstart(self, nodeid: str) -> None:
            tried.where = f"{nodeid.split('/')[-1]}: "

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            name = report.nodeid.split("/")[-1]
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                tried.fail(name, crash.message if crash else str(report.longrepr))
            elif report.when == "call" and report.passed:
                tried.checked.add(name)

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                tried.fail(f"{report.nodeid} can be read", str(report.longrepr))

    os.chdir(folder.parent)
    files = [str(path) for path in sorted(marked(folder))]
    options = ["-q", "-m", mark, "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain"]
    pytest.main([*options, *files], [Listener()])
    return tried


if __name__ == "__main__":
    main()
