"""Small networks in native code: what `bnn_utils.gradients.program` describes, called for tensors."""

from __future__ import annotations

import ctypes
import functools
import inspect
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from bnn_utils.gradients import LogDensity
from bnn_utils.layers import Layer
from bnn_utils.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from bnn_utils.priors import DiagonalNormal

if TYPE_CHECKING:
    from bnn_utils.gradients.formulas import Noise
    from bnn_utils.gradients.products import Products
    from bnn_utils.gradients.program import Program, Unit
    from bnn_utils.kernels.hmc import Position
    from bnn_utils.kernels.replica_exchange import TemperedPosition
    from bnn_utils.posterior import Posterior

# Every parameter becomes some dozen instructions. Beyond this they take more than two seconds to make, and gain little
# over products of matrices.
MAX_PARAMETERS = 256

Way = tuple[Literal["points", "lanes"], int]

# What vectors go over, and how many of the usual length are one: by so much is it faster than one over points, if it is
# full. One over lanes saves the sums over its numbers. A double one computes with one half while results of the other
# are on their way; networks of more parameters have more numbers than registers already.
GAINS: dict[Way, float] = {("points", 1): 1.0, ("lanes", 1): 1.15, ("lanes", 2): 1.25}
MAX_PARAMETERS_OF_DOUBLE = 40

# Seconds of one core that are worth a second thread, and that a lane's gradient takes for each unit and point.
SECONDS_FOR_THREADS, SECONDS_PER_UNIT = 100e-6, 1e-9

STATE_BYTES = 5056  # of torch's generator, as the program knows it
SHORTEST = 16  # normal numbers that torch makes of uniform ones together
NUMBERS_AHEAD = 2**18  # that are drawn for a block of transitions: they stay in the caches

# To make it with an empty cache, measured on one core of an AMD EPYC (Zen 2).
SECONDS_TO_COMPILE, SECONDS_PER_PARAMETER = 0.4, 0.006

LIKELIHOODS = (Bernoulli, Categorical, Gaussian)

P = TypeVar("P", bound="Position | TemperedPosition")


class Transitions(NamedTuple):
    """Where T transitions lead C lanes, and what is recorded of them."""

    theta: Tensor  # (C, D)
    log_prob: Tensor  # (C,)
    grad: Tensor  # (C, D)
    thetas: Tensor  # (C, T, D)
    log_probs: Tensor  # (C, T)
    start_energy: Tensor  # (C, T)
    end_energy: Tensor  # (C, T)
    is_accept: Tensor  # (C, T), bool
    step_size: Tensor  # (C, T)


class Exchanges(NamedTuple):
    """What is recorded of T transitions of replica exchange, of C chains with K lanes."""

    theta: Tensor  # (C, T, D), of the coldest lanes
    log_prob: Tensor  # (C, T, K), and so on
    log_likelihood: Tensor
    start_energy: Tensor
    end_energy: Tensor
    is_accept: Tensor  # bool
    replica: Tensor
    step_size: Tensor


class Native:
    """The log density of a small network under independent normals, its trajectories and HMC's transitions.

    Lanes are shared out among threads, which changes no number.

    Args:
        posterior: given by its model and data.
        num_lanes: C.

    Attributes:
        num_threads: at most.
        has_prior: whether the prior is one that trajectories know; otherwise there are gradients of the likelihood.
        seconds: that gradients of all lanes take one core, roughly.
        lanes_in_tile: that are worked on together.
        numbers: what draws random numbers.
        splits_lanes: whether a lane is shared out among threads as well.
    """

    def __init__(self, posterior: Posterior, num_lanes: int) -> None:
        self._program = program_of(posterior, num_lanes)
        self._code = code_of(self._program)
        self._check = functools.partial(check_vectors, (num_lanes, posterior.flat.dim), posterior.dtype)
        self.num_lanes, self.num_threads = num_lanes, 1
        self.lanes_in_tile, self.numbers, self.splits_lanes = self._program.lanes, self._code, False
        prior = posterior.prior_distribution
        self.has_prior = isinstance(prior, DiagonalNormal)
        if isinstance(prior, DiagonalNormal):
            self._precision = prior.precision.contiguous()
            self._log_normalizer = prior.log_normalizer.item()
        self._arrays, self._stride = _laid_out(self._program, posterior, num_lanes)
        num_points = self._arrays[0].shape[1]
        units = sum(len(unit.places) for unit in self._program.layers)
        self.seconds = SECONDS_PER_UNIT * units * num_points * num_lanes

    def log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The log likelihood and its gradient."""
        self._check(theta)
        theta = theta.contiguous()
        value, grad = theta.new_empty(len(theta)), torch.empty_like(theta)
        self._call("gradients", 1, [(theta, value, grad)])
        return value, grad

    @property
    def likelihood(self) -> LogDensity:
        return LogDensity(self.log_prob_and_grad, lambda theta: self.log_prob_and_grad(theta)[1], self, callee=self)

    def called(self) -> tuple[int, Tensor, Any]:
        """For other native code: where the log likelihood of a tile begins, the context to call it with, and what must
        live as long.
        """
        data = *(array.data_ptr() for array in self._arrays), self._arrays[0].shape[1], self._stride
        return self._code.address("of_tile"), torch.tensor([self.num_lanes, *data]), (self._code, self._arrays)

    def trajectory(
        self, start: P, p: Tensor, step_size: float | Tensor, num_steps: int, inv_mass: Tensor | None
    ) -> tuple[P, Tensor]:
        """As `leapfrog`: with one step size for all or ``(C, 1)``, and a mass of any kind."""
        self._check(start.theta, p, start.grad)
        theta, p, grad = map(_copied, (start.theta, p, start.grad))
        log_prob = theta.new_empty(len(theta))
        sizes = step_size.contiguous() if isinstance(step_size, Tensor) else torch.full_like(log_prob, step_size)
        constants = num_steps, self._precision, *self._mass(inv_mass), self._log_normalizer
        self._call("trajectories", num_steps, [(theta, p, grad, log_prob, sizes, *constants)])
        kind: Any = type(start)  # a tempered one, which has more fields, never comes here
        return kind(theta, log_prob, grad), p

    def transitions(
        self,
        generator: torch.Generator,
        start: tuple[Tensor, Tensor, Tensor],
        step_size: float,
        jitter: float,
        num_steps: Tensor,
        inv_mass: Tensor | None,
        factor: Tensor | None,
    ) -> Transitions:
        """Transitions of HMC from theta, log_prob and grad, one for each of the numbers of steps ``(T,)``, int64."""
        self._check(start[0], start[2])
        theta, log_prob, grad = map(_copied, start)
        (num_lanes, dim), num = theta.shape, len(num_steps)
        thetas, log_probs = theta.new_empty(num_lanes, num, dim), theta.new_empty(num_lanes, num)
        starts, ends, sizes = (torch.empty_like(log_probs) for _ in range(3))
        accepts = torch.empty_like(log_probs, dtype=torch.bool)
        recorded = thetas, log_probs, starts, ends, accepts
        scaling = self._scaling(factor)
        constants = self._precision, *self._mass(inv_mass), scaling, self._log_normalizer

        def blocks() -> Iterator[tuple[Tensor | float, ...]]:
            for block, count in _blocks(num, theta):
                u, noise, uniforms = drawn(generator, count, theta, self._code, num_lanes * bool(jitter), num_lanes)
                noise, steps = mixed(noise, factor), num_steps[block].contiguous()
                size = varied(step_size, jitter, u, uniforms)
                sizes[:, block] = size.T
                of_block = [values[:, block] for values in recorded]  # views: only where they begin is passed on
                yield count, num, theta, log_prob, grad, noise, size, uniforms, *of_block, steps, *constants

        self._call("transitions", int(num_steps.sum()), blocks())
        return Transitions(theta, log_prob, grad, *recorded, sizes)

    def exchanges(
        self,
        generator: torch.Generator,
        start: tuple[Tensor, Tensor, Tensor, Tensor],
        ladder: tuple[Tensor, Tensor, Tensor],
        done: int,
        jitter: float,
        num_steps: int,
        inv_mass: Tensor | None,
        factor: Tensor | None,
        num: int,
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Exchanges]:
        """``num`` transitions of replica exchange, after ``done`` others: where they lead, like start, and what was.

        Args:
            start: theta ``(C K, D)``, log likelihood with its gradient, and replica ``(C, K)``.
            ladder: beta ``(C K,)``, its differences ``(K - 1,)`` between neighbours, and step sizes ``(C K, 1)``.
            inv_mass: as in HMC; factor: of the mass, as in `Metric`.
        """
        self._check(start[0], start[2])
        theta, log_likelihood, grad_likelihood, replica = map(_copied, start)
        beta, gaps, sizes = ladder
        (num_chains, temperatures), (num_lanes, dim) = replica.shape, theta.shape
        thetas, size = theta.new_empty(num_chains, num, dim), theta.new_empty(num_chains, num, temperatures)
        log_probs, likelihoods, starts, ends = (torch.empty_like(size) for _ in range(4))
        accepts, replicas = torch.empty_like(size, dtype=torch.bool), torch.empty_like(size, dtype=replica.dtype)
        recorded = log_probs, likelihoods, starts, ends, accepts, replicas
        constants = num_steps, self._precision, *self._mass(inv_mass), self._scaling(factor), self._log_normalizer
        moved, num_pairs = (theta, log_likelihood, grad_likelihood, replica), num_chains * (temperatures - 1)

        def blocks() -> Iterator[tuple[Tensor | float, ...]]:
            for block, count in _blocks(num, theta):
                before, noise, uniforms = drawn(
                    generator, count, theta, self._code, num_pairs + num_lanes * bool(jitter), num_lanes
                )
                noise = mixed(noise, factor)
                swaps, u = before[:, :num_pairs].contiguous(), before[:, num_pairs:]
                varied = sizes[:, 0] * (1 + jitter * (2 * u - 1)) if jitter else sizes[:, 0].repeat(count, 1)
                size[:, block] = varied.view(count, num_chains, temperatures).transpose(0, 1)
                of_block = [values[:, block] for values in (thetas, *recorded)]
                drawn_for_block = swaps, noise, varied, uniforms
                done_before = done + block.start
                yield count, num, done_before, temperatures, *moved, *drawn_for_block, beta, gaps, *of_block, *constants

        self._call("exchanges", num * num_steps, blocks(), whole=temperatures)
        return moved, Exchanges(thetas, *recorded, size)

    def _mass(self, inv_mass: Tensor | None) -> tuple[Tensor, int]:
        """As an array, and whether it is dense."""
        if inv_mass is None:
            return torch.ones_like(self._precision), 0
        return inv_mass.contiguous(), int(inv_mass.ndim == 2)

    def _scaling(self, factor: Tensor | None) -> Tensor:
        """What native code makes momenta with; by a dense factor they are made before."""
        return torch.ones_like(self._precision) if factor is None or factor.ndim != 1 else factor.contiguous()

    def _call(
        self, name: str, num_gradients: int, blocks: Iterable[tuple[Tensor | float, ...]], whole: int = 1
    ) -> None:
        """One of the functions for all tiles, with the arguments of one block after the other.

        Where it is worth that, several threads take some tiles each, lanes by the ``whole``. They go from block to
        block by themselves: this one, which draws the numbers of the next block before it does its part of this one,
        keeps nobody waiting.
        """
        shared = *self._arrays, self._arrays[0].shape[1], self._stride

        def call(first: int, last: int, arguments: tuple[Tensor | float, ...], before: Future | None = None) -> None:
            if before is not None:
                before.result()
            self._code.call(name, first, last, self.num_lanes, *arguments, *shared)

        num_tiles = -(-self.num_lanes // self._program.lanes)
        unit = math.lcm(whole, self._program.lanes) // self._program.lanes
        worth = int(self.seconds * num_gradients / SECONDS_FOR_THREADS)
        parts = max(1, min(self.num_threads, num_tiles // unit, worth))
        edges = [num_tiles * part // parts // unit * unit for part in range(parts)] + [num_tiles]
        mine, *others = itertools.pairwise(edges)
        # None before the first block, of which there is at least one.
        started: list[Any] = [None] * len(others)
        last: Any = None
        for arguments in blocks:
            started = [
                _pool().submit(call, *edge, arguments, before) for edge, before in zip(others, started, strict=True)
            ]
            if last is not None:
                call(*mine, last)
            last = arguments
        call(*mine, last)
        for other in started:
            other.result()


def check_vectors(shape: tuple[int, int], dtype: torch.dtype, *values: Tensor) -> None:
    """Raise where native code would read what is not there."""
    for value in values:
        if (tuple(value.shape), value.dtype) != (shape, dtype):
            raise ValueError(
                f"this density is for vectors in the shape {shape} and {dtype}, one for each lane; got "
                f"{tuple(value.shape)} and {value.dtype}"
            )


def shared_out(call: Callable[[int, int], None], num: int, num_threads: int, seconds: float) -> None:
    """What takes so many seconds of one core, from 0 to ``num``, among threads where that is worth it."""
    parts = max(1, min(num_threads, num, int(seconds / SECONDS_FOR_THREADS)))
    mine, *others = itertools.pairwise(num * part // parts for part in range(parts + 1))
    started = [_pool().submit(call, *edge) for edge in others]
    call(*mine)
    for other in started:
        other.result()


def in_threads(work: Callable[[], None], num: int) -> None:
    """The same in so many threads, of which this is one."""
    started = [_pool().submit(work) for _ in range(num - 1)]
    work()
    for other in started:
        other.result()


def _blocks(num: int, theta: Tensor) -> Iterator[tuple[slice, int]]:
    """Of ``num`` transitions at theta, those whose numbers are drawn together, and how many they are."""
    length = max(1, NUMBERS_AHEAD // theta.numel())
    for begin in range(0, num, length):
        end = min(begin + length, num)
        yield slice(begin, end), end - begin


def mixed(noise: Tensor, factor: Tensor | None) -> Tensor:
    """Standard normal numbers ``(T, C, D)`` by a dense factor: to the bit the same for each of T, whatever T is."""
    if factor is None or factor.ndim == 1:
        return noise
    return torch.stack([one @ factor.mT for one in noise])


def varied(step_size: float, jitter: float, u: Tensor, like: Tensor) -> Tensor:
    """Step sizes ``(T, C)``, with jitter by uniform numbers."""
    return step_size * (1 + jitter * (2 * u - 1)) if jitter else torch.full_like(like, step_size)


def _copied(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "native")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


# --- random numbers ---------------------------------------------------------------------------------------------------


def drawn(
    generator: torch.Generator, num: int, like: Tensor, code: Code | None, num_before: int, num_after: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``num`` transitions of lanes at ``like`` (C, D) draw one after the other, all at once.

    In each, so many uniforms, a normal ``(C, D)``, and so many uniforms. Torch makes 16 and more normal numbers of as
    many uniform ones, and draws these one by one: so all can be drawn together, and the generator comes as far as by
    the calls of torch. The normal numbers are torch's but for rounding. Without code torch draws them.

    Returns:
        uniforms that come first ``(num, num_before)``; noise ``(num, C, D)``; uniforms that come last
        ``(num, num_after)``.
    """
    (num_lanes, dim), count, first = like.shape, like.numel(), num_before
    noise = like.new_empty(num, num_lanes, dim)
    if code is not None and count >= SHORTEST and code.knows_torchs_normals:
        of_noise = count + SHORTEST * (count % SHORTEST > 0)
        words = like.new_empty(num, first + of_noise + num_after)
        if code.knows_torchs_uniforms:
            code.draw_uniforms(generator, words)
        else:
            torch.rand(words.shape, generator=generator, out=words)
        code.call("normals", words[:, first:], noise, num, count, words.shape[1])
        return words[:, :first], noise, words[:, first + of_noise :].contiguous()
    before, uniforms = like.new_empty(num, first), like.new_empty(num, num_after)
    for t in range(num):
        torch.rand(first, generator=generator, out=before[t])
        torch.randn(num_lanes, dim, generator=generator, out=noise[t])
        torch.rand(num_after, generator=generator, out=uniforms[t])
    return before, noise, uniforms


# --- programs ---------------------------------------------------------------------------------------------------------


def can_be_native(posterior: Posterior) -> bool:
    """Whether there is native code for it: for the closed form with one of our likelihoods, on the CPU."""
    return posterior.layers is not None and posterior.device.type == "cpu" and type(posterior.likelihood) in LIKELIHOODS


def layers_of(posterior: Posterior) -> list[Layer]:
    """Of one that can be native."""
    assert posterior.layers is not None
    return posterior.layers


def is_small(posterior: Posterior) -> bool:
    """Whether a program holds a variable for every number; larger ones are products of matrices."""
    return posterior.flat.dim <= MAX_PARAMETERS


def seconds_to_compile(posterior: Posterior) -> float:
    """Predicted, with an empty cache."""
    return SECONDS_TO_COMPILE + SECONDS_PER_PARAMETER * posterior.flat.dim * is_small(posterior)


def program_of(posterior: Posterior, num_lanes: int) -> Program:
    from bnn_utils.gradients.program import Program
    from bnn_utils.gradients.writer import width_of

    likelihood, layers, num_points = posterior.likelihood, layers_of(posterior), len(posterior.counted)
    last, width = layers[-1].log_scale, width_of(posterior.dtype.itemsize)

    def cost(way: Way) -> float:
        """A vector that is not full takes as long as a full one."""
        over, times = way
        along, others = (num_lanes, num_points) if over == "lanes" else (num_points, num_lanes)
        return _filled(along, times * width) * others / GAINS[way]

    ways = [way for way in GAINS if way[1] == 1 or posterior.flat.dim <= MAX_PARAMETERS_OF_DOUBLE]
    over, times = min(ways, key=cost)
    return Program(
        layers=tuple(map(_unit, layers)),
        log_scales=tuple(range(last.start, last.stop)) if last else (),
        likelihood=type(likelihood).__name__,
        noise=noise_of(likelihood),
        dtype=str(posterior.dtype).removeprefix("torch."),
        over=over,
        width=times * width,
        is_weighted=posterior.counted.weights is not None,
        has_datasets=over == "lanes" and posterior.num_datasets > 1,
    )


def noise_of(likelihood: Likelihood) -> Noise | None:
    from bnn_utils.gradients.formulas import Noise

    if not isinstance(likelihood, Gaussian):
        return None
    return Noise(likelihood.scale, likelihood.link, likelihood.units is not None)


def _filled(num: int, width: int) -> int:
    """So many numbers, and those that fill up the last vector."""
    return -(-num // width) * width


def _unit(layer: Layer) -> Unit:
    from bnn_utils.gradients.program import Unit

    return Unit(tuple(map(tuple, layer.places().tolist())), layer.bias is not None, *activation_of(layer))


def activation_of(layer: Layer) -> tuple[str | None, tuple[tuple[str, Any], ...]]:
    """The activation's name, and its options."""
    act = layer.activation
    return (None, ()) if act is None else (act.name, tuple(sorted(act.forward_options.items())))


def arrays_of(posterior: Posterior, num_lanes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``(features, N)``, targets ``(C, K, N)`` or ``(1, K, N)`` for all lanes, and weights ``(N,)``.

    Targets are in the likelihood's units, with the logarithm of these as one more.
    """
    with torch.inference_mode(False), torch.no_grad():
        x, weights = posterior.features, posterior.counted.weights
        assert x is not None  # they come with the layers
        y, likelihood = posterior.targets_for(num_lanes).to(x.dtype), posterior.likelihood
        units = likelihood.units if isinstance(likelihood, Gaussian) else None
        y = y if units is None else units(y)
        y = y.reshape(1 if posterior.num_datasets == 1 else num_lanes, len(x), -1).mT
        if units is not None:  # as `Noise` says
            y = torch.cat([y, units.sd.to(x).log().sum().expand_as(y[:, :1])], dim=1)
        return x.T, y, x.new_ones(len(x)) if weights is None else weights


def filled_up(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with so many points that no vector is left unfilled: the last one is repeated, with no weight."""
    from bnn_utils.gradients.writer import width_of

    with torch.inference_mode(False), torch.no_grad():
        num = -len(weights) % width_of(x.dtype.itemsize)
        x, y = (torch.cat([values, values[..., -1:].expand(*values.shape[:-1], num)], dim=-1) for values in (x, y))
        return x.contiguous(), y.contiguous(), torch.cat([weights, weights.new_zeros(num)])


def _laid_out(program: Program, posterior: Posterior, num_lanes: int) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """Inputs, targets and weights as programs read them; how far lanes' targets are apart."""
    x, y, weights = arrays_of(posterior, num_lanes)
    with torch.inference_mode(False), torch.no_grad():
        if program.over == "points":
            x, y, weights = filled_up(x, y, weights)
        elif program.has_datasets:
            rows = torch.arange(_filled(num_lanes, program.width)).clamp(max=num_lanes - 1)
            y = y[rows].unflatten(0, (-1, program.width)).permute(0, 2, 3, 1)  # (tiles, K, N, width)
        stride = y[0].numel() if posterior.num_datasets > 1 else 0
        return (x.contiguous(), y.contiguous(), weights.contiguous()), stride


class Code:
    """A program's functions, compiled now or before, in this process or another one.

    Raises:
        ImportError: without llvmlite.
        RuntimeError: where LLVM fails, or the processor is too old.
    """

    def __init__(self, program: Program | Products) -> None:
        from bnn_utils.gradients import blocks, formulas, machine, products, vector, writer
        from bnn_utils.gradients import program as programs

        source = blocks if isinstance(program, programs.Program) else products
        files = tuple(map(inspect.getfile, (writer, vector, formulas, programs, blocks, products)))
        self._library = machine.load(program, lambda: source.assemble(program), files)
        self._scalar = ctypes.c_float if program.dtype == "float32" else ctypes.c_double
        self._torch_dtype = getattr(torch, program.dtype)
        self._functions: dict[str, Any] = {}

    def call(self, name: str, *arguments: Tensor | float) -> None:
        """One of the functions: tensors by where their numbers lie, whole numbers, others in the program's dtype."""
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._library.function(name, [self._kind(value) for value in arguments])
        function(*[value.data_ptr() if isinstance(value, Tensor) else value for value in arguments])

    def address(self, name: str) -> int:
        """Where a function begins."""
        return self._library.address(name)

    def _kind(self, value: Tensor | float) -> Any:
        if isinstance(value, Tensor):
            return ctypes.c_void_p
        return ctypes.c_int64 if isinstance(value, int) else self._scalar

    def draw_uniforms(self, generator: torch.Generator, out: Tensor) -> None:
        """As `torch.rand`, which takes four times as long."""
        state = generator.get_state()
        self.call("uniforms", state, out, out.numel())
        generator.set_state(state)

    @functools.cached_property
    def knows_torchs_uniforms(self) -> bool:
        """Whether this version of torch draws uniform numbers as the program does, from a state that looks the same."""
        theirs, mine = _generators()
        if theirs.get_state().numel() != STATE_BYTES:
            return False
        found = torch.empty(2000, dtype=self._torch_dtype)
        self.draw_uniforms(mine, found)
        expected = torch.rand(len(found), generator=theirs, dtype=found.dtype)
        return torch.equal(found, expected) and torch.equal(mine.get_state(), theirs.get_state())

    @functools.cached_property
    def knows_torchs_normals(self) -> bool:
        """Whether this version of torch makes normal numbers of uniform ones as the program does."""
        count = 2 * SHORTEST + 5
        theirs, mine = _generators()
        words = torch.rand(count + SHORTEST, generator=mine, dtype=self._torch_dtype)
        found = torch.empty_like(words[:count])
        self.call("normals", words, found, 1, count, 0)
        expected = torch.randn(count, generator=theirs, dtype=found.dtype)
        tolerance = 64 * torch.finfo(found.dtype).eps
        is_close = torch.allclose(found, expected, tolerance, tolerance)
        return is_close and torch.equal(mine.get_state(), theirs.get_state())


def _generators() -> tuple[torch.Generator, torch.Generator]:
    """Two that draw the same."""
    return torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)


_CODE: dict[Program | Products, Code] = {}
_LOCK = threading.Lock()  # held while code is made: two threads need no two copies


def code_of(program: Program | Products) -> Code:
    """Once in a process."""
    with _LOCK:
        if program not in _CODE:
            _CODE[program] = Code(program)
        return _CODE[program]
