"""Chains that the real hamiltorch drew, drawn again, draw by draw.

The dynamics amplify rounding, so a chain computed in another order of operations follows for a while and then leaves;
the number of draws and the tolerance of each case say how long it has to follow.
"""

import pytest
import torch

from bnn_utils import HMC, boxes, sample
from bnn_utils.engines import ENGINES, available

# name: (kernel, its inverse mass in the file, the chain's seed, (draws, tolerance) ...)
CHAINS = {
    "tutorial_f64": (HMC(0.05, 4), None, 7, [(100, 1e-9), (500, 1e-8)]),
    # One unit in the last place of a weight near 8 is 5e-7; by draw 100 a few have come together.
    "tutorial_f32": (HMC(0.05, 4), None, 7, [(100, 5e-6)]),
    "rejecting_f64": (HMC(0.12, 10), None, 21, [(30, 1e-9)]),
    "diagonal_mass_f64": (HMC(0.05, 6), "diag_inv_mass", 33, [(50, 1e-9)]),
    "dense_mass_f64": (HMC(0.03, 6), "dense_inv_mass", 44, [(50, 1e-9)]),
}
# This chain multiplies errors by about two a draw. By autograd, and through hamiltorch's engine, the operations come in
# another order than the reference's, which changes last bits: at draw 30 the distance has reached 7e-10 and 2e-9.
LEAVES_EARLIER = {"rejecting_f64": [(25, 1e-9)]}

engines = pytest.mark.parametrize(
    "engine",
    [
        pytest.param(name, marks=pytest.mark.skipif(name not in available(), reason=f"{name} is not installed"))
        for name in ENGINES
    ],
)


@engines
@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
@pytest.mark.parametrize("name", CHAINS)
def test_reference_chain(make_posterior, golden, name, gradient, engine):
    kernel, mass, seed, limits = CHAINS[name]
    if gradient == "autograd" or engine == "hamiltorch":
        limits = LEAVES_EARLIER.get(name, limits)
    reference = golden[name]
    if mass is not None:
        kernel = HMC(kernel.step_size, kernel.num_steps, golden[mass])
    posterior = make_posterior(data=boxes().to(reference.dtype), gradient=gradient)
    longest = max(draws for draws, _ in limits)
    chain = sample(posterior, kernel, longest, init=reference[0], seed=seed + 1, engine=engine, progress=False)
    assert chain.draws.dtype == reference.dtype
    distance = (chain.draws[0] - reference[1 : longest + 1]).abs().amax(1)
    for draws, tolerance in limits:
        assert distance[:draws].max() < tolerance
    moved = (reference[1 : longest + 1] != reference[:longest]).any(1)
    assert torch.equal(chain.stats["is_accept"][0], moved)


def test_rejecting_chain_rejects(golden):
    reference = golden["rejecting_f64"]
    assert (reference[1:] == reference[:-1]).all(1).sum() == 205
