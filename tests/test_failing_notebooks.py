"""What `make notebooks` and `make refresh` do when notebooks fail: the others are run, and each failure is told."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

TOOLS = Path(__file__).resolve().parent.parent / "tools"
SOURCES = {
    "01_wrong": """
# %% [markdown]
# # 1. A claim is wrong

# %%
print("as far as it came")
limit = 1

# %%
assert 2 < limit, "2 is *not* <b>below</b> `1`"

# %%
print("after the claim")
""",
    "02_dead": """
# %% [markdown]
# # 2. The kernel dies

# %%
import os

os._exit(1)
""",
    "03_slow": """
# %% [markdown]
# # 3. A cell takes too long

# %%
import time

time.sleep(100)
""",
    "04_no_text": "# \xff",  # in Latin-1, which is no UTF-8
    "05_fine": """
# %% [markdown]
# # 5. All is well

# %%
print("all is well")
""",
}
FAILURES = {
    "01_wrong": ("in cell 2", "AssertionError: 2 is *not* <b>below</b> `1`"),
    "02_dead": ("in cell 1", "DeadKernelError: Kernel died"),
    "03_slow": ("in cell 1", "CellTimeoutError: A cell timed out while it was being executed, after 5 seconds."),
    "04_no_text": ("before its first cell", "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
}


def run(folder, *arguments):
    """The command, with a limit of 5 seconds for a cell, on the notebooks of ``folder``."""
    code = "import notebooks; notebooks.CELL_TIMEOUT = 5; notebooks.main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder / "tools", capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "notebooks").mkdir()
    (folder / "tools").mkdir()
    for name in ("notebooks.py", "page.html.j2"):
        shutil.copy(TOOLS / name, folder / "tools")
    for name, source in SOURCES.items():
        (folder / "notebooks" / f"{name}.py").write_text(source.lstrip(), encoding="latin-1")
    return folder


@pytest.fixture(scope="module")
def built(folder):
    return run(folder, "build")


@pytest.fixture(scope="module")
def pages(built, folder):
    """What was made, parsed: name -> soup."""
    return {path.stem: BeautifulSoup(path.read_text(), "html.parser") for path in (folder / "build").glob("*.html")}


def test_build_says_what_failed(built):
    """Fails when the first failure ends it, or when the status is that of success."""
    assert built.returncode == 1
    summary = built.stderr.split("4 of 5 notebooks failed:\n")[1]
    for line, (name, (place, reason)) in zip(summary.splitlines(), FAILURES.items(), strict=True):
        assert line.startswith(f"  {name} failed {place}: {reason}")
    assert "index.html shows what was made" in built.stdout


def test_index_has_a_line_for_each(pages):
    assert set(pages) == {"index", *SOURCES}
    items = pages["index"].main.find_all("li")
    for item, name in zip(items, SOURCES, strict=True):
        text = item.get_text()
        assert item.a["href"] == f"{name}.html"
        assert " s, " in text
        assert " MB)" in text
        assert ("failed" in text) == (name in FAILURES)
        if name in FAILURES:
            place, reason = FAILURES[name]
            assert f"failed {place}: {reason}".replace("`", "'") in text
            page, _, cell = item.find_all("a")[1]["href"].partition("#")
            assert page == f"{name}.html"
            assert not cell or pages[name].find(id=cell)


def test_page_marks_the_cell_that_failed(pages):
    page = pages["01_wrong"]
    summary, cell = page.find_all("section", class_="failed")
    assert "failed" in summary.get_text()
    assert "AssertionError: 2 is *not* <b>below</b> `1`" in summary.get_text()
    assert "This cell failed" in cell.get_text()
    assert "assert 2 < limit" in cell.get_text()
    assert page.find(id=summary.a["href"].removeprefix("#")) in cell.find_all("div")
    for name in ("02_dead", "03_slow"):
        _, cell = pages[name].find_all("section", class_="failed")
        assert FAILURES[name][1].split(":")[0] in pages[name].get_text()
        assert "failed" in cell.get_text()
    assert len(pages["04_no_text"].find_all("section", class_="failed")) == 1
    assert not pages["05_fine"].find_all(class_="failed")


def test_traceback_can_be_read(pages):
    """Line by line, and without a terminal's colour codes."""
    traceback = pages["01_wrong"].find(attrs={"data-mime-type": "application/vnd.jupyter.stderr"}).get_text()
    assert "\x1b" not in traceback
    assert "[0m" not in traceback
    assert '\n----> 1 assert 2 < limit, "2 is *not* <b>below</b> `1`"\n' in traceback
    assert traceback.rstrip().endswith("\nAssertionError: 2 is *not* <b>below</b> `1`")


def test_what_was_executed_is_kept(folder, pages):
    """On the page and in the notebook beside it: until the failure, and with it."""
    cells = [cell for cell in nbformat.read(folder / "build" / "01_wrong.ipynb", 4).cells if cell.cell_type == "code"]
    assert cells[0].outputs[0].text == "as far as it came\n"
    assert cells[1].outputs[0].ename == "AssertionError"
    assert not cells[2].outputs
    assert "as far as it came" in pages["01_wrong"].get_text()
    assert "all is well" in pages["05_fine"].get_text()
    for name in ("02_dead", "03_slow"):
        *_, cell = nbformat.read(folder / "build" / f"{name}.ipynb", 4).cells
        assert [output.output_type for output in cell.outputs] == ["error"]


def test_refresh_keeps_what_was_good(folder):
    """Fails when outputs of a failed run are stored, and when the notebooks after it are left out."""
    stored = folder / "notebooks" / "01_wrong.ipynb"
    stored.write_text("what was stored")
    found = run(folder, "refresh", "01_wrong", "05_fine")
    assert found.returncode == 1
    assert "1 of 2 notebooks failed:\n  01_wrong failed in cell 2: AssertionError" in found.stderr
    assert stored.read_text() == "what was stored"
    assert nbformat.read(folder / "notebooks" / "05_fine.ipynb", 4).cells[1].outputs[0].text == "all is well\n"


def test_success_is_no_failure(folder):
    found = run(folder, "refresh", "05_fine")
    assert found.returncode == 0
    assert "failed" not in found.stderr
