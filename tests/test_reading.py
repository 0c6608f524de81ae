"""The notebooks as something to read: exercises whose solutions work, headings, links, widths, words."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TUTORIAL = [path for path in NOTEBOOKS if path.stem[:2] <= "05"]
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```\n\n(.+?)\n\n</details>", re.DOTALL)


def each(notebooks):
    return pytest.mark.parametrize("path", notebooks, ids=lambda path: path.stem)


def sources(path, cell_type):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == cell_type]


@each(TUTORIAL)
def test_solutions_of_exercises_work(path, tmp_path, monkeypatch, capsys):
    """In the namespace of a reader who has run the whole notebook; no picture is drawn, so that this is quick."""
    *_, exercises, _ = sources(path, "markdown")
    solutions = [code for code, _ in SOLUTION.findall(exercises)]
    assert len(solutions) == exercises.count("### Exercise: ") == exercises.count("<details>") == 2

    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # which notebook 3 reads
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    namespace = {}
    for number, source in enumerate(sources(path, "code")):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)
    for number, solution in enumerate(solutions):
        capsys.readouterr()
        exec(compile(solution, f"{path.name}, solution {number + 1}", "exec"), dict(namespace))
        assert capsys.readouterr().out, "a solution prints what it found"
        assert "assert" in solution
        lines = [line for line in solution.splitlines() if line]
        assert 3 <= len(lines) <= 10
        assert max(map(len, lines)) <= 94
