"""How far apart are the weights of runs? Their files, and the changes that training made: from
inner products, without a dense matrix.
"""

import math

import numpy as np

from toolkit.statistics.arrays import as_level
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import (
    clopper_pearson,
    log_jackknife,
    pseudo_contrast,
    t_quantile,
    two_sided_p,
)

MIN_RUNS_WEIGHTS = 8
"""Below, runs of unequal size were seen to upset the interval."""
WIDER = 1.2
"""Times the standard error: where changes vary in a few directions only, the plain jackknife was
seen to cover 90 %.
"""
ROUNDING = 1e-10  # of a spread; inner products are sums of rounded factors
METHOD = "log jackknife over runs, t, widened"


def files_differ(file_R: list[str], *, level: float = 0.95) -> Estimate:
    """How often do two fresh runs write different files? file_R: hash of the file of each run.

    Resampled: disjoint pairs of runs, 2j and 2j + 1, which are independent (Clopper & Pearson
    1934); the value is theirs, too. The note counts the different files.
    """
    level = as_level(level)
    n, pairs = len(file_R), len(file_R) // 2
    note = f"{len(set(file_R)):,} different files of {n:,}"
    if not pairs:
        return without_interval(None, level, n, 0, 2, note)
    differ = sum(file_R[2 * j] != file_R[2 * j + 1] for j in range(pairs))
    return Estimate(
        differ / pairs,
        *clopper_pearson(differ, pairs, level),
        level,
        n,
        0,
        "Clopper-Pearson over disjoint pairs",
        note=note,
    )


def weight_spread(gram_RR: np.ndarray, *, level: float = 0.95) -> Estimate:
    """How far apart are the weight changes of two runs, relative to their size?

    Estimand: E|D - D'|^2 / (2 E|D|^2) of two fresh runs with changes D and D', which is 1 - |E D|^2
    / E|D|^2: the share of a change's squared norm that the next run does not repeat. 0 = copies, 1
    = nothing in common (independent draws in many dimensions). Resampled: runs, which must be
    independent. Means over runs and over their pairs (U-statistics), so that a finite sample is not
    biased towards 1/R in common; pseudo-values of the logarithm, t with R - 1 degrees of freedom,
    see WIDER.

    gram_RR: inner products <D_i, D_j> (Frobenius); of several modules together: their sum.
    Conclusive: MIN_RUNS_WEIGHTS runs and a spread above 0. Raises ValueError for other shapes,
    values that are not finite, or fewer than two runs.
    """
    level, gram_RR = as_level(level), _as_gram(gram_RR)
    runs, (value, left_R) = len(gram_RR), _spread(gram_RR)
    note = _why_not(runs, value, left_R)
    needed = MIN_RUNS_WEIGHTS if runs < MIN_RUNS_WEIGHTS else None
    if not _has_interval(value, left_R):
        return Estimate(
            value if math.isfinite(value) else None,
            None,
            None,
            level,
            runs,
            0,
            METHOD,
            False,
            needed,
            note,
        )
    half = t_quantile(level, runs - 1) * WIDER * log_jackknife(math.log(value), np.log(left_R))[1]
    low, high = value * math.exp(-half), value * math.exp(min(half, 700.0))
    return Estimate(value, low, high, level, runs, 0, METHOD, not note, needed, note)


def weight_spread_ratio(
    b_RR: np.ndarray, a_RR: np.ndarray, *, paired: bool = False, level: float = 0.95
) -> Estimate:
    """By what factor is the relative spread of b's weight changes that of a's? Below 1 = the runs
    of b are more alike.

    Estimand: the ratio of the two figures of `weight_spread`. Resampled: runs, by pseudo-values of
    the logarithm; the arms apart with Welch's degrees of freedom, or, paired=True, run j of both
    together. p: two-sided, of "the same spread"; adjust it for the number of modules
    (`benjamini_hochberg`).

    b_RR, a_RR: inner products within each arm. Conclusive: MIN_RUNS_WEIGHTS runs in each arm, and
    an interval on one side of 1. Raises ValueError as `weight_spread`, and for paired arms of
    different size.
    """
    level, b_RR, a_RR = as_level(level), _as_gram(b_RR), _as_gram(a_RR)
    if paired and len(b_RR) != len(a_RR):
        raise ValueError(
            f"paired arms need a run each for every pair, not {len(b_RR)} and {len(a_RR)}"
        )
    runs, method = min(len(b_RR), len(a_RR)), METHOD + (", paired" if paired else ", Welch")
    (b, left_b), (a, left_a) = _spread(b_RR), _spread(a_RR)
    note = _why_not(len(b_RR), b, left_b) or _why_not(len(a_RR), a, left_a)
    needed = MIN_RUNS_WEIGHTS if runs < MIN_RUNS_WEIGHTS else None
    if not (_has_interval(b, left_b) and _has_interval(a, left_a)):
        return Estimate(None, None, None, level, runs, 0, method, False, needed, note)
    _, se, df = pseudo_contrast(
        math.log(b), np.log(left_b), math.log(a), np.log(left_a), paired=paired
    )
    if se * WIDER < ROUNDING:
        return Estimate(
            b / a,
            None,
            None,
            level,
            runs,
            0,
            method,
            False,
            None,
            "leaving out any run changes nothing",
        )
    half, centre = t_quantile(level, df) * WIDER * se, math.log(b / a)
    ends = math.exp(max(centre - half, -700.0)), math.exp(min(centre + half, 700.0))
    conclusive = not note and abs(centre) > half
    return Estimate(
        b / a,
        *ends,
        level,
        runs,
        0,
        method,
        conclusive,
        needed,
        note,
        two_sided_p(centre, WIDER * se, df),
    )


def _as_gram(gram_RR: np.ndarray) -> np.ndarray:
    gram_RR = np.asarray(gram_RR, dtype=np.float64)
    if gram_RR.ndim != 2 or gram_RR.shape[0] != gram_RR.shape[1] or len(gram_RR) < 2:
        raise ValueError(
            f"inner products of two or more runs are a square table, not shape {gram_RR.shape}"
        )
    if not np.isfinite(gram_RR).all():
        raise ValueError("some inner products are not finite: leave diverged runs out")
    return gram_RR


def _spread(gram_RR: np.ndarray) -> tuple[float, np.ndarray]:
    """1 - mean inner product of two runs / mean squared norm: of all runs, and without each; nan
    where no run changes anything.
    """
    n, square_R = len(gram_RR), np.diag(gram_RR)
    cross_R = gram_RR.sum(axis=1) - square_R
    squares, cross = square_R.sum(), cross_R.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        left_R = 1 - (cross - 2 * cross_R) / (n - 2) / (squares - square_R)
        value = float(1 - cross / (n - 1) / squares)
    return (0.0 if abs(value) < ROUNDING else value), np.where(
        np.abs(left_R) < ROUNDING, 0.0, left_R
    )


def _has_interval(value: float, left_R: np.ndarray) -> bool:
    return len(left_R) > 2 and value > 0 and bool(np.all(left_R > 0))


def _why_not(runs: int, value: float, left_R: np.ndarray) -> str:
    if math.isnan(value):
        return "no run changes this module"
    if not value > 0:
        return "the changes are equal: no spread to put an interval around"
    if not np.all(left_R > 0) and runs > 2:
        return "all but one of the changes are equal: no interval"
    return (
        f"not resolvable with fewer than {MIN_RUNS_WEIGHTS} runs" if runs < MIN_RUNS_WEIGHTS else ""
    )
