"""The mean of a number: a score of every answer, what is gained over one fixed model, or one number
a run.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from toolkit.statistics.accuracy import MIN_REPLICAS_SPREAD, prompt_means
from toolkit.statistics.arms import (
    MIN_CARRIED_MEANS,
    Arms,
    Block,
    Clusters,
    places,
    score_difference,
    summed,
)
from toolkit.statistics.arrays import (
    as_answers,
    as_clusters,
    as_correct,
    as_level,
    as_marks,
    blocks,
    cells,
    filled_rows,
    marks,
    rounding,
    same_prompts,
)
from toolkit.statistics.compare import kept_share
from toolkit.statistics.contrast import arms_apart, used_rows
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import (
    leave_one_out_variance,
    log_variance_interval,
    pseudo_contrast,
    sample_skewness,
    t_quantile,
    two_sided_p,
    zero_event_bound,
)
from toolkit.statistics.means import mean_estimate
from toolkit.statistics.outliers import Differing, far_from_median
from toolkit.statistics.pairs import count_pairs


def score_mean(
    score_RP: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """What is the mean score of a fresh run on fresh prompts?

    Resampled: replicas and clusters of prompts (two-way jackknife-t), as in `accuracy`, on the
    plain scale. score_RP: [replicas, prompts], nan = missing. Conclusive: MIN_REPLICAS replicas and
    prompts whose distances from the mean are worth MIN_EFFECTIVE equal ones. Raises ValueError for
    other shapes or fewer than two rows.
    """
    level, score_RP = as_level(level), _table(score_RP)
    value_P, left_RP, odd_R = _by_prompt(score_RP)
    known_P = np.isfinite(value_P)
    apart_P = np.abs(value_P - (value_P[known_P].mean() if known_P.any() else 0.0))
    return mean_estimate(
        value_P,
        left_RP,
        as_clusters(cluster_P, score_RP.shape[1]),
        level,
        odd_R,
        carried_by_P=apart_P,
    )


def _by_prompt(score_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score of every prompt, the same without each run that has a score, and the rows that
    stand far off.
    """
    row_R = np.flatnonzero(np.isfinite(score_RP).any(axis=1))
    return *prompt_means(score_RP[row_R]), row_R[odd_runs(score_RP[row_R])]


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
    value_P, left_RP, odd_R = _by_prompt(gain_RP := _table(correct_RP - base_P))
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
    b_RP, a_RP = _table(b_RP), _table(a_RP)
    far = sum(len(odd_runs(table)) for table in (b_RP, a_RP))
    remark = f"{far} runs stand far off the others: did they fail?" if far else ""
    present = [np.where(np.isfinite(table), np.int8(0), np.int8(-1)) for table in (b_RP, a_RP)]
    arms = _means(present, (b_RP, a_RP), lambda table, at: table[:, at], cluster_P, paired, remark)
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

    def differs(answer_RP: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.where(
            (answer_RP[:, at] >= 0) & (base_P[at] >= 0),
            (answer_RP[:, at] != base_P[at]).astype(np.float64),
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
        lambda x, at: marks(x[:, at]) - base_P[at],
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


def run_mean(score_R: np.ndarray, *, level: float = 0.95) -> Estimate:
    """What is the mean of a number over fresh runs? One number a run: a metric on a suite, or a
    loss. nan = the run has none.

    Resampled: runs (t with N-1 degrees of freedom). Where single runs lie far off on one side, the
    mean of the others is off to the other side, so the interval is drawn out to that side by s *
    skewness * (1 + 2 t^2) / 6N (Hall 1992, first order). Without it skewed numbers (exponential, or
    a fifth of the runs of another kind) were covered by 92 to 93 % from 15 runs on, with it by 95.
    Conclusive: MIN_REPLICAS_SPREAD runs.
    """
    level, score_R = as_level(level), _numbers(score_R)
    n = len(score_R)
    if n < 2:
        value = float(score_R[0]) if n else None
        return without_interval(value, level, n, 0, MIN_REPLICAS_SPREAD, "fewer than two runs")
    value, sd, t = float(score_R.mean()), float(score_R.std(ddof=1)), t_quantile(level, n - 1)
    if sd <= rounding(score_R):
        return without_interval(
            value, level, n, 0, None, "all runs are equal: no spread to make an interval from"
        )
    half, lean = t * sd / math.sqrt(n), sd * sample_skewness(score_R) * (1 + 2 * t**2) / (6 * n)
    ends = value - half + min(lean, 0.0), value + half + max(lean, 0.0)
    return Estimate(
        value, *ends, level, n, 0, "t over runs, drawn out for skewness", *_guard([score_R])
    )


def run_sd(score_R: np.ndarray, *, level: float = 0.95) -> Estimate:
    """What is the standard deviation of a number over fresh runs, in its unit?

    Resampled: runs, on the log scale, widened for heavy tails as every standard deviation between
    runs is (`log_variance_interval`). Conclusive: MIN_REPLICAS_SPREAD runs. Runs that stand far off
    make it wide and are named; see `accuracy_spread` why that is all.
    """
    level, score_R = as_level(level), _numbers(score_R)
    n = len(score_R)
    if n < 3:
        value = float(score_R.std(ddof=1)) if n > 1 else None
        return without_interval(value, level, n, 0, MIN_REPLICAS_SPREAD, "fewer than three runs")
    value = float(score_R.std(ddof=1))
    value = value if value > rounding(score_R) else 0.0
    left_R = leave_one_out_variance(score_R)
    _, needed, note = _guard([score_R])
    short = n < MIN_REPLICAS_SPREAD
    if left_R.min() <= rounding(score_R) ** 2:
        equal = "all runs, or all but one, are equal: no spread to make an interval from"
        return without_interval(value, level, n, 0, needed if short else None, equal)
    low, high = (
        math.exp(x / 2)
        for x in log_variance_interval(2 * math.log(value), np.log(left_R), score_R, level)
    )
    method = "log-variance jackknife-t over runs, widened for heavy tails"
    return Estimate(
        value, low, high, level, n, 0, method, not short, needed if short else None, note
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
    b, a = _numbers(b), _numbers(a)
    n = min(len(b), len(a))
    if n < 2:
        return without_interval(
            None, level, n, 0, MIN_REPLICAS_SPREAD, "fewer than two runs in an arm"
        )
    left = [(x.sum() - x) / (len(x) - 1) for x in (b, a)]
    centre, se, df = pseudo_contrast(
        float(b.mean()), left[0], float(a.mean()), left[1], paired=paired
    )
    enough, needed, note = _guard([b, a])
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


def odd_answers(answer_RP: np.ndarray) -> np.ndarray:
    """Rows whose answers differ from the others' far more often than the median row's (see
    `odd_replicas`), in blocks of prompts.
    """
    row_R = filled_rows(answer_RP)
    differing = Differing(len(row_R))
    for at in blocks(*answer_RP.shape):
        differing.add(count_pairs(cells(answer_RP, row_R, at)))
    return row_R[differing.rows()]


def odd_marks(correct_RP: np.ndarray) -> np.ndarray:
    """Rows whose accuracy stands far off that of the others (see `far_from_median`), counting on
    the prompts at hand allowed for.
    """
    row_R = filled_rows(correct_RP)
    right_R, marked_R = np.zeros(len(row_R)), np.zeros(len(row_R))
    for at in blocks(*correct_RP.shape):
        mark_RP = marks(cells(correct_RP, row_R, at))
        right_R += np.nansum(mark_RP, axis=1)
        marked_R += np.isfinite(mark_RP).sum(axis=1)
    right_R = right_R / np.maximum(marked_R, 1)
    middle, n = (
        float(np.median(right_R)) if len(right_R) else 0.0,
        max(1.0, float(np.max(marked_R, initial=1))),
    )
    counting = math.sqrt(max(middle * (1 - middle), 1 / n) / n)
    far_R = far_from_median(right_R)
    return row_R[far_R[np.abs(right_R[far_R] - middle) > 6 * counting]]


def odd_runs(score_RP: np.ndarray) -> np.ndarray:
    """Rows whose mean score, about what prompts are like, stands far off those of the others."""
    known_RP = np.isfinite(score_RP)
    count_R, count_P = known_RP.sum(axis=1), known_RP.sum(axis=0)
    filled_RP = np.where(known_RP, score_RP, 0.0)
    mean_P = filled_RP.sum(axis=0) / np.maximum(count_P, 1)
    row_R = np.flatnonzero(count_R)
    mean_R = np.where(known_RP, filled_RP - mean_P, 0.0)[row_R].sum(axis=1) / count_R[row_R]
    return row_R[far_from_median(mean_R, float(np.abs(filled_RP).max(initial=0.0)))]


def _guard(arms: Sequence[np.ndarray]) -> tuple[bool, int | None, str]:
    """Of numbers a run: conclusive or not, the runs it would need, and why."""
    n = min(map(len, arms))
    if n < MIN_REPLICAS_SPREAD:
        return (
            False,
            MIN_REPLICAS_SPREAD,
            f"{n} runs are too few for an interval that holds what it says (at least "
            f"{MIN_REPLICAS_SPREAD})",
        )
    odd = sum(len(far_from_median(arm)) for arm in arms)
    return True, None, f"runs that stand far off the others: {odd}; did they fail?" if odd else ""


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
        for at in places(used, clusters_P, len(row_b_R) + len(row_a_R)):
            b_P, left_b_RP = prompt_means(values(b_RP, at)[row_b_R])
            a_P, left_a_RP = prompt_means(values(a_RP, at)[row_a_R])
            yield Block(b_P, a_P, left_b_RP, left_a_RP, clusters_P[at])

    return arms_apart(
        summed(table_blocks(), len(row_b_R), len(row_a_R), paired),
        remark,
        paired,
        MIN_CARRIED_MEANS,
    )


def _table(score_RP: np.ndarray) -> np.ndarray:
    score_RP = np.asarray(score_RP, dtype=np.float64)
    if score_RP.ndim != 2 or score_RP.shape[1] == 0 or len(score_RP) < 2:
        raise ValueError(
            "scores must be a table of numbers [replicas, prompts] with two rows at "
            f"least, not shape {score_RP.shape}"
        )
    if np.any(np.isinf(score_RP)):
        raise ValueError("a table of scores holds an infinite score; nan marks a missing one")
    return score_RP


def _numbers(score_R: np.ndarray) -> np.ndarray:
    score_R = np.asarray(score_R, dtype=np.float64)
    if score_R.ndim != 1 or np.any(np.isinf(score_R)):
        raise ValueError(
            f"scores must be one finite number a run (nan: none), not of shape {score_R.shape}"
        )
    return score_R[np.isfinite(score_R)]
