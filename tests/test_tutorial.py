"""The tutorial's problem: its points, its posterior, and its published table."""

import pytest
import torch

from bnn_utils import boxes, published_summary, tutorial


def test_boxes_are_the_tutorials_data(golden):
    data = boxes()
    assert torch.equal(data.x, golden["x"])
    assert torch.equal(data.y, golden["t"])
    assert len(data) == 80


def test_boxes_follow_the_seed():
    assert torch.equal(boxes(40, seed=3).x, boxes(40, seed=3).x)
    assert not torch.equal(boxes(40, seed=3).x, boxes(40, seed=4).x)


def test_classes_of_boxes_are_opposite_quadrants():
    data = boxes(400, seed=5)
    assert torch.equal(data.y, (data.x.prod(1) > 0).double())
    assert data.x.abs().max() < 5
    assert data.x.abs().min() > 0.5 - 1e-9


@pytest.mark.parametrize("n", [0, -4, 6])
def test_boxes_need_a_multiple_of_four(n):
    with pytest.raises(ValueError, match=f"multiple of 4.*got {n}"):
        boxes(n)


def test_posterior_is_what_the_tutorial_writes(theta):
    """Sums of torch's own log densities; fails for another width, activation, prior or data set."""
    posterior = tutorial.posterior()
    assert posterior.flat.shapes == {
        "0.weight": (3, 2), "0.bias": (3,), "2.weight": (2, 3), "2.bias": (2,), "4.weight": (1, 2), "4.bias": (1,)
    }  # fmt: skip
    for row in theta:
        w1, b1, w2, b2, w3, b3 = posterior.flat.unravel(row).values()
        h = torch.tanh(torch.tanh(boxes().x @ w1.T + b1) @ w2.T + b2)
        likelihood = torch.distributions.Bernoulli(logits=(h @ w3.T + b3)[:, 0])
        prior = torch.distributions.Normal(torch.zeros_like(row), 10 / 3)
        expected = prior.log_prob(row).sum() + likelihood.log_prob(boxes().y).sum()
        torch.testing.assert_close(posterior.log_prob(row), expected, rtol=1e-12, atol=0)


def test_published_summary_is_the_tutorials_table():
    table = published_summary()
    assert len(table) == 20
    assert (table["ess_bulk"].min().round(1), table["ess_bulk"].max().round(1)) == (14.3, 76.1)
    assert (table["r_hat"].min(), table["r_hat"].max()) == (1.0004, 1.3708)
