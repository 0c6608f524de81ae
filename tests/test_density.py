"""What kernels see of a posterior: its three densities, made when asked for, one thread each, compiled once."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bnn_utils import ElementPrior, NormalPrior, density
from bnn_utils.density import Density
from bnn_utils.gradients import native

PARTS = "joint", "prior", "likelihood"
gradients = pytest.mark.parametrize("gradient", ["closed-form", "autograd"])


@gradients
@pytest.mark.parametrize(
    "prior",
    [NormalPrior({"*.weight": 0.09, "*.bias": 2.0}), ElementPrior(torch.distributions.Laplace(0.0, 1.0))],
    ids=["normal", "laplace"],
)
def test_prior_and_likelihood_are_the_joint(make_posterior, theta, gradient, prior):
    """Their sum is the whole; each alone is what its name says."""
    posterior = make_posterior(prior=prior, gradient=gradient)
    density = posterior.density(5)
    parts = density.prior, density.likelihood
    values, grads = zip(*(part.log_prob_and_grad(theta) for part in parts), strict=True)
    for value, expected in zip(values, (posterior.log_prior(theta), posterior.log_likelihood(theta)), strict=True):
        torch.testing.assert_close(value, expected)
    for mine, expected in zip((sum(values), sum(grads)), density.joint.log_prob_and_grad(theta), strict=True):
        torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(sum(part.grad(theta) for part in parts), density.joint.grad(theta))


def test_what_it_says_of_itself(make_posterior):
    posterior = make_posterior(gradient="autograd")
    density = Density(posterior, 3)
    assert (density.dim, density.dtype, density.device.type) == (20, torch.float64, "cpu")
    assert (density.num_lanes, density.is_compiled) == (3, False)
    assert repr(density) == f"Density(3 lanes, of {posterior!r})"


def test_parts_are_made_when_asked_for_and_once(posterior, monkeypatch):
    """Fails when a kernel that tempers pays for the memory of what it doesn't use."""
    made = []
    original = density.closed_form
    monkeypatch.setattr(density, "closed_form", lambda *arguments: made.append(1) or original(*arguments))
    one = posterior.density(5)
    assert one.prior is one.prior
    assert not made
    assert one.likelihood is one.likelihood
    assert one.joint is one.joint
    assert made == [1], "joint and likelihood share what they compute in"


@gradients
def test_outside_of_inference_mode_and_inside(make_posterior, theta, gradient):
    density, found = make_posterior(gradient=gradient).density(5), []
    for mode in (False, True):
        with torch.inference_mode(mode):
            for part in PARTS:
                log_density = getattr(density, part)
                found.append([*log_density.log_prob_and_grad(theta), log_density.grad(theta)])
    for one, two in zip(found[:3], found[3:], strict=True):
        assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("part", PARTS)
def test_what_comes_back_is_not_overwritten(posterior, theta, part):
    """The memory is used again; fails when a result is a view of it."""
    log_density = getattr(posterior.density(5), part)
    first = (*log_density.log_prob_and_grad(theta), log_density.grad(theta))
    before = [value.clone() for value in first]
    log_density.log_prob_and_grad(-theta), log_density.grad(2 * theta)
    for value, copied in zip(first, before, strict=True):
        assert torch.equal(value, copied)


def test_each_thread_with_its_own(posterior, theta):
    """Fails when two densities of one posterior share the memory that they compute in."""
    expected, barrier = posterior.density(5).joint.log_prob_and_grad(theta)[1], threading.Barrier(4)

    def work(factor):
        joint, found = posterior.density(5).joint, []
        barrier.wait()
        for _ in range(200):
            joint.grad(factor * theta)
            found.append(joint.grad(theta))
        return found

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(2, 6)):
            assert all(torch.equal(grad, expected) for grad in found)


# --- in native code ---------------------------------------------------------------------------------------------------


def test_networks_of_one_shape_share_their_code(make_posterior, theta, monkeypatch):
    """Whatever their data, priors and numbers of lanes: it takes half a second to make."""
    made, make = [], native.Code
    monkeypatch.setattr(native, "Code", lambda program: made.append(program) or make(program))
    monkeypatch.setattr(native, "_CODE", {})
    posterior, other = make_posterior(), make_posterior(prior=NormalPrior(2.0))
    for one in (posterior, other, posterior.with_targets(1 - posterior.data.y)):
        for num_lanes in (1, 5):
            assert one.density(num_lanes, compile=True).is_compiled
    assert len(made) == 1
    assert not posterior.density(5).is_compiled
    posterior.density(64, compile=True)
    assert len(made) == 2, "many lanes have code of their own"


def test_where_it_fails_it_runs_in_torch(posterior, theta, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(native, "Code", fail)
    monkeypatch.setattr(native, "_CODE", {})
    density._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"there is no native code, .* \(RuntimeError: out of order\)"):
        found = posterior.density(5, compile=True)
    assert not found.is_compiled
    assert torch.equal(found.joint.grad(theta), posterior.density(5).joint.grad(theta))


def test_copies_make_it_anew(posterior, theta):
    """By pickle and deepcopy; fails when the code, which belongs to its process, goes along."""
    one = posterior.density(5, compile=True)
    for copied in (pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)):
        assert torch.equal(copied.density(5, compile=True).joint.grad(theta), one.joint.grad(theta))
    again = pickle.loads(pickle.dumps(one))
    assert (again.num_lanes, again.is_compiled) == (5, True)
    assert torch.equal(again.joint.grad(theta), one.joint.grad(theta))


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_lanes", [0, -1, 2.5])
def test_no_number_of_lanes(posterior, num_lanes):
    with pytest.raises(ValueError, match="num_lanes must be a whole number of at least 1"):
        Density(posterior, num_lanes)


def test_no_posterior(net):
    with pytest.raises(TypeError, match=r"posterior must be a Posterior, .* got an object of type Sequential"):
        Density(net, 5)


def test_lanes_that_are_no_multiple_of_the_data_sets(posterior):
    two = posterior.with_targets(torch.stack([posterior.data.y, 1 - posterior.data.y]))
    with pytest.raises(ValueError, match="this posterior has 2 data sets and needs one row of theta for each"):
        _ = two.density(3).joint
