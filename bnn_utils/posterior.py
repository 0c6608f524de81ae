"""The model: what data say about a network's flat parameter vector, and what that vector says about data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.distributions import Distribution

from bnn_utils import _check
from bnn_utils.bridges import NumpyFunction, jax_function, numpy_function
from bnn_utils.checks import check_density, check_dtype, check_module, checked_outputs, own_copy, warn_of_scales
from bnn_utils.data import Data
from bnn_utils.density import Density
from bnn_utils.flat import FlatModule
from bnn_utils.layers import ACTIVATIONS, Layer, linear_chain
from bnn_utils.likelihoods import (
    ByDistribution,
    Gaussian,
    Likelihood,
    Weighted,
    check_likelihood,
    check_log_probs,
    check_targets,
)
from bnn_utils.model import Model
from bnn_utils.network import BLOCK_BYTES, Network, at_inputs
from bnn_utils.priors import Prior, density, is_proper, link_of
from bnn_utils.random import lend_to_torch


class Posterior(Model):
    """The unnormalised posterior of a network's flat parameter vector given data.

    ``log_prob(theta) = log prior(theta) + sum_i log p(y_i | f(theta, x_i))``, the log joint density with every constant
    kept, so that only the evidence is missing.

    Theta is the network's parameters themselves, unless the prior says otherwise: with scales that are inferred
    (`HierarchicalPrior`) or parameters that have to be positive (`ElementPrior`), `parameters` makes the network's of
    theta, which may be longer.

    The posterior works on copies of the module, in the dtype of ``data.x`` and on its device, and of the data; what was
    passed in is never changed, and changing it later changes nothing.

    What frozen parts (parameters with ``requires_grad=False``, buffers) make of the data is computed once, wherever it
    can be seen that theta has no part in it.

    Args:
        module: any network that maps ``data.x`` to one output row per point.
        data: inputs and targets; their weights, if they have some, say how often each point counts.
        prior: such as ``NormalPrior(precision=0.09)``.
        likelihood: such as ``Bernoulli()``; or a function from outputs ``(..., N, K)`` to a torch distribution of batch
            shape ``(..., N)``, such as ``lambda outputs: Poisson(outputs[..., 0].exp())``.
        gradient: "closed-form" for chains of Linear layers and elementwise activations, alone or after frozen parts,
            "autograd" for every module, or "auto": the first where it applies.

    Attributes:
        flat: the network, a FlatModule.
        data: as given; of several data sets, y has shape ``(N, S, ...)``.
        counted: those of its points that count, with weights above 0.
        network: the network at these points' inputs.
        layers: of the closed-form gradient; None where that goes by autograd.
        features: what the first of these layers takes: the inputs, or what frozen parts make of them.
        prior_distribution: of theta.
        link: what makes the network's parameters of theta; None where these are the same.
        num_datasets: S, how many data sets `with_targets` gave it.

    Raises:
        ValueError: if the density that would be sampled is not the one that was written (`bnn_utils.checks`): if the
            module is random, carries state from call to call, or can't be run for many vectors at once; if its outputs
            at a point depend on other points; if outputs, log likelihood or gradient of several vectors at once differ
            from those of each alone by plain autograd, or the gradient from finite differences. If the network emits
            probabilities where logits are meant, targets or outputs don't fit the likelihood, or its parts each other,
            the prior is not over all real vectors, the dtype is coarser than float32, or "closed-form" does not apply.

    Warns:
        UserWarning: if inputs, or targets of `Gaussian`, are far from unit scale, see `Standardise`.
    """

    data: Data
    counted: Data
    features: Tensor | None
    layers: list[Layer] | None

    @torch.inference_mode(False)
    def __init__(
        self,
        module: nn.Module,
        data: Data,
        prior: Prior,
        likelihood: Likelihood | Callable[[Tensor], Distribution],
        gradient: Literal["auto", "closed-form", "autograd"] = "auto",
    ) -> None:
        check_module(module)
        _check.instance("data", data, Data, "a Data, as by Data(x, y)")
        if (
            isinstance(prior, type)
            or not callable(getattr(prior, "distribution", None))
            or isinstance(prior, Likelihood)
        ):
            raise TypeError(
                f"prior must be a prior, such as NormalPrior(precision=0.09), or ElementPrior(...) of a distribution, "
                f"got {_check.told(prior)}"
            )
        is_function = callable(likelihood) and not isinstance(likelihood, (type, nn.Module))
        if not isinstance(likelihood, Likelihood) and not is_function:
            raise TypeError(
                "likelihood must be a likelihood, such as Bernoulli(), or a function from outputs to a distribution, "
                f"got {_check.told(likelihood)}"
            )
        _check.choice("gradient", gradient, ("auto", "closed-form", "autograd"))
        dtype = data.x.dtype if data.x.is_floating_point() else None
        self.flat = FlatModule(own_copy(module, data.x.device, dtype))
        check_dtype(self.flat.ravel().dtype)
        self.prior = prior
        likelihood = likelihood if isinstance(likelihood, Likelihood) else ByDistribution(likelihood)
        self.likelihood = likelihood.like(self.flat.ravel()) if isinstance(likelihood, Gaussian) else likelihood
        self.prior_distribution = density(prior, self.flat)
        self.link = link_of(self.prior_distribution)
        outputs = checked_outputs(self.flat, data.x)
        y = self.likelihood.targets(data.y, outputs)
        check_targets(self.likelihood, outputs, y)
        check_likelihood(self.likelihood, outputs, y)
        if data.weights is not None:
            check_log_probs(self.likelihood, outputs, y)
        weights = None if data.weights is None else data.weights.detach().to(self.dtype).clone()
        self.__dict__ |= _counting(Data(data.x.detach().clone(), y.detach().clone(), weights))
        self._num_outputs = outputs[0].numel()
        self.num_datasets = 1
        self._prepare(with_closed_form=gradient != "autograd")
        if gradient == "closed-form" and self.layers is None:
            raise ValueError(
                "the closed-form gradient needs an nn.Sequential of trainable nn.Linear layers, with "
                f"{', '.join(kind.__name__ for kind in ACTIVATIONS)} after any of them and nothing but frozen parts "
                f"before; this {type(module).__name__} "
                "is something else: use gradient='auto'"
            )
        check_density(self)
        warn_of_scales(self)

    @property
    def weighted_likelihood(self) -> Likelihood:
        """The likelihood of the points that count, `counted`, with their weights."""
        weights = self.counted.weights
        return self.likelihood if weights is None else Weighted(self.likelihood, weights)

    def _prepare(self, with_closed_form: bool) -> None:
        """Set up how the density is computed: the network at the data, and the layers of the closed form."""
        x = self.counted.x
        self.network = at_inputs(self.flat, x)
        layers = linear_chain(self.flat) if with_closed_form and x.ndim == 2 else None
        chain = (x, layers) if layers else self.network.chain() if with_closed_form else None
        self.features, self.layers = chain or (None, None)

    @property
    def _like(self) -> Tensor:
        return self.data.x

    @property
    def gradient(self) -> str:
        """The gradient in use: "closed-form" or "autograd"."""
        return "autograd" if self.layers is None else "closed-form"

    def _check(self, theta: Tensor) -> None:
        """Raise unless the density can be computed at theta."""
        self.check_shape(theta)
        if theta.dtype != self.dtype:
            raise ValueError(
                f"theta has dtype {theta.dtype}, but this posterior computes in {self.dtype}: pass "
                "theta.to(posterior.dtype)"
            )
        if theta.device != self.device:
            raise ValueError(
                f"theta lies on {theta.device}, but this posterior on {self.device}: pass theta.to(posterior.device)"
            )

    def _check_inputs(self, x: Tensor) -> None:
        """Raise unless the network can be asked at x."""
        _check.instance("x", x, Tensor, "a torch.Tensor")
        like = self.data.x
        if x.ndim == 0 or len(x) == 0 or x.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but the data's inputs have shape (M, "
                f"{', '.join(map(str, like.shape[1:]))}) with at least one point"
            )
        if x.dtype != like.dtype or x.device != like.device:
            raise ValueError(
                f"x has dtype {x.dtype} and lies on {x.device}, but this posterior's inputs have {like.dtype} and lie "
                f"on {like.device}: pass x.to(posterior.data.x)"
            )

    def log_prior(self, theta: Tensor) -> Tensor:
        """Normalised log prior density: ``(D,)`` -> scalar, ``(C, D)`` -> ``(C,)``."""
        self._check(theta)
        most = max(1, BLOCK_BYTES // (self.dim * theta.element_size()))
        return _in_blocks(self.prior_distribution.log_prob, theta, most)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Log likelihood of all points, a weighted sum: ``(D,)`` -> scalar, ``(C, D)`` -> ``(C,)``."""
        self._check(theta)
        y = self.targets_for(1 if theta.ndim == 1 else len(theta))
        if self.num_datasets == 1:
            return _in_blocks(lambda rows: self._judge(rows, y), theta, self.network.num_lanes)
        return _in_blocks(self._judge, theta, self.network.num_lanes, y)

    def _judge(self, theta: Tensor, y: Tensor) -> Tensor:
        return self.weighted_likelihood.log_prob(self.network(self.parameters(theta)), y)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log joint density, every constant kept: ``(D,)`` -> scalar, ``(C, D)`` -> ``(C,)``. Differentiable."""
        return self.log_prior(theta) + self.log_likelihood(theta)

    def density(self, num_lanes: int, compile: bool = False) -> Density:
        """What kernels see of it, for batches of ``num_lanes`` vectors; each thread needs one of its own."""
        return Density(self, num_lanes, compile)

    @torch.no_grad()
    def log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log joint density and its gradient: ``(D,)`` -> scalar, ``(D,)``; ``(C, D)`` -> ``(C,)``, ``(C, D)``."""
        self._check(theta)
        lanes = theta.detach().reshape(-1, self.dim)
        log_prob, grad = self.density(len(lanes)).joint.log_prob_and_grad(lanes)
        return log_prob.view(theta.shape[:-1]), grad.view(theta.shape)

    def numpy(self) -> NumpyFunction:
        """The log joint density and its gradient for NumPy and SciPy, in float64 whatever the data's dtype is.

        Returns:
            a function of arrays: ``(D,)`` -> scalar, ``(D,)``; ``(C, D)`` -> ``(C,)``, ``(C, D)``. SciPy minimises:
            ``scipy.optimize.minimize(lambda theta: [-value for value in f(theta)], start, jac=True)``.
        """
        double = self.in_double()
        return numpy_function(double.check_shape, double.density)

    @torch.inference_mode(False)
    def in_double(self) -> Posterior:
        """The same posterior in float64."""
        if self.dtype == torch.float64:
            return self
        device = torch.device("cpu") if self.device.type == "mps" else self.device  # Apple's GPUs have no float64
        flat = FlatModule(copy.deepcopy(self.flat.module).to(device).double())
        data = _counting(self.data.to(device, torch.float64))
        prior = density(self.prior, flat)
        other = self._with(flat=flat, prior_distribution=prior, link=link_of(prior), **data)
        other._prepare(with_closed_form=self.gradient == "closed-form")
        return other

    def at_points(self, points: Tensor) -> Posterior:
        """The posterior given some of the points that count alone, by their indices."""
        x, y, weights = self.counted.x, self.counted.y, self.counted.weights
        other = self._with(**_counting(Data(x[points], y[points], None if weights is None else weights[points])))
        other._prepare(with_closed_form=self.gradient == "closed-form")
        return other

    def _with(self, **parts: Any) -> Posterior:
        """A copy with other parts, which shares the rest; not by copy.copy, which would prepare everything again."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | parts
        return other

    def jax(self) -> Callable[[Any], Any]:
        """The log joint density for JAX, a function ``(D,)`` -> scalar with a gradient; may be jitted and vmapped.

        It computes in the dtype of the posterior and returns that of its argument.

        Raises:
            ModuleNotFoundError: if JAX is not installed.
        """
        return jax_function(self.dim, self.check_shape, self.density)

    def __getstate__(self) -> dict[str, Any]:
        # torch's operators, to which layers and tapes refer, can't be pickled.
        prepared = ("network", "features", "layers")
        kept = {name: value for name, value in self.__dict__.items() if name not in prepared}
        return kept | {"gradient": self.gradient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_closed = state.pop("gradient") == "closed-form"
        self.__dict__ |= state
        self._prepare(with_closed_form=is_closed)

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        """The network's outputs: theta ``(D,)`` -> ``(M, K)``, ``(C, D)`` -> ``(C, M, K)``, for inputs ``(M, ...)``."""
        if x is not self.data.x:
            self._check(theta)
            self._check_inputs(x)
        return self.network.at(x)(self.parameters(theta))

    @torch.no_grad()
    def log_likelihoods(self, draws: Tensor | ArrayLike, data: Data | None = None) -> Tensor:
        """Log likelihood of each point under each draw, as log scores and PSIS-LOO need it.

        Of weighted data it is each point's weight times its log likelihood, so that the sum is `log_likelihood`. To
        leave out a point is to leave out its whole weight then: PSIS-LOO takes a weight of 2 for two equal observations
        that are left out, and predicted, together. (Drop points of weight 0 before, ``[..., weights > 0]``: they have a
        log likelihood of 0 under all draws, in which ArviZ looks for a tail, and warns.)

        Args:
            draws: shape ``(..., D)``.
            data: other points, such as those held out, with or without weights; the posterior's own without it.

        Returns:
            shape ``(..., N)``.

        Raises:
            ValueError: if there are several data sets, the data don't fit, or the likelihood's `log_prob` is not the
                sum of its `log_probs`.
        """
        if self.num_datasets > 1:
            raise ValueError(f"there are {self.num_datasets} data sets: ask posterior.dataset(k) for those of one")
        data = self.data if data is None else data
        _check.instance("data", data, Data, "a Data, as by Data(x, y)")
        data = data if data is self.data else data.to(self.data.x.device)
        network = self._at_data() if data is self.data else self.network.at(self._inputs(data.x))
        outputs = network(self.flat.ravel())
        y = self.likelihood.targets(data.y, outputs)
        check_targets(self.likelihood, outputs, y)
        weights = None if data.weights is None else data.weights.to(outputs)
        likelihood = self.likelihood if weights is None else Weighted(self.likelihood, weights)

        def log_probs(theta: Tensor) -> Tensor:
            outputs = network(theta)
            check_log_probs(self.likelihood, outputs, y)
            return likelihood.log_probs(outputs, y)

        return self._collect(draws, network.num_lanes, log_probs)

    def _at_data(self) -> Network:
        """The network at the inputs of all points, whether they count or not."""
        return self.network if self.counted is self.data else self.network.at(self.data.x)

    @property
    def width(self) -> int:
        """Elements per point of the widest layer, as far as the parameters' shapes tell."""
        return max(shape[0] if shape else 1 for shape in self.flat.shapes.values())

    def sample_prior(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws from the prior, shape ``(num, D)``."""
        num = _check.whole("num", num, 1)
        _check.memory(f"{num=} vectors", num * self.dim * self.dtype.itemsize, self.device)
        _check.generator(generator)
        with lend_to_torch(generator):
            return self.prior_distribution.sample((num,))

    def probes(self, num: int, generator: torch.Generator) -> Tensor:
        """Vectors at which to look at the density, ``(num, D)``: draws from the prior, or around 0 if it has none."""
        if is_proper(self.prior_distribution):
            return self.sample_prior(num, generator)
        return torch.randn(num, self.dim, generator=generator, dtype=self.dtype, device=self.device)

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Targets that a network with parameters theta would produce at the data's inputs, drawn from the likelihood.

        One for each point, whatever its weight.

        Of draws from the prior that is the prior predictive distribution, of draws from the posterior the posterior
        predictive one; at other inputs it is `predictive_draws`.

        Returns:
            shape ``(N, ...)`` for theta ``(D,)``, ``(C, N, ...)`` for ``(C, D)``.
        """
        self._check(theta)
        _check.generator(generator)
        return self._simulate(theta, self._at_data(), generator)

    @torch.inference_mode(False)
    def with_targets(self, y: Tensor) -> Posterior:
        """The posterior of the same network, inputs and prior given other targets: of one data set, or of S at once.

        Weights stay with their inputs.

        With S data sets, theta has a row for each: row s of ``(S, D)`` is judged by ``y[s]``; of ``(k S, D)``, the
        first k rows by ``y[0]``, and so on. `sample` draws from all in one batch. ``data.y`` is ``(N, S, ...)`` then.

        Args:
            y: targets, ``(N, ...)`` or ``(S, N, ...)``, such as `simulate` makes.

        Raises:
            ValueError: if the targets have another shape, or values that don't fit the likelihood.
        """
        y = _check.tensor("y", y)
        shape = (self.data.y if self.num_datasets == 1 else self.data.y[:, 0]).shape
        if y.shape != shape and (y.ndim == 0 or y.shape[1:] != shape or len(y) == 0):
            raise ValueError(
                f"the targets have shape {tuple(y.shape)}, but for this posterior's inputs they need {tuple(shape)}, "
                f"or (S, {', '.join(map(str, shape))}) for S data sets"
            )
        sets = y.to(self.device).reshape(-1, *shape)
        with torch.no_grad():
            outputs = self._at_data()(self.flat.ravel())
        # Checked all at once, as if they were one data set with many points.
        outputs, points = torch.cat(len(sets) * [outputs]), sets.flatten(0, 1)
        points = self.likelihood.targets(points, outputs)
        check_targets(self.likelihood, outputs, points)
        sets = points.view(sets.shape).clone()
        data = _counting(replace(self.data, y=sets[0] if len(sets) == 1 else sets.transpose(0, 1)))
        return self._with(num_datasets=len(sets), **data)

    def dataset(self, index: int) -> Posterior:
        """The posterior of one of the data sets of `with_targets`; of a single one, the posterior itself."""
        index = _check.whole("index", index, 0, self.num_datasets - 1)
        return self if self.num_datasets == 1 else self.with_targets(self.data.y[:, index])

    def targets_for(self, num_lanes: int) -> Tensor:
        """Targets by which a batch is judged: ``(N, ...)`` where all lanes share them, else ``(num_lanes, N, ...)``."""
        if self.num_datasets == 1:
            return self.counted.y
        if num_lanes % self.num_datasets:
            raise ValueError(
                f"this posterior has {self.num_datasets} data sets and needs one row of theta for each of them, or "
                f"several; it got {num_lanes}: ask for num_chains={self.num_datasets}, or for dataset(k) alone"
            )
        return self.counted.y.transpose(0, 1).repeat_interleave(num_lanes // self.num_datasets, dim=0)

    def __repr__(self) -> str:
        return (
            f"Posterior({type(self.flat.module).__name__} with {self.dim} parameters, {len(self.data)} "
            f"{'points' if self.data.weights is None else 'weighted points'}, "
            f"{f'{self.num_datasets} data sets, ' * (self.num_datasets > 1)}"
            f"{self.prior!r}, {self.likelihood!r}, {self.gradient} gradient, {self.dtype}, {self.device})"
        )


def _counting(data: Data) -> dict[str, Data]:
    """The data, and those of their points that count."""
    if data.weights is None or data.x.is_meta:
        return {"data": data, "counted": data}
    # A weight of 0 times a log likelihood or a slope that is infinite is no number.
    counts = data.weights > 0
    return {"data": data, "counted": Data(data.x[counts], data.y[counts], data.weights[counts])}


def _in_blocks(function: Callable[..., Tensor], theta: Tensor, most: int, *others: Tensor) -> Tensor:
    """``function`` of theta ``(D,)`` or ``(C, D)``, of at most ``most`` rows (and of others' rows) at once."""
    if theta.ndim == 1 or len(theta) <= most:
        return function(theta, *others)
    blocks = zip(*(rows.split(most) for rows in (theta, *others)), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([function(*block) for block in blocks])
    # Into one result: small tensors that live on between large ones keep memory from being used again.
    values, done = theta.new_empty(len(theta)), 0
    for block in blocks:
        values[done : done + len(block[0])] = function(*block)
        done += len(block[0])
    return values
