"""The variance of a merge or ensemble of K fresh replicas, from all replicas at hand rather than
from one division into groups.

N replicas make only N/K disjoint groups, and the variance between so few is known badly. Another
division of the same replicas says something new: over all of them the error falls to about that of
N replicas. It never falls below: subsets share replicas, so their number is no sample size.

Between K-subsets that overlap the variance is too low, by exactly 1 - K/N for a mean. The factor
N/(N-K) mends that for linear statistics alone: for weights seen through a model, TIES, DARE or a
vote nothing says by how much overlapping subsets agree too well. Here subsets are compared only
with subsets that share no replica, which needs no factor: right for any statistic, and the same as
N/(N-K) for a mean.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from toolkit.statistics.arrays import as_level
from toolkit.statistics.compare.variances import NO_ERROR, ROUNDING, has_spread
from toolkit.statistics.conclusive import MIN_REPLICAS_SPREAD
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import (
    leave_one_out_variance,
    log_jackknife,
    log_variance_interval,
)
from toolkit.statistics.outliers import far_from_median

# times K^2: from there the draw of the divisions adds little to the error of the variance
PARTITIONS = 16


def subset_variance(score_R: np.ndarray, k: int, *, level: float = 0.95) -> Estimate:
    """How variable is the mean score of k fresh replicas?

    Estimand: Var(mean of k fresh scores) = s^2 / k, exact for a mean of scores (probabilities
    averaged and scored by a linear rule, say). An accuracy of averaged weights or of a vote is no
    mean of accuracies: `partition_variance`, or `accuracy_spread` of disjoint groups. Resampled:
    replicas, by the delete-one jackknife of ln s^2 with t and N-1 degrees of freedom, widened for
    scores with heavy tails (`log_variance_interval`).

    score_R: one number per replica, nan = none. Conclusive: MIN_REPLICAS_SPREAD replicas, all with
    a score, however far off single ones stand (see `accuracy_spread`), and k <= N/2: a mean of more
    is none that N replicas could show twice. Raises ValueError for other shapes or k < 1.
    """
    level, score_R = as_level(level), np.asarray(score_R, dtype=np.float64)
    if score_R.ndim != 1:
        raise ValueError(f"score_R must be one number per replica, not shape {score_R.shape}")
    if k < 1:
        raise ValueError(f"a mean needs at least one replica, not k = {k}")
    missing = int((~np.isfinite(score_R)).sum())
    score_R = score_R[np.isfinite(score_R)]
    n, method = len(score_R), "s^2 / k, log-variance jackknife-t over replicas"
    outlying = len(far_from_median(score_R)) if n else 0
    note, needed = _too_few(n, k, 2)
    if not note and missing:
        note = f"{missing} replicas have no score, and the variance speaks of the others only"
    if n < 3 or not has_spread(score_R, left_R := leave_one_out_variance(score_R)):
        note = (
            note
            if n < 3
            else "the scores, or all but one of them, are equal, so their variance has no interval"
        )
        return Estimate(None, None, None, level, n, 0, method, False, needed, note)
    estimate = _estimate(
        math.log(score_R.var(ddof=1) / k), np.log(left_R / k), score_R, level, method, needed, note
    )
    return (
        replace(estimate, note=f"{outlying} replicas stand far off the others: did they fail?")
        if outlying and not note
        else estimate
    )


def partition_variance(
    statistic: Callable[[np.ndarray], float],
    n_replicas: int,
    k: int,
    rng: np.random.Generator,
    *,
    partitions: int | None = None,
    level: float = 0.95,
) -> Estimate:
    """How variable is a statistic of k fresh replicas: the score of their merge, of their vote, or
    of any function of them?

    Estimand: Var(statistic of k fresh replicas). Estimator: the replicas are divided at random into
    G = floor(N/k) disjoint groups, again and again, and the variances between the groups of one
    division are averaged. Each is unbiased whatever the statistic is, since disjoint groups are
    independent; so the average is too (a U-statistic of order 2k). Resampled: replicas, by the
    delete-one jackknife. Without replica r every division lacks the group that r was in, so nothing
    is computed anew. t with N-1 degrees of freedom, log scale. The number of divisions is no sample
    size: with fewer than 16 k^2 of them their draw widens the interval, which is then conservative.

    statistic: from row numbers of k replicas to a number; called partitions * G times. rng: draws
    the divisions. Conclusive: MIN_REPLICAS_SPREAD replicas and k <= N/3, three groups at a time. Up
    to N/2 there is a value without an interval. Raises ValueError for k < 1, or k > N/2, where no
    two groups are disjoint.
    """
    level = as_level(level)
    if not 1 <= k <= n_replicas / 2:
        raise ValueError(f"disjoint groups of k need 1 <= k <= N/2, not k = {k} of {n_replicas}")
    partitions, groups = partitions or PARTITIONS * k**2, n_replicas // k
    method = (
        "variance between disjoint groups over random divisions, log-variance jackknife-t "
        "over replicas"
    )
    if partitions < PARTITIONS * k**2:
        method = f"conservative: {method}"
    total, left_R = 0.0, np.zeros(n_replicas)
    for _ in range(partitions):
        member_GK = rng.permutation(n_replicas)[: groups * k].reshape(groups, k)
        score_G = np.array([statistic(member_K) for member_K in member_GK], dtype=np.float64)
        variance = float(score_G.var(ddof=1)) / partitions
        total += variance
        left_R += variance
        if groups > 2:
            left_R[member_GK] += (leave_one_out_variance(score_G) / partitions - variance)[:, None]
    note, needed = _too_few(n_replicas, k, 3)
    if groups < 3 or not 0.0 < left_R.min() < math.inf:
        value = total if math.isfinite(total) else None
        note = note or "the statistic has no variance between groups, or no value for some of them"
        return Estimate(value, None, None, level, n_replicas, 0, method, False, needed, note)
    return _estimate(math.log(total), np.log(left_R), None, level, method, needed, note)


def _too_few(n: int, k: int, groups: int) -> tuple[str, int | None]:
    least = max(MIN_REPLICAS_SPREAD, groups * k)
    return (
        (f"{n} replicas say little about a variance of {k} (at least {least})", least)
        if n < least
        else ("", None)
    )


def _estimate(
    log_value: float,
    log_left_R: np.ndarray,
    score_R: np.ndarray | None,
    level: float,
    method: str,
    needed: int | None,
    note: str,
) -> Estimate:
    if log_jackknife(log_value, log_left_R)[1] < ROUNDING:
        return Estimate(
            math.exp(log_value),
            None,
            None,
            level,
            len(log_left_R),
            0,
            method,
            False,
            needed,
            note or NO_ERROR,
        )
    low, high = map(math.exp, log_variance_interval(log_value, log_left_R, score_R, level))
    return Estimate(
        math.exp(log_value), low, high, level, len(log_left_R), 0, method, not note, needed, note
    )
