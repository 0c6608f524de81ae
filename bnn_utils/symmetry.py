r"""Folding: every draw of a network onto one of its symmetric copies, so that weights can be compared between chains.

Exchanging two hidden units of a layer changes theta and not the function. So does flipping the sign of a tanh unit, all
that goes in and all that comes out, because tanh is odd. A layer of h tanh units has h! 2^h such copies (Chen, Lu and
Hecht-Nielsen 1993), and these are all there are for one hidden layer with no unit to spare (Sussmann 1992). Scaling
what goes into a ReLU unit by c > 0 and what comes out of it by 1/c is a symmetry as well.

A copy has the same likelihood. It has the same prior density as well if it comes about by signs and permutations and
the prior treats the units of a layer alike, as one precision does, or one for each parameter name. No normal prior is
indifferent to rescaling: folded draws of a ReLU network compute the same functions, but where they crowd is no longer
where the posterior is dense.

The rule, layer by layer from the inputs on, with the row [W | b] of what goes into a unit:

1. ReLU: scale each row to Euclidean length 1. (Making what goes in as long as what comes out would spread the weights
   more evenly, but balancing one layer unbalances its neighbours, so that one pass would not be enough.) A row of zeros
   has no direction and stays as it is.
2. tanh, or no activation at all: flip units whose first weight is negative (if that is 0, the first that is not).
3. Put the units in the order of their rows' lengths, longest first, and where these are equal, as they all are after
   1, in the order of their biases, then of their last weights, and so on back to the first, largest first.

Each step looks only at what goes into a unit, from layers that are done: what comes out of it goes to units whose own
signs, order and scale are still open. Order by biases (Pourzanjani, Jiang and Petzold 2017), with signs by them as
well, would be as valid a rule, with other blind spots. Of the tutorial's 20 weights, in 256 chains of long HMC runs, it
leaves the output layer's three unmixed (R-hat 1.6): a unit of positive bias has one sign downstream where the network
is an OR and the other where it is an AND. The rule above leaves one, the output bias, which no symmetry moves.

What folding cannot do:

- It does not join modes that are different functions, and it cannot tell them from each other.
- It cuts. A mode that lies across a boundary of the rule (a first weight that may be 0, two rows that may be equally
  long) comes out truncated, or in several pieces. Where the first input is always 0, signs mean nothing at all.
- A unit that is hardly used, because next to nothing goes in or comes out, has no meaningful sign or place.
- What mixes after folding depends on the rule: R-hat of folded weights is evidence about a rule and a chain together.
  Predictions need no rule; the last word is theirs.
- It knows no other symmetries. A sigmoid unit can be flipped too, as sigmoid(-z) = 1 - sigmoid(z), but that moves the
  biases of the next layer, and with them the prior density: it is left alone. Between two Linear layers without an
  activation any invertible matrix is a symmetry; only its signs and permutations are folded.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.flat import FlatModule
from bnn_utils.layers import ACTIVATIONS, Layer, linear_chain


@torch.no_grad()
def fold(draws: Tensor, flat: FlatModule) -> Tensor:
    """Each draw's representative among its symmetric copies, by the rule in this module's docstring.

    The network's function stays the same, copies of one vector have one representative, and folding twice is folding
    once, to the last bit. (Copies of a ReLU network have the same representative up to rounding.) Units into which
    exactly the same goes cannot be told apart and keep their order; one into which nothing goes keeps its sign.

    Args:
        draws: shape ``(..., D)``, such as ``chain.draws``.
        flat: the network, such as ``posterior.flat``: a chain of Linear layers with elementwise activations.

    Returns:
        new tensor of the same shape, dtype and device.

    Raises:
        ValueError: if the network is not such a chain, or the draws are of another network.
        TypeError: if ``flat`` is not a FlatModule.
    """
    layers, draws = _layers(flat), _check.tensor("draws", draws)
    if not draws.is_floating_point():
        raise ValueError(f"draws have dtype {draws.dtype}, and should be floats")
    if draws.shape[-1:] != (flat.dim,):
        raise ValueError(f"draws have shape {tuple(draws.shape)}; this network takes (..., {flat.dim})")
    draws = draws.clone()
    for layer, above in itertools.pairwise(layers):
        incoming, outgoing = layer.places(draws.device), above.places(draws.device)[:, -layer.shape[0] :].mT
        if layer.bias:
            incoming = incoming.roll(-1, dims=1)  # from [b | W] to [W | b]
        places, width = torch.cat([incoming, outgoing], dim=1), incoming.shape[1]
        draws[..., places] = _fold_units(draws[..., places], width, layer)
    return draws


def copies(flat: FlatModule) -> int:
    """How many copies of a vector there are by permutations and signs of hidden units: 384 for the tutorial's network.

    Copies by rescaling of ReLU units are infinitely many and not counted.

    Raises:
        ValueError: if the network is not a chain of Linear layers with elementwise activations.
    """
    return math.prod(
        math.factorial(layer.shape[0]) * (2 ** layer.shape[0] if _is_odd(layer) else 1) for layer in _layers(flat)[:-1]
    )


def exchangeable(flat: FlatModule) -> Tensor:
    """Groups of elements that trade places when hidden units are exchanged: each element's number, ``(D,)``, int64.

    In a chain of Linear layers these are what one input sends to the units of the first hidden layer, all weights
    between two hidden layers, a hidden layer's biases, and what its units send to one output; of all else each element
    is alone. Of a module whose symmetries are not known the elements of each parameter are taken for exchangeable.
    """
    layers = linear_chain(flat, after_frozen=True)
    groups = torch.arange(flat.dim)
    if layers is None:
        for part in flat.slices.values():
            groups[part] = part.start
        return groups
    for layer, above in itertools.pairwise(layers):
        incoming, outgoing = layer.places(), above.places()[:, -layer.shape[0] :]
        groups[incoming] = groups[incoming].amin(0)
        groups[outgoing] = groups[outgoing].amin(1, keepdim=True)
    return groups


class Copies(NamedTuple):
    """A symmetry for each of some vectors: a function from vectors ``(L, D)`` to copies of them, linear in each.

    What theta has beyond the network's P parameters, scales that are inferred, stays as it is.
    """

    places: Tensor  # (L, P), where each number comes from
    signs: Tensor  # (L, P)

    def __call__(self, vectors: Tensor) -> Tensor:
        num = self.places.shape[-1]
        moved = vectors[..., :num].gather(-1, self.places) * self.signs.to(vectors)
        return moved if vectors.shape[-1] == num else torch.cat([moved, vectors[..., num:]], dim=-1)


@torch.no_grad()
def draw_copies(flat: FlatModule, num: int, generator: torch.Generator) -> Copies:
    """Permutations of hidden units, and signs of odd ones, drawn evenly among all, for ``num`` vectors.

    Raises:
        ValueError: if the network is not a chain of Linear layers with elementwise activations.
    """
    layers, device = _layers(flat), generator.device
    places = torch.arange(flat.dim, device=device).repeat(num, 1)
    signs = torch.ones(num, flat.dim, device=device)
    for layer, above in itertools.pairwise(layers):
        width = layer.shape[0]
        of_units = torch.cat([layer.places(device), above.places(device)[:, -width:].mT], dim=1)
        order = torch.rand(num, width, generator=generator, device=device).argsort(dim=1)
        flips = torch.ones_like(order)
        if _is_odd(layer):
            flips = 1 - 2 * (torch.rand(num, width, generator=generator, device=device) < 0.5).long()
        order = order[..., None].expand(-1, -1, of_units.shape[1])
        places[:, of_units] = places[:, of_units].gather(1, order)
        signs[:, of_units] = signs[:, of_units].gather(1, order) * flips[..., None]
    return Copies(places, signs)


def _fold_units(units: Tensor, width: int, layer: Layer) -> Tensor:
    """Units ``(..., h, width + out)``, each with the ``width`` numbers that go in first, in their folded form."""
    row, out = units[..., :width], units[..., width:]
    length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    if _is_positively_homogeneous(layer):
        # What was scaled before has length 1 but for rounding; scaling it again would change its last bits every time.
        rounding = 2 * (width + 1) * torch.finfo(row.dtype).eps
        length = torch.where((length == 0) | ((length - 1).abs() < rounding), 1, length)
        units = torch.cat([row / length, out * length], dim=-1)
        length = torch.ones_like(length)
    elif _is_odd(layer):
        first = (row != 0).byte().argmax(dim=-1, keepdim=True)
        units = torch.where(row.gather(-1, first) < 0, -units, units)
    order = _descending(torch.cat([length, units[..., :width].flip(-1)], dim=-1))
    return units.gather(-2, order[..., None].expand_as(units))


def _descending(rows: Tensor) -> Tensor:
    """The order of rows ``(..., h, k)`` by first entries, then second ones, and so on; equal rows keep theirs."""
    order = torch.arange(rows.shape[-2], device=rows.device).expand(rows.shape[:-1])
    for key in reversed(rows.unbind(-1)):  # sorting by the least important key first and keeping ties as they are
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    return order


def _is_odd(layer: Layer) -> bool:
    return layer.activation is None or layer.activation.forward is torch.tanh


def _is_positively_homogeneous(layer: Layer) -> bool:
    return layer.activation is not None and layer.activation.forward is torch.ops.aten.relu.out


def _layers(flat: FlatModule) -> list[Layer]:
    if not isinstance(flat, FlatModule):
        raise TypeError(f"expected the network as a FlatModule, got a {type(flat).__name__}: pass posterior.flat")
    layers = linear_chain(flat, after_frozen=True)
    if layers is None:
        raise ValueError(
            "symmetries are known for an nn.Sequential of trainable nn.Linear layers, with "
            f"{', '.join(kind.__name__ for kind in ACTIVATIONS)} after any of them; this {type(flat.module).__name__} "
            "is something else: compare predictions, which are the same for all copies, instead of weights"
        )
    return layers
