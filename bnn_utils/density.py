"""What kernels see of a posterior: its log densities with their gradients, for batches of vectors."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from bnn_utils import _check
from bnn_utils.families import ClosedForm
from bnn_utils.gradients import LogDensity
from bnn_utils.gradients.autograd import by_autograd, by_autograd_in_blocks
from bnn_utils.gradients.backprop import closed_form
from bnn_utils.gradients.caller import Caller
from bnn_utils.gradients.fused import Fused
from bnn_utils.gradients.joints import Joint, can_be_joint
from bnn_utils.gradients.minibatches import Minibatches
from bnn_utils.gradients.native import Native, can_be_native, is_small
from bnn_utils.priors import DiagonalNormal

if TYPE_CHECKING:  # a posterior makes densities itself
    from bnn_utils.links import Link
    from bnn_utils.posterior import Posterior

T = TypeVar("T")
# Relative, far above what rounding makes of sums over points (3e-4 in float32 with 1,000,000 of them), and far below
# what another density differs by.
ERRORS = {torch.float32: 1e-2, torch.float64: 1e-6}


class Density:
    """Joint, prior and likelihood of a posterior, each a log density with its gradient, for batches of C vectors.

    A density is made when it is first asked for. It may compute in memory that its next call overwrites, so that each
    thread needs a Density of its own. One that is first asked for in inference mode, where it is some per cent faster,
    stays there: torch lets nobody write to such memory outside.

    Args:
        posterior: given by its model and data.
        num_lanes: C, the rows of each batch; for several data sets a multiple of their number.
        compile: in native code, which is made in half a second for a network's shape, and kept on disk. Where that
            fails, as without llvmlite, it says so once, and runs in torch.

    Attributes:
        joint: ``log p(y | theta) + log p(theta)``.
        prior: ``log p(theta)``.
        likelihood: ``log p(y | theta)``.
        minibatches: estimates of the joint from some of the points.
        num_lanes: C.

    Raises:
        TypeError: if this is no posterior.
        ValueError: if ``num_lanes`` is no number of lanes, or compilation does not apply.
    """

    def __init__(self, posterior: Posterior, num_lanes: int, compile: bool = False) -> None:
        _check.posterior(posterior)
        self.num_lanes = _check.whole("num_lanes", num_lanes, 1)
        self.posterior, self._compile = posterior, compile
        self._code = _native(posterior, self.num_lanes) if compile else None

    @property
    def dim(self) -> int:
        """Number of parameters, D."""
        return self.posterior.dim

    @property
    def dtype(self) -> torch.dtype:
        return self.posterior.dtype

    @property
    def device(self) -> torch.device:
        return self.posterior.device

    @property
    def is_compiled(self) -> bool:
        return self._code is not None

    def share_out(self, num_threads: int) -> None:
        """Let native code take up to so many threads, which changes no number."""
        if self._code is not None:
            self._code.num_threads = num_threads

    @cached_property
    def joint(self) -> LogDensity:
        posterior = self.posterior
        if posterior.layers is None and self._is_one_block:
            return by_autograd(posterior.log_prob)
        likelihood, prior = self.likelihood, posterior.prior_distribution

        def plus_prior(grad: Tensor, theta: Tensor) -> Tensor:
            if isinstance(prior, DiagonalNormal):
                return grad.addcmul_(prior.precision, theta, value=-1)
            return grad + self.prior.grad(theta)

        def log_prob_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
            log_likelihood, grad = likelihood.log_prob_and_grad(theta)
            return prior.log_prob(theta) + log_likelihood, plus_prior(grad, theta)

        def grad(theta: Tensor) -> Tensor:
            return plus_prior(likelihood.grad(theta), theta)

        # Of a likelihood that was replaced, as by one that counts its calls, native code knows nothing.
        native, callee = likelihood.native, likelihood.callee
        native = native if native and native.has_prior else None
        whole = _joint(prior, callee) if callee is not None and isinstance(prior, ClosedForm) else None
        if callee is not None and whole is not None:
            functions = (log_prob_and_grad, grad) if callee.splits_lanes else (whole.log_prob_and_grad, whole.grad)
            return LogDensity(*functions, caller=Caller(whole, whole.rest))
        caller = Caller(callee, prior) if callee is not None and isinstance(prior, DiagonalNormal) else None
        return LogDensity(log_prob_and_grad, grad, native, caller=caller)

    @cached_property
    def prior(self) -> LogDensity:
        prior = self.posterior.prior_distribution
        if not isinstance(prior, (DiagonalNormal, ClosedForm)):
            return by_autograd(prior.log_prob)
        return LogDensity(lambda theta: (prior.log_prob(theta), prior.grad(theta)), prior.grad)

    @cached_property
    def likelihood(self) -> LogDensity:
        posterior = self.posterior
        if posterior.layers is None and self._is_one_block:
            return by_autograd(posterior.log_likelihood)
        found = self._of_parameters
        return found if posterior.link is None else _linked(found, posterior.link)

    @property
    def _of_parameters(self) -> LogDensity:
        """The log likelihood of the network's parameters."""
        posterior = self.posterior
        if self._code is not None:
            return self._code.likelihood
        return _in_torch(posterior, self.num_lanes)

    @cached_property
    def minibatches(self) -> Minibatches:
        return Minibatches(self.posterior, self.prior, self.num_lanes)

    @property
    def _is_one_block(self) -> bool:
        network = self.posterior.network
        return len(network.blocks) == 1 and self.num_lanes <= network.num_lanes

    def __reduce__(self) -> tuple[Any, ...]:
        # Made anew: neither compiled code nor memory that is being computed in can be pickled.
        return type(self), (self.posterior, self.num_lanes, self._compile)

    def __repr__(self) -> str:
        return f"Density({self.num_lanes} lanes{', compiled' * self.is_compiled}, of {self.posterior!r})"


def _in_torch(posterior: Posterior, num_lanes: int) -> LogDensity:
    """The log likelihood of the network's parameters, in closed form or by autograd."""
    # Autograd is closed to tensors that are made in inference mode.
    with torch.inference_mode(False):
        y = posterior.targets_for(num_lanes)
        if posterior.num_datasets == 1:
            y = y.expand(num_lanes, *y.shape)
        if posterior.layers is None:
            return by_autograd_in_blocks(posterior.network, posterior.weighted_likelihood, y)
        y = y.contiguous()  # repeated once, not at every gradient
    assert posterior.features is not None  # which come with the layers
    return closed_form(
        posterior.layers, posterior.likelihood, posterior.features, y, num_lanes, posterior.counted.weights
    )


def _linked(of_parameters: LogDensity, link: Link) -> LogDensity:
    """A log density of theta, of the network's parameters that a link makes of it."""

    def log_prob_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
        parameters = link(theta)
        value, grad = of_parameters.log_prob_and_grad(parameters)
        return value, link.pull_back(theta, parameters, grad)

    def grad(theta: Tensor) -> Tensor:
        parameters = link(theta)
        return link.pull_back(theta, parameters, of_parameters.grad(parameters))

    return LogDensity(log_prob_and_grad, grad, callee=of_parameters.callee)


def check_can_compile(posterior: Posterior) -> None:
    """Raise unless there is native code for the posterior."""
    if not can_be_native(posterior):
        raise ValueError(
            "compile=True is for the closed-form gradient with one of this package's likelihoods on the CPU; this "
            f"posterior has the {posterior.gradient} gradient and {posterior.likelihood!r}, on {posterior.device}: say "
            "'auto'"
        )


def _native(posterior: Posterior, num_lanes: int) -> Native | Fused | None:
    check_can_compile(posterior)
    return _unless_it_fails(_that_agrees, posterior, num_lanes)


@torch.inference_mode(False)
@torch.no_grad()
def _that_agrees(posterior: Posterior, num_lanes: int) -> Native | Fused:
    """Native code that gives what torch gives, at one vector for each data set: compilers and processors may err.

    Raises:
        RuntimeError: if it gives something else.
    """
    native = Native(posterior, num_lanes) if is_small(posterior) else Fused(posterior, num_lanes)
    theta, num = posterior.flat.ravel(), posterior.num_datasets
    theta = theta + torch.linspace(-0.1, 0.1, len(theta)).to(theta)
    wanted = _in_torch(posterior, num).log_prob_and_grad(theta.repeat(num, 1))
    found = native.likelihood.log_prob_and_grad(theta.repeat(num_lanes, 1))
    for one, other in zip(found, wanted, strict=True):
        off = one[:: num_lanes // num] - other
        if other.isfinite().all() and not off.abs().max() <= ERRORS[theta.dtype] * other.abs().max().clamp(min=1):
            raise RuntimeError(f"what LLVM makes is off by {off.abs().max():g}, where torch has {other.abs().max():g}")
    return native


def _joint(prior: ClosedForm, likelihood: Native | Fused) -> Joint | None:
    return _unless_it_fails(Joint, prior, likelihood) if can_be_joint(prior) else None


def _unless_it_fails(make: Callable[..., T], *arguments: Any) -> T | None:
    try:
        return make(*arguments)
    except (ImportError, OSError, RuntimeError) as error:
        _warn(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return None


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"there is no native code, so it runs in torch and slower ({reason}). Native code is made by llvmlite: install "
        "it (pip install llvmlite), or silence this with compile=False",
        RuntimeWarning,
        stacklevel=2,
    )
