"""The project as a whole: notebooks and their pairs, versions in one tune, a light import."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from bnn_utils.kernels import hamiltorch

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where a package is called otherwise on conda-forge.
CONDA_NAMES = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def requirements(*extras):
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def test_every_notebook_has_its_pair():
    texts = sorted((ROOT / "notebooks").glob("*.py"))
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in texts]
    assert len(NOTEBOOKS) >= 5


@each_notebook
def test_pair_says_the_same(path):
    settings = ROOT / "jupytext.toml"
    config = jupytext.config.load_jupytext_configuration_file(str(settings))
    notebook = jupytext.read(path, config=config)
    text = jupytext.writes(notebook, fmt="py:percent", config=config)
    as_cells = [
        (cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in jupytext.reads(text, "py:percent").cells
    ]
    stored = jupytext.read(path.with_suffix(".py"), config=config)
    assert as_cells == [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in stored.cells], (
        f"{path.name} and {path.stem}.py differ; edit the .py and run `make refresh`"
    )


@each_notebook
def test_stored_outputs_are_whole(path):
    """nbval passes a notebook without stored outputs, so this is checked apart."""
    cells = code_cells(path)
    assert all(cell.execution_count for cell in cells), "a cell was never executed"
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [output for output in outputs if "draw/s" in str(output)], "a progress bar that stands still"
    assert str(ROOT.parent) + "/" not in path.read_text(), "a path of this machine"
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_pictures_have_alternative_text(path):
    pictures = [
        output.data["text/html"]
        for cell in code_cells(path)
        for output in cell.outputs
        if "<img" in output.get("data", {}).get("text/html", "")
    ]
    assert pictures
    assert all('alt="' in picture and 'alt=""' not in picture for picture in pictures)


@each_notebook
def test_reading_goes_on(path):
    """A first heading, what to remember, and links to notebooks that exist."""
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith("# ")
    assert "What to remember" in cells[-1].source
    targets = [
        part.split(")")[0] for cell in cells if cell.cell_type == "markdown" for part in cell.source.split("](")[1:]
    ]
    local = [target for target in targets if "://" not in target]
    assert local
    assert all((path.parent / target).is_file() for target in local)


@each_notebook
def test_claims_beside_what_is_not_compared(path):
    """Every notebook asserts something: outputs that are not compared don't stand alone."""
    assert sum("assert" in cell.source for cell in code_cells(path)) >= 2


def test_lock_fits_the_project():
    lock = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                lock[requirement.name] = next(iter(requirement.specifier)).version
    assert lock["torch"] == "2.13.0"
    for name, requirement in requirements("notebooks", "test").items():
        assert requirement.specifier.contains(Version(lock[name])), f"{name}: run `make lock`"


def test_environment_has_the_versions_of_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    conda = {
        Requirement(line).name: line
        for line in environment["dependencies"]
        if isinstance(line, str) and line != "python=3.11"
    }
    for name, requirement in requirements("notebooks").items():
        line = Requirement(conda[CONDA_NAMES.get(name, name)])
        assert line.specifier == requirement.specifier, name
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert pip == ["-e .", *PROJECT["optional-dependencies"]["hamiltorch"]]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.11")


def test_install_command_is_the_pinned_one():
    assert PROJECT["optional-dependencies"]["hamiltorch"][0] in hamiltorch.INSTALL


def test_readme_example_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert "0.weight[0,0]" in capsys.readouterr().out
    assert (tmp_path / "run.nc").is_file()
    assert example in (ROOT / "notebooks" / "guide.md").read_text(), "the guide begins with the same"


def test_import_is_light():
    heavy = ["matplotlib", "arviz", "ipywidgets", "pandas", "scipy", "hamiltorch", "loky", "torch._inductor"]
    code = f"import sys, json, bnn_utils; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []


def test_readme_pictures_exist_and_are_small():
    readme = (ROOT / "README.md").read_text()
    for name in ("docs/posterior.png", "docs/results.gif"):
        assert name in readme
        assert (ROOT / name).stat().st_size < 1_000_000


def test_readme_lists_the_notebooks_and_they_fit_into_binder():
    """Binder guarantees 1 GB, and gives 2 GB at most: those between are named."""
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| \[.*?\]\(notebooks/(\w+)\.ipynb\) \|.*\| (\d+) MB \|$", readme, re.M)
    assert [name for name, _ in rows] == [path.stem for path in NOTEBOOKS]
    assert all(int(megabytes) < 2000 for _, megabytes in rows)
    large = [str(int(name[:2])) for name, megabytes in rows if int(megabytes) >= 1000]
    assert f"{', '.join(large[:-1])} and {large[-1]} need more than the first" in readme


def test_each_notebook_says_where_it_stands():
    """Its number, what it takes and its neighbours, as in the README's table."""
    row = r"^\| (\[.*?\]\()notebooks/(\w+\.ipynb\)) \|.*\| ([^|]+) \| \d+ MB \|$"
    rows = re.findall(row, (ROOT / "README.md").read_text(), re.M)
    assert len(rows) == len(NOTEBOOKS)
    for k, ((*_, takes), path) in enumerate(zip(rows, NOTEBOOKS, strict=True)):
        said = " ".join(nbformat.read(path, as_version=4).cells[0].source.split("\n\n")[-1].split())
        assert said.startswith(f"This is notebook {k + 1} of {len(rows)}, and takes some {takes} on two cores.")
        neighbours = [title + place for title, place, _ in (*rows[max(k - 1, 0) : k], *rows[k + 1 : k + 2])]
        assert re.findall(r"\[.*?\]\(\w+\.ipynb\)", said) == neighbours
