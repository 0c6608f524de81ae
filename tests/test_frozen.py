"""Networks of which a part is frozen: it is computed once, and nothing else changes. Against the plain module."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bnn_utils import HMC, Bernoulli, Categorical, Data, Gaussian, LogScale, NormalPrior, Posterior, network, sample
from bnn_utils.tape import Tape


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- networks ---------------------------------------------------------------------------------------------------------


def freeze(*modules):
    for module in modules:
        module.requires_grad_(False)
    return modules[0]


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
    ).eval()


def stack():
    return nn.Sequential(freeze(convolutions()), nn.Linear(36, 3))


def nested():
    return nn.Sequential(
        nn.Sequential(freeze(convolutions())), nn.Sequential(nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))
    )


class Own(nn.Module):
    """The usual way to write it."""

    def __init__(self, head=None):
        super().__init__()
        self.features = freeze(convolutions()[:-1])
        self.head = head or nn.Linear(36, 3)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Functions(nn.Module):
    """With functions in the place of modules, in an order of their own: the parameters' is another one."""

    def __init__(self):
        super().__init__()
        self.out, self.inner = nn.Linear(6, 3), nn.Linear(36, 6)
        self.features = freeze(convolutions())

    def forward(self, x):
        return self.out(F.gelu(self.inner(self.features(x)), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    """As torchvision writes it."""

    def __init__(self, last_block_too=False):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.layer1, self.layer2 = nn.Sequential(Block(4), Block(4)), nn.Sequential(Block(4))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(4, 3)
        freeze(self)
        self.fc.requires_grad_(True)
        self.layer2.requires_grad_(last_block_too)
        self.eval()

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = (
            freeze(nn.Embedding(6, 4)),
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),
        )

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(1))


class RandomFeatures(nn.Module):
    """A buffer in the place of frozen parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.linspace(-2, 2, 16).view(2, 8))
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(torch.cos(x @ self.w))


class TwoWays(nn.Module):
    """Frozen features beside those that are learned, of the same inputs."""

    def __init__(self):
        super().__init__()
        self.frozen, self.own, self.out = freeze(nn.Linear(2, 4)), nn.Linear(2, 3), nn.Linear(7, 1)

    def forward(self, x):
        return self.out(torch.cat([torch.tanh(self.frozen(x)), torch.tanh(self.own(x))], dim=1))


def double(module, inputs, output):
    return 2 * output


def hooked():
    body = freeze(nn.Sequential(nn.Linear(2, 4), nn.Tanh()))
    body.register_forward_hook(double)
    return nn.Sequential(body, nn.Linear(4, 1))


def hooked_head():
    net = nn.Sequential(freeze(nn.Sequential(nn.Linear(2, 4), nn.Tanh())), nn.Linear(4, 1))
    net[1].register_forward_hook(double)
    return net


class Counting(nn.Module):
    """Writes to a buffer that nothing reads."""

    def __init__(self):
        super().__init__()
        self.body, self.out = freeze(nn.Linear(2, 4)), nn.Linear(4, 1)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return self.out(torch.tanh(self.body(x)))


def noisy():
    return nn.Sequential(freeze(nn.Sequential(nn.Linear(2, 4), nn.Tanh())), nn.Linear(4, 1), LogScale())


def frozen_end():
    end = freeze(nn.Linear(4, 1))
    end.weight.copy_(torch.tensor([[3.0, -2.0, 1.0, -1.0]]))  # so that no output could be a probability
    return nn.Sequential(freeze(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), end)


def half_frozen():
    """A layer whose weight is frozen, and not its bias, after one that is frozen."""
    net = nn.Sequential(freeze(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 1))
    net[2].weight.requires_grad_(False)
    return net


def one_parameter_twice():
    layer = nn.Linear(4, 4)
    return nn.Sequential(freeze(nn.Linear(2, 4)), nn.Tanh(), layer, nn.Tanh(), layer, nn.Linear(4, 1))


class OnePart(nn.Module):
    """Of its parameter a half is used by each of two layers."""

    def __init__(self):
        super().__init__()
        self.body, self.w = freeze(nn.Linear(2, 4)), nn.Parameter(torch.linspace(-1, 1, 20).view(5, 4))

    def forward(self, x):
        return F.linear(torch.tanh(F.linear(self.body(x), self.w[:4])), self.w[4:])


# --- that run as a whole ----------------------------------------------------------------------------------------------


class TiedToTrained(nn.Module):
    """A layer that looks frozen, and is not: its weight is the trained one's."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(2, 2), nn.Linear(2, 2)
        self.body.weight, self.last = self.out.weight, nn.Linear(2, 1)
        self.body.bias.requires_grad_(False)

    def forward(self, x):
        return self.last(torch.tanh(self.out(torch.tanh(self.body(x)))))


class Rewriting(nn.Module):
    """Changes the features once they were used."""

    def __init__(self):
        super().__init__()
        self.body, self.shift, self.out = freeze(nn.Linear(2, 4)), nn.Parameter(torch.ones(4)), nn.Linear(4, 1)

    def forward(self, x):
        h = self.body(x)
        z = h + self.shift
        view = h.view(-1, 4)
        view.tanh_()
        return self.out(z * h)


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z):
        return z * z

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return 2 * z * grad


class OwnFunction(nn.Module):
    """An operation that is not seen."""

    def __init__(self):
        super().__init__()
        self.body, self.inner, self.out = freeze(nn.Linear(2, 4)), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(Square.apply(self.inner(torch.tanh(self.body(x)))))


IMAGES = Data(normal(12, 1, 6, 6), torch.arange(12) % 3)
PLANE = Data(normal(12, 2, seed=3), (torch.arange(12) % 2).double())
LINE = Data(normal(12, 2, seed=3), normal(12, seed=4))
WORDS = Data(torch.arange(60).view(12, 5) % 6, torch.arange(12) % 3)
# module, data, likelihood, gradient in use, whether frozen parts are computed once
CASES = {
    "stack": (stack, IMAGES, Categorical(), "closed-form", True),
    "nested": (nested, IMAGES, Categorical(), "closed-form", True),
    "own forward": (Own, IMAGES, Categorical(), "closed-form", True),
    "functions": (Functions, IMAGES, Categorical(), "closed-form", True),
    "ResNet": (ResNet, IMAGES, Categorical(), "closed-form", True),
    "ResNet, last block": (lambda: ResNet(True), IMAGES, Categorical(), "autograd", True),
    "tokens": (lambda: Tokens().double(), WORDS, Categorical(), "closed-form", True),
    "random features": (RandomFeatures, PLANE, Bernoulli(), "closed-form", True),
    "two ways": (TwoWays, PLANE, Bernoulli(), "autograd", True),
    "hooked": (hooked, PLANE, Bernoulli(), "closed-form", True),
    "hooked head": (hooked_head, PLANE, Bernoulli(), "autograd", True),
    "counting": (Counting, PLANE, Bernoulli(), "closed-form", True),
    "noise": (noisy, LINE, Gaussian(), "closed-form", True),
    "frozen end": (frozen_end, PLANE, Bernoulli(), "autograd", True),
    "half frozen": (half_frozen, PLANE, Bernoulli(), "autograd", True),
    "twice": (one_parameter_twice, PLANE, Bernoulli(), "autograd", True),
    "one part": (OnePart, PLANE, Bernoulli(), "closed-form", True),
    "tied": (TiedToTrained, PLANE, Bernoulli(), "autograd", False),
    "rewriting": (Rewriting, PLANE, Bernoulli(), "autograd", False),
    "a function of its own": (OwnFunction, PLANE, Bernoulli(), "autograd", False),
}
cases = pytest.mark.parametrize(("make", "data", "likelihood", "gradient", "is_taped"), CASES.values(), ids=CASES)


def by_autograd(module, data, likelihood, theta):
    """Log joint and gradient from a copy of the plain module, with its parameters set to theta."""
    module = copy.deepcopy(module).double()
    trainable = [p for p in module.parameters() if p.requires_grad]
    vector_to_parameters(theta.clone(), trainable)
    value = likelihood.distribution(module(data.x.clone())).log_prob(data.y).sum()
    prior = torch.distributions.Normal(0, torch.tensor(0.09, dtype=torch.float64).rsqrt())
    value = value + sum(prior.log_prob(p).sum() for p in trainable)
    return value.detach(), parameters_to_vector(torch.autograd.grad(value, trainable))


def is_taped(posterior):
    return all(isinstance(block, Tape) for _, block in posterior.network.blocks)


@cases
@pytest.mark.parametrize("points", [12, 3])
def test_density_and_gradient_are_the_plain_modules(make, data, likelihood, gradient, is_taped, points, monkeypatch):
    module = make()
    if points < 12:  # in blocks: measured by this network, whose activations are what they are
        one = Posterior(module, data, NormalPrior(0.09), likelihood).network
        monkeypatch.setattr(network, "BLOCK_BYTES", points * max(one._cost.per_point, 1))
    posterior = Posterior(module, data, NormalPrior(0.09), likelihood)
    assert posterior.gradient == gradient
    assert all(isinstance(block, Tape) for _, block in posterior.network.blocks) == is_taped
    theta = normal(3, posterior.dim, seed=2)
    values, grads = posterior.log_prob_and_grad(theta)
    torch.testing.assert_close(posterior.log_prob(theta), values, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(posterior.log_prob(theta), values, rtol=1e-12, atol=1e-12)
    density = posterior.density(3)
    parts = [part.log_prob_and_grad(theta) for part in (density.prior, density.likelihood)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], values)
    torch.testing.assert_close(parts[0][1] + parts[1][1], grads)
    for row, value, grad in zip(theta, values, grads, strict=True):
        expected_value, expected_grad = by_autograd(module, posterior.data, posterior.likelihood, row)
        torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)
    # Differentiable twice, as a Laplace approximation needs it.
    hessian = torch.autograd.functional.hessian(posterior.log_prob, theta[0])
    nudge = 1e-6 * torch.eye(posterior.dim, dtype=torch.float64)[0]
    slope = (posterior.log_prob_and_grad(theta[0] + nudge)[1] - posterior.log_prob_and_grad(theta[0] - nudge)[1]) / 2e-6
    torch.testing.assert_close(hessian[0], slope, rtol=1e-5, atol=1e-5)


@cases
def test_predictions_are_the_plain_modules(make, data, likelihood, gradient, is_taped):
    posterior = Posterior(make(), data, NormalPrior(0.09), likelihood)
    theta, x = normal(2, 3, posterior.dim, seed=5), data.x.flip(0)[:7]
    expected = torch.stack([likelihood.mean(posterior.flat(row, x)) for row in theta.view(6, -1)])
    torch.testing.assert_close(posterior.predict(theta, x), expected.view(2, 3, *expected.shape[1:]))
    some = Data(x, data.y.flip(0)[:7])
    expected = torch.stack([likelihood.log_probs(posterior.flat(r, x), posterior.likelihood.targets(some.y, posterior.flat(r, x))) for r in theta.view(6, -1)])  # fmt: skip # noqa: E501
    torch.testing.assert_close(posterior.log_likelihoods(theta, some), expected.view(2, 3, 7))


@cases
def test_copies_compute_the_same(make, data, likelihood, gradient, is_taped):
    """By pickle, for other targets, and in float64."""
    module = make()
    posterior = Posterior(module, data, NormalPrior(0.09), likelihood)
    theta = normal(2, posterior.dim, seed=6)
    copied = pickle.loads(pickle.dumps(posterior))
    assert copied.gradient == gradient
    for one, two in zip(posterior.log_prob_and_grad(theta), copied.log_prob_and_grad(theta), strict=True):
        assert torch.equal(one, two)
    other = data.y.flip(0)
    together = posterior.with_targets(torch.stack([data.y, other]))
    assert together.network is posterior.network, "frozen parts know nothing of targets"
    for row, y, value in zip(theta, (data.y, other), together.log_prob_and_grad(theta)[0], strict=True):
        expected, _ = by_autograd(module, Data(data.x, y), likelihood, row)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    if data.x.is_floating_point():
        single = Posterior(module, data.to(torch.float32), NormalPrior(0.09), likelihood)
        assert single.gradient == gradient
        value, grad = single.numpy()(theta[0].numpy())
        in_float32 = Data(data.x.float().double(), data.y.float().double() if data.y.is_floating_point() else data.y)
        expected, expected_grad = by_autograd(copy.deepcopy(module).float(), in_float32, likelihood, theta[0])
        assert value == pytest.approx(expected.item(), rel=1e-10)
        torch.testing.assert_close(torch.from_numpy(grad), expected_grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [Own, lambda: ResNet(True)])
def test_frozen_parts_are_run_once(make):
    """And at new inputs once for all draws; fails where they are run again."""
    module = make()
    posterior = Posterior(module, IMAGES, NormalPrior(1.0), Categorical())
    first, calls = next(part for part in posterior.flat.module.modules() if isinstance(part, nn.Conv2d)), []
    first.register_forward_hook(lambda *_: calls.append(1))
    chain = sample(posterior, HMC(0.01, 3), num_samples=3, num_chains=2, seed=1, progress=False)
    posterior.log_prob(chain.draws[0])
    assert not calls
    posterior.predict(chain.draws, IMAGES.x + 1)
    assert len(calls) == 1


@pytest.mark.parametrize("make", [Own, lambda: ResNet(True)])
def test_weighted_points(make):
    """Whole weights are points that come as often, those of weight 0 do not come at all."""
    module, weights = make(), torch.arange(12) % 4
    one = Posterior(module, Data(IMAGES.x, IMAGES.y, weights.double()), NormalPrior(0.09), Categorical())
    again = IMAGES.x.repeat_interleave(weights, 0), IMAGES.y.repeat_interleave(weights)
    many = Posterior(module, Data(*again), NormalPrior(0.09), Categorical())
    theta = normal(2, one.dim, seed=3)
    for found, expected in zip(one.log_prob_and_grad(theta), many.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one.log_prob(theta), many.log_prob(theta))
    torch.testing.assert_close(one.log_likelihoods(theta).sum(-1), one.log_likelihood(theta))
    assert one.simulate(theta, torch.Generator().manual_seed(0)).shape == (2, 12)
    assert one.with_targets(IMAGES.y.flip(0)).log_prob(theta).shape == (2,)


def test_frozen_parts_without_room(monkeypatch):
    """What would take more memory than there is room for is computed again each time."""
    monkeypatch.setattr(network, "CONSTANT_BYTES", 12 * 36 * 8 - 1)
    posterior = Posterior(Own(), IMAGES, NormalPrior(0.09), Categorical())
    assert posterior.gradient == "autograd"
    assert not is_taped(posterior)
    monkeypatch.setattr(network, "CONSTANT_BYTES", 12 * 36 * 8)
    assert is_taped(Posterior(Own(), IMAGES, NormalPrior(0.09), Categorical()))


def test_predictions_at_inputs_without_room(monkeypatch):
    """What frozen parts make of many new inputs is not kept either."""
    posterior = Posterior(Own(), IMAGES, NormalPrior(0.09), Categorical())
    theta, x = normal(4, posterior.dim, seed=5), normal(50, 1, 6, 6, seed=6)
    expected = posterior.predict(theta, x)
    monkeypatch.setattr(network, "CONSTANT_BYTES", 49 * 36 * 8)
    assert not any(isinstance(block, Tape) for _, block in posterior.network.at(x).blocks)
    torch.testing.assert_close(posterior.predict(theta, x), expected)


def test_closed_form_after_frozen_parts_may_be_asked_for():
    assert Posterior(Own(), IMAGES, NormalPrior(1.0), Categorical(), gradient="closed-form").gradient == "closed-form"
    assert Posterior(Own(), IMAGES, NormalPrior(1.0), Categorical(), gradient="autograd").gradient == "autograd"
    with pytest.raises(ValueError, match="nothing but frozen parts before; this TwoWays"):
        Posterior(TwoWays(), PLANE, NormalPrior(1.0), Bernoulli(), gradient="closed-form")


def test_a_head_of_few_parameters_can_be_compiled():
    posterior = Posterior(noisy(), LINE, NormalPrior(1.0), Gaussian())
    theta = normal(3, posterior.dim)
    compiled, plain = posterior.density(3, compile=True).joint, posterior.density(3).joint
    for one, two in zip(compiled.log_prob_and_grad(theta), plain.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(one, two)
