"""Hamiltonian Monte Carlo on a flat parameter vector, many lanes at once: state, info, kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from bnn_utils import _check

# By how much step sizes vary, up and down, once a warm-up adapts them. Near a whole period of the trajectories the
# energy error vanishes and proposals return to where they started: acceptance is high there, so adaptation stays there,
# and draws hardly move. Step sizes spread evenly from one half to three halves turn a whole period into anything from
# half a period to one and a half: a whole turn, evenly, so that the end says nothing of the start. And they turn half a
# period, after which distances from the mean repeat, into half a turn, evenly (Mackenzie 1989; Neal 2011, 5.3.2).
ADAPTED_JITTER = 0.5

# Energy error at which a trajectory counts as divergent, as in Stan (Betancourt 2017, section 6.2).
MAX_ENERGY_ERROR = 1000.0

LogProbAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
Grad = Callable[[Tensor], Tensor]


class HMCState(NamedTuple):
    """Where each lane is. The gradient is kept so that no transition computes it twice."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    grad: Tensor  # (C, D), gradient of log_prob at theta


State = TypeVar("State", bound=HMCState)  # or any NamedTuple of tensors that begins with its three fields


class HMCInfo(NamedTuple):
    """What happened in one transition, one entry per lane; stacked, in many. Statistics have ArviZ's names."""

    start_energy: Tensor  # (C,), H at the start of the trajectory
    end_energy: Tensor  # (C,), H at its end, with the momentum that was reached
    is_accept: Tensor  # (C,), bool
    n_steps: Tensor | int  # (C,), or one number for all, leapfrog steps
    step_size: Tensor | float  # (C,), or one number for all

    # The rest is computed when asked for, on many transitions at once: a small tensor costs as much as a large one.

    @property
    def acceptance_rate(self) -> Tensor:
        """``min(1, exp(-energy_error))``, 0 where an energy is infinite or not a number."""
        return acceptance_rate(self.start_energy, self.end_energy)

    @property
    def energy(self) -> Tensor:
        """H of the state that was kept, with the momentum it was reached with."""
        return torch.where(self.is_accept, self.end_energy, self.start_energy)

    @property
    def energy_error(self) -> Tensor:
        """H at the end of the trajectory minus H at its start."""
        return self.end_energy - self.start_energy

    @property
    def diverging(self) -> Tensor:
        """Energy error above 1000 or not finite."""
        error = self.energy_error
        return ~(error.isfinite() & (error <= MAX_ENERGY_ERROR))

    @classmethod
    def stack(cls, infos: Sequence[HMCInfo]) -> HMCInfo:
        """Many transitions as one: ``(C,)`` each to ``(C, transitions)``."""
        like = infos[0].start_energy

        def column(values: Sequence[Tensor | float]) -> Tensor:
            if isinstance(values[0], Tensor):
                return torch.stack(values, dim=1)
            dtype = torch.int64 if isinstance(values[0], int) else like.dtype
            return torch.tensor(values, dtype=dtype, device=like.device).expand(len(like), -1)

        return cls(*map(column, zip(*infos, strict=True)))

    def statistics(self) -> dict[str, Tensor]:
        """ArviZ's name -> values."""
        return {name: getattr(self, name) for name in STATISTICS}


STATISTICS = ("acceptance_rate", "is_accept", "n_steps", "step_size", "energy", "energy_error", "diverging")

Kernel = Callable[[torch.Generator, HMCState], tuple[HMCState, HMCInfo]]


class Metric(NamedTuple):
    """The kinetic energy ``p' M^-1 p / 2`` by its uses: p ~ Normal(0, M), the velocity M^-1 p, and back again."""

    momentum: Callable[[Tensor], Tensor]  # standard normal noise (C, D) -> momentum (C, D)
    velocity: Callable[[Tensor], Tensor]  # momentum (C, D) -> velocity (C, D)
    mass: Callable[[Tensor], Tensor]  # velocity (C, D) -> momentum (C, D)


def metric(inv_mass: Tensor | None) -> Metric:
    """The metric of an inverse mass: None (identity), ``(D,)`` (diagonal) or ``(D, D)`` (dense)."""
    if inv_mass is None:
        return Metric(lambda noise: noise, lambda p: p, lambda v: v)
    if inv_mass.ndim == 1:
        sd = inv_mass.rsqrt()
        return Metric(lambda noise: noise * sd, lambda p: inv_mass * p, lambda v: v / inv_mass)
    mass = torch.linalg.inv(inv_mass)
    factor = torch.linalg.cholesky(mass)
    return Metric(lambda noise: noise @ factor.mT, lambda p: p @ inv_mass, lambda v: v @ mass)


def leapfrog(
    state: State,
    p: Tensor,
    log_prob_and_grad: LogProbAndGrad,
    step_size: float | Tensor,
    num_steps: int,
    velocity: Callable[[Tensor], Tensor] = lambda p: p,
    grad: Grad | None = None,
) -> tuple[State, Tensor]:
    r"""Integrate Hamilton's equations for ``H(theta, p) = -log_prob(theta) + p' M^-1 p / 2``.

    One step: p <- p + eps/2 grad;  theta <- theta + eps M^-1 p;  p <- p + eps/2 grad   (Neal 2011, eq. 5.18-5.20)

    The two half steps between neighbouring positions are one full step, so ``num_steps`` steps cost ``num_steps``
    gradients. The density itself is needed at the end only.

    Args:
        state: where the lanes are, with the gradient there.
        p: momentum, shape ``(C, D)``.
        log_prob_and_grad: what a state holds beside theta; the gradient is the second of it.
        step_size: one number for all, or ``(C, 1)``.
        grad: the gradient alone, ``(C, D) -> (C, D)``, where that is cheaper.

    Returns:
        the state and the momentum at the end of the trajectory.
    """
    theta = state.theta
    p = _step(p, state.grad, step_size / 2)
    for _ in range(num_steps - 1):
        theta = _step(theta, velocity(p), step_size)
        force = log_prob_and_grad(theta)[1] if grad is None else grad(theta)
        p = _step(p, force, step_size)
    theta = _step(theta, velocity(p), step_size)
    end = type(state)(theta, *log_prob_and_grad(theta))
    return end, _step(p, end.grad, step_size / 2)


class Proposal(NamedTuple):
    """Where a trajectory ends, and the energies at its two ends."""

    state: HMCState
    p: Tensor  # (C, D)
    start_energy: Tensor  # (C,)
    end_energy: Tensor  # (C,)


def propose(
    generator: torch.Generator,
    state: State,
    log_prob_and_grad: LogProbAndGrad,
    step_size: float | Tensor,
    num_steps: int,
    metric: Metric,
    grad: Grad | None = None,
) -> Proposal:
    """A trajectory from a fresh momentum: ``p ~ Normal(0, M);  (theta*, p*) = leapfrog(theta, p)``."""
    noise = torch.randn(state.theta.shape, generator=generator, dtype=state.theta.dtype, device=state.theta.device)
    p = metric.momentum(noise)
    end, p_end = leapfrog(state, p, log_prob_and_grad, step_size, num_steps, metric.velocity, grad)
    return Proposal(end, p_end, _energy(state, p, metric.velocity), _energy(end, p_end, metric.velocity))


def accept(generator: torch.Generator, state: State, proposal: Proposal) -> tuple[State, Tensor]:
    """The proposal with probability ``min(1, exp(H - H*))``, lane by lane, and which lanes took it, ``(C,)``."""
    start, end = proposal.start_energy, proposal.end_energy
    u = torch.rand(start.shape, generator=generator, dtype=start.dtype, device=start.device)
    is_accept = log_ratio(start, end) > u.log()  # strictly: u may be 0, and -inf must never win
    return _where(is_accept, proposal.state, state), is_accept


@dataclass(frozen=True, eq=False)
class HMC:
    """Hamiltonian Monte Carlo with a fixed number of steps (Neal 2011).

    Args:
        step_size: leapfrog step, in units of theta where the mass is the identity.
        num_steps: leapfrog steps in one transition.
        inv_mass: inverse mass: None for the identity, ``(D,)`` for its diagonal, or ``(D, D)``; best near the
            posterior's covariance.
        jitter: each lane's trajectory has a step size of its own, drawn evenly within this fraction of ``step_size`` up
            and down, so that no trajectory comes full circle for long (Mackenzie 1989; Neal 2011, section 5.3.2; Stan's
            ``stepsize_jitter``). None, the default, is 0 for a kernel that is used as given, and 0.5 once a warm-up
            adapts one of several steps, during the warm-up and afterwards.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if a step size or number of steps is not positive, ``inv_mass`` is not positive definite, or
            ``jitter`` is not in [0, 1).
    """

    step_size: float
    num_steps: int
    inv_mass: Tensor | None = None
    jitter: float | None = None

    lanes_per_chain: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check.settle(
            self,
            step_size=_check.positive("step_size", self.step_size),
            num_steps=_check.whole("num_steps", self.num_steps, 1),
            inv_mass=as_inv_mass(self.inv_mass),
            jitter=None if self.jitter is None else _check.number("jitter", self.jitter, "a fraction"),
        )
        if self.jitter is not None and not 0 <= self.jitter < 1:
            raise ValueError(
                f"jitter must be a fraction, 0 or more and less than 1, got {self.jitter}; "
                "with 0.2, step sizes vary by a fifth up and down"
            )

    def init(self, log_prob_and_grad: LogProbAndGrad, theta: Tensor) -> HMCState:
        """The state of lanes at theta, shape ``(C, D)``."""
        return HMCState(theta, *log_prob_and_grad(theta))

    def build_kernel(self, log_prob_and_grad: LogProbAndGrad, grad: Grad | None = None) -> Kernel:
        """One transition, ``(generator, state) -> (state, info)``, that leaves ``exp(log_prob)`` invariant.

        p ~ Normal(0, M);  (theta*, p*) = leapfrog(theta, p);  accept with probability min(1, exp(H - H*))

        Per transition it draws, from the generator, a uniform ``(C, 1)`` for step sizes if there is jitter, then a
        normal ``(C, D)`` and a uniform ``(C,)``.

        Args:
            log_prob_and_grad: ``(C, D) -> (C,), (C, D)``, each row on its own.
            grad: the gradient alone, for the inner leapfrog steps, where that is cheaper.
        """
        kinetic = metric(self.inv_mass)

        def transition(generator: torch.Generator, state: HMCState) -> tuple[HMCState, HMCInfo]:
            size = self.draw_step_sizes(generator, state.theta)
            proposal = propose(generator, state, log_prob_and_grad, size, int(self.num_steps), kinetic, grad)
            state, is_accept = accept(generator, state, proposal)
            return state, self.info(proposal.start_energy, proposal.end_energy, is_accept, size)

        return transition

    def draw_step_sizes(self, generator: torch.Generator, theta: Tensor) -> float | Tensor:
        """For the next trajectories of lanes at theta ``(C, D)``: one number for all, or with jitter ``(C, 1)``."""
        if not self.jitter:
            return float(self.step_size)
        u = torch.rand(len(theta), 1, generator=generator, dtype=theta.dtype, device=theta.device)
        return self.step_size * (1 + self.jitter * (2 * u - 1))

    def info(
        self, start_energy: Tensor, end_energy: Tensor, is_accept: Tensor, step_size: float | Tensor | None = None
    ) -> HMCInfo:
        """What happened, from the energies at the two ends of each trajectory, ``(C,)`` each, and their step sizes."""
        size = float(self.step_size) if step_size is None else step_size
        size = size.squeeze(-1) if isinstance(size, Tensor) else size
        return HMCInfo(start_energy, end_energy, is_accept, int(self.num_steps), size)

    def __repr__(self) -> str:
        mass = "" if self.inv_mass is None else f", inv_mass={'diagonal' if self.inv_mass.ndim == 1 else 'dense'}"
        jitter = f", jitter={self.jitter:g}" if self.jitter else ""
        return f"HMC(step_size={self.step_size:g}, num_steps={self.num_steps}{mass}{jitter})"


def _step(start: Tensor, slope: Tensor, size: float | Tensor) -> Tensor:
    """``start + size * slope``"""
    if isinstance(size, Tensor):
        return torch.addcmul(start, slope, size)
    return torch.add(start, slope, alpha=size)


def _energy(state: HMCState, p: Tensor, velocity: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.add(-state.log_prob, (p * velocity(p)).sum(-1), alpha=0.5)


def acceptance_rate(start: Tensor, end: Tensor) -> Tensor:
    """Probability with which a trajectory between these energies is accepted."""
    return log_ratio(start, end).clamp(max=0).exp()


def log_ratio(start: Tensor, end: Tensor) -> Tensor:
    """Log of the density ratio of the trajectory's ends; one that is infinite or not a number is never accepted."""
    return (start - end).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _where(condition: Tensor, a: State, b: State) -> State:
    """Lane by lane, ``a`` where the condition holds and ``b`` elsewhere."""
    rows = condition.unsqueeze(-1)
    fields = zip(a, b, strict=True)
    return type(a)(*(torch.where(condition if x.ndim == 1 else rows, x, y) for x, y in fields))


def as_inv_mass(value: Tensor | None) -> Tensor | None:
    """An inverse mass as a tensor of floats, None for the identity.

    Raises:
        ValueError: if it is neither a vector nor a matrix, or not positive definite.
    """
    if value is None:
        return None
    inv_mass = _check.tensor("inv_mass", value)
    if inv_mass.requires_grad or not inv_mass.is_floating_point():  # else the very same: a warm-up sees that it is kept
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
