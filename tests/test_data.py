"""Data sets and their checks."""

import pytest
import torch

from bnn_utils import Data, boxes, square_grid

X, Y = torch.zeros(3, 2), torch.zeros(3)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (X, Y[:2], ValueError, "x has 3 points and y has 2"),
        (X[:0], Y[:0], ValueError, r"x holds no points: its shape is \(0, 2\)"),
        (X, torch.tensor(1.0), ValueError, r"y holds no points: its shape is \(\)"),
        (X, ["0", "0", "1"], TypeError, "y must be a tensor or an array of numbers, .* values of type <U1"),
    ],
)
def test_data_that_do_not_fit(x, y, error, message):
    with pytest.raises(error, match=message):
        Data(x, y)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_data_with_holes(value):
    x = X.clone()
    x[1, 0] = value
    with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values, the first at \[1, 0\]"):
        Data(x, Y)
    y = Y.clone()
    y[2] = value
    with pytest.raises(ValueError, match=r"y has 1 NaN or infinite values, the first at \[2\]"):
        Data(X, y)


@pytest.mark.parametrize("labels", [torch.int64, torch.bool])
def test_to_keeps_the_dtype_of_labels(labels):
    data = Data(X, Y.to(labels)).to(torch.float64)
    assert (data.x.dtype, data.y.dtype) == (torch.float64, labels)


def test_to_changes_the_dtype_of_numbers():
    data = boxes().to(torch.float32)
    assert (data.x.dtype, data.y.dtype) == (torch.float32, torch.float32)


def test_grid_runs_along_the_first_coordinate():
    expected = torch.tensor([[-1.0, -1], [0, -1], [1, -1], [-1, 0], [0, 0], [1, 0], [-1, 1], [0, 1], [1, 1]])
    grid = square_grid(3, limit=1)
    assert grid.dtype == torch.float64
    assert torch.equal(grid, expected.double())


def test_grid_takes_the_dtype_of_another_tensor():
    assert square_grid(like=X).dtype == X.dtype
    assert square_grid(like=X).shape == (625, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num": 1}, "num must be a whole number of at least 2"), ({"limit": 0.0}, "limit must be positive and finite")],
)
def test_grid_needs_an_area(arguments, message):
    with pytest.raises(ValueError, match=message):
        square_grid(**arguments)
