"""How much of a score is the prompt, and not the run: intraclass correlation."""

import math
from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import ROUNDING, Clusters, as_level, common_scores
from toolkit.statistics.conclusive import MIN_REPLICAS, few_clusters_of, verdict
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import effective
from toolkit.statistics.outliers import far_from_median
from toolkit.statistics.prompt_averages import few_prompts, log_ratio, variances

# an ICC that counts the variance between runs was seen to be covered from here
MIN_REPLICAS_ABSOLUTE = 20
# of the variance between prompts: about 180 prompts with normal scores, 600 with exponential ones
MIN_EFFECTIVE_ICC = 60
FORMS = ("1,1", "A,1", "C,1", "1,k", "A,k", "C,k")


def icc(
    score_RP: np.ndarray,
    form: str = "A,1",
    *,
    interval: str = "jackknife",
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """How much of a score is the prompt, and not the run that was measured?

    Estimand: the intraclass correlation, the share of the variance of a score that lies between
    prompts, for fresh runs and prompts. `form` in the names of McGraw & Wong 1996 (those of Shrout
    & Fleiss 1979 behind): "1,1" (1,1), runs not told apart; "A,1" (2,1), absolute agreement of
    single runs; "C,1" (3,1), consistency, where a shift of a whole run does not count; with k for
    1, of the mean of the N runs at hand (by Spearman-Brown). interval="jackknife": replicas and
    clusters of prompts are resampled (two-way jackknife on the log of variance between prompts over
    the rest). interval="F": the intervals published with the forms, from F distributions, to
    compare with the literature. They hold for independent normal scores of equal variance (of
    skewed ones they were seen to cover 30 %), so they are never conclusive, and they know no
    clusters.

    score_RP: [replicas, prompts]; prompts that a replica lacks are left out. Conclusive: clusters
    worth MIN_EFFECTIVE_ICC equal ones, and MIN_REPLICAS_ABSOLUTE replicas (MIN_REPLICAS for "C").
    Raises ValueError for an unknown form or interval, other shapes, infinite scores, or fewer than
    two rows.
    """
    level = as_level(level)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    if interval not in ("jackknife", "F"):
        raise ValueError(f'interval must be "jackknife" or "F", not {interval!r}')
    if interval == "F" and cluster_P is not None:
        raise ValueError("the published intervals know no clusters of prompts: take the jackknife")
    score_RP, row_R, cluster_P = common_scores(score_RP, cluster_P)
    whole_P = np.isfinite(score_RP).all(axis=0)
    score_RP, cluster_P, dropped = score_RP[:, whole_P], cluster_P[whole_P], int((~whole_P).sum())
    k, n = score_RP.shape
    if n < 2 or k < 2:
        return without_interval(
            None, level, k, n, None, "needs two replicas with scores on two common prompts"
        )
    score_RP = score_RP - score_RP.mean()
    single = _single_run(score_RP, form[0])
    size = float(np.abs(score_RP).max(initial=0.0))
    tiny = (ROUNDING * size) ** 2
    if single.between + single.within <= tiny:
        return without_interval(
            None, level, k, n, None, "all scores are equal: there is no variance to divide"
        )
    odd_R = row_R[far_from_median(score_RP.mean(axis=1), size)] if form[0] != "C" else row_R[:0]
    enough, needed, note = verdict(
        k,
        few_clusters_of(cluster_P),
        odd_R,
        MIN_REPLICAS if form[0] == "C" else MIN_REPLICAS_ABSOLUTE,
    )
    if enough and effective(single.between_P, cluster_P) < MIN_EFFECTIVE_ICC:
        enough, note = False, few_prompts(single.between_P, cluster_P, MIN_EFFECTIVE_ICC)
    low = high = None
    method = "two-way jackknife-t over replicas and prompts, log scale of the ratio of variances"
    if interval == "F":
        method = "F, McGraw & Wong 1996" if form[0] == "A" else "F, Shrout & Fleiss 1979"
        enough, note = (
            False,
            "published interval, to compare with the literature: it holds for normal "
            "scores of equal variance only",
        )
        low, high = _published(score_RP, form[0], level)
    elif k > 2 and single.between > tiny < single.within:
        low, high = single.jackknife(cluster_P, level)
    else:
        enough, note = False, note or "the variance between prompts, or the rest, is not above 0"
    value = single.between / (single.between + single.within)
    if form[2] == "k":
        value, low, high = (
            None if x is None or 1 + (k - 1) * x <= 0 else k * x / (1 + (k - 1) * x)
            for x in (value, low, high)
        )
    note = "; ".join(
        filter(
            None, [note, f"{dropped} prompts that a replica lacks are left out" if dropped else ""]
        )
    )
    return Estimate(value, low, high, level, k, n, method, enough, needed, note)


@dataclass(frozen=True)
class _SingleRun:
    """Variance between prompts, and the rest of the variance of the score of a single run: per
    prompt, and without each run.
    """

    between_P: np.ndarray
    left_between_RP: np.ndarray
    within_P: np.ndarray
    left_within_RP: np.ndarray

    @property
    def between(self) -> float:
        return float(self.between_P.mean())

    @property
    def within(self) -> float:
        return float(self.within_P.mean())

    def jackknife(self, cluster_P: np.ndarray, level: float) -> tuple[float, float]:
        low, high = log_ratio(
            self.between_P,
            self.left_between_RP,
            self.within_P,
            self.left_within_RP,
            cluster_P,
            level,
        )
        return 1 / (1 + math.exp(-low)), 1 / (1 + math.exp(-high))


def _single_run(score_RP: np.ndarray, form: str) -> _SingleRun:
    """The mean squares of the analysis of variance, taken apart by prompt: the means are the usual
    estimators.

    Between: the mean product of two runs, each about its own mean. The rest: the variance over runs
    on one prompt, for "C" about the means of the runs. "1" does not know that runs have means of
    their own.
    """
    k, n = score_RP.shape
    own_RP = (score_RP - score_RP.mean(axis=1, keepdims=True)) * math.sqrt(n / (n - 1))
    everyone_RP = np.ones(score_RP.shape, dtype=bool)
    within_P, left_within_RP = variances((score_RP - score_RP.mean(axis=0)) ** 2, everyone_RP)
    residual_P, left_residual_RP = variances((own_RP - own_RP.mean(axis=0)) ** 2, everyone_RP)
    sum_P, square_P = own_RP.sum(axis=0), np.sum(own_RP**2, axis=0)
    between_P = (sum_P**2 - square_P) / (k * (k - 1))
    left_between_RP = ((sum_P - own_RP) ** 2 - (square_P - own_RP**2)) / max((k - 1) * (k - 2), 1)
    if form == "C":
        within_P, left_within_RP = residual_P, left_residual_RP
    if form == "1":
        between_P = between_P - (within_P - residual_P) / k
        left_between_RP = left_between_RP - (left_within_RP - left_residual_RP) / (k - 1)
    return _SingleRun(between_P, left_between_RP, within_P, left_within_RP)


def _published(score_RP: np.ndarray, form: str, level: float) -> tuple[float, float]:
    """The intervals of Shrout & Fleiss 1979 for single runs, and of McGraw & Wong 1996 for
    agreement (Satterthwaite's df).
    """
    from scipy.special import fdtri

    k, n = score_RP.shape
    mean_P, mean_R = score_RP.mean(axis=0), score_RP.mean(axis=1)
    rows = k * float(mean_P.var(ddof=1))
    columns = n * float(mean_R.var(ddof=1))
    error = float(np.sum((score_RP - mean_P - mean_R[:, None] + score_RP.mean()) ** 2)) / (
        (n - 1) * (k - 1)
    )
    q = 0.5 + level / 2
    if form != "A":
        df = n * (k - 1) if form == "1" else (n - 1) * (k - 1)
        f = rows / (error if form == "C" else ((n - 1) * error + columns) / n)
        low, high = f / fdtri(n - 1, df, q), f * fdtri(df, n - 1, q)
        return (low - 1) / (low + k - 1), (high - 1) / (high + k - 1)
    rho = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    a = k * rho / (n * (1 - rho))
    b = 1 + k * rho * (n - 1) / (n * (1 - rho))
    df = (a * columns + b * error) ** 2 / (
        (a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    )
    f_low, f_high = fdtri(n - 1, df, q), fdtri(df, n - 1, q)
    denominator = k * columns + (k * n - k - n) * error
    low = n * (rows - f_low * error) / (f_low * denominator + n * rows)
    return low, n * (f_high * rows - error) / (denominator + n * f_high * rows)
