"""Ctrl-C and SIGTERM: the draws so far come back, once, whatever else arrives, and handlers are as they were."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

import trials
from bnn_utils import HMC, Bernoulli, NormalPrior, Posterior, boxes, interrupts, sample
from bnn_utils.batches import Batches
from bnn_utils.interrupts import noted

POSTERIOR = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Bernoulli())
NUMBERS = (signal.SIGINT, signal.SIGTERM)


def draw(num_samples, posterior=POSTERIOR, **kwargs):
    arguments = {"num_chains": 3, "warmup": 20, "seed": 1, "progress": False, "compile": False}
    return sample(posterior, HMC(0.3, 3), num_samples, **arguments | kwargs)


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of every test are as they were before it."""
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    after = [signal.getsignal(number) for number in NUMBERS]
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def at_segment(monkeypatch):
    """Have something done when so many segments have come."""

    def at_segment(num, what):
        take, came = Batches.take, []

        def watched(self, batch, made):
            take(self, batch, made)
            came.append(batch)
            if len(came) == num:
                what()

        monkeypatch.setattr(Batches, "take", watched)

    return at_segment


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_draws_so_far_come_back(at_segment, number, batch_size):
    at_segment(8 * 3 // batch_size, lambda: signal.raise_signal(number))
    with pytest.warns(RuntimeWarning, match=r"interrupted: the chain holds the [\d,]+ draws made so far, of 1,000,000"):
        chain = draw(10**6, batch_size=batch_size)
    assert 0 < chain.num_draws < 10**6
    num = min(chain.num_draws, 50)
    assert torch.equal(chain.draws[:, :num], draw(num, batch_size=batch_size).draws)
    at_segment(10**9, None)
    longer = chain.extend(5)
    assert torch.equal(longer.draws, draw(longer.num_draws, batch_size=batch_size).draws)


def test_an_interruption_before_the_first_draw(at_segment):
    at_segment(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        draw(10, warmup=10**6)
    assert not hasattr(caught.value, "chain")


def test_signals_while_the_chain_is_made_lose_nothing(at_segment, monkeypatch):
    """Fails when handlers are put back before that."""
    make = Batches.chain

    def disturbed(self):
        for number in (*NUMBERS, *NUMBERS):
            signal.raise_signal(number)
        return make(self)

    monkeypatch.setattr(Batches, "chain", disturbed)
    at_segment(20, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.warns(RuntimeWarning, match="interrupted"):
        assert draw(10**6).num_draws > 0
    assert draw(10).num_draws == 10, "one that comes when all is drawn is too late"


def test_a_transition_that_takes_long_is_broken_off(monkeypatch):
    """And what came before it is kept; fails when a signal waits for the end of a segment, however long it is."""
    original = Bernoulli.log_prob
    calls = []

    class Slow(Bernoulli):
        def log_prob(self, outputs, y):
            calls.append(time.monotonic())
            if len(calls) == 400:
                threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
                end = time.monotonic() + 60
                while time.monotonic() < end:
                    time.sleep(0.01)
            return original(self, outputs, y)

    posterior = Posterior(nn.Linear(2, 1), boxes(n=4), NormalPrior(1.0), Slow())
    with pytest.warns(RuntimeWarning, match="interrupted"):
        chain = draw(10**6, posterior)
    assert interrupts.SECONDS_OF_PATIENCE < time.monotonic() - calls[-1] < 30
    assert chain.num_draws > 10
    assert torch.equal(chain.draws, draw(chain.num_draws).draws)
    assert not torch.is_inference_mode_enabled()


def test_handlers_of_the_program_are_left_alone(at_segment):
    """They go on to handle their signals, and a run that they don't end goes on."""
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    at_segment(3, lambda: signal.raise_signal(signal.SIGTERM))
    assert draw(30).num_draws == 30
    assert came == [signal.SIGTERM]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Ends(Exception):
    pass


def test_what_a_handler_of_the_program_raises_brings_the_draws(at_segment):
    def end(number, frame):
        raise Ends

    signal.signal(signal.SIGINT, end)
    at_segment(8, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Ends) as caught:
        draw(10**6)
    assert caught.value.chain.num_draws > 0
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_threads_are_not_interrupted():
    """A signal ends the run of the main thread, and no other; fails when handlers are installed from a thread."""
    chains = []
    thread = threading.Thread(target=lambda: chains.append(draw(300, batch_size=1)))
    thread.start()
    with noted() as main:
        signal.raise_signal(signal.SIGINT)
        assert main.came
    thread.join()
    assert chains[0].num_draws == 300


# --- the handler ------------------------------------------------------------------------------------------------------


def test_nothing_is_raised_outside_of_what_may_be_broken_off(monkeypatch):
    monkeypatch.setattr(interrupts, "SECONDS_OF_PATIENCE", 0.0)
    with noted() as main:
        for _ in range(5):
            signal.raise_signal(signal.SIGINT)
        assert main.came
        with pytest.raises(KeyboardInterrupt), main.breakable():
            raise AssertionError("it was noted before")


def test_what_ends_in_time_is_not_broken_off():
    """And nothing comes later, when the handlers are those of before."""
    with noted() as main:
        with main.breakable():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert main.came
    assert not [thread for thread in threading.enumerate() if "_insist" in thread.name]


def test_handlers_are_back_after_an_error():
    with pytest.raises(ZeroDivisionError), noted():
        raise ZeroDivisionError  # the fixture looks


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_random_moments(workers):
    """A few of the trials of `trials.py`, which tells what they look for."""
    program = [sys.executable, trials.__file__, f"--workers={workers}", "--trials=3", "--span=2", "--seed=3"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
