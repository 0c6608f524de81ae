"""Closed-form backpropagation for chains of Linear layers, many parameter vectors at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bnn_utils.gradients import LogDensity
from bnn_utils.layers import ACTIVATIONS, Layer
from bnn_utils.likelihoods import Likelihood, Weighted

# torch.bmm goes through small matrices element by element, slowly, where rows x columns x contraction is below this.
SMALL_PRODUCT = 400

# On the CPU torch's tanh takes five times as long as its sigmoid; from this many elements on that outweighs more calls.
SLOW_TANH = 2**12

# From this many elements on, passes over the units that are saved outweigh more calls and passes over the weights.
LARGE_LAYER = 2**16

# Values of the widest layer that are worked on at once on the CPU: a megabyte of float32 stays in the caches of a core.
# Several times as much took a tenth to a quarter longer at once than in blocks, and takes memory without limit.
BLOCK_ELEMENTS = 2**18


class Backprop:
    r"""Outputs of a chain of layers and the gradient through them, for C parameter vectors at N points.

    Layer l computes z_l = W_l h_{l-1} + b_l and h_l = f(z_l) from h_0 = x, points in columns. A row of ones above h
    makes the bias one more column of the weights: with A = [b | W], B = [1; h], and g_l the gradient by z_l,

        z_l = A_l B_{l-1},   dA_l = g_l B_{l-1}',   g_{l-1} = (W_l' g_l) * f'(z_{l-1})

    (Rumelhart, Hinton and Williams 1986). For networks this small a call of torch costs more than its arithmetic, so
    there is one product per equation, into memory that is laid out once, and no view is made on the way.

    Large layers keep s = sigmoid(2z) in place of h = tanh(z) = 2s - 1, which saves three passes over the units. The
    weights make up for it: those that lead to z are doubled, and above, W h + b = 2W s + (b - sum_j W_j). The map from
    A to these is linear, and the gradient goes back through its transpose.

    What is kept is overwritten by the next call; two threads need two of these.

    Args:
        layers: from `linear_chain`.
        x: inputs, shape ``(N, features)``, or ``(C, N, features)`` for each vector its own.
        num_lanes: C.
    """

    def __init__(self, layers: list[Layer], x: Tensor, num_lanes: int) -> None:
        self.num_lanes = num_lanes
        places = [layer.places(x.device) for layer in layers]
        log_scale = layers[-1].log_scale
        if log_scale is not None:
            places.append(torch.arange(log_scale.start, log_scale.stop, device=x.device))
        dim = sum(matrix.numel() for matrix in places)
        lanes = torch.arange(num_lanes, device=x.device)[:, None, None] * dim
        # The matrices of one layer lie together, lane after lane: where in theta to find them, and the way back.
        self._order = torch.cat([(lanes + matrix).flatten() for matrix in places])
        self._inverse = self._order.argsort()
        self._theta, self._grad = x.new_empty(len(self._order)), x.new_empty(len(self._order))
        sizes = [num_lanes * matrix.numel() for matrix in places]
        factors, is_folded, are_folded = torch.ones_like(self._theta), False, False
        # What to do, in order, for the outputs and for the gradient: calls of torch with all arguments in place.
        self._up: list[Callable[[], object]] = []
        down: list[list[Callable[[], object]]] = []
        inputs, g_below = _with_ones(x.mT) if layers[0].bias else x.mT.contiguous(), None
        self._inputs = inputs[..., -x.shape[-1] :, :]
        thetas, grads, scales = self._theta.split(sizes), self._grad.split(sizes), factors.split(sizes)
        # Without strict: of what comes after the last layer there are places, and no layer.
        for layer, above, *parts in zip(layers, [*layers[1:], None], thetas, grads, scales, strict=False):
            (out, width), act = layer.shape, layer.activation
            a, da, scale = (part.view(num_lanes, out, -1) for part in parts)
            z, g = x.new_empty(2, num_lanes, out, x.shape[-2])
            has_ones = above is not None and above.bias is not None
            outputs = _with_ones(z) if has_ones else torch.empty_like(z) if act else z
            h = outputs[:, -out:]
            was_folded, is_tanh = is_folded, act is not None and act.forward is torch.tanh
            is_folded = is_tanh and has_ones and z.device.type == "cpu" and z.numel() >= LARGE_LAYER
            if was_folded:
                scale[:, :, 1:] *= 2
                sums = a.new_empty(num_lanes, out)  # of weights that have been doubled
                self._up.append(partial(torch.sum, a[:, :, 1:], dim=2, out=sums))
                self._up.append(partial(a[:, :, 0].sub_, sums, alpha=0.5))
            are_folded |= is_folded
            if is_folded:
                scale *= 2
                act = ACTIVATIONS[nn.Sigmoid](None)
            if g_below is None and x.ndim == 2:  # all lanes share x: one product of all their rows
                self._up.append(partial(torch.mm, rows(a), inputs, out=rows(z)))
                back: list[Callable[[], object]] = [partial(torch.mm, rows(g), inputs.mT, out=rows(da))]
            else:
                self._up += _product(a, inputs, z)
                back = [partial(torch.bmm, g, inputs.mT, out=da)]
                back += [] if g_below is None else _product(a[:, :, -width:].mT, g, g_below)
            if act:
                forward = partial(act.forward, **act.forward_options)
                if is_tanh and not is_folded and z.device.type == "cpu" and z.numel() >= SLOW_TANH:
                    forward = partial(_tanh_by_sigmoid, one=z.new_ones(()))
                self._up.append(partial(forward, z, out=h))
                kept = h if act.takes_output else z
                back.insert(0, partial(act.backward, g, kept, **act.backward_options, grad_input=g))
            elif has_ones:
                self._up.append(partial(h.copy_, z))
            if was_folded:
                back.append(partial(da[:, :, 1:].sub_, da[:, :, :1], alpha=0.5))
            down.append(back)
            inputs, g_below = outputs, g
        self._down = [call for back in reversed(down) for call in back]
        if are_folded:
            self._up.insert(0, partial(self._theta.mul_, factors))
            self._down.append(partial(self._grad.mul_, factors))
        self._outputs, self._grad_outputs = h.mT, [(g.mT, slice(0, out))]
        if log_scale is not None:
            # Log scales are outputs as well, the same at all points: their gradient is the sum over the points.
            scales = thetas[-1].view(num_lanes, 1, -1)
            self._outputs = x.new_empty(num_lanes, x.shape[-2], 2 * out)
            for memory, values in ((self._outputs[..., :out], h.mT), (self._outputs[..., out:], scales)):
                self._up.append(partial(memory.copy_, values))
            g_scales = x.new_empty(num_lanes, x.shape[-2], out)
            self._grad_outputs.append((g_scales, slice(out, 2 * out)))
            self._down.append(partial(torch.sum, g_scales, dim=1, out=grads[-1].view(num_lanes, -1)))

    def load(self, x: Tensor) -> None:
        """Take other inputs, of the same shape, in place of those before."""
        self._inputs.copy_(x.mT)

    def outputs(self, theta: Tensor) -> Tensor:
        """The network's outputs at theta ``(C, D)``, shape ``(C, N, K)``, valid until the next call."""
        torch.index_select(theta.reshape(-1), 0, self._order, out=self._theta)
        for call in self._up:
            call()
        return self._outputs

    def gradient(self, grad: Tensor) -> Tensor:
        """Gradient with respect to theta, ``(C, D)``, from the one with respect to the last outputs, ``(C, N, K)``."""
        for memory, part in self._grad_outputs:
            memory.copy_(grad[..., part])
        for call in self._down:
            call()
        return self._grad.index_select(0, self._inverse).view(self.num_lanes, -1)


def closed_form(
    layers: list[Layer], likelihood: Likelihood, x: Tensor, y: Tensor, num_lanes: int, weights: Tensor | None = None
) -> LogDensity:
    """The log likelihood and its gradient for batches of ``num_lanes`` vectors; y has targets for each of them."""
    width = max(layer.shape[0] for layer in layers)
    most = BLOCK_ELEMENTS if x.device.type == "cpu" else num_lanes * len(x) * width
    lanes = slices(num_lanes, most // (width * len(x)))
    points = slices(len(x), most // (width * (lanes[0].stop - lanes[0].start)))
    # Blocks of one size take turns in the same memory.
    lengths, sizes = ({part.stop - part.start for part in parts} for parts in (points, lanes))
    networks = {(length, size): Backprop(layers, x[:length], size) for length in lengths for size in sizes}
    parts = [likelihood if weights is None else Weighted(likelihood, weights[part]) for part in points]
    blocks = [
        (block, x[part], networks[part.stop - part.start, block.stop - block.start], y[block, part], judge)
        for block in lanes
        for part, judge in zip(points, parts, strict=True)
    ]

    def log_prob_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
        value, total = theta.new_zeros(num_lanes), torch.zeros_like(theta)
        for block, inputs, network, targets, part in blocks:
            network.load(inputs)
            outputs = network.outputs(theta[block])
            value[block] += part.log_prob(outputs, targets)
            total[block] += network.gradient(part.grad(outputs, targets))
        return value, total

    def grad(theta: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for block, inputs, network, targets, part in blocks:
            network.load(inputs)
            total[block] += network.gradient(part.grad(network.outputs(theta[block]), targets))
        return total

    if len(blocks) > 1:
        return LogDensity(log_prob_and_grad, grad)

    ((_, _, network, y, likelihood),) = blocks

    def log_prob_and_grad_at_once(theta: Tensor) -> tuple[Tensor, Tensor]:
        outputs = network.outputs(theta)
        return likelihood.log_prob(outputs, y), network.gradient(likelihood.grad(outputs, y))

    return LogDensity(
        log_prob_and_grad_at_once, lambda theta: network.gradient(likelihood.grad(network.outputs(theta), y))
    )


def slices(length: int, most: int) -> list[slice]:
    """As few slices as cover ``length`` with at most ``most``, or 1, in each, as equal as can be."""
    num = -(-length // max(1, most))
    edges = [length * k // num for k in range(num + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def _tanh_by_sigmoid(z: Tensor, one: Tensor, out: Tensor) -> Tensor:
    """``2 sigmoid(2z) - 1``, exact to some roundings of 1."""
    torch.add(z, z, out=out).sigmoid_()
    return torch.add(out, out, out=out).sub_(one)


def rows(matrices: Tensor) -> Tensor:
    return matrices.view(-1, matrices.shape[-1])


def _product(a: Tensor, b: Tensor, out: Tensor) -> list[Callable[[], object]]:
    """Calls that together fill ``out`` with the matrix products of a and b."""
    lanes, rows, contraction = a.shape
    if lanes == 1 or rows * contraction * b.shape[2] >= SMALL_PRODUCT:
        return [partial(torch.bmm, a, b, out=out)]
    columns, lines = a.split(1, dim=2), b.split(1, dim=1)
    first, *others = zip(columns, lines, strict=True)
    return [partial(torch.mul, *first, out=out), *(partial(out.addcmul_, *pair) for pair in others)]


def _with_ones(h: Tensor) -> Tensor:
    """New memory for ``[1; h]``."""
    return torch.cat([torch.ones_like(h[..., :1, :]), h], dim=-2)
