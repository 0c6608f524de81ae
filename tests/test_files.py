"""Files of chains: whole at any time, unmistakable when damaged, equal when they come back."""

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnn_utils import HMC, Chain, ReplicaExchange, files, sample
from bnn_utils._arviz import arviz
from bnn_utils.evidence import Tempering

ROOT = Path(__file__).resolve().parent.parent


def make(draws=None, stats=None, names=None, **facts):
    """A small chain of given parts; what happens to be in it is no matter."""
    values = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    known = {"kernel": "HMC()", "gradient": "closed-form", "device": "cpu", "seed": 3, "warmup": 5}
    times = {"wall_time": 2.5, "compile_time": 0.0, "sampling_time": 2.0}
    return Chain(
        draws=values if draws is None else draws,
        stats={"lp": values[..., 0]} if stats is None else stats,
        names=["a", "b", "c"] if names is None else names,
        **known | times | facts,
    )


def tempering(lead=(2, 6), num=4):
    values = torch.rand(*lead, num)
    return Tempering(values[:, 0], values, torch.arange(num).expand(*lead, num), values > 0.5, values[:, 1].bfloat16())


def bits(values):
    """Shape, dtype and all bits, so that -0.0 is not 0.0; of NaN, only where it is."""
    values = values.detach().resolve_neg().contiguous()
    numbers = values.where(~values.isnan(), 0)
    return values.shape, values.dtype, values.isnan().numpy().tobytes(), numbers.view(torch.uint8).numpy().tobytes()


def contents(chain):
    fields = {field.name: getattr(chain, field.name) for field in dataclasses.fields(chain)}
    fields["draws"], fields["stats"] = bits(chain.draws), {name: bits(v) for name, v in chain.stats.items()}
    ladder = fields["tempering"]
    fields["tempering"] = ladder and ({name: bits(v) for name, _, v in ladder.items()}, ladder.thinning)
    fields["kernel"] = str(chain.kernel)  # which a file holds in words
    del fields["run"]
    return {name: "NaN" if isinstance(value, float) and math.isnan(value) else value for name, value in fields.items()}


def round_trip(chain, path):
    chain.save(path)
    loaded = Chain.load(path)
    assert contents(loaded) == contents(chain)
    return loaded


def run(script, *arguments):
    """A script in a process of its own: what it tests has killed the process before."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- what comes back --------------------------------------------------------------------------------------------------

SPECIAL = {
    "bool": [True, False, True],
    "uint8": [0, 7, 255],
    "uint16": [0, 7, 2**16 - 1],
    "uint32": [0, 7, 2**32 - 1],
    "uint64": [0, 7, 2**64 - 1],
    "int8": [-128, 0, 127],
    "int16": [-(2**15), 0, 2**15 - 1],
    "int32": [-(2**31), 0, 2**31 - 1],
    "int64": [-(2**63), 2**53 + 1, 2**63 - 1],
    "float16": [-0.0, math.nan, 6e-8],
    "bfloat16": [-math.inf, math.nan, 3e38],
    "float32": [-0.0, math.nan, 1e-45],
    "float64": [math.inf, math.nan, 5e-324],
}


@pytest.mark.parametrize("dtype", SPECIAL)
def test_statistics_of_every_dtype(tmp_path, dtype):
    values = torch.from_numpy(np.array(SPECIAL[dtype], "float64" if "float" in dtype else dtype))
    values = values.to(getattr(torch, dtype)).repeat(2, 2)
    round_trip(make(stats={"lp": torch.zeros(2, 6), "other": values}), tmp_path / "run.nc")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_draws_of_every_dtype(tmp_path, dtype):
    round_trip(make(draws=make().draws.to(getattr(torch, dtype))), tmp_path / "run.nc")


@pytest.mark.parametrize(
    "change",
    [
        {"draws": make().draws.transpose(0, 1).contiguous().transpose(0, 1)},
        {"draws": make().draws[:1, :1].expand(2, 6, 3)},
        {"draws": make().draws.requires_grad_(), "stats": {"lp": torch.zeros(2, 6, requires_grad=True)}},
        {"draws": make().draws.to(torch.complex128).conj().imag},
        {"draws": torch.nn.Parameter(make().draws)},
        {"stats": {"lp": torch.zeros(6, 2).mT}},
        {"stats": {"lp": torch.full((2, 6), math.nan)}},
        {"stats": {"x_1": torch.ones(2, 6), "lp": torch.zeros(2, 6), "energy": torch.ones(2, 6)}},
        {"stats": {name: torch.zeros(2, 6) for name in ("lp", "nan", "coordinates", "é", "_Fill")}},
        {"seed": None},
        {"seed": 2**63},
        {"seed": 10**100},
        {"seed": -(2**64)},
        {"names": ["a", "a", "a"]},
        {"names": ["", "", " "]},
        {"names": ["θ[0,0]", "e\u0301", "a/b\n\t"]},
        {"names": ["nan", "NaN", "None"]},
        {"names": ["x" * 100_000, "1", "2"]},
        {"kernel": "HMC(" + "θ" * 200_000 + ")"},
        {"kernel": HMC(0.1, 3, torch.ones(3))},
        {"thinning": 3, "dropped": 10},
        {"thinning": 3, "tempering": dataclasses.replace(tempering(), thinning=3)},
        {"kernel": "", "gradient": "", "device": "None"},
        {"wall_time": math.nan, "sampling_time": math.nan},
        {"wall_time": math.inf, "warmup": 0},
        {"wall_time": 2, "warmup": np.int64(3), "sampling_time": np.float32(0.1)},
        {"tempering": tempering()},
        {"tempering": tempering(num=2)},
    ],
    ids=" ".join,
)  # fmt: skip
def test_round_trip(tmp_path, change):
    loaded = round_trip(make(**change), tmp_path / "run.nc")
    assert list(loaded.stats) == list(make(**change).stats)
    assert not loaded.draws.requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(({"stats": {"lp": torch.zeros(2, 6), name: torch.zeros(2, 6)}}, words) for name, words in [
            *((name, f"can't be called {name}: .*give it another name") for name in
              (*files.TAKEN, "tempering_x", "tempering_replica")),
            *((name, f"must be one word .*, got {re.escape(repr(name))}") for name in
              ("a/b", "", ".", "a b", "a ", "x\0y", "\n", "e\u0301", "a\ud800", 3, None, ("a", "b"), b"lp")),
        ]),
        ({"stats": {}}, "no statistic lp.*there are none"),
        ({"stats": {"energy": torch.zeros(2, 6)}}, "no statistic lp.*there are energy"),
        ({"stats": {"lp": torch.zeros(2, 5)}}, r"lp has shape \(2, 5\), expected \(2, 6\)"),
        ({"stats": {"lp": torch.zeros(2, 6, 1)}}, r"lp has shape \(2, 6, 1\)"),
        ({"stats": {"lp": np.zeros((2, 6))}}, "lp must be a dense tensor with values, got ndarray"),
        ({"stats": {"lp": torch.zeros(2, 6).to_sparse()}}, "lp must be a dense tensor"),
        ({"stats": {"lp": torch.zeros(2, 6, device="meta")}}, "lp must be a dense tensor with values"),
        ({"stats": {"lp": torch.zeros(2, 6, dtype=torch.complex64)}}, "lp has dtype torch.complex64"),
        ({"stats": {"lp": torch.zeros(2, 6, dtype=torch.float8_e5m2)}}, "lp has dtype torch.float8_e5m2"),
        ({"draws": make().draws.where(make().draws < 1, math.nan)}, "draws hold .* NaN or infinite values, the first"),
        ({"draws": make().draws.where(make().draws < 1, -math.inf)}, "draws hold .* NaN or infinite values"),
        ({"draws": torch.zeros(2, 6)}, r"draws have shape \(2, 6\)"),
        ({"draws": torch.zeros(2, 0, 3), "stats": {"lp": torch.zeros(2, 0)}}, r"draws have shape \(2, 0, 3\)"),
        ({"draws": torch.zeros(2, 6, 3, dtype=torch.int64)}, "torch.int64"),
        ({"names": ["a", "b"]}, "2 names for 3 parameters"),
        ({"names": ["a", "b", 3]}, "must be text.*got 3"),
        ({"names": ["a", "b", "c\0"]}, "must be text without NUL"),
        ({"kernel": "\ud800"}, "must be text"),
        ({"gradient": None}, "must be text.*got None"),
        ({"seed": 1.5}, "seed must be a whole number or None, got 1.5"),
        ({"wall_time": "long"}, "wall_time must be a number, got 'long'"),
        ({"tempering": tempering((2, 5))}, r"tempering.log_likelihood has shape \(2, 5, 4\), expected \(2, 6, 4\)"),
        ({"tempering": dataclasses.replace(tempering(), replica=torch.tensor(1))}, "tempering.* has shape"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else repr(value)[1:40],
)  # fmt: skip
def test_chains_that_could_not_come_back_are_not_saved(tmp_path, change, words):
    make().save(tmp_path / "run.nc")
    with pytest.raises(ValueError, match=f"(?s)this chain can't be saved: .*{words}"):
        make(**change).save(tmp_path / "run.nc")
    assert contents(Chain.load(tmp_path / "run.nc")) == contents(make())


@given(name=st.text(max_size=12))
def test_a_statistic_of_any_name_comes_back_or_is_refused(tmp_path_factory, name):
    chain = make(stats={"lp": torch.zeros(2, 6), name: torch.arange(12.0).view(2, 6)})
    path = tmp_path_factory.getbasetemp() / "any_name.nc"
    try:
        chain.save(path)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = None
        assert contents(Chain.load(path)) == contents(chain)
    assert refusal is None or "statistic" in refusal


def test_replica_exchange_comes_back(posterior, tmp_path):
    kernel = ReplicaExchange(HMC(0.1, 3), num_temperatures=3)
    round_trip(sample(posterior, kernel, 20, 2, warmup=10, batch_size=1, progress=False), tmp_path / "run.nc")


def test_arviz_opens_the_file(posterior, tmp_path):
    chain = sample(posterior, HMC(0.1, 3), 20, 2, progress=False)
    chain.save(tmp_path / "run.nc")
    data = arviz().from_netcdf(str(tmp_path / "run.nc"))
    assert data.groups() == ["posterior", "sample_stats"]
    np.testing.assert_array_equal(data.posterior["theta"], chain.draws)
    assert data.posterior["theta"].dims == ("chain", "draw", "parameter")
    assert data.posterior.coords["parameter"].to_numpy().tolist() == chain.names
    assert set(data.sample_stats) == set(chain.stats)
    assert data.sample_stats["diverging"].dtype == bool
    assert data.posterior.attrs["kernel"] == repr(chain.kernel)
    home = Chain.from_arviz(data, posterior)
    assert torch.equal(home.draws, chain.draws)
    torch.testing.assert_close(home.stats["lp"], chain.stats["lp"], rtol=1e-12, atol=0)
    data.close()


def test_what_arviz_saves_comes_home_by_arviz(posterior, tmp_path):
    """As do files of the versions before the checksum, which were written in this way."""
    chain, path = sample(posterior, HMC(0.1, 3), 20, 2, progress=False), tmp_path / "run.nc"
    chain.to_arviz().to_netcdf(str(path))
    with pytest.raises(
        ValueError, match=r"run\.nc' does not hold .*Chain\.from_arviz\(arviz\.from_netcdf\(path\), post"
    ):
        Chain.load(path)
    data = arviz().from_netcdf(str(path))
    assert torch.equal(Chain.from_arviz(data, posterior).draws, chain.draws)
    data.close()


# --- what a damaged file says -----------------------------------------------------------------------------------------


def sealed(content, version=files.FORMAT):
    text = content + files.SEAL.format("chain", version).encode()
    return text + hashlib.sha256(text).hexdigest().encode() + b"\n"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: content[:-1], "does not end with its checksum.*cut short or added to"),
        (lambda content: content[:-200], "does not end with its checksum.*cut short or added to"),
        (lambda content: content[:500], "does not end with its checksum.*cut short or added to"),
        (lambda content: content + b"\n", "does not end with its checksum.*cut short or added to"),
        (lambda content: content[1:], "was changed or damaged after it was written"),
        (lambda content: content[:900] + b"?" + content[901:], "was changed or damaged after it was written"),
        (lambda content: content[:900] + b"?" + content[900:], "was changed or damaged after it was written"),
        (lambda content: content[:900] + bytes(100) + content[1000:], "was changed or damaged after it was written"),
        (lambda content: content.replace(b"format 2", b"format 1"), "was changed or damaged after it was written"),
        (
            lambda content: sealed(content, 1),
            r"it has format 1, and .* reads format 2: .* or read draws and stat.*from_arviz",
        ),
        (lambda content: content[:5], "it is not a netCDF file"),
        (lambda content: b"CDF\x01" + content[4:200], "it is not a netCDF file"),
        (lambda content: sealed(b""), ""),
        (lambda content: sealed(b"not HDF5 at all"), ""),
    ],
)
def test_words_about_damaged_files(tmp_path, damage, words):
    path = tmp_path / "run.nc"
    make().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"run\.nc' does not hold a chain written by Chain\.save: .*{words}"):
        Chain.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stats": {"energy": torch.zeros(2, 6)}}, "there is no statistic lp"),
        ({"draws": torch.full((2, 6, 3), math.nan)}, r"draws hold 36 NaN or infinite values, the first at \[0, 0, 0\]"),
        ({"draws": torch.zeros(2, 6, 3, dtype=torch.int64)}, "torch.int64"),
    ],
)
def test_a_file_that_says_something_else_under_its_checksum(tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(files, "problem", lambda chain: None)
    make(**change).save(tmp_path / "run.nc")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"run\.nc' does not hold a chain written by Chain\.save: .*{words}"):
        Chain.load(tmp_path / "run.nc")


MUTATE = """
    import os, resource, sys
    import numpy as np
    from test_files import contents, make
    from bnn_utils import Chain
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    path, rng, outcomes = sys.argv[1], np.random.default_rng(0), {"error": 0, "equal": 0}
    make().save(path)
    expected, whole = contents(make()), open(path, "rb").read()
    def place(longest=400):
        start = int(rng.integers(len(whole)))
        return start, start + int(rng.integers(1, longest))
    def flip():
        content = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            content[at] ^= 1 << int(rng.integers(8))
        return bytes(content)
    def zeros():
        start, end = place()
        return whole[:start] + bytes(len(whole[start:end])) + whole[end:]
    def insert():
        start, end = place()
        return whole[:start] + rng.bytes(end - start) + whole[start:]
    def swap():
        (a, b), (c, d) = sorted([place(), place()])
        b, c = min(b, c), max(b, c)
        return whole[:a] + whole[c:d] + whole[b:c] + whole[a:b] + whole[d:]
    def cut():
        start, end = place()
        return whole[:start] + whole[end:]
    mutations = [flip, zeros, insert, swap, cut, lambda: whole[:place()[0]],
                 lambda: whole + rng.bytes(place()[1] % 300), lambda: 2 * whole,
                 lambda: whole[:place()[0]] + whole[-120:]]
    for number in range(10_000):
        mutated = whole
        while mutated == whole:  # as zeros in place of zeros
            mutated = mutations[number % len(mutations)]()
        os.unlink(path)  # some file systems wait for the disk where a file is written over
        with open(path, "wb") as file:
            file.write(mutated)
        try:
            loaded = Chain.load(path)
        except ValueError as error:
            assert path in str(error) and "Chain.save" in str(error), error
            outcomes["error"] += 1
        else:
            assert contents(loaded) == expected, mutations[number % len(mutations)]
            outcomes["equal"] += 1
    print(outcomes)
"""


def test_ten_thousand_mutations(tmp_path):
    """Each is an error that names the file: no crash, no endless loop, no other chain."""
    outcomes = json.loads(run(MUTATE, tmp_path / "run.nc").replace("'", '"'))
    assert outcomes == {"error": 10_000, "equal": 0}


# --- whole at any time ------------------------------------------------------------------------------------------------

FAIL_TO_SAVE = """
    import os, resource, sys
    import torch
    from test_files import contents, make
    from bnn_utils import Chain
    folder, limit = sys.argv[1], int(sys.argv[2])
    path = os.path.join(folder, "run.nc")
    make().save(path)
    large = make(draws=torch.randn(2, 50_000, 3), stats={"lp": torch.randn(2, 50_000)})
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for target in (path, os.path.join(folder, "new.nc")):
        try:
            large.save(target)
        except OSError as error:
            print(error.errno, error)
            assert target in str(error)
    assert contents(Chain.load(path)) == contents(make())
    assert os.listdir(folder) == ["run.nc"], os.listdir(folder)
    make(seed=4).save(path)
    assert Chain.load(path).seed == 4
"""


def check_failure_to_save(output, number):
    old, new = output.splitlines()
    assert re.match(rf"{number} .* could not write: .*; the file that was there is unchanged: '.*run\.nc'$", old)
    assert re.match(rf"{number} .* could not write: .*; there is no such file now: '.*new\.nc'$", new)


def test_a_disk_that_is_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        check_failure_to_save(run(FAIL_TO_SAVE, tmp_path, 0), errno.ENOSPC)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit to the size of files")
def test_a_limit_to_the_size_of_files(tmp_path):
    check_failure_to_save(run(FAIL_TO_SAVE, tmp_path, 200_000), errno.EFBIG)


KILL = """
    import os, random, signal, sys, time
    import torch
    from test_files import contents, make
    from bnn_utils import Chain
    torch.set_num_threads(1)
    path = sys.argv[1]
    chains = [make(draws=torch.randn(2, 5_000, 3), stats={"lp": torch.randn(2, 5_000)}, seed=seed) for seed in (0, 1)]
    chains[0].save(path)
    Chain.load(path)
    expected = [contents(chain) for chain in chains]
    rng, seen = random.Random(0), []
    for _ in range(12):
        child = os.fork()
        if child == 0:
            while True:
                chains[1].save(path)
                chains[0].save(path)
        time.sleep(rng.uniform(0.05, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = Chain.load(path)
        assert contents(loaded) == expected[loaded.seed]
        seen.append(os.stat(path).st_ino)
    assert len(set(seen)) > 1, "no save was finished in any of the children"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_the_middle(tmp_path):
    run(KILL, tmp_path / "run.nc")


def test_an_interruption_leaves_no_litter(tmp_path, monkeypatch):
    make().save(tmp_path / "run.nc")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(seed=4).save(tmp_path / "run.nc")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["run.nc"]
    assert Chain.load(tmp_path / "run.nc").seed == 3


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "run.nc", tmp_path / "link.nc"
    link.symlink_to(target)  # to a file that isn't there yet
    for seed in (1, 2):
        make(seed=seed).save(link)
        assert link.is_symlink()
        assert Chain.load(target).seed == Chain.load(link).seed == seed
    assert sorted(os.listdir(tmp_path)) == ["far", "link.nc"]


@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
def test_permissions_stay(tmp_path):
    make().save(tmp_path / "run.nc")
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.nc").stat().st_mode) == 0o666 & ~before
    (tmp_path / "run.nc").chmod(0o640)
    make(seed=4).save(tmp_path / "run.nc")
    assert stat.S_IMODE((tmp_path / "run.nc").stat().st_mode) == 0o640
    assert Chain.load(tmp_path / "run.nc").seed == 4


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_what_may_not_be_written_to(tmp_path):
    make().save(tmp_path / "run.nc")
    (tmp_path / "run.nc").chmod(0o444)
    with pytest.raises(PermissionError, match=r"may not be written to, and is unchanged: .*run\.nc"):
        make(seed=4).save(tmp_path / "run.nc")
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match=r"could not write.*new\.nc"):
        make(seed=4).save(tmp_path / "new.nc")
    tmp_path.chmod(0o755)


def test_kinds_of_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("run.nc", "~/run.nc", tmp_path / "run.nc", str(tmp_path / "run.nc"), "./run.nc", "ü b.nc", "x" * 255):
        make(seed=1).save(path)
        assert Chain.load(path).seed == 1
    assert sorted(os.listdir(tmp_path)) == ["run.nc", "x" * 255, "ü b.nc"]


@pytest.mark.parametrize("path", [None, 3, b"run.nc", open, 1.5, True, ["run.nc"]])
def test_what_is_no_path(path):
    for call in (make().save, Chain.load):
        with pytest.raises(TypeError, match=f"a path must be a str or a pathlib.Path, got {type(path).__name__}"):
            call(path)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_names_no_file(path):
    for call in (make().save, Chain.load):
        with pytest.raises(ValueError, match="a path must name a file, got"):
            call(path)


def test_places_where_no_file_can_be(tmp_path):
    with pytest.raises(IsADirectoryError, match="this is a folder; name a file in it"):
        make().save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*missing'; make it first: '.*run\.nc'"):
        make().save(tmp_path / "missing" / "run.nc")
    with pytest.raises(OSError, match="name"):
        make().save(tmp_path / ("x" * 256))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match=r"this is a device or a pipe; name a file: .*pipe"):
            make().save(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError, match=r"there is no file .*pipe"):
            Chain.load(tmp_path / "pipe")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
