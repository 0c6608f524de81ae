"""A small part of the table of `benchmarks/uci.md`: scores on one split of published data, by a short run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bnn_utils import HMC, FanInPrior, Gaussian, LogScale, Posterior, Standardise, datasets, sample
from bnn_utils.predict import coverage, log_score

UCI = Path(__file__).resolve().parents[2] / "shared" / "uci"
# The best of published results on these splits: RMSE by MC dropout, log score by deep ensembles (means of 20 splits).
RMSE, LOG_SCORE = 0.64, -1.18


@pytest.mark.statistical
@pytest.mark.skipif(not (UCI / "yacht").is_dir(), reason=f"yacht is not in {UCI}")
def test_scores_on_a_split_of_yacht():
    """Of 12 seeds RMSE was 0.24 to 0.42 (standard deviation 0.05), the log score 0.32 to 0.54 (0.06): a false alarm
    takes five standard deviations or more. It fails where noise is in other units, and where chains don't move.

    So short a run has not converged, and has to say so.
    """
    train, new = (part.to(torch.float32) for part in datasets.load("yacht", UCI).split(0))
    net = nn.Sequential(Standardise(train.x), nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 1), LogScale())
    posterior = Posterior(net, train, FanInPrior(2, 1), Gaussian(units=Standardise(train.y)))
    chain = sample(posterior, HMC(), 100, 8, warmup=150, seed=1, progress=False)
    predicted = posterior.predict(chain.draws, new.x)
    assert (predicted.mean((0, 1)) - new.y).square().mean().sqrt() < RMSE
    assert LOG_SCORE + 1 < log_score(posterior.log_likelihoods(chain.draws, new)).mean() < 1.5  # units would add 2.7
    assert coverage(posterior.predictive_draws(chain.draws, new.x, seed=0).flatten(0, 1), new.y).value > 0.7
    assert any("R-hat of lp is" in warning for warning in chain.warnings)
