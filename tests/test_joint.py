"""The network's own posterior, for which there is no closed form: what is known is how parameters and data go together.

Parameters from the prior, and labels from the network with these parameters, are a draw from their joint distribution.
A sampler that changes the parameters given the labels must leave that distribution as it is (Geweke 2004), and its
draws cannot be told from the parameters that the labels came from (simulation-based calibration, `bnn_utils.sbc`).
"""

from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2, ks_2samp, norm

from bnn_utils import HMC, ReplicaExchange, boxes, sample
from bnn_utils.sbc import Calibration, ranks, simulation_based_calibration
from samplers import ROUGHLY, SAMPLERS, density_for, each_sampler, placed
from targets import FALSE_ALARM, generator, vector

pytestmark = [pytest.mark.slow, pytest.mark.statistical]

# Between the boxes, in one of them, and at the edge of the cross.
PLACES = vector(0, 0, 2.5, 2.5, 0, 2.5).view(3, 2)


@pytest.fixture
def model(make_posterior):
    """The tutorial's network and prior, and five points of each box; their labels will be made up."""
    return make_posterior(data=boxes(n=20))


def assert_same_joint_distribution(model, theta, y, stream):
    """Of parameters and labels ``(C, ...)``, all independent: the prior's moments, and functions of fresh pairs."""
    lanes, num_tests = len(theta), 2 * model.dim + len(PLACES) + 1
    z = theta * model.prior_distribution.precision.sqrt()
    assert (z.mean(0) * lanes**0.5).abs().max() < norm.isf(FALSE_ALARM / num_tests / 2)
    squares = z.square().sum(0)
    assert chi2.ppf(FALSE_ALARM / num_tests / 2, lanes) < squares.min()
    assert squares.max() < chi2.isf(FALSE_ALARM / num_tests / 2, lanes)
    fresh = model.sample_prior(4000, stream)
    values, expected = (
        torch.cat([model.outputs(at, PLACES)[..., 0], model.with_targets(labels).log_likelihood(at)[:, None]], dim=1)
        for at, labels in ((theta, y), (fresh, model.simulate(fresh, stream)))
    )
    p = [ks_2samp(*columns).pvalue for columns in zip(values.T.numpy(), expected.T.numpy(), strict=True)]
    assert min(p) > FALSE_ALARM / num_tests


@each_sampler("replica exchange", "fitted reference")
def test_labels_and_parameters_in_turn(sampler, model):
    """Geweke's successive-conditional simulation: labels given parameters, then one transition given the labels.

    Each lane starts with a draw from the joint distribution, so that all are in equilibrium from the start and remain
    independent: what Geweke estimates from one long chain is tested here without an estimate of its error. Fails when
    the Metropolis correction is left out, when the likelihood counts a point twice, and when the prior is another.
    """
    lanes, stream, kernel = sampler.size(4000), generator(7), sampler.tuned(ROUGHLY)
    theta = model.sample_prior(lanes, stream)
    for _ in range(100):
        y = model.simulate(theta, stream)
        density = density_for(model.with_targets(y), lanes)
        _, info = kernel.step(density, stream, kernel.init(density, theta, 0))
        theta = info.theta
    assert_same_joint_distribution(model, theta, y, stream)


def test_labels_and_parameters_in_turn_at_two_temperatures(model):
    """The same for replica exchange between the prior and the posterior: the labels are the posterior's alone."""
    lanes, stream = 4000, generator(8)
    kernel = ReplicaExchange(HMC(0.1, 4), 2, vector(0, 1), vector(2.0, 0.15))
    theta, swaps = model.sample_prior(2 * lanes, stream), 0
    for _ in range(100):
        y = model.simulate(theta[1::2], stream)
        density = density_for(model.with_targets(y), 2 * lanes)
        state, _ = kernel.step(density, stream, placed(kernel, density, theta))
        theta, swaps = state.theta, swaps + (state.replica[:, 0] == 1).double().mean().item()
    assert swaps > 3, "every place is to change hands some times"
    assert_same_joint_distribution(model, theta[1::2], y, stream)


@each_sampler()
def test_simulation_based_calibration(sampler, model):
    """Ranks of the truth, in what the network predicts and in how well it fits, are uniform.

    Replica exchange has to find the posterior from prior draws, the others only to stay in it. Fails when the
    Metropolis correction is left out, which makes networks that are too sure, and when the prior is another.
    """
    quantities = {
        "between the boxes": lambda theta: model.predict(theta, PLACES)[..., 0],
        "how sure": lambda theta: (model.predict(theta, PLACES) - 0.5).abs().mean(-1),
    }
    sizes = {"num_datasets": 640, "num_draws": 15, "thin": 20}
    if sampler.is_slow:
        sizes = {"num_datasets": 320, "num_draws": 15, "thin": 2}
    elif sampler.kernel(ROUGHLY).lanes_per_chain > 1:  # its draws have to be independent
        sizes = {"num_datasets": 640, "num_draws": 7, "thin": 50, "warmup": 300}
    elif sampler is SAMPLERS["NUTS"]:  # whose transitions are long
        sizes["thin"] = 5
    kernel = sampler.tuned(ROUGHLY)
    if getattr(kernel, "reference", None) is not None:
        # One that is narrower than the posterior, as `ROUGHLY` is in places, leaves tails that it hardly comes to.
        kernel = replace(kernel, reference=0.8 * model.prior_distribution.precision.rsqrt())
    calibration = simulation_based_calibration(model, kernel, quantities, **sizes, seed=9, progress=False)
    assert calibration.is_calibrated, calibration.verdict


# An AND of "x > 0 or y < 0" and "x < 0 or y > 0", each by one unit of the second layer: it fits the four boxes.
AN_AND = vector(2, 0, 0, -2, 0, 0, 0, 0, 0, 2, 2, 0, -2, -2, 0, 2, 2, 3, 3, -3)


def test_all_chains_from_one_mode(make_posterior):
    """HMC does not find the other mode, replica exchange does; starts from the prior would have brought both.

    Given labels like the tutorial's, between whose networks there is a barrier, ranks of the truth are still
    uniform. They rank the number of corners in which the output unit says class 1, 1 for an AND and 3 for an OR. Over
    5 groups of 230 data sets and 3 draws each, HMC's p-value was at most 1e-34. Fails without swaps.
    """
    model, stream = make_posterior(data=boxes(n=40)), generator(10)
    assert ((model.predict(AN_AND, model.data.x) > 0.5) == model.data.y.bool()).double().mean() > 0.9
    kept = []
    for _ in range(40):
        theta = model.sample_prior(50_000, stream)
        y = model.simulate(theta, stream)
        alike = (y == model.data.y).sum(1) >= 35
        kept.append((theta[alike], y[alike]))
    truth, y = map(torch.cat, zip(*kept, strict=True))  # some 230

    def corners(theta):
        signs = vector(1, 1, 1, -1, -1, 1, -1, -1).view(4, 2)
        return (theta[..., 17:19] @ signs.mT + theta[..., 19:] > 0).sum(-1, keepdim=True)

    def calibration(kernel):
        chain = sample(model.with_targets(y), kernel, 900, len(y), 600, init=AN_AND, seed=stream, progress=False)
        return Calibration(ranks(corners(truth), corners(chain.draws[:, 299::300]), stream), 3, ["corners"])

    assert calibration(HMC(0.1, 4)).table().to_numpy().max() < 1e-6
    found = calibration(ReplicaExchange(HMC(0.1, 4), 8))
    assert found.is_calibrated, found.verdict
