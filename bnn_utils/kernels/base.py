r"""What a kernel is: the description of an algorithm, whose state is explicit.

A kernel of one's own is a dozen lines. All that it needs next is in the state that it returns:

>>> from typing import NamedTuple
>>> import torch
>>> from torch import Tensor, nn
>>> class Walk(NamedTuple):
...     theta: Tensor      # (C, D)
...     log_prob: Tensor   # (C,)
>>> class RandomWalk(NamedTuple):
...     '''Metropolis et al. (1953): a normal step, accepted with probability min(1, density there / density here).'''
...     width: float
...     lanes_per_chain = 1
...     def init(self, density, theta, num_warmup):
...         return Walk(theta, density.joint.log_prob_and_grad(theta)[0])
...     def step(self, density, generator, state):
...         noise = torch.randn(state.theta.shape, generator=generator, dtype=state.theta.dtype)
...         u = torch.rand(len(noise), generator=generator, dtype=noise.dtype)
...         there = state.theta + self.width * noise
...         log_prob = density.joint.log_prob_and_grad(there)[0]
...         is_accept = log_prob - state.log_prob > u.log()
...         theta = torch.where(is_accept[:, None], there, state.theta)
...         state = Walk(theta, torch.where(is_accept, log_prob, state.log_prob))
...         return state, Info(*state, {"is_accept": is_accept})
>>> from bnn_utils import Bernoulli, NormalPrior, Posterior, boxes, sample
>>> posterior = Posterior(nn.Linear(2, 1), boxes(), NormalPrior(1.0), Bernoulli())
>>> chain = sample(posterior, RandomWalk(0.3), num_samples=100, num_chains=4, seed=0, progress=False)
>>> chain.draws.shape, sorted(chain.stats)
(torch.Size([4, 100, 3]), ['is_accept', 'lp'])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from bnn_utils import _check

if TYPE_CHECKING:
    from bnn_utils.density import Density

# Energy error at which a trajectory counts as divergent, as in Stan (Betancourt 2017, section 6.2).
MAX_ENERGY_ERROR = 1000.0

# What statistics can't be called: draws and log densities have these names in a chain, and what begins like this is of
# all temperatures, or the value of a function that is recorded (`bnn_utils.keep`).
TAKEN = ("draws", "lp")
LADDER = "tempering_"
KEPT = "kept_"

S = TypeVar("S")
K = TypeVar("K", bound="Kernel[Any]")


class Info(NamedTuple):
    """What is recorded of one transition of C chains; of T transitions, as by `stack`, with shapes ``(C, T, ...)``.

    Statistics have ArviZ's names. Those of a trajectory are recorded as ``start_energy``, ``end_energy`` and
    ``is_accept``; what follows from these, `stack` computes of many transitions at once: a small tensor costs as much
    as a large one.
    """

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    stats: Mapping[str, Any] = {}  # name -> tensor (C, ...), or one number for all chains

    @classmethod
    def stack(cls, infos: Sequence[Info]) -> Info:
        """Many transitions as one."""
        log_prob = torch.stack([info.log_prob for info in infos], dim=1)

        def column(values: list[Any]) -> Tensor:  # tensors, or numbers
            if isinstance(values[0], Tensor):
                return torch.stack(values, dim=1)
            return _as_column(values, log_prob)

        columns = {name: column([info.stats[name] for info in infos]) for name in infos[0].stats}
        return cls(torch.stack([info.theta for info in infos], dim=1), log_prob, statistics(columns))

    @classmethod
    def of_many(cls, theta: Tensor, log_prob: Tensor, stats: Mapping[str, Any]) -> Info:
        """Many transitions that were made at once: the same from columns ``(C, T, ...)``, or one number for all."""
        num = log_prob.shape[1]
        columns = {k: v if isinstance(v, Tensor) else _as_column(num * [v], log_prob) for k, v in stats.items()}
        return cls(theta, log_prob, statistics(columns))

    @classmethod
    def joined(cls, infos: Sequence[Info]) -> Info:
        """What was recorded of many transitions each, one after the other."""
        stats = {name: torch.cat([info.stats[name] for info in infos], dim=1) for name in infos[0].stats}
        theta, log_prob = (torch.cat(values, dim=1) for values in list(zip(*infos, strict=True))[:2])
        return cls(theta, log_prob, stats)

    def only(self) -> Info:
        """Of a single transition that was made as many are: the same with shapes ``(C, ...)``."""
        stats = {name: value[:, 0] if isinstance(value, Tensor) else value for name, value in self.stats.items()}
        return Info(self.theta[:, 0], self.log_prob[:, 0], stats)

    def at(self, places: Sequence[int]) -> Info:
        """Of many transitions those at some places."""
        if len(places) == self.log_prob.shape[1]:
            return self
        return Info(self.theta[:, places], self.log_prob[:, places], {k: v[:, places] for k, v in self.stats.items()})


def _as_column(values: list[float], log_prob: Tensor) -> Tensor:
    """Numbers of T transitions, each the same for all chains, ``(C, T)``."""
    dtype = torch.int64 if isinstance(values[0], int) else log_prob.dtype
    return torch.tensor(values, dtype=dtype, device=log_prob.device).expand(len(log_prob), -1)


def statistics(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """ArviZ's statistics of trajectories, in place of the energies at their two ends."""
    if "start_energy" not in columns:
        return columns
    others = dict(columns)
    start, end = others.pop("start_energy"), others.pop("end_energy")
    error = end - start
    return {
        "acceptance_rate": acceptance_rate(start, end),
        **others,
        "energy": torch.where(columns["is_accept"], end, start),  # of the state that was kept, with its momentum
        "energy_error": error,
        "diverging": diverges(error),
    }


def diverges(energy_error: Tensor) -> Tensor:
    """Whether a trajectory with this energy error is one that lost its way."""
    return ~(energy_error.isfinite() & (energy_error <= MAX_ENERGY_ERROR))


def log_ratio(start: Tensor, end: Tensor) -> Tensor:
    """Log of the density ratio of the trajectory's ends; one that is infinite or not a number is never accepted."""
    return (start - end).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def acceptance_rate(start: Tensor, end: Tensor) -> Tensor:
    """Probability with which a trajectory between these energies is accepted: ``min(1, exp(start - end))``."""
    return log_ratio(start, end).clamp(max=0).exp()


class Kernel(Protocol[S]):
    """A frozen description of an algorithm. It has these three, and may have those that follow.

    ``steps(density, generator, state, num) -> (state, info)``, many transitions at once, stacked, where that is cheaper
    than a loop over ``step``; NotImplemented where it isn't. State, info and generator are to be those of such a loop,
    to the bit: how many at once is decided by the clock.

    ``adapted(state) -> Kernel``, the kernel as a warm-up left it, which samples further without one.

    ``moved(state, move) -> state``, with all places, gradients and velocities of lanes moved by a symmetry of the
    density, a function of vectors ``(lanes, D)``; for `bnn_utils.kernels.symmetric`.

    Attributes:
        lanes_per_chain: rows of theta that one chain needs in a batch, 1 for most.
    """

    @property
    def lanes_per_chain(self) -> int: ...

    def init(self, density: Density, theta: Tensor, num_warmup: int) -> S:
        """The state of chains that start at theta ``(C, D)`` and adapt in their first ``num_warmup`` transitions.

        A state is a NamedTuple of tensors, numbers, None and NamedTuples of these.
        """
        ...

    def step(self, density: Density, generator: torch.Generator, state: S) -> tuple[S, Info]:
        """One transition of all chains. Same density, generator and state, same result."""
        ...


PROTOCOL = (
    "HMC, NUTS, ChEES, MAMS, MCLMC, ReplicaExchange, SGHMC, SGLD or Hamiltorch, such as HMC(step_size=0.05, "
    "num_steps=4), or one of your own: an object with lanes_per_chain, init(density, theta, num_warmup) -> state, and "
    "step(density, generator, state) -> (state, Info); bnn_utils.kernels.base shows one"
)


def check_kernel(kernel: object) -> None:
    """Raise unless this is a kernel."""
    is_kernel = not isinstance(kernel, type) and all(callable(getattr(kernel, name, None)) for name in ("init", "step"))
    if not is_kernel:
        raise TypeError(f"kernel must be {PROTOCOL}; got {_check.told(kernel)}")
    _check.whole(f"lanes_per_chain of {type(kernel).__name__}", getattr(kernel, "lanes_per_chain", None), 1)


def check_info(kernel: Kernel, info: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise unless this is what can be recorded of transitions whose positions have this shape, ``(C, ..., D)``."""
    who = f"{type(kernel).__name__} must return (state, Info) from each step"
    if not isinstance(info, Info):
        raise TypeError(f"{who}, as in bnn_utils.kernels.base; in place of the Info came {_check.told(info)}")
    of_each = shape[:-1]
    for name, values, expected in (("theta", info.theta, shape), ("log_prob", info.log_prob, of_each)):
        if not isinstance(values, Tensor) or (tuple(values.shape), values.dtype) != (expected, dtype):
            raise ValueError(f"{who}, with a {name} of shape {expected} and {dtype}; it is {_check.told(values)}")
    for name, values in info.stats.items():
        if name in TAKEN or name.startswith(KEPT) or (name.startswith(LADDER) and kernel.lanes_per_chain == 1):
            raise ValueError(f"{who}, and a statistic can't be called {name!r}, which means something else in a chain")
        begins = tuple(values.shape[: len(of_each)]) if isinstance(values, Tensor) else None
        if begins != of_each and not isinstance(values, int | float):
            raise ValueError(
                f"{who}, and a statistic is one number or a tensor of shape {(*of_each, '...')}; {name!r} is "
                f"{_check.told(values)}"
            )


def first_lost(info: Info) -> int | None:
    """The first of many transitions after which a chain is at no place; None for none."""
    if info.theta.sum().isfinite() and not info.log_prob.isnan().any():
        return None  # the usual case at a tenth of the time: what isn't finite makes a sum that isn't
    is_lost = ~info.theta.isfinite().all(-1) | info.log_prob.isnan()
    return int(is_lost.any(0).nonzero()[0]) if is_lost.any() else None


def adapted(kernel: K, state: Any) -> K:
    """The kernel as a warm-up left it."""
    return kernel.adapted(state) if hasattr(kernel, "adapted") else kernel
