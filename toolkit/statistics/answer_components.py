"""Which source makes two runs answer differently? Components of disagreement in a crossed design of init and order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import as_answers, as_clusters, as_level, blocks
from toolkit.statistics.components import MIN_LEVELS, codes
from toolkit.statistics.disagreement import MIN_CLUSTERS, odd_note, odd_replicas
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import t_quantile, two_way, zero_event_bound
from toolkit.statistics.pairs import count_pairs

METHOD = "jackknife-t over inits, orders and prompts, upwards on the log scale, conservative"
ROUNDING = 1e-12
KINDS = ("fresh", "same init", "same order", "same both")


@dataclass(frozen=True)
class AnswerComponents:
    """How the disagreement D of two fresh runs is made up, in shares of prompts; unclipped, so that parts may come out negative.

    parts: init, order and residual, or with exact repeats init, order, init x order and residual (numerics). Their sum is D.
    disagreement: of pairs of runs that share nothing ("fresh": D), the init, the order, or both (repeats).
    """

    parts: dict[str, Estimate]
    disagreement: dict[str, Estimate]


def behaviour_components(
    answer_RP: np.ndarray,
    init_R: np.ndarray | Sequence,
    order_R: np.ndarray | Sequence,
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
) -> AnswerComponents:
    """How much of the disagreement between two runs comes from the init, from the order, and from what is left?

    Estimand. Let y be the one-hot vector of a run's answer to a prompt. Two independent runs differ with probability
    D = E|y - y'|^2 / 2 = sum over values of Var(y_v), the generalised variance of y. So the random effects of init, order, their
    interaction and the numerics split D itself, without a factor:
        D_fresh = init + order + interaction + numerics;  pairs that share the init: D_same_init = D_fresh - init;
        pairs that share the order: D_fresh - order;  exact repeats: numerics alone.
    Hence init = D_fresh - D_same_init, order = D_fresh - D_same_order, residual = D_same_init + D_same_order - D_fresh (interaction
    and numerics); with repeats numerics = D_same_both, interaction = residual - numerics. Each D is a mean over all pairs of its kind
    (a U-statistic, unbiased), then over prompts; cells need not be full or equal, but pairs of every kind must be there.

    Resampled: levels of init and of order (delete one level with all its runs), and prompts (clusters), each with the t
    quantile of its own degrees of freedom. The noise of single answers enters through both levels: the
    interval is conservative where it leads. Where no pair shows a part at all, the prompts' zero-event bound.
    Inconclusive: fewer than MIN_LEVELS levels of a factor, or MIN_CLUSTERS prompts; runs far off the others (`odd_replicas`).

    answer_RP: int codes, -1 = missing; init_R, order_R: the level of every run, any dtype. Raises ValueError for other shapes.
    """
    level = as_level(level)
    answer_RP = as_answers(answer_RP, "answer_RP")
    cluster_P = as_clusters(cluster_P, answer_RP.shape[1])
    init_R, order_R = codes(init_R, len(answer_RP), "init_R"), codes(order_R, len(answer_RP), "order_R")
    row_R = np.flatnonzero((answer_RP >= 0).any(axis=1))
    answer_RP, init_R, order_R = answer_RP[row_R], *(np.unique(x[row_R], return_inverse=True)[1] for x in (init_R, order_R))
    cell_R = np.unique(init_R * (order_R.max(initial=0) + 1) + order_R, return_inverse=True)[1]
    repeats = len(row_R) > int(cell_R.max(initial=-1)) + 1
    kinds = KINDS if repeats else KINDS[:3]

    runs = init_R, order_R, cell_R
    value, *left = (
        _joined(piece) for piece in zip(*(_disagreement(answer_RP[:, at], *runs) for at in blocks(*answer_RP.shape)), strict=True)
    )
    used_P = np.all([np.isfinite(value[kind]) for kind in kinds], axis=0)
    n_levels = int(init_R.max(initial=-1)) + 1, int(order_R.max(initial=-1)) + 1
    weights = {kind: {kind: 1.0} for kind in kinds} | (REPEATED if repeats else SINGLE)
    if not used_P.any():
        note = f"no prompt has pairs of every kind: {', '.join(kinds)}"
        found = {name: Estimate(None, None, None, level, len(row_R), 0, "none", False, None, note) for name in weights}
    else:
        sides = [{kind: side[kind][:, used_P] for kind in kinds} for side in left]
        at = {kind: value[kind][used_P] for kind in kinds}
        odd = odd_note(row_R[odd_replicas(count_pairs(answer_RP))])
        found = {name: _part(weight, at, sides, cluster_P[used_P], n_levels, len(row_R), level, odd) for name, weight in weights.items()}
    return AnswerComponents({name: e for name, e in found.items() if name not in KINDS}, {kind: found[kind] for kind in kinds})


SINGLE = {
    "init": {"fresh": 1.0, "same init": -1.0},
    "order": {"fresh": 1.0, "same order": -1.0},
    "residual": {"same init": 1.0, "same order": 1.0, "fresh": -1.0},
}
REPEATED = SINGLE | {
    "init x order": {"same init": 1.0, "same order": 1.0, "fresh": -1.0, "same both": -1.0},
    "residual": {"same both": 1.0},
}


ByKind = dict[str, np.ndarray]


def _disagreement(answer_RP: np.ndarray, init_R: np.ndarray, order_R: np.ndarray, cell_R: np.ndarray) -> tuple[ByKind, ByKind, ByKind]:
    """Share of the pairs of each kind that disagree: of all runs [P]; without the runs of each init, of each order [level, P]."""
    agreeing = _pairs(answer_RP, init_R, order_R, cell_R)
    pairs = _pairs(np.minimum(answer_RP, 0), init_R, order_R, cell_R)  # where all answers are the same, all pairs agree
    share = [
        {kind: 1 - np.where(n[kind] > 0, k[kind] / np.maximum(n[kind], 1), np.nan) for kind in n}
        for k, n in zip(agreeing, pairs, strict=True)
    ]
    return share[0], share[1], share[2]


def _joined(pieces: Sequence[ByKind]) -> ByKind:
    return {kind: np.concatenate([piece[kind] for piece in pieces], axis=-1) for kind in pieces[0]}


def _pairs(answer_RP: np.ndarray, init_R: np.ndarray, order_R: np.ndarray, cell_R: np.ndarray) -> tuple[ByKind, ByKind, ByKind]:
    """Ordered pairs that agree, by what they share. Linear in the cells: a level's pairs are its runs' partners, summed."""
    groups = {"any": np.zeros_like(init_R), "init": init_R, "order": order_R, "both": cell_R}
    # Partners that share at least the group: equal answers in one group are equal codes of the two together.
    width = int(answer_RP.max(initial=0)) + 1
    partners = {
        name: count_pairs(np.where(answer_RP >= 0, answer_RP.astype(np.int64) + width * group_R[:, None], -1)).others_RP
        for name, group_R in groups.items()
    }
    total = {name: others_RP.sum(axis=0) for name, others_RP in partners.items()}

    def without(level_R: np.ndarray, own: str, other: str) -> ByKind:
        """A level takes its runs' pairs along, twice (both directions) except for those within the level."""
        lost = {name: _sums(others_RP, level_R) for name, others_RP in partners.items()}
        left = {
            "any": total["any"] - 2 * lost["any"] + lost[own],
            own: total[own] - lost[own],
            other: total[other] - 2 * lost[other] + lost["both"],
            "both": total["both"] - lost["both"],
        }
        return _exactly(left)

    return _exactly(total), without(init_R, "init", "order"), without(order_R, "order", "init")


def _exactly(count: ByKind) -> ByKind:
    """From pairs that share at least something to pairs that share just that."""
    return {
        "fresh": count["any"] - count["init"] - count["order"] + count["both"],
        "same init": count["init"] - count["both"],
        "same order": count["order"] - count["both"],
        "same both": count["both"],
    }


def _sums(x_RP: np.ndarray, level_R: np.ndarray) -> np.ndarray:
    """Sum over the runs of each level."""
    if len(level_R) == 0:
        return x_RP
    order = np.argsort(level_R, kind="stable")
    return np.add.reduceat(x_RP[order], np.searchsorted(level_R[order], np.arange(level_R.max() + 1)), axis=0)


def _part(
    weight: Mapping[str, float],
    value: Mapping[str, np.ndarray],
    left: Sequence[Mapping[str, np.ndarray]],
    cluster_P: np.ndarray,
    n_levels: tuple[int, int],
    n_runs: int,
    level: float,
    odd: str,
) -> Estimate:
    value_P = sum((w * value[kind] for kind, w in weight.items()), np.zeros(len(cluster_P)))
    sides = [two_way(value_P, sum((w * side[kind] for kind, w in weight.items()), 0 * side["fresh"]), cluster_P) for side in left]
    mean, n_clusters = float(value_P.mean()), sides[0].n_clusters
    few = [f"{n} levels of {name}" for name, n in zip(("init", "order"), n_levels, strict=True) if n < MIN_LEVELS]
    few += [f"{n_clusters} prompts or clusters"] * (n_clusters < MIN_CLUSTERS)
    note = f"{' and '.join(few)} are too few (at least {MIN_LEVELS} levels and {MIN_CLUSTERS} prompts)" if few else odd
    needed = max(n_levels[0], MIN_LEVELS) * max(n_levels[1], MIN_LEVELS) if min(n_levels) < MIN_LEVELS else None
    shape = (level, n_runs, len(value_P))
    if min(n_levels) < 2 or n_clusters < 2:
        return Estimate(mean, None, None, *shape, "none", False, needed, note)
    prompts = min(side.prompts for side in sides)
    terms = [(side.runs, n - 1) for side, n in zip(sides, n_levels, strict=True)] + [(prompts, n_clusters - 1)]
    half = math.sqrt(sum(t_quantile(level, df) ** 2 * variance for variance, df in terms))
    # A kind of prompt that is rarer than the bound may be missing from the suite, whatever the others say (as in share_interval).
    bound = zero_event_bound(n_clusters, level)
    if half < ROUNDING:  # no level and no prompt differs from the others
        method = f"zero-event bound over {n_clusters} prompts or clusters, one-sided"
        return Estimate(mean, max(0.0, mean - bound), min(1.0, mean + bound), *shape, method, not note, needed, note)
    high = min(1.0, max(mean + _reach(mean, half, min(n_levels), level), bound))
    return Estimate(mean, min(mean - half, 1 - bound), high, *shape, METHOD, not note, needed, note)


def _reach(mean: float, half: float, n_levels: int, level: float) -> float:
    """How far the interval goes up: a part that one effect common to all prompts makes is skewed as a variance of n levels is.

    So the step is taken on the log scale, but no further than the chi-squared limit of such a variance.
    """
    from scipy.special import chdtri

    if mean <= 0:
        return half
    most = (n_levels - 1) / float(chdtri(n_levels - 1, (1 + level) / 2))
    return max(half, mean * (min(math.exp(min(half / mean, 50.0)), most) - 1))
