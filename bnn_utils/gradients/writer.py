"""What all modules of LLVM write again and again: functions, loops, and vectors in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llvmlite import ir

I64, I8, VOID = ir.IntType(64), ir.IntType(8), ir.VoidType()
BITS = 512  # of a vector: one or two registers of today's processors, four of older ones

if TYPE_CHECKING:
    Value = Any  # llvmlite has no types
else:
    Value = ir.Value


def width_of(num_bytes: int) -> int:
    """How many numbers of so many bytes are in a vector."""
    return BITS // (8 * num_bytes)


class Writer:
    """A module in the making, and what is written again and again."""

    def __init__(self, dtype: str) -> None:
        self.scalar, self.bytes = (ir.FloatType(), 4) if dtype == "float32" else (ir.DoubleType(), 8)
        self.width = width_of(self.bytes)
        self.module = ir.Module("bnn_utils")
        self.pointer = self.scalar.as_pointer()

    def function(self, name: str, kind: ir.FunctionType, internal: bool = False) -> ir.Function:
        function = ir.Function(self.module, kind, name)
        for argument in function.args:  # no two of them overlap
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        if internal:
            function.linkage = "internal"
            function.attributes.add("noinline")
        return function

    def variable(self, b: ir.IRBuilder, kind: ir.Type) -> Value:
        with b.goto_entry_block():  # once, and not every time round a loop
            return b.alloca(kind)

    def at(self, b: ir.IRBuilder, pointer: Value, *places: Value) -> Value:
        return b.gep(pointer, list(places), inbounds=True)

    def load(self, b: ir.IRBuilder, pointer: Value, kind: ir.Type) -> Value:
        """A vector that lies anywhere."""
        return b.load(b.bitcast(pointer, kind.as_pointer()), align=self.bytes)

    def store(self, b: ir.IRBuilder, value: Value, pointer: Value) -> None:
        b.store(value, b.bitcast(pointer, value.type.as_pointer()), align=self.bytes)

    @contextmanager
    def loop(self, b: ir.IRBuilder, start: Value, stop: Value, step: Value | int = 1) -> Iterator[Value]:
        before = b.block
        head, body, after = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(start, before)
        b.cbranch(b.icmp_signed("<", index, stop), body, after)
        b.position_at_end(body)
        yield index
        index.add_incoming(b.add(index, I64(step) if isinstance(step, int) else step), b.block)
        b.branch(head)
        b.position_at_end(after)
