"""A posterior kept to predict with: network, likelihood and some draws, in one file that holds data and no code."""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

import bnn_utils
from bnn_utils import _check, files, packing
from bnn_utils.chain import Chain
from bnn_utils.checks import ROUNDING, own_copy
from bnn_utils.flat import FlatModule
from bnn_utils.layers import Standardise
from bnn_utils.likelihoods import Bernoulli, ByDistribution, Categorical, Gaussian, Likelihood
from bnn_utils.model import Model
from bnn_utils.posterior import Posterior
from bnn_utils.predict import predictive_quantiles
from bnn_utils.structure import build, describe

KIND, FORMAT = "predictor", 1
NUM_TRIALS = 8  # points at which a network that comes back is compared with the one that was kept
OURS = (Bernoulli, Categorical, Gaussian)  # likelihoods that a file can describe
FEWEST_TARGETS = 4000  # of an interval: a 5 % quantile is the 5 +- 0.3 % quantile then


class Predictor:
    """Draws of a network's parameters, with all that it takes to predict by them, for use and for a file.

    It has the network, the likelihood, and the units of inputs and targets where these are standardised inside. It has
    not the data: of these it keeps 8 points that are put together from several each (of a single input, its numbers as
    they are), at which `load` compares the network with what it was. To sample further takes the posterior.

    Args:
        posterior: that the chain was drawn from; of one data set.
        chain: its draws.
        num_draws: how many to keep, evenly spread over all; all without it.

    Attributes:
        draws: parameters of the network, ``(num_draws, P)``.
        names: a label for each of the P.
        warnings: what `Chain.warnings` said when it was made.
        prior: in words.

    Raises:
        ValueError: if the chain's parameters are not the posterior's, or there are fewer draws.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, Predictor, boxes, sample
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> posterior = Posterior(net, boxes(), NormalPrior(precision=0.09), Bernoulli())
        >>> chain = sample(posterior, HMC(0.05, 4), num_samples=500, warmup=100, seed=0, progress=False)
        >>> predictor = Predictor(posterior, chain, num_draws=100)
        >>> predictor.save("boxes.bnn")
        >>> again = Predictor.load("boxes.bnn")
        >>> again.predict_proba([[-3.0, 3.0], [3.0, 3.0]]).argmax(1).tolist()
        [0, 1]
    """

    def __init__(self, posterior: Posterior, chain: Chain, num_draws: int | None = None) -> None:
        _check.posterior(posterior)
        _check.instance("chain", chain, Chain, "a Chain, such as sample or Chain.from_draws make")
        if posterior.num_datasets > 1:
            raise ValueError(f"there are {posterior.num_datasets} data sets: keep those of one, posterior.dataset(k)")
        if chain.names != posterior.names:
            raise ValueError(
                f"the chain has {chain.dim} parameters, {_few(chain.names)}, and the posterior {posterior.dim}, "
                f"{_few(posterior.names)}: it was drawn from another one"
            )
        draws = posterior.parameters(chain.draws.flatten(0, 1).to(posterior.data.x.device, posterior.dtype))
        if num_draws is not None:
            num_draws = _check.whole("num_draws", num_draws, 1, len(draws))
            draws = draws[_spread(num_draws, len(draws))]
        x = _trial_points(posterior.data.x)
        self._model = Model(posterior.flat, posterior.likelihood, None, x)
        self._x = x
        self.draws = draws.clone()
        self.warnings = list(chain.warnings)
        self.prior = repr(posterior.prior)

    @property
    def names(self) -> list[str]:
        return self._model.names

    @property
    def likelihood(self) -> Likelihood:
        return self._model.likelihood

    def predict(self, x: Tensor | ArrayLike) -> Tensor:
        """What is expected at inputs x: the mean of numbers, the most probable of classes.

        Args:
            x: inputs, ``(M, ...)``.

        Returns:
            means, ``(M,)``, or ``(M, K)`` for targets of K numbers; of classes their labels 0 to K - 1, ``(M,)``.

        Raises:
            ValueError: as `Posterior.predict`.
        """
        if isinstance(self.likelihood, Bernoulli | Categorical):
            return self.predict_proba(x).argmax(1)
        return self._model.predict(self.draws, x).mean(0)

    def predict_proba(self, x: Tensor | ArrayLike) -> Tensor:
        """Probability of each class at inputs x, averaged over draws: ``(M, K)``, of two classes too.

        Raises:
            TypeError: if the targets are no classes.
            ValueError: as `Posterior.predict`.
        """
        if not isinstance(self.likelihood, Bernoulli | Categorical):
            raise TypeError(f"targets of {self.likelihood!r} are no classes: ask for predict, interval or targets")
        p = self._model.predict(self.draws, x).mean(0)
        return torch.stack([1 - p, p], dim=1) if isinstance(self.likelihood, Bernoulli) else p

    def interval(self, x: Tensor | ArrayLike, level: float = 0.9, seed: int | torch.Generator = 0) -> Tensor:
        """Bounds between which new targets at inputs x fall with this probability, noise included: ``(2, M)``.

        They are quantiles of some 4,000 drawn targets.

        Args:
            x: inputs, ``(M, ...)``.
            level: of the interval, which leaves as much out below as above.
            seed: of the targets.

        Raises:
            TypeError: if targets are classes, or several numbers each.
            ValueError: as `Posterior.predict`, or if the level is not between 0 and 1.
        """
        if isinstance(self.likelihood, Bernoulli | Categorical):
            raise TypeError("classes have no interval: ask for predict_proba")
        level = _check.number("level", level)
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level:g}")
        targets = self.targets(x, max(FEWEST_TARGETS, len(self.draws)), seed)
        if targets.ndim != 2:
            raise TypeError(f"targets have {targets.shape[2]} numbers each: take quantiles of targets(x, num)")
        return predictive_quantiles(targets, [(1 - level) / 2, (1 + level) / 2])

    def targets(self, x: Tensor | ArrayLike, num: int | None = None, seed: int | torch.Generator = 0) -> Tensor:
        """Targets that may be seen at inputs x, noise included: ``(num, M)``, or ``(num, M, K)``; of classes, labels.

        Args:
            x: inputs, ``(M, ...)``.
            num: how many, from draws in turn; one from each draw without it.
            seed: a number, or a generator, which is advanced.

        Raises:
            ValueError: as `Posterior.predict`.
        """
        num = len(self.draws) if num is None else _check.whole("num", num, 1)
        turn = _spread(num, len(self.draws)) if num < len(self.draws) else torch.arange(num) % len(self.draws)
        return self._model.predictive_draws(self.draws[turn], x, seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to a file that ends with a checksum, and replaces an existing one only when it is whole.

        Raises:
            OSError: if the file can't be written.
        """
        flat, likelihood = self._model.flat, self.likelihood
        y, trials = self._trials()
        about = {
            "bnn_utils": bnn_utils.__version__,
            "torch": torch.__version__,
            "module": _described(flat, self._x),
            "class": f"{type(flat.module).__module__}.{type(flat.module).__qualname__}",
            "trainable": list(flat.shapes),
            "likelihood": _plain(likelihood),
            "prior": self.prior,
            "warnings": self.warnings,
        }
        units = getattr(likelihood, "units", None)
        fields = {
            "about": json.dumps(about),
            "draws": self.draws,
            "state": dict(flat.module.state_dict()),
            "units": None if units is None else dict(units.state_dict()),
            "x": self._x,
            "y": y,
            "trials": trials,
        }
        parts = packing.pack(KIND, FORMAT, fields)
        files.write(files.to_path(path), *parts)

    def _trials(self) -> tuple[Tensor, Tensor]:
        """Targets at the trial points, and under the last draw means and log likelihoods there."""
        last = self.draws[-1:]
        y = self._model.predictive_draws(last, self._x, seed=0)[0]
        return y, _values(self._model, last, self._x, y)

    @classmethod
    def load(cls, path: str | os.PathLike[str], module: nn.Module | None = None, likelihood: Any = None) -> Predictor:
        """What `save` wrote, on the CPU. No code comes from the file.

        Args:
            path: of the file.
            module: where it is no nested Sequential of torch's own modules: one made as that which was kept, such as
                ``Net(5)``. Its numbers come from the file.
            likelihood: where it is none of this package's: that which was used.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file was not written by `save` or has changed since, a module or likelihood is needed, or
                what is given computes something else than what was kept.
        """
        name, content = files.to_path(path), files.content_of(path)
        why = files.problem_of_seal(content, KIND, FORMAT)
        if why:
            raise ValueError(f"{name!r} does not hold a predictor written by Predictor.save: {why}")
        packed = packing.Packed(content)
        about = json.loads(packed.value("about"))
        flat = FlatModule(_module(name, about, packed.value("state"), module))
        if list(flat.shapes) != about["trainable"]:
            _refuse(name, f"its network has the parameters {', '.join(about['trainable'])}", ", ".join(flat.shapes))
        self = cls.__new__(cls)
        self.draws, self._x = packed.value("draws"), packed.value("x")
        self.warnings, self.prior = about["warnings"], about["prior"]
        self._model = Model(flat, _likelihood(name, about, packed.value("units"), likelihood, flat), None, self._x)
        y, kept = packed.value("y"), packed.value("trials")
        found = _values(self._model, self.draws[-1:], self._x, y)
        off = (found - kept).abs().max().item() if found.shape == kept.shape else float("inf")
        if not off <= ROUNDING[flat.dtype] * max(1.0, kept.abs().max().item()):
            _refuse(name, "it holds what network and likelihood gave at some points", f"other values, off by {off:g}")
        return self

    def __repr__(self) -> str:
        num, kind = len(self.draws), type(self._model.flat.module).__name__
        return f"Predictor({num:,} draws of {kind} with {self.draws.shape[1]:,} parameters, {self.likelihood!r})"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _spread(num: int, of: int) -> Tensor:
    """Places of some, evenly spread: the last of each part."""
    return torch.arange(1, num + 1) * of // num - 1


def _trial_points(x: Tensor) -> Tensor:
    """Points like the data's, each put together from several of these where they have several numbers: ``(8, ...)``."""
    rows = x.flatten(1) if x.ndim > 1 else x[:, None]
    rng = np.random.default_rng(0)
    places = torch.from_numpy(rng.integers(len(x), size=(NUM_TRIALS, rows.shape[1]))).to(x.device)
    return rows.gather(0, places).reshape(NUM_TRIALS, *x.shape[1:])


@torch.no_grad()
def _values(model: Model, draw: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """What a model says under one draw ``(1, P)``: outputs and log likelihoods, in one row."""
    outputs = model.network.at(x)(draw[0])
    y = model.likelihood.targets(y, outputs)
    return torch.cat([outputs.flatten(), model.likelihood.log_probs(outputs, y).flatten()])


def _described(flat: FlatModule, x: Tensor) -> dict[str, Any] | None:
    """The network's structure, if a network made of it has the same parameters, and the same outputs at x."""
    structure = describe(flat.module)
    if structure is None:
        return None
    try:
        other = FlatModule(_with_state(build(structure), dict(flat.module.state_dict()), list(flat.shapes)))
        same = other.shapes == flat.shapes and torch.equal(other(flat.ravel(), x), flat(flat.ravel(), x))
    except (ValueError, RuntimeError):
        return None
    return structure if same else None


def _with_state(module: nn.Module, state: dict[str, Tensor], trainable: list[str]) -> nn.Module:
    module.load_state_dict(state, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trainable)
    return module


def _module(name: str, about: dict[str, Any], state: dict[str, Tensor], given: nn.Module | None) -> nn.Module:
    """The network with its numbers, made of the file's description or of what was given."""
    kind = about["class"]
    if given is None and about["module"] is None:
        raise ValueError(
            f"{name!r} holds a network of the class {kind}, which is not made of torch's modules one after the other, "
            "and no code comes from a file: say Predictor.load(path, module=...) with a module made as that was"
        )
    if given is None:
        return _with_state(build(about["module"]), state, about["trainable"])
    _check.instance("module", given, nn.Module, "a torch.nn.Module, an object and not its class")
    dtype = next(tensor.dtype for key, tensor in state.items() if key in about["trainable"])
    try:
        return _with_state(own_copy(given, torch.device("cpu"), dtype), state, about["trainable"])
    except RuntimeError as error:
        _refuse(name, f"it holds a network of the class {kind}", f"one that it doesn't fit: {error}")


def _plain(likelihood: Likelihood) -> dict[str, Any]:
    """A likelihood of this package by its name and its arguments; another one by its name alone."""
    kind = type(likelihood)
    arguments = {"scale": likelihood.scale, "link": likelihood.link} if type(likelihood) is Gaussian else {}
    return {"kind": kind.__name__, "arguments": arguments, "said": repr(likelihood), "is_ours": kind in OURS}


def _likelihood(
    name: str, about: dict[str, Any], units: dict[str, Tensor] | None, given: Any, flat: FlatModule
) -> Likelihood:
    kept = about["likelihood"]
    if given is None and not kept["is_ours"]:
        raise ValueError(
            f"{name!r} was kept with the likelihood {kept['said']}, which is none of this package's, and no code comes "
            "from a file: say Predictor.load(path, likelihood=...) with what was used"
        )
    if given is not None:
        return given if isinstance(given, Likelihood) else ByDistribution(given)
    kind = next(kind for kind in OURS if kind.__name__ == kept["kind"])
    arguments = dict(kept["arguments"])
    if units is not None:
        arguments["units"] = Standardise(torch.zeros(1, *units["mean"].shape, dtype=flat.dtype))
        arguments["units"].load_state_dict(units)
    return kind(**arguments)


def _refuse(name: str, kept: str, found: str) -> NoReturn:
    raise ValueError(f"{name!r} can't be used: {kept}, and what was given has {found}")
