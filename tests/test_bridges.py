"""The log density for SciPy and for JAX: the same numbers, through their own gradients, maps and optimisers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad, minimize

from bnn_utils import boxes
from bnn_utils.bridges import jax_function


def test_numpy_says_what_torch_says(posterior, theta):
    f = posterior.numpy()
    for rows in (theta, theta[0]):
        value, grad = f(rows.numpy())
        expected_value, expected_grad = posterior.log_prob_and_grad(rows)
        np.testing.assert_array_equal(value, expected_value)
        np.testing.assert_array_equal(grad, expected_grad)
    assert isinstance(value, np.float64)
    assert check_grad(lambda t: f(t)[0], lambda t: f(t)[1], theta[1].numpy() / 3) < 1e-4


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_numpy_is_float64_whatever_the_data_are(make_posterior, theta, gradient):
    """Fails when float32 values are only called float64: a line search needs the digits."""
    single = make_posterior(data=boxes().to(torch.float32), gradient=gradient)
    exact = make_posterior(data=boxes().to(torch.float32).to(torch.float64))
    value, grad = single.numpy()(theta.numpy())
    assert value.dtype == grad.dtype == np.float64
    np.testing.assert_allclose(value, exact.log_prob(theta), rtol=1e-12)
    assert single.dtype == torch.float32
    assert {p.dtype for p in single.flat.module.parameters()} == {torch.float32}


def test_numpy_of_many_data_sets(make_posterior, theta):
    """Both add the same 80 log likelihoods and 20 log priors, each in an order of its own.

    A sum of n numbers is off by at most n eps / 2 times the sum of their magnitudes, whatever the order (Higham 2002,
    section 4.2). All are negative here, so that this is the magnitude of the sum. That makes n eps for the difference
    of two sums; three times as much is left for the terms, each of a few roundings.
    """
    labels = (torch.rand(5, 80, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    many = make_posterior().with_targets(labels)
    single = make_posterior(data=boxes().to(torch.float32)).with_targets(labels)
    rtol = 4 * (80 + 20) * np.finfo(np.float64).eps
    np.testing.assert_allclose(many.numpy()(theta.numpy())[0], many.log_prob(theta), rtol=rtol)
    np.testing.assert_allclose(single.numpy()(theta.numpy())[0], many.log_prob(theta), rtol=1e-5)


def test_numpy_answers_keep_their_values(posterior, theta):
    """What is kept from call to call, for so many rows, is not what was handed out."""
    f = posterior.numpy()
    sizes = [5, 5, 2, 5]
    answers = [f(k * theta[:size].numpy()) for k, size in enumerate(sizes)]
    for k, (size, (value, grad)) in enumerate(zip(sizes, answers, strict=True)):
        expected_value, expected_grad = posterior.log_prob_and_grad(k * theta[:size])
        np.testing.assert_array_equal(value, expected_value)
        np.testing.assert_array_equal(grad, expected_grad)


def test_numpy_in_threads(posterior, theta):
    """Fails when threads share the memory that a density computes in."""
    f = posterior.numpy()
    rows = [row.numpy() for row in theta] * 200
    with ThreadPoolExecutor(8) as pool:
        grads = [grad for _, grad in pool.map(f, rows)]
    expected = posterior.log_prob_and_grad(theta)[1].repeat(200, 1)
    np.testing.assert_allclose(grads, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gradient", ["closed-form", "autograd"])
def test_numpy_in_inference_mode_and_outside(make_posterior, theta, gradient):
    """Fails when what was laid out in inference mode is kept for calls outside, where torch refuses to write to it."""
    posterior = make_posterior(gradient=gradient)
    f = posterior.numpy()
    with torch.inference_mode():
        inside = f(theta.numpy())
    for one, two in zip(inside, f(theta.numpy()), strict=True):
        np.testing.assert_array_equal(one, two)


def test_numpy_of_another_length(posterior):
    with pytest.raises(ValueError, match=r"theta has shape \(3, 19\), but this network has 20 parameters"):
        posterior.numpy()(np.zeros((3, 19)))


def test_scipy_finds_a_mode(posterior, theta):
    f = posterior.numpy()
    found = minimize(lambda t: [-value for value in f(t)], theta[0].numpy() / 3, jac=True, method="L-BFGS-B")
    assert found.success
    assert np.abs(f(found.x)[1]).max() < 1e-2
    assert -found.fun > posterior.log_prob(theta).max()


# --- JAX --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def jax():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    with jax.enable_x64(True):
        yield jax


def test_jax_says_what_torch_says(jax, posterior, theta):
    value, grad = jax.jit(jax.value_and_grad(posterior.jax()))(theta[0].numpy())
    expected_value, expected_grad = posterior.log_prob_and_grad(theta[0])
    np.testing.assert_allclose(value, expected_value, rtol=1e-14)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12, atol=1e-12)
    assert value.dtype == grad.dtype == np.float64


def test_jax_maps_rows_in_one_batch(jax, posterior, theta):
    """Fails when rows go to torch one by one."""
    sizes = []

    def density(num_lanes):
        sizes.append(num_lanes)
        return posterior.density(num_lanes)

    f = jax_function(posterior.dim, posterior.check_shape, density)
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(f)))(theta.numpy())
    assert sizes == [5]
    expected_values, expected_grads = posterior.log_prob_and_grad(theta)
    np.testing.assert_allclose(values, expected_values, rtol=1e-14)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-12, atol=1e-12)
    nested = jax.vmap(jax.vmap(f))(theta[:4].view(2, 2, 20).numpy())
    np.testing.assert_allclose(nested, expected_values[:4].view(2, 2), rtol=1e-14)


def test_jax_scales_the_gradient(jax, posterior, theta):
    """A cotangent that is not 1; fails when it is left out."""
    f = posterior.jax()
    grad = jax.grad(lambda t: 3 * f(2 * t))(theta[0].numpy())
    np.testing.assert_allclose(grad, 6 * posterior.log_prob_and_grad(2 * theta[0])[1], rtol=1e-12, atol=1e-12)


def test_jax_in_single_precision(jax, posterior, theta):
    value, grad = jax.value_and_grad(posterior.jax())(theta[0].numpy().astype(np.float32))
    assert value.dtype == grad.dtype == np.float32
    np.testing.assert_allclose(value, posterior.log_prob(theta[0]), rtol=1e-6)


def test_jax_of_another_shape(jax, posterior):
    with pytest.raises(ValueError, match=r"shape \(5, 20\), but this function takes \(20,\): for rows, jax.vmap"):
        posterior.jax()(np.zeros((5, 20)))


def test_jax_samples(jax, make_posterior):
    """A loop of JAX's own around it, compiled: gradient ascent goes up."""
    f = make_posterior().jax()
    start = 0.1 * jax.random.normal(jax.random.key(0), (3, 20))
    step = jax.vmap(lambda t: t + 0.001 * jax.grad(f)(t))
    end = jax.jit(lambda t: jax.lax.fori_loop(0, 200, lambda _, t: step(t), t))(start)
    assert (jax.vmap(f)(end) > jax.vmap(f)(start)).all()
