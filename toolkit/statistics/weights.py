"""How far the weights of runs lie apart: their files, and the changes that training made."""

import math

import numpy as np

from toolkit.statistics.arrays import as_level
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import clopper_pearson, log_jackknife, t_quantile

MIN_RUNS_WEIGHTS = 10


def files_differ(file_R: list[str], *, level: float = 0.95) -> Estimate:
    """How often do two fresh runs write different files? file_R: hash of the file of each run.

    Resampled: disjoint pairs of runs, 2j and 2j + 1, which are independent (Clopper & Pearson 1934); the value is theirs, too. The note
    counts the different files.
    """
    level = as_level(level)
    n, pairs = len(file_R), len(file_R) // 2
    note = f"{len(set(file_R)):,} different files of {n:,}"
    if not pairs:
        return Estimate(None, None, None, level, n, 0, "none", False, 2, note)
    differ = sum(file_R[2 * j] != file_R[2 * j + 1] for j in range(pairs))
    return Estimate(differ / pairs, *clopper_pearson(differ, pairs, level), level, n, 0, "Clopper-Pearson over disjoint pairs", note=note)


def weight_spread(gram_RR: np.ndarray, *, level: float = 0.95) -> Estimate:
    """How large is the spread of weight changes between fresh runs, relative to what the runs have in common?

    Estimand: sqrt(tr Cov(D) / ||E D||^2), with D the change of all weights; both parts unbiased: ||E D||^2 is the mean inner product of two
    different runs, tr Cov the mean square less that. Resampled: runs (jackknife of the logarithm).
    gram_RR: inner products of the changes, [runs, runs]. Raises ValueError for another shape.
    """
    level = as_level(level)
    gram_RR = np.asarray(gram_RR, dtype=np.float64)
    n = len(gram_RR)
    if gram_RR.shape != (n, n):
        raise ValueError(f"gram_RR must be square, not of shape {gram_RR.shape}")
    few = n < MIN_RUNS_WEIGHTS
    shape = level, n, 0
    note = f"{n} runs are too few for an interval that holds what it says (at least {MIN_RUNS_WEIGHTS})" if few else ""
    unknown = Estimate(None, None, None, *shape, "none", False, MIN_RUNS_WEIGHTS if few else None, note or "runs have nothing in common")
    if n < 4:
        return unknown
    square_R, row_R = gram_RR.diagonal(), gram_RR.sum(axis=1)
    left_R = _log_spread(square_R.sum() - square_R, gram_RR.sum() - 2 * row_R + square_R, n - 1)
    value = float(_log_spread(square_R.sum(), gram_RR.sum(), n))
    if value == -math.inf:
        return Estimate(0.0, 0.0, None, *shape, "none", False, None, "no two of these runs differ")
    if not np.isfinite(left_R).all() or not math.isfinite(value):
        return unknown
    centre, error = log_jackknife(value, left_R)
    half = t_quantile(level, n - 1) * error
    ends = math.exp(centre - half), math.exp(centre + half)
    return Estimate(math.exp(value), *ends, *shape, "jackknife-t over runs, logarithm", not few, MIN_RUNS_WEIGHTS if few else None, note)


def _log_spread(squares: np.ndarray, total: np.ndarray, n: int) -> np.ndarray:
    """ln of the relative spread from the sum of the diagonal and of all; -inf without spread, nan without a common part."""
    common = (total - squares) / (n * (n - 1))
    spread = squares / n - common
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(spread <= 1e-10 * np.abs(common), 0.0, spread)
        return np.where(common > 0, 0.5 * np.log(spread / common), np.nan)
