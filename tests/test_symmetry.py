"""Folding of draws onto one of their symmetric copies."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from bnn_utils import FlatModule
from bnn_utils.symmetry import copies, fold

ODD, OTHERS = [nn.Tanh, nn.Identity], [nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus]
KINDS = [*ODD, nn.ReLU, *OTHERS]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return 3 * torch.randn(*shape, dtype=dtype, generator=generator(seed))


def network(widths, kinds, biases=None):
    """Linear layers between the widths, the kinds of activation after the first of them."""
    biases = biases or [True] * (len(widths) - 1)
    linear = [nn.Linear(a, b, bias) for (a, b), bias in zip(itertools.pairwise(widths), biases, strict=True)]
    parts = itertools.zip_longest(linear, [kind() for kind in kinds])
    return FlatModule(nn.Sequential(*[part for pair in parts for part in pair if part is not None]).double())


@st.composite
def networks(draw, kinds=KINDS):
    """Networks of one to four layers, each with or without bias, each hidden one with an activation of its own."""
    widths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    layers = len(widths) - 1
    hidden = draw(st.lists(st.sampled_from(kinds), min_size=layers - 1, max_size=layers))
    biases = draw(st.lists(st.booleans(), min_size=layers, max_size=layers))
    # Of a ReLU unit with one weight and no bias only the weight's sign is left, which others are sure to share.
    assume(not any(kind is nn.ReLU and w == 1 and not b for kind, w, b in zip(hidden, widths, biases, strict=False)))
    return network(widths, hidden, biases)


def layers(flat, theta):
    """For each hidden layer what stands behind it and, with units in rows, [W | b]."""
    params = flat.unravel(theta)
    linear = [int(name.split(".")[0]) for name in params if name.endswith("weight")]
    for at in linear[:-1]:
        row = params[f"{at}.weight"]
        if f"{at}.bias" in params:
            row = torch.cat([row, params[f"{at}.bias"][..., None]], dim=-1)
        yield type(flat.module[at + 1]), row


def copy_of(flat, theta, elements):
    """The copy of one theta by a (permutation, factors) for each hidden layer, written out for the parameters."""
    params = {name: value.clone() for name, value in flat.unravel(theta).items()}
    linear = [name.split(".")[0] for name in params if name.endswith("weight")]
    for (at, above), (order, factors) in zip(itertools.pairwise(linear), elements, strict=True):
        params[f"{at}.weight"] = (params[f"{at}.weight"] * factors[:, None])[order]
        if f"{at}.bias" in params:
            params[f"{at}.bias"] = (params[f"{at}.bias"] * factors)[order]
        params[f"{above}.weight"] = (params[f"{above}.weight"] / factors)[:, order]
    return flat.ravel(params)


def random_elements(flat, seed):
    """An element of the symmetry group: a permutation of each hidden layer, signs or scales where they apply."""
    noise = generator(seed)
    for kind, row in layers(flat, torch.zeros(flat.dim, dtype=torch.float64)):
        units = len(row)
        factors = torch.ones(units, dtype=torch.float64)
        if kind in ODD:
            factors = 1 - 2 * torch.randint(2, (units,), generator=noise).double()
        elif kind is nn.ReLU:
            factors = torch.randn(units, dtype=torch.float64, generator=noise).exp()
        yield torch.randperm(units, generator=noise), factors


def all_copies(flat, theta):
    """Every copy of one theta for a tanh network, one by one."""
    widths = [len(row) for _, row in layers(flat, theta)]
    choices = [
        itertools.product(itertools.permutations(range(h)), itertools.product([1.0, -1.0], repeat=h)) for h in widths
    ]
    return torch.stack(
        [
            copy_of(flat, theta, [(list(order), theta.new_tensor(signs)) for order, signs in elements])
            for elements in itertools.product(*choices)
        ]
    )


@given(networks(), st.integers(0, 2**32))
def test_function_stays_the_same(flat, seed):
    theta, x = normal(3, flat.dim, seed=seed), normal(7, flat.module[0].in_features, seed=seed + 1)
    expected = flat(theta, x)
    scale = expected.abs().max().item()
    torch.testing.assert_close(flat(fold(theta, flat), x), expected, rtol=0, atol=1e-12 * max(scale, 1))


@given(networks(), st.integers(0, 2**32))
def test_folding_twice_is_folding_once(flat, seed):
    folded = fold(normal(5, flat.dim, seed=seed), flat)
    assert torch.equal(fold(folded, flat), folded)


@given(networks(), st.integers(0, 2**32))
def test_copies_have_one_representative(flat, seed):
    theta = normal(flat.dim, seed=seed)
    other = copy_of(flat, theta, random_elements(flat, seed))
    folded, expected = fold(other, flat), fold(theta, flat)
    if any(kind is nn.ReLU for kind, _ in layers(flat, theta)):
        torch.testing.assert_close(folded, expected, rtol=1e-11, atol=1e-12)
    else:
        assert torch.equal(folded, expected)


@given(networks(), st.integers(0, 2**32))
def test_representative_follows_the_rule(flat, seed):
    for kind, row in layers(flat, fold(normal(6, flat.dim, seed=seed), flat)):
        length, first, last = row.norm(dim=-1), row[..., 0], row[..., -1]
        if kind is nn.ReLU:
            torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-14, atol=0)
            assert (last.diff(dim=-1) <= 0).all()
        else:
            assert (length.diff(dim=-1) <= 0).all()
        if kind in ODD:
            assert (first > 0).all()


@given(networks(OTHERS), st.integers(0, 2**32))
def test_other_activations_only_permute(flat, seed):
    """Fails where a unit is flipped or scaled whose activation does not allow it."""
    theta = normal(4, flat.dim, seed=seed)
    folded = fold(theta, flat)
    assert torch.equal(folded.sort().values, theta.sort().values)


def test_all_copies_of_the_tutorials_network(net, theta):
    flat = FlatModule(net)
    for row in theta[:2]:
        every = all_copies(flat, row)
        assert len(every.unique(dim=0)) == len(every) == copies(flat) == 384
        folded = fold(every, flat)
        assert (folded == folded[0]).all()
        assert (every == folded[0]).all(dim=1).sum() == 1


def test_number_of_copies():
    assert copies(network([2, 3, 1], [nn.Tanh])) == math.factorial(3) * 2**3
    assert copies(network([2, 3, 1], [nn.Identity])) == math.factorial(3) * 2**3
    assert copies(network([2, 4, 3, 1], [nn.ReLU, nn.Tanh])) == math.factorial(4) * math.factorial(3) * 2**3
    assert [copies(network([2, 3, 1], [kind, kind])) for kind in OTHERS] == [6] * 4
    assert copies(network([5, 3], [nn.Tanh])) == 1, "outputs are no hidden units"
    assert copies(network([2, 50, 1], [nn.Tanh])) == math.factorial(50) * 2**50


def test_network_without_hidden_units():
    flat, draws = network([3, 2], [nn.Tanh]), normal(4, 8)
    assert torch.equal(fold(draws, flat), draws)


def test_rows_of_equal_length_and_weights_of_zero():
    """Fails where ties are left to chance, or the sign of a unit hangs on a weight that may be 0."""
    flat = network([2, 4, 1], [nn.Tanh])
    params = {
        "0.weight": torch.tensor([[3.0, 4.0], [4.0, -3.0], [0.0, -5.0], [0.0, 0.0]]),
        "0.bias": torch.tensor([0.0, 0.0, 0.0, -5.0]),
        "2.weight": torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
        "2.bias": torch.tensor([5.0]),
    }
    every = all_copies(flat, flat.ravel(params).double())
    folded = fold(every, flat)
    assert (folded == folded[0]).all()
    assert flat.unravel(folded[0])["0.weight"].tolist() == [[0, 0], [0, 5], [3, 4], [4, -3]]
    assert flat.unravel(folded[0])["2.weight"].tolist() == [[-4, -3, 1, 2]]


def test_units_that_cannot_be_told_apart_keep_their_order():
    flat = network([1, 3, 1], [nn.Tanh], [False, False])
    draws = torch.tensor([[2, -2, 2, 5, 6, 7], [0, 0, 0, 3, -1, 2]], dtype=torch.float64)
    assert fold(draws, flat).tolist() == [[2, 2, 2, 5, -6, 7], [0, 0, 0, 3, -1, 2]]
    many = network([1, 300, 1], [nn.Tanh], [False, False])  # sorting a few keeps ties as they are even if not asked to
    draws = torch.cat([torch.ones(300), torch.arange(300.0)])
    assert torch.equal(fold(draws, many), draws)


def test_scale_of_relu_units():
    flat = network([2, 2, 1], [nn.ReLU], [False, True])
    draws = torch.tensor([[-0.4, 0.3, 6.0, 8.0, 2.0, 0.5, 7.0]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.8, -0.8, 0.6, 5.0, 1.0, 7.0]], dtype=torch.float64)
    torch.testing.assert_close(fold(draws, flat), expected, rtol=1e-15, atol=0)
    draws[:, 2:4] *= 0.1 * (1 + 1e-12)  # a length near 1 is no length of 1
    draws[:, 5] *= 10 * (1 - 1e-12)
    torch.testing.assert_close(fold(draws, flat), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_network_folds_to_the_last_bit(dtype):
    """Fails where rows of length 1 are scaled again: rounding changes one in some ten of them."""
    flat = network([5, 8, 8, 1], [nn.ReLU, nn.ReLU])
    folded = fold(normal(500, flat.dim, dtype=dtype), flat)
    assert torch.equal(fold(folded, flat), folded)


@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-30, 1e30, 1e150])
def test_units_that_are_dead_or_extreme(size):
    flat, x = network([2, 3, 1], [nn.ReLU]), normal(10, 2)
    theta = normal(flat.dim)
    theta[[2, 3, 7]] *= size  # all that goes into the unit in the middle
    folded = fold(theta, flat)
    assert folded.isfinite().all()
    torch.testing.assert_close(flat(folded, x), flat(theta, x), rtol=1e-12, atol=1e-12)
    assert torch.equal(fold(folded, flat), folded)


def test_log_density_stays_the_same(posterior, theta):
    folded = fold(theta, posterior.flat)
    assert not torch.equal(folded, theta)
    torch.testing.assert_close(posterior.log_prob(folded), posterior.log_prob(theta), rtol=1e-13, atol=0)


def test_rescaling_changes_the_prior_alone(make_posterior):
    posterior = make_posterior(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    theta = normal(5, posterior.dim)
    folded = fold(theta, posterior.flat)
    torch.testing.assert_close(posterior.log_likelihood(folded), posterior.log_likelihood(theta), rtol=1e-12, atol=0)
    assert ((posterior.log_prior(folded) - posterior.log_prior(theta)).abs() > 0.01).all()


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 4), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_draw_on_its_own(kind, lead, dtype):
    flat = network([2, 3, 2, 1], [kind, kind])
    draws = normal(*lead, flat.dim, dtype=dtype)
    before = draws.clone()
    folded = fold(draws, flat)
    assert folded.dtype == dtype
    assert folded.shape == draws.shape
    assert torch.equal(draws, before), "the draws were changed"
    for one, of_many in zip(draws.reshape(-1, flat.dim), folded.reshape(-1, flat.dim), strict=True):
        assert torch.equal(fold(one, flat), of_many)


def test_draws_of_any_provenance(net):
    flat, draws = FlatModule(net), normal(4, 6, 20)
    expected = fold(draws, flat)
    assert torch.equal(fold(draws[:, ::2], flat), expected[:, ::2])
    assert torch.equal(fold(draws[:1].expand(3, 6, 20), flat), expected[:1].expand(3, 6, 20))
    assert not fold(draws.clone().requires_grad_(), flat).requires_grad
    with torch.inference_mode():
        assert torch.equal(fold(draws, flat), expected)
        inferred = draws.clone()
    assert torch.equal(fold(inferred, flat), expected)


def test_networks_without_known_symmetries(posterior):
    frozen = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    frozen[0].bias.requires_grad_(False)
    for module in (nn.Conv1d(1, 1, 1), nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(), nn.Linear(3, 1)), frozen):
        flat = FlatModule(module)
        for function in (copies, lambda flat: fold(torch.zeros(flat.dim), flat)):
            with pytest.raises(
                ValueError, match=r"nn\.Sequential of trainable nn\.Linear layers, with Tanh, .*compare predictions"
            ) as error:
                function(flat)
            assert f"this {type(module).__name__} is something else" in str(error.value)
    with pytest.raises(TypeError, match=r"as a FlatModule, got a Posterior: pass posterior\.flat"):
        fold(torch.zeros(20), posterior)


@pytest.mark.parametrize("shape", [(), (19,), (20, 3)])
def test_draws_of_another_network(net, shape):
    with pytest.raises(ValueError, match=r"this network takes \(\.\.\., 20\)") as error:
        fold(torch.zeros(shape), FlatModule(net))
    assert f"draws have shape {shape}" in str(error.value)
