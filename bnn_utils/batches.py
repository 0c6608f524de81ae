"""Batches of chains under way: where each has come, what is kept of its draws, and what a reader sees meanwhile."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from concurrent.futures import Executor
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from bnn_utils import _check
from bnn_utils.chain import Chain
from bnn_utils.checkpoints import Checkpoint
from bnn_utils.evidence import ladder_of
from bnn_utils.executors import Elsewhere, Here
from bnn_utils.gradients.native import seconds_to_compile
from bnn_utils.interrupts import Interrupts, noted
from bnn_utils.keep import Keep
from bnn_utils.kernels.base import Info, adapted
from bnn_utils.kernels.hamiltorch import Hamiltorch
from bnn_utils.posterior import Posterior
from bnn_utils.run import Plan, Segment
from bnn_utils.stored import chain_of
from bnn_utils.stores import MemoryStore, Store, ZarrStore

# A commit waits for the disk, for up to a tenth of a second; what was not committed is drawn again after a kill.
SECONDS_BETWEEN_COMMITS = 5.0
BYTES_OF_SEGMENT = 2**24  # that are recorded in one segment at most


class Timed(NamedTuple):
    """A kernel's state with the seconds that it took to get there, as a store keeps it."""

    state: Any
    sampling_time: float
    wall_time: float


class Batches:
    """Batches under way: what to run, where each has come, and what is kept of its draws.

    Attributes:
        plans: of each batch.
        checkpoints: from which each batch goes on. Draws that were made behind one are made again, and are the same.
    """

    def __init__(
        self,
        plans: list[Plan],
        checkpoints: list[Checkpoint],
        store: Store,
        num_samples: int,
        thin: int,
        seed: int | None,
        where: tuple[int, Executor | None],
        keep: Keep,
    ) -> None:
        self.plans, self.checkpoints, self.store = plans, checkpoints, store
        self._committed = [time.perf_counter()] * len(plans)
        self._longest: int | None = None  # of segments; not known before the first one
        self.num_samples, self.thin, self.seed, self.where, self.keep = num_samples, thin, seed, where, keep
        self.is_compiled = False
        self.compile_time = self.sampling_time = self.wall_time = 0.0
        for batch in range(len(plans)):  # a run that goes on
            found = store.checkpoint(batch)
            if found is not None:
                self.checkpoints[batch] = found._replace(state=found.state.state)
                self.sampling_time = max(self.sampling_time, found.state.sampling_time)
                self.wall_time = max(self.wall_time, found.state.wall_time)
        # For the progress bar.
        self.acceptance, self.step_size = [math.nan] * len(plans), math.nan
        self.divergences: int | None = None
        self.epoch: int | None = None

    @property
    def posterior(self) -> Posterior:
        return self.plans[0].posterior

    @property
    def num_warmup(self) -> int:
        return self.plans[0].num_warmup

    @property
    def num_transitions(self) -> int:
        """Of each chain, those of the warm-up among them."""
        return self.num_warmup + self.thin * self.num_samples

    @property
    def num_draws(self) -> int:
        """That all chains have."""
        return min(self.num_samples, *map(self.store.count, range(len(self.plans))))

    def go(self, progress: bool, called: float, interrupts: Interrupts) -> Chain:
        """Run to the end, or to an interruption, and return what has been drawn.

        Args:
            called: when the reader asked for it, by `time.perf_counter`.
            interrupts: looked at between segments. They are noted until the chain is made: a second one loses nothing.
        """
        self._called, self._before = called, self.sampling_time
        self._clock: float | None = None  # when it began to draw
        try:
            try:
                self._go(progress, interrupts)
            finally:
                self.wall_time += time.perf_counter() - called
        except BaseException as error:
            if self.num_draws:
                error.chain = self.chain()  # type: ignore[attr-defined]
                error.add_note(f"The {self.num_draws:,} draws made before this error are in its attribute 'chain'.")
            raise
        chain = self.chain()
        if is_shown(progress):
            for text in chain.warnings:
                tqdm.write(f"- {text}", file=sys.stderr)
        return chain

    def _go(self, progress: bool, interrupts: Interrupts) -> None:
        workers, executor = self.where
        is_here = workers == 1 and executor is None
        try:
            with _Bar(self, progress) as bar:
                try:
                    place = Here(len(self.plans)) if is_here else Elsewhere(executor, workers)
                    place.go(len(self.plans), self.following, self.take, bar.show, interrupts)
                finally:
                    self._settle()
        except KeyboardInterrupt:
            if not self.num_draws:
                raise
            warnings.warn(
                f"interrupted: the chain holds the {self.num_draws:,} draws made so far, of {self.num_samples:,}",
                RuntimeWarning,
                stacklevel=4,
            )

    def following(self, batch: int) -> tuple[Plan, Checkpoint, int] | None:
        """What comes next of a batch: warm-up and draws are separate segments."""
        start = self.checkpoints[batch]
        end = self.num_warmup if start.done < self.num_warmup else self.num_transitions
        left = min(end - start.done, self._longest or 1)
        if self.keep.functions and start.done == self.num_warmup:
            left = 1  # the warm-up did not tell how long functions take
        return (self.plans[batch], start, left) if start.done < self.num_transitions else None

    def take(self, batch: int, made: Segment) -> None:
        """Keep what came of a segment."""
        start = self.checkpoints[batch]
        if start.done >= self.num_warmup:
            now = time.perf_counter()
            self._clock = self._clock or now - made.seconds
            self.sampling_time = self._before + now - self._clock
        if made.info is not None:
            self._look(batch, made.info)
            if self._longest is None:
                self._estimate(made.info)
            kept = self._kept(batch, made.info, start.done - self.num_warmup)
            if made.end is None:  # what comes now ends at no checkpoint
                self._commit(batch)
            if kept is not None:
                self.store.append(batch, kept)
        if made.end is not None:
            self.checkpoints[batch] = made.end
            if time.perf_counter() - self._committed[batch] > SECONDS_BETWEEN_COMMITS:
                self._commit(batch)
        self.is_compiled |= made.is_compiled
        if self.plans[batch].compile:
            self.compile_time = max(self.compile_time, made.preparation)

    def _commit(self, batch: int) -> None:
        done, state, rng = (getattr(self.checkpoints[batch], name) for name in ("done", "state", "rng"))
        if done:
            wall_time = self.wall_time + time.perf_counter() - self._called
            self.store.commit(batch, Checkpoint(Timed(state, self.sampling_time, wall_time), rng, done))
        self._committed[batch] = time.perf_counter()

    def _settle(self) -> None:
        """Bring all to the store that it has not seen, and let others write to it."""
        try:
            for batch in range(len(self.plans)):
                if self._ends_at_checkpoint(batch):
                    self._commit(batch)
        finally:
            self.store.close()

    def _ends_at_checkpoint(self, batch: int) -> bool:
        """Whether the batch has no draws behind its checkpoint, as those before an error are."""
        made = max(0, self.checkpoints[batch].done - self.num_warmup) // self.thin
        return self.store.count(batch) == made

    def _estimate(self, info: Info) -> None:
        """Once it is known what is recorded: refuse a run whose draws will not fit, and bound segments."""
        per_draw, of_kernel = _bytes(self.keep(info)), _bytes(info)
        chains = sum(self.store.sizes)
        # What keep leaves out is in a segment too.
        self._longest = max(1, int(BYTES_OF_SEGMENT / (max(per_draw, of_kernel) * self.store.sizes[0])))
        count = min(map(self.store.count, range(len(self.plans))))
        what = f"{self.num_samples - count:,} draws of {chains:,} chains with {per_draw:,.0f} bytes each"
        num_bytes = chains * (self.num_samples - count) * per_draw
        remedy = "ask for fewer, or keep one in so many (thin=)"
        if isinstance(self.store, ZarrStore):
            _check.disk(what, num_bytes, self.store.path, remedy)
        else:
            _check.memory(what, num_bytes, info.theta.device, remedy + ", or in a folder (store=)")

    def _kept(self, batch: int, info: Info, first: int) -> Info | None:
        """The draws among transitions of which the first came after ``first`` others that don't adapt."""
        if first < 0:
            return None
        length, count = info.log_prob.shape[1], self.store.count(batch)
        # Transitions of draws that are there: they were made behind the checkpoint, before an interruption.
        skipped = count * self.thin - first
        places = [place for place in range(self.thin - 1 - first % self.thin, length, self.thin) if place >= skipped]
        return self.keep(info.at(places)) if places else None

    def _look(self, batch: int, info: Info) -> None:
        """For the progress bar."""
        stats = info.stats
        if "acceptance_rate" in stats:
            self.acceptance[batch] = stats["acceptance_rate"].double().mean().item()
        if "diverging" in stats:
            self.divergences = (self.divergences or 0) + int(stats["diverging"].sum())
        if "step_size" in stats:
            self.step_size = stats["step_size"][..., -1].double().mean().item()
        if "epoch" in stats:
            self.epoch = int(stats["epoch"].max())

    def chain(self) -> Chain:
        """What has been drawn."""
        kernels = [
            adapted(plan.kernel, checkpoint.state)
            for plan, checkpoint in zip(self.plans, self.checkpoints, strict=True)
        ]
        posterior = self.posterior
        is_foreign = isinstance(kernels[0], Hamiltorch)
        return chain_of(
            self.store,
            self.num_samples,
            [ladder_of(checkpoint.state) for checkpoint in self.checkpoints],
            names=posterior.names,
            kernel=kernels[0],
            gradient="autograd" if is_foreign else posterior.gradient + ", compiled" * self.is_compiled,
            device=str(posterior.device),
            seed=self.seed,
            warmup=self.num_warmup,
            wall_time=self.wall_time,
            compile_time=self.compile_time,
            sampling_time=self.sampling_time,
            thinning=self.thin,
            run=self,
        )

    def extend(self, num: int, progress: bool) -> Chain:
        """The chain with so many more draws. It goes on in a run of its own, so that this one can be extended again."""
        called, num_draws = time.perf_counter(), self.num_draws + num
        batches = range(len(self.plans))
        # After an interruption some batches may have come further than the others, and further than is wanted now.
        room = max(num_draws, *map(self.store.count, batches))
        store: Store
        if isinstance(self.store, ZarrStore):
            old = self.store
            store = ZarrStore.open(old.path, old.facts, old.sizes, room, device=self.posterior.device)
        else:
            store = MemoryStore(self.store.sizes, room)
            for batch in batches:
                if self.store.count(batch):
                    store.append(batch, self.store.read(batch))
        run = Batches(self.plans, list(self.checkpoints), store, num_draws, self.thin, self.seed, self.where, self.keep)
        run.is_compiled, run.compile_time = self.is_compiled, self.compile_time
        run.sampling_time, run.wall_time = self.sampling_time, self.wall_time
        with noted() as interrupts:
            return run.go(progress, called, interrupts)


def _bytes(info: Info) -> float:
    """Per draw."""
    recorded = (info.theta, info.log_prob, *info.stats.values())
    return sum(values.numel() * values.element_size() for values in recorded) / info.log_prob.numel()


def is_shown(progress: bool) -> bool:
    """Whether a reader wants to see how a run goes on."""
    # tqdm's bar for notebooks does not look at this variable of tqdm's.
    return progress and os.environ.get("TQDM_DISABLE", "0") in ("", "0")


class _Bar:
    """A progress bar with transitions per second, and epochs, acceptance, step size and divergences where known."""

    def __init__(self, run: Batches, progress: bool) -> None:
        self.run = run
        disable = not is_shown(progress)
        self.bar = tqdm(total=run.num_transitions, initial=self.done, unit="draw", disable=disable)
        if run.plans[0].compile:
            self.bar.set_postfix_str(
                f"compiling, some {seconds_to_compile(run.posterior):.1f} s unless it was done before"
            )

    @property
    def done(self) -> int:
        return min(checkpoint.done for checkpoint in self.run.checkpoints)

    def show(self) -> None:
        if self.bar.disable:
            return
        rates = [rate for rate in self.run.acceptance if rate == rate]
        told = [f"epoch {self.run.epoch:,}"] if self.run.epoch is not None else []
        told += [f"acceptance {sum(rates) / len(rates):.2f}"] if rates else []
        told += [f"step size {self.run.step_size:.2g}"] if self.run.step_size == self.run.step_size else []
        told += [f"divergences {self.run.divergences}"] if self.run.divergences is not None else []
        self.bar.set_postfix_str(", ".join(told), refresh=False)
        self.bar.update(self.done - self.bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
