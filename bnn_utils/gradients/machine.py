"""LLVM: from the text of a module to functions that can be called, kept on disk from one process to the next."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

SUFFIX = ".bin"


def target() -> llvm.TargetMachine:
    """This processor; a new object for each engine, which takes it along when it goes.

    Raises:
        RuntimeError: if it can't multiply and add in one instruction.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    triple = llvm.get_process_triple()
    if triple.startswith(("x86", "i686")) and not features.get("fma"):
        raise RuntimeError("this processor has no fused multiply-add (FMA)")
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3, jit=True
    )


class Library:
    """Functions in memory, for as long as this object lives."""

    def __init__(self, code: bytes) -> None:
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def function(self, name: str, kinds: Sequence[type]) -> Callable[..., None]:
        """One of them, whose arguments are of these kinds of ctypes; while it runs other threads do, too."""
        return ctypes.CFUNCTYPE(None, *kinds)(self.address(name))

    def address(self, name: str) -> int:
        """Where one of them begins."""
        return self._engine.get_function_address(name)


def translate(text: str) -> bytes:
    """A module's text to an object file for this processor."""
    machine = target()
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    # What is worth a vector is one already. To unroll loops as well doubles the time that LLVM takes, for nothing.
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


def load(key: object, text: Callable[[], str], sources: tuple[str, ...]) -> Library:
    """The functions of a module, from this user's cache on disk if it holds them, or made and put there.

    Args:
        key: what the text depends on, by its repr.
        text: makes the module's text.
        sources: files of Python that the text depends on.
    """
    machine = target()
    known = hashlib.sha256(repr((key, llvmlite.__version__, machine.triple, llvm.get_host_cpu_name())).encode())
    known.update(llvm.get_host_cpu_features().flatten().encode())
    for source in (*sources, __file__):
        known.update(Path(source).read_bytes())
    path = folder() / f"{known.hexdigest()[:32]}{SUFFIX}"
    with suppress(OSError):
        digest, code = (content := path.read_bytes())[:32], content[32:]
        if digest == hashlib.sha256(code + known.digest()).digest():
            return Library(code)
    code = translate(text())
    with suppress(OSError):  # a disk that is full or can't be written to costs time, and nothing else
        _write(path, hashlib.sha256(code + known.digest()).digest() + code)
    return Library(code)


def folder() -> Path:
    """Where compiled code is kept: ``BNN_UTILS_CACHE``, or the place that the operating system has for such things."""
    given = os.environ.get("BNN_UTILS_CACHE")
    if given:
        return Path(given)
    place = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(place or Path.home() / ".cache") / "bnn_utils"


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, whoever else writes there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
