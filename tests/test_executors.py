"""Where segments run: in workers of our own and in executors of the caller's, which die, refuse, and share plans."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import loky
import pytest
import torch
from torch import nn

from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, executors, sample, workers
from bnn_utils.batches import Batches

POSTERIOR = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Bernoulli())
KERNEL = HMC(0.3, 3)
ARGUMENTS = {"num_chains": 3, "batch_size": 1, "warmup": 20, "seed": 1, "progress": False}


def draw(num_samples=300, posterior=POSTERIOR, kernel=KERNEL, **kwargs):
    return sample(posterior, kernel, num_samples, **ARGUMENTS | kwargs)


def same(one, two):
    return torch.equal(one.draws, two.draws) and all(torch.equal(one.stats[k], two.stats[k]) for k in one.stats)


@pytest.fixture
def at_segment(monkeypatch):
    """Have something done when so many segments have come."""

    def at_segment(**what):
        take, came = Batches.take, []

        def watched(self, batch, made):
            take(self, batch, made)
            came.append(batch)
            what.get(f"after_{len(came)}", lambda: None)()

        monkeypatch.setattr(Batches, "take", watched)

    return at_segment


@pytest.fixture
def once_all_have_some(monkeypatch):
    """Have something done when there are draws of all batches, of which one may have come much further than another."""

    def once_all_have_some(what):
        take, done = Batches.take, []

        def watched(self, batch, made):
            take(self, batch, made)
            if self.num_draws >= 20 and not done:
                done.append(batch)
                what()

        monkeypatch.setattr(Batches, "take", watched)

    return once_all_have_some


@pytest.fixture
def short_segments(monkeypatch):
    """So that a run has many of them."""
    monkeypatch.setattr(executors, "next_length", lambda num, seconds, wanted: 20)


def kill_worker():
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


# --- workers of our own -----------------------------------------------------------------------------------------------


def test_dead_workers_cost_no_draw(at_segment, short_segments):
    """Fails when what a dead worker was drawing is lost, or drawn from elsewhere in the stream."""
    whole = draw()
    pools = len(workers._idle.get((os.getpid(), 2), []))
    at_segment(after_1=kill_worker, after_6=kill_worker, after_7=kill_worker)
    chain = draw(workers=2)
    assert same(chain, whole)
    assert len(workers._idle[os.getpid(), 2]) == max(1, pools), "the last pool is whole, and waits for the next run"


class Kills(Bernoulli):
    """Ends the process that computes far out, as a system without memory does, except this one."""

    def log_prob(self, outputs, y):
        if multiprocessing.current_process().name != "MainProcess" and (outputs.abs() > 10).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().log_prob(outputs, y)


def test_a_segment_that_kills_its_workers_ends_in_words(monkeypatch):
    monkeypatch.setattr(executors, "MOST_LOSSES", 2)
    posterior = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Kills())
    arguments = {"posterior": posterior, "init": torch.zeros(3, 3), "warmup": 0, "kernel": HMC(0.5, 3)}
    with pytest.raises(RuntimeError, match=r"transitions (\d+) to \1 of batch \d were sent 3 times") as caught:
        draw(10_000, **arguments, workers=2)
    assert "TerminatedWorkerError" in str(caught.value)
    chain = caught.value.chain
    assert chain.num_draws >= 1
    assert torch.equal(chain.draws, draw(chain.num_draws, **arguments).draws)


class CannotTravel(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.held = threading.Lock()  # which nothing can pickle


class Raises(Bernoulli):
    def log_prob(self, outputs, y):
        if (outputs.abs() > 10).any():
            raise CannotTravel("far", "out")
        return super().log_prob(outputs, y)


def test_what_the_model_raises_is_no_death():
    """It comes back at once, in its words where it can't be pickled; fails when it is sent again."""
    posterior = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Raises())
    arguments = {"posterior": posterior, "init": torch.zeros(3, 3), "warmup": 0, "kernel": HMC(0.5, 3)}
    with ThreadPoolExecutor(2) as executor, pytest.raises(RuntimeError, match="CannotTravel: far and out") as caught:
        draw(10_000, **arguments, executor=executor)
    told = "\n".join(caught.value.__notes__)
    assert "It was raised in another process:\nTraceback" in told
    assert 'raise CannotTravel("far", "out")' in told
    chain = caught.value.chain
    assert torch.equal(chain.draws, draw(chain.num_draws, **arguments).draws)


def test_workers_wait_for_the_next_run_and_then_end(monkeypatch):
    """Fails when each call starts processes of its own, or when they stay for ever."""
    draw(5, workers=2)
    before = {child.pid for child in multiprocessing.active_children()}
    draw(5, workers=2)
    after = {child.pid for child in multiprocessing.active_children()}
    assert before == after
    end = time.monotonic() + 10 * workers.SECONDS_OF_IDLENESS
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.1)
    assert not multiprocessing.active_children()
    assert same(draw(workers=2), draw())


def test_the_callers_pool_of_loky_is_left_alone():
    theirs = loky.get_reusable_executor(max_workers=1)
    draw(5, workers=2)
    assert loky.get_reusable_executor(max_workers=1) is theirs
    assert theirs.submit(len, "abc").result() == 3
    theirs.shutdown(kill_workers=True)


@pytest.mark.parametrize("is_computing", [False, True])
def test_workers_end_with_this_process(is_computing, tmp_path):
    """Also when it is killed, whether they start or compute; fails when nobody watches while torch is imported."""
    code = f"""
import pathlib
import trials
from bnn_utils.batches import Batches
take, went = Batches.take, Batches.following
def told(self, *args):
    pathlib.Path({str(tmp_path / "computes")!r}).touch()
    return take(self, *args)
Batches.take = told
pathlib.Path({str(tmp_path / "starts")!r}).touch()
trials.draw(10**6, workers=2)
"""
    found = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": found}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    from trials import alive

    try:
        if is_computing:
            wait_for((tmp_path / "computes").exists)
        else:
            wait_for(lambda: sum("popen_loky" in line for line in alive(child.pid)) == 2)
    finally:
        child.kill()
        child.wait()
    wait_for(lambda: not [line for line in alive(child.pid) if "resource_tracker" not in line], 30 if LOADED else 2)


LOADED = os.getloadavg()[0] > os.cpu_count()


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- executors of the caller's ----------------------------------------------------------------------------------------


class Watched(Executor):
    """A pool that tells what it was given."""

    def __init__(self, pool: Executor) -> None:
        self.pool, self.calls, self.futures = pool, [], []

    def submit(self, function, /, *args, **kwargs) -> Future:
        self.calls.append(args)
        self.futures.append(self.pool.submit(function, *args, **kwargs))
        return self.futures[-1]


def test_a_plan_is_sent_to_those_who_do_not_know_it(short_segments):
    """Fails when it goes with every segment, or when the worker forgets it."""
    with ThreadPoolExecutor(2) as pool:
        executor = Watched(pool)
        chain = draw(executor=executor)
        assert same(chain, draw())
        with_plan = [args[2] is not None for args in executor.calls]
        assert len(with_plan) > 40
        assert 1 <= sum(with_plan) <= 3, "one process; all three batches may have asked at once"
        executor.calls.clear()
        assert same(chain.extend(30), draw(330))
        assert not any(args[2] is not None for args in executor.calls), "the longer run knows it already"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ThreadPoolExecutor(3),
        lambda: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")),
        lambda: loky.ProcessPoolExecutor(1),
    ],
    ids=["threads", "processes", "loky"],
)
def test_any_executor_draws_the_same(make):
    with make() as executor:
        assert same(draw(executor=executor), draw())
        assert executor.submit(len, "abc").result() == 3, "it is the caller's, and goes on"


def test_threads_of_one_process_have_a_density_each(posterior):
    """Fails when two threads compute in the memory of one density."""
    for compile in (False, True):
        arguments = {"posterior": posterior, "num_chains": 8, "batch_size": 2, "compile": compile}
        with ThreadPoolExecutor(4) as executor:
            chain = draw(200, **arguments, executor=executor)
        assert same(chain, draw(200, **arguments))


def test_an_executor_that_is_shut_down_keeps_the_draws(once_all_have_some, short_segments):
    with ThreadPoolExecutor(2) as executor:
        once_all_have_some(lambda: executor.shutdown(wait=False))
        with pytest.raises(RuntimeError, match="the executor takes no more segments: RuntimeError: cannot") as caught:
            draw(10**5, executor=executor)
    chain = caught.value.chain
    assert 20 <= chain.num_draws < 10**5
    assert torch.equal(chain.draws, draw(chain.num_draws).draws)


def test_a_pool_of_the_callers_that_breaks_keeps_the_draws(once_all_have_some, short_segments):
    """It is theirs to start anew."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        once_all_have_some(lambda: os.kill(next(iter(executor._processes)), signal.SIGKILL))
        with pytest.raises(RuntimeError, match="the executor takes no more segments: BrokenProcessPool") as caught:
            draw(10**5, executor=executor)
    chain = caught.value.chain
    assert 20 <= chain.num_draws < 10**5
    assert torch.equal(chain.draws, draw(chain.num_draws).draws)


def test_an_interruption_cancels_what_waits(at_segment, short_segments):
    """And leaves the executor as it is."""
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        executor = Watched(pool)
        # The one thread waits at the gate, and behind it the segment that follows the 15th.
        at_segment(after_15=lambda: pool.submit(gate.wait), after_16=lambda: signal.raise_signal(signal.SIGINT))
        try:
            with pytest.warns(RuntimeWarning, match="interrupted"):
                chain = draw(10**5, executor=executor)
        finally:
            gate.set()
        assert sum(future.cancelled() for future in executor.futures) >= 1
        assert all(future.cancelled() or future.running() or future.done() for future in executor.futures)
        assert pool.submit(len, "abc").result() == 3
    assert torch.equal(chain.draws, draw(chain.num_draws).draws)


@pytest.mark.slow
def test_dask_loses_two_of_four_workers(at_segment, short_segments):
    distributed = pytest.importorskip("distributed")
    whole = draw(num_chains=8)
    cluster = distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        pids = list(client.run(os.getpid).values())
        at_segment(after_12=lambda: os.kill(pids[0], signal.SIGKILL), after_20=lambda: os.kill(pids[1], signal.SIGKILL))
        chain = draw(num_chains=8, executor=client.get_executor())
        assert client.submit(len, "abc").result() == 3
    assert same(chain, whole)
