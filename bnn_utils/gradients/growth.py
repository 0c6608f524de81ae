"""NUTS as instructions for LLVM: what `bnn_utils.kernels.nuts` says, for lanes each of which goes its own way."""

from __future__ import annotations

import math
from typing import ClassVar

from llvmlite import ir

from bnn_utils.gradients.caller import DIRECTION, STATE, SUBTREE
from bnn_utils.gradients.lanes import I1, Lane, Layout
from bnn_utils.gradients.leapfrog import Hamiltonian
from bnn_utils.gradients.vector import Vectors
from bnn_utils.gradients.writer import I8, I64, Value
from bnn_utils.random import GOLDEN, KEY_BITS, LAST_SHIFT, MIXING

STRETCH = ("rho", "p_first", "v_first", "p_last", "v_last")  # rows of each that a doubling is made of so far
LAYOUT = Layout(
    sizes=("max_depth", "is_dense"),
    constants=("step_size", "least_log_weight"),  # the log weight below which a step diverges
    arrays=(
        "inv_mass",  # (D,) or (D, D), whose rows are filled up
        *("momenta", "keys"),  # (T, C, D), and (T, C), int64
        # What is recorded, (C, length): the last four are two of int64 and two of bytes.
        *("rates", "energies", "errors", "steps", "depths", "diverging", "reached"),
    ),
    # Of each pair the first is the left end of the trajectory, the next one the right end.
    rows=(
        *("thetas", "", "grads", "", "ps", "", "vs", "", "rho"),
        *("p", "v"),  # where it is going
        *("theta_added", "grad_added"),  # of the trajectory's doubling
    ),
    numbers=(
        *("start", "energy_chosen", "log_weight", "log_prob_added", "energy_added", "log_weight_added"),
        *("size", "sum_of_rates"),
    ),
    counts=("key", "level", "place", "side", "stretches", "steps", "depth", "is_diverging", "is_reached"),
)


def rows_of(max_depth: int) -> int:
    """How many a lane has beyond `Layout.rows`."""
    return len(STRETCH) * max_depth


def assemble(dtype: str) -> str:
    """The text of a module of LLVM with `transitions`."""
    return str(_Assembly(dtype).module)


class _Tree(Lane):
    """A lane whose trajectory grows."""

    def stretch(self, name: str, place: Value) -> Value:
        """A row of the stretch that has a place in the list of them."""
        num_rows = len(self.writer.layout.all_rows)
        return self.row_at(self.b.add(self.b.mul(place, I64(len(STRETCH))), I64(num_rows + STRETCH.index(name))))

    def uniform(self, place: Value, what: int) -> Value:
        b = self.b
        z = b.add(self.get("key"), b.mul(b.add(b.mul(place, I64(3)), I64(what)), I64(GOLDEN)))
        for shift, factor in MIXING:
            z = b.mul(b.xor(z, b.lshr(z, I64(shift))), I64(factor))
        z = b.lshr(b.xor(z, b.lshr(z, I64(LAST_SHIFT))), I64(64 - KEY_BITS))
        return b.fmul(b.sitofp(z, self.writer.scalar), self.writer.scalar(2.0**-KEY_BITS))


class _Assembly(Hamiltonian):
    """A module in the making."""

    layout: ClassVar[Layout] = LAYOUT
    of_lane: ClassVar[type[Lane]] = _Tree

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.turns_back = self._turns_back()
        self.double = self.for_lane("double", self._double)
        self.begin = self.for_lane("begin", self._begin)
        self.end = self.for_lane("end", self._end)
        self.go = self.for_lane("go", self._go)
        self.arrive = self.for_lane("arrive", self._arrive, I1)
        self.write_transitions()

    # --- one lane -----------------------------------------------------------------------------------------------------

    def _begin(self, lane: _Tree) -> None:
        """A transition, from the state that was chosen last, with the next momentum and key."""
        b = lane.b
        drawn = lane.place_drawn()
        lane.copy_numbers(lane.array("momenta", b.mul(drawn, lane.dim)), lane.row("p"))
        b.call(self.velocity, lane.arguments)
        for side in (I64(0), I64(1)):
            lane.copy(
                (lane.row("theta_chosen"), lane.row("thetas", side)),
                (lane.row("grad_chosen"), lane.row("grads", side)),
                (lane.row("p"), lane.row("ps", side)),
                (lane.row("v"), lane.row("vs", side)),
            )
        lane.copy((lane.row("p"), lane.row("rho")))
        start = b.fsub(self.kinetic(lane), lane.get("log_prob_chosen"))
        zero = self.scalar(0.0)
        lane.set(key=b.load(lane.array("keys", drawn, kind=I64)), start=start, energy_chosen=start)
        lane.set(log_weight=zero, sum_of_rates=zero, level=0, steps=0, depth=0, is_diverging=0, is_reached=0)
        b.call(self.double, lane.arguments)

    def _double(self, lane: _Tree) -> None:
        """A doubling begins at the left or the right end."""
        b = lane.b
        first = b.shl(I64(1), lane.get("level"))
        forwards = lane.is_less(lane.uniform(first, DIRECTION), self.scalar(0.5))
        side, size = b.zext(forwards, I64), lane.constant("step_size")
        lane.set(side=side, size=b.select(forwards, size, b.fneg(size)))
        lane.set(place=0, stretches=0, log_weight_added=self.scalar(-math.inf))
        lane.copy(*((lane.row(f"{name}s", side), lane.row(name)) for name in ("theta", "grad", "p")))

    def _go(self, lane: _Tree) -> None:
        """The first half of a leapfrog step, up to where the log likelihood must be known."""
        self.kick(lane, lane.b.fmul(lane.get("size"), self.scalar(0.5)))
        self.drift(lane)

    def _arrive(self, lane: _Tree) -> None:
        """The rest of the step, and what follows from it; whether it was the last one of all transitions."""
        b = lane.b
        log_prob = lane.answer()
        self.kick(lane, b.fmul(lane.get("size"), self.scalar(0.5)))
        b.call(self.velocity, lane.arguments)
        energy = b.fsub(self.kinetic(lane), log_prob)
        log_weight = lane.finite_or_least(b.fsub(lane.get("start"), energy))
        lane.set(steps=b.add(lane.get("steps"), I64(1)))
        lane.set(sum_of_rates=b.fadd(lane.get("sum_of_rates"), lane.probability(log_weight)))
        with b.if_then(lane.is_less(log_weight, lane.constant("least_log_weight"))):
            lane.set(is_diverging=1)
            self._return_ended(lane)
        total = lane.log_sum_exp(lane.get("log_weight_added"), log_weight)
        lane.set(log_weight_added=total)
        place, first = lane.get("place"), b.shl(I64(1), lane.get("level"))
        takes = lane.is_less(lane.uniform(b.add(first, place), STATE), lane.probability(b.fsub(log_weight, total)))
        with b.if_then(takes):
            lane.copy(*((lane.row(name), lane.row(f"{name}_added")) for name in ("theta", "grad")))
            lane.set(log_prob_added=log_prob, energy_added=energy)
        self._add_to_stretches(lane, place)
        with b.if_then(b.icmp_signed("<", b.add(place, I64(1)), first)):
            lane.set(place=b.add(place, I64(1)))
            b.ret(I1(0))
        self._take_over(lane)
        b.call(self.double, lane.arguments)
        b.ret(I1(0))

    def _add_to_stretches(self, lane: _Tree, place: Value) -> None:
        """The state as a stretch of one, joined with those before that are as long; returns where one turns back."""
        b, one, top = lane.b, I64(1), self.variable(lane.b, I64)
        b.store(lane.get("stretches"), top)
        p, v = lane.row("p"), lane.row("v")
        lane.copy(
            *((row, lane.stretch(name, b.load(top))) for row, name in ((p, "rho"), (p, "p_first"), (v, "v_first")))
        )
        joins = b.cttz(b.not_(place), I1(0))
        with self.loop(b, I64(0), joins):
            last, before = b.load(top), b.sub(b.load(top), one)
            with b.if_then(
                b.call(
                    self.turns_back,
                    [
                        lane.size,
                        *(lane.stretch(name, before) for name in ("rho", "v_first", "p_last", "v_last")),
                        *(lane.stretch(name, last) for name in ("rho", "p_first", "v_first")),
                        v,
                    ],
                )
            ):
                self._return_ended(lane)
            self._add_row(lane, lane.stretch("rho", last), lane.stretch("rho", before))
            b.store(before, top)
        lane.copy((p, lane.stretch("p_last", b.load(top))), (v, lane.stretch("v_last", b.load(top))))
        lane.set(stretches=b.add(b.load(top), one))

    def _take_over(self, lane: _Tree) -> None:
        """A doubling that is whole into the trajectory; returns where that ends with it."""
        b, side, level = lane.b, lane.get("side"), lane.get("level")
        far = b.sub(I64(1), side)
        turned = b.call(
            self.turns_back,
            [
                lane.size,
                *(lane.row("rho"), lane.row("vs", far), lane.row("ps", side), lane.row("vs", side)),
                *(lane.stretch(name, I64(0)) for name in ("rho", "p_first", "v_first")),
                lane.row("v"),
            ],
        )
        before, more = lane.get("log_weight"), lane.get("log_weight_added")
        u = lane.uniform(b.shl(I64(1), level), SUBTREE)
        with b.if_then(lane.is_less(u, lane.probability(b.fsub(more, before)))):
            lane.copy(*((lane.row(f"{name}_added"), lane.row(f"{name}_chosen")) for name in ("theta", "grad")))
            for name in ("log_prob", "energy"):
                lane.set(**{f"{name}_chosen": lane.get(f"{name}_added")})
        lane.set(log_weight=lane.log_sum_exp(before, more))
        lane.copy(*((lane.row(name), lane.row(f"{name}s", side)) for name in ("theta", "grad", "p", "v")))
        self._add_row(lane, lane.stretch("rho", I64(0)), lane.row("rho"))
        next_level = b.add(level, I64(1))
        lane.set(depth=b.add(lane.get("depth"), I64(1)), level=next_level)
        with b.if_then(turned):
            self._return_ended(lane)
        with b.if_then(b.icmp_signed("==", next_level, lane.field("max_depth"))):
            lane.set(is_reached=1)
            self._return_ended(lane)

    def _return_ended(self, lane: _Tree) -> None:
        lane.b.ret(self.ended(lane))
        lane.b.position_at_end(lane.b.append_basic_block())  # what follows is never reached

    def _end(self, lane: _Tree) -> None:
        b, energy, steps = lane.b, lane.get("energy_chosen"), lane.get("steps")
        rate = b.fdiv(lane.get("sum_of_rates"), b.sitofp(steps, self.scalar))
        flags = {name: b.trunc(lane.get(f"is_{name}"), I8) for name in ("diverging", "reached")}
        errors = b.fsub(energy, lane.get("start"))
        lane.record(rates=rate, energies=energy, errors=errors, steps=steps, depths=lane.get("depth"), **flags)

    # --- on rows ------------------------------------------------------------------------------------------------------

    def _add_row(self, lane: _Tree, more: Value, to: Value) -> None:
        for (a, b), (_, place) in lane.over(more, to):
            self.store(lane.b, lane.v.add(a, b), place)

    def _turns_back(self) -> ir.Function:
        """Whether one stretch and the next one do: length of rows; rho, v_first, p_last, v_last of the one; and rho,
        p_first, v_first, v_last of the next.
        """
        function = self.function("turns_back", ir.FunctionType(I1, [I64, *8 * [self.pointer]]), internal=True)
        size, *rows = function.args
        b = ir.IRBuilder(function.append_basic_block())
        v = Vectors(b, self.scalar, self.width)
        totals = [self.variable(b, v.type) for _ in range(6)]
        for total in totals:
            b.store(v.constant(0.0), total)
        with self.loop(b, I64(0), size, self.width) as k:
            values = [self.load(b, self.at(b, row, k), v.type) for row in rows]
            rho, v_first, p_last, v_last, next_rho, next_p_first, next_v_first, next_v_last = values
            pieces = (
                (v.add(rho, next_rho), v_first, next_v_last),
                (v.add(rho, next_p_first), v_first, next_v_first),
                (v.add(p_last, next_rho), v_last, next_v_last),
            )
            products = [(one, velocity) for one, *velocities in pieces for velocity in velocities]
            for total, (one, velocity) in zip(totals, products, strict=True):
                b.store(v.fma(one, velocity, b.load(total)), total)
        turns = I1(0)
        for total in totals:
            turns = b.or_(turns, b.fcmp_ordered("<=", v.sum(b.load(total)), self.scalar(0.0)))
        b.ret(turns)
        return function
