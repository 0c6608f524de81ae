"""What warm-ups learn from: step sizes on their way, moments, Stan's windows, and lanes that teach nothing.

All are values, and updates make new ones.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check

# Step sizes stay within e^-80 and e^80, about 1e-35 and 1e35, whatever rates they learn from: positive and finite also
# in single precision.
LARGEST_LOG = 80.0

# A lane rejects where it would accept with a probability below REJECTS, and most lanes accept where one half of them
# would with more than ACCEPTS. A lane is stuck after it rejected MOST_REJECTIONS steps that most lanes accept, or one
# that is shorter than another by REJECTED_RANGE. With 64 lanes in the tutorial's posterior, 26 in a row were seen.
REJECTS, ACCEPTS = 0.01, 0.5
MOST_REJECTIONS, REJECTED_RANGE = 50, 100.0


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
    count: int  # type: ignore[assignment]

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
        x = (self.mu - math.sqrt(t) / gamma * mean_error).clamp(-LARGEST_LOG, LARGEST_LOG)
        return DualAveraging(self.mu, mean_error, x, torch.lerp(self.average, x, t**-kappa), t)

    @property
    def step_size(self) -> Tensor:
        """With which to make the next transition."""
        return self.x.exp()

    @property
    def final(self) -> Tensor:
        """With which to go on when the adaptation ends."""
        return self.average.exp()

    def restarted(self) -> DualAveraging:
        """From where it has come, when other step sizes are wanted."""
        return DualAveraging.start(self.final)


class Prediction(NamedTuple):
    r"""The step size at which energy errors have a wanted variance v for each of D parameters, predicted from others.

    An energy error E grows like the third power of the step size. With ``xi_i = E_i^2 / (D v)`` of C lanes i, kept
    within 1e-8 and 1e8, and xi their mean, after each transition

        w = exp(-(log xi / (6 sigma))^2 / 2);  b <- gamma b + w
        a_i <- gamma a_i + w xi_i / eps^6;  eps = (mean a_i / b)^(-1/6)

    where ``gamma = (n - 1) / (n + 1)`` forgets what is more than n / 2 = 75 transitions old, and sigma = 1.5 takes what
    is predicted from afar for less (Robnik, De Luca, Silverstein and Seljak 2023; they have one lane). No transition
    changes eps by a factor of more than 21. Where it becomes more than 3 times as large at once, all begins anew from
    there: of much shorter steps rounding makes the errors, and what it predicts would hold eps back for hundreds of
    transitions. What is found is the average of log eps, as in `DualAveraging`, to which single large errors do less.
    """

    a: Tensor  # (C,), float64
    b: Tensor  # (), float64
    x: Tensor  # (), float64, log eps
    average: Tensor  # (), float64, of x
    count: int  # type: ignore[assignment]

    @classmethod
    def start(cls, step_size: Tensor, num_lanes: int) -> Prediction:
        """From a step size ``()``."""
        x = step_size.log()
        return cls(x.new_zeros(num_lanes), torch.zeros_like(x), x, x, 0)

    def update(self, xi: Tensor, teachers: Teachers) -> Prediction:
        """After one more transition, with squared errors ``(C,)`` that are 1 where they are as wanted.

        What lanes that teach nothing have said is replaced by the mean of the others.
        """
        n, sigma, kappa = 150, 1.5, 0.75
        gamma, t = (n - 1) / (n + 1), self.count + 1
        w = (-(teachers.mean(xi).log() / (6 * sigma)).square() / 2).exp()
        a, b = gamma * self.a + w * xi * (-6 * self.x).exp(), gamma * self.b + w
        mean = teachers.mean(a)
        x = ((mean / b).log() / -6).clamp(-LARGEST_LOG, LARGEST_LOG)
        if x > self.x + math.log(3):
            return Prediction.start(x.exp(), len(a))
        return Prediction(torch.where(teachers.teach, a, mean), b, x, torch.lerp(self.average, x, t**-kappa), t)

    @property
    def step_size(self) -> Tensor:
        """With which to make the next transition."""
        return self.x.exp()

    @property
    def final(self) -> Tensor:
        """With which to go on when the adaptation ends."""
        return self.average.exp()

    def restarted(self) -> Prediction:
        """From where it has come, when errors are others."""
        return Prediction.start(self.final, len(self.a))


class Teachers(NamedTuple):
    """Which lanes teach what all of them share: those that are not stuck.

    A lane is stuck when it has rejected 50 steps that most lanes accept, or two of them of which one is 100 times
    shorter than the other, and has had no acceptance rate of 1 % or more in between; from its next such rate on it
    teaches again.

    So a lane that no step size helps, because the density is wrong around it, does not take the others with it. A lane
    that is only slower, in a narrower mode, keeps its say. And where most lanes reject, the step size is to blame, and
    all teach.
    """

    rejected: Tensor  # (C, ...), how many such steps, lane by lane
    longest: Tensor  # (C, ...), log of the longest of them, float64

    @classmethod
    def start(cls, *shape: int) -> Teachers:
        """All lanes, ``(C,)``, or ``(C, K)`` where K groups of C lanes each have something to share."""
        return cls(torch.zeros(shape, dtype=torch.int64), torch.full(shape, -torch.inf, dtype=torch.float64))

    def update(self, rates: Tensor, log_step: Tensor) -> Teachers:
        """After one more transition: acceptance rates ``(C, ...)``, and the log of the step size, ``(...)``."""
        # In NumPy: a dozen operations on few numbers, in each transition, of which torch's take many times as long.
        rate, step = rates.detach().cpu().numpy(), log_step.numpy()
        rejects, most_accept = rate < REJECTS, 2 * (rate > ACCEPTS).sum(0) >= len(rate)
        rejected, before = self.rejected.numpy() + most_accept, self.longest.numpy()
        longest = np.where(most_accept, np.maximum(before, step), before)
        in_vain = most_accept & (step <= longest - math.log(REJECTED_RANGE))
        rejected = np.where(in_vain, rejected.clip(min=MOST_REJECTIONS), rejected)
        return Teachers(
            torch.from_numpy(np.where(rejects, rejected, 0)), torch.from_numpy(np.where(rejects, longest, -np.inf))
        )

    @property
    def teach(self) -> Tensor:
        """Which lanes do, ``(C, ...)``, bool: at least half of them."""
        return self.rejected < MOST_REJECTIONS

    def mean(self, values: Tensor) -> Tensor:
        """Of those lanes' values, ``(C, ...)`` to ``(...)``."""
        return mean(values, self.teach.to(values.device))


def mean(values: Tensor, which: Tensor) -> Tensor:
    """Over the first dimension, of those values only."""
    return torch.where(which, values, 0).sum(0) / which.sum(0)


class Moments(NamedTuple):
    """Running mean and sum of squared deviations, batch by batch (Welford 1962; Chan, Golub and LeVeque 1979).

    Dense ones are of products of all pairs, for a covariance.
    """

    count: int  # type: ignore[assignment]
    mean: Tensor  # (D,)
    squares: Tensor  # (D,), or dense (D, D)

    @classmethod
    def start(cls, like: Tensor, dense: bool = False) -> Moments:
        """Of vectors like ``(..., D)``."""
        dim = like.shape[-1:]
        return cls(0, _precise(like).new_zeros(dim), _precise(like).new_zeros(2 * dim if dense else dim))

    def update(self, theta: Tensor) -> Moments:
        """With the positions of some lanes, ``(C, D)``."""
        theta = _precise(theta)
        count, mean = self.count + len(theta), theta.mean(0)
        shift, deviations = mean - self.mean, theta - mean
        if self.squares.ndim == 1:
            squares, of_shift = deviations.square().sum(0), shift.square()
        else:
            squares, of_shift = deviations.mT @ deviations, shift.outer(shift)
        squares = self.squares + squares + of_shift * (self.count * len(theta) / count)
        return Moments(count, self.mean + shift * (len(theta) / count), squares)

    @property
    def variance(self) -> Tensor:
        """Sample variances ``(D,)``, drawn a little towards 0.001, as in Stan: few draws may all agree.

        Dense, the sample covariance ``(D, D)``, drawn as much towards 0.001 times the identity.
        """
        shrink = 5 / (self.count + 5)
        towards = 1e-3 if self.squares.ndim == 1 else 1e-3 * torch.eye(len(self.mean)).to(self.squares)
        return (1 - shrink) * self.squares / max(self.count - 1, 1) + shrink * towards


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


class Learned(NamedTuple):
    """What a transition has taught."""

    warmup: Warmup | None  # that goes on; None when it has ended
    step_size: float  # of the next transition
    inv_mass: Tensor | None  # a new one, (D,) or (D, D), in float64, where a window has ended


class Warmup(NamedTuple):
    """What is learned, transition by transition, of a step size and of a mass, its diagonal or all of it.

    All lanes share one of each, and all that are not stuck teach them.
    """

    num: int  # transitions of all of it
    count: int  # type: ignore[assignment]  # that have been
    target: float  # mean acceptance rate to reach, or energy variance
    learns_mass: bool
    dense: bool
    teachers: Teachers
    steps: DualAveraging | Prediction
    moments: Moments | None  # of the window that is open

    @classmethod
    def start(
        cls, num: int, theta: Tensor, step_size: float, target: float, learns_mass: bool, dense: bool
    ) -> Warmup | None:
        """Of lanes at theta ``(C, D)``; None for a warm-up of no transitions.

        Raises:
            ValueError: if a dense mass cannot be learned.
        """
        if dense:
            check_dense(num, theta)
        steps = DualAveraging.start(torch.tensor(step_size, dtype=torch.float64))
        return cls(num, 0, target, learns_mass, dense, Teachers.start(len(theta)), steps, None) if num else None

    def update(self, theta: Tensor, rates: Tensor, harmonic: bool = False) -> Learned:
        """With the positions reached, ``(C, D)``, and acceptance rates ``(C,)``, of whose mean the target is."""
        assert isinstance(self.steps, DualAveraging)  # a `Prediction` is not told acceptance rates, but `taught`
        teachers = self.teachers.update(rates, self.steps.x)
        rate = 1 / teachers.mean(1 / rates) if harmonic else teachers.mean(rates)
        return self.taught(theta, teachers, self.steps.update(self.target - rate.detach().cpu().double()))

    def taught(self, theta: Tensor, teachers: Teachers, steps: DualAveraging | Prediction) -> Learned:
        """With the positions reached, ``(C, D)``, and what they make of teachers and step sizes."""
        count = self.count + 1
        first, ends = windows(self.num) if self.learns_mass else (self.num, [])
        moments, inv_mass = self.moments, None
        if first < count and ends and count <= ends[-1]:
            moments = moments or Moments.start(theta, self.dense)
            moments = moments.update(theta[teachers.teach.to(theta.device)])
        if count in ends:
            assert moments is not None  # a window ends after it has begun
            step_size, inv_mass = steps.final, moments.variance
            steps, moments = steps.restarted(), None
        else:
            step_size = steps.final if count == self.num else steps.step_size
        ongoing = self._replace(count=count, teachers=teachers, steps=steps, moments=moments)
        return Learned(ongoing if count < self.num else None, step_size.item(), inv_mass)


def check_dense(num_warmup: int, theta: Tensor) -> None:
    """Raise where lanes at theta ``(C, D)`` cannot learn a dense mass, and warn where there is little to learn it from.

    Raises:
        ValueError: if the warm-up is too short, or matrices of D rows take more memory than there is.
    """
    num_lanes, dim = theta.shape
    first, ends = windows(num_warmup)
    if not ends:
        raise ValueError(
            f"dense_mass=True needs a warmup of 20 transitions or more to learn the mass in, got {num_warmup}; take a "
            "longer one, or leave dense_mass out"
        )
    _check.memory(  # squares, their update and what is added; then the covariance, its inverse and the factor of that
        f"learning a dense mass of {dim:,} x {dim:,} numbers", 6 * 8 * dim**2, theta.device, "leave dense_mass out"
    )
    positions = num_lanes * (ends[-1] - [first, *ends][-2])
    if positions < dim:
        warnings.warn(
            f"the last window of this warm-up has {positions} positions, fewer than the {dim} parameters, to learn a "
            "dense mass from: it will be a poor one; take a longer warmup or more chains, or leave dense_mass out",
            RuntimeWarning,
            stacklevel=5,
        )
