"""Methods that look at single entries of the changes D_k, so these are formed, one at a time, in
float64.

(factors, weights that sum to 1, ids) -> merged change [O, I]. `factors` may be iterated more than
once. `ids` names every change by its adapter and module: random masks depend on (seed, id) alone,
never on the order, on the other adapters, or on a global random state.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from toolkit import seeds
from toolkit.model import delta

BLOCK = 2**23
"""entries of all changes that `trimmed_mean` holds at once, a few times over"""

CHUNK = 2**17
"""entries that are summed at once: they stay in the cache of a core while AT_ONCE adapters are
added to them
"""

AT_ONCE = 16

Piece = Callable[[slice], Tensor]
"""Some rows of a change."""


def ties(
    factors: Iterable[delta.Factors],
    weights: Sequence[float],
    ids: Sequence[str],
    *,
    density: float,
) -> Tensor:
    """Keep the largest entries of every change, elect a sign per entry by the weighted sum, average
    those that agree with it.

    Where positive and negative balance exactly, positive wins. Entries that are as large as the
    last that is kept are kept too.
    """
    return _elected((_largest(change, density) for change in factors), weights)


def della(
    factors: Iterable[delta.Factors],
    weights: Sequence[float],
    ids: Sequence[str],
    *,
    density: float,
    epsilon: float,
    seed: int,
) -> Tensor:
    """As `ties`, with a random trim: within a row, the probability to be kept rises with the rank
    of the magnitude; kept entries are divided by it, so that every trimmed change is unbiased.
    """
    if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise ValueError(
            f"epsilon {epsilon:g} is impossible at density {density:g}: density - epsilon "
            "and density + epsilon are shares"
        )
    draws = (_generator(seed, "della", id) for id in ids)
    pruned = (
        _by_magnitude(delta.dense(change), density, epsilon, draw)
        for change, draw in zip(factors, draws, strict=True)
    )
    return _elected((D.__getitem__ for D in pruned), weights, at_once=1)


def dare(
    factors: Iterable[delta.Factors],
    weights: Sequence[float],
    ids: Sequence[str],
    *,
    density: float,
    seed: int,
) -> Tensor:
    """Keep every entry with probability `density` and divide it by that; then the mean. Unbiased,
    with more variance than the mean.
    """
    draws = (_generator(seed, "dare", id) for id in ids)
    return _sum(
        (
            _at_random(delta.dense(change), density, draw)
            for change, draw in zip(factors, draws, strict=True)
        ),
        weights,
    )


def breadcrumbs(
    factors: Iterable[delta.Factors],
    weights: Sequence[float],
    ids: Sequence[str],
    *,
    density: float,
    gamma: float,
) -> Tensor:
    """Leave out the share `gamma` of the largest entries of every change, and of the smallest as
    many as `density` asks; then the mean.
    """
    return _sum((_middle(delta.dense(change), density, gamma) for change in factors), weights)


def sce(
    factors: Iterable[delta.Factors],
    weights: Sequence[float],
    ids: Sequence[str],
    *,
    select_topk: float,
) -> Tensor:
    """Select the entries that vary most between adapters, calculate a weight for every change (its
    mean square), erase minority signs.
    """
    mask = None
    if select_topk < 1:
        spread = _variance(delta.dense(change) for change in factors)
        keep = int(torch.count_nonzero(spread) * select_topk)
        if keep == 0:
            if any(delta.norm(change) for change in factors):
                raise ValueError(
                    f"sce at select_topk {select_topk:g} keeps what varies between "
                    "adapters: nothing does; set it to 1"
                )
            return torch.zeros_like(spread)
        mask = (spread >= _order_statistic(spread, spread.numel() - keep)).double()
    power = [
        w * float(_masked(change, mask)(slice(None)).square().sum())
        for change, w in zip(factors, weights, strict=True)
    ]
    total = sum(power)
    shares = [p / total for p in power] if total else weights
    return _elected((_masked(change, mask) for change in factors), shares, votes=weights)


def trimmed_mean(
    factors: Iterable[delta.Factors], weights: Sequence[float], ids: Sequence[str], *, trim: float
) -> Tensor:
    """The mean of every entry without the share `trim` of the smallest and of the largest values
    over the adapters.

    With weights: the mean of the weighted quantile function from trim to 1 - trim, so a value at
    the border counts in part.
    """
    held = list(factors)
    w = torch.tensor(weights, dtype=torch.float64)
    (A, B, _), K = held[0], len(held)
    rows = max(1, BLOCK // (K * A.shape[1]))
    blocks = []
    for start in range(0, B.shape[0], rows):
        value, order = torch.stack(
            [delta.dense((A, B[start : start + rows], s)) for A, B, s in held]
        ).sort(dim=0)
        after = w[order].cumsum(0)
        inside = (after.clamp(max=1 - trim) - (after - w[order]).clamp(min=trim)).clamp(min=0)
        blocks.append((inside * value).sum(0) / inside.sum(0))
    return torch.cat(blocks)


# -- what single changes are reduced to ----------------------------------------------------------


def _largest(change: delta.Factors, density: float) -> Piece:
    if density >= 1:
        return partial(_rows, change)
    size = delta.dense(change).abs_().numpy().ravel()
    index = size.size - max(1, int(density * size.size))
    size.partition(index)
    # some rows by themselves may be rounded otherwise than in the whole
    least = float(size[index]) * (1 - 1e-12)

    def piece(rows: slice) -> Tensor:
        D = _rows(change, rows)
        return D.masked_fill_(D.abs() < least, 0.0)

    return piece


def _masked(change: delta.Factors, mask: Tensor | None) -> Piece:
    return lambda rows: _rows(change, rows) if mask is None else _rows(change, rows) * mask[rows]


def _rows(change: delta.Factors, rows: slice) -> Tensor:
    A, B, scale = change
    return delta.dense((A, B[rows], scale))


def _middle(D: Tensor, density: float, gamma: float) -> Tensor:
    if density >= 1:
        return D
    size, n = D.abs(), D.numel()
    keep = max(1, int(density * n))
    below = max(0, n - keep - int(gamma * n))
    low, high = _order_statistic(size, below), _order_statistic(size, below + keep - 1)
    return torch.where((size >= low) & (size <= high), D, 0.0)


def _at_random(D: Tensor, density: float, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(D.shape, generator=generator) < density, D / density, 0.0)


def _by_magnitude(D: Tensor, density: float, epsilon: float, generator: torch.Generator) -> Tensor:
    if density >= 1:
        return D
    rank = D.abs().argsort(dim=1, stable=True).argsort(dim=1)
    kept = density - epsilon + 2 * epsilon * rank / max(1, D.shape[1] - 1)
    return torch.where(torch.rand(D.shape, generator=generator) < kept, D / kept, 0.0)


def _order_statistic(values: Tensor, index: int) -> float:
    """The value at `index` (from 0) in ascending order."""
    return float(np.partition(values.numpy().ravel(), index)[index])


def _generator(seed: int, method: str, id: str) -> torch.Generator:
    return torch.Generator().manual_seed(seeds.derive(seed, f"merge:{method}:{id}"))


# -- sums over the adapters, in memory that does not grow with their number ----------------------


def _sum(changes: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    total = None
    for D, w in zip(changes, weights, strict=True):
        total = w * D if total is None else total.add_(D, alpha=w)
    assert total is not None
    return total


def _elected(
    pieces: Iterable[Piece],
    weights: Sequence[float],
    votes: Sequence[float] | None = None,
    at_once: int = AT_ONCE,
) -> Tensor:
    """The weighted mean of the entries of the elected sign; `votes` are the weights of the election
    where they differ.

    One pass: both signs are kept, with the weights behind them, until all have voted.
    """
    # up, down, weight of up, weight of down, balance of the votes; each [O, I]
    sums: list[Tensor] = []
    voters = zip(pieces, weights, votes or weights, strict=True)
    while group := list(itertools.islice(voters, at_once)):
        if not sums:
            sums = [torch.zeros_like(group[0][0](slice(None))) for _ in range(5 if votes else 4)]
        rows = max(1, CHUNK // sums[0].shape[1])
        for start in range(0, sums[0].shape[0], rows):
            some = slice(start, start + rows)
            part = [total[some] for total in sums]
            for piece, w, vote in group:
                D = piece(some)
                part[0].add_(D.clamp(min=0), alpha=w)
                part[1].add_(D.clamp(max=0), alpha=w)
                part[2].add_(D > 0, alpha=w)
                part[3].add_(D < 0, alpha=w)
                if votes:
                    part[4].add_(D, alpha=vote)
    up, down, up_weight, down_weight = sums[:4]
    elected = (sums[4] if votes else up + down) >= 0
    sum_, weight = torch.where(elected, up, down), torch.where(elected, up_weight, down_weight)
    return torch.where(weight > 0, sum_ / weight, 0.0)


def _variance(changes: Iterable[Tensor]) -> Tensor:
    """Over the adapters, of every entry (Welford's recursion: no cancellation)."""
    mean = squares = torch.zeros((), dtype=torch.float64)
    n = 0
    for n, D in enumerate(changes, 1):
        away = D - mean
        mean = mean + away / n
        squares = squares + away * (D - mean)
    return squares / n
