"""The split of predictive uncertainty against pencil and paper."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bnn_utils.predict import entropy, predictive_mean, split_uncertainty

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
    split = split_uncertainty(p)
    assert split.total.shape == p.shape[-1:]
    torch.testing.assert_close(split.total, split.aleatoric + split.epistemic, rtol=0, atol=1e-12)
    for part in split:
        assert part.min() >= 0
        assert part.max() <= 1 + 1e-12


@given(probabilities)
def test_classes_and_draws_may_be_exchanged(values):
    p = torch.from_numpy(values)
    for one, other in zip(split_uncertainty(p), split_uncertainty((1 - p).flip(0)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@given(probabilities)
def test_mean_is_over_all_draws(values):
    expected = values.mean(axis=tuple(range(values.ndim - 1)))
    torch.testing.assert_close(predictive_mean(torch.from_numpy(values)), torch.from_numpy(expected))


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_values_that_are_no_probabilities(value):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got {value:g}"):
        split_uncertainty(tensor([[0.5, value]]))
