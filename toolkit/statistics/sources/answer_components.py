"""Which source makes two runs answer differently? Components of disagreement in a crossed design of
any number of factors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import ROUNDING, as_answers, as_clusters, as_level, blocks
from toolkit.statistics.conclusive import (
    MIN_CLUSTERS,
    MIN_LEVELS,
    clusters_in_words,
    enough_clusters,
)
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.fresh import (
    ByKind,
    Shared,
    codes,
    disagreement_by_kind,
    exactly,
    joined,
    sharing,
    subsets,
)
from toolkit.statistics.intervals import t_quantile, two_way, zero_event_bound
from toolkit.statistics.outliers import Differing, odd_note
from toolkit.statistics.pairs import count_pairs
from toolkit.statistics.sources.mean_squares import RESIDUAL

METHOD = (
    "jackknife-t over levels of every source and prompts, upwards on the log scale, conservative"
)


@dataclass(frozen=True)
class AnswerComponents:
    """How the disagreement D of two fresh runs is made up, in shares of prompts; unclipped, so that
    parts may come out negative.

    parts: of every factor and interaction ("init", "init x order"), and the residual; their sum is
    D. Without exact repeats the residual holds the highest interaction too, with them it is the
    numerics.
    disagreement: of pairs of runs that share nothing ("fresh": D), or just some factors ("same
    init"), or all (repeats).
    """

    parts: dict[str, Estimate]
    disagreement: dict[str, Estimate]


def behaviour_components(
    answer_RP: np.ndarray,
    levels: Mapping[str, np.ndarray | Sequence],
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
) -> AnswerComponents:
    """How much of the disagreement between two runs comes from each crossed source, such as init
    and order, and from what is left?

    Estimand. Let y be the one-hot vector of a run's answer to a prompt. Two independent runs differ
    with probability D = E|y - y'|^2 / 2 = sum over values of Var(y_v), the generalised variance of
    y. So in the random-effects model of `crossed`, with an effect for every set of factors, the
    effects split D itself, without a factor. Two runs that share the factors S and no other differ
    as if the effects of all sets within S were not there:
        D_S = D_fresh - sum over T within S of part_T, and by Moebius inversion
        part_T = sum over S within T of (-1)^(|T|-|S|+1) D_S.

    With two factors: init = D_fresh - D_same_init, order = D_fresh - D_same_order,
    residual = D_same_init + D_same_order - D_fresh (interaction and numerics); with repeats
    numerics = D_same_both, interaction = residual - numerics. Each D is a mean over all pairs of
    its kind (a U-statistic, unbiased), then over prompts; cells need not be full or equal, but
    pairs of every kind must be there.

    Resampled: levels of each factor (delete one level with all its runs), and prompts (clusters),
    each with the t quantile of its own degrees of freedom. The noise of single answers enters
    through every factor: the interval is conservative where it leads. Where no pair shows a part at
    all, the prompts' zero-event bound. Inconclusive: fewer than MIN_LEVELS levels of a factor, or
    MIN_CLUSTERS prompts; runs far off the others (`odd_replicas`).

    answer_RP: int codes, -1 = missing; levels: for each factor the level of every run, any dtype.
    Raises ValueError for other shapes.
    """
    level, names = as_level(level), tuple(levels)
    if not names:
        raise ValueError("behaviour_components needs at least one factor")
    answer_RP = as_answers(answer_RP, "answer_RP")
    cluster_P = as_clusters(cluster_P, answer_RP.shape[1])
    level_FR = {name: codes(level_R, len(answer_RP), name) for name, level_R in levels.items()}
    row_R = np.flatnonzero((answer_RP >= 0).any(axis=1))
    answer_RP = answer_RP[row_R]
    level_FR = {
        name: np.unique(level_R[row_R], return_inverse=True)[1]
        for name, level_R in level_FR.items()
    }
    n_levels = {name: int(level_R.max(initial=-1)) + 1 for name, level_R in level_FR.items()}
    group_SR = sharing(level_FR)
    repeats = len(row_R) > int(group_SR[names].max(initial=-1)) + 1
    kinds = [shared for shared in group_SR if repeats or shared != names]

    pieces = [
        disagreement_by_kind(answer_RP[:, block_P], level_FR, group_SR)
        for block_P in blocks(*answer_RP.shape)
    ]
    value, *left = (joined(piece) for piece in zip(*pieces, strict=True))
    used_P = np.all([np.isfinite(value[shared]) for shared in kinds], axis=0)
    sides = [{shared: side[shared][:, used_P] for shared in kinds} for side in left]
    value = {shared: value[shared][used_P] for shared in kinds}
    differing = Differing(len(row_R))
    for block_P in blocks(*answer_RP.shape):
        differing.add(count_pairs(answer_RP[:, block_P]))
    outlying = odd_note(row_R[differing.rows()])

    def estimate(weight: Mapping[Shared, float]) -> Estimate:
        if not used_P.any():
            note = f"no prompt has pairs of every kind: {', '.join(map(_kind, kinds))}"
            return without_interval(None, level, len(row_R), 0, None, note)
        return _part(weight, value, sides, cluster_P[used_P], n_levels, len(row_R), level, outlying)

    parts = {name: estimate(weight) for name, weight in _parts(names, repeats).items()}
    return AnswerComponents(parts, {_kind(shared): estimate({shared: 1.0}) for shared in kinds})


def missing_pairs(levels: Mapping[str, np.ndarray | Sequence]) -> list[str]:
    """Kinds of pairs that a design lacks and without which its factors cannot be told apart; exact
    repeats are not needed.
    """
    level_FR = {
        name: np.unique(np.asarray(level_R), return_inverse=True)[1]
        for name, level_R in levels.items()
    }
    together = {
        shared: np.atleast_1d(float(np.sum(np.bincount(g) * (np.bincount(g) - 1))))
        for shared, g in sharing(level_FR).items()
    }
    return [
        _kind(shared)
        for shared, n in exactly(together).items()
        if n[0] <= 0 and (shared != tuple(levels) or len(levels) == 1)
    ]


def _kind(shared: Shared) -> str:
    return f"same {' and '.join(shared)}" if shared else "fresh"


def _parts(names: Shared, repeats: bool) -> dict[str, dict[Shared, float]]:
    """What each kind of pair counts in each part."""
    weights = {
        " x ".join(part): {
            shared: -((-1.0) ** (len(part) - len(shared))) for shared in subsets(part)
        }
        for part in subsets(names)[1:]
        if repeats or part != names
    }
    if repeats:
        return weights | {RESIDUAL: {names: 1.0}}
    left = {shared: -((-1.0) ** (len(names) - len(shared))) for shared in subsets(names)[:-1]}
    return weights | {RESIDUAL: left}


def _part(
    weight: Mapping[Shared, float],
    value: ByKind,
    left: Sequence[ByKind],
    cluster_P: np.ndarray,
    n_levels: Mapping[str, int],
    n_runs: int,
    level: float,
    outlying: str,
) -> Estimate:
    value_P = sum((w * value[kind] for kind, w in weight.items()), np.zeros(len(cluster_P)))
    sides = [
        two_way(
            value_P, sum((w * side[kind] for kind, w in weight.items()), 0 * side[()]), cluster_P
        )
        for side in left
    ]
    mean, n_clusters, effective = float(value_P.mean()), sides[0].n_clusters, sides[0].effective
    fewest = min(n_levels.values())
    shortages = [f"{n} levels of {name}" for name, n in n_levels.items() if n < MIN_LEVELS]
    shortages += [clusters_in_words(n_clusters, effective)] * (
        not enough_clusters(n_clusters, effective)
    )
    note = (
        f"{' and '.join(shortages)} are too few "
        f"(at least {MIN_LEVELS} levels and {MIN_CLUSTERS} prompts)"
        if shortages
        else outlying
    )
    needed = (
        math.prod(max(n, MIN_LEVELS) for n in n_levels.values()) if fewest < MIN_LEVELS else None
    )
    shape = (level, n_runs, len(value_P))
    if fewest < 2 or n_clusters < 2:
        return without_interval(mean, *shape, needed, note)
    prompts = min(side.prompts for side in sides)
    terms = [(side.runs, n - 1) for side, n in zip(sides, n_levels.values(), strict=True)] + [
        (prompts, sides[0].prompt_df)
    ]
    half = math.sqrt(sum(t_quantile(level, df) ** 2 * variance for variance, df in terms))
    # A kind of prompt that is rarer than the bound may be missing from the suite, whatever the
    # others say (as in share_interval).
    bound = zero_event_bound(effective, level)
    if half < ROUNDING:  # no level and no prompt differs from the others
        method = f"zero-event bound over {n_clusters} prompts or clusters, one-sided"
        return Estimate(
            mean,
            max(0.0, mean - bound),
            min(1.0, mean + bound),
            *shape,
            method,
            not note,
            needed,
            note,
        )
    high = min(1.0, max(mean + _reach(mean, half, fewest, level), bound))
    return Estimate(mean, min(mean - half, 1 - bound), high, *shape, METHOD, not note, needed, note)


def _reach(mean: float, half: float, n_levels: int, level: float) -> float:
    """How far the interval goes up: a part that one effect common to all prompts makes is skewed as
    a variance of n levels is.

    So the step is taken on the log scale, but no further than the chi-squared limit of such a
    variance.
    """
    from scipy.special import chdtri

    if mean <= 0:
        return half
    most = (n_levels - 1) / float(chdtri(n_levels - 1, (1 + level) / 2))
    return max(half, mean * (min(math.exp(min(half / mean, 50.0)), most) - 1))
