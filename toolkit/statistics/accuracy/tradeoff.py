"""Do runs trade one category of prompts for another, or are some runs better at all of them?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import as_level
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import log_jackknife, t_quantile

MIN_RUNS_TRADEOFF = 30
"""Runs from which the intervals were seen to cover in simulation."""
MIN_OFF = 10
"""Runs that chance alone would put off the commonest accuracy in both categories: where nearly all
runs have the same accuracy in one, a few runs decide the correlation, and its interval was seen to
cover 75 to 90 %.
"""


@dataclass(frozen=True)
class Tradeoff:
    """How the accuracies of categories go together over runs.

    correlation_CC: of each pair of categories; None on the diagonal. together: variance of the sum
    of all accuracies over the sum of their
    variances: 1 where categories know nothing of each other, below where what one gains another
    loses, above where runs are better or worse at all of them.
    """

    correlation_CC: tuple[tuple[Estimate | None, ...], ...]
    together: Estimate


def tradeoff(score_RC: np.ndarray, prompts_C: Sequence[int], *, level: float = 0.95) -> Tradeoff:
    """Correlations over runs of the accuracies of categories.

    Estimand: the correlation that fresh runs show on these prompts. Categories share no prompt, so
    the luck of single answers adds to no covariance; it adds to the variances, and so draws
    correlations towards 0 where categories are small, never across. Resampled: runs, by the
    delete-one jackknife, on Fisher's z for a correlation and on the logarithm for `together`.
    score_RC: accuracy of each run in each category, [runs, categories]; a run with nan is left out.
    prompts_C: prompts behind each. Raises ValueError for other shapes.
    """
    level = as_level(level)
    score_RC = np.asarray(score_RC, dtype=np.float64)
    if score_RC.ndim != 2 or score_RC.shape[1] != len(prompts_C):
        raise ValueError(
            f"score_RC must have a column for each of the {len(prompts_C)} categories, "
            f"not shape {score_RC.shape}"
        )
    score_RC = score_RC[np.isfinite(score_RC).all(axis=1)]
    n, C = score_RC.shape
    rows: list[list[Estimate | None]] = [[None] * C for _ in range(C)]
    for a in range(C):
        for b in range(a + 1, C):
            rows[a][b] = rows[b][a] = _correlation(
                score_RC[:, a], score_RC[:, b], prompts_C[a] + prompts_C[b], level
            )
    return Tradeoff(tuple(map(tuple, rows)), _sum_of_all(score_RC, sum(prompts_C), level))


def _correlation(x_R: np.ndarray, y_R: np.ndarray, n_prompts: int, level: float) -> Estimate:
    n = len(x_R)
    if n < 4 or not _varies(x_R) or not _varies(y_R):
        return _unknown(n, n_prompts, level)
    left_J = _left_out(x_R, y_R) / np.sqrt(_left_out(x_R, x_R) * _left_out(y_R, y_R))
    value = float(np.corrcoef(x_R, y_R)[0, 1])
    edge = 1 - 1e-12
    centre, error = log_jackknife(
        math.atanh(np.clip(value, -edge, edge)), np.arctanh(np.clip(left_J, -edge, edge))
    )
    half = t_quantile(level, n - 1) * error
    ends = math.tanh(centre - half), math.tanh(centre + half)
    return _estimate(
        value,
        *ends,
        centre / error if error > 0 else None,
        n,
        n_prompts,
        level,
        "Fisher's z",
        _runs_off_mode(x_R) * _runs_off_mode(y_R) / n,
    )


def _sum_of_all(score_RC: np.ndarray, n_prompts: int, level: float) -> Estimate:
    n, C = score_RC.shape
    sum_R = score_RC.sum(axis=1)
    if n < 4 or C < 2 or not _varies(sum_R):
        return _unknown(n, n_prompts, level)
    parts = float(score_RC.var(axis=0, ddof=1).sum())
    left_J = np.log(
        _left_out(sum_R, sum_R) / sum(_left_out(score_RC[:, c], score_RC[:, c]) for c in range(C))
    )
    value = float(sum_R.var(ddof=1)) / parts
    centre, error = log_jackknife(math.log(value), left_J)
    half = t_quantile(level, n - 1) * error
    ends = math.exp(centre - half), math.exp(centre + half)
    return _estimate(
        value,
        *ends,
        centre / error if error > 0 else None,
        n,
        n_prompts,
        level,
        "logarithm",
        _runs_off_mode(sum_R) ** 2 / n,
    )


def _runs_off_mode(x_R: np.ndarray) -> int:
    """Runs whose accuracy is not the commonest one."""
    return len(x_R) - int(np.unique(x_R.round(9), return_counts=True)[1].max())


def _left_out(x_R: np.ndarray, y_R: np.ndarray) -> np.ndarray:
    """Sample covariance without each run in turn: ((n-1) s - n/(n-1) dx dy) / (n-2)."""
    n = len(x_R)
    product_R = (x_R - x_R.mean()) * (y_R - y_R.mean())
    return (product_R.sum() - n / (n - 1) * product_R) / (n - 2)


def _varies(x_R: np.ndarray) -> bool:
    """Also without any one run: a single odd run shows no correlation."""
    return bool(
        (_left_out(x_R, x_R) > 1e-12 * max(float(x_R.var()), 1e-300)).all() and x_R.var() > 1e-18
    )


def _estimate(
    value: float,
    low: float,
    high: float,
    t: float | None,
    n: int,
    n_prompts: int,
    level: float,
    scale: str,
    off: float,
) -> Estimate:
    """t: distance from "no relation" in standard errors. off: see MIN_OFF."""
    from scipy.special import stdtr

    too_few_runs, alike = n < MIN_RUNS_TRADEOFF, off < MIN_OFF
    note = (
        f"{n} runs are too few for an interval that holds what it says (at least "
        f"{MIN_RUNS_TRADEOFF})"
        if too_few_runs
        else ""
    )
    note = note or (
        "nearly all runs are equally accurate there: a few runs decide" if alike else ""
    )
    p = None if too_few_runs or alike or t is None else float(2 * stdtr(n - 1, -abs(t)))
    method = f"jackknife-t over runs, {scale}"
    return Estimate(
        value,
        low,
        high,
        level,
        n,
        n_prompts,
        method,
        not (too_few_runs or alike),
        MIN_RUNS_TRADEOFF if too_few_runs else None,
        note,
        p,
    )


def _unknown(n: int, n_prompts: int, level: float) -> Estimate:
    too_few_runs = n < MIN_RUNS_TRADEOFF
    note = "too few runs" if too_few_runs else "runs do not differ there"
    return without_interval(
        None, level, n, n_prompts, MIN_RUNS_TRADEOFF if too_few_runs else None, note
    )
