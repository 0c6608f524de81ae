r"""Replica exchange (parallel tempering): chains between the prior and the posterior that swap places.

At inverse temperature beta a chain samples ``prior(theta) likelihood(theta)^beta``: the prior at beta = 0, where
nothing is in its way, and the posterior at beta = 1. Neighbours on the ladder of temperatures propose to swap their
positions. So a network that the cold chain could never have walked to comes down to it from the prior, step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bnn_utils import _check
from bnn_utils.adaptation import TARGET_ACCEPTANCE, DualAveraging
from bnn_utils.backprop import Target
from bnn_utils.hmc import HMC, HMCInfo, accept, acceptance_rate, metric, propose

# A ladder to begin with: dense near the prior, where the likelihood takes hold first.
FIRST_LADDER_POWER = 4
# Step sizes vary by this fraction up and down, where the kernel has no jitter of its own. At the hot end, where the
# target is the prior, all elements may swing with one period, and trajectories of just that length would end where they
# started (Neal 2011, section 5.3.2).
STEP_JITTER = 0.2

FEWEST_IN_A_ROUND, MOST_ROUNDS = 10, 6  # transitions in the first round of a warm-up, and rounds


class TemperedState(NamedTuple):
    """Where each lane is; lane c K + k is chain c at temperature k. The first three are those of `HMCState`."""

    theta: Tensor  # (C K, D)
    log_prob: Tensor  # (C K,), log prior + beta log likelihood
    grad: Tensor  # (C K, D), gradient of log_prob
    log_likelihood: Tensor  # (C K,)
    grad_likelihood: Tensor  # (C K, D)


class ExchangeState(NamedTuple):
    """Where each lane is, who is where, and the number of transitions made. Nothing in it depends on the ladder."""

    theta: Tensor  # (C K, D)
    log_likelihood: Tensor  # (C K,)
    grad_likelihood: Tensor  # (C K, D)
    replica: Tensor  # (C, K), which of a chain's K travellers is at each temperature
    count: int


class ExchangeInfo(NamedTuple):
    """What happened in one transition."""

    theta: Tensor  # (C, D), where the lanes at beta = 1 are
    log_prob: Tensor  # (C,), their log joint density
    cold: HMCInfo  # (C,), their trajectories
    acceptance_rate: Tensor  # (C, K), of all trajectories
    log_likelihood: Tensor  # (C, K)
    replica: Tensor  # (C, K)
    swap_rate: Tensor  # (C, K - 1), probability that a swap of neighbours is accepted, proposed or not


@dataclass(frozen=True, eq=False)
class ReplicaExchange:
    """Replica exchange over the inverse temperature of the likelihood, on top of HMC.

    One transition proposes swaps between neighbours, then explores at every temperature by a transition of HMC. Pairs
    (0, 1), (2, 3), ... take turns with (1, 2), (3, 4), ...: this fixed order lets a position travel in one direction
    for long (Okabe et al. 2001; Syed, Bouchard-Côté, Deligiannidis and Doucet 2021). All temperatures of all chains
    are lanes of one batch, so that a transition costs ``num_temperatures`` times the gradients of HMC's.

    A warm-up learns the ladder, for swaps that fail equally often between all neighbours, and a step size for every
    temperature. Without one, HMC's step size is used at all of them.

    Args:
        kernel: explores at each temperature.
        num_temperatures: K, at least 2; about twice the communication barrier (`Tempering.barrier`) is enough.
        inverse_temperatures: the ladder, shape ``(K,)``, rising from 0 to 1; None for one that is dense near 0.
        step_sizes: one for each temperature, ``(K,)``.

    Raises:
        TypeError: if the kernel is another one.
        ValueError: if there are less than 2 temperatures, or a ladder or step sizes that don't fit.
    """

    kernel: HMC
    num_temperatures: int = 16
    inverse_temperatures: Tensor | None = None
    step_sizes: Tensor | None = None

    def __post_init__(self) -> None:
        _check.instance("kernel", self.kernel, HMC, "an HMC kernel, such as HMC(step_size=0.05, num_steps=8)")
        num = _check.whole("num_temperatures", self.num_temperatures, 2)
        beta, sizes = (
            None if values is None else _check.tensor(name, values).detach()
            for name, values in (("inverse_temperatures", self.inverse_temperatures), ("step_sizes", self.step_sizes))
        )
        _check.settle(self, num_temperatures=num, inverse_temperatures=beta, step_sizes=sizes)
        if beta is not None and (beta.shape != (num,) or beta[0] != 0 or beta[-1] != 1 or not (beta.diff() > 0).all()):
            raise ValueError(
                f"inverse_temperatures must be {num} numbers that rise from 0, the prior, to 1, the posterior; got "
                f"{beta.tolist()}"
            )
        if sizes is not None and (sizes.shape != (num,) or not ((sizes > 0) & sizes.isfinite()).all()):
            raise ValueError(f"step_sizes must be {num} positive and finite numbers, got {sizes.tolist()}")

    @property
    def lanes_per_chain(self) -> int:
        return int(self.num_temperatures)

    @property
    def num_steps(self) -> int:
        """Leapfrog steps of each lane in a transition."""
        return int(self.kernel.num_steps)

    def ladder(self, like: Tensor) -> Tensor:
        """Inverse temperatures, ``(K,)``."""
        if self.inverse_temperatures is not None:
            return self.inverse_temperatures.to(like)
        return torch.linspace(0, 1, self.lanes_per_chain, dtype=like.dtype, device=like.device) ** FIRST_LADDER_POWER

    def steps(self, like: Tensor) -> Tensor:
        """Step sizes, ``(K,)``."""
        if self.step_sizes is not None:
            return self.step_sizes.to(like)
        return like.new_full((self.lanes_per_chain,), self.kernel.step_size)

    def init(self, likelihood: Target, theta: Tensor) -> ExchangeState:
        """The state of chains at theta, ``(C, D)``: all temperatures of a chain start where it does."""
        num = self.lanes_per_chain
        lanes = theta.repeat_interleave(num, dim=0)
        replica = torch.arange(num, device=theta.device).repeat(len(theta), 1)
        return ExchangeState(lanes, *_finite(*likelihood.log_prob_and_grad(lanes)), replica, 0)

    def build_kernel(
        self, prior: Target, likelihood: Target, like: Tensor
    ) -> Callable[[torch.Generator, ExchangeState], tuple[ExchangeState, ExchangeInfo]]:
        """One transition, which leaves the product of the tempered densities of each chain invariant.

        Swaps: k and k + 1 trade places with probability min(1, exp((beta_k - beta_k+1) (l_k+1 - l_k))), where l is the
        log likelihood. Then a transition of HMC at every temperature.

        Per transition it draws, from the generator, uniforms ``(C, K - 1)`` for swaps and ``(C K, 1)`` for step sizes,
        then what HMC does.

        Args:
            prior, likelihood: log densities and gradients, as from `Posterior.split_target`.
            like: positions of the chains, ``(C, D)``, for shape, dtype and device.
        """
        num_chains, num = len(like), self.lanes_per_chain
        ladder, kinetic = self.ladder(like), metric(self.kernel.inv_mass)
        jitter = STEP_JITTER if self.kernel.jitter is None else self.kernel.jitter
        beta, sizes = ladder.repeat(num_chains), self.steps(like).repeat(num_chains)[:, None]
        beta_rows, gaps = beta[:, None], -ladder.diff()
        here = torch.arange(num, device=like.device)
        first_rows = num * torch.arange(num_chains, device=like.device)[:, None]
        turns = [here[:-1] % 2 == parity for parity in (0, 1)]
        uniform = partial(torch.rand, dtype=like.dtype, device=like.device)

        def temper(theta: Tensor, log_likelihood: Tensor, grad_likelihood: Tensor) -> TemperedState:
            log_prior, grad_prior = prior.log_prob_and_grad(theta)
            log_prob = torch.addcmul(log_prior, beta, log_likelihood)
            grad = torch.addcmul(grad_prior, beta_rows, grad_likelihood)
            return TemperedState(theta, log_prob, grad, log_likelihood, grad_likelihood)

        def evaluate(theta: Tensor) -> tuple[Tensor, ...]:
            return temper(theta, *_finite(*likelihood.log_prob_and_grad(theta)))[1:]

        def grad(theta: Tensor) -> Tensor:
            return torch.addcmul(prior.grad(theta), beta_rows, likelihood.grad(theta).nan_to_num(0, 0, 0))

        def transition(generator: torch.Generator, state: ExchangeState) -> tuple[ExchangeState, ExchangeInfo]:
            log_ratio = gaps * state.log_likelihood.view(num_chains, num).diff(dim=1)
            u = uniform(log_ratio.shape, generator=generator)
            swapped = ((log_ratio > u.log()) & turns[state.count % 2]).long()
            source = here + F.pad(swapped, (0, 1)) - F.pad(swapped, (1, 0))  # whose position comes here
            rows = (first_rows + source).flatten()
            lanes = temper(state.theta[rows], state.log_likelihood[rows], state.grad_likelihood[rows])

            size = sizes * (1 + jitter * (2 * uniform(sizes.shape, generator=generator) - 1))
            proposal = propose(generator, lanes, evaluate, size, self.num_steps, kinetic, grad)
            lanes, is_accept = accept(generator, lanes, proposal)

            def by_chain(values: Tensor) -> Tensor:
                return values.view(num_chains, num, *values.shape[1:])

            def cold(values: Tensor) -> Tensor:
                return by_chain(values)[:, -1].clone()  # a view would keep all lanes in memory

            start, end = proposal.start_energy, proposal.end_energy
            info = ExchangeInfo(
                theta=cold(lanes.theta),
                log_prob=cold(lanes.log_prob),
                cold=HMCInfo(cold(start), cold(end), cold(is_accept), self.num_steps, cold(size.squeeze(1))),
                acceptance_rate=by_chain(acceptance_rate(start, end)),
                log_likelihood=by_chain(lanes.log_likelihood),
                replica=state.replica.gather(1, source),
                swap_rate=log_ratio.clamp(max=0).exp(),
            )
            theta, _, _, log_likelihood, grad_likelihood = lanes
            return ExchangeState(theta, log_likelihood, grad_likelihood, info.replica, state.count + 1), info

        return transition

    def __repr__(self) -> str:
        sizes = "" if self.step_sizes is None else f", step sizes {self.step_sizes[-1]:.2g} to {self.step_sizes[0]:.2g}"
        return f"ReplicaExchange({self.kernel!r}, {self.num_temperatures} temperatures{sizes})"


def _finite(log_likelihood: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """A likelihood of 0, or one that overflows, as the smallest there is: at beta = 0 it must count for nothing."""
    lowest = torch.finfo(log_likelihood.dtype).min
    return log_likelihood.nan_to_num(lowest, lowest, lowest), grad.nan_to_num(0, 0, 0)


class ExchangeWarmup:
    """Learns the ladder in rounds, each twice as long as the one before, and all the time a step size per temperature.

    After each round but the last the ladder is set anew from how often swaps failed in it (Syed, Bouchard-Côté,
    Deligiannidis and Doucet 2021, algorithm 4). Chains share what is learned.

    Attributes:
        kernel: with which to make the next transition; after the last update, the one to draw with.
    """

    def __init__(self, kernel: ReplicaExchange, num_warmup: int) -> None:
        like = torch.zeros((), dtype=torch.float64)
        self.kernel = replace(kernel, inverse_temperatures=kernel.ladder(like), step_sizes=kernel.steps(like))
        self._ends = rounds(num_warmup)
        self._count = 0
        self._start_round()

    def _start_round(self) -> None:
        self._steps = DualAveraging.start(self.kernel.step_sizes)
        self._swap_rates: list[Tensor] = []

    def update(self, info: ExchangeInfo) -> None:
        self._count += 1
        rate = info.acceptance_rate.mean(0).cpu().double()
        self._steps = self._steps.update(TARGET_ACCEPTANCE - rate)
        self._swap_rates.append(info.swap_rate)
        if self._count != self._ends[0]:
            self.kernel = replace(self.kernel, step_sizes=self._steps.step_size)
            return
        self._ends.pop(0)
        self.kernel = replace(self.kernel, step_sizes=self._steps.final)
        if self._ends:
            rejection = 1 - torch.stack(self._swap_rates).cpu().double().mean((0, 1))
            before, log_sizes = self.kernel.inverse_temperatures, self.kernel.step_sizes.log()
            ladder = equal_rejection(before, rejection)
            sizes = torch.from_numpy(np.interp(ladder, before, log_sizes)).exp()
            self.kernel = replace(self.kernel, inverse_temperatures=ladder, step_sizes=sizes)
            self._start_round()


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
