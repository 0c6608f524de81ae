"""The posterior over the flat parameter vector: log joint and its gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from bnn_utils import _check
from bnn_utils.backprop import ACTIVATIONS, Target, closed_form, linear_chain
from bnn_utils.bridges import NumpyFunction, jax_function, numpy_function
from bnn_utils.checks import check_density, check_dtype, check_module, checked_outputs, own_copy
from bnn_utils.compiled import MAX_PARAMETERS, compile_likelihood, pays_off
from bnn_utils.data import Data
from bnn_utils.flat import FlatModule
from bnn_utils.likelihoods import ByDistribution, Likelihood, value_and_grad
from bnn_utils.priors import DiagonalNormal, Prior
from bnn_utils.random import lend_to_torch

# Elements of the widest layer in one batch of `predict`: bounds its memory to some hundred megabytes.
PREDICT_ELEMENTS = 2**23


class Posterior:
    """The unnormalised posterior of a network's flat parameter vector given data.

    ``log_prob(theta) = log prior(theta) + sum_i log p(y_i | f(theta, x_i))``, the log joint density with every constant
    kept, so that only the evidence is missing.

    The posterior works on a copy of the module, in the dtype of ``data.x`` and on its device; the module passed in is
    never changed.

    Args:
        module: any network that maps ``data.x`` to one output row per point.
        data: inputs and targets.
        prior: such as ``NormalPrior(precision=0.09)``.
        likelihood: such as ``Bernoulli()``; or a function from outputs ``(..., N, K)`` to a torch distribution of batch
            shape ``(..., N)``, such as ``lambda outputs: Poisson(outputs[..., 0].exp())``.
        gradient: "closed-form" for chains of Linear layers and elementwise activations, "autograd" for every module, or
            "auto": the first where it applies.

    Raises:
        ValueError: if the density that would be sampled is not the one that was written (`bnn_utils.checks`): if the
            module is random, carries state from call to call, or can't be run for many vectors at once; if its outputs
            at a point depend on other points; if outputs, log likelihood or gradient of several vectors at once differ
            from those of each alone by plain autograd, or the gradient from finite differences. If the network emits
            probabilities where logits are meant, targets or outputs don't fit the likelihood, the dtype is coarser than
            float32, or "closed-form" does not apply.
    """

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
        self.likelihood = likelihood if isinstance(likelihood, Likelihood) else ByDistribution(likelihood)
        self.prior_distribution = prior.distribution(self.flat)
        self.data = Data(data.x, self.likelihood.targets(data.y, checked_outputs(self.flat, data.x)))
        self.num_datasets = 1
        self._layers = None if gradient == "autograd" or data.x.ndim != 2 else linear_chain(self.flat)
        self._compilations: dict[int, Target | None] = {}
        if gradient == "closed-form" and self._layers is None:
            raise ValueError(
                "the closed-form gradient needs an nn.Sequential of trainable nn.Linear layers, with "
                f"{', '.join(kind.__name__ for kind in ACTIVATIONS)} after any of them; this {type(module).__name__} "
                "is something else: use gradient='auto'"
            )
        check_density(self)

    @property
    def dim(self) -> int:
        """Number of parameters, D."""
        return self.flat.dim

    @property
    def dtype(self) -> torch.dtype:
        return self.flat.dtype

    @property
    def device(self) -> torch.device:
        return self.data.x.device

    @property
    def gradient(self) -> str:
        """The gradient in use: "closed-form" or "autograd"."""
        return "autograd" if self._layers is None else "closed-form"

    def _check(self, theta: Tensor) -> None:
        """Raise unless the density can be computed at theta."""
        self.flat.check(theta)
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
                f"x has shape {tuple(x.shape)}, but this posterior's inputs have shape (M, "
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
        return self.prior_distribution.log_prob(theta)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Log likelihood of all points, a sum: ``(D,)`` -> scalar, ``(C, D)`` -> ``(C,)``."""
        self._check(theta)
        outputs = self.outputs(theta, self.data.x)
        return self.likelihood.log_prob(outputs, self._targets_of(1 if theta.ndim == 1 else len(theta)))

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log joint density, every constant kept: ``(D,)`` -> scalar, ``(C, D)`` -> ``(C,)``. Differentiable."""
        return self.log_prior(theta) + self.log_likelihood(theta)

    @torch.no_grad()
    def log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log joint density and its gradient: ``(D,)`` -> scalar, ``(D,)``; ``(C, D)`` -> ``(C,)``, ``(C, D)``."""
        self._check(theta)
        lanes = theta.detach().reshape(-1, self.dim)
        log_prob, grad = self.target(len(lanes)).log_prob_and_grad(lanes)
        return log_prob.view(theta.shape[:-1]), grad.view(theta.shape)

    def numpy(self) -> NumpyFunction:
        """The log joint density and its gradient for NumPy and SciPy, in float64 whatever the data's dtype is.

        Returns:
            a function of arrays: ``(D,)`` -> scalar, ``(D,)``; ``(C, D)`` -> ``(C,)``, ``(C, D)``. SciPy minimises:
            ``scipy.optimize.minimize(lambda theta: [-value for value in f(theta)], start, jac=True)``.
        """
        return numpy_function(self.in_double())

    def in_double(self) -> Posterior:
        """The same posterior in float64."""
        if self.dtype == torch.float64:
            return self
        other = copy.copy(self)
        other.flat = FlatModule(copy.deepcopy(self.flat.module).double())
        other.prior_distribution = self.prior.distribution(other.flat)
        other.data, other._compilations = self.data.to(torch.float64), {}
        other._layers = None if self._layers is None else linear_chain(other.flat)
        return other

    def at_points(self, points: Tensor) -> Posterior:
        """The posterior given some of the points alone, by their indices."""
        other = copy.copy(self)
        other.data, other._compilations = Data(self.data.x[points], self.data.y[points]), {}
        return other

    def jax(self) -> Callable[[Any], Any]:
        """The log joint density for JAX, a function ``(D,)`` -> scalar with a gradient; may be jitted and vmapped.

        It computes in the dtype of the posterior and returns that of its argument.

        Raises:
            ModuleNotFoundError: if JAX is not installed.
        """
        return jax_function(self)

    def target(self, num_lanes: int, compile: bool = False) -> Target:
        """The density as kernels take it, for batches of ``num_lanes`` vectors; one per thread.

        Args:
            compile: with the likelihood's gradient compiled, as by `compile`.
        """
        num_lanes = _check.whole("num_lanes", num_lanes, 1)
        if self._layers is None:
            return _by_autograd(self.log_prob)
        likelihood = self._likelihood_target(num_lanes, compile)
        prior = self.prior_distribution

        def plus_prior(grad: Tensor, theta: Tensor) -> Tensor:
            if isinstance(prior, DiagonalNormal):
                return grad.addcmul_(prior.precision, theta, value=-1)
            return grad + value_and_grad(prior.log_prob, theta)[1]

        def log_prob_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
            log_likelihood, grad = likelihood.log_prob_and_grad(theta)
            return prior.log_prob(theta) + log_likelihood, plus_prior(grad, theta)

        return Target(log_prob_and_grad, lambda theta: plus_prior(likelihood.grad(theta), theta))

    def split_target(self, num_lanes: int, compile: bool = False) -> tuple[Target, Target]:
        """Prior and likelihood, whose sum `target` is, each as a density of its own: for kernels that weigh them."""
        prior = self.prior_distribution
        if not isinstance(prior, DiagonalNormal):
            return _by_autograd(prior.log_prob), self._likelihood_target(num_lanes, compile)

        def grad(theta: Tensor) -> Tensor:
            return theta * -prior.precision

        of_prior = Target(lambda theta: (prior.log_prob(theta), grad(theta)), grad)
        return of_prior, self._likelihood_target(num_lanes, compile)

    def _likelihood_target(self, num_lanes: int, compile: bool) -> Target:
        if self._layers is None:
            return _by_autograd(self.log_likelihood)
        if compile and self.compile(num_lanes):
            return self._compilations[num_lanes]
        y = self._targets_of(num_lanes)
        if self.num_datasets == 1:  # repeated once, not at every gradient
            y = y.expand(num_lanes, *y.shape).contiguous()
        return closed_form(self._layers, self.likelihood, self.data.x, y, num_lanes)

    def check_can_compile(self) -> None:
        """Raise unless `target` can be compiled."""
        if not self._can_compile:
            raise ValueError(
                f"compile=True is for the closed-form gradient of at most {MAX_PARAMETERS} parameters on the CPU; this "
                f"posterior has {self.dim} parameters and the {self.gradient} gradient, on {self.device}: say 'auto'"
            )

    @property
    def _can_compile(self) -> bool:
        return self._layers is not None and self.dim <= MAX_PARAMETERS and self.device.type == "cpu"

    def compilation_pays(self, num_lanes: int, num_gradients: int) -> bool:
        """Whether compilation applies and is predicted to take less time than it saves."""
        return self._can_compile and pays_off(self._layers, len(self.data), num_lanes, num_gradients)

    def compile(self, num_lanes: int) -> bool:
        """Compile the likelihood's gradient for `target`, once; False where that fails, as without a C++ compiler.

        Raises:
            ValueError: if compilation does not apply.
        """
        self.check_can_compile()
        if num_lanes not in self._compilations:
            self._compilations[num_lanes] = compile_likelihood(
                self._layers, self.likelihood, self.data.x, self._targets_of(num_lanes), num_lanes
            )
        return self._compilations[num_lanes] is not None

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code stays in its process, and torch's operators, which the layers refer to, can't be pickled.
        return self.__dict__ | {"_compilations": {}, "_layers": None, "gradient": self.gradient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_closed = state.pop("gradient") == "closed-form"
        self.__dict__ |= state | {"_layers": linear_chain(state["flat"]) if is_closed else None}

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        """The network's outputs: theta ``(D,)`` -> ``(M, K)``, ``(C, D)`` -> ``(C, M, K)``, for inputs ``(M, ...)``."""
        if x is not self.data.x:
            self._check(theta)
            self._check_inputs(x)
        return self.flat(theta, x)

    @torch.no_grad()
    def predict(self, draws: Tensor, x: Tensor) -> Tensor:
        """Expected target (of classes: their probabilities, for Bernoulli that of 1) at inputs x under each draw.

        Args:
            draws: shape ``(..., D)``, such as ``chain.draws`` with its ``(chains, draws, D)``.
            x: inputs, shape ``(M, ...)``.

        Returns:
            shape ``(..., M)``; ``(..., M, K)`` for targets of K numbers and for K classes.

        Raises:
            ValueError: if the draws have another length than theta, or x has no points or another shape than the data.
        """
        draws, x = _check.tensor("draws", draws), _check.tensor("x", x)
        return self._in_batches(draws, x.to(self.data.x), self.likelihood.mean)

    def _in_batches(self, draws: Tensor, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``function`` of the outputs of each draw ``(..., D)`` at inputs x, as many at once as memory allows."""
        draws = draws.to(dtype=self.dtype, device=self.device)
        self._check_inputs(x)
        if draws.ndim == 0 or draws.shape[-1] != self.dim:
            self.flat.check(draws)  # raises
        lanes = draws.reshape(-1, self.dim)
        batches = lanes.split(max(1, PREDICT_ELEMENTS // (len(x) * self.width)))
        values = torch.cat([function(self.outputs(batch, x)) for batch in batches])
        return values.reshape(*draws.shape[:-1], *values.shape[1:])

    @torch.no_grad()
    def log_likelihoods(self, draws: Tensor, data: Data | None = None) -> Tensor:
        """Log likelihood of each point under each draw, as log scores and PSIS-LOO need it.

        Args:
            draws: shape ``(..., D)``.
            data: other points, such as those held out; the posterior's own without it.

        Returns:
            shape ``(..., N)``.
        """
        if self.num_datasets > 1:
            raise ValueError(f"there are {self.num_datasets} data sets: ask posterior.dataset(k) for those of one")
        draws, data = _check.tensor("draws", draws), self.data if data is None else data
        _check.instance("data", data, Data, "a Data, as by Data(x, y)")
        data = data.to(self.data.x.device)
        x = data.x.to(self.data.x)
        y = self.likelihood.targets(data.y, self.outputs(self.flat.ravel(), x))
        return self._in_batches(draws, x, lambda outputs: self.likelihood.log_probs(outputs, y))

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

    @torch.no_grad()
    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Targets that a network with parameters theta would produce at the data's inputs, drawn from the likelihood.

        Of draws from the prior that is the prior predictive distribution, of draws from the posterior the posterior
        predictive one.

        Returns:
            shape ``(N, ...)`` for theta ``(D,)``, ``(C, N, ...)`` for ``(C, D)``.
        """
        self._check(theta)
        _check.generator(generator)
        outputs = self.outputs(theta, self.data.x)
        with lend_to_torch(generator):
            return self.likelihood.distribution(outputs).sample()

    def with_targets(self, y: Tensor) -> Posterior:
        """The posterior of the same network, inputs and prior given other targets: of one data set, or of S at once.

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
            outputs = self.outputs(self.flat.ravel(), self.data.x)
        # Checked all at once, as if they were one data set with many points.
        sets = self.likelihood.targets(sets.flatten(0, 1), torch.cat(len(sets) * [outputs])).view(sets.shape)
        other = copy.copy(self)
        other._compilations = {}
        other.num_datasets = len(sets)
        other.data = Data(self.data.x, sets[0] if len(sets) == 1 else sets.transpose(0, 1))
        return other

    def dataset(self, index: int) -> Posterior:
        """The posterior of one of the data sets of `with_targets`; of a single one, the posterior itself."""
        index = _check.whole("index", index, 0, self.num_datasets - 1)
        return self if self.num_datasets == 1 else self.with_targets(self.data.y[:, index])

    def _targets_of(self, num_lanes: int) -> Tensor:
        """Targets by which a batch is judged: ``(N, ...)`` where all lanes share them, else ``(num_lanes, N, ...)``."""
        if self.num_datasets == 1:
            return self.data.y
        if num_lanes % self.num_datasets:
            raise ValueError(
                f"this posterior has {self.num_datasets} data sets and needs one row of theta for each of them, or "
                f"several; it got {num_lanes}: ask for num_chains={self.num_datasets}, or for dataset(k) alone"
            )
        return self.data.y.transpose(0, 1).repeat_interleave(num_lanes // self.num_datasets, dim=0)

    def __repr__(self) -> str:
        return (
            f"Posterior({type(self.flat.module).__name__} with {self.dim} parameters, {len(self.data)} points, "
            f"{f'{self.num_datasets} data sets, ' * (self.num_datasets > 1)}"
            f"{self.prior!r}, {self.likelihood!r}, {self.gradient} gradient, {self.dtype}, {self.device})"
        )


def _by_autograd(log_prob: Callable[[Tensor], Tensor]) -> Target:
    return Target(
        log_prob_and_grad=lambda theta: value_and_grad(log_prob, theta),
        grad=lambda theta: value_and_grad(log_prob, theta)[1],
    )
