"""The posterior: its density and gradient against formulas and plain autograd, and what it refuses."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn
from torch.func import functional_call

from bnn_utils import (
    HMC,
    Bernoulli,
    Data,
    Gaussian,
    Likelihood,
    NormalPrior,
    Posterior,
    ReplicaExchange,
    boxes,
    network,
    sample,
)
from bnn_utils.gradients import backprop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_autograd(posterior, module, theta):
    """Log joint and gradient of a 0.09 prior and one output from the plain module and torch's distributions."""
    theta = theta.clone().requires_grad_()
    pieces, start = {}, 0
    for name, p in module.named_parameters():
        if p.requires_grad:
            pieces[name] = theta[start : start + p.numel()].reshape(p.shape)
            start += p.numel()
    outputs = functional_call(copy.deepcopy(module).double(), pieces, (posterior.data.x,))
    value = posterior.likelihood.distribution(outputs).log_prob(posterior.data.y).sum()
    value = value - 0.09 / 2 * theta.square().sum() + len(theta) / 2 * math.log(0.09 / (2 * math.pi))
    (grad,) = torch.autograd.grad(value, theta)
    return value.detach(), grad


def test_log_joint_by_hand(posterior, theta):
    row = theta[0]
    w1, b1, w2, b2, w3, b3 = row.split([6, 3, 6, 2, 2, 1])
    h = torch.tanh(posterior.data.x @ w1.reshape(3, 2).T + b1)
    z = torch.tanh(h @ w2.reshape(2, 3).T + b2) @ w3 + b3
    log_likelihood = (posterior.data.y * z - torch.log1p(torch.exp(z))).sum()
    log_prior = -0.09 / 2 * row.square().sum() + 20 / 2 * math.log(0.09 / (2 * math.pi))
    torch.testing.assert_close(posterior.log_likelihood(row), log_likelihood)
    torch.testing.assert_close(posterior.log_prior(row), log_prior)
    torch.testing.assert_close(posterior.log_prob(row), log_prior + log_likelihood)


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_many_vectors_are_one_by_one(make_posterior, theta, gradient):
    posterior = make_posterior(gradient=gradient)
    values, grads = posterior.log_prob_and_grad(theta)
    torch.testing.assert_close(values, posterior.log_prob(theta), rtol=1e-13, atol=0)
    for row, value, grad in zip(theta, values, grads, strict=True):
        one_value, one_grad = posterior.log_prob_and_grad(row)
        assert one_value.shape == ()
        torch.testing.assert_close(one_value, value, rtol=1e-13, atol=0)
        torch.testing.assert_close(one_grad, grad, rtol=1e-10, atol=1e-12)


ACTIVATIONS = [
    nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Softplus(), nn.Softplus(3.0, 5.0),
    nn.Identity(),
]  # fmt: skip


@given(
    widths=st.lists(st.integers(1, 6), min_size=0, max_size=3),
    activations=st.lists(st.sampled_from(ACTIVATIONS), min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    lanes=st.integers(1, 3),
    points=st.sampled_from([4, 80, 2000]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150)
def test_closed_form_gradient_is_autograds(widths, activations, biases, lanes, points, seed):
    layers = []
    for (a, b), activation, bias in zip(itertools.pairwise([2, *widths]), activations, biases, strict=False):
        layers += [nn.Linear(a, b, bias), activation]
    net = nn.Sequential(*layers, nn.Sequential(nn.Linear(([2, *widths])[-1], 1, biases[3]), activations[3]))
    posterior = Posterior(net, boxes(points), NormalPrior(0.09), Gaussian(0.5), gradient="closed-form")
    theta = torch.randn(lanes, posterior.dim, generator=generator(seed), dtype=torch.float64)
    values, grads = posterior.log_prob_and_grad(theta)
    alone = posterior.density(lanes).joint.grad(theta)
    for row, value, grad, same in zip(theta, values, grads, alone, strict=True):
        expected_value, expected_grad = by_autograd(posterior, net, row)
        torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)
        assert torch.equal(grad, same)


@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    activations=st.lists(st.sampled_from(ACTIVATIONS), min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80)
def test_large_layers_have_the_same_gradient(widths, activations, biases, seed):
    """What is done for speed where layers are large, done where they are small."""
    layers = []
    for (a, b), activation, bias in zip(itertools.pairwise([2, *widths, 1]), activations, biases, strict=False):
        layers += [nn.Linear(a, b, bias), nn.Tanh() if seed % 2 else activation]
    posterior = Posterior(nn.Sequential(*layers), boxes(12), NormalPrior(0.09), Gaussian(0.5))
    theta = torch.randn(3, posterior.dim, generator=generator(seed), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backprop, "LARGE_LAYER", 1)
        large = posterior.density(3).joint
    for one, two in zip(large.log_prob_and_grad(theta), posterior.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    assert torch.equal(large.grad(theta), large.log_prob_and_grad(theta)[1])


@pytest.mark.parametrize("block", [1, 5 * 3 * 7, 5 * 3 * 80, 3 * 3 * 80, 80 * 5 * 3 * 2])
@pytest.mark.parametrize("many", [False, True], ids=["shared targets", "targets of each lane"])
def test_blocks_of_lanes_and_points_add_up(posterior, theta, labels, monkeypatch, block, many):
    """From a point and a lane at a time to all at once; fails where a block is left out, or counted twice."""
    posterior = posterior.with_targets(labels) if many else posterior
    expected_values, expected_grads = posterior.density(5).joint.log_prob_and_grad(theta)
    monkeypatch.setattr(backprop, "BLOCK_ELEMENTS", block)
    joint = posterior.density(5).joint
    values, grads = joint.log_prob_and_grad(theta)
    torch.testing.assert_close(values, expected_values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)
    assert torch.equal(joint.grad(theta), grads)


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_a_copy_by_pickle_computes_the_same(make_posterior, theta, gradient):
    posterior = make_posterior(gradient=gradient)
    copied = pickle.loads(pickle.dumps(posterior))
    assert copied.gradient == gradient
    for one, two in zip(posterior.log_prob_and_grad(theta), copied.log_prob_and_grad(theta), strict=True):
        assert torch.equal(one, two)


def test_twice_the_data_twice_the_log_likelihood(make_posterior, theta):
    data = boxes()
    twice = make_posterior(data=Data(data.x.repeat(2, 1), data.y.repeat(2)))
    torch.testing.assert_close(
        twice.log_likelihood(theta), 2 * make_posterior().log_likelihood(theta), rtol=1e-12, atol=0
    )


# --- priors -----------------------------------------------------------------------------------------------------------


def expected_precision(net, weight, bias):
    return torch.cat([torch.full((p.numel(),), weight if name.endswith("weight") else bias, dtype=torch.float64)
                      for name, p in net.named_parameters()])  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "weight", "bias"),
    [
        (0.09, 0.09, 0.09),
        ({"*": 0.5}, 0.5, 0.5),
        ({"*.bias": 4.0, "*": 0.25}, 0.25, 4.0),
        (torch.full((20,), 2.0), 2.0, 2.0),
    ],
)
def test_normal_prior(make_posterior, net, theta, precision, weight, bias):
    sd = expected_precision(net, weight, bias) ** -0.5
    posterior = make_posterior(prior=NormalPrior(precision))
    expected = torch.distributions.Normal(0, sd).log_prob(theta).sum(-1)
    torch.testing.assert_close(posterior.log_prior(theta), expected, rtol=1e-13, atol=0)
    without_data = make_posterior(prior=NormalPrior(precision), likelihood=Silent())
    value, grad = without_data.log_prob_and_grad(theta)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(grad, -theta / sd**2, rtol=1e-13, atol=0)


@pytest.mark.parametrize("precision", [0.0, -1.0, math.nan, math.inf, {"*": -2.0}, torch.tensor([1.0, 0.0])])
def test_precision_is_positive(precision):
    with pytest.raises(ValueError, match="must be positive and finite"):
        NormalPrior(precision)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (torch.ones(19), r"shape \(19,\), but this network has 20 parameters"),
        ({"*.weight": 1.0}, "no pattern of .* matches parameter 0.bias"),
        ({"*": 1.0, "head.*": 2.0}, "'head.*' sets no parameter of this network"),
    ],
)
def test_precision_that_does_not_fit(make_posterior, precision, message):
    with pytest.raises(ValueError, match=message):
        make_posterior(prior=NormalPrior(precision))


@pytest.mark.statistical
def test_prior_draws(posterior):
    """Mean and variance of 40,000 normals, within two-sided 1e-4 limits; fails when sd and precision are mixed up."""
    before = torch.get_rng_state()
    draws = posterior.sample_prior(2000, generator(5)) * 0.09**0.5
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws, posterior.sample_prior(2000, generator(5)) * 0.09**0.5)
    limit = norm.isf(1e-4 / 2 / 2)
    count = draws.numel()
    assert abs(draws.mean().item()) < limit * count**-0.5
    assert abs(draws.square().mean().item() - 1) < limit * (2 / count) ** 0.5


def test_prior_draws_go_on_where_the_generator_is(posterior):
    one, two = generator(5), generator(5)
    both = torch.cat([posterior.sample_prior(1, one), posterior.sample_prior(1, one)])
    expected = torch.stack([torch.randn(20, generator=two, dtype=torch.float64) for _ in range(2)]) * 0.09**-0.5
    torch.testing.assert_close(both, expected)


# --- other targets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def labels():
    return (torch.rand(5, 80, generator=generator(1)) < 0.5).double()


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
@pytest.mark.parametrize("rows_each", [1, 2])
def test_every_row_is_judged_by_its_own_data_set(make_posterior, theta, labels, gradient, rows_each):
    """As if each data set were alone; rows of one data set are neighbours."""
    together, theta = make_posterior(gradient=gradient).with_targets(labels), torch.cat(rows_each * [theta])
    values, grads = together.log_prob_and_grad(theta)
    torch.testing.assert_close(together.log_prob(theta), values, rtol=1e-12, atol=0)
    density = together.density(len(theta))
    parts = [part.log_prob_and_grad(theta) for part in (density.prior, density.likelihood)]
    torch.testing.assert_close(parts[0][1] + parts[1][1], grads)
    for row in range(len(theta)):
        alone = make_posterior(data=Data(boxes().x, labels[row // rows_each]), gradient=gradient)
        value, grad = alone.log_prob_and_grad(theta[row])
        torch.testing.assert_close(values[row], value, rtol=1e-12, atol=0)
        torch.testing.assert_close(grads[row], grad, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(together.dataset(row // rows_each).log_prob(theta[row]), value)


def test_many_data_sets_are_one_batch(posterior, theta, labels):
    """The draws are those of each data set alone, with the same random numbers; and they survive a copy."""
    together = pickle.loads(pickle.dumps(posterior.with_targets(labels)))
    assert together.num_datasets == 5
    assert "5 data sets" in repr(together)
    for kernel in (HMC(0.05, 3), ReplicaExchange(HMC(0.05, 3), 3)):
        draws = sample(together, kernel, 10, num_chains=5, init=theta, seed=0, progress=False).draws
        for k in range(5):
            alone = sample(together.dataset(k), kernel, 10, num_chains=5, init=theta, seed=0, progress=False).draws
            torch.testing.assert_close(draws[k], alone[k], rtol=0, atol=1e-9)
    assert torch.equal(posterior.dataset(0).data.y, boxes().y), "the posterior itself is as it was"


def test_other_targets_for_all_rows(posterior, theta, labels):
    for y in (labels[0], labels[:1]):
        other = posterior.with_targets(labels).with_targets(y)
        assert other.num_datasets == 1
        assert torch.equal(other.data.y, labels[0])
        expected = [posterior.with_targets(labels).dataset(0).log_prob(row) for row in theta]
        torch.testing.assert_close(other.log_prob(theta), torch.stack(expected))


@pytest.mark.parametrize("shape", [(79,), (0, 80), (5, 79), (2, 5, 80), ()])
def test_targets_of_another_shape(posterior, labels, shape):
    for one in (posterior, posterior.with_targets(labels)):
        with pytest.raises(ValueError, match=r"need \(80,\), or \(S, 80\) for S data sets"):
            one.with_targets(torch.zeros(shape))


def test_targets_are_checked_and_counted(posterior, theta, labels):
    with pytest.raises(ValueError, match="labels 0 and 1, but y also holds 3"):
        posterior.with_targets(3 * labels)
    together = posterior.with_targets(labels)
    for rows in (theta[0], theta[:4]):
        with pytest.raises(ValueError, match=f"5 data sets .* it got {1 if rows.ndim == 1 else 4}"):
            together.log_prob(rows)
    with pytest.raises(ValueError, match="num_chains=5"):
        sample(together, HMC(0.05, 4), 3, progress=False)
    with pytest.raises(ValueError, match="5 data sets is sampled in one batch: leave batch_size out"):
        sample(together, HMC(0.05, 4), 3, num_chains=5, batch_size=2, progress=False)


@pytest.mark.statistical
def test_simulated_targets(posterior, theta):
    """Labels come as often as the network says; the global stream stays as it was.

    Of a network with small weights, which is sure of no point: over 1,000 seeds probabilities were 0.07 to 0.92.
    """
    before, stream, theta = torch.get_rng_state(), generator(2), theta / 6
    y = posterior.simulate(theta[:1].expand(4000, -1), stream)
    p = posterior.predict(theta[0], posterior.data.x)
    assert y.shape == (4000, 80)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    z = (y.sum(0) - 4000 * p) / (4000 * p * (1 - p)).sqrt()
    assert p.min() > 0.01
    assert p.max() < 0.99
    assert z.abs().max() < norm.isf(1e-4 / 2 / 80)
    assert posterior.simulate(theta[0], stream).shape == (80,)
    assert torch.equal(posterior.simulate(theta, generator(3)), posterior.simulate(theta, generator(3)))
    assert torch.equal(torch.get_rng_state(), before)


# --- parts that others bring ------------------------------------------------------------------------------------------


class Silent(Bernoulli):
    """Says nothing about theta."""

    def log_prob(self, outputs, y):
        return 0 * outputs.sum((-1, -2))

    def grad(self, outputs, y):
        return torch.zeros_like(outputs)


class LaplacePrior:
    def distribution(self, flat):
        scale = torch.ones_like(flat.ravel())
        return torch.distributions.Independent(torch.distributions.Laplace(0 * scale, scale), 1)


class Poisson(Likelihood):
    def targets(self, y, outputs):
        return y.to(outputs.dtype)

    def distribution(self, outputs):
        return torch.distributions.Poisson(outputs.squeeze(-1).exp(), validate_args=False)


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_other_priors_and_likelihoods_plug_in(make_posterior, theta, gradient):
    theta = theta / 10
    posterior = make_posterior(prior=LaplacePrior(), likelihood=Poisson(), gradient=gradient)
    rate = posterior.flat(theta, posterior.data.x)[..., 0]
    expected = (posterior.data.y * rate - rate.exp()).sum(-1) - theta.abs().sum(-1) - 20 * math.log(2)
    values, grads = posterior.log_prob_and_grad(theta)
    torch.testing.assert_close(values, expected)
    nudge = 1e-6 * torch.eye(20, dtype=torch.float64)[3]
    slope = (posterior.log_prob(theta + nudge) - posterior.log_prob(theta - nudge)) / 2e-6
    torch.testing.assert_close(grads[:, 3], slope, rtol=1e-6, atol=1e-6)
    assert posterior.sample_prior(7, generator()).shape == (7, 20)


# --- what is left alone, and what is refused --------------------------------------------------------------------------


def test_the_readers_module_is_not_changed(net, theta):
    before = copy.deepcopy(net.state_dict())
    posterior = Posterior(net.train(), boxes(), NormalPrior(0.09), Bernoulli())
    posterior.log_prob_and_grad(theta)
    assert net.training
    assert all(p.grad is None and p.dtype == torch.float32 for p in net.parameters())
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    with torch.no_grad():
        net[0].weight.zero_()  # and what the reader does to it later changes nothing
    assert posterior.flat.module[0].weight.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_in_the_datas_dtype(make_posterior, dtype):
    posterior = make_posterior(data=boxes().to(dtype))
    theta = posterior.sample_prior(2, generator())
    values, grads = posterior.log_prob_and_grad(theta)
    assert {theta.dtype, values.dtype, grads.dtype, posterior.predict(theta, posterior.data.x).dtype} == {dtype}


def test_labels_and_outputs_are_checked(make_posterior):
    data = boxes()
    with pytest.raises(ValueError, match="needs labels 0 and 1, but y also holds 2"):
        make_posterior(data=Data(data.x, 2 * data.y))
    with pytest.raises(ValueError, match=r"one logit per point.*gives \(80, 3\)"):
        make_posterior(module=nn.Linear(2, 3))
    with pytest.raises(ValueError, match="gradient must be"):
        make_posterior(gradient="numeric")


@pytest.mark.parametrize("shape", [(19,), (5, 21), (2, 5, 20), ()])
def test_theta_of_another_shape(posterior, shape):
    theta = torch.zeros(shape, dtype=torch.float64)
    for function in (posterior.log_prob, posterior.log_prior, posterior.log_likelihood, posterior.log_prob_and_grad):
        with pytest.raises(ValueError, match="this network has 20 parameters"):
            function(theta)


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_predict(make_posterior, posterior, monkeypatch, lead):
    draws = 3 * torch.randn(*lead, 20, generator=generator(), dtype=torch.float64)
    x = posterior.data.x[:11]
    p = posterior.predict(draws, x)
    assert p.shape == (*lead, 11)
    expected = torch.stack([torch.sigmoid(posterior.flat(row, x)[:, 0]) for row in draws.reshape(-1, 20)])
    torch.testing.assert_close(p, expected.reshape(*lead, 11))
    monkeypatch.setattr(network, "BLOCK_BYTES", 1000)
    torch.testing.assert_close(make_posterior().predict(draws, x), p)
    assert not p.requires_grad


def test_predict_checks_the_draws(posterior):
    with pytest.raises(ValueError, match="this network has 20 parameters"):
        posterior.predict(torch.zeros(2, 3, 19), posterior.data.x)


@pytest.mark.parametrize("shape", [(0, 2), (3,), (4, 5)])
def test_predict_checks_the_inputs(posterior, shape):
    with pytest.raises(ValueError, match=r"inputs have shape \(M, 2\)"):
        posterior.predict(torch.zeros(20), torch.zeros(shape))


class PriorPerElement:
    def distribution(self, flat):
        return torch.distributions.Normal(torch.zeros_like(flat.ravel()), 3.0)


class LikelihoodPerOutput(Poisson):
    def distribution(self, outputs):
        return torch.distributions.Poisson(outputs.exp(), validate_args=False)


@pytest.mark.parametrize("part", [{"prior": PriorPerElement()}, {"likelihood": LikelihoodPerOutput()}])
def test_parts_must_give_one_number(make_posterior, part):
    (name,) = part
    with pytest.raises(ValueError, match=f"the log {name} of one theta has shape .* should be one number"):
        make_posterior(**part)
