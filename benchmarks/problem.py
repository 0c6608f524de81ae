"""What is computed and how much of it. Nothing here is imported that a measured process should not have imported."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

STEP_SIZE, NUM_STEPS, PRECISION = 0.05, 4, 0.09
EXCHANGE_STEPS, NUM_TEMPERATURES = 12, 12  # of replica exchange, which chooses its step sizes itself
NETWORK = (2, 3, 2, 1)
DIM = 20


class Size(NamedTuple):
    """How large a problem is, and the step size that suits it."""

    points: int = 80
    network: tuple[int, ...] = NETWORK
    step_size: float = STEP_SIZE

    @property
    def dim(self) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(self.network))

    @property
    def jump(self) -> float:
        """The squared distance by which a transition moves where no force acts: unit mass in each direction."""
        return self.dim * (self.step_size * NUM_STEPS) ** 2


class Problem(NamedTuple):
    """Points in four boxes and where the chains start, in the workload's dtype; the network and the step size."""

    x: np.ndarray  # (N, 2)
    y: np.ndarray  # (N,), 0 or 1
    starts: np.ndarray  # (C, D), draws from the prior
    network: tuple[int, ...]
    step_size: float


# A program, made ready for a problem and a number of draws per chain: seed -> draws, with D numbers in the last
# dimension, and what the library reports: the mean acceptance rate or, in workload F, the number of divergences.
Run = Callable[[int], tuple["np.ndarray", float]]


class Workload(NamedTuple):
    title: str
    num_chains: int
    num_draws: int
    # Which call of a process is timed: the first with an empty cache or with the code in the cache, or the second.
    call: Literal["first", "cached", "warm"]
    unit: str
    libraries: tuple[str, ...]
    size: Size = Size()
    dtype: str = "float32"


# Label -> module in `programs` and the function there that makes the program ready.
LIBRARIES = {
    "bnn_utils": ("ours", "build"),
    "bnn_utils, torch": ("ours", "build_in_torch"),
    "BlackJAX": ("blackjax", "build"),
    "NumPyro": ("numpyro", "build"),
    "NumPyro in jax.jit": ("numpyro", "build_jitted"),
    "Pyro": ("pyro", "build"),
    "hamiltorch.sample": ("hamiltorch", "build"),
    "hamiltorch.sample_model": ("hamiltorch", "build_model"),
    "bnn_utils, replica exchange": ("ours", "build_tempered"),
    "BlackJAX, NUTS": ("blackjax", "build_nuts"),
    "NumPyro, NUTS": ("numpyro", "build_nuts"),
}
OURS = ("bnn_utils", "bnn_utils, torch")
TEMPERED = "bnn_utils, replica exchange"
MANY_CHAINS = ("BlackJAX", "NumPyro", "NumPyro in jax.jit")  # the others draw one chain after the other
ONE_CHAIN = (*MANY_CHAINS, "Pyro", "hamiltorch.sample", "hamiltorch.sample_model")

# All begin at draws from the prior, from which the force of many points pulls them away. The more points, the smaller
# the steps that are accepted there, and that go as far as they would without a force.
LARGE = Size(points=1_000, network=(2, 50, 50, 1), step_size=8e-3)
LARGER = LARGE._replace(points=10_000, step_size=1.5e-4)
LARGEST = LARGE._replace(points=100_000, step_size=1.5e-5)
OF_LARGE = (*OURS, "BlackJAX", "NumPyro in jax.jit")
WORKLOADS = {
    "A": Workload("1 chain, 5,000 draws, warm", 1, 5_000, "warm", "s", (*OURS, *MANY_CHAINS)),
    "A1": Workload("1 chain, 5,000 draws, first call", 1, 5_000, "first", "s", (*OURS, *ONE_CHAIN)),
    "A2": Workload("1 chain, 5,000 draws, code in the cache", 1, 5_000, "cached", "s", ("bnn_utils", *MANY_CHAINS)),
    "B": Workload("64 chains, 5,000 draws each, first call", 64, 5_000, "first", "s", ("bnn_utils", *MANY_CHAINS)),
    "C": Workload("64 chains, warm, one transition", 64, 2_000, "warm", "ms", (*OURS, *MANY_CHAINS)),
    "D": Workload("1,024 chains, warm, one transition", 1_024, 200, "warm", "ms", (*OURS, *MANY_CHAINS)),
    "G": Workload(
        "16 chains of 2,751 parameters, warm, one transition",
        *(16, 200, "warm", "ms", (*OURS, *MANY_CHAINS), LARGE),
    ),
    "G4": Workload("G with 10,000 points", 16, 5, "warm", "ms", OF_LARGE, LARGER),
    "G5": Workload("G with 100,000 points", 16, 2, "warm", "ms", OF_LARGE, LARGEST),
}
WORKLOADS |= {
    f"{name}64": WORKLOADS[name]._replace(
        title=f"{WORKLOADS[name].title}, float64", libraries=("bnn_utils", *MANY_CHAINS), dtype="float64"
    )
    for name in "AC"
}
CHARTED = ("A", "A1", "B", "C", "D", "G")

# Workload F, in parts: each sampler draws as much as it would be asked for. Its warm-up is its own.
EFFECTIVE = (
    Workload("16 chains of 4,500 draws", 16, 4_500, "first", "ESS/s", (TEMPERED,)),
    Workload("4 chains of 1,000 draws", 4, 1_000, "first", "ESS/s", ("BlackJAX, NUTS", "NumPyro, NUTS")),
)


# By these a program shows that it runs the same sampler on the same posterior. A few chains may sit for long where they
# accept little; the mean of 64 may not. In an accepted transition the squared distance is near `Size.jump`, by
# these factors: three steps would give 0.56 of it and five 1.56.
ACCEPTANCE_OF_FEW, ACCEPTANCE = (0.1, 0.99), (0.75, 0.95)
JUMP = (0.75, 1.2)


# Instructions in bnn_utils/gradients/vector.py, a division among those of tanh. Dividing takes longer than the others
# but goes on beside them. In float64 polynomials have three and five terms more.
TANH, EXP = {"float32": 15, "float64": 18}, {"float32": 17, "float64": 22}


class Setting(NamedTuple):
    """One point on a curve of cost."""

    lanes: int = 64
    points: int = 80
    network: tuple[int, ...] = NETWORK

    @property
    def flops(self) -> int:
        return self.product_flops + self.function_flops("float32")

    @property
    def product_flops(self) -> int:
        """Floating-point operations of one transition: two per multiply-add of its matrix products.

        A layer of n inputs and m outputs has n m multiply-adds per point forward and n m for the gradient of its
        weights; all layers but the first have n m more for the gradient of their inputs.
        """
        sizes = [n * m for n, m in pairwise(self.network)]
        return 2 * (3 * sum(sizes) - sizes[0]) * self._evaluations

    @property
    def times_in_double(self) -> float:
        """How many times as long the same takes in float64, whose vectors hold half as many numbers."""
        return 2 * (self.product_flops + self.function_flops("float64")) / self.flops

    def function_flops(self, dtype: str) -> int:
        """The same of its functions, where each instruction takes the time of a multiply-add: two operations.

        Per point a tanh for each hidden unit, and for the gradient at the output an exp with a division.
        """
        return 2 * (TANH[dtype] * sum(self.network[1:-1]) + EXP[dtype] + 1) * self._evaluations

    @property
    def _evaluations(self) -> int:
        return self.points * self.lanes * NUM_STEPS


CURVES = {
    "lanes": [Setting(lanes=4**power) for power in range(7)],
    "points": [Setting(points=80 * 10**power) for power in range(4)],
    "width": [Setting(), *(Setting(network=(2, width, width, 1)) for width in (8, 16, 32, 64))],
}
PROFILED = ("C", "D")
VARIANTS = ("bnn_utils, autograd", "bnn_utils, torch", "bnn_utils")


def network_name(network: tuple[int, ...]) -> str:
    return "-".join(map(str, network))
