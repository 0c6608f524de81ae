"""Posteriors of small networks whose predictions are known, see `bnn_utils.reference`: data, network, prior.

Each is made by a function, from points that are made here or come with scikit-learn, so that everybody has the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bnn_utils import _check, datasets
from bnn_utils.data import Data, square_grid
from bnn_utils.layers import LogScale, Standardise
from bnn_utils.likelihoods import Bernoulli, Categorical, Gaussian
from bnn_utils.posterior import Posterior
from bnn_utils.priors import FanInPrior, NormalPrior
from bnn_utils.tutorial import boxes, network

Folder = str | os.PathLike[str] | None
AT_ONCE = 4096  # draws, of whose outputs not only the mean is needed
NUM_PAIRS = 8  # of inputs whose predictions are compared jointly


@dataclass(frozen=True, eq=False)
class Problem:
    """A posterior, and what is asked of it.

    Attributes:
        name: by which `bnn_utils.reference` knows the answers.
        posterior: in float64 on the CPU.
        inputs: M places where functions are compared, shape ``(M, ...)``.
        held_out: H points that the posterior has not seen, for the log score.
        about: what is hard about it, in a sentence.
        mode: of a posterior whose modes are known, a name of one of two and the place in `inputs` at which its
            predictions are above 0.5; None elsewhere.
    """

    name: str
    posterior: Posterior
    inputs: Tensor
    held_out: Data
    about: str
    mode: tuple[str, int] | None = None

    @property
    def num_classes(self) -> int | None:
        """How many classes there are, if they are more than two; None elsewhere."""
        posterior = self.posterior
        if not isinstance(posterior.likelihood, Categorical):
            return None
        return posterior.flat(posterior.flat.ravel(), posterior.data.x[:1]).shape[-1]

    @property
    def num_noise(self) -> int:
        """How many of the quantities are standard deviations of noise: none, one, or one for each input."""
        likelihood = self.posterior.likelihood
        if not isinstance(likelihood, Gaussian) or likelihood.scale is not None:
            return 0
        is_same = isinstance(list(self.posterior.flat.module.children())[-1], LogScale)
        return 1 if is_same else len(self.inputs)

    @torch.no_grad()
    def values(self, theta: Tensor) -> Tensor:
        """What is compared of each draw, as one row: ``(..., D)`` -> ``(..., Q)``.

        Predictions at all `inputs` (one for each class, where there are more than two); differences between predictions
        at eight pairs of inputs, which say how predictions go together; and the standard deviation of the noise, where
        it is inferred (one, or one at each input).
        """
        posterior, likelihood = self.posterior, self.posterior.likelihood
        flat = theta.reshape(-1, posterior.dim)
        parts = [self.of_predictions(posterior.predict(flat, self.inputs))]
        if self.num_noise:
            places = self.inputs[: self.num_noise]
            blocks = (posterior.outputs(some, places) for some in flat.split(AT_ONCE))
            parts.append(torch.cat([likelihood.distribution(outputs).stddev for outputs in blocks]))
        return torch.cat(parts, dim=1).view(*theta.shape[:-1], -1)

    def of_predictions(self, predictions: Tensor) -> Tensor:
        """`values` without the noise, of predictions at `inputs` by whatever made them.

        ``(..., M)`` -> ``(..., Q)``; of K > 2 classes ``(..., M, K)``.
        """
        num = len(self.inputs)
        shape = (num,) if self.num_classes is None else (num, self.num_classes)
        if predictions.shape[predictions.ndim - len(shape) :] != shape:
            raise ValueError(
                f"predictions have shape {tuple(predictions.shape)}, and at the inputs of {self.name!r} they need "
                f"(..., {', '.join(map(str, shape))})"
            )
        leading = predictions.shape[: predictions.ndim - len(shape)]
        places = predictions.reshape(-1, num, self.num_classes or 1)
        ends = torch.linspace(0, num - 1, NUM_PAIRS + 1).long()
        both = [places.flatten(1), places[:, ends].diff(dim=1).flatten(1)]
        return torch.cat(both, dim=1).view(*leading, -1)

    def is_mode(self, values: Tensor) -> Tensor:
        """Whether each row of `values` belongs to the mode that has a name: ``(..., Q)`` -> ``(...)``."""
        assert self.mode is not None
        return values[..., self.mode[1]] > 0.5

    def log_likelihoods(self, theta: Tensor) -> Tensor:
        """Of the points that are held out, under each draw: ``(..., D)`` -> ``(..., H)``."""
        return self.posterior.log_likelihoods(theta, self.held_out)

    def fingerprint(self) -> list[float]:
        """Three numbers that are others if data, network, prior or inputs are: density and values at one vector."""
        theta = 0.3 * torch.arange(1, self.posterior.dim + 1, dtype=self.posterior.dtype).sin()
        log_prob, values, logs = self.posterior.log_prob(theta), self.values(theta), self.log_likelihoods(theta)
        order = torch.arange(1, len(values) + 1, dtype=values.dtype)  # of the inputs, too
        return [log_prob.item(), (order @ values / len(values)).item(), logs.sum().item()]


def _stream(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _boxes(name: str, about: str, net: nn.Module, precision: float = 0.09) -> Problem:
    grid = square_grid(num=25, limit=6.0)
    posterior = Posterior(net, boxes(), NormalPrior(precision), Bernoulli())
    return Problem(name, posterior, grid, boxes(400, seed=4321), about, ("OR", len(grid) // 2))


def _tutorial(_: Folder) -> Problem:
    about = "two modes of nearly equal mass, networks that are an AND and networks that are an OR"
    return _boxes("boxes", about, network())


def _boxes_relu(_: Folder) -> Problem:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    return _boxes("boxes_relu", "units may be off at all points, where the gradient says nothing of them", net)


def _boxes_weak_prior(_: Folder) -> Problem:
    about = "a prior of standard deviation 10: from it to the posterior is a long way, and probabilities are steep"
    return _boxes("boxes_weak_prior", about, network(), precision=0.01)


def _boxes_wide(_: Folder) -> Problem:
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    return _boxes("boxes_wide", "105 parameters, five times as many as the tutorial's", net)


def _boxes_deep(_: Folder) -> Problem:
    hidden = [module for _ in range(2) for module in (nn.Linear(3, 3), nn.Tanh())]
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), *hidden, nn.Linear(3, 1))
    return _boxes("boxes_deep", "three narrow hidden layers: what a weight does depends on those behind it", net)


def _line(_: Folder) -> Problem:
    stream = _stream(1)
    slopes, noise = stream.normal(size=3), 0.5

    def points(num: int) -> Data:
        x = stream.normal(size=(num, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 1.0]])
        return Data(torch.from_numpy(x), torch.from_numpy(x @ slopes + noise * stream.normal(size=num)))

    train, held_out = points(20), points(100)
    posterior = Posterior(nn.Linear(3, 1), train, NormalPrior(1.0), Gaussian(noise))
    about = "a linear regression, known in closed form, with inputs that go together"
    return Problem("line", posterior, held_out.x[:40], held_out, about)


def _sine_data(num: int, seed: int, with_gap: bool, noise: Callable[[np.ndarray], np.ndarray]) -> Data:
    stream = _stream(seed)
    x = stream.uniform(-2, 2, size=num)
    if with_gap:  # nothing between -0.5 and 1
        x = np.where(x < 0, 0.75 * x - 0.5, 1 + x / 2)
    y = np.sin(2 * x) + noise(x) * stream.normal(size=num)
    return Data(torch.from_numpy(x[:, None]), torch.from_numpy(y))


def _sine(name: str, about: str, activation: nn.Module) -> Problem:
    net = nn.Sequential(nn.Linear(1, 8), activation, nn.Linear(8, 1), LogScale())
    data, held_out = (_sine_data(num, seed, True, lambda x: 0.2 + 0 * x) for num, seed in ((40, 1), (200, 2)))
    grid = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    return Problem(name, Posterior(net, data, NormalPrior(0.25), Gaussian()), grid, held_out, about)


def _sine_tanh(_: Folder) -> Problem:
    return _sine(
        "sine_tanh", "a sine with a gap, and noise that is inferred: many shapes fit, in the gap any", nn.Tanh()
    )


def _sine_relu(_: Folder) -> Problem:
    return _sine("sine_relu", "the same with ReLU: kinks at each point, and straight lines outside", nn.ReLU())


def _noise_by_input(_: Folder) -> Problem:
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 2))
    data, held_out = (
        _sine_data(num, seed, False, lambda x: 0.05 + 0.4 / (1 + np.exp(-3 * x))) for num, seed in ((60, 3), (200, 4))
    )
    grid = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    posterior = Posterior(net, data, NormalPrior(0.25), Gaussian(link="softplus"))
    about = "noise that grows from left to right, computed by the network"
    return Problem("noise_by_input", posterior, grid, held_out, about)


def _split(x: np.ndarray, y: np.ndarray, num: int, seed: int) -> tuple[Data, Data]:
    """The first ``num`` rows in a random order, and the others."""
    rows = _stream(seed).permutation(len(x))
    one, other = (Data(torch.from_numpy(x[part]), torch.from_numpy(y[part])) for part in (rows[:num], rows[num:]))
    return one, other


def _wine(_: Folder) -> Problem:
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    train, test = _split(x, y, num=118, seed=0)
    net = nn.Sequential(Standardise(train.x), nn.Linear(13, 4), nn.Tanh(), nn.Linear(4, 3))
    posterior = Posterior(net, train, NormalPrior(0.25), Categorical())
    return Problem("wine", posterior, test.x[:30], test, "three classes, and more weights than the data can tell apart")


class Patterns(nn.Module):
    """A convolution of width 3 along a sequence, and an average over places: ``(N, length)`` -> ``(N, 1)``."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, channels, 3)
        self.last = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.convolution(x[:, None])).mean(-1))


def _convolution(_: Folder) -> Problem:
    stream = _stream(5)

    def sequences(num: int) -> Data:
        """Noise with one peak or one dip somewhere."""
        x, y = 0.5 * stream.normal(size=(num, 10)), stream.integers(2, size=num)
        for row, place, sign in zip(x, stream.integers(8, size=num), 2 * y - 1, strict=True):
            row[place : place + 3] += sign * np.array([-1.0, 2.0, -1.0])
        return Data(torch.from_numpy(x), torch.from_numpy(y.astype(float)))

    train, held_out = sequences(60), sequences(200)
    posterior = Posterior(Patterns(), train, NormalPrior(0.09), Bernoulli())
    about = "tied weights: a convolution, whose gradient comes from autograd"
    return Problem("convolution", posterior, held_out.x[:40], held_out, about)


def _boston(folder: Folder) -> Problem:
    train, test = datasets.load("bostonHousing", folder).split(0)
    net = nn.Sequential(Standardise(train.x), nn.Linear(13, 50), nn.ReLU(), nn.Linear(50, 1), LogScale())
    posterior = Posterior(net, train, FanInPrior(2, 1), Gaussian(units=Standardise(train.y)))
    about = "a real regression with 752 parameters: houses in Boston, the first of the usual splits"
    return Problem("boston", posterior, test.x, test, about)


def _digits(_: Folder) -> Problem:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    train, test = _split(x / 16, y, num=500, seed=0)
    net = nn.Sequential(nn.Linear(64, 40), nn.SiLU(), nn.Linear(40, 10))
    posterior = Posterior(net, train, FanInPrior(2.0, 1.0), Categorical())
    held_out = Data(test.x[:300], test.y[:300])
    return Problem("digits", posterior, test.x[:20], held_out, "3,010 parameters: digits, 500 of them")


PROBLEMS: dict[str, Callable[[Folder], Problem]] = {
    "boxes": _tutorial,
    "boxes_relu": _boxes_relu,
    "boxes_weak_prior": _boxes_weak_prior,
    "boxes_wide": _boxes_wide,
    "boxes_deep": _boxes_deep,
    "line": _line,
    "sine_tanh": _sine_tanh,
    "sine_relu": _sine_relu,
    "noise_by_input": _noise_by_input,
    "wine": _wine,
    "convolution": _convolution,
    "boston": _boston,
    "digits": _digits,
}


def problem(name: str, folder: Folder = None) -> Problem:
    """One of the posteriors whose predictions are known.

    Args:
        name: one of `PROBLEMS`.
        folder: where tables are kept, for "boston": see `bnn_utils.datasets.load`.

    Raises:
        ValueError: if there is none of this name.
        ModuleNotFoundError: for "wine" and "digits", if scikit-learn is not installed, which has their data.
    """
    _check.choice("name", name, PROBLEMS)
    return PROBLEMS[name](folder)
