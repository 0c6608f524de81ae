"""Regressions of posteriordb, with its priors, beside means and deviations of its reference draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.distributions import HalfCauchy

from bnn_utils import HMC, MAMS, NUTS, ChEES, Data, ElementPrior, Flat, Gaussian, Log, LogScale, Posterior, sample
from bnn_utils.diagnostics import mcse, rhat

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "posteriordb"
SIGMA = {
    "kidscore_momiq": HalfCauchy(2.5),
    "logearn_interaction": Flat(is_positive=True),
    "nes1980": Flat(is_positive=True),
}
KERNELS = {
    "HMC": HMC(),
    "HMC, dense": HMC(dense_mass=True),
    "NUTS": NUTS(),
    "NUTS, dense": NUTS(dense_mass=True),
    "ChEES": ChEES(),
    "ChEES, dense": ChEES(dense_mass=True),
    "MAMS": MAMS(),
}
FALSE_ALARM = 1e-4

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="posteriordb's data are not beside this project")


@pytest.mark.filterwarnings("ignore:.*far from unit scale")  # as in posteriordb, in points and centimetres
@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("name", SIGMA)
def test_means_and_deviations_are_those_of_the_reference(name, kernel):
    """All |z| together have a false-alarm rate of 1e-4; fails without the Jacobian of sigma's logarithm."""
    known = np.load(FOLDER / f"{name}.npz")
    x, y = torch.from_numpy(known["X"]).double(), torch.from_numpy(known["y"]).double()
    net = nn.Sequential(nn.Linear(x.shape[1], 1), LogScale()).double()
    prior = ElementPrior({"1.log_scale": Log(SIGMA[name]), "*": Flat()})
    posterior = Posterior(net, Data(x, y), prior, Gaussian())
    ones = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    best = torch.linalg.lstsq(ones, y).solution
    start = torch.cat([best, (y - ones @ best).std().log()[None]])
    chain = sample(posterior, kernel, 1000, 16, warmup=1000, init=start, seed=17, progress=False)
    *slopes, intercept, log_sigma = chain.draws.unbind(-1)
    draws = torch.stack([intercept, *slopes, log_sigma.exp()], dim=-1)
    assert rhat(draws).max() < 1.02
    squares = (draws - torch.from_numpy(known["mean"])).square()
    z = [
        (draws.mean((0, 1)).numpy() - known["mean"]) / np.hypot(mcse(draws).numpy(), known["mean_se"]),
        (squares.mean((0, 1)).numpy() - known["sd"] ** 2)
        / np.hypot(mcse(squares).numpy(), 2 * known["sd"] * known["sd_se"]),
    ]
    assert np.abs(z).max() < norm.isf(FALSE_ALARM / 2 / np.size(z))
