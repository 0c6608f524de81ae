"""Likelihoods against torch.distributions and pencil and paper."""

import math

import pytest
import torch
from scipy.stats import norm

from bnn_utils import Bernoulli, Categorical, Gaussian, Likelihood, LogScale
from bnn_utils.likelihoods import ByDistribution
from bnn_utils.random import lend_to_torch

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


# --- classes and real numbers -----------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def poisson(outputs):
    return torch.distributions.Poisson(outputs[..., 0].exp())


# likelihood, number of outputs, targets of 12 points
CASES = {
    "Bernoulli": (Bernoulli(), 1, torch.arange(12) % 2),
    "Categorical": (Categorical(), 3, torch.arange(12) % 3),
    "known noise": (Gaussian(scale=0.7), 1, normal(12, seed=1)),
    "known noise, two targets": (Gaussian(scale=0.7), 2, normal(12, 2, seed=1)),
    "noise by the outputs": (Gaussian(), 2, normal(12, seed=1)),
    "noise by the outputs, two targets": (Gaussian(), 4, normal(12, 2, seed=1)),
    "a function": (ByDistribution(poisson), 1, torch.arange(12) % 4),
}
cases = pytest.mark.parametrize(("likelihood", "num", "y"), CASES.values(), ids=CASES)


@cases
def test_log_probs_are_the_distributions(likelihood, num, y):
    outputs = normal(5, 12, num)
    y = likelihood.targets(y, outputs[0])
    distribution = likelihood.distribution(outputs)
    expected = distribution.log_prob(y)
    assert distribution.batch_shape == (5, 12)
    assert distribution.event_shape == y.shape[1:]
    torch.testing.assert_close(likelihood.log_probs(outputs, y), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(likelihood.log_prob(outputs, y), expected.sum(-1), rtol=1e-12, atol=1e-12)


@cases
def test_gradients_are_autograds(likelihood, num, y):
    outputs = normal(5, 12, num)
    y = likelihood.targets(y, outputs[0])
    expected = Likelihood.grad(likelihood, outputs, y)
    torch.testing.assert_close(likelihood.grad(outputs, y), expected, rtol=1e-12, atol=1e-12)


@cases
def test_each_row_may_have_targets_of_its_own(likelihood, num, y):
    outputs = normal(2, 12, num)
    both = torch.stack([likelihood.targets(y, outputs[0]), likelihood.targets(y.flip(0), outputs[0])])
    values, grads = likelihood.log_prob(outputs, both), likelihood.grad(outputs, both)
    for row in range(2):
        torch.testing.assert_close(values[row], likelihood.log_prob(outputs[row], both[row]))
        torch.testing.assert_close(grads[row], likelihood.grad(outputs[row], both[row]))


@cases
def test_twice_the_data_twice_the_log_likelihood(likelihood, num, y):
    """A sum over points; fails for a mean."""
    outputs = normal(12, num)
    y = likelihood.targets(y, outputs)
    twice = likelihood.log_prob(torch.cat([outputs, outputs]), torch.cat([y, y]))
    torch.testing.assert_close(twice, 2 * likelihood.log_prob(outputs, y), rtol=1e-14, atol=0)


@cases
@pytest.mark.statistical
def test_mean_is_the_average_target(likelihood, num, y):
    outputs = normal(12, num)
    with lend_to_torch(generator()):
        drawn = likelihood.distribution(outputs).sample((100_000,)).double()
    if isinstance(likelihood, Categorical):
        drawn = torch.nn.functional.one_hot(drawn.long(), num).double()
    error = drawn.std(0) / math.sqrt(len(drawn))
    z = (drawn.mean(0) - likelihood.mean(outputs)) / error
    assert z.abs().max() < norm.isf(1e-4 / 2 / z.numel())


def test_two_classes_are_bernoulli():
    """The softmax of (0, z) is the sigmoid of z."""
    z = normal(7, 1)
    y = torch.arange(7) % 2
    outputs = torch.cat([torch.zeros_like(z), z], dim=1)
    torch.testing.assert_close(Categorical().log_prob(outputs, y), bernoulli.log_prob(z, y.double()))
    torch.testing.assert_close(Categorical().mean(outputs)[:, 1], bernoulli.mean(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_of_classes(dtype):
    outputs = torch.tensor([[1e4, 0, 0], [0, 1e4, -1e4]], dtype=dtype)
    y = torch.tensor([0, 2])
    assert Categorical().log_probs(outputs, y).tolist() == [0, -2e4]
    assert Categorical().grad(outputs, y).tolist() == [[0, 0, 0], [0, -1, 1]]


def test_gaussian_by_hand():
    """Two standard deviations off: -2 - log(scale) - log(2 pi) / 2."""
    expected = -2 - math.log(0.5) - math.log(2 * math.pi) / 2
    y = torch.tensor([2.0], dtype=torch.float64)
    assert Gaussian(scale=0.5).log_prob(torch.tensor([[1.0]]).double(), y).item() == pytest.approx(expected)
    outputs = torch.tensor([[1.0, math.log(0.5)]], dtype=torch.float64)
    assert Gaussian().log_prob(outputs, y).item() == pytest.approx(expected)


def test_log_scale_is_a_parameter_beside_the_outputs():
    layer = LogScale(2).double()
    assert layer(normal(3, 5, 2)).shape == (3, 5, 4)
    assert [tuple(p.shape) for p in layer.parameters()] == [(2,)]
    assert torch.equal(layer(normal(5, 2))[:, :2], normal(5, 2))
    with pytest.raises(ValueError, match=r"LogScale\(2\) follows a layer with 1 outputs: say LogScale\(1\)"):
        layer(normal(5, 1))


def test_a_function_computes_with_what_diverged():
    """NaN is for the sampler to reject; torch's own checks are as they were afterwards."""
    likelihood, nan = ByDistribution(poisson), torch.full((2, 1), torch.nan)
    assert likelihood.log_prob(nan, torch.ones(2)).isnan()
    with pytest.raises(ValueError, match="Expected parameter rate"):
        torch.distributions.Poisson(nan)


@pytest.mark.parametrize(
    ("likelihood", "y", "outputs", "message"),
    [
        (Categorical(), [0, 1, 2, 3], (4, 3), "class numbers 0 to 2, .* 3 outputs, but y also holds 3"),
        (Categorical(), [0.0, 0.5, 1], (3, 3), r"but y also holds 0\.5"),
        (Categorical(), [0, 1], (2, 1), r"outputs of shape \(2, K\) with K >= 2; this network gives \(2, 1\)"),
        (Categorical(), [[0, 1], [1, 0]], (2, 2), r"got \(2, 2\); of one-hot rows take y.argmax\(1\)"),
        (Gaussian(0.1), [0.0, 1], (2, 2), r"Gaussian\(scale=0.1\) needs a mean for each target, .* \(2, 1\)"),
        (Gaussian(), [0.0, 1], (2, 1), r"this network gives \(2, 1\): end it with .*1\), LogScale\(1\), or"),
        (Gaussian(), [[0.0], [1]], (2, 2), r"got \(2, 1\): pass y\[:, 0\]"),
        (Gaussian(1), [[0.0, 1], [1, 2]], (2, 3), r"outputs of shape \(2, 2\); this network gives \(2, 3\)"),
        (ByDistribution(poisson), [0, -1], (2, 1), "y holds -1, which Poisson cannot give"),
        (ByDistribution(poisson), [[0], [1]], (2, 1), r"batch shape \(2,\) .*need \(2,\) and \(1,\)"),
        (
            ByDistribution(lambda outputs: torch.distributions.Poisson(outputs.exp())),
            [0, 1],
            (2, 1),
            r"batch shape \(2, 1\).*squeeze the outputs' last dimension",
        ),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_the_others(likelihood, y, outputs, message):
    with pytest.raises(ValueError, match=message):
        likelihood.targets(torch.tensor(y), torch.zeros(outputs))


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan])
def test_noise_is_positive(scale):
    with pytest.raises(ValueError, match="scale"):
        Gaussian(scale)
