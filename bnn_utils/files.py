"""A chain's file: netCDF, written all at once or not at all, and read only if it is what was written."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from bnn_utils.evidence import LADDER, Tempering

if TYPE_CHECKING:
    from xarray import DataArray

    from bnn_utils.chain import Chain

FORMAT = 2
# A file ends with one line, which HDF5 does not look at: what it holds, in which format, and SHA-256 of all that stands
# before its digits.
SEAL = "\nbnn_utils {}, format {}, sha256 "
PATTERN = re.compile(rb"\nbnn_utils ([a-z]+), format ([0-9]{1,9}), sha256 ([0-9a-f]{64})\n\Z")
LONGEST_SEAL = 128
HDF5 = b"\x89HDF\r\n\x1a\n"

GROUPS = ("posterior", "sample_stats")  # by ArviZ's names
TAKEN = (
    "theta",
    "chain",
    "draw",
    "parameter",
    "temperature",
    "log_likelihood",
)  # names that mean something else to ArviZ
# What travels as attributes, the kernel in words; beside the seed, which may be larger than netCDF's numbers.
ATTRIBUTES = {
    "kernel": str,
    "gradient": str,
    "device": str,
    "warmup": int,
    "dropped": int,
    "thinning": int,
    "wall_time": float,
    "compile_time": float,
    "sampling_time": float,
}
KINDS = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64"
DTYPES = {name: getattr(torch, name) for name in KINDS.split()}
NOT_OURS = "does not hold a chain written by Chain.save"
LITTER = re.compile(r"\..+\.[0-9a-f]{16}")  # names of files that `replace` had begun
NO_SEAL = "it does not end with its checksum, so it was cut short or added to"


# --- chains as bytes --------------------------------------------------------------------------------------------------


def save(chain: Chain, path: str | os.PathLike[str]) -> None:
    """What `Chain.save` does."""
    name, why = to_path(path), problem(chain)
    if why:
        raise ValueError(f"this chain can't be saved: {why}")
    data = chain.to_arviz()
    tensors = {"posterior": {"theta": chain.draws, **chain.kept}, "sample_stats": dict(chain.stats)}
    if chain.tempering is not None:
        tensors["sample_stats"] |= {f"{LADDER}{name}": values for name, _, values in chain.tempering.items()}
    content = io.BytesIO()
    for group in GROUPS:
        values = data[group]
        for variable in values.data_vars:
            values[variable].attrs["torch_dtype"] = str(tensors[group][str(variable)].dtype).removeprefix("torch.")
        compressed = {variable: {"zlib": True} for variable in values.data_vars}
        mode: Literal["w", "a"] = "w" if group == GROUPS[0] else "a"
        values.to_netcdf(content, mode=mode, group=group, engine="h5netcdf", encoding=compressed)
    write(name, content.getbuffer(), seal("chain", FORMAT, content.getbuffer()))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the chain that `save` wrote; see `Chain.load`."""
    import xarray

    content = io.BytesIO(read(path))
    try:
        posterior, sample_stats = (xarray.load_dataset(content, group=group, engine="h5netcdf") for group in GROUPS)
        stats: dict[str, Tensor] = {}
        ladder: dict[str, Tensor] = {}
        for name, values in sample_stats.data_vars.items():
            field = str(name).removeprefix(LADDER)
            (stats if field == name else ladder)[field] = tensor(values)
        seed = posterior.attrs["seed"]
        kept = {name: tensor(values) for name, values in posterior.data_vars.items()}
        has_draws = "theta" in kept
        return {
            "draws": kept.pop("theta") if has_draws else stats["lp"].new_empty(*stats["lp"].shape, 0),
            "stats": stats,
            "kept": kept,
            "names": posterior["parameter"].to_numpy().tolist() if has_draws else [],
            "seed": None if seed == "None" else int(seed),
            "tempering": Tempering.of_arrays(ladder, int(posterior.attrs["thinning"])) if ladder else None,
            **{name: kind(posterior.attrs[name]) for name, kind in ATTRIBUTES.items()},
        }
    except Exception as error:  # its bytes are those that were written, and yet they say something else
        raise ValueError(f"{os.fspath(path)!r} {NOT_OURS}: {type(error).__name__}: {error}") from error


def problem(chain: Chain) -> str | None:
    """Why a chain would not come back from a file as it is, in words; None if it would."""
    tensors = {"draws": chain.draws, **chain.stats} | {f"kept[{name!r}]": each for name, each in chain.kept.items()}
    if chain.tempering is not None:
        tensors |= {f"tempering.{name}": values for name, _, values in chain.tempering.items()}
    for name, values in tensors.items():
        if not isinstance(values, Tensor) or values.layout != torch.strided or values.is_meta:
            return f"{name} must be a dense tensor with values, got {type(values).__name__}"
        if values.dtype not in DTYPES.values():
            return f"{name} has dtype {values.dtype}, and must have one of {KINDS}"
    if chain.draws.ndim != 3 or 0 in chain.draws.shape[: 2 if chain.kept else 3] or not chain.draws.is_floating_point():
        return f"draws have shape {tuple(chain.draws.shape)} and {chain.draws.dtype}, not (chains, draws, D) and floats"
    bad = (~chain.draws.isfinite()).nonzero()
    if len(bad):
        return f"draws hold {len(bad)} NaN or infinite values, the first at {bad[0].tolist()}"
    why = problem_of_names(chain.stats) or problem_of_names(chain.kept, "a function in keep")
    if why:
        return why
    if "lp" not in chain.stats:
        return f"there is no statistic lp, the log density of each draw; there are {', '.join(chain.stats) or 'none'}"
    lead = tuple(chain.draws.shape[:2])
    for name, values in chain.stats.items():
        if values.shape != lead:
            return f"the statistic {name} has shape {tuple(values.shape)}, expected {lead}"
    for name, values in chain.kept.items():
        if values.shape[:2] != lead or values.numel() == 0:
            return f"kept[{name!r}] has shape {tuple(values.shape)}, expected {(*lead, '...')}"
    if chain.tempering is not None:
        num = tuple(chain.tempering.replica.shape[-1:])
        for name, dims, values in chain.tempering.items():
            expected = (*lead[: len(dims) - 1], *num)
            if values.shape != expected:
                return f"tempering.{name} has shape {tuple(values.shape)}, expected {expected}"
    if len(chain.names) != chain.dim:
        return f"there are {len(chain.names)} names for {chain.dim} parameters"
    for text in (*chain.names, str(chain.kernel), chain.gradient, chain.device):
        if not isinstance(text, str) or "\0" in text or text.encode(errors="ignore").decode() != text:
            return f"names, kernel, gradient and device must be text without NUL characters, got {text!r:.80}"
    for name, kind in ATTRIBUTES.items():
        value = getattr(chain, name)
        if kind is not str and not isinstance(value, (int, float, np.number)):
            return f"{name} must be a number, got {value!r:.80}"
    if chain.seed is not None and not isinstance(chain.seed, int):
        return f"seed must be a whole number or None, got {chain.seed!r:.80}"
    return None


def problem_of_names(names: Iterable[str], what: str = "a statistic", taken: tuple[str, ...] = TAKEN) -> str | None:
    """Why a statistic, or what else is named, can't go by its name to ArviZ and to a file; None if all can."""
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or unicodedata.normalize("NFC", name) != name:
            return f"the name of {what} must be one word of letters, digits and underscores, got {name!r:.80}"
        if name in taken or name.startswith(LADDER):
            return (
                f"{what} can't be called {name}: {', '.join(taken)} and names that begin with {LADDER} mean "
                "something else to ArviZ and in a file; give it another name"
            )
    return None


def attributes(chain: Chain) -> dict[str, str | int | float]:
    """What is said of a chain beside its numbers."""
    return {name: kind(getattr(chain, name)) for name, kind in ATTRIBUTES.items()} | {"seed": str(chain.seed)}


def array(values: Tensor) -> np.ndarray:
    """For ArviZ and netCDF, which know no floats of 16 bits; 32 hold all of their values."""
    return (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy(force=True)


def tensor(values: DataArray) -> Tensor:
    """In the dtype that it was saved with."""
    return torch.from_numpy(values.to_numpy()).to(DTYPES[values.attrs["torch_dtype"]])


# --- bytes as files ---------------------------------------------------------------------------------------------------


def to_path(path: str | os.PathLike[str]) -> str:
    """The path as a str, with ``~`` for the home folder.

    Raises:
        TypeError: if it is something else, such as None, bytes or an open file.
        ValueError: if it is empty or holds a NUL character.
    """
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise TypeError(f"a path must be a str or a pathlib.Path, got {type(path).__name__}")
    if not name or "\0" in name:
        raise ValueError(f"a path must name a file, got {name!r}")
    return os.path.expanduser(name)


def write(path: str, *parts: bytes | memoryview) -> None:
    """Write a file of these parts, so that there is a whole one at any time; see `replace`.

    A link is followed, and the file that is replaced hands its mode on.

    Raises:
        OSError: if that fails, as on a full disk; the file that was there is unchanged.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder; name a file in it", path)
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "this is a device or a pipe; name a file", path)
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "this file may not be written to, and is unchanged", path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {str(target.parent)!r}; make it first", path)
    try:
        replace(target, *parts)
    except OSError as error:
        left = "the file that was there is unchanged" if target.exists() else "there is no such file now"
        raise OSError(error.errno, f"{error.strerror}; {left}", path) from error


def content_of(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    name = to_path(path)
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name!r}")
    return Path(name).read_bytes()


def read(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a chain's file, once it is clear that they are those that `save` wrote.

    So no parser ever sees a damaged file: HDF5's may crash on one, or never return.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file was not written by `save`, or has changed since.
    """
    name, content = to_path(path), content_of(path)
    why = problem_of_seal(content, "chain", FORMAT)
    if why is None:
        return content
    if why == NO_SEAL and not content.startswith(HDF5):
        why = "it is not a netCDF file"
    elif why == NO_SEAL:
        why += (
            ", or written by an older version or another program. Draws that ArviZ can read come home by "
            "Chain.from_arviz(arviz.from_netcdf(path), posterior)"
        )
    elif why.startswith("it has format"):
        why += ", or read draws and statistics by Chain.from_arviz(arviz.from_netcdf(path), posterior)"
    raise ValueError(f"{name!r} {NOT_OURS}: {why}")


def seal(kind: str, version: int, *parts: bytes | memoryview) -> bytes:
    """The line that ends a file of these parts."""
    line = SEAL.format(kind, version).encode()
    digest = hashlib.sha256()
    for part in (*parts, line):
        digest.update(part)
    return line + digest.hexdigest().encode() + b"\n"


def problem_of_seal(content: bytes, kind: str, version: int) -> str | None:
    """Why these are not the bytes of a sealed file, in words; None if they are."""
    found = PATTERN.search(content, max(0, len(content) - LONGEST_SEAL))
    if not content:
        return "it is empty"
    if found is None:
        return NO_SEAL
    if hashlib.sha256(memoryview(content)[: found.start(3)]).hexdigest().encode() != found[3]:
        return "it was changed or damaged after it was written, as its checksum differs; take another copy of it"
    if found[1].decode() != kind:
        return f"it holds a {found[1].decode()}"
    if int(found[2]) != version:
        known = f"this version of bnn_utils reads format {version}"
        return f"it has format {int(found[2])}, and {known}: use the one it is from"
    return None


def replace(target: Path, *parts: bytes | memoryview) -> None:
    """Write a file: first beside the old one, then in its place, so that there is a whole file at any time.

    After a kill or a loss of power in the middle, a hidden file ``.<name>.<16 digits>`` may be left beside it.

    Raises:
        OSError: if that fails, as on a full disk; the file that was there is unchanged.
    """
    beside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}")
    try:
        try:
            with open(beside, "xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                os.chmod(beside, target.stat().st_mode & 0o7777)
            os.replace(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = f"could not write: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, reason, str(target)) from error
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """New names reach the disk with their folder; not every system lets a folder be opened and written out for that."""
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
