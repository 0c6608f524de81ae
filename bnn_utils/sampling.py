"""sample(): the one front door to all kernels."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bnn_utils import _check
from bnn_utils.batches import Batches, is_shown
from bnn_utils.chain import Chain
from bnn_utils.choice import choose
from bnn_utils.density import check_can_compile
from bnn_utils.facts import facts_of
from bnn_utils.files import to_path
from bnn_utils.gradients.native import can_be_native
from bnn_utils.interrupts import noted
from bnn_utils.keep import check_keep, try_out
from bnn_utils.kernels.base import Kernel, check_kernel
from bnn_utils.kernels.hamiltorch import Hamiltorch
from bnn_utils.kernels.stochastic import SGLD
from bnn_utils.kernels.symmetric import Symmetric
from bnn_utils.maxima import check_one_dataset, starts_at_maxima
from bnn_utils.posterior import Posterior
from bnn_utils.random import as_generator, fresh_seed, spawn
from bnn_utils.run import Plan, begin, needs_one_thread
from bnn_utils.starts import check_starts, draw_starts, fit_init
from bnn_utils.stores import MemoryStore, Store, ZarrStore, open_for_reading
from bnn_utils.stores.layout import METADATA

CHOSEN_CHAINS, CHOSEN_WARMUP = 8, 1000  # where the kernel is chosen, and nothing else is said


def sample(
    posterior: Posterior,
    kernel: Kernel | None = None,
    num_samples: int = 1000,
    num_chains: int | None = None,
    warmup: int | None = None,
    init: Tensor | Literal["map"] | None = None,
    seed: int | torch.Generator | None = None,
    progress: bool = True,
    compile: bool | Literal["auto"] = "auto",
    batch_size: int | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    thin: int = 1,
    store: str | os.PathLike[str] | None = None,
    keep: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    keep_draws: bool = True,
) -> Chain:
    """Draw chains from a posterior.

    With nothing said, ``sample(posterior)``, it takes the kernel that was best for posteriors of its kind and size
    (`bnn_utils.choice`, by the table of `benchmarks/samplers.md`), says which, and makes 8 chains of 1,000 draws after
    1,000 transitions of warm-up.

    During ``warmup`` the kernel adapts to the posterior: HMC its step size, which from then on varies at random, and
    its mass, ChEES and MAMS the trajectory length too, MCLMC the decoherence length, replica exchange its temperatures
    and a step size for each. What it was given is where it begins; a mass or a jitter that it was given is kept.
    Without a warm-up nothing adapts. Chains of one batch share what is learned, and those that are stuck don't take
    part.

    The draws depend on the seed and on how chains are grouped into batches, each of which has a random stream spawned
    from the seed; they do not depend on who computes them, on how many workers there are, nor on how often one of them
    dies. Rounding differs between native code and torch, so draws do too; which one "auto" takes depends on the
    posterior alone. On the CPU, torch runs on one thread meanwhile, unless one batch is large enough to gain from more;
    native code takes as many threads as torch has, which changes no draw.

    Several threads may sample one posterior at the same time. Workers do not run the main program again, on Windows
    neither, so that a script needs no ``if __name__ == "__main__":`` for them.

    Args:
        posterior: what to draw from.
        kernel: such as ``HMC(step_size=0.05, num_steps=4)``, ``ChEES()`` or ``ReplicaExchange(HMC(0.05, 8))``, or one
            of your own (`bnn_utils.kernels.base`).
        num_samples: draws per chain.
        num_chains: how many chains; 1, or 8 where the kernel is chosen.
        warmup: transitions per chain that adapt the kernel and are thrown away; none, or 1,000 where the kernel is
            chosen.
        init: where to start, ``(D,)`` for all chains or ``(C, D)``; without it, each chain at a prior draw of its own.
            "map": each climbs from its prior draw to a maximum first (`bnn_utils.find_map`, with at most 500 iterations
            of L-BFGS: a chain need not stand on the very top), like the members of a deep ensemble. R-hat presupposes
            starts that are more spread out than the posterior, which maxima need not be: chains that agree then may all
            miss what no climb comes to.
        seed: a number, or a generator on the posterior's device, which is advanced. Without it every call has a new
            number, so that runs are independent; it is ``chain.seed``, and with it the run can be made again.
        progress: show a progress bar.
        compile: in native code: True, False, or "auto", wherever there is some: for chains of Linear layers with one of
            our likelihoods, on the CPU; whole transitions of most kernels, and of the others gradients. It takes some
            half a second to make for each shape of network, and is kept on disk (`bnn_utils.gradients.machine.folder`).
            Where it fails, as without llvmlite, the run says so and goes on in torch.
        batch_size: chains per batch; without it all are one batch.
        workers: processes of our own that share the batches.
        executor: anything with the interface of `concurrent.futures.Executor` in place of workers, such as
            ``dask.distributed.Client(...).get_executor()``.
        thin: transitions from one draw to the next: of each ``thin`` the last is kept.
        store: a folder, such as "run.zarr", for draws and checkpoints. Whatever ends the run, the same call again goes
            on where it ended, or further with more ``num_samples``, and its draws are those of a run that nothing has
            ended. ``Chain.load`` reads the draws so far, also while the run goes on; so does any program that reads
            Zarr. It knows the names in ``keep``, and not the functions: the same call is yours to make. Draws that take
            more than 64 MB stay there, see `bnn_utils.stored.StoredChain`.
        keep: functions of theta by name, such as ``{"p": lambda theta: posterior.predict(theta, grid)}``, whose values
            at the draws are ``chain.kept``. Each takes draws ``(S, D)``, some at a time, and returns a row for each,
            ``(S, ...)``, which must not depend on the other rows, nor on chance. They run in this process, so that they
            need not travel to workers, and only on draws that ``thin`` leaves. How many draws come at a time is decided
            by the clock, and products of matrices of other shapes are rounded otherwise: unlike the draws, values may
            differ in their last digits from those of the same call.
        keep_draws: False records what is in ``keep`` in place of the draws, for networks whose draws don't fit into
            memory: ``chain.draws`` has no columns then. ``chain.extend`` and a ``store`` go on all the same.

    Returns:
        the chain. After an interruption (Ctrl-C, the stop button, SIGTERM) it holds the draws made so far, with a
        warning; ``chain.extend`` goes on from there. (After SIGTERM the program goes on too, so that it can save; the
        next one ends it.)

    Raises:
        TypeError: for an argument of another type.
        ValueError: for a count, a start or a mass that cannot be used, a function whose values can't be recorded, or a
            store of another run; the message says what to change.
        OSError: if the store can't be written, as on a full disk; all up to its last checkpoint is safe.
        Exception: whatever the network or a function in ``keep`` raises while sampling, with the draws made so far as
            its attribute ``chain``.
    """
    called = time.perf_counter()
    _check.posterior(posterior)
    progress, why = _check.flag("progress", progress), None
    if kernel is None:
        kernel, why = choose(posterior)
    check_kernel(kernel)
    if num_chains is None:
        num_chains = 1 if why is None or np.ndim(init) == 2 else CHOSEN_CHAINS  # type: ignore[arg-type]
    warmup = (0 if why is None else CHOSEN_WARMUP) if warmup is None else warmup
    num_samples, num_chains = _check.whole("num_samples", num_samples, 1), _check.whole("num_chains", num_chains, 1)
    warmup, workers, thin = (
        _check.whole(name, value, low)
        for name, value, low in (("warmup", warmup, 0), ("workers", workers, 1), ("thin", thin, 1))
    )
    recorded = check_keep(keep, keep_draws)
    _check.instance(
        "executor", executor, (Executor, type(None)), "a concurrent.futures.Executor, such as a Dask client's"
    )
    is_climb = isinstance(init, str)
    if is_climb:
        if init != "map":
            raise ValueError(
                "init must be starting points of shape (D,) or (C, D), 'map', or None for draws from the prior; got "
                f"{_check.told(init)}"
            )
        check_one_dataset(posterior)
    elif init is not None:
        init = fit_init(posterior, _check.tensor("init", init), num_chains)
        num_chains = len(init)
    if store is None:
        _check.memory(
            f"{num_samples=} draws of {num_chains} chains",
            num_chains * num_samples * (posterior.dim if recorded.draws else 1) * posterior.dtype.itemsize,  # 1: lp
            posterior.device,
            "ask for fewer, or keep them in a folder (store=)",
        )
    batch_size = num_chains if batch_size is None else _check.whole("batch_size", batch_size, 1)
    sizes = [len(part) for part in torch.arange(num_chains).split(batch_size)]
    if posterior.num_datasets > 1 and len(sizes) > 1:
        raise ValueError(
            f"a posterior of {posterior.num_datasets} data sets is sampled in one batch: leave batch_size out, or take "
            "some of the data sets at a time"
        )
    if workers > 1 and executor is not None:
        raise ValueError(f"workers={workers} are processes of our own: pass them or an executor, not both")
    if workers > 1 and len(sizes) == 1:
        raise ValueError(
            f"workers={workers} share whole batches, and {num_chains} chains in one batch leave nothing to share: "
            f"add batch_size={-(-num_chains // workers)}" + (" and more chains" if num_chains == 1 else "")
        )
    if why is not None and is_shown(progress):
        tqdm.write(f"{type(kernel).__name__}, as {why}", file=sys.stderr)
    with noted() as interrupts:
        with interrupts.breakable():
            before = _facts_of_store(store)
            if before and compile == "auto":  # whatever would be taken here and now
                compile = before["gradient"].endswith("compiled")
            compile = _will_compile(compile, posterior, kernel)
            if seed is None:
                seed = int(before["seed"]) if before and before["seed"].lstrip("-").isdigit() else fresh_seed()
            facts = {}
            if store is not None:
                facts = facts_of(posterior, kernel, seed, init, warmup, thin, compile, recorded)
            streams = [as_generator(seed, posterior.device)]
            if len(sizes) > 1:
                streams = spawn(seed, len(sizes), posterior.device)
            given = init.split(batch_size) if isinstance(init, Tensor) else [None] * len(sizes)
            starts = [
                draw_starts(posterior, size, stream) if start is None else start
                for size, start, stream in zip(sizes, given, streams, strict=True)
            ]
            if init is not None and not is_climb:
                check_starts(posterior, torch.cat(starts))
            if recorded.functions:  # a draw from the prior beside the starts, which may be one, or equal
                other = posterior.probes(1, torch.Generator(posterior.device).manual_seed(0))
                try_out(recorded, torch.cat([other, starts[0]]))
            if is_climb:
                starts = [starts_at_maxima(posterior, start, compile, progress) for start in starts]
            num_points, mover = len(posterior.data), _mover(kernel)
            if isinstance(mover, SGLD):  # it looks at fewer at once
                num_points = min(num_points, mover.batch_size)
            num_lanes = sizes[0] * kernel.lanes_per_chain
            one_thread = needs_one_thread(posterior, num_lanes * num_points, compile, len(sizes))
            plans = {size: Plan(posterior, kernel, size, warmup, compile, one_thread) for size in sizes}
            checkpoints = [
                begin(plans[size], start, stream) for size, start, stream in zip(sizes, starts, streams, strict=True)
            ]
            # A folder is made last, when it is clear that the run can begin.
            draws: Store
            if store is None:
                draws = MemoryStore(sizes, num_samples)
            else:
                draws = ZarrStore.open(store, facts, sizes, num_samples, device=posterior.device)
            run = Batches(
                [plans[size] for size in sizes],
                checkpoints,
                draws,
                num_samples,
                thin,
                None if isinstance(seed, torch.Generator) else _check.seed(seed),
                (workers, executor),
                recorded,
            )
        chain = run.go(progress, called, interrupts)
    if len(sizes) == 1:
        streams[0].set_state(run.checkpoints[0].rng)  # it is as far as the draws are
    return chain


def _facts_of_store(store: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Of a run that has begun there; nothing if none has."""
    if store is None or not (Path(to_path(store)) / METADATA).is_file():
        return {}
    return open_for_reading(store).facts


def _mover(kernel: Kernel) -> Kernel:
    """What moves chains, whatever symmetries are between its transitions."""
    return kernel.kernel if isinstance(kernel, Symmetric) else kernel


def _will_compile(compile: bool | Literal["auto"], posterior: Posterior, kernel: Kernel) -> bool:
    _check.choice("compile", compile, (True, False, "auto"))
    if isinstance(_mover(kernel), (Hamiltorch, SGLD)):
        if compile is True:
            raise ValueError(
                f"compile=True is not for the kernel {type(_mover(kernel)).__name__}, which has a gradient of its own; "
                "leave it at 'auto'"
            )
        return False
    if compile is True:
        check_can_compile(posterior)
    return can_be_native(posterior) if compile == "auto" else compile
