r"""Symmetries of a network as moves, before the transitions of any kernel.

Exchanging hidden units of a layer, or turning round all that goes into and comes out of a tanh unit, changes theta and
not the function (`bnn_utils.symmetry`). Where the prior treats the units alike, such a map S keeps the density, and its
inverse is as likely to be drawn: theta -> S theta, with S drawn evenly, leaves the posterior invariant and is never
rejected.

What it changes: every chain visits all copies of where it is, so that chains agree about weights as much as they do
about functions, and what is left of a disagreement is no symmetry. What it does not: no prediction mixes better, and no
barrier between functions is crossed. And the weights are those of no unit in particular: every unit of a layer has the
same marginal distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import NotImplementedType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch

from bnn_utils import _check
from bnn_utils.kernels.base import Info, Kernel, adapted, check_kernel
from bnn_utils.symmetry import draw_copies

if TYPE_CHECKING:
    from bnn_utils.density import Density

PROBES = 16  # draws from the prior at which its density is compared with that of a copy

S = TypeVar("S")


class Movable(Kernel[S], Protocol[S]):
    """A kernel whose state can follow a symmetry."""

    def moved(self, state: S, move: Callable[[torch.Tensor], torch.Tensor]) -> S: ...


class SymmetricState(NamedTuple):
    """The state of the kernel that moves, and how many transitions it has made."""

    inner: Any
    count: int  # type: ignore[assignment]

    @property
    def ladder(self) -> Any:
        """The kernel's temperatures, if it has some."""
        return getattr(self.inner, "ladder", None)


@dataclass(frozen=True, eq=False)
class Symmetric:
    """Another kernel, with a random permutation of hidden units, and random signs of tanh units, before transitions.

    theta <- S theta, S one of all copies, drawn evenly for each lane;  then a transition of the kernel

    Before each such move it draws from the generator, for each hidden layer of h units, a uniform ``(lanes, h)`` for
    the order, and for tanh another one for the signs.

    Args:
        kernel: whose transitions they are. Besides `init` and `step` it needs ``moved(state, move) -> state``: the
            state with ``move``, a function of vectors ``(lanes, D)``, applied to places, gradients and velocities.
        every: transitions from one move to the next. A move takes as long as some tens of transitions of a small
            network's one chain.

    Raises:
        TypeError: if this is no kernel, or one that can't be moved.
        ValueError: if ``every`` is not positive; and, when a run begins, if the network's symmetries are not known, or
            the prior does not treat its units alike.
    """

    kernel: Movable[Any]
    every: int = 10

    def __post_init__(self) -> None:
        check_kernel(self.kernel)
        _check.settle(self, every=_check.whole("every", self.every, 1))
        if not callable(getattr(self.kernel, "moved", None)):
            raise TypeError(
                f"{type(self.kernel).__name__} has no moved(state, move) -> state, by which its state would follow a "
                "symmetry; those of this package have one, except Hamiltorch"
            )

    @property
    def lanes_per_chain(self) -> int:
        return self.kernel.lanes_per_chain

    def init(self, density: Density, theta: torch.Tensor, num_warmup: int) -> SymmetricState:
        """The state of chains at theta, shape ``(C, D)``.

        Raises:
            ValueError: if the network's symmetries are not known, or the prior, or the kernel's reference, does not
                treat its units alike.
        """
        _check_prior(density)
        state = SymmetricState(self.kernel.init(density, theta, num_warmup), 0)
        _check_reference(density, getattr(self.kernel, "reference", None))
        return state

    def step(self, density: Density, generator: torch.Generator, state: SymmetricState) -> tuple[SymmetricState, Info]:
        """One transition of all lanes."""
        inner, info = self.kernel.step(density, generator, self._moved(density, generator, state))
        return SymmetricState(inner, state.count + 1), info

    def steps(
        self, density: Density, generator: torch.Generator, state: SymmetricState, num: int
    ) -> tuple[SymmetricState, Info] | NotImplementedType:
        """Many transitions at once, from one move to the next, where the kernel makes many at once."""
        if not hasattr(self.kernel, "steps"):
            return NotImplemented
        made, left, before = [], num, generator.get_state()
        while left:
            length = min(left, self.every - state.count % self.every)
            found = self.kernel.steps(density, generator, self._moved(density, generator, state), length)
            if found is NotImplemented:  # nothing has been drawn then
                generator.set_state(before)
                return NotImplemented
            state, left = SymmetricState(found[0], state.count + length), left - length
            made.append(found[1])
        return state, Info.joined(made)

    def _moved(self, density: Density, generator: torch.Generator, state: SymmetricState) -> Any:
        """The kernel's state before its next transition."""
        if state.count % self.every:
            return state.inner
        copies = draw_copies(density.posterior.flat, density.num_lanes, generator)
        return self.kernel.moved(state.inner, copies)  # type: ignore[arg-type]  # mypy sees no __call__ of a NamedTuple

    def adapted(self, state: SymmetricState) -> Symmetric:
        """With the kernel as a warm-up left it."""
        return replace(self, kernel=adapted(self.kernel, state.inner))

    def __repr__(self) -> str:
        return f"Symmetric({self.kernel!r}{f', every={self.every}' * (self.every != 10)})"


def _check_prior(density: Density) -> None:
    posterior, generator = density.posterior, torch.Generator(density.device).manual_seed(0)
    theta = posterior.probes(PROBES, generator)
    move = draw_copies(posterior.flat, PROBES, generator)
    copies = move(theta)
    before, after = posterior.log_prior(theta), posterior.log_prior(copies)
    tolerance = torch.finfo(theta.dtype).eps ** 0.5
    # Where theta holds weights in units of scales, the weights themselves have to move alike.
    weights = posterior.parameters(copies), move(posterior.parameters(theta))
    are_moved = torch.allclose(*weights, tolerance, tolerance)
    if not (are_moved and torch.allclose(before, after, tolerance, tolerance)):
        raise ValueError(
            f"the prior {posterior.prior!r} does not treat the hidden units of a layer alike: "
            + (
                f"at a draw from it, its log density is {before[0]:.6g}, and {after[0]:.6g} with the units in another "
                "order. "
                if are_moved
                else "their weights have scales of their own, which no move of theta exchanges. "
            )
            + "Symmetries are no moves then: sample without them"
        )


def _check_reference(density: Density, reference: torch.Tensor | None) -> None:
    """As the prior; of one that fits the posterior."""
    if reference is None:
        return
    sd = reference.to(density.device).expand(PROBES, -1)
    generator = torch.Generator(density.device).manual_seed(0)
    moved = draw_copies(density.posterior.flat, PROBES, generator)(sd).abs()
    if not torch.allclose(moved, sd, torch.finfo(density.dtype).eps ** 0.5, 0):
        raise ValueError(
            "the reference does not treat the hidden units of a layer alike, so that symmetries are no moves: take one "
            "of fit_reference, which does"
        )
