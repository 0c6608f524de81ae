"""Published tables: downloaded once, checked, kept, and divided as others divided them."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bnn_utils import datasets

UCI = Path(__file__).resolve().parents[2] / "shared" / "uci"
WITH_SPLITS = [name for name in datasets.NAMES if name != "airfoil"]
COUNTS = {"bostonHousing": 506, "concrete": 1030, "energy": 768, "yacht": 308, "airfoil": 1503}

each_name = pytest.mark.parametrize("name", datasets.NAMES)


def the_folder(name):
    if not (UCI / name).is_dir():
        pytest.skip(f"{name} is not in {UCI}")
    return UCI


@each_name
def test_tables_have_the_rows_and_columns_that_are_published(name):
    table = datasets.load(name, the_folder(name))
    assert table.data.x.shape == (COUNTS[name], len(table.columns))
    assert table.data.y.shape == (COUNTS[name],)
    assert table.data.x.dtype == torch.float64
    assert all(word in repr(table) for word in (name, table.target, table.licence, table.citation))


@pytest.mark.parametrize("name", WITH_SPLITS)
def test_splits_are_the_published_ones(name):
    table = datasets.load(name, the_folder(name))
    for number in range(datasets.NUM_SPLITS):
        rows = [np.loadtxt(UCI / name / f"index_{part}_{number}.txt").astype(int) for part in ("train", "test")]
        for part, of_part in zip(table.split(number), rows, strict=True):
            assert torch.equal(part.x, table.data.x[of_part])
            assert torch.equal(part.y, table.data.y[of_part])


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder that stands for the archive, with a small table of each kind of file; name -> numbers."""
    kinds = {"concrete": "csv", "bostonHousing": "blanks", "yacht": "zip"}
    made = {}
    for number, (name, kind) in enumerate(kinds.items()):
        source = datasets.SOURCES[name]
        numbers = np.random.default_rng(number).standard_normal((30, len(source.columns))).round(3)
        digest = hashlib.sha256(numbers.astype("<f8").tobytes()).hexdigest()
        monkeypatch.setitem(datasets.SOURCES, name, source._replace(digest=digest))
        path = tmp_path / "archive" / source.path
        path.parent.mkdir(parents=True)
        rows = [[f"{value:g}" for value in row] for row in numbers]
        if kind == "csv":  # with one more target, as that of energy has
            path.write_text("\n".join([",".join([*source.columns, "Y2"]), *(",".join([*row, "7"]) for row in rows)]))
        elif kind == "blanks":
            path.write_text("\n".join("   ".join(["", *row]) for row in rows))
        else:
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("about.txt", "words")
                file.writestr("numbers.data", "\n".join("  ".join(row) for row in rows) + " \n\n")
        made[name] = numbers
    monkeypatch.setattr(datasets, "ARCHIVE", f"file://{tmp_path}/archive")
    return made


@pytest.mark.parametrize("name", ["concrete", "bostonHousing", "yacht"])
def test_a_table_is_downloaded_once(name, archive, tmp_path, monkeypatch):
    first = datasets.load(name, tmp_path / "kept")
    np.testing.assert_array_equal(first.data.x.numpy(), archive[name][:, :-1])
    np.testing.assert_array_equal(first.data.y.numpy(), archive[name][:, -1])
    monkeypatch.setattr(datasets, "ARCHIVE", "file:///nowhere")
    again = datasets.load(name, tmp_path / "kept")
    assert torch.equal(again.data.x, first.data.x)
    assert torch.equal(again.data.y, first.data.y)


def test_a_table_is_kept_among_the_user_s_caches(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    datasets.load("yacht")
    assert (tmp_path / "caches" / "bnn_utils" / "yacht" / "data.txt").exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    datasets.load("yacht")
    assert (tmp_path / "home" / ".cache" / "bnn_utils" / "yacht" / "data.txt").exists()


def test_other_numbers_are_refused_and_not_kept(archive, tmp_path, monkeypatch):
    source = datasets.SOURCES["concrete"]
    path = tmp_path / "archive" / source.path
    path.write_text(path.read_text().replace("7\n", "7 \n", 1).replace(",7", ",8").replace("\n", "\n1", 1))
    with pytest.raises(ValueError, match=r"not the numbers about which results are published: 30 rows of 9 from file:"):
        datasets.load("concrete", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_kept_numbers_that_were_changed_are_refused(archive, tmp_path):
    datasets.load("yacht", tmp_path)
    kept = tmp_path / "yacht" / "data.txt"
    first, rest = kept.read_text().split("\n", 1)
    for changed, said in (
        (f"{first}9\n{rest}", "these are not the numbers"),
        (f"words {rest}", "there is no table in"),
    ):
        kept.write_text(changed)
        with pytest.raises(ValueError, match=rf"{said}.*was kept before; delete it to download it again"):
            datasets.load("yacht", tmp_path)


@pytest.mark.parametrize("content", [b"<html>Moved</html>", b"\xff\xfe", b""])
@pytest.mark.parametrize("name", ["concrete", "yacht"])
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_an_answer_that_is_no_table_is_refused(name, content, archive, tmp_path):
    (tmp_path / "archive" / datasets.SOURCES[name].path).write_bytes(content)
    with pytest.raises(ValueError, match=r"is not the table|not the numbers"):
        datasets.load(name, tmp_path / "kept")


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "ARCHIVE", f"file://{tmp_path}/nowhere")
    with pytest.raises(OSError, match=r"could not be downloaded from .*Try again later, or write its numbers there"):
        datasets.load("yacht", tmp_path)


def test_names_and_numbers_that_do_not_exist(archive, tmp_path):
    with pytest.raises(ValueError, match=r"must be one of bostonHousing, .*, got 'iris'"):
        datasets.load("iris", tmp_path)
    table = datasets.load("yacht", tmp_path)
    with pytest.raises(ValueError, match=r"there are 20 splits, 0 to 19, got 20"):
        table.split(20)
    with pytest.raises(ValueError, match=r"number"):
        table.split(-1)
