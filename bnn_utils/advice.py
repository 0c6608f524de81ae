"""What a reader should know of a chain before believing it, in words: `Chain.warnings`.

Each check is a function ``Chain -> str | None``. It looks at statistics, kernel and warm-up, and never at all of the
draws, which may be large; of a chain that it cannot judge, such as one without the statistic, it says nothing. No
warning is no proof: chains that all miss the same part of a posterior look fine. And parameters are not looked at,
because weights that disagree may be one function: what remains to be checked are predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnn_utils.diagnostics import ESS_PER_CHAIN, RHAT_LIMIT, diagnose, enumerated
from bnn_utils.kernels.base import MAX_ENERGY_ERROR
from bnn_utils.kernels.chees import CHEES_TARGET_ACCEPTANCE, ChEES
from bnn_utils.kernels.hamiltorch import Hamiltorch
from bnn_utils.kernels.hmc import HMC, LANGEVIN_TARGET_ACCEPTANCE, MAX_STEPS, TARGET_ACCEPTANCE
from bnn_utils.kernels.microcanonical import MAMS, MAMS_TARGET_ACCEPTANCE, MCLMC
from bnn_utils.kernels.nuts import NUTS
from bnn_utils.kernels.replica_exchange import ReplicaExchange, rounds
from bnn_utils.kernels.stochastic import SGLD
from bnn_utils.kernels.symmetric import Symmetric
from bnn_utils.mixing import FEWEST_DRAWS

if TYPE_CHECKING:
    from bnn_utils.chain import Chain

FEWEST_TO_MOVE = 10  # draws: of as many independent proposals, one in two accepted, all fail in one chain of 1,000
FEWEST_FOR_MEANS = 100  # draws of a chain from which on its mean acceptance and its E-BFMI are judged
FEWEST_IN_A_QUARTER, MOST = 5, 0.9  # divergences, of which nearly all are in the first or last quarter
# At rates of 0.6 to 0.9 a draw takes the fewest gradients (Betancourt, Byrne and Girolami 2014), at 0.3 some 40 % more
# than at best: in high dimensions the rate falls like erfc((step / scale)^2), and what a draw takes is in inverse
# proportion to step times rate (Beskos et al. 2013).
BEST_ACCEPTANCE, LEAST_ACCEPTANCE = (0.6, 0.9), 0.3
# After a warm-up: less than half of the target, or a tenth of its rejections. A healthy warm-up of one chain, which has
# little to learn from, may err by half as much.
LOW_ACCEPTANCE, LOW_REJECTION = 0.5, 0.1
LAGGING, LAG = 0.5, 0.2  # a chain that accepts less than half of what the median one does, and this much less
UNCORRECTED = "MCLMC has no Metropolis step, so that its draws are biased. MAMS is exact."
ENERGY_VARIANCE_FACTOR = 10.0  # to which a bias of three times the wanted one belongs
STEP_SIZE_FACTOR = 10.0
LEAST_BFMI = 0.3  # Betancourt (2016), as in Stan and ArviZ
SETTLING = 150  # transitions of Stan's schedule before its phases are squeezed (reference manual 2.20, section 15.2)
ONLY_STEPS = 20  # the same: a shorter warm-up adapts the step size alone
LEAST_SWAP_RATE = 0.05
# Units of time of a trajectory of HMC. Of a normal direction with the scale that the mass says, neighbouring draws are
# correlated by the cosine of it, and 1,000 draws are worth 1,000 tan^2(time / 2): 23 at this.
LEAST_TIME = 0.3


def warnings(chain: Chain) -> list[str]:
    """Of all checks, those that found something."""
    if 0 in chain.draws.shape[:2]:
        return []
    return [said for check in CHECKS if (said := check(chain))]


# --- does it move, and does it follow the posterior? ------------------------------------------------------------------


def immobility(chain: Chain) -> str | None:
    stuck = unmoved(chain)
    if not stuck:
        return None
    return (
        f"{_begin(enumerated(stuck, chain.num_chains))} never moved in {chain.num_draws:,} draws. Take a smaller "
        "step size, or another start by init=."
    )


def unmoved(chain: Chain) -> list[int]:
    """Chains that are at the end where they were at the start, and whose log density never changed."""
    if chain.num_draws < FEWEST_TO_MOVE or chain.draws.is_meta:
        return []
    lp, is_accept = statistic(chain, "lp"), statistic(chain, "is_accept")
    if lp is not None:  # it is asked first, as replica exchange moves by swaps too
        stays = (lp == lp[:, :1]).all(1)
    elif is_accept is not None:
        stays = is_accept.eq(0).all(1)
    else:
        return []
    is_back = (chain.draws[:, 0] == chain.draws[:, -1]).all(-1).cpu()
    return (stays & is_back).nonzero().flatten().tolist()


def divergences(chain: Chain) -> str | None:
    """Any is too many, as they mark where trajectories cannot follow the posterior (Betancourt 2017, section 6.2)."""
    by_chain, by_draw = (torch.zeros(num, dtype=torch.int64) for num in (chain.num_chains, chain.num_draws))
    for part in chain.parts("diverging"):
        diverged = part.values > 0
        by_chain[part.chains] += diverged.sum(1)
        by_draw[part.draws] += diverged.sum(0)
    num, of, quarter = int(by_draw.sum()), chain.num_chains * chain.num_draws, chain.num_draws / 4
    if num == 0:
        return None
    early, late = (int(by_draw[part].sum()) for part in (slice(round(quarter)), slice(round(3 * quarter), None)))
    is_early, is_late = (num >= FEWEST_IN_A_QUARTER and some >= MOST * num for some in (early, late))
    when = ", nearly all in the first quarter" if is_early else ", nearly all in the last quarter" if is_late else ""
    where = (
        "" if chain.num_chains == 1 else f", in {enumerated(by_chain.nonzero().flatten().tolist(), chain.num_chains)}"
    )
    return (
        f"{num:,} of {of:,} transitions diverged ({_percent(num / of)}{where}{when}): they could not follow the "
        "posterior there, which may bias the draws. Take a "
        + ("longer warm-up." if is_early else "smaller step size or a longer warm-up.")
    )


def acceptance(chain: Chain) -> str | None:
    """Far from what the warm-up aimed at, or without one, so low that most gradients were in vain."""
    target, rates = target_acceptance(chain), statistic(chain, "acceptance_rate")
    if target is None or rates is None or rates.numel() < FEWEST_FOR_MEANS:
        return None
    stuck = unmoved(chain)
    rates = rates[[number for number in range(chain.num_chains) if number not in stuck]]
    # ChEES adapts to the harmonic mean over its lanes.
    rate = ((1 / (1 / rates).mean(0)) if isinstance(kernel_of(chain), ChEES) else rates).mean().item()
    seen = f"The mean acceptance rate is {rate:.2f}"
    if not chain.warmup:
        if rate >= LEAST_ACCEPTANCE or math.isnan(rate):
            return None
        low, high = BEST_ACCEPTANCE
        return (
            f"{seen}, and at {low:g} to {high:g} a draw costs least. Take a smaller step size, or find one by warmup=."
        )
    if rate < LOW_ACCEPTANCE * target:
        return (
            f"{seen}, where the warm-up aimed at {target:g}: the draws are where steps must be shorter than in the "
            "warm-up. Take a longer one."
        )
    if 1 - rate < LOW_REJECTION * (1 - target):
        return (
            f"{seen}, where the warm-up aimed at {target:g}: steps are shorter than they need be, and draws cost more. "
            "Take a longer warm-up."
        )
    return None


def target_acceptance(chain: Chain) -> float | None:
    """What a warm-up of the chain's kernel aims at; None for kernels that are not known here."""
    kernel = kernel_of(chain)
    if isinstance(kernel, ChEES):
        return CHEES_TARGET_ACCEPTANCE
    if isinstance(kernel, MAMS):
        return MAMS_TARGET_ACCEPTANCE
    if isinstance(kernel, NUTS):
        return kernel.target_acceptance
    if isinstance(kernel, (HMC, Hamiltorch)):
        return LANGEVIN_TARGET_ACCEPTANCE if kernel.num_steps == 1 else TARGET_ACCEPTANCE
    return TARGET_ACCEPTANCE if isinstance(kernel, ReplicaExchange) else None


def bias(chain: Chain) -> str | None:
    """What is always to be known of draws that no Metropolis step corrects (Robnik, Cohn-Gordon and Seljak 2024)."""
    kernel = kernel_of(chain)
    if isinstance(kernel, str) and "MCLMC(" in kernel:  # from a file, or merged
        return UNCORRECTED
    if not isinstance(kernel, MCLMC):
        return None
    errors, inv_mass = statistic(chain, "energy_error"), kernel.inv_mass
    dim = chain.dim or (0 if inv_mass is None else len(inv_mass))
    made = torch.empty(0) if errors is None else errors[errors <= MAX_ENERGY_ERROR]
    if not dim or not made.isfinite().any():
        return UNCORRECTED
    variance, wanted = made[made.isfinite()].square().mean().item() / dim, kernel.energy_variance
    told = (
        f"MCLMC is biased: its energy error has a variance of {variance:.2g} per parameter, where {wanted:.2g} is "
        f"wanted. On a Gaussian, variances are off by up to {_percent(math.sqrt(variance))} then. "
    )
    if variance <= ENERGY_VARIANCE_FACTOR * wanted:
        return f"{told}MAMS is exact."
    return f"{told}Take a smaller step size or a longer warm-up."


def lagging(chain: Chain) -> str | None:
    """Chains that accept far less than the others: steps that suit these are too long where they are."""
    rates = statistic(chain, "acceptance_rate")
    if rates is None or chain.num_chains == 1 or chain.num_draws < FEWEST_FOR_MEANS:
        return None
    rates = rates.mean(1)
    median = rates.sort().values[chain.num_chains // 2]  # of two chains the larger
    is_low = (rates < LAGGING * median) & (rates < median - LAG)
    is_low[unmoved(chain)] = False
    if not is_low.any():
        return None
    found = is_low.nonzero().flatten().tolist()
    return (
        f"{_begin(enumerated(found, chain.num_chains))} accepted far less than the others: at a rate of "
        f"{rates[is_low].min():.2f}, where the median is {median:.2f}. Steps are too long where "
        f"{'it is' if len(found) == 1 else 'they are'}: take a smaller step size or a longer warm-up."
    )


def energy(chain: Chain) -> str | None:
    """Where new momenta bring about little of the energy's spread at once.

    It has a meaning where every transition draws all of the momentum anew and nothing else changes the energy: for HMC,
    ChEES and NUTS, of this package and of others; not for replica exchange, where swaps do, nor for draws that are not
    neighbours.
    """
    is_of_momenta = isinstance(kernel_of(chain), (HMC, Hamiltorch, ChEES, NUTS, str)) and chain.few.tempering is None
    is_meant = is_of_momenta and chain.thinning == 1
    if not is_meant or chain.num_draws < FEWEST_FOR_MEANS:
        return None
    bfmi = energy_fractions(chain)
    low = (bfmi < LEAST_BFMI).nonzero().flatten().tolist()
    if not low:
        return None
    return (
        f"E-BFMI is {bfmi[low].min():.2f} in {enumerated(low, chain.num_chains)} (at least {LEAST_BFMI:g} is wanted): "
        "new momenta change the energy little, so that the way from high densities to low ones takes long. Draw for "
        "longer."
    )


def energy_fractions(chain: Chain) -> Tensor:
    """E-BFMI of each chain (Betancourt 2016, equation 12), ``(chains,)``; NaN where energies are not known."""
    first, last, jumps, total, square = torch.full((5, chain.num_chains, 1), math.nan, dtype=torch.float64)
    for chains, draws, values in chain.parts("energy"):
        if draws.start == 0:  # sums are of differences from the first value, which are small
            first[chains] = last[chains] = values[:, :1]
            jumps[chains] = total[chains] = square[chains] = 0
        jumps[chains] += torch.cat([last[chains], values], 1).diff(dim=1).square().sum(1, keepdim=True)
        total[chains] += (values - first[chains]).sum(1, keepdim=True)
        square[chains] += (values - first[chains]).square().sum(1, keepdim=True)
        last[chains] = values[:, -1:]
    return (jumps / (square - total.square() / chain.num_draws)).flatten()


def approximation(chain: Chain) -> str | None:
    """Of stochastic gradients; a chain from a file, or one that was merged, names its kernels in words."""
    kernel = kernel_of(chain)
    in_words = kernel if isinstance(kernel, str) else ""
    if not isinstance(kernel, SGLD) and "SGLD(" not in in_words and "SGHMC(" not in in_words:
        return None
    return (
        "Draws are approximate: no step was ever rejected, so that steps and minibatches bias them by an amount of the "
        "order of the step size. To measure it, draw once more with half the step size: what changes by more than its "
        "error (diagnostics.mcse) has changed by about half of its bias. And lp is an estimate, from the minibatches "
        "of an epoch."
    )


# --- did its warm-up suffice? -----------------------------------------------------------------------------------------


def warmup(chain: Chain) -> str | None:
    """Too short for what it is to learn."""
    kernel, seen = kernel_of(chain), f"The warm-up had {chain.warmup:,} transition{'s' * (chain.warmup != 1)}"
    if chain.warmup == 0:
        return None
    if isinstance(kernel, ReplicaExchange):
        if len(rounds(chain.warmup)) > 1:
            return None
        return f"{seen}, too few to set the temperatures, which are those it began with. Take several hundred."
    if not isinstance(kernel, (HMC, Hamiltorch, ChEES, MAMS, MCLMC, NUTS)):
        return None
    if chain.warmup < ONLY_STEPS:
        return f"{seen}, in which the step size adapts only roughly, and nothing else does. Take {SETTLING} or more."
    mass = kernel.inv_mass
    is_given = mass is not None and mass.ndim == 2  # what is learned is a diagonal
    if chain.warmup >= SETTLING or is_given:
        return None
    return f"{seen}, which leaves step size and mass little time to settle. Take {SETTLING} or more."


def step_sizes(chain: Chain) -> str | None:
    """Of batches, which adapt each on their own, by orders of magnitude apart."""
    sizes = statistic(chain, "step_size")
    if sizes is None:
        return None
    sizes = sizes.mean(1)  # jitter makes each vary by half
    ratio = sizes.max() / sizes.min()
    if not (sizes > 0).all() or not STEP_SIZE_FACTOR < ratio < math.inf:
        return None
    return (
        f"Step sizes differ by a factor of {ratio:,.0f}, from {sizes.min():.2g} in chain {int(sizes.argmin())} to "
        f"{sizes.max():.2g} in chain {int(sizes.argmax())}. Take a longer warm-up, or one batch, which shares them."
    )


def trajectory(chain: Chain) -> str | None:
    """A learned length that is more than the steps a transition makes, or steps too few for what the mass tells."""
    kernel = kernel_of(chain)
    if isinstance(kernel, HMC):
        return _short(kernel) if chain.warmup else None
    if not isinstance(kernel, (ChEES, MAMS)):
        return None
    steps = kernel.trajectory_length / kernel.step_size
    if steps <= MAX_STEPS:
        return None
    return (
        f"The trajectory length is {steps:,.0f} steps, and a transition makes at most {MAX_STEPS:,}: wide directions "
        "are explored slowly. Take a longer warm-up, which fits the mass to them."
    )


def _short(kernel: HMC) -> str | None:
    """Of HMC with a mass by which parameters vary by about 1 and turn back after a time of pi."""
    if kernel.inv_mass is None or kernel.num_steps in (None, 1):  # single steps are Langevin's, and meant to be
        return None
    time = kernel.num_steps * kernel.step_size
    if time >= LEAST_TIME:
        return None
    enough = math.pi / 2 / kernel.step_size
    return (
        f"Trajectories of {kernel.num_steps:,} steps take {time:.2g} units of time, and parameters forget where they "
        f"were in {math.pi / 2:.2g}, as some directions are narrow. Take about {float(f'{enough:.1g}'):,.0f} steps by "
        "num_steps=, or keep the noise from 0."
    )


def tree_depth(chain: Chain) -> str | None:
    """Trajectories of NUTS that were cut before they turned back."""
    reached = statistic(chain, "reached_max_treedepth")
    if reached is None or not reached.any():
        return None
    num, of = int(reached.sum()), reached.numel()
    steps = statistic(chain, "n_steps")
    after = "" if steps is None else f", after {steps[reached > 0].max():,.0f} leapfrog steps,"
    return (
        f"{num:,} of {of:,} trajectories ({_percent(num / of)}) were cut at the largest tree depth{after} before they "
        "turned back: draws are right, and follow each other more closely than they need to. Take a longer warm-up, or "
        "a larger max_tree_depth."
    )


# --- replica exchange -------------------------------------------------------------------------------------------------


def swaps(chain: Chain) -> str | None:
    """Neighbours on the ladder that hardly ever trade places."""
    if chain.tempering is None:
        return None
    rates = chain.tempering.swap_rates
    low = (rates < LEAST_SWAP_RATE).nonzero().flatten().tolist()
    if not low:
        return None
    worst = int(rates.argmin())
    more = f" (and {len(low) - 1} more pair{'s' * (len(low) > 2)})" if len(low) > 1 else ""
    return (
        f"Temperatures {worst} and {worst + 1}{more} swap with a probability of {rates[worst]:.2g}, below "
        f"{LEAST_SWAP_RATE:g}: hardly anything comes from the {chain.tempering.hot_end} to the posterior. Take more "
        "of them, or a longer warm-up."
    )


def round_trips(chain: Chain) -> str | None:
    """Chains to whose posterior nothing has come from the hot end and gone back."""
    if chain.tempering is None:
        return None
    none = (chain.tempering.round_trips == 0).nonzero().flatten().tolist()
    if not none:
        return None
    return (
        f"{_begin(enumerated(none, chain.num_chains))} made no round trip from {chain.tempering.hot_end} to "
        f"posterior and back, of {chain.tempering.possible_round_trips:,.0f} that are possible. Draw for longer, or "
        "take longer trajectories or more temperatures."
    )


# --- has it converged? ------------------------------------------------------------------------------------------------


def convergence(chain: Chain) -> str | None:
    """R-hat and ESS of the log density, on which no symmetry of a network has an effect (Vehtari et al. 2021)."""
    lp = statistic(chain, "lp")
    if lp is None or chain.num_draws < FEWEST_DRAWS:
        return None
    if not lp.isfinite().all():
        count = int((~lp.isfinite()).sum())
        return f"The log density lp is NaN or infinite at {count:,} of {lp.numel():,} draws: look at them."
    r_hat, bulk, tail = (value.item() for value in diagnose(lp)[:3])
    least = ESS_PER_CHAIN * chain.num_chains
    is_single, seen = chain.num_chains == 1, []
    if r_hat > RHAT_LIMIT:
        value = f"{math.ceil(1000 * r_hat) / 1000:.3f}" if r_hat < 100 else "over 100"
        seen.append(f"R-hat of lp is {value} (at most {RHAT_LIMIT} is wanted)")
    if min(bulk, tail) < least:
        name, ess = ("bulk", bulk) if bulk <= tail else ("tail", tail)
        seen.append(f"{name} ESS {'of lp ' * (not seen)}is {math.floor(ess):,} (at least {least:,})")
    if not seen:
        return None
    why = "independent draws are few"
    if r_hat > RHAT_LIMIT:
        why = "the halves of the chain differ" if is_single else "chains differ, or drift"
    return (
        f"{_begin(' and '.join(seen))}: {why}. Draw for longer{', in several chains' * is_single}, and see by "
        "diagnostics.convergence what it means for predictions."
    )


CHECKS: tuple[Callable[[Chain], str | None], ...] = (
    immobility,
    divergences,
    acceptance,
    bias,
    lagging,
    energy,
    approximation,
    warmup,
    step_sizes,
    trajectory,
    tree_depth,
    swaps,
    round_trips,
    convergence,
)


def kernel_of(chain: Chain) -> object:
    """What moves it, whatever symmetries are between its transitions."""
    return chain.kernel.kernel if isinstance(chain.kernel, Symmetric) else chain.kernel


def statistic(chain: Chain, name: str) -> Tensor | None:
    """In float64 on the CPU, ``(chains, draws)``; None where it is missing or something else."""
    values = chain.stats.get(name)
    if not isinstance(values, Tensor) or values.layout != torch.strided or values.is_meta:
        return None
    if values.is_complex() or values.shape != chain.draws.shape[:2]:
        return None
    return values.detach().cpu().double()


def _begin(words: str) -> str:
    """With a capital letter."""
    return words[0].upper() + words[1:]


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"
