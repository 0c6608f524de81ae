"""Bayesian neural networks on one flat parameter vector."""

from bnn_utils.adaptation import ChEES
from bnn_utils.chain import Chain
from bnn_utils.data import Data, boxes, default_device, published_summary, square_grid
from bnn_utils.flat import FlatModule
from bnn_utils.hmc import HMC
from bnn_utils.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, LogScale
from bnn_utils.posterior import Posterior
from bnn_utils.priors import ElementPrior, FanInPrior, NormalPrior
from bnn_utils.references import reference
from bnn_utils.sampling import sample
from bnn_utils.tempering import ReplicaExchange

__version__ = "0.1.0"

__all__ = [
    "HMC",
    "Bernoulli",
    "Categorical",
    "ChEES",
    "Chain",
    "Data",
    "ElementPrior",
    "FanInPrior",
    "FlatModule",
    "Gaussian",
    "Likelihood",
    "LogScale",
    "NormalPrior",
    "Posterior",
    "ReplicaExchange",
    "boxes",
    "default_device",
    "published_summary",
    "reference",
    "sample",
    "square_grid",
]
