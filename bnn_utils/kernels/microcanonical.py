r"""Microcanonical samplers: all lanes move with speed 1, and the gradient changes only their direction u.

Isokinetic dynamics (Robnik, De Luca, Silverstein and Seljak 2023, "Microcanonical Hamiltonian Monte Carlo", JMLR 24;
Robnik and Seljak 2023, "Fluctuation without dissipation: Microcanonical Langevin Monte Carlo"), where ``|u| = 1``, g is
the gradient of log_prob, and there are D parameters:

    dtheta/dt = u;  du/dt = (1 - u u') g / (D - 1)

It leaves the density ``exp(log_prob(theta))`` invariant, with u uniform on the sphere. `MCLMC` follows it with a little
noise in u, and its draws are as wrong as its integrator; `MAMS` makes trajectories of it, accepts or rejects their
ends, and is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import NotImplementedType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.adaptation import Prediction, Warmup
from bnn_utils.kernels.base import MAX_ENERGY_ERROR, Info, acceptance_rate, diverges
from bnn_utils.kernels.chees import LengthWarmup, learn, num_steps
from bnn_utils.kernels.hmc import (
    Metric,
    Position,
    Proposal,
    accept,
    as_inv_mass,
    check_step_size,
    jittered,
    metric,
    of_each_lane,
    told_mass,
)

if TYPE_CHECKING:
    from bnn_utils.density import Density, LogDensity
    from bnn_utils.gradients.caller import Caller, Travelled

# Of a step of time eps, the outer two of three kicks have this part each: the two-stage integrator of least error norm
# (McLachlan 1995; Omelyan, Mryglod and Folk 2003). Leapfrog costs half as much. By ESS per gradient, of the worst mean
# or square, MCLMC is 1.2 times as good with this one on Gaussians of condition numbers 9 to 900, and as good on round
# ones; MAMS is 1.3 times as good with 100 parameters, as good with 20 to 50, and 0.7 times as good with 3.
OUTER = 0.1931833275037836

MAMS_TARGET_ACCEPTANCE = 0.9  # mean acceptance rate of trajectories, as in Robnik, Cohn-Gordon and Seljak (2025)

# By how much step sizes of MAMS vary, up and down. With few parameters most trajectories are a single step, and lengths
# vary by nothing else: on a Gaussian of 3, 8 chains of 1,000 draws that all had one step size were worth 1,100 draws of
# the distance of lp from its median, which went up and down in turn, and 2,400 to 3,100 with this. It costs a tenth of
# the gradients on one of 20; half, as in HMC, costs two fifths.
MAMS_JITTER = 0.25

FRESH = 1.0  # share of noise in directions that begin with nothing: any would do

MOST_XI = 1e8  # largest ratio of a squared energy error to the wanted one, and least inverse, that teaches a warm-up

# Decoherence length by the size of the posterior, which is the root of the sum of its variances. At 1, 1.4, 2 and 2.8
# times the size, 1,000 gradients made an ESS of 289, 289, 285 and 222 on a round Gaussian of 100 parameters, and of 93,
# 113, 126 and 132 on one of 50 with condition number 16.
LENGTH_BY_SIZE = 2.0


# --- state ------------------------------------------------------------------------------------------------------------


class MCLMCState(NamedTuple):
    """Where the lanes are and which way they go, how they move, and what a warm-up has learned so far."""

    position: Position
    u: Tensor  # (C, D), of length 1; 0 in lanes whose next direction is to be drawn anew
    step_size: float
    decoherence_length: float
    metric: Metric
    warmup: Warmup | None  # None where nothing adapts, and when it has ended


class MAMSState(NamedTuple):
    """Where the lanes are, how many transitions it took, how they move, and what a warm-up has learned so far."""

    position: Position
    count: int  # type: ignore[assignment]
    step_size: float
    trajectory_length: float
    metric: Metric
    warmup: LengthWarmup | None


# --- dynamics ---------------------------------------------------------------------------------------------------------


def kick(u: Tensor, slope: Tensor, size: float | Tensor) -> tuple[Tensor, Tensor]:
    r"""Turn directions u ``(C, D)`` towards a gradient that stays as it is, for a time ``size``, or ``(C, 1)``.

    With ``e = g / |g|`` and ``delta = size |g| / (D - 1)``

        u <- (u + e (sinh delta + e.u (cosh delta - 1))) / (cosh delta + e.u sinh delta)

    (Robnik and Seljak 2023). On the sphere this has the Jacobian ``(cosh delta + e.u sinh delta)^-(D - 1)``. Everything
    is multiplied by ``exp(-delta)``, so that no large gradient overflows.

    Returns:
        the new directions, and minus the log of the Jacobian ``(C,)``, which is the kinetic energy that was gained.
    """
    freedom, norm = u.shape[-1] - 1, slope.norm(dim=-1, keepdim=True)
    e = slope / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # without a gradient e and delta are 0, and u stays
    delta, cosine = size / freedom * norm, (e * u).sum(-1, keepdim=True)
    shrink = -torch.expm1(-delta)  # 1 - exp(-delta)
    turned = (2 - 2 * shrink) * u + shrink * (2 - shrink + cosine * shrink) * e
    log_stretch = delta + torch.log1p((1 - cosine) / 2 * torch.expm1(-2 * delta))
    return turned / turned.norm(dim=-1, keepdim=True), freedom * log_stretch.squeeze(-1)


def integrate(
    start: Position, u: Tensor, density: LogDensity, step_size: float | Tensor, num_steps: int, metric: Metric
) -> tuple[Position, Tensor, Tensor]:
    r"""Follow the isokinetic dynamics, in coordinates in which the mass is the identity.

    One step, with ``lambda = 0.193``:

    kick by lambda eps;  x <- x + eps/2 u;  kick by (1 - 2 lambda) eps;  x <- x + eps/2 u;  kick by lambda eps

    It is reversible and of second order, like leapfrog, but of less error for its two gradients. The last kick of a
    step and the first of the next are one, so that ``num_steps`` steps cost ``2 num_steps`` gradients. Step sizes are
    one number for all, or ``(C, 1)``.

    Returns:
        position and direction at the end, and the energy error ``(C,)``: minus the log of what the trajectory makes of
        the density there, its Jacobian included.
    """
    factor = metric.factor
    sizes = num_steps * [(1 - 2 * OUTER) * step_size, 2 * OUTER * step_size]
    sizes[-1] = OUTER * step_size

    def kicked(u: Tensor, grad: Tensor, size: float | Tensor) -> tuple[Tensor, Tensor]:
        return kick(u, grad if factor is None else grad / factor, size)

    def moved(theta: Tensor, u: Tensor) -> Tensor:
        return theta + step_size / 2 * (u if factor is None else u / factor)

    theta, (u, kinetic) = start.theta, kicked(u, start.grad, OUTER * step_size)
    for size in sizes[:-1]:
        theta = moved(theta, u)
        u, gained = kicked(u, density.grad(theta), size)
        kinetic = kinetic + gained
    theta = moved(theta, u)
    end = Position(theta, *density.log_prob_and_grad(theta))
    u, gained = kicked(u, end.grad, sizes[-1])
    return end, u, start.log_prob - end.log_prob + (kinetic + gained)


def refreshed(generator: torch.Generator, u: Tensor, share: float) -> Tensor:
    r"""Directions u ``(C, D)`` with noise, of which they lose their memory over a time of 1 / share steps.

    ``u <- (u + nu z) / |u + nu z|`` with ``z ~ Normal(0, 1)`` and ``nu^2 = (exp(2 share) - 1) / D`` (Robnik and Seljak
    2023). Where u is 0, the new direction is uniform on the sphere.
    """
    z = torch.randn(u.shape, generator=generator, dtype=u.dtype, device=u.device)
    u = torch.add(u, z, alpha=noise(share, u.shape[-1]))
    return u / u.norm(dim=-1, keepdim=True)


def noise(share: float, dim: int) -> float:
    """The nu of `refreshed`."""
    # A share of 20 leaves no more than 2e-9 of the old direction, and has a square in any precision.
    return math.sqrt(math.expm1(2 * min(share, 20.0)) / dim)


def in_native_code(
    caller: Caller,
    generator: torch.Generator,
    start: Position,
    u: Tensor | None,
    share: float,
    step_size: float,
    jitter: float,
    num_steps: Tensor,
    metric: Metric,
) -> tuple[Position, Travelled]:
    """A transition for each of the numbers of steps ``(T,)``, from directions u that go on, or None for fresh ones."""
    nu, constants = noise(share, start.theta.shape[-1]), (OUTER, MAX_ENERGY_ERROR)
    made = caller.travel(generator, start, u, nu, step_size, jitter, num_steps, *constants, metric.factor)
    return Position(made.theta, made.log_prob, made.grad), made


def check_dim(theta: Tensor) -> None:
    """Raise where there are no directions to turn to."""
    if theta.shape[-1] < 2:
        raise ValueError(
            "microcanonical samplers turn directions towards the gradient, which takes two parameters or more, and "
            "this posterior has 1: take HMC"
        )


def as_diagonal(inv_mass: Tensor | None) -> Tensor | None:
    """An inverse mass that is None or a vector."""
    inv_mass = as_inv_mass(inv_mass)
    if inv_mass is not None and inv_mass.ndim == 2:
        raise ValueError(
            f"inv_mass must be None or a tensor of shape (D,), got {tuple(inv_mass.shape)}: pass the diagonal, "
            "inv_mass.diagonal()"
        )
    return inv_mass


# --- unadjusted -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MCLMC:
    """Microcanonical Langevin Monte Carlo (Robnik and Seljak 2023): the dynamics with noise, and no Metropolis step.

    One transition is one step of the integrator, of two gradients:

    u <- refreshed(u), with memory over the decoherence length;  (theta, u) <- integrate(theta, u)

    (Halving the noise into one part before the step and one after would change u between transitions, and nothing about
    theta.) Neighbouring draws are nearly the same: ``sample(thin=)`` keeps each tenth, say.

    **Its draws are biased**, by the integrator's error. What measures it is the variance of the energy error in a step,
    divided by the number of parameters: on a Gaussian, its square root bounds the relative error of the variances, in
    the root mean square over directions (Robnik, Cohn-Gordon and Seljak 2024, "Black-box unadjusted Hamiltonian Monte
    Carlo"). At the default of 5e-4 variances come out 2 % too small, at 5e-3 6 %. A warm-up finds the step size for it;
    ``chain.warnings`` tells what it was in the run. It also learns the mass, if none is given, and the decoherence
    length, twice the size of the posterior. Few lanes see few of the large errors, and may end up far above what is
    wanted: in the tutorial's posterior, after 1,000 transitions, 16 lanes were at 0.1 to 20 times as much, and one lane
    at up to 4,000 times.

    A step into an impossible place, or with an energy error above 1000, is not made: the lane stays, and is recorded as
    diverging, and its next direction is drawn anew. Draws from the generator: a normal ``(C, D)``.

    Args:
        step_size: in units of theta where the mass is the identity, all parameters together: sqrt(D) times as large as
            one of HMC that moves each as far. Where a warm-up begins.
        decoherence_length: distance over which lanes forget their direction. Where a warm-up begins.
        inv_mass: inverse mass: None for the identity, or ``(D,)`` for its diagonal. A warm-up replaces None by what it
            learns, and keeps what is given.
        energy_variance: of the energy error in a step, for each parameter, that a warm-up aims at.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if one of them is not positive.
    """

    step_size: float = 0.1
    decoherence_length: float = 1.0
    inv_mass: Tensor | None = None
    energy_variance: float = 5e-4

    lanes_per_chain: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check.settle(
            self,
            step_size=_check.positive("step_size", self.step_size),
            decoherence_length=_check.positive("decoherence_length", self.decoherence_length),
            inv_mass=as_diagonal(self.inv_mass),
            energy_variance=_check.positive("energy_variance", self.energy_variance),
        )

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> MCLMCState:
        """The state of lanes at theta, shape ``(C, D)``.

        Raises:
            ValueError: if there is one parameter only, or the mass is of another number of them.
        """
        check_dim(theta)
        check_step_size(self.step_size, theta)
        position = Position(theta, *density.joint.log_prob_and_grad(theta))
        # Variances are learned in any case: of a given mass, the length needs them.
        warmup = Warmup.start(num_warmup, theta, self.step_size, self.energy_variance, learns_mass=True, dense=False)
        if warmup is not None:
            warmup = warmup._replace(steps=Prediction.start(warmup.steps.final, len(theta)))
        kinetic = metric(self.inv_mass, theta)
        return MCLMCState(position, torch.zeros_like(theta), self.step_size, self.decoherence_length, kinetic, warmup)

    def step(self, density: Density, generator: torch.Generator, state: MCLMCState) -> tuple[MCLMCState, Info]:
        """One transition of all lanes."""
        if density.joint.caller is not None:
            state, made = self._in_native_code(density.joint.caller, generator, state, 1)
            info = made.only()
        else:
            u = refreshed(generator, state.u, state.step_size / state.decoherence_length)
            end, u, error = integrate(state.position, u, density.joint, state.step_size, 1, state.metric)
            diverging = diverges(error)
            position = of_each_lane(diverging, state.position, end)
            info = Info(position.theta, position.log_prob, self._recorded(state, error))
            state = state._replace(position=position, u=u.masked_fill(diverging.unsqueeze(-1), 0))
        if state.warmup is not None:
            state = state._replace(**self._learned(state, info.theta, info.stats["energy_error"]))
        return state, info

    def steps(
        self, density: Density, generator: torch.Generator, state: MCLMCState, num: int
    ) -> tuple[MCLMCState, Info] | NotImplementedType:
        """Many transitions at once, where there is native code for them: a warm-up looks at each before the next."""
        has_own_step = type(self).step is not MCLMC.step  # a subclass may have one
        if density.joint.caller is None or state.warmup is not None or has_own_step:
            return NotImplemented
        state, made = self._in_native_code(density.joint.caller, generator, state, num)
        return state, Info.of_many(*made)

    def _in_native_code(
        self, caller: Caller, generator: torch.Generator, state: MCLMCState, num: int
    ) -> tuple[MCLMCState, Info]:
        share, steps = state.step_size / state.decoherence_length, torch.ones(num, dtype=torch.int64)
        position, made = in_native_code(
            caller, generator, state.position, state.u, share, state.step_size, 0.0, steps, state.metric
        )
        info = Info(made.thetas, made.log_probs, self._recorded(state, made.errors))
        return state._replace(position=position, u=made.u), info

    @staticmethod
    def _recorded(state: MCLMCState, error: Tensor) -> dict[str, Any]:
        """Statistics of transitions with these energy errors."""
        return {"n_steps": 1, "step_size": state.step_size, "energy_error": error, "diverging": diverges(error)}

    def _learned(self, state: MCLMCState, theta: Tensor, error: Tensor) -> dict[str, Any]:
        """Fields of a state that a transition has changed: it ended at theta ``(C, D)``, with energy errors ``(C,)``.

        `Prediction` finds the step size. A squared error of xi times the wanted one counts as an acceptance rate of
        1 / (1 + xi), by which `Teachers` knows lanes that are stuck.
        """
        warmup = state.warmup
        assert warmup is not None  # or nothing is learned
        assert isinstance(warmup.steps, Prediction)  # see `init`
        xi = error.detach().cpu().double().square() / (theta.shape[-1] * warmup.target)
        xi = xi.nan_to_num(MOST_XI).clamp(1 / MOST_XI, MOST_XI)
        teachers = warmup.teachers.update(1 / (1 + xi), warmup.steps.x)
        warmup, step_size, variance = warmup.taught(theta, teachers, warmup.steps.update(xi, teachers))
        changed: dict[str, Any] = {"step_size": step_size, "warmup": warmup}
        if variance is None:
            return changed
        kinetic = metric(variance, theta) if self.inv_mass is None else state.metric
        assert kinetic.inv_mass is not None  # given, or just learned
        size = (variance / kinetic.inv_mass.to(variance)).sum().sqrt().item()
        return changed | {"metric": kinetic, "decoherence_length": LENGTH_BY_SIZE * size}

    def moved(self, state: MCLMCState, move: Callable[[Tensor], Tensor]) -> MCLMCState:
        """The state where a symmetry of the density brings it."""
        return state._replace(position=state.position.moved(move), u=move(state.u))

    def adapted(self, state: MCLMCState) -> MCLMC:
        """The kernel with the step size, the length and the mass of a state."""
        length, inv_mass = state.decoherence_length, state.metric.inv_mass
        return replace(self, step_size=state.step_size, decoherence_length=length, inv_mass=inv_mass)

    def __repr__(self) -> str:
        lengths = f"step_size={self.step_size:.3g}, decoherence_length={self.decoherence_length:.3g}"
        return f"MCLMC({lengths}{told_mass(self)}, energy_variance={self.energy_variance:.3g})"


# --- adjusted ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MAMS:
    """Metropolis-adjusted microcanonical sampler (Robnik, Cohn-Gordon and Seljak 2025), with lengths as in `ChEES`.

    One transition leaves ``exp(log_prob)`` invariant, W being the energy error of the trajectory:

    u uniform on the sphere;  (theta*, W) = integrate(theta, u);  accept with probability min(1, exp(-W))

    A trajectory has ``ceil(h * trajectory_length / step_size)`` steps, of two gradients each, where h follows Halton's
    sequence in base 2, evenly spread over (0, 1), and all lanes have the same number. Each lane's trajectory has a step
    size of its own, drawn evenly within a quarter of ``step_size`` up and down. A warm-up finds the step size for a
    mean acceptance rate of 0.9, the mass, and the length, which climbs the criterion of ChEES, beginning with a quarter
    turn on the sphere near which most of a round posterior lies. That takes several lanes, better many; one lane stays
    with a quarter turn. (The paper learns the length from the autocorrelation of one chain.)

    The energy is known but for a constant that is different in each transition, so that energies are not recorded, only
    their errors. Draws from the generator: a uniform ``(C, 1)``, a normal ``(C, D)`` and a uniform ``(C,)``.

    Args:
        step_size: as in `MCLMC`; where a warm-up begins.
        trajectory_length: longest distance; where a warm-up begins.
        inv_mass: as in `MCLMC`.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if one of them is not positive.
    """

    step_size: float = 0.1
    trajectory_length: float = 1.0
    inv_mass: Tensor | None = None

    lanes_per_chain: ClassVar[int] = 1
    jitter: ClassVar[float] = MAMS_JITTER

    def __post_init__(self) -> None:
        _check.settle(
            self,
            step_size=_check.positive("step_size", self.step_size),
            trajectory_length=_check.positive("trajectory_length", self.trajectory_length),
            inv_mass=as_diagonal(self.inv_mass),
        )

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> MAMSState:
        """The state of lanes at theta, shape ``(C, D)``.

        Raises:
            ValueError: if there is one parameter only, or the mass is of another number of them.
        """
        check_dim(theta)
        check_step_size(self.step_size, theta)
        position, length = Position(theta, *density.joint.log_prob_and_grad(theta)), math.log(self.trajectory_length)
        steps = Warmup.start(
            num_warmup, theta, self.step_size, MAMS_TARGET_ACCEPTANCE, self.inv_mass is None, dense=False
        )
        warmup = None if steps is None else LengthWarmup(steps, 0.0, length, length)
        return MAMSState(position, 0, self.step_size, self.trajectory_length, metric(self.inv_mass, theta), warmup)

    def step(self, density: Density, generator: torch.Generator, state: MAMSState) -> tuple[MAMSState, Info]:
        """One transition of all lanes."""
        if density.joint.caller is not None:
            position, proposal, made = self._in_native_code(density.joint.caller, generator, state, 1)
            info = made.only()
        else:
            steps = num_steps(state.count, state.trajectory_length, state.step_size)
            size = jittered(state.step_size, self.jitter, generator, state.position.theta)
            proposal = propose(generator, state.position, density.joint, size, steps, state.metric)
            position, is_accept = accept(generator, state.position, proposal)
            assert isinstance(size, Tensor)  # as there is jitter
            rates = acceptance_rate(proposal.start_energy, proposal.end_energy)
            stats = self._recorded(rates, is_accept, steps, size.squeeze(-1), proposal.end_energy)
            info = Info(position.theta, position.log_prob, stats)
        if state.warmup is not None:
            shortest = math.pi / 2 * math.sqrt(position.theta.shape[-1])
            state = learn(state, proposal, position, shortest, harmonic=False)
        return state._replace(position=position, count=state.count + 1), info

    def steps(
        self, density: Density, generator: torch.Generator, state: MAMSState, num: int
    ) -> tuple[MAMSState, Info] | NotImplementedType:
        """Many transitions at once, where there is native code for them: a warm-up looks at each before the next."""
        has_own_step = type(self).step is not MAMS.step  # a subclass may have one
        if density.joint.caller is None or state.warmup is not None or has_own_step:
            return NotImplemented
        position, _, made = self._in_native_code(density.joint.caller, generator, state, num)
        return state._replace(position=position, count=state.count + num), Info.of_many(*made)

    def _in_native_code(
        self, caller: Caller, generator: torch.Generator, state: MAMSState, num: int
    ) -> tuple[Position, Proposal, Info]:
        """Where transitions lead, the last one's proposal, and what is recorded."""
        counts = range(state.count, state.count + num)
        steps = torch.tensor([num_steps(count, state.trajectory_length, state.step_size) for count in counts])
        position, made = in_native_code(
            caller, generator, state.position, None, FRESH, state.step_size, self.jitter, steps, state.metric
        )
        end, error = Position(made.end_theta, made.end_log_prob, made.end_grad), made.errors[:, -1]
        proposal = Proposal(end, state.metric.momentum(made.u), torch.zeros_like(error), error)
        of_lanes = steps.expand(len(made.theta), -1)
        stats = self._recorded(made.rates, made.accepts, of_lanes, made.sizes, made.errors)
        return position, proposal, Info(made.thetas, made.log_probs, stats)

    @staticmethod
    def _recorded(
        rates: Tensor, is_accept: Tensor, num_steps: int | Tensor, size: Tensor, error: Tensor
    ) -> dict[str, Any]:
        """Statistics of transitions."""
        return {
            "acceptance_rate": rates,
            "is_accept": is_accept,
            "n_steps": num_steps,
            "step_size": size,
            "energy_error": error,
            "diverging": diverges(error),
        }

    def moved(self, state: MAMSState, move: Callable[[Tensor], Tensor]) -> MAMSState:
        """The state where a symmetry of the density brings it."""
        return state._replace(position=state.position.moved(move))

    def adapted(self, state: MAMSState) -> MAMS:
        """The kernel with the step size, the length and the mass of a state."""
        length, inv_mass = state.trajectory_length, state.metric.inv_mass
        return replace(self, step_size=state.step_size, trajectory_length=length, inv_mass=inv_mass)

    def __repr__(self) -> str:
        return f"MAMS(step_size={self.step_size:.3g}, trajectory_length={self.trajectory_length:.3g}{told_mass(self)})"


def propose(
    generator: torch.Generator,
    start: Position,
    density: LogDensity,
    step_size: float | Tensor,
    num_steps: int,
    metric: Metric,
) -> Proposal:
    """A trajectory in a fresh direction, with energies that are 0 at its start."""
    u = refreshed(generator, torch.zeros_like(start.theta), FRESH)
    end, u, error = integrate(start, u, density, step_size, num_steps, metric)
    return Proposal(end, metric.momentum(u), torch.zeros_like(error), error)
