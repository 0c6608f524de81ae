"""The script that plants faults: that each of them can still be planted, and that it tells seen from unseen."""

import ast
import shutil

import pytest

from faults import FAULTS, INSTRUMENTS, ROOT, Fault, caught, plant, table


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(ROOT / "bnn_utils", tmp_path / "bnn_utils", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_can_be_planted(fault, copied):
    """It changes one function. Fails when a module has changed so that its fault would have to change with it."""
    before, path = functions(ROOT / "bnn_utils" / fault.module), copied / "bnn_utils" / fault.module
    plant(fault, copied)
    compile(path.read_text(), fault.module, "exec")
    after = functions(path)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == [fault.function]


def functions(path):
    """What the functions and methods of a file say, however it is laid out."""
    tree = ast.parse(path.read_text())
    owners = [("", tree), *((f"{node.name}.", node) for node in tree.body if isinstance(node, ast.ClassDef))]
    return {
        owner + node.name: ast.unparse(node)
        for owner, body in owners
        for node in body.body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("fault", FAULTS[:3], ids=lambda fault: fault.what)
def test_layout_does_not_matter(fault, copied):
    """Fails when a fault depends on how the formatter breaks lines, on quotes or on comments."""
    path = copied / "bnn_utils" / fault.module
    plant(fault, copied)
    expected = path.read_text()
    path.write_text(ast.unparse(ast.parse((ROOT / "bnn_utils" / fault.module).read_text())))
    plant(fault, copied)
    assert path.read_text() == expected


@pytest.mark.slow
def test_seen_and_unseen_and_not_executed():
    half = "_step(p, start.grad, {})"
    harmless = Fault(
        "the same", "kernels/hmc.py", "leapfrog", half.format("step_size / 2"), half.format("step_size * 0.5")
    )
    assert caught(harmless, "energy", "torch") == ""
    assert caught(harmless, "energy", "native") is None
    name = "test_energy_error_is_proportional_to_the_step_squared[identity mass]"
    assert caught(next(fault for fault in FAULTS if "half step made whole" in fault.what), "energy", "torch") == name


@pytest.mark.parametrize(
    ("function", "old", "message"),
    [
        ("leapfrog", "no_such_name", r"gone: 'no_such_name' is in leapfrog of kernels/hmc\.py 0 times, not once"),
        ("leapfrog", "step_size / 2", "2 times, not once"),
        ("HMC.leap", "step_size", r"there is no HMC\.leap"),
    ],
)
def test_a_fault_that_does_not_fit(copied, function, old, message):
    with pytest.raises(ValueError, match=message):
        plant(Fault("gone", "kernels/hmc.py", function, old, "0"), copied)


def test_table():
    some = [FAULTS[0], FAULTS[1]]
    header, _, seen, unseen = table(some, [["", "test_a", "test_b", None, *5 * [""]], [""] * 9]).splitlines()
    assert header.count("|") == len(INSTRUMENTS) + 3
    assert seen == f"| {some[0].what} | - | x | x |  | - | - | - | - | - | `test_a` |"
    assert unseen.endswith("| **unseen** |")


def test_report_is_of_all_faults():
    """Fails when a fault was added and `make faults` was not run, and when one went unseen."""
    report = (ROOT / "notebooks" / "faults.md").read_text()
    rows = [line for line in report.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [fault.what for fault in FAULTS]
    assert "unseen**" not in report
