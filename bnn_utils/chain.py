"""Chain: the draws of one run, with their statistics, timing and tables."""

from __future__ import annotations

import html
import math
import os
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_utils import _check, advice, diagnostics, files
from bnn_utils._arviz import arviz
from bnn_utils.coupling import copies, coupled, named
from bnn_utils.evidence import LADDER, Tempering, ladder_of
from bnn_utils.kernels.base import KEPT
from bnn_utils.posterior import Posterior

if TYPE_CHECKING:
    import pandas as pd
    from arviz import InferenceData
    from numpy.typing import ArrayLike

    from bnn_utils.batches import Batches
    from bnn_utils.kernels.base import Info, Kernel

FIRST_DRAWS = 256  # to which a function is applied; what it returns tells for how many there is room
FUNCTION_ELEMENTS = 2**21  # that a function returns at once: sixteen megabytes
COLUMN_ELEMENTS = 2**20  # of draws that tables copy at once: eight megabytes
LINE = 110  # characters of a warning in a line of the repr
QUANTILES = (2.5, 25.0, 50.0, 75.0, 97.5)  # percent, those of the original tutorial's table


class Part(NamedTuple):
    """Some of a chain's draws, or of a statistic in float64."""

    chains: slice
    draws: slice
    values: Tensor  # (chains, draws, ...), on the CPU where it is a statistic


@dataclass(frozen=True, eq=False, repr=False)
class Chain:
    """Draws of one run of `sample`, or drawn elsewhere (`from_draws`, `from_arviz`).

    Attributes:
        draws: shape ``(chains, draws, D)``; ``(chains, draws, 0)`` of a run with ``keep_draws=False``.
        stats: ArviZ name -> values of shape ``(chains, draws)``: lp, acceptance_rate, is_accept, n_steps, step_size,
            energy, energy_error, diverging; of draws from elsewhere, lp and what came with them.
        names: label of each parameter, D of them; none where theta was not kept.
        kernel: what drew them, as its warm-up left it: ``sample(posterior, chain.kernel, ...)`` draws on without one.
            Batches adapt each on their own, and of several this is the kernel of the first. In words (a str) where
            draws come from elsewhere or from a file, or runs of different kernels were merged.
        gradient: how the gradient was computed: "closed-form", "closed-form, compiled" or "autograd"; "elsewhere" for
            draws from elsewhere.
        device: where it drew, such as "cpu".
        seed: seed of the run, with which it can be made again; None if a generator was passed, the draws come from
            elsewhere, or runs were merged.
        warmup: transitions per chain in which the kernel adapted, and which were thrown away.
        wall_time: seconds from the call of `sample` to its return; NaN where it is not known.
        compile_time: seconds of it spent on compilation.
        sampling_time: seconds of it that the draws took, by which ESS per second is computed: with the transitions that
            thinning left out and what `kept` took, without the warm-up and those that were dropped; NaN where it is not
            known.
        tempering: of replica exchange, what happened at all temperatures; the draws are those of the posterior.
        thinning: transitions from one draw to the next. Statistics are those of the one that led to the draw.
        dropped: transitions per chain after the warm-up that `drop` threw away too.
        run: what `extend` goes on with; None for draws from elsewhere or from a file, thinned, dropped or merged.
        kept: values of the functions that `sample` was told to ``keep``, by name, shape ``(chains, draws, ...)``.
    """

    draws: Tensor
    stats: Mapping[str, Tensor]
    names: list[str]
    kernel: Kernel | str
    gradient: str
    device: str
    seed: int | None
    warmup: int
    wall_time: float
    compile_time: float
    sampling_time: float
    tempering: Tempering | None = None
    thinning: int = 1
    dropped: int = 0
    run: Batches | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"run": None}  # which may hold processes

    @classmethod
    def of_run(
        cls,
        info: Info,
        ladders: Sequence[tuple[Tensor, Tensor] | None],
        sizes: Sequence[int],
        *,
        thinning: int,
        **facts: Any,
    ) -> Chain:
        """What a run has recorded, ``(chains, draws, ...)``, as a chain.

        Args:
            ladders: for each batch its temperatures and step sizes, None where there are none.
            sizes: how many chains each batch has.
            facts: the other attributes.
        """
        kept = {name.removeprefix(KEPT): values for name, values in info.stats.items() if name.startswith(KEPT)}
        of_kernel = {name: values for name, values in info.stats.items() if not name.startswith(KEPT)}
        stats = {name: values for name, values in of_kernel.items() if not name.startswith(LADDER)}
        tempering = Tempering.of_run(of_kernel, ladders, sizes, thinning)
        stats = {"lp": info.log_prob, **stats}
        if not info.theta.shape[-1]:
            facts["names"] = []
        return cls(info.theta, stats, tempering=tempering, thinning=thinning, kept=kept, **facts)

    @classmethod
    def from_draws(
        cls,
        draws: ArrayLike | Tensor,
        posterior: Posterior,
        sampler: str = "unknown",
        seconds: float = math.nan,
        stats: Mapping[str, ArrayLike | Tensor] | None = None,
    ) -> Chain:
        """Draws made elsewhere, as if `sample` had made them.

        Args:
            draws: of ``posterior``, shape ``(chains, draws, D)``.
            sampler: what made them, in words.
            seconds: how long that took, for ESS per second.
            stats: ArviZ name -> values of shape ``(chains, draws)``, where known. ``lp`` is computed here, every
                constant kept, whatever the other sampler called the log density.

        Raises:
            TypeError: if an argument is of another type.
            ValueError: if the shape is another one, a value is NaN or infinite, or chains are copies of each other.
        """
        _check.posterior(posterior)
        draws = _check.tensor("draws", draws).detach()
        _check.instance("sampler", sampler, str, "a str, what made the draws in words")
        seconds = float(_check.number("seconds", seconds))
        if seconds < 0:
            raise ValueError(f"seconds must not be negative, got {seconds:g}")
        _check.instance("stats", stats, (Mapping, type(None)), "a mapping from names to values")
        if draws.ndim != 3 or draws.shape[-1] != posterior.dim or draws.numel() == 0:
            raise ValueError(
                f"draws have shape {tuple(draws.shape)}, but this posterior's are (chains, draws, {posterior.dim}); a "
                "single chain is draws[None]"
            )
        draws = draws.to(dtype=posterior.dtype, device=posterior.device)
        bad = (~draws.isfinite()).nonzero()
        if len(bad):
            raise ValueError(f"draws hold {len(bad)} NaN or infinite values, the first at {bad[0].tolist()}")
        _check_copies(draws)
        for name in stats or {}:
            _check.instance("the name of a statistic", name, str, "a str")
        known = {name: _check.tensor(f"the statistic {name!r}", values) for name, values in (stats or {}).items()}
        for name, values in known.items():
            if values.shape != draws.shape[:2]:
                raise ValueError(
                    f"the statistic {name} has shape {tuple(values.shape)}, expected {tuple(draws.shape[:2])}"
                )
        if posterior.num_datasets > 1:
            raise ValueError(
                f"there are {posterior.num_datasets} data sets: pass posterior.dataset(k), that of the draws"
            )
        with torch.no_grad():
            lp = posterior.log_prob(draws.flatten(0, 1)).view(draws.shape[:2])
        return cls(
            draws=draws,
            stats=known | {"lp": lp},
            names=posterior.names,
            kernel=sampler,
            gradient="elsewhere",
            device=str(draws.device),
            seed=None,
            warmup=0,
            wall_time=seconds,
            compile_time=0.0,
            sampling_time=seconds,
        )

    @classmethod
    def from_arviz(
        cls,
        data: InferenceData,
        posterior: Posterior,
        variable: str = "theta",
        sampler: str = "unknown",
        seconds: float = math.nan,
    ) -> Chain:
        """Draws that another package made and ArviZ holds, with those of their statistics that are one number a draw.

        Args:
            data: with the flat vectors in ``data.posterior[variable]``, dimensions chain, draw and one more.

        Raises:
            ValueError: if there is no such variable, or its draws don't fit the posterior.
        """
        if not callable(getattr(data, "groups", None)):
            raise TypeError(
                f"data must be ArviZ's InferenceData, as by arviz.from_netcdf(path), got {_check.told(data)}"
            )
        groups = data.groups()
        names = list(data["posterior"].data_vars) if "posterior" in groups else []
        if variable not in names:
            raise ValueError(
                f"there is no variable {variable!r} in the posterior group; it holds "
                f"{', '.join(map(str, names)) or 'nothing'}: name the one that is the flat vector"
            )
        stats = data["sample_stats"].data_vars if "sample_stats" in groups else {}
        single = {str(name): values for name, values in stats.items() if values.dims == ("chain", "draw")}
        theta = data["posterior"][variable].to_numpy()
        return cls.from_draws(theta, posterior, sampler, seconds, {k: v.to_numpy() for k, v in single.items()})

    @classmethod
    def merge(cls, chains: Sequence[Chain]) -> Chain:
        """Runs of the same posterior as one chain: theirs, one after the other, with the statistics that all have.

        So with what was kept of them beside the draws, or in their place.

        Times are sums, as of runs one after the other; kernels, gradients and devices that differ are listed, in words.

        Raises:
            ValueError: if there is none; if they differ in their parameters, dtype, device, number of draws, warm-up,
                draws that were dropped or thinning, in the shape of what was kept or in whether theta was, or some have
                `tempering` and others none, or another number of temperatures, or another hot end; if two have the same
                seed, or chains are copies of each other.
        """
        if not chains:
            raise ValueError("there is nothing to merge: pass a list of chains")
        first = chains[0]
        kept = [name for name in first.kept if all(name in chain.kept for chain in chains)]
        if len({chain.dim == 0 for chain in chains}) > 1:
            raise ValueError("chains to merge must all have theta, or none: some were drawn with keep_draws=False")
        for other in chains:
            for mine, theirs in zip_longest(first.names, other.names):
                if mine != theirs:
                    raise ValueError(
                        f"chains to merge are of different networks: where one has the parameter {mine}, another has "
                        f"{theirs}"
                    )
        for what, of in {
            "dtype": lambda chain: chain.draws.dtype,
            "the device of their draws": lambda chain: chain.draws.device,
            "the number of draws": lambda chain: chain.num_draws,
            "warmup": lambda chain: chain.warmup,
            "the transitions that were dropped": lambda chain: chain.dropped,
            "thinning": lambda chain: chain.thinning,
            "the number of temperatures": lambda chain: chain.tempering and chain.tempering.replica.shape[-1],
            "the hot end of their temperatures": lambda chain: chain.tempering and chain.tempering.hot_end,
            "the shapes of what was kept": lambda chain: {name: (*chain.kept[name].shape[2:],) for name in kept},
        }.items():
            values = [of(chain) for chain in chains]
            odd = next((k for k, value in enumerate(values) if value != values[0]), None)
            if odd is not None:
                raise ValueError(
                    f"chains to merge differ in {what}: number 0 has {values[0]}, number {odd} has {values[odd]}; "
                    "where that does not matter, make it the same by dataclasses.replace"
                )
        seeds = [chain.seed for chain in chains if chain.seed is not None]
        twice = next((seed for k, seed in enumerate(seeds) if seed in seeds[:k]), None)
        if twice is not None:
            raise ValueError(
                f"two of the runs have the seed {twice}: they drew the same random numbers and are not independent; "
                "leave the seed out, or give each run another"
            )
        draws = torch.cat([chain.draws for chain in chains])
        _check_copies(draws if first.dim else torch.cat([chain.stats["lp"] for chain in chains]))
        tempering, temperings = None, [chain.tempering for chain in chains if chain.tempering is not None]
        if temperings:  # of all chains, as seen above
            ladders = [{name: values for name, _, values in each.items()} for each in temperings]
            together = {name: torch.cat([ladder[name] for ladder in ladders]) for name in ladders[0]}
            tempering = Tempering.of_arrays(together, first.thinning)
        shared = [name for name in first.stats if all(name in chain.stats for chain in chains)]
        is_one_kernel = all(chain.kernel is first.kernel for chain in chains)
        times = ("wall_time", "compile_time", "sampling_time")

        def listed(name: str) -> str:
            return "; ".join(dict.fromkeys(str(getattr(chain, name)) for chain in chains))

        return cls(
            draws=draws,
            stats={name: torch.cat([chain.stats[name] for chain in chains]) for name in shared},
            names=first.names,
            kernel=first.kernel if is_one_kernel else listed("kernel"),
            gradient=listed("gradient"),
            device=listed("device"),
            seed=first.seed if len(chains) == 1 else None,
            warmup=first.warmup,
            tempering=tempering,
            thinning=first.thinning,
            dropped=first.dropped,
            kept={name: torch.cat([chain.kept[name] for chain in chains]) for name in kept},
            **{name: sum(getattr(chain, name) for chain in chains) for name in times},
        )

    def parts(self, name: str) -> Iterator[Part]:
        """Everything of one kind, in parts; nothing where there is no such thing.

        Args:
            name: "draws"; of a statistic, in float64 on the CPU, such as "lp"; or "kept_p" for ``chain.kept["p"]``.
        """
        if name == "draws":
            values = self.draws if self.dim else None
        elif name.startswith(KEPT):
            values = self.kept.get(name.removeprefix(KEPT))
        else:
            values = advice.statistic(self, name)
        if values is not None:
            yield Part(slice(0, self.num_chains), slice(0, self.num_draws), values)

    def expectation(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean of a function of theta over all draws, some at a time: also of more than memory has room for.

        Args:
            function: from draws ``(S, D)`` to ``(S, ...)``, such as ``lambda theta: posterior.predict(theta, x)``, of
                which this is the predictive mean.

        Returns:
            shape ``(...)``, in the dtype of the function's values.

        Raises:
            TypeError: if the function is none, or its values are no tensor.
            ValueError: if it does not return one row for each draw, or theta was not kept.
        """
        self._check_draws()
        if not callable(function):
            raise TypeError(f"expectation takes a function of theta (S, D), got {_check.told(function)}")
        total: Any = 0.0  # a tensor, once there are values
        count, most = 0, FIRST_DRAWS
        for part in self.parts("draws"):
            rest = part.values.flatten(0, 1)
            while len(rest):
                theta, rest = rest[:most], rest[most:]
                values = _check.tensor("what the function returns", function(theta)).detach()
                if values.ndim == 0 or len(values) != len(theta):
                    raise ValueError(
                        f"the function made values of shape {tuple(values.shape)} from {len(theta)} draws: it must "
                        "return one row for each"
                    )
                total, count = total + values.double().sum(0), count + len(theta)
                most = max(1, FUNCTION_ELEMENTS // max(1, values[0].numel()))
        return (total / count).to(values.dtype if values.is_floating_point() else torch.float64)

    @property
    def num_chains(self) -> int:
        return self.draws.shape[0]

    @property
    def num_draws(self) -> int:
        """Draws per chain."""
        return self.draws.shape[1]

    @property
    def dim(self) -> int:
        return self.draws.shape[2]

    def extend(self, num: int, progress: bool = True) -> Chain:
        """With ``num`` more draws per chain, which are to the bit those that a longer run would have made.

        This chain stays as it is, and may be extended again, with the same result. One that was interrupted goes on
        from its last draw.

        Args:
            num: draws per chain, at least 1.
            progress: show a progress bar.

        Raises:
            ValueError: if it is not known how the chain goes on: of draws from elsewhere or from a file, and of chains
                that were thinned, dropped or merged.
        """
        num, progress = _check.whole("num", num, 1), _check.flag("progress", progress)
        if self.run is None:
            raise ValueError(
                "it is not known how this chain goes on: only what sample returns can be extended, in the same process "
                "and before it is thinned, dropped from or merged; start another run at its last draws, "
                "init=chain.draws[:, -1], with chain.kernel"
            )
        return self.run.extend(num, progress)

    @property
    def few(self) -> Chain:
        """As many of the draws as tables look at together: all that are in memory."""
        return self

    @cached_property
    def warnings(self) -> list[str]:
        """What to know before believing the chain: short sentences, each on what was seen and what to do about it.

        They are about divergences, acceptance, energies, step sizes, the warm-up, temperatures, and R-hat and ESS of
        ``lp``; see `bnn_utils.advice` for the limits and their sources. Parameters are not looked at, for which
        `summary` is, nor predictions, for which `diagnostics.convergence` is: an empty list is no proof.

        They are computed once, when first asked for or shown.
        """
        return advice.warnings(self)

    def thin(self, k: int) -> Chain:
        """Every k-th draw, the last of each k: draws k, 2k, ..., as a run that was thinned from the start keeps them.

        The statistics are those of the transitions that are kept: ``n_steps`` tells nothing of the steps in between,
        ``diverging`` nothing of their divergences. ``sampling_time`` stays, as those in between had to be made too.

        Raises:
            TypeError: if k is no whole number.
            ValueError: if it is less than 1, or larger than the number of draws, which leaves none.
        """
        k = _check.whole("k", k, 1)
        if k > self.num_draws:
            raise ValueError(f"thin({k}) leaves none of {self.num_draws} draws: k may be at most {self.num_draws}")
        return self._part(slice(k - 1, None, k))

    def drop(self, n: int) -> Chain:
        """Without the first n draws of each chain, which adds ``n * thinning`` transitions to `dropped`.

        ``sampling_time`` is that of the draws which are left: their share, as if all had taken equally long.

        Raises:
            TypeError: if n is no whole number.
            ValueError: if it is negative, or leaves no draw.
        """
        n = _check.whole("n", n, 0)
        if n >= self.num_draws:
            raise ValueError(f"drop({n}) leaves none of {self.num_draws} draws: n may be at most {self.num_draws - 1}")
        time = self.sampling_time * (self.num_draws - n) / self.num_draws
        return self._part(slice(n, None, 1), dropped=self.dropped + n * self.thinning, sampling_time=time)

    def _part(self, part: slice, **changes: Any) -> Chain:
        """Some of the draws, with what belongs to them; copies, so that the others need no memory."""
        thinning, tempering = part.step * self.thinning, self.tempering
        if tempering is not None:
            of_draws = {name: values for name, dims, values in tempering.items() if "draw" in dims}
            kept = {name: values[:, part].clone() for name, values in of_draws.items()}
            tempering = replace(tempering, thinning=thinning, **kept)
        stats = {name: values[:, part].clone() for name, values in self.stats.items()}
        kept = {name: values[:, part].clone() for name, values in self.kept.items()}
        draws = self.draws[:, part].clone()
        arrays: dict[str, Any] = {"draws": draws, "stats": stats, "kept": kept, "tempering": tempering}
        return replace(self, **arrays, thinning=thinning, run=None, **changes)

    def best_draw(self) -> tuple[int, int]:
        """(chain, draw) of the highest log density; ``chain.draws[chain.best_draw()]`` is its theta."""
        return divmod(int(self.stats["lp"].argmax()), self.num_draws)

    def summary(self) -> pd.DataFrame:
        """Moments and diagnostics of every parameter, one row each, under ArviZ's names.

        Columns: mean, sd, mcse (of the mean), ess_bulk, ess_tail, r_hat (rank-normalised split R-hat, the larger of
        bulk and tail; Vehtari et al. 2021) and ess_per_sec (bulk ESS per second of sampling).

        Warns if chains move together, as runs with the same random numbers do: then all but mean and sd is wrong.

        Raises:
            ValueError: if theta was not kept.
        """
        import pandas as pd

        self._check_draws()
        together = coupled(self.draws)
        if together:
            warnings.warn(
                f"{named(together)} move together, as runs with the same random numbers do: errors, ESS and R-hat take "
                "them to be independent and are wrong; give each run a seed of its own, or none",
                RuntimeWarning,
                stacklevel=2,
            )
        found = diagnostics.diagnose(self.draws)
        mean, sd = torch.empty(2, self.dim, dtype=torch.float64)
        for places, part in self._columns():
            mean[places] = part.mean(0)
            sd[places] = part.sub_(mean[places].to(part)).square_().sum(0).div(len(part) - 1).sqrt()
        columns = {
            "mean": mean,
            "sd": sd,
            "mcse": found.mcse,
            "ess_bulk": found.ess_bulk,
            "ess_tail": found.ess_tail,
            "r_hat": found.r_hat,
            "ess_per_sec": found.ess_bulk / self.sampling_time,
        }
        index = pd.Index(self.names, name="parameter")
        return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()}, index=index)

    def quantiles(self) -> pd.DataFrame:
        """Quantiles of every parameter over all chains, one row each, one column per percentage.

        Raises:
            ValueError: if theta was not kept.
        """
        import pandas as pd

        self._check_draws()
        values = np.empty((self.dim, len(QUANTILES)))
        for places, part in self._columns():
            values[places] = np.percentile(part.cpu().numpy(), QUANTILES, axis=0).T
        index = pd.Index(self.names, name="parameter")
        return pd.DataFrame(values, index=index, columns=[f"{q:g}%" for q in QUANTILES])

    def _check_draws(self) -> None:
        if self.dim == 0:
            raise ValueError(
                "theta was not kept (keep_draws=False), so that nothing can be said of it; for what was kept "
                f"({', '.join(self.kept)}) there is diagnostics.diagnose(chain.kept[name])"
            )

    def _columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Draws of all chains ``(chains * draws, d)`` in float64, d parameters at a time, in memory that is reused."""
        draws = self.draws.flatten(0, 1)
        width = max(1, COLUMN_ELEMENTS // len(draws))
        memory = draws.new_empty(min(width, self.dim) * len(draws), dtype=torch.float64)
        for start in range(0, self.dim, width):
            part = draws[:, start : start + width]
            yield slice(start, start + part.shape[1]), memory[: part.numel()].view(part.shape).copy_(part)

    def to_arviz(self, log_likelihoods: Tensor | None = None) -> InferenceData:
        """ArviZ's InferenceData: ``theta`` (chain, draw, parameter) in posterior, the statistics in sample_stats.

        What was kept is in posterior too, each under its name, with dimensions chain, draw, <name>_dim_0 and so on.
        Of replica exchange, sample_stats also holds the fields of `Tempering`, with a dimension ``temperature``.

        Args:
            log_likelihoods: shape ``(chains, draws, N)``, by ``posterior.log_likelihoods(chain.draws)``; with them the
                group log_likelihood is there, which ``arviz.loo`` and ``arviz.compare`` need.

        Raises:
            ValueError: if the log likelihoods are of other draws, or a statistic has a name that is none for ArviZ.
        """
        if log_likelihoods is not None:
            log_likelihoods = _check.tensor("log_likelihoods", log_likelihoods)
        if log_likelihoods is not None and log_likelihoods.shape[:-1] != self.draws.shape[:-1]:
            raise ValueError(
                f"log_likelihoods has shape {tuple(log_likelihoods.shape)}, expected {(*self.draws.shape[:-1], 'N')}: "
                "pass posterior.log_likelihoods(chain.draws)"
            )
        problem = files.problem_of_names(self.stats) or files.problem_of_names(self.kept, "a function in keep")
        if problem:
            raise ValueError(problem)
        theta = {"theta": self.draws} if self.dim else {}
        data = arviz().from_dict(
            posterior={name: files.array(values) for name, values in {**theta, **self.kept}.items()},
            log_likelihood=None if log_likelihoods is None else {"y": files.array(log_likelihoods)},
            sample_stats={name: files.array(value) for name, value in self.stats.items()},
            coords={"parameter": self.names} if theta else {},
            dims={"theta": ["parameter"]} if theta else {},
            posterior_attrs=files.attributes(self),
        )
        if self.tempering is not None:
            # Their names have a beginning of their own, because acceptance_rate is also a statistic of the chain.
            data["sample_stats"] = data["sample_stats"].assign(
                {f"{LADDER}{name}": (dims, files.array(value)) for name, dims, value in self.tempering.items()}
            )
        return data

    def save(self, path: str | PathLike[str]) -> None:
        """Write the chain to a netCDF file, which holds data and no code, and which ``arviz.from_netcdf`` opens too.

        An existing file is replaced once the new one is on the disk; until then, and whatever fails, it stays as it
        was. The file ends with a checksum, by which `load` knows that it is whole. It is made in memory, which takes up
        to twice as much as the draws do, beside them.

        Args:
            path: in a folder that may be written to. A link is followed, ``~`` is the home folder.

        Raises:
            OSError: if the file can't be written, as on a full disk.
            ValueError: if the chain could not be read back as it is: with NaN or infinite draws, without ``lp``, with
                values of other shapes, or with names that netCDF or `Chain` keep for something else.
        """
        files.save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Chain:
        """Read a chain that `save` wrote, or the draws so far of a run into a folder, ``sample(..., store=path)``.

        Its draws are on the CPU. A run may go on meanwhile, in another process too: what is read is all up to its last
        checkpoint.

        Raises:
            FileNotFoundError: if there is no such file or folder.
            ValueError: if the file is none of `save`'s or the folder no store, if it was changed or damaged since, or
                if a run has no draws yet. What another program wrote comes home by
                ``Chain.from_arviz(arviz.from_netcdf(path), posterior)``.
        """
        if os.path.isdir(files.to_path(path)):
            return cls._load_folder(path)
        chain = cls(**files.load(path))
        problem = files.problem(chain)
        if problem:
            raise ValueError(f"{os.fspath(path)!r} {files.NOT_OURS}: {problem}")
        return chain

    @classmethod
    def _load_folder(cls, path: str | PathLike[str]) -> Chain:
        from bnn_utils.stored import chain_of
        from bnn_utils.stores import open_for_reading

        store = open_for_reading(path)
        facts, batches = store.facts, range(len(store.sizes))
        if not all(map(store.count, batches)):
            raise ValueError(f"there are no draws of all chains in {os.fspath(path)!r} yet")
        states = [checkpoint and checkpoint.state for checkpoint in map(store.checkpoint, batches)]
        sampling_time, wall_time = (
            max((getattr(state, name) for state in states if state is not None), default=math.nan)
            for name in ("sampling_time", "wall_time")
        )
        return chain_of(
            store,
            None,
            [ladder_of(state and state.state) for state in states],
            names=facts["names"],
            kernel=facts["sampler"] + f", adapted in {facts['warmup']:,} transitions" * bool(facts["warmup"]),
            gradient=facts["gradient"],
            device=facts["device"],
            seed=int(facts["seed"]) if facts["seed"].lstrip("-").isdigit() else None,
            warmup=facts["warmup"],
            wall_time=wall_time,
            compile_time=0.0,
            sampling_time=sampling_time,
            thinning=facts["thin"],
        )

    def _facts(self) -> dict[str, str]:
        chains, draws, dim = self.num_chains, self.num_draws, self.dim
        known = {
            "acceptance_rate": lambda total: f"{total / (chains * draws):.3f} on average",
            "diverging": lambda total: f"{int(total)} divergences",
        }
        totals = {name: [part.values.sum().item() for part in self.parts(name)] for name in known}
        acceptance = ", ".join(known[name](sum(of_parts)) for name, of_parts in totals.items() if of_parts)
        compiling = f"compiling {self.compile_time:.2f} s, " if self.compile_time else ""
        thinned = f", one of {self.thinning:,} transitions each," if self.thinning > 1 else ""
        dropped = f" and {self.dropped:,} that were dropped" if self.dropped else ""
        duration = f"{self.wall_time:.2f} s, {compiling}sampling {self.sampling_time:.2f} s"
        facts = {
            "sampler": str(self.kernel),
            "gradient": f"{self.gradient}, {str(self.few.draws.dtype).removeprefix('torch.')} on {self.device}",
            "chains": f"{chains}",
            "draws per chain": f"{draws:,}{thinned} after {self.warmup:,} of warmup{dropped}",
            "wall duration": "not known" if math.isnan(self.wall_time) else duration,
            "acceptance rate": acceptance or "not known",
            "parameters": f"{dim}: {self.names[0]}, ..., {self.names[-1]}" if dim else "not kept",
            "internals": ", ".join(self.stats),
            "seed": "not known: taken from a generator, elsewhere, or several" if self.seed is None else f"{self.seed}",
        }
        few = self.few
        if few.tempering is not None:
            facts["tempering"] = str(few.tempering)
        if few.kept:
            shapes = {name: ["chains", "draws", *map(str, values.shape[2:])] for name, values in few.kept.items()}
            facts["kept"] = ", ".join(f"{name} ({', '.join(shape)})" for name, shape in shapes.items())
        return facts

    def __repr__(self) -> str:
        facts = self._facts()
        width = max(map(len, facts))
        lines = ["Chain", *(f"  {name:<{width}}  {value}" for name, value in facts.items())]
        for number, warning in enumerate(self.warnings):
            lines += [] if number else ["  warnings"]
            lines += textwrap.wrap(
                warning, LINE, initial_indent="    - ", subsequent_indent="      ", max_lines=3, placeholder=" ..."
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        facts = {name: html.escape(value) for name, value in self._facts().items()}
        if self.warnings:
            facts["warnings"] = "<br>".join(map(html.escape, self.warnings))
        rows = "".join(
            f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{value}</td></tr>'
            for name, value in facts.items()
        )
        return f"<table><caption>Chain</caption><tbody>{rows}</tbody></table>"


def _check_copies(draws: Tensor) -> None:
    pairs = copies(draws)
    if pairs:
        raise ValueError(
            f"{named(pairs)} hold the same draws, wholly or in part: as independent chains they would count twice; "
            "pass each run once, and runs with seeds of their own"
        )
