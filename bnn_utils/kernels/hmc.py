"""Hamiltonian Monte Carlo on a flat parameter vector, many lanes at once: integrator, state, kernel, warm-up."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import NotImplementedType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.adaptation import Warmup
from bnn_utils.kernels.base import Info, acceptance_rate, log_ratio

if TYPE_CHECKING:
    from bnn_utils.density import Density, LogDensity
    from bnn_utils.gradients.caller import Caller
    from bnn_utils.gradients.native import Native
    from bnn_utils.kernels.chees import ChEES, ChEESState
    from bnn_utils.kernels.hamiltorch import Hamiltorch, HamiltorchState
    from bnn_utils.kernels.microcanonical import MAMS, MCLMC
    from bnn_utils.kernels.nuts import NUTS, NUTSState
    from bnn_utils.kernels.replica_exchange import Tempered, TemperedPosition

# By how much step sizes vary, up and down, once a warm-up adapts them. Near a whole period of the trajectories the
# energy error vanishes and proposals return to where they started: acceptance is high there, so adaptation stays there,
# and draws hardly move. Step sizes spread evenly from one half to three halves turn a whole period into anything from
# half a period to one and a half: a whole turn, evenly, so that the end says nothing of the start. And they turn half a
# period, after which distances from the mean repeat, into half a turn, evenly (Mackenzie 1989; Neal 2011, 5.3.2).
ADAPTED_JITTER = 0.5

# Mean acceptance rate of trajectories of fixed length: the default of Stan, within the range that Betancourt, Byrne and
# Girolami (2014) found best.
TARGET_ACCEPTANCE = 0.8
# Of single leapfrog steps, which are proposals of the Langevin algorithm (Roberts and Rosenthal 1998).
LANGEVIN_TARGET_ACCEPTANCE = 0.574

MAX_STEPS = 1000  # in one transition, where their number is learned: a trajectory that wants more is cut
FIRST_STEPS = 10  # where their number is to be learned, until it is
LEAST_TURNS = 8  # trajectories of which the time until they turn back is the median

LARGEST_ROUNDING = 0.01  # of the variance of momenta, relative to what their energy says


# --- mechanics --------------------------------------------------------------------------------------------------------


class Position(NamedTuple):
    """Where each lane is. The gradient is kept so that no transition computes it twice."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    grad: Tensor  # (C, D), gradient of log_prob at theta

    def moved(self, move: Callable[[Tensor], Tensor]) -> Position:
        """Where a symmetry of the density brings it."""
        return self._replace(theta=move(self.theta), grad=move(self.grad))


P = TypeVar("P", Position, "TemperedPosition")  # which begins with the three fields of the other
T = TypeVar("T", bound=tuple[Tensor, ...])  # a NamedTuple of tensors
Size = TypeVar("Size", float, Tensor)


class Metric(NamedTuple):
    """The kinetic energy ``p' M^-1 p / 2``: momenta p ~ Normal(0, M), their velocities M^-1 p, and momenta of these."""

    inv_mass: Tensor | None  # M^-1: None for the identity, (D,) for its diagonal, or (D, D)
    factor: Tensor | None  # L with L L' = M: None, (D,) or (D, D)

    @property
    def is_dense(self) -> bool:
        return self.inv_mass is not None and self.inv_mass.ndim == 2

    def momentum(self, noise: Tensor) -> Tensor:
        """Standard normal noise ``(C, D)`` to momenta."""
        if self.factor is None:
            return noise
        return noise * self.factor if self.factor.ndim == 1 else noise @ self.factor.mT

    def velocity(self, p: Tensor) -> Tensor:
        """Momenta ``(C, D)`` to velocities."""
        if self.inv_mass is None:
            return p
        return self.inv_mass * p if self.inv_mass.ndim == 1 else p @ self.inv_mass

    def mass(self, v: Tensor) -> Tensor:
        """Velocities ``(C, D)`` to momenta."""
        if self.inv_mass is None or self.factor is None:  # both of them are
            return v
        return v / self.inv_mass if self.inv_mass.ndim == 1 else v @ self.factor @ self.factor.mT


def metric(inv_mass: Tensor | None, theta: Tensor) -> Metric:
    """The metric of an inverse mass: None (identity), ``(D,)`` or ``(D, D)``, for lanes at theta ``(C, D)``.

    Raises:
        ValueError: if it is of another number of parameters, or theta's precision too low for it.
    """
    if inv_mass is None:
        return Metric(None, None)
    if inv_mass.shape[0] != theta.shape[-1]:
        raise ValueError(
            f"inv_mass has shape {tuple(inv_mass.shape)}, but the posterior has {theta.shape[-1]} parameters"
        )
    rounded = inv_mass.to(theta)
    if inv_mass.ndim == 1:
        return Metric(rounded, rounded.rsqrt())
    # In float64: a matrix of single precision may be positive definite, and its rounded inverse not.
    precise = (inv_mass.cpu() if theta.device.type == "mps" else inv_mass.to(theta.device)).double()
    factor = torch.linalg.cholesky(torch.linalg.inv(precise)).to(theta)
    # Momenta are drawn by the factor and have the energy of the inverse: where these differ, draws would be wrong.
    error = (factor.mT @ rounded @ factor - torch.eye(len(factor)).to(theta)).abs().max().item()
    if not error < LARGEST_ROUNDING:
        raise ValueError(
            f"a dense inv_mass with condition number {torch.linalg.cond(precise).item():.2g} is too much for "
            f"{theta.dtype}: rounding changes it by {error:.1%}; compute in float64, or take a diagonal mass"
        )
    return Metric(rounded, factor)


def leapfrog(
    start: P,
    p: Tensor,
    log_prob_and_grad: Callable[[Tensor], tuple[Tensor, ...]],
    step_size: float | Tensor,
    num_steps: int,
    velocity: Callable[[Tensor], Tensor] = lambda p: p,
    grad: Callable[[Tensor], Tensor] | None = None,
) -> tuple[P, Tensor]:
    r"""Integrate Hamilton's equations for ``H(theta, p) = -log_prob(theta) + p' M^-1 p / 2``.

    One step: p <- p + eps/2 grad;  theta <- theta + eps M^-1 p;  p <- p + eps/2 grad   (Neal 2011, eq. 5.18-5.20)

    The two half steps between neighbouring positions are one full step, so ``num_steps`` steps cost ``num_steps``
    gradients. The density itself is needed at the end only.

    Args:
        start: where the lanes are, with the gradient there.
        p: momentum, shape ``(C, D)``.
        log_prob_and_grad: what a position holds beside theta; the gradient is the second of it.
        step_size: one number for all, or ``(C, 1)``.
        grad: the gradient alone, ``(C, D) -> (C, D)``, where that is cheaper.

    Returns:
        the position and the momentum at the end of the trajectory.
    """
    theta = start.theta
    p = _step(p, start.grad, step_size / 2)
    for _ in range(num_steps - 1):
        theta = _step(theta, velocity(p), step_size)
        force = log_prob_and_grad(theta)[1] if grad is None else grad(theta)
        p = _step(p, force, step_size)
    theta = _step(theta, velocity(p), step_size)
    end = type(start)(theta, *log_prob_and_grad(theta))
    return end, _step(p, end.grad, step_size / 2)


class Proposal(NamedTuple, Generic[P]):
    """Where a trajectory ends, and the energies at its two ends."""

    position: P
    p: Tensor  # (C, D)
    start_energy: Tensor  # (C,)
    end_energy: Tensor  # (C,)


def trajectory(
    start: P, p: Tensor, density: LogDensity | Tempered, step_size: float | Tensor, num_steps: int, metric: Metric
) -> tuple[P, Tensor]:
    """`leapfrog` in a density, in native code where there is some."""
    if density.native is not None:
        return density.native.trajectory(start, p, step_size, num_steps, metric.inv_mass)
    return leapfrog(start, p, density.log_prob_and_grad, step_size, num_steps, metric.velocity, density.grad)


def propose(
    generator: torch.Generator,
    start: P,
    density: LogDensity | Tempered,
    step_size: float | Tensor,
    num_steps: int,
    metric: Metric,
) -> Proposal[P]:
    """A trajectory from a fresh momentum: ``p ~ Normal(0, M);  (theta*, p*) = leapfrog(theta, p)``."""
    noise = torch.randn(start.theta.shape, generator=generator, dtype=start.theta.dtype, device=start.theta.device)
    p = metric.momentum(noise)
    end, p_end = trajectory(start, p, density, step_size, num_steps, metric)
    return Proposal(end, p_end, energy_of(start, p, metric.velocity), energy_of(end, p_end, metric.velocity))


def accept(generator: torch.Generator, start: P, proposal: Proposal[P]) -> tuple[P, Tensor]:
    """The proposal with probability ``min(1, exp(H - H*))``, lane by lane, and which lanes took it, ``(C,)``."""
    before, after = proposal.start_energy, proposal.end_energy
    u = torch.rand(before.shape, generator=generator, dtype=before.dtype, device=before.device)
    is_accept = log_ratio(before, after) > u.log()  # strictly: u may be 0, and -inf must never win
    return of_each_lane(is_accept, proposal.position, start), is_accept


def recorded(
    position: Position, proposal: Proposal, is_accept: Tensor, num_steps: int, step_size: float | Tensor
) -> Info:
    """What HMC records of a transition that ended at a position."""
    size = step_size.squeeze(-1) if isinstance(step_size, Tensor) else step_size
    energies = {"start_energy": proposal.start_energy, "end_energy": proposal.end_energy}
    stats = {"is_accept": is_accept, "n_steps": num_steps, "step_size": size, **energies}
    return Info(position.theta, position.log_prob, stats)


def jittered(step_size: Size, jitter: float, generator: torch.Generator, theta: Tensor) -> Size | Tensor:
    """Step sizes of the next trajectories of lanes at theta ``(C, D)``: one number for all, or with jitter ``(C, 1)``.

    Each is drawn evenly within the fraction ``jitter`` up and down.
    """
    if not jitter:
        return step_size
    u = torch.rand(len(theta), 1, generator=generator, dtype=theta.dtype, device=theta.device)
    return step_size * (1 + jitter * (2 * u - 1))


def energy_of(position: P, p: Tensor, velocity: Callable[[Tensor], Tensor]) -> Tensor:
    """``H(theta, p) = -log_prob(theta) + p' M^-1 p / 2``, shape ``(C,)``."""
    return torch.add(-position.log_prob, (p * velocity(p)).sum(-1), alpha=0.5)


def of_each_lane(condition: Tensor, a: T, b: T) -> T:
    """Lane by lane, ``a`` where the condition holds and ``b`` elsewhere."""
    rows = condition.unsqueeze(-1)
    fields = zip(a, b, strict=True)
    return type(a)(*(torch.where(condition if x.ndim == 1 else rows, x, y) for x, y in fields))


def _step(start: Tensor, slope: Tensor, size: float | Tensor) -> Tensor:
    """``start + size * slope``"""
    if isinstance(size, Tensor):
        return torch.addcmul(start, slope, size)
    return torch.add(start, slope, alpha=size)


# --- the kernel -------------------------------------------------------------------------------------------------------


class HMCState(NamedTuple):
    """Where the lanes are, with what they move, and what a warm-up has learned so far."""

    position: Position
    step_size: float  # around which step sizes vary
    jitter: float
    metric: Metric
    warmup: Warmup | None  # None where nothing adapts, and when it has ended
    length: float | None = None  # of trajectories, in time, where it is learned and known


@dataclass(frozen=True, eq=False)
class HMC:
    """Hamiltonian Monte Carlo with a fixed number of steps (Neal 2011).

    One transition leaves ``exp(log_prob)`` invariant:

    p ~ Normal(0, M);  (theta*, p*) = leapfrog(theta, p);  accept with probability min(1, exp(H - H*))

    It draws, from the generator, a uniform ``(C, 1)`` for step sizes if there is jitter, then a normal ``(C, D)`` and a
    uniform ``(C,)``.

    Where the number of steps is not given, a warm-up finds it, each time that it has set the mass, and when it ends: it
    follows trajectories until they turn back, where ``(theta - start)' M (theta - start)`` is largest in the mean over
    lanes, and takes half of the time that this takes. In a Gaussian they turn back after half a period, and after a
    quarter of one they have forgotten where they came from. For each lane it draws a normal ``(C, D)``, and for few
    lanes several, of which it takes the median.

    Args:
        step_size: leapfrog step, in units of theta where the mass is the identity; where a warm-up begins.
        num_steps: leapfrog steps in one transition; None for as many as a warm-up finds, at most 1,000.
        inv_mass: inverse mass: None for the identity, ``(D,)`` for its diagonal, or ``(D, D)``; best near the
            posterior's covariance. A warm-up replaces None by the mass that it learns, and keeps what is given.
        jitter: each lane's trajectory has a step size of its own, drawn evenly within this fraction of ``step_size`` up
            and down, so that no trajectory comes full circle for long (Mackenzie 1989; Neal 2011, section 5.3.2; Stan's
            ``stepsize_jitter``). None, the default, is 0 for a kernel that is used as given, and 0.5 once a warm-up
            adapts one of several steps, during the warm-up and afterwards.
        dense_mass: a warm-up learns the whole covariance and not just its diagonal, for parameters that are strongly
            correlated. It takes more positions than there are parameters, better ten times as many, and D^2 numbers of
            memory and D^2 operations in every step.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if a step size or number of steps is not positive, ``inv_mass`` is not positive definite or given
            although a dense one is to be learned, or ``jitter`` is not in [0, 1).
    """

    step_size: float = 0.1
    num_steps: int | None = None
    inv_mass: Tensor | None = None
    jitter: float | None = None
    dense_mass: bool = False

    lanes_per_chain: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check.settle(
            self,
            step_size=_check.positive("step_size", self.step_size),
            num_steps=None if self.num_steps is None else _check.whole("num_steps", self.num_steps, 1),
            inv_mass=as_inv_mass(self.inv_mass),
            jitter=None if self.jitter is None else _check.number("jitter", self.jitter, "a fraction"),
            dense_mass=_check.flag("dense_mass", self.dense_mass),
        )
        check_one_mass(self.inv_mass, self.dense_mass)
        if self.jitter is not None and not 0 <= self.jitter < 1:
            raise ValueError(
                f"jitter must be a fraction, 0 or more and less than 1, got {self.jitter}; "
                "with 0.2, step sizes vary by a fifth up and down"
            )

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> HMCState:
        """The state of lanes at theta, shape ``(C, D)``.

        Raises:
            ValueError: if the mass is of another number of parameters, or a warm-up that is to find the number of steps
                has no transitions.
        """
        if self.num_steps is None and not num_warmup:
            raise ValueError(
                "a warm-up finds how many steps HMC makes, and there is none: add warmup=500, or say how many, as in "
                f"HMC(step_size={self.step_size:g}, num_steps={FIRST_STEPS})"
            )
        return HMCState(Position(theta, *density.joint.log_prob_and_grad(theta)), *begin(self, theta, num_warmup))

    def step(self, density: Density, generator: torch.Generator, state: HMCState) -> tuple[HMCState, Info]:
        """One transition of all lanes."""
        if density.joint.hmc is not None:
            state, made = self._in_native_code(density.joint.hmc, generator, state, 1)
            info = made.only()
        else:
            size = jittered(state.step_size, state.jitter, generator, state.position.theta)
            num_steps = self._num_steps(state)
            proposal = propose(generator, state.position, density.joint, size, num_steps, state.metric)
            position, is_accept = accept(generator, state.position, proposal)
            info = recorded(position, proposal, is_accept, num_steps, size)
            state = state._replace(position=position)
        if state.warmup is not None:
            rates, before = acceptance_rate(info.stats["start_energy"], info.stats["end_energy"]), state.metric
            state = state._replace(**learned(state.warmup, info.theta, rates))
            if self.num_steps is None and (state.warmup is None or state.metric is not before):
                turning = turning_time(generator, state.position, density.joint, state.step_size, state.metric)
                state = state._replace(length=turning / 2)
        return state, info

    def _num_steps(self, state: HMCState) -> int:
        """Of the next transition."""
        if self.num_steps is not None:
            return self.num_steps
        return FIRST_STEPS if state.length is None else round(min(max(1, state.length / state.step_size), MAX_STEPS))

    def steps(
        self, density: Density, generator: torch.Generator, state: HMCState, num: int
    ) -> tuple[HMCState, Info] | NotImplementedType:
        """Many transitions at once, where there is native code for them: a warm-up looks at each before the next."""
        has_own_step = type(self).step is not HMC.step  # a subclass may have one
        if density.joint.hmc is None or state.warmup is not None or has_own_step:
            return NotImplemented
        state, made = self._in_native_code(density.joint.hmc, generator, state, num)
        return state, Info.of_many(*made)

    def _in_native_code(
        self, native: Native | Caller, generator: torch.Generator, state: HMCState, num: int
    ) -> tuple[HMCState, Info]:
        steps = torch.full((num,), self._num_steps(state))
        position, made = in_native_code(
            native, generator, state.position, state.step_size, state.jitter, steps, state.metric
        )
        return state._replace(position=position), made

    def moved(self, state: HMCState, move: Callable[[Tensor], Tensor]) -> HMCState:
        """The state where a symmetry of the density brings it."""
        return state._replace(position=state.position.moved(move))

    def adapted(self, state: HMCState) -> HMC:
        """The kernel with the step size, the number of steps, the jitter and the mass of a state."""
        found: dict[str, Any] = {"step_size": state.step_size, "jitter": state.jitter or self.jitter}
        return replace(self, num_steps=self._num_steps(state), **found, **mass_of(self, state))

    def __repr__(self) -> str:
        steps = "" if self.num_steps is None else f", num_steps={self.num_steps}"
        jitter = f", jitter={self.jitter:g}" if self.jitter else ""
        return f"HMC(step_size={self.step_size:g}{steps}{told_mass(self)}{jitter})"


def in_native_code(
    native: Native | Caller,
    generator: torch.Generator,
    start: Position,
    step_size: float,
    jitter: float,
    num_steps: Tensor,
    metric: Metric,
) -> tuple[Position, Info]:
    """A transition for each of the numbers of steps ``(T,)``: where they end, and what is recorded of them."""
    made = native.transitions(generator, start, step_size, jitter, num_steps, *metric)
    stats = {
        "is_accept": made.is_accept,
        "n_steps": num_steps.expand(len(made.theta), -1),
        "step_size": made.step_size if jitter else step_size,
        "start_energy": made.start_energy,
        "end_energy": made.end_energy,
    }
    return Position(made.theta, made.log_prob, made.grad), Info(made.thetas, made.log_probs, stats)


def begin(kernel: HMC | Hamiltorch, theta: Tensor, num_warmup: int) -> tuple[float, float, Metric, Warmup | None]:
    """Step size, jitter, metric and warm-up with which lanes at theta ``(C, D)`` set out."""
    check_step_size(kernel.step_size, theta)
    jitter = kernel.jitter
    if jitter is None:  # a single step cannot come full circle
        jitter = ADAPTED_JITTER if num_warmup and kernel.num_steps != 1 else 0.0
    target = LANGEVIN_TARGET_ACCEPTANCE if kernel.num_steps == 1 else TARGET_ACCEPTANCE
    warmup = Warmup.start(num_warmup, theta, kernel.step_size, target, kernel.inv_mass is None, kernel.dense_mass)
    return kernel.step_size, jitter, metric(kernel.inv_mass, theta), warmup


def turning_time(
    generator: torch.Generator, start: Position, density: LogDensity, step_size: float, metric: Metric
) -> float:
    """After which trajectories from fresh momenta are furthest away, in the mean of the squares over lanes: the median.

    Each is followed for twice as long as it takes, since parameters that hang together make it turn back for a while.
    """
    times = []
    for _ in range(-(-LEAST_TURNS // len(start.theta))):
        noise = torch.randn(start.theta.shape, generator=generator, dtype=start.theta.dtype, device=start.theta.device)
        here, p, num_steps, furthest, num_furthest = start, metric.momentum(noise), 0, 0.0, 1
        while num_steps < min(2 * num_furthest, 2 * MAX_STEPS):
            here, p = trajectory(here, p, density, step_size, 1, metric)
            num_steps += 1
            moved = here.theta - start.theta
            distance = (moved * metric.mass(moved)).sum(-1).nan_to_num(0.0, 0.0).mean().item()
            if distance > furthest:
                furthest, num_furthest = distance, num_steps
        times.append(num_furthest * step_size)
    return statistics.median(times)


def learned(warmup: Warmup, theta: Tensor, rates: Tensor) -> dict[str, Any]:
    """Fields of a state that a transition has changed: it ended at theta ``(C, D)``, with acceptance rates ``(C,)``."""
    after, step_size, inv_mass = warmup.update(theta, rates)
    changed: dict[str, Any] = {"step_size": step_size, "warmup": after}
    return changed if inv_mass is None else changed | {"metric": metric(inv_mass, theta)}


def check_step_size(step_size: float, theta: Tensor) -> None:
    """Raise where a step size is no positive and finite number in the dtype of theta."""
    limits = torch.finfo(theta.dtype)
    if not limits.tiny <= step_size <= limits.max:
        raise ValueError(
            f"step_size is {step_size:g}, but numbers in {theta.dtype} lie between {limits.tiny:.2g} and "
            f"{limits.max:.2g}: take a step size near the scale of the parameters"
        )


# --- masses -----------------------------------------------------------------------------------------------------------


def check_one_mass(inv_mass: Tensor | None, dense_mass: bool) -> None:
    if dense_mass and inv_mass is not None:
        raise ValueError("a given inv_mass is kept, so that dense_mass=True has nothing to learn: pass one of the two")


def mass_of(
    kernel: HMC | ChEES | NUTS | Hamiltorch, state: HMCState | ChEESState | NUTSState | HamiltorchState
) -> dict[str, Any]:
    """Fields of the kernel that a warm-up leaves: a mass that was learned is given from then on."""
    inv_mass = state.metric.inv_mass
    return {"inv_mass": inv_mass, "dense_mass": kernel.dense_mass and inv_mass is None}


def told_mass(kernel: HMC | ChEES | NUTS | MCLMC | MAMS) -> str:
    if kernel.inv_mass is None:
        return ", dense_mass=True" * getattr(kernel, "dense_mass", False)
    return f", inv_mass={'diagonal' if kernel.inv_mass.ndim == 1 else 'dense'}"


def as_inv_mass(value: Tensor | None) -> Tensor | None:
    """An inverse mass as a tensor of floats, None for the identity.

    Raises:
        ValueError: if it is neither a vector nor a matrix, or not positive definite.
    """
    if value is None:
        return None
    inv_mass = _check.tensor("inv_mass", value)
    if inv_mass.requires_grad or not inv_mass.is_floating_point():
        inv_mass = inv_mass.detach().double()
    check_inv_mass(inv_mass)
    return inv_mass


def check_inv_mass(inv_mass: Tensor) -> None:
    if inv_mass.ndim not in (1, 2):
        raise ValueError(f"inv_mass must be None or a tensor of shape (D,) or (D, D), got {tuple(inv_mass.shape)}")
    bad = inv_mass[~inv_mass.isfinite() | ((inv_mass <= 0) & (inv_mass.ndim == 1))]
    if len(bad):
        raise ValueError(
            f"inv_mass must be {'positive and ' * (inv_mass.ndim == 1)}finite, but it holds {bad[0].item():g}"
        )
    if inv_mass.ndim == 1:
        return
    if inv_mass.shape[0] != inv_mass.shape[1] or not torch.allclose(inv_mass, inv_mass.mT):
        raise ValueError(f"a dense inv_mass must be a symmetric matrix, got shape {tuple(inv_mass.shape)}")
    if torch.linalg.cholesky_ex(inv_mass).info:
        lowest = torch.linalg.eigvalsh(inv_mass)[0].item()
        raise ValueError(f"a dense inv_mass must be positive definite, but its smallest eigenvalue is {lowest:g}")
