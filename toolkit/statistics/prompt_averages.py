"""Means over prompts of a figure estimated from runs: shares, scores, losses, texts."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from toolkit.statistics.arrays import ROUNDING, rounding
from toolkit.statistics.conclusive import MIN_REPLICAS, few_clusters, verdict
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import (
    effective,
    log_jackknife,
    share_interval,
    t_quantile,
    two_way,
)

NO_WIDTH_OF_SHARE = 1e-9  # a half-width below this is rounding
# the variance part of a loss, where runs move all prompts together, was seen to be covered from
# here
MIN_REPLICAS_VARIANCE = 30
# A figure that few prompts make up is not covered. Counted is (sum)^2 / (sum of squares) over
# prompts or clusters.
MIN_EFFECTIVE = 30
MIN_EFFECTIVE_LOSS = 20  # of losses, and of shares that prompts flip


def share_estimate(
    value_P: np.ndarray,
    left_RP: np.ndarray,
    cluster_P: np.ndarray,
    level: float,
    odd_R: np.ndarray,
    *,
    at_least: int = MIN_REPLICAS,
    of_pairs: float = 0.0,
    note: str = "",
) -> Estimate:
    """The mean over prompts of a share in [0, 1] that is estimated from runs, with the interval and
    verdict of `disagreement`.

    value_P: nan = does not count. left_RP: the same without run r (nan = nothing is left). odd_R:
    rows that stand far off. of_pairs: the second-order variance (see `PairShares`). Without any
    variance there is no interval.
    """
    used_P = np.isfinite(value_P)
    n_replicas, n_prompts = len(left_RP), int(used_P.sum())
    if n_prompts == 0:
        note = note or "no prompt has what it takes of two replicas"
        return without_interval(
            None, level, n_replicas, 0, at_least if n_replicas < at_least else None, note
        )
    value = min(max(float(value_P[used_P].mean()), 0.0), 1.0)
    parts = two_way(value_P[used_P], left_RP[:, used_P], cluster_P[used_P]).and_pairs(of_pairs)
    enough, needed, doubt = verdict(
        n_replicas, few_clusters(parts.n_clusters, parts.effective), odd_R, at_least
    )
    if not np.isfinite(left_RP).any():  # nothing shows how much runs matter
        parts = replace(parts, runs=math.nan)
    low, high = share_interval(value, parts, level)
    method = "two-way jackknife-t over replicas and prompts, logit scale"
    if value in (0.0, 1.0):
        method = f"zero-event bound over {parts.n_clusters} prompts or clusters, one-sided"
    elif (
        parts.half_width(level) < NO_WIDTH_OF_SHARE
    ):  # half of the runs on either side: leaving one out leaves the same
        low, high, enough, doubt = (
            None,
            None,
            False,
            "leaving out any run or prompt leaves the same: no spread to make an interval from",
        )
    return Estimate(
        value,
        low,
        high,
        level,
        n_replicas,
        n_prompts,
        method,
        enough,
        needed,
        "; ".join(filter(None, [doubt, note])),
    )


def mean_estimate(
    value_P: np.ndarray,
    left_RP: np.ndarray,
    cluster_P: np.ndarray,
    level: float,
    odd_R: np.ndarray,
    *,
    positive: bool = False,
    tiny: float = ROUNDING,
    at_least: int = MIN_REPLICAS,
    carried_by_P: np.ndarray | None = None,
    worth: int = MIN_EFFECTIVE,
    note: str = "",
) -> Estimate:
    """The mean over prompts of a figure estimated from runs, replicas and clusters of prompts both
    drawn anew.

    value_P: nan = does not count. left_RP: the same without run r (nan = nothing is left).
    positive: the estimand is at least 0, so the interval lies on the log scale; a value up to
    `tiny` has none. Conclusive: `at_least` replicas, and prompts worth `worth` equal ones, counted
    in carried_by_P (value_P itself where it is positive).
    """
    used_P = np.isfinite(value_P)
    n_replicas, n_prompts = len(left_RP), int(used_P.sum())
    if n_prompts == 0:
        return without_interval(
            None,
            level,
            n_replicas,
            0,
            at_least if n_replicas < at_least else None,
            note or "no prompt has what it takes",
        )
    value_P, left_RP = value_P[used_P], left_RP[:, used_P]
    value, parts = float(value_P.mean()), two_way(value_P, left_RP, cluster_P[used_P])
    enough, needed, doubt = verdict(
        n_replicas, few_clusters(parts.n_clusters, parts.effective), odd_R, at_least
    )
    shape = level, n_replicas, n_prompts
    carried_by_P = value_P if carried_by_P is None else carried_by_P[used_P]
    if enough and effective(carried_by_P, cluster_P[used_P]) < worth:
        enough, doubt = False, few_prompts(carried_by_P, cluster_P[used_P], worth)
    if positive and value <= tiny:
        doubt = (
            "nothing above 0 was seen (beyond rounding), so there is nothing to put an "
            "interval around"
        )
        value = value if abs(value) > tiny else 0.0
        return without_interval(value, *shape, needed, "; ".join(filter(None, [doubt, note])))
    method = "two-way jackknife-t over replicas and prompts" + (", log scale" if positive else "")
    low = high = None
    if np.isfinite(left_RP).any() and parts.n_clusters > 1:
        if positive:
            one_P = np.ones(n_prompts)
            ends = log_ratio(
                value_P,
                left_RP,
                one_P,
                np.broadcast_to(one_P, left_RP.shape),
                cluster_P[used_P],
                level,
            )
            low, high = math.exp(ends[0]), math.exp(ends[1])
        else:
            half = parts.half_width(level)
            low, high = value - half, value + half
        if high - low <= rounding(value_P):
            low = high = None
            enough, doubt = False, "nothing varies, so there is no spread to put an interval around"
    return Estimate(
        value, low, high, *shape, method, enough, needed, "; ".join(filter(None, [doubt, note]))
    )


def log_ratio(
    a_P: np.ndarray,
    left_a_RP: np.ndarray,
    b_P: np.ndarray,
    left_b_RP: np.ndarray,
    cluster_P: np.ndarray,
    level: float,
) -> tuple[float, float]:
    """Interval of ln(mean a / mean b), two means over prompts of positive figures estimated from
    runs; the estimate is inside.

    The two-way jackknife of the ratio to first order; for the runs the jackknife of the logarithm
    itself, whose pseudo-values know how skewed variances of few runs are (as in `variance_ratio`),
    unless a value left out is negative. Its degrees of freedom are those of as many equal runs as
    make up the figure, by what each contributes to it.
    """
    a, b = float(a_P.mean()), float(b_P.mean())
    left_a_RP, left_b_RP = (
        np.where(np.isfinite(left_RP), left_RP, x_P)
        for left_RP, x_P in ((left_a_RP, a_P), (left_b_RP, b_P))
    )
    parts = two_way(a_P / a - b_P / b, left_a_RP / a - left_b_RP / b, cluster_P)
    estimate = centre = math.log(a / b)
    left_a_R, left_b_R = left_a_RP.mean(axis=1), left_b_RP.mean(axis=1)
    if min(left_a_R.min(), left_b_R.min()) > 0.0:
        n = len(left_a_R)
        centre, se = log_jackknife(estimate, np.log(left_a_R / left_b_R))
        share_R = np.maximum(n * a - (n - 1) * left_a_R, 0.0)
        wider = t_quantile(
            level, max(share_R.sum() ** 2 / np.sum(share_R**2) - 1, 2.0)
        ) / t_quantile(level, n - 1)
        parts = replace(parts, runs=(wider * se) ** 2)
    half = parts.half_width(level)
    return max(min(centre - half, estimate), -700.0), min(max(centre + half, estimate), 700.0)


def few_prompts(value_P: np.ndarray, cluster_P: np.ndarray, at_least: int) -> str:
    """A note that few of the prompts [P] make up most of a figure."""
    equal = effective(value_P, cluster_P)
    return (
        f"few prompts make up most of it: they tell no more than {equal:.0f} equal ones would "
        f"(at least {at_least})"
    )


def variances(square_RP: np.ndarray, present_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample variance over runs per prompt, and without each run, from squared distances to the
    mean (0 where missing).
    """
    n_P, sum_P = present_RP.sum(axis=0), square_RP.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_P = np.where(n_P > 1, sum_P / (n_P - 1), np.nan)
        left_RP = np.where(
            n_P > 2, np.maximum(sum_P - square_RP * n_P / (n_P - 1), 0.0) / (n_P - 2), np.nan
        )
    return variance_P, np.where(present_RP, left_RP, variance_P)


def unbiased(
    plug_in_P: np.ndarray, left_RP: np.ndarray, present_RP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The jackknife estimate n V - (n-1) mean_r V(-r), free of the bias in 1/n (Quenouille 1956),
    and V(-r) about it.
    """
    n_P = present_RP.sum(axis=0)
    left_RP = np.where(present_RP, left_RP, 0.0)
    mean_P = left_RP.sum(axis=0) / np.maximum(n_P, 1)
    value_P = np.where(n_P > 1, n_P * plug_in_P - (n_P - 1) * mean_P, np.nan)
    return value_P, np.where(present_RP, value_P + left_RP - mean_P, value_P)


def prompt_means(
    mark_RP: np.ndarray, groups: Sequence[np.ndarray] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """mean_P over the replicas that have a mark (nan if none), and mean_GP with each group of rows
    (by default each row) left out.
    """
    present_RP = np.isfinite(mark_RP)
    filled_RP = np.where(present_RP, mark_RP, 0.0)
    sum_P, n_P = filled_RP.sum(axis=0), present_RP.sum(axis=0)
    if groups is None:
        left_GP, n_GP = sum_P - filled_RP, n_P - present_RP
    else:
        left_GP = np.array([sum_P - filled_RP[group].sum(axis=0) for group in groups])
        n_GP = np.array([n_P - present_RP[group].sum(axis=0) for group in groups])
    with np.errstate(invalid="ignore"):
        return np.where(n_P > 0, sum_P / np.maximum(n_P, 1), np.nan), np.where(
            n_GP > 0, left_GP / np.maximum(n_GP, 1), np.nan
        )
