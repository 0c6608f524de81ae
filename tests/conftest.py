"""Fixtures shared by the tests: the tutorial's network, its posterior, and the chains that hamiltorch drew from it."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from bnn_utils import Bernoulli, NormalPrior, Posterior, boxes, sampling, tutorial

# The same examples in every run, and no folder of past ones.
settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("suite")

# Not the reader's: what tests have compiled nobody needs again.
os.environ.setdefault("BNN_UTILS_CACHE", str(Path(__file__).resolve().parent.parent / "build" / "native"))

# Small networks run in native code. For faults in torch's code, `tests/faults.py` asks that all run in torch.
if os.environ.get("BNN_UTILS_TESTS") == "torch":
    sampling.can_be_native = lambda posterior: False

# A shell that runs the tests in the background has them ignore interrupts, for which some tests wait.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Batches this small are faster on one thread, and many times faster where other programs keep the other cores busy.
torch.set_num_threads(1)


@pytest.fixture
def net():
    """The tutorial's network; its own parameters are whatever torch drew, and no test may depend on them."""
    return tutorial.network()


@pytest.fixture
def make_posterior(net):
    """The tutorial's posterior, with parts exchanged by keyword."""

    def make(module=net, data=None, prior=None, likelihood=None, **kwargs):
        return Posterior(module, data or boxes(), prior or NormalPrior(0.09), likelihood or Bernoulli(), **kwargs)

    return make


@pytest.fixture
def posterior(make_posterior):
    return make_posterior()


@pytest.fixture
def theta():
    """Five vectors for the tutorial's network, of the size that its posterior has."""
    return 3 * torch.randn(5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def golden():
    """Data and chains of hamiltorch 0.4.1 for the tutorial's problem: name -> tensor."""
    with np.load(Path(__file__).parent / "data" / "hamiltorch_chains.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}
