"""Networks and likelihoods of which another density would be sampled than the one that was written: all are refused."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution, Gamma, Independent, Laplace, MixtureSameFamily, Normal, Poisson, StudentT
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.checkpoint import checkpoint

from bnn_utils import Bernoulli, Categorical, Data, Gaussian, NormalPrior, Posterior, boxes

# Of operations without a rule for batches torch tells that it runs one vector after the other, which is right and slow.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:The use of `x.T`")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PLANE = boxes(12)
LINE = Data(normal(12, 2), normal(12, seed=1))
SEQUENCES = Data(normal(6, 5, 4), normal(6, seed=1))
TOKENS = Data(torch.arange(30).view(6, 5) % 7, normal(6, seed=1))
LABELS = Data(PLANE.x, torch.arange(12) % 3)


def dense(weight, bias):
    """Two inputs, one output, the same parameters in every run."""
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)
    return layer


def refused(module, data, likelihood, message):
    with pytest.raises(ValueError, match=message):
        Posterior(module, data, NormalPrior(1.0), likelihood)


def by_autograd(module, data, likelihood, theta):
    """Log likelihood and gradient of the module as it was written, for one vector."""
    module = copy.deepcopy(module).double().train()  # without fast paths; nothing here has dropout
    trainable = [p for p in module.parameters() if p.requires_grad]
    vector_to_parameters(theta.clone(), trainable)
    trainable = [p.requires_grad_() for p in trainable]
    value = likelihood.distribution(module(data.x)).log_prob(data.y).sum()
    grads = torch.autograd.grad(value, trainable, allow_unused=True, materialize_grads=True)
    return value.detach(), parameters_to_vector(grads)


# --- likelihoods that are right for one vector alone ------------------------------------------------------------------

ONE_AT_A_TIME = {
    "first column by position": lambda o: Normal(o[:, 0], 0.3),
    "squeeze": lambda o: Normal(o.squeeze(1), 0.3),
    "flatten": lambda o: Normal(o.flatten(), 0.3),
    "view": lambda o: Normal(o.view(-1), 0.3),
    "reshape": lambda o: Normal(o.reshape(len(o)), 0.3),
    "transposed": lambda o: Normal(o.T[0], 0.3),
    "select": lambda o: Normal(o.select(1, 0), 0.3),
    "chunk": lambda o: Normal(o.chunk(1, dim=1)[0][:, 0], 0.3),
    "standardised": lambda o: Normal((o[..., 0] - o.mean()) / o.std(), 0.3),
    "centred over points": lambda o: Normal(o[..., 0] - o[..., 0].mean(-1, keepdim=True), 0.3),
    "noise of each point": lambda o: Normal(o[..., 0], torch.linspace(0.1, 0.4, 12, dtype=torch.float64)),
    "noise of the batch": lambda o: Normal(o[..., 0], o.std() + 0.1),
}


@pytest.mark.parametrize("function", ONE_AT_A_TIME.values(), ids=ONE_AT_A_TIME)
@pytest.mark.parametrize("hidden", [False, True], ids=["closed form", "autograd"])
def test_likelihoods_that_mix_vectors_or_points(function, hidden):
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3) if hidden else nn.Tanh(), nn.Linear(3, 1))
    refused(net, LINE, function, r"the log likelihood of .*count dimensions from the end, as in outputs\[\.\.\., 0\]")


@pytest.mark.parametrize("num", [1, 2, 3, 12])
def test_squeeze_of_any_number_of_points(num):
    """One point is where squeeze() takes away the points, and a batch of one vector where it takes away the batch."""
    refused(
        nn.Linear(2, 1), Data(LINE.x[:num], LINE.y[:num]), lambda o: Normal(o.squeeze(), 0.3), r"squeeze|shape \(\)"
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda o: Normal(o[..., 0], 0.3),
        lambda o: Normal(o.squeeze(-1), 0.3),
        lambda o: StudentT(4.0, o.mean(-1), 0.3),
        lambda o: Laplace(o.sum(-1), o[..., 0].exp()),
        lambda o: Independent(Normal(o, 1.0), 1).base_dist and Normal(o[..., 0], 1.0),
    ],
)
def test_functions_that_count_from_the_end_are_taken(function):
    posterior = Posterior(nn.Linear(2, 1), LINE, NormalPrior(1.0), function)
    theta = normal(3, 3)
    values, grads = posterior.log_prob_and_grad(theta)
    prior = Normal(0.0, torch.tensor(1.0, dtype=torch.float64))
    for row, value, grad in zip(theta, values, grads, strict=True):
        expected, slope = by_autograd(nn.Linear(2, 1), LINE, posterior.likelihood, row)
        torch.testing.assert_close(value, expected + prior.log_prob(row).sum())
        torch.testing.assert_close(grad, slope - row)


# --- outputs at a point that depend on other points -------------------------------------------------------------------


class Pooled(nn.Module):
    """Of sequences: the mean of what attention or recurrence gives, to one number."""

    def __init__(self, layer, width=4):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 1)

    def forward(self, x):
        z = self.layer(x)
        z = z[0] if isinstance(z, tuple) else z
        return self.head(z.mean(1))


class Attention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class Standardised(nn.Linear):
    def forward(self, x):
        return super().forward((x - x.mean(0)) / x.std(0))


class Neighbours(nn.Linear):
    def forward(self, x):
        return super().forward(x + 0.1 * x.roll(1, 0))


class Ranked(nn.Linear):
    def forward(self, x):
        return super().forward(x.argsort(0).to(x))


class Similar(nn.Linear):
    """Attention between points."""

    def forward(self, x):
        return super().forward((x @ x.T).softmax(-1) @ x)


class Intercepts(nn.Module):
    """A parameter for each point."""

    def __init__(self):
        super().__init__()
        self.each = nn.Parameter(torch.zeros(12, 1))

    def forward(self, x):
        return x[:, :1] + self.each


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=False),
        lambda: Attention(4, 2, batch_first=False),
        lambda: nn.GRU(4, 4),
        lambda: nn.LSTM(4, 4),
        lambda: nn.RNN(4, 4),
    ],
)
def test_layers_that_take_points_for_time(layer):
    refused(Pooled(layer()), SEQUENCES, Gaussian(1.0), r"at a point depend on the other points.*batch_first=True")


@pytest.mark.parametrize("make", [Standardised, Neighbours, Ranked, Similar])
@pytest.mark.parametrize("num", [2, 3, 12])
def test_points_that_know_of_each_other(make, num):
    refused(make(2, 1), Data(LINE.x[:num], LINE.y[:num]), Gaussian(1.0), "at a point depend on the other points")


def test_a_single_point_is_tried_beside_another():
    refused(Similar(2, 1), Data(LINE.x[:1], LINE.y[:1]), Gaussian(1.0), "at a point depend on the other points")


def test_a_parameter_for_each_point():
    refused(Intercepts(), LINE, Gaussian(1.0), "runs for 12 points and not for 6:")


# --- gradients that are not those of the density, and other ways of being no function of theta ------------------------


class Rounded(nn.Linear):
    """A straight-through estimator."""

    def forward(self, x):
        z = super().forward(x)
        return z + (z.round() - z).detach()


class Detached(nn.Linear):
    def forward(self, x):
        z = super().forward(x)
        return z + z.detach() ** 2


class ConstantNoise(nn.Module):
    """A large network, and one number that autograd takes for a constant."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 1))
        self.offset = nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        return self.body(x) + self.offset.detach()


class Reversed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return -grad


class GradientReversal(nn.Linear):
    def forward(self, x):
        return Reversed.apply(super().forward(x))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Sequential(nn.Linear(2, 3), nn.Tanh()), nn.Linear(3, 1)

    def forward(self, x):
        return self.outer(checkpoint(self.inner, x, use_reentrant=False))


class PaddedByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 3))

    def forward(self, tokens):
        return F.embedding(tokens, self.weight, padding_idx=0).sum((1, 2))[:, None]


class RenormedByHand(PaddedByHand):
    def forward(self, tokens):
        return F.embedding(tokens, self.weight, max_norm=0.1).sum((1, 2))[:, None]


class Doubling(nn.Linear):
    """Writes into its input."""

    def forward(self, x):
        return super().forward(x.mul_(1.5))


class Keeping(nn.Linear):
    """Uses a parameter by a reference that is no attribute of its own, which a functional call does not see."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.mine = [self.weight]

    def forward(self, x):
        return x @ self.mine[0].T + self.bias


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Named(nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x)}


class Total(nn.Linear):
    def forward(self, x):
        return super().forward(x).sum()


class Decided(nn.Linear):
    def forward(self, x):
        return (super().forward(x) > 0).long()


class Imaginary(nn.Linear):
    def forward(self, x):
        return torch.complex(super().forward(x), x[:, :1])


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x).bfloat16()


class RootOfZero(nn.Linear):
    """Finite everywhere, with an infinite derivative where it matters."""

    def forward(self, x):
        return super().forward(x) + (self.bias * 0).abs().sqrt()


def stranger():
    net, other = nn.Linear(2, 1), nn.Linear(2, 1)
    net.forward = other.forward
    return net


def replaced():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    net[1].forward = lambda x: x
    return net


class Elsewhere(nn.Linear):
    """Its forward is that of a module outside of it."""

    def forward(self, x):
        return OUTSIDE(x)


OUTSIDE = nn.Linear(2, 1)


class WithoutGradient(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


def complex_buffer():
    net = nn.Linear(2, 1)
    net.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
    return net


def complex_parameter():
    net = nn.Linear(2, 1)
    net.gain = nn.Parameter(torch.ones(1, dtype=torch.complex128))
    return net


def spectral(normalise, mode):
    net = nn.Sequential(normalise(nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 1))
    return net.train(mode)


NO_FUNCTION = {
    "straight through": (lambda: Rounded(2, 1), LINE, r"gradient says .*straight-through"),
    "detached": (lambda: Detached(2, 1), LINE, r"gradient says .*detach\(\)"),
    "one detached number": (ConstantNoise, LINE, r"gradient says .*detach\(\)"),
    "a backward of its own": (lambda: GradientReversal(2, 1), LINE, "gradient says .*a backward of its own"),
    "checkpoint": (Checkpointed, LINE, "gradient of the log likelihood can't be computed.*use_reentrant=False"),
    "padding": (lambda: Pooled(nn.Embedding(7, 4, padding_idx=0)), TOKENS, r"padding_idx=0.*multiply by a mask"),
    "padding in a bag": (
        lambda: nn.Sequential(nn.EmbeddingBag(7, 1, padding_idx=2)), TOKENS, r"EmbeddingBag \(0\) has padding_idx=2"
    ),
    "padding by hand": (PaddedByHand, TOKENS, "gradient says .*padding_idx"),
    "norm": (lambda: Pooled(nn.Embedding(7, 4, max_norm=1.0)), TOKENS, "max_norm=1, by which a call changes"),
    "norm by hand": (RenormedByHand, TOKENS, "changes its parameters in place|can't be run for several"),
    "writing": (lambda: Doubling(2, 1), LINE, "changes its inputs in place"),
    "keeping": (lambda: Keeping(2, 1), LINE, "than when they are set: they differ"),
    "a tuple": (lambda: Pair(2, 1), LINE, "returns a tuple, and a likelihood needs one tensor"),
    "a dictionary": (lambda: Named(2, 1), LINE, "returns a dict, and a likelihood needs one tensor"),
    "recurrent": (lambda: nn.GRU(4, 4, batch_first=True), SEQUENCES, "returns a tuple"),
    "a single number": (lambda: Total(2, 1), LINE, r"outputs of shape \(\) for 12 points"),
    "decisions": (lambda: Decided(2, 1), LINE, "outputs of torch.int64; a density and its gradient need"),
    "complex outputs": (lambda: Imaginary(2, 1), LINE, "outputs of torch.complex"),
    "half precision inside": (lambda: Halved(2, 1), LINE, "outputs of torch.bfloat16"),
    "infinite slope": (lambda: RootOfZero(2, 1), LINE, "its gradient is not finite"),
    "another's forward": (stranger, LINE, r"the forward of Linear \(the module itself\) was replaced"),
    "a replaced activation": (replaced, LINE, r"the forward of Tanh \(1\) was replaced on the object"),
    "outside": (lambda: Elsewhere(2, 1), LINE, "does not depend on any parameter of Elsewhere"),
    "no_grad": (lambda: WithoutGradient(2, 1), LINE, r"does not depend on any parameter.*no_grad\(\)"),
    "complex buffer": (complex_buffer, LINE, "phase is complex"),
    "complex parameter": (complex_parameter, LINE, "gain is complex"),
    "spectral norm": (lambda: spectral(nn.utils.parametrizations.spectral_norm, False), LINE, "spectral normalisation"),
    "spectral norm in training": (
        lambda: spectral(nn.utils.parametrizations.spectral_norm, True), LINE, "spectral normalisation"
    ),
    "old spectral norm": (lambda: spectral(nn.utils.spectral_norm, False), LINE, "spectral normalisation"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "data", "message"), NO_FUNCTION.values(), ids=NO_FUNCTION)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_what_has_no_density_with_that_gradient(make, data, message, dtype):
    module = make()
    OUTSIDE.to(dtype)
    is_complex = any(tensor.is_complex() for tensor in module.state_dict().values())
    refused(module if is_complex else module.to(dtype), data.to(dtype), Gaussian(1.0), message)


@pytest.mark.statistical
def test_a_small_part_without_gradient_is_found():
    """Of 300 networks, whose residuals make that part large or small; one in 10,000 or fewer would be taken."""
    for seed in range(300):
        module = PaddedByHand()
        vector_to_parameters(normal(21, seed=seed).float(), module.parameters())
        refused(module, TOKENS.to(torch.float32), Gaussian(1.0), "gradient says .*padding_idx")


def test_the_cause_is_found_in_the_likelihood_too():
    refused(nn.Linear(2, 1), LINE, lambda o: Normal(o[..., 0] + o[..., 0].detach(), 0.3), r"log likelihood rises by")


@pytest.mark.parametrize("name", ["log_prob", "log_likelihood", "log_prior"])
def test_a_density_that_kernels_do_not_see(name):
    """They would sample the one below without a word."""
    of_posterior = getattr(Posterior, name)
    mine = type("Mine", (Posterior,), {name: lambda self, theta: of_posterior(self, theta) / 2})
    with pytest.raises(ValueError, match=rf"Mine\.{name} is \S+ where kernels see \S+: they don't call that method"):
        mine(nn.Linear(2, 1), Data(normal(5, 2), torch.ones(5)), NormalPrior(1.0), Bernoulli())


class WrongPrior:
    """A density whose gradient is not its own."""

    class Distribution(Independent):
        def log_prob(self, theta):
            return super().log_prob(theta.detach()) + 0 * theta.sum(-1)

    def distribution(self, flat):
        return self.Distribution(Normal(torch.zeros_like(flat.ravel()), 1.0), 1)


def test_a_prior_without_its_gradient():
    with pytest.raises(ValueError, match="in which the log prior rises by"):
        Posterior(nn.Linear(2, 1), LINE, WrongPrior(), Gaussian(1.0))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: torch.jit.trace(m, LINE.x.float())])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is (deprecated|not supported):DeprecationWarning")
def test_networks_made_ready_to_run(wrap, monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", Distribution._validate_args)  # torch.compile switches it off
    refused(wrap(nn.Linear(2, 1)), LINE, Gaussian(1.0), "pass the plain module")


def test_no_module():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got an object of type function"):
        Posterior(lambda x: x, LINE, NormalPrior(1.0), Gaussian(1.0))


# --- coarse numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    refused(nn.Linear(2, 1).to(dtype), LINE.to(dtype), Gaussian(1.0), r"too coarse to sample with.*torch\.float32")
    refused(nn.Embedding(7, 1).to(dtype), TOKENS, Gaussian(1.0), "too coarse to sample with")


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        refused(nn.Linear(2, 1).float(), LINE.to(torch.float32), Gaussian(1.0), "outputs of torch.bfloat16")


# --- probabilities where logits are meant -----------------------------------------------------------------------------


class SigmoidInside(nn.Linear):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class SoftmaxInside(nn.Linear):
    def forward(self, x):
        return super().forward(x).softmax(-1)


@pytest.mark.parametrize(
    ("make", "data", "likelihood"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()), PLANE, Bernoulli()),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1), nn.Hardsigmoid())), PLANE, Bernoulli()),
        (lambda: nn.Sequential(nn.Linear(2, 1), nn.LogSigmoid()), PLANE, Bernoulli()),
        (lambda: SigmoidInside(2, 1), PLANE, Bernoulli()),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Softmax(-1)), LABELS, Categorical()),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Softmin(-1)), LABELS, Categorical()),
        (lambda: SoftmaxInside(2, 3), LABELS, Categorical()),
    ],
)
def test_links_twice(make, data, likelihood):
    refused(make(), data, likelihood, "emits probabilities.* takes logits and applies the link itself")


def test_log_probabilities_are_logits():
    """The softmax of a log-softmax is the softmax."""
    net = nn.Sequential(nn.Linear(2, 3), nn.LogSoftmax(-1))
    assert Posterior(net, LABELS, NormalPrior(1.0), Categorical()).dim == 9


@pytest.mark.parametrize(
    ("function", "data"),
    [
        (lambda o: Poisson(o[..., 0]), Data(LINE.x, torch.arange(12) % 4)),
        (lambda o: Gamma(2.0, o[..., 0]), Data(LINE.x, LINE.y.exp())),
        (lambda o: Normal(0.0, o[..., 0]), LINE),
        (lambda o: TorchBernoulli(probs=o[..., 0]), PLANE),
        (lambda o: Independent(Normal(o, o), 1), Data(LINE.x, LINE.y[:, None])),
        (lambda o: TorchCategorical(torch.cat([o, 1 - o], -1)), PLANE),
        (lambda o: MixtureSameFamily(TorchCategorical(torch.ones(2)), Normal(o.expand(*o.shape[:-1], 2), o)), LINE),
    ],
)
def test_outputs_that_are_no_parameters(function, data):
    refused(dense(0.1, -1.0), data, function, r"which is impossible, from.*map them, as by exp\(\)")


# --- what looks suspicious and is right -------------------------------------------------------------------------------

RIGHT = {
    "transformer in eval mode": (
        lambda: Pooled(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)).eval(), SEQUENCES
    ),
    "encoder in eval mode": (
        lambda: Pooled(nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)).eval(),
        SEQUENCES,
    ),
    "attention in eval mode": (lambda: Pooled(Attention(4, 2, batch_first=True, dropout=0.1)).eval(), SEQUENCES),
    "frozen padding": (
        lambda: Pooled(nn.Embedding(7, 4, padding_idx=0).requires_grad_(False)), TOKENS
    ),
    "kinks": (lambda: nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1)), LINE),
    "zeros": (lambda: nn.Sequential(zeroed(nn.Linear(2, 5)), nn.ReLU(), zeroed(nn.Linear(5, 1))), LINE),
    "dead units": (lambda: nn.Sequential(dead(nn.Linear(2, 3)), nn.ReLU(), nn.Linear(3, 1, bias=False)), LINE),
    "steps": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(), nn.Linear(3, 1)), LINE),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 1)), LINE
    ),
    "an unused parameter": (lambda: with_spare(nn.Linear(2, 1)), LINE),
    "bounded outputs": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Tanh()), LINE),
}  # fmt: skip


def zeroed(layer):
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def dead(layer):
    nn.init.constant_(layer.bias, -100.0)
    return layer


def with_spare(module):
    module.spare = nn.Parameter(torch.ones(2))
    return module


@pytest.mark.parametrize(("make", "data"), RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_what_is_right_is_taken(make, data, dtype):
    module, data = make().to(dtype), data.to(dtype)
    posterior = Posterior(module, data, NormalPrior(1.0), Gaussian(1.0))
    theta = posterior.flat.ravel() + 0.1 * normal(3, posterior.dim).to(dtype)
    values, grads = posterior.log_prob_and_grad(theta)
    values, grads = values - posterior.log_prior(theta), grads + theta
    loose = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for row, value, grad in zip(theta.double(), values, grads, strict=True):
        expected, slope = by_autograd(no_dropout(module), data.to(torch.float64), posterior.likelihood, row)
        torch.testing.assert_close(value.double(), expected, **loose)
        torch.testing.assert_close(grad.double(), slope, **loose)


@pytest.mark.statistical
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_kinks_are_no_reason_to_refuse(dtype):
    """Rectified units and maxima by the thousand, of 20 networks: finite differences cross some kinks with each step.

    With torch's initial weights, the largest error in 120 vectors was 0.005 with the first step and 5e-7 with the
    second; 0.002 is allowed.
    """
    data = Data(normal(64, 1, 12, 12).to(dtype), torch.arange(64) % 3)
    for seed in range(20):
        parts = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
        net = nn.Sequential(*parts, nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
        vector_to_parameters(0.2 * normal(1883, seed=seed).to(dtype), net.parameters())
        assert Posterior(net, data, NormalPrior(1.0), Categorical()).dim == 1883


@pytest.mark.parametrize("shift", [0.3, 0.5, 0.7])
def test_bounded_outputs_are_no_probabilities(shift):
    """Outputs of a frozen last layer that stay within 0 and 1, without being drawn to either."""
    last = nn.Linear(3, 1)
    nn.init.constant_(last.weight, 0.09)
    nn.init.constant_(last.bias, shift)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), last.requires_grad_(False))
    assert Posterior(net, PLANE, NormalPrior(1.0), Bernoulli()).dim == 9


def no_dropout(module):
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    return module
