"""Is a score less variable between runs of a mitigation than between single replicas?"""

import math

import numpy as np

from toolkit.statistics.arrays import as_level
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import TwoWay, leave_one_out_variance, log_jackknife, t_quantile

MIN_RUNS = 30
SAME_RATIO = 1.25  # ratios within [1/1.25, 1.25] = [0.8, 1.25] are called practically no change


def variance_ratio(score_b: np.ndarray, score_a: np.ndarray, *, paired: bool = False, level: float = 0.95) -> Estimate:
    """By what factor does the mitigation (b) change the variance of a score between runs of the baseline (a)?

    Estimand: Var(score of a fresh run of b) / Var(score of a fresh run of a); below 1 = the mitigation is more
    stable. One number per
    run: accuracy, loss, log-likelihood. nan = the run has no score (failed).
    Resampled: runs. Pseudo-values of ln s^2 in each arm, their difference with Welch degrees of freedom,
    exponentiated. The F-test
    is not used: it fails for anything but normal scores. paired=True: run j of both arms shares its seeds; pairs are
    deleted together, n-1 degrees of freedom.

    Conclusive: at least MIN_RUNS runs per arm (below, the interval was seen to miss too often when single runs are
    far off), no run without a score, and an interval on one side of 1 or inside [0.8, 1.25]. A ratio of variances
    says nothing about its size: print the two standard deviations beside it.
    Raises ValueError for other shapes, fewer than two runs in an arm, or paired arms of different length.
    """
    level = as_level(level)
    score_b, score_a = np.asarray(score_b, dtype=np.float64), np.asarray(score_a, dtype=np.float64)
    if score_b.ndim != 1 or score_a.ndim != 1:
        raise ValueError(f"scores must be one number per run, not shapes {score_b.shape} and {score_a.shape}")
    if paired and len(score_b) != len(score_a):
        raise ValueError(f"paired arms need a run each for every pair, not {len(score_b)} and {len(score_a)}")
    if min(len(score_b), len(score_a)) < 2:
        raise ValueError("each arm needs at least two runs")
    good_b, good_a = np.isfinite(score_b), np.isfinite(score_a)
    missing = int((~good_b).sum() + (~good_a).sum())
    if paired:
        good_b = good_a = good_b & good_a
    score_b, score_a = score_b[good_b], score_a[good_a]
    runs = min(len(score_b), len(score_a))
    method = "log-variance jackknife, " + ("paired, t" if paired else "Welch t")
    needed = MIN_RUNS if runs < MIN_RUNS else None

    def unknown(note: str) -> Estimate:
        return Estimate(None, None, None, level, runs, 0, method, False, needed, note)

    if runs < 3:
        return unknown("fewer than three runs with a score in an arm")
    variance_b, variance_a = float(score_b.var(ddof=1)), float(score_a.var(ddof=1))
    left_b, left_a = leave_one_out_variance(score_b), leave_one_out_variance(score_a)
    if min(variance_b, variance_a, left_b.min(), left_a.min()) <= 0.0:
        return unknown("the scores of an arm, or all but one of them, are equal, so their variance has no interval")

    log_b, log_a = math.log(variance_b), math.log(variance_a)
    if paired:
        centre, se = log_jackknife(log_b - log_a, np.log(left_b) - np.log(left_a))
        df = runs - 1.0
    else:
        (centre_b, se_b), (centre_a, se_a) = log_jackknife(log_b, np.log(left_b)), log_jackknife(log_a, np.log(left_a))
        centre, se = centre_b - centre_a, math.hypot(se_b, se_a)
        df = (se_b**2 + se_a**2) ** 2 / (se_b**4 / (len(score_b) - 1) + se_a**4 / (len(score_a) - 1)) if se > 0 else 1.0
    half = t_quantile(level, df) * se
    resolved = abs(centre) > half
    same = abs(centre) + half <= math.log(SAME_RATIO)
    if runs < MIN_RUNS:
        note = f"not resolvable with fewer than {MIN_RUNS} runs per arm"
    elif missing:
        note = f"not resolvable: {missing} runs have no score, and the variance speaks of the others only"
    else:
        note = "practically no change" if same and not resolved else ""
    conclusive = runs >= MIN_RUNS and not missing and (resolved or same)
    if not resolved and not same:
        needed = TwoWay(se**2, 0.0, runs, 1).runs_needed(centre, level, max(MIN_RUNS, runs + 1))
    ends = math.exp(centre - half), math.exp(centre + half)
    return Estimate(math.exp(centre), *ends, level, runs, 0, method, conclusive, None if conclusive else needed, note)
