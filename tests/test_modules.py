"""Modules of every kind as posteriors: against the plain module by autograd, and those that cannot work."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bnn_utils import HMC, Bernoulli, Categorical, Data, Gaussian, LogScale, NormalPrior, Posterior, boxes, sample


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- with two inputs and a logit --------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.outer(x + torch.tanh(self.inner(x)))


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(1, 2, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.out(self.conv(x[:, None, :]).flatten(1))


def tied():
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(2, 1))


def frozen():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    net[0].weight.requires_grad_(False)
    return net


def hooked():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def batch_norm():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)).eval()


def reparametrised():
    """Weights that are the exponential of a parameter."""

    class Exp(nn.Module):
        def forward(self, x):
            return x.exp()

    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    nn.utils.parametrize.register_parametrization(net[2], "weight", Exp(), unsafe=True)
    return net


class Shifted(nn.Module):
    """A buffer that is read, one that is written to and never read, and a scalar parameter."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(2, 1), nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.tensor([1.0, -2.0]))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return self.scale * self.linear(x + self.shift)


def last_layer():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    net.requires_grad_(False)
    net[-1].requires_grad_(True)
    return net


def layer_norm():
    return nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))


# --- with other inputs and outputs ------------------------------------------------------------------------------------


class Words(nn.Module):
    """The mean embedding of five tokens, the embedding tied to the output layer."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(6, 3), nn.Linear(3, 6)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.embedding(tokens).mean(1)))


def images():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3))


def noisy():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), LogScale())


def noise_of_two():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Sequential(nn.Linear(3, 2), nn.Sequential(LogScale(2))))


def noise_from_one_layer():
    return nn.Sequential(nn.Linear(2, 1), LogScale())


def noise_by_the_network():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


def known_noise_in_the_network():
    net = noisy()
    net[-1].requires_grad_(False)
    return net


def noise_twice():
    return nn.Sequential(nn.Linear(2, 1), LogScale(1), LogScale(2))


PLANE = boxes(n=12)
LINE = normal(12, seed=1)
BOTH = normal(12, 2, seed=1)
CLASSES = torch.arange(12) % 3
# module, data, likelihood, gradient in use
CASES = {
    "residual": (Residual, PLANE, Bernoulli(), "autograd"),
    "convolution": (Convolution, PLANE, Bernoulli(), "autograd"),
    "tied": (tied, PLANE, Bernoulli(), "autograd"),
    "frozen": (frozen, PLANE, Bernoulli(), "autograd"),
    "last layer": (last_layer, PLANE, Bernoulli(), "closed-form"),
    "hooked": (hooked, PLANE, Bernoulli(), "autograd"),
    "batch normalisation": (batch_norm, PLANE, Bernoulli(), "autograd"),
    "layer normalisation": (layer_norm, PLANE, Bernoulli(), "autograd"),
    "reparametrised": (reparametrised, PLANE, Bernoulli(), "autograd"),
    "buffers": (Shifted, PLANE, Bernoulli(), "autograd"),
    "embedding": (lambda: Words().double(), Data(torch.arange(60).view(12, 5) % 6, CLASSES), Categorical(), "autograd"),
    "images": (images, Data(normal(12, 1, 6, 6), CLASSES), Categorical(), "autograd"),
    "stack, classes": (lambda: nn.Linear(2, 3), Data(PLANE.x, CLASSES), Categorical(), "closed-form"),
    "stack, known noise": (lambda: nn.Linear(2, 2), Data(PLANE.x, BOTH), Gaussian(0.3), "closed-form"),
    "noise": (noisy, Data(PLANE.x, LINE), Gaussian(), "closed-form"),
    "noise of two": (noise_of_two, Data(PLANE.x, BOTH), Gaussian(), "closed-form"),
    "noise, one layer": (noise_from_one_layer, Data(PLANE.x, LINE), Gaussian(), "closed-form"),
    "noise by the network": (noise_by_the_network, Data(PLANE.x, LINE), Gaussian(), "closed-form"),
    "frozen noise": (known_noise_in_the_network, Data(PLANE.x, LINE), Gaussian(), "autograd"),
    "a function": (
        lambda: nn.Linear(2, 2),
        Data(PLANE.x, LINE),
        lambda outputs: torch.distributions.StudentT(3.0, outputs[..., 0], outputs[..., 1].exp()),
        "closed-form",
    ),
}
cases = pytest.mark.parametrize(("make", "data", "likelihood", "gradient"), CASES.values(), ids=CASES)


def by_autograd(module, data, likelihood, theta):
    """Log joint and gradient from the plain module and its own parameters, without vectors, batches or closed forms."""
    module = copy.deepcopy(module).double()
    trainable = [p for p in module.parameters() if p.requires_grad]
    vector_to_parameters(theta.clone(), trainable)
    for p in trainable:
        p.requires_grad_(True)
    outputs = module(data.x)
    value = likelihood.distribution(outputs).log_prob(data.y).sum()
    prior = torch.distributions.Normal(0, torch.tensor(0.09, dtype=torch.float64).rsqrt())
    value = value + sum(prior.log_prob(p).sum() for p in trainable)
    return value.detach(), parameters_to_vector(torch.autograd.grad(value, trainable))


@cases
def test_density_and_gradient_are_the_plain_modules(make, data, likelihood, gradient):
    module = make()
    posterior = Posterior(module, data, NormalPrior(0.09), likelihood)
    assert posterior.gradient == gradient
    theta = normal(3, posterior.dim, seed=2)
    values, grads = posterior.log_prob_and_grad(theta)
    torch.testing.assert_close(posterior.log_prob(theta), values, rtol=1e-12, atol=1e-12)
    assert torch.equal(posterior.density(3).joint.grad(theta), grads)
    for row, value, grad in zip(theta, values, grads, strict=True):
        expected_value, expected_grad = by_autograd(posterior.flat.module, posterior.data, posterior.likelihood, row)
        torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)


@cases
def test_a_posterior_can_be_sampled_and_predicts(make, data, likelihood, gradient):
    posterior = Posterior(make(), data, NormalPrior(1.0), likelihood)
    chain = sample(posterior, HMC(0.01, 2), num_samples=3, num_chains=2, seed=1, progress=False)
    assert chain.draws.shape == (2, 3, posterior.dim)
    assert (chain.draws[:, 0] != chain.draws[:, 2]).any()
    predictions = posterior.predict(chain.draws, data.x)
    assert predictions.shape[:3] == (2, 3, 12)
    assert predictions.isfinite().all()
    simulated = posterior.simulate(posterior.sample_prior(4, generator()), generator())
    assert simulated.shape == (4, *data.y.shape)


@cases
def test_twice_the_data_twice_the_log_likelihood(make, data, likelihood, gradient):
    """Fails where anything is averaged over points."""
    once = Posterior(make(), data, NormalPrior(1.0), likelihood)
    twice = Posterior(
        once.flat.module, Data(torch.cat([data.x, data.x]), torch.cat([data.y, data.y])), once.prior, likelihood
    )
    theta = normal(2, once.dim)
    torch.testing.assert_close(twice.log_likelihood(theta), 2 * once.log_likelihood(theta), rtol=1e-12, atol=1e-12)


@cases
def test_log_likelihoods_of_points(make, data, likelihood, gradient):
    posterior = Posterior(make(), data, NormalPrior(1.0), likelihood)
    draws = normal(2, 3, posterior.dim)
    values = posterior.log_likelihoods(draws)
    assert values.shape == (2, 3, 12)
    torch.testing.assert_close(values.sum(-1), posterior.log_likelihood(draws.view(6, -1)).view(2, 3))
    held_out = posterior.log_likelihoods(draws, Data(data.x[:5], data.y[:5]))
    torch.testing.assert_close(held_out, values[..., :5])


@pytest.mark.parametrize("make", [Residual, frozen, hooked, known_noise_in_the_network, noise_twice])
def test_no_closed_form(make):
    module = make()
    data, likelihood = (
        (PLANE, Bernoulli())
        if make not in (known_noise_in_the_network, noise_twice)
        else (Data(PLANE.x, LINE if make is known_noise_in_the_network else BOTH), Gaussian())
    )
    with pytest.raises(ValueError, match=r"needs an nn\.Sequential of trainable nn\.Linear"):
        Posterior(module, data, NormalPrior(0.09), likelihood, gradient="closed-form")


# --- modules that cannot work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "why"),
    [(nn.Dropout(0.1), "random"), (nn.BatchNorm1d(3), "dependent on the batch")],
)
def test_training_mode(layer, why):
    net = nn.Sequential(nn.Linear(2, 3), layer, nn.Linear(3, 1))
    with pytest.raises(ValueError, match=rf"{type(layer).__name__} \(1\) is in training mode.*{why}.*module\.eval\(\)"):
        Posterior(net, boxes(), NormalPrior(0.09), Bernoulli())
    assert Posterior(net.eval(), boxes(), NormalPrior(0.09), Bernoulli()).dim >= 13


def test_batch_norm_without_statistics():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1)).eval()
    with pytest.raises(ValueError, match="keeps no running statistics"):
        Posterior(net, boxes(), NormalPrior(0.09), Bernoulli())


def test_dropout_of_nothing_is_no_randomness():
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.0), nn.Linear(3, 1))
    assert Posterior(net, boxes(), NormalPrior(0.09), Bernoulli()).dim == 13


class Random(nn.Linear):
    def forward(self, x):
        return super().forward(x + torch.randn(2))


class Counting(nn.Linear):
    """What it gives depends on how often it was asked."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls


class InPlace(nn.Linear):
    """Adds what depends on theta to a tensor that is no buffer."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.memory = torch.zeros(12, 1)

    def forward(self, x):
        self.memory = self.memory.to(x)
        return self.memory[: len(x)].zero_().add_(super().forward(x)).clone()


class Branching(nn.Linear):
    def forward(self, x):
        z = super().forward(x)
        return z if self.bias.sum() > 0 else -z


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Random, "Random gave two outputs for the same parameters and inputs: its forward draws random numbers"),
        (Counting, "Counting gave two outputs .* carries state from one call to the next"),
        (InPlace, "InPlace can't be run for several parameter vectors at once, .* change tensors of its own in place"),
        (Branching, "Branching can't be run for several parameter vectors at once, .* branch on values"),
    ],
)
def test_what_is_no_function_of_the_parameters(kind, message):
    with pytest.raises(ValueError, match=message):
        Posterior(kind(2, 1), PLANE, NormalPrior(0.09), Bernoulli())
