"""Runs of segments: `advance` is pure, segments of any length make the same draws, chains go on where they ended."""

import copy
import itertools
import pickle

import cloudpickle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from bnn_utils import (
    HMC,
    MAMS,
    MCLMC,
    NUTS,
    SGHMC,
    SGLD,
    Chain,
    ChEES,
    Hamiltorch,
    ReplicaExchange,
    Symmetric,
    executors,
    sample,
)
from bnn_utils.kernels.base import Info, adapted
from bnn_utils.run import Plan, advance, begin, segment
from own_kernels import AdaptingWalk, ManyAtOnce, RandomWalk
from samplers import needs_hamiltorch
from targets import generator, regression

FACTOR = 0.2 * torch.eye(3, dtype=torch.float64)
KERNELS = {
    "HMC": HMC(0.1, 3),
    "all found": HMC(),
    "dense mass": HMC(0.1, 3, torch.eye(3) + 0.1, jitter=0.2),
    "Langevin": HMC(0.1, 1),
    "ChEES": ChEES(0.1, 0.4),
    "NUTS": NUTS(0.1),
    "symmetric": Symmetric(HMC(0.1, 3), every=2),
    "MAMS": MAMS(0.1, 0.4),
    "MCLMC": MCLMC(0.1, 0.4),
    "replica exchange": ReplicaExchange(HMC(0.1, 3), 4),
    "hamiltorch": Hamiltorch(0.1, 3),
    "SGLD": SGLD(0.01, 5),
    "SGHMC": SGHMC(0.01, 5, cycle_length=5, exploration=0.5),
    "random walk": RandomWalk(FACTOR),
    "adapting walk": AdaptingWalk(FACTOR, 10.0),
    "many at once": ManyAtOnce(FACTOR),
}
each_kernel = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(kernel, id=name, marks=[needs_hamiltorch] if name == "hamiltorch" else [])
        for name, kernel in KERNELS.items()
    ],
)

# Long enough for two windows of HMC's warm-up and two rounds of replica exchange's.
WARMUP, AFTER = 32, 6


def plan_of(kernel, num_chains=2, num_warmup=WARMUP):
    return Plan(regression(), kernel, num_chains, num_warmup, compile=False, one_thread=True)


def start_of(plan, seed=0):
    stream = generator(seed)
    return begin(plan, plan.posterior.sample_prior(plan.num_chains, stream), stream)


def equal(one, two):
    """To the bit, whatever they are made of."""
    mine, theirs = tree_leaves(one), tree_leaves(two)
    return len(mine) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(mine, theirs, strict=True)
    )


def joined(infos):
    """Infos of segments as one."""
    return [
        torch.cat([info.theta for info in infos], 1),
        torch.cat([info.log_prob for info in infos], 1),
        {name: torch.cat([info.stats[name] for info in infos], 1) for name in infos[0].stats},
    ]


def in_segments(plan, start, lengths):
    """The last checkpoint, and all that is recorded."""
    infos = []
    for num in lengths:
        start, info = advance(plan, start, num)
        infos.append(info)
    return start, joined(infos)


# --- advance ----------------------------------------------------------------------------------------------------------


@each_kernel
def test_advance_is_pure(kernel):
    """Same arguments, same result, and what went in is as it was. Fails when a kernel keeps something to itself, when a
    generator goes on from where the last call left it, and when a state is changed in place.
    """
    plan = plan_of(kernel)
    start, _ = advance(plan, start_of(plan), 13)
    before = copy.deepcopy(start)
    first, other, again = advance(plan, start, 9), advance(plan, start_of(plan, 1), 9), advance(plan, start, 9)
    assert equal(start, before)
    assert equal(first, again)
    assert not equal(first, other)
    assert first[0].done == 22
    assert equal(advance(plan_of(kernel), start, 9), first), "another plan that says the same"


splits = st.lists(st.integers(1, WARMUP + AFTER - 1), max_size=6, unique=True).map(
    lambda ends: [b - a for a, b in itertools.pairwise([0, *sorted(ends), WARMUP + AFTER])]
)


@each_kernel
@settings(max_examples=12)
@given(lengths=splits)
def test_segments_of_any_length(kernel, lengths):
    """In the middle of windows and rounds too.

    Fails when anything that a warm-up has learned, or the place in the random stream, is not in the checkpoint.
    """
    plan = plan_of(kernel)
    assert equal(in_segments(plan, start_of(plan), lengths), whole(kernel))


_wholes = {}


def whole(kernel):
    if kernel not in _wholes:
        plan = plan_of(kernel)
        _wholes[kernel] = in_segments(plan, start_of(plan), [WARMUP + AFTER])
    return _wholes[kernel]


@each_kernel
def test_one_by_one(kernel):
    plan = plan_of(kernel)
    assert equal(in_segments(plan, start_of(plan), [1] * (WARMUP + AFTER)), whole(kernel))


@each_kernel
@pytest.mark.parametrize("library", [pickle, cloudpickle])
def test_a_checkpoint_travels(kernel, library):
    """In the middle of a warm-up, with the plan."""
    plan = plan_of(kernel)
    start, _ = advance(plan, start_of(plan), 17)
    there_plan, there = library.loads(library.dumps((plan, start)))
    assert equal(advance(there_plan, there, WARMUP + AFTER - 17), advance(plan, start, WARMUP + AFTER - 17))


@each_kernel
def test_what_a_warmup_leaves(kernel):
    """A kernel that starts as the adapted one makes the transitions of the state that adapted, from the same place."""
    plan = plan_of(kernel)
    end, _ = advance(plan, start_of(plan), WARMUP)
    after = plan_of(adapted(kernel, end.state), num_warmup=0)
    if isinstance(kernel, ReplicaExchange):  # its lanes start where its coldest one is
        assert torch.equal(after.kernel.inverse_temperatures, end.state.ladder.inverse_temperatures)
        assert torch.equal(after.kernel.step_sizes, end.state.ladder.step_sizes)
        assert not torch.equal(after.kernel.step_sizes, kernel.steps_at(after.kernel.step_sizes))
        return
    _, info = advance(plan, end, 1)
    theta = positions(end.state)
    start = begin(after, theta, generator(0))._replace(rng=end.rng)
    if isinstance(
        kernel, (ChEES, MAMS)
    ):  # the first transition of a run is as long as the first number of Halton's sequence
        start = start._replace(state=start.state._replace(count=end.state.count))
    if isinstance(kernel, MCLMC):  # the first direction of a run is drawn
        start = start._replace(state=start.state._replace(u=end.state.u))
    if isinstance(kernel, SGHMC):  # which would start at rest, at the start of a cycle
        start = start._replace(state=end.state)
    _, expected = advance(after, start, 1)
    torch.testing.assert_close(info.theta, expected.theta, rtol=1e-12, atol=1e-12)


def positions(state):
    """Where the chains are."""
    while not hasattr(state, "theta"):
        state = state[0]
    return state.theta


def test_many_are_stacked_in_order():
    plan = plan_of(KERNELS["HMC"], num_warmup=0)
    _, info = advance(plan, start_of(plan), 5)
    assert info.theta.shape == (2, 5, 3)
    assert {values.shape for values in info.stats.values()} == {(2, 5)}
    last = info.at([4])
    assert torch.equal(last.theta[:, 0], info.theta[:, -1])
    assert isinstance(last, Info)


def test_what_was_made_before_an_error_is_kept(monkeypatch):
    """And the checkpoint from which it can be made again is the one that went in."""
    plan, step, count = plan_of(KERNELS["HMC"], num_warmup=0), HMC.step, itertools.count()
    start = start_of(plan)
    _, expected = advance(plan, start, 7)

    def failing(*args):
        if next(count) == 7:
            raise ZeroDivisionError
        return step(*args)

    monkeypatch.setattr(HMC, "step", failing)
    made = segment(plan, start, 20)
    assert made.end is None
    assert isinstance(made.error, ZeroDivisionError)
    assert equal(made.info, expected)


# --- chains that go on ------------------------------------------------------------------------------------------------


def draw(kernel, num_samples=12, **arguments):
    arguments = {"num_chains": 4, "warmup": WARMUP, "seed": 1, "progress": False, "compile": False} | arguments
    return sample(regression(), kernel, num_samples, **arguments)


def same(one, two):
    """To the bit, with all temperatures and what the chain says of itself."""

    def told(chain):
        ladder = None if chain.tempering is None else [values for _, _, values in chain.tempering.items()]
        facts = [chain.names, repr(chain.kernel), chain.gradient, str(chain.seed), chain.warmup, chain.thinning]
        return chain.draws, chain.stats, ladder, facts

    return equal(told(one), told(two))


@each_kernel
@pytest.mark.parametrize("arguments", [{}, {"batch_size": 2}, {"batch_size": 3, "thin": 3}], ids=["one", "two", "thin"])
def test_extend(kernel, arguments):
    """The longer run, to the bit; twice from the same chain; and in two steps.

    Fails when the last draw of the first part is made again, or the warm-up, and when what was extended changes.
    """
    longer, first = draw(kernel, 20, **arguments), draw(kernel, 8, **arguments)
    before = first.draws.clone()
    once, twice, again = first.extend(12), first.extend(5).extend(7), first.extend(12)
    assert same(once, longer)
    assert same(twice, longer)
    assert same(again, longer)
    assert torch.equal(first.draws, before)
    assert first.num_draws == 8


def stopping(monkeypatch, kernel, after):
    """From now on segments are of five transitions, and the kernel is interrupted after so many of all batches."""
    kind, name = type(kernel), "steps" if hasattr(kernel, "steps") else "step"
    original, made = getattr(kind, name), 0

    def interrupted(self, density, generator, state, *num):
        nonlocal made
        made += sum(num) or 1
        if made > after:
            raise KeyboardInterrupt
        return original(self, density, generator, state, *num)

    monkeypatch.setattr(executors, "next_length", lambda *_: 5)
    monkeypatch.setattr(kind, name, interrupted)


@each_kernel
@pytest.mark.parametrize("arguments", [{}, {"batch_size": 2}, {"batch_size": 2, "thin": 3}], ids=["one", "two", "thin"])
def test_extend_after_an_interruption(kernel, arguments, monkeypatch):
    """The draws so far are a prefix, and with the rest they are the run that nobody disturbed, in other segments.

    It is in the middle of a segment, and of two batches one is ahead. Fails when draws that were made behind the last
    checkpoint are made again and kept twice, or forgotten.
    """
    whole = draw(kernel, 20, **arguments)
    batches, thin = 4 // arguments.get("batch_size", 4), arguments.get("thin", 1)
    with monkeypatch.context() as patch:
        stopping(patch, kernel, batches * (WARMUP + 7 * thin) + 2)
        with pytest.warns(RuntimeWarning, match=r"interrupted: the chain holds the \d draws made so far, of 20"):
            found = draw(kernel, 20, **arguments)
    made = found.num_draws
    assert 5 <= made < 10
    assert torch.equal(found.draws, whole.draws[:, :made])
    assert same(found.extend(20 - made), whole)
    assert same(found.extend(2).extend(18 - made), whole)


def test_extend_with_workers():
    """Fails when a batch that goes on in another process starts again."""
    one = draw(KERNELS["HMC"], 12, batch_size=2)
    two = draw(KERNELS["HMC"], 5, batch_size=2, workers=2)
    assert same(two.extend(7), one)


def test_times_add_up():
    first = draw(KERNELS["HMC"], 200)
    both = first.extend(200)
    assert first.sampling_time < both.sampling_time <= both.wall_time
    assert first.wall_time < both.wall_time


@pytest.mark.parametrize(
    "changed",
    [
        lambda chain: chain.thin(2),
        lambda chain: chain.drop(2),
        lambda chain: Chain.merge([chain, draw(KERNELS["HMC"], seed=2)]),
        lambda chain: Chain.from_draws(chain.draws, regression()),
        lambda chain: pickle.loads(pickle.dumps(chain)),
    ],
    ids=["thinned", "dropped", "merged", "from elsewhere", "pickled"],
)
def test_what_does_not_go_on(changed):
    with pytest.raises(ValueError, match="it is not known how this chain goes on: only what sample returns can be"):
        changed(draw(KERNELS["HMC"])).extend(3)


def test_a_chain_from_a_file_does_not_go_on(tmp_path):
    draw(KERNELS["HMC"]).save(tmp_path / "run.nc")
    with pytest.raises(ValueError, match="it is not known how this chain goes on"):
        Chain.load(tmp_path / "run.nc").extend(3)


@pytest.mark.parametrize(("num", "error"), [(0, ValueError), (-1, ValueError), (1.5, ValueError), ("3", TypeError)])
def test_how_many(num, error):
    with pytest.raises(error, match="num must be a whole number of at least 1"):
        draw(KERNELS["HMC"]).extend(num)
