"""What draws predict together, and scores of it, against pencil and paper and against formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import norm

from bnn_utils.predict import (
    brier_score,
    calibration_error,
    coverage,
    crps,
    entropy,
    log_score,
    mean_difference,
    predictive_mean,
    predictive_quantiles,
    split_uncertainty,
)
from targets import FALSE_ALARM

QUARTER = 2 - 0.75 * math.log2(3)  # entropy of 1/4 : 3/4, in bits

probabilities = arrays("float64", array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(0, 1))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_entropy_in_bits():
    assert entropy(tensor([0, 0.25, 0.5, 0.75, 1])).tolist() == pytest.approx([0, QUARTER, 1, QUARTER, 0], abs=1e-15)


def test_split_by_hand():
    """Four points: draws that contradict each other, draws that toss coins, draws between, draws that are sure."""
    split = split_uncertainty(tensor([[0, 0.5, 0.25, 1], [1, 0.5, 0.75, 1]]))
    assert split.total.tolist() == pytest.approx([1, 1, 1, 0], abs=1e-15)
    assert split.aleatoric.tolist() == pytest.approx([0, 1, QUARTER, 0], abs=1e-15)
    assert split.epistemic.tolist() == pytest.approx([1, 0, 1 - QUARTER, 0], abs=1e-15)


@given(probabilities)
def test_parts_add_up(values):
    p = torch.from_numpy(values)
    split = split_uncertainty(p, of_classes=False)
    assert split.total.shape == p.shape[-1:]
    torch.testing.assert_close(split.total, split.aleatoric + split.epistemic, rtol=0, atol=1e-12)
    for part in split:
        assert part.min() >= 0
        assert part.max() <= 1 + 1e-12


@given(probabilities)
def test_classes_and_draws_may_be_exchanged(values):
    p = torch.from_numpy(values)
    for one, other in zip(*(split_uncertainty(q, of_classes=False) for q in (p, (1 - p).flip(0))), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@given(probabilities)
def test_mean_is_over_all_draws(values):
    expected = values.mean(axis=tuple(range(values.ndim - 1)))
    torch.testing.assert_close(predictive_mean(torch.from_numpy(values), of_classes=False), torch.from_numpy(expected))


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_values_that_are_no_probabilities(value):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got {value:g}"):
        split_uncertainty(tensor([[0.5, value]]))


def softmax(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def test_two_classes_by_either_name():
    p = softmax(6, 5, 2)
    for one, other in zip(split_uncertainty(p, of_classes=True), split_uncertainty(p[..., 1]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(predictive_mean(p, of_classes=True)[:, 1], predictive_mean(p[..., 1]))


def test_split_of_classes_by_hand():
    """Four classes: draws that contradict each other, and draws that know nothing."""
    p = torch.stack([torch.eye(4).double(), torch.full((4, 4), 0.25).double()], dim=1)
    split = split_uncertainty(p, of_classes=True)
    assert split.total.tolist() == pytest.approx([2, 2])
    assert split.aleatoric.tolist() == pytest.approx([0, 2])
    assert split.epistemic.tolist() == pytest.approx([2, 0])


@pytest.mark.parametrize("shape", [(7, 5, 3), (2, 7, 5, 3), (5, 3)])
def test_classes_are_seen(shape):
    """Of three classes or more, whether they were said to be classes or not."""
    p = softmax(*shape).float()
    assert torch.equal(predictive_mean(p), predictive_mean(p, of_classes=True))
    assert predictive_mean(p).shape == (5, 3)
    assert torch.equal(entropy(p), entropy(p, of_classes=True))
    for one, other in zip(split_uncertainty(p), split_uncertainty(p, of_classes=True), strict=True):
        assert torch.equal(one, other)
    p = p[..., 1]  # class 1 of five points, which add up to nothing in particular
    assert torch.equal(predictive_mean(p), predictive_mean(p, of_classes=False))


@pytest.mark.parametrize("function", [predictive_mean, split_uncertainty, entropy])
@pytest.mark.parametrize(
    "p",
    [
        softmax(7, 5, 2),  # two classes at five points, or class 1 at two points in 35 draws
        torch.eye(3).double().expand(4, 3, 3),  # three classes of which every draw is sure, or one of three points
        torch.rand(2, 7, 5, 3, generator=torch.Generator().manual_seed(0)),  # five points with three numbers each?
    ],
    ids=["two", "sure", "many dimensions"],
)
def test_what_may_or_may_not_be_classes(function, p):
    with pytest.raises(ValueError, match=r"of shape .* are ambiguous: .* Say of_classes=True for \(\.\.\., M, K\)"):
        function(p)
    assert function(p, of_classes=False) is not None


@pytest.mark.parametrize("p", [tensor([0.2, 0.3, 0.5]), tensor([[1.0], [1.0]]), tensor([[0.2, 0.4, 0.5]])])
def test_class_1_of_points(p):
    """One network alone, one point alone, and what does not add up."""
    assert torch.equal(predictive_mean(p), predictive_mean(p, of_classes=False))
    assert torch.equal(entropy(p), entropy(p, of_classes=False))


def test_classes_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"must add up to 1, got 1\.5"):
        split_uncertainty(tensor([[[0.5, 1.0]]]), of_classes=True)


def test_quantiles_are_over_all_draws():
    values = torch.arange(101.0).view(101, 1) * tensor([1, -2])
    found = predictive_quantiles(values[torch.randperm(101, generator=torch.Generator().manual_seed(0))], [0.05, 0.5])
    assert found.tolist() == [[5, -190], [50, -100]]


def test_log_score_averages_densities():
    """One draw gives a point 0.8, another 0.2: log 0.5, not the mean of the logarithms."""
    assert log_score(tensor([[0.8, 0.1], [0.2, 0.1]]).log()).tolist() == pytest.approx([math.log(0.5), math.log(0.1)])
    far = tensor([[-2000.0], [-2001]])
    assert log_score(far).item() == pytest.approx(-2000 + math.log((1 + math.exp(-1)) / 2))


def test_crps_by_hand():
    """Draws 0, 1 and 3, target 1: mean distance 1, mean of the pairs' distances 1, 3 and 2."""
    assert crps(tensor([[0.0, 0], [1, 1], [3, 3]]), [1, 5]).tolist() == pytest.approx([1 - 1, 11 / 3 - 1])
    assert crps(tensor([[2.0], [2.0]]), [5.0]).item() == 3, "of one number, its distance"


@pytest.mark.statistical
def test_crps_of_a_normal_distribution():
    """The closed form of Gneiting and Raftery 2007; fails where draws are paired with themselves."""
    y = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
    draws = torch.randn(20_000, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    few = torch.stack([crps(part, y) for part in draws])  # of five draws each
    exact = y * (2 * torch.from_numpy(norm.cdf(y)) - 1) + 2 * torch.from_numpy(norm.pdf(y)) - 1 / math.sqrt(math.pi)
    z = (few.mean(0) - exact) / (few.std(0) / math.sqrt(len(few)))
    assert z.abs().max() < norm.isf(FALSE_ALARM / 2 / 3)


def test_coverage_by_hand():
    draws = torch.arange(101.0)[:, None].expand(101, 4)
    found = coverage(draws, tensor([5, 95, 96, 4]))
    assert found.value == 0.5, "from 5 to 95, the ends included"
    assert found.se == pytest.approx(math.sqrt(0.09 / 4))
    assert coverage(draws, tensor([5, 95, 96, 4]), level=0.98).value == 1


@pytest.mark.parametrize("score", [crps, coverage])
def test_scores_of_draws_refuse_what_does_not_fit(score):
    with pytest.raises(ValueError, match=r"shape \(5, 3\) and y \(2,\): draws .* one target for each of the M points"):
        score(torch.zeros(5, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"(hold one draw of each|level must lie between 0 and 1, got 1.5)"):
        crps(torch.zeros(1, 2), torch.zeros(2)) if score is crps else coverage(torch.zeros(5, 2), torch.zeros(2), 1.5)


def test_brier_score_by_hand():
    y = torch.tensor([1, 0, 0])
    assert brier_score(tensor([1, 1, 0.5]), y) == pytest.approx((0 + 2 + 0.5) / 3)
    p = tensor([[0.2, 0.3, 0.5], [1, 0, 0], [0, 0, 1]])
    assert brier_score(p, y) == pytest.approx((0.04 + 0.49 + 0.25 + 0 + 2) / 3)


def test_calibration_error_by_hand():
    """Ten points of confidence 0.85, seven right; ten of confidence 0.65 for class 0, all wrong."""
    p = tensor([0.85] * 10 + [0.35] * 10)
    y = torch.tensor([1] * 7 + [0] * 3 + [1] * 10)
    found = calibration_error(p, y)
    assert found.value == pytest.approx((0.15 + 0.65) / 2)
    assert calibration_error(torch.stack([1 - p, p], dim=1), y) == found


@pytest.mark.statistical
def test_calibration_error_of_chance():
    """Labels drawn from the probabilities: the error is of the size of its bootstrap; fails if they are confused."""
    p = softmax(5000, 4, seed=1)
    rng = torch.Generator().manual_seed(2)
    fair = calibration_error(p, torch.multinomial(p, 1, generator=rng)[:, 0])
    sharp = (p**4) / (p**4).sum(-1, keepdim=True)
    overconfident = calibration_error(sharp, torch.multinomial(p, 1, generator=rng)[:, 0])
    assert 0 < fair.value < 0.05
    assert overconfident.value > 0.2
    # A bin's accuracy has a standard error of at most 1/2 / sqrt(points in it).
    assert 0.001 < overconfident.se < 0.5 / 5000**0.5 * 1.2


@pytest.mark.statistical
def test_bootstrap_error_is_the_spread_over_data_sets():
    """Within a factor, as the bootstrap draws points anew as well as labels: over 25 seeds it was 1.26 ± 0.08."""
    p = softmax(400, 3)
    rng = torch.Generator().manual_seed(0)
    found = [calibration_error(p, torch.multinomial(p, 1, generator=rng)[:, 0]) for _ in range(100)]
    values, errors = torch.tensor(found).T
    assert 0.85 < errors.mean() / values.std() < 1.7


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([[[0.5]]], [1], r"\(1, 1, 1\) and \(1,\): average over draws first"),
        ([0.5, 0.5], [1], r"\(2,\) and \(1,\)"),
        ([0.5, 1.5], [1, 0], r"must lie in \[0, 1\], got 1\.5"),
        ([0.5, 0.5], [1, 2], "labels must be 0 to 1, got 2"),
        ([[0.5, 0.5]], [0.5], r"labels must be 0 to 1, got 0\.5"),
    ],
)
@pytest.mark.parametrize("score", [brier_score, calibration_error])
def test_scores_check_what_they_get(score, p, y, message):
    with pytest.raises(ValueError, match=message):
        score(tensor(p), torch.tensor(y))


def test_mean_difference_by_hand():
    """1, 2, 3: mean 2, variance 1. Independent, the error is the root of 1/3; of splits into halves, of 1/3 + 1."""
    assert mean_difference([1, 2, 3]) == pytest.approx((2, math.sqrt(1 / 3)))
    assert mean_difference(tensor([1, 2, 3]), overlap=1.0) == pytest.approx((2, math.sqrt(4 / 3)))


@pytest.mark.parametrize(
    ("differences", "overlap", "said"), [([1.0], 0.0, "shape \\(1,\\)"), ([1.0, 2.0], -1.0, "got -1")]
)
def test_mean_difference_refuses(differences, overlap, said):
    with pytest.raises(ValueError, match=said):
        mean_difference(differences, overlap)


@pytest.mark.statistical
def test_error_over_overlapping_splits():
    """The error is that of new data: of 10 random thirds of 60 points, over 4,000 such data sets.

    A split's difference is the mean of its held-out third here, for which the formula is exact. The bound is the
    normal quantile of FALSE_ALARM: a variance of 4,000 numbers has a relative error of sqrt(2 / 4,000), and the mean of
    their squared errors, each of nine degrees of freedom, a third of that. Fails without the overlap: the ratio is 6.
    """
    rng = np.random.default_rng(0)
    points = rng.standard_normal((4000, 60))
    held_out = [np.stack([rng.permutation(60)[:20] for _ in range(10)]) for _ in points]
    found = [mean_difference(x[split].mean(1), overlap=20 / 40) for x, split in zip(points, held_out, strict=True)]
    ratio = np.var([d.value for d in found]) / np.mean([d.se**2 for d in found])
    assert abs(ratio - 1) < norm.isf(FALSE_ALARM / 2) * math.sqrt(2 / 4000) * math.sqrt(1 + 1 / 9)
