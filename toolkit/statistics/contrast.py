"""Two populations of runs on the same prompts: another recipe, or one run trained K times longer against the mean of K.

Nothing ties a run of one arm to a run of the other, unless run j of both shares its seeds (paired=True). The prompts are
shared either way and compared prompt by prompt. Groups against the replicas they were made of are in `compare`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from toolkit.statistics.accuracy import prompt_means
from toolkit.statistics.arrays import as_answers, as_clusters, as_correct, as_level, same_prompts
from toolkit.statistics.compare import MIN_GROUPS, Arms, Clusters, Ends, difference, ratio, whole
from toolkit.statistics.disagreement import MIN_REPLICAS_ODD, odd_note, odd_replicas
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import jackknife_variance, logit_interval, smallest, t_quantile, two_way
from toolkit.statistics.pairs import count_pairs, leave_one_out

CONSERVATIVE_RUNS = 10  # with fewer in an arm, separate degrees of freedom for two arms are on the safe side


def population_ratio(
    b_RP: np.ndarray, a_RP: np.ndarray, *, cluster_P: Clusters = None, paired: bool = False, level: float = 0.95
) -> Estimate:
    """By what factor do two runs of b differ more often than two runs of a? Below 1 = b is more stable.

    Estimand: D of fresh runs of b / D of fresh runs of a, on fresh prompts.
    Resampled: the runs of either arm (delete-one jackknife of ln D, an arm at a time; with paired=True run j of both at
    once), and clusters of prompts by d_bi/D_b - d_ai/D_a, less the noise that the runs account for already. Each of the three
    enters with the t quantile of its own N-1 or C-1 degrees of freedom, on the log scale. (One quantile for both arms with
    Welch's degrees of freedom covers less where the arms differ in size and runs shift all prompts.)

    Zeros, `conclusive`, `needed` (runs in each arm, pairs if paired) and practically no change as in `disagreement_ratio`;
    inconclusive too below MIN_REPLICAS_ODD runs in an arm when some stand far off (see `odd_replicas`): the other arm may
    lack such runs by chance. With fewer than CONSERVATIVE_RUNS the interval covers some 98 %, and says so.

    b_RP, a_RP: codes of answers (encoded together), -1 = missing; the arms may differ in runs unless paired. Runs without
    any answer count as none; with paired=True their partner goes too. Raises ValueError for shapes that do not fit.
    """
    level = as_level(level)
    return ratio(_disagreements(b_RP, a_RP, cluster_P, paired), len(b_RP), level)


def population_difference(
    b_RP: np.ndarray, a_RP: np.ndarray, *, cluster_P: Clusters = None, paired: bool = False, level: float = 0.95
) -> Estimate:
    """By how many points do two runs of b differ more often than two runs of a? Below 0 = b is more stable.

    Estimand: D of fresh runs of b - D of fresh runs of a, on fresh prompts. Unit: share of prompts. Arguments, errors
    and the three sources of error as in `population_ratio`. The runs of each arm enter by an interval on the logit scale,
    put together with the prompts by the square-and-add rule (Zou & Donner 2008), which keeps the skew near 0 and 1.
    """
    level = as_level(level)
    return difference(_disagreements(b_RP, a_RP, cluster_P, paired), len(b_RP), level)


def population_accuracy_change(
    b_RP: np.ndarray, a_RP: np.ndarray, *, cluster_P: Clusters = None, paired: bool = False, level: float = 0.95
) -> Estimate:
    """By how many points is a run of b more accurate than a run of a?

    Estimand: accuracy of a fresh run of b - accuracy of a fresh run of a, on fresh prompts. Unit: share of prompts.
    Resampling as in `population_difference`. b_RP, a_RP: 1 right, 0 wrong, nan missing.
    """
    level = as_level(level)
    b_RP, a_RP = as_correct(b_RP, "b_RP"), as_correct(a_RP, "a_RP")
    row_b_R, row_a_R, used_P, clusters_P = _used(np.isfinite(b_RP), np.isfinite(a_RP), cluster_P, paired, at_least=1)
    arms = None
    if min(len(row_b_R), len(row_a_R)) >= 2 and used_P.any():
        b_P, left_b_RP = prompt_means(b_RP[row_b_R][:, used_P], np.arange(len(row_b_R))[:, None])
        a_P, left_a_RP = prompt_means(a_RP[row_a_R][:, used_P], np.arange(len(row_a_R))[:, None])
        arms = _arms(b_P, a_P, left_b_RP, left_a_RP, clusters_P, "", paired)
    return difference(arms, len(b_RP), level)


@dataclass(frozen=True)
class Separate(Arms):
    """Arms whose runs have nothing to do with each other: each run is left out of its own arm."""

    @property
    def units(self) -> int:
        return min(len(self.left_b_JP), len(self.left_a_JP))

    def parts(self, weight_b: float, weight_a: float) -> "TwoArms":
        rows_b, rows_a = _rows(weight_b, self.left_b_JP, self.b_P), _rows(weight_a, self.left_a_JP, self.a_P)
        # As units of one sample the rows of both arms give the prompts' own variance: less the noise of single answers of both.
        value_P, n = weight_b * self.b_P + weight_a * self.a_P, len(rows_b) + len(rows_a)
        both = two_way(value_P, value_P + math.sqrt(n / (n - 1)) * np.concatenate([rows_b, rows_a]), self.cluster_P)
        runs_b, runs_a = (float(np.sum(rows.mean(axis=1) ** 2)) for rows in (rows_b, rows_a))
        return TwoArms(runs_b, runs_a, both.prompts, len(rows_b), len(rows_a), both.n_clusters)

    def log_parts(self) -> "TwoArms":
        parts = self.parts(1 / self.b, -1 / self.a)
        with np.errstate(divide="ignore"):
            left_b_J, left_a_J = np.log(whole(self.left_b_JP, self.b_P)), np.log(whole(self.left_a_JP, self.a_P))
        if np.isfinite(left_b_J).all() and len(left_b_J) > 2:
            parts = replace(parts, runs_b=jackknife_variance(left_b_J))
        if np.isfinite(left_a_J).all() and len(left_a_J) > 2:
            parts = replace(parts, runs_a=jackknife_variance(left_a_J))
        return parts

    def difference_ends(self) -> Callable[[float], Ends]:
        parts, value = self.parts(1.0, -1.0), self.b - self.a

        def ends_at(level: float) -> Ends:
            half_b, half_a, prompts = parts.halves(level)
            (low_b, high_b), (low_a, high_a) = _limits(self.b, half_b), _limits(self.a, half_a)
            return (
                value - math.hypot(self.b - low_b, high_a - self.a, prompts),
                value + math.hypot(high_b - self.b, self.a - low_a, prompts),
            )

        return ends_at


def _limits(share: float, half: float) -> Ends:
    return logit_interval(share, half) if 0.0 < share < 1.0 else (share - half, share + half)


@dataclass(frozen=True)
class TwoArms:
    """Where the error of a contrast of separate arms comes from: the runs of either arm, and the prompts that both answer."""

    runs_b: float
    runs_a: float
    prompts: float
    n_b: int
    n_a: int
    n_clusters: int

    def halves(self, level: float) -> tuple[float, float, float]:
        """Half widths from the runs of b, those of a, and the prompts, each with its own degrees of freedom. nan where a part is."""
        if min(self.n_b, self.n_a, self.n_clusters) < 2:
            return math.nan, math.nan, math.nan
        parts = (self.runs_b, self.n_b), (self.runs_a, self.n_a), (self.prompts, self.n_clusters)
        half_b, half_a, half_prompts = (t_quantile(level, n - 1) * math.sqrt(variance) for variance, n in parts)
        return half_b, half_a, half_prompts

    def half_width(self, level: float) -> float:
        return math.hypot(*self.halves(level))

    def runs_needed(self, effect: float, level: float, at_least: int) -> int | None:
        """Runs in each arm at which an effect of the observed size would leave its interval on one side; see `TwoWay`."""

        def resolves(n: int) -> bool:
            grown = replace(self, runs_b=self.runs_b * self.n_b / n, runs_a=self.runs_a * self.n_a / n, n_b=n, n_a=n)
            return grown.half_width(level) < abs(effect)

        return smallest(resolves, at_least)


def _rows(weight: float, left_RP: np.ndarray, value_P: np.ndarray) -> np.ndarray:
    """What each run adds to the error of weight * value: independent rows, whose squared means sum to the jackknife variance."""
    if not np.isfinite(left_RP).any():  # two runs leave no pair when one is left out
        return np.full_like(left_RP, math.nan) if weight else np.zeros_like(left_RP)
    n = len(left_RP)
    shift_RP = np.where(np.isfinite(left_RP), left_RP - value_P, 0.0)
    return weight * math.sqrt((n - 1) / n) * (shift_RP - shift_RP.mean(axis=0))


def _disagreements(b_RP: np.ndarray, a_RP: np.ndarray, cluster_P: Clusters, paired: bool) -> Arms | None:
    b_RP, a_RP = as_answers(b_RP, "b_RP"), as_answers(a_RP, "a_RP")
    row_b_R, row_a_R, used_P, cluster_P = _used(b_RP >= 0, a_RP >= 0, cluster_P, paired, at_least=2)
    if min(len(row_b_R), len(row_a_R)) < 2 or not used_P.any():
        return None
    pairs_b, pairs_a = count_pairs(b_RP[row_b_R][:, used_P]), count_pairs(a_RP[row_a_R][:, used_P])
    odd = {"b": odd_note(row_b_R[odd_replicas(pairs_b)]), "a": odd_note(row_a_R[odd_replicas(pairs_a)])}
    remark = "; ".join(f"{arm}: {note}" for arm, note in odd.items() if note)
    return _arms(pairs_b.d_P, pairs_a.d_P, leave_one_out(pairs_b), leave_one_out(pairs_a), cluster_P, remark, paired)


def _used(
    present_b_RP: np.ndarray, present_a_RP: np.ndarray, cluster_P: Clusters, paired: bool, at_least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of b and of a that answered anything (their partner too if paired), prompts that at_least of them answered, their clusters."""
    same_prompts(present_b_RP, present_a_RP)
    if paired and len(present_b_RP) != len(present_a_RP):
        raise ValueError(f"paired arms need a run each for every pair, not {len(present_b_RP)} and {len(present_a_RP)}")
    clusters_P = as_clusters(cluster_P, present_b_RP.shape[1])
    alive_b_R, alive_a_R = present_b_RP.any(axis=1), present_a_RP.any(axis=1)
    if paired:
        alive_b_R = alive_a_R = alive_b_R & alive_a_R
    used_P = (present_b_RP[alive_b_R].sum(axis=0) >= at_least) & (present_a_RP[alive_a_R].sum(axis=0) >= at_least)
    return np.flatnonzero(alive_b_R), np.flatnonzero(alive_a_R), used_P, clusters_P[used_P]


def _arms(
    b_P: np.ndarray,
    a_P: np.ndarray,
    left_b_RP: np.ndarray,
    left_a_RP: np.ndarray,
    cluster_P: np.ndarray,
    remark: str,
    paired: bool,
) -> Arms:
    least = MIN_REPLICAS_ODD if remark else MIN_GROUPS
    if paired:
        return Arms(b_P, a_P, left_b_RP, left_a_RP, cluster_P, remark, "pairs", "paired delete-a-pair", least)
    resampled = "two-sample delete-one"
    if min(len(left_b_RP), len(left_a_RP)) < CONSERVATIVE_RUNS:
        resampled = f"conservative {resampled}"
    return Separate(b_P, a_P, left_b_RP, left_a_RP, cluster_P, remark, "runs in each arm", resampled, least)
