"""What is gained, lost or kept of a mean: over one fixed model, or between two populations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from toolkit.statistics.arrays import (
    Clusters,
    as_answers,
    as_clusters,
    as_correct,
    as_level,
    as_marks,
    as_run_numbers,
    as_score_table,
    marks,
    rounding,
    same_prompts,
)
from toolkit.statistics.compare.arms import (
    MIN_CARRIED_MEANS,
    Arms,
    Block,
    places,
    score_difference,
    summed,
)
from toolkit.statistics.compare.mitigation import kept_share
from toolkit.statistics.compare.populations import arms_apart, used_rows
from toolkit.statistics.conclusive import MIN_REPLICAS_SPREAD
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import pseudo_contrast, t_quantile, two_sided_p, zero_event_bound
from toolkit.statistics.outliers import odd_runs
from toolkit.statistics.prompt_averages import mean_estimate, prompt_means
from toolkit.statistics.scores.mean_and_sd import score_by_prompt
from toolkit.statistics.scores.run_numbers import enough_runs


def accuracy_gain(
    correct_RP: np.ndarray, base_P: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """By how many points is a fresh run more accurate than one fixed model, the base?

    Estimand: accuracy of a fresh run - accuracy of the base, on fresh prompts. Resampled as in
    `score_mean`, of the differences on each prompt. correct_RP, base_P: 1 right, 0 wrong, nan (or
    -1 in integers) missing. Conclusive, as other changes of accuracy: prompts that make it up worth
    MIN_CARRIED_MEANS equal ones, and MIN_REPLICAS runs. Raises ValueError for shapes that do not
    fit.
    """
    level = as_level(level)
    correct_RP = as_correct(correct_RP, "correct_RP")
    base_P = as_correct(np.asarray(base_P)[None], "base_P", at_least=1)[0]
    same_prompts(correct_RP, base_P)
    value_P, left_RP, odd_R = score_by_prompt(gain_RP := as_score_table(correct_RP - base_P))
    clusters_P = as_clusters(cluster_P, gain_RP.shape[1])
    gain = mean_estimate(
        value_P,
        left_RP,
        clusters_P,
        level,
        odd_R,
        carried_by_P=np.abs(value_P),
        worth=int(MIN_CARRIED_MEANS),
    )
    asked_P = np.isfinite(value_P)
    if gain.low is None or gain.high is None or len(set(base_P[asked_P])) > 1:
        return gain
    # a base that is never wrong here, or never right, may be so on prompts that this suite lacks
    unseen = zero_event_bound(len(np.unique(clusters_P[asked_P])), level)
    never_wrong = base_P[asked_P][0] == 1
    return (
        replace(gain, high=gain.high + unseen)
        if never_wrong
        else replace(gain, low=gain.low - unseen)
    )


def population_score_change(
    b_RP: np.ndarray,
    a_RP: np.ndarray,
    *,
    cluster_P: Clusters = None,
    paired: bool = False,
    level: float = 0.95,
) -> Estimate:
    """By how much is the mean score of a run of b above that of a run of a?

    Estimand: mean score of fresh runs of b - that of fresh runs of a, on fresh prompts, in the unit
    of the score. Resampled as in `population_accuracy_change`, on the plain scale. Conclusive:
    MIN_GROUPS runs in each arm, MIN_CLUSTERS clusters that make it up, and an interval on one side
    of 0. nan = missing. Raises ValueError for shapes that do not fit.
    """
    level = as_level(level)
    b_RP, a_RP = as_score_table(b_RP), as_score_table(a_RP)
    far = sum(len(odd_runs(table)) for table in (b_RP, a_RP))
    remark = f"{far} runs stand far off the others: did they fail?" if far else ""
    present = [np.where(np.isfinite(table), np.int8(0), np.int8(-1)) for table in (b_RP, a_RP)]
    arms = _means(
        present, (b_RP, a_RP), lambda table, index_P: table[:, index_P], cluster_P, paired, remark
    )
    return score_difference(arms, len(b_RP), level)


def population_effect_size(
    b_RP: np.ndarray,
    a_RP: np.ndarray,
    base_P: np.ndarray,
    *,
    cluster_P: Clusters = None,
    paired: bool = False,
    level: float = 0.95,
) -> Estimate:
    """How much of the fine-tuning of a does b keep, as the share of answers that it changes against
    the base?

    Estimand: P(a run of b answers other than the base) / P(a run of a does). Two populations of
    runs, resampled as in `population_ratio`; Fieller's interval and all else as in `effect_size`.
    """
    level = as_level(level)
    b_RP, a_RP = as_answers(b_RP, "b_RP"), as_answers(a_RP, "a_RP")
    base_P = as_answers(np.asarray(base_P)[None], "base_P", at_least=1)[0]
    same_prompts(b_RP, a_RP, base_P)

    def differs(answer_RP: np.ndarray, index_P: np.ndarray) -> np.ndarray:
        return np.where(
            (answer_RP[:, index_P] >= 0) & (base_P[index_P] >= 0),
            (answer_RP[:, index_P] != base_P[index_P]).astype(np.float64),
            np.nan,
        )

    arms = _means((b_RP, a_RP), (b_RP, a_RP), differs, cluster_P, paired, only_P=base_P >= 0)
    return kept_share(
        arms,
        len(b_RP),
        level,
        "the runs of the baseline answer as the base does: there is no effect to keep",
    )


def population_gain_kept(
    b_RP: np.ndarray,
    a_RP: np.ndarray,
    base_P: np.ndarray,
    *,
    cluster_P: Clusters = None,
    paired: bool = False,
    level: float = 0.95,
) -> Estimate:
    """How much of the accuracy that a gained (or lost) over the base does b keep?

    Estimand: (accuracy of a run of b - accuracy of the base) / (accuracy of a run of a - accuracy
    of the base). Everything else as in `population_effect_size`, on marks 1/0/nan.
    """
    level = as_level(level)
    b_RP, a_RP = as_marks(b_RP, "b_RP"), as_marks(a_RP, "a_RP")
    base_P = as_correct(np.asarray(base_P)[None], "base_P", at_least=1)[0]
    same_prompts(b_RP, a_RP, base_P)
    arms = _means(
        (b_RP, a_RP),
        (b_RP, a_RP),
        lambda x, index_P: marks(x[:, index_P]) - base_P[index_P],
        cluster_P,
        paired,
        only_P=np.isfinite(base_P),
    )
    return kept_share(
        arms,
        len(b_RP),
        level,
        "the runs of the baseline are as accurate as the base: there is no gain to keep",
    )


def run_mean_change(
    score_b: np.ndarray, score_a: np.ndarray, *, paired: bool = False, level: float = 0.95
) -> Estimate:
    """By how much is the mean of a number over runs of b above that over runs of a? In its unit.

    Welch's t; paired=True: run j of both arms shares its seeds, t over the differences. Conclusive:
    MIN_REPLICAS_SPREAD runs in each arm and an interval on one side of 0.
    """
    level, b, a = (
        as_level(level),
        np.asarray(score_b, dtype=np.float64),
        np.asarray(score_a, dtype=np.float64),
    )
    if paired:
        both_R = np.isfinite(b) & np.isfinite(a)
        b, a = b[both_R], a[both_R]
    b, a = as_run_numbers(b), as_run_numbers(a)
    n = min(len(b), len(a))
    if n < 2:
        return without_interval(
            None, level, n, 0, MIN_REPLICAS_SPREAD, "fewer than two runs in an arm"
        )
    left = [(x.sum() - x) / (len(x) - 1) for x in (b, a)]
    centre, se, df = pseudo_contrast(
        float(b.mean()), left[0], float(a.mean()), left[1], paired=paired
    )
    enough, needed, note = enough_runs([b, a])
    value = float(b.mean() - a.mean())
    if se <= rounding(b, a):
        what = "all pairs differ alike" if paired else "the runs of either arm are equal"
        return without_interval(value, level, n, 0, needed, f"{what}: no interval")
    half, method = (
        t_quantile(level, df) * se,
        "t over pairs of runs" if paired else "Welch t over runs",
    )
    resolved = abs(value) > half
    note = note or ("" if resolved else "not resolved: the interval holds 0")
    return Estimate(
        value,
        value - half,
        value + half,
        level,
        n,
        0,
        method,
        enough and resolved,
        needed,
        note,
        two_sided_p(centre, se, df),
    )


def negated(estimate: Estimate) -> Estimate:
    """Of a difference, that of the other way round."""
    value, low, high = (
        None if x is None else -x for x in (estimate.value, estimate.high, estimate.low)
    )
    return replace(estimate, value=value, low=low, high=high)


def _means(
    present: Sequence[np.ndarray],
    tables: Sequence[np.ndarray],
    values: Callable[[np.ndarray, np.ndarray], np.ndarray],
    cluster_P: Clusters,
    paired: bool,
    remark: str = "",
    only_P: np.ndarray | None = None,
) -> Arms | None:
    """Arms of means over prompts. present: which cells are there (-1, nan: missing); values: floats
    of a table on some prompts.
    """
    (present_b, present_a), (b_RP, a_RP) = present, tables
    row_b_R, row_a_R, used, clusters_P = used_rows(
        present_b, present_a, cluster_P, paired, at_least=1
    )
    if only_P is not None:
        used = used[only_P[used]]
    if min(len(row_b_R), len(row_a_R)) < 2 or not len(used):
        return None

    def table_blocks() -> Iterator[Block]:
        for block_P in places(used, clusters_P, len(row_b_R) + len(row_a_R)):
            b_P, left_b_RP = prompt_means(values(b_RP, block_P)[row_b_R])
            a_P, left_a_RP = prompt_means(values(a_RP, block_P)[row_a_R])
            yield Block(b_P, a_P, left_b_RP, left_a_RP, clusters_P[block_P])

    return arms_apart(
        summed(table_blocks(), len(row_b_R), len(row_a_R), paired),
        remark,
        paired,
        MIN_CARRIED_MEANS,
    )
