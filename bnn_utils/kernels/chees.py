r"""HMC whose trajectories have a learned length: ChEES-HMC (Hoffman, Radul and Sountsov 2021).

The criterion (change in the estimator of the expected square), with m the mean over lanes, u the jitter, and starred
what the proposal holds, in coordinates in which the mass is the identity:

    ChEES = 1/4 E[(|theta* - m*|^2 - |theta - m|^2)^2]
    d ChEES / d log T = E[u T (|theta* - m*|^2 - |theta - m|^2) (theta* - m*) . p*]

where lanes count by their acceptance rates (equations 2 to 4). A warm-up climbs it by Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import NotImplementedType
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.adaptation import Teachers, Warmup
from bnn_utils.kernels.base import Info, acceptance_rate
from bnn_utils.kernels.hmc import (
    MAX_STEPS,
    Metric,
    Position,
    Proposal,
    accept,
    as_inv_mass,
    check_one_mass,
    check_step_size,
    in_native_code,
    mass_of,
    metric,
    propose,
    recorded,
    told_mass,
)

if TYPE_CHECKING:
    from bnn_utils.density import Density
    from bnn_utils.gradients.caller import Caller
    from bnn_utils.gradients.native import Native
    from bnn_utils.kernels.microcanonical import MAMSState

# Harmonic mean of the lanes' acceptance rates, as in Hoffman, Radul and Sountsov (2021); the rate that Beskos et al.
# (2013) show to be best in high dimensions.
CHEES_TARGET_ACCEPTANCE = 0.651
CHEES_LEARNING_RATE = 0.025  # of Adam, on the log of the trajectory length; this and 0.95 as in the paper
CHEES_ADAM_DECAY = 0.95
CHEES_SHORTEST_LENGTH = math.pi / 2  # when the mass is set: a quarter of the period of a direction of variance 1

S = TypeVar("S", "ChEESState", "MAMSState")


class LengthWarmup(NamedTuple):
    """What is learned of a trajectory length, beside what HMC learns."""

    hmc: Warmup
    square: float  # running mean of squared gradients, for Adam
    log_length: float
    average: float  # of the log of the length

    def update(self, state: ChEESState | MAMSState, proposal: Proposal, step_size: float) -> LengthWarmup:
        """After one more transition, from ``state``, with steps of ``step_size``."""
        rate = acceptance_rate(proposal.start_energy, proposal.end_energy)
        slope = _slope(state.position.theta, proposal, rate, state.metric, self.hmc.teachers).item()
        gradient = halton(state.count + 1) * math.exp(self.log_length) * slope
        if not math.isfinite(gradient):
            return self
        t = self.hmc.count + 1
        square = self.square + (1 - CHEES_ADAM_DECAY) * (gradient**2 - self.square)
        size = math.sqrt(square / (1 - CHEES_ADAM_DECAY**t)) + 1e-8
        log_length = self.log_length + CHEES_LEARNING_RATE * gradient / size
        # The ascent ends at one step and at the most that are made, because beyond them the length changes nothing. It
        # is not pushed there: a step size on trial may be far too long or too short, and the length would stay.
        shortest, longest = (math.log(number * step_size) for number in (1, MAX_STEPS))
        log_length = min(max(log_length, min(self.log_length, shortest)), max(self.log_length, longest))
        average = self.average + (log_length - self.average) / math.sqrt(t)
        return self._replace(square=square, log_length=log_length, average=average)

    def rescaled(self, metric: Metric, before: Metric, shortest: float) -> LengthWarmup:
        """For a mass that follows another."""
        assert metric.inv_mass is not None  # it was learned
        # The widest direction, which decides on the length, has a standard deviation of 1 from now on.
        length = math.exp(self.log_length) / math.sqrt(widest(metric.inv_mass, before))
        log_length = math.log(max(length, shortest))
        return self._replace(log_length=log_length, average=log_length)


class ChEESState(NamedTuple):
    """Where the lanes are, how many transitions it took, with what they move, and what has been learned so far."""

    position: Position
    count: int  # type: ignore[assignment]
    step_size: float
    trajectory_length: float
    metric: Metric
    warmup: LengthWarmup | None  # None where nothing adapts, and when it has ended


@dataclass(frozen=True, eq=False)
class ChEES:
    """HMC whose trajectories have a learned length (Hoffman, Radul and Sountsov 2021), the same for all lanes.

    A transition takes ``ceil(u * trajectory_length / step_size)`` leapfrog steps, where u follows Halton's sequence in
    base 2: evenly spread over (0, 1), so that no period of the trajectories is ever met for long. A warm-up learns the
    length that changes the squared distance from the mean most (ChEES: change in the estimator of the expected square),
    besides step size and mass. That takes several lanes, better many.

    Args:
        step_size: leapfrog step; where a warm-up begins.
        trajectory_length: longest integration time; where a warm-up begins.
        inv_mass, dense_mass: as in `HMC`.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if a step size or length is not positive, or ``inv_mass`` is not positive definite, or given
            although a dense one is to be learned.
    """

    step_size: float = 0.05
    trajectory_length: float = 0.5
    inv_mass: Tensor | None = None
    dense_mass: bool = False

    lanes_per_chain: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check.settle(
            self,
            step_size=_check.positive("step_size", self.step_size),
            trajectory_length=_check.positive("trajectory_length", self.trajectory_length),
            inv_mass=as_inv_mass(self.inv_mass),
            dense_mass=_check.flag("dense_mass", self.dense_mass),
        )
        check_one_mass(self.inv_mass, self.dense_mass)

    @property
    def num_steps(self) -> int:
        """Leapfrog steps in a transition, on average."""
        return max(1, round(self.trajectory_length / self.step_size / 2))

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> ChEESState:
        """The state of lanes at theta, shape ``(C, D)``.

        Raises:
            ValueError: if the mass is of another number of parameters.
        """
        check_step_size(self.step_size, theta)
        log_length, learns_mass = math.log(self.trajectory_length), self.inv_mass is None
        hmc = Warmup.start(num_warmup, theta, self.step_size, CHEES_TARGET_ACCEPTANCE, learns_mass, self.dense_mass)
        warmup = None if hmc is None else LengthWarmup(hmc, 0.0, log_length, log_length)
        position = Position(theta, *density.joint.log_prob_and_grad(theta))
        return ChEESState(position, 0, self.step_size, self.trajectory_length, metric(self.inv_mass, theta), warmup)

    def step(self, density: Density, generator: torch.Generator, state: ChEESState) -> tuple[ChEESState, Info]:
        """One transition of all lanes; it draws a normal ``(C, D)`` and a uniform ``(C,)``."""
        native = density.joint.hmc
        if native is not None and state.warmup is None:
            state, made = self._in_native_code(native, generator, state, 1)
            return state, made.only()
        steps = num_steps(state.count, state.trajectory_length, state.step_size)
        proposal = propose(generator, state.position, density.joint, state.step_size, steps, state.metric)
        position, is_accept = accept(generator, state.position, proposal)
        info = recorded(position, proposal, is_accept, steps, state.step_size)
        after = state if state.warmup is None else learn(state, proposal, position)
        return after._replace(position=position, count=state.count + 1), info

    def steps(
        self, density: Density, generator: torch.Generator, state: ChEESState, num: int
    ) -> tuple[ChEESState, Info] | NotImplementedType:
        """Many transitions at once, where there is native code for them: a warm-up looks at each before the next."""
        has_own_step = type(self).step is not ChEES.step  # a subclass may have one
        if density.joint.hmc is None or state.warmup is not None or has_own_step:
            return NotImplemented
        state, made = self._in_native_code(density.joint.hmc, generator, state, num)
        return state, Info.of_many(*made)

    def _in_native_code(
        self, native: Native | Caller, generator: torch.Generator, state: ChEESState, num: int
    ) -> tuple[ChEESState, Info]:
        counts = range(state.count, state.count + num)
        steps = torch.tensor([num_steps(count, state.trajectory_length, state.step_size) for count in counts])
        position, made = in_native_code(native, generator, state.position, state.step_size, 0.0, steps, state.metric)
        return state._replace(position=position, count=state.count + num), made

    def moved(self, state: ChEESState, move: Callable[[Tensor], Tensor]) -> ChEESState:
        """The state where a symmetry of the density brings it."""
        return state._replace(position=state.position.moved(move))

    def adapted(self, state: ChEESState) -> ChEES:
        """The kernel with the step size, the length and the mass of a state."""
        length = state.trajectory_length
        return replace(self, step_size=state.step_size, trajectory_length=length, **mass_of(self, state))

    def __repr__(self) -> str:
        mass = told_mass(self)
        return f"ChEES(step_size={self.step_size:.3g}, trajectory_length={self.trajectory_length:.3g}{mass})"


def num_steps(count: int, trajectory_length: float, step_size: float) -> int:
    """Leapfrog steps in the transition after ``count`` others."""
    return math.ceil(min(MAX_STEPS, halton(count + 1) * trajectory_length / step_size))


def halton(number: int) -> float:
    """The number's binary digits mirrored at the point, in (0, 1): 1/2, 1/4, 3/4, 1/8, ... (Halton 1960, base 2)."""
    return int(f"{number:b}"[::-1], 2) / 2 ** number.bit_length()


def learn(
    state: S, proposal: Proposal, position: Position, shortest: float = CHEES_SHORTEST_LENGTH, harmonic: bool = True
) -> S:
    """The state with what a transition from it to a position has taught.

    Args:
        shortest: length of trajectories when the mass is set.
        harmonic: whether the acceptance rate to reach is the harmonic mean over lanes.
    """
    assert state.warmup is not None  # or nothing is learned
    warmup = state.warmup.update(state, proposal, state.step_size)
    rate = acceptance_rate(proposal.start_energy, proposal.end_energy)
    hmc, step_size, inv_mass = state.warmup.hmc.update(position.theta, rate, harmonic)
    if inv_mass is not None:
        after = metric(inv_mass, position.theta)
        warmup, state = warmup.rescaled(after, state.metric, shortest), state._replace(metric=after)
    return state._replace(
        step_size=step_size,
        trajectory_length=math.exp(warmup.average if hmc is None else warmup.log_length),
        warmup=None if hmc is None else warmup._replace(hmc=hmc),
    )


def widest(variance: Tensor, metric: Metric) -> float:
    """The largest variance, of these ``(D,)`` or of a covariance ``(D, D)``, in coordinates of another mass."""
    if variance.ndim == 1:
        return (variance if metric.inv_mass is None else variance / metric.inv_mass).max().item()
    if metric.factor is not None:
        variance = metric.factor.mT @ variance @ metric.factor
    return torch.linalg.eigvalsh(variance)[-1].item()


def _slope(start: Tensor, proposal: Proposal, rate: Tensor, metric: Metric, teachers: Teachers) -> Tensor:
    """d ChEES / d log T without the factor u T: a scalar, NaN where no lane may accept."""
    # A proposal may be infinitely far away; it has a rate of 0 and counts for nothing.
    weight, end = rate / rate.sum(), proposal.position.theta.nan_to_num(0, 0, 0)
    before, after = start - start[teachers.teach.to(start.device)].mean(0), end - weight @ end
    change = (after * metric.mass(after)).sum(-1) - (before * metric.mass(before)).sum(-1)
    outwards = (after * proposal.p.nan_to_num(0, 0, 0)).sum(-1)  # the same in all coordinates
    return weight @ (change * outwards)
