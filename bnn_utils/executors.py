"""Where segments are run: in this process, in workers of our own, or by whatever is a `concurrent.futures.Executor`.

All that travels is bytes: a plan, a checkpoint, and what comes of the segment. So classes that were defined in a
notebook travel by value, whatever the executor does with its own arguments.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from hashlib import sha256
from typing import NamedTuple

import cloudpickle

from bnn_utils.interrupts import Interrupts
from bnn_utils.run import SECONDS_OF_SEGMENT, Checkpoint, Plan, Segment, next_length, segment
from bnn_utils.workers import Workers

# While segments are on their way: how soon an interruption is noticed, and how often the progress bar is brought up to
# date.
SECONDS_BETWEEN_LOOKS = 0.2
# Of a segment that travels: it has to be worth the way, and short enough that little is lost with a worker.
SECONDS_OF_TRAVELLING_SEGMENT = 0.5
# How often one and the same segment is lost before the run gives up.
MOST_LOSSES = 5
# By a process that runs segments for others, of several runs perhaps.
PLANS_KEPT = 4

Take = Callable[[int, Segment], None]  # what comes of a segment of a batch
# Of a batch, plan, checkpoint and transitions still to go; None at the end.
Next = Callable[[int], tuple[Plan, Checkpoint, int] | None]


def _timed(take: Take, batch: int, made: Segment) -> float:
    """Seconds that this takes, as to compute what is kept of a segment: no interruption is noticed meanwhile."""
    started = time.perf_counter()
    take(batch, made)
    return time.perf_counter() - started


# --- in this process --------------------------------------------------------------------------------------------------


class Here:
    """One segment after the other, of the batch that is furthest behind."""

    def __init__(self, num_batches: int) -> None:
        self._length = 1
        self._wanted = SECONDS_OF_SEGMENT / num_batches

    def go(
        self, num_batches: int, following: Next, take: Take, report: Callable[[], None], interrupts: Interrupts
    ) -> None:
        """Run all segments of all batches; see `Elsewhere.go`."""
        while True:
            open_batches = {batch: found for batch in range(num_batches) if (found := following(batch))}
            if not open_batches:
                return
            done = {batch: start.done for batch, (_, start, _) in open_batches.items()}
            batch = min(done, key=done.__getitem__)
            plan, start, left = open_batches[batch]
            # As far as the others are, so that all have come equally far at any time.
            num = min(left, max(done.values()) - done[batch] or self._length)
            with interrupts.breakable():
                made = segment(plan, start, num)
            taking = _timed(take, batch, made)
            if made.error is not None:
                raise made.error
            self._length = next_length(num, made.seconds + taking, self._wanted)
            report()


# --- in others --------------------------------------------------------------------------------------------------------


class _Sent(NamedTuple):
    batch: int
    plan: Plan
    start: Checkpoint
    num: int


class Elsewhere:
    """Segments of all batches side by side, one of each batch at a time.

    Args:
        executor: such as a Dask client's, or None for ``workers`` processes of our own.
    """

    def __init__(self, executor: Executor | None, workers: int) -> None:
        self._own: Workers | None = None
        if executor is None:
            executor = self._own = Workers(workers)
        self._executor = executor
        self._digests: dict[int, str] = {}

    def go(
        self, num_batches: int, following: Next, take: Take, report: Callable[[], None], interrupts: Interrupts
    ) -> None:
        """Run all segments of all batches.

        Args:
            following: of a batch, what comes next.
            take: called with what comes of each segment, in the order of the batch.
            report: called now and then.
            interrupts: looked at now and then.

        Raises:
            KeyboardInterrupt: after a signal; segments that are on their way are given up.
            RuntimeError: where the executor refuses a segment, or one is lost again and again.
            Exception: that a segment raised. The other batches have then come at least as far as the one that failed.
        """
        pending: dict[Future, _Sent] = {}
        lengths, losses = [1] * num_batches, [0] * num_batches
        # Batches that lost a segment. They are sent again one after the other: the death of one worker may have cost
        # the segments of many, and so the one that kills is found, and the others go on.
        lost: list[int] = []
        failure: BaseException | None = None
        failed: set[int] = set()
        goal: int | None = None  # after a failure: the transition that the other batches still go to

        def send(sent: _Sent, with_plan: bool = False) -> None:
            nonlocal failure, goal
            payload = cloudpickle.dumps(sent.plan) if with_plan else None
            arguments = losses[sent.batch], self._digest(sent.plan), payload, cloudpickle.dumps(sent.start), sent.num
            try:
                with interrupts.breakable():
                    future = self._executor.submit(run_segment, *arguments)
            except Exception as error:
                failure = RuntimeError(f"the executor takes no more segments: {_told(error)}")
                failure.__cause__ = error
                goal = 0
            else:
                pending[future] = sent

        def send_next(batch: int) -> None:
            found = None if batch in failed else following(batch)
            if found is not None:
                plan, start, left = found
                left = left if goal is None else min(left, goal - start.done)
                if left > 0:
                    send(_Sent(batch, plan, start, min(left, lengths[batch])))

        try:
            for batch in range(num_batches):
                if failure is None:
                    send_next(batch)
            while pending:
                ready = wait(pending, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done
                for future in ready:
                    sent = pending.pop(future)
                    batch, loss = sent.batch, _loss(future)
                    asked = False
                    if loss is not None:
                        losses[batch] += 1
                        lengths[batch] = 1  # what comes before the transition that kills is not lost again
                        if losses[batch] > MOST_LOSSES:
                            failure = failure or _given_up(sent, losses[batch], loss)
                            goal = 0
                        lost.append(batch)
                    elif (content := future.result()) is None:
                        asked = True
                    else:
                        made: Segment = cloudpickle.loads(content)
                        taking = _timed(take, batch, made)
                        losses[batch] = 0
                        lengths[batch] = next_length(sent.num, made.seconds + taking, SECONDS_OF_TRAVELLING_SEGMENT)
                        if made.error is not None:
                            failed.add(batch)
                            failure = failure or made.error
                            came_to = sent.start.done + (0 if made.info is None else made.info.log_prob.shape[1])
                            goal = came_to if goal is None else min(goal, came_to)
                    # What is ready is taken, also at the end.
                    if loss is None and goal != 0 and not interrupts.came:
                        send(sent, with_plan=True) if asked else send_next(batch)
                if lost and failure is None and not any(losses[sent.batch] for sent in pending.values()):
                    send_next(lost.pop(0))
                interrupts.check()
                report()
            if failure is not None:
                raise failure
        finally:
            for future in pending:
                future.cancel()
            if self._own is not None:
                self._own.kill() if pending else self._own.release()

    def _digest(self, plan: Plan) -> str:
        if id(plan) not in self._digests:
            try:
                content = cloudpickle.dumps(plan)
            except Exception as error:
                error.add_note(
                    "Posterior and kernel are pickled, to be sent to other processes; workers=1 does without."
                )
                raise
            self._digests[id(plan)] = sha256(content).hexdigest()
        return self._digests[id(plan)]


def _loss(future: Future) -> BaseException | None:
    """Of a future that is done: why it brought nothing. Executors have errors of many kinds for a worker that died."""
    try:
        return future.exception()
    except CancelledError as error:
        return error


def _given_up(sent: _Sent, times: int, loss: BaseException) -> RuntimeError:
    first, last = sent.start.done + 1, sent.start.done + sent.num
    error = RuntimeError(
        f"transitions {first} to {last} of batch {sent.batch} were sent {times} times, and never came back: workers "
        f"died, as they do without enough memory, or could not be reached. The last time: {_told(loss)}"
    )
    error.__cause__ = loss
    return error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# --- there ------------------------------------------------------------------------------------------------------------

# Plans that this process was sent, with their densities, which need time to prepare.
_plans: OrderedDict[str, Plan] = OrderedDict()
_plans_lock = threading.Lock()


def run_segment(losses: int, digest: str, payload: bytes | None, start: bytes, num: int) -> bytes | None:
    """`segment`, as it is called in another process.

    Args:
        losses: how often the segment was lost before. It makes the call another one than those, whose failure executors
            of pure functions, such as Dask's, remember.
        digest: of the plan.
        payload: the plan, which may be large, for a process that does not know it.
        start: the checkpoint.

    Returns:
        a `Segment`; None where this process does not know the plan, and needs to be sent it.
    """
    try:
        plan = _plan(digest, payload)
        if plan is None:
            return None
        made = segment(plan, cloudpickle.loads(start), num)
    except Exception as error:  # of a class that can't be imported here, say
        made = Segment(None, None, 0.0, error=error)
    if made.error is not None:
        if not isinstance(made.error, Exception):  # this process is told to stop
            raise made.error
        made = made._replace(error=_travelling(made.error))
    return cloudpickle.dumps(made)


def _plan(digest: str, payload: bytes | None) -> Plan | None:
    with _plans_lock:
        if digest not in _plans:
            if payload is None:
                return None
            _plans[digest] = cloudpickle.loads(payload)
        _plans.move_to_end(digest)
        while len(_plans) > PLANS_KEPT:
            _plans.popitem(last=False)
        return _plans[digest]


def _travelling(error: Exception) -> Exception:
    """The error with its traceback in words, or its words alone where it can't be pickled."""
    told = "".join(traceback.format_exception(error))
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        error = RuntimeError(_told(error))
    error.add_note(f"It was raised in another process:\n{told}")
    return error
