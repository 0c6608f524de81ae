"""Bayesian neural networks on one flat parameter vector."""

from bnn_utils.chain import Chain
from bnn_utils.data import Data, default_device, square_grid
from bnn_utils.families import Flat, Log
from bnn_utils.flat import FlatModule
from bnn_utils.hierarchy import ByInput, HierarchicalPrior
from bnn_utils.kernels.chees import ChEES
from bnn_utils.kernels.hamiltorch import Hamiltorch
from bnn_utils.kernels.hmc import HMC
from bnn_utils.kernels.microcanonical import MAMS, MCLMC
from bnn_utils.kernels.nuts import NUTS
from bnn_utils.kernels.path import fit_reference
from bnn_utils.kernels.replica_exchange import ReplicaExchange
from bnn_utils.kernels.stochastic import SGHMC, SGLD
from bnn_utils.kernels.symmetric import Symmetric
from bnn_utils.layers import LogScale, Standardise
from bnn_utils.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from bnn_utils.maxima import find_map
from bnn_utils.posterior import Posterior
from bnn_utils.predictor import Predictor
from bnn_utils.priors import ElementPrior, FanInPrior, NormalPrior
from bnn_utils.references import reference
from bnn_utils.sampling import sample
from bnn_utils.tutorial import boxes, published_summary

__version__ = "0.1.0"

__all__ = [
    "HMC",
    "MAMS",
    "MCLMC",
    "NUTS",
    "SGHMC",
    "SGLD",
    "Bernoulli",
    "ByInput",
    "Categorical",
    "ChEES",
    "Chain",
    "Data",
    "ElementPrior",
    "FanInPrior",
    "Flat",
    "FlatModule",
    "Gaussian",
    "Hamiltorch",
    "HierarchicalPrior",
    "Likelihood",
    "Log",
    "LogScale",
    "NormalPrior",
    "Posterior",
    "Predictor",
    "ReplicaExchange",
    "Standardise",
    "Symmetric",
    "boxes",
    "default_device",
    "find_map",
    "fit_reference",
    "published_summary",
    "reference",
    "sample",
    "square_grid",
]
