"""What a parameter vector says about targets, by a network and a likelihood; how draws of it predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bnn_utils import _check
from bnn_utils.flat import FlatModule
from bnn_utils.likelihoods import Likelihood
from bnn_utils.links import Link
from bnn_utils.network import Network, at_inputs
from bnn_utils.random import as_generator, lend_to_torch

# Numbers that are drawn in one call: which call draws what must depend on shapes alone, for the sake of seeds.
DRAWN_AT_ONCE = 2**22


class Model:
    """``p(y | x, theta)``: how targets come about at inputs x, by a network whose parameters theta makes.

    What a posterior knows of the world outside of its data, and what is left of it when draws are kept to predict.

    Args:
        flat: the network.
        likelihood: of targets given the network's outputs.
        link: what makes the network's parameters of theta; None where these are the same.
        x: inputs ``(N, ...)`` like those at which it will be asked.

    Attributes:
        network: the network at x, which is made for other inputs by ``network.at``.
    """

    flat: FlatModule
    likelihood: Likelihood
    link: Link | None
    network: Network
    _num_outputs: int  # of a point

    def __init__(self, flat: FlatModule, likelihood: Likelihood, link: Link | None, x: Tensor) -> None:
        self.flat, self.likelihood, self.link, self._x = flat, likelihood, link, x
        self.network = at_inputs(flat, x)
        self._num_outputs = flat(flat.ravel(), x)[0].numel()

    @property
    def _like(self) -> Tensor:
        """Inputs whose dtype, device and shape others' have to be like."""
        return self._x

    @property
    def dim(self) -> int:
        """Length of theta, D."""
        return self.flat.dim if self.link is None else self.link.dim

    @property
    def names(self) -> list[str]:
        """One label per element of theta, such as ``0.weight[2,1]``."""
        return self.flat.names if self.link is None else self.link.names

    @property
    def dtype(self) -> torch.dtype:
        return self.flat.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device

    def check_shape(self, theta: Tensor) -> None:
        """Raise unless theta is a tensor of shape (D,) or (C, D)."""
        if self.link is None:
            self.flat.check(theta)
            return
        _check.instance("theta", theta, Tensor, "a torch.Tensor")
        if theta.ndim not in (1, 2) or theta.shape[-1] != self.dim:
            raise ValueError(
                f"theta has shape {tuple(theta.shape)}, but with this prior it has {self.dim} elements, of which "
                f"posterior.parameters makes the network's {self.flat.dim} parameters: pass ({self.dim},), or (C, "
                f"{self.dim}) for C vectors at once"
            )

    def parameters(self, theta: Tensor) -> Tensor:
        """The network's parameters at theta, as ``flat.unravel`` takes them: ``(..., D)`` -> ``(..., P)``.

        Theta itself, unless the prior says otherwise. Differentiable.
        """
        theta = _check.tensor("theta", theta)
        if theta.ndim == 0 or theta.shape[-1] != self.dim:
            self.check_shape(theta)  # raises
        return theta if self.link is None else self.link(theta)

    def theta(self, parameters: Tensor) -> Tensor:
        """A vector theta that makes these parameters of the network: ``(..., P)`` -> ``(..., D)``.

        Such as the place to start at, of a network that was trained: ``posterior.theta(posterior.flat.ravel())``. All
        scales that are inferred are 1 there, and what is out of its bounds is 0.
        """
        parameters = _check.tensor("parameters", parameters)
        if parameters.ndim == 0 or parameters.shape[-1] != self.flat.dim:
            raise ValueError(
                f"parameters have shape {tuple(parameters.shape)}, but this network has {self.flat.dim}: pass (..., "
                f"{self.flat.dim})"
            )
        return parameters if self.link is None else self.link.theta(parameters)

    @torch.no_grad()
    def predict(self, draws: Tensor | ArrayLike, x: Tensor | ArrayLike) -> Tensor:
        """Expected target (of classes: their probabilities, for Bernoulli that of 1) at inputs x under each draw.

        How these spread says where the mean may be, not where targets are: for that see `predictive_draws`.

        Args:
            draws: shape ``(..., D)``, such as ``chain.draws`` with its ``(chains, draws, D)``.
            x: inputs, shape ``(M, ...)``; to the posterior's dtype, but whole numbers stay whole numbers where the data
                are, such as tokens.

        Returns:
            shape ``(..., M)``; ``(..., M, K)`` for targets of K numbers and for K classes.

        Raises:
            ValueError: if the draws have another length than theta, x has no points or another shape than the data,
                either has NaN, infinite or complex values, or the network takes whole numbers and x has others.
        """
        network = self.network.at(self._inputs(x))
        return self._collect(draws, network.num_lanes, lambda theta: self.likelihood.mean(network(theta)))

    def _inputs(self, x: Tensor | ArrayLike) -> Tensor:
        """New inputs, checked, as the network takes them."""
        x = _check.tensor("x", x).detach().to(self.device)
        if x.ndim == 0 or len(x) == 0 or x.shape[1:] != self._like.shape[1:]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but the data's inputs have shape (M, "
                f"{', '.join(map(str, self._like.shape[1:]))}) with at least one point"
            )
        known = self._like.dtype
        like_data = x.to(known)
        if not (known.is_floating_point or x.is_meta or torch.equal(like_data.to(x.dtype), x)):
            # Numbers that the data's dtype has no room for, such as 0.5 where they are integers: never cut off.
            like_data = x.to(self.dtype) if x.is_floating_point() else x
            try:
                self.flat(self.flat.ravel(), like_data[:2])
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                odd = x[like_data.to(known).to(x.dtype) != x][0].item()
                raise ValueError(
                    f"x holds {odd:g}; the data's inputs are {known}, and this network takes no others: "
                    f"{str(error).strip().splitlines()[0]}"
                ) from error
        if like_data.is_floating_point():
            check_finite("x", like_data)
        return like_data

    def _collect(self, draws: Tensor | ArrayLike, most: int, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``function`` of at most ``most`` draws at once, its results together in the leading shape of the draws."""
        draws = _check.tensor("draws", draws).detach()
        if draws.ndim == 0 or draws.shape[-1] != self.dim:
            self.check_shape(draws)  # raises
        lanes = draws.reshape(-1, self.dim)
        values: Tensor | None = None
        done = 0
        for rows in lanes.split(most):
            rows = rows.to(dtype=self.dtype, device=self.device)
            check_finite("draws", rows)
            found = function(self.parameters(rows))
            # All blocks write into one result, which would be there twice if they were put together afterwards.
            values = found.new_empty(len(lanes), *found.shape[1:]) if values is None else values
            values[done : done + len(rows)] = found
            done += len(rows)
        assert values is not None  # there is one block at least, of no draws if there are none
        return values.reshape(*draws.shape[:-1], *values.shape[1:])

    def predictive_draws(self, draws: Tensor | ArrayLike, x: Tensor | ArrayLike, seed: int | torch.Generator) -> Tensor:
        """Targets that may be seen at inputs x: of each draw one, from the likelihood, with its noise.

        Of draws from the posterior these are draws from the posterior predictive distribution. Nine in ten targets fall
        between the 5 % and 95 % quantiles of them (`predictive_quantiles`) if the model is right. Those of `predict`
        hold the mean only, and are narrower by the noise.

        Args:
            draws: shape ``(..., D)``, such as ``chain.draws``.
            x: inputs, shape ``(M, ...)``, as for `predict`.
            seed: a number, or a generator on the posterior's device, which is advanced.

        Returns:
            shape ``(..., M)``; ``(..., M, K)`` for targets of K numbers. Of classes they are labels.

        Raises:
            ValueError: as `predict`.
        """
        return self._simulate(draws, self.network.at(self._inputs(x)), seed)

    @torch.no_grad()
    def _simulate(self, draws: Tensor | ArrayLike, network: Network, seed: int | torch.Generator) -> Tensor:
        most = max(1, DRAWN_AT_ONCE // (network.num_points * self._num_outputs))
        with lend_to_torch(as_generator(seed, self.device)):
            return self._collect(draws, most, lambda theta: self.likelihood.distribution(network(theta)).sample())


def check_finite(name: str, values: Tensor) -> None:
    """Raise where there are NaN or infinite values."""
    bad = torch.zeros(0) if values.is_meta else values[~values.isfinite()]
    if len(bad):
        raise ValueError(f"{name} holds {len(bad)} NaN or infinite values in {values.dtype}: take them out")
