"""Stochastic gradients: minibatches, steps by their equations, and draws beside what such steps leave invariant."""

import itertools
import math

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.distributions import Laplace, Poisson, StudentT

from bnn_utils import (
    HMC,
    SGHMC,
    SGLD,
    Bernoulli,
    Categorical,
    Chain,
    Data,
    ElementPrior,
    Gaussian,
    LogScale,
    NormalPrior,
    Posterior,
    Symmetric,
    sample,
)
from bnn_utils.gradients import minibatches
from bnn_utils.kernels import stochastic
from targets import FALSE_ALARM, NOISE, PRECISION, exact, generator, linear, normal, regression, vector

NUM = 23  # points: a prime, so that minibatches differ in size


# --- minibatches ------------------------------------------------------------------------------------------------------


def net(*last, width=1):
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, width), *last)


def frozen():
    whole = net()
    whole[0].requires_grad_(False)
    return whole


X = normal(NUM, 2)
LABELS = (normal(NUM, seed=1) > 0).double()
COUNTS = LABELS + torch.arange(NUM) % 3
WEIGHTS = torch.arange(NUM).double() % 4  # 0 for some
HEAVY = ElementPrior({"*.weight": StudentT(4.0), "*": Laplace(0.0, 1.0)})
MODELS = {
    "closed form": lambda: Posterior(net(), Data(X, LABELS), NormalPrior(1.0), Bernoulli()),
    "no bias": lambda: Posterior(nn.Linear(2, 1, bias=False), Data(X, X[:, 0]), NormalPrior(1.0), Gaussian(0.5)),
    "log scale": lambda: Posterior(net(LogScale(1)), Data(X, X[:, 0]), NormalPrior(1.0), Gaussian()),
    "classes": lambda: Posterior(net(width=3), Data(X, COUNTS % 3), NormalPrior(1.0), Categorical()),
    "weights": lambda: Posterior(net(), Data(X, LABELS, WEIGHTS), NormalPrior(1.0), Bernoulli()),
    "element prior": lambda: Posterior(net(), Data(X, LABELS), HEAVY, Bernoulli()),
    "after frozen parts": lambda: Posterior(frozen(), Data(X, LABELS), NormalPrior(1.0), Bernoulli()),
    "autograd": lambda: Posterior(net(nn.Softsign()), Data(X, LABELS), NormalPrior(1.0), Bernoulli()),
    "autograd, weights": lambda: Posterior(
        net(), Data(X, LABELS, WEIGHTS), NormalPrior(1.0), Bernoulli(), gradient="autograd"
    ),
    "autograd, a function": lambda: Posterior(
        net(), Data(X, COUNTS), NormalPrior(1.0), lambda outputs: Poisson(outputs[..., 0].exp()), gradient="autograd"
    ),
    "convolutions": lambda: Posterior(
        nn.Sequential(nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(3, 1)),
        Data(X[:, None], LABELS),
        NormalPrior(1.0),
        Bernoulli(),
    ),
    "tokens": lambda: Posterior(
        nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1)),
        Data((X * 10).long() % 5, LABELS),
        NormalPrior(1.0),
        Bernoulli(),
    ),
    "single precision": lambda: Posterior(net(), Data(X.float(), LABELS.float()), NormalPrior(1.0), Bernoulli()),
    "data sets": lambda: MODELS["closed form"]().with_targets(torch.stack([LABELS, 1 - LABELS, LABELS.flip(0)])),
    "data sets, autograd": lambda: MODELS["autograd"]().with_targets(torch.stack([LABELS, 1 - LABELS, COUNTS % 2])),
    "data sets, weights": lambda: MODELS["weights"]().with_targets(torch.stack([LABELS, 1 - LABELS, COUNTS % 2])),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@each_model
@pytest.mark.parametrize("batch_size", [1, 4, 12, NUM, 1000])
@pytest.mark.parametrize("blocks", ["at once", "in blocks"])
def test_minibatches_of_an_epoch_add_up_to_the_gradient(make, batch_size, blocks, monkeypatch):
    """As often as they have points; so their mean is the gradient of all, whatever theta is.

    Fails when points are not weighed by N over those of the minibatch, when the prior is counted once for each
    minibatch, and when lanes get another lane's points.
    """
    if blocks == "in blocks":  # a few points of a lane or two
        monkeypatch.setattr(minibatches, "BLOCK_ELEMENTS", 40)
        monkeypatch.setattr(minibatches, "BLOCK_BYTES", 3000)
    posterior = make()
    theta = 0.5 * posterior.sample_prior(6, generator(2))
    expected = posterior.log_prob_and_grad(theta)
    with torch.inference_mode():
        some = posterior.density(6).minibatches
        batches = some.epoch(generator(3), batch_size)
        assert max(places.shape[1] for places in batches) <= batch_size
        found = [0.0, 0.0]
        for places in batches:
            share = places.shape[1] / some.num_points
            found = [
                total + share * one for total, one in zip(found, some.log_prob_and_grad(theta, places), strict=True)
            ]
    tolerance = 1e-10 if theta.dtype == torch.float64 else 1e-4
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == theta.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_epochs():
    """Every point once, in an order of each lane's own, which is another one in each epoch."""
    some, stream = MODELS["closed form"]().density(3).minibatches, generator(1)
    first, second = (some.epoch(stream, 5) for _ in range(2))
    assert [places.shape for places in first] == [(3, 5), (3, 5), (3, 5), (3, 4), (3, 4)]
    orders = [*torch.cat(first, 1), *torch.cat(second, 1)]
    assert all(torch.equal(order.sort().values, torch.arange(NUM)) for order in orders)
    assert not any(torch.equal(one, two) for one, two in itertools.combinations(orders, 2))
    before = stream.get_state()
    (whole,) = some.epoch(stream, NUM)
    assert torch.equal(whole, torch.arange(NUM).expand(3, -1))
    assert torch.equal(stream.get_state(), before)


def test_points_of_weight_0_are_in_no_minibatch():
    assert MODELS["weights"]().density(1).minibatches.num_points == (WEIGHTS > 0).sum()


def test_lanes_of_several_data_sets():
    with pytest.raises(ValueError, match="3 data sets and needs one row of theta for each"):
        sample(MODELS["data sets"](), SGLD(0.01, 5), 2, 4, progress=False)


# --- steps ------------------------------------------------------------------------------------------------------------

KERNELS = {
    "SGLD": SGLD(0.01, 5),
    "SGLD, all points": SGLD(0.01, 100),
    "SGLD, cycles": SGLD(0.01, 5, cycle_length=4, exploration=0.5),
    "SGHMC": SGHMC(0.01, 5),
    "SGHMC, cycles": SGHMC(0.01, 5, friction=0.3, cycle_length=5),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def by_hand(posterior, kernel, theta, stream, num_epochs):
    """Positions after each epoch and the estimates of lp, from the equations of the papers, one lane at a time."""
    x, y, num = posterior.data.x, posterior.data.y, len(posterior.data)
    batch_size, length = min(kernel.batch_size, num), kernel.cycle_length
    alpha = kernel.friction if isinstance(kernel, SGHMC) else 1.0
    thetas, v, kept = list(theta), [torch.zeros(posterior.dim).double() for _ in theta], []
    num_batches = -(-num // batch_size)
    for epoch in range(num_epochs):
        orders = torch.arange(num).expand(len(theta), -1)
        if num_batches > 1:
            orders = torch.randint(2**62, orders.shape, generator=stream).argsort(1)
        explores = length is not None and epoch % length < round(kernel.exploration * length)
        means = [0.0 for _ in theta]
        for k in range(num_batches):
            eps = kernel.step_size
            if length is not None:
                eps = eps / 2 * (1 + math.cos(math.pi * ((epoch % length) * num_batches + k) / (length * num_batches)))
            noise = 0 * theta
            if not explores:
                noise = torch.randn(theta.shape, generator=stream, dtype=theta.dtype)
            for lane, order in enumerate(orders):
                places = order.tensor_split(num_batches)[k]
                here = thetas[lane].clone().requires_grad_()
                log_lik = posterior.likelihood.log_prob(posterior.flat(here, x[places]), y[places])
                estimate = posterior.log_prior(here) + num / len(places) * log_lik
                (grad,) = torch.autograd.grad(estimate, here)
                v[lane] = (1 - alpha) * v[lane] + eps / 2 * grad + (alpha * eps) ** 0.5 * noise[lane]
                thetas[lane] = thetas[lane] + v[lane]
                means[lane] += estimate.item() * len(places) / num
        if not explores:
            kept.append((torch.stack(thetas), torch.tensor(means, dtype=theta.dtype), epoch + 1, eps))
    return kept


@each_kernel
def test_steps_by_hand(kernel):
    """Positions, lp, epochs and step sizes over some cycles, whose exploring epochs are not recorded.

    Fails when exploration has noise, when a step size is another one, and when noise or momentum is.
    """
    posterior, start = MODELS["closed form"](), 0.3 * normal(2, 44, seed=4)
    chain = sample(posterior, kernel, 8, init=start, seed=generator(6), progress=False)
    expected = by_hand(posterior, kernel, start, generator(6), 40)[:8]
    for draw, (theta, lp, epoch, step_size) in enumerate(expected):
        torch.testing.assert_close(chain.draws[:, draw], theta, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(chain.stats["lp"][:, draw], lp, rtol=1e-8, atol=1e-8)
        assert chain.stats["epoch"][:, draw].tolist() == [epoch] * 2
        torch.testing.assert_close(chain.stats["step_size"][0, draw].item(), step_size)
    assert set(chain.stats) == {"lp", "epoch", "n_steps", "step_size"}
    steps_of_epoch = -(-NUM // kernel.batch_size)
    assert chain.stats["n_steps"][0].sum() == steps_of_epoch * chain.stats["epoch"][0, -1]


def test_a_friction_of_1_is_langevin_dynamics():
    posterior = MODELS["closed form"]()
    one, two = (
        sample(posterior, kernel, 5, 3, seed=1, progress=False)
        for kernel in (SGLD(0.01, 5), SGHMC(0.01, 5, friction=1))
    )
    assert torch.equal(one.draws, two.draws)


def test_steps_that_are_too_large_are_told():
    with pytest.raises(ValueError, match=r"SGLD went to where theta .* not a finite number.* takes smaller steps"):
        sample(regression(), SGLD(10.0, 4), 500, seed=1, progress=False)


# --- what steps leave invariant ---------------------------------------------------------------------------------------

# Written down, not drawn: how large a bias is depends on the points.
SIX = linear(
    vector(1.0, 0.2, -0.7, 1.1, 0.3, -1.4, 1.6, 0.5, -1.2, -0.6, 0.1, 0.9).view(6, 2),
    vector(0.9, -1.6, 1.1, 1.0, -0.3, -0.8),
    NormalPrior(PRECISION),
)
NARROWEST = torch.linalg.eigvalsh(exact(SIX)[1])[0].item()  # smallest variance


def invariant(posterior, kernel):
    """Mean and covariance of ``(theta, v)`` that epochs leave as they are, ``(2D,)`` and ``(2D, 2D)``, exactly.

    Of a linear regression each step is linear: z <- A_B z + b_B + noise. An epoch in one of its equally probable orders
    takes z to M z + c + noise of covariance Q, so that stationary moments are m = E[M] m + E[c] and

    S = E[M S M' + M m c' + c m' M' + c c' + Q].
    """
    x, y, num, dim = posterior.data.x, posterior.data.y, len(posterior.data), posterior.dim
    precision = posterior.prior_distribution.precision.expand(dim).diag()
    alpha, eps = kernel.friction, kernel.step_size
    eye, zero = torch.eye(dim).double(), torch.zeros(dim, dim).double()
    Q_step = alpha * eps * torch.cat([eye, eye]) @ torch.cat([eye, eye]).T  # the same noise in theta and v

    def of_step(places):
        xs, ys, scale = x[list(places)], y[list(places)], num / len(places) / NOISE**2
        H, g = precision + scale * xs.T @ xs, scale * xs.T @ ys
        to_v = torch.cat([-eps / 2 * H, (1 - alpha) * eye], 1)
        return torch.cat([torch.cat([eye, zero], 1) + to_v, to_v]), eps / 2 * torch.cat([g, g])

    size = min(kernel.batch_size, num)
    assert num % size == 0
    epochs = []
    for order in itertools.permutations(range(num)):
        parts = [order[k : k + size] for k in range(0, num, size)]
        if all(list(part) == sorted(part) for part in parts):  # each sequence of minibatches once
            M, c, Q = torch.eye(2 * dim).double(), torch.zeros(2 * dim).double(), torch.zeros(2 * dim, 2 * dim).double()
            for part in parts:
                A, b = of_step(part)
                M, c, Q = A @ M, A @ c + b, A @ Q @ A.T + Q_step
            epochs.append((M, c, Q))
    M, c, Q = (torch.stack(values) for values in zip(*epochs, strict=True))
    m = torch.linalg.solve(torch.eye(2 * dim).double() - M.mean(0), c.mean(0))
    cross = (M @ m)[:, :, None] * c[:, None, :]
    fixed = (cross + cross.mT + c[:, :, None] * c[:, None, :] + Q).mean(0)
    kron = torch.stack([torch.kron(one, one) for one in M]).mean(0)
    S = torch.linalg.solve(torch.eye(len(kron)).double() - kron, fixed.flatten()).view(2 * dim, 2 * dim)
    return m[:dim], (S - m[:, None] * m)[:dim, :dim]


def test_the_oracle():
    """Of all points, Langevin steps leave Normal(mean, (precision (1 - eps precision / 4))^-1) invariant."""
    mean, covariance = exact(SIX)
    eps = 0.1 * NARROWEST
    found = invariant(SIX, SGLD(eps, 6))
    precision = torch.linalg.inv(covariance)
    expected = torch.linalg.inv(precision @ (torch.eye(2).double() - eps / 4 * precision))
    torch.testing.assert_close(found, (mean, expected))
    for kernel in (SGLD(1e-6 * eps, 2), SGHMC(1e-6 * eps, 2)):  # and small steps of any kind leave the posterior
        torch.testing.assert_close(invariant(SIX, kernel), (mean, covariance), rtol=1e-4, atol=1e-6)


def surprise(draws, mean, covariance):
    """The largest error of means and covariances of independent draws ``(num, D)``, in standard errors."""
    off = draws - mean
    products = torch.stack([off[:, i] * off[:, j] for i in range(off.shape[1]) for j in range(i + 1)], 1)
    expected = torch.stack([covariance[i, j] for i in range(off.shape[1]) for j in range(i + 1)])
    values = torch.cat([off, products - expected], 1)
    return (values.mean(0) / values.std(0) * len(values) ** 0.5).abs().max().item()


LIMIT = norm.isf(FALSE_ALARM / 20)  # two means and three covariances, on either side; twice that, as squares are skewed
LANES, EPOCHS = 20_000, 120  # of independent chains; after so many, nothing is left of their start
BIASED = {
    "SGLD, all points": SGLD(1.2 * NARROWEST, 6),
    "SGLD": SGLD(0.8 * NARROWEST, 2),
    "SGHMC, all points": SGHMC(1.2 * NARROWEST, 6, friction=0.2),
    "SGHMC": SGHMC(0.4 * NARROWEST, 2, friction=0.2),
}
FAULTS = ("noise of another variance", "a minibatch for all lanes", "gradients not scaled by N / |B|")


def ends(kernel, seed):
    """Where lanes are in the end, that started at the mean, ``(LANES, D)``."""
    return sample(SIX, kernel, 1, LANES, EPOCHS - 1, exact(SIX)[0], seed, progress=False).draws[:, 0]


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("kernel", BIASED.values(), ids=BIASED)
def test_biased_as_theory_says(kernel):
    """Means and covariances are those that steps of this size and minibatches leave invariant, and not the posterior's.

    False alarm: 1e-4. Fails when the noise has another variance, when gradients of minibatches are not scaled, when the
    prior's gradient is, and when lanes share their minibatches.
    """
    draws = ends(kernel, seed=1)
    assert surprise(draws, *invariant(SIX, kernel)) < LIMIT
    assert surprise(draws, *exact(SIX)) > LIMIT, "so large a bias is to be seen"


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["SGLD", "SGHMC"])
def test_faults_are_seen(name, fault, monkeypatch):
    """By the test above."""
    kind, kernel = minibatches.Minibatches, BIASED[name]
    if fault == "noise of another variance":
        plain = stochastic.step
        monkeypatch.setattr(
            stochastic,
            "step",
            lambda *args: plain(*args[:-1], None if args[-1] is None else 1.1 * args[-1]),
        )
    elif fault == "a minibatch for all lanes":
        epoch = kind.epoch

        def shared(self, *args):
            return tuple(places[:1].expand(LANES, -1) for places in epoch(self, *args))

        monkeypatch.setattr(kind, "epoch", shared)
    else:
        likelihood = kind._log_likelihood_and_grad

        def unscaled(self, theta, places, lanes):
            return tuple(one * places.shape[1] / self.num_points for one in likelihood(self, theta, places, lanes))

        monkeypatch.setattr(kind, "_log_likelihood_and_grad", unscaled)
    assert not surprise(ends(kernel, seed=1), *invariant(SIX, kernel)) < LIMIT


# --- what is said of them ---------------------------------------------------------------------------------------------


@each_kernel
def test_chains_say_that_they_are_approximate(kernel, tmp_path):
    """Wherever they have been."""
    posterior = MODELS["closed form"]()
    chain = sample(posterior, kernel, 30, 2, seed=1, progress=False, store=tmp_path / "run.zarr")
    chain.save(tmp_path / "run.nc")
    other = sample(posterior, HMC(0.1, 3), 30, 2, seed=2, progress=False)
    assert not any("approximate" in warning for warning in other.warnings)
    loaded = [Chain.load(tmp_path / name) for name in ("run.nc", "run.zarr")]
    for one in (chain, *loaded, chain.thin(2), Chain.merge([other, chain])):
        assert sum("approximate" in warning and "half the step size" in warning for warning in one.warnings) == 1
        assert "approximate" in repr(one)


def test_progress_tells_epochs(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    sample(MODELS["closed form"](), SGLD(0.01, 5, cycle_length=5), 6, seed=1)
    shown = capsys.readouterr().err
    assert "epoch 30" in shown
    assert "divergences" not in shown, "nobody looks for them"


def test_workers():
    """Make the same draws, however many there are."""
    posterior, kernel = MODELS["autograd, weights"](), SGHMC(0.01, 5, cycle_length=5)
    arguments = {"num_chains": 4, "batch_size": 2, "seed": 1, "progress": False}
    one, two = (sample(posterior, kernel, 4, workers=workers, **arguments) for workers in (1, 2))
    assert torch.equal(one.draws, two.draws)
    assert torch.equal(one.stats["lp"], two.stats["lp"])


def test_repr():
    assert repr(SGLD(1e-5, 100)) == "SGLD(step_size=1e-05, batch_size=100)"
    assert repr(SGHMC(0.1, 8, cycle_length=10)) == (
        "SGHMC(step_size=0.1, batch_size=8, friction=0.1, cycle_length=10, exploration=0.8)"
    )


@pytest.mark.parametrize("kernel", [SGLD(0.01, 5), Symmetric(SGHMC(0.01, 5))], ids=repr)
def test_no_native_code(kernel):
    chain = sample(MODELS["closed form"](), kernel, 2, progress=False)
    assert chain.gradient == "closed-form"
    assert "approximate" in repr(chain)
    with pytest.raises(ValueError, match="compile=True is not for the kernel SG"):
        sample(MODELS["closed form"](), kernel, 2, compile=True, progress=False)
