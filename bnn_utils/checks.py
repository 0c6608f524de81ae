"""What a posterior checks when it is made: that the density which will be sampled is the one that was written.

A sampler computes outputs for many vectors at once, by `torch.func.vmap`, and gradients by a path of their own. Both
are compared here with the plainest way there is: a copy of the module whose parameters are set to one vector, called on
the inputs and differentiated by autograd, and that gradient with finite differences. What differs is refused.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import is_dependent
from torch.distributions.utils import lazy_property
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from bnn_utils import _check
from bnn_utils.flat import FlatModule
from bnn_utils.likelihoods import Bernoulli, ByDistribution, Categorical, Gaussian, Likelihood

if TYPE_CHECKING:
    from bnn_utils.posterior import Posterior

DTYPES = (torch.float32, torch.float64)
TRIAL_POINTS = 64  # points at which values and gradients are compared; all points at once would take memory
POINTS_AT_ONCE = 256
TRIAL_SCALE = 0.1  # distance, per element, of the trial vectors from the module's own parameters
PROBABILITY_LAYERS = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softmax, nn.Softmin, nn.Softmax2d)
EXTREME_SCALE = 30.0  # of vectors at which outputs that are bounded show their bounds
# Relative differences that rounding explains, in outputs and in sums over points; faults of the kinds that are looked
# for differ by far more.
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-8}
# Of derivatives, between two ways to compute them.
ROUNDING_OF_GRADIENTS = {torch.float32: 2e-2, torch.float64: 1e-4}
# Steps of finite differences, and how far these may be from the gradient. Where kinks lie within a step, such as those
# of a thousand rectified units, they are off by about the root of the fraction of units that it takes across theirs: by
# 0.005 in float64 with the first step, by 1e-6 with the second. What is allowed is what a fault may hide below: with
# 0.05, one network in a hundred with a row that has no gradient was taken.
STEPS = {torch.float32: (1e-2, 1e-3), torch.float64: (1e-6, 1e-8)}
ERROR_OF_SLOPES = {torch.float32: 0.2, torch.float64: 0.002}
# Root mean squares of inputs and of targets, beyond which a warning says so: priors of weights near 1 say that these
# are near 1 too.
USUAL_SCALES = (0.03, 10.0)
STACK_LEVEL = 4  # of the line that makes a posterior, behind a decorator of torch
SMALLEST_SHARE = 0.01  # of the largest gradient of a parameter tensor, to which others' are made equal


def check_module(module: nn.Module) -> None:
    """Refuse modules that are known to be no function of theta and one point, or whose gradient is not theirs.

    Raises:
        TypeError: if it is no module.
        ValueError: if a part is random, depends on the rest of the batch, changes its parameters by itself, leaves out
            a part of its gradient, or was changed in ways that a copy doesn't follow.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {_check.told(module)}")
    wrapped = isinstance(module, torch.jit.ScriptModule | nn.DataParallel | nn.parallel.DistributedDataParallel)
    if wrapped or hasattr(module, "_orig_mod"):
        raise ValueError(
            f"{type(module).__name__} is a network made ready to run in one way, and a posterior runs it in its own: "
            "pass the plain module, as it was before torch.compile, torch.jit or DataParallel"
        )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_complex():
            raise ValueError(
                f"{name} is complex ({tensor.dtype}), and theta is a vector of real numbers: keep its real and "
                "imaginary parts as two parameters, and put them together in forward"
            )
    for path, part in module.named_modules():
        label = f"{type(part).__name__} ({path or 'the module itself'})"
        _check_deterministic(label, part)
        if "forward" in vars(part):
            raise ValueError(
                f"the forward of {label} was replaced on the object: a copy would still call the original's "
                "parameters. Write a subclass with that forward"
            )
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            if part.max_norm is not None:
                raise ValueError(
                    f"{label} has max_norm={part.max_norm:g}, by which a call changes the parameters it is given: "
                    "leave it out, or divide by the norm in forward"
                )
            if part.padding_idx is not None and part.weight.requires_grad:
                raise ValueError(
                    f"{label} has padding_idx={part.padding_idx}: torch leaves that row out of the gradient, although "
                    "outputs depend on it. Leave padding_idx out and multiply by a mask in forward, such as "
                    f"embedding(tokens) * (tokens != {part.padding_idx})[..., None]; or freeze the embedding"
                )
        hooks = part._forward_pre_hooks.values()
        if isinstance(part, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
            raise ValueError(
                f"{label} has spectral normalisation, whose singular vectors are kept from call to call: at another "
                "theta they are not the right ones. Remove it with torch.nn.utils.parametrize.remove_parametrizations, "
                "or divide by torch.linalg.matrix_norm(weight, 2) in forward"
            )


def _check_deterministic(label: str, part: nn.Module) -> None:
    rate = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0.0)
    is_random = isinstance(rate, float) and rate > 0
    depends_on_batch = isinstance(part, nn.modules.batchnorm._BatchNorm)
    if depends_on_batch and part.running_mean is None:
        raise ValueError(
            f"{label} keeps no running statistics: its output depends on the batch in every mode: use "
            "track_running_stats=True, or another normalisation"
        )
    if part.training and (is_random or depends_on_batch):
        why = "random" if is_random else "dependent on the batch"
        raise ValueError(
            f"{label} is in training mode, which makes the network's output {why}: call module.eval() first"
        )


def own_copy(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """A copy to compute with, without the fast paths of attention in eval mode: they have no derivative.

    Raises:
        ValueError: if the copy's dtype is none to sample in.
    """
    copied = copy.deepcopy(module).to(device=device, dtype=dtype)
    for part in copied.modules():
        # In training mode there is no fast path; their dropout, by then, is off.
        if isinstance(part, nn.MultiheadAttention):
            part.dropout, part.training = 0.0, True
        elif isinstance(part, nn.TransformerEncoderLayer):
            part.training = True
        elif isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    return copied


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse numbers too coarse to sample with."""
    if dtype not in DTYPES:
        raise ValueError(
            f"{dtype} is too coarse to sample with: energies of hundreds would be rounded to whole steps, and the "
            "draws would be wrong without a sign of it. Use torch.float32 or torch.float64, as by "
            "data.to(torch.float32), or module.float() where the inputs are integers"
        )


@torch.no_grad()
def checked_outputs(flat: FlatModule, x: Tensor) -> Tensor:
    """The network's outputs ``(N, ...)`` at its own parameters, once it is a function of theta and of single points.

    Raises:
        ValueError: if it is none; the message says why.
    """
    theta, name = flat.ravel(), type(flat.module).__name__
    first = x[_trial_points(len(x))]
    given, at = first.clone(), theta.clone()
    try:
        outputs = flat(at, given)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"{name} can't be called on inputs of shape {tuple(x.shape)} and {x.dtype}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"{name} returns a {type(outputs).__name__}, and a likelihood needs one tensor with a row for each point: "
            "wrap it in a module whose forward returns that one"
        )
    if outputs.ndim == 0 or len(outputs) != len(first):
        raise ValueError(
            f"{name} gives outputs of shape {tuple(outputs.shape)} for {len(first)} points; a likelihood needs a row "
            "for each point"
        )
    if outputs.dtype not in DTYPES:
        raise ValueError(
            f"{name} gives outputs of {outputs.dtype}; a density and its gradient need torch.float32 or torch.float64"
        )
    if x.is_meta:
        return flat(theta, x)
    for what, before, after in (("its inputs", first, given), ("its parameters", theta, at)):
        if not torch.equal(before, after):
            raise ValueError(
                f"{name} changes {what} in place when it is called: its forward must leave them as they are"
            )
    if not torch.equal(outputs.nan_to_num(), flat(theta, first).nan_to_num()):
        raise ValueError(
            f"{name} gave two outputs for the same parameters and inputs: its forward draws random numbers, or carries "
            "state from one call to the next. A posterior needs a function: take them out, or make them inputs"
        )
    _check_rows(flat, first, outputs, name)
    _check_several_at_once(flat, first, name)
    return torch.cat([flat(theta, part) for part in x.split(POINTS_AT_ONCE)])


def _check_several_at_once(flat: FlatModule, x: Tensor, name: str) -> None:
    thetas, plain = trial_vectors(flat), _Plain(flat)
    try:
        outputs = flat(thetas, x)
    except RuntimeError as error:
        raise ValueError(
            f"{name} can't be run for several parameter vectors at once, as torch.func.vmap does: "
            f"{_first_line(error)} Its forward must not draw random numbers, change tensors of its own "
            "in place, or branch on values"
        ) from error
    one_by_one = torch.stack([plain.outputs(theta, x) for theta in thetas])
    for way, found in (
        ("as one vector among several", outputs),
        ("as the vector of a functional call", torch.stack([flat(theta, x) for theta in thetas])),
    ):
        if not _are_close(found, one_by_one):
            raise ValueError(
                f"{name} gives other outputs when its parameters are passed {way} than when they are set: they differ "
                f"by up to {_largest_difference(found, one_by_one):.3g}. Its forward may only use parameters and "
                "submodules by their attributes, such as self.weight, never tensors that it keeps elsewhere"
            )


def _check_rows(flat: FlatModule, x: Tensor, outputs: Tensor, name: str) -> None:
    """Row i of the outputs must be a function of row i of x: points are worked on in blocks."""
    num = len(x)
    if num >= 4:
        chosen = torch.arange(num - 1, -1, -2, device=x.device)  # every second, in reverse
        others, expected = x[chosen], outputs[chosen]
    else:  # beside points that are made up, where there can be such
        others, expected = torch.cat([x, 0.5 * x + 0.1 if x.is_floating_point() else x]), outputs
    try:
        found = flat(flat.ravel(), others)[: len(expected)]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{name} runs for {num} points and not for {len(others)}: {_first_line(error)} Its outputs must have a row "
            "for each point, whatever the number of points"
        ) from error
    if found.shape != expected.shape or not _are_close(found, expected):
        raise ValueError(
            f"the outputs of {name} at a point depend on the other points: beside other ones they differ by up to "
            f"{_largest_difference(found, expected):.3g}. Row i of the outputs must be a function of row i of x: for "
            "attention and recurrent layers say batch_first=True, and don't standardise inside forward"
        )


def check_density(posterior: Posterior) -> None:
    """Compare log prior, log likelihood and gradient, as they will be computed, with plain ones, at some points.

    Raises:
        ValueError: if they differ; the message says how to mend it.
    """
    _check_values(posterior)
    if posterior.data.x.is_meta:
        return
    trial = posterior.at_points(_trial_points(len(posterior.counted)))
    thetas = posterior.theta(trial_vectors(posterior.flat))
    with torch.no_grad():
        outputs = posterior.flat(posterior.parameters(thetas), trial.data.x)
        _check_likelihood(posterior.likelihood, outputs, trial.data.y)
        _check_links(posterior, outputs, trial.data.x)
    _check_gradient(trial, thetas)
    _check_methods(trial, thetas)


def warn_of_scales(posterior: Posterior) -> None:
    """Say so where what the first layer takes, or what the last one must give, is far from unit scale."""
    x, y = posterior.features, posterior.counted.y
    if x is None and not any(True for _ in posterior.flat.module.buffers()):  # which may be there to scale the inputs
        x = posterior.counted.x
    if x is not None and x.is_floating_point() and not x.is_meta:
        sizes = x.flatten(1).square().mean(0).sqrt()
        if not _is_usual(sizes.max()):
            warnings.warn(
                f"inputs are far from unit scale: column {sizes.argmax()} has a root mean square of {sizes.max():.3g}, "
                "and no other a larger one. Weights of usual priors are meant for inputs near 1: put "
                "Standardise(data.x) before the first layer",
                stacklevel=STACK_LEVEL,
            )
    if isinstance(posterior.likelihood, Gaussian) and not y.is_meta:
        size = posterior.likelihood.in_units(y).square().mean().sqrt()
        if not _is_usual(size):
            warnings.warn(
                f"targets are far from unit scale: their root mean square is {size:.3g}, and functions from usual "
                "priors are near 1: say Gaussian(units=Standardise(data.y)), which gives all results in your units",
                stacklevel=STACK_LEVEL,
            )


def _is_usual(size: Tensor) -> bool:
    low, high = USUAL_SCALES
    return bool(size == 0 or low <= size <= high)


def _check_values(posterior: Posterior) -> None:
    for name, function in (("prior", posterior.log_prior), ("likelihood", posterior.log_likelihood)):
        with torch.no_grad():
            value = function(posterior.theta(posterior.flat.ravel()))
        if value.shape:
            raise ValueError(
                f"the log {name} of one theta has shape {tuple(value.shape)} and should be one number: a prior's "
                "distribution needs event shape (D,), as by torch.distributions.Independent; a likelihood's, batch "
                "shape (N,)"
            )
        if value.dtype != posterior.dtype:
            raise ValueError(
                f"the log {name} comes as {value.dtype}, but this posterior computes in {posterior.dtype}, the dtype "
                f"of data.x: make the {name}'s tensors in that dtype, such as by torch.zeros_like(outputs)"
            )


def _check_likelihood(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> None:
    """The log likelihood of each point is a function of its outputs alone, for one vector as for several."""
    one_by_one = torch.stack([likelihood.log_probs(row, y) for row in outputs])
    half = slice(0, -(-len(y) // 2))
    ways: list[tuple[str, Callable[[], Tensor], Tensor]] = [
        (
            "for outputs of one vector in a batch, (1, N, ...)",
            lambda: likelihood.log_probs(outputs[:1], y),
            one_by_one[:1],
        ),
        ("for outputs of two vectors at once, (2, N, ...)", lambda: likelihood.log_probs(outputs, y), one_by_one),
        ("for half of the points", lambda: likelihood.log_probs(outputs[0, half], y[half]), one_by_one[0, half]),
    ]
    for way, function, expected in ways:
        try:
            found = function()
        except (RuntimeError, ValueError, IndexError) as error:
            problem = f"fails: {_first_line(error)}"
        else:
            if found.shape == expected.shape and _are_close(found, expected):
                continue
            problem = (
                f"has shape {tuple(found.shape)} and not {tuple(expected.shape)}"
                if found.shape != expected.shape
                else f"differs from that of each alone by up to {_largest_difference(found, expected):.3g}"
            )
        raise ValueError(
            f"the log likelihood of {likelihood!r} {way} {problem}. Outputs come as (..., N, K), with any number of "
            "leading dimensions and of points: count dimensions from the end, as in outputs[..., 0] and squeeze(-1), "
            "not outputs[:, 0] or squeeze(); and what belongs to single points must be an input of the network"
        )


def _check_links(posterior: Posterior, outputs: Tensor, x: Tensor) -> None:
    """Likelihoods that apply the link themselves get logits, not probabilities."""
    likelihood = posterior.likelihood
    if isinstance(likelihood, ByDistribution):
        for name, value in _impossible_parameters(likelihood.distribution(outputs[0])):
            raise ValueError(
                f"{likelihood!r} makes a distribution whose {name} is {value:.4g}, which is impossible, from this "
                "network's outputs. Outputs may be any real numbers: map them, as by exp() for what must be positive "
                "and sigmoid() for probabilities"
            )
    if not isinstance(likelihood, Bernoulli | Categorical):
        return
    name, kind = type(posterior.flat.module).__name__, type(likelihood).__name__
    far = trial_vectors(posterior.flat, EXTREME_SCALE)
    everywhere = torch.cat([outputs, posterior.flat(torch.cat([far, -far]), x)])
    low, high = float(everywhere.min()), float(everywhere.max())
    if isinstance(likelihood, Categorical):
        are_within = low >= 0 and bool(((everywhere.sum(-1) - 1).abs() < 1e-3).all())
    else:  # within their bounds, and up to them
        are_within = 0 <= low < 0.01 and 0.99 < high <= 1
    last = _last_layer(posterior.flat.module)
    if are_within or isinstance(last, PROBABILITY_LAYERS):
        guess = type(last).__name__ if isinstance(last, PROBABILITY_LAYERS) else "sigmoid or softmax"
        bounds = "0.50 to 0.73" if isinstance(likelihood, Bernoulli) else "a narrow range"
        raise ValueError(
            f"{name} emits probabilities, as by a final {guess}, where {kind} takes logits and applies the link "
            f"itself: both together would confine probabilities to {bounds}. Leave the final {guess} out"
        )


def _impossible_parameters(found: Distribution) -> Iterator[tuple[str, float]]:
    """Parameters outside of their constraints, each with the first such value; torch's own check may be off."""
    for name, constraint in found.arg_constraints.items():
        # As in torch's own check: some constraints depend on other parameters, some parameters are not yet computed.
        if is_dependent(constraint) or (
            name not in vars(found) and isinstance(getattr(type(found), name), lazy_property)
        ):
            continue
        value = getattr(found, name)
        valid = constraint.check(value)
        if not valid.all():
            yield name, float(value[~valid].flatten()[0])
    for inner in vars(found).values():
        if isinstance(inner, Distribution):
            yield from _impossible_parameters(inner)


def _last_layer(module: nn.Module) -> nn.Module:
    while type(module) is nn.Sequential and len(module):
        module = module[-1]
    return module


def _check_gradient(trial: Posterior, thetas: Tensor) -> None:
    """The gradients in use are those of the plain module, and these are the slopes of the density."""
    likelihood, dtype = trial.weighted_likelihood, trial.dtype
    x, y = trial.data.x, trial.data.y
    plain = _Plain(trial.flat)
    values, grads = zip(*(_plainly(plain, trial, theta, x, y, likelihood) for theta in thetas), strict=True)
    for num in (1, 2):
        rows = slice(0, num)
        try:
            value, grad = trial.density(num).likelihood.log_prob_and_grad(thetas[rows])
        except RuntimeError as error:
            raise ValueError(
                f"the {trial.gradient} gradient of the log likelihood can't be computed for {num} of theta at once: "
                f"{_first_line(error)} Checkpointing with use_reentrant=False does that, and in-place operations"
            ) from error
        expected, slopes = torch.stack(values[rows]), torch.stack(grads[rows])
        size = max(1.0, float(expected.abs().nan_to_num(posinf=0.0).max()))
        if not torch.allclose(value, expected, rtol=0, atol=ROUNDING[dtype] * size, equal_nan=True):
            raise ValueError(
                f"the log likelihood of {num} vectors at once is {value.tolist()}, and that of each alone is "
                f"{expected.tolist()}"
            )
        if not _are_close(grad, slopes, ROUNDING_OF_GRADIENTS[dtype]):
            raise ValueError(
                f"the {trial.gradient} gradient of {likelihood!r} differs from that of the plain network by up to "
                f"{_largest_difference(grad, slopes):.3g}, of {float(slopes.abs().max()):.3g}: {_CAUSES}"
            )
    _check_slopes(trial, thetas)


_CAUSES = (
    "something in the network or the likelihood has a derivative that is not that of its value. Look for detach(), "
    "straight-through estimators, a backward of its own, checkpointing with use_reentrant=False, padding_idx, or a "
    "grad() that belongs to another density"
)


def _check_methods(trial: Posterior, thetas: Tensor) -> None:
    """A subclass's own log densities are those that kernels see."""
    density = trial.density(len(thetas))
    with torch.no_grad():
        for name, seen in (
            ("log_prior", density.prior),
            ("log_likelihood", density.likelihood),
            ("log_prob", density.joint),
        ):
            found, said = seen.log_prob_and_grad(thetas)[0], getattr(trial, name)(thetas)
            if not _are_close(found, said):
                raise ValueError(
                    f"{type(trial).__name__}.{name} is {said[0].item():.6g} where kernels see {found[0].item():.6g}: "
                    "they don't call that method. Change the prior or the likelihood that you pass instead"
                )


def _check_slopes(trial: Posterior, thetas: Tensor) -> None:
    """Finite differences of log likelihood and log prior along a random direction, in float64 where that runs."""
    try:
        twin = trial.in_double()
        dtype = torch.float64
    except (RuntimeError, ValueError, TypeError):  # a dtype written into the forward, a device without float64
        twin, dtype = trial, trial.dtype
    plain, x, y, likelihood = _Plain(twin.flat), twin.data.x, twin.data.y, twin.weighted_likelihood
    prior = twin.density(1).prior.log_prob_and_grad

    def log_likelihood(theta: Tensor) -> Tensor:
        with torch.no_grad():
            return likelihood.log_prob(plain.outputs(twin.parameters(theta), x), y)

    def log_prior(theta: Tensor) -> Tensor:
        return twin.prior_distribution.log_prob(theta)

    for theta in thetas.to(twin.dtype):
        of_prior = [row[0] for row in prior(theta[None])]
        of_likelihood = _plainly(plain, twin, theta, x, y, likelihood)
        for what, function, (value, grad) in (
            ("log likelihood", log_likelihood, of_likelihood),
            ("log prior", log_prior, of_prior),
        ):
            if not value.isfinite():
                continue
            if not grad.isfinite().all():
                raise ValueError(
                    f"the {what} is {float(value):.6g} and its gradient is not finite: {_CAUSES}; or a square root or "
                    "a norm of zero, whose derivative is infinite"
                )
            v = _direction(twin, grad)
            slope, typical = float(grad @ v), float((grad * v).norm())
            rises = []
            for step in STEPS[dtype]:
                rises.append(float((function(theta + step * v) - function(theta - step * v)) / (2 * step)))
                noise = 1e3 * torch.finfo(dtype).eps * max(1.0, abs(float(value))) / step
                if abs(rises[-1] - slope) <= ERROR_OF_SLOPES[dtype] * typical + noise:
                    break
            else:
                raise ValueError(
                    f"along a direction in which the {what} rises by {rises[0]:.6g} per unit, its gradient says "
                    f"{slope:.6g}: {_CAUSES}"
                )


def _plainly(
    plain: _Plain, posterior: Posterior, theta: Tensor, x: Tensor, y: Tensor, likelihood: Likelihood
) -> tuple[Tensor, Tensor]:
    """The log likelihood and its gradient by theta, of the module as its author runs it."""
    parameters = posterior.parameters(theta)
    value, grad = plain.log_likelihood_and_grad(parameters, x, y, likelihood)
    return value, grad if posterior.link is None else posterior.link.pull_back(theta, parameters, grad)


def _direction(posterior: Posterior, grad: Tensor) -> Tensor:
    """A random direction along which all parameter tensors have about as much to say, so that a fault in one shows."""
    v = torch.randn(posterior.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(grad)
    flat = posterior.flat
    places = [*flat.slices.values(), *(slice(k, k + 1) for k in range(flat.dim, posterior.dim))]
    norms = torch.stack([grad[place].norm() for place in places])
    least = max(float(norms.max()) * SMALLEST_SHARE, float(norms[norms > 0].min()) if norms.any() else 0.0)
    for place, norm in zip(places, norms.tolist(), strict=True):
        if norm > least:
            v[place] *= least / norm
    return v


class _Plain:
    """The module as its author runs it: parameters set to one vector, outputs by a call, gradients by autograd."""

    def __init__(self, flat: FlatModule) -> None:
        self.module = copy.deepcopy(flat.module)
        named = dict(self.module.named_parameters())
        self.parameters = [named[name] for name in flat.shapes]

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            for p, piece in zip(self.parameters, theta.split([p.numel() for p in self.parameters]), strict=True):
                p.copy_(piece.view_as(p))
        return self.module(x.clone())

    def log_likelihood_and_grad(
        self, theta: Tensor, x: Tensor, y: Tensor, likelihood: Likelihood
    ) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            value = likelihood.log_prob(self.outputs(theta, x), y)
            # Of parameters that are not used the gradient is None; of outputs without any, there is no graph.
            grads: Sequence[Tensor | None] = [None] * len(self.parameters)
            if value.requires_grad:
                grads = torch.autograd.grad(value, self.parameters, allow_unused=True)
            if all(grad is None for grad in grads):
                raise ValueError(
                    f"the log likelihood does not depend on any parameter of {type(self.module).__name__}, as far as "
                    "autograd can see: the posterior would be the prior. Is its forward that of another object, or "
                    "does it run under torch.no_grad()?"
                )
        pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, grads, strict=True)]
        return value.detach(), torch.cat([piece.flatten() for piece in pieces])


def trial_vectors(flat: FlatModule, scale: float = TRIAL_SCALE) -> Tensor:
    """Two vectors around the module's own parameters, ``(2, D)``; the same for each network."""
    theta = flat.ravel()
    if theta.is_meta:
        return theta.expand(2, -1)
    noise = torch.randn(2, flat.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return theta + scale * noise.to(theta)


def _trial_points(num: int) -> Tensor:
    """Places of some points, evenly spread."""
    return torch.linspace(0, num - 1, min(num, TRIAL_POINTS)).long()


def _are_close(found: Tensor, expected: Tensor, rounding: float | None = None) -> bool:
    """Equal up to rounding, relative to the largest value."""
    rounding = ROUNDING[expected.dtype] if rounding is None else rounding
    finite = expected[expected.isfinite()].abs()
    margin = rounding * float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(found.to(expected.dtype), expected, rtol=rounding, atol=margin + 1e-300, equal_nan=True)


def _largest_difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("nan")
    return float((found - expected).abs().nan_to_num(posinf=0.0).max())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
