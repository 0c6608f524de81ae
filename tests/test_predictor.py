"""A posterior kept to predict with: the same predictions from a file, in any process, and nothing else in silence."""

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.distributions import HalfCauchy, Poisson

from bnn_utils import (
    Bernoulli,
    Categorical,
    Chain,
    Data,
    ElementPrior,
    FlatModule,
    Gaussian,
    HierarchicalPrior,
    LogScale,
    NormalPrior,
    Posterior,
    Predictor,
    Standardise,
    structure,
)

PRIOR = NormalPrior(precision=1.0)


class Own(nn.Module):
    """A network of the reader's own, with a buffer that its constructor doesn't know."""

    def __init__(self, width=4, activation=torch.tanh):
        super().__init__()
        self.first, self.last, self.activation = nn.Linear(2, width), nn.Linear(width, 1), activation
        self.register_buffer("shift", torch.tensor(0.0))

    def forward(self, x):
        return self.last(self.activation(self.first(x + self.shift)))


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def chain_of(posterior, num=7):
    """Draws from a normal distribution, in two chains: what they are is no matter."""
    draws = 0.3 * normal(2, num, posterior.dim, seed=3).to(posterior.dtype)
    return Chain.from_draws(draws, posterior)


def tied():
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(2, 1))


def hooked():
    net = nn.Sequential(nn.Linear(2, 1))
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def frozen():
    net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))
    net[0].requires_grad_(False)
    return net


X, IMAGES, TOKENS = normal(30, 2), normal(30, 1, 6, 6), torch.arange(60).reshape(30, 2) % 7
LABELS, CLASSES, NUMBERS = (X[:, 0] > 0).double(), torch.arange(30) % 3, 5 + 2 * X[:, 0] + 0.1 * X[:, 1]

# Of which nothing has to be given to come back.
BY_ITSELF = {
    "two classes": lambda: Posterior(
        nn.Sequential(nn.Linear(2, 3), nn.GELU("tanh"), nn.Linear(3, 1)), Data(X, LABELS), PRIOR, Bernoulli()
    ),
    "three classes, float32": lambda: Posterior(
        nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.3), nn.Linear(3, 3, bias=False)),
        Data(X.float(), CLASSES),
        PRIOR,
        Categorical(),
    ),
    "images": lambda: Posterior(
        nn.Sequential(
            nn.Conv2d(1, 2, 3, stride=2, padding=1, padding_mode="circular"),
            nn.Softplus(2.0),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.LayerNorm(8, eps=0.1),
            nn.Linear(8, 3),
        ),
        Data(IMAGES, CLASSES),
        PRIOR,
        Categorical(),
    ),
    "tokens": lambda: Posterior(
        nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(4, 1)).double(),
        Data(TOKENS, LABELS),
        PRIOR,
        Bernoulli(),
    ),
    "known noise": lambda: Posterior(
        nn.Sequential(nn.Identity(), nn.Linear(2, 1)), Data(X, NUMBERS), PRIOR, Gaussian(0.1)
    ),
    "units": lambda: Posterior(
        nn.Sequential(Standardise(X), nn.Linear(2, 1), LogScale()),
        Data(X, 1000 * NUMBERS),
        PRIOR,
        Gaussian(units=Standardise(1000 * NUMBERS)),
    ),
    "noise by softplus": lambda: Posterior(
        nn.Sequential(nn.Linear(2, 4)), Data(X, X), PRIOR, Gaussian(link="softplus")
    ),
    "frozen layer": lambda: Posterior(frozen(), Data(X, LABELS), PRIOR, Bernoulli()),
    "inferred scales": lambda: Posterior(
        nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ELU(0.7)), nn.Linear(3, 1)),
        Data(X, LABELS),
        HierarchicalPrior({"*.weight": HalfCauchy(1.0), "*": 1.0}),
        Bernoulli(),
    ),
}
# Of which the module has to be given.
TO_BE_GIVEN = {"own": Own, "tied": tied, "hooked": hooked}


@pytest.fixture(params=BY_ITSELF)
def posterior(request):
    return BY_ITSELF[request.param]()


def kept(posterior, path, **given):
    predictor = Predictor(posterior, chain_of(posterior))
    predictor.save(path)
    return predictor, Predictor.load(path, **given)


def test_it_comes_back(posterior, tmp_path):
    """Draws, network and likelihood to the bit, from data alone."""
    predictor, again = kept(posterior, tmp_path / "a.bnn")
    x = posterior.data.x
    assert torch.equal(again.draws, predictor.draws)
    assert torch.equal(again.targets(x, 20, seed=1), predictor.targets(x, 20, seed=1))
    assert torch.equal(again.predict(x), predictor.predict(x))
    assert repr(again) == repr(predictor)
    assert (again.names, again.warnings, again.prior) == (
        posterior.flat.names,
        predictor.warnings,
        repr(posterior.prior),
    )


def test_it_says_what_the_posterior_says(posterior):
    chain, x = chain_of(posterior), posterior.data.x
    predictor = Predictor(posterior, chain)
    values = posterior.predict(chain.draws, x).flatten(0, 1).mean(0)
    if isinstance(posterior.likelihood, Gaussian):
        torch.testing.assert_close(predictor.predict(x), values)
    else:
        p = predictor.predict_proba(x)
        torch.testing.assert_close(p[:, 1] if isinstance(posterior.likelihood, Bernoulli) else p, values)
        torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))
        assert torch.equal(predictor.predict(x), p.argmax(1))
    targets = posterior.predictive_draws(chain.draws, x, seed=5).flatten(0, 1)
    assert torch.equal(predictor.targets(x, seed=5), targets)


@pytest.mark.parametrize("make", TO_BE_GIVEN.values(), ids=TO_BE_GIVEN)
def test_a_module_of_ones_own(make, tmp_path):
    """It is asked for, gets its numbers from the file, and is not changed."""
    module = make()
    if isinstance(module, Own):
        module.shift.fill_(2.0)
    posterior = Posterior(module, Data(X, LABELS), PRIOR, Bernoulli())
    path, given = tmp_path / "a.bnn", make()
    Predictor(posterior, chain_of(posterior)).save(path)
    with pytest.raises(ValueError, match=r"no code comes from a file: say Predictor.load\(path, module=...\)"):
        Predictor.load(path)
    before = FlatModule(given).ravel()
    predictor, again = kept(posterior, path, module=given)
    assert torch.equal(again.predict_proba(X), predictor.predict_proba(X))
    assert torch.equal(FlatModule(given).ravel(), before)
    assert given.first.weight.dtype == torch.float32 if isinstance(given, Own) else True


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Own(width=5), "one that it doesn't fit"),
        (Own(activation=torch.relu), "other values, off by"),
        (nn.Sequential(nn.Linear(2, 1)), "one that it doesn't fit"),
    ],
)
def test_another_module_is_refused(module, message, tmp_path):
    posterior = Posterior(Own(), Data(X, LABELS), PRIOR, Bernoulli())
    Predictor(posterior, chain_of(posterior)).save(tmp_path / "a.bnn")
    with pytest.raises(ValueError, match=message):
        Predictor.load(tmp_path / "a.bnn", module=module)


def test_a_likelihood_of_ones_own(tmp_path):
    """It is asked for; one with other means, or another spread, is refused."""
    net, path = nn.Sequential(nn.Linear(2, 1)), tmp_path / "a.bnn"
    posterior = Posterior(net, Data(X, LABELS), PRIOR, lambda outputs: Poisson(outputs[..., 0].exp()))
    predictor = Predictor(posterior, chain_of(posterior))
    predictor.save(path)
    with pytest.raises(ValueError, match=r"say Predictor.load\(path, likelihood=...\)"):
        Predictor.load(path)
    again = Predictor.load(path, likelihood=lambda outputs: Poisson(outputs[..., 0].exp()))
    assert torch.equal(again.predict(X), predictor.predict(X))
    with pytest.raises(ValueError, match="other values, off by"):
        Predictor.load(path, likelihood=lambda outputs: Poisson(2 * outputs[..., 0].exp()))


def test_draws_are_spread_evenly():
    posterior = BY_ITSELF["two classes"]()
    chain = chain_of(posterior)
    flat = chain.draws.flatten(0, 1)
    assert torch.equal(Predictor(posterior, chain).draws, flat)
    assert torch.equal(Predictor(posterior, chain, num_draws=14).draws, flat)
    assert torch.equal(Predictor(posterior, chain, num_draws=2).draws, chain.draws[:, -1])
    assert torch.equal(Predictor(posterior, chain, num_draws=1).draws, flat[-1:])


def test_interval():
    """Of normal noise alone: quantiles of some 4,000 targets, each within 4.5 standard errors, at both ends of 30."""
    posterior = BY_ITSELF["known noise"]()
    mean = Chain.from_draws(torch.zeros(1, 4, posterior.dim, dtype=torch.float64), posterior)
    predictor = Predictor(posterior, mean)
    low, high = predictor.interval(X, 0.8)
    bound, density = norm.ppf(0.9), norm.pdf(norm.ppf(0.9))
    error = (0.1 * 0.9 / 4000) ** 0.5 / density
    assert ((high / 0.1 - bound).abs() < 4.5 * error).all()
    assert ((low / 0.1 + bound).abs() < 4.5 * error).all()
    assert torch.equal(predictor.interval(X, 0.8, seed=0), torch.stack([low, high]))


def test_bounded_parameters_are_kept_as_the_network_has_them():
    """With a prior that has them positive, theta holds logarithms, and the file the numbers themselves."""
    net = nn.Sequential(nn.Linear(2, 1))
    prior = ElementPrior({"0.weight": HalfCauchy(1.0), "*": torch.distributions.Normal(0.0, 1.0)})
    posterior = Posterior(net, Data(X, LABELS), prior, Bernoulli())
    chain = chain_of(posterior)
    predictor = Predictor(posterior, chain)
    assert torch.equal(predictor.draws, posterior.parameters(chain.draws).flatten(0, 1))
    torch.testing.assert_close(predictor.predict_proba(X)[:, 1], posterior.predict(chain.draws, X).mean((0, 1)))


def test_data_are_not_in_it(tmp_path):
    """No point of several numbers is kept as it is."""
    posterior = BY_ITSELF["images"]()
    Predictor(posterior, chain_of(posterior)).save(tmp_path / "a.bnn")
    content = (tmp_path / "a.bnn").read_bytes()
    assert not any(image.numpy().tobytes() in content for image in posterior.data.x)


def test_wrong_calls(tmp_path):
    posterior, of_numbers = BY_ITSELF["two classes"](), BY_ITSELF["known noise"]()
    chain = chain_of(posterior)
    with pytest.raises(ValueError, match=r"the chain has 13 parameters, .* and the posterior 3"):
        Predictor(of_numbers, chain)
    with pytest.raises(TypeError, match="chain must be a Chain"):
        Predictor(posterior, chain.draws)
    with pytest.raises(ValueError, match="num_draws must be a whole number of at least 1 and at most 14, got 15"):
        Predictor(posterior, chain, num_draws=15)
    several = posterior.with_targets(torch.stack([LABELS, 1 - LABELS]))
    with pytest.raises(ValueError, match=r"there are 2 data sets: keep those of one"):
        Predictor(several, chain)
    predictor, others = Predictor(posterior, chain), Predictor(of_numbers, chain_of(of_numbers))
    with pytest.raises(TypeError, match="classes have no interval: ask for predict_proba"):
        predictor.interval(X)
    with pytest.raises(TypeError, match=r"targets of Gaussian\(scale=0.1\) are no classes"):
        others.predict_proba(X)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 90"):
        others.interval(X, 90)
    with pytest.raises(ValueError, match=r"x has shape \(30,\), but the data's inputs have shape \(M, 2\)"):
        predictor.predict(X[:, 0])
    pairs = BY_ITSELF["noise by softplus"]()
    with pytest.raises(TypeError, match="targets have 2 numbers each"):
        Predictor(pairs, chain_of(pairs)).interval(X)


def test_files_that_are_none(tmp_path):
    posterior = BY_ITSELF["two classes"]()
    path, chain = tmp_path / "a.bnn", chain_of(posterior)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Predictor.load(path)
    Predictor(posterior, chain).save(path)
    whole = path.read_bytes()
    for damaged in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole.replace(b"GELU", b"SiLU"),
        whole[:-40] + b"0" * 40,
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"does not hold a predictor written by Predictor\.save"):
            Predictor.load(path)
    chain.save(path)
    with pytest.raises(ValueError, match=r"does not hold a predictor written by Predictor\.save: it holds a chain"):
        Predictor.load(path)
    path.write_bytes(pickle.dumps(posterior.data.x.numpy()))
    with pytest.raises(ValueError, match=r"does not hold a predictor written by Predictor\.save"):
        Predictor.load(path)


@pytest.mark.parametrize("kind", ["system", "Module", "Transformer", "modules", "__class__", "Sequential.x"])
def test_names_in_a_file_call_nothing_else(kind):
    """Only modules of torch.nn, with plain arguments; and none of the kind that takes parts."""
    with pytest.raises(ValueError, match="no network is described by"):
        structure.build({"kind": kind, "training": True, "arguments": {"_": 1}})


def test_in_a_fresh_process(tmp_path):
    """Within a second after torch, the best of three tries, with the draws of a larger network."""
    net = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1))
    posterior = Posterior(net, Data(X, LABELS), PRIOR, Bernoulli())
    predictor = Predictor(posterior, chain_of(posterior, 500))
    predictor.save(tmp_path / "a.bnn")
    script = textwrap.dedent("""
        import sys, torch
        from time import perf_counter
        started = perf_counter()
        from bnn_utils import Predictor
        p = Predictor.load(sys.argv[1]).predict_proba([[0.5, -1.0]])[0, 1].item()
        print(perf_counter() - started, repr(p))
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "a.bnn")]
    root = Path(__file__).resolve().parent.parent
    tries = [subprocess.run(command, cwd=root, check=True, capture_output=True, text=True) for _ in range(3)]
    said = [one.stdout.split() for one in tries]
    assert float(said[0][1]) == pytest.approx(predictor.predict_proba([[0.5, -1.0]])[0, 1].item(), rel=1e-9)
    assert min(float(seconds) for seconds, _ in said) < 1
