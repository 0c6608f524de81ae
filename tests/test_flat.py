"""Modules as functions of one flat vector."""

import copy
import itertools
import pickle
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bnn_utils import FlatModule


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def at(module, theta, x):
    """The module's output with theta written into a copy of it, by torch's own tools."""
    module = copy.deepcopy(module)
    vector_to_parameters(theta, [p for p in module.parameters() if p.requires_grad])
    return module(x).detach()


class Tied(nn.Module):
    """The same weight in two layers, once under each name."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3)
        self.decode = nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x)))


class Scaled(nn.Module):
    """A scalar parameter, a buffer that is read, and a buffer that forward writes to."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.body = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Tanh(), nn.Linear(2, 2)))
        self.register_buffer("shift", torch.tensor([1.0, -1.0]))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return self.scale * self.body(x) + self.shift


def repeated():
    """The same module in two places, buffers included."""
    part = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    return nn.Sequential(part, nn.Tanh(), part, nn.Linear(3, 2)).eval()


def frozen():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    return module


MODULES = {
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 2))),
    "tied": Tied,
    "repeated": repeated,
    "scalar and buffers": Scaled,
    "frozen": frozen,
    "batch normalisation": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten()),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


@modules
def test_output_is_the_modules(make):
    module, x = make(), torch.randn(7, 3, generator=generator())
    flat = FlatModule(module)
    theta = torch.randn(4, flat.dim, generator=generator(1))
    expected = torch.stack([at(module, row, x) for row in theta])
    torch.testing.assert_close(torch.stack([flat(row, x) for row in theta]), expected)
    torch.testing.assert_close(flat(theta, x), expected)


@modules
def test_theta_holds_each_trainable_parameter_once(make):
    module = make()
    trainable = [p for p in module.parameters() if p.requires_grad]
    flat = FlatModule(module)
    assert torch.equal(flat.ravel(), parameters_to_vector(trainable).detach())
    assert flat.dim == len(flat.names) == sum(p.numel() for p in trainable)


@modules
def test_module_is_not_changed(make):
    module, x = make(), torch.randn(7, 3, generator=generator())
    before, tensors = copy.deepcopy(module.state_dict()), [*module.parameters(), *module.buffers()]
    flat = FlatModule(module)
    flat(torch.zeros(flat.dim), x)
    flat(torch.ones(3, flat.dim), x)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(old is new for old, new in zip(tensors, [*module.parameters(), *module.buffers()], strict=True))
    assert all(p.grad is None for p in module.parameters())


def test_buffer_that_keeps_the_last_input():
    """A buffer written from theta takes another value in each lane."""

    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.register_buffer("last", torch.zeros(7, 1))

        def forward(self, x):
            self.last.copy_(self.linear(x))
            return 2 * self.last

    module, x = Remembers(), torch.randn(7, 3, generator=generator())
    theta = torch.randn(4, 4, generator=generator(1))
    expected = torch.stack([FlatModule(module)(row, x) for row in theta])
    torch.testing.assert_close(FlatModule(module)(theta, x), expected)
    assert not module.last.any()


def test_unravelled_parameters_are_views(net):
    flat = FlatModule(net)
    theta = torch.zeros(20)
    params = flat.unravel(theta)
    assert params["0.weight"].data_ptr() == theta.data_ptr()
    params["4.bias"].fill_(7)
    assert theta.tolist() == [0.0] * 19 + [7.0]
    lanes = torch.zeros(2, 20)
    flat.unravel(lanes)["2.weight"][1].fill_(3)
    assert lanes[1, 9:15].eq(3).all()
    assert lanes.sum() == 18


def test_ravel_of_the_module_is_a_copy(net):
    theta = FlatModule(net).ravel()
    before = net[0].weight.detach().clone()
    theta += 1
    assert torch.equal(net[0].weight, before)
    assert not theta.requires_grad


def test_gradient_flows_through_unravel_and_ravel(net):
    flat = FlatModule(net)
    theta = torch.randn(20, generator=generator()).requires_grad_()
    (grad,) = torch.autograd.grad((flat.unravel(theta)["2.weight"] ** 2).sum(), theta)
    expected = torch.zeros(20)
    expected[9:15] = 2 * theta[9:15].detach()
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(torch.autograd.grad((flat.ravel(flat.unravel(theta)) ** 2).sum(), theta)[0], 2 * theta)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.booleans(), st.sampled_from([(), (1,), (3,)]))
def test_round_trip(widths, bias, lead):
    flat = FlatModule(nn.Sequential(*[nn.Linear(a, b, bias) for a, b in itertools.pairwise(widths)]))
    theta = torch.randn(*lead, flat.dim, generator=generator())
    params = flat.unravel(theta)
    assert {name: value.shape for name, value in params.items()} == {
        name: (*lead, *shape) for name, shape in flat.shapes.items()
    }
    assert torch.equal(flat.ravel(params), theta)


def test_names_label_the_elements(net):
    names = FlatModule(net).names
    assert names[:7] == [f"0.weight[{i},{j}]" for i in range(3) for j in range(2)] + ["0.bias[0]"]
    assert names[-1] == "4.bias[0]"
    assert FlatModule(Scaled()).names[0] == "scale"


@pytest.mark.parametrize("shape", [(19,), (3, 21), (), (2, 3, 20)])
def test_theta_of_another_shape(net, shape):
    with pytest.raises(
        ValueError, match=r"this network has 20 parameters \(0.weight 6, 0.bias 3, .*4.bias 1\)"
    ) as error:
        FlatModule(net)(torch.zeros(shape), torch.zeros(1, 2))
    assert f"theta has shape {shape}" in str(error.value)


def test_ravel_of_other_parameters(net):
    flat = FlatModule(net)
    params = flat.unravel(torch.zeros(20))
    with pytest.raises(ValueError, match=r"expected the parameters 0.weight, .*; got none"):
        flat.ravel({})
    with pytest.raises(ValueError, match=r"parameter 0.weight has shape \(2, 3\), expected \(3, 2\)"):
        flat.ravel({**params, "0.weight": torch.zeros(2, 3)})


def test_ravel_of_unequal_batches(net):
    flat = FlatModule(net)
    params = flat.unravel(torch.zeros(3, 20)) | {"0.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"same leading shape, got \[\(\), \(3,\)\]"):
        flat.ravel(params)


def test_modules_without_a_vector(net):
    with pytest.raises(ValueError, match="Sequential has no parameter with requires_grad=True"):
        FlatModule(net.requires_grad_(False))
    with pytest.raises(ValueError, match="Tanh has no parameter"):
        FlatModule(nn.Tanh())
    with pytest.raises(ValueError, match=r"parameter 0.weight has no shape yet; call the lazy module once"):
        FlatModule(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(ValueError, match=r"one dtype and one device; .*float32.*float64"):
        FlatModule(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, dtype=torch.float64)))


def test_repr_shows_the_layout(net):
    assert repr(FlatModule(net)).startswith("FlatModule(Sequential, dim=20: 0.weight (3, 2), 0.bias (3,)")


# --- copies of the structure, in which calls run ----------------------------------------------------------------------


class Nested(nn.Module):
    """A forward that calls the same FlatModule again."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.again = None

    def forward(self, x):
        inner = 0 if self.again is None else self.again[0](torch.tensor([10.0]), x).detach()
        return self.weight * x + inner


def test_a_call_inside_of_a_call():
    """Each has its own theta. Fails when both run in one structure, of which the inner call leaves the wrong one."""
    module = Nested()
    flat, x = FlatModule(module), torch.ones(3)
    outer = copy.copy(flat)
    module.again = [FlatModule(Nested())]
    assert flat(torch.tensor([3.0]), x).tolist() == [13.0] * 3
    module.again = None
    assert outer(torch.tensor([[3.0], [4.0]]), x).tolist() == [[3.0] * 3, [4.0] * 3]
    calls = []
    module.register_forward_hook(lambda part, inputs, output: calls.append(len(calls)) or None)

    def reenter(part, inputs, output):
        return output if len(calls) > 1 else output + flat(torch.tensor([5.0]), x)

    module.register_forward_hook(reenter)
    assert flat(torch.tensor([3.0]), x).tolist() == [8.0] * 3


def change_a_hook(module):
    module[0].register_forward_hook(lambda part, inputs, output: 0 * output)


def exchange_a_part(module):
    module[2] = nn.Identity()


CHANGES = {
    "train": lambda module: module.train(),
    "a hook": change_a_hook,
    "a part": exchange_a_part,
    "a frozen parameter": lambda module: setattr(module[0], "bias", nn.Parameter(torch.ones(2), requires_grad=False)),
    "a frozen parameter in place": lambda module: module[0].bias.data.fill_(5),
    "a buffer": lambda module: setattr(module[1], "running_mean", 7 * torch.ones(2)),
    "a setting": lambda module: setattr(module[1], "eps", 100.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_the_module_count(change):
    """The module is the reader's: what it is now is what is called. Fails when copies outlive such a change."""
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Linear(2, 1)).eval()
    module[0].bias.requires_grad_(False)
    flat, x = FlatModule(module), torch.randn(7, 3, generator=generator())
    theta = torch.randn(flat.dim, generator=generator(1))
    before = flat(theta, x)
    change(module)
    after = flat(theta, x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, at(module, theta, x))


def test_copies_share_all_tensors(net):
    """However many there are, weights take their memory once; and none of them travels."""
    net.register_buffer("shift", torch.zeros(3))
    flat, x = FlatModule(net), torch.zeros(1, 2)
    flat(torch.zeros(20), x)
    (copied,) = flat._copies.idle
    mine, theirs = [[*module.parameters(), *module.buffers()] for module in (net, copied)]
    assert copied is not net
    assert all(one is two for one, two in zip(mine, theirs, strict=True))
    for other in (pickle.loads(pickle.dumps(flat)), copy.deepcopy(flat)):
        assert other._copies is None
        assert torch.equal(other(torch.ones(20), x), flat(torch.ones(20), x))


def test_an_error_leaves_no_theta_behind(net):
    flat = FlatModule(net)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        flat(torch.ones(20), torch.zeros(1, 3))
    assert not flat._copies.idle
    torch.testing.assert_close(flat(torch.ones(20), torch.zeros(1, 2)), at(net, torch.ones(20), torch.zeros(1, 2)))


class InAList(nn.Module):
    """Its parameters are registered, and used from a list that torch knows nothing of."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.all = [self.weight]

    def forward(self, x):
        return (x * self.all[0]).sum(-1, keepdim=True)


def by_hook():
    module = nn.Sequential(nn.Linear(2, 1))
    module.register_forward_hook(lambda part, inputs, output: output * module[0].bias)
    return module


@pytest.mark.parametrize(("make", "name"), [(InAList, "weight"), (by_hook, "0.bias")])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_parameters_that_theta_would_not_reach(make, name, lead):
    """Refused, where the numbers would be those of the module's own parameters."""
    flat = FlatModule(make())
    with pytest.raises(ValueError, match=f"forward computes with the parameter {name} past the module's attributes"):
        flat(torch.zeros(*lead, flat.dim), torch.ones(4, 2))


def test_a_hook_that_asks_for_a_dtype_only():
    module = nn.Sequential(nn.Linear(2, 1))
    module.register_forward_hook(lambda part, inputs, output: output.to(module[0].weight.dtype))
    assert FlatModule(module)(torch.ones(3), torch.ones(1, 2)).item() == 3


def test_a_module_that_cannot_be_copied():
    module = nn.Linear(2, 1)
    module.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"Linear can't be copied, and each call runs in a copy of its own: .*lock"):
        FlatModule(module)(torch.ones(3), torch.ones(1, 2))


def test_a_tensor_that_a_forward_left_behind():
    """Of a graph, which torch does not copy; old weight norms keep such a one."""
    module = nn.Linear(2, 1)
    module.last = module(torch.ones(1, 2))
    assert FlatModule(module)(torch.ones(3), torch.ones(1, 2)).item() == 3
