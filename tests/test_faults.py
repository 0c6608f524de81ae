"""The script that plants faults: that each of them can still be planted, and that it tells seen from unseen."""

import shutil

import pytest
from faults import FAULTS, INSTRUMENTS, ROOT, Fault, caught, plant, table


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_can_be_planted(fault, tmp_path):
    """Fails when a module has changed so that its fault would have to change with it."""
    shutil.copytree(ROOT / "bnn_utils", tmp_path / "bnn_utils", ignore=shutil.ignore_patterns("__pycache__"))
    plant(fault, tmp_path)
    planted = (tmp_path / "bnn_utils" / fault.module).read_text()
    assert planted != (ROOT / "bnn_utils" / fault.module).read_text()
    compile(planted, fault.module, "exec")


@pytest.mark.slow
def test_seen_and_unseen():
    harmless = Fault("a comment", "hmc.py", "strictly: u may be 0", "u may be 0: strictly")
    assert caught(harmless, "energy") == ""
    name = "test_energy_error_is_proportional_to_the_step_squared[identity mass]"
    assert caught(next(fault for fault in FAULTS if "half step made whole" in fault.what), "energy") == name


def test_a_fault_that_does_not_fit(tmp_path):
    shutil.copytree(ROOT / "bnn_utils", tmp_path / "bnn_utils")
    with pytest.raises(ValueError, match=r"gone: 'no such line' is in hmc\.py 0 times"):
        plant(Fault("gone", "hmc.py", "no such line", ""), tmp_path)


def test_table():
    some = [FAULTS[0], FAULTS[1]]
    header, _, seen, unseen = table(some, [["", "test_a", "test_b", "", "", "", ""], [""] * 7]).splitlines()
    assert header.count("|") == len(INSTRUMENTS) + 3
    assert seen == f"| {some[0].what} | - | x | x | - | - | - | - | `test_a` |"
    assert unseen.endswith("| **unseen** |")


def test_report_is_of_all_faults():
    """Fails when a fault was added and `make faults` was not run, and when one went unseen."""
    report = (ROOT / "notebooks" / "faults.md").read_text()
    rows = [line for line in report.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [fault.what for fault in FAULTS]
    assert "unseen**" not in report
