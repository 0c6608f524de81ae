"""Trajectories at constant speed as instructions for LLVM: what `bnn_utils.kernels.microcanonical` says."""

from __future__ import annotations

from typing import ClassVar

from bnn_utils.gradients.lanes import I1, Assembly, Lane, Layout
from bnn_utils.gradients.writer import I8, I64, Value

TINY = {4: 2.0**-126, 8: 2.0**-1022}  # the smallest normal number, by bytes
LAYOUT = Layout(
    sizes=("keeps_u",),  # whether a direction goes on in the next transition, with noise
    # How much noise, what part of a step the outer kicks have, and below which log ratio no step is taken.
    constants=("nu", "outer", "least_log_ratio"),
    arrays=(
        "scale",  # (D,), filled up: theta by coordinates in which the mass is the identity
        *("u", "end_theta", "end_grad", "end_log_prob"),  # (C, D) and (C,): the direction, and the end of a trajectory
        *("noise", "sizes", "uniforms", "steps"),  # (T, C, D), (T, C), (T, C), and (T,), int64
        *("rates", "errors", "accepts"),  # what is recorded, (C, length), the last one in bytes
    ),
    rows=("u", "z"),
    numbers=("log_prob", "size", "time", "kinetic"),
    counts=("place",),
    moving=(("u", "u"), ("end_theta", "theta"), ("end_grad", "grad"), ("end_log_prob", "log_prob")),
)


def assemble(dtype: str) -> str:
    """The text of a module of LLVM with `transitions`."""
    return str(_Assembly(dtype).module)


class _Assembly(Assembly):
    """A module in the making."""

    layout: ClassVar[Layout] = LAYOUT

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.kick = self.for_lane("kick", self._kick)
        self.begin = self.for_lane("begin", self._begin)
        self.end = self.for_lane("end", self._end)
        self.go = self.for_lane("go", self._go)
        self.arrive = self.for_lane("arrive", self._arrive, I1)
        self.write_transitions()

    def _begin(self, lane: Lane) -> None:
        """A transition, from the state that was chosen last: the next direction, and the first kick."""
        b, v, u = lane.b, lane.v, lane.row("u")
        lane.copy(*((lane.row(f"{name}_chosen"), lane.row(name)) for name in ("theta", "grad")))
        drawn = lane.place_drawn()
        lane.copy_numbers(lane.array("noise", b.mul(drawn, lane.dim)), lane.row("z"))
        with b.if_then(b.not_(self._keeps_u(lane))):
            lane.clear(u)
        nu = v.splat(lane.constant("nu"))
        for (before, z), (place, _) in lane.over(u, lane.row("z")):
            self.store(b, v.fma(nu, z, before), place)
        self._normalize(lane, u)
        size = b.load(lane.array("sizes", drawn))
        lane.set(size=size, kinetic=self.scalar(0.0), place=0)
        self._kicked(lane, lane.constant("outer"))

    def _go(self, lane: Lane) -> None:
        """Half of a step, up to where the log likelihood must be known."""
        v, half = lane.v, lane.v.splat(lane.b.fmul(lane.get("size"), self.scalar(0.5)))
        for (theta, u, scale), (place, *_) in lane.over(lane.row("theta"), lane.row("u"), lane.array("scale")):
            self.store(lane.b, v.fma(half, v.mul(scale, u), theta), place)
        lane.ask()

    def _arrive(self, lane: Lane) -> None:
        """A kick, between halves of a step, between steps, or the last; whether it was that of all transitions."""
        b, two = lane.b, self.scalar(2.0)
        lane.set(log_prob=lane.answer(), place=b.add(lane.get("place"), I64(1)))
        steps = b.load(lane.array("steps", lane.get("transition"), kind=I64))
        is_last = b.icmp_signed("==", lane.get("place"), b.shl(steps, I64(1)))
        outer = lane.constant("outer")
        is_within = b.trunc(lane.get("place"), I1)
        part = b.select(is_within, b.fsub(self.scalar(1.0), b.fmul(two, outer)), b.fmul(two, outer))
        self._kicked(lane, b.select(is_last, outer, part))
        with b.if_then(b.not_(is_last)):
            b.ret(I1(0))
        b.ret(self.ended(lane))

    def _end(self, lane: Lane) -> None:
        """The end of the trajectory is taken or not.

        With a uniform number of 0 it is wherever its log ratio is not below the least.
        """
        b, log_prob = lane.b, lane.get("log_prob")
        error = b.fadd(b.fsub(lane.get("log_prob_chosen"), log_prob), lane.get("kinetic"))
        log_ratio = lane.finite_or_least(b.fneg(error))
        uniform = b.load(lane.array("uniforms", lane.place_drawn()))
        takes = b.and_(
            lane.is_less(lane.on_one(lane.one.log, uniform), log_ratio),
            b.not_(lane.is_less(log_ratio, lane.constant("least_log_ratio"))),
        )
        with b.if_else(takes) as (taken, left):
            with taken:
                lane.copy(*((lane.row(name), lane.row(f"{name}_chosen")) for name in ("theta", "grad")))
                lane.set(log_prob_chosen=log_prob)
            with left, b.if_then(self._keeps_u(lane)):
                lane.clear(lane.row("u"))
        lane.record(rates=lane.probability(log_ratio), errors=error, accepts=b.zext(takes, I8))

    # --- directions ---------------------------------------------------------------------------------------------------

    def _kicked(self, lane: Lane, part: Value) -> None:
        """By a part of a step."""
        lane.set(time=lane.b.fmul(part, lane.get("size")))
        lane.b.call(self.kick, lane.arguments)

    def _kick(self, lane: Lane) -> None:
        """As `bnn_utils.kernels.microcanonical.kick`, where ``1 - exp(-delta)`` is ``2 t / (1 + t)`` for
        ``t = tanh(delta / 2)``.
        """
        b, v, one = lane.b, lane.v, lane.one
        u, grad, scale = lane.row("u"), lane.row("grad"), lane.array("scale")
        freedom = b.sitofp(b.sub(lane.dim, I64(1)), self.scalar)

        def terms(values: list[Value]) -> list[tuple[Value, Value]]:
            slope = v.mul(values[1], values[2])
            return [(slope, slope), (slope, values[0])]

        square, product = map(one.splat, lane.sums(2, terms, u, grad, scale))
        norm = one.sqrt(square)
        smallest = one.max(norm, one.constant(TINY[self.bytes]))  # without a gradient e and delta are 0, and u stays
        delta, cosine = one.mul(one.splat(b.fdiv(lane.get("time"), freedom)), norm), one.div(product, smallest)
        t, two = one.tanh(one.mul(one.constant(0.5), delta)), one.constant(2.0)
        shrink = one.div(one.mul(two, t), one.add(one.constant(1.0), t))
        rest = one.sub(two, shrink)  # shrink times this is 1 - exp(-2 delta)
        stays = one.fma(one.constant(-2.0), shrink, two)
        turns = one.div(one.mul(shrink, one.fma(cosine, shrink, rest)), smallest)
        behind = one.mul(one.constant(0.5), one.sub(one.constant(1.0), cosine))
        log_stretch = one.add(delta, one.log1p(one.neg(one.mul(behind, one.mul(shrink, rest)))))
        stays, turns, log_stretch = (b.extract_element(x, I64(0)) for x in (stays, turns, log_stretch))
        lane.set(kinetic=b.fadd(lane.get("kinetic"), b.fmul(freedom, log_stretch)))
        stays, turns = v.splat(stays), v.splat(turns)
        for (before, slope, factor), (place, *_) in lane.over(u, grad, scale):
            self.store(b, v.fma(turns, v.mul(slope, factor), v.mul(stays, before)), place)
        self._normalize(lane, u)

    def _normalize(self, lane: Lane, row: Value) -> None:
        """To a length of 1."""
        square = lane.sums(1, lambda r: [(r[0], r[0])], row)[0]
        norm = lane.v.splat(lane.on_one(lane.one.sqrt, square))
        for (u,), (place,) in lane.over(row):
            self.store(lane.b, lane.v.div(u, norm), place)

    # --- numbers ------------------------------------------------------------------------------------------------------

    def _keeps_u(self, lane: Lane) -> Value:
        return lane.b.trunc(lane.field("keeps_u"), I1)
