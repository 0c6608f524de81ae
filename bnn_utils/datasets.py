"""Tables of the UCI Machine Learning Repository about which results are published, with the splits of these results.

A table is downloaded once, from the repository itself, checked, and kept. What is kept is ``<folder>/<name>/data.txt``,
numbers in rows, the target last.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
import torch

from bnn_utils import _check, files
from bnn_utils.data import Data

ARCHIVE = "https://archive.ics.uci.edu"
PATIENCE = 30.0  # seconds for the archive to answer
NUM_SPLITS = 20
CC_BY = "CC BY 4.0"


class Source(NamedTuple):
    """Where a table is, what its numbers are, and whose they are."""

    path: str  # in the archive: a CSV with a head, numbers between blanks, or a zip file of one of these
    digest: str  # SHA-256 of the numbers, as float64, row by row
    columns: tuple[str, ...]  # of which the last one is the target
    licence: str
    citation: str


SOURCES = {
    "bostonHousing": Source(
        "ml/machine-learning-databases/housing/housing.data",
        "832e894115c56dd24ec63848d4a3d9bd921d268d0be1bee2a8f4ee5ea318f5f7",
        ("CRIM", "ZN", "INDUS", "CHAS", "NOX", "RM", "AGE", "DIS", "RAD", "TAX", "PTRATIO", "B", "LSTAT", "MEDV"),
        "none stated",
        "Harrison and Rubinfeld 1978, Hedonic housing prices and the demand for clean air. J. Environ. Econ. Manag. 5",
    ),
    "concrete": Source(
        "static/public/165/data.csv",
        "d0e2d2f0f50277624d7d00b98c4e8b66465e8d5f2f51738500552b8b10a4689b",
        (
            "cement",
            "blast furnace slag",
            "fly ash",
            "water",
            "superplasticizer",
            "coarse aggregate",
            "fine aggregate",
            "age",
            "compressive strength",
        ),
        CC_BY,
        "Yeh 1998, Concrete Compressive Strength. UCI Machine Learning Repository, doi 10.24432/C5PK67",
    ),
    "energy": Source(
        "static/public/242/data.csv",
        "3563209cb65c108b72e6ee45f56f12e53c3f346f10b6b30a79ec5b7c0a0a1dd9",
        (
            "relative compactness",
            "surface area",
            "wall area",
            "roof area",
            "overall height",
            "orientation",
            "glazing area",
            "glazing area distribution",
            "heating load",
        ),
        CC_BY,
        "Tsanas and Xifara 2012, Energy Efficiency. UCI Machine Learning Repository, doi 10.24432/C51307",
    ),
    "yacht": Source(
        "static/public/243/yacht+hydrodynamics.zip",
        "ec08588637fd93582116a1ead33f0c1e787dae755168073608e030e5282a3f4e",
        (
            "longitudinal position of the centre of buoyancy",
            "prismatic coefficient",
            "length-displacement ratio",
            "beam-draught ratio",
            "length-beam ratio",
            "Froude number",
            "residuary resistance",
        ),
        CC_BY,
        "Gerritsma, Onnink and Versluis 1981, Yacht Hydrodynamics. UCI Machine Learning Repository, "
        "doi 10.24432/C5XG7R",
    ),
    "airfoil": Source(
        "static/public/291/data.csv",
        "11fab2c660f61031935f9995d27929df39a175d3551271b397c8aa254b19b6b6",
        (
            "frequency",
            "angle of attack",
            "chord length",
            "free-stream velocity",
            "suction side displacement thickness",
            "sound pressure level",
        ),
        CC_BY,
        "Brooks, Pope and Marcolini 1989, Airfoil Self-Noise. UCI Machine Learning Repository, doi 10.24432/C5VW2C",
    ),
}
NAMES = tuple(SOURCES)


@dataclass(frozen=True, eq=False)
class Table:
    """A table, and what one should know of it.

    Attributes:
        name: one of `NAMES`.
        data: all rows, float64 on the CPU, in the units and in the order of the archive: `x` ``(N, P)``, `y` ``(N,)``.
        columns: names of the P inputs.
        target: name of the target.
        licence: under which it may be used.
        citation: what to cite.
    """

    name: str
    data: Data
    columns: tuple[str, ...]
    target: str
    licence: str
    citation: str

    def split(self, number: int) -> tuple[Data, Data]:
        """What is learned from, and what is held out: one of the 20 splits of published tables.

        They are random permutations of the rows, of which the first nine tenths are learned from (Hernández-Lobato and
        Adams 2015; Gal and Ghahramani 2016; Lakshminarayanan, Pritzel and Blundell 2017).

        Args:
            number: 0 to 19.

        Raises:
            ValueError: if there is no such split.
        """
        number = _check.whole("number", number, 0)
        if number >= NUM_SPLITS:
            raise ValueError(f"there are {NUM_SPLITS} splits, 0 to {NUM_SPLITS - 1}, got {number}")
        random, num = np.random.RandomState(1), len(self.data)
        for _ in range(number + 1):
            rows = torch.from_numpy(random.permutation(num))
        learned = round(0.9 * num)
        return self._part(rows[:learned]), self._part(rows[learned:])

    def _part(self, rows: torch.Tensor) -> Data:
        return Data(self.data.x[rows], self.data.y[rows])

    def __repr__(self) -> str:
        return (
            f"{self.name}: {len(self.data):,} rows, {self.target} from {', '.join(self.columns)}. Licence: "
            f"{self.licence}. Cite: {self.citation}"
        )


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Table:
    """A table, from a folder where it was kept before, or from the archive.

    Args:
        name: one of `NAMES`: ``"bostonHousing"``, ``"concrete"``, ``"energy"``, ``"yacht"``, ``"airfoil"``. The first
            is not among the tables that the archive lists any more, and one of its columns, B, is made of the share of
            Black people in a town: it is here to compare with published numbers, and for nothing else.
        folder: where tables are kept; None for ``bnn_utils`` in the user's folder of caches (``XDG_CACHE_HOME``, or
            else ``~/.cache``).

    Raises:
        ValueError: if there is no table of this name, or its numbers are not those that are published.
        OSError: if it is not in the folder and can't be downloaded, or not be kept.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    source, path = SOURCES[name], (_cache() if folder is None else Path(folder)) / name / "data.txt"
    if path.exists():
        where = f"{path}, which was kept before; delete it to download it again"
        try:
            numbers = np.loadtxt(path, ndmin=2)
        except ValueError as error:
            raise ValueError(f"there is no table in {where}: {error}") from error
        _check_numbers(numbers, source, where)
    else:
        url = f"{ARCHIVE}/{source.path}"
        numbers = _read(_download(url, name, path), source, url)
        _check_numbers(numbers, source, url)
        _keep(numbers, path)
    data = Data(torch.from_numpy(numbers[:, :-1].copy()), torch.from_numpy(numbers[:, -1].copy()))
    *columns, target = source.columns
    return Table(name, data, tuple(columns), target, source.licence, source.citation)


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "bnn_utils"


def _download(url: str, name: str, path: Path) -> bytes:
    try:
        with urlopen(url, timeout=PATIENCE) as answer:
            return answer.read()
    except OSError as error:
        raise OSError(
            f"{name} is not in {path}, and could not be downloaded from {url}: {error}. Try again later, or write its "
            "numbers there yourself, a row in each line and the target last"
        ) from error


def _read(content: bytes, source: Source, url: str) -> np.ndarray:
    """Numbers of the columns that are wanted; files may have further targets after them."""
    is_csv = source.path.endswith(".csv")
    try:
        if source.path.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                (member,) = (one for one in archive.namelist() if one.endswith(".data"))
                content = archive.read(member)
        return np.loadtxt(
            io.StringIO(content.decode()),
            delimiter="," if is_csv else None,
            skiprows=1 if is_csv else 0,
            usecols=range(len(source.columns)),
            ndmin=2,
        )
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"what came from {url} is not the table: {error}") from error


def _check_numbers(numbers: np.ndarray, source: Source, where: str) -> None:
    if hashlib.sha256(np.ascontiguousarray(numbers, "<f8").tobytes()).hexdigest() != source.digest:
        raise ValueError(
            f"these are not the numbers about which results are published: {len(numbers)} rows of {numbers.shape[1]} "
            f"from {where}"
        )


def _keep(numbers: np.ndarray, path: Path) -> None:
    rows = (" ".join(map(repr, row)) for row in numbers.tolist())  # all digits, and no more
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, "\n".join(rows).encode())
