"""A score of every answer: its mean, and how much it moves between runs."""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from toolkit.statistics.arrays import (
    ROUNDING,
    Clusters,
    as_clusters,
    as_level,
    as_score_table,
    common_scores,
)
from toolkit.statistics.conclusive import MIN_REPLICAS_SPREAD, verdict
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import leave_one_out_variance, log_variance_interval
from toolkit.statistics.outliers import far_from_centre, far_from_median, odd_runs, run_distance
from toolkit.statistics.prompt_averages import mean_estimate, prompt_means, variances


@dataclass(frozen=True)
class ScoreSpread:
    """How different runs are in a numeric score, in its unit.

    sd: standard deviation between runs of the mean score on these prompts.
    within_prompt_sd: root of the mean over fresh prompts of the variance between runs on one
    prompt.
    """

    sd: Estimate
    within_prompt_sd: Estimate

    def to_dict(self) -> dict:
        """As plain values, for JSON."""
        return asdict(self)


def score_sd(
    score_RP: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> ScoreSpread:
    """How much does a score (log-likelihood, loss, margin, grade) move between two runs: as a mean
    over the suite, and on one prompt?

    `sd` speaks of this suite. Resampled: replicas, by the delete-one jackknife of ln(variance) with
    t and N-1 degrees of freedom, which does not need normal scores. A missing score counts as the
    prompt's mean, rescaled per replica. `within_prompt_sd` speaks of fresh prompts. Its square is
    the variance between the means of runs, with the interval of `sd`, and that about them, for
    which replicas and clusters of prompts are resampled (two-way jackknife, log scale).

    score_RP: [replicas, prompts], nan = missing. Conclusive: MIN_REPLICAS_SPREAD replicas for `sd`,
    however far off single runs stand (see `accuracy_spread`); MIN_REPLICAS and clusters worth
    MIN_EFFECTIVE equal ones for `within_prompt_sd`. Equal scores have no spread to put an interval
    around. Raises ValueError for other shapes, infinite scores, or fewer than two rows.
    """
    level = as_level(level)
    score_RP, row_R, cluster_P = common_scores(score_RP, cluster_P)
    n_replicas, n_prompts = score_RP.shape
    if n_replicas < 3 or n_prompts == 0:
        nothing = without_interval(
            None,
            level,
            n_replicas,
            n_prompts,
            MIN_REPLICAS_SPREAD,
            "needs three replicas with scores on common prompts",
        )
        return ScoreSpread(nothing, nothing)
    present_RP = np.isfinite(score_RP)
    size = float(np.nanmax(np.abs(score_RP)))
    tiny = (ROUNDING * size) ** 2
    deviation_RP = np.where(present_RP, score_RP - np.nanmean(score_RP, axis=0), 0.0)
    mean_R = deviation_RP.sum(axis=1) / present_RP.sum(axis=1)
    own_RP = np.where(present_RP, deviation_RP - mean_R[:, None], 0.0) ** 2
    odd_R = np.union1d(
        far_from_median(mean_R, size), far_from_centre(run_distance(own_RP, present_RP))
    )

    variance, left_R = float(mean_R.var(ddof=1)), leave_one_out_variance(mean_R)
    # prompts are given
    enough, needed, note = verdict(n_replicas, "", row_R[odd_R], MIN_REPLICAS_SPREAD)
    method = "log-variance jackknife-t over replicas, these prompts"
    if left_R.min() <= tiny:
        low = high = None
        enough, note = (
            False,
            "all replicas, or all but one, have the same mean score: there is no spread "
            "to put an interval around",
        )
    else:
        low, high = map(
            math.exp, log_variance_interval(math.log(variance), np.log(left_R), mean_R, level)
        )
    sd = Estimate(variance, low, high, level, n_replicas, n_prompts, method, enough, needed, note)

    # On one prompt: the variance between the means of runs, and that about them, each with its own
    # error (Zou & Donner 2008).
    about_run = mean_estimate(
        *variances(own_RP, present_RP), cluster_P, level, row_R[odd_R], positive=True, tiny=tiny
    )
    own_value = about_run.value or 0.0
    within = replace(about_run, value=own_value + variance)
    if (
        about_run.low is not None
        and about_run.high is not None
        and low is not None
        and high is not None
    ):
        down, up = (
            math.hypot(own_value - about_run.low, variance - low),
            math.hypot(about_run.high - own_value, high - variance),
        )
        within = replace(
            within, low=max(own_value + variance - down, 0.0), high=own_value + variance + up
        )
    return ScoreSpread(_root(sd), _root(within))


def _root(variance: Estimate) -> Estimate:
    value, low, high = (
        None if x is None else math.sqrt(x) for x in (variance.value, variance.low, variance.high)
    )
    return replace(variance, value=value, low=low, high=high)


def score_mean(
    score_RP: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """What is the mean score of a fresh run on fresh prompts?

    Resampled: replicas and clusters of prompts (two-way jackknife-t), as in `accuracy`, on the
    plain scale. score_RP: [replicas, prompts], nan = missing. Conclusive: MIN_REPLICAS replicas and
    prompts whose distances from the mean are worth MIN_EFFECTIVE equal ones. Raises ValueError for
    other shapes or fewer than two rows.
    """
    level, score_RP = as_level(level), as_score_table(score_RP)
    value_P, left_RP, odd_R = score_by_prompt(score_RP)
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


def score_by_prompt(score_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score of every prompt, the same without each run that has a score, and the rows that
    stand far off.
    """
    row_R = np.flatnonzero(np.isfinite(score_RP).any(axis=1))
    return *prompt_means(score_RP[row_R]), row_R[odd_runs(score_RP[row_R])]
