"""Stochastic gradients: SGLD and SGHMC, which look at a minibatch in each step and leave Metropolis' correction out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.kernels.base import Info
from bnn_utils.kernels.hmc import check_step_size

if TYPE_CHECKING:
    from bnn_utils.density import Density


class StochasticState(NamedTuple):
    """Where each lane is, and how it got there. Minibatches are drawn anew in each epoch, between which states are."""

    theta: Tensor  # (C, D)
    momentum: Tensor  # (C, D), the step that led to theta, v
    epoch: int  # how many there were


def step(
    theta: Tensor, v: Tensor, grad: Tensor, step_size: float, friction: float, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""A step along an estimate of the gradient, with standard normal noise, or None for none; each ``(C, D)``.

    v <- (1 - alpha) v + eps/2 grad + Normal(0, alpha eps);  theta <- theta + v

    (Chen, Fox and Guestrin 2014, eq. 15, with eta = eps/2 and no estimate of the gradient's noise; there theta moves
    first, which is the same sequence of steps.) With alpha = 1 nothing is left of v, and it is

    theta <- theta + eps/2 grad + Normal(0, eps)   (Welling and Teh 2011, eq. 4)
    """
    v = torch.add((1 - friction) * v, grad, alpha=step_size / 2)
    if noise is not None:
        v.add_(noise, alpha=math.sqrt(friction * step_size))
    return theta + v, v


@dataclass(frozen=True, eq=False, repr=False)
class SGLD:
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011), for data too large for a gradient of all points.

    **Draws are approximate.** No step is ever rejected, so that the size of the steps and the error of gradients from
    minibatches bias them, by an amount of the order of the step size. Run it once more with half of it: what changes by
    more than its standard error has changed by about half of its bias.

    A transition is one epoch: every point is looked at once, in minibatches that each lane draws for itself
    (`bnn_utils.gradients.minibatches`). So an epoch's order never has to be stored, and draws are as far apart as is
    usual. What is recorded as ``lp`` is the mean, over the steps of the epoch, of the log density as estimated from the
    minibatch before the step. It costs nothing more. It is not the log density at the draw, though close to it where
    parameters move little in an epoch: for that, ask ``posterior.log_prob``.

    With a ``cycle_length`` step sizes begin anew in each cycle and follow half a cosine (Zhang et al. 2020, eq. 1):

    eps_k = step_size / 2 (cos(pi k / K) + 1)   in step k of the K steps of a cycle

    The first epochs of a cycle explore, without noise: where they lead belongs to no posterior. They are part of the
    first transition of each cycle, so that all that is recorded was drawn by the sampling epochs that follow. That
    transition takes longer, and a run can be interrupted between transitions only. Each sampling epoch is a draw.

    Nothing adapts: the transitions of a ``warmup`` are thrown away.

    Of each epoch every lane draws, from the generator, a permutation of the points, unless the minibatch is all of
    them; then each sampling step draws a normal ``(C, D)``.

    Statistics: ``epoch``, how many there were so far, those that explore among them; ``n_steps`` of the transition;
    ``step_size`` of its last step.

    Args:
        step_size: eps, in units of theta squared: steps without a gradient have a standard deviation of its square
            root. It must be small beside the posterior's smallest variance, which is in inverse proportion to the
            number of points.
        batch_size: points in a minibatch, at most. With all of them gradients are exact, and only steps bias the draws.
        cycle_length: epochs in a cycle; None for step sizes that stay the same.
        exploration: fraction of a cycle's epochs that explore, rounded to whole ones.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if a step size is not positive, a count not at least 1, a fraction not in [0, 1), or a cycle has no
            epoch left to sample in.
    """

    step_size: float
    batch_size: int
    cycle_length: int | None = field(default=None, kw_only=True)
    exploration: float = field(default=0.8, kw_only=True)

    lanes_per_chain: ClassVar[int] = 1
    friction: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        length = self.cycle_length
        _check.settle(
            self,
            step_size=_check.positive("step_size", self.step_size),
            batch_size=_check.whole("batch_size", self.batch_size, 1),
            cycle_length=None if length is None else _check.whole("cycle_length", length, 1),
            exploration=float(_check.number("exploration", self.exploration, "a fraction")),
        )
        if not 0 <= self.exploration < 1:
            raise ValueError(
                f"exploration must be a fraction, 0 or more and less than 1, got {self.exploration:g}; with 0.8, four "
                "fifths of each cycle explore"
            )
        if self.num_exploring == length:
            raise ValueError(
                f"exploration={self.exploration:g} leaves none of a cycle's {length} epochs to sample in: take a "
                "longer cycle_length, or explore less"
            )

    @property
    def num_exploring(self) -> int:
        """Epochs at the start of each cycle that explore."""
        return round(self.exploration * (self.cycle_length or 0))

    def step_size_at(self, epoch: float) -> float:
        """After so many epochs, which need not be whole."""
        if self.cycle_length is None:
            return self.step_size
        return self.step_size / 2 * (math.cos(math.pi * (epoch / self.cycle_length % 1)) + 1)

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> StochasticState:
        """The state of lanes at theta, shape ``(C, D)``, at rest."""
        check_step_size(self.step_size, theta)
        return StochasticState(theta, torch.zeros_like(theta), 0)

    def step(
        self, density: Density, generator: torch.Generator, state: StochasticState
    ) -> tuple[StochasticState, Info]:
        """One transition of all lanes: an epoch, after those that explore where a cycle begins."""
        begins = self.cycle_length is not None and state.epoch % self.cycle_length == 0
        num_epochs, num_steps = 1 + self.num_exploring * begins, 0
        for left in reversed(range(num_epochs)):
            state, log_prob, sizes = self._epoch(density, generator, state, explores=left > 0)
            num_steps += len(sizes)
        return state, Info(state.theta, log_prob, {"epoch": state.epoch, "n_steps": num_steps, "step_size": sizes[-1]})

    def moved(self, state: StochasticState, move: Callable[[Tensor], Tensor]) -> StochasticState:
        """The state where a symmetry of the density brings it."""
        return state._replace(theta=move(state.theta), momentum=move(state.momentum))

    def _epoch(
        self, density: Density, generator: torch.Generator, state: StochasticState, explores: bool
    ) -> tuple[StochasticState, Tensor, list[float]]:
        """Where an epoch leads, its estimate of the log density ``(C,)``, and the sizes of its steps."""
        theta, v, epoch = state
        minibatches = density.minibatches
        batches = minibatches.epoch(generator, self.batch_size)
        sizes = [self.step_size_at(epoch + k / len(batches)) for k in range(len(batches))]
        total = theta.new_zeros(len(theta))
        for places, size in zip(batches, sizes, strict=True):
            log_prob, grad = minibatches.log_prob_and_grad(theta, places)
            total.add_(log_prob, alpha=places.shape[1] / minibatches.num_points)
            noise = None
            if not explores:
                noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
            theta, v = step(theta, v, grad, size, self.friction, noise)
        return StochasticState(theta, v, epoch + 1), total, sizes

    def __repr__(self) -> str:
        friction = f", friction={self.friction:g}" * isinstance(self, SGHMC)
        cycle = "" if self.cycle_length is None else f", cycle_length={self.cycle_length}"
        exploration = f", exploration={self.exploration:g}" * (self.cycle_length is not None)
        return (
            f"{type(self).__name__}(step_size={self.step_size:g}, batch_size={self.batch_size}{friction}{cycle}"
            f"{exploration})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SGHMC(SGLD):
    """Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox and Guestrin 2014): `SGLD` with momentum, and as biased.

    Lanes keep most of their last step and go on in its direction; friction, and noise in proportion to it, take the
    place of fresh momenta. All else is as for `SGLD`, which it is with a friction of 1. Lanes start at rest.

    Args:
        step_size, batch_size, cycle_length, exploration: as in `SGLD`. Its square root is about the length of a step.
        friction: fraction of its momentum that a lane loses in each step, alpha; 0.1 is a momentum of 0.9 as in
            stochastic gradient descent.

    Raises:
        TypeError, ValueError: as `SGLD`, and if the friction is not above 0 and at most 1.
    """

    friction: float = field(default=0.1, kw_only=True)  # type: ignore[misc]  # where `SGLD` has a constant

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.settle(self, friction=float(_check.number("friction", self.friction, "a fraction")))
        if not 0 < self.friction <= 1:
            raise ValueError(
                f"friction must be above 0 and at most 1, got {self.friction:g}; with 0.1, a tenth of the momentum is "
                "lost in each step"
            )
