"""Chains that only look like several: copies of each other, or runs that drew the same random numbers.

R-hat and effective sample sizes take chains to be independent. Copies agree perfectly and count twice.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# That `coupled` names any pair of a set of chains that are independent.
FALSE_ALARM = 1e-6
# Of the draws of the shorter of two chains, this much has to be in the other one as well: in float32, two chains of one
# parameter have single values in common by chance, from some ten thousand draws on.
SHARED = 0.05
# What `coupled` looks at: so many quantities together or, of so many chains that this would take seconds, on their own.
QUANTITIES_TOGETHER, QUANTITIES_ALONE = 20, 4
MOST_QUANTITIES = 1024
MOST_PRODUCTS = 2**24
BLOCK_ELEMENTS = 2**22  # of products that are worked on at once, to bound memory

Pairs = list[tuple[int, int]]


def copies(draws: Tensor, fewest: int = 2) -> Pairs:
    """Pairs of chains that hold the same draws in the same order: copies, also thinned, shifted or of a part.

    Equal means to the bit. A draw to which a chain comes back, as discrete or saturated values make it, says nothing,
    and the draws at which both chains stayed where they had started are one draw.

    Args:
        draws: shape ``(chains, draws, ...)``.
        fewest: how many different draws two chains need to have in common, and at least 5 % of the shorter one's. Two
            are enough for parameters; predictions may have few values.

    Returns:
        of each set of copies, enough pairs to name all.
    """
    num = len(draws)
    keys = np.stack([_keys(chain.detach().cpu().reshape(len(chain), -1).numpy()) for chain in draws])
    begins = np.ones(keys.shape, bool)
    begins[:, 1:] = keys[:, 1:] != keys[:, :-1]
    chain, time = begins.nonzero()
    key = keys[begins]
    order = np.lexsort((chain, key))
    key, chain, time = key[order], chain[order], time[order]
    returns = np.zeros(len(key) + 1, bool)
    returns[1:-1] = (key[1:] == key[:-1]) & (chain[1:] == chain[:-1])
    once = ~(returns[1:] | returns[:-1])
    key, chain, time = key[once], chain[once], time[once]
    # Of a draw that many chains have in common, neighbours in the list of these are compared.
    shared = key[1:] == key[:-1]
    pair, time, later = (chain[:-1] * num + chain[1:])[shared], time[:-1][shared], time[1:][shared]
    order = np.lexsort((time, pair))
    pair, later = pair[order], later[order]
    found, starts, counts = np.unique(pair, return_index=True, return_counts=True)
    lengths = begins.sum(axis=1)
    result = []
    for which, start, count in zip(found, starts, counts, strict=True):
        i, j = divmod(int(which), num)
        is_in_order = (np.diff(later[start : start + count]) > 0).all()
        if is_in_order and count >= max(fewest, SHARED * min(lengths[i], lengths[j])):
            result.append((i, j))
    return result


def _keys(rows: np.ndarray) -> np.ndarray:
    """A number of 64 bits for each row, the same for equal rows and, but for chance, only for them."""
    rows = np.ascontiguousarray(rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float64)) + 0.0
    bits = rows.view(f"u{rows.itemsize}").astype(np.uint64)  # of +0.0, to which adding 0.0 turns -0.0
    factors = np.random.default_rng(0).integers(2**63, size=bits.shape[1], dtype=np.uint64) * 2 + 1
    bits ^= bits >> np.uint64(31)
    return (bits * factors).sum(axis=1, dtype=np.uint64)


def coupled(values: Tensor) -> Pairs:
    """Pairs of chains that move together, as runs do that draw the same random numbers from different starts.

    What is compared is which way each quantity moved at each transition, s_t with entries +1, -1 and 0. The products
    s_t . s'_t of two chains are as often positive as negative where these are independent and reversible, and so are,
    frequency by frequency, the products c_f of their Fourier transforms; those of drifts and of regular swinging are
    large at few frequencies. N, the sum of the products, is held against the larger of two variances,

        z = N / sqrt(max(sum_t (s_t . s'_t)^2, sum_f |c_f|^2 / T^2)),   N = sum_f Re c_f / T

    with means taken off. The probability of more than z is at most exp(-z^2 / 2) for signs, given the sizes of the
    products, and for phases, given those of c_f (Hoeffding 1963). Independent chains are named with a probability of at
    most 1e-6, for all pairs together; copies of less than some 40 moves cannot be told from chance.

    Args:
        values: shape ``(chains, draws, Q)``: parameters or predictions.
    """
    x = values.detach()
    if x.shape[2] > MOST_QUANTITIES:  # evenly spread ones, among which enough move
        x = x[:, :, torch.linspace(0, x.shape[2] - 1, MOST_QUANTITIES).long()]
    x = x.cpu() if x.is_floating_point() else x.cpu().double()
    num, moving = len(x), (x != x[:, :1]).any(1).any(0).nonzero().flatten()
    if num < 2 or len(moving) == 0:
        return []
    is_large = num * num * x.shape[1] > MOST_PRODUCTS
    most = min(len(moving), QUANTITIES_ALONE if is_large else QUANTITIES_TOGETHER)
    quantities = moving[torch.linspace(0, len(moving) - 1, most).long()]
    groups = quantities.split(1 if is_large else most)
    limit = math.sqrt(2 * math.log(len(groups) * num * (num - 1) / 2 / FALSE_ALARM))
    found = torch.zeros(num, num, dtype=torch.bool)
    for group in groups:
        found |= _deviations(x[:, :, group].diff(dim=1).sign().float()) > limit
    return [(i, j) for i, j in found.triu(1).nonzero().tolist()]


def _deviations(signs: Tensor) -> Tensor:
    """z of all pairs, ``(chains, chains)``, from signs ``(chains, transitions, Q)``."""
    num, length, quantities = signs.shape
    spectrum = torch.fft.rfft(signs, dim=1)[:, 1:] * (2 / length) ** 0.5  # without the mean
    if length % 2 == 0:
        spectrum[:, -1] *= 0.5**0.5  # the highest frequency is there once, all others twice
    if quantities == 1:  # then the squares of products are products of squares, and all of it products of matrices
        s, f = signs[:, :, 0], torch.view_as_real(spectrum[:, :, 0])
        power = f.square().sum(-1)
        together, by_moves, by_spectrum = f.flatten(1) @ f.flatten(1).mT, s.square() @ s.square().mT, power @ power.mT
    else:
        together, by_moves, by_spectrum = torch.zeros(3, num, num)
        for part in signs.transpose(0, 1).split(max(1, BLOCK_ELEMENTS // num**2)):
            by_moves += (part @ part.mT).square_().sum(0)
        for part in spectrum.transpose(0, 1).split(max(1, BLOCK_ELEMENTS // num**2)):
            products = part @ part.mH
            together += products.real.sum(0)
            by_spectrum += products.abs().square_().sum(0)
    return together / torch.maximum(by_moves, by_spectrum / 2).clamp(min=1).sqrt()


def named(pairs: Pairs) -> str:
    """The first pair in words, and how many more there are: ``chains 0 and 2 (and 3 more pairs)``."""
    more = f" (and {len(pairs) - 1:,} more pair{'s' * (len(pairs) > 2)})" if len(pairs) > 1 else ""
    return f"chains {pairs[0][0]} and {pairs[0][1]}{more}"
