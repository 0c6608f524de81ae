"""The house: who imports whom, the page that says so, and the other pages for those who carry on."""

import re
from pathlib import Path

import architecture
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "notebooks/guide.md"]


def test_modules_import_only_from_rooms_above():
    assert architecture.against_the_order() == []


def test_an_import_against_the_order_is_seen(tmp_path, monkeypatch):
    library = tmp_path / "bnn_utils"
    (library / "kernels").mkdir(parents=True)
    (library / "flat.py").write_text("def late():\n    from bnn_utils.sampling import sample\n")
    (library / "sampling.py").write_text("from bnn_utils import flat\nfrom bnn_utils.kernels import hmc\n")
    (library / "kernels" / "__init__.py").write_text("")
    (library / "kernels" / "hmc.py").write_text("import bnn_utils.flat\n")
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    assert architecture.against_the_order() == [], "the import in a function waits"
    (library / "kernels" / "hmc.py").write_text("from bnn_utils.sampling import sample\n")
    assert architecture.against_the_order() == ["kernels.hmc <- sampling"]
    (library / "attic.py").write_text("from bnn_utils import flat\n")
    with pytest.raises(KeyError, match=r"attic has no room: give it one in ROOMS"):
        architecture.against_the_order()


def test_drawing_is_that_of_the_imports():
    text = architecture.PAGE.read_text()
    assert text == architecture.page(text), "run python tools/architecture.py"


def test_rooms_name_modules_that_exist():
    known = {name.removesuffix(".__init__") for name in architecture.modules()}
    named = [name.removesuffix(".__init__") for names in architecture.ROOMS.values() for name in names]
    assert [name for name in named if name not in known] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_pages_name_is_there(page):
    """Files that they link or name in code."""
    text = (ROOT / page).read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)#][^)]*)\)", text) if "://" not in link]
    files = [name for name in re.findall(r"`([\w/.]+\.(?:py|md|yml|toml))`", text) if "yours" not in name]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    folders = ("bnn_utils", "docs", "notebooks", "tests", "tools", "benchmarks")
    known = [path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")]
    missing += [name for name in files if not any(f"/{path}".endswith(f"/{name}") for path in known)]
    assert missing == []


@pytest.mark.parametrize(
    "page", ["CITATION.cff", ".pre-commit-config.yaml", *(f".github/workflows/{n}.yml" for n in ("test", "site"))]
)
def test_settings_can_be_read(page):
    assert yaml.safe_load((ROOT / page).read_text())


def test_targets_of_make_are_those_that_pages_name():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [
        name
        for page in (*PAGES, ".github/workflows/site.yml")
        for name in re.findall(r"\bmake (\w+)\b(?=\s|`)", (ROOT / page).read_text())
    ]
    prose = {"a", "it", "sure"}
    assert {name for name in named if name not in prose} <= set(targets)
