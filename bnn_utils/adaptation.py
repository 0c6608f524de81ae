"""What a warm-up learns from its transitions: step size, mass and trajectory length, pooled over all lanes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.hmc import (
    ADAPTED_JITTER,
    HMC,
    Grad,
    HMCInfo,
    HMCState,
    LogProbAndGrad,
    Proposal,
    accept,
    acceptance_rate,
    as_inv_mass,
    metric,
    propose,
)

# Mean acceptance rate of trajectories of fixed length: the default of Stan, within the range that Betancourt, Byrne and
# Girolami (2014) found best.
TARGET_ACCEPTANCE = 0.8
# Of single leapfrog steps, which are proposals of the Langevin algorithm (Roberts and Rosenthal 1998).
LANGEVIN_TARGET_ACCEPTANCE = 0.574


class DualAveraging(NamedTuple):
    r"""Step sizes on their way to a wanted acceptance rate (Hoffman and Gelman 2014, section 3.2).

    With x = log step_size and the error H = wanted - seen acceptance rate, after t transitions

        H-bar <- (1 - 1 / (t + t0)) H-bar + H / (t + t0);  x = mu - sqrt(t) / gamma H-bar
        x-bar <- t^-kappa x + (1 - t^-kappa) x-bar

    Any number of step sizes at once, each with a rate of its own.
    """

    mu: Tensor  # (...), what x shrinks towards
    error: Tensor  # (...), H-bar
    x: Tensor  # (...)
    average: Tensor  # (...), x-bar
    count: int

    @classmethod
    def start(cls, step_size: Tensor) -> DualAveraging:
        """From step sizes ``(...)``; steps ten times as large are tried first, because small ones cost more."""
        x = step_size.log()
        return cls(x + math.log(10), torch.zeros_like(x), x, x, 0)

    def update(self, error: Tensor) -> DualAveraging:
        """After one more transition, whose acceptance rate was ``error`` below the wanted one."""
        gamma, t0, kappa = 0.05, 10, 0.75
        t = self.count + 1
        mean_error = self.error + (error - self.error) / (t + t0)
        x = self.mu - math.sqrt(t) / gamma * mean_error
        return DualAveraging(self.mu, mean_error, x, torch.lerp(self.average, x, t**-kappa), t)

    @property
    def step_size(self) -> Tensor:
        """With which to make the next transition."""
        return self.x.exp()

    @property
    def final(self) -> Tensor:
        """With which to go on when the adaptation ends."""
        return self.average.exp()


class Moments(NamedTuple):
    """Running mean and sum of squared deviations, batch by batch (Welford 1962; Chan, Golub and LeVeque 1979)."""

    count: int
    mean: Tensor  # (D,)
    squares: Tensor  # (D,)

    @classmethod
    def start(cls, like: Tensor) -> Moments:
        zeros = _precise(like).new_zeros(like.shape[-1:])
        return cls(0, zeros, zeros)

    def update(self, theta: Tensor) -> Moments:
        """With the positions of all lanes, ``(C, D)``."""
        theta = _precise(theta)
        count, mean = self.count + len(theta), theta.mean(0)
        shift = mean - self.mean
        squares = self.squares + (theta - mean).square().sum(0) + shift.square() * (self.count * len(theta) / count)
        return Moments(count, self.mean + shift * (len(theta) / count), squares)

    @property
    def variance(self) -> Tensor:
        """Sample variance, drawn a little towards 0.001, as in Stan: few draws may all agree."""
        shrink = 5 / (self.count + 5)
        return (1 - shrink) * self.squares / max(self.count - 1, 1) + shrink * 1e-3


def _precise(theta: Tensor) -> Tensor:
    """In float64, on the device of theta, or on the CPU for one that has no such numbers: Apple's GPUs."""
    return (theta.cpu() if theta.device.type == "mps" else theta).double()


def windows(num_warmup: int) -> tuple[int, list[int]]:
    """Stan's schedule: after how many transitions positions begin to count, and at which ends of windows mass is set.

    First the step size alone, while chains still travel; then windows, each twice as long as the one before, that
    end with the mass set to the variances seen in them; last the step size alone. A warm-up of less than 20
    transitions adapts the step size only (Stan reference manual 2.20, section 15.2).
    """
    if num_warmup < 20:
        return num_warmup, []
    first, window, last = 75, 25, 50
    if first + window + last > num_warmup:
        first, last = int(0.15 * num_warmup), int(0.1 * num_warmup)
        window = num_warmup - first - last
    ends, end = [], first
    while end < num_warmup - last:
        # A window that would leave too little for the next, twice as long, takes all that is left.
        end = end + window if end + 3 * window <= num_warmup - last else num_warmup - last
        ends.append(end)
        window *= 2
    return first, ends


class Warmup:
    """A kernel that learns, transition by transition, its step size and the diagonal of its mass.

    All lanes share one of each, and all teach them. A mass that the kernel came with is kept. HMC's step sizes are
    jittered from the first transition on, so that its trajectories are not tuned to come full circle; a single step,
    which cannot, is not.

    Attributes:
        kernel: with which to make the next transition; after the last update, the one to draw with.
    """

    def __init__(self, kernel: HMC | ChEES, num_warmup: int) -> None:
        self._target = TARGET_ACCEPTANCE
        if num_warmup and isinstance(kernel, HMC):
            is_single = kernel.num_steps == 1
            self._target = LANGEVIN_TARGET_ACCEPTANCE if is_single else TARGET_ACCEPTANCE
            if kernel.jitter is None and not is_single:
                kernel = replace(kernel, jitter=ADAPTED_JITTER)
        self.kernel = kernel
        self._num = num_warmup
        self._first, self._ends = windows(num_warmup) if kernel.inv_mass is None else (num_warmup, [])
        self._count = 0
        self._steps = DualAveraging.start(torch.tensor(kernel.step_size, dtype=torch.float64))
        self._moments: Moments | None = None

    def update(self, theta: Tensor, rate: Tensor) -> None:
        """With the positions reached, ``(C, D)``, and the acceptance rate of all lanes together."""
        self._count += 1
        self._steps = self._steps.update(self._target - rate.detach().cpu().double())
        if self._count > self._first and self._ends:
            self._moments = (self._moments or Moments.start(theta)).update(theta)
        if self._ends and self._count == self._ends[0]:
            self._ends.pop(0)
            self.kernel = replace(
                self.kernel, step_size=self._steps.final.item(), inv_mass=self._moments.variance.to(theta)
            )
            self._moments = None
            self._steps = DualAveraging.start(self._steps.final)
        elif self._count == self._num:
            self.kernel = replace(self.kernel, step_size=self._steps.final.item())
        else:
            self.kernel = replace(self.kernel, step_size=self._steps.step_size.item())


# Harmonic mean of the lanes' acceptance rates, as in Hoffman, Radul and Sountsov (2021); the rate that Beskos et al.
# (2013) show to be best in high dimensions.
CHEES_TARGET_ACCEPTANCE = 0.651
CHEES_LEARNING_RATE = 0.025  # of Adam, on the log of the trajectory length; this and 0.95 as in the paper
CHEES_ADAM_DECAY = 0.95
CHEES_SHORTEST_LENGTH = math.pi / 2  # when the mass is set: a quarter of the period of a direction of variance 1
MAX_STEPS = 1000  # in one transition: a trajectory that wants more is cut


class ChEESState(NamedTuple):
    """Where each lane is, and how many transitions it took to get there."""

    lanes: HMCState
    count: int


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
        inv_mass: inverse mass, as in `HMC`; None for the identity, which a warm-up replaces.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if a step size or length is not positive, or ``inv_mass`` is not positive definite.
    """

    step_size: float = 0.05
    trajectory_length: float = 0.5
    inv_mass: Tensor | None = None

    lanes_per_chain: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check.settle(
            self,
            step_size=_check.positive("step_size", self.step_size),
            trajectory_length=_check.positive("trajectory_length", self.trajectory_length),
            inv_mass=as_inv_mass(self.inv_mass),
        )

    @property
    def num_steps(self) -> int:
        """Leapfrog steps in a transition, on average."""
        return max(1, round(self.trajectory_length / self.step_size / 2))

    def steps(self, count: int) -> int:
        """Leapfrog steps in the transition after ``count`` others."""
        return min(MAX_STEPS, math.ceil(halton(count + 1) * self.trajectory_length / self.step_size))

    def init(self, log_prob_and_grad: LogProbAndGrad, theta: Tensor) -> ChEESState:
        """The state of lanes at theta, shape ``(C, D)``."""
        return ChEESState(HMCState(theta, *log_prob_and_grad(theta)), 0)

    def build_kernel(
        self, log_prob_and_grad: LogProbAndGrad, grad: Grad | None = None
    ) -> Callable[[torch.Generator, ChEESState], tuple[ChEESState, HMCInfo, Proposal]]:
        """One transition, as `HMC.build_kernel`; it also returns the proposal, from which a warm-up learns."""
        kinetic = metric(self.inv_mass)

        def transition(generator: torch.Generator, state: ChEESState) -> tuple[ChEESState, HMCInfo, Proposal]:
            lanes, count = state
            steps = self.steps(count)
            proposal = propose(generator, lanes, log_prob_and_grad, self.step_size, steps, kinetic, grad)
            lanes, is_accept = accept(generator, lanes, proposal)
            info = HMCInfo(proposal.start_energy, proposal.end_energy, is_accept, steps, float(self.step_size))
            return ChEESState(lanes, count + 1), info, proposal

        return transition

    def __repr__(self) -> str:
        mass = "" if self.inv_mass is None else f", inv_mass={'diagonal' if self.inv_mass.ndim == 1 else 'dense'}"
        return f"ChEES(step_size={self.step_size:.3g}, trajectory_length={self.trajectory_length:.3g}{mass})"


class ChEESWarmup(Warmup):
    r"""Learns the trajectory length too, by stochastic gradient ascent on the criterion.

    With m the mean over lanes, u the jitter, and starred what the proposal holds, in coordinates in which the mass is
    the identity,

        ChEES = 1/4 E[(|theta* - m*|^2 - |theta - m|^2)^2]
        d ChEES / d log T = E[u T (|theta* - m*|^2 - |theta - m|^2) (theta* - m*) . p*]

    where lanes count by their acceptance rates (Hoffman, Radul and Sountsov 2021, equations 2 to 4).
    """

    def __init__(self, kernel: ChEES, num_warmup: int) -> None:
        super().__init__(kernel, num_warmup)
        self._target = CHEES_TARGET_ACCEPTANCE
        self._square = 0.0  # running mean of squared gradients, for Adam
        self._log_length = self._average = math.log(kernel.trajectory_length)

    def update(self, start: ChEESState, proposal: Proposal, end: ChEESState) -> None:
        rate = acceptance_rate(proposal.start_energy, proposal.end_energy)
        jitter = halton(start.count + 1)
        gradient = jitter * math.exp(self._log_length) * self._gradient(start.lanes.theta, proposal, rate).item()
        if math.isfinite(gradient):
            t = self._count + 1
            self._square += (1 - CHEES_ADAM_DECAY) * (gradient**2 - self._square)
            size = math.sqrt(self._square / (1 - CHEES_ADAM_DECAY**t)) + 1e-8
            log_length = self._log_length + CHEES_LEARNING_RATE * gradient / size
            # The ascent ends at one step and at the most that are made, because beyond them the length changes nothing.
            # It is not pushed there: a step size on trial may be far too long or too short, and the length would stay.
            shortest, longest = (math.log(number * self.kernel.step_size) for number in (1, MAX_STEPS))
            self._log_length = min(max(log_length, min(self._log_length, shortest)), max(self._log_length, longest))
            self._average += (self._log_length - self._average) / math.sqrt(t)
        mass = self.kernel.inv_mass
        super().update(end.lanes.theta, 1 / (1 / rate).mean())
        if self.kernel.inv_mass is not mass:
            # The widest direction, which decides on the length, has a standard deviation of 1 from now on.
            variances = self.kernel.inv_mass if mass is None else self.kernel.inv_mass / mass
            length = math.exp(self._log_length) / variances.max().sqrt().item()
            self._log_length = self._average = math.log(max(length, CHEES_SHORTEST_LENGTH))
        log_length = self._average if self._count == self._num else self._log_length
        self.kernel = replace(self.kernel, trajectory_length=math.exp(log_length))

    def _gradient(self, start: Tensor, proposal: Proposal, rate: Tensor) -> Tensor:
        """d ChEES / d log T without the factor u T: a scalar, NaN where no lane may accept."""
        mass = metric(self.kernel.inv_mass).mass
        # A proposal may be infinitely far away; it has a rate of 0 and counts for nothing.
        weight, end = rate / rate.sum(), proposal.state.theta.nan_to_num(0, 0, 0)
        before, after = start - start.mean(0), end - weight @ end
        change = (after * mass(after)).sum(-1) - (before * mass(before)).sum(-1)
        outwards = (after * proposal.p.nan_to_num(0, 0, 0)).sum(-1)  # the same in all coordinates
        return weight @ (change * outwards)


def halton(number: int) -> float:
    """The number's binary digits mirrored at the point, in (0, 1): 1/2, 1/4, 3/4, 1/8, ... (Halton 1960, base 2)."""
    return int(f"{number:b}"[::-1], 2) / 2 ** number.bit_length()
