"""Mitigation against baseline, when the groups of the mitigation were built from the replicas of
the baseline.

The two arms are not independent: a replica that is off pulls its group with it. So the unit
everywhere is the group with its members. Leaving out group g leaves out its row in the mitigated
arm and its members' rows in the baseline arm at the same time, and prompts are compared prompt by
prompt. Replicas that are in no group take no part.

Every contrast carries p: the two-sided level at which its own interval would just touch "no
change".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from toolkit.statistics.arrays import (
    Clusters,
    as_answers,
    as_clusters,
    as_correct,
    as_level,
    as_marks,
    as_members,
    blocks,
    marks,
    same_prompts,
)
from toolkit.statistics.compare.arms import (
    AT_LEAST,
    MIN_CARRIED_MEANS,
    MIN_GROUPS,
    Arms,
    Block,
    difference,
    excludes,
    places,
    ratio,
    ratio_around,
    summed,
    unknown,
    verdict,
    zero_ratio,
)
from toolkit.statistics.conclusive import MIN_CLUSTERS
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.outliers import Differing, odd_note
from toolkit.statistics.pairs import (
    PairShares,
    between_groups,
    count_pairs,
    leave_group_out,
    leave_one_out,
)
from toolkit.statistics.prompt_averages import prompt_means

EFFECT_KEPT = 0.9  # an effect size below this may be a collapse towards the base
Members = Sequence[np.ndarray | Sequence[int]]
Marks = Callable[[np.ndarray, slice | np.ndarray], np.ndarray]
"""Of a table, the prompts at a place as floats, nan = missing."""


def disagreement_ratio(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """By what factor does the mitigation change how often two runs differ? Below 1 = more stable.

    Estimand: D of fresh runs of the mitigation / D of fresh single replicas, on fresh prompts.
    Resampled: groups with their members (delete-a-group jackknife of ln(D_b/D_a), both arms at
    once), and clusters of prompts by d_bi/D_b - d_ai/D_a (see `two_way`), each with the t quantile
    of its own degrees of freedom, on the log scale.

    D_b = 0: the value is 0 and `high` the zero-event bound of D_b (one-sided, half the error) over
    the lower limit of D_a (the other half). D_a = 0: no ratio; both 0: not estimable. Conclusive:
    at least MIN_GROUPS groups, and an interval on one side of 1 or inside [0.8, 1.25] (practically
    no change). Otherwise `needed` is the number of groups at which the observed ratio would leave 1
    outside, at the same spread; None where only more prompts, or no number, would help.

    mitigated_GP: codes of group g's answers; baseline_RP: codes of the replicas' answers (encoded
    together); -1 = missing. members[g]: rows of baseline_RP that group g was built from, disjoint.
    Raises ValueError for shapes that do not fit.
    """
    level = as_level(level)
    arms = _disagreements(mitigated_GP, baseline_RP, members, cluster_P)
    return ratio(arms, len(mitigated_GP), level)


def disagreement_difference(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """By how many points does the mitigation change how often two runs differ? Below 0 = more
    stable.

    Estimand: D of fresh runs of the mitigation - D of fresh single replicas, on fresh prompts.
    Unit: share of prompts. Resampling, arguments and errors as in `disagreement_ratio`, on the
    plain scale. Conclusive: an interval on one side of 0, or within one percentage point of it.
    """
    level = as_level(level)
    arms = _disagreements(mitigated_GP, baseline_RP, members, cluster_P)
    return difference(arms, len(mitigated_GP), level)


def accuracy_change(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """By how many points is a run of the mitigation more accurate than a single replica?

    Estimand: accuracy of a fresh run of the mitigation - accuracy of a fresh replica, on fresh
    prompts. Unit: share of prompts. Resampled: groups with their members (both arms at once) and
    clusters of prompts, paired, as in `disagreement_ratio`. Conclusive: an interval on one side of
    0, or within one percentage point of it.

    mitigated_GP, baseline_RP: 1 right, 0 wrong, nan missing; `members` and errors as in
    `disagreement_ratio`.
    """
    level = as_level(level)
    mitigated_GP, baseline_RP = (
        as_marks(mitigated_GP, "mitigated_GP"),
        as_marks(baseline_RP, "baseline_RP"),
    )
    same_prompts(mitigated_GP, baseline_RP)
    arms = _means(
        mitigated_GP,
        baseline_RP,
        lambda table_RP, index_P: marks(table_RP[:, index_P]),
        members,
        cluster_P,
    )
    return difference(arms, len(mitigated_GP), level)


def effect_size(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    base_P: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """How much of the fine-tuning does the mitigation keep, as the share of answers that it changes
    against the base?

    Estimand: P(a mitigated run answers other than the base) / P(a single replica does), for fresh
    runs and prompts. About 1 = kept; 0 = collapsed to the base, which is perfectly stable and of no
    use. Flag below EFFECT_KEPT (0.9). Resampled: groups with their members and clusters of prompts,
    paired. Fieller's interval of a ratio. No interval where the replicas' distance to the base is
    itself not clear of 0. Conclusive: at least MIN_GROUPS groups and an interval on one side of
    EFFECT_KEPT.

    Codes of answers, encoded together; base_P: the base's answer per prompt. -1 = missing; errors
    as in `disagreement_ratio`.
    """
    level = as_level(level)
    mitigated_GP, baseline_RP = (
        as_answers(mitigated_GP, "mitigated_GP"),
        as_answers(baseline_RP, "baseline_RP"),
    )
    base_P = as_answers(np.asarray(base_P)[None], "base_P", at_least=1)[0]
    same_prompts(mitigated_GP, baseline_RP, base_P)

    def differs(answer_RP: np.ndarray, index_P: slice | np.ndarray) -> np.ndarray:
        return np.where(
            (answer_RP[:, index_P] >= 0) & (base_P[index_P] >= 0),
            (answer_RP[:, index_P] != base_P[index_P]).astype(np.float64),
            np.nan,
        )

    arms = _means(mitigated_GP, baseline_RP, differs, members, cluster_P)
    return kept_share(
        arms,
        len(mitigated_GP),
        level,
        "the replicas answer as the base does: there is no effect to keep",
    )


def collapsed(
    effect: Estimate, kept: float = EFFECT_KEPT
) -> Literal["kept", "collapsed", "cannot be told"]:
    """Is the fine-tuning still there after the mitigation? From a one-sided limit of an effect
    size, never from its value.

    "kept": the lower limit is at least `kept`; "collapsed": the upper limit is below it, so a good
    part of whatever stability was won is the base's. "cannot be told": neither, or too few groups
    for the limits to hold what they say. Raises ValueError for a border that is not above 0.
    """
    if not kept > 0:
        raise ValueError(f"kept must be a share above 0, not {kept}")
    low, high = (
        -math.inf if effect.low is None else effect.low,
        math.inf if effect.high is None else effect.high,
    )
    too_few = effect.n_replicas < MIN_GROUPS or effect.n_prompts < MIN_CLUSTERS
    if too_few or (excludes((low, high), EFFECT_KEPT) and not effect.conclusive):
        return "cannot be told"
    return "kept" if low >= kept else "collapsed" if high < kept else "cannot be told"


def accuracy_effect_size(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    base_P: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """How much of the accuracy that fine-tuning gained (or lost) does the mitigation keep?

    Estimand: (accuracy of a mitigated run - accuracy of the base) / (accuracy of a single replica -
    accuracy of the base). May be above 1 where the mitigation is better than one replica.
    Everything else as in `effect_size`, on marks 1/0/nan.
    """
    level = as_level(level)
    mitigated_GP, baseline_RP = (
        as_marks(mitigated_GP, "mitigated_GP"),
        as_marks(baseline_RP, "baseline_RP"),
    )
    base_P = as_correct(np.asarray(base_P)[None], "base_P", at_least=1)[0]
    same_prompts(mitigated_GP, baseline_RP, base_P)
    arms = _means(
        mitigated_GP,
        baseline_RP,
        lambda table_RP, index_P: marks(table_RP[:, index_P]) - base_P[index_P],
        members,
        cluster_P,
    )
    return kept_share(
        arms,
        len(mitigated_GP),
        level,
        "the replicas are as accurate as the base: there is no gain to keep",
    )


def _disagreements(
    mitigated_GP: np.ndarray, baseline_RP: np.ndarray, members: Members, cluster_P: Clusters
) -> Arms | None:
    mitigated_GP, baseline_RP = (
        as_answers(mitigated_GP, "mitigated_GP"),
        as_answers(baseline_RP, "baseline_RP"),
    )
    same_prompts(mitigated_GP, baseline_RP)
    clusters_P = as_clusters(cluster_P, mitigated_GP.shape[1])

    def answered(answer_RP: np.ndarray, index_P: slice | np.ndarray) -> np.ndarray:
        return np.where(answer_RP[:, index_P] >= 0, 0.0, np.nan)

    alive_G, row_R, groups, used = _only_members(
        members, mitigated_GP, baseline_RP, answered, at_least=2
    )
    if len(alive_G) < 2:
        return None
    differing, shares_b, shares_a = (
        Differing(len(row_R)),
        PairShares(len(alive_G)),
        PairShares(len(row_R)),
    )

    def table_blocks() -> Iterator[Block]:
        for block_P in places(used, clusters_P, len(alive_G) + len(row_R)):
            answer_GP, answer_RP = (
                mitigated_GP[alive_G[:, None], block_P],
                baseline_RP[row_R[:, None], block_P],
            )
            pairs_b, pairs_a = count_pairs(answer_GP), count_pairs(answer_RP)
            differing.add(pairs_a)
            shares_b.add(answer_GP)
            shares_a.add(answer_RP)
            left = leave_one_out(pairs_b), leave_group_out(answer_RP, pairs_a, groups)
            yield Block(pairs_b.d_P, pairs_a.d_P, *left, clusters_P[block_P])

    sums = summed(table_blocks(), len(groups), len(groups), together=True)
    if sums is None:
        return None
    share_GG, share_RR = shares_b.shares(), shares_a.shares()
    # the first so many
    seen = [
        group for g, group in enumerate(groups) if g < len(share_GG) and group[-1] < len(share_RR)
    ]
    of_pairs = (
        between_groups(share_GG, [np.array([g]) for g in range(len(seen))]),
        between_groups(share_RR, seen),
    )
    return Arms(sums, odd_note(row_R[differing.rows()]), of_pairs=of_pairs)


def _means(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    marks_of: Marks,
    members: Members,
    cluster_P: Clusters,
) -> Arms | None:
    """Arms of means over prompts."""
    clusters_P = as_clusters(cluster_P, mitigated_GP.shape[1])
    alive_G, row_R, groups, used = _only_members(
        members, mitigated_GP, baseline_RP, marks_of, at_least=1
    )
    if len(alive_G) < 2:
        return None

    def table_blocks() -> Iterator[Block]:
        for block_P in places(used, clusters_P, len(alive_G) + len(row_R)):
            b_P, left_b_GP = prompt_means(marks_of(mitigated_GP, block_P)[alive_G])
            a_P, left_a_GP = prompt_means(marks_of(baseline_RP, block_P)[row_R], groups)
            yield Block(b_P, a_P, left_b_GP, left_a_GP, clusters_P[block_P])

    sums = summed(table_blocks(), len(groups), len(groups), together=True)
    return None if sums is None else Arms(sums, least_carried=MIN_CARRIED_MEANS)


def _only_members(
    members: Members,
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    marks_of: Marks,
    at_least: int,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """Groups that answered anything; the baseline rows behind them; where in those rows each
    group's members stand; the prompts that at_least so many of the groups, and of the rows,
    answered.
    """
    every = as_members(members, len(mitigated_GP), len(baseline_RP))
    n_rows, n_prompts = len(mitigated_GP) + len(baseline_RP), mitigated_GP.shape[1]
    answered_G = np.zeros(len(mitigated_GP), dtype=bool)
    for block_P in blocks(n_rows, n_prompts):
        answered_G |= np.isfinite(marks_of(mitigated_GP, block_P)).any(axis=1)
    alive_G = np.flatnonzero(answered_G)
    ends = np.cumsum([0] + [len(every[g]) for g in alive_G])
    row_R = (
        np.concatenate([every[g] for g in alive_G])
        if len(alive_G)
        else np.array([], dtype=np.int64)
    )
    used_P = np.zeros(n_prompts, dtype=bool)
    for block_P in blocks(n_rows, n_prompts):
        n_b_P, n_a_P = (
            np.isfinite(marks_of(table, block_P)[rows]).sum(axis=0)
            for table, rows in ((mitigated_GP, alive_G), (baseline_RP, row_R))
        )
        used_P[block_P] = (n_b_P >= at_least) & (n_a_P >= at_least)
    return (
        alive_G,
        row_R,
        [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)],
        np.flatnonzero(used_P),
    )


def kept_share(arms: Arms | None, n_rows: int, level: float, nothing: str) -> Estimate:
    """Fieller's interval of b / a: all ratios theta for which b - theta * a is no further from 0
    than t standard errors.
    """
    if arms is None or arms.a == 0:
        return unknown(arms, n_rows, level, nothing)
    method = f"Fieller interval, {arms.resampled} jackknife with prompt term"
    if arms.b == 0 and not arms.sums.b_P.any():
        return zero_ratio(arms, level, EFFECT_KEPT, "no mitigated run differs from the base")
    value = arms.b / arms.a
    # Squared half widths of b, a and b - value * a stand for t^2 times their variances; the last
    # one gives the covariance.
    square_b, square_a, square_gap = (
        arms.parts(*w).half_width(level) ** 2 for w in ((1.0, 0.0), (0.0, 1.0), (1.0, -value))
    )
    covariance = (square_b + value**2 * square_a - square_gap) / (2 * value) if value else 0.0
    square, slope, constant = (
        arms.a**2 - square_a,
        arms.a * arms.b - covariance,
        arms.b**2 - square_b,
    )
    if square <= 0:
        needed = arms.parts(0.0, 1.0).runs_needed(arms.a, level, max(arms.least, arms.units + 1))
        shape = (level, arms.units, arms.prompts, method)
        return Estimate(
            None, None, None, *shape, False, needed, "not clear of the base: " + nothing
        )
    root = math.sqrt(max(0.0, slope**2 - square * constant)) if math.isfinite(square) else math.nan
    ends = (slope - root) / square, (slope + root) / square
    if arms.nearly_equal:
        method += AT_LEAST.format(arms.clusters)
        around = ratio_around(value, arms)(level)
        ends = min(ends[0], around[0]), max(ends[1], around[1])
    border = arms.parts(1 / arms.a, -EFFECT_KEPT / arms.a)
    return verdict(
        arms, value, ends, EFFECT_KEPT, value - EFFECT_KEPT, border, False, level, method
    )
