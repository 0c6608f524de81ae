r"""HMC whose trajectories end where they turn back: NUTS (Hoffman and Gelman 2014; Betancourt 2017), as in Stan.

A transition grows a trajectory from theta and a fresh momentum ``p ~ Normal(0, M)``. Time and again it doubles: as many
leapfrog steps as it has states are added, forwards or backwards by the toss of a coin, until the trajectory turns back,
a step diverges, or it has doubled often enough. Of its states one is drawn, with probability proportional to exp(-H).

A stretch of a trajectory, with states 1 to n, whose momenta have the sum rho, turns back where

    rho . M^-1 p_1 <= 0   or   rho . M^-1 p_n <= 0                              (Betancourt 2017, appendix A.4.2)

This is asked of every stretch that doublings are made of: the halves of a doubling, their halves, and so on, all of
which have to go on; otherwise a trajectory could grow from one of its states and not from another. Besides it is asked
of each half together with the next state of the other one, as in Stan since version 2.21: a half that comes full circle
has momenta that add up to about nothing, which tells nothing of where it is going.

The state is drawn while the trajectory grows (appendix A.3.2). Within a doubling, the next state takes the place of the
one chosen so far with probability w / (sum of w so far), where w = exp(H at the start - H). The one that a doubling has
chosen then takes the place of the one before with probability min(1, weight of the doubling / weight before it), which
prefers states far from the start.

Each lane decides by numbers that follow from a key of its own: the doubling that adds 2^k states by those from 3 2^k to
3 2^(k + 1) - 1, three for each state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import NotImplementedType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.adaptation import Warmup
from bnn_utils.gradients.caller import DIRECTION, STATE, SUBTREE
from bnn_utils.kernels.base import MAX_ENERGY_ERROR, Info
from bnn_utils.kernels.hmc import (
    TARGET_ACCEPTANCE,
    Metric,
    Position,
    as_inv_mass,
    check_one_mass,
    check_step_size,
    energy_of,
    leapfrog,
    mass_of,
    metric,
    of_each_lane,
    told_mass,
)
from bnn_utils.random import lane_keys, lane_uniform

if TYPE_CHECKING:
    from bnn_utils.density import Density, LogDensity
    from bnn_utils.gradients.caller import Caller

MAX_TREE_DEPTH = 10  # at most 1,023 leapfrog steps, as in Stan
LARGEST_DEPTH = 20  # that can be asked for: a million steps


# --- trajectories -----------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """A state of a trajectory."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    grad: Tensor  # (C, D)
    p: Tensor  # (C, D)


class Choice(NamedTuple):
    """The state that was drawn so far, of all whose weights have this sum."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    grad: Tensor  # (C, D)
    energy: Tensor  # (C,)
    log_weight: Tensor  # (C,), log of the sum


class Stretch(NamedTuple):
    """What must be known of neighbouring states to tell whether they turn back, each ``(C, D)``.

    First and last are in the order in which the states came up, which may be against time: that changes nothing.
    """

    rho: Tensor  # sum of momenta
    p_first: Tensor
    v_first: Tensor  # velocity, M^-1 p
    p_last: Tensor
    v_last: Tensor

    @classmethod
    def of_one(cls, p: Tensor, velocity: Tensor) -> Stretch:
        return cls(p, p, velocity, p, velocity)

    def and_then(self, other: Stretch) -> Stretch:
        """Both as one."""
        return Stretch(self.rho + other.rho, self.p_first, self.v_first, other.p_last, other.v_last)

    def reversed(self) -> Stretch:
        return Stretch(self.rho, self.p_last, self.v_last, self.p_first, self.v_first)


def turns_back(one: Stretch, next_one: Stretch) -> Tensor:
    """Whether two neighbouring stretches do as one, or either with the next state of the other, ``(C,)``."""
    return (
        _turns(one.rho + next_one.rho, one.v_first, next_one.v_last)
        | _turns(one.rho + next_one.p_first, one.v_first, next_one.v_first)
        | _turns(one.p_last + next_one.rho, one.v_last, next_one.v_last)
    )


def _turns(rho: Tensor, v_first: Tensor, v_last: Tensor) -> Tensor:
    return ((rho * v_first).sum(-1) <= 0) | ((rho * v_last).sum(-1) <= 0)


class Trajectory(NamedTuple):
    """What has grown so far."""

    left: Phase  # its two ends
    right: Phase
    stretch: Stretch  # from left to right
    choice: Choice


class Doubling(NamedTuple):
    """What is added to a trajectory."""

    end: Phase
    stretch: Stretch
    choice: Choice
    is_whole: Tensor  # (C,): no stretch of it turned back, no step diverged
    diverging: Tensor  # (C,)
    num_steps: Tensor  # (C,), int64, that were made
    sum_of_rates: Tensor  # (C,), of min(1, exp(H at the start - H)) after each


def transition(state: NUTSState, p: Tensor, key: Tensor, density: LogDensity, max_depth: int) -> tuple[Info, Position]:
    """What is recorded of a trajectory that begins with momentum p, ``(C, D)``, and where it leads."""
    position, step_size, metric = state[:3]
    start = energy_of(position, p, metric.velocity)
    first, no = Phase(*position, p), torch.zeros_like(key, dtype=torch.bool)
    grown = Trajectory(first, first, Stretch.of_one(p, metric.velocity(p)), Choice(*position, start, 0 * start))
    depth, num_steps, sum_of_rates, diverging, grows = 0 * key, 0 * key, 0 * start, no, ~no
    for level in range(max_depth):
        if not grows.any():
            break
        forwards = lane_uniform(key, 3 * 2**level + DIRECTION) < 0.5
        size = step_size * (2 * forwards.to(p) - 1).unsqueeze(-1)
        edge = of_each_lane(forwards, grown.right, grown.left)
        added = doubled(edge, size, start, grows, key, level, density, metric)
        num_steps, sum_of_rates = num_steps + added.num_steps, sum_of_rates + added.sum_of_rates
        diverging, depth = diverging | added.diverging, depth + added.is_whole
        here = of_each_lane(forwards, grown.stretch, grown.stretch.reversed())
        turned = turns_back(here, added.stretch)
        grown = _joined(grown, here, added, forwards, lane_uniform(key, 3 * 2**level + SUBTREE))
        grows = added.is_whole & ~turned
    stats = {
        "acceptance_rate": sum_of_rates / num_steps,
        "n_steps": num_steps,
        "tree_depth": depth,
        "reached_max_treedepth": grows,
        "step_size": step_size,
        "energy": grown.choice.energy,
        "energy_error": grown.choice.energy - start,
        "diverging": diverging,
    }
    end = Position(*grown.choice[:3])
    return Info(end.theta, end.log_prob, stats), end


def doubled(
    edge: Phase,
    size: Tensor,
    start: Tensor,
    grows: Tensor,
    key: Tensor,
    level: int,
    density: LogDensity,
    metric: Metric,
) -> Doubling:
    """The next 2^level states beyond an edge.

    Args:
        edge: of the trajectory so far.
        size: of the leapfrog steps, ``(C, 1)``, negative to go backwards.
        start: energy at the start of the trajectory, ``(C,)``.
        grows: for which lanes, ``(C,)``; what becomes of the others means nothing.
        key: of each lane, ``(C,)``.
    """
    choice = Choice(edge.theta, edge.log_prob, edge.grad, start, torch.full_like(start, -torch.inf))
    diverging, num_steps, sum_of_rates = torch.zeros_like(grows), 0 * key, 0 * start
    stretches: list[Stretch] = []  # of 2^k states, for some k from many to few, as the digits of a binary number
    for i in range(2**level):
        if not grows.any():
            break
        position, p = leapfrog(Position(*edge[:3]), edge.p, density.log_prob_and_grad, size, 1, metric.velocity)
        edge, energy = Phase(*position, p), energy_of(position, p, metric.velocity)
        num_steps, log_weight = num_steps + grows, (start - energy).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        sum_of_rates = sum_of_rates + torch.where(grows, log_weight.clamp(max=0).exp(), 0)
        diverges = grows & (log_weight < -MAX_ENERGY_ERROR)
        diverging, grows = diverging | diverges, grows & ~diverges
        total = torch.logaddexp(choice.log_weight, log_weight)
        takes = grows & (lane_uniform(key, 3 * (2**level + i) + STATE) < (log_weight - total).exp())
        choice = of_each_lane(takes, Choice(*position, energy, total), choice)._replace(log_weight=total)
        stretches.append(Stretch.of_one(p, metric.velocity(p)))
        for _ in range(_trailing_ones(i)):
            last = stretches.pop()
            grows = grows & ~turns_back(stretches[-1], last)
            stretches[-1] = stretches[-1].and_then(last)
    return Doubling(edge, stretches[0], choice, grows, diverging, num_steps, sum_of_rates)


def _trailing_ones(i: int) -> int:
    """How many stretches of a binary number's digits end with state i, counted from 0."""
    return (~i & (i + 1)).bit_length() - 1


def _joined(grown: Trajectory, here: Stretch, added: Doubling, forwards: Tensor, u: Tensor) -> Trajectory:
    """The trajectory, whose stretch towards what is added is ``here``, with that where it is whole."""
    before, more, is_whole = grown.choice.log_weight, added.choice.log_weight, added.is_whole
    takes = is_whole & (u < (more - before).clamp(max=0).exp())
    total = torch.where(is_whole, torch.logaddexp(before, more), before)
    both = here.and_then(added.stretch)
    return Trajectory(
        of_each_lane(is_whole & ~forwards, added.end, grown.left),
        of_each_lane(is_whole & forwards, added.end, grown.right),
        of_each_lane(is_whole, of_each_lane(forwards, both, both.reversed()), grown.stretch),
        of_each_lane(takes, added.choice, grown.choice)._replace(log_weight=total),
    )


# --- the kernel -------------------------------------------------------------------------------------------------------


class NUTSState(NamedTuple):
    """Where the lanes are, with what they move, and what a warm-up has learned so far."""

    position: Position
    step_size: float
    metric: Metric
    warmup: Warmup | None  # None where nothing adapts, and when it has ended


@dataclass(frozen=True, eq=False)
class NUTS:
    """HMC whose trajectories end where they turn back (Hoffman and Gelman 2014; Betancourt 2017), as in Stan.

    There is no number of steps to choose: each trajectory grows for as long as it leads away. A warm-up learns step
    size and mass, in Stan's windows. Lanes end their trajectories each on its own.

    A transition draws, from the generator, a uniform ``(C,)``, a normal ``(C, D)`` for the momenta, and a uniform
    ``(C,)``; all that a lane decides follows from its two uniform numbers.

    Statistics beside those of HMC: ``tree_depth``, how often the trajectory has doubled; ``reached_max_treedepth``,
    whether it would have grown further; ``n_steps``, leapfrog steps, of the last attempt at a doubling, too. The
    ``acceptance_rate`` is the mean over these of min(1, exp(H at the start - H)). There is no ``is_accept``.

    Args:
        step_size: leapfrog step, in units of theta where the mass is the identity; where a warm-up begins.
        max_tree_depth: most doublings of a trajectory, which then has 2^max_tree_depth states.
        inv_mass, dense_mass: as in `HMC`.
        target_acceptance: the acceptance rate that a warm-up aims at; higher ones take smaller steps, which diverge
            less.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if a step size is not positive, a depth not from 1 to 20, the target not between 0 and 1, or
            ``inv_mass`` not positive definite, or given although a dense one is to be learned.
    """

    step_size: float = 0.1
    max_tree_depth: int = MAX_TREE_DEPTH
    inv_mass: Tensor | None = None
    dense_mass: bool = False
    target_acceptance: float = TARGET_ACCEPTANCE

    lanes_per_chain: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check.settle(
            self,
            step_size=_check.positive("step_size", self.step_size),
            max_tree_depth=_check.whole("max_tree_depth", self.max_tree_depth, 1),
            target_acceptance=_check.number("target_acceptance", self.target_acceptance, "a probability"),
            inv_mass=as_inv_mass(self.inv_mass),
            dense_mass=_check.flag("dense_mass", self.dense_mass),
        )
        check_one_mass(self.inv_mass, self.dense_mass)
        if self.max_tree_depth > LARGEST_DEPTH:
            raise ValueError(
                f"max_tree_depth is {self.max_tree_depth}, and a trajectory of so many doublings would take "
                f"{2.0**self.max_tree_depth:.2g} steps; take {LARGEST_DEPTH} or less, such as {MAX_TREE_DEPTH}"
            )
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance must be between 0 and 1, got {self.target_acceptance:g}; 0.8 is usual, and 0.95 or "
                "0.99 where trajectories diverge"
            )

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> NUTSState:
        """The state of lanes at theta, shape ``(C, D)``.

        Raises:
            ValueError: if the mass is of another number of parameters.
        """
        check_step_size(self.step_size, theta)
        learns_mass = self.inv_mass is None
        target = self.target_acceptance
        warmup = Warmup.start(num_warmup, theta, self.step_size, target, learns_mass, self.dense_mass)
        position = Position(theta, *density.joint.log_prob_and_grad(theta))
        return NUTSState(position, self.step_size, metric(self.inv_mass, theta), warmup)

    def step(self, density: Density, generator: torch.Generator, state: NUTSState) -> tuple[NUTSState, Info]:
        """One transition of all lanes."""
        if density.joint.caller is not None:
            state, made = self._in_native_code(density.joint.caller, generator, state, 1)
            info = made.only()
        else:
            theta = state.position.theta
            of_each: dict[str, Any] = {"generator": generator, "dtype": theta.dtype, "device": theta.device}
            first, noise = torch.rand(len(theta), **of_each), torch.randn(theta.shape, **of_each)
            key, p = lane_keys(first, torch.rand(len(theta), **of_each)), state.metric.momentum(noise)
            info, position = transition(state, p, key, density.joint, self.max_tree_depth)
            state = state._replace(position=position)
        if state.warmup is not None:
            warmup, step_size, inv_mass = state.warmup.update(info.theta, info.stats["acceptance_rate"])
            state = state._replace(step_size=step_size, warmup=warmup)
            if inv_mass is not None:
                state = state._replace(metric=metric(inv_mass, info.theta))
        return state, info

    def steps(
        self, density: Density, generator: torch.Generator, state: NUTSState, num: int
    ) -> tuple[NUTSState, Info] | NotImplementedType:
        """Many transitions at once, where there is native code for them: a warm-up looks at each before the next."""
        has_own_step = type(self).step is not NUTS.step  # a subclass may have one
        if density.joint.caller is None or state.warmup is not None or has_own_step:
            return NotImplemented
        state, made = self._in_native_code(density.joint.caller, generator, state, num)
        return state, Info.of_many(*made)

    def _in_native_code(
        self, caller: Caller, generator: torch.Generator, state: NUTSState, num: int
    ) -> tuple[NUTSState, Info]:
        limits = self.max_tree_depth, MAX_ENERGY_ERROR
        made = caller.grow(generator, state.position, state.step_size, *limits, *state.metric, num)
        stats = {
            "acceptance_rate": made.rates,
            "n_steps": made.steps,
            "tree_depth": made.depths,
            "reached_max_treedepth": made.reached,
            "step_size": state.step_size,
            "energy": made.energies,
            "energy_error": made.errors,
            "diverging": made.diverging,
        }
        position = Position(made.theta, made.log_prob, made.grad)
        return state._replace(position=position), Info(made.thetas, made.log_probs, stats)

    def moved(self, state: NUTSState, move: Callable[[Tensor], Tensor]) -> NUTSState:
        """The state where a symmetry of the density brings it."""
        return state._replace(position=state.position.moved(move))

    def adapted(self, state: NUTSState) -> NUTS:
        """The kernel with the step size and the mass of a state."""
        return replace(self, step_size=state.step_size, **mass_of(self, state))

    def __repr__(self) -> str:
        depth = f", max_tree_depth={self.max_tree_depth}" * (self.max_tree_depth != MAX_TREE_DEPTH)
        target = f", target_acceptance={self.target_acceptance:g}" * (self.target_acceptance != TARGET_ACCEPTANCE)
        return f"NUTS(step_size={self.step_size:.3g}{depth}{target}{told_mass(self)})"
