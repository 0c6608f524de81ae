"""Maxima of a posterior (MAP, maximum a posteriori): many climbs from draws of the prior, and how each ended."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm.auto import tqdm

from bnn_utils import _check
from bnn_utils.batches import is_shown
from bnn_utils.density import Density
from bnn_utils.gradients.native import can_be_native
from bnn_utils.posterior import Posterior
from bnn_utils.random import as_generator, fresh_seed
from bnn_utils.run import needs_one_thread, threads_of_torch
from bnn_utils.starts import draw_starts

if TYPE_CHECKING:
    import pandas as pd

ADAM_STEPS, ADAM_LEARNING_RATE = 1000, 0.05  # the rate falls to 0 along a cosine
LBFGS_MEMORY, LBFGS_ITERATIONS = 20, 5000  # steps that it remembers, and takes at most
# The same for chains to start from. Where the scale of the noise is learned, the way up leads into a spike that has
# hardly any of the posterior's mass, and the further up chains start in it, the longer they stay.
ITERATIONS_OF_START = 500
# The relative gradient at which a place counts as a maximum (Dennis and Schnabel 1983, section 7.2). L-BFGS itself goes
# on for as long as it can tell up from down.
EPS = np.finfo(np.float64).eps
RELATIVE_GRADIENT = EPS ** (1 / 3)
ONE_NAT = 1.0  # so much higher is not nearly the same
SAME_HEIGHT = 0.01  # nats between neighbours among the heights that count as one

CONVERGED, STUCK, SLOW, RISING, UNBOUNDED = ENDS = "converged", "no step up", "slow", "rising", "unbounded"


@dataclass(frozen=True, eq=False, repr=False)
class Maxima:
    """Where climbs ended, the highest first and those that found no bound last; prints as its summary.

    Attributes:
        theta: shape ``(num, D)``, in the posterior's dtype and on its device.
        log_prob: log joint density at theta, every constant kept, ``(num,)``, float64 on the CPU.
        grad_norm: Euclidean norm of its gradient there, the same. The climb is in float64: where theta was rounded to
            float32 afterwards, this is what the rounding left.
        ended: how each climb did, one of

            - "converged": the gradient is 0 as far as float64 tells, before theta was rounded: ``max_i |g_i|
              max(|theta_i|, 1)`` is at most ``eps^(1/3) max(|log_prob|, 1)`` (Dennis and Schnabel 1983, section 7.2);
            - "no step up": the gradient is not 0, but no step leads higher: a kink of ReLU, or a ridge so narrow that
              rounding hides the way;
            - "slow": the iterations ran out, and in their second half it rose by less than 1;
            - "rising": the same, by more: the maximum is far, or there is none;
            - "unbounded": log_prob is infinite, or changes by more than 1 if theta does in its eighth digit (seventh in
              float32): it has no maximum there, or one too narrow to be found.
        seed: of the starts; None if a generator was passed.
    """

    theta: Tensor
    log_prob: Tensor
    grad_norm: Tensor
    ended: list[str]
    seed: int | None = None

    @property
    def converged(self) -> Tensor:
        """Which climbs did, ``(num,)``, bool."""
        return torch.tensor([how == CONVERGED for how in self.ended])

    @property
    def height(self) -> Tensor:
        """Number of the height at which each ended, ``(num,)``: 0 for the first; neighbours within 0.01 share theirs.

        Maxima of one height are mostly one function: a network's units in another order (`bnn_utils.symmetry.fold`).
        """
        steps = self.log_prob.diff().abs()
        return torch.cat([torch.zeros(1, dtype=torch.int64), (steps > SAME_HEIGHT).long().cumsum(0)])

    def table(self) -> pd.DataFrame:
        """One row per climb, in the order of `theta`."""
        import pandas as pd

        columns = {name: getattr(self, name).numpy() for name in ("log_prob", "height", "grad_norm")}
        return pd.DataFrame(columns | {"ended": self.ended})

    def __repr__(self) -> str:
        counts = {how: self.ended.count(how) for how in ENDS}
        heights = int(self.height[-1]) + 1
        return (
            f"Maxima of {len(self.ended)} climbs ({', '.join(f'{num} {how}' for how, num in counts.items() if num)}) "
            f"at {heights} height{'s' * (heights > 1)}: the first has log_prob {self.log_prob[0]:.3f}, with a gradient "
            f"of {self.grad_norm[0]:.1g}"
        )


def find_map(
    posterior: Posterior, num: int = 16, seed: int | torch.Generator | None = None, progress: bool = True
) -> Maxima:
    """Climb to maxima of the log joint density (MAP, maximum a posteriori), each from a prior draw of its own.

    First Adam (Kingma and Ba 2015) on all as one batch, 1,000 steps, of which the highest place counts, in native code
    where there is some; then L-BFGS (Zhu, Byrd, Lu and Nocedal 1997, by SciPy) on each alone, in float64 whatever the
    posterior's dtype is, for as long as it leads up, at most 5,000 iterations. No climb has an effect on another.

    Args:
        posterior: of one data set.
        num: how many climbs.
        seed: a number, or a generator on the posterior's device, which is advanced. Without it every call has a new
            number, which is ``maxima.seed``.
        progress: show a progress bar.

    Returns:
        where they ended, the highest first, and how: ``maxima.table()``.

    Raises:
        TypeError: for an argument of another type.
        ValueError: if there are several data sets, or the prior reaches no place where anything can be computed.

    Warns:
        RuntimeWarning: if climbs are "rising" or "unbounded". So they are where the scale of the noise is learned and
            the network can meet all targets: the more closely it does, the smaller the noise, the higher the density.
    """
    _check.posterior(posterior)
    num, progress = _check.whole("num", num, 1), _check.flag("progress", progress)
    check_one_dataset(posterior)
    seed = fresh_seed() if seed is None else seed
    starts = draw_starts(posterior, num, as_generator(seed, posterior.device))
    maxima = climb(posterior, starts, can_be_native(posterior), LBFGS_ITERATIONS, progress)
    endless = [how for how in (RISING, UNBOUNDED) if how in maxima.ended]
    if endless:
        count = sum(how in endless for how in maxima.ended)
        warnings.warn(f"{count} of {num} climbs ended {' or '.join(endless)}: {WHY}", RuntimeWarning, stacklevel=2)
    is_unbounded = torch.tensor([how == UNBOUNDED for how in maxima.ended])
    order = torch.where(is_unbounded, -torch.inf, maxima.log_prob).argsort(descending=True)
    return Maxima(
        maxima.theta[order.to(maxima.theta.device)],
        maxima.log_prob[order],
        maxima.grad_norm[order],
        [maxima.ended[k] for k in order.tolist()],
        None if isinstance(seed, torch.Generator) else _check.seed(seed),
    )


WHY = (
    "their maximum is far, or there is none. So it is where the scale of the noise is learned and the network can meet "
    "all targets; a scale that is given, or a prior that keeps it from 0, bounds the density"
)


def starts_at_maxima(posterior: Posterior, theta: Tensor, compile: bool, progress: bool) -> Tensor:
    """Where chains start that climb from theta ``(C, D)`` first; each depends on its own row of theta alone.

    Raises:
        ValueError: if one climbs to where no chain can move.
    """
    maxima = climb(posterior, theta, compile, ITERATIONS_OF_START, progress)
    count = maxima.ended.count(UNBOUNDED)
    if count:
        raise ValueError(
            f"{count} of {len(theta)} chains would start where the density is {UNBOUNDED}, and never move: {WHY}. Or "
            "leave init out, for draws from the prior"
        )
    return maxima.theta


def check_one_dataset(posterior: Posterior) -> None:
    """Raise where lanes of one batch have different densities to climb."""
    if posterior.num_datasets > 1:
        raise ValueError(
            f"there are {posterior.num_datasets} data sets, each with maxima of its own: climb to those of "
            "posterior.dataset(k)"
        )


# --- climbing ---------------------------------------------------------------------------------------------------------


class Summit(NamedTuple):
    """Where one climb ended, theta in the posterior's dtype, and how."""

    theta: Tensor  # (D,), on the CPU
    log_prob: float
    grad_norm: float
    ended: str


def climb(posterior: Posterior, theta: Tensor, compile: bool, iterations: int, progress: bool) -> Maxima:
    """From starts ``(num, D)`` to maxima, in the order of the starts, with so many iterations of L-BFGS at most."""
    with tqdm(total=len(theta), unit="climb", disable=not is_shown(progress)) as bar:
        with _density(posterior, len(theta), compile) as density:
            theta = _adam(density, theta)
        summits = []
        with _density(posterior.in_double(), 1, compile) as density:
            for start in theta.cpu():  # as SciPy has it, and as not every device has float64
                summits.append(_lbfgs(density, start, iterations))
                bar.update()
    places, *numbers, ended = zip(*summits, strict=True)
    log_prob, grad_norm = (torch.tensor(values, dtype=torch.float64) for values in numbers)
    return Maxima(torch.stack(places).to(posterior.device), log_prob, grad_norm, list(ended))


@contextmanager
def _density(posterior: Posterior, num_lanes: int, compile: bool) -> Iterator[Density]:
    """As runs have it: on one thread of torch where more don't help."""
    num_rows = num_lanes * len(posterior.data)
    num_threads, one_thread = torch.get_num_threads(), needs_one_thread(posterior, num_rows, compile, num_batches=1)
    with threads_of_torch(1 if one_thread else None), torch.inference_mode():
        density = posterior.density(num_lanes, compile)
        density.share_out(num_threads)
        yield density


def _adam(density: Density, theta: Tensor) -> Tensor:
    """Of each climb the highest place that it came by, ``(num, D)``: some are thrown off a narrow ridge."""
    theta = theta.clone()
    best, highest = theta.clone(), theta.new_full((len(theta),), -torch.inf)
    adam = torch.optim.Adam([theta], lr=ADAM_LEARNING_RATE, maximize=True)
    slower = CosineAnnealingLR(adam, ADAM_STEPS)
    for _ in range(ADAM_STEPS):
        log_prob, theta.grad = density.joint.log_prob_and_grad(theta)
        is_higher = log_prob > highest
        highest, best = torch.where(is_higher, log_prob, highest), torch.where(is_higher[:, None], theta, best)
        adam.step()
        slower.step()
    return best


def _lbfgs(density: Density, start: Tensor, iterations: int) -> Summit:
    """A climb from start ``(D,)``, on the CPU and of any dtype, in the density's, which is float64."""
    from scipy.optimize import minimize

    def log_prob_and_grad(theta: np.ndarray) -> tuple[float, np.ndarray]:
        log_prob, grad = density.joint.log_prob_and_grad(torch.from_numpy(theta).to(density.device)[None])
        return log_prob.item(), grad[0].cpu().numpy()

    def minus(theta: np.ndarray) -> tuple[float, np.ndarray]:
        log_prob, grad = log_prob_and_grad(theta)
        if not (np.isfinite(log_prob) and np.isfinite(grad).all()):
            return ONE_NAT - heights[-1], np.zeros_like(grad)  # lower than where the step began: it takes a shorter one
        return -log_prob, -grad

    theta, rose = start.double().numpy(), True
    heights = [log_prob_and_grad(theta)[0]]  # after each iteration
    while rose and len(heights) <= iterations:  # what it remembers may mislead it: where it is stuck it begins anew
        before, left = heights[-1], iterations + 1 - len(heights)
        theta = minimize(
            minus,
            theta,
            jac=True,
            method="L-BFGS-B",
            options={"maxcor": LBFGS_MEMORY, "maxiter": left, "maxfun": np.inf, "ftol": 0, "gtol": 0},
            callback=lambda intermediate_result: heights.append(-intermediate_result.fun),
        ).x
        rose = heights[-1] - before > SAME_HEIGHT
    log_prob, grad = log_prob_and_grad(theta)
    rounded = torch.from_numpy(theta).to(start)
    there, grad_there = log_prob_and_grad(rounded.double().numpy())
    digit = max(EPS**0.5, torch.finfo(start.dtype).eps)
    around = [there, *(log_prob_and_grad(theta * factor)[0] for factor in (1 - digit, 1 + digit))]
    if not all(abs(value - log_prob) <= ONE_NAT for value in around):  # not so either where one is not finite
        ended = UNBOUNDED
    elif (np.abs(grad) * np.maximum(np.abs(theta), 1)).max() <= RELATIVE_GRADIENT * max(abs(log_prob), 1):
        ended = CONVERGED
    elif len(heights) <= iterations:
        ended = STUCK
    else:
        ended = RISING if log_prob - heights[len(heights) // 2] > ONE_NAT else SLOW
    return Summit(rounded, there, float(np.linalg.norm(grad_there)), ended)
