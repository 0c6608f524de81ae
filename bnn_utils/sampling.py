"""sample(): the one front door to all engines."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bnn_utils import _check
from bnn_utils.chain import Chain
from bnn_utils.compiled import SECONDS_TO_COMPILE
from bnn_utils.engines import ENGINES
from bnn_utils.engines.transition import Kernel
from bnn_utils.evidence import Tempering
from bnn_utils.hmc import HMC, HMCInfo
from bnn_utils.posterior import Posterior
from bnn_utils.random import as_generator, fresh_seed, spawn
from bnn_utils.runs import Batch, Draws, Job, ParallelRun, Progress, Run
from bnn_utils.tempering import ReplicaExchange


def sample(
    posterior: Posterior,
    kernel: Kernel,
    num_samples: int,
    num_chains: int = 1,
    warmup: int = 0,
    init: Tensor | None = None,
    seed: int | torch.Generator | None = None,
    engine: str = "builtin",
    progress: bool = True,
    compile: bool | Literal["auto"] = "auto",
    batch_size: int | None = None,
    workers: int = 1,
) -> Chain:
    """Draw chains from a posterior.

    With one chain and the same seed, both engines consume the same random numbers: a start from the prior (without
    ``init``), then per transition the step size if it varies, the momentum and one uniform. (After a transition whose
    energy is not finite, hamiltorch skips the uniform, and the two part.) On the CPU, torch runs on one thread
    meanwhile, unless one batch is large enough to gain from more.

    During ``warmup`` the kernel adapts to the posterior: HMC its step size, which from then on varies at random, and
    the diagonal of its mass, ChEES its trajectory length too, replica exchange its temperatures and a step size for
    each. What it was given is where it begins; a mass or a jitter that it was given is kept. Without a warm-up nothing
    adapts. Chains of one batch share what is learned.

    The draws depend on the seed and on how chains are grouped into batches, each of which has a random stream spawned
    from the seed; they do not depend on the number of workers. Rounding differs between the compiled gradient and the
    uncompiled one, so draws do too; which one "auto" takes depends on sizes alone.

    Several threads may sample one posterior at the same time. Workers do not run the main program again, on Windows
    neither, so that a script needs no ``if __name__ == "__main__":`` for them.

    Args:
        posterior: what to draw from.
        kernel: such as ``HMC(step_size=0.05, num_steps=4)``, ``ChEES()`` or ``ReplicaExchange(HMC(0.05, 8))``.
        num_samples: draws per chain.
        num_chains: how many chains; lanes of one batch in the built-in engine.
        warmup: transitions per chain that adapt the kernel and are thrown away.
        init: where to start, ``(D,)`` for all chains or ``(C, D)``; without it, each chain at a prior draw of its own.
        seed: a number, or a generator on the posterior's device, which is advanced. Without it every call has a new
            number, so that runs are independent; it is ``chain.seed``, and with it the run can be made again.
        engine: "builtin" or "hamiltorch", which takes HMC only.
        progress: show a progress bar.
        compile: compile the gradient: True, False, or "auto", where that is predicted to take less time than it saves.
            For small networks on the CPU only; some 15 seconds, 5 from the second process on.
        batch_size: chains per batch; without it all are one batch.
        workers: processes that the batches are dealt out to.

    Returns:
        the chain. After an interruption (Ctrl-C, the stop button) it holds the draws made so far, with a warning.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for a count, a start, a mass or an engine that cannot be used; the message says what to change.
        ModuleNotFoundError: if the engine is not installed; the message says how to get it.
        Exception: whatever the network raises while sampling, with the draws made so far as its attribute ``chain``.
    """
    called = time.perf_counter()
    check_what(posterior, kernel)
    num_samples, num_chains = _check.whole("num_samples", num_samples, 1), _check.whole("num_chains", num_chains, 1)
    warmup, workers = _check.whole("warmup", warmup, 0), _check.whole("workers", workers, 1)
    progress = _check.flag("progress", progress)
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; there are {', '.join(map(repr, ENGINES))}")
    if engine == "hamiltorch" and not isinstance(kernel, HMC):
        raise ValueError(f"hamiltorch draws by HMC only, and this kernel is {kernel}: leave engine='builtin'")
    kernel = _fit_mass(kernel, posterior)
    if init is not None:
        init = _fit_init(posterior, _check.tensor("init", init), num_chains)
        num_chains = len(init)
    _check.memory(
        f"{num_samples=} draws of {num_chains} chains",
        num_chains * num_samples * numbers_per_draw(kernel, posterior) * posterior.dtype.itemsize,
        posterior.device,
    )
    batch_size = num_chains if batch_size is None else _check.whole("batch_size", batch_size, 1)
    sizes = [len(part) for part in torch.arange(num_chains).split(batch_size)]
    if posterior.num_datasets > 1 and len(sizes) > 1:
        raise ValueError(
            f"a posterior of {posterior.num_datasets} data sets is sampled in one batch: leave batch_size out, or take "
            "some of the data sets at a time"
        )
    if workers > 1 and len(sizes) == 1:
        raise ValueError(
            f"workers={workers} share whole batches, and {num_chains} chains in one batch leave nothing to share: "
            f"add batch_size={-(-num_chains // workers)}" + (" and more chains" if num_chains == 1 else "")
        )
    seed = fresh_seed() if seed is None else seed
    streams = [as_generator(seed, posterior.device)]
    if len(sizes) > 1:
        streams = spawn(seed, len(sizes), posterior.device)
    starts = [None] * len(sizes) if init is None else init.split(batch_size)
    job = Job(
        posterior,
        kernel,
        engine,
        _will_compile(
            compile,
            posterior,
            engine,
            num_chains * kernel.lanes_per_chain,
            (warmup + num_samples) * int(kernel.num_steps),
        ),
        warmup,
        num_samples,
        [
            Batch(posterior.sample_prior(size, stream) if start is None else start, stream)
            for size, start, stream in zip(sizes, starts, streams, strict=True)
        ],
    )
    _check_starts(posterior, torch.cat([batch.theta for batch in job.batches]))
    run = Run(job) if workers == 1 else ParallelRun(job, workers)

    def chain() -> Chain:
        batches = run.draws()
        info = HMCInfo(*map(torch.cat, zip(*(batch.info for batch in batches), strict=True)))
        return Chain(
            draws=torch.cat([batch.theta for batch in batches]),
            stats={"lp": torch.cat([batch.log_prob for batch in batches]), **info.statistics()},
            names=posterior.flat.names,
            kernel=repr(batches[0].kernel),
            engine=f"{engine}, compiled" if run.is_compiled else engine,
            device=str(posterior.device),
            seed=None if isinstance(seed, torch.Generator) else _check.seed(seed),
            warmup=warmup,
            wall_time=time.perf_counter() - called,
            compile_time=run.compile_time,
            sampling_time=run.sampling_time,
            tempering=_tempering(batches) if isinstance(kernel, ReplicaExchange) else None,
        )

    try:
        with _Bar(job, progress) as bar:
            run.go(bar.show)
    except KeyboardInterrupt:
        if not run.num_draws:
            raise
        warnings.warn(
            f"interrupted: the chain holds the {run.num_draws:,} draws made so far, of {num_samples:,}",
            RuntimeWarning,
            stacklevel=2,
        )
    except Exception as error:
        if run.num_draws:
            error.chain = chain()
            error.add_note(f"The {run.num_draws:,} draws made before this error are in its attribute 'chain'.")
        raise
    return chain()


class _Bar:
    """A progress bar with transitions per second, acceptance and divergences."""

    def __init__(self, job: Job, progress: bool) -> None:
        # tqdm's bar for notebooks does not look at this variable of tqdm's.
        silenced = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
        self.bar = tqdm(total=job.num_transitions, unit="draw", disable=silenced or not progress)
        self.show = None if self.bar.disable else self._show
        if job.compile and self.show:
            self.bar.set_postfix_str(f"compiling, some {SECONDS_TO_COMPILE:.0f} s unless it was done before")

    def _show(self, progress: Progress) -> None:
        self.bar.set_postfix_str(
            f"acceptance {progress.acceptance:.2f}, divergences {progress.divergences}", refresh=False
        )
        self.bar.update(progress.done - self.bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()


def _will_compile(
    compile: bool | Literal["auto"], posterior: Posterior, engine: str, num_lanes: int, num_gradients: int
) -> bool:
    _check.choice("compile", compile, (True, False, "auto"))
    if engine != "builtin":
        if compile is True:
            raise ValueError(f"compile=True is for engine='builtin', not for {engine!r}; leave it at 'auto'")
        return False
    if compile is True:
        posterior.check_can_compile()
    return compile is True or (compile == "auto" and posterior.compilation_pays(num_lanes, num_gradients))


def check_what(posterior: Posterior, kernel: Kernel) -> None:
    """Raise unless this is a posterior, and a kernel to sample from it."""
    _check.posterior(posterior)
    wanted = "HMC, ChEES or ReplicaExchange, such as HMC(step_size=0.05, num_steps=4)"
    _check.instance("kernel", kernel, get_args(Kernel), wanted)


def numbers_per_draw(kernel: Kernel, posterior: Posterior) -> int:
    """How many are kept: theta, the statistics, and of replica exchange those at all temperatures."""
    at_temperatures = 3 * kernel.num_temperatures if isinstance(kernel, ReplicaExchange) else 0
    return posterior.dim + 8 + at_temperatures


def _fit_mass(kernel: Kernel, posterior: Posterior) -> Kernel:
    """The kernel with its mass in the posterior's dtype and on its device."""
    if isinstance(kernel, ReplicaExchange):
        return replace(kernel, kernel=_fit_mass(kernel.kernel, posterior))
    if kernel.inv_mass is None:
        return kernel
    if kernel.inv_mass.shape[0] != posterior.dim:
        raise ValueError(
            f"inv_mass has shape {tuple(kernel.inv_mass.shape)}, but the posterior has {posterior.dim} parameters"
        )
    return replace(kernel, inv_mass=kernel.inv_mass.to(dtype=posterior.dtype, device=posterior.device))


def _tempering(batches: list[Draws]) -> Tempering:
    """All temperatures of all chains; each batch has its own ladder and step sizes."""

    def of_chains(values: Callable[[Draws], Tensor]) -> Tensor:
        return torch.cat([values(batch).expand(len(batch.theta), -1) for batch in batches])

    return Tempering(
        inverse_temperatures=of_chains(lambda batch: batch.kernel.ladder(batch.theta)),
        step_sizes=of_chains(lambda batch: batch.kernel.steps(batch.theta)),
        **{name: torch.cat([batch.ladder[name] for batch in batches]) for name in batches[0].ladder},
    )


def _fit_init(posterior: Posterior, init: Tensor, num_chains: int) -> Tensor:
    """Starting points ``(C, D)`` in the posterior's dtype and on its device."""
    posterior.flat.check(init)
    if init.ndim == 2 and (len(init) == 0 or num_chains not in (1, len(init))):
        raise ValueError(f"init has {len(init)} starting points, but num_chains is {num_chains}")
    theta = init.detach().to(dtype=posterior.dtype, device=posterior.device)
    return theta.expand(num_chains, -1).clone() if init.ndim == 1 else theta.clone()


def _check_starts(posterior: Posterior, theta: Tensor) -> None:
    with torch.no_grad():
        log_prob = posterior.log_prob(theta)
    bad = (~log_prob.isfinite()).nonzero().flatten()
    if len(bad):
        lane = int(bad[0])
        raise ValueError(
            f"chain {lane} starts where the log density is {log_prob[lane].item()}; start it elsewhere with init=, "
            f"nearer to 0 (its largest parameter is {theta[lane].abs().max().item():g})"
        )
