r"""Replica exchange (parallel tempering): chains between the prior and the posterior that swap places.

At inverse temperature beta a chain samples ``prior(theta) likelihood(theta)^beta``: the prior at beta = 0, where
nothing is in its way, and the posterior at beta = 1. Neighbours on the ladder of temperatures propose to swap their
positions. So a network that the cold chain could never have walked to comes down to it from the prior, step by step.

Where the prior is so wide that too many temperatures lie between it and the posterior, the hot end may be a reference
that was fitted to draws (`bnn_utils.kernels.path`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import NotImplementedType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bnn_utils import _check
from bnn_utils.adaptation import DualAveraging, Teachers, mean
from bnn_utils.gradients.native import Exchanges
from bnn_utils.kernels.base import LADDER, Info, acceptance_rate
from bnn_utils.kernels.hmc import (
    HMC,
    TARGET_ACCEPTANCE,
    Metric,
    accept,
    check_step_size,
    jittered,
    metric,
    propose,
)
from bnn_utils.kernels.path import Path, path_of

if TYPE_CHECKING:
    from bnn_utils.density import Density
    from bnn_utils.gradients.native import Native

# A ladder to begin with: dense near the prior, where the likelihood takes hold first.
FIRST_LADDER_POWER = 4
# Step sizes vary by this fraction up and down, where the kernel has no jitter of its own. At the hot end, where the
# target is the prior, all elements may swing with one period, and trajectories of just that length would end where they
# started (Neal 2011, section 5.3.2).
STEP_JITTER = 0.2

FEWEST_IN_A_ROUND, MOST_ROUNDS = 10, 6  # transitions in the first round of a warm-up, and rounds


class TemperedPosition(NamedTuple):
    """Where each lane is; lane c K + k is chain c at temperature k. The first three are those of `Position`."""

    theta: Tensor  # (C K, D)
    log_prob: Tensor  # (C K,), log prior + beta log likelihood
    grad: Tensor  # (C K, D), gradient of log_prob
    log_likelihood: Tensor  # (C K,); as in `ExchangeState`
    grad_likelihood: Tensor  # (C K, D)


class Round(NamedTuple):
    """What a warm-up has learned in the round that is open: a step size per temperature, and how often swaps fail."""

    num: int  # transitions of the whole warm-up
    count: int  # type: ignore[assignment]  # that have been
    teachers: Teachers  # at each temperature
    steps: DualAveraging
    swap_rates: Tensor  # (K - 1,), their sum over the transitions of this round
    since: int  # how many these are

    @classmethod
    def start(cls, num: int, count: int, teachers: Teachers, step_sizes: Tensor) -> Round:
        return cls(num, count, teachers, DualAveraging.start(step_sizes), step_sizes.new_zeros(len(step_sizes) - 1), 0)


class Ladder(NamedTuple):
    """Temperatures and step sizes, and what follows from them for the lanes of C chains, laid out once."""

    inverse_temperatures: Tensor  # (K,), float64
    step_sizes: Tensor  # (K,), float64
    beta: Tensor  # (C K,)
    sizes: Tensor  # (C K, 1)
    gaps: Tensor  # (K - 1,), differences of beta
    turns: Tensor  # (2, K - 1), bool, pairs that may swap in even and in odd transitions
    here: Tensor  # (K,), places on the ladder
    first_rows: Tensor  # (C, 1), where the lanes of each chain begin

    @classmethod
    def of(cls, inverse_temperatures: Tensor, step_sizes: Tensor, num_chains: int, like: Tensor) -> Ladder:
        beta, num = inverse_temperatures.to(like), len(inverse_temperatures)
        here = torch.arange(num, device=like.device)
        return cls(
            inverse_temperatures,
            step_sizes,
            beta.repeat(num_chains),
            step_sizes.to(like).repeat(num_chains)[:, None],
            -beta.diff(),
            torch.stack([here[:-1] % 2 == parity for parity in (0, 1)]),
            here,
            num * torch.arange(num_chains, device=like.device)[:, None],
        )

    def with_steps(self, step_sizes: Tensor) -> Ladder:
        """The same temperatures with other step sizes."""
        num_chains = len(self.first_rows)
        return self._replace(step_sizes=step_sizes, sizes=step_sizes.to(self.sizes).repeat(num_chains)[:, None])


class ExchangeState(NamedTuple):
    """Where each lane is, who is where, with what they move, and what has been learned so far.

    From a reference, what is called likelihood here is the ratio of the joint density to it.
    """

    theta: Tensor  # (C K, D)
    log_likelihood: Tensor  # (C K,)
    grad_likelihood: Tensor  # (C K, D)
    replica: Tensor  # (C, K), which of a chain's K travellers is at each temperature
    count: int  # type: ignore[assignment]  # transitions made, which decides on the pairs that are due
    ladder: Ladder
    metric: Metric
    warmup: Round | None  # None where nothing adapts, and when it has ended


@dataclass(frozen=True, eq=False)
class ReplicaExchange:
    """Replica exchange over the inverse temperature of the likelihood, on top of HMC.

    One transition proposes swaps between neighbours, then explores at every temperature by a transition of HMC. Pairs
    (0, 1), (2, 3), ... take turns with (1, 2), (3, 4), ...: this fixed order lets a position travel in one direction
    for long (Okabe et al. 2001; Syed, Bouchard-Côté, Deligiannidis and Doucet 2021). All temperatures of all chains
    are lanes of one batch, so that a transition costs ``num_temperatures`` times the gradients of HMC's.

    Swaps: k and k + 1 trade places with probability min(1, exp((beta_k - beta_k+1) (l_k+1 - l_k))), where l is the log
    likelihood. With HMC's transitions they leave the product of the tempered densities of each chain invariant. Per
    transition it draws, from the generator, uniforms ``(C, K - 1)`` for swaps and ``(C K, 1)`` for step sizes, then
    what HMC does.

    A warm-up learns the ladder, for swaps that fail equally often between all neighbours, and a step size for every
    temperature: in rounds, each twice as long as the one before. After each but the last the ladder is set anew from
    how often swaps failed in it (Syed et al. 2021, algorithm 4). Without a warm-up, HMC's step size is used at all
    temperatures.

    With a reference q, normalised, the density at beta is ``q(theta)^(1 - beta) [prior(theta) likelihood(theta)]^beta``
    (Surjanovic, Syed, Bouchard-Côté and Campbell 2022): q takes the prior's place, and ``prior likelihood / q`` that of
    the likelihood, in swaps, in `Tempering` and in the evidence. This path runs in torch, with native gradients; the
    one from the prior has native code for whole transitions of small networks.

    Args:
        kernel: explores at each temperature.
        num_temperatures: K, at least 2; about twice the communication barrier (`Tempering.barrier`) is enough.
        inverse_temperatures: the ladder, shape ``(K,)``, rising from 0 to 1; None for one that is dense near 0.
        step_sizes: one for each temperature, ``(K,)``.
        reference: the hot end, by standard deviations of independent normals with mean 0, ``(D,)``, such as
            `fit_reference` finds; None for the prior.

    Raises:
        TypeError: if the kernel is another one.
        ValueError: if there are less than 2 temperatures, or a ladder, step sizes or a reference that don't fit.
    """

    kernel: HMC
    num_temperatures: int = 16
    inverse_temperatures: Tensor | None = None
    step_sizes: Tensor | None = None
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        _check.instance("kernel", self.kernel, HMC, "an HMC kernel, such as HMC(step_size=0.05, num_steps=8)")
        if self.kernel.num_steps is None:
            raise ValueError(
                "replica exchange does not find how many steps its kernel makes: say how many, as in "
                "HMC(step_size=0.05, num_steps=8)"
            )
        if self.kernel.dense_mass:
            raise ValueError("replica exchange learns no mass: leave dense_mass out of its kernel, or give it inv_mass")
        num = _check.whole("num_temperatures", self.num_temperatures, 2)
        tensors = {name: getattr(self, name) for name in ("inverse_temperatures", "step_sizes", "reference")}
        tensors = {k: None if values is None else _check.tensor(k, values).detach() for k, values in tensors.items()}
        _check.settle(self, num_temperatures=num, **tensors)
        beta, sizes, sd = tensors.values()
        if beta is not None and (beta.shape != (num,) or beta[0] != 0 or beta[-1] != 1 or not (beta.diff() > 0).all()):
            raise ValueError(
                f"inverse_temperatures must be {num} numbers that rise from 0, the prior, to 1, the posterior; got "
                f"{beta.tolist()}"
            )
        if sizes is not None and (sizes.shape != (num,) or not ((sizes > 0) & sizes.isfinite()).all()):
            raise ValueError(f"step_sizes must be {num} positive and finite numbers, got {sizes.tolist()}")
        if sd is not None and (sd.ndim != 1 or not ((sd > 0) & sd.isfinite()).all()):
            bad = sd[~((sd > 0) & sd.isfinite())].flatten()[:1].tolist()
            raise ValueError(
                "reference must be standard deviations (D,), one for each parameter, positive and finite; got "
                f"{f'the value {bad[0]:g}' if bad else f'the shape {tuple(sd.shape)}'}"
            )

    @property
    def lanes_per_chain(self) -> int:
        return self.num_temperatures

    @property
    def num_steps(self) -> int:
        """Leapfrog steps of each lane in a transition."""
        assert self.kernel.num_steps is not None  # or it was refused
        return self.kernel.num_steps

    def ladder(self, like: Tensor) -> Tensor:
        """Inverse temperatures to begin with, ``(K,)``."""
        if self.inverse_temperatures is not None:
            return self.inverse_temperatures.to(like)
        return torch.linspace(0, 1, self.num_temperatures, dtype=like.dtype, device=like.device) ** FIRST_LADDER_POWER

    def steps_at(self, like: Tensor) -> Tensor:
        """Step sizes to begin with, ``(K,)``."""
        if self.step_sizes is not None:
            return self.step_sizes.to(like)
        return like.new_full((self.num_temperatures,), self.kernel.step_size)

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> ExchangeState:
        """The state of chains at theta, ``(C, D)``: all temperatures of a chain start where it does.

        Raises:
            ValueError: if the mass or the reference is of another number of parameters.
        """
        num = self.num_temperatures
        lanes = theta.repeat_interleave(num, dim=0)
        replica = torch.arange(num, device=theta.device).repeat(len(theta), 1)
        like = torch.zeros((), dtype=torch.float64)  # in which a warm-up learns, on the CPU
        sizes = self.steps_at(like)
        for size in sizes.tolist():
            check_step_size(size, theta)
        return ExchangeState(
            lanes,
            *_finite(*path_of(density, self.reference).ratio.log_prob_and_grad(lanes)),
            replica,
            0,
            Ladder.of(self.ladder(like), sizes, len(theta), theta),
            metric(self.kernel.inv_mass, theta),
            Round.start(num_warmup, 0, Teachers.start(len(theta), num), sizes) if num_warmup else None,
        )

    def step(self, density: Density, generator: torch.Generator, state: ExchangeState) -> tuple[ExchangeState, Info]:
        """One transition: swaps, then HMC at every temperature."""
        native = self._native(density)
        if native is not None:
            after, made = self._in_native_code(native, generator, state, 1)
            made = Exchanges(*(values[:, 0] for values in made))
        else:
            after, made = self._in_torch(density, generator, state)
        info = Info(*self._info(made))
        if state.warmup is not None:
            swap_rates = _swap_ratio(state).clamp(max=0).exp()
            after = _learn(after, info.stats["tempering_acceptance_rate"], swap_rates)
        return after, info

    def steps(
        self, density: Density, generator: torch.Generator, state: ExchangeState, num: int
    ) -> tuple[ExchangeState, Info] | NotImplementedType:
        """Many transitions at once, where there is native code for them: a warm-up looks at each before the next."""
        has_own_step = type(self).step is not ReplicaExchange.step  # a subclass may have one
        native = self._native(density)
        if native is None or state.warmup is not None or has_own_step:
            return NotImplemented
        after, made = self._in_native_code(native, generator, state, num)
        return after, Info.of_many(*self._info(made))

    def _native(self, density: Density) -> Native | None:
        """Native code knows the path from the prior."""
        return density.joint.native if self.reference is None else None

    def _in_torch(
        self, density: Density, generator: torch.Generator, state: ExchangeState
    ) -> tuple[ExchangeState, Exchanges]:
        (num_chains, num), ladder = state.replica.shape, state.ladder

        def by_chain(values: Tensor) -> Tensor:
            return values.view(num_chains, num)

        log_ratio = _swap_ratio(state)
        u = torch.rand(log_ratio.shape, generator=generator, dtype=log_ratio.dtype, device=log_ratio.device)
        swapped = ((log_ratio > u.log()) & ladder.turns[state.count % 2]).long()
        source = ladder.here + F.pad(swapped, (0, 1)) - F.pad(swapped, (1, 0))  # whose position comes here
        rows = (ladder.first_rows + source).flatten()

        tempered = Tempered(path_of(density, self.reference), ladder.beta)
        lanes = tempered.position(state.theta[rows], state.log_likelihood[rows], state.grad_likelihood[rows])
        size = jittered(ladder.sizes, self._jitter, generator, state.theta)
        proposal = propose(generator, lanes, tempered, size, self.num_steps, state.metric)
        lanes, is_accept = accept(generator, lanes, proposal)
        after = state._replace(
            theta=lanes.theta,
            log_likelihood=lanes.log_likelihood,
            grad_likelihood=lanes.grad_likelihood,
            replica=state.replica.gather(1, source),
            count=state.count + 1,
        )
        cold = lanes.theta.view(num_chains, num, -1)[:, -1].clone()  # a view would keep all lanes in memory
        return after, Exchanges(
            cold,
            by_chain(lanes.log_prob),
            by_chain(lanes.log_likelihood),
            by_chain(proposal.start_energy),
            by_chain(proposal.end_energy),
            by_chain(is_accept),
            after.replica,
            by_chain(size),
        )

    def _in_native_code(
        self, native: Native, generator: torch.Generator, state: ExchangeState, num: int
    ) -> tuple[ExchangeState, Exchanges]:
        start, ladder = (state.theta, state.log_likelihood, state.grad_likelihood, state.replica), state.ladder
        of_ladder = ladder.beta, ladder.gaps, ladder.sizes
        end, made = native.exchanges(
            generator, start, of_ladder, state.count, self._jitter, self.num_steps, *state.metric, num
        )
        return ExchangeState(*end, state.count + num, ladder, state.metric, state.warmup), made

    @property
    def _jitter(self) -> float:
        return STEP_JITTER if self.kernel.jitter is None else self.kernel.jitter

    def _info(self, made: Exchanges) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Theta, log probability and statistics of the posterior's lanes, and what is recorded of all temperatures."""

        def cold(values: Tensor) -> Tensor:
            return values[..., -1].clone()

        stats = {"is_accept": cold(made.is_accept), "n_steps": self.num_steps, "step_size": cold(made.step_size)}
        energies = {"start_energy": cold(made.start_energy), "end_energy": cold(made.end_energy)}
        tempering = {
            LADDER + ("log_likelihood" if self.reference is None else "log_ratio"): made.log_likelihood,
            "tempering_replica": made.replica,
            "tempering_acceptance_rate": acceptance_rate(made.start_energy, made.end_energy),
        }
        return made.theta, cold(made.log_prob), stats | energies | tempering

    def moved(self, state: ExchangeState, move: Callable[[Tensor], Tensor]) -> ExchangeState:
        """The state where a symmetry of both ends of the path brings it."""
        return state._replace(theta=move(state.theta), grad_likelihood=move(state.grad_likelihood))

    def adapted(self, state: ExchangeState) -> ReplicaExchange:
        """The kernel with the ladder and the step sizes of a state."""
        ladder = state.ladder
        return replace(self, inverse_temperatures=ladder.inverse_temperatures, step_sizes=ladder.step_sizes)

    def __repr__(self) -> str:
        sizes = "" if self.step_sizes is None else f", step sizes {self.step_sizes[-1]:.2g} to {self.step_sizes[0]:.2g}"
        sd = self.reference
        hot = "" if sd is None else f", from a reference with standard deviations {sd.min():.2g} to {sd.max():.2g}"
        return f"ReplicaExchange({self.kernel!r}, {self.num_temperatures} temperatures{sizes}{hot})"


def _swap_ratio(state: ExchangeState) -> Tensor:
    """Logs of the ratios of densities by which neighbours swap, ``(C, K - 1)``."""
    return state.ladder.gaps * state.log_likelihood.view(state.replica.shape).diff(dim=1)


class Tempered:
    """The log density of lanes at inverse temperatures beta ``(C K,)``, as HMC takes it."""

    def __init__(self, path: Path, beta: Tensor) -> None:
        self._prior, self._likelihood, self._beta = path.start, path.ratio, beta
        self.native = None  # it makes whole transitions where there is some

    def position(self, theta: Tensor, log_likelihood: Tensor, grad_likelihood: Tensor) -> TemperedPosition:
        log_prior, grad_prior = self._prior.log_prob_and_grad(theta)
        log_prob = torch.addcmul(log_prior, self._beta, log_likelihood)
        grad = torch.addcmul(grad_prior, self._beta[:, None], grad_likelihood)
        return TemperedPosition(theta, log_prob, grad, log_likelihood, grad_likelihood)

    def log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, ...]:
        """What a `TemperedPosition` holds beside theta."""
        return self.position(theta, *_finite(*self._likelihood.log_prob_and_grad(theta)))[1:]

    def grad(self, theta: Tensor) -> Tensor:
        grad_likelihood = self._likelihood.grad(theta).nan_to_num(0, 0, 0)
        return torch.addcmul(self._prior.grad(theta), self._beta[:, None], grad_likelihood)


def _finite(log_likelihood: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """A likelihood of 0, or one that overflows, as the smallest there is: at beta = 0 it must count for nothing."""
    lowest = torch.finfo(log_likelihood.dtype).min
    return log_likelihood.nan_to_num(lowest, lowest, lowest), grad.nan_to_num(0, 0, 0)


# --- warm-up ----------------------------------------------------------------------------------------------------------


def _learn(state: ExchangeState, rates: Tensor, swap_rates: Tensor) -> ExchangeState:
    """What a transition has taught: acceptance rates ``(C, K)``, and probabilities of swaps ``(C, K - 1)``."""
    warmup = state.warmup
    assert warmup is not None  # or nothing is learned
    count, since = warmup.count + 1, warmup.since + 1
    teachers = warmup.teachers.update(rates, warmup.steps.x)
    steps = warmup.steps.update(TARGET_ACCEPTANCE - teachers.mean(rates).cpu().double())
    both = teachers.teach[:, 1:] & teachers.teach[:, :-1]
    swaps = warmup.swap_rates + mean(swap_rates.cpu().double(), both | ~both.any(0))  # at worst, of all chains
    beta, ends = state.ladder.inverse_temperatures, rounds(warmup.num)
    if count not in ends:
        warmup = Round(warmup.num, count, teachers, steps, swaps, since)
        return state._replace(ladder=state.ladder.with_steps(steps.step_size), warmup=warmup)
    if count == warmup.num:
        return state._replace(ladder=state.ladder.with_steps(steps.final), warmup=None)
    new = equal_rejection(beta, 1 - swaps / since)
    sizes = torch.from_numpy(np.interp(new, beta, steps.final.log())).exp()
    warmup = Round.start(warmup.num, count, teachers, sizes)
    return state._replace(ladder=Ladder.of(new, sizes, len(rates), state.theta), warmup=warmup)


def rounds(num_warmup: int) -> list[int]:
    """At which transitions the rounds of a warm-up end; each is twice as long as the one before."""
    num = min(MOST_ROUNDS, (num_warmup // FEWEST_IN_A_ROUND + 1).bit_length() - 1) or 1
    return [num_warmup * (2**k - 1) // (2**num - 1) for k in range(1, num + 1)]


def equal_rejection(beta: Tensor, rejection: Tensor) -> Tensor:
    """A ladder of as many temperatures between which swaps fail equally often.

    The sum of rejection rates from the prior up to beta hardly depends on the ladder that it is measured on: it is the
    communication barrier. The new temperatures divide it evenly, by monotone interpolation (Fritsch and Carlson 1980).

    Args:
        beta: the ladder so far, ``(K,)``.
        rejection: fraction of swaps between its neighbours that fail, ``(K - 1,)``.
    """
    from scipy.interpolate import PchipInterpolator

    # Where no swap ever fails the barrier is flat, and could not be inverted.
    barrier = np.concatenate([[0], np.cumsum(rejection.numpy() + 1e-6)])
    ladder = PchipInterpolator(barrier, beta.numpy())(np.linspace(0, barrier[-1], len(beta)))
    ladder[0], ladder[-1] = 0, 1  # interpolation rounds
    return torch.from_numpy(ladder)
