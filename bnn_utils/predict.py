"""What the predictions of many draws say together: mean, quantiles, uncertainty, and how good they prove to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import one_hot

from bnn_utils import _check
from bnn_utils.evidence import Estimate

SUM_ERROR = 1e-4  # by which probabilities may fail to add up to 1: float32 sums of thousands are closer
SURE = 1e-3  # nearer to 0 or 1 than this, a probability says hardly more than a label
NUM_BINS = 10  # of the calibration error
NUM_RESAMPLES = 1000  # of its bootstrap error: within 2 % of what infinitely many would give


class Uncertainty(NamedTuple):
    """Uncertainty of predicted classes, in bits: of two classes 1 is a coin flip; 0 is certainty."""

    total: Tensor  # (M,), entropy of the mean prediction
    aleatoric: Tensor  # (M,), mean entropy of the single predictions
    epistemic: Tensor  # (M,), mutual information of label and parameters: total - aleatoric


def predictive_mean(predictions: Tensor, of_classes: bool | None = None) -> Tensor:
    """Mean over all draws: ``(..., M)`` -> ``(M,)``; of classes, ``(..., M, K)`` -> ``(M, K)``.

    Args:
        predictions: such as ``posterior.predict(chain.draws, x)``, all leading dimensions draws.
        of_classes: whether the last dimension runs over K classes, or over the K numbers of one target: say True for
            these. Without it, it does where it adds up to 1 everywhere.

    Raises:
        TypeError: if the predictions are no array of numbers.
        ValueError: if there are no draws, or if it cannot be told from the values what they are: of two classes, or
            where every draw is sure of every point, probabilities of a point's classes look like those of class 1 at
            several points; and of four dimensions or more that don't add up to 1, the last two may be points and
            numbers.
    """
    predictions = _check.tensor("predictions", predictions)
    return _draws("predictions", predictions, _are_of_classes(predictions, of_classes)).mean(0)


def predictive_quantiles(values: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Quantiles over all draws.

    Args:
        values: shape ``(..., M)``, all leading dimensions draws: of ``posterior.predictive_draws``, for where targets
            will be; of ``posterior.predict``, for where their mean may be, which is a narrower band.
        quantiles: Q numbers in [0, 1].

    Returns:
        shape ``(Q, M)``.
    """
    draws, levels = _draws("values", values), _check.tensor("quantiles", quantiles).double()
    if levels.ndim != 1:
        raise ValueError(f"quantiles must be several numbers, such as [0.05, 0.95], got {quantiles}")
    outside = levels[~((levels >= 0) & (levels <= 1))]
    if len(outside):
        raise ValueError(f"quantiles must lie in [0, 1], got {outside[0].item():g}")
    found = np.quantile(draws.numpy(force=True), levels.numpy(force=True), axis=0)
    return torch.from_numpy(found).to(draws)


def split_uncertainty(probabilities: Tensor, of_classes: bool | None = None) -> Uncertainty:
    """Split the entropy of predicted classes into what more data could remove (epistemic) and the rest (aleatoric).

    H(mean p) = mean H(p) + I(y; theta)   (Depeweg et al. 2018; BALD of Houlsby et al. 2011)

    Args:
        probabilities: of class 1 under each draw, shape ``(..., M)``, all leading dimensions draws.
        of_classes: whether the last dimension runs over K classes, shape ``(..., M, K)``. Without it, it does where it
            adds up to 1 everywhere.

    Raises:
        ValueError: if a value lies outside [0, 1], the classes' don't add up to 1, or it cannot be told from the values
            whether they are of classes, as in `predictive_mean`.
    """
    probabilities = _check.tensor("probabilities", probabilities)
    of_classes = _are_of_classes(probabilities, of_classes)
    draws = _draws("probabilities", probabilities, of_classes)
    _check_probabilities(draws, of_classes)
    total, aleatoric = _entropy(draws.mean(0), of_classes), _entropy(draws, of_classes).mean(0)
    # Jensen's inequality makes the difference non-negative; rounding can miss it by some 1e-16.
    return Uncertainty(total, aleatoric, (total - aleatoric).clamp(min=0))


def entropy(p: Tensor, of_classes: bool | None = None) -> Tensor:
    """Entropy in bits: of Bernoulli(p), elementwise; of K classes, ``(..., K)`` -> ``(...)``. 0 is certain.

    Args:
        p: probabilities.
        of_classes: as for `predictive_mean`; one dimension alone, without it, is of class 1.

    Raises:
        ValueError: if a value lies outside [0, 1], or the classes' don't add up to 1.
    """
    p = _check.tensor("p", p)
    of_classes = _are_of_classes(p, of_classes)
    _check_probabilities(p, of_classes)
    return _entropy(p, of_classes)


def _entropy(p: Tensor, of_classes: bool) -> Tensor:
    nats = torch.special.entr(p).sum(-1) if of_classes else torch.special.entr(p) + torch.special.entr(1 - p)
    return nats / math.log(2)


def log_score(log_likelihoods: Tensor) -> Tensor:
    """Log of the predictive density at each point, which averages densities, not their logarithms; higher is better.

        log p(y_i | data) = log mean_s p(y_i | theta_s)

    Args:
        log_likelihoods: shape ``(..., N)``, all leading dimensions draws, from ``posterior.log_likelihoods(draws,
            held_out)``.

    Returns:
        shape ``(N,)``; their mean is the usual log score (Gneiting and Raftery 2007).
    """
    draws = _draws("log_likelihoods", log_likelihoods)
    return draws.logsumexp(0) - math.log(len(draws))


def crps(values: Tensor, y: Tensor | ArrayLike) -> Tensor:
    """Continuous ranked probability score of each point, in the targets' units; lower is better.

        CRPS = E|X - y| - E|X - X'| / 2,   X and X' independent draws from the predictive distribution

    (Gneiting and Raftery 2007, equation 21), with means over all draws and over all pairs of two different draws, which
    has no bias where draws are independent. Of a forecast that is one number it is the absolute error. Unlike the log
    score it hardly punishes a target that was thought impossible.

    Args:
        values: shape ``(..., M)``, all leading dimensions draws, two or more: of ``posterior.predictive_draws``.
        y: targets, ``(M,)``.

    Returns:
        shape ``(M,)``.
    """
    draws, y = _with_targets(values, y)
    num = len(draws)
    if num < 2:
        raise ValueError("values hold one draw of each target, and their spread takes two or more")
    # In order, the k-th smallest of n is larger than k - 1 others and smaller than n - k: so often it counts.
    order = torch.arange(1, num + 1, device=draws.device, dtype=draws.dtype)
    pairs = ((2 * order - num - 1)[:, None] * (draws - y).sort(dim=0).values).sum(0)
    return (draws - y).abs().mean(0) - pairs / (num * (num - 1))


def coverage(values: Tensor, y: Tensor | ArrayLike, level: float = 0.9) -> Estimate:
    """Fraction of targets inside their central predictive intervals, which should be the level, and its error.

    The error is that of as many independent targets, ``sqrt(level (1 - level) / M)``.

    Args:
        values: shape ``(..., M)``, all leading dimensions draws: of ``posterior.predictive_draws``.
        y: targets, ``(M,)``.
        level: of the intervals, between 0 and 1.
    """
    level = _check.number("level", level)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level:g}")
    draws, y = _with_targets(values, y)
    low, high = predictive_quantiles(draws, [(1 - level) / 2, (1 + level) / 2])
    inside = ((low <= y) & (y <= high)).double().mean().item()
    return Estimate(inside, math.sqrt(level * (1 - level) / len(y)))


def brier_score(p: Tensor, y: Tensor) -> float:
    """Mean squared difference of predicted probabilities and what came, over all classes (Brier 1950); lower is better.

    0 is certain and right, 2 certain and wrong, 1/2 a coin flip between two classes.

    Args:
        p: predictive probabilities, ``(N,)`` of class 1 or ``(N, K)``.
        y: labels, ``(N,)``, 0 to K - 1.
    """
    p, y = _classes(p, y)
    return (p - one_hot(y, p.shape[-1])).square().sum(-1).mean().item()


def calibration_error(p: Tensor, y: Tensor, seed: int = 0) -> Estimate:
    """Expected calibration error: how far confidence is from accuracy, on average (Naeini, Cooper and Hauskrecht 2015).

    Confidence is the highest probability; points are sorted into 10 bins by it, and the differences between each bin's
    accuracy and mean confidence are averaged, weighted by their sizes. Chance alone makes it positive, the more so the
    fewer the points are: the error, by the bootstrap over points, says how far to trust it.

    Args:
        p: predictive probabilities, ``(N,)`` of class 1 or ``(N, K)``.
        y: labels, ``(N,)``, 0 to K - 1.
        seed: of the bootstrap.
    """
    p, y = _classes(p, y)
    confidence, chosen = (tensor.cpu().numpy() for tensor in p.max(-1))
    surplus = confidence - (chosen == y.cpu().numpy())
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)

    def error(points: np.ndarray) -> float:
        return np.abs(np.bincount(bins[points], surplus[points])).sum() / len(points)

    everything, rng = np.arange(len(y)), np.random.default_rng(_check.whole("seed", seed, 0))
    again = [error(rng.choice(everything, len(y))) for _ in range(NUM_RESAMPLES)]
    return Estimate(float(error(everything)), float(np.std(again, ddof=1)))


def mean_difference(differences: ArrayLike, overlap: float = 0.0) -> Estimate:
    """Mean of paired differences of scores, one per data set or split, and its standard error.

        error^2 = (1 / n + overlap) * variance of the n differences

    Independent data sets have no overlap. Splits of one data set share most of their points, so that their differences
    resemble each other more than those of new data would: there the overlap is the number of points held out over that
    of points learned from, ``n_test / n_train`` (Nadeau and Bengio 2003, the corrected resampled t test). More splits
    then make the error hardly smaller.

    Args:
        differences: n >= 2 numbers, such as the log scores of one method minus those of another.
        overlap: 0 for independent data sets, ``n_test / n_train`` for random splits of one.

    Raises:
        ValueError: if there are fewer than two differences, or the overlap is negative.
    """
    d = _check.tensor("differences", differences).double().numpy(force=True)
    overlap = _check.number("overlap", overlap)
    if d.ndim != 1 or len(d) < 2:
        raise ValueError(f"expected two differences or more, one number each, got an array of shape {d.shape}")
    if not np.isfinite(d).all():
        raise ValueError(f"differences hold {np.count_nonzero(~np.isfinite(d))} NaN or infinite values")
    if not 0 <= overlap < math.inf:
        raise ValueError(f"overlap must be n_test / n_train, or 0 for independent data sets, got {overlap:g}")
    return Estimate(float(d.mean()), float(math.sqrt((1 / len(d) + overlap) * d.var(ddof=1))))


def _classes(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities as ``(N, K)``, labels as integers.

    Raises:
        ValueError: if they don't fit each other, or are none.
    """
    p, y = _check.tensor("p", p), _check.tensor("y", y)
    p = p if p.is_floating_point() else p.double()
    if p.ndim not in (1, 2) or y.shape != p.shape[:1] or len(y) == 0:
        raise ValueError(
            f"expected predictive probabilities of shape (N,) or (N, K) and labels (N,), got {tuple(p.shape)} and "
            f"{tuple(y.shape)}: average over draws first, as by predictive_mean"
        )
    _check_probabilities(p, of_classes=p.ndim == 2)
    p = p if p.ndim == 2 else torch.stack([1 - p, p], dim=-1)
    wrong = y[(y < 0) | (y >= p.shape[-1]) | (y != y.long())]
    if len(wrong):
        raise ValueError(f"labels must be 0 to {p.shape[-1] - 1}, got {wrong[0].item():g}")
    return p, y.long()


def _with_targets(values: Tensor, y: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
    """Draws ``(S, M)`` and targets ``(M,)`` of one dtype."""
    draws, y = _draws("values", values), _check.tensor("y", y)
    if y.shape != draws.shape[1:]:
        raise ValueError(
            f"values have shape {tuple(values.shape)} and y {tuple(y.shape)}: draws (..., M) need one target for each "
            "of the M points"
        )
    return draws, y.to(draws)


def _are_of_classes(values: Tensor, of_classes: bool | None) -> bool:
    """Whether the last dimension runs over what belongs to one point: as was said, or by the values.

    Raises:
        ValueError: if that was not said and the values don't tell.
    """
    if of_classes is not None:
        return _check.flag("of_classes", of_classes)
    if values.ndim < 2 or values.shape[-1] == 1 or values.numel() == 0:
        return False
    adds_up = bool(((values.sum(-1) - 1).abs() <= SUM_ERROR).all() and ((values >= 0) & (values <= 1)).all())
    shape = tuple(values.shape)
    if adds_up and (values.shape[-1] == 2 or ((values - 0.5).abs() > 0.5 - SURE).all()):
        why = f"its last dimension adds up to 1, as of {shape[-1]} classes, but so may class 1 of {shape[-1]} points"
    elif not adds_up and values.ndim > 3:
        why = "its last dimension may be points, or the numbers of one target"
    else:
        return adds_up
    raise ValueError(
        f"predictions of shape {shape} are ambiguous: {why}. Say of_classes=True for (..., M, K), of_classes=False for "
        "(..., M)"
    )


def _draws(name: str, values: Tensor, of_classes: bool = False) -> Tensor:
    """All leading dimensions as one: ``(..., M)`` to ``(draws, M)``, or of classes ``(..., M, K)``."""
    values, last = _check.tensor(name, values), 2 if of_classes else 1
    if values.ndim < last or math.prod(values.shape[:-last]) == 0:
        raise ValueError(
            f"{name} have shape {tuple(values.shape)}, and need (..., {'M, K' if of_classes else 'M'}), all leading "
            "dimensions draws, at least one"
        )
    values = values if values.is_floating_point() else values.double()
    return values.reshape(-1, *values.shape[-last:])


def _check_probabilities(p: Tensor, of_classes: bool) -> None:
    outside = ~((p >= 0) & (p <= 1))
    if outside.any():
        raise ValueError(f"probabilities must lie in [0, 1], got {p[outside][0].item():g}")
    off = (p.sum(-1) - 1).abs() > SUM_ERROR if of_classes else p.new_zeros(0)
    if off.any():
        raise ValueError(f"the probabilities of all classes must add up to 1, got {p.sum(-1)[off][0].item():g}")
