"""Is a score less variable between runs of a mitigation than between single replicas?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from toolkit.statistics.accuracy.accuracy_spread import accuracy_spread
from toolkit.statistics.arrays import as_level
from toolkit.statistics.conclusive import MIN_REPLICAS_SPREAD
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import (
    TwoWay,
    leave_one_out_variance,
    log_jackknife,
    log_variance_interval,
    pseudo_contrast,
    t_quantile,
    two_sided_p,
)
from toolkit.statistics.outliers import MIN_RUNS_ODD, far_from_median

MIN_RUNS = 30
ROUNDING = 1e-12  # relative to the size of the scores, deviations below this are rounding
NO_ERROR = (
    "leaving out any run changes nothing, as with scores of two values in equal numbers: no "
    "error to make an interval from"
)
SAME_RATIO = 1.25  # ratios within [1/1.25, 1.25] = [0.8, 1.25] are called practically no change


def variance_ratio(
    score_b: np.ndarray, score_a: np.ndarray, *, paired: bool = False, level: float = 0.95
) -> Estimate:
    """By what factor does the mitigation (b) change the variance of a score between runs of the
    baseline (a)?

    Estimand: Var(score of a fresh run of b) / Var(score of a fresh run of a); below 1 = the
    mitigation is more stable. One number per run: accuracy, loss, log-likelihood. nan = the run has
    no score (failed). Resampled: runs. Pseudo-values of ln s^2 in each arm, their difference with
    Welch degrees of freedom, exponentiated. The F-test is not used: it fails for anything but
    normal scores. paired=True: run j of both arms shares its seeds; pairs are deleted together, n-1
    degrees of freedom.

    Conclusive: at least MIN_RUNS runs per arm (below, the interval was seen to miss too often when
    single runs are far off; MIN_RUNS_ODD where some are, see `far_from_median`), no run without a
    score, and an interval on one side of 1 or inside [0.8, 1.25]. A ratio of variances says nothing
    about its size: `sd_difference` belongs beside it. Of failed runs that an arm lacks by chance no
    sample tells: with 5 % of them, six standard deviations off, 38 % of the comparisons of 30 runs
    have an arm without any, and the interval misses in these alone more often than it says. Raises
    ValueError for other shapes, fewer than two runs in an arm, or paired arms of different length.
    """

    def ends(centre: float, half: float) -> tuple[float, float, float]:
        return math.exp(centre), math.exp(centre - half), math.exp(min(centre + half, 700.0))

    return _contrast(
        score_b,
        score_a,
        paired,
        level,
        "log-variance jackknife",
        np.log,
        ends,
        math.log(SAME_RATIO),
    )


def sd_difference(
    score_b: np.ndarray, score_a: np.ndarray, *, paired: bool = False, level: float = 0.95
) -> Estimate:
    """By how much does the mitigation (b) change the standard deviation of a score between runs?
    Below 0 = more stable.

    Estimand: SD(fresh run of b) - SD(fresh run of a), in the unit of the score. Resampling, guards
    and errors as in `variance_ratio`, by pseudo-values of s. Conclusive: an interval on one side of
    0.
    """

    def ends(centre: float, half: float) -> tuple[float, float, float]:
        return centre, centre - half, centre + half

    return _contrast(
        score_b, score_a, paired, level, "standard-deviation jackknife", np.sqrt, ends, 0.0
    )


@dataclass(frozen=True)
class VarianceContrast:
    """What a mitigation does to the spread of a score, in all the ways a reader may ask for.

    sd_b, sd_a: standard deviations over the runs that have a score; None where there are fewer than
    two.
    ratio: of the variances. difference: of the standard deviations, in the unit of the score.
    brown_forsythe, fligner: p-values of "the arms spread alike" (Levene's test about the median;
    Fligner & Killeen 1976), which rest on other assumptions than the jackknife: when they disagree
    with it, single runs decide. They know no pairs: None for paired arms, and where an arm has no
    spread.
    """

    sd_b: float | None
    sd_a: float | None
    ratio: Estimate
    difference: Estimate
    brown_forsythe: float | None
    fligner: float | None

    def to_dict(self) -> dict:
        """As plain values, for JSON."""
        return asdict(self)


def variance_contrast(
    score_b: np.ndarray, score_a: np.ndarray, *, paired: bool = False, level: float = 0.95
) -> VarianceContrast:
    """Does the mitigation (b) change how much a score varies between runs: as a ratio, in its unit,
    and by two rank tests?

    Arguments and errors as in `variance_ratio`.
    """
    ratio = variance_ratio(score_b, score_a, paired=paired, level=level)
    difference = sd_difference(score_b, score_a, paired=paired, level=level)
    b, a = (
        score[np.isfinite(score)]
        for score in (np.asarray(score_b, np.float64), np.asarray(score_a, np.float64))
    )
    sd_b, sd_a = (float(score.std(ddof=1)) if len(score) > 1 else None for score in (b, a))
    tests = None, None
    if not paired and ratio.low is not None:
        from scipy.stats import fligner, levene

        tests = float(levene(b, a, center="median").pvalue), float(fligner(b, a).pvalue)
    return VarianceContrast(sd_b, sd_a, ratio, difference, *tests)


def distribution_variance_change(
    correct_b_RP: np.ndarray,
    correct_a_RP: np.ndarray,
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Does the mitigation (b) change how much runs differ in accuracy beyond the luck of a finite
    suite?

    Estimand: the variance between runs of the accuracy on a suite without end (see
    `accuracy_spread`), of b less that of a. Unclipped: either may come out negative, so there is no
    ratio. The raw variance also holds c/2n, which depends on the suite and not on the stability of
    the runs. The intervals of both arms, put together by the square-and-add rule (Zou & Donner
    2008). It takes the arms as independent although they answer the same prompts, and so is
    conservative: it covered 95 to 100 %.

    1 right, 0 wrong, nan missing, [runs, prompts]. Conclusive: MIN_REPLICAS_SPREAD runs in each arm
    and an interval on one side of 0. Raises ValueError for other shapes or values, fewer than two
    rows, or arms with different prompts.
    """
    level = as_level(level)
    if np.shape(correct_b_RP)[-1] != np.shape(correct_a_RP)[-1]:
        raise ValueError(
            "the arms must answer the same prompts, not "
            f"{[np.shape(correct_b_RP)[-1], np.shape(correct_a_RP)[-1]]} of them"
        )
    b, a = (
        accuracy_spread(arm, cluster_P=cluster_P, level=level).distribution_variance
        for arm in (correct_b_RP, correct_a_RP)
    )
    runs, prompts = min(b.n_replicas, a.n_replicas), min(b.n_prompts, a.n_prompts)
    needed = MIN_REPLICAS_SPREAD if runs < MIN_REPLICAS_SPREAD else None
    if (
        b.value is None
        or b.low is None
        or b.high is None
        or a.value is None
        or a.low is None
        or a.high is None
    ):
        return without_interval(None, level, runs, prompts, needed, b.note or a.note)
    low = b.value - a.value - math.hypot(b.value - b.low, a.high - a.value)
    high = b.value - a.value + math.hypot(b.high - b.value, a.value - a.low)
    conclusive = b.conclusive and a.conclusive and not low <= 0 <= high
    method = "conservative: intervals of both arms by square-and-add"
    return Estimate(
        b.value - a.value,
        low,
        high,
        level,
        runs,
        prompts,
        method,
        conclusive,
        needed,
        b.note or a.note,
    )


def relative_spread(score_R: np.ndarray, base_score: float, *, level: float = 0.95) -> Estimate:
    """How large is the spread between runs against what fine-tuning changed?

    Estimand: SD(fresh run) / |mean of runs - base|, of a score on this suite; 1 = runs differ by as
    much as the fine-tuning did. A mitigation that shrinks towards the base keeps this ratio,
    however small its SD. Resampled: runs, by pseudo-values of ln(s / |mean - base|), t with n-1
    degrees of freedom, widened for scores with heavy tails (`log_variance_interval`). No interval
    where the mean is not clear of the base. Conclusive: MIN_RUNS runs (MIN_RUNS_ODD where some are
    far off), all with a score, and a value of at most 1; beyond, the denominator is too near 0 for
    the interval to hold what it says.

    score_R: one number per run, nan = none; base_score: the base's score on the same suite, taken
    as given. Raises ValueError for other shapes, fewer than two runs, or a base without a score.
    """
    level, (score_R,), missing = as_level(level), *_scores([score_R], paired=False)
    if not math.isfinite(base_score):
        raise ValueError(f"base_score must be a number, not {base_score}")
    runs, method = len(score_R), "log-ratio jackknife-t"
    note, needed = _too_few(runs, missing, [score_R])

    def unknown(note: str) -> Estimate:
        return Estimate(None, None, None, level, runs, 0, method, False, needed, note)

    if runs < 3:
        return unknown("fewer than three runs with a score")
    gain, left_R = float(score_R.mean()) - base_score, leave_one_out_variance(score_R)
    if not has_spread(score_R, left_R):
        return unknown(
            "the scores, or all but one of them, are equal, so their spread has no interval"
        )
    t, sd = t_quantile(level, runs - 1), float(score_R.std(ddof=1))
    left_gain_R = (score_R.sum() - score_R) / (runs - 1) - base_score
    if abs(gain) <= t * sd / math.sqrt(runs) or np.any(left_gain_R * gain <= 0):
        return unknown(
            "the runs are not clear of the base: there is no change to measure the spread against"
        )
    log_value, left_log_R = (
        math.log(sd / abs(gain)),
        np.log(left_R) / 2 - np.log(np.abs(left_gain_R)),
    )
    centre, se = log_jackknife(log_value, left_log_R)
    if se < ROUNDING:
        return unknown(NO_ERROR)
    if centre > 0:
        note = note or "the runs differ by more than the fine-tuning changed"
    low, high = log_variance_interval(log_value, left_log_R, score_R, level, scale=0.5)
    ends = math.exp(centre), math.exp(low), math.exp(high)
    return Estimate(*ends, level, runs, 0, method, not note, needed, note)


def _scores(scores: Sequence[np.ndarray], paired: bool) -> tuple[list[np.ndarray], int]:
    """The scores of the runs that have one (pairs: both), and how many have none."""
    arms = [np.asarray(score, dtype=np.float64) for score in scores]
    if any(arm.ndim != 1 for arm in arms):
        raise ValueError(
            "scores must be one number per run, not shapes "
            f"{' and '.join(str(arm.shape) for arm in arms)}"
        )
    if paired and len({len(arm) for arm in arms}) > 1:
        raise ValueError(
            "paired arms need a run each for every pair, not "
            f"{' and '.join(str(len(arm)) for arm in arms)}"
        )
    if min(map(len, arms)) < 2:
        raise ValueError("each arm needs at least two runs")
    good = [np.isfinite(arm) for arm in arms]
    missing = sum(int((~arm).sum()) for arm in good)
    if paired:
        good = [np.logical_and.reduce(good)] * len(arms)
    return [arm[keep] for arm, keep in zip(arms, good, strict=True)], missing


def has_spread(score_R: np.ndarray, left_R: np.ndarray) -> bool:
    """Is there a variance, whichever run is left out?"""
    return float(left_R.min()) > (ROUNDING * float(np.abs(score_R).max())) ** 2


def _too_few(runs: int, missing: int, arms: Sequence[np.ndarray]) -> tuple[str, int | None]:
    """Why scores like these settle nothing, and how many runs would; empty if they may."""
    if runs < MIN_RUNS:
        return f"not resolvable with fewer than {MIN_RUNS} runs per arm", MIN_RUNS
    if missing:
        return (
            f"not resolvable: {missing} runs have no score, and the variance speaks of "
            "the others only",
            None,
        )
    if runs < MIN_RUNS_ODD and (outlying := sum(len(far_from_median(arm)) for arm in arms)):
        return (
            f"not resolvable with fewer than {MIN_RUNS_ODD} runs per arm: {outlying} stand far "
            "off the others, did they fail?",
            MIN_RUNS_ODD,
        )
    return "", None


def _contrast(
    score_b: np.ndarray,
    score_a: np.ndarray,
    paired: bool,
    level: float,
    method: str,
    transform: Callable,
    ends: Callable[[float, float], tuple[float, float, float]],
    same_within: float,
) -> Estimate:
    """Difference between the arms of a transform of their variance, by pseudo-values; `ends` brings
    it to the scale that is printed.
    """
    level, ((b, a), missing) = as_level(level), _scores([score_b, score_a], paired)
    runs = min(len(b), len(a))
    method += ", paired, t" if paired else ", Welch t"
    note, needed = _too_few(runs, missing, [b, a])

    def unknown(note: str) -> Estimate:
        return Estimate(None, None, None, level, runs, 0, method, False, needed, note)

    if runs < 3:
        return unknown("fewer than three runs with a score in an arm")
    variance_b, variance_a = float(b.var(ddof=1)), float(a.var(ddof=1))
    left_b, left_a = leave_one_out_variance(b), leave_one_out_variance(a)
    if not (has_spread(b, left_b) and has_spread(a, left_a)):
        return unknown(
            "the scores of an arm, or all but one of them, are equal, so their variance "
            "has no interval"
        )

    full_b, full_a = float(transform(variance_b)), float(transform(variance_a))
    centre, se, df = pseudo_contrast(
        full_b, transform(left_b), full_a, transform(left_a), paired=paired
    )
    if se < ROUNDING * (max(full_b, full_a) if transform is np.sqrt else 1.0):
        return replace(unknown(note or NO_ERROR), value=ends(centre, 0.0)[0])
    half = t_quantile(level, df) * se
    resolved, same = abs(centre) > half, abs(centre) + half <= same_within
    conclusive = not note and (resolved or same)
    if not resolved and not same:
        needed = TwoWay(se**2, 0.0, runs, 1).runs_needed(
            centre, level, max(needed or MIN_RUNS, runs + 1)
        )
    if not note and same and not resolved:
        note = "practically no change"
    return Estimate(
        *ends(centre, half),
        level,
        runs,
        0,
        method,
        conclusive,
        None if conclusive else needed,
        note,
        two_sided_p(centre, se, df),
    )
