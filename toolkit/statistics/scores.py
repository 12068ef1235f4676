"""How much numeric scores differ between runs: standard deviations, intraclass correlation, and loss split into bias and variance."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from toolkit.statistics.accuracy import MIN_REPLICAS_SPREAD
from toolkit.statistics.agreement import unknown, verdict
from toolkit.statistics.arrays import as_clusters, as_level
from toolkit.statistics.disagreement import MIN_CLUSTERS, MIN_REPLICAS
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import leave_one_out_variance, log_jackknife, t_quantile, two_way

Clusters = np.ndarray | Sequence[int] | None

MIN_REPLICAS_ODD_SD = 100  # with runs that stand far off the others, a standard deviation was seen to be covered from here
MIN_REPLICAS_ABSOLUTE = 20  # an ICC that counts the variance between runs was seen to be covered from here
MIN_REPLICAS_VARIANCE = 30  # and the variance part of a loss, where runs move all prompts together
# A figure that few prompts make up is not covered. Counted is (sum)^2 / (sum of squares) over prompts or clusters.
MIN_EFFECTIVE = 30
MIN_EFFECTIVE_LOSS = 20  # of losses, and of shares that prompts flip
MIN_EFFECTIVE_ICC = 60  # of the variance between prompts: about 180 prompts with normal scores, 600 with exponential ones
ROUNDING = 1e-12  # relative to the size of the scores, differences below this are rounding
FORMS = ("1,1", "A,1", "C,1", "1,k", "A,k", "C,k")


@dataclass(frozen=True)
class ScoreSpread:
    """How different runs are in a numeric score, in its unit.

    sd: standard deviation between runs of the mean score on these prompts.
    within_prompt_sd: root of the mean over fresh prompts of the variance between runs on one prompt.
    """

    sd: Estimate
    within_prompt_sd: Estimate

    def to_dict(self) -> dict:
        return asdict(self)


def score_sd(score_RP: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95) -> ScoreSpread:
    """How much does a score (log-likelihood, loss, margin, grade) move between two runs: as a mean over the suite, and on one prompt?

    `sd` speaks of this suite. Resampled: replicas, by the delete-one jackknife of ln(variance) with t and N-1 degrees of
    freedom, which does not need normal scores. A missing score counts as the prompt's mean, rescaled per replica.
    `within_prompt_sd` speaks of fresh prompts. Its square is the variance between the means of runs, with the interval of
    `sd`, and that about them, for which replicas and clusters of prompts are resampled (two-way jackknife, log scale).

    score_RP: [replicas, prompts], nan = missing. Conclusive: MIN_REPLICAS_SPREAD replicas for `sd`, MIN_REPLICAS and
    clusters worth MIN_EFFECTIVE equal ones for `within_prompt_sd`; MIN_REPLICAS_ODD_SD where runs stand far off the others.
    Equal scores have no spread to put an interval around. Raises ValueError for other shapes, infinite scores, or fewer than two rows.
    """
    level = as_level(level)
    score_RP, row_R, cluster_P = _scores(score_RP, cluster_P)
    n_replicas, n_prompts = score_RP.shape
    if n_replicas < 3 or n_prompts == 0:
        nothing = unknown(level, n_replicas, n_prompts, "needs three replicas with scores on common prompts", MIN_REPLICAS_SPREAD)
        return ScoreSpread(nothing, nothing)
    present_RP = np.isfinite(score_RP)
    tiny = (ROUNDING * float(np.nanmax(np.abs(score_RP)))) ** 2
    deviation_RP = np.where(present_RP, score_RP - np.nanmean(score_RP, axis=0), 0.0)
    mean_R = deviation_RP.sum(axis=1) / present_RP.sum(axis=1)
    own_RP = np.where(present_RP, deviation_RP - mean_R[:, None], 0.0) ** 2
    odd_R = np.union1d(_outliers(mean_R), far_off(run_distance(own_RP, present_RP)))

    variance, left_R = float(mean_R.var(ddof=1)), leave_one_out_variance(mean_R)
    enough, needed, note = verdict(n_replicas, MIN_CLUSTERS, row_R[odd_R], MIN_REPLICAS_SPREAD)  # prompts are given
    method = "log-variance jackknife-t over replicas, these prompts"
    if left_R.min() <= tiny:
        low = high = None
        enough, note = False, "all replicas, or all but one, have the same mean score: there is no spread to put an interval around"
    else:
        centre, se = log_jackknife(math.log(variance), np.log(left_R))
        low, high = _about(variance, centre, t_quantile(level, n_replicas - 1) * se)
    sd = Estimate(variance, low, high, level, n_replicas, n_prompts, method, enough, needed, note)

    # On one prompt: the variance between the means of runs, and that about them, each with its own error (Zou & Donner 2008).
    own = mean_estimate(*variances(own_RP, present_RP), cluster_P, level, row_R[odd_R], positive=True, tiny=tiny)
    own_value = own.value or 0.0
    within = replace(own, value=own_value + variance)
    if own.low is not None and own.high is not None and low is not None and high is not None:
        down, up = math.hypot(own_value - own.low, variance - low), math.hypot(own.high - own_value, high - variance)
        within = replace(within, low=max(own_value + variance - down, 0.0), high=own_value + variance + up)
    if len(odd_R) and n_replicas < MIN_REPLICAS_ODD_SD:
        sd, within = (replace(x, conclusive=False, needed=MIN_REPLICAS_ODD_SD) for x in (sd, within))
    return ScoreSpread(_root(sd), _root(within))


def _root(variance: Estimate) -> Estimate:
    value, low, high = (None if x is None else math.sqrt(x) for x in (variance.value, variance.low, variance.high))
    return replace(variance, value=value, low=low, high=high)


def _about(value: float, centre: float, half: float) -> tuple[float, float]:
    """exp(centre +- half), the value inside."""
    return min(math.exp(centre - half), value), max(math.exp(min(centre + half, 700.0)), value)


def icc(
    score_RP: np.ndarray, form: str = "A,1", *, interval: str = "jackknife", cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """How much of a score is the prompt, and not the run that was measured?

    Estimand: the intraclass correlation, the share of the variance of a score that lies between prompts, for fresh runs
    and prompts. `form` in the names of McGraw & Wong 1996 (those of Shrout & Fleiss 1979 behind): "1,1" (1,1), runs not
    told apart; "A,1" (2,1), absolute agreement of single runs; "C,1" (3,1), consistency, where a shift of a whole run
    does not count; with k for 1, of the mean of the N runs at hand (by Spearman-Brown).
    interval="jackknife": replicas and clusters of prompts are resampled (two-way jackknife on the log of variance
    between prompts over the rest). interval="F": the intervals published with the forms, from F distributions, to compare with
    the literature. They hold for independent normal scores of equal variance (of skewed ones they were seen to cover 30 %), so
    they are never conclusive, and they know no clusters.

    score_RP: [replicas, prompts]; prompts that a replica lacks are left out. Conclusive: clusters worth
    MIN_EFFECTIVE_ICC equal ones, and MIN_REPLICAS_ABSOLUTE replicas (MIN_REPLICAS for "C"), MIN_REPLICAS_ODD where runs stand far off.
    Raises ValueError for an unknown form or interval, other shapes, infinite scores, or fewer than two rows.
    """
    level = as_level(level)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    if interval not in ("jackknife", "F"):
        raise ValueError(f'interval must be "jackknife" or "F", not {interval!r}')
    if interval == "F" and cluster_P is not None:
        raise ValueError("the published intervals know no clusters of prompts: take the jackknife")
    score_RP, row_R, cluster_P = _scores(score_RP, cluster_P)
    whole_P = np.isfinite(score_RP).all(axis=0)
    score_RP, cluster_P, dropped = score_RP[:, whole_P], cluster_P[whole_P], int((~whole_P).sum())
    k, n = score_RP.shape
    if n < 2 or k < 2:
        return unknown(level, k, n, "needs two replicas with scores on two common prompts")
    score_RP = score_RP - score_RP.mean()
    single = _single_run(score_RP, form[0])
    tiny = (ROUNDING * float(np.abs(score_RP).max(initial=0.0))) ** 2
    if single.between + single.rest <= tiny:
        return unknown(level, k, n, "all scores are equal: there is no variance to divide")
    odd_R = row_R[_outliers(score_RP.mean(axis=1))] if form[0] != "C" else row_R[:0]
    enough, needed, note = verdict(k, len(np.unique(cluster_P)), odd_R, MIN_REPLICAS if form[0] == "C" else MIN_REPLICAS_ABSOLUTE)
    if enough and effective(single.between_P, cluster_P) < MIN_EFFECTIVE_ICC:
        enough, note = False, few_prompts(single.between_P, cluster_P, MIN_EFFECTIVE_ICC)
    low = high = None
    method = "two-way jackknife-t over replicas and prompts, log scale of the ratio of variances"
    if interval == "F":
        method = "F, McGraw & Wong 1996" if form[0] == "A" else "F, Shrout & Fleiss 1979"
        enough, note = False, "published interval, to compare with the literature: it holds for normal scores of equal variance only"
        low, high = _published(score_RP, form[0], level)
    elif k > 2 and single.between > tiny < single.rest:
        low, high = single.jackknife(cluster_P, level)
    else:
        enough, note = False, note or "the variance between prompts, or the rest, is not above 0"
    value = single.between / (single.between + single.rest)
    if form[2] == "k":
        value, low, high = (None if x is None or 1 + (k - 1) * x <= 0 else k * x / (1 + (k - 1) * x) for x in (value, low, high))
    note = "; ".join(filter(None, [note, f"{dropped} prompts that a replica lacks are left out" if dropped else ""]))
    return Estimate(value, low, high, level, k, n, method, enough, needed, note)


@dataclass(frozen=True)
class Decomposition:
    """loss = bias + variance: the mean loss of one run, the loss of the centre of all runs, and what the differences between runs cost."""

    loss: Estimate
    bias: Estimate
    variance: Estimate

    def to_dict(self) -> dict:
        return asdict(self)


def log_loss_decomposition(
    logprob_RPV: np.ndarray, truth_P: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Decomposition:
    """How much of the log loss of a run is that runs differ? In nats.

    E_r[-ln f_r(y)] = -ln fbar(y) + E_r KL(fbar || f_r) with fbar the normalised geometric mean of the runs, so that the
    second part is -ln sum_v exp(E_r ln f_r(v)) (Heskes 1998). Estimand: the three means, with E over all runs there could
    be, for fresh prompts. From N runs alone the variance comes out about 1/N too small, and the bias too large by as
    much: the jackknife takes that off (N V - (N-1) mean_r V(-r), Quenouille 1956).
    Resampled: replicas and clusters of prompts (two-way jackknife, log scale).

    logprob_RPV: ln of probabilities that sum to 1 over V, a cell of nan = missing. truth_P: the right value, -1 = not
    known: such prompts do not count. Conclusive: MIN_REPLICAS replicas (for the variance MIN_REPLICAS_VARIANCE) and clusters
    worth MIN_EFFECTIVE_LOSS equal ones (MIN_EFFECTIVE); MIN_REPLICAS_ODD replicas where some stand far off. Raises ValueError
    for other shapes, for sums other than 1, and for a probability of 0: its loss has no end.
    """
    level = as_level(level)
    logprob_RPV, present_RP, truth_P, cluster_P, row_R = _distributions(logprob_RPV, "logprob_RPV", truth_P, cluster_P)
    if np.any(np.isinf(logprob_RPV)):
        raise ValueError("logprob_RPV holds a probability of 0, of which the log loss has no end")
    _sums_to_one(np.exp(logprob_RPV).sum(axis=2), present_RP, "logprob_RPV")
    log_RPV = np.where(present_RP[:, :, None], logprob_RPV, 0.0)
    n_P, sum_PV = present_RP.sum(axis=0), log_RPV.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_P = -_log_sum_exp(sum_PV / n_P[:, None])
        left_RP = np.empty(present_RP.shape)
        for r, log_PV in enumerate(log_RPV):
            left_RP[r] = -_log_sum_exp((sum_PV - log_PV) / (n_P - present_RP[r])[:, None])
        centre_PV = sum_PV / n_P[:, None] + variance_P[:, None]
        distance_RP = np.sum(np.exp(centre_PV) * centre_PV, axis=1) - np.einsum("pv,rpv->rp", np.exp(centre_PV), log_RPV)
    loss_RP = -np.take_along_axis(log_RPV, truth_P[None, :, None], axis=2)[:, :, 0]
    return _decomposition(loss_RP, *unbiased(variance_P, left_RP, present_RP), distance_RP, present_RP, cluster_P, row_R, level)


def brier_decomposition(prob_RPV: np.ndarray, truth_P: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95) -> Decomposition:
    """How much of the Brier score of a run is that runs differ? From 0 to 2.

    E_r ||f_r - y||^2 = ||fbar - y||^2 + E_r ||f_r - fbar||^2 with fbar the mean of the runs (Krogh & Vedelsby 1995). The
    second part is what an ensemble of many would save. Estimand: the three means, with E over all runs there could be, for
    fresh prompts; the variance with N - 1 below, so that both parts are unbiased. bias may come out below 0 by chance.
    Everything else as in `log_loss_decomposition`; a probability of 0 is fine.
    """
    level = as_level(level)
    prob_RPV, present_RP, truth_P, cluster_P, row_R = _distributions(prob_RPV, "prob_RPV", truth_P, cluster_P)
    _sums_to_one(prob_RPV.sum(axis=2), present_RP, "prob_RPV")
    prob_RPV = np.where(present_RP[:, :, None], prob_RPV, 0.0)
    n_P = present_RP.sum(axis=0)
    mean_PV = prob_RPV.sum(axis=0) / np.maximum(n_P, 1)[:, None]
    distance_RP = np.where(present_RP, np.sum((prob_RPV - mean_PV) ** 2, axis=2), 0.0)
    loss_RP = 1.0 - 2 * np.take_along_axis(prob_RPV, truth_P[None, :, None], axis=2)[:, :, 0] + np.sum(prob_RPV**2, axis=2)
    return _decomposition(loss_RP, *variances(distance_RP, present_RP), distance_RP, present_RP, cluster_P, row_R, level)


def _decomposition(
    loss_RP: np.ndarray,
    variance_P: np.ndarray,
    left_RP: np.ndarray,
    distance_RP: np.ndarray,
    present_RP: np.ndarray,
    cluster_P: np.ndarray,
    row_R: np.ndarray,
    level: float,
) -> Decomposition:
    loss_RP = np.where(present_RP, loss_RP, 0.0)
    n_P = present_RP.sum(axis=0)
    used_P = n_P >= 2
    if not used_P.any():
        nothing = unknown(level, len(loss_RP), 0, "no prompt with a known answer has the distributions of two replicas")
        return Decomposition(nothing, nothing, nothing)
    loss_P = np.where(used_P, loss_RP.sum(axis=0) / np.maximum(n_P, 1), np.nan)
    left_loss_RP = np.where(present_RP, (loss_RP.sum(axis=0) - loss_RP) / np.maximum(n_P - 1, 1), loss_P)
    odd_R = row_R[far_off(run_distance(distance_RP, present_RP))]
    loss = mean_estimate(loss_P, left_loss_RP, cluster_P, level, odd_R, positive=True, worth=MIN_EFFECTIVE_LOSS)
    bias = mean_estimate(loss_P - variance_P, left_loss_RP - left_RP, cluster_P, level, odd_R, positive=True, worth=MIN_EFFECTIVE_LOSS)
    variance = mean_estimate(variance_P, left_RP, cluster_P, level, odd_R, positive=True, at_least=MIN_REPLICAS_VARIANCE)
    return Decomposition(loss, bias, variance)


def _log_sum_exp(x_PV: np.ndarray) -> np.ndarray:
    top_P = x_PV.max(axis=1)
    return top_P + np.log(np.exp(x_PV - top_P[:, None]).sum(axis=1))


@dataclass(frozen=True)
class _SingleRun:
    """Variance between prompts, and the rest of the variance of the score of a single run: per prompt, and without each run."""

    between_P: np.ndarray
    left_between_RP: np.ndarray
    rest_P: np.ndarray
    left_rest_RP: np.ndarray

    @property
    def between(self) -> float:
        return float(self.between_P.mean())

    @property
    def rest(self) -> float:
        return float(self.rest_P.mean())

    def jackknife(self, cluster_P: np.ndarray, level: float) -> tuple[float, float]:
        low, high = log_ratio(self.between_P, self.left_between_RP, self.rest_P, self.left_rest_RP, cluster_P, level)
        return 1 / (1 + math.exp(-low)), 1 / (1 + math.exp(-high))


def _single_run(score_RP: np.ndarray, form: str) -> _SingleRun:
    """The mean squares of the analysis of variance, taken apart by prompt: the means are the usual estimators.

    Between: the mean product of two runs, each about its own mean. The rest: the variance over runs on one prompt, for
    "C" about the means of the runs. "1" does not know that runs have means of their own.
    """
    k, n = score_RP.shape
    own_RP = (score_RP - score_RP.mean(axis=1, keepdims=True)) * math.sqrt(n / (n - 1))
    everyone_RP = np.ones(score_RP.shape, dtype=bool)
    rest_P, left_rest_RP = variances((score_RP - score_RP.mean(axis=0)) ** 2, everyone_RP)
    residual_P, left_residual_RP = variances((own_RP - own_RP.mean(axis=0)) ** 2, everyone_RP)
    sum_P, square_P = own_RP.sum(axis=0), np.sum(own_RP**2, axis=0)
    between_P = (sum_P**2 - square_P) / (k * (k - 1))
    left_between_RP = ((sum_P - own_RP) ** 2 - (square_P - own_RP**2)) / max((k - 1) * (k - 2), 1)
    if form == "C":
        rest_P, left_rest_RP = residual_P, left_residual_RP
    if form == "1":
        between_P = between_P - (rest_P - residual_P) / k
        left_between_RP = left_between_RP - (left_rest_RP - left_residual_RP) / (k - 1)
    return _SingleRun(between_P, left_between_RP, rest_P, left_rest_RP)


def _published(score_RP: np.ndarray, form: str, level: float) -> tuple[float, float]:
    """The intervals of Shrout & Fleiss 1979 for single runs, and of McGraw & Wong 1996 for agreement (Satterthwaite's df)."""
    from scipy.special import fdtri

    k, n = score_RP.shape
    mean_P, mean_R = score_RP.mean(axis=0), score_RP.mean(axis=1)
    rows = k * float(mean_P.var(ddof=1))
    columns = n * float(mean_R.var(ddof=1))
    error = float(np.sum((score_RP - mean_P - mean_R[:, None] + score_RP.mean()) ** 2)) / ((n - 1) * (k - 1))
    q = 0.5 + level / 2
    if form != "A":
        df = n * (k - 1) if form == "1" else (n - 1) * (k - 1)
        f = rows / (error if form == "C" else ((n - 1) * error + columns) / n)
        low, high = f / fdtri(n - 1, df, q), f * fdtri(df, n - 1, q)
        return (low - 1) / (low + k - 1), (high - 1) / (high + k - 1)
    rho = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    a = k * rho / (n * (1 - rho))
    b = 1 + k * rho * (n - 1) / (n * (1 - rho))
    df = (a * columns + b * error) ** 2 / ((a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))
    f_low, f_high = fdtri(n - 1, df, q), fdtri(df, n - 1, q)
    rest = k * columns + (k * n - k - n) * error
    low = n * (rows - f_low * error) / (f_low * rest + n * rows)
    return low, n * (f_high * rows - error) / (rest + n * f_high * rows)


def _outliers(x_R: np.ndarray) -> np.ndarray:
    """Rows more than six standard deviations (1.4826 MAD) from the median."""
    distance_R = np.abs(x_R - np.median(x_R))
    return np.flatnonzero(distance_R > 6 * 1.4826 * float(np.median(distance_R)))


def _scores(score_RP: np.ndarray, cluster_P: Clusters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the runs that have any, on the prompts that two of them have; which rows they are; clusters of these prompts."""
    score_RP = np.asarray(score_RP, dtype=np.float64)
    if score_RP.ndim != 2 or score_RP.shape[1] == 0 or len(score_RP) < 2:
        raise ValueError(f"score_RP must be a table of numbers [replicas, prompts] with two rows at least, not shape {score_RP.shape}")
    if np.any(np.isinf(score_RP)):
        raise ValueError("score_RP holds an infinite score; nan marks a missing one")
    cluster_P = as_clusters(cluster_P, score_RP.shape[1])
    used_P = np.isfinite(score_RP).sum(axis=0) >= 2
    row_R = np.flatnonzero(np.isfinite(score_RP[:, used_P]).any(axis=1))
    return score_RP[row_R][:, used_P], row_R, cluster_P[used_P]


def _distributions(
    x_RPV: np.ndarray, name: str, truth_P: np.ndarray, cluster_P: Clusters
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The prompts with a known truth and the runs with any distribution: these, where they are present, truth, clusters, rows."""
    x_RPV, truth_P = np.asarray(x_RPV, dtype=np.float64), np.asarray(truth_P)
    if x_RPV.ndim != 3 or 0 in x_RPV.shape or len(x_RPV) < 2:
        raise ValueError(f"{name} must be distributions [replicas, prompts, values] with two rows at least, not shape {x_RPV.shape}")
    n_prompts, n_values = x_RPV.shape[1:]
    if truth_P.shape != (n_prompts,) or not np.issubdtype(truth_P.dtype, np.integer):
        raise ValueError(f"truth_P must be one value number for each of the {n_prompts} prompts, -1 where it is not known")
    if truth_P.max() >= n_values or truth_P.min() < -1:
        raise ValueError(f"truth_P names a value outside 0..{n_values - 1}")
    cluster_P = as_clusters(cluster_P, n_prompts)
    known_P = truth_P >= 0
    present_RP = np.all(~np.isnan(x_RPV), axis=2)
    row_R = np.flatnonzero(present_RP[:, known_P].any(axis=1))
    return x_RPV[row_R][:, known_P], present_RP[row_R][:, known_P], truth_P[known_P], cluster_P[known_P], row_R


def _sums_to_one(sum_RP: np.ndarray, present_RP: np.ndarray, name: str) -> None:
    if np.any(np.abs(sum_RP[present_RP] - 1) > 1e-3):
        raise ValueError(f"{name} must be whole distributions: the probabilities of a cell sum to 1")


# -- what these figures share with those of distributions and texts ----------------------------------------------------


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
    """The mean over prompts of a figure estimated from runs, replicas and clusters of prompts both drawn anew.

    value_P: nan = does not count. left_RP: the same without run r (nan = nothing is left). positive: the estimand is at
    least 0, so the interval lies on the log scale; a value up to `tiny` has none. Conclusive: `at_least` replicas, and
    prompts worth `worth` equal ones, counted in carried_by_P (value_P itself where it is positive).
    """
    used_P = np.isfinite(value_P)
    n_replicas, n_prompts = len(left_RP), int(used_P.sum())
    if n_prompts == 0:
        return unknown(level, n_replicas, 0, note or "no prompt has what it takes", at_least if n_replicas < at_least else None)
    value_P, left_RP = value_P[used_P], left_RP[:, used_P]
    value, parts = float(value_P.mean()), two_way(value_P, left_RP, cluster_P[used_P])
    enough, needed, doubt = verdict(n_replicas, parts.n_clusters, odd_R, at_least)
    shape = level, n_replicas, n_prompts
    carried_by_P = value_P if carried_by_P is None else carried_by_P[used_P]
    if enough and effective(carried_by_P, cluster_P[used_P]) < worth:
        enough, doubt = False, few_prompts(carried_by_P, cluster_P[used_P], worth)
    if positive and value <= tiny:
        doubt = "nothing above 0 was seen (beyond rounding), so there is nothing to put an interval around"
        return Estimate(
            value if abs(value) > tiny else 0.0, None, None, *shape, "none", False, needed, "; ".join(filter(None, [doubt, note]))
        )
    method = "two-way jackknife-t over replicas and prompts" + (", log scale" if positive else "")
    low = high = None
    if np.isfinite(left_RP).any() and parts.n_clusters > 1:
        if positive:
            one_P = np.ones(n_prompts)
            ends = log_ratio(value_P, left_RP, one_P, np.broadcast_to(one_P, left_RP.shape), cluster_P[used_P], level)
            low, high = math.exp(ends[0]), math.exp(ends[1])
        else:
            half = parts.half_width(level)
            low, high = value - half, value + half
        if low == high:
            low = high = None
            enough, doubt = False, "nothing varies, so there is no spread to put an interval around"
    return Estimate(value, low, high, *shape, method, enough, needed, "; ".join(filter(None, [doubt, note])))


def log_ratio(
    a_P: np.ndarray, left_a_RP: np.ndarray, b_P: np.ndarray, left_b_RP: np.ndarray, cluster_P: np.ndarray, level: float
) -> tuple[float, float]:
    """Interval of ln(mean a / mean b), two means over prompts of positive figures estimated from runs; the estimate is inside.

    The two-way jackknife of the ratio to first order; for the runs the jackknife of the logarithm itself, whose
    pseudo-values know how skewed variances of few runs are (as in `variance_ratio`), unless a value left out is negative. Its
    degrees of freedom are those of as many equal runs as make up the figure, by what each contributes to it.
    """
    a, b = float(a_P.mean()), float(b_P.mean())
    left_a_RP, left_b_RP = (np.where(np.isfinite(left_RP), left_RP, x_P) for left_RP, x_P in ((left_a_RP, a_P), (left_b_RP, b_P)))
    parts = two_way(a_P / a - b_P / b, left_a_RP / a - left_b_RP / b, cluster_P)
    estimate = centre = math.log(a / b)
    left_a_R, left_b_R = left_a_RP.mean(axis=1), left_b_RP.mean(axis=1)
    if min(left_a_R.min(), left_b_R.min()) > 0.0:
        n = len(left_a_R)
        centre, se = log_jackknife(estimate, np.log(left_a_R / left_b_R))
        share_R = np.maximum(n * a - (n - 1) * left_a_R, 0.0)
        wider = t_quantile(level, max(share_R.sum() ** 2 / np.sum(share_R**2) - 1, 2.0)) / t_quantile(level, n - 1)
        parts = replace(parts, runs=(wider * se) ** 2)
    half = parts.half_width(level)
    return max(min(centre - half, estimate), -700.0), min(max(centre + half, estimate), 700.0)


def effective(value_P: np.ndarray, cluster_P: np.ndarray) -> float:
    """How many clusters of equal size would know the mean of this positive figure as well as these do."""
    sum_C = np.bincount(cluster_P, weights=value_P)
    squares = float(np.sum(sum_C**2))
    return float(sum_C.sum() ** 2 / squares) if squares > 0 else math.inf


def few_prompts(value_P: np.ndarray, cluster_P: np.ndarray, at_least: int) -> str:
    worth = effective(value_P, cluster_P)
    return f"few prompts make up most of it: they tell no more than {worth:.0f} equal ones would (at least {at_least})"


def variances(square_RP: np.ndarray, present_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample variance over runs per prompt, and without each run, from squared distances to the mean (0 where missing)."""
    n_P, sum_P = present_RP.sum(axis=0), square_RP.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_P = np.where(n_P > 1, sum_P / (n_P - 1), np.nan)
        left_RP = np.where(n_P > 2, np.maximum(sum_P - square_RP * n_P / (n_P - 1), 0.0) / (n_P - 2), np.nan)
    return variance_P, np.where(present_RP, left_RP, variance_P)


def unbiased(plug_in_P: np.ndarray, left_RP: np.ndarray, present_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The jackknife estimate n V - (n-1) mean_r V(-r), free of the bias in 1/n (Quenouille 1956), and V(-r) about it."""
    n_P = present_RP.sum(axis=0)
    left_RP = np.where(present_RP, left_RP, 0.0)
    mean_P = left_RP.sum(axis=0) / np.maximum(n_P, 1)
    value_P = np.where(n_P > 1, n_P * plug_in_P - (n_P - 1) * mean_P, np.nan)
    return value_P, np.where(present_RP, value_P + left_RP - mean_P, value_P)


def run_distance(distance_RP: np.ndarray, present_RP: np.ndarray) -> np.ndarray:
    """Root mean square distance of every run, of squared distances per cell."""
    mean_R = np.where(present_RP, distance_RP, 0.0).sum(axis=1) / np.maximum(present_RP.sum(axis=1), 1)
    return np.sqrt(np.maximum(mean_R, 0.0))


def far_off(distance_R: np.ndarray, deviations: float = 8.0) -> np.ndarray:
    """Rows whose distance is more than 2.5 times that of the median run, and eight standard deviations (1.4826 MAD) above it.

    Distances are skewed: a limit of 2 and six would find such a row in a fifth of the populations of 30 normal runs.
    """
    if not len(distance_R):
        return np.zeros(0, dtype=np.int64)
    middle = float(np.median(distance_R))
    spread = 1.4826 * float(np.median(np.abs(distance_R - middle)))
    return np.flatnonzero((distance_R > 2.5 * middle) & (distance_R > middle + deviations * spread))
