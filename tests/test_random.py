"""Streams: seeds that are fresh, large or negative, and torch's own random code on a stream that is lent."""

import pytest
import torch
from torch import distributions as d
from torch.nn import functional as F

from bnn_utils import HMC, sample
from bnn_utils.random import SEED_BITS, as_generator, fresh_seed, lend_to_torch, spawn
from bnn_utils.sbc import simulation_based_calibration

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_every_run_has_a_seed_of_its_own(posterior):
    """Two plain calls are two samples, and each can be made again. Fails when the default is a number."""
    arguments = {"kernel": HMC(0.05, 4), "num_samples": 10, "progress": False}
    one, two = (sample(posterior, **arguments) for _ in range(2))
    assert one.seed != two.seed
    assert not (one.draws == two.draws).any()
    for chain in (one, two):
        assert type(chain.seed) is int
        assert 0 <= chain.seed < 2**SEED_BITS
        again = sample(posterior, **arguments, seed=chain.seed)
        assert torch.equal(again.draws, chain.draws)
        assert again.seed == chain.seed


def test_batches_of_a_run_without_a_seed(posterior):
    arguments = {"num_chains": 4, "batch_size": 2, "progress": False}
    one = sample(posterior, HMC(0.05, 4), 3, **arguments)
    assert torch.equal(sample(posterior, HMC(0.05, 4), 3, **arguments, seed=one.seed).draws, one.draws)
    assert not torch.equal(sample(posterior, HMC(0.05, 4), 3, **arguments).draws, one.draws)


def test_every_calibration_has_data_sets_of_its_own(posterior):
    def calibrate(**arguments):
        quantities = {"first": lambda theta: theta[..., 0]}
        return simulation_based_calibration(posterior, HMC(0.05, 2), quantities, 20, 3, 1, progress=False, **arguments)

    one, two = calibrate(), calibrate()
    assert one.seed != two.seed
    assert not torch.equal(one.ranks, two.ranks)
    assert torch.equal(calibrate(seed=one.seed).ranks, one.ranks)
    assert calibrate(seed=generator()).seed is None


def test_fresh_seeds_differ():
    """Of 1,000, two are equal with a probability of 1e-4."""
    assert len({fresh_seed() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("seed", [5, 0, 2**32 - 1])
def test_large_seeds_are_streams_of_their_own(seed):
    """torch's generator on the CPU looks at 32 bits: fails when it gets the others as they are."""
    others = [seed, seed + 2**32, seed + 2**40, seed + 2**63, seed + 2**64, -seed - 2**32]
    streams = [torch.rand(4, generator=as_generator(other, CPU)) for other in others]
    assert torch.equal(streams[0], torch.rand(4, generator=generator(seed)))
    assert len(torch.stack(streams).unique(dim=0)) == len(others)


def test_streams_that_are_spawned():
    one, two = ([torch.rand(3, generator=stream) for stream in spawn(7, 3, CPU)] for _ in range(2))
    assert torch.equal(torch.stack(one), torch.stack(two))
    assert len(torch.stack(one).unique(dim=0)) == 3
    stream = generator(7)
    first, second = ([torch.rand(3, generator=child) for child in spawn(stream, 2, CPU)] for _ in range(2))
    assert not torch.equal(torch.stack(first), torch.stack(second))


# --- a stream that is lent --------------------------------------------------------------------------------------------

ONES = torch.ones(5, dtype=torch.float64)
DISTRIBUTIONS = [
    d.Bernoulli(0.3 * ONES), d.Beta(0.5 * ONES, 2 * ONES), d.Binomial(7, 0.3 * ONES), d.Binomial(700, 0.3 * ONES),
    d.Categorical(ONES), d.Cauchy(ONES, ONES), d.Chi2(3 * ONES), d.Dirichlet(0.3 * ONES), d.Exponential(ONES),
    d.FisherSnedecor(3 * ONES, 4 * ONES), d.Gamma(0.7 * ONES, ONES), d.Geometric(0.3 * ONES), d.Gumbel(ONES, ONES),
    d.HalfCauchy(ONES), d.Independent(d.Normal(ONES, ONES), 1), d.InverseGamma(3 * ONES, ONES),
    d.Kumaraswamy(ONES, 2 * ONES), d.Laplace(ONES, ONES), d.LKJCholesky(3), d.LogNormal(ONES, ONES),
    d.LowRankMultivariateNormal(ONES, torch.ones(5, 2).double(), ONES), d.Multinomial(10, ONES),
    d.MixtureSameFamily(d.Categorical(torch.ones(3)), d.Normal(torch.arange(3.0), torch.ones(3))),
    d.MultivariateNormal(ONES, torch.eye(5).double()), d.NegativeBinomial(4 * ONES, 0.3 * ONES), d.Normal(ONES, ONES),
    d.OneHotCategorical(ONES), d.Pareto(ONES, ONES), d.Poisson(4 * ONES), d.RelaxedBernoulli(0.5 * ONES, 0.3 * ONES),
    d.StudentT(3 * ONES), d.Uniform(0 * ONES, ONES), d.VonMises(ONES, 2 * ONES), d.Weibull(ONES, ONES),
    d.Wishart(torch.tensor(6.0), torch.eye(3)),
]  # fmt: skip
OTHERS = {
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn(3, dtype=torch.float64),
    "randint": lambda: torch.randint(9, (4,)),
    "randint from": lambda: torch.randint(2, 9, (4,)),
    "randperm": lambda: torch.randperm(9),
    "rand into": lambda: torch.rand(3, out=torch.empty(3)),
    "uniform_": lambda: torch.empty(4).uniform_(),
    "random_": lambda: torch.empty(4).random_(7),
    "multinomial": lambda: torch.multinomial(ONES, 3),
    "bernoulli": lambda: torch.bernoulli(0.5 * ONES),
    "bernoulli p": lambda: torch.bernoulli(ONES, 0.5),
    "normal": lambda: torch.normal(0.0, 1.0, (4,)),
    "rrelu": lambda: F.rrelu(-ONES, training=True),
    "channels": lambda: F.dropout2d(torch.ones(1, 9, 2, 2)),
    "a new layer": lambda: torch.nn.Linear(3, 2).weight.detach(),
}
DRAWS = OTHERS | {f"{k} {type(one).__name__}": lambda one=one: one.sample((7,)) for k, one in enumerate(DISTRIBUTIONS)}


@pytest.mark.filterwarnings("ignore:Singular sample detected:UserWarning")  # by Wishart's support, always
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_stream_that_is_lent_gives_what_a_global_one_gives(draw, inference):
    """To the bit, and it advances as far. Fails when an operator draws from the global stream after all."""
    lent, before = generator(3), torch.get_rng_state()
    with torch.inference_mode(inference):
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(lent.get_state())
            expected = [draw() for _ in range(3)]
            end = torch.get_rng_state()
        with lend_to_torch(lent):
            found = [draw() for _ in range(3)]
    assert all(map(torch.equal, found, expected))
    assert torch.equal(lent.get_state(), end)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_of_ones_own_goes_first():
    own = generator(9)
    with lend_to_torch(generator(3)):
        found = torch.rand(3, generator=own), torch.poisson(ONES, own)
    own = generator(9)
    assert torch.equal(found[0], torch.rand(3, generator=own))
    assert torch.equal(found[1], torch.poisson(ONES, own))


def test_operators_that_take_no_generator():
    """Refused in words, not drawn from the global stream."""
    before = torch.get_rng_state()
    with (
        torch.inference_mode(),
        lend_to_torch(generator()),
        pytest.raises(RuntimeError, match=r"aten\.native_dropout.* takes no generator: a distribution that draws with"),
    ):
        F.dropout(ONES)
    assert torch.equal(torch.get_rng_state(), before)
    with lend_to_torch(generator()), pytest.raises(RuntimeError, match="draws on meta, but the generator lies on cpu"):
        torch.rand(3, device="meta")
