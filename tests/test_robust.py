"""The script that tries other seeds: that it changes them, finds a claim that depends on one, and goes on after it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reseed
import robust
from robust import Outcome, Run, failures, limits, near, page, plan, run_all, table

NOTEBOOK = """\
# %%
import torch
number = torch.rand(1, generator=torch.Generator().manual_seed(0)).item()
assert 0 <= number < 1
assert number < 0.5, f"{number:.2f} is large"
after = number

# %%
from bnn_utils import boxes
torch.testing.assert_close(boxes().x[0].sum().item(), 6.0, atol=4.5, rtol=0)
undefined

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# assert after == number
# ```
#
# </details>
"""

MARK = "statistical"  # apart, so that this file is not taken for one that has such tests

TESTS = """
import numpy as np
import pytest

@pytest.mark.MARK
def test_small():
    assert np.random.default_rng(0).random() < 0.5

@pytest.mark.MARK
def test_right():
    assert np.random.default_rng(0).random() < 1

def test_exact():
    assert np.random.default_rng(0).random() == 0.6369616873214543
""".replace("MARK", MARK)

RIGHT = "test_right: np.random.default_rng(0).random() < 1"

SEEDS = range(3, 6)  # one of the three fails


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(robust, "STORE", tmp_path / "store")


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "99_planted.py"
    path.write_text(NOTEBOOK)
    return path


def test_a_planted_claim_of_one_seed_is_found(store, notebook):
    """It holds for some seeds only; what follows is tried in any case, solutions too; and the page says all of it."""
    outcomes = run_all([Run(notebook, number) for number in (0, *SEEDS)], jobs=2)
    first, large = "cell 1: assert 0 <= number < 1", "cell 1: assert number < 0.5"
    assert large not in outcomes[Run(notebook, 0)].failed, "with the seed under which it was written it holds"
    failed = sum(large in outcomes[Run(notebook, number)].failed for number in SEEDS)
    assert 0 < failed < len(SEEDS)
    for outcome in outcomes.values():
        assert {first, large, "solution 1: assert after == number"} <= set(outcome.checked)
        assert set(outcome.failed) - {large} == {"cell 2: runs to its end"}
        assert "'undefined' is not defined" in outcome.failed["cell 2: runs to its end"]
    report = page(outcomes)
    assert f"| 99_planted | `{large}` | {failed} of 4 | seeds " in report
    assert "is large |" in report
    assert "| 99_planted | 5 | 4 of 20 | - | 2 | - |" in report
    for outcome in outcomes.values():
        number = outcome.room["cell 1: 0 <= number"][0]
        assert outcome.room["cell 1: number < 0.5"] == pytest.approx([0.5 - number, -np.log(2 * number)])


def test_a_warning_counts(store, tmp_path):
    """Of some seeds only, as of a climb that does not end: nothing of it is stored, so that the tests would fail."""
    path = tmp_path / "99_planted.py"
    path.write_text(
        "# %%\nimport warnings\nimport numpy as np\n"
        "if np.random.default_rng(0).random() > 0.5:\n    warnings.warn('large', RuntimeWarning)\n"
    )
    outcomes = run_all([Run(path, number) for number in range(8)], jobs=2)
    found = [outcome.failed.get("cell 1: warns of nothing", "") for outcome in outcomes.values()]
    assert 0 < sum("RuntimeWarning: large" in message for message in found) < len(found)
    assert "| 99_planted | `cell 1: warns of nothing` |" in page(outcomes)


def test_what_was_run_is_not_run_again(store, notebook, monkeypatch):
    once = run_all([Run(notebook, 1)], jobs=1)
    monkeypatch.setattr(subprocess, "run", None)
    assert run_all([Run(notebook, 1)], jobs=1) == once
    notebook.write_text(NOTEBOOK + "\n# changed\n")
    with pytest.raises(TypeError):
        run_all([Run(notebook, 1)], jobs=1)


def test_only_files_of_tests_that_changed_are_run_again(store, tmp_path):
    """And all of them where something changed that they share."""
    folder, shared = tmp_path / "tests", tmp_path / "module.py"
    folder.mkdir()
    one, two = folder / "test_one.py", folder / "test_two.py"
    for path in (one, two, shared):
        path.write_text(f"# mark.{MARK}")
    run, digests = Run(folder, 1), {str(path): reseed.digest(path) for path in (one, two, shared)}
    before = {"checked": ["test_one.py::a", "test_two.py::b"], "failed": {"test_two.py::b": "no"}, "sources": digests}
    before |= {"seconds": 2.0, "room": {"test_one.py::a: x < 1": [0.5, 0.1], "test_two.py::b: x < 1": [0.2, 0.1]}}
    assert robust.files_to_run({}, run) == {"test_one", "test_two"}
    assert robust.files_to_run(before, run) == set()
    two.write_text(f"# mark.{MARK}, mended")
    assert robust.files_to_run(before, run) == {"test_two"}
    after = {"checked": ["test_two.py::c"], "failed": {}, "sources": {}, "room": {}}
    now = robust.merged(before, after, {"test_two"}, 1.0)
    checked, room = ["test_one.py::a", "test_two.py::c"], {"test_one.py::a: x < 1": [0.5, 0.1]}
    assert now == {"checked": checked, "failed": {}, "sources": {}, "room": room, "seconds": 3.0}
    shared.write_text("changed")
    assert robust.files_to_run(before, run) == {"test_one", "test_two"}


def test_statistical_tests_alone(store, tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_planted.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    statistical: about draws\n")
    outcomes = run_all([Run(folder, number) for number in SEEDS], jobs=2)
    failed = [list(outcome.failed) for outcome in outcomes.values()]
    assert {tuple(names) for names in failed} == {(), ("test_planted.py::test_small",)}
    for outcome in outcomes.values():
        assert sorted(outcome.checked) == ["test_planted.py::test_right", "test_planted.py::test_small"]
        room = {name.removeprefix("test_planted.py::"): value for name, (value, _) in outcome.room.items()}
        assert room == {
            "test_small: np.random.default_rng(0).random() < 0.5": pytest.approx(room[RIGHT] - 0.5),
            RIGHT: pytest.approx(1 - np.random.default_rng(0).random(), abs=1),
        }
        assert all("not so: assert np.random" in said for said in outcome.failed.values())


def test_a_process_that_dies(store, notebook):
    notebook.write_text("# %%\nimport os\nos._exit(3)\n")
    (outcome,) = run_all([Run(notebook, 1)], jobs=1).values()
    assert list(outcome.failed) == ["the run comes to its end"]


@pytest.mark.parametrize("number", [1, 2])
def test_seeds_are_others(number):
    """Of torch, NumPy and scikit-learn; the same again for the same number; the tutorial's points stay."""
    code = """
import sys
import numpy as np, reseed, torch
from sklearn.model_selection import train_test_split
from bnn_utils import boxes
if int(sys.argv[1]):
    reseed.reseed(int(sys.argv[1]))
split = train_test_split(range(1000), random_state=0)[0][0]
numbers = torch.rand(1, generator=torch.Generator().manual_seed(0)).item(), np.random.default_rng(0).random()
print(*numbers, np.random.RandomState(0).random_sample(), split, boxes().x[0, 0].item())
"""

    def of(number):
        command = [sys.executable, "-c", code, str(number)]
        environment = os.environ | {"PYTHONPATH": str(robust.ROOT / "tools")}
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=robust.ROOT, env=environment)
        return run.stdout.split()

    own, other, again = of(0), of(number), of(number)
    assert other == again
    assert own[-1] == other[-1]
    assert not set(own[:-1]) & set(other[:-1])
    assert float(own[1]) == np.random.default_rng(0).random()


def test_room_of_comparisons():
    """Each part of a claim by itself, the tightest element and the tightest time of each, also where one fails."""
    tried, x = reseed.Tried(), np.array([0.2, 0.4])
    namespace = {"__tried__": tried, "x": x}
    code = """
assert 0 < x[0] < 1
assert (x < 0.5).all() and x.sum() > 0.1 and x.shape == (2,)
assert all(value < 1 for value in (0.3, 0.9))
assert (x > 0.3).all()
assert "a" < "b"
assert x[x > 0.3].sum() < 9
"""
    exec(reseed.compiled(code, "cell 1"), namespace)
    found = {name.removeprefix("cell 1: "): value[0] for name, value in tried.room.items()}
    assert found == pytest.approx(
        {"0 < x[0]": 0.2, "x[0] < 1": 0.8, "x < 0.5": 0.1, "x.sum() > 0.1": 0.5, "value < 1": 0.1, "x > 0.3": -0.1}
        | {"x[x > 0.3].sum() < 9": 8.6}
    )
    assert tried.room["cell 1: x < 0.5"][1] == pytest.approx(np.log(0.5 / 0.4))
    assert list(tried.failed) == ["cell 1: assert (x > 0.3).all()"]


def test_distances_from_limits():
    """In standard deviations on the side of the limit, of the difference or the logarithm, whichever says less."""
    path, nan = Path("01_data.py"), float("nan")
    differences = {
        "near": [0, 2, 3, 3, 5, 5, 9, 30],  # median 4; below it by 1, 1, 2 and 4
        "far": [30, 32, 33, 33, 35, 35, 39, 60],
        "constant": [1.0] * 8,
        "p > FALSE_ALARM": [0, 2, 3, 3, 5, 5, 9, 30],
        "seldom": [0, 2, 3, 3, 5, 5, 9],
    }
    outcomes = {
        Run(path, number): Outcome(
            [], {}, 1.0, {name: [of[number - 1], nan] for name, of in differences.items() if number <= len(of)}
        )
        for number in range(1, 9)
    }
    spread = (22 / 4) ** 0.5
    found = {name: off for (_, name), off in limits(outcomes).items()}
    assert found == {"near": pytest.approx(4 / spread), "far": pytest.approx(34 / spread), "constant": float("inf")}
    report = near(outcomes)
    assert "| 01_data | `near` | 1.7 | - |" in report
    assert "far" not in report
    assert "| 8 of 20 | - | none | 1.7 |" in table(outcomes)
    assert near({run: outcome._replace(room={}) for run, outcome in outcomes.items()}) == ""
    rooms = np.array([[value, 1 + 0.1 * number] for number, value in enumerate(differences["far"])])
    assert robust.distance("x < 1", rooms) == pytest.approx(1.35 / np.mean([0.05**2, 0.15**2, 0.25**2, 0.35**2]) ** 0.5)
    assert robust.distance("abs(x) < 1", rooms) == pytest.approx(34 / spread)


def test_assertions_inside_functions_go_on_too():
    tried, namespace = reseed.Tried(), {}
    namespace["__tried__"] = tried
    exec(reseed.compiled("def f():\n    assert 1 > 2\n    return 7\nvalue = f()", "cell 1"), namespace)
    assert namespace["value"] == 7
    assert tried.failed == {"cell 1: assert 1 > 2": "does not hold"}


def test_plan():
    """The number of other seeds of each, and each instruction set once."""
    chosen = [Run(robust.ROOT / name, 0) for name in ("tests", "notebooks/01_data.py", "notebooks/06_convergence.py")]
    runs, sets = plan(chosen), robust.available()
    assert "default" in sets
    for run, count in zip(chosen, (50, 20, 8), strict=True):
        mine = [other for other in runs if other.what == run.what]
        assert [other.number for other in mine if not other.instructions] == list(range(1, count + 1))
        assert [other.instructions for other in mine if other.number == 0] == sets


def test_instruction_sets_are_those_of_the_processor(monkeypatch):
    """Whatever the variable says here: PyTorch takes a set on trust that the processor lacks, and dies of it."""
    found = robust.available()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default" if len(found) > 1 else "avx512")
    assert robust.available() == found
    work = "import torch; x = torch.ones(99, 99); assert (x @ x.tanh()).isfinite().all()"
    for name in found:
        subprocess.run([sys.executable, "-c", work], env=os.environ | {"ATEN_CPU_CAPABILITY": name}, check=True)


def test_failures_are_counted_among_runs_that_reached_them():
    path = Path("01_data.py")
    outcomes = {
        Run(path, 1): Outcome(["a", "b"], {"b": "no | yes"}, 1.0, {}),
        Run(path, 2): Outcome(["a"], {}, 1.0, {}),
        Run(path, 0, "avx2"): Outcome(["a", "b"], {}, 1.0, {}),
    }
    assert "| 01_data | `b` | 1 of 2 | seeds 1: no &#124; yes |" in failures(outcomes)
    assert failures({run: outcome._replace(failed={}) for run, outcome in outcomes.items()}) == ""
    assert "| 01_data | 2 | 2 of 20 | avx2 | 1 | - |" in table(outcomes)


def test_page_shows_no_failure_and_is_of_all():
    """Fails when a notebook was added and `make robust` was not run, and when something failed in it."""
    page = robust.PAGE.read_text()
    table, *_ = page.partition("\n## ")
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    names = ["tests", *sorted(path.stem for path in (robust.ROOT / "notebooks").glob("*.py"))]
    assert [line[0].removeprefix("| ") for line in lines] == names
    assert {line[-2] for line in lines} == {"none"}
    assert "What failed" not in page
    assert " | - |\n" not in page.partition("\n## Near")[2], "near its limit, and nobody has said why it is safe"
    for name, _, seeds, sets, *_ in lines:
        run, planned = map(int, seeds.split(" of "))
        assert run == planned == robust.SEEDS.get(name.removeprefix("| "), robust.SEEDS_OF_OTHERS)
        assert "default" in sets
