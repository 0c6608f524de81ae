"""Likelihoods against torch.distributions and pencil and paper."""

import math

import pytest
import torch

from bnn_utils import Bernoulli

bernoulli = Bernoulli()


def test_against_torch_distributions():
    outputs = torch.linspace(-8, 8, 24, dtype=torch.float64).reshape(3, 8, 1)
    y = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.float64)
    expected = torch.distributions.Bernoulli(logits=outputs[..., 0]).log_prob(y).sum(-1)
    torch.testing.assert_close(bernoulli.log_prob(outputs, y), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(bernoulli.mean(outputs), torch.sigmoid(outputs[..., 0]))


def test_by_hand():
    """Odds of 3 : 1, that is a logit of log 3, for a point of each class."""
    outputs = torch.full((2, 1), math.log(3), dtype=torch.float64)
    y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    value, grad = bernoulli.log_prob(outputs, y), bernoulli.grad(outputs, y)
    assert value.item() == pytest.approx(math.log(3 / 4) + math.log(1 / 4), rel=1e-14)
    assert grad.flatten().tolist() == pytest.approx([1 / 4, -3 / 4], rel=1e-14)
    assert bernoulli.mean(outputs).tolist() == pytest.approx([3 / 4, 3 / 4], rel=1e-14)


def test_closed_forms_are_the_general_ones():
    outputs = torch.linspace(-30, 30, 50, dtype=torch.float64).reshape(5, 10, 1)
    y = (torch.arange(10) % 2).double()
    general = super(Bernoulli, bernoulli)
    torch.testing.assert_close(bernoulli.log_prob(outputs, y), general.log_prob(outputs, y), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(bernoulli.grad(outputs, y), general.grad(outputs, y), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(dtype):
    outputs = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], dtype=dtype)
    y = torch.tensor([1, 0, 0, 1], dtype=dtype)
    value, grad = bernoulli.log_prob(outputs, y), bernoulli.grad(outputs, y)
    assert value == bernoulli.log_prob(outputs, y) == -2e4
    assert grad.flatten().tolist() == [0, 0, -1, 1]
    assert bernoulli.mean(outputs).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_labels_come_in_any_dtype(dtype):
    targets = bernoulli.targets(torch.tensor([0, 1]).to(dtype), torch.zeros(2, 1, dtype=torch.float64))
    assert targets.dtype == torch.float64
    assert targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("y", "outputs", "message"),
    [
        ([0, 1, 2, -1], (4, 1), "labels 0 and 1, but y also holds -1, 2"),
        ([0.5, 1, 0, 1], (4, 1), r"y also holds 0\.5"),
        ([[0], [1]], (2, 1), r"labels of shape \(N,\), got \(2, 1\)"),
        ([0, 1], (2,), r"outputs of shape \(2, 1\); this network gives \(2,\)"),
        ([0, 1], (2, 2), r"this network gives \(2, 2\): end it with nn.Linear\(..., 1\)"),
        ([0, 1], (3, 1), r"outputs of shape \(2, 1\); this network gives \(3, 1\)"),
    ],
)
def test_targets_and_outputs_that_do_not_fit(y, outputs, message):
    with pytest.raises(ValueError, match=message):
        bernoulli.targets(torch.tensor(y), torch.zeros(outputs))
