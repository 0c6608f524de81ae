"""References: whether their algorithms are right, wrong ones are noticed, and draws are told from what is known."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from scipy.stats import t as student

from bnn_utils import HMC, Chain, Data, NormalPrior, Posterior, ReplicaExchange, boxes, find_map, sample
from bnn_utils.random import spawn
from bnn_utils.references import PROBLEMS, names, problem, reference, score, smc
from bnn_utils.references import known as files
from bnn_utils.references.agreement import LEVELS, Replicates, agreement, influences, marginals, moved_mass, replicates
from bnn_utils.references.smc import sequential_monte_carlo
from targets import FALSE_ALARM, generator, normal

HERE = [name for name in PROBLEMS if name != "boston"]  # whose data come with the project's packages


def exchange(asked, num_samples, num_chains, thin, seed, posterior=None, num_steps=8):
    """A run from draws of the prior, with the numbers of temperatures and steps of `tools/reference.py` or fewer."""
    kernel = ReplicaExchange(HMC(0.05, num_steps), num_temperatures=12)
    return sample(
        posterior or asked.posterior, kernel, num_samples, num_chains, 1_000, seed=seed, thin=thin, progress=False
    )


# --- sequential Monte Carlo -------------------------------------------------------------------------------------------


def is_right():
    """Whether means, deviations and evidence of 24 runs are those of the closed form; a false alarm in 10,000 times."""
    known = reference("line")
    asked = known.problem()
    streams = spawn(3, 24, torch.device("cpu"))
    runs = [sequential_monte_carlo(asked.posterior, 2_000, 5, 4, stream) for stream in streams]
    values = torch.stack([asked.values(run.theta) for run in runs])
    means, squares = values.mean(1), (values - known.mean).square().mean(1)
    logs = torch.tensor([run.log_evidence for run in runs], dtype=torch.float64)
    evidence = (logs - known.log_evidence.value).exp()[:, None] - 1  # whose mean is 0, of whatever number of particles
    off = torch.cat([means - known.mean, squares - known.sd.square(), evidence], dim=1)
    t = off.mean(0) / off.std(0) * len(off) ** 0.5
    return t.abs().max() < student.isf(FALSE_ALARM / 2 / len(t), len(off) - 1)


@pytest.mark.statistical
def test_sequential_monte_carlo_of_a_regression():
    assert is_right()


def no_resampling(weights, stream):
    return torch.arange(len(weights))


def always_accept(density, beta, sizes, num_steps, stream, theta, log_likelihood, grad):
    """One leapfrog step that is far too long, and stays where it ends."""
    p = torch.randn(theta.shape, generator=stream, dtype=theta.dtype)
    there = theta + 3 * sizes * (p + 1.5 * sizes * (density.prior.grad(theta) + beta * grad))
    return there, *density.likelihood.log_prob_and_grad(there), 0.8


def too_hot(move):
    return lambda density, beta, *others: move(density, 0.9 * beta, *others)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "fault"),
    [("_systematic", no_resampling), ("_move", always_accept), ("_move", too_hot(smc._move))],
    ids=["no resampling", "always accepted", "too hot"],
)
def test_faults_of_sequential_monte_carlo_are_seen(name, fault, monkeypatch):
    monkeypatch.setattr(smc, name, fault)
    assert not is_right()


# --- agreement --------------------------------------------------------------------------------------------------------


def made_up(num, seed, shift=0.0, scale=1.0):
    """Replicates of six quantities that go together, of normal draws."""
    values = normal(num, 400, 6, seed=seed).cumsum(-1)
    return list(shift + scale * values)


def compared(one, other):
    weights = [torch.full((len(side),), 1 / len(side), dtype=torch.float64) for side in (one, other)]
    known = marginals(one, weights[0])
    none = [[torch.zeros(len(values), 0) for values in side] for side in (one, other)]
    sides = [replicates(v, b, known, w) for v, b, w in zip((one, other), none, weights, strict=True)]
    return agreement(*sides, influences(torch.cat(one), known))


@pytest.mark.statistical
def test_equal_computations_agree():
    """Of 30 pairs one in a hundred is to disagree. Fails when standard errors are too small by a quarter."""
    disagree = sum(not compared(made_up(24, 2 * k), made_up(16, 2 * k + 1)).agrees for k in range(30))
    assert disagree <= binom.isf(FALSE_ALARM, 30, 0.01)


@pytest.mark.parametrize("change", [{"shift": 0.15}, {"scale": 1.08}], ids=["mean", "spread"])
def test_other_computations_disagree(change):
    assert not compared(made_up(24, 0), made_up(16, 1, **change)).agrees


def test_weights_of_replicates_count():
    """A run that found little evidence hardly counts."""
    averages = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    found = Replicates(averages, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    assert found.estimate.item() == 0.5
    assert found.se.item() == pytest.approx(math.sqrt(3 / 2 * 2 * 0.25**2))


# --- references that are shipped --------------------------------------------------------------------------------------


def test_ten_are_known():
    assert len(names()) >= 10


@pytest.mark.parametrize("name", [name for name in names() if name != "boston"])
def test_reference_is_of_its_problem(name):
    """Numbers fit each other and the problem, whose fingerprint is compared, and two algorithms agreed."""
    known = reference(name)
    asked = known.problem()
    values = asked.values(asked.posterior.sample_prior(3, generator()))
    assert values.shape == (3, len(known.mean))
    assert (known.quantiles.diff(dim=0) >= 0).all()
    assert known.quantiles.shape == known.below_se.shape == (len(LEVELS), len(known.mean))
    assert (known.mode is None) == (asked.mode is None)
    json.dumps(known.certificate)
    for part in ("first", "second", "agreement", "versions", "command"):
        assert known.certificate[part]


def test_another_posterior_is_refused(monkeypatch):
    """A table of scikit-learn that changed would make every score wrong."""
    asked = problem("line")
    data = Data(asked.posterior.data.x, asked.posterior.data.y + 0.01)
    other = Posterior(asked.posterior.flat.module, data, NormalPrior(1.0), asked.posterior.likelihood)
    changed = type(asked)(asked.name, other, asked.inputs, asked.held_out, asked.about)
    monkeypatch.setitem(files.PROBLEMS, "line", lambda folder: changed)
    with pytest.raises(ValueError, match="not the one that this reference is of"):
        reference("line").problem()


def test_file_round_trip(tmp_path):
    known = reference("boxes")
    files.write(known, tmp_path / "boxes.npz")
    again = files.read(tmp_path / "boxes.npz")
    assert (again.name, again.log_evidence, again.mode) == (known.name, known.log_evidence, known.mode)
    assert torch.equal(again.mean, known.mean)
    assert torch.equal(again.quantiles, known.quantiles)
    assert again.certificate == known.certificate


def test_unknown_names():
    with pytest.raises(ValueError, match="boxes"):
        reference("boxen")
    with pytest.raises(ValueError, match="boxes"):
        problem("boxen")


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ("boxes", "sine_tanh", "wine") if name in names()])
def test_reference_by_a_short_run(name):
    """With another seed than the reference's; a false alarm in 10,000 runs by Bonferroni over all that is compared."""
    known = reference(name)
    asked = known.problem()
    found = score(exchange(asked, 400, 8, 15, seed=11), known)
    assert found.largest < norm.isf(FALSE_ALARM / 2 / (7 * len(known.mean) + 1))
    assert found.mean.value < 3 * found.mean.by_chance


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_run():
    """Draws of the tutorial's posterior, and the function values that are compared."""
    asked = problem("boxes")
    chain = exchange(asked, 500, 64, 10, seed=5)
    return asked, asked.values(chain.draws)


def with_moved_mass(asked, values, share=0.05):
    """Of each chain so many of the draws of one mode replaced by draws of the other."""
    return torch.stack([chain[moved_mass(asked.is_mode(chain), share)] for chain in values])


@pytest.mark.statistical
@pytest.mark.slow
def test_the_truth_is_indistinguishable_from_itself(long_run):
    """In 95 % of the splits of a long run. Fails when standard errors are halved.

    Of 224 such splits of the shipped runs of four references 11 were told from them, 4.9 %.
    """
    known = reference("boxes")
    found = [score(part, known).is_indistinguishable for part in long_run[1].split(4)]
    assert found.count(False) <= binom.isf(FALSE_ALARM, len(found), 0.05)


@pytest.mark.statistical
@pytest.mark.slow
def test_laplace_is_always_told():
    """A normal distribution at a maximum, of each of five maxima."""
    known = reference("boxes")
    asked = known.problem()
    for seed in range(5):
        theta = find_map(asked.posterior, seed=seed).theta[0]
        precision = -torch.autograd.functional.hessian(asked.posterior.log_prob, theta)
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        found = score(asked.values(theta + normal(1_000, asked.posterior.dim, seed=seed) @ root.T), known)
        assert not found.is_indistinguishable
        assert found.mean.value > 0.1


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("what", ["prior", "data"])
def test_wrong_posteriors_are_told(what):
    """Of a prior of precision 0.12 in place of 0.09, and of points drawn with the next seed."""
    asked = problem("boxes")
    data = boxes(seed=1235) if what == "data" else asked.posterior.data
    other = Posterior(
        asked.posterior.flat.module, data, NormalPrior(0.12 if what == "prior" else 0.09), asked.posterior.likelihood
    )
    found = score(exchange(asked, 500, 32, 10, seed=6, posterior=other), reference("boxes"))
    assert not found.is_indistinguishable


@pytest.mark.statistical
@pytest.mark.slow
def test_moved_mass_of_a_mode_is_told(long_run):
    """A twentieth of the draws of one mode replaced by draws of the other."""
    moved = with_moved_mass(*long_run)
    assert not score(moved, reference("boxes")).is_indistinguishable


@pytest.mark.statistical
@pytest.mark.slow
def test_wrong_references_disagree(long_run):
    """Half of a run agrees with the other half, and not with a tenth of one mode's mass moved, nor with another prior.

    Of a twentieth, which the runs of `tools/reference.py` see, eight times as long, benchmarks/references.csv tells.
    """
    asked, values = long_run
    half, rest = values[::2], values[1::2]
    assert compared(list(half), list(rest)).agrees
    assert not compared(list(values), list(with_moved_mass(asked, values, 0.1))).agrees
    prior = Posterior(asked.posterior.flat.module, boxes(), NormalPrior(0.12), asked.posterior.likelihood)
    other = asked.values(exchange(asked, 500, 16, 10, seed=8, posterior=prior).draws)
    assert not compared(list(half), list(other)).agrees


def test_all_forms_of_draws_score_alike():
    known = reference("line")
    asked = known.problem()
    chain = sample(asked.posterior, HMC(), 100, 4, 100, seed=0, progress=False)
    expected = score(chain, known)
    values, logs = asked.values(chain.draws), asked.log_likelihoods(chain.draws)
    for found in (
        score(values, known, logs),
        score(values.numpy(), known, logs.numpy()),
        score(chain.to_arviz(), known),
        score(lambda x: asked.posterior.predict(chain.draws, x), known),
    ):
        assert found.mean == expected.mean
        assert found.largest == expected.largest
    assert score(values, known, logs).log_score_lost == expected.log_score_lost
    assert score(values, known).log_score_lost is None
    assert isinstance(chain, Chain)


def test_log_score_of_class_probabilities():
    known = reference("boxes")
    asked = known.problem()
    theta = asked.posterior.sample_prior(60, generator())
    found = score(lambda x: asked.posterior.predict(theta, x), known)
    expected = score(asked.values(theta), known, asked.log_likelihoods(theta))
    assert found.log_score_lost.value == pytest.approx(expected.log_score_lost.value)


def test_one_function_is_no_distribution():
    known = reference("line")
    asked = known.problem()
    found = score(asked.values(torch.zeros(1, asked.posterior.dim, dtype=torch.float64)), known)
    assert not found.is_indistinguishable
    assert "too few" in found.verdict
    assert math.isinf(found.sd.value)
    assert found.mean.value > 0.5


def test_distances_are_those_of_their_definitions():
    """Shifted, and stretched draws of normal quantities, whose distances are known."""
    known = reference("line")
    z = normal(20_000, 1).expand(-1, len(known.mean))
    shifted = score(known.mean + known.sd * (z + 0.5), known)
    assert shifted.mean.value == pytest.approx(0.5, abs=0.05)
    assert shifted.wasserstein.value == pytest.approx(0.5, abs=0.05)
    stretched = score(known.mean + known.sd * 2 * z, known)
    assert stretched.sd.value == pytest.approx(math.log(2), abs=0.05)
    assert stretched.wasserstein.value == pytest.approx(math.sqrt(2 / math.pi), abs=0.1)
    assert stretched.coverage.value == pytest.approx(1 - 2 * norm.sf(2 * norm.isf(0.05)), abs=0.02)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (np.zeros((4, 100, 7)), "48"),
        (np.zeros(48), "48"),
        (np.full((4, 100, 48), np.nan), "NaN"),
        (lambda x: np.zeros((10, 3)), "predictions have shape"),
    ],
    ids=["width", "one dimension", "NaN", "function"],
)
def test_wrong_draws_are_refused(draws, message):
    with pytest.raises(ValueError, match=message):
        score(draws, reference("line"))


def test_not_a_reference():
    with pytest.raises(TypeError, match="reference"):
        score(np.zeros((4, 100, 48)), "line")


def test_prints():
    known = reference("line")
    assert "line" in repr(known)
    asked = known.problem()
    found = score(asked.values(asked.posterior.sample_prior(100, generator())), known)
    assert "not the posterior" in repr(found)
    assert list(found.table().columns) == ["value", "se", "of the posterior"]
