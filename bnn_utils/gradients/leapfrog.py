"""HMC as instructions for LLVM, for any likelihood that is called: what `bnn_utils.kernels.hmc` says, lane by lane."""

from __future__ import annotations

from typing import ClassVar

from bnn_utils.gradients.lanes import I1, Assembly, Lane, Layout
from bnn_utils.gradients.writer import I8, I64, Value

LAYOUT = Layout(
    sizes=("is_dense",),
    constants=(),
    arrays=(
        "inv_mass",  # (D,) or (D, D), whose rows are filled up
        *("momenta", "sizes", "uniforms", "steps"),  # (T, C, D), (T, C), (T, C), and (T,), int64
        *("start_energy", "end_energy", "is_accept"),  # what is recorded, (C, length), the last one in bytes
    ),
    rows=("p", "v"),
    numbers=("log_prob", "size", "start"),
    counts=("place",),
)


def assemble(dtype: str) -> str:
    """The text of a module of LLVM with `transitions`."""
    return str(_Assembly(dtype).module)


class Hamiltonian(Assembly):
    """A module in the making, whose lanes have momenta in the row p and velocities in v, with the mass in an array."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.velocity = self.for_lane("velocity", self._velocity)

    def _velocity(self, lane: Lane) -> None:
        """``M^-1 p``, by the diagonal or column by column."""
        b, p, to = lane.b, lane.row("p"), lane.row("v")
        with b.if_else(b.icmp_signed("==", lane.field("is_dense"), I64(0))) as (diagonal, dense):
            with diagonal:
                for (one, inv_mass, _), (*_, place) in lane.over(p, lane.array("inv_mass"), to):
                    self.store(b, lane.v.mul(inv_mass, one), place)
            with dense:
                lane.clear(to)
                with self.loop(b, I64(0), lane.dim) as column:
                    one = lane.v.splat(b.load(self.at(b, p, column)))
                    for (inv_mass, before), (_, place) in lane.over(
                        lane.array("inv_mass", b.mul(column, lane.size)), to
                    ):
                        self.store(b, lane.v.fma(inv_mass, one, before), place)

    def kinetic(self, lane: Lane) -> Value:
        """Of p and v."""
        total = lane.sums(1, lambda r: [(r[0], r[1])], lane.row("p"), lane.row("v"))[0]
        return lane.b.fmul(self.scalar(0.5), total)

    def kick(self, lane: Lane, time: Value) -> None:
        """Of the momentum, by the gradient."""
        time = lane.v.splat(time)
        for (p, grad), (place, _) in lane.over(lane.row("p"), lane.row("grad")):
            self.store(lane.b, lane.v.fma(time, grad, p), place)

    def drift(self, lane: Lane) -> None:
        """Of theta, by the velocity, to where the log likelihood is asked for."""
        lane.b.call(self.velocity, lane.arguments)
        size = lane.v.splat(lane.get("size"))
        for (theta, v), (place, _) in lane.over(lane.row("theta"), lane.row("v")):
            self.store(lane.b, lane.v.fma(size, v, theta), place)
        lane.ask()


class _Assembly(Hamiltonian):
    """A module in the making."""

    layout: ClassVar[Layout] = LAYOUT

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.begin = self.for_lane("begin", self._begin)
        self.end = self.for_lane("end", self._end)
        self.go = self.for_lane("go", self.drift)
        self.arrive = self.for_lane("arrive", self._arrive, I1)
        self.write_transitions()

    def _begin(self, lane: Lane) -> None:
        """A transition, from the state that was chosen last, with the next momentum and the first kick."""
        b = lane.b
        drawn = lane.place_drawn()
        lane.copy(*((lane.row(f"{name}_chosen"), lane.row(name)) for name in ("theta", "grad")))
        lane.copy_numbers(lane.array("momenta", b.mul(drawn, lane.dim)), lane.row("p"))
        b.call(self.velocity, lane.arguments)
        size = b.load(lane.array("sizes", drawn))
        lane.set(start=b.fsub(self.kinetic(lane), lane.get("log_prob_chosen")), size=size, place=0)
        self.kick(lane, self._half(lane))

    def _arrive(self, lane: Lane) -> None:
        """The kick between two steps, or the last one; whether it was that of all transitions."""
        b = lane.b
        lane.set(log_prob=lane.answer(), place=b.add(lane.get("place"), I64(1)))
        steps = b.load(lane.array("steps", lane.get("transition"), kind=I64))
        is_last = b.icmp_signed("==", lane.get("place"), steps)
        self.kick(lane, b.select(is_last, self._half(lane), lane.get("size")))
        with b.if_then(b.not_(is_last)):
            b.ret(I1(0))
        b.ret(self.ended(lane))

    def _end(self, lane: Lane) -> None:
        """The end of the trajectory is accepted or not."""
        b = lane.b
        b.call(self.velocity, lane.arguments)
        end = b.fsub(self.kinetic(lane), lane.get("log_prob"))
        log_ratio = lane.finite_or_least(b.fsub(lane.get("start"), end))
        uniform = b.load(lane.array("uniforms", lane.place_drawn()))
        takes = lane.is_less(lane.on_one(lane.one.log, uniform), log_ratio)
        with b.if_then(takes):
            lane.copy(*((lane.row(name), lane.row(f"{name}_chosen")) for name in ("theta", "grad")))
            lane.set(log_prob_chosen=lane.get("log_prob"))
        lane.record(start_energy=lane.get("start"), end_energy=end, is_accept=b.zext(takes, I8))

    def _half(self, lane: Lane) -> Value:
        return lane.b.fmul(lane.get("size"), self.scalar(0.5))
